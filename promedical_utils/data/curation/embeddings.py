"""Texts as vectors: few-shot examples are chosen by them, semantic duplicates found by them.

``hashing`` needs no model and no network: signed counts of character n-grams, hashed. It knows
spelling and no meaning. Any other embedder is a sentence-transformers model, by hub id or folder.
"""

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np

from promedical_utils.core.workspace import KitError

HASHING = "hashing"
DIMENSIONS = 256
_WORD = re.compile(r"\w+")


def embed(texts: Sequence[str], embedder: str = HASHING) -> np.ndarray:
    """Unit vectors, float32 (N, D), in the order of ``texts``.

    Raises KitError when the model of another embedder than ``hashing`` cannot be loaded.
    """
    if embedder == HASHING:
        return _hashed(texts)
    vectors = _model(embedder).encode(
        list(texts), normalize_embeddings=True, convert_to_numpy=True, show_progress_bar=False
    )
    return np.asarray(vectors, dtype=np.float32).reshape(len(texts), -1)


def nearest(queries: np.ndarray, vectors: np.ndarray, k: int) -> np.ndarray:
    """Rows of the ``k`` most similar of ``vectors`` (N, D) for each of ``queries`` (Q, D): (Q, k).

    Exact; the most similar comes first, of equals the one that stands first.
    """
    order = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")
    return order[:, :k]


def _hashed(texts: Sequence[str]) -> np.ndarray:
    """Count sketch of the n-grams of a text's words (Weinberger et al. 2009), a word hashed once.

    Counts are whole numbers, so that sums are exact and no vector depends on the texts beside it.
    """
    from scipy.sparse import csr_matrix
    from sklearn.feature_extraction.text import HashingVectorizer

    counts = [Counter(_WORD.findall(text.casefold())) for text in texts]
    words = {word: n for n, word in enumerate(sorted(set().union(*counts)))}
    if not words:
        return np.zeros((len(texts), DIMENSIONS), np.float32)
    grams = HashingVectorizer(
        analyzer="char_wb", ngram_range=(2, 4), n_features=DIMENSIONS, norm=None, dtype=np.float32
    ).transform(words)
    starts = np.cumsum([0, *map(len, counts)])
    table = csr_matrix(
        (
            np.fromiter((n for row in counts for n in row.values()), np.float32),
            np.fromiter((words[w] for row in counts for w in row), np.int32),
            starts,
        ),
        shape=(len(texts), len(words)),
    )
    sums = table @ grams.toarray()
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    return sums / np.where(lengths == 0, 1, lengths)


@cache
def _model(name: str):
    try:
        from sentence_transformers import SentenceTransformer

        return SentenceTransformer(name)
    except Exception as error:  # offline, no such id, broken folder: the hub client's are many
        reason = str(error).strip().split("\n")[0][:200]
        raise KitError(
            f"embedder {name!r} cannot be loaded ({reason}); give a sentence-transformers model id "
            f"or folder that is there, or {HASHING!r}, which needs none"
        ) from None
