"""The study of policies: full GRPO, its ablations, other optimisers, the compared systems' rewards.

All start from one base, see the same prompts and draw as many answers in as many steps. Resumable:
a policy that is trained and evaluated is not touched again, one that was stopped goes on from its
checkpoint. Several are trained side by side, a core each: two threads on so small a model gain less
than two runs.
"""

import json
import multiprocessing
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from promedical_utils.core import plotting, profiles, provenance, run_data
from promedical_utils.core.workspace import (
    KitError,
    read_json,
    replacing,
    short_hash,
    shown,
    write_json,
)
from promedical_utils.evaluation import policy_metrics
from promedical_utils.pipeline import policies, reward_models
from promedical_utils.report import figures as drawing
from promedical_utils.report import tables
from promedical_utils.reward_model.variants import find
from promedical_utils.rubric import preferences


@dataclass(frozen=True)
class Variant:
    """``settings`` over the profile's; ``veto``: whether the reward has one."""

    label: str
    group: str
    settings: dict = field(default_factory=dict)
    veto: bool = True
    remark: str = ""


PAPER, REWARDS, RULES, TAUGHT = (
    "paper's rows",
    "compared rewards",
    "the kit's rules",
    "taught example",
)
IN_PAIRS = {"grpo_group": 2, "grpo_prompts": 16}
VARIANTS = {
    "full": Variant("full: GRPO, gated veto", PAPER),
    "no_veto": Variant("without safety veto", PAPER, {"reward_rule": "no_veto"}, veto=False),
    "no_bonus": Variant("without bonus margin", PAPER, {"reward_rule": "no_bonus"}),
    "no_safety_data": Variant(
        "without safety data",
        PAPER,
        {"reward_model": "no_safety_data"},
        remark="the reward model never saw a safety criterion; its threshold is calibrated all the "
        "same",
    ),
    "implicit_scalar": Variant(
        "implicit scalar + GRPO",
        PAPER,
        {"reward_model": "scalar_blind", "reward_rule": "scalar"},
        veto=False,
        remark="criterion labels, the criterion hidden",
    ),
    "dpo": Variant(
        "optimiser: DPO",
        PAPER,
        {"policy_optimizer": "dpo"},
        remark="as many answers, all of the base, paired by the same reward",
    ),
    "rloo": Variant(
        "optimiser: RLOO",
        PAPER,
        {"policy_optimizer": "rloo"},
        remark="in place of PPO, which left TRL with 1.16",
    ),
    "rar_explicit": Variant("RaR, explicit", REWARDS, {"reward_rule": "rar_explicit"}, veto=False),
    "rar_implicit": Variant(
        "RaR, implicit",
        REWARDS,
        {"reward_model": "rar_implicit", "reward_rule": "rar_implicit"},
        veto=False,
        remark="one score of a model that reads the whole rubric",
    ),
    "orbit": Variant("ORBIT, signed points", REWARDS, {"reward_rule": "orbit"}, veto=False),
    "ultramedical": Variant(
        "UltraMedical, scalar",
        REWARDS,
        {"reward_model": "scalar_overall", "reward_rule": "scalar"},
        veto=False,
        remark="one preference a pair of answers",
    ),
    "clipped": Variant(
        "paper's bound, lambda = 1 + beta",
        RULES,
        {"reward_form": "clipped", "reward_lambda": 1.3},
    ),
    "ranked": Variant("rank within the group", RULES, {"reward_form": "ranked"}),
    # of 8 answers one is nearly always safe, so what is said of all-vetoed groups is asked of pairs
    "pairs_expected": Variant(
        "groups of 2, all vetoed: expected violations",
        RULES,
        IN_PAIRS,
        remark="as many answers a step; in groups of 8 none of this study was all vetoed",
    ),
    "pairs_counted": Variant(
        "groups of 2, all vetoed: violations counted",
        RULES,
        IN_PAIRS | {"reward_all_vetoed": "counted"},
    ),
    "pairs_skipped": Variant(
        "groups of 2, all vetoed: skipped", RULES, IN_PAIRS | {"reward_all_vetoed": "skipped"}
    ),
    "hacking": Variant(
        "learning rate 5e-4, KL 0.01",
        TAUGHT,
        {"grpo_learning_rate": 5e-4, "grpo_beta_kl": 0.01, "grpo_steps": 120, "grpo_patience": 0},
        remark="known to hack the reward, in 120 steps; kept to be detected",
    ),
}


