"""Controls that are shown the criterion and have learned next to nothing: how far do they come?

A reward model whose gain is to come from reading the criterion must be above these, not only above
scorers that are not shown it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.feature_extraction import FeatureHasher
from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from promedical_utils.core.records import Candidate, Criterion
from promedical_utils.core.words import LETTER
from promedical_utils.core.workspace import KitError, short_hash
from promedical_utils.evaluation import scorers
from promedical_utils.evaluation.scorers import cells
from promedical_utils.rubric import preferences
from promedical_utils.rubric.preferences import Group

REACH = 3  # words on either side of a criterion's term; kit's decision
PENALTIES = (0.01, 0.1, 1.0)  # C of the logistic regression, of which calibration chooses

Features = Callable[[Candidate, Criterion], Mapping[str, float]]  # by name


def pointwise(name: str, groups: Sequence[Group], scores, likely=None) -> pd.DataFrame:
    """``scorers.PREDICTED`` of a score a cell; P(met) is ``likely`` or else the score, and a cell
    is met from a half on."""
    likely = np.asarray(scores if likely is None else likely, float)
    return scorers.predictions(name, scorers.points(groups, scores, likely, likely >= 0.5))


def chance(groups: Sequence[Group], seed: int) -> pd.DataFrame:
    """At random, from the texts alone: P(met) is uniform."""
    likely = []
    for group, answer, criterion in cells(groups):
        question = "\n".join(m.content for m in group.instruction.messages)
        digest = short_hash(seed, question, answer.text, criterion.text)
        likely.append(int(digest, 16) / 16**12)
    return pointwise("random", groups, likely)


def always(name: str, met: bool, groups: Sequence[Group]) -> pd.DataFrame:
    """Every criterion is met, or none is, and no answer is better than another: what the base rate
    gives, or vetoing everything."""
    return pointwise(name, groups, float(met))


def overlap(groups: Sequence[Group]) -> pd.DataFrame:
    """The share of the criterion's words, but for stop words, that the answer has."""
    shares = []
    for _, answer, criterion in cells(groups):
        terms = _terms(criterion.text)
        shares.append(len(terms & set(_words(answer.text))) / max(1, len(terms)))
    return pointwise("overlap", groups, shares)


def embedded(base: Path | str, *parts: Sequence[Group]) -> dict[str, np.ndarray]:
    """Text -> its vector of length 1, the mean of the base's states over its own tokens; of every
    answer and criterion of the ``parts``."""
    from sentence_transformers import SentenceTransformer  # slow to load

    pairs = ((a.text, c.text) for _, a, c in cells(chain(*parts)))
    texts = list(dict.fromkeys(chain(*pairs)))
    model = SentenceTransformer(str(base))  # a folder without a pooling of its own: the mean
    vectors = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    return dict(zip(texts, vectors, strict=True))


def similarity(groups: Sequence[Group], vectors: Mapping[str, np.ndarray]) -> pd.DataFrame:
    """Cosine of answer and criterion, by their vectors."""
    cosines = [float(vectors[a.text] @ vectors[c.text]) for _, a, c in cells(groups)]
    return pointwise("similarity", groups, cosines)


def near_words(answer: Candidate, criterion: Criterion) -> dict[str, float]:
    """The words round the criterion's terms in the answer: each word within ``REACH`` of a term,
    paired with that term and crossed with the dimension; the share of terms found."""
    terms, words, found = _terms(criterion.text), _words(answer.text), {}
    for place, word in enumerate(words):
        if word in terms:
            for other in words[max(0, place - REACH) : place + REACH + 1]:
                found[f"{criterion.dimension} {other}"] = found[f"{word}|{other}"] = 1.0
    share = len(terms & set(words)) / max(1, len(terms))
    return found | {f"share {criterion.dimension}": share, f"all {criterion.dimension}": 1.0}


def criterion_only(_: Candidate, criterion: Criterion) -> dict[str, float]:
    """The criterion's words and length: how often is such a one met, whatever the answer says?"""
    words = _words(criterion.text)
    return dict.fromkeys([criterion.dimension, *words], 1.0) | {"length": len(words) / 20}


def embeddings(vectors: Mapping[str, np.ndarray]) -> Features:
    """The frozen vectors of answer and criterion: their product and their distance, entry by entry,
    and the criterion's own."""

    def features(answer: Candidate, criterion: Criterion) -> dict[str, float]:
        a, c = vectors[answer.text], vectors[criterion.text]
        joined = np.concatenate([a * c, np.abs(a - c), c]) * len(a) ** 0.5
        return {str(n): float(value) for n, value in enumerate(joined)}

    return features


def learned(name: str, of: Features, train, calibration, bench, seed: int = 0) -> pd.DataFrame:
    """Logistic regression on hashed features ``of`` answer and criterion, learned from the verdicts
    of the groups ``train``; of ``PENALTIES`` the one with the least log loss on ``calibration``.
    KitError where all verdicts are alike."""

    def features(groups: Sequence[Group]):
        return FeatureHasher(2**18).transform(of(a, c) for _, a, c in cells(groups))

    def labelled(groups: Sequence[Group]):
        met = np.array([preferences.met(g, a.id, c) for g, a, c in cells(groups)], float)
        known = ~np.isnan(met)
        return features(groups)[known], met[known]

    x, y = labelled(train)
    if len(set(y)) < 2:
        raise KitError(f"{name}: training verdicts are all alike; run 02_preference_pairs again")
    held, labels = labelled(calibration)
    settings = {"max_iter": 5000, "random_state": seed}
    fitted = [LogisticRegression(C=penalty, **settings).fit(x, y) for penalty in PENALTIES]
    best = min(fitted, key=lambda m: log_loss(labels, m.predict_proba(held)[:, 1], labels=[0, 1]))
    x = features(bench)
    return pointwise(name, bench, best.decision_function(x), best.predict_proba(x)[:, 1])


def _words(text: str) -> list[str]:
    return re.findall(rf"[a-z0-9]+|{LETTER}", text.lower())


def _terms(text: str) -> set[str]:
    return set(_words(text)) - ENGLISH_STOP_WORDS
