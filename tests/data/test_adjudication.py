"""Double-blind labelling: who sees what, whose label counts, and nothing unsettled ever passes."""

from collections import Counter
from itertools import combinations, pairwise

import pandas as pd
import pytest
from helpers import benches
from helpers.groups import make_groups

from promedical_utils.clinic import people
from promedical_utils.core import statistics
from promedical_utils.core.workspace import KitError
from promedical_utils.data.annotation import adjudication
from promedical_utils.data.annotation.store import Store
from promedical_utils.rubric.preferences import groups

TEAM = ("Ada", "Ben", "Cem", "Dua", "Eva")
CELL = adjudication.CELL


@pytest.fixture(scope="module")
def asked():
    return make_groups()  # 12 instructions, 3 answers, 3 criteria


@pytest.fixture
def store(tmp_path):
    made = Store(tmp_path / "annotation.sqlite")
    yield made
    made.close()


@pytest.fixture(scope="module")
def key(asked):
    return adjudication.assign(asked, TEAM, seed=3)


def labelled(key, verdict):
    """Labels of a whole key; ``verdict``: task -> verdict."""
    rows = [(t.reviewer, t.task_id, verdict(t)) for t in key.itertuples()]
    return pd.DataFrame(rows, columns=adjudication.LABELS)


def by_slot(task):
    """Two reviewers who differ on the safety criterion of every answer."""
    return "not_met" if task.dimension == "safety" and task.slot == 2 else "met"


# ---------------------------------------------------------------- assignment


def test_two_different_reviewers_an_item_and_even_loads(asked, key):
    assert len(key) == 2 * 12 * 9 and key.task_id.is_unique
    for _, mine in key.groupby("instruction_id"):
        assert mine.reviewer.nunique() == 2  # one instruction goes to the same two as a whole
        assert (mine.groupby(CELL).reviewer.nunique() == 2).all()
        assert (mine.groupby(CELL).slot.agg(sorted).map(tuple) == (1, 2)).all()
    for n in range(2, 8):
        many = [g for g in asked] * 1
        load = Counter(adjudication.assign(many, [f"r{i}" for i in range(n)], 0).reviewer)
        assert len(load) == n and max(load.values()) - min(load.values()) <= 2 * 9
    pairs = key.groupby("instruction_id").reviewer.agg(lambda r: tuple(sorted(set(r))))
    assert len(set(pairs)) == 10  # 12 turns, and all ten pairs of five people


def test_the_key_depends_on_the_seed_alone(asked, key):
    again = adjudication.assign(asked[::-1], TEAM, seed=3)
    pd.testing.assert_frame_equal(key, again)
    other = adjudication.assign(asked, TEAM, seed=4)
    assert not set(other.task_id) & set(key.task_id)


def test_order_is_shuffled_for_each_reviewer(asked):
    key = adjudication.assign(asked, ["Ada", "Ben"], seed=0)
    order = {
        (reviewer, i): tuple(mine.sort_values("place").candidate_id.unique())
        for (reviewer, i), mine in key.groupby(["reviewer", "instruction_id"])
    }
    ids = [g.instruction.id for g in asked]
    assert sum(order["Ada", i] != order["Ben", i] for i in ids) >= 6
    in_file = {g.instruction.id: tuple(c.id for c in g.candidates) for g in asked}
    assert len({order["Ada", i] == in_file[i] for i in ids}) == 2
    firsts = Counter(order["Ada", i][0][-1] for i in ids)
    assert len(firsts) == 3  # no generator is always shown first
    questions = [list(key[key.reviewer == r].instruction_id.unique()) for r in ("Ada", "Ben")]
    assert questions[0] != questions[1] and sorted(questions[0]) == sorted(questions[1])


