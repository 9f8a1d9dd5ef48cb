"""Label Studio: the formats by hand, bad exports by name, and the real server on loopback."""

import json
import os
import re
import socket
import subprocess
import time
from functools import partial

import httpx
import pytest

import promedical_label_studio as label_studio
from promedical_utils.core.records import Criterion, Instruction, Message, Rubric
from promedical_utils.core.workspace import KitError, project_root
from promedical_utils.data.annotation.store import Store

WRITER = "writer-model-9"  # who wrote the draft: no task may name it


def instruction(name):
    turns = [
        Message(role="user", content="May I <b>take</b> Morlodor?\n"),
        Message(role="assistant", content="How much?"),
        Message(role="user", content="≥ 45 units, $text {{idx}}"),
    ]
    about = dict(category="therapy", specialty="cardiology", source="clinic (invented)")
    return Instruction(id=name, messages=turns, difficulty=5, **about)


def criterion(name, dimension, text, weight=0.0, kind="unspecified"):
    return Criterion(id=name, dimension=dimension, text=text, weight=weight, kind=kind)


def draft(name, extra=0):
    """Five criteria and ``extra`` more."""
    criteria = [
        criterion(f"{name}-dose", "proficiency", "States ≥ 45 units.", 0.3, WRITER),
        criterion(f"{name}-other", "proficiency", "Names Zelvar.", 0.7),
        criterion(f"{name}-tone", "excellence", "Is kind & clear."),
        criterion(f"{name}-avoid", "safety", "Does not advise Morlodor."),
        criterion(f"{name}-danger", "safety", "Names the danger sign."),
        *(criterion(f"{name}-{n}", "excellence", f"Makes point {n}.") for n in range(extra)),
    ]
    return Rubric(instruction_id=name, criteria=criteria, status="draft", round=1)


DRAFTS = [draft("i1"), draft("i2", extra=7)]
ASKED = {name: instruction(name) for name in ("i1", "i2")}


def result(field, kind, value):
    """One control as the page sends it."""
    number = re.search(r"^[a-z]+_(\d+)$", field)
    return {
        "value": {kind: value if kind == "number" else [value]},
        "id": "AfUngTRyC6",
        "from_name": field,
        "to_name": f"criterion_{number[1]}" if number else "conversation",
        "type": {"text": "textarea"}.get(kind, kind),
        "origin": "manual",
    }


# What a reviewer did on draft i1, in the order in which the page sends it: accept, edit of text and
# weight, edit of the dimension, reject, accept, two criteria added.
FILLED = [
    result("action_0", "choices", "accept"),
    result("action_1", "choices", "edit"),
    result("action_2", "choices", "edit"),
    result("action_3", "choices", "reject"),
    result("action_4", "choices", "accept"),
    result("weight_1", "number", 0.5),
    result("dimension_2", "choices", "proficiency"),
    result("weight_2", "number", 0.2),
    result("added_dimension_0", "choices", "proficiency"),
    result("added_dimension_2", "choices", "safety"),
    result("text_1", "text", "Names Zelvar first. "),
    result("text_2", "text", "Is kind & clear."),
    result("reason_3", "text", "Said twice."),
    result("added_text_0", "text", "Says when to return.\nAnd where."),
    result("added_text_2", "text", "Does not exceed 45 µg."),
    result("added_weight_0", "number", 0.1),
]


def decisions(reviewer):
    """FILLED as decisions, worked out by hand, less the ids of what was added."""
    dose, other, tone, avoid, danger = DRAFTS[0].criteria
    rows = [
        (dose.id, "accept", dose, ""),
        (other.id, "edit", criterion(other.id, "proficiency", "Names Zelvar first.", 0.5), ""),
        (tone.id, "edit", criterion(tone.id, "proficiency", "Is kind & clear.", 0.2), ""),
        (avoid.id, "reject", None, "Said twice."),
        (danger.id, "accept", danger, ""),
        ("", "add", ("proficiency", "Says when to return.\nAnd where.", 0.1), ""),
        ("", "add", ("safety", "Does not exceed 45 µg.", 0.0), ""),
    ]
    return [("i1", reviewer, *row) for row in rows]


