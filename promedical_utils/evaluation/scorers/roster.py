"""Scorers of others: prompted judges behind endpoints, and which of all a profile names.

The reported judges' prompts are not known; these are the kit's (``prompts/*.txt``). Caps, retries
and stored answers are those of ``endpoints``: a second run asks nothing again.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from promedical_utils.core.profiles import Profile, Role
from promedical_utils.core.workspace import KitError
from promedical_utils.data import roles
from promedical_utils.data.endpoints import Answers, Endpoint
from promedical_utils.evaluation import scorers
from promedical_utils.rubric import scoring
from promedical_utils.rubric.preferences import Group

PUBLISHED = ("scalar_rm", "pair_rm", "verifier")  # keys of the profile; ``published.KINDS``
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


@dataclass
class Judge:
    """Pointwise verdicts, ``unknown`` as a third value, and pairwise with the answers exchanged: on
    all criteria and as a whole in one request, and once more with the other answer in front. A
    verdict has score and P(met) 1 or 0, unknown neither: no pass on safety, no hit elsewhere. A
    request without an answer is no preference."""

    name: str
    endpoint: Endpoint

    def pointwise(self, groups: Sequence[Group]) -> pd.DataFrame:
        tasks = [roles.Task(g.instruction, g.criteria, a) for g in groups for a in g.candidates]
        said = [v.verdict for of_task in roles.judged(self.endpoint, tasks) for v in of_task]
        score = pd.Series(said).map({"met": 1.0, "not_met": 0.0})  # unknown: NaN
        met = score.eq(1).astype("boolean").mask(score.isna())
        return scorers.points(groups, score, score, met)

    def pairwise(self, groups: Sequence[Group]) -> pd.DataFrame:
        """A row a criterion and one (criterion_id "") for the whole."""
        pairs = [(g, a, b) for g in groups for a, b in combinations(g.candidates, 2)]
        shown = [order for g, a, b in pairs for order in ((g, a, b), (g, b, a))]
        requests = []
        for group, a, b in shown:
            named = roles.short_names(group.criteria).items()
            criteria = [{"id": n, "dimension": c.dimension, "text": c.text} for n, c in named]
            content = {"instruction": roles.conversation(group.instruction.messages)}
            content |= {"criteria": criteria, "answer_a": a.text, "answer_b": b.text}
            requests.append(roles.request("judge_pair", content, Compared))

        def complete(index: int, reply: Compared) -> list[float]:
            criteria = shown[index][0].criteria
            better = roles.exactly(reply.criteria, criteria)
            sides = [reply.overall, *(better[name].better for name in roles.short_names(criteria))]
            return [FIRST[side] for side in sides]

        answers = self.endpoint.ask(requests, complete)
        keys, first, second = [], [], []
        for (group, a, b), in_order, turned in zip(pairs, answers[::2], answers[1::2], strict=True):
            names = ["", *(c.id for c in group.criteria)]
            keys += [(group.instruction.id, name, a.id, b.id) for name in names]
            first += in_order.value or [np.nan] * len(names)
            second += turned.value or [np.nan] * len(names)
        return scorers.both_orders(keys, first, second)


@dataclass
class RarImplicit:
    """Overall: RaR's implicit score (arXiv 2507.17746), one rating, 0 to 10, of the whole answer by
    a judge that is told each criterion's importance; in [0, 1], NaN where there is no answer."""

    name: str
    endpoint: Endpoint

    def overall(self, groups: Sequence[Group]) -> pd.DataFrame:
        requests = []
        for group, answer in ((g, a) for g in groups for a in g.candidates):
            importance = scoring.rar_importance(group.rubric)
            criteria = [{"importance": importance[c.id], "text": c.text} for c in group.criteria]
            content = {"instruction": roles.conversation(group.instruction.messages)}
            content |= {"answer": answer.text, "criteria": criteria}
            requests.append(roles.request("rar_implicit", content, Rated))
        replies = self.endpoint.ask(requests)
        return scorers.scores(groups, [r.value.rating / 10 if r.value else np.nan for r in replies])


def others(profile: Profile, run: Path) -> dict[str, Callable]:
    """Name -> what loads that scorer, in the order of the tables; loading raises KitError. Judges
    ask their own endpoints alone; what they answered lies in the run's answers.sqlite."""
    loaders = {n: partial(_published, profile, n) for n in PUBLISHED if getattr(profile, n)}
    judges = {name: (Judge, role) for name, role in profile.judges.items()}
    if profile.rar_judge:
        judges["rar_implicit"] = RarImplicit, profile.rar_judge
    return loaders | {name: partial(_judge, run, name, *judge) for name, judge in judges.items()}


def predict(loaders: dict[str, Callable], groups: Sequence[Group]) -> tuple:
    """(predictions, preferences, left out): frames of those that ran, {name: why} of those that
    cannot be loaded, cannot read a text whole, have spent their budget, or answered nothing. Of
    these nothing is kept; one model at a time is in memory."""
    predictions, preferences, left_out = [], [], {}
    for name, load in loaders.items():
        try:
            scored, preferred = scorers.predict(load(), groups)
        except KitError as error:
            left_out[name] = str(error)
            continue
        gave = scored is not None and scored.score.notna().any()
        if not gave and (preferred is None or preferred.probability.isna().all()):
            left_out[name] = f"{name} gave no answer to any request"
            continue
        predictions += [scored] if scored is not None else []
        preferences += [preferred] if preferred is not None else []
    return predictions, preferences, left_out


def _published(profile: Profile, name: str):
    import torch

    from promedical_utils.evaluation.scorers import published  # loads torch
    from promedical_utils.reward_model.hub import held_dtype  # loads torch

    source = getattr(profile, name)
    if not Path(source).is_dir() and not torch.cuda.is_available():
        raise KitError(f"{source} needs a GPU; or name a folder with a small version of it")
    settings = {"nf4": profile.quantization == "nf4", "dtype": held_dtype(profile.precision)}
    return published.KINDS[name].load(source, **settings)


def _judge(run: Path, name: str, kind: Callable, role: Role):
    if not role.endpoint:
        raise KitError(f"judge {name} has no endpoint: set it where the profile names {role.model}")
    if role.key and not os.environ.get(role.key):
        raise KitError(f"judge {name}: the environment variable {role.key} is not set")
    own = Endpoint(f"judge {name}", role, role.endpoint, Answers(run / "answers.sqlite"))
    return kind(name, own)
