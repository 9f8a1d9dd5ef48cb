"""Near-duplicate and semantic deduplication of a pool of instructions, whole or in shards.

    python -m promedical_utils.data.curation.deduplication POOL.parquet --out FOLDER [--shard i/n]
    [--embedder E] python -m promedical_utils.data.curation.deduplication POOL.parquet --out FOLDER
    --merge

Each text is read into content words, and sketched: MinHash of its words (Broder 1997, by
datasketch) and signs of random projections of its embedding (Charikar 2002), both cut into bands.
Texts that share a band are compared word by word (``lexical_guard``): with ``hashing``, which knows
no meaning, every content word must be the same but for typing errors; with a model, embeddings must
reach the threshold, and then words may differ that are no facts.

A sketch depends on nothing but its text, and what is compared depends on no order, so that neither
rows, processes nor shards change the result; an index that is built row by row (HNSW, as in
semhash) could not promise that.
"""

import argparse
import hashlib
import os
import re
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from promedical_utils.core.workspace import (
    KitError,
    read_json,
    replacing,
    sha256,
    short_hash,
    shown,
    write_json,
)
from promedical_utils.data.curation import embeddings
from promedical_utils.data.curation.lexical_guard import (
    DIFFERENT,
    NEAR,
    SEMANTIC,
    capitals,
    compare,
    content,
    numbers,
    read,
)

THRESHOLD = 0.9  # least cosine of two duplicates, for a model's embeddings
WORD_BANDS, WORD_ROWS = 24, 5  # MinHash
SIGN_BANDS, SIGN_BITS = 24, 12  # random projections
CELLS = 64
LARGEST = 32  # rows compared in one bucket; a larger one is split by the next bands
CHUNK = 10_000  # texts, or pairs, of one task
SEED = 1
COLUMNS = ("id", "text")
ARRAYS = ("rows", "exact", "guard", "sizes", "tallies", "bands", "vectors")
RULES = {0: "same words", NEAR: "near-duplicate", SEMANTIC: "semantic"}


# ---------------------------------------------------------------- sketches


@dataclass
class Sketches:
    """What is kept of N texts: row numbers, hashes, bands, embeddings; and words with their rows.

    ``words``: word -> (rows it stands in, rows it stands in with a capital within a sentence).
    """

    rows: np.ndarray  # (N,) int64
    exact: np.ndarray  # (N,) uint64, of the content words in order
    guard: np.ndarray  # (N,) uint64, of the numbers and negations, which duplicates share
    sizes: np.ndarray  # (N,) uint32, content words; 0 where other words may stand for them
    tallies: np.ndarray  # (N, CELLS) uint8, content words counted in cells by their hash
    bands: np.ndarray  # (N, WORD_BANDS + SIGN_BANDS) uint32
    vectors: np.ndarray  # (N, D) int8
    words: dict[str, tuple[int, int]]

    @classmethod
    def joined(cls, parts: Sequence["Sketches"]) -> "Sketches":
        words: dict[str, tuple[int, int]] = {}
        for part in parts:
            for word, (n, capital) in part.words.items():
                before = words.get(word, (0, 0))
                words[word] = before[0] + n, before[1] + capital
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in ARRAYS), words)


def sketch(rows: np.ndarray, texts: Sequence[str], embedder: str) -> Sketches:
    """Sketches of one chunk of texts; ``rows`` are their numbers in the pool."""
    whole_texts = [read(text) for text in texts]
    words = [[w for sentence in content(sentences) for w in sentence] for sentences in whole_texts]
    exact = np.array([_hash(" ".join(row)) for row in words], np.uint64)
    guard = np.array([_hash(" ".join(numbers(row))) for row in words], np.uint64)
    sizes = np.array(
        [len(row) if embedder == embeddings.HASHING else 0 for row in words], np.uint32
    )
    vectors = in_whole_numbers(embeddings.embed(texts, embedder))
    hashed, tallies = _word_bands(words)
    bands = np.hstack([hashed, _sign_bands(vectors)])
    counts = Counter(w for row in whole_texts for w in {w for sentence in row for w in sentence})
    capital = Counter(w for text in texts for w in capitals(text))
    return Sketches(
        rows,
        exact,
        guard,
        sizes,
        tallies,
        bands,
        vectors,
        {w: (n, capital[w]) for w, n in counts.items()},
    )


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def in_whole_numbers(vectors: np.ndarray) -> np.ndarray:
    """Vectors rounded to int8, the largest component to 127.

    Sums over whole numbers are exact, so that they are the same in whatever order they are added.
    """
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
    return np.rint(vectors * (127 / np.where(largest == 0, 1, largest))).astype(np.int8)


