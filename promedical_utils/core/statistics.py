"""Intervals and tests over whole clusters (conditions, questions), and agreement of raters."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import special

from promedical_utils.core.workspace import KitError

FEW = 10  # clusters, below which too few differ for draws to have the shape of an error
LEAST = 5  # clusters, below which the error itself is not known: no interval
POWER = 0.8  # with which an effect is called detectable
WEIGHTINGS = ("", "linear", "quadratic")  # of two levels, see ``likeness``


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


def likeness(levels: Sequence, weighting: str = "") -> np.ndarray:
    """How far two levels agree, (levels, levels), 1 for the same: "" nominal, else "linear" or
    "quadratic" (Cohen, Psychol Bull 70, 1968) by the distance of numbers, or by steps of names."""
    if not weighting:
        return np.eye(len(levels))
    numbers = all(isinstance(level, int | float | np.number) for level in levels)
    places = np.asarray(levels if numbers else range(len(levels)), float)
    away = np.abs(places[:, None] - places) ** {"linear": 1, "quadratic": 2}[weighting]
    return 1 - away / (away.max(initial=0) or 1)


def agreement(first: Sequence, second: Sequence, ordered: bool = False) -> dict:
    """n, observed agreement and Cohen's kappa of the items that both rated; a kappa is None where
    it is undefined, one label throughout; ``ordered`` (integer levels) adds weighted kappas.
    KitError on lists of unequal length, or with no item in common."""
    if len(first) != len(second) or not len(first):
        raise KitError(f"agreement of {len(first)} and {len(second)} answers; give as many of each")
    ratings = pd.DataFrame({"a": first, "b": second}).dropna()
    if ratings.empty:
        raise KitError(f"agreement of {len(first)} answers: no item was rated by both")
    levels, one = [*np.unique(ratings.to_numpy())], np.ones((1, len(ratings)))
    a, b = (ratings[rater].to_numpy()[:, None] == np.array(levels) for rater in ratings)
    result: dict = {"n": len(ratings), "observed": float(ratings.a.eq(ratings.b).mean())}
    for code in WEIGHTINGS[: 1 + 2 * ordered]:
        kappa = float(cohen_kappa(a, b, one, likeness(levels, code))[0])
        result[f"kappa_{code}".rstrip("_")] = None if np.isnan(kappa) else kappa
    return result


def _corrected(observed: np.ndarray, chance: np.ndarray) -> np.ndarray:
    """(observed - chance) / (1 - chance), NaN where all is chance."""
    return (observed - chance) / np.where(np.abs(1 - chance) < 1e-12, np.nan, 1 - chance)


def cohen_kappa(first, second, weights: np.ndarray, alike: np.ndarray) -> np.ndarray:
    """Cohen's kappa, (draws,), of what two raters chose, (items, levels) each, with nothing in the
    row of an item without a rating; ``alike``: as of ``likeness``. NaN where undefined."""
    pairs = (first[:, :, None] & second[:, None, :]) * 1.0
    joint, away = np.tensordot(weights, pairs, axes=1), 1 - alike  # joint: (draws, levels, levels)
    with np.errstate(invalid="ignore", divide="ignore"):
        chance = joint.sum(axis=2)[:, :, None] * joint.sum(axis=1)[:, None, :]
        chance = chance / joint.sum(axis=(1, 2), keepdims=True)
        return 1 - (joint * away).sum(axis=(1, 2)) / (chance * away).sum(axis=(1, 2))


def _agreed(counts: np.ndarray, weights: np.ndarray, alike=None) -> tuple[np.ndarray, np.ndarray]:
    """Of (items, levels) counts, items weighted by (draws, items): the share of an item's pairs of
    raters that agree, (draws,), and each level's share of its ratings, (draws, levels)."""
    sizes = counts.sum(axis=1, keepdims=True)
    near = (counts if alike is None else counts @ alike) - 1
    pairs = (counts * near).sum(axis=1, keepdims=True) / np.maximum(sizes * (sizes - 1), 1)
    shares, rated = counts / np.maximum(sizes, 1), np.broadcast_to(sizes >= 1, counts.shape)
    return ratio(pairs * (sizes >= 2), sizes >= 2, weights)[:, 0], ratio(shares, rated, weights)


