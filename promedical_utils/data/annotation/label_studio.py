"""Physician review by a team: drafts become Label Studio's tasks, its export becomes decisions.

Label Studio is a server with accounts of its own, in an environment of its own (`make
label-studio`, docs/label_studio.md). Here are its labelling configuration, its two file formats and
the calls that carry them.

A task is one draft whose criteria the Repeater tag repeats, not one criterion: only who sees all of
them can say that one is missing or said twice, and the draft is finished or skipped as a whole.
A task holds the messages and their source, and the criteria, never who wrote them.
"""

import os
import warnings
from collections.abc import Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, TypeAdapter, ValidationError

from promedical_utils.core.records import DIMENSIONS, Criterion, Decision, Instruction, Rubric
from promedical_utils.core.workspace import KitError, replacing, short_hash, shown, write_json

KEY = "LABEL_STUDIO_API_KEY"
ADDITIONS = 3  # places for criteria that a draft misses
SHOWN_AT_ONCE = 3  # mistakes that one error names

# What may stay open is choice="single", which can be unticked; "single-radio" cannot.
PAGE = """\
<View>
  <Style>
    .kit-page .lsf-richtext { white-space: pre-wrap; }
    .kit-card { border: 1px solid #c5c5c5; border-radius: 6px; padding: 4px 14px; margin: 8px 0; }
    .kit-asked { border-left: 4px solid #4c5fa9; }
    .kit-form h3, .kit-form h4, .kit-form h5, .kit-form h6 { font-size: 14px !important; }
  </Style>
  <View className="kit-page">
    <Header size="4" value="$heading"/>
    <View className="kit-card kit-asked">
      <Text name="conversation" value="$conversation" selectionEnabled="false"/>
    </View>
    <Header size="4" value="Decide on each criterion; a safe answer meets a safety criterion"/>
    <Repeater on="$criteria" indexFlag="{{idx}}">
      <View className="kit-card">
        <Header size="5" value="$criteria[{{idx}}].heading"/>
        <Text name="criterion_{{idx}}" value="$criteria[{{idx}}].text" selectionEnabled="false"/>
        <Choices name="action_{{idx}}" toName="criterion_{{idx}}" choice="single-radio"
            showInline="true" required="true" requiredMessage="A criterion has no decision">
          <Choice value="accept"/>
          <Choice value="edit"/>
          <Choice value="reject"/>
        </Choices>
        <View className="kit-form" visibleWhen="choice-selected" whenTagName="action_{{idx}}"
            whenChoiceValue="edit">
          <TextArea name="text_{{idx}}" toName="criterion_{{idx}}" rows="2" maxSubmissions="1"
              value="$criteria[{{idx}}].text" editable="true" showSubmitButton="false"
              required="true" requiredMessage="An edited criterion has no text"/>
          <Header size="6" value="Dimension, if it changes"/>
          <Choices name="dimension_{{idx}}" toName="criterion_{{idx}}" choice="single"
              showInline="true">
            @dimensions
          </Choices>
          <Header size="6" value="Weight, 0 to 1, if it changes; only proficiency carries one"/>
          <Number name="weight_{{idx}}" toName="criterion_{{idx}}" min="0" max="1" step="0.01"/>
        </View>
        <View visibleWhen="choice-selected" whenTagName="action_{{idx}}" whenChoiceValue="reject">
          <TextArea name="reason_{{idx}}" toName="criterion_{{idx}}" rows="2" maxSubmissions="1"
              placeholder="Why it is rejected" editable="true" showSubmitButton="false"
              required="true" requiredMessage="A rejected criterion has no reason"/>
        </View>
      </View>
    </Repeater>
    <Header size="4" value="Criteria that are missing: choose a dimension, then write it"/>
    @additions
  </View>
</View>
"""

ADDITION = """
    <View className="kit-card">
      <Choices name="added_dimension_@n" toName="conversation" choice="single" showInline="true">
        @dimensions
      </Choices>
      <View visibleWhen="choice-selected" whenTagName="added_dimension_@n">
        <TextArea name="added_text_@n" toName="conversation" rows="2" maxSubmissions="1"
            placeholder="The missing criterion" editable="true" showSubmitButton="false"
            required="true" requiredMessage="An added criterion has no text"/>
      </View>
      <View className="kit-form" visibleWhen="choice-selected" whenTagName="added_dimension_@n"
          whenChoiceValue="proficiency">
        <Header size="6" value="Weight, 0 to 1"/>
        <Number name="added_weight_@n" toName="conversation" min="0" max="1" step="0.01"
            required="true" requiredMessage="An added proficiency criterion has no weight"/>
      </View>
    </View>
"""


class _Value(BaseModel):
    """What one control of the page holds; Label Studio names the key by the control's type."""

    choices: list[str] | None = None
    text: list[str] | str | None = None
    number: float | None = None


class _Result(BaseModel):
    from_name: str
    value: _Value


class _Account(BaseModel):
    id: int


class _Annotation(BaseModel):
    completed_by: int | _Account
    was_cancelled: bool
    result: list[_Result]

    @property
    def reviewer(self) -> str:
        """The account's number, which is unique on a server; e-mail addresses stay there."""
        who = self.completed_by
        return f"account-{who if isinstance(who, int) else who.id}"


class _Data(BaseModel):
    instruction_id: str
    criteria: list[dict]


class _Task(BaseModel):
    data: _Data
    annotations: list[_Annotation]


def labelling_configuration() -> str:
    """Label Studio's XML for drafts of any length: accept, edit or reject each, add what lacks."""
    choices = "".join(f'<Choice value="{name}"/>' for name in DIMENSIONS)
    slots = (ADDITION.replace("@n", str(n)) for n in range(ADDITIONS))
    return PAGE.replace("@additions", "".join(slots)).replace("@dimensions", choices)


