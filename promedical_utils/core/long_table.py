"""Long tables of anybody's: CSV, JSON lines or Parquet. A cell that cannot be read is one line that
names file, row and column; no row is read shifted or left out."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pandas as pd
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from promedical_utils.core.records import VerdictValue, first_error
from promedical_utils.core.workspace import KitError

SPELLED = {"met": "met", "true": "met", "1": "met", "1.0": "met", "unknown": "unknown"}
SPELLED |= dict.fromkeys(("not_met", "false", "0", "0.0"), "not_met")
SIDES = {"answer": 1, "a": 1, "other": -1, "b": -1, "tie": 0}


def _spelled(names: Mapping, what: str) -> BeforeValidator:
    """One of the names, whatever the case."""

    def read(cell):
        if (name := str(cell).lower()) not in names:
            raise ValueError(f"{cell!r} is no {what}; these are: {', '.join(names)}")
        return names[name]

    return BeforeValidator(read)


Verdict = Annotated[VerdictValue, _spelled(SPELLED, "verdict")]
Side = Annotated[Literal[1, 0, -1], _spelled(SIDES, "preference")]


class Row(BaseModel):
    """A row; an empty cell has the default of its column, and further columns are passed over."""

    model_config = ConfigDict(str_strip_whitespace=True, coerce_numbers_to_str=True)
    several: ClassVar[tuple[str, ...]] = ()  # columns that may also stand as score:NAME
    named: ClassVar[str] = ""  # the column that NAME is then a cell of

    @classmethod
    def split(cls, row: dict) -> list[dict]:
        """The row, and one more for each NAME."""
        own = {column: cell for column, cell in row.items() if ":" not in column}
        shared = {column: cell for column, cell in own.items() if column not in cls.several}
        parts: dict[str, dict] = {}
        for column, cell in row.items():
            value, _, name = column.partition(":")
            if name and value in cls.several:
                parts.setdefault(name, {**shared, cls.named: name})[value] = cell
        return [own, *parts.values()]


def read(
    paths: Iterable[Path | str], kind: type[Row], mapping: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """The rows of all files as ``kind`` makes them, a column a field; the index says where a row
    stands, as in "votes.csv, line 3".

    ``mapping``: our name of a column -> its name in the files. KitError for a file or cell that
    cannot be read, a CSV row with more or fewer cells than the header, a column that no file has.
    """
    mapping, made = mapping or {}, []
    rows = [pair for path in map(Path, paths) for pair in _rows(path)]
    there = dict.fromkeys(name for _, row in rows for name in row)
    fields = {name: name for name, field in kind.model_fields.items() if field.is_required()}
    for ours, theirs in {**fields, **mapping}.items():
        if theirs not in there:
            found = ", ".join(there) or "no rows"
            raise KitError(f"no column {theirs!r}, for {ours}; there are: {found}")
    for place, row in rows:
        row = row | {ours: row[theirs] for ours, theirs in mapping.items() if theirs in row}
        row = {n: v for n, v in row.items() if v is not None and v == v and str(v).strip()}
        for part in kind.split(row):
            try:
                made.append((place, kind.model_validate(part).model_dump()))
            except ValidationError as error:
                said = first_error(error).replace("Field required", "the cell is empty")
                raise KitError(f"{place}, column {said}; mend or remove the row") from None
    places, cells = zip(*made, strict=True)
    return pd.DataFrame(list(cells), index=list(places))


def _rows(path: Path) -> Iterator[tuple[str, dict]]:
    """(where it stands, columns and cells) of each row."""
    try:
        if path.suffix == ".parquet":
            for number, row in enumerate(pd.read_parquet(path).to_dict("records"), 1):
                yield f"{path.name}, row {number}", row
            return
        with path.open(encoding="utf-8-sig", newline="") as lines:
            yield from (_of_csv if path.suffix == ".csv" else _of_json)(path.name, lines)
    except (OSError, ValueError, csv.Error) as error:  # pyarrow's and codecs' are ValueErrors
        said = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise KitError(
            f"{path.name} cannot be read: {said.replace(str(path), path.name)}"
        ) from None


def _of_csv(name: str, lines) -> Iterator[tuple[str, dict]]:
    rows = csv.reader(lines, strict=True)
    header = [column.strip() for column in next(rows, [])]
    if len(set(header)) < len(header):
        raise KitError(f"{name}: two columns have one name: {', '.join(header)}")
    for cells in filter(None, rows):
        place = f"{name}, line {rows.line_num}"
        if len(cells) != len(header):
            raise KitError(
                f"{place} has {len(cells)} cells, the header {len(header)}: put a cell with a "
                "comma in quotes"
            )
        yield place, dict(zip(header, cells, strict=True))


def _of_json(name: str, lines) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else {}
        except (json.JSONDecodeError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise KitError(f"{name}, line {number} is no JSON object; mend or remove it")
        if row:
            yield f"{name}, line {number}", row
