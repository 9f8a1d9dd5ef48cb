"""Patients, their messages and leaflets, and the gold rubric of each instruction. Every fact of a
leaflet is drawn afresh for every patient: a model must read it and cannot have memorised it.
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import islice, product

from promedical_utils.clinic import generators, grammar
from promedical_utils.clinic.vocabulary import EXTRAS, PAIRED, WORDINGS, read, values
from promedical_utils.core.records import SPLITS, Criterion, Instruction, Message, Rubric, SplitRow
from promedical_utils.core.run_data import RunData
from promedical_utils.core.workspace import KitError, short_hash

# conditions by split, in the order of SPLITS; the splits share no condition
SHARES = (0.62, 0.08, 0.06, 0.18, 0.06)
CORE_LINES = ("first", "avoid", "other", "limit", "danger", "mild", "review")
# what is asked of nearly every answer; the rest of a rubric is drawn
ALWAYS = ("first_choice", "avoid_drug", "dose_limit", "danger_delay")
LEAFLET = "Leaflet: "  # what a leaflet in a message begins with
UNSTATED = 1 / 3  # share of the criteria on a fact that do not say which


@dataclass(frozen=True)
class Patient:
    """One patient: the condition, the facts that the leaflet states, and the ``wording`` in which
    all about the patient is said (of ``vocabulary.WORDINGS``)."""

    id: str
    organ: str
    problem: str
    category: str
    facts: dict[str, str]
    extras: tuple[str, ...]
    wording_seed: int
    wording: str

    @property
    def condition(self) -> str:
        return f"{self.organ} {self.problem}"


def draw_patient(
    rng: random.Random, number: int, seed: int, condition: tuple[str, str], wording: str = "train"
) -> Patient:
    organ, problem = condition
    first, avoid, other = rng.sample(values("drug"), 3)
    danger, mild = rng.sample(values("sign"), 2)
    facts = dict(first=first, avoid=avoid, other=other, danger=danger, mild=mild)
    # the largest doses and the longest waits are kept free, so that both can be exceeded
    facts["limit"] = rng.choice(values("units")[1:-3])
    facts["limit_other"] = rng.choice([v for v in values("units") if v != facts["limit"]])
    facts["review"] = rng.choice(values("days")[1:-2])
    for name, opposite, kind in (PAIRED[slot] for slot in EXTRAS):
        facts[name], facts[opposite] = rng.sample(values(kind), 2)
    return Patient(
        id=f"p{seed}-{number:05d}",
        organ=organ,
        problem=problem,
        category=rng.choice(read("vocabulary")["categories"]),
        facts=facts,
        extras=tuple(e for e in EXTRAS if rng.random() < (0.8 if e == "effect" else 0.6)),
        wording_seed=rng.randrange(2**31),
        wording=wording,
    )


def messages(patient: Patient, who: str = "", withheld: Collection[str] = ()) -> list[Message]:
    """The patient's message, of one turn or of three, in one of the registers of its wording. Its
    leaflet has the core facts but for ``withheld``, the patient's extras and at times a distractor,
    shuffled; ``who``: what the patient is, where the wording asks for it."""
    rng, texts = random.Random(patient.wording_seed), read("messages")
    wording, register = patient.wording, rng.choice(sorted(texts["openings"][patient.wording]))
    about = {"organ": patient.organ, "problem": patient.problem, "who": who}
    about["weeks"] = rng.choice(values("days"))
    opening = rng.choice(texts["openings"][wording][register]).format(**about)
    question = rng.choice(texts["questions"][wording][patient.category])
    names = [name for name in (*CORE_LINES, *patient.extras) if name not in withheld]
    names += ["limit_other"] if rng.random() < 0.5 else []
    rng.shuffle(names)
    forms = [rng.choice(texts["leaflet"][wording][name]) for name in names]
    leaflet = LEAFLET + " ".join(forms).format(**patient.facts)
    turns = [f"{opening} {leaflet} {question}"]
    if rng.random() < 0.35:
        turns = [f"{opening} {question}", rng.choice(texts["asks"][wording]), leaflet]
    return [Message(role=("user", "assistant")[n % 2], content=t) for n, t in enumerate(turns)]


def rubric(patient: Patient, instruction_id: str, unstated: Collection[str] = ()) -> Rubric:
    """The gold rubric: 5 to 12 criteria, in another wording than ``train`` also of the kinds that
    training never shows; ``unstated``: facts that no criterion may say."""
    rng, kinds = random.Random(patient.wording_seed + 1), read("criteria")
    wording = patient.wording
    needed = [k for k, spec in kinds.items() if spec.get("needs") in (None, *patient.extras)]
    new = [k for k in needed if wording != "train" and kinds[k].get("unseen")]
    rest = [k for k in needed if k not in ALWAYS and not kinds[k].get("unseen")]
    drawn = rng.sample(rest, max(1, sum(rng.random() < 0.62 for _ in rest)))
    chosen = [*ALWAYS, *new, *drawn][:12]
    rng.shuffle(chosen)
    weights = {k: kinds[k]["weight"][patient.category] for k in chosen if "weight" in kinds[k]}
    criteria = []
    for kind in chosen:
        hidden = rng.random() < UNSTATED or kinds[kind].get("fact") in unstated
        forms = kinds[kind][wording]
        forms = (hidden and forms.get("unstated")) or forms["stated"]
        criteria.append(
            Criterion(
                id=f"{instruction_id}-{kind}",
                dimension=kinds[kind]["dimension"],
                text=rng.choice(forms).format(**patient.facts),
                weight=weights.get(kind, 0) / sum(weights.values()),
                kind=kind,
            )
        )
    return Rubric(instruction_id=instruction_id, status="gold", round=0, criteria=criteria)


@dataclass(frozen=True)
class World(RunData):
    """The clinic of one seed: instructions, splits, gold rubrics, and who is behind them;
    ``careless``: in which share of training one generator is the careless one, so that a reward
    model meets violations. The bench has its answers beside the others'."""

    seed: int = 0
    careless: float = 0.0
    patients: dict[str, Patient] = field(default_factory=dict)

    def gold(self, instruction_id: str, text: str) -> dict[str, str]:
        """True verdicts of any text as an answer to an instruction, by the gold rubric."""
        patient = self.patients[instruction_id]
        return grammar.gold(self.rubric_of[instruction_id].criteria, patient.facts, text)

    def authors(self, instruction_id: str) -> tuple[str, ...]:
        """Names of the generators that answer an instruction."""
        if self.patients[instruction_id].wording != "train":
            return (*generators.NAMES, generators.CARELESS)
        draw = random.Random(short_hash("careless", self.seed, instruction_id)).random()
        first = generators.CARELESS if draw < self.careless else generators.NAMES[0]
        return (first, *generators.NAMES[1:])

    def answer(self, instruction_id: str, generator: str) -> str:
        """The answer of a generator: a pure function of the seed and its name."""
        rng = random.Random(short_hash("answer", self.seed, instruction_id, generator))
        return generators.write(self.patients[instruction_id], generator, rng)


