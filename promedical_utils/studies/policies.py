"""The study of policies: full GRPO, its ablations, other optimisers, the compared systems' rewards.

Several are trained side by side, a core each: two threads on so small a model gain less than two
runs.
"""

import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_utils.core import fingerprint as content
from promedical_utils.core import plotting, provenance
from promedical_utils.core.estimates import Estimates
from promedical_utils.core.profiles import Profile
from promedical_utils.core.run_data import RunData, base_path
from promedical_utils.core.workspace import replacing, short_hash, write_json
from promedical_utils.evaluation import policy_metrics
from promedical_utils.evaluation.policy_metrics import COMPARED, METRICS, SEPARATOR, STUDY
from promedical_utils.pipeline import policies, reward_models
from promedical_utils.report import figures as drawing
from promedical_utils.report import tables
from promedical_utils.reward_model.variants import find
from promedical_utils.rubric import preferences
from promedical_utils.studies import plans, results
from promedical_utils.studies.study import Study

BASE, FULL = policy_metrics.BASE, policy_metrics.FULL
VARIANTS = plans.kind_of("policies")["labels"]  # name -> label, group, settings, veto, remark
COLUMNS = {column: (metric, "all") for column, metric in STUDY.items()}
COLUMNS |= {
    f"{column}_less_{side}": (STUDY[column], "all", results.LESS, other)
    for side, other in (("base", BASE), ("full", FULL))
    for column in COMPARED
}
COLUMNS |= {"violations_over_base": ("violation_rate", "all", results.OVER, BASE)}
REPORTED = ("steps", "stopped_early", "seconds", "hacking", "throughput", "unscored")


class Policies(Study):
    kind, title = "policies", "Policies"

    def known(self) -> tuple[str, ...]:
        return tuple(name for name in VARIANTS if name != BASE)

    def train(self, profile, folder, data, out) -> dict:
        """Also into ``out``: evaluation.parquet and curves.parquet.

        ``folder`` keeps reward models and policies, which studies of the same folder share.
        """
        started = time.time()
        (out / "policies.csv").unlink(missing_ok=True)  # what the variants are called is read anew
        recipes = sorted({settled(profile, v).reward_model for v in self.plan})
        for number, recipe in enumerate(recipes, 1):
            print(f"reward model [{number}/{len(recipes)}] {recipe} ...", end=" ", flush=True)
            begun = time.perf_counter()
            prepare_reward_model(profile, folder, data, recipe)
            print(f"{time.perf_counter() - begun:.0f} s", flush=True)
        trained = [(variant, seed) for variant, seeds in self.plan.items() for seed in seeds]
        rows = _side_by_side(profile, folder, [(BASE, 0), *trained])
        answers = [
            pd.read_parquet(place(folder, *task) / "evaluation.parquet")
            for task in [(BASE, 0), *trained]
        ]
        curves = [
            pd.read_csv(place(folder, variant, seed) / "curve.csv").assign(
                variant=variant, seed=seed
            )
            for variant, seed in trained
        ]
        evaluation = pd.concat(answers, ignore_index=True).drop(columns="text")
        for name, frame in (
            ("evaluation", evaluation),
            ("curves", pd.concat(curves, ignore_index=True)),
        ):
            with replacing(out / f"{name}.parquet") as temporary:
                frame.to_parquet(temporary, index=False)
        prompts = int(evaluation.groupby(["policy", "seed"]).size().max())
        minutes = round((time.time() - started) / 60, 1)
        return {"policies": rows, "prompts": prompts, "minutes": minutes}

    def sums(self, folder: Path) -> Estimates:
        return counted(pd.read_parquet(folder / "evaluation.parquet"))

    def named(self, folder: Path) -> pd.DataFrame:
        """Label, remark, group and veto by variant: of a drawn study its own, else of the kind.

        A name may have gone from the kind, or have been changed, since.
        """
        columns = ["label", "remark", "group", "veto"]
        if (folder / "policies.csv").exists():
            drawn = pd.read_csv(folder / "policies.csv").set_index("variant")[columns]
            return drawn.fillna({"remark": "", "group": "", "label": ""})
        variants = [BASE, *self.plan]
        facts = [{"remark": "", "veto": True} | VARIANTS[name] for name in variants]
        return pd.DataFrame(facts, index=variants)[columns]

    def show(self, found, profile, manifest, out) -> None:
        shown = table(found, self.named(out))
        reported = tables.reported("ablation") if "dpo" in set(found.system) else None
        frame = tables.build_policy_study(reported, shown)
        self.save_table(frame, out, "table", self.title, profile, manifest)
        facts, note = {"run": provenance.of_manifest(manifest)}, tables.note(profile, profile.seed)
        facts |= {"sources": tables.digests([out / "results.csv", out / "curves.parquet"])}
        plotting.save(drawing.plot_policy_study, shown, out, "policies", note, facts)
        curves = pd.read_parquet(out / "curves.parquet")
        curves = curves[curves.variant.isin([FULL, "hacking"])]
        if len(curves):
            first = curves[curves.seed == curves.groupby("variant").seed.transform("min")]
            first = first.assign(run=first.variant.map(lambda name: VARIANTS[name]["label"]))
            plotting.save(drawing.plot_gold_over_kl, first, out, "gold_over_kl", note, facts)
        write_json(out / "goals.json", policy_metrics.goals(shown))


