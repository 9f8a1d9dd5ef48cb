"""Texts with one wrong sentence at most, which is known: the clinic's, MEDEC-MS, or a user's file.

Each condition of the clinic has a leaflet; a text says some of its facts, and half of the texts say
one of them wrongly. The task is MedFact's (arXiv 2509.12440): is there an error, and where?
"""

import random
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from difflib import SequenceMatcher
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

from promedical_utils.clinic import generators, grammar, world
from promedical_utils.clinic.vocabulary import PAIRED, WORDINGS, read, values
from promedical_utils.clinic.world import Patient
from promedical_utils.core import row_files
from promedical_utils.core.records import validated
from promedical_utils.core.workspace import KitError, read_yaml
from promedical_utils.data.sources import real_sets, schemas

READS = ("promedical_studies/medfact",)
PLAN = read_yaml(Path(__file__).parent / "medfact/plan.yaml")
KINDS: Mapping[str, list[str]] = PLAN["kinds"]  # of errors -> slots that each can stand in


class Text(NamedTuple):
    """``wrong``: number of the wrong sentence, from 0 on, None in a correct text; ``kind`` of its
    error and what should stand there, "" where unknown or none."""

    id: str
    condition: str
    sentences: tuple[str, ...]
    wrong: int | None = None
    kind: str = ""
    correction: str = ""


def handbook(seed: int, split: str) -> dict[str, Patient]:
    """The patient behind each condition of a split of the clinic: splits share no condition."""
    parts = world.conditions_by_split(random.Random(f"clinic-{seed}"))
    wording, patients = split if split in WORDINGS else "train", {}
    for number, condition in enumerate(parts[split]):
        rng = random.Random(f"handbook-{seed}-{condition}")
        patients[" ".join(condition)] = world.draw_patient(rng, number, seed, condition, wording)
    return patients


def leaflet(patient: Patient) -> list[str]:
    """Its lines, each with the condition that it is about."""
    rng, forms = random.Random(patient.wording_seed), read("messages")["leaflet"][patient.wording]
    names = (*world.CORE_LINES, "limit_other", *patient.extras)
    return [f"{patient.condition}: {rng.choice(forms[n]).format(**patient.facts)}" for n in names]


def slot_of(sentence: str) -> str:
    """What a sentence of the grammar speaks of; "" of one that is none."""
    act = grammar.read_sentence(sentence)
    return read("sentences")[act[0]]["slot"] if act else ""


def right(patient: Patient, sentence: str) -> bool:
    """Whether a sentence agrees with the leaflet, and with how an answer should speak; False where
    the grammar cannot read it. A check that is due sooner than the leaflet says is no error."""
    slot, facts, manners = slot_of(sentence), patient.facts, read("vocabulary")["manners"]
    act, a, b = grammar.read_sentence(sentence) or ("", "", "")
    if slot in PAIRED:
        return [a, b] == [facts[name] for name in PAIRED[slot][:2]]
    if slot in manners:
        about = {"addition": facts["avoid"], "diagnosis": patient.problem}
        return (act, a) == (manners[slot][0], about.get(slot, ""))
    if slot == "drug":
        return a == facts["first"] and b in ("", facts["avoid"], facts["other"])
    if slot == "review":
        return int(a) <= int(facts["review"])
    return slot == "filler" or (slot == "dose" and a == facts["limit"])


def written(seed: int, split: str, each: int, kinds=tuple(KINDS)) -> list[Text]:
    """``each`` texts a condition, in turn correct and wrong; kinds of errors take turns, too, and a
    condition whose leaflet has no place for one gets the next. KitError if it has one for none."""
    turns, texts = cycle(kinds), []
    for condition, patient in handbook(seed, split).items():
        slots = [*PLAN["facts"], *patient.extras]
        if not any({*slots} & {*KINDS[kind]} for kind in kinds):
            raise KitError(f"{condition}: its leaflet has no place for an error of {list(kinds)}")
        for n in range(each):
            rng, kind, slot = random.Random(f"statements-{seed}-{condition}-{n}"), "", ""
            while n % 2 and not slot:
                kind = next(turns)
                slot = rng.choice([slot for slot in KINDS[kind] if slot in slots] or [""])
            chosen = [*rng.sample(slots, rng.randint(3, 6)), *rng.sample(PLAN["manners"], 1), slot]
            habits = {name: {"right": 1.0} for name in dict.fromkeys(chosen) if name}
            said = grammar.sentences(generators.write(patient, habits, rng))
            place, mended = None, ""
            if slot:
                place = [*map(slot_of, said)].index(slot)
                mended, said[place] = said[place], _wrong(patient, kind, slot, said[place], rng)
            name = f"{split}-{condition}-{n}"
            texts.append(Text(name, condition, tuple(said), place, kind, mended))
    return texts


