"""What claims are checked on: a run's own sums and rows, and the committed studies."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_utils.core.estimates import Estimates
from promedical_utils.core.workspace import KitError, read_json, shown
from promedical_utils.evaluation import bench, policy_metrics
from promedical_utils.evaluation import external as external_sets
from promedical_utils.studies import catalog, contrasts, results
from promedical_utils.studies.contrasts import Counted, Lacking

BENCH = ("predictions", "pairs", "verdicts", "grades")
RUN_FILES = {
    "reward_models": tuple(f"bench/{name}.parquet" for name in BENCH),
    "policies": ("policy/evaluation.parquet",),
    "external": ("external/predictions.parquet",),
    "healthbench": ("healthbench/graded.parquet",),
}
STANDS_IN = ("reward_models", "policies")


def external(frame: pd.DataFrame) -> Estimates:
    """external/predictions.parquet as a tally: (system, text, set, "truth"), hits over pairs; a
    system with retrieved documents is another, ``<system>_rag``."""
    key = {"metric": frame.text, "slice": frame["set"], "against": "truth"}
    key["scorer"] = frame.system + np.where(frame.retrieval, "_rag", "")
    return external_sets.estimates(frame.assign(**key), bench.KEY)


@dataclass(frozen=True)
class HealthBench:
    """The policy's HealthBench column (``healthbench.policy_column``), or why it has no value."""

    column: Mapping

    def labels_of(self, part: str) -> tuple[str, ...]:
        return ("rubric",)

    def find(self, check: Mapping, level: float = 0.95) -> dict:
        row = self.column["rows"].get("difference")
        if row is None or level != 0.95:
            raise Lacking(self.column["reason"])
        n = self.column["n"]
        found = row | {"difference": row["value"], "n": n, "df": n - 1}
        sides, test = [{"1": row["value"]}, {"1": 0.0}], "whole prompts, shared by both sides"
        return contrasts.contrast(check, found, sides, test, level)


@dataclass(frozen=True)
class Evidence:
    """What checks are made on: a source, or the reason why there is none; ``data``: what was run,
    ``policies``: of a study, with their hacking checks."""

    data: str
    files: tuple[str, ...] = ()
    source: Counted | HealthBench | None = None
    policies: Sequence[Mapping] = ()
    reason: str = ""


def of_run(profile, tally=None, evaluation=None, outside=None, healthbench=None) -> dict:
    """Evidence of ``RUN_FILES``, see ``claims.build_claims``; what did not run has its reason."""
    drawn, sources = (profile.bootstrap, profile.seed), {}
    if tally is not None:
        sources["reward_models"] = Counted(tally, *drawn)
    if evaluation is not None:
        evaluation = evaluation.assign(policy=evaluation.policy.replace("grpo", "full"))
        labels = policy_metrics.labels(evaluation)
        sources["policies"] = Counted(policy_metrics.sums(evaluation), *drawn, labels)
    if outside is not None and len(outside):
        sources["external"] = Counted(external(outside), *drawn)
    if healthbench is not None:
        sources["healthbench"] = HealthBench(healthbench)
    data, evidence = f"this run: profile {profile.name}, seed {profile.seed}, {profile.data}", {}
    for name, files in RUN_FILES.items():
        reason = "" if name in sources else f"this run has no {files[0]}"
        if name == "external" and outside is not None and outside.empty:
            reason = "notebook 06 ran no set"
        evidence[name] = Evidence(data, files, sources.get(name), reason=reason)
    return evidence


def of_study(folder: Path, name: str, profile) -> Evidence:
    """Evidence of a study; with a reason where it did not run (its manifest is written last), or is
    of the clinic, which says nothing of other data; KitError where it has lost its results."""
    place = Path(folder) / name
    if not (place / "manifest.json").exists():
        return Evidence(f"study {name}", reason=f"study {name} not run")
    manifest = read_json(place / "manifest.json", "of a study")
    settings, data = manifest["profile"], manifest["profile"]["data"]
    if data == "clinic" != profile.data:
        return Evidence(f"study {name}", reason=f"study {name} is of other data ({data})")
    if not (path := place / "results.csv").exists():
        raise KitError(f"missing {shown(path)}, which study {name} wrote: make study STUDY={name}")
    sums = catalog.study_of(name).sums(place)
    files = [file for file in (*results.COUNTED_FROM, path.name) if (place / file).exists()]
    return Evidence(
        f"study {name}: profile {settings['name']}, seed {settings['seed']}, {data}",
        (f"studies/{name}/{files[0]}", f"studies/{name}/manifest.json"),
        Counted(sums, settings["bootstrap"], settings["seed"]),
        manifest.get("policies", ()),
    )
