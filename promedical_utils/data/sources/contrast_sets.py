"""Criteria with verdicts made from real answers: sentences taken out, unsafe sentences put in.

**Such labels test nothing.** They follow from how an answer was made: overlap of words tells an
answer with a statement from one that it was taken out of in all but a few of ten thousand pairs
(not from one that denies it). They are for training; held-out kinds and wordings are a diagnostic,
and no claim may rest on either.

A question becomes four answers and at most seven criteria:
- Statements (must-have: proficiency, nice-to-have: excellence). A sentence *supports* one from
  ``SUPPORTS`` of its content words on, and *touches* it from ``TOUCHES`` on. An answer meets a
  statement with a sentence that supports it, does not meet it with none that touches it, and is
  unknown between the two.
- Safety by the answer's own sentences: ``contradicted`` (a must-have with its verb turned round;
  elsewhere the statement itself stands in that place), ``changed_dose`` (another number before a
  unit), ``dropped_warning`` (a sentence that warns is taken out); left out where not possible.
- Kinds of the banks in ``contrast_sets.yaml``: a sentence that breaks the criterion, one on the
  same topic that keeps it, or none, at one place, drawn by question. Silence is safe, and no merit.

**Length.** Of many subsets of the sentences, four of *the same number of words* make a question.
Those four are kept that have the most pairs, less those that lean to the answer with more letters
or to the one that meets more criteria, so that a scorer blind to the criterion finds little.
"""

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Literal, NamedTuple

from promedical_utils.core.records import Criterion, VerdictValue
from promedical_utils.core.words import words
from promedical_utils.core.workspace import read_yaml, short_hash
from promedical_utils.data.sources.schemas import grouped

SUPPORTS, TOUCHES = 0.55, 0.3  # shares of a statement's content words
ANSWERS = 4  # of a question, all of the same number of words
SHORTEST, LONGEST = 15, 90  # words; four packed answers and six criteria are some 800 tokens
STATEMENTS, BUILT, SAFETY = 3, 2, 3  # criteria at most
DRAWS = 300  # of answers, and of fours among them
LETTERS, CROSSED = 0.5, 0.5  # what a pair that leans costs, in pairs
WORDING = read_yaml(Path(__file__).with_suffix(".yaml"))
BANKS, STOP = WORDING["banks"], frozenset(WORDING["stop"].split())
RULE = {
    name: re.compile(rule.replace("VERBS", "|".join(WORDING["verbs"])), re.IGNORECASE)
    for name, rule in WORDING["rules"].items()
}

Draws = dict[str, dict[str, VerdictValue]]  # by text, the verdicts by criterion id


class Statement(NamedTuple):
    kind: Literal["must_have", "nice_to_have"]
    text: str


class Contrast(NamedTuple):
    """``answers``: name, text, verdicts by criterion id, one of every criterion."""

    criteria: list[Criterion]
    answers: list[tuple[str, str, dict[str, VerdictValue]]]


class _Part(NamedTuple):
    """A sentence, its place, and the verdicts that it settles; one that breaks supports nothing."""

    place: float
    text: str
    settles: Mapping[str, VerdictValue] = {}


class _Twin(NamedTuple):
    """Sentences that meet or break a criterion, put in for ``replaces``; ``denies``: a claim."""

    criterion: Criterion
    met: Sequence[str]
    not_met: Sequence[str]
    place: float
    replaces: frozenset[int] = frozenset()
    denies: str = ""


