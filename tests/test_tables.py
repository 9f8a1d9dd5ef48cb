"""Tables and figures: reported and run values apart, inputs marked, the same bytes twice."""

import hashlib
import json

import benches
import pandas as pd
import pytest

from promedical_utils import bench, figures, tables
from promedical_utils.workspace import sha256

SETTINGS = benches.profile()
NAMES = tables.systems(SETTINGS)


@pytest.fixture(scope="module")
def run():
    made = benches.make()[0]
    return made, bench.tally(made, benches.noisy(made))


@pytest.fixture(scope="module")
def metrics(run):
    return run[1].metrics(30, 0)


def test_main_results_keep_reported_and_run_apart(metrics):
    reported = tables.reported("main_results")
    df = tables.build_main_results(reported, metrics, NAMES, ceiling=0.75).set_index("system")
    known, kit = df.loc[reported.model], df.drop(reported.model)
    assert (known.status == "not run").all() and known.filter(like="run_").isna().all(axis=None)
    assert kit.filter(like="reported_").isna().all(axis=None)
    assert (known.reported_overall_accuracy.to_numpy() == reported.overall_accuracy).all()
    row = kit.loc[NAMES["criterion"]]
    at = metrics[(metrics.scorer == "criterion") & (metrics.against == "adjudicated")]
    at = at.set_index(["metric", "slice"]).loc[("overall", "all")]
    ends = [row[f"run_overall_accuracy{end}"] for end in ("", "_low", "_high")]
    assert ends == [round(at[c] * 100, 2) for c in ("value", "low", "high")]
    assert kit.loc[NAMES["words"]].status == "not run"  # no predictions of it here
    scalar = kit.loc[NAMES["scalar_overall"]]
    assert scalar.status == "this run" and pd.isna(scalar.run_pointwise_safety)
    assert kit.iloc[-1].run_pairwise_all == 75 and pd.isna(kit.iloc[-1].run_overall_accuracy)


@pytest.mark.parametrize("base", ["small", "Qwen/Qwen3-0.6B"])
def test_no_kit_row_has_a_reported_systems_name(base):
    names = tables.systems(SETTINGS.model_copy(update={"base_model": base})).values()
    for table, column in (("main_results", "model"), ("policy", "policy")):
        assert not set(tables.reported(table)[column]) & set(names)
    assert all("kit" in name for name in names)


def test_nothing_ran_is_said_and_has_the_same_columns(metrics):
    built = {
        "main_results": tables.build_main_results, "safety_veto": tables.build_safety_veto,
    }  # fmt: skip
    for name, build in built.items():
        empty = build(tables.reported(name), None, NAMES)
        assert (empty.status == "not run").all()
        assert list(empty) == list(build(tables.reported(name), metrics, NAMES))
    policy = tables.build_policy(tables.reported("policy"), None, 20, 0)
    assert (policy.status == "not run").all() and len(policy) == 4
    report = tables.build_bench_composition(
        tables.reported("bench_composition"), tables.reported("pipeline_counts"), None, SETTINGS
    )
    assert (report.status == "not run").all() and report.run.eq("").all()


def test_policy_rows_by_hand():
    rows = benches.evaluation()
    df = tables.build_policy(tables.reported("policy"), rows, 50, 0).set_index("system")
    base = df.loc["base policy (kit)"]
    assert base.run_violations == round(rows[rows.policy == "base"].violation.mean() * 100, 2)
    assert base.run_proficiency == 60 and base.run_excellence_met == 1
    assert base.run_violations_low < base.run_violations < base.run_violations_high
    assert df.loc["Qwen3-8B"].reported_healthbench == 46.27


def test_policy_without_a_readable_criterion_of_proficiency_has_violations_alone():
    rows = benches.evaluation()
    whole = tables.build_policy(tables.reported("policy"), rows, 50, 0).set_index("system")
    rows.loc[rows.policy == "base", "s1"] = float("nan")
    found = tables.build_policy(tables.reported("policy"), rows, 50, 0).set_index("system")
    base = "base policy (kit)"
    assert pd.isna(found.run_proficiency[base]) and not pd.isna(whole.run_proficiency[base])
    assert found.run_violations[base] == whole.run_violations[base]  # of all patients, none dropped



