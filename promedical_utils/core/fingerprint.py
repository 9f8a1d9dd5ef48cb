"""What a result hangs on, by content: the code that it reaches, the folders read, the versions.

Docstrings, comments and layout do not count, nor times, which a fresh clone has anew. A module that
reads a folder of the repository says so in a tuple ``READS``.
"""

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from promedical_utils.core.workspace import project_root, sha256, short_hash

PACKAGE = Path(__file__).parents[1]
PACKAGES = (PACKAGE.name, "promedical_studies", "promedical_audit")  # what a run can reach


def of_code(modules: Iterable[str], data: bool = True) -> str:
    """Hash of the kit's ``modules`` (dotted names), all that they import, and the lock; ``data``:
    and of the files that are no code in each room that is reached, such as vocabulary, for nothing
    says which of its modules reads them."""
    reached: dict[str, str] = {}
    queue = set(modules)
    while queue:
        name = queue.pop()
        reached[name], imported, folders = _module(name)
        reached |= {folder: _contents(project_root() / folder) for folder in folders}
        queue |= imported - reached.keys()
    first = {_path(".".join(name.split(".")[:2])) for name in reached if "." in name}
    rooms = sorted(path.parent for path in first if path.name == "__init__.py")
    files = [_contents(room) for room in rooms] if data else []
    lock = sha256(project_root() / "requirements.lock")
    return short_hash(*sorted(reached.items()), *files, lock)


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of the kit's modules imported anywhere in ``tree``, packages above included."""
    names = set()
    for node in ast.walk(tree):
        base = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names if isinstance(node, ast.Import | ast.ImportFrom) else ():
            parts = (base + alias.name).split(".")
            names |= {".".join(parts[: n + 1]) for n in range(len(parts))}
    return {name for name in names if name.startswith(PACKAGES) and _path(name).exists()}


def _path(name: str) -> Path:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _module(name: str) -> tuple[str, frozenset[str], tuple[str, ...]]:
    """(syntax tree as text, without docstrings; modules imported; folders read)."""
    tree = ast.parse(_path(name).read_text(encoding="utf-8"))
    folders: tuple[str, ...] = ()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
            node.body = node.body[bool(ast.get_docstring(node)) :]
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "READS":
            folders = ast.literal_eval(node.value)
    return ast.dump(tree), frozenset(imports(tree)), folders


@cache
def _contents(folder: Path) -> str:
    """Hash of a folder's files that are no code, but for profiles."""
    files = [path for path in sorted(folder.rglob("*.*")) if path.suffix not in (".py", ".pyc")]
    files = [path for path in files if path.parent.name != "profiles"]
    return short_hash(*(path.name + sha256(path) for path in files))
