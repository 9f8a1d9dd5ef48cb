"""What the small base is taught: to repeat a leaflet, to look words up, to answer as people do.

A small model learns to read only if it is drilled first: leaflets of few lines before whole ones,
right answers before careless ones. No drill shows a criterion, a verdict or which of two answers is
better.
"""

import random
from collections.abc import Sequence
from functools import partial

from promedical_utils.clinic import generators, grammar
from promedical_utils.clinic.vocabulary import EXTRAS, PAIRED, read, values
from promedical_utils.clinic.world import Patient, draw_patient, leaflet_lines, messages
from promedical_utils.core.records import Message

# messages, an answer, and (question, reply) turns about that answer
Lesson = tuple[list[Message], str, Sequence[tuple[str, str]]]
# shares of the whole course, in order: drills, right answers beside them, mixed answers
READ_FROM, MIX_FROM = 0.3, 0.55
# which a right answer copies
FACTS = ("first", "avoid", "limit", "danger", "mild", "review")
FACTS += tuple(name for slot in EXTRAS for name in PAIRED[slot][:2])


def drill(patient: Patient, rng: random.Random) -> Lesson:
    """A leaflet of 2 to 14 lines, to be repeated in another order."""
    lines = leaflet_lines(patient, rng)[: rng.choice((2, 3, 4, 6, 8, 14))]
    leaflet = [Message(role="user", content="Leaflet: " + " ".join(lines))]
    return leaflet, " ".join(rng.sample(lines, len(lines))), ()


def lookup(patient: Patient, rng: random.Random, whole: bool = True) -> Lesson:
    """Which role values play in an answer, or none; and which of two numbers is more.

    Asked and answered at the place where a reward model is given a criterion and scored. The
    numbers are any two, not the answer's.
    """
    text = generators.write(patient, "even", rng)
    roles: dict[str, set[str]] = {}
    for sentence in grammar.sentences(text):
        act, a, b = grammar.read_sentence(sentence)
        for value, role in zip((a, b), read("sentences")[act].get("roles", ()), strict=False):
            roles.setdefault(value, set()).add(role)
    clear = sorted(value for value, played in roles.items() if len(played) == 1)
    others = sorted(set(patient.facts.values()) - set(roles))
    looked_up = rng.sample(clear, min(len(clear), 8)) + rng.sample(others, min(len(others), 2))
    turns = [(f"\nlook up: {v}", min(roles.get(v, ["nothing"]))) for v in looked_up]
    for kind in ("units", "days") * 2:
        a, b = rng.sample(values(kind), 2)
        turns.append((f"\ncompare: {a} {b}", "less" if int(a) < int(b) else "more"))
    rng.shuffle(turns)
    question = messages(patient) if whole else [Message(role="user", content="What should I do?")]
    return question, text, turns


def answered(patient: Patient, rng: random.Random, habits: str = "") -> Lesson:
    """A patient's message with a right answer, or one by any of the generators."""
    habits = habits or rng.choice(generators.NAMES)
    return messages(patient), generators.write(patient, habits, rng), ()


right, short_lookup = partial(answered, habits="right"), partial(lookup, whole=False)


def lesson(index: int, total: int, seed: int, conditions: Sequence[tuple[str, str]]) -> Lesson:
    """Lesson ``index`` of ``total``, on a patient of its own.

    ``conditions`` are those of the training split: the base never meets a held-out one.
    """
    rng = random.Random(f"lesson-{seed}-{index}")
    patient = draw_patient(rng, index, -1 - seed, rng.choice(conditions))
    at = index / total
    if at < READ_FROM:
        kinds = (drill, drill, short_lookup)
    elif at < MIX_FROM:
        kinds = (drill, right, right, right, short_lookup, lookup)
    else:
        kinds = (answered, answered, answered, right, lookup)
    return rng.choice(kinds)(patient, rng)


def reading_tests(patients: Sequence[Patient], seed: int) -> list[tuple[list[Message], str, dict]]:
    """Right answers of held-out patients: (messages, answer, {value: fact}), to read off copying.

    Every sentence leaves one right value for each place. The leaflet's line for other patients is
    a distractor that no right answer need name, so it is no fact to copy.
    """
    tests = []
    for patient in patients:
        rng, facts = random.Random(f"reading-{seed}-{patient.id}"), patient.facts
        acts = {
            slot: generators.act(patient, slot, "right", rng)
            for slot in ("dose", "danger", "review", *EXTRAS)
            if slot not in EXTRAS or slot in patient.extras
        }
        acts |= {"dose": ("dose", facts["limit"], ""), "review": ("review", facts["review"], "")}
        drugs = [("only", facts["first"], ""), ("reject", facts["avoid"], "")]
        # no right answer starts without comfort
        stated = [*drugs, *acts.values(), ("comfort", "", "")]
        answer = " ".join(generators.spoken(stated, rng))
        values_stated = {value for _, *values in stated for value in values}
        copied = {facts[name]: name for name in FACTS if facts[name] in values_stated}
        tests.append((messages(patient), answer, copied))
    return tests


def corpus(texts: Sequence[str]) -> list[str]:
    """Texts for the tokenizer: those given and every form and word of the clinic's grammar."""
    acts = read("sentences").values()
    forms = [form for act in acts for form in act["forms"]]
    roles = [role for act in acts for role in act.get("roles", ())]
    questions = ["\nlook up:", "\ncompare:"]
    return [*texts, *forms, *EXTRAS, *questions, *20 * [*roles, "nothing", "less", "more"]]
