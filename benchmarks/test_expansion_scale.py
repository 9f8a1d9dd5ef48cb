"""``make bench``: pair expansion at the published size and at ten times that, nothing else running.

50,000 instructions of three answers and seven criteria are 1.05 million verdicts. Each size runs in
a process of its own, whose peak memory is then that of the expansion. The tables are synthetic: ids
as the clinic has them, verdicts drawn at random, texts that nothing reads.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from pyarrow import parquet

from promedical_utils.rubric import expansion

SIZES = (50_000, 500_000)
ANSWERS, KINDS = 3, ("proficiency",) * 4 + ("excellence",) * 2 + ("safety",)
VERDICTS = pa.array(["not_met", "met", "unknown"])
MET = (0.42, 0.52, 0.06)  # shares of not_met, met, unknown
PART = 20_000  # instructions made at once
BUSY = psutil.cpu_percent(interval=1.0)  # of all cores, before anything of this runs
MEASURED = {}


def numbered(form: str, numbers) -> pa.Array:
    return pc.binary_join_element_wise(form, pc.cast(pa.array(numbers), pa.string()), "")


def make(folder: Path, instructions: int, seed: int = 0) -> None:
    """Write candidates, rubrics and verdicts of ``instructions`` instructions, part by part."""
    rng, k = np.random.default_rng(seed), len(KINDS)
    writers = {}
    text = pa.scalar("Take what the leaflet names first and come back when it says. " * 6)
    for start in range(0, instructions, PART):
        n = min(PART, instructions - start)
        asked = numbered("i7-", np.arange(start, start + n) + 10**6)
        owner = np.repeat(np.arange(n), ANSWERS)
        tail = numbered(
            "-", rng.integers(10**5, 10**6, len(owner)) * 10 + np.tile(np.arange(ANSWERS), n)
        )
        answers = pc.binary_join_element_wise(asked.take(pa.array(owner)), tail, "")
        kinds = pa.array([f"kind_{j}" for j in range(k)])
        of = np.repeat(np.arange(n), k)
        kind = kinds.take(pa.array(np.tile(np.arange(k), n)))
        criteria = pc.binary_join_element_wise(asked.take(pa.array(of)), kind, "-")
        drawn = pa.array(rng.choice(3, n * ANSWERS * k, p=MET))
        cell = np.repeat(np.arange(n * ANSWERS), k)
        place = (owner[cell] * k) + np.tile(np.arange(k), n * ANSWERS)
        weights = np.tile([1 / 4] * 4 + [0.0] * 3, n)
        structs = pa.StructArray.from_arrays(
            [
                criteria,
                pa.array(np.tile(KINDS, n)),
                pa.repeat(text, n * k),
                pa.array(weights),
                kind,
            ],
            names=["id", "dimension", "text", "weight", "kind"],
        )
        lists = pa.ListArray.from_arrays(pa.array(np.arange(n + 1) * k, pa.int32()), structs)
        tables = {
            "candidates": {
                "id": answers,
                "instruction_id": asked.take(pa.array(owner)),
                "generator": pa.repeat("warm", n * ANSWERS),
                "text": pa.repeat(text, n * ANSWERS),
            },
            "rubrics": {
                "instruction_id": asked,
                "criteria": lists,
                "status": pa.repeat("gold", n),
                "round": pa.repeat(0, n),
            },
            "verdicts": {
                "candidate_id": answers.take(pa.array(cell)),
                "criterion_id": criteria.take(pa.array(place)),
                "judge": pa.repeat("judge", len(cell)),
                "verdict": VERDICTS.take(drawn),
                "rationale": pa.repeat("", len(cell)),
            },
        }
        for name, columns in tables.items():
            table = pa.table(columns)
            if name not in writers:
                writers[name] = parquet.ParquetWriter(folder / f"{name}.parquet", table.schema)
            writers[name].write_table(table)
    for writer in writers.values():
        writer.close()


def measure(folder: Path) -> dict:
    """Seconds, counts and peak memory in GiB of one expansion in this process."""
    start = perf_counter()
    names = ("candidates", "rubrics", "verdicts")
    found = expansion.expand(
        **{name: folder / f"{name}.parquet" for name in names}, pairs=folder / "pairs.parquet"
    )
    seconds = perf_counter() - start
    # the kernel's high-water mark; getrusage's would count what the parent held before exec
    status = Path("/proc/self/status").read_text(encoding="ascii")
    peak = int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) / 2**20
    whole = {name: int(n) for name, n in found.dimensions.loc["all"].items()}
    return {"seconds": seconds, "peak_gib": peak, **whole}


@pytest.mark.parametrize("instructions", SIZES)
def test_expansion(benchmark, tmp_path, instructions):
    make(tmp_path, instructions)
    found = []

    def run():
        done = subprocess.run(
            [sys.executable, __file__, tmp_path], check=True, capture_output=True, text=True
        )
        found.append(json.loads(done.stdout))

    rounds = 3 if instructions == min(SIZES) else 1
    benchmark.pedantic(run, rounds=rounds)
    seconds = sorted(one["seconds"] for one in found)[len(found) // 2]
    peak = max(one["peak_gib"] for one in found)
    MEASURED[instructions] = seconds
    verdicts = instructions * ANSWERS * len(KINDS)
    benchmark.group = f"expansion, {instructions:,} instructions"
    benchmark.extra_info |= {
        "task": "expansion",
        "instructions": instructions,
        "verdicts": verdicts,
        "pairs": found[0]["pairs"],
        "seconds": seconds,
        "peak_gib": peak,
        "busy": BUSY,
    }
    assert found[0]["verdicts"] == verdicts
    if instructions == min(SIZES):
        assert seconds <= 60 and peak <= 2
    else:
        ratio = seconds / MEASURED[min(SIZES)]
        benchmark.extra_info["ratio"] = ratio
        assert ratio <= 1.1 * instructions / min(SIZES)


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
