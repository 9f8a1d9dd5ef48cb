"""Texts as vectors: few-shot examples are chosen by them, semantic duplicates found by them.

``hashing`` needs no model and no network: signed counts of character n-grams, hashed. It knows
spelling and no meaning. Any other embedder is a sentence-transformers model, by hub id or folder.
"""

import re
from collections.abc import Sequence
from functools import cache

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer

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


def _hashed(texts: Sequence[str]) -> np.ndarray:
    """Count sketch of the n-grams of a text's words (Weinberger et al. 2009).

    Counts are whole numbers, so that sums are exact and no vector depends on the texts beside it.
    """
    if not texts:
        return np.zeros((0, DIMENSIONS), np.float32)
    words = [" ".join(_WORD.findall(text.casefold())) for text in texts]
    grams = HashingVectorizer(
        analyzer="char_wb",
        ngram_range=(2, 4),
        n_features=DIMENSIONS,
        norm=None,
        lowercase=False,
        dtype=np.float32,
    )
    counts = grams.transform(words).toarray()
    lengths = np.linalg.norm(counts, axis=1, keepdims=True)
    return counts / np.where(lengths == 0, 1, lengths)


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
