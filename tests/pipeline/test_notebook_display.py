"""What notebooks show by the kind of data: the clinic's texts, and no others."""

import json

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from helpers import benches

from promedical_utils import clinic
from promedical_utils.clinic import grammar
from promedical_utils.core import profiles, records
from promedical_utils.core.records import Criterion, Rubric
from promedical_utils.core.run_data import RunData
from promedical_utils.pipeline import notebook_display as shown
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
    for profile in (REAL, OPEN, HUB):
        assert shown.with_own_base(profile, fails).text == shown.NO_BASE
    assert shown.with_own_base(CLINIC, lambda: "made") == "made"


def test_the_best_verdicts_known_and_the_labels_of_the_bench():
    assert [shown.expert(p) for p in (CLINIC, REAL, OPEN)] == ["truth", "judge", "judge"]
    assert shown.labels(CLINIC) == ("adjudicated", "truth")
    assert shown.labels(REAL) == shown.labels(OPEN) == ("adjudicated",)


def test_facts_and_gold_rubrics_are_the_clinics(world):
    id_ = world.ids("train")[0]
    assert shown.facts(CLINIC, id_) == world.patients[id_].facts
    assert shown.facts(REAL, id_) == {}
    criterion = Criterion(id="c", dimension="proficiency", text="names the dose", weight=1)
    own = Rubric(instruction_id=id_, status="draft", round=0, criteria=[criterion])
    data = RunData(rubrics=[own])
    assert shown.gold_rubrics(CLINIC, data)[id_] == world.rubric_of[id_]
    assert shown.gold_rubrics(REAL, data)[id_] == own


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


def test_drafts_are_corrected_in_the_clinic_alone(tmp_path, world):
    rubric = world.rubrics[0].model_copy(update={"status": "draft"})
    records.save([rubric], tmp_path / "data/drafts.parquet")
    assert shown.drafts(CLINIC, tmp_path) == [rubric]
    assert shown.drafts(OPEN, tmp_path) == []


def test_the_losses_of_a_base_and_that_a_hub_model_has_none(monkeypatch):
    curves = []

    def curve(losses, label, marks, title):
        curves.append((losses, marks))
        return Card(title)

    monkeypatch.setattr(shown.display, "curve", curve)
    report = {"trained_here": True, "steps": 100, "curve": [{"loss": 7.0, "step": 3}]}
    shown.loss_curve(CLINIC, report)
    losses, marks = curves[0]
    assert losses.loss.tolist() == [7.0] and losses.index.tolist() == [3]
    assert marks == pytest.approx({"drills": 0, "leaflets, right answers": 30, "mixed answers": 55})
    shown.loss_curve(REAL, report)
    assert curves[1][1] == {}
    assert "nothing was trained" in shown.loss_curve(HUB, {"trained_here": False}).text
    assert len(curves) == 2


def test_a_fact_below_one_half_cannot_be_copied(monkeypatch):
    bars = []
    monkeypatch.setattr(shown.display, "bars", lambda frame, *rest, title: bars.append(frame))
    shown.copy_rates(pd.Series({"limit": 0.4, "danger": 0.5}))
    assert bars[0].loc["limit", "cannot be copied"] == 0.4
    assert pd.isna(bars[0].loc["limit", "copied"]) and bars[0].loc["danger", "copied"] == 0.5
    assert "not applicable" in shown.copy_rates(pd.Series(dtype=float)).text


def test_only_the_kits_own_base_answers(tmp_path, world):
    for profile in (REAL, HUB):  # nothing is loaded: there is no base in this folder
        assert shown.base_answer(profile, tmp_path, world.instructions[0]) == ""


def test_the_base_answers_greedily(tmp_path, tiny_base, world):
    (tmp_path / "base").symlink_to(tiny_base)
    first, second = (shown.base_answer(CLINIC, tmp_path, world.instructions[0]) for _ in range(2))
    assert isinstance(first, str) and first == second


