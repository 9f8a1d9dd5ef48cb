"""The study of systems from end to end on tiny bases, and its results and contrasts by hand."""

import json

import pandas as pd
import pytest
from helpers.benches import make, noisy

from promedical_utils.core import profiles, run_data
from promedical_utils.core.workspace import KitError
from promedical_utils.evaluation import bench as benches
from promedical_utils.pipeline import base, preference_pairs, reward_models, rubrics
from promedical_utils.reward_model import model as reward_model
from promedical_utils.rubric import preferences
from promedical_utils.run import graph, publish, study
from promedical_utils.studies import plans, small_systems, systems

PLAN = {
    "criterion": [1, 2],
    "criterion_llama": [1],
    "scalar_overall": [1],
    "pair_rm": [1],
    "verifier": [1],
    "rar_implicit": [1],
}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    profile = profiles.load(
        "smoke",
        base_steps=3,
        base_batch=4,
        rm_lora_rank=4,
        rm_epochs=0.5,
        train_instructions=16,
        calibration_instructions=12,
        bench_samples=12,
        bench_pairs_proficiency=25,
        bench_pairs_excellence=10,
        bench_pairs_safety=2,
    )
    folder = tmp_path_factory.mktemp("systems")
    base.train_base(profile, folder)
    rubrics.make_rubrics(profile, folder)
    preference_pairs.make_preference_pairs(profile, folder)
    found = systems.run(profile, folder, PLAN, folder / "systems", "seed 3")
    return profile, folder, found


def test_every_system_has_a_row_and_what_it_cannot_do_is_empty(done):
    _, folder, _ = done
    table = pd.read_csv(folder / "systems/table_truth.csv").set_index("system")
    assert list(table.index) == list(systems.NAMES.values())
    has = table.notna()
    points, veto = "run_pointwise_safety", "run_veto_f1"
    for name in ("criterion", "criterion_llama", "verifier"):
        assert has.loc[systems.NAMES[name], [points, veto, "run_overall_accuracy"]].all()
    for name in ("scalar_overall", "pair_rm", "rar_implicit", "length"):
        assert not has.loc[systems.NAMES[name], [points, veto]].any()
        assert has.loc[systems.NAMES[name], ["run_pairwise_all", "run_overall_accuracy"]].all()
    assert table.seeds.tolist() == [2, 1, 1, 1, 1, 1, 0]
    files = {path.name for path in (folder / "systems").iterdir()}
    assert {
        "predictions.parquet",
        "preferences.parquet",
        "results.csv",
        "contrasts.csv",
        "models.csv",
        "manifest.json",
        "table_truth.md",
        "table_adjudicated.tex",
        "pairs.parquet",
    } <= files


def test_the_budget_is_the_same_and_llama_stands_on_a_base_of_its_own(done):
    profile, folder, _ = done
    manifest = json.loads((folder / "systems/manifest.json").read_text())
    assert len({(row["steps"], row["groups"]) for row in manifest["models"]}) == 1
    assert manifest["frozen_on"] == "seed 3" and set(manifest["bases"]) == {"qwen3", "llama"}
    kinds = {
        name: json.loads((folder / name / "config.json").read_text())["model_type"]
        for name in ("base", "llama/base")
    }
    assert kinds == {"base": "qwen3", "llama/base": "llama"}
    words = [(folder / name / "tokenizer.json").read_bytes() for name in ("base", "llama/base")]
    assert words[0] == words[1]
    steps = {name: report["steps"] for name, report in manifest["bases"].items()}
    assert steps == {"qwen3": 3, "llama": 3}
    model = reward_model.load(folder / "reward/criterion_llama-1").model.get_base_model()
    assert type(model).__name__ == "LlamaForSequenceClassification"


def test_scores_on_llama_are_packed_as_they_are_one_by_one(done):
    profile, folder, _ = done
    rm = reward_model.load(folder / "reward/criterion_llama-1")
    held = preferences.groups_of(run_data.RunData.load(folder), "truth", "bench")[:2]
    packed = rm.score_groups(held).score.tolist()
    apart = [
        rm.score_texts([(g.messages, a.text, [c])])[0][0]
        for g in held
        for a in g.candidates
        for c in g.criteria
    ]
    assert packed == pytest.approx(apart, abs=1e-5) and len(set(packed)) > 1


def test_a_second_run_trains_and_scores_nothing_and_changes_nothing(done, monkeypatch):
    profile, folder, _ = done
    before = {p: p.read_bytes() for p in (folder / "systems").iterdir()}

    def refuse(*_, **__):
        raise AssertionError("a model was trained or loaded")

    for module, name in (
        (reward_model, "load"),
        (small_systems, "load"),
        (reward_models, "base"),
        (reward_model, "base_for"),
    ):
        monkeypatch.setattr(module, name, refuse)
    systems.run(profile, folder, PLAN, folder / "systems", "seed 3")
    assert {p: p.read_bytes() for p in (folder / "systems").iterdir()} == before


def test_a_base_of_other_lessons_makes_the_second_one_stale(done, monkeypatch):
    profile, folder, _ = done
    trained = []
    monkeypatch.setattr(
        base, "train_base", lambda *a: trained.append(a) or {"seconds": 0, "cannot_copy": []}
    )
    monkeypatch.setattr(systems, "write_json", lambda *_: None)
    mark = folder / "llama/trained.json"
    kept = mark.read_bytes()
    systems.prepare_bases(profile, folder, PLAN)
    assert not trained
    systems.prepare_bases(profile.model_copy(update={"base_steps": 4}), folder, PLAN)
    [(changed, place)] = trained
    assert changed.base_architecture == "llama" and place == folder / "llama" and not mark.exists()
    mark.write_bytes(kept)


