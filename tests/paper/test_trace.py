"""From a cell to its items, their rows, the model, the data and the code: the command's output."""

import json
import re
import shutil
import subprocess

import pandas as pd
import pyarrow.parquet as parquet
import pytest
from helpers import benches

from promedical_utils import __main__
from promedical_utils.core import provenance
from promedical_utils.core.workspace import write_json
from promedical_utils.evaluation import bench
from promedical_utils.paper import registry, trace
from promedical_utils.report import tables

PROFILE = benches.profile()
CRITERION = tables.systems(PROFILE)["criterion"]
PREDICTIONS, FILES = "bench/predictions.parquet", ("pairs", "predictions", "verdicts")


@pytest.mark.parametrize("mistake", ["slice", "labels", "cell", "file"])
def test_a_table_of_other_rows_than_it_says_is_found_out(run, rebuild, monkeypatch, mistake):
    asked = (
        "main_results",
        CRITERION,
        "run_pointwise_excellence" if mistake == "labels" else "run_pairwise_safety",
    )
    assert "equal to the cell" in (said := trace.trace(run, *asked)) and "NOT" not in said
    if mistake == "slice":  # the table takes excellence for safety
        monkeypatch.setitem(tables.MAIN, "pairwise_safety", ("pairwise", "excellence"))
        rebuild()
        monkeypatch.undo()
        monkeypatch.chdir(run.parent.parent)
    elif mistake == "labels":
        truth = run / "paper/tables/main_results_truth.csv"
        shutil.copy(truth, run / "paper/tables/main_results.csv")
    elif mistake == "cell":
        path = run / "paper/tables/main_results.csv"
        cell = trace.find(registry.Run.load(run), *asked)[0][asked[2]]
        path.write_text(path.read_text().replace(f",{cell},", ",12.34,"))
    else:
        frame = pd.read_parquet(run / PREDICTIONS)
        frame.assign(score=-frame.score).to_parquet(run / PREDICTIONS, index=False)
    said = trace.trace(run, *asked)
    assert "NOT EQUAL to the cell" in said
    assert ("NOT the file that the table was built from" in said) == (mistake == "file")


# ---------------------------------------------------------------- the chain


CHAIN = {
    "main_results": (CRITERION, "pairwise_safety"),
    "safety_veto_truth": (CRITERION, "f1"),
    "seen_unseen": (CRITERION, "pairwise_unseen"),
    "graders": (f"{CRITERION} / safety", "difference"),
    "calibration": (f"{CRITERION} / safety / bench, kinds seen", "error_after"),
    "policy": ("GRPO with gated veto (kit)", "violations"),
    "policy_dimension": ("safety", "difference"),
    "testbed": ("length / 1 for 100 words / words of the chosen", "value"),
    "external": ("external clinic / retrieval", "q_criteria"),
    "ablation": ("full / policies", "violations"),
    "bench_composition": ("safety pairs in reserve", "run"),
    "data_pipeline": ("kept instructions", "run"),
}


@pytest.mark.parametrize("table", CHAIN)
def test_the_chain_of_a_cell_leads_to_rows_model_data_and_code(run, table):
    said = trace.trace(run, table, *CHAIN[table])
    manifest = json.loads((run / "manifest.json").read_text())
    assert "equal to the cell" in said and "NOT" not in said
    assert re.search(r"^file +\S+, sha256 [0-9a-f]{16}$", said, re.MULTILINE)
    assert (
        f"profile cpu, seed {PROFILE.seed}" in said
        and f"torch {manifest['packages']['torch']}" in said
    )
    assert (
        manifest["kit"]["content"][:16] in said and f"commit    {manifest['kit']['commit']}" in said
    )
    assert re.search(r"^data +candidates.parquet [0-9a-f]{16}", said, re.MULTILINE)
    if table == "main_results":
        pairs = bench.Bench.load(run / "bench").pairs
        n = int((pairs.dimension == "safety").sum())
        key = "scorer criterion, metric pairwise, slice safety, against adjudicated"
        hits, counted = re.search(rf"\+1 x (\d+) of ({n}): {key}", said).groups()
        assert f"from its items: {100 * int(hits) / int(counted):.2f}: equal" in said
        first = pairs[pairs.dimension == "safety"].iloc[0]
        assert f"\n  {first.chosen_id}: says {first.chosen_id} plainly" in said
        rows = {file: said.split(f"bench/{file}.parquet: ")[1] for file in FILES}
        columns = {
            file: text.split("\nrows ")[0].split("\nitems ")[0] for file, text in rows.items()
        }
        assert (
            first.criterion_id in columns["pairs"] and first.criterion_id in columns["predictions"]
        )
        assert " score" in columns["predictions"] and " met" in columns["verdicts"]
        assert "physician_1" in columns["verdicts"] and "adjudicated" in columns["verdicts"]
        assert re.search("reward/criterion: settings f1ngerpr1nt, seed 2040, base .*ba5e", said)


