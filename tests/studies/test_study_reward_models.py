"""The study from end to end on a tiny base, and its tables by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers.benches import make, noisy

from promedical_studies import counting
from promedical_studies.reward_models import RewardModels
from promedical_utils.core import profiles
from promedical_utils.core.workspace import KitError
from promedical_utils.evaluation import bench as benches
from promedical_utils.pipeline import base, preference_pairs, rubrics
from promedical_utils.reward_model import model as reward_model
from promedical_utils.reward_model import variants
from promedical_utils.run import graph, publish
from promedical_utils.studies import catalog, results
from promedical_utils.studies.catalog import kind_of
from promedical_utils.studies.results import Cells

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
    found = RewardModels(PLAN).run(profile, folder, folder / "study")
    return profile, folder, found


def test_every_model_of_the_plan_is_measured_beside_rules_and_controls(done):
    _, folder, found = done
    assert set(found.system) == {*PLAN, *RULED, *PLAIN}
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
    _, _, found = done
    cells = Cells(found)
    usual, rich = (
        cells.means["criterion", "pairwise", part, "adjudicated"]["n"]
        for part in ("safety", "rich seen")
    )
    assert usual == 2 and rich == 12
    vetoed = cells.ends(("always_veto", "clean_vetoed_paper", "rich safety", "truth"))
    assert vetoed[0] == 1 and cells.means["always_met", "overall", "rich all", "truth"]["n"] > 12


def test_a_value_is_the_mean_of_its_seeds_and_the_difference_is_paired(done):
    _, _, found = done
    cells, overall = Cells(found), ("overall", "all", "truth")
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


def test_results_and_tables_come_out_of_the_published_files_alone(done, tmp_path):
    _, folder, found = done
    publish._measured(folder / "study", "manifest.json", tmp_path / "study", "make study")
    before = {p.name: p.read_bytes() for p in (tmp_path / "study").iterdir()}
    for name in ("results.csv", "table_truth.csv", "table_adjudicated.md"):
        (tmp_path / "study" / name).unlink()
    RewardModels(PLAN).redraw(tmp_path / "study")
    assert {p.name: p.read_bytes() for p in (tmp_path / "study").iterdir()} == before
    pd.testing.assert_frame_equal(results.read(tmp_path / "study"), found)
    assert list(found) == counting.COLUMNS


@pytest.fixture(scope="module")
def counted():
    made, _ = make()
    names = (
        "criterion-1",
        "criterion-2",
        "scalar_blind-1",
        "scalar_blind-2",
        "scalar_overall-1",
        "length",
    )
    return benches.tally(made, noisy(made, names))


def counts(counted, others=()):
    return counting.count(RewardModels({}).by_training(counted), others, (), 200, 3)


def test_a_mean_is_that_of_its_seeds(counted):
    found = counts(counted).set_index(["system", "seed", "metric", "slice", "against"])
    plain = counted.table(200, 3).set_index(["scorer", "metric", "slice", "against"])
    at = ("overall", "all", "truth")
    for seed in "12":
        row, wanted = found.loc[("criterion", seed, *at)], plain.loc[(f"criterion-{seed}", *at)]
        numbers = ["value", "low", "high", "n"]
        assert row[numbers].tolist() == pytest.approx(wanted[numbers].tolist())
    mean = found.loc[("criterion", "mean", *at)]
    assert mean.value == pytest.approx(
        sum(found.loc[("criterion", s, *at)].value for s in "12") / 2
    )
    assert mean.low <= mean.value <= mean.high
    assert found.loc["length"].index.get_level_values("seed").unique().tolist() == ["mean"]
    assert ("scalar_overall", "mean", "veto_f1", "safety", "truth") not in found.index


def test_a_difference_is_paired_by_seed_and_over_all_seeds(counted):
    own = ("criterion", "scalar_blind")
    less = counts(counted, own).query("how == 'less'")
    pairs = {(row.system, row.other) for row in less.itertuples()}
    others = {"criterion", "scalar_blind", "scalar_overall", "length"}
    assert pairs == {(a, b) for a in others for b in own if a != b}
    at = less[(less.metric == "overall") & (less.against == "truth")]
    at = at.set_index(["system", "other", "seed"])
    keys = {s: [(f"{name}-{s}", "overall", "all", "truth") for name in own] for s in "12"}
    for seed in "12":
        wanted = counted.difference(dict(zip(keys[seed], (1, -1))), 200, 3)
        row = at.loc[("criterion", "scalar_blind", seed)]
        assert [row.value, row.low, row.high] == pytest.approx(
            [wanted["difference"], wanted["low"], wanted["high"]]
        )
    whole = less.query("system == 'criterion' and other == 'scalar_blind' and seed == 'mean'")
    parts = kind_of("reward_models")["slices"]
    has = [{key[1:] for key in counted.keys if key[0] == f"{name}-1"} for name in own]
    cells = {cell for cell in set.intersection(*has) if cell[1] in parts.get(cell[0], ())}
    assert {"pairwise", "overall", "veto_f1_paper"} <= {metric for metric, *_ in cells}
    assert {(row.metric, row.slice, row.against) for row in whole.itertuples()} == cells
    assert len(whole) == len(cells) and whole.value.ne(0).sum() > 9
    for row in whole.itertuples():
        parts = {
            (f"{x}-{s}", row.metric, row.slice, row.against): sign / 2
            for x, sign in ((row.system, 1), (row.other, -1))
            for s in "12"
        }
        wanted = counted.difference(parts, 200, 3)
        ends = [wanted[name] for name in ("difference", "low", "high", "n")]
        assert [row.value, row.low, row.high, row.n] == pytest.approx(ends, nan_ok=True)
    assert at.loc[("scalar_overall", "criterion")].index.tolist() == ["1", "mean"]
    assert at.loc[("length", "criterion")].index.tolist() == ["mean"]


def test_sums_are_read_as_they_were_written(counted, tmp_path):
    sums = RewardModels({}).by_training(counted)
    counting.write_sums(tmp_path, [counting.rows_of(sums)])
    again = results.read_sums(tmp_path)
    order = [sums.samples.instruction_id.tolist().index(i) for i in again.samples.instruction_id]
    counted = [n for n, total in enumerate(sums.counts.sum(axis=0)) if total]
    assert again.keys == [sums.keys[n] for n in counted]
    assert (again.hits == sums.hits[np.ix_(order, counted)]).all()
    assert (again.counts == sums.counts[np.ix_(order, counted)]).all()
    assert again.samples.condition.tolist() == sums.samples.condition[order].tolist()
    with pytest.raises(KitError, match="missing .*sums.parquet"):
        results.read_sums(tmp_path / "none")


def test_an_unknown_system_is_one_line(done):
    profile, folder, _ = done
    with pytest.raises(KitError, match="unknown system 'gpt'"):
        RewardModels({"gpt": [1]}).run(profile, folder, folder / "x")


def test_a_study_is_run_in_its_own_folder(monkeypatch):
    seen = []
    monkeypatch.setenv(profiles.OVERRIDES, "rm_epochs=0.5")
    monkeypatch.setattr(graph, "reproduce", lambda *given: None)
    monkeypatch.setattr(RewardModels, "run", lambda *given: seen.append(given))
    graph.run_study("reward_models")
    [(made, profile, folder, out)] = seen
    assert (profile.seed, profile.rm_epochs) == (4103, 0.5)
    assert made.frozen_on == catalog.plan_of("reward_models")["frozen_on"]
    assert out == folder / "reward_models" and folder.as_posix().endswith(
        "runs/studies/reward_models/main"
    )
    assert made.plan == catalog.plan_of("reward_models")["reward_models"]


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
    plan = catalog.plan_of("reward_models")
    seed = profiles.overrides(plan["runs"]["main"])["seed"]
    assert plan["frozen_on"] and f"seed {seed}" not in plan["frozen_on"]
    for name, seeds in plan["reward_models"].items():
        assert variants.find(name) and len(seeds) == len(set(seeds)) >= 1
    three = {name for name, seeds in plan["reward_models"].items() if len(seeds) == 3}
    assert three == {"criterion", "criterion_swapped", "scalar_blind", "no_safety_data"}
