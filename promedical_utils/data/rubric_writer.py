"""Drafting rubrics: examples from the gold pool, the rules of a draft, one repair, then the queue.

The writer is shown the corrected rubrics of the most similar instructions (dynamic few-shot). A
draft that breaks a rule is sent back once with the rules that it broke; one that still breaks any
is queued for physicians, and nothing of it is used before.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from promedical_utils.core.records import Criterion, Instruction, Rubric
from promedical_utils.core.words import TOKEN, words
from promedical_utils.core.workspace import read_yaml
from promedical_utils.data.annotation import review
from promedical_utils.data.curation import embeddings
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


def broken_rules(draft: Draft) -> list[str]:
    """Every rule that a draft breaks, in words that its writer can act on; empty if none."""
    broken, criteria = [], draft.criteria
    if not FEWEST <= len(criteria) <= MOST:
        broken.append(f"{len(criteria)} criteria; write {FEWEST} to {MOST}")
    for number, criterion in enumerate(criteria, 1):
        broken += [f"criterion {number}: {rule}" for rule in _broken(criterion)]
    said = [frozenset(TOKEN.findall(c.text.casefold())) - FILLERS for c in criteria]
    for number, own in enumerate(said):
        if (first := said.index(own)) < number:
            broken.append(f"criteria {first + 1} and {number + 1} say the same; keep one")
    total = sum(c.weight for c in criteria if c.dimension == "proficiency")
    if not abs(total - 1) <= WEIGHTS_OFF:  # a NaN is off, too
        broken.append(
            f"the weights of the proficiency criteria sum to {total:.3f}; they must sum to 1"
        )
    return broken


def _broken(c: DraftedCriterion) -> list[str]:
    broken, length = [], len(words(c.text))
    if not SHORTEST <= length <= LONGEST:
        broken.append(f"{length} words; write {SHORTEST} to {LONGEST}")
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
    instructions = [*(i for i, _ in pool), *asked]
    texts = ["\n".join(m.content for m in instruction.messages) for instruction in instructions]
    vectors = embeddings.embed(texts)
    known, queries = vectors[: len(pool)], vectors[len(pool) :]
    near = np.argsort(-(queries @ known.T), axis=1, kind="stable")[:, : EXAMPLES + 1]
    chosen = []
    for instruction, row in zip(asked, near, strict=True):
        others = [pool[n] for n in row if pool[n][0].id != instruction.id][:EXAMPLES]
        chosen.append([(i, r.criteria) for i, r in reversed(others)])
    return chosen


def write(
    roles: Roles, asked: Sequence[Instruction], pool: Sequence[tuple[Instruction, Rubric]]
) -> tuple[list[Rubric], dict[str, list[str]]]:
    """A draft of each of ``asked``, in order, and by instruction id why physicians must write or
    mend it: that draft is as it came (``review.unchecked``), empty where there was none."""
    shown = examples(asked, pool)
    first = roles.write(asked, shown)
    broken = {n: broken_rules(answer.value) for n, answer in enumerate(first) if answer.value}
    broken = {n: rules for n, rules in broken.items() if rules}
    second = roles.write(
        [asked[n] for n in broken],
        [shown[n] for n in broken],
        [(first[n].value, rules) for n, rules in broken.items()],
    )
    again = dict(zip(broken, second, strict=True))
    drafts, queued = [], {}
    for n, instruction in enumerate(asked):
        last = again.get(n, first[n])
        if last.value:
            reasons = broken_rules(last.value)
        else:
            reasons = [*broken.get(n, ()), "repair: " * (n in again) + last.reason]
        if reasons:
            queued[instruction.id] = reasons
            roles.drafted["unanswered"] += 1
            came = last.value or first[n].value
            criteria = came.model_dump()["criteria"] if came else []
            drafts.append(review.unchecked(instruction.id, criteria))
        else:
            roles.drafted["repaired" if n in again or last.asks > 1 else "valid"] += 1
            drafts.append(rubric(last.value, instruction.id))
    return drafts, queued
