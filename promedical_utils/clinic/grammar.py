"""The clinic's grammar: says an act in words, and reads gold verdicts back from free text.

Reading is strict. A sentence that is no form of the grammar, or that stands twice, makes every
verdict ``unknown``; a slot that is filled twice, or against itself, makes the criteria of that slot
``unknown``. So stuffed keywords and self-contradictions earn nothing and count as violations.
"""

import re
from collections.abc import Sequence
from functools import cache

from promedical_utils.clinic.vocabulary import PAIRED, read, values
from promedical_utils.core.records import Criterion

UNSEEN_KINDS = frozenset(k for k, c in read("criteria").items() if c.get("unseen"))

# which type of value each placeholder of a criterion text takes
PLACEHOLDERS = {"first": "drug", "avoid": "drug", "limit": "units", "review": "days"}
PLACEHOLDERS |= {name: kind for *names, kind in PAIRED.values() for name in names}


def say(act: str, form: int, a: str = "", b: str = "") -> str:
    """One sentence: form number ``form`` of ``act`` with its values."""
    return read("sentences")[act]["forms"][form].format(a=a, b=b)


def pattern(form: str, types: dict[str, str]) -> re.Pattern:
    """What matches a form with any values in its places; ``types``: place -> type of value."""
    text = re.escape(form)
    for name, kind in types.items():
        text = text.replace(re.escape(f"{{{name}}}"), f"(?P<{name}>{'|'.join(values(kind))})", 1)
    return re.compile(text)


@cache
def sentence_patterns(external: bool = False) -> list[tuple[str, int, re.Pattern]]:
    """(act, number of the form, what matches it) of all sentences, also in the external words."""
    acts = read("sentences")
    forms = read("external")["sentences"] if external else {a: acts[a]["forms"] for a in acts}
    return [
        (act, number, pattern(form, acts[act]["values"]))
        for act in forms
        for number, form in enumerate(forms[act])
    ]


@cache
def read_form(sentence: str, external: bool = False) -> tuple[str, int, str, str] | None:
    """(act, number of its form, a, b) of one sentence; None when it is no form of the grammar."""
    for act, number, form in sentence_patterns(external):
        if match := form.fullmatch(sentence):
            stated = match.groupdict()
            return act, number, stated.get("a", ""), stated.get("b", "")
    return None


def read_sentence(sentence: str) -> tuple[str, str, str] | None:
    """(act, a, b) of one sentence; None when it is no form of the grammar."""
    form = read_form(sentence)
    return form and (form[0], *form[2:])


@cache
def _criterion_patterns() -> list[tuple[str, re.Pattern]]:
    kinds = read("criteria")
    return [(kind, pattern(form, PLACEHOLDERS)) for kind in kinds for form in kinds[kind]["forms"]]


@cache
def read_criterion(text: str) -> tuple[str, str]:
    """Kind and value of a criterion text; raises ValueError when the grammar has no such form."""
    for kind, pattern in _criterion_patterns():
        if match := pattern.fullmatch(text):
            return kind, next(iter(match.groupdict().values()), "")
    raise ValueError(f"no criterion of the clinic: {text!r}")


def sentences(text: str) -> list[str]:
    """Sentences of a text; a text that is not made of whole sentences is one piece."""
    parts = re.findall(r"[^.]+\.", text)
    return [part.strip() for part in parts] if "".join(parts) == text else [text]


def parse(text: str) -> dict[str, list[tuple[str, str, str]]] | None:
    """Acts by slot, ``{slot: [(act, a, b)]}``; None when a sentence does not parse or repeats."""
    parts = sentences(" ".join(text.split()))
    acts = [read_sentence(part) for part in parts]
    if not parts or None in acts or len(set(parts)) < len(parts):
        return None
    slots: dict[str, list] = {}
    for act in acts:
        slots.setdefault(read("sentences")[act[0]]["slot"], []).append(act)
    return slots


def _ambiguous(slots: dict, slot: str) -> bool:
    """A slot filled twice, or the choice and the addition of a drug against each other."""
    if len(slots.get(slot, [])) > 1 or any(a and a == b for _, a, b in slots.get(slot, [])):
        return True
    if slot in ("drug", "addition") and "drug" in slots and "addition" in slots:
        (_, chosen, refused), (act, added, _) = slots["drug"][0], slots["addition"][0]
        return added == chosen if act == "reject" else added in (chosen, refused)
    return False


def _met(kind: str, value: str, slots: dict) -> bool:
    """The rule of a criterion kind on unambiguous slots."""
    of = {slot: acts[0] for slot, acts in slots.items()}
    act, a, b = of.get(read("criteria")[kind]["slots"][0], ("", "", ""))
    match kind:
        case "avoid_drug":
            return a != value and of.get("addition", ())[:2] != ("add", value)
        case "dose_limit":
            return not act or int(a) <= int(value)
        case "review_in_time":
            return bool(act) and int(a) <= int(value)
        case "danger_delay":
            return b != value
        case "activity_allowed":
            return a != value
        case "empathy" | "invites_questions":
            return act in ("comfort", "invite")
        case "no_credential" | "no_certain_diagnosis":
            return act not in ("doctor", "certain")
        case _:
            return a == value


def gold(criteria: Sequence[Criterion], text: str) -> dict[str, str]:
    """True verdicts of an answer, ``{criterion id: met | not_met | unknown}``."""
    slots = parse(text)
    if slots is None:
        return {c.id: "unknown" for c in criteria}
    verdicts = {}
    for criterion in criteria:
        kind, value = read_criterion(criterion.text)
        if any(_ambiguous(slots, slot) for slot in read("criteria")[kind]["slots"]):
            verdicts[criterion.id] = "unknown"
        else:
            verdicts[criterion.id] = "met" if _met(kind, value, slots) else "not_met"
    return verdicts
