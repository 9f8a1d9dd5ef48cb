"""Pair expansion at scale: criterion pairs as a join over one judge's verdicts, from file to file.

The rule is that of ``preferences.criterion_pairs``; here ids are numbers as soon as they are read,
verdicts are sorted into blocks of instructions, and one block after another is joined and written,
so that time goes as the number of verdicts. No text is read, and pairs carry ids only.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from promedical_utils.core.records import DIMENSIONS, CriterionPair
from promedical_utils.core.workspace import KitError, need, replacing, shown

BLOCK = 8192  # instructions joined at once
BATCH = 1 << 17  # verdicts read at once
NOTEBOOK = "02_preference_pairs"
VALUES = pa.array(["not_met", "met", "unknown"])  # their places are the codes below
NOT_MET, MET, UNKNOWN = range(3)
PAIR = pa.schema([(name, pa.string()) for name in CriterionPair.model_fields])


@dataclass(frozen=True)
class Expansion:
    """What came out beside the pairs, which are in their file.

    ``dimensions`` and ``kinds``: a row a dimension (and kind), of every two judged answers of an
    instruction and each criterion: ``comparisons`` = ``pairs`` + ``both_met`` + ``both_not_met`` +
    ``lost_to_unknown``. On safety unknown counts as not met, so nothing is lost to it there.
    ``silent``: the criteria with two judged answers or more that tell no two of them apart.
    """

    dimensions: pd.DataFrame
    kinds: pd.DataFrame
    silent: pd.DataFrame
    judged: int
    unjudged: int

    @property
    def pairs(self) -> int:
        return int(self.dimensions.pairs["all"])


@dataclass(frozen=True)
class _Criteria:
    """All criteria in the order of the rubrics; instruction i has starts[i]:starts[i + 1]."""

    instructions: pa.Array
    starts: np.ndarray
    ids: pa.Array
    dimensions: pd.Categorical
    kinds: pd.Categorical


@dataclass(frozen=True)
class _Answers:
    """All candidates as in their file; ``owner``: place of the instruction, -1 not asked."""

    ids: pa.Array
    owner: np.ndarray


def expand(
    candidates: Path,
    rubrics: Path,
    verdicts: Path,
    pairs: Path,
    judge: str = "judge",
    ids: Iterable[str] | None = None,
) -> Expansion:
    """Write to ``pairs`` the criterion pairs of ``judge``'s verdicts; files as ``records.save``'s.

    Met beats not_met; unknown on safety counts as not_met and elsewhere makes no pair. An answer
    without any verdict is left out and counted. ``ids``: expand these instructions only. Pairs are
    in the order of the rubrics, their criteria, and the candidates, whatever that of the verdicts.

    Raises KitError on a repeated id or verdict, a record that points nowhere, a verdict that is
    none of met, not_met, unknown, an answer judged on part of its rubric, and where no pair is.
    """
    asked = _criteria(Path(rubrics), ids)
    answers = _answers(Path(candidates), asked, ids is not None)
    blocks = _blocks(Path(verdicts), judge, answers)
    count = np.zeros((3, len(asked.ids)), np.int32)  # of answers by verdict, for each criterion
    judged = written = 0
    with replacing(Path(pairs)) as temporary, parquet.ParquetWriter(temporary, PAIR) as writer:
        for number in sorted(blocks):
            row, answer, verdict = _join(number, blocks.pop(number), judge, asked, answers)
            judged += len(np.unique(answer))
            low, size = row[0], row[-1] + 1 - row[0]
            said = np.bincount(verdict * size + row - low, minlength=3 * size)
            count[:, low : low + size] += said.reshape(3, size)
            table = _pairs(row, answer, verdict, asked, answers)
            writer.write_table(table)
            written += len(table)
        if not written:
            raise KitError(
                f"no criterion tells two answers apart by {judge}'s verdicts: nothing to write to "
                f"{shown(pairs)}; judge more answers, or look at the criteria"
            )
    return _report(count, asked, judged, int((answers.owner >= 0).sum()) - judged)


def _criteria(path: Path, ids: Iterable[str] | None) -> _Criteria:
    table = _read(
        path, "01_rubrics", "instruction_id", "criteria", inside=("id", "dimension", "kind")
    )
    if ids is not None:
        ids = pa.array(list(ids), pa.string())
        _known(ids, table["instruction_id"], "ids asked for: no rubric of instruction")
        table = table.filter(pc.is_in(table["instruction_id"], ids))
    names = _array(table["instruction_id"])
    _unique(names, "two rubrics for instruction")
    lists = _array(table["criteria"])
    inside = lists.flatten()
    dimension = pc.index_in(inside.field("dimension"), pa.array(DIMENSIONS))
    if dimension.null_count:
        raise KitError(f"{shown(path)}: a criterion of no dimension; mend or remove its rubric")
    kind = inside.field("kind").dictionary_encode()
    return _Criteria(
        instructions=names,
        starts=np.r_[0, np.cumsum(lists.value_lengths().to_numpy())],
        ids=inside.field("id"),
        dimensions=pd.Categorical.from_codes(dimension.to_numpy(), DIMENSIONS),
        kinds=pd.Categorical.from_codes(kind.indices.to_numpy(), kind.dictionary.to_pandas()),
    )


def _answers(path: Path, asked: _Criteria, partly: bool) -> _Answers:
    table = _read(path, NOTEBOOK, "id", "instruction_id")
    names = _array(table["id"])
    _unique(names, "two records for candidate")
    if not partly:
        _known(table["instruction_id"], asked.instructions, "candidates: no rubric of instruction")
    owner = pc.index_in(_array(table["instruction_id"]), asked.instructions)
    owner = owner.fill_null(-1).to_numpy()
    without = np.bincount(owner[owner >= 0], minlength=len(asked.instructions)) == 0
    if partly and without.any():
        name = asked.instructions[int(without.argmax())]
        raise KitError(f"instruction without a candidate: {name}; run {NOTEBOOK} again")
    return _Answers(names, owner)


def _blocks(path: Path, judge: str, answers: _Answers) -> dict[int, list]:
    """The judge's verdicts by block of instructions, in parts: answers, criterion ids, verdicts."""
    parts = []
    columns = ("candidate_id", "criterion_id", "judge", "verdict")
    for batch in _stream(path, NOTEBOOK, *columns):
        batch = batch.filter(pc.equal(batch["judge"], judge))
        if not batch.num_rows:
            continue
        verdict = pc.index_in(batch["verdict"], VALUES)
        if verdict.null_count:
            wrong = batch.filter(pc.is_null(verdict)).slice(0, 1).to_pylist()[0]
            where = f"{wrong['candidate_id']}, {wrong['criterion_id']}"
            raise KitError(
                f"{shown(path)}: verdict {wrong['verdict']!r} of {judge} on {where} is none of "
                f"{', '.join(VALUES.to_pylist())}; mend it"
            )
        said = verdict.to_numpy().astype(np.int8)
        parts.append((batch["candidate_id"].dictionary_encode(), batch["criterion_id"], said))
    if not parts:
        raise KitError(f"{shown(path)}: no verdict of {judge!r}; run {NOTEBOOK}, or name the judge")
    coded = pa.chunked_array([part[0] for part in parts]).unify_dictionaries()
    names = coded.chunk(0).dictionary
    _known(names, answers.ids, f"a verdict of {judge}: no candidate")
    place = pc.index_in(names, answers.ids).to_numpy()
    blocks: dict[int, list] = {}
    for number, chunk in enumerate(coded.chunks):
        _, criterion, said = parts[number]
        parts[number] = None  # one copy of a verdict at a time
        answer = place[chunk.indices.to_numpy()]
        block = np.where(answers.owner[answer] < 0, -1, answers.owner[answer] // BLOCK)
        order = np.argsort(block, kind="stable")
        cuts = np.flatnonzero(np.diff(block[order])) + 1
        for mine in np.split(order, cuts):
            if block[mine[0]] >= 0:
                part = (answer[mine], criterion.take(pa.array(mine)), said[mine])
                blocks.setdefault(int(block[mine[0]]), []).append(part)
    return blocks


def _join(number: int, parts: list, judge: str, asked: _Criteria, answers: _Answers) -> tuple:
    """(criterion, answer, verdict) of a block, sorted; each of the first two once, none missing."""
    answer, said = (np.concatenate([part[n] for part in parts]) for n in (0, 2))
    low, high = number * BLOCK, min((number + 1) * BLOCK, len(asked.instructions))
    first, last = asked.starts[low], asked.starts[high]
    # a criterion id is unique within its rubric only, so the key is (instruction, id)
    ids = pa.chunked_array([asked.ids.slice(first, last - first), *(part[1] for part in parts)])
    code = _array(ids).dictionary_encode().indices.to_numpy().astype(np.int64)
    sizes = np.diff(asked.starts[low : high + 1])
    owner = np.r_[np.repeat(np.arange(high - low), sizes), answers.owner[answer] - low]
    key = owner * (code.max() + 1) + code
    known = pd.Index(key[: last - first])
    if not known.is_unique:
        at = first + int(known.duplicated().argmax())
        name = asked.instructions[int(np.searchsorted(asked.starts, at, side="right")) - 1]
        raise KitError(f"rubric {name}: criterion {asked.ids[at]} twice; ids must be unique")
    row = known.get_indexer(key[last - first :])

    def wrong(at: int, why: str):
        where = f"{answers.ids[int(answer[at])]}, {pc.take(ids, [int(last - first + at)])[0]}"
        raise KitError(f"{judge} on {where}: {why}; judge it again ({NOTEBOOK})")

    if (row < 0).any():
        wrong((row < 0).argmax(), "no criterion of that answer's rubric")
    order = np.lexsort((answer, row))
    again = (np.diff(row[order]) == 0) & (np.diff(answer[order]) == 0)
    if again.any():
        wrong(order[again.argmax()], "judged twice, keep one verdict for each")
    seen, verdicts = np.unique(answer, return_counts=True)
    short = verdicts < sizes[answers.owner[seen] - low]
    if short.any():
        at = int(short.argmax())
        raise KitError(
            f"{judge} on {answers.ids[int(seen[at])]}: {verdicts[at]} verdicts, not "
            f"{sizes[answers.owner[seen[at]] - low]}: some are missing; judge it again ({NOTEBOOK})"
        )
    return first + row[order], answer[order], said[order]


def _pairs(row, answer, verdict, asked: _Criteria, answers: _Answers) -> pa.Table:
    """Met beats not met on the same criterion, in the order of criteria and then of answers."""
    safety = asked.dimensions.codes[row] == DIMENSIONS.index("safety")
    failed = (verdict == NOT_MET) | (safety & (verdict == UNKNOWN))  # the veto fails closed
    sides = [
        pd.DataFrame({"row": row[mask], side: answer[mask]})
        for side, mask in (("chosen", verdict == MET), ("rejected", failed))
    ]
    both = sides[0].merge(sides[1], on="row")
    row, chosen, rejected = both.to_numpy().T
    order = np.lexsort((np.maximum(chosen, rejected), np.minimum(chosen, rejected), row))
    row = row[order]
    owner = np.searchsorted(asked.starts, row, side="right") - 1
    columns = (
        asked.instructions.take(pa.array(owner)),
        asked.ids.take(pa.array(row)),
        answers.ids.take(pa.array(chosen[order])),
        answers.ids.take(pa.array(rejected[order])),
    )
    return pa.table([column.cast(pa.string()) for column in columns], schema=PAIR)


def _report(count: np.ndarray, asked: _Criteria, judged: int, unjudged: int) -> Expansion:
    frame = pd.DataFrame({"dimension": asked.dimensions, "kind": asked.kinds})
    met, failed, unknown = (count[code].astype(np.int64) for code in (MET, NOT_MET, UNKNOWN))
    frame["criteria"], frame["verdicts"], frame["unknown"] = 1, met + failed + unknown, unknown
    safety = (frame.dimension == "safety").to_numpy()
    failed, unknown = np.where(safety, failed + unknown, failed), np.where(safety, 0, unknown)
    frame["comparisons"] = _two(frame.verdicts)
    frame["pairs"], frame["both_met"], frame["both_not_met"] = met * failed, _two(met), _two(failed)
    frame["lost_to_unknown"] = unknown * (met + failed) + _two(unknown)
    frame["never_discriminate"] = ((frame.comparisons > 0) & (frame.pairs == 0)).astype(int)
    dimensions = frame.drop(columns="kind").groupby("dimension", observed=False).sum()
    dimensions.index = dimensions.index.astype(str)
    dimensions.loc["all"] = dimensions.sum()
    kinds = frame.groupby(["dimension", "kind"], observed=True).sum().reset_index()
    silent = np.flatnonzero(frame.never_discriminate)
    owner = np.searchsorted(asked.starts, silent, side="right") - 1
    named = pa.table(
        {
            "instruction_id": asked.instructions.take(pa.array(owner)),
            "criterion_id": asked.ids.take(pa.array(silent)),
        }
    ).to_pandas()
    named["dimension"] = asked.dimensions[silent].astype(str)
    named["kind"] = asked.kinds[silent].astype(str)
    return Expansion(dimensions, kinds, named, judged, unjudged)


def _two(number):
    """How many pairs there are among ``number``."""
    return number * (number - 1) // 2


# ---------------------------------------------------------------- Parquet


def _open(path: Path, notebook: str, columns: Iterable[str]) -> parquet.ParquetFile:
    try:
        file = parquet.ParquetFile(need(path, notebook))
    except (OSError, ValueError):  # pyarrow's ArrowInvalid is a ValueError, and names the full path
        raise KitError(f"{shown(path)} is not readable Parquet; delete it, run again") from None
    missing = sorted(set(columns) - set(file.schema_arrow.names))
    if missing:
        raise KitError(f"{shown(path)}: no column {missing[0]}; run notebook {notebook} again")
    return file


def _read(path: Path, notebook: str, *columns: str, inside: Iterable[str] = ()) -> pa.Table:
    """Columns of a file; of a column of records only the fields ``inside``."""
    with _open(path, notebook, columns) as file:
        leaves = [file.schema.column(n).path for n in range(len(file.schema))]
        wanted = [
            leaf
            for leaf in leaves
            if leaf in columns or (leaf.split(".")[0] in columns and leaf.split(".")[-1] in inside)
        ]
        return file.read(wanted)


def _stream(path: Path, notebook: str, *columns: str) -> Iterator[pa.RecordBatch]:
    with _open(path, notebook, columns) as file:
        yield from file.iter_batches(BATCH, columns=list(columns))


def _array(column: pa.ChunkedArray) -> pa.Array:
    """One array of a column's chunks."""
    joined = column.combine_chunks()
    return joined if isinstance(joined, pa.Array) else pa.concat_arrays(joined.chunks)


def _unique(names: pa.Array, complaint: str) -> None:
    if pc.count_distinct(names).as_py() < len(names):
        counts = names.value_counts()
        name = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0]
        raise KitError(f"{complaint} {name}: ids must be unique; remove one")


def _known(names, among, complaint: str) -> None:
    strange = pc.invert(pc.is_in(names, among))
    if pc.any(strange).as_py():
        name = names.filter(strange)[0]
        raise KitError(f"{complaint} {name!s} in the data; run the notebooks from 01 on again")
