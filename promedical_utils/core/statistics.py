"""Agreement between raters, and intervals by resampling conditions, then samples within them."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from promedical_utils.core.workspace import KitError

COEFFICIENTS = ("observed", "cohen_linear", "cohen_quadratic", "fleiss", "ac1")


def agreement(first: Sequence, second: Sequence, ordered: bool = False) -> dict:
    """n, observed agreement and Cohen's kappa; ``ordered`` (integer levels) adds weighted kappas.

    Kappa is None where it is undefined, one label throughout. KitError on empty or unequal lists.
    """
    from sklearn.metrics import cohen_kappa_score

    if len(first) != len(second) or not len(first):
        raise KitError(f"agreement of {len(first)} and {len(second)} answers; give as many of each")
    ratings = np.asarray([first, second])
    result: dict[str, float | None] = {"n": len(first)}
    result["observed"] = float(np.equal(*ratings).mean())
    labels = np.unique(ratings)
    if ordered:  # the weights count steps between labels, so no level may be left out
        labels = np.arange(labels.min(), labels.max() + 1)
    for weights in (None, "linear", "quadratic") if ordered else (None,):
        kappa = None
        if len(labels) > 1:
            kappa = float(cohen_kappa_score(*ratings, labels=labels, weights=weights))
        result[f"kappa_{weights}" if weights else "kappa"] = kappa
    return result


# ---------------------------------------------------------------- ratios of sums, and their draws


def two_stage_weights(conditions: Sequence, draws: int, seed: int) -> np.ndarray:
    """How often each sample is drawn, (draws, samples): conditions first, then their samples.

    As many conditions as there are, and of each taken as many samples as it has, with replacement.
    """
    _, inverse, sizes = np.unique(
        np.asarray(conditions, str), return_inverse=True, return_counts=True
    )
    rng = np.random.default_rng(seed)
    taken = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), size=draws)
    weights, order = np.empty((draws, len(inverse))), np.argsort(inverse, kind="stable")
    for size in np.unique(sizes):  # conditions of one size at a time, so that arrays are square
        alike = np.flatnonzero(sizes == size)
        counts = rng.multinomial(taken[:, alike] * size, np.full(size, 1 / size))
        weights[:, order[np.isin(inverse[order], alike)]] = counts.reshape(draws, -1)
    return weights


def ratio(numerators: np.ndarray, denominators: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ratios of weighted sums, (draws, columns) from (samples, columns); NaN if none is drawn."""
    over = weights @ denominators
    return np.divide(weights @ numerators, over, out=np.full(over.shape, np.nan), where=over > 0)


def interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2.5 and 97.5 percentiles along the first axis; NaN draws are left out, NaN if all are."""
    empty = np.isnan(values).all(axis=0)
    ends = np.nanpercentile(np.where(empty, 0.0, values), [2.5, 97.5], axis=0)
    return tuple(np.where(empty, np.nan, ends))


def contrast(numerators, denominators, coefficients: Mapping[int, float], weights) -> dict:
    """``sum coefficient * ratio`` over columns, with its interval; paired: all share the draws."""
    columns, factors = list(coefficients), np.array(list(coefficients.values()), float)
    sums = numerators[:, columns], denominators[:, columns]
    value = ratio(*sums, np.ones((1, len(numerators)))) @ factors
    low, high = interval(ratio(*sums, weights) @ factors)
    return {"difference": float(value[0]), "low": float(low), "high": float(high)}


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % Wilson interval of a rate, to four places; everything if nothing was counted."""
    from scipy.stats import binomtest

    if not n:
        return 0.0, 1.0
    ends = binomtest(hits, n).proportion_ci(method="wilson")
    return round(float(ends.low), 4), round(float(ends.high), 4)


# ---------------------------------------------------------------- two or more raters


