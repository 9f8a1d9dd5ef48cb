"""Intervals and tests over whole clusters (conditions, questions), and agreement of raters."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import special

from promedical_utils.core.workspace import KitError

FEW = 10  # clusters, below which too few differ for draws to have the shape of an error
LEAST = 5  # clusters, below which the error itself is not known: no interval
POWER = 0.8  # with which an effect is called detectable


def cluster_weights(clusters: Sequence, draws: int, seed: int) -> np.ndarray:
    """How often each sample counts, (1 + G + draws, samples), where ``clusters`` names G clusters.

    As measured; then with one cluster left out, each in turn; then as many clusters as there are,
    with replacement. A cluster is taken whole: to draw its samples too would count the spread
    within it twice (intervals of 97 to 99 % in place of 95).
    """
    _, inverse = np.unique(np.asarray(clusters, str), return_inverse=True)
    number = inverse.max(initial=-1) + 1
    rng = np.random.default_rng(seed)
    taken = rng.multinomial(number, np.full(number, 1 / max(number, 1)), size=draws)
    return np.vstack([np.ones((1, number)), 1 - np.eye(number), taken])[:, inverse]


def ratio(numerators: np.ndarray, denominators: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Ratios of weighted sums, (rows, columns) from (samples, columns); NaN if none is drawn."""
    over = weights @ denominators
    return np.divide(weights @ numerators, over, out=np.full(over.shape, np.nan), where=over > 0)


def standard_error(values: np.ndarray, clusters: int, counted=None) -> np.ndarray:
    """By the jackknife over clusters, of ``values`` as in ``interval``; NaN below ``LEAST``."""
    number = np.maximum(clusters if counted is None else counted, 1)
    squares = np.nansum((values[1 : 1 + clusters] - values[0]) ** 2, axis=0)
    error = np.sqrt((number - 1) / number * squares)
    error = np.where(error < 1e-12, 0.0, error)  # the last bits of sums that are all the same
    return np.where((number < LEAST) | np.isnan(values[0]), np.nan, error)


