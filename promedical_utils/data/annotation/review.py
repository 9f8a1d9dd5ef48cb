"""Physician review: what becomes of a draft, and the rounds from drafting to gold.

A draft is decided on criterion by criterion (``records.Decision``); ``store`` keeps the decisions.
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from pydantic import ValidationError

from promedical_utils.core.records import Criterion, Decision, Rubric, first_error
from promedical_utils.core.statistics import wilson
from promedical_utils.core.workspace import KitError

TOLERANCE = 0.05  # half the width of an interval that is narrow enough to show convergence


def unchecked(instruction_id: str, criteria: Iterable[Mapping], round: int = 0) -> Rubric:
    """A draft that skips the rules of ``Rubric``, so that a broken one can be shown and mended.

    A criterion without an id is given one; a weight that is no finite number is 0.
    """
    kept = []
    for number, row in enumerate(criteria, 1):
        weight = row["weight"] if math.isfinite(row["weight"]) else 0.0
        fields = {"id": f"{instruction_id}-draft-{number}"} | dict(row) | {"weight": weight}
        kept.append(Criterion.model_construct(**fields))
    fields = {"instruction_id": instruction_id, "criteria": kept, "round": round}
    return Rubric.model_construct(**fields, status="draft")


def broken_rule(draft: Rubric) -> str:
    """The first rule of ``Rubric`` that a draft breaks, as one line; empty if it keeps them all."""
    try:
        Rubric.model_validate(draft.model_dump(warnings=False))
    except ValidationError as error:
        return first_error(error)
    return ""


def make_decision(
    draft: Rubric, reviewer: str, criterion_id: str, action: str, given: Mapping = {}, reason=""
) -> Decision:
    """A person's decision: the drafted criterion with the fields that were ``given``, none for a
    rejection. A KitError names the broken rule."""
    drafted = next((dict(c) for c in draft.criteria if c.id == criterion_id), {"id": criterion_id})
    about = {"instruction_id": draft.instruction_id, "criterion_id": criterion_id}
    about["criterion"] = None if action == "reject" else drafted | dict(given)
    try:
        made = Decision(**about, reviewer=reviewer, action=action, reason=reason)
    except ValidationError as error:
        raise KitError(f"{criterion_id}: {first_error(error)}") from None
    if action != "accept" and made.criterion and not made.criterion.weight <= 1:
        raise KitError(f"{criterion_id}: weight {made.criterion.weight} is not from 0 to 1")
    return made


def check_fit(draft: Rubric, decision: Decision) -> None:
    """KitError that says why ``decision`` cannot be one on ``draft``, if it cannot."""
    where = f"rubric of {draft.instruction_id}, criterion {decision.criterion_id}"
    drafted = next((c for c in draft.criteria if c.id == decision.criterion_id), None)
    if decision.instruction_id != draft.instruction_id:
        raise KitError(f"{where}: the decision is on {decision.instruction_id}; leave it out")
    if (decision.action == "add") == (drafted is not None):
        has = "has it already" if drafted else "has no such criterion"
        raise KitError(f"{where}: the draft {has}; an addition brings a new one, nothing else does")
    if decision.action == "accept" and decision.criterion != drafted:
        raise KitError(f"{where}: accepted, yet not as the draft has it; save it as an edit")


def apply(draft: Rubric, decisions: Iterable[Decision]) -> Rubric:
    """The corrected rubric, status ``gold``: edits in place, additions last, rejections gone.

    Weights that no longer sum to 1 are divided by their sum: a reviewer sets ratios, not shares.
    KitError when a criterion is undecided or decided twice, when a decision does not fit the
    draft, or when the result breaks a rule of ``Rubric``.
    """
    where = f"rubric of {draft.instruction_id}"
    outcome: dict[str, Decision | None] = {c.id: None for c in draft.criteria}
    for decision in decisions:
        check_fit(draft, decision)
        if outcome.get(decision.criterion_id):
            raise KitError(f"{where}: {decision.criterion_id} is decided twice; keep one decision")
        outcome[decision.criterion_id] = decision
    missing = [name for name, decision in outcome.items() if not decision]
    if missing:
        raise KitError(f"{where}: no decision on {', '.join(missing)}; accept, edit or reject each")
    criteria = [dict(d.criterion) for d in outcome.values() if d.criterion]
    total = math.fsum(c["weight"] for c in criteria)
    if total > 0 and abs(total - 1) > 1e-6:
        criteria = [{**c, "weight": c["weight"] / total} for c in criteria]
    try:
        return Rubric.model_validate({**dict(draft), "criteria": criteria, "status": "gold"})
    except ValidationError as error:
        what = first_error(error)
        raise KitError(f"{where}, as corrected: {what}; change the decision") from None


def passed(draft: Rubric, decisions: Iterable[Decision]) -> bool:
    """Strict pass: the draft keeps every rule, every criterion is accepted, and none is added."""
    decisions = list(decisions)
    accepted = {d.criterion_id: d.criterion for d in decisions if d.action == "accept"}
    whole = len(accepted) == len(decisions) and accepted == {c.id: c for c in draft.criteria}
    return whole and not broken_rule(draft)


def by_instruction(drafts: Iterable[Rubric]) -> dict[str, Rubric]:
    """Drafts by the id of their instruction; KitError where one has two."""
    draft_of = {}
    for draft in drafts:
        if draft.instruction_id in draft_of:
            raise KitError(f"two drafts of instruction {draft.instruction_id}: keep one of them")
        draft_of[draft.instruction_id] = draft
    return draft_of


def rounds(
    ids: Sequence[str],
    write: Callable[[list[str], list[Rubric]], list[Rubric]],
    review: Callable[[list[Rubric]], list[list[Decision]]],
    *,
    target: float,
    size: int,
    blind: int,
    controls: int,
    seed: int = 0,
) -> Iterator[tuple[dict, list[Rubric]]]:
    """Rounds of drafting, review and correction; a row of numbers and the gold of each round.

    ``write(ids, pool)`` drafts a rubric for each id, in order, with the gold in ``pool`` as its
    examples; ``review(drafts)`` gives the decisions on each draft, in order. Both must repeat
    themselves when asked again, so that a run that was broken off can be resumed.

    A round: ``size`` drafts are reviewed and corrected, and their gold joins the pool. The writer
    then drafts ``blind`` instructions more with that pool, and ``controls`` with none; these are
    mixed and reviewed blind. The strict pass rate and its Wilson interval (95 %) are the blind
    drafts'; where the controls' rises, too, reviewers have become lenient.

    Ends by ``stop_reason``, or when no instruction is left.
    """
    rng = random.Random(f"review-{seed}")
    left = rng.sample(list(ids), len(ids))
    pool, rows = [], []
    while left:
        number = len(rows) + 1
        batch, left = left[:size], left[size:]
        measured, left = left[:blind], left[blind:]
        control, left = left[:controls], left[controls:]
        drafts = _of_round(number, write(batch, list(pool)))
        gold, passes = _corrected(drafts, review(drafts))
        pool += gold
        mixed = _of_round(number, write(measured, list(pool))) + _of_round(0, write(control, []))
        rng.shuffle(mixed)
        # whatever could tell an old draft from a fresh one is taken off
        more, blind_passes = _corrected(mixed, review(_of_round(0, mixed)))
        pool += more
        fresh = [ok for draft, ok in zip(mixed, blind_passes, strict=True) if draft.round]
        old = [ok for draft, ok in zip(mixed, blind_passes, strict=True) if not draft.round]

        row = {"round": number, **_counts(passes, "reviewed", "passed", "pass_rate")}
        row |= _counts(fresh, "blind_n", "blind_passed", "blind_pass_rate")
        row["low"], row["high"] = wilson(sum(fresh), len(fresh))
        row |= _counts(old, "control_n", "control_passed", "control_pass_rate")
        rows.append(row)
        row["stop"] = stop_reason(rows, target) or ("" if left else "none left")
        yield row, gold + more
        if row["stop"]:
            return


def stop_reason(rows: Sequence[Mapping], target: float) -> str:
    """Why the rounds end after ``rows``, or nothing.

    *target reached*: the whole interval of the last blind sample is at or above the target.
    *converged*: the rate of the round before lies in that interval, which is no wider than
    ``TOLERANCE`` to either side: a further round would cost as much and change less than can be
    measured. Both ask for evidence, so that a small blind sample cannot end the rounds early.
    """
    last = rows[-1]
    if not last["blind_n"]:
        return ""
    if last["low"] >= target:
        return "target reached"
    if len(rows) > 1 and (last["high"] - last["low"]) / 2 <= TOLERANCE:
        if last["low"] <= rows[-2]["blind_pass_rate"] <= last["high"]:
            return "converged"
    return ""


def _of_round(number: int, drafts: Iterable[Rubric]) -> list[Rubric]:
    return [draft.model_copy(update={"round": number, "status": "draft"}) for draft in drafts]


def _corrected(drafts: list[Rubric], decided) -> tuple[list[Rubric], list[bool]]:
    """Gold of each draft, and whether it passed as it was drafted."""
    reviewed = list(zip(drafts, decided, strict=True))
    return [apply(*one) for one in reviewed], [passed(*one) for one in reviewed]


def _counts(passes: list[bool], n: str, passed: str, rate: str) -> dict:
    share = round(sum(passes) / len(passes), 4) if passes else None
    return {n: len(passes), passed: sum(passes), rate: share}
