"""Answer pairs whose order people judged, of public sets: evaluation only, without criteria.

MEDIQA-2019 and MedQuAD: retrieved passages scored 1 to 4, a pair is two answers to one question of
unequal score. Medical RewardBench: one pair a row, which medical experts revised.

    questions, left_out = judged.read("medquad")
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from promedical_utils.core.records import Candidate, Instruction, Rubric
from promedical_utils.core.workspace import short_hash
from promedical_utils.data.sources import schemas
from promedical_utils.data.sources.questions import question, wording

# Pairs of each subset of Medical RewardBench, by its card
SUBSETS = {"easy": 238, "hard": 196, "length": 180, "human": 163}


@dataclass(frozen=True)
class Question:
    """A question, its answers, and which of two is better: (a id, b id, 1 if a, -1 if b), no ties.

    ``rubrics``: by the text that a reward model is given; empty where a set has no criteria.
    """

    instruction: Instruction
    candidates: tuple[Candidate, ...]
    pairs: tuple[tuple[str, str, int], ...]
    condition: str
    subset: str = ""
    rubrics: Mapping[str, Rubric] = field(default_factory=dict)


def read(name: str, splits: Collection[str] = ()) -> tuple[list[Question], dict[str, int]]:
    """(questions with a pair, what was left out and how often) of a set in ``SETS``.

    ``splits``: of mediqa, those to keep (all, if none is named). KitError where it cannot be
    reached.
    """
    card, adapter = SETS[name]
    rows = schemas.read(card)
    questions, left_out = adapter([row for row in rows if not splits or row.split in splits])
    kept = [q for q in questions if q.pairs]
    if len(kept) < len(questions):
        left_out["questions without two unequal scores"] = len(questions) - len(kept)
    return kept, left_out


def _scored(
    instruction: Instruction,
    answers: Sequence[tuple[str, str, int]],
    generator: str = "retrieved",
    subset: str = "",
) -> Question:
    """Of (answer id, text, score); the pairs are in the order of the ids, which tells nothing."""
    i, score = instruction.id, {name: points for name, _, points in answers}
    pairs = []
    for a, b in combinations(sorted(score), 2):
        if score[a] != score[b]:
            pairs.append((a, b, 1 if score[a] > score[b] else -1))
    candidates = [
        Candidate(id=name, instruction_id=i, generator=generator, text=text)
        for name, text, _ in answers
    ]
    condition = short_hash(wording(instruction.messages[-1].content))
    return Question(instruction, tuple(candidates), tuple(pairs), condition, subset)


def mediqa(rows: Sequence[schemas.MediqaQuestion]) -> tuple[list[Question], dict[str, int]]:
    """The reference score of 1 to 4 orders the answers; ids as in ``real_sets`` (notebook 01)."""
    questions = []
    for row in rows:
        asked = question(f"mediqa-{row.split}-{row.qid}", "mediqa", row.question, CONSUMER)
        questions.append(
            _scored(asked, [(f"{asked.id}-{a.aid}", a.text, a.score) for a in row.answers])
        )
    return questions, {}


def medquad(rows: Sequence[schemas.MedquadAnswer]) -> tuple[list[Question], dict[str, int]]:
    """The judged score of 1 to 4 orders the answers.

    168 answers were judged twice, and never alike: they have no score here (kit's decision, a mean
    would order them by who happened to judge twice).
    """
    judged = defaultdict(list)
    for row in rows:
        judged[row.qid, row.aid].append(row)
    answers, twice = defaultdict(list), 0
    for (qid, aid), of_answer in judged.items():
        if len({row.score for row in of_answer}) > 1:
            twice += 1
        else:
            last = of_answer[-1]
            answers[qid].append((f"medquad-{qid}-{aid}", last.answer, last.score))
    text = {row.qid: row.question for row in rows}
    questions = [
        _scored(question(f"medquad-{qid}", "medquad", text[qid], CONSUMER), scored)
        for qid, scored in answers.items()
    ]
    return questions, {"answers judged differently": twice}


def rewardbench(rows: Sequence[schemas.RewardBenchPair]) -> tuple[list[Question], dict[str, int]]:
    """A row is a pair; which of the two is called a is drawn by hash: the order tells nothing."""
    questions, alike = [], 0
    for number, row in enumerate(rows):
        asked = question(
            f"rewardbench-{number:04d}", "medical_rewardbench", row.prompt, "medical_instruction"
        )
        answers = []
        for side in ("chosen", "rejected"):
            given = getattr(row, side)
            text = given if isinstance(given, str) else given[-1].content
            answers.append((f"{asked.id}-{short_hash(asked.id, side)[:6]}", text, side == "chosen"))
        if answers[0][1] == answers[1][1]:
            alike += 1
        else:
            questions.append(_scored(asked, sorted(answers), "unknown", row.label_type.lower()))
    return questions, {"pairs of the same text": alike} if alike else {}


CONSUMER = "consumer_question"
SETS = {  # name -> its card, and what makes questions of its rows
    "mediqa": ("mediqa", mediqa),
    "medquad": ("medquad_judged", medquad),
    "medical_rewardbench": ("medical_rewardbench", rewardbench),
}
