"""Physician review: what becomes of a draft, the store of every decision, and the rounds.

A draft is decided on criterion by criterion (``records.Decision``). ``apply`` makes gold of it,
``Store`` keeps what reviewers decide in SQLite, ``rounds`` is the loop from drafting to gold.
"""

import json
import math
import random
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from promedical_utils.core.records import Criterion, Decision, Rubric
from promedical_utils.core.statistics import wilson
from promedical_utils.core.workspace import KitError, short_hash, shown

SCHEMA = """
CREATE TABLE IF NOT EXISTS rounds (
    number INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, opened TEXT NOT NULL,
    blind INTEGER NOT NULL, seed INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS items (
    id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, round INTEGER REFERENCES rounds,
    reviewer TEXT, draft TEXT NOT NULL, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, reviewer TEXT NOT NULL, opened TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS decisions (
    id INTEGER PRIMARY KEY AUTOINCREMENT, item INTEGER NOT NULL REFERENCES items,
    session INTEGER NOT NULL REFERENCES sessions, at TEXT NOT NULL,
    action TEXT NOT NULL, criterion_id TEXT NOT NULL, decision TEXT);
CREATE INDEX IF NOT EXISTS decisions_of_item ON decisions (item);
CREATE TABLE IF NOT EXISTS typed (
    item INTEGER NOT NULL REFERENCES items, criterion_id TEXT NOT NULL, at TEXT NOT NULL,
    fields TEXT NOT NULL, PRIMARY KEY (item, criterion_id));
CREATE TABLE IF NOT EXISTS places (
    reviewer TEXT PRIMARY KEY, item INTEGER NOT NULL REFERENCES items,
    criterion_id TEXT NOT NULL);
"""


# ---------------------------------------------------------------- a draft and its decisions


def unchecked(instruction_id: str, criteria: Iterable[Mapping], round: int = 0) -> Rubric:
    """A draft that skips the rules of ``Rubric``, so that a broken one can be shown and mended.

    ``criteria`` are rows as a writer gave them. An id that is missing or repeats is replaced, a
    weight that is no finite number is 0; everything else stays as it was written.
    """
    rows, seen = [], set()
    for number, row in enumerate(criteria, 1):
        name = str(row.get("id") or "")
        if not name or name in seen:
            name = f"{instruction_id}-draft-{number}"
        seen.add(name)
        try:
            weight = float(row.get("weight") or 0)
        except (TypeError, ValueError):
            weight = 0.0
        rows.append(
            Criterion.model_construct(
                id=name,
                dimension=str(row.get("dimension") or ""),
                text=str(row.get("text") or ""),
                weight=weight if math.isfinite(weight) else 0.0,
                kind=str(row.get("kind") or "unspecified"),
            )
        )
    return Rubric.model_construct(
        instruction_id=instruction_id, criteria=rows, status="draft", round=round
    )


def broken_rule(draft: Rubric) -> str:
    """The first rule of ``Rubric`` that a draft breaks, as one line; empty if it keeps them all."""
    try:
        Rubric.model_validate(_row(draft))
    except ValidationError as error:
        return _first(error)
    return ""


def apply(draft: Rubric, decisions: Iterable[Decision]) -> Rubric:
    """The corrected rubric, status ``gold``: edits in place, additions last, rejections gone.

    Weights that no longer sum to 1 are divided by their sum: a reviewer sets ratios, not shares.
    KitError when a criterion is undecided or decided twice, when a decision does not fit the
    draft, or when the result breaks a rule of ``Rubric``.
    """
    of, where = {}, f"rubric of {draft.instruction_id}"
    for decision in decisions:
        _fits(draft, decision)
        if decision.criterion_id in of:
            raise KitError(f"{where}: {decision.criterion_id} is decided twice; keep one decision")
        of[decision.criterion_id] = decision
    asked = [c.id for c in draft.criteria]
    missing = [name for name in asked if name not in of]
    if missing:
        raise KitError(f"{where}: no decision on {', '.join(missing)}; accept, edit or reject each")
    order = [*asked, *(name for name in of if name not in asked)]
    kept = [dict(of[name].criterion) for name in order if of[name].criterion]
    total = math.fsum(c["weight"] for c in kept)
    if total > 0 and abs(total - 1) > 1e-6:
        kept = [{**c, "weight": c["weight"] / total} for c in kept]
    corrected = {**_row(draft), "criteria": kept, "status": "gold"}
    try:
        return Rubric.model_validate(corrected)
    except ValidationError as error:
        raise KitError(f"{where}, as corrected: {_first(error)}; change the decision") from None


