"""Near-duplicate and semantic deduplication of a pool of instructions.

Each text is read into content words. Two texts that share their numbers and negations are compared
word by word (``lexical_guard``) where they may be alike. With ``hashing``, which knows no meaning,
that is where MinHash of their letters says so (Broder 1997; the index is datasketch's), and then
every content word must be the same but for typing errors. With a model it is where their embeddings
reach ``THRESHOLD``, and then words may differ that are no facts.

What is compared does not depend on the order of the rows; an index that is built row by row (HNSW,
as in semhash) could not promise that.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property

import numpy as np
import pandas as pd
from datasketch import MinHash, MinHashLSH
from scipy.cluster.hierarchy import DisjointSet

from promedical_utils.core.workspace import KitError
from promedical_utils.data.curation import embeddings, lexical_guard
from promedical_utils.data.curation.lexical_guard import DIFFERENT, NEAR, SEMANTIC

THRESHOLD = 0.9  # least cosine of two duplicates, for a model's embeddings
BANDS, BAND_HASHES = 24, 5  # of MinHash: texts that agree in one band are compared
GRAM = 3  # letters hashed together: a typing error changes few of them
SEED = 1
BLOCK = 1000  # rows whose cosines with all others are held at once
SAME_WORDS = "same words"
RULES = {NEAR: "near-duplicate", SEMANTIC: "semantic"}


class _Pool:
    """N texts as they are compared, with what is known of the words of all of them.

    ``words`` are a text's content words in order, ``guards`` the numbers and negations that
    duplicates share. ``word_rows`` (in how many texts a word stands) and ``names`` are what the
    guard is told of the pool; ``names`` is None with ``hashing``.
    """

    def __init__(self, texts: Sequence[str], embedder: str):
        self.texts, self.embedder = texts, embedder
        self.words, self.names, self.word_rows = [], None, Counter()
        for text in texts:
            sentences = lexical_guard.read(text)
            content = lexical_guard.content(sentences)
            self.words.append(tuple(word for sentence in content for word in sentence))
            self.word_rows.update(set().union(*sentences))
        if embedder != embeddings.HASHING:  # names mostly stand with a capital within a sentence
            capitals = Counter(word for text in texts for word in lexical_guard.capitals(text))
            self.names = frozenset(w for w, n in self.word_rows.items() if 2 * capitals[w] >= n)
        self.guards = [tuple(lexical_guard.numbers(words)) for words in self.words]

    @cached_property
    def vectors(self) -> np.ndarray:
        """Unit embeddings (N, D)."""
        return embeddings.embed(self.texts, self.embedder)

    def by_guard(self, rows: Iterable[int]) -> dict[tuple[str, ...], list[int]]:
        grouped = defaultdict(list)
        for row in rows:
            grouped[self.guards[row]].append(row)
        return grouped

    def compare(self, a: int, b: int) -> int:
        """``NEAR``, ``SEMANTIC`` or ``DIFFERENT``."""
        if self.names is None and not self.spelled_alike(a, b):
            return DIFFERENT
        texts = lexical_guard.read(self.texts[a]), lexical_guard.read(self.texts[b])
        return lexical_guard.compare(*texts, self.word_rows, self.names)

    def spelled_alike(self, a: int, b: int) -> bool:
        """Whether a fifth of the words differ at most, or three: more are no typing errors."""
        counts_a, counts_b = Counter(self.words[a]), Counter(self.words[b])
        apart = ((counts_a - counts_b) + (counts_b - counts_a)).total()
        return apart <= 2 * max(3, counts_a.total() // 5) + 1

    def pairs(self, rows: Iterable[int]) -> Iterator[tuple[int, int]]:
        """(row, other) with other < row that share the guard and may be alike."""
        near = self._near_by_words if self.names is None else self._near_by_vectors
        for alike in self.by_guard(rows).values():
            if len(alike) > 1:
                yield from (pair for pair in near(alike) if pair[1] < pair[0])

    def _near_by_words(self, rows: list[int]) -> Iterator[tuple[int, int]]:
        index = MinHashLSH(num_perm=BANDS * BAND_HASHES, params=(BANDS, BAND_HASHES))
        grams = ([gram.encode() for gram in _grams(self.words[row])] for row in rows)
        sketches = list(MinHash.generator(grams, num_perm=BANDS * BAND_HASHES, seed=SEED))
        for row, sketch in zip(rows, sketches, strict=True):
            index.insert(row, sketch)
        for row, sketch in zip(rows, sketches, strict=True):
            yield from ((row, other) for other in index.query(sketch))

    def _near_by_vectors(self, rows: list[int]) -> Iterator[tuple[int, int]]:
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            near = self.vectors[block] @ self.vectors[rows].T >= THRESHOLD
            yield from ((block[n], rows[m]) for n, m in np.argwhere(near))


def deduplicate(
    ids: Sequence[str], texts: Sequence[str], embedder: str = embeddings.HASHING
) -> pd.DataFrame:
    """The duplicates: a row (id, kept_id, rule) for each text to be left out, by id.

    Duplicates of duplicates are one cluster; of each, the smallest id is kept. Raises KitError on
    a repeated id or a text of blanks.
    """
    check_ids(ids)
    for row, (id_, text) in enumerate(zip(ids, texts, strict=True), 1):
        if not text.strip():
            raise KitError(f"the pool, row {row} ({id_}): empty text; fill or remove the row")
    order = sorted(range(len(ids)), key=ids.__getitem__)  # from here on rows are counted by id
    pool = _Pool([texts[n] for n in order], embedder)
    first_row: dict[tuple[str, ...], int] = {}
    same = [first_row.setdefault(words, row) for row, words in enumerate(pool.words)]
    clusters = DisjointSet(range(len(order)))
    for row, first in enumerate(same):
        clusters.merge(row, first)
    weakest: dict[int, int] = {}  # the least that was asked of a text's duplicates
    for pair in pool.pairs(first_row.values()):
        rule = pool.compare(*pair)
        if rule != DIFFERENT:
            clusters.merge(*pair)
            weakest |= {row: min(rule, weakest.get(row, rule)) for row in pair}
    rows = []
    for cluster in clusters.subsets():
        kept, *gone = sorted(cluster)
        for row in gone:
            rule = SAME_WORDS if same[row] == same[kept] else RULES[weakest[same[row]]]
            rows.append((ids[order[row]], ids[order[kept]], rule))
    return pd.DataFrame(sorted(rows), columns=["id", "kept_id", "rule"])


def matches(
    texts: Sequence[str], others: Sequence[str], embedder: str
) -> dict[int, tuple[int, float]]:
    """Which of ``texts`` duplicate one of the few ``others``: row -> (row of the other, cosine).

    By the rules of ``deduplicate``, each text with every other one of its guard, whatever a sketch
    makes of it; of several others the most similar one, of equals the first.
    """
    pool, n = _Pool([*others, *texts], embedder), len(others)
    others_of, similar = pool.by_guard(range(n)), []
    for row in range(n, len(pool.texts)):
        for other in others_of.get(pool.guards[row], ()):
            if pool.names is None and not pool.spelled_alike(row, other):
                continue
            cosine = float(pool.vectors[row] @ pool.vectors[other])
            if pool.names is None or cosine >= THRESHOLD:
                similar.append((-cosine, other, row))
    found: dict[int, tuple[int, float]] = {}
    for distance, other, row in sorted(similar):
        if row - n not in found and pool.compare(other, row) != DIFFERENT:
            found[row - n] = (other, min(1.0, -distance))
    return found


def check_ids(ids: Sequence[str]) -> None:
    """KitError on a repeated id."""
    repeated = sorted(id_ for id_, n in Counter(ids).items() if n > 1)
    if repeated:
        raise KitError(
            f"the pool: {len(repeated)} ids stand more than once, first {repeated[0]!r}; make ids "
            "unique"
        )


def _grams(words: Iterable[str]) -> set[str]:
    """The letters of each word by ``GRAM``, with its beginning and its end."""
    bounded = (f" {word} " for word in words)
    return {word[n : n + GRAM] for word in bounded for n in range(len(word) - GRAM + 1)}
