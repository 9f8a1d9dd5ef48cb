"""The external clinic: what a reward model of the embedded clinic has never met, with known truth.

Other specialties, patients and authors, and wording of its own; the facts are of the same kinds.
Part of the leaflet is withheld: it stands in the knowledge base, and the rubric asks for it without
stating it. Two criteria of a dimension may be joined into one composite.
"""

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import product

from promedical_utils.clinic import generators, grammar
from promedical_utils.clinic.pool import text_of
from promedical_utils.clinic.vocabulary import read, values
from promedical_utils.clinic.world import LEAFLET, Patient, draw_patient, messages, rubric
from promedical_utils.core.records import DIMENSIONS, Candidate, Criterion, Instruction, Rubric
from promedical_utils.core.workspace import short_hash

JOIN = " Also: "  # between the parts of a composite criterion


@dataclass(frozen=True)
class Asked:
    """One instruction, an answer of each author, and what is known of both.

    ``gold``: atomic criteria, by which the truth is read. ``shown``: what a reward model is given,
    composites among them; ``parts``: criterion id of ``shown`` -> ids in ``gold`` that it asks for.
    ``question``: without the leaflet, whose sentences would find the leaflets of others.
    ``withheld``: ids of the documents that state what the message withholds.
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
        return grammar.gold(self.gold.criteria, self.patient.facts, candidate.text)


def build(seed: int, size: int, taken: Collection[int] = ()) -> tuple[list[Asked], dict[str, str]]:
    """The external clinic of ``size`` instructions, and its knowledge base, {id: text}; ``taken``:
    wording seeds of the other splits, which no patient here gets."""
    rng, words = random.Random(f"external-{seed}"), read("external")
    entries = list(product(words["specialties"], values("problem"), words["patients"]))
    known = {e: draw_patient(rng, n, seed, e[:2], "external") for n, e in enumerate(entries)}
    lacks = {}  # entry -> fact that is withheld -> id of the document that states it
    for e in entries:
        facts = sorted(rng.sample(words["withholdable"], words["withheld"]))
        lacks[e] = {fact: "-".join(("k", *e, fact)) for fact in facts}
    order, used, asked = rng.sample(entries, len(entries)), set(taken), []
    for number in range(size):
        entry = order[number % len(order)]
        wording = next(w for w in iter(lambda: rng.randrange(2**31), None) if w not in used)
        used.add(wording)
        about = {"category": rng.choice(read("vocabulary")["categories"]), "wording_seed": wording}
        patient = replace(known[entry], id=f"x{seed}-{number:05d}", **about)
        instruction = Instruction(
            id=f"x{seed}-{number + 1:05d}",
            category=patient.category,
            specialty=words["specialties"][patient.organ],
            messages=messages(patient, entry[2], lacks[entry]),
            source="external clinic (invented)",
            difficulty=rng.randint(5, 9),
        )
        asked.append(_asked(instruction, patient, lacks[entry], seed))
    return asked, knowledge_base(known, lacks, seed)


def _asked(instruction: Instruction, patient: Patient, lacks: dict[str, str], seed: int) -> Asked:
    name, candidates = instruction.id, []
    gold = rubric(patient, name, lacks)
    given, parts = shown(gold, random.Random(patient.wording_seed + 2))
    for author, habits in read("external")["habits"].items():
        rng = random.Random(short_hash("external answer", seed, name, author))
        text = generators.write(patient, habits, rng)
        id_ = f"{name}-{short_hash(seed, name, author)[:6]}"
        candidates.append(Candidate(id=id_, instruction_id=name, generator=author, text=text))
    question = text_of(instruction.messages).split(LEAFLET)[0].strip()
    withheld = tuple(lacks.values())
    return Asked(instruction, patient, question, gold, given, parts, withheld, tuple(candidates))


def knowledge_base(known: Mapping[tuple, Patient], lacks: Mapping, seed: int) -> dict[str, str]:
    """What leaflets withhold, one sentence a document, and distractors; {id: text}. Every condition
    and kind of patient is in it, so that nearly all of it is about other people."""
    rng, words, documents = random.Random(f"documents-{seed}"), read("external"), {}
    lines = read("messages")["leaflet"]["external"]
    for entry, patient in known.items():
        about = dict(zip(("organ", "problem", "who"), entry, strict=True))
        for fact, id_ in lacks[entry].items():
            line = rng.choice(lines[fact]).format(**patient.facts)
            documents[id_] = words["document"].format(**about, line=line)
        for form in words["distractors"]:  # the same sentence of several entries is one document
            text = form.format(**about)
            documents.setdefault(f"k-{short_hash(text)}", text)
    return documents


def shown(gold: Rubric, rng: random.Random) -> tuple[Rubric, dict]:
    """The rubric as a reward model is given it, where two criteria of a dimension are joined into a
    composite, met if both are; and {criterion id: ids in ``gold``}."""
    criteria, parts = list(gold.criteria), {c.id: (c.id,) for c in gold.criteria}
    for dimension in DIMENSIONS:
        same = [c for c in gold.criteria if c.dimension == dimension]
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
