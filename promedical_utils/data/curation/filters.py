"""From raw rows of many sources to instructions: filters, deduplication, bench leaks, screening.

What costs nothing comes first, what asks a language model last. Every row that leaves is listed
with its step and reason; one that a model gave no answer on is queued for a person, not dropped.

Whether a row is medical is left to the classifier: lay wording, drug names and slang are no closed
list, and a list of medical words would drop just what a rubric is wanted for.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import pandas as pd

from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Instruction, RawInstruction
from promedical_utils.core.words import TOKEN, words
from promedical_utils.core.workspace import KitError
from promedical_utils.data.curation import deduplication, languages
from promedical_utils.data.curation.lexical_guard import content, read
from promedical_utils.data.sources.question_split import overlaps
from promedical_utils.data.sources.schemas import question

NOT_MEDICAL = "not_medical"
NO_ANSWER = "no answer of the"
GRAM = 5  # words of an n-gram
GRAM_SHARE = 0.5  # of a bench item's n-grams, found in one row
WORD_OVERLAP = 0.8  # Jaccard of the content words


class Curated:
    """What came out, and where the rest is: each row is an instruction or was left out.

    ``funnel`` (step, before, dropped, queued, after) has a row a step, in order; ``left_out`` (id,
    step, reason, queued) a row for each instruction that left, first those that were dropped.
    """

    def __init__(self, rows: Sequence[RawInstruction]):
        self.instructions: list[Instruction] = []
        self.left = list(rows)
        self._funnel, self._left_out = [], []

    def step(self, name: str, reasons: Mapping[str, str]) -> None:
        """Take out the rows that have a reason, by id; those of ``NO_ANSWER`` are queued."""
        gone = [(row.id, name, reasons[row.id]) for row in self.left if reasons.get(row.id)]
        queued = sum(reason.startswith(NO_ANSWER) for *_, reason in gone)
        before = len(self.left)
        self.left = [row for row in self.left if not reasons.get(row.id)]
        self._funnel.append((name, before, len(gone) - queued, queued, len(self.left)))
        self._left_out += gone

    @property
    def funnel(self) -> pd.DataFrame:
        columns = ["step", "before", "dropped", "queued", "after"]
        return pd.DataFrame(self._funnel, columns=columns)

    @property
    def left_out(self) -> pd.DataFrame:
        frame = pd.DataFrame(self._left_out, columns=["id", "step", "reason"])
        frame["queued"] = frame.reason.str.startswith(NO_ANSWER).astype(bool)
        return frame.sort_values("queued", kind="stable", ignore_index=True)


def curate(
    rows: list[RawInstruction],
    bench: Mapping,
    screen: Callable,
    classify: Callable,
    profile: Profile,
) -> Curated:
    """Run every step on ``rows``, as the profile bounds it; ``bench`` are the bench's texts by id.

    ``screen`` gives each of a list of texts a difficulty of 0 to 10, ``classify`` its (category,
    specialty) or ``NOT_MEDICAL``; None is no answer. KitError on a repeated id, or when a role
    answers another number of texts than it was asked.
    """
    deduplication.check_ids([row.id for row in rows])
    made = Curated(rows)
    for name, reason_of in CHEAP.items():
        made.step(name, {row.id: reason_of(row, profile) for row in made.left})
    ids, texts = [row.id for row in made.left], [row.text for row in made.left]
    repeated = deduplication.deduplicate(ids, texts)
    made.step("duplicates", {r.id: f"{r.rule} of {r.kept_id}" for r in repeated.itertuples()})
    made.step("bench", leaks(made.left, bench))
    difficulties, reasons = _asked("screener", screen, made.left)
    low, high = profile.difficulty_least, profile.difficulty_most
    for i, difficulty in difficulties.items():
        if difficulty is not None and not low <= difficulty <= high:
            reasons[i] = f"difficulty {difficulty}, not {low} to {high}"
    made.step("difficulty", reasons)
    classes, reasons = _asked("classifier", classify, made.left)
    others = {i: "not medical" for i, named in classes.items() if named == NOT_MEDICAL}
    made.step("medical", reasons | others)
    for row in made.left:
        of_roles = (*classes[row.id], difficulties[row.id])
        made.instructions.append(question(row.id, row.source, row.text, *of_roles))
    return made


def _asked(role: str, ask: Callable, rows: Sequence[RawInstruction]) -> tuple[dict, dict]:
    """Answers by id, and which are none; KitError when their number is not that of the texts."""
    answers = list(ask([row.text for row in rows])) if rows else []
    if len(answers) != len(rows):
        asked = f"{len(answers)} of {len(rows)} texts"
        raise KitError(f"the {role} answered {asked}: one answer or None each")
    by_id = {row.id: answer for row, answer in zip(rows, answers, strict=True)}
    return by_id, {i: f"{NO_ANSWER} {role}" for i, answer in by_id.items() if answer is None}


def _licence(row: RawInstruction, profile: Profile) -> str:
    allowed = row.licence.casefold() in map(str.casefold, profile.licences)
    return "" if allowed else f"licence {row.licence}"


def _language(row: RawInstruction, profile: Profile) -> str:
    """Surely another one; a row that cannot be told is kept."""
    code = languages.foreign(row.text, tuple(profile.languages))
    return code and f"language {code}"


def _length(row: RawInstruction, profile: Profile) -> str:
    n, fewest, most = len(words(row.text)), profile.words_least, profile.words_most
    return "" if fewest <= n <= most else f"{n} words, not {fewest} to {most}"


CHEAP = {"licence": _licence, "language": _language, "length": _length}  # why a row is dropped


def leaks(rows: Sequence[RawInstruction], bench: Mapping[str, str]) -> dict[str, str]:
    """Rows that hold an item of the bench, with the rule that found it, the item and how alike.

    n-gram overlap: of the item's word 5-grams, half stand in the row (so a quoted item is found).
    Word overlap: Jaccard of the content words, whatever their order. Embedding: a duplicate as
    ``deduplication`` has it. The first two know no guard: an item with another dose is a leak, too.
    """
    if not rows or not bench:
        return {}
    names, items, texts = list(bench), list(bench.values()), [row.text for row in rows]
    item_grams = [_grams(item, {GRAM}) for item in items]
    sizes = {len(gram) for grams in item_grams for gram in grams}  # a short item is one n-gram
    of_rows = (_grams(text, sizes) for text in texts)
    quoted = overlaps(of_rows, item_grams, GRAM_SHARE, out_of=lambda row, item: item)
    reworded = overlaps(map(_words, texts), list(map(_words, items)), WORD_OVERLAP)
    found = {}
    for rule, hits in {
        "n-gram overlap": quoted,
        "word overlap": reworded,
        "embedding": deduplication.matches(texts, items),
    }.items():
        for n, (item, value) in _most_alike(hits).items():
            found.setdefault(rows[n].id, f"{rule} {value:.2f} with bench item {names[item]}")
    return found


def _grams(text: str, sizes: Iterable[int]) -> set[tuple[str, ...]]:
    told = TOKEN.findall(text.casefold())
    return {
        tuple(told[n : n + size]) for size in sizes for n in range(max(1, len(told) - size + 1))
    }


def _words(text: str) -> set[str]:
    return {word for sentence in content(read(text)) for word in sentence}


def _most_alike(found: Iterable[tuple[int, int, float]]) -> dict[int, tuple[int, float]]:
    """Row -> (the item that it shares most with, of equals the first; how much)."""
    best = {}
    for row, item, share in found:
        if row not in best or share > best[row][1]:
            best[row] = (item, share)
    return best
