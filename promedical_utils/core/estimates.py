"""The one estimator of the kit: ratios of sums over samples, drawn by cluster.

An accuracy is hits over items, F1 is 2 TP over 2 TP + FP + FN, a mean is a sum over a count: each
is a ratio of two sums over samples, so one weight a sample and draw is all that the bootstrap
needs. Whatever is compared shares the draws: clusters (conditions, questions) with replacement,
then the samples within them (``statistics.two_stage_weights``).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from promedical_utils.core import statistics
from promedical_utils.core.workspace import KitError


@dataclass(frozen=True)
class Estimates:
    """Numerators and denominators of many ratios over the same samples.

    ``samples``: one row a sample, with its cluster in column ``condition``; ``names``: what the
    parts of a key are called; ``keys``: one tuple a column; ``hits``, ``counts``: (samples, keys);
    ``extra``: further numbers of each key, (keys,), such as ties.
    """

    samples: pd.DataFrame
    names: tuple[str, ...]
    keys: list[tuple]
    hits: np.ndarray
    counts: np.ndarray
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of_items(
        cls, samples: pd.DataFrame, names: Sequence[str], items: Iterable[tuple]
    ) -> "Estimates":
        """From (key, row of ``samples`` of each item, its value, its weight); NaN values are out.

        An item's value counts ``weight`` times (default 1) above the line, its weight below it.
        """
        keys, hits, counts = [], [], []
        for key, rows, values, *weight in items:
            values = np.asarray(values, float)
            known = ~np.isnan(values) * (weight[0] if weight else 1.0)
            keys.append(tuple(key))
            hits.append(np.bincount(rows, np.nan_to_num(values) * known, len(samples)))
            counts.append(np.bincount(rows, known, len(samples)))
        empty = np.empty((len(samples), 0))
        stacked = (np.stack(sums, 1) if sums else empty for sums in (hits, counts))
        return cls(samples, tuple(names), keys, *stacked)

    def weights(self, draws: int, seed: int) -> np.ndarray:
        """How often each sample is drawn, (draws, samples); the same for all keys."""
        return statistics.two_stage_weights(self.samples.condition, draws, seed)

    def columns(self, key: tuple | Mapping) -> list[int]:
        """Columns of a key, or of all keys with these parts; KitError where there is none."""
        if isinstance(key, Mapping):
            at = {self.names.index(name): value for name, value in key.items()}
            found = [n for n, k in enumerate(self.keys) if all(k[i] == v for i, v in at.items())]
        else:
            found = [n for n, k in enumerate(self.keys) if k == tuple(key)]
        if not found:
            raise KitError(f"no metric {key}: add the predictions or answers that it is made of")
        return found

    def each(self, columns: Sequence[int]) -> np.ndarray:
        """The measured ratio of each column, (columns,); NaN where nothing was counted."""
        once = np.ones((1, len(self.samples)))
        return statistics.ratio(self.hits[:, columns], self.counts[:, columns], once)[0]

    def table(self, draws: int, seed: int) -> pd.DataFrame:
        """One row a key: its parts, value, low, high (95 %), n (the items counted), extras."""
        weights = self.weights(draws, seed)
        frame = pd.DataFrame(self.keys, columns=list(self.names))
        frame["value"] = self.each(range(len(self.keys)))
        ratios = statistics.ratio(self.hits, self.counts, weights)
        frame["low"], frame["high"] = statistics.interval(ratios)
        return frame.assign(n=self.counts.sum(axis=0).astype(int), **self.extra)

    def value(self, columns: Sequence[int], weights: np.ndarray) -> dict:
        """Mean of the columns (training seeds, say): {value, low, high, n of the smallest}."""
        found = self.combined(dict.fromkeys(columns, 1 / len(columns)), weights)
        return {"value": found.pop("difference"), **found}

    def combined(self, coefficients: Mapping[int, float], weights: np.ndarray) -> dict:
        """``sum coefficient * ratio`` over columns, all on the same draws.

        {difference, low, high, n of the smallest}.
        """
        found = statistics.contrast(self.hits, self.counts, coefficients, weights)
        return {**found, "n": int(self.counts[:, list(coefficients)].sum(axis=0).min())}

    def difference(self, coefficients: Mapping[tuple, float], draws: int, seed: int) -> dict:
        """``combined`` by key; KitError names a key that is missing."""
        at = {self.columns(key)[0]: factor for key, factor in coefficients.items()}
        return self.combined(at, self.weights(draws, seed))

    def less(self, a: Sequence[int], b: Sequence[int], weights: np.ndarray) -> dict:
        """Mean of columns ``a`` less mean of ``b``, of the samples that all of them have.

        {difference, low, high, ratio, ratio_low, ratio_high, n}; all NaN where they share none.
        """
        both = [*a, *b]
        shared = (self.counts[:, both] > 0).all(axis=1)[:, None]
        hits, counts = (sums[:, both] * shared for sums in (self.hits, self.counts))
        # the measured samples are the first row, the draws follow
        drawn = statistics.ratio(hits, counts, np.vstack([np.ones(len(weights[0])), weights]))
        one, other = drawn[:, : len(a)].mean(axis=1), drawn[:, len(a) :].mean(axis=1)
        low, high = statistics.interval((one - other)[1:])
        # a draw in which b is 0 has an infinite ratio; as the share a / (a + b) it is 1, and
        # percentiles of the one are those of the other
        shares = statistics.interval(_over(one, one + other)[1:])
        sides = ((one[0], other[0]), *((share, 1 - share) for share in shares))
        ratios = (float(_over(*side)) for side in sides)
        return {
            "difference": float(one[0] - other[0]),
            "low": float(low),
            "high": float(high),
            **dict(zip(("ratio", "ratio_low", "ratio_high"), ratios, strict=True)),
            "n": int(counts.sum(axis=0).min()),
        }

    def by(self, column: str, **parts) -> pd.DataFrame:
        """The keys with these ``parts`` by a column of the samples: the key's other parts,
        ``column``, value, n."""
        at = self.columns(parts)
        rest = [name for name in self.names if name not in parts]
        places = [self.names.index(name) for name in rest]
        labels = pd.MultiIndex.from_tuples(
            [tuple(self.keys[n][i] for i in places) for n in at], names=rest
        )
        hits, n = (
            pd.DataFrame(sums[:, at], columns=labels)
            .groupby(self.samples[column].to_numpy())
            .sum()
            .rename_axis(column)
            .unstack()
            for sums in (self.hits, self.counts)
        )
        return pd.DataFrame({"value": hits / n, "n": n.astype(int)}).reset_index()

    def items(self, key: tuple | Mapping) -> pd.DataFrame:
        """The samples behind one key: the columns of ``samples``, hits and counts above 0."""
        column = self.columns(key)[0]
        frame = self.samples.assign(hits=self.hits[:, column], counts=self.counts[:, column])
        return frame[frame.counts > 0]


def _over(a, b) -> np.ndarray:
    """a / b; infinite where b is 0, NaN where both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(a, b)
