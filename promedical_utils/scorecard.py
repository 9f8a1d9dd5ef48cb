"""Policies' answers, patient by patient: side by side, and without facts that the base cannot copy."""

from collections.abc import Iterable

import pandas as pd

from promedical_utils import clinic
from promedical_utils.claims import POLICY_SCORES
from promedical_utils.clinic.grammar import PLACEHOLDERS
from promedical_utils.clinic.vocabulary import read
from promedical_utils.groups import Group
from promedical_utils.policy import answer_scores
from promedical_utils.records import Candidate, Criterion, Rubric


def facts(criterion: Criterion) -> set[str]:
    """The leaflet's facts that a criterion of the clinic asks for, by its kind."""
    forms = " ".join(read("criteria")[criterion.kind]["forms"])
    return {name for name in PLACEHOLDERS if f"{{{name}}}" in forms}


def with_readable(
    evaluation: pd.DataFrame, rubrics: Iterable[Rubric], cannot_copy: Iterable[str]
) -> pd.DataFrame:
    """``policy.evaluate``'s rows with ``readable_s1`` and so on: no criterion that needs such a fact.

    What a base cannot copy from a leaflet no reward can mend, so claims are made of these columns.
    S1 is then the share of the weight that is left; NaN where none is.
    """
    lost = set(cannot_copy)
    kept = {
        r.instruction_id: r.model_copy(
            update={"criteria": [c for c in r.criteria if not facts(c) & lost]}
        )
        for r in rubrics
    }
    rows = []
    for row in evaluation.to_dict("records"):
        rubric = kept[row["instruction_id"]]
        verdicts = clinic.gold(rubric.criteria, row["text"])
        true = answer_scores(rubric, verdicts, row["finished"])
        weight = sum(c.weight for c in rubric.criteria)
        s1 = true.s1 / weight if weight else float("nan")
        scores = (s1, true.s2, true.s3, true.s3 > 0)
        rows.append(row | {f"readable_{k}": v for k, v in zip(POLICY_SCORES, scores, strict=True)})
    return pd.DataFrame(rows)


def beside(evaluation: pd.DataFrame, found: dict, instruction_id: str) -> Group:
    """One instruction's answers by every policy as a group, with the true verdicts.

    ``found`` is ``stages.data``.
    """
    of = {i.id: i for i in found["instructions"]}, {r.instruction_id: r for r in found["rubrics"]}
    instruction, criteria = of[0][instruction_id], tuple(of[1][instruction_id].criteria)
    rows = evaluation[evaluation.instruction_id == instruction_id]
    answers = tuple(
        Candidate(id=r.policy, instruction_id=instruction_id, generator=r.policy, text=r.text or " ")
        for r in rows.itertuples()
    )
    said = {(a.id, c): v for a in answers for c, v in clinic.gold(criteria, a.text).items()}
    return Group(instruction, criteria, answers, said)
