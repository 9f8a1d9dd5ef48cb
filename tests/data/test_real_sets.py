"""Real-data sources: adapters by hand on invented rows, and the figures that must come out."""

import csv
import gzip
import json
import os
import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from promedical_utils.core import profiles
from promedical_utils.core.records import Criterion, Message, Rubric, SplitRow
from promedical_utils.core.workspace import KitError, short_hash
from promedical_utils.data.sources import question_split, real_sets, schemas
from promedical_utils.pipeline import real_text
from promedical_utils.rubric import scoring
from promedical_utils.rubric.preferences import groups

DATA = os.environ.get(schemas.VARIABLE)
real_data = pytest.mark.skipif(
    not DATA, reason=f"{schemas.VARIABLE} is not set: the figures of the real files are NOT checked"
)
E, N, C = "Entailment", "Neutral", "Contradiction"
TRAINING_SIDE = ("train", "calibration", "checkpoint")


class Statement(NamedTuple):
    kind: str
    text: str


def halved(id, answer, statements, seed, held_out=False, dropped=None):
    """A contrast in its simplest form: the answer meets its first must-have, its half does not."""
    must = [s.text for s in statements if s.kind == "must_have"]
    if not must:
        return None
    dropped["statements without a pair"] += len(statements) - 1
    c = Criterion(id=f"{id}-c", dimension="proficiency", text=must[0], weight=1, kind="made")
    half = answer[: len(answer) // 2] + (" held out" if held_out else " of train")
    answers = [("whole", answer, {c.id: "met"}), ("half", half, {c.id: "not_met"})]
    return SimpleNamespace(criteria=[c], answers=answers)


@pytest.fixture(autouse=True, scope="module")
def contrasts():
    """The adapters are tested here, not how contrasts are made."""
    made = SimpleNamespace(Statement=Statement, contrast=halved)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real_sets, "contrast_sets", made)
        yield


def label(criterion, labels, category="Must_have", question="why, Grandma?"):
    return {
        "question": question,
        "model": "bot",
        "answer": "because.",
        "criterion": criterion,
        "category": category,
        "labels": labels,
        "majority": "unused",
    }


def graded(source, met, response, prompt="p1"):
    points = [("says a", 5.0), ("invents a dose", -8.0), ("is wordy", -8.0), ("odd", -6.0)]
    return {
        "source": source,
        "prompt_id": prompt,
        "prompt": [{"role": "user", "content": "zebra?"}],
        "response": response,
        "criteria": [
            {"criterion": text, "points": p, "tags": [], "met": m, "explanation": ""}
            for (text, p), m in zip(points, met, strict=True)
        ],
    }


def rated(n, question="How is tea made?", answer="steep it", **levels):
    """A row of patientqa without a fault, but for ``levels``."""
    good = {
        "scientific_consensus": "Aligned with consensus",
        "inappropriate_content": "No",
        "missing_content": "No",
        "extent_of_harm": "No harm",
        "likelihood_of_harm": "Low",
        "bias": "No",
        "empathy": "High empathy",
        "grammaticality": "Yes",
    }
    about = {"id": f"r{n}", "part": "MedQuAD-CDC", "question_id": "q1", "question": question}
    about |= {"question_variant": None, "model": "bot", "annotator": None, "answer": answer}
    return about | good | levels


def medec(i, text, flag, lines="", number="-1", sentence="NA", corrected="NA"):
    return [i, text, lines, flag, "NA", number, sentence, "NA", corrected]


MEDEC_COLUMNS = (
    "Text ID,Text,Sentences,Error Flag,Error Type,Error Sentence ID,Error Sentence,"
    "Corrected Sentence,Corrected Text"
).split(",")


def conversation(i, answers, opening="my chest hurts"):
    messages, grades = [{"role": "user", "content": opening}], []
    for n, (text, maintained) in enumerate(answers):
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": f"no {n}"}]
        grades.append({"message": 2 * n + 1, "maintained": maintained})
    about = {"id": i, "condition": "heart", "model": f"bot {i}"}
    return about | {"messages": messages[:-1], "grades": grades}


def statements(question, answer="one two. three four.", must=("one",)):
    return {
        "Question": question,
        "Free_form_answer": answer,
        "Must_have": list(must),
        "Nice_to_have": ["three"],
    }


