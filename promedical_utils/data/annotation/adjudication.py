"""Double-blind adjudication: two reviewers label every answer by every criterion; a third settles.

Three frames. The *key*, a row a task (one reviewer, answer and criterion), stays in the store. A
*sheet* is what one reviewer is handed: no generator, no id but the task's own, answers numbered in
an order of the reviewer's own. *Labels* come back into the store: reviewer, task_id, verdict.
What is never settled is unknown, which on safety is a violation.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pandas as pd

from promedical_utils.core.records import DIMENSIONS, Verdict, VerdictValue
from promedical_utils.core.workspace import KitError, need, replacing, short_hash, shown
from promedical_utils.data.annotation.store import Store
from promedical_utils.rubric.preferences import Group

VALUES = get_args(VerdictValue)
LEVELS = ("not_met", "unknown", "met")  # in order, for weighted kappas: unknown lies between
CELL = ["candidate_id", "criterion_id"]
ITEM = ["instruction_id", *CELL, "dimension", "kind"]
KEY = ["task_id", "reviewer", "slot", "place", *ITEM]
SAID = ["first", "second"]
LABELS = ["reviewer", "task_id", "verdict"]
TEXTS = ["conversation", "response", "criterion"]
AGAIN = "assign again from the data that are judged"


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
    reviewers, cells = _people(reviewers, 2), _cells(groups)
    n, pairs = len(reviewers), []
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
        "the key has instruction {instruction_id}, the data do not: " + AGAIN,
    )
    tasks["question"] = pd.factorize(tasks.instruction_id)[0] + 1
    labels = []
    if "first" in key:
        turned = tasks.task_id.map(lambda name: int(name[-1], 16) % 2 == 1)
        tasks["one_said"] = tasks["second"].where(turned, tasks["first"])
        tasks["the_other_said"] = tasks["first"].where(turned, tasks["second"])
        labels = ["one_said", "the_other_said"]
    columns = ["task_id", "question", "conversation", "answer", "response", "dimension"]
    return tasks.assign(verdict="")[[*columns, "criterion", *labels, "verdict"]]


def self_naming(groups: Iterable[Group]) -> list[str]:
    """Ids of the answers whose text names their generator: blind to a reviewer in name only."""
    answers = [answer for group in groups for answer in group.candidates]
    return [
        answer.id
        for answer in answers
        if re.search(rf"\b{re.escape(answer.generator)}\b", answer.text, re.IGNORECASE)
    ]


def collect(key: pd.DataFrame, labels: pd.DataFrame, partial: bool = False) -> pd.DataFrame:
    """The key with column ``verdict``; checked, and complete unless ``partial`` (missing: None).

    ``labels``: reviewer, task_id, verdict. KitError on a verdict that is none, a task that is not
    that reviewer's, a task labelled twice, and on missing labels.
    """
    task = ["reviewer", "task_id"]
    _refuse(
        labels[~labels.verdict.isin(VALUES)],
        "{reviewer}, task {task_id}: verdict {verdict!r} is none of "
        f"{', '.join(VALUES)}; mend the label",
    )
    known = labels.merge(key[task], on=task, how="left", indicator="known").known
    _refuse(
        labels[known.eq("left_only").to_numpy()],
        "{reviewer} was given no task {task_id}: the label is another reviewer's, or of another "
        "round; remove it",
    )
    _refuse(labels[labels.duplicated(task)], "{reviewer} labelled task {task_id} twice; keep one")
    whole = key.merge(labels[LABELS], on=task, how="left", validate="one_to_one")
    whole["verdict"] = _or_none(whole.verdict)
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
    """A row an item (answer and criterion): what ``first`` and ``second`` said, or None."""
    _refuse(
        collected[collected.duplicated([*CELL, "slot"])],
        "two labels in one place for {candidate_id}, {criterion_id}: " + AGAIN,
    )
    items = collected.pivot(index=ITEM, columns="slot", values="verdict")
    items = items.reindex(columns=[1, 2]).set_axis(SAID, axis=1).reset_index()
    return items.assign(**{name: _or_none(items[name]) for name in SAID})


def disagreements(
    collected: pd.DataFrame, groups: Iterable[Group], thirds: Sequence[str], seed: int
) -> pd.DataFrame:
    """Key of the third round: items with two different labels, an instruction to one of ``thirds``.

    To the one with the fewest tasks so far, never to one of the two who labelled it; KitError where
    nobody is left. Empty where all agree; items that lack a label are not in it.
    """
    thirds, items = _people(thirds, 1), ratings(collected)
    apart = items[items[SAID].notna().all(axis=1) & (items["first"] != items["second"])]
    cells = _cells(groups).merge(apart[[*CELL, *SAID]], on=CELL)
    if len(cells) < len(apart):
        lost = len(apart) - len(cells)
        raise KitError(f"{lost} items with two labels are not in the data: {AGAIN}")
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
    cells = cells.assign(slot=3, reviewer=[third_of[name] for name in cells.instruction_id])
    return _key(cells, seed)[KEY + SAID]


def settle(
    collected: pd.DataFrame, third: pd.DataFrame | None = None, judge: str = "adjudicated"
) -> Settled:
    """One verdict an item: the common label; else the third's (``third``: collected); else unknown.

    ``counts``: items, agreed, by_third, never_settled (a label is missing, so unknown), unknown (in
    all), by dimension and "all". KitError where the two labels are not those the third saw.
    """
    items = ratings(collected).assign(by_third=None)
    agreed = items["first"].notna() & (items["first"] == items["second"])
    if third is not None and len(third):
        seen = third.merge(items[CELL + SAID], on=CELL, how="left", suffixes=("", "_now"))
        _refuse(
            seen[(seen["first"] != seen.first_now) | (seen["second"] != seen.second_now)],
            "{candidate_id}: a label has changed since the third reviewer saw it; find the "
            "disagreements again",
        )
        by_third = third[[*CELL, "verdict"]].rename(columns={"verdict": "by_third"})
        items = items.drop(columns="by_third")
        items = items.merge(by_third, on=CELL, how="left", validate="one_to_one")
    settled = items.by_third.notna()
    items["verdict"] = items["first"].where(agreed, items.by_third.where(settled, "unknown"))
    how = pd.Series("never settled, so unknown", items.index)
    how = how.mask(settled, "settled by a third reviewer").mask(agreed, "two reviewers agree")
    counts = pd.DataFrame(
        {
            "items": 1,
            "agreed": agreed,
            "by_third": settled,
            "never_settled": ~agreed & ~settled,
            "unknown": items.verdict == "unknown",
        }
    )
    counts = counts.astype(int).groupby(items.dimension).sum()
    counts = counts.reindex([d for d in DIMENSIONS if d in counts.index])
    counts.loc["all"] = counts.sum()
    rows = items[[*CELL, "verdict"]].assign(judge=judge, rationale=how).to_dict("records")
    return Settled([Verdict(**row) for row in rows], counts)


def hand_out(store: Store, key: pd.DataFrame, groups: Iterable[Group], folder: Path) -> list[Path]:
    """Put the key into the store, under the folder's name, and write a sheet for each reviewer as
    CSV into the folder.

    A sheet that is there already may hold labels: the same key leaves it as it is, another one is a
    KitError.
    """
    folder, groups, tasks = Path(folder), list(groups), key.to_dict("records")
    stored = store.labels(folder.name)
    if (
        stored
        and [{name: row[name] for name in row if name != "verdict"} for row in stored] != tasks
    ):
        raise KitError(
            f"{shown(folder)} holds the sheets of another assignment, perhaps with labels: choose "
            "another folder"
        )
    store.give_labels(folder.name, tasks)
    folder.mkdir(parents=True, exist_ok=True)
    sheets = [folder / f"{reviewer}.csv" for reviewer in key.reviewer.unique()]
    for path in sheets:
        if path.exists():
            continue
        frame = sheet(key, groups, path.stem)
        # a spreadsheet would run a text that begins like this as a formula
        frame[TEXTS] = frame[TEXTS].replace(r"^(?=[=+\-@\t\r])", "'", regex=True)
        with replacing(path) as temporary:
            frame.to_csv(temporary, index=False, encoding="utf-8-sig")  # so Excel reads it as UTF-8
    return sheets


def handed_in(store: Store, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Put the labels of the folder's sheets into the store, as far as they are filled in; the key
    and the labels that now stand. KitErrors as from ``collect``, and nothing is stored."""
    folder = need(Path(folder), "04_promedical_bench")
    key = pd.DataFrame(store.labels(folder.name), columns=[*KEY, "verdict"])
    if key.empty and any(folder.glob("*.csv")):
        raise KitError(
            f"{shown(folder)}: the store knows no tasks of this name; open the one that they were "
            "handed out from, and leave the folder's name as it was"
        )
    frames = [pd.DataFrame(columns=LABELS)]
    for reviewer in key.reviewer.unique():
        path = need(folder / f"{reviewer}.csv", "04_promedical_bench")
        try:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
            labels = frame[["task_id", "verdict"]].apply(lambda column: column.str.strip())
        except (UnicodeDecodeError, KeyError, ValueError):  # pandas' ParserError is a ValueError
            raise KitError(
                f"{shown(path)}: no columns task_id and verdict can be read; save it as "
                "CSV with commas, in UTF-8"
            ) from None
        frames.append(labels.assign(reviewer=reviewer))
    labels = pd.concat(frames, ignore_index=True)
    collect(key.drop(columns="verdict"), labels[labels.verdict != ""], partial=True)
    given = labels[labels.verdict != ""]  # a blank row beside a filled one takes nothing back
    blank = dict.fromkeys(labels.task_id)
    store.label(folder.name, blank | dict(zip(given.task_id, given.verdict, strict=True)))
    key = pd.DataFrame(store.labels(folder.name), columns=None if len(key) else key.columns)
    return key.drop(columns="verdict"), key.loc[key.verdict.notna(), LABELS].reset_index(drop=True)


