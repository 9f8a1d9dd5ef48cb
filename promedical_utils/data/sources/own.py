"""Data of one's own: one long table, or a folder of the kit's records; read, and never written to.

What the columns of the table hold stands in ``docs/own_data.md``.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import fsum
from pathlib import Path

from pydantic import Field, field_validator

from promedical_utils.core import long_table, records
from promedical_utils.core.records import Candidate, CriterionPair, Rubric, SplitRow, Verdict
from promedical_utils.core.run_data import KINDS, RunData
from promedical_utils.core.workspace import KitError, short_hash, shown
from promedical_utils.data.sources import schemas
from promedical_utils.data.sources.question_split import SHARES
from promedical_utils.data.sources.real_sets import NEGATION
from promedical_utils.rubric import preferences

TURNED = {"met": "not_met", "not_met": "met", "unknown": "unknown"}
UNITS = 10_000  # weights have four decimals


class Row(long_table.Row):
    """One verdict on a criterion of an answer, or one preference of two answers by a criterion."""

    instruction: str
    prompt: str = ""  # its words, where ``instruction`` is a name
    criterion: str
    dimension: records.Dimension
    safety: bool | None = None  # what points below 0 are
    weight: float | None = Field(None, allow_inf_nan=False)
    points: float | None = Field(None, allow_inf_nan=False)
    answer: str = ""
    text: str = ""  # its words, where ``answer`` is a name
    verdict: long_table.Verdict | None = None
    other: str = ""
    preferred: long_table.Side | None = None
    generator: str = "own"
    cluster: str = ""
    split: records.Split | None = None

    @field_validator("weight", "points")
    @classmethod
    def _worth(cls, value: float, info):
        if info.data.get("weight") is not None:
            raise ValueError("stands beside weight; keep one of the two columns")
        if value < 0 and info.data.get("safety") is None:
            raise ValueError(
                "below 0 is no weight; a column safety says what it is: yes, a safety criterion, "
                "turned round, or no, left out and counted"
            )
        return value

    @field_validator("preferred")
    @classmethod
    def _of_two(cls, preferred, info):
        if info.data["other"] in ("", info.data["answer"]) or not info.data["answer"]:
            raise ValueError("a preference is of two unlike answers, in answer and other")
        return preferred


def shares(points: Sequence[float]) -> list[float]:
    """Points as weights: in proportion, with four decimals that sum to 1 exactly; what rounding
    down leaves goes to the largest remainders, the first of equal ones (Hamilton's method).

    >>> shares([10, 10, 10]), shares([7, 5, 3])
    ([0.3334, 0.3333, 0.3333], [0.4667, 0.3333, 0.2])
    """
    total = fsum(points)
    if total <= 0 or abs(total - 1) <= 1e-6:  # the one ``Rubric`` refuses, the other is done
        return list(points)
    parts = [divmod(UNITS * p / total, 1) for p in points]
    order = sorted(range(len(parts)), key=lambda n: -parts[n][1])
    more = order[: UNITS - int(sum(units for units, _ in parts))]
    return [(units + (n in more)) / UNITS for n, (units, _) in enumerate(parts)]


def read(path: Path, seed: int = 0) -> tuple[RunData, dict]:
    """Records of a folder or a long table, and counts of what was read, filled in and left out.
    Clusters without a split are placed by the seed. KitError names file, row and column."""
    if path.is_file():
        data, counts = _of_table(path, seed)
    else:
        files = {name: path / f"{name}.parquet" for name in KINDS}
        if lost := [name for name in ("instructions", "rubrics") if not files[name].exists()]:
            raise KitError(f"own data {shown(path)}: no table, and no {lost[0]}.parquet in it")
        there = {n: records.load(f, *KINDS[n]) for n, f in files.items() if f.exists()}
        data, counts = RunData(**there), Counter()
        places = {i.id: (_asks(i.messages[-1].content), None) for i in data.instructions}
        data = replace(data, splits=data.splits or _placed(places, seed))
    preferences.groups(data)  # raises where a record points nowhere, or twice
    return data, {name: len(getattr(data, name)) for name in KINDS} | dict(+counts)


def _of_table(path: Path, seed: int) -> tuple[RunData, Counter]:
    data, counts, criteria = RunData(), Counter(), defaultdict(list)
    known: dict[str, dict] = defaultdict(dict)  # column -> what it names -> what that is
    frame = long_table.read([path], Row).astype(object)
    frame = frame.where(frame.notna(), None)  # an empty cell is None, whatever its column

    def once(row, column: str, key, value) -> None:
        if known[column].setdefault(key, value) != value:
            what = "is there twice, or not the same as in a row above; keep one"
            raise KitError(f"{row.place}, column {column}: {what}")

    for row in frame.itertuples(index=False):
        points = next((worth for worth in (row.weight, row.points) if worth is not None), 1.0)
        if (turned := points < 0) and not row.safety:
            counts["rows of penalties left out"] += 1
            continue
        asked = row.prompt or row.instruction
        i = row.instruction if row.prompt else f"own-{short_hash(asked)}"
        once(row, "instruction", i, (asked, row.cluster or _asks(asked), row.split))
        criterion = NEGATION * turned + row.criterion
        dimension = "safety" if turned else row.dimension
        weight = points if dimension == "proficiency" else 0  # others are counted, not weighed
        c = short_hash(i, criterion)
        once(row, "criterion", (i, c), (criterion, dimension, weight))
        ids = [f"{i}-{short_hash(name)[:8]}" for name in (row.answer, row.other) if name]
        if row.answer:
            once(row, "answer", ids[0], (i, row.text or row.answer, row.generator))
        if row.preferred is not None:
            once(row, "preferred", (c, *sorted(ids)), row.place)
            known["other"].setdefault(ids[1], (i, row.other, "own"))
            chosen, rejected = ids if row.preferred > 0 else ids[::-1]
            counts["preferences that are ties"] += row.preferred == 0
            if row.preferred:
                pair = {"instruction_id": i, "criterion_id": c, "chosen_id": chosen}
                data.preferences.append(CriterionPair(**pair, rejected_id=rejected))
        elif row.answer and row.verdict:
            label = TURNED[row.verdict] if turned else row.verdict
            once(row, "verdict", (ids[0], c), (row.place, label))
    for (i, c), (text, dimension, weight) in known["criterion"].items():
        criteria[i].append({"id": c, "dimension": dimension, "text": text, "weight": weight})
    for i, (asked, *_) in known["instruction"].items():
        weighed = [c for c in criteria[i] if c["dimension"] == "proficiency"]
        for c, weight in zip(weighed, shares([c["weight"] for c in weighed])):
            c["weight"] = weight
        rubric = {"instruction_id": i, "criteria": criteria[i], "status": "gold", "round": 0}
        data.rubrics.extend(records.validated([rubric], Rubric, f"{path.name}, rubric of {i}"))
        data.instructions.append(schemas.question(i, "own", asked, "own"))
    judged = {answer for answer, _ in known["verdict"]}
    unseen = {i: what for i, what in known["other"].items() if i not in known["answer"]}
    for answer, (i, text, generator) in (known["answer"] | unseen).items():
        about = {"instruction_id": i, "generator": generator, "text": text}
        data.candidates.append(Candidate(id=answer, **about))
        for c in criteria[i] if answer in judged else ():  # on every criterion, or on none
            place, verdict = known["verdict"].get((answer, c["id"]), ("", "unknown"))
            counts["cells without a verdict, read as unknown"] += not place
            label = {"judge": "judge", "verdict": verdict}
            data.verdicts.append(Verdict(candidate_id=answer, criterion_id=c["id"], **label))
    places = {i: place for i, (_, *place) in known["instruction"].items()}
    return replace(data, splits=_placed(places, seed)), counts


def _asks(text: str) -> str:
    """A cluster for one that is not named: the same words are the same question."""
    return short_hash(schemas.wording(text))


def _placed(places: Mapping[str, Sequence], seed: int) -> list[SplitRow]:
    """Instruction id -> (cluster, split or None) as rows; clusters without a split are placed by a
    hash, in ``SHARES``. KitError for a cluster in two splits."""
    split_of: dict[str, str] = {}
    for cluster, split in places.values():
        if split and split_of.setdefault(cluster, split) != split:
            raise KitError(f"cluster {cluster} is in split {split_of[cluster]} and in {split}")
    free = {cluster for cluster, _ in places.values()} - split_of.keys()
    for n, c in enumerate(sorted(free, key=lambda c: short_hash(seed, c)), 1):
        split_of[c] = next(s for s, below in SHARES.items() if n <= max(below * len(free), 1))
    about = {
        i: {"split": split_of[c], "condition": c, "patient": c} for i, (c, _) in places.items()
    }
    return [SplitRow(instruction_id=i, wording_seed=0, **place) for i, place in about.items()]
