"""What only a known truth can show: how a reward goes wrong, dose by dose, with no model trained.

Optimising is choosing the best of some answers by a reward, which is given something else than the
truth; then the truth about the chosen one is read.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import pandas as pd

from promedical_utils import clinic
from promedical_utils.clinic import World, generators
from promedical_utils.core.estimates import Estimates
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Rubric
from promedical_utils.core.words import words
from promedical_utils.core.workspace import short_hash, write_frame
from promedical_utils.evaluation.policy_metrics import bench_score
from promedical_utils.policy.veto_reward import Judged, VetoReward
from promedical_utils.rubric import scoring

PROMPTS = 400  # at most
ANSWERS = 8  # to a prompt, each of the clinic's generators twice
KEY = ("test", "dose", "measure")


class Prompt(NamedTuple):
    """A rubric, and of each answer its words and true verdicts by criterion id."""

    rubric: Rubric
    words: list[int]
    verdicts: list[dict[str, str]]
    rng: random.Random

    @property
    def scores(self) -> list[scoring.Scores]:
        return [scoring.score(self.rubric, verdicts) for verdicts in self.verdicts]

    @property
    def safety(self) -> list[str]:
        """Ids of the safety criteria."""
        return [c.id for c in self.rubric.criteria if c.dimension == "safety"]


Row = tuple[str, str, float | None]  # dose, measure, value of one prompt; None: it has none


def value(rubric: Rubric, verdicts: dict[str, str]) -> float:
    """The strict reward of an answer, by the kit's default terms."""
    return scoring.gated_reward(scoring.score(rubric, verdicts))


def gold(scores: scoring.Scores) -> float:
    """An answer's true bench score, 0 to 100: 0 with a violation."""
    return float(bench_score(scores.s1, scores.s2, scores.s3))


def rubric_dropout(prompt: Prompt) -> Iterator[Row]:
    """The reward knows a part of the criteria: what it reads goes up, what counts does not."""
    order = prompt.rng.sample(prompt.rubric.criteria, len(prompt.rubric.criteria))
    for share in (1.0, 0.75, 0.5, 0.25):
        kept = order[: max(1, round(share * len(order)))]
        known = prompt.rubric.model_copy(update={"criteria": kept})
        own = [{c.id: verdicts[c.id] for c in kept} for verdicts in prompt.verdicts]
        chosen = prompt.scores[np.argmax([value(known, v) for v in own])]
        dose = f"{share:.0%} of the criteria"
        yield dose, "gold score of the chosen", gold(chosen)
        yield dose, "chosen with a violation (%)", 100.0 * (chosen.s3 > 0)


def suppressed_criteria(prompt: Prompt) -> Iterator[Row]:
    """Some answers meet a criterion and others do not, and those that do are not pushed up."""
    for name, rule in {"veto": value, **scoring.RULES}.items():
        rewards = [rule(prompt.rubric, v) for v in prompt.verdicts]
        lost, mean = [], fmean(rewards)
        for c in prompt.rubric.criteria:
            met = [r for r, v in zip(rewards, prompt.verdicts, strict=True) if v[c.id] == "met"]
            if 0 < len(met) < len(rewards):
                lost.append(fmean(met) <= mean)
        yield name, "prompts with a suppressed criterion (%)", 100.0 * any(lost)


def lambda_dose(prompt: Prompt) -> Iterator[Row]:
    """The paper's reward with a smaller and smaller price of a violation, where the choice is
    between the most harmless answer and those with a violation."""
    safe = [s for s in prompt.scores if not s.s3]
    offered = [s for s in prompt.scores if s.s3] + [min(safe, key=lambda s: s.key)] if safe else []
    for lam in (2.0, 1.3, 1.0, 0.6, 0.3):
        chosen = np.argmax([min(s.s1 + 0.1 * s.s2, 1.3) - lam * s.s3 for s in offered] or [0.0])
        share = 100.0 * (offered[chosen].s3 > 0) if len(offered) > 1 else None
        yield f"lambda {lam:g}", "chosen with a violation (%)", share


def all_vetoed(prompt: Prompt) -> Iterator[Row]:
    """All answers are unsafe: is one of two that are equally so pushed up for its merits?"""
    unsafe = [s for s in prompt.scores if s.s3]
    judged = [Judged(s, {}, expected=float(s.s3)) for s in unsafe]
    equal = [(a, b) for a, b in combinations(range(len(unsafe)), 2) if unsafe[a].s3 == unsafe[b].s3]
    for way in ("counted", "expected", "skipped"):
        rewards = VetoReward(None, None, [], all_vetoed=way).of_group(judged)
        share = 100.0 * any(rewards[a] != rewards[b] for a, b in equal) if equal else None
        yield way, "unsafe groups in which merit pushes one up (%)", share


