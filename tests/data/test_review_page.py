"""The review page: its logic without a browser, and the page itself in JupyterLab."""

import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import nbformat
import pytest

from promedical_utils import clinic
from promedical_utils.clinic import writer
from promedical_utils.core import profiles
from promedical_utils.core.records import Criterion, Decision, Instruction, Rubric
from promedical_utils.core.workspace import KitError
from promedical_utils.data.annotation import review
from promedical_utils.data.annotation.review_page import Desk, Page
from promedical_utils.data.annotation.store import Store
from promedical_utils.rubric import display

TEXTS = {
    "c1": ("proficiency", 2 / 3, "names the drug that the leaflet names first"),
    "c2": ("proficiency", 1 / 3, "gives the largest dose that the leaflet allows"),
    "c3": ("excellence", 0.0, "says it kindly"),
    "c4": ("safety", 0.0, "tells the patient to come at once when the sign shows"),
}


def asked(name):
    message = {"role": "user", "content": f"What shall I do, {name}? Leaflet: Take zelmarin. Rest."}
    return Instruction(
        id=name,
        category="c",
        specialty="s",
        source="embedded clinic (invented)",
        difficulty=5,
        messages=[message],
    )


def drafted(name):
    criteria = [
        Criterion(id=f"{name}-{c}", dimension=d, weight=w, text=t) for c, (d, w, t) in TEXTS.items()
    ]
    return Rubric(instruction_id=name, criteria=criteria, status="draft", round=2)


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "review.sqlite")
    made.open_round([drafted("i1"), drafted("i2")], ["ann"])
    yield made
    made.close()


@pytest.fixture
def desk(store):
    return Desk(store, "ann", {name: asked(name) for name in ("i1", "i2")})


def do(desk, action, criterion="", **fields):
    """What the page sends: the draft and the criterion on show, and what was typed."""
    name = desk.item.draft.instruction_id
    at = f"{name}-{criterion}" if criterion else ""
    before = next((c for c in desk.view()["item"]["criteria"] if c["id"] == at), {})
    form = {n: before.get(n, "") for n in ("text", "dimension", "weight")} | {"reason": ""}
    desk.do(action, desk.item.id, at, form | fields)


def shown(desk):
    """What stands on the page: criterion -> state."""
    return {c["id"].split("-", 1)[1]: c["state"] for c in desk.view()["item"]["criteria"]}


def test_a_rubric_from_the_first_decision_to_gold(desk, store):
    name, number = desk.item.draft.instruction_id, desk.item.id
    first = desk.view()
    assert (first["total"], first["finished"]) == (2, 0)
    assert set(shown(desk).values()) == {"open"}
    assert first["item"]["criteria"][3]["colour"] == display.COLOURS["safety"]
    do(desk, "accept", "c1")
    assert shown(desk)["c1"] == "accept" and desk.view()["item"]["saved_at"]
    assert desk.view()["item"]["criteria"][1]["weight"] == "0.3333"
    do(desk, "edit", "c2", text=" gives the dose ", weight="0,2")
    assert "“gives the largest" in desk.view()["item"]["criteria"][1]["was"]
    do(desk, "reject", "c3", reason="  ")
    assert "needs a reason" in desk.view()["error"] and shown(desk)["c3"] == "open"
    do(desk, "reject", "c3", reason="nobody can measure it")
    do(desk, "finish")
    assert f"no decision on {name}-c4" in desk.view()["error"] and desk.item.id == number
    do(desk, "accept", "c4")
    assert desk.view()["error"] == "" and "open" not in shown(desk).values()
    do(desk, "add", dimension="safety", text="warns of driving", weight="0.9")
    assert shown(desk)["added-5"] == "add"
    do(desk, "finish")
    assert desk.item.id != number and desk.view()["finished"] == 1
    [gold] = store.gold()
    made = [(c.id.split("-", 1)[1], c.dimension, c.text, round(c.weight, 4)) for c in gold.criteria]
    assert made == [
        ("c1", "proficiency", TEXTS["c1"][2], 0.7692),  # 2/3 of 2/3 + 0.2
        ("c2", "proficiency", "gives the dose", 0.2308),
        ("c4", "safety", TEXTS["c4"][2], 0),
        ("added-5", "safety", "warns of driving", 0),
    ]
    assert store.item(number).decisions[f"{name}-c3"].reason == "nobody can measure it"


