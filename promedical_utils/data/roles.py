"""The roles of a language model: rubric writer, screener, classifier, generators, judge.

Each role is one prompt (``prompts/*.txt``), one pydantic schema and one endpoint. What stays
without an answer comes back as none, with its reason; for a judge that is ``unknown``.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from promedical_utils.core import records
from promedical_utils.core.profiles import ROLES, Profile
from promedical_utils.core.records import Candidate, Criterion, Instruction, Message, Verdict
from promedical_utils.core.workspace import read_yaml
from promedical_utils.data.curation import languages
from promedical_utils.data.endpoints import OUTCOMES, Answer, Answers, Endpoint, Request

PROMPTS = Path(__file__).parent / "prompts"
HABITS = read_yaml(PROMPTS / "habits.yaml")


class Reply(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DraftedCriterion(Reply):
    dimension: records.Dimension
    text: str
    weight: float


class Draft(Reply):
    criteria: list[DraftedCriterion]


class Screened(Reply):
    reason: str
    difficulty: int = Field(ge=0, le=10)


class Classified(Reply):
    medical: bool
    category: str
    specialty: str


class JudgedCriterion(Reply):
    criterion: str
    reason: str
    verdict: records.VerdictValue


class Judged(Reply):
    verdicts: list[JudgedCriterion]


@dataclass(frozen=True)
class Task:
    """One answer to be judged on all criteria of its rubric, in one request."""

    instruction: Instruction
    criteria: tuple[Criterion, ...]
    candidate: Candidate


@cache
def prompt(name: str) -> str:
    return (PROMPTS / f"{name}.txt").read_text(encoding="utf-8").strip()


def generator_prompt(name: str) -> str:
    """The system prompt of the generator ``name``, with its habit where it has one."""
    return prompt("generator").replace("{habit}", HABITS.get(name, "")).strip()


def _turn(role: str, content: str | Mapping) -> dict:
    text = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return {"role": role, "content": text}


def conversation(messages: Iterable[Message]) -> list[dict]:
    return [message.model_dump() for message in messages]


def request(prompt_name: str, content: Mapping, schema: type[BaseModel]) -> Request:
    """A request of a prompt and what it is about, to be answered as ``schema``."""
    return Request((_turn("system", prompt(prompt_name)), _turn("user", content)), schema)


class Roles:
    """All roles of a profile over one file of stored answers, and the classifier's lists."""

    def __init__(self, profile: Profile, answers: Answers, categories: list, specialties: list):
        self.answers, self.languages = answers, tuple(profile.languages)
        self.categories, self.specialties = categories, specialties
        self._endpoints = {
            name: Endpoint(name, settings, settings.endpoint or profile.endpoint, answers)
            for name, settings in profile.roles.items()
        }
        self.generators = [
            name.removeprefix("generator_") for name in profile.roles if name not in ROLES
        ]
        # the writer's drafts have rules beside their form: ``rubric_writer.write`` counts them
        self.drafted: Counter = Counter()

    def outcomes(self) -> dict[str, dict[str, int]]:
        """What became of all that the roles were asked since they were built: valid, repaired,
        unanswered."""
        counts = {name: endpoint.outcomes for name, endpoint in self._endpoints.items()}
        counts["writer"] = self.drafted
        return {name: {o: n[o] for o in OUTCOMES} for name, n in counts.items() if n}

    def write(
        self, asked: Sequence[Instruction], examples: Sequence[list], repairs: Sequence[tuple] = ()
    ) -> list[Answer]:
        """A ``Draft`` for each instruction, shown its ``examples`` first.

        Those are (instruction, its corrected criteria). ``repairs``: the draft that broke rules and
        which, for each instruction; it is shown and to be written anew.
        """
        requests = []
        for n, instruction in enumerate(asked):
            turns = [_turn("system", prompt("writer"))]
            for shown, criteria in examples[n]:
                fields = [c.model_dump(include={"dimension", "text", "weight"}) for c in criteria]
                turns.append(_turn("user", {"instruction": conversation(shown.messages)}))
                turns.append(_turn("assistant", {"criteria": fields}))
            turns.append(_turn("user", {"instruction": conversation(instruction.messages)}))
            if repairs:
                draft, broken = repairs[n]
                again = {"broken_rules": list(broken), "task": "write the whole rubric again"}
                turns += [_turn("assistant", draft.model_dump()), _turn("user", again)]
            requests.append(Request(tuple(turns), Draft))
        return self._endpoints["writer"].ask(requests)

    def screen(self, conversations: Sequence[Sequence[Message]]) -> list[Answer]:
        """Difficulty 0-10 of each conversation."""
        asked = [{"instruction": conversation(messages)} for messages in conversations]
        requests = [request("screener", content, Screened) for content in asked]
        return self._endpoints["screener"].ask(requests, lambda _, reply: reply.difficulty)

    def classify(self, conversations: Sequence[Sequence[Message]]) -> list[Answer]:
        """``Classified`` with category and specialty of the allowed lists."""
        lists = {"categories": self.categories, "specialties": self.specialties}

        def allowed(_, reply: Classified) -> Classified:
            if reply.category not in self.categories or reply.specialty not in self.specialties:
                raise ValueError(f"{reply.category!r}, {reply.specialty!r} are not in the lists")
            return reply

        asked = [{"instruction": conversation(messages)} | lists for messages in conversations]
        requests = [request("classifier", content, Classified) for content in asked]
        return self._endpoints["classifier"].ask(requests, allowed)

    def answer(self, generator: str, asked: Sequence[Instruction]) -> list[Answer]:
        """One generator's answers, as plain text in one of the profile's languages."""

        def understood(_, text: str) -> str:
            if code := languages.foreign(text, self.languages):
                raise ValueError(f"written in language {code!r}")
            return text

        system = _turn("system", generator_prompt(generator))
        requests = [Request((system, *conversation(i.messages))) for i in asked]
        return self._endpoints[f"generator_{generator}"].ask(requests, understood)

    def judge(self, tasks: Sequence[Task]) -> list[list[Verdict]]:
        """Verdicts of each task, exactly one for every criterion: see ``judged``."""
        return judged(self._endpoints["judge"], tasks)


