"""Scores, the lexicographic preference and the two rewards, as laws over all inputs."""

import math
import warnings
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promedical_utils.core.records import Criterion, Rubric
from promedical_utils.core.workspace import KitError
from promedical_utils.rubric.scoring import (
    Scores,
    clipped_reward,
    compare,
    expected_key,
    gated_reward,
    healthbench_points,
    is_met,
    linear,
    orbit_signed,
    ranks,
    rar_explicit,
    score,
)

# Tenths, and tenths off by rounding: sums of weights come out so.
shares = st.integers(0, 10).map(lambda n: n / 10) | st.floats(0, 1)
scores = st.builds(Scores, s1=shares, s2=st.integers(0, 6), s3=st.integers(0, 4), bonus=st.just(6))
alphas = st.floats(0, 0.99)
betas = st.floats(0.01, 3)
margins = st.floats(0.01, 5)


def rubric():
    parts = [
        ("p1", "proficiency", 0.7),
        ("p2", "proficiency", 0.3),
        ("e1", "excellence", 0),
        ("e2", "excellence", 0),
        ("s1", "safety", 0),
        ("s2", "safety", 0),
    ]
    criteria = [Criterion(id=i, dimension=d, text=i, weight=w) for i, d, w in parts]
    return Rubric(instruction_id="i", criteria=criteria, status="gold", round=0)


@given(scores, scores)
def test_order_is_total_and_antisymmetric(a, b):
    assert compare(a, b) in (-1, 0, 1)
    assert compare(a, b) == -compare(b, a)
    assert compare(a, a) == 0


@given(scores, scores, scores)
def test_order_is_transitive(a, b, c):
    a, b, c = sorted([a, b, c], key=lambda s: s.key)
    assert compare(a, b) <= 0 and compare(b, c) <= 0 and compare(a, c) <= 0
    if compare(a, b) == 0 and compare(b, c) == 0:  # ties are an equivalence
        assert compare(a, c) == 0


@given(scores, scores)
def test_order_is_the_written_one(a, b):
    if a.s3 != b.s3:
        assert compare(a, b) == (1 if a.s3 < b.s3 else -1)
    elif abs(a.s1 - b.s1) > 1e-8:
        assert compare(a, b) == (1 if a.s1 > b.s1 else -1)
    elif a.s1 == b.s1:
        assert compare(a, b) == (a.s2 > b.s2) - (a.s2 < b.s2)


def test_rounding_of_a_sum_is_a_tie():
    assert compare(Scores(0.1 + 0.2, 1, 0), Scores(0.3, 1, 0)) == 0


@given(scores, scores, alphas, betas, margins)
def test_no_gain_lifts_the_answer_with_more_violations(a, b, alpha, beta, margin):
    low, high = sorted([a, b], key=lambda s: s.s3)
    if low.s3 == high.s3:
        return
    best = Scores(1.0, 10**6, high.s3)
    worst = Scores(0.0, 0, low.s3)
    terms = {"alpha": alpha, "beta": beta, "lam": 1 + beta + margin}
    for safer, unsafer in ((low, high), (worst, best)):
        assert compare(safer, unsafer) == 1
        assert gated_reward(safer, **terms) > gated_reward(unsafer, **terms)


@given(scores, alphas, betas, margins)
def test_gated_reward_by_hand(s, alpha, beta, margin):
    lam = 1 + beta + margin
    inside = s.s1 + alpha * s.s2
    clipped = 0 if inside < 0 else 1 + beta if inside > 1 + beta else inside
    assert gated_reward(s, alpha, beta, lam) == pytest.approx(clipped - lam * s.s3)


