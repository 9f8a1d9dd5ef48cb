"""Result rows of a study, one format for all kinds: results.csv.

system, seed, metric, slice, against   of a training seed, or of the mean over them (seed "mean");
                                       what was never trained has the mean alone
how, other                             "value"; "less": the system less ``other``, and "over": its
                                       ratio to ``other``, both on the same draws
value, low, high, n                    in the metric's unit, 95 % interval, items (least of parts)

Intervals are over whole conditions (``core.statistics.interval``) and hold the training seeds
fixed: how far these move a value is what the rows of single seeds are for. All is counted from one
of ``COUNTED_FROM``.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_utils.core.estimates import Estimates, suffixed
from promedical_utils.core.workspace import need, write_frame, write_rows
from promedical_utils.evaluation.policy_metrics import METRICS

MEAN, VALUE, LESS, OVER = "mean", "value", "less", "over"
CELL = ("metric", "slice", "against")
KEY = ("system", "seed", *CELL)
FACTORS = {name: factor for name, (_, factor) in METRICS.items()}  # from shares, 100 elsewhere
COUNTED_FROM = ("evaluation.parquet", "sums.parquet")  # which of them depends on the kind
COLUMNS = [*KEY, "how", "other", "value", "low", "high", "n"]


def kept(sums: Estimates, keys: Mapping[int, tuple]) -> Estimates:
    """Columns of ``sums``, each under a new key, of ``KEY``."""
    hits, counts = (numbers[:, list(keys)] for numbers in (sums.hits, sums.counts))
    return Estimates(sums.samples, KEY, list(keys.values()), hits, counts)


def count(sums: Estimates, others: Sequence[str], ratios, draws: int, seed: int) -> pd.DataFrame:
    """All rows of ``sums``, whose keys are ``KEY``; the seed of what was not trained is "".

    Each system less ``others``, by training seeds of both and over all; ``ratios``: metrics of
    which it is also put over them.
    """
    weights, rows = sums.weights(draws, seed), []
    cells = list(dict.fromkeys(key[2:] for key in sums.keys))
    trained = {  # columns by training seed, and all of them as the mean
        key: {sums.keys[c][1]: [c] for c in columns if sums.keys[c][1]} | {MEAN: columns}
        for key, columns in sums.without("seed").items()
    }
    for (system, *cell), own in sorted(trained.items(), key=lambda item: cells.index(item[0][1:])):
        for training, columns in own.items():
            ends = sums.value(columns, weights).values()
            rows.append((system, training, *cell, VALUE, "", *ends))
        for other in others:
            theirs = trained.get((other, *cell), {}) if other != system else {}
            for training in (t for t in own if t in theirs):
                parts = dict.fromkeys(own[training], 1 / len(own[training]))
                parts |= dict.fromkeys(theirs[training], -1 / len(theirs[training]))
                less = sums.combined(parts, weights)
                ends = [less[name] for name in ("difference", "low", "high", "n")]
                rows.append((system, training, *cell, LESS, other, *ends))
            if theirs and cell[0] in ratios:
                made = sums.less(own[MEAN], theirs[MEAN], weights)
                ends = [made[name] for name in ("ratio", "ratio_low", "ratio_high", "n")]
                rows.append((system, MEAN, *cell, OVER, other, *ends))
    return pd.DataFrame(rows, columns=COLUMNS)


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


def write(folder: Path, results: pd.DataFrame) -> None:
    """results.csv in ten digits: the last bits of a sum differ between machines."""
    write_frame(folder / "results.csv", results, float_format="%.10g")


def read(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "results.csv", dtype={"seed": str}).fillna({"other": ""})


def rows_of(sums: Estimates) -> pd.DataFrame:
    """A row a key of ``KEY`` and sample that counts for it: what results are counted from."""
    samples = sums.samples[["instruction_id", "condition"]]
    frame = pd.DataFrame(sums.keys, columns=list(KEY)).merge(samples, how="cross")
    frame = frame[[*samples, *KEY]].assign(hits=sums.hits.T.ravel(), counts=sums.counts.T.ravel())
    return frame[frame.counts > 0]


def numbered(conditions: Sequence[str]) -> pd.DataFrame:
    """``Estimates.samples`` that name nobody: numbers in place of instructions and conditions."""
    own = pd.Series(pd.factorize(pd.Series(conditions))[0]).astype(str)
    return pd.DataFrame({"instruction_id": own.index.astype(str), "condition": own})


def write_sums(folder: Path, parts: Sequence[pd.DataFrame]) -> None:
    """sums.parquet: the ``rows_of`` all parts of a study."""
    write_rows(folder / "sums.parquet", pd.concat(parts, ignore_index=True))


def read_sums(folder: Path) -> Estimates:
    """The sums of which ``rows_of`` were written."""
    frame = pd.read_parquet(need(folder / "sums.parquet", "of a study (make study)"))
    names = ["instruction_id", "condition"]
    row, samples = pd.MultiIndex.from_frame(frame[names]).factorize()
    column, keys = pd.MultiIndex.from_frame(frame[list(KEY)]).factorize()
    hits, counts = np.zeros((2, len(samples), len(keys)))
    hits[row, column], counts[row, column] = frame.hits, frame.counts
    return Estimates(pd.DataFrame([*samples], columns=names), KEY, [*keys], hits, counts)
