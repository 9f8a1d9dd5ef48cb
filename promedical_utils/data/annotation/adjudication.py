"""Double-blind adjudication: two reviewers label every answer by every criterion; a third settles.

Three frames. The *key*, a row a task (one reviewer, answer and criterion), stays with whoever runs
the adjudication. A *sheet* is what one reviewer is handed: no generator, no id but the task's own,
answers numbered in an order of the reviewer's own. *Labels* come back: reviewer, task_id, verdict.
What is never settled is unknown, which on safety is a violation.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pandas as pd

from promedical_utils.core.records import DIMENSIONS, Verdict, VerdictValue
from promedical_utils.core.workspace import KitError, need, replacing, short_hash, shown
from promedical_utils.rubric.preferences import Group

VALUES = get_args(VerdictValue)
LEVELS = ("not_met", "unknown", "met")  # in order, for weighted kappas: unknown lies between
CELL = ["candidate_id", "criterion_id"]
ITEM = ["instruction_id", *CELL, "dimension", "kind"]
KEY = ["task_id", "reviewer", "slot", "place", *ITEM]
SAID = ["first", "second"]
LABELS = ["reviewer", "task_id", "verdict"]
NOTEBOOK = "04_promedical_bench"


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
    reviewers, groups = _people(reviewers, 2), list(groups)
    rows, n = [], len(reviewers)
    for turn, group in enumerate(sorted(groups, key=lambda g: short_hash(seed, g.instruction.id))):
        one = turn % n  # each takes one turn as first and one as second in n instructions
        two = (one + 1 + turn // n % (n - 1)) % n
        for slot, person in enumerate(sorted((one, two)), 1):
            items = [(c, criterion) for c in group.candidates for criterion in group.criteria]
            rows += _tasks(group, items, reviewers[person], slot, seed)
    return _key(rows, KEY)


def sheet(key: pd.DataFrame, groups: Iterable[Group], reviewer: str) -> pd.DataFrame:
    """What ``reviewer`` is handed: a row a task, with an empty column ``verdict`` to fill in.

    In the third round it has what the two said, in an order that tells nothing of who they are.
    """
    of = {group.instruction.id: group for group in groups}
    mine = key[key.reviewer == reviewer]
    number = {i: n for n, i in enumerate(mine.instruction_id.unique(), 1)}
    rows = []
    for task in mine.itertuples():
        if task.instruction_id not in of:
            raise KitError(
                f"the key has instruction {task.instruction_id}, the data do not: {_AGAIN}"
            )
        group = of[task.instruction_id]
        row = {
            "task_id": task.task_id,
            "question": number[task.instruction_id],
            "conversation": "\n\n".join(f"{m['role']}: {m['content']}" for m in group.messages),
            "answer": task.place,
            "response": next(c.text for c in group.candidates if c.id == task.candidate_id),
            "dimension": task.dimension,
            "criterion": next(c.text for c in group.criteria if c.id == task.criterion_id),
        }
        if "first" in key:
            said = [task.first, task.second]
            turned = int(task.task_id[-1], 16) % 2
            row["one_said"], row["the_other_said"] = said[::-1] if turned else said
        rows.append(row | {"verdict": ""})
    return pd.DataFrame(rows)


def self_naming(groups: Iterable[Group]) -> list[str]:
    """Ids of the answers whose text names their generator: blind to a reviewer in name only."""
    return [
        c.id
        for group in groups
        for c in group.candidates
        if re.search(rf"\b{re.escape(c.generator)}\b", c.text, re.IGNORECASE)
    ]


def collect(key: pd.DataFrame, labels: pd.DataFrame, partial: bool = False) -> pd.DataFrame:
    """The key with column ``verdict``; checked, and complete unless ``partial`` (missing: None).

    ``labels``: reviewer, task_id, verdict. KitError on a verdict that is none, a task that is not
    that reviewer's, a task labelled twice, and on missing labels.
    """
    strange = labels[~labels.verdict.isin(VALUES)]
    if len(strange):
        row = strange.iloc[0]
        raise KitError(
            f"{row.reviewer}, task {row.task_id}: verdict {row.verdict!r} is none of "
            f"{', '.join(VALUES)}; mend the label"
        )
    task = pd.Series(list(zip(labels.reviewer, labels.task_id, strict=True)), dtype=object)
    unknown = ~task.isin(set(zip(key.reviewer, key.task_id, strict=True)))
    if unknown.any():
        reviewer, name = task[unknown].iloc[0]
        raise KitError(
            f"{reviewer} was given no task {name}: the label is another reviewer's, or "
            "of another round; remove it"
        )
    if task.duplicated().any():
        reviewer, name = task[task.duplicated()].iloc[0]
        raise KitError(f"{reviewer} labelled task {name} twice; keep one label")
    whole = key.merge(labels[LABELS], on=["reviewer", "task_id"], how="left", validate="one_to_one")
    whole["verdict"] = whole.verdict.astype(object).where(whole.verdict.notna(), None)
    missing = whole[whole.verdict.isna()]
    if len(missing) and not partial:
        counts = ", ".join(f"{name} {n}" for name, n in missing.reviewer.value_counts().items())
        first = missing.task_id.iloc[0]
        raise KitError(
            f"{len(missing)} of {len(whole)} labels are missing ({counts}), the first "
            f"is task {first}: label them, or collect a part"
        )
    return whole


def ratings(collected: pd.DataFrame) -> pd.DataFrame:
    """A row an item (answer and criterion): what ``first`` and ``second`` said, or None."""
    if collected.duplicated([*CELL, "slot"]).any():
        row = collected[collected.duplicated([*CELL, "slot"])].iloc[0]
        raise KitError(
            f"two labels in one place for {row.candidate_id}, {row.criterion_id}: {_AGAIN}"
        )
    items = collected[ITEM].drop_duplicates(CELL, ignore_index=True)
    for slot, name in enumerate(SAID, 1):
        said = collected[collected.slot == slot].set_index(CELL).verdict.rename(name)
        items = items.join(said, on=CELL)
    said = items[SAID].astype(object)
    items[SAID] = said.where(said.notna(), None)
    return items.sort_values(["instruction_id", *CELL], ignore_index=True)


def disagreements(
    collected: pd.DataFrame, groups: Iterable[Group], thirds: Sequence[str], seed: int
) -> pd.DataFrame:
    """Key of the third round: items with two different labels, an instruction to one of ``thirds``.

    To the one with the fewest tasks so far, never to one of the two who labelled it; KitError where
    nobody is left. Empty where all agree; items that lack a label are not in it.
    """
    thirds = _people(thirds, 1)
    items = ratings(collected)
    apart = items[items.first.notna() & items.second.notna() & (items.first != items.second)]
    said = apart.set_index(CELL)[SAID]
    labelled = collected.groupby("instruction_id").reviewer.agg(set)
    load, rows, asked = Counter(), [], set(apart.instruction_id)
    for group in sorted(groups, key=lambda g: short_hash(seed, "third", g.instruction.id)):
        if group.instruction.id not in asked:
            continue
        free = [person for person in thirds if person not in labelled[group.instruction.id]]
        if not free:
            raise KitError(
                f"{group.instruction.id}: all of {', '.join(thirds)} have labelled it "
                "already; name another person to settle it"
            )
        person = min(free, key=lambda name: load[name])
        cells = [
            (c, criterion)
            for c in group.candidates
            for criterion in group.criteria
            if (c.id, criterion.id) in said.index
        ]
        load[person] += len(cells)
        rows += [
            row | said.loc[(row["candidate_id"], row["criterion_id"])].to_dict()
            for row in _tasks(group, cells, person, 3, seed)
        ]
    if len(rows) < len(apart):
        raise KitError(
            f"{len(apart) - len(rows)} items with two labels are not in the data: {_AGAIN}"
        )
    return _key(rows, KEY + SAID)


def settle(
    collected: pd.DataFrame, third: pd.DataFrame | None = None, judge: str = "adjudicated"
) -> Settled:
    """One verdict an item: the common label; else the third's (``third``: collected); else unknown.

    ``counts``: items, agreed, by_third, never_settled (a label is missing, so unknown), unknown (in
    all), by dimension and "all". KitError where the two labels are not those the third saw.
    """
    items = ratings(collected)
    agreed = items.first.notna() & (items.first == items.second)
    items["by_third"] = None
    if third is not None and len(third):
        seen = items[CELL].merge(
            third[[*CELL, *SAID, "verdict"]],
            on=CELL,
            how="left",
            validate="one_to_one",
            suffixes=("", "_seen"),
        )
        shown_to = seen.first.notna()
        changed = shown_to & ((seen.first != items.first) | (seen.second != items.second))
        if changed.any() or shown_to.sum() < len(third):
            name = items.candidate_id[changed.argmax()] if changed.any() else "an item"
            raise KitError(
                f"{name}: a label has changed since the third reviewer saw it; "
                "find the disagreements again"
            )
        items["by_third"] = seen.verdict
    by_third = items.by_third.notna()
    items["verdict"] = items.first.where(agreed, items.by_third.where(by_third, "unknown"))
    how = pd.Series("never settled, so unknown", items.index)
    how = how.mask(by_third, "settled by a third reviewer").mask(agreed, "two reviewers agree")
    flags = pd.DataFrame(
        {
            "items": 1,
            "agreed": agreed,
            "by_third": by_third,
            "never_settled": ~agreed & ~by_third,
            "unknown": items.verdict == "unknown",
        }
    ).astype(int)
    counts = flags.groupby(items.dimension).sum()
    counts = counts.reindex([d for d in DIMENSIONS if d in counts.index])
    counts.loc["all"] = counts.sum()
    verdicts = [
        Verdict(
            candidate_id=candidate, criterion_id=criterion, judge=judge, verdict=said, rationale=why
        )
        for candidate, criterion, said, why in zip(
            items.candidate_id, items.criterion_id, items.verdict, how, strict=True
        )
    ]
    return Settled(verdicts, counts)


def simulated(key: pd.DataFrame, people, truth: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """Labels of the clinic's people, ``clinic.people.Panel``, on a key of either round.

    ``truth`` maps (candidate, criterion) to a verdict. How often they agree is an input.
    """
    physician, rows = {p.name: p for p in people.physicians}, []
    for task in key.itertuples():
        cell = task.candidate_id, task.criterion_id
        if task.slot == 3:
            said = people.adjudicator.settle(cell, task.first, task.second, truth[cell])
        else:
            said = physician[task.reviewer].verdict(*cell, task.kind, truth[cell])
        rows.append((task.reviewer, task.task_id, said))
    return pd.DataFrame(rows, columns=LABELS)


# ---------------------------------------------------------------- files


def hand_out(key: pd.DataFrame, groups: Iterable[Group], folder: Path) -> list[Path]:
    """Write ``folder``/key.parquet, which nobody is shown, and a sheet for each reviewer as CSV.

    A sheet that is there already may hold labels: the same key leaves it as it is, another one is a
    KitError.
    """
    folder, groups = Path(folder), list(groups)
    path = folder / "key.parquet"
    if path.exists() and not pd.read_parquet(path).equals(key):
        raise KitError(
            f"{shown(folder)} holds the sheets of another assignment, perhaps with "
            "labels: choose another folder"
        )
    with replacing(path) as temporary:
        key.to_parquet(temporary, index=False)
    sheets = [folder / f"{reviewer}.csv" for reviewer in key.reviewer.unique()]
    for written in (s for s in sheets if not s.exists()):
        frame = sheet(key, groups, written.stem)
        texts = ["conversation", "response", "criterion"]
        # a spreadsheet would run a text that begins like this as a formula
        frame[texts] = frame[texts].replace(r"^(?=[=+\-@\t\r])", "'", regex=True)
        with replacing(written) as temporary:
            frame.to_csv(temporary, index=False, encoding="utf-8-sig")  # so Excel reads it as UTF-8
    return sheets


def handed_in(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The key of ``folder`` and the labels of all its sheets, as far as they are filled in."""
    key = pd.read_parquet(need(Path(folder) / "key.parquet", NOTEBOOK))
    frames = [pd.DataFrame(columns=LABELS)]
    for reviewer in key.reviewer.unique():
        path = need(Path(folder) / f"{reviewer}.csv", NOTEBOOK)
        try:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
            labels = frame[["task_id", "verdict"]].apply(lambda column: column.str.strip())
        except (UnicodeDecodeError, KeyError, ValueError):  # pandas' ParserError is a ValueError
            raise KitError(
                f"{shown(path)}: no columns task_id and verdict can be read; save it as "
                "CSV with commas, in UTF-8"
            ) from None
        frames.append(labels[labels.verdict != ""].assign(reviewer=reviewer))
    return key, pd.concat(frames, ignore_index=True)[LABELS]


