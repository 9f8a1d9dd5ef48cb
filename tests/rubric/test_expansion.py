"""Expansion from files: the very pairs of ``preferences.criterion_pairs``, whatever the order."""

from collections import Counter
from itertools import combinations
from shutil import copy

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from promedical_utils.core import records
from promedical_utils.core.records import (
    Candidate,
    Criterion,
    CriterionPair,
    Instruction,
    Rubric,
    Verdict,
)
from promedical_utils.core.workspace import KitError
from promedical_utils.rubric import expansion
from promedical_utils.rubric.preferences import criterion_pairs, groups

VALUES = ("met", "not_met", "unknown")
FILES = {"candidates": Candidate, "rubrics": Rubric, "verdicts": Verdict}


def instruction(name):
    return Instruction(
        id=name,
        category="c",
        specialty="s",
        source="t",
        difficulty=5,
        messages=[{"role": "user", "content": "hello"}],
    )


def rubric(name, dimensions):
    """Criteria c0, c1, ...: ids that other rubrics have as well."""
    share = 1 / dimensions.count("proficiency")
    return Rubric(
        instruction_id=name,
        status="gold",
        round=0,
        criteria=[
            Criterion(
                id=f"c{n}",
                dimension=d,
                text="text",
                kind=f"kind {n}",
                weight=share if d == "proficiency" else 0,
            )
            for n, d in enumerate(dimensions)
        ],
    )


def write(folder, **made):
    paths = {}
    for name, rows in made.items():
        paths[name] = folder / f"{name}.parquet"
        table = pa.Table.from_pylist([row.model_dump() for row in rows])
        parquet.write_table(table, paths[name], row_group_size=7)
    return paths


def expand(folder, made, **options):
    return expansion.expand(**write(folder, **made), pairs=folder / "pairs.parquet", **options)


@st.composite
def worlds(draw):
    """Rubrics, candidates and verdicts in any order, some answers not judged, and another judge."""
    made = {name: [] for name in FILES}
    for i in range(draw(st.integers(1, 5))):
        rest = draw(st.lists(st.sampled_from(records.DIMENSIONS), max_size=3))
        made["rubrics"].append(rubric(f"i{i}", draw(st.permutations(["proficiency", *rest]))))
        for a in range(draw(st.integers(0, 4))):
            answer = (
                f"i{i}-{draw(st.integers(0, 9))}{a}"  # the order of ids is not that of the file
            )
            made["candidates"].append(
                Candidate(id=answer, instruction_id=f"i{i}", generator="g", text="t")
            )
            if draw(st.integers(0, 4)):
                made["verdicts"] += [
                    Verdict(
                        candidate_id=answer,
                        criterion_id=c.id,
                        judge=judge,
                        verdict=draw(st.sampled_from(VALUES)),
                    )
                    for c in made["rubrics"][-1].criteria
                    for judge in ("judge", "other")
                ]
    shuffled = {
        name: list(draw(st.permutations(made[name]))) for name in ("candidates", "verdicts")
    }
    return made | shuffled


def by_hand(made, judge="judge"):
    asked = [instruction(r.instruction_id) for r in made["rubrics"]]
    return groups(asked, made["rubrics"], made["candidates"], made["verdicts"], judge)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=worlds())
