"""Evidence for claims: differences of two systems, from a run and from committed studies.

A source finds one difference at a time: {difference, low, high, each, seeds, n, ...} in the unit
that people read, the claimed direction up. Its 95 % interval takes in the patients (draws of
conditions, then of patients within them, shared by both systems) and, where a system was trained
several times, the trainings: Student's t on the differences seed by seed, or Welch's where the
seeds of the two differ. The two errors are independent, so a limit is as far off as the root of
their summed squares (MOVER: Zou and Donner, Stat Med 27, 2008). A system trained once has no such
error that could be known: ``seeds`` says so, and the interval is of patients alone.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from promedical_utils.core.estimates import Estimates
from promedical_utils.core.workspace import KitError
from promedical_utils.evaluation import bench, policy_metrics
from promedical_utils.evaluation import external as external_sets
from promedical_utils.studies import results

UNTRAINED = ("base", "length", "random", "words")  # no seed of a training changes them
PAIRED = "paired bootstrap over conditions, then samples, {draws} draws"
UNPAIRED = "difference of two intervals over the same samples, taken as independent (MOVER)"
FACTORS = results.FACTORS | {"healthbench": 1}
FILES = ("results.csv", "manifest.json")  # of a study


class Lacking(Exception):
    """Why a difference cannot be had from a source; its text goes into the ledger."""


# ---------------------------------------------------------------- intervals


def trainings(a: Mapping[str, float], b: Mapping[str, float]) -> tuple[float, list[float]]:
    """(half width of the 95 % interval over trainings, differences seed by seed).

    ``a``, ``b``: training seed -> value. Paired where both have the same seeds, or one side a
    single value; Welch's, and no differences, otherwise. 0 where neither was trained twice.

    >>> trainings({"1": 2.0, "2": 3.0, "3": 4.0}, {"1": 1.0, "2": 1.0, "3": 1.0})[1]
    [1.0, 2.0, 3.0]
    """
    if len(a) == 1:  # one value stands beside each of the other side's
        a = dict.fromkeys(b, *a.values())
    elif len(b) == 1:
        b = dict.fromkeys(a, *b.values())
    paired = set(a) == set(b)
    each = [float(a[seed] - b[seed]) for seed in sorted(a)] if paired else []
    samples = [each] if paired else [list(a.values()), list(b.values())]
    parts = [(np.var(s, ddof=1) / len(s), len(s) - 1) for s in samples if len(s) > 1]
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return 0.0, each
    freedom = total**2 / sum(variance**2 / df for variance, df in parts)
    return float(stats.t.ppf(0.975, freedom) * np.sqrt(total)), each


def widened(found: Mapping, half: float) -> dict:
    """``found`` (difference, low, high) with another, independent, symmetric error taken in."""
    value = found["difference"]
    return {
        "difference": value,
        "low": value - float(np.hypot(value - found["low"], half)),
        "high": value + float(np.hypot(found["high"] - value, half)),
    }


def apart(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """(value, low, high) of ``a`` less ``b``, which have intervals of their own; independent.

    Where both are of the same patients and vary alike, the interval is too wide, not too narrow.
    """
    (a_value, a_low, a_high), (b_value, b_low, b_high) = a, b
    value = a_value - b_value
    low = value - np.hypot(a_value - a_low, b_high - b_value)
    high = value + np.hypot(a_high - a_value, b_value - b_low)
    return float(value), float(low), float(high)


def _finished(patients: Mapping, sides, check: Mapping, n: int, test: str) -> dict:
    """One difference in the unit people read; ``sides``: values of a and b by training seed.

    A side whose one seed is "" was not trained.
    """
    factor = FACTORS.get(check["metric"], 100)
    half, each = trainings(*sides)
    trained = {
        name: len(side)
        for name, side in zip((check["a"], check["b"]), sides, strict=True)
        if name and name not in UNTRAINED and set(side) != {""}
    }
    if half:
        whose = f"Student's t over {len(each)}" if each else "Welch's t over the"
        test += f"; widened by {whose} trainings"
    if trained:
        test += "; trainings: " + ", ".join(f"{name} {count}" for name, count in trained.items())
    return {
        **{name: value * factor for name, value in widened(patients, half).items()},
        **{f"patients_{end}": patients[end] * factor for end in ("low", "high")},
        "each": [d * factor for d in each if len(each) > 1],
        "n": int(n),
        "unit": "criteria" if check["metric"] == "s2" else "points",
        "seeds": min(trained.values(), default=0),
        "test": test,
    }


# ---------------------------------------------------------------- sources


def ran_on(profile: str, seed: int, data: str) -> str:
    return f"profile {profile}, seed {seed}, {data}"


class Counted:
    """Differences from sums by patient of a run: ``bench.tally``, ``external``, or those of
    policies, of whom only patients count that both answered."""

    def __init__(self, sums: Estimates, draws: int, seed: int, against: str = "adjudicated"):
        self.sums, self.draws, self.against = sums, draws, against
        self.weights = sums.weights(draws, seed)
        self.policies = sums.names[0] == "policy"

    def labels(self, asked: str | None) -> str:
        return self.against if self.policies else asked or self.against

    def find(self, check: Mapping) -> dict:
        terms = [(factor, self._columns(*of, check["labels"])) for factor, of in _terms(check)]
        if self.policies:
            if len(terms) != 2:
                raise Lacking("of policies there are differences of two alone")
            (_, a), (_, b) = terms
            found = self.sums.less(a, b, self.weights)
            if np.isnan(found["low"]):
                raise Lacking(f"{check['a']} and {check['b']} share no patient")
            sides = [self._trained(a), self._trained(b)]
        else:
            factors: dict[int, float] = {}
            for factor, [column] in terms:
                factors[column] = factors.get(column, 0) + factor
            found = self.sums.combined(factors, self.weights)
            if any(np.isnan(list(found.values()))):
                raise Lacking("nothing to count")
            sides = [{"1": found["difference"]}, {"1": 0.0}]
        return _finished(found, sides, check, found["n"], PAIRED.format(draws=self.draws))

    def _columns(self, who: str, metric: str, part: str, against: str) -> list[int]:
        first = self.sums.names[0]
        try:
            return self.sums.columns(
                {first: who, "metric": metric, "slice": part, "against": against}
            )
        except KitError:
            known = {key[0] for key in self.sums.keys}
            raise _lacking("this run", who, metric, part, known) from None

    def _trained(self, columns: Sequence[int]) -> dict[str, float]:
        seeds = (self.sums.keys[column][1] or "1" for column in columns)
        return dict(zip(seeds, self.sums.each(columns), strict=True))


def of_policies(evaluation: pd.DataFrame, draws: int, seed: int) -> Counted:
    """From an evaluation (see ``policy_metrics``), by the truth where it has one."""
    sums, against = policy_metrics.sums(evaluation), policy_metrics.labels(evaluation)
    return Counted(sums, draws, seed, against)


def external(frame: pd.DataFrame) -> Estimates:
    """``external/predictions.parquet`` as a tally: (system, text, set, "truth"), hits over pairs.

    Columns set, system, text, retrieval, instruction_id, condition, label, prefers. A system with
    retrieved documents is another, ``<system>_rag``; a tie or no preference counts as wrong.
    """
    key = {"metric": frame.text, "slice": frame["set"], "against": "truth"}
    key["scorer"] = frame.system + np.where(frame.retrieval, "_rag", "")
    return external_sets.estimates(frame.assign(**key), bench.KEY)


class Stored:
    """Differences from the results of a study (``studies.results``), or of HealthBench.

    Paired where the study stored that difference, else from two intervals.
    """

    def __init__(self, found: pd.DataFrame, test: str):
        self.cells, self.test = results.Cells(found), test

    def labels(self, asked: str | None) -> str:
        against = self.cells.against
        return against[0] if len(against) == 1 else asked or "adjudicated"

    def find(self, check: Mapping) -> dict:
        keys = [(*of, check["labels"]) for _, of in _terms(check)]
        for key in keys:
            if np.isnan(self.cells.ends(key)[0]):
                raise _lacking("the study", *key[:3], self.cells.systems)
        if len(keys) != 2:
            raise Lacking("a study's results hold no difference of differences")
        if (stored := self._paired(*keys)) is not None:
            ends, n, test = *stored, self.test
        else:
            ends, test = apart(*map(self.cells.ends, keys)), UNPAIRED
            n = min(self.cells.means[key]["n"] for key in keys)
        patients = dict(zip(("difference", "low", "high"), ends, strict=True))
        sides = [self._trained(key, side) for key, side in zip(keys, "ab", strict=True)]
        return _finished(patients, sides, check, n, test)

    def _paired(self, a: tuple, b: tuple) -> tuple | None:
        """((difference, low, high), n) that the study stored of the two, either way round."""
        for first, second, sign in ((a, b, 1), (b, a, -1)):
            key = (*first, results.LESS, second[0])
            if a[1:] == b[1:] and key in self.cells.means:
                value, *ends = (sign * end for end in self.cells.ends(key))
                return (value, *sorted(ends)), self.cells.means[key]["n"]
        return None

    def _trained(self, key: tuple, side: str) -> dict[str, float]:
        """Values by seed; one known by rank alone is nobody's pair, so its name is the side's."""
        seeds = self.cells.trained.get(key, {"": self.cells.ends(key)[0]})
        return {f"{side}{s}" if s.startswith("?") else s: value for s, value in seeds.items()}


class HealthBench:
    """The policy's HealthBench column (``healthbench.policy_column``), or why it has no value."""

    def __init__(self, column: Mapping):
        self.column = column

    def labels(self, asked: str | None) -> str:
        return "rubric"

    def find(self, check: Mapping) -> dict:
        row = self.column["rows"].get("difference")
        if row is None:
            raise Lacking(self.column["reason"])
        found = {"difference": row["value"], "low": row["low"], "high": row["high"]}
        sides, test = [{"1": row["value"]}, {"1": 0.0}], "paired bootstrap over prompts"
        return _finished(found, sides, check, self.column["n"], test)


