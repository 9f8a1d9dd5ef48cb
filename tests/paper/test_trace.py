"""From a cell to its rows and back: numbers made again, what hangs on one prediction,
provenance."""

import json
import re
import shutil
import subprocess

import pandas as pd
import pyarrow.parquet as parquet
import pytest
from helpers import benches
from paper.test_registry import write_run, write_study

from promedical_utils.core import provenance, records, run_data
from promedical_utils.core.workspace import KitError, project_root, write_json
from promedical_utils.evaluation import bench
from promedical_utils.paper import registry, rerun, trace, trace_rows
from promedical_utils.paper.trace_rows import EVALUATION, PREDICTIONS, VERDICTS, Place
from promedical_utils.report import tables

PROFILE, ROOT = benches.profile(), project_root()
CRITERION = tables.systems(PROFILE)["criterion"]
ENDS = {"value": 31.5, "low": 30.0, "high": 33.0}
SCORED = {
    "status": "this run",
    "reason": "of 20 prompts",
    "rows": {"base": ENDS, "grpo": ENDS},
    **ENDS,
}
FLIPPED = ("score", "probability", "met")


def build(run):
    """Tables and claims of a run, no figures."""
    return registry.build(PROFILE, run, run / "paper")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A checkout with a whole run in runs/cpu, and a study; HealthBench is told, not measured."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "Snakefile").touch()
    shutil.copytree(ROOT / "papers_figures/paper_values", root / "papers_figures/paper_values")
    write_study(root / "papers_figures/studies/policies")
    run = root / "runs/cpu"
    write_run(run)
    made = bench.Bench.load(run / "bench")
    made.report["blind_ceiling"] = round(bench.blind_ceiling(made.pairs), 4)
    made.save(run / "bench")
    answers = sorted(set(made.verdicts.candidate_id))
    records.save(
        [
            records.Candidate(id=a, instruction_id=a[:-1], generator="g", text=f"says {a} plainly")
            for a in answers
        ],
        run / "data/candidates.parquet",
    )
    provenance.hash_data(run)
    model = {
        "settings": "f1ngerpr1nt",
        "seed": 2040,
        "base": {"folder": "../../base", "sha256": "ba5e" * 16},
    }
    write_json(
        run / "reward/report.json", {"models": {"criterion": model}, "heldout_pair_accuracy": {}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run_data.manifest(PROFILE, run)
        patch.setattr(registry, "FIGURES", {})
        patch.setattr(registry.Run, "healthbench", SCORED)
        build(run)
    return root


@pytest.fixture
def run(checkout, tmp_path, monkeypatch):
    """The run in a copy of the checkout, as the working directory."""
    shutil.copytree(checkout, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setattr(registry, "FIGURES", {})
    monkeypatch.setattr(registry.Run, "healthbench", SCORED)
    return tmp_path / "copy/runs/cpu"


# ---------------------------------------------------------------- numbers made again


def test_every_number_of_every_table_is_made_again_from_its_rows(run):
    place, seen, wrong = Place(run), {}, []
    for table, row, column, values in trace.cells(place):
        found = trace_rows.of_cell(place, table, values, column)
        seen.setdefault(table, set()).add(found.kind)
        if found.kind == trace_rows.MEASURED:
            assert found.text is not None and found.files, (table, row, column)
        if values.get("status") == "this run" and column.startswith("run"):
            assert found.kind == trace_rows.MEASURED, (table, row, column, found.said)
        if found.text not in (None, values[column]):
            wrong.append((table, row, column, values[column], found.text))
    assert wrong == []
    own = {name for name, table in registry.TABLES.items() if "clinic" in table.data}
    assert set(seen) == own
    assert {name for name, kinds in seen.items() if trace_rows.MEASURED not in kinds} == {"rar"}


@pytest.mark.parametrize("mistake", ["slice", "labels", "cell", "file"])
def test_a_table_of_other_rows_than_it_says_is_found_out(run, monkeypatch, mistake):
    asked = (
        "main_results",
        CRITERION,
        "run_pointwise_proficiency" if mistake == "labels" else "run_pairwise_safety",
    )
    assert "equal to the cell" in (said := trace.trace(run, *asked)) and "NOT" not in said
    if mistake == "slice":  # the table takes excellence for safety
        monkeypatch.setitem(tables.MAIN, "pairwise_safety", ("pairwise", "excellence"))
        build(run)
        monkeypatch.undo()
        monkeypatch.chdir(run.parent.parent)
    elif mistake == "labels":
        truth = run / "paper/tables/main_results_truth.csv"
        shutil.copy(truth, run / "paper/tables/main_results.csv")
    elif mistake == "cell":
        path = run / "paper/tables/main_results.csv"
        cell = trace.find(Place(run), *asked)[0][asked[2]]
        path.write_text(path.read_text().replace(f",{cell},", ",12.34,"))
    else:
        frame = pd.read_parquet(run / PREDICTIONS)
        frame.assign(score=-frame.score).to_parquet(run / PREDICTIONS, index=False)
    said = trace.trace(run, *asked)
    assert "NOT EQUAL to the cell" in said
    assert ("NOT the file that the table was built from" in said) == (mistake == "file")


def test_a_committed_reference_has_a_trace_of_every_table():
    folder = ROOT / "papers_figures/cpu"
    if not (folder / PREDICTIONS).exists():
        pytest.skip("no published cpu run in papers_figures/cpu")
    place, done = Place(folder), {}
    for table, _, column, values in trace.cells(place):
        number = column.startswith("run") and rerun.number(values[column]) is not None
        if table not in done and number and values.get("status") != "input":
            found = trace_rows.of_cell(place, table, values, column)
            done[table] = (found.text, values[column])
    assert {"main_results", "safety_veto", "specialty", "policy", "bench_composition"} <= set(done)
    assert {name: pair for name, pair in done.items() if pair[0] != pair[1]} == {}


# ---------------------------------------------------------------- the chain


CHAIN = {
    "main_results": (CRITERION, "pairwise_safety"),
    "safety_veto_truth": (CRITERION, "f1"),
    "seen_unseen": (CRITERION, "pairwise_unseen"),
    "graders": (f"{CRITERION} / safety", "difference"),
    "specialty": (f"s1 / {CRITERION}", "overall_accuracy"),
    "calibration": (f"{CRITERION} / safety / bench, kinds seen", "error_after"),
    "policy": ("GRPO with gated veto (kit)", "violations"),
    "policy_dimension": ("safety", "difference"),
    "policy_specialty": ("a1 / violation", "grpo"),
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
        hits, counted = re.search(rf"(\d+) of ({n}) ->", said).groups()
        assert f"-> {100 * int(hits) / int(counted):.2f}: equal" in said
        first = pairs[pairs.dimension == "safety"].iloc[0]
        assert (
            first.criterion_id in said
            and f"text of {first.chosen_id}: says {first.chosen_id} plainly" in said
        )
        assert (
            "settled met" in said
            and "reward/criterion: fingerprint f1ngerpr1nt, seed 2040, base ba5e" in said
        )


def test_reported_inputs_and_empty_cells_lead_to_where_they_stand(run):
    said = trace.trace(run, "main_results", "GPT-5", "reported_pairwise_safety")
    assert "77.39" in said and "mark N" in said and "paper_values/main_results.csv" in said
    said = trace.trace(run, "data_pipeline", "judge agreement that is set", "run")
    assert "judge_agreement = 0.932" in said
    assert "none: this row has no such value (status: not run)" in trace.trace(
        run, "main_results", "GPT-5", "run_pairwise_safety"
    )


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
    assert (
        "text of" not in said
        and f"not in this copy: runs/cpu/data/candidates.parquet has them, content sha256 {digest}"
        in said
    )


def test_a_claim_leads_to_its_check(run):
    said = trace.trace(run, "claims", "injection_overall", "verdict")
    assert said.startswith("claims | injection_overall | verdict = ")
    said = trace.trace(
        run,
        "claims",
        "injection_overall / run: criterion - scalar_blind, overall, adjudicated",
        "difference",
    )
    assert re.search(
        r"^rule +same direction where the low end, -?[\d.]+, is above 0", said, re.MULTILINE
    )


@pytest.mark.parametrize(
    "asked, line",
    [
        (
            ("none", "x", "y"),
            r"no table 'none' in runs/cpu/paper; there are: .*main_results.*, claims$",
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
    assert trace.main([*asked, "--run", "runs/cpu"]) == 1
    said = capsys.readouterr()
    assert (
        re.match(line, said.err.strip())
        and said.out == ""
        and len(said.err.strip().splitlines()) == 1
    )


# ---------------------------------------------------------------- what hangs on one prediction


def frames(run):
    """(table, row, column) -> text of every cell that is no key, of the tables of a run."""
    return {(t, r, c): values[c] for t, r, c, values in trace.cells(Place(run))}


def changed(before, after):
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def values(cells):
    """Without ends of intervals, which may stay where they are when their value moves."""
    return {cell for cell in cells if not cell[2].endswith(("_low", "_high"))}


def flipped(predicted, at):
    """One prediction turned round: the score's sign, P(met) and the verdict."""
    other = predicted.copy()
    other.loc[at, "score"] = -9 * other.score[at]
    other.loc[at, "probability"] = 1 - other.probability[at]
    other.loc[at, "met"] = not other.met[at]
    return other


def moved(made, before, predicted):
    after = bench.tally(made, predicted)
    same = (before.hits == after.hits).all(axis=0) & (before.counts == after.counts).all(axis=0)
    return {key for key, equal in zip(before.keys, same, strict=True) if not equal}


def test_a_changed_prediction_changes_exactly_the_cells_that_depend_on_it(run):
    """A flip that moves a sum of every metric that hangs on it, so that no cell is equal by
    chance."""
    place, made = Place(run), bench.Bench.load(run / "bench")
    predicted, before = place.run.predicted, bench.tally(made, place.run.predicted)
    pairs = made.pairs[(made.pairs.dimension == "safety") & (made.pairs.truth == "same")]
    used = set(zip(pairs.chosen_id, pairs.criterion_id)) | set(
        zip(pairs.rejected_id, pairs.criterion_id)
    )
    agreed = made.verdicts[
        made.verdicts.physician_1 == made.verdicts.physician_2
    ]  # else half a gain, half a loss
    used &= set(zip(agreed.candidate_id, agreed.criterion_id))
    own = predicted[
        (predicted.scorer == "criterion")
        & pd.Series([key in used for key in zip(predicted.candidate_id, predicted.criterion_id)])
    ]
    for at in own.index:
        where = predicted.loc[at, ["scorer", *bench.CELL]].to_dict()
        asked = {
            (scorer, metric, part, against)
            for scorer, metric, part, against in before.keys
            if before.counts[:, before.keys.index((scorer, metric, part, against))].sum()
            and trace_rows.of_bench(place, scorer, (metric, part), against).depends_on(
                PREDICTIONS, where, FLIPPED
            )
        }
        after = flipped(predicted, at)
        if moved(made, before, after) == asked:
            break
    else:
        pytest.fail("no flip moves all that hangs on it: another seed for the bench")
    assert {key[0] for key in asked} == {"criterion"} and len(asked) > 8
    depends = trace.dependents(place, PREDICTIONS, where, FLIPPED)
    old = frames(run)
    after.to_parquet(run / PREDICTIONS, index=False)
    build(run)
    found = changed(old, frames(run))
    assert values(found) == values(depends)
    assert found <= depends and found - values(found)
    assert {t for t, _, _ in found} == {
        "main_results",
        "main_results_truth",
        "safety_veto",
        "safety_veto_truth",
        "seen_unseen",
        "specialty",
        "calibration",
        "graders",
    }
    assert {row for t, row, _ in found if t == "main_results"} == {CRITERION}
    assert not any("pairwise_proficiency" in c or "pointwise_excellence" in c for _, _, c in found)


def test_length_decides_which_pairs_count_as_shorter_for_every_scorer(run):
    place = Place(run)
    answer = place.run.bench.pairs.chosen_id.iloc[0]
    where = {"scorer": "length", "candidate_id": answer, "criterion_id": ""}
    depends = trace.dependents(place, PREDICTIONS, where, ("score",))
    own = {cell for cell in depends if cell[1] == tables.systems(PROFILE)["length"]}
    assert {c for _, r, c in depends - own if r == CRITERION} == {
        f"run_pairwise_shorter{end}" for end in ("", "_low", "_high")
    }
    assert trace.dependents(place, PREDICTIONS, where, ("met",)) == set()


@pytest.mark.parametrize("by", ["criterion", "answer"])
def test_a_scorer_that_compares_two_answers_is_counted_by_its_preferences(run, by):
    place = Place(run)
    pairs, grades = place.run.bench.pairs, place.run.bench.grades
    rows, hits = [], 0
    for n, pair in enumerate(
        pairs.itertuples()
    ):  # right, wrong in the other order, even, NaN, in turn
        p, turned = ((0.9, False), (0.7, True), (0.5, False), (float("nan"), True))[n % 4]
        sides = (pair.rejected_id, pair.chosen_id) if turned else (pair.chosen_id, pair.rejected_id)
        rows.append(("pair_rm", pair.instruction_id, pair.criterion_id, *sides, p, True))
        hits += n % 4 == 0
    for n, pair in enumerate(grades.itertuples()):
        p = 0.9 if pair.adjudicated > 0 else 0.1
        rows.append(
            ("pair_rm", pair.instruction_id, "", pair.a_id, pair.b_id, p if n % 3 else 1 - p, True)
        )
    columns = [
        "scorer",
        "instruction_id",
        "criterion_id",
        "a_id",
        "b_id",
        "probability",
        "consistent",
    ]
    frame = pd.DataFrame(rows, columns=columns)
    kept = frame if by == "criterion" else frame[frame.criterion_id == ""]
    kept.to_parquet(run / trace_rows.PREFERENCES, index=False)
    place = Place(run)
    found = trace_rows.of_bench(place, "pair_rm", ("pairwise", "all"), "adjudicated")
    if by == "criterion":
        assert found.ratio == f"{hits} of {len(pairs)}"
    else:  # the preference on the whole answers stands for every criterion
        said = {(r.a_id, r.b_id): r.probability > 0.5 for r in kept.itertuples()}
        right = sum(
            said[p.chosen_id, p.rejected_id]
            if (p.chosen_id, p.rejected_id) in said
            else not said[p.rejected_id, p.chosen_id]
            for p in pairs.itertuples()
        )
        assert found.ratio == f"{right} of {len(pairs)}"
    told = [n % 3 > 0 for n, g in enumerate(grades.adjudicated) if g]
    overall = trace_rows.of_bench(place, "pair_rm", ("overall", "all"), "adjudicated")
    assert (
        overall.ratio == f"{sum(told)} of {len(told)}"
        and overall.files[0] == trace_rows.PREFERENCES
    )
    where = {"scorer": "pair_rm", "criterion_id": ""}
    assert overall.depends_on(trace_rows.PREFERENCES, where, ("probability",))
    assert found.depends_on(trace_rows.PREFERENCES, where, ("probability",)) == (by == "answer")
    with pytest.raises(KitError, match="no predictions of pair_rm"):
        trace_rows.of_bench(place, "pair_rm", ("pointwise", "safety"), "adjudicated")


def test_a_changed_answer_of_a_policy_changes_exactly_the_cells_that_depend_on_it(run):
    place, old = Place(run), frames(run)
    answers, cells = pd.read_parquet(run / EVALUATION), pd.read_parquet(run / VERDICTS)
    patient = answers[
        (answers.policy == "grpo") & ~answers.readable_violation.astype(bool)
    ].instruction_id.iloc[0]
    at = {"policy": "grpo", "instruction_id": patient}
    depends = trace.dependents(place, EVALUATION, at, ("readable_violation", "readable_s3"))
    depends |= trace.dependents(
        place, VERDICTS, at | {"criterion_id": "safety", "judge": "truth"}, ("verdict",)
    )
    mask = (answers.policy == "grpo") & (answers.instruction_id == patient)
    answers.loc[mask, ["readable_violation", "violation"]] = True
    answers.loc[mask, ["readable_s3", "s3"]] = 1
    said = (
        (cells.policy == "grpo")
        & (cells.instruction_id == patient)
        & (cells.criterion_id == "safety")
    )
    cells.loc[said, "verdict"] = "not_met"
    answers.to_parquet(run / EVALUATION, index=False)
    cells.to_parquet(run / VERDICTS, index=False)
    build(run)
    found = changed(old, frames(run))
    assert values(found) == values(depends) and found <= depends
    assert {t for t, _, _ in found} == {"policy", "policy_dimension", "policy_specialty"}
    assert ("policy", "base policy (kit)", "run_violations") not in found
    assert ("policy", "GRPO less base, paired (kit)", "run_violations") in found


def test_a_changed_verdict_of_the_judge_changes_its_own_rows_alone(run):
    judged, old = pd.read_parquet(run / "bench/judge.parquet"), frames(run)
    at = judged.index[judged.verdict == "met"][0]
    where = judged.loc[at, bench.CELL].to_dict()
    depends = trace.dependents(Place(run), "bench/judge.parquet", where, ("verdict",))
    judged.assign(verdict=judged.verdict.where(judged.index != at, "not_met")).to_parquet(
        run / "bench/judge.parquet", index=False
    )
    build(run)
    found = changed(old, frames(run))
    assert found and values(found) <= values(depends) and found <= depends
    assert {(t, row.split(" / ")[0]) for t, row, _ in depends} == {
        ("graders", "judge of the run (kit)")
    }


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
    assert provenance.kit()["content"] != before


def test_every_table_says_what_the_run_was_and_not_who_drew_it(run, monkeypatch):
    manifest = json.loads((run / "manifest.json").read_text())
    facts = json.loads((run / "paper/tables/main_results.json").read_text())["run"]
    assert facts["kit"] == manifest["kit"] and facts["packages"] == manifest["packages"]
    assert facts["models"]["reward/criterion"]["settings"] == "f1ngerpr1nt"
    assert facts["data"] == {
        "candidates.parquet": provenance.content(run / "data/candidates.parquet")
    }
    before = {p.name: p.read_bytes() for p in (run / "paper/tables").iterdir()}
    monkeypatch.setattr(provenance, "kit", lambda: pytest.fail("a drawing asks for its own commit"))
    build(run)
    assert {p.name: p.read_bytes() for p in (run / "paper/tables").iterdir()} == before
    write_json(
        run / "manifest.json", manifest | {"kit": {"commit": "another", "content": "0" * 64}}
    )
    build(run)
    assert (
        json.loads((run / "paper/tables/policy.json").read_text())["run"]["kit"]["commit"]
        == "another"
    )


def test_a_run_of_an_older_kit_has_what_it_says(tmp_path):
    assert provenance.of_run(tmp_path) == {"data": {}, "models": {}}
    (tmp_path / "manifest.json").write_text("no json")
    assert provenance.of_run(tmp_path) == {"data": {}, "models": {}}
