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

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from promedical_utils.core import statistics
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
from promedical_utils.paper import registry

EQUAL, WITHIN, END, DIFFERS = "equal", "within", "end of an interval", "differs"
MISSING, EXTRA = "only committed", "only in the rerun"
COLUMNS = ["table", "row", "column", "committed", "low", "high", "rerun", "outcome"]
FEW = 5  # settings that one line names
BAD = (DIFFERS, MISSING, EXTRA)
# Of a profile: what no number hangs on
UNREAD = ("description", "minutes", "memory_gib", "notebooks", "tokens_per_second")
ABOUT = ("status", "mark", "labels", "n", "seeds", "run", "reported")  # never what names a row
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
        said = (
            f"{len(self.cells):,} cells of {len(tables)} tables and the claims beside the "
            "committed ones: "
        )
        if len(self.cells) == counts.get(EQUAL, 0):
            return said + "all equal"
        agree = int(counts.get(WITHIN, 0))
        said += f"{counts.get(EQUAL, 0):,} equal, {agree:,} within the committed interval"
        return f"{said}, {len(self.differing):,} differ"


# ---------------------------------------------------------------- tables


def read(path: Path) -> pd.DataFrame:
    """A table as text, as it stands in the CSV."""
    return pd.read_csv(path, dtype=str, keep_default_na=False)


def key_of(frame: pd.DataFrame) -> list[str]:
    """Leading columns that name a row: as few as tell all rows apart. KitError where none do."""
    names = [
        c
        for c in frame
        if c not in ABOUT and not c.startswith(("run_", "reported_", "recomputed_", "n_"))
    ]
    for size in range(1, len(names) + 1):
        if not frame.duplicated(names[:size]).any():
            return names[:size]
    raise KitError(f"rows of {', '.join(names) or 'no column'} are there twice: name them apart")


def named(frame: pd.DataFrame, key) -> pd.Series:
    """One text a row from its key columns, as reports and ``trace`` name it."""
    return frame[list(key)].agg(" / ".join, axis=1) if len(frame) else pd.Series(dtype=str)


def compare_table(name: str, committed: pd.DataFrame, rerun: pd.DataFrame, key=None) -> list[dict]:
    """Rows of ``COLUMNS`` for every cell that either table has; both as from ``read``.

    ``key``: columns that name a row, by default ``key_of`` the committed table.
    """
    key = [c for c in key or key_of(committed) if c in committed and c in rerun] or key_of(
        committed
    )
    sides = []
    for frame in (committed, rerun):
        if lacking := set(key) - set(frame):
            raise KitError(
                f"table {name} has no column {sorted(lacking)[0]}: it cannot be compared"
            )
        frame = frame.assign(row=named(frame, key).to_numpy())
        if frame.row.duplicated().any():
            raise KitError(
                f"table {name}: row {frame.row[frame.row.duplicated()].iloc[0]} is there twice"
            )
        sides.append(frame.set_index("row"))
    left, right = sides
    rows = list(dict.fromkeys([*left.index, *right.index]))
    columns = [c for c in dict.fromkeys([*left, *right]) if c not in key]
    found = []
    for row in rows:
        if row not in left.index or row not in right.index:
            outcome = EXTRA if row not in left.index else MISSING
            found.append({"table": name, "row": row, "column": "(row)", "outcome": outcome})
            continue
        before, after = left.loc[row], right.loc[row]
        for column in columns:
            if column not in left or column not in right:
                continue
            cell = {"table": name, "row": row, "column": column}
            cell |= {"committed": before[column], "rerun": after[column]}
            if before[column] or after[column]:
                low, high = tolerance(before, column)
                found.append(
                    cell
                    | {"low": low, "high": high}
                    | {"outcome": outcome_of(before, after, column, low, high)}
                )
    for column in columns:
        if column not in left or column not in right:
            outcome = EXTRA if column not in left else MISSING
            found.append({"table": name, "row": "(column)", "column": column, "outcome": outcome})
    return found


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
        return tuple(
            f"{100 * end:.2f}" for end in statistics.wilson(round(value * n / 100), int(n))
        )
    return "", ""


