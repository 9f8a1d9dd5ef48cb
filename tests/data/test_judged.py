"""Judged answers as pairs: by hand on invented rows, and the counts of the real files."""

import gzip
import json
import os
from collections import Counter

import pytest

from promedical_utils.core.workspace import KitError
from promedical_utils.data.sources import judged, schemas

real_data = pytest.mark.skipif(
    not os.environ.get(schemas.VARIABLE),
    reason=f"{schemas.VARIABLE} is not set: the counts of the real files are NOT checked",
)


def write(folder, key, rows):
    path = folder / schemas.CARDS[key].file
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.name.endswith(".json"):
        path.write_text(json.dumps(rows))
    else:
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(schemas.VARIABLE, str(tmp_path))
    return tmp_path


def mediqa_row(split, qid, scores):
    answers = [{"aid": f"a{n}", "score": s, "text": f"passage {n}"} for n, s in enumerate(scores)]
    return {"split": split, "qid": qid, "question": f"question {qid}?", "answers": answers}


def test_mediqa_pairs_are_all_of_unequal_score(folder):
    rows = [
        mediqa_row("test", "1", [4, 2, 2, 1]),
        mediqa_row("val", "2", [3, 3]),
        mediqa_row("val", "3", [1, 2]),
    ]
    write(folder, "mediqa", rows)
    questions, left_out = judged.read("mediqa")
    assert [q.instruction.id for q in questions] == ["mediqa-test-1", "mediqa-val-3"]
    assert left_out == {"questions without two unequal scores": 1}
    n = "mediqa-test-1-a"
    assert set(questions[0].pairs) == {
        (f"{n}0", f"{n}1", 1),
        (f"{n}0", f"{n}2", 1),
        (f"{n}0", f"{n}3", 1),
        (f"{n}1", f"{n}3", 1),
        (f"{n}2", f"{n}3", 1),
    }
    assert questions[1].pairs == (("mediqa-val-3-a0", "mediqa-val-3-a1", -1),)
    assert not questions[0].rubrics and questions[0].condition != questions[1].condition


def test_an_answer_judged_differently_has_no_score(folder):
    def row(qid, aid, score):
        return {
            "qid": qid,
            "question": f"q{qid}?",
            "aid": aid,
            "score": score,
            "label": "x",
            "answer": f"text {aid}",
        }

    write(
        folder,
        "medquad_judged",
        [
            row("1", "a", 4),
            row("1", "b", 1),
            row("1", "c", 2),
            row("1", "c", 3),
            row("1", "d", 1),
            row("1", "d", 1),
            row("2", "a", 2),
            row("2", "e", 2),
        ],
    )
    [only], left_out = judged.read("medquad")
    assert set(only.pairs) == {("medquad-1-a", "medquad-1-b", 1), ("medquad-1-a", "medquad-1-d", 1)}
    assert [c.text for c in only.candidates] == ["text a", "text b", "text d"]
    assert left_out == {"answers judged differently": 1, "questions without two unequal scores": 1}


def bench_row(label_type="Easy", chosen="good", rejected="bad", prompt="what?"):
    return {
        "prompt_id": "p",
        "label_type": label_type,
        "prompt": prompt,
        "chosen": chosen,
        "rejected": rejected,
        "metadata": {"any": "thing"},
    }


def test_rewardbench_rows_of_either_shape(folder):
    talk = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "well"}]
    worse = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "ill"}]
    rows = [bench_row("Easy"), bench_row("human", talk, worse), bench_row("Length", "same", "same")]
    rows += [bench_row("Hard", f"c{n}", f"r{n}", f"p{n}") for n in range(40)]
    write(folder, "medical_rewardbench", rows)
    questions, left_out = judged.read("medical_rewardbench")
    assert left_out == {"pairs of the same text": 1} and len(questions) == 42
    assert Counter(q.subset for q in questions) == {"easy": 1, "human": 1, "hard": 40}
    assert (
        set(judged.SUBSETS) == {"easy", "hard", "length", "human"}
        and sum(judged.SUBSETS.values()) == 777
    )
    for q, (good, bad) in zip(
        questions, [("good", "bad"), ("well", "ill"), *((f"c{n}", f"r{n}") for n in range(40))]
    ):
        [(a, b, label)] = q.pairs
        text = {c.id: c.text for c in q.candidates}
        assert (text[a], text[b]) == ((good, bad) if label == 1 else (bad, good))
        assert "chosen" not in a + b
    assert 10 < sum(q.pairs[0][2] == 1 for q in questions) < 32  # the better one is not always a


@pytest.mark.parametrize(
    "change, field",
    [
        ({"label_type": "odd"}, "label_type"),
        ({"chosen": []}, "chosen"),
        ({"prompt": " "}, "prompt"),
    ],
)
def test_a_row_of_another_shape_is_named(folder, change, field):
    write(folder, "medical_rewardbench", [bench_row(), bench_row() | change])
    with pytest.raises(KitError, match=f"row 2, field {field}"):
        judged.read("medical_rewardbench")
    (folder / schemas.CARDS["medical_rewardbench"].file).write_text('[{"a":')
    with pytest.raises(
        KitError, match=r"cannot read .*test.json \(JSONDecodeError\): fetch it again"
    ):
        judged.read("medical_rewardbench")


@pytest.mark.parametrize("name", judged.SETS)
def test_what_is_not_there_is_one_line_that_says_what_to_fetch(folder, name):
    with pytest.raises(KitError, match="missing .* in PROMEDICAL_DATA_DIR"):
        judged.read(name)


def test_without_a_folder_medquad_cannot_be_read(monkeypatch):
    monkeypatch.delenv(schemas.VARIABLE, raising=False)
    with pytest.raises(KitError, match="on no hub"):
        judged.read("medquad")


@real_data
def test_the_real_files_have_the_pairs_counted_on_them():
    questions, _ = judged.read("mediqa")
    assert sum(len(q.pairs) for q in questions) == 6536
    assert sum(len(row.answers) for row in schemas.read("mediqa")) == 3042
    questions, left_out = judged.read("medquad")
    assert (
        sum(len(q.pairs) for q in questions) == 9106
        and left_out["answers judged differently"] == 168
    )
    assert sum(len(q.candidates) for q in questions) == 1924 and schemas.as_first_read(
        "medquad_judged"
    )
