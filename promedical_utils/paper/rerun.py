"""Does a rerun agree with the committed reference? Every number of every table and claim, beside
it.

The rule, cell by cell:
- text, counts, inputs and reported values must be equal;
- a measured value agrees where it is equal, or lies within the committed 95 % interval (one without
  an interval of its own within Wilson's, of its row's ``n``; without either it must be equal);
- an end of an interval is shown, and goes with its value;
- a claim's check is a measured value, and its verdict must be equal.
On one machine with one set of versions all are equal to the last digit.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from promedical_utils.core import statistics
from promedical_utils.core.profiles import Profile
from promedical_utils.core.workspace import (
    KitError,
    need,
    project_root,
    replacing,
    run_folder,
    shown,
    write_json,
    write_text,
)
from promedical_utils.report.tables import markdown

EQUAL, WITHIN, END, DIFFERS = "equal", "within", "end of an interval", "differs"
MISSING, EXTRA = "only committed", "only in the rerun"
COLUMNS = ["table", "row", "column", "committed", "low", "high", "rerun", "outcome"]
FEW = 5  # settings that one line names
BAD = (DIFFERS, MISSING, EXTRA)
# Of a profile: what no number hangs on
UNREAD = ("description", "minutes", "memory_gib", "notebooks", "tokens_per_second")
ABOUT = ("status", "mark", "labels", "n", "seeds", "run", "reported")  # never what names a row
MEASURED = ("run_", "reported_", "recomputed_", "n_")  # starts of columns that name no row
RULE = (
    "A measured value agrees where it is equal or lies within the committed 95 % interval, one "
    "without an interval within Wilson's of its n; counts, inputs, text, reported values and "
    "verdicts must be equal."
)


@dataclass(frozen=True)
class Rerun:
    """What was compared: a row a cell (``COLUMNS``), or why nothing was; remarks on both runs."""

    cells: pd.DataFrame
    why_not: str = ""
    remarks: tuple[str, ...] = ()

    @property
    def differing(self) -> pd.DataFrame:
        return self.cells[self.cells.outcome.isin(BAD)]

    def line(self) -> str:
        """The outcome in one line."""
        if self.why_not:
            return f"not compared: {self.why_not}"
        tables, counts = set(self.cells.table) - {"claims"}, self.cells.outcome.value_counts()
        equal, within = (int(counts.get(outcome, 0)) for outcome in (EQUAL, WITHIN))
        outcome = "all equal"
        if len(self.cells) != equal:
            outcome = f"{equal:,} equal, {within:,} within the committed interval, "
            outcome += f"{len(self.differing):,} differ"
        return (
            f"{len(self.cells):,} cells of {len(tables)} tables and the claims beside the "
            f"committed ones: {outcome}"
        )


# ---------------------------------------------------------------- tables


def read(path: Path) -> pd.DataFrame:
    """A table as text, as it stands in the CSV."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def key_of(frame: pd.DataFrame) -> list[str]:
    """Leading columns that name a row: as few as tell all rows apart. KitError where none do."""
    names = [c for c in frame if c not in ABOUT and not c.startswith(MEASURED)]
    for size in range(1, len(names) + 1):
        if not frame.duplicated(names[:size]).any():
            return names[:size]
    raise KitError(f"rows of {', '.join(names) or 'no column'} are there twice: name them apart")


def named(frame: pd.DataFrame, key: Sequence[str]) -> pd.Series:
    """One text a row from its key columns, as reports and ``trace`` name it."""
    return frame[list(key)].agg(" / ".join, axis=1) if len(frame) else pd.Series(dtype=str)


def compare_table(
    name: str, committed: pd.DataFrame, rerun: pd.DataFrame, key: Sequence[str] = ()
) -> list[dict]:
    """Rows of ``COLUMNS`` for every cell that either table has; both as from ``read``.

    ``key``: columns that name a row, by default ``key_of`` the committed table.
    """
    key = [c for c in key if c in committed and c in rerun] or key_of(committed)
    left, right = (_by_row(name, frame, key) for frame in (committed, rerun))
    columns = [c for c in dict.fromkeys([*left, *right]) if c not in key]
    cells = []
    for row in dict.fromkeys([*left.index, *right.index]):
        if row in left.index and row in right.index:
            cells += _compare_row(left.loc[row], right.loc[row], columns, {"row": row})
        else:
            outcome = EXTRA if row in right.index else MISSING
            cells.append({"row": row, "column": "(row)", "outcome": outcome})
    for column in columns:
        if column not in left or column not in right:
            outcome = EXTRA if column in right else MISSING
            cells.append({"row": "(column)", "column": column, "outcome": outcome})
    return [{"table": name, **cell} for cell in cells]


