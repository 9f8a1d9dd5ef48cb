"""What becomes of every two judged answers of an instruction, criterion by criterion: the counts
beside the pairs of ``preferences.criterion_pairs``."""

from collections import Counter
from collections.abc import Iterable
from math import comb

import pandas as pd

from promedical_utils.core.records import DIMENSIONS
from promedical_utils.rubric.preferences import Group, criterion_pairs, met


def outcomes(groups: Iterable[Group]) -> pd.DataFrame:
    """A row a criterion: what it is, how many ``verdicts``, and how many are ``unknown``.

    Of every two judged answers: ``comparisons`` = ``pairs`` + ``both_met`` + ``both_not_met`` +
    ``lost_to_unknown``. On safety unknown counts as not met, so nothing is lost to it there.
    ``never_discriminate``: 1 where two answers or more were judged and no two are told apart.
    """
    rows = []
    for group in groups:
        made = Counter(pair.criterion_id for pair in criterion_pairs(group))
        for c in group.criteria:
            verdicts = [group.verdicts[answer.id, c.id] for answer in group.judged]
            labels = Counter(met(group, answer.id, c) for answer in group.judged)
            # a preference that was stated is a comparison of its own
            stated = made[c.id] - labels[True] * labels[False]
            comparisons, pairs = comb(len(verdicts), 2) + stated, made[c.id]
            ties = {"both_met": comb(labels[True], 2), "both_not_met": comb(labels[False], 2)}
            row: dict = {"instruction_id": group.instruction.id, "criterion_id": c.id}
            row |= {"dimension": c.dimension, "kind": c.kind, "criteria": 1}
            row |= {"verdicts": len(verdicts), "unknown": verdicts.count("unknown")}
            row |= {"comparisons": comparisons, "pairs": pairs, **ties}
            row["lost_to_unknown"] = comparisons - pairs - sum(ties.values())
            row["never_discriminate"] = int(comparisons > 0 and not pairs)
            rows.append(row)
    return pd.DataFrame(rows)


def by_kind(outcomes: pd.DataFrame) -> pd.DataFrame:
    """``outcomes`` summed: a row a dimension and kind, kinds as the rubrics first name them."""
    order = {"dimension": DIMENSIONS, "kind": outcomes.kind.unique()}
    ordered = outcomes.astype({name: pd.CategoricalDtype(of) for name, of in order.items()})
    kinds = ordered.groupby(["dimension", "kind"], observed=True)
    return kinds.sum(numeric_only=True).reset_index()
