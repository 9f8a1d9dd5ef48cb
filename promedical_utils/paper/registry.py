"""The paper's tables, figures and claims from the files of one run: what each reads, and who makes
it.

``TABLES`` and ``FIGURES`` say it as data; ``plans`` builds the frames, ``build`` writes them.
Nothing is trained and torch is not loaded, so that a published run is redrawn in seconds.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import pandas as pd
from scipy.special import expit

from promedical_utils.core import plotting, profiles, provenance
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import DIMENSIONS
from promedical_utils.core.workspace import need, project_root, read_json
from promedical_utils.evaluation import bench as benches
from promedical_utils.evaluation import external as external_sets
from promedical_utils.evaluation import healthbench
from promedical_utils.paper import all_tables, claims
from promedical_utils.paper.claims_figure import claims_forest
from promedical_utils.report import figures as drawing
from promedical_utils.report import tables
from promedical_utils.report.tables import reported
from promedical_utils.reward_model import calibration
from promedical_utils.studies import policies, reward_models

READS = ("papers_figures/studies",)  # what a rerun of a notebook hangs on, besides code

BENCH = (
    *(f"bench/{name}.parquet" for name in (*benches.FRAMES, "predictions")),
    "bench/report.json",
)
POLICY = ("policy/evaluation.parquet", "policy/verdicts.parquet")
EXTERNAL = ("external/predictions.parquet", "external/report.json")
CALIBRATIONS = "reward/*/calibration.json"
WRITTEN_BY = {  # first folder of a file -> the notebook that writes it
    "data": "01_rubrics or 02_preference_pairs",
    "reward": "03_reward_model",
    "bench": "04_promedical_bench",
    "policy": "05_grpo_with_veto",
    "external": "06_external_generalization",
    "healthbench": "06_external_generalization",
}
POLICY_STUDIES = ("policies", "policy_optimizers")
STUDY_FILES = (
    "reward_models/results.csv",
    *(f"{s}/{name}" for s in POLICY_STUDIES for name in ("evaluation.parquet", "study.csv")),
)
STUDIED = (
    "Own values: studies of the kit in an invented clinic, not this run, and no medical result. "
    "Policies by the truth, reward models by the adjudicated labels."
)
ALL, CLINIC = ("clinic", "real", "open"), ("clinic",)


@dataclass(frozen=True)
class Run:
    """The files of one run, each read once, when it is first asked for; None where it is not
    there."""

    profile: Profile
    source: Path

    def table(self, file: str) -> pd.DataFrame | None:
        path = self.source / file
        if not path.exists():
            return None
        return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)

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
        return pd.read_parquet(
            need(self.source / "bench/predictions.parquet", "04_promedical_bench")
        )

    @cached_property
    def tally(self) -> benches.Tally:
        preferred = benches.load_preferences(self.source / "bench")
        return benches.tally(self.bench, self.predicted, preferences=preferred)

    @cached_property
    def metrics(self) -> pd.DataFrame:
        return self.tally.metrics(**self.settings)

    @cached_property
    def evaluated(self) -> pd.DataFrame | None:
        """Answers of the policies; in the clinic scored on what the base can read."""
        frame = self.table("policy/evaluation.parquet")
        return (
            claims.readable(frame) if frame is not None and self.profile.data == "clinic" else frame
        )

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
        return calibration_rows(
            self.bench, self.predicted, fitted, self.table("reward/heldout.parquet")
        )

    @cached_property
    def outside(self) -> pd.DataFrame | None:
        return self.table("external/predictions.parquet")

    @cached_property
    def healthbench(self) -> dict:

        return healthbench.policy_column(self.profile, self.source)

    @cached_property
    def graders(self) -> pd.DataFrame:

        found, judge = healthbench.judge_table(self.source, **self.settings), tables.INPUT
        if profiles.asks_endpoints(self.profile):
            judge = tables.RUN
        return tables.build_graders(found, self.names, judge)

    @cached_property
    def claims(self) -> list[dict]:
        """``claims.build_claims`` of the run and of the published studies."""
        counted = claims.with_conflicts(self.tally, self.bench, self.predicted)
        return claims.build_claims(
            counted,
            self.evaluated,
            self.profile,
            self.profile.seed,
            external=self.outside,
            healthbench=self.healthbench,
        )

    @cached_property
    def facts(self) -> dict:
        """What every table's and figure's json says of the run, beside its sources."""
        return {
            "profile": self.profile.name,
            "seed": self.profile.seed,
            "run": provenance.of_run(self.source),
        }

    @cached_property
    def studied(self) -> pd.DataFrame:
        """Variants of the kit's studies for ``tables.build_ablation``; none beside real data."""
        root, parts = project_root() / "papers_figures/studies", []
        if self.profile.data == "clinic":
            for study in (s for s in POLICY_STUDIES if (root / s / "evaluation.parquet").exists()):
                parts.append(tables.of_policy_study(policies.published(root / study)[0], study))
            if (path := root / "reward_models/results.csv").exists():
                found = pd.read_csv(path)
                parts.append(tables.of_reward_study(found, reward_models.NAMES, "reward_models"))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    def sliced(self, column: str, metric: str = "overall", part: str = "all") -> pd.DataFrame:
        return tables.sliced(self.tally, column, metric, part, **self.settings)


