"""Real data as the kit's records: labels of people and of language models, and constructed pairs.

Whose labels, which split, and what they cannot say: ``docs/real_sets.md``. Decisions of the kit:
- K-QA: must-have statements are proficiency criteria of weight 1/n, nice-to-have ones excellence.
  The majority of three physicians counts; Neutral and Contradiction are both *not met*, since a
  criterion asks whether the answer says so (12 contradictions are too few for a veto class). The
  physician's own answer meets the statements, which were taken out of it.
- LostBench: the instruction is a conversation up to an answer, where two or more were given to it.
  A rubric needs proficiency, so it has an overall criterion that nobody judged.
- HealthBench: points are proficiency weights. A penalty becomes a safety criterion only from -7
  points down and where ``healthbench_harm.csv`` marks harm, else proficiency turned round; either
  way it is phrased so that *met* is good, and its verdict is flipped. One from -7 points down that
  the list does not have is of unknown kind: a safety criterion, or left out if ``load_real`` is
  told so, and counted either way.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from itertools import combinations
from pathlib import Path
from statistics import mode
from typing import Literal, NamedTuple

import pandas as pd

from promedical_utils.core import statistics
from promedical_utils.core.records import (
    Candidate,
    Criterion,
    CriterionPair,
    Instruction,
    Message,
    Rubric,
    Split,
    SplitRow,
    Verdict,
)
from promedical_utils.core.run_data import RunData
from promedical_utils.core.workspace import KitError, read_yaml, short_hash
from promedical_utils.data.sources import contrast_sets, judged, schemas
from promedical_utils.data.sources.question_split import TRAINING_SIDE, QuestionSplit, alike
from promedical_utils.data.sources.schemas import at_hand, grouped, question, read, wording
from promedical_utils.rubric.preferences import criterion_pairs, groups

HARMFUL_FROM = -7.0
NEGATION = "Does NOT do the following: "  # turns a fault round, so that *met* is good
# evaluation only: HealthBench and HealthBench Professional by their authors' wish
PROFESSIONAL = "healthbench_professional"
EXTERNAL = frozenset({"healthbench", PROFESSIONAL, "lostbench"})
CLASSES = ("Contradiction", "Neutral", "Entailment")  # of K-QA, from worst to best
LABEL_SETS = read_yaml(Path(__file__).with_name("label_sets.yaml"))
NEUTRAL = Criterion(id="neutral", **LABEL_SETS["neutral"][0])
UNLISTED = "penalties of -7 points or worse that the list of harm does not have: {}"
# of two statements glued together, or of a question that is not asked
LOST = "labelled rows of no statement of its question, counted in the agreement only"


class _Answer(NamedTuple):
    """``verdicts`` by criterion id; ``singly``: of each labeller; ``name``: within its question,
    where its generator has several."""

    generator: str
    text: str
    verdicts: Mapping[str, str]
    singly: Mapping[str, Mapping[str, str]] = {}
    name: str = ""


class _Asked(NamedTuple):
    """A question before it has a split. ``known_by``: all its wordings, the first one names it."""

    id: str
    prompt: str | list[Message]
    category: str
    criteria: list[Criterion]
    answers: Iterable[_Answer]
    known_by: Sequence[str]
    specialty: str | None = None
    trained_on: bool = True


@dataclass(frozen=True)
class RealStudy(RunData):
    """Records of a real-data run. Each verdict is held twice: under who gave it (``LABELS`` of its
    source; of K-QA also physician_1..3 singly) and under "judge", the name the stages read.

    ``notes``: what cannot be known from the data. ``left_out``: what is not here, by "source:
    reason". ``known_by``: instruction id -> the wordings of its question. Raises KitError if an
    evaluation-only source stands in another split than external.
    """

    notes: list[str] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)
    known_by: dict[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self):
        split = {row.instruction_id: row.split for row in self.splits}
        for asked in self.instructions if split else ():
            if (asked.source in EXTERNAL) != (split.get(asked.id) == "external"):
                raise KitError(
                    f"instruction {asked.id} of {asked.source} is in split {split.get(asked.id)}: "
                    f"{' and '.join(sorted(EXTERNAL))} belong to external, and nothing else does"
                )

    @cached_property
    def pairs(self) -> list[CriterionPair]:
        return [pair for group in groups(self) for pair in criterion_pairs(group)]

    def add(self, source: str, asked: _Asked, condition: str, split: Split) -> None:
        """A question and its answers; of a text that is labelled twice one, unknown where its
        labels differ. Both are counted."""
        i, place = asked.id, {"condition": condition, "patient": condition, "split": split}
        rubric = Rubric(instruction_id=i, criteria=asked.criteria, status="gold", round=0)
        self.instructions.append(question(i, source, asked.prompt, asked.category, asked.specialty))
        self.rubrics.append(rubric)
        self.splits.append(SplitRow(instruction_id=i, wording_seed=0, **place))
        self.known_by[i] = asked.known_by
        for first, *again in grouped(asked.answers, lambda answer: wording(answer.text)).values():
            id, verdicts = f"{i}-{first.name or first.generator}", dict(first.verdicts)
            for other in again:
                self.left_out[f"{source}: texts labelled again"] += 1
                for c in verdicts:
                    if verdicts[c] != other.verdicts[c]:
                        verdicts[c] = "unknown"
                        self.left_out[f"{source}: labels of one text that differ, unknown"] += 1
            labels, about = LABELS[source], {"generator": first.generator, "text": first.text}
            self.candidates.append(Candidate(id=id, instruction_id=i, **about))
            for judge, given in {labels: verdicts, "judge": verdicts, **first.singly}.items():
                why = labels if judge == "judge" else ""
                for c, v in given.items():
                    ids = {"candidate_id": id, "criterion_id": c, "judge": judge}
                    self.verdicts.append(Verdict(verdict=v, rationale=why, **ids))

    def only(self, answers: set[str]) -> "RealStudy":
        """The study of these answers and of the questions that have one."""
        kept = [c for c in self.candidates if c.id in answers]
        answered = {c.instruction_id for c in kept}
        return replace(
            self,
            instructions=[i for i in self.instructions if i.id in answered],
            rubrics=[r for r in self.rubrics if r.instruction_id in answered],
            splits=[row for row in self.splits if row.instruction_id in answered],
            candidates=kept,
            verdicts=[v for v in self.verdicts if v.candidate_id in answers],
            preferences=[p for p in self.preferences if {p.chosen_id, p.rejected_id} <= answers],
        )


def refuse_external(instructions: Iterable[Instruction]) -> None:
    """Raise KitError if one of ``instructions``, meant to be trained on, is evaluation-only."""
    for asked in instructions:
        if asked.source in EXTERNAL:
            raise KitError(
                f"instruction {asked.id} is of {asked.source}, which is for evaluation only "
                "(HealthBench carries a canary): leave split external out of training"
            )


def load_real(
    seed: int, sources: Collection[str] = (), unlisted: Literal["veto", "left out"] = "veto"
) -> RealStudy:
    """``sources`` (all of ``SOURCES``, if none is named) as one study, split by question.

    All that is at hand is read first, so that an arm without a source has no other question on any
    side. What training would share with the test side, question or answer, is left out of training.
    ``unlisted``: what becomes of HealthBench's grave penalties that the list of harm does not have
    (``criteria_of``); a note says how many there were.
    KitError for a source that is unknown, and for one that is asked for and not at hand.
    """
    if unknown := sorted(set(sources) - SOURCES.keys()):
        raise KitError(f"no real source {', '.join(unknown)}: name some of {', '.join(SOURCES)}")
    study, split, wanted = RealStudy(), QuestionSplit(seed), sources or SOURCES
    must_be_there = bool(sources or os.environ.get(schemas.VARIABLE))
    for source, (key, adapter) in SOURCES.items():
        card = schemas.CARDS[key]
        if not at_hand(key) and not (source in wanted and must_be_there):
            study.notes.append(f"{card.name}: not run; they come from {schemas.VARIABLE} only.")
            continue
        left_out, options = Counter(), {"unlisted": unlisted} if source == "healthbench" else {}
        asked = list(adapter(split, left_out, **options))
        placed = split.place([one.known_by for one in asked])
        for one, (condition, where, _) in zip(asked, placed, strict=True):
            if source in EXTERNAL:
                where = "external"
            elif where == "train" and not one.trained_on:
                where = "bench"
            study.add(source, one, condition, where)
        study.left_out.update({f"{source}: {reason}": n for reason, n in left_out.items()})
        study.notes.extend([card.caveat] * (source in wanted))
        if (n := left_out[UNLISTED.format(unlisted)]) and source in wanted:
            study.notes.append(f"HealthBench: {n} {UNLISTED.format(unlisted)}.")
    study = _apart(study)
    named = {i.id for i in study.instructions if i.source in wanted}
    return study.only({c.id for c in study.candidates if c.instruction_id in named})


def _apart(study: RealStudy) -> RealStudy:
    """The study without what its training side shares with the test side; then without what train
    shares with what a threshold and a checkpoint are chosen on. All of it is counted.

    Left out are questions that ask, nearly in its words, what one over there asks; then answers
    that stand there; then questions without an answer left.
    """
    test = {row.split for row in study.splits} - set(TRAINING_SIDE)
    for side, others, where, answers in (
        (TRAINING_SIDE, test, "the test side", judged_answers()),
        (TRAINING_SIDE[:1], TRAINING_SIDE[1:], "calibration or checkpoint", []),
    ):
        mine, theirs = set(study.ids(*side)), set(study.ids(*others))
        asked = [(i, text) for i, texts in study.known_by.items() if i in mine for text in texts]
        known = [text for i, texts in study.known_by.items() if i in theirs for text in texts]
        twins = {asked[n][0] for n in alike([text for _, text in asked], known, questions=True)}
        given = [c for c in study.candidates if c.instruction_id in mine - twins]
        answers += [c.text for c in study.candidates if c.instruction_id in theirs]
        repeated = [given[n] for n in alike([c.text for c in given], answers)]
        gone = {c.id for c in repeated}
        kept = [c for c in study.candidates if c.instruction_id not in twins and c.id not in gone]
        bare = mine - twins - {c.instruction_id for c in kept}
        for reason, lost in {
            f"training questions that are nearly one of {where}": twins,
            f"training answers that stand in {where}": [c.instruction_id for c in repeated],
            f"training questions without an answer left beside {where}": bare,
        }.items():
            study.left_out.update(f"{study.instruction_of[i].source}: {reason}" for i in lost)
        study = study.only({c.id for c in kept})
    return study


def held_out_questions() -> dict[str, str]:
    """What the real sets that are at hand ask, for other sets to be kept apart from, by a name."""
    split = QuestionSplit(0)
    known = {f"{name}/{n}": text for n, (text, name) in enumerate(split.fixed.items())}
    for key in filter(at_hand, ("kqa_questions", *MEDLFQA)):
        known |= {f"{key}/{n}": row.Question for n, row in enumerate(read(key))}
    for key, adapter in map(SOURCES.get, ("patientqa", "medhallu", "healthbench")):
        for asked in adapter(split, Counter()) if at_hand(key) else ():
            known |= {f"{asked.id}/{n}": text for n, text in enumerate(asked.known_by)}
    for row in read(PROFESSIONAL) if at_hand(PROFESSIONAL) else ():
        known[f"{PROFESSIONAL}/{row.prompt_id}"] = " ".join(m.content for m in row.prompt)
    return known


def judged_answers() -> list[str]:
    """Answers of MEDIQA-2019, and of MedQuAD's judged ones where they are at hand."""
    others = read("medquad_judged") if at_hand("medquad_judged") else []
    texts = [answer.text for row in read("mediqa") for answer in row.answers]
    return texts + [row.answer for row in others]


