"""A simulated seeker of emotional support, in whom every choice of a strategy has an exact value.

The strategies are those of Chain-of-Strategy Optimization (arXiv 2503.05362). The seeker is
invented and its odds are inputs: nothing here is a counselling tool.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from promedical_utils.core import workspace

READS = ("promedical_studies/support",)  # what a rerun of a notebook hangs on, besides code
TEXTS = workspace.read_yaml(Path(__file__).parent / "support/texts.yaml")
STRATEGIES = tuple(TEXTS["cues"])
DIMENSIONS = ("Empathy", "Information", "Humanoid", "Strategy")  # of the judge, 0 to 4 points each
# openness at which a strategy has its place: 0 the seeker is closed, 1 tells, 2 is ready for advice
PHASE = (0, 0, 0, 1, 1, 1, 2, 2)
VALIDATION, AFFIRMATION, PLANNING = 0, 3, 6  # in ``STRATEGIES``
# a closed seeker asks for advice, in the very words of a ready one: what helps is validation
TOO_EARLY = len(STRATEGIES)
CUES = ((0, 1, 2, TOO_EARLY, TOO_EARLY), (3, 4, 5), (6, 7))  # by openness, each as likely
TURNS = 8  # after which the seeker leaves


class State(NamedTuple):
    """What is hidden of a seeker. ``cue``: the strategy that the last words ask for, or
    ``TOO_EARLY``; ``distress``: 0 to 4; ``last``: the last strategy, -1 before the first."""

    openness: int
    cue: int
    distress: int
    turn: int
    last: int

    @property
    def ended(self) -> bool:
        return self.distress == 0 or self.turn >= TURNS


class Turn(NamedTuple):
    """One turn of a dialogue; the seeker's have no strategy. ``state`` is the simulated seeker's,
    which no endpoint has and no policy reads."""

    strategy: str
    text: str
    ended: bool = False
    state: State | None = None


History = tuple[Turn, ...]


def outcomes(state: State, strategy: int) -> list[tuple[float, State]]:
    """All that may follow a strategy: (probability, next state), adding up to 1."""
    openness, cue, distress, turn, last = state
    if strategy == (VALIDATION if cue == TOO_EARLY else cue):
        moves = [(1.0, openness, distress - 2)]
        if openness < 2:  # opens up, which eases from the second time on
            moves = [(0.8, openness + 1, distress - openness), (0.2, openness, distress)]
    elif PHASE[strategy] == 2 and openness < 2:  # advice too early
        moves = [(1.0, openness, distress + 1)]
    elif strategy == AFFIRMATION:  # soothes by chance, down to 2, and leads nowhere
        moves = [(0.5, openness, distress - (distress > 2)), (0.5, openness, distress)]
    else:
        moves = [(1.0, openness, distress)]
    if strategy == last:  # said again: may close
        moves = [(p / 2, max(0, o - less), d) for p, o, d in moves for less in (0, 1)]
    after = []
    for p, o, d in moves:
        d = max(0, min(4, d))
        after += [(p / len(CUES[o]), State(o, c, d, turn + 1, strategy)) for c in CUES[o]]
    return after


@cache
def value(state: State) -> float:
    """V*: minus the distress at the end, on average, under the best strategies."""
    if state.ended:
        return -float(state.distress)
    return max(action_value(state, strategy) for strategy in range(len(STRATEGIES)))


@cache
def action_value(state: State, strategy: int) -> float:
    """Q*: of a strategy now and the best ones from then on."""
    return sum(p * value(after) for p, after in outcomes(state, strategy))


def advantage(state: State, chosen: str, rejected: str) -> float:
    """Q*(chosen) - Q*(rejected): the truth about a preference, right where it is above 0."""
    own, other = (action_value(state, STRATEGIES.index(name)) for name in (chosen, rejected))
    return own - other


def best(state: State) -> list[str]:
    """The strategies of the highest Q*, several where they tie."""
    return [
        name for name in STRATEGIES if all(advantage(state, name, s) > -1e-9 for s in STRATEGIES)
    ]


def fitting(cue: int) -> int:
    """The strategy that fits the words of a cue: what is too early has those of planning."""
    return PLANNING if cue == TOO_EARLY else cue


@dataclass
class Simulated:
    """The four roles of the search about one seeker of a ``condition`` (organ, problem).

    The strategist goes by the words and is fond of planning and affirmation. ``judge``: *local*
    reads up to the supporter's turn, as the paper's, *outcome* also the reaction. ``noise``: share
    of its strategy points that are drawn; ``lenient``: share of affirmations with full points.
    """

    condition: tuple[str, str]
    rng: random.Random
    judge: str = "local"
    noise: float = 0.1
    lenient: float = 0.3

    def _say(self, forms: list[str]) -> str:
        organ, problem = self.condition
        return self.rng.choice(forms).format(organ=organ, problem=problem)

    def turn(self, state: State) -> Turn:
        if state.ended:
            return Turn("", TEXTS["ends"]["left" if state.distress else "eased"], True, state)
        return Turn("", self._say(TEXTS["cues"][STRATEGIES[fitting(state.cue)]]), False, state)

    def opening(self) -> History:
        return (self.turn(State(0, self.rng.choice(CUES[0]), 3, 0, -1)),)

    def rate(self, history: History) -> list[tuple[str, float]]:
        fits, ratings = fitting(history[-1].state.cue), []
        for n, strategy in enumerate(STRATEGIES):
            rating = self.rng.randrange(3, 7) + 2 * (n in (AFFIRMATION, PLANNING))
            rating += 3 * (n == fits and self.rng.random() < 0.5)
            ratings.append((strategy, min(rating, 10)))
        return ratings

    def write(self, history: History, strategy: str) -> str:
        return self._say(TEXTS["turns"][strategy])

    def reply(self, history: History) -> Turn:
        odds, states = zip(*outcomes(history[-2].state, STRATEGIES.index(history[-1].strategy)))
        return self.turn(self.rng.choices(states, odds)[0])

    def score(self, history: History) -> dict[str, float]:
        before, n, after = (
            history[-3].state,
            STRATEGIES.index(history[-2].strategy),
            history[-1].state,
        )
        if self.judge == "outcome":
            better = after.openness > before.openness or after.distress < before.distress
            points = 4 if better else 0 if after.distress > before.distress else 2
        else:
            points = 4 if n == fitting(before.cue) else 1 + (PHASE[n] == before.openness)
        if n == AFFIRMATION and self.rng.random() < self.lenient:
            points = 4
        if self.rng.random() < self.noise:
            points = self.rng.randrange(5)
        style = (4 - before.distress / 2, 4 if PHASE[n] == 2 else 2, 1 if n == before.last else 3)
        return dict(zip(DIMENSIONS, (*style, points)))


def dialogue(roles, choose: Callable[[History], str]) -> History:
    """A whole dialogue with a supporter whose next strategy is what ``choose`` names."""
    history = roles.opening()
    while not history[-1].ended:
        strategy = choose(history)
        history += (Turn(strategy, roles.write(history, strategy)),)
        history += (roles.reply(history),)
    return history


def habitual(rng: random.Random, right: float = 0.45) -> Callable[[History], str]:
    """A supporter who is right in a share of turns, and else mostly affirms or plans."""
    weights = [4 if n in (AFFIRMATION, PLANNING) else 1 for n in range(len(STRATEGIES))]
    return lambda history: (
        rng.choice(best(history[-1].state))
        if rng.random() < right
        else rng.choices(STRATEGIES, weights)[0]
    )
