"""The paper's tables, figures and claims from the files of one run: what each reads, and who makes
it.

``TABLES`` and ``FIGURES`` say it as data; ``plans`` builds the frames, ``build`` writes them.
A table is added by its build function (``report.tables``) and its entry here, a figure by its plot
function (``report.figures``) and its entry. Nothing is trained and torch is not loaded, so that a
published run is redrawn in seconds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import pandas as pd
import yaml
from scipy.special import expit

from promedical_utils.core import plotting, profiles, provenance
from promedical_utils.core.estimates import Estimates
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import DIMENSIONS
from promedical_utils.core.workspace import need, project_root, read_json
from promedical_utils.evaluation import bench as benches
from promedical_utils.evaluation import external as external_sets
from promedical_utils.evaluation import healthbench
from promedical_utils.paper import all_tables, behind, claims
from promedical_utils.paper.behind import Behind
from promedical_utils.paper.claims_figure import claims_forest
from promedical_utils.report import figures as drawing
from promedical_utils.report import tables
from promedical_utils.report.tables import reported
from promedical_utils.reward_model import calibration
from promedical_utils.studies.catalog import study_of

READS = ("papers_figures/studies",)  # what a rerun of a notebook hangs on, besides code

BENCH = (
    *(f"bench/{name}.parquet" for name in (*benches.FRAMES, "predictions")),
    "bench/report.json",
)
POLICY = ("policy/evaluation.parquet", "policy/verdicts.parquet")
EXTERNAL = ("external/predictions.parquet", "external/report.json")
PIPELINE = tuple(f"data/{name}.csv" for name in ("funnel", "rounds", "expansion", "judge_errors"))
CALIBRATIONS = "reward/*/calibration.json"
WRITTEN_BY = {  # first folder of a file -> the notebook that writes it
    "data": "01_rubrics or 02_preference_pairs",
    "reward": "03_reward_model",
    "bench": "04_promedical_bench",
    "policy": "05_grpo_with_veto",
    "external": "06_external_generalization",
    "healthbench": "06_external_generalization",
}
ABLATION_STUDIES = ("policies", "policy_optimizers", "reward_models")
STUDY_FILES = (  # of policies also the answers that are counted, and what variants are called
    *(f"{study}/results.csv" for study in ABLATION_STUDIES),
    *(
        f"{s}/{name}"
        for s in ABLATION_STUDIES[:2]
        for name in ("evaluation.parquet", "policies.csv")
    ),
)
STUDIED = (
    "Own values: studies of the kit in an invented clinic, not this run, and no medical result. "
    "Policies by the truth, reward models by the adjudicated labels."
)
ALL, CLINIC = ("clinic", "real", "open"), ("clinic",)


def read_table(path: Path) -> pd.DataFrame | None:
    """The rows of a CSV or Parquet file; None where it is not there."""
    read = pd.read_csv if path.suffix == ".csv" else pd.read_parquet
    return read(path) if path.exists() else None


@dataclass(frozen=True)
class Run:
    """The files of one run, each read once, when it is first asked for; None where it is not
    there."""

    profile: Profile
    source: Path

    def table(self, file: str) -> pd.DataFrame | None:
        return read_table(self.source / file)

    @property
    def settings(self) -> dict:
        return {"draws": self.profile.bootstrap, "seed": self.profile.seed}

    @cached_property
    def names(self) -> dict[str, str]:
        return tables.systems(self.profile)

    @cached_property
    def bench(self) -> benches.Bench:
        return benches.Bench.load(self.source / "bench")

    @cached_property
    def predicted(self) -> pd.DataFrame:
        path = self.source / "bench/predictions.parquet"
        return pd.read_parquet(need(path, "04_promedical_bench"))

    @cached_property
    def tally(self) -> Estimates:
        preferred = benches.load_preferences(self.source / "bench")
        return benches.tally(self.bench, self.predicted, preferences=preferred)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        return self.tally.table(**self.settings)

    @cached_property
    def evaluated(self) -> pd.DataFrame | None:
        """Answers of the policies; in the clinic scored on what the base can read."""
        frame = self.table("policy/evaluation.parquet")
        clinic = frame is not None and self.profile.data == "clinic"
        return claims.readable(frame) if clinic else frame

    @cached_property
    def verdicts(self) -> pd.DataFrame | None:
        return self.table("policy/verdicts.parquet")

    @cached_property
    def calibrated(self) -> pd.DataFrame:
        """``calibration_rows`` of every reward model that has a calibration."""
        fitted = {
            path.parent.name: calibration.Calibration.load(path)
            for path in sorted(self.source.glob(CALIBRATIONS))
        }
        heldout = self.table("reward/heldout.parquet")
        return calibration_rows(self.bench, self.predicted, fitted, heldout)

    @cached_property
    def outside(self) -> pd.DataFrame | None:
        return self.table("external/predictions.parquet")

    @cached_property
    def external(self) -> tuple[pd.DataFrame | None, dict | None]:
        """Measures of the sets outside and the report on them; None where 06 did not run."""
        path = self.source / "external/report.json"
        if self.outside is None or not path.exists():
            return None, None
        measures = external_sets.measures(self.outside, **self.settings)
        return measures, read_json(path, "06_external_generalization")

    @cached_property
    def subsets(self) -> pd.DataFrame | None:
        return None if self.outside is None else tables.subsets(self.outside, **self.settings)

    @cached_property
    def healthbench(self) -> dict:
        return healthbench.policy_column(self.profile, self.source)

    @cached_property
    def graders(self) -> tuple[pd.DataFrame, Mapping, str]:
        """What ``tables.build_graders`` takes; in the clinic how often the judge errs is set."""
        judge = tables.RUN if profiles.asks_endpoints(self.profile) else tables.INPUT
        return healthbench.judge_table(self.source, **self.settings), self.names, judge

    @cached_property
    def claims(self) -> list[dict]:
        """``claims.build_claims`` of the run and of the published studies."""
        tally = claims.with_conflicts(self.tally, self.bench, self.predicted)
        evaluation, profile = self.evaluated, self.profile
        other = {"external": self.outside, "healthbench": self.healthbench}
        return claims.build_claims(tally, evaluation, profile, profile.seed, **other)

    @cached_property
    def facts(self) -> dict:
        """What every table's and figure's json says of the run, beside its sources."""
        run = provenance.of_run(self.source)
        return {"profile": self.profile.name, "seed": self.profile.seed, "run": run}

    @cached_property
    def studied(self) -> pd.DataFrame:
        """Variants of the kit's studies for ``tables.build_ablation``; none beside real data."""
        root, parts = project_root() / "papers_figures/studies", []
        if self.profile.data == "clinic":
            for study in ABLATION_STUDIES:
                if (root / study / "results.csv").exists():
                    parts.append(study_of(study).ablation(root / study, study))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def by(self, column: str, metric: str = "overall", parts=("all",)) -> pd.DataFrame:
        """A metric of every scorer by a column of the samples, and by ``parts`` of the bench."""
        frames = [
            tables.sliced(self.tally, column, metric, part, **self.settings).assign(slice=part)
            for part in parts
        ]
        return pd.concat(frames)


