"""The studies that there are, each of its kind."""

from promedical_utils.studies.plans import plan_of
from promedical_utils.studies.policies import Policies
from promedical_utils.studies.reward_models import RewardModels
from promedical_utils.studies.study import Study
from promedical_utils.studies.systems import Systems

KINDS = (RewardModels, Systems, Policies)


def study_of(name: str) -> Study | None:
    """The study of ``studies/<name>.yaml``; None where that has runs and nothing to train."""
    plan = plan_of(name)
    for kind in KINDS:
        if kind.kind in plan:
            return kind(plan[kind.kind], plan.get("frozen_on", ""))
    return None