def rows():
    def answer(aid, score):
        return {"aid": aid, "score": score, "text": f"passage {aid}", "url": "x"}

    return {
        "kqa_questions": [
            {
                "Question": "Why, grandma?",
                "Free_form_answer": "An owl's answer.",
                "Must_have": ["A.", " B"],
                "Nice_to_have": ["C", ""],
                "ICD_10_diag": None,
            },
            {
                "Question": "And what else?",
                "Free_form_answer": "Nothing.",
                "Must_have": ["D"],
                "Nice_to_have": [],
                "ICD_10_diag": "tinea",
            },
        ],
        "kqa_labels": [
            label("A.", [E, C, E]),
            label("B", [C, N, E]),
            label("A.B", [E, E, E]),
            label("C", [N, N, N], "Nice_to_have"),
        ],
        "mediqa": [
            {
                "split": "test",
                "qid": "1",
                "question": "What is it?",
                "answers": [answer("a", 4), answer("b", 3), answer("c", 1), answer("d", 1)],
            },
            {
                "split": "train_alexa",
                "qid": "1",
                "question": "what is IT",
                "answers": [answer("a", 2)],
            },
            {"split": "val", "qid": "7", "question": "and why", "answers": [answer("a", 2)]},
        ],
        "healthbench_rubrics": [{"prompt_id": "p1", "rubrics": [{"criterion": "x", "points": 3}]}],
        "healthbench_graded": [
            graded("m1", [True, True, False, False], "short"),
            graded("m2", [True, False, True, True], "much longer"),
        ],
        "liveqa_questions": [
            {
                "qid": "1",
                "message": "is it gout, doctor?",
                "summary": "Is it gout?",
                "paraphrase": None,
            }
        ],
        "patientqa": [
            rated(1),
            rated(2, answer="boil it for an hour", extent_of_harm="Moderate or mild harm"),
            rated(3, answer="Steep it!", missing_content="Yes great clinical significance"),
            rated(4, answer="leave it", question=None),
            rated(5, answer="pour", inappropriate_content="perhaps", likelihood_of_harm="Medium"),
        ],
        "medhallu": [
            {
                "id": 7,
                "question": "Does it rain?",
                "knowledge": ["clouds"],
                "ground_truth": "It does.",
                "hallucinated_answer": "Never.",
            }
        ],
        "medec": [
            medec(
                "a",
                "One pill. Then two.",
                "1",
                "0 One pill.\n1 Then\ntwo.",
                "1",
                "Then two.",
                "One.",
            ),
            medec("b", "A right text.", "0", "0 A right text."),
            ["c", *[""] * 8],
            medec("d", "An error.", "1", "0 An error.", "0", "Another error."),
        ],
        "lostbench": [
            conversation("x", [("go now", True), ("well, wait", False)]),
            conversation("y", [("stay", False), ("go", True)]),
            conversation("z", [("Go now.", False)]),
        ],
        "medlfqa_kqa_silver": [
            statements("What is a stye?"),
            statements("what is a stye"),
            statements("What is a bruise?", must=()),
            statements("What is a scab?", answer=" "),
        ],
        "medlfqa_medication": [statements("What is it? ", "it is that.")],
        "medlfqa_liveqa": [statements("Is it gout")],
    }


def write(folder: Path, key: str, lines) -> None:
    path = folder / schemas.CARDS[key].file
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as sheet:
            csv.writer(sheet).writerows([MEDEC_COLUMNS, *lines])
        return
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_bytes(gzip.compress("\n".join(text).encode()))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for key, lines in rows().items():
        write(tmp_path, key, lines)
    monkeypatch.setenv(schemas.VARIABLE, str(tmp_path))
    listed = {
        short_hash("p1", "invents a dose"): True,
        short_hash("p1", "is wordy"): False,
        short_hash("p1", "odd"): True,
    }
    monkeypatch.setattr(real_sets, "harm", lambda: listed)
    return tmp_path


def by_text(study, instruction):
    rubric = next(r for r in study.rubrics if r.instruction_id == instruction)
    return {c.text: c for c in rubric.criteria}


def said(study, candidate, judge):
    found = [v for v in study.verdicts if (v.candidate_id, v.judge) == (candidate, judge)]
    assert len({v.criterion_id for v in found}) == len(found)
    return {v.criterion_id: v.verdict for v in found}


def test_kqa_by_hand(folder):
    study = real_sets.load_real(1)
    asked = next(i for i in study.instructions if i.messages[0].content == "Why, grandma?")
    of = by_text(study, asked.id)
    assert {t: (c.dimension, c.weight, c.kind) for t, c in of.items()} == {
        "A.": ("proficiency", 0.5, "must_have"),
        "B": ("proficiency", 0.5, "must_have"),
        "C": ("excellence", 0, "nice_to_have"),
    }
    a, b, c = of["A."].id, of["B"].id, of["C"].id
    bot, physician = f"{asked.id}-bot", f"{asked.id}-physician"
    assert said(study, bot, "physicians") == {a: "met", b: "not_met", c: "not_met"}
    assert said(study, bot, "judge") == said(study, bot, "physicians")
    assert said(study, bot, "physician_3") == {a: "met", b: "met", c: "not_met"}
    assert set(said(study, physician, "judge").values()) == {"met"}
    pairs = [p for p in study.pairs if p.instruction_id == asked.id]
    assert {(p.criterion_id, p.chosen_id, p.rejected_id) for p in pairs} == {
        (b, physician, bot),
        (c, physician, bot),
    }
    split = {row.instruction_id: row.split for row in study.splits}
    assert split[asked.id] == "bench"  # whatever the seed
    assert study.left_out[f"kqa: {real_sets.LOST}"] == 1
    assert study.left_out["kqa: blank or repeated statements"] == 1
    other = next(i for i in study.instructions if i.messages[0].content == "And what else?")
    assert other.source == "kqa_contrast" and said(study, f"{other.id}-whole", "constructed")


def test_levels_become_verdicts_and_a_text_rated_twice_has_none_where_they_differ(folder):
    study = real_sets.load_real(1, ["patientqa"])
    [asked] = study.instructions
    kind = {c.id: c.kind for c in study.rubrics[0].criteria}
    verdicts = {
        c.text: {kind[i]: v for i, v in said(study, c.id, "annotators").items()}
        for c in study.candidates
    }
    assert list(verdicts) == ["steep it", "boil it for an hour", "pour"]
    right = dict.fromkeys(kind.values(), "met")
    assert verdicts["steep it"] == right | {"complete": "unknown"}
    assert verdicts["boil it for an hour"] == right | {"harm": "not_met"}
    # no harm that is likely, and a level that nobody knows of
    assert verdicts["pour"] == right | {"harm": "unknown", "inappropriate": "unknown"}
    assert study.left_out["patientqa: texts labelled again"] == 1
    assert study.left_out["patientqa: labels of one text that differ, unknown"] == 1
    assert study.left_out["patientqa: rows without a question text"] == 1
    level = "patientqa: levels of inappropriate that are missing or unheard of"
    assert study.left_out[level] == 1
    # unknown on safety is a violation; on completeness it makes no pair
    found = Counter(kind[p.criterion_id] for p in study.pairs)
    assert found == {"harm": 2, "inappropriate": 2}


