"""The study of systems: small trained versions of the compared ones, and a second backbone, on one
bench.

Same instructions, same number of them a step, same steps: see ``small_systems`` and ``variants``.
Resumable: a model that is trained and has predicted is not touched again, one that was stopped goes
on from its checkpoint. ``out`` is a bench folder (``Bench.load``) with what was predicted on it, so
that results and contrasts can be worked out again from the published files alone:

predictions.parquet  ``bench.PREDICTED``, scorers named <system>-<training seed>
preferences.parquet  ``bench.PREFERRED``, likewise
results.csv          scorer, seed, metric, slice, against, value, low, high, n
contrasts.csv        name, a, b, metric, slice, against, seeds, difference, low, high, n

Values are shares; intervals are 95 %, of the bench's conditions, then samples, and hold training
seeds fixed: how far these move a value is what the rows of single seeds are for.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_utils.core import profiles, provenance, run_data, statistics
from promedical_utils.core.estimates import Estimates
from promedical_utils.core.records import DIMENSIONS
from promedical_utils.core.workspace import (
    KitError,
    read_json,
    replacing,
    short_hash,
    shown,
    write_json,
    write_rows,
)
from promedical_utils.data.sources.real_sets import refuse_external
from promedical_utils.evaluation import bench as benches
from promedical_utils.evaluation import scorers
from promedical_utils.pipeline import base as base_module
from promedical_utils.pipeline import bench
from promedical_utils.report import tables
from promedical_utils.reward_model import variants
from promedical_utils.rubric import preferences as stages
from promedical_utils.rubric.preferences import Group, digest
from promedical_utils.studies import reward_models

NAMES = {
    "criterion": "criterion RM (kit, small Qwen3 base)",
    "criterion_llama": "criterion RM (kit, small Llama base)",
    "scalar_overall": "scalar RM, as UltraMedRM (kit, small)",
    "pair_rm": "generative pair RM, as PairRM (kit, small)",
    "verifier": "two-label verifier, as medical_o1_verifier (kit, small)",
    "rar_implicit": "whole rubric in one score, as RaR implicit (kit, small)",
    "length": "longer is better (kit)",
}
OWN = ("criterion", "criterion_llama")  # what all others are held against
MEAN = "mean"
SLICES = {
    "pointwise": ("all", *DIMENSIONS),
    "pairwise": ("all", *DIMENSIONS, "seen", "unseen"),
    "overall": ("all",),
    "veto_precision": ("safety",),
    "veto_recall": ("safety",),
    "veto_f1": ("safety",),
}
SHOWN = {
    "pointwise_proficiency": ("pointwise", "proficiency"),
    "pointwise_safety": ("pointwise", "safety"),
    "pairwise_all": ("pairwise", "all"),
    "pairwise_safety": ("pairwise", "safety"),
    "overall_accuracy": ("overall", "all"),
    "veto_precision": ("veto_precision", "safety"),
    "veto_recall": ("veto_recall", "safety"),
    "veto_f1": ("veto_f1", "safety"),
}


def run(
    profile, folder: Path, plan: Mapping[str, list[int]], out: Path, frozen_on: str
) -> pd.DataFrame:
    """Train and measure ``plan`` (system -> training seeds) in ``folder``; tables go to ``out``.

    ``folder`` holds the data and the base of notebooks 00 to 02; ``frozen_on``: what the settings
    were chosen on, for the manifest. Returns ``results``. KitError for an unknown system.
    """
    if profile.data != "clinic":
        raise KitError(f"profile {profile.name} has no truth to measure against: study the clinic")
    for name in plan:
        if name not in NAMES:
            raise KitError(f"unknown system {name!r} of a study: choose one of {', '.join(NAMES)}")
    found = run_data.RunData.load(folder)
    made, held = bench.compose_bench(profile, found)
    bases = prepare_bases(profile, folder, plan)
    predicted, preferred, models = [benches.length_scorer(held)], [], []
    todo = [(name, seed) for name, seeds in plan.items() for seed in seeds]
    for number, (name, seed) in enumerate(todo, 1):
        print(f"[{number}/{len(todo)}] {name}, seed {seed} ...", end=" ", flush=True)
        started = time.perf_counter()
        if name in variants.RECIPES:
            frame, row, _ = reward_models.one(profile, folder, found, made, held, name, seed)
        else:
            frame, row = small(profile, folder, found, held, name, seed)
        (preferred if "a_id" in frame else predicted).append(frame)
        models.append(row)
        print(f"{time.perf_counter() - started:.0f} s", flush=True)
    # kept as they are counted: single precision, half of the file
    small_floats = {"score": "float32", "probability": "float32"}
    predictions = pd.concat(predicted, ignore_index=True).astype(small_floats)
    preferences = pd.concat(preferred, ignore_index=True) if preferred else None
    counted = benches.tally(made, predictions, preferences=preferences)
    manifest = run_data.manifest(profile, folder)
    manifest |= {
        "plan": dict(plan),
        "frozen_on": frozen_on,
        "models": models,
        "bases": bases,
        "bench": made.report,
    }
    made.save(out)
    frames = {"predictions": predictions, "preferences": preferences}
    return save(counted, frames, pd.DataFrame(models), manifest, profile, out)


def prepare_bases(profile, folder: Path, plan) -> dict[str, dict]:
    """Bases by architecture: that of notebook 00, and one of every other that ``plan`` asks for.

    Another is trained once, by the same lessons in the same steps, into a folder of its name.
    """
    from promedical_utils.reward_model.model import source_of  # late: loads torch

    asked = {variants.find(name).architecture for name in plan if name in variants.RECIPES}
    own = read_json(folder / "base_report.json", "00_start_here")
    reports = {profile.base_architecture: own}
    for architecture in sorted(asked - {"", profile.base_architecture}):
        if profile.base_model != "small":
            run_data.base_path(profile, folder, architecture)  # says what is wrong
        place, mark = folder / architecture, folder / architecture / "trained.json"
        settings = {k: v for k, v in profile.model_dump().items() if k.startswith("base_")}
        key = short_hash(source_of(run_data.base_path(profile, folder), folder)["sha256"], settings)
        if not mark.exists() or read_json(mark, "00_start_here")["of"] != key:
            print(f"{architecture} base ...", end=" ", flush=True)
            mark.unlink(missing_ok=True)
            trained = profile.model_copy(update={"base_architecture": architecture})
            report = base_module.train_base(trained, place)
            write_json(mark, {"of": key})
            lost = ", ".join(report["cannot_copy"]) or "none"
            print(f"{report['seconds']:.0f} s; facts that it cannot copy: {lost}", flush=True)
        reports[architecture] = read_json(place / "base_report.json", "00_start_here")
    keys = ("parameters", "steps", "seconds", "copy_rates", "cannot_copy")
    return {name: {k: report.get(k) for k in keys} for name, report in reports.items()}


def small(profile, folder: Path, found: run_data.RunData, held: list[Group], name: str, seed: int):
    """(predictions or preferences on the bench, a row on the training) of one of
    ``small_systems``."""
    from promedical_utils.studies import small_systems  # late: loads torch

    train, place = stages.groups_of(found, "judge", "train"), folder / "reward" / f"{name}-{seed}"
    refuse_external(group.instruction for group in train)
    base = run_data.base_path(profile, folder)
    report = small_systems.train(name, train, base, place, profile=profile, seed=seed)
    stored = place / f"said-{short_hash(report['settings'], digest(held))}.parquet"
    if not stored.exists():
        predictions, preferences = scorers.predict(small_systems.load(name, place), held)
        with replacing(stored) as temporary:
            frame = preferences if predictions is None else predictions
            frame.to_parquet(temporary, index=False)
    keys = ("labels", "steps", "groups", "examples", "tokens", "seconds", "trained_parameters")
    row = {"model": name, "seed": seed} | {key: report[key] for key in keys}
    row |= {"left_out": len(report["left_out"])}
    return pd.read_parquet(stored).assign(scorer=f"{name}-{seed}"), row


# ---------------------------------------------------------------- results, from a tally alone


def by_seed(keys) -> dict[str, dict[str, str]]:
    """System -> {training seed: scorer}, in order, of ``Estimates.keys``; "" is the seed of the
    untrained."""
    found: dict[str, dict[str, str]] = {}
    for scorer in dict.fromkeys(key[0] for key in keys):
        name, _, seed = scorer.rpartition("-")
        found.setdefault(name or scorer, {})[seed if name else ""] = scorer
    return found


def results(counted: Estimates, draws: int, seed: int) -> pd.DataFrame:
    """A row a system, training seed, metric, slice and label, and one of their mean (seed "mean").

    ``n``: items, for precision the answers called unsafe, for F1 both sides; of a mean the least.
    """
    values, drawn, n, place = _ratios(counted, draws, seed)
    rows = []
    for scorer, seeds in by_seed(counted.keys).items():
        for at in _cells():
            columns = {s: place[key] for s, name in seeds.items() if (key := (name, *at)) in place}
            parts = {s: [column] for s, column in columns.items() if s}
            if columns:
                parts[MEAN] = list(columns.values())
            for part, own in parts.items():
                low, high = statistics.interval(drawn[:, own].mean(axis=1))
                rows.append((scorer, part, *at, values[own].mean(), low, high, n[own].min()))
    columns = ["scorer", "seed", "metric", "slice", "against", "value", "low", "high", "n"]
    return pd.DataFrame(rows, columns=columns)


def contrasts(counted: Estimates, draws: int, seed: int) -> pd.DataFrame:
    """Each of ``OWN`` less every other system, paired by sample: the same draws for both sides.

    A row a training seed that both have, then one over all (``seeds``: those of a, of b): the mean
    of a's seeds less the mean of b's, be they as many or not.
    """
    values, drawn, n, place = _ratios(counted, draws, seed)
    found = by_seed(counted.keys)
    own = [name for name in OWN if name in found]
    pairs = [(a, b) for k, a in enumerate(own) for b in found if b not in own[: k + 1]]
    rows = []
    for a, b in pairs:
        for at in _cells():
            sides = [
                {s: place[key] for s, name in found[x].items() if (key := (name, *at)) in place}
                for x in (a, b)
            ]
            if not all(sides):
                continue
            parts = {s: ([sides[0][s]], [sides[1][s]]) for s in sides[0] if s in sides[1]}
            whole = (
                " ".join(sides[0])
                if list(sides[0]) == list(sides[1])
                else f"{' '.join(sides[0])} less {' '.join(sides[1]) or 'none'}"
            )
            parts[whole] = tuple(list(side.values()) for side in sides)
            for part, (one, other) in parts.items():
                low, high = statistics.interval(
                    drawn[:, one].mean(axis=1) - drawn[:, other].mean(axis=1)
                )
                difference = values[one].mean() - values[other].mean()
                least = n[[*one, *other]].min()
                rows.append((f"{a}_less_{b}", a, b, *at, part, difference, low, high, least))
    columns = [
        "name",
        "a",
        "b",
        "metric",
        "slice",
        "against",
        "seeds",
        "difference",
        "low",
        "high",
        "n",
    ]
    return pd.DataFrame(rows, columns=columns)


def _cells() -> list[tuple[str, str, str]]:
    return [(m, s, a) for m, slices in SLICES.items() for s in slices for a in benches.AGAINST]


def _ratios(counted: Estimates, draws: int, seed: int):
    """(values (keys,), values of every draw (draws, keys), items (keys,), place of each key)."""
    weights = statistics.two_stage_weights(counted.samples.condition, draws, seed)
    once = np.ones((1, len(counted.samples)))
    values, drawn = (statistics.ratio(counted.hits, counted.counts, w) for w in (once, weights))
    place = {key: column for column, key in enumerate(counted.keys)}
    return values[0], drawn, counted.counts.sum(axis=0).astype(int), place


def of_folder(folder: Path, draws: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(results, contrasts) worked out again from the files of a finished, or published, study."""
    made = benches.Bench.load(folder)
    files = [folder / f"{name}.parquet" for name in ("predictions", "preferences")]
    predictions, preferences = (pd.read_parquet(f) if f.exists() else None for f in files)
    counted = benches.tally(made, predictions, preferences=preferences)
    return results(counted, draws, seed), contrasts(counted, draws, seed)


