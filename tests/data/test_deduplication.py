"""Duplicates are found, near-misses are kept, and the order of the rows does not matter."""

import gzip
import json
import os
import random
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from helpers import synthetic_pool

from promedical_utils.clinic import pool
from promedical_utils.core.workspace import KitError
from promedical_utils.data.curation import deduplication, embeddings
from promedical_utils.data.curation.lexical_guard import read, same

LEAFLET = "First choice Bripimune. Must avoid Cilvador. Daily limit 45 units."


@pytest.fixture(scope="module")
def synthetic():
    rows = list(synthetic_pool.synthetic(3000, 5))
    clusters = {id_: cluster for id_, _, cluster, _ in rows}
    misses = [id_ for id_, _, _, kind in rows if kind == "near_miss"]
    return {id_: text for id_, text, _, _ in rows}, clusters, misses


@pytest.fixture(scope="module")
def found(synthetic):
    return deduplication.deduplicate(list(synthetic[0]), list(synthetic[0].values()))


# ---------------------------------------------------------------- two texts


@pytest.mark.parametrize(
    "b",
    [
        LEAFLET.upper(),
        LEAFLET.replace(".", ""),
        "Must avoid Cilvador. Daily limit 45 units. First choice Bripimune.",  # other order
        f"Dear doctor, {LEAFLET} Thank you very much in advance!",
        "First choice is really Bripimune. Must avoid Cilvador. The daily limit: 45 units.",
        LEAFLET.replace("Bripimune", "Bripimnue").replace("Daily", "Daly"),  # typing errors
        LEAFLET.replace("units", "unit"),
        LEAFLET.replace("45", "45.0"),
    ],
)
def test_the_same_in_other_words_or_letters_is_a_duplicate(b):
    assert same(read(LEAFLET), read(b), {}) and same(read(b), read(LEAFLET), {})


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (LEAFLET, LEAFLET.replace("45", "40")),  # dose
        (LEAFLET, LEAFLET.replace("45", "4.5")),
        (LEAFLET, LEAFLET.replace("Bripimune", "Morlodor")),  # drug
        (LEAFLET.lower(), LEAFLET.lower().replace("bripimune", "morlodor")),
        (LEAFLET, LEAFLET.replace("Must avoid", "Must not avoid")),  # negation
        ("You can take it.", "You can't take it."),
        ("Should I take it? I do smoke.", "Should I take it? I dont smoke."),
        (
            LEAFLET,
            "First choice Cilvador. Must avoid Bripimune. Daily limit 45 units.",
        ),  # exchanged
        ("Switch from Morlodor to Cilvador?", "Switch from Cilvador to Morlodor?"),
        ("Switch from Morlodor to Cilvador?", "Switch to Morlodor from Cilvador?"),
        ("Morlodor and Cilvador at night?", "Morlodor or Cilvador at night?"),
        ("Limit 45 units, visit after 7 days.", "Limit 7 units, visit after 45 days."),
        ("Take 5 mg of Morlodor.", "Take 5 mcg of Morlodor."),  # unit
        ("May I take Morlodor?", "May I take Morlodor while pregnant?"),  # one word more
        ("Take two tablets daily.", "Take three tablets daily."),
    ],
)
def test_a_near_miss_is_no_duplicate(a, b):
    assert not same(read(a), read(b), {}) and not same(read(b), read(a), {})


def test_a_typing_error_is_rare_beside_the_word_that_is_meant():
    a, b = read("Is dysphagia dangerous?"), read("Is dysphasia dangerous?")
    assert same(a, b, {"dysphagia": 900, "dysphasia": 3})
    assert not same(a, b, {"dysphagia": 900, "dysphasia": 40})


# ---------------------------------------------------------------- a pool with known truth


def test_recall_precision_and_near_misses_on_a_planted_pool(synthetic, found):
    texts, clusters, misses = synthetic
    scores = synthetic_pool.scores(clusters, misses, dict(zip(found.id, found.kept_id)))
    assert scores["precision"] >= 0.99 and scores["recall"] >= 0.95
    assert scores["near_misses_kept"] == len(misses) > 100
    # scores by hand: every pair of rows
    kept = {i: i for i in texts} | dict(zip(found.id, found.kept_id))
    some = list(texts)[:400]
    pairs = [(kept[a] == kept[b], clusters[a] == clusters[b]) for a, b in combinations(some, 2)]
    by_hand = sum(x and y for x, y in pairs) / sum(y for _, y in pairs)
    held = {i: k for i, k in zip(found.id, found.kept_id) if i in set(some)}
    assert synthetic_pool.scores({i: clusters[i] for i in some}, [], held)[
        "recall"
    ] == pytest.approx(by_hand, abs=0.02)


