"""Rubric scores S1, S2, S3, the lexicographic preference, and the rewards made of them.

Section 2 of the method: S1 is the weighted share of proficiency criteria met, S2 the number of
excellence criteria met, S3 the number of safety criteria *not* met. Preference is lexicographic:
fewer S3, then higher S1, then higher S2. Beside the paper's reward stand the strict one, the place
in a group by the preference itself, and what RaR and ORBIT would make of the same verdicts.
"""

import math
import warnings
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from promedical_utils.core.records import Rubric
from promedical_utils.core.workspace import KitError

TIE = 1e-9  # S1 is a sum of floats; closer than this is equal
ROUNDING = 1e-6  # what a rubric's weights may be off by: see ``records.Rubric``
RAR = {"essential": 1.0, "important": 0.7, "optional": 0.3, "pitfall": 0.9}
ORBIT_PENALTY = -10  # points of a violation; kit's decision, see ``orbit_signed``
HEALTHBENCH = 10  # the most points that a criterion can give or take there


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
        return _key(self.s1, self.s2, self.s3)


def whole(value: float) -> int:
    """``value`` in whole ties of 1e-9, so that sums of floats that should be equal are.

    >>> 0.1 + 0.2 == 0.3, whole(0.1 + 0.2) == whole(0.3)
    (False, True)
    """
    return round(value / TIE)


def _key(s1: float, s2: float, s3: float) -> tuple[int, int, int]:
    """The order: fewer S3, then higher S1, then higher S2; counts may be expected ones."""
    return (-whole(s3), whole(s1), whole(s2))


def is_met(verdict: str, dimension: str) -> bool | None:
    """Whether a verdict says that its criterion is met; None where that is not known.

    The kit's one rule of what is not known: on safety whatever is not plainly ``met`` is a
    violation (the veto fails closed), elsewhere it is no verdict at all.

    >>> is_met("unknown", "safety"), is_met("unknown", "excellence")
    (False, None)
    """
    if verdict == "met":
        return True
    return False if verdict == "not_met" or dimension == "safety" else None


def score(rubric: Rubric, verdicts: Mapping[str, str]) -> Scores:
    """Scores of one response from its verdicts, ``{criterion id: met | not_met | unknown}``.

    A safety criterion that is not plainly ``met`` (not met, unknown, missing, anything else) is a
    violation (``is_met``). Elsewhere only ``met`` earns anything.
    """
    met = _met(rubric, verdicts)
    s1, s2, s3 = _sums((c.dimension, c.weight, met[c.id]) for c in rubric.criteria)
    bonus = sum(c.dimension == "excellence" for c in rubric.criteria)
    return Scores(s1, int(s2), int(s3), bonus)


def _sums(rows: Iterable[tuple[str, float, float]]) -> tuple[float, float, float]:
    """S1, S2, S3 of (dimension, weight, met) rows; met 0 or 1, or P(met) for the expected ones."""
    proficiency, excellence, violations = [], [], []
    for dimension, weight, met in rows:
        if dimension == "proficiency":
            proficiency.append(weight * met)
        elif dimension == "excellence":
            excellence.append(met)
        else:
            violations.append(1 - met)
    return math.fsum(proficiency), math.fsum(excellence), math.fsum(violations)


def expected_key(rubric: Rubric, met: Mapping[str, bool], likely: Mapping[str, float]) -> tuple:
    """Sort key of an answer under a scorer: the order of its verdicts, then the expected order.

    ``met``: criterion id -> verdict, one that is missing is not met; ``likely``: criterion id ->
    P(met). Verdicts alone tie many answers, so S3, S1, S2 expected under P(met) come after them, in
    whole ties: the last digit of a sum of floats is no reason to prefer an answer.
    """
    verdicts = _sums((c.dimension, c.weight, met.get(c.id, False)) for c in rubric.criteria)
    expected = _sums((c.dimension, c.weight, likely[c.id]) for c in rubric.criteria)
    return (*_key(*verdicts), *_key(*expected))


def linear(
    rule: Callable[[Rubric, Mapping[str, str]], float], rubric: Rubric
) -> tuple[float, dict[str, float]]:
    """What a rule gives with nothing met, and what each criterion adds to it when it is met.

    For rules that are sums over criteria (RaR's, ORBIT's, HealthBench's): what a criterion adds,
    times its P(met), is then what it adds to the expected score.
    """
    none = rule(rubric, {})
    return none, {c.id: rule(rubric, {c.id: "met"}) - none for c in rubric.criteria}


def compare(a: Scores, b: Scores) -> int:
    """1 if ``a`` is preferred, -1 if ``b`` is, 0 for a tie; lexicographic, a total preorder."""
    return (a.key > b.key) - (a.key < b.key)


def ranks(values: Sequence) -> list[float]:
    """Place of each value in its group: (number below - number above) / (n - 1), in [-1, 1].

    ``values`` (n,) are anything that sorts, larger is better. Equal values have equal places, the
    places sum to 0, and one value alone has place 0.

    >>> ranks([5, 1, 1])
    [1.0, -0.5, -0.5]
    """
    order, others = sorted(values), max(1, len(values) - 1)
    above = [len(order) - bisect_right(order, value) for value in values]
    return [(bisect_left(order, v) - n) / others for v, n in zip(values, above, strict=True)]


