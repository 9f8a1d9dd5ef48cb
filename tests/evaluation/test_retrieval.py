"""Retrieval: BM25 by hand, ties, recall, what fits into an instruction, documents of one's own."""

import gzip
import json
import math
import random

import pytest
from transformers import AutoTokenizer

from promedical_utils.core.workspace import KitError
from promedical_utils.evaluation import retrieval
from promedical_utils.evaluation.retrieval import Index
from promedical_utils.reward_model import packing


def bm25(documents, asked, k1=1.5, b=0.75):
    """Scores by the formula: idf of Lucene, term frequency saturated and normalised by length."""
    split = {name: text.lower().split() for name, text in documents.items()}
    mean = sum(map(len, split.values())) / len(split)
    scores = dict.fromkeys(split, 0.0)
    for word in set(asked.lower().split()):
        n = sum(word in words for words in split.values())
        idf = math.log(1 + (len(split) - n + 0.5) / (n + 0.5))
        for name, words in split.items():
            f = words.count(word)
            scores[name] += idf * f / (f + k1 * (1 - b + b * len(words) / mean))
    return scores


def test_the_order_is_that_of_the_formula():
    rng = random.Random(0)
    for _ in range(30):
        vocabulary = [f"w{n}" for n in range(12)]
        documents = {
            f"d{n:02d}": " ".join(rng.choices(vocabulary, k=rng.randint(1, 15))) for n in range(20)
        }
        asked = " ".join(rng.choices(vocabulary, k=4))
        scores = bm25(documents, asked)
        [found] = Index(documents).search([asked], 20)
        assert sorted(found) == sorted(name for name, s in scores.items() if s > 0)
        values = [scores[name] for name in found]
        assert all(a >= b - 1e-5 for a, b in zip(values, values[1:]))
        assert Index(documents).search([asked], 3) == [found[:3]]


def test_ties_are_in_the_order_of_the_ids_whatever_the_order_given():
    names = [f"d{n:02d}" for n in range(40)]
    random.Random(1).shuffle(names)
    assert Index(dict.fromkeys(names, "cold water")).search(["water"], 5) == [
        [f"d{n:02d}" for n in range(5)]
    ]
    many = {f"d{n:04d}": ("cold water", "water water", "water tea milk")[n % 3] for n in range(900)}
    [found] = Index(dict(reversed(many.items()))).search(["water"], 900)
    groups = [
        [name for name in many if many[name] == text]
        for text in dict.fromkeys(many[n] for n in found)
    ]
    assert len(groups) == 3 and found == sum(groups, [])


def test_a_word_counts_once_in_a_query_and_numbers_are_words():
    index = Index({"a": "cold tea 5", "b": "warm warm 7", "c": "other"})
    assert index.search(["warm cold cold cold", "cold warm"], 2) == [["b", "a"]] * 2
    assert index.search(["7"], 3) == [["b"]]
    assert index.search(["", "nowhere"], 3) == [[], []]
    assert Index({"a": "the of", "b": "cold"}).search(["the cold"], 2) == [["b"]]
    for nothing in ({}, {"a": "the of"}, {"a": "..."}):
        with pytest.raises(KitError, match="no documents"):
            Index(nothing)


def test_recall_by_hand():
    found, wanted = [["a", "b", "c"], ["d", "e", "f"]], [["b", "x"], ["d"]]
    assert retrieval.recall(found, wanted, (1, 2, 3)) == {1: 1 / 3, 2: 2 / 3, 3: 2 / 3}
    with pytest.raises(KitError, match="no document is wanted"):
        retrieval.recall(found, [[], []], (1,))


