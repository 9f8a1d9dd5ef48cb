"""Duplicates are found, near-misses are kept, and neither order, processes nor shards matter."""

import gzip
import json
import os
import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from helpers import synthetic_pool

from promedical_utils.clinic import pool
from promedical_utils.core.workspace import KitError
from promedical_utils.data.curation import deduplication, embeddings
from promedical_utils.data.curation.lexical_guard import DIFFERENT, NEAR, SEMANTIC, compare, read

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
    assert compare(read(LEAFLET), read(b), {}) == compare(read(b), read(LEAFLET), {}) == NEAR


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
    assert compare(read(a), read(b), {}) == compare(read(b), read(a), {}) == DIFFERENT
    # nor for a model that finds the two alike, once names are known
    names = frozenset({"bripimune", "morlodor", "cilvador"})
    if "pregnant" not in b:
        assert compare(read(a), read(b), {}, names) == DIFFERENT


def test_a_typing_error_is_rare_beside_the_word_that_is_meant():
    a, b = read("Is dysphagia dangerous?"), read("Is dysphasia dangerous?")
    assert compare(a, b, {"dysphagia": 900, "dysphasia": 3}) == NEAR
    assert compare(a, b, {"dysphagia": 900, "dysphasia": 40}) == DIFFERENT


def test_a_model_may_swap_words_but_no_facts():
    names = frozenset({"morlodor"})
    a = read("My physician gave me Morlodor, 5 mg.")
    assert compare(a, read("My doctor prescribed Morlodor, 5 mg."), {}, names) == SEMANTIC
    assert compare(a, read("My doctor prescribed Morlodor, 5 g."), {}, names) == DIFFERENT
    left, right = read("Pain in the left arm."), read("An ache in the right arm.")
    assert compare(left, right, {}, names) == DIFFERENT


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
    assert (
        set(found.rule) == {"same words", "near-duplicate"}
        and found.similarity.between(0.5, 1).all()
    )


def test_neither_order_nor_chunks_nor_processes_change_the_result(synthetic, found, monkeypatch):
    rows = list(synthetic[0].items())
    random.Random(1).shuffle(rows)
    monkeypatch.setattr(deduplication, "CHUNK", 700)
    monkeypatch.setattr(deduplication, "_workers", lambda embedder: 2)
    again = deduplication.deduplicate(*zip(*rows))
    assert again.equals(found)


def test_pairs_are_those_that_share_a_band_and_the_guard():
    draw = np.random.default_rng(0)
    bands = draw.integers(0, 9, (60, 4)).astype(np.uint32)
    guard = draw.integers(0, 2, 60).astype(np.uint64)
    sizes = draw.integers(4, 8, 60).astype(np.uint32)
    by_hand = {
        (a, b)
        for a, b in combinations(range(60), 2)
        if guard[a] == guard[b]
        and any(
            bands[a, n] == bands[b, n] and (sizes[a] + n % 2) // 2 == (sizes[b] + n % 2) // 2
            for n in range(4)
        )
    }
    assert set(map(tuple, deduplication.candidates(bands, guard, sizes))) == by_hand