def _word_bands(words: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
    """MinHash bands (N, WORD_BANDS) and tallies (N, CELLS) of words.

    The permutations are datasketch's; each word is hashed once, and sets are united by minimum.
    """
    from datasketch import MinHash

    known = {word: n for n, word in enumerate(sorted({w for row in words for w in row}))}
    hashed = MinHash.bulk([[w.encode()] for w in known], num_perm=WORD_BANDS * WORD_ROWS, seed=SEED)
    table = np.array([m.hashvalues for m in hashed], np.uint64).astype(np.uint32)
    parts = []
    for start in range(0, len(words), 1000):
        rows = [[known[w] for w in set(row)] for row in words[start : start + 1000]]
        at = np.cumsum([0, *map(len, rows[:-1])])
        parts.append(np.minimum.reduceat(table[[n for row in rows for n in row]], at, axis=0))
    least = np.concatenate(parts).reshape(len(words), WORD_BANDS, WORD_ROWS)
    band = np.zeros(least.shape[:2], np.uint64)
    for row in range(WORD_ROWS):
        band = _mix(band ^ least[:, :, row])
    at = np.repeat(np.arange(len(words)), [*map(len, words)])
    cells = table[[known[w] for row in words for w in row], 0] % CELLS
    tallies = np.bincount(at * CELLS + cells, minlength=len(words) * CELLS).reshape(-1, CELLS)
    return (band >> np.uint64(32)).astype(np.uint32), np.minimum(tallies, 255).astype(np.uint8)


def _sign_bands(vectors: np.ndarray) -> np.ndarray:
    """Bands (N, SIGN_BANDS) of the signs of random projections."""
    draw = np.random.default_rng(SEED)
    planes = draw.integers(0, 2, (vectors.shape[1], SIGN_BANDS * SIGN_BITS)) * 2 - 1
    signs = vectors.astype(np.float32) @ planes.astype(np.float32) >= 0
    bits = signs.reshape(len(vectors), SIGN_BANDS, SIGN_BITS)
    return (bits @ (1 << np.arange(SIGN_BITS))).astype(np.uint32)


def _mix(values: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that spreads every bit (splitmix64's)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# ---------------------------------------------------------------- pairs and clusters


def candidates(bands: np.ndarray, guard: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Pairs (P, 2) of rows that share a band and the guard, each pair once and in order.

    Sizes may differ by one: rows of 2n and 2n + 1 words meet in the even bands, of 2n - 1 and 2n in
    the odd ones.
    A bucket of more than ``LARGEST`` rows is split by the next bands; where none splits it, rows
    are compared that stand near each other.
    """
    n, count = bands.shape
    found, pending, size = np.empty(0, np.int64), [], 0
    for band in range(count):
        size_class = (sizes + np.uint32(band % 2)) // np.uint32(2)
        key = _mix(_mix(_mix(guard) ^ size_class) ^ bands[:, band] ^ np.uint64((band + 1) << 40))
        rows = np.arange(n)
        for further in range(1, count):
            rows = rows[_crowded(key[rows])]
            if not len(rows):
                break
            key[rows] = _mix(key[rows] ^ bands[rows, (band + further) % count])
        order = np.argsort(key, kind="stable")
        ordered = key[order]
        for gap in range(1, LARGEST):
            same = np.flatnonzero(ordered[gap:] == ordered[:-gap])
            if not len(same):
                break
            a, b = order[same], order[same + gap]
            pending.append(np.minimum(a, b) * n + np.maximum(a, b))
            size += len(same)
        if size > 20_000_000 or band == count - 1:
            found, pending, size = np.unique(np.concatenate([found, *pending])), [], 0
    return np.stack([found // max(n, 1), found % max(n, 1)], axis=1)


def _crowded(key: np.ndarray) -> np.ndarray:
    """Which rows share their key with at least ``LARGEST`` others: mask (N,)."""
    _, place, size = np.unique(key, return_inverse=True, return_counts=True)
    return size[place] > LARGEST


def cosine(vectors: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines (P,) of the rows ``a`` with the rows ``b`` of whole-number vectors."""
    result = np.empty(len(a))
    for start in range(0, len(a), CHUNK):
        x, y = (vectors[part[start : start + CHUNK]].astype(np.int32) for part in (a, b))
        lengths = np.sqrt((x * x).sum(axis=1).astype(float) * (y * y).sum(axis=1))
        result[start : start + CHUNK] = (x * y).sum(axis=1) / np.where(lengths == 0, 1, lengths)
    return result


def spelled_alike(found: Sketches, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Which pairs (P,) can have the same words but for typing errors in a fifth, or in three.

    A word that differs changes two cells by one; so no such pair is lost, and few others are left.
    """
    result = np.empty(len(a), bool)
    for start in range(0, len(a), CHUNK):
        x, y = (part[start : start + CHUNK] for part in (a, b))
        apart = np.abs(found.tallies[x].astype(np.int16) - found.tallies[y]).sum(axis=1)
        result[start : start + CHUNK] = apart <= 2 * np.maximum(3, found.sizes[x] // 5) + 1
    return result


def _compare_chunk(texts: Sequence[str], pairs: np.ndarray) -> np.ndarray:
    contents = [read(text) for text in texts]
    return np.array([compare(contents[a], contents[b], *_WORDS) for a, b in pairs], np.uint8)


_WORDS: tuple[Mapping[str, int], frozenset[str] | None] = ({}, None)  # of the pool, in each process


def _take_words(*words) -> None:
    global _WORDS
    _WORDS = words


def _known(words: Mapping[str, tuple[int, int]], embedder: str) -> tuple[dict, frozenset | None]:
    """What ``compare`` is told of the pool: rows of a word; names, mostly with a capital."""
    rows = {w: n for w, (n, _) in words.items() if n > 2}
    if embedder == embeddings.HASHING:
        return rows, None
    return rows, frozenset(w for w, (n, capital) in words.items() if 2 * capital >= n)


def _mapped(
    function: Callable, tasks: Iterator[tuple], count: int, workers: int, known=({}, None)
) -> Iterator:
    """Results in the order of ``tasks``, a few of which are held at a time."""
    if workers == 1 or count <= 1:
        _take_words(*known)
        yield from (function(*task) for task in tasks)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _take_words, known) as pool:
        waiting = deque()
        for task in tasks:
            waiting.append(pool.submit(function, *task))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _workers(embedder: str) -> int:
    """A process a core; a model uses all cores by itself."""
    return len(os.sched_getaffinity(0)) if embedder == embeddings.HASHING else 1


def sketches(texts: pa.Array, rows: np.ndarray, embedder: str, workers: int) -> Sketches:
    """Sketches of the texts with the numbers ``rows``."""
    parts = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    tasks = ((part, texts.take(pa.array(part)).to_pylist(), embedder) for part in parts)
    return Sketches.joined(list(_mapped(sketch, tasks, len(parts), workers)))


def clusters(
    ids: Sequence[str],
    texts: pa.Array,
    found: Sketches,
    embedder: str,
    threshold: float,
    workers: int,
) -> pd.DataFrame:
    """The duplicates: a row (id, kept_id, rule, similarity) for each text to be left out, by id.

    Duplicates of duplicates are one cluster; of each, the smallest id is kept. ``similarity`` is
    the cosine with the text that is kept.
    """
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    names = np.array(ids, dtype=object)[found.rows]
    order = np.argsort(names, kind="stable")  # from here on rows are counted by id
    names, rows, vectors = names[order], found.rows[order], found.vectors[order]
    _, first, inverse = np.unique(found.exact[order], return_index=True, return_inverse=True)
    single = np.sort(first)
    pairs = single[
        candidates(*(part[order[single]] for part in (found.bands, found.guard, found.sizes)))
    ]
    if embedder == embeddings.HASHING:
        pairs = pairs[spelled_alike(found, *order[pairs].T)]
    else:
        pairs = pairs[cosine(vectors, *pairs.T) >= threshold]

    def tasks():
        for start in range(0, len(pairs), CHUNK):
            used, local = np.unique(pairs[start : start + CHUNK], return_inverse=True)
            yield texts.take(pa.array(rows[used])).to_pylist(), local.reshape(-1, 2)

    known = _known(found.words, embedder)
    chunks = -(-len(pairs) // CHUNK)
    rule = np.concatenate(
        [np.empty(0, np.uint8), *_mapped(_compare_chunk, tasks(), chunks, workers, known)]
    )
    pairs, rule = pairs[rule != DIFFERENT], rule[rule != DIFFERENT]
    n = len(names)
    edges = np.concatenate([pairs, np.stack([np.arange(n), first[inverse]], axis=1)])
    graph = coo_matrix((np.ones(len(edges), bool), edges.T), shape=(n, n))
    _, label = connected_components(graph, directed=False)
    _, kept = np.unique(label, return_index=True)  # the first of each cluster: its smallest id
    kept = kept[label]
    weakest = np.full(n, SEMANTIC)
    for side in pairs.T:
        np.minimum.at(weakest, side, rule)
    how = np.where(first[inverse] == first[inverse[kept]], 0, weakest[first[inverse]])
    gone = np.flatnonzero(kept != np.arange(n))
    return pd.DataFrame(
        {
            "id": names[gone],
            "kept_id": names[kept[gone]],
            "rule": [RULES[h] for h in how[gone]],
            "similarity": cosine(vectors, gone, kept[gone]).round(4),
        }
    )


def deduplicate(
    ids: Sequence[str],
    texts: Sequence[str],
    embedder: str = embeddings.HASHING,
    threshold: float = THRESHOLD,
) -> pd.DataFrame:
    """``clusters`` of texts in memory. Raises KitError on a repeated id or a text of blanks."""
    table = pa.table({"id": pa.array(ids, pa.string()), "text": pa.array(texts, pa.large_string())})
    _check(table, "the pool")
    workers, column = _workers(embedder), table["text"].combine_chunks()
    found = sketches(column, np.arange(len(ids)), embedder, workers)
    return clusters(ids, column, found, embedder, threshold, workers)


def matches(
    texts: Sequence[str],
    others: Sequence[str],
    embedder: str = embeddings.HASHING,
    threshold: float = THRESHOLD,
) -> dict[int, tuple[int, float]]:
    """Which of ``texts`` duplicate one of the few ``others``: row -> (row of the other, cosine).

    By the rules of ``clusters``, but each text is compared with every other one of its guard.
    """
    workers = _workers(embedder)
    theirs, mine = (
        sketches(pa.array(part, pa.large_string()), np.arange(len(part)), embedder, workers)
        for part in (others, texts)
    )
    both = Sketches.joined([theirs, mine])
    known, contents = _known(both.words, embedder), [read(text) for text in others]
    order = np.argsort(theirs.guard, kind="stable")
    first, last = (
        np.searchsorted(theirs.guard[order], mine.guard, side) for side in ("left", "right")
    )
    found: dict[int, tuple[int, float]] = {}
    for start in range(0, len(texts), CHUNK):
        low, count = first[start : start + CHUNK], (last - first)[start : start + CHUNK]
        row = np.repeat(np.arange(start, start + len(low)), count)
        place = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
        other = order[np.repeat(low, count) + place]
        if embedder == embeddings.HASHING:
            alike = spelled_alike(both, len(others) + row, other)
            row, other = row[alike], other[alike]
        close = cosine(both.vectors, len(others) + row, other)
        if embedder != embeddings.HASHING:
            row, other, close = (part[close >= threshold] for part in (row, other, close))
        for n in np.lexsort((other, -close)):
            r, o = int(row[n]), int(other[n])
            if r not in found and compare(contents[o], read(texts[r]), *known) != DIFFERENT:
                found[r] = (o, float(close[n]))
    return found


# ---------------------------------------------------------------- files


def read_pool(path: Path) -> pa.Table:
    """The pool, a Parquet file with an ``id`` and a ``text`` a row; every other column is kept.

    Raises KitError when it cannot be read, lacks a column, repeats an id or has an empty text.
    """
    import pyarrow.parquet as parquet

    if not path.exists():
        raise KitError(f"missing {shown(path)}: give the Parquet file of the pool")
    try:
        table = parquet.read_table(path)
    except (OSError, ValueError):
        raise KitError(f"{shown(path)} is not readable Parquet; write it again") from None
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing:
        raise KitError(f"{shown(path)}: no column {', '.join(missing)}; a pool has id and text")
    _check(table, shown(path))
    place = table.schema.get_field_index("text")  # 2 GiB of text are more than 32-bit offsets reach
    return table.set_column(place, "text", table["text"].cast(pa.large_string()))


def _check(table: pa.Table, where: str) -> None:
    import pyarrow.compute as compute

    if not table.num_rows:
        raise KitError(f"{where}: no rows; nothing to deduplicate")
    for name in COLUMNS:
        column = table[name]
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise KitError(f"{where}: column {name} is {column.type}; it must be text")
        blank = compute.equal(compute.utf8_length(compute.utf8_trim_whitespace(column)), 0)
        empty = compute.indices_nonzero(compute.fill_null(blank, True))
        if len(empty):
            row = empty[0].as_py()
            raise KitError(
                f"{where}, row {row + 1} ({table['id'][row]}): empty {name}; fill or remove the row"
            )
    counts = table["id"].value_counts()
    if len(counts) < table.num_rows:
        twice = compute.filter(counts.field("values"), compute.greater(counts.field("counts"), 1))
        first = min(twice.to_pylist())
        raise KitError(
            f"{where}: {len(twice)} ids stand more than once, first {first!r}; make ids unique"
        )


def _origin(pool: Path, embedder: str) -> dict:
    """What a shard must share with the others."""
    from importlib.metadata import version

    shape = (
        WORD_BANDS,
        WORD_ROWS,
        SIGN_BANDS,
        SIGN_BITS,
        SEED,
        embeddings.DIMENSIONS,
        version("datasketch"),
    )
    return {"pool_sha256": sha256(pool), "embedder": embedder, "settings": short_hash(*shape)}


def write_shard(pool: Path, out: Path, number: int, of: int, embedder: str) -> Path:
    """Sketch shard ``number`` (from 1) of ``of``; writes its arrays, and last its manifest."""
    table = read_pool(pool)
    rows = np.arange(number - 1, table.num_rows, of)
    if not len(rows):
        raise KitError(f"shard {number}/{of} of {table.num_rows} rows is empty; take fewer shards")
    found = sketches(table["text"].combine_chunks(), rows, embedder, _workers(embedder))
    data = out / "shards" / f"shard-{number:04}-of-{of:04}.npz"
    words = np.frombuffer("\n".join(found.words).encode(), np.uint8)
    with replacing(data) as temporary, temporary.open("wb") as file:
        arrays = {name: getattr(found, name) for name in ARRAYS}
        np.savez(file, **arrays, words=words, counts=np.array([*found.words.values()], np.int64))
    content = {"shard": number, "of": of, "rows": len(rows), "sha256": sha256(data)} | _origin(
        pool, embedder
    )
    return write_json(data.with_suffix(".json"), content)


def read_shards(pool: Path, out: Path, embedder: str) -> Sketches:
    """All shards under ``out``; KitError when one is missing, broken or of something else."""
    manifests = {path: read_json(path, "") for path in sorted((out / "shards").glob("*.json"))}
    if not manifests:
        raise KitError(
            f"no shard in {shown(out)}/shards: run the command with --shard 1/n to n/n first"
        )
    origin = _origin(pool, embedder)
    of = {m["of"] for m in manifests.values()}
    if len(of) > 1:
        raise KitError(
            f"{shown(out)}/shards has shards of {sorted(of)}: remove those of other runs"
        )
    for path, manifest in manifests.items():
        wrong = [name for name, value in origin.items() if manifest.get(name) != value]
        if wrong:
            raise KitError(
                f"{shown(path)} is of another {', '.join(wrong)}; remove it, run that shard again"
            )
        data = path.with_suffix(".npz")
        if not data.exists() or sha256(data) != manifest["sha256"]:
            raise KitError(
                f"{shown(data)} is missing or not what its manifest says; run that shard again"
            )
    missing = sorted(set(range(1, max(of) + 1)) - {m["shard"] for m in manifests.values()})
    if missing:
        raise KitError(
            f"missing shard {', '.join(f'{n}/{max(of)}' for n in missing)}: run it, then --merge"
        )
    parts = []
    for path in manifests:
        with np.load(path.with_suffix(".npz")) as found:
            words = found["words"].tobytes().decode().split("\n")
            counts = dict(zip(words, map(tuple, found["counts"].tolist()), strict=True))
            parts.append(Sketches(*(found[name] for name in ARRAYS), counts))
    return Sketches.joined(parts)


def write_result(pool: Path, out: Path, merge: bool, embedder: str, threshold: float) -> dict:
    """Write kept.parquet (the pool's rows by id), duplicates.parquet and, last, manifest.json.

    ``merge``: of what the shards under ``out`` have sketched; else of the pool, sketched here.
    """
    import pyarrow.compute as compute
    import pyarrow.parquet as parquet

    table, workers = read_pool(pool), _workers(embedder)
    texts = table["text"].combine_chunks()
    if merge:
        found = read_shards(pool, out, embedder)
    else:
        found = sketches(texts, np.arange(table.num_rows), embedder, workers)
    ids = table["id"].to_pylist()
    gone = clusters(ids, texts, found, embedder, threshold, workers)
    kept = table.filter(
        compute.invert(compute.is_in(table["id"], pa.array(gone.id, table["id"].type)))
    )
    files = {
        "kept.parquet": kept.sort_by("id"),
        "duplicates.parquet": pa.Table.from_pandas(gone, preserve_index=False),
    }
    for name, part in files.items():
        with replacing(out / name) as temporary:
            parquet.write_table(part, temporary)
    manifest = {
        "rows": table.num_rows,
        "kept": kept.num_rows,
        "duplicates": gone.rule.value_counts().sort_index().to_dict(),
        "threshold": threshold,
        "files": {name: sha256(out / name) for name in files},
    } | _origin(pool, embedder)
    write_json(out / "manifest.json", manifest)
    return manifest


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no shard: write i/n, from 1/n to n/n")
    return int(match[1]), int(match[2])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="promedical_utils.data.curation.deduplication", description=__doc__.split("\n")[0]
    )
    parser.add_argument("pool", type=Path, help="Parquet file with columns id and text")
    parser.add_argument("--out", type=Path, required=True, help="folder of the result")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--shard", type=_shard, metavar="i/n", help="only sketch this part")
    part.add_argument("--merge", action="store_true", help="compare what the shards have sketched")
    parser.add_argument("--embedder", default=embeddings.HASHING)
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, help="least cosine, for a model's embeddings"
    )
    given = parser.parse_args(arguments)
    try:
        if given.shard:
            path = write_shard(given.pool, given.out, *given.shard, given.embedder)
            print(f"sketched into {shown(path)}; --merge when all {given.shard[1]} are there")
            return 0
        result = write_result(given.pool, given.out, given.merge, given.embedder, given.threshold)
        print(f"{result['rows']} rows, {result['kept']} kept -> {shown(given.out)}")
    except (KitError, OSError) as error:  # a full disk, too: nothing is left half-written
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
