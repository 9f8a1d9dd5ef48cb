"""The clinic behind an OpenAI-compatible endpoint: every role over loopback, with faults if asked.

    .venv/bin/python tests/helpers/clinic_server.py smoke --faults 0.3

It reads requests just as ``roles`` writes them, whatever model they name, for the conversations of
one world. What it answers is a pure function of the request, so that repeated runs agree; only
faults depend on how often it has come.
"""

import argparse
import asyncio
import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Iterable, Mapping

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse

from promedical_utils import clinic as embedded
from promedical_utils.clinic import generators, grammar, pool, writer
from promedical_utils.clinic.people import Judge, uniform
from promedical_utils.clinic.pool import Planted
from promedical_utils.clinic.world import World
from promedical_utils.core import profiles
from promedical_utils.core.records import Criterion
from promedical_utils.core.workspace import KitError, short_hash
from promedical_utils.data import roles
from promedical_utils.rubric import scoring

FAULTS = ("429", "500", "timeout", "dropped", "not_json", "empty", "truncated", "malformed")
FAULTS += ("foreign",)
FOREIGN = (
    "Leider kann ich auf diese Frage nur in deutscher Sprache antworten, und eine strukturierte "
    "Antwort ist mir hier nicht möglich."
)
SLIP = 0.1  # share of drafts that break a rule of form, and of repairs that break it again


