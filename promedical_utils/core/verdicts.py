"""What an interval says of a claim: six verdicts, of checks and of claims, with the rules for both.

A check claims that a difference lies above a bound. ``HOLDS``: its whole interval does, and the
reported size lies within. ``DIRECTION``: it does, and the reported size lies elsewhere; ``SAME``:
it does, and no size was reported that could be compared. ``CONTRADICTS``: the whole interval lies
below. Where the interval has the bound within, ``NOT_SEEN``: the smallest effect of interest (the
reported one, else a stated one) lies outside, and would have been seen with a power of 80 % or
more; ``CANNOT``: it lies within or would not have been seen, and the smallest effect that would is
named. ``UNTESTED``: the check could not be made.

An equivalence claims that a difference lies within a margin on either side: it holds where the
90 % interval does (two one-sided tests: Schuirmann, J Pharmacokinet Biopharm 15, 1987), is
contradicted where the whole 95 % interval lies outside, and cannot be told otherwise.
"""

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
    """Of the 95 % interval of a difference; ``power``: at ``interest``, the smallest effect of
    interest, which is counted from the bound."""
    if low > bound:
        if reported is None:
            return SAME
        return HOLDS if low <= reported <= high else DIRECTION
    if high < bound:
        return CONTRADICTS
    return NOT_SEEN if power >= POWER and high < bound + interest else CANNOT


def of_equivalence(ends: tuple[float, float], inner: tuple[float, float], margin: float) -> str:
    """``ends``: of the 95 % interval of a difference, ``inner``: of the 90 % one."""
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
