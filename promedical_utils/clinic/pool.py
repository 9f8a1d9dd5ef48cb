"""Raw pools around the clinic's messages, in which the truth of every row is known.

Everything in them is invented. The rows that curation must find are planted: duplicates with typing
errors, other punctuation, greetings and line orders; near-misses, which differ in one fact; what
is foreign, closed, too short, too long, not medical, too easy, too hard; and leaked bench items.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from promedical_utils.clinic.vocabulary import read, values
from promedical_utils.clinic.world import Patient, World, conditions, draw_patient, messages
from promedical_utils.core.records import Message, RawInstruction
from promedical_utils.core.workspace import short_hash

Kind = str  # "kept", or a key of SHARES
SHARES = read("pool")["shares"]  # rows of each kind for one row that is kept
NEAR_MISSES = ("dose", "drug", "sign", "swap", "not")


@dataclass(frozen=True)
class Planted:
    """What a row is; ``of`` is the row, or the bench item, that it was made from.

    A near-miss is an instruction of its own, to be kept. Category, specialty and difficulty are
    what a classifier and a screener should say.
    """

    kind: Kind
    of: str = ""
    category: str = ""
    specialty: str = ""
    difficulty: int = 0


def text_of(conversation: Sequence[Message]) -> str:
    """A conversation as one text: what the patient wrote."""
    return " ".join(m.content for m in conversation if m.role == "user")


class _Row(NamedTuple):
    """A row as it is planted; without a licence an open one is drawn."""

    kind: Kind
    text: str
    of: str = ""
    licence: str = ""
    difficulty: int | None = None


def raw(
    world: World,
    ids: Sequence[str],
    seed: int,
    bench: Sequence[str] | None = None,
    shares: dict[str, float] = SHARES,
) -> tuple[list[RawInstruction], dict[str, Planted]]:
    """Rows around the messages of ``ids``, shuffled, and the truth of each by its id.

    A row that is kept has its instruction's id. ``bench`` are the instructions to leak, by default
    those of the bench split. Equal arguments give equal rows.
    """
    rng, licences = random.Random(f"pool-{seed}"), read("pool")["licences"]["open"]
    known = {i.id: i for i in world.instructions}
    bench = list(bench if bench is not None else world.ids("bench"))
    count = {kind: max(1, round(share * len(ids))) for kind, share in shares.items()}
    rows: list[RawInstruction] = []
    truth: dict[str, Planted] = {}
    for row in _planted(world, ids, bench, count, rng):  # each draws from rng before it is added
        id_ = (
            row.of if row.kind == "kept" else f"raw-{seed}-{short_hash(row.kind, row.of, row.text)}"
        )
        if id_ in truth:
            continue
        base = known.get(row.of)
        about = (base.category, base.specialty, base.difficulty) if base else _drawn(rng)
        difficulty = about[2] if row.difficulty is None else row.difficulty
        truth[id_] = Planted(row.kind, row.of, *about[:2], difficulty)
        licence = row.licence or rng.choice(licences)
        source = "raw pool (invented)"
        rows.append(RawInstruction(id=id_, text=row.text, source=source, licence=licence))
    rng.shuffle(rows)
    return rows, truth


def _planted(
    world: World, ids: Sequence[str], bench: list[str], count: dict[str, int], rng: random.Random
) -> Iterator[_Row]:
    """Each message of ``ids``, then ``count`` rows of each other kind, drawn one by one."""
    texts, written = read("pool"), {i.id: text_of(i.messages) for i in world.instructions}
    things, organs = texts["things"], conditions()
    foreign = [line for lines in texts["foreign"].values() for line in lines]
    off_topic = [form.format(thing=thing) for form in texts["not_medical"] for thing in things]
    easy = [f.format(organ=o, problem=p) for f in texts["easy"] for o, p in organs]
    yield from (_Row("kept", written[id_], id_) for id_ in ids)
    for _ in range(count["duplicate"]):
        of = rng.choice(ids)
        yield _Row("duplicate", reworded(written[of], rng), of)
    for _ in range(count["near_miss"]):
        of = rng.choice(ids)
        yield _Row("near_miss", near_miss(world.patients[of], written[of], rng), of)
    for _ in range(count["licence"]):
        yield _Row("licence", _message(rng), licence=rng.choice(texts["licences"]["closed"]))
    for text in rng.sample(foreign, min(count["language"], len(foreign))):
        yield _Row("language", text)
    for n in range(count["length"]):
        long = "" if n % 2 else " ".join(_message(rng) for _ in range(24))
        yield _Row("length", long or rng.choice(texts["short"]))
    for text in rng.sample(off_topic, min(count["not_medical"], len(off_topic))):
        yield _Row("not_medical", text)
    for text in rng.sample(easy, min(count["too_easy"], len(easy))):
        yield _Row("too_easy", text, difficulty=rng.randrange(0, 5))
    for _ in range(count["too_hard"]):
        text = rng.choice(texts["hard"]).format(a=_message(rng), b=_message(rng))
        yield _Row("too_hard", text, difficulty=10)
    for n, of in enumerate(rng.sample(bench, min(count["leak"], len(bench)))):
        yield _Row("leak", reworded(written[of], rng) if n % 2 else written[of], of)


# ---------------------------------------------------------------- how a text is changed


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
    facts, kind = patient.facts, rng.choice(NEAR_MISSES)
    first, avoid = facts["first"], facts["avoid"]
    match kind:
        case "dose":
            limit = _another("units", facts["limit"], rng)
            return re.sub(r"(?<=limit |ximum )\d+", limit, text, count=1)
        case "drug":
            return text.replace(first, _another("drug", first, rng, avoid, facts["other"]))
        case "sign":
            danger = facts["danger"]
            return text.replace(danger, _another("sign", danger, rng, facts["mild"]))
        case "swap":
            return re.sub(f"{first}|{avoid}", lambda m: avoid if m[0] == first else first, text)
    for stated, denied in read("pool")["negated"]:
        if stated in text:
            return text.replace(stated, denied, 1)
    raise ValueError(f"no line to deny in {text!r}")


def _another(kind: str, value: str, rng: random.Random, *used: str) -> str:
    return rng.choice([v for v in values(kind) if v != value and v not in used])


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
    before, label, leaflet = text.partition("Leaflet: ")
    lines = re.findall(r"[^.?]+\.", leaflet)
    rest = leaflet[sum(map(len, lines)) :]
    lines = [line.strip() for line in lines]
    return before + label + " ".join(rng.sample(lines, len(lines))) + rest


def _greeted(text: str, rng: random.Random) -> str:
    return rng.choice(read("pool")["greetings"]).format(text=text)


def _lettered(text: str, rng: random.Random) -> str:
    """Small letters, capitals, no commas, no stops or double spaces."""
    changed = (
        text.lower(),
        text.upper(),
        text.replace(",", ""),
        re.sub(r"[.?!]", "", text),
        text.replace(". ", ".  "),
    )
    return rng.choice(changed)


def _message(rng: random.Random) -> str:
    """The message of a patient of no split."""
    return text_of(messages(draw_patient(rng, 0, -1, rng.choice(conditions()))))


def _drawn(rng: random.Random) -> tuple[str, str, int]:
    """Category, specialty and difficulty of a row that no instruction is behind."""
    words = read("vocabulary")
    specialty = list(words["specialties"].values())
    return rng.choice(words["categories"]), rng.choice(specialty), rng.randint(5, 9)
