"""The house itself: rooms import downwards only, and what texts name is there."""

import ast
import doctest
import importlib
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from helpers.packages import PACKAGES

from promedical_utils.core.workspace import project_root
from promedical_utils.run.notebooks import NOTEBOOKS

ROOT = project_root()
PACKAGE = ROOT / "promedical_utils"
# Slow to load, or no part of the kit's own dependencies (requirements/core.in)
LATE = {"torch", "transformers", "trl", "peft", "accelerate", "papermill"}
LATE |= {"fastapi", "uvicorn", "verifiers", "inspect_ai"}
FILES = {
    "yaml",
    "json",
    "csv",
    "parquet",
    "md",
    "sql",
    "jinja",
}  # endings: a docstring names a file


@cache
def modules() -> dict[str, Path]:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    paths = {p.relative_to(ROOT).with_suffix(""): p for p in sorted(files)}
    return {".".join(name.parts).removesuffix(".__init__"): p for name, p in paths.items()}


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        names = [f"{node.module}.{alias.name}" for alias in node.names]
        return [name if name in modules() else node.module for name in names]
    return []


@pytest.fixture(scope="module")
def loads() -> dict[str, set[str]]:
    """Module -> everything that importing it loads, the kit's modules and others' packages."""
    known = modules()
    direct = {
        name: {x for node in ast.parse(path.read_text()).body for x in imported(node)}
        for name, path in known.items()
    }
    reached = {}
    for name in known:
        reached[name], queue = set(), [name]
        while queue:
            for target in direct.get(queue.pop(), ()):
                if target not in reached[name]:
                    reached[name].add(target)
                    queue.append(target)
    return {name: {x if x in known else x.split(".")[0] for x in r} for name, r in reached.items()}


def test_rooms_import_downwards_only():
    tool = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([tool, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_room_is_in_the_contract():
    contract = re.search(r"layers = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    rooms = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert set(re.findall(r'"(\w+)"', contract[1])) == rooms


def test_late_imports_of_the_kit_are_of_what_loads_torch_or_an_extra(loads):
    wrong = []
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            late = isinstance(node, ast.ImportFrom) and node.col_offset
            for target in imported(node) if late else ():
                if target in loads and not loads[target] & LATE:
                    wrong.append(f"{name}:{node.lineno} {target}")
    assert wrong == []


def test_each_room_says_what_it_is_in_one_line():
    for path in PACKAGE.rglob("__init__.py"):
        if path.parent != PACKAGE:
            text = ast.get_docstring(ast.parse(path.read_text()))
            assert text and len(text.splitlines()[0]) <= 100, path


def test_functions_that_docstrings_name_exist():
    """``module.name`` and ``room.module.name`` in docstrings: the module has the name."""
    known = modules()
    short = {}
    for name in known:
        short.setdefault(name.rpartition(".")[2], []).append(name)
    wrong = []
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
                continue
            for module, attribute in re.findall(
                r"``(?:[a-z_]+\.)*([a-z_]+)\.([A-Za-z_]\w*)[^`]*``", ast.get_docstring(node) or ""
            ):
                named = [f"{m}.{attribute}" for m in short.get(module, ())]
                if attribute in FILES or set(named) & known.keys():
                    continue
                candidates = [importlib.import_module(m) for m in short.get(module, ())]
                if candidates and not any(hasattr(m, attribute) for m in candidates):
                    wrong.append(f"{name}: {module}.{attribute}")
    assert wrong == []


def test_notebook_00_lists_all_notebooks():
    cells = json.loads((ROOT / "notebooks/00_start_here.ipynb").read_text())["cells"]
    text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    assert [name for name in NOTEBOOKS if name not in text] == []


@pytest.mark.parametrize("name", [n for n, p in modules().items() if ">>> " in p.read_text()])
def test_examples_in_docstrings_hold(name):
    tried = doctest.testmod(importlib.import_module(name))
    assert tried.failed == 0
