"""Policies' answers beside each other, patient by patient."""

import pandas as pd

from promedical_utils.core.records import Candidate
from promedical_utils.core.run_data import RunData
from promedical_utils.rubric.preferences import Group


def beside(
    evaluation: pd.DataFrame, data: RunData, instruction_id: str, verdicts: pd.DataFrame
) -> Group:
    """One instruction's answers by every policy as a group, with the verdicts on them. By the truth
    where ``verdicts`` have it, else as judged; of one training of each policy."""
    rows = evaluation[evaluation.instruction_id == instruction_id]
    judge = "truth" if verdicts.judge.eq("truth").any() else "judged"
    cells = verdicts[(verdicts.instruction_id == instruction_id) & (verdicts.judge == judge)]
    stored = cells.set_index(["policy", "criterion_id"]).verdict.to_dict()
    criteria = tuple(data.rubric_of[instruction_id].criteria)
    answers = [
        Candidate(id=policy, instruction_id=instruction_id, generator=policy, text=text or " ")
        for policy, text in zip(rows.policy, rows.text, strict=True)
    ]
    return Group(data.instruction_of[instruction_id], criteria, tuple(answers), stored)