def gwet_ac1(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Gwet's AC1, (draws,), of (items, levels) counts; each draw weighs the items, (draws, items).

    Agreement is corrected by sum p (1 - p) / (levels - 1), p the mean share of a level over the
    items with a rating, so that it does not collapse where one level prevails. An item counts from
    two ratings on. NaN where undefined. Gwet, Br J Math Stat Psychol 61 (2008), and with missing
    ratings his Handbook of Inter-Rater Reliability (2014); irrCAC is held to pandas below 3.
    """
    if counts.shape[1] < 2:
        raise KitError("Gwet's AC1 needs two levels or more: name all that a rater could choose")
    sizes = counts.sum(axis=1, keepdims=True)
    twice, once = (sizes >= 2).astype(float), (sizes >= 1).astype(float)
    alike = (counts * (counts - 1)).sum(axis=1, keepdims=True) / np.maximum(sizes * (sizes - 1), 1)
    observed = ratio(alike, twice, weights)[:, 0]
    shares = ratio(counts / np.maximum(sizes, 1), np.repeat(once, counts.shape[1], axis=1), weights)
    chance = (shares * (1 - shares)).sum(axis=1) / (counts.shape[1] - 1)
    return (observed - chance) / (1 - chance)


def reliability(
    ratings: pd.DataFrame,
    levels: Sequence,
    by: Sequence | None = None,
    conditions: Sequence | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """How well raters agree, by slice and for "all": slice, coefficient, n, value, low, high.

    ``ratings``: items by raters, NaN missing; ``levels``: all that a rater can choose, in their
    order, for the weighted kappas; ``by``: the slice of each item, such as its dimension. Intervals
    are 2.5 and 97.5 percentiles over draws of items, or of ``conditions`` and then items.

    ``observed`` is the share of rater pairs that agree. Cohen's kappas are means over all pairs of
    raters (Light 1971). Fleiss' kappa takes the items with the commonest number of ratings, AC1 all
    with two or more, which is ``n``. NaN where undefined. KitError where no item has two.
    """
    codes = _codes(ratings, levels)
    clusters = np.arange(len(codes)) if conditions is None else np.asarray(conditions, str)
    slices = {} if by is None else {name: np.asarray(by) == name for name in dict.fromkeys(by)}
    rows = []
    for name, mask in {**slices, "all": np.ones(len(codes), bool)}.items():
        mask = mask & ((codes >= 0).sum(axis=1) >= 2)
        if not mask.any():
            raise KitError(f"agreement, {name}: no item has two ratings; collect more labels")
        # what depends on counts of equal items only is worked out once for all that are equal
        kinds, kind_of = np.unique(codes[mask], axis=0, return_inverse=True)
        once = np.ones(len(kind_of))  # the measured items are the first row, the draws follow
        drawn = (once, *two_stage_weights(clusters[mask], draws, seed))
        weights = np.stack([np.bincount(kind_of, times, len(kinds)) for times in drawn])
        values = _coefficients(kinds, weights, len(levels))
        low, high = interval(values[1:])
        for n, coefficient in enumerate(COEFFICIENTS):
            rows.append((name, coefficient, int(mask.sum()), values[0, n], low[n], high[n]))
    return pd.DataFrame(rows, columns=["slice", "coefficient", "n", "value", "low", "high"])


def _codes(ratings: pd.DataFrame, levels: Sequence) -> np.ndarray:
    """Place of each rating in ``levels``, (items, raters), -1 where missing."""
    values = ratings.to_numpy(object)
    codes = pd.Index(list(levels), dtype=object).get_indexer(values.ravel()).reshape(values.shape)
    if len(strange := values[(codes < 0) & ~pd.isna(values)]):
        raise KitError(f"rating {strange[0]!r} is none of {', '.join(map(str, levels))}: mend it")
    return codes


def _coefficients(kinds: np.ndarray, weights: np.ndarray, levels: int) -> np.ndarray:
    """(draws, coefficients) of the distinct items ``kinds``, each drawn ``weights`` times."""
    from statsmodels.stats.inter_rater import fleiss_kappa

    counts = (kinds[:, :, None] == np.arange(levels)).sum(axis=1)
    sizes = counts.sum(axis=1)
    alike = (counts * (counts - 1)).sum(axis=1) / (sizes * (sizes - 1))
    usual = sizes == np.bincount(sizes, weights[0]).argmax()
    columns = {"observed": weights @ alike / weights.sum(axis=1), "ac1": gwet_ac1(counts, weights)}
    with np.errstate(invalid="ignore"):  # one level throughout: 0 / 0
        columns["fleiss"] = [
            fleiss_kappa(np.repeat(counts[usual], times, axis=0)) if times.any() else np.nan
            for times in weights[:, usual].astype(int)
        ]
    step = np.abs(np.subtract.outer(np.arange(levels), np.arange(levels)))
    pairs = [pair for pair in combinations(kinds.T, 2) if (np.minimum(*pair) >= 0).any()]
    for name, distance in (("linear", step), ("quadratic", step**2)):
        kappas = [_cohen(*pair, weights, distance) for pair in pairs]
        columns[f"cohen_{name}"] = np.mean(kappas, axis=0)
    return np.column_stack([columns[name] for name in COEFFICIENTS])


def _cohen(first, second, weights: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """Cohen's weighted kappa (1968) of all draws at once; scikit-learn takes a millisecond each."""
    both = np.minimum(first, second) >= 0
    first, second, weights = first[both], second[both], weights[:, both]
    margins = [weights @ np.eye(len(distance))[rater] for rater in (first, second)]
    observed = weights @ distance[first, second] * weights.sum(axis=1)
    expected = ((margins[0] @ distance) * margins[1]).sum(axis=1)
    kappa = np.divide(observed, expected, out=np.full(len(weights), np.nan), where=expected > 0)
    return 1 - kappa
