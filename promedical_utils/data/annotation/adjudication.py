"""Double-blind adjudication: two reviewers label every answer by every criterion; a third settles.

Two frames. The *key*, a row a task (one reviewer, answer and criterion), is shown to nobody; a
reviewer is handed a *sheet* of it: no generator, no id but the task's own, answers numbered in an
order of the reviewer's own. What is never settled is unknown, which on safety is a violation.
"""

from collections.abc import Iterable, Sequence

import pandas as pd

from promedical_utils.core.workspace import KitError, short_hash
from promedical_utils.rubric.preferences import Group

LEVELS = ("not_met", "unknown", "met")  # in order, for weighted kappas: unknown lies between
CELL = ["candidate_id", "criterion_id"]
TASK = ["reviewer", "task_id"]
TEXTS = ["conversation", "response", "criterion"]
SHEET = ["task_id", "question", "conversation", "answer", "response", "dimension", "criterion"]
SHEET += ["one_said", "the_other_said"]  # in the third round


def assign(groups: Iterable[Group], reviewers: Sequence[str], seed: int) -> pd.DataFrame:
    """Key of the first round: each instruction, with all its answers, to two of the reviewers.

    Loads differ by two instructions at most, and every two reviewers meet about equally often; slot
    1 is the one named first. All is drawn by hash of ``seed``: the same call gives the same key.
    KitError on fewer than two reviewers, one named twice, or a repeated id.
    """
    n = len({name.casefold() for name in reviewers})
    if n < max(2, len(reviewers)):
        raise KitError(f"reviewers {', '.join(reviewers)}: name two or more, each once")
    cells = pd.DataFrame(
        {
            "instruction_id": group.instruction.id,
            "candidate_id": answer.id,
            "criterion_id": criterion.id,
            "dimension": criterion.dimension,
            "conversation": "\n\n".join(f"{m['role']}: {m['content']}" for m in group.messages),
            "response": answer.text,
            "criterion": criterion.text,
        }
        for group in groups
        for answer in group.candidates
        for criterion in group.criteria
    )
    pairs = []
    order = sorted(cells.instruction_id.unique(), key=lambda name: short_hash(seed, name))
    for turn, instruction_id in enumerate(order):
        one = turn % n  # each takes one turn as first and one as second in n instructions
        two = (one + 1 + turn // n % (n - 1)) % n
        for slot, person in enumerate(sorted((one, two)), 1):
            pairs.append((instruction_id, slot, reviewers[person]))
    pairs = pd.DataFrame(pairs, columns=["instruction_id", "slot", "reviewer"])
    return _tasks(cells.merge(pairs, on="instruction_id"), seed)


def sheet(key: pd.DataFrame, reviewer: str) -> pd.DataFrame:
    """What ``reviewer`` is handed: a row a task, with an empty column ``verdict`` to fill in.

    In the third round it has what the two said, in an order that tells nothing of who they are.
    """
    tasks = key.loc[key.reviewer == reviewer, [name for name in SHEET if name in key]]
    # a spreadsheet would run a text that begins like this as a formula
    plain = {name: {r"^(?=[=+\-@\t\r])": "'"} for name in TEXTS}
    return tasks.replace(plain, regex=True).assign(verdict="")


def collect(key: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """The key with column ``verdict``, from ``labels``: reviewer, task_id, verdict.

    KitError on a verdict that is none, a task that is not that reviewer's, one labelled twice, and
    on tasks without a label.
    """
    labels = labels[[*TASK, "verdict"]].assign(verdict=labels.verdict.astype(str).str.strip())
    if twice := list(labels[labels.duplicated(TASK)].task_id):
        raise KitError(f"task {twice[0]} is labelled twice by one reviewer; keep one label")
    whole = key.merge(labels, "outer", on=TASK, indicator=True)
    if strange := list(whole[whole._merge == "right_only"].itertuples()):
        where = f"{strange[0].reviewer} was given no task {strange[0].task_id}"
        raise KitError(f"{where}: remove that label")
    if wrong := [row for row in whole.itertuples() if row.verdict not in LEVELS]:
        counts = pd.Series([row.reviewer for row in wrong]).value_counts().to_dict()
        raise KitError(
            f"{len(wrong)} of {len(whole)} tasks without met, not_met or unknown ({counts}), the "
            f"first is {wrong[0].task_id} with {wrong[0].verdict!r}: label them"
        )
    return key.merge(labels, on=TASK)


def ratings(collected: pd.DataFrame) -> pd.DataFrame:
    """A row an item (answer and criterion): what ``first`` and ``second`` said."""
    items = collected.pivot(
        index=["instruction_id", *CELL, "dimension"], columns="slot", values="verdict"
    )
    return items.set_axis(["first", "second"], axis=1).reset_index()


def disagreements(collected: pd.DataFrame, thirds: Sequence[str], seed: int) -> pd.DataFrame:
    """Key of the third round: items with two different labels, an instruction to one of ``thirds``.

    Never to one of the two who labelled it; KitError where nobody is left. Empty where all agree.
    """
    items = ratings(collected)
    apart = items[items["first"] != items["second"]]
    labelled = collected.groupby("instruction_id").reviewer.agg(set)
    third_of = {}
    for turn, name in enumerate(apart.instruction_id.unique()):
        free = [person for person in thirds if person not in labelled[name]]
        if not free:
            raise KitError(f"{name}: all of {', '.join(thirds)} have labelled it; name another")
        third_of[name] = free[turn % len(free)]
    cells = collected[collected.slot == 1].drop(columns=[*TASK, "question", "answer", "verdict"])
    cells = cells.merge(apart[[*CELL, "first", "second"]], on=CELL)
    cells = cells.assign(slot=3, reviewer=cells.instruction_id.map(third_of))
    key = _tasks(cells, seed)
    turned = key.task_id.map(lambda name: int(name[-1], 16) % 2 == 1).astype(bool)
    return key.assign(
        one_said=key["second"].where(turned, key["first"]),
        the_other_said=key["first"].where(turned, key["second"]),
    )


def settle(collected: pd.DataFrame, third: pd.DataFrame | None = None) -> pd.DataFrame:
    """``ratings`` with one verdict an item and its rationale, how that came about.

    The common label; else the third's (``third``: collected); else unknown.
    """
    items = ratings(collected)
    items["verdict"], items["rationale"] = "unknown", "never settled, so unknown"
    if third is not None:
        by_third = third.set_index(CELL).verdict.reindex(pd.MultiIndex.from_frame(items[CELL]))
        settled = by_third.notna().to_numpy()
        items.loc[settled, "verdict"] = by_third[settled].to_numpy()
        items.loc[settled, "rationale"] = "settled by a third reviewer"
    agreed = items["first"] == items["second"]
    items.loc[agreed, "verdict"] = items["first"]
    items.loc[agreed, "rationale"] = "two reviewers agree"
    return items


def _tasks(cells: pd.DataFrame, seed: int) -> pd.DataFrame:
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
    if len(twice := key[key.task_id.duplicated()]):
        raise KitError(f"the same answer and criterion twice: {twice.iloc[0].candidate_id}")
    key = key.sort_values(["reviewer", "question", "answer"], kind="stable", ignore_index=True)
    answers = key.groupby(["reviewer", "instruction_id"]).candidate_id
    return key.assign(
        question=key.groupby("reviewer").instruction_id.transform(_numbered),
        answer=answers.transform(_numbered),
    )


def _numbered(names: pd.Series):
    return pd.factorize(names)[0] + 1
