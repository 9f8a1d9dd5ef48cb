"""The studies that there are: what ``studies/<name>.yaml`` says of each, and its kind."""

from pathlib import Path

from promedical_utils.core.workspace import KitError, read_yaml
from promedical_utils.studies.learning_curve import LearningCurve
from promedical_utils.studies.policies import Policies
from promedical_utils.studies.real_policy import RealPolicy
from promedical_utils.studies.real_text import RealText
from promedical_utils.studies.reward_models import RewardModels
from promedical_utils.studies.study import STUDIES, Study


def studies() -> list[str]:
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def plan_of(name: str) -> dict:
    """What ``studies/<name>.yaml`` says."""
    if name not in studies():
        choice = ", ".join(studies())
        raise KitError(f"unknown study {name!r}: choose one of {choice} (make study STUDY=...)")
    return read_yaml(STUDIES / f"{name}.yaml")


def study_of(name: str) -> Study | None:
    """The study of ``studies/<name>.yaml``; None where that has runs and nothing to train."""
    plan = plan_of(name)
    for kind in (RewardModels, Policies, RealText, LearningCurve, RealPolicy):
        if kind.kind in plan:
            return kind(plan[kind.kind], plan.get("frozen_on", ""))
    return None


def study_folder(name: str, run: str = "main") -> Path:
    """Where a study's tables go, from the root: below its run, which studies of one ``folder``
    share."""
    return Path("runs/studies", plan_of(name).get("folder", name), run, name)
