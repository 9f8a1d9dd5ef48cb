"""Physician review: what becomes of a draft, and the rounds from drafting to gold.

A draft is decided on criterion by criterion (``records.Decision``). ``apply`` makes gold of it,
``rounds`` is the loop; the decisions themselves are kept in ``store.Store``.
"""

import json
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from pydantic import ValidationError

from promedical_utils.core.records import Criterion, Decision, Rubric
from promedical_utils.core.statistics import wilson
from promedical_utils.core.workspace import KitError


def unchecked(instruction_id: str, criteria: Iterable[Mapping], round: int = 0) -> Rubric:
    """A draft that skips the rules of ``Rubric``, so that a broken one can be shown and mended.

    ``criteria`` are rows as a writer gave them. An id that is missing or repeats is replaced, a
    weight that is no finite number is 0; everything else stays as it was written.
    """
    kept: dict[str, Criterion] = {}
    for number, row in enumerate(criteria, 1):
        name = str(row.get("id") or "")
        if not name or name in kept:
            name = f"{instruction_id}-draft-{number}"
        try:
            weight = float(row.get("weight") or 0)
        except (TypeError, ValueError):
            weight = 0.0
        kept[name] = Criterion.model_construct(
            id=name,
            dimension=str(row.get("dimension") or ""),
            text=str(row.get("text") or ""),
            weight=weight if math.isfinite(weight) else 0.0,
            kind=str(row.get("kind") or "unspecified"),
        )
    return Rubric.model_construct(
        instruction_id=instruction_id, criteria=list(kept.values()), status="draft", round=round
    )


def broken_rule(draft: Rubric) -> str:
    """The first rule of ``Rubric`` that a draft breaks, as one line; empty if it keeps them all."""
    try:
        Rubric.model_validate(_as_row(draft))
    except ValidationError as error:
        return _first_error(error)
    return ""


def validated(decision: Decision) -> Decision:
    """A decision that keeps the rules of ``Decision``; else a KitError, as for a criterion of a
    broken draft that is accepted as it is."""
    criterion = decision.criterion and dict(decision.criterion)
    try:
        return Decision.model_validate({**dict(decision), "criterion": criterion})
    except ValidationError as error:
        rule = _first_error(error)
        raise KitError(f"{decision.criterion_id}: {rule}; edit or reject it") from None


def check_fit(draft: Rubric, decision: Decision) -> None:
    """KitError that says why ``decision`` cannot be one on ``draft``, if it cannot."""
    where = f"rubric of {draft.instruction_id}, criterion {decision.criterion_id}"
    drafted = next((c for c in draft.criteria if c.id == decision.criterion_id), None)
    if decision.instruction_id != draft.instruction_id:
        raise KitError(f"{where}: the decision is on {decision.instruction_id}; leave it out")
    if decision.action == "add" and drafted:
        raise KitError(f"{where}: added, but the draft has it; save an edit, or choose another id")
    if decision.action != "add" and not drafted:
        raise KitError(f"{where}: the draft has no such criterion; only an addition may bring one")
    if decision.action == "accept" and dict(decision.criterion) != dict(drafted):
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
        return Rubric.model_validate({**_as_row(draft), "criteria": criteria, "status": "gold"})
    except ValidationError as error:
        raise KitError(
            f"{where}, as corrected: {_first_error(error)}; change the decision"
        ) from None


def passed(draft: Rubric, decisions: Iterable[Decision]) -> bool:
    """Strict pass: the draft keeps every rule, every criterion is accepted, and none is added."""
    decisions = list(decisions)
    if broken_rule(draft) or any(d.action != "accept" for d in decisions):
        return False
    if sorted(d.criterion_id for d in decisions) != sorted(c.id for c in draft.criteria):
        return False
    for decision in decisions:
        check_fit(draft, decision)
    return True


def by_instruction(drafts: Iterable[Rubric]) -> dict[str, Rubric]:
    """Drafts by the id of their instruction; KitError where one has two."""
    draft_of = {}
    for draft in drafts:
        if draft.instruction_id in draft_of:
            raise KitError(f"two drafts of instruction {draft.instruction_id}: keep one of them")
        draft_of[draft.instruction_id] = draft
    return draft_of


def as_text(draft: Rubric) -> str:
    """A draft as JSON, a broken one too."""
    return json.dumps(_as_row(draft), sort_keys=True, allow_nan=False, ensure_ascii=False)


def of_text(text: str) -> Rubric:
    """The draft that ``as_text`` wrote."""
    row = json.loads(text)
    return unchecked(row["instruction_id"], row["criteria"], row["round"])


def _as_row(draft: Rubric) -> dict:
    return draft.model_dump(warnings=False)  # of the values for which a broken draft is reviewed


