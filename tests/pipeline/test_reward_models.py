"""What the stages hand on: who judged what, in which split; and real data from end to end."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from data import test_real_sets as invented

from promedical_utils.core import profiles, run_data
from promedical_utils.core.workspace import KitError
from promedical_utils.data.sources import real_sets, schemas
from promedical_utils.paper import registry
from promedical_utils.pipeline import base, preference_pairs, reward_models
from promedical_utils.pipeline import bench as bench_module
from promedical_utils.pipeline import rubrics as stages
from promedical_utils.rubric import preferences


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    profile, run = profiles.load("smoke"), tmp_path_factory.mktemp("run")
    stages.make_rubrics(profile, run)
    preference_pairs.make_preference_pairs(profile, run)
    return run_data.RunData.load(run)


def test_physicians_read_the_calibration_split_and_the_judge_all(found):
    split = {row.instruction_id: row.split for row in found.splits}
    of = {c.id: split[c.instruction_id] for c in found.candidates}
    by = {}
    for v in found.verdicts:
        by.setdefault(v.judge, set()).add(of[v.candidate_id])
    assert by["adjudicated"] == {"calibration"}
    assert by["truth"] == by["judge"] == {"train", "calibration", "checkpoint", "bench", "external"}


def test_adjudicated_labels_are_nearer_to_the_truth_than_the_judge(found):
    wrong = {}
    for judge in ("judge", "adjudicated"):
        groups = [preferences.groups_of(found, name, "calibration") for name in ("truth", judge)]
        pairs = [
            (a.verdicts[key], b.verdicts[key])
            for a, b in zip(*groups, strict=True)
            for key in a.verdicts
        ]
        wrong[judge] = sum(a != b for a, b in pairs) / len(pairs)
    assert 0 < wrong["adjudicated"] < wrong["judge"] / 2


def test_labels_that_nobody_gave_are_missed_before_the_first_training(found, monkeypatch):
    """An arm that learns from the truth, beside the others, on data that have none."""
    without = replace(found, verdicts=[v for v in found.verdicts if v.judge != "truth"])
    monkeypatch.setattr(reward_models.RunData, "load", lambda run: without)
    monkeypatch.setattr(reward_models, "train_reward_model", lambda *_: pytest.fail("trained"))
    arms = ["criterion", "scalar_overall", "criterion_clean"]
    profile = profiles.load("smoke").model_copy(update={"data": "real", "rm_arms": arms})
    with pytest.raises(KitError, match="have answers, none a verdict of truth: label"):
        reward_models.train_reward_models(profile, None)


def real_rows(questions=24):
    """Invented rows in the shape of the public files: a physician's answer and a system's each."""
    kqa, labels, mediqa = [], [], []
    for n in range(questions):
        asked, must, nice = f"What about case {n}?", f"Rest for {n} days.", f"Drink {n} cups."
        kqa.append(
            {
                "Question": asked,
                "Free_form_answer": f"{must} {nice}",
                "ICD_10_diag": None,
                "Must_have": [must],
                "Nice_to_have": [nice],
            }
        )
        for text, kind, said in (
            (must, "Must_have", "Entailment"),
            (nice, "Nice_to_have", "Neutral"),
        ):
            said = said if n % 3 else "Contradiction"
            labels.append(
                {
                    "question": asked,
                    "model": "bot",
                    "answer": f"It is case {n}.",
                    "criterion": text,
                    "category": kind,
                    "labels": [said] * 3,
                    "majority": said,
                }
            )
        split = ("train_alexa", "val", "test")[n % 3]
        answers = [
            {
                "aid": str(k),
                "score": 1 + (k + n) % 4,
                "url": "x",
                "text": f"Passage {k} of {n}. " * (k + 1),
            }
            for k in range(3)
        ]
        mediqa.append(
            {"split": split, "qid": str(n), "question": f"Why is it {n}?", "answers": answers}
        )
    points = [("says a", 5.0), ("says b", 3.0), ("harms", -8.0)]
    graded = [
        {
            "source": who,
            "prompt_id": f"p{n}",
            "prompt": [{"role": "user", "content": f"zebra {n}?"}],
            "response": text,
            "criteria": [
                {"criterion": c, "points": p, "tags": [], "met": met is (p > 0), "explanation": ""}
                for c, p in points
            ],
        }
        for n in range(3)
        for who, text, met in (("m1", "short", True), ("m2", "longer one", False))
    ]
    rubrics = [{"prompt_id": "p0", "rubrics": [{"criterion": "x", "points": 3}]}]
    patientqa = []
    for n in range(3 * questions):
        for k, extent in enumerate(("No harm", "Moderate or mild harm")):
            about = {"question": f"How is tea{n} made{n}?", "answer": f"Steep tea{n} {k} times."}
            row = invented.rated(f"{n}-{k}", **about, extent_of_harm=extent)
            patientqa.append(row | {"question_id": f"q{n}"})
    others = {"patientqa": patientqa}
    others["medlfqa_kqa_silver"] = [
        invented.statements(
            f"Why does tea{n} sting{n}?", f"Since{n} it burns{n} a lot.", [f"Burns{n}."]
        )
        for n in range(questions)
    ]
    others["medquad"] = [
        {"id": f"m{n}", "question": f"What is ill{n}?", "answer": f"A made{n} illness. It ends."}
        for n in range(questions)
    ]
    return (invented.rows() | others) | {
        "kqa_questions": kqa,
        "kqa_labels": labels,
        "mediqa": mediqa,
        "healthbench_rubrics": rubrics,
        "healthbench_graded": graded,
    }


def test_real_data_go_through_every_stage(tmp_path, monkeypatch):
    made = SimpleNamespace(Statement=invented.Statement, contrast=invented.halved)
    monkeypatch.setattr(real_sets, "contrast_sets", made)
    for key, rows in real_rows().items():
        invented.write(tmp_path / "data", key, rows)
    monkeypatch.setenv(schemas.VARIABLE, str(tmp_path / "data"))
    profile = profiles.load(
        "real",
        base_model="small",
        base_layers=2,
        base_width=64,
        base_vocabulary=400,
        rm_lora_rank=4,
        rm_max_tokens=256,
        bootstrap=20,
    )
    run = tmp_path / "run"
    assert base.make_base(profile, run)["taught"] is None
    stages.make_rubrics(profile, run)
    assert preference_pairs.make_preference_pairs(profile, run)["training_pairs"] > 0
    trained = reward_models.train_reward_models(profile, run)
    assert list(trained["models"]) == profile.rm_arms
    bench = bench_module.make_bench(profile, run)
    assert {"kqa", "patientqa", "healthbench"} <= set(bench["pairs_by_source"])
    assert not any("contrast" in source for source in bench["pairs_by_source"])
    made = registry.build(profile, run, run / "paper")
    assert {"by_source", "safety_veto"} <= set(made["tables"])  # patientqa has violations
    assert made["claims"]["veto_lowers"] == "not testable"
    # no text of a source stands in what may be published
    published = "".join(
        path.read_text()
        for path in (run / "paper").rglob("*.*")
        if path.suffix in (".csv", ".md", ".json")
    )
    assert "case 1" not in published and "zebra" not in published