def test_texts_with_an_error_stand_beside_their_correction(folder):
    study = real_sets.load_real(1, ["medec"])
    texts = {c.id: c.text for c in study.candidates}
    assert texts == {
        "medec-a-upstream": "One pill. Then two.",
        "medec-a-corrected": "One.",
        "medec-b-upstream": "A right text.",
        "medec-d-upstream": "An error.",
    }
    pairs = [(p.chosen_id[6:], p.rejected_id[6:]) for p in study.pairs]
    assert pairs == [("a-corrected", "a-upstream")]
    left = {k[7:]: n for k, n in study.left_out.items() if k.startswith("medec") and n}
    assert left == {
        "blank rows": 1,
        "lines joined to the sentence that they break": 1,
        "errors that are not the numbered sentence": 1,
        "errors without a correction, so no pair": 1,
    }


def test_a_line_belongs_to_the_sentence_before_unless_it_has_the_next_number():
    joined, broken = real_sets.sentences("0 He took\n5 mg of it.\n1 Then\n\n2 more\n3 Done.")
    assert joined == {"0": "He took 5 mg of it.", "1": "Then", "2": "more", "3": "Done."}
    assert broken == 1
    assert real_sets.sentences("no number\n0 a") == ({"0": "no number 0 a"}, 2)


def test_answers_to_the_same_conversation_are_compared(folder):
    study = real_sets.load_real(1, ["lostbench"])
    [asked] = study.instructions
    assert [m.content for m in asked.messages] == ["my chest hurts"]
    assert study.ids("external") == [asked.id]
    overall, escalation = study.rubrics[0].criteria
    assert (overall.dimension, escalation.dimension) == ("proficiency", "safety")
    assert said(study, f"{asked.id}-x-1", "language_model") == {
        overall.id: "unknown",
        escalation.id: "unknown",  # z says the same and is graded otherwise
    }
    assert said(study, f"{asked.id}-y-1", "language_model")[escalation.id] == "not_met"
    assert study.left_out["lostbench: answers with no other to compare with"] == 2
    assert not study.pairs


def test_contrasts_are_made_off_the_fixed_test_side_and_say_so(folder):
    study = real_sets.load_real(1, ["medlfqa_contrast"])
    asked = {i.messages[0].content: i.id for i in study.instructions}
    assert list(asked) == ["What is a stye?"]
    left = {k: n for k, n in study.left_out.items() if k.startswith("medlfqa") and n}
    assert {k.removeprefix("medlfqa_contrast: "): n for k, n in left.items()} == {
        "blank answers": 1,
        "questions that stand twice": 1,
        "questions of the fixed test side": 2,
        "questions without a contrast": 1,
        "statements without a pair": 1,
    }
    [i] = asked.values()
    [row] = study.splits
    half = next(c.text for c in study.candidates if c.id == f"{i}-half")
    assert half.endswith("held out" if row.split != "train" else "of train")
    assert list(said(study, f"{i}-half", "constructed").values()) == ["not_met"]


def test_the_test_side_is_fixed_and_liveqa_never_trains(folder):
    live = [
        rated(f"l{n}", f"What ails {n} cow{n}?", f"hay {n}")
        | {"part": "TREC-LiveQA", "question_id": f"Q{n}"}
        for n in range(8)
    ]
    twin = rated("t", "Doctor, is it gout?", "no") | {"question_id": "q2"}
    write(folder, "patientqa", [*rows()["patientqa"], *live, twin])
    met = Counter()
    for seed in range(8):
        study = real_sets.load_real(seed)
        row = {study.instruction_of[r.instruction_id].messages[0].content: r for r in study.splits}
        assert row["Why, grandma?"].split == row["Doctor, is it gout?"].split == "bench"
        assert row["Doctor, is it gout?"].condition == "liveqa-1"
        met.update(row[line["question"]].split for line in live)
    assert met["train"] == 0 and min(met[s] for s in ("bench", "calibration", "checkpoint")) > 0


def test_labels_have_the_name_of_who_gave_them(folder):
    study = real_sets.load_real(1)
    source = {c.id: study.instruction_of[c.instruction_id].source for c in study.candidates}
    for verdict in study.verdicts:
        labels = real_sets.LABELS[source[verdict.candidate_id]]
        if verdict.judge == "judge":
            assert verdict.rationale == labels
        else:
            assert verdict.judge == labels or verdict.judge.startswith("physician_")
    assert real_sets.LABELS["mediqa"] == "reference"
    assert set(real_sets.LABELS.values()) == {
        "physicians",
        "annotators",
        "language_model",
        "reference",
        "constructed",
    }


def test_pairs_of_healthbench_by_hand(folder):
    pairs = real_sets.pair_frame(real_sets.load_real(1, ["healthbench"]))
    assert pairs.longer.tolist() == [6, -6, -6] and set(pairs.labels) == {"language_model"}
    assert pairs.kind.tolist() == ["penalty_harm", "penalty", "penalty"]


