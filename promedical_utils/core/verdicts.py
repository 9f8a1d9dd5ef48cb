"""What an interval says of a claim: six verdicts, of checks and of claims; ``docs/glossary.md``
says what each of them means."""

from collections.abc import Iterable

import numpy as np

from promedical_utils.core.statistics import POWER

HOLDS, DIRECTION = "holds, size as reported", "same direction, other size"
SAME = "same direction"  # the second verdict, without a size
CONTRADICTS, NOT_SEEN, CANNOT = "contradicts", "not seen", "cannot be told"
UNTESTED = "not testable"
VERDICTS = (CONTRADICTS, NOT_SEEN, CANNOT, UNTESTED, DIRECTION, SAME, HOLDS)  # the worst first
SEEN = (DIRECTION, SAME, HOLDS)


def of_check(
    low: float, high: float, bound: float, interest: float, power: float, reported: float | None
) -> str:
    """Of a check that a difference lies above a bound, from its 95 % interval; ``power``: at
    ``interest``, the smallest effect of interest, which is counted from the bound; ``reported``:
    the size that the paper has, if one can be compared."""
    if low > bound:
        if reported is None:
            return SAME
        return HOLDS if low <= reported <= high else DIRECTION
    if high < bound:
        return CONTRADICTS
    return NOT_SEEN if power >= POWER and high < bound + interest else CANNOT


def of_equivalence(ends: tuple[float, float], inner: tuple[float, float], margin: float) -> str:
    """Of a check that a difference lies within a margin on either side, by two one-sided tests
    (Schuirmann, J Pharmacokinet Biopharm 15, 1987); ``ends``: of its 95 % interval, ``inner``: of
    the 90 % one."""
    if max(map(abs, inner)) < margin:
        return HOLDS
    return CONTRADICTS if ends[0] > margin or ends[1] < -margin else CANNOT


def of_claim(checks: Iterable[str]) -> str:
    """The worst verdict of a claim's checks: nothing that contradicts is hidden by what could not
    be told or made, and a claim holds only where all its checks do."""
    return min(checks, key=VERDICTS.index, default=UNTESTED)


def said(verdict: str, smallest: float | None = None, unit: str = "") -> str:
    """For people: of what cannot be told with the smallest effect that would have been seen."""
    if verdict != CANNOT or smallest is None or np.isnan(smallest):
        return verdict
    return f"{verdict} (smallest effect {smallest:.1f}{unit})"
