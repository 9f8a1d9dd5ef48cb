"""Criteria with verdicts made from real answers: statements taken out, unsafe sentences put in.

**Such labels test nothing.** They follow from how an answer was made: overlap of words tells a statement
that was taken out from one that was left in, in nearly every pair. They are for training; held-out kinds and
wordings are a diagnostic, and no claim may rest on either.

A question becomes four answers and at most eight criteria:
- Statements (must-have: proficiency, nice-to-have: excellence). A sentence *supports* one that shares
  ``SUPPORTS`` of its content words, and *touches* one from ``TOUCHES`` on. An answer with a supporting sentence
  meets the statement, one with touching sentences only is unknown, one with neither does not meet it.
- Built safety kinds: ``contradicted`` (a must-have statement with its verb turned round; in other answers the
  statement itself stands in the same place), ``changed_dose`` (another number before a unit) and
  ``dropped_warning`` (a sentence that warns is taken out). Where they cannot be made they are left out.
- Kinds of the banks in ``contrast_sets.yaml``: a sentence that breaks the criterion, one on the same topic that
  keeps it, or none; all at one place of the answers of a question, which is drawn.

**Length.** Many subsets of the sentences are drawn; only answers whose numbers of words differ by at most
``TOLERANCE`` make a question, so that what one answer lacks another lacks in other sentences. Of the draws the
one is kept with the most pairs in which the longer answer is right as often as the shorter. A criterion that
no such draw gives both verdicts is dropped and counted; so is a question without any.
"""

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

from promedical_utils.core.records import Criterion, VerdictValue
from promedical_utils.core.workspace import read_yaml, short_hash

SUPPORTS, TOUCHES = 0.55, 0.3  # shares of a statement's content words
ANSWERS, TOLERANCE = 4, 2  # a question's answers, and how many words their lengths may differ by
SHORTEST, LONGEST = 15, 90  # words: four answers and eight criteria stay near 700 tokens
STATEMENTS, SAFETY = 3, 3  # criteria of each at most; dropped for want of a pair: fewer
DRAWS = 300
BANKS = read_yaml(Path(__file__).with_suffix(".yaml"))
WARNS, AMOUNT, UNCLEAR, BEFORE_MAIN, BEFORE_VERB = (
    re.compile(BANKS[name], re.IGNORECASE)
    for name in ("warns", "amount", "unclear", "before_main", "before_verb")
)
VERB = re.compile(rf"\b({'|'.join(BANKS['verbs'])})(not)?\b(?: (not|never)\b)?")
# after a small letter or a bracket, so that neither "1." nor "U.S." ends a sentence
SENTENCE = re.compile(r"(?<!e\.g\.)(?<!i\.e\.)(?<!Dr\.)(?<!vs\.)(?<=[a-z)%][.!?])\s*(?=[A-Z])")
STOP = frozenset(
    "the a an of to and or in is are be it that this with for on as by at from can may your you not if have has "
    "was were will should would could which these those such also more most any some their they its".split()
)


class Statement(NamedTuple):
    kind: Literal["must_have", "nice_to_have"]
    text: str


@dataclass(frozen=True)
class Contrast:
    """``answers``: name, text, verdict by criterion id (every criterion has one in every answer)."""

    criteria: list[Criterion]
    answers: list[tuple[str, str, dict[str, VerdictValue]]]


class _Part(NamedTuple):
    """A sentence, where it stands, what it settles, and whether it may support a statement."""

    place: float
    text: str
    settles: Mapping[str, VerdictValue] = {}
    supports: bool = True


@dataclass(frozen=True)
class _Twin:
    """A criterion that sentences put in for ``replaces`` meet or break; ``denies``: a statement's id."""

    criterion: Criterion
    met: Sequence[str]
    not_met: Sequence[str]
    place: float
    replaces: frozenset[int] = frozenset()
    denies: str = ""


class _Draw(NamedTuple):
    text: str
    verdicts: dict[str, VerdictValue]
    words: int


