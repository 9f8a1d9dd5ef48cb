"""Contrasts: differences of two systems, from sums that were counted.

A source finds one contrast at a time: {difference, low, high, each, seeds, n, ...} in the unit
that people read, the claimed direction up. Its interval takes in the patients (whole conditions,
drawn for both systems alike: ``core.statistics.interval``) and, where a system was trained several
times, the trainings: Student's t on the differences seed by seed, or Welch's where the seeds of the
two differ. The two errors are independent, so a limit is as far off as the root of their summed
squares (MOVER: Zou and Donner, Stat Med 27, 2008), and a test has Satterthwaite's degrees of
freedom. A system trained once has no such error that could be known: ``seeds`` says so, and the
interval is of patients alone.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from promedical_utils.core import statistics, verdicts
from promedical_utils.core.estimates import Estimates
from promedical_utils.core.statistics import LEAST
from promedical_utils.core.workspace import KitError
from promedical_utils.studies import results

UNTRAINED = {"base", "length", "random", "near_words", "embeddings", "criterion_only", "overlap"}
UNTRAINED |= {"similarity", "always_met", "always_veto"}  # no seed of a training changes them
PAIRED = "whole conditions, {clusters} of them, shared by both sides; {draws} draws"
FACTORS = results.FACTORS | {"healthbench": 1}
NUMBERS = ("difference", "low", "high", "patients_low", "patients_high")


class Lacking(Exception):
    """Why a contrast cannot be had; its text goes into the ledger."""


def trainings(a: Mapping[str, float], b: Mapping[str, float]) -> tuple[float, float, list[float]]:
    """(standard error over trainings, its degrees of freedom, differences seed by seed).

    ``a``, ``b``: training seed -> value. Paired where both have the same seeds, or one side a
    single value; Welch's, and no differences, otherwise. 0 where neither was trained twice.

    >>> trainings({"1": 2.0, "2": 3.0, "3": 4.0}, {"1": 1.0, "2": 1.0, "3": 1.0})[1:]
    (2.0, [1.0, 2.0, 3.0])
    """
    if len(a) == 1:  # one value stands beside each of the other side's
        a = dict.fromkeys(b, *a.values())
    elif len(b) == 1:
        b = dict.fromkeys(a, *b.values())
    paired = set(a) == set(b)
    each = [float(a[seed] - b[seed]) for seed in sorted(a)] if paired else []
    samples = [each] if paired else [list(a.values()), list(b.values())]
    parts = [(np.var(s, ddof=1) / len(s), len(s) - 1) for s in samples if len(s) > 1]
    error = float(np.sqrt(sum(variance for variance, _ in parts)))
    return error if error > 1e-12 else 0.0, _freedom(parts), each


def _freedom(parts: Sequence[tuple[float, float]]) -> float:
    """Satterthwaite's degrees of freedom of a sum of variances, each with its own."""
    total = sum(variance for variance, _ in parts)
    over = sum(variance**2 / df for variance, df in parts if variance)
    return float(total**2 / over) if over else min((df for _, df in parts), default=np.inf)


def contrast(check: Mapping, patients: Mapping, sides, test: str, level: float) -> dict:
    """One contrast in the unit that people read; ``patients``: ``Estimates.combined`` over these
    alone, ``sides``: values of a and b by training seed, "" where a side was not trained."""
    value, low, high = (patients[name] for name in ("difference", "low", "high"))
    if np.isnan(value):
        raise Lacking("nothing that both have")
    if np.isnan([low, high]).any():
        raise Lacking(f"fewer than {LEAST} conditions: they do not tell how another would differ")
    error, freedom, each = trainings(*sides)
    half = stats.t.ppf(0.5 + level / 2, freedom) * error if error else 0.0
    if error:
        whose = f"Student's t over {len(each)}" if each else "Welch's t over the"
        test += f"; widened by {whose} trainings"
    trained = {
        name: len(side)
        for name, side in zip((check["a"], check["b"]), sides, strict=True)
        if name and name not in UNTRAINED and set(side) != {""}
    }
    if trained:
        test += "; trainings: " + ", ".join(f"{name} {count}" for name, count in trained.items())
    ends = (value, value - np.hypot(value - low, half), value + np.hypot(high - value, half))
    found = dict(zip(NUMBERS, (*ends, low, high), strict=True))
    found["error"] = np.hypot(patients["error"], error)
    factor = FACTORS.get(check["metric"], 100)
    parts = [(patients["error"] ** 2, patients["df"]), (error**2, freedom)]
    return {
        **{name: float(number) * factor for name, number in found.items()},
        "df": _freedom(parts if error else parts[:1]),
        "design": patients.get("design", np.nan),
        "each": [d * factor for d in each if len(each) > 1],
        "n": int(patients["n"]),
        "unit": "criteria" if check["metric"] == "s2" else "points",
        "seeds": min(trained.values(), default=0),
        "test": test,
    }


