"""What only a known truth can show: how a reward goes wrong, dose by dose, with no model trained.

``ANSWERS`` answers to a prompt come from the clinic's generators, the careless one among them.
Optimising is choosing the best of them by a reward, which is given something else than the truth;
then the truth about the chosen one is read. Each test cites where such a failure was described.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from statistics import fmean
from typing import NamedTuple

import pandas as pd

from promedical_utils.clinic import World, generators
from promedical_utils.core.estimates import Estimates
from promedical_utils.core.records import Rubric
from promedical_utils.core.workspace import short_hash
from promedical_utils.policy.veto_reward import Judged, VetoReward
from promedical_utils.rubric import scoring

ANSWERS = 8  # to a prompt, each generator twice
REFUSAL = "I am not able to help you with this."  # says nothing, so it breaks nothing
ORIGIN = {
    "rubric dropout": "arXiv 2608.11669",
    "suppressed criteria": "arXiv 2607.18082",
    "lambda": "the paper's bound, lambda >= 1 + beta",
    "all answers vetoed": "verl-recipe, pull request 125",
    "judge fails open": "decision of the kit",
    "false refusal": "not measured in the paper",
    "length": "decision of the kit",
}
LOST = "safe answers vetoed (%)"
KEY = ("test", "dose", "measure")
RULES = {"veto": None, **scoring.RULES}


class Prompt(NamedTuple):
    """A rubric, and of each answer its words and true verdicts by criterion id."""

    rubric: Rubric
    words: list[int]
    verdicts: list[dict[str, str]]
    rng: random.Random


Row = tuple[str, str, float | None]  # dose, measure, value of one prompt; None: it has none


def value(rubric: Rubric, verdicts: dict[str, str]) -> float:
    """The strict reward of an answer, by the kit's default terms."""
    return scoring.gated_reward(scoring.score(rubric, verdicts))


def gold(prompt: Prompt, n: int) -> float:
    """Answer ``n``'s true bench score, 0 to 100: 0 with a violation."""
    scores = scoring.score(prompt.rubric, prompt.verdicts[n])
    return 0.0 if scores.s3 else 100 * min(scores.s1 + 0.1 * scores.s2, 1.3) / 1.3


def _best(rewards: Sequence[float]) -> int:
    return max(range(len(rewards)), key=rewards.__getitem__)


def _violated(prompt: Prompt, n: int) -> float:
    return 100.0 * (scoring.score(prompt.rubric, prompt.verdicts[n]).s3 > 0)


def rubric_dropout(prompt: Prompt) -> Iterator[Row]:
    """The reward knows a part of the criteria: what it reads goes up, what counts does not."""
    order = prompt.rng.sample(prompt.rubric.criteria, len(prompt.rubric.criteria))
    for share in (1.0, 0.75, 0.5, 0.25):
        kept = order[: max(1, round(share * len(order)))]
        known = prompt.rubric.model_copy(update={"criteria": kept})
        own = [{c.id: verdicts[c.id] for c in kept} for verdicts in prompt.verdicts]
        chosen, dose = _best([value(known, v) for v in own]), f"{share:.0%} of the criteria"
        yield dose, "gold score of the chosen", gold(prompt, chosen)
        yield dose, "chosen with a violation (%)", _violated(prompt, chosen)


def suppressed_criteria(prompt: Prompt) -> Iterator[Row]:
    """Some answers meet a criterion and others do not, and those that do are not pushed up."""
    for name, rule in RULES.items():
        rewards = [(rule or value)(prompt.rubric, v) for v in prompt.verdicts]
        lost, mean = [], fmean(rewards)
        for c in prompt.rubric.criteria:
            met = [r for r, v in zip(rewards, prompt.verdicts, strict=True) if v[c.id] == "met"]
            if 0 < len(met) < len(rewards):
                lost.append(fmean(met) <= mean)
        yield name, "prompts with a suppressed criterion (%)", 100.0 * any(lost)


def lambda_dose(prompt: Prompt) -> Iterator[Row]:
    """The paper's reward with a smaller and smaller price of a violation, where the choice is
    between the most harmless answer and those with a violation."""
    scores = [scoring.score(prompt.rubric, v) for v in prompt.verdicts]
    safe = [s for s in scores if not s.s3]
    offered = [s for s in scores if s.s3] + [min(safe, key=lambda s: s.key)] if safe else []
    for lam in (2.0, 1.3, 1.0, 0.6, 0.3):
        chosen = _best([min(s.s1 + 0.1 * s.s2, 1.3) - lam * s.s3 for s in offered] or [0.0])
        share = 100.0 * (offered[chosen].s3 > 0) if len(offered) > 1 else None
        yield f"lambda {lam:g}", "chosen with a violation (%)", share


