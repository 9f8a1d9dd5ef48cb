"""``make bench``: packed against one by one, side by side in one run, nothing else running.

Each case runs on both sides, one right after the other; ``promedical_utils.speed`` says how.
"""

import psutil
import pytest

from promedical_utils import base_model, speed
from promedical_utils.reward_training import padding

base_model.quiet()
BUSY = psutil.cpu_percent(interval=1.0)  # of all cores, before anything of this runs
SHAPES = [("published", speed.SHARED, speed.CRITERIA)]
SHAPES += [("over K", speed.SHARED, k) for k in speed.KS]
SHAPES += [("over L", shared, speed.CRITERIA) for shared in speed.LS]
ROUNDS = {"published": 5}  # on a curve two for scoring, one for training: each takes seconds
ROWS = 4  # instructions a step, as in profile cpu
LONGEST_TRAINED = 1024  # one by one, a step of 4096 shared tokens takes minutes


@pytest.fixture(scope="module")
def scorer():
    return speed.model()


@pytest.fixture(scope="module")
def clinic():
    return speed.clinic_rows(8)


def note(benchmark, task, case, shared, criteria, side, counted, padded=0.0):
    benchmark.group = f"{task}, {case}, L = {shared}, K = {criteria}"
    benchmark.extra_info |= {
        "task": task, "case": case, "L": shared, "K": criteria, "C": speed.TAIL, "side": side,
        "bound": counted["one_by_one"] / counted["packed"], "padding": padded, "busy": BUSY,
    }  # fmt: skip


@pytest.mark.parametrize("side", speed.SIDES)
@pytest.mark.parametrize("case, shared, criteria", SHAPES)
def test_scoring(benchmark, scorer, case, shared, criteria, side):
    found = speed.readings(shared, criteria, speed.TAIL, responses=2 if shared <= 512 else 1)
    note(benchmark, "scoring", case, shared, criteria, side, speed.tokens(found))
    rounds, warm = ROUNDS.get(case, 2), int(case in ROUNDS)
    scores = benchmark.pedantic(
        speed.score, (side, scorer, found), rounds=rounds, warmup_rounds=warm
    )
    assert len(scores) == criteria * len(found)


@pytest.mark.parametrize("side", speed.SIDES)
@pytest.mark.parametrize("case, shared, criteria", [s for s in SHAPES if s[1] <= LONGEST_TRAINED])
def test_training(benchmark, tmp_path, case, shared, criteria, side):
    rows = speed.pair_rows(speed.readings(shared, criteria, speed.TAIL, responses=2))
    note(benchmark, "training", case, shared, criteria, side, speed.training_tokens(rows))
    # a step: one pair of answers, on the other side its K expanded pairs, as far as a pass holds
    held = max(1, speed.BUDGET // (2 * (shared + speed.TAIL)))
    batch = 1 if side == "packed" else min(criteria, held)
    train(benchmark, side, rows, batch, tmp_path, ROUNDS.get(case, 1))


@pytest.mark.parametrize("side", speed.SIDES)
def test_scoring_of_the_clinic(benchmark, scorer, clinic, side):
    found = speed.of_rows(clinic)
    note(benchmark, "scoring", "clinic mix", 0, 0, side, speed.tokens(found))
    benchmark.pedantic(speed.score, (side, scorer, found), rounds=2)


@pytest.mark.parametrize("side", speed.SIDES)
def test_training_of_the_clinic(benchmark, tmp_path, clinic, side):
    counted, lost = speed.training_tokens(clinic), padding(clinic, ROWS, speed.BUDGET)
    note(benchmark, "training", "clinic mix", 0, 0, side, counted, lost)
    longest = max(len(ids) for row in speed.expanded(clinic) for ids in row.values())
    batch = ROWS if side == "packed" else speed.BUDGET // (2 * longest)
    train(benchmark, side, clinic, batch, tmp_path, 2)


def train(benchmark, side, rows, batch, folder, rounds):
    """Time ``train()`` alone: model and trainer are made anew before every round."""

    def fresh():
        return (speed.trainer(side, speed.model(), rows, batch, str(folder)),), {}

    benchmark.pedantic(lambda trainer: trainer.train(), setup=fresh, rounds=rounds, warmup_rounds=0)