def test_pairs_and_counts_are_those_of_criterion_pairs(tmp_path_factory, made):
    folder = tmp_path_factory.mktemp("expansion")
    joined = by_hand(made)
    expected = [pair for group in joined for pair in criterion_pairs(group)]
    if not expected:
        if made["verdicts"]:  # a table of no rows has no columns
            with pytest.raises(KitError, match="no verdict of|tells two answers apart"):
                expand(folder, made)
        return
    found = expand(folder, made)
    pairs = records.load(folder / "pairs.parquet", CriterionPair, "02")
    assert pairs == expected  # in the same order, too
    counts, silent = {d: Counter() for d in records.DIMENSIONS}, set()
    for group in joined:
        for c in group.criteria:
            said = [group.verdicts[a.id, c.id] for a in group.judged]
            count = counts[c.dimension]
            count["verdicts"] += len(said)
            count["unknown"] += said.count("unknown")
            if c.dimension == "safety":
                said = ["not_met" if v == "unknown" else v for v in said]
            outcomes = Counter(
                "lost_to_unknown"
                if "unknown" in two
                else "pairs"
                if len(set(two)) == 2
                else f"both_{two[0]}"
                for two in combinations(said, 2)
            )
            count.update(outcomes)
            if outcomes and not outcomes["pairs"]:
                silent.add((group.instruction.id, c.id, c.dimension, c.kind))
    for r in made["rubrics"]:
        for c in r.criteria:
            counts[c.dimension]["criteria"] += 1
    names = [
        "criteria",
        "verdicts",
        "unknown",
        "pairs",
        "both_met",
        "both_not_met",
        "lost_to_unknown",
    ]
    for dimension, count in counts.items():
        assert {n: found.dimensions[n][dimension] for n in names} == {n: count[n] for n in names}
    assert set(found.silent.itertuples(index=False, name=None)) == silent
    whole = found.dimensions.loc["all"]
    parts = whole[["pairs", "both_met", "both_not_met", "lost_to_unknown"]]
    assert whole.comparisons == parts.sum() and whole.never_discriminate == len(silent)
    assert found.kinds[["pairs", "never_discriminate"]].sum().tolist() == [len(pairs), len(silent)]
    answers = {a.id for group in joined for a in group.judged}
    assert (found.judged, found.unjudged) == (len(answers), len(made["candidates"]) - len(answers))


def small():
    """Two instructions, two answers each, a dimension each; i0's pairs are c0 and c2."""
    made = {"rubrics": [rubric(i, records.DIMENSIONS) for i in ("i0", "i1")]}
    made["candidates"] = [
        Candidate(id=f"{i}{a}", instruction_id=i, generator="g", text="t")
        for i in ("i0", "i1")
        for a in "ab"
    ]
    said = {"a": ("met", "unknown", "met"), "b": ("not_met", "met", "unknown")}
    made["verdicts"] = [
        Verdict(candidate_id=f"{i}{a}", criterion_id=f"c{n}", judge="judge", verdict=v)
        for i in ("i0", "i1")
        for a, three in said.items()
        for n, v in enumerate(three)
    ]
    return made


def test_files_as_the_kit_saves_them_and_one_judge_of_several(tmp_path):
    made = small()
    other = [v.model_copy(update={"judge": "truth", "verdict": "met"}) for v in made["verdicts"]]
    paths = {name: tmp_path / f"{name}.parquet" for name in FILES}
    for name, path in paths.items():
        records.save(made[name] + (other if name == "verdicts" else []), path)
    found = expansion.expand(**paths, pairs=tmp_path / "pairs.parquet")
    pairs = records.load(tmp_path / "pairs.parquet", CriterionPair, "02")
    assert [(p.criterion_id, p.chosen_id, p.rejected_id) for p in pairs] == [
        ("c0", "i0a", "i0b"),
        ("c2", "i0a", "i0b"),
        ("c0", "i1a", "i1b"),
        ("c2", "i1a", "i1b"),
    ]
    assert found.pairs == 4 and found.dimensions.lost_to_unknown.to_dict() == {
        "proficiency": 0,
        "excellence": 2,
        "safety": 0,
        "all": 2,
    }
    assert set(found.silent.criterion_id) == {"c1"}
    with pytest.raises(KitError, match="tells two answers apart by truth's verdicts"):
        expansion.expand(**paths, pairs=tmp_path / "none.parquet", judge="truth")
    assert not (tmp_path / "none.parquet").exists()


