"""Double-blind adjudication: two reviewers label every answer by every criterion; a third settles.

Three frames. The *key*, a row a task (one reviewer, answer and criterion), is shown to nobody. A
*sheet* is what one reviewer is handed: no generator, no id but the task's own, answers numbered in
an order of the reviewer's own. *Labels* come back: reviewer, task_id, verdict. What is never
settled is unknown, which on safety is a violation.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from promedical_utils.core.records import DIMENSIONS, Verdict
from promedical_utils.core.workspace import KitError, short_hash
from promedical_utils.rubric.preferences import Group

LEVELS = ("not_met", "unknown", "met")  # in order, for weighted kappas: unknown lies between
CELL = ["candidate_id", "criterion_id"]
ITEM = ["instruction_id", *CELL, "dimension", "kind"]
KEY = ["task_id", "reviewer", "slot", "place", *ITEM]
SAID = ["first", "second"]
LABELS = ["reviewer", "task_id", "verdict"]
TEXTS = ["conversation", "response", "criterion"]


@dataclass(frozen=True)
class Settled:
    """Adjudicated verdicts, and how each came about: ``counts`` has a row a dimension."""

    verdicts: list[Verdict]
    counts: pd.DataFrame


def assign(groups: Iterable[Group], reviewers: Sequence[str], seed: int) -> pd.DataFrame:
    """Key of the first round: each instruction, with all its answers, to two of the reviewers.

    Loads differ by two instructions at most, and every two reviewers meet about equally often; slot
    1 is the one named first. All is drawn by hash of ``seed``: the same call gives the same key.
    KitError on fewer than two reviewers, one named twice, or a repeated id.
    """
    once = {name.casefold() for name in reviewers}
    if len(once) < max(2, len(reviewers)) or not all(re.fullmatch(r"\w[\w.-]*", n) for n in once):
        raise KitError(
            f"reviewers {', '.join(reviewers)}: name two or more, each once, in letters, digits, "
            "_ . - (a name is the name of a sheet)"
        )
    cells, n, pairs = _cells(groups), len(reviewers), []
    order = sorted(cells.instruction_id.unique(), key=lambda name: short_hash(seed, name))
    for turn, instruction_id in enumerate(order):
        one = turn % n  # each takes one turn as first and one as second in n instructions
        two = (one + 1 + turn // n % (n - 1)) % n
        for slot, person in enumerate(sorted((one, two)), 1):
            pairs.append((instruction_id, slot, reviewers[person]))
    pairs = pd.DataFrame(pairs, columns=["instruction_id", "slot", "reviewer"])
    return _key(cells.merge(pairs, on="instruction_id"), seed)[KEY]


def sheet(key: pd.DataFrame, groups: Iterable[Group], reviewer: str) -> pd.DataFrame:
    """What ``reviewer`` is handed: a row a task, with an empty column ``verdict`` to fill in.

    In the third round it has what the two said, in an order that tells nothing of who they are.
    """
    tasks = key[key.reviewer == reviewer].rename(columns={"place": "answer"})
    tasks = tasks.merge(_cells(groups)[[*CELL, *TEXTS]], on=CELL, how="left")
    _refuse(
        tasks[tasks.criterion.isna()],
        "the key has instruction {instruction_id}, the data do not: assign again from these data",
    )
    # a spreadsheet would run a text that begins like this as a formula
    tasks[TEXTS] = tasks[TEXTS].replace(r"^(?=[=+\-@\t\r])", "'", regex=True)
    tasks["question"] = pd.factorize(tasks.instruction_id)[0] + 1
    columns = "task_id question conversation answer response dimension criterion".split()
    if "first" in key:
        turned = tasks.task_id.map(lambda name: int(name[-1], 16) % 2 == 1)
        tasks["one_said"] = tasks["second"].where(turned, tasks["first"])
        tasks["the_other_said"] = tasks["first"].where(turned, tasks["second"])
        columns += ["one_said", "the_other_said"]
    return tasks.assign(verdict="")[[*columns, "verdict"]]


def self_naming(groups: Iterable[Group]) -> list[str]:
    """Ids of the answers whose text names their generator: blind to a reviewer in name only."""
    return [
        answer.id
        for group in groups
        for answer in group.candidates
        if re.search(rf"\b{re.escape(answer.generator)}\b", answer.text, re.IGNORECASE)
    ]


def collect(key: pd.DataFrame, labels: pd.DataFrame, partial: bool = False) -> pd.DataFrame:
    """The key with column ``verdict``; checked, and complete unless ``partial`` (missing: NaN).

    ``labels``: reviewer, task_id, verdict, which is NaN where a task is not labelled yet. KitError
    on a verdict that is none, a task that is not that reviewer's, a task labelled twice, and on
    missing labels.
    """
    if missing := set(LABELS) - set(labels):
        raise KitError(
            f"labels: no column {min(missing)} among {', '.join(labels)}; save sheets as CSV with "
            "commas, in UTF-8"
        )
    labels, task = labels[LABELS].dropna(subset="verdict"), ["reviewer", "task_id"]
    labels = labels.assign(verdict=labels.verdict.astype(str).str.strip())
    labels = labels[labels.verdict != ""]
    _refuse(
        labels[~labels.verdict.isin(LEVELS)],
        "{reviewer}, task {task_id}: verdict {verdict!r} is none of met, not_met and unknown",
    )
    given = labels.merge(key[task], on=task, how="left", indicator=True)
    _refuse(
        given[given._merge == "left_only"],
        "{reviewer} was given no task {task_id}: the label is another reviewer's, or of another "
        "round; remove it",
    )
    _refuse(labels[labels.duplicated(task)], "{reviewer} labelled task {task_id} twice; keep one")
    whole = key.merge(labels, on=task, how="left")
    missing = whole[whole.verdict.isna()]
    if not partial:
        counts = ", ".join(f"{name} {n}" for name, n in missing.reviewer.value_counts().items())
        _refuse(
            missing,
            f"{len(missing)} of {len(whole)} labels are missing ({counts}), the first is task "
            "{task_id}: label them, or collect a part",
        )
    return whole


def ratings(collected: pd.DataFrame) -> pd.DataFrame:
    """A row an item (answer and criterion): what ``first`` and ``second`` said, or NaN."""
    items = collected.pivot(index=ITEM, columns="slot", values="verdict").reindex(columns=[1, 2])
    return items.set_axis(SAID, axis=1).reset_index()


def disagreements(collected: pd.DataFrame, thirds: Sequence[str], seed: int) -> pd.DataFrame:
    """Key of the third round: items with two different labels, an instruction to one of ``thirds``.

    To the one with the fewest tasks so far, never to one of the two who labelled it; KitError where
    nobody is left. Empty where all agree; items that lack a label are not in it.
    """
    items = ratings(collected)
    apart = items[items[SAID].notna().all(axis=1) & (items["first"] != items["second"])]
    cells = collected.loc[collected.slot == 1, ITEM].merge(apart[CELL + SAID], on=CELL)
    labelled = collected.groupby("instruction_id").reviewer.agg(set)
    load, third_of = Counter(), {}
    sizes = cells.instruction_id.value_counts()
    for name in sorted(sizes.index, key=lambda name: short_hash(seed, "third", name)):
        free = [person for person in thirds if person not in labelled[name]]
        if not free:
            raise KitError(
                f"{name}: all of {', '.join(thirds)} have labelled it already; name another "
                "person to settle it"
            )
        third_of[name] = min(free, key=lambda person: load[person])
        load[third_of[name]] += sizes[name]
    cells = cells.assign(slot=3, reviewer=cells.instruction_id.map(third_of))
    return _key(cells, seed)[KEY + SAID]


def settle(
    collected: pd.DataFrame, third: pd.DataFrame | None = None, judge: str = "adjudicated"
) -> Settled:
    """One verdict an item: the common label; else the third's (``third``: collected); else unknown.

    ``counts``: items, agreed, by_third, never_settled (a label is missing, so unknown), unknown (in
    all), by dimension and "all". KitError where the two labels are not those the third saw.
    """
    if third is None:
        third = pd.DataFrame(columns=[*CELL, *SAID, "verdict"])
    by_third = third[[*CELL, *SAID, "verdict"]].rename(columns={"verdict": "by_third"})
    items = ratings(collected).merge(by_third, "left", CELL + SAID, validate="1:1", indicator=True)
    if (items._merge == "both").sum() < len(third):
        raise KitError(
            "a label has changed since the third reviewer saw it; find the disagreements again"
        )
    agreed = items["first"].notna() & (items["first"] == items["second"])
    settled = items.by_third.notna()
    items["verdict"] = items["first"].where(agreed, items.by_third.where(settled, "unknown"))
    how = pd.Series("never settled, so unknown", items.index)
    how = how.mask(settled, "settled by a third reviewer").mask(agreed, "two reviewers agree")
    columns = {
        "items": 1,
        "agreed": agreed,
        "by_third": settled,
        "never_settled": ~agreed & ~settled,
        "unknown": items.verdict == "unknown",
    }
    counts = pd.DataFrame(columns).groupby(items.dimension).sum()
    counts = counts.reindex([name for name in DIMENSIONS if name in counts.index])
    counts.loc["all"] = counts.sum()
    rows = items[[*CELL, "verdict"]].assign(judge=judge, rationale=how).to_dict("records")
    return Settled([Verdict(**row) for row in rows], counts)


def _cells(groups: Iterable[Group]) -> pd.DataFrame:
    """What there is to label, a row an answer and criterion: ``ITEM`` and ``TEXTS``."""
    rows = []
    for group in groups:
        conversation = "\n\n".join(f"{m['role']}: {m['content']}" for m in group.messages)
        for answer in group.candidates:
            rows += [
                (group.instruction.id, answer.id, c.id, c.dimension, c.kind)
                + (conversation, answer.text, c.text)
                for c in group.criteria
            ]
    return pd.DataFrame(rows, columns=ITEM + TEXTS)


def _key(cells: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Tasks by reviewer, questions shuffled, answers in an order of the reviewer's own, criteria
    as in the rubric. ``cells`` have a reviewer and a slot."""

    def drawn(*columns):
        return [short_hash(seed, *row) for row in cells[list(columns)].itertuples(index=False)]

    key = cells.assign(
        # a letter first: spreadsheets read 12e45 as a number
        task_id=["t" + name for name in drawn("reviewer", "slot", *CELL)],
        question=drawn("reviewer", "instruction_id"),
        answer=drawn("reviewer", "candidate_id"),
    )
    _refuse(
        key[key.duplicated([*CELL, "slot"])],
        "the same answer and criterion twice: {candidate_id}, {criterion_id}; remove one",
    )
    key = key.sort_values(["reviewer", "question", "answer"], kind="stable", ignore_index=True)
    answers = key.groupby(["reviewer", "instruction_id"]).candidate_id
    return key.assign(place=answers.transform(lambda ids: pd.factorize(ids)[0] + 1))


def _refuse(rows: pd.DataFrame, message: str) -> None:
    """A KitError of the first of ``rows``, whose columns ``message`` names, if there are any."""
    if len(rows):
        raise KitError(message.format(**rows.iloc[0]))