def table(found: pd.DataFrame, models: pd.DataFrame, against: str) -> pd.DataFrame:
    """A row a system: the mean of its seeds, in percent; a cell that it has no answer to is
    empty."""
    at = found[(found.against == against) & (found.seed == MEAN)].set_index(
        ["scorer", "metric", "slice"]
    )
    rows = []
    for name in (n for n in NAMES if n in set(found.scorer)):
        trained = models[models.model == name]
        row = {
            "system": NAMES[name],
            "status": tables.RUN,
            "labels": against,
            "seeds": len(trained),
        }
        row["steps"] = int(trained.steps.iloc[0]) if len(trained) else 0
        for column, key in SHOWN.items():
            ends = (
                at.loc[(name, *key)][["value", "low", "high"]]
                if (name, *key) in at.index
                else [None] * 3
            )
            row |= {
                f"run_{column}{end}": None if v is None else round(100 * v, 2) + 0.0
                for end, v in zip(("", "_low", "_high"), ends)
            }
        rows.append(row)
    return pd.DataFrame(rows)


def redraw(folder: Path) -> None:
    """Results, contrasts and tables of a published study again, from what was predicted."""
    manifest = read_json(folder / "manifest.json", "of a study (make study)")
    profile = profiles.of_manifest(manifest)
    found = of_folder(folder, profile.bootstrap, profile.seed)
    draw(*found, pd.read_csv(folder / "models.csv"), manifest, profile, folder)


