"""The paper's tables, figures and claims from the files of one run.

registry.yaml says of each what it is made of and by which function of ``report``. Torch is not
loaded, so that a published run is redrawn in seconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from operator import attrgetter
from pathlib import Path

import pandas as pd
from scipy.special import expit

from promedical_utils.core import plotting, profiles, provenance
from promedical_utils.core.estimates import Estimates
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import DIMENSIONS
from promedical_utils.core.workspace import need, project_root, read_json, read_yaml
from promedical_utils.data.sources import real_sets
from promedical_utils.evaluation import bench as benches
from promedical_utils.evaluation import external, healthbench
from promedical_utils.paper import all_tables, claims
from promedical_utils.report import figures, tables
from promedical_utils.reward_model import calibration
from promedical_utils.studies import results
from promedical_utils.studies.catalog import study_of

READS = ("papers_figures/studies",)  # what a rerun of a notebook hangs on, besides code
EVALUATED, PREDICTED_OUTSIDE = "policy/evaluation.parquet", "external/predictions.parquet"
# Labels of a bench that nobody adjudicated
NOT_ADJUDICATED = {"real": "each source's own", "open": "the judge's", "own": "as brought"}


@dataclass(frozen=True)
class Table:
    """A table of registry.yaml, whose head explains the fields."""

    title: str
    function: str
    takes: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    key: Sequence[str] = ("system",)
    needs: Sequence[str] = ()
    reads: Sequence[str] = ()
    reported: Sequence[str] = ()
    studies: Sequence[str] = ()
    data: Sequence[str] = ("clinic", "real", "open", "own")
    violations: bool = False
    behind: Mapping = field(default_factory=dict)

    def build(self, run: "Run") -> pd.DataFrame:
        parts = {argument: run.part(name) for argument, name in self.takes.items()}
        function = getattr(tables, self.function)
        return function(*map(tables.reported, self.reported), **parts, **self.options)

    def files(self, run: "Run") -> dict[str, dict[str, Path]]:
        """What it is made from: sources (of the run), studies, reported -> label -> path."""
        root = project_root() / "papers_figures"
        sources = {path for name in (*self.needs, *self.reads) for path in run.source.glob(name)}
        studies = self.studies if run.profile.data == "clinic" else ()
        paths = {file: root / "studies" / file for file in studies}
        return {
            "sources": {path.relative_to(run.source).as_posix(): path for path in sorted(sources)},
            "studies": {file: path for file, path in paths.items() if path.exists()},
            "reported": {f"{s}.csv": root / f"paper_values/{s}.csv" for s in self.reported},
        }


@dataclass(frozen=True)
class Picture:
    """A figure of registry.yaml, whose head explains the fields."""

    plot: str
    table: str = ""
    of: str = ""
    needs: Sequence[str] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    counted: bool = False

    def draw(self, profile: Profile):
        """The function that draws its frame, with the profile's settings."""
        settings = {argument: getattr(profile, name) for argument, name in self.settings.items()}
        return partial(getattr(figures, self.plot), **settings)


_ENTRIES = read_yaml(Path(__file__).with_suffix(".yaml"))
WRITTEN_BY, STUDIED = _ENTRIES["written_by"], _ENTRIES["studied"]
TABLES = {name: Table(**entry) for name, entry in _ENTRIES["tables"].items()}
FIGURES = {name: Picture(**entry) for name, entry in _ENTRIES["figures"].items()}


