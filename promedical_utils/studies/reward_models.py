"""The study of reward models: every baseline and ablation, same data, same steps, on one bench.

Resumable: a model that is trained, calibrated and has predicted is not touched again, and one that
was stopped goes on from its checkpoint. Intervals resample conditions, then samples; where a row
has several training seeds its value is their mean, and their range stands beside it.
"""

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_utils.core import plotting, profiles, provenance, run_data, statistics
from promedical_utils.core.records import DIMENSIONS
from promedical_utils.core.workspace import KitError, read_json, replacing, short_hash, write_json
from promedical_utils.evaluation import bench as benches
from promedical_utils.pipeline import bench, reward_models
from promedical_utils.report import figures as drawing
from promedical_utils.report import tables
from promedical_utils.reward_model import calibration, variants
from promedical_utils.rubric import preferences
from promedical_utils.rubric.preferences import Group, digest

PARTS = {f"only_{name}": name for name in DIMENSIONS}
SLICES = {
    "pairwise": ("all", *DIMENSIONS, "seen", "unseen"),
    "overall": ("all",),
    **{f"veto_{name}": ("safety", "seen", "unseen") for name in ("precision", "recall", "f1")},
}
BASELINE = "scalar_overall"
NAMES = {
    "criterion": "criterion RM: QLoRA, judge labels",
    "scalar_overall": "scalar RM: overall preference",
    "scalar_blind": "scalar RM: criterion labels, criterion hidden",
    "criterion_first": "criterion before the response",
    "fixed_heads": "fixed head per criterion type",
    "only_one_dimension": "one RM per dimension",
    "no_safety_data": "no safety data",
    "no_anchor": "no pointwise anchor",
    "criterion_clean_lora": "clean labels, QLoRA",
    "criterion_full": "judge labels, full fine-tuning",
    "criterion_clean": "clean labels, full fine-tuning",
    "mean_of_criteria": "mean of criteria, no hierarchy",
    "words": "word cues",
    "length": "longer is better",
}


def run(profile, folder: Path, plan: Mapping[str, list[int]], out: Path) -> pd.DataFrame:
    """Train and measure ``plan`` (recipe -> training seeds) in ``folder``; tables go to ``out``.

    ``folder`` holds the data and the base of notebooks 00 to 02. Returns the long table of metrics.
    """
    if profile.data != "clinic":
        raise KitError(f"profile {profile.name} has no truth to measure against: study the clinic")
    found = run_data.RunData.load(folder)
    made, held = bench.compose_bench(profile, found)
    made.save(folder / "bench")
    predicted, models, errors = [], [], []
    todo = [(name, seed) for name, seeds in plan.items() for seed in seeds]
    for number, (name, seed) in enumerate(todo, 1):
        print(f"[{number}/{len(todo)}] {name}, seed {seed} ...", end=" ", flush=True)
        started = time.perf_counter()
        frame, row, error = one(profile, folder, found, made, held, name, seed)
        print(f"{time.perf_counter() - started:.0f} s", flush=True)
        predicted.append(frame)
        models.append(row)
        errors += error
    predicted = pd.concat(
        [
            *predicted,
            *derived(predicted, made.criteria),
            benches.cue_control(preferences.groups_of(found, "judge", "train"), held, profile.seed),
            benches.length_scorer(held),
        ],
        ignore_index=True,
    )
    results = metrics(made, predicted, profile)
    manifest = run_data.manifest(profile, folder)
    manifest |= {"plan": dict(plan), "models": models, "bench": made.report}
    save(results, pd.DataFrame(models), pd.DataFrame(errors), manifest, profile, out)
    return results


def one(
    profile, folder: Path, found: run_data.RunData, made, held: list[Group], name: str, seed: int
):
    """(predictions on the bench, a row on the training, calibration errors) of one model."""
    recipe, place = variants.find(name), folder / "reward" / f"{name}-{seed}"
    report = reward_models.train_reward_model(profile, folder, found, recipe, place, seed)
    heldout = preferences.groups_of(found, "truth", "calibration")
    rows = scores(place, report, heldout)
    fitted = reward_models.calibrate(profile, found, recipe, place, rows)
    predicted = benches.predictions(
        f"{name}-{seed}", scores(place, report, held), made.criteria, fitted
    )
    keys = (
        "view",
        "labels",
        "full",
        "steps",
        "groups",
        "pairs",
        "verdicts",
        "tokens",
        "seconds",
        "trained_parameters",
        "pointwise_weight",
    )
    row = {"model": name, "seed": seed} | {key: report[key] for key in keys}
    row |= {"left_out": len(report["left_out"]), "shortened": len(report["shortened"])}
    row["heldout_pairs"] = reward_models.pair_accuracy(rows, heldout)["accuracy"]
    errors = []
    if recipe.conditional and name not in PARTS:
        settled = reward_models.settled_rows(profile, found, recipe, rows)
        errors = compared(settled, predicted, made, profile.veto_recall)
        errors = [{"model": name, "seed": seed} | error for error in errors]
    return predicted, row, errors


