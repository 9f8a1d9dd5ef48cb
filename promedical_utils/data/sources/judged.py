"""Answer pairs whose order people judged, of public medical sets: evaluation only, without
criteria.

MEDIQA-2019 and MedQuAD: retrieved passages scored 1 to 4, a pair is two answers to one question of
unequal score. Medical RewardBench: one pair a row, which medical experts revised.

    questions, left_out = judged.read("medquad")
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from promedical_utils.core.records import Candidate, Instruction, Message, Rubric
from promedical_utils.core.workspace import short_hash
from promedical_utils.data.sources import schemas
from promedical_utils.data.sources.real_sets import _plain as plain

SUBSETS = {
    "easy": 238,
    "hard": 196,
    "length": 180,
    "human": 163,
}  # of Medical RewardBench, its card


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
    """(questions with a pair, what was left out and how often) of mediqa, medquad,
    medical_rewardbench.

    ``splits``: of mediqa, those to keep (all, if none is named). KitError where it cannot be
    reached.
    """
    rows = schemas.read(CARD[name])
    return READERS[name]([row for row in rows if not splits or row.split in splits])


def _question(
    name: str, text: str, source: str, answers: Sequence[tuple[str, str, int]]
) -> Question:
    """Of (answer id, text, score); the pairs are in the order of the ids, which tells nothing."""
    candidates = tuple(
        Candidate(id=i, instruction_id=name, generator="retrieved", text=t) for i, t, _ in answers
    )
    score = {i: s for i, _, s in answers}
    sides = combinations(sorted(score), 2)
    pairs = tuple(
        (a, b, 1 if score[a] > score[b] else -1) for a, b in sides if score[a] != score[b]
    )
    asked = Instruction(
        id=name,
        category="consumer_question",
        specialty="unspecified",
        source=source,
        difficulty=5,
        messages=[Message(role="user", content=text)],
    )
    return Question(asked, candidates, pairs, short_hash(plain(text)))


def mediqa(rows: Sequence[schemas.MediqaQuestion]) -> tuple[list[Question], dict[str, int]]:
    """The reference score of 1 to 4 orders the answers; ids as in ``real_sets`` (notebook 01)."""
    asked = [
        _question(
            name := f"mediqa-{row.split}-{row.qid}",
            row.question,
            "mediqa",
            [(f"{name}-{a.aid}", a.text, a.score) for a in row.answers],
        )
        for row in rows
    ]
    return _with_pairs(asked, {})


def medquad(rows: Sequence[schemas.MedquadAnswer]) -> tuple[list[Question], dict[str, int]]:
    """The judged score of 1 to 4 orders the answers.

    168 answers were judged twice, and never alike: they have no score here (kit's decision, a mean
    would order them by who happened to judge twice).
    """
    scores, text, question = defaultdict(set), {}, {}
    for row in rows:
        scores[row.qid, row.aid].add(row.score)
        text[row.qid, row.aid], question[row.qid] = row.answer, row.question
    answers = defaultdict(list)
    for (qid, aid), given in scores.items():
        if len(given) == 1:
            answers[qid].append((f"medquad-{qid}-{aid}", text[qid, aid], min(given)))
    asked = [
        _question(f"medquad-{q}", question[q], "medquad", found) for q, found in answers.items()
    ]
    return _with_pairs(
        asked, {"answers judged differently": sum(len(s) > 1 for s in scores.values())}
    )


def rewardbench(rows: Sequence[schemas.RewardBenchPair]) -> tuple[list[Question], dict[str, int]]:
    """A row is a pair; which of the two is called a is drawn by hash, so that order tells
    nothing."""
    asked, alike = [], 0
    for number, row in enumerate(rows):
        name = f"rewardbench-{number:04d}"
        chosen, rejected = (
            f"{name}-{short_hash(name, side)[:6]}" for side in ("chosen", "rejected")
        )
        a, b = sorted((chosen, rejected))
        texts = {chosen: row.last("chosen"), rejected: row.last("rejected")}
        if texts[a] == texts[b]:
            alike += 1
            continue
        asked.append(
            Question(
                Instruction(
                    id=name,
                    category="medical_instruction",
                    specialty="unspecified",
                    difficulty=5,
                    source="medical_rewardbench",
                    messages=[Message(role="user", content=row.prompt)],
                ),
                tuple(
                    Candidate(id=i, instruction_id=name, generator="unknown", text=texts[i])
                    for i in (a, b)
                ),
                ((a, b, 1 if a == chosen else -1),),
                short_hash(plain(row.prompt)),
                row.label_type.lower(),
            )
        )
    return asked, {"pairs of the same text": alike} if alike else {}


def _with_pairs(
    asked: Sequence[Question], left_out: dict[str, int]
) -> tuple[list[Question], dict[str, int]]:
    kept = [q for q in asked if q.pairs]
    alone = {"questions without two unequal scores": len(asked) - len(kept)}
    return kept, left_out | (alone if len(kept) < len(asked) else {})


CARD = {
    "mediqa": "mediqa",
    "medquad": "medquad_judged",
    "medical_rewardbench": "medical_rewardbench",
}
READERS: dict[str, Callable] = {
    "mediqa": mediqa,
    "medquad": medquad,
    "medical_rewardbench": rewardbench,
}
