"""Ratios of sums by hand: four samples of two clusters, each left out by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from promedical_utils.core import statistics
from promedical_utils.core.estimates import Estimates, suffixed
from promedical_utils.core.workspace import KitError

SAMPLES = pd.DataFrame({"id": list("ijkl"), "condition": list("aabb"), "ward": list("xyxy")})
NAN = float("nan")


@pytest.fixture
def made():
    """Two systems with two seeds: accuracy over items 0, 0, 1, 2, 3 (rows of samples)."""
    rows = [0, 0, 1, 2, 3]
    items = [
        (("one", "1", "acc"), rows, [1, 0, 1, 1, 0]),
        (("one", "2", "acc"), rows, [1, 1, 1, 1, 0]),
        (("two", "1", "acc"), rows, [0, 0, 1, NAN, 0]),
        (("two", "1", "f1"), rows, [1, 0, 0, 1, 0], [2, 1, 0, 2, 1]),
    ]
    return Estimates.of_items(SAMPLES, ("system", "seed", "metric"), items)


def test_items_are_summed_by_sample_with_their_weight_and_without_nan(made):
    assert made.keys[0] == ("one", "1", "acc") and made.names == ("system", "seed", "metric")
    assert made.hits.T.tolist() == [[1, 1, 1, 0], [2, 1, 1, 0], [0, 1, 0, 0], [2, 0, 2, 0]]
    assert made.counts.T.tolist() == [[2, 1, 1, 1], [2, 1, 1, 1], [2, 1, 0, 1], [3, 0, 2, 1]]
    none = Estimates.of_items(SAMPLES, ("system",), [])
    assert none.hits.shape == none.counts.shape == (4, 0) and none.keys == []


def test_a_table_has_a_row_a_key_and_intervals_over_draws(made):
    table = made.table(60, 3)
    assert list(table) == ["system", "seed", "metric", "value", "low", "high", "n"]
    assert table.value.tolist() == pytest.approx([3 / 5, 4 / 5, 1 / 4, 4 / 6])
    assert table.n.tolist() == [5, 5, 4, 6]
    assert table[["low", "high"]].isna().all(axis=None)  # two clusters tell of no other
    weights = statistics.cluster_weights(SAMPLES.condition, 60, 3)
    assert (weights == made.weights(60, 3)).all() and made.clusters == 2


def test_columns_are_named_by_a_key_or_by_parts_of_it(made):
    assert made.columns(("two", "1", "f1")) == [3]
    assert made.columns({"system": "one"}) == [0, 1] and made.columns({"seed": "1"}) == [0, 2, 3]
    assert made.without("seed") == {("one", "acc"): [0, 1], ("two", "acc"): [2], ("two", "f1"): [3]}
    for missing in (("two", "1", "recall"), {"system": "three"}):
        with pytest.raises(KitError, match="add the predictions"):
            made.columns(missing)
    with pytest.raises(KitError, match="nobody"):
        made.difference({("one", "1", "acc"): 1, ("nobody", "1", "acc"): -1}, 5, 0)


def test_a_value_is_the_mean_of_its_seeds(made):
    weights = made.weights(80, 1)
    value = made.value([0, 1], weights)
    assert value["value"] == pytest.approx((3 / 5 + 4 / 5) / 2) and value["n"] == 5
    assert made.each([0, 1]).tolist() == pytest.approx([3 / 5, 4 / 5])
    drawn = made.drawn([0, 1], weights)
    assert drawn.shape == (1 + 2 + 80, 2) and drawn[0].tolist() == pytest.approx([3 / 5, 4 / 5])
    assert drawn[1:3].tolist() == [[1 / 2, 1 / 2], [pytest.approx(2 / 3), 1]]  # without a, b


def test_a_difference_shares_the_draws(made):
    both = made.difference({("one", "2", "acc"): 1, ("one", "1", "acc"): -1}, 50, 2)
    assert both["difference"] == pytest.approx(1 / 5) and both["n"] == 5
    same = made.difference({("one", "1", "acc"): 1}, 50, 2)
    assert same["difference"] == pytest.approx(3 / 5)
    assert made.combined({1: 1, 0: -1}, made.weights(50, 2)) == pytest.approx(both, nan_ok=True)
    assert both["df"] == 1
    drawn = made.drawn([1, 0], made.weights(50, 2))
    # the second seed has one hit more, on sample i: never a loss, nor any gain without cluster a
    assert (drawn[:, 0] >= drawn[:, 1]).all() and drawn[1].tolist() == [1 / 2, 1 / 2]


def test_intervals_are_over_the_clusters_that_are_counted():
    rng, names = np.random.default_rng(0), np.repeat(list("abcdefg"), 4)
    samples = pd.DataFrame({"condition": names})
    hits = rng.random((2, 28)) < [[0.9], [0.5]]
    parts = {"all": names >= "a", "six": names < "g", "four": names < "e"}
    items = [
        ((s, p), own.nonzero()[0], h[own]) for s, h in zip("ab", hits) for p, own in parts.items()
    ]
    made = Estimates.of_items(samples, ("s", "part"), items)
    weights, table = made.weights(60, 1), made.table(60, 1).set_index(["s", "part"])
    assert (
        table.loc["a"].low.isna().tolist()
        == table.loc["b"].high.isna().tolist()
        == [False, False, True]
    )

    def wanted(values, own, level=0.975):  # of clusters of one size
        each = values[own].reshape(-1, 4).mean(axis=1)
        error = each.std(ddof=1) / len(each) ** 0.5
        return each.mean() + error * stats.t.ppf(level, len(each) - 1)

    b_six = table.loc[("b", "six")]
    assert b_six.high == pytest.approx(wanted(hits[1], parts["six"]))
    assert table.high[("a", "all")] == min(1, wanted(hits[0], parts["all"]))  # no share is above 1
    less, inner = (made.combined({0: 1, 3: -1}, weights, level=level) for level in (0.95, 0.9))
    both = hits[0] * 1.0 - hits[1]
    assert less["high"] == pytest.approx(min(1, wanted(both, parts["all"]))) and less["df"] == 6
    assert inner["low"] == pytest.approx(wanted(both, parts["all"], 0.05))
    value = made.value([0, 3], weights)
    assert value["low"] == pytest.approx(wanted(hits.mean(axis=0), parts["all"], 0.025))
    paired = made.less([0], [4], weights)  # of the six clusters that both have
    assert paired["n"] == 24 and paired["low"] == pytest.approx(wanted(both, parts["six"], 0.025))


def test_the_design_effect_is_that_of_the_clusters():
    rng = np.random.default_rng(0)
    names = np.repeat([f"c{n}" for n in range(50)], 8)
    samples, rows = pd.DataFrame({"condition": names}), range(400)
    once = rng.integers(0, 2, 50)
    alike = Estimates.of_items(samples, ("s",), [(("a",), rows, np.repeat(once, 8))])
    alone = Estimates.of_items(samples, ("s",), [(("a",), rows, rng.integers(0, 2, 400))])
    weights = alike.weights(20, 0)
    assert alike.combined({0: 1}, weights)["design"] == pytest.approx(8)  # 1 + (8 - 1) ICC, of 1
    assert alone.combined({0: 1}, weights)["design"] == pytest.approx(1, abs=0.4)


def test_less_takes_the_samples_that_all_have(made):
    # sample k has no item of system two: of i, j, l one (seed 1) has 2 of 4, two has 1 of 4
    less = made.less([0], [2], made.weights(40, 0))
    assert (less["difference"], less["ratio"], less["n"]) == (pytest.approx(1 / 4), 2.0, 4)
    seeds = made.less([0, 1], [2], made.weights(40, 0))
    assert seeds["difference"] == pytest.approx((2 / 4 + 3 / 4) / 2 - 1 / 4)
    apart = Estimates.of_items(SAMPLES, ("s",), [(("a",), [0], [1]), (("b",), [1], [1])])
    assert np.isnan(
        [v for k, v in apart.less([0], [1], made.weights(9, 0)).items() if k != "n"]
    ).all()


def test_a_ratio_to_nothing_is_infinite():
    rows, samples = range(5), pd.DataFrame({"condition": list("abcde")})
    items = [(("some",), rows, [1] * 5), (("none",), rows, [0] * 5)]
    both = Estimates.of_items(samples, ("s",), items)
    less = both.less([0], [1], both.weights(9, 0))
    assert less["ratio"] == less["ratio_low"] == less["ratio_high"] == float("inf")
    assert np.isnan(both.less([1], [1], both.weights(9, 0))["ratio"])


def test_items_are_the_samples_behind_a_key(made):
    items = made.items({"system": "two", "metric": "acc"})
    assert items.id.tolist() == list("ijl") and items.counts.tolist() == [2, 1, 1]
    assert items.hits.tolist() == [0, 1, 0]


def test_three_columns_of_a_value_and_its_interval():
    assert suffixed("f1", (0.5, 0.25, 0.75)) == {"f1": 0.5, "f1_low": 0.25, "f1_high": 0.75}
    assert list(suffixed("x", (-0.00001, 0.123456, 1), 100, 2).values()) == [0.0, 12.35, 100.0]
    assert str(suffixed("x", (-0.00001, 0, 0), 100, 2)["x"]) == "0.0"  # no -0.0 in a table
    assert list(suffixed("y")) == ["y", "y_low", "y_high"] and np.isnan(suffixed("y")["y"])


def test_by_a_column_of_the_samples(made):
    frame = made.by("ward", {"system": "one"}, 60, 3)
    assert list(frame) == ["ward", "system", "seed", "metric", "value", "low", "high", "n"]
    assert frame[["ward", "seed", "n"]].values.tolist() == [
        ["x", "1", 3],
        ["x", "2", 3],
        ["y", "1", 2],
        ["y", "2", 2],
    ]
    assert frame.value.tolist() == pytest.approx([2 / 3, 3 / 3, 1 / 2, 1 / 2])
