"""Policies' answers, patient by patient: side by side, and without facts that the base cannot
copy."""

from collections.abc import Iterable

import pandas as pd

from promedical_utils import clinic
from promedical_utils.clinic.grammar import PLACEHOLDERS
from promedical_utils.clinic.vocabulary import read
from promedical_utils.core.records import Candidate, Criterion, Rubric
from promedical_utils.core.run_data import RunData
from promedical_utils.core.workspace import KitError
from promedical_utils.evaluation.policy_metrics import one_seed
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
    """``policy.model.judge``'s rows with ``readable_s1`` and so on: no criterion that needs such a
    fact.

    What a base cannot copy from a leaflet no reward can mend, so claims are made of these columns.
    S1 is then the share of the weight that is left; NaN where none is.
    """
    lost = set(cannot_copy)
    readable = {}
    for rubric in rubrics:
        criteria = [c for c in rubric.criteria if not facts(c) & lost]
        readable[rubric.instruction_id] = rubric.model_copy(update={"criteria": criteria})
    rows = []
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
    evaluation: pd.DataFrame,
    data: RunData,
    instruction_id: str,
    verdicts: pd.DataFrame | None = None,
    judge: str | None = None,
) -> Group:
    """One instruction's answers by every policy as a group, with the verdicts on them.

    ``verdicts``: the frame beside the evaluation, read for ``judge`` ("truth" where it is there,
    else "judged"). Without the frame the clinic's truth, read from the text. Of several training
    seeds the first. KitError where there is no answer or a verdict is missing.
    """
    rows = one_seed(evaluation[evaluation.instruction_id == instruction_id])
    if rows.empty or instruction_id not in data.instruction_of:
        raise KitError(f"no answer to instruction {instruction_id!r}: take one of the evaluation")
    instruction, rubric = data.instruction_of[instruction_id], data.rubric_of[instruction_id]
    criteria = tuple(rubric.criteria)
    answers = [
        Candidate(
            id=r.policy, instruction_id=instruction_id, generator=r.policy, text=r.text or " "
        )
        for r in rows.itertuples()
    ]
    stored: dict[tuple[str, str], str] = {}
    if verdicts is None:
        for row in rows.itertuples():
            gold = answer_verdicts(rubric, clinic.gold(criteria, row.text), row.finished)
            stored |= {(row.policy, name): verdict for name, verdict in gold.items()}
    else:
        judge = judge or ("truth" if verdicts.judge.eq("truth").any() else "judged")
        cells = verdicts[(verdicts.instruction_id == instruction_id) & (verdicts.judge == judge)]
        for cell in one_seed(cells).itertuples():
            stored[cell.policy, cell.criterion_id] = cell.verdict
    wanted = [(answer.id, c.id) for answer in answers for c in criteria]
    if missing := [key for key in wanted if key not in stored]:
        policy, criterion = missing[0]
        raise KitError(
            f"no verdict of {judge!r} on {policy}'s answer to {instruction_id}, "
            f"{criterion}: evaluate the policies again"
        )
    return Group(instruction, criteria, tuple(answers), {key: stored[key] for key in wanted})
