"""Long tables as people bring them: every row is read, or named by file, line and column."""

import json

import pandas as pd
import pytest

from promedical_utils.core import long_table
from promedical_utils.core.workspace import KitError


class Row(long_table.Row):
    item: str
    verdict: long_table.Verdict | None = None
    weight: float | None = None
    system: str = ""


def read(path, text, mapping=None):
    path.write_text(text, encoding="utf-8")
    return long_table.read([path], Row, mapping, ["verdict"], "system")


def test_the_three_formats_say_the_same(tmp_path):
    rows = [
        {"item": "a", "verdict": True, "weight": 0.5},
        {"item": "b", "verdict": 0, "weight": None},
        {"item": "1", "verdict": "Unknown", "weight": 2},
    ]
    lines = "\n".join(map(json.dumps, rows)) + "\n\n"
    (tmp_path / "t.csv").write_text("item,verdict,weight\na,TRUE,0.5\nb,0.0,\n\n1,unknown,2\n")
    pd.DataFrame(rows).astype({"verdict": str}).to_parquet(tmp_path / "t.parquet")
    for frame in (
        read(tmp_path / "t.jsonl", "\ufeff" + lines),
        long_table.read([tmp_path / "t.csv"], Row),
        long_table.read([tmp_path / "t.parquet"], Row),
    ):
        assert frame["item"].tolist() == ["a", "b", "1"]
        assert frame.verdict.tolist() == ["met", "not_met", "unknown"]
        assert frame.weight.fillna(-1).tolist() == [0.5, -1, 2]
    assert long_table.read([tmp_path / "t.csv"], Row).place.iloc[2] == "t.csv, line 5"


def test_columns_of_several_systems_become_rows(tmp_path):
    frame = read(tmp_path / "t.csv", "item,verdict,verdict:gpt,theirs\na,met,1,\nb,,0,met\n")
    assert frame.loc[frame.system == "gpt", "verdict"].tolist() == ["met", "not_met"]
    text = "item,verdict:gpt,theirs\na,1,\nb,0,met\n"
    frame = read(tmp_path / "t.csv", text, {"verdict:own": "theirs"})
    assert frame[["item", "system", "verdict"]].dropna().to_numpy().tolist() == [
        ["a", "gpt", "met"],
        ["b", "gpt", "not_met"],
        ["b", "own", "met"],
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("item,verdict\na,met\nb,met,1\n", "t.csv, line 3 has 3 cells, the header 2"),
        ("item,verdict\na\n", "t.csv, line 2 has 1 cells, the header 2"),
        ("item,verdict,\na,met,\nb,met\n", "t.csv, line 3 has 2 cells, the header 3"),
        ("item,item\na,b\n", "two columns have one name"),
        ("item,verdict\na,met\n\n\nb,Met.\n", "t.csv, line 5, column verdict: .*not 'Met.'"),
        ("item,weight\na,much\n", "t.csv, line 2, column weight: .*not 'much'"),
        ("item,weight\n,1\n", "t.csv, line 2, column item: the cell is empty"),
        ("prompt_id,weight\na,1\n", "no column 'item', for item; there are: prompt_id, weight"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, text, says):
    with pytest.raises(KitError, match=says):
        read(tmp_path / "t.csv", text)


def test_broken_files_are_named(tmp_path):
    for name, text, says in (
        (
            "t.jsonl",
            '{"item": "a"}\n{"item"\n',
            "t.jsonl, line 2 .JSONDecodeError.: a row is",
        ),
        ("t.jsonl", "[1, 2]\n", "cannot read t.jsonl, line 1 .TypeError.: a row is a JSON object"),
        ("t.json", "[[1, 2]]", "cannot read t.json, row 1 .TypeError.: a row is a JSON object"),
        ("t.jsonl", "[" * 30000 + "\n", "cannot read t.jsonl, line 1 .RecursionError."),
        ("t.jsonl", '{"item": ["a", "b"]}\n', "t.jsonl, line 1, column item"),
        ("t.parquet", "no parquet", "cannot read t.parquet"),
    ):
        with pytest.raises(KitError, match=says):
            read(tmp_path / name, text)
    (tmp_path / "t.csv").write_bytes(b"item\n\xff\n")
    with pytest.raises(KitError, match="cannot read t.csv .*save it as UTF-8"):
        long_table.read([tmp_path / "t.csv"], Row)
    with pytest.raises(KitError, match="no file none.csv: give the path"):
        long_table.read([tmp_path / "none.csv"], Row)
    with pytest.raises(KitError, match="no column 'prompt', for item; there are: item"):
        read(tmp_path / "t.csv", "item\na\n", {"item": "prompt"})
