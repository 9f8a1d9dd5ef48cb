"""What the formulas of ``paper_numbers.yaml`` may use. Values are texts, taken at ``PLACES``
decimals; a column is {row: value}, without its empty cells.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import partial
from itertools import permutations

from promedical_audit import arithmetic
from promedical_audit.arithmetic import ADDS_UP, DOES_NOT, Check, number
from promedical_utils.core import statistics

PLACES = 2  # decimals of the paper's percentages: the CSVs have "86.1" where it prints 86.10
RM, LLAMA, BASE = "ProMedical-RM-8B (Qwen3)", "ProMedical-RM-8B (Llama)", "Qwen3-8B"
GRPO = "Qwen3-8B + ProMedical GRPO"
SUBSETS = ("easy", "hard", "human", "length")
COLUMNS = ("pointwise_proficiency", "pointwise_safety", "pairwise_safety")

Cells = dict[str, str]

same, rules, total = arithmetic.same, arithmetic.rules, arithmetic.total
wilson = statistics.wilson
grim = partial(arithmetic.grim, places=PLACES)
joint = partial(arithmetic.joint, places=PLACES)
common_denominators = partial(arithmetic.common_denominators, places=PLACES)
last_digits = partial(arithmetic.last_digits, places=PLACES)
f1 = partial(arithmetic.f1, places=PLACES)
difference = partial(arithmetic.difference, places=PLACES)


def less(first: str, second: str) -> Fraction:
    """The exact difference of two values."""
    return number(first) - number(second)


def two(text: str) -> str:
    """A value at the paper's two decimals."""
    return arithmetic.rounded(number(text), PLACES)


def cells(*columns: Cells) -> list[str]:
    """All values of some columns, one list."""
    return [text for column in columns for text in column.values()]


def by_row(check: Callable, *columns: Cells, **options) -> dict:
    """``check`` of the cells of each row that all columns have: {row: what it gives}."""
    shared = [row for row in columns[0] if all(row in column for column in columns)]
    return {row: check(*(column[row] for column in columns), **options) for row in shared}


def holding(by_row: Mapping[str, Check]) -> list[str]:
    """Rows whose check does not fail."""
    return [row for row, check in by_row.items() if not check.fails]


def failing(by_row: Mapping[str, Check]) -> list[str]:
    """Rows whose check fails."""
    return [row for row, check in by_row.items() if check.fails]


def ranges(by_row: Mapping[str, Check]) -> str:
    """What each row could be, as in "a 1.0 to 1.1; b 2.0"."""
    return "; ".join(f"{row} {' to '.join(check.near)}" for row, check in by_row.items())


def mean(*values: str, weights: Sequence[int] = ()) -> Check:
    """Is the last value the mean of those before it?"""
    return arithmetic.mean(values[:-1], values[-1], weights, PLACES)


def between(*values: str) -> Check:
    """Can the last value be a weighted mean of those before it?"""
    return arithmetic.between(values[:-1], values[-1], PLACES)


def alike(first: str, second: str) -> Check:
    """Are two values the same to both decimals?"""
    return Check(ADDS_UP if two(first) == two(second) else DOES_NOT, "")


def count_of(text: str, n: int) -> int:
    """The count out of ``n`` that is nearest to a percentage."""
    return round(number(text) * n / 100)


def denominators_of(text: str, candidates: list[int]) -> list[int]:
    """Those of which a percentage, at the decimals that it is written with, could be a count."""
    return [n for n in candidates if not arithmetic.grim(text, n).fails]


def pairs_apart(column: Cells, gain: str) -> list[str]:
    """Pairs of rows, as "a - b", whose difference can be ``gain``."""
    pairs = permutations(column, 2)
    return [f"{a} - {b}" for a, b in pairs if not difference(column[a], column[b], gain).fails]


def gap_to_others(safety: str, overall: str, share: Fraction) -> Fraction:
    """How far safety is from the accuracy on all other pairs, if ``overall`` pools both and
    ``share`` of it is safety."""
    others = (number(overall) - share * number(safety)) / (1 - share)
    return abs(others - number(safety))


def columns_with(table: dict[str, Cells], row: str, text: str) -> list[str]:
    """Columns of the main results in which a row has a value."""
    return [column for column in COLUMNS if two(table[column][row]) == text]


def subset_sizes(denominators: list[dict]) -> dict[str, int]:
    """Pairs in each subset of Medical RewardBench, from the rows of denominators.csv."""
    rows = [row for row in denominators if row["table"] == "ultramedical_rewardbench"]
    return {row["column"]: int(row["n"]) for row in rows}


def subset_fits(table: dict[str, Cells], sizes: Mapping[str, int]) -> list[dict]:
    """How well each size is the denominator of each subset: ``joint``, subset, n, own."""
    return [
        {"subset": subset, "n": n, "own": subset == sized} | joint(table[subset].values(), n)
        for subset in sizes
        for sized, n in sizes.items()
    ]


def average_needs(table: dict[str, Cells], subset: str, row: str, near: tuple[str, ...]) -> bool:
    """Was a row's average taken with a subset's reported value, and with no possible one?"""
    others = [table[other][row] for other in SUBSETS if other != subset]
    texts, average = (table[subset][row], *near), table["average"][row]
    fits, *possible = (not mean(text, *others, average).fails for text in texts)
    return fits and not any(possible)


def form(value, spec: str) -> str:
    """A number by a format of Python's; a fraction as the whole number or float that it is."""
    if isinstance(value, Fraction):
        value = int(value) if value.denominator == 1 else float(value)
    return format(value, spec)


def names(rows: list[str]) -> str:
    """As in "a, b and c"; "none" for none."""
    rows = list(rows)
    return " and ".join([", ".join(rows[:-1]), rows[-1]] if len(rows) > 1 else rows) or "none"


def slug(name: str) -> str:
    """A row's name as part of an id."""
    return re.sub(r"\W+", "_", name.lower()).strip("_")
