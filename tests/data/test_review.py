"""Review: what becomes of a draft, the store that loses nothing, and the rounds."""

import json
import math
import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from promedical_utils.core import records
from promedical_utils.core.records import Criterion, Decision, Rubric
from promedical_utils.core.workspace import KitError
from promedical_utils.data.annotation import review
from promedical_utils.data.annotation.review import (
    apply,
    passed,
    rounds,
    stop_reason,
    unchecked,
)
from promedical_utils.data.annotation.store import Store


def criterion(name, dimension="proficiency", weight=0.0, text="gives the dose"):
    return Criterion(id=name, dimension=dimension, weight=weight, text=text)


def draft(name="i1", round=3):
    """Two weighted criteria, one bonus, one safety."""
    criteria = [
        criterion("p1", weight=0.75),
        criterion("p2", weight=0.25),
        criterion("e", "excellence"),
        criterion("s", "safety"),
    ]
    return Rubric(instruction_id=name, criteria=criteria, status="draft", round=round)


def decide(of, name, action="accept", by="ann", reason="", **changed):
    found = next((dict(c) for c in of.criteria if c.id == name), {"id": name, "weight": 0.0})
    made = None if action == "reject" else {**found, **changed}
    return Decision(
        instruction_id=of.instruction_id,
        criterion_id=name,
        reviewer=by,
        action=action,
        criterion=made,
        reason=reason,
    )


def accepted(of, by="ann"):
    return [decide(of, c.id, by=by) for c in of.criteria]


def with_decisions(of, *changed):
    return [*{d.criterion_id: d for d in (*accepted(of), *changed)}.values()]


def finished(store, *reviewers):
    """What stands on the finished drafts of reviewers."""
    items = [store.item(n) for who in reviewers for n, done in store.listed(who) if done]
    return [decision for item in items for decision in item.decisions.values()]


# ---------------------------------------------------------------- decisions on a draft


def test_gold_is_the_draft_edited_in_place_shortened_and_added_to():
    d = draft()
    made = apply(
        d,
        with_decisions(
            d,
            decide(d, "p1", "edit", text="states 5 units", weight=0.5),
            decide(d, "e", "reject", reason="twice"),
            decide(d, "a1", "add", dimension="safety", text="warns of the sign"),
        ),
    )
    assert [c.id for c in made.criteria] == ["p1", "p2", "s", "a1"]
    assert [c.text for c in made.criteria[:2]] == ["states 5 units", "gives the dose"]
    # 0.5 and 0.25: two thirds and one third
    assert [c.weight for c in made.criteria] == [pytest.approx(2 / 3), pytest.approx(1 / 3), 0, 0]
    assert (made.status, made.round, made.instruction_id) == ("gold", 3, "i1")
    assert apply(d, accepted(d)).criteria == d.criteria


def test_what_cannot_be_applied_is_named():
    d, other = draft(), draft("i2")
    wrong = {
        "no decision on p2, s;": [x for x in accepted(d) if x.criterion_id in ("p1", "e")],
        "p1 is decided twice": [*accepted(d), decide(d, "p1")],
        "the decision is on i2": [*accepted(d)[1:], decide(other, "p1")],
        "no such criterion": [*accepted(d), decide(draft(), "x", "reject", reason="?")],
        "the draft has it": with_decisions(d, decide(d, "e", "add")),
        "save it as an edit": with_decisions(d, decide(d, "e", text="other words")),
        "no proficiency weight": with_decisions(
            d, *(decide(d, p, "reject", reason="?") for p in ("p1", "p2"))
        ),
        "only proficiency criteria": with_decisions(d, decide(d, "s", "edit", weight=0.5)),
    }
    for says, decisions in wrong.items():
        with pytest.raises(KitError, match=f"^rubric of i1.*{says}") as error:
            apply(d, decisions)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="needs a reason"):
        decide(d, "e", "reject", reason=" ")


def test_a_strict_pass_is_every_criterion_as_it_was_and_nothing_more():
    d = draft()
    assert passed(d, accepted(d))
    for change in (
        decide(d, "s", "edit", text="other"),
        decide(d, "s", "reject", reason="wrong"),
        decide(d, "a1", "add", dimension="safety", text="more"),
    ):
        assert not passed(d, with_decisions(d, change))
    assert not passed(d, accepted(d)[:-1])  # not decided is not passed
    broken = unchecked("i1", [{**dict(c), "weight": 0.1} for c in d.criteria[:2]])
    assert not passed(broken, accepted(broken))  # whatever a reviewer says of it


