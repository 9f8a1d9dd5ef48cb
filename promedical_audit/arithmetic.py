"""Can reported numbers be what they say they are? Arithmetic on a table, as in ``docs/audit.md``.

Values are texts, since "77.4" and "77.40" say different things, and fractions inside. Each stands
for its rounding interval, both ends included: half-up, half-even and half-down are all allowed.
``places``, wherever it is asked for, are decimals as printed, if zeros were lost.
"""

import argparse
import math
import operator
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_DOWN, ROUND_HALF_EVEN, ROUND_HALF_UP, Decimal
from fractions import Fraction
from pathlib import Path

import pandas as pd

from promedical_utils.core.row_files import csv_rows
from promedical_utils.core.workspace import KitError, shown

ADDS_UP, DOES_NOT, UNTOLD, NO_TEST = "adds up", "does not add up", "cannot be told", "no test"
# what becomes of a value midway between two
RULES = {"half-up": ROUND_HALF_UP, "half-even": ROUND_HALF_EVEN, "half-down": ROUND_HALF_DOWN}
NUMBER = re.compile(r"-?(?=[\d.])(\d{1,3}(,\d{3})+|\d*)(\.\d+)?")
NONE = 0.95  # a check that 95 of 100 random values would pass is none; kit's decision
WHOLE = {"n": 1, "decimals": 0, "items": 1}  # columns of whole numbers, each with its least


@dataclass(frozen=True)
class Check:
    """One check: verdict, one sentence, the share of random values that would have passed; the
    possible values closest to the reported one, as texts at its decimals; and what a percentage
    counts, as in "178" or "3565 to 3569"."""

    verdict: str
    finding: str
    chance: float | None = None
    near: tuple[str, ...] = ()
    count: str = ""

    @property
    def fails(self) -> bool:
        return self.verdict == DOES_NOT


def number(text) -> Fraction:
    """A reported value, exactly; KitError for words, and for a float, which has no decimals."""
    if isinstance(text, float):
        raise KitError(f"{text!r} is a float, which keeps no trailing zeros: give the text")
    written = str(text).strip()
    if not NUMBER.fullmatch(written):  # "77,4" neither: a comma sets thousands apart
        raise KitError(f"{text!r} is no number such as 77.40 or 5,505")
    return Fraction(written.replace(",", ""))


def decimals(text) -> int:
    """Digits after the point: 2 for "77.40", 1 for "77.4"."""
    return len(str(text).strip().partition(".")[2])


def rounded(exact: Fraction, places: int, rule: str = "half-up") -> str:
    """``exact`` at so many decimals, as a text; ``rule`` is one of RULES."""
    value = Decimal(exact.numerator) / exact.denominator
    return f"{value.quantize(Decimal(1).scaleb(-places), RULES[rule]) + 0:f}"  # + 0: no "-0.0"


def interval(text, places: int | None = None) -> tuple[Fraction, Fraction]:
    """Ends of what rounds to a value at its decimals."""
    value, half = number(text), Fraction(1, 2 * 10 ** decimals(_written(text, places)))
    return value - half, value + half


def _written(text, places: int | None) -> str:
    """A value at ``places`` decimals (default: its own); KitError if that would cut digits off."""
    own = decimals(text)
    places = own if places is None else places
    if places < own:
        raise KitError(f"{text} has {own} decimals, not {places}")
    return rounded(number(text), places)


def rules(text: str, *exact: Fraction) -> list[str]:
    """Those RULES by which one of the exact values is rounded to ``text``."""
    return [r for r in RULES if any(rounded(e, decimals(text), r) == text for e in exact)]


def _how(ways: list[str]) -> str:
    """How a midway value must have been rounded; empty where every rule gives the same."""
    if len(ways) == len(RULES):
        return ""
    return f", rounded {' or '.join(ways)}" if ways else ", only from unrounded values"


