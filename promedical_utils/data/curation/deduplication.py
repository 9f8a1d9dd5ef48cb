"""Near-duplicate deduplication of a pool of instructions.

Two texts are compared word by word (``lexical_guard``) where they share their numbers and negations
and MinHash of their letters says that they may be alike (Broder 1997; the index is datasketch's):
every content word must be the same but for typing errors. What is compared does not depend on the
order of the rows; an index that is built row by row (HNSW, as in semhash) could not promise that.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd
from datasketch import MinHash, MinHashLSH
from scipy.cluster.hierarchy import DisjointSet

from promedical_utils.core.workspace import KitError
from promedical_utils.data.curation import embeddings, lexical_guard
from promedical_utils.data.sources.schemas import grouped

BANDS, BAND_HASHES = 24, 5  # of MinHash: texts that agree in one band are compared
GRAM = 3  # letters hashed together: a typing error changes few of them
SEED = 1


class _Pool:
    """Of texts that are compared, ``words``: the content words of each in order; ``guards``: the
    numbers and negations that duplicates share; ``word_rows``: in how many texts a word stands."""

    def __init__(self, texts: Sequence[str]):
        self.texts, self.words, self.guards, self.word_rows = texts, [], [], Counter()
        for text in texts:
            sentences = lexical_guard.read(text)
            words = [w for sentence in lexical_guard.content(sentences) for w in sentence]
            self.words.append(tuple(words))
            self.guards.append(tuple(sorted(w for w in words if w == "not" or w[0].isdigit())))
            self.word_rows.update(set().union(*sentences))

    def same(self, a: int, b: int) -> bool:
        """Whether two texts say the same; more than a fifth of the words, or three, are no typing
        errors."""
        counts_a, counts_b = Counter(self.words[a]), Counter(self.words[b])
        apart = ((counts_a - counts_b) + (counts_b - counts_a)).total()
        if apart > 2 * max(3, counts_a.total() // 5) + 1:
            return False
        texts = lexical_guard.read(self.texts[a]), lexical_guard.read(self.texts[b])
        return lexical_guard.same(*texts, self.word_rows)

    def pairs(self, rows: Iterable[int]) -> Iterator[tuple[int, int]]:
        """(row, other) with other < row that share the guard and may be alike."""
        for alike in grouped(rows, self.guards.__getitem__).values():
            index = MinHashLSH(num_perm=BANDS * BAND_HASHES, params=(BANDS, BAND_HASHES))
            grams = ([gram.encode() for gram in _grams(self.words[row])] for row in alike)
            sketches = MinHash.generator(grams, num_perm=BANDS * BAND_HASHES, seed=SEED)
            for row, sketch in zip(alike, sketches, strict=True):
                yield from ((row, other) for other in index.query(sketch))
                index.insert(row, sketch)


def deduplicate(ids: Sequence[str], texts: Sequence[str]) -> pd.DataFrame:
    """The duplicates: a row (id, kept_id, rule) for each text to be left out, by id.

    Duplicates of duplicates are one cluster; of each, the smallest id is kept. ``rule``: "same
    words" or "near-duplicate". Raises KitError on a repeated id or a text of blanks.
    """
    check_ids(ids)
    for row, (id_, text) in enumerate(zip(ids, texts, strict=True), 1):
        if not text.strip():
            raise KitError(f"the pool, row {row} ({id_}): empty text; fill or remove the row")
    by_id = sorted(zip(ids, texts, strict=True))  # from here on rows are counted by id
    pool, first_row = _Pool([text for _, text in by_id]), {}
    same = [first_row.setdefault(words, row) for row, words in enumerate(pool.words)]
    clusters = DisjointSet(range(len(by_id)))
    for row, first in enumerate(same):
        clusters.merge(row, first)
    for pair in pool.pairs(first_row.values()):
        if pool.same(*pair):
            clusters.merge(*pair)
    rows = []
    for cluster in clusters.subsets():
        kept, *gone = sorted(cluster)
        for row in gone:
            rule = "same words" if same[row] == same[kept] else "near-duplicate"
            rows.append((by_id[row][0], by_id[kept][0], rule))
    return pd.DataFrame(sorted(rows), columns=["id", "kept_id", "rule"])


def matches(texts: Sequence[str], others: Sequence[str]) -> Iterator[tuple[int, int, float]]:
    """(row of ``texts``, row of the few ``others`` that it duplicates, cosine), in order.

    By the rules of ``deduplicate``, each text with every other one of its guard, whatever a sketch
    makes of it.
    """
    pool, n = _Pool([*others, *texts]), len(others)
    others_of = grouped(range(n), pool.guards.__getitem__)
    vectors = embeddings.embed(pool.texts)
    for row in range(n, len(pool.texts)):
        for other in others_of.get(pool.guards[row], ()):
            if pool.same(other, row):
                yield row - n, other, min(1.0, float(vectors[row] @ vectors[other]))


def check_ids(ids: Sequence[str]) -> None:
    """KitError on a repeated id."""
    if repeated := sorted(id_ for id_, n in Counter(ids).items() if n > 1):
        which = f"{len(repeated)} ids stand more than once, first {repeated[0]!r}"
        raise KitError(f"the pool: {which}; make ids unique")


def _grams(words: Iterable[str]) -> set[str]:
    """The letters of each word by ``GRAM``, with its beginning and its end."""
    bounded = (f" {word} " for word in words)
    return {word[n : n + GRAM] for word in bounded for n in range(len(word) - GRAM + 1)}
