"""Rubrics as the world writes them, as one frame of criteria, and the command that lints them.

``rubric_files.yaml`` has the formats, and where their fields are known from.
"""

import argparse
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from promedical_utils.core import plotting, row_files
from promedical_utils.core.records import DIMENSIONS
from promedical_utils.core.workspace import KitError, read_yaml, short_hash, write_frame
from promedical_utils.data.sources import real_sets
from promedical_utils.rubric import linter

_NAMES = read_yaml(Path(__file__).with_suffix(".yaml"))
FORMATS, TABLE = _NAMES["formats"], _NAMES["table"]
YES_NO = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False, "": None}
_OF_CRITERION = ("text", "points", "dimension", "met")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
SHOWN = 10  # findings that are printed


def read(path: Path) -> tuple[pd.DataFrame, str]:
    """The criteria of a .csv, .tsv, .jsonl, .json, .toml or .parquet file (a text may be gzipped)
    as ``linter.lint`` takes them, blank ones too, and the name of its format.

    KitError names file, row and field of what cannot be read, and what is there where no format
    fits. Rows count from 1, without a header.
    """
    path = Path(path)
    sheet = path.name.removesuffix(".gz").endswith((".csv", ".tsv"))
    with row_files.reading(path.name, "save it in a format of docs/lint.md"):
        rows = [row for _, row in row_files.read(path)]
        if ".json" in path.suffixes and rows and "text" in rows[0] and "criteria" not in rows[0]:
            rows = [{"criteria": rows}]  # verifiers' list of criteria is one rubric
        name, fields = _fields(rows, sheet, path.name)
        found = []
        for n, row in enumerate(rows, 1):
            rubric = row.get(fields.get("rubric"), "all") if name == "table" else n
            items = _items(row, fields.get("criteria")) or [{}]  # a row without any is blank
            for number, item in enumerate(items, 1):
                about = {"row": n, "rubric": rubric, "number": n if name == "table" else number}
                where = f"{path.name}, row {n}, criterion {number}"
                found.append(about | _criterion(name, fields, row, item, where))
    return pd.DataFrame(found), name


def _fields(rows: Sequence[Mapping], table: bool, name: str) -> tuple[str, dict]:
    """The name of the format, or "table", and its fields."""
    has = ", ".join(rows[0]) if rows else "no row"
    if table:
        there = {column.strip().lower(): column for column in (rows[0] if rows else ())}
        known = {f: [there[n] for n in names if n in there] for f, names in TABLE.items()}
        if not known["text"]:
            raise KitError(f"{name}: no column criterion, but {has}; rename the criterion's")
        levels = [column for low, column in there.items() if re.match(r"level|\d+$", low)]
        return "table", {f: found[0] for f, found in known.items() if found} | {"levels": levels}
    for known, fields in FORMATS.items():
        for row in rows:
            if items := _items(row, fields["criteria"]):
                if fields["text"] in items[0]:
                    return known, fields
                break
    raise KitError(f"{name}: none of the formats {', '.join(FORMATS)}; a row has {has}")


def _items(row: Mapping, field: str | None) -> list[Mapping]:
    """The criteria of a row; of a table the row itself."""
    given = row.get(field) or [] if field else [row]
    if isinstance(given, str):  # OpenRubrics
        given = filter(str.strip, re.split(r"(?m)^\s*\d+[.)]\s+", given))
    if field == "Must_have":
        of = {field: "proficiency", "Nice_to_have": "excellence"}
        return [{"text": text, "dimension": of[key]} for key in of for text in row.get(key) or ()]
    return [{"text": one.strip()} if isinstance(one, str) else one for one in given]


def _criterion(name: str, fields: Mapping, row: Mapping, item: Mapping, where: str) -> dict:
    text, points, dimension, met = (item.get(fields.get(f)) for f in _OF_CRITERION)
    given = item.get(fields.get("safety", "safety"))
    said = str("" if given is None else given).strip().lower()
    if points not in (None, "") and not re.fullmatch(_NUMBER, str(points).strip()):
        raise KitError(f"{where}, field {fields['points']}: not a number; write one, as in 0.5")
    if said not in YES_NO:
        raise KitError(f"{where}, field safety: {said!r}; write yes, no or nothing")
    points = math.nan if points in (None, "") else float(points)
    dimension, safety = str(dimension or "").strip().lower(), YES_NO[said]
    of_healthbench = name.startswith("HealthBench")
    if safety is None and of_healthbench and points <= real_sets.HARMFUL_FROM:
        safety = real_sets.harm().get(short_hash(row.get(fields["prompt"]), text))
    elif safety is None and (dimension in DIMENSIONS or of_healthbench or not points < 0):
        safety = dimension == "safety"
    levels = fields.get("levels", "")
    levels = item.get(levels, ()) if isinstance(levels, str) else [item[c] for c in levels]
    about = {"dimension": dimension, "safety": safety, "levels": tuple(levels)}
    return {"criterion": str(text or ""), "points": points, **about, "met": str(met or "")}


def main(given: Sequence[str] | None = None) -> int:
    """Lint a file of rubrics into a folder: findings, a summary with its figure, and what the veto
    reads. The exit code is 1 if a finding is an error."""
    parser = argparse.ArgumentParser("promedical_utils lint", description=main.__doc__)
    parser.add_argument("file", type=Path, help="of rubrics; docs/lint.md has the formats")
    parser.add_argument("--out", type=Path, default=Path("lint"), help="folder (default: lint)")
    parser.add_argument("--strict", action="store_true", help="1 after a warning, too")
    arguments = parser.parse_args(given)
    out, (criteria, name) = arguments.out, read(arguments.file)
    findings = linter.lint(criteria)
    findings.insert(0, "file", arguments.file.name)
    if name.startswith("HealthBench"):  # whose authors ask that its text be shown nowhere
        findings = findings.assign(criterion="", seen="")
    table = linter.summary(findings, len(criteria))
    plotting.save(linter.figure, table, out, "summary")
    write_frame(out / "findings.csv", findings)
    write_frame(out / "veto.csv", criteria.drop(columns=["criterion", "levels", "met"]))
    undecided = (criteria.safety.isna() & (criteria.points < 0)).sum()
    entropy = criteria.groupby("rubric").points.apply(linter.entropy).median()
    print(f"{arguments.file.name}, read as {name}: {len(criteria)} criteria")
    print(f"the veto reads {criteria.safety.eq(True).sum()}; undecided penalties: {undecided}")
    print(f"entropy of the positive points of a rubric, median: {entropy:.2f}")
    print(table[table.findings > 0].to_markdown(index=False, floatfmt=".3f"))
    order = findings.severity.map(list(linter.SEVERITIES).index).sort_values(kind="stable").index
    for one in findings.loc[order].head(SHOWN).itertuples():
        print(f"{one.severity}, row {one.row}, criterion {one.number}: {one.check}. {one.todo}")
    print(f"{len(findings)} findings: {out / 'findings.csv'}")
    return int(findings.severity.isin(["error", "warning"][: 1 + arguments.strict]).any())