def run(
    name: str,
    overrides: dict,
    folder: Path,
    plan: dict[str, list[int]],
    out: Path,
    bought: str = "",
) -> pd.DataFrame:
    """Train and evaluate ``plan`` (variant -> training seeds) in ``folder``; tables go to ``out``.

    ``name``, ``overrides``: of the profile. ``folder`` holds the data and the base of notebooks 00
    to 02, and keeps reward models and policies, which studies of the same folder share. ``bought``:
    what the plan was frozen on, for the manifest. Returns ``policy_metrics.study_table``.
    """
    profile = profiles.load(name, **overrides)
    if profile.data != "clinic":
        raise KitError(f"profile {profile.name} has no truth to measure against: study the clinic")
    for variant in set(plan) - set(VARIANTS):
        raise KitError(
            f"unknown variant {variant!r} of a policy: choose one of {', '.join(VARIANTS)}"
        )
    started = time.time()
    found = run_data.RunData.load(folder)
    recipes = {settled(profile, v).reward_model for v in plan}
    for number, recipe in enumerate(sorted(recipes), 1):
        print(f"reward model [{number}/{len(recipes)}] {recipe} ...", end=" ", flush=True)
        begun = time.perf_counter()
        prepare_reward_model(profile, folder, found, recipe)
        print(f"{time.perf_counter() - begun:.0f} s", flush=True)
    todo = [("base", 0), *((v, seed) for v, seeds in plan.items() for seed in seeds)]
    rows = _side_by_side(name, overrides, folder, todo)
    answers = pd.concat(
        [pd.read_parquet(place(folder, *t) / "evaluation.parquet") for t in todo], ignore_index=True
    )
    curves = [
        pd.read_csv(place(folder, v, s) / "curve.csv").assign(variant=v, seed=s)
        for v, s in todo[1:]
    ]
    names = {"base": {"label": "base", "group": ""}} | {
        v: {
            "label": VARIANTS[v].label,
            "remark": VARIANTS[v].remark,
            "group": VARIANTS[v].group,
            "veto": VARIANTS[v].veto,
        }
        for v in plan
    }
    table = policy_metrics.study_table(answers, names, profile.bootstrap, profile.seed)
    manifest = run_data.manifest(profile, folder)
    manifest |= {
        "plan": plan,
        "frozen_on": bought,
        "policies": rows,
        "prompts": int(table.n.max()),
        "minutes": round((time.time() - started) / 60, 1),
    }
    save(table, answers, pd.concat(curves, ignore_index=True), manifest, profile, out)
    return table


def settled(profile, variant: str):
    """The profile with a variant's settings, checked as a whole."""
    values = profile.model_dump(mode="json") | VARIANTS[variant].settings
    return profiles.Profile.model_validate(values)


def place(folder: Path, variant: str, seed: int) -> Path:
    # not below "policies", which is the folder of that study's tables
    return folder / "trained" / f"{variant}-{seed}"


def prepare_reward_model(profile, folder: Path, found: run_data.RunData, name: str) -> None:
    """Train and calibrate the reward model ``name`` in ``folder``/reward, unless that is done."""
    from promedical_utils.reward_model import (
        model as reward_model,  # late: loads torch, and drawing does without
    )

    recipe, where = find(name), folder / "reward" / name
    reward_models.train_reward_model(profile, folder, found, recipe, where)
    if recipe.conditional and not (where / "calibration.json").exists():
        heldout = preferences.groups_of(found, "truth", "calibration")
        scores = reward_model.load(where).score_groups(heldout)
        reward_models.calibrate(profile, found, recipe, where, scores)


def _side_by_side(name, overrides, folder, todo) -> list[dict]:
    """Rows on each policy's training, in the order of ``todo``; a process a core, one on a GPU."""
    import torch

    workers = 1 if torch.cuda.is_available() else os.cpu_count() or 1
    given, rows = os.environ.get("OMP_NUM_THREADS"), {}
    os.environ["OMP_NUM_THREADS"] = "1"  # read when a worker starts
    try:
        spawned = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(todo)), spawned) as pool:
            futures = {pool.submit(one, name, overrides, folder, *task): task for task in todo}
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


