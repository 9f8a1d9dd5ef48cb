"""Kappa by its formula, and the two-stage bootstrap against slow and exact ones."""

import json

import numpy as np
import pytest

from promedical_utils import statistics
from promedical_utils.workspace import KitError


def kappa_by_hand(first, second, levels, distance):
    """Cohen (1968): 1 - weighted observed disagreement over that expected from the margins."""
    observed = np.mean([distance(a, b) for a, b in zip(first, second, strict=True)])
    share = [{v: np.mean([x == v for x in rater]) for v in levels} for rater in (first, second)]
    expected = sum(share[0][a] * share[1][b] * distance(a, b) for a in levels for b in levels)
    return 1 - observed / expected


def test_kappas_by_hand():
    rng = np.random.default_rng(0)
    first = rng.integers(-2, 3, 200)
    second = np.clip(first + rng.choice([-2, 0, 0, 0, 1], 200), -2, 2)
    found = statistics.agreement(first, second, ordered=True)
    distances = {"kappa": lambda a, b: a != b, "kappa_linear": lambda a, b: abs(a - b),
                 "kappa_quadratic": lambda a, b: (a - b) ** 2}  # fmt: skip
    for name, distance in distances.items():
        assert found[name] == pytest.approx(kappa_by_hand(first, second, range(-2, 3), distance))
    assert found["observed"] == np.mean(first == second) and found["n"] == 200


def test_a_level_that_nobody_used_still_counts_as_a_step():
    first, second = [-2, -2, 2, 2, 1], [-2, 2, 2, 1, 1]  # nobody said -1 or 0
    found = statistics.agreement(first, second, ordered=True)["kappa_linear"]
    by_hand = kappa_by_hand(first, second, range(-2, 3), lambda a, b: abs(a - b))
    assert found == pytest.approx(by_hand)


def test_verdicts_have_an_unweighted_kappa_only():
    found = statistics.agreement(["met", "not_met", "unknown"], ["met", "met", "unknown"])
    assert set(found) == {"n", "observed", "kappa"}
    one_label = statistics.agreement(["met"] * 3, ["met"] * 3)
    assert one_label["kappa"] is None and one_label["observed"] == 1
    json.dumps(found, allow_nan=False)
    for pair in (([], []), (["met"], [])):
        with pytest.raises(KitError, match="give as many of each"):
            statistics.agreement(*pair)


CONDITIONS = ["b", "a", "a", "c", "b", "a", "d"]


def test_a_draw_keeps_the_two_stages():
    weights = statistics.two_stage_weights(CONDITIONS, 500, seed=1)
    assert weights.shape == (500, 7) and (weights >= 0).all()
    sizes = {c: CONDITIONS.count(c) for c in "abcd"}
    taken = {}
    for c, size in sizes.items():  # a condition is taken whole times, each of its own size
        columns = [n for n, name in enumerate(CONDITIONS) if name == c]
        taken[c] = weights[:, columns].sum(axis=1) / size
        assert (taken[c] == taken[c].round()).all()
    assert (sum(taken.values()) == 4).all()
    assert (weights == statistics.two_stage_weights(CONDITIONS, 500, seed=1)).all()
    assert (weights != statistics.two_stage_weights(CONDITIONS, 500, seed=2)).any()


def test_weights_have_the_moments_of_a_slow_bootstrap():
    rng, slow = np.random.default_rng(0), np.zeros((4000, 7))
    members = {c: [n for n, name in enumerate(CONDITIONS) if name == c] for c in "abcd"}
    for draw in slow:
        for c in rng.choice(list("abcd"), 4):
            np.add.at(draw, rng.choice(members[c], len(members[c])), 1)
    fast = statistics.two_stage_weights(CONDITIONS, 4000, seed=3)
    assert fast.mean(axis=0) == pytest.approx(slow.mean(axis=0), abs=0.08)
    assert np.cov(fast.T) == pytest.approx(np.cov(slow.T), abs=0.15)


def test_interval_is_wider_for_clustered_samples():
    hits = np.repeat(np.random.default_rng(0).integers(0, 2, 40), 10)[:, None].astype(float)
    ones = np.ones_like(hits)
    widths = []
    for conditions in (np.repeat(np.arange(40), 10), np.arange(400)):
        weights = statistics.two_stage_weights(conditions, 400, seed=0)
        low, high = statistics.interval(statistics.ratio(hits, ones, weights))
        widths.append(float(high[0] - low[0]))
    assert widths[0] > 2 * widths[1]


def test_ratio_and_interval_by_hand():
    hits, counts = np.array([[1.0], [0.0], [2.0]]), np.array([[2.0], [0.0], [2.0]])
    weights = np.array([[1, 1, 1], [2, 0, 0], [0, 5, 0]])
    found = statistics.ratio(hits, counts, weights)[:, 0]
    assert found[:2].tolist() == [0.75, 0.5] and np.isnan(found[2])
    low, high = statistics.interval(np.column_stack([np.arange(101.0), np.full(101, np.nan)]))
    assert (low[0], high[0]) == (2.5, 97.5) and np.isnan(low[1])


def test_a_contrast_of_equal_columns_has_no_width():
    rng = np.random.default_rng(0)
    one = rng.integers(0, 2, 30).astype(float)
    hits = np.column_stack([one, one, np.zeros(30)])
    weights = statistics.two_stage_weights(np.arange(30) % 6, 200, 0)
    same = statistics.contrast(hits, np.ones_like(hits), {0: 1, 1: -1}, weights)
    assert same == {"difference": 0.0, "low": 0.0, "high": 0.0}
    other = statistics.contrast(hits, np.ones_like(hits), {0: 1, 2: -1}, weights)
    assert other["difference"] == pytest.approx(one.mean()) and other["low"] < other["high"]
