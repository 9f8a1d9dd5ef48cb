"""Does a rerun agree with the committed reference, number by number of every table and claim?

By ``RULE``. An end of an interval is shown, and goes with its value; a claim's check is a measured
value. On one kind of processor with one set of versions all are equal to the last digit.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pandas as pd

from promedical_utils.core import workspace
from promedical_utils.core.estimates import ENDS
from promedical_utils.core.profiles import UNREAD, Profile, known
from promedical_utils.core.workspace import KitError, read_json, shown
from promedical_utils.paper.registry import TABLES
from promedical_utils.report.tables import markdown

EQUAL, WITHIN, END, DIFFERS = "equal", "within", "end of an interval", "differs"
MISSING, EXTRA = "only committed", "only in the rerun"
BAD = (DIFFERS, MISSING, EXTRA)
COLUMNS = ["table", "row", "column", "committed", "low", "high", "rerun", "outcome"]
RULE = (
    "A measured value agrees where it is equal or lies within the committed 95 % interval. What "
    "has no interval, counts, inputs, text, reported values and verdicts must be equal."
)
CLAIMS = ["claim", "check", "claim_verdict", "verdict", "difference", "low", "high"]
END_OF = {"low": "difference_low", "high": "difference_high"}


def report(profile: str, run_dir: str = "") -> str:
    """Compare a run of ``profile`` with papers_figures/<profile>; the outcome in one line. Writes
    rerun.csv (a row a cell) and rerun.md (what is not equal) to the run."""
    run = workspace.run_folder(profile, run_dir)
    reference = workspace.project_root() / "papers_figures" / profile
    cells, circumstances, agreement = pd.DataFrame(columns=COLUMNS), [], []
    try:
        circumstances = comparable(run, reference)
        agreement = [due(run, reference)]
        cells = compare(run / "paper", reference)
        line = outcome(cells)
    except KitError as error:
        line = f"not compared: {error}"
    workspace.write_frame(run / "rerun.csv", cells)
    page = ["# Rerun beside the committed reference", f"{line}.", RULE]
    if circumstances:
        page.append("Other circumstances, committed -> here:")
        page.append("\n".join(f"- {remark}" for remark in circumstances))
    page += [*_differing(cells), *agreement]
    workspace.write_text(run / "rerun.md", "\n\n".join(page) + "\n")
    return line


def outcome(cells: pd.DataFrame) -> str:
    """What was compared and how many cells agree."""
    tables = set(cells.table) - {"claims"}
    equal, within, differ = (cells.outcome.isin(of).sum() for of in ([EQUAL], [WITHIN], BAD))
    agree = f"{equal:,} equal, {within:,} within the committed interval, {differ:,} differ"
    agree = "all equal" if equal == len(cells) else agree
    what = f"{len(cells):,} cells of {len(tables)} tables and the claims"
    return f"{what} beside the committed ones: {agree}"


def _differing(cells: pd.DataFrame) -> list[str]:
    """What is not equal as a table, what differs first; nothing where there is none."""
    frame = pd.concat([cells[cells.outcome.isin(BAD)], cells[cells.outcome == WITHIN]])
    whole = frame.committed + " (" + frame.low + " to " + frame.high + ")"
    frame["committed"] = whole.where(frame.low != "", frame.committed)
    return [markdown(frame.drop(columns=["low", "high"]))] if len(frame) else []


def comparable(run: Path, reference: Path) -> list[str]:
    """Machine, versions and code that are not those of the reference; they may move a number.

    KitError where a comparison would not be fair. A setting that is younger than one of the runs
    stands at its default there; one that the kit has no longer is passed over.
    """
    if not (reference / "manifest.json").exists():
        raise KitError(f"no committed reference {shown(reference)}")
    if not list(run.glob("paper/tables/*.csv")):
        raise KitError(f"{shown(run)} has no tables (notebook 07_paper_tables writes them)")
    before, after = (read_json(x / "manifest.json", "00_start_here") for x in (reference, run))
    default = {name: field.default for name, field in Profile.model_fields.items()}
    settings = [default | known(manifest["profile"]) for manifest in (before, after)]
    if other := _other(*settings, UNREAD):
        raise KitError(f"{shown(reference)} was run with other settings: {'; '.join(other)}")
    return _other(_circumstances(before), _circumstances(after))


def due(run: Path, reference: Path) -> str:
    """Which agreement is due, by the kinds of processor in the manifests; an old one names none."""
    manifests = (read_json(x / "manifest.json", "00_start_here") for x in (reference, run))
    before, after = (manifest.get("processor", "not said") for manifest in manifests)
    if before == after != "not said":
        return f"Both ran on one kind of processor ({after}): all is to be equal, byte for byte."
    return f"The kinds of processor differ ({before} -> {after}): the committed intervals decide."


def _circumstances(manifest: Mapping) -> dict[str, str]:
    names = ("machine", "system", "python", "processor", "precision")
    facts = {name: manifest[name] for name in names if name in manifest}
    return facts | manifest["packages"] | {"code": manifest["kit"]["content"][:12]}


def _other(committed: Mapping, here: Mapping, unread: Collection[str] = ()) -> list[str]:
    """What differs, each as ``name committed -> here``."""
    names = [name for name in dict.fromkeys([*committed, *here]) if name not in unread]
    sides = ((name, committed.get(name, "unset"), here.get(name, "unset")) for name in names)
    return [f"{name} {before} -> {after}" for name, before, after in sides if before != after]


def compare(rerun: Path, committed: Path) -> pd.DataFrame:
    """Rows of ``COLUMNS`` of every table and of the claims of two folders."""
    cells, folders = [], (committed, rerun)
    for name, table in sorted(TABLES.items()):
        sides = (read(folder / f"tables/{name}.csv") for folder in folders)
        cells += compare_table(name, *sides, table.key)
    claims = (read(folder / "claims.csv") for folder in folders)
    sides = (c.reindex(columns=CLAIMS, fill_value="").rename(columns=END_OF) for c in claims)
    cells += compare_table("claims", *sides, ("claim", "check"))
    return pd.DataFrame(cells, columns=COLUMNS)


def read(path: Path) -> pd.DataFrame:
    """A table as text, as it stands in the CSV; no rows where it is not there."""
    return pd.read_csv(path, dtype=str, keep_default_na=False) if path.exists() else pd.DataFrame()


def row_names(frame: pd.DataFrame, key: Sequence[str]) -> list[str]:
    """One text a row from its key columns, as reports and ``trace`` name it."""
    return [" / ".join(row) for row in frame.reindex(columns=[*key], fill_value="").to_numpy()]


def compare_table(
    name: str, committed: pd.DataFrame, rerun: pd.DataFrame, key: Sequence[str]
) -> list[dict]:
    """Rows of ``COLUMNS`` for every cell with text that either table has; both as from ``read``."""
    before, after = (
        dict(zip(row_names(frame, key), frame.to_dict("records"), strict=True))
        for frame in (committed, rerun)
    )
    cells = []
    for row in dict.fromkeys([*before, *after]):
        left, right = before.get(row, {}), after.get(row, {})
        for column in dict.fromkeys([*left, *right]):
            text = right.get(column, "")
            if column not in key and (left.get(column) or text):
                cell = {"table": name, "row": row, "column": column, "rerun": text}
                cells.append(cell | _beside(left, column, text))
    return cells


def _beside(row: Mapping, column: str, rerun: str) -> dict:
    """A cell of the committed ``row``, its interval if it is a measured value, and the outcome."""
    committed, low, high = (row.get(f"{column}{end}", "") for end in ENDS.values())
    measured = column.startswith(("run", "difference")) and row.get("status") != "input"
    if not (measured and low and high):
        low = high = ""
    if committed == rerun:
        outcome = EQUAL
    elif not committed or not rerun:
        outcome = MISSING if committed else EXTRA
    elif is_end(row, column):  # goes with its value
        outcome = END
    else:
        outcome = WITHIN if low and float(low) <= float(rerun) <= float(high) else DIFFERS
    return {"committed": committed, "low": low, "high": high, "outcome": outcome}


def is_end(row: Mapping, column: str) -> bool:
    """Whether a column is an end of the interval of another one."""
    return column.endswith(("_low", "_high")) and column.rpartition("_")[0] in row