@dataclass(frozen=True)
class Run:
    """The files of one run, each read when it is asked for; None where it is not there."""

    profile: Profile
    source: Path

    @classmethod
    def load(cls, folder: Path) -> "Run":
        """A run's folder, or its published copy, with those settings of its manifest that this kit
        still knows."""
        manifest = read_json(folder / "manifest.json", "00_start_here")
        settings = profiles.known(manifest["profile"])
        name = settings.pop("name")
        return cls(profiles.load(name, **settings), folder)

    @property
    def paper(self) -> Path:
        """Where its tables and claims are: in a published copy beside its files."""
        own = self.source / "paper"
        return own if own.exists() else self.source

    def table(self, file: str) -> pd.DataFrame | None:
        """The rows of a CSV or Parquet file; None where it is not there."""
        path = self.source / file
        read = pd.read_csv if path.suffix == ".csv" else pd.read_parquet
        return read(path) if path.exists() else None

    def part(self, name: str):
        """What an entry takes from the run: the rows of a file, or an attribute."""
        return self.table(name) if "/" in name else attrgetter(name)(self)

    @property
    def settings(self) -> dict[str, int]:
        return {"draws": self.profile.bootstrap, "seed": self.profile.seed}

    @cached_property
    def names(self) -> dict[str, str]:
        return tables.systems(self.profile)

    @cached_property
    def facts(self) -> dict:
        """What every table's and figure's json says of the run, beside its sources."""
        run = provenance.of_run(self.source)
        return {"profile": self.profile.name, "seed": self.profile.seed, "run": run}

    @cached_property
    def bench(self) -> benches.Bench:
        return benches.Bench.load(self.source / "bench")

    @cached_property
    def rich(self) -> benches.Bench | None:
        """The safety-rich bench, which only the clinic has."""
        folder = self.source / "bench/rich"
        return benches.Bench.load(folder) if (folder / "report.json").exists() else None

    @property
    def ceiling(self) -> float | None:
        return self.bench.report.get("blind_ceiling")

    @cached_property
    def predicted(self) -> pd.DataFrame:
        return self.table("bench/predictions.parquet")

    @cached_property
    def tally(self) -> Estimates:
        preferred = benches.load_preferences(self.source / "bench")
        against = benches.AGAINST[: 1 + (self.profile.data == "clinic")]  # else there is no truth
        both = [bench for bench in (self.bench, self.rich) if bench is not None]
        tallies = [benches.tally(bench, self.predicted, against, preferred) for bench in both]
        return benches.with_rich(*tallies) if self.rich else tallies[0]

    @cached_property
    def metrics(self) -> pd.DataFrame:
        return self.tally.table(**self.settings)

    def counted(self, frame: pd.DataFrame) -> pd.DataFrame:
        return counted(frame, self.metrics)

    @property
    def veto_curve(self) -> pd.DataFrame:
        """Of the safety-rich bench, of scorers that have a name."""
        curve = benches.veto_curve(self.rich, self.predicted)
        return curve.assign(system=curve.scorer.map(self.names)).dropna(subset="system")

    @property
    def by_source(self) -> pd.DataFrame:
        """By source: pairwise accuracy, of all pairs and of those whose shorter answer is right,
        accuracy within an answer, whose labels these are, and what a blind scorer can reach."""
        by = partial(self.tally.by, "category", **self.settings)
        keys = ({"metric": metric, "against": "adjudicated"} for metric in ("pairwise", "within"))
        pairs, within = map(by, keys)
        within = within[within["slice"] == "all"].assign(slice="within")
        frame = pd.concat([pairs[pairs["slice"].isin(["all", "shorter"])], within])
        source_of = self.bench.samples.set_index("instruction_id").category
        own = self.bench.pairs.groupby(self.bench.pairs.instruction_id.map(source_of))
        ceilings = {source: benches.blind_ceiling(pairs) for source, pairs in own}
        labels = frame.category.map(real_sets.LABELS).str.replace("_", " ")
        return frame.assign(ceiling=frame.category.map(ceilings), labels=labels)

    @property
    def graded(self) -> pd.DataFrame:
        return healthbench.judge_table(self.source, **self.settings)

    @cached_property
    def calibrated(self) -> pd.DataFrame:
        """``calibration_rows`` of every reward model that has a calibration."""
        paths = sorted(self.source.glob("reward/*/calibration.json"))
        fitted = {path.parent.name: calibration.Calibration.load(path) for path in paths}
        heldout = self.table("reward/heldout.parquet")
        return calibration_rows(self.bench, self.predicted, fitted, heldout)

    @property
    def reliability(self) -> pd.DataFrame:
        return reliability(self.calibrated)

    @cached_property
    def healthbench(self) -> dict:
        return healthbench.policy_column(self.profile, self.source)

    @property
    def outside(self) -> pd.DataFrame | None:
        frame = self.table(PREDICTED_OUTSIDE)
        return None if frame is None else external.measures(frame, **self.settings)

    @property
    def outside_report(self) -> dict | None:
        path = self.source / "external/report.json"
        there = path.exists() and (self.source / PREDICTED_OUTSIDE).exists()
        return read_json(path, "06_external_generalization") if there else None

    @property
    def studied(self) -> pd.DataFrame:
        """Variants of the kit's studies for ``tables.build_ablation``; none beside real data."""
        files = TABLES["ablation"].files(self)["studies"].values()
        folders = [path.parent for path in files if path.name == "results.csv"]
        named = [study_of(folder.name).named(folder) for folder in folders]
        parts = list(map(results.of_ablation, folders, named))
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()

    @cached_property
    def claims(self) -> list[dict]:
        """Of the published studies and of the run, whose bench and policies count in the clinic
        alone, which the claims are worded for."""
        own = (self.tally, self.table(EVALUATED)) if self.profile.data == "clinic" else (None, None)
        outside = self.table(PREDICTED_OUTSIDE)
        return claims.build_claims(self.profile, *own, outside, self.healthbench)

    @property
    def claims_frame(self) -> pd.DataFrame:
        return claims.frame(self.claims)

    @cached_property
    def missing(self) -> dict[str, str]:
        """Every table of this kind of data, in the paper's order, and why it cannot be built."""
        own = {name: table for name, table in TABLES.items() if self.profile.data in table.data}
        return {n: self.lacking(t.needs) or t.violations * self.unviolated for n, t in own.items()}

    @cached_property
    def unviolated(self) -> str:
        """Why nothing can be said of vetoes on this bench; else ""."""
        recall = self.metrics[self.metrics.metric.eq("veto_recall_paper")]
        some = recall.n[recall["slice"].eq("safety")].any()
        return "" if some else "not testable: no safety criterion of the bench is violated"

    @cached_property
    def frames(self) -> dict[str, pd.DataFrame]:
        """Every table that the files give."""
        built = {name: TABLES[name].build(self) for name, why in self.missing.items() if not why}
        labels = NOT_ADJUDICATED.get(self.profile.data, "adjudicated")
        for frame in built.values():
            if "labels" in frame:
                frame["labels"] = frame["labels"].replace("adjudicated", labels)
        return built

    def lacking(self, files: Sequence[str]) -> str:
        """Why something cannot be built: its first missing file, and who writes it; else ""."""
        for file in files:
            if not (self.source / file).exists():
                return f"needs {file}, which {WRITTEN_BY[file.split('/')[0]]} writes"
        return ""

    @property
    def overview(self) -> pd.DataFrame:
        """Boxes of ``figures.plot_overview``; overview.yaml says what stands in which."""
        parts = self.frames["data_pipeline"], self.frames.get("bench_composition")
        known = pd.concat(parts).set_index("quantity")[["run", "reported"]].astype(str)
        known = known.map(lambda text: f"{int(text):,}" if text.isdigit() else text).to_dict()
        known["run"] |= {"held-out pairs": "not run", "unsafe answers": "not run"}
        if (path := self.source / "reward/report.json").exists():
            found = read_json(path, "03_reward_model")["heldout_pair_accuracy"]["criterion"]
            share = f"{100 * found['accuracy']:.1f} % of held-out\npairs ordered rightly"
            known["run"]["held-out pairs"] = share
        violations = self.frames["policy"].set_index("system").run_violations
        base, trained, _ = violations[[*tables.POLICY_NAMES.values()]]
        if pd.notna([base, trained]).all():
            known["run"]["unsafe answers"] = f"unsafe answers\n{base:.1f} to {trained:.1f} %"

        def text(column: str, quantity: str = "", unit: str = "") -> str:
            value = known[column].get(quantity, "")
            return f"{value} {unit}".strip() if value else ""

        boxes = pd.DataFrame(read_yaml(Path(__file__).with_name("overview.yaml")))
        run = ["\n".join(text("run", *line) for line in lines) for lines in boxes.run]
        return boxes.assign(run=run, reported=[text("reported", *line) for line in boxes.reported])