def _terms(check: Mapping) -> list[tuple[int, tuple[str, str, str]]]:
    """(factor, (system, metric, slice)): a less b, less the same elsewhere where ``beyond`` is
    given."""
    here = [(1, (check["a"], check["metric"], check["slice"]))]
    if check["b"]:
        here.append((-1, (check["b"], check["metric_b"], check["slice_b"])))
    if check["beyond"]:
        here += [(-f, (who, metric, check["beyond"])) for f, (who, metric, _) in here]
    return here


def _lacking(where: str, who: str, metric: str, part: str, known: Iterable[str]) -> Lacking:
    if who not in known:
        return Lacking(f"{where} has no {who}")
    of = f"{metric.replace('_', ' ')} of {who}" + (f" on {part}" if part != "all" else "")
    return Lacking(f"{where} has no {of}")


# ---------------------------------------------------------------- studies


@dataclass(frozen=True)
class Study:
    """A committed study: what it was run on, a source of differences, its policies' hacking
    checks."""

    name: str
    profile: dict
    source: Stored
    files: tuple[str, ...]
    policies: list[dict]

    @property
    def data(self) -> str:
        of = ran_on(self.profile["name"], self.profile["seed"], self.profile["data"])
        return f"study {self.name}: {of}"


def study(folder: Path, name: str) -> Study | None:
    """The study ``name`` in ``folder``, or None where it did not run: the manifest is written last.

    KitError where the manifest is there and the results are not.
    """
    place = Path(folder) / name
    if not (place / "manifest.json").exists():
        return None
    manifest = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    if not (place / "results.csv").exists():
        raise KitError(
            f"study {name} has a manifest but no results.csv: make study STUDY={name} again"
        )
    profile = manifest["profile"]
    source = Stored(results.read(place), PAIRED.format(draws=profile["bootstrap"]))
    files = tuple(f"studies/{name}/{file}" for file in FILES)
    return Study(name, profile, source, files, manifest.get("policies", []))