class Clinic:
    """Answers the roles' requests from the truth of ``world`` and of the raw pool around it.

    A row of the pool is read as the message that it was made from: for a near-miss, whose rubric
    differs in one fact, that is a writer's error.
    """

    def __init__(self, world: World, profile):
        self.world, self.profile = world, profile
        rows, truth = pool.raw(world, world.ids("train"), profile.seed)
        self._known = {_key([{"role": "user", "content": row.text}]): truth[row.id] for row in rows}
        for i in world.instructions:
            known = Planted("kept", i.id, i.category, i.specialty, i.difficulty)
            self._known[_key(roles.conversation(i.messages))] = known
        reference = []
        for i in world.ids("train")[:200]:  # enough to see which kinds fail most often
            kinds = {c.id: c.kind for c in world.rubric_of[i].criteria}
            for name in generators.NAMES:
                verdicts = world.gold(i, world.answer(i, name))
                reference += [(kinds[c], verdict) for c, verdict in verdicts.items()]
        self._reader = Judge.fit(profile.judge_agreement, reference, embedded.RISKS, profile.seed)
        self._roles = {
            "judge_pair": self._compare,
            "rar_implicit": self._rate,
            "writer": self._write,
            "screener": self._screen,
            "classifier": self._classify,
            "judge": self._judge,
        }

    def reply(self, messages: list[dict]) -> str:
        """The text of the answer, in the role that the system prompt asks for.

        Raises KitError for another prompt than those of ``roles``, or another conversation.
        """
        system = messages[0]["content"] if messages and messages[0].get("role") == "system" else ""
        for name in generators.NAMES:
            if system == roles.generator_prompt(name):
                return self.world.answer(self._patient(messages[1:]), name)
        role = next((name for name in self._roles if system.startswith(roles.prompt(name))), None)
        if role is None:
            raise KitError("the system prompt is of no role that the clinic plays")
        try:
            tasks = [json.loads(m["content"]) for m in messages if m["role"] == "user"]
            return json.dumps(self._roles[role](tasks), ensure_ascii=False)
        except (json.JSONDecodeError, KeyError, TypeError):
            raise KitError(f"the user's messages are no request to a {role}") from None

    def _find(self, conversation: list[dict]) -> Planted:
        known = self._known.get(_key(conversation))
        if known is None:
            raise KitError("no conversation of this clinic: is it of the same profile and seed?")
        return known

    def _patient(self, conversation: list[dict]) -> str:
        known = self._find(conversation)
        if not known.of:
            raise KitError("no patient of this clinic wrote that")
        return known.of

    def _screen(self, tasks: list[dict]) -> dict:
        known = self._find(tasks[-1]["instruction"])
        return {"reason": "as the clinic has it", "difficulty": known.difficulty}

    def _classify(self, tasks: list[dict]) -> dict:
        task, known = tasks[-1], self._find(tasks[-1]["instruction"])
        category = _of(task["categories"], known.category)
        specialty = _of(task["specialties"], known.specialty)
        medical = known.kind != "not_medical"
        return {"medical": medical, "category": category, "specialty": specialty}

    def _write(self, tasks: list[dict]) -> dict:
        """The gold rubric, or a flawed one; examples of the same category make flaws rarer."""
        conversations = [task["instruction"] for task in tasks if "instruction" in task]
        *examples, last = map(self._find, conversations)
        categories = [known.category for known in examples]
        rate = writer.error_rate(self.profile, last.category, categories)
        rng = random.Random(short_hash("draft", self.profile.seed, json.dumps(tasks)))
        gold = self.world.rubric_of[self._patient(conversations[-1])]
        draft = writer.draft(gold, rate, rng)
        fields = [c.model_dump(include={"dimension", "text", "weight"}) for c in draft.criteria]
        slips = rng.random() < SLIP ** (2 if "broken_rules" in tasks[-1] else 1)
        return {"criteria": _slipped(fields, rng) if slips else fields}

    def _judge(self, tasks: list[dict]) -> dict:
        task = tasks[-1]
        known = self.world.patients[self._patient(task["instruction"])].facts
        answer, rows = short_hash(_key(task["instruction"]), task["answer"]), []
        for c in task["criteria"]:
            kind, reason, verdict = writer.kind(c["text"]), "not readable", "unknown"
            if kind != "unspecified":
                criterion = Criterion(id=c["id"], dimension="safety", text=c["text"], weight=0)
                truth = grammar.gold([criterion], known, task["answer"])[c["id"]]
                verdict = self._reader.verdict(answer, c["text"], kind, truth)
                reason = f"on {kind}"
            rows.append({"criterion": c["id"], "reason": reason, "verdict": verdict})
        return {"verdicts": rows}

    def _met(self, task: dict, answer: str, criteria: list[dict]) -> dict[str, bool]:
        """Which criteria an answer meets, by the judge's own verdicts."""
        rows = self._judge([task | {"answer": answer, "criteria": criteria}])["verdicts"]
        return {row["criterion"]: row["verdict"] == "met" for row in rows}

    def _compare(self, tasks: list[dict]) -> dict:
        """Two answers by their verdicts; as a whole safety first, as it is asked."""
        task, criteria = tasks[-1], tasks[-1]["criteria"]
        a, b = (self._met(task, task[answer], criteria) for answer in ("answer_a", "answer_b"))
        rows = []
        for c in criteria:
            better = _better(a[c["id"]], b[c["id"]])
            rows.append({"criterion": c["id"], "reason": "by its verdicts", "better": better})
        order = ("safety", "proficiency", "excellence")
        counts = (
            [sum(met[c["id"]] for c in criteria if c["dimension"] == name) for name in order]
            for met in (a, b)
        )
        reason = "safety, then proficiency, then excellence"
        return {"criteria": rows, "reason": reason, "overall": _better(*counts)}

    def _rate(self, tasks: list[dict]) -> dict:
        """The share of importance that is met, by RaR's weights, out of 10."""
        task, criteria = tasks[-1], tasks[-1]["criteria"]
        weights = [scoring.RAR[c["importance"]] for c in criteria]
        plain = [{"id": str(n), "text": c["text"]} for n, c in enumerate(criteria)]
        met = list(self._met(task, task["answer"], plain).values())
        return {"reason": "by importance", "rating": round(10 * scoring.points_share(weights, met))}


def _key(conversation: Iterable[Mapping]) -> str:
    return short_hash(*(part for m in conversation for part in (m["role"], m["content"])))


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
        fields[rng.choice(safety)]["text"] = "Recommends what the leaflet warns of"
        return fields
    return [*fields, fields[rng.randrange(len(fields))] | {"weight": 0.0}]


def _better(a, b) -> str:
    """Of what is more where it is better: A, B or tie."""
    return "tie" if a == b else "A" if a > b else "B"


