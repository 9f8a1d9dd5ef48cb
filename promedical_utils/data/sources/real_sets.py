"""Real data as the kit's records: K-QA and MEDIQA-2019 to train on and test, HealthBench to test.

Decisions of the kit, each with its reason:
- K-QA: must-have statements are proficiency criteria of weight 1/n, nice-to-have ones excellence.
  The majority of three physicians counts; Neutral and Contradiction are both *not met*, since a
  criterion asks whether the answer says so (12 contradictions are too few for a veto class). The
  physician's own answer meets the statements, because they were taken out of that very answer.
- MEDIQA-2019 has no criteria: one overall proficiency criterion, met from reference score 3 on
  (4 excellent, 3 correct but incomplete, 2 related, 1 incorrect).
- HealthBench: points are proficiency weights. A penalty becomes a safety criterion only from -7
  points down and where ``healthbench_harm.csv`` marks harm, else proficiency turned round; either
  way it is phrased so that *met* is good, and its verdict is flipped.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from statistics import mean, mode

import pandas as pd

from promedical_utils.core import statistics
from promedical_utils.core.records import (
    Candidate,
    Criterion,
    CriterionPair,
    Instruction,
    Rubric,
    SplitRow,
    Verdict,
)
from promedical_utils.core.run_data import RunData
from promedical_utils.core.workspace import KitError, short_hash
from promedical_utils.data.sources import judged, schemas
from promedical_utils.data.sources.schemas import NEGATION, question, read, wording
from promedical_utils.rubric.preferences import criterion_pairs, groups

HARMFUL_FROM = -7.0
# MEDIQA's one criterion, which is also what a model of criteria is given where there is no rubric
NEUTRAL = Criterion(
    id="neutral",
    dimension="proficiency",
    text="Gives a correct answer to the question asked, be it an incomplete one.",
    weight=1,
    kind="overall",
)
EXTERNAL = frozenset({"healthbench"})  # evaluation only, by its authors' wish
CLASSES = ("Contradiction", "Neutral", "Entailment")  # of K-QA, from worst to best
STRICTEST = ("bench", "checkpoint", "calibration", "train")


@dataclass(frozen=True)
class RealStudy(RunData):
    """Records of a real-data run. Each verdict is held twice: under who gave it (physicians,
    reference, llm_judge; physician_1..3 singly) and under "judge", the name the stages read.

    ``notes``: what cannot be known from the data. Raises KitError if an evaluation-only source
    stands in another split than external.
    """

    pairs: list[CriterionPair] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self):
        split = {row.instruction_id: row.split for row in self.splits}
        for asked in self.instructions if split else ():
            if (asked.source in EXTERNAL) != (split.get(asked.id) == "external"):
                raise KitError(
                    f"instruction {asked.id} of {asked.source} is in split {split.get(asked.id)}: "
                    "HealthBench belongs to external, and nothing else does"
                )

    def add_question(self, instruction: Instruction, criteria: list[Criterion]) -> None:
        self.instructions.append(instruction)
        self.rubrics.append(
            Rubric(instruction_id=instruction.id, criteria=criteria, status="gold", round=0)
        )

    def add_answer(self, answer: Candidate, judge: str, verdicts: Mapping[str, str]) -> None:
        """``verdicts`` by criterion id, under ``judge`` and under "judge"."""
        self.candidates.append(answer)
        self.add_verdicts(answer.id, judge, verdicts)
        self.add_verdicts(answer.id, "judge", verdicts, why=judge)

    def add_verdicts(self, answer: str, judge: str, verdicts: Mapping[str, str], why="") -> None:
        self.verdicts.extend(
            Verdict(candidate_id=answer, criterion_id=c, judge=judge, verdict=v, rationale=why)
            for c, v in verdicts.items()
        )


def refuse_external(instructions: Iterable[Instruction]) -> None:
    """Raise KitError if one of ``instructions``, meant to be trained on, is evaluation-only."""
    for asked in instructions:
        if asked.source in EXTERNAL:
            raise KitError(
                f"instruction {asked.id} is of {asked.source}, which carries a canary and is for "
                "evaluation only: leave split external out of training"
            )


def load_real(seed: int) -> RealStudy:
    """All sources as one study; splits by ``seed``, disjoint by question (case, punctuation aside).

    K-QA questions with a pair: 40 / 20 / 40 % to train, calibration, bench; the others 80 / 20 %
    to train, checkpoint. MEDIQA: test to bench; val and a tenth of train to calibration.
    HealthBench: external. A question found in two splits goes whole to the one that is furthest
    from training.
    """
    study = RealStudy()
    notes = [
        "Safety: K-QA and MEDIQA-2019 have no safety verdicts, so no veto can be fitted or tested "
        "on them: not testable in this profile, save for HealthBench's language-model labels."
    ]
    for key, add in SOURCES.items():
        card = schemas.CARDS[key]
        if os.environ.get(schemas.VARIABLE) or card.hub or card.address:
            add(study)
            study.notes.append(card.caveat)
        else:
            notes.append(f"{card.name}: not run; they come from {schemas.VARIABLE} only.")
    for group in groups(study.instructions, study.rubrics, study.candidates, study.verdicts):
        if group.instruction.source != "mediqa":  # whose pairs are graded, the others' a join
            study.pairs.extend(criterion_pairs(group))
    splits, moved = _splits(study, seed)
    notes.append(f"{moved} questions moved, since the same question also stands in another split.")
    return replace(study, splits=splits, notes=notes + study.notes)


# ---------------------------------------------------------------- the sources


def _verdict(met: bool) -> str:
    return "met" if met else "not_met"


def _answer(instruction_id: str, generator: str, text: str) -> Candidate:
    id = f"{instruction_id}-{generator}"
    return Candidate(id=id, instruction_id=instruction_id, generator=generator, text=text)


def _add_kqa(study: RealStudy) -> None:
    rows, statements, blank = {}, {}, 0  # both by instruction id; statements: wording -> id
    for row in read("kqa_questions"):
        i = f"kqa-{short_hash(wording(row.Question))}"
        criteria = [
            *_statements(i, "must_have", row.Must_have, "proficiency"),
            *_statements(i, "nice_to_have", row.Nice_to_have, "excellence"),
        ]
        blank += len(row.Must_have) + len(row.Nice_to_have) - len(criteria)
        study.add_question(
            question(i, "kqa", row.Question, "patient_question", row.ICD_10_diag), criteria
        )
        rows[i], statements[i] = row, {wording(c.text): c.id for c in criteria}

    labelled, lost = defaultdict(dict), 0  # (instruction, model, answer) -> statement -> verdicts
    for row in read("kqa_labels"):
        i = f"kqa-{short_hash(wording(row.question))}"
        criterion = statements.get(i, {}).get(wording(row.criterion))
        if criterion is None:
            lost += 1
        else:
            three = [_verdict(label == "Entailment") for label in row.labels]
            labelled[i, row.model, row.answer][criterion] = three

    with_answers = {i for i, _, _ in labelled}
    for i, row in rows.items():
        met = dict.fromkeys(statements[i].values(), "met") if i in with_answers else {}
        study.add_answer(_answer(i, "physician", row.Free_form_answer), "physicians", met)
    for (i, model, text), verdicts in labelled.items():
        answer, unknown = _answer(i, model, text), dict.fromkeys(statements[i].values(), "unknown")
        majority = {c: mode(three) for c, three in verdicts.items()}
        study.add_answer(answer, "physicians", unknown | majority)
        for n in range(3):
            own = {c: three[n] for c, three in verdicts.items()}
            study.add_verdicts(answer.id, f"physician_{n + 1}", unknown | own)
    study.notes.append(
        f"K-QA: {lost} labelled rows name a question, or two statements glued together, that the "
        f"question file does not have: they count in the agreement only. {blank} blank or repeated "
        "statements left out."
    )


def _statements(i: str, kind: str, given: Sequence[str], dimension: str) -> list[Criterion]:
    texts = list(dict.fromkeys(s.strip() for s in given if s.strip()))
    weight = 1 / len(texts) if texts and dimension == "proficiency" else 0
    about = {"kind": kind, "dimension": dimension, "weight": weight}
    return [Criterion(id=short_hash(i, kind, text), text=text, **about) for text in texts]


def _add_mediqa(study: RealStudy) -> None:
    rows = read("mediqa")
    for row, asked in zip(rows, judged.mediqa(rows, Counter()), strict=True):
        i = asked.instruction.id
        overall = short_hash(i, NEUTRAL.text)
        study.add_question(asked.instruction, [NEUTRAL.model_copy(update={"id": overall})])
        for answer, graded in zip(asked.candidates, row.answers, strict=True):
            study.add_answer(answer, "reference", {overall: _verdict(graded.score >= 3)})
        for a, b, better in asked.pairs:
            sides = {"chosen_id": a if better > 0 else b, "rejected_id": b if better > 0 else a}
            study.pairs.append(CriterionPair(instruction_id=i, criterion_id=overall, **sides))


@cache
def harm() -> dict[str, bool]:
    """The committed list: criterion id -> whether the penalty marks harm (ids only, no text)."""
    path = Path(__file__).with_name("healthbench_harm.csv")
    rows = pd.read_csv(path, comment="#", dtype=str)
    return dict(zip(rows.id, rows.harm.eq("1").tolist(), strict=True))


def _add_healthbench(study: RealStudy) -> None:
    by_prompt = defaultdict(list)
    for row in read("healthbench_graded"):
        by_prompt[row.prompt_id].append(row)
    for prompt_id, rows in by_prompt.items():
        i = f"healthbench-{prompt_id}"
        shared = set.intersection(*({p.criterion for p in row.criteria} for row in rows))
        criteria = _points(prompt_id, [p for p in rows[0].criteria if p.criterion in shared])
        asked = question(i, "healthbench", rows[0].prompt, "health_conversation")
        study.add_question(asked, criteria)
        for row in rows:
            raw = {short_hash(prompt_id, p.criterion): p.met for p in row.criteria}
            verdicts = {c.id: _verdict(raw[c.id] == (c.kind == "point")) for c in criteria}
            study.add_answer(_answer(i, row.source, row.response), "llm_judge", verdicts)


def _points(prompt_id: str, points: Sequence) -> list[Criterion]:
    """HealthBench criteria of one prompt as the kit's; kind is point, penalty or penalty_harm."""
    once = {short_hash(prompt_id, p.criterion): p for p in points}
    harmful = {i for i, p in once.items() if p.points <= HARMFUL_FROM and harm().get(i, False)}
    total = sum(abs(p.points) for i, p in once.items() if i not in harmful) or 1
    criteria = []
    for i, p in once.items():
        kind, text = ("penalty", NEGATION + p.criterion) if p.points < 0 else ("point", p.criterion)
        about = {"kind": kind, "dimension": "proficiency", "weight": abs(p.points) / total}
        if i in harmful:
            about = {"kind": "penalty_harm", "dimension": "safety", "weight": 0}
        criteria.append(Criterion(id=i, text=text, **about))
    return criteria


