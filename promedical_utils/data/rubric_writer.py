"""Drafting rubrics: examples from the gold pool, the rules of a draft, one repair, then the queue.

The writer is shown the corrected rubrics of the most similar instructions (dynamic few-shot). A
draft that breaks a rule is sent back once with the rules that it broke; one that still breaks any
is queued for physicians with the reasons, and nothing of it is used before.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from promedical_utils.core.records import Criterion, Instruction, Rubric
from promedical_utils.core.workspace import read_yaml
from promedical_utils.data.curation import embeddings
from promedical_utils.data.endpoints import OUTCOMES
from promedical_utils.data.roles import Draft, DraftedCriterion, Roles

FEWEST, MOST = 5, 12
SHORTEST, LONGEST = 2, 60  # words of a criterion
WEIGHTS_OFF = 0.02  # what rounding may leave of the weights' sum; then they are scaled to 1
FILLERS = frozenset(("the", "a", "an", "that", "it", "is"))  # without which texts are compared
EXAMPLES = 3
_LISTS = read_yaml(Path(__file__).with_name("phrasing.yaml"))
_PHRASES = {name: rf"({'|'.join(phrases)})\b" for name, phrases in _LISTS.items()}
POINTS_ELSEWHERE = re.compile(rf"\b{_PHRASES['elsewhere']}", re.IGNORECASE)
NAMES_VIOLATION = re.compile(rf"(the (answer|response) )?{_PHRASES['violation']}", re.IGNORECASE)
TURNED = re.compile(rf"\b{_PHRASES['turned']}", re.IGNORECASE)


@dataclass(frozen=True)
class Queued:
    """An instruction whose rubric physicians must write or mend, and why; ``draft`` as it came."""

    instruction_id: str
    reasons: tuple[str, ...]
    draft: Draft | None = None


@dataclass(frozen=True)
class Written:
    """Drafts that keep every rule, those that do not, and how many were asked for again, then
    right."""

    rubrics: list[Rubric]
    queued: list[Queued]
    repaired: int

    @property
    def outcomes(self) -> dict[str, int]:
        """As ``roles.Roles.outcomes`` has them; unanswered is what was queued."""
        counts = (len(self.rubrics) - self.repaired, self.repaired, len(self.queued))
        return dict(zip(OUTCOMES, counts, strict=True))


def broken_rules(draft: Draft) -> list[str]:
    """Every rule that a draft breaks, in words that its writer can act on; empty if none."""
    broken, criteria = [], draft.criteria
    if not FEWEST <= len(criteria) <= MOST:
        broken.append(f"{len(criteria)} criteria; write {FEWEST} to {MOST}")
    for number, criterion in enumerate(criteria, 1):
        broken += [f"criterion {number}: {rule}" for rule in _broken(criterion)]
    words = [frozenset(re.findall(r"\w+", c.text.casefold())) - FILLERS for c in criteria]
    for number, own in enumerate(words):
        if (first := words.index(own)) < number:
            broken.append(f"criteria {first + 1} and {number + 1} say the same; keep one")
    total = sum(c.weight for c in criteria if c.dimension == "proficiency")
    if not abs(total - 1) <= WEIGHTS_OFF:  # a NaN is off, too
        broken.append(
            f"the weights of the proficiency criteria sum to {total:.3f}; they must sum to 1"
        )
    return broken


def _broken(c: DraftedCriterion) -> list[str]:
    broken, words = [], len(c.text.split())
    if not SHORTEST <= words <= LONGEST:
        broken.append(f"{words} words; write {SHORTEST} to {LONGEST}")
    if elsewhere := POINTS_ELSEWHERE.search(c.text):
        broken.append(f"{elsewhere[0]!r} points to something else; a criterion must stand alone")
    if c.dimension == "proficiency" and not c.weight > 0:
        broken.append(f"weight {c.weight}; a proficiency criterion has one above 0")
    if c.dimension != "proficiency" and c.weight != 0:
        broken.append(f"weight {c.weight}; only proficiency criteria carry a weight")
    if c.dimension == "safety" and NAMES_VIOLATION.match(c.text) and not TURNED.search(c.text):
        broken.append(
            "names the violation; phrase it so that met is safe (does not ..., avoids ...)"
        )
    return broken


def _text(instruction: Instruction) -> str:
    return "\n".join(m.content for m in instruction.messages)


def rubric(draft: Draft, instruction_id: str) -> Rubric:
    """A draft that keeps the rules as a record; its weights are scaled to sum to 1 exactly."""
    total, criteria = sum(c.weight for c in draft.criteria), []
    for n, c in enumerate(draft.criteria, 1):
        about = {"dimension": c.dimension, "text": c.text.strip(), "weight": c.weight / total}
        criteria.append(Criterion(id=f"{instruction_id}-c{n:02}", **about))
    return Rubric(instruction_id=instruction_id, criteria=criteria, status="draft", round=0)


def examples(
    asked: Sequence[Instruction], pool: Sequence[tuple[Instruction, Rubric]]
) -> list[list[tuple[Instruction, list[Criterion]]]]:
    """For each instruction the gold criteria of the pool's ``EXAMPLES`` most similar instructions.

    The most similar one stands last, next to the question. An instruction is never its own example.
    """
    if not pool:
        return [[] for _ in asked]
    known = embeddings.embed([_text(i) for i, _ in pool])
    queries = embeddings.embed([_text(i) for i in asked])
    near = np.argsort(-(queries @ known.T), axis=1, kind="stable")[:, : EXAMPLES + 1]
    chosen = []
    for instruction, row in zip(asked, near, strict=True):
        others = [pool[n] for n in row if pool[n][0].id != instruction.id][:EXAMPLES]
        chosen.append([(i, r.criteria) for i, r in reversed(others)])
    return chosen


def write(
    roles: Roles, asked: Sequence[Instruction], pool: Sequence[tuple[Instruction, Rubric]]
) -> Written:
    """Drafts of all ``asked``, each valid or queued: none is left out, none is used half-right."""
    shown = examples(asked, pool)
    rubrics, queued, repaired = [], [], 0
    first = roles.write(asked, shown)
    checked = {n: broken_rules(answer.value) for n, answer in enumerate(first) if answer.value}
    broken = {n: rules for n, rules in checked.items() if rules}
    second = roles.write(
        [asked[n] for n in broken],
        [shown[n] for n in broken],
        [(first[n].value, rules) for n, rules in broken.items()],
    )
    again = dict(zip(broken, second, strict=True))
    for n, (instruction, answer) in enumerate(zip(asked, first, strict=True)):
        last = again.get(n, answer)
        if last.value is None:
            reason = f"repair: {last.reason}" if n in again else last.reason
            queued.append(Queued(instruction.id, (*broken.get(n, ()), reason), answer.value))
        elif n in again and (rules := broken_rules(last.value)):
            queued.append(Queued(instruction.id, tuple(rules), last.value))
        else:
            rubrics.append(rubric(last.value, instruction.id))
            repaired += n in again or last.asks > 1
    return Written(rubrics, queued, repaired)