def conditions() -> list[tuple[str, str]]:
    return list(product(read("vocabulary")["specialties"], values("problem")))


def conditions_by_split(rng: random.Random) -> dict[str, list[tuple[str, str]]]:
    """All conditions, shuffled and shared out, so that the splits have none in common."""
    pool = conditions()
    rng.shuffle(pool)
    # organs take turns, so that a split of 26 conditions or more has every specialty
    turn = {c: sum(organ == c[0] for organ, _ in pool[:n]) for n, c in enumerate(pool)}
    pool.sort(key=turn.get)
    rest, sizes = iter(pool), [round(share * len(pool)) for share in SHARES]
    return {split: list(islice(rest, size)) for split, size in zip(SPLITS, sizes, strict=True)}


def build(profile, sizes: Sequence[int] | None = None) -> World:
    """The clinic at the profile's seed and sizes, the splits disjoint in condition, patient and
    wording seed; KitError where a wording seed repeats."""
    sizes = sizes or (
        profile.train_instructions,
        profile.calibration_instructions,
        profile.checkpoint_instructions,
        profile.bench_samples * 5 // 4 + 8,
        profile.external_instructions,
    )
    rng, seen = random.Random(f"clinic-{profile.seed}"), set()
    world = World(seed=profile.seed, careless=profile.careless)
    parts, specialties = conditions_by_split(rng), read("vocabulary")["specialties"]
    for split, size in zip(SPLITS, sizes, strict=True):
        wording = split if split in WORDINGS else "train"
        for index in range(size):
            condition, number = parts[split][index % len(parts[split])], len(world.instructions)
            patient = draw_patient(rng, number, world.seed, condition, wording)
            if patient.wording_seed in seen:
                raise KitError(f"wording seed of patient {patient.id} repeats: choose another seed")
            seen.add(patient.wording_seed)
            id_ = f"i{world.seed}-{number + 1:05d}"
            about = {"category": patient.category, "specialty": specialties[patient.organ]}
            about |= {"source": "embedded clinic (invented)", "difficulty": rng.randint(5, 9)}
            world.instructions.append(Instruction(id=id_, messages=messages(patient), **about))
            own = {"patient": patient.id, "wording_seed": patient.wording_seed}
            row = SplitRow(instruction_id=id_, split=split, condition=patient.condition, **own)
            world.splits.append(row)
            world.rubrics.append(rubric(patient, id_))
            world.patients[id_] = patient
    return world
