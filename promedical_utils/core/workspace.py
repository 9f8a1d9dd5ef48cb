"""Where things are: the one module that knows paths, and the one that writes files.

A file is written to a temporary name and renamed, so that a file that exists is whole.
"""

import hashlib
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import yaml


class KitError(Exception):
    """A mistake of the input, not of the kit: its text says what, where and what to do."""


def project_root() -> Path:
    """Folder that holds the Snakefile, searched from here upwards (nbval runs a notebook in its own
    folder), then that of this package; KitError outside a checkout."""
    here = Path.cwd()
    for folder in (here, *here.parents, Path(__file__).resolve().parents[2]):
        if (folder / "Snakefile").exists():
            return folder
    raise KitError(f"no Snakefile above {here}: run this from inside a checkout of the kit")


def run_folder(profile: str, run_dir: str | None = None) -> Path:
    """``run_dir`` if given (relative to the root), else ``runs/<profile>``; made if missing."""
    folder = project_root() / (run_dir or f"runs/{profile}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def need(path: Path, notebook: str) -> Path:
    """``path`` if it exists, else a KitError naming the notebook that writes it."""
    if path.exists():
        return path
    raise KitError(f"missing {shown(path)}: run notebook {notebook} first (make reproduce does)")


def shown(path: Path) -> str:
    """A path as it may be printed: relative to the root, so that no machine path gets out."""
    whole, root = Path(path).resolve(), project_root()
    return whole.relative_to(root).as_posix() if whole.is_relative_to(root) else Path(path).name


@contextmanager
def replacing(path: Path):
    """Yield a temporary path beside ``path``; rename it to ``path`` if the body succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)  # mkstemp makes the file private, a shared result is not
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def json_text(value) -> str:
    """JSON with sorted keys and a final newline; NaN is refused, since JSON has none."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"


def write_json(path: Path, value) -> Path:
    return write_text(path, json_text(value))


def write_frame(path: Path, frame, **options) -> Path:
    """A data frame without its index as Parquet or CSV, by the name; ``options`` are pandas'."""
    with replacing(path) as temporary:
        if path.suffix == ".parquet":
            frame.to_parquet(temporary, index=False, **options)
        else:
            frame.to_csv(temporary, index=False, lineterminator="\n", **options)
    return path


def write_rows(path: Path, frame) -> Path:
    """A data frame to Parquet, floats byte by byte, which halves what is committed."""
    floats = [c for c in frame if frame[c].dtype.kind == "f"]
    others = [c for c in frame if c not in floats]
    packing = {"compression": "zstd", "compression_level": 12, "use_byte_stream_split": floats}
    return write_frame(path, frame, use_dictionary=others, **packing)


def read_yaml(path: Path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def read_json(path: Path, notebook: str):
    return json.loads(need(path, notebook).read_text(encoding="utf-8"))


def sha256(path: Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def short_hash(*parts) -> str:
    """First 12 hex digits of the SHA-256 of the parts; names content, not identity."""
    return hashlib.sha256("\x1f".join(map(str, parts)).encode()).hexdigest()[:12]
