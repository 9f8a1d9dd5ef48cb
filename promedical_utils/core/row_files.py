"""Files of rows, as people and public sets bring them: CSV, JSON lines, JSON, TOML and Parquet.

A text may begin with a byte order mark and may be gzipped. No row is read shifted or left out: the
first one that cannot be read is one KitError that names file and line.
"""

import csv
import gzip
import json
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TextIO

from pyarrow import parquet

from promedical_utils.core.workspace import KitError

PlacedRow = tuple[str, dict]  # where a row stands, as in "votes.csv, line 3", and its cells
NO_OBJECT = "a row is a JSON object; mend or remove this one"


def read(path: Path, name: str = "", mend: str = "save it again") -> Iterator[PlacedRow]:
    """The rows of a file of any of these kinds (``parsed``), which errors call by its ``name``."""
    name = name or path.name
    if not path.is_file():
        raise KitError(f"no file {name}: give the path of one that is there")
    with reading(name, mend):
        if path.suffix == ".parquet":
            for number, row in enumerate(parquet.read_table(path).to_pylist(), 1):
                yield f"{name}, row {number}", row
        else:
            with text_lines(path) as lines:
                yield from parsed(lines, name)


@contextmanager
def reading(what: str, mend: str) -> Iterator[None]:
    """Whatever fails is a KitError: what networks, hub clients and codecs raise has no type."""
    try:
        yield
    except KitError:
        raise
    except Exception as error:
        if isinstance(error, ImportError):  # which no network mends
            mend = f"{error}; install that package"
        elif isinstance(error, UnicodeError):
            mend = f"save it as UTF-8, or {mend}"
        raise KitError(f"cannot read {what} ({type(error).__name__}): {mend}") from None


def text_lines(path: Path) -> TextIO:
    """A file of lines, gzipped or not, opened to be read."""
    return (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig")


def parsed(lines: Iterator[str], name: str) -> Iterator[PlacedRow]:
    """Rows of a text: of a sheet in ``.csv`` or ``.tsv``, of an array in ``.json``, which may also
    be one row, as ``.toml`` is; of JSON lines in all else."""
    kind = name.removesuffix(".gz").rpartition(".")[2]
    if kind in ("csv", "tsv"):
        header = next(lines, "")
        mark = "\t" if kind == "tsv" else max(",;", key=header.count)  # ; is Excel's, in places
        rows = csv_rows(chain([header], lines), name, delimiter=mark)
        yield from ((f"{name}, line {number}", row) for number, row in rows.items())
    elif kind in ("json", "toml"):
        text = "".join(lines)
        given = json.loads(text) if kind == "json" else tomllib.loads(text)
        for number, row in enumerate(given if isinstance(given, list) else [given], 1):
            with reading(place := f"{name}, row {number}", NO_OBJECT):
                yield place, {**row}
    else:
        for number, line in enumerate(lines, 1):
            if line.strip():
                with reading(place := f"{name}, line {number}", NO_OBJECT):
                    yield place, {**json.loads(line)}


def csv_rows(lines: Iterable[str], where: str, **dialect) -> dict[int, dict[str, str]]:
    """Rows of a CSV by their line, cells by column; blank lines are passed over. KitError for a row
    with more or fewer cells than the header, a column that stands twice, and broken quotes."""
    reader = csv.reader(lines, strict=True, **dialect)
    try:
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise KitError(f"{where}, line {reader.line_num} is no CSV: {error}") from None
    header = rows[0][1] if rows else []
    if len(set(header)) < len(header) or not header:
        wrong = "two columns have one name" if header else "it has no header"
        raise KitError(f"{where} is no CSV: {wrong}")
    for line, row in rows:
        if len(row) != len(header):
            cells = f"line {line} has {len(row)} cells, the header {len(header)}"
            raise KitError(f"{where}, {cells}: put a text that holds a delimiter in quotes")
    return {line: dict(zip(header, row)) for line, row in rows[1:]}