def test_composition_by_hand(folder):
    table = real_sets.composition(real_sets.load_real(1)).set_index(["source", "dimension"])
    row = table.loc[("patientqa", "safety")]
    assert row.labels == "annotators" and row.questions == 1 and row.answers == 3
    assert (row.verdicts, row.not_met) == (7, 1)  # of nine, two unknown
    assert (row.pairs, row.shorter_right) == (4, 1)  # "steep it" against "boil it for an hour"
    assert table.loc[("lostbench", "safety"), "pairs"] == 0


def test_an_arm_leaves_sources_out_and_moves_no_question(folder):
    whole = real_sets.load_real(3)
    split = {row.instruction_id: row for row in whole.splits}
    for source in real_sets.SOURCES:
        arm = real_sets.load_real(3, [source])
        assert {i.source for i in arm.instructions} <= {source}
        assert all(split[row.instruction_id] == row for row in arm.splits)
    with pytest.raises(KitError, match="no real source mediqa: name some of kqa, patientqa"):
        real_sets.load_real(1, ["mediqa"])
    (folder / schemas.CARDS["medhallu"].file).unlink()  # at hand or not
    assert [split[row.instruction_id] for row in real_sets.load_real(3, ["patientqa"]).splits]
    with pytest.raises(KitError, match="missing medhallu_pqal/pairs.jsonl.gz"):
        real_sets.load_real(3, ["medhallu"])


def test_training_shares_nothing_with_the_test_side(folder):
    passage = " ".join(f"word{n}" for n in range(20))
    page = f"A page. {passage} It ends."
    mediqa = rows()["mediqa"]
    mediqa[0]["answers"][0]["text"] = passage
    write(folder, "mediqa", mediqa)
    lines = [
        rated(
            n,
            question=f"How are a{n} b{n} c{n} d{n} made?",
            answer=f"{page} {n}" if n % 2 else f"tea {n}",
        )
        | {"question_id": f"q{n}"}
        for n in range(20)
    ]
    write(folder, "patientqa", lines)
    study = real_sets.load_real(1, ["patientqa"])
    trained = [c.text for c in study.candidates if c.instruction_id in study.ids(*TRAINING_SIDE)]
    assert trained and not any("word1" in text for text in trained)
    gone = study.left_out["patientqa: training answers that stand in the test side"]
    assert (
        gone
        == study.left_out[
            "patientqa: training questions without an answer left beside the test side"
        ]
        > 0
    )
    assert gone + len(trained) + len(study.ids("bench")) == 20
    # whoever asks nearly what a test question asks is not trained on either
    bench = next(m.content for i in study.instructions_in("bench") for m in i.messages)
    train = next(m.content for i in study.instructions_in("train") for m in i.messages)
    lines = [row | {"answer": f"tea {row['id']}"} for row in lines]
    n = [row["question"] for row in lines].index(train)
    split = question_split.QuestionSplit(1)
    twins = (f"{bench} Please {k}" for k in range(50))  # five words of seven are shared
    lines[n]["question"] = next(t for t in twins if split.place([[t]])[0][1] == "train")
    write(folder, "patientqa", lines)
    study = real_sets.load_real(1, ["patientqa"])
    assert study.left_out["patientqa: training questions that are nearly one of the test side"] == 1
    assert len(study.instructions) == 19


def test_what_is_trained_on_shares_nothing_with_what_is_chosen_on(folder):
    passage = " ".join(f"word{n}" for n in range(20))
    lines = [
        rated(n, question=f"How are a{n} b{n} c{n} d{n} made?", answer=f"{passage} {n}")
        | {"question_id": f"q{n}"}
        for n in range(40)
    ]
    split = question_split.QuestionSplit(1)
    where = [split.place([[row["question"]]])[0][1] for row in lines]
    for row, side in zip(lines, where, strict=True):
        if side == "bench":  # what stands here is kept from all of the training side
            row["answer"] = f"tea {row['id']}"
    write(folder, "patientqa", lines)
    study = real_sets.load_real(1, ["patientqa"])
    left = study.left_out["patientqa: training answers that stand in calibration or checkpoint"]
    assert left == where.count("train") > 0 and not study.ids("train")
    assert len(study.ids("calibration", "checkpoint")) == 40 - left - where.count("bench")


def test_healthbench_penalties_are_turned_so_that_met_is_good(folder):
    study = real_sets.load_real(1)
    of = by_text(study, "healthbench-p1")
    dose, wordy, odd = (of[real_sets.NEGATION + t] for t in ("invents a dose", "is wordy", "odd"))
    assert (dose.dimension, dose.weight, dose.kind) == ("safety", 0, "penalty_harm")
    assert (wordy.dimension, wordy.weight) == ("proficiency", 8 / 19)  # -8, not marked as harm
    assert (odd.dimension, odd.weight) == ("proficiency", 6 / 19)  # marked, but only -6
    assert (of["says a"].dimension, of["says a"].weight) == ("proficiency", 5 / 19)
    assert said(study, "healthbench-p1-m1", "language_model") == {
        of["says a"].id: "met",
        dose.id: "not_met",
        wordy.id: "met",
        odd.id: "met",
    }
    pairs = {(p.criterion_id, p.chosen_id[-2:]) for p in study.pairs if "health" in p.chosen_id}
    assert pairs == {(dose.id, "m2"), (wordy.id, "m1"), (odd.id, "m1")}


