"""Physician review by a team: drafts become Label Studio's tasks, its export becomes decisions.

Label Studio is a server with accounts of its own, in an environment of its own (`make
label-studio`, docs/label_studio.md). Here are its two file formats and the calls that carry them;
label_studio.xml.jinja is its page. ``store.Store`` gives the drafts and records the decisions.

A task is one draft whose criteria the page repeats, not one criterion: only who sees all of
them can say that one is missing or said twice, and the draft is finished or skipped as a whole.
A task holds the messages and their source, and the criteria, never who wrote them.
"""

import os
import warnings
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import httpx
from jinja2 import Template
from pydantic import BaseModel, BeforeValidator, TypeAdapter, ValidationError

from promedical_utils.core.records import DIMENSIONS, Criterion, Decision, Instruction, Rubric
from promedical_utils.core.workspace import KitError, replacing, short_hash, shown, write_json
from promedical_utils.data.annotation.review import by_instruction

KEY = "LABEL_STUDIO_API_KEY"
ADDITIONS = 3  # places for criteria that a draft misses
SHOWN_AT_ONCE = 3  # mistakes that one error names
PAGE = Path(__file__).with_suffix(".xml.jinja")


class _Value(BaseModel):
    """What one control of the page holds; Label Studio names the key by the control's type."""

    choices: list[str] | None = None
    text: list[str] | str | None = None
    number: float | None = None


class _Result(BaseModel):
    from_name: str
    value: _Value


def _number(account):
    return account.get("id") if isinstance(account, Mapping) else account


class _Annotation(BaseModel):
    # the account's number, which is unique on a server; e-mail addresses stay there
    completed_by: Annotated[int, BeforeValidator(_number)]
    was_cancelled: bool
    result: list[_Result]


class _Data(BaseModel):
    instruction_id: str
    criteria: list[dict]


class _Task(BaseModel):
    data: _Data
    annotations: list[_Annotation]


def labelling_configuration() -> str:
    """Label Studio's XML for drafts of any length: accept, edit or reject each, add what lacks."""
    page = Template(PAGE.read_text(encoding="utf-8"))
    return page.render(names=DIMENSIONS, additions=ADDITIONS)


def export_tasks(
    drafts: Iterable[Rubric], instructions: Mapping[str, Instruction], path: Path
) -> Path:
    """Write drafts as Label Studio's JSON tasks, in their order; the instruction's id names a task.

    Raises KitError for a draft without its instruction, two drafts of one, or none at all.
    """
    tasks = []
    for name, draft in by_instruction(drafts).items():
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
    if not tasks:
        raise KitError("no drafts to review: draft rubrics first (notebook 01)")
    return write_json(Path(path), tasks)


def import_annotations(path: Path, drafts: Iterable[Rubric]) -> list[Decision]:
    """Label Studio's JSON export as decisions, in the order of tasks, annotations and criteria.

    All or nothing: KitError names task, account and field of what is wrong (a draft that is not
    known or has changed, a criterion without a decision, an edit without a change, a rejection
    without a reason, an unknown dimension, a weight that cannot be, two annotations of one
    account). What the page hides does not count. Skipped annotations make no decision; one
    warning counts and names them.
    """
    draft_of = by_instruction(drafts)
    decisions, skipped, wrong, seen = [], [], [], set()
    for task in _read(Path(path)):
        name = task.data.instruction_id
        if name not in draft_of:
            wrong.append(f"task {name}: no such draft")
            continue
        if task.data.criteria != _shown_criteria(draft_of[name]):
            wrong.append(f"task {name}, criteria: not those of the draft")
            continue
        for annotation in task.annotations:
            reviewer = f"account-{annotation.completed_by}"
            where = f"task {name}, {reviewer}"
            if annotation.was_cancelled:
                skipped.append(where)
            elif where in seen:
                wrong.append(f"{where}: two annotations, keep one")
            else:
                seen.add(where)
                try:
                    decisions += _decisions(draft_of[name], reviewer, annotation.result)
                except KitError as error:
                    wrong.append(f"{where}, {error}")
    if wrong:
        rest = f"; and {len(wrong) - SHOWN_AT_ONCE} more" if len(wrong) > SHOWN_AT_ONCE else ""
        raise KitError(
            f"{shown(path)}: {'; '.join(wrong[:SHOWN_AT_ONCE])}{rest}. Nothing was imported: "
            "mend annotations in Label Studio and export again, or hand over the drafts as exported"
        )
    if skipped:
        warnings.warn(f"{len(skipped)} skipped: {'; '.join(skipped)}", stacklevel=2)
    return decisions


def push(server: str, title: str, tasks: Path, reviewers: int = 1) -> int:
    """Make a project on ``server`` and import ``tasks`` into it; the project's number.

    Each task is offered to ``reviewers`` accounts, none of which is shown another's annotation
    while labelling. The token comes from the environment variable LABEL_STUDIO_API_KEY. Raises
    KitError with the server's words.
    """
    about = {
        "title": title,
        "label_config": labelling_configuration(),
        "maximum_annotations": reviewers,
        "enable_empty_annotation": False,
        "show_collab_predictions": False,
    }
    with _signed_in(server) as call:
        project = call("POST", "/api/projects/", json=about).json()["id"]
        body, headers = Path(tasks).read_bytes(), {"Content-Type": "application/json"}
        call("POST", f"/api/projects/{project}/import", content=body, headers=headers)
    return project


def pull(server: str, project: int, path: Path) -> Path:
    """Write the JSON export of ``project``: every task with an annotation, skipped ones too."""
    with _signed_in(server) as call, replacing(Path(path)) as temporary:
        answer = call("GET", f"/api/projects/{project}/export", params={"exportType": "JSON"})
        temporary.write_bytes(answer.content)
    return Path(path)


