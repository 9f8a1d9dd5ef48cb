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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from promedical_utils.core import statistics
from promedical_utils.core.estimates import Estimates
from promedical_utils.core.workspace import KitError
from promedical_utils.evaluation import bench, policy_metrics

BASELINE = "scalar_overall"  # what the study of reward models has paired differences with
MEAN = "mean"  # over training seeds
UNTRAINED = ("base", "length", "random", "words")  # no seed of a training changes them
PAIRED = "paired bootstrap over conditions, then samples, {draws} draws"
UNPAIRED = "difference of two intervals over the same samples, taken as independent (MOVER)"


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
    seeds = a if len(a) > 1 else b
    if set(a) == set(b) or 1 in (
        len(a),
        len(b),
    ):  # one value stands beside each of the other side's
        one, other = (
            [side[s] if s in side else next(iter(side.values())) for s in sorted(seeds)]
            for side in (a, b)
        )
        each = [x - y for x, y in zip(one, other)]
        sides = [each]
    else:
        each, sides = [], [list(a.values()), list(b.values())]
    parts = [(np.var(s, ddof=1) / len(s), len(s) - 1) for s in sides if len(s) > 1]
    total = sum(variance for variance, _ in parts)
    if total == 0:
        return 0.0, [float(d) for d in each]
    freedom = total**2 / sum(variance**2 / df for variance, df in parts)
    return float(stats.t.ppf(0.975, freedom) * np.sqrt(total)), [float(d) for d in each]


def widened(found: Mapping, half: float) -> dict:
    """``found`` (difference, low, high) with another, independent, symmetric error taken in."""
    value = found["difference"]
    return {
        "difference": value,
        "low": value - float(np.hypot(value - found["low"], half)),
        "high": value + float(np.hypot(found["high"] - value, half)),
    }


def apart(a: Mapping, b: Mapping) -> dict:
    """``a`` less ``b``, each {value, low, high} with an interval of its own; independent.

    Where both are of the same patients and vary alike, the interval is too wide, not too narrow.
    """
    value = a["value"] - b["value"]
    low = value - np.hypot(a["value"] - a["low"], b["high"] - b["value"])
    high = value + np.hypot(a["high"] - a["value"], b["value"] - b["low"])
    return {"difference": float(value), "low": float(low), "high": float(high)}


def _finished(
    patients: Mapping, a: Mapping, b: Mapping, who, factor: float, unit: str, n: int, test: str
) -> dict:
    """One difference in the unit people read; ``who``: names of the two sides, None for no other.

    A side whose one seed is "" was not trained.
    """
    half, each = trainings(a, b)
    said = {
        name: len(side)
        for name, side in zip(who, (a, b))
        if name and name not in UNTRAINED and set(side) != {""}
    }
    if half:
        whose = (
            f"Student's t over {len(each)} trainings" if each else "Welch's t over the trainings"
        )
        test += f"; widened by {whose}"
    if said:
        test += "; trainings: " + ", ".join(f"{name} {count}" for name, count in said.items())
    result = {name: value * factor for name, value in widened(patients, half).items()}
    result |= {f"patients_{end}": patients[end] * factor for end in ("low", "high")}
    return {
        **result,
        "each": [d * factor for d in each if len(each) > 1],
        "n": int(n),
        "unit": unit,
        "seeds": min(said.values(), default=0),
        "test": test,
    }


# ---------------------------------------------------------------- sources


def ran_on(profile: str, seed: int, data: str) -> str:
    return f"profile {profile}, seed {seed}, {data}"


class Tallied:
    """Differences from a run's tally (``bench.tally``, ``external``): each scorer was trained
    once."""

    def __init__(self, tally: Estimates, draws: int, seed: int, against: str = "adjudicated"):
        self.tally, self.draws, self.against = tally, draws, against
        self.weights = statistics.two_stage_weights(tally.samples.condition, draws, seed)
        self.place = {key: n for n, key in enumerate(tally.keys)}

    def labels(self, asked: str | None) -> str:
        return asked or self.against

    def find(self, check: Mapping) -> dict:
        terms: dict[int, float] = {}
        for factor, (who, metric, part) in _terms(check):
            key = (who, metric, part, check["labels"])
            if key not in self.place:
                raise _lacking("this run", who, metric, part, {key[0] for key in self.place})
            terms[self.place[key]] = terms.get(self.place[key], 0) + factor
        found = statistics.contrast(self.tally.hits, self.tally.counts, terms, self.weights)
        if any(np.isnan(list(found.values()))):
            raise Lacking("nothing to count")
        n = self.tally.counts[:, list(terms)].sum(axis=0).min()
        who = check["a"], check["b"]
        once = {"1": found["difference"]}
        return _finished(
            found, once, {"1": 0.0}, who, 100, "points", n, PAIRED.format(draws=self.draws)
        )


