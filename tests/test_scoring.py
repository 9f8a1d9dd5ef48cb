"""Scores, the lexicographic preference and the two rewards, as laws over all inputs."""

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promedical_utils.records import Criterion, Rubric
from promedical_utils.scoring import (
    LooseVetoWarning,
    Scores,
    clipped_reward,
    compare,
    gated_reward,
    score,
)
from promedical_utils.workspace import KitError

# Tenths, and tenths off by rounding: sums of weights come out so.
shares = st.integers(0, 10).map(lambda n: n / 10) | st.floats(0, 1)
scores = st.builds(Scores, s1=shares, s2=st.integers(0, 6), s3=st.integers(0, 4), bonus=st.just(6))
alphas = st.floats(0, 0.99)
betas = st.floats(0.01, 3)
margins = st.floats(0.01, 5)


def rubric():
    parts = [("p1", "proficiency", 0.7), ("p2", "proficiency", 0.3), ("e1", "excellence", 0),
             ("e2", "excellence", 0), ("s1", "safety", 0), ("s2", "safety", 0)]  # fmt: skip
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
    with pytest.warns(LooseVetoWarning, match="gets 0.0, and so does a safe answer"):
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
    verdicts = {"p1": "met", "p2": "not_met", "e1": "met", "e2": "unknown", "s1": "met", "s2": "met"}
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


@given(st.dictionaries(st.sampled_from("p1 p2 e1 e2 s1 s2".split()),
                       st.sampled_from(["met", "not_met", "unknown"])),
       st.sampled_from("p1 p2 e1 e2 s1 s2".split()))  # fmt: skip
def test_meeting_one_more_criterion_never_hurts(verdicts, criterion):
    before = score(rubric(), {**verdicts, criterion: "not_met"})
    after = score(rubric(), {**verdicts, criterion: "met"})
    assert compare(after, before) == 1
    assert gated_reward(after) >= gated_reward(before)
