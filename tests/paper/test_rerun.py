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


def compared(table, other):
    return pd.DataFrame(rerun.compare_table("t", table, other, list(table)[:1]))


def outcome(column, value, row=1, table=TABLE):
    other = table.copy()
    other.loc[row, column] = value
    cells = compared(table, other)
    return cells[(cells.row == table.iloc[row, 0]) & (cells.column == column)].outcome.item()


@pytest.mark.parametrize(
    "column, value, row, wanted",
    [
        ("run_safety", "80.00", 1, "equal"),
        ("run_safety", "70.00", 1, "within"),  # an end belongs to the interval
        ("run_safety", "88.00", 1, "within"),
        ("run_safety", "69.99", 1, "differs"),
        ("run_safety", "88.01", 1, "differs"),
        ("run_safety", "", 1, "only committed"),
        ("run_safety", "nan", 1, "differs"),
        ("run_safety_low", "60.00", 1, "end of an interval"),
        ("run_safety_low", "", 1, "only committed"),
        ("run_safety_low", "70.00", 2, "only in the rerun"),
        ("status", "not run", 1, "differs"),
        ("n", "41", 1, "differs"),  # a count has no tolerance
        ("reported_safety", "77.40", 0, "differs"),
        ("run_safety", "75.01", 2, "differs"),  # no interval, no n
    ],
)
def test_the_rule_cell_by_cell(column, value, row, wanted):
    assert outcome(column, value, row) == wanted


def test_a_measured_value_without_an_interval_must_be_equal():
    table = TABLE.drop(columns=["run_safety_low", "run_safety_high"])
    assert outcome("run_safety", "80.00", table=table) == rerun.EQUAL
    assert outcome("run_safety", "80.01", table=table) == rerun.DIFFERS


def test_counts_and_inputs_must_be_equal_and_a_measured_share_need_not():
    assert outcome("run", "796", 0, COUNTS) == outcome("run", "0.96", 1, COUNTS) == rerun.DIFFERS
    wide = COUNTS.assign(run_low=["790", "0.90"], run_high=["800", "0.99"])
    assert outcome("run", "796", 0, wide) == rerun.WITHIN
    assert outcome("run", "0.96", 1, wide) == rerun.DIFFERS  # an input has no tolerance


def test_cells_of_rows_and_columns_that_one_side_lacks_are_named():
    other = pd.concat([TABLE.drop(index=0), TABLE[:1].assign(system="GPT-6")]).rename(
        columns={"n": "pairs"}
    )
    cells = compared(TABLE, other)
    assert set(cells[cells.row == "GPT-5"].outcome) == {rerun.MISSING}
    assert set(cells[cells.row == "GPT-6"].outcome) == {rerun.EXTRA}
    assert cells[cells.row == "criterion RM"].set_index("column").outcome.to_dict() == {
        "status": rerun.EQUAL,
        "run_safety": rerun.EQUAL,
        "run_safety_low": rerun.EQUAL,
        "run_safety_high": rerun.EQUAL,
        "n": rerun.MISSING,
        "pairs": rerun.EXTRA,
    }


# ---------------------------------------------------------------- a run beside its reference