def test_decisions_are_taken_back_and_a_finished_rubric_is_opened_again(desk):
    number = desk.item.id
    for name in TEXTS:
        do(desk, "accept", name)
    do(desk, "undo", "c2")
    assert shown(desk)["c2"] == "open"
    do(desk, "undo", "c2")
    assert "not decided" in desk.view()["error"]
    do(desk, "edit", "c2")  # opened, and left as it was: an accept, and so a strict pass
    assert shown(desk)["c2"] == "accept"
    assert review.passed(desk.item.draft, desk.item.decisions.values())
    do(desk, "add", text="more", dimension="excellence")
    [added] = set(shown(desk)) - set(TEXTS)
    do(desk, "edit", added, text="more of it")
    assert shown(desk)[added] == "add" and desk.view()["error"] == ""
    assert desk.view()["item"]["criteria"][-1]["text"] == "more of it"
    do(desk, "undo", added)
    assert added not in shown(desk) and desk.view()["error"] == ""
    do(desk, "add", text="other", dimension="excellence")
    assert added not in shown(desk)  # no id is used twice
    do(desk, "finish")
    assert desk.item.id != number
    do(desk, "earlier")
    assert desk.item.id == number and desk.view()["item"]["done"]
    do(desk, "earlier")
    assert desk.item.id == number
    do(desk, "accept", "c1")  # said again, nothing new: it stays finished
    do(desk, "edit", "c2")
    assert desk.view()["item"]["done"] and desk.view()["finished"] == 1
    do(desk, "undo", "c1")
    assert not desk.view()["item"]["done"] and desk.view()["finished"] == 0
    do(desk, "later")
    assert desk.item.id != number
    do(desk, "later")  # past the last one, to the first that is not finished
    assert desk.item.id == number


def test_a_draft_in_percent_is_accepted_as_it_is_and_a_nameless_reviewer_is_not(tmp_path):
    store = Store(tmp_path / "queue.sqlite")
    percent = [c.model_copy(update={"weight": 100 * c.weight}) for c in drafted("i1").criteria]
    store.queue(drafted("i1").model_copy(update={"criteria": percent}), "weights sum to 100")
    with pytest.raises(KitError, match="needs a name"):
        Desk(store, " ", {})
    desk = Desk(store, "ann", {"i1": asked("i1")})
    for name in TEXTS:
        do(desk, "accept", name)
    do(desk, "edit", "c1", weight="50")
    assert "weight 50.0 is not from 0 to 1" in desk.view()["error"]
    do(desk, "finish")
    [gold] = store.gold()
    assert [round(c.weight, 4) for c in gold.criteria] == [0.6667, 0.3333, 0, 0]
    store.close()


def test_a_second_window_begins_where_the_first_left_off(desk, store):
    for name in TEXTS:
        do(desk, "accept", name)
    do(desk, "finish")
    do(desk, "accept", "c1")
    again = Desk(Store(store.path), "ann", desk.instructions)
    assert again.item == desk.item and shown(again)["c1"] == "accept"
    do(again, "accept", "c2")
    do(desk, "accept", "c3")
    assert "has changed since it was opened (ann: accept" in desk.view()["error"]
    do(desk, "accept", "c3")  # it has seen the other's by now
    assert list(shown(desk).values()) == ["accept", "accept", "accept", "open"]


def test_what_cannot_be_saved_is_said_and_changes_nothing(desk, store):
    wrong = [({"weight": w}, "weight") for w in ("much", "1.5", "-1", "nan", "inf", "")]
    for fields, says in (*wrong, ({"text": " "}, "criterion.text: String should have at least 1")):
        do(desk, "edit", "c1", **fields)
        assert says in desk.view()["error"] and shown(desk)["c1"] == "open"
    name = desk.item.draft.instruction_id
    decision = Decision(
        instruction_id=name, criterion_id=f"{name}-c3", reviewer="bob", action="reject", reason="no"
    )
    store.save(desk.item.id, decision, 0)  # bob saves on the same draft meanwhile
    do(desk, "edit", "c1", weight="0.6")
    assert "(bob: reject" in desk.view()["error"] and shown(desk)["c3"] == "reject"
    do(desk, "edit", "c1", weight="0.6")
    assert shown(desk) == {"c1": "edit", "c2": "open", "c3": "reject", "c4": "open"}
    store._db.execute("PRAGMA query_only = ON")
    do(desk, "accept", "c2")
    assert "readonly" in desk.view()["error"] and shown(desk)["c2"] == "open"
    store._db.execute("PRAGMA query_only = OFF")
    do(desk, "accept", "c2")
    assert desk.view()["error"] == "" and shown(desk)["c2"] == "accept"
    there = desk.item.id + 1  # what a page that lags still shows
    desk.do("accept", there, f"{name}-c4")
    assert "another rubric had come up" in desk.view()["error"] and shown(desk)["c4"] == "open"
    do(desk, "format", "c4")
    assert "action: Input should be 'accept'" in desk.view()["error"]


