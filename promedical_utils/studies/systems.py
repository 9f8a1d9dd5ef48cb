"""The study of systems: small versions of the compared ones, and a second backbone, on one bench.

What is equal and what not, ``small_systems`` and ``systems.yaml`` say.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from promedical_utils.core import run_data
from promedical_utils.core.profiles import Profile
from promedical_utils.core.workspace import read_json, short_hash, write_frame, write_json
from promedical_utils.data.sources.real_sets import refuse_external
from promedical_utils.evaluation import bench as benches
from promedical_utils.evaluation import scorers
from promedical_utils.pipeline import base as base_module
from promedical_utils.report import tables
from promedical_utils.reward_model import variants
from promedical_utils.rubric import preferences
from promedical_utils.rubric.preferences import digest
from promedical_utils.studies.reward_models import RewardModels
from promedical_utils.studies.study import Study

REPORTED = ("labels", "steps", "groups", "examples", "tokens", "seconds", "trained_parameters")


class Systems(RewardModels):
    kind, title = "systems", "Systems"
    known = Study.known

    def train(self, profile, folder, data, out) -> dict:
        bases = prepare_bases(profile, folder, self.plan)
        return super().train(profile, folder, data, out) | {"bases": bases}

    def one(self, profile, folder, data, made, held, name, seed):
        if name in variants.RECIPES:
            return super().one(profile, folder, data, made, held, name, seed)
        from promedical_utils.studies import small_systems  # late: loads torch

        place, base = folder / "reward" / f"{name}-{seed}", run_data.base_path(profile, folder)
        train = preferences.groups_of(data, "judge", "train")
        refuse_external(group.instruction for group in train)
        report = small_systems.train(name, train, base, place, profile=profile, seed=seed)
        stored = place / f"said-{short_hash(report['settings'], digest(held))}.parquet"
        if not stored.exists():
            predicted, preferred = scorers.predict(small_systems.load(name, place), held)
            write_frame(stored, preferred if predicted is None else predicted)
        row = {key: report[key] for key in REPORTED} | {"left_out": len(report["left_out"])}
        return pd.read_parquet(stored).assign(scorer=f"{name}-{seed}"), row

    def controls(self, profile, data, predicted, made, held) -> list[pd.DataFrame]:
        return [benches.length_scorer(held)]

    def counted(self, made, frames):
        # in single precision, as the committed study was counted
        single = {"score": "float32", "probability": "float32"}
        return super().counted(made, [f if "a_id" in f else f.astype(single) for f in frames])

    def rows(self, cells, against, manifest) -> pd.DataFrame:
        """A row a system, in percent; a cell that it has no answer to is empty."""
        models, rows = pd.DataFrame(manifest["models"]), []
        for name in self.ordered(cells):
            trained = models[models.model == name]
            row = {"system": self.shows["labels"][name], "status": tables.RUN, "labels": against}
            row |= {"seeds": len(trained), "steps": int(trained.steps.max()) if len(trained) else 0}
            rows.append(row | cells.wide(name, self.shows["columns"], against, "run_", 2))
        return pd.DataFrame(rows)


def prepare_bases(profile: Profile, folder: Path, plan: Mapping) -> dict[str, dict]:
    """Reports of bases by architecture: that of notebook 00, and of every other in the ``plan`` one
    that is trained, by the same lessons in the same steps, into a folder of its name."""
    from promedical_utils.reward_model.hub import source_of  # late: loads torch

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
            mark.unlink(missing_ok=True)
            trained = profile.model_copy(update={"base_architecture": architecture})
            base_module.train_base(trained, place)
            write_json(mark, {"of": key})
        reports[architecture] = read_json(place / "base_report.json", "00_start_here")
    keys = ("parameters", "steps", "seconds", "copy_rates", "cannot_copy")
    return {name: {k: report.get(k) for k in keys} for name, report in reports.items()}