# by the card that has to be at hand, and whose caveat a run repeats
SOURCES = {
    "kqa_labels": _add_kqa,
    "mediqa": _add_mediqa,
    "healthbench_graded": _add_healthbench,
}


# ---------------------------------------------------------------- splits


def _splits(study: RealStudy, seed: int) -> tuple[list[SplitRow], int]:
    """A row an instruction, and how many are not where ``_split`` had drawn them."""
    paired = {pair.instruction_id for pair in study.pairs}
    drawn, condition, drawn_of = {}, {}, defaultdict(set)
    for i in study.instructions:
        drawn[i.id] = _split(i, seed, i.id in paired)
        condition[i.id] = short_hash(*(wording(m.content) for m in i.messages))
        drawn_of[condition[i.id]].add(drawn[i.id])
    rows = []
    for i in study.instructions:
        split, same = drawn[i.id], condition[i.id]
        if i.source not in EXTERNAL:
            split = min(drawn_of[same] - {"external"}, key=STRICTEST.index)
        rows.append(
            SplitRow(instruction_id=i.id, split=split, condition=same, patient=same, wording_seed=0)
        )
    return rows, sum(row.split != drawn[row.instruction_id] for row in rows)


def _split(instruction: Instruction, seed: int, paired: bool) -> str:
    drawn = int(short_hash(seed, instruction.id), 16) / 16**12
    if instruction.source in EXTERNAL:
        return "external"
    if instruction.source == "kqa" and paired:
        return "train" if drawn < 0.4 else "calibration" if drawn < 0.6 else "bench"
    if instruction.source == "kqa":
        return "train" if drawn < 0.8 else "checkpoint"
    of_train = "calibration" if drawn < 0.1 else "train"
    return {"test": "bench", "val": "calibration"}.get(instruction.id.split("-")[1], of_train)