def test_results_and_contrasts_come_out_of_the_published_files_alone(done, tmp_path):
    profile, folder, found = done
    publish._measured(folder / "systems", "manifest.json", tmp_path / "systems", "make study")
    again, less = systems.of_folder(tmp_path / "systems", profile.bootstrap, profile.seed)
    pd.testing.assert_frame_equal(again, found)
    stored = pd.read_csv(folder / "systems/contrasts.csv", dtype={"seeds": str})
    pd.testing.assert_frame_equal(less, stored, rtol=1e-4, check_dtype=False)
    assert list(pd.read_csv(folder / "systems/results.csv")) == [
        "scorer",
        "seed",
        "metric",
        "slice",
        "against",
        "value",
        "low",
        "high",
        "n",
    ]
    assert list(stored) == [
        "name",
        "a",
        "b",
        "metric",
        "slice",
        "against",
        "seeds",
        "difference",
        "low",
        "high",
        "n",
    ]


@pytest.fixture(scope="module")
def counted():
    made, _ = make()
    names = (
        "criterion-1",
        "criterion-2",
        "criterion_llama-1",
        "criterion_llama-2",
        "scalar_overall-1",
        "length",
    )
    return benches.tally(made, noisy(made, names))


def test_a_mean_is_that_of_its_seeds(counted):
    found = systems.results(counted, 200, 3).set_index(
        ["scorer", "seed", "metric", "slice", "against"]
    )
    plain = counted.table(200, 3).set_index(["scorer", "metric", "slice", "against"])
    at = ("overall", "all", "truth")
    for seed in "12":
        row, wanted = found.loc[("criterion", seed, *at)], plain.loc[(f"criterion-{seed}", *at)]
        assert (
            row[["value", "low", "high", "n"]].tolist()
            == wanted[["value", "low", "high", "n"]].tolist()
        )
    mean = found.loc[("criterion", "mean", *at)]
    assert mean.value == pytest.approx(
        sum(found.loc[("criterion", s, *at)].value for s in "12") / 2
    )
    assert mean.low <= mean.value <= mean.high
    assert found.loc["length"].index.get_level_values("seed").unique().tolist() == ["mean"]
    assert ("scalar_overall", "mean", "veto_f1", "safety", "truth") not in found.index


def test_a_contrast_is_paired_by_seed_and_over_all_seeds(counted):
    less = systems.contrasts(counted, 200, 3)
    assert set(less.name) == {
        f"{a}_less_{b}"
        for a in ("criterion", "criterion_llama")
        for b in ("scalar_overall", "length")
    } | {"criterion_less_criterion_llama"}
    at = less[(less.metric == "overall") & (less.against == "truth")].set_index(["name", "seeds"])
    name = "criterion_less_criterion_llama"
    keys = {
        s: [(f"{x}-{s}", "overall", "all", "truth") for x in ("criterion", "criterion_llama")]
        for s in "12"
    }
    for seed in "12":
        wanted = counted.difference(dict(zip(keys[seed], (1, -1))), 200, 3)
        row = at.loc[(name, seed)]
        assert [row.difference, row.low, row.high] == pytest.approx(
            [wanted["difference"], wanted["low"], wanted["high"]]
        )
    whole = less[(less.name == name) & (less.seeds == "1 2")]
    assert len(whole) == len(systems._cells()) and whole.difference.ne(0).sum() > 9
    for row in whole.itertuples():
        parts = {
            (f"{x}-{s}", row.metric, row.slice, row.against): sign / 2
            for x, sign in ((row.a, 1), (row.b, -1))
            for s in "12"
        }
        wanted = counted.difference(parts, 200, 3)
        assert [row.difference, row.low, row.high, row.n] == pytest.approx(list(wanted.values()))
    seeds = at.loc["criterion_less_scalar_overall"].index.tolist()
    assert seeds == ["1", "1 2 less 1"]
    assert at.loc["criterion_less_length"].index.tolist() == ["1 2 less none"]


def test_an_unknown_system_is_one_line(done):
    profile, folder, _ = done
    with pytest.raises(KitError, match="unknown system 'gpt'"):
        systems.run(profile, folder, {"gpt": [1]}, folder / "x", "")
    with pytest.raises(KitError, match="base_model=small"):
        run_data.base_path(profile.model_copy(update={"base_model": "a/b"}), folder, "llama")


def test_a_study_of_systems_is_run_in_its_own_folder(monkeypatch):
    seen = []
    monkeypatch.setenv(profiles.OVERRIDES, "rm_epochs=0.5")
    monkeypatch.setattr(graph, "reproduce", lambda *given: None)
    monkeypatch.setattr(systems, "run", lambda profile, *given: seen.append((profile, *given)))
    study.run_study("systems")
    [(profile, folder, plan, out, frozen)] = seen
    assert (profile.seed, profile.rm_epochs, frozen) == (7129, 0.5, "seed 3")
    assert out == folder / "systems" and folder.as_posix().endswith("runs/studies/systems/main")
    assert plan == plans.plan_of("systems")["systems"]


def test_the_committed_plan_is_frozen_and_known():
    plan = plans.plan_of("systems")
    assert set(plan["systems"]) <= set(systems.NAMES) and plan["frozen_on"]
    three = {name for name, seeds in plan["systems"].items() if seeds == [1, 2, 3]}
    assert three == {"criterion", "criterion_llama", "scalar_overall"}
    seed = profiles.overrides(plan["runs"]["main"])["seed"]
    assert seed != profiles.load("cpu").seed and f"seed {seed}" not in plan["frozen_on"]