def test_a_sheet_tells_neither_who_wrote_nor_what_the_other_said(asked, key):
    handed = adjudication.sheet(key, asked, "Ada")
    columns = "task_id question conversation answer response dimension criterion verdict"
    assert list(handed) == columns.split()
    text = handed.to_csv()
    told = {c.generator for g in asked for c in g.candidates} | set(TEAM)
    told |= {c.id for g in asked for c in g.candidates} | {g.instruction.id for g in asked}
    told |= {c.id for g in asked for c in g.criteria}
    words = set(text.replace(",", " ").replace('"', " ").split())
    assert not told & words
    assert (handed.verdict == "").all() and set(handed.answer) == {1, 2, 3}
    blocks = list(zip(handed.question, handed.answer, strict=True))
    assert sum(a != b for a, b in pairwise(blocks)) + 1 == len(set(blocks))  # kept together
    other = next(
        r
        for r in TEAM[1:]
        if set(key[key.reviewer == r].instruction_id)
        & set(key[key.reviewer == "Ada"].instruction_id)
    )
    assert not set(handed.task_id) & set(adjudication.sheet(key, asked, other).task_id)
    # every text of a row is that of its task
    task = key[key.reviewer == "Ada"].set_index("task_id")
    texts = {c.id: c.text for g in asked for c in (*g.candidates, *g.criteria)}
    for row in handed.itertuples():
        assert row.response == texts[task.candidate_id[row.task_id]]
        assert row.criterion == texts[task.criterion_id[row.task_id]]


def test_answers_that_name_their_generator_are_found(asked):
    assert adjudication.self_naming(asked) == []
    first = asked[0].candidates[0]
    named = first.model_copy(update={"text": "As GPT-9, I would wait.", "generator": "gpt-9"})
    group = type(asked[0])(asked[0].instruction, asked[0].criteria, (named,), {})
    assert adjudication.self_naming([group]) == [named.id]


@pytest.mark.parametrize(
    "team, message",
    [
        (["Ada"], "reviewers Ada: name 2 or more"),
        (["Ada", "Ben", "ada "], "each once"),
        (["Ada", "../Ben"], "reviewer '../Ben': use letters"),
        (["Ada", "key"], "reviewer 'key'"),
    ],
)
def test_a_reviewer_who_signs_in_twice_is_refused(asked, team, message):
    with pytest.raises(KitError, match=message):
        adjudication.assign(asked, team, 0)


def test_an_instruction_twice_is_refused(asked):
    with pytest.raises(KitError, match="the same answer and criterion twice: i0-a"):
        adjudication.assign([*asked, asked[0]], TEAM, 0)


# ---------------------------------------------------------------- labels


def changed(labels, n, **values):
    labels = labels.copy()
    for column, value in values.items():
        labels.loc[n, column] = value
    return labels


def test_labels_are_checked(key):
    labels = labelled(key, by_slot)
    whole = adjudication.collect(key, labels.sample(frac=1, random_state=0))
    assert (whole.verdict == [by_slot(t) for t in key.itertuples()]).all()
    stolen = next(n for n in range(len(labels)) if labels.reviewer[n] != labels.reviewer[0])
    bad = {
        "was given no task t00": changed(labels, 5, task_id="t00"),
        f"Ben was given no task {labels.task_id[0]}": changed(labels, 0, reviewer="Ben"),
        "Zoe was given no task": changed(labels, stolen, reviewer="Zoe"),
        f"labelled task {labels.task_id[7]} twice": pd.concat([labels, labels.iloc[[7]]]),
        "verdict 'fulfilled' is none of met": changed(labels, 9, verdict="fulfilled"),
        "2 of 216 labels are missing .*Ada": labels.drop(index=[0, 1]),
    }
    for message, given in bad.items():
        with pytest.raises(KitError, match=message):
            adjudication.collect(key, given)
    part = adjudication.collect(key, labels.drop(index=[0, 1]), partial=True)
    assert part.verdict.isna().sum() == 2 and len(part) == len(key)