ACTIONS = st.lists(st.sampled_from(["accept", "reject", "edit"]), min_size=4, max_size=4)


@given(ACTIONS, st.floats(0.01, 1))
def test_weights_keep_their_ratios_and_sum_to_one(actions, weight):
    d = draft()
    given_ = []
    for c, action in zip(d.criteria, actions, strict=True):
        changed = {"weight": weight} if action == "edit" and c.weight else {}
        given_.append(decide(d, c.id, action, reason="r", **changed))
    if actions[:2] == ["reject", "reject"]:
        if actions[2] == "reject" and actions[3] != "reject":
            assert [c.id for c in apply(d, given_).criteria] == ["s"]  # a veto alone is allowed
            return
        with pytest.raises(KitError, match="no proficiency weight|criteria: "):
            apply(d, given_)
        return
    made = {c.id: c.weight for c in apply(d, given_).criteria}
    assert math.fsum(made.values()) == pytest.approx(1)
    if {"p1", "p2"} <= made.keys():
        first, second = (x.criterion.weight for x in given_[:2])
        assert made["p1"] / made["p2"] == pytest.approx(first / second)


BROKEN = [
    {"id": "c", "dimension": "style", "text": "is kind", "weight": 0.0},
    {"dimension": "proficiency", "text": "gives the dose", "weight": 0.3},
    {"dimension": "proficiency", "text": "names the drug", "weight": math.nan},
]


def test_a_broken_draft_is_queued_with_the_reason_and_mended(tmp_path):
    store = Store(tmp_path / "review.sqlite")
    bad = unchecked("i9", BROKEN, round=2)
    assert "dimension" in review.broken_rule(bad) and not review.broken_rule(draft())
    number = store.queue(bad, "the weights do not sum to 1, asked for twice")
    assert store.queue(bad, "the weights do not sum to 1, asked for twice") == number
    item = store.next_item("ann")
    assert item.id == number and item.reason.startswith("the weights")
    assert store.next_item("bob") is None  # ann has it
    names = [c.id for c in item.draft.criteria]
    assert names[0] == "c" and len(set(names)) == 3
    assert [c.weight for c in item.draft.criteria] == [0.0, 0.3, 0.0]
    with pytest.raises(KitError, match="^c: criterion.dimension: Input should be 'proficiency'"):
        review.make_decision(bad, "ann", "c", "accept", dict(bad.criteria[0]))
    decisions = [
        decide(item.draft, names[0], "edit", dimension="excellence"),
        decide(item.draft, names[1]),
        decide(item.draft, names[2]),
    ]
    for version, decision in enumerate(decisions):
        store.save(number, decision, version)
    store.finish(number, "ann", 3)
    [gold] = store.gold()
    assert gold.round == 2 and [(c.dimension, c.weight) for c in gold.criteria] == [
        ("excellence", 0),
        ("proficiency", 1),
        ("proficiency", 0),
    ]
    nothing = store.queue(unchecked("i10", []), 'not JSON: {"criteria": [')
    assert store.next_item("ann").id == nothing and not store.next_item("ann").draft.criteria


# ---------------------------------------------------------------- the store


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "review.sqlite")
    yield made
    made.close()


def test_a_round_is_shuffled_dealt_out_and_tells_nothing(store):
    drafts = [draft(f"i{n}", round=n % 3) for n in range(30)]
    key = store.open_round(drafts, ["ann", "bob"])
    assert store.open_round(drafts, ["ann", "bob"]) == key
    assert store.open_round(drafts[1:], ["ann"]) != key
    dealt = {who: [store.item(n) for n, _ in store.listed(who)] for who in ("ann", "bob")}
    ids = [item.draft.instruction_id for items in dealt.values() for item in items]
    assert len(dealt["bob"]) == 15 and len(ids) == 59
    first = [i.draft.instruction_id for i in dealt["ann"][:15] + dealt["bob"]]
    assert len(set(first)) == 30 and set(first[:15]) != {d.instruction_id for d in drafts[::2]}
    told = [vars(item) for items in dealt.values() for item in items]
    assert {row["draft"].round for row in told} == {0} and {row["reason"] for row in told} == {""}
    assert not {"round", "blind", "source"} & set(told[0])


