"""The committed references in ``papers_figures``: copied there from a run, redrawn from rows."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pandas as pd

from promedical_audit import paper_numbers
from promedical_utils.core import profiles, workspace
from promedical_utils.core.profiles import Profile
from promedical_utils.core.run_data import RunData
from promedical_utils.core.workspace import KitError, project_root, run_folder, shown
from promedical_utils.data.sources.question_split import runs
from promedical_utils.data.sources.real_sets import NEUTRAL
from promedical_utils.paper import found, registry
from promedical_utils.run import graph
from promedical_utils.studies import catalog

PUBLISHED = workspace.read_yaml(Path(__file__).with_suffix(".yaml"))
MEASURED = ("speed", "scale", "policy", "open")  # parts of make bench, and what trial counted
RENAMED = {"paper": ".", "notebooks": "executed"}  # folders that the reference calls otherwise
TEXTS = {".json", ".csv", ".md", ".tex", ".ipynb", ".svg"}


def publish(name: str) -> Path:
    """Replace ``papers_figures/<name>`` by the run's tables, figures, claims, rows and notebooks.

    What is published of it stands in publish.yaml. ``name`` may also be of ``MEASURED`` or a study.
    Raises KitError for a run that is not whole and up to date, that has this machine's paths in it,
    or notebooks with a text of a public set; the reference is then left as it was.
    """
    root = project_root()
    target = root / "papers_figures" / name
    if name in MEASURED:
        trial, bench = "python -m promedical_studies.trial", f"make bench BENCH={name}"
        command = trial if name == "open" else bench
        return _measured(root / "runs" / name, f"{name}.json", target, command)
    if name in catalog.studies():
        folder, target = root / catalog.study_folder(name), root / "papers_figures/studies" / name
        return _measured(folder, "manifest.json", target, f"make study STUDY={name}")
    profile = profiles.load(name)
    if profiles.overrides():
        raise KitError("publish takes a profile as it stands: leave SET and BASE out")
    run = run_folder(name)
    if waiting := graph.pending(name):
        raise KitError(
            f"{shown(run)} is no complete run of profile {name} as it stands "
            f"(to run: {', '.join(waiting)}); make reproduce PROFILE={name} first"
        )
    predicted = run / "external/predictions.parquet"
    if profile.data == "clinic" and predicted.exists():
        sets = set(pd.read_parquet(predicted, columns=["set"])["set"])
        if real := ", ".join(sorted(sets - {"clinic"})):
            raise KitError(f"{shown(predicted)} has rows of {real}: run notebook 06 without them")
    if profile.data == "real":
        _refuse_texts(run)
    kinds = [kind["files"] for kind in PUBLISHED if profile.data in kind["of"]]
    files = sorted(path for pattern in chain(*kinds) for path in run.glob(pattern))
    return _replace(run, [path for path in files if path.is_file()], target)


def _measured(folder: Path, last: str, target: Path, command: str) -> Path:
    """Publish tables and figures; not pytest-benchmark's own file, which describes the machine."""
    if not (folder / last).exists():
        raise KitError(f"missing {shown(folder / last)}, which is written last: {command} first")
    files = [p for p in sorted(folder.iterdir()) if p.is_file() and p.name != "measured.json"]
    return _replace(folder, files, target)


def _replace(run: Path, files: list[Path], target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(suffix=".tmp", dir=target.parent) as work:
        fresh, old = Path(work, "new"), Path(work, "old")
        for path in (path for path in files if not path.name.startswith(".")):
            _check(path)
            first, *rest = path.relative_to(run).parts
            copy = fresh.joinpath(RENAMED.get(first, first), *rest)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        if target.exists():
            target.rename(old)
        try:
            fresh.rename(target)
        except OSError:
            if old.exists():
                old.rename(target)
            raise
    return target


def _refuse_texts(run: Path) -> None:
    """KitError where a notebook prints as many words in a row of a set as tell a copy."""
    data = RunData.load(run, "instructions", "rubrics", "candidates")
    texts = [message.content for asked in data.instructions for message in asked.messages]
    texts += [answer.text for answer in data.candidates]
    texts += [c.text for rubric in data.rubrics for c in rubric.criteria]
    known = set().union(*map(runs, texts)) - runs(NEUTRAL.text)  # words of the kit's own
    for path in sorted(run.glob("notebooks/*.ipynb")):
        for number, cell in enumerate(workspace.read_json(path, "of a run")["cells"]):
            if any(runs(text) & known for text in _printed(cell)):
                raise KitError(
                    f"{shown(path)}, cell {number}, prints a text of a public set: show it in "
                    "the clinic alone (pipeline.notebook_display)"
                )


def _printed(cell: dict) -> Iterator[str]:
    for output in cell.get("outputs", ()):
        for kind, text in {"text": output.get("text", ""), **output.get("data", {})}.items():
            if not kind.startswith("image/"):
                yield re.sub(r"<[^>]*>", " ", "".join(text))


def _check(path: Path) -> None:
    text = path.read_text(encoding="utf-8") if path.suffix in TEXTS else ""
    folders = {project_root(), Path.home()} - {Path("/")}
    if any(f"{folder}/" in text for folder in folders):
        where = f"{shown(path)} holds a path of this machine"
        raise KitError(f"{where}: print workspace.shown(path) instead")


def redraw(profile: Profile) -> str:
    """Redraw a profile's committed reference and its studies from their rows; lines to print."""
    root = project_root() / "papers_figures"
    place, lines = root / profile.name, []
    workspace.need(place / "bench/predictions.parquet", "of a published run; make publish")
    # the studies first: the ablation reads their files
    for path in sorted(root.glob("studies/*/manifest.json")):
        manifest = workspace.read_json(path, "of a study (make study)")
        if profiles.of_manifest(manifest).name == profile.name:
            catalog.study_of(path.parent.name).redraw(path.parent)
            lines.append(f"redrawn: {shown(path.parent)}")
    report = registry.build(profile, place, place)
    paper_numbers.save(profile, place)
    if profile.name == found.SAID["profile"]:
        found.fill()
    counts = f"{len(report['tables'])} tables, {len(report['figures'])} figures"
    lines.append(f"redrawn: {shown(place)}, {counts}")
    lines += [f"not built: {name} {why}" for name, why in report["not_built"].items()]
    return "\n".join(lines)