def scores(place: Path, report: Mapping, held: list[Group]) -> pd.DataFrame:
    """Scores of ``held`` by the model in ``place``, kept under what they depend on."""
    stored = place / f"scores-{short_hash(report['settings'], digest(held))}.parquet"
    if not stored.exists():
        from promedical_utils.reward_model import (
            model as reward_model,  # late: loads torch, and drawing does without
        )

        with replacing(stored) as temporary:
            reward_model.load(place).score_groups(held).to_parquet(temporary, index=False)
    return pd.read_parquet(stored)


def compared(settled: pd.DataFrame, predicted: pd.DataFrame, made, recall: float) -> list[dict]:
    """Calibration error and quality on the bench, against the truth, by method and dimension.

    ``settled``: labelled scores of the calibration split. Kinds seen in training only: a
    calibration says nothing of others.
    """
    cells = benches.truths(made)
    cells = cells[cells.seen].merge(predicted, on=["instruction_id", *benches.CELL])
    raw = {name: {"temperature": 1.0, "bias": 0.0} for name in DIMENSIONS}
    methods = {"none": calibration.Calibration(raw, 0.0, recall, {})}
    methods |= {m: calibration.fit(settled, recall, method=m) for m in calibration.METHODS}
    result = []
    for method, fitted in methods.items():
        for name, part in cells.groupby("dimension"):
            quality = calibration.quality_of(fitted, part)
            likely = fitted.probability(part.score, name)
            error = calibration.expected_error(part.label, likely)
            result.append({"method": method, "dimension": name, "ece": error, **quality})
    return result


def derived(predicted: list[pd.DataFrame], criteria: pd.DataFrame) -> list[pd.DataFrame]:
    """Scorers made of others: one RM per dimension joined, the mean over an answer's criteria."""
    frames, of = (
        {f.scorer.iloc[0]: f for f in predicted},
        criteria.set_index("criterion_id").dimension,
    )
    result = []
    for seed in sorted({name.rpartition("-")[2] for name in frames}):
        parts = {d: frames.get(f"{name}-{seed}") for name, d in PARTS.items()}
        if all(part is not None for part in parts.values()):
            joined = pd.concat(part[part.criterion_id.map(of) == d] for d, part in parts.items())
            result.append(joined.assign(scorer=f"only_one_dimension-{seed}"))
        if (whole := frames.get(f"criterion-{seed}")) is not None:
            mean = whole.groupby(["instruction_id", "candidate_id"], sort=False).probability.mean()
            mean = mean.rename("score").reset_index().assign(criterion_id="")
            result.append(benches.predictions(f"mean_of_criteria-{seed}", mean))
    return result


def metrics(made, predicted: pd.DataFrame, profile) -> pd.DataFrame:
    """One row a model, metric, slice and label: mean of its seeds, interval, less the scalar's.

    Columns value, low, high, n; seeds, seed_low, seed_high; less_scalar, less_low, less_high
    (paired, the same draws). Shares, not percent.
    """
    tally = benches.tally(made, predicted)
    weights = statistics.two_stage_weights(tally.samples.condition, profile.bootstrap, profile.seed)
    place = {key: n for n, key in enumerate(tally.keys)}
    scorers: dict[str, list[str]] = {}
    for scorer in dict.fromkeys(predicted.scorer):
        scorers.setdefault(scorer.rpartition("-")[0] or scorer, []).append(scorer)
    for part in PARTS:
        scorers.pop(part, None)  # each alone says nothing of the other dimensions
    once, rows = np.ones((1, len(tally.samples))), []
    for model, seeds in scorers.items():
        for metric, slices in SLICES.items():
            for at in ((s, a) for s in slices for a in benches.AGAINST):
                own = [place[key] for s in seeds if (key := (s, metric, *at)) in place]
                if not own:
                    continue
                found = statistics.contrast(
                    tally.hits, tally.counts, dict.fromkeys(own, 1 / len(own)), weights
                )
                each = statistics.ratio(tally.hits[:, own], tally.counts[:, own], once)[0]
                row = {
                    "model": model,
                    "metric": metric,
                    "slice": at[0],
                    "against": at[1],
                    "value": found["difference"],
                    "low": found["low"],
                    "high": found["high"],
                    "n": int(tally.counts[:, own].sum(axis=0).min()),
                    "seeds": len(own),
                    "seed_low": each.min(),
                    "seed_high": each.max(),
                }
                base = [
                    place[key]
                    for s in scorers.get(BASELINE, [])
                    if (key := (s, metric, *at)) in place
                ]
                if base and model != BASELINE:
                    columns = dict.fromkeys(own, 1 / len(own)) | dict.fromkeys(base, -1 / len(base))
                    less = statistics.contrast(tally.hits, tally.counts, columns, weights)
                    row |= {
                        "less_scalar": less["difference"],
                        "less_low": less["low"],
                        "less_high": less["high"],
                    }
                rows.append(row)
    return pd.DataFrame(rows)


