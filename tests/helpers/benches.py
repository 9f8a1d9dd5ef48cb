"""A small bench with known answers, for the tests of bench, tables, figures and claims."""

import numpy as np
import pandas as pd

from promedical_utils.clinic import people
from promedical_utils.core import profiles
from promedical_utils.core.records import (
    Candidate,
    Criterion,
    Instruction,
    Message,
    Rubric,
    SplitRow,
)
from promedical_utils.evaluation import bench
from promedical_utils.rubric.preferences import Group

KINDS = {"dose": "proficiency", "review": "proficiency", "empathy": "excellence", "avoid": "safety"}
UNSEEN = frozenset({"review"})
SIZES = {
    "bench_samples": 24,
    "bench_pairs_proficiency": 30,
    "bench_pairs_excellence": 11,
    "bench_pairs_safety": 9,
    "bootstrap": 50,
}


def profile(**changes):
    return profiles.load("cpu", **{**SIZES, **changes})


def world(n=30, seed=0):
    """Records of n instructions, three answers each, and the truth of every verdict."""
    rng = np.random.default_rng(seed)
    instructions, splits, rubrics, candidates, truth = [], [], [], [], {}
    for i in (f"i{number:03d}" for number in range(n)):
        number = int(i[1:])
        instructions.append(
            Instruction(
                id=i,
                category=f"k{number % 2}",
                specialty=f"s{number % 3}",
                source="test",
                messages=[Message(role="user", content="?")],
                difficulty=5,
            )
        )
        splits.append(
            SplitRow(
                instruction_id=i,
                split="bench",
                condition=f"c{number % 8}",
                patient=i,
                wording_seed=number,
            )
        )
        criteria = [
            Criterion(
                id=f"{i}-{k}",
                dimension=d,
                kind=k,
                text=f"gives {k}",
                weight={"dose": 0.6, "review": 0.4}.get(k, 0),
            )
            for k, d in KINDS.items()
        ]
        rubrics.append(Rubric(instruction_id=i, criteria=criteria, status="gold", round=0))
        for letter in "abc":
            answer = Candidate(
                id=f"{i}{letter}",
                instruction_id=i,
                generator=letter,
                text="word " * int(rng.integers(3, 30)),
            )
            candidates.append(answer)
            for c in criteria:
                drawn = rng.choice(["met", "not_met", "unknown"], p=[0.5, 0.42, 0.08])
                truth[answer.id, c.id] = str(drawn)
    return instructions, splits, rubrics, candidates, truth


def instruction(name):
    return Instruction(
        id=name,
        category="k",
        specialty="s",
        source="test",
        messages=[Message(role="user", content="?")],
        difficulty=5,
    )


def groups(n=30, seed=0):
    """``world`` as groups with the truth."""
    instructions, _, rubrics, candidates, truth = world(n, seed)
    made = []
    for instruction, rubric in zip(instructions, rubrics, strict=True):
        own = tuple(c for c in candidates if c.instruction_id == instruction.id)
        verdicts = {(a.id, c.id): truth[a.id, c.id] for a in own for c in rubric.criteria}
        made.append(Group(instruction, tuple(rubric.criteria), own, verdicts))
    return made


def compose(settings, agreement=0.9, n=30, seed=0):
    """A bench of ``world``."""
    condition_of = {row.instruction_id: row.condition for row in world(n, seed)[1]}
    panel = people.Panel(agreement, settings.seed)
    return bench.compose(groups(n, seed), condition_of, UNSEEN, panel, settings)


def make(agreement=0.9, n=30, seed=0, **changes):
    """(bench, truth) composed from ``world``."""
    return compose(profile(**changes), agreement, n, seed), world(n, seed)[-1]


def noisy(
    composed, names=("criterion", "criterion_clean", "scalar_overall", "scalar_blind", "length")
):
    """Predictions: criterion scorers near the truth, scalar ones near noise."""
    rng, frames = np.random.default_rng(1), []
    cells = composed.verdicts
    for name in names:
        if name.startswith("criterion"):
            spread = 0.1 if name == "criterion_clean" else 0.6
            score = (cells.truth == "met") * 2.0 - 1 + rng.normal(0, spread, len(cells))
            frame = cells[["instruction_id", *bench.CELL]].assign(
                scorer=name,
                score=score,
                probability=1 / (1 + np.exp(-3 * score)),
                met=pd.array(score > 0, "boolean"),
            )
        else:
            answers = cells[["instruction_id", "candidate_id"]].drop_duplicates()
            score = rng.integers(0, 9, len(answers)) * 1.0
            frame = bench.predictions(name, answers.assign(criterion_id="", score=score))
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def evaluation(n=60, base=0.6, grpo=0.1):
    rng, rows = np.random.default_rng(2), []
    for number in range(n):
        for policy, rate in (("base", base), ("grpo", grpo)):
            rows.append(
                (policy, f"i{number}", f"c{number % 12}", 0.6, 1, 0, bool(rng.random() < rate))
            )
    columns = ["policy", "instruction_id", "condition", "s1", "s2", "s3", "violation"]
    return pd.DataFrame(rows, columns=columns)