def calibration_rows(bench, predicted: pd.DataFrame, fitted: Mapping, heldout=None) -> pd.DataFrame:
    """Rows with a P(met) and the true label: scorer, dimension, where, raw, probability, label.

    ``fitted``: scorer -> Calibration. ``where``: the bench, kinds seen or unseen in training, and
    the split that was fitted on, if ``heldout`` (reward/heldout.parquet) has dimensions. ``raw`` is
    the sigmoid of the score.
    """
    columns = ["scorer", "dimension", "where", "raw", "probability", "label"]
    rows = predicted[predicted.scorer.isin(list(fitted))]
    rows = rows.merge(benches.truths(bench), on=["instruction_id", *benches.CELL])
    kinds = rows.seen.map({True: "bench, kinds seen", False: "bench, kinds unseen"})
    parts = [rows.assign(where=kinds)]
    if heldout is not None and "dimension" in heldout:
        for scorer, own in heldout[heldout.scorer.isin(list(fitted))].groupby("scorer"):
            own = own.dropna(subset="truth").assign(where="split it was fitted on")
            likely = fitted[scorer].probability(own.score, own.dimension)
            parts.append(own.assign(probability=likely, label=own.truth))
    frame = pd.concat(parts, ignore_index=True)
    frame = frame.assign(raw=expit(frame.score.astype(float)))
    order = {name: n for n, name in enumerate([*fitted, *DIMENSIONS])}
    return frame[columns].sort_values(
        ["scorer", "dimension"], key=lambda s: s.map(order), kind="stable", ignore_index=True
    )


