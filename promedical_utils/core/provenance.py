"""What a result came from: the kit's code, the run's settings and packages, its data and models.

A run says so itself; what is drawn from it repeats the *run's* facts, and not who draws it, so that
``make figures`` gives the same bytes at every commit.
"""

import hashlib
import json
import subprocess
from pathlib import Path

from promedical_utils.core.fingerprint import PACKAGES
from promedical_utils.core.workspace import KitError, json_text, project_root, sha256, write_json

UNCOMMITTED = "uncommitted"
CODE = (*PACKAGES, "notebooks", "papers_figures/paper_values", "requirements.lock")
PACKAGE = Path(__file__).parents[1]
HASHES = "data/hashes.json"


def kit() -> dict[str, str]:
    """{"commit", "content"} of this kit: HEAD where ``CODE`` is as committed, else "uncommitted",
    and the SHA-256 of all files of ``PACKAGES``, which says what ran without a repository, too."""
    whole = hashlib.sha256()
    paths = (path for name in PACKAGES for path in (PACKAGE.parent / name).rglob("*"))
    for path in sorted(paths):
        if path.is_file() and path.suffix != ".pyc":
            whole.update(
                f"{path.relative_to(PACKAGE.parent).as_posix()}\0{sha256(path)}\n".encode()
            )
    return {"commit": _commit(project_root()), "content": whole.hexdigest()}


def _commit(root: Path) -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()

    try:
        # a copy within another repository is not its commit
        own = Path(git("rev-parse", "--show-toplevel")).resolve() == root.resolve()
        changed = git("status", "--porcelain", "--", *CODE)
        return git("rev-parse", "HEAD") if own and not changed else UNCOMMITTED
    except (OSError, subprocess.SubprocessError):  # no git, no repository, or one that hangs
        return UNCOMMITTED


def content(path: Path) -> str:
    """SHA-256 of the rows of a Parquet file, in order: the same whatever version wrote it."""
    import pyarrow.parquet as parquet

    rows = hashlib.sha256()
    for batch in parquet.ParquetFile(path).iter_batches():
        for row in batch.to_pylist():
            rows.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return rows.hexdigest()


def hash_data(run: Path) -> None:
    """Write data/hashes.json: ``content`` of every data/*.parquet of a run."""
    paths = sorted((run / "data").glob("*.parquet"))
    write_json(run / HASHES, {path.name: content(path) for path in paths})


def claim_data(run: Path, *names: str) -> None:
    """Before data/<name>.parquet are written: KitError for one that is not as a notebook left it,
    and so somebody's own."""
    stored = _json(run / HASHES)
    for path in (run / f"data/{name}.parquet" for name in names):
        known = stored.pop(path.name, None) if (run / HASHES).exists() else ""
        if path.exists() and known not in (None, content(path)):
            mend = 'move it to a folder of your own, and set SET="data=own own_data=FOLDER"'
            raise KitError(
                f"{path.relative_to(run)} is not as a notebook wrote it; to keep it, {mend}"
            )
    write_json(run / HASHES, stored)  # None: of a notebook that was stopped


def of_run(run: Path) -> dict:
    """Facts of a run, or of its published copy, as every table and figure has them beside it:
    ``of_manifest``, data hashes, seed and fingerprint of each model. What a run of an older kit
    does not say is left out."""
    models = {}
    for name, report in _json(run / "reward/report.json").get("models", {}).items():
        known = {k: report[k] for k in ("settings", "seed", "base") if k in report}
        models[f"reward/{name}"] = known
    if policy := _json(run / "policy/report.json"):
        seed = policy.get("settings", {}).get("seed")
        models["policy"] = {"settings": policy.get("fingerprint"), "seed": seed}
    manifest = of_manifest(_json(run / "manifest.json"))
    return {"data": _json(run / HASHES), "models": models} | manifest


def of_manifest(manifest: dict) -> dict:
    """The manifest's SHA-256, commit, content and packages, of a run or of a study; {} of none."""
    if not manifest:
        return {}
    known = {name: manifest[name] for name in ("kit", "packages", "python") if name in manifest}
    return {"manifest": hashlib.sha256(json_text(manifest).encode()).hexdigest()} | known


def _json(path: Path) -> dict:
    """A file's content, {} where it is missing or no JSON: it is only referred to."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