def app(clinic: Clinic) -> FastAPI:
    """What answers POST /v1/chat/completions by ``Clinic.reply``; HTTP 400 says what is wrong."""
    served = FastAPI(openapi_url=None)

    @served.post("/v1/chat/completions")
    async def complete(request: Request) -> JSONResponse:
        body = await request.body()
        try:
            question = json.loads(body)
            model, text = question["model"], clinic.reply(question["messages"])
        except KitError as error:
            return JSONResponse({"error": {"message": str(error)}}, 400)
        except (ValueError, KeyError, TypeError, AttributeError):
            return JSONResponse({"error": {"message": "no chat completion request"}}, 400)
        message = {"role": "assistant", "content": text}
        prompt, completion = len(body.split()), len(text.split())  # a word counts as a token
        usage = {"prompt_tokens": prompt, "completion_tokens": completion}
        answer = {
            "id": f"clinic-{short_hash(body.decode())}",
            "object": "chat.completion",
            "created": 0,
            "model": model,
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": usage | {"total_tokens": prompt + completion},
        }
        return JSONResponse(answer)

    return served


class Server:
    """``clinic`` on a loopback port (0: any free one): a context manager, open while it answers.

    ``kinds`` are those of FAULTS that occur; a time-out takes ``slow`` seconds. With ``key`` a
    request must carry it.
    """

    def __init__(self, clinic, faults=0.0, slow=1.0, key="", kinds=FAULTS, port=0):
        self.faults, self.slow, self.key, self.kinds, self.requests = faults, slow, key, kinds, 0
        self._came = Counter()  # request -> how often
        served = app(clinic)
        served.middleware("http")(self._spoil)
        settings = uvicorn.Config(served, log_level="critical", access_log=False, lifespan="off")
        self._socket = socket.create_server(("127.0.0.1", port))
        self._uvicorn = uvicorn.Server(settings)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"

    def run(self) -> None:
        self._uvicorn.run([self._socket])

    def __enter__(self) -> "Server":
        self._thread = threading.Thread(target=self.run)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._uvicorn.should_exit = True
        self._thread.join()

    def _fault(self, body: bytes) -> str | None:
        """How this request fails; drawn by how often it has come, so that a retry may do better,
        and not by its number among all, which hangs on the threads that ask."""
        self._came[body] += 1
        drawn = short_hash(body.decode(), self._came[body])
        if uniform("fault", drawn) >= self.faults:
            return None
        return self.kinds[int(uniform("kind", drawn) * len(self.kinds))]

    async def _spoil(self, request: Request, call_next) -> Response:
        self.requests += 1
        fault = self._fault(await request.body())
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "wrong key"}}, 401)
        if fault in ("429", "500"):
            wait = {"retry-after-ms": "1"}
            return JSONResponse({"error": {"message": "asked for"}}, int(fault), wait)
        if fault in ("timeout", "dropped"):
            await asyncio.sleep(self.slow if fault == "timeout" else 0)
            for connection in list(self._uvicorn.server_state.connections):
                if connection.client == tuple(request.client):
                    connection.transport.close()  # what is returned is then sent nowhere
            return Response()
        if fault == "not_json":
            return HTMLResponse("<html>gateway</html>")
        answer = await call_next(request)
        if fault is None or answer.status_code != 200:
            return answer
        content = json.loads(b"".join([part async for part in answer.body_iterator]))
        [choice] = content["choices"]
        choice["message"]["content"] = _spoiled(choice["message"]["content"], fault)
        choice["finish_reason"] = "length" if fault == "truncated" else "stop"
        return JSONResponse(content)


def _spoiled(text: str, fault: str) -> str:
    """An answer that came through, and is none."""
    if fault == "malformed":  # a verdict or a criterion too many, or no JSON any more
        content = json.loads(text) if text.startswith("{") else {}
        rows = next((v for v in content.values() if isinstance(v, list) and v), None)
        if rows is None:
            return text.replace("}", "", 1)
        rows.append(rows[0])
        return json.dumps(content)
    return {"empty": "", "truncated": text[: len(text) // 2], "foreign": FOREIGN}[fault]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("profile", help="whose world it is; SET= overrides apply")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests that fail")
    given = parser.parse_args()
    profile = profiles.profile_for(given.profile)
    played = Clinic(embedded.build(profile), profile)
    server = Server(played, given.faults, port=given.port)
    print(f"the clinic (invented) of profile {profile.name}: {server.url}", flush=True)
    server.run()


if __name__ == "__main__":
    main()
