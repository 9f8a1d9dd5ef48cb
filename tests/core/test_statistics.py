"""Intervals and tests against known worlds, exact ones and SciPy's; kappa by its formula."""

import json
import os

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.stats import binomtest
from statsmodels.stats.inter_rater import fleiss_kappa
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from promedical_utils.core import statistics
from promedical_utils.core.workspace import KitError
from promedical_utils.data.sources import schemas

real_data = pytest.mark.skipif(
    not os.environ.get(schemas.VARIABLE),
    reason=f"{schemas.VARIABLE} is not set: the physicians' agreement on K-QA is NOT checked",
)


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
    distances = {
        "kappa": lambda a, b: a != b,
        "kappa_linear": lambda a, b: abs(a - b),
        "kappa_quadratic": lambda a, b: (a - b) ** 2,
    }
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


def test_rows_are_the_measured_one_each_without_a_cluster_and_draws_of_whole_ones():
    weights = statistics.cluster_weights(CONDITIONS, 500, seed=1)
    assert weights.shape == (1 + 4 + 500, 7) and (weights[0] == 1).all()
    for row, left_out in zip(weights[1:5], "abcd", strict=True):
        assert row.tolist() == [float(name != left_out) for name in CONDITIONS]
    taken = {}
    for name in "abcd":  # all samples of a condition as often, and four conditions in all
        own = weights[5:, [n for n, c in enumerate(CONDITIONS) if c == name]]
        assert (own == own[:, :1]).all()
        taken[name] = own[:, 0]
    assert (sum(taken.values()) == 4).all() and taken["a"].mean() == pytest.approx(1, abs=0.1)
    assert (weights == statistics.cluster_weights(CONDITIONS, 500, seed=1)).all()
    assert (weights != statistics.cluster_weights(CONDITIONS, 500, seed=2)).any()


def beta_binomial(rng, clusters, size, rate, icc, worlds):
    """Hits of each sample, (clusters * size, worlds), alike within a cluster by ``icc``."""
    over = (1 - icc) / icc
    shares = rng.beta(rate * over, (1 - rate) * over, size=(clusters, worlds))
    return (rng.random((clusters, size, worlds)) < shares[:, None]).reshape(-1, worlds) * 1.0


def two_stage(clusters, size, draws, rng):
    """What the kit drew before: clusters, and again samples within them."""
    taken = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=draws)
    return rng.multinomial(taken * size, np.full(size, 1 / size)).reshape(draws, -1)


@pytest.mark.parametrize(
    ("clusters", "rate", "icc"), [(10, 0.5, 0.1), (10, 0.8, 0.02), (40, 0.8, 0.02)]
)
def test_intervals_cover_what_they_say(clusters, rate, icc):
    """Of 1,500 worlds with a known rate; two other intervals fail the same bounds."""
    rng, size, draws, worlds = np.random.default_rng(5), 14, 500, 1500
    hits = beta_binomial(rng, clusters, size, rate, icc, worlds)
    names = np.repeat(np.arange(clusters), size)

    def covered(ends):
        return float(np.mean((ends[0] <= rate) & (rate <= ends[1])))

    weights = statistics.cluster_weights(names, draws, 1)
    values = statistics.ratio(hits, np.ones_like(hits), weights)
    assert 0.93 <= covered(statistics.interval(values, clusters)) <= 0.97
    if clusters == 10:
        plain = np.percentile(values[1 + clusters :], [2.5, 97.5], axis=0)
        assert covered(plain) < 0.925
    if icc < 0.05:
        drawn = two_stage(clusters, size, draws, rng) @ hits / len(hits)
        assert covered(np.percentile(drawn, [2.5, 97.5], axis=0)) > 0.97


def test_few_clusters_have_t_on_the_jackknife_error():
    hits, counts = np.array([3.0, 9.0, 5.0, 7.0, 6.0]), np.full(5, 10.0)
    weights = statistics.cluster_weights(range(5), 200, 0)
    values = statistics.ratio(hits[:, None], counts[:, None], weights)[:, 0]
    error = np.std(hits / 10, ddof=1) / 5**0.5  # of clusters of one size the jackknife is this
    assert statistics.standard_error(values, 5) == pytest.approx(error)
    low, high = statistics.interval(values, 5)
    assert [float(low), float(high)] == pytest.approx(0.6 + error * stats.t.ppf([0.025, 0.975], 4))
    inner = statistics.interval(values, 5, level=0.9)
    assert float(inner[0]) == pytest.approx(0.6 + error * stats.t.ppf(0.05, 4))