def test_disagreements_go_to_somebody_else_who_sees_both_labels_without_names(asked, key):
    said = adjudication.collect(key, labelled(key, by_slot))
    third = adjudication.disagreements(said, asked, TEAM, seed=3)
    assert len(third) == 36 and set(third.dimension) == {"safety"}
    first = key.groupby("instruction_id").reviewer.agg(set)
    for task in third.itertuples():
        assert task.reviewer not in first[task.instruction_id]
    load = Counter(third.reviewer)
    assert max(load.values()) - min(load.values()) <= 9
    columns = set()
    for reviewer in load:
        handed = adjudication.sheet(third, asked, reviewer)
        assert not set(TEAM) & set(handed.to_csv().replace(",", " ").split())
        columns |= set(zip(handed.one_said, handed.the_other_said, strict=True))
    assert columns == {("met", "not_met"), ("not_met", "met")}  # no column is one reviewer's
    alone = adjudication.assign(asked, ["Ada", "Ben"], 0)
    said = adjudication.collect(alone, labelled(alone, by_slot))
    with pytest.raises(KitError, match="all of Ada, Ben have labelled it"):
        adjudication.disagreements(said, asked, ["Ada", "Ben"], 0)
    agreed = adjudication.collect(alone, labelled(alone, lambda task: "met"))
    assert adjudication.disagreements(agreed, asked, ["Cem"], 0).empty


def test_settling_fails_closed(asked, key):
    labels = labelled(key, by_slot)
    gone = [  # agreed on, were they there
        key[(key.slot == slot) & (key.dimension == dimension)].index[0]
        for slot, dimension in ((1, "excellence"), (2, "proficiency"))
    ]
    said = adjudication.collect(key, labels.drop(index=gone), partial=True)
    third = adjudication.disagreements(said, asked, TEAM, 3)
    given = labelled(third, lambda t: ["met", "not_met", "unknown"][int(t.candidate_id[-1])])
    given = given.drop(index=[0, 1])
    settled = adjudication.settle(said, adjudication.collect(third, given, partial=True))
    verdict = {(v.candidate_id, v.criterion_id): v for v in settled.verdicts}
    assert len(verdict) == len(settled.verdicts) == 108
    assert {v.judge for v in settled.verdicts} == {"adjudicated"}
    lost = set(map(tuple, third.loc[[0, 1], CELL].to_numpy()))
    lost |= set(map(tuple, key.loc[gone, CELL].to_numpy()))
    for cell, v in verdict.items():
        if cell in lost:
            assert (v.verdict, v.rationale) == ("unknown", "never settled, so unknown")
        elif cell in set(map(tuple, third[CELL].to_numpy())):
            assert v.verdict == ["met", "not_met", "unknown"][int(cell[0][-1])]
            assert v.rationale == "settled by a third reviewer"
        else:
            assert (v.verdict, v.rationale) == ("met", "two reviewers agree")
    counts = settled.counts.loc["all"]
    assert counts[["items", "agreed", "by_third", "never_settled"]].tolist() == [108, 70, 34, 4]
    assert counts.unknown == sum(v.verdict == "unknown" for v in settled.verdicts)
    assert settled.counts.never_settled.to_dict() == {
        "proficiency": 1,
        "excellence": 1,
        "safety": 2,
        "all": 4,
    }
    nobody = adjudication.settle(said)  # no third reviewer at all
    assert nobody.counts.never_settled["all"] == 38
    assert not any(v.verdict == "met" for v in nobody.verdicts if v.criterion_id.endswith("danger"))


def test_a_label_that_changes_after_the_third_saw_it(asked, key):
    labels = labelled(key, by_slot)
    said = adjudication.collect(key, labels)
    third = adjudication.disagreements(said, asked, TEAM, 3)
    settled = adjudication.collect(third, labelled(third, lambda t: "met"))
    at = key[(key.dimension == "safety") & (key.slot == 2)].index[0]
    later = adjudication.collect(key, changed(labels, at, verdict="met"))
    with pytest.raises(KitError, match="a label has changed since the third reviewer saw it"):
        adjudication.settle(later, settled)


# ---------------------------------------------------------------- files


