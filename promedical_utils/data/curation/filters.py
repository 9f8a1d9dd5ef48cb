"""From raw rows of many sources to instructions: filters, deduplication, bench leaks, screening.

What costs nothing comes first, what asks a language model last. Every row that leaves is listed
with its step and reason; one that a model gave no answer on is queued for a person, not dropped.

Whether a row is medical is left to the classifier: lay wording, drug names and slang are no closed
list, and a list of medical words would drop just what a rubric is wanted for.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import CountVectorizer

from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Instruction, Message, RawInstruction
from promedical_utils.core.workspace import KitError
from promedical_utils.data.curation import deduplication, languages
from promedical_utils.data.curation.lexical_guard import content, read

NOT_MEDICAL = "not_medical"
GRAM = 5  # words of an n-gram
GRAM_SHARE = 0.5  # of a bench item's n-grams, found in one row
WORD_OVERLAP = 0.8  # Jaccard of the content words
BLOCK = 1000  # rows compared with all items at once
Reasons = Mapping[str, str]  # by the id of a row
Screen = Callable[[list[str]], Sequence[int | None]]
Classify = Callable[[list[str]], Sequence[tuple[str, str] | str | None]]


class Curated:
    """What came out, and where the rest is: rows = instructions + dropped + queued.

    ``funnel`` (step, before, dropped, queued, after) has a row a step, in order; ``dropped`` and
    ``queued`` (id, step, reason) have a row for each instruction that left.
    """

    def __init__(self, rows: Sequence[RawInstruction]):
        self.instructions: list[Instruction] = []
        self.left = list(rows)
        self._funnel, self._dropped, self._queued = [], [], []

    def step(self, name: str, dropped: Reasons, queued: Reasons = MappingProxyType({})) -> None:
        """Take out what a step drops or queues, each with its reason by id."""
        after = [row for row in self.left if row.id not in dropped and row.id not in queued]
        self._funnel.append((name, len(self.left), len(dropped), len(queued), len(after)))
        for gone, reasons in ((self._dropped, dropped), (self._queued, queued)):
            gone.extend((row.id, name, reasons[row.id]) for row in self.left if row.id in reasons)
        self.left = after

    @property
    def funnel(self) -> pd.DataFrame:
        columns = ["step", "before", "dropped", "queued", "after"]
        return pd.DataFrame(self._funnel, columns=columns)

    @property
    def dropped(self) -> pd.DataFrame:
        return pd.DataFrame(self._dropped, columns=["id", "step", "reason"])

    @property
    def queued(self) -> pd.DataFrame:
        return pd.DataFrame(self._queued, columns=["id", "step", "reason"])


def curate(
    rows: Sequence[RawInstruction],
    bench: Mapping[str, str],
    screen: Screen,
    classify: Classify,
    profile: Profile,
) -> Curated:
    """Run every step on ``rows``, as the profile bounds it; ``bench`` are the bench's texts by id.

    ``screen`` gives each text a difficulty of 0 to 10, ``classify`` its (category, specialty) or
    ``NOT_MEDICAL``; None is no answer. Raises KitError on a repeated id, or when a role answers
    another number of texts than it was asked.
    """
    _unique(rows)
    made = Curated(rows)
    made.step("licence", wrong_licence(made.left, profile.licences))
    made.step("language", foreign(made.left, profile.languages))
    made.step("length", wrong_length(made.left, profile.words_least, profile.words_most))
    made.step("duplicates", duplicates(made.left, profile.embedder))
    made.step("bench", leaks(made.left, bench, profile.embedder))
    difficulties = _asked("screener", screen, made.left)
    outside = wrong_difficulty(difficulties, profile.difficulty_least, profile.difficulty_most)
    made.step("difficulty", outside, _unanswered("screener", difficulties))
    classes = _asked("classifier", classify, made.left)
    others = {i: "not medical" for i, named in classes.items() if named == NOT_MEDICAL}
    made.step("medical", others, _unanswered("classifier", classes))
    for row in made.left:
        category, specialty = classes[row.id]
        made.instructions.append(
            Instruction(
                id=row.id,
                category=category,
                specialty=specialty,
                source=row.source,
                difficulty=difficulties[row.id],
                messages=[Message(role="user", content=row.text)],
            )
        )
    return made


def wrong_difficulty(answers: Mapping[str, int | None], low: int, high: int) -> dict[str, str]:
    return {
        i: f"difficulty {answer}, not {low} to {high}"
        for i, answer in answers.items()
        if answer is not None and not low <= answer <= high
    }


def _unanswered(role: str, answers: Mapping) -> dict[str, str]:
    return {i: f"no answer of the {role}" for i, answer in answers.items() if answer is None}


def wrong_licence(rows: Sequence[RawInstruction], licences: Sequence[str]) -> dict[str, str]:
    """Rows whose licence is not on the list, with the reason; SPDX names know no case."""
    allowed = {name.casefold() for name in licences}
    return {r.id: f"licence {r.licence}" for r in rows if r.licence.casefold() not in allowed}


def foreign(rows: Sequence[RawInstruction], allowed: Sequence[str]) -> dict[str, str]:
    """Rows surely in another language; one that cannot be told is kept."""
    found = {r.id: languages.foreign(r.text, tuple(allowed)) for r in rows}
    return {i: f"language {code}" for i, code in found.items() if code}


def wrong_length(rows: Sequence[RawInstruction], fewest: int, most: int) -> dict[str, str]:
    words = {r.id: len(r.text.split()) for r in rows}
    return {
        i: f"{n} words, not {fewest} to {most}" for i, n in words.items() if not fewest <= n <= most
    }


def duplicates(rows: Sequence[RawInstruction], embedder: str) -> dict[str, str]:
    """Rows that repeat another one, which is kept (see ``deduplication``)."""
    if not rows:
        return {}
    gone = deduplication.deduplicate([r.id for r in rows], [r.text for r in rows], embedder)
    return {r.id: f"{r.rule} of {r.kept_id}" for r in gone.itertuples()}


def leaks(
    rows: Sequence[RawInstruction], bench: Mapping[str, str], embedder: str
) -> dict[str, str]:
    """Rows that hold an item of the bench, with the rule that found it, the item and how alike.

    n-gram overlap: of the item's word 5-grams, half stand in the row (so a quoted item is found).
    Word overlap: Jaccard of the content words, whatever their order. Embedding: a duplicate as
    ``deduplication`` has it. The first two know no guard: an item with another dose is a leak, too.
    """
    if not rows or not bench:
        return {}
    names, items = list(bench), list(bench.values())
    texts, found = [r.text for r in rows], {}
    for rule, hits in (
        ("n-gram overlap", _shared_grams(texts, items)),
        ("word overlap", _shared_words(texts, items)),
        ("embedding", deduplication.matches(texts, items, embedder)),
    ):
        for n, (item, value) in hits.items():
            found.setdefault(rows[n].id, f"{rule} {value:.2f} with bench item {names[item]}")
    return found


def _shared_grams(texts: Sequence[str], items: Sequence[str]) -> dict[int, tuple[int, float]]:
    """Row -> (item, share of the item's n-grams in the row), from ``GRAM_SHARE`` on."""
    grams_of = [_grams(item, GRAM) for item in items]
    holders: dict[tuple, list[int]] = {}
    for item, grams in enumerate(grams_of):
        for gram in grams:
            holders.setdefault(gram, []).append(item)
    sizes = {len(gram) for gram in holders}  # an item of fewer words is one n-gram
    hits = {}
    for row, text in enumerate(texts):
        grams = set().union(*(_grams(text, size) for size in sizes))
        shared = Counter(item for gram in grams for item in holders.get(gram, ()))
        shares = {item: n / len(grams_of[item]) for item, n in shared.items()}
        best = max(shares, key=lambda item: (shares[item], -item), default=None)
        if best is not None and shares[best] >= GRAM_SHARE:
            hits[row] = (best, shares[best])
    return hits


def _grams(text: str, size: int) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.casefold())
    return {tuple(words[n : n + size]) for n in range(max(1, len(words) - size + 1))}


