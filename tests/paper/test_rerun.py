"""Does a rerun agree: cell by cell by the stated rule, and never where it would not be fair."""

import json
import shutil

import pandas as pd
import pytest

from promedical_utils.core import profiles
from promedical_utils.core.workspace import KitError, project_root, write_json
from promedical_utils.paper import rerun
from promedical_utils.run import graph

TABLE = pd.DataFrame(
    [
        ("GPT-5", "not run", "77.39", "", "", "", ""),
        ("criterion RM", "this run", "", "80.00", "70.00", "88.00", "40"),
        ("ceiling", "this run", "", "75.00", "", "", ""),
    ],
    columns=[
        "system",
        "status",
        "reported_safety",
        "run_safety",
        "run_safety_low",
        "run_safety_high",
        "n",
    ],
)
COUNTS = pd.DataFrame(
    [("samples", "795", "this run"), ("kappa", "0.97", "input")],
    columns=["quantity", "run", "status"],
)


def outcome(column, value, row=1, table=TABLE, name="t"):
    other = table.copy()
    other.loc[row, column] = value
    cells = pd.DataFrame(rerun.compare_table(name, table, other))
    key = rerun.key_of(table)[0]
    return cells[(cells.row == table[key][row]) & (cells.column == column)].outcome.item()


@pytest.mark.parametrize(
    "column, value, row, wanted",
    [
        ("run_safety", "80.00", 1, "equal"),
        ("run_safety", "70.00", 1, "within"),  # an end belongs to the interval
        ("run_safety", "88.00", 1, "within"),
        ("run_safety", "69.99", 1, "differs"),
        ("run_safety", "88.01", 1, "differs"),
        ("run_safety", "", 1, "differs"),
        ("run_safety", "nan", 1, "differs"),
        ("run_safety_low", "60.00", 1, "end of an interval"),
        ("run_safety_low", "", 1, "differs"),
        ("status", "not run", 1, "differs"),
        ("n", "41", 1, "differs"),  # a count has no tolerance
        ("reported_safety", "77.40", 0, "differs"),
        ("run_safety", "75.01", 2, "differs"),  # no interval, no n
    ],
)
def test_the_rule_cell_by_cell(column, value, row, wanted):
    assert outcome(column, value, row) == wanted


def test_without_an_interval_wilsons_of_n_is_the_tolerance():
    table = TABLE.drop(columns=["run_safety_low", "run_safety_high"])
    from scipy.stats import binomtest

    ends = binomtest(32, 40).proportion_ci(method="wilson")
    inside, outside = f"{100 * ends.low + 0.1:.2f}", f"{100 * ends.low - 0.1:.2f}"
    assert outcome("run_safety", inside, table=table) == rerun.WITHIN
    assert outcome("run_safety", outside, table=table) == rerun.DIFFERS
    assert outcome("run_safety", inside, table=table.assign(n="")) == rerun.DIFFERS
    count = table.assign(run_safety="120.00")  # no share: Wilson's interval says nothing of it
    assert outcome("run_safety", "119.99", table=count) == rerun.DIFFERS


def test_counts_and_inputs_must_be_equal_and_a_measured_share_need_not():
    assert outcome("run", "796", 0, COUNTS) == outcome("run", "0.96", 1, COUNTS) == rerun.DIFFERS
    wide = COUNTS.assign(run_low=["790", "0.90"], run_high=["800", "0.99"])
    assert outcome("run", "796", 0, wide) == rerun.WITHIN
    assert outcome("run", "0.96", 1, wide) == rerun.DIFFERS  # an input has no tolerance


def test_rows_and_columns_that_one_side_lacks_are_named():
    other = pd.concat([TABLE.drop(index=0), TABLE[:1].assign(system="GPT-6")]).rename(
        columns={"n": "pairs"}
    )
    cells = pd.DataFrame(rerun.compare_table("t", TABLE, other))
    found = set(zip(cells.row, cells.column, cells.outcome))
    assert ("GPT-5", "(row)", rerun.MISSING) in found and ("GPT-6", "(row)", rerun.EXTRA) in found
    assert ("(column)", "n", rerun.MISSING) in found and ("(column)", "pairs", rerun.EXTRA) in found
    assert (cells[cells.row == "criterion RM"].outcome == rerun.EQUAL).all()


