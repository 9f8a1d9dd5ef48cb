"""How results of a study are counted and written; ``studies.results`` says in which format."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from promedical_utils.core.estimates import Estimates
from promedical_utils.core.workspace import write_frame, write_rows
from promedical_utils.studies.results import KEY, LESS, MEAN, OVER, VALUE

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


def write(folder: Path, results: pd.DataFrame) -> None:
    """results.csv in ten digits: the last bits of a sum differ between machines."""
    write_frame(folder / "results.csv", results, float_format="%.10g")