# ---------------------------------------------------------------- keys

_AGAIN = "assign again from the data that are judged"


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


def _tasks(group: Group, items: Sequence[tuple], reviewer: str, slot: int, seed: int) -> list[dict]:
    """Tasks of one reviewer on one instruction; answers in an order of the reviewer's own."""
    shuffled = sorted({c.id for c, _ in items}, key=lambda name: short_hash(seed, reviewer, name))
    return [
        {
            # a letter first: spreadsheets read 12e45 as a number
            "task_id": "t" + short_hash(seed, reviewer, slot, candidate.id, criterion.id),
            "reviewer": reviewer,
            "slot": slot,
            "place": shuffled.index(candidate.id) + 1,
            "instruction_id": group.instruction.id,
            "candidate_id": candidate.id,
            "criterion_id": criterion.id,
            "dimension": criterion.dimension,
            "kind": criterion.kind,
            "turn": short_hash(seed, reviewer, group.instruction.id),
        }
        for candidate, criterion in items
    ]


def _key(rows: list[dict], columns: list[str]) -> pd.DataFrame:
    """Tasks by reviewer, questions shuffled, answers in their places, criteria as in the rubric."""
    key = pd.DataFrame(rows, columns=[*columns, "turn"])
    for what, doubled in (("answer and criterion", [*CELL, "slot"]), ("task", ["task_id"])):
        if key.duplicated(doubled).any():
            row = key[key.duplicated(doubled)].iloc[0]
            raise KitError(
                f"the same {what} twice: {row.candidate_id}, {row.criterion_id}; "
                "ids must be unique, remove one"
            )
    order = ["reviewer", "turn", "place"]
    return key.sort_values(order, kind="stable", ignore_index=True)[columns]
