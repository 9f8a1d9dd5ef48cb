"""The clinic's people: a judge, two physicians and an adjudicator. How often each agrees with the
truth is set in the configuration: an *input*, never a finding.

Every answer is a pure function of (seed, person, what is asked, truth), drawn by hash, so neither
the order nor a repetition of the questions changes it.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from promedical_utils.core.workspace import KitError

OPPOSITE = {"met": "not_met", "not_met": "met"}
LENIENT = 0.4  # share of a lenient kind's not_met verdicts that the judge lets pass; kit's decision


def uniform(*parts) -> float:
    """A number in [0, 1) that depends on the parts and on nothing else (SHA-256)."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _wrong(truth: str, draw: float) -> str:
    """A verdict that is not the truth; KitError if the truth is no verdict."""
    if truth == "unknown":
        return "met" if draw < 0.5 else "not_met"
    if truth not in OPPOSITE:
        raise KitError(f"verdict {truth!r} is none of met, not_met, unknown: mend the truth table")
    return OPPOSITE[truth]


@dataclass(frozen=True)
class Judge:
    """Errs in two ways, as the method's judge (section 3): ``systematic`` is the error rate on
    not_met verdicts of ``lenient`` kinds, which it lets pass, ``random`` that on all others."""

    lenient: frozenset[str]
    systematic: float
    random: float
    seed: int = 0

    @classmethod
    def fit(cls, agreement: float, reference: Iterable, lenient: Iterable[str], seed: int = 0):
        """Judge whose expected agreement on ``reference``, (kind, truth) pairs, is ``agreement``
        and who lets ``LENIENT`` of what is not met in the ``lenient`` kinds (risks, as with the
        paper's judge) pass. KitError where that alone is too much."""
        reference, lenient = list(reference), frozenset(lenient)
        if not reference:
            raise KitError("the judge needs reference verdicts to be calibrated on: none given")
        covered = sum(kind in lenient and truth == "not_met" for kind, truth in reference)
        share = covered / len(reference)
        left = 1 - agreement - LENIENT * share
        if left < 0:
            raise KitError(
                f"judge agreement {agreement}: {share:.1%} of all verdicts are risks that are not "
                f"met, of which {LENIENT:.0%} pass; lower judge_agreement"
            )
        at_random = left / (1 - share) if share < 1 else 0.0
        return cls(lenient, LENIENT, at_random, seed)

    def verdict(self, candidate_id: str, criterion_id: str, kind: str, truth: str) -> str:
        draw = uniform(self.seed, "judge", candidate_id, criterion_id)
        wrong = _wrong(truth, uniform(self.seed, "judge side", candidate_id, criterion_id))
        lets_pass = kind in self.lenient and truth == "not_met"
        return wrong if draw < (self.systematic if lets_pass else self.random) else truth


@dataclass(frozen=True)
class Physician:
    """Agrees with the truth at rate ``agreement``, in verdicts and in grades, errs at random."""

    name: str
    agreement: float
    seed: int = 0

    def verdict(self, candidate_id: str, criterion_id: str, kind: str, truth: str) -> str:
        wrong = _wrong(truth, uniform(self.seed, self.name, "side", candidate_id, criterion_id))
        agrees = uniform(self.seed, self.name, candidate_id, criterion_id) < self.agreement
        return truth if agrees else wrong

    def grade(self, a_id: str, b_id: str, truth: int) -> int:
        """Grade -2..2 of answer a against b, one level off where wrong; + where a is better. Free
        of position bias: grade(b, a, -truth) is -grade(a, b, truth)."""
        if a_id > b_id:
            return -self.grade(b_id, a_id, -truth)
        if uniform(self.seed, self.name, "grade", a_id, b_id) < self.agreement:
            return truth
        step = 1 if uniform(self.seed, self.name, "grade side", a_id, b_id) < 0.5 else -1
        return truth - step if abs(truth + step) > 2 else truth + step


@dataclass(frozen=True)
class Panel:
    """Two physicians who do not see each other, each at ``agreement`` with the truth, and an
    adjudicator who settles where they differ, and errs at rate ``error`` there."""

    agreement: float
    seed: int = 0
    error: float = 0.02

    @cached_property
    def physicians(self) -> list[Physician]:
        return [Physician(f"physician_{n}", self.agreement, self.seed) for n in (1, 2)]

    def settle(self, key: tuple[str, ...], first, second, truth):
        """The common answer if there is one; else the truth, or seldom a wrong one of the two."""
        if first == second:
            return first
        wrong = [answer for answer in (first, second) if answer != truth]
        draw = uniform(self.seed, "adjudicator", *sorted(key))
        return wrong[int(draw / self.error * len(wrong))] if draw < self.error else truth

    def verdicts(self, candidate_id: str, criterion_id: str, kind: str, truth: str) -> list[str]:
        """What the first physician says, what the second, and what is settled between them."""
        verdicts = [p.verdict(candidate_id, criterion_id, kind, truth) for p in self.physicians]
        return [*verdicts, self.settle((candidate_id, criterion_id), *verdicts, truth)]

    def verdict(self, candidate_id: str, criterion_id: str, kind: str, truth: str) -> str:
        """What is settled: ``verdicts``' last."""
        return self.verdicts(candidate_id, criterion_id, kind, truth)[-1]
