"""External generalization: which of two answers is better, by what text the reward model is given.

The paper's table has three columns and says little of them (method, sections 4 and 6). Kit's
reading:
q           question and answer. A criterion-conditioned model is given one neutral criterion,
            ``NEUTRAL``, since it cannot be given none; a scalar reads as it always does.
q_criteria  the whole rubric, read criterion by criterion and put together by a rule.
q_sub       the same with composite criteria taken apart into atomic ones, weights shared out
            (``sub_rubric``). Sets without criteria have q alone.
Each without and with retrieved documents in the instruction. What a system cannot do has no row.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_utils.clinic import external as clinic_external
from promedical_utils.core import records, statistics
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Criterion, Rubric, SplitRow
from promedical_utils.core.workspace import (
    KitError,
    project_root,
)
from promedical_utils.data.sources import judged
from promedical_utils.data.sources.judged import Question
from promedical_utils.data.sources.real_sets import OVERALL
from promedical_utils.evaluation import retrieval
from promedical_utils.reward_model.variants import CONDITIONAL
from promedical_utils.rubric import scoring
from promedical_utils.rubric.preferences import Group

TEXTS = ("q", "q_criteria", "q_sub")
# the one criterion that a model of criteria is given where there is no rubric: MEDIQA's in
# notebook 01
NEUTRAL = Criterion(id="neutral", dimension="proficiency", text=OVERALL, weight=1, kind="overall")
# reward models that are read, those of the run that there are; and what their verdicts are put
# together by, besides the lexicographic order
MODELS = ("criterion", "criterion_llama", "scalar_overall", "rar_implicit")
RULES = {"rar_explicit": scoring.rar_explicit, "orbit": scoring.orbit_signed}
RULED = "criterion"  # the model whose verdicts the rules put together
AT = (1, 3, 5, 10)  # of recall
KEY = ["set", "system", "text", "retrieval"]
PAIR = ["instruction_id", "a_id", "b_id"]
COLUMNS = [
    *KEY,
    "subset",
    "instruction_id",
    "condition",
    "a_id",
    "b_id",
    "label",
    "prefers",
    "score_a",
    "score_b",
]
NOT_TESTABLE = (
    "not testable in this profile: its reward models have read the clinic's words only, so a "
    "number "
    "would be of models that have never read such text"
)


@dataclass(frozen=True)
class Set:
    """A set of answer pairs; ``documents`` to retrieve from, {id: text}, empty for none.

    ``wanted``: instruction id -> documents that it lacks; ``queries``: instruction id -> what is
    searched for (``retrieval.query`` where there is none). ``about`` goes into the report.
    """

    questions: Sequence[Question]
    documents: Mapping[str, str] = field(default_factory=dict)
    wanted: Mapping[str, Sequence[str]] = field(default_factory=dict)
    queries: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, object] = field(default_factory=dict)


# ---------------------------------------------------------------- criteria


def sub_rubric(rubric: Rubric, joint: str) -> Rubric:
    """The rubric with every criterion that ``joint`` holds together taken apart.

    Part n has the id ``<id>/n``, dimension and kind of the whole and an equal share of its weight.
    In the clinic this rule finds exactly what was joined; real rubrics need a writer for it.
    """
    criteria = []
    for c in rubric.criteria:
        parts = c.text.split(joint)
        if len(parts) == 1:
            criteria.append(c)
            continue
        criteria += [
            c.model_copy(
                update={"id": f"{c.id}/{n}", "text": part, "weight": c.weight / len(parts)}
            )
            for n, part in enumerate(parts, 1)
        ]
    return rubric.model_copy(update={"criteria": criteria})


def lexicographic(rubric: Rubric, likely: Mapping[str, float], met: Mapping[str, bool]) -> tuple:
    """Sort key of an answer: S3, S1, S2 of its verdicts, then the same expected, as on the bench.

    Expected sums are rounded: the last digit of a sum of floats is no reason to prefer an answer.
    """
    said = {c: "met" if passed else "not_met" for c, passed in met.items()}
    of = {d: [c for c in rubric.criteria if c.dimension == d] for d in records.DIMENSIONS}
    expected = (
        sum(likely[c.id] for c in of["safety"]),
        sum(likely[c.id] * c.weight for c in of["proficiency"]),
        sum(likely[c.id] for c in of["excellence"]),
    )
    return (*scoring.score(rubric, said).key, *map(scoring.whole, expected))


def by_rule(rule, rubric: Rubric, likely: Mapping[str, float], met: Mapping[str, bool]) -> tuple:
    """Sort key by a linear rule, RaR's or ORBIT's: its value of the verdicts, then its expectation.

    Both rules are a sum over criteria that are met, so the expectation needs each one's share only.
    """
    none = rule(rubric, {})
    share = {c.id: rule(rubric, {c.id: "met"}) - none for c in rubric.criteria}
    value = rule(rubric, {c: "met" for c, passed in met.items() if passed})
    return scoring.whole(value), scoring.whole(sum(likely[c] * gain for c, gain in share.items()))


# ---------------------------------------------------------------- predictions


def predictions(
    name: str,
    system: str,
    text: str,
    retrieved: bool,
    questions: Sequence[Question],
    scores: Mapping[str, float],
) -> pd.DataFrame:
    """One row a pair, by the score of each answer: higher is better, equal a tie, NaN no
    preference."""
    rows = []
    for q in questions:
        for a, b, label in q.pairs:
            one, other = scores[a], scores[b]
            prefers = np.sign(one - other)  # NaN where one of them is
            asked = (q.subset, q.instruction.id, q.condition)
            rows.append((name, system, text, retrieved, *asked, a, b, label, prefers, one, other))
    types = {"retrieval": bool, "label": int, "prefers": float, "score_a": float, "score_b": float}
    return pd.DataFrame(rows, columns=COLUMNS).astype(types)


def read_by(
    system: str, rm, questions: Sequence[Question], text: str
) -> tuple[dict[str, dict[str, float]], int]:
    """({system: {candidate id: score}} that one reward model gives, number of answers that it cut).

    Of a model of criteria q is the raw score under ``NEUTRAL``; else the answer's place among the
    answers to its question (``scoring.ranks``), by the lexicographic order and, of model ``RULED``,
    by RULES. A scalar has q alone, and nothing else is given to it.
    """
    if text != "q" and rm.view in ("overall", "blind"):
        return {}, 0
    rubrics = [q.rubrics[text] if text != "q" else _neutral(q) for q in questions]
    groups = [
        Group(q.instruction, tuple(r.criteria), q.candidates, {})
        for q, r in zip(questions, rubrics, strict=True)
    ]
    frame = rm.score_groups(groups, shorten=True)
    cut = int(frame.groupby("candidate_id").cut.first().gt(0).sum())
    if text == "q" or rm.view not in CONDITIONAL:
        return {system: dict(zip(frame.candidate_id, frame.score, strict=True))}, cut
    if rm.calibration is None:
        raise KitError(
            f"{system}: no calibration.json, so its scores give no verdicts; run 03_reward_model"
        )
    dimension = {c.id: c.dimension for r in rubrics for c in r.criteria}
    of = frame.criterion_id.map(dimension)
    frame = frame.assign(
        likely=np.nan_to_num(rm.calibration.probability(frame.score, of)),  # a NaN score: not met
        met=rm.calibration.met(frame.score, of),
    )
    read = {
        candidate: (
            dict(zip(rows.criterion_id, rows.likely)),
            dict(zip(rows.criterion_id, rows.met)),
        )
        for candidate, rows in frame.groupby("candidate_id", sort=False)
    }
    ways = {system: lexicographic}
    if system == RULED:
        ways |= {name: lambda *row, rule=rule: by_rule(rule, *row) for name, rule in RULES.items()}
    found: dict[str, dict[str, float]] = {name: {} for name in ways}
    for q, rubric in zip(questions, rubrics, strict=True):
        ids = [c.id for c in q.candidates]
        for name, way in ways.items():
            keys = [way(rubric, *read[i]) for i in ids]
            found[name] |= zip(ids, scoring.ranks(keys), strict=True)
    return found, cut


def texts_of(questions: Sequence[Question]) -> list[str]:
    """The columns that a set has: q, and those for which every question has a rubric."""
    return [t for t in TEXTS if questions and all(t == "q" or t in q.rubrics for q in questions)]


def _neutral(q: Question) -> Rubric:
    return Rubric(instruction_id=q.instruction.id, criteria=[NEUTRAL], status="draft", round=0)


def lengths(questions: Sequence[Question]) -> dict[str, float]:
    """Longer is better: words of each answer."""
    return {c.id: float(len(c.text.split())) for q in questions for c in q.candidates}


# ---------------------------------------------------------------- retrieval


def with_retrieved(found: Set, rm, k: int) -> tuple[list[Question], dict]:
    """The questions with what retrieval found in their instruction, and the report on it.

    The same text in every column and for every model, so that room is kept for the whole rubric as
    one text (``variants``, view rubric).
    """
    from promedical_utils.reward_model import packing  # loads torch

    index, told = retrieval.Index(found.documents), []
    asked = [[m.model_dump() for m in q.instruction.messages] for q in found.questions]
    queries = [
        found.queries.get(q.instruction.id) or retrieval.query(messages)
        for q, messages in zip(found.questions, asked, strict=True)
    ]
    best = index.search(queries, max(k, *AT))
    shown, left_out = [], 0
    for q, messages, ids in zip(found.questions, asked, best, strict=True):
        rubrics = list(q.rubrics.values()) or [_neutral(q)]
        tails = ["".join(map(packing.criterion_text, r.criteria)) for r in rubrics]
        texts = [found.documents[i] for i in ids[:k]]
        messages, kept = retrieval.with_documents(
            rm.tokenizer, messages, [c.text for c in q.candidates], tails, texts, rm.max_tokens
        )
        shown.append([ids[n] for n in kept])
        left_out += len(texts) - len(kept)
        told.append(
            replace(
                q,
                instruction=q.instruction.model_copy(
                    update={"messages": [records.Message(**m) for m in messages]}
                ),
            )
        )
    report = {
        "library": "bm25s",
        "documents": len(index.ids),
        "asked_for": k,
        "in_instructions": sum(map(len, shown)),
        "did_not_fit": left_out,
    }
    if found.wanted:
        wanted = [found.wanted[q.instruction.id] for q in found.questions]
        report |= {
            "wanted": sum(map(len, wanted)),
            "recall": {str(n): round(v, 4) for n, v in retrieval.recall(best, wanted, AT).items()},
            "recall_in_instructions": round(retrieval.recall(shown, wanted, [k])[k], 4),
        }
    return told, report


# ---------------------------------------------------------------- the sets


def clinic_set(seed: int, size: int, taken: Sequence[int] = ()) -> Set:
    """The external clinic as answer pairs: label by the true verdicts of its atomic rubric; no
    ties."""

    made = clinic_external.build(seed, size, taken)
    said = {c.id: made.verdicts(c) for c in made.candidates}
    questions, ceilings = [], {}
    for asked in made.instructions:
        answers = tuple(c for c in made.candidates if c.instruction_id == asked.id)
        pairs = _pairs(made.gold[asked.id], {a.id: said[a.id] for a in answers})
        shown = made.shown[asked.id]
        rubrics = {"q_criteria": shown, "q_sub": sub_rubric(shown, clinic_external.JOIN)}
        questions.append(
            Question(asked, answers, pairs, made.conditions[asked.id], rubrics=rubrics)
        )
        for text, rubric in rubrics.items():
            best = _pairs(rubric, {a.id: _parts(said[a.id], rubric, made.parts) for a in answers})
            right = len(set(best) & set(pairs))
            ceilings[text] = ceilings.get(text, 0) + right
    total = sum(len(q.pairs) for q in questions)
    authors, n = len({c.generator for c in made.candidates}), len(questions)
    about = {
        "tied_pairs_left_out": n * authors * (authors - 1) // 2 - total,
        # what true verdicts on the texts shown would reach: a composite counts two violations as
        # one
        "ceiling": {text: round(right / max(total, 1), 4) for text, right in ceilings.items()},
    }
    return Set(questions, made.documents, made.withheld, made.questions, about)


def _pairs(
    rubric: Rubric, verdicts: Mapping[str, Mapping[str, str]]
) -> tuple[tuple[str, str, int], ...]:
    scores = {name: scoring.score(rubric, said) for name, said in sorted(verdicts.items())}
    ids = list(scores)
    sides = [
        (a, b, scoring.compare(scores[a], scores[b]))
        for n, a in enumerate(ids)
        for b in ids[n + 1 :]
    ]
    return tuple(side for side in sides if side[2])


def _parts(
    said: Mapping[str, str], rubric: Rubric, parts: Mapping[str, Sequence[str]]
) -> dict[str, str]:
    """True verdicts on composites and on their parts, from those on the atomic criteria."""
    verdicts = {}
    for c in rubric.criteria:
        whole, _, number = c.id.partition("/")
        asked = parts[whole] if not number else [parts[whole][int(number) - 1]]
        verdicts[c.id] = "met" if all(said[i] == "met" for i in asked) else "not_met"
    return verdicts


def sets(profile: Profile, run: Path) -> Iterator[tuple[str, Set | str]]:
    """(name, the set, or the reason why it is not run) of the four."""
    if profile.data == "clinic":
        rows = records.load(run / "data/splits.parquet", SplitRow, "01_rubrics")
        taken = [row.wording_seed for row in rows]
        if profile.external_instructions:
            yield "clinic", clinic_set(profile.seed, profile.external_instructions, taken)
        else:
            yield "clinic", "external_instructions is 0"
    else:
        yield (
            "clinic",
            f"data is {profile.data}: these reward models have not learned from the clinic",
        )
    documents = {}
    if profile.documents:  # a notebook runs in more than one folder, so a path is from the root
        documents = retrieval.read_documents(project_root() / profile.documents)
    for name in judged.CARD:
        if profile.data == "clinic" and profile.base_model == "small":
            yield name, NOT_TESTABLE
        elif profile.data == "real" and name == "medquad":
            yield (
                name,
                "its questions are, in other words, MEDIQA-2019's that this profile trains on",
            )
        else:
            # the real profile trains on the other splits (notebook 01)
            splits = ("test",) if name == "mediqa" and profile.data == "real" else ()
            try:
                questions, left_out = judged.read(name, splits)
            except KitError as error:
                yield name, str(error)
            else:
                yield name, Set(questions, documents, about={"left_out": left_out})


# ---------------------------------------------------------------- metrics


def measures(frame: pd.DataFrame, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Pair accuracy of every (set, system, text, retrieval), a share with its 95 % interval.

    Columns: KEY, value, low, high, n (pairs), ties. A tie counts as wrong, and so does no
    preference.
    Intervals draw conditions, then instructions within them; all rows of a set share the draws.
    """
    rows = []
    for _, part in frame.groupby("set", sort=False):
        keys, hits, counts, weights = _sums(part, draws, seed)
        values = statistics.ratio(hits, counts, np.ones((1, len(hits))))[0]
        low, high = statistics.interval(statistics.ratio(hits, counts, weights))
        tied = part.prefers.eq(0).groupby([part[c] for c in KEY], sort=False).sum()
        for n, key in enumerate(keys):
            rows.append((*key, values[n], low[n], high[n], int(counts[:, n].sum()), int(tied[key])))
    return pd.DataFrame(rows, columns=[*KEY, "value", "low", "high", "n", "ties"])


