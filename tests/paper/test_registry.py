"""A run's tables and figures from its files: what each reads, the same bytes twice, no torch."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from helpers import benches
from helpers.runs import write_run, write_study

from promedical_utils.core import profiles
from promedical_utils.core.workspace import KitError, project_root
from promedical_utils.evaluation import bench
from promedical_utils.paper import registry
from promedical_utils.report import tables
from promedical_utils.reward_model import calibration
from promedical_utils.run import publish

PROFILE = benches.profile()
ROOT = project_root()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout with reported values, one published run and one published study, and no code."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "Snakefile").touch()
    shutil.copytree(ROOT / "papers_figures/paper_values", root / "papers_figures/paper_values")
    write_run(root / "papers_figures/cpu")
    write_study(root / "papers_figures/studies/policies")
    write_study(root / "papers_figures/studies/of_another_profile", "smoke")
    return root


@pytest.fixture
def here(checkout, tmp_path, monkeypatch):
    """A copy of the checkout, as the working directory."""
    root = tmp_path / "copy"
    shutil.copytree(checkout, root)
    monkeypatch.chdir(root)
    return root


def contents(root):
    return {
        p.relative_to(root).as_posix(): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are counted and not drawn, which takes most of the time."""
    monkeypatch.setattr(registry.plotting, "save", lambda plot, frame, *rest: None)


def test_a_published_run_is_redrawn_byte_equal_without_torch(here, checkout):
    sizes = {name: getattr(PROFILE, name) for name in benches.SIZES}
    command = (
        "import sys; from promedical_utils.core import profiles; "
        "from promedical_utils.run import publish; "
        f"print(publish.redraw(profiles.load('cpu', **{sizes}))); "
        "assert not {'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules)"
    )
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=here, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    first = contents(here)
    assert len(first) > len(contents(checkout))
    said = publish.redraw(PROFILE)  # in place, from what it has just written, in another process
    assert contents(here) == first and said == done.stdout.strip()
    assert "redrawn: papers_figures/studies/policies" in said
    assert "not built" not in said and "another_profile" not in said
    for name, content in first.items():
        if name.endswith(".pdf"):
            assert b"CreationDate" not in content and b"ModDate" not in content, name
        if name.endswith(".png"):
            assert b"tIME" not in content and b"Software" not in content, name
        if name.endswith((".csv", ".md", ".tex", ".json")):
            assert str(here).encode() not in content, name
    place, tables_made = here / "papers_figures/cpu", set(registry.TABLES) - {"by_source"}
    assert {p.stem for p in place.glob("tables/*.md")} == tables_made
    for ending in ("csv", "png", "pdf", "json"):
        assert {p.stem for p in place.glob(f"figures/*.{ending}")} == set(registry.FIGURES)
    facts = json.loads((place / "figures/dimensions.json").read_text())
    assert facts["table"] == "main_results" and "bench/predictions.parquet" in facts["sources"]
    assert facts["function"] == "figures.plot_dimensions" and facts["seed"] == PROFILE.seed


def test_a_whole_run_gives_every_table_with_its_sources(here, undrawn):
    report = registry.build(PROFILE, here / "papers_figures/cpu", here / "out")
    wanted = {name for name, table in registry.TABLES.items() if "clinic" in table.data}
    assert set(report["tables"]) == wanted and report["not_built"] == {}
    assert set(report["figures"]) == set(registry.FIGURES)
    assert (here / "out/claims.json").exists() and report["claims"]
    facts = json.loads((here / "out/tables/ablation.json").read_text())
    files = ("results.csv", "evaluation.parquet")
    assert set(facts["studies"]) == {f"policies/{file}" for file in files}
    assert (
        facts["sources"] == {}
        and "not this run" in facts["note"]
        and facts["reported"].keys() == {"ablation.csv"}
    )
    policy = pd.read_csv(here / "out/tables/policy.csv")  # no judge was set for HealthBench
    assert set(policy.healthbench.dropna()) == {"not run"}
    external = pd.read_csv(here / "out/tables/external.csv")
    assert external.run_q_criteria[external.beside == "ProMedical-RAG"].tolist() == [75.0]