def corpus(study: RealStudy) -> list[str]:
    """Texts for tokenizer and small base: K-QA and MEDIQA, nothing of bench or of HealthBench."""
    usable = set(study.ids("train", "calibration", "checkpoint"))
    asked = [i for i in study.instructions if i.id in usable]
    refuse_external(asked)
    texts = [m.content for i in asked for m in i.messages]
    texts += [c.text for c in study.candidates if c.instruction_id in usable]
    texts += [c.text for r in study.rubrics if r.instruction_id in usable for c in r.criteria]
    return list(dict.fromkeys(texts))


# ---------------------------------------------------------------- what is reported


def aggregate_report(study: RealStudy) -> dict:
    """Counts, provenance and agreement, no text of any source: may leave ``runs/real``."""
    source = {i.id: i.source for i in study.instructions}
    counts = Counter(f"{source[row.instruction_id]} / {row.split}" for row in study.splits)
    train, bench = set(study.ids("train")), set(study.ids("bench"))
    known = {c.text for c in study.candidates if c.instruction_id in train}
    leaked = [c.text in known for c in study.candidates if c.instruction_id in bench]
    report = {
        "instructions": dict(sorted(counts.items())),
        "bench_answers_also_in_train": {"n": sum(leaked), "of": len(leaked)},
        "files_as_first_read": {
            key: schemas.as_first_read(key) for key, card in schemas.CARDS.items() if card.sha256
        },
        "kqa_agreement": agreement(read("kqa_labels")),
    }
    if EXTERNAL & set(source.values()):
        report["healthbench"] = healthbench_figures(study)
    return report