def plain(found):
    """Decisions as tuples; added criteria without the id, which is the kit's own."""
    rows = []
    for d in found:
        name, after = d.criterion_id, d.criterion
        if d.action == "add":
            name, after = "", (after.dimension, after.text, after.weight)
        rows.append((d.instruction_id, d.reviewer, name, d.action, after, d.reason))
    return rows


def annotation(fields, account=2, **other):
    """One annotation in the shape of the server's JSON export."""
    return {
        "id": 5,
        "completed_by": account,
        "result": fields,
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": "2026-01-01T09:00:00Z",
        "lead_time": 16.752,
        "prediction": {},
        "result_count": len(fields),
        "import_id": None,
        "last_action": None,
        "task": 13,
        "project": 7,
        "updated_by": account,
        "parent_annotation": None,
    } | other


def exported(tmp_path, *annotations, copies=1):
    """A JSON export of draft i1 with these annotations, as a file."""
    tasks = label_studio.export_tasks(DRAFTS[:1], ASKED, tmp_path / "tasks.json")
    task = json.loads(tasks.read_text(encoding="utf-8"))[0]
    task |= {"id": 13, "annotations": annotations, "drafts": [], "predictions": [], "meta": {}}
    path = tmp_path / "export.json"
    path.write_text(json.dumps([task] * copies), encoding="utf-8")
    return path


def changed(**fields):
    """FILLED with fields replaced, or left out where None is given."""
    rows = {row["from_name"]: row for row in FILLED} | fields
    return [row for row in rows.values() if row]


def test_tasks_hold_conversation_and_criteria_and_not_who_wrote_them(tmp_path):
    first, again = (
        label_studio.export_tasks(DRAFTS, ASKED, tmp_path / name).read_text(encoding="utf-8")
        for name in ("a.json", "b.json")
    )
    assert first == again and WRITER not in first
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "b.json"]  # nothing temporary
    one, two = (task["data"] for task in json.loads(first))
    assert [one["instruction_id"], two["instruction_id"], len(two["criteria"])] == ["i1", "i2", 12]
    assert one["conversation"] == (
        "user: May I <b>take</b> Morlodor?\n\n\nassistant: How much?\n\n"
        "user: ≥ 45 units, $text {{idx}}"
    )
    assert one["criteria"][0] == {
        "id": "i1-dose",
        "dimension": "proficiency",
        "text": "States ≥ 45 units.",
        "weight": 0.3,
        "heading": "1. proficiency, weight 0.30",
    }
    assert one["criteria"][3]["heading"] == "4. safety"
    assert one["heading"] == "therapy, cardiology. Source: clinic (invented)"


@pytest.mark.parametrize(
    ("drafts", "says"),
    [
        ([draft("i1"), draft("i9")], "draft i9: no such instruction"),
        ([draft("i1"), draft("i1")], "two drafts of instruction i1"),
        ([], "no drafts to review"),
    ],
)
def test_drafts_that_cannot_be_reviewed_are_refused_and_nothing_is_written(tmp_path, drafts, says):
    with pytest.raises(KitError, match=says):
        label_studio.export_tasks(drafts, ASKED, tmp_path / "tasks.json")
    assert not list(tmp_path.iterdir())


def test_an_annotation_becomes_one_decision_a_criterion(tmp_path):
    found = label_studio.import_annotations(exported(tmp_path, annotation(FILLED)), DRAFTS)
    assert plain(found) == decisions("account-2")
    assert found[0].criterion.kind == WRITER  # what the task does not hold comes from the draft


