"""One run of the kit: its profile and overrides, its notebooks in order, each through papermill.

Snakemake decides what runs; here is what a notebook depends on (``fingerprint``), how one runs
(``execute``), and the start of the graph (``reproduce``).
"""

import ast
import fcntl
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import yaml

from promedical_utils import profiles, provenance, workspace
from promedical_utils.workspace import KitError, project_root, run_folder, shown

PACKAGE = Path(__file__).parent
OVERRIDES = "PROMEDICAL_SET"  # "key=value key=value" over the profile, for every notebook of a run
# Reached by every notebook, and no result hangs on them: of profiles the values count, not the code
NEUTRAL = {f"{PACKAGE.name}.runs", f"{PACKAGE.name}.profiles"}
# The notebooks in order, and what each must have written below the run folder, else it runs again
OUTPUTS = {
    "00_start_here": ("manifest.json", "base_report.json"),
    "01_rubrics": ("data/instructions.parquet", "data/rubrics.parquet", "data/splits.parquet"),
    "02_preference_pairs": tuple(f"data/{x}.parquet" for x in ("candidates", "verdicts", "pairs")),
    "03_reward_model": (
        "reward/heldout.parquet",
        "reward/criterion/calibration.json",
        "reward/report.json",
    ),
    "04_promedical_bench": ("bench/predictions.parquet", "bench/report.json"),
    "05_grpo_with_veto": (
        "policy/curve.csv",
        "policy/evaluation.parquet",
        "policy/verdicts.parquet",
        "policy/report.json",
    ),
    "06_external_generalization": (
        "external/predictions.parquet",
        "external/texts.parquet",
        "external/report.json",
    ),
    "07_paper_tables": (
        "paper/tables/main_results.csv",
        *(f"paper/claims.{kind}" for kind in ("json", "md", "csv")),
    ),
    "08_paper_audit": ("audit/audit.csv", "audit/audit.md", "audit/audit.json"),
}
NOTEBOOKS = tuple(OUTPUTS)
STUDIES = PACKAGE / "studies"


def overrides(text: str | None = None) -> dict:
    """``"seed=11 base_model=small"`` as a dict of YAML values (default: the environment's)."""
    values = {}
    for part in (os.environ.get(OVERRIDES, "") if text is None else text).split():
        key, equals, value = part.partition("=")
        if not equals or key == "name":
            raise KitError(f'override {part!r}: write SET="key=value ...", keys of the profile')
        values[key] = yaml.safe_load(value) if value else ""  # "pair_rm=" leaves it out
        if isinstance(values[key], str) and re.fullmatch(r"[\d.]+e[-+]?\d+", values[key]):
            values[key] = float(values[key])  # 1e-3, which YAML 1.1 takes for a word
    return values


def profile_for(name: str, seed: int = -1, base: str = "") -> profiles.Profile:
    """Profile ``name`` with the run's overrides; ``seed`` >= 0 and ``base`` go over those."""
    over = ({"seed": seed} if seed >= 0 else {}) | ({"base_model": base} if base else {})
    return profiles.load(name, **(overrides() | over))


def notebooks(profile: profiles.Profile) -> list[str]:
    """The profile's notebooks in the kit's order; KitError for an unknown or a missing one."""
    for name in set(profile.notebooks) - set(NOTEBOOKS):
        raise KitError(f"profile {profile.name}: no notebook {name!r}; know {', '.join(NOTEBOOKS)}")
    return [name for name in NOTEBOOKS if name in profile.notebooks and source(name)]


def source(notebook: str) -> Path:
    path = project_root() / "notebooks" / f"{notebook}.ipynb"
    if not path.exists():
        raise KitError(f"no notebooks/{notebook}.ipynb: restore it (git checkout notebooks)")
    return path


# --- what a notebook depends on ---------------------------------------------------------------