def test_an_item_that_is_not_there_and_a_page_over_a_store_made_anew(store):
    with pytest.raises(KitError, match="no item 99; ask next_item"):
        store.item(99)
    number = store.queue(draft(), "why")
    with pytest.raises(KitError, match=r"has changed since it was opened \(new\)"):
        store.finish(number, "ann", 3)


def test_every_decision_stays_and_the_last_one_stands(store, tmp_path):
    d = draft(round=1)
    store.open_round([d], ["ann"])
    number = store.next_item("ann").id
    done = [
        decide(d, "p1", "edit", text="twice"),
        decide(d, "p1"),
        *accepted(d)[1:],
        decide(d, "a", "add", dimension="safety", text="more"),
    ]
    for version, decision in enumerate(done):
        assert store.save(number, decision, version) == version + 1
    assert store.withdraw(number, "ann", "a", 6) == 7
    assert not store.gold()
    assert store.finish(number, "ann", 7) == 8

    again = Store(tmp_path / "review.sqlite")  # as after a restart
    assert again.next_item("ann") is None
    assert again.gold() == [apply(d, accepted(d))]
    assert [e["action"] for e in again.history(number)] == [
        "edit",
        "accept",
        "accept",
        "accept",
        "accept",
        "add",
        "withdraw",
        "finish",
    ]
    assert json.loads(again.history(number)[0]["decision"])["criterion"]["text"] == "twice"
    path = records.save(finished(again, "ann"), tmp_path / "decisions.parquet")
    assert records.load(path, Decision, "01_rubrics") == accepted(d)

    again.save(number, decide(d, "e", "reject", reason="no"), 8)  # opens it again
    assert again.next_item("ann").id == number and not again.gold()
    again.finish(number, "ann", 9)
    assert [c.id for c in again.gold()[0].criteria] == ["p1", "p2", "s"]


def test_two_reviewers_saving_at_once_lose_nothing(tmp_path):
    path, n = tmp_path / "review.sqlite", 12
    Store(path).open_round([draft(f"i{k}") for k in range(n)], ["ann"])
    start, said, failed = threading.Barrier(2), {"ann": [], "bob": []}, []

    def work(who):
        store = Store(path)  # a store of one's own, as two kernels have
        for number in range(1, n + 1):
            name = store.item(number).draft.instruction_id
            decision = decide(draft(name), "p1", "edit", by=who, text=f"as {who} says")
            start.wait(20)
            try:
                said[who].append(store.save(number, decision, 0))
            except KitError as error:
                failed.append((who, number, str(error)))

    threads = [threading.Thread(target=work, args=[who]) for who in said]
    [t.start() for t in threads], [t.join() for t in threads]
    assert len(failed) == n == sum(map(len, said.values()))
    store = Store(path)
    for loser, number, error in failed:
        winner = {"ann": "bob", "bob": "ann"}[loser]
        assert f"item {number} has changed" in error and f"({winner}: edit p1" in error
        item = store.item(number)
        assert (item.version, item.decisions["p1"].criterion.text) == (1, f"as {winner} says")
        again = decide(item.draft, "p1", "edit", by=loser, text="seen, and still")
        assert store.save(number, again, item.version) == 2
        assert [e["reviewer"] for e in store.history(number)] == [winner, loser]


def full(store):
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")


def room(store):
    store._db.execute("PRAGMA max_page_count = 1000000")


def no_large_file(store):
    size = os.path.getsize(f"{store.path}-wal")
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def any_file(store):
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def readonly(store):
    store._db.execute("PRAGMA query_only = ON")


def writable(store):
    store._db.execute("PRAGMA query_only = OFF")


def held(store):
    store._db.execute("PRAGMA busy_timeout = 50")
    store.other = sqlite3.connect(store.path, isolation_level=None)
    store.other.execute("BEGIN EXCLUSIVE")


def free(store):
    store.other.execute("ROLLBACK")
    store.other.close()


