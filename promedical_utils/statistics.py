"""Agreement between raters, and intervals by resampling conditions, then samples within them.

Every metric of the kit is a ratio of sums over samples (accuracy: hits over items; F1: 2 TP over
2 TP + FP + FN), so one weight per sample and draw is all that the bootstrap needs.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from promedical_utils.workspace import KitError


def agreement(first: Sequence, second: Sequence, ordered: bool = False) -> dict:
    """n, observed agreement and Cohen's kappa; ``ordered`` (integer levels) adds weighted kappas.

    Kappa is None where it is undefined, one label throughout. KitError on empty or unequal lists.
    """
    from sklearn.metrics import cohen_kappa_score

    first, second = np.asarray(first), np.asarray(second)
    if len(first) != len(second) or not len(first):
        raise KitError(f"agreement of {len(first)} and {len(second)} answers; give as many of each")
    result = {"n": len(first), "observed": float((first == second).mean())}
    labels = np.unique([first, second])
    if ordered:  # the weights count steps between labels, so no level may be left out
        labels = np.arange(labels.min(), labels.max() + 1)
    for weights in (None, "linear", "quadratic") if ordered else (None,):
        kappa = None
        if len(labels) > 1:
            kappa = float(cohen_kappa_score(first, second, labels=labels, weights=weights))
        result[f"kappa_{weights}" if weights else "kappa"] = kappa
    return result


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
