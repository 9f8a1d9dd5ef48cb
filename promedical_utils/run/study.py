"""Run a study: its run first, then what it trains and compares on the run's data."""

import os

from promedical_utils.core.profiles import OVERRIDES, profile_for
from promedical_utils.core.workspace import project_root
from promedical_utils.run.graph import alone, reproduce
from promedical_utils.run.notebooks import environment
from promedical_utils.studies.catalog import study_of
from promedical_utils.studies.plans import plan_of, study_folder


def run_study(name: str) -> None:
    """Run every run of ``studies/<name>.yaml``, then train and compare on each run's data what it
    lists; what is up to date costs seconds."""
    plan, study = plan_of(name), study_of(name)
    given = os.environ.get(OVERRIDES, "")
    for run, settings in plan["runs"].items():
        os.environ[OVERRIDES] = f"{given} {settings}"  # a study's own settings stand last, and win
        place = study_folder(name, run)
        reproduce(plan["profile"], place.parent.as_posix())
        out = project_root() / place
        profile = profile_for(plan["profile"])
        os.environ.update(environment(profile))
        if study is not None:
            with alone(project_root()):
                study.run(profile, out.parent, out)