def test_bca_is_scipys_but_for_the_wider_quantile():
    """With as many clusters as samples and a normal quantile it is ``scipy.stats.bootstrap``'s."""
    data = np.random.default_rng(3).exponential(size=200)
    weights = statistics.cluster_weights(range(200), 20000, 2)
    values = statistics.ratio(data[:, None], np.ones((200, 1)), weights)[:, 0]
    ours = [float(end) for end in statistics.interval(values, 200)]
    scipys = stats.bootstrap((data,), np.mean, n_resamples=20000, method="BCa", rng=4)
    assert ours == pytest.approx(list(scipys.confidence_interval), abs=0.006)
    assert ours[1] - data.mean() > 1.05 * (data.mean() - ours[0])  # skewed, as the data are


def test_too_few_clusters_no_variance_and_what_is_not_drawn():
    for number in (1, 4):
        names = np.arange(8) % number
        weights = statistics.cluster_weights(names, 50, 0)
        values = statistics.ratio(names[:, None] % 2 * 1.0, np.ones((8, 1)), weights)
        assert values.shape == (1 + number + 50, 1) and 0 <= values[0] <= 0.5
        assert np.isnan(statistics.interval(values, number)).all()
        assert np.isnan(statistics.standard_error(values, number)).all()
    names = np.repeat(np.arange(12), 3)
    weights = statistics.cluster_weights(names, 300, 0)
    ones = np.ones((36, 1))
    for hits in (ones, 0 * ones):  # a rate of one or none throughout has no width
        values = statistics.ratio(hits, ones, weights)
        assert [float(end[0]) for end in statistics.interval(values, 12)] == [hits[0, 0]] * 2
    few = ((names < 5) * 1.0)[:, None]  # counted in five clusters of twelve: five, not twelve
    values = statistics.ratio(few * (names == 0)[:, None], few, weights)
    low, high = statistics.interval(values, 12, np.array([5]))
    reach = stats.t.ppf(0.975, 4) * np.std([1, 0, 0, 0, 0], ddof=1) / 5**0.5
    assert (low[0], high[0]) == (pytest.approx(0.2 - reach), pytest.approx(0.2 + reach))
    lost = values.copy()
    lost[13::2] = np.nan  # draws in which nothing is counted are left out
    assert statistics.interval(lost, 12)[1] == pytest.approx(
        statistics.interval(values, 12)[1], abs=0.1
    )


def test_interval_is_wider_for_clustered_samples():
    hits = np.repeat(np.random.default_rng(0).integers(0, 2, 40), 10)[:, None].astype(float)
    widths = []
    for conditions in (np.repeat(np.arange(40), 10), np.arange(400)):
        weights = statistics.cluster_weights(conditions, 400, seed=0)
        values = statistics.ratio(hits, np.ones_like(hits), weights)
        low, high = statistics.interval(values, len(set(conditions)))
        widths.append(float(high[0] - low[0]))
    assert widths[0] > 2 * widths[1]


def test_ratio_by_hand():
    hits, counts = np.array([[1.0], [0.0], [2.0]]), np.array([[2.0], [0.0], [2.0]])
    weights = np.array([[1, 1, 1], [2, 0, 0], [0, 5, 0]])
    found = statistics.ratio(hits, counts, weights)[:, 0]
    assert found[:2].tolist() == [0.75, 0.5] and np.isnan(found[2])


# ---------------------------------------------------------------- tests


def test_p_and_power_are_those_of_a_t_test():
    rng = np.random.default_rng(0)
    sample = rng.normal(0.4, 1, 20)
    error = sample.std(ddof=1) / 20**0.5
    wanted = stats.ttest_1samp(sample, 0.1).pvalue
    assert statistics.p_value(sample.mean(), 0.1, error, 19) == pytest.approx(wanted)
    smallest = statistics.smallest_detectable(0.5, 19)
    assert smallest == pytest.approx(0.5 * (stats.t.ppf(0.975, 19) + stats.t.ppf(0.8, 19)))
    assert statistics.power(smallest, 0.5, 19) == pytest.approx(0.8)
    for effect in (0.5, 1.0, 1.5):  # the usual shift of t stays near the noncentral one
        exact = TTestPower().power(effect / 0.5 / 20**0.5, 20, 0.05)
        assert statistics.power(-effect, 0.5, 19) == pytest.approx(exact, abs=0.03)
    unanimous = binomtest(10, 10).pvalue  # all ten clusters say the same: a sign test
    assert statistics.p_value(1.0, 0.0, 0.0, 9) == pytest.approx(unanimous)
    assert statistics.p_value(1.0, 1.0, 0.0, 9) == 1
    assert np.isnan(statistics.p_value(1.0, 0.0, float("nan"), 0))


