"""The store of review: what people were given and every decision of theirs, in SQLite.

Review page and Label Studio keep their decisions here, in a log that is only ever appended to
(store.sql); a draft as it stands is its log, replayed.
"""

import json
import random
import sqlite3
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle
from pathlib import Path

from promedical_utils.core.records import Decision, Rubric
from promedical_utils.core.workspace import KitError, short_hash, shown
from promedical_utils.data.annotation import review
from promedical_utils.data.sqlite import Database

ADVICE = (
    "What was saved before stays; see to the disk (space, right to write, nobody else holding the "
    "file), then do it again. A store of an earlier version of the kit (no such column) is read "
    "with that version"
)


@dataclass(frozen=True)
class Item:
    """A draft as its reviewer may see it, and what stands decided.

    It tells neither round nor source, blind or not: what one item lacked would give it away.
    """

    id: int
    draft: Rubric
    reason: str
    version: int
    decisions: dict[str, Decision]
    finished: bool
    saved_at: str


class Store(Database):
    """One SQLite file on a local disk. What stands is the last decision on each criterion.

    What a method has returned for is on the disk (WAL, ``synchronous=FULL``). A KitError of a save
    means that this one decision is not stored and that all before it are.
    """

    def __init__(self, path: Path):
        super().__init__(path, Path(__file__).with_suffix(".sql"), ADVICE)
        [(mode,)] = self._read("PRAGMA journal_mode")
        if mode != "wal":
            raise KitError(f"{shown(self.path)}: no write-ahead log here; use a local disk")

    def close(self) -> None:
        self._db.close()

    def open_round(self, drafts: Sequence[Rubric], reviewers: Sequence[str]) -> str:
        """Deal the drafts out to the reviewers in turn, in random order; the round's key.

        The same call again deals out nothing and gives the same key. A draft that breaks a rule is
        dealt out with the reason.
        """
        key = short_hash(*sorted(map(_as_text, drafts)))
        shuffled = random.Random("round-0").sample(list(drafts), len(drafts))
        with self._writing("no round opened"):
            for draft, reviewer in zip(shuffled, cycle(reviewers)):
                self._add(key, reviewer, draft, review.broken_rule(draft))
        return key

    def queue(self, draft: Rubric, reason: str) -> int:
        """Hold a draft for whichever reviewer is free, with the reason; the item's id."""
        with self._writing("not queued"):
            return self._add("", None, draft, reason)

    def drafts(self, waiting: bool = False) -> list[Rubric]:
        """The last draft of each instruction that was given out, for Label Studio's tasks;
        ``waiting``: only those that are not finished."""
        query = "SELECT draft FROM drafts WHERE NOT (? AND finished) ORDER BY id"
        drafts = [_of_text(text) for (text,) in self._read(query, waiting)]
        return list({draft.instruction_id: draft for draft in drafts}.values())

    def next_item(self, reviewer: str) -> Item | None:
        """The reviewer's first unfinished draft, else one from the queue, else None."""
        waiting = [number for number, finished in self.listed(reviewer) if not finished]
        if not waiting:
            with self._writing("nothing taken from the queue"):
                taken = self._db.execute(
                    "UPDATE items SET reviewer = ? WHERE id = (SELECT min(id) FROM drafts"
                    " WHERE reviewer IS NULL AND NOT finished) RETURNING id",
                    [reviewer],
                )
                waiting = [number for (number,) in taken]
        return self.item(waiting[0]) if waiting else None

    def listed(self, reviewer: str) -> list[tuple[int, bool]]:
        """(item id, finished) of every draft dealt out to a reviewer, in order."""
        query = "SELECT id, finished FROM drafts WHERE reviewer = ? ORDER BY id"
        return [(number, bool(finished)) for number, finished in self._read(query, reviewer)]

    def item(self, number: int) -> Item:
        """A draft as it stands."""
        rows = self._read("SELECT draft, reason FROM items WHERE id = ?", number)
        if not rows:
            raise KitError(f"{shown(self.path)}: no item {number}; ask next_item for one")
        [(text, reason)] = rows
        log, standing = self.history(number), {}
        for event in log:
            if event["action"] == "withdraw":
                del standing[event["criterion_id"]]
            elif event["action"] != "finish":
                decision = Decision.model_validate_json(event["decision"])
                standing[event["criterion_id"]] = decision
        return Item(
            id=number,
            draft=_of_text(text).model_copy(update={"round": 0}),
            reason=reason,
            version=len(log),
            decisions=standing,
            finished=bool(log) and log[-1]["action"] == "finish",
            saved_at=log[-1]["at"] if log else "",
        )

    def save(self, number: int, decision: Decision, expected_version: int) -> int:
        """Append one decision on an item; the item's next version.

        KitError, and nothing saved, when somebody saved on the item since ``expected_version``, or
        when the decision does not fit the draft. A decision on a finished item opens it again.
        """
        with self._changing(number, expected_version) as item:
            review.check_fit(item.draft, decision)
            self._append(number, decision.reviewer, decision.action, decision)
        return expected_version + 1

    def withdraw(self, number: int, reviewer: str, criterion_id: str, expected_version: int) -> int:
        """Append that the decision on a criterion no longer stands; the item's next version."""
        with self._changing(number, expected_version) as item:
            if criterion_id not in item.decisions:
                raise KitError(f"{criterion_id} is not decided: nothing to take back")
            self._append(number, reviewer, "withdraw", item.decisions[criterion_id])
        return expected_version + 1

    def finish(self, number: int, reviewer: str, expected_version: int) -> int:
        """Close an item, which makes it gold; its next version. KitErrors of ``review.apply``."""
        with self._changing(number, expected_version) as item:
            review.apply(item.draft, item.decisions.values())
            self._append(number, reviewer, "finish")
        return expected_version + 1

    def record(self, drafts: Iterable[Rubric], decisions: Iterable[Decision]) -> None:
        """Append whole reviews that were made elsewhere, and finish them; all of them, or none.

        A review is all decisions of one reviewer on one draft. The same again changes nothing.
        KitErrors as from ``review.apply``, with the reviewer's name.
        """
        draft_of, reviews = review.by_instruction(drafts), {}
        for decision in decisions:
            reviews.setdefault((decision.instruction_id, decision.reviewer), []).append(decision)
        with self._writing("nothing recorded"):
            for (instruction_id, reviewer), made in reviews.items():
                if instruction_id not in draft_of:
                    raise KitError(f"{reviewer} decided on {instruction_id}: no draft of it given")
                draft = draft_of[instruction_id]
                try:
                    review.apply(draft, made)
                except KitError as error:
                    raise KitError(f"{reviewer}, {error}. Nothing was recorded") from None
                item = self._item_for(draft, reviewer)
                if item.finished and list(item.decisions.values()) == made:
                    continue
                for decision in item.decisions.values():
                    self._append(item.id, reviewer, "withdraw", decision)
                for decision in made:
                    self._append(item.id, reviewer, decision.action, decision)
                self._append(item.id, reviewer, "finish")

    def history(self, number: int) -> list[sqlite3.Row]:
        """Every decision on an item, oldest first: at, reviewer, action, criterion_id, decision."""
        return self._read("SELECT * FROM decisions WHERE item = ? ORDER BY id", number)

    def gold(self) -> list[Rubric]:
        """The corrected rubrics of finished drafts, one an instruction (the one given out last)."""
        rows = self._read("SELECT id, draft FROM drafts WHERE finished ORDER BY id")
        golds = [review.apply(_of_text(text), self.item(n).decisions.values()) for n, text in rows]
        return list({gold.instruction_id: gold for gold in golds}.values())

    def reviewed(self, drafts: Sequence[Rubric], reviewers: Sequence[str]) -> list[list[Decision]]:
        """A team as the ``review`` of ``review.rounds``: decisions on each draft, in order.

        The first call opens the round; until all of it is finished, a KitError says who has how
        many left.
        """
        key = self.open_round(drafts, reviewers)
        rows = self._read("SELECT * FROM drafts WHERE round = ? ORDER BY id", key)
        if left := Counter(row["reviewer"] for row in rows if not row["finished"]):
            waiting = ", ".join(f"{name} {count}" for name, count in left.items())
            raise KitError(
                f"{left.total()} of {len(drafts)} drafts wait for review ({waiting}): finish them "
                "on the review page or record them from Label Studio, then run this again"
            )
        items = [self.item(row["id"]) for row in rows]
        made = {item.draft.instruction_id: list(item.decisions.values()) for item in items}
        return [made[draft.instruction_id] for draft in drafts]

    def _add(self, round: str, reviewer: str | None, draft: Rubric, reason: str) -> int:
        """The id of an item, which is made unless it is there."""
        [(number,)] = self._db.execute(
            "INSERT INTO items (round, reviewer, draft, reason) VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET round = round RETURNING id",
            [round, reviewer, _as_text(draft), reason],
        )
        return number

    def _append(self, number: int, reviewer: str, action: str, decision: Decision | None = None):
        at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        of = [decision.criterion_id, decision.model_dump_json()] if decision else ["", None]
        self._db.execute(
            "INSERT INTO decisions (item, reviewer, at, action, criterion_id, decision)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            [number, reviewer, at, action, *of],
        )

    @contextmanager
    def _changing(self, number: int, expected_version: int):
        """A transaction on an item; KitError if it is at another version than the one seen."""
        with self._writing("not saved"):
            item = self.item(number)
            if item.version != expected_version:
                log = self.history(number)
                last = (
                    "{reviewer}: {action} {criterion_id}, {at}".format(**log[-1]) if log else "new"
                )
                raise KitError(
                    f"not saved: item {number} has changed since it was opened ({last}); that "
                    "stays. Look at it as it is now, then decide again"
                )
            yield item

    def _item_for(self, draft: Rubric, reviewer: str) -> Item:
        """Where a review made elsewhere belongs: the reviewer's own item of the draft, else one
        that nobody has begun (of a round, say), else a new one."""
        rows = self._read("SELECT id FROM items WHERE draft = ? ORDER BY id", _as_text(draft))
        items = [self.item(number) for (number,) in rows]
        own = [i for i in items if any(d.reviewer == reviewer for d in i.decisions.values())]
        if fitting := own + [item for item in items if not item.version]:
            return fitting[0]
        return self.item(self._add(f"by {reviewer}", reviewer, draft, ""))


def _as_text(draft: Rubric) -> str:
    """A draft as JSON, a broken one too."""
    return draft.model_dump_json(warnings=False)


def _of_text(text: str) -> Rubric:
    row = json.loads(text)
    return review.unchecked(row["instruction_id"], row["criteria"], row["round"])