def _wrong(patient: Patient, kind: str, slot: str, sentence: str, rng: random.Random) -> str:
    """A right sentence, in the same form, with an error of a kind."""
    (act, a, b), facts = grammar.read_sentence(sentence), patient.facts
    forms, wording = read("sentences"), patient.wording
    form = [f.format(a=a, b=b) for f in forms[act][wording]].index(sentence)
    if kind in ("negation", "certainty"):
        act = read("vocabulary")["manners"][slot][1]
    elif kind in ("number", "time"):
        harmful = kind == "time" or rng.random() < 0.5  # a dose is wrong on either side
        _, a, b = generators.act(patient, slot, "dangerous" if harmful else "harmless", rng)
    elif kind == "term":
        type_ = PAIRED[slot][2] if slot in PAIRED else "drug"
        a = rng.choice([value for value in values(type_) if value not in facts.values()])
    elif slot == "dose":
        a = facts["limit_other"]
    elif slot == "drug":  # what is for others, or to be avoided, takes the place of the right one
        a, b = facts["other" if kind == "attribution" else "avoid"], b and facts["first"]
    else:
        a, b = b, a
    return grammar.say(act, wording, form, a, b)


def medec(path: Path) -> tuple[list[Text], Counter]:
    """Texts of an upstream sheet of MEDEC-MS, and what was left out or mended, counted; KitError
    naming the row whose error stands nowhere."""
    sheet = (row for _, row in row_files.read(path, mend="fetch it again"))
    rows = validated(sheet, schemas.MedecText, path.name)
    texts, left_out = [], Counter()
    for row in rows:
        numbered, broken = real_sets.sentences(row.numbered)
        left_out["lines joined to the sentence that they break"] += broken
        if not numbered or row.flag == "":
            left_out["blank rows"] += 1
            continue
        wrong = row.flag == "1"
        if wrong and row.number not in numbered:
            where = f"{path.name}, text {row.id}, field Error Sentence ID"
            raise KitError(
                f"{where}: no sentence {row.number!r} among its {len(numbered)}; mend it"
            )
        left_out["errors that are not the numbered sentence"] += wrong and schemas.wording(
            numbered[row.number]
        ) != schemas.wording(row.sentence)
        place = int(row.number) if wrong else None
        texts.append(Text(row.id, row.id, tuple(numbered.values()), place))
    return _one_label(texts, path.name), left_out


def mapped(path: Path, fields: Mapping[str, str]) -> list[Text]:
    """Texts of JSON lines; ``fields``: what the file calls text, span (of the error, empty in a
    correct text), id, kind, correction. Full-width letters count as plain ones. The error is in the
    sentence that has most of the span, and half of it at least (kit's decision), else KitError."""
    texts: list[Text] = []
    for number, (_, row) in enumerate(row_files.read(path, mend="give JSON lines"), 1):
        if missing := [key for key in ("text", "span") if fields.get(key) not in row]:
            raise KitError(f"{path.name}, row {number}: no field for {missing}; mend the mapping")
        own = dict.fromkeys(("id", "kind", "correction"), "")
        own |= {key: str(row.get(name) or "") for key, name in fields.items()}
        text, span = (unicodedata.normalize("NFKC", own[key]) for key in ("text", "span"))
        parts = re.split(r"(?<=[。!?;])|(?<=\.)\s|\n", text)
        sentences = tuple(part.strip() for part in parts if part.strip())
        matched = [SequenceMatcher(None, span, s, False).find_longest_match() for s in sentences]
        shared = [match.size for match in matched] or [-1]
        if 2 * max(shared) < len(span):
            raise KitError(f"{path.name}, row {number}, field {fields['span']}: not in the text")
        place = shared.index(max(shared)) if span else None
        id_ = own["id"] or str(number)
        texts.append(Text(id_, id_, sentences, place, own["kind"], own["correction"]))
    return _one_label(texts, path.name)


def _one_label(texts: list[Text], where: str) -> list[Text]:
    labels: dict[tuple, bool] = {}
    for text in texts:
        if labels.setdefault(text.sentences, wrong := text.wrong is not None) != wrong:
            raise KitError(
                f"{where}: text {text.id} stands there as correct and as wrong; drop one"
            )
    return texts