def _verdict(met: bool) -> str:
    return "met" if met else "not_met"


def _constant(instruction_id: str, source: str) -> list[Criterion]:
    """The criteria of ``source`` in label_sets.yaml."""
    criteria = []
    for row in LABEL_SETS[source]:
        about = {"weight": 0} | {name: row[name] for name in row.keys() & Criterion.model_fields}
        criteria.append(Criterion(id=short_hash(instruction_id, row["kind"]), **about))
    return criteria


def _kqa(_: QuestionSplit, left_out: Counter) -> Iterator[_Asked]:
    labels = grouped(read("kqa_labels"), lambda label: wording(label.question))
    left_out[LOST] += sum(map(len, labels.values()))
    for row in read("kqa_questions"):
        of_question = labels.pop(wording(row.Question), [])
        if not of_question:
            continue  # of kqa_contrast
        i = f"kqa-{short_hash(wording(row.Question))}"
        criteria = _statements(i, "must_have", row.Must_have, "proficiency")
        criteria += _statements(i, "nice_to_have", row.Nice_to_have, "excellence")
        statements = len(row.Must_have) + len(row.Nice_to_have)
        left_out["blank or repeated statements"] += statements - len(criteria)
        criterion, by_answer = {wording(c.text): c.id for c in criteria}, defaultdict(dict)
        for label in of_question:
            three = [_verdict(said == CLASSES[-1]) for said in label.labels]
            if c := criterion.get(wording(label.criterion)):
                by_answer[label.model, label.answer][c] = three
                left_out[LOST] -= 1
        met = dict.fromkeys(criterion.values(), "met")
        answers = [_Answer("physician", row.Free_form_answer, met)]
        for (model, text), labelled in by_answer.items():
            three = dict.fromkeys(criterion.values(), ["unknown"] * 3) | labelled
            singly = {
                f"physician_{n + 1}": {c: said[n] for c, said in three.items()} for n in range(3)
            }
            majority = {c: mode(said) for c, said in three.items()}
            answers.append(_Answer(model, text, majority, singly))
        about = (row.Question, "patient_question", criteria, answers, [row.Question])
        yield _Asked(i, *about, row.ICD_10_diag)


