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
    made.open_round([drafted("i1"), drafted("i2")], ["ann"], seed=1)
    yield made
    made.close()


@pytest.fixture
def desk(store):
    return Desk(store, "ann", {name: asked(name) for name in ("i1", "i2")})


def shown(desk):
    """What stands on the page: criterion -> state."""
    return {c["id"].split("-", 1)[1]: c["state"] for c in desk.view()["item"]["criteria"]}


def here(desk):
    return desk.view()["item"]["at"].split("-", 1)[1]


def test_a_rubric_from_the_first_key_to_gold(desk, store):
    name, number = desk.item.draft.instruction_id, desk.item.id
    first = desk.view()
    assert (first["total"], first["finished"], first["item"]["left"]) == (2, 0, 4)
    assert first["item"]["criteria"][3]["colour"] == display.COLOURS["safety"]
    desk.do("accept")
    assert here(desk) == "c2" and shown(desk)["c1"] == "accept"
    desk.do("edit")
    form = desk.view()["item"]["form"]
    assert (form["form"], form["weight"], form["text"]) == ("edit", "0.3333", TEXTS["c2"][2])
    desk.do("save", fields={"text": "gives the dose", "weight": "0,2", "dimension": "proficiency"})
    assert here(desk) == "c3" and "“gives the largest" in desk.view()["item"]["criteria"][1]["was"]
    desk.do("reject")
    desk.do("save", fields={"reason": "  "})
    assert "say why" in desk.view()["error"] and shown(desk)["c3"] == "open"
    desk.do("save", fields={"reason": "nobody can measure it"})
    desk.do("finish")
    assert f"no decision on {name}-c4" in desk.view()["error"] and desk.item.id == number
    desk.do("accept")
    assert desk.view()["error"] == "" and desk.view()["item"]["left"] == 0
    desk.do("add")
    desk.do("save", fields={"dimension": "safety", "text": " warns of driving ", "weight": "0.9"})
    assert shown(desk)["added-1"] == "add"
    desk.do("finish")
    assert desk.item.id != number and desk.view()["finished"] == 1
    [gold] = store.gold()
    made = [(c.id.split("-", 1)[1], c.dimension, c.text, round(c.weight, 4)) for c in gold.criteria]
    assert made == [
        ("c1", "proficiency", TEXTS["c1"][2], 0.7692),  # 2/3 of 2/3 + 0.2
        ("c2", "proficiency", "gives the dose", 0.2308),
        ("c4", "safety", TEXTS["c4"][2], 0),
        ("added-1", "safety", "warns of driving", 0),
    ]
    reasons = [d.reason for d in store.decisions() if d.action == "reject"]
    assert reasons == ["nobody can measure it"]


def test_keys_move_undo_and_go_back_to_a_finished_rubric(desk):
    number = desk.item.id
    for key, place in (
        ("next", "c2"),
        ("next", "c3"),
        ("previous", "c2"),
        ("previous", "c1"),
        ("previous", "c1"),
    ):
        desk.do(key)
        assert here(desk) == place
    for _ in range(4):
        desk.do("accept")
    desk.do("select", at=desk.item.draft.criteria[1].id)
    desk.do("undo")
    assert shown(desk)["c2"] == "open" and here(desk) == "c2"
    desk.do("undo")
    assert "not decided" in desk.view()["error"]
    desk.do("edit")
    desk.do("save", fields={})  # opened, and left as it was: an accept, and so a strict pass
    assert shown(desk)["c2"] == "accept"
    assert review.passed(desk.item.draft, desk.item.decisions.values())
    desk.do("add")
    desk.do("save", fields={"text": "more", "dimension": "excellence"})
    desk.do("select", at=desk.item.draft.instruction_id + "-added-1")
    desk.do("reject")  # an addition is taken back, not rejected
    assert "added-1" not in shown(desk) and desk.view()["error"] == ""
    desk.do("finish")
    assert desk.item.id != number
    desk.do("earlier")
    assert desk.item.id == number and desk.view()["item"]["done"]
    desk.do("undo")
    assert not desk.view()["item"]["done"] and desk.view()["finished"] == 0


def test_reopened_it_stands_where_it_was_half_typed_text_included(desk, store):
    desk.do("later")
    desk.do("accept")
    desk.do("edit")
    desk.do("type", fields={"text": "half ty", "weight": "0.3"})
    desk.do("next")
    desk.do("add")
    desk.do("type", fields={"text": "half an addition"})
    assert desk.view()["said"] == "typed text kept"
    other = Store(store.path)
    again = Desk(other, "ann", desk.instructions)
    assert "is closed by this one" in again.view()["said"]
    assert (again.item.id, here(again)) == (desk.item.id, "added-1")
    assert again.view()["item"]["form"]["text"] == "half an addition"
    again.do("finish")
    assert "typed but not saved" in again.view()["error"]
    again.do("cancel")
    assert "added-1" not in shown(again)
    again.do("select", at=again.item.draft.criteria[1].id)
    form = again.view()["item"]["form"]
    assert (form["text"], form["weight"], form["dimension"]) == ("half ty", "0.3", "proficiency")
    desk.do("type", fields={"text": "late"})  # the old window
    assert desk.view()["closed"] and "signed in elsewhere" in desk.view()["error"]
    again.do("save", fields={"text": "invites questions about the limit"})
    saved = other.item(again.item.id)
    assert saved.decisions[f"{saved.draft.instruction_id}-c2"].action == "edit"