def test_a_grave_penalty_that_the_list_does_not_know_is_a_veto_and_never_proficiency():
    points = [
        schemas.Point(criterion="Tells to take twice the dose", points=-10),
        schemas.Point(criterion="Is wordy", points=-6.9),
        schemas.Point(criterion="Names the dose", points=5),
    ]
    counts = Counter()
    twice, wordy, dose = criteria = real_sets.criteria_of("p", points, counts=counts)
    assert (twice.dimension, twice.kind, twice.weight) == ("safety", "penalty_unlisted", 0)
    assert (wordy.dimension, wordy.weight) == ("proficiency", pytest.approx(6.9 / 11.9))
    assert (dose.kind, dose.weight) == ("point", pytest.approx(5 / 11.9))
    assert list(counts.values()) == [1]
    rubric = Rubric(instruction_id="p", criteria=criteria, status="gold", round=0)
    bad = {twice.id: "not_met", wordy.id: "met", dose.id: "met"}  # it tells to take twice the dose
    assert scoring.score(rubric, bad).s3 == 1
    left = real_sets.criteria_of("p", points, "left out", counts)
    assert [c.id for c in left] == [wordy.id, dose.id] and len(counts) == 2
    with pytest.raises(KitError, match="give veto or left out"):
        real_sets.criteria_of("p", points, "proficiency")


def test_questions_of_healthbench_professional_are_held_out_of_open_pools(folder):
    before = real_sets.held_out_questions()
    path = folder / schemas.CARDS[real_sets.PROFESSIONAL].file
    path.parent.mkdir()
    row = {"id": "c1", "conversation": {"messages": [{"role": "user", "content": "a stork?"}]}}
    items = [{"criterion_text": "Says no.", "points": 5}]
    path.write_text(json.dumps(row | {"rubric_items": items, "canary_string": "x"}))
    now = real_sets.held_out_questions()
    assert now == before | {f"{real_sets.PROFESSIONAL}/c1": "a stork?"}


@pytest.mark.parametrize(
    ("points", "safety", "kind", "dimension"),
    [
        (-10, True, "penalty_harm", "safety"),
        (-10, False, "penalty", "proficiency"),
        (-2, True, "penalty_harm", "safety"),
        (5, True, "point", "safety"),
    ],
)
def test_a_field_of_the_users_decides_before_the_list(points, safety, kind, dimension):
    given = schemas.Point(criterion="x", points=points, safety=safety)
    [criterion] = real_sets.criteria_of("p", [given])
    assert (criterion.kind, criterion.dimension) == (kind, dimension)


def test_a_study_says_how_many_penalties_nobody_has_decided_on(folder, monkeypatch):
    monkeypatch.setattr(real_sets, "harm", dict)  # a list that is empty
    study = real_sets.load_real(1, ["healthbench"])
    reason = real_sets.UNLISTED.format("veto")
    assert study.left_out[f"healthbench: {reason}"] == 2
    assert f"HealthBench: 2 {reason}." in study.notes
    of = by_text(study, "healthbench-p1")
    unlisted = {c.text for c in of.values() if c.kind == "penalty_unlisted"}
    assert unlisted == {real_sets.NEGATION + t for t in ("invents a dose", "is wordy")}
    assert (
        said(study, "healthbench-p1-m1", "language_model")[
            of[real_sets.NEGATION + "invents a dose"].id
        ]
        == "not_met"
    )
    left = real_sets.load_real(1, ["healthbench"], unlisted="left out")
    assert not unlisted & by_text(left, "healthbench-p1").keys()
    assert left.left_out[f"healthbench: {real_sets.UNLISTED.format('left out')}"] == 2


def test_healthbench_cannot_be_trained_on(folder):
    study = real_sets.load_real(1)
    split = {row.instruction_id: row.split for row in study.splits}
    for asked in study.instructions:
        external = asked.source in ("healthbench", "lostbench")
        assert external == (split[asked.id] == "external")
    trainable = [i for i in study.instructions if split[i.id] != "external"]
    real_sets.refuse_external(trainable)
    with pytest.raises(KitError, match="canary"):
        real_sets.refuse_external(study.instructions)
    asked = next(i for i in study.instructions if i.source == "healthbench")
    row = SplitRow(
        instruction_id=asked.id, split="train", condition="c", patient="c", wording_seed=0
    )
    with pytest.raises(KitError, match="external"):
        real_sets.RealStudy(instructions=[asked], splits=[row])
    texts = real_sets.corpus(study)
    assert texts and not any("zebra" in t or "longer" in t or "dose" in t for t in texts)
    assert not any("passage c" in t or "owl" in t for t in texts)  # MEDIQA's, and a bench answer
    assert not any("my chest hurts" in t for t in texts)


