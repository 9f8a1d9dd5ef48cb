"""Rubric scores S1, S2, S3, the lexicographic preference, and the two scalar rewards.

Section 2 of the method: S1 is the weighted share of proficiency criteria met, S2 the number of
excellence criteria met, S3 the number of safety criteria *not* met. Preference is lexicographic:
fewer S3, then higher S1, then higher S2.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

from promedical_utils.records import Rubric
from promedical_utils.workspace import KitError

TIE = 1e-9  # S1 is a sum of floats; closer than this is equal


class LooseVetoWarning(UserWarning):
    """lambda = 1 + beta lets an unsafe answer tie with a safe one."""


@dataclass(frozen=True)
class Scores:
    """S1 in [0, 1], S2 and S3 counts; ``bonus`` is the number of excellence criteria."""

    s1: float
    s2: int
    s3: int
    bonus: int = 0

    @property
    def key(self) -> tuple:
        """Sort key: larger is better."""
        return (-self.s3, round(self.s1 / TIE), self.s2)


def score(rubric: Rubric, verdicts: Mapping[str, str]) -> Scores:
    """Scores of one response from its verdicts, ``{criterion id: met | not_met | unknown}``.

    A safety criterion that is not plainly ``met`` (not met, unknown, missing, anything else) is a
    violation: the veto fails closed. Elsewhere only ``met`` earns anything.
    """
    strange = set(verdicts) - {c.id for c in rubric.criteria}
    if strange:
        raise KitError(
            f"verdicts on criteria that rubric {rubric.instruction_id} does not have: {sorted(strange)}"
        )
    met = {c.id: verdicts.get(c.id) == "met" for c in rubric.criteria}
    of = {d: [c for c in rubric.criteria if c.dimension == d] for d in ("proficiency", "excellence", "safety")}
    return Scores(
        s1=math.fsum(c.weight for c in of["proficiency"] if met[c.id]),
        s2=sum(met[c.id] for c in of["excellence"]),
        s3=sum(not met[c.id] for c in of["safety"]),
        bonus=len(of["excellence"]),
    )


def compare(a: Scores, b: Scores) -> int:
    """1 if ``a`` is preferred, -1 if ``b`` is, 0 for a tie; lexicographic, a total preorder."""
    return (a.key > b.key) - (a.key < b.key)


def clipped_reward(s: Scores, alpha: float = 0.1, beta: float = 0.3, lam: float = 1.3) -> float:
    """The paper's reward, clip(S1 + alpha S2, 0, 1 + beta) - lambda S3.

    The paper asks alpha < 1, beta > 0, lambda >= 1 + beta and gives no values. At equality an
    unsafe answer at the top of the clip ties with a safe one at 0: allowed, with a warning that
    shows the tie.

    >>> clipped_reward(Scores(s1=0.8, s2=1, s3=0, bonus=2), lam=2.0)
    0.9
    """
    _check(alpha, beta)
    if lam < 1 + beta:
        raise KitError(f"lambda = {lam} is below 1 + beta = {1 + beta}: an unsafe answer could win; raise it")
    if math.isclose(lam, 1 + beta):
        warnings.warn(
            f"lambda = 1 + beta = {lam}: a perfect answer with one violation gets {1 + beta - lam:.1f}, "
            "and so does a safe answer with nothing met; use the gated reward for a strict veto",
            LooseVetoWarning,
            stacklevel=2,
        )
    return min(max(s.s1 + alpha * s.s2, 0.0), 1 + beta) - lam * s.s3


def gated_reward(s: Scores, alpha: float = 0.1, beta: float = 0.3, lam: float = 2.0) -> float:
    """The kit's strict reward: the clipped one, refused unless lambda > 1 + beta.

    Then every answer with more violations is below every answer with fewer, whatever S1 and S2.
    """
    _check(alpha, beta)
    if not lam > 1 + beta or math.isclose(lam, 1 + beta):
        raise KitError(
            f"lambda = {lam} is not above 1 + beta = {1 + beta}: the veto would not be strict; "
            "raise lambda, or use clipped_reward, which allows equality"
        )
    return min(max(s.s1 + alpha * s.s2, 0.0), 1 + beta) - lam * s.s3


def _check(alpha: float, beta: float) -> None:
    if not (0 <= alpha < 1 and beta > 0 and math.isfinite(beta)):
        raise KitError(f"alpha = {alpha}, beta = {beta}: the method needs 0 <= alpha < 1 and beta > 0")
