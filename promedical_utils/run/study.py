"""Run a study: its run first, then what it trains and compares on the run's data."""

import os

from promedical_utils.core.profiles import OVERRIDES, overrides, profile_for
from promedical_utils.core.workspace import project_root
from promedical_utils.run.graph import alone, reproduce
from promedical_utils.run.notebooks import environment
from promedical_utils.studies import policies as policy_study
from promedical_utils.studies import reward_models
from promedical_utils.studies import systems as systems_study
from promedical_utils.studies.plans import plan_of, study_folder


def run_study(name: str) -> None:
    """Run every run of ``studies/<name>.yaml``; those that are up to date cost seconds.

    ``reward_models`` there are trained and compared on each run's data (``reward_models``), and so
    are ``systems`` (``systems``) and ``policies`` (``policies``).
    """
    plan = plan_of(name)
    given = os.environ.get(OVERRIDES, "")
    for run, settings in plan["runs"].items():
        os.environ[OVERRIDES] = f"{given} {settings}"  # a study's own settings stand last, and win
        place = study_folder(name, run)
        reproduce(plan["profile"], place.parent.as_posix())
        out = project_root() / place
        os.environ.update(environment(profile_for(plan["profile"])))
        if models := plan.get("reward_models"):
            with alone(project_root()):
                reward_models.run(profile_for(plan["profile"]), out.parent, models, out)
        if systems := plan.get("systems"):
            with alone(project_root()):
                settled = profile_for(plan["profile"])
                systems_study.run(settled, out.parent, systems, out, plan["frozen_on"])
        if policies := plan.get("policies"):
            with alone(project_root()):
                policy_study.run(
                    plan["profile"], overrides(), out.parent, policies, out, plan["frozen_on"]
                )
