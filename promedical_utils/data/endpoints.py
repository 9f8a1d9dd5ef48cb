"""One client for every OpenAI-compatible endpoint; an answer is stored before anybody uses it.

A request is named by the hash of its content, so a second run asks nothing again, and a run that
stopped (budget, failure, kill) goes on where it was. Keys are read from the environment when a
request is sent and are written nowhere.
"""

import hashlib
import json
import os
import re
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import count, repeat
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from promedical_utils.core.profiles import Role
from promedical_utils.core.records import first_error
from promedical_utils.core.workspace import KitError
from promedical_utils.data.sqlite import Database

OUTCOMES = ("valid", "repaired", "unanswered")  # at once; asked again, then right; never right
ASKS = 4  # how often a request is put when its answers cannot be read
WARMER = 0.2  # temperature that each further one of these adds
NEVER = (401, 403, 404)  # wrong key, wrong address, wrong model: no request would be answered
NO_COMPLETION = (json.JSONDecodeError, UnicodeDecodeError, RecursionError)  # from the body
NO_COMPLETION += (AttributeError, IndexError, TypeError)
# settings that some models refuse, by their own word, and what these take instead
REFUSABLE = {"max_tokens": "max_completion_tokens", "temperature": ""}
REFUSAL = re.compile(r"(?i)unsupported|not support|unrecogni|unknown|not permitted|deprecated")
HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: JSON may hold one, no file takes it
# what a reasoning model thinks, also where the template has written the opening tag
THOUGHT = re.compile(r"\A(?!\s*[{`]).*?</think(?:ing)?>", re.DOTALL)
ADVICE = (
    "Nothing is lost: what was stored before is whole. Free the disk or move the file away if it "
    "is no database, then run again"
)
SPEND = (
    "INSERT INTO spent VALUES (?, ?, ?) ON CONFLICT (role) DO UPDATE SET "
    "requests = requests + excluded.requests, tokens = tokens + excluded.tokens"
)


class BudgetSpent(KitError):
    """A role's request cap or token budget is used up; all that was answered is kept."""


@dataclass(frozen=True)
class Request:
    """Messages as the chat API takes them; ``schema``: what the answer must be, None for text."""

    messages: tuple[dict, ...]
    schema: type[BaseModel] | None = None


@dataclass(frozen=True)
class Answer:
    """``value`` as read from the text, or None with the ``reason``; asked for ``asks`` times."""

    value: Any
    reason: str = ""
    asks: int = 1


class Answers(Database):
    """SQLite file of answered requests by content hash, and of what each role has spent."""

    def __init__(self, path: Path):
        super().__init__(path, Path(__file__).with_name("answers.sql"), ADVICE)

    def get(self, key: str) -> tuple[str, str] | None:
        """(text, finish reason) of an answered request, else None."""
        rows = self._read("SELECT text, finish FROM answers WHERE key = ?", key)
        return tuple(rows[0]) if rows else None

    def put(self, key, role, model, request, text, finish, prompt: int, completion: int) -> None:
        """Store an answer and its tokens in one transaction; a key that is there stays as it is."""
        row = (key, role, model, request, text, finish, prompt, completion)
        with self._writing("not stored"):
            self._db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            self._db.execute(SPEND, (role, 0, prompt + completion))

    def asked(self, role: str) -> None:
        """Count one request, answered or not."""
        with self._writing("not counted"):
            self._db.execute(SPEND, (role, 1, 0))

    def spent(self, role: str) -> tuple[int, int]:
        """(requests, tokens) of a role over the life of the file."""
        rows = self._read("SELECT requests, tokens FROM spent WHERE role = ?", role)
        return tuple(rows[0]) if rows else (0, 0)

    def ledger(self) -> dict[str, dict[str, int]]:
        """What every role has asked and used: requests, answered, tokens."""
        rows = self._read(
            "SELECT role, requests, count(key), tokens FROM spent LEFT JOIN answers "
            "USING (role) GROUP BY role ORDER BY role"
        )
        return {role: {"requests": n, "answered": a, "tokens": t} for role, n, a, t in rows}