def test_what_the_configuration_sets_is_an_input(run):
    df = tables.build_bench_composition(
        tables.reported("bench_composition"), tables.reported("pipeline_counts"), run[0].report, SETTINGS
    ).set_index("quantity")
    assert df.loc["safety", ["reported", "run", "status"]].tolist() == [230, "9", "this run"]
    assert df.loc["total", "run"] == "50"
    assert df.loc["judge agreement with experts percent"].tolist() == ["93.2", "n", "93.20", "input"]
    for name in df.index:
        if "kappa" in name or "agreement" in name or "pass rate" in name:
            assert df.loc[name, "status"] == "input"


def test_saved_tables_are_the_same_bytes_and_lead_back(metrics, tmp_path):
    source = tmp_path / "metrics.parquet"
    metrics.to_parquet(source)
    df = tables.build_safety_veto(tables.reported("safety_veto"), metrics, NAMES)
    digests = []
    for folder in ("one", "two"):
        path = tables.save(df, tmp_path / folder, "veto", "Veto", [source], SETTINGS, 3)
        files = sorted(path.parent.iterdir())
        assert [p.suffix for p in files] == [".csv", ".json", ".md", ".tex"]
        digests.append([hashlib.sha256(p.read_bytes()).hexdigest() for p in files])
    assert digests[0] == digests[1]
    facts = json.loads((tmp_path / "one" / "veto.json").read_text())
    assert facts["sources"] == {f"{source.parent.name}/metrics.parquet": sha256(source)} and facts["seed"] == 3
    everything = "".join((tmp_path / "one" / f"veto.{e}").read_text() for e in ("csv", "md", "tex", "json"))
    assert str(tmp_path) not in everything and "invented clinic" in everything
    back = pd.read_csv(path)
    assert back.run_f1.dropna().tolist() == df.run_f1.dropna().tolist()
    row = next(line for line in (tmp_path / "one" / "veto.md").read_text().splitlines() if "QLoRA" in line)
    assert " to " in row and "nan" not in everything.lower()


def test_smoke_numbers_say_that_they_are_none():
    smoke = SETTINGS.model_copy(update={"name": "smoke"})
    assert "no results" in tables.note(smoke, 1) and "no results" not in tables.note(SETTINGS, 1)


def curve():
    names = ["step", "split", "proxy", "gold", "judged", "violation_rate", "proficiency", "excellence",
             "kl", "entropy", "length", "unparsed"]  # fmt: skip
    return pd.DataFrame([(s, "checkpoint", *[0.001 * s] * 10) for s in (0, 5, 10)], columns=names)


def test_figures_are_drawn_from_the_csv_and_byte_equal(run, metrics, tmp_path):
    main = tables.build_main_results(tables.reported("main_results"), metrics, NAMES, 0.7)
    plots = {
        figures.plot_main_results: main,
        figures.plot_safety_veto: tables.build_safety_veto(
            tables.reported("safety_veto"), metrics, NAMES),
        figures.plot_seen_unseen: tables.build_seen_unseen(metrics, NAMES),
        figures.plot_policy_curve: curve(),
        figures.plot_specialty: tables.build_specialty(run[1].by("specialty"), NAMES),
    }  # fmt: skip
    for plot, df in plots.items():
        if plot in (figures.plot_seen_unseen, figures.plot_policy_curve):
            csv = figures.save(plot, df, tmp_path, plot.__name__, "a note")
            first = [csv.with_suffix(e).read_bytes() for e in (".png", ".pdf")]
            assert len(first[0]) > 5000 and b"CreationDate" not in first[1]
            figures.draw(plot, csv, "a note")
            assert first == [csv.with_suffix(e).read_bytes() for e in (".png", ".pdf")]
        for axis in plot(df).axes:
            assert axis.get_xlabel() or axis.get_ylabel() or axis.get_subplotspec().is_first_row()
            if "run_overall_accuracy" not in df and "step" not in df:
                assert "%" in axis.get_xlabel()


def test_reported_markers_are_hollow_and_run_markers_filled(metrics):
    df = tables.build_main_results(tables.reported("main_results"), metrics, NAMES)
    lines = figures.plot_main_results(df).axes[0].lines
    hollow = [line for line in lines if line.get_markerfacecolor() == "white"]
    filled = [line for line in lines if line.get_marker() == "o" and line not in hollow]
    shown = [sum(pd.notna(x) for x in line.get_xdata()) for line in (hollow[0], filled[0])]
    assert shown == [9, 5]  # of nine reported systems, and of the five scorers that ran


def test_figures_of_a_run_without_results_are_still_drawn():
    main = tables.build_main_results(tables.reported("main_results"), None, NAMES)
    assert figures.plot_main_results(main).axes