def test_two_reviewers_by_number_never_by_name_and_ids_of_what_they_add(tmp_path):
    named = annotation(FILLED, {"id": 3, "email": "ann@clinic.example", "first_name": "Ann"})
    path = exported(tmp_path, annotation(FILLED), named)
    found = label_studio.import_annotations(path, DRAFTS)
    assert plain(found) == decisions("account-2") + decisions("account-3")
    added = {d.criterion_id for d in found if d.action == "add"}
    assert len(added) == 4 and not added & {c.id for c in DRAFTS[0].criteria}
    assert "ann@" not in str(found).lower()
    assert found == label_studio.import_annotations(path, DRAFTS)  # the same ids every time


def test_what_the_page_hides_does_not_count_and_a_moved_criterion_loses_its_weight(tmp_path):
    fields = changed(
        text_0=result("text_0", "text", "Typed, then accepted."),
        reason_4=result("reason_4", "text", "Rejected, then accepted."),
        added_text_1=result("added_text_1", "text", "Written, then unticked."),
        dimension_1=result("dimension_1", "choices", "safety"),
        weight_1=None,
    )
    found = label_studio.import_annotations(exported(tmp_path, annotation(fields)), DRAFTS)
    moved = found.pop(1).criterion
    assert (moved.dimension, moved.weight, moved.text) == ("safety", 0, "Names Zelvar first.")
    expected = decisions("account-2")
    del expected[1]
    assert plain(found) == expected