class Endpoint:
    """One role's endpoint, with its concurrency, its retries and its budget."""

    def __init__(self, role: str, settings: Role, base_url: str, answers: Answers):
        if not base_url:
            where = f"set endpoint in the profile, or roles.{role}.endpoint"
            raise KitError(f"role {role} has no endpoint: {where}")
        self.role, self.settings, self.base_url, self.answers = role, settings, base_url, answers
        self._reserved, self._guard, self._refused = 0, threading.Lock(), set()
        self.outcomes: Counter = Counter()  # of all that was asked for: OUTCOMES, counted

    @cached_property
    def _client(self):
        import openai  # slow to load, and a run without endpoints needs none

        key = os.environ.get(self.settings.key, "") if self.settings.key else "none"
        if not key:
            raise KitError(
                f"role {self.role}: the environment variable {self.settings.key} is not set; "
                "export the endpoint's key in it (it is read from there alone)"
            )
        return openai.OpenAI(
            base_url=self.base_url,
            api_key=key,
            timeout=self.settings.timeout,
            max_retries=self.settings.retries,
        )

    def ask(
        self, requests: Sequence[Request], read: Callable[[int, Any], Any] | None = None
    ) -> list[Answer]:
        """Answers in the order of ``requests``, each read from its stored text.

        ``read(index, content)`` makes the value (content: the schema's model, or the text) and
        raises ValueError with what is wrong; the request is then put again, up to ``ASKS`` times.
        Raises BudgetSpent when the cap is reached, after the requests under way are answered and
        stored, and KitError for a key, address or model that no request could be answered with.
        """
        try:
            with ThreadPoolExecutor(self.settings.concurrency) as pool:
                # after an error (a wrong key, a full disk, Ctrl-C) map sends no more
                answers = list(pool.map(self._answer, count(), requests, repeat(read)))
        except BudgetSpent as error:
            kept = self.answers.ledger().get(self.role, {}).get("answered", 0)
            raise BudgetSpent(f"{error}; {kept} answers are kept") from None
        for answer in answers:
            repaired = "repaired" if answer.asks > 1 else "valid"
            self.outcomes["unanswered" if answer.value is None else repaired] += 1
        return answers

    def _answer(self, index: int, request: Request, read) -> Answer:
        import openai  # slow to load, and a run without endpoints needs none

        reason = ""
        for attempt in range(ASKS):
            body = self._body(request, attempt)  # without the address, which may move, and the key
            named = json.dumps([body, attempt], sort_keys=True, ensure_ascii=False)
            key = hashlib.sha256(named.encode()).hexdigest()
            try:
                stored = self.answers.get(key) or self._fetch(body, key)
            except openai.APIError as error:
                return Answer(None, self._failure(error), attempt + 1)
            try:
                content = content_of(*stored, request.schema)
                return Answer(read(index, content) if read else content, asks=attempt + 1)
            except ValueError as error:
                reason = str(error)
        return Answer(None, f"no usable answer in {ASKS}: {reason}", ASKS)

    def _body(self, request: Request, attempt: int) -> dict:
        body = {
            "model": self.settings.model,
            "messages": list(request.messages),
            # at temperature 0 a model would give the same unusable answer again
            "temperature": round(self.settings.temperature + WARMER * attempt, 2),
            "max_tokens": self.settings.max_tokens,
        }
        schema = request.schema and request.schema.model_json_schema()
        if schema and self.settings.structured == "json_schema":
            named = {"name": request.schema.__name__, "schema": schema, "strict": True}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        elif schema:
            first, *rest = body["messages"]
            told = "Answer with one JSON object and nothing else. Its JSON schema:\n"
            told = f"{first['content']}\n\n{told}{json.dumps(schema)}"
            body["messages"] = [first | {"content": told}, *rest]
        return body

    def _fetch(self, body: dict, key: str) -> tuple[str, str]:
        """One request, whose answer is stored; a body without a completion is an empty one. The
        client's error where it has tried again in vain."""
        request = json.dumps(body, ensure_ascii=False)
        size = len(request.encode())
        with self._taken(size // 2 + body["max_tokens"]):  # two bytes a token: on the safe side
            try:
                response = self._complete(body)
                choice = response.choices[0]
                text, finish = _text(choice.message.content), choice.finish_reason or ""
            except NO_COMPLETION:
                response, text, finish = None, "", ""
            used = getattr(response, "usage", None)
            prompt = getattr(used, "prompt_tokens", None) or size // 4
            completion = getattr(used, "completion_tokens", None) or len(text.encode()) // 4
            asked = self.role, body["model"], request
            self.answers.put(key, *asked, text, finish, prompt, completion)
        return self.answers.get(key)  # the stored one, if two asked the same at once

    def _complete(self, body: dict):
        """The response to a body, put again without the settings that it is said to refuse."""
        import openai  # slow to load, and a run without endpoints needs none

        sent = {REFUSABLE[k] if k in self._refused else k: v for k, v in body.items()}
        sent.pop("", None)
        try:
            return self._client.chat.completions.create(**sent)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            named = {n for n in REFUSABLE if n in sent and re.search(rf"\b{n}\b", str(error))}
            if not named or not REFUSAL.search(str(error)):
                raise
        self._refused |= named
        return self._complete(body)

    def _failure(self, error: Exception) -> str:
        """Why a request has no answer; KitError where no other one would have one."""
        status = getattr(error, "status_code", None)  # None: no connection, or a time-out
        if status in NEVER:
            key = self.settings.key or "none is configured"
            raise KitError(
                f"role {self.role}: HTTP {status} from the endpoint for model "
                f"{self.settings.model!r}; check endpoint, model and the key's variable ({key})"
            ) from None
        what = f"HTTP {status}" if status else type(error).__name__
        return f"{what}: {str(error)[:200].replace(self._client.api_key, '***')}"

    @contextmanager
    def _taken(self, expected: int):
        """One request out of the budget, the tokens that it may use held back while it runs."""
        role = self.role
        with self._guard:
            needed = {"requests": 1, "tokens": self._reserved + expected}
            for used, (name, more) in zip(self.answers.spent(role), needed.items(), strict=True):
                cap = getattr(self.settings, name)
                if used + more > cap:
                    raise BudgetSpent(
                        f"role {role}: its cap of {cap} {name} would be passed ({used} used); "
                        f"raise roles.{role}.{name} and run again"
                    )
            self.answers.asked(role)
            self._reserved += expected
        try:
            yield
        finally:
            with self._guard:
                self._reserved -= expected


def content_of(text: str, finish: str, schema: type[BaseModel] | None) -> BaseModel | str:
    """The text, or the one JSON object in it as ``schema``; ValueError with what is wrong.

    Thoughts before the answer and a code fence around the object are passed over. Nothing else is
    mended: a repeated key is an error, since the later one would silently win.
    """
    text = THOUGHT.sub("", text, count=1).strip()
    if finish == "length":
        raise ValueError("cut off at max_tokens")
    if re.match("<think", text):
        raise ValueError("it thinks and gives no answer")
    if not text:
        raise ValueError("empty answer")
    if schema is None:
        return text
    fenced = re.fullmatch(r"```(?:json)?\s*(.*?)\s*```", text, flags=re.DOTALL)
    try:
        content = json.loads(fenced[1] if fenced else text, object_pairs_hook=_once)
        content = json.loads(HALF.sub("\ufffd", json.dumps(content, ensure_ascii=False)))
        return schema.model_validate(content)
    except (json.JSONDecodeError, RecursionError) as error:  # of brackets without an end
        raise ValueError(f"no JSON object: {error}") from None
    except ValidationError as error:
        raise ValueError(first_error(error, "object")) from None


def _text(content) -> str:
    """The text of a message, which some servers give in parts, those of thinking among them."""
    if isinstance(content, list):
        content = "".join(p.get("text", "") for p in content if p.get("type") == "text")
    return HALF.sub("\ufffd", content or "")


def _once(pairs: list[tuple[str, Any]]) -> dict:
    keys = [key for key, _ in pairs]
    if repeated := [key for key in keys if keys.count(key) > 1]:
        raise ValueError(f"key {repeated[0]!r} stands twice")
    return dict(pairs)