def judge_fails_open(prompt: Prompt) -> Iterator[Row]:
    """Some safety verdicts never come; who takes them for met lets violations pass, and who takes
    them for violations loses safe answers."""
    truly = np.array([s.s3 > 0 for s in prompt.scores])
    measures = {"violating answers that pass (%)": True, "safe answers vetoed (%)": False}
    for rate in (0.0, 0.1, 0.3, 0.5):
        failed = [{c for c in prompt.safety if prompt.rng.random() < rate} for _ in truly]
        for way, said in (("open", "met"), ("closed", "unknown")):
            pairs = zip(prompt.verdicts, failed, strict=True)
            read = [verdicts | dict.fromkeys(gone, said) for verdicts, gone in pairs]
            vetoed = np.array([scoring.score(prompt.rubric, v).s3 > 0 for v in read])
            for name, side in measures.items():
                own = vetoed[truly == side]
                share = 100 * (own != side).mean() if len(own) else None
                yield f"{rate:.0%} fail, {way}", name, share


def false_refusal(prompt: Prompt) -> Iterator[Row]:
    """Beside the answers stands a refusal. The veto fires at cells that are met: is it chosen
    although there is a safe answer that helps?"""
    refused = dict.fromkeys((c.id for c in prompt.rubric.criteria), "not_met")
    refused |= dict.fromkeys(prompt.safety, "met")
    helps = any(gold(scores) > 0 for scores in prompt.scores)
    for rate in (0.0, 0.05, 0.1, 0.2, 0.4):
        read = [
            v | {c: "not_met" for c in prompt.safety if prompt.rng.random() < rate}
            for v in prompt.verdicts
        ]
        rewards = [value(prompt.rubric, v) for v in [*read, refused]]
        chosen = 100.0 * (np.argmax(rewards) == len(read)) if helps else None
        yield f"veto on {rate:.0%} of what is met", "refusals chosen (%)", chosen


def length(prompt: Prompt) -> Iterator[Row]:
    """The reward likes words: so much of it for a hundred of them."""
    rewards = np.array([value(prompt.rubric, v) for v in prompt.verdicts])
    for weight in (0.0, 0.2, 0.5, 1.0, 2.0):
        chosen = np.argmax(rewards + weight * np.array(prompt.words) / 100)
        dose = f"{weight:g} for 100 words"
        yield dose, "gold score of the chosen", gold(prompt.scores[chosen])
        yield dose, "words of the chosen", float(prompt.words[chosen])


TESTS: dict[str, tuple[Callable[[Prompt], Iterator[Row]], str]] = {  # and where it is from
    "rubric dropout": (rubric_dropout, "arXiv 2608.11669"),
    "suppressed criteria": (suppressed_criteria, "arXiv 2607.18082"),
    "lambda": (lambda_dose, "the paper's bound, lambda >= 1 + beta"),
    "all answers vetoed": (all_vetoed, "verl-recipe, pull request 125"),
    "judge fails open": (judge_fails_open, "decision of the kit"),
    "false refusal": (false_refusal, "not measured in the paper"),
    "length": (length, "decision of the kit"),
}


def prompts(world: World, ids: Sequence[str]) -> Iterator[Prompt]:
    habits = (*generators.NAMES, generators.CARELESS)
    for i in ids:
        rng, patient = random.Random(short_hash("testbed", world.seed, i)), world.patients[i]
        texts = [generators.write(patient, habits[n % len(habits)], rng) for n in range(ANSWERS)]
        read = [world.gold(i, text) for text in texts]
        yield Prompt(world.rubric_of[i], [len(words(t)) for t in texts], read, rng)


def measured(world: World, ids: Sequence[str], draws: int, seed: int) -> pd.DataFrame:
    """A row a test, dose and measure: value, low, high (95 %, by condition), n prompts, origin."""
    samples = pd.DataFrame({"condition": [world.condition_of[i] for i in ids]})
    rows = [
        (number, test, *row)
        for number, prompt in enumerate(prompts(world, ids))
        for test, (of, _) in TESTS.items()
        for row in of(prompt)
    ]
    found = pd.DataFrame(rows, columns=["row", *KEY, "value"]).groupby([*KEY], sort=False)
    sums = Estimates.of_items(samples, KEY, ((key, own.row, own.value) for key, own in found))
    frame = sums.table(draws, seed)
    return frame.assign(origin=[TESTS[test][1] for test in frame.test])


def write_testbed(profile: Profile, run: Path) -> pd.DataFrame | None:
    """``measured`` on training patients of the clinic, also into policy/testbed.csv; None with
    other data."""
    if profile.data != "clinic":
        return None
    world = clinic.build(profile)
    asked = world.ids("train")[:PROMPTS]
    doses = measured(world, asked, profile.bootstrap, profile.seed)
    write_frame(run / "policy/testbed.csv", doses)
    return doses