@pytest.mark.parametrize("spare", [0, 7, 12, 30, 60, 400])
def test_documents_stand_whole_or_not_at_all_and_take_nothing_away(tiny_base, spare):
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "and"},
        {"role": "user", "content": "what now?"},
    ]
    responses, tails = (
        ["rest", "rest and drink a lot of tea"],
        ["\nsafety: the answer names the dose", "\nx"],
    )
    documents = ["a rather long document about nothing at all", "short", "tea helps", "x" * 50]

    def size(told, response, tail):
        one, two = packing.text_ids(tokenizer, [response, tail])
        return len(packing.prompt_ids(tokenizer, told)) + len(one) + len(two)

    limit = size(messages, responses[1], tails[0]) + spare
    told, kept = retrieval.with_documents(tokenizer, messages, responses, tails, documents, limit)
    assert told[:2] == messages[:2] and messages[2]["content"] == "what now?"
    lines = told[2]["content"].split("\n")
    assert lines == [
        "what now?",
        *([retrieval.HEADING, *(documents[n] for n in kept)] if kept else []),
    ]
    assert max(size(told, r, t) for r in responses for t in tails) <= limit
    for n in set(range(4)) - set(kept):  # no room was left for it when its turn came
        before = [documents[m] for m in kept if m < n]
        content = "\n".join(["what now?", retrieval.HEADING, *before, documents[n]])
        assert (
            size([*messages[:2], {"role": "user", "content": content}], responses[1], tails[0])
            > limit
        )
    assert {0: [], 400: [0, 1, 2, 3]}.get(spare, kept) == kept
    assert spare != 60 or 0 < len(kept) < 4


def test_a_chinese_question_finds_its_document_by_letters(tmp_path):
    said = {
        "spray": "这种喷雾一天最多用三次。",
        "pills": "降压药每天早上吃一片。",
        "en": "One a day.",
    }
    found = Index(said).search(["喷雾可以用几次？", "降压药", "糖"], 2)
    assert found == [["spray"], ["pills"], []]
    (tmp_path / "notes.txt").write_text("药" * 250 + " 完", encoding="utf-8")
    passages = retrieval.read_documents(tmp_path)
    assert [*passages.values()] == ["药" * 120, "药" * 120, "药" * 10 + " 完"]


def test_documents_of_ones_own(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/notes.txt").write_text(
        "one two\nthree\n\n" + " ".join(["word"] * 250) + "\n\n  \n\nlast"
    )
    rows = [{"id": "r1", "text": "a row"}, {"id": "r2", "text": "another", "more": 1}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    (tmp_path / "zip.jsonl.gz").write_bytes(
        gzip.compress(json.dumps({"id": "z", "text": "zipped"}).encode())
    )
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    found = retrieval.read_documents(tmp_path)
    assert {k: found[k] for k in ("r1", "r2", "z")} == {
        "r1": "a row",
        "r2": "another",
        "z": "zipped",
    }
    assert found["sub/notes.txt#1"] == "one two three" and found["sub/notes.txt#5"] == "last"
    assert [len(found[f"sub/notes.txt#{n}"].split()) for n in (2, 3, 4)] == [120, 120, 10]
    assert len(found) == 8
    assert retrieval.read_documents(tmp_path / "rows.jsonl") == {"r1": "a row", "r2": "another"}


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("a.jsonl", '{"id": "x"}', "a.jsonl, row 1"),
        ("a.jsonl", '{"id": "x", "text": "t"}\n{"id": 1, "text": "t"}', "row 2"),
        ("a.jsonl", "[1]", "a.jsonl, line 1 .TypeError.: a row is a JSON object"),
        (
            "a.jsonl",
            '{"id": "x", "text": "t"}\n\n{"id": "y"',
            "a.jsonl, line 3 .JSONDecodeError.",
        ),
        ("a.jsonl", '{"id": "x", "text": "  "}', "field text"),
        ("a.jsonl", '{"id": "x", "text": "t"}\n{"id": "x", "text": "u"}', "second document"),
        ("a.csv", "x", "holds no text"),
        ("a.txt", " \n\n ", "holds no text"),
    ],
)
def test_documents_that_are_none_are_one_clear_error(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(KitError, match=words):
        retrieval.read_documents(tmp_path)


def test_a_folder_that_is_not_there_is_named_without_its_path(tmp_path):
    with pytest.raises(KitError, match="no file or folder nowhere") as error:
        retrieval.read_documents(tmp_path / "nowhere")
    assert str(tmp_path) not in str(error.value)
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(KitError, match="cannot read documents: bad.txt .*save it as UTF-8"):
        retrieval.read_documents(tmp_path)
