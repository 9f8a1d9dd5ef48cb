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

ENDS = {"value": "", "low": "_low", "high": "_high"}  # of an interval -> suffix of its column


def suffixed(
    column: str, ends: Iterable | None = None, factor: float = 1, digits: int | None = None
) -> dict[str, float]:
    """A value and its interval as three columns; ``ends``: value, low, high (None: all NaN).

    Each is multiplied by ``factor`` and, if ``digits`` is given, rounded, never to -0.0.

    >>> suffixed("f1", (0.5, 0.25, 0.75), 100)
    {'f1': 50.0, 'f1_low': 25.0, 'f1_high': 75.0}
    """
    values = [factor * float(end) for end in ((np.nan,) * 3 if ends is None else ends)]
    if digits is not None:
        values = [round(value, digits) + 0.0 for value in values]
    return dict(zip((f"{column}{end}" for end in ENDS.values()), values, strict=True))


@dataclass(frozen=True)
class Estimates:
    """Numerators and denominators of many ratios over the same samples.

    ``samples``: one row a sample, with its cluster in column ``condition``; ``names``: what the
    parts of a key are called; ``keys``: one tuple a column; ``hits``, ``counts``: (samples, keys);
    ``extra``: further numbers of each key, name -> (keys,), such as ties.
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
        """From (key, row of ``samples`` of each item, its value, weight, tied); NaN values are out.

        An item's value counts ``weight`` times (default 1) above the line, its weight below it.
        ``tied``: which items are ties, summed into the extra ``ties``; for all or none.
        """
        keys, hits, counts, ties = [], [], [], []
        for key, rows, values, *more in items:
            weight = more[0] if more else 1.0
            values = np.asarray(values, float)
            known = ~np.isnan(values) * weight
            keys.append(tuple(key))
            hits.append(np.bincount(rows, np.nan_to_num(values) * known, len(samples)))
            counts.append(np.bincount(rows, known, len(samples)))
            ties += [(more[1] * known).sum()] if len(more) > 1 else []
        empty = np.empty((len(samples), 0))
        above, below = (np.stack(sums, 1) if sums else empty for sums in (hits, counts))
        extra = {"ties": np.array(ties)} if ties else {}
        return cls(samples, tuple(names), keys, above, below, extra)

    def columns(self, key: tuple | Mapping) -> list[int]:
        """Columns of a key, or of all keys with these parts; KitError where there is none."""
        parts = key if isinstance(key, Mapping) else dict(zip(self.names, key, strict=True))
        if columns := self._matching(parts):
            return columns
        raise KitError(f"no metric {key}: add the predictions or answers that it is made of")

    def _matching(self, parts: Mapping) -> list[int]:
        wanted = {self.names.index(name): value for name, value in parts.items()}
        return [
            column
            for column, key in enumerate(self.keys)
            if all(key[position] == value for position, value in wanted.items())
        ]

    def without(self, part: str) -> dict[tuple, list[int]]:
        """Key without this part -> its columns, one for each value of the part, such as a seed."""
        position = self.names.index(part)
        columns: dict[tuple, list[int]] = {}
        for column, key in enumerate(self.keys):
            rest = (*key[:position], *key[position + 1 :])
            columns.setdefault(rest, []).append(column)
        return columns

    def weights(self, draws: int, seed: int) -> np.ndarray:
        """How often each sample is drawn, (draws, samples); the same for all keys."""
        return statistics.two_stage_weights(self.samples.condition, draws, seed)

    def each(self, columns: Sequence[int]) -> np.ndarray:
        """The measured ratio of each column, (columns,); NaN where nothing was counted."""
        once = np.ones((1, len(self.samples)))
        return statistics.ratio(self.hits[:, columns], self.counts[:, columns], once)[0]

    def drawn(self, columns: Sequence[int], weights: np.ndarray) -> np.ndarray:
        """Ratios, (1 + draws, columns): the measured ones in the first row, the draws below."""
        weights = np.vstack([np.ones(len(self.samples)), weights])
        return statistics.ratio(self.hits[:, columns], self.counts[:, columns], weights)

    def table(self, draws: int, seed: int) -> pd.DataFrame:
        """One row a key: its parts, value, low, high (95 %), n (the items counted), extras."""
        return self._table(self.weights(draws, seed))

    def _table(self, weights: np.ndarray) -> pd.DataFrame:
        frame = pd.DataFrame(self.keys, columns=list(self.names))
        frame["value"] = self.each(range(len(self.keys)))
        ratios = statistics.ratio(self.hits, self.counts, weights)
        frame["low"], frame["high"] = statistics.interval(ratios)
        return frame.assign(n=self.counts.sum(axis=0).astype(int), **self.extra)

    def by(self, column: str, parts: Mapping, draws: int, seed: int) -> pd.DataFrame:
        """The keys with these ``parts`` by a column of the samples: ``column``, the key's parts,
        value, low, high, n; no rows where no key has them.

        The draws are those of all samples, so a group that is not drawn is left out of that draw.
        """
        columns, weights = self._matching(parts), self.weights(draws, seed)
        keys, frames = [self.keys[n] for n in columns], []
        for group in sorted(self.samples[column].unique()):
            own = (self.samples[column] == group).to_numpy()[:, None]
            hits, counts = (sums[:, columns] * own for sums in (self.hits, self.counts))
            within = Estimates(self.samples, self.names, keys, hits, counts)._table(weights)
            within.insert(0, column, group)
            frames.append(within)
        return pd.concat(frames, ignore_index=True)

    def value(self, columns: Sequence[int], weights: np.ndarray) -> dict:
        """Mean of the columns (training seeds, say): {value, low, high, n of the smallest}."""
        mean = self.combined(dict.fromkeys(columns, 1 / len(columns)), weights)
        return {"value": mean.pop("difference"), **mean}

    def combined(self, coefficients: Mapping[int, float], weights: np.ndarray) -> dict:
        """``sum coefficient * ratio`` over columns, all on the same draws: {difference, low, high,
        n of the smallest}."""
        sums = statistics.contrast(self.hits, self.counts, coefficients, weights)
        return {**sums, "n": int(self.counts[:, list(coefficients)].sum(axis=0).min())}

    def difference(self, coefficients: Mapping[tuple, float], draws: int, seed: int) -> dict:
        """``combined`` by key; KitError names a key that is missing."""
        columns = {self.columns(key)[0]: factor for key, factor in coefficients.items()}
        return self.combined(columns, self.weights(draws, seed))

    def less(self, a: Sequence[int], b: Sequence[int], weights: np.ndarray) -> dict:
        """Mean of columns ``a`` less mean of ``b``, of the samples that all of them have.

        {difference, low, high, ratio, ratio_low, ratio_high, n}; all NaN where they share none.
        """
        both = [*a, *b]
        shared = np.all(self.counts[:, both] > 0, axis=1, keepdims=True)
        hits, counts = (sums[:, both] * shared for sums in (self.hits, self.counts))
        pairs = Estimates(self.samples, self.names, [self.keys[n] for n in both], hits, counts)
        drawn = pairs.drawn(range(len(both)), weights)
        first, second = drawn[:, : len(a)].mean(axis=1), drawn[:, len(a) :].mean(axis=1)
        low, high = statistics.interval((first - second)[1:])
        # a draw in which b is 0 has an infinite ratio; as the share a / (a + b) it is 1, and
        # percentiles of the one are those of the other
        share_low, share_high = statistics.interval(_over(first, first + second)[1:])
        return {
            "difference": float(first[0] - second[0]),
            "low": float(low),
            "high": float(high),
            "ratio": float(_over(first[0], second[0])),
            "ratio_low": float(_over(share_low, 1 - share_low)),
            "ratio_high": float(_over(share_high, 1 - share_high)),
            "n": int(counts.sum(axis=0).min()),
        }

    def items(self, key: tuple | Mapping) -> pd.DataFrame:
        """The samples behind one key: the columns of ``samples``, hits and counts above 0."""
        column = self.columns(key)[0]
        frame = self.samples.assign(hits=self.hits[:, column], counts=self.counts[:, column])
        return frame[frame.counts > 0]


def _over(a, b) -> np.ndarray:
    """a / b; infinite where b is 0, NaN where both are."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(a, b)