def _graded(passed: bool, chance: float) -> str:
    return DOES_NOT if not passed else NO_TEST if chance > NONE else ADDS_UP


def grim(value, n: int, places: int | None = None, items: int = 1, scale: int = 100) -> Check:
    """Is ``value`` a count out of ``n``, in percent, at the decimals written? (GRIM test)

    ``scale`` 100 is a percentage, 1 a mean of whole numbers. ``items``: parts of a unit, so
    ``items=2`` lets half points count, and k questions a person are ``items=k``. KitError for an
    ``n`` below 1 or a percentage outside 0 to 100.
    After N. Brown and J. Heathers, "The GRIM Test", doi 10.1177/1948550616673876.
    """
    if n != int(n) or n < 1 or items != int(items) or items < 1:
        raise KitError(f"n = {n}, items = {items}: whole numbers from 1 on")
    text = _written(value, places)
    exact, parts, places = number(text), int(n) * int(items), decimals(text)
    most = 100 if scale == 100 else math.inf
    if not 0 <= exact <= most:
        raise KitError(f"{value} is {'below 0' if scale != 100 else 'no percentage from 0 to 100'}")
    low, high = (min(end, most) * parts / scale for end in interval(text))
    at = exact * parts / scale
    counts = range(max(math.ceil(low), 0), math.floor(high) + 1)
    ends = sorted({math.floor(at), math.ceil(at)})
    near = tuple(rounded(Fraction(scale * k, parts), places) for k in ends)
    count = " to ".join(f"{k / items:g}" for k in dict.fromkeys([*counts[:1], *counts[-1:]]))
    what = f"out of {n}" + (f" in steps of 1/{items}" if items > 1 else "")
    if counts:
        how = _how(rules(text, *(Fraction(scale * k, parts) for k in counts)))
        sentence = f"{text} is {count} {what}{how}"
    else:
        nearest = " and ".join(dict.fromkeys(near))
        sentence = f"{text} is no count {what}: the nearest are {nearest}"
    # of each scale there are ``grid`` values and ``parts`` multiples; one midway passes for two
    grid = scale * 10**places
    common = math.gcd(2 * grid, parts)
    midway = common // 2 if (2 * grid // common) % 2 else 0
    chance = min(1.0, (parts + midway) / grid)
    share = f"{100 * chance:.0f} %" if chance >= 0.1 else f"{100 * chance:.2g} %"
    passing = "every value is" if chance == 1 else f"{share} of random values are"
    return Check(_graded(bool(counts), chance), f"{sentence} ({passing}).", chance, near, count)


def _at_least(hits: int, of: int, share: float) -> float:
    """The probability of so many hits or more."""
    from scipy.stats import binom  # slow to load

    return float(binom.sf(hits - 1, of, share))


def joint(values: Iterable, n: int, places: int | None = None, items: int = 1) -> dict:
    """How many of the percentages are counts out of ``n``: passed, of, chance of one, and ``p``,
    the probability that so many or more pass if the values are random."""
    checks = [grim(value, n, places, items) for value in values]
    passed, chance = sum(not c.fails for c in checks), max(c.chance for c in checks)
    p = _at_least(passed, len(checks), chance)
    return {"passed": passed, "of": len(checks), "chance": chance, "p": p}


def common_denominators(values: Iterable, limit: int, places: int | None = None) -> list[int]:
    """All n up to ``limit`` of which every percentage could be a count, ascending."""
    possible = range(1, limit + 1)
    for low, high in (interval(value, places) for value in values):
        possible = [n for n in possible if math.floor(high * n / 100) >= math.ceil(low * n / 100)]
    return list(possible)


def last_digits(values: Iterable, places: int, digits="05", among="0123456789") -> dict:
    """How many values end in one of ``digits``, of those that end in one of ``among``: hits, of,
    and ``p``, the probability of so many or more if last digits are spread evenly, as those of
    counts are. Where zeros at the end may be lost, ask for "5" among "123456789"."""
    last = [rounded(number(value), places)[-1] for value in values]
    last = [digit for digit in last if digit in among]
    hits = sum(digit in digits for digit in last)
    p = _at_least(hits, len(last), len(digits) / len(among))
    return {"hits": hits, "of": len(last), "p": p}


