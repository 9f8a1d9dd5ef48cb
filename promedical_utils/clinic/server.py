"""The clinic behind an OpenAI-compatible endpoint: every role over loopback, with faults if asked.

It reads requests just as ``roles`` writes them, whatever model they name, for the conversations of
one world. What it says is a pure function of the request, so that repeated runs agree; only faults
depend on a request's number.
"""

import json
import random
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from promedical_utils.clinic import generators, grammar, pool, writer
from promedical_utils.clinic.people import Judge, uniform
from promedical_utils.clinic.world import World
from promedical_utils.core.records import Criterion
from promedical_utils.core.workspace import short_hash
from promedical_utils.data import roles
from promedical_utils.rubric import scoring

SLIP = 0.1  # share of drafts that break a rule of form, and of repairs that break it again
FAULTS = (
    "429",
    "500",
    "timeout",
    "dropped",
    "not_json",
    "empty",
    "truncated",
    "malformed",
    "foreign",
)
FOREIGN = (
    "Leider kann ich auf diese Frage nur in deutscher Sprache antworten, und eine strukturierte "
    "Antwort ist mir "
    "hier nicht möglich."
)


@dataclass(frozen=True)
class Known:
    """What the clinic knows of a conversation; ``patient`` is "" for what no patient of it
    wrote."""

    patient: str
    medical: bool
    category: str
    specialty: str
    difficulty: int


class Unreadable(ValueError):
    """A request that no role of the clinic can answer; its text says why."""