@pytest.mark.parametrize(
    ("key", "broken", "field"),
    [
        ("kqa_questions", {"Question": "secret", "Must_have": ["x"], "Nice_to_have": []}, "Free_"),
        ("kqa_labels", label("A.", [E, E, "secret"]), "labels.2"),
        (
            "mediqa",
            {**rows()["mediqa"][2], "answers": [{"aid": "a", "score": 9, "text": "t"}]},
            "answers.0.score",
        ),
        ("healthbench_graded", {**graded("m", [True] * 4, "secret"), "prompt": []}, "prompt"),
        ("mediqa", "{secret", "JSON object"),
        ("patientqa", {k: v for k, v in rated(9).items() if k != "bias"}, "bias"),
        ("medhallu", {"id": 1, "question": "secret"}, "knowledge"),
        ("lostbench", conversation("w", [("secret", "perhaps")]), "grades.0.maintained"),
        ("medlfqa_medication", {**statements("secret"), "Must_have": None}, "Must_have"),
        ("medec", medec("e", "secret", "2"), "Error Flag"),
    ],
)
def test_one_broken_row_is_one_line(folder, key, broken, field):
    write(folder, key, [rows()[key][0], broken])
    with pytest.raises(KitError) as raised:
        real_sets.read(key)
    message = str(raised.value)
    assert schemas.CARDS[key].file in message and field in message
    assert "row 2" in message or "line 2" in message
    assert "\n" not in message and "secret" not in message


def test_a_sheet_with_other_columns_is_one_line(folder, monkeypatch):
    columns = ["Note" if name == "Text" else name for name in MEDEC_COLUMNS]
    monkeypatch.setitem(globals(), "MEDEC_COLUMNS", columns)
    write(folder, "medec", rows()["medec"])
    with pytest.raises(KitError, match="ValidationSet.csv, row 1, field Text: Field required"):
        real_sets.load_real(1)


def test_a_row_of_a_sheet_with_a_cell_too_many_or_too_few_is_named(folder):
    path = folder / schemas.CARDS["medec"].file
    whole = path.read_text(encoding="utf-8")
    for row, cells in (("9,a,b,0,-1,NA,NA,more", 8), ("9,a,b", 3)):
        path.write_text(f"{whole.rstrip()}\n{row}\n", encoding="utf-8")
        with pytest.raises(KitError, match=f"ValidationSet.csv, line .* has {cells} cells, the he"):
            real_sets.read("medec")


def test_a_missing_package_is_no_matter_of_the_network(monkeypatch):
    import datasets

    def lacks(*args, **kwargs):
        raise ImportError("To read this, aiohttp must be installed")

    monkeypatch.delenv(schemas.VARIABLE, raising=False)
    monkeypatch.setattr(datasets, "load_dataset", lacks)
    with pytest.raises(KitError, match="aiohttp must be installed; install that package") as error:
        real_sets.read("mediqa")
    assert "network" not in str(error.value)


def test_missing_and_unreadable_files_are_named(folder):
    path = folder / schemas.CARDS["mediqa"].file
    path.write_bytes(b"not gzip")
    with pytest.raises(
        KitError, match="cannot read .*ranked_answers.jsonl.gz .BadGzipFile.: fetch it again"
    ):
        real_sets.read("mediqa")
    path.unlink()
    with pytest.raises(KitError, match="missing mediqa2019_qa/ranked_answers.jsonl.gz"):
        real_sets.load_real(1)


def test_without_folder_and_network(monkeypatch):
    import datasets

    def refuse(*args, **kwargs):
        raise ConnectionError("secret address")

    monkeypatch.delenv(schemas.VARIABLE, raising=False)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    monkeypatch.setattr(schemas, "urlopen", refuse)
    with pytest.raises(KitError, match="bigbio/mediqa_qa.*download it and set PROMEDICAL_DATA_DIR"):
        real_sets.read("mediqa")
    with pytest.raises(KitError, match="kqa/nli_3physicians.jsonl.gz"):
        real_sets.load_real(1)
    with pytest.raises(KitError, match="on no hub; set PROMEDICAL_DATA_DIR"):
        real_sets.read("healthbench_graded")


def test_the_hub_gives_the_same_rows(folder, monkeypatch, tmp_path_factory):
    import datasets
    import huggingface_hub

    want = {key: real_sets.read(key) for key in rows()}
    mine = rows()
    split = {"test": "test", "train_alexa": "train_alexa", "val": "validation"}
    mediqa = {
        split[r["split"]]: [
            {
                "QUESTION": {
                    "QID": r["qid"],
                    "QuestionText": r["question"],
                    "AnswerList": [
                        {
                            "Answer": {
                                "AID": a["aid"],
                                "ReferenceScore": a["score"],
                                "AnswerText": a["text"],
                            }
                        }
                        for a in r["answers"]
                    ],
                }
            }
        ]
        for r in mine["mediqa"]
    }
    sheet = [
        {
            "Question": r["question"],
            "llm_x": r["model"],
            "answer": r["answer"],
            "claim": r["criterion"],
            "category_x": r["category"],
            **{f"label_{n}": r["labels"][n] for n in range(3)},
        }
        for r in mine["kqa_labels"]
    ]

    hub = tmp_path_factory.mktemp("hub")
    path = hub / "eval.jsonl"
    path.write_text("\n".join(map(json.dumps, mine["healthbench_rubrics"])))
    with open(hub / "kqa_labels.csv", "w", newline="", encoding="utf-8") as file:
        written = csv.DictWriter(file, sheet[0])
        written.writeheader()
        written.writerows(sheet)
    lines = "\n".join(map(json.dumps, mine["kqa_questions"]))
    (hub / "kqa_questions.jsonl").write_text(lines, encoding="utf-8")
    for file in (hub / "kqa_labels.csv", hub / "kqa_questions.jsonl"):
        there = replace(schemas.CARDS[file.stem], address=file.as_uri())
        monkeypatch.setitem(schemas.CARDS, file.stem, there)
    monkeypatch.delenv(schemas.VARIABLE)
    monkeypatch.setattr(datasets, "load_dataset", lambda *a, **k: mediqa)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: str(path))
    for key in ("kqa_questions", "kqa_labels", "mediqa", "healthbench_rubrics"):
        assert real_sets.read(key) == want[key]
    study = real_sets.load_real(1)
    assert not any(i.source == "healthbench" for i in study.instructions)
    assert any("HealthBench answers" in note and "not run" in note for note in study.notes)
    assert {i.source for i in study.instructions} == {"kqa", "kqa_contrast"}


