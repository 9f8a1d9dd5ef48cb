"""The study of systems from end to end on tiny bases, and its results and contrasts by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from helpers.benches import make, noisy

from promedical_utils.core import profiles
from promedical_utils.core.workspace import KitError
from promedical_utils.evaluation import bench as benches
from promedical_utils.pipeline import base, preference_pairs, rubrics
from promedical_utils.reward_model import model as reward_model
from promedical_utils.run import graph, publish
from promedical_utils.studies import catalog, results, small_systems
from promedical_utils.studies.study import kind_of
from promedical_utils.studies.systems import Systems

pytestmark = pytest.mark.training  # fits models

PLAN = {
    "criterion": [1, 2],
    "scalar_overall": [1],
    "pair_rm": [1],
    "verifier": [1],
    "rar_implicit": [1],
}


NAMES = kind_of("systems")["labels"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    profile = profiles.load(
        "smoke",
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
    base.make_base(profile, folder)
    rubrics.make_rubrics(profile, folder)
    preference_pairs.make_preference_pairs(profile, folder)
    found = Systems(PLAN, "seed 3").run(profile, folder, folder / "systems")
    return profile, folder, found


def test_every_system_has_a_row_and_what_it_cannot_do_is_empty(done):
    _, folder, _ = done
    table = pd.read_csv(folder / "systems/table_truth.csv").set_index("system")
    assert list(table.index) == list(NAMES.values())
    has = table.notna()
    points = "run_pointwise_safety"
    for name in ("criterion", "verifier"):
        assert has.loc[NAMES[name], [points, "run_overall_accuracy"]].all()
    for name in ("scalar_overall", "pair_rm", "rar_implicit", "length"):
        assert not has.loc[NAMES[name], points]
        assert has.loc[NAMES[name], ["run_pairwise_all", "run_overall_accuracy"]].all()
    assert table.seeds.tolist() == [2, 1, 1, 1, 1, 0]
    files = {path.name for path in (folder / "systems").iterdir()}
    assert {
        "sums.parquet",
        "results.csv",
        "manifest.json",
        "table_truth.md",
        "table_adjudicated.tex",
    } <= files


def test_the_budget_is_the_same(done):
    _, folder, _ = done
    manifest = json.loads((folder / "systems/manifest.json").read_text())
    assert len({(row["steps"], row["groups"]) for row in manifest["models"]}) == 1
    assert manifest["frozen_on"] == "seed 3"


def test_a_second_run_trains_and_scores_nothing_and_changes_nothing(done, monkeypatch):
    profile, folder, _ = done
    before = {p: p.read_bytes() for p in (folder / "systems").iterdir()}

    def refuse(*_, **__):
        raise AssertionError("a model was trained or loaded")

    for module, name in (
        (reward_model, "load"),
        (small_systems, "load"),
        (base, "make_base"),
        (reward_model, "base_for"),
    ):
        monkeypatch.setattr(module, name, refuse)
    Systems(PLAN, "seed 3").run(profile, folder, folder / "systems")
    assert {p: p.read_bytes() for p in (folder / "systems").iterdir()} == before


def test_results_and_tables_come_out_of_the_published_files_alone(done, tmp_path):
    _, folder, found = done
    publish._measured(folder / "systems", "manifest.json", tmp_path / "systems", "make study")
    before = {p.name: p.read_bytes() for p in (tmp_path / "systems").iterdir()}
    for name in ("results.csv", "table_truth.csv", "table_adjudicated.md"):
        (tmp_path / "systems" / name).unlink()
    Systems(PLAN).redraw(tmp_path / "systems")
    assert {p.name: p.read_bytes() for p in (tmp_path / "systems").iterdir()} == before
    pd.testing.assert_frame_equal(results.read(tmp_path / "systems"), found)
    assert list(found) == results.COLUMNS


@pytest.fixture(scope="module")
def counted():
    made, _ = make()
    names = (
        "criterion-1",
        "criterion-2",
        "rar_implicit-1",
        "rar_implicit-2",
        "scalar_overall-1",
        "length",
    )
    return benches.tally(made, noisy(made, names))


def counts(counted, others=()):
    return results.count(Systems({}).by_training(counted), others, (), 200, 3)


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
    own = ("criterion", "rar_implicit")
    less = counts(counted, own).query("how == 'less'")
    pairs = {(row.system, row.other) for row in less.itertuples()}
    others = {"criterion", "rar_implicit", "scalar_overall", "length"}
    assert pairs == {(a, b) for a in others for b in own if a != b}
    at = less[(less.metric == "overall") & (less.against == "truth")]
    at = at.set_index(["system", "other", "seed"])
    keys = {s: [(f"{name}-{s}", "overall", "all", "truth") for name in own] for s in "12"}
    for seed in "12":
        wanted = counted.difference(dict(zip(keys[seed], (1, -1))), 200, 3)
        row = at.loc[("criterion", "rar_implicit", seed)]
        assert [row.value, row.low, row.high] == pytest.approx(
            [wanted["difference"], wanted["low"], wanted["high"]]
        )
    whole = less.query("system == 'criterion' and other == 'rar_implicit' and seed == 'mean'")
    parts = kind_of("systems")["slices"]
    cells = [at for metric in parts if metric != "pointwise" for at in parts[metric]]
    cells = [at for at in cells if not at.startswith("rich ")]  # of one bench, and no verdicts
    assert len(whole) == 2 * len(cells) and whole.value.ne(0).sum() > 9
    for row in whole.itertuples():
        parts = {
            (f"{x}-{s}", row.metric, row.slice, row.against): sign / 2
            for x, sign in ((row.system, 1), (row.other, -1))
            for s in "12"
        }
        wanted = counted.difference(parts, 200, 3)
        ends = [wanted[name] for name in ("difference", "low", "high", "n")]
        assert [row.value, row.low, row.high, row.n] == pytest.approx(ends)
    assert at.loc[("scalar_overall", "criterion")].index.tolist() == ["1", "mean"]
    assert at.loc[("length", "criterion")].index.tolist() == ["mean"]


def test_sums_are_read_as_they_were_written(counted, tmp_path):
    sums = Systems({}).by_training(counted)
    results.write_sums(tmp_path, results.rows_of(sums))
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
        Systems({"gpt": [1]}).run(profile, folder, folder / "x")


def test_a_study_of_systems_is_run_in_its_own_folder(monkeypatch):
    seen = []
    monkeypatch.setenv(profiles.OVERRIDES, "rm_epochs=0.5")
    monkeypatch.setattr(graph, "reproduce", lambda *given: None)
    monkeypatch.setattr(Systems, "run", lambda *given: seen.append(given))
    graph.run_study("systems")
    [(made, profile, folder, out)] = seen
    assert (profile.seed, profile.rm_epochs) == (7129, 0.5)
    assert made.frozen_on == catalog.plan_of("systems")["frozen_on"]
    assert out == folder / "systems" and folder.as_posix().endswith("runs/studies/systems/main")
    assert made.plan == catalog.plan_of("systems")["systems"]


def test_the_committed_plan_is_frozen_and_known():
    plan = catalog.plan_of("systems")
    assert set(plan["systems"]) <= set(NAMES) and plan["frozen_on"]
    three = {name for name, seeds in plan["systems"].items() if seeds == [1, 2, 3]}
    assert three == {"criterion", "scalar_overall"}
    seed = profiles.overrides(plan["runs"]["main"])["seed"]
    assert seed != profiles.load("cpu").seed and f"seed {seed}" not in plan["frozen_on"]