def _statements(i: str, kind: str, given: Sequence[str], dimension: str) -> list[Criterion]:
    texts = dict.fromkeys(text.strip() for text in given if text.strip())
    weight = 1 / len(texts) if texts and dimension == "proficiency" else 0
    about = {"kind": kind, "dimension": dimension, "weight": weight}
    return [Criterion(id=short_hash(i, kind, text), text=text, **about) for text in texts]


def _patientqa(_: QuestionSplit, left_out: Counter) -> Iterator[_Asked]:
    given, by_prompt = read("patientqa"), defaultdict(list)
    asked = [row for row in given if (row.question or "").strip() and row.question_id]
    left_out["rows without a question text"] = len(given) - len(asked)
    for rows in grouped(asked, lambda row: (row.part, row.question_id)).values():
        rows.sort(key=lambda row: row.question_variant or "")  # "original" before "v1"
        by_prompt[wording(rows[0].question)] += rows  # two ids may ask the same
    for rows in by_prompt.values():
        i = f"patientqa-{short_hash(wording(rows[0].question))}"
        criteria = _constant(i, "patientqa")
        answers = [
            _Answer(row.model, row.answer, _levels(row, criteria, left_out), name=row.id)
            for row in rows
        ]
        known_by = list(dict.fromkeys(row.question for row in rows))
        about = (i, known_by[0], "patient_question", criteria, answers, known_by)
        yield _Asked(*about, trained_on="LiveQA" not in rows[0].part)


