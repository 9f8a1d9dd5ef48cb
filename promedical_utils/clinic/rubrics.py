"""How the clinic's rubrics come about: a writer that errs, and rounds of physician review.

How often the writer errs, and how fast corrected examples make it better, is an input.
"""

import random
from collections.abc import Iterator

from promedical_utils.clinic.grammar import PLACEHOLDERS, read_criterion
from promedical_utils.clinic.vocabulary import read, values
from promedical_utils.clinic.world import World
from promedical_utils.records import Rubric

LEARNING = 0.4  # share of the avoidable errors that a round of corrected examples leaves
FLAWS = ("wrong_fact", "missing_safety", "wrong_dimension")


def flaw(rubric: Rubric, kind: str, rng: random.Random) -> Rubric:
    """The rubric with one error: a wrong fact, a safety criterion left out, a wrong dimension."""
    criteria = list(rubric.criteria)
    safety = [c for c in criteria if c.dimension == "safety"]
    if kind == "missing_safety":
        criteria.remove(rng.choice(safety))
    elif kind == "wrong_dimension":
        place = criteria.index(rng.choice(safety))
        criteria[place] = criteria[place].model_copy(update={"dimension": "excellence"})
    else:
        stated = [(n, *read_criterion(c.text)) for n, c in enumerate(criteria)]
        place, name, value = rng.choice([row for row in stated if row[2]])
        form = next(f for f in read("criteria")[name]["forms"] for k in PLACEHOLDERS if "{%s}" % k in f)
        placeholder = next(k for k in PLACEHOLDERS if "{%s}" % k in form)
        other = rng.choice([v for v in values(PLACEHOLDERS[placeholder]) if v != value])
        text = criteria[place].text.replace(value, other)
        criteria[place] = criteria[place].model_copy(update={"text": text})
    return rubric.model_copy(update={"criteria": criteria})


def draft(rubric: Rubric, error_rate: float, round_: int, rng: random.Random) -> Rubric:
    """What the writer makes of an instruction: the gold rubric, or at ``error_rate`` a flawed one."""
    written = flaw(rubric, rng.choice(FLAWS), rng) if rng.random() < error_rate else rubric
    return written.model_copy(update={"status": "draft", "round": round_})


def same(a: Rubric, b: Rubric) -> bool:
    return a.criteria == b.criteria


def review(world: World, ids: list[str], profile) -> Iterator[tuple[dict, list[Rubric]]]:
    """Rounds of ``profile.review_batch``: draft, review, correct, and the rubrics of the round.

    Each round is ({round, reviewed, passed, pass_rate, flaws}, rubrics). A corrected rubric is gold
    and teaches the writer. The rounds end when the strict pass rate reaches the profile's; what is
    then left is drafted at the last error rate and not reviewed: one last item, round None.
    """
    # the writer could in the end be twice as good as asked for, or the rounds would hardly stop
    floor, rate = (1 - profile.rubric_pass_rate) / 2, profile.rubric_error_rate
    rng, left, number = random.Random(f"rubrics-{profile.seed}"), list(ids), 0
    while left:
        number += 1
        batch, left = left[: profile.review_batch], left[profile.review_batch :]
        drafts = [draft(world.rubric_of[i], rate, number, rng) for i in batch]
        passed = [same(d, world.rubric_of[d.instruction_id]) for d in drafts]
        gold = [
            world.rubric_of[i].model_copy(update={"round": number}) for i in batch
        ]
        share = sum(passed) / len(batch)
        yield {
            "round": number, "reviewed": len(batch), "passed": sum(passed),
            "pass_rate": round(share, 4), "error_rate_input": round(rate, 4),
        }, gold  # fmt: skip
        if share >= profile.rubric_pass_rate:
            break
        rate = floor + LEARNING * (rate - floor)
    if left:
        drafts = [draft(world.rubric_of[i], rate, number, rng) for i in left]
        flawed = sum(not same(d, world.rubric_of[d.instruction_id]) for d in drafts)
        yield {"round": None, "reviewed": 0, "drafted": len(left), "flawed": flawed}, drafts
