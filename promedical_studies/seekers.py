"""A simulated seeker of emotional support, in whom every choice of a strategy has an exact value.

The strategies are those of Chain-of-Strategy Optimization (arXiv 2503.05362); the seeker is
invented, with odds that are inputs: nothing here is a counselling tool.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
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
VALIDATION, AFFIRMATION, PLANNING = (
    STRATEGIES.index(s) for s in ("Emotional Validation", "Affirmation", "Collaborative Planning")
)
# a closed seeker asks for advice, in the very words of a ready one: what helps is validation
TOO_EARLY = len(STRATEGIES)
CUES = ((0, 1, 2, TOO_EARLY, TOO_EARLY), (3, 4, 5), (6, 7))  # by openness, each as likely
TURNS = 8  # after which the seeker leaves


class State(NamedTuple):
    """What is hidden of a seeker: openness 0 to 2, cue (the strategy that fits what was just said,
    or ``TOO_EARLY``), distress 0 to 4, turns so far, the last strategy (-1: none yet)."""

    openness: int
    cue: int
    distress: int
    turn: int
    last: int

    @property
    def ended(self) -> bool:
        return self.distress == 0 or self.turn >= TURNS


class Turn(NamedTuple):
    """One turn of a dialogue; ``strategy`` is empty in the seeker's. ``state``: the seeker's hidden
    one, which no role by endpoint has and no policy reads."""

    strategy: str
    text: str
    ended: bool = False
    state: State | None = None


History = tuple[Turn, ...]


def outcomes(state: State, strategy: int) -> list[tuple[float, State]]:
    """All that may follow a strategy: (probability, next state), adding up to 1."""
    openness, cue, distress, turn, last = state
    if strategy == (VALIDATION if cue == TOO_EARLY else cue):
        if openness == 2:
            moves = [(1.0, openness, distress - 2)]
        else:  # opens up, which eases from the second time on
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
        for following in CUES[o]:
            moved = State(o, following, max(0, min(4, d)), turn + 1, strategy)
            after.append((p / len(CUES[o]), moved))
    return after


@cache
def value(state: State) -> float:
    """V*: the final distress, negative, that the best strategies lead to on average."""
    if state.ended:
        return -float(state.distress)
    return max(action_value(state, strategy) for strategy in range(len(STRATEGIES)))


@cache
def action_value(state: State, strategy: int) -> float:
    """Q*: of a strategy now and the best ones from then on."""
    return sum(p * value(after) for p, after in outcomes(state, strategy))


def advantage(state: State, chosen: str, rejected: str) -> float:
    """Q*(chosen) - Q*(rejected): the truth about a preference, right where it is above 0."""
    of = (action_value(state, STRATEGIES.index(name)) for name in (chosen, rejected))
    return next(of) - next(of)


def best(state: State) -> list[str]:
    """The strategies of the highest Q*, several where they tie."""
    values = [action_value(state, n) for n in range(len(STRATEGIES))]
    return [s for s, q in zip(STRATEGIES, values, strict=True) if q > max(values) - 1e-9]


@dataclass
class Simulated:
    """All four roles of the search about one seeker of a ``condition`` (organ, problem): a
    strategist who goes by the words and is fond of planning and affirmation, a supporter, the
    seeker, and a judge. How far strategist and judge err are inputs, never findings.

    ``judge``: *local* reads up to the supporter's turn, as the paper's, *outcome* also the seeker's
    reaction. ``noise``: share of its strategy points that are drawn; ``lenient``: share of
    affirmations that get full points.
    """

    condition: tuple[str, str]
    rng: random.Random = field(default_factory=random.Random)
    judge: str = "local"
    noise: float = 0.1
    lenient: float = 0.3

    def _say(self, forms: list[str]) -> str:
        organ, problem = self.condition
        return self.rng.choice(forms).format(organ=organ, problem=problem)

    def turn(self, state: State) -> Turn:
        if state.ended:
            return Turn("", TEXTS["ends"]["left" if state.distress else "eased"], True, state)
        return Turn("", self._say(TEXTS["cues"][STRATEGIES[_fitting(state.cue)]]), False, state)

    def opening(self) -> History:
        return (self.turn(State(0, self.rng.choice(CUES[0]), 3, 0, -1)),)

    def rate(self, history: History) -> list[tuple[str, float]]:
        fits, ratings = _fitting(history[-1].state.cue), []
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
        before, (name, *_), after = history[-3].state, history[-2], history[-1].state
        strategy = STRATEGIES.index(name)
        if self.judge == "outcome":
            better = after.openness > before.openness or after.distress < before.distress
            points = 4 if better else 0 if after.distress > before.distress else 2
        else:
            points = (
                4 if strategy == _fitting(before.cue) else 1 + (PHASE[strategy] == before.openness)
            )
        if strategy == AFFIRMATION and self.rng.random() < self.lenient:
            points = 4
        if self.rng.random() < self.noise:
            points = self.rng.randrange(5)
        style = (
            4 - before.distress / 2,
            4 if PHASE[strategy] == 2 else 2,
            1 if strategy == before.last else 3,
        )
        return dict(zip(DIMENSIONS, (*style, points), strict=True))


def _fitting(cue: int) -> int:
    """The strategy that fits the words of a cue: what is too early has those of planning."""
    return PLANNING if cue == TOO_EARLY else cue


def dialogue(roles, choose: Callable[[History], str], history: History = ()) -> History:
    """A whole dialogue, on from ``history``, of a supporter who says next what ``choose`` names."""
    history = history or roles.opening()
    while not history[-1].ended:
        strategy = choose(history)
        history += (Turn(strategy, roles.write(history, strategy)),)
        history += (roles.reply(history),)
    return history


def habitual(rng: random.Random, right: float = 0.45) -> Callable[[History], str]:
    """A supporter whose strategy is best in a share of turns, else drawn, mostly one of the two
    that come easily."""
    weights = [4 if n in (AFFIRMATION, PLANNING) else 1 for n in range(len(STRATEGIES))]

    def choose(history: History) -> str:
        if rng.random() < right:
            return rng.choice(best(history[-1].state))
        return rng.choices(STRATEGIES, weights)[0]

    return choose
