"""Policies' answers, patient by patient: beside each other, and without what a base cannot copy."""

from collections.abc import Iterable

import pandas as pd

from promedical_utils import clinic
from promedical_utils.clinic.grammar import PLACEHOLDERS
from promedical_utils.clinic.vocabulary import read
from promedical_utils.core.records import Candidate, Criterion, Rubric
from promedical_utils.core.run_data import RunData
from promedical_utils.policy.veto_reward import answer_verdicts
from promedical_utils.rubric import scoring
from promedical_utils.rubric.preferences import Group

POLICY_SCORES = ("s1", "s2", "s3", "violation")


def facts(criterion: Criterion) -> set[str]:
    """The leaflet's facts that a criterion of the clinic asks for, by its kind."""
    forms = " ".join(read("criteria")[criterion.kind]["forms"])
    return {name for name in PLACEHOLDERS if f"{{{name}}}" in forms}


def with_readable(
    evaluation: pd.DataFrame, rubrics: Iterable[Rubric], cannot_copy: Iterable[str]
) -> pd.DataFrame:
    """``policy.model.judge``'s rows with ``readable_s1`` and so on, of criteria without such facts.

    What a base cannot copy from a leaflet no reward can mend, so claims are made of these columns.
    S1 is then the share of the weight that is left; NaN where none is.
    """
    lost, readable, rows = set(cannot_copy), {}, []
    for rubric in rubrics:
        criteria = [c for c in rubric.criteria if not facts(c) & lost]
        readable[rubric.instruction_id] = rubric.model_copy(update={"criteria": criteria})
    for row in evaluation.to_dict("records"):
        rubric = readable[row["instruction_id"]]
        verdicts = clinic.gold(rubric.criteria, row["text"])
        scores = scoring.score(rubric, answer_verdicts(rubric, verdicts, row["finished"]))
        weight = sum(c.weight for c in rubric.criteria)
        s1 = scores.s1 / weight if weight else float("nan")
        values = (s1, scores.s2, scores.s3, scores.s3 > 0)
        named = zip(POLICY_SCORES, values, strict=True)
        rows.append(row | {f"readable_{name}": value for name, value in named})
    return pd.DataFrame(rows)


def beside(
    evaluation: pd.DataFrame, data: RunData, instruction_id: str, verdicts: pd.DataFrame
) -> Group:
    """One instruction's answers by every policy as a group, with the verdicts on them.

    By the truth where ``verdicts`` have it, else as judged; of one training of each policy.
    """
    rows = evaluation[evaluation.instruction_id == instruction_id]
    judge = "truth" if verdicts.judge.eq("truth").any() else "judged"
    cells = verdicts[(verdicts.instruction_id == instruction_id) & (verdicts.judge == judge)]
    stored = cells.set_index(["policy", "criterion_id"]).verdict.to_dict()
    criteria = tuple(data.rubric_of[instruction_id].criteria)
    answers = []
    for row in rows.itertuples():
        own = {"instruction_id": instruction_id, "generator": row.policy, "text": row.text or " "}
        answers.append(Candidate(id=row.policy, **own))
    return Group(data.instruction_of[instruction_id], criteria, tuple(answers), stored)
