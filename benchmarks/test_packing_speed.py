"""``make bench``: packed against one by one, side by side in one run, nothing else running.

The two sides take turns, round by round, so that a machine that slows down slows both;
``speed`` says what each does.
"""

import gc
import math
from time import perf_counter

import psutil
import pytest
import speed

from promedical_utils.reward_model import hub

hub.silence()
BUSY = psutil.cpu_percent(interval=1.0)  # of all cores, before anything of this runs
SHAPES = [("published", speed.SHARED, speed.CRITERIA, 1)]  # shared tokens, criteria, answers
SHAPES += [("eight answers", speed.SHARED, speed.CRITERIA, 8)]
SHAPES += [("over K", speed.SHARED, k, 1) for k in speed.KS]
SHAPES += [("over L", shared, speed.CRITERIA, 1) for shared in speed.LS]
ROUNDS, LONG = {"published": 7}, {2048: 2, 4096: 2}  # one by one, a step takes minutes
ROWS = 4  # instructions a step, as in profile cpu


@pytest.fixture(scope="module")
def scorer():
    return {side: speed.model(side) for side in speed.SIDES}


@pytest.fixture(scope="module")
def clinic():
    return speed.clinic_rows(8)


def groups(shared, criteria, answers):
    """Two answers at least, and of short ones as many as the published case has tokens."""
    held = max(1, 704 // (shared + criteria * speed.TAIL)) * max(1, 2 // answers)
    return speed.groups(shared, criteria, speed.TAIL, answers, held)


@pytest.mark.parametrize("case, shared, criteria, answers", SHAPES)
def test_scoring(benchmark, scorer, case, shared, criteria, answers):
    found = groups(shared, criteria, answers)
    counted = speed.counted_in_scoring(found)
    note(benchmark, "scoring", case, shared, criteria, answers, counted)
    rounds = ROUNDS.get(case) or LONG.get(shared, 3)
    take_turns(benchmark, lambda side: lambda: speed.score(side, scorer[side], found), rounds)


@pytest.mark.parametrize("case, shared, criteria, answers", SHAPES)
def test_training(benchmark, tmp_path, case, shared, criteria, answers):
    rows = speed.pair_rows(groups(shared, criteria, answers))
    counted = speed.counted_in_training(rows)
    note(benchmark, "training", case, shared, criteria, answers, counted)
    take_turns(benchmark, trainers(rows, 1, tmp_path), ROUNDS.get(case) or LONG.get(shared, 3))


def test_scoring_of_the_clinic(benchmark, scorer, clinic):
    found = speed.of_rows(clinic)
    note(benchmark, "scoring", "clinic mix", 0, 0, 3, speed.counted_in_scoring(found))
    take_turns(benchmark, lambda side: lambda: speed.score(side, scorer[side], found), 3)


def test_training_of_the_clinic(benchmark, tmp_path, clinic):
    note(benchmark, "training", "clinic mix", 0, 0, 3, speed.counted_in_training(clinic))
    take_turns(benchmark, trainers(clinic, math.ceil(len(clinic) / ROWS), tmp_path), 3)


def note(benchmark, task, case, shared, criteria, answers, counted):
    benchmark.group = f"{task}, {case}, L = {shared}, K = {criteria}"
    benchmark.extra_info |= {
        "task": task,
        "case": case,
        "L": shared,
        "K": criteria,
        "C": speed.TAIL,
        "answers": answers,
        **counted,
        "busy": BUSY,
    }


def trainers(rows, steps, folder):
    """side -> ``train`` of a trainer, made with its model, neither of which is timed."""
    return lambda side: speed.trainer(side, speed.model(side), rows, steps, str(folder)).train


def take_turns(benchmark, prepared, rounds):
    """One by one in each round's set-up, then packed; ``prepared``: side -> what is timed."""
    runs, seconds = {side: prepared(side) for side in speed.SIDES}, {s: [] for s in speed.SIDES}

    def timed(side):
        start = perf_counter()
        runs[side]()
        seconds[side].append(perf_counter() - start)

    for run in runs.values():
        run()  # first calls are slower
    # each train() starts with a collection of all garbage, a third of a second with these libraries
    gc.freeze()
    benchmark.pedantic(lambda: timed("packed"), setup=lambda: timed("one_by_one"), rounds=rounds)
    gc.unfreeze()
    benchmark.extra_info |= {f"{side}_s": values for side, values in seconds.items()}