def external(frame: pd.DataFrame) -> Estimates:
    """``external/predictions.parquet`` as a tally: (system, text, set, "truth"), hits over pairs.

    Columns set, system, text, retrieval, instruction_id, condition, label, prefers. A system with
    retrieved documents is another, ``<system>_rag``; a tie or no preference counts as wrong.
    """
    samples = frame[["instruction_id", "condition"]].drop_duplicates().sort_values("instruction_id")
    at = pd.Index(samples.instruction_id)
    names = frame.system + np.where(frame.retrieval, "_rag", "")
    keys, sums = [], []
    for key, part in frame.assign(system=names).groupby(["system", "text", "set"], sort=False):
        row = at.get_indexer(part.instruction_id)
        right = part.prefers.eq(part.label).to_numpy(float)  # False for NaN
        keys.append((*key, "truth"))
        sums.append([np.bincount(row, weights, len(at)) for weights in (right, right * 0 + 1)])
    hits, counts = (np.column_stack(parts) for parts in zip(*sums))
    return Estimates(samples.reset_index(drop=True), bench.KEY, keys, hits, counts)


class Policies:
    """Differences of policies from an ``evaluation`` (see ``policy_metrics``), several seeds or
    one."""

    def __init__(self, evaluation: pd.DataFrame, draws: int, seed: int):
        self.sums = policy_metrics.sums(evaluation)
        self.weights, self.draws = self.sums.weights(draws, seed), draws
        self.columns, self.against = self.sums.without("seed"), policy_metrics.labels(evaluation)

    def labels(self, asked: str | None) -> str:
        return self.against

    def find(self, check: Mapping) -> dict:
        metric, sides = check["metric"], []
        for who in (check["a"], check["b"]):
            key = (who, metric, "all", check["labels"])
            if key not in self.columns:
                raise Lacking(f"no {metric} of policy {who}")
            sides.append(self.columns[key])
        less = self.sums.less(*sides, self.weights)
        if np.isnan(less["low"]):
            raise Lacking(f"{check['a']} and {check['b']} share no patient")
        values = [
            {self.sums.keys[n][1] or "1": v for n, v in zip(side, self.sums.each(side))}
            for side in sides
        ]
        factor = policy_metrics.METRICS[metric][1]
        unit = "criteria" if metric == "s2" else "points"
        who = check["a"], check["b"]
        return _finished(
            less, *values, who, factor, unit, less["n"], PAIRED.format(draws=self.draws)
        )


class Results:
    """Differences from a study's results, a row a model, with its seeds' lowest and highest.

    Paired with the study's baseline where that is the other side, else from two intervals.
    """

    def __init__(self, results: pd.DataFrame, baseline: str, draws: int):
        self.baseline, self.draws = baseline, draws
        keys = ["model", "metric", "slice", "against"]
        self.rows = {tuple(row[k] for k in keys): row for row in results.to_dict("records")}

    def labels(self, asked: str | None) -> str:
        return asked or "adjudicated"

    def find(self, check: Mapping) -> dict:
        rows = []
        for _, (who, metric, part) in _terms(check):
            row = self.rows.get((who, metric, part, check["labels"]))
            if row is None or row["value"] != row["value"]:
                raise _lacking("the study", who, metric, part, {key[0] for key in self.rows})
            rows.append(row)
        if len(rows) != 2:
            raise Lacking("a study's results hold no difference of differences")
        a, b = rows
        if b["model"] == self.baseline and a["metric"] == b["metric"] and a["slice"] == b["slice"]:
            names = {"difference": "less_scalar", "low": "less_low", "high": "less_high"}
            patients = {name: a[column] for name, column in names.items()}
            test = PAIRED.format(draws=self.draws)
        else:
            patients, test = apart(a, b), UNPAIRED
        n = min(a["n"], b["n"])
        sides = (_by_rank(row, side) for row, side in zip(rows, "ab"))
        return _finished(patients, *sides, (check["a"], check["b"]), 100, "points", n, test)


def _by_rank(row: Mapping, side: str) -> dict[str, float]:
    """Values of a model's seeds, recovered from mean, lowest and highest: exact up to three.

    Which seed had which is not stored, so names differ by side and no seeds are paired.
    """
    k, low, high = int(row["seeds"]), row["seed_low"], row["seed_high"]
    if k > 3:
        raise Lacking(f"{row['model']} has {k} seeds, of which the results keep two")
    values = {1: [row["value"]], 2: [low, high], 3: [low, 3 * row["value"] - low - high, high]}[k]
    return {f"{side}{n}": value for n, value in enumerate(values)}