def write_claims(folder, difference=10.0, verdict="same direction", check="same direction"):
    """A claim with one check, and one without any."""
    values = {"difference": difference, "low": 5.0, "high": 15.0, "n": 9, "verdict": check}
    rows = [
        {"claim": "gain", "check": "run: a - b", "claim_verdict": verdict, **values},
        {"claim": "rule", "check": "", "claim_verdict": "not seen", "verdict": "not seen"},
    ]
    pd.DataFrame(rows).to_csv(folder / "claims.csv", index=False)


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
        write_claims(tmp_path / paper)
        for name, table in (("main_results", TABLE), ("bench_composition", COUNTS)):
            table.to_csv(tmp_path / paper / f"tables/{name}.csv", index=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report(root):
    """(the outcome in one line, its cells, the page) of the run."""
    line = rerun.report("cpu")
    cells = pd.read_csv(root / "runs/cpu/rerun.csv", dtype=str, keep_default_na=False)
    return line, cells, (root / "runs/cpu/rerun.md").read_text()


def differing(cells):
    return set(
        cells[cells.outcome.isin(rerun.BAD)][["table", "row", "column"]].apply(tuple, axis=1)
    )


@pytest.mark.parametrize(
    "committed, here, said",
    [
        ("AuthenticAMD 26 2", "AuthenticAMD 26 2", "(AuthenticAMD 26 2): all is to be equal"),
        (
            "GenuineIntel 6 143",
            "AuthenticAMD 26 2",
            "(GenuineIntel 6 143 -> AuthenticAMD 26 2): the",
        ),
        (None, "AuthenticAMD 26 2", "(not said -> AuthenticAMD 26 2): the committed intervals"),
        (None, None, "(not said -> not said): the committed intervals"),
    ],
)
def test_the_kinds_of_processor_say_which_agreement_is_due(root, committed, here, said):
    for place, kind in (("papers_figures/cpu", committed), ("runs/cpu", here)):
        content = MANIFEST | ({"processor": kind} if kind else {})
        write_json(root / place / "manifest.json", content)
    assert said in report(root)[2]


def test_the_same_run_is_equal_to_the_last_digit(root):
    line, cells, said = report(root)
    tables = (
        TABLE.drop(columns="system").ne("").sum().sum()
        + COUNTS.drop(columns="quantity").ne("").sum().sum()
    )
    # the verdicts of both claims and of what they hang on, and a check's interval
    assert len(cells) == tables + 4 + 3 and set(cells.outcome) == {"equal"}
    assert line.endswith("all equal") and "differs" not in said and "circumstances" not in said
    before = [(root / f"runs/cpu/rerun.{e}").read_bytes() for e in ("md", "csv")]
    report(root)
    assert before == [(root / f"runs/cpu/rerun.{e}").read_bytes() for e in ("md", "csv")]


def test_what_differs_is_named_and_what_is_within_is_listed_behind_it(root):
    run = root / "runs/cpu/paper"
    other = TABLE.copy()
    other.loc[1, "run_safety"] = "75.00"
    other.loc[2, "run_safety"] = "74.00"
    other.to_csv(run / "tables/main_results.csv", index=False)
    write_claims(run, 4.0, "not seen")
    (run / "tables/bench_composition.csv").rename(run / "tables/policy.csv")
    line, cells, said = report(root)
    own = {cell for cell in differing(cells) if cell[0] in ("main_results", "claims")}
    assert own == {
        ("main_results", "ceiling", "run_safety"),
        ("claims", "gain / run: a - b", "claim_verdict"),
        ("claims", "gain / run: a - b", "difference"),
    }
    lost, new = (cells[cells.table == name] for name in ("bench_composition", "policy"))
    assert set(lost.outcome) == {rerun.MISSING} and set(new.outcome) == {rerun.EXTRA}
    assert len(lost) == COUNTS.drop(columns="quantity").size and len(new)
    assert "1 within the committed interval" in line and f"{len(differing(cells))} differ" in line
    bad = "| main_results | ceiling | run_safety | 75.00 | 74.00 | differs |"
    within = (
        "| main_results | criterion RM | run_safety | 80.00 (70.00 to 88.00) | 75.00 | within |"
    )
    assert 0 < said.index(bad) < said.index(within)
    assert "| claims | gain / run: a - b | claim_verdict | same direction | not seen |" in said


def test_a_setting_that_the_kit_has_no_longer_is_passed_over(root):
    path = root / "papers_figures/cpu/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["profile"] |= {"embedder": "hashing", "roles": {"judge": {"model": "m", "backoff": 1}}}
    write_json(path, manifest)
    here = json.loads((root / "runs/cpu/manifest.json").read_text())
    here["profile"]["roles"] = {"judge": {"model": "m"}}
    write_json(root / "runs/cpu/manifest.json", here)
    rerun.comparable(root / "runs/cpu", root / "papers_figures/cpu")
    here["profile"]["roles"]["judge"]["model"] = "another"
    write_json(root / "runs/cpu/manifest.json", here)
    with pytest.raises(KitError, match="other settings: roles"):
        rerun.comparable(root / "runs/cpu", root / "papers_figures/cpu")


def test_a_setting_that_is_younger_than_the_reference_stands_at_its_default(root):
    manifest = json.loads(json.dumps(MANIFEST))
    manifest["profile"] |= {"reward_form": "strict"}  # the default
    write_json(root / "runs/cpu/manifest.json", manifest)
    assert report(root)[0].endswith("all equal")


@pytest.mark.parametrize("why", ["seed", "new setting", "several", "no reference", "no tables"])
def test_nothing_is_compared_where_it_would_not_be_fair(root, why):
    report(root)
    manifest, reason = (
        json.loads(json.dumps(MANIFEST)),
        {
            "seed": "papers_figures/cpu was run with other settings: seed 1 -> 2",
            "new setting": "other settings: reward_form strict -> clipped",
            "several": "other settings: veto_recall 0.9 -> 0.8; retrieved 5 -> 4",
            "no reference": "no committed reference papers_figures/cpu",
            "no tables": "runs/cpu has no tables",
        }[why],
    )
    other = {
        "seed": {"seed": 2},
        "new setting": {"reward_form": "clipped"},
        "several": {"veto_recall": 0.8, "retrieved": 4},
    }
    manifest["profile"] |= other.get(why, {})
    write_json(root / "runs/cpu/manifest.json", manifest)
    if why == "no reference":
        shutil.rmtree(root / "papers_figures/cpu")
    elif why == "no tables":
        shutil.rmtree(root / "runs/cpu/paper")
    line, cells, said = report(root)
    assert line.startswith("not compared: ") and reason in line and line in said
    assert cells.empty  # nothing of an earlier comparison stays


@pytest.mark.parametrize(
    "where, outcome", [("papers_figures/cpu", rerun.EXTRA), ("runs/cpu/paper", rerun.MISSING)]
)
def test_a_ledger_that_one_side_lacks_is_named(root, where, outcome):
    (root / where / "claims.csv").unlink()
    line, cells, _ = report(root)
    assert "7 differ" in line
    assert set(cells[cells.table == "claims"].outcome) == {outcome}


def test_a_check_of_another_verdict_differs_though_the_claim_and_its_number_do_not(root):
    write_claims(root / "runs/cpu/paper", check="not seen")
    _, cells, _ = report(root)
    assert differing(cells) == {("claims", "gain / run: a - b", "verdict")}


def test_other_versions_and_code_are_said_and_minutes_are_no_setting(root):
    other = {
        **MANIFEST,
        "packages": {"torch": "2.14.0"},
        "kit": {"commit": "d", "content": "def"},
        "profile": {**MANIFEST["profile"], "minutes": 30.0},
    }
    write_json(root / "runs/cpu/manifest.json", other)
    line, _, said = report(root)
    assert line.endswith("all equal")
    assert "- torch 2.13.0 -> 2.14.0\n- code abc -> def\n" in said


def test_a_table_of_other_columns_does_not_stop_the_others(root):
    (root / "runs/cpu/paper/tables/bench_composition.csv").write_text("other\n1\n1\n")
    _, cells, _ = report(root)
    assert {table for table, *_ in differing(cells)} == {"bench_composition"}
    assert (cells[cells.table == "main_results"].outcome == "equal").all()


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
        == "runs/cpu/rerun.md: 20 cells of 2 tables and the claims beside the committed ones: all "
        "equal"
    )


def test_the_committed_reference_agrees_with_itself(tmp_path):
    reference = project_root() / "papers_figures/record"
    if not (reference / "manifest.json").exists():
        pytest.skip("no published run of record in papers_figures/record")
    run = tmp_path / "run"
    for name in ("tables", "claims.csv"):
        part = run / "paper" / name
        (shutil.copytree if name == "tables" else shutil.copy)(reference / name, part)
    shutil.copy(reference / "manifest.json", run)
    assert rerun.comparable(run, reference) == []
    cells = rerun.compare(run / "paper", reference)
    assert set(cells.outcome) == {"equal"} and len(cells) > 500