def _levels(row, criteria: Sequence[Criterion], left_out: Counter) -> dict[str, str]:
    """Verdicts by criterion id; a level that label_sets.yaml does not have is counted."""
    verdicts = {}
    for criterion, rule in zip(criteria, LABEL_SETS["patientqa"], strict=True):
        level = "; ".join(str(getattr(row, column)) for column in rule["columns"])
        known = [v for v in ("met", "not_met", "unknown") if level in rule.get(v, ())]
        left_out[f"levels of {criterion.kind} that are missing or unheard of"] += not known
        verdicts[criterion.id] = (known or ["unknown"])[0]
    return verdicts


def _medhallu(_: QuestionSplit, left_out: Counter) -> Iterator[_Asked]:
    for row in read("medhallu"):
        i = f"medhallu-{row.id}"
        [criterion] = _constant(i, "medhallu")
        right = _Answer("study", row.ground_truth, {criterion.id: "met"})
        wrong = _Answer("twin", row.hallucinated_answer, {criterion.id: "not_met"})
        about = (row.question, "research_question", [criterion], [right, wrong], [row.question])
        yield _Asked(i, *about)


def _medec(_: QuestionSplit, left_out: Counter) -> Iterator[_Asked]:
    for row in read("medec"):
        if not row.text.strip():
            left_out["blank rows"] += 1
            continue
        i = f"medec-{row.id}"
        [criterion] = _constant(i, "medec")
        verdict = {criterion.id: _verdict(row.flag == "0")}
        answers = [_Answer("upstream", row.text, verdict)]
        numbered, broken = sentences(row.numbered)
        left_out["lines joined to the sentence that they break"] += broken
        if row.flag == "1":
            other = wording(numbered.get(row.number, "")) != wording(row.sentence)
            left_out["errors that are not the numbered sentence"] += other
            if row.corrected.strip() in ("", "NA"):
                left_out["errors without a correction, so no pair"] += 1
            else:
                corrected = {criterion.id: "met"}
                answers.append(_Answer("corrected", row.corrected, corrected))
        yield _Asked(i, "Write up this case.", "case_report", [criterion], answers, [row.text])


