"""Copy a complete run to ``papers_figures/<profile>/``, the committed reference of that profile."""

import shutil
from pathlib import Path

from promedical_utils import profiles, runs
from promedical_utils.workspace import KitError, project_root, run_folder, shown

# from below the run folder -> to below the reference
AGGREGATES = {
    "paper/tables/*": "tables",
    "paper/figures/*": "figures",
    "paper/claims.*": ".",
    "manifest.json": ".",
    "timings.json": ".",
    "base_report.json": ".",
    "data/*.json": "data",
    "reward/*.json": "reward",
    "bench/*.json": "bench",
    "policy/*.json": "policy",
    "policy/curve.csv": "policy",
}
# Rows, and notebooks that print texts: only for the clinic, whose texts are the kit's own.
ROWS = {
    "bench/*.parquet": "bench",
    "reward/heldout.parquet": "reward",
    "policy/evaluation.parquet": "policy",
    "notebooks/*.ipynb": "executed",
}
TEXTS = {".json", ".csv", ".md", ".tex", ".ipynb", ".svg"}


def publish(name: str) -> Path:
    """Replace ``papers_figures/<name>`` by the run's tables, figures, claims, rows and notebooks.

    A profile on real data publishes aggregates only. Raises KitError for a run that is not whole
    and up to date, or that has this machine's paths in it; the reference is then left as it was.
    """
    profile = profiles.load(name)
    if runs.overrides():
        raise KitError("publish takes a profile as it stands: leave SET and BASE out")
    run, root = run_folder(name), project_root()
    waiting = runs.pending(name)
    if waiting:
        raise KitError(
            f"{shown(run)} is no complete run of profile {name} as it stands "
            f"(to run: {', '.join(waiting)}); make reproduce PROFILE={name} first"
        )
    place = root / "papers_figures" / name
    fresh, old = place.with_name(f"{name}.tmp"), place.with_name(f"{name}.old.tmp")
    for folder in (fresh, old):
        shutil.rmtree(folder, ignore_errors=True)
    try:
        for pattern, folder in (AGGREGATES | (ROWS if profile.data == "clinic" else {})).items():
            for path in sorted(run.glob(pattern)):
                if path.is_file() and not path.name.startswith("."):
                    _check(path, root)
                    (fresh / folder).mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, fresh / folder / path.name)
        if place.exists():
            place.rename(old)
        fresh.rename(place)
    finally:
        if old.exists() and not place.exists():
            old.rename(place)
        for folder in (fresh, old):
            shutil.rmtree(folder, ignore_errors=True)
    return place


def _check(path: Path, root: Path) -> None:
    text = path.read_text(encoding="utf-8") if path.suffix in TEXTS else ""
    for folder in (str(root), str(Path.home())):
        if folder != "/" and f"{folder}/" in text:
            raise KitError(
                f"{shown(path)} holds a path of this machine: print workspace.shown(path) instead"
            )
