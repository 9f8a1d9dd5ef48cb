"""The page of all tables and figures, and a table for reading."""

import re
from collections import Counter

import pandas as pd
import pytest

from promedical_utils.paper import all_tables, registry


@pytest.fixture
def folder(tmp_path):
    """A run's paper folder with two tables and one figure."""
    (tmp_path / "tables").mkdir()
    (tmp_path / "figures").mkdir()
    rows = pd.DataFrame(
        {
            "system": ["GPT-5 (judge)", "criterion RM"],
            "reported_overall": ["71.00", ""],
            "run_overall": ["", "80.00"],
            "run_overall_low": ["", "75.00"],
            "run_overall_high": ["", "85.00"],
            "run_pairwise": ["", "66.00"],
            "remark": ["", ""],
        }
    )
    rows.to_csv(tmp_path / "tables/main_results.csv", index=False)
    ablation = rows[["system", "reported_overall"]].assign(ablation="veto")
    ablation.to_csv(tmp_path / "tables/ablation.csv", index=False)
    (tmp_path / "figures/dimensions.csv").write_text("system\n")
    return tmp_path


def test_a_page_drops_empty_columns_and_folds_intervals(folder):
    text = all_tables.page(folder, "main_results")
    assert text.splitlines() == [
        "| system | reported overall | run overall | run pairwise |",
        "| --- | --- | --- | --- |",
        "| GPT-5 (judge) | 71.00 |  |  |",
        "| criterion RM |  | 80.00 (75.00 to 85.00) | 66.00 |",
    ]


def test_a_page_of_some_columns_leaves_out_rows_without_any(folder):
    assert all_tables.page(folder, "main_results", ["system", "run_overall"]).splitlines() == [
        "| system | run overall |",
        "| --- | --- |",
        "| criterion RM | 80.00 (75.00 to 85.00) |",
    ]
    head = all_tables.page(folder, "main_results", ["system", "reported_*"]).splitlines()[0]
    assert head == "| system | reported overall |"


def test_a_table_that_is_not_there_is_one_line(folder):
    assert all_tables.page(folder, "none") == "`none`: not built in this profile"


def test_every_table_and_figure_stands_on_the_page_once():
    names = Counter(name for s in all_tables.SECTIONS for name in s.get("tables", ()))
    assert names == Counter(list(registry.TABLES))
    figures = Counter(name for s in all_tables.SECTIONS for name in s.get("figures", ()))
    assert figures == Counter(list(registry.FIGURES))


def test_the_page_shows_what_there_is_and_says_what_there_is_not(folder):
    path = all_tables.save(folder)
    text = path.read_text(encoding="utf-8")
    assert path.name == "all_tables.md" and str(folder) not in text
    assert "80.00 (75.00 to 85.00)" in text and "![dimensions](figures/dimensions.png)" in text
    assert "`rar`: not built in this profile" in text
    assert "`overview`: not built in this profile" in text
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [
        section["title"] for section in all_tables.SECTIONS
    ]
    assert path.read_bytes() == all_tables.save(folder).read_bytes()


def test_every_link_of_the_page_leads_to_a_file(folder):
    (folder / "figures/dimensions.png").touch()
    text = all_tables.save(folder).read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert {"tables/main_results.csv", "tables/ablation.csv", "figures/dimensions.png"} == {*links}
    assert all((folder / link).exists() for link in links)


def test_columns_that_the_page_names_are_columns_of_the_committed_tables():
    root = registry.project_root() / "papers_figures/record/tables"
    for section in all_tables.SECTIONS:
        for name, columns in section.get("tables", {}).items():
            header = list(pd.read_csv(root / f"{name}.csv", nrows=0)) if columns else []
            for column in (c for c in columns if "*" not in c):
                assert column in header, (name, column)