class Clinic:
    """Answers the roles' requests from the truth of ``world`` and of the raw pool around it.

    A row of the pool is read as the message that it was made from: for a near-miss, whose rubric
    differs in one fact, that is a writer's error.
    """

    def __init__(self, world: World, profile):
        self.world, self.profile = world, profile
        rows, truth = pool.raw(world, world.ids("train"), profile.seed)
        self._known = {
            _key([{"role": "user", "content": row.text}]): Known(
                truth[row.id].of,
                truth[row.id].kind != "not_medical",
                truth[row.id].category,
                truth[row.id].specialty,
                truth[row.id].difficulty,
            )
            for row in rows
        } | {
            _key([m.model_dump() for m in i.messages]): Known(
                i.id, True, i.category, i.specialty, i.difficulty
            )
            for i in world.instructions
        }
        self._reader = self._fitted_judge()
        self._roles = {
            "writer": self._write,
            "screener": self._screen,
            "classifier": self._classify,
            "judge_pair": self._compare,
            "rar_implicit": self._rate,
            "judge": self._judge,
        }

    def _fitted_judge(self) -> Judge:
        seen = []
        for i in self.world.ids("train")[:200]:  # enough to see which kinds fail most often
            kind = {c.id: c.kind for c in self.world.rubric_of[i].criteria}
            for name in generators.NAMES:
                said = self.world.gold(i, self.world.answer(i, name))
                seen += [(kind[c], verdict) for c, verdict in said.items()]
        return Judge.fit(self.profile.judge_agreement, seen, self.profile.seed)

    def reply(self, messages: list[dict]) -> str:
        """The text of the answer, in the role that the system prompt asks for.

        Raises ``Unreadable`` for another prompt than those of ``roles``, or another conversation.
        """
        system = messages[0]["content"] if messages and messages[0].get("role") == "system" else ""
        for name in generators.NAMES:
            if system == roles.generator_prompt(name):
                return self.world.answer(self._patient(messages[1:]), name)
        role = next((name for name in self._roles if system.startswith(roles.prompt(name))), None)
        if role is None:
            raise Unreadable("the system prompt is of no role that the clinic plays")
        try:
            asked = [json.loads(m["content"]) for m in messages if m["role"] == "user"]
            return json.dumps(self._roles[role](asked), ensure_ascii=False)
        except (json.JSONDecodeError, KeyError, TypeError):
            raise Unreadable(f"the user's messages are no request to a {role}") from None

    def _find(self, conversation: list[dict]) -> Known:
        found = self._known.get(_key(conversation))
        if found is None:
            raise Unreadable("no conversation of this clinic: is it of the same profile and seed?")
        return found

    def _patient(self, conversation: list[dict]) -> str:
        known = self._find(conversation)
        if not known.patient:
            raise Unreadable("no patient of this clinic wrote that")
        return known.patient

    def _screen(self, asked: list[dict]) -> dict:
        known = self._find(asked[-1]["instruction"])
        return {"reason": "as the clinic has it", "difficulty": known.difficulty}

    def _classify(self, asked: list[dict]) -> dict:
        known = self._find(asked[-1]["instruction"])
        return {
            "medical": known.medical,
            "category": _of(asked[-1]["categories"], known.category),
            "specialty": _of(asked[-1]["specialties"], known.specialty),
        }

    def _write(self, asked: list[dict]) -> dict:
        """The gold rubric, or a flawed one; examples of the same category make flaws rarer."""
        repair = "broken_rules" in asked[-1]
        conversations = [turn["instruction"] for turn in asked if "instruction" in turn]
        *examples, last = map(self._find, conversations)
        rate = writer.error_rate(
            self.profile, last.category, [known.category for known in examples]
        )
        rng = random.Random(short_hash("draft", self.profile.seed, json.dumps(asked)))
        gold = self.world.rubric_of[self._patient(conversations[-1])]
        draft = writer.draft(gold, rate, 0, rng)
        fields = [c.model_dump(include={"dimension", "text", "weight"}) for c in draft.criteria]
        if rng.random() < SLIP ** (2 if repair else 1):
            fields = _slipped(fields, rng)
        return {"criteria": fields}

    def _judge(self, asked: list[dict]) -> dict:
        task = asked[-1]
        self._find(task["instruction"])
        answer = short_hash(_key(task["instruction"]), task["answer"])
        rows = []
        for c in task["criteria"]:
            kind = writer.kind(c["text"])
            if kind == "unspecified":
                rows.append({"criterion": c["id"], "reason": "not readable", "verdict": "unknown"})
                continue
            asks = Criterion(id=c["id"], dimension="safety", text=c["text"], weight=0)
            truth = grammar.gold([asks], task["answer"])[c["id"]]
            verdict = self._reader.verdict(answer, c["text"], kind, truth)
            rows.append({"criterion": c["id"], "reason": f"on {kind}", "verdict": verdict})
        return {"verdicts": rows}

    def _compare(self, asked: list[dict]) -> dict:
        """Two answers by the judge's own verdicts of each; as a whole safety first, as it is
        asked."""
        task, said = asked[-1], {}
        for side in "AB":
            verdicts = self._judge([task | {"answer": task[f"answer_{side.lower()}"]}])["verdicts"]
            said[side] = {row["criterion"]: row["verdict"] == "met" for row in verdicts}
        rows = [
            {
                "criterion": c["id"],
                "reason": "by its verdicts",
                "better": _better(*(said[side][c["id"]] for side in "AB")),
            }
            for c in task["criteria"]
        ]
        counts = (
            [
                sum(said[side][c["id"]] for c in task["criteria"] if c["dimension"] == name)
                for name in ("safety", "proficiency", "excellence")
            ]
            for side in "AB"
        )
        return {
            "criteria": rows,
            "reason": "safety, then proficiency, then excellence",
            "overall": _better(*counts),
        }

    def _rate(self, asked: list[dict]) -> dict:
        """The share of importance that is met, by RaR's weights, out of 10."""
        task = asked[-1]
        weights = [scoring.RAR[c["importance"]] for c in task["criteria"]]
        plain = [{"id": str(n), "text": c["text"]} for n, c in enumerate(task["criteria"])]
        met = [
            row["verdict"] == "met" for row in self._judge([task | {"criteria": plain}])["verdicts"]
        ]
        return {"reason": "by importance", "rating": round(10 * scoring.points_share(weights, met))}


def _better(a, b) -> str:
    """Of what is more where it is better: A, B or tie."""
    return "tie" if a == b else "A" if a > b else "B"


def _of(allowed: list[str], name: str) -> str:
    """The clinic's own class where the list has it; of other lists always the same one."""
    return name if name in allowed else allowed[int(short_hash(name), 16) % len(allowed)]


def _slipped(fields: list[dict], rng: random.Random) -> list[dict]:
    """The draft with one rule of form broken."""
    kind = rng.choice(["weights", "twice", "violation"])
    if kind == "weights":
        return [f | {"weight": 2 * f["weight"]} for f in fields]
    safety = [n for n, f in enumerate(fields) if f["dimension"] == "safety"]
    if kind == "violation" and safety:
        place = rng.choice(safety)
        fields[place] = fields[place] | {"text": "Recommends what the leaflet warns of"}
        return fields
    return [*fields, fields[rng.randrange(len(fields))] | {"weight": 0.0}]