def passed(draft: Rubric, decisions: Iterable[Decision]) -> bool:
    """Strict pass: the draft keeps every rule, every criterion is accepted, and none is added."""
    decisions = list(decisions)
    return (
        not broken_rule(draft)
        and all(d.action == "accept" for d in decisions)
        and sorted(d.criterion_id for d in decisions) == sorted(c.id for c in draft.criteria)
        and all(_fits(draft, d) for d in decisions)
    )


def _fits(draft: Rubric, decision: Decision) -> bool:
    """True, or a KitError that says why ``decision`` cannot be one on ``draft``."""
    where = f"rubric of {draft.instruction_id}, criterion {decision.criterion_id}"
    found = next((c for c in draft.criteria if c.id == decision.criterion_id), None)
    if decision.instruction_id != draft.instruction_id:
        raise KitError(f"{where}: the decision is on {decision.instruction_id}; leave it out")
    if decision.action == "add" and found:
        raise KitError(f"{where}: added, but the draft has it; save an edit, or choose another id")
    if decision.action != "add" and not found:
        raise KitError(f"{where}: the draft has no such criterion; only an addition may bring one")
    if decision.action == "accept" and dict(decision.criterion) != dict(found):
        raise KitError(f"{where}: accepted, yet not as the draft has it; save it as an edit")
    return True


def _row(draft: Rubric) -> dict:
    # not model_dump: that warns about the very values for which a broken draft is reviewed
    return {**dict(draft), "criteria": [dict(c) for c in draft.criteria]}


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    field = ".".join(map(str, first["loc"]))
    return f"{field}: {first['msg']}" if field else first["msg"].removeprefix("Value error, ")


# ---------------------------------------------------------------- the store


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


