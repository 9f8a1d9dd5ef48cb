"""How a reward goes wrong, by hand on prompts of our own and on a small clinic."""

import random

import pandas as pd
import pytest

from promedical_studies import testbed
from promedical_studies.testbed import Prompt
from promedical_utils import clinic
from promedical_utils.core import profiles
from promedical_utils.core.records import Criterion, Rubric

RUBRIC = Rubric(
    instruction_id="i",
    status="gold",
    round=0,
    criteria=[
        Criterion(id="p", dimension="proficiency", text="p", weight=0.6),
        Criterion(id="q", dimension="proficiency", text="q", weight=0.4),
        Criterion(id="e", dimension="excellence", text="e", weight=0),
        Criterion(id="s", dimension="safety", text="s", weight=0),
    ],
)
MET = {True: "met", False: "not_met"}


def prompt(*answers, words=(10, 10, 10)):
    """Answers as the criteria that they meet: "pqs" meets all but the bonus."""
    verdicts = [{c.id: MET[c.id in answer] for c in RUBRIC.criteria} for answer in answers]
    return Prompt(RUBRIC, list(words[: len(answers)]), verdicts, random.Random(0))


def values(test, given):
    return {(dose, measure.split(" (")[0]): value for dose, measure, value in test(given)}


def test_the_whole_rubric_chooses_the_best_and_gold_is_its_bench_score():
    found = values(testbed.rubric_dropout, prompt("pqe", "ps", "pqs"))
    assert found["100% of the criteria", "gold score of the chosen"] == pytest.approx(100 / 1.3)
    assert found["100% of the criteria", "chosen with a violation"] == 0


def test_a_criterion_is_suppressed_where_meeting_it_is_not_pushed_up():
    # only the unsafe answer has the bonus, so the veto reward pushes the bonus down
    found = values(testbed.suppressed_criteria, prompt("pqe", "pqs", "ps"))
    assert found["veto", "prompts with a suppressed criterion"] == 100
    alike = values(testbed.suppressed_criteria, prompt("pqs", "ps", "s"))
    assert alike["veto", "prompts with a suppressed criterion"] == 0


def test_a_cheaper_violation_is_chosen_and_never_at_the_papers_bound():
    found = values(testbed.lambda_dose, prompt("pqe", "ps", "s"))
    share = {dose: value for (dose, _), value in found.items()}
    # beside the most harmless answer, which meets nothing: 0 against 1.1 - lambda
    assert share["lambda 1"] == share["lambda 0.3"] == 100 and share["lambda 1.3"] == 0
    assert set(values(testbed.lambda_dose, prompt("pqe", "p")).values()) == {None}  # nothing safe


def test_merit_pushes_up_one_of_two_unsafe_answers_where_counts_alone_decide():
    found = values(testbed.all_vetoed, prompt("pqe", "p"))
    assert {dose: v for (dose, _), v in found.items()} == {
        "counted": 100,
        "expected": 0,
        "skipped": 0,
    }
    assert set(values(testbed.all_vetoed, prompt("pqs", "p")).values()) == {None}  # one alone


def test_an_open_judge_lets_violations_pass_and_a_closed_one_loses_safe_answers():
    many = Prompt(RUBRIC, [1] * 400, prompt(*["pqe", "s"] * 200).verdicts, random.Random(1))
    found = values(testbed.judge_fails_open, many)
    passes, lost = "violating answers that pass", "safe answers vetoed"
    assert found["0% fail, open", passes] == found["0% fail, closed", lost] == 0
    assert found["30% fail, open", passes] == pytest.approx(30, abs=10)
    assert found["30% fail, open", lost] == found["30% fail, closed", passes] == 0
    assert found["30% fail, closed", lost] == pytest.approx(30, abs=10)
    none = values(testbed.judge_fails_open, prompt("pqs", "ps"))
    assert none["0% fail, open", passes] is None  # nothing violates


def test_a_refusal_is_chosen_only_where_the_veto_fires_at_what_helps():
    helped = prompt("pqs", "ps")
    found = values(testbed.false_refusal, helped)
    assert found["veto on 0% of what is met", "refusals chosen"] == 0
    assert set(values(testbed.false_refusal, prompt("pqe")).values()) == {None}  # none helps


def test_words_are_chosen_where_the_reward_likes_them():
    found = values(testbed.length, prompt("pqs", "ps", words=(10, 90)))
    assert found["0 for 100 words", "words of the chosen"] == 10
    assert found["2 for 100 words", "words of the chosen"] == 90
    assert found["2 for 100 words", "gold score of the chosen"] == pytest.approx(60 / 1.3)


def test_every_test_has_a_row_a_dose_with_its_origin_and_the_same_twice():
    world = clinic.build(profiles.load("smoke"), sizes=(40, 1, 1, 1, 0))
    frame = testbed.measured(world, world.ids("train"), 30, 1)
    assert list(dict.fromkeys(frame.test)) == list(testbed.TESTS)
    assert frame.origin.notna().all() and frame.n.max() == 40
    assert (frame.low.isna() | (frame.low <= frame.value)).all()
    assert testbed.measured(world, world.ids("train"), 30, 1).equals(frame)


def test_notebook_05_writes_it_and_other_data_have_none(tmp_path, monkeypatch):
    monkeypatch.setattr(testbed, "PROMPTS", 8)
    profile = profiles.load("smoke", bootstrap=20)
    doses = testbed.write_testbed(profile, tmp_path)
    assert doses.test.nunique() == len(testbed.TESTS) and doses.n.max() == 8
    assert len(pd.read_csv(tmp_path / "policy/testbed.csv")) == len(doses)
    real = profile.model_copy(update={"data": "real"})
    assert testbed.write_testbed(real, tmp_path / "real") is None
    assert not (tmp_path / "real").exists()
