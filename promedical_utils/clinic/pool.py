"""Raw pools around the clinic's messages, in which the truth of every row is known.

The rows that curation must find are planted: duplicates, said in other letters or another order;
near-misses, which differ in one fact; what is foreign, closed, too short, too long, not medical,
too easy, too hard; and leaked bench items.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from promedical_utils.clinic.grammar import restated
from promedical_utils.clinic.vocabulary import read, values
from promedical_utils.clinic.world import (
    LEAFLET,
    Patient,
    World,
    conditions,
    draw_patient,
    messages,
)
from promedical_utils.core.records import Message, RawInstruction
from promedical_utils.core.workspace import short_hash


@dataclass(frozen=True)
class Planted:
    """What a row is: "kept", or of a kind in data/pool.yaml, made from ``of`` (a near-miss is to be
    kept, too); and what a classifier and a screener should say of it."""

    kind: str
    of: str = ""
    category: str = ""
    specialty: str = ""
    difficulty: int | None = None


def text_of(conversation: Sequence[Message]) -> str:
    """A conversation as one text: what the patient wrote."""
    return " ".join(m.content for m in conversation if m.role == "user")


def raw(
    world: World, ids: Sequence[str], seed: int
) -> tuple[list[RawInstruction], dict[str, Planted]]:
    """Rows around the messages of ``ids``, shuffled, and the truth of each by its id. A row that is
    kept has its instruction's id. Equal arguments give equal rows."""
    rng, words = random.Random(f"pool-{seed}"), read("vocabulary")
    specialties, licences = list(words["specialties"].values()), read("pool")["licences"]["open"]
    known = {i.id: i for i in world.instructions}
    rows: list[RawInstruction] = []
    truth: dict[str, Planted] = {}
    for text, planted, closed in _planted(world, ids, rng):  # in turn, since all draw from rng
        id_ = f"raw-{seed}-{short_hash(planted.kind, planted.of, text)}"
        id_ = planted.of if planted.kind == "kept" else id_
        if id_ in truth:
            continue
        if base := known.get(planted.of):
            category, specialty, difficulty = base.category, base.specialty, base.difficulty
        else:
            category, specialty = rng.choice(words["categories"]), rng.choice(specialties)
            difficulty = rng.randint(5, 9)
        difficulty = difficulty if planted.difficulty is None else planted.difficulty
        truth[id_] = Planted(planted.kind, planted.of, category, specialty, difficulty)
        about = {"source": "raw pool (invented)", "licence": closed or rng.choice(licences)}
        rows.append(RawInstruction(id=id_, text=text, **about))
    rng.shuffle(rows)
    return rows, truth


def _planted(world: World, ids: Sequence[str], rng: random.Random) -> Iterator[tuple]:
    """(text, what it is, closed licence if any): each message of ``ids``, then the rows of each
    other kind, drawn one by one."""
    texts, written = read("pool"), {i.id: text_of(i.messages) for i in world.instructions}
    count = {kind: max(1, round(share * len(ids))) for kind, share in texts["shares"].items()}
    things, organs, bench = texts["things"], conditions(), world.ids("bench")
    foreign = [line for lines in texts["foreign"].values() for line in lines]
    off_topic = [form.format(thing=thing) for form in texts["not_medical"] for thing in things]
    easy = [f.format(organ=o, problem=p) for f in texts["easy"] for o, p in organs]

    def stranger() -> str:
        """The message of a patient of no split."""
        return text_of(messages(draw_patient(rng, 0, -1, rng.choice(organs))))

    yield from ((written[id_], Planted("kept", id_), "") for id_ in ids)
    for _ in range(count["duplicate"]):
        of = rng.choice(ids)
        yield reworded(written[of], rng), Planted("duplicate", of), ""
    for _ in range(count["near_miss"]):
        of = rng.choice(ids)
        yield near_miss(world.patients[of], written[of], rng), Planted("near_miss", of), ""
    for _ in range(count["licence"]):
        yield stranger(), Planted("licence"), rng.choice(texts["licences"]["closed"])
    for text in rng.sample(foreign, min(count["language"], len(foreign))):
        yield text, Planted("language"), ""
    for n in range(count["length"]):
        long = "" if n % 2 else " ".join(stranger() for _ in range(24))
        yield long or rng.choice(texts["short"]), Planted("length"), ""
    for text in rng.sample(off_topic, min(count["not_medical"], len(off_topic))):
        yield text, Planted("not_medical"), ""
    for text in rng.sample(easy, min(count["too_easy"], len(easy))):
        yield text, Planted("too_easy", difficulty=rng.randrange(0, 5)), ""
    for _ in range(count["too_hard"]):
        text = rng.choice(texts["hard"]).format(a=stranger(), b=stranger())
        yield text, Planted("too_hard", difficulty=10), ""
    for n, of in enumerate(rng.sample(bench, min(count["leak"], len(bench)))):
        yield reworded(written[of], rng) if n % 2 else written[of], Planted("leak", of), ""