def test_skipped_annotations_are_counted_and_named_and_decide_nothing(tmp_path):
    begun = [result("text_0", "text", "x") | {"value": {"text": ["a", "b"]}}]  # nobody reads it
    path = exported(tmp_path, annotation(FILLED), annotation(begun, 3, was_cancelled=True))
    with pytest.warns(UserWarning, match="^1 skipped: task i1, account-3$"):
        found = label_studio.import_annotations(path, DRAFTS)
    assert {d.reviewer for d in found} == {"account-2"}


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("action_0", None, "i1-dose: action: Input should be 'accept'"),
        ("action_0", result("action_0", "choices", "maybe"), "i1-dose: action: Input should be"),
        ("reason_3", None, "i1-avoid: a rejected criterion needs a reason"),
        ("reason_3", result("reason_3", "text", " "), "i1-avoid: a rejected criterion needs"),
        ("dimension_2", result("dimension_2", "choices", "style"), "i1-tone: criterion.dimension"),
        ("weight_2", None, "i1-tone: criterion.weight: Input should be a valid number"),
        ("weight_1", result("weight_1", "number", 1.5), "i1-other: weight 1.5 is not from 0 to 1"),
        ("weight_1", result("weight_1", "text", "half"), "i1-other: criterion.weight: Input"),
        ("text_1", result("text_1", "text", " "), "i1-other: criterion.text: String should"),
        ("added_text_0", None, "i1-added-account-2-0: criterion.text: Field required"),
        ("added_weight_0", None, "i1-added-account-2-0: criterion.weight: Input should be a"),
        ("again", FILLED[0], "action_0 is given twice"),
        ("action_5", result("action_5", "choices", "accept"), "action_5: the page of this draft"),
        ("added_text_3", result("added_text_3", "text", "x"), "added_text_3: the page of this"),
        ("text_1", result("text_1", "text", "x") | {"value": {}}, "result 10.value: Dictionary"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_imported(tmp_path, field, value, says):
    path = exported(tmp_path, annotation(FILLED, 3), annotation(changed(**{field: value})))
    with pytest.raises(KitError) as error:
        label_studio.import_annotations(path, DRAFTS)
    assert f"export.json: task i1, account-2, {says}" in str(error.value)
    assert "Nothing was imported" in str(error.value) and "\n" not in str(error.value)


def test_a_text_that_stands_alone_is_read_like_one_in_a_list(tmp_path):
    alone = result("text_1", "text", "") | {"value": {"text": "Names Zelvar first. "}}
    found = label_studio.import_annotations(
        exported(tmp_path, annotation(changed(text_1=alone))), DRAFTS
    )
    assert plain(found) == decisions("account-2")


def test_an_edit_that_changes_nothing_is_no_edit(tmp_path):
    fields = changed(text_1=result("text_1", "text", "Names Zelvar."), weight_1=None)
    with pytest.raises(KitError, match="i1-other: the edit changes nothing"):
        label_studio.import_annotations(exported(tmp_path, annotation(fields)), DRAFTS)


def test_its_decisions_go_into_the_store_of_the_review_page_and_end_a_round(tmp_path):
    store = Store(tmp_path / "review.sqlite")
    round_ = partial(store.reviewed, DRAFTS[:1], reviewers=["ann"])
    with pytest.raises(KitError, match="1 of 1 drafts wait for review .ann 1.*Label Studio"):
        round_()
    drafts = store.drafts(waiting=True)
    assert drafts == DRAFTS[:1]
    path = exported(tmp_path, annotation(FILLED), annotation(FILLED, 3))
    for _ in range(2):  # imported again, nothing changes
        store.record(drafts, label_studio.import_annotations(path, drafts))
    assert [plain(made) for made in round_()] == [decisions("account-2")]
    [(other, finished)] = store.listed("account-3")
    assert finished
    assert plain(store.item(other).decisions.values()) == decisions("account-3")
    assert store.drafts(waiting=True) == []
    total = 0.3 + 0.5 + 0.2 + 0.1  # as the page left the weights
    assert store.gold()[0].criteria[0].weight == pytest.approx(0.3 / total)
    store.close()


def test_a_draft_that_was_finished_in_label_studio_is_not_handed_out_again(tmp_path):
    store = Store(tmp_path / "review.sqlite")
    store.queue(DRAFTS[0], "its weights were asked for twice")
    drafts = store.drafts(waiting=True)
    path = exported(tmp_path, annotation(FILLED))
    store.record(drafts, label_studio.import_annotations(path, drafts))
    assert store.next_item("eva") is None
    store.close()


def test_a_draft_that_breaks_a_rule_can_be_mended_but_not_accepted(tmp_path):
    rows = list(DRAFTS[0].criteria)
    rows[2] = rows[2].model_copy(update={"dimension": "style"})  # a draft that waits for review
    broken = DRAFTS[0].model_copy(update={"criteria": rows})
    path = label_studio.export_tasks([broken], ASKED, tmp_path / "export.json")
    task = json.loads(path.read_text(encoding="utf-8"))[0]

    def imported(fields):
        tasks = [task | {"annotations": [annotation(fields)]}]
        path.write_text(json.dumps(tasks), encoding="utf-8")
        return label_studio.import_annotations(path, [broken])

    assert plain(imported(FILLED)) == decisions("account-2")
    with pytest.raises(KitError, match="i1-tone: criterion.dimension: Input should be"):
        imported(changed(action_2=result("action_2", "choices", "accept")))


def test_wrong_tasks_are_named(tmp_path):
    done = annotation(FILLED)
    moved = draft("i1").model_copy(update={"criteria": draft("i1").criteria[::-1]})
    for annotations, copies, drafts, says in (
        ([done], 1, [draft("i2")], "task i1: no such draft"),
        ([done], 1, [moved], "task i1: no such draft; give those exported"),
        ([annotation([])], 1, DRAFTS, "task i1, account-2, i1-dose: action"),
    ):
        path = exported(tmp_path, *annotations, copies=copies)
        with pytest.raises(KitError, match=f"^export.json: .*{says}") as error:
            label_studio.import_annotations(path, drafts)
        assert "\n" not in str(error.value)


def test_what_is_wrong_with_a_review_as_a_whole_is_found_when_it_is_recorded(tmp_path):
    store = Store(tmp_path / "review.sqlite")
    done = annotation(FILLED)
    weighted = changed(dimension_2=None)  # and the weight stays
    for annotations, copies, says in (
        ([done, done], 1, "account-2, rubric of i1: i1-dose is decided twice"),
        ([done], 2, "account-2, rubric of i1: i1-dose is decided twice"),
        ([annotation(weighted)], 1, "account-2, rubric of i1, .* only proficiency criteria"),
    ):
        path = exported(tmp_path, *annotations, copies=copies)
        with pytest.raises(KitError, match=f"{says}.*Nothing was recorded"):
            store.record(DRAFTS, label_studio.import_annotations(path, DRAFTS))
    assert store.drafts() == []
    store.close()


def test_null_is_nothing_given_and_a_byte_order_mark_is_passed_over(tmp_path):
    nulls = [
        result("text_0", "text", None) | {"value": None},
        result("reason_1", "text", None) | {"value": {"text": None}},
        result("reason_2", "text", None) | {"value": {"text": [None]}},
    ]
    path = exported(
        tmp_path,
        annotation(FILLED + nulls, was_cancelled=None),
        annotation([], 3, was_cancelled=True) | {"result": None},
    )
    tasks = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps([*tasks, tasks[0] | {"annotations": None}]), encoding="utf-8-sig")
    with pytest.warns(UserWarning, match="^1 skipped: task i1, account-3$"):
        assert plain(label_studio.import_annotations(path, DRAFTS)) == decisions("account-2")
    path.write_text("[]", encoding="utf-16")  # as PowerShell redirects
    with pytest.raises(KitError, match="export.json: it is not UTF-8"):
        label_studio.import_annotations(path, DRAFTS)


