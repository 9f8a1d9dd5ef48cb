"""The study of policies from end to end on a tiny base: trained once, evaluated alike, tabled."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import yaml
from helpers import benches

from promedical_studies import policies as policy_study
from promedical_studies.policies import Policies
from promedical_utils.core import profiles
from promedical_utils.core.run_data import RunData
from promedical_utils.core.workspace import KitError
from promedical_utils.pipeline import base as base_module
from promedical_utils.pipeline import policies as stages
from promedical_utils.pipeline import preference_pairs, rubrics
from promedical_utils.reward_model import variants
from promedical_utils.studies import catalog

pytestmark = pytest.mark.training  # fits models

PLAN = {"full": [1, 2], "no_veto": [1], "implicit_scalar": [1], "hacking": [1]}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    settings = {
        "rm_lora_rank": 4,
        "rm_epochs": 0.25,
        "train_instructions": 16,
        "calibration_instructions": 12,
        "checkpoint_instructions": 3,
        "bench_samples": 12,
        "bench_pairs_proficiency": 25,
        "bench_pairs_excellence": 10,
        "bench_pairs_safety": 2,
        "policy_prompts": 6,
        "grpo_max_tokens": 12,
        "sft_answers": 0,
        "grpo_lora_rank": 0,
        "grpo_steps": 1,
    }
    folder = tmp_path_factory.mktemp("study")
    profile = profiles.load("smoke", **settings)
    for stage in (
        base_module.make_base,
        rubrics.make_rubrics,
        preference_pairs.make_preference_pairs,
    ):
        stage(profile, folder)
    study = Policies(PLAN, "seed 3")
    results = study.run(profile, folder, folder / "out")
    return settings, folder, policy_study.table(results, study.named(folder / "out"))


def test_every_policy_of_the_plan_is_trained_and_answers_the_same_prompts(done):
    _, folder, table = done
    assert table.variant.tolist() == ["base", *PLAN] and table.seeds.tolist() == [1, 2, 1, 1, 1]
    answers = pd.read_parquet(folder / "out/evaluation.parquet")
    assert "text" not in answers and answers.groupby(["policy", "seed"]).size().tolist() == [6] * 6
    assert answers.groupby("instruction_id").size().eq(6).all()
    # another seed of training is another policy, on the same prompts
    reports = {
        p.name: json.loads((p / "report.json").read_text())
        for p in (folder / "trained").iterdir()
        if not p.name.startswith("base")
    }
    assert len({r["fingerprint"] for r in reports.values()}) == 5
    assert reports["no_veto-1"]["settings"]["reward_rule"] == "no_veto"
    assert reports["hacking-1"]["settings"]["grpo_beta_kl"] == 0.01
    assert reports["implicit_scalar-1"]["settings"]["reward_model"] == "scalar_blind"


def test_tables_and_manifest(done):
    _, folder, table = done
    files = {p.name for p in (folder / "out").iterdir()}
    assert {
        "results.csv",
        "table.md",
        "table.tex",
        "policies.png",
        "gold_over_kl.png",
        "curves.parquet",
        "manifest.json",
    } <= files
    manifest = json.loads((folder / "out/manifest.json").read_text())
    assert (
        manifest["plan"] == PLAN and manifest["frozen_on"] == "seed 3" and manifest["prompts"] == 6
    )
    assert [row["variant"] for row in manifest["policies"]] == [
        "base",
        "full",
        "full",
        "no_veto",
        "implicit_scalar",
        "hacking",
    ]
    assert manifest["policies"][-1]["hacking"]["text"]
    answers = pd.read_parquet(folder / "out/evaluation.parquet")
    rate = answers.groupby("policy").violation.mean()
    shown = table.set_index("variant").violations
    assert shown["full"] == pytest.approx(100 * rate["full"]) and shown["base"] == pytest.approx(
        100 * rate["base"]
    )


def test_a_second_run_trains_nothing_and_writes_the_same(done, monkeypatch):
    settings, folder, _ = done
    keep = ("results.csv", "table.md", "policies.png", "evaluation.parquet")
    before = {name: (folder / "out" / name).read_bytes() for name in keep}
    times = {p: p.stat().st_mtime_ns for p in (folder / "trained").rglob("*.*")}
    profile = profiles.load("smoke", **settings)
    Policies(PLAN, "seed 3").run(profile, folder, folder / "out")
    assert {name: (folder / "out" / name).read_bytes() for name in keep} == before
    assert {p: p.stat().st_mtime_ns for p in (folder / "trained").rglob("*.*")} == times


def test_an_evaluation_of_other_settings_or_of_another_policy_is_made_again(tmp_path, monkeypatch):
    asked = []

    def answers(profile, folder, found, folders):
        asked.append((profile.policy_prompts, folders))
        return pd.DataFrame({"n": [len(asked)]}), pd.DataFrame({"n": [len(asked)]})

    monkeypatch.setattr(stages, "evaluate_policies", answers)
    profile = profiles.load("smoke", policy_prompts=6)
    where, base = tmp_path / "trained/full-1", tmp_path / "base"
    base.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (base / name).write_text("weights")
    for settings, fingerprint, calls in (
        ({}, "a", 1),
        ({}, "a", 1),
        ({}, "b", 2),
        ({"policy_prompts": 5}, "b", 3),
        ({"policy_prompts": 5, "seed": 8}, "b", 4),
    ):
        other = profile.model_copy(update=settings)
        policy_study._evaluate(other, tmp_path, RunData(), "full", 1, fingerprint)
        assert len(asked) == calls
        assert pd.read_parquet(where / "evaluation.parquet").to_dict("list") == {
            "n": [calls],
            "seed": [1],
        }
    of_base = tmp_path, RunData(), "base", 0
    policy_study._evaluate(profile, *of_base)
    assert asked[-1] == (6, {"base": None}) and asked[0] == (6, {"full": where})
    policy_study._evaluate(profile, *of_base)
    assert len(asked) == 5
    (base / "model.safetensors").write_text("other weights")  # another base answers otherwise
    policy_study._evaluate(profile, *of_base)
    assert len(asked) == 6
    instructions, splits, (first, second), *_ = benches.world(2)
    data = RunData(instructions, [first, second], splits)
    reworded = [c.model_copy(update={"text": "other"}) for c in second.criteria]
    moved = splits[1].model_copy(update={"condition": "elsewhere"})
    changed = (
        data,
        replace(data, rubrics=[first, second.model_copy(update={"criteria": reworded})]),
        replace(data, splits=[splits[0], moved]),
        replace(data, splits=splits[:1]),
    )
    for calls, other in enumerate(changed, 7):
        for _ in range(2):  # once of other patients or rubrics
            policy_study._evaluate(profile, tmp_path, other, "base", 0)
        assert len(asked) == calls


def trained_variants():
    return {name: facts for name, facts in policy_study.VARIANTS.items() if name != "base"}


def test_variants_are_settings_that_a_profile_takes(done):
    settings = done[0]
    profile = profiles.load("smoke", **settings)
    for name, variant in trained_variants().items():
        found = policy_study.settled(profile, name)
        assert found.reward_model in variants.RECIPES, name
        gated = found.reward_rule in ("veto", "no_bonus")
        assert variant.get("veto", True) == gated, (
            f"{name}: whether its reward has a veto is not what is said"
        )
        scalar = not variants.find(found.reward_model).conditional
        assert scalar == (found.reward_rule in ("scalar", "rar_implicit")), name


def test_every_variant_draws_as_many_answers_a_step():
    profile = profiles.load(catalog.plan_of("policies")["profile"])
    for name in trained_variants():
        found = policy_study.settled(profile, name)
        assert found.grpo_group * found.grpo_prompts == profile.grpo_group * profile.grpo_prompts, (
            name
        )


def test_plans_name_known_variants_with_three_seeds_where_a_claim_is_about_the_veto():
    plans = {name: catalog.plan_of(name) for name in catalog.studies()}
    policies = {name: plan["policies"] for name, plan in plans.items() if "policies" in plan}
    papers = policies["policy_optimizers"] | policies["policies"]
    assert set(papers) == {
        "full",
        "no_veto",
        "no_bonus",
        "no_safety_data",
        "implicit_scalar",
        "dpo",
        "rloo",
    }
    # three trainings of what the veto's claims compare; the rest has one
    assert {name for name, seeds in papers.items() if len(seeds) == 3} == {"full", "no_veto"}
    assert set().union(*policies.values()) == set(trained_variants())
    # one world for both, and not the one that settings were chosen on
    worlds = {yaml.safe_dump(plans[name]["runs"]) for name in policies}
    assert len(worlds) == 1 and "seed=3 " not in worlds.pop()
    assert {catalog.study_folder(name).parent for name in policies} == {
        catalog.study_folder("policies").parent
    }
    # publish takes a study's folder of tables whole, so nothing that is trained may lie there
    for out in map(catalog.study_folder, policies):
        assert out not in policy_study.place(out.parent, "full", 1).parents


def test_wrong_plans_are_refused(done):
    settings, folder, _ = done
    profile = profiles.load("smoke", **settings)
    with pytest.raises(KitError, match="unknown system 'none' of a study: choose one of full"):
        Policies({"none": [1]}).run(profile, folder, folder / "out")
    with pytest.raises(KitError, match="its data are clinic, those of profile real are real"):
        Policies(PLAN).run(profiles.load("real"), folder, folder / "out")
