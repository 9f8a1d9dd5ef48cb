"""What `make bench` times: both sides do the same work, and the table says what was measured."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from promedical_utils import speed


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(speed, "LAYERS", 2)
    monkeypatch.setattr(speed, "WIDTH", 64)


def test_the_bound_of_the_published_case_is_that_of_the_tokens():
    found = speed.readings(480, 7, 32, responses=2)
    counted = speed.tokens(found)
    assert counted == {"one_by_one": 2 * 7 * 512, "packed": 2 * 704}
    assert counted["one_by_one"] / counted["packed"] == pytest.approx(5.09, abs=0.005)
    rows = speed.pair_rows(found)
    assert speed.training_tokens(rows) == counted


def test_both_sides_score_the_same(small):
    found = speed.readings(20, 3, 5, 2) + speed.readings(31, 2, 4, 1)
    model = speed.model()
    packed, apart = (np.array(speed.score(side, model, found)) for side in speed.SIDES[::-1])
    assert packed.std() > 1e-3 and packed == pytest.approx(apart, abs=1e-5)


def test_both_trainers_take_the_same_step(small, tmp_path):
    """One pair of answers that differ on three criteria is three expanded pairs."""
    rows = speed.pair_rows(speed.readings(40, 3, 6, 2))
    assert [len(r["chosen_ids"]) for r in speed.expanded(rows)] == [46] * 3
    after = {}
    for side, batch in zip(speed.SIDES, (3, 1), strict=True):
        trainer = speed.trainer(side, speed.model(), rows, batch, str(tmp_path))
        before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
        trainer.train()
        assert trainer.state.global_step == 1
        after[side] = torch.cat([p.detach().flatten() for p in trainer.model.parameters()]) - before
    assert after["packed"].abs().max() > 1e-6
    gap = (after["packed"] - after["one_by_one"]).norm() / after["one_by_one"].norm()
    assert gap < 0.02  # Adam's first step is a sign: only gradients at rounding may turn it


def test_the_clinic_mix_is_expanded_pair_by_pair():
    rows = speed.clinic_rows(4)
    assert len(rows) == 4 and {len(row["ids"]) for row in rows} == {3}
    pairs = sum(len(row["pairs"]) for row in rows)
    assert len(speed.expanded(rows)) == pairs > 0
    scores = sum(len(row["targets"]) for row in rows)
    assert scores == sum(len(tails) for _, tails in speed.of_rows(rows))
    # few of the criteria differ: the bound of training is below that of scoring
    scored, trained = speed.tokens(speed.of_rows(rows)), speed.training_tokens(rows)
    assert trained["packed"] == scored["packed"] and 1 < trained["one_by_one"] / trained["packed"]


class Once:
    """pytest-benchmark's fixture, as far as the bench uses it: every target runs once."""

    def __init__(self):
        self.extra_info = {}

    def pedantic(self, target, args=(), setup=None, rounds=1, warmup_rounds=0):
        return target(*setup()[0]) if setup else target(*args)


def test_the_bench_itself_runs(small, tmp_path):
    path = Path(__file__).parent.parent / "benchmarks/test_packing_speed.py"
    spec = importlib.util.spec_from_file_location("packing_speed", path)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    rows, seen = speed.clinic_rows(2), []
    for side in speed.SIDES:
        calls = [
            (bench.test_scoring, speed.model(), "over K", 20, 2, side),
            (bench.test_training, tmp_path, "over K", 20, 2, side),
            (bench.test_scoring_of_the_clinic, speed.model(), rows, side),
            (bench.test_training_of_the_clinic, tmp_path, rows, side),
        ]
        for call, *arguments in calls:
            once = Once()
            call(once, *arguments)
            seen.append({"extra_info": once.extra_info, "stats": {"median": 1.0, "rounds": 1}})
    table = speed.summary({"benchmarks": seen})
    assert len(table) == 4 and (table.ratio == 1).all() and (table.bound > 1).all()
    assert 0 < table[(table.case == "clinic mix") & (table.task == "training")].padding.item() < 0.5


def test_summary_and_files(tmp_path):
    def entry(task, side, seconds, case="published", k=7, padding=0.0):
        info = {"task": task, "case": case, "L": 480, "K": k, "C": 32, "side": side, "bound": 5.0,
                "padding": padding, "busy": 1.5}  # fmt: skip
        return {"extra_info": info, "stats": {"median": seconds, "rounds": 3}}

    measured = {"machine_info": {"node": "secret", "cpu": {"brand_raw": "A processor"}}, "benchmarks": [
        entry("scoring", "one_by_one", 9.0), entry("scoring", "packed", 2.0),
        entry("training", "one_by_one", 8.0), entry("training", "packed", 2.0, padding=0.04),
        *[entry(t, s, x, "over K", 2) for t in ("scoring", "training") for s, x in (("one_by_one", 3.0), ("packed", 2.0))],
        *[entry("scoring", s, x, "over L", 7) for s, x in (("one_by_one", 3.0), ("packed", 2.0))],
        *[entry("scoring", s, x, "clinic mix", 0) for s, x in (("one_by_one", 3.0), ("packed", 2.0))],
    ]}  # fmt: skip
    frame = speed.save(measured, tmp_path)
    first, second = frame[frame.case == "published"].to_dict("records")
    assert (first["ratio"], first["share"]) == (4.5, 0.9) and (
        second["ratio"],
        second["padding"],
    ) == (4, 0.04)
    kept = json.loads((tmp_path / "speed.json").read_text())
    assert kept["machine"]["processor"] == "A processor"
    assert kept["machine"]["busy_before_percent"] == 1.5
    assert "secret" not in (tmp_path / "speed.json").read_text()
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".csv", ".json", ".pdf", ".png"]