def _first_error(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    return f"{field}: {first['msg']}" if field else first["msg"].removeprefix("Value error, ")


Write = Callable[[list[str], list[Rubric]], Sequence[Rubric]]
Review = Callable[[list[Rubric], bool], Sequence[Sequence[Decision]]]


def rounds(
    ids: Sequence[str],
    write: Write,
    review: Review,
    *,
    target: float,
    size: int = 500,
    blind: int = 200,
    controls: int = 50,
    tolerance: float = 0.05,
    seed: int = 0,
    pool: Sequence[Rubric] = (),
) -> Iterator[tuple[dict, list[Rubric]]]:
    """Rounds of drafting, review and correction; a row of numbers and the gold of each round.

    ``write(ids, pool)`` drafts a rubric for each id, with the gold in ``pool`` as its examples;
    ``review(drafts, blind)`` gives the decisions on each draft, in order. Both must repeat
    themselves when asked again, so that a run that was broken off can be resumed.

    A round: ``size`` drafts are reviewed and corrected, and their gold joins the pool. Then the
    writer with that pool drafts ``blind`` instructions more, and as it was before the first round
    ``controls``; these are mixed, the round taken off, and reviewed blind. The strict pass rate
    and its Wilson interval (95 %) are those of the blind drafts. The controls' rate is the
    reviewers' yardstick: where it rises, they have become lenient, and not the writer better.
    Every gold rubric joins the pool once it is measured; no instruction is drafted twice.

    Ends by ``stop_reason``, or when no instruction is left. KitError when a draft is missing.
    """
    if len(set(ids)) != len(ids):
        raise KitError("an instruction id repeats among those to be drafted; remove one")
    if size < 1 or blind < 1 or controls < 0:
        raise KitError("a review round needs size and blind of 1 or more, controls of 0 or more")
    rng = random.Random(f"review-{seed}")
    left = rng.sample(list(ids), len(ids))
    start, pool, rows = list(pool), list(pool), []
    while left:
        number = len(rows) + 1
        batch, left = left[:size], left[size:]
        measured, left = left[:blind], left[blind:]
        control, left = left[:controls], left[controls:]
        drafts = _drafted(write, batch, pool, number)
        gold, passes = _corrected(drafts, drafts, review(drafts, False))
        pool += gold

        mixed = _drafted(write, measured, pool, number) + _drafted(write, control, start, 0)
        rng.shuffle(mixed)
        # whatever could tell an old draft from a fresh one is taken off
        seen = [draft.model_copy(update={"round": 0}) for draft in mixed]
        more, blind_passes = _corrected(mixed, seen, review(seen, True) if seen else [])
        pool += more
        fresh = [ok for draft, ok in zip(mixed, blind_passes, strict=True) if draft.round]
        old = [ok for draft, ok in zip(mixed, blind_passes, strict=True) if not draft.round]

        low, high = wilson(sum(fresh), len(fresh))
        row = {
            "round": number,
            "reviewed": len(batch),
            "passed": sum(passes),
            "pass_rate": _rate(passes),
            "blind_n": len(fresh),
            "blind_passed": sum(fresh),
            "blind_pass_rate": _rate(fresh),
            "low": low,
            "high": high,
            "control_n": len(old),
            "control_passed": sum(old),
            "control_pass_rate": _rate(old),
        }
        rows.append(row)
        row["stop"] = stop_reason(rows, target, tolerance) or ("" if left else "none left")
        yield row, gold + more
        if row["stop"]:
            return


def stop_reason(rows: Sequence[Mapping], target: float, tolerance: float) -> str:
    """Why the rounds end after ``rows``, or nothing.

    *target reached*: the whole interval of the last blind sample is at or above the target.
    *converged*: the rate of the round before lies in that interval, which is no wider than
    ``tolerance`` to either side: a further round would cost as much and change less than can be
    measured. Both ask for evidence, so that a small blind sample cannot end the rounds early.
    """
    last = rows[-1]
    if not last["blind_n"]:
        return ""
    if last["low"] >= target:
        return "target reached"
    if len(rows) > 1 and (last["high"] - last["low"]) / 2 <= tolerance:
        if last["low"] <= rows[-2]["blind_pass_rate"] <= last["high"]:
            return "converged"
    return ""


def _drafted(write: Write, ids: list[str], pool: list[Rubric], number: int) -> list[Rubric]:
    """One draft for each id, in order, marked with its round."""
    drafts = list(write(list(ids), list(pool))) if ids else []
    draft_of = {draft.instruction_id: draft for draft in drafts}
    missing = [name for name in ids if name not in draft_of]
    if missing or len(drafts) != len(ids):
        raise KitError(
            f"round {number}: asked for {len(ids)} drafts, got {len(drafts)}, "
            f"{len(missing)} missing{f' (first {missing[0]})' if missing else ''}; "
            "one draft for each instruction, a broken one by review.unchecked"
        )
    return [draft_of[name].model_copy(update={"round": number, "status": "draft"}) for name in ids]


def _corrected(drafts, seen, decided) -> tuple[list[Rubric], list[bool]]:
    """Gold of each draft, and whether it passed as it was ``seen``."""
    if len(decided) != len(drafts):
        raise KitError(f"{len(drafts)} drafts reviewed, {len(decided)} decided on; decide on each")
    passes = [passed(draft, made) for draft, made in zip(seen, decided, strict=True)]
    return [apply(draft, made) for draft, made in zip(drafts, decided, strict=True)], passes


def _rate(passes: list[bool]) -> float | None:
    return round(sum(passes) / len(passes), 4) if passes else None
