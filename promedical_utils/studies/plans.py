"""The plans of studies, and what each kind of study shows."""

from functools import cache
from pathlib import Path

import yaml

from promedical_utils.core.workspace import KitError

STUDIES = Path(__file__).parent


def studies() -> list[str]:
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def plan_of(name: str) -> dict:
    """What ``studies/<name>.yaml`` says."""
    if name not in studies():
        choice = ", ".join(studies())
        raise KitError(f"unknown study {name!r}: choose one of {choice} (make study STUDY=...)")
    return yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))


@cache
def kind_of(name: str) -> dict:
    """What ``studies/kinds/<name>.yaml`` says: labels, comparisons, columns and goals of a kind."""
    return yaml.safe_load((STUDIES / f"kinds/{name}.yaml").read_text(encoding="utf-8"))


def study_folder(name: str, run: str = "main") -> Path:
    """Where a study's tables go, from the root: below its run, which studies of one ``folder``
    share."""
    return Path("runs/studies", plan_of(name).get("folder", name), run, name)
