"""``make bench``: deduplication of the paper's 823,703 rows, a fifth of them duplicates, once.

The command runs in a process of its own. ``peak_gib`` is the largest sum of the resident memory of
all its processes, sampled; precision and recall are those of ``synthetic_pool.scores``. For a quick
look, set PROMEDICAL_CURATION_ROWS to a smaller number.
"""

import os
import subprocess
import sys
import threading
import time

import psutil
import pyarrow as pa
import pyarrow.parquet as parquet

from promedical_utils.core.workspace import project_root
from tests.helpers import synthetic_pool

ROWS = int(os.environ.get("PROMEDICAL_CURATION_ROWS", 823_703))
SEED, SHARE = 20, 0.2
EVERY = 0.1  # seconds between two looks at the memory
BUSY = psutil.cpu_percent(interval=1.0)  # of all cores, before anything of this runs


def written(path, rows: int) -> tuple[dict[str, int], list[str]]:
    """Write a synthetic pool; returns the true cluster of each id, and the near-misses."""
    clusters, misses = {}, []
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    with parquet.ParquetWriter(path, schema) as file:
        part: list[tuple[str, str]] = []
        for id_, text, cluster, kind in synthetic_pool.synthetic(rows, SEED, SHARE):
            clusters[id_] = cluster
            if kind == "near_miss":
                misses.append(id_)
            part.append((id_, text))
            if len(part) == 50_000 or len(clusters) == rows:
                file.write_table(pa.table(list(map(list, zip(*part))), schema=schema))
                part = []
    return clusters, misses


def run(command: list[str]) -> tuple[float, float]:
    """Seconds, and peak GiB of the command with all its children; raises when it fails."""
    start, peak, done = time.perf_counter(), 0, threading.Event()
    process = subprocess.Popen(command, cwd=project_root(), stdout=subprocess.DEVNULL)

    def watch():
        nonlocal peak
        while not done.wait(EVERY):
            try:
                whole = psutil.Process(process.pid)
                peak = max(
                    peak, sum(p.memory_info().rss for p in [whole, *whole.children(recursive=True)])
                )
            except psutil.NoSuchProcess:
                continue

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        assert process.wait() == 0
    finally:
        done.set()
        watcher.join()
    return time.perf_counter() - start, peak / 2**30


def test_deduplication(benchmark, tmp_path):
    source, out = tmp_path / "pool.parquet", tmp_path / "out"
    clusters, misses = written(source, ROWS)
    seconds, peak = benchmark.pedantic(
        lambda: run(
            [
                sys.executable,
                "-m",
                "promedical_utils.data.curation.deduplication",
                str(source),
                "--out",
                str(out),
            ]
        ),
        rounds=1,
    )
    gone = parquet.read_table(out / "duplicates.parquet").to_pydict()
    found = synthetic_pool.scores(clusters, misses, dict(zip(gone["id"], gone["kept_id"])))
    benchmark.group = "curation"
    benchmark.extra_info |= {
        "task": "deduplication",
        "rows": ROWS,
        "seconds": seconds,
        "peak_gib": peak,
        "busy": BUSY,
        "kept": parquet.read_metadata(out / "kept.parquet").num_rows,
        **found,
    }
    assert min(found["precision"], found["recall"]) >= 0.95
    if ROWS <= 823_703:
        assert seconds <= 15 * 60 and peak <= 6
