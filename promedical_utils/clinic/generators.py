"""Candidate generators of unlike habits: long and warm, terse, between the two, careless."""

import random
from collections.abc import Sequence

from promedical_utils.clinic.grammar import Act, say
from promedical_utils.clinic.vocabulary import EXTRAS, PAIRED, read, values

NAMES = ("warm", "terse", "between")
CARELESS = "careless"  # stands in for the first of them in training, and beside them on the bench
SHORTEST, LONGEST = 60, 150  # words of an answer


def act(patient, slot: str, outcome: str, rng: random.Random) -> Act:
    """The act of a slot with its values, for an outcome: right, harmless, dangerous or muddled. A
    muddled act says one value in both places, so that nobody can tell what is meant."""
    facts = patient.facts
    refused = rng.choice([facts["avoid"], facts["avoid"], facts["other"]])
    if slot == "drug":
        return _drug(facts, outcome, refused, rng)
    if slot == "mention":
        return "mention", rng.choice([facts["avoid"], facts["other"]]), ""
    if slot == "dose":
        return slot, rng.choice(_dose(facts["limit"], outcome)), ""
    if slot == "review":
        return slot, rng.choice(_days(facts["review"], outcome)), ""
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
    if outcome == "right":
        return ("choose", first, refused) if rng.random() < 0.8 else ("only", first, "")
    if outcome == "muddled":
        return "choose", *[rng.choice([first, avoid])] * 2
    if outcome == "harmless":
        return "choose", other, rng.choice([first, avoid])
    return "choose", avoid, rng.choice([first, first, other])


def _dose(limit: str, outcome: str) -> Sequence[str]:
    """The limit; harmless is up to five steps below it, all else up to five above."""
    units, at = values("units"), values("units").index(limit)
    choices = {"right": [limit], "harmless": units[max(0, at - 5) : at]}
    return choices.get(outcome, units[at + 1 : at + 6])


def _days(review: str, outcome: str) -> Sequence[str]:
    """The leaflet's day, at times up to three steps sooner; all else later."""
    days, at = values("days"), values("days").index(review)
    if outcome == "right":
        return [review, review, *days[max(0, at - 3) : at]]
    return days[at + 1 : at + 5]


def _outcome(odds: dict[str, float], draw: float) -> str | None:
    """Which outcome a draw from [0, 1) falls on; None where nothing is said."""
    for outcome, share in odds.items():
        draw -= share
        if draw < 0:
            return outcome
    return None


def write(patient, generator: str | dict, rng: random.Random) -> str:
    """An answer to a patient in some habits: their name in generators.yaml, or themselves. Acts
    take ``LONGEST`` words at most; sentences that say nothing are put in up to ``SHORTEST``."""
    habits = read("generators")[generator] if isinstance(generator, str) else generator
    forms, wording = read("sentences"), patient.wording
    words = LONGEST + 1
    while words > LONGEST:
        acts, said = {}, {}
        for slot, odds in habits.items():
            if slot in EXTRAS and slot not in patient.extras:
                continue
            if outcome := _outcome(odds, rng.random()):
                acts[slot] = act(patient, slot, outcome, rng)
        for slot, (name, a, b) in acts.items():
            said[slot] = say(name, wording, rng.randrange(len(forms[name][wording])), a, b)
        words = len(" ".join(said.values()).split())
    places = read("vocabulary")["slots"].items()
    parts = {place: [said[slot] for slot in slots if slot in said] for place, slots in places}
    rng.shuffle(parts["middle"])
    fillers = rng.sample(forms["filler"][wording], len(forms["filler"][wording]))
    text = [*parts["first"], *parts["middle"], *parts["last"]]
    while len(" ".join(text).split()) < SHORTEST and fillers:
        text.insert(rng.randrange(len(text) + 1), fillers.pop())
    return " ".join(text)