def sentences(lines: str) -> tuple[dict[str, str], int]:
    """Sentences of "<number> <sentence>" lines by number, and how many lines were parts of one,
    since they do not begin with the next number: they belong to the sentence before."""
    found, broken = [], 0
    for line in filter(str.strip, lines.split("\n")):
        number, _, text = line.partition(" ")
        if number == str(len(found)):
            found.append(text)
        else:
            found[-1:], broken = [" ".join([*found[-1:], line])], broken + 1
    return {str(n): text for n, text in enumerate(found)}, broken


def _lostbench(_: QuestionSplit, left_out: Counter) -> Iterator[_Asked]:
    given = [(row, grade) for row in read("lostbench") for grade in row.grades]
    by_prompt = grouped(given, lambda of: str(of[0].messages[: of[1].message]))
    for prompt, graded in by_prompt.items():
        if len(graded) == 1:
            left_out["answers with no other to compare with"] += 1
            continue
        i = f"lostbench-{short_hash(prompt)}"
        overall, escalation = _constant(i, "neutral") + _constant(i, "lostbench")
        answers = []
        for row, grade in graded:
            text = row.messages[grade.message].content
            verdicts = {overall.id: "unknown", escalation.id: _verdict(grade.maintained)}
            name = f"{row.id}-{grade.message}"
            answers.append(_Answer(row.model, text, verdicts, name=name))
        before = row.messages[: grade.message]  # the same of all that are compared
        yield _Asked(i, before, "emergency", [overall, escalation], answers, [row.condition])


def _contrasts(cards: Sequence[str], split: QuestionSplit, left_out: Counter) -> Iterator[_Asked]:
    """Pairs made of answers whose statements are known, of questions off the fixed test side."""
    given = [row for card in cards for row in read(card)]
    answered = [row for row in given if row.Free_form_answer.strip()]
    rows = {wording(row.Question): row for row in reversed(answered)}
    left_out["blank answers"] = len(given) - len(answered)
    left_out["questions that stand twice"] = len(answered) - len(rows)
    placed = split.place([[row.Question] for row in rows.values()])
    for (key, row), (_, where, fixed) in zip(rows.items(), placed, strict=True):
        if fixed:
            left_out["questions of the fixed test side"] += 1
            continue
        i, answer = f"{cards[0]}-{short_hash(key)}", row.Free_form_answer
        statements = [contrast_sets.Statement("must_have", text) for text in row.Must_have]
        statements += [contrast_sets.Statement("nice_to_have", text) for text in row.Nice_to_have]
        made = contrast_sets.contrast(i, answer, statements, split.seed, where != "train", left_out)
        if made is None:
            left_out["questions without a contrast"] += 1
            continue
        answers = [_Answer(name, text, verdicts) for name, text, verdicts in made.answers]
        yield _Asked(i, row.Question, "patient_question", made.criteria, answers, [row.Question])


@cache
def harm() -> dict[str, bool]:
    """The committed list: criterion id -> whether the penalty marks harm (ids only, no text)."""
    path = Path(__file__).with_name("healthbench_harm.csv")
    return pd.read_csv(path, comment="#", dtype=str, index_col="id").harm.eq("1").to_dict()


def _healthbench(_: QuestionSplit, left_out: Counter, unlisted="veto") -> Iterator[_Asked]:
    by_prompt = grouped(read("healthbench_graded"), lambda row: row.prompt_id)
    for prompt_id, rows in by_prompt.items():
        shared = set.intersection(*({p.criterion for p in row.criteria} for row in rows))
        points = [p for p in rows[0].criteria if p.criterion in shared]
        criteria = criteria_of(prompt_id, points, unlisted, left_out)
        answers, prompt = [], rows[0].prompt
        for row in rows:
            raw = {short_hash(prompt_id, p.criterion): p.met for p in row.criteria}
            verdicts = {c.id: _verdict(raw[c.id] == (c.kind == "point")) for c in criteria}
            answers.append(_Answer(row.source, row.response, verdicts))
        about = ("health_conversation", criteria, answers, [" ".join(m.content for m in prompt)])
        yield _Asked(f"healthbench-{prompt_id}", prompt, *about)


