"""Rules over P(met) and chance: by hand, by counting every outcome, whatever the order."""

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promedical_utils.core.records import Candidate, Criterion, Instruction, Rubric
from promedical_utils.core.workspace import KitError
from promedical_utils.evaluation import scorers
from promedical_utils.evaluation.scorers import scored_by_rule
from promedical_utils.evaluation.scorers.controls import chance
from promedical_utils.rubric import scoring
from promedical_utils.rubric.preferences import Group

PARTS = [
    ("p1", "proficiency", 0.7),
    ("p2", "proficiency", 0.3),
    ("e1", "excellence", 0.0),
    ("s1", "safety", 0.0),
]


def rubric(parts=PARTS, kinds=None):
    criteria = [
        Criterion(
            id=i, dimension=d, text=f"gives {i}", weight=w, kind=(kinds or {}).get(i, "unspecified")
        )
        for i, d, w in parts
    ]
    return Rubric(instruction_id="i", criteria=criteria, status="gold", round=0)


def group(answers=("a", "b"), texts=None):
    asked = Instruction(
        id="i",
        category="c",
        specialty="s",
        source="test",
        difficulty=5,
        messages=[{"role": "user", "content": "How much?"}],
    )
    given = tuple(
        Candidate(id=n, instruction_id="i", generator="g", text=(texts or {}).get(n, f"answer {n}"))
        for n in answers
    )
    return Group(asked, tuple(rubric().criteria), given, {})


def likely(values, answer="a"):
    """Predictions of one answer: P(met) of p1, p2, e1, s1."""
    rows = [("i", answer, c, 0.0, p, p >= 0.5) for (c, *_), p in zip(PARTS, values, strict=True)]
    return pd.DataFrame(rows, columns=scorers.POINTS).astype({"met": "boolean"})


def test_healthbench_points_by_hand():
    # points 10, round(10 * .3 / .7) = 4, 3; positive 17; a violation is -10
    score = scoring.healthbench_points
    everything = {i: "met" for i, *_ in PARTS}
    assert score(rubric(), everything) == 1
    assert score(rubric(), {**everything, "p2": "not_met"}) == pytest.approx(13 / 17)
    assert score(rubric(), {**everything, "p1": "unknown"}) == pytest.approx(7 / 17)
    for fails in ("not_met", "unknown"):  # the veto fails closed
        assert score(rubric(), {**everything, "s1": fails}) == pytest.approx(7 / 17)
    assert score(rubric(), {}) == pytest.approx(-10 / 17)  # an example may be negative


def test_a_penalty_of_healthbench_takes_points_unless_avoided():
    # kind penalty: met means that the mistake is not made; points 10 and -4; positive 10 + 3
    penal = rubric(kinds={"p2": "penalty"})
    safe = {"p1": "met", "p2": "met", "e1": "met", "s1": "met"}
    assert scoring.healthbench_points(penal, safe) == 1
    assert scoring.healthbench_points(penal, {**safe, "p2": "not_met"}) == pytest.approx(9 / 13)
    only = rubric([("p1", "proficiency", 1.0)], {"p1": "penalty"})
    assert np.isnan(scoring.healthbench_points(only, {"p1": "met"}))
    with pytest.raises(KitError, match="does not have"):
        scoring.healthbench_points(only, {"zz": "met"})


def test_healthbench_and_orbit_weigh_a_violation_unlike():
    # five equal weights: 10 points each here, 2 each there, and -10 for the violation in both
    fifths = rubric([*((f"p{n}", "proficiency", 0.2) for n in range(5)), ("s1", "safety", 0.0)])
    unsafe = {f"p{n}": "met" for n in range(5)}
    assert scoring.healthbench_points(fifths, unsafe) == pytest.approx(40 / 50)
    assert scoring.orbit_signed(fifths, unsafe) == pytest.approx(0)


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.sampled_from(sorted(scoring.RULES)))
def test_a_rule_is_its_expectation_over_all_verdicts(values, name):
    expected = 0.0
    for outcome in product((True, False), repeat=len(values)):
        chance = np.prod([p if met else 1 - p for p, met in zip(values, outcome, strict=True)])
        said = {i: "met" if met else "not_met" for (i, *_), met in zip(PARTS, outcome, strict=True)}
        expected += chance * scoring.RULES[name](rubric(), said)
    frame = scored_by_rule(name, likely(values), [group("a")])
    assert list(frame.columns) == scorers.PREDICTED and list(frame.criterion_id) == [""]
    assert frame.score.iloc[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", sorted(scoring.RULES))
def test_sure_verdicts_give_the_rule_itself_and_nan_fails_closed(name):
    said = {"p1": "met", "p2": "not_met", "e1": "met", "s1": "met"}
    rule = scoring.RULES[name]
    sure = scored_by_rule(name, likely([1, 0, 1, 1]), [group("a")])
    assert sure.score.iloc[0] == pytest.approx(rule(rubric(), said))
    open_ = scored_by_rule(name, likely([1, 0, 1, np.nan]), [group("a")])
    assert open_.score.iloc[0] == pytest.approx(rule(rubric(), {**said, "s1": "not_met"}))


def test_chance_has_predictions_alone():
    frame = chance([group()], 3)
    assert list(frame.columns) == scorers.PREDICTED
    assert set(frame.scorer) == {"random"} and frame.met.dtype == "boolean"


def test_chance_hangs_on_the_texts_alone():
    one = chance([group("ab")], 3)
    turned = replace(group("ba"), criteria=group().criteria[::-1])
    two = chance([turned], 3)
    keys = ["candidate_id", "criterion_id"]
    pd.testing.assert_frame_equal(
        one.sort_values(keys, ignore_index=True), two.sort_values(keys, ignore_index=True)
    )
    same = chance([group("ab", {"a": "the same", "b": "the same"})], 3)
    assert (
        same[same.candidate_id == "a"].score.to_numpy()
        == same[same.candidate_id == "b"].score.to_numpy()
    ).all()
    assert (chance([group("ab")], 4).score != one.score).all()


def test_chance_is_uniform():
    drawn = chance([group([f"c{n}" for n in range(500)])], 0)
    assert len(drawn) == 2000 and drawn.score.between(0, 1, inclusive="left").all()
    assert abs(drawn.score.mean() - 0.5) < 0.03 and abs(drawn.met.mean() - 0.5) < 0.04
    assert (drawn.met == (drawn.probability >= 0.5)).all()
