"""Runs through Snakemake: what is pending, bringing one up to date, the runs of a study."""

import fcntl
import os
import re
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from promedical_utils.core.profiles import OVERRIDES, profile_for
from promedical_utils.core.workspace import KitError, project_root, run_folder, shown
from promedical_utils.paper import rerun
from promedical_utils.run.notebooks import environment, fingerprint, notebooks, span
from promedical_utils.studies import catalog


def reproduce(name: str, run_dir: str = "") -> None:
    """Bring a run up to date, and set it beside the committed reference (``rerun``).

    Raises KitError: of a wrong profile before anything runs, of a failed notebook its line.
    """
    profile = profile_for(name)
    names, root, run = notebooks(profile), project_root(), run_folder(name, run_dir)
    for notebook in names:
        fingerprint(notebook, profile)
    needs = f"about {span(60 * profile.minutes)}, {profile.memory_gib:g} GiB"
    print(f"{name}: {len(names)} notebooks, {needs} -> {shown(run)}", flush=True)
    failure, log = run / "failure.txt", run / "snakemake.log"
    command = _snakemake(name, run_dir, "--cores", "all", "--quiet", "all", "--rerun-incomplete")
    variables = os.environ | {"PROMEDICAL_PYTHON": sys.executable}
    with alone(root) as lock, open(log, "w") as messages:
        failure.unlink(missing_ok=True)
        child = subprocess.Popen(command, cwd=root, env=variables, stderr=messages, pass_fds=[lock])
        try:
            code = child.wait()
        except KeyboardInterrupt:
            child.wait()
            raise KitError("stopped; the same command goes on from here") from None
    if code:
        unknown = f"{log.read_text().strip()}\nsnakemake failed, see {shown(log)}"
        raise KitError(failure.read_text().strip() if failure.exists() else unknown)
    print(f"{shown(run / 'rerun.md')}: {rerun.report(name, run_dir)}")


def run_study(name: str) -> None:
    """Bring every run of ``studies/<name>.yaml`` up to date, and what it trains on each of them."""
    plan, study = catalog.plan_of(name), catalog.study_of(name)
    given = os.environ.get(OVERRIDES, "")
    for run, settings in plan["runs"].items():
        os.environ[OVERRIDES] = f"{given} {settings}"  # a study's own settings stand last, and win
        place = catalog.study_folder(name, run)
        reproduce(plan["profile"], place.parent.as_posix())
        out, profile = project_root() / place, profile_for(plan["profile"])
        os.environ.update(environment(profile))
        if study is not None:
            with alone(project_root()):
                study.run(profile, out.parent, out)


def _snakemake(name: str, run_dir: str, *options: str) -> list[str]:
    command = [sys.executable, "-m", "snakemake", "--nolock", *options]
    return [*command, "--config", f"profile={name}", f"run={run_dir or f'runs/{name}'}"]


def pending(name: str) -> list[str]:
    """Notebooks that Snakemake would run now: missing, failed, or of other code or settings."""
    command = _snakemake(name, "", "--dry-run")
    answer = subprocess.run(command, cwd=project_root(), capture_output=True, text=True)
    messages = answer.stdout + answer.stderr
    if answer.returncode:
        raise KitError(f"snakemake --dry-run failed: {messages.strip()}")
    return re.findall(r"^rule notebook_(\w+):", messages, re.MULTILINE)


@contextmanager
def alone(root: Path):
    """Hold this checkout's lock; the system drops it with the last process, however that ends.

    Snakemake's own lock outlives a killed run and then asks for --unlock, hence --nolock there.
    """
    (root / "runs").mkdir(exist_ok=True)  # the run itself may be elsewhere
    with open(root / "runs" / ".lock", "w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise KitError("another run is going on in this checkout: wait or stop it") from None
        yield handle.fileno()