def _by_row(name: str, frame: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """The table by the names of its rows; KitError where a key is missing or a row twice there."""
    if lacking := set(key) - set(frame):
        raise KitError(f"table {name} has no column {sorted(lacking)[0]}: it cannot be compared")
    rows = named(frame, key)
    if rows.duplicated().any():
        raise KitError(f"table {name}: row {rows[rows.duplicated()].iloc[0]} is there twice")
    return frame.set_index(pd.Index(rows, name="row"))


def _compare_row(before: pd.Series, after: pd.Series, columns, row: dict) -> Iterator[dict]:
    for column in columns:
        if column not in before or column not in after or not (before[column] or after[column]):
            continue
        low, high = tolerance(before, column)
        outcome = outcome_of(before, after, column, low, high)
        cell = {"column": column, "committed": before[column], "rerun": after[column]}
        yield row | cell | {"low": low, "high": high, "outcome": outcome}


def number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def is_end(row, column: str) -> bool:
    return column.endswith(("_low", "_high")) and column.rpartition("_")[0] in row


def tolerance(row, column: str) -> tuple[str, str]:
    """(low, high) of the committed interval of a measured value as text, ("", "") where it has
    none."""
    measured = column == "run" or column.startswith("run_")
    if not measured or is_end(row, column) or row.get("status") == "input":
        return "", ""
    ends = row.get(f"{column}_low", ""), row.get(f"{column}_high", "")
    if all(ends):
        return ends
    n, value = number(row.get("n", "")), number(row[column])
    if n and value is not None and 0 <= value <= 100:  # a share in percent of n
        low, high = statistics.wilson(round(value * n / 100), int(n))
        return f"{100 * low:.2f}", f"{100 * high:.2f}"
    return "", ""


def outcome_of(before, after, column: str, low: str, high: str) -> str:
    if before[column] == after[column]:
        return EQUAL
    if is_end(before, column):  # goes with its value, but may not come or go
        return END if before[column] and after[column] else DIFFERS
    least, most, value = number(low), number(high), number(after[column])
    if None not in (least, most, value) and least <= value <= most:
        return WITHIN
    return DIFFERS


# ---------------------------------------------------------------- claims


def claims_table(path: Path) -> pd.DataFrame:
    """claims.json as a table: a row a claim's verdict, and a row a check with its interval."""
    ends = {"difference": "run_difference", "low": "run_difference_low"}
    ends |= {"high": "run_difference_high"}
    rows = []
    for claim in json.loads(path.read_text(encoding="utf-8"))["claims"]:
        rows.append({"claim": claim["id"], "check": "", "verdict": claim["verdict"]})
        for check in claim["checks"]:
            name = check.get("check", check["what"])
            row = {"claim": claim["id"], "check": name, "verdict": check.get("verdict", "")}
            values = {column: check.get(name) for name, column in ends.items()}
            rows.append(row | {c: f"{v:g}" for c, v in values.items() if v is not None})
    columns = ["claim", "check", "verdict", *ends.values()]
    return pd.DataFrame(rows).reindex(columns=columns).fillna("")


# ---------------------------------------------------------------- a run beside its reference


def compare(run: Path, reference: Path, keys: Mapping[str, Sequence[str]] | None = None) -> Rerun:
    """A run's paper/ beside the committed reference; nothing where that would not be fair.

    ``keys``: table -> the columns that name its rows, by default ``key_of`` the committed table.
    """
    nothing = pd.DataFrame(columns=COLUMNS)
    if not (reference / "manifest.json").exists():
        return Rerun(nothing, f"no committed reference {shown(reference)}")
    if not list(run.glob("paper/tables/*.csv")):
        return Rerun(nothing, f"{shown(run)} has no tables (notebook 07_paper_tables writes them)")
    manifests = []
    for folder in (reference, run):
        path = need(folder / "manifest.json", "00_start_here")
        try:
            manifests.append(json.loads(path.read_text("utf-8")))
        except ValueError:
            return Rerun(nothing, f"{shown(path)} is no JSON")
    if other := settings_apart(*(manifest["profile"] for manifest in manifests)):
        more = f"; and {len(other) - FEW} more" if len(other) > FEW else ""
        settings = f"{'; '.join(other[:FEW])}{more}"
        return Rerun(nothing, f"{shown(reference)} was run with other settings: {settings}")
    cells = _compare_files(reference, run / "paper", keys or {})
    frame = pd.DataFrame(cells).reindex(columns=COLUMNS).fillna("")
    return Rerun(frame, "", tuple(_circumstances(*manifests)))


def _compare_files(committed: Path, rerun: Path, keys: Mapping) -> list[dict]:
    """Rows of ``COLUMNS`` of every table and of the claims of two folders."""
    paths = [*committed.glob("tables/*.csv"), *rerun.glob("tables/*.csv")]
    files = {name: f"tables/{name}.csv" for name in sorted({path.stem for path in paths})}
    cells = []
    for name, file in (files | {"claims": "claims.json"}).items():
        sides = [folder / file for folder in (committed, rerun) if (folder / file).exists()]
        whole = {"table": name, "row": "(table)", "column": ""}
        if len(sides) == 1:
            outcome = MISSING if sides[0].is_relative_to(committed) else EXTRA
            cells.append(whole | {"outcome": outcome})
        elif name == "claims" and sides:
            cells += compare_table(name, *map(claims_table, sides), key=("claim", "check"))
        elif sides:
            try:
                cells += compare_table(name, *map(read, sides), key=keys.get(name, ()))
            except KitError as error:  # of other columns altogether: said, and the others go on
                cells.append(whole | {"column": str(error), "outcome": DIFFERS})
    return cells


def settings_apart(committed: dict, here: dict) -> list[str]:
    """What of two profiles differs, but for ``UNREAD``, each as ``name committed -> here``.

    A key that is younger than one of the runs stands at its default there.
    """
    younger = {name: field.default for name, field in Profile.model_fields.items()}
    before, after = ({**younger, **values} for values in (committed, here))
    names = sorted((committed.keys() | here.keys()) - set(UNREAD))
    return [
        f"{name} {before.get(name, 'unset')} -> {after.get(name, 'unset')}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _circumstances(committed: dict, here: dict) -> Iterator[str]:
    """Machine, versions and code that are not those of the reference; they may move a number."""
    before, after = (
        {name: manifest.get(name) for name in ("machine", "system", "python")}
        | dict(sorted(manifest.get("packages", {}).items()))
        | {"code": manifest.get("kit", {}).get("content", "")[:12]}
        for manifest in (committed, here)
    )
    for name in dict.fromkeys([*before, *after]):
        if before.get(name) != after.get(name):
            yield f"{name}: committed {before.get(name)}, here {after.get(name)}"


# ---------------------------------------------------------------- the report


def report(
    profile: str, run_dir: str = "", keys: Mapping[str, Sequence[str]] | None = None
) -> Rerun:
    """Compare a run of ``profile`` with papers_figures/<profile>; writes rerun.{md,csv,json} to
    it."""
    run = run_folder(profile, run_dir)
    rerun = compare(run, project_root() / "papers_figures" / profile, keys)
    save(rerun, run)
    return rerun


def save(rerun: Rerun, run: Path) -> Path:
    """Write rerun.csv (a row a cell), rerun.json (counts) and rerun.md (what differs) to the
    run."""
    cells = rerun.cells
    counts = pd.crosstab(cells.table, cells.outcome)
    by_table = {name: row[row > 0].to_dict() for name, row in counts.iterrows()}
    facts = {
        "line": rerun.line(),
        "why_not": rerun.why_not,
        "remarks": list(rerun.remarks),
        "rule": RULE,
        "outcomes": counts.sum().to_dict(),
        "agrees": None if rerun.why_not else rerun.differing.empty,
        "by_table": by_table,
    }
    with replacing(run / "rerun.csv") as temporary:
        cells.to_csv(temporary, index=False, lineterminator="\n")
    write_text(run / "rerun.md", "\n\n".join(_page(rerun, counts)) + "\n")
    return write_json(run / "rerun.json", facts)


def _page(rerun: Rerun, counts: pd.DataFrame) -> Iterator[str]:
    """The parts of rerun.md."""
    yield "# Rerun beside the committed reference"
    yield f"{rerun.line()}."
    yield RULE
    if rerun.remarks:
        yield "Other circumstances:"
        yield "\n".join(f"- {remark}" for remark in rerun.remarks)
    cells = rerun.cells
    interval = cells.committed + " (" + cells.low + " to " + cells.high + ")"
    shown_cells = cells.assign(committed=interval.where(cells.low != "", cells.committed))
    columns = ["table", "row", "column", "committed", "rerun", "outcome"]
    for title, outcomes in (("What differs", BAD), ("Within the committed interval", (WITHIN,))):
        part = shown_cells[cells.outcome.isin(outcomes)]
        if len(part):
            yield f"## {title}"
            yield markdown(part[columns])
    if len(counts):
        yield "## By table"
        sums = {
            "cells": counts.sum(axis=1),
            "equal": counts.filter([EQUAL]).sum(axis=1),
            "differ": counts.filter(BAD).sum(axis=1),
        }
        yield markdown(pd.DataFrame(sums).astype(int).astype(str).reset_index())