def _within(claimed: str, low: Fraction, high: Fraction, what: str) -> Check:
    """Does a claimed value's interval meet [low, high], what the other values admit? The chance is
    the share of the values 0 to 100 whose interval does."""
    places, (below, above) = decimals(claimed), interval(claimed)
    first = math.ceil(low * 10**places - Fraction(1, 2))  # in units of the last decimal
    last = math.floor(high * 10**places + Fraction(1, 2))
    ends = tuple(dict.fromkeys(rounded(Fraction(end, 10**places), places) for end in (first, last)))
    chance = min(1.0, (last - first + 1) / 10 ** (places + 2))
    passed = below <= high and low <= above
    finding = f"{claimed} {'can' if passed else 'cannot'} be {what} ({' to '.join(ends)} can)."
    return Check(_graded(passed, chance), finding, chance, ends)


def f1(precision, recall, claimed, places: int | None = None) -> Check:
    """Is ``claimed`` 2PR / (P + R) for some P and R that round to the ones written? In percent; F1
    rises in both, so the ends of the intervals give its range."""
    if any(not 0 <= number(value) <= 100 for value in (precision, recall, claimed)):
        raise KitError(f"P {precision}, R {recall}, F1 {claimed}: percentages from 0 to 100")
    ends = zip(interval(precision, places), interval(recall, places), strict=True)
    clipped = [[min(max(end, Fraction(0)), Fraction(100)) for end in pair] for pair in ends]
    low, high = (2 * p * r / (p + r) if p + r else Fraction(0) for p, r in clipped)
    return _within(_written(claimed, places), low, high, f"F1 of P {precision} and R {recall}")


def total(parts: Sequence, whole, counts: bool = False) -> Check:
    """Do the parts add up to ``whole``? ``counts`` are exact, all else has a rounding interval."""
    what, exact = f"the sum of its {len(parts)} parts", sum(map(number, parts))
    if counts:
        verdict, said = (ADDS_UP, "") if number(whole) == exact else (DOES_NOT, f"not {exact}, ")
        return Check(verdict, f"{whole} is {said}{what}.", near=(str(exact),))
    low, high = (sum(ends) for ends in zip(*map(interval, parts), strict=True))
    return _within(whole, low, high, what)


def mean(parts: Sequence, whole, weights: Sequence[int] = (), places: int | None = None) -> Check:
    """Is ``whole`` the mean of the parts, weighted or plain ("macro"), within rounding?"""
    weights = weights or [1] * len(parts)
    if len(weights) != len(parts) or not parts or min(weights) < 0 or not sum(weights):
        lists = f"{len(parts)} parts and weights {list(weights)}"
        raise KitError(f"{lists}: give a weight a part, not all 0")
    ends = zip(*(interval(part, places) for part in parts), strict=True)
    low, high = (sum(map(operator.mul, weights, end)) / sum(weights) for end in ends)
    kind = "plain" if len(set(weights)) == 1 else "weighted"
    return _within(_written(whole, places), low, high, f"the {kind} mean of {len(parts)} values")


def between(parts: Sequence, whole, places: int | None = None) -> Check:
    """Can ``whole`` be some weighted mean of the parts, whatever the weights?"""
    lows, highs = zip(*(interval(part, places) for part in parts), strict=True)
    what = f"a weighted mean of {len(parts)} values"
    return _within(_written(whole, places), min(lows), max(highs), what)