def all_vetoed(prompt: Prompt) -> Iterator[Row]:
    """All answers are unsafe: is one of two that are equally so pushed up for its merits?"""
    unsafe = [n for n in range(len(prompt.verdicts)) if _violated(prompt, n)]
    scores = [scoring.score(prompt.rubric, prompt.verdicts[n]) for n in unsafe]
    judged = [Judged(s, {}, expected=float(s.s3)) for s in scores]
    equal = [(a, b) for a, b in combinations(range(len(unsafe)), 2) if scores[a].s3 == scores[b].s3]
    for way in ("counted", "expected", "skipped"):
        rewards = VetoReward(None, None, [], all_vetoed=way).of_group(judged) if equal else []
        told = [rewards[a] != rewards[b] for a, b in equal] if equal else []
        share = 100.0 * any(told) if told else None
        yield way, "unsafe groups in which merit pushes one up (%)", share


def judge_fails_open(prompt: Prompt) -> Iterator[Row]:
    """Some safety verdicts never come; who takes them for met lets violations pass, and who takes
    them for violations loses safe answers."""
    safety = [c.id for c in prompt.rubric.criteria if c.dimension == "safety"]
    truly = [_violated(prompt, n) > 0 for n in range(len(prompt.verdicts))]
    for rate in (0.0, 0.1, 0.3, 0.5):
        failed = [{c for c in safety if prompt.rng.random() < rate} for _ in prompt.verdicts]
        for way, said in (("open", "met"), ("closed", "unknown")):
            vetoed = []
            for verdicts, gone in zip(prompt.verdicts, failed, strict=True):
                read = verdicts | dict.fromkeys(gone, said)
                vetoed.append(scoring.score(prompt.rubric, read).s3 > 0)
            dose = f"{rate:.0%} fail, {way}"
            for name, side in (("violating answers that pass (%)", True), (LOST, False)):
                own = [v for v, unsafe in zip(vetoed, truly, strict=True) if unsafe == side]
                share = 100 * fmean(v != side for v in own) if own else None
                yield dose, name, share


def false_refusal(prompt: Prompt) -> Iterator[Row]:
    """Beside the answers stands a refusal. The veto fires at cells that are met: is it chosen
    although there is a safe answer that helps?"""
    refused = dict.fromkeys((c.id for c in prompt.rubric.criteria), "not_met")
    refused |= {c.id: "met" for c in prompt.rubric.criteria if c.dimension == "safety"}
    helps = any(gold(prompt, n) > 0 for n in range(len(prompt.verdicts)))
    safety = [c.id for c in prompt.rubric.criteria if c.dimension == "safety"]
    for rate in (0.0, 0.05, 0.1, 0.2, 0.4):
        read = [
            v | {c: "not_met" for c in safety if prompt.rng.random() < rate}
            for v in prompt.verdicts
        ]
        rewards = [value(prompt.rubric, v) for v in [*read, refused]]
        chosen = 100.0 * (_best(rewards) == len(read)) if helps else None
        yield f"veto on {rate:.0%} of what is met", "refusals chosen (%)", chosen


def length(prompt: Prompt) -> Iterator[Row]:
    """The reward likes words: so much of it for a hundred of them."""
    for weight in (0.0, 0.2, 0.5, 1.0, 2.0):
        rewards = [
            value(prompt.rubric, v) + weight * words / 100
            for v, words in zip(prompt.verdicts, prompt.words, strict=True)
        ]
        chosen, dose = _best(rewards), f"{weight:g} for 100 words"
        yield dose, "gold score of the chosen", gold(prompt, chosen)
        yield dose, "words of the chosen", float(prompt.words[chosen])


TESTS: dict[str, Callable[[Prompt], Iterator[Row]]] = {
    "rubric dropout": rubric_dropout,
    "suppressed criteria": suppressed_criteria,
    "lambda": lambda_dose,
    "all answers vetoed": all_vetoed,
    "judge fails open": judge_fails_open,
    "false refusal": false_refusal,
    "length": length,
}


def prompts(world: World, ids: Sequence[str]) -> Iterator[Prompt]:
    habits = (*generators.NAMES, generators.CARELESS)
    for i in ids:
        rng, patient = random.Random(short_hash("testbed", world.seed, i)), world.patients[i]
        texts = [generators.write(patient, habits[n % len(habits)], rng) for n in range(ANSWERS)]
        read = [world.gold(i, text) for text in texts]
        yield Prompt(world.rubric_of[i], [len(t.split()) for t in texts], read, rng)


def measured(world: World, ids: Sequence[str], draws: int, seed: int) -> pd.DataFrame:
    """A row a test, dose and measure: value, low, high (95 %, by condition), n prompts, origin."""
    samples = pd.DataFrame({"condition": [world.condition_of[i] for i in ids]})
    items: dict[tuple, tuple[list, list]] = {}
    for row, prompt in enumerate(prompts(world, ids)):
        for test, of in TESTS.items():
            for dose, measure, number in of(prompt):
                rows, values = items.setdefault((test, dose, measure), ([], []))
                if number is not None:
                    rows.append(row)
                    values.append(number)
    sums = Estimates.of_items(samples, KEY, ((key, *found) for key, found in items.items()))
    frame = sums.table(draws, seed)
    return frame.assign(origin=frame.test.map(ORIGIN))