def test_reported_inputs_and_empty_cells_lead_to_where_they_stand(run):
    said = trace.trace(run, "main_results", "GPT-5", "reported_pairwise_safety")
    assert "77.39: equal to the cell" in said and "paper_values/main_results.csv" in said
    assert re.search("^row +status not run, mark N$", said, re.MULTILINE)
    said = trace.trace(run, "data_pipeline", "judge agreement that is set", "run")
    assert "93.20: equal to the cell" in said and re.search(
        "^row +status input", said, re.MULTILINE
    )
    said = trace.trace(run, "main_results", "GPT-5", "run_pairwise_safety")
    assert "run_pairwise_safety = (empty)" in said and "again" not in said


def test_texts_come_from_the_run_that_was_published_and_from_no_other(run):
    copy = run.parent.parent / "papers_figures/cpu"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("candidates.parquet"))
    asked = ("main_results", CRITERION, "run_pairwise_safety")
    digest = provenance.content(run / "data/candidates.parquet")
    assert (
        "plainly" in (said := trace.trace(copy, *asked))
        and f"runs/cpu/data/candidates.parquet, content sha256 {digest}" in said
    )
    frame = pd.read_parquet(run / "data/candidates.parquet")
    frame.assign(text="other").to_parquet(run / "data/candidates.parquet", index=False)
    said = trace.trace(copy, *asked)
    command = "make reproduce PROFILE=cpu writes runs/cpu/data/candidates.parquet"
    assert "plainly" not in said and f"{command}, content sha256 {digest}" in said


@pytest.mark.parametrize(
    "asked, line",
    [
        (
            ("none", "x", "y"),
            r"no table 'none' in runs/cpu/paper; there are: .*main_results",
        ),
        (
            ("main_results", "GPT-6", "y"),
            "no row of main_results 'GPT-6': there are GPT-5; Gemini-3-Pro",
        ),
        (
            ("main_results", "criterion RM", "y"),
            "several row of main_results 'criterion RM': there are criterion RM.*clean",
        ),
        (
            ("main_results", "GPT-5", "speed"),
            "no column of main_results 'speed': there are status; mark",
        ),
    ],
)
def test_what_is_not_there_is_one_line_that_lists_what_is(run, capsys, asked, line):
    assert __main__.main(["trace", *asked, "--run", "runs/cpu"]) == 1
    said = capsys.readouterr()
    assert (
        re.match(line, said.err.strip())
        and said.out == ""
        and len(said.err.strip().splitlines()) == 1
    )


# ---------------------------------------------------------------- provenance


def test_content_is_of_the_rows_and_not_of_the_bytes(tmp_path):
    frame = pd.DataFrame(
        {"id": list("abc"), "said": [["x"], [], ["y", "z"]], "score": [0.1, None, 3.0]}
    )
    for name, options in {"a": {}, "b": {"compression": "gzip", "row_group_size": 1}}.items():
        frame.to_parquet(tmp_path / f"{name}.parquet", **options)
    one, two = (tmp_path / f"{name}.parquet" for name in "ab")
    assert one.read_bytes() != two.read_bytes() and provenance.content(one) == provenance.content(
        two
    )
    frame.assign(score=[0.1, None, 3.0000001]).to_parquet(two)
    assert provenance.content(one) != provenance.content(two)
    frame[::-1].to_parquet(two)
    assert provenance.content(one) != provenance.content(two)
    assert parquet.read_table(one).num_rows == 3


