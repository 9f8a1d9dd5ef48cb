"""One split by question over all sets, and what stands on both sides of it.

The split of a question is a hash of the seed and of its wording: it does not depend on which sets
are at hand. Fixed is the test side: questions of MEDIQA-2019 and of K-QA's three physicians, and
whatever asks one of them again, word for word or nearly so. LiveQA 2017's test questions are known
by their ids, as message, summary and paraphrase.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

from promedical_utils.core.records import Split
from promedical_utils.core.words import TOKEN
from promedical_utils.core.workspace import short_hash
from promedical_utils.data.sources.schemas import at_hand, read, wording

SHARES: dict[Split, float] = {"train": 0.5, "calibration": 0.65, "checkpoint": 0.75, "bench": 1}
TRAINING_SIDE = ("train", "calibration", "checkpoint")
RUN, RUN_SHARE = 8, 0.5  # words in a row; of the shorter text's, those that the other has
WORD_SHARE = 0.7  # Jaccard of the words that are no stop words


def alike(texts: Sequence[str], others: Sequence[str], questions: bool = False) -> dict[int, int]:
    """Row of ``texts`` -> row of ``others`` that it repeats, word for word or nearly: half of the
    shorter one's runs of eight words stand in the other, so that a passage is found in its page;
    ``questions`` also where they share seven tenths of the words of both."""
    first = {wording(other): n for n, other in reversed(list(enumerate(others)))}
    found = {n: first[wording(t)] for n, t in enumerate(texts) if wording(t) in first}
    rules = [(runs, RUN_SHARE, min), (_content, WORD_SHARE, None)]
    for parts, least, out_of in rules if questions else rules[:1]:
        of_others = [parts(other) for other in others]
        for row, other, _ in overlaps(map(parts, texts), of_others, least, out_of):
            found.setdefault(row, other)
    return found


def overlaps(
    texts: Iterable[set], others: Sequence[set], least: float, out_of: Callable | None = None
) -> Iterator[tuple[int, int, float]]:
    """(row of ``texts``, row of ``others``, share of parts in common), from ``least`` on, in order.

    ``out_of`` gives what the share is of by the number of parts of each; without it, of both.
    """
    having = defaultdict(list)  # part -> the others that have it
    for n, parts in enumerate(others):
        for part in parts:
            having[part].append(n)
    for row, parts in enumerate(texts):
        shared = Counter(n for part in parts for n in having.get(part, ()))
        for n, common in sorted(shared.items()):
            sizes = len(parts), len(others[n])
            share = common / (out_of(*sizes) if out_of else sum(sizes) - common)
            if share >= least:
                yield row, n, share


def runs(text: str) -> set[int]:
    """Every ``RUN`` words in a row of a text, case and punctuation aside."""
    words = TOKEN.findall(wording(text))
    return {hash(tuple(words[n : n + RUN])) for n in range(len(words) - RUN + 1)}


def _content(text: str) -> set[str]:
    return set(TOKEN.findall(wording(text))) - ENGLISH_STOP_WORDS


class QuestionSplit:
    """Where a question belongs. ``fixed``: wording of the test side -> a name of what it asks;
    LiveQA's other wordings are known where its file is at hand."""

    def __init__(self, seed: int):
        self.seed = seed
        fixed = {row.question: "" for row in read("kqa_labels")}
        for row in read("mediqa"):  # whose ids in this split are LiveQA's own
            fixed[row.question] = f"liveqa-{row.qid}" if row.split == "train_liveqa" else ""
        for row in read("liveqa_questions") if at_hand("liveqa_questions") else ():
            texts = filter(None, (row.message, row.summary, row.paraphrase))
            fixed |= dict.fromkeys(texts, f"liveqa-{row.qid}")
        self.fixed = {text: name or short_hash(wording(text)) for text, name in fixed.items()}

    def place(self, questions: Sequence[Sequence[str]]) -> list[tuple[str, Split, bool]]:
        """Of each question, given in all its wordings: its name, its split, and if it is fixed."""
        asked = [(n, text) for n, wordings in enumerate(questions) for text in wordings]
        twins = alike([text for _, text in asked], list(self.fixed), questions=True)
        names, twin, placed = list(self.fixed.values()), {}, []
        for row, other in sorted(twins.items()):
            twin.setdefault(asked[row][0], names[other])
        for n, wordings in enumerate(questions):
            name = twin.get(n) or short_hash(wording(wordings[0]))
            draw = int(short_hash(self.seed, name), 16) / 16**12
            split = next(split for split, below in SHARES.items() if draw < below)
            placed.append((name, "bench" if n in twin else split, n in twin))
        return placed
