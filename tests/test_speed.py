"""What `make bench` times: both sides do the same work, and the table says what was measured."""

import importlib
import json

import numpy as np
import pytest
import speed
import torch

pytestmark = pytest.mark.training  # fits models


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(speed, "LAYERS", 2)
    monkeypatch.setattr(speed, "WIDTH", 64)


def test_tokens_and_operations_of_the_published_case():
    """Two answers with prompts of their own; eight behind one prompt."""
    found = speed.groups(480, 7, 32, count=2)
    counted = speed.counted_in_scoring(found)
    assert counted["tokens"] == pytest.approx(2 * 7 * 512 / (2 * 704))
    pairs = 7 * 512 * 513 / 2, 480 * 481 / 2 + 7 * (32 * 480 + 32 * 33 / 2)
    work = [26 * speed.WIDTH * n + 4 * p for n, p in zip((7 * 512, 704), pairs)]
    assert counted["work"] == pytest.approx(work[0] / work[1])
    assert speed.counted_in_training(speed.pair_rows(found)) == counted
    [eight] = speed.trees(speed.groups(480, 7, 32, answers=8))
    assert len(eight.ids) == 240 + 8 * (240 + 7 * 32)
    assert speed.counted_in_scoring(speed.groups(480, 7, 32, 8))["tokens"] > 7.25


def test_both_sides_score_the_same(small):
    found = speed.groups(20, 3, 5, 2, 2) + speed.groups(31, 2, 4)
    packed, apart = (
        np.array(speed.score(side, speed.model(side), found)) for side in speed.SIDES[::-1]
    )
    assert packed.std() > 1e-3 and packed == pytest.approx(apart, abs=1e-5)


@pytest.mark.parametrize("answers, count", [(1, 2), (2, 1), (4, 1)])
def test_both_trainers_take_the_same_step(small, tmp_path, answers, count):
    """One pair of answers that differ on three criteria is three expanded pairs."""
    rows = speed.pair_rows(speed.groups(40, 3, 6, answers, count))
    assert [len(r["chosen_ids"]) for r in speed.expanded(rows)] == [46] * 3 * max(1, answers // 2)
    after = {}
    for side in speed.SIDES:
        trainer = speed.trainer(side, speed.model(side), rows, 1, str(tmp_path))
        before = torch.cat([p.detach().flatten().clone() for p in trainer.model.parameters()])
        trainer.train()
        assert trainer.state.global_step == 1
        after[side] = torch.cat([p.detach().flatten() for p in trainer.model.parameters()]) - before
    assert after["packed"].abs().max() > 1e-6
    gap = (after["packed"] - after["one_by_one"]).norm() / after["one_by_one"].norm()
    assert gap < 0.02  # Adam's first step is a sign: only gradients at rounding may turn it


def test_the_clinic_mix_is_expanded_pair_by_pair():
    rows = speed.clinic_rows(4)
    assert len(rows) == 4 and {len(row["ids"]) for row in rows} == {1}  # three answers in each
    pairs = sum(len(row["pairs"]) for row in rows)
    assert len(speed.expanded(rows)) == pairs > 0
    assert sum(len(row["targets"]) for row in rows) == len(speed.paths(speed.of_rows(rows)))
    assert speed.trees(speed.of_rows(rows))[0].ids == rows[0]["ids"][0]
    scored = speed.counted_in_scoring(speed.of_rows(rows))["work"]
    trained, verdicts = (
        speed.counted_in_training(rows)["work"],
        sum(len(r["targets"]) for r in rows),
    )
    # one by one, training reads two sequences a pair and scoring one a verdict: who saves more
    assert min(trained, scored) > 1 and (trained > scored) == (2 * pairs > verdicts)


class Once:
    """pytest-benchmark's fixture, as far as the bench uses it: two rounds."""

    def __init__(self):
        self.extra_info = {}

    def pedantic(self, target, setup, rounds):
        for _ in range(2):
            setup()
            target()


def test_the_bench_itself_runs_and_the_sides_take_turns(small, tmp_path, monkeypatch):
    bench = importlib.import_module("test_packing_speed")
    rows, seen, order, score = speed.clinic_rows(2), [], [], speed.score

    def watched(side, *arguments):
        order.append(side)
        return score(side, *arguments)

    monkeypatch.setattr(speed, "score", watched)
    scorer = {side: speed.model(side) for side in speed.SIDES}
    for call, *arguments in [
        (bench.test_scoring, scorer, "over K", 20, 2, 1),
        (bench.test_training, tmp_path, "eight answers", 20, 2, 8),
        (bench.test_scoring_of_the_clinic, scorer, rows),
        (bench.test_training_of_the_clinic, tmp_path, rows),
    ]:
        once = Once()
        call(once, *arguments)
        seen.append({"extra_info": once.extra_info})
    assert order == [*speed.SIDES * 3] * 2  # a warm-up, then turn about
    table = speed.summary({"benchmarks": seen})
    assert len(table) == 4 and (table.rounds == 2).all() and (table.work > 1).all()
    assert (table.low <= table.ratio).all() and (table.ratio <= table.high).all()


def test_summary_and_files(tmp_path):
    def entry(task, apart, packed, case="published", k=7):
        info = {
            "task": task,
            "case": case,
            "L": 480,
            "K": k,
            "C": 32,
            "answers": 1,
            "tokens": 5.2,
            "work": 5.0,
            "busy": 1.5,
            "one_by_one_s": apart,
            "packed_s": packed,
        }
        return {"extra_info": info}

    measured = {
        "machine_info": {"node": "secret", "cpu": {"brand_raw": "A processor"}},
        "benchmarks": [
            # the machine slows down by half: the ratio of each round does not
            entry("scoring", [9.0, 18.0, 8.0], [2.0, 4.0, 2.0]),
            entry("training", [8.0], [2.0]),
            *[entry(task, [3.0], [2.0], "over K", 2) for task in ("scoring", "training")],
            *[entry("scoring", [3.0], [2.0], case) for case in ("over L", "clinic mix")],
        ],
    }
    frame = speed.save(measured, tmp_path)
    first, second = frame[frame.case == "published"].to_dict("records")
    assert (first["ratio"], first["share"], first["low"], first["high"]) == (4.5, 0.9, 4.0, 4.5)
    assert (first["one_by_one_s"], first["packed_s"], first["rounds"]) == (9, 2, 3)
    assert (second["ratio"], second["tokens"], second["answers"]) == (4, 5.2, 1)
    kept = json.loads((tmp_path / "speed.json").read_text())
    assert kept["machine"]["processor"] == "A processor"
    assert kept["machine"]["busy_before_percent"] == 1.5
    assert "secret" not in (tmp_path / "speed.json").read_text()
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".csv", ".json", ".pdf", ".png"]