def calibration_rows(bench, predicted: pd.DataFrame, fitted: Mapping, heldout=None) -> pd.DataFrame:
    """Rows with a P(met) and the true label: scorer, dimension, where, raw, probability, label.

    ``fitted``: scorer -> Calibration. ``where``: the bench, kinds seen or unseen in training, and
    the split that was fitted on, if ``heldout`` (reward/heldout.parquet) has dimensions. ``raw`` is
    the sigmoid of the score.
    """
    columns = ["scorer", "dimension", "where", "raw", "probability", "label"]
    cells = benches.truths(bench)
    rows = predicted[predicted.scorer.isin(list(fitted))]
    rows = rows.merge(cells, on=["instruction_id", *benches.CELL])
    where = rows.seen.map({True: "bench, kinds seen", False: "bench, kinds unseen"})
    parts = [rows.assign(where=where)]
    if heldout is not None and "dimension" in heldout:
        for scorer, own in heldout[heldout.scorer.isin(list(fitted))].groupby("scorer"):
            own = own.dropna(subset="truth")
            likely = fitted[scorer].probability(own.score, own.dimension)
            parts.append(
                own.assign(where="split it was fitted on", probability=likely, label=own.truth)
            )
    frame = pd.concat(
        [p.assign(raw=expit(p.score.astype(float))) for p in parts], ignore_index=True
    )
    order = {name: n for n, name in enumerate([*fitted, *DIMENSIONS])}
    return frame[columns].sort_values(
        ["scorer", "dimension"], key=lambda s: s.map(order), kind="stable", ignore_index=True
    )


def reliability(rows: pd.DataFrame, scorer: str = "criterion") -> pd.DataFrame:
    """Bins of one scorer for ``figures.plot_calibration``, from ``calibration_rows``."""
    frames = []
    for (dimension, where), part in rows[rows.scorer == scorer].groupby(
        ["dimension", "where"], sort=False
    ):
        for version, column in (("sigmoid of the score", "raw"), ("P(met)", "probability")):
            error = 100 * calibration.expected_error(part.label, part[column])
            bins = calibration.reliability(part.label, part[column])
            frames.append(
                bins.assign(dimension=dimension, where=where, version=version, error=error)
            )
    return pd.concat(frames, ignore_index=True)


