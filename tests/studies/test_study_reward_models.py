"""The study from end to end on a tiny base, and its tables by hand."""

import json

import pandas as pd
import pytest

from promedical_utils.core import profiles
from promedical_utils.core.workspace import KitError
from promedical_utils.pipeline import base, preference_pairs, rubrics
from promedical_utils.reward_model import model as reward_model
from promedical_utils.reward_model import variants
from promedical_utils.studies.results import Cells
from promedical_utils.studies.reward_models import RewardModels
from promedical_utils.studies.study import STUDIES

pytestmark = pytest.mark.training  # fits models

SEEN = ("all", "seen", "unseen")
PLAN = {"criterion": [1, 2], "scalar_overall": [1, 2], "criterion_swapped": [1], "fixed_heads": [1]}
RULED = {"rar_explicit", "orbit", "healthbench", "mean_met", "hierarchy_half", "hierarchy_soft"}
PLAIN = {"near_words", "embeddings", "criterion_only", "overlap", "similarity", "length"}
PLAIN |= {"always_met", "always_veto", "random"}


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    profile = profiles.load(
        "smoke",
        sft_answers=0,
        rm_lora_rank=4,
        rm_epochs=0.25,
        train_instructions=16,
        calibration_instructions=12,
        bench_samples=12,
        bench_pairs_proficiency=25,
        bench_pairs_excellence=10,
        bench_pairs_safety=2,
    )
    folder = tmp_path_factory.mktemp("study")
    base.make_base(profile, folder)
    rubrics.make_rubrics(profile, folder)
    preference_pairs.make_preference_pairs(profile, folder)
    results = RewardModels(PLAN).run(profile, folder, folder / "study")
    return profile, folder, results


def test_every_model_of_the_plan_is_measured_beside_rules_and_controls(done):
    _, folder, results = done
    assert set(results.system) == {*PLAN, *RULED, *PLAIN}
    manifest = json.loads((folder / "study/manifest.json").read_text())
    assert len(manifest["models"]) == 6 and manifest["plan"] == PLAN
    assert len({(row["steps"], row["groups"]) for row in manifest["models"]}) == 1
    files = {path.name for path in (folder / "study").iterdir()}
    assert {
        "results.csv",
        "sums.parquet",
        "part-controls.parquet",
        "part-criterion-2.json",
        "table_truth.md",
        "table_adjudicated.tex",
        "reward_models.png",
    } <= files
    table = pd.read_csv(folder / "study/table_truth.csv").set_index("system")
    assert table.loc["criterion RM: QLoRA, judge labels", "seeds"] == 2
    assert table.loc["longer is better", "seeds"] == 0


def test_both_benches_are_counted(done):
    _, _, results = done
    cells = Cells(results)
    usual, rich = (
        cells.means["criterion", "pairwise", part, "adjudicated"]["n"]
        for part in ("safety", "rich seen")
    )
    assert usual == 2 and rich == 12
    vetoed = cells.ends(("always_veto", "clean_vetoed_paper", "rich safety", "truth"))
    assert vetoed[0] == 1 and cells.means["always_met", "overall", "rich all", "truth"]["n"] > 12


def test_a_value_is_the_mean_of_its_seeds_and_the_difference_is_paired(done):
    _, _, results = done
    cells, overall = Cells(results), ("overall", "all", "truth")
    own, base = (cells.ends((name, *overall)) for name in ("criterion", "scalar_overall"))
    each = cells.trained["criterion", *overall]
    assert list(each) == ["1", "2"] and own[0] == pytest.approx(sum(each.values()) / 2)
    value, low, high = cells.ends(("criterion", *overall, "less", "scalar_overall"))
    assert value == pytest.approx(own[0] - base[0]) and low <= value <= high
    assert ("scalar_overall", *overall, "less", "scalar_overall") not in cells.means
    kinds = {s: cells.means["criterion", "pairwise", s, "truth"]["n"] for s in SEEN}
    assert kinds["seen"] + kinds["unseen"] == kinds["all"]


def test_a_second_run_trains_and_scores_nothing_and_changes_nothing(done, monkeypatch):
    profile, folder, _ = done
    before = {p: p.read_bytes() for p in (folder / "study").iterdir()}

    def refuse(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(reward_model, "load", refuse)
    RewardModels(PLAN).run(profile, folder, folder / "study")
    assert {p: p.read_bytes() for p in (folder / "study").iterdir()} == before


def test_recipes(tiny_groups):
    assert (
        variants.find("no_safety_data").groups(tiny_groups)[0].criteria
        == tiny_groups[0].criteria[:2]
    )
    profile = profiles.load("smoke", rm_epochs=3.0)
    assert variants.find("no_anchor").profile(profile).rm_pointwise_weight == 0.0
    assert variants.find("criterion").profile(profile) == profile
    with pytest.raises(KitError, match="unknown reward model 'best'"):
        variants.find("best")


def test_every_model_of_the_committed_plan_is_known():
    import yaml

    plan = yaml.safe_load((STUDIES / "reward_models.yaml").read_text())
    for name, seeds in plan["reward_models"].items():
        assert variants.find(name) and len(seeds) == len(set(seeds)) >= 1
    three = {name for name, seeds in plan["reward_models"].items() if len(seeds) == 3}
    assert three == {"criterion", "criterion_swapped", "scalar_blind", "no_safety_data"}
