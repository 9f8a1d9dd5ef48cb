"""Long tables of anybody's, each row held to a model of its fields; a bad cell is named."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import pandas as pd
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from promedical_utils.core import row_files
from promedical_utils.core.records import VerdictValue, first_error
from promedical_utils.core.workspace import KitError

SPELLED = {"true": "met", "1": "met", "1.0": "met", "met": "met", "unknown": "unknown"}
SPELLED |= dict.fromkeys(("false", "0", "0.0", "not_met"), "not_met")
SIDES = {"answer": 1, "a": 1, "other": -1, "b": -1, "tie": 0}
# whatever the case; another spelling is left to the field, which refuses it
Verdict = Annotated[VerdictValue, BeforeValidator(lambda v: SPELLED.get(str(v).lower(), v))]
Side = Annotated[Literal[1, 0, -1], BeforeValidator(lambda v: SIDES.get(str(v).lower(), v))]


class Row(BaseModel):
    """A row; an empty cell has its column's default, and further columns are passed over."""

    model_config = ConfigDict(str_strip_whitespace=True, coerce_numbers_to_str=True)


def read(
    paths: Iterable, kind: type[Row], mapping: Mapping[str, str] | None = None, several=(), named=""
) -> pd.DataFrame:
    """The rows of all files as ``kind`` makes them, a column a field; ``place`` says where a row
    stands, as in "votes.csv, line 3".

    ``mapping``: our name of a column -> its name in the files; ``several``: fields that may also
    stand as verdict:NAME, a further row each with NAME in the field ``named``. KitError for a file
    or cell that cannot be read, and for a column that no file has.
    """
    rows, made = [pair for path in map(Path, paths) for pair in row_files.read(path)], []
    there, mapping = dict.fromkeys(name for _, row in rows for name in row), mapping or {}
    needed = {name: name for name, field in kind.model_fields.items() if field.is_required()}
    for ours, theirs in (needed | dict(mapping)).items():
        if theirs not in there:
            raise KitError(f"no column {theirs!r}, for {ours}; there are: {', '.join(there)}")
    for place, row in rows:
        row |= {ours: row[theirs] for ours, theirs in mapping.items() if theirs in row}
        row = {n: v for n, v in row.items() if v is not None and v == v and str(v).strip()}
        for part in _parts(row, several, named):
            try:
                made.append({"place": place} | kind.model_validate(part).model_dump())
            except ValidationError as error:
                said = first_error(error).replace("Field required", "the cell is empty")
                value = "" if "empty" in said else f", not {error.errors()[0]['input']!r}"
                raise KitError(f"{place}, column {said}{value}; mend or remove the row") from None
    return pd.DataFrame(made)


def _parts(row: dict, several: Sequence[str], named: str) -> Iterator[dict]:
    """A row, and one more for each NAME of its columns such as verdict:NAME."""
    own = {column: cell for column, cell in row.items() if ":" not in column}
    yield own
    wide = [(*column.partition(":")[::2], cell) for column, cell in row.items()]
    for name in dict.fromkeys(name for value, name, _ in wide if name and value in several):
        values = {value: cell for value, other, cell in wide if other == name}
        yield {c: cell for c, cell in own.items() if c not in several} | values | {named: name}
