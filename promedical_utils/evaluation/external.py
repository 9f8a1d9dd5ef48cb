"""External generalization: which of two answers is better, by what text the reward model is given.

The paper's table has three columns and says little of them (method, sections 4 and 6). Kit's
reading, each without and with retrieved documents in the instruction:
q           question and answer. A criterion-conditioned model is given one neutral criterion,
            ``NEUTRAL``, since it cannot be given none; a scalar reads as it always does.
q_criteria  the whole rubric, read criterion by criterion and put together by a rule.
q_sub       the same with composite criteria taken apart (``sub_rubric``).
What a system or a set (of no criteria) cannot do has no row.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_utils.clinic import external as clinic_external
from promedical_utils.clinic.pool import text_of
from promedical_utils.core.estimates import Estimates
from promedical_utils.core.profiles import LAYERED, Profile
from promedical_utils.core.records import Message, Rubric
from promedical_utils.core.run_data import RunData
from promedical_utils.core.workspace import KitError, project_root, short_hash
from promedical_utils.data.sources import judged, real_sets
from promedical_utils.data.sources.judged import Question
from promedical_utils.data.sources.real_sets import NEUTRAL
from promedical_utils.evaluation import retrieval
from promedical_utils.evaluation.scorers import by_answer
from promedical_utils.reward_model.variants import CONDITIONAL
from promedical_utils.rubric import scoring
from promedical_utils.rubric.preferences import Group, compared

TEXTS = ("q", "q_criteria", "q_sub")
# reward models that are read, those of the run that there are; and what the verdicts of RULED are
# put together by, besides the lexicographic order
MODELS = ("criterion", "scalar_overall", "rar_implicit")
RULES = ("rar_explicit", "orbit")
RULED = "criterion"
AT = (1, 3, 5, 10)  # of recall
KEY = ["set", "system", "text", "retrieval"]
PAIR = ["instruction_id", "a_id", "b_id"]
COLUMNS = [*KEY, "subset", "instruction_id", "condition", "a_id", "b_id"]
COLUMNS += ["label", "prefers", "score_a", "score_b"]
NOT_TESTABLE = (
    "not tested in this profile: its reward models are trained on the clinic's invented text; "
    "those of the profile real are trained and tested on text of people"
)
SAME_QUESTIONS = "its questions are MEDIQA-2019's in other words, and that is run"


@dataclass(frozen=True)
class Set:
    """Answer pairs; ``documents`` to retrieve from, {id: text}; by instruction id ``wanted``, the
    documents that it lacks, and ``queries``, what is searched for (all that the patient wrote where
    there is none). ``about`` goes into the report."""

    questions: Sequence[Question]
    documents: Mapping[str, str] = field(default_factory=dict)
    wanted: Mapping[str, Sequence[str]] = field(default_factory=dict)
    queries: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, object] = field(default_factory=dict)


def sub_rubric(rubric: Rubric, joint: str) -> Rubric:
    """The rubric with every criterion that ``joint`` holds together taken apart: part n is
    ``<id>/n``, with an equal share of the weight; exact in the clinic alone."""
    criteria = []
    for c in rubric.criteria:
        parts = c.text.split(joint)
        for n, part in enumerate(parts, 1):
            own = {"id": f"{c.id}/{n}", "text": part, "weight": c.weight / len(parts)}
            criteria.append(c.model_copy(update=own) if len(parts) > 1 else c)
    return rubric.model_copy(update={"criteria": criteria})


def by_rule(rule: Callable, rubric: Rubric, met: Mapping, likely: Mapping) -> tuple[int, int]:
    """``scoring.expected_key`` by a linear rule: its value of the verdicts, then its expectation
    under P(met)."""
    _, adds = scoring.linear(rule, rubric)
    value = rule(rubric, {name: "met" for name, passed in met.items() if passed})
    expected = sum(likely[name] * gain for name, gain in adds.items())
    return scoring.whole(value), scoring.whole(expected)


def read_by(system: str, rm, questions: Sequence[Question], text: str) -> tuple[dict, int]:
    """({system: {candidate id: score}} that one reward model gives, number of answers that it cut).
    Of a model of criteria q is the raw score under ``NEUTRAL``, else the answer's place among those
    to its question, by the lexicographic order and, of ``RULED``, by RULES. A scalar has q alone.
    """
    if text != "q" and rm.view in ("overall", "blind"):
        return {}, 0
    groups = []
    for q in questions:
        criteria = (NEUTRAL,) if text == "q" else tuple(q.rubrics[text].criteria)
        groups.append(Group(q.instruction, criteria, q.candidates, {}))
    frame = rm.score_groups(groups, shorten=True)
    cut = int(frame.groupby("candidate_id").cut.first().gt(0).sum())
    if text == "q" or rm.view not in CONDITIONAL:
        return {system: dict(zip(frame.candidate_id, frame.score, strict=True))}, cut
    if rm.calibration is None:
        raise KitError(
            f"{system}: no calibration.json, so its scores give no verdicts; run 03_reward_model"
        )
    of = {(g.instruction.id, c.id): c.dimension for g in groups for c in g.criteria}
    dimensions = pd.Series([of[key] for key in zip(frame.instruction_id, frame.criterion_id)])
    likely = np.nan_to_num(rm.calibration.probability(frame.score, dimensions))
    frame = frame.assign(likely=likely, met=rm.calibration.met(frame.score, dimensions))
    met, likely = by_answer(frame, "met"), by_answer(frame, "likely")  # a NaN score: not met
    keys_of: dict[str, Callable] = {system: scoring.expected_key}
    if system == RULED:
        keys_of |= {name: partial(by_rule, scoring.RULES[name]) for name in RULES}
    scores: dict[str, dict[str, float]] = {name: {} for name in keys_of}
    for group, (name, key_of) in product(groups, keys_of.items()):
        ids = [c.id for c in group.candidates]
        keys = [key_of(group.rubric, met[i], likely[i]) for i in ids]
        scores[name] |= zip(ids, scoring.ranks(keys), strict=True)
    return scores, cut


def texts_of(questions: Sequence[Question]) -> list[str]:
    """The columns that a set has: q, and those for which every question has a rubric."""
    return [t for t in TEXTS if questions and all(t == "q" or t in q.rubrics for q in questions)]


def predictions(key: tuple, questions: Sequence[Question], scores: Mapping[str, float]):
    """``COLUMNS`` under a ``KEY``, a row a pair; equal scores are a tie, NaN no preference."""
    rows = []
    for q in questions:
        own = (*key, q.subset, q.instruction.id, q.condition)
        for a, b, label in q.pairs:
            prefers = np.sign(scores[a] - scores[b])  # NaN where one of them is
            rows.append((*own, a, b, label, prefers, scores[a], scores[b]))
    types = {"retrieval": bool, "label": int, "prefers": float, "score_a": float, "score_b": float}
    return pd.DataFrame(rows, columns=COLUMNS).astype(types)


def with_retrieved(external: Set, rm, k: int) -> tuple[list[Question], dict]:
    """The questions with what retrieval found in their instruction, and the report on it: the same
    for every text and model, so room is kept for the whole rubric."""
    from promedical_utils.reward_model import packing  # loads torch

    index = retrieval.Index(external.documents)
    asked = [q.instruction for q in external.questions]
    queries = [external.queries.get(i.id) or text_of(i.messages) for i in asked]
    best = index.search(queries, max(k, *AT))
    questions, shown = [], []
    for q, ids in zip(external.questions, best, strict=True):
        rubrics = [r.criteria for r in q.rubrics.values()] or [[NEUTRAL]]
        tails = ["".join(map(packing.criterion_text, criteria)) for criteria in rubrics]
        turns = [m.model_dump() for m in q.instruction.messages]
        texts = [external.documents[i] for i in ids[:k]]
        turns, kept = retrieval.with_documents(
            rm.tokenizer, turns, [a.text for a in q.candidates], tails, texts, rm.max_tokens
        )
        shown.append([ids[n] for n in kept])
        changed = {"messages": [Message(**turn) for turn in turns]}
        questions.append(replace(q, instruction=q.instruction.model_copy(update=changed)))
    placed = sum(map(len, shown))
    report = {"library": "bm25s", "documents": len(index.ids), "asked_for": k}
    report["in_instructions"] = placed
    report["did_not_fit"] = sum(len(ids[:k]) for ids in best) - placed
    if external.wanted:
        wanted = [external.wanted[i.id] for i in asked]
        shares = retrieval.recall(best, wanted, AT)
        report |= {
            "wanted": sum(map(len, wanted)),
            "recall": {str(n): round(share, 4) for n, share in shares.items()},
            "recall_in_instructions": round(retrieval.recall(shown, wanted, [k])[k], 4),
        }
    return questions, report


def clinic_set(seed: int, size: int, taken: Sequence[int] = ()) -> Set:
    """The external clinic as answer pairs, labelled by the true verdicts of its atomic rubric;
    ``about`` counts the ties, which are left out, and says what true verdicts on the texts shown
    would reach: a composite counts two violations as one."""
    made, documents = clinic_external.build(seed, size, taken)
    questions, right, tied = [], dict.fromkeys(TEXTS[1:], 0.0), 0
    for asked in made:
        verdicts = {a.id: asked.verdicts(a) for a in asked.candidates}
        pairs = _pairs(asked.gold, verdicts)
        tied += math.comb(len(asked.candidates), 2) - len(pairs)
        rubrics = {"q_criteria": asked.shown}
        rubrics["q_sub"] = sub_rubric(asked.shown, clinic_external.JOIN)
        own = asked.instruction, asked.candidates, pairs, asked.patient.condition
        questions.append(Question(*own, rubrics=rubrics))
        for text, rubric in rubrics.items():
            best = {a: _parts(own, rubric, asked.parts) for a, own in verdicts.items()}
            said = {(a, b): side for a, b, side in _pairs(rubric, best)}  # a tie is a half
            right[text] += sum((1 + said.get((a, b), 0) * side) / 2 for a, b, side in pairs)
    total = max(sum(len(q.pairs) for q in questions), 1)
    ceiling = {text: round(hits / total, 4) for text, hits in right.items()}
    wanted = {asked.instruction.id: asked.withheld for asked in made}
    queries = {asked.instruction.id: asked.question for asked in made}
    about = {"tied_pairs_left_out": tied, "ceiling": ceiling}
    return Set(questions, documents, wanted, queries, about)


def _pairs(rubric: Rubric, verdicts: Mapping[str, Mapping[str, str]]) -> tuple:
    """(a, b, 1 where a is better or -1) of every two answers, without ties."""
    scores = {name: scoring.score(rubric, verdicts[name]) for name in sorted(verdicts)}
    return tuple(compared(scores))


def _parts(verdicts: Mapping[str, str], rubric: Rubric, parts: Mapping) -> dict[str, str]:
    """True verdicts on composites and on their parts, from those on the atomic criteria."""
    composite = {}
    for c in rubric.criteria:
        whole, _, number = c.id.partition("/")
        atoms = [parts[whole][int(number) - 1]] if number else parts[whole]
        composite[c.id] = "met" if all(verdicts[i] == "met" for i in atoms) else "not_met"
    return composite


def sets(profile: Profile, run: Path) -> Iterator[tuple[str, Set | str]]:
    """(name, the set, or the reason why it is not run) of the four. A profile of real text draws
    ``external_instructions`` questions of each, by their ids; 0: all."""
    if profile.data != "clinic":
        why = "these reward models have not learned from the clinic"
        yield "clinic", f"data is {profile.data}: {why}"
    elif not profile.external_instructions:
        yield "clinic", "external_instructions is 0"
    else:
        taken = [row.wording_seed for row in RunData.load(run, "splits").splits]
        yield "clinic", clinic_set(profile.seed, profile.external_instructions, taken)
    documents = {}
    if profile.documents == "medquad":  # NIH's answers to other questions
        documents = {row.id: row.answer for row, _ in real_sets.medquad_texts(profile.seed)}
    elif profile.documents:  # a notebook runs in more than one folder, so a path is from the root
        documents = retrieval.read_documents(project_root() / profile.documents)
    for name in judged.SETS:
        yield name, _real_set(profile, name, documents)


def _real_set(profile: Profile, name: str, documents: Mapping[str, str]) -> Set | str:
    if profile.data == "clinic" and profile.base_model in LAYERED:
        return NOT_TESTABLE
    if profile.data == "real" and name == "medquad":
        return SAME_QUESTIONS
    try:
        questions, left_out = judged.read(name)
    except KitError as error:
        return str(error)
    if profile.data == "real" and (most := profile.external_instructions):
        questions.sort(key=lambda q: short_hash("external", q.instruction.id))
        left_out |= {"questions not drawn": max(0, len(questions) - most)}
        questions = questions[:most]
    return Set(questions, documents, about={"left_out": left_out})


def estimates(frame: pd.DataFrame, by: Sequence[str] = KEY) -> Estimates:
    """Pair accuracy over the instructions by some columns of the predictions. A tie counts as a
    half, and no preference (NaN) as wrong."""
    samples = frame[["instruction_id", "condition"]].drop_duplicates()
    samples = samples.sort_values("instruction_id", ignore_index=True)
    right = frame.prefers.eq(frame.label) + 0.5 * frame.prefers.eq(0)
    rows = pd.Index(samples.instruction_id).get_indexer(frame.instruction_id)
    groups = frame.assign(row=rows, right=right).groupby(list(by), sort=False)
    return Estimates.of_items(samples, by, ((key, own.row, own.right) for key, own in groups))


def measures(frame: pd.DataFrame, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """``estimates`` of every KEY: value, low, high, n (pairs); a set's rows share the draws."""
    tables = [estimates(part).table(draws, seed) for _, part in frame.groupby("set", sort=False)]
    if not tables:
        return pd.DataFrame(columns=[*KEY, "value", "low", "high", "n"])
    return pd.concat(tables, ignore_index=True)