@pytest.mark.parametrize(
    ("trouble", "mend", "says"),
    [
        (full, room, "database or disk is full"),
        (no_large_file, any_file, "disk I/O error|disk is full"),
        (readonly, writable, "readonly database"),
        (held, free, "database is locked"),
    ],
)
def test_a_disk_in_trouble_is_one_clear_error_and_keeps_what_was_saved(store, trouble, mend, says):
    d = draft()
    store.open_round([d], ["ann"])
    store.save(1, decide(d, "p1"), 0)
    long = decide(d, "p2", "edit", text="dose " * 4000)
    trouble(store)
    try:
        with pytest.raises(KitError, match=f"^not saved: review.sqlite: .*({says})") as error:
            store.save(1, long, 1)
    finally:
        mend(store)
    assert "What was saved before stays" in str(error.value) and "\n" not in str(error.value)
    item = store.item(1)
    assert item.version == 1 and list(item.decisions) == ["p1"]
    assert store.save(1, long, 1) == 2  # the same save, once the trouble is over
    assert Store(store.path).item(1).decisions["p2"] == long


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "x.sqlite").write_text("no database, but long enough to be read as one" * 9)
    with pytest.raises(KitError, match="cannot open: x.sqlite: file is not a database"):
        Store(tmp_path / "x.sqlite")
    (tmp_path / "folder.sqlite").mkdir()
    with pytest.raises(KitError, match="cannot open: folder.sqlite: unable to open"):
        Store(tmp_path / "folder.sqlite")


# ---------------------------------------------------------------- reviews made elsewhere


def test_whole_reviews_are_recorded_once_and_all_or_none(store):
    drafts = [draft("i1"), draft("i2")]
    store.open_round(drafts, ["ann"])
    assert store.drafts() == store.drafts(waiting=True)
    assert {d.instruction_id: d.round for d in store.drafts()} == {"i1": 3, "i2": 3}
    edited = with_decisions(drafts[0], decide(drafts[0], "s", "edit", by="two", text="the sign"))
    two = [d.model_copy(update={"reviewer": "two"}) for d in edited]
    three = accepted(drafts[0], by="three")
    broken = [decide(drafts[1], c.id, "reject", by="two", reason="no") for c in drafts[1].criteria]
    short = accepted(drafts[1], by="two")[:-1]
    for wrong, says in (
        (broken, "two, rubric of i2, as corrected: criteria"),
        (short, "two, rubric of i2: no decision on s"),
        (accepted(draft("i9"), by="two"), "two decided on i9: no draft of it"),
    ):
        with pytest.raises(KitError, match=says):
            store.record(drafts, [*two, *wrong])
        assert len(store.drafts(waiting=True)) == 2 and not store.history(1)
    for _ in range(2):  # the same again changes nothing
        store.record(drafts, [*two, *three])
        assert [len(store.history(n)) for n, _ in store.listed("ann")].count(5) == 1
    assert finished(store, "ann", "three") == [
        *two,
        *three,
    ]  # ann's item of the round, and one of its own
    assert [d.instruction_id for d in store.drafts(waiting=True)] == ["i2"]
    assert [g.criteria[-1].text for g in store.gold()] == ["gives the dose"]  # reviewed last
    number = next(n for n, _ in store.listed("ann") if store.item(n).decisions)
    item = store.item(number)
    store.save(number, decide(item.draft, "e", "reject", reason="no"), item.version)
    again = accepted(drafts[0], by="two")  # changed elsewhere, and exported anew
    store.record(drafts, again)
    assert list(store.item(number).decisions.values()) == again and store.item(number).finished
    assert len(store.history(number)) == 5 + 1 + 4 + 5  # nothing that was decided is gone


def test_what_is_half_done_on_the_page_is_not_recorded_over(store):
    d = draft()
    store.open_round([d], ["ann"])
    store.save(1, decide(d, "p1"), 0)
    store.record([d], accepted(d, by="two"))
    assert list(store.item(1).decisions) == ["p1"] and not store.item(1).finished
    assert finished(store, "ann", "two") == accepted(d, by="two")


