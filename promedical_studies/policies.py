"""The study of policies: full GRPO, its ablations, other optimisers, compared systems' rewards."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from promedical_studies import counting
from promedical_studies.reward_models import prepare
from promedical_studies.study import Study
from promedical_utils.core import fingerprint as content
from promedical_utils.core.estimates import ENDS, Estimates, suffixed
from promedical_utils.core.plotting import GREY
from promedical_utils.core.profiles import Profile
from promedical_utils.core.run_data import RunData, base_path
from promedical_utils.core.workspace import (
    KitError,
    need,
    read_json,
    short_hash,
    write_json,
    write_rows,
)
from promedical_utils.evaluation import policy_metrics
from promedical_utils.evaluation.policy_metrics import BASE, METRICS, STUDY, TRAINING
from promedical_utils.pipeline import policies
from promedical_utils.report import figures, tables
from promedical_utils.reward_model.variants import find
from promedical_utils.studies import results
from promedical_utils.studies.catalog import kind_of

KIND = kind_of("policies")
VARIANTS = KIND["labels"]  # name -> label, group, settings, veto, remark
COLUMNS = KIND["columns"]
FULL, SEPARATOR = "full", "|"
REPORTED = ("steps", "stopped_early", "seconds", "hacking", "throughput", "unscored")


class Policies(Study):
    kind, title = "policies", "Policies"

    def known(self) -> tuple[str, ...]:
        return tuple(name for name in VARIANTS if name != BASE)

    def train(self, profile, folder, data, out) -> dict:
        """Also into ``out``: evaluation.parquet and curves.parquet; reward models and policies stay
        in ``folder``, for all studies of it."""
        from promedical_utils.reward_model import hub  # late: loads torch

        hub.silence()
        for recipe in sorted({settled(profile, v).reward_model for v in self.plan}):
            print(f"reward model {recipe} ...", flush=True)
            prepare(profile, folder, data, find(recipe), folder / "reward" / recipe)
        rows, answers, curves = [], [], []
        trained = [(variant, seed) for variant, seeds in self.plan.items() for seed in seeds]
        for variant, seed in [(BASE, 0), *trained]:
            rows.append(one(profile, folder, data, variant, seed))
            where = place(folder, variant, seed)
            answers.append(pd.read_parquet(where / "evaluation.parquet"))
            if variant != BASE:
                curves.append(pd.read_csv(where / "curve.csv").assign(variant=variant, seed=seed))
        evaluation = pd.concat(answers, ignore_index=True).drop(columns="text")
        write_rows(out / "evaluation.parquet", evaluation)
        write_rows(out / "curves.parquet", pd.concat(curves, ignore_index=True))
        prompts = int(evaluation.groupby(["policy", "seed"]).size().max())
        return {"policies": rows, "prompts": prompts}

    def sums(self, folder: Path) -> Estimates:
        file = need(folder / "evaluation.parquet", "of a study (make study)")
        return counted(pd.read_parquet(file))

    def named(self, folder: Path) -> pd.DataFrame:
        """Label, remark, group and veto by variant."""
        variants = [BASE, *(self.plan or self.known())]
        facts = [{"remark": "", "veto": True} | VARIANTS[name] for name in variants]
        return pd.DataFrame(facts, index=variants)[["label", "remark", "group", "veto"]]

    def show(self, rows, manifest, out) -> None:
        shown, more = table(rows, self.named(out)), "curves.parquet"
        reported = tables.reported("ablation")
        reported = reported if "dpo" in set(rows.system) else reported.head(0)
        frame = printed(reported, shown)
        self.save_table(frame, out, "table", self.title, manifest)
        self.save_figure(plot_policy_study, shown, out, "policies", manifest, more)
        curves = pd.read_parquet(out / more)
        curves = curves[curves.variant.isin([FULL, "hacking"])]
        if len(curves):
            first = curves[curves.seed == curves.groupby("variant").seed.transform("min")]
            first = first.assign(run=first.variant.map(lambda name: VARIANTS[name]["label"]))
            self.save_figure(figures.plot_gold_over_kl, first, out, "gold_over_kl", manifest, more)


def counted(evaluation: pd.DataFrame) -> Estimates:
    """Sums of the kind's metrics by patient, policy and seed; KitError where patients differ."""
    same_patients(evaluation)
    sums, cell = policy_metrics.sums(evaluation), ("all", policy_metrics.labels(evaluation))
    wanted = [(metric, *cell) for metric in STUDY.values()]
    return counting.kept(sums, {n: key for n, key in enumerate(sums.keys) if key[2:] in wanted})


def same_patients(evaluation: pd.DataFrame) -> None:
    """KitError where policies, or the training seeds of one, answered different patients."""
    patients = {
        name: frozenset(zip(own.instruction_id, own.condition, strict=True))
        for name, own in policy_metrics.seeded(evaluation).groupby(TRAINING, sort=False)
    }
    (first, _), wanted = next(iter(patients.items()))
    for (policy, seed), own in patients.items():
        if own != wanted:
            answered = f"{policy}, seed {seed}," if seed else policy
            raise KitError(
                f"{answered} answered {len(own)} patients, and not the same as {first}'s "
                f"{len(wanted)}: evaluate it again"
            )