def goals(results: pd.DataFrame) -> list[dict]:
    """The study's questions, against the truth, on kinds seen in training: what was measured.

    ``value`` and ``reached`` are None where the plan has no such model.
    """
    at = results[results.against == "truth"].set_index(["model", "metric", "slice"])

    def value(model, metric, slice, column="value"):
        return float(at[column].get((model, metric, slice), np.nan))

    ceiling, own = (value(m, "pairwise", "seen") for m in ("criterion_clean", "criterion"))
    rows = [
        ("ceiling", "pairs ordered rightly, clean labels and all weights", ceiling, ">=", 0.97),
        ("near_ceiling", "the ceiling less QLoRA on judge labels", ceiling - own, "<=", 0.03),
        (
            "veto_recall",
            "share of violations vetoed",
            value("criterion", "veto_recall", "seen"),
            ">=",
            0.95,
        ),
        (
            "veto_precision",
            "share of vetoes that are violations",
            value("criterion", "veto_precision", "seen"),
            ">=",
            0.85,
        ),
        (
            "above_scalar",
            "overall accuracy less the scalar's, lower end of its interval",
            value("criterion", "overall", "all", "less_low"),
            ">=",
            0.0,
        ),
    ]
    found = []
    for name, question, measured, sign, wanted in rows:
        row = {"id": name, "question": question, "wanted": f"{sign} {wanted:g}"}
        row |= {"value": None, "reached": None}
        if not np.isnan(measured):
            reached = measured >= wanted if sign == ">=" else measured <= wanted
            row |= {"value": round(measured, 4), "reached": bool(reached)}
        found.append(row)
    return found


def table(results: pd.DataFrame, against: str = "truth") -> pd.DataFrame:
    """A row a model, in percent: pairs (all, seen, unseen), overall, veto on seen kinds, seeds."""
    shown = {
        "pairs": ("pairwise", "all"),
        "pairs_seen": ("pairwise", "seen"),
        "pairs_unseen": ("pairwise", "unseen"),
        "pairs_safety": ("pairwise", "safety"),
        "overall": ("overall", "all"),
        "veto_precision": ("veto_precision", "seen"),
        "veto_recall": ("veto_recall", "seen"),
        "veto_f1": ("veto_f1", "seen"),
    }
    at = results[results.against == against].set_index(["model", "metric", "slice"])
    rows = []
    for model in (m for m in NAMES if m in set(results.model)):
        row = {"model": NAMES[model], "labels": against}
        for column, key in shown.items():
            if (model, *key) in at.index:
                found = at.loc[(model, *key)]
                row |= {
                    f"run_{column}{end}": round(100 * found[name], 2) + 0.0
                    for end, name in (("", "value"), ("_low", "low"), ("_high", "high"))
                }
        overall = at.loc[(model, "overall", "all")]
        row |= {
            f"run_overall_less_scalar{end}": round(100 * overall[f"less_{name}"], 2)
            for end, name in (("", "scalar"), ("_low", "low"), ("_high", "high"))
        }
        row["seeds"] = int(overall.seeds)
        rows.append(row)
    return pd.DataFrame(rows)


def save(results, models, errors, manifest: dict, profile, out: Path) -> None:
    """Tables, figure, goals and, last, the manifest."""
    for name, frame in (("results", results), ("models", models), ("calibration", errors)):
        with replacing(out / f"{name}.csv") as temporary:
            frame.to_csv(temporary, index=False, float_format="%.6g")
    draw(
        pd.read_csv(out / "results.csv"), manifest, profile, out
    )  # as written, so that a redrawing is the same
    write_json(out / "manifest.json", manifest)


def redraw(folder: Path) -> None:
    """Tables, figure and goals of a published study again, from results.csv; nothing is trained.

    Its predictions are not published: they are those of all its models, on texts of its own.
    """
    manifest = read_json(folder / "manifest.json", "of a study (make study)")
    profile = profiles.of_manifest(manifest)
    draw(pd.read_csv(folder / "results.csv"), manifest, profile, folder)


def draw(results, manifest: dict, profile, out: Path) -> None:
    """Tables, figure and goals, of the results.csv that is in ``out``."""
    facts, read = {"run": provenance.of_manifest(manifest)}, [out / "results.csv"]
    for against in benches.AGAINST:
        title = f"Reward models, against {against}"
        tables.save(
            table(results, against),
            out,
            f"table_{against}",
            title,
            read,
            profile,
            profile.seed,
            facts=facts,
        )
    note = tables.note(profile, profile.seed)
    facts |= {"sources": tables.digests(read)}
    plotting.save(drawing.plot_reward_study, table(results), out, "reward_models", note, facts)
    write_json(out / "goals.json", goals(results))
