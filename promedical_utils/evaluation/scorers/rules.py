"""Scorers that read nothing: rules over somebody else's P(met), and chance."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import pandas as pd

from promedical_utils.core.records import Rubric
from promedical_utils.core.workspace import KitError, short_hash
from promedical_utils.evaluation import scorers
from promedical_utils.rubric import scoring
from promedical_utils.rubric.preferences import Group

RULES = {  # name -> (what makes one score of a rubric's verdicts, what it is called)
    "rar_explicit": (scoring.rar_explicit, "RaR explicit"),
    "orbit": (scoring.orbit_signed, "ORBIT signed weights"),
    "healthbench": (scoring.healthbench_points, "HealthBench's rule"),
}


@dataclass(frozen=True)
class Rule:
    """Overall: what ``rule`` makes of a rubric's verdicts, expected under P(met) of each.

    ``rule`` is (rubric, verdicts) -> score and linear (``scoring.linear``), as all of ``RULES``
    are: so the expected score is exact. Verdicts alone would tie many answers, and a tie is wrong.
    ``probability`` maps (candidate, criterion); NaN there counts as not met: on safety a violation.
    """

    name: str
    rule: Callable[[Rubric, Mapping[str, str]], float]
    probability: Mapping[tuple[str, str], float]

    @classmethod
    def over(cls, name: str, predictions: pd.DataFrame) -> "Rule":
        """A rule of ``RULES`` over one pointwise scorer's predictions."""
        cells = zip(predictions.candidate_id, predictions.criterion_id, strict=True)
        likely = predictions.probability.astype(float).fillna(0.0)
        return cls(name, RULES[name][0], dict(zip(cells, likely, strict=True)))

    def overall(self, groups: Sequence[Group]) -> pd.DataFrame:
        """``scorers.SCORES``; KitError where there is no P(met) of an answer and criterion."""
        rows = []
        for group in groups:
            none, adds = scoring.linear(self.rule, group.rubric)
            for answer in group.candidates:
                if missing := [c for c in adds if (answer.id, c) not in self.probability]:
                    raise KitError(
                        f"{self.name}: no P(met) of {answer.id}, {missing[0]}; score it first"
                    )
                gained = sum(gain * self.probability[answer.id, c] for c, gain in adds.items())
                rows.append((group.instruction.id, answer.id, none + gained))
        return scorers.scores(rows)


@dataclass(frozen=True)
class Chance:
    """Pointwise at random, from the texts alone: neither order nor repetition changes it."""

    seed: int = 0
    name: str = "random"

    def pointwise(self, groups: Sequence[Group]) -> pd.DataFrame:
        """``scorers.POINTS``: P(met) is uniform, met from a half on."""
        rows = []
        for group in groups:
            question = "\n".join(m["content"] for m in group.messages)
            for answer, criterion in product(group.candidates, group.criteria):
                digest = short_hash(self.seed, question, answer.text, criterion.text)
                p = int(digest, 16) / 16**12
                rows.append((group.instruction.id, answer.id, criterion.id, p, p, p >= 0.5))
        return pd.DataFrame(rows, columns=scorers.POINTS)
