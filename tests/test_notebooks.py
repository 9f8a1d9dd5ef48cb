"""The committed notebooks: parameters, outputs that nbval can compare, nothing of a machine."""

import ast
import json
import re

import pytest

from promedical_utils.core.workspace import project_root
from promedical_utils.run import notebooks
from promedical_utils.run.notebooks import NOTEBOOKS

FOLDER = project_root() / "notebooks"
BRANCH = re.compile(r"\bif\b[^\n]*\bp\.(data|name)\b")  # pipeline.notebook_display has these
PATHS = re.compile(r"(?<![\w.:/])/(?:home|root|Users|tmp|mnt|opt|var)/|\b[A-Z]:\\\\")


def problems(notebook: dict) -> list[str]:
    """What is wrong with a notebook as committed, in words; empty if nothing is."""
    found = []
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1 or tagged[0] is not code[0]:
        found.append(f"{len(tagged)} parameters cells, want one, the first code cell")
    elif [line.split("=")[0].strip() for line in text(tagged[0]).splitlines() if "=" in line] != [
        "profile",
        "run_dir",
        "seed",
    ]:
        found.append("the parameters are profile, run_dir, seed")
    if [cell["execution_count"] for cell in code] != list(range(1, len(code) + 1)):
        found.append("execution counts are not 1, 2, 3, ...: make refresh")
    if sum(map(compared, code)) < 3:
        found.append("fewer than three cells with an output that nbval compares")
    for number, cell in enumerate(code, 1):
        outputs = cell["outputs"]
        if BRANCH.search(text(cell)):
            found.append(f"cell {number}: a branch on the kind of data or the profile")
        if any(o["output_type"] == "error" or o.get("name") == "stderr" for o in outputs):
            found.append(f"cell {number}: error or stderr among the outputs")
        if len(text(cell).splitlines()) > 20:
            found.append(f"cell {number}: more than 20 lines")
        if re.search(r"^\s*(async )?(def|class) ", text(cell), re.MULTILINE) and not draft(cell):
            found.append(
                f"cell {number}: a definition, which belongs in promedical_utils, or in a cell "
                "tagged draft that ends in an assert"
            )
    everything = json.dumps(notebook, ensure_ascii=False)
    if PATHS.search(everything) or str(project_root()) + "/" in everything:
        found.append("a path of somebody's machine")
    return found


def text(cell: dict) -> str:
    return "".join(cell["source"])


def draft(cell: dict) -> bool:
    """A definition that is shown for teaching: tagged so, and held to the module's by an assert."""
    last = ast.parse(text(cell)).body[-1]
    return "draft" in cell["metadata"].get("tags", []) and isinstance(last, ast.Assert)


def compared(cell: dict) -> bool:
    """Whether nbval compares anything of a cell: it ignores pictures and what is marked so."""
    ignored = "nbval-ignore-output" in cell["metadata"].get("tags", []) or "NBVAL_IGNORE" in text(
        cell
    )
    kinds = {kind for o in cell["outputs"] for kind in o.get("data", {})} - {
        "image/png",
        "image/jpeg",
    }
    figure = all(
        "<Figure" in "".join(o.get("data", {}).get("text/plain", "<Figure"))
        for o in cell["outputs"]
    )
    return not ignored and (
        any(o.get("text") for o in cell["outputs"]) or bool(kinds and not figure)
    )


def cell(source: str, count: int, output: str = "", tags=()) -> dict:
    outputs = [{"output_type": "stream", "name": "stdout", "text": [output]}] if output else []
    return {
        "cell_type": "code",
        "execution_count": count,
        "metadata": {"tags": list(tags)},
        "source": [source],
        "outputs": outputs,
    }


def good() -> dict:
    first = cell('profile = "smoke"\nrun_dir = ""\nseed = -1', 1, tags=["parameters"])
    return {"cells": [first, *(cell(f"print({n})", n, f"{n}\n") for n in (2, 3, 4))]}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook(name):
    assert problems(json.loads(notebooks.source(name).read_text(encoding="utf-8"))) == []


def test_no_other_notebooks():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NOTEBOOKS)


def test_a_good_notebook_passes():
    assert problems(good()) == []
    notebook = good()
    notebook["cells"][1].update(
        source=["def f(): return 2\n", "assert f() == 2"], metadata={"tags": ["draft"]}
    )
    assert problems(notebook) == []


BREAKS = {
    "parameters cells": lambda cells: cells[0]["metadata"].update(tags=[]),
    "the parameters are": lambda cells: cells[0].update(source=["profile = 1"]),
    "execution counts": lambda cells: cells[2].update(execution_count=None),
    "fewer than three": lambda cells: cells[3].update(outputs=[]),
    "error or stderr": lambda cells: cells[1]["outputs"][0].update(name="stderr"),
    "a branch": lambda cells: cells[1].update(source=["x = 1 if p.data == 'real' else 2"]),
    "a branch on": lambda cells: cells[1].update(source=["if run and p.name == 'cpu':\n", "    1"]),
    "more than 20 lines": lambda cells: cells[1].update(source=["x = 1\n"] * 21),
    "a definition": lambda cells: cells[1].update(source=["if True:\n", "    def f(): pass"]),
    "tagged draft": lambda cells: cells[1].update(
        source=["def f(): return 1\n", "f()"], metadata={"tags": ["draft"]}
    ),
    "somebody's machine": lambda cells: cells[1]["outputs"][0].update(
        text=["saved to /home/ann/x.csv"]
    ),
}


@pytest.mark.parametrize("words", BREAKS)
def test_a_broken_notebook_is_found(words):
    notebook = good()
    BREAKS[words](notebook["cells"])
    assert any(words in problem for problem in problems(notebook))
