"""Outcomes of every two answers, counted by hand; pairs are those of ``criterion_pairs``."""

from collections import Counter
from itertools import combinations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promedical_utils.core import records
from promedical_utils.core.records import Candidate, Criterion, Instruction, Rubric, Verdict
from promedical_utils.core.run_data import RunData
from promedical_utils.rubric import expansion
from promedical_utils.rubric.preferences import criterion_pairs, groups

VALUES = ("met", "not_met", "unknown")


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


@st.composite
def worlds(draw):
    """Rubrics, candidates and verdicts in any order, some answers not judged, and another judge."""
    made: dict = {"candidates": [], "rubrics": [], "verdicts": []}
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
    return groups(RunData(instructions=asked, **made), judge)


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(made=worlds())
def test_pairs_and_counts_are_those_of_criterion_pairs(made):
    joined = by_hand(made)
    found = expansion.outcomes(joined)
    assert len(found) == sum(len(group.criteria) for group in joined)
    rows = iter(found.itertuples())
    for group in joined:
        made_pairs = Counter(pair.criterion_id for pair in criterion_pairs(group))
        for c in group.criteria:
            row = next(rows)
            assert (row.instruction_id, row.criterion_id) == (group.instruction.id, c.id)
            assert (row.dimension, row.kind, row.criteria) == (c.dimension, c.kind, 1)
            said = [group.verdicts[a.id, c.id] for a in group.judged]
            assert (row.verdicts, row.unknown) == (len(said), said.count("unknown"))
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
            for name in ("pairs", "both_met", "both_not_met", "lost_to_unknown"):
                assert getattr(row, name) == outcomes[name]
            assert row.pairs == made_pairs[c.id] and row.comparisons == outcomes.total()
            assert row.never_discriminate == (outcomes.total() > 0 and not outcomes["pairs"])
    if joined:
        kinds = expansion.by_kind(found)
        assert list(dict.fromkeys(kinds.dimension)) == [
            d for d in records.DIMENSIONS if d in set(found.dimension)
        ]
        assert kinds.pairs.sum() == found.pairs.sum()
        assert kinds.criteria.sum() == len(found)