def lexicographic_ranks(scores: Sequence[Scores]) -> list[float]:
    """Place of each answer in its group, by ``compare``: ``ranks`` of ``Scores.key``.

    A reward of the order alone (kit's decision). The preferred of two answers of a group always
    has more, so neither alpha, beta nor lambda can trade a violation for gains; places of different
    groups say nothing of each other.
    """
    return ranks([s.key for s in scores])


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
        raise KitError(
            f"lambda = {lam} is below 1 + beta = {1 + beta}: an unsafe answer could win; raise it"
        )
    if math.isclose(lam, 1 + beta):
        warnings.warn(
            f"lambda = 1 + beta = {lam}: a perfect answer with one violation gets "
            f"{1 + beta - lam:.1f}, "
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


def rar_explicit(rubric: Rubric, verdicts: Mapping[str, str]) -> float:
    """RaR's explicit reward, sum w_j c_j / sum w_j in [0, 1] (Gunjal et al., arXiv 2507.17746).

    RaR's weights are Essential 1.0, Important 0.7, Optional 0.3 and Pitfall 0.9, a pitfall phrased
    so that *met* is good, as the kit's safety criteria are. The kit's mapping: safety is Pitfall,
    excellence Optional, and proficiency Essential where its weight is average (1 / number of
    proficiency criteria) or more, else Important, since RaR's own two classes, scaled to sum to 1,
    come out so. Only ``met`` earns anything: an unknown pitfall fails closed. KitError as
    ``score``.
    """
    met = _met(rubric, verdicts)
    weights = {name: RAR[importance] for name, importance in rar_importance(rubric).items()}
    return math.fsum(w for name, w in weights.items() if met[name]) / math.fsum(weights.values())


def rar_importance(rubric: Rubric) -> dict[str, str]:
    """RaR's class of every criterion, one of ``RAR``, by the mapping in ``rar_explicit``."""
    number = sum(c.dimension == "proficiency" for c in rubric.criteria)
    names = {"safety": "pitfall", "excellence": "optional"}
    return {
        c.id: names.get(c.dimension)
        or ("essential" if c.weight >= 1 / number - ROUNDING else "important")
        for c in rubric.criteria
    }


def orbit_signed(rubric: Rubric, verdicts: Mapping[str, str]) -> float:
    """ORBIT's signed reward: points of what applies / all positive points, at most 1, even below 0.

    Wang et al., arXiv 2510.15859, after HealthBench: a criterion has integer points from -10 to 10,
    and a negative one describes a mistake. The kit's mapping: proficiency max(1, round(10 weight)),
    so that all of it is about 10 points; excellence 1, the least there is, as S2 is a bonus; and a
    safety criterion turned round into its violation at -10, the most that ORBIT can take for it. It
    applies unless plainly met: ORBIT counts a verdict that failed as no mistake, the kit fails
    closed. Even so the penalty is a term and no veto: an unsafe answer that meets all the rest is
    above a safe one that meets nothing, if there is any bonus. KitError as ``score``.
    """
    met = _met(rubric, verdicts)
    points = {
        c.id: max(1, round(10 * c.weight)) if c.dimension == "proficiency" else 1
        for c in rubric.criteria
        if c.dimension != "safety"
    }
    points |= {c.id: ORBIT_PENALTY for c in rubric.criteria if c.dimension == "safety"}
    return points_share(points.values(), [met[name] == (n > 0) for name, n in points.items()])


def healthbench_points(rubric: Rubric, verdicts: Mapping[str, str]) -> float:
    """HealthBench's score of an example: points of what applies / all positive points.

    Arora et al., arXiv 2505.08775: a criterion has -10 to 10 points of its own, an example may be
    below 0, and only a mean is clipped. The kit's mapping: the heaviest proficiency criterion has
    10 points, the others their share of it, at least 1; excellence 3, as RaR's optional has of an
    essential's 10; a safety criterion is turned round into its violation at -10, and so is a
    criterion of kind ``penalty``, which in HealthBench's own rubrics was a penalty. What takes
    points applies unless plainly met. The rule is ORBIT's, which took it from here; what differs is
    how much a violation weighs: there as much as all of proficiency, here as the heaviest
    criterion.
    NaN for a rubric without positive points. KitError as ``score``.
    """
    met = _met(rubric, verdicts)
    heaviest = max(c.weight for c in rubric.criteria) or 1
    points = {}
    for c in rubric.criteria:
        share = max(1, round(HEALTHBENCH * c.weight / heaviest))
        size = {"proficiency": share, "excellence": 3, "safety": HEALTHBENCH}[c.dimension]
        points[c.id] = -size if c.dimension == "safety" or c.kind == "penalty" else size
    return points_share(points.values(), [met[name] == (n > 0) for name, n in points.items()])


def points_share(points: Iterable[float], applies: Iterable[bool]) -> float:
    """Points of what applies over all positive points; NaN where no points are positive.

    >>> points_share([10, 5, -6], [True, False, True])
    0.26666666666666666
    """
    pairs = list(zip(points, applies, strict=True))
    possible = math.fsum(n for n, _ in pairs if n > 0)
    return math.fsum(n for n, yes in pairs if yes) / possible if possible > 0 else math.nan


def _met(rubric: Rubric, verdicts: Mapping[str, str]) -> dict[str, bool]:
    """Whether each criterion is plainly met; KitError for a verdict on a criterion it lacks."""
    strange = set(verdicts) - {c.id for c in rubric.criteria}
    if strange:
        raise KitError(
            f"verdicts on criteria that rubric {rubric.instruction_id} does not have: "
            f"{sorted(strange)}"
        )
    return {
        c.id: is_met(verdicts.get(c.id, "unknown"), c.dimension) is True for c in rubric.criteria
    }


def _check(alpha: float, beta: float) -> None:
    if not (0 <= alpha < 1 and beta > 0 and math.isfinite(beta)):
        raise KitError(
            f"alpha = {alpha}, beta = {beta}: the method needs 0 <= alpha < 1 and beta > 0"
        )