def test_a_commit_is_named_only_where_the_code_is_as_committed(tmp_path, monkeypatch):
    def git(*arguments):
        names = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        return subprocess.run(
            ["git", "-C", str(tmp_path), *names, *arguments],
            check=True,
            capture_output=True,
            text=True,
        )

    (tmp_path / "Snakefile").touch()
    (tmp_path / "promedical_utils").mkdir()
    (tmp_path / "promedical_utils/a.py").write_text("A = 1\n")
    monkeypatch.chdir(tmp_path)
    assert provenance.kit()["commit"] == "uncommitted"
    git("init", "-q")
    assert provenance.kit()["commit"] == "uncommitted"
    git("add", "-A")
    git("commit", "-qm", "first")
    head = git("rev-parse", "HEAD").stdout.strip()
    assert provenance.kit()["commit"] == head
    (tmp_path / "note.txt").write_text("not code")
    assert provenance.kit()["commit"] == head
    for package in ("promedical_utils", "promedical_studies", "promedical_audit"):
        (tmp_path / package).mkdir(exist_ok=True)
        (tmp_path / package / "b.py").write_text("B = 1\n")
        assert provenance.kit()["commit"] == "uncommitted"
        (tmp_path / package / "b.py").unlink()
        assert provenance.kit()["commit"] == head
    (tmp_path / "promedical_utils/b.py").write_text("B = 1\n")
    assert provenance.kit()["commit"] == "uncommitted"
    nested = tmp_path / "within"
    (nested / "promedical_utils").mkdir(parents=True)
    (nested / "Snakefile").touch()
    monkeypatch.chdir(nested)
    assert provenance.kit()["commit"] == "uncommitted"  # a copy inside another's repository


def test_the_content_of_the_kit_is_its_files(tmp_path, monkeypatch):
    package = tmp_path / "promedical_utils"
    (package / "__pycache__").mkdir(parents=True)
    (package / "a.py").write_text("A = 1\n")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    before = provenance.kit()["content"]
    (package / "__pycache__/a.cpython-311.pyc").write_bytes(b"x")
    assert provenance.kit()["content"] == before
    (package / "a.py").write_text("A = 2\n")
    changed = provenance.kit()["content"]
    assert changed != before
    (tmp_path / "promedical_studies").mkdir()
    (tmp_path / "promedical_studies/a.py").write_text("A = 2\n")  # what notebooks run of it, too
    assert provenance.kit()["content"] not in (before, changed)


def test_every_table_says_what_the_run_was_and_not_who_drew_it(run, rebuild, monkeypatch):
    manifest = json.loads((run / "manifest.json").read_text())
    facts = json.loads((run / "paper/tables/main_results.json").read_text())["run"]
    assert facts["kit"] == manifest["kit"] and facts["packages"] == manifest["packages"]
    assert facts["models"]["reward/criterion"]["settings"] == "f1ngerpr1nt"
    assert facts["data"] == {
        "candidates.parquet": provenance.content(run / "data/candidates.parquet")
    }
    before = {p.name: p.read_bytes() for p in (run / "paper/tables").iterdir()}
    monkeypatch.setattr(provenance, "kit", lambda: pytest.fail("a drawing asks for its own commit"))
    rebuild()
    assert {p.name: p.read_bytes() for p in (run / "paper/tables").iterdir()} == before
    write_json(
        run / "manifest.json", manifest | {"kit": {"commit": "another", "content": "0" * 64}}
    )
    rebuild()
    assert (
        json.loads((run / "paper/tables/policy.json").read_text())["run"]["kit"]["commit"]
        == "another"
    )


def test_a_run_of_an_older_kit_has_what_it_says(tmp_path):
    assert provenance.of_run(tmp_path) == {"data": {}, "models": {}}
    (tmp_path / "manifest.json").write_text("no json")
    assert provenance.of_run(tmp_path) == {"data": {}, "models": {}}
