"""Tables of one's own become records; every number here is worked out by hand."""

from decimal import Decimal

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from promedical_utils.core import profiles, records
from promedical_utils.core.records import CriterionPair
from promedical_utils.core.run_data import RunData
from promedical_utils.core.workspace import KitError, project_root
from promedical_utils.data.sources import own
from promedical_utils.pipeline import preference_pairs, rubrics
from promedical_utils.rubric import expansion, scoring
from promedical_utils.rubric.preferences import criterion_pairs, groups, groups_of, preferences

ROW = {
    "instruction": "May I take two?",
    "criterion": "names the dose",
    "dimension": "proficiency",
    "points": "7",
    "answer": "two",
    "verdict": "Met",
}
EMPTY = {"verdict": ""}


def read(folder, *rows):
    path = folder / "own.csv"
    pd.DataFrame([ROW | row for row in rows]).to_csv(path, index=False)
    return own.read(path)


def weights(data):
    return [[c.weight for c in rubric.criteria] for rubric in data.rubrics]


def test_points_become_weights_and_rows_become_records(tmp_path):
    kind = {"criterion": "is kind", "points": "3"}
    safe = {"criterion": "no driving", "dimension": "safety", "points": ""}
    rows = [{}, kind, safe, {"answer": "ten", "verdict": "0"}, safe | {"answer": "ten"} | EMPTY]
    data, counts = read(tmp_path, *rows)
    assert weights(data) == [[0.7, 0.3, 0.0]]
    assert [c.text for c in data.candidates] == ["two", "ten"]
    first, second = groups(data)[0].scores.values()
    assert (first.s1, first.s3) == (1.0, 0)
    # of ten nobody judged two cells: no gain, and on safety a violation
    assert (second.s1, second.s3) == (0.0, 1)
    assert counts["cells without a verdict, read as unknown"] == 2


def test_thirty_nine_criteria_of_five_points_are_a_rubric(tmp_path):
    data, _ = read(tmp_path, *({"criterion": f"c{n}", "points": "5"} for n in range(39)))
    [found] = weights(data)
    # 10000 / 39 = 256.4: all get 256, and 10000 - 39 * 256 = 16 of them one more
    assert found == [0.0257] * 16 + [0.0256] * 23


@given(st.lists(st.integers(1, 10) | st.floats(0.1, 10), min_size=1, max_size=60))
def test_weights_have_four_decimals_that_sum_to_one(points):
    found = own.shares(points)
    assert sum(Decimal(str(w)) for w in found) == 1
    total = sum(points)
    assert all(abs(w - p / total) < 1e-4 for w, p in zip(found, points, strict=True))


def test_weights_that_sum_to_one_stay(tmp_path):
    thirds = [{"criterion": f"c{n}", "points": str(1 / 3)} for n in range(3)]
    assert weights(read(tmp_path, *thirds)[0]) == [[1 / 3] * 3]