def test_a_decision_that_is_null_is_no_decision(tmp_path):
    fields = changed(action_0=result("action_0", "choices", None))
    with pytest.raises(KitError, match="i1-dose: action: Input should be 'accept'"):
        label_studio.import_annotations(exported(tmp_path, annotation(fields)), DRAFTS)


def test_a_file_that_is_no_export_is_one_line(tmp_path):
    path = exported(tmp_path, annotation(FILLED), copies=2)
    whole = path.read_text(encoding="utf-8")
    for content, says in (
        (whole[:-40], "export.json: Invalid JSON"),
        ("", "export.json: Invalid JSON"),
        ("{}", "export.json: Input should be a valid array"),
        (whole.replace('"data"', '"date"'), "export.json: 0.data.instruction_id: Field required"),
        (whole.replace('"instruction_id"', '"i"'), "0.data.instruction_id: Field"),
        (whole.replace(' 2, "result"', ' null, "result"'), "0.annotations.0.completed_by"),
        (whole.replace('["accept"]', '["accept", "reject"]'), "account-2, result 0.value.choices"),
        (whole.replace('"action_0"', '"verdict_0"'), "account-2, result 0.from_name: String"),
    ):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(KitError, match=re.escape(says)) as error:
            label_studio.import_annotations(path, DRAFTS)
        assert "\n" not in str(error.value)
    with pytest.raises(KitError, match="missing none.json"):
        label_studio.import_annotations(tmp_path / "none.json", DRAFTS)


# ---------------------------------------------------------------- the real server