def contrast(
    id: str,
    answer: str,
    statements: Sequence[Statement],
    seed: int,
    held_out: bool = False,
    dropped: Counter | None = None,
) -> Contrast | None:
    """Answers to question ``id`` with their criteria, the same for the same ``seed`` and ``id``.

    ``held_out``: by wordings and kinds that are never trained on. None where nothing can be made;
    ``dropped`` counts what was left out, as "question", "statement" or "criterion" with the reason.
    """
    dropped = Counter() if dropped is None else dropped
    rng, half = random.Random(f"{seed} {id}"), "held_out" if held_out else "train"
    sentences = split(answer)
    if len(sentences) < 2:
        dropped["question: fewer than two sentences"] += 1
        return None
    claims = _claims(id, sentences, statements, rng, dropped)
    if "must_have" not in [c.kind for c in claims]:
        dropped["question: no must-have statement is supported"] += 1
        return None
    twins, warnings = _built(id, sentences, claims, rng, half)
    claims |= warnings
    kinds = [
        kind
        for kind, bank in BANKS.items()
        if half in bank["criterion"] and not re.search(bank["says_already"], answer, re.IGNORECASE)
    ]
    rng.shuffle(kinds)
    for dimension, most in ("safety", SAFETY - len(twins) - len(warnings)), ("excellence", 1):
        for kind in [k for k in kinds if BANKS[k]["dimension"] == dimension][:most]:
            bank, place = BANKS[kind], rng.uniform(-0.9, len(sentences) - 0.1)
            about = _criterion(id, kind, rng.choice(bank["criterion"][half]), dimension)
            twins.append(_Twin(about, bank["met"][half], bank["not_met"][half], place))
    criteria, drawn = [*claims, *(twin.criterion for twin in twins)], {}
    for _ in range(DRAWS):
        parts = _parts(sentences, twins, rng)
        text = " ".join(part.text for part in parts)
        verdicts = {c.id: _verdict(c, parts, claims.get(c)) for c in criteria}
        unsure = any(verdicts[c.id] == "unknown" for c in criteria if c.dimension == "safety")
        if SHORTEST <= len(words(text)) <= LONGEST and not unsure:
            drawn[text] = verdicts
    four = _best(drawn, criteria, rng)
    if four is None:
        dropped["question: no answers of equal length that differ"] += 1
        return None
    kept = [c for c in criteria if _pairs(four, c.id)]
    dropped.update(f"criterion: no balanced pair, {c.kind}" for c in criteria if c not in kept)
    must = [c for c in kept if c.kind == "must_have"] or criteria[:1]  # a rubric has one at least
    weighted = [c.model_copy(update={"weight": 1 / len(must)}) for c in must]
    kept = weighted + [c for c in kept if c.kind != "must_have"]
    answers = []
    for n, (text, verdicts) in enumerate(four.items(), 1):
        answers.append((f"contrast_{n}", text, {c.id: verdicts[c.id] for c in kept}))
    return Contrast(kept, answers)


def split(text: str) -> list[str]:
    """Sentences in their order, white space made one."""
    return [part.strip() for part in RULE["end"].split(" ".join(text.split())) if part.strip()]


@cache
def _content(text: str) -> frozenset[str]:
    return frozenset(w[:6] for w in re.findall(r"[a-z0-9]+", text.lower()) if w not in STOP)


def overlap(statement: str, text: str) -> float:
    """The share of a statement's content words, by their first six letters, that a text has."""
    return len(_content(statement) & _content(text)) / max(1, len(_content(statement)))


def contradiction(statement: str) -> str | None:
    """The statement with the first verb of its main clause turned round, None if unclear."""
    condition = RULE["before_main"].match(statement)
    start = condition.end() if condition else 0
    verb = RULE["verb"].search(statement, start)
    unclear = RULE["unclear"].search(statement)
    if not verb or unclear or RULE["before_verb"].search(statement, start, verb.start()):
        return None
    turned = verb[1] if verb[2] or verb[3] else WORDING["verbs"][verb[1]]
    return statement[: verb.start()] + turned + statement[verb.end() :]


def changed_dose(sentence: str, rng: random.Random) -> tuple[str, str] | None:
    """The sentence with one amount changed, and the words round the right one; None without any."""
    amounts = list(RULE["amount"].finditer(sentence))
    if not amounts:
        return None
    amount = rng.choice(amounts)
    right = float(amount[0].replace(",", ""))
    wrong = [round(right * factor, 6) for factor in (0.1, 0.2, 0.5, 2, 3, 5, 10)]
    if "." not in amount[0]:  # no tenth of a tablet
        wrong = [value for value in wrong if value.is_integer()]
    before, after = sentence[: amount.start()], sentence[amount.end() :]
    at, words = len(before.split(" ")) - 1, sentence.split(" ")
    changed = f"{before}{rng.choice(wrong):,.10g}{after}"
    return changed, " ".join(words[max(0, at - 6) : at + 7])


def _criterion(id: str, kind: str, text: str, dimension="safety") -> Criterion:
    i = short_hash(id, kind, text)
    return Criterion(id=i, dimension=dimension, text=text, weight=0, kind=kind)


def _claims(id, sentences, statements, rng, dropped) -> dict[Criterion, str]:
    """Criteria with the statements that they are, a must-have first if there is any, then those
    that some sentence does not touch."""
    texts = dict.fromkeys(Statement(s.kind, s.text.strip()) for s in statements if s.text.strip())
    overlaps = {s: [overlap(s.text, sentence) for sentence in sentences] for s in texts}
    supported = [s for s in texts if max(overlaps[s]) >= SUPPORTS]
    rng.shuffle(supported)
    supported.sort(key=lambda s: min(overlaps[s]) >= TOUCHES)
    first = [s for s in supported if s.kind == "must_have"][:1]
    chosen = first + [s for s in supported if s not in first][: STATEMENTS - 1]
    dropped["statement: blank or repeated"] += len(statements) - len(texts)
    dropped["statement: no sentence supports it"] += len(texts) - len(supported)
    dropped["statement: more than are taken"] += len(supported) - len(chosen)
    dimension = {"must_have": "proficiency", "nice_to_have": "excellence"}
    return {_criterion(id, s.kind, s.text, dimension[s.kind]): s.text for s in chosen}