def test_rows_are_told_apart_by_as_few_columns_as_do():
    assert rerun.key_of(TABLE) == ["system"] and rerun.key_of(COUNTS) == ["quantity"]
    two = pd.DataFrame(
        {"specialty": ["a", "a"], "system": ["x", "y"], "n": ["1", "2"], "run_x": ["1", "2"]}
    )
    assert rerun.key_of(two) == ["specialty", "system"]
    with pytest.raises(KitError, match="rows of specialty, system are there twice"):
        rerun.key_of(pd.concat([two, two]))


# ---------------------------------------------------------------- a run beside its reference


def claims(difference=10.0, verdict="same direction"):
    check = {
        "what": "a - b, adjudicated labels",
        "difference": difference,
        "low": 5.0,
        "high": 15.0,
        "n": 9,
    }
    return {"claims": [{"id": "gain", "verdict": verdict, "checks": [check]}], "inputs": ""}


MANIFEST = {
    "profile": {"name": "cpu", "seed": 1, "minutes": 20.0},
    "packages": {"torch": "2.13.0"},
    "python": "3.11.7",
    "machine": "x86_64",
    "system": "Linux",
    "kit": {"commit": "c", "content": "abc"},
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A checkout with a run and the reference that was published from it."""
    (tmp_path / "Snakefile").touch()
    for place, paper in (
        ("runs/cpu", "runs/cpu/paper"),
        ("papers_figures/cpu", "papers_figures/cpu"),
    ):
        (tmp_path / paper / "tables").mkdir(parents=True)
        write_json(tmp_path / place / "manifest.json", MANIFEST)
        write_json(tmp_path / paper / "claims.json", claims())
        for name, table in (("main_results", TABLE), ("bench_composition", COUNTS)):
            table.to_csv(tmp_path / paper / f"tables/{name}.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report(root):
    found = rerun.report("cpu")
    facts = json.loads((root / "runs/cpu/rerun.json").read_text())
    return found, facts, (root / "runs/cpu/rerun.md").read_text()


def test_the_same_run_is_equal_to_the_last_digit(root):
    found, facts, said = report(root)
    cells = (
        TABLE.drop(columns="system").ne("").sum().sum()
        + COUNTS.drop(columns="quantity").ne("").sum().sum()
    )
    assert len(found.cells) == cells + 1 + 3  # a verdict, and a check with its interval
    assert (
        set(found.cells.outcome) == {"equal"} and facts["agrees"] is True and facts["remarks"] == []
    )
    assert "all equal" in found.line() and "What differs" not in said
    assert len(pd.read_csv(root / "runs/cpu/rerun.csv")) == len(found.cells)
    before = [(root / f"runs/cpu/rerun.{e}").read_bytes() for e in ("md", "csv", "json")]
    report(root)
    assert before == [(root / f"runs/cpu/rerun.{e}").read_bytes() for e in ("md", "csv", "json")]


def test_what_differs_is_named_and_what_is_within_is_listed(root):
    run = root / "runs/cpu/paper"
    other = TABLE.copy()
    other.loc[1, "run_safety"] = "75.00"
    other.loc[2, "run_safety"] = "74.00"
    other.to_csv(run / "tables/main_results.csv", index=False)
    write_json(run / "claims.json", claims(4.0, "not seen"))
    (run / "tables/bench_composition.csv").rename(run / "tables/policy.csv")
    found, facts, said = report(root)
    bad = set(zip(found.differing.table, found.differing.row, found.differing.column))
    assert bad == {
        ("main_results", "ceiling", "run_safety"),
        ("claims", "gain / ", "verdict"),
        ("claims", "gain / a - b, adjudicated labels", "run_difference"),
        ("bench_composition", "(table)", ""),
        ("policy", "(table)", ""),
    }
    assert facts["agrees"] is False and facts["outcomes"][rerun.WITHIN] == 1
    assert "| main_results | ceiling | run_safety | 75.00 | 74.00 | differs |" in said
    assert "| main_results | criterion RM | run_safety | 80.00 (70.00 to 88.00) | 75.00 |" in said
    assert "| claims | gain /  | verdict | same direction | not seen | differs |" in said
    assert "5 differ" in said and "| main_results | 9 | 7 | 1 |" in said


def test_a_setting_that_is_younger_than_the_reference_stands_at_its_default(root):
    manifest = json.loads(json.dumps(MANIFEST))
    manifest["profile"] |= {"reward_form": "strict"}  # the default
    write_json(root / "runs/cpu/manifest.json", manifest)
    found, facts, _ = report(root)
    assert facts["agrees"] is True and found.line().endswith("all equal")


@pytest.mark.parametrize(
    "why", ["seed", "new setting", "many", "no reference", "no tables", "no json"]
)
def test_nothing_is_compared_where_it_would_not_be_fair(root, why):
    report(root)
    manifest, line = (
        json.loads(json.dumps(MANIFEST)),
        {
            "seed": "papers_figures/cpu was run with other settings: seed 1 -> 2",
            "new setting": "other settings: reward_form strict -> clipped",
            "many": "d unset -> 0; e unset -> 0; and 2 more",
            "no reference": "no committed reference papers_figures/cpu",
            "no tables": "runs/cpu has no tables",
            "no json": "runs/cpu/manifest.json is no JSON",
        }[why],
    )
    other = {
        "seed": {"seed": 2},
        "new setting": {"reward_form": "clipped"},
        "many": dict.fromkeys("abcdefg", 0),
    }
    manifest["profile"] |= other.get(why, {})
    write_json(root / "runs/cpu/manifest.json", manifest)
    if why == "no reference":
        shutil.rmtree(root / "papers_figures/cpu")
    elif why == "no tables":
        shutil.rmtree(root / "runs/cpu/paper")
    elif why == "no json":
        (root / "runs/cpu/manifest.json").write_text("x")
    found, facts, said = report(root)
    assert found.cells.empty and facts["agrees"] is None and line in said and line in found.line()
    assert pd.read_csv(root / "runs/cpu/rerun.csv").empty  # nothing of an earlier comparison stays


@pytest.mark.parametrize(
    "where, outcome", [("papers_figures/cpu", rerun.EXTRA), ("runs/cpu/paper", rerun.MISSING)]
)
def test_a_ledger_that_one_side_lacks_is_named(root, where, outcome):
    (root / where / "claims.json").unlink()
    found, facts, _ = report(root)
    assert facts["agrees"] is False
    assert found.differing[["table", "row", "outcome"]].values.tolist() == [
        ["claims", "(table)", outcome]
    ]


def test_a_check_of_another_verdict_differs_though_the_claim_and_its_number_do_not(root):
    said = claims()
    said["claims"][0]["checks"][0]["verdict"] = "same direction"
    write_json(root / "papers_figures/cpu/claims.json", said)
    said["claims"][0]["checks"][0]["verdict"] = "not seen"
    write_json(root / "runs/cpu/paper/claims.json", said)
    found, _, _ = report(root)
    assert found.differing[["row", "column"]].values.tolist() == [
        ["gain / a - b, adjudicated labels", "verdict"]
    ]


def test_other_versions_and_code_are_said_and_minutes_are_no_setting(root):
    other = {
        **MANIFEST,
        "packages": {"torch": "2.14.0"},
        "kit": {"commit": "d", "content": "def"},
        "profile": {**MANIFEST["profile"], "minutes": 30.0},
    }
    write_json(root / "runs/cpu/manifest.json", other)
    found, facts, said = report(root)
    assert facts["agrees"] and len(found.remarks) == 2
    assert (
        "torch: committed 2.13.0, here 2.14.0" in said and "code: committed abc, here def" in said
    )


def test_a_table_that_cannot_be_compared_does_not_stop_the_others(root):
    (root / "runs/cpu/paper/tables/bench_composition.csv").write_text("other\n1\n1\n")
    found, _, said = report(root)
    assert "bench_composition" in set(found.differing.table)
    assert (found.cells[found.cells.table == "main_results"].outcome == "equal").all()


def test_reproduce_prints_the_outcome_in_one_line(root, monkeypatch, capsys):
    class Done:
        def wait(self):
            return 0

    monkeypatch.setattr(graph.subprocess, "Popen", lambda *args, **kwargs: Done())
    monkeypatch.setattr(graph, "fingerprint", lambda *args: "x")
    monkeypatch.setattr(graph, "notebooks", lambda profile: [])
    monkeypatch.delenv(profiles.OVERRIDES, raising=False)
    graph.reproduce("cpu")
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert (
        last
        == "runs/cpu/rerun.md: 17 cells of 2 tables and the claims beside the committed ones: all "
        "equal"
    )


def test_the_committed_reference_agrees_with_itself(tmp_path):
    reference = project_root() / "papers_figures/cpu"
    if not (reference / "manifest.json").exists():
        pytest.skip("no published cpu run in papers_figures/cpu")
    run = tmp_path / "run"
    for name in ("tables", "claims.json"):
        part = run / "paper" / name
        (shutil.copytree if name == "tables" else shutil.copy)(reference / name, part)
    shutil.copy(reference / "manifest.json", run)
    found = rerun.compare(run, reference)
    assert found.why_not == "" and set(found.cells.outcome) == {"equal"} and len(found.cells) > 500