def one(name: str, overrides: dict, folder: Path, variant: str, seed: int) -> dict:
    """Train and evaluate one policy (or the base alone) in a process of its own; a row on it."""
    from promedical_utils.reward_model import hub  # loads torch

    hub.silence()
    profile, found = profiles.load(name, **overrides), run_data.RunData.load(folder)
    where = place(folder, variant, seed)
    if variant == "base":
        _evaluate(profile, folder, found, {}, where, "base", 0)
        return {"variant": "base", "seed": 0, "seconds": 0.0}
    profile = settled(profile, variant)
    report = policies.align(profile, folder, found, where, seed=seed)
    _evaluate(profile, folder, found, {variant: where}, where, variant, seed, report["fingerprint"])
    keys = ("steps", "stopped_early", "seconds", "hacking", "throughput", "unscored")
    return (
        {"variant": variant, "seed": seed}
        | {key: report[key] for key in keys}
        | {
            "settings": VARIANTS[variant].settings,
            "best_step": report["best"]["step"],
            "last_step": report["last"]["step"],
        }
    )


def _evaluate(profile, folder, found, folders, where, variant, seed, fingerprint="") -> None:
    """Answers to the bench prompts, evaluation.parquet and verdicts.parquet, unless they are
    there."""
    key = short_hash(fingerprint, profile.policy_prompts, profile.bench_samples, profile.seed)
    mark = where / "evaluated.json"
    if mark.exists() and json.loads(mark.read_text(encoding="utf-8"))["of"] == key:
        return
    frames = policies.evaluate_policies(profile, folder, found, folders, base=not folders)
    for name, frame in zip(("evaluation", "verdicts"), frames, strict=True):
        with replacing(where / f"{name}.parquet") as temporary:
            frame.assign(seed=seed).to_parquet(temporary, index=False)
    write_json(mark, {"of": key, "variant": variant})


def save(table, answers, curves, manifest: dict, profile, out: Path) -> None:
    """Rows, tables, figures, goals and, last, the manifest."""
    files = {"evaluation": answers.drop(columns="text"), "curves": curves}
    for name, frame in files.items():
        with replacing(out / f"{name}.parquet") as temporary:
            frame.to_parquet(temporary, index=False)
    draw(table, curves, manifest, profile, out)
    write_json(out / "manifest.json", manifest)
    print(f"-> {shown(out)}")


def published(folder: Path) -> tuple:
    """(table, manifest, profile) of a published study, the table counted again from
    evaluation.parquet.

    What a variant is called is read from study.csv: a name may have gone from ``VARIANTS`` since.
    """
    manifest = read_json(folder / "manifest.json", "of a study (make study)")
    profile = profiles.of_manifest(manifest)
    facts = pd.read_csv(folder / "study.csv").fillna({"remark": "", "group": "", "label": ""})
    names = facts.set_index("variant")[["label", "remark", "group", "veto"]].to_dict("index")
    answers = pd.read_parquet(folder / "evaluation.parquet")
    return (
        policy_metrics.study_table(answers, names, profile.bootstrap, profile.seed),
        manifest,
        profile,
    )


def redraw(folder: Path) -> None:
    """Tables, figures and goals of a published study again, from its rows; nothing is trained."""
    table, manifest, profile = published(folder)
    draw(table, pd.read_parquet(folder / "curves.parquet"), manifest, profile, folder)


def draw(table, curves, manifest: dict, profile, out: Path) -> None:
    """Tables, figures and goals, of the evaluation.parquet that is in ``out``."""
    with replacing(out / "study.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    read = [out / "evaluation.parquet"]
    reported = tables.reported("ablation") if "dpo" in set(table.variant) else None
    facts = {"run": provenance.of_manifest(manifest)}
    tables.save(
        tables.build_policy_study(reported, table),
        out,
        "table",
        "Policies",
        read,
        profile,
        profile.seed,
        facts=facts,
    )
    note = tables.note(profile, profile.seed)
    facts |= {"sources": tables.digests([*read, out / "curves.parquet"])}
    plotting.save(drawing.plot_policy_study, table, out, "policies", note, facts)
    shown_runs = [v for v in ("full", "hacking") if v in set(curves.variant)]
    if shown_runs:
        first = curves[curves.variant.isin(shown_runs)]
        first = first[first.seed == first.groupby("variant").seed.transform("min")]
        first = first.assign(run=first.variant.map(lambda v: VARIANTS[v].label))
        plotting.save(drawing.plot_gold_over_kl, first, out, "gold_over_kl", note, facts)
    write_json(out / "goals.json", policy_metrics.goals(table))
