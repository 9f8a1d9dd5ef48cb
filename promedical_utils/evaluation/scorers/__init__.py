"""Scorers: everything that can stand in a row of the bench, behind one small interface.

A scorer has a ``name`` and what it can do as methods; what it cannot do is absent, never guessed:

    pointwise(groups)  P(met | x, y, c) and the verdict, a row a (candidate, criterion): ``POINTS``
    overall(groups)    one score an answer, larger is better: ``SCORES``; not beside pointwise
    pairwise(groups)   which of two answers is better, by their whole rubric (criterion_id ""), and
                       by each criterion if it can, a row a pair of answers: ``PAIRS``

``groups`` are ``preferences.Group``; the verdicts in them are never read. The kit's own models are
``model.RewardModel``, those that have learned next to nothing are in ``controls``, those of others
in ``published`` and ``roster``.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from promedical_utils.core.records import Candidate, Criterion
from promedical_utils.rubric import scoring
from promedical_utils.rubric.preferences import Group

SCORES = ["instruction_id", "candidate_id", "criterion_id", "score"]
POINTS = [*SCORES, "probability", "met"]
PAIRS = ["instruction_id", "criterion_id", "a_id", "b_id", "probability", "consistent"]
PREDICTED, PREFERRED = ["scorer", *POINTS], ["scorer", *PAIRS]
TIE = 1e-9  # a preference is a mean of two floats; closer to a half than this is none
HIERARCHIES = ("hierarchy_half", "hierarchy_soft")


def predict(scorer, groups: Sequence[Group]) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    """(``PREDICTED``, ``PREFERRED``) of all that a scorer can do; None for what it cannot."""
    predicted = preferred = None
    if score := getattr(scorer, "pointwise", None) or getattr(scorer, "overall", None):
        predicted = predictions(scorer.name, score(groups))
    if hasattr(scorer, "pairwise"):
        preferred = scorer.pairwise(groups).assign(scorer=scorer.name)[PREFERRED]
    return predicted, preferred


def predictions(scorer: str, scored: pd.DataFrame, criteria=None, calibration=None) -> pd.DataFrame:
    """``PREDICTED`` of ``POINTS`` or of ``SCORES``, to which a reward model's ``calibration`` adds
    P(met) and verdict, by the dimensions of ``criteria``; without it there is neither."""
    if calibration is not None:
        key = ["instruction_id", "criterion_id"]
        dimensions = scored[key].merge(criteria, on=key, how="left", validate="m:1").dimension
        scored = scored.assign(probability=calibration.probability(scored.score, dimensions))
        scored = scored.assign(met=calibration.met(scored.score, dimensions))
    frame = scored.reindex(columns=POINTS).assign(scorer=scorer)
    return frame[PREDICTED].astype({"met": "boolean"})


def by_answer(frame: pd.DataFrame, column: str) -> dict[str, dict]:
    """{candidate id: {criterion id: value of ``column``}}."""
    nested: dict[str, dict] = {}
    for answer, criterion, value in zip(frame.candidate_id, frame.criterion_id, frame[column]):
        nested.setdefault(answer, {})[criterion] = value
    return nested


def cells(groups: Iterable[Group]) -> list[tuple[Group, Candidate, Criterion]]:
    return [(g, a, c) for g in groups for a in g.candidates for c in g.criteria]


def points(groups: Sequence[Group], score, probability, met) -> pd.DataFrame:
    """``POINTS`` of what is said of each of the ``cells``."""
    ids = [(g.instruction.id, a.id, c.id) for g, a, c in cells(groups)]
    frame = pd.DataFrame(ids, columns=SCORES[:3])
    return frame.assign(score=score, probability=probability, met=met)


def scores(groups: Sequence, values) -> pd.DataFrame:
    """``SCORES`` of one value an answer, in the order of groups and candidates."""
    ids = [(g.instruction.id, a.id, "") for g in groups for a in g.candidates]
    return pd.DataFrame(ids, columns=SCORES[:3]).assign(score=np.asarray(values, float))


def both_orders(keys: Sequence[tuple], first: Sequence, second: Sequence) -> pd.DataFrame:
    """``PAIRS`` of ``keys``, (instruction, criterion or "", a, b) ids. ``first``: P(a better) where
    a stood first; ``second``: P(b better) where b did; NaN is no answer. ``probability`` of a is
    the mean of both, so that a habit of position cancels. ``consistent``: both named the same
    answer, or none."""
    in_order, turned = np.asarray(first, float), 1 - np.asarray(second, float)
    frame = pd.DataFrame(list(keys), columns=PAIRS[:4])
    frame["probability"] = (in_order + turned) / 2
    sides = [np.where(np.abs(p - 0.5) < TIE, 0, np.sign(p - 0.5)) for p in (in_order, turned)]
    same = pd.Series(sides[0] == sides[1], dtype="boolean")
    return frame.assign(consistent=same.mask(frame.probability.isna()))


def scored_by_rule(rule: str, predicted: pd.DataFrame, groups: Sequence[Group]) -> pd.DataFrame:
    """``PREDICTED`` of one score of a rubric by P(met) of each criterion, of a pointwise scorer's
    ``predicted``; a NaN there counts as not met, on safety a violation.

    A rule of ``scoring.RULES``: its expectation, which is exact, for rules are linear; verdicts
    alone would tie many answers. One of ``HIERARCHIES``: the place among an instruction's answers
    by the lexicographic order, where a criterion is met from P(met) = 1/2 on (half), or all three
    scores are expected ones (soft). With the calibrated threshold it is ``bench.tally``'s own.
    """
    likely = predicted.assign(likely=predicted.probability.astype(float).fillna(0.0))
    likely, values = by_answer(likely, "likely"), []
    for group in groups:
        ids = [answer.id for answer in group.candidates]
        if rule in HIERARCHIES:
            start = 0 if rule == "hierarchy_half" else 3  # the key's first three are of verdicts
            met = [{c: p >= 0.5 for c, p in likely[i].items()} for i in ids]
            keys = [scoring.expected_key(group.rubric, m, likely[i]) for i, m in zip(ids, met)]
            values += scoring.ranks([key[start:] for key in keys])
        else:
            none, adds = scoring.linear(scoring.RULES[rule], group.rubric)
            values += [none + sum(n * likely[i][c] for c, n in adds.items()) for i in ids]
    return predictions(rule, scores(groups, values))