def test_sheets_go_out_and_come_back_and_are_never_overwritten(tmp_path, store, asked, key):
    sheets = adjudication.hand_out(store, key, asked, tmp_path)
    assert sorted(path.name for path in sheets) == [f"{r}.csv" for r in TEAM]
    back, labels = adjudication.handed_in(store, tmp_path)
    pd.testing.assert_frame_equal(back, key)
    assert labels.empty
    for path in sheets[1:]:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        frame.assign(verdict=" met ").to_csv(path, index=False)
    frame = pd.read_csv(sheets[0], dtype=str, keep_default_na=False)
    frame.assign(verdict=["met"] + [""] * (len(frame) - 1)).to_csv(sheets[0], index=False)
    filled = sheets[1].read_bytes()
    assert adjudication.hand_out(store, key, asked, tmp_path) == sheets
    assert sheets[1].read_bytes() == filled  # the same key again: the labels are still there
    key, labels = adjudication.handed_in(store, tmp_path)
    with pytest.raises(
        KitError, match=f"{len(frame) - 1} of 216 labels are missing .{sheets[0].stem}"
    ):
        adjudication.collect(key, labels)
    with pytest.raises(KitError, match="sheets of another assignment"):
        adjudication.hand_out(store, adjudication.assign(asked, TEAM, seed=9), asked, tmp_path)
    sheets[0].write_bytes("task_id;verdict\nt1;mét\n".encode("latin-1"))
    with pytest.raises(KitError, match="save it as CSV with commas, in UTF-8"):
        adjudication.handed_in(store, tmp_path)


def test_labels_are_appended_to_the_store_and_nothing_wrong_is_stored(tmp_path, store, asked, key):
    first = tmp_path / "first"
    path = adjudication.hand_out(store, key, asked, first)[0]
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)

    def fill(*verdicts):
        rest = [""] * (len(frame) - len(verdicts))
        frame.assign(verdict=[*verdicts, *rest]).to_csv(path, index=False)
        return adjudication.handed_in(store, first)[1]

    assert list(fill("met", "not_met").verdict) == ["met", "not_met"]
    with pytest.raises(KitError, match="verdict 'maybe' is none of met"):
        fill("unknown", "maybe")
    stands = [t["verdict"] for t in store.labels("first") if t["verdict"]]
    assert stands == ["met", "not_met"]  # all or nothing
    assert list(fill("met", "").verdict) == ["met"]  # taken back
    twice = frame.assign(verdict=["met", *[""] * (len(frame) - 1)])
    pd.concat([twice, frame.head(1).assign(verdict="")]).to_csv(path, index=False)
    assert list(adjudication.handed_in(store, first)[1].verdict) == ["met"]  # a blank takes nothing
    assert list(fill("unknown").verdict) == ["unknown"]
    log = store._db.execute(
        "SELECT value FROM events WHERE action = 'label' ORDER BY id"
    ).fetchall()
    assert [value for (value,) in log] == ["met", "not_met", None, "unknown"]
    renamed = first.rename(tmp_path / "first-back")
    with pytest.raises(KitError, match="first-back: the store knows no tasks of this name"):
        adjudication.handed_in(store, renamed)
    again = Store(store.path)  # as after a restart
    assert [t["verdict"] for t in again.labels("first") if t["verdict"]] == ["unknown"]
    assert again.next_item(path.stem) is None and again.drafts() == []  # no draft to review
    again.close()


def test_the_third_round_goes_out_and_comes_back(tmp_path, store, asked, key):
    said = adjudication.collect(key, labelled(key, by_slot))
    third = adjudication.disagreements(said, asked, ["Fay"], 3)
    for _ in range(2):
        (path,) = adjudication.hand_out(store, third, asked, tmp_path)
    frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    frame.assign(verdict=frame.one_said).to_csv(path, index=False)
    settled = adjudication.settle(
        said, adjudication.collect(*adjudication.handed_in(store, tmp_path))
    )
    assert settled.counts.by_third["safety"] == 36 and not settled.counts.never_settled["all"]
    none = third.iloc[:0]
    assert adjudication.hand_out(store, none, asked, tmp_path / "none") == []
    assert adjudication.collect(*adjudication.handed_in(store, tmp_path / "none")).empty


