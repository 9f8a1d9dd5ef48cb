"""Result rows of a study, one format for all kinds: results.csv.

system, seed, metric, slice, against   of a training seed, or of the mean over them (seed "mean");
                                       what was never trained has the mean alone
how, other                             "value"; "less": the system less ``other``, and "over": its
                                       ratio to ``other``, both on the same draws
value, low, high, n                    in the metric's unit, 95 % interval, items (least of parts)

Intervals are over whole conditions (``core.statistics.interval``) and hold the training seeds
fixed: how far these move a value is what the rows of single seeds are for. A study counts them from
one of ``COUNTED_FROM`` (``promedical_studies.counting``).
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_utils.core.estimates import Estimates, suffixed
from promedical_utils.core.workspace import need
from promedical_utils.evaluation.policy_metrics import METRICS
from promedical_utils.report import tables

MEAN, VALUE, LESS, OVER = "mean", "value", "less", "over"
CELL = ("metric", "slice", "against")
KEY = ("system", "seed", *CELL)
FACTORS = {name: factor for name, (_, factor) in METRICS.items()}  # from shares, 100 elsewhere
COUNTED_FROM = ("evaluation.parquet", "sums.parquet")  # which of them depends on the kind


class Cells:
    """Result rows by what they are of: (system, metric, slice, against), and of a difference or a
    ratio (how, other) behind it."""

    def __init__(self, results: pd.DataFrame):
        self.systems = list(dict.fromkeys(results.system))
        self.against = sorted(set(results.against))
        self.means: dict[tuple, Mapping] = {}
        self.trained: dict[tuple, dict[str, float]] = {}
        for row in results.to_dict("records"):
            key = tuple(row[part] for part in ("system", *CELL))
            if row["how"] != VALUE:
                key = (*key, row["how"], row["other"])
            if row["seed"] == MEAN:
                self.means[key] = row
            else:
                self.trained.setdefault(key, {})[row["seed"]] = row["value"]

    def n(self, key: tuple) -> int:
        """Items over all training seeds; 0 where there are none."""
        return int(self.means.get(key, {"n": 0})["n"])

    def ends(self, key: tuple) -> tuple[float, float, float]:
        """(value, low, high) over all training seeds; NaN where there is none."""
        row = self.means.get(key, {})
        return tuple(float(row.get(name, np.nan)) for name in ("value", "low", "high"))

    def wide(self, system: str, columns: Mapping, against: str, prefix="", digits=None) -> dict:
        """Values with _low and _high in the units of people; ``columns``: name -> metric, slice
        and, of what is no value, how and other."""
        row = {}
        for column, (metric, part, *how) in columns.items():
            factor = 1 if OVER in how else FACTORS.get(metric, 100)
            ends = self.ends((system, metric, part, against, *how))
            row |= suffixed(prefix + column, ends, factor, digits)
        return row


def read(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "results.csv", dtype={"seed": str}).fillna({"other": ""})


def read_sums(folder: Path) -> Estimates:
    """The sums of which ``counting.rows_of`` were written."""
    frame = pd.read_parquet(need(folder / "sums.parquet", "of a study (make study)"))
    names = ["instruction_id", "condition"]
    row, samples = pd.MultiIndex.from_frame(frame[names]).factorize()
    column, keys = pd.MultiIndex.from_frame(frame[list(KEY)]).factorize()
    hits, counts = np.zeros((2, len(samples), len(keys)))
    hits[row, column], counts[row, column] = frame.hits, frame.counts
    return Estimates(pd.DataFrame([*samples], columns=names), KEY, [*keys], hits, counts)


def of_ablation(folder: Path, named: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``tables.build_ablation``, in the units of people, from a published study; ``named``:
    label and remark by system."""
    cells, rows = Cells(read(folder)), []
    against = "adjudicated" if "adjudicated" in cells.against else "truth"
    for system in cells.systems:
        seeds = [len(each) for key, each in cells.trained.items() if key[0] == system]
        row = {"study": folder.name, "variant": system, "labels": against}
        row |= {"label": named.label.get(system, system), "remark": named.remark.get(system, "")}
        row |= {"seeds": max(seeds, default=1)}
        rows.append(row | cells.wide(system, tables.OF_REWARD | tables.OF_POLICY, against))
    return pd.DataFrame(rows)
