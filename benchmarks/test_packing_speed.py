"""``make bench``: packed against one by one, side by side in one run, nothing else running.

The two sides take turns, round by round, so that a machine that slows down slows both;
``speed`` says what each does.
"""

import math
from time import perf_counter

import psutil
import pytest
import speed

from promedical_utils.reward_model import hub
from promedical_utils.reward_model.grouped import padding

hub.silence()
BUSY = psutil.cpu_percent(interval=1.0)  # of all cores, before anything of this runs
SHAPES = [("published", speed.SHARED, speed.CRITERIA)]
SHAPES += [("over K", speed.SHARED, k) for k in speed.KS]
SHAPES += [("over L", shared, speed.CRITERIA) for shared in speed.LS]
ROUNDS = {"published": 7, "clinic mix": 3}
ROWS = 4  # instructions a step, as in profile cpu
LONGEST_TRAINED = 1024  # one by one, a step of 4096 shared tokens takes minutes


@pytest.fixture(scope="module")
def scorer():
    return {side: speed.model(side) for side in speed.SIDES}


@pytest.fixture(scope="module")
def clinic():
    return speed.clinic_rows(8)


@pytest.mark.parametrize("case, shared, criteria", SHAPES)
def test_scoring(benchmark, scorer, case, shared, criteria):
    found = speed.readings(shared, criteria, speed.TAIL, responses=2 if shared <= 512 else 1)
    note(benchmark, "scoring", case, shared, criteria, speed.tokens(found))
    take_turns(
        benchmark, lambda side: lambda: speed.score(side, scorer[side], found), ROUNDS.get(case, 2)
    )


@pytest.mark.parametrize("case, shared, criteria", [s for s in SHAPES if s[1] <= LONGEST_TRAINED])
def test_training(benchmark, tmp_path, case, shared, criteria):
    rows = speed.pair_rows(speed.readings(shared, criteria, speed.TAIL, responses=2))
    note(benchmark, "training", case, shared, criteria, speed.training_tokens(rows))
    take_turns(benchmark, trainers(rows, 1, tmp_path), ROUNDS.get(case, 2))


def test_scoring_of_the_clinic(benchmark, scorer, clinic):
    found = speed.of_rows(clinic)
    note(benchmark, "scoring", "clinic mix", 0, 0, speed.tokens(found))
    take_turns(
        benchmark, lambda side: lambda: speed.score(side, scorer[side], found), ROUNDS["clinic mix"]
    )


def test_training_of_the_clinic(benchmark, tmp_path, clinic):
    counted, lost = speed.training_tokens(clinic), padding(clinic, ROWS, speed.BUDGET)
    note(benchmark, "training", "clinic mix", 0, 0, counted, lost)
    steps = math.ceil(len(clinic) / ROWS)
    take_turns(benchmark, trainers(clinic, steps, tmp_path), ROUNDS["clinic mix"])


def note(benchmark, task, case, shared, criteria, counted, padded=0.0):
    benchmark.group = f"{task}, {case}, L = {shared}, K = {criteria}"
    benchmark.extra_info |= {
        "task": task,
        "case": case,
        "L": shared,
        "K": criteria,
        "C": speed.TAIL,
        "bound": counted["one_by_one"] / counted["packed"],
        "padding": padded,
        "busy": BUSY,
    }


def trainers(rows, steps, folder):
    """side -> ``train`` of a trainer, made anew with its model, neither of which is timed."""
    return lambda side: speed.trainer(side, speed.model(side), rows, steps, str(folder)).train


def take_turns(benchmark, prepared, rounds):
    """One by one in each round's set-up, then packed; ``prepared``: side -> what is timed."""
    apart, packed = [], []

    def timed(side, seconds):
        run = prepared(side)
        start = perf_counter()
        run()
        seconds.append(perf_counter() - start)

    prepared("packed")()  # first calls are slower
    benchmark.pedantic(
        lambda: timed("packed", packed), setup=lambda: timed("one_by_one", apart), rounds=rounds
    )
    benchmark.extra_info |= {"one_by_one_s": apart, "packed_s": packed}
