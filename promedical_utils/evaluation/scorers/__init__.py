"""Scorers: everything that can stand in a row of the bench, behind one small interface.

A scorer has a ``name`` and what it can do as methods; what it cannot do is absent, never guessed:

    pointwise(groups)  P(met | x, y, c) and the verdict, a row a (candidate, criterion): ``POINTS``
    overall(groups)    one score an answer, larger is better: ``SCORES``; not beside pointwise
    pairwise(groups)   which of two answers is better, by their whole rubric (criterion_id ""), and
                       by each criterion if it can, a row a pair of answers: ``PAIRS``

``groups`` are ``preferences.Group``; the verdicts in them are never read. Here are those that read
no model, in ``published`` and ``roster`` those of others. The kit's own models are
``model.RewardModel``, those that have learned next to nothing are in ``controls``.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from promedical_utils.core.records import Rubric
from promedical_utils.rubric import scoring
from promedical_utils.rubric.preferences import Group

SCORES = ["instruction_id", "candidate_id", "criterion_id", "score"]
POINTS = [*SCORES, "probability", "met"]
PAIRS = ["instruction_id", "criterion_id", "a_id", "b_id", "probability", "consistent"]
PREDICTED, PREFERRED = ["scorer", *POINTS], ["scorer", *PAIRS]
TIE = 1e-9  # a preference is a mean of two floats; closer to a half than this is none


def predict(scorer, groups: Sequence[Group]) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    """(``PREDICTED``, ``PREFERRED``) of all that a scorer can do; None for what it cannot."""
    predictions = preferences = None
    if hasattr(scorer, "pointwise"):
        predictions = scorer.pointwise(groups)
    elif hasattr(scorer, "overall"):
        predictions = scorer.overall(groups).assign(probability=np.nan, met=pd.NA)
    if predictions is not None:
        predictions = predictions.assign(scorer=scorer.name)[PREDICTED].astype({"met": "boolean"})
    if hasattr(scorer, "pairwise"):
        preferences = scorer.pairwise(groups).assign(scorer=scorer.name)[PREFERRED]
    return predictions, preferences


def scores(rows: Iterable[tuple]) -> pd.DataFrame:
    """``SCORES`` of (instruction id, candidate id, score) rows, one an answer."""
    return pd.DataFrame([(i, a, "", float(s)) for i, a, s in rows], columns=SCORES)


def both_orders(
    keys: Sequence[tuple[str, str, str, str]], first: Sequence[float], second: Sequence[float]
) -> pd.DataFrame:
    """``PAIRS`` from the preferences with each of two answers in front.

    ``keys``: (instruction, criterion or "", a, b) ids; ``first``: P(a better) where a stood first;
    ``second``: P(b better) where b did; NaN is no answer. ``probability`` of a is the mean over
    both orders, so that a habit of position cancels; NaN where either order has no answer.
    ``consistent``: both orders named the same answer, or both none.
    """
    in_order, turned = np.asarray(first, float), 1 - np.asarray(second, float)
    frame = pd.DataFrame(list(keys), columns=PAIRS[:4])
    frame["probability"] = (in_order + turned) / 2
    sides = [np.where(np.abs(p - 0.5) < TIE, 0, np.sign(p - 0.5)) for p in (in_order, turned)]
    same = pd.Series(sides[0] == sides[1], dtype="boolean")
    return frame.assign(consistent=same.mask(frame.probability.isna()))


HIERARCHIES = ("hierarchy_half", "hierarchy_soft")


@dataclass(frozen=True)
class Rule:
    """Overall: one score of a rubric by P(met) of each criterion, by ``name``.

    A rule of ``scoring.RULES``: its expectation, which is exact, for rules are linear; verdicts
    alone would tie many answers. One of ``HIERARCHIES``: the place among an instruction's answers
    by the lexicographic order, but with no threshold that was set for recall: a criterion is met
    from P(met) = 1/2 on (half), or all three scores are expected ones (soft). The order by the
    calibrated threshold is ``bench.tally``'s own. ``predicted``: a pointwise scorer's predictions;
    a NaN there counts as not met, on safety a violation.
    """

    name: str
    predicted: pd.DataFrame

    def overall(self, groups: Sequence[Group]) -> pd.DataFrame:
        likely = self.predicted.set_index(["candidate_id", "criterion_id"]).probability
        likely, rows = likely.astype(float).fillna(0.0).to_dict(), []
        rule = _placed if self.name in HIERARCHIES else _expected
        for group in groups:
            ids = [answer.id for answer in group.candidates]
            of_answers = [{c.id: likely[answer, c.id] for c in group.criteria} for answer in ids]
            values = rule(self.name, group.rubric, of_answers)
            rows += [(group.instruction.id, *row) for row in zip(ids, values, strict=True)]
        return scores(rows)


def _expected(name: str, rubric: Rubric, of_answers: Sequence[dict[str, float]]) -> list[float]:
    none, adds = scoring.linear(scoring.RULES[name], rubric)
    return [none + sum(gain * likely[c] for c, gain in adds.items()) for likely in of_answers]


def _placed(name: str, rubric: Rubric, of_answers: Sequence[dict[str, float]]) -> list[float]:
    start = 0 if name == "hierarchy_half" else 3  # the key's first three are of the verdicts
    keys = [
        scoring.expected_key(rubric, {c: p >= 0.5 for c, p in likely.items()}, likely)[start:]
        for likely in of_answers
    ]
    return scoring.ranks(keys)