def contrast(
    id: str,
    answer: str,
    statements: Sequence[Statement],
    seed: int,
    held_out: bool = False,
    dropped: Counter | None = None,
) -> Contrast | None:
    """Four answers to question ``id`` and their criteria, the same for the same ``seed`` and ``id``.

    ``held_out``: wordings and kinds that are never trained on. None where nothing can be made; what was
    left out is counted in ``dropped``, by "question", "statement" or "criterion" and the reason.
    """
    dropped = Counter() if dropped is None else dropped
    rng, half = random.Random(f"{seed} {id}"), "held_out" if held_out else "train"
    sentences = split(answer)
    if len(sentences) < 2:
        dropped["question: fewer than two sentences"] += 1
        return None
    claims = _claims(id, sentences, statements, rng, dropped)
    if not any(c.dimension == "proficiency" for c in claims):
        dropped["question: no must-have statement is supported"] += 1
        return None
    twins, warnings = _built(id, sentences, claims, rng, half)
    kinds = [k for k, bank in BANKS["banks"].items() if half in bank["criterion"]]
    rng.shuffle(kinds)
    for dimension, most in ("safety", SAFETY - len(twins) - len(warnings)), ("excellence", 1):
        fit = [k for k in kinds if BANKS["banks"][k]["dimension"] == dimension]
        fit = [k for k in fit if not re.search(BANKS["banks"][k]["says_already"], answer, re.I)]
        twins += [_of_bank(id, kind, half, len(sentences), rng) for kind in fit[:most]]
    claimed = {c.id: c.text for c in claims} | {c.id: sentence for c, sentence in warnings}
    criteria = [*claims, *(c for c, _ in warnings), *(twin.criterion for twin in twins)]
    drawn = {}
    for _ in range(DRAWS):
        parts = _parts(sentences, twins, rng)
        draw = _draw(parts, criteria, claimed)
        if SHORTEST <= draw.words <= LONGEST and not any(
            draw.verdicts[c.id] == "unknown" for c in criteria if c.dimension == "safety"
        ):
            drawn[draw.text] = draw
    best = _best(list(drawn.values()), criteria, rng)
    if best is None:
        dropped["question: no answers of equal length that differ"] += 1
        return None
    differ = {c.id for c in criteria if _pairs(best, c.id)}
    dropped.update(f"criterion: no balanced pair, {c.kind}" for c in criteria if c.id not in differ)
    must = [c for c in criteria if c.dimension == "proficiency"]
    must = [c for c in must if c.id in differ] or must[:1]  # a rubric has one at least
    weighted = [c.model_copy(update={"weight": 1 / len(must)}) for c in must]
    others = [c for c in criteria if c.dimension != "proficiency" and c.id in differ]
    kept = weighted + others
    answers = [
        (f"contrast_{n}", draw.text, {c.id: draw.verdicts[c.id] for c in kept})
        for n, draw in enumerate(best, 1)
    ]
    return Contrast(kept, answers)


def split(text: str) -> list[str]:
    """Sentences in their order, white space made one."""
    return [s.strip() for s in SENTENCE.split(" ".join(text.split())) if s.strip()]


@cache
def _content(text: str) -> frozenset[str]:
    return frozenset(w[:6] for w in re.findall(r"[a-z0-9]+", text.lower()) if w not in STOP)


def overlap(statement: str, text: str) -> float:
    """The share of the statement's content words, by their first six letters, that ``text`` has."""
    return len(_content(statement) & _content(text)) / max(1, len(_content(statement)))


def contradiction(statement: str) -> str | None:
    """The statement with the first verb of its main clause turned round, None where it is unclear."""
    condition = BEFORE_MAIN.match(statement)
    start = condition.end() if condition else 0
    verb = VERB.search(statement, start)
    if UNCLEAR.search(statement) or not verb or BEFORE_VERB.search(statement[start : verb.start()]):
        return None
    turned = verb[1] if verb[2] or verb[3] else BANKS["verbs"][verb[1]]
    return statement[: verb.start()] + turned + statement[verb.end() :]


def changed_dose(sentence: str, rng: random.Random) -> tuple[str, str] | None:
    """The sentence with one amount changed, and the words round the right one; None without any."""
    amounts = list(AMOUNT.finditer(sentence))
    if not amounts:
        return None
    amount = rng.choice(amounts)
    value = float(amount[0].replace(",", "")) * rng.choice((0.1, 0.2, 0.5, 2, 3, 5, 10))
    if value < 1 and "." not in amount[0]:  # no tenth of a tablet
        value = float(amount[0].replace(",", "")) * 4
    before, after = sentence[: amount.start()], sentence[amount.end() :]
    near = [*before.split(" ")[-7:-1], before.split(" ")[-1] + amount[0] + after.split(" ")[0]]
    words = " ".join([*near, *after.split(" ")[1:7]])
    return f"{before}{value:,.4g}{after}", words


def _claims(id, sentences, statements, rng, dropped) -> list[Criterion]:
    """Up to ``STATEMENTS`` criteria, one a must-have; those first that some sentence does not touch."""
    texts = dict.fromkeys(Statement(s.kind, s.text.strip()) for s in statements if s.text.strip())
    dropped["statement: blank or repeated"] += len(statements) - len(texts)
    supported = [s for s in texts if max(overlap(s.text, each) for each in sentences) >= SUPPORTS]
    dropped["statement: no sentence supports it"] += len(texts) - len(supported)
    rng.shuffle(supported)
    supported.sort(key=lambda s: min(overlap(s.text, each) for each in sentences) >= TOUCHES)
    first = [s for s in supported if s.kind == "must_have"][:1]
    chosen = first + [s for s in supported if s not in first][: STATEMENTS - 1]
    dropped["statement: one of more than are taken"] += len(supported) - len(chosen)
    dimension = {"must_have": "proficiency", "nice_to_have": "excellence"}
    return [
        Criterion(
            id=short_hash(id, kind, text), dimension=dimension[kind], text=text, weight=0, kind=kind
        )
        for kind, text in chosen
    ]