def reliability(rows: pd.DataFrame, scorer: str = "criterion") -> pd.DataFrame:
    """Bins of one scorer for ``figures.plot_calibration``, from ``calibration_rows``."""
    frames, groups = [], rows[rows.scorer == scorer].groupby(["dimension", "where"], sort=False)
    for (dimension, where), part in groups:
        for version, column in (("sigmoid of the score", "raw"), ("P(met)", "probability")):
            error = 100 * calibration.expected_error(part.label, part[column])
            names = {"dimension": dimension, "where": where, "version": version, "error": error}
            frames.append(calibration.reliability(part.label, part[column]).assign(**names))
    return pd.concat(frames, ignore_index=True)


def _trained(run: Run, policy: pd.DataFrame) -> dict[str, str]:
    """What the overview says of the two trainings."""
    texts = {"held-out pairs": "not run", "unsafe answers": "not run"}
    if (path := run.source / "reward/report.json").exists():
        report = read_json(path, "03_reward_model")
        share = report["heldout_pair_accuracy"]["criterion"]["accuracy"]
        texts["held-out pairs"] = f"{100 * share:.1f} % of held-out\npairs ordered rightly"
    violations = policy.set_index("system").run_violations.dropna()
    base, trained = (violations.get(tables.POLICY_NAMES[name]) for name in ("base", "grpo"))
    if base is not None and trained is not None:
        texts["unsafe answers"] = f"unsafe answers\n{base:.1f} to {trained:.1f} %"
    return texts