def test_a_penalty_is_turned_round_or_left_out_as_the_column_says(tmp_path):
    bad = {"criterion": "Tells to take ten", "points": "-10", "answer": "ten", "verdict": "met"}
    data, counts = read(tmp_path, {}, bad | {"safety": "yes"})
    turned = data.rubrics[0].criteria[1]
    assert (turned.dimension, turned.weight) == ("safety", 0)
    assert turned.text == "Does NOT do the following: Tells to take ten"
    ten = next(c.id for c in data.candidates if c.text == "ten")
    said = {(v.candidate_id, v.criterion_id): v.verdict for v in data.verdicts}
    assert said[ten, turned.id] == "not_met" and "rows of penalties left out" not in counts
    data, counts = read(tmp_path, {}, bad | {"safety": "no"})
    assert counts["rows of penalties left out"] == 1 and len(data.rubrics[0].criteria) == 1
    with pytest.raises(KitError, match="own.csv, line 3, column points: below 0 is no weight"):
        read(tmp_path, {}, bad)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"verdict": "maybe"}, "line 3, column verdict"),
        ({"dimension": "style"}, "line 3, column dimension"),
        ({"points": "nan"}, "line 3, column points|line 3, column criterion"),
        ({"points": "many"}, "line 3, column points"),
        ({"split": "dev"}, "line 3, column split"),
        ({"preferred": "A"}, "line 3, column preferred: a preference is of two unlike answers"),
        ({"preferred": "A", "other": "two"}, "line 3, column preferred"),
        ({"points": "8", "answer": "ten"}, "line 3, column criterion: .* not the same"),
        ({}, "line 3, column verdict: is there twice"),
        ({"split": "train"}, "line 3, column instruction: .* not the same"),
        ({"weight": "1"}, "line 3, column points: stands beside weight"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_its_place(tmp_path, row, says):
    with pytest.raises(KitError, match=says) as error:
        read(tmp_path, {}, row)
    assert "\n" not in str(error.value)


def test_a_missing_column_names_those_that_are_there(tmp_path):
    (tmp_path / "own.csv").write_text("question,criterion\nwhat,that\n")
    with pytest.raises(KitError, match="instruction.*question"):
        own.read(tmp_path / "own.csv")
    with pytest.raises(KitError, match="no table, and no instructions.parquet"):
        own.read(tmp_path)


def test_the_same_words_are_one_cluster_and_a_cluster_is_in_one_split(tmp_path):
    twice = {"instruction": "may I take two", "criterion": "other"}
    data, _ = read(tmp_path, {}, twice)
    assert len({row.condition for row in data.splits}) == 1 and len(data.splits) == 2
    with pytest.raises(KitError, match="in split train and in bench"):
        read(tmp_path, {"split": "train"}, twice | {"split": "bench"})


def test_half_of_the_clusters_train_and_each_split_has_its_share(tmp_path):
    data, _ = read(tmp_path, *({"instruction": f"question {n}"} for n in range(20)))
    sizes = [len(data.ids(split)) for split in ("train", "calibration", "checkpoint", "bench")]
    assert sizes == [10, 3, 2, 5]  # a half, 15, 10 and 25 %


# ---------------------------------------------------------------- preferences


STATED = {"answer": "two", "other": "ten", "preferred": "B", "verdict": ""}


def test_a_preference_trains_without_verdicts_and_a_tie_is_counted(tmp_path):
    tie = {"criterion": "is kind", "preferred": "tie"}
    data, counts = read(tmp_path, STATED, STATED | tie)
    assert not data.verdicts and counts["preferences that are ties"] == 1
    [group] = groups_of(data, "judge", "train")
    text = {c.id: c.text for c in data.candidates}
    pairs = [(text[p.chosen_id], text[p.rejected_id]) for p in criterion_pairs(group)]
    assert pairs == [("ten", "two")] and preferences(group) == []


def test_what_was_stated_goes_before_verdicts(tmp_path):
    rows = [{}, {"answer": "ten", "verdict": "not_met"}, {"answer": "none", "verdict": "not_met"}]
    data, _ = read(tmp_path, *rows)
    text = {c.id: c.text for c in data.candidates}

    def sides(data):
        [group] = groups(data)
        return {(text[p.chosen_id], text[p.rejected_id]) for p in criterion_pairs(group)}

    assert sides(data) == {("two", "ten"), ("two", "none")}
    data, _ = read(tmp_path, *rows, STATED)
    assert sides(data) == {("ten", "two"), ("two", "none")}
    outcomes = expansion.outcomes(groups(data)).iloc[0]
    assert (outcomes.pairs, outcomes.both_not_met, outcomes.comparisons) == (2, 1, 3)


def test_a_preference_that_points_nowhere_is_named(tmp_path):
    data, _ = read(tmp_path, STATED)
    [pair] = data.preferences
    for field, says in (("chosen_id", "chosen_id 'x'"), ("criterion_id", "criterion_id 'x'")):
        wrong = pair.model_copy(update={field: "x"})
        with pytest.raises(KitError, match=says):
            groups(RunData(data.instructions, data.rubrics, [], data.candidates, [], [wrong]))


# ---------------------------------------------------------------- safety alone


def test_a_rubric_of_safety_alone_has_a_veto_and_no_other_score(tmp_path):
    safety = {"dimension": "safety", "points": ""}
    data, _ = read(tmp_path, safety, safety | {"answer": "ten", "verdict": "not_met"})
    [group] = groups(data)
    safe, unsafe = group.scores.values()
    assert safe.key > unsafe.key and (safe.s1, unsafe.s1) == (0, 0)
    assert scoring.gated_reward(safe) == 0 and scoring.gated_reward(unsafe) == -2
    assert scoring.rar_explicit(group.rubric, {group.criteria[0].id: "met"}) == 1


# ---------------------------------------------------------------- through the notebooks


def profile(path):
    return profiles.load("real", data="own", own_data=str(path), base_model=str(path.parent))


def notebooks(monkeypatch, path, run):
    """What notebooks 01 and 02 call, with texts that fit the model whatever it is."""
    from promedical_utils.pipeline import real_text

    monkeypatch.setattr(real_text, "_read", lambda p, _: (real_text.study_of(p),) * 2 + ({},))
    rubrics.make_rubrics(profile(path), run)
    return preference_pairs.make_preference_pairs(profile(path), run)


def test_own_data_go_through_the_first_notebooks_and_are_not_written_over(tmp_path, monkeypatch):
    path = project_root() / "docs/own_data.csv"
    before = path.read_bytes()
    report = notebooks(monkeypatch, path, tmp_path)
    data = RunData.load(tmp_path)
    assert path.read_bytes() == before
    assert (len(data.instructions), report["candidates"], report["verdicts"]) == (16, 35, 128)
    assert len(data.preferences) == 3
    train = groups_of(data, "judge", "train")
    assert report["training_pairs"] == sum(len(criterion_pairs(group)) for group in train)
    stored = records.load(tmp_path / "data/pairs.parquet", CriterionPair, "02")
    assert len(stored) == report["training_pairs"]
    # a folder of the very records gives the same data
    again, _ = own.read(tmp_path / "data")
    assert again == data
    notebooks(monkeypatch, path, tmp_path)  # a second run writes its own files again


def test_records_that_no_notebook_wrote_are_not_written_over(tmp_path, monkeypatch):
    path = project_root() / "docs/own_data.csv"
    notebooks(monkeypatch, path, tmp_path)
    for name, stage in (
        ("rubrics", rubrics.make_rubrics),
        ("verdicts", preference_pairs.make_preference_pairs),
    ):
        file = tmp_path / f"data/{name}.parquet"
        theirs = pd.read_parquet(file).iloc[:-1]
        theirs.to_parquet(file)
        with pytest.raises(KitError, match=f"{name}.parquet is not as a notebook wrote it"):
            stage(profile(path), tmp_path)
        assert len(pd.read_parquet(file)) == len(theirs)
    run = tmp_path / "fresh"
    (run / "data").mkdir(parents=True)
    theirs.to_parquet(run / "data/instructions.parquet")
    with pytest.raises(KitError, match="own_data=FOLDER"):
        rubrics.make_rubrics(profile(path), run)


def test_rubrics_without_answers_need_an_endpoint(tmp_path, monkeypatch):
    read(tmp_path, {"answer": ""} | EMPTY)
    with pytest.raises(KitError, match="has no answers: add some, or set endpoint"):
        notebooks(monkeypatch, tmp_path / "own.csv", tmp_path / "run")


@pytest.mark.parametrize("settings", [{"data": "own"}, {"own_data": "x.csv"}])
def test_the_two_keys_go_together(settings):
    with pytest.raises(KitError, match="data: own and own_data.* go together"):
        profiles.load("real", **settings)
