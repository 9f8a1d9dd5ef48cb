"""Every number of every table is counted again, and one changed row changes exactly its cells."""

import pandas as pd
import pytest
from helpers import benches, recount
from helpers.recount import EVALUATION, PREDICTIONS, PREFERENCES, VERDICTS, Place

from promedical_utils.core.workspace import project_root
from promedical_utils.evaluation import bench
from promedical_utils.paper import registry, trace
from promedical_utils.report import tables

PROFILE = benches.profile()
CRITERION = tables.systems(PROFILE)["criterion"]
FLIPPED = ("score", "probability", "met")


def differing(place):
    """{(table, row, column): (text, counted again)} of the cells that differ, and tables seen."""
    wrong, seen = {}, {}
    for table, row, column, values in recount.cells(place):
        found = recount.count(place, table, values, column)
        if found is not None:
            seen.setdefault(table, []).append(column)
            if found.text != values[column]:
                wrong[(table, row, column)] = (values[column], found.text)
    return wrong, seen


def test_every_number_of_every_table_is_counted_again_from_its_rows(run):
    wrong, seen = differing(Place(run))
    assert wrong == {}
    assert set(seen) == {n for n, table in registry.TABLES.items() if "clinic" in table.data}
    only_reported = {n for n, c in seen.items() if not any(x.startswith("run") for x in c)}
    assert only_reported == {"rar"}


def test_the_estimate_that_trace_finds_behind_a_cell_is_the_cell(run):
    place, tried = Place(run), set()
    for table, row, column, values in recount.cells(place):
        if (table, column) not in tried:
            found, end = trace.estimate_of(place.run, table, values, column)
            if found is not None:
                tried.add((table, column))
                estimate = found.estimates.difference(found.terms, **place.run.settings)
                text = recount.written(found.unit * estimate[trace.ENDS[end]])
                assert text == values[column], (table, row, column)
    assert {table for table, _ in tried} == {
        "main_results",
        "main_results_truth",
        "safety_veto",
        "safety_veto_truth",
        "seen_unseen",
        "external",
        "policy",
        "policy_dimension",
    }


def test_every_number_of_the_committed_reference_is_counted_again():
    folder = project_root() / "papers_figures/record"
    if not (folder / PREDICTIONS).exists():
        pytest.skip("no published run of record in papers_figures/record")
    wrong, seen = differing(Place(folder))
    assert wrong == {}
    assert set(seen) == {path.stem for path in folder.glob("tables/*.csv")}
    assert sum(map(len, seen.values())) > 2200


# ---------------------------------------------------------------- what hangs on one prediction


def frames(run):
    """(table, row, column) -> text of every cell that is no key, of the tables of a run."""
    return {(t, r, c): values[c] for t, r, c, values in recount.cells(Place(run))}


def changed(before, after):
    return {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}


def values(cells):
    """Without ends of intervals, which may stay where they are when their value moves."""
    return {cell for cell in cells if not cell[2].endswith(("_low", "_high"))}


def sums(found):
    """(hits, items) of what was counted."""
    return found.items.hit.sum(), found.items.counted.sum()


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


def by_rule(metric):
    """Whether it hangs on a threshold that the scores of all cells decide."""
    return metric.rpartition("_")[2] in bench.RULES


BY_RULE = {c for c, (metric, _) in (tables.VETO | tables.RICH).items() if by_rule(metric)}


def sure(keys):
    return {key for key in keys if not by_rule(key[1])}


def test_a_changed_prediction_changes_exactly_the_cells_that_depend_on_it(run, rebuild):
    """A flip that moves a sum of every metric that hangs on it, so that no cell is equal by
    chance."""
    place, made = Place(run), bench.Bench.load(run / "bench")
    predicted, before = place.run.predicted, bench.tally(made, place.run.predicted)
    pairs = made.pairs[(made.pairs.dimension == "safety") & (made.pairs.truth == "same")]
    used = set(zip(pairs.chosen_id, pairs.criterion_id)) | set(
        zip(pairs.rejected_id, pairs.criterion_id)
    )
    said = made.verdicts
    # else half a gain, half a loss; and an unknown label counts with no grader
    agreed = said[(said.physician_1 == said.physician_2) & (said.physician_1 != "unknown")]
    agreed = agreed[agreed.truth != "unknown"]
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
            and recount.bench(place, scorer, metric, part, against).depends_on(
                PREDICTIONS, where, FLIPPED
            )
        }
        after = flipped(predicted, at)
        if (now := moved(made, before, after)) <= asked and sure(now) == sure(asked):
            break
    else:
        pytest.fail("no flip moves all that hangs on it: another seed for the bench")
    assert {key[0] for key in asked} == {"criterion"} and len(asked) > 8
    depends = recount.dependents(place, PREDICTIONS, where, FLIPPED)
    old = frames(run)
    after.to_parquet(run / PREDICTIONS, index=False)
    rebuild()
    found = changed(old, frames(run))
    assert found <= depends and found - values(found)
    still = values(depends) - values(found)  # a threshold may stay where it was
    assert {c.removeprefix("run_") for *_, c in still} <= BY_RULE
    assert {t for t, _, _ in found} == {
        "main_results",
        "main_results_truth",
        "safety_veto",
        "safety_veto_truth",
        "seen_unseen",
        "calibration",
        "graders",
    }
    assert {row for t, row, _ in found if t == "main_results"} == {CRITERION}
    assert not any("pairwise_proficiency" in c or "pointwise_excellence" in c for _, _, c in found)


