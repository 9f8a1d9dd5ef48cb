"""The clinic behind an OpenAI-compatible endpoint: every role over loopback.

It reads requests just as ``roles`` writes them, whatever model they name, for the conversations of
one world. What it answers is a pure function of the request, so that repeated runs agree.
"""

import json
import random
from collections.abc import Iterable, Mapping

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from promedical_utils.clinic import generators, grammar, pool, writer
from promedical_utils.clinic.people import Judge
from promedical_utils.clinic.pool import Planted
from promedical_utils.clinic.world import World
from promedical_utils.core.records import Criterion
from promedical_utils.core.workspace import KitError, short_hash
from promedical_utils.data import roles

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
        self._reader = Judge.fit(profile.judge_agreement, reference, profile.seed)
        self._roles = {
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
        self._find(task["instruction"])
        answer, rows = short_hash(_key(task["instruction"]), task["answer"]), []
        for c in task["criteria"]:
            kind, reason, verdict = writer.kind(c["text"]), "not readable", "unknown"
            if kind != "unspecified":
                criterion = Criterion(id=c["id"], dimension="safety", text=c["text"], weight=0)
                truth = grammar.gold([criterion], task["answer"])[c["id"]]
                verdict = self._reader.verdict(answer, c["text"], kind, truth)
                reason = f"on {kind}"
            rows.append({"criterion": c["id"], "reason": reason, "verdict": verdict})
        return {"verdicts": rows}


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
