"""Three candidate generators of unlike habits: long, warm and careless; terse and safe; between."""

import random

from promedical_utils.clinic.grammar import say
from promedical_utils.clinic.vocabulary import read, values

NAMES = ("warm", "terse", "between")
ORDER = (
    "role",
    "empathy",
    "diagnosis",
    "drug",
    "addition",
    "dose",
    "food",
    "storage",
    "effect",
    "danger",
    "activity",
    "review",
    "bring",
    "invitation",
)
RIGHT = (
    {"fillers": [0, 1]}
    | {
        slot: {"right": 1.0}
        for slot in "drug dose danger effect food storage bring activity empathy invitation".split()
    }
    | {"review": {"exact": 1.0}}
)


def act(patient, slot: str, outcome: str, rng: random.Random) -> tuple[str, str, str]:
    """The act of a slot with its values, for an outcome: right, harmless, dangerous or muddled.

    A muddled act says one value in both places, so that nobody can tell what is meant.
    """
    f = patient.facts
    other_or_avoid = rng.choice([f["avoid"], f["avoid"], f["other"]])
    match slot, outcome:
        case "drug", "right":
            return (
                ("choose", f["first"], other_or_avoid)
                if rng.random() < 0.8
                else ("only", f["first"], "")
            )
        case "drug", "muddled":
            return ("choose", *[rng.choice([f["first"], f["avoid"]])] * 2)
        case "drug", "harmless":
            return ("choose", f["other"], rng.choice([f["first"], f["avoid"]]))
        case "drug", _:
            return ("choose", f["avoid"], rng.choice([f["first"], f["first"], f["other"]]))
        case "addition", "right":
            return ("reject", f["avoid"], "")
        case "addition", _:
            return ("add", f["avoid"], "")
        case "dose", _:
            units = values("units")
            at = units.index(f["limit"])
            choices = {"right": [f["limit"]], "harmless": units[max(0, at - 5) : at]}
            return ("dose", rng.choice(choices.get(outcome) or units[at + 1 : at + 6]), "")
        case "review", _:
            days = values("days")
            at = days.index(f["review"])
            sooner = [f["review"], f["review"], *days[max(0, at - 3) : at]]
            choices = {"exact": [f["review"]], "right": sooner}
            return ("review", rng.choice(choices.get(outcome) or days[at + 1 : at + 5]), "")
        case "danger", _:
            pair = ("urgent", f["danger"], f["mild"])
        case "effect", _:
            pair = ("effect", f["target"], f["target_not"])
        case "food", _:
            pair = ("food", f["food"], f["food_not"])
        case "storage", _:
            pair = ("storage", f["place"], f["place_not"])
        case "bring", _:
            pair = ("bring", f["item"], f["item_not"])
        case "activity", _:
            pair = ("activity", f["allowed"], f["forbidden"])
        case "empathy", _:
            return ("comfort" if outcome == "right" else "blame", "", "")
        case "invitation", _:
            return ("invite" if outcome == "right" else "dismiss", "", "")
        case "role", _:
            return ("helper" if outcome == "right" else "doctor", "", "")
        case "diagnosis", _:
            return ("guess" if outcome == "right" else "certain", patient.problem, "")
    name, a, b = pair
    if outcome == "muddled":
        return name, *[rng.choice([a, b])] * 2
    return pair if outcome == "right" else (name, b, a)


def write(patient, generator: str | dict, rng: random.Random) -> str:
    """An answer to a patient, in the habits of ``generator`` (a name, or the habits themselves)."""
    habits = read("generators")[generator] if isinstance(generator, str) else generator
    sentences = read("sentences")
    acts = []
    for slot, odds in habits.items():
        if slot == "fillers" or (
            slot in ("effect", "food", "storage", "bring", "activity")
            and slot not in patient.extras
        ):
            continue
        draw, outcome = rng.random(), None
        for name, share in odds.items():
            draw -= share
            if draw < 0:
                outcome = name
                break
        if outcome:
            acts.append(act(patient, slot, outcome, rng))
    # one order for all: what is left to say then follows from what was said last, which a base of
    # a few layers can keep track of
    acts.sort(key=lambda spoken: ORDER.index(sentences[spoken[0]]["slot"]))
    texts = [say(name, rng.randrange(len(sentences[name]["forms"])), a, b) for name, a, b in acts]
    opening = rng.sample(sentences["filler"]["forms"], rng.randint(*habits["fillers"]))
    return " ".join(opening + texts) or say("filler", 0)