def _shared_words(texts: Sequence[str], items: Sequence[str]) -> dict[int, tuple[int, float]]:
    """Row -> (item, Jaccard of their content words), where that is at least ``WORD_OVERLAP``."""
    words_of = CountVectorizer(analyzer=_words, binary=True)
    of_items = words_of.fit_transform(items)
    item_sizes = of_items.sum(axis=1).A1
    hits = {}
    for start in range(0, len(texts), BLOCK):
        block = texts[start : start + BLOCK]
        sizes = np.array([len(_words(text)) for text in block])
        shared = (words_of.transform(block) @ of_items.T).toarray()
        jaccard = shared / (sizes[:, None] + item_sizes - shared)
        for row, item in enumerate(jaccard.argmax(axis=1)):
            if jaccard[row, item] >= WORD_OVERLAP:
                hits[start + row] = (int(item), float(jaccard[row, item]))
    return hits


def _words(text: str) -> set[str]:
    return {word for sentence in content(read(text)) for word in sentence}


def _asked(role: str, ask: Callable, rows: Sequence[RawInstruction]) -> dict:
    """Answers by id; KitError when their number is not that of the texts."""
    answers = list(ask([row.text for row in rows])) if rows else []
    if len(answers) != len(rows):
        raise KitError(
            f"the {role} answered {len(answers)} of {len(rows)} texts: one answer or None each"
        )
    return {row.id: answer for row, answer in zip(rows, answers)}


def _unique(rows: Sequence[RawInstruction]) -> None:
    seen = set()
    for row in rows:
        if row.id in seen:
            raise KitError(f"two rows of the pool have the id {row.id!r}: make ids unique")
        seen.add(row.id)