def outcome_of(before, after, column: str, low: str, high: str) -> str:
    if before[column] == after[column]:
        return EQUAL
    if is_end(before, column):  # goes with its value, but may not come or go
        return END if before[column] and after[column] else DIFFERS
    ends, value = (number(low), number(high)), number(after[column])
    if value is not None and None not in ends and ends[0] <= value <= ends[1]:
        return WITHIN
    return DIFFERS


# ---------------------------------------------------------------- claims


def claims_table(path: Path) -> pd.DataFrame:
    """claims.json as a table: a row a claim's verdict, and a row a check with its interval."""
    rows = []
    for claim in json.loads(path.read_text(encoding="utf-8"))["claims"]:
        rows.append({"claim": claim["id"], "check": "", "verdict": claim["verdict"]})
        for check in claim["checks"]:
            ends = {
                f"run_difference{end}": check.get(name)
                for end, name in (("", "difference"), ("_low", "low"), ("_high", "high"))
            }
            texts = {c: "" if v is None else f"{v:g}" for c, v in ends.items()}
            name = check.get("check", check["what"])
            rows.append(
                {"claim": claim["id"], "check": name, "verdict": check.get("verdict", ""), **texts}
            )
    columns = [
        "claim",
        "check",
        "verdict",
        "run_difference",
        "run_difference_low",
        "run_difference_high",
    ]
    return pd.DataFrame(rows).reindex(columns=columns).fillna("")


# ---------------------------------------------------------------- a run beside its reference


def compare(run: Path, reference: Path) -> Rerun:
    """A run's paper/ beside the committed reference; nothing where that would not be fair."""
    none = pd.DataFrame(columns=COLUMNS)
    if not (reference / "manifest.json").exists():
        return Rerun(none, f"no committed reference {shown(reference)}")
    if not list(run.glob("paper/tables/*.csv")):
        return Rerun(none, f"{shown(run)} has no tables (notebook 07_paper_tables writes them)")
    manifests = []
    for place in (reference, run):
        try:
            manifests.append(
                json.loads(need(place / "manifest.json", "00_start_here").read_text("utf-8"))
            )
        except ValueError:
            return Rerun(none, f"{shown(place / 'manifest.json')} is no JSON")
    if other := settings_apart(*(m["profile"] for m in manifests)):
        more = f"; and {len(other) - FEW} more" if len(other) > FEW else ""
        return Rerun(
            none, f"{shown(reference)} was run with other settings: {'; '.join(other[:FEW])}{more}"
        )
    remarks = [
        f"{what}: committed {before}, here {after}"
        for what, before, after in _circumstances(*manifests)
    ]
    sides = [
        {path.stem: path for path in place.glob("tables/*.csv")}
        for place in (reference, run / "paper")
    ]
    cells = []
    for name in sorted(sides[0].keys() | sides[1].keys()):
        if name not in sides[0] or name not in sides[1]:
            outcome = EXTRA if name not in sides[0] else MISSING
            cells.append({"table": name, "row": "(table)", "column": "", "outcome": outcome})
            continue
        try:
            cells += compare_table(
                name, *(read(side[name]) for side in sides), key=_known_key(name)
            )
        except KitError as error:  # of other columns altogether: said, and the others go on
            cells.append(
                {"table": name, "row": "(table)", "column": str(error), "outcome": DIFFERS}
            )
    paths = [reference / "claims.json", run / "paper/claims.json"]
    if all(path.exists() for path in paths):
        cells += compare_table("claims", *map(claims_table, paths), key=["claim", "check"])
    elif any(path.exists() for path in paths):
        outcome = MISSING if paths[0].exists() else EXTRA
        cells.append({"table": "claims", "row": "(table)", "column": "", "outcome": outcome})
    return Rerun(pd.DataFrame(cells).reindex(columns=COLUMNS).fillna(""), "", tuple(remarks))


def _known_key(name: str) -> list[str] | None:

    return list(registry.TABLES[name].key) if name in registry.TABLES else None