class Contrasts:
    """Differences from a study that stores its paired contrasts, and a value a scorer and seed.

    ``results``: scorer, seed ("mean" over seeds, alone where nothing was trained), metric, slice,
    against, value, low, high, n. ``contrasts``: a, b, metric, slice, against, seeds, difference,
    low, high, n; the last row of a pair is over all seeds.
    """

    def __init__(self, results: pd.DataFrame, contrasts: pd.DataFrame, draws: int):
        self.draws, keys = draws, ["metric", "slice", "against"]
        self.stored: dict[tuple, dict] = {}
        for row in contrasts.to_dict("records"):
            at = tuple(row[k] for k in keys)
            turned = {"difference": -row["difference"], "low": -row["high"], "high": -row["low"]}
            self.stored[(row["a"], row["b"], *at)] = row
            self.stored[(row["b"], row["a"], *at)] = row | turned
        self.values: dict[tuple, dict[str, dict]] = {}
        for row in results.to_dict("records"):
            self.values.setdefault(tuple(row[k] for k in ["scorer", *keys]), {})[
                str(row["seed"])
            ] = row

    def labels(self, asked: str | None) -> str:
        return asked or "adjudicated"

    def find(self, check: Mapping) -> dict:
        sides, at = [], []
        for _, (who, metric, part) in _terms(check):
            rows = self.values.get((who, metric, part, check["labels"]), {})
            if not rows or any(pd.isna(row["value"]) for row in rows.values()):
                raise _lacking("the study", who, metric, part, {key[0] for key in self.values})
            sides.append(
                {seed: row for seed, row in rows.items() if seed != MEAN} or {"": rows[MEAN]}
            )
            at.append((metric, part))
        if len(sides) != 2:
            raise Lacking("a study's results hold no difference of differences")
        stored = self.stored.get((check["a"], check["b"], *at[0], check["labels"]))
        if stored is not None and at[0] == at[1]:
            patients = {name: stored[name] for name in ("difference", "low", "high")}
            n, test = stored["n"], PAIRED.format(draws=self.draws)
        else:  # means of the seeds; their intervals are of the same patients and vary alike
            means = [
                {
                    name: np.mean([row[name] for row in side.values()])
                    for name in ("value", "low", "high")
                }
                for side in sides
            ]
            patients, test = apart(*means), UNPAIRED
            n = min(row["n"] for side in sides for row in side.values())
        values = ({seed: row["value"] for seed, row in side.items()} for side in sides)
        return _finished(patients, *values, (check["a"], check["b"]), 100, "points", n, test)


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
        once = {"1": found["difference"]}
        return _finished(
            found,
            once,
            {"1": 0.0},
            (check["a"], check["b"]),
            1,
            "points",
            self.column["n"],
            "paired bootstrap over prompts",
        )


def _terms(check: Mapping):
    """(factor, (system, metric, slice)): a less b, less the same elsewhere where ``beyond`` is
    given."""
    here = [(1, (check["a"], check["metric"], check["slice"]))]
    if check["b"]:
        here.append((-1, (check["b"], check["metric_b"], check["slice_b"])))
    if check["beyond"]:
        here += [(-f, (who, metric, check["beyond"])) for f, (who, metric, _) in here]
    return here


def _lacking(where: str, who: str, metric: str, part: str, known: set[str]) -> Lacking:
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
    source: object
    files: tuple[str, ...]
    policies: list[dict]

    @property
    def data(self) -> str:
        return (
            f"study {self.name}: "
            f"{ran_on(self.profile['name'], self.profile['seed'], self.profile['data'])}"
        )


def study(folder: Path, name: str) -> Study | None:
    """The study ``name`` in ``folder``, or None where it did not run: the manifest is written last.

    KitError where the manifest is there and a file that it stands for is not.
    """
    place = Path(folder) / name
    if not (place / "manifest.json").exists():
        return None
    found = json.loads((place / "manifest.json").read_text(encoding="utf-8"))
    profile = found["profile"]
    draws, seed = profile["bootstrap"], profile["seed"]
    if (place / "contrasts.csv").exists():
        files = ("results.csv", "contrasts.csv")
    else:
        files = ("results.csv",) if (place / "results.csv").exists() else ("evaluation.parquet",)
    for file in files:
        if not (place / file).exists():
            raise KitError(
                f"study {name} has a manifest but no {file}: make study STUDY={name} again"
            )
    frames = [
        pd.read_csv(place / f) if f.endswith("csv") else pd.read_parquet(place / f) for f in files
    ]
    if len(frames) == 2:
        source = Contrasts(*frames, draws)
    elif files == ("results.csv",):
        source = Results(*frames, BASELINE, draws)
    else:
        source = Policies(*frames, draws, seed)
    files = tuple(f"studies/{name}/{file}" for file in (*files, "manifest.json"))
    return Study(name, profile, source, files, found.get("policies", []))