def test_reported_and_own_values_share_no_row_and_keys_name_one(here):
    run = registry.Run(PROFILE, here / "papers_figures/cpu")
    assert set(run.frames) == {n for n, t in registry.TABLES.items() if "clinic" in t.data}
    for name, frame in run.frames.items():
        assert not frame.duplicated(list(registry.TABLES[name].key)).any(), name
        reported, own = (frame.filter(regex=f"^{who}_").notna() for who in ("reported", "run"))
        if name not in ("data_pipeline",):  # there a row is a quantity, of both
            assert not (reported.any(axis=1) & own.any(axis=1)).any(), name
        if "status" in frame and name != "data_pipeline":
            assert not own[frame.status == "not run"].any(axis=None), name
            assert set(frame.status) <= {"this run", "not run", "input", "study"}, name
        for files in registry.TABLES[name].files(run).values():
            assert all(file.exists() for file in files.values()), name


@pytest.mark.parametrize(
    "file, tables_gone, figures_gone",
    [
        (
            "policy/verdicts.parquet",
            {"policy_dimension"},
            {"policy_dimension"},
        ),
        ("policy/curve.csv", set(), {"gold_over_kl", "policy_curve"}),
        ("policy/testbed.csv", {"testbed"}, {"testbed"}),
        ("reward/criterion/calibration.json", {"calibration"}, {"calibration"}),
        ("data/funnel.csv", set(), {"overview", "curation_funnel"}),
        ("reward/heldout.parquet", set(), set()),
        (
            "policy/evaluation.parquet",
            {"policy_dimension"},
            {"policy_dimension"},
        ),
    ],
)
def test_what_cannot_be_built_is_said_in_a_line(here, undrawn, file, tables_gone, figures_gone):
    place = here / "papers_figures/cpu"
    (place / file).unlink()
    report = registry.build(PROFILE, place, here / "out")
    assert set(report["not_built"]) == tables_gone | figures_gone
    for why in report["not_built"].values():
        assert why.startswith(f"needs {file}, which 0") and "\n" not in why
    assert not tables_gone & set(report["tables"]) and not figures_gone & set(report["figures"])
    assert set(report["figures"]) == set(registry.FIGURES) - figures_gone
    if file == "policy/evaluation.parquet":  # the table is there, its rows say so
        policy = pd.read_csv(here / "out/tables/policy.csv")
        assert (policy.status == "not run").all()


def test_outside_predictions_without_their_report_are_no_run(here):
    (here / "papers_figures/cpu/external/report.json").unlink()
    run = registry.Run(PROFILE, here / "papers_figures/cpu")
    assert run.outside_report is None
    table = run.frames["external"]
    assert (table.status[table.set != "as reported"] == "not run").all()


def test_no_predictions_is_one_clear_error(here):
    (here / "papers_figures/cpu/bench/predictions.parquet").unlink()
    with pytest.raises(KitError, match="predictions.parquet"):
        publish.redraw(PROFILE)


def test_one_changed_prediction_changes_the_tables_that_read_it_alone(here):
    place = here / "papers_figures/cpu"
    run = registry.Run(PROFILE, place)
    before = run.frames
    path = place / "bench/predictions.parquet"
    frame = pd.read_parquet(path)
    pair = pd.read_parquet(place / "bench/pairs.parquet").iloc[0]
    at = (frame.scorer == "criterion") & (frame.candidate_id == pair.chosen_id)
    at &= frame.criterion_id == pair.criterion_id
    assert at.sum() == 1
    other = (frame.scorer == "criterion") & (frame.candidate_id == pair.rejected_id)
    less = frame.score[other & (frame.criterion_id == pair.criterion_id)].iloc[0]
    flip = -5.0 if frame.score[at].iloc[0] > less else 5.0
    frame.loc[at, "score"] = flip
    frame.to_parquet(path, index=False)
    after = registry.Run(PROFILE, place).frames
    changed = {n for n in before if not before[n].equals(after[n])}
    sources = {n: registry.TABLES[n].files(run)["sources"] for n in before}
    readers = {n for n, files in sources.items() if "bench/predictions.parquet" in files}
    assert {"main_results", "seen_unseen"} <= changed <= readers
    frames = (p["main_results"].set_index("system") for p in (before, after))
    rows = [f.filter(like="run_").fillna(-1) for f in frames]
    differs = (rows[0] != rows[1]).any(axis=1)
    assert rows[0].index[differs].tolist() == [tables.systems(PROFILE)["criterion"]]


def test_real_and_open_data_never_show_the_clinics_studies(here):
    for data in ("real", "open", "own"):
        profile = PROFILE.model_copy(update={"data": data})
        run = registry.Run(profile, here / "papers_figures/cpu")
        assert (run.frames["ablation"].status == "not run").all()
        assert registry.TABLES["ablation"].files(run)["studies"] == {}
        assert "by_source" in run.frames
        assert "bench_composition" not in run.frames