@contextmanager
def _signed_in(server: str):
    """Yield call(method, path, **httpx arguments) under the account of the access token."""
    token = os.environ.get(KEY)
    if not token:
        raise KitError(f"{KEY} is not set: make a personal access token under Account & Settings")
    host = urlsplit(server).hostname  # the whole address could hold a password
    with httpx.Client(base_url=server, timeout=120) as client:

        def call(method, path, **arguments):
            try:
                answer = client.request(method, path, **arguments)
            except httpx.HTTPError as error:
                what = type(error).__name__
                raise KitError(f"Label Studio at {host}: {what}; is it up?") from None
            if answer.is_error:
                words = " ".join(answer.text.split())[:300]
                raise KitError(f"Label Studio at {host}, {path}: {answer.status_code} {words}")
            return answer

        # a personal access token only buys tokens that live for minutes
        access = call("POST", "/api/token/refresh", json={"refresh": token}).json()["access"]
        client.headers["Authorization"] = f"Bearer {access}"
        yield call


def _shown_criteria(draft: Rubric) -> list[dict]:
    """The criteria as a task holds them."""
    rows = []
    for number, criterion in enumerate(draft.criteria, 1):
        row = {field: getattr(criterion, field) for field in ("id", "dimension", "text", "weight")}
        carries = row["weight"] or row["dimension"] == "proficiency"
        weight = f", weight {row['weight']:.2f}" if carries else ""
        rows.append(row | {"heading": f"{number}. {row['dimension']}{weight}"})
    return rows


def _read(path: Path) -> list[_Task]:
    try:
        return TypeAdapter(list[_Task]).validate_json(path.read_bytes())
    except FileNotFoundError:
        raise KitError(f"missing {shown(path)}: export the project as JSON first") from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place, *field = first["loc"] or ("",)
        task = f", task {place + 1}, field {'.'.join(map(str, field))}" if first["loc"] else ""
        raise KitError(f"{shown(path)}{task}: {first['msg']}; export it again as JSON") from None


def _decisions(draft: Rubric, reviewer: str, results: list[_Result]) -> list[Decision]:
    """Decisions of one annotation, the added criteria last; KitErrors begin with the field."""
    fields = _fields(results, len(draft.criteria))
    name, rows = draft.instruction_id, []
    for n, before in enumerate(draft.criteria):
        action, after, reason = fields.get(f"action_{n}"), None, ""
        if action not in ("accept", "edit", "reject"):
            raise KitError(f"action_{n}: no decision on criterion {before.id}")
        if action == "reject":
            reason = fields.get(f"reason_{n}")
            if not reason:
                raise KitError(f"reason_{n}: criterion {before.id} is rejected without a reason")
        else:  # the draft may break a rule, what comes of it may not
            after = _criterion(fields if action == "edit" else {}, "", n, dict(before))
            if action == "edit" and after == before:
                raise KitError(f"action_{n}: the edit of criterion {before.id} changes nothing")
        rows.append((before.id, action, after, reason))
    for n in range(ADDITIONS):
        if f"added_dimension_{n}" in fields:
            mark = short_hash(reviewer, n, fields.get(f"added_text_{n}"))
            added = _criterion(fields, "added_", n, {"id": f"{name}-added-{mark}"})
            rows.append((added.id, "add", added, ""))
    names = ("criterion_id", "action", "criterion", "reason")
    return [
        Decision(instruction_id=name, reviewer=reviewer, **dict(zip(names, row, strict=True)))
        for row in rows
    ]


def _fields(results: list[_Result], criteria: int) -> dict[str, str | float]:
    """What each control of the page holds, by its name."""
    kinds = {"text": "text", "dimension": "choices", "weight": "number"}
    kind_of = {f"added_{name}_{n}": kind for name, kind in kinds.items() for n in range(ADDITIONS)}
    kinds |= {"action": "choices", "reason": "text"}
    kind_of |= {f"{name}_{n}": kind for name, kind in kinds.items() for n in range(criteria)}
    fields = {}
    for result in results:
        name = result.from_name
        if name not in kind_of:
            raise KitError(f"{name}: no field of the labelling configuration")
        value = getattr(result.value, kind_of[name])
        values = value if isinstance(value, list) else [value]
        if name in fields or len(values) != 1 or values[0] is None:
            raise KitError(f"{name}: not one {kind_of[name]} value")
        fields[name] = values[0].strip() if isinstance(values[0], str) else values[0]
    return fields


def _criterion(fields: Mapping, prefix: str, n: int, before: dict) -> Criterion:
    """``before`` with the text, dimension and weight that the fields say, where they say any."""
    text = fields.get(f"{prefix}text_{n}") or before.get("text")
    dimension = fields.get(f"{prefix}dimension_{n}") or before.get("dimension")
    weight = fields.get(f"{prefix}weight_{n}")
    if not text:
        raise KitError(f"{prefix}text_{n}: a criterion needs a text")
    if dimension not in DIMENSIONS:
        raise KitError(f"{prefix}dimension_{n}: {dimension!r} is none of {', '.join(DIMENSIONS)}")
    if weight is None and dimension == before.get("dimension"):
        weight = before["weight"]
    if dimension == "proficiency" and (weight is None or not 0 <= weight <= 1):
        raise KitError(f"{prefix}weight_{n}: a proficiency criterion needs a weight from 0 to 1")
    if dimension != "proficiency" and weight:
        raise KitError(f"{prefix}weight_{n}: only proficiency carries a weight, set 0")
    return Criterion(**before | {"text": text, "dimension": dimension, "weight": weight or 0.0})