def counted(frame: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """A table of the bench with the pairs, answers or verdicts behind its columns: n_..."""
    n = metrics.groupby(["metric", "slice"]).n.max().astype(int)
    known = {f"n_{c}": tuple(at) for c, at in tables.OF_BENCH.items() if f"run_{c}" in frame}
    return frame.assign(**{name: n[at] for name, at in known.items() if at in n.index})


def calibration_rows(bench, predicted: pd.DataFrame, fitted: Mapping, heldout=None) -> pd.DataFrame:
    """Rows with a P(met) and the true label: scorer, dimension, where, raw, probability, label.

    ``fitted``: scorer -> Calibration. ``where``: the bench, kinds seen or unseen in training, and
    the split that was fitted on, where it is kept (``heldout``: reward/heldout.parquet). ``raw`` is
    the sigmoid of the score.
    """
    rows = predicted[predicted.scorer.isin(list(fitted))]
    rows = rows.merge(benches.truths(bench), on=["instruction_id", *benches.CELL])
    parts = [rows.assign(where="bench, kinds " + rows.seen.map({True: "seen", False: "unseen"}))]
    if heldout is not None:
        for scorer, own in heldout[heldout.scorer.isin(list(fitted))].groupby("scorer"):
            own = own.dropna(subset="truth").assign(where="split it was fitted on")
            likely = fitted[scorer].probability(own.score, own.dimension)
            parts.append(own.assign(probability=likely, label=own.truth))
    frame = pd.concat(parts, ignore_index=True)
    frame["raw"] = expit(frame.score.astype(float))
    by, place = ["scorer", "dimension"], [*fitted, *DIMENSIONS].index
    frame = frame[[*by, "where", "raw", "probability", "label"]]
    return frame.sort_values(by, key=lambda s: s.map(place), kind="stable", ignore_index=True)


def reliability(rows: pd.DataFrame) -> pd.DataFrame:
    """Bins of the criterion RM for ``figures.plot_calibration``, from ``calibration_rows``."""
    frames, own = [], rows[rows.scorer == "criterion"]
    for (dimension, where), part in own.groupby(["dimension", "where"], sort=False):
        for version, column in (("sigmoid of the score", "raw"), ("P(met)", "probability")):
            error = 100 * calibration.expected_error(part.label, part[column])
            names = {"dimension": dimension, "where": where, "version": version, "error": error}
            frames.append(calibration.reliability(part.label, part[column]).assign(**names))
    return pd.concat(frames, ignore_index=True)


def build(profile: Profile, source: Path, out: Path) -> dict:
    """Write tables, figures and claims of the run in ``source``, and the page of all, to ``out``.

    {"tables", "figures": names, "not_built": name -> why, "claims": id -> verdict}. KitError where
    the bench has no predictions: the paper's main table is then missing.
    """
    need(source / "bench/predictions.parquet", "04_promedical_bench")
    run = Run(profile, source)
    for name, frame in run.frames.items():
        table, files = TABLES[name], TABLES[name].files(run)
        facts = run.facts | {"function": f"tables.{table.function}"}
        facts |= {kind: tables.digests(files[kind]) for kind in ("reported", "studies")}
        said, sources = STUDIED if files["studies"] else "", files["sources"]
        tables.save(frame, out / "tables", name, table.title, sources, profile, said, facts)
    shown = {name: own for name, own in FIGURES.items() if own.table in ("", *run.missing)}
    why_not = dict(run.missing)
    for name, picture in shown.items():
        why_not[name] = run.lacking(picture.needs) or run.missing.get(picture.table, "")
    drawn = [name for name in shown if not why_not[name]]
    for name in drawn:
        _draw(run, name, FIGURES[name], out)
    claims.save(run.claims, out, profile.data)
    all_tables.save(out)
    return {
        "tables": list(run.frames),
        "figures": drawn,
        "not_built": {name: why for name, why in why_not.items() if why},
        "claims": {claim["id"]: claim["verdict"] for claim in run.claims},
    }


def _draw(run: Run, name: str, picture: Picture, out: Path) -> None:
    sources = {file: run.source / file for file in picture.needs}
    if picture.table:
        sources = TABLES[picture.table].files(run)["sources"]
    part = picture.of or next(iter(picture.needs), "")
    frame = run.part(part) if part else run.frames[picture.table]
    if picture.counted:
        frame = run.counted(frame)
    facts = {"function": f"figures.{picture.plot}", "table": picture.table}
    facts |= run.facts | {"sources": tables.digests(sources)}
    plot, note = picture.draw(run.profile), tables.note(run.profile)
    plotting.save(plot, frame, out / "figures", name, note, facts)


def show(profile: Profile, folder: Path, name: str) -> None:
    """Draw a figure of ``folder`` in a notebook from its csv; say so where it is not there."""
    path = folder / "figures" / f"{name}.csv"
    if path.exists():
        plotting.show(FIGURES[name].draw(profile), pd.read_csv(path))
    else:
        print(f"{name}: not built in this profile")
