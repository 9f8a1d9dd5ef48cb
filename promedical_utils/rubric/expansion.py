"""Pair expansion at scale: criterion pairs as a join over one judge's verdicts, from file to file.

The rule is that of ``preferences.criterion_pairs``; here DuckDB makes the join (``expansion.sql``)
over Parquet files of any size. No text is read, and pairs carry ids only.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pandas as pd

from promedical_utils.core.records import DIMENSIONS
from promedical_utils.core.workspace import KitError, need, read_yaml, replacing, shown

COLUMNS = {
    "rubrics": ("instruction_id", "criteria"),
    "candidates": ("id", "instruction_id"),
    "verdicts": ("candidate_id", "criterion_id", "judge", "verdict"),
}
HERE = Path(__file__)
TABLES = HERE.with_name("expansion.sql").read_text(encoding="utf-8")
CHECKS = read_yaml(HERE.with_name("expansion_checks.yaml"))


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
    with duckdb.connect() as db:
        _open(db, "rubrics", Path(rubrics), "01_rubrics")
        _open(db, "candidates", Path(candidates), "02_preference_pairs")
        _open(db, "verdicts", Path(verdicts), "02_preference_pairs")
        db.execute("SET VARIABLE judge = ?", [judge])
        db.execute("SET VARIABLE partly = ?", [ids is not None])
        db.execute("SET VARIABLE dimensions = ?", [list(DIMENSIONS)])
        asked = "SELECT instruction_id FROM rubrics" if ids is None else "SELECT unnest(?)"
        db.execute(
            f"CREATE TABLE asked AS SELECT DISTINCT * FROM ({asked}) AS a(instruction_id)",
            [] if ids is None else [list(ids)],
        )
        db.execute(TABLES)
        for check in CHECKS:
            wrong = db.execute(check["rows"]).fetchone()
            if wrong:
                files = {"verdicts": shown(verdicts), "pairs": shown(pairs)}
                raise KitError(check["message"].format(*wrong, judge=judge, **files))
        with replacing(Path(pairs)) as temporary:
            db.table("pair").write_parquet(str(temporary))
        kinds, silent = db.table("kinds").df(), db.table("silent").df()
        [(judged, made)] = db.table("answers").fetchall()
    dimensions = kinds.drop(columns="kind").groupby("dimension").sum()
    dimensions = dimensions.reindex(DIMENSIONS, fill_value=0)
    dimensions.loc["all"] = dimensions.sum()
    return Expansion(dimensions, kinds, silent, judged, made - judged)


def _open(db: duckdb.DuckDBPyConnection, name: str, path: Path, notebook: str) -> None:
    """A Parquet file as a view of this name; KitError if it cannot be read or lacks a column."""
    try:
        table = db.read_parquet(str(need(path, notebook)), file_row_number=True)
    except duckdb.Error:
        raise KitError(f"{shown(path)} is not readable Parquet; delete it, run again") from None
    missing = sorted(set(COLUMNS[name]) - set(table.columns))
    if missing:
        raise KitError(f"{shown(path)}: no column {missing[0]}; run notebook {notebook} again")
    table.create_view(name)
