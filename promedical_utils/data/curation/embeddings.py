"""Texts as vectors, by their spelling: few-shot examples and leaks of the bench are found so."""

import re
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import HashingVectorizer

DIMENSIONS = 256


def embed(texts: Sequence[str]) -> np.ndarray:
    """Unit vectors, float32 (N, D), in the order of ``texts``; they know no meaning.

    Count sketch of the n-grams of a text's words (Weinberger et al. 2009). Counts are whole
    numbers, so that sums are exact and no vector depends on the texts beside it.
    """
    if not texts:
        return np.zeros((0, DIMENSIONS), np.float32)
    words = [" ".join(re.findall(r"\w+", text.casefold())) for text in texts]
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
