"""Prompted judges behind an OpenAI-compatible endpoint: GPT-5, DeepSeek-R1, Qwen3-8B, and others.

The reported judges' prompts are not known; these are the kit's (``prompts/*.txt``). Caps, retries
and stored answers are those of ``endpoints``: a second run asks nothing again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from promedical_utils.core.profiles import Role
from promedical_utils.core.records import Rubric
from promedical_utils.data import roles
from promedical_utils.data.endpoints import Answer, Answers, Endpoint
from promedical_utils.evaluation import scorers
from promedical_utils.rubric import scoring
from promedical_utils.rubric.preferences import Group

Side = Literal["A", "B", "tie"]
FIRST = {"A": 1.0, "tie": 0.5, "B": 0.0}  # P(the answer shown as A is better)


class ComparedCriterion(roles.Reply):
    criterion: str
    reason: str
    better: Side


class Compared(roles.Reply):
    criteria: list[ComparedCriterion]
    reason: str
    overall: Side


class Rated(roles.Reply):
    reason: str
    rating: int = Field(ge=0, le=10)


def endpoint(name: str, settings: Role, answers: Answers) -> Endpoint:
    """The judge's own endpoint, with a budget of its own; KitError without an address."""
    return Endpoint(f"judge {name}", settings, settings.endpoint, answers)


@dataclass
class Judge:
    """Pointwise verdicts, ``unknown`` as a third value, and pairwise with the answers exchanged.

    A verdict has score and P(met) 1 or 0; unknown has neither, nor ``met``: no pass on safety, no
    hit elsewhere. Two answers are compared on all criteria and as a whole in one request, and once
    more with the other one in front; a request without an answer is no preference.
    """

    name: str
    endpoint: Endpoint

    def pointwise(self, groups: Sequence[Group]) -> pd.DataFrame:
        """``scorers.POINTS``. Raises BudgetSpent when its cap is reached; what was said is kept."""
        tasks = [roles.Task(g.instruction, g.criteria, a) for g in groups for a in g.candidates]
        value, rows = {"met": 1.0, "not_met": 0.0, "unknown": np.nan}, []
        for task, said in zip(tasks, roles.judged(self.endpoint, tasks), strict=True):
            for verdict in said:
                at, number = (
                    (task.instruction.id, task.candidate.id, verdict.criterion_id),
                    value[verdict.verdict],
                )
                rows.append((*at, number, number, pd.NA if np.isnan(number) else number == 1))
        return pd.DataFrame(rows, columns=scorers.POINTS).astype({"met": "boolean"})

    def pairwise(self, groups: Sequence[Group]) -> pd.DataFrame:
        """``scorers.PAIRS``, a row a criterion and one (criterion_id "") for the whole."""
        asked = [
            (g, *pair)
            for g in groups
            for a, b in scorers.answer_pairs(g)
            for pair in ((a, b), (b, a))
        ]

        def complete(index: int, found: Compared) -> list[float]:
            said = roles.exactly(found.criteria, asked[index][0].criteria)
            names = roles.short_names(asked[index][0].criteria)
            return [FIRST[found.overall], *(FIRST[said[n].better] for n in names)]

        requests = [
            roles.request(
                "judge_pair",
                {
                    "instruction": roles.conversation(g.instruction.messages),
                    "criteria": [
                        {"id": n, "dimension": c.dimension, "text": c.text}
                        for n, c in roles.short_names(g.criteria).items()
                    ],
                    "answer_a": a.text,
                    "answer_b": b.text,
                },
                Compared,
            )
            for g, a, b in asked
        ]
        answers = self.endpoint.ask(requests, complete)
        keys, said = [], ([], [])
        for n in range(0, len(asked), 2):
            group, a, b = asked[n]
            keys += [
                (group.instruction.id, c, a.id, b.id) for c in ("", *(c.id for c in group.criteria))
            ]
            for order in (0, 1):
                none = [np.nan] * (1 + len(group.criteria))
                said[order].extend(answers[n + order].value or none)
        return scorers.both_orders(keys, *said)


@dataclass
class RarImplicit:
    """Overall: RaR's implicit score (arXiv 2507.17746), one rating with the whole rubric in
    context.

    The judge weighs the criteria itself, told each one's importance (``scoring.rar_importance``);
    the rating, 0 to 10, becomes a score in [0, 1]; NaN where there is no answer.
    """

    endpoint: Endpoint
    name: str = "rar_implicit"

    def overall(self, groups: Sequence[Group]) -> pd.DataFrame:
        """``scorers.SCORES``. Raises BudgetSpent when its cap is reached; what was said is kept."""
        answers = [(g, a) for g in groups for a in g.candidates]
        found = self.endpoint.ask([self._request(g, a) for g, a in answers])
        return scorers.scores(
            (g.instruction.id, a.id, _rating(said))
            for (g, a), said in zip(answers, found, strict=True)
        )

    def _request(self, group: Group, answer):
        rubric = Rubric.model_construct(
            instruction_id=group.instruction.id,
            criteria=list(group.criteria),
            status="gold",
            round=0,
        )
        importance = scoring.rar_importance(rubric)
        return roles.request(
            "rar_implicit",
            {
                "instruction": roles.conversation(group.instruction.messages),
                "answer": answer.text,
                "criteria": [
                    {"importance": importance[c.id], "text": c.text} for c in group.criteria
                ],
            },
            Rated,
        )


def _rating(said: Answer) -> float:
    return said.value.rating / 10 if said.value else float("nan")