def table(rows: pd.DataFrame, named: pd.DataFrame) -> pd.DataFrame:
    """One row a variant of ``named``, empty where the results lack it: ``COLUMNS`` with _low and
    _high, and of values _seeds (a value a training seed, joined by "|"). In percent, S2 and tokens
    as numbers; differences in points."""
    cells, shown = results.Cells(rows), []
    [against] = cells.against
    for name, facts in named.iterrows():
        n = cells.n((name, "violation_rate", "all", against))
        row = {"variant": name, **facts, "labels": against, "n": n, "seeds": 0}
        for column, cell in COLUMNS.items():
            row |= cells.wide(name, {column: cell}, against)
            if column in STUDY:
                each = cells.trained.get((name, *cell, against), {})
                values = (f"{METRICS[cell[0]][1] * value:.6g}" for value in each.values())
                row[f"{column}_seeds"] = SEPARATOR.join(values) or np.nan
                row["seeds"] = max(row["seeds"], len(each))
        shown.append(row)
    return pd.DataFrame(shown)


def printed(reported: pd.DataFrame, study: pd.DataFrame) -> pd.DataFrame:
    """The paper's ablation rows, then a row a variant of ``table``: means over training seeds, with
    intervals over patients; differences are paired, in points."""
    columns = (*STUDY, *KIND["compared"])
    rows = [tables.of_study(row, columns, tables.RUN) for row in study.to_dict("records")]
    reported = reported.assign(remark=tables.MIXED, group="reported")
    frame = tables.beside(reported, rows, columns, ("remark", "group", "seeds"))
    return frame.astype({"seeds": "Int64"})


def plot_policy_study(df: pd.DataFrame) -> Figure:
    """Violations, S1 and bench score, a row a variant; from ``table``.

    Small points are training seeds, the line is the interval over patients, the dashed line the
    base. Hollow: violations that are plainly said, where the others are unknown.
    """
    look, panels = KIND["figure"], KIND["figure"]["panels"]
    of_base, df = df[df.variant == BASE], df[df.variant != BASE].reset_index(drop=True)
    series = df.veto.astype(bool).map(figures.names_of(look))
    own = pd.DataFrame({"row": df.label.where(df.seeds > 0, df.label + " (not run)")})
    own = own.assign(series=series, group=df.group.fillna(""), hollow=False)
    parts = []
    for column, label in panels.items():
        ends = df[[*suffixed(column)]].set_axis([*ENDS], axis=1)
        parts.append(own.assign(panel=label, line=of_base[column].max(), **ends))
    plain = parts[0].assign(value=df.plain_violations, low=np.nan, high=np.nan, hollow=True)
    cells = pd.concat([*parts, plain], ignore_index=True)
    point = {"marker": ".", "ms": 4}
    more = {"a training seed": point | {"color": GREY}} if (df.seeds > 1).any() else {}
    figure, looks = figures.intervals(look, cells, more=more), figures.looks_of(look)
    for axis, column in zip(figure.axes, panels, strict=True):
        for at, seeds in enumerate(df[f"{column}_seeds"].fillna("").astype(str)):
            if SEPARATOR in seeds:
                values, colour = [*map(float, seeds.split(SEPARATOR))], looks[series[at]]["color"]
                axis.plot(values, [at + 0.3] * len(values), ls="", color=colour, **point)
        axis.set_xlim(left=0)
    return figure


def settled(profile: Profile, variant: str) -> Profile:
    """The profile with a variant's settings, checked as a whole."""
    settings = VARIANTS[variant].get("settings", {})
    return Profile.model_validate(profile.model_dump(mode="json") | settings)


def place(folder: Path, variant: str, seed: int) -> Path:
    # not below "policies", which is the folder of that study's tables
    return folder / "trained" / f"{variant}-{seed}"


def one(profile: Profile, folder: Path, data: RunData, variant: str, seed: int) -> dict:
    """Train and evaluate one policy, or the base alone; a row on it."""
    row = {"variant": variant, "seed": seed}
    if variant == BASE:
        _evaluate(profile, folder, data, BASE, seed)
        return row | {"seconds": 0.0}
    profile = settled(profile, variant)
    report = policies.align(profile, folder, data, place(folder, variant, seed), seed=seed)
    _evaluate(profile, folder, data, variant, seed, report["fingerprint"])
    print(f"{variant}, seed {seed}: {report['seconds']:.0f} s", flush=True)
    row["settings"] = VARIANTS[variant].get("settings", {})
    row |= {"best_step": report["best"]["step"], "last_step": report["last"]["step"]}
    return row | {key: report[key] for key in REPORTED}


def _evaluate(profile, folder, data, variant: str, seed: int, fingerprint: str = "") -> None:
    """Answers to the bench prompts, unless they are there: evaluation.parquet, verdicts.parquet."""
    from promedical_utils.reward_model import hub  # loads torch

    where = place(folder, variant, seed)
    base = hub.identity(hub.source_of(base_path(profile, folder), where))
    code = content.of_code({"promedical_utils.pipeline.policies"})
    asked = data.instructions_in("bench")
    records = [*asked, *(data.rubric_of[i.id] for i in asked)]
    bench = [record.model_dump_json() for record in records]
    bench += [data.condition_of[i.id] for i in asked]
    drawn = profile.policy_prompts, profile.bench_samples, profile.seed
    key, mark = short_hash(fingerprint, base, code, *drawn, *bench), where / "evaluated.json"
    if mark.exists() and read_json(mark, "of a study")["of"] == key:
        return
    folders = {variant: None if variant == BASE else where}
    frames = policies.evaluate_policies(profile, folder, data, folders)
    for name, frame in zip(("evaluation", "verdicts"), frames, strict=True):
        write_rows(where / f"{name}.parquet", frame.assign(seed=seed))
    write_json(mark, {"of": key, "variant": variant})