def settings_apart(committed: dict, here: dict) -> list[str]:
    """What of two profiles differs, but for ``UNREAD``, each as ``name committed -> here``."""
    names = sorted((committed.keys() | here.keys()) - set(UNREAD))
    return [
        f"{name} {committed.get(name, 'unset')} -> {here.get(name, 'unset')}"
        for name in names
        if committed.get(name) != here.get(name)
    ]


def _circumstances(committed: dict, here: dict) -> list[tuple]:
    """Machine, versions and code that are not those of the reference; they may move a number."""
    found = [
        (name, committed.get(name), here.get(name)) for name in ("machine", "system", "python")
    ]
    sides = [m.get("packages", {}) for m in (committed, here)]
    found += [
        (name, *(side.get(name) for side in sides))
        for name in sorted(sides[0].keys() | sides[1].keys())
    ]
    found.append(("code", *(m.get("kit", {}).get("content", "")[:12] for m in (committed, here))))
    return [row for row in found if row[1] != row[2]]


def save(found: Rerun, run: Path) -> Path:
    """Write rerun.csv (a row a cell), rerun.json (counts) and rerun.md (what differs) to the
    run."""
    counts = {k: int(v) for k, v in found.cells.outcome.value_counts().items()}
    facts = {
        "line": found.line(),
        "why_not": found.why_not,
        "remarks": list(found.remarks),
        "rule": RULE,
        "outcomes": counts,
        "agrees": None if found.why_not else found.differing.empty,
        "by_table": {
            str(name): {k: int(v) for k, v in part.outcome.value_counts().items()}
            for name, part in found.cells.groupby("table")
        },
    }
    with replacing(run / "rerun.csv") as temporary:
        found.cells.to_csv(temporary, index=False, lineterminator="\n")
    lines = ["# Rerun beside the committed reference", "", found.line() + ".", "", RULE]
    if found.remarks:
        lines += ["", "Other circumstances:", "", *(f"- {remark}" for remark in found.remarks)]
    for title, part in (
        ("What differs", found.differing),
        ("Within the committed interval", found.cells[found.cells.outcome == WITHIN]),
    ):
        if len(part):
            lines += [
                "",
                f"## {title}",
                "",
                "| table | row | column | committed | rerun | |",
                "|---" * 6 + "|",
            ]
            lines += [
                "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
                for row in _shown(part)
            ]
    if facts["by_table"]:
        lines += ["", "## By table", "", "| table | cells | equal | differ |", "|---|---|---|---|"]
        for name, part in found.cells.groupby("table"):
            bad = int(part.outcome.isin(BAD).sum())
            lines += [f"| {name} | {len(part)} | {int((part.outcome == EQUAL).sum())} | {bad} |"]
    write_text(run / "rerun.md", "\n".join(lines) + "\n")
    return write_json(run / "rerun.json", facts)


def _shown(part: pd.DataFrame):
    for cell in part.itertuples():
        interval = f"{cell.committed} ({cell.low} to {cell.high})" if cell.low else cell.committed
        yield cell.table, cell.row, cell.column, interval, cell.rerun, cell.outcome


def report(profile: str, run_dir: str = "") -> Rerun:
    """Compare a run of ``profile`` with papers_figures/<profile>; writes rerun.{md,csv,json} to
    it."""
    run = run_folder(profile, run_dir)
    found = compare(run, project_root() / "papers_figures" / profile)
    save(found, run)
    return found


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog="promedical_utils.paper.rerun", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--run", default="", help="folder of the run, instead of runs/<profile>")
    given = parser.parse_args(arguments)
    try:
        found = report(given.profile, given.run)
    except KitError as error:
        print(error, file=sys.stderr)
        return 1
    print(found.line())
    for cell in found.differing.itertuples():
        print(
            f"  {cell.table} | {cell.row} | {cell.column}: {cell.committed} -> {cell.rerun} "
            f"({cell.outcome})"
        )
    return int(len(found.differing) > 0)


if __name__ == "__main__":
    sys.exit(main())
