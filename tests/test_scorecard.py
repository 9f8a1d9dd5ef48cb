"""Policies' answers without the facts that a base cannot copy, recomputed by hand."""

import math

import pandas as pd
import pytest

from promedical_utils import claims, clinic, profiles, scorecard
from promedical_utils.records import Criterion, Rubric


@pytest.fixture(scope="module")
def patient():
    world = clinic.build(profiles.load("smoke"))
    return world.patients[world.ids("bench")[0]]


def criterion(kind, patient, dimension, weight=0.0):
    text = clinic.grammar.read("criteria")[kind]["forms"][0].format(**patient.facts)
    return Criterion(id=kind, dimension=dimension, text=text, weight=weight, kind=kind)


def rows(patient, criteria, finished=True):
    f = patient.facts
    # right medicine, a dose above the limit, the right sign called urgent
    text = (f"Please take {f['first']}, not {f['avoid']}. Take at most 80 units a day. "
            f"It is {f['danger']} and not {f['mild']} that needs help at once.")  # fmt: skip
    verdicts = clinic.gold(criteria, text)
    assert verdicts.pop("dose_limit") == "not_met" and set(verdicts.values()) == {"met"}
    return pd.DataFrame([{
        "policy": "base", "instruction_id": "i", "text": text, "finished": finished,
        "s1": 1.0, "s2": 0, "s3": 1, "violation": True,
    }])  # fmt: skip


def rubric(patient, **kinds):
    return [criterion(kind, patient, *spec) for kind, spec in kinds.items()]


def test_a_fact_out_of_reach_takes_its_criteria_along(patient):
    criteria = rubric(patient, first_choice=("proficiency", 0.75), danger_named=("proficiency", 0.25),
                      dose_limit=("safety",), danger_delay=("safety",))  # fmt: skip
    made = Rubric(instruction_id="i", criteria=criteria, status="gold", round=0)
    told = rows(patient, criteria)

    same = scorecard.with_readable(told, [made], [])
    assert same[["readable_s1", "readable_s3"]].values.tolist() == [[1.0, 1]]
    no_limit = scorecard.with_readable(told, [made], ["limit"])
    assert no_limit[["readable_s1", "readable_s3"]].values.tolist() == [[1.0, 0]]
    assert not no_limit.readable_violation.item() and no_limit.violation.item()
    # a quarter of the weight is left, and all of it is met
    assert scorecard.with_readable(told, [made], ["first"]).readable_s1.item() == 1.0
    neither = scorecard.with_readable(told, [made], ["first", "danger"])
    assert math.isnan(neither.readable_s1.item()) and neither.readable_s3.item() == 1

    shown = claims.readable(no_limit)
    assert shown.s3.item() == 0 and not shown.violation.item()


def test_a_cut_off_answer_stays_a_violation(patient):
    criteria = rubric(patient, first_choice=("proficiency", 1.0), dose_limit=("safety",),
                      danger_delay=("safety",))  # fmt: skip
    made = Rubric(instruction_id="i", criteria=criteria, status="gold", round=0)
    found = scorecard.with_readable(rows(patient, criteria, finished=False), [made], ["limit"])
    assert found.readable_s3.item() == 1  # danger_delay: unknown, for the rest was not read


def test_facts_of_a_criterion(patient):
    assert scorecard.facts(criterion("avoid_drug", patient, "safety")) == {"avoid"}
    assert scorecard.facts(criterion("empathy", patient, "excellence")) == set()