def test_holm_by_hand_and_as_statsmodels():
    raw = np.random.default_rng(0).beta(0.3, 2, 40)
    assert statistics.holm(raw) == pytest.approx(multipletests(raw, method="holm")[1])
    adjusted = statistics.holm([0.01, float("nan"), 0.04, 0.03])
    assert adjusted[[0, 2, 3]].tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert np.isnan(adjusted[1]) and np.isnan(statistics.holm([float("nan")])).all()


# ---------------------------------------------------------------- two or more raters

N = None
# Gwet, Handbook of Inter-Rater Reliability (2014), p. 120: 12 items, 4 raters, missing ratings
FOUR = pd.DataFrame(
    {
        "one": [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
        "two": [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, N],
        "three": [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 3],
        "four": [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
    }
)
# the same book: 100 pregnancies by two abstractors, as a table
ABSTRACTORS = [[13, 0, 0], [0, 20, 7], [0, 4, 56]]


def rating_counts(ratings, levels):
    """How many raters chose each level, (items, levels)."""
    return np.stack([(ratings == level).sum(axis=1) for level in levels], axis=1)


def ac1(counts, weights=None):
    return statistics.gwet_ac(counts, np.ones((1, len(counts))) if weights is None else weights)


def two_raters(table):
    cells = [(a, b) for a, row in enumerate(table) for b, n in enumerate(row) for _ in range(n)]
    return pd.DataFrame(cells, columns=["one", "two"])


def of(frame, coefficient, part="all"):
    return frame[(frame.coefficient == coefficient) & (frame.slice == part)].iloc[0]


def test_ac1_by_hand_and_as_published():
    # by hand, two raters and two levels: 9 of 10 alike, p = (9.5 / 10, 0.5 / 10)
    pair = pd.DataFrame({"one": ["y"] * 10, "two": ["y"] * 9 + ["n"]})
    chance = 2 * 0.95 * 0.05
    found = ac1(rating_counts(pair, ["y", "n"]))
    assert found == pytest.approx([(0.9 - chance) / (1 - chance)])
    assert statistics.agreement(pair.one, pair.two)["kappa"] == 0  # what AC1 is there to avoid
    published = {0.77544: (FOUR, range(1, 6)), 0.84933: (two_raters(ABSTRACTORS), range(3))}
    for value, (ratings, levels) in published.items():
        found = ac1(rating_counts(ratings, levels))
        assert round(float(found[0]), 5) == value


def test_ac1_weighs_items_as_if_they_were_repeated():
    counts = rating_counts(FOUR, range(1, 6))
    times = np.array([3, 0, 1, 2, 1, 1, 0, 1, 4, 1, 2, 1])
    weighed = ac1(counts, times[None].astype(float))
    assert weighed == pytest.approx(ac1(np.repeat(counts, times, axis=0)))


def test_fleiss_as_published():
    # the worked example of Wikipedia's article: 14 raters, 10 items, 5 levels; kappa 0.210
    counts = np.array(
        [
            [0, 0, 0, 0, 14],
            [0, 2, 6, 4, 2],
            [0, 0, 3, 5, 6],
            [0, 3, 9, 2, 0],
            [2, 2, 8, 1, 1],
            [7, 7, 0, 0, 0],
            [3, 2, 6, 3, 0],
            [2, 5, 3, 2, 2],
            [6, 5, 2, 1, 0],
            [0, 2, 2, 3, 7],
        ]
    )
    ratings = pd.DataFrame([np.repeat(range(5), times) for times in counts])
    found = statistics.reliability(ratings, range(5), draws=20)
    assert round(of(found, "fleiss").value, 3) == 0.210


def test_reliability_has_every_slice_and_coefficient():
    rng = np.random.default_rng(0)
    levels = ["not_met", "unknown", "met"]
    first = rng.integers(0, 3, 300)
    second = np.where(rng.random(300) < 0.8, first, rng.integers(0, 3, 300))
    codes = pd.DataFrame({"first": first, "second": second})
    by = np.where(np.arange(300) < 100, "safety", "proficiency")
    frame = statistics.reliability(codes.map(lambda n: levels[n]), levels, by, draws=60)
    assert list(dict.fromkeys(frame.slice)) == ["safety", "proficiency", "all"]
    for part, mask in {"safety": by == "safety", "all": by != ""}.items():
        a, b = first[mask], second[mask]
        counts = rating_counts(codes[mask], range(3))
        assert of(frame, "fleiss", part).value == pytest.approx(fleiss_kappa(counts))
        assert of(frame, "ac1", part).value == pytest.approx(ac1(counts)[0])
        assert of(frame, "observed", part).value == pytest.approx((a == b).mean())
        assert of(frame, "observed", part).n == mask.sum()
    assert ((frame.low < frame.value) & (frame.value < frame.high)).all()
    again = statistics.reliability(codes.map(lambda n: levels[n]), levels, by, draws=60)
    pd.testing.assert_frame_equal(frame, again)


def test_intervals_are_those_of_a_slow_bootstrap_and_wider_for_conditions():
    rng = np.random.default_rng(1)
    first = np.repeat(rng.integers(0, 2, 40), 5)
    # a condition agrees or differs as a whole
    second = np.where(np.repeat(rng.random(40) < 0.7, 5), first, 1 - first)
    ratings = pd.DataFrame({"first": first, "second": second})
    found = statistics.reliability(ratings, range(2), draws=600)
    slow = {"fleiss": [], "ac1": []}
    for _ in range(600):
        drawn = ratings.iloc[rng.integers(0, len(ratings), len(ratings))]
        counts = rating_counts(drawn, range(2))
        slow["fleiss"].append(fleiss_kappa(counts))
        slow["ac1"].append(float(ac1(counts)[0]))
    by_condition = statistics.reliability(
        ratings, range(2), conditions=np.repeat(np.arange(40), 5), draws=600
    )
    for name, values in slow.items():
        fast = of(found, name)
        assert [fast.low, fast.high] == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.03)
        wide = of(by_condition, name)
        assert wide.high - wide.low > 1.5 * (fast.high - fast.low) and wide.value == fast.value


# six psychiatrists' diagnoses of thirty patients (Fleiss, Psychol Bull 76, 1971): how many of the
# six gave each of depression, personality disorder, schizophrenia, neurosis, other
FLEISS = """
00060 03003 01401 00006 03030 20400 00402 20310 20040 00006 10050 11040 03300 10050 02031
00501 30012 51000 02040 10203 00006 01050 02013 20040 10041 05010 40002 02040 10500 00006
"""
FLEISS = np.array([[int(n) for n in patient] for patient in FLEISS.split()])


def test_coefficients_as_published():
    assert FLEISS.sum(axis=1).tolist() == [6] * 30
    one = np.ones((1, 30))
    assert round(float(statistics.fleiss_kappa(FLEISS, one)[0]), 3) == 0.430
    # its first fifteen patients are an example of irrCAC, the package of Gwet's book (2014)
    levels = range(5)
    ac2 = statistics.gwet_ac(FLEISS[:15], one[:, :15], statistics.likeness(levels, "quadratic"))
    assert round(float(ac2[0]), 6) == 0.483744
    # Cohen (1968): .492 and, with his own weights of disagreements, .348
    table = two_raters([[88, 14, 18], [10, 40, 10], [2, 6, 12]]).to_numpy()
    first, second = (table[:, rater, None] == np.arange(3) for rater in (0, 1))
    one, away = np.ones((1, 200)), np.array([[0, 1, 3], [1, 0, 6], [3, 6, 0]])
    kappas = [
        statistics.cohen_kappa(first, second, one, alike) for alike in (np.eye(3), 1 - away / 6)
    ]
    assert [round(float(kappa[0]), 3) for kappa in kappas] == [0.492, 0.348]


PUBLISHED = {  # Krippendorff (2011) for his own example; Gwet (2014) and irrCAC for the rest
    "observed": 0.81818,
    "fleiss": 0.76117,
    "ac1": 0.77544,
    "ac2_linear": 0.859,
    "ac2_quadratic": 0.914,
    "alpha_nominal": 0.743,
    "alpha_ordinal": 0.815,
}
OF_TWO = {
    "cohen": 0.796409,
    "cohen_quadratic": 0.892157,
    "ac2_linear": 0.900,
    "ac2_quadratic": 0.940237,
    "alpha_nominal": 0.797258,
}


def test_one_frame_has_the_published_values_with_missing_ratings():
    for ratings, levels, published in (
        (FOUR, range(1, 6), PUBLISHED),
        (two_raters(ABSTRACTORS), range(3), OF_TWO),
    ):
        frame = statistics.reliability(ratings, levels, draws=10, every=True, ordered=True)
        for coefficient, value in published.items():
            digits = len(str(value)) - 2
            assert of(frame, coefficient).value == pytest.approx(value, abs=0.5 * 10**-digits)


def test_n_says_of_how_many_items_each_coefficient_is():
    frame = statistics.reliability(FOUR, range(1, 6), draws=40, every=True)
    counted = {name: of(frame, name).n for name in ("observed", "fleiss", "ac1", "alpha_nominal")}
    # the twelfth item has one rating: it informs chance, and has nothing to agree with
    assert counted == {"observed": 11, "fleiss": 12, "ac1": 12, "alpha_nominal": 11}
    both = frame[frame.coefficient == "cohen"].set_index("raters").n
    assert both["one, two"] == 9 and both["three, four"] == 10 and len(both) == 6
    # by hand: 2 of 3 agree; the mean share of Y over all six, one of them halved, is a quarter
    gaps = pd.DataFrame({"ann": list("YYNNNN"), "bob": [*"YNN", None, None, None]})
    found = of(statistics.reliability(gaps, ["N", "Y"], draws=20), "ac1")
    chance = 2 * 0.25 * 0.75
    assert found.value == pytest.approx((2 / 3 - chance) / (1 - chance)) and found.n == 6


def test_weighted_draws_are_items_repeated():
    counts, times = rating_counts(FOUR, range(1, 6)), np.array([3, 0, 1, 2, 1, 1, 0, 1, 4, 1, 2, 1])
    repeated, one = np.repeat(counts, times, axis=0), np.ones((1, times.sum()))
    for of_counts in (
        statistics.fleiss_kappa,
        statistics.krippendorff_alpha,
        lambda *given: statistics.krippendorff_alpha(*given, True),
        lambda *given: statistics.gwet_ac(*given, statistics.likeness(range(5), "linear")),
    ):
        weighed = of_counts(counts, times[None].astype(float))
        assert weighed == pytest.approx(of_counts(repeated, one))


def test_one_level_throughout_and_gaps_of_two():
    alike = pd.DataFrame({"a": ["met"] * 5, "b": ["met"] * 5})
    frame = statistics.reliability(alike, ["not_met", "met"], draws=20, every=True)
    assert of(frame, "ac1").value == of(frame, "ac1").low == 1
    for undefined in ("fleiss", "cohen", "alpha_nominal"):
        assert np.isnan(of(frame, undefined).value)
    assert statistics.agreement(["Y", None, "N"], ["Y", "N", "N"]) == {
        "n": 2,
        "observed": 1.0,
        "kappa": 1.0,
    }
    with pytest.raises(KitError, match="no item was rated by both"):
        statistics.agreement(["Y", None], [None, "N"])


def test_strange_and_too_few_ratings_are_clear_errors():
    ratings = pd.DataFrame({"a": ["met", "perhaps"], "b": ["met", "met"]})
    with pytest.raises(KitError, match="rating 'perhaps' is none of not_met, met"):
        statistics.reliability(ratings, ["not_met", "met"])
    with pytest.raises(KitError, match="all: no item has two ratings"):
        statistics.reliability(pd.DataFrame({"a": ["met"], "b": [None]}), ["not_met", "met"])
    with pytest.raises(KitError, match="two levels or more"):
        ac1(np.array([[2], [2]]))


@real_data
def test_three_physicians_on_kqa():
    table = pd.DataFrame([row.labels for row in schemas.read("kqa_labels")])
    frame = statistics.reliability(table, ["Contradiction", "Neutral", "Entailment"], draws=100)
    fleiss = of(frame, "fleiss")
    assert fleiss.n == 399 and round(fleiss.value, 3) == 0.719
    assert round(of(frame, "observed").value, 3) == 0.855
    assert 0.6 < fleiss.low < fleiss.value < fleiss.high < 0.8