def fingerprint(notebook: str, profile: profiles.Profile) -> str:
    """Hash of all that decides a notebook's result: its cells, the code they reach, settings, lock.

    Of content, not of time: a fresh clone has new times throughout, and a rewritten comment is no
    reason to train again. A module counts if the cells import it, however far down; of ``stages``
    only the functions they use, so that a new table colour trains nothing.
    """
    cells = json.loads(source(notebook).read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    code = "\n".join(text for cell, text in zip(cells, texts) if cell["cell_type"] == "code")
    try:
        tree = ast.parse(re.sub(r"^[%!].*", "", code, flags=re.MULTILINE))
    except SyntaxError as error:
        raise KitError(f"notebooks/{notebook}.ipynb: {error.msg}; mend the cell") from None
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    reached, queue = {name: "" for name in NEUTRAL}, _imports(tree) - NEUTRAL
    while queue:
        name = queue.pop()
        module = _module(name)
        if name == f"{PACKAGE.name}.stages":  # one function a notebook, which depends on it alone
            module = _only(module, used)
        elif name in {f"{PACKAGE.name}.tables", f"{PACKAGE.name}.paper_audit"}:
            reached["values"] = _contents(project_root() / "papers_figures" / "paper_values")
        elif name == f"{PACKAGE.name}.paper":
            reached["studies"] = _contents(project_root() / "papers_figures" / "studies")
        reached[name] = ast.dump(module)
        queue |= _imports(module) - reached.keys()
    unread = {"description", "minutes", "memory_gib", "notebooks", "tokens_per_second"}
    settings = profile.model_dump_json(exclude=unread)
    return workspace.short_hash(*texts, *sorted(reached.items()), settings, _contents(PACKAGE))


def _imports(tree: ast.AST) -> set[str]:
    """Dotted names of the kit's modules imported anywhere in ``tree``, packages above included."""
    names = set()
    for node in ast.walk(tree):
        base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
            parts = (base + alias.name).split(".")
            names |= {".".join(parts[: n + 1]) for n in range(len(parts))}
    return {name for name in names if name.startswith(PACKAGE.name) and _path(name).exists()}


def _path(name: str) -> Path:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _module(name: str) -> ast.Module:
    """Syntax tree of a module without docstrings; comments and layout are not in a tree anyway."""
    tree = ast.parse(_path(name).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
            node.body = node.body[bool(ast.get_docstring(node)) :]
    return tree


def _only(tree: ast.Module, used: set[str]) -> ast.Module:
    """``tree`` without the top-level functions that ``used`` neither names nor leads to."""
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    kept = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    queue = used | {n.id for node in kept for n in ast.walk(node) if isinstance(n, ast.Name)}
    while found := sorted(queue & functions.keys()):
        kept += [functions.pop(name) for name in found]
        queue = {n.id for node in kept for n in ast.walk(node) if isinstance(n, ast.Name)}
    return ast.Module(sorted(kept, key=lambda node: node.lineno), [])


@cache
def _contents(folder: Path) -> str:
    """Hash of vocabulary, prompts, lists or reported values, and of the pinned versions."""
    files = [path for path in sorted(folder.rglob("*.*")) if path.suffix not in (".py", ".pyc")]
    files = [path for path in files if path.parent.name not in ("profiles", "studies")]
    files.append(project_root() / "requirements.lock")
    return workspace.short_hash(*(path.name + workspace.sha256(path) for path in files))


# --- one notebook -----------------------------------------------------------------------------


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
    local = profile.data == "clinic" or own or os.environ.get("PROMEDICAL_DATA_DIR")
    offline = local and profile.base_model == "small"
    return values | ({"HF_HUB_OFFLINE": "1"} if offline else {})


def execute(notebook: str, profile: str, run_dir: str = "", parameters: dict | None = None) -> None:
    """Run one notebook into ``<run>/notebooks/``, its seconds, memory and code into
    ``timings.json``.

    ``parameters`` go over ``profile``, ``run_dir`` and ``seed``. Prints which notebook, of how
    many, how long, since when. Raises KitError for an unknown parameter, and for a failed cell
    with notebook, cell and error; the copy so far is kept as ``<notebook>.failed.ipynb``.
    """
    settings = profile_for(profile)
    names, origin = notebooks(settings), str(source(notebook))
    run = run_folder(profile, run_dir)
    place = run / "notebooks" / f"{notebook}.ipynb"
    failed = place.with_suffix(".failed.ipynb")
    os.environ.update(environment(settings))  # kernels inherit it

    import papermill  # late: takes a second, and doctor and publish do without

    values = {"profile": profile, "run_dir": run_dir, "seed": -1} | (parameters or {})
    known = papermill.inspect_notebook(origin)
    for key in values:
        if key not in known:  # papermill only warns
            raise KitError(f"{notebook} has no parameter {key!r}: it takes {', '.join(known)}")
    number = names.index(notebook) + 1 if notebook in names else 0
    print(f"[{number}/{len(names)}] {notebook} ...", end=" ", flush=True)
    start, code = time.time(), provenance.kit()  # before it runs: an edit meanwhile is not what ran
    with workspace.replacing(place) as temporary:
        try:
            options = {"kernel_name": "python3", "progress_bar": False, "cwd": str(project_root())}
            papermill.execute_notebook(origin, str(temporary), values, **options)
        except Exception as error:  # of any kind: whatever stopped it, its copy stays
            print(f"failed after {span(time.time() - start)}", flush=True)
            shutil.copyfile(temporary, failed)
            raise KitError(f"{notebook}, {_failure(error, failed)} ({shown(failed)})") from error
        _clean(temporary)
    failed.unlink(missing_ok=True)
    seconds = time.time() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # KiB on Linux, bytes on macOS
    peak /= 2**30 if sys.platform == "darwin" else 2**20
    row = {"seconds": round(seconds, 1), "peak_gib": round(peak, 2)} | code
    workspace.write_json(run / "timings.json", timings(run) | {notebook: row})
    since = time.time() - float(os.environ.get("PROMEDICAL_STARTED", start))
    print(f"{span(seconds)}, {span(since)} elapsed", flush=True)


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
        code = [cell["metadata"] for cell in cells if cell["cell_type"] == "code"]
        number = sum(bool(data.get("papermill", {}).get("start_time")) for data in code)
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


# --- the whole run ----------------------------------------------------------------------------


def span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def reproduce(name: str, run_dir: str = "") -> None:
    """Bring a run up to date through Snakemake, whose own log goes to ``<run>/snakemake.log``.

    Then sets it beside the committed reference (``rerun``), and prints the outcome in one line.
    Raises KitError: of a wrong profile before anything runs, of a failed notebook its line.
    """
    profile = profile_for(name)
    names = notebooks(profile)
    for notebook in names:
        fingerprint(notebook, profile)
    root, run = project_root(), run_folder(name, run_dir)
    needs = f"about {span(60 * profile.minutes)}, {profile.memory_gib:g} GiB"
    print(f"{name}: {len(names)} notebooks, {needs} -> {shown(run)}", flush=True)
    if profiles.asks_endpoints(profile):
        from promedical_utils import doctor  # late: it imports this module

        print("\n".join(doctor.asked(profile)), flush=True)
    before, line, log = timings(run), run / "failure.txt", run / "snakemake.log"
    command = _snakemake(name, run_dir, "--cores", "all", "--quiet", "all", "--rerun-incomplete")
    variables = os.environ | {"PROMEDICAL_PYTHON": sys.executable}
    variables["PROMEDICAL_STARTED"] = str(time.time())
    with _alone(root) as lock, open(log, "w") as messages:
        line.unlink(missing_ok=True)
        child = subprocess.Popen(command, cwd=root, env=variables, stderr=messages, pass_fds=[lock])
        try:
            code = child.wait()
        except KeyboardInterrupt:
            child.wait()
            raise KitError("stopped; the same command goes on from here") from None
    if code and line.exists():
        raise KitError(line.read_text().strip())
    if code:
        raise KitError(f"{log.read_text().strip()}\nsnakemake failed, see {shown(log)}")
    done = "up to date" if timings(run) != before else "up to date, nothing to do"
    print(f"{shown(run)} is {done}")
    from promedical_utils import rerun  # late: pandas takes a second

    found = rerun.report(name, run_dir)
    print(f"{shown(run / 'rerun.md')}: {found.line()}")


def _snakemake(name: str, run_dir: str, *options: str) -> list[str]:
    command = [sys.executable, "-m", "snakemake", "--nolock", *options]
    return [*command, "--config", f"profile={name}", f"run={run_dir or f'runs/{name}'}"]


def pending(name: str, run_dir: str = "") -> list[str]:
    """Notebooks that Snakemake would run now: missing, failed, or of other code or settings."""
    command = _snakemake(name, run_dir, "--dry-run")
    answer = subprocess.run(command, cwd=project_root(), capture_output=True, text=True)
    said = answer.stdout + answer.stderr
    if answer.returncode:
        raise KitError(f"snakemake --dry-run failed: {said.strip()}")
    return re.findall(r"^rule notebook_(\w+):", said, re.MULTILINE)


@contextmanager
def _alone(root: Path):
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


def studies() -> list[str]:
    return sorted(path.stem for path in STUDIES.glob("*.yaml"))


def plan_of(name: str) -> dict:
    """What ``studies/<name>.yaml`` says."""
    if name not in studies():
        choice = ", ".join(studies())
        raise KitError(f"unknown study {name!r}: choose one of {choice} (make study STUDY=...)")
    return yaml.safe_load((STUDIES / f"{name}.yaml").read_text(encoding="utf-8"))


def study_folder(name: str, run: str = "main") -> Path:
    """Where a study's tables go, from the root: below its run, which studies of one ``folder``
    share."""
    return Path("runs/studies", plan_of(name).get("folder", name), run, name)


def study(name: str) -> None:
    """Run every run of ``studies/<name>.yaml``; those that are up to date cost seconds.

    ``reward_models`` there are trained and compared on each run's data (``reward_study``), and so
    are ``systems`` (``systems_study``) and ``policies`` (``policy_study``).
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
            from promedical_utils import reward_study  # late: loads torch

            with _alone(project_root()):
                reward_study.run(profile_for(plan["profile"]), out.parent, models, out)
        if systems := plan.get("systems"):
            from promedical_utils import systems_study

            with _alone(project_root()):
                settled = profile_for(plan["profile"])
                systems_study.run(settled, out.parent, systems, out, plan["frozen_on"])
        if policies := plan.get("policies"):
            from promedical_utils import policy_study

            with _alone(project_root()):
                policy_study.run(
                    plan["profile"], overrides(), out.parent, policies, out, plan["frozen_on"]
                )