def interval(
    values: np.ndarray, clusters: int, counted=None, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the interval of a statistic of each row of ``cluster_weights``, (rows, ...).

    ``counted``: clusters with something in the statistic, where these are not all. BCa (Efron,
    JASA 82, 1987), its acceleration by the jackknife, with Student's t for the normal quantile and
    Hesterberg's factor for few clusters (Am Stat 69, 2015, expanded percentile); below ``FEW``
    clusters the value and t jackknife standard errors on either side. NaN below ``LEAST``: so few
    do not tell how much another one would differ. NaN rows are left out. A statistic that is the
    same whichever cluster is left out has an interval without width.
    """
    value, left_out, drawn = values[0], values[1 : 1 + clusters], values[1 + clusters :]
    number = np.broadcast_to(clusters if counted is None else counted, value.shape)
    error = standard_error(values, clusters, counted)
    with np.errstate(invalid="ignore", divide="ignore"):
        reach = special.stdtrit(number - 1.0, 0.5 + level / 2)
        away = value - left_out
        skew = np.nansum(away**3, axis=0) / (6 * np.nansum(away**2, axis=0) ** 1.5)
        drawn, known = np.sort(drawn, axis=0), (~np.isnan(drawn)).sum(axis=0)
        below, above = ((sign * (drawn - value) > 1e-12).sum(axis=0) for sign in (-1, 1))
        share = 0.5 + (below - above) / (2 * known)
        bias = special.ndtri(np.clip(share, 0.5 / known, 1 - 0.5 / known))
        ends = []
        for side in (-1, 1):
            far = bias + side * reach * np.sqrt(number / (number - 1))
            quantile = special.ndtr(bias + far / np.maximum(1 - skew * far, 1e-9))
            end = np.where(number < FEW, value + side * reach * error, _at(drawn, quantile, known))
            end = np.where(error > 0, end, value)
            ends.append(np.where(np.isnan(error), np.nan, end))
    return ends[0], ends[1]


def _at(ordered: np.ndarray, quantile: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Quantiles along the first axis, each column's own, of its first ``known`` rows."""
    place = np.nan_to_num(quantile) * np.maximum(known - 1, 0)
    row = place.astype(int)
    rows = np.minimum([row, row + 1], np.maximum(known - 1, 0))
    low, high = np.take_along_axis(ordered, rows, axis=0)
    return low + (place - row) * (high - low)


def p_value(value: float, bound: float, error: float, df: float) -> float:
    """Two-sided, of t = (value - bound) / standard error; NaN without one."""
    if error == 0:  # all clusters say the same: a sign test, to which last bits are no difference
        return 1.0 if abs(value - bound) < 1e-9 else 2.0**-df
    return float(2 * special.stdtr(df, -abs(value - bound) / error))


def smallest_detectable(error: float, df: float) -> float:
    """The effect that a two-sided test at 5 % sees with ``POWER``."""
    return float((special.stdtrit(df, 0.975) + special.stdtrit(df, POWER)) * error)


def power(effect: float, error: float, df: float) -> float:
    """Of a two-sided test at 5 % for an effect; it is ``POWER`` for ``smallest_detectable``."""
    if error == 0:
        return float(effect != 0)
    return float(special.stdtr(df, abs(effect) / error - special.stdtrit(df, 0.975)))


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's adjusted p-values of one family; NaN stays NaN and counts for nothing."""
    raw = np.asarray(p_values, float)  # statsmodels collects garbage at each call, a second long
    order = np.argsort(raw)  # NaN comes last
    left = (~np.isnan(raw)).sum() - np.arange(len(raw))
    adjusted = np.full(len(raw), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(raw[order] * left), 1)
    return adjusted


def wilson(hits: int, n: int) -> tuple[float, float]:
    """95 % Wilson interval of a rate, to four places; everything if nothing was counted."""
    from scipy.stats import binomtest

    if not n:
        return 0.0, 1.0
    ends = binomtest(hits, n).proportion_ci(method="wilson")
    return round(float(ends.low), 4), round(float(ends.high), 4)


def agreement(first: Sequence, second: Sequence, ordered: bool = False) -> dict:
    """n, observed agreement and Cohen's kappa, None where it is undefined, one label throughout;
    ``ordered`` (integer levels) adds weighted kappas. KitError on empty or unequal lists."""
    from sklearn.metrics import cohen_kappa_score

    if len(first) != len(second) or not len(first):
        raise KitError(f"agreement of {len(first)} and {len(second)} answers; give as many of each")
    ratings = np.asarray([first, second])
    result = {"n": len(first), "observed": float(np.equal(*ratings).mean())}
    labels = np.unique(ratings)
    weights: dict[str, str | None] = {"kappa": None}
    if ordered:  # these count steps between labels, so no level may be left out
        labels = np.arange(labels.min(), labels.max() + 1)
        weights |= {"kappa_linear": "linear", "kappa_quadratic": "quadratic"}
    if len(labels) == 1:
        return result | dict.fromkeys(weights)
    kappas = (cohen_kappa_score(*ratings, labels=labels, weights=w) for w in weights.values())
    return result | dict(zip(weights, map(float, kappas)))


def _agreed(counts: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of (items, levels) counts, items weighted by (draws, items): the share of an item's pairs of
    raters that agree, (draws,), and each level's share of its ratings, (draws, levels)."""
    sizes = counts.sum(axis=1, keepdims=True)
    alike = (counts * (counts - 1)).sum(axis=1, keepdims=True) / np.maximum(sizes * (sizes - 1), 1)
    shares, rated = counts / np.maximum(sizes, 1), np.broadcast_to(sizes >= 1, counts.shape)
    return ratio(alike, sizes >= 2, weights)[:, 0], ratio(shares, rated, weights)


def fleiss_kappa(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fleiss' kappa, (draws,), of (items, levels) counts, as many ratings of each; each draw weighs
    the items, (draws, items). NaN where undefined, one level throughout."""
    observed, shares = _agreed(counts, weights)
    chance = (shares**2).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return (observed - chance) / (1 - chance)


def gwet_ac1(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Gwet's AC1, (draws,), of (items, levels) counts; each draw weighs the items, (draws, items).

    Agreement is corrected by sum p (1 - p) / (levels - 1), p the mean share of a level over the
    items with a rating, so that it does not collapse where one level prevails. An item counts from
    two ratings on. NaN where undefined. Gwet, Br J Math Stat Psychol 61 (2008), and with missing
    ratings his Handbook of Inter-Rater Reliability (2014); irrCAC is held to pandas below 3.
    """
    if counts.shape[1] < 2:
        raise KitError("Gwet's AC1 needs two levels or more: name all that a rater could choose")
    observed, shares = _agreed(counts, weights)
    chance = (shares * (1 - shares)).sum(axis=1) / (counts.shape[1] - 1)
    return (observed - chance) / (1 - chance)


def reliability(
    ratings: pd.DataFrame, levels: Sequence, by=None, conditions=None, draws=1000, seed=0
) -> pd.DataFrame:
    """How well raters agree, by slice and for "all": slice, coefficient, n, value, low, high.

    ``ratings``: items by raters, NaN missing; ``levels``: all that a rater can choose; ``by``: the
    slice of each item, such as its dimension. Intervals (95 %) are over draws of items, or of whole
    ``conditions``. Counted are the ``n`` items with two ratings or more (KitError without), for
    Fleiss' kappa those with the commonest number. NaN where undefined.
    """
    given = ratings.to_numpy(object)
    chosen = given[:, :, None] == np.array(list(levels), object)  # (items, raters, levels)
    if len(strange := given[~chosen.any(axis=2) & ratings.notna().to_numpy()]):
        raise KitError(f"rating {strange[0]!r} is none of {', '.join(map(str, levels))}: mend it")
    counts = chosen.sum(axis=1)
    clusters = np.arange(len(counts)) if conditions is None else np.asarray(conditions, str)
    slices = {} if by is None else {name: np.asarray(by) == name for name in dict.fromkeys(by)}
    usable, rows = counts.sum(axis=1) >= 2, []
    for name, mask in {**slices, "all": usable}.items():
        mask = mask & usable
        if not mask.any():
            raise KitError(f"agreement, {name}: no item has two ratings; collect more labels")
        own, weights = counts[mask], cluster_weights(clusters[mask], draws, seed)
        sizes = own.sum(axis=1)
        usual = sizes == np.bincount(sizes).argmax()
        values = {
            "observed": _agreed(own, weights)[0],
            "fleiss": fleiss_kappa(own[usual], weights[:, usual]),
            "ac1": gwet_ac1(own, weights),
        }
        for coefficient, drawn in values.items():
            low, high = interval(drawn, len(weights) - 1 - draws)
            rows.append((name, coefficient, len(own), drawn[0], float(low), float(high)))
    return pd.DataFrame(rows, columns=["slice", "coefficient", "n", "value", "low", "high"])