def judged(endpoint: Endpoint, tasks: Sequence[Task]) -> list[list[Verdict]]:
    """Verdicts of each task by a judge's endpoint, exactly one for every criterion.

    A reply must name exactly the criteria asked, each once; one that stays unreadable, and a
    request without an answer, is ``unknown`` on all of them, with the reason as rationale.
    """
    requests = []
    for task in tasks:
        content = {"instruction": conversation(task.instruction.messages)}
        named = short_names(task.criteria).items()
        criteria = [{"id": name, "text": criterion.text} for name, criterion in named]
        content |= {"answer": task.candidate.text, "criteria": criteria}
        requests.append(request("judge", content, Judged))
    answers = endpoint.ask(requests, lambda n, reply: exactly(reply.verdicts, tasks[n].criteria))
    verdicts = []
    for task, answer in zip(tasks, answers, strict=True):
        unread = JudgedCriterion(criterion="", reason=answer.reason, verdict="unknown")
        of_task = []
        for name, criterion in short_names(task.criteria).items():
            said = answer.value[name] if answer.value else unread
            about = {"candidate_id": task.candidate.id, "criterion_id": criterion.id}
            about |= {"verdict": said.verdict, "rationale": said.reason}
            of_task.append(Verdict(judge="judge", **about))
        verdicts.append(of_task)
    return verdicts


def exactly(replies: Sequence, criteria: Sequence[Criterion]) -> dict:
    """The reply on each criterion, by its short name; ValueError unless there is one of each."""
    names, wanted = [reply.criterion for reply in replies], short_names(criteria)
    if sorted(names) != sorted(wanted):
        raise ValueError(f"verdicts on {sorted(names)}, asked for {sorted(wanted)}")
    return dict(zip(names, replies, strict=True))


def short_names(criteria: Sequence[Criterion]) -> dict[str, Criterion]:
    """Short names for a request: the records' ids are long, and tell the criterion's kind."""
    return {f"c{n}": c for n, c in enumerate(criteria, 1)}