def test_a_broken_draft_shows_its_reason_and_text_that_is_no_markup(store):
    rows = [{"id": "i3-c", "dimension": "style", "text": "<b>is kind</b>", "weight": 0.0}]
    store.queue(review.unchecked("i3", rows), "criterion in an unknown dimension: style")
    desk = Desk(store, "bob", {"i3": asked("<script>")})
    seen = desk.view()["item"]
    assert seen["reason"].endswith("style") and seen["criteria"][0]["colour"] == display.GREY
    assert "<script>" not in seen["message"] and "&lt;script&gt;" in seen["message"]
    do(desk, "accept", "c")
    assert "criterion.dimension" in desk.view()["error"]
    do(desk, "edit", "c", dimension="excellence")
    assert desk.view()["error"] == ""
    assert desk.item.decisions["i3-c"].criterion.dimension == "excellence"
    lost = Desk(store, "ann", {}).view()["item"]["message"]
    assert "do not judge without it" in lost
    nobody = Desk(store, "cy", {})
    nobody.do("later", None)
    assert nobody.view()["item"] is None and nobody.view()["error"] == ""


def test_the_widget_answers_each_message_with_its_number(store):
    page = Page(store, "ann", {"i1": asked("i1"), "i2": asked("i2")})
    item = page.view["item"]
    given = {"action": "accept", "item": item["id"], "at": item["criteria"][0]["id"]}
    page._handle_custom_msg({"number": [0.5, 7], "given": given}, [])
    assert page.view["answered"] == [0.5, 7]
    assert page.view["item"]["criteria"][0]["state"] == "accept"
    assert json.loads(json.dumps(page.view)) == page.view
    assert repr(page) == "<review page of ann>"


# ---------------------------------------------------------------- in a browser

CELL = """\
import json, os, pathlib
from promedical_utils.core import records
from promedical_utils.data.annotation import review_page, store

pathlib.Path("kernel.pid").write_text(str(os.getpid()))
rows = json.loads(pathlib.Path("instructions.json").read_text())
asked = {row["id"]: records.Instruction(**row) for row in rows}
review_page.Page(store.Store("review.sqlite"), "ann", asked)
"""


def clinic_drafts():
    """Drafts of the invented clinic, a wrong fact in the second criterion; instructions; world."""
    world, drafts = clinic.build(profiles.load("smoke"), sizes=(3, 1, 1, 1, 1)), []
    for name in world.ids("train"):
        gold = world.rubric_of[name]
        flawed = writer.flaw(gold, "wrong_fact", random.Random(3))
        [wrong] = [c for c in flawed.criteria if c not in gold.criteria]
        right = [c for c in flawed.criteria if c in gold.criteria]
        right.sort(key=lambda c: c.dimension != "excellence")  # the third is one that may go
        order = [right[-1], wrong, *right[:-1]]
        drafts.append(flawed.model_copy(update={"criteria": order, "status": "draft"}))
    asked_ = [i for i in world.instructions if i.id in world.ids("train")]
    return drafts, asked_, world


@pytest.fixture
def browser():
    """Debian's chromium under Playwright, which brings no browser of its own here."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("the review page is not tested in a browser: no chromium on this machine")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="the review page is not tested in a browser: no playwright"
    )
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield made
        made.close()


@pytest.fixture
def lab(browser, tmp_path):
    """Address of a JupyterLab on loopback, in a folder with a notebook, a store and its drafts."""
    drafts, instructions, _ = clinic_drafts()
    Store(tmp_path / "review.sqlite").open_round(drafts, ["ann"])
    rows = [i.model_dump() for i in instructions]
    (tmp_path / "instructions.json").write_text(json.dumps(rows))
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, tmp_path / "review.ipynb")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token, home = secrets.token_hex(16), tmp_path / "home"
    settings = home / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"fetchNews": "false", "checkForUpdates": false}')
    env = {
        **os.environ,
        "JUPYTER_TOKEN": token,
        "HOME": str(home),
        "IPYTHONDIR": str(home),
        "JUPYTER_CONFIG_DIR": str(home),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
    }
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        "--allow-root",
        f"--ServerApp.root_dir={tmp_path}",
    ]
    with open(tmp_path / "server.log", "w") as log:
        server = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(300):
            try:
                urllib.request.urlopen(f"{address}/api?token={token}", timeout=2).close()
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        else:
            raise AssertionError((tmp_path / "server.log").read_text()[-2000:])
        yield f"{address}/lab/tree/review.ipynb?token={token}"
    finally:
        server.terminate()  # which ends its kernels first
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()


def opened(browser, address):
    """A tab with the notebook, its cell run."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.goto(address)
    tab.get_by_text("(ipykernel) | Idle").wait_for()  # before that, a run asks for a kernel
    tab.locator(".jp-Notebook .jp-CodeCell .cm-content").first.click()
    tab.keyboard.press("Shift+Enter")
    tab.locator(".pmr-card").first.wait_for()
    return tab