def test_a_store_of_another_layout_is_refused_and_left_as_it_is(tmp_path):
    old = sqlite3.connect(tmp_path / "old.sqlite")
    old.execute("CREATE TABLE items (id INTEGER PRIMARY KEY, draft TEXT)")
    with pytest.raises(KitError, match="old.sqlite: no such column.*earlier version"):
        Store(tmp_path / "old.sqlite")
    assert [name for (name,) in old.execute("SELECT name FROM sqlite_master")] == ["items"]


KILLED = """
import sys
from promedical_utils.data.annotation.store import Store
from promedical_utils.core.records import Decision
store = Store(sys.argv[1])
item = store.next_item("ann")
c = item.draft.criteria[0]
for version in range(100000):
    text = f"as in version {version}"
    decision = Decision(instruction_id="i1", criterion_id=c.id, reviewer="ann", action="edit",
                        criterion=c.model_copy(update={"text": text}))
    print(store.save(item.id, decision, version), flush=True)
"""


def test_a_killed_process_loses_nothing_that_save_returned_for(tmp_path):
    path = tmp_path / "review.sqlite"
    Store(path).open_round([draft()], ["ann"])
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True
    )
    for line in process.stdout:
        if int(line) >= 25:
            process.send_signal(signal.SIGKILL)
            break
    returned = [int(line), *(int(rest) for rest in process.stdout.read().split())][-1]
    assert process.wait() == -signal.SIGKILL
    item = Store(path).item(1)
    # the one that was under way may be there or not; none before it may be missing
    assert item.version in (returned, returned + 1)
    found = [json.loads(e["decision"])["criterion"]["text"] for e in Store(path).history(1)]
    assert found == [f"as in version {n}" for n in range(item.version)]


# ---------------------------------------------------------------- the rounds


def by_hand(hits, n, z=1.959963984540054):
    p = hits / n
    middle, half = p + z * z / 2 / n, z * math.sqrt(p * (1 - p) / n + z * z / 4 / n / n)
    return round((middle - half) / (1 + z * z / n), 4), round((middle + half) / (1 + z * z / n), 4)


class Clinic:
    """A writer whose error rate halves with each round in its pool, and a strict reviewer."""

    def __init__(self, first=0.6):
        self.first, self.asked, self.seen = first, [], []

    def write(self, ids, pool):
        learnt = max((r.round for r in pool), default=0)
        self.asked.append((ids, pool))
        rate = self.first * 0.5**learnt
        wrong = {i: random.Random(i).random() < rate for i in ids}
        return [self.draft(i, wrong[i]) for i in ids]

    def draft(self, name, wrong):
        found = draft(name)
        texts = {"s": "a wrong fact"} if wrong else {}
        criteria = [c.model_copy(update={"text": texts.get(c.id, c.text)}) for c in found.criteria]
        return found.model_copy(update={"criteria": criteria})

    def review(self, drafts):
        self.seen.append(drafts)
        return [self.decide(d) for d in drafts]

    def decide(self, d):
        if d.criteria[-1].text == "gives the dose":
            return accepted(d)
        return with_decisions(d, decide(d, "s", "edit", text="gives the dose"))


def test_rounds_sample_review_correct_teach_and_measure_blind():
    ids = [f"i{n}" for n in range(1200)]
    loop = partial(rounds, ids, target=0.9, size=100, blind=120, controls=30, seed=4)
    clinic = Clinic()
    made = list(loop(clinic.write, clinic.review))
    again = Clinic()
    assert [row for row, _ in loop(again.write, again.review)] == [row for row, _ in made]
    pool = []
    for number, (row, gold) in enumerate(made, 1):
        three = clinic.asked[3 * number - 3 : 3 * number]
        (batch, before), (fresh, after), (control, start) = three
        assert (len(batch), len(fresh), len(control), start) == (100, 120, 30, [])
        assert before == pool and after == pool + gold[:100]  # corrected gold is in the pool
        pool += gold
        open_, mixed = clinic.seen[2 * number - 2 : 2 * number]
        assert {d.round for d in mixed} == {0} and {d.status for d in mixed} == {"draft"}
        names = [d.instruction_id for d in mixed]
        assert sorted(names) == sorted(fresh + control) and names != fresh + control
        right = {d.instruction_id: passed(d, clinic.decide(d)) for d in (*open_, *mixed)}
        assert row["passed"] == sum(right[i] for i in batch)
        hits = sum(right[i] for i in fresh)
        assert (row["blind_n"], row["blind_passed"], row["control_n"]) == (120, hits, 30)
        assert (row["low"], row["high"]) == by_hand(hits, 120)
        assert row["control_passed"] == sum(right[i] for i in control)
        assert {r.round for r in gold} == {0, number} and {r.status for r in gold} == {"gold"}
        assert {r.criteria[-1].text for r in gold} == {"gives the dose"}
    rows = [row for row, _ in made]
    assert len({r.instruction_id for r in pool}) == len(pool) == 250 * len(made)
    assert [r["stop"] for r in rows[:-1]] == [""] * (len(rows) - 1)
    assert rows[-1]["stop"] == "target reached" and rows[-1]["low"] >= 0.9 > rows[-2]["low"]
    assert rows[0]["pass_rate"] < rows[-1]["pass_rate"] and len(rows) > 2
    assert all(abs(row["control_pass_rate"] - 0.4) < 0.3 for row in rows)  # level, as it must be