def overview(run: Run, frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Boxes of ``figures.plot_overview``, from the tables of the run and reward/report.json."""
    said = pd.concat(
        [
            frames[n][["quantity", "run", "reported"]]
            for n in ("data_pipeline", "bench_composition")
            if n in frames
        ]
    ).set_index("quantity")

    def told(quantity: str, unit: str, column: str = "run") -> str:
        value = str(said[column].get(quantity, ""))
        value = f"{int(value):,}" if value.isdigit() else value
        return f"{value} {unit}".strip() if value else ""

    trained = {}
    if (path := run.source / "reward/report.json").exists():
        report = read_json(path, "03_reward_model")
        trained = report["models"]["criterion"] | report["heldout_pair_accuracy"]["criterion"]
    policy = frames["policy"].set_index("system").run_violations.dropna()
    ends = [policy.get(tables.POLICY_NAMES[name]) for name in ("base", "grpo")]
    rate, agreed = "rubric strict pass rate percent", "judge agreement with experts percent"
    boxes = [
        (
            "raw",
            0,
            0,
            "raw rows",
            told("raw samples", "rows"),
            told("raw samples", "", "reported"),
            "",
        ),
        (
            "kept",
            0,
            1,
            "curation",
            told("kept instructions", "instructions"),
            told("kept instructions", "", "reported"),
            "raw",
        ),
        (
            "rubrics",
            0,
            2,
            "rubrics, reviewed",
            f"{told(rate, '% passed')}\n{told('review rounds', 'rounds')}",
            told(rate, "% passed", "reported"),
            "kept",
        ),
        (
            "judge",
            0,
            3,
            "answers, judged",
            f"{told('training verdicts', 'verdicts')}\n{told(agreed, '% as experts')}",
            told(agreed, "%", "reported"),
            "rubrics",
        ),
        ("pairs", 0, 4, "criterion pairs", told("criterion pairs", "pairs"), "", "judge"),
        (
            "rm",
            1,
            4,
            "criterion RM",
            f"{100 * trained['accuracy']:.1f} % of held-out\npairs ordered rightly"
            if trained
            else "not run",
            "",
            "pairs",
        ),
        (
            "policy",
            1,
            3,
            "GRPO with veto",
            f"unsafe answers\n{ends[0]:.1f} to {ends[1]:.1f} %" if None not in ends else "not run",
            "",
            "rm",
        ),
        (
            "bench",
            1,
            2,
            "bench: RM and policy",
            f"{told('samples', 'samples')}\n{told('total', 'pairs')}",
            told("total", "pairs", "reported"),
            "policy",
        ),
    ]
    return pd.DataFrame(
        boxes, columns=["box", "row", "column", "title", "run", "reported", "after"]
    )


# ---------------------------------------------------------------- what there is


@dataclass(frozen=True)
class Table:
    """``key``: columns that name a row; ``needs``, ``reads``: files below the run folder, without
    which it is not built, and further ones where they are there; ``reported``: stems of
    paper_values; ``studies``: files of papers_figures/studies; ``data``: of which profiles.
    """

    title: str
    function: Callable  # that the frame comes from
    build: Callable[[Run], pd.DataFrame]
    key: tuple[str, ...] = ("system",)
    needs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    reported: tuple[str, ...] = ()
    studies: tuple[str, ...] = ()
    data: tuple[str, ...] = ALL


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
    """A figure: of the table ``table``, else of ``frame(run, tables by name)``."""

    plot: Callable
    table: str = ""
    frame: Callable[[Run, Mapping], pd.DataFrame] | None = None
    needs: tuple[str, ...] = ()
    settings: Callable[[Profile], dict] = field(default=lambda profile: {})


def _of_file(plot: Callable, file: str, settings: Callable = lambda profile: {}) -> Picture:
    return Picture(
        plot, frame=lambda run, frames: run.table(file), needs=(file,), settings=settings
    )


def _main(run: Run, against: str) -> pd.DataFrame:
    ceiling = run.bench.report["blind_ceiling"] if against == "adjudicated" else None
    return tables.build_main_results(
        reported("main_results"), run.metrics, run.names, ceiling, against
    )


def _veto(run: Run, against: str) -> pd.DataFrame:
    return tables.build_safety_veto(reported("safety_veto"), run.metrics, run.names, against)


def _policy_by(run: Run, by: str) -> pd.DataFrame:
    return tables.build_policy_by(run.evaluated, run.verdicts, by, **run.settings)


def _pipeline(run: Run) -> pd.DataFrame:
    files = (
        run.table(f"data/{name}.csv") for name in ("funnel", "rounds", "expansion", "judge_errors")
    )
    return tables.build_data_pipeline(reported("pipeline_counts"), *files, run.profile)


def _composition(run: Run) -> pd.DataFrame:
    values = reported("bench_composition"), reported("pipeline_counts")
    return tables.build_bench_composition(*values, run.bench.report, run.profile)


def _by_source(run: Run) -> pd.DataFrame:
    parts = [
        run.sliced("category", "pairwise", part).assign(slice=part) for part in ("all", "shorter")
    ]
    return tables.build_by_source(pd.concat(parts), run.names)


def _external(run: Run) -> pd.DataFrame:

    found, path, report = None, run.source / "external/report.json", None
    if run.outside is not None and path.exists():
        found = external_sets.measures(run.outside, **run.settings)
        report = read_json(path, "06_external_generalization")
    return tables.build_external(reported("external"), found, report, run.names)


def _rewardbench(run: Run) -> pd.DataFrame:
    found = None if run.outside is None else tables.subsets(run.outside, **run.settings)
    return tables.build_medical_rewardbench(reported("ultramedical_rewardbench"), found, run.names)


TABLES = {
    "main_results": Table(
        "Main results",
        tables.build_main_results,
        lambda run: _main(run, "adjudicated"),
        needs=BENCH,
        reported=("main_results",),
    ),
    "main_results_truth": Table(
        "Main results, against the truth",
        tables.build_main_results,
        lambda run: _main(run, "truth"),
        needs=BENCH,
        reported=("main_results",),
        data=CLINIC,
    ),
    "safety_veto": Table(
        "Safety veto",
        tables.build_safety_veto,
        lambda run: _veto(run, "adjudicated"),
        needs=BENCH,
        reported=("safety_veto",),
        data=CLINIC,
    ),
    "safety_veto_truth": Table(
        "Safety veto, against the truth",
        tables.build_safety_veto,
        lambda run: _veto(run, "truth"),
        needs=BENCH,
        reported=("safety_veto",),
        data=CLINIC,
    ),
    "graders": Table(
        "Graders beside two physicians, balanced F1",
        tables.build_graders,
        lambda run: run.graders,
        key=("system", "slice"),
        needs=(*BENCH, "bench/judge.parquet"),
        data=CLINIC,
    ),
    "seen_unseen": Table(
        "Criterion kinds seen and unseen in training",
        tables.build_seen_unseen,
        lambda run: tables.build_seen_unseen(run.metrics, run.names),
        needs=BENCH,
        data=CLINIC,
    ),
    "specialty": Table(
        "Overall accuracy by specialty",
        tables.build_specialty,
        lambda run: tables.build_specialty(run.sliced("specialty"), run.names),
        key=("specialty", "system"),
        needs=BENCH,
        data=CLINIC,
    ),
    "by_source": Table(
        "By source",
        tables.build_by_source,
        _by_source,
        key=("source", "system"),
        needs=BENCH,
        data=("real", "open"),
    ),
    "calibration": Table(
        "Calibration error, by the truth",
        tables.build_calibration,
        lambda run: tables.build_calibration(run.calibrated, run.names),
        key=("system", "dimension", "where"),
        needs=(*BENCH, "reward/criterion/calibration.json"),
        reads=(CALIBRATIONS, "reward/heldout.parquet"),
        data=CLINIC,
    ),
    "external": Table(
        "External generalization, RM pairwise accuracy",
        tables.build_external,
        _external,
        key=("set", "system"),
        reads=EXTERNAL,
        reported=("external",),
    ),
    "medical_rewardbench": Table(
        "Medical RewardBench",
        tables.build_medical_rewardbench,
        _rewardbench,
        reads=EXTERNAL[:1],
        reported=("ultramedical_rewardbench",),
    ),
    "ablation": Table(
        "Ablation",
        tables.build_ablation,
        lambda run: tables.build_ablation(reported("ablation"), run.studied),
        key=("ablation", "system", "study"),
        reported=("ablation",),
        studies=STUDY_FILES,
    ),
    "policy": Table(
        "Policy",
        tables.build_policy,
        lambda run: tables.build_policy(
            reported("policy"), run.evaluated, **run.settings, healthbench=run.healthbench
        ),
        reads=(*POLICY[:1], "healthbench/graded.json"),
        reported=("policy",),
    ),
    "policy_dimension": Table(
        "Policy by dimension",
        tables.build_policy_by,
        lambda run: _policy_by(run, "dimension"),
        key=("dimension",),
        needs=POLICY,
    ),
    "policy_specialty": Table(
        "Policy by specialty",
        tables.build_policy_by,
        lambda run: _policy_by(run, "specialty"),
        key=("specialty", "measure"),
        needs=POLICY,
    ),
    "bench_composition": Table(
        "Bench composition",
        tables.build_bench_composition,
        _composition,
        key=("quantity",),
        needs=("bench/report.json",),
        reported=("bench_composition", "pipeline_counts"),
        data=CLINIC,
    ),
    "data_pipeline": Table(
        "Data pipeline",
        tables.build_data_pipeline,
        _pipeline,
        key=("quantity",),
        reads=tuple(
            f"data/{name}.csv" for name in ("funnel", "rounds", "expansion", "judge_errors")
        ),
        reported=("pipeline_counts",),
    ),
    "rar": Table(
        "RaR, as reported",
        tables.build_rar,
        lambda run: tables.build_rar(reported("rar")),
        reported=("rar",),
    ),
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
    "gold_over_kl": _of_file(drawing.plot_gold_over_kl, "policy/curve.csv"),
    "policy_curve": _of_file(drawing.plot_policy_curve, "policy/curve.csv"),
    "curation_funnel": _of_file(drawing.plot_funnel, "data/funnel.csv"),
    "pass_rate": _of_file(
        drawing.plot_pass_rate,
        "data/rounds.csv",
        lambda profile: {"aimed": profile.rubric_pass_rate},
    ),
    "rubric_composition": _of_file(drawing.plot_composition, "data/composition.csv"),
    "judge_errors": _of_file(drawing.plot_judge_errors, "data/judge_errors.csv"),
}


# ---------------------------------------------------------------- building


def plans(profile: Profile, source: Path) -> tuple[dict[str, Plan], dict[str, str]]:
    """Every table that a run's files give, in the paper's order, and why the others are not
    there."""
    return _plans(Run(profile, Path(source)))


def _plans(run: Run) -> tuple[dict[str, Plan], dict[str, str]]:
    made, missing, root = {}, {}, project_root() / "papers_figures"
    for name, table in TABLES.items():
        if run.profile.data not in table.data:
            continue
        if lacking := _lacking(run, table.needs):
            missing[name] = lacking
            continue
        asked = (*table.needs, *table.reads)
        found = sorted({path for pattern in asked for path in run.source.glob(pattern)})
        values = {f"{stem}.csv": root / f"paper_values/{stem}.csv" for stem in table.reported}
        studies = {
            name: path for name in table.studies if (path := root / "studies" / name).exists()
        }
        made[name] = Plan(
            table,
            table.build(run),
            {p.relative_to(run.source).as_posix(): p for p in found},
            studies if run.profile.data == "clinic" else {},
            values,
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
    made, missing = _plans(run)
    for name, plan in made.items():
        said = STUDIED if plan.studies else ""
        more = run.facts | {"function": f"tables.{plan.table.function.__name__}"}
        more |= {"reported": tables.digests(plan.reported), "studies": tables.digests(plan.studies)}
        tables.save(
            plan.frame,
            out / "tables",
            name,
            plan.table.title,
            plan.sources,
            profile,
            profile.seed,
            said,
            more,
        )
    drawn = []
    for name, picture in FIGURES.items():
        table = TABLES.get(picture.table)
        if table and picture.table not in made:
            if picture.table in missing:
                missing.setdefault(name, missing[picture.table])
            continue
        if lacking := _lacking(run, picture.needs):
            missing[name] = lacking
            continue
        _draw(run, name, picture, made, out)
        drawn.append(name)
    claims.save(run.claims, out)
    all_tables.save(out)
    return {
        "tables": list(made),
        "figures": drawn,
        "not_built": missing,
        "claims": {c["id"]: c["verdict"] for c in run.claims},
    }


def _draw(run: Run, name: str, picture: Picture, made: Mapping[str, Plan], out: Path) -> None:
    plan = made.get(picture.table)
    sources = plan.sources if plan else {file: run.source / file for file in picture.needs}
    frame = (
        picture.frame(run, {n: p.frame for n, p in made.items()}) if picture.frame else plan.frame
    )
    more = run.facts | {"function": f"figures.{picture.plot.__name__}", "table": picture.table}
    more |= {"sources": tables.digests(sources)}
    plot = partial(picture.plot, **picture.settings(run.profile))
    note = tables.note(run.profile, run.profile.seed)
    plotting.save(plot, frame, out / "figures", name, note, more)


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