def _key(conversation: Iterable[Mapping]) -> str:
    pairs = [(m["role"], m["content"]) for m in conversation]
    return short_hash(*(part for pair in pairs for part in pair))


class _Handler(BaseHTTPRequestHandler):
    """POST /v1/chat/completions and GET /v1/models, as far as the roles need them."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):  # a request says nothing on the terminal
        pass

    def do_GET(self):
        self._send(200, {"object": "list", "data": [{"id": "clinic", "object": "model"}]})

    def do_POST(self):
        server = self.server
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        number = server.count()
        fault = server.fault(number)
        if server.key and self.headers.get("authorization") != f"Bearer {server.key}":
            return self._error(401, "wrong key")
        if fault in ("429", "500"):
            return self._error(
                int(fault), "asked for", {"retry-after": "0"} if fault == "429" else {}
            )
        if fault == "timeout":
            time.sleep(server.slow)
        if fault in ("timeout", "dropped"):
            self.close_connection = True
            return self.connection.close()
        if fault == "not_json":
            return self._bytes(200, b"<html>gateway</html>", "text/html")
        try:
            request = json.loads(body)
            text = server.clinic.reply(request["messages"])
        except Unreadable as error:
            return self._error(400, str(error))
        except (ValueError, KeyError, TypeError):
            return self._error(400, "no chat completion request")
        text, finish = _spoiled(text, fault)
        used = {"prompt_tokens": len(body.split()), "completion_tokens": len(text.split())}
        choice = {
            "index": 0,
            "finish_reason": finish,
            "message": {"role": "assistant", "content": text},
        }
        self._send(
            200,
            {
                "id": f"clinic-{number}",
                "object": "chat.completion",
                "created": 0,
                "model": request["model"],
                "choices": [choice],
                "usage": used | {"total_tokens": sum(used.values())},
            },
        )

    def _error(self, status: int, text: str, headers: Mapping[str, str] | None = None):
        self._send(status, {"error": {"message": text, "type": "clinic"}}, headers)

    def _send(self, status: int, content: dict, headers: Mapping[str, str] | None = None):
        self._bytes(status, json.dumps(content).encode(), "application/json", headers)

    def _bytes(
        self, status: int, content: bytes, kind: str, headers: Mapping[str, str] | None = None
    ):
        self.send_response(status)
        for name, value in {
            "content-type": kind,
            "content-length": str(len(content)),
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _spoiled(text: str, fault: str | None) -> tuple[str, str]:
    """An answer that came through, and is none: the text and the finish reason."""
    if fault == "empty":
        return "", "stop"
    if fault == "truncated":
        return text[: len(text) // 2], "length"
    if fault == "foreign":
        return FOREIGN, "stop"
    if fault == "malformed":  # a verdict or a criterion too many, or no JSON any more
        content = json.loads(text) if text.startswith("{") else {}
        for rows in content.values():
            if isinstance(rows, list) and rows:
                rows.append(rows[0])
                return json.dumps(content), "stop"
        return text.replace("}", "", 1), "stop"
    return text, "stop"


class Server(ThreadingHTTPServer):
    """The clinic on a loopback port (0: any free one); a share ``faults`` of the requests fails.

    With ``key`` a request must carry it. Use as a context manager: it answers while it is open.
    """

    daemon_threads = True

    def __init__(
        self,
        clinic: Clinic,
        port: int = 0,
        faults: float = 0.0,
        slow: float = 1.0,
        key: str = "",
        kinds: tuple[str, ...] = FAULTS,
    ):
        super().__init__(("127.0.0.1", port), _Handler)
        self.clinic, self.key, self.slow, self._faults, self._kinds = (
            clinic,
            key,
            slow,
            faults,
            kinds,
        )
        self.requests, self._guard = 0, threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def count(self) -> int:
        with self._guard:
            self.requests += 1
            return self.requests

    def fault(self, number: int) -> str | None:
        """How request ``number`` fails; by its number, so that a retry may do better."""
        if uniform(self.clinic.profile.seed, "fault", number) >= self._faults:
            return None
        return self._kinds[
            int(uniform(self.clinic.profile.seed, "kind", number) * len(self._kinds))
        ]

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()
