"""The client of the endpoints, against the clinic's server: what fails, what it costs, what is
kept."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from helpers.clinic_server import FAULTS, Server
from helpers.endpoints_clinic import played, profile, roles, tasks
from pydantic import BaseModel, ConfigDict

from promedical_utils.core.profiles import Role
from promedical_utils.core.workspace import KitError
from promedical_utils.data.endpoints import (
    ASKS,
    Answers,
    BudgetSpent,
    Endpoint,
    Request,
    content_of,
)


@pytest.fixture(scope="module")
def clinic():
    return played()


def said(rows):
    """(candidate, criterion) -> verdict of nested verdicts; fails on a doubled one."""
    flat = [(v.candidate_id, v.criterion_id, v.verdict) for task in rows for v in task]
    found = {(a, c): verdict for a, c, verdict in flat}
    assert len(found) == len(flat)
    return found


@pytest.fixture(scope="module")
def plain(clinic, tmp_path_factory):
    """What the judge says where nothing fails."""
    with Server(clinic) as server:
        return said(
            roles(server.url, tmp_path_factory.mktemp("plain")).judge(tasks(clinic.world, 12))
        )


def test_a_second_run_asks_nothing_even_of_another_address(clinic, tmp_path, plain):
    asked = tasks(clinic.world, 12)
    with Server(clinic) as server:
        assert said(roles(server.url, tmp_path).judge(asked)) == plain
        assert server.requests == len(asked) == 36  # one request a response, whatever its criteria
    again = roles("http://127.0.0.1:9/v1", tmp_path)  # nobody listens there
    assert said(again.judge(asked)) == plain
    assert again.answers.ledger()["judge"]["requests"] == 36


def test_with_thirty_percent_of_faults_no_verdict_is_lost_doubled_or_turned_into_met(
    clinic, tmp_path, plain
):
    with Server(clinic, faults=0.3, slow=0.3) as server:
        asking = roles(server.url, tmp_path, timeout=0.25)
        found = said(asking.judge(tasks(clinic.world, 12)))
        assert server.requests > 40  # some were tried again
    assert found.keys() == plain.keys()
    wrong = {key for key, verdict in found.items() if verdict not in (plain[key], "unknown")}
    assert not wrong
    unknown = sum(found[key] != plain[key] for key in found)
    assert unknown <= 0.1 * len(found)  # ASKS unreadable answers in a row are seldom


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_that_never_ends_is_unknown_on_every_criterion(clinic, tmp_path, kind):
    asked = tasks(clinic.world, 1)
    with Server(clinic, faults=1.0, slow=0.3, kinds=(kind,)) as server:
        asking = roles(server.url, tmp_path, retries=1, timeout=0.1 if kind == "timeout" else 5.0)
        rows = asking.judge(asked)
        expected = ASKS if kind in ("empty", "truncated", "malformed", "foreign", "not_json") else 2
        assert server.requests == 3 * expected
    assert [len(row) for row in rows] == [len(t.criteria) for t in asked]
    assert {v.verdict for row in rows for v in row} == {"unknown"}
    assert all(v.rationale for row in rows for v in row)
    assert asking.generators == ["warm", "terse", "between"]


def test_the_request_cap_is_kept_to_the_request_and_the_next_run_goes_on(clinic, tmp_path, plain):
    asked = tasks(clinic.world, 12)
    with Server(clinic) as server:
        with pytest.raises(
            BudgetSpent, match=r"cap of 10 requests.*roles\.judge\.requests.*; 10 answers are kept"
        ):
            roles(server.url, tmp_path, requests=10).judge(asked)
        assert server.requests == 10
        with pytest.raises(BudgetSpent):  # the cap is on the whole of what the file has seen
            roles(server.url, tmp_path, requests=10).judge(asked)
        assert server.requests == 10
        assert said(roles(server.url, tmp_path, requests=100).judge(asked)) == plain
        assert server.requests == 36


def test_the_token_budget_is_not_passed(clinic, tmp_path):
    with Server(clinic) as server:
        asking = roles(server.url, tmp_path, tokens=20_000)
        with pytest.raises(BudgetSpent, match="cap of 20000 tokens"):
            asking.judge(tasks(clinic.world, 12))
        spent = asking.answers.spent("judge")[1]
        assert 0 < spent <= 20_000 and 0 < server.requests < 36


def test_the_key_comes_from_the_environment_and_is_written_nowhere(clinic, tmp_path, monkeypatch):
    asked = tasks(clinic.world, 1)
    with Server(clinic, key="sk-very-secret") as server:
        monkeypatch.delenv("CLINIC_KEY", raising=False)
        with pytest.raises(KitError, match="environment variable CLINIC_KEY is not set"):
            roles(server.url, tmp_path, key="CLINIC_KEY").judge(asked)
        monkeypatch.setenv("CLINIC_KEY", "sk-wrong")
        with pytest.raises(KitError, match="HTTP 401") as caught:
            roles(server.url, tmp_path, key="CLINIC_KEY").judge(asked)
        assert "sk-wrong" not in str(caught.value)
        monkeypatch.setenv("CLINIC_KEY", "sk-\u201cquoted\u201d")  # no header can carry it
        with pytest.raises(ValueError, match="codec can't encode"):  # nor is it an unknown verdict
            roles(server.url, tmp_path, key="CLINIC_KEY").judge(asked)
        monkeypatch.setenv("CLINIC_KEY", "sk-very-secret")
        roles(server.url, tmp_path, key="CLINIC_KEY").judge(asked)
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"careful medical grader" in stored and b"sk-very-secret" not in stored
    with pytest.raises(KitError, match="never the key itself"):
        profile(key="sk-very-secret")


def test_a_request_that_is_refused_leaves_the_others_alone(clinic, tmp_path):
    first, second, third = tasks(clinic.world, 1)
    stranger = second.instruction.model_copy(
        update={
            "messages": [
                m.model_copy(update={"content": "Who are you?"})
                for m in second.instruction.messages
            ]
        }
    )
    changed = type(second)(stranger, second.criteria, second.candidate)
    with Server(clinic) as server:
        rows = roles(server.url, tmp_path).judge([first, changed, third])
        assert server.requests == 3  # a 400 is not tried again
    assert {v.verdict for v in rows[1]} == {"unknown"} and "HTTP 400" in rows[1][0].rationale
    assert "unknown" not in {
        v.verdict for row in (rows[0], rows[2]) for v in row if v.rationale.startswith("HTTP")
    }


def test_a_killed_run_keeps_what_was_answered(clinic, tmp_path, plain):
    script = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from pathlib import Path\nfrom helpers.endpoints_clinic import played, roles, tasks\n"
        f"roles(sys.argv[1], Path({str(tmp_path)!r}), concurrency=1).judge(tasks(played().world, "
        "12))\n"
    )
    with Server(clinic) as server:
        child = subprocess.Popen([sys.executable, "-c", script, server.url])
        while server.requests < 12:
            assert child.poll() is None
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        before = server.requests
        assert before < 36
        assert said(roles(server.url, tmp_path).judge(tasks(clinic.world, 12))) == plain
        assert server.requests <= 36 + 1  # at most the one that was under way was asked twice


def test_a_full_disk_is_one_clear_error_and_what_was_stored_stays(tmp_path):
    answers = Answers(tmp_path / "answers.sqlite")
    answers.put("a", "judge", "m", "{}", "first", "stop", 1, 1)
    pages = answers._db.execute("PRAGMA page_count").fetchone()[0]
    answers._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(KitError, match="full.*what was stored before is whole"):
        for n in range(100):
            answers.put(f"b{n}", "judge", "m", "{}", "x" * 4000, "stop", 1, 1)
    assert answers.get("a") == ("first", "stop")
    broken = tmp_path / "no_database.sqlite"
    broken.write_text("this is no database " * 100)
    with pytest.raises(KitError, match="no_database.sqlite"):
        Answers(broken)


def test_two_clients_share_one_file(tmp_path):
    first, second = Answers(tmp_path / "a.sqlite"), Answers(tmp_path / "a.sqlite")
    first.put("k", "judge", "m", "{}", "one", "stop", 2, 3)
    second.put("k", "judge", "m", "{}", "two", "stop", 2, 3)
    assert first.get("k") == second.get("k") == ("one", "stop")
    first.asked("judge")
    assert second.spent("judge") == (1, 10)  # both answers were paid for
    mode = sqlite3.connect(tmp_path / "a.sqlite").execute("PRAGMA journal_mode").fetchone()
    assert mode == ("wal",)


class Pair(BaseModel):
    model_config = ConfigDict(extra="forbid")
    a: int
    verdict: str


GOOD = json.dumps({"a": 1, "verdict": "met"})


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"<think>hm {{}}</think>\n{GOOD}",
        f"hm, a looks fine\n</think>\n\n{GOOD}",  # the template wrote the opening tag
        f"<thinking>hm</thinking>{GOOD}",
        f"```json\n{GOOD}\n```",
        f" {GOOD}\n",
    ],
)
def test_an_object_is_found_in_what_models_put_around_it(text):
    assert content_of(text, "stop", Pair) == Pair(a=1, verdict="met")


@pytest.mark.parametrize(
    ("text", "finish", "reason"),
    [
        ("", "stop", "empty answer"),
        ("<think>only</think>", "stop", "empty answer"),
        ("only\n</think>", "stop", "empty answer"),
        ("<think>and no end", "stop", "gives no answer"),
        ("[" * 200_000, "stop", "no JSON object: maximum recursion depth"),
        (GOOD, "length", "cut off"),
        (GOOD[:-3], "stop", "no JSON object"),
        (f"Here you are: {GOOD}", "stop", "no JSON object"),
        (GOOD + GOOD, "stop", "no JSON object"),
        ('{"a": 1, "verdict": "not_met", "verdict": "met"}', "stop", "stands twice"),
        ('{"a": 1}', "stop", "verdict: Field required"),
        ('{"a": 1, "verdict": "met", "b": 2}', "stop", "b: Extra inputs"),
        ("[1]", "stop", "object"),
    ],
)
def test_what_is_not_exactly_the_object_is_refused_with_the_reason(text, finish, reason):
    with pytest.raises(ValueError, match=reason):
        content_of(text, finish, Pair)


def test_what_a_verdict_says_of_thinking_is_kept_and_a_text_without_an_opening_tag_is_cut():
    quoted = json.dumps({"a": 1, "verdict": "it ends in </think>"})
    assert content_of(quoted, "stop", Pair).verdict == "it ends in </think>"
    assert content_of("I count.\n</think>\n\nThree a day.", "stop", None) == "Three a day."
    with pytest.raises(ValueError, match="gives no answer"):
        content_of("<think>I count.", "stop", None)


def test_half_of_a_surrogate_pair_in_an_object_is_the_replacement_character():
    broken = '{"a": 1, "verdict": "met \\ud83d"}'
    assert content_of(broken, "stop", Pair).verdict == "met \ufffd"
    whole = '{"a": 1, "verdict": "met \\ud83d\\ude00"}'
    assert content_of(whole, "stop", Pair).verdict == "met \U0001f600"


@pytest.fixture
def served(tmp_path):
    """``ask(reply)``: what an endpoint makes of a server that answers ``reply(body)``, which is
    (status, content of the message or of the error); with the bodies that it was sent."""
    bodies, told = [], {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            bodies.append(body)
            status, content = told["reply"](body)
            message = {"role": "assistant", "content": content}
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
            answer |= {"choices": [choice], "usage": {"prompt_tokens": 2, "completion_tokens": 3}}
            if status != 200:
                answer = {"error": {"message": content, "type": "invalid_request_error"}}
            sent = content if isinstance(content, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"

    def ask(reply, count=1, schema=None):
        told["reply"] = reply
        endpoint = Endpoint(
            "judge", Role(model="m", retries=0), url, Answers(tmp_path / "a.sqlite")
        )
        asked = [Request(({"role": "user", "content": f"{n}?"},), schema) for n in range(count)]
        return endpoint.ask(asked), bodies

    yield ask
    server.shutdown()
    server.server_close()


def test_an_answer_in_parts_is_its_text_without_what_was_thought(served):
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "The limit is three."}]}
    parts = [thought, {"type": "text", "text": "Three times "}, {"type": "text", "text": "a day."}]
    [answer], _ = served(lambda _: (200, parts))
    assert (answer.value, answer.asks) == ("Three times a day.", 1)


def test_an_answer_in_parts_of_an_unknown_form_is_an_empty_one(served):
    [answer], bodies = served(lambda _: (200, [{"thought": "three"}]))
    assert answer.value is None and "empty answer" in answer.reason and len(bodies) == ASKS


def test_half_of_a_surrogate_pair_ends_no_run_and_poisons_no_store(served):
    [answer], _ = served(lambda _: (200, "Three times a day \ud83d"))
    assert answer.value == "Three times a day \ufffd"
    [again], bodies = served(lambda _: (500, "not asked"))
    assert again.value == answer.value and len(bodies) == 1


def test_a_body_that_is_nested_too_deeply_is_an_empty_answer(served):
    [answer], bodies = served(lambda _: (200, b"[" * 100_000))
    assert answer.value is None and "empty answer" in answer.reason and len(bodies) == ASKS


NO_LIMIT = "Unsupported parameter: 'max_tokens' is not supported with this model. "
NO_LIMIT += "Use 'max_completion_tokens' instead."
NO_HEAT = "Unsupported value: 'temperature' does not support 0.0 with this model."


def test_a_model_that_refuses_max_tokens_and_temperature_is_asked_without_them(served):
    def reasoning(body):
        for name, says in {"max_tokens": NO_LIMIT, "temperature": NO_HEAT}.items():
            if name in body:
                return 400, says
        return 200, f"of {body['max_completion_tokens']}"

    answers, bodies = served(reasoning, count=20)
    assert {answer.value for answer in answers} == {"of 2048"}
    refused = [body for body in bodies if body.keys() & {"max_tokens", "temperature"}]
    assert len(refused) <= 16 and len(bodies) == 20 + len(refused)  # eight at once, found out twice
    again, _ = served(lambda _: (500, "not asked"), count=20)  # stored under the usual names
    assert again == answers and len(bodies) == 20 + len(refused)


@pytest.mark.parametrize(
    "says",
    [
        "'max_tokens' is too large: 2048. The context length is 1024 tokens.",
        "Unsupported parameter: 'logit_bias'",
    ],
)
def test_another_refusal_is_no_reason_to_leave_a_setting_out(served, says):
    [answer], bodies = served(lambda _: (400, says))
    assert answer.value is None and "HTTP 400" in answer.reason and len(bodies) == 1
