"""The kit's records, one pydantic model each, stored as Parquet through ``datasets``. A safety
criterion is phrased so that *met* is safe.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from promedical_utils.core.workspace import KitError, need, replacing, shown

Dimension = Literal["proficiency", "excellence", "safety"]
VerdictValue = Literal["met", "not_met", "unknown"]
Split = Literal["train", "calibration", "checkpoint", "bench", "external"]
DIMENSIONS: tuple[str, ...] = get_args(Dimension)
SPLITS: tuple[str, ...] = get_args(Split)


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, str_min_length=1)


class Message(Record):
    role: Literal["system", "user", "assistant"]
    content: str


class Instruction(Record):
    id: str
    category: str
    specialty: str
    messages: list[Message] = Field(min_length=1)
    source: str
    difficulty: int = Field(ge=0, le=10)

    @field_validator("messages")
    @classmethod
    def _ends_with_user(cls, messages):
        if messages[-1].role != "user":
            raise ValueError("the last message must be the user's")
        return messages


class Criterion(Record):
    id: str
    dimension: Dimension
    text: str
    weight: float = Field(ge=0, description="proficiency: share of S1; else 0")
    kind: str = Field("unspecified", description="criterion type, e.g. dose_limit")


class Rubric(Record):
    instruction_id: str
    criteria: list[Criterion] = Field(min_length=1)
    status: Literal["draft", "reviewed", "gold"]
    round: int = Field(ge=0)

    @model_validator(mode="after")
    def _consistent(self):
        ids = [c.id for c in self.criteria]
        if len(set(ids)) != len(ids):
            raise ValueError("criterion ids repeat")
        if any(c.weight and c.dimension != "proficiency" for c in self.criteria):
            raise ValueError("only proficiency criteria carry a weight")
        total = sum(c.weight for c in self.criteria if c.dimension == "proficiency")
        if all(c.dimension == "safety" for c in self.criteria):
            return self  # a veto alone: S1 is 0 for every answer
        if total <= 0:
            raise ValueError("no proficiency weight: S1 is undefined; give one criterion a weight")
        if abs(total - 1) > 1e-6:
            raise ValueError(f"proficiency weights sum to {total:.4f}, not 1")
        return self


class Candidate(Record):
    id: str
    instruction_id: str
    generator: str
    text: str


class Verdict(Record):
    candidate_id: str
    criterion_id: str
    judge: str
    verdict: VerdictValue
    rationale: str = Field("", min_length=0)


class CriterionPair(Record):
    instruction_id: str
    criterion_id: str
    chosen_id: str
    rejected_id: str


class RawInstruction(Record):
    """One row of a source before curation; ``licence`` is the SPDX name that the source states."""

    id: str
    text: str
    source: str
    licence: str


class Decision(Record):
    """What one reviewer decided on one criterion of one draft; ``criterion`` is what it becomes,
    None for ``reject``, which alone needs a reason."""

    instruction_id: str
    criterion_id: str
    reviewer: str
    action: Literal["accept", "edit", "reject", "add"]
    criterion: Criterion | None = None
    reason: str = Field("", min_length=0)

    @model_validator(mode="after")
    def _consistent(self):
        if (self.criterion is None) != (self.action == "reject"):
            raise ValueError("reject has no criterion, every other action has one")
        if self.action == "reject" and not self.reason.strip():
            raise ValueError("a rejected criterion needs a reason")
        if self.criterion and self.criterion.id != self.criterion_id:
            raise ValueError("the criterion's id is not the decision's criterion_id")
        return self


class SplitRow(Record):
    """Where an instruction belongs; the columns that must be disjoint between splits."""

    instruction_id: str
    split: Split
    condition: str
    patient: str
    wording_seed: int


R = TypeVar("R", bound=Record)


def save(records: Iterable[Record], path: Path) -> Path:
    """Write records of one type as Parquet; raises KitError when there are none."""
    from datasets import Dataset

    rows = [record.model_dump() for record in records]
    if not rows:
        raise KitError(f"nothing to write to {shown(path)}: the step before made no records")
    with replacing(Path(path)) as temporary:
        Dataset.from_list(rows).to_parquet(temporary)
    return Path(path)


def first_error(error: ValidationError, whole: str = "") -> str:
    """``field: what is wrong``, of the first; ``whole`` names what is wrong in no one field."""
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"])) or whole
    what = first["msg"].removeprefix("Value error, ")
    return f"{field}: {what}" if field else what


def validated(rows: Iterable[dict], kind: type[R], where: str) -> list[R]:
    """Rows as records; the first bad row is one KitError naming place, row and field."""
    records = []
    for number, row in enumerate(rows, 1):
        try:
            records.append(kind.model_validate(row))
        except ValidationError as error:
            what = first_error(error, "record")
            raise KitError(f"{where}, row {number}, field {what}; mend or remove the row") from None
    return records


def load(path: Path, kind: type[R], notebook: str) -> list[R]:
    """Read and validate Parquet records; a broken row is named by file, number and field."""
    import pyarrow.parquet as parquet

    path = need(Path(path), notebook)
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, ValueError):  # pyarrow's ArrowInvalid is a ValueError, and names the full path
        raise KitError(f"{shown(path)} is not readable Parquet; delete it, run again") from None
    return validated(rows, kind, shown(path))
