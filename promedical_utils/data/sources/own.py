"""Data of one's own: one long table, or a folder of the kit's records; read, and never written to.

What the columns of the table hold stands in ``docs/own_data.md``.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, BaseModel, Field, model_validator

from promedical_utils.core import records
from promedical_utils.core.records import Candidate, CriterionPair, Rubric, SplitRow, Verdict
from promedical_utils.core.run_data import KINDS, RunData
from promedical_utils.core.workspace import KitError, short_hash, shown
from promedical_utils.data.sources import schemas
from promedical_utils.data.sources.question_split import SHARES
from promedical_utils.data.sources.real_sets import NEGATION
from promedical_utils.rubric import preferences

WORDS = {"yes": "met", "true": "met", "1": "met", "1.0": "met", "not met": "not_met"}
WORDS |= dict.fromkeys(("no", "false", "0", "0.0"), "not_met")
TURNED = {"met": "not_met", "not_met": "met", "unknown": "unknown"}
UNITS = 10_000  # weights have four decimals


class Row(BaseModel):
    """One verdict on a criterion of an answer, or one preference of two answers by a criterion."""

    instruction: str
    text: str = ""  # the instruction's, where ``instruction`` is an id
    criterion: str
    dimension: records.Dimension
    points: float = Field(1, allow_inf_nan=False, validation_alias=AliasChoices("points", "weight"))
    safety: bool | None = None  # of points below 0
    answer: str = ""
    verdict: records.VerdictValue | None = None
    answer_b: str = ""
    preference: Literal["a", "b", "tie"] | None = None
    generator: str = "own"
    condition: str = ""
    split: records.Split | None = None

    @model_validator(mode="before")
    @classmethod
    def _cells(cls, row):
        """Blank cells are not there; labels in any case."""
        cells = {k: str(v).strip() for k, v in row.items() if v is not None and v == v}
        for name in {"verdict", "preference", "dimension"} & cells.keys():
            cells[name] = WORDS.get(cells[name].lower(), cells[name].lower())
        return {name: cell for name, cell in cells.items() if cell}

    @model_validator(mode="after")
    def _possible(self):
        if self.preference and not (self.answer and self.answer_b not in ("", self.answer)):
            raise ValueError("a preference is of two unlike answers, in answer and answer_b")
        if self.points < 0 and self.safety is None:
            raise ValueError(
                f"{self.points:g} points are no weight; a column safety says what they are: yes, a "
                "safety criterion, turned round, or no, left out and counted"
            )
        return self


def shares(points: Sequence[float]) -> list[float]:
    """Points as weights: in proportion, with four decimals that sum to 1 exactly; what rounding
    down leaves goes to the largest remainders, the first of equal ones (Hamilton's method).

    >>> shares([10, 10, 10]), shares([7, 5, 3])
    ([0.3334, 0.3333, 0.3333], [0.4667, 0.3333, 0.2])
    """
    total = math.fsum(points)
    if total <= 0 or abs(total - 1) <= 1e-6:  # the one ``Rubric`` refuses, the other is done
        return list(points)
    exact = [UNITS * p / total for p in points]
    units = [math.floor(value) for value in exact]
    order = sorted(range(len(units)), key=lambda n: units[n] - exact[n])
    for n in order[: UNITS - sum(units)]:
        units[n] += 1
    return [n / UNITS for n in units]


def table(path: Path) -> list[dict]:
    """Rows of a CSV, JSON lines, JSON or Parquet file; KitError for one that is broken."""
    with schemas.reading(shown(path), "save it as CSV or JSON lines, in UTF-8, or as Parquet"):
        if path.suffix == ".parquet":
            import pyarrow.parquet as parquet

            return parquet.read_table(path).to_pylist()
        with schemas.text_lines(path) as lines:
            rows = schemas.parsed(lines, path.name)
    for number, row in enumerate(rows, 1):
        if None in row or (path.suffix == ".csv" and None in row.values()):
            raise KitError(f"{shown(path)}, row {number}: not as many cells as the header has")
    return rows


def read(path: Path, seed: int = 0) -> tuple[RunData, dict]:
    """Records of a folder or a long table, and counts of what was read, filled in and left out.
    Conditions without a split are placed by the seed. KitError names file, row and field."""
    if path.is_file():
        return of_rows(table(path), shown(path), seed)
    files = {name: path / f"{name}.parquet" for name in KINDS}
    if lost := [name for name in ("instructions", "rubrics") if not files[name].exists()]:
        raise KitError(f"own data {shown(path)}: no table, and no {lost[0]}.parquet in it")
    data = RunData(**{n: records.load(f, *KINDS[n]) for n, f in files.items() if f.exists()})
    places = {i.id: (_asks(i.messages[-1].content), None) for i in data.instructions}
    data = replace(data, splits=data.splits or _placed(places, seed))
    preferences.groups(data)  # raises where a record points nowhere, or twice
    return data, {name: len(getattr(data, name)) for name in KINDS}


def of_rows(rows: Iterable[Mapping], where: str, seed: int = 0) -> tuple[RunData, dict]:
    """As ``read``, of the rows of a table as dicts; ``where`` names them in errors."""
    rows, data, counts = list(rows), RunData(), Counter()
    columns = {name for row in rows for name in row}
    missing = {"instruction", "criterion", "dimension"} - columns
    if missing or {"points", "weight"} <= columns:
        wrong = f"no column {min(missing)}" if missing else "points and weight are one too many"
        raise KitError(f"{where}: {wrong}; the columns are {', '.join(sorted(columns)) or 'none'}")
    known: dict[str, dict] = defaultdict(dict)  # field -> what is one thing -> what it is
    for number, row in enumerate(records.validated(rows, Row, where), 1):

        def once(field: str, key, value, number=number) -> None:
            if known[field].setdefault(key, value) != value:
                what = "is there twice, or not the same as in a row above; keep one"
                raise KitError(f"{where}, row {number}, field {field}: {what}")

        text, points, turned = row.text or row.instruction, row.points, row.points < 0
        if turned and not row.safety:
            counts["rows of penalties left out"] += 1
            continue
        i = row.instruction if "text" in columns else f"own-{short_hash(text)}"
        once("instruction", i, (text, row.condition or _asks(text), row.split))
        dimension = "safety" if turned else row.dimension
        if dimension != "proficiency":  # violations and extras are counted, not weighed
            counts["rows whose points no rule reads"] += points not in (0, 1) and not turned
            points = 0
        criterion = NEGATION * turned + row.criterion
        c = short_hash(i, criterion)
        once("criterion", (i, c), (criterion, dimension, points))
        sides = [side for side in (row.answer, row.answer_b) if side]
        ids = [f"{i}-{short_hash(side)[:8]}" for side in sides]
        for answer, side in zip(ids, sides):
            known["answer"].setdefault(answer, (i, side, row.generator))
        if row.preference:
            once("preference", (c, *sorted(ids)), number)
            chosen, rejected = ids if row.preference == "a" else ids[::-1]
            counts["preferences that are ties"] += row.preference == "tie"
            if row.preference != "tie":
                pair = {"instruction_id": i, "criterion_id": c, "chosen_id": chosen}
                data.preferences.append(CriterionPair(**pair, rejected_id=rejected))
        elif ids and row.verdict:
            label = TURNED[row.verdict] if turned else row.verdict
            once("verdict", (ids[0], c), (number, label))
    criteria = defaultdict(list)
    for (i, c), (text, dimension, points) in known["criterion"].items():
        criteria[i].append({"id": c, "dimension": dimension, "text": text, "weight": points})
    for i, (text, *_) in known["instruction"].items():
        weighed = [c for c in criteria[i] if c["dimension"] == "proficiency"]
        for c, weight in zip(weighed, shares([c["weight"] for c in weighed])):
            c["weight"] = weight
        rubric = {"instruction_id": i, "criteria": criteria[i], "status": "gold", "round": 0}
        data.rubrics.extend(records.validated([rubric], Rubric, f"{where}, rubric of {i}"))
        data.instructions.append(schemas.question(i, "own", text, "own"))
    judged = {answer for answer, _ in known["verdict"]}
    for answer, (i, side, generator) in known["answer"].items():
        about = {"instruction_id": i, "generator": generator, "text": side}
        data.candidates.append(Candidate(id=answer, **about))
        for c in criteria[i] if answer in judged else ():  # on every criterion, or on none
            number, verdict = known["verdict"].get((answer, c["id"]), (0, "unknown"))
            counts["cells without a verdict, read as unknown"] += not number
            label = {"judge": "judge", "verdict": verdict}
            data.verdicts.append(Verdict(candidate_id=answer, criterion_id=c["id"], **label))
    places = {i: place for i, (_, *place) in known["instruction"].items()}
    data.splits.extend(_placed(places, seed))
    unread = columns - Row.model_fields.keys() - {"weight"}
    counts |= {f"columns not read: {', '.join(sorted(unread))}": len(unread)}
    return data, {name: len(getattr(data, name)) for name in KINDS} | dict(+counts)


def _asks(text: str) -> str:
    """A condition for one that is not named: the same words are the same question."""
    return short_hash(schemas.wording(text))


def _placed(places: Mapping[str, Sequence], seed: int) -> list[SplitRow]:
    """Instruction id -> (condition, split or None) as rows; conditions without a split are placed
    by a hash, in ``SHARES``. KitError for a condition in two splits."""
    split_of: dict[str, str] = {}
    for condition, split in places.values():
        if split and split_of.setdefault(condition, split) != split:
            raise KitError(
                f"condition {condition} is in split {split_of[condition]} and in {split}"
            )
    free = {condition for condition, _ in places.values()} - split_of.keys()
    for n, c in enumerate(sorted(free, key=lambda c: short_hash(seed, c)), 1):
        split_of[c] = next(s for s, below in SHARES.items() if n <= max(below * len(free), 1))
    about = {
        i: {"split": split_of[c], "condition": c, "patient": c} for i, (c, _) in places.items()
    }
    return [SplitRow(instruction_id=i, wording_seed=0, **place) for i, place in about.items()]