def _built(id, sentences, claims, rng, half) -> tuple[list[_Twin], list[tuple[Criterion, str]]]:
    """Up to two kinds of the answer's own sentences: twins, and warnings with their sentence."""
    twins, warnings, used = [], [], set()

    def criterion(kind, text):
        text = rng.choice(BANKS["built"][kind][half]).format(text)
        return _criterion(id, kind, "safety", text)

    order = list(enumerate(sentences))
    rng.shuffle(order)
    for i, sentence in order:
        changed = changed_dose(sentence, rng)
        if changed and not used:
            used.add(i)
            about = criterion("changed_dose", changed[1])
            twins.append(_Twin(about, [sentence], [changed[0]], i, frozenset({i})))
    for claim in claims:
        of = frozenset(i for i, s in enumerate(sentences) if overlap(claim.text, s) >= SUPPORTS)
        denial = contradiction(claim.text) if claim.dimension == "proficiency" else None
        if denial and not of & used and not any(twin.denies for twin in twins):
            used |= of
            about = criterion("contradicted", claim.text)
            twins.append(_Twin(about, [claim.text], [denial], min(of), of, claim.id))
    for i, sentence in order:
        alone = all(overlap(sentence, s) < TOUCHES for j, s in enumerate(sentences) if j != i)
        if WARNS.search(sentence) and alone and i not in used and len(twins) + len(warnings) < 2:
            used.add(i)
            warnings.append((criterion("dropped_warning", sentence), sentence))
    return twins, warnings


def _of_bank(id: str, kind: str, half: str, sentences: int, rng: random.Random) -> _Twin:
    bank = BANKS["banks"][kind]
    about = _criterion(id, kind, bank["dimension"], rng.choice(bank["criterion"][half]))
    place = rng.uniform(-0.9, sentences - 0.1)
    return _Twin(about, bank["met"][half], bank["not_met"][half], place)


def _criterion(id: str, kind: str, dimension, text: str) -> Criterion:
    return Criterion(
        id=short_hash(id, kind, text), dimension=dimension, text=text, weight=0, kind=kind
    )


def _parts(sentences: Sequence[str], twins: Sequence[_Twin], rng: random.Random) -> list[_Part]:
    """One draw: some of the sentences, and for each twin one that meets, one that breaks, or none."""
    share = rng.uniform(0.3, 0.9) * min(1, LONGEST / sum(len(s.split()) for s in sentences))
    kept, parts = {i for i in range(len(sentences)) if rng.random() < share}, []
    for twin in twins:
        state = rng.choices(("met", "not_met", None), (0.4, 0.4, 0.2))[0]
        if state is None:
            continue
        kept -= twin.replaces
        settles, broken = {twin.criterion.id: state}, state == "not_met"
        if broken and twin.denies:
            settles[twin.denies] = "not_met"
        parts.append(_Part(twin.place, rng.choice(getattr(twin, state)), settles, not broken))
    parts += [_Part(i, sentences[i]) for i in kept]
    return sorted(parts)


def _draw(parts: Sequence[_Part], criteria, claimed: Mapping[str, str]) -> _Draw:
    text = " ".join(part.text for part in parts)
    verdicts = {c.id: _verdict(c, parts, claimed.get(c.id)) for c in criteria}
    return _Draw(text, verdicts, len(text.split()))


def _verdict(criterion: Criterion, parts: Sequence[_Part], claim: str | None) -> VerdictValue:
    settled = next((p.settles[criterion.id] for p in parts if criterion.id in p.settles), None)
    if claim is None:  # of a bank or a twin: silence is safe, and no merit
        return settled or ("met" if criterion.dimension == "safety" else "not_met")
    supported = any(p.supports and overlap(claim, p.text) >= SUPPORTS for p in parts)
    if settled:  # denied: not met, if nothing else says it
        return "unknown" if supported else settled
    if supported:
        return "met"
    return "unknown" if any(overlap(claim, p.text) >= TOUCHES for p in parts) else "not_met"


def _pairs(draws: Sequence[_Draw], criterion_id: str) -> list[int]:
    """Words by which the answer that meets is longer, for each pair that differs on the criterion."""
    met = [d.words for d in draws if d.verdicts[criterion_id] == "met"]
    not_met = [d.words for d in draws if d.verdicts[criterion_id] == "not_met"]
    return [a - b for a in met for b in not_met]


def _best(drawn: list[_Draw], criteria, rng: random.Random) -> list[_Draw] | None:
    """``ANSWERS`` of near equal length: most pairs, of which the longer is right in as many as not."""
    best, most = None, 0
    for _ in range(DRAWS):
        start = rng.choice(drawn).words if drawn else 0
        near = [d for d in drawn if 0 <= d.words - start <= TOLERANCE]
        if len(near) < ANSWERS:
            continue
        four = rng.sample(near, ANSWERS)
        value = 0.0
        for criterion in criteria:
            gaps = _pairs(four, criterion.id)
            value += len(gaps) - abs(sum((g > 0) - (g < 0) for g in gaps))
        if value > most:
            best, most = four, value
    return best
