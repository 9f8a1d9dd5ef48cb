"""Rubrics in every format that is read, of rows made up here, and the command on them."""

import gzip
import json
import os
import re
from pathlib import Path

import pandas as pd
import pytest

from promedical_utils import __main__
from promedical_utils.core.workspace import KitError, project_root, short_hash
from promedical_utils.data.sources import real_sets, rubric_files, schemas
from promedical_utils.rubric import linter

DATA = os.environ.get(schemas.VARIABLE)
GOOD, BAD = "Names the dose.", "Names Morlodor."
ITEMS = [{"criterion": GOOD, "points": 5}, {"criterion": BAD, "points": -8}]
RAR = [{"title": "Dose", "description": GOOD, "weight": 5}, {"description": BAD, "weight": -8}]
WEIGHED = [{"name": "dose", "text": GOOD, "weight": 5}, {"name": "no", "text": BAD, "weight": 0}]
KIT = [
    {"id": "a", "dimension": "proficiency", "text": GOOD, "weight": 1.0, "kind": "x"},
    {"id": "b", "dimension": "safety", "text": BAD, "weight": 0.0, "kind": "x"},
]
LINES = f"1. {GOOD} [Hard Rule]\n2. {BAD} [Principle]"


def save(folder, name, *rows):
    path = folder / name
    if name.endswith(".parquet"):
        pd.DataFrame(rows).to_parquet(path)
    elif name.endswith(".json"):
        path.write_text(json.dumps(rows[0]))
    elif name.endswith(".gz"):
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


def said(path):
    frame, name = rubric_files.read(path)
    assert frame.criterion.str.startswith((GOOD, BAD)).all() and frame.number.tolist() == [1, 2]
    return name, frame.points.fillna(0).tolist(), frame.safety.tolist()


@pytest.mark.parametrize(
    ("name", "row", "wanted"),
    [
        ("a.jsonl", {"prompt_id": "p", "rubrics": ITEMS}, ("HealthBench", [5, -8], [False, None])),
        ("a.jsonl.gz", {"prompt": [], "Rubrics": ITEMS}, ("RubricHub", [5, -8], [False, None])),
        ("a.parquet", {"question": "q", "rubric": RAR}, ("RaR", [5, -8], [False, None])),
        ("a.jsonl", {"instruction": "q", "rubric": LINES}, ("OpenRubrics", [0, 0], [False] * 2)),
        ("a.json", {"criteria": WEIGHED}, ("the kit or verifiers", [5, 0], [False] * 2)),
        ("a.json", WEIGHED, ("the kit or verifiers", [5, 0], [False] * 2)),
        ("a.parquet", {"criteria": KIT}, ("the kit or verifiers", [1, 0], [False, True])),
        ("a.jsonl", {"Must_have": [GOOD], "Nice_to_have": [BAD]}, ("K-QA", [0, 0], [False] * 2)),
    ],
)
def test_formats(tmp_path, name, row, wanted):
    assert said(save(tmp_path, name, row)) == wanted


def test_verifiers_toml_and_its_choices(tmp_path):
    path = tmp_path / "rubric.toml"
    of = "\n[[criteria]]\nname = '{}'\ntext = '{}'\n"
    text = of.format("a", GOOD) + "choices = ['none', 'some', 'all']\n" + of.format("b", BAD)
    path.write_text(text)
    frame, _ = rubric_files.read(path)
    assert frame.levels.tolist() == [("none", "some", "all"), ()]
    assert linter.lint(frame).query("check == 'levels'").number.tolist() == [1]


def test_a_row_without_criteria_and_a_rubric_without_numbers_are_not_lost(tmp_path):
    rows = [{"question": n, "rubric": items} for n, items in enumerate((RAR, [], None))]
    frame, _ = rubric_files.read(save(tmp_path, "a.jsonl", *rows))
    assert linter.lint(frame).query("check == 'blank'").row.tolist() == [2, 3]
    text = {"rubric": "Names the dose.\nNames Morlodor."}
    assert rubric_files.read(save(tmp_path, "b.jsonl", text))[0].criterion.tolist() == [
        text["rubric"]
    ]


def professional(**changes):
    items = [{"criterion_text": GOOD, "points": 5}, {"criterion_text": BAD, "points": -8}]
    talk = {"messages": [{"role": "user", "content": "what may I take?"}]}
    row = {"id": "c1", "conversation": talk, "rubric_items": items, "canary_string": "x"}
    about = {"use_case": "consult", "type": "good_faith", "difficulty": "typical"}
    return row | about | {"specialty": "s", "physician_response": "45 drops"} | changes


def test_healthbench_penalties_are_decided_by_the_list_or_their_field(tmp_path, monkeypatch):
    listed = {short_hash("p", "harm"): True, short_hash("p", "style"): False}
    monkeypatch.setattr(real_sets, "harm", lambda: listed)
    items = [{"criterion": c, "points": -7} for c in ("harm", "style", "unheard of")]
    items += [{"criterion": "mild", "points": -6}, {"criterion": "gain", "points": 6}]
    items += [{"criterion": "said", "points": -9, "safety": "no"}]
    path = save(tmp_path, "a.jsonl", {"prompt_id": "p", "rubrics": items})
    frame, _ = rubric_files.read(path)
    assert frame.safety.tolist() == [True, False, None, False, False, False]
    undecided = linter.lint(frame).query("check == 'veto_undecided'")
    assert undecided.number.tolist() == [3]
    assert said(save(tmp_path, "b.jsonl", professional()))[2] == [False, None]


SHEET = "Criterion,Points,Dimension,level 0,level 1,level 2,met,safety\n"