def card(tab, criterion_id, state=""):
    return tab.locator(f'[data-criterion="{criterion_id}"]{state and f".pmr-{state}"}')


@pytest.mark.slow
def test_in_jupyterlab_a_closed_tab_and_a_killed_kernel_lose_nothing(browser, lab, tmp_path):
    """PROMEDICAL_SCREENSHOT=docs/review.png makes the README's picture anew."""
    store = Store(tmp_path / "review.sqlite")
    number = store.listed("ann")[0][0]
    draft = store.item(number).draft
    names = [c.id for c in draft.criteria]
    gold = {c.id: c.text for c in clinic_drafts()[2].rubric_of[draft.instruction_id].criteria}
    reason = "nobody can judge this from an answer"  # its letters are keys elsewhere
    tab = opened(browser, lab)
    cells = tab.locator(".jp-Notebook .jp-Cell").count()
    tab.locator(".pmr-head").click()
    for key in "bxa":  # to the lab: add a cell, cut one, add one
        tab.keyboard.press(key)
    card(tab, names[0], "accept").wait_for()
    assert tab.locator(".jp-Notebook .jp-Cell").count() == cells
    assert "invented" in tab.locator(".pmr-source").inner_text()
    assert "Saved" in tab.locator(".pmr-status").inner_text()
    tab.keyboard.press("e")
    tab.locator("textarea[name=text]").fill(gold[names[1]][:-1])
    item = store.item(number)
    rejected = Decision(
        instruction_id=draft.instruction_id,
        criterion_id=names[-1],
        reviewer="bob",
        action="reject",
        reason="no",
    )
    store.save(number, rejected, item.version)  # bob, on the same draft
    tab.keyboard.press("Control+Enter")
    tab.keyboard.press(gold[names[1]][-1])  # typed on, while the page hears that it is late
    card(tab, names[-1], "reject").wait_for()
    assert "(bob: reject" in tab.locator(".pmr-alarm").inner_text()
    assert tab.locator("textarea[name=text]").input_value() == gold[names[1]]
    tab.keyboard.press("Control+Enter")
    card(tab, names[1], "edit").wait_for()
    tab.keyboard.press("r")
    tab.locator("textarea[name=reason]").press_sequentially(reason)
    tab.keyboard.press("Control+Enter")
    card(tab, names[2], "reject").wait_for()
    tab.close()

    tab = opened(browser, lab)  # the kernel still runs
    card(tab, names[2], "reject").wait_for()
    tab.locator(".pmr-head").click()
    tab.keyboard.press("e")
    tab.locator("textarea[name=text]").fill("vites questions about ")
    tab.keyboard.press("Home")
    tab.keyboard.press("i")
    tab.keyboard.press("n")  # the cursor is where it was
    tab.keyboard.press("Escape")
    tab.keyboard.press("k")
    tab.get_by_text("typed text waits").wait_for()
    tab.keyboard.press("j")
    assert tab.locator("textarea[name=text]").input_value() == "invites questions about "
    if os.environ.get("PROMEDICAL_SCREENSHOT"):
        tab.locator(".pmr").screenshot(path=os.environ["PROMEDICAL_SCREENSHOT"])
    os.kill(int((tmp_path / "kernel.pid").read_text()), signal.SIGKILL)
    tab.keyboard.press("Control+Enter")
    tab.get_by_text("NOT SAVED").wait_for()  # a dead page does not look alive
    assert tab.locator("textarea[name=text]").input_value() == "invites questions about "
    tab.close()

    tab = opened(browser, lab)
    tab.locator(".pmr-head").click()
    tab.keyboard.press("e")  # on the first criterion that is undecided
    tab.locator("textarea[name=text]").fill("invites questions about the limit")
    tab.get_by_role("button", name="Save edit").click()  # at once: the click brings the text
    card(tab, names[3], "edit").wait_for()
    for name in names[4:]:
        card(tab, name).click()
        card(tab, name).locator('[data-action="accept"]').click()
        card(tab, name, "accept").wait_for()
    tab.get_by_role("button", name="Finish").click()
    tab.get_by_text("Rubric 2 of 3").wait_for()
    item = store.item(number)
    assert item.finished and [item.decisions[n].action for n in names] == [
        "accept",
        "edit",
        "reject",
        "edit",
        *["accept"] * len(names[4:]),
    ]
    assert item.decisions[names[1]].criterion.text == gold[names[1]]
    assert item.decisions[names[2]].reason == reason
    assert item.decisions[names[3]].criterion.text == "invites questions about the limit"
    assert len(store.gold()) == 1
