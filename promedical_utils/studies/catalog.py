"""The studies that there are: the plan of each (``promedical_studies/<name>.yaml``), its class."""

from functools import cache
from pathlib import Path
from pkgutil import resolve_name

from promedical_utils.core.workspace import KitError, read_yaml

STUDIES = Path(__file__).parents[2] / "promedical_studies"  # plans, kinds and their code
READS = ("promedical_studies/kinds",)


@cache
def kind_of(name: str) -> dict:
    """What ``kinds/<name>.yaml`` says: class, labels, comparisons and columns of a kind."""
    return read_yaml(STUDIES / f"kinds/{name}.yaml")


def studies() -> list[str]:
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def plan_of(name: str) -> dict:
    """What the plan of that name says."""
    if name not in studies():
        choice = ", ".join(studies())
        raise KitError(f"unknown study {name!r}: choose one of {choice} (make study STUDY=...)")
    return read_yaml(STUDIES / f"{name}.yaml")


def study_of(name: str):
    """The study of that plan (a ``study.Study``), by the class that its kind names; None where it
    has runs and nothing to train."""
    plan = plan_of(name)
    for kind in (path.stem for path in (STUDIES / "kinds").glob("*.yaml")):
        if kind in plan:
            return resolve_name(kind_of(kind)["class"])(plan[kind], plan.get("frozen_on", ""))
    return None


def study_folder(name: str, run: str = "main") -> Path:
    """Where a study's tables go, from the root: below its run, which studies of one ``folder``
    share."""
    return Path("runs/studies", plan_of(name).get("folder", name), run, name)
