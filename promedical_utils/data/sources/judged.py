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
    """(questions with a pair, what was left out and how often) of a set in ``READERS``.

    ``splits``: of mediqa, those to keep (all, if none is named). KitError where it cannot be
    reached.
    """
    rows = schemas.read(CARD[name])
    questions, left_out = READERS[name]([row for row in rows if not splits or row.split in splits])
    kept = [q for q in questions if q.pairs]
    if len(kept) < len(questions):
        left_out["questions without two unequal scores"] = len(questions) - len(kept)
    return kept, left_out


def _scored(id: str, text: str, source: str, answers: Sequence[tuple[str, str, int]]) -> Question:
    """Of (answer id, text, score); the pairs are in the order of the ids, which tells nothing."""
    score = {i: s for i, _, s in answers}
    pairs = []
    for a, b in combinations(sorted(score), 2):
        if score[a] != score[b]:
            pairs.append((a, b, 1 if score[a] > score[b] else -1))
    return Question(
        question(id, source, text, "consumer_question"),
        tuple(
            Candidate(id=i, instruction_id=id, generator="retrieved", text=t) for i, t, _ in answers
        ),
        tuple(pairs),
        short_hash(wording(text)),
    )


def mediqa(rows: Sequence[schemas.MediqaQuestion]) -> tuple[list[Question], dict[str, int]]:
    """The reference score of 1 to 4 orders the answers; ids as in ``real_sets`` (notebook 01)."""
    questions = []
    for row in rows:
        id = f"mediqa-{row.split}-{row.qid}"
        answers = [(f"{id}-{a.aid}", a.text, a.score) for a in row.answers]
        questions.append(_scored(id, row.question, "mediqa", answers))
    return questions, {}


def medquad(rows: Sequence[schemas.MedquadAnswer]) -> tuple[list[Question], dict[str, int]]:
    """The judged score of 1 to 4 orders the answers.

    168 answers were judged twice, and never alike: they have no score here (kit's decision, a mean
    would order them by who happened to judge twice).
    """
    scores = defaultdict(set)
    for row in rows:
        scores[row.qid, row.aid].add(row.score)
    last = {(row.qid, row.aid): row for row in rows}
    answers = defaultdict(list)
    for (qid, aid), given in scores.items():
        if len(given) == 1:
            answers[qid].append((f"medquad-{qid}-{aid}", last[qid, aid].answer, min(given)))
    text = {row.qid: row.question for row in rows}
    questions = [_scored(f"medquad-{q}", text[q], "medquad", a) for q, a in answers.items()]
    return questions, {"answers judged differently": sum(len(s) > 1 for s in scores.values())}


def rewardbench(rows: Sequence[schemas.RewardBenchPair]) -> tuple[list[Question], dict[str, int]]:
    """A row is a pair; which of the two is called a is drawn by hash: the order tells nothing."""
    questions, alike = [], 0
    for number, row in enumerate(rows):
        id = f"rewardbench-{number:04d}"
        side_of = {f"{id}-{short_hash(id, side)[:6]}": side for side in ("chosen", "rejected")}
        a, b = sorted(side_of)
        texts = {i: row.last(side) for i, side in side_of.items()}
        if texts[a] == texts[b]:
            alike += 1
            continue
        questions.append(
            Question(
                question(id, "medical_rewardbench", row.prompt, "medical_instruction"),
                tuple(
                    Candidate(id=i, instruction_id=id, generator="unknown", text=texts[i])
                    for i in (a, b)
                ),
                ((a, b, 1 if side_of[a] == "chosen" else -1),),
                short_hash(wording(row.prompt)),
                row.label_type.lower(),
            )
        )
    return questions, {"pairs of the same text": alike} if alike else {}


CARD = {
    "mediqa": "mediqa",
    "medquad": "medquad_judged",
    "medical_rewardbench": "medical_rewardbench",
}
READERS = {"mediqa": mediqa, "medquad": medquad, "medical_rewardbench": rewardbench}
