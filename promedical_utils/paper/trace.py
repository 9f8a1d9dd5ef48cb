"""``python -m promedical_utils.paper.trace <table> <row> <column>``: from a cell down to what it is
made of.

The chain: cell, rows with their verdicts, texts, model, data, profile, seed, packages, commit. The
number is made again from its rows (``trace_rows``) and compared with the cell.
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import pandas as pd

from promedical_utils.core import provenance
from promedical_utils.core.workspace import KitError, need, project_root, sha256, shown
from promedical_utils.paper import registry, rerun, trace_rows
from promedical_utils.paper.trace_rows import Origin, Place

CLAIMS = "claims"
QUIET = {
    "hit",
    "counted",
    "part",
    "text",
    "wanted",
    "kind",
    "seen",
    "order_1",
    "order_2",
    "condition",
    "weight",
    "category",
}
SHORT = 160  # characters of an answer that are printed


# ---------------------------------------------------------------- finding the cell


def find(place: Place, table: str, row: str, column: str) -> tuple[dict, str]:
    """(the row as text, the column's full name) of a cell; KitError that lists what there is."""
    path = place.paper / f"tables/{table}.csv"
    if not path.exists():
        there = sorted(p.stem for p in place.paper.glob("tables/*.csv"))
        raise KitError(
            f"no table {table!r} in {shown(place.paper)}; there are: {', '.join([*there, CLAIMS])}"
        )
    frame = rerun.read(path)
    key = registry.TABLES[table].key if table in registry.TABLES else rerun.key_of(frame)
    names = rerun.named(frame, [c for c in key if c in frame] or rerun.key_of(frame))
    number = one(list(names), row, f"row of {table}")
    columns = [c for c in frame if c not in key]
    return frame.iloc[number].to_dict() | {"": names.iloc[number]}, columns[
        one(columns, column, f"column of {table}")
    ]


def one(names: list[str], asked: str, what: str) -> int:
    """Place of the name that is ``asked``, else of the only one that has all its parts (" / ")."""
    if asked in names:
        return names.index(asked)
    parts = [part.strip().lower() for part in asked.split(" / ")]
    found = [n for n, name in enumerate(names) if all(part in name.lower() for part in parts)]
    exact = [n for n in found if {*parts} <= {part.lower() for part in names[n].split(" / ")}]
    found = exact if len(exact) == 1 else found
    run = [n for n in found if names[n].removeprefix("run_") == asked]
    found = run if len(run) == 1 else found
    if len(found) != 1:
        listed = [names[n] for n in found] or names
        some = "; ".join(listed[:40]) + (
            f"; and {len(listed) - 40} more" if len(listed) > 40 else ""
        )
        raise KitError(f"{'several' if found else 'no'} {what} {asked!r}: there are {some}")
    return found[0]


# ---------------------------------------------------------------- the chain


def trace(folder: Path, table: str, row: str, column: str, examples: int = 3) -> str:
    """The chain of a cell as text; ``folder``: a run, or its published copy.

    KitError for a table, row or column that is not there.
    """
    place = Place(folder)
    if table == CLAIMS:
        return "\n".join([*_claim(place, row, column), *_run(place)])
    values, column = find(place, table, row, column)
    cell = values[column]
    lines = [f"{table} | {values['']} | {column} = {cell or '(empty)'}"]
    facts = _facts(place.paper / f"tables/{table}.json")
    lines += [_line("table", f"{facts.get('title', table)}. {facts.get('note', '')}")]
    if not cell:
        status = f" (status: {values['status']})" if values.get("status") else ""
        return "\n".join(
            [*lines, _line("number", f"none: this row has no such value{status}"), *_run(place)]
        )
    found = trace_rows.of_cell(place, table, values, column)
    lines += [_line("made by", facts[name]) for name in ("function",) if name in facts]
    lines += [_line("number", found.said)]
    if found.text is not None:
        ratio = (
            f"{found.ratio} -> "
            if found.ratio and column in values and not _is_end(values, column)
            else ""
        )
        same = (
            "equal to the cell"
            if found.text == cell
            else f"NOT EQUAL to the cell, which has {cell}"
        )
        lines += [_line("", f"made again from its rows: {ratio}{found.text}: {same}")]
    lines += _files(place, found, facts)
    lines += _rows(place, found, examples)
    if found.kind == trace_rows.MEASURED and not any(f.startswith("studies/") for f in found.files):
        lines += _models(place, found.models)
    return "\n".join([*lines, *_run(place)])


def _line(name: str, text: str) -> str:
    return f"{name:<9} {text}"


def _is_end(values: Mapping, column: str) -> bool:
    return any(column.endswith(e) and column.removesuffix(e) in values for e in trace_rows.ENDS[1:])


def _facts(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _path(place: Place, file: str) -> Path:
    outside = file.startswith(("studies/", "paper_values/"))
    return (project_root() / "papers_figures" if outside else place.folder) / file


def _files(place: Place, found: Origin, facts: Mapping) -> list[str]:
    """The files of a cell, and whether they are the ones that the table was built from."""
    lines = []
    said = {
        k: v for part in ("sources", "reported", "studies") for k, v in facts.get(part, {}).items()
    }
    for file in found.files:
        path = _path(place, file)
        if not path.exists():
            lines += [_line("file", f"{file}: not here")]
            continue
        digest = sha256(path)
        recorded = said.get(file, said.get(file.split("/", 1)[-1]))
        note = "" if recorded in (None, digest) else " - NOT the file that the table was built from"
        lines += [_line("file", f"{file}, sha256 {digest[:16]}{note}")]
    return lines


def _rows(place: Place, found: Origin, examples: int) -> list[str]:
    if found.rows is None or not len(found.rows):
        return []
    rows = found.rows[found.rows.counted > 0] if "counted" in found.rows else found.rows
    lines = [_line("rows", f"{len(rows):,}; the first {min(examples, len(rows))}:")]
    texts, where = _texts(place) if found.answers else ({}, "")
    for number, (_, row) in enumerate(
        trace_rows.with_people(place, rows.head(examples)).iterrows(), 1
    ):
        shows = [f"{k} {_short(v)}" for k, v in row.items() if k not in QUIET and not _nothing(v)]
        hit = (
            f"{row.hit:g} of {row.counted:g}; "
            if "hit" in row and not found.kind == trace_rows.REPORTED
            else ""
        )
        lines += textwrap.wrap(
            hit + ", ".join(shows), 110, initial_indent=f"  {number}. ", subsequent_indent="     "
        )
        for column in found.answers:
            if row[column] in texts:
                lines += [f"     text of {row[column]}: {_cut(texts[row[column]])}"]
        if isinstance(row.get("text"), str):
            lines += [f"     text: {_cut(row.text)}"]
    if where:
        lines += [_line("texts", where)]
    return lines


def _nothing(value) -> bool:
    return value is None or (not isinstance(value, str) and pd.isna(value)) or value == ""


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cut(text: str) -> str:
    return textwrap.shorten(" ".join(text.split()), SHORT, placeholder=" ...")


def _texts(place: Place) -> tuple[dict[str, str], str]:
    """Texts of the answers, and where they are: in the run itself, or in the run that was
    published.

    A published copy has no texts of the bench; the run of that profile is taken if it is here and
    has the very rows.
    """
    file, digest = (
        "data/candidates.parquet",
        provenance.of_run(place.folder)["data"].get("candidates.parquet"),
    )
    here = place.folder / file
    if not here.exists():
        here = project_root() / f"runs/{place.manifest['profile']['name']}" / file
        if not (digest and here.exists() and provenance.content(here) == digest):
            known = f"content sha256 {digest}" if digest else "whose hash this run did not record"
            return {}, (
                f"not in this copy: {shown(here)} has them, {known} "
                f"(make reproduce PROFILE={place.manifest['profile']['name']} writes it)"
            )
    frame = pd.read_parquet(here, columns=["id", "text"])
    return dict(
        zip(frame.id, frame.text, strict=True)
    ), f"{shown(here)}, content sha256 {digest or 'not recorded'}"


def _models(place: Place, models: Iterable[str]) -> list[str]:
    known, lines = provenance.of_run(place.folder)["models"], []
    for model in dict.fromkeys(models):
        if model == "base":
            report = _facts(place.folder / "base_report.json")
            lines += [_line("model", f"base: {report.get('base', 'not recorded')}")]
            continue
        report = known.get(model)
        if report is None:
            lines += [_line("model", f"{model.removeprefix('reward/')}: no trained model")]
            continue
        card = place.folder / model / "README.md"
        said = (
            f"fingerprint {report.get('settings', 'not recorded')}, seed "
            f"{report.get('seed', 'see the card')}"
        )
        if base := report.get("base"):
            said += f", base {base.get('hub') or base.get('sha256', '')[:16]}"
        lines += [
            _line("model", f"{model}: {said}{f'; card {shown(card)}' if card.exists() else ''}")
        ]
    return lines


def _run(place: Place) -> list[str]:
    """Data, profile, seed, packages and commit of the run."""
    manifest, facts = place.manifest, provenance.of_run(place.folder)
    profile = manifest["profile"]
    data = ", ".join(f"{name} {digest[:16]}" for name, digest in facts["data"].items())
    kit = manifest.get("kit", {})
    lines = [
        _line("data", data or "hashes of data/*.parquet: not recorded by this run"),
        _line(
            "run",
            f"{shown(place.folder)}: profile {profile['name']}, seed {profile['seed']}, data "
            f"{profile['data']}, "
            f"{profile['bootstrap']} draws; manifest sha256 {facts['manifest'][:16]}",
        ),
        _line(
            "packages",
            f"python {manifest['python']}, "
            + ", ".join(f"{name} {v}" for name, v in manifest["packages"].items()),
        ),
        _line(
            "commit",
            f"{kit['commit']}, package sha256 {kit['content'][:16]}"
            if kit
            else "not recorded by this run",
        ),
    ]
    other = {
        name: row["content"]
        for name, row in _facts(place.folder / "timings.json").items()
        if "content" in row and kit and row["content"] != kit["content"]
    }
    lines += [
        _line("", f"{name} ran with other code, package sha256 {digest[:16]}")
        for name, digest in other.items()
    ]
    return lines


def _claim(place: Place, row: str, column: str) -> list[str]:
    """A claim, or one of its checks: how it was decided, and of which files."""
    path = need(place.paper / "claims.json", "07_paper_tables")
    checks = {}
    for claim in json.loads(path.read_text(encoding="utf-8"))["claims"]:
        checks[claim["id"]] = {k: v for k, v in claim.items() if k != "checks"}
        for check in claim["checks"]:
            checks[f"{claim['id']} / {check.get('check', check['what'])}"] = {
                "claim": claim["claim"],
                **check,
            }
    names = list(checks)
    name = names[one(names, row, "claim or check")]
    fields = list(checks[name])
    wanted = fields[one(fields, column, f"column of {name}")]
    lines = [f"{CLAIMS} | {name} | {wanted} = {checks[name][wanted]}"]
    lines += [
        _line(k, str(v))
        for k, v in checks[name].items()
        if k not in (wanted, "files") and not _empty(v)
    ]
    if checks[name].get("low") is not None:
        lines += [
            _line(
                "rule",
                f"same direction where the low end, {checks[name]['low']}, is above "
                f"{checks[name]['above']}",
            )
        ]
    for file in checks[name].get("files", ()):
        at = next(
            (
                p
                for p in (
                    place.folder / file,
                    project_root() / "papers_figures" / file,
                    project_root() / file,
                )
                if p.exists()
            ),
            None,
        )
        lines += [_line("file", f"{file}, sha256 {sha256(at)[:16]}" if at else f"{file}: not here")]
    return lines


def _empty(value) -> bool:
    return value is None or value == "" or value == []


# ---------------------------------------------------------------- every cell


def cells(place: Place) -> Iterator[tuple[str, str, str, dict]]:
    """(table, row, column, the row's values) of every cell with something in it that is no key."""
    for path in sorted(place.paper.glob("tables/*.csv")):
        frame, table = rerun.read(path), path.stem
        if table not in registry.TABLES:
            continue
        key = list(registry.TABLES[table].key)
        for name, values in zip(rerun.named(frame, key), frame.to_dict("records"), strict=True):
            yield from ((table, name, c, values) for c in frame if c not in key and values[c])


def dependents(place: Place, file: str, where: Mapping, columns) -> set[tuple[str, str, str]]:
    """(table, row, column) of all cells that hang on ``columns`` of the rows of ``file``.

    ``where``: column -> value, naming the rows, such as {"scorer": "criterion", "candidate_id":
    "a", "criterion_id": "c"} of bench/predictions.parquet. Whether a cell's number changes with
    them is another question: an answer may lose a pair by more and lose it still.
    """
    return {
        (table, row, column)
        for table, row, column, values in cells(place)
        if trace_rows.of_cell(place, table, values, column).depends_on(file, where, columns)
    }


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog="promedical_utils.paper.trace", description=__doc__.splitlines()[0]
    )
    parser.add_argument("table", help="a table, or claims")
    parser.add_argument(
        "row", help="its name, or a part of it that no other row has; parts by ' / '"
    )
    parser.add_argument("column", help="its name, with or without run_")
    parser.add_argument("--profile", default="cpu", help="the committed reference of this profile")
    parser.add_argument(
        "--run", default="", help="folder of a run, instead of papers_figures/<profile>"
    )
    parser.add_argument("--rows", type=int, default=3, help="rows to print")
    given = parser.parse_args(arguments)
    folder = project_root() / (given.run or f"papers_figures/{given.profile}")
    try:
        need(folder / "manifest.json", "00_start_here")
        print(trace(folder, given.table, given.row, given.column, given.rows))
    except KitError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
