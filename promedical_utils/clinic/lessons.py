"""What the small base is taught: drills that repeat a leaflet, right answers, mixed answers.

A small model learns to read only if it is drilled first: leaflets of few lines before whole ones,
right answers before the careless habits of the mixed-quality ones.
"""

import random
from collections.abc import Sequence

from promedical_utils.clinic import generators, grammar
from promedical_utils.clinic.grammar import say
from promedical_utils.clinic.vocabulary import read
from promedical_utils.clinic.world import EXTRAS, Patient, draw_patient, leaflet_lines, messages
from promedical_utils.records import Message

# shares of the whole course, in order: short drills, whole leaflets and right answers, mixed answers
READ_FROM, MIX_FROM = 0.35, 0.75
FACTS = (
    "first", "avoid", "limit", "danger", "mild", "review", "target", "target_not", "food",
    "food_not", "place", "place_not", "item", "item_not", "allowed", "forbidden",
)  # fmt: skip


def short_drill(patient: Patient, rng: random.Random) -> tuple[list[Message], str]:
    """A leaflet of 2 to 14 lines, to be repeated in another order."""
    lines = leaflet_lines(patient, rng)[: rng.choice((2, 3, 4, 6, 8, 14))]
    return [Message(role="user", content="Leaflet: " + " ".join(lines))], _shuffled(lines, rng)


def drill(patient: Patient, rng: random.Random) -> tuple[list[Message], str]:
    """A whole message, whose leaflet is to be repeated in another order."""
    return messages(patient), " ".join(leaflet_lines(patient, rng))


def note(patient: Patient, rng: random.Random) -> tuple[list[Message], str]:
    """A few sentences of a mixed-quality answer, to be noted down in order: reading, no judging."""
    text = generators.write(patient, rng.choice(generators.NAMES), rng)
    parts = [s + "." for s in text.rstrip(".").split(". ")][: rng.choice((1, 2, 4, 12))]
    acts = [grammar.read_sentence(part) for part in parts]
    noted = [read("sentences")[act]["note"].format(a=a, b=b) for act, a, b in acts]
    return [Message(role="user", content="Note down: " + " ".join(parts))], " ".join(noted)


def lookup(patient: Patient, rng: random.Random) -> tuple[list[Message], str]:
    """Values to look up in a mixed-quality answer: the role of each there, or that it has none."""
    text = generators.write(patient, rng.choice(generators.NAMES), rng)
    roles = {}
    for sentence in text.rstrip(".").split(". "):
        act, a, b = grammar.read_sentence(sentence + ".")
        roles |= dict(zip((a, b), read("sentences")[act].get("roles", ()), strict=False))
    asked = rng.sample(sorted(set(patient.facts.values())), 8)
    asked = [v for v in asked if v not in roles][:3] + rng.sample(sorted(roles), min(len(roles), 7))
    rng.shuffle(asked)
    found = " ".join(f"Of {value}: {roles.get(value, 'nothing')}." for value in asked)
    return [Message(role="user", content=f"Text: {text} Look up {', '.join(asked)}.")], found


def right(patient: Patient, rng: random.Random) -> tuple[list[Message], str]:
    return messages(patient), generators.write(patient, generators.RIGHT, rng)


def mixed(patient: Patient, rng: random.Random) -> tuple[list[Message], str]:
    return messages(patient), generators.write(patient, rng.choice(generators.NAMES), rng)


def _shuffled(lines: list[str], rng: random.Random) -> str:
    return " ".join(rng.sample(lines, len(lines)))


def lesson(
    index: int, total: int, seed: int, conditions: Sequence[tuple[str, str]]
) -> tuple[list[Message], str]:
    """Lesson ``index`` of ``total``: (messages, answer), on a patient of its own.

    ``conditions`` are those of the training split: the base never meets a held-out one.
    """
    rng = random.Random(f"lesson-{seed}-{index}")
    patient = draw_patient(rng, index, -1 - seed, rng.choice(conditions))
    at = index / total
    if at < READ_FROM:
        kinds = (short_drill, short_drill, lookup)
    elif at < MIX_FROM:
        kinds = (short_drill, drill, right, right, note, lookup)
    else:
        kinds = (mixed, mixed, mixed, right, drill, lookup)
    return rng.choice(kinds)(patient, rng)


def reading_tests(patients: Sequence[Patient], seed: int) -> list[tuple[list[Message], str, dict]]:
    """Right answers of held-out patients: (messages, answer, {value: fact}), to read off copying.

    Every sentence leaves one right value for each place. The leaflet's line for other patients is
    a distractor that no right answer need name, so it is no fact to copy.
    """
    tests = []
    for patient in patients:
        rng, f = random.Random(f"reading-{seed}-{patient.id}"), patient.facts
        slots = ("dose", "danger", "review", *(e for e in EXTRAS if e in patient.extras))
        acts = [("only", f["first"], ""), ("reject", f["avoid"], "")]
        acts += [generators.act(patient, slot, "right", rng) for slot in slots]
        acts[2] = ("dose", f["limit"], "")
        acts[4] = ("review", f["review"], "")
        rng.shuffle(acts)
        forms = read("sentences")
        answer = " ".join(say(a, rng.randrange(len(forms[a]["forms"])), x, y) for a, x, y in acts)
        stated = {value for _, x, y in acts for value in (x, y)}
        tests.append((messages(patient), answer, {f[n]: n for n in FACTS if f[n] in stated}))
    return tests


def corpus(texts: Sequence[str]) -> list[str]:
    """Texts for the tokenizer: those given and every form and word of the clinic's grammar."""
    forms = [f for spec in read("sentences").values() for f in (*spec["forms"], spec["note"])]
    forms += [f" {role} nothing" for s in read("sentences").values() for role in s.get("roles", ())]
    return [*texts, *forms, *EXTRAS]
