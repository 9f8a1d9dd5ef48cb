"""The study from end to end on a tiny base, and its tables by hand."""

import json

import pandas as pd
import pytest

from promedical_utils.core import profiles, run_data
from promedical_utils.core.workspace import KitError
from promedical_utils.pipeline import bench, preference_pairs, rubrics
from promedical_utils.reward_model import model as reward_model
from promedical_utils.reward_model import variants
from promedical_utils.studies import reward_models
from promedical_utils.studies.results import Cells
from promedical_utils.studies.reward_models import RewardModels
from promedical_utils.studies.study import STUDIES, kind_of

pytestmark = pytest.mark.training  # fits models

SEEN = ("all", "seen", "unseen")
PLAN = {
    "criterion": [1, 2],
    "scalar_overall": [1, 2],
    "fixed_heads": [1],
    **{f"only_{d}": [1] for d in ("proficiency", "excellence", "safety")},
}


@pytest.fixture(scope="module")
def done(tiny_base, tmp_path_factory):
    profile = profiles.load(
        "smoke",
        base_model=str(tiny_base),
        rm_lora_rank=4,
        rm_epochs=0.25,
        rm_max_tokens=1024,
        train_instructions=16,
        calibration_instructions=12,
        bench_samples=12,
        bench_pairs_proficiency=25,
        bench_pairs_excellence=10,
        bench_pairs_safety=2,
    )
    folder = tmp_path_factory.mktemp("study")
    rubrics.make_rubrics(profile, folder)
    preference_pairs.make_preference_pairs(profile, folder)
    results = RewardModels(PLAN).run(profile, folder, folder / "study")
    return profile, folder, results


def test_every_model_of_the_plan_is_measured_and_parts_are_joined(done):
    _, folder, results = done
    assert set(results.system) == {
        "criterion",
        "scalar_overall",
        "fixed_heads",
        "only_one_dimension",
        "mean_of_criteria",
        "words",
        "length",
    }
    manifest = json.loads((folder / "study/manifest.json").read_text())
    assert len(manifest["models"]) == 8 and manifest["plan"] == PLAN
    steps = {row["model"]: row["steps"] for row in manifest["models"]}
    assert steps["criterion"] == steps["scalar_overall"] == steps["fixed_heads"] > 0
    assert len({row["groups"] for row in manifest["models"]}) <= 2  # all of the instructions
    files = {path.name for path in (folder / "study").iterdir()}
    assert {
        "results.csv",
        "sums.parquet",
        "goals.json",
        "table_truth.md",
        "table_adjudicated.tex",
        "reward_models.png",
    } <= files
    table = pd.read_csv(folder / "study/table_truth.csv")
    assert table.set_index("model").loc["criterion RM: QLoRA, judge labels", "seeds"] == 2


def test_a_value_is_the_mean_of_its_seeds_and_the_difference_is_paired(done):
    _, _, results = done
    cells, overall = Cells(results), ("overall", "all", "truth")
    own, base = (cells.ends((name, *overall)) for name in ("criterion", "scalar_overall"))
    each = cells.trained["criterion", *overall]
    assert list(each) == ["1", "2"] and own[0] == pytest.approx(sum(each.values()) / 2)
    value, low, high = cells.ends(("criterion", *overall, "less", "scalar_overall"))
    assert value == pytest.approx(own[0] - base[0]) and low <= value <= high
    assert ("scalar_overall", *overall, "less", "scalar_overall") not in cells.means
    assert ("scalar_overall", "veto_recall", "safety", "truth") not in cells.means
    kinds = {s: cells.means["criterion", "pairwise", s, "truth"]["n"] for s in SEEN}
    assert kinds["seen"] + kinds["unseen"] == kinds["all"]


def test_one_model_per_dimension_is_asked_for_its_own_alone(done):
    profile, folder, _ = done
    made = bench.compose_bench(profile, run_data.RunData.load(folder))[0]
    frames = []
    for number, name in enumerate(reward_models.PARTS):
        cells = made.verdicts[["instruction_id", "candidate_id", "criterion_id"]]
        frames.append(
            cells.assign(scorer=f"{name}-1", score=float(number), probability=0.5, met=True)
        )
    [joined] = reward_models.derived(frames, made.criteria)
    of = made.criteria.set_index("criterion_id").dimension
    wanted = joined.criterion_id.map(of).map({"proficiency": 0, "excellence": 1, "safety": 2})
    assert (joined.score == wanted).all() and len(joined) == len(made.verdicts)


def test_mean_of_criteria_by_hand(done):
    profile, folder, _ = done
    made = bench.compose_bench(profile, run_data.RunData.load(folder))[0]
    rows = [
        ("i", "a", "c1", 0.2),
        ("i", "a", "c2", 0.6),
        ("i", "b", "c1", 0.9),
        ("i", "b", "c2", 0.3),
    ]
    frame = pd.DataFrame(
        rows, columns=["instruction_id", "candidate_id", "criterion_id", "probability"]
    )
    frame = frame.assign(scorer="criterion-1", score=0.0, met=True)
    [mean] = reward_models.derived([frame], made.criteria)
    assert mean.score.tolist() == pytest.approx([0.4, 0.6]) and set(mean.criterion_id) == {""}


def test_a_second_run_trains_and_scores_nothing_and_changes_nothing(done, monkeypatch):
    profile, folder, _ = done
    before = {p: p.read_bytes() for p in (folder / "study").iterdir()}

    def refuse(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(reward_model, "load", refuse)
    RewardModels(PLAN).run(profile, folder, folder / "study")
    assert {p: p.read_bytes() for p in (folder / "study").iterdir()} == before


def test_goals_say_what_was_measured_or_that_nothing_was(done):
    _, _, results = done
    asked = kind_of("reward_models")["goals"]

    def goals(rows):
        return {row["id"]: row for row in reward_models.goals(Cells(rows), asked)}

    found = goals(results)
    assert found["ceiling"]["value"] is None and found["ceiling"]["reached"] is None
    assert found["veto_recall"]["reached"] == (found["veto_recall"]["value"] >= 0.95)
    high = results.assign(value=0.99, low=0.1)
    clean = high[high.system == "criterion"].assign(system="criterion_clean")
    assert all(row["reached"] for row in goals(pd.concat([high, clean])).values())
    worse = pd.concat([high.assign(value=0.95, low=-0.01), clean])
    found = {name: row["reached"] for name, row in goals(worse).items()}
    assert found == {
        "ceiling": True,
        "near_ceiling": False,
        "veto_recall": True,
        "veto_precision": True,
        "above_scalar": False,
    }


def test_recipes(tiny_groups):
    assert (
        variants.find("no_safety_data").groups(tiny_groups)[0].criteria
        == tiny_groups[0].criteria[:2]
    )
    only = variants.find("only_safety").groups(tiny_groups)
    assert len(only) == 12 and {c.dimension for g in only for c in g.criteria} == {"safety"}
    profile = profiles.load("smoke", rm_epochs=3.0)
    assert variants.find("only_safety").profile(profile).rm_epochs == 1.0
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
    assert three == {"criterion", "scalar_overall"}