def test_a_crowded_bucket_is_split_by_the_next_band():
    n = 40 * deduplication.LARGEST
    bands = np.stack([np.zeros(n), np.arange(n) % (n // 4), np.zeros(n)], axis=1).astype(np.uint32)
    pairs = deduplication.candidates(bands, np.zeros(n, np.uint64), np.zeros(n, np.uint32))
    assert len(pairs) == n // 4 * 6 and (pairs[:, 0] % (n // 4) == pairs[:, 1] % (n // 4)).all()


def test_cosine_of_whole_numbers_is_that_of_the_vectors():
    vectors = np.random.default_rng(0).normal(size=(20, 256))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    a, b = np.arange(10), np.arange(10, 20)
    rounded = deduplication.in_whole_numbers(unit)
    assert deduplication.cosine(rounded, a, b) == pytest.approx(
        (unit[a] * unit[b]).sum(axis=1), abs=5e-3
    )
    assert np.abs(rounded).max(axis=1).tolist() == [127] * 20


def test_matches_are_the_duplicates_among_others(synthetic):
    texts, clusters, _ = synthetic
    ids = list(texts)
    some, rest = ids[:800:2], ids[1:800:2]
    found = deduplication.matches([texts[i] for i in rest], [texts[i] for i in some])
    assert all(clusters[rest[row]] == clusters[some[other]] for row, (other, _) in found.items())
    held = {clusters[i] for i in some}
    wanted = [n for n, i in enumerate(rest) if clusters[i] in held]
    assert wanted and len(found) >= 0.9 * len(wanted)
    assert all(0.5 < cosine <= 1 for _, cosine in found.values())


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


def test_nearest_finds_the_same_text_first_and_a_typing_error_next():
    texts = ["my elbow aches", "my elbow achse", "which train goes home", "my elbow aches"]
    near = embeddings.nearest(embeddings.embed(texts[:1]), embeddings.embed(texts), 3)
    assert near.tolist() == [[0, 3, 1]]


def test_a_model_that_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(KitError, match="embedder .* cannot be loaded") as error:
        embeddings.embed(["text"], str(tmp_path / "nothing"))
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def synonyms(tmp_path_factory):
    """A sentence-transformers model for which physician is doctor, and ache is pain."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = "<unk> my the in says needs what not now train goes home elbow morlodor cilvador"
    pairs = "doctor physician pain ache"
    ids = {word: n for n, word in enumerate(f"{words} {pairs}".split())}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    weights = np.random.default_rng(0).normal(size=(len(ids), 64)).astype(np.float32)
    weights[ids["physician"]], weights[ids["ache"]] = weights[ids["doctor"]], weights[ids["pain"]]
    weights[ids["cilvador"]], weights[ids["not"]] = (
        weights[ids["morlodor"]],
        0,
    )  # a model that sees no difference
    folder = tmp_path_factory.mktemp("model")
    SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=weights)], device="cpu"
    ).save(str(folder))
    return str(folder)


def test_a_model_finds_what_spelling_does_not_and_the_guard_holds(synonyms):
    texts = {
        "a": "My doctor says the pain in my elbow needs Morlodor",
        "b": "My physician says the ache in my elbow needs Morlodor",
        "c": "My physician says the ache in my elbow needs Cilvador",
        "d": "My physician says the ache in my elbow needs not Morlodor",
        "e": "What train goes home",
    }
    given = list(texts), list(texts.values())
    assert deduplication.deduplicate(*given).empty
    gone = deduplication.deduplicate(*given, synonyms, 0.9)
    assert gone[["id", "kept_id", "rule"]].values.tolist() == [["b", "a", "semantic"]]


def test_the_threshold_is_the_least_cosine_of_a_models_vectors(synonyms):
    texts = ["My doctor says the pain in my elbow needs Morlodor"]
    texts.append(f"{texts[0]} home")
    a, b = embeddings.embed(texts, synonyms)
    for threshold, found in ((a @ b - 0.01, ["b"]), (a @ b + 0.01, [])):
        assert (
            deduplication.deduplicate(["a", "b"], texts, synonyms, threshold).id.tolist() == found
        )


# ---------------------------------------------------------------- the command


@pytest.fixture
def source(tmp_path, synthetic):
    texts = dict(list(synthetic[0].items())[:600])
    path = tmp_path / "pool.parquet"
    table = pa.table(
        {"id": list(texts), "text": list(texts.values()), "licence": ["MIT"] * len(texts)}
    )
    parquet.write_table(table, path)
    return path


def command(*arguments) -> int:
    return deduplication.main(list(map(str, arguments)))


def content(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_sharded_equals_unsharded_to_the_byte(source, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert command(source, "--out", whole) == 0
    for n in (2, 3, 1):
        assert command(source, "--out", parts, "--shard", f"{n}/3") == 0
    assert not (parts / "manifest.json").exists()
    assert command(source, "--out", parts, "--merge") == 0
    assert content(parts) == content(whole) and set(content(whole)) == {
        "kept.parquet",
        "duplicates.parquet",
        "manifest.json",
    }
    manifest = json.loads((whole / "manifest.json").read_text())
    kept, gone = (parquet.read_table(whole / f"{n}.parquet") for n in ("kept", "duplicates"))
    assert manifest["rows"] == 600 == kept.num_rows + gone.num_rows and gone.num_rows > 50
    assert kept.column_names == ["id", "text", "licence"] and kept["id"].to_pylist() == sorted(
        kept["id"].to_pylist()
    )


def test_a_missing_broken_or_foreign_shard_is_one_clear_error(source, tmp_path, capsys):
    out = tmp_path / "parts"

    def fails(*arguments) -> str:
        assert command(source, "--out", out, *arguments) == 1
        return capsys.readouterr().err

    assert "no shard" in fails("--merge")
    command(source, "--out", out, "--shard", "1/2")
    assert "missing shard 2/2" in fails("--merge")
    command(source, "--out", out, "--shard", "2/2")
    data = out / "shards/shard-0002-of-0002.npz"
    whole = data.read_bytes()
    data.write_bytes(whole[:-100])
    assert "shard-0002-of-0002.npz is missing or not what its manifest says" in fails("--merge")
    data.write_bytes(whole)
    assert "another embedder" in fails("--merge", "--embedder", "some/model")
    table = parquet.read_table(source)
    parquet.write_table(table.slice(1), source)
    assert "another pool_sha256" in fails("--merge")
    parquet.write_table(table, source)
    command(source, "--out", out, "--shard", "3/3")
    assert "shards of [2, 3]" in fails("--merge")
    with pytest.raises(SystemExit):
        command(source, "--out", out, "--shard", "0/3")


@pytest.mark.parametrize(
    ("columns", "complaint"),
    [
        (
            {"id": ["a", "b", "a"], "text": ["x y", "x z", "q"]},
            "1 ids stand more than once, first 'a'",
        ),
        ({"id": ["a", "b"], "text": ["x y", " \n"]}, r"row 2 \(b\): empty text"),
        ({"id": ["a", "b"], "text": ["x y", None]}, "empty text"),
        ({"id": ["a"], "question": ["x y"]}, "no column text"),
        ({"id": [1], "text": ["x y"]}, "column id is int64"),
        ({"id": [], "text": []}, "no rows"),
    ],
)
def test_a_bad_pool_is_one_clear_error(tmp_path, columns, complaint):
    path = tmp_path / "pool.parquet"
    parquet.write_table(pa.table(columns), path)
    with pytest.raises(KitError, match=complaint):
        deduplication.read_pool(path)


def test_an_unreadable_pool_is_one_clear_error(tmp_path, capsys):
    path = tmp_path / "pool.parquet"
    path.write_text("no parquet")
    assert command(path, "--out", tmp_path) == 1
    assert "not readable Parquet" in capsys.readouterr().err
    assert command(tmp_path / "none.parquet", "--out", tmp_path) == 1
    assert "missing none.parquet" in capsys.readouterr().err


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
