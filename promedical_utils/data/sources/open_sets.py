"""Open medical sets by their hub ids, read row by row as raw instructions.

A rubric that a set brings is left there: it is a language model's, and which of its lines is a veto
would have to be guessed. The writer writes one for every instruction.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pyarrow import parquet
from pydantic import ValidationError

from promedical_utils.core.records import RawInstruction, first_error
from promedical_utils.core.row_files import reading, text_lines
from promedical_utils.core.workspace import KitError, short_hash
from promedical_utils.data.sources import schemas
from promedical_utils.data.sources.schemas import VARIABLE, Card

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
CARDS = schemas.cards("open_sets.yaml")


class Reading(NamedTuple):
    """What one source gave: every row is an instruction or is counted in ``skipped``, by reason."""

    instructions: list[RawInstruction]
    skipped: Counter


def read(source: str | Path, limit: int | None = None) -> Reading:
    """Up to ``limit`` instructions of ``source``: a key of ``CARDS``, or a pool of one's own, a
    file or folder of rows of ``RawInstruction`` in JSON lines or Parquet.

    Rows are streamed: what comes after the limit is not fetched. KitError if the source cannot be
    reached (it says what to download), if a field is gone, or if no row can be used.
    """
    if source in CARDS:
        rows, name = _of_set(source, CARDS[source]), CARDS[source].name
    elif Path(source).exists():
        rows, name = _own(Path(source)), Path(source).name
    else:
        raise KitError(f"no source {source}: give a file, a folder, or one of {', '.join(CARDS)}")
    found, skipped = {}, Counter()
    for row in rows:
        if isinstance(row, str):
            skipped[row] += 1
        elif row.id in found:
            skipped["repeated id"] += 1
        else:
            found[row.id] = row
        if len(found) == limit:
            break
    if not found:
        most = "; ".join(f"{reason} ({n})" for reason, n in skipped.most_common(3))
        raise KitError(f"{name}: no row can be used: {most or 'there are none'}")
    return Reading(list(found.values()), skipped)


def _of_set(key: str, card: Card) -> Iterator[RawInstruction | str]:
    """Each row as a record, or the reason why it is none."""
    for row in _open(card):
        try:
            name, text = ADAPTERS[key](row)
        except KeyError as error:  # a set that has changed must not look empty
            raise KitError(
                f"{card.name} has no field {error.args[0]} at revision {card.revision}; the "
                "adapter in promedical_utils/data/sources/open_sets.py needs it"
            ) from None
        if name and text:
            id = f"{key}-{name}"
            yield RawInstruction(id=id, text=text, source=key, licence=card.licence)
        else:
            yield "no question" if name else "no id"


def _open(card: Card) -> Iterator[dict]:
    """Rows of a set's train split, streamed from the hub or from a downloaded copy of it."""
    import datasets

    data = os.environ.get(VARIABLE)
    copy = Path(data) / card.folder if data else None
    if copy and not copy.is_dir():
        raise KitError(
            f"missing folder {card.folder} in {VARIABLE}: run there `{card.command}`, or unset "
            f"{VARIABLE} to read {card.name} over the network"
        )
    where, at = (str(copy), {}) if copy else (card.hub, {"revision": card.revision})
    mend = "the copy is broken: fetch it again" if copy else "mend the network, or download it"
    with reading(
        f"{card.name} from {card.folder if copy else card.hub}",
        f"{mend} with `{card.command}` in the folder that {VARIABLE} names",
    ):
        yield from datasets.load_dataset(where, **at, split="train", streaming=True)


def _own(path: Path) -> Iterator[RawInstruction | str]:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [file for file in files if file.name.endswith(ENDINGS)]
    if not files:
        raise KitError(
            f"{path.name}: no file of {', '.join(ENDINGS)}; each row is id, text, source, licence"
        )
    for file in files:
        with reading(file.name, "fetch or write it again"):
            if file.suffix == ".parquet":
                for batch in parquet.ParquetFile(file).iter_batches():
                    yield from map(_checked, batch.to_pylist())
            else:
                with text_lines(file) as lines:
                    yield from (_checked(line) for line in lines if line.strip())


def _checked(row: str | dict) -> RawInstruction | str:
    """A row, or a line of JSON, as a record; else the reason why it is none."""
    try:
        if isinstance(row, str):
            record = RawInstruction.model_validate_json(row)
        else:
            record = RawInstruction.model_validate(row)
    except ValidationError as error:
        unreadable = error.errors()[0]["type"] == "json_invalid"
        return "not JSON" if unreadable else f"field {first_error(error, 'record')}"
    return record if record.text.strip() else "no question"


def _rar_medicine(row: Mapping) -> tuple:
    asked = (row["question"] or "").strip()
    return short_hash(asked), asked


def _ultramedical(row: Mapping) -> tuple:
    asked = [turn["value"] for turn in row["conversations"] or [] if turn["from"] == "human"]
    return row["id"], (asked[0] or "").strip() if len(asked) == 1 else ""


# of a set's row, its id within the set and its question, if it has one
ADAPTERS = {"rar_medicine": _rar_medicine, "ultramedical": _ultramedical}