def test_what_cannot_be_saved_leaves_the_typed_text(desk, store):
    desk.do("edit")
    wrong = [({"weight": w}, "a number from 0 to 1") for w in ("much", "1.5", "-1", "nan")]
    for fields, says in (*wrong, ({"text": " ", "weight": "1"}, "no text")):
        desk.do("save", fields=fields)
        assert says in desk.view()["error"] and shown(desk)["c1"] == "open"
    bob = store.sign_in("bob")  # saves on the same draft meanwhile
    name, text = desk.item.draft.instruction_id, "what ann had typed"
    decision = Decision(
        instruction_id=name, criterion_id=f"{name}-c3", reviewer="bob", action="reject", reason="no"
    )
    store.save(bob, desk.item.id, decision, 0)
    desk.do("save", fields={"text": text, "weight": "0.6"})
    assert "(bob: reject" in desk.view()["error"] and shown(desk)["c3"] == "reject"
    assert desk.view()["item"]["form"]["text"] == text
    desk.do("type", fields={"text": text})
    assert "(bob: reject" in desk.view()["error"]  # it stays while she types on
    desk.do("save", fields={})
    assert shown(desk) == {"c1": "edit", "c2": "open", "c3": "reject", "c4": "open"}
    store._db.execute("PRAGMA query_only = ON")
    desk.do("accept")
    assert "readonly" in desk.view()["error"] and shown(desk)["c2"] == "open"
    store._db.execute("PRAGMA query_only = OFF")
    desk.do("accept")
    assert desk.view()["error"] == "" and shown(desk)["c2"] == "accept"
    there = desk.item.id + 1  # what a page that lags still shows
    desk.do("accept", item=there, at=f"{name}-c4")
    assert "another rubric had come up" in desk.view()["error"] and shown(desk)["c4"] == "open"
    desk.do("accept", item=desk.item.id, at=f"{name}-c4")
    assert shown(desk)["c4"] == "accept"
    desk.do("format")
    assert "nothing that this page does" in desk.view()["error"]


def test_a_broken_draft_shows_its_reason_and_text_that_is_no_markup(store):
    rows = [{"id": "c", "dimension": "style", "text": "<b>is kind</b>", "weight": 0}]
    store.queue(review.unchecked("i3", rows), "criterion in an unknown dimension: style")
    desk = Desk(store, "bob", {"i3": asked("<script>")})
    seen = desk.view()["item"]
    assert seen["reason"].endswith("style") and seen["criteria"][0]["colour"] == display.GREY
    assert "<script>" not in seen["message"] and "&lt;script&gt;" in seen["message"]
    desk.do("accept")
    assert "criterion.dimension" in desk.view()["error"]
    desk.do("edit")
    desk.do("save", fields={"dimension": "excellence"})
    assert desk.view()["error"] == ""
    assert desk.item.decisions["c"].criterion.dimension == "excellence"
    lost = Desk(store, "ann", {}).view()["item"]["message"]
    assert "do not judge without it" in lost
    assert Desk(store, "cy", {}).view()["item"] is None


def test_the_widget_answers_each_message_with_its_number(store):
    page = Page(store, "ann", {"i1": asked("i1"), "i2": asked("i2")})
    page._handle_custom_msg({"number": [0.5, 7], "action": "accept"}, [])
    assert page.view["answered"] == [0.5, 7] and page.view["item"]["left"] == 3
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
    bob, item = store.sign_in("bob"), store.item(number)
    rejected = Decision(
        instruction_id=draft.instruction_id,
        criterion_id=names[-1],
        reviewer="bob",
        action="reject",
        reason="no",
    )
    store.save(bob, number, rejected, item.version)
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

    tab = opened(browser, lab)  # the kernel still runs: this window takes over
    card(tab, names[2], "reject").wait_for()
    assert "is closed by this one" in tab.locator(".pmr-status").inner_text()
    tab.locator(".pmr-head").click()
    tab.keyboard.press("e")
    tab.locator("textarea[name=text]").fill("vites questions about ")
    tab.keyboard.press("Home")
    tab.keyboard.press("i")
    tab.get_by_text("typed text kept").wait_for()
    tab.keyboard.press("n")  # the cursor is where it was
    kept = {"text": ""}
    while kept["text"] != "invites questions about ":
        tab.wait_for_timeout(50)
        kept = store.item(number).typed[names[3]]
    if os.environ.get("PROMEDICAL_SCREENSHOT"):
        tab.locator(".pmr").screenshot(path=os.environ["PROMEDICAL_SCREENSHOT"])
    os.kill(int((tmp_path / "kernel.pid").read_text()), signal.SIGKILL)
    tab.locator("textarea[name=text]").press_sequentially("lost")
    tab.get_by_text("NOT SAVED").wait_for()  # a dead page does not look alive
    tab.close()

    tab = opened(browser, lab)
    form = tab.locator("textarea[name=text]")
    assert form.input_value() == "invites questions about "
    form.fill("invites questions about the limit")
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