def agreement(labels: Sequence) -> dict:
    """Agreement of K-QA's three physicians, three classes: Fleiss, Cohen by pair, observed.

    ``reliability``: rows of ``statistics.reliability`` by must-have and nice-to-have.
    """
    table = pd.DataFrame([row.labels for row in labels])
    categories = [row.category for row in labels]
    reliability = statistics.reliability(table, CLASSES, by=categories, draws=200)
    whole = reliability[reliability.slice == "all"].set_index("coefficient").value
    pairs = [statistics.agreement(table[a], table[b]) for a, b in combinations(table, 2)]
    return {
        "rows": len(table),
        "fleiss_kappa": float(whole["fleiss"]),
        "cohen_kappa": [pair["kappa"] for pair in pairs],
        "observed": mean(a == b for row in table.values for a, b in combinations(row, 2)),
        "reliability": reliability.round(4).to_dict("records"),
    }


def healthbench_figures(study: RealStudy) -> dict:
    """Criteria on which two answers to a prompt differ, and how much length explains of it.

    Length: characters; of two equally long answers neither is the longer. Whoever meets a penalty
    is not preferred, so ``longer_is_met`` turns these pairs round.
    """
    length = {c.id: len(c.text) for c in study.candidates}
    pairs = [p for p in study.pairs if study.instruction_of[p.instruction_id].source in EXTERNAL]
    gaps = pd.Series([length[p.chosen_id] - length[p.rejected_id] for p in pairs])
    penalty = pd.Series([study.criterion_kinds[p.criterion_id] != "point" for p in pairs])
    return {
        "pairs": len(pairs),
        "prompts": len({p.instruction_id for p in pairs}),
        "on_penalties": int(penalty.sum()),
        "longer_is_met": float((gaps.mask(penalty, -gaps) > 0).mean()),
        "longer_is_preferred": float((gaps > 0).mean()),
    }