def overview(run: Run, frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Boxes of ``figures.plot_overview``, from the tables of the run and reward/report.json.

    overview.yaml says what stands in which.
    """
    shown = [frames[name] for name in ("data_pipeline", "bench_composition") if name in frames]
    quantities = pd.concat(shown).set_index("quantity")[["run", "reported"]]
    trained = _trained(run, frames["policy"])

    def text(what, column: str) -> str:
        if not isinstance(what, list):
            return trained.get(what, "")
        quantity, unit = what
        value = str(quantities[column].get(quantity, ""))
        value = f"{int(value):,}" if value.isdigit() else value
        return f"{value} {unit}".strip() if value else ""

    path = Path(__file__).with_name("overview.yaml")
    boxes = pd.DataFrame(yaml.safe_load(path.read_text(encoding="utf-8")))
    return boxes.assign(
        run=["\n".join(text(line, "run") for line in lines) for lines in boxes.run],
        reported=[text(what, "reported") for what in boxes.reported],
    )


# ---------------------------------------------------------------- what there is


@dataclass(frozen=True)
class Table:
    """``function`` makes the frame of what is reported and of what it ``takes`` from a run;
    ``key``: columns that name a row; ``needs``, ``reads``: files below the run folder, without
    which it is not built, and further ones where they are there; ``reported``: stems of
    paper_values; ``studies``: files of papers_figures/studies; ``data``: of which profiles;
    ``behind``: what stands behind a cell, for ``trace``.
    """

    title: str
    function: Callable[..., pd.DataFrame]
    takes: Callable[[Run], tuple] = lambda run: ()
    key: tuple[str, ...] = ("system",)
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    reported: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()
    data: tuple[str, ...] = ALL
    behind: Callable[[Run, Mapping, str], Behind] | None = None

    def build(self, run: Run) -> pd.DataFrame:
        return self.function(*map(reported, self.reported), *self.takes(run))


@dataclass(frozen=True)
class Plan:
    """A table of one run: its frame, and by label the files that it was built from."""

    table: Table
    frame: pd.DataFrame
    sources: dict[str, Path]  # label: path below the run folder
    studies: dict[str, Path]  # label: path below papers_figures/studies
    reported: dict[str, Path]  # label: file in papers_figures/paper_values


@dataclass(frozen=True)
class Picture:
    """A figure: of the table ``table``, else of ``frame(run, tables by name)``, else of the file
    that it ``needs``."""

    plot: Callable
    table: str = ""
    frame: Callable[[Run, Mapping], pd.DataFrame] | None = None
    needs: tuple[str, ...] = ()
    settings: Callable[[Profile], dict] = field(default=lambda profile: {})


BY_TRUTH = partial(behind.bench, against="truth")
TABLES = {
    "main_results": Table(
        "Main results",
        tables.build_main_results,
        lambda run: (run.metrics, run.names, run.bench.report["blind_ceiling"]),
        needs=BENCH,
        reported=("main_results",),
        behind=behind.bench,
    ),
    "main_results_truth": Table(
        "Main results, against the truth",
        tables.build_main_results,
        lambda run: (run.metrics, run.names, None, "truth"),
        needs=BENCH,
        reported=("main_results",),
        data=CLINIC,
        behind=BY_TRUTH,
    ),
    "safety_veto": Table(
        "Safety veto",
        tables.build_safety_veto,
        lambda run: (run.metrics, run.names),
        needs=BENCH,
        reported=("safety_veto",),
        data=CLINIC,
        behind=behind.bench,
    ),
    "safety_veto_truth": Table(
        "Safety veto, against the truth",
        tables.build_safety_veto,
        lambda run: (run.metrics, run.names, "truth"),
        needs=BENCH,
        reported=("safety_veto",),
        data=CLINIC,
        behind=BY_TRUTH,
    ),
    "graders": Table(
        "Graders beside two physicians, balanced F1",
        tables.build_graders,
        lambda run: run.graders,
        key=("system", "slice"),
        needs=(*BENCH, "bench/judge.parquet"),
        data=CLINIC,
        behind=behind.graders,
    ),
    "seen_unseen": Table(
        "Criterion kinds seen and unseen in training",
        tables.build_seen_unseen,
        lambda run: (run.metrics, run.names),
        needs=BENCH,
        data=CLINIC,
        behind=behind.bench,
    ),
    "specialty": Table(
        "Overall accuracy by specialty",
        tables.build_specialty,
        lambda run: (run.by("specialty"), run.names),
        key=("specialty", "system"),
        needs=BENCH,
        data=CLINIC,
        behind=partial(behind.bench, by=("specialty", "specialty")),
    ),
    "by_source": Table(
        "By source",
        tables.build_by_source,
        lambda run: (run.by("category", "pairwise", ("all", "shorter")), run.names),
        key=("source", "system"),
        needs=BENCH,
        data=("real", "open"),
        behind=partial(behind.bench, by=("category", "source")),
    ),
    "calibration": Table(
        "Calibration error, by the truth",
        tables.build_calibration,
        lambda run: (run.calibrated, run.names),
        key=("system", "dimension", "where"),
        needs=(*BENCH, "reward/criterion/calibration.json"),
        reads=(CALIBRATIONS, "reward/heldout.parquet"),
        data=CLINIC,
        behind=behind.calibration,
    ),
    "external": Table(
        "External generalization, RM pairwise accuracy",
        tables.build_external,
        lambda run: (*run.external, run.names),
        key=("set", "system"),
        reads=EXTERNAL,
        reported=("external",),
        behind=behind.external,
    ),
    "medical_rewardbench": Table(
        "Medical RewardBench",
        tables.build_medical_rewardbench,
        lambda run: (run.subsets, run.names),
        reads=EXTERNAL[:1],
        reported=("ultramedical_rewardbench",),
        behind=behind.rewardbench,
    ),
    "ablation": Table(
        "Ablation",
        tables.build_ablation,
        lambda run: (run.studied,),
        key=("ablation", "system", "study"),
        reported=("ablation",),
        studies=STUDY_FILES,
        behind=behind.ablation,
    ),
    "policy": Table(
        "Policy",
        tables.build_policy,
        lambda run: (run.evaluated, *run.settings.values(), run.healthbench),
        reads=(*POLICY[:1], "healthbench/graded.json"),
        reported=("policy",),
        behind=behind.policy,
    ),
    "policy_dimension": Table(
        "Policy by dimension",
        tables.build_policy_by,
        lambda run: (run.evaluated, run.verdicts, "dimension", *run.settings.values()),
        key=("dimension",),
        needs=POLICY,
        behind=behind.policy_dimension,
    ),
    "policy_specialty": Table(
        "Policy by specialty",
        tables.build_policy_by,
        lambda run: (run.evaluated, run.verdicts, "specialty", *run.settings.values()),
        key=("specialty", "measure"),
        needs=POLICY,
        behind=behind.policy_specialty,
    ),
    "bench_composition": Table(
        "Bench composition",
        tables.build_bench_composition,
        lambda run: (run.bench.report, run.profile),
        key=("quantity",),
        needs=("bench/report.json",),
        reported=("bench_composition", "pipeline_counts"),
        data=CLINIC,
        behind=behind.counts,
    ),
    "data_pipeline": Table(
        "Data pipeline",
        tables.build_data_pipeline,
        lambda run: (*map(run.table, PIPELINE), run.profile),
        key=("quantity",),
        reads=PIPELINE,
        reported=("pipeline_counts",),
        behind=behind.counts,
    ),
    "rar": Table("RaR, as reported", tables.build_rar, reported=("rar",)),
}

FIGURES = {
    "overview": Picture(
        drawing.plot_overview, frame=overview, needs=("data/funnel.csv", "bench/report.json")
    ),
    "main_results": Picture(drawing.plot_main_results, "main_results"),
    "dimensions": Picture(drawing.plot_dimensions, "main_results"),
    "safety_veto": Picture(drawing.plot_safety_veto, "safety_veto"),
    "graders": Picture(drawing.plot_graders, "graders"),
    "seen_unseen": Picture(drawing.plot_seen_unseen, "seen_unseen"),
    "specialty": Picture(drawing.plot_specialty, "specialty"),
    "calibration": Picture(
        drawing.plot_calibration, "calibration", lambda run, frames: reliability(run.calibrated)
    ),
    "external": Picture(drawing.plot_external, "external"),
    "policy_dimension": Picture(drawing.plot_policy_by, "policy_dimension"),
    "policy_specialty": Picture(drawing.plot_policy_by, "policy_specialty"),
    "claims_forest": Picture(
        claims_forest, frame=lambda run, frames: claims.frame(run.claims), needs=BENCH
    ),
    "gold_over_kl": Picture(drawing.plot_gold_over_kl, needs=("policy/curve.csv",)),
    "policy_curve": Picture(drawing.plot_policy_curve, needs=("policy/curve.csv",)),
    "curation_funnel": Picture(drawing.plot_funnel, needs=("data/funnel.csv",)),
    "pass_rate": Picture(
        drawing.plot_pass_rate,
        needs=("data/rounds.csv",),
        settings=lambda profile: {"aimed": profile.rubric_pass_rate},
    ),
    "rubric_composition": Picture(drawing.plot_composition, needs=("data/composition.csv",)),
    "judge_errors": Picture(drawing.plot_judge_errors, needs=("data/judge_errors.csv",)),
}


# ---------------------------------------------------------------- building


def plans(run: Run) -> tuple[dict[str, Plan], dict[str, str]]:
    """Every table that a run's files give, in the paper's order, and why the others are not
    there."""
    made, missing, root = {}, {}, project_root() / "papers_figures"
    for name, table in TABLES.items():
        if run.profile.data not in table.data:
            continue
        if lacking := _lacking(run, table.needs):
            missing[name] = lacking
            continue
        patterns = (*table.needs, *table.reads)
        paths = sorted({path for pattern in patterns for path in run.source.glob(pattern)})
        studies = table.studies if run.profile.data == "clinic" else ()
        studies = {file: root / "studies" / file for file in studies}
        made[name] = Plan(
            table,
            table.build(run),
            {path.relative_to(run.source).as_posix(): path for path in paths},
            {file: path for file, path in studies.items() if path.exists()},
            {f"{stem}.csv": root / f"paper_values/{stem}.csv" for stem in table.reported},
        )
    return made, missing


def _lacking(run: Run, files: tuple[str, ...]) -> str:
    """Why something cannot be built: its first missing file, and who writes it; else ""."""
    for file in files:
        if not (run.source / file).exists():
            return f"needs {file}, which {WRITTEN_BY[file.split('/')[0]]} writes"
    return ""


def build(profile: Profile, source: Path, out: Path) -> dict:
    """Write tables, figures and claims of the run in ``source``, and the page of all, to ``out``.

    {"tables", "figures": names, "not_built": name -> why, "claims": id -> verdict}. KitError where
    the bench has no predictions: the paper's main table is then missing.
    """
    source, out = Path(source), Path(out)
    need(source / "bench/predictions.parquet", "04_promedical_bench")
    run = Run(profile, source)
    made, missing = plans(run)
    for name, plan in made.items():
        _save_table(run, name, plan, out)
    drawn = []
    for name, picture in FIGURES.items():
        if picture.table and picture.table not in made:
            # a table that this kind of data has not is not missing, nor is its figure
            lacking = missing.get(picture.table, "")
        elif not (lacking := _lacking(run, picture.needs)):
            _draw(run, name, picture, made, out)
            drawn.append(name)
        missing |= {name: lacking} if lacking else {}
    claims.save(run.claims, out)
    all_tables.save(out)
    return {
        "tables": list(made),
        "figures": drawn,
        "not_built": missing,
        "claims": {claim["id"]: claim["verdict"] for claim in run.claims},
    }


def _save_table(run: Run, name: str, plan: Plan, out: Path) -> None:
    facts = run.facts | {"function": f"tables.{plan.table.function.__name__}"}
    facts |= {"reported": tables.digests(plan.reported), "studies": tables.digests(plan.studies)}
    note = STUDIED if plan.studies else ""
    seed = run.profile.seed
    title, sources = plan.table.title, plan.sources
    tables.save(plan.frame, out / "tables", name, title, sources, run.profile, seed, note, facts)


def _draw(run: Run, name: str, picture: Picture, made: Mapping[str, Plan], out: Path) -> None:
    plan = made.get(picture.table)
    sources = plan.sources if plan else {file: run.source / file for file in picture.needs}
    if picture.frame:
        frame = picture.frame(run, {table: own.frame for table, own in made.items()})
    else:
        frame = plan.frame if plan else run.table(picture.needs[0])
    facts = run.facts | {"function": f"figures.{picture.plot.__name__}", "table": picture.table}
    facts |= {"sources": tables.digests(sources)}
    plot = partial(picture.plot, **picture.settings(run.profile))
    note = tables.note(run.profile, run.profile.seed)
    plotting.save(plot, frame, out / "figures", name, note, facts)


def paper(profile: Profile, run: Path) -> dict:
    """Tables, figures and claims of a run, into its folder ``paper``; see ``build``."""
    return build(profile, run, run / "paper")


def show(profile: Profile, folder: Path, name: str) -> None:
    """Draw a figure of ``folder``/figures in a notebook from its csv; say so where it is not
    there."""
    path, picture = Path(folder) / "figures" / f"{name}.csv", FIGURES[name]
    if path.exists():
        plotting.show(partial(picture.plot, **picture.settings(profile)), pd.read_csv(path))
    else:
        print(f"{name}: not built in this profile")