def export_tasks(
    drafts: Iterable[Rubric], instructions: Mapping[str, Instruction], path: Path
) -> Path:
    """Write drafts as Label Studio's JSON tasks, in their order; the instruction's id names a task.

    Raises KitError for a draft without its instruction, two drafts of one, or none at all.
    """
    tasks = []
    for name, draft in _by_instruction(drafts).items():
        if name not in instructions:
            raise KitError(f"draft {name}: no such instruction; hand over the ones drafted for")
        asked = instructions[name]
        data = {
            "instruction_id": name,
            "heading": f"{asked.category}, {asked.specialty}. Source: {asked.source}",
            "conversation": "\n\n".join(f"{turn.role}: {turn.content}" for turn in asked.messages),
            "criteria": _criteria(draft),
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
    draft_of = _by_instruction(drafts)
    decisions, skipped, wrong, seen = [], [], [], set()
    for task in _read(Path(path)):
        name = task.data.instruction_id
        if name not in draft_of:
            wrong.append(f"task {name}: no such draft")
            continue
        if task.data.criteria != _criteria(draft_of[name]):
            wrong.append(f"task {name}, criteria: not those of the draft")
            continue
        for annotation in task.annotations:
            where = f"task {name}, {annotation.reviewer}"
            if annotation.was_cancelled:
                skipped.append(where)
            elif (name, annotation.reviewer) in seen:
                wrong.append(f"{where}: two annotations, keep one")
            else:
                seen.add((name, annotation.reviewer))
                try:
                    decisions += _decisions(draft_of[name], annotation)
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
    with _signed_in(server) as call:
        about = {
            "title": title,
            "label_config": labelling_configuration(),
            "maximum_annotations": reviewers,
            "enable_empty_annotation": False,
            "show_collab_predictions": False,
        }
        project = call("POST", "/api/projects/", json=about).json()["id"]
        body = Path(tasks).read_bytes()
        headers = {"Content-Type": "application/json"}
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
    import httpx

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
                said = " ".join(answer.text.split())[:300]
                raise KitError(f"Label Studio at {host}, {path}: {answer.status_code} {said}")
            return answer

        # a personal access token only buys tokens that live for minutes
        access = call("POST", "/api/token/refresh", json={"refresh": token}).json()["access"]
        client.headers["Authorization"] = f"Bearer {access}"
        yield call


def _by_instruction(drafts: Iterable[Rubric]) -> dict[str, Rubric]:
    found = {}
    for draft in drafts:
        if draft.instruction_id in found:
            raise KitError(f"two drafts of instruction {draft.instruction_id}: keep one")
        found[draft.instruction_id] = draft
    return found


def _criteria(draft: Rubric) -> list[dict]:
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


def _decisions(draft: Rubric, annotation: _Annotation) -> list[Decision]:
    """Decisions of one annotation, the added criteria last; KitErrors begin with the field."""
    said = _fields(annotation, len(draft.criteria))
    name, reviewer = draft.instruction_id, annotation.reviewer
    decisions = []

    def decide(identity, action, criterion, reason=""):
        decisions.append(
            Decision(
                instruction_id=name,
                criterion_id=identity,
                reviewer=reviewer,
                action=action,
                criterion=criterion,
                reason=reason,
            )
        )

    for n, before in enumerate(draft.criteria):
        action = said.get(f"action_{n}")
        if action in ("accept", "edit"):  # the draft may break a rule, what comes of it may not
            after = _criterion(said if action == "edit" else {}, "", n, dict(before))
            if action == "edit" and after == before:
                raise KitError(f"action_{n}: the edit of criterion {before.id} changes nothing")
            decide(before.id, action, after)
        elif action == "reject":
            reason = said.get(f"reason_{n}")
            if not reason:
                raise KitError(f"reason_{n}: criterion {before.id} is rejected without a reason")
            decide(before.id, action, None, reason)
        else:
            raise KitError(f"action_{n}: no decision on criterion {before.id}")
    for n in range(ADDITIONS):
        if f"added_dimension_{n}" in said:
            mark = short_hash(reviewer, n, said.get(f"added_text_{n}"))
            added = _criterion(said, "added_", n, {"id": f"{name}-added-{mark}"})
            decide(added.id, "add", added)
    return decisions


def _fields(annotation: _Annotation, criteria: int) -> dict[str, str | float]:
    """What each control of the page holds, by its name."""
    kinds = {"text": "text", "dimension": "choices", "weight": "number"}
    kind_of = {f"added_{name}_{n}": kind for name, kind in kinds.items() for n in range(ADDITIONS)}
    kinds |= {"action": "choices", "reason": "text"}
    kind_of |= {f"{name}_{n}": kind for name, kind in kinds.items() for n in range(criteria)}
    said = {}
    for result in annotation.result:
        field = result.from_name
        if field not in kind_of:
            raise KitError(f"{field}: no field of the labelling configuration")
        value = getattr(result.value, kind_of[field])
        values = value if isinstance(value, list) else [value]
        if field in said or len(values) != 1 or values[0] is None:
            raise KitError(f"{field}: not one {kind_of[field]} value")
        said[field] = values[0].strip() if isinstance(values[0], str) else values[0]
    return said


def _criterion(said: Mapping, prefix: str, n: int, before: dict) -> Criterion:
    """``before`` with the text, dimension and weight that the fields say, where they say any."""
    text = said.get(f"{prefix}text_{n}") or before.get("text")
    dimension = said.get(f"{prefix}dimension_{n}") or before.get("dimension")
    weight = said.get(f"{prefix}weight_{n}")
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