def test_only_the_instructions_asked_for(tmp_path):
    made = small()
    made["verdicts"] = made["verdicts"][:-1]  # i1 is judged in part, and not asked for
    found = expand(tmp_path, made, ids=["i0"])
    pairs = records.load(tmp_path / "pairs.parquet", CriterionPair, "02")
    assert {p.instruction_id for p in pairs} == {"i0"} and found.dimensions.criteria["all"] == 3
    assert (found.judged, found.unjudged) == (2, 0)
    for ids, message in (
        (["i0", "j"], "no rubric of instruction j"),
        (["i0", "i1"], "some are missing"),
    ):
        with pytest.raises(KitError, match=message):
            expand(tmp_path, made, ids=ids)
    made["candidates"], made["verdicts"] = made["candidates"][:2], made["verdicts"][:6]
    with pytest.raises(KitError, match="without a candidate: i1"):
        expand(tmp_path, made, ids=["i0", "i1"])


def changed(record, **update):
    return record.model_copy(update=update)


C, V = Candidate, Verdict
BAD = {
    "verdict twice": (lambda m: m["verdicts"].append(m["verdicts"][3]), "i0b, c0: judged twice"),
    "verdict missing": (lambda m: m["verdicts"].pop(4), "i0b: 2 verdicts, not 3: some are missing"),
    "no such criterion": (
        lambda m: m["verdicts"].append(changed(m["verdicts"][0], criterion_id="c9")),
        "i0a, c9: no criterion of that answer's rubric",
    ),
    "no such candidate": (
        lambda m: m["verdicts"].append(changed(m["verdicts"][0], candidate_id="x")),
        "no candidate x",
    ),
    "no verdict at all": (
        lambda m: m["verdicts"].append(
            V.model_construct(
                candidate_id="i0a", criterion_id="c0", judge="judge", verdict=None, rationale=""
            )
        ),
        "verdict None of judge on i0a, c0 is none of not_met, met, unknown",
    ),
    "no such verdict": (
        lambda m: m["verdicts"].append(
            V.model_construct(
                candidate_id="i0a", criterion_id="c0", judge="judge", verdict="Met", rationale=""
            )
        ),
        "verdict 'Met' of judge on i0a, c0 is none of not_met, met, unknown",
    ),
    "candidate twice": (
        lambda m: m["candidates"].append(m["candidates"][0]),
        "two records for candidate i0a",
    ),
    "candidate of nothing": (
        lambda m: m["candidates"].append(C(id="x", instruction_id="j", generator="g", text="t")),
        "no rubric of instruction j",
    ),
    "rubric twice": (
        lambda m: m["rubrics"].append(m["rubrics"][0]),
        "two rubrics for instruction i0",
    ),
    "criterion twice": (
        lambda m: m["rubrics"].append(
            Rubric.model_construct(
                instruction_id="i1",
                criteria=m["rubrics"].pop().criteria[:1] * 3,
                status="gold",
                round=0,
            )
        ),
        "rubric i1: criterion c0 twice",
    ),
    "nobody judged": (
        lambda m: m.update(verdicts=[changed(v, judge="truth") for v in m["verdicts"]]),
        "no verdict of 'judge'",
    ),
}


@pytest.mark.parametrize("change, message", BAD.values(), ids=BAD)
def test_bad_input_is_named_and_writes_nothing(tmp_path, change, message):
    made = small()
    change(made)
    with pytest.raises(KitError, match=message):
        expand(tmp_path, made)
    assert not (tmp_path / "pairs.parquet").exists()


def test_files_that_are_missing_broken_or_of_another_kind(tmp_path):
    paths = write(tmp_path, **small()) | {"pairs": tmp_path / "pairs.parquet"}
    with pytest.raises(KitError, match="verdicts.parquet: no column candidate_id"):
        expansion.expand(**paths | {"verdicts": copy(paths["rubrics"], paths["verdicts"])})
    (tmp_path / "candidates.parquet").write_text("PAR1")
    with pytest.raises(KitError, match="candidates.parquet is not readable Parquet"):
        expansion.expand(**paths)
    (tmp_path / "rubrics.parquet").unlink()
    with pytest.raises(KitError, match="missing .*rubrics.parquet: run notebook 01_rubrics"):
        expansion.expand(**paths)
