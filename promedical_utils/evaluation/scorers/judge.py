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
from promedical_utils.core.records import Candidate
from promedical_utils.data import roles
from promedical_utils.data.endpoints import Answers, Endpoint
from promedical_utils.evaluation import scorers
from promedical_utils.rubric import scoring
from promedical_utils.rubric.preferences import Group

Side = Literal["A", "B", "tie"]
POINTS = {  # verdict -> score, P(met), met
    "met": (1.0, 1.0, True),
    "not_met": (0.0, 0.0, False),
    "unknown": (np.nan, np.nan, pd.NA),
}
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
        rows = []
        for task, verdicts in zip(tasks, roles.judged(self.endpoint, tasks), strict=True):
            for verdict in verdicts:
                cell = (task.instruction.id, task.candidate.id, verdict.criterion_id)
                rows.append((*cell, *POINTS[verdict.verdict]))
        return pd.DataFrame(rows, columns=scorers.POINTS).astype({"met": "boolean"})

    def pairwise(self, groups: Sequence[Group]) -> pd.DataFrame:
        """``scorers.PAIRS``, a row a criterion and one (criterion_id "") for the whole."""
        pairs = [(g, a, b) for g in groups for a, b in scorers.answer_pairs(g)]
        shown = [order for g, a, b in pairs for order in ((g, a, b), (g, b, a))]

        def complete(index: int, reply: Compared) -> list[float]:
            criteria = shown[index][0].criteria
            better = roles.exactly(reply.criteria, criteria)
            sides = [reply.overall, *(better[name].better for name in roles.short_names(criteria))]
            return [FIRST[side] for side in sides]

        answers = self.endpoint.ask([_comparison(*order) for order in shown], complete)
        keys, first, second = [], [], []
        for (group, a, b), in_order, turned in zip(pairs, answers[::2], answers[1::2], strict=True):
            names = ["", *(c.id for c in group.criteria)]
            keys += [(group.instruction.id, name, a.id, b.id) for name in names]
            first += in_order.value or [np.nan] * len(names)
            second += turned.value or [np.nan] * len(names)
        return scorers.both_orders(keys, first, second)


def _comparison(group: Group, a: Candidate, b: Candidate):
    criteria = [
        {"id": name, "dimension": c.dimension, "text": c.text}
        for name, c in roles.short_names(group.criteria).items()
    ]
    content = {
        "instruction": roles.conversation(group.instruction.messages),
        "criteria": criteria,
        "answer_a": a.text,
        "answer_b": b.text,
    }
    return roles.request("judge_pair", content, Compared)


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
        replies = self.endpoint.ask([_rating(group, answer) for group, answer in answers])
        rows = []
        for (group, answer), reply in zip(answers, replies, strict=True):
            rating = reply.value.rating / 10 if reply.value else np.nan
            rows.append((group.instruction.id, answer.id, rating))
        return scorers.scores(rows)


def _rating(group: Group, answer: Candidate):
    importance = scoring.rar_importance(group.rubric)
    content = {
        "instruction": roles.conversation(group.instruction.messages),
        "answer": answer.text,
        "criteria": [{"importance": importance[c.id], "text": c.text} for c in group.criteria],
    }
    return roles.request("rar_implicit", content, Rated)
