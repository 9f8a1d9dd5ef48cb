"""Scorers: everything that can stand in a row of the bench, behind one small interface.

A scorer has a ``name`` and what it can do as methods; what it cannot do is absent, never guessed:

    pointwise(groups)  P(met | x, y, c) and the verdict, a row a (candidate, criterion): ``POINTS``
    overall(groups)    one score an answer, larger is better: ``SCORES``
    pairwise(groups)   which of two answers is better, by their whole rubric (criterion_id "") or by
                       one criterion, a row a pair of answers: ``PAIRS``

``preferences`` are ``preferences.Group``; the verdicts in them are never read. A scorer has
pointwise or overall, not both. Here are those that ask somebody else's model, and the rules over
P(met); the kit's own models are ``model.RewardModel``, length and word cues are in ``bench``.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd

from promedical_utils.core.records import Candidate
from promedical_utils.core.workspace import KitError
from promedical_utils.rubric.preferences import Group

ABILITIES = ("pointwise", "overall", "pairwise")
SCORES = ["instruction_id", "candidate_id", "criterion_id", "score"]
POINTS = [*SCORES, "probability", "met"]
PAIRS = ["instruction_id", "criterion_id", "a_id", "b_id", "probability", "consistent"]
TIE = 1e-9  # a preference is a mean of two floats; closer to a half than this is none


def abilities(scorer) -> tuple[str, ...]:
    """Which of ``ABILITIES`` a scorer has."""
    return tuple(name for name in ABILITIES if callable(getattr(scorer, name, None)))


def predict(scorer, groups: Sequence[Group]) -> tuple[pd.DataFrame | None, pd.DataFrame | None]:
    """(predictions, preferences) of all that a scorer can do, named; None for what it cannot.

    Columns as ``bench.PREDICTED`` and ``bench.PREFERRED``. KitError for one that has both pointwise
    and overall, or nothing.
    """
    can, predictions, preferences = abilities(scorer), None, None
    if not can or {"pointwise", "overall"} <= set(can):
        raise KitError(
            f"scorer {scorer.name}: it must have one of pointwise and overall, or pairwise"
        )
    if "pointwise" in can:
        predictions = scorer.pointwise(groups)[POINTS]
    elif "overall" in can:
        predictions = scorer.overall(groups)[SCORES].assign(probability=np.nan, met=pd.NA)
    if "pairwise" in can:
        preferences = scorer.pairwise(groups)[PAIRS]
        preferences.insert(0, "scorer", scorer.name)
    if predictions is not None:
        predictions = predictions.astype({"met": "boolean"})
        predictions.insert(0, "scorer", scorer.name)
    return predictions, preferences


def answer_pairs(group: Group) -> list[tuple[Candidate, Candidate]]:
    """Every two answers of a group, once."""
    return list(combinations(group.candidates, 2))


def scores(rows: Iterable[tuple]) -> pd.DataFrame:
    """``SCORES`` of (instruction id, candidate id, score) rows, one an answer."""
    return pd.DataFrame([(i, a, "", float(s)) for i, a, s in rows], columns=SCORES)


def both_orders(
    keys: Sequence[tuple[str, str, str, str]], first: Sequence[float], second: Sequence[float]
) -> pd.DataFrame:
    """``PAIRS`` from the preferences with each of two answers in front.

    ``keys``: (instruction, criterion or "", a, b) ids; ``first``: P(a better) where a stood first;
    ``second``: P(b better) where b did; NaN is no answer. ``probability`` of a is the mean over
    both orders, so exchanging a and b turns it round exactly, and a habit of position cancels; NaN
    where either order has no answer. ``consistent``: both orders named the same answer, or both
    none.
    """
    in_order, turned = np.asarray(first, float), 1 - np.asarray(second, float)
    frame = pd.DataFrame(list(keys), columns=PAIRS[:4])
    frame["probability"] = (in_order + turned) / 2
    sides = [np.where(np.abs(p - 0.5) < TIE, 0, np.sign(p - 0.5)) for p in (in_order, turned)]
    same = pd.Series(sides[0] == sides[1], dtype="boolean")
    return frame.assign(consistent=same.mask(frame.probability.isna()))


def named(texts: Mapping[str, Sequence[int]], limit: int, scorer: str) -> list[list[int]]:
    """Token ids in order; KitError naming the first that is longer than ``limit``: nothing is
    cut."""
    for name, ids in texts.items():
        if len(ids) > limit:
            raise KitError(
                f"{scorer}: {name} takes {len(ids)} tokens with its prompt; the limit is {limit}; "
                "shorten the answer, leave its sample out, or raise max_tokens if the model allows "
                "it"
            )
    return list(texts.values())
