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
from promedical_utils.clinic.pool import text_of
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
Entry = tuple[str, str, str]  # organ, problem, kind of patient
Withheld = dict[str, str]  # fact -> id of the document that states it


@dataclass(frozen=True)
class Asked:
    """One instruction, an answer of each author, and what is known of both.

    ``gold``: atomic criteria that state every fact, from which the truth is read. ``shown``: what a
    reward model is given, composites and references among them; ``parts``: criterion id of
    ``shown`` -> ids in ``gold`` that it asks for. ``question``: what the patient asks, without the
    leaflet (its sentences would find the leaflets of others). ``withheld``: ids of the documents
    that state what the message withholds.
    """

    instruction: Instruction
    patient: Patient
    question: str
    gold: Rubric
    shown: Rubric
    parts: dict[str, tuple[str, ...]]
    withheld: tuple[str, ...]
    candidates: tuple[Candidate, ...]

    def verdicts(self, candidate: Candidate) -> dict[str, str]:
        """True verdicts by the gold rubric."""
        return grammar.gold(self.gold.criteria, translated(candidate.text))


def build(seed: int, size: int, taken: Collection[int] = ()) -> tuple[list[Asked], dict[str, str]]:
    """The external clinic of ``size`` instructions, and its knowledge base, {id: text}.

    ``taken``: wording seeds of the other splits, which no patient here gets. Equal arguments give
    an equal clinic.
    """
    rng, words = random.Random(f"external-{seed}"), read("external")
    entries = list(product(words["specialties"], values("problem"), words["patients"]))
    known = {e: draw_patient(rng, n, seed, e[:2]) for n, e in enumerate(entries)}
    lacks: dict[Entry, Withheld] = {}
    for e in entries:
        facts = sorted(rng.sample(words["withholdable"], words["withheld"]))
        lacks[e] = {fact: "-".join(("k", *e, fact)) for fact in facts}
    order, used, asked = rng.sample(entries, len(entries)), set(taken), []
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
        name, difficulty = f"x{seed}-{number + 1:05d}", rng.randint(5, 9)
        asked.append(_asked(patient, name, entry, lacks[entry], difficulty, seed))
    return asked, knowledge_base(known, lacks, seed)


def _asked(
    patient: Patient, name: str, entry: Entry, lacks: Withheld, difficulty: int, seed: int
) -> Asked:
    words, conversation = read("external"), messages(patient, entry[2], lacks)
    about = {"category": patient.category, "specialty": words["specialties"][patient.organ]}
    about |= {"source": "external clinic (invented)", "difficulty": difficulty}
    instruction = Instruction(id=name, messages=conversation, **about)
    gold = rubric(patient, name, unseen=True)
    given, parts = shown(gold, lacks, random.Random(patient.wording_seed + 2))
    candidates = []
    for author, habits in words["habits"].items():
        rng = random.Random(short_hash("external answer", seed, name, author))
        text = reworded(generators.write(patient, habits, rng), rng)
        id_ = f"{name}-{short_hash(seed, name, author)[:6]}"
        candidates.append(Candidate(id=id_, instruction_id=name, generator=author, text=text))
    question = text_of(conversation).split(words["lead"])[0].strip()
    withheld = tuple(lacks.values())
    return Asked(instruction, patient, question, gold, given, parts, withheld, tuple(candidates))


def knowledge_base(
    known: Mapping[Entry, Patient], lacks: Mapping[Entry, Withheld], seed: int
) -> dict[str, str]:
    """What leaflets withhold, one sentence a document, and distractors; {id: text}.

    Every condition and kind of patient is in it, so that nearly all of it is about other people.
    """
    rng, words, documents = random.Random(f"documents-{seed}"), read("external"), {}
    for entry, patient in known.items():
        about = dict(zip(("organ", "problem", "who"), entry, strict=True))
        for fact, id_ in lacks[entry].items():
            line = rng.choice(words["leaflet"][fact]).format(**patient.facts)
            documents[id_] = words["document"].format(**about, line=line)
        for form in words["distractors"]:  # the same sentence of several entries is one document
            text = form.format(**about)
            documents.setdefault(f"k-{short_hash(text)}", text)
    return documents


def messages(patient: Patient, who: str, withheld: Collection[str]) -> list[Message]:
    """The message in the external clinic's words, with a leaflet that lacks ``withheld`` facts."""
    rng, words = random.Random(patient.wording_seed), read("external")
    about = {"organ": patient.organ, "problem": patient.problem, "who": who}
    opening = rng.choice(words["openings"]).format(**about)
    question = f"{rng.choice(words['questions'][patient.category])} {opening}"
    sheet = " ".join([words["lead"], *leaflet_lines(patient, rng, "external", withheld)])
    if rng.random() < 0.35:
        return dialogue([question, rng.choice(words["asks"]), sheet])
    return dialogue([f"{question} {sheet}"])


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
    references, criteria = read("external")["references"], list(gold.criteria)
    for n, c in enumerate(criteria):
        if c.kind in references and references[c.kind]["fact"] in withheld:
            criteria[n] = c.model_copy(update={"text": references[c.kind]["text"]})
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
        del parts[first.id], parts[second.id]
        parts[joined.id] = (first.id, second.id)
        criteria[criteria.index(first)] = joined
        criteria.remove(second)
    return gold.model_copy(update={"criteria": criteria}), parts