def test_the_smallest_id_of_a_cluster_is_kept(synthetic, found):
    gone = set(found.id)
    assert not gone & set(found.kept_id) and (found.id > found.kept_id).all()
    assert found.id.is_monotonic_increasing
    assert set(found.rule) == {"same words", "near-duplicate"}


def test_the_order_of_the_rows_does_not_change_the_result(synthetic, found):
    rows = list(synthetic[0].items())
    random.Random(1).shuffle(rows)
    again = deduplication.deduplicate(*zip(*rows))
    assert again.equals(found)


def test_the_index_loses_none_of_the_pairs_that_comparing_all_finds(synthetic):
    sizes = Counter(synthetic[1].values())
    texts = {i: text for i, text in synthetic[0].items() if sizes[synthetic[1][i]] > 1}
    texts = dict(list(texts.items())[:120])
    contents = {i: read(text) for i, text in texts.items()}
    rows = Counter(w for c in contents.values() for w in {w for sentence in c for w in sentence})
    alike = {
        (a, b) for a, b in combinations(sorted(texts), 2) if same(contents[a], contents[b], rows)
    }
    gone = deduplication.deduplicate(list(texts), list(texts.values()))
    kept = {i: i for i in texts} | dict(zip(gone.id, gone.kept_id))
    assert len(alike) >= 20
    assert sum(kept[a] != kept[b] for a, b in alike) <= 0.02 * len(alike)


def test_matches_are_the_duplicates_among_others(synthetic):
    texts, clusters, _ = synthetic
    ids = list(texts)
    some, rest = ids[:800:2], ids[1:800:2]
    found = list(deduplication.matches([texts[i] for i in rest], [texts[i] for i in some]))
    assert all(clusters[rest[row]] == clusters[some[other]] for row, other, _ in found)
    held = {clusters[i] for i in some}
    wanted = [n for n, i in enumerate(rest) if clusters[i] in held]
    assert wanted and len({row for row, _, _ in found}) >= 0.9 * len(wanted)
    assert all(0.5 < cosine <= 1 for _, _, cosine in found)


# ---------------------------------------------------------------- embeddings


def test_hashed_vectors_do_not_depend_on_their_company(synthetic):
    texts = list(synthetic[0].values())[:200]
    vectors = embeddings.embed(texts)
    assert vectors.dtype == np.float32 and np.linalg.norm(vectors, axis=1) == pytest.approx(
        np.ones(200)
    )
    assert np.array_equal(embeddings.embed(texts[50:60]), vectors[50:60])
    assert not embeddings.embed(["?!"]).any() and embeddings.embed([]).shape == (
        0,
        embeddings.DIMENSIONS,
    )


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ({"ids": ["a", "b", "a"], "texts": ["x y", "x z", "q"]}, "1 ids stand more than once, fir"),
        ({"ids": ["a", "b"], "texts": ["x y", " \n"]}, r"row 2 \(b\): empty text"),
    ],
)
def test_a_bad_pool_is_one_clear_error(rows, complaint):
    with pytest.raises(KitError, match=complaint):
        deduplication.deduplicate(**rows)


# ---------------------------------------------------------------- real questions


@pytest.mark.skipif(
    not os.environ.get("PROMEDICAL_DATA_DIR"),
    reason="PROMEDICAL_DATA_DIR is not set: real questions are NOT deduplicated",
)
def test_real_questions_are_all_kept_and_their_rewordings_found():
    """K-QA's 201 short questions, each twice reworded: a typing error weighs more in few words."""
    path = Path(os.environ["PROMEDICAL_DATA_DIR"]) / "kqa/questions_w_answers.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        questions = sorted({json.loads(line)["Question"] for line in lines})
    rng, texts = random.Random(0), {}
    for n, question in enumerate(questions):
        again = [pool.reworded(question, rng) for _ in range(2)]
        texts |= {f"{n}-{k}": text for k, text in enumerate([question, *again])}
    gone = deduplication.deduplicate(list(texts), list(texts.values()))
    clusters = {id_: int(id_.split("-")[0]) for id_ in texts}
    scores = synthetic_pool.scores(clusters, [], dict(zip(gone.id, gone.kept_id)))
    assert scores["precision"] == 1 and scores["recall"] > 0.9


def test_a_leak_of_a_few_misspelled_words_is_found_whatever_a_sketch_makes_of_it():
    bench = ["metformin insulin warfarin migraine", "swelling metformin headache"]
    pool = ["muetformin insulni warafrin migraine", "swlling metfuormin heaadche"]
    found = [(row, other) for row, other, _ in deduplication.matches(pool, bench)]
    assert found == [(0, 0), (1, 1)]