def criteria_of(
    prompt_id: str,
    points: Sequence[schemas.Point],
    unlisted: Literal["veto", "left out"] = "veto",
    counts: Counter | None = None,
) -> list[Criterion]:
    """HealthBench criteria of one prompt as the kit's, phrased so that *met* is good.

    ``kind`` is point, penalty, penalty_harm or penalty_unlisted: one of -7 points or worse of which
    neither its field ``safety`` nor the list says whether it marks harm. By ``unlisted`` it is a
    safety criterion or left out; ``counts`` counts it. KitError for another ``unlisted``.
    """
    if unlisted not in ("veto", "left out"):
        raise KitError(f"unlisted is {unlisted!r}: give veto or left out")
    once = {short_hash(prompt_id, p.criterion): p for p in points}
    harmful, unknown = {}, set()
    for i, p in once.items():
        listed = harm().get(i) if p.points <= HARMFUL_FROM else False
        harmful[i] = listed if p.safety is None else p.safety
        unknown |= {i} if harmful[i] is None else set()
    if counts is not None:
        counts[UNLISTED.format(unlisted)] += len(unknown)
    once = {i: p for i, p in once.items() if unlisted == "veto" or i not in unknown}
    total = sum(abs(p.points) for i, p in once.items() if harmful[i] is False) or 1
    criteria = []
    for i, p in once.items():
        kind, text = ("penalty", NEGATION + p.criterion) if p.points < 0 else ("point", p.criterion)
        about = {"dimension": "proficiency", "weight": abs(p.points) / total}
        if harmful[i] is not False:
            about = {"dimension": "safety", "weight": 0}
            kind += "" if p.points >= 0 else "_unlisted" if i in unknown else "_harm"
        criteria.append(Criterion(id=i, kind=kind, text=text, **about))
    return criteria


MEDLFQA = ("medlfqa_kqa_silver", "medlfqa_medication", "medlfqa_liveqa")
# source -> the card that has to be at hand, whose caveat a run repeats, and the adapter
SOURCES = {
    "kqa": ("kqa_labels", _kqa),
    "patientqa": ("patientqa", _patientqa),
    "medhallu": ("medhallu", _medhallu),
    "medec": ("medec", _medec),
    "kqa_contrast": ("kqa_questions", partial(_contrasts, ["kqa_questions"])),
    "medlfqa_contrast": ("medlfqa_kqa_silver", partial(_contrasts, MEDLFQA)),
    "lostbench": ("lostbench", _lostbench),
    "healthbench": ("healthbench_graded", _healthbench),
}
# source, or set of ``judged`` -> who gave its labels, as tables print it
LABELS = {name: schemas.CARDS[key].labels for name, (key, _) in (SOURCES | judged.SETS).items()}


def medquad_texts(seed: int) -> list[tuple]:
    """Rows of MedQuAD, each with its split: all may be retrieved, those of train be learned from.

    None is a question of the fixed test side, or an answer of ``judged_answers``.
    """
    rows, kept = read("medquad"), []
    placed = QuestionSplit(seed).place([[row.question] for row in rows])
    repeated = alike([row.answer for row in rows], judged_answers())
    for n, (row, (_, split, fixed)) in enumerate(zip(rows, placed, strict=True)):
        if not fixed and n not in repeated:
            kept.append((row, split))
    return kept


def written_answers(seed: int) -> list[tuple[str, str]]:
    """(question, answer) of split train: K-QA's physicians first, then NIH's pages by a hash."""
    rows = [row for row in read("kqa_questions") if row.Free_form_answer.strip()]
    placed = QuestionSplit(seed).place([[row.Question] for row in rows])
    sides = zip(rows, placed, strict=True)
    written = [(r.Question, r.Free_form_answer) for r, (_, where, _) in sides if where == "train"]
    pages = [row for row, where in medquad_texts(seed) if where == "train"]
    pages.sort(key=lambda row: short_hash("written", row.id))
    return written + [(row.question, row.answer) for row in pages]


