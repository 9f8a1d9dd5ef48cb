"""``make bench``: deduplication of the paper's 823,703 rows, a fifth of them duplicates, once.

It runs in a process of its own, whose peak memory is then that of the deduplication; precision and
recall are those of ``synthetic_pool.scores``. For a quick look, set PROMEDICAL_CURATION_ROWS to a
smaller number.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import psutil

from promedical_utils.core.workspace import project_root
from promedical_utils.data.curation import deduplication
from tests.helpers import synthetic_pool

ROWS = int(os.environ.get("PROMEDICAL_CURATION_ROWS", 823_703))
SEED, SHARE = 20, 0.2
BUSY = psutil.cpu_percent(interval=1.0)  # of all cores, before anything of this runs


def measure() -> dict:
    """Seconds, peak memory in GiB and what was found, of one deduplication in this process."""
    rows = list(synthetic_pool.synthetic(ROWS, SEED, SHARE))
    ids, texts, clusters, kinds = zip(*rows, strict=True)
    start = perf_counter()
    gone = deduplication.deduplicate(ids, texts)
    seconds = perf_counter() - start
    # the kernel's high-water mark; getrusage's would count what the parent held before exec
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 2**20
    misses = [id_ for id_, kind in zip(ids, kinds, strict=True) if kind == "near_miss"]
    kept_of = dict(zip(gone.id, gone.kept_id, strict=True))
    scores = synthetic_pool.scores(dict(zip(ids, clusters, strict=True)), misses, kept_of)
    return {"seconds": seconds, "peak_gib": peak, "kept": ROWS - len(gone), **scores}


def test_deduplication(benchmark):
    measured = []

    def run():
        command = [sys.executable, "-m", "benchmarks.test_curation_scale"]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, cwd=project_root()
        )
        measured.append(json.loads(done.stdout))

    benchmark.pedantic(run, rounds=1)
    benchmark.group = "curation"
    benchmark.extra_info |= {"task": "deduplication", "rows": ROWS, "busy": BUSY, **measured[0]}
    assert min(measured[0]["precision"], measured[0]["recall"]) >= 0.95
    if ROWS <= 823_703:
        assert measured[0]["seconds"] <= 15 * 60 and measured[0]["peak_gib"] <= 6


if __name__ == "__main__":
    print(json.dumps(measure()))