class Store:
    """Rounds, drafts, sessions and every decision, in one SQLite file on a local disk.

    Decisions are only ever appended; what stands is the last one on each criterion. What a method
    has returned for is on the disk (WAL, ``synchronous=FULL``). A KitError of a save means that
    this one decision is not stored and that all before it are.
    """

    def __init__(self, path: Path):
        self.path, self._lock = Path(path), threading.RLock()
        with self._told("cannot open"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # JupyterLab answers widgets from a thread that is not the cell's
            self._db = sqlite3.connect(
                self.path, timeout=10, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA synchronous=FULL")
            mode = self._db.execute("PRAGMA journal_mode=WAL").fetchone()[0]
            self._db.executescript(SCHEMA)
        if mode != "wal":
            raise KitError(f"{shown(self.path)}: no write-ahead log here; use a local disk")

    def close(self) -> None:
        self._db.close()

    # -- giving work out

    def open_round(
        self,
        drafts: Sequence[Rubric],
        reviewers: Sequence[str],
        size: int = 500,
        seed: int = 0,
        blind: bool = False,
    ) -> int:
        """Sample ``size`` drafts and deal them out to the reviewers in turn; the round's number.

        The same call again opens nothing and gives the same number. A blind sample is a round of
        its own. A draft that breaks a rule is dealt out with the reason.
        """
        names = [d.instruction_id for d in drafts]
        if not drafts or not reviewers:
            raise KitError("a review round needs drafts and at least one reviewer; none given")
        if len(set(names)) != len(names):
            raise KitError("a review round has two drafts of one instruction; keep one of them")
        drawn = random.Random(f"round-{seed}").sample(list(drafts), min(size, len(drafts)))
        texts = [_text(draft) for draft in drawn]
        key = short_hash(blind, *sorted(texts))
        with self._writing("no round opened") as db:
            known = db.execute("SELECT number FROM rounds WHERE key = ?", [key]).fetchone()
            if known:
                return known[0]
            number = db.execute(
                "INSERT INTO rounds (key, opened, blind, seed) VALUES (?, ?, ?, ?)",
                [key, _now(), blind, seed],
            ).lastrowid
            for place, (draft, text) in enumerate(zip(drawn, texts, strict=True)):
                reviewer = reviewers[place % len(reviewers)]
                self._add(db, number, reviewer, text, broken_rule(draft))
        return number

    def queue(self, draft: Rubric, reason: str) -> int:
        """Hold a draft for whichever reviewer is free, with the reason; the item's id."""
        if not reason.strip():
            raise KitError(f"queue {draft.instruction_id}: say why it is queued")
        with self._writing("not queued") as db:
            return self._add(db, None, None, _text(draft), reason)

    def _add(self, db, number, reviewer, text: str, reason: str) -> int:
        key = short_hash(number, text, reason)
        db.execute(
            "INSERT INTO items (key, round, reviewer, draft, reason) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (key) DO NOTHING",
            [key, number, reviewer, text, reason],
        )
        return db.execute("SELECT id FROM items WHERE key = ?", [key]).fetchone()[0]

    # -- a reviewer at work

    def sign_in(self, reviewer: str) -> Session:
        """A session of ``reviewer``; an earlier one of the same name can save no more.

        Taking over is the rule and not refusing, since a killed kernel never signs out.
        """
        if not reviewer.strip():
            raise KitError("sign in with a name: it stands beside every decision")
        with self._writing("not signed in") as db:
            last = self._last_session(db, reviewer)
            number = db.execute(
                "INSERT INTO sessions (reviewer, opened) VALUES (?, ?)", [reviewer, _now()]
            ).lastrowid
        note = f"the window of {reviewer} from {last[1]} is closed by this one" if last else ""
        return Session(number, reviewer, note)

    def next_item(self, reviewer: str) -> Item | None:
        """The reviewer's first unfinished draft, else one from the queue, else None."""
        own = next((i for i, finished in self.listed(reviewer) if not finished), None)
        if own is None:
            with self._writing("nothing taken from the queue") as db:
                taken = db.execute(
                    "UPDATE items SET reviewer = ? WHERE id = (SELECT min(id) FROM items"
                    " WHERE reviewer IS NULL) RETURNING id",
                    [reviewer],
                ).fetchone()
            own = taken and taken[0]
        return None if own is None else self.item(own)

    def listed(self, reviewer: str) -> list[tuple[int, bool]]:
        """(item id, finished) of everything dealt out to a reviewer, in order."""
        rows = self._read(
            "SELECT id, (SELECT action FROM decisions WHERE item = items.id ORDER BY id DESC"
            " LIMIT 1) FROM items WHERE reviewer = ? ORDER BY id",
            reviewer,
        )
        return [(number, action == "finish") for number, action in rows]

    def item(self, number: int) -> Item:
        """An item as it stands; KitError if there is none of that number."""
        with self._lock, self._told("cannot read"):
            return self._item(self._db, number)

    def save(self, session: Session, number: int, decision: Decision, expected_version: int) -> int:
        """Append one decision on an item; the item's next version.

        KitError, and nothing saved, when somebody saved on the item since ``expected_version``,
        when the session is taken over, or when the decision does not fit the draft. A decision on
        a finished item opens it again.
        """
        row = {**dict(decision), "criterion": decision.criterion and dict(decision.criterion)}
        try:
            decision = Decision.model_validate(row)
        except ValidationError as error:
            raise KitError(f"{decision.criterion_id}: {_first(error)}; edit or reject it") from None
        if decision.reviewer != session.reviewer:
            raise KitError(f"{session.reviewer} cannot save for {decision.reviewer}: sign in")

        def check(item):
            _fits(item.draft, decision)

        return self._append(
            session,
            number,
            expected_version,
            decision.action,
            check,
            decision.criterion_id,
            decision.model_dump_json(),
        )

    def withdraw(
        self, session: Session, number: int, criterion_id: str, expected_version: int
    ) -> int:
        """Append that the decision on a criterion no longer stands; the item's next version."""

        def check(item):
            if criterion_id not in item.decisions:
                raise KitError(f"{criterion_id} is not decided: nothing to take back")

        return self._append(session, number, expected_version, "withdraw", check, criterion_id)

    def finish(self, session: Session, number: int, expected_version: int) -> int:
        """Close an item, which makes it gold; its next version.

        KitError names what is undecided, typed and not saved, or against a rule of ``Rubric``.
        """

        def check(item):
            if item.typed:
                raise KitError(f"typed but not saved: {', '.join(item.typed)}; save or cancel it")
            apply(item.draft, item.decisions.values())

        return self._append(session, number, expected_version, "finish", check)

    def keep(self, session: Session, number: int, criterion_id: str, fields: Mapping | None) -> str:
        """Store what is half typed on a criterion, over what was; None forgets it. When it was."""
        at = _now()
        with self._writing("typed text not kept") as db:
            self._signed_in(db, session)
            if fields is None:
                self._forget(db, number, criterion_id)
            else:
                db.execute(
                    "INSERT OR REPLACE INTO typed VALUES (?, ?, ?, ?)",
                    [number, criterion_id, at, json.dumps(dict(fields))],
                )
        return at

    def stand(self, session: Session, number: int, criterion_id: str) -> None:
        """Remember where the reviewer is."""
        with self._writing("place not kept") as db:
            self._signed_in(db, session)
            row = [session.reviewer, number, criterion_id]
            db.execute("INSERT OR REPLACE INTO places VALUES (?, ?, ?)", row)

    def place(self, reviewer: str) -> tuple[int, str] | None:
        """(item id, criterion id) where the reviewer was last."""
        rows = self._read("SELECT item, criterion_id FROM places WHERE reviewer = ?", reviewer)
        return rows[0] if rows else None

    # -- what came of it

    def history(self, number: int) -> list[dict]:
        """Every event on an item, oldest first: at, reviewer, action, criterion_id, decision."""
        rows = self._read(
            "SELECT d.at, s.reviewer, d.action, d.criterion_id, d.decision FROM decisions d"
            " JOIN sessions s ON s.id = d.session WHERE d.item = ? ORDER BY d.id",
            number,
        )
        names = ("at", "reviewer", "action", "criterion_id", "decision")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def decisions(self) -> list[Decision]:
        """What stands on finished items; ``records.save`` writes it as Parquet."""
        return [d for _, item in self._finished() for d in item.decisions.values()]

    def gold(self) -> list[Rubric]:
        """The corrected rubrics of finished items, one an instruction (the one reviewed last)."""
        made = {
            draft.instruction_id: apply(draft, item.decisions.values())
            for draft, item in self._finished()
        }
        return list(made.values())

    def reviewed(
        self, drafts: Sequence[Rubric], blind: bool, reviewers: Sequence[str]
    ) -> list[list[Decision]]:
        """A team as the ``review`` of ``rounds``: decisions on each draft, in order.

        The first call opens the round; until all of it is finished, a KitError says who has how
        many left. ``functools.partial(store.reviewed, reviewers=[...])`` binds the team.
        """
        number = self.open_round(drafts, reviewers, size=len(drafts), blind=blind)
        rows = self._read("SELECT id, coalesce(reviewer, '') FROM items WHERE round = ?", number)
        found, left = {}, {}
        for name, reviewer in rows:
            item = self.item(name)
            found[item.draft.instruction_id] = list(item.decisions.values())
            left[reviewer] = left.get(reviewer, 0) + (not item.finished)
        if any(left.values()):
            waiting = ", ".join(f"{who} {count}" for who, count in left.items() if count)
            raise KitError(
                f"{sum(left.values())} of {len(rows)} drafts wait for review ({waiting}): finish "
                "them on the review page, then run this again"
            )
        return [found[draft.instruction_id] for draft in drafts]

    # -- inside

    def _finished(self) -> Iterator[tuple[Rubric, Item]]:
        """(draft with its true round, item) of finished items."""
        for number, text in self._read("SELECT id, draft FROM items ORDER BY id"):
            item = self.item(number)
            if item.finished:
                yield _draft(text), item

    def _item(self, db, number: int) -> Item:
        row = db.execute("SELECT draft, reason FROM items WHERE id = ?", [number]).fetchone()
        if row is None:
            raise KitError(f"{shown(self.path)}: no item {number}; ask next_item for one")
        events = db.execute(
            "SELECT action, criterion_id, decision, at FROM decisions WHERE item = ? ORDER BY id",
            [number],
        ).fetchall()
        standing = {}
        for action, criterion_id, text, _ in events:
            if text:
                standing[criterion_id] = Decision.model_validate_json(text)
            elif action == "withdraw":
                standing.pop(criterion_id, None)
        typed = db.execute("SELECT criterion_id, fields, at FROM typed WHERE item = ?", [number])
        typed = typed.fetchall()
        return Item(
            id=number,
            draft=_draft(row[0]).model_copy(update={"round": 0}),
            reason=row[1],
            version=len(events),
            decisions=standing,
            typed={name: json.loads(fields) for name, fields, _ in typed},
            finished=bool(events) and events[-1][0] == "finish",
            saved_at=max((r[-1] for r in (*events, *typed)), default=""),
        )

    def _append(
        self,
        session: Session,
        number: int,
        expected: int,
        action: str,
        check: Callable[[Item], None],
        criterion_id: str = "",
        text: str | None = None,
    ) -> int:
        with self._writing("not saved") as db:
            self._signed_in(db, session)
            item = self._item(db, number)
            if item.version != expected:
                who, what, at = db.execute(
                    "SELECT reviewer, action || ' ' || criterion_id, at FROM decisions d JOIN"
                    " sessions s ON s.id = d.session WHERE item = ? ORDER BY d.id DESC",
                    [number],
                ).fetchone() or ("nobody", "nothing", "")
                raise KitError(
                    f"not saved: item {number} has changed since it was opened ({who}: {what}, "
                    f"{at}); that stays. Look at it as it is now, then decide again"
                )
            check(item)
            db.execute(
                "INSERT INTO decisions (item, session, at, action, criterion_id, decision)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                [number, session.id, _now(), action, criterion_id, text],
            )
            self._forget(db, number, criterion_id)
        return expected + 1

    def _forget(self, db, number: int, criterion_id: str) -> None:
        db.execute("DELETE FROM typed WHERE item = ? AND criterion_id = ?", [number, criterion_id])

    def _last_session(self, db, reviewer: str) -> tuple[int, str] | None:
        return db.execute(
            "SELECT id, opened FROM sessions WHERE reviewer = ? ORDER BY id DESC", [reviewer]
        ).fetchone()

    def _signed_in(self, db, session: Session) -> None:
        last = self._last_session(db, session.reviewer)
        if last is None or last[0] != session.id:
            raise TakenOver(
                f"not saved: {session.reviewer} has signed in elsewhere"
                f"{f' at {last[1]}' if last else ''}; go on there, or run this cell again"
            )

    def _read(self, query: str, *values) -> list[tuple]:
        with self._lock, self._told("cannot read"):
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _writing(self, failure: str):
        """One transaction, taken at its start so that what it reads is what it writes on."""
        with self._lock, self._told(failure):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
                self._db.execute("COMMIT")
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    @contextmanager
    def _told(self, failure: str):
        """SQLite's errors (full disk, read-only, locked, no database) as one line."""
        try:
            yield
        except (sqlite3.DatabaseError, OSError) as error:
            raise KitError(
                f"{failure}: {shown(self.path)}: {error}. What was saved before stays; see to the "
                "disk (space, right to write, nobody else holding the file), then do it again"
            ) from None


class TakenOver(KitError):
    """The reviewer has signed in elsewhere: this session can save no more."""


def _now() -> str:
    return datetime.now(UTC).isoformat(sep=" ", timespec="seconds").replace("+00:00", " UTC")


def _text(draft: Rubric) -> str:
    return json.dumps(_row(draft), sort_keys=True, allow_nan=False, ensure_ascii=False)


def _draft(text: str) -> Rubric:
    row = json.loads(text)
    return unchecked(row["instruction_id"], row["criteria"], row["round"])


# ---------------------------------------------------------------- the rounds

Write = Callable[[list[str], list[Rubric]], Sequence[Rubric]]
Review = Callable[[list[Rubric], bool], Sequence[Sequence[Decision]]]


def rounds(
    ids: Sequence[str],
    write: Write,
    review: Review,
    *,
    target: float,
    size: int = 500,
    blind: int = 200,
    controls: int = 50,
    tolerance: float = 0.05,
    seed: int = 0,
    pool: Sequence[Rubric] = (),
) -> Iterator[tuple[dict, list[Rubric]]]:
    """Rounds of drafting, review and correction; a row of numbers and the gold of each round.

    ``write(ids, pool)`` drafts a rubric for each id, with the gold in ``pool`` as its examples;
    ``review(drafts, blind)`` gives the decisions on each draft, in order. Both must repeat
    themselves when asked again, so that a run that was broken off can be resumed.

    A round: ``size`` drafts are reviewed and corrected, and their gold joins the pool. Then the
    writer with that pool drafts ``blind`` instructions more, and as it was before the first round
    ``controls``; these are mixed, the round taken off, and reviewed blind. The strict pass rate
    and its Wilson interval (95 %) are those of the blind drafts. The controls' rate is the
    reviewers' yardstick: where it rises, they have become lenient, and not the writer better.
    Every gold rubric joins the pool once it is measured; no instruction is drafted twice.

    Ends by ``stop_reason``, or when no instruction is left. KitError when a draft is missing.
    """
    if len(set(ids)) != len(ids):
        raise KitError("an instruction id repeats among those to be drafted; remove one")
    if size < 1 or blind < 1 or controls < 0:
        raise KitError("a review round needs size and blind of 1 or more, controls of 0 or more")
    rng = random.Random(f"review-{seed}")
    left = rng.sample(list(ids), len(ids))
    start, pool, rows = list(pool), list(pool), []
    while left:
        number = len(rows) + 1
        batch, left = left[:size], left[size:]
        measured, left = left[:blind], left[blind:]
        control, left = left[:controls], left[controls:]
        drafts = _drafted(write, batch, pool, number)
        gold, passes = _corrected(drafts, drafts, review(drafts, False))
        pool += gold

        mixed = _drafted(write, measured, pool, number) + _drafted(write, control, start, 0)
        rng.shuffle(mixed)
        # whatever could tell an old draft from a fresh one is taken off
        seen = [draft.model_copy(update={"round": 0}) for draft in mixed]
        more, blind_passes = _corrected(mixed, seen, review(seen, True) if seen else [])
        pool += more
        fresh = [ok for draft, ok in zip(mixed, blind_passes, strict=True) if draft.round]
        old = [ok for draft, ok in zip(mixed, blind_passes, strict=True) if not draft.round]

        low, high = wilson(sum(fresh), len(fresh))
        row = {
            "round": number,
            "reviewed": len(batch),
            "passed": sum(passes),
            "pass_rate": _rate(passes),
            "blind_n": len(fresh),
            "blind_passed": sum(fresh),
            "blind_pass_rate": _rate(fresh),
            "low": low,
            "high": high,
            "control_n": len(old),
            "control_passed": sum(old),
            "control_pass_rate": _rate(old),
        }
        rows.append(row)
        row["stop"] = stop_reason(rows, target, tolerance) or ("" if left else "none left")
        yield row, gold + more
        if row["stop"]:
            return


def stop_reason(rows: Sequence[Mapping], target: float, tolerance: float) -> str:
    """Why the rounds end after ``rows``, or nothing.

    *target reached*: the whole interval of the last blind sample is at or above the target.
    *converged*: the rate of the round before lies in that interval, which is no wider than
    ``tolerance`` to either side: a further round would cost as much and change less than can be
    measured. Both ask for evidence, so that a small blind sample cannot end the rounds early.
    """
    last = rows[-1]
    if not last["blind_n"]:
        return ""
    if last["low"] >= target:
        return "target reached"
    if len(rows) > 1 and (last["high"] - last["low"]) / 2 <= tolerance:
        if last["low"] <= rows[-2]["blind_pass_rate"] <= last["high"]:
            return "converged"
    return ""


def _drafted(write: Write, ids: list[str], pool: list[Rubric], number: int) -> list[Rubric]:
    """One draft for each id, in order, marked with its round."""
    drafts = list(write(list(ids), list(pool))) if ids else []
    of = {draft.instruction_id: draft for draft in drafts}
    missing = [name for name in ids if name not in of]
    if missing or len(drafts) != len(ids):
        raise KitError(
            f"round {number}: asked for {len(ids)} drafts, got {len(drafts)}, "
            f"{len(missing)} missing{f' (first {missing[0]})' if missing else ''}; "
            "one draft for each instruction, a broken one by review.unchecked"
        )
    return [of[name].model_copy(update={"round": number, "status": "draft"}) for name in ids]


def _corrected(drafts, seen, decided) -> tuple[list[Rubric], list[bool]]:
    if len(decided) != len(drafts):
        raise KitError(f"{len(drafts)} drafts reviewed, {len(decided)} decided on; decide on each")
    both = list(zip(drafts, decided, strict=True))
    passes = [passed(draft, made) for draft, made in zip(seen, decided, strict=True)]
    return [apply(draft, made) for draft, made in both], passes


def _rate(passes: list[bool]) -> float | None:
    return round(sum(passes) / len(passes), 4) if passes else None