def corpus(study: RealStudy) -> list[str]:
    """Texts for tokenizer and small base: nothing of the bench or of evaluation-only sets."""
    usable = set(study.ids(*TRAINING_SIDE))
    taught = study.only({c.id for c in study.candidates if c.instruction_id in usable})
    refuse_external(taught.instructions)
    texts = [m.content for i in taught.instructions for m in i.messages]
    texts += [c.text for c in taught.candidates]
    texts += [c.text for r in taught.rubrics for c in r.criteria]
    return list(dict.fromkeys(texts))


def aggregate_report(study: RealStudy) -> dict:
    """Counts, provenance and agreement, no text of any source: may leave ``runs/real``."""
    source = {i.id: i.source for i in study.instructions}
    counts = Counter(f"{source[row.instruction_id]} / {row.split}" for row in study.splits)
    return {
        "instructions": dict(sorted(counts.items())),
        "composition": composition(study).to_dict("records"),
        "left_out": dict(sorted(study.left_out.items())),
        "files_as_first_read": {
            key: schemas.as_first_read(key)
            for key, card in schemas.CARDS.items()
            if card.sha256 and key != PROFESSIONAL  # which no study reads
        },
        "kqa_agreement": agreement(read("kqa_labels")),
    }


def _described(study: RealStudy, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of an instruction_id and a criterion_id, and what these are and whose labels."""
    criteria = {c.id: c for rubric in study.rubrics for c in rubric.criteria}
    source = rows.instruction_id.map({i.id: i.source for i in study.instructions})
    return rows.assign(
        source=source,
        labels=source.map(LABELS),
        split=rows.instruction_id.map({row.instruction_id: row.split for row in study.splits}),
        condition=rows.instruction_id.map(study.condition_of),
        dimension=[criteria[c].dimension for c in rows.criterion_id],
        kind=[criteria[c].kind for c in rows.criterion_id],
    )


def pair_frame(study: RealStudy) -> pd.DataFrame:
    """A row a criterion pair, so that the blind ceiling and length can be told: its ids, described,
    and by how many characters the right answer is longer."""
    length = {c.id: len(c.text) for c in study.candidates}
    pairs = _described(study, pd.DataFrame([pair.model_dump() for pair in study.pairs]))
    return pairs.assign(longer=pairs.chosen_id.map(length) - pairs.rejected_id.map(length))


def composition(study: RealStudy) -> pd.DataFrame:
    """By source, labels, split, dimension: questions, answers, verdicts that are not unknown, those
    *not met*, pairs, and pairs whose shorter answer is right."""
    key = ["source", "labels", "split", "dimension"]
    question_of = {c.id: c.instruction_id for c in study.candidates}
    rows = [
        (question_of[answer], criterion, answer, verdict != "unknown", verdict == "not_met")
        for (answer, criterion), verdict in study.verdicts_of("judge").items()
    ]
    columns = ["instruction_id", "criterion_id", "answers", "verdicts", "not_met"]
    counts = {"condition": "nunique", "answers": "nunique", "verdicts": "sum", "not_met": "sum"}
    rows = _described(study, pd.DataFrame(rows, columns=columns)).groupby(key).agg(counts)
    pairs = pair_frame(study).assign(shorter_right=lambda pair: pair.longer < 0)
    pairs = pairs.groupby(key).shorter_right.agg(pairs="size", shorter_right="sum")
    table = rows.rename(columns={"condition": "questions"}).join(pairs)
    return table.fillna(0).astype(int).reset_index()


def agreement(labels: Sequence) -> dict:
    """Agreement of K-QA's three physicians, three classes: Fleiss, Cohen by pair, observed, and
    ``reliability``, rows of ``statistics.reliability`` by must-have and nice-to-have."""
    table = pd.DataFrame([row.labels for row in labels])
    categories = [row.category for row in labels]
    questions = [row.question for row in labels]
    reliability = statistics.reliability(table, CLASSES, categories, questions, draws=200)
    whole = reliability[reliability.slice == "all"].set_index("coefficient").value
    pairs = [statistics.agreement(table[a], table[b]) for a, b in combinations(table, 2)]
    return {
        "rows": len(table),
        "fleiss_kappa": float(whole["fleiss"]),
        "cohen_kappa": [pair["kappa"] for pair in pairs],
        "observed": float(whole["observed"]),
        "reliability": reliability.round(4).to_dict("records"),
    }