def reworded(text: str, rng: random.Random) -> str:
    """The text said again: up to three of typing errors, fillers, line order, greeting, letters."""
    # in an order that none of them hides
    changes = [_reordered, _typed, _filled, _greeted, _lettered]
    drawn = rng.sample(changes, rng.choice((1, 2, 2, 3)))
    for change in sorted(drawn, key=changes.index):
        text = change(text, rng)
    return text


def near_miss(patient: Patient, text: str, rng: random.Random) -> str:
    """The text with one fact changed: another dose, drug, sign, two drugs exchanged, a ``not``."""
    facts, kind = patient.facts, rng.choice(("dose", "drug", "sign", "swap", "not"))
    first, avoid, danger = facts["first"], facts["avoid"], facts["danger"]

    def another(type_: str, *used: str) -> str:
        return rng.choice([value for value in values(type_) if value not in used])

    match kind:
        case "dose":
            return restated(text, "limit", another("units", facts["limit"]))
        case "drug":
            return restated(text, "first", another("drug", first, avoid, facts["other"]))
        case "sign":
            return restated(text, "danger", another("sign", danger, facts["mild"]))
        case "swap":
            return restated(restated(text, "first", avoid), "avoid", first)
    stated, denied = next(pair for pair in read("pool")["negated"] if pair[0] in text)
    return text.replace(stated, denied, 1)


def _typed(text: str, rng: random.Random) -> str:
    """One to three longer words with a letter twice, missing, wrong or too late."""
    words = text.split(" ")
    long = [n for n, word in enumerate(words) if len(word) > 4 and word[:-1].isalpha()]
    for n in rng.sample(long, min(len(long), rng.choice((1, 1, 2, 3)))):
        word, at = words[n], rng.randrange(1, len(words[n]) - 2)
        wrong, rest = rng.choice("abcdefghijklmnopqrstuvwxyz"), word[at + 1 :]
        late = word[at + 1] + word[at] + word[at + 2 :]
        words[n] = word[:at] + rng.choice((word[at] * 2 + rest, rest, wrong + rest, late))
    return " ".join(words)


def _filled(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    for _ in range(rng.choice((1, 2))):
        words.insert(rng.randrange(1, len(words)), rng.choice(read("pool")["fillers"]))
    return " ".join(words)


def _reordered(text: str, rng: random.Random) -> str:
    """The lines of the leaflet in another order; the question after it stays where it is."""
    before, label, leaflet = text.partition(LEAFLET)
    lines = re.findall(r"[^.?]+\.", leaflet)
    order = [line.strip() for line in rng.sample(lines, len(lines))]
    return before + label + " ".join(order) + leaflet[sum(map(len, lines)) :]


def _greeted(text: str, rng: random.Random) -> str:
    return rng.choice(read("pool")["greetings"]).format(text=text)


def _lettered(text: str, rng: random.Random) -> str:
    """Small letters, capitals, no commas, no stops or double spaces."""
    plain = text.replace(",", ""), re.sub(r"[.?!]", "", text)
    return rng.choice((text.lower(), text.upper(), *plain, text.replace(". ", ".  ")))