def test_a_clinicians_table(tmp_path):
    path = tmp_path / "sheet.csv"
    rows = f"{GOOD},5,proficiency,no,half,whole,level 2,\n{BAD},-8,accuracy,,,,,\n"
    path.write_bytes(("\ufeff" + SHEET + rows).encode())  # as Excel saves it
    frame, name = rubric_files.read(path)
    assert name == "table" and frame.points.tolist() == [5, -8]
    assert frame.levels[0] == ("no", "half", "whole") and frame.met[0] == "level 2"
    assert frame.safety.tolist() == [False, None]  # no dimension of the kit: nobody has decided
    path.write_text((SHEET + rows).replace(",", ";"))
    assert rubric_files.read(path)[0].drop(columns="safety").equals(frame.drop(columns="safety"))
    questions = f"question,criterion\nq1,{GOOD}\nq2,{GOOD}\n"
    path.write_text(questions)
    assert rubric_files.read(path)[0].rubric.tolist() == ["q1", "q2"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.csv",
            f"criterion,points\n{GOOD},5\nNames it, and more,5\n",
            "line 3 has 3 cells, the header 2",
        ),
        ("a.csv", f"criterion,points\n{GOOD}\n", "line 2 has 1 cells, the header 2"),
        (
            "a.csv",
            f"criterion,points,points\n{GOOD},5,4\n",
            "a.csv is no CSV: two columns have one name",
        ),
        ("a.csv", "aspect,points\nDose,5\n", "no column criterion, but aspect, points"),
        ("a.csv", f"criterion,points\n{GOOD},five\n", "row 1, criterion 1, field points"),
        ("a.csv", f"criterion,points\n{GOOD},nan\n", "row 1, criterion 1, field points"),
        ("a.csv", f"criterion,safety\n{GOOD},perhaps\n", "field safety: 'perhaps'; write yes"),
        ("a.csv", "criterion,points\n", "no column criterion, but no row"),
        ("a.jsonl", '{"a": 1}\n', "none of the formats HealthBench"),
        ("a.jsonl", '{"rubrics": [\n', "a.jsonl, line 1 (JSONDecodeError): a row is a JSON object"),
        ("a.jsonl", '["a"]\n', "cannot read a.jsonl"),
        ("a.toml", "criteria = 3", "cannot read a.toml"),
        ("none.csv", None, "no file none.csv"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(KitError, match=re.escape(message)) as error:
        rubric_files.read(tmp_path / name)
    assert "\n" not in str(error.value) and str(tmp_path) not in str(error.value)


def test_the_command_writes_a_table_and_a_figure_and_fails_where_it_should(tmp_path, capsys):
    def lint(items, *options):
        path = save(tmp_path, "mine.jsonl", {"question": "q", "rubric": items})
        return __main__.main(["lint", str(path), "--out", str(tmp_path / "out"), *options])

    assert lint(RAR) == 0 and lint(RAR, "--strict") == 1  # undecided is a warning
    assert "undecided penalties: 1" in capsys.readouterr().out
    assert lint([{"description": "Avoids Morlodor.", "weight": -2}, RAR[0]]) == 1
    shown = capsys.readouterr().out
    assert "error, row 1, criterion 1: avoided_penalty" in shown
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *("summary.csv", "summary.png", "summary.pdf", "findings.csv", "veto.csv")
    }
    found = pd.read_csv(tmp_path / "out/findings.csv")
    assert {"file", "row", "criterion", "check", "severity", "todo"} <= set(found)
    assert found.file.eq("mine.jsonl").all() and "Avoids Morlodor." in set(found.criterion)
    veto = pd.read_csv(tmp_path / "out/veto.csv")
    assert len(veto) == 2 and veto.safety.isna().tolist() == [True, False]
    assert __main__.main(["lint", str(tmp_path / "gone.csv")]) == 1
    assert capsys.readouterr().err == "no file gone.csv: give the path of one that is there\n"


def test_no_text_of_healthbench_is_shown_or_stored(tmp_path, capsys):
    items = [{"criterion": "Avoids the secret.", "points": -8}, {"criterion": GOOD, "points": 5}]
    for row in ({"prompt_id": "p", "rubrics": items}, professional()):
        path = save(tmp_path, "a.jsonl", row)
        __main__.main(["lint", str(path), "--out", str(tmp_path / "out")])
        stored = [p.read_text() for p in (tmp_path / "out").glob("*.csv")]
        for text in (*stored, capsys.readouterr().out):
            assert not re.search("secret|Morlodor|the dose", text)


def test_the_page_shows_what_comes_out(tmp_path, capsys):
    docs = project_root() / "docs"
    code = __main__.main(["lint", str(docs / "lint_example.csv"), "--out", str(tmp_path / "lint")])
    shown = capsys.readouterr().out.replace(f"{tmp_path}/", "")
    assert code == 1 and f"```text\n{shown}```" in (docs / "lint.md").read_text()
    assert (docs / "lint.png").stat().st_size > 5000


@pytest.mark.skipif(not DATA, reason=f"{schemas.VARIABLE} is not set: no real rubric is linted")
def test_findings_on_the_public_part_of_healthbench_are_those_of_the_page():
    path = Path(DATA) / schemas.CARDS["healthbench_rubrics"].file
    frame, name = rubric_files.read(path)
    assert (name, len(frame)) == ("HealthBench", 13260)
    assert frame.safety.eq(True).sum() == sum(real_sets.harm().values()) == 926
    found = linter.summary(linter.lint(frame), len(frame)).set_index("check").findings
    page = (project_root() / "docs/lint.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", page, flags=re.MULTILINE)
    assert len(rows) == 13
    assert {check: int(n.replace(",", "")) for check, n in rows} == found[found > 0].to_dict()
