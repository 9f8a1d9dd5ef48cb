"""The one estimator of the kit: ratios of sums over samples, drawn by cluster.

An accuracy is hits over items, F1 is 2 TP over 2 TP + FP + FN, a mean is a sum over a count: one
weight a sample and draw is all that the bootstrap needs. Whatever is compared shares the draws, of
whole clusters (``statistics.cluster_weights``); intervals are ``statistics.interval``.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from promedical_utils.core import statistics
from promedical_utils.core.workspace import KitError

ENDS = {"value": "", "low": "_low", "high": "_high"}  # of an interval -> suffix of its column


def suffixed(
    column: str, ends: Iterable | None = None, factor: float = 1, digits: int | None = None
) -> dict[str, float]:
    """A value and its interval as three columns; ``ends``: value, low, high (None: all NaN), times
    ``factor`` and, if ``digits`` is given, rounded, never to -0.0."""
    values = [factor * float(end) for end in ((np.nan,) * 3 if ends is None else ends)]
    if digits is not None:
        values = [round(value, digits) + 0.0 for value in values]
    return dict(zip((f"{column}{end}" for end in ENDS.values()), values, strict=True))


@dataclass(frozen=True)
class Estimates:
    """Numerators and denominators of many ratios over the same samples.

    ``samples``: one row a sample, with its cluster in column ``condition``; ``names``: what the
    parts of a key are called; ``keys``: one tuple a column; ``hits``, ``counts``: (samples, keys).
    """

    samples: pd.DataFrame
    names: tuple[str, ...]
    keys: list[tuple]
    hits: np.ndarray
    counts: np.ndarray

    @classmethod
    def of_items(
        cls, samples: pd.DataFrame, names: Sequence[str], items: Iterable[tuple]
    ) -> "Estimates":
        """From (key, row of ``samples`` of each item, its value, weight); NaN values are out. An
        item's value counts ``weight`` times (default 1) above the line, its weight below it."""
        keys, hits, counts = [], [], []
        for key, rows, values, *more in items:
            weight = more[0] if more else 1.0
            values = np.asarray(values, float)
            known = ~np.isnan(values) * weight
            keys.append(tuple(key))
            hits.append(np.bincount(rows, np.nan_to_num(values) * known, len(samples)))
            counts.append(np.bincount(rows, known, len(samples)))
        empty = np.empty((len(samples), 0))
        above, below = (np.stack(sums, 1) if sums else empty for sums in (hits, counts))
        return cls(samples, tuple(names), keys, above, below)

    def columns(self, key: tuple | Mapping) -> list[int]:
        """Columns of a key, or of all keys with these parts; KitError where there is none."""
        parts = key if isinstance(key, Mapping) else dict(zip(self.names, key, strict=True))
        if not (columns := self._matching(parts)):
            raise KitError(f"no metric {key}: add the predictions or answers that it is made of")
        return columns

    def _matching(self, parts: Mapping) -> list[int]:
        named = [dict(zip(self.names, own, strict=True)) for own in self.keys]
        return [column for column, own in enumerate(named) if parts.items() <= own.items()]

    def without(self, part: str) -> dict[tuple, list[int]]:
        """Key without this part -> its columns, one for each value of the part, such as a seed."""
        position, columns = self.names.index(part), defaultdict(list)
        for column, key in enumerate(self.keys):
            columns[key[:position] + key[position + 1 :]].append(column)
        return dict(columns)

    def weights(self, draws: int, seed: int) -> np.ndarray:
        """How often each sample counts, (rows, samples), by ``cluster_weights``; for all keys."""
        return statistics.cluster_weights(self.samples.condition, draws, seed)

    @cached_property
    def _cluster(self) -> np.ndarray:
        """The number of each sample's cluster, from 0 on."""
        return np.unique(self.samples.condition.astype(str), return_inverse=True)[1]

    @property
    def clusters(self) -> int:
        return self._cluster.max(initial=-1) + 1

    def _counted(self, columns: Sequence[int]) -> np.ndarray:
        """In how many clusters each column has something to count, (columns,)."""
        return np.array([len(set(self._cluster[self.counts[:, n] > 0])) for n in columns], int)

    def _interval(self, values, counted, columns, reach=(0, 1), level: float = 0.95):
        """``statistics.interval``; of shares (no more hits than counts) within their ``reach``."""
        ends = statistics.interval(values, self.clusters, counted, level)
        hits, counts = self.hits[:, columns], self.counts[:, columns]
        shares = ((hits >= 0) & (hits <= counts)).all(axis=0)
        if values.ndim == 1:
            shares = shares.all()
        return (np.where(shares, np.clip(end, *reach), end) for end in ends)

    def each(self, columns: Sequence[int]) -> np.ndarray:
        """The measured ratio of each column, (columns,); NaN where nothing was counted."""
        return self.drawn(columns, np.ones((1, len(self.samples))))[0]

    def drawn(self, columns: Sequence[int], weights: np.ndarray) -> np.ndarray:
        """Ratios, (rows, columns), of the rows of ``weights``: the measured ones first."""
        return statistics.ratio(self.hits[:, columns], self.counts[:, columns], weights)

    def table(self, draws: int, seed: int) -> pd.DataFrame:
        """One row a key: its parts, value, low, high (95 %), n (the items counted)."""
        frame, columns = pd.DataFrame(self.keys, columns=list(self.names)), range(len(self.keys))
        drawn = self.drawn(columns, self.weights(draws, seed))
        frame["value"] = drawn[0]
        frame["low"], frame["high"] = self._interval(drawn, self._counted(columns), columns)
        return frame.assign(n=self.counts.sum(axis=0).astype(int))

    def by(self, column: str, parts: Mapping, draws: int, seed: int) -> pd.DataFrame:
        """``table`` of the keys with these ``parts`` (of none: no rows) by a column of the samples.
        The draws are those of all samples, so a group that is not drawn is left out of that draw.
        """
        columns, frames = self._matching(parts), []
        keys = [self.keys[n] for n in columns]
        for group in sorted(self.samples[column].unique()):
            own = (self.samples[column] == group).to_numpy()[:, None]
            hits, counts = (sums[:, columns] * own for sums in (self.hits, self.counts))
            within = Estimates(self.samples, self.names, keys, hits, counts).table(draws, seed)
            within.insert(0, column, group)
            frames.append(within)
        return pd.concat(frames, ignore_index=True)

    def value(self, columns: Sequence[int], weights: np.ndarray) -> dict:
        """Mean of the columns (training seeds, say): {value, low, high, n of the smallest}."""
        mean = self.combined(dict.fromkeys(columns, 1 / len(columns)), weights)
        return {"value": mean["difference"], **{name: mean[name] for name in ("low", "high", "n")}}

    def combined(self, terms: Mapping, weights: np.ndarray, shared=False, level=0.95) -> dict:
        """``sum factor * ratio`` over ``terms``, column -> factor, on the same draws: {difference,
        low, high, n of the smallest, error (standard, by the jackknife), df (clusters less 1),
        design (effect)}; ``shared``: of the samples that all columns have."""
        if shared:
            return self._shared(list(terms)).combined(terms, weights, level=level)
        columns, factors = list(terms), np.array(list(terms.values()), float)
        drawn, counted = self.drawn(columns, weights) @ factors, self._counted(columns).min()
        reach = np.minimum(factors, 0).sum(), np.maximum(factors, 0).sum()
        low, high = self._interval(drawn, counted, columns, reach, level)
        return {
            "difference": float(drawn[0]),
            "low": float(low),
            "high": float(high),
            "n": int(self.counts[:, columns].sum(axis=0).min()),
            "error": float(statistics.standard_error(drawn, self.clusters, counted)),
            "df": int(counted) - 1,
            "design": self._design(columns, factors),
        }

    def _design(self, columns: Sequence[int], factors: np.ndarray) -> float:
        """The variance of the linearised contrast over clusters by that over samples, were these
        independent; (effect - 1) / (samples a cluster - 1) is about the ICC."""
        hits, counts = self.hits[:, columns], self.counts[:, columns]
        shares = counts.sum(axis=0)
        pulls = _over(hits - self.each(columns) * counts, shares) @ factors
        used = (counts > 0).any(axis=1)
        whole = np.bincount(self._cluster[used], pulls[used])
        return float(_over((whole**2).sum(), (pulls[used] ** 2).sum()))

    def _shared(self, columns: Sequence[int]) -> "Estimates":
        """The same keys, counted on the samples that all ``columns`` have."""
        shared = np.all(self.counts[:, columns] > 0, axis=1, keepdims=True)
        return replace(self, hits=self.hits * shared, counts=self.counts * shared)

    def difference(self, terms: Mapping[tuple, float], draws: int, seed: int) -> dict:
        """``combined`` by key; KitError names a key that is missing."""
        columns = {self.columns(key)[0]: factor for key, factor in terms.items()}
        return self.combined(columns, self.weights(draws, seed))

    def less(self, a: Sequence[int], b: Sequence[int], weights: np.ndarray) -> dict:
        """Mean of columns ``a`` less mean of ``b``, of the samples that all of them have:
        {difference, low, high, n, ratio, ratio_low, ratio_high}; all NaN where they share none."""
        pairs, factors = self._shared([*a, *b]), dict.fromkeys([*a, *b], 0.0)
        for side, sign in ((a, 1), (b, -1)):
            for column in side:
                factors[column] += sign / len(side)
        less = pairs.combined(factors, weights)
        first, second = (pairs.drawn(side, weights).mean(axis=1) for side in (a, b))
        # a draw in which b is 0 has an infinite ratio; as the share a / (a + b) it is 1, and
        # the ends of the one are those of the other
        share = _over(first, first + second)
        ends = statistics.interval(share, self.clusters, less["df"] + 1)
        low, high = (np.clip(end, 0, 1) for end in ends)
        ratio = (_over(first[0], second[0]), _over(low, 1 - low), _over(high, 1 - high))
        found = {name: less[name] for name in ("difference", "low", "high", "n")}
        return found | suffixed("ratio", ratio)

    def items(self, key: tuple | Mapping) -> pd.DataFrame:
        """The samples behind one key: the columns of ``samples``, hits and counts above 0."""
        column = self.columns(key)[0]
        frame = self.samples.assign(hits=self.hits[:, column], counts=self.counts[:, column])
        return frame[frame.counts > 0]


def _over(a, b) -> np.ndarray:
    """a / b; infinite where b is 0, NaN where both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(a, b)
