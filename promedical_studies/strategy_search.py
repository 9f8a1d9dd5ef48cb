"""The tree search of Chain-of-Strategy Optimization (arXiv 2503.05362), its pairs, and judging one
step with as many calls. The constants are those of the authors' code (XingYuSSS/CSO at 88b4ffe);
``roles`` is a ``seekers.Simulated`` or a ``strategy_roles.ByEndpoint``."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

from promedical_studies.seekers import DIMENSIONS, STRATEGIES, History, Turn
from promedical_utils.core.workspace import KitError

OFFSET, TEMPERATURE = -3.0, 5.0  # of the reward; of the softmax over ratings
GIVEN = 4 + OFFSET, 100  # value and visits of the nodes of a dialogue that is given


class Pair(NamedTuple):
    """Two supporter's turns after the same history."""

    history: History
    chosen: Turn
    rejected: Turn


@dataclass(eq=False)
class Node:
    """A strategy; once it was selected its ``history`` ends in the supporter's text and the
    seeker's reply. ``bound``: by which it is selected."""

    strategy: str
    prior: float
    parent: "Node | None" = None
    history: History = ()
    children: list["Node"] = field(default_factory=list)
    visits: int = 0
    value: float = 0.0
    bound: float = 0.0

    def add(self, odds: dict[str, float]) -> None:
        self.children = [Node(name, prior, self) for name, prior in odds.items()]


def priors(ratings: Iterable[tuple[str, float]]) -> dict[str, float]:
    """softmax(rating / 5) of one rating, 0 to 10, of every strategy; KitError for anything else."""
    ratings = list(ratings)
    if sorted(name for name, _ in ratings) != sorted(STRATEGIES):
        raise KitError(f"ratings of {[n for n, _ in ratings]}: rate each once of {STRATEGIES}")
    if wrong := [(name, rating) for name, rating in ratings if not 0 <= rating <= 10]:
        raise KitError(f"rating {wrong[0][1]} of {wrong[0][0]} is not between 0 and 10: mend it")
    powers = {name: math.exp(rating / TEMPERATURE) for name, rating in ratings}
    return {name: power / sum(powers.values()) for name, power in powers.items()}


def points(scores: dict[str, float]) -> float:
    """(E + I + H + 7 S) / 10 of a round, 0 to 4; KitError unless each dimension has 0 to 4."""
    if set(scores) != set(DIMENSIONS) or not all(0 <= s <= 4 for s in scores.values()):
        raise KitError(f"scores {scores}: give 0 to 4 for each of {', '.join(DIMENSIONS)}")
    return (sum(scores.values()) + 6 * scores["Strategy"]) / 10


def spoken(roles, history: History, strategy: str) -> History:
    """The history with one more round; KitError for an empty turn."""
    history += (Turn(strategy, roles.write(history, strategy)),)
    history += (roles.reply(history),)
    if not all(turn.text.strip() for turn in history[-2:]):
        raise KitError(f"an empty turn after {len(history) - 2} turns: ask that role again")
    return history