def paired(
    frame: pd.DataFrame, first: Mapping, second: Mapping, draws: int = 1000, seed: int = 0
) -> dict:
    """Accuracy of ``first`` minus that of ``second``, on the same pairs: difference, low, high, n.

    Each names one row of ``measures`` by what tells it apart: {"system": "criterion", "text":
    "q_sub", "retrieval": True}. KitError if it names none or several, or if they have no pair in
    common.
    """
    both = [_one(frame, named) for named in (first, second)]
    shared = both[0].merge(both[1][PAIR], on=PAIR)[PAIR]
    if shared.empty:
        raise KitError(f"{dict(first)} and {dict(second)} have no answer pair in common")
    parts = [part.merge(shared, on=PAIR).assign(side=n) for n, part in enumerate(both)]
    _, hits, counts, weights = _sums(pd.concat(parts), draws, seed, ["side"])
    found = statistics.contrast(hits, counts, {0: 1.0, 1: -1.0}, weights)
    return {**found, "n": len(shared)}


def _one(frame: pd.DataFrame, named: Mapping) -> pd.DataFrame:
    part = frame
    for column, value in named.items():
        part = part[part[column] == value]
    if len(part[KEY].drop_duplicates()) != 1:
        raise KitError(
            f"{dict(named)} names {len(part[KEY].drop_duplicates())} rows, not one: say more"
        )
    return part


def _sums(frame: pd.DataFrame, draws: int, seed: int, by: Sequence[str] = KEY):
    """(keys, hits, counts, weights): (instructions, keys) twice, and (draws, instructions)."""
    asked = frame[["instruction_id", "condition"]].drop_duplicates().sort_values("instruction_id")
    if asked.instruction_id.duplicated().any():
        raise KitError("predictions: an instruction with two conditions; run notebook 06 again")
    right = frame.prefers.eq(frame.label)  # False for NaN
    at = pd.MultiIndex.from_frame(frame[list(by)])
    keys = list(at.unique())
    column, row = (
        at.unique().get_indexer(at),
        pd.Index(asked.instruction_id).get_indexer(frame.instruction_id),
    )
    hits, counts = np.zeros((2, len(asked), len(keys)))
    np.add.at(hits, (row, column), right.to_numpy(float))
    np.add.at(counts, (row, column), 1)
    weights = statistics.two_stage_weights(asked.condition.to_list(), draws, seed)
    return keys, hits, counts, weights