def test_a_text_is_no_formula_in_a_spreadsheet(tmp_path, store, asked):
    group = asked[0]
    answers = tuple(
        c.model_copy(update={"text": f'{sign}1+1\nand, "é"'})
        for c, sign in zip(group.candidates, "=-x", strict=True)
    )
    group = type(group)(group.instruction, group.criteria, answers, {})
    key = adjudication.assign([group], ["Ada", "Ben"], 0)
    path = adjudication.hand_out(store, key, [group], tmp_path)[0]
    texts = set(pd.read_csv(path, dtype=str, encoding="utf-8-sig").response)
    assert texts == {'\'=1+1\nand, "é"', '\'-1+1\nand, "é"', 'x1+1\nand, "é"'}


# ---------------------------------------------------------------- the clinic, and the bench


def simulated(key, panel, truth):
    """Labels of the clinic's people on a key of either round; how often they agree is an input."""
    physician, rows = {p.name: p for p in panel.physicians}, []
    for task in key.itertuples():
        cell = task.candidate_id, task.criterion_id
        if task.slot == 3:
            said = panel.adjudicator.settle(cell, task.first, task.second, truth[cell])
        else:
            said = physician[task.reviewer].verdict(*cell, task.kind, truth[cell])
        rows.append((task.reviewer, task.task_id, said))
    return pd.DataFrame(rows, columns=adjudication.LABELS)


def test_the_bench_could_be_made_with_it_and_its_numbers_stay():
    made, truth = benches.make()
    instructions, _, rubrics, candidates, _ = benches.world()
    panel = people.panel(0.9, benches.profile().seed)
    asked = groups(instructions, rubrics, candidates, ids=list(made.samples.instruction_id))
    names = [p.name for p in panel.physicians]
    key = adjudication.assign(asked, names, benches.profile().seed)
    said = adjudication.collect(key, simulated(key, panel, truth))
    third = adjudication.disagreements(said, asked, ["adjudicator"], 0)
    settled = adjudication.settle(said, adjudication.collect(third, simulated(third, panel, truth)))
    old = made.verdicts.set_index(CELL).sort_index()
    items = adjudication.ratings(said).set_index(CELL).sort_index()
    assert items["first"].tolist() == old.physician_1.tolist()
    assert items["second"].tolist() == old.physician_2.tolist()
    adjudicated = {(v.candidate_id, v.criterion_id): v.verdict for v in settled.verdicts}
    assert adjudicated == old.adjudicated.to_dict()
    assert len(third) == (old.physician_1 != old.physician_2).sum() > 20
    for sample in made.samples.itertuples():
        for name, order in zip(names, (sample.order_1, sample.order_2), strict=True):
            mine = key[(key.reviewer == name) & (key.instruction_id == sample.instruction_id)]
            assert "|".join(mine.sort_values("place").candidate_id.unique()) == order
    frame = statistics.reliability(
        items[["first", "second"]], adjudication.LEVELS, items.dimension, draws=50
    )
    whole = frame[frame.slice == "all"].set_index("coefficient").value
    assert whole["observed"] == made.report["input"]["verdicts"]["observed"]
    assert set(frame.slice) == {"proficiency", "excellence", "safety", "all"}


def test_every_pair_of_a_larger_team_meets(asked):
    met = Counter()
    many = [
        type(g)(
            g.instruction.model_copy(update={"id": f"{n}-{g.instruction.id}"}),
            g.criteria,
            tuple(c.model_copy(update={"id": f"{n}-{c.id}"}) for c in g.candidates),
            {},
        )
        for n in range(5)
        for g in asked
    ]
    key = adjudication.assign(many, TEAM, 1)
    for _, mine in key.groupby("instruction_id"):
        met[tuple(sorted(set(mine.reviewer)))] += 1
    assert set(met) == set(combinations(TEAM, 2)) and set(met.values()) == {6}