def test_the_veto_table_is_built_where_a_safety_criterion_is_violated(here):
    place = here / "papers_figures/cpu"
    for path in (place / "bench/rich").glob("*"):  # which only the clinic has
        path.unlink()
    real = PROFILE.model_copy(update={"data": "real"})
    table = registry.Run(real, place).frames["safety_veto"].set_index("system")
    always = table.loc[tables.systems(PROFILE)["criterion"]]
    assert always.labels == "each source's own" and 0 < always.run_f1 <= 100
    assert not [column for column in table if "rich" in column]
    cells = bench.Bench.load(place / "bench")
    safety = cells.criteria.criterion_id[cells.criteria.dimension == "safety"]
    met = cells.verdicts.criterion_id.isin(safety)
    cells.verdicts.loc[met, ["truth", "adjudicated"]] = "met"
    cells.save(place / "bench")
    run = registry.Run(real, place)
    assert "safety_veto" not in run.frames
    assert run.missing["safety_veto"].startswith("not testable: no safety criterion of the bench")


def test_labels_that_nobody_adjudicated_are_named_as_what_they_are(here, undrawn, monkeypatch):
    labels = {"people's": "annotators", "c7": "language_model"}
    monkeypatch.setattr(registry.real_sets, "LABELS", labels)
    place = here / "papers_figures/cpu"
    samples = pd.read_parquet(place / "bench/samples.parquet")
    samples["category"] = samples.condition.where(samples.condition == "c7", "people's")
    samples.to_parquet(place / "bench/samples.parquet", index=False)
    named = {"real": "each source's own", "open": "the judge's", "own": "as brought"}
    for data, of_tables in named.items():
        run = registry.Run(PROFILE.model_copy(update={"data": data}), place)
        registry.build(run.profile, place, here / data)
        shown = pd.read_csv(here / data / "tables/main_results.csv").labels.dropna()
        assert set(shown) == {of_tables}
        claimed = pd.read_csv(here / data / "claims.csv")
        bench_claims = claimed[claimed.claim.isin(["injection_text", "abstract_safety"])]
        assert len(bench_claims) == 2 and bench_claims.n.isna().all()
        assert "expert adjudication" not in (here / data / "claims.md").read_text()


def test_calibration_rows_by_hand():
    made = benches.make()[0]
    predicted = benches.noisy(made)
    fitted = calibration.Calibration(
        {d: {"temperature": 2.0, "bias": 1.0} for d in ("proficiency", "excellence", "safety")},
        0.0,
        0.9,
        {},
    )
    held = pd.DataFrame(
        {
            "scorer": ["criterion", "criterion", "scalar"],
            "dimension": ["safety"] * 3,
            "score": [2.0, -2.0, 0.0],
            "truth": [1.0, np.nan, 0.0],
        }
    )
    rows = registry.calibration_rows(made, predicted, {"criterion": fitted}, held)
    assert set(rows.scorer) == {"criterion"}
    cells = bench.truths(made)
    seen = rows[rows["where"] == "bench, kinds seen"]
    assert len(seen) == cells.seen.sum() and seen.label.mean() == cells.label[cells.seen].mean()
    split = rows[rows["where"] == "split it was fitted on"]
    assert (
        len(split) == 1 and split.label.iloc[0] == 1
    )  # no label, no row; no scorer without calibration
    assert split.probability.iloc[0] == pytest.approx(1 / (1 + np.exp(-2)))
    assert split.raw.iloc[0] == pytest.approx(1 / (1 + np.exp(-2.0)))
    without = registry.calibration_rows(made, predicted, {"criterion": fitted})
    assert set(without["where"]) == {"bench, kinds seen", "bench, kinds unseen"}
    bins = registry.reliability(rows)
    part = bins[
        (bins.dimension == "safety")
        & (bins["where"] == "bench, kinds seen")
        & (bins.version == "P(met)")
    ]
    own = seen[seen.dimension == "safety"]
    assert part.n.sum() == len(own)
    assert (part.met * part.n).sum() == pytest.approx(own.label.sum())


def test_every_profile_knows_its_tables():
    for name in ("smoke", "cpu", "record", "real", "gpu", "paper"):
        data = profiles.load(name).data
        there = {n for n, table in registry.TABLES.items() if data in table.data}
        assert {"main_results", "policy", "ablation", "data_pipeline", "rar"} <= there
    for table in registry.TABLES.values():
        assert all(
            (ROOT / f"papers_figures/paper_values/{stem}.csv").exists() for stem in table.reported
        )
        for file in (*table.needs, *table.reads):
            assert file.split("/")[0] in registry.WRITTEN_BY
