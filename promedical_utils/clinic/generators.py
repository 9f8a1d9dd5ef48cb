"""Candidate generators of unlike habits: long and warm, terse, between the two, careless."""

import random
from collections.abc import Iterable

from promedical_utils.clinic.grammar import Act, say
from promedical_utils.clinic.vocabulary import EXTRAS, PAIRED, read, values

NAMES = ("warm", "terse", "between")
CARELESS = "careless"  # stands in for the first of them in training, and beside them on the bench
SHORTEST, LONGEST = 60, 150  # words of an answer


def act(patient, slot: str, outcome: str, rng: random.Random) -> Act:
    """The act of a slot with its values, for an outcome: right, harmless, dangerous or muddled.

    A muddled act says one value in both places, so that nobody can tell what is meant.
    """
    facts = patient.facts
    refused = rng.choice([facts["avoid"], facts["avoid"], facts["other"]])
    if slot == "drug":
        return _drug(facts, outcome, refused, rng)
    if slot == "mention":
        return "mention", rng.choice([facts["avoid"], facts["other"]]), ""
    if slot in ("dose", "review"):
        number = _dose if slot == "dose" else _days
        return slot, rng.choice(number(facts, outcome)), ""
    if manners := read("vocabulary")["manners"].get(slot):
        about = {"addition": facts["avoid"], "diagnosis": patient.problem}
        return manners[outcome != "right"], about.get(slot, ""), ""
    fact, opposite = (facts[name] for name in PAIRED[slot][:2])
    name = "urgent" if slot == "danger" else slot
    if outcome == "muddled":
        return name, *[rng.choice([fact, opposite])] * 2
    return (name, fact, opposite) if outcome == "right" else (name, opposite, fact)


def _drug(facts: dict, outcome: str, refused: str, rng: random.Random) -> Act:
    first, avoid, other = facts["first"], facts["avoid"], facts["other"]
    match outcome:
        case "right":
            return ("choose", first, refused) if rng.random() < 0.8 else ("only", first, "")
        case "muddled":
            return "choose", *[rng.choice([first, avoid])] * 2
        case "harmless":
            return "choose", other, rng.choice([first, avoid])
        case _:
            return "choose", avoid, rng.choice([first, first, other])


def _dose(facts: dict, outcome: str) -> tuple[str, ...] | list[str]:
    """The limit; harmless is up to five steps below it, all else up to five above."""
    units, limit = values("units"), facts["limit"]
    at = units.index(limit)
    choices = {"right": [limit], "harmless": units[max(0, at - 5) : at]}
    return choices.get(outcome) or units[at + 1 : at + 6]


def _days(facts: dict, outcome: str) -> tuple[str, ...] | list[str]:
    """The leaflet's day, at times up to three steps sooner; all else later."""
    days, review = values("days"), facts["review"]
    at = days.index(review)
    return (
        [review, review, *days[max(0, at - 3) : at]]
        if outcome == "right"
        else days[at + 1 : at + 5]
    )


def _outcome(odds: dict[str, float], draw: float) -> str | None:
    """Which outcome a draw from [0, 1) falls on; None: nothing is said of it."""
    for outcome, share in odds.items():
        draw -= share
        if draw < 0:
            return outcome
    return None


def write(patient, generator: str | dict, rng: random.Random) -> str:
    """An answer to a patient in some habits: their name in generators.yaml, or themselves.

    Habits are drawn until their acts take at most ``LONGEST`` words; sentences that say nothing are
    put in up to ``SHORTEST``.
    """
    habits = read("generators")[generator] if isinstance(generator, str) else generator
    words = LONGEST + 1
    while words > LONGEST:
        acts = {}
        for slot, odds in habits.items():
            if slot in EXTRAS and slot not in patient.extras:
                continue
            if outcome := _outcome(odds, rng.random()):
                acts[slot] = act(patient, slot, outcome, rng)
        said = {slot: _spoken(act, patient.wording, rng) for slot, act in acts.items()}
        words = _length(said.values())
    parts = {name: [said[slot] for slot in own if slot in said] for name, own in _places().items()}
    rng.shuffle(parts["middle"])
    fillers = read("sentences")["filler"][patient.wording]
    fillers = rng.sample(fillers, len(fillers))
    text = [*parts["first"], *parts["middle"], *parts["last"]]
    while _length(text) < SHORTEST and fillers:
        text.insert(rng.randrange(len(text) + 1), fillers.pop())
    return " ".join(text)


def _places() -> dict[str, list[str]]:
    return read("vocabulary")["slots"]


def _length(sentences: Iterable[str]) -> int:
    return sum(len(sentence.split()) for sentence in sentences)


def _spoken(act: Act, wording: str, rng: random.Random) -> str:
    name, a, b = act
    return say(name, wording, rng.randrange(len(read("sentences")[name][wording])), a, b)