LEAD, PASSWORD = "lead@clinic.example", "not-a-secret-1"
AS_DOCUMENTED = {  # nothing is sent out, nobody signs up without a link
    "COLLECT_ANALYTICS": "false",
    "SENTRY_DSN": "",
    "FRONTEND_SENTRY_DSN": "",
    "LATEST_VERSION_CHECK": "false",
    "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
    "LABEL_STUDIO_USERNAME": LEAD,
    "LABEL_STUDIO_PASSWORD": PASSWORD,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a fresh Label Studio on loopback (SQLite, no telemetry), ended with the tests."""
    found = os.environ.get("PROMEDICAL_LABEL_STUDIO") or ".venv-label-studio/bin/label-studio"
    executable = project_root() / found
    if not executable.exists():
        pytest.skip(f"no Label Studio at {found}: `make label-studio` makes it (1 GB)")
    folder = tmp_path_factory.mktemp("label_studio")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        executable,
        "start",
        "--no-browser",
        "--data-dir",
        folder / "data",
        "--internal-host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)} | AS_DOCUMENTED
    log = folder / "log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_for(address, process, log)
            yield address
        finally:
            process.terminate()
            process.wait(30)


def wait_for(address, process, log):
    """Return once ``address`` answers; the first start makes the database, which takes a minute."""
    for _ in range(300):
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            if httpx.get(f"{address}/health").is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(1)
    pytest.fail(f"no answer in 300 s: {log.read_text()[-2000:]}")


def signed_up(server, path, email):
    """(client, personal access token) of an account that fills in the form at ``path``."""
    client = httpx.Client(base_url=server, headers={"Referer": server}, timeout=60)
    assert client.get(path).is_success
    form = {"email": email, "password": PASSWORD}
    form["csrfmiddlewaretoken"] = client.cookies["csrftoken"]
    signed = client.post(path, data=form)
    assert signed.status_code == 302, signed.status_code
    answer = client.post("/api/token/", headers={"X-CSRFToken": client.cookies["csrftoken"]})
    return client, answer.json()["token"]


@pytest.fixture(scope="module")
def lead(server):
    """(client, token) of the account that started the server; it has one token at a time."""
    return signed_up(server, "/user/login/", LEAD)


def calling(server, token):
    """Call(method, path, **httpx arguments) under the account of a personal access token."""
    client = httpx.Client(base_url=server, timeout=60)
    access = client.post("/api/token/refresh", json={"refresh": token}).json()["access"]
    client.headers["Authorization"] = f"Bearer {access}"

    def call(method, path, **arguments):
        answer = client.request(method, path, **arguments)
        assert answer.is_success, answer.text
        return answer

    return call


@pytest.mark.slow
def test_the_server_takes_tasks_and_gives_back_decisions(server, lead, tmp_path):
    with pytest.raises(AssertionError, match="403"):
        signed_up(server, "/user/signup/", "anybody@clinic.example")
    link = lead[0].get("/api/invite").json()["invite_url"]
    second = signed_up(server, link, "second@clinic.example")
    page = label_studio.labelling_configuration()
    first = calling(server, lead[1])
    broken = page.replace('<Text name="criterion_{{idx}}"', '<Text name="c_{{idx}}"')
    with pytest.raises(AssertionError, match="criterion_"):
        first("POST", "/api/projects/validate/", json={"label_config": broken})

    tasks = label_studio.export_tasks(DRAFTS, ASKED, tmp_path / "tasks.json").read_bytes()
    about = {"title": "Round 1", "label_config": page, "maximum_annotations": 2}
    project = first("POST", "/api/projects/", json=about).json()["id"]
    headers = {"Content-Type": "application/json"}
    first("POST", f"/api/projects/{project}/import", content=tasks, headers=headers)
    accounts = []
    for _, token in (lead, second):
        call = calling(server, token)
        accounts.append(f"account-{call('GET', '/api/current-user/whoami').json()['id']}")
        task = call("GET", f"/api/projects/{project}/next").json()
        assert task["data"] == json.loads(tasks)[0]["data"]
        assert task["annotations"] == []  # the second is not shown what the first decided
        call("POST", f"/api/tasks/{task['id']}/annotations/", json={"result": FILLED})
        other = call("GET", f"/api/projects/{project}/next").json()
        assert other["data"]["instruction_id"] == "i2"
    skip = {"result": [], "was_cancelled": True}  # the second account skips i2
    call("POST", f"/api/tasks/{other['id']}/annotations/", json=skip)

    export = tmp_path / "export.json"
    answer = first("GET", f"/api/projects/{project}/export", params={"exportType": "JSON"})
    export.write_bytes(answer.content)
    with pytest.warns(UserWarning, match=f"^1 skipped: task i2, {accounts[1]}$"):
        found = label_studio.import_annotations(export, DRAFTS)
    assert plain(found) == decisions(accounts[0]) + decisions(accounts[1])
    assert accounts[0] != accounts[1]
