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
from promedical_utils.rubric.preferences import groups

TEAM = ("Ada", "Ben", "Cem", "Dua", "Eva")
CELL = adjudication.CELL


@pytest.fixture(scope="module")
def asked():
    return make_groups()  # 12 instructions, 3 answers, 3 criteria


@pytest.fixture(scope="module")
def key(asked):
    return adjudication.assign(asked, TEAM, seed=3)


def labelled(key, verdict):
    """Labels of a whole key; ``verdict``: task -> verdict."""
    rows = [(t.reviewer, t.task_id, verdict(t)) for t in key.itertuples()]
    return pd.DataFrame(rows, columns=[*adjudication.TASK, "verdict"])


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


def test_labels_as_spreadsheets_give_them(key):
    labels = labelled(key, by_slot)
    blanks = labels.assign(verdict=" " + labels.verdict + " ")
    pd.testing.assert_frame_equal(*(adjudication.collect(key, rows) for rows in (labels, blanks)))
    with pytest.raises(KitError, match="216 of 216 tasks without met.* with 'NA'"):
        adjudication.collect(key, labels.assign(verdict="NA"))


def test_order_is_shuffled_for_each_reviewer(asked):
    key = adjudication.assign(asked, ["Ada", "Ben"], seed=0)
    order = {
        (reviewer, i): tuple(mine.sort_values("answer").candidate_id.unique())
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
    handed = adjudication.sheet(key, "Ada")
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
    assert not set(handed.task_id) & set(adjudication.sheet(key, other).task_id)
    # every text of a row is that of its task
    task = key[key.reviewer == "Ada"].set_index("task_id")
    texts = {c.id: c.text for g in asked for c in (*g.candidates, *g.criteria)}
    for row in handed.itertuples():
        assert row.response == texts[task.candidate_id[row.task_id]]
        assert row.criterion == texts[task.criterion_id[row.task_id]]


@pytest.mark.parametrize(
    "team, message",
    [
        (["Ada"], "reviewers Ada: name two or more, each once"),
        (["Ada", "Ben", "Ada"], "each once"),
        ([], "name two or more"),
    ],
)
def test_a_reviewer_who_is_named_twice_is_refused(asked, team, message):
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
        f"task {labels.task_id[7]} is labelled twice": pd.concat([labels, labels.iloc[[7]]]),
        "1 of 216 tasks .* with 'fulfilled'": changed(labels, 9, verdict="fulfilled"),
        "2 of 216 tasks without .*'Ada': 2": labels.drop(index=[0, 1]),
    }
    for message, given in bad.items():
        with pytest.raises(KitError, match=message):
            adjudication.collect(key, given)


def test_disagreements_go_to_somebody_else_who_sees_both_labels_without_names(asked, key):
    said = adjudication.collect(key, labelled(key, by_slot))
    third = adjudication.disagreements(said, TEAM, seed=3)
    assert len(third) == 36 and set(third.dimension) == {"safety"}
    first = key.groupby("instruction_id").reviewer.agg(set)
    for task in third.itertuples():
        assert task.reviewer not in first[task.instruction_id]
    load = Counter(third.reviewer)
    columns = set()
    for reviewer in load:
        handed = adjudication.sheet(third, reviewer)
        assert not set(TEAM) & set(handed.to_csv().replace(",", " ").split())
        columns |= set(zip(handed.one_said, handed.the_other_said, strict=True))
    assert columns == {("met", "not_met"), ("not_met", "met")}  # no column is one reviewer's
    alone = adjudication.assign(asked, ["Ada", "Ben"], 0)
    said = adjudication.collect(alone, labelled(alone, by_slot))
    with pytest.raises(KitError, match="all of Ada, Ben have labelled it"):
        adjudication.disagreements(said, ["Ada", "Ben"], 0)
    agreed = adjudication.collect(alone, labelled(alone, lambda task: "met"))
    assert adjudication.disagreements(agreed, ["Cem"], 0).empty


def test_settling_fails_closed(asked, key):
    said = adjudication.collect(key, labelled(key, by_slot))
    third = adjudication.disagreements(said, TEAM, 3)
    given = labelled(third, lambda t: ["met", "not_met", "unknown"][int(t.candidate_id[-1])])
    decided = adjudication.collect(third, given).drop(index=[0, 1])
    settled = adjudication.settle(said, decided)
    assert len(settled) == settled[CELL].drop_duplicates().shape[0] == 108
    lost = set(map(tuple, third.loc[[0, 1], CELL].to_numpy()))
    for row in settled.itertuples():
        if (row.candidate_id, row.criterion_id) in lost:
            assert (row.verdict, row.rationale) == ("unknown", "never settled, so unknown")
        elif row.dimension == "safety":
            assert row.verdict == ["met", "not_met", "unknown"][int(row.candidate_id[-1])]
            assert row.rationale == "settled by a third reviewer"
        else:
            assert (row.verdict, row.rationale) == ("met", "two reviewers agree")
    assert settled.rationale.value_counts().tolist() == [72, 34, 2]
    nobody = adjudication.settle(said)  # no third reviewer at all
    assert set(nobody[nobody.dimension == "safety"].verdict) == {"unknown"}


