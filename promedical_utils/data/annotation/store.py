"""The one store of annotation: what people were given and every decision of theirs, in SQLite.

Review page, Label Studio and adjudication keep their decisions here. An item is a draft to review,
or an answer to label by one criterion. What becomes of it is a log of events that is only ever
appended to (store.sql); an item as it stands is its log, replayed.
"""

import json
import random
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from promedical_utils.core.records import Decision, Rubric
from promedical_utils.core.workspace import KitError, short_hash, shown
from promedical_utils.data.annotation import review

SCHEMA = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Session:
    """One signing-in of a reviewer; ``note`` says what it did to an earlier one, or is empty."""

    id: int
    reviewer: str
    note: str


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
    typed: dict[str, dict]
    finished: bool
    saved_at: str


class TakenOver(KitError):
    """The reviewer has signed in elsewhere: this session can save no more."""


class Store:
    """Drafts, labels and every decision on them, in one SQLite file on a local disk.

    What stands is the last decision on each criterion. What a method has returned for is on the
    disk (WAL, ``synchronous=FULL``). A KitError of a save means that this one decision is not
    stored and that all before it are.
    """

    def __init__(self, path: Path):
        self.path, self._lock = Path(path), threading.RLock()
        with self._explained("cannot open"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # JupyterLab answers widgets from a thread that is not the cell's
            self._db = sqlite3.connect(
                self.path, timeout=10, isolation_level=None, check_same_thread=False
            )
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA synchronous=FULL")
            mode = self._db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            try:
                self._db.executescript(SCHEMA)
            except sqlite3.OperationalError as error:
                if "no such column" not in str(error):
                    raise
                raise KitError(
                    f"{shown(self.path)}: a store of the kit as it was before its rooms; read its "
                    "decisions with that version, and record them in a new store"
                ) from None
        if mode != "wal":
            raise KitError(f"{shown(self.path)}: no write-ahead log here; use a local disk")

    def close(self) -> None:
        self._db.close()

    def open_round(
        self, drafts: Sequence[Rubric], reviewers: Sequence[str], size=500, seed=0, blind=False
    ) -> str:
        """Sample ``size`` drafts and deal them out to the reviewers in turn; the round's key.

        The same call again deals out nothing and gives the same key. A blind sample is a round of
        its own. A draft that breaks a rule is dealt out with the reason.
        """
        if not drafts or not reviewers:
            raise KitError("a review round needs drafts and at least one reviewer; none given")
        review.by_instruction(drafts)
        drawn = random.Random(f"round-{seed}").sample(list(drafts), min(size, len(drafts)))
        texts = [review.as_text(draft) for draft in drawn]
        key = short_hash(blind, *sorted(texts))
        with self._writing("no round opened"):
            for place, (draft, text) in enumerate(zip(drawn, texts, strict=True)):
                reviewer = reviewers[place % len(reviewers)]
                self._add("draft", key, reviewer, text, review.broken_rule(draft))
        return key

    def queue(self, draft: Rubric, reason: str) -> int:
        """Hold a draft for whichever reviewer is free, with the reason; the item's id."""
        if not reason.strip():
            raise KitError(f"queue {draft.instruction_id}: say why it is queued")
        with self._writing("not queued"):
            return self._add("draft", "", None, review.as_text(draft), reason)

    def drafts(self, waiting: bool = False) -> list[Rubric]:
        """Drafts that were given out, the last one of each instruction, to make Label Studio's
        tasks of; ``waiting``: only those that are not finished."""
        query = "SELECT content FROM drafts WHERE NOT (? AND finished) ORDER BY id"
        drafts = [review.of_text(text) for (text,) in self._read(query, waiting)]
        return list({draft.instruction_id: draft for draft in drafts}.values())

    def sign_in(self, reviewer: str) -> Session:
        """A session of ``reviewer``; an earlier one of the same name can save no more.

        Taking over is the rule and not refusing, since a killed kernel never signs out.
        """
        if not reviewer.strip():
            raise KitError("sign in with a name: it stands beside every decision")
        with self._writing("not signed in"):
            last = self._last(reviewer, "sign in")
            self._append(None, reviewer, "sign in")
            number = self._last(reviewer, "sign in")["id"]
        note = f"the window of {reviewer} from {last['at']} is closed by this one" if last else ""
        return Session(number, reviewer, note)

    def next_item(self, reviewer: str) -> Item | None:
        """The reviewer's first unfinished draft, else one from the queue, else None."""
        number = next((n for n, finished in self.listed(reviewer) if not finished), None)
        if number is None:
            with self._writing("nothing taken from the queue"):
                taken = self._db.execute(
                    "UPDATE items SET reviewer = ? WHERE id = (SELECT min(id) FROM drafts"
                    " WHERE reviewer IS NULL AND NOT finished) RETURNING id",
                    [reviewer],
                ).fetchone()
            number = taken and taken[0]
        return None if number is None else self.item(number)

    def listed(self, reviewer: str) -> list[tuple[int, bool]]:
        """(item id, finished) of every draft dealt out to a reviewer, in order."""
        query = "SELECT id, finished FROM drafts WHERE reviewer = ? ORDER BY id"
        return [(row["id"], bool(row["finished"])) for row in self._read(query, reviewer)]

    def item(self, number: int) -> Item:
        """A draft as it stands; KitError if there is none of that number."""
        rows = self._read("SELECT * FROM drafts WHERE id = ?", number)
        if not rows:
            raise KitError(f"{shown(self.path)}: no item {number}; ask next_item for one")
        query = "SELECT * FROM events WHERE item = ? AND action <> 'stand' ORDER BY id"
        standing, typed, saved_at = {}, {}, ""
        for event in self._read(query, number):
            action, criterion_id, value = event["action"], event["criterion_id"], event["value"]
            saved_at = event["at"]
            typed.pop(criterion_id, None)
            if action == "type" and value:
                typed[criterion_id] = json.loads(value)
            elif action == "withdraw":
                standing.pop(criterion_id, None)
            elif action != "type" and value:
                standing[criterion_id] = Decision.model_validate_json(value)
        return Item(
            id=number,
            draft=review.of_text(rows[0]["content"]).model_copy(update={"round": 0}),
            reason=rows[0]["reason"],
            version=rows[0]["version"],
            decisions=standing,
            typed=dict(sorted(typed.items())),  # an order that typing on does not change
            finished=bool(rows[0]["finished"]),
            saved_at=saved_at,
        )

    def save(self, session: Session, number: int, decision: Decision, expected_version: int) -> int:
        """Append one decision on an item; the item's next version.

        KitError, and nothing saved, when somebody saved on the item since ``expected_version``,
        when the session is taken over, or when the decision does not fit the draft. A decision on
        a finished item opens it again.
        """
        decision = review.validated(decision)
        if decision.reviewer != session.reviewer:
            raise KitError(f"{session.reviewer} cannot save for {decision.reviewer}: sign in")
        return self._decide(session, number, expected_version, *_event(decision))

    def withdraw(
        self, session: Session, number: int, criterion_id: str, expected_version: int
    ) -> int:
        """Append that the decision on a criterion no longer stands; the item's next version."""
        return self._decide(session, number, expected_version, "withdraw", criterion_id)

    def finish(self, session: Session, number: int, expected_version: int) -> int:
        """Close an item, which makes it gold; its next version.

        KitError names what is undecided, typed and not saved, or against a rule of ``Rubric``.
        """
        return self._decide(session, number, expected_version, "finish")

    def keep(self, session: Session, number: int, criterion_id: str, fields: Mapping | None) -> str:
        """Store what is half typed on a criterion; None forgets it. When it was stored."""
        text = None if fields is None else json.dumps(dict(fields))
        return self._note(session, number, "type", criterion_id, text)

    def stand(self, session: Session, number: int, criterion_id: str) -> None:
        """Remember where the reviewer is."""
        self._note(session, number, "stand", criterion_id)

    def place(self, reviewer: str) -> tuple[int, str] | None:
        """(item id, criterion id) where the reviewer was last."""
        last = self._last(reviewer, "stand")
        return (last["item"], last["criterion_id"]) if last else None

    def record(self, drafts: Iterable[Rubric], decisions: Iterable[Decision]) -> None:
        """Append whole reviews that were made elsewhere, and finish them; all of them, or none.

        A review is all decisions of one reviewer on one draft. It goes to the reviewer's own item
        of that draft, else to one that nobody has begun (of a round, say), else to a new one. The
        same again changes nothing. KitErrors as from ``review.apply``, with the reviewer's name.
        """
        draft_of, reviews = review.by_instruction(drafts), {}
        for decision in decisions:
            reviews.setdefault((decision.instruction_id, decision.reviewer), []).append(decision)
        with self._writing("nothing recorded"):
            for (instruction_id, reviewer), made in reviews.items():
                draft = draft_of.get(instruction_id)
                if draft is None:
                    raise KitError(
                        f"{reviewer} decided on {instruction_id}: no draft of it is given"
                    )
                try:
                    review.apply(draft, made)
                except KitError as error:
                    raise KitError(f"{reviewer}, {error}. Nothing was recorded") from None
                item = self._item_for(draft, reviewer)
                if item.finished and list(item.decisions.values()) == made:
                    continue
                for criterion_id in item.decisions:
                    self._append(item.id, reviewer, "withdraw", criterion_id)
                for decision in made:
                    self._append(item.id, reviewer, *_event(decision))
                self._append(item.id, reviewer, "finish")

    def history(self, number: int) -> list[dict]:
        """Every decision on an item, oldest first: at, reviewer, action, criterion_id, decision."""
        columns = "at, reviewer, action, criterion_id, decision"
        query = f"SELECT {columns} FROM decisions WHERE item = ? ORDER BY id"
        return [dict(row) for row in self._read(query, number)]

    def decisions(self) -> list[Decision]:
        """What stands on finished drafts; ``records.save`` writes it as Parquet."""
        return [d for _, item in self._finished() for d in item.decisions.values()]

    def gold(self) -> list[Rubric]:
        """The corrected rubrics of finished drafts, one an instruction (the one reviewed last)."""
        gold_of = {}
        for draft, item in self._finished():
            gold_of[draft.instruction_id] = review.apply(draft, item.decisions.values())
        return list(gold_of.values())

    def reviewed(
        self, drafts: Sequence[Rubric], blind: bool, reviewers: Sequence[str]
    ) -> list[list[Decision]]:
        """A team as the ``review`` of ``review.rounds``: decisions on each draft, in order.

        The first call opens the round; until all of it is finished, a KitError says who has how
        many left. ``functools.partial(store.reviewed, reviewers=[...])`` binds the team.
        """
        key = self.open_round(drafts, reviewers, size=len(drafts), blind=blind)
        left = self._read(
            "SELECT reviewer, count(*) FROM drafts WHERE round = ? AND NOT finished"
            " GROUP BY reviewer ORDER BY min(id)",
            key,
        )
        if left:
            waiting = ", ".join(f"{name} {count}" for name, count in left)
            raise KitError(
                f"{sum(count for _, count in left)} of {len(drafts)} drafts wait for review "
                f"({waiting}): finish them on the review page or record them from Label Studio, "
                "then run this again"
            )
        numbers = self._read("SELECT id FROM drafts WHERE round = ?", key)
        items = {item.draft.instruction_id: item for item in (self.item(n) for (n,) in numbers)}
        return [list(items[draft.instruction_id].decisions.values()) for draft in drafts]

    def give_labels(self, round: str, tasks: Iterable[Mapping]) -> None:
        """Give out tasks of labelling: ``task_id``, ``reviewer``, ``criterion_id`` and whatever
        else the key to them holds. The same again changes nothing."""
        with self._writing("nothing handed out"):
            for task in tasks:
                self._add("label", round, task["reviewer"], json.dumps(dict(task)), "")

    def label(self, round: str, verdicts: Mapping[str, str | None]) -> None:
        """Append the verdicts, by task id, that differ from what stands; None takes one back."""
        with self._writing("no label saved"):
            for number, text, standing in self._read(
                "SELECT id, content, verdict FROM labels WHERE round = ?", round
            ):
                task = json.loads(text)
                verdict = verdicts.get(task["task_id"], standing)
                if verdict != standing:
                    event = "label", task["criterion_id"], verdict
                    self._append(number, task["reviewer"], *event)

    def labels(self, round: str) -> list[dict]:
        """The tasks of a round in their order, each with the ``verdict`` that stands, or None."""
        query = "SELECT content, verdict FROM labels WHERE round = ? ORDER BY id"
        return [
            json.loads(text) | {"verdict": verdict} for text, verdict in self._read(query, round)
        ]

    def _add(self, kind: str, round: str, reviewer: str | None, content: str, reason: str) -> int:
        """The id of an item, which is made unless it is there; within a transaction."""
        key = short_hash(round, content, reason)
        self._db.execute(
            "INSERT INTO items (key, kind, round, reviewer, content, reason)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING",
            [key, kind, round, reviewer, content, reason],
        )
        return self._db.execute("SELECT id FROM items WHERE key = ?", [key]).fetchone()[0]

    def _append(
        self, number: int | None, reviewer: str, action: str, criterion_id="", value=None
    ) -> str:
        """Append an event within a transaction; when it was."""
        at = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        self._db.execute(
            "INSERT INTO events (item, reviewer, at, action, criterion_id, value)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            [number, reviewer, at, action, criterion_id, value],
        )
        return at

    def _note(self, session: Session, number: int, *event) -> str:
        """Append what is no decision, whatever the item's version; when it was."""
        with self._writing("not saved"):
            self._check_session(session)
            return self._append(number, session.reviewer, *event)

    def _decide(self, session: Session, number: int, expected: int, action: str, *rest) -> int:
        """Append a decision (action, criterion id, text) to an item that is at version
        ``expected``, if it can be one there; the next version."""
        with self._writing("not saved"):
            self._check_session(session)
            item = self.item(number)
            if item.version != expected:
                last = "nothing is decided on it"
                for row in self.history(number)[-1:]:
                    last = "{reviewer}: {action} {criterion_id}, {at}".format(**row)
                raise KitError(
                    f"not saved: item {number} has changed since it was opened ({last}); that "
                    "stays. Look at it as it is now, then decide again"
                )
            if action == "withdraw" and rest[0] not in item.decisions:
                raise KitError(f"{rest[0]} is not decided: nothing to take back")
            elif action == "finish" and item.typed:
                raise KitError(f"typed but not saved: {', '.join(item.typed)}; save or cancel it")
            elif action == "finish":
                review.apply(item.draft, item.decisions.values())
            elif action != "withdraw":
                review.check_fit(item.draft, Decision.model_validate_json(rest[1]))
            self._append(number, session.reviewer, action, *rest)
        return expected + 1

    def _item_for(self, draft: Rubric, reviewer: str) -> Item:
        """The item that a whole review of ``draft`` by ``reviewer`` belongs to."""
        text = review.as_text(draft)
        rows = self._read("SELECT id FROM drafts WHERE content = ? ORDER BY id", text)
        items = [self.item(number) for (number,) in rows]
        own = [i for i in items if any(d.reviewer == reviewer for d in i.decisions.values())]
        fresh = [item for item in items if not item.version and not item.typed]
        if own or fresh:
            return (own + fresh)[0]
        return self.item(self._add("draft", f"by {reviewer}", reviewer, text, ""))

    def _finished(self) -> Iterator[tuple[Rubric, Item]]:
        """(draft with its true round, item) of finished items."""
        for number, text in self._read("SELECT id, content FROM drafts WHERE finished ORDER BY id"):
            yield review.of_text(text), self.item(number)

    def _last(self, reviewer: str, action: str) -> sqlite3.Row | None:
        """The last event of that action by a reviewer: id, item, criterion_id, at."""
        query = "SELECT * FROM last_events WHERE reviewer = ? AND action = ?"
        return next(iter(self._read(query, reviewer, action)), None)

    def _check_session(self, session: Session) -> None:
        last = self._last(session.reviewer, "sign in")
        if last is None or last["id"] != session.id:
            since = f" at {last['at']}" if last else ""
            raise TakenOver(
                f"not saved: {session.reviewer} has signed in elsewhere{since}; go on there, or "
                "run this cell again"
            )

    def _read(self, query: str, *values) -> list[sqlite3.Row]:
        with self._lock, self._explained("cannot read"):
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _writing(self, failure: str):
        """One transaction, taken at its start so that what it reads is what it writes on."""
        with self._lock, self._explained(failure):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    @contextmanager
    def _explained(self, failure: str):
        """SQLite's errors (full disk, read-only, locked, no database) as one line."""
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            raise KitError(
                f"{failure}: {shown(self.path)}: {error}. What was saved before stays; see to the "
                "disk (space, right to write, nobody else holding the file), then do it again"
            ) from None


def _event(decision: Decision) -> tuple[str, str, str]:
    return decision.action, decision.criterion_id, decision.model_dump_json()
