"""A run's folder as its notebooks see it: how it is opened, what it is, and the records in it."""

import platform
from importlib.metadata import version
from pathlib import Path

from promedical_utils.core import profiles, provenance, records
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Candidate, Instruction, Rubric, SplitRow, Verdict
from promedical_utils.core.workspace import (
    KitError,
    need,
    run_folder,
    shown,
    write_json,
)

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "datasets",
    "scikit-learn",
    "bm25s",
)


def open_run(profile: str, run_dir: str = "", seed: int = -1) -> tuple[Profile, Path]:
    """The validated profile and the run's folder: the first call of every notebook."""

    return profiles.profile_for(profile, seed), run_folder(profile, run_dir)


def banner(profile: Profile) -> str:
    """What must be said wherever this run's numbers are shown."""
    lines = [f"profile {profile.name}, seed {profile.seed}: {profile.description}"]
    if profile.data == "clinic":
        lines.append("The clinic is invented: no drug, dose or rule in it is medical knowledge.")
    if profile.name == "smoke":
        lines.append("SMOKE RUN: its numbers are no results; they only show that every part runs.")
    return "\n".join(lines)


# ---------------------------------------------------------------- 00 base model


def base_path(profile: Profile, run: Path, architecture: str = ""):
    """Folder of the kit's own base, or the profile's hub id (or folder) as it stands.

    One of another ``architecture`` than the profile's stands in a folder of that name, which the
    study of systems writes; KitError where the base is not the kit's own.
    """
    if architecture in ("", profile.base_architecture):
        return (
            need(run / "base", "00_start_here")
            if profile.base_model == "small"
            else profile.base_model
        )
    if profile.base_model != "small":
        raise KitError(
            f"no {architecture} base beside {profile.base_model}: base_model=small trains one"
        )
    if not (train_base := run / architecture / "base").exists():
        raise KitError(f"missing {shown(train_base)}: make study STUDY=systems trains it")
    return train_base


def manifest(profile: Profile, run: Path) -> dict:
    """What this run is: the kit's code, settings, packages, machine kind. No paths, no dates."""
    content = {
        "kit": provenance.kit(),
        "profile": profile.model_dump(),
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
    }
    write_json(run / "manifest.json", content)
    return content


# ---------------------------------------------------------------- 02 pairs


def data(run: Path) -> dict[str, list]:
    """All records that 01 and 02 wrote: instructions, rubrics, splits, candidates, verdicts."""
    kinds = {
        "instructions": Instruction,
        "rubrics": Rubric,
        "splits": SplitRow,
        "candidates": Candidate,
        "verdicts": Verdict,
    }
    return {
        name: records.load(
            run / f"data/{name}.parquet",
            kind,
            "02_preference_pairs" if name in ("candidates", "verdicts") else "01_rubrics",
        )
        for name, kind in kinds.items()
    }


def split_ids(found: dict[str, list], *names: str) -> list[str]:
    return [row.instruction_id for row in found["splits"] if row.split in names]


def criterion_kinds(found: dict[str, list]) -> dict[str, str]:
    return {c.id: c.kind for r in found["rubrics"] for c in r.criteria}
