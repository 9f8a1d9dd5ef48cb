"""Physician review by a team: drafts become Label Studio's tasks, its export becomes decisions.

Label Studio is a server with accounts of its own (docs/label_studio.md). Here are its two file
formats; page.xml.jinja is its page. A task is one draft with all its criteria, for only who
sees all of them can say that one is missing or said twice; it never says who wrote them.
"""

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from jinja2 import Template
from pydantic import AliasPath, BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError

from promedical_utils.core.records import DIMENSIONS, Decision, Instruction, Rubric, first_error
from promedical_utils.core.workspace import KitError, shown, write_json
from promedical_utils.data.annotation import review

ADDITIONS = 3  # places for criteria that a draft misses
CONTROL = r"^(added_)?(action|text|dimension|weight|reason)_\d+$"
ONE = Field(min_length=1, max_length=1)


class _Result(BaseModel):
    """What one control of the page holds; Label Studio names the key by the control's type."""

    from_name: Annotated[str, Field(pattern=CONTROL)]
    value: Annotated[dict[str, Annotated[list[str | None], ONE] | str | float | None], ONE] | None


class _Annotation(BaseModel):
    # the account's number, which is unique on a server; e-mail addresses stay there
    completed_by: Annotated[
        int, BeforeValidator(lambda by: by.get("id") if isinstance(by, Mapping) else by)
    ]
    was_cancelled: bool | None = None  # null, as below, is nothing given
    result: list[dict] | None  # checked where it counts: of a skipped one nothing does


class _Task(BaseModel):
    instruction_id: Annotated[str, Field(validation_alias=AliasPath("data", "instruction_id"))]
    criteria: Annotated[list[dict], Field(validation_alias=AliasPath("data", "criteria"))]
    annotations: list[_Annotation] | None


def labelling_configuration() -> str:
    """Label Studio's XML for drafts of any length: accept, edit or reject each, add what lacks."""
    page = Template(Path(__file__).with_name("page.xml.jinja").read_text(encoding="utf-8"))
    return page.render(names=DIMENSIONS, additions=ADDITIONS)


def export_tasks(
    drafts: Iterable[Rubric], instructions: Mapping[str, Instruction], path: Path
) -> Path:
    """Write drafts as Label Studio's JSON tasks, in their order; the instruction's id names a task.

    Raises KitError for no draft, a draft without its instruction, or two drafts of one.
    """
    tasks, draft_of = [], review.by_instruction(drafts)
    if not draft_of:
        raise KitError("no drafts to review: draft rubrics first (notebook 01)")
    for name, draft in draft_of.items():
        if name not in instructions:
            raise KitError(f"draft {name}: no such instruction; hand over the ones drafted for")
        asked = instructions[name]
        data = {
            "instruction_id": name,
            "heading": f"{asked.category}, {asked.specialty}. Source: {asked.source}",
            "conversation": "\n\n".join(f"{turn.role}: {turn.content}" for turn in asked.messages),
            "criteria": _shown_criteria(draft),
        }
        tasks.append({"data": data})
    return write_json(Path(path), tasks)


def import_annotations(path: Path, drafts: Iterable[Rubric]) -> list[Decision]:
    """Label Studio's JSON export as decisions, in the order of tasks, annotations and criteria.

    All or nothing: a KitError names task, account and criterion of what is wrong (a draft that is
    not known or has changed, no decision, an edit without a change, a rejection without a reason,
    an unknown dimension, a weight that cannot be); ``Store.record`` checks reviews as a whole. What
    the page hides does not count. Skipped annotations make no decision; a warning names them.
    """
    path, draft_of = Path(path), review.by_instruction(drafts)
    decisions, skipped = [], []
    try:
        tasks = TypeAdapter(list[_Task]).validate_json(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise KitError(f"missing {shown(path)}: export the project as JSON first") from None
    except ValueError as error:
        what = first_error(error) if isinstance(error, ValidationError) else "it is not UTF-8"
        raise KitError(f"{shown(path)}: {what}; export it again as JSON") from None
    for task in tasks:
        name = task.instruction_id
        if name not in draft_of or task.criteria != _shown_criteria(draft_of[name]):
            raise KitError(f"{shown(path)}: task {name}: no such draft; give those exported")
        for annotation in task.annotations or ():
            reviewer = f"account-{annotation.completed_by}"
            if annotation.was_cancelled:
                skipped.append(f"task {name}, {reviewer}")
                continue
            try:
                decisions += _decisions(draft_of[name], reviewer, annotation.result or [])
            except KitError as error:
                raise KitError(
                    f"{shown(path)}: task {name}, {reviewer}, {error}. Nothing was imported: mend "
                    "it in Label Studio and export again"
                ) from None
    if skipped:
        warnings.warn(f"{len(skipped)} skipped: {'; '.join(skipped)}", stacklevel=2)
    return decisions


def _shown_criteria(draft: Rubric) -> list[dict]:
    """The criteria as a task holds them."""
    rows = []
    for number, criterion in enumerate(draft.criteria, 1):
        row = criterion.model_dump(exclude={"kind"}, warnings=False)
        carries = row["weight"] or row["dimension"] == "proficiency"
        weight = f", weight {row['weight']:.2f}" if carries else ""
        rows.append(row | {"heading": f"{number}. {row['dimension']}{weight}"})
    return rows


def _decisions(draft: Rubric, reviewer: str, rows: list[dict]) -> list[Decision]:
    """Decisions of one annotation, the added criteria last; KitErrors begin with the criterion."""
    try:
        results = TypeAdapter(list[_Result]).validate_python(rows)
    except ValidationError as error:
        raise KitError(f"result {first_error(error)}") from None
    fields = {}
    for result in results:
        name, places = result.from_name, len(draft.criteria)
        if name in fields:
            raise KitError(f"{name} is given twice")
        if int(name.rsplit("_", 1)[1]) >= (ADDITIONS if name.startswith("added_") else places):
            raise KitError(f"{name}: the page of this draft has no such field")
        [value] = (result.value or {"": None}).values()
        value = value[0] if isinstance(value, list) else value
        if value is not None:
            fields[name] = value.strip() if isinstance(value, str) else value
    decisions = []
    for n, criterion in enumerate(draft.criteria):
        action = fields.get(f"action_{n}", "")
        given = _given(fields, "", n, criterion.dimension) if action == "edit" else {}
        reason = fields.get(f"reason_{n}", "") if action == "reject" else ""
        made = review.make_decision(draft, reviewer, criterion.id, action, given, reason)
        if action == "edit" and made.criterion == criterion:
            raise KitError(f"{criterion.id}: the edit changes nothing")
        decisions.append(made)
    for n in range(ADDITIONS):
        if f"added_dimension_{n}" in fields:
            name = f"{draft.instruction_id}-added-{reviewer}-{n}"
            given = _given(fields, "added_", n)
            decisions.append(review.make_decision(draft, reviewer, name, "add", given))
    return decisions


def _given(fields: Mapping, prefix: str, n: int, before: str = "") -> dict:
    """Text, dimension and weight that the page gives, where it gives any; ``before``: dimension."""
    controls = {name: f"{prefix}{name}_{n}" for name in ("text", "dimension", "weight")}
    given = {name: fields[control] for name, control in controls.items() if control in fields}
    if given.get("dimension", before) != before:  # its weight has to be given anew
        given.setdefault("weight", None if given["dimension"] == "proficiency" else 0.0)
    return given
