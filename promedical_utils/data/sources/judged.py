"""Answer pairs whose order people judged, of public sets: evaluation only, without criteria.

MEDIQA-2019 and MedQuAD: retrieved passages scored 1 to 4, a pair is two answers to one question of
unequal score. Medical RewardBench: one pair a row, which medical experts revised.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from promedical_utils.core.records import Candidate, Instruction, Rubric
from promedical_utils.core.workspace import short_hash
from promedical_utils.data.sources import schemas
from promedical_utils.data.sources.schemas import grouped, question, wording

# Pairs of each subset of Medical RewardBench, by its card
SUBSETS = {"easy": 238, "hard": 196, "length": 180, "human": 163}


@dataclass(frozen=True)
class Question:
    """``pairs``: of two answers the better, (a id, b id, 1 if a, -1 if b), no ties; ``rubrics``:
    by the text that a reward model is given."""

    instruction: Instruction
    candidates: tuple[Candidate, ...]
    pairs: tuple[tuple[str, str, int], ...]
    condition: str
    subset: str = ""
    rubrics: Mapping[str, Rubric] = field(default_factory=dict)


def read(name: str) -> tuple[list[Question], dict[str, int]]:
    """(questions with a pair, what was left out and how often) of a set in ``SETS``.

    KitError where it cannot be reached.
    """
    (card, adapter), left_out = SETS[name], Counter()
    questions = list(adapter(schemas.read(card), left_out))
    kept = [asked for asked in questions if asked.pairs]
    if len(kept) < len(questions):
        left_out["questions without two unequal scores"] = len(questions) - len(kept)
    return kept, dict(left_out)


def _scored(
    asked: Instruction, answers: Sequence[tuple], generator: str = "retrieved", subset: str = ""
) -> Question:
    """Of (answer id, text, score); the pairs are in the order of the ids, which tells nothing."""
    score, pairs = {id: points for id, _, points in answers}, []
    for a, b in combinations(sorted(score), 2):
        if score[a] != score[b]:
            pairs.append((a, b, 1 if score[a] > score[b] else -1))
    own = {"instruction_id": asked.id, "generator": generator}
    candidates = tuple(Candidate(id=id, text=text, **own) for id, text, _ in answers)
    condition = short_hash(wording(asked.messages[-1].content))
    return Question(asked, candidates, tuple(pairs), condition, subset)


def mediqa(rows: Sequence, _: Counter) -> Iterator[Question]:
    """The reference score of 1 to 4 orders the answers."""
    for row in rows:
        asked = question(f"mediqa-{row.split}-{row.qid}", "mediqa", row.question, CONSUMER)
        yield _scored(asked, [(f"{asked.id}-{a.aid}", a.text, a.score) for a in row.answers])


def medquad(rows: Sequence, left_out: Counter) -> Iterator[Question]:
    """The judged score of 1 to 4 orders the answers. 168 were judged twice, and never alike: they
    have none (kit's decision, a mean would order them by who happened to judge twice)."""
    text, answers = {row.qid: row.question for row in rows}, defaultdict(list)
    for (qid, aid), of_answer in grouped(rows, lambda row: (row.qid, row.aid)).items():
        if len({row.score for row in of_answer}) > 1:
            left_out["answers judged differently"] += 1
        else:
            answers[qid].append((f"medquad-{qid}-{aid}", of_answer[-1].answer, of_answer[-1].score))
    for qid, scored in answers.items():
        yield _scored(question(f"medquad-{qid}", "medquad", text[qid], CONSUMER), scored)


def rewardbench(rows: Sequence, left_out: Counter) -> Iterator[Question]:
    """A row is a pair; which of the two is called a is drawn by hash: the order tells nothing."""
    for number, row in enumerate(rows):
        id, source = f"rewardbench-{number:04d}", "medical_rewardbench"
        answers = []
        for side in ("chosen", "rejected"):
            given = getattr(row, side)
            text = given if isinstance(given, str) else given[-1].content
            answers.append((f"{id}-{short_hash(id, side)[:6]}", text, side == "chosen"))
        if answers[0][1] == answers[1][1]:
            left_out["pairs of the same text"] += 1
        else:
            asked = question(id, source, row.prompt, "medical_instruction")
            yield _scored(asked, sorted(answers), "unknown", row.label_type.lower())


CONSUMER = "consumer_question"
SETS = {  # name -> its card, and the adapter that makes questions of its rows
    "mediqa": ("mediqa", mediqa),
    "medquad": ("medquad_judged", medquad),
    "medical_rewardbench": ("medical_rewardbench", rewardbench),
}
