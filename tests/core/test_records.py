"""Records refuse broken rows by name, and a file that exists is whole."""

import json
import math

import pandas as pd
import pytest

from promedical_utils.core import records, workspace
from promedical_utils.core.records import (
    Candidate,
    Criterion,
    Instruction,
    Message,
    Rubric,
    Verdict,
)
from promedical_utils.core.workspace import KitError


def criterion(i="c1", dimension="proficiency", weight=1.0):
    return {"id": i, "dimension": dimension, "text": "gives the dose", "weight": weight}


def rubric(*criteria):
    return {"instruction_id": "i", "criteria": list(criteria), "status": "gold", "round": 0}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (rubric(criterion(weight=0.0)), "no proficiency weight"),
        (rubric(criterion(weight=0.0), criterion("s", "safety", 0.0)), "no proficiency weight"),
        (rubric(criterion(dimension="excellence", weight=0.0)), "no proficiency weight"),
        (rubric(criterion(dimension="safety", weight=0.5)), "only proficiency"),
        (rubric(criterion(weight=0.5)), "sum to 0.5000, not 1"),
        (rubric(criterion(), criterion("c2", "safety", 0.2)), "only proficiency"),
        (rubric(criterion(weight=0.5), criterion(weight=0.5)), "criterion ids repeat"),
        (rubric(criterion(weight=-1.0)), "greater than or equal to 0"),
        (rubric(criterion(weight=math.nan)), ""),
        (rubric(criterion(dimension="style")), "criteria.0.dimension"),
        (rubric(), "criteria"),
    ],
)
def test_a_broken_rubric_is_named_by_place_row_and_field(row, says):
    good = rubric(criterion())
    with pytest.raises(KitError, match="^rubrics.parquet, row 2, field ") as error:
        records.validated([good, row], Rubric, "rubrics.parquet")
    assert says in str(error.value) and "\n" not in str(error.value)


def test_weights_that_sum_to_one_but_for_rounding_are_taken():
    thirds = [criterion(f"c{n}", weight=1 / 3) for n in range(3)]
    assert len(Rubric.model_validate(rubric(*thirds)).criteria) == 3


@pytest.mark.parametrize("verdict", ["Met", "", None, "yes"])
def test_a_verdict_is_one_of_three(verdict):
    row = {"candidate_id": "a", "criterion_id": "c", "judge": "j", "verdict": verdict}
    with pytest.raises(KitError, match="row 1, field verdict"):
        records.validated([row], Verdict, "verdicts")


def test_unknown_columns_and_empty_text_are_refused():
    row = {"id": "a", "instruction_id": "i", "generator": "g", "text": "t"}
    for broken, field in (({**row, "score": 1}, "score"), ({**row, "text": ""}, "text")):
        with pytest.raises(KitError, match=f"field {field}"):
            records.validated([broken], Candidate, "candidates")


def test_the_last_message_is_the_users():
    turns = [Message(role="user", content="?"), Message(role="assistant", content="!")]
    with pytest.raises(ValueError, match="must be the user's"):
        Instruction(id="i", category="c", specialty="s", messages=turns, source="x", difficulty=5)


def test_records_come_back_as_they_went(tmp_path):
    turns = [Message(role="user", content="?")]
    asked = Instruction(
        id="i", category="c", specialty="s", messages=turns, source="x", difficulty=5
    )
    whole = Rubric(
        instruction_id="i",
        status="gold",
        round=1,
        criteria=[
            Criterion(id="c1", dimension="proficiency", text="t", weight=1, kind="dose"),
            Criterion(id="c2", dimension="safety", text="t", weight=0),
        ],
    )
    for record in (asked, whole):
        path = records.save([record], tmp_path / f"{type(record).__name__}.parquet")
        assert records.load(path, type(record), "01_rubrics") == [record]


def test_a_broken_file_a_missing_file_and_nothing_to_write(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not at all")
    with pytest.raises(KitError, match="broken.parquet is not readable Parquet"):
        records.load(tmp_path / "broken.parquet", Verdict, "02_preference_pairs")
    with pytest.raises(KitError, match="missing.*run notebook 02_preference_pairs"):
        records.load(tmp_path / "none.parquet", Verdict, "02_preference_pairs")
    with pytest.raises(KitError, match="nothing to write"):
        records.save([], tmp_path / "empty.parquet")
    assert not (tmp_path / "empty.parquet").exists()


def test_a_row_of_a_stored_file_is_named(tmp_path):
    rows = [
        {"candidate_id": "a", "criterion_id": "c", "judge": "j", "verdict": v, "rationale": ""}
        for v in ("met", "perhaps")
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "verdicts.parquet")
    with pytest.raises(KitError, match="verdicts.parquet, row 2, field verdict"):
        records.load(tmp_path / "verdicts.parquet", Verdict, "02_preference_pairs")


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = workspace.write_text(tmp_path / "a" / "x.txt", "old")
    with pytest.raises(RuntimeError), workspace.replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_json_is_sorted_and_has_no_nan(tmp_path):
    path = workspace.write_json(tmp_path / "x.json", {"b": 1, "a": "ä"})
    assert list(json.loads(path.read_text())) == ["a", "b"]
    with pytest.raises(ValueError):
        workspace.write_json(tmp_path / "nan.json", {"a": math.nan})
    assert not (tmp_path / "nan.json").exists()


def test_no_machine_path_gets_out(tmp_path):
    assert workspace.shown(tmp_path / "x.parquet") == "x.parquet"
