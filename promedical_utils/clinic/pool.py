"""Raw pools around the clinic's messages, in which the truth of every row is known.

Everything in them is invented. The rows that curation must find are planted: duplicates with typing
errors, other punctuation, greetings and line orders; near-misses, which differ in one fact; what
is foreign, closed, too short, too long, not medical, too easy, too hard; and leaked bench items.
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from promedical_utils.clinic.vocabulary import read, values
from promedical_utils.clinic.world import Patient, World, conditions, draw_patient, messages
from promedical_utils.core.records import Message, RawInstruction
from promedical_utils.core.workspace import short_hash

Kind = Literal[
    "kept",
    "duplicate",
    "near_miss",
    "licence",
    "language",
    "length",
    "not_medical",
    "leak",
    "too_easy",
    "too_hard",
]
# rows of each kind for one row that is kept
SHARES = {
    "duplicate": 0.3,
    "near_miss": 0.1,
    "licence": 0.06,
    "language": 0.06,
    "length": 0.04,
    "not_medical": 0.08,
    "leak": 0.03,
    "too_easy": 0.1,
    "too_hard": 0.06,
}
NEAR_MISSES = ("dose", "drug", "sign", "swap", "not")
NEAR_MISS_SHARE = 0.05  # of a synthetic pool


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


def text_of(told: Sequence[Message]) -> str:
    """A conversation as one text: what the patient wrote."""
    return " ".join(m.content for m in told if m.role == "user")


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
    rng, texts = random.Random(f"pool-{seed}"), read("pool")
    known = {i.id: i for i in world.instructions}
    bench = list(bench if bench is not None else world.ids("bench"))
    rows: list[RawInstruction] = []
    truth: dict[str, Planted] = {}

    def add(
        kind: Kind, text: str, of: str = "", licence: str = "", id_: str = "", difficulty: int = -1
    ) -> None:
        base = known.get(of)
        id_ = id_ or f"raw-{seed}-{short_hash(kind, of, text)}"
        if id_ in truth:
            return
        about = (base.category, base.specialty, base.difficulty) if base else _drawn(rng)
        truth[id_] = Planted(kind, of, *about[:2], about[2] if difficulty < 0 else difficulty)
        licence = licence or rng.choice(texts["licences"]["open"])
        rows.append(
            RawInstruction(id=id_, text=text, source="raw pool (invented)", licence=licence)
        )

    for id_ in ids:
        add("kept", text_of(known[id_].messages), id_, id_=id_)
    count = {kind: max(1, round(share * len(ids))) for kind, share in shares.items()}
    foreign = [s for lines in texts["foreign"].values() for s in lines]
    off_topic = [
        form.format(thing=thing) for form in texts["not_medical"] for thing in texts["things"]
    ]
    easy = [f.format(organ=o, problem=p) for f in texts["easy"] for o, p in conditions()]
    for _ in range(count["duplicate"]):
        of = rng.choice(ids)
        add("duplicate", reworded(text_of(known[of].messages), rng), of)
    for _ in range(count["near_miss"]):
        of = rng.choice(ids)
        add("near_miss", near_miss(world.patients[of], text_of(known[of].messages), rng), of)
    for _ in range(count["licence"]):
        add("licence", _message(rng), licence=rng.choice(texts["licences"]["closed"]))
    for text in rng.sample(foreign, min(count["language"], len(foreign))):
        add("language", text)
    for n in range(count["length"]):
        add(
            "length",
            rng.choice(texts["short"]) if n % 2 else " ".join(_message(rng) for _ in range(24)),
        )
    for text in rng.sample(off_topic, min(count["not_medical"], len(off_topic))):
        add("not_medical", text)
    for text in rng.sample(easy, min(count["too_easy"], len(easy))):
        add("too_easy", text, difficulty=rng.randrange(0, 5))
    for _ in range(count["too_hard"]):
        form = rng.choice(texts["hard"])
        add("too_hard", form.format(a=_message(rng), b=_message(rng)), difficulty=10)
    for n, of in enumerate(rng.sample(bench, min(count["leak"], len(bench)))):
        text = text_of(known[of].messages)
        add("leak", reworded(text, rng) if n % 2 else text, of)
    rng.shuffle(rows)
    return rows, truth


def synthetic(n: int, seed: int, share: float = 0.2) -> Iterator[tuple[str, str, int, Kind]]:
    """``n`` rows (id, text, cluster, kind), a ``share`` of them duplicates: one by one, for any n.

    Rows of one cluster say the same. A near-miss is a cluster of its own, after the row that it is
    made from. Ids are drawn by hash, so that they tell nothing.
    """
    rng = random.Random(f"synthetic-{seed}")
    pool, made, cluster = conditions(), 0, 0
    miss = NEAR_MISS_SHARE / (1 - share - NEAR_MISS_SHARE)
    again = share / (1 - NEAR_MISS_SHARE)  # after each row of a cluster, the odds of one more

    def row(text: str, kind: Kind) -> tuple[str, str, int, Kind]:
        return f"s-{short_hash(seed, made)}", text, cluster, kind

    while made < n:
        patient = draw_patient(rng, made, seed, rng.choice(pool))
        text = text_of(messages(patient))
        kind: Kind = "kept"
        while True:
            yield row(reworded(text, rng) if kind == "duplicate" else text, kind)
            made, kind = made + 1, "duplicate"
            if made == n or rng.random() >= again:
                break
        cluster += 1
        if made < n and rng.random() < miss:
            yield row(near_miss(patient, text, rng), "near_miss")
            made, cluster = made + 1, cluster + 1


def scores(
    clusters: Mapping[str, int], near_misses: Iterable[str], kept_of: Mapping[str, str]
) -> dict[str, float]:
    """How well duplicates were found: ``kept_of`` is removed id -> the id that is kept for it.

    Over pairs of rows: precision is the share of the pairs put together that are of one true
    cluster, recall the share of the pairs of one true cluster that were put together. Removed rows:
    ``removed_rightly`` is the share whose kept row says the same, ``removed_of_true`` their number
    over that of the rows that had to go. A near-miss is kept when no row of another cluster stands
    for it.
    """
    found: Counter = Counter()
    for id_, cluster in clusters.items():
        found[kept_of.get(id_, id_), cluster] += 1
    together, true = Counter(), Counter()
    for (kept, cluster), n in found.items():
        together[kept] += n
        true[cluster] += n
    hits, put, wanted = (sum(n * (n - 1) // 2 for n in c.values()) for c in (found, together, true))
    right = sum(clusters[i] == clusters[kept] for i, kept in kept_of.items())
    misses = list(near_misses)
    safe = sum(clusters[kept_of.get(i, i)] == clusters[i] for i in misses)
    return {
        "precision": hits / put if put else 1.0,
        "recall": hits / wanted if wanted else 1.0,
        "removed_rightly": right / len(kept_of) if kept_of else 1.0,
        "removed_of_true": right / max(1, len(clusters) - len(true)),
        "near_misses": len(misses),
        "near_misses_kept": safe,
    }


# ---------------------------------------------------------------- how a text is changed


def reworded(text: str, rng: random.Random) -> str:
    """The text said again: up to three of typing errors, fillers, line order, greeting, letters."""
    changes = [
        _reordered,
        _typed,
        _filled,
        _greeted,
        _lettered,
    ]  # in an order that none of them hides
    drawn = rng.sample(changes, rng.choice((1, 2, 2, 3)))
    for change in sorted(drawn, key=changes.index):
        text = change(text, rng)
    return text


def near_miss(patient: Patient, text: str, rng: random.Random) -> str:
    """The text with one fact changed: another dose, drug, sign, two drugs exchanged, a ``not``."""
    f, kind = patient.facts, rng.choice(NEAR_MISSES)
    other = {
        "dose": lambda: _replaced(
            text, r"(?<=limit |ximum )\d+", _another("units", f["limit"], rng)
        ),
        "drug": lambda: text.replace(
            f["first"], _another("drug", f["first"], rng, f["avoid"], f["other"])
        ),
        "sign": lambda: text.replace(f["danger"], _another("sign", f["danger"], rng, f["mild"])),
        "swap": lambda: re.sub(
            f"{f['first']}|{f['avoid']}",
            lambda m: f["avoid"] if m[0] == f["first"] else f["first"],
            text,
        ),
    }
    if kind in other:
        return other[kind]()
    for said, denied in read("pool")["negated"]:
        if said in text:
            return text.replace(said, denied, 1)
    raise ValueError(f"no line to deny in {text!r}")


def _replaced(text: str, pattern: str, value: str) -> str:
    return re.sub(pattern, value, text, count=1)


def _another(kind: str, value: str, rng: random.Random, *used: str) -> str:
    return rng.choice([v for v in values(kind) if v != value and v not in used])


def _typed(text: str, rng: random.Random) -> str:
    """One to three longer words with a letter twice, missing, wrong or too late."""
    words = text.split(" ")
    long = [n for n, word in enumerate(words) if len(word) > 4 and word[:-1].isalpha()]
    for n in rng.sample(long, min(len(long), rng.choice((1, 1, 2, 3)))):
        word, at = words[n], rng.randrange(1, len(words[n]) - 2)
        wrong = rng.choice("abcdefghijklmnopqrstuvwxyz")
        words[n] = word[:at] + rng.choice(
            (
                word[at] * 2 + word[at + 1 :],
                word[at + 1 :],
                wrong + word[at + 1 :],
                word[at + 1] + word[at] + word[at + 2 :],
            )
        )
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
    change = rng.choice(
        (
            str.lower,
            str.upper,
            lambda t: t.replace(",", ""),
            lambda t: re.sub(r"[.?!]", "", t),
            lambda t: t.replace(". ", ".  "),
        )
    )
    return change(text)


def _message(rng: random.Random) -> str:
    """The message of a patient of no split."""
    return text_of(messages(draw_patient(rng, 0, -1, rng.choice(conditions()))))


def _drawn(rng: random.Random) -> tuple[str, str, int]:
    words = read("vocabulary")
    return (
        rng.choice(words["categories"]),
        rng.choice(list(words["specialties"].values())),
        rng.randint(5, 9),
    )
