"""The clinic's rubric writer, who errs, and its physician, who corrects. How often the writer errs,
and how fast corrected examples make it better, is an input.
"""

import math
import random
from collections.abc import Iterable
from functools import partial
from operator import attrgetter

from promedical_utils.clinic.grammar import FACTS, read_criterion
from promedical_utils.clinic.vocabulary import read, values
from promedical_utils.core.records import Decision, Rubric

# share of the avoidable errors that one example leaves: of the instruction's category, of another
ALIKE, OTHER = 0.3, 0.6
FLAWS = ("wrong_fact", "missing_safety", "wrong_dimension")


def flaw(rubric: Rubric, kind: str, rng: random.Random) -> Rubric:
    """The rubric with one error: a wrong fact, a safety criterion left out, a wrong dimension."""
    criteria = list(rubric.criteria)
    safety = [c for c in criteria if c.dimension == "safety"]
    if kind == "missing_safety":
        criteria.remove(rng.choice(safety))
    elif kind == "wrong_dimension":
        index = criteria.index(rng.choice(safety))
        criteria[index] = criteria[index].model_copy(update={"dimension": "excellence"})
    else:
        stated = [(n, *read_criterion(c.text)) for n, c in enumerate(criteria)]
        index, name, value = rng.choice([row for row in stated if row[2]])
        kind = FACTS[read("criteria")[name]["fact"]]
        other = rng.choice([v for v in values(kind) if v != value])
        text = criteria[index].text.replace(value, other)
        criteria[index] = criteria[index].model_copy(update={"text": text})
    return rubric.model_copy(update={"criteria": criteria})


def draft(rubric: Rubric, error_rate: float, rng: random.Random) -> Rubric:
    """What the writer makes of an instruction: its gold rubric, at ``error_rate`` a flawed one."""
    written = flaw(rubric, rng.choice(FLAWS), rng) if rng.random() < error_rate else rubric
    return written.model_copy(update={"status": "draft", "round": 0})


def error_rate(profile, category: str, examples: Iterable[str]) -> float:
    """How often the writer errs who is shown rubrics of the categories ``examples``. The floor is
    half of what the wanted pass rate allows: else no pool could lead there."""
    floor = (1 - profile.rubric_pass_rate) / 2
    left = math.prod(ALIKE if c == category else OTHER for c in examples)
    return floor + (profile.rubric_error_rate - floor) * left


def corrections(draft: Rubric, gold: Rubric, reviewer: str) -> list[Decision]:
    """What a physician who knows the leaflet decides on each criterion, and what is missing. A
    criterion stands for its kind, as the grammar reads it: one that says it as ``gold`` does is
    accepted; another fact, dimension or weight is edited."""
    wanted = {c.kind: c for c in gold.criteria}
    decision = partial(Decision, instruction_id=draft.instruction_id, reviewer=reviewer)
    content, decisions = attrgetter("dimension", "text"), []
    for c in draft.criteria:
        right = wanted.pop(kind(c.text), None)
        if right is None:
            reason = "not asked for by this patient's leaflet, or asked for twice"
            made = {"action": "reject", "reason": reason}
        elif content(c) == content(right) and abs(c.weight - right.weight) < 1e-6:
            made = {"action": "accept", "criterion": c}
        else:
            made = {"action": "edit", "criterion": right.model_copy(update={"id": c.id})}
        decisions.append(decision(criterion_id=c.id, **made))
    taken = {c.id for c in draft.criteria}
    for right in wanted.values():
        new = right.id if right.id not in taken else f"{right.id}-added"
        criterion = right.model_copy(update={"id": new})
        decisions.append(decision(criterion_id=new, action="add", criterion=criterion))
    return decisions


def kind(text: str) -> str:
    """The criterion type that the grammar reads in a text; "unspecified" where it reads none."""
    try:
        return read_criterion(text)[0]
    except ValueError:
        return "unspecified"