# ---------------------------------------------------------------- files


def test_sheets_go_out_and_come_back_as_csv(tmp_path, asked):
    key = adjudication.assign(asked, ["Ada", "Ben"], 3)

    def handed_in(key, fill):
        """Every sheet written, filled in and read, as in docs/adjudication.md."""
        frames = []
        for name in key.reviewer.unique():
            path = tmp_path / f"{name}.csv"
            adjudication.sheet(key, name).to_csv(path, index=False, encoding="utf-8-sig")
            frame = pd.read_csv(path)
            assert frame.verdict.isna().all()
            frame.assign(verdict=fill(frame)).to_csv(path, index=False)
            frames.append(pd.read_csv(path).assign(reviewer=name))
        return pd.concat(frames, ignore_index=True)

    with pytest.raises(KitError, match="214 of 216 tasks without .*'Ada': 107, 'Ben': 107"):
        adjudication.collect(key, handed_in(key, lambda f: ["met"] + [None] * (len(f) - 1)))
    turns = iter(("met", "not_met"))
    said = adjudication.collect(key, handed_in(key, lambda frame: next(turns)))
    third = adjudication.disagreements(said, ["Fay"], 3)
    filled = handed_in(third, lambda frame: frame.one_said)
    settled = adjudication.settle(said, adjudication.collect(third, filled))
    assert set(settled.rationale) == {"settled by a third reviewer"} and len(settled) == 108
    agreed = adjudication.collect(key, labelled(key, lambda task: "met"))
    assert set(adjudication.settle(agreed).rationale) == {"two reviewers agree"}


def test_a_text_is_no_formula_in_a_spreadsheet(asked):
    group = asked[0]
    answers = tuple(
        c.model_copy(update={"text": f'{sign}1+1\nand, "é"'})
        for c, sign in zip(group.candidates, "=-x", strict=True)
    )
    group = type(group)(group.instruction, group.criteria, answers, {})
    key = adjudication.assign([group], ["Ada", "Ben"], 0)
    texts = set(adjudication.sheet(key, "Ada").response)
    assert texts == {'\'=1+1\nand, "é"', '\'-1+1\nand, "é"', 'x1+1\nand, "é"'}


# ---------------------------------------------------------------- the clinic, and the bench


def simulated(key, panel, truth):
    """Labels of the clinic's people on a key of either round; how often they agree is an input."""
    physician, rows = {p.name: p for p in panel.physicians}, []
    for task in key.itertuples():
        cell = task.candidate_id, task.criterion_id
        if task.slot == 3:
            said = panel.settle(cell, task.first, task.second, truth[cell])
        else:
            said = physician[task.reviewer].verdict(*cell, "", truth[cell])
        rows.append((task.reviewer, task.task_id, said))
    return pd.DataFrame(rows, columns=[*adjudication.TASK, "verdict"])


def test_the_bench_could_be_made_with_it_and_its_numbers_stay():
    made, truth = benches.make()
    instructions, _, rubrics, candidates, _ = benches.world()
    panel = people.panel(0.9, benches.profile().seed)
    asked = groups(instructions, rubrics, candidates, ids=list(made.samples.instruction_id))
    names = [p.name for p in panel.physicians]
    key = adjudication.assign(asked, names, benches.profile().seed)
    said = adjudication.collect(key, simulated(key, panel, truth))
    third = adjudication.disagreements(said, ["adjudicator"], 0)
    settled = adjudication.settle(said, adjudication.collect(third, simulated(third, panel, truth)))
    old = made.verdicts.set_index(CELL).sort_index()
    items = adjudication.ratings(said).set_index(CELL).sort_index()
    assert items["first"].tolist() == old.physician_1.tolist()
    assert items["second"].tolist() == old.physician_2.tolist()
    adjudicated = settled.set_index(CELL).verdict.to_dict()
    assert adjudicated == old.adjudicated.to_dict()
    assert len(third) == (old.physician_1 != old.physician_2).sum() > 20
    for sample in made.samples.itertuples():
        for name, order in zip(names, (sample.order_1, sample.order_2), strict=True):
            mine = key[(key.reviewer == name) & (key.instruction_id == sample.instruction_id)]
            assert "|".join(mine.sort_values("answer").candidate_id.unique()) == order
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