def fleiss_kappa(counts: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fleiss' kappa, (draws,), of (items, levels) counts; each draw weighs the items, (draws,
    items). Where items have unlike many ratings it is Gwet's extension: agreement over those with
    two or more, chance over all that have one. NaN where undefined, one level throughout."""
    observed, shares = _agreed(counts, weights)
    return _corrected(observed, (shares**2).sum(axis=1))


def gwet_ac(counts: np.ndarray, weights: np.ndarray, alike=None) -> np.ndarray:
    """Gwet's AC1, with ``alike``, of ``likeness``, his AC2, (draws,), of (items, levels) counts;
    each draw weighs the items, (draws, items).

    Agreement is corrected by sum p (1 - p) / (levels - 1), p the mean share of a level over the
    items with a rating, so that it does not collapse where one level prevails; for AC2 times sum of
    ``alike`` / levels. NaN where undefined. Gwet, Br J Math Stat Psychol 61 (2008), and with
    missing ratings his Handbook of Inter-Rater Reliability (2014); irrCAC needs pandas below 3.
    """
    if (levels := counts.shape[1]) < 2:
        raise KitError("Gwet's AC1 needs two levels or more: name all that a rater could choose")
    observed, shares = _agreed(counts, weights, alike)
    mean = 1 if alike is None else alike.sum() / levels
    return _corrected(observed, mean * (shares * (1 - shares)).sum(axis=1) / (levels - 1))


def krippendorff_alpha(counts: np.ndarray, weights: np.ndarray, ordinal=False) -> np.ndarray:
    """Krippendorff's alpha, (draws,), nominal or ordinal, of (items, levels) counts; each draw
    weighs the items, (draws, items). An item with one rating is left out: it has nothing to be
    compared with. NaN where undefined. Krippendorff, Computing Krippendorff's Alpha-Reliability
    (2011); statsmodels has it from 0.15.1 on, for one sample and no draws of clusters."""
    sizes, levels = counts.sum(axis=1)[:, None, None] - 1, np.eye(counts.shape[1])
    pairs = counts[:, :, None] * (counts[:, None, :] - levels) / np.maximum(sizes, 1)
    together = np.tensordot(weights, pairs, axes=1)  # coincidences, (draws, levels, levels)
    each = together.sum(axis=2)
    places = each.cumsum(axis=1) - each / 2  # of an ordinal level: the middle of its ranks
    away = (places[:, :, None] - places[:, None, :]) ** 2 if ordinal else 1 - levels
    expected = (each[:, :, None] * each[:, None, :] * away).sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return 1 - (together * away).sum(axis=(1, 2)) * (each.sum(axis=1) - 1) / expected


def _coefficients(chosen: np.ndarray, raters: Sequence, levels: Sequence, weights, every, ordered):
    """(coefficient, whose ratings, items counted (mask), values by draw) of what was ``chosen``,
    (items, raters, levels); the rest as in ``reliability``."""
    counts, codes = chosen.sum(axis=1), WEIGHTINGS[1 : 1 + 2 * ordered]
    rated, compared = (counts.sum(axis=1) >= least for least in (1, 2))
    yield "observed", "all", compared, _agreed(counts, weights)[0]
    yield "fleiss", "all", rated, fleiss_kappa(counts, weights)
    yield "ac1", "all", rated, gwet_ac(counts, weights)
    for code in codes if every else ():
        yield f"ac2_{code}", "all", rated, gwet_ac(counts, weights, likeness(levels, code))
    for kind in ("nominal", "ordinal")[: every + every * ordered]:
        yield f"alpha_{kind}", "all", compared, krippendorff_alpha(counts, weights, kind[0] == "o")
    for a, b in combinations(range(len(raters)), 2) if every else ():
        both = chosen[:, a].any(axis=1) & chosen[:, b].any(axis=1)
        for code in ("", *codes):
            kappa = cohen_kappa(chosen[:, a], chosen[:, b], weights, likeness(levels, code))
            yield f"cohen_{code}".rstrip("_"), f"{raters[a]}, {raters[b]}", both, kappa


def reliability(
    ratings: pd.DataFrame, levels, by=None, conditions=None, draws=1000, seed=0, **more: bool
) -> pd.DataFrame:
    """How well raters agree, by slice and for "all": slice, coefficient, n, value, low, high.

    ``ratings``: items by raters, NaN missing; ``levels``: all that a rater can choose; ``by``: the
    slice of each item, such as its dimension. Intervals (95 %) are over draws of items, or of whole
    ``conditions``. ``n`` items are counted: with two ratings or more for observed agreement and
    alpha, by both raters for Cohen's kappa, with one for Fleiss and Gwet, whose chance they inform.
    ``every=True`` adds AC2, alpha, every two raters' Cohen, and a column raters; ``ordered=True``
    what weighs the distance of levels. NaN where undefined; KitError if nothing was rated twice.
    """
    every, ordered = more.get("every", False), more.get("ordered", False)
    given = ratings.to_numpy(object)
    chosen = given[:, :, None] == np.array(list(levels), object)  # (items, raters, levels)
    if len(strange := given[~chosen.any(axis=2) & ratings.notna().to_numpy()]):
        raise KitError(f"rating {strange[0]!r} is none of {', '.join(map(str, levels))}: mend it")
    sizes = chosen.sum(axis=(1, 2))
    if not (sizes >= 2).any():
        raise KitError("agreement, all: no item has two ratings; collect more labels")
    clusters = np.arange(len(sizes)) if conditions is None else np.asarray(conditions, str)
    slices = {} if by is None else {name: np.asarray(by) == name for name in dict.fromkeys(by)}
    rows = []
    for name, mask in {**slices, "all": sizes >= 1}.items():
        own, names = chosen[mask & (sizes >= 1)], clusters[mask & (sizes >= 1)]
        weights = cluster_weights(names, draws, seed)
        found = _coefficients(own, [*ratings], levels, weights, every, ordered)
        for coefficient, raters, counted, drawn in found:
            ends = interval(drawn, len(weights) - 1 - draws, len(set(names[counted])))
            least = 0.0 if coefficient == "observed" else -1.0  # few clusters' t goes beyond
            low, high = np.clip(ends, least, 1.0).tolist()
            rows.append((name, coefficient, raters, int(counted.sum()), drawn[0], low, high))
    frame = pd.DataFrame(
        rows, columns=["slice", "coefficient", "raters", "n", "value", "low", "high"]
    )
    return frame if every else frame.drop(columns="raters")
