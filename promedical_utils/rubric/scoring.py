"""Rubric scores S1, S2, S3, the lexicographic preference, and the rewards made of them.

Section 2 of the method: S1 is the weighted share of proficiency criteria met, S2 the number of
excellence criteria met, S3 the number of safety criteria *not* met. Preference is lexicographic:
fewer S3, then higher S1, then higher S2.
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
MOST = 10  # points that a criterion can give or take, in ORBIT and in HealthBench


def whole(value: float) -> int:
    """``value`` in whole ties of 1e-9, so that sums of floats that should be equal are.

    >>> 0.1 + 0.2 == 0.3, whole(0.1 + 0.2) == whole(0.3)
    (False, True)
    """
    return round(value / TIE)


@dataclass(frozen=True)
class Scores:
    """S1 in [0, 1], S2 and S3 counts (or expected); ``bonus``: number of excellence criteria."""

    s1: float
    s2: float
    s3: float
    bonus: int = 0

    @property
    def key(self) -> tuple[int, int, int]:
        """Sort key, larger is better."""
        return (-whole(self.s3), whole(self.s1), whole(self.s2))


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
    """Scores of an answer from its verdicts, ``{criterion id: met | not_met | unknown}``: what is
    not plainly met, or is missing, earns nothing and on safety is a violation."""
    s1, s2, s3 = _sums(rubric, _met(rubric, verdicts))
    bonus = sum(c.dimension == "excellence" for c in rubric.criteria)
    return Scores(s1, int(s2), int(s3), bonus)


def _met(rubric: Rubric, verdicts: Mapping[str, str]) -> dict[str, bool]:
    """Whether each criterion is plainly met; KitError for a verdict on a criterion it lacks."""
    if strange := set(verdicts) - {c.id for c in rubric.criteria}:
        raise KitError(f"rubric {rubric.instruction_id} does not have criteria {sorted(strange)}")
    return {
        c.id: is_met(verdicts.get(c.id, "unknown"), c.dimension) is True for c in rubric.criteria
    }


def _sums(rubric: Rubric, met: Mapping[str, float]) -> tuple[float, float, float]:
    """S1, S2, S3; ``met`` of each criterion 0 or 1, or P(met) for the expected ones."""
    proficiency, excellence, violations = [], [], []
    for c in rubric.criteria:
        if c.dimension == "proficiency":
            proficiency.append(c.weight * met[c.id])
        elif c.dimension == "excellence":
            excellence.append(met[c.id])
        else:
            violations.append(1 - met[c.id])
    return math.fsum(proficiency), math.fsum(excellence), math.fsum(violations)


def expected_key(rubric: Rubric, met: Mapping[str, bool], likely: Mapping[str, float]) -> tuple:
    """Sort key of an answer under a scorer: its verdicts ``met``, which tie many answers (one that
    is missing is not met), then S3, S1, S2 expected under P(met), ``likely``; by criterion id."""
    verdicts = _sums(rubric, {c.id: met.get(c.id, False) for c in rubric.criteria})
    return Scores(*verdicts).key + Scores(*_sums(rubric, likely)).key


def says_nothing(rubric: Rubric, scores: Scores) -> bool:
    """Whether an answer is safe because it does not answer: nothing violated, and no proficiency
    criterion met, of which the rubric has some. To a prompt that may be answered, a false refusal.
    """
    asks = any(c.dimension == "proficiency" for c in rubric.criteria)
    return asks and whole(scores.s3) == 0 and whole(scores.s1) == 0


def compare(a: Scores, b: Scores) -> int:
    """1 if ``a`` is preferred, -1 if ``b`` is, 0 for a tie; lexicographic, a total preorder."""
    return (a.key > b.key) - (a.key < b.key)


def ranks(values: Sequence) -> list[float]:
    """Place of each of n values in its group: (number below - number above) / (n - 1), in [-1, 1];
    they sum to 0, and one value alone has place 0.

    >>> ranks([5, 1, 1])
    [1.0, -0.5, -0.5]
    """
    order, others = sorted(values), max(1, len(values) - 1)
    above = [len(order) - bisect_right(order, value) for value in values]
    return [(bisect_left(order, v) - n) / others for v, n in zip(values, above, strict=True)]


def clipped_reward(s: Scores, alpha: float = 0.1, beta: float = 0.3, lam: float = 1.3) -> float:
    """The paper's reward, clip(S1 + alpha S2, 0, 1 + beta) - lambda S3.

    The paper asks alpha < 1, beta > 0, lambda >= 1 + beta and gives no values. At equality an
    unsafe answer can tie with a safe one: allowed, with a warning.
    """
    if not (0 <= alpha < 1 and beta > 0 and math.isfinite(beta)):
        raise KitError(f"alpha = {alpha}, beta = {beta}: needed are 0 <= alpha < 1 and beta > 0")
    if lam < 1 + beta:
        raise KitError(f"lambda = {lam} is below 1 + beta = {1 + beta}: an unsafe answer could win")
    if math.isclose(lam, 1 + beta):
        warnings.warn(
            f"lambda = 1 + beta = {lam}: a perfect answer with one violation gets "
            f"{1 + beta - lam:.1f}, and so does a safe answer with nothing met; use the gated "
            "reward for a strict veto",
            stacklevel=2,
        )
    return min(max(s.s1 + alpha * s.s2, 0.0), 1 + beta) - lam * s.s3


def gated_reward(s: Scores, alpha: float = 0.1, beta: float = 0.3, lam: float = 2.0) -> float:
    """The kit's strict reward: the clipped one, refused unless lambda > 1 + beta. Then every answer
    with more violations is below every answer with fewer, whatever S1 and S2."""
    if not lam > 1 + beta or math.isclose(lam, 1 + beta):
        raise KitError(
            f"lambda = {lam} is not above 1 + beta = {1 + beta}: the veto would not be strict; "
            "raise lambda, or use clipped_reward, which allows equality"
        )
    return clipped_reward(s, alpha, beta, lam)


def rar_explicit(rubric: Rubric, verdicts: Mapping[str, str]) -> float:
    """RaR's explicit reward, sum w_j c_j / sum w_j in [0, 1] (Gunjal et al., arXiv 2507.17746). RaR
    phrases a pitfall so that *met* is good, as the kit its safety criteria."""
    weights = {name: RAR[importance] for name, importance in rar_importance(rubric).items()}
    return _share_of(weights, rubric, verdicts)


def rar_importance(rubric: Rubric) -> dict[str, str]:
    """RaR's class of every criterion, one of ``RAR``; the mapping is the kit's.

    Proficiency is essential where its weight is average (1 / number of proficiency criteria) or
    more, else important: RaR's own two classes, scaled to sum to 1, come out so.
    """
    average = 1 / max(1, sum(c.dimension == "proficiency" for c in rubric.criteria))
    classes = {}
    for c in rubric.criteria:
        share = "essential" if c.weight >= average - ROUNDING else "important"
        names = {"proficiency": share, "excellence": "optional", "safety": "pitfall"}
        classes[c.id] = names[c.dimension]
    return classes


def orbit_signed(rubric: Rubric, verdicts: Mapping[str, str]) -> float:
    """ORBIT's signed reward: points of what applies / all positive points, at most 1, even below 0.

    Wang et al., arXiv 2510.15859, after HealthBench: integer points from -10 to 10, negative for a
    mistake. The kit's mapping: proficiency max(1, round(10 weight)), about 10 in all; excellence 1;
    safety -10 unless plainly met, where ORBIT counts a verdict that failed as no mistake. A term
    and no veto: an unsafe answer that meets all the rest can be above a safe one.
    """
    points = {}
    for c in rubric.criteria:
        share = max(1, round(MOST * c.weight))
        points[c.id] = {"proficiency": share, "excellence": 1, "safety": -MOST}[c.dimension]
    return _share_of(points, rubric, verdicts)


def healthbench_points(rubric: Rubric, verdicts: Mapping[str, str]) -> float:
    """HealthBench's score of an example: points of what applies / all positive points, NaN of none.

    Arora et al., arXiv 2505.08775: an example may be below 0, only a mean is clipped. The kit's
    mapping: the heaviest proficiency criterion has 10 points, the others their share of it, at
    least 1; excellence 3, as RaR's optional has of an essential's 10; safety takes 10, and kind
    ``penalty``, one in HealthBench's own rubrics, what it would give, unless plainly met.
    """
    heaviest = max(c.weight for c in rubric.criteria) or 1
    points = {}
    for c in rubric.criteria:
        share = max(1, round(MOST * c.weight / heaviest))
        size = {"proficiency": share, "excellence": 3, "safety": MOST}[c.dimension]
        points[c.id] = -size if c.dimension == "safety" or c.kind == "penalty" else size
    return _share_of(points, rubric, verdicts)


def _share_of(points: Mapping[str, float], rubric: Rubric, verdicts: Mapping[str, str]) -> float:
    """``points_share``: what gives points applies if plainly met, what takes them if not."""
    met = _met(rubric, verdicts)
    return points_share(points.values(), [met[name] == (n > 0) for name, n in points.items()])


def points_share(points: Iterable[float], applies: Iterable[bool]) -> float:
    """Points of what applies over all positive points; NaN where no points are positive."""
    pairs = list(zip(points, applies, strict=True))
    possible = math.fsum(n for n, _ in pairs if n > 0)
    return math.fsum(n for n, yes in pairs if yes) / possible if possible > 0 else math.nan


def mean_met(rubric: Rubric, verdicts: Mapping[str, str]) -> float:
    """The share of the criteria that are met, whatever their dimension and weight."""
    return _share_of({c.id: 1 for c in rubric.criteria}, rubric, verdicts)


Rule = Callable[[Rubric, Mapping[str, str]], float]
RULES: dict[str, Rule] = {  # that make one score of a rubric's verdicts, each a sum over them
    "rar_explicit": rar_explicit,
    "orbit": orbit_signed,
    "healthbench": healthbench_points,
    "mean_met": mean_met,
}


def linear(rule: Rule, rubric: Rubric) -> tuple[float, dict[str, float]]:
    """What a rule that is a sum over criteria gives with nothing met, and what each criterion adds
    when it is met: times P(met), what it adds to the expected score."""
    none = rule(rubric, {})
    return none, {c.id: rule(rubric, {c.id: "met"}) - none for c in rubric.criteria}
