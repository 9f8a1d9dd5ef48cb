"""What notebooks show by the kind of data: the clinic's texts, and no others."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from helpers import benches

from promedical_utils import clinic
from promedical_utils.core import profiles
from promedical_utils.pipeline import notebook_display as shown
from promedical_utils.pipeline import preference_pairs, rubrics
from promedical_utils.rubric import display
from promedical_utils.rubric.display import Card

CLINIC = profiles.load("smoke")
REAL, OPEN = (CLINIC.model_copy(update={"data": name}) for name in ("real", "open"))
HUB = CLINIC.model_copy(update={"base_model": "Qwen/Qwen3-0.6B"})


@pytest.fixture(scope="module")
def world():
    return clinic.build(CLINIC)


def test_texts_are_shown_in_the_clinic_alone(world):
    asked = world.instructions[0]
    card = shown.in_clinic(CLINIC, display.message, asked)
    assert asked.messages[0].content.split()[0] in card.text
    for profile in (REAL, OPEN):
        other = shown.in_clinic(profile, display.message, asked)
        assert other.text == shown.NO_TEXT and other.html is None
    assert shown.in_clinic(REAL, display.message, asked, why="because").text == "because"


def test_what_is_not_shown_is_not_even_made():
    def fails():
        raise AssertionError

    assert isinstance(shown.in_clinic(REAL, fails), Card)


def test_the_best_verdicts_known():
    best = [preference_pairs.expert(p) for p in (CLINIC, REAL, OPEN)]
    assert best == ["truth", "judge", "judge"]


def test_facts_are_the_clinics(world):
    id_ = world.ids("train")[0]
    assert shown.facts(CLINIC, id_) == world.patients[id_].facts
    assert shown.facts(REAL, id_) == {}


def test_a_held_out_patient_is_the_clinics(world, monkeypatch):
    asked, criteria, facts = shown.patient(CLINIC)
    assert asked.id == world.ids("checkpoint")[0] and criteria == (
        *world.rubric_of[asked.id].criteria,
    )
    leaflet = " ".join(message.content for message in asked.messages)
    assert facts and facts["first"] in leaflet
    monkeypatch.delattr(shown.clinic, "build")
    for profile in (REAL, OPEN):
        assert shown.patient(profile) == (None, (), {})


def test_kinds_that_are_kept_out_of_training():
    assert rubrics.unseen_kinds(CLINIC) == clinic.UNSEEN_KINDS
    real = rubrics.unseen_kinds(REAL)
    assert "closing_summary" in real and not {"empathy", "talked_out_of_care"} & real
    assert rubrics.unseen_kinds(OPEN) == frozenset()


def test_true_rubrics_are_the_clinics_and_no_clinic_is_built_beside_real_data(world, monkeypatch):
    assert shown.true_rubrics(CLINIC) == world.rubric_of
    monkeypatch.delattr(shown.clinic, "build")
    assert shown.true_rubrics(REAL) == shown.true_rubrics(OPEN) == {}


def test_a_file_that_a_run_has_not_is_a_reason_and_no_picture(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(shown.plotting, "show", lambda plot, frame, *rest: drawn.append(rest))
    path = tmp_path / "funnel.csv"
    assert shown.rows(path, "none here").text == "none here"
    shown.picture(path, plt.figure)
    assert drawn == []
    pd.DataFrame({"step": ["licence"]}).to_csv(path, index=False)
    assert shown.rows(path, "none here").step.tolist() == ["licence"]
    shown.picture(path, plt.figure, 0.9)
    assert drawn == [(0.9,)]


def test_goals_are_of_the_published_profile_and_results_either_way(capsys):
    shown.goals(CLINIC, {"reads every fact": False})
    assert capsys.readouterr().out == ""
    shown.goals(profiles.load("cpu"), {"reads every fact": True, "ceiling at 0.97": False})
    assert capsys.readouterr().out.splitlines() == [
        "goal, reads every fact: True",
        "goal, ceiling at 0.97: False",
    ]


def test_agreement_is_of_the_people_who_labelled(tmp_path):
    bench = benches.make()[0]
    bench.report["input"] = {"grades": {"kappa": 0.69971, "n": 72}}
    profile = CLINIC.model_copy(update={"bootstrap": 20})
    coefficients, by_dimension = shown.agreement(profile, tmp_path, bench)
    assert coefficients.loc["grades"].tolist() == [0.6997, 72]
    both = bench.verdicts.physician_1 == bench.verdicts.physician_2
    observed = by_dimension[
        (by_dimension.coefficient == "observed") & (by_dimension.slice == "all")
    ].value.item()
    assert observed == pytest.approx(both.mean(), abs=1e-4)
    (tmp_path / "data").mkdir()
    review = tmp_path / "data/review.json"
    row = {"slice": "all", "coefficient": "ac1", "n": 9, "value": 0.8, "low": 0.7, "high": 0.9}
    kappa = {"fleiss_kappa": 0.719, "reliability": [row]}
    review.write_text(json.dumps({"sources": {"kqa_agreement": kappa}}))
    coefficients, by_dimension = shown.agreement(REAL, tmp_path, bench)
    assert coefficients.loc["K-QA"].to_dict() == {"fleiss_kappa": 0.719}
    assert by_dimension.to_dict("records") == [row]
    review.write_text(json.dumps({"sources": {"instructions": 8}}))
    coefficients, by_dimension = shown.agreement(OPEN, tmp_path, bench)
    assert coefficients.size == 0 and by_dimension.empty