def _built(id, sentences, claims, rng, half) -> tuple[list[_Twin], dict[Criterion, str]]:
    """``BUILT`` kinds at most of the answer's own sentences: twins, and warnings as claims."""
    options = []  # kind, what its criterion quotes, met, not met, sentences replaced, claim denied
    for i, sentence in enumerate(sentences):
        of = frozenset({i})
        if dose := changed_dose(sentence, rng):
            options.append(("changed_dose", dose[1], [sentence], [dose[0]], of, ""))
        alone = sum(overlap(sentence, other) >= TOUCHES for other in sentences) == 1
        if alone and RULE["warns"].search(sentence):
            options.append(("dropped_warning", sentence, [], [], of, ""))
    for claim in (c for c in claims if c.kind == "must_have"):
        of = frozenset(i for i, s in enumerate(sentences) if overlap(claim.text, s) >= SUPPORTS)
        if denial := contradiction(claim.text):
            options.append(("contradicted", claim.text, [claim.text], [denial], of, claim.id))
    rng.shuffle(options)
    twins, warnings, used, kinds = [], {}, set(), set()
    for kind, quoted, met, not_met, of, denies in options:
        if len(kinds) == BUILT or kind in kinds or of & used:
            continue
        kinds.add(kind)
        used |= of
        about = _criterion(id, kind, rng.choice(WORDING["built"][kind][half]).format(quoted))
        if kind == "dropped_warning":
            warnings[about] = quoted
        else:
            twins.append(_Twin(about, met, not_met, min(of), of, denies))
    return twins, warnings


def _parts(sentences: Sequence[str], twins: Sequence[_Twin], rng: random.Random) -> list[_Part]:
    """One draw: some of the sentences, and of each twin one that meets, breaks, or none."""
    share = rng.uniform(0.3, 0.9) * min(1, LONGEST / sum(len(words(s)) for s in sentences))
    body, parts = {i for i in range(len(sentences)) if rng.random() < share}, []
    for twin in twins:
        state = rng.choices(("met", "not_met", None), (0.4, 0.4, 0.2))[0]
        if state:
            body -= twin.replaces
            text = rng.choice(twin.met if state == "met" else twin.not_met)
            settles = {twin.criterion.id: state}
            if twin.denies and state == "not_met":
                settles[twin.denies] = state
            parts.append(_Part(twin.place, text, settles))
    return sorted(parts + [_Part(i, sentences[i]) for i in body], key=lambda part: part.place)


def _verdict(criterion: Criterion, parts: Sequence[_Part], claim: str | None) -> VerdictValue:
    settled = next((p.settles[criterion.id] for p in parts if criterion.id in p.settles), None)
    if claim is None:
        return settled or ("met" if criterion.dimension == "safety" else "not_met")
    sound = [p.text for p in parts if "not_met" not in p.settles.values()]
    supported = any(overlap(claim, text) >= SUPPORTS for text in sound)
    if supported or settled:  # denied, and yet said elsewhere: who knows
        return "unknown" if supported and settled else settled or "met"
    return "unknown" if any(overlap(claim, p.text) >= TOUCHES for p in parts) else "not_met"


def _pairs(draws: Draws, criterion_id: str) -> list[tuple[str, str]]:
    """Those that differ on a criterion: the one that meets it, the one that does not."""
    met = [text for text, verdicts in draws.items() if verdicts[criterion_id] == "met"]
    not_met = [text for text, verdicts in draws.items() if verdicts[criterion_id] == "not_met"]
    return list(product(met, not_met))


def _best(drawn: Draws, criteria: Sequence[Criterion], rng: random.Random) -> Draws | None:
    """``ANSWERS`` equally long draws, as the module says; None if no four are worth their cost."""
    best, most, by_words = None, 0.0, grouped(drawn, lambda text: len(words(text)))
    enough = [texts for texts in by_words.values() if len(texts) >= ANSWERS]
    for _ in range(DRAWS if enough else 0):
        texts, value, better = rng.sample(rng.choice(enough), ANSWERS), 0.0, Counter()
        four = {text: drawn[text] for text in texts}
        for criterion in criteria:
            pairs = _pairs(four, criterion.id)
            gaps = [len(a) - len(b) for a, b in pairs]
            value += len(pairs) - LETTERS * abs(sum((gap > 0) - (gap < 0) for gap in gaps))
            better.update(pairs)
        for a, b in combinations(texts, 2):
            value -= CROSSED * abs(better[a, b] - better[b, a])
        if value > most:
            best, most = four, value
    return best
