"""``python -m promedical_utils trace TABLE ROW COLUMN``: from a cell down to what it is made of.

The number is made again from the items that its estimate counts (``behind``), or else by the
table's own function from the run's files, and compared with the cell.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from promedical_utils.core import provenance
from promedical_utils.core.workspace import KitError, project_root, read_json, sha256, shown
from promedical_utils.paper import behind, rerun
from promedical_utils.paper.behind import Behind
from promedical_utils.paper.registry import TABLES, Run
from promedical_utils.report import tables

EXAMPLES, MOST = 3, 12  # items, and rows of one file, that are printed
ENDS = {"": "difference", "_low": "low", "_high": "high"}
ABOUT = ("status", "mark", "labels")  # columns that say how a row's values are known
ANSWERS = ("candidate_id", "chosen_id", "rejected_id", "a_id", "b_id")


def find(run: Run, table: str, row: str, column: str) -> tuple[dict, str, str]:
    """(the row as text, its name, the column's full name); KitError that lists what there is."""
    path = run.paper / f"tables/{table}.csv"
    if table not in TABLES or not path.exists():
        names = ", ".join(sorted(path.stem for path in path.parent.glob("*.csv")))
        raise KitError(f"no table {table!r} in {shown(run.paper)}; there are: {names}")
    frame, key = rerun.read(path), TABLES[table].key
    names = rerun.row_names(frame, key)
    name = _choose(row, names, f"row of {table}")
    column = _choose(column, [c for c in frame if c not in key], f"column of {table}")
    return frame.iloc[names.index(name)].to_dict(), name, column


def _choose(name: str, names: Sequence[str], what: str) -> str:
    """``name``, with run_ or not, else the only one of ``names`` that has all its parts (" / ")."""
    for exact in (name, f"run_{name}"):
        if exact in names:
            return exact
    parts = name.lower().split(" / ")
    having = [full for full in names if all(part in full.lower() for part in parts)]
    if len(having) == 1:
        return having[0]
    several = "several" if having else "no"
    raise KitError(f"{several} {what} {name!r}: there are {'; '.join(having or names)}")


def estimate_of(run: Run, table: str, row: Mapping, column: str) -> tuple[Behind | None, str]:
    """(what stands behind a cell, its end of an interval: "", _low or _high)."""
    end = column[column.rindex("_") :] if rerun.is_end(row, column) else ""
    options = dict(TABLES[table].behind)
    if not options or not column.startswith("run_"):
        return None, end
    function = getattr(behind, options.pop("function"))
    return function(run, row, column.removeprefix("run_").removesuffix(end), **options), end


def trace(folder: Path, table: str, row: str, column: str) -> str:
    """The chain of a cell as text; ``folder``: a run, or its published copy. KitError for what is
    not there."""
    run = Run.load(folder)
    values, name, column = find(run, table, row, column)
    facts = read_json(run.paper / f"tables/{table}.json", "07_paper_tables")
    lines = [
        f"{table} | {name} | {column} = {values[column] or '(empty)'}",
        _line("table", f"{facts['title']}. {facts['note']}"),
        _line("row", _listed({name: values[name] for name in ABOUT if values.get(name)})),
    ]
    if values[column]:
        lines += _number(run, facts, values, name, column)
    return "\n".join([*lines, *_of_run(run)])


def _line(name: str, text: str) -> str:
    return f"{name:<9} {text}"


def _listed(facts: Mapping) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _number(run: Run, facts: Mapping, values: Mapping, name: str, column: str) -> Iterator[str]:
    """How a cell comes about: made again, its files, and what it counts; ``facts``: the table's."""
    entry, (found, end) = TABLES[facts["table"]], estimate_of(run, facts["table"], values, column)
    if found is None:
        frame = entry.build(run).map(tables.plain)
        again = dict(zip(rerun.row_names(frame, entry.key), frame[column], strict=True))
        how, text = f"by {entry.function}", again.get(name, "no such row")
    else:
        for key, factor in found.terms.items():
            items = found.estimates.items(key)
            ratio = f"{items.hits.sum():g} of {items.counts.sum():g}"
            parts = zip(found.estimates.names, key, strict=True)
            named = _listed({part: value for part, value in parts if value != ""})
            yield _line("number", f"{factor:+.3g} x {ratio}: {named}")
        value = found.estimates.difference(found.terms, **run.settings)[ENDS[end]]
        how, text = "from its items", tables.plain(round(found.unit * value, 2) + 0.0)
    cell = values[column]
    same = "equal to the cell" if text == cell else f"NOT EQUAL to the cell, which has {cell}"
    yield _line("again", f"made {how}: {text}: {same}")
    for kind, files in entry.files(run).items():
        for label, path in files.items():
            digest = sha256(path)
            other = facts[kind].get(label) != digest
            note = " - NOT the file that the table was built from" if other else ""
            file = label if kind == "sources" else shown(path)
            yield _line("file", f"{file}, sha256 {digest[:16]}{note}")
    if found is not None:
        yield from _rows(run, found)
        model = _listed(run.facts["run"]["models"].get(found.model, {}))
        yield _line("model", f"{found.model}: {model or 'no trained model'}")


def _rows(run: Run, found: Behind) -> Iterator[str]:
    """The first items of an estimate, the stored rows of these, and the texts of their answers."""
    parts = [found.estimates.items(key).assign(system=key[0]) for key in found.terms]
    items = pd.concat(parts).sort_index(kind="stable")
    instructions = items.instruction_id.unique()
    first = items[items.instruction_id.isin(instructions[:EXAMPLES])]
    counted = f"{items.counts.sum():,g} in {len(instructions):,} instructions"
    yield _line("items", f"{counted}; the first:")
    yield _text(first[["instruction_id", "condition", "system", "hits", "counts"]])
    where = {"instruction_id": first.instruction_id, **found.where}
    answers: dict[str, None] = {}
    for file in found.files:
        if (frame := run.table(file)) is None:
            continue
        for name in where.keys() & set(frame):
            frame = frame[frame[name].isin(where[name])]
        yield _line("rows", f"{file}: {len(frame)} of these instructions")
        yield _text(frame.head(MOST))
        if file.startswith("bench/"):  # of the next files what is about the same answers
            named = frame[[name for name in ANSWERS if name in frame]].to_numpy().ravel()
            answers |= dict.fromkeys(named)
            where["candidate_id"] = set(named)
            if "criterion_id" in frame:
                where["criterion_id"] = {*frame.criterion_id, ""}
    if answers:
        yield from _texts(run, list(answers))


def _text(frame: pd.DataFrame) -> str:
    frame = frame.dropna(axis="columns", how="all")
    return frame.to_string(index=False, max_colwidth=60, line_width=140)


def _texts(run: Run, answers: Sequence[str]) -> Iterator[str]:
    """Texts of answers: of the run, or of the run of this profile that has the very rows, since a
    published copy has none."""
    file, profile = "data/candidates.parquet", run.profile.name
    digest = run.facts["run"]["data"].get("candidates.parquet")
    for path in (run.source / file, project_root() / f"runs/{profile}" / file):
        if path.exists() and provenance.content(path) == digest:
            yield _line("texts", f"{shown(path)}, content sha256 {digest}")
            texts = pd.read_parquet(path, columns=["id", "text"]).set_index("id").text
            words = texts[list(answers)].str.split().str.join(" ").str[:160]
            yield from (f"  {answer}: {text}" for answer, text in words.items())
            return
    command = f"make reproduce PROFILE={profile}"
    yield _line("texts", f"not here: {command} writes {shown(path)}, content sha256 {digest}")


def _of_run(run: Run) -> Iterator[str]:
    """Data, settings, packages and commit of the run."""
    facts, profile = run.facts["run"], run.profile
    yield _line("data", _listed({name: digest[:16] for name, digest in facts["data"].items()}))
    settings = f"profile {profile.name}, seed {profile.seed}, data {profile.data}"
    draws = f"{profile.bootstrap} draws; manifest sha256 {facts['manifest'][:16]}"
    yield _line("run", f"{shown(run.source)}: {settings}, {draws}")
    yield _line("packages", _listed({"python": facts["python"], **facts["packages"]}))
    yield _line(
        "commit", f"{facts['kit']['commit']}, package sha256 {facts['kit']['content'][:16]}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; KitError for what is not there."""
    parser = argparse.ArgumentParser("promedical_utils trace", description=__doc__.splitlines()[0])
    parser.add_argument("table", help="one of paper/tables")
    parser.add_argument("row", help="its name, or parts that no other row has, joined by ' / '")
    parser.add_argument("column", help="its name, with or without run_")
    parser.add_argument("--profile", default="record", help="whose committed reference")
    parser.add_argument("--run", default="", help="folder of a run, instead of that reference")
    given = parser.parse_args(arguments)
    folder = project_root() / (given.run or f"papers_figures/{given.profile}")
    print(trace(folder, given.table, given.row, given.column))
    return 0
