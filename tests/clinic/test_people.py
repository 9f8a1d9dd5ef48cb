"""Judge, physicians and adjudicator: the agreement that is set is the agreement that comes out."""

import random
from itertools import product

import pytest

from promedical_utils.clinic.people import Judge, Panel, Physician
from promedical_utils.core.workspace import KitError

RATES = {"dose": 0.5, "avoid": 0.4, "review": 0.3, "empathy": 0.2, "danger": 0.05}


def asked(n, seed=0):
    """(candidate, criterion, kind, truth) of n verdicts, kinds failing at unlike rates."""
    rng = random.Random(seed)
    rows = []
    for number in range(n):
        kind = rng.choice(list(RATES))
        truth = "unknown" if rng.random() < 0.02 else "met"
        truth = "not_met" if rng.random() < RATES[kind] else truth
        rows.append((f"a{number // 7}", f"c{number % 7}", kind, truth))
    return rows


def fitted(agreement=0.9):
    reference = [(kind, truth) for *_, kind, truth in asked(8000, seed=1)]
    return Judge.fit(agreement, reference, {"avoid"}, seed=3)


@pytest.mark.parametrize("agreement", [0.932, 0.9, 0.85])
def test_judge_agrees_as_set_and_lets_two_fifths_of_the_risks_pass(agreement):
    judge, rows = fitted(agreement), asked(20000)
    said = [judge.verdict(*row) for row in rows]
    wrong = [(row, v) for row, v in zip(rows, said, strict=True) if v != row[3]]
    assert 1 - len(wrong) / len(rows) == pytest.approx(agreement, abs=0.005)
    risks = [v for r, v in zip(rows, said) if r[2] == "avoid" and r[3] == "not_met"]
    assert risks.count("met") / len(risks) == pytest.approx(0.4, abs=0.04)


def test_judge_is_lenient_where_told_and_only_there():
    judge = Judge(frozenset({"avoid"}), systematic=0.3, random=0.04, seed=3)
    rows = [row for row in asked(20000) if row[3] == "not_met"]
    let_pass = {
        kind: sum(judge.verdict(*r) == "met" for r in rows if r[2] == kind)
        / sum(r[2] == kind for r in rows)
        for kind in RATES
    }
    assert let_pass["avoid"] == pytest.approx(judge.systematic, abs=0.05)
    assert max(rate for kind, rate in let_pass.items() if kind != "avoid") < 0.12


def test_verdicts_depend_on_what_is_asked_and_on_nothing_else():
    judge, rows = fitted(), asked(500)
    forward = {r: judge.verdict(*r) for r in rows}
    again = fitted()
    for row in random.Random(5).sample(rows, len(rows)):
        assert judge.verdict(*row) == forward[row] == again.verdict(*row)
    other = Judge(judge.lenient, judge.systematic, judge.random, seed=4)
    assert any(other.verdict(*r) != v for r, v in forward.items())


def test_a_perfect_judge_and_impossible_ones():
    perfect = Judge.fit(1.0, [("dose", "met")], set())
    assert all(perfect.verdict(*row) == row[3] for row in asked(300))
    with pytest.raises(KitError, match="40% pass; lower judge_agreement"):
        Judge.fit(0.95, [("dose", "met")] * 4 + [("dose", "not_met")], {"dose"})
    with pytest.raises(KitError, match="none given"):
        Judge.fit(0.9, [], {"dose"})
    with pytest.raises(KitError, match="'perhaps' is none of"):
        perfect.verdict("a", "c", "dose", "perhaps")


def test_physicians_agree_with_the_truth_as_set_and_err_apart():
    first, second = Panel(0.9, seed=2).physicians
    rows = asked(20000)
    ones, twos = ([p.verdict(*row) for row in rows] for p in (first, second))
    for said in (ones, twos):
        right = sum(v == row[3] for v, row in zip(said, rows, strict=True))
        assert right / len(rows) == pytest.approx(0.9, abs=0.01)
    both = sum(a == b for a, b in zip(ones, twos, strict=True)) / len(rows)
    assert both == pytest.approx(0.9**2 + 0.1**2, abs=0.01)  # independent errors


@pytest.mark.parametrize("truth", [-2, -1, 0, 1, 2])
def test_grades_have_no_position_bias_and_stay_on_the_scale(truth):
    physician, right = Physician("p", 0.8, 1), 0
    for n in range(2000):
        grade = physician.grade(f"a{n}", f"b{n}", truth)
        assert grade == -physician.grade(f"b{n}", f"a{n}", -truth)
        assert -2 <= grade <= 2 and abs(grade - truth) <= 1
        right += grade == truth
    assert right / 2000 == pytest.approx(0.8, abs=0.03)


def test_adjudicator_keeps_consent_and_settles_the_rest():
    adjudicator, verdicts = Panel(0.9, seed=1, error=0.1), ("met", "not_met", "unknown")
    for a, b, truth in product(verdicts, repeat=3):
        settled = [adjudicator.settle((f"x{n}", "c"), a, b, truth) for n in range(300)]
        if a == b:
            assert set(settled) == {a}
        else:
            assert set(settled) <= {a, b, truth}
            assert settled.count(truth) / 300 == pytest.approx(0.9, abs=0.06)
    assert adjudicator.settle(("a", "b"), 1, 2, 2) == adjudicator.settle(("b", "a"), 1, 2, 2)
    sure = Panel(0.9, error=0.0)
    assert sure.settle(("a", "c"), "met", "not_met", "not_met") == "not_met"


def test_a_panel_says_what_both_say_or_what_is_settled():
    made = Panel(0.8, seed=3, error=0.0)
    one, two = made.physicians
    said = {}
    for n in range(300):
        key = (f"a{n}", f"c{n}", "dose_limit", ("met", "not_met")[n % 2])
        votes = one.verdict(*key), two.verdict(*key)
        agreed = votes[0] if votes[0] == votes[1] else key[-1]  # an adjudicator without errors
        assert made.verdict(*key) == agreed
        said[votes[0] == votes[1], agreed == key[-1]] = True
    assert said.keys() == {(True, True), (True, False), (False, True)}
