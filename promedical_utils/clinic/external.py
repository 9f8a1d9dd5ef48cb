"""The external clinic: what a reward model of the embedded clinic has never met, with known truth.

Other specialties (so other conditions), other patients, other words in messages and answers, and
four authors of other habits; the facts are of the same kinds. Part of the leaflet is withheld: it
stands in the knowledge base, and the rubric asks for it without stating it. Two criteria of a
dimension may be joined into one composite, which ``evaluation.external`` takes apart.
"""

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import product

from promedical_utils.clinic import generators, grammar
from promedical_utils.clinic.grammar import sentences
from promedical_utils.clinic.vocabulary import read, values
from promedical_utils.clinic.world import Patient, dialogue, draw_patient, leaflet_lines, rubric
from promedical_utils.core.records import (
    DIMENSIONS,
    Candidate,
    Criterion,
    Instruction,
    Message,
    Rubric,
)
from promedical_utils.core.workspace import short_hash

JOIN = ", and also "  # between the parts of a composite criterion
SOURCE = "external clinic (invented)"
Entry = tuple[str, str, str]  # organ, problem, kind of patient


@dataclass(frozen=True)
class External:
    """Instructions with answers, two rubrics each, and the knowledge base.

    ``gold``: atomic criteria that state every fact, from which the truth is read. ``shown``: what a
    reward model is given, composites and references among them; ``parts``: criterion id of
    ``shown``
    -> ids in ``gold`` that it asks for. ``documents``: {id: text}; ``withheld``: instruction id ->
    ids of the documents that state what its message withholds. ``conditions``: instruction id ->
    condition; ``patients``: instruction id -> patient; ``questions``: instruction id -> what the
    patient asks, without the leaflet (its sentences would find the leaflets of others).
    """

    instructions: list[Instruction]
    gold: dict[str, Rubric]
    shown: dict[str, Rubric]
    parts: dict[str, tuple[str, ...]]
    candidates: list[Candidate]
    documents: dict[str, str]
    withheld: dict[str, tuple[str, ...]]
    conditions: dict[str, str]
    patients: dict[str, Patient]
    questions: dict[str, str]

    def verdicts(self, candidate: Candidate) -> dict[str, str]:
        """True verdicts by the gold rubric."""
        return grammar.gold(
            self.gold[candidate.instruction_id].criteria, translated(candidate.text)
        )


def build(seed: int, size: int, taken: Collection[int] = ()) -> External:
    """The external clinic of ``size`` instructions; the same arguments give the same clinic.

    ``taken``: wording seeds of the other splits, which no patient here gets.
    """
    rng, words = random.Random(f"external-{seed}"), read("external")
    entries = list(product(words["specialties"], values("problem"), words["patients"]))
    known = {e: draw_patient(rng, n, seed, e[:2]) for n, e in enumerate(entries)}
    lacks = {
        e: tuple(sorted(rng.sample(words["withholdable"], words["withheld"]))) for e in entries
    }
    clinic = External([], {}, {}, {}, [], knowledge_base(known, lacks, seed), {}, {}, {}, {})
    order, used = rng.sample(entries, len(entries)), set(taken)
    for number in range(size):
        entry = order[number % len(order)]
        wording = next(w for w in iter(lambda: rng.randrange(2**31), None) if w not in used)
        used.add(wording)
        patient = replace(
            known[entry],
            id=f"x{seed}-{number:05d}",
            wording_seed=wording,
            category=rng.choice(read("vocabulary")["categories"]),
        )
        name = f"x{seed}-{number + 1:05d}"
        _admit(clinic, patient, name, entry, lacks[entry], rng.randint(5, 9))
        clinic.candidates.extend(answers(patient, name, seed))
    return clinic


def _admit(
    clinic: External, patient: Patient, name: str, entry: Entry, lacks: tuple, difficulty: int
) -> None:
    """Put a patient's instruction ``name`` into the clinic, with both rubrics."""
    words, conversation = read("external"), messages(patient, entry[2], lacks)
    clinic.instructions.append(
        Instruction(
            id=name,
            category=patient.category,
            specialty=words["specialties"][patient.organ],
            messages=conversation,
            source=SOURCE,
            difficulty=difficulty,
        )
    )
    clinic.gold[name] = rubric(patient, name, unseen=True)
    rng = random.Random(patient.wording_seed + 2)
    clinic.shown[name], parts = shown(clinic.gold[name], lacks, rng)
    clinic.parts.update(parts)
    clinic.withheld[name] = tuple(document_id(entry, fact) for fact in lacks)
    clinic.conditions[name], clinic.patients[name] = patient.condition, patient
    whole = " ".join(message.content for message in conversation if message.role == "user")
    clinic.questions[name] = whole.split(words["lead"])[0].strip()