def test_who_reviewed_is_said_of_each_kind_of_data(capsys):
    row = {
        "round": 1,
        "reviewed": 12,
        "pass_rate": 0.75,
        "blind_n": 8,
        "blind_pass_rate": 1.0,
        "low": 0.7,
        "high": 1.0,
        "control_pass_rate": 0.75,
        "stop": "",
        "patients": 3,
    }
    frame = shown.reviewed(CLINIC, {"input": {"first_error_rate": 0.25}, "rounds": [row]})
    assert frame.blind_pass_rate.tolist() == [1.0] and "patients" not in frame
    assert "input: {'first_error_rate': 0.25}" in capsys.readouterr().out
    report = {"writing": {"drafted": 3, "queued": {"a": ["why"]}}, "rubrics": {"draft": 2}}
    assert shown.reviewed(OPEN, report).rubrics.to_dict() == {"draft": 2}
    assert capsys.readouterr().out == "queued for physicians: 1\ndrafted: {'drafted': 3}\n"
    assert "queued" in report["writing"]
    kappa = {"rows": 399, "fleiss_kappa": 0.719, "cohen_kappa": [0.67, 0.761], "observed": 0.855}
    sources = {"kqa_agreement": kappa, "instructions": {"kqa / train": 100}}
    assert "source / split" in shown.reviewed(REAL, {"sources": sources}).text
    assert "pairwise Cohen  0.670 0.761" in capsys.readouterr().out


def test_answers_by_hand_are_what_their_names_say(world):
    id_ = world.ids("train")[0]
    texts, criteria = shown.written_by_hand(CLINIC, id_), world.rubric_of[id_].criteria
    assert shown.written_by_hand(REAL, id_) == {}
    leaflet = world.patients[id_].facts
    assert leaflet["first"] in texts["right"] and texts["stuffed"].startswith(texts["right"])
    for criterion in criteria:
        if criterion.dimension == "safety":
            verdicts = {n: grammar.gold(criteria, t)[criterion.id] for n, t in texts.items()}
            assert verdicts["right"] == "met" and verdicts["stuffed"] == "unknown"
            assert verdicts["keywords"] == "unknown"


def test_the_set_is_exported_in_the_clinic_alone(tmp_path, monkeypatch):
    rows = {"pairs": {"train": 493, "bench": 7}, "bench_pairs": {"bench": 98}}
    monkeypatch.setattr(shown.export, "export", lambda run, folder, profile: rows)
    assert shown.exported(CLINIC, tmp_path) == {"pairs": 493}
    assert "licences" in shown.exported(REAL, tmp_path).text


def test_physicians_read_in_orders_of_their_own():
    bench = benches.make()[0]
    orders = shown.reading_orders(bench)
    assert list(orders) == ["physician 1", "physician 2"]
    for column, samples in zip(("order_1", "order_2"), orders.values(), strict=True):
        assert ["|".join(ids) for ids in samples] == bench.samples[column].tolist()
    bench.samples.drop(columns=["order_1", "order_2"], inplace=True)
    assert shown.reading_orders(bench) == {}


def test_agreement_is_of_the_people_who_labelled(tmp_path):
    bench = benches.make()[0]
    bench.report["input"] = {"grades": {"kappa": 0.69971, "n": 72}}
    assert shown.agreement(CLINIC, tmp_path, bench).loc["grades"].tolist() == [0.6997, 72]
    assert "nobody but the judge" in shown.agreement(OPEN, tmp_path, bench).text
    kappa = {"fleiss_kappa": 0.719, "reliability": [{"slice": "all", "coefficient": "ac1"}]}
    (tmp_path / "data").mkdir()
    review = {"sources": {"kqa_agreement": kappa}}
    (tmp_path / "data/review.json").write_text(json.dumps(review))
    assert shown.agreement(REAL, tmp_path, bench).loc["K-QA"].to_dict() == {"fleiss_kappa": 0.719}
    assert shown.reliability(REAL, tmp_path, bench).coefficient.tolist() == ["ac1"]
    assert shown.reliability(OPEN, tmp_path, bench).empty
    ours = shown.reliability(CLINIC.model_copy(update={"bootstrap": 20}), tmp_path, bench)
    both = bench.verdicts.physician_1 == bench.verdicts.physician_2
    observed = ours[(ours.coefficient == "observed") & (ours.slice == "all")].value.item()
    assert observed == pytest.approx(both.mean(), abs=1e-4)