class Counted:
    """A source of contrasts: sums by patient, of a run or of a study that kept what it counts. Of
    policies only patients count whom both answered."""

    def __init__(self, sums: Estimates, draws: int, seed: int, against: str = ""):
        self.sums, self.draws, self.weights = sums, draws, sums.weights(draws, seed)
        self.against = [against] if against else sorted({key[-1] for key in sums.keys})

    def labels_of(self, part: str) -> list[str]:
        """Whose labels a slice has; all that there are where nothing has that slice."""
        own = sorted({against for *_, cut, against in self.sums.keys if cut == part})
        return self.against if len(self.against) == 1 or not own else own

    def find(self, check: Mapping, level: float = 0.95) -> dict:
        factors, sides = Counter(), (Counter(), Counter())
        compared = [(check["a"], check["metric"], check["slice"])]
        if check["b"]:
            compared.append((check["b"], check["metric_b"], check["slice_b"]))
        for side, factor, of in zip(sides, (1, -1), compared):
            columns = self._columns(*of, check["labels"])
            for column, value in zip(columns, self.sums.each(columns), strict=True):
                factors[column] += factor / len(columns)
                side[self._seed(column)] += value  # each side by its own training seeds
        shared = self.sums.names[0] == "policy"
        found = self.sums.combined(factors, self.weights, shared, level)
        test = PAIRED.format(clusters=found["df"] + 1, draws=self.draws)
        return contrast(check, found, [part or {"": 0.0} for part in sides], test, level)

    def _columns(self, who: str, metric: str, part: str, against: str) -> list[int]:
        kind = self.sums.names[0]
        key = {kind: who, "metric": metric, "slice": part, "against": against}
        try:
            return self.sums.columns(key)
        except KitError:
            what, where = who, "the study" if kind == "system" else "this run"
            if who in {key[0] for key in self.sums.keys}:
                on = "" if part == "all" else f" on {part}"
                what = f"{metric.replace('_', ' ')} of {who}{on}"
            raise Lacking(f"{where} has no {what}") from None

    def _seed(self, column: int) -> str:
        """The training seed of a column, "" of what was not trained; of a run's one training 1."""
        if "seed" not in self.sums.names:
            return "1"
        return self.sums.keys[column][1] or ("1" if self.sums.names[0] == "policy" else "")


def measured(given: Mapping, source, reported: float | None = None) -> dict:
    """Numbers and verdict of a check: its interval, p, and what it could have seen; rounded, and
    the rounded ones decide. ``reported``: the size that the paper has. Raises Lacking."""
    made, margin = source.find(given), given["equivalent_within"]
    error, df, design = (made.pop(name) for name in ("error", "df", "design"))
    found = made | {name: rounded(made[name]) for name in NUMBERS}
    found["each"] = [rounded(value) for value in made["each"]]
    ends = found["low"], found["high"]
    # a size in another unit is no size to compare
    reported = reported if found["unit"] == "points" else None
    value, above = made["difference"], given["above"]
    if margin is None:
        p = statistics.p_value(value, above, error, df)
        interest = given["interest"] if reported is None else abs(reported - above)
        power = statistics.power(interest, error, df)
        found["verdict"] = verdicts.of_check(*ends, above, interest, power, reported)
    else:  # the larger p of the two one-sided tests
        p, interest = statistics.p_value(abs(value), margin, error, df) / 2, margin
        p = p if abs(value) < margin else 1 - p
        power, inner = statistics.power(interest, error, df), source.find(given, 0.9)
        inner = rounded(inner["low"]), rounded(inner["high"])
        found["verdict"] = verdicts.of_equivalence(ends, inner, margin)
    found |= {"p": round(p, 4), "interest": rounded(interest), "power": rounded(power)}
    found["smallest"] = rounded(statistics.smallest_detectable(error, df))
    return found | {"design": None if np.isnan(design) else rounded(design)}


def rounded(value: float) -> float:
    return round(float(value), 2) + 0.0  # no -0.0