def difference(first, second, claimed, places: int | None = None) -> Check:
    """Is ``claimed`` first - second? From the values as written first, then within rounding."""
    a, b = _written(first, places), _written(second, places)
    (low_a, high_a), (low_b, high_b) = interval(a), interval(b)
    check = _within(claimed, low_a - high_b, high_a - low_b, f"{a} - {b}")
    how = _how(rules(str(claimed), number(a) - number(b)))
    if check.fails or not how:
        return check
    return replace(check, finding=f"{claimed} is {a} - {b}{how}.")


def same(first, second) -> Check:
    """Can two values of one quantity be the same number, each at its own decimals?"""
    return _within(first, *interval(second), f"the other table's {second}")


def read(path: Path) -> pd.DataFrame:
    """A CSV with every cell as its text, empty where it is empty; KitError if it is none."""
    if not Path(path).is_file():
        raise KitError(f"no table {shown(path)}: give the path of a CSV with a header")
    try:
        with open(path, encoding="utf-8-sig", newline="") as lines:
            rows = csv_rows(lines, shown(path), skipinitialspace=True)
    except UnicodeError:
        raise KitError(f"{shown(path)} is no UTF-8 text: save it as CSV UTF-8") from None
    return pd.DataFrame(rows.values(), pd.Index(rows, name="line")).rename(columns=str.strip)


def check(table: pd.DataFrame) -> pd.DataFrame:
    """Every row of a table of texts (``read``) checked: name, check, verdict, chance, finding. With
    an empty cell it *cannot be told*; KitError naming row and column for anything else."""
    kinds = {"denominator": ("value", "n"), "F1": ("precision", "recall", "f1")}
    kinds = {kind: columns for kind, columns in kinds.items() if set(columns) <= set(table)}
    if not kinds:
        needed = "columns value and n, or precision, recall and f1, are needed"
        raise KitError(f"{needed}; there are: {', '.join(table) or 'none'}")
    rows = []
    lines = table.index if table.index.name == "line" else range(2, len(table) + 2)
    for line, row in zip(lines, table.to_dict("records"), strict=True):
        for kind, columns in kinds.items():
            result, name = _row(row, columns, line), row.get("name") or f"line {line}"
            rows.append((name, kind, result.verdict, result.chance, result.finding))
    return pd.DataFrame(rows, columns=["name", "check", "verdict", "chance", "finding"])


def _row(row: dict, columns: Sequence[str], line: int) -> Check:
    """One check of a row; KitError naming the line and the column that cannot be read."""
    row = {column: text.strip() for column, text in row.items()}
    if empty := [column for column in columns if not row[column]]:
        return Check(UNTOLD, f"No {' and no '.join(empty)} is given.")
    column, whole = "kind", {}
    try:
        if row.get("kind", "") not in ("", "percent", "mean"):
            raise KitError(f"{row['kind']!r} is neither percent nor mean")
        for column in filter(row.get, (*columns, "decimals", "items")):
            value = number(row[column])
            if column in WHOLE:
                if value.denominator > 1 or value < WHOLE[column]:
                    raise KitError(f"{row[column]!r} is no whole number from {WHOLE[column]} on")
                whole[column] = int(value)
        column, places = columns[0], whole.get("decimals")
        if column != "value":
            return f1(*(row[c] for c in columns), places)
        scale = 1 if row.get("kind") == "mean" else 100
        return grim(row["value"], whole["n"], places, whole.get("items", 1), scale)
    except KitError as error:
        raise KitError(f"line {line}, column {column}: {error}") from None


def main(given: Sequence[str] | None = None) -> int:
    """Print a sentence a row of a CSV, and how many rows got which verdict."""
    parser = argparse.ArgumentParser("promedical_audit.arithmetic", description=main.__doc__)
    parser.add_argument("table", type=Path, help="with value and n, or precision, recall and f1")
    try:
        results = check(read(parser.parse_args(given).table))
    except KitError as error:
        print(error, file=sys.stderr)
        return 1
    for row in results.itertuples():
        print(f"{row.verdict:15}  {row.name}: {row.finding}")
    counts = results.verdict.value_counts()
    print(", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