def row(hits, n):
    low, high = by_hand(hits, n) if n else (0.0, 1.0)
    return {"blind_n": n, "blind_pass_rate": hits / n if n else None, "low": low, "high": high}


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ([(190, 200)], "target reached"),  # 0.950 [0.910, 0.973]
        ([(187, 200)], ""),  # 0.935 [0.892, 0.962]: above the target, and not shown to be
        ([(20, 20)], ""),  # 1.000 [0.839, 1.000]: too few to show it
        ([(170, 200), (178, 200)], "converged"),  # 0.850, 0.890 [0.839, 0.926]
        ([(160, 200), (178, 200)], ""),  # 0.800 is below 0.839: the last round still gained
        ([(196, 200), (176, 200)], ""),  # nor is a fall convergence: 0.980, 0.880 [0.828, 0.918]
        ([(16, 20), (17, 20)], ""),  # intervals of 20 hold anything
        ([(178, 200), (170, 200), (120, 200)], ""),  # only the last two count
        ([(178, 200), (0, 0)], ""),
    ],
)
def test_the_stop_rule_by_hand(counts, reason):
    assert stop_reason([row(*c) for c in counts], target=0.9) == reason


def test_the_interval_is_wilsons():
    for hits, n in ((0, 7), (7, 7), (1, 3), (455, 500)):
        assert review.wilson(hits, n) == pytest.approx(by_hand(hits, n), abs=1e-4)
    assert review.wilson(0, 0) == (0.0, 1.0)


def test_rounds_end_when_nothing_is_left():
    clinic = Clinic()
    made = list(
        rounds(
            [f"i{n}" for n in range(25)],
            clinic.write,
            clinic.review,
            target=0.99,
            size=10,
            blind=6,
            controls=2,
        )
    )
    assert [r["stop"] for r, _ in made] == ["", "none left"]
    counts = [(r["reviewed"], r["blind_n"], r["control_n"]) for r, _ in made]
    assert counts == [(10, 6, 2), (7, 0, 0)]
    assert (made[1][0]["blind_pass_rate"], made[1][0]["high"]) == (None, 1.0)


def test_a_teams_saved_decisions_drive_the_rounds(store):
    clinic, ids = Clinic(), [f"i{n}" for n in range(30)]
    team = partial(store.reviewed, reviewers=["ann", "bob"])

    def run():
        return list(rounds(ids, Clinic().write, team, target=0.99, size=10, blind=8, controls=2))

    for left in (10, 10, 10):  # a batch, its blind sample, the next batch
        with pytest.raises(KitError, match=f"^{left} of {left} drafts wait .*ann 5, bob 5"):
            run()
        for who in ("ann", "bob"):
            while item := store.next_item(who):
                for version, decision in enumerate(clinic.decide(item.draft)):
                    own = decision.model_copy(update={"reviewer": who})
                    store.save(item.id, own, version)
                store.finish(item.id, who, len(clinic.decide(item.draft)))
    made = run()
    plain = Clinic()
    same = rounds(ids, plain.write, plain.review, target=0.99, size=10, blind=8, controls=2)
    assert made == list(same) and len(made) == 2 and len(store.gold()) == 30
