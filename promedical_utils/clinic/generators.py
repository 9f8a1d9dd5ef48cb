"""Three candidate generators of unlike habits: long, warm and careless; terse and safe; between."""

import random

from promedical_utils.clinic.grammar import say
from promedical_utils.clinic.vocabulary import EXTRAS, PAIRED, read, values

NAMES = ("warm", "terse", "between")


def act(patient, slot: str, outcome: str, rng: random.Random) -> tuple[str, str, str]:
    """The act of a slot with its values, for an outcome: right, harmless, dangerous or muddled.

    A muddled act says one value in both places, so that nobody can tell what is meant.
    """
    facts = patient.facts
    refused = rng.choice([facts["avoid"], facts["avoid"], facts["other"]])
    if slot == "drug":
        return _drug(facts, outcome, refused, rng)
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


def _drug(facts: dict, outcome: str, refused: str, rng: random.Random) -> tuple[str, str, str]:
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
    """The leaflet's day exactly, or rightly at times up to three steps sooner; all else later."""
    days, review = values("days"), facts["review"]
    at = days.index(review)
    choices = {"exact": [review], "right": [review, review, *days[max(0, at - 3) : at]]}
    return choices.get(outcome) or days[at + 1 : at + 5]


def _outcome(odds: dict[str, float], draw: float) -> str | None:
    """Which outcome a draw from [0, 1) falls on; None: nothing is said of it."""
    for outcome, share in odds.items():
        draw -= share
        if draw < 0:
            return outcome
    return None


def write(patient, generator: str | dict, rng: random.Random) -> str:
    """An answer to a patient in some habits: their name in generators.yaml, or themselves."""
    habits = read("generators")[generator] if isinstance(generator, str) else generator
    acts = []
    for slot, odds in habits.items():
        if slot == "fillers" or slot in EXTRAS and slot not in patient.extras:
            continue
        if outcome := _outcome(odds, rng.random()):
            acts.append(act(patient, slot, outcome, rng))
    texts = spoken(acts, rng)
    opening = rng.sample(read("sentences")["filler"]["forms"], rng.randint(*habits["fillers"]))
    return " ".join(opening + texts) or say("filler", 0)


def spoken(acts: list[tuple[str, str, str]], rng: random.Random) -> list[str]:
    """A sentence an act, each in a form drawn from its own, in the order of all answers."""
    sentences, slots = read("sentences"), read("vocabulary")["slots"]
    ordered = sorted(acts, key=lambda act: slots.index(sentences[act[0]]["slot"]))
    return [say(act, rng.randrange(len(sentences[act]["forms"])), a, b) for act, a, b in ordered]