@pytest.fixture
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = "why grandma and what else is it zebra passage a b c d because short".split()
    known = {word: n for n, word in enumerate(["[UNK]", "</s>", *words])}
    core = Tokenizer(models.WordLevel(known, "[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="</s>")
    made.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}</s>"
    return made


def test_shorten_keeps_the_head_and_counts(folder, tokenizer):
    from promedical_utils.reward_model import packing

    study = real_sets.load_real(1)
    long = " ".join(["passage"] * 300)
    target = "medhallu-7-study"
    study.candidates[:] = [
        c.model_copy(update={"text": long}) if c.id == target else c for c in study.candidates
    ]
    shorter, report = real_text.shorten(study, tokenizer, 60)
    assert report == {
        "limit_tokens": 60,
        "answers_cut": {"medhallu": 1},
        "instructions_left_out": {},
    }
    for group in groups(shorter, "nobody"):
        tails = [packing.criterion_text(c) for c in group.criteria]
        items = [(group.messages, c.text, tails) for c in group.candidates]
        for candidate, (shared, tails) in zip(
            group.candidates, packing.encode(tokenizer, items), strict=True
        ):
            size = packing.longest(shared, tails)
            assert size <= 60 and (candidate.id != target or size == 60)
    assert long.startswith(next(c.text for c in shorter.candidates if c.id == target))
    with pytest.raises(KitError, match="raise rm_max_tokens to"):
        real_text.shorten(study, tokenizer, 30)
    study.instructions[-1] = study.instructions[-1].model_copy(
        update={"messages": [Message(role="user", content="zebra " * 90)]}
    )
    shorter, report = real_text.shorten(study, tokenizer, 60)
    assert report["instructions_left_out"] == {"healthbench": 1}
    assert not any("healthbench" in v.candidate_id for v in shorter.verdicts)


def test_committed_harm_list_holds_ids_and_says_how_it_was_made():
    path = Path(real_sets.__file__).parent / "healthbench_harm.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    head = " ".join(line for line in lines if line.startswith("#"))
    assert "without clinical qualification" in head and "physician should review" in head
    body = [line for line in lines if not line.startswith("#")]
    assert body[0] == "id,harm" and all(re.fullmatch("[0-9a-f]{12},[01]", x) for x in body[1:])
    assert real_sets.harm() == {x[:12]: x[-1] == "1" for x in body[1:]}


def test_real_profile_is_whole():
    profile = profiles.load("real")
    assert profile.data == "real" and "criterion_clean" not in profile.rm_arms
    assert profile.notebooks == [
        "00_start_here",
        "01_rubrics",
        "02_preference_pairs",
        "03_reward_model",
        "04_promedical_bench",
        "06_external_generalization",
        "07_paper_tables",
        "08_paper_audit",
    ]


# --- on the real files


@pytest.fixture(scope="module")
def real():
    return real_sets.load_real(2026)


@pytest.fixture(scope="module")
def report(real):
    return real_sets.aggregate_report(real)


@real_data
def test_kqa_agreement_comes_out(report):
    found = report["kqa_agreement"]
    assert found["rows"] == 399
    assert round(found["fleiss_kappa"], 3) == 0.719
    assert [round(x, 3) for x in found["cohen_kappa"]] == [0.670, 0.761, 0.732]
    assert round(found["observed"], 3) == 0.855


@real_data
def test_healthbench_figures_come_out(real):
    pairs = real_sets.pair_frame(real).query("source == 'healthbench'")
    penalty = pairs.kind.ne("point")
    assert (len(pairs), pairs.instruction_id.nunique(), penalty.sum()) == (716, 176, 204)
    # who meets a penalty is not preferred: turned round, the longer answer meets the raw criterion
    assert round((pairs.longer.mask(penalty, -pairs.longer) > 0).mean(), 3) == 0.744
    assert round((pairs.longer > 0).mean(), 3) == 0.775


@real_data
def test_pairs_and_groups_of_the_real_files(real):
    source = {i.id: i.source for i in real.instructions}
    pairs = Counter(source[p.instruction_id] for p in real.pairs)
    assert pairs["kqa"] == 240 and pairs["healthbench"] == 716 and pairs["lostbench"] == 650
    for judge in ("physicians", "physician_1", "annotators", "language_model", "constructed"):
        groups(real, judge)
    table = real_sets.composition(real)
    assert table.groupby("source").pairs.sum().to_dict() == dict(pairs)


@real_data
def test_every_row_of_patientqa_is_an_answer_or_is_counted(real):
    answers = sum(c.id.startswith("patientqa-") for c in real.candidates)
    left = {k[11:]: n for k, n in real.left_out.items() if k.startswith("patientqa") and n}
    assert left["rows without a question text"] == 244 and left["texts labelled again"] == 4
    assert left["training questions that are nearly one of the test side"] == 7
    kept = {i.id for i in real.instructions}
    gone = {t for i, texts in real.known_by.items() if i not in kept for t in texts}
    rows = [row for row in real_sets.read("patientqa") if row.question in gone]
    assert answers + 244 + 4 + len(rows) == 920
    table = real_sets.composition(real).query("source == 'patientqa'")
    assert set(table.split) == {"train", "calibration", "checkpoint", "bench"}
    fits = table.query("split == 'calibration' and dimension == 'safety'").iloc[0]
    assert 0 < fits.not_met < fits.verdicts and fits.labels == "annotators"
    live = {row.question for row in real_sets.read("patientqa") if "LiveQA" in row.part}
    assert not live & {i.messages[0].content for i in real.instructions_in("train")}


@real_data
def test_medec_and_medhallu_as_their_cards_say(real):
    left = {k: n for k, n in real.left_out.items() if k.startswith("medec")}
    assert left["medec: lines joined to the sentence that they break"] == 252
    assert not left.get("medec: blank rows") and not left.get(
        "medec: errors without a correction, so no pair"
    )
    table = real_sets.composition(real).set_index("source")
    assert table.loc["medhallu", "pairs"].sum() == 499
    assert table.loc["medhallu", "shorter_right"].sum() == 116


@real_data
def test_liveqa_is_known_again_in_the_other_sets():
    """By id in MEDIQA, whose texts are the messages; in the others by their words alone."""
    split = question_split.QuestionSplit(0)
    columns = {"mediqa": "question", "medquad_judged": "question", "medlfqa_liveqa": "Question"}
    found = {}
    for key, column in (columns | {"patientqa": "question"}).items():
        texts = [getattr(row, column) for row in real_sets.read(key)]
        placed = split.place([[text] for text in texts if text])
        found[key] = {name for name, _, _ in placed if name.startswith("liveqa-")}
    assert {key: len(names) for key, names in found.items()} == {
        "mediqa": 104,
        "medquad_judged": 103,
        "medlfqa_liveqa": 100,
        "patientqa": 1,  # its LiveQA part is of LiveQA's training questions, not of the test
    }
    messages = {f"liveqa-{row.qid}": row.message for row in real_sets.read("liveqa_questions")}
    mediqa = [r for r in real_sets.read("mediqa") if r.split == "train_liveqa"]
    by_words = question_split.alike([r.question for r in mediqa], [*messages.values()], True)
    names = list(messages)
    assert len(by_words) >= 95 and all(
        names[m] == f"liveqa-{mediqa[n].qid}" for n, m in by_words.items()
    )


@real_data
def test_splits_of_the_real_files_share_no_question_and_no_answer(real):
    splits = defaultdict(set)
    for row in real.splits:
        splits[row.condition].add(row.split)
    assert all(len(found) == 1 for found in splits.values())
    assert set.union(*splits.values()) == {
        "train",
        "calibration",
        "checkpoint",
        "bench",
        "external",
    }
    train = set(real.ids(*TRAINING_SIDE))
    fixed = question_split.QuestionSplit(0).fixed
    mine = [text for i in train for text in real.known_by[i]]
    test = [text for i in set(real.ids("bench", "external")) for text in real.known_by[i]]
    assert not question_split.alike(mine, [*fixed, *test], questions=True)
    answers = [c.text for c in real.candidates if c.instruction_id in train]
    held_out = [c.text for c in real.candidates if c.instruction_id not in train]
    held_out += real_sets.judged_answers()
    assert not question_split.alike(answers, held_out)
    assert not {schemas.wording(t) for t in answers} & {schemas.wording(t) for t in held_out}


@real_data
def test_medquad_without_the_test_side_is_text_to_learn_from_and_to_retrieve():
    kept = real_sets.medquad_texts(2026)
    assert 10000 < len(kept) < 16407
    questions = {schemas.wording(row.question) for row, _ in kept}
    assert not questions & {schemas.wording(r.question) for r in real_sets.read("mediqa")}
    answers = {schemas.wording(row.answer) for row, _ in kept}
    assert not answers & {schemas.wording(text) for text in real_sets.judged_answers()}


@real_data
def test_every_hard_penalty_was_read_and_the_files_are_those(report):
    points = [
        (row.prompt_id, p)
        for key in ("healthbench_rubrics", "healthbench_graded")
        for row in real_sets.read(key)
        for p in (row.rubrics if key == "healthbench_rubrics" else row.criteria)
    ]
    hard = {short_hash(i, p.criterion) for i, p in points if p.points <= real_sets.HARMFUL_FROM}
    assert hard == set(real_sets.harm()) and 0 < sum(real_sets.harm().values()) < len(hard)
    assert all(report["files_as_first_read"].values())


@real_data
def test_nothing_of_the_texts_leaves_with_the_aggregates(real, report):
    shown = json.dumps(report)
    texts = {m.content for i in real.instructions for m in i.messages}
    texts |= {c.text for c in real.candidates}
    own = {row["text"] for rows in real_sets.LABEL_SETS.values() for row in rows}
    texts |= {c.text for r in real.rubrics for c in r.criteria} - own
    assert not [t for t in texts if len(t) > 12 and t in shown]
    assert not re.search("healthbench:[0-9a-f]{8}", shown)
    ours = [p for p in Path(real_sets.__file__).parent.iterdir() if p.is_file()]
    committed = "\n".join(p.read_text(encoding="utf-8") for p in ours)
    hard = [p.criterion for row in real_sets.read("healthbench_rubrics") for p in row.rubrics]
    assert not [text for text in hard if len(text) > 30 and text in committed]