def search(
    roles, opening: History, least=100, most=200, ends=25, c=1.0, rounds=4, given: History = ()
) -> tuple[Node, int, int]:
    """(root, iterations, calls of the judge). It stops after ``least`` iterations with an ended
    dialogue, after ``ends`` ended ones, or after ``most``; as in the authors' code never while an
    ended one is selected, but after twice ``most`` all the same. ``given``: a good dialogue to
    begin with, the rounds after the opening. KitError if the dialogue is over before it begins."""
    if opening[-1].ended:
        raise KitError("the dialogue has ended before its first strategy: begin with an open one")
    root, calls, ended, iterations = Node("", 1.0, history=tuple(opening)), 0, set(), 0
    node = root
    for own, reply in zip(given[::2], given[1::2]):
        odds = priors(roles.rate(node.history))
        if own.strategy not in odds:  # beyond the eight
            odds = {name: 0.9 * p for name, p in odds.items()} | {own.strategy: 0.1}
        node.add(odds)
        node.value, node.visits = GIVEN
        history = (*node.history, own, reply)
        [node] = [child for child in node.children if child.strategy == own.strategy]
        node.history, (node.value, node.visits), node.bound = history, GIVEN, GIVEN[0]
    while iterations < 2 * most:
        iterations, node = iterations + 1, root
        while node.children:
            node = max(node.children, key=lambda child: child.bound)
        node.history = node.history or spoken(roles, node.parent.history, node.strategy)
        if node.history[-1].ended:
            ended.add(node)
            calls += 1
            _back(node, points(roles.score(node.history)) + OFFSET, c)
            continue
        node.add(priors(roles.rate(node.history)))
        child = max(node.children, key=lambda child: child.prior)
        child.history = history = spoken(roles, node.history, child.strategy)
        scores = [points(roles.score(history))]
        while not history[-1].ended and len(scores) <= rounds:
            odds = priors(roles.rate(history))
            history = spoken(roles, history, max(odds, key=odds.get))
            scores.append(points(roles.score(history)))
        calls += len(scores)
        _back(child, fmean(scores) + OFFSET, c)
        if iterations >= (least if ended else most) or len(ended) >= ends:
            break
    return root, iterations, calls


def _back(node: Node | None, reward: float, c: float) -> None:
    while node:
        node.value = (node.value * node.visits + reward) / (node.visits + 1)
        node.visits += 1
        for child in node.children:
            explore = child.prior * math.sqrt(node.visits) / (child.visits + 1)
            child.bound = child.value + c * explore
        node = node.parent


def nodes(root: Node) -> list[Node]:
    """All that have text, parents before their children."""
    return [root, *(n for child in root.children if child.history for n in nodes(child))]


def preference_pairs(root: Node, high=0.5, low=0.5, visits=2) -> tuple[list[Node], list[Pair]]:
    """(good ends, pairs): on the path to an ended dialogue with at least ``high`` and ``visits``
    every turn is preferred to each written sibling with at most ``low`` that is on no such path.
    Doubles, and pairs of twice the same turn, are left out."""
    ends = [n for n in nodes(root)[1:] if n.history[-1].ended and n.value >= high]
    ends = [node for node in ends if node.visits >= visits]
    good, pairs = {}, {}  # in the order of the tree
    for node in ends:
        while node.parent:
            good[node], node = None, node.parent
    for node in good:
        for other in node.parent.children:
            if other.history and other.value <= low and other not in good:
                pair = Pair(node.parent.history, node.history[-2], other.history[-2])
                if pair.chosen != pair.rejected:
                    pairs[pair] = None
    return ends, list(pairs)


def collect(made: Sequence[tuple[list[Node], list[Pair]]]) -> list[Pair]:
    """The pairs of all trees; KitError where no tree found a good end."""
    if not any(ends for ends, _ in made):
        raise KitError(f"none of {len(made)} trees has a good end: search longer or lower `high`")
    return [pair for _, pairs in made for pair in pairs]


def one_step(roles, histories: Sequence[History], calls: int, margin=0.5) -> list[Pair]:
    """Pairs of judging every strategy in these very states, ``calls`` in all, shared out evenly:
    the best mean against each that is ``margin`` points worse."""
    looks, pairs = max(1, calls // (len(STRATEGIES) * max(1, len(histories)))), []
    for history in histories:
        tried, means = {}, {}
        for name in STRATEGIES:
            rounds = [spoken(roles, history, name) for _ in range(looks)]
            tried[name], means[name] = rounds[0][-2], fmean(points(roles.score(r)) for r in rounds)
        top = max(means, key=means.get)
        worse = [name for name in STRATEGIES if means[name] <= means[top] - margin]
        pairs += [Pair(history, tried[top], tried[other]) for other in worse]
    return pairs