def counted(evaluation: pd.DataFrame) -> Estimates:
    """Sums of the kind's metrics by patient, policy and seed."""
    sums, against = policy_metrics.sums(evaluation), policy_metrics.labels(evaluation)
    columns = [
        column
        for column, (_, _, metric, part, labels) in enumerate(sums.keys)
        if metric in STUDY.values() and (part, labels) == ("all", against)
    ]
    keys = [sums.keys[column] for column in columns]
    return Estimates(
        sums.samples, results.KEY, keys, sums.hits[:, columns], sums.counts[:, columns]
    )


def table(found: pd.DataFrame, named: pd.DataFrame) -> pd.DataFrame:
    """One row a variant, in the order of ``named``; one that the results lack is empty.

    ``COLUMNS`` with _low and _high, and of values _seeds (a value a training seed, joined by "|").
    In percent, S2 and tokens as numbers; differences in points.
    """
    cells, rows = results.Cells(found), []
    [against] = cells.against
    for name, facts in named.iterrows():
        counted = cells.means.get((name, "violation_rate", "all", against), {"n": 0})
        row = {"variant": name, **facts, "labels": against, "n": int(counted["n"]), "seeds": 0}
        for column, (metric, *part) in COLUMNS.items():
            row |= cells.wide(name, {column: (metric, *part)}, against)
            if column in STUDY:
                each = cells.trained.get((name, metric, *part, against), {})
                values = (f"{METRICS[metric][1] * value:.6g}" for value in each.values())
                row[f"{column}_seeds"] = SEPARATOR.join(values) or np.nan
                row["seeds"] = max(row["seeds"], len(each))
        rows.append(row)
    return pd.DataFrame(rows)


# ---------------------------------------------------------------- training


def settled(profile: Profile, variant: str) -> Profile:
    """The profile with a variant's settings, checked as a whole."""
    settings = VARIANTS[variant].get("settings", {})
    return Profile.model_validate(profile.model_dump(mode="json") | settings)


def place(folder: Path, variant: str, seed: int) -> Path:
    # not below "policies", which is the folder of that study's tables
    return folder / "trained" / f"{variant}-{seed}"


def prepare_reward_model(profile, folder: Path, data: RunData, name: str) -> None:
    """Train and calibrate the reward model ``name`` in ``folder``/reward, unless that is done."""
    from promedical_utils.reward_model import (
        model as reward_model,  # late: loads torch, and drawing does without
    )

    recipe, where = find(name), folder / "reward" / name
    reward_models.train_reward_model(profile, folder, data, recipe, where)
    if recipe.conditional and not (where / "calibration.json").exists():
        heldout = preferences.groups_of(data, "truth", "calibration")
        scores = reward_model.load(where).score_groups(heldout)
        reward_models.calibrate(profile, data, recipe, where, scores)


def _side_by_side(profile, folder, todo) -> list[dict]:
    """Rows on each policy's training, in the order of ``todo``; a process a core, one on a GPU."""
    import torch

    workers = 1 if torch.cuda.is_available() else os.cpu_count() or 1
    given, rows = os.environ.get("OMP_NUM_THREADS"), {}
    os.environ["OMP_NUM_THREADS"] = "1"  # read when a worker starts
    try:
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(todo)), spawned) as pool:
            futures = {pool.submit(one, profile, folder, *task): task for task in todo}
            for number, future in enumerate(as_completed(futures), 1):
                variant, seed = futures[future]
                try:
                    rows[variant, seed] = future.result()
                except Exception:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
                took = rows[variant, seed]["seconds"]
                print(f"[{number}/{len(todo)}] {variant}, seed {seed}: {took:.0f} s", flush=True)
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if given is not None:
            os.environ["OMP_NUM_THREADS"] = given
    return [rows[task] for task in todo]


def one(profile: Profile, folder: Path, variant: str, seed: int) -> dict:
    """Train and evaluate one policy (or the base alone) in a process of its own; a row on it."""
    from promedical_utils.reward_model import hub  # loads torch

    hub.silence()
    data, where = RunData.load(folder), place(folder, variant, seed)
    if variant == BASE:
        _evaluate(profile, folder, data, {BASE: None}, where, BASE, 0)
        return {"variant": BASE, "seed": 0, "seconds": 0.0}
    profile = settled(profile, variant)
    report = policies.align(profile, folder, data, where, seed=seed)
    _evaluate(profile, folder, data, {variant: where}, where, variant, seed, report["fingerprint"])
    return {
        "variant": variant,
        "seed": seed,
        "settings": VARIANTS[variant].get("settings", {}),
        "best_step": report["best"]["step"],
        "last_step": report["last"]["step"],
        **{key: report[key] for key in REPORTED},
    }


def _evaluate(profile, folder, data, folders, where, variant, seed, fingerprint="") -> None:
    """Answers to the bench prompts, evaluation.parquet and verdicts.parquet, unless they are
    there."""
    from promedical_utils.reward_model import hub  # loads torch

    base = hub.identity(hub.source_of(base_path(profile, folder), where))
    code = content.of_code({"promedical_utils.pipeline.policies"})
    asked = profile.policy_prompts, profile.bench_samples, profile.seed
    key = short_hash(fingerprint, base, code, *asked)
    mark = where / "evaluated.json"
    if mark.exists() and json.loads(mark.read_text(encoding="utf-8"))["of"] == key:
        return
    frames = policies.evaluate_policies(profile, folder, data, folders)
    for name, frame in zip(("evaluation", "verdicts"), frames, strict=True):
        with replacing(where / f"{name}.parquet") as temporary:
            frame.assign(seed=seed).to_parquet(temporary, index=False)
    write_json(mark, {"of": key, "variant": variant})