def answers(patient: Patient, name: str, seed: int) -> list[Candidate]:
    """An answer of each of the external clinic's authors to the instruction ``name``."""
    return [
        Candidate(
            id=f"{name}-{short_hash(seed, name, author)[:6]}",
            instruction_id=name,
            generator=author,
            text=answer(
                patient, author, random.Random(short_hash("external answer", seed, name, author))
            ),
        )
        for author in read("external")["habits"]
    ]


def document_id(entry: Entry, fact: str) -> str:
    return "-".join(("k", *entry, fact))


def knowledge_base(
    known: Mapping[Entry, Patient], lacks: Mapping[Entry, tuple], seed: int
) -> dict[str, str]:
    """What leaflets withhold, one sentence a document, and distractors; {id: text}.

    Every condition and kind of patient is in it, so that nearly all of it is about other people.
    """
    rng, words, documents = random.Random(f"documents-{seed}"), read("external"), {}
    for entry, patient in known.items():
        about = dict(zip(("organ", "problem", "who"), entry, strict=True))
        for fact in lacks[entry]:
            line = rng.choice(words["leaflet"][fact]).format(**patient.facts)
            documents[document_id(entry, fact)] = words["document"].format(**about, line=line)
        for text in words["distractors"]:
            # the same sentence of several entries is one document
            documents.setdefault(f"k-{short_hash(text.format(**about))}", text.format(**about))
    return documents


def messages(patient: Patient, who: str, withheld: Collection[str]) -> list[Message]:
    """The message in the external clinic's words, with a leaflet that lacks ``withheld`` facts."""
    rng, words = random.Random(patient.wording_seed), read("external")
    opening = rng.choice(words["openings"]).format(
        organ=patient.organ, problem=patient.problem, who=who
    )
    question = rng.choice(words["questions"][patient.category])
    lines = leaflet_lines(patient, rng, "external", withheld)
    sheet = " ".join([words["lead"], *lines])
    if rng.random() < 0.35:
        return dialogue([f"{question} {opening}", rng.choice(words["asks"]), sheet])
    return dialogue([f"{question} {opening} {sheet}"])


def answer(patient: Patient, author: str, rng: random.Random) -> str:
    """An answer in the external clinic's words, by the habits of one of its authors."""
    words = read("external")
    return reworded(generators.write(patient, words["habits"][author], rng), rng)


def reworded(text: str, rng: random.Random) -> str:
    """An answer of the embedded clinic in the external clinic's words, act by act."""
    forms, spoken = read("external")["sentences"], []
    for sentence in sentences(text):
        act, number, a, b = grammar.read_form(sentence)
        # fillers keep their number: two of one answer must not become the same
        number = number if act == "filler" else rng.randrange(len(forms[act]))
        spoken.append(forms[act][number].format(a=a, b=b))
    return " ".join(spoken)


def translated(text: str) -> str:
    """An answer in the external words in those of the embedded clinic, whose grammar reads it.

    A sentence that is no external form stays as it is, so that the grammar decides (mostly:
    unknown).
    """
    spoken = []
    for sentence in sentences(text):
        if form := grammar.read_form(sentence, external=True):
            act, number, a, b = form
            sentence = grammar.say(act, number if act == "filler" else 0, a, b)
        spoken.append(sentence)
    return " ".join(spoken)


def shown(gold: Rubric, withheld: Collection[str], rng: random.Random) -> tuple[Rubric, dict]:
    """The rubric as a reward model is given it, and {criterion id: ids in ``gold``}.

    A criterion on a withheld fact refers to it. Of every dimension with two criteria or more two
    are joined into a composite, met if both parts are, with the sum of their weights.
    """
    references = read("external")["references"]
    criteria = [
        c.model_copy(update={"text": references[c.kind]["text"]})
        if c.kind in references and references[c.kind]["fact"] in withheld
        else c
        for c in gold.criteria
    ]
    parts = {c.id: (c.id,) for c in criteria}
    for dimension in DIMENSIONS:
        same = [c for c in criteria if c.dimension == dimension]
        if len(same) < 2:
            continue
        first, second = rng.sample(same, 2)
        joined = Criterion(
            id=f"{gold.instruction_id}-{first.kind}+{second.kind}",
            dimension=dimension,
            text=first.text + JOIN + second.text,
            weight=first.weight + second.weight,
            kind="composite",
        )
        parts[joined.id] = (parts.pop(first.id)[0], parts.pop(second.id)[0])
        criteria[criteria.index(first)] = joined
        criteria.remove(second)
    return gold.model_copy(update={"criteria": criteria}), parts