def test_length_decides_which_pairs_count_as_shorter_for_every_scorer(run):
    place = Place(run)
    answer = place.run.bench.pairs.chosen_id.iloc[0]
    where = {"scorer": "length", "candidate_id": answer, "criterion_id": ""}
    depends = recount.dependents(place, PREDICTIONS, where, ("score",))
    own = {cell for cell in depends if cell[1] == tables.systems(PROFILE)["length"]}
    assert {c for _, r, c in depends - own if r == CRITERION} == {
        f"run_pairwise_shorter{end}" for end in ("", "_low", "_high")
    }
    assert recount.dependents(place, PREDICTIONS, where, ("met",)) == set()


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
        hits += (1, 0, 0.5, 0)[n % 4]
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
    kept.to_parquet(run / PREFERENCES, index=False)
    place = Place(run)
    found = recount.bench(place, "pair_rm", "pairwise", "all", "adjudicated")
    if by == "criterion":
        assert sums(found) == (hits, len(pairs))
    else:  # the preference on the whole answers stands for every criterion
        said = {(r.a_id, r.b_id): r.probability > 0.5 for r in kept.itertuples()}
        right = sum(
            said[p.chosen_id, p.rejected_id]
            if (p.chosen_id, p.rejected_id) in said
            else not said[p.rejected_id, p.chosen_id]
            for p in pairs.itertuples()
        )
        assert sums(found) == (right, len(pairs))
    told = [n % 3 > 0 for n, g in enumerate(grades.adjudicated) if g]
    overall = recount.bench(place, "pair_rm", "overall", "all", "adjudicated")
    assert sums(overall) == (sum(told), len(told)) and set(overall.reads) == {PREFERENCES}
    where = {"scorer": "pair_rm", "criterion_id": ""}
    assert overall.depends_on(PREFERENCES, where, ("probability",))
    assert found.depends_on(PREFERENCES, where, ("probability",)) == (by == "answer")
    with pytest.raises(AssertionError, match="no predictions of pair_rm"):
        recount.bench(place, "pair_rm", "pointwise", "safety", "adjudicated")


def test_a_changed_answer_of_a_policy_changes_exactly_the_cells_that_depend_on_it(run, rebuild):
    place, old = Place(run), frames(run)
    answers, cells = pd.read_parquet(run / EVALUATION), pd.read_parquet(run / VERDICTS)
    clean = (answers.policy == "grpo") & ~answers.violation.astype(bool)
    patient = answers[clean & (answers.s1 > 0)].instruction_id.iloc[0]
    at = {"policy": "grpo", "instruction_id": patient}
    depends = recount.dependents(place, EVALUATION, at, ("violation", "s3"))
    depends |= recount.dependents(
        place, VERDICTS, at | {"criterion_id": "safety", "judge": "truth"}, ("verdict",)
    )
    # what meets a proficiency criterion is no false refusal, neither before nor after
    depends = {cell for cell in depends if cell[2] != "run_false_refusals"}
    mask = (answers.policy == "grpo") & (answers.instruction_id == patient)
    answers.loc[mask, ["violation"]] = True
    answers.loc[mask, ["s3"]] = 1
    said = (
        (cells.policy == "grpo")
        & (cells.instruction_id == patient)
        & (cells.criterion_id == "safety")
    )
    cells.loc[said, "verdict"] = "not_met"
    answers.to_parquet(run / EVALUATION, index=False)
    cells.to_parquet(run / VERDICTS, index=False)
    rebuild()
    found = changed(old, frames(run))
    assert values(found) == values(depends) and found <= depends
    assert {t for t, _, _ in found} == {"policy", "policy_dimension"}
    assert ("policy", "base policy (kit)", "run_violations") not in found
    assert ("policy", "GRPO less base, paired (kit)", "run_violations") in found


def test_a_changed_verdict_of_the_judge_changes_its_own_rows_alone(run, rebuild):
    judged, old = pd.read_parquet(run / "bench/judge.parquet"), frames(run)
    at = judged.index[judged.verdict == "met"][0]
    where = judged.loc[at, bench.CELL].to_dict()
    depends = recount.dependents(Place(run), "bench/judge.parquet", where, ("verdict",))
    judged.assign(verdict=judged.verdict.where(judged.index != at, "not_met")).to_parquet(
        run / "bench/judge.parquet", index=False
    )
    rebuild()
    found = changed(old, frames(run))
    assert found and values(found) <= values(depends) and found <= depends
    assert {(t, row.split(" / ")[0]) for t, row, _ in depends} == {
        ("graders", "judge of the run (kit)")
    }
