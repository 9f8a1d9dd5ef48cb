"""Policies' answers beside each other, patient by patient."""

import pandas as pd
import pytest

from promedical_utils import clinic
from promedical_utils.core import profiles
from promedical_utils.core.records import Criterion, Instruction, Rubric
from promedical_utils.core.run_data import RunData
from promedical_utils.evaluation import policy_answers
from promedical_utils.rubric import display


@pytest.fixture(scope="module")
def patient():
    world = clinic.build(profiles.load("smoke"))
    return world.patients[world.ids("bench")[0]]


def criterion(kind, patient, dimension, weight=0.0):
    text = clinic.grammar.read("criteria")[kind]["bench"]["stated"][0].format(**patient.facts)
    return Criterion(id=kind, dimension=dimension, text=text, weight=weight, kind=kind)


def rows(patient, criteria, finished=True):
    f = patient.facts
    # right medicine, a dose above the limit, the right sign called urgent
    text = (
        f"My advice is to get {f['first']} and to stay clear of {f['avoid']}. "
        "Your daily ceiling stands at 80 drops. "
        f"It is {f['danger']}, and not {f['mild']}, that makes this an emergency."
    )
    verdicts = clinic.gold(criteria, f, text)
    assert verdicts.pop("dose_limit") == "not_met" and set(verdicts.values()) == {"met"}
    return pd.DataFrame(
        [
            {
                "policy": "base",
                "instruction_id": "i",
                "text": text,
                "finished": finished,
                "s1": 1.0,
                "s2": 0,
                "s3": 1,
                "violation": True,
            }
        ]
    )


def rubric(patient, **kinds):
    return [criterion(kind, patient, *spec) for kind, spec in kinds.items()]


@pytest.fixture(scope="module")
def two(patient):
    """(evaluation, data) of one patient: the answer of ``rows`` by the base, and a mended one."""
    criteria = rubric(
        patient,
        first_choice=("proficiency", 0.75),
        danger_named=("proficiency", 0.25),
        dose_limit=("safety",),
        danger_delay=("safety",),
    )
    base = rows(patient, criteria)
    mended = base.text[0].replace("80 drops", f"{patient.facts['limit']} drops")
    other = base.assign(policy="grpo", text=mended, s3=0, violation=False)
    asked = Instruction(
        id="i",
        category="c",
        specialty="s",
        source="test",
        difficulty=5,
        messages=[{"role": "user", "content": "?"}],
    )
    made = Rubric(instruction_id="i", criteria=criteria, status="gold", round=0)
    return pd.concat([base, other], ignore_index=True), RunData([asked], [made])


def said(found, judge, **changes):
    """Verdicts frame: all met, but for ``policy_criterion``."""
    criteria = [c.id for c in found.rubrics[0].criteria]
    return pd.DataFrame(
        [
            {
                "policy": p,
                "instruction_id": "i",
                "criterion_id": c,
                "judge": judge,
                "verdict": changes.get(f"{p}_{c}", "met"),
            }
            for p in ("base", "grpo")
            for c in criteria
        ]
    )


def test_verdicts_come_from_the_frame_and_need_no_clinic(two, monkeypatch):
    evaluation, found = two
    monkeypatch.setattr(clinic, "gold", lambda *_: pytest.fail("the truth was read"))
    judged = said(found, "judged", grpo_danger_named="unknown")
    group = policy_answers.beside(evaluation, found, "i", judged)
    assert group.verdicts["grpo", "danger_named"] == "unknown"
    assert group.verdicts["base", "dose_limit"] == "met"
    truth = said(found, "truth", base_dose_limit="not_met")
    both = pd.concat([judged, truth])
    group = policy_answers.beside(evaluation, found, "i", both)
    assert group.verdicts["base", "dose_limit"] == "not_met"
    assert [a.generator for a in group.candidates] == ["base", "grpo"]


def test_card_of_a_patient_before_and_after(two):
    evaluation, found = two
    truth = said(
        found,
        "truth",
        base_dose_limit="not_met",
        base_first_choice="unknown",
        grpo_danger_named="not_met",
    )
    card = display.before_after(
        policy_answers.beside(evaluation, found, "i", truth), "middle of all"
    )
    lines = card.text.splitlines()
    assert lines[0] == "i, before and after: middle of all"
    row = {name: next(line for line in lines if name in line) for name in ("80", "S1", "S2", "S3")}
    assert "0.25" in row["S1"] and "0.75" in row["S1"] and row["S1"].endswith("+0.50")
    assert row["S3"].split()[-3:] == ["1", "0", "-1"] and row["S2"].split()[-2:] == ["0", "0"]
    criteria = {
        c.id: next(line for line in lines if c.text in line) for c in found.rubrics[0].criteria
    }
    assert criteria["dose_limit"].endswith("✗ not met  ✓ met      ▲ now met")
    assert "0.75" in criteria["first_choice"] and criteria["first_choice"].endswith("▲ now met")
    assert criteria["danger_named"].endswith("▼ no longer met")
    assert criteria["danger_delay"].endswith("✓ met")
    for answer in evaluation.text:
        assert answer in card.text and answer in card.html