def test_clipped_reward_at_equality_warns_and_ties():
    unsafe, empty = Scores(1.0, 9, 1), Scores(0.0, 0, 0)
    with pytest.warns(UserWarning, match="gets 0.0, and so does a safe answer"):
        tied = clipped_reward(unsafe, 0.1, 0.3, 1.3), clipped_reward(empty, 0.1, 0.3, 1.3)
    assert tied[0] == pytest.approx(tied[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert clipped_reward(unsafe, 0.1, 0.3, 1.4) < clipped_reward(empty, 0.1, 0.3, 1.4)


@pytest.mark.parametrize("lam", [1.3, 1.0, 0.0, 1.3 + 1e-12, float("nan")])
def test_gated_reward_refuses_a_loose_veto(lam):
    with pytest.raises(KitError, match="raise lambda"):
        gated_reward(Scores(1.0, 0, 0), 0.1, 0.3, lam)


def test_clipped_reward_refuses_less_than_equality():
    with pytest.raises(KitError, match="unsafe answer could win"):
        clipped_reward(Scores(1.0, 0, 0), 0.1, 0.3, 1.29)


@pytest.mark.parametrize("terms", [{"alpha": 1.0}, {"alpha": -0.1}, {"beta": 0.0}, {"beta": -1.0}])
@pytest.mark.parametrize("reward", [clipped_reward, gated_reward])
def test_terms_outside_the_method_are_refused(reward, terms):
    with pytest.raises(KitError, match="alpha < 1"):
        reward(Scores(1.0, 0, 0), **{"lam": 9.0, **terms})


def test_scores_by_hand():
    verdicts = {
        "p1": "met",
        "p2": "not_met",
        "e1": "met",
        "e2": "unknown",
        "s1": "met",
        "s2": "met",
    }
    assert score(rubric(), verdicts) == Scores(s1=0.7, s2=1, s3=0, bonus=2)


@pytest.mark.parametrize("verdict", ["unknown", "not_met", "", "MET", None, float("nan"), True, 1])
def test_anything_but_met_is_a_violation_and_earns_nothing(verdict):
    all_met = {c.id: "met" for c in rubric().criteria}
    assert score(rubric(), {**all_met, "s1": verdict}).s3 == 1
    assert score(rubric(), {**all_met, "p2": verdict}).s1 == pytest.approx(0.7)
    assert score(rubric(), {**all_met, "e1": verdict}).s2 == 1


def test_a_missing_verdict_is_a_violation():
    assert score(rubric(), {}) == Scores(0.0, 0, 2, 2)


def test_a_verdict_on_a_strange_criterion_is_refused():
    with pytest.raises(KitError, match="does not have.*s9"):
        score(rubric(), {"s9": "met"})


@given(
    st.dictionaries(
        st.sampled_from("p1 p2 e1 e2 s1 s2".split()), st.sampled_from(["met", "not_met", "unknown"])
    ),
    st.sampled_from("p1 p2 e1 e2 s1 s2".split()),
)
def test_meeting_one_more_criterion_never_hurts(verdicts, criterion):
    before = score(rubric(), {**verdicts, criterion: "not_met"})
    after = score(rubric(), {**verdicts, criterion: "met"})
    assert compare(after, before) == 1
    assert gated_reward(after) >= gated_reward(before)


# ---------------------------------------------------------------- the rewards of the systems
# compared

SAID = st.sampled_from(["met", "not_met", "unknown"])


def made(weights, bonus, safety):
    """A rubric of proficiency criteria p0, p1, ... and numbers of e0, ... and s0, ...."""
    parts = [
        *((f"p{n}", "proficiency", w) for n, w in enumerate(weights)),
        *((f"e{n}", "excellence", 0) for n in range(bonus)),
        *((f"s{n}", "safety", 0) for n in range(safety)),
    ]
    criteria = [Criterion(id=i, dimension=d, text=i, weight=w) for i, d, w in parts]
    return Rubric(instruction_id="i", criteria=criteria, status="gold", round=0)


@st.composite
def judged(draw):
    """(rubric, verdicts), some criteria without a verdict."""
    shares = draw(st.lists(st.integers(1, 9), min_size=1, max_size=6))
    weights = [n / sum(shares) for n in shares]
    rubric = made(weights, draw(st.integers(0, 4)), draw(st.integers(0, 4)))
    ids = [c.id for c in rubric.criteria]
    return rubric, draw(st.dictionaries(st.sampled_from(ids), SAID))


def test_rar_by_hand():
    # essential .7 (average is .5), important .3; weights 1.0 + 0.7 + 2 * 0.3 + 2 * 0.9
    verdicts = {
        "p1": "met",
        "p2": "not_met",
        "e1": "met",
        "e2": "unknown",
        "s1": "met",
        "s2": "met",
    }
    assert rar_explicit(rubric(), verdicts) == pytest.approx((1.0 + 0.3 + 0.9 + 0.9) / 4.1)
    verdicts |= {"p1": "not_met", "p2": "met", "s2": "unknown"}  # an unknown pitfall earns nothing
    assert rar_explicit(rubric(), verdicts) == pytest.approx((0.7 + 0.3 + 0.9) / 4.1)
    assert rar_explicit(rubric(), {}) == 0


def test_rar_classes_of_equal_and_of_its_own_weights():
    # rounded as a file holds them, still all of average weight: essential, 1.0 each
    thirds = made([0.333333, 0.333333, 0.333334], 0, 1)
    assert rar_explicit(thirds, {"p0": "met"}) == pytest.approx(1 / 3.9)
    # RaR's own two classes, scaled to sum to 1, are found again
    own = [1.0, 1.0, 0.7, 1.0, 0.7]
    back = made([w / sum(own) for w in own], 0, 0)
    for n, weight in enumerate(own):
        assert rar_explicit(back, {f"p{n}": "met"}) == pytest.approx(weight / sum(own))


@given(judged())
def test_rar_is_a_share(case):
    rubric, verdicts = case
    assert 0 <= rar_explicit(rubric, verdicts) <= 1
    assert rar_explicit(rubric, {c.id: "met" for c in rubric.criteria}) == 1
    missed = {name: v if v == "met" else "unknown" for name, v in verdicts.items()}
    assert rar_explicit(rubric, missed) == rar_explicit(rubric, verdicts)


def test_orbit_by_hand():
    # points 7, 3, 1, 1: positive 12; a violation is -10
    all_met = {c.id: "met" for c in rubric().criteria}
    assert orbit_signed(rubric(), all_met) == 1
    assert orbit_signed(rubric(), {**all_met, "p2": "not_met", "e1": "unknown"}) == pytest.approx(
        8 / 12
    )
    assert orbit_signed(rubric(), {**all_met, "s1": "not_met"}) == pytest.approx(2 / 12)
    assert orbit_signed(rubric(), {**all_met, "s1": "unknown"}) == pytest.approx(2 / 12)
    assert orbit_signed(rubric(), {}) == pytest.approx(-20 / 12)
    # the least weight still has a point
    many = made([0.96] + [0.01] * 4, 0, 0)
    assert orbit_signed(many, {"p1": "met"}) == pytest.approx(1 / 14)


@given(judged())
def test_orbit_has_bounds_and_takes_ten_points_a_violation(case):
    rubric, verdicts = case
    kinds = [c.dimension for c in rubric.criteria]
    points = [max(1, round(10 * c.weight)) for c in rubric.criteria if c.dimension == "proficiency"]
    positive = sum(points) + kinds.count("excellence")
    found = orbit_signed(rubric, verdicts)
    assert -10 * kinds.count("safety") / positive <= found <= 1
    for c in rubric.criteria:
        if c.dimension == "safety":
            safe, unsafe = ({**verdicts, c.id: v} for v in ("met", "unknown"))
            lost = orbit_signed(rubric, safe) - orbit_signed(rubric, unsafe)
            assert lost == pytest.approx(10 / positive)


@given(judged())
def test_one_more_criterion_met_is_more_in_every_aggregate(case):
    rubric, verdicts = case
    for c in rubric.criteria:
        less, more = ({**verdicts, c.id: v} for v in ("not_met", "met"))
        assert rar_explicit(rubric, more) > rar_explicit(rubric, less)
        assert orbit_signed(rubric, more) > orbit_signed(rubric, less)


def test_neither_aggregate_is_a_veto():
    everything = {c.id: "met" for c in rubric().criteria}
    unsafe, empty = {**everything, "s1": "not_met"}, {"s1": "met", "s2": "met"}
    assert compare(score(rubric(), empty), score(rubric(), unsafe)) == 1
    for aggregate in (rar_explicit, orbit_signed):
        assert aggregate(rubric(), unsafe) > aggregate(rubric(), empty)


@pytest.mark.parametrize("aggregate", [rar_explicit, orbit_signed])
def test_aggregates_refuse_a_strange_criterion(aggregate):
    with pytest.raises(KitError, match="does not have.*s9"):
        aggregate(rubric(), {"s9": "met"})


# ---------------------------------------------------------------- places in a group

groups = st.lists(scores, max_size=8)


def lexicographic_ranks(scores):
    return ranks([s.key for s in scores])


def test_places_by_hand():
    a, b, c = Scores(1.0, 3, 1), Scores(0.2, 0, 0), Scores(0.2, 2, 0)
    assert lexicographic_ranks([a, b, c, b]) == pytest.approx([-1, 0, 1, 0])
    assert lexicographic_ranks([a]) == lexicographic_ranks([a, a])[:1] == [0]
    assert lexicographic_ranks([a, c]) == [-1, 1] and lexicographic_ranks([]) == []
    assert ranks([0.5, -2.0, 0.5, 7.0, 0.5]) == pytest.approx([0, -1, 0, 1, 0])


@given(groups)
def test_places_are_those_of_the_written_formula(group):
    found = lexicographic_ranks(group)
    for one, place in zip(group, found, strict=True):
        sides = [compare(one, other) for other in group]
        assert place == pytest.approx((sides.count(1) - sides.count(-1)) / max(1, len(group) - 1))
        assert -1 <= place <= 1
    assert math.fsum(found) == pytest.approx(0, abs=1e-9)
    for (a, x), (b, y) in combinations(zip(group, found), 2):
        assert (x > y) - (x < y) == compare(a, b)  # strictly monotone, and equal at ties


@given(groups.flatmap(lambda g: st.tuples(st.just(g), st.permutations(range(len(g))))))
def test_places_do_not_depend_on_the_order(case):
    group, order = case
    found = lexicographic_ranks(group)
    assert lexicographic_ranks([group[i] for i in order]) == [found[i] for i in order]


# ---------------------------------------------------------------- what is not known, and the order


@pytest.mark.parametrize("dimension", ["proficiency", "excellence", "safety"])
def test_unknown_is_a_violation_on_safety_and_no_verdict_elsewhere(dimension):
    assert is_met("met", dimension) is True and is_met("not_met", dimension) is False
    assert is_met("unknown", dimension) is (False if dimension == "safety" else None)


def test_the_expected_order_breaks_ties_of_verdicts():
    whole, names = rubric(), ["p1", "p2", "e1", "e2", "s1", "s2"]
    even = dict.fromkeys(names, 0.4)
    met = {"p1": True, "s1": True}

    def key(met=met, **likely):
        return expected_key(whole, met, even | likely)

    assert key()[:3] == Scores(0.7, 0, 1).key
    assert key(s2=0.5) > key(p2=0.9) > key(e2=0.9) > key()  # safety first, then S1, then S2
    assert key(dict.fromkeys(("s1", "s2"), True)) > key(p2=1.0, e1=1.0, s2=1.0)  # verdicts first
    assert key(s1=0.1, s2=0.7) == key(s1=0.7, s2=0.1)  # equal sums in another order


@pytest.mark.parametrize("rule", [rar_explicit, orbit_signed, healthbench_points])
def test_a_linear_rule_is_the_sum_of_what_each_criterion_adds(rule):
    whole = rubric()
    none, adds = linear(rule, whole)
    for met in (["p1", "s2"], ["e1"], ["p1", "p2", "e1", "e2", "s1", "s2"]):
        assert rule(whole, dict.fromkeys(met, "met")) == pytest.approx(
            none + sum(adds[name] for name in met)
        )