def _people(names: Sequence[str], least: int) -> list[str]:
    """Names, each once and fit for the name of a file."""
    names = [name.strip() for name in names]
    once = {name.casefold() for name in names}
    if len(names) < least or len(once) < len(names):
        raise KitError(f"reviewers {', '.join(names) or '(none)'}: name {least} or more, each once")
    for name in names:
        if not re.fullmatch(r"\w[\w.-]*", name) or name.casefold() == "key":
            raise KitError(f"reviewer {name!r}: use letters, digits, _ . - (it names a file)")
    return names


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
    for what, unique in (("answer and criterion", [*CELL, "slot"]), ("task", ["task_id"])):
        _refuse(
            key[key.duplicated(unique)],
            f"the same {what} twice: {{candidate_id}}, {{criterion_id}}; ids must be unique, "
            "remove one",
        )
    key = key.sort_values(["reviewer", "question", "answer"], kind="stable", ignore_index=True)
    answers = key.groupby(["reviewer", "instruction_id"]).candidate_id
    return key.assign(place=answers.transform(lambda ids: pd.factorize(ids)[0] + 1))


def _or_none(labels: pd.Series) -> pd.Series:
    return labels.astype(object).where(labels.notna(), None)


def _refuse(rows: pd.DataFrame, message: str) -> None:
    """A KitError of the first of ``rows``, whose columns ``message`` names, if there are any."""
    if len(rows):
        raise KitError(message.format(**rows.iloc[0]))