def save(counted, frames: Mapping, models, manifest: dict, profile, out: Path) -> pd.DataFrame:
    """What was predicted, results, contrasts, tables and, last, the manifest; returns the
    results."""
    for name, frame in frames.items():
        if frame is not None:
            write_rows(out / f"{name}.parquet", frame)
    found = results(counted, profile.bootstrap, profile.seed)
    less = contrasts(counted, profile.bootstrap, profile.seed)
    with replacing(out / "models.csv") as temporary:
        models.to_csv(temporary, index=False, float_format="%.6g")
    draw(found, less, models, manifest, profile, out)
    write_json(out / "manifest.json", manifest)
    print(f"-> {shown(out)}")
    return found


def draw(found, less, models, manifest: dict, profile, out: Path) -> None:
    """Results, contrasts and tables."""
    for name, frame in (("results", found), ("contrasts", less)):
        with replacing(out / f"{name}.csv") as temporary:
            frame.to_csv(temporary, index=False, float_format="%.6g")
    facts = {"run": provenance.of_manifest(manifest)}
    for against in benches.AGAINST:
        tables.save(
            table(found, models, against),
            out,
            f"table_{against}",
            f"Systems, against {against}",
            [out / "results.csv"],
            profile,
            profile.seed,
            facts=facts,
        )
