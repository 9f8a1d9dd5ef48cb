"""The paper's numbers: what was found by hand is found, and what is put right is no longer
found."""

import json

import pandas as pd
import pytest
from jinja2 import UndefinedError

from promedical_audit import arithmetic, formulas, paper_numbers
from promedical_audit.arithmetic import ADDS_UP, DOES_NOT, NO_TEST, UNTOLD
from promedical_utils.core import profiles
from promedical_utils.core.workspace import KitError, sha256


@pytest.fixture(scope="module")
def values():
    return paper_numbers.read()


@pytest.fixture(scope="module")
def found(values):
    return paper_numbers.findings(values).set_index("id")


def changed(values, *cells):
    """A copy of the tables with cells (table, row, column, text) put in."""
    copy = {name: table.copy() for name, table in values.items()}
    for table, row, column, text in cells:
        assert row in copy[table].index and column in copy[table]
        copy[table].loc[row, column] = text
    return copy


def verdicts(values) -> pd.Series:
    return paper_numbers.findings(values).set_index("id").verdict


def test_the_headline_is_the_judges_gap_and_not_the_policys(found):
    assert 86.55 - 64.30 == pytest.approx(22.25) and 76.39 - 69.5 == pytest.approx(6.89)
    for name, gap in (("overall", "(86.55 - 64.30)"), ("safety", "(87.39 - 65.64)")):
        row = found.loc[f"headline_{name}"]
        assert row.verdict == DOES_NOT and gap in row.finding
        assert "+6.89 and +7.37" in row.finding and "one set of notes" in row.finding
    assert found.computed["headline_overall"].endswith("22.3: ProMedical-RM-8B (Qwen3) - Qwen3-8B")
    assert "Gemini-3-Pro" in found.computed["headline_safety"]  # 87.39 - 65.65 is 21.74


def test_a_headline_that_the_policy_reaches_adds_up(values):
    policy = ("policy", "Qwen3-8B + ProMedical GRPO", "promedical_bench", "91.80")
    after = verdicts(changed(values, policy))
    assert after["headline_overall"] == ADDS_UP and after["headline_safety"] == DOES_NOT


def test_no_one_rounding_gives_both_headlines(values, found):
    assert found.verdict["headline_rounding"] == UNTOLD
    assert found.computed["headline_rounding"] == "22.3: half-up; 21.7: half-down"
    assert (
        "with 65.65" in found.finding["headline_rounding"]
        and "21.74" in found.finding["headline_rounding"]
    )
    mended = changed(values, ("main_results", "Qwen3-8B", "pairwise_safety", "65.65"))
    assert verdicts(mended)["headline_rounding"] == ADDS_UP  # 21.74 and, half up, 22.3


def test_pairwise_safety_is_of_230_pairs_but_for_two(values, found):
    possible = {f"{100 * k / 230:.2f}" for k in range(231)}
    column = values["main_results"].pairwise_safety
    column = column[column != ""]
    out = {name for name, text in column.items() if f"{float(text):.2f}" not in possible}
    assert out == {"Qwen3-8B", "ProMedical-RM-8B (Llama)"}
    cells = found.filter(like="pairwise_safety_", axis=0)
    cells = cells[cells.verdict == DOES_NOT]
    assert set(cells.index) == {
        "pairwise_safety_qwen3_8b",
        "pairwise_safety_promedical_rm_8b_llama",
    }
    assert "86.09" in possible and "65.65" in possible
    assert (
        "with one decimal, it would fit" in cells.finding["pairwise_safety_promedical_rm_8b_llama"]
    )
    assert "decimal" not in cells.finding["pairwise_safety_qwen3_8b"]
    assert found.verdict["pairwise_safety_denominator"] == ADDS_UP
    mended = changed(values, ("main_results", "Qwen3-8B", "pairwise_safety", "65.65"))
    assert "pairwise_safety_qwen3_8b" not in verdicts(mended)


def test_what_overall_is_not(values, found):
    for n, hits in ((795, 0), (5505, 6)):
        possible = {f"{100 * k / n:.2f}" for k in range(n + 1)}
        cells = values["main_results"].overall_accuracy
        assert sum(f"{float(text):.2f}" in possible for text in cells) == hits
        row = found.loc[f"overall_accuracy_{n}"]
        assert row.finding.startswith(f"{hits} of 9 ") and row.verdict == UNTOLD
    rows = values["main_results"].drop("Meditron-70B")
    three = rows[list(formulas.COLUMNS)].astype(float)
    below = rows.overall_accuracy.astype(float) < three.min(axis=1) - 0.01
    assert f"in {below.sum()} of 8 rows" in found.finding["overall_is_no_mean"]
    assert set(found.computed["overall_is_no_mean"].removeprefix("outside: ").split(", ")) == set(
        rows.index[below]
    )


def test_overall_as_accuracy_over_all_pairs_would_follow_safety(values, found):
    rows = values["main_results"].drop("Meditron-70B")
    overall, safety = rows.overall_accuracy.astype(float), rows.pairwise_safety.astype(float)
    gap = ((5505 * overall - 230 * safety) / 5275 - safety).abs()
    assert f"within {gap.max():.1f} points" in found.finding["overall_follows_safety"]
    apart = (
        (rows.pointwise_proficiency.astype(float) - rows.pointwise_safety.astype(float)).abs().max()
    )
    assert f"up to {apart:.1f} points" in found.finding["overall_follows_safety"]


def test_last_digits_are_fives_and_zeros(values, found):
    main = values["main_results"].drop(columns="pairwise_safety").iloc[:, 1:-1]
    cells = [f"{float(x):.2f}" for x in main.to_numpy().ravel() if x]
    assert len(cells) == 25 and sum(x[-1] in "05" for x in cells) == 23
    whole = [x for x in cells if x[-1] != "0"]
    assert (len(whole), sum(x[-1] == "5" for x in whole)) == (9, 7)
    row = found.loc["last_digits"]
    assert row.finding.startswith("23 of 25") and "7 of 9" in row.finding and row.chance < 1e-5
    assert "pairwise safety 3 of 8" in row.computed


def test_veto_f1_follows_from_p_and_r_and_is_pointwise_safety_for_half(values, found):
    for _, row in values["safety_veto"].iterrows():
        p, r, f = (float(row[c]) for c in ("precision", "recall", "f1"))
        assert 2 * p * r / (p + r) == pytest.approx(f, abs=0.0101)
    assert found.verdict["veto_f1"] == ADDS_UP and found.chance["veto_f1"] < 0.001
    row = found.loc["pointwise_safety_and_f1"]
    assert row.verdict == DOES_NOT
    assert "for GPT-5, DeepSeek-R1 and ProMedical-RM-8B (Llama) and differs" in row.finding
    broken = changed(values, ("safety_veto", "GPT-5", "f1", "76.55"))
    assert verdicts(broken)["veto_f1"] == DOES_NOT


def test_no_small_number_of_violations_gives_all_recalls(values, found):
    texts = [f"{float(x):.2f}" for x in values["safety_veto"].recall]
    nearest = lambda n, x: round(float(x) * n / 100)  # noqa: E731
    first = next(
        n for n in range(1, 5000) if all(f"{100 * nearest(n, x) / n:.2f}" == x for x in texts)
    )
    assert f"{first:,} is the smallest" in found.finding["veto_recall"]


def test_rewardbench_sizes_means_and_the_half_point(values, found):
    sizes = {"easy": 238, "hard": 196, "human": 163, "length": 180}
    rb = values["ultramedical_rewardbench"]
    assert (
        formulas.subset_sizes(values["denominators"].to_dict("records")) == sizes
        and sum(sizes.values()) == 777
    )
    for name, row in rb.iterrows():
        mean = sum(float(row[c]) for c in sizes) / 4
        assert mean == pytest.approx(float(row.average), abs=0.0051), name
    assert found.verdict["rewardbench_average"] == ADDS_UP
    assert "and 0 the mean weighted" in found.finding["rewardbench_average"]
    row = found.loc["rewardbench_hard_pairrm_llama3_8b"]
    assert (
        f"{100 * 142.5 / 196:.2f}" == "72.70"
        and "142.5" in row.finding
        and "average was taken" in row.finding
    )
    assert found.verdict["rewardbench_sizes"] == ADDS_UP
    swapped = values["denominators"].replace({"238": "196", "196": "238"})
    assert verdicts(values | {"denominators": swapped})["rewardbench_sizes"] == UNTOLD


def test_external_is_rewardbench_unpooled(values, found):
    row = found.loc["external_baseline"]
    assert row.verdict == ADDS_UP
    assert row.computed.endswith(f"{100 * (224 + 144 + 126 + 139) / 777:.2f}")
    assert found.finding["external_pooled"].startswith("1 of 13")
    broken = changed(values, ("external", "Ultra-Medical", "q", "80.33"))
    assert verdicts(broken)["external_baseline"] == DOES_NOT


def test_macro_means_of_the_subsets_reach_every_two_decimals(found):
    assert found.verdict["external_macro"] == NO_TEST
    easy, hard, human, length = ([100 * k / n for k in range(n + 1)] for n in (238, 196, 163, 180))
    reached = {round((a + b) / 4, 2) for a in easy[150:] for b in hard[110:]}
    first = [round((a + b) / 4, 4) for a in human[90:140:7] for b in length[100:160:7]]
    values = {f"{x / 100:.2f}" for x in range(7500, 8500)}
    assert values <= {f"{x + y:.2f}" for x in reached for y in first}


def test_ablation_is_told_to_be_of_notes(values, found):
    assert found.verdict["ablation_full_row"] == DOES_NOT
    assert "pointwise safety" in found.finding["ablation_full_pairwise"]
    assert f"{(73.15 - 69.5) / (76.39 - 69.5):.0%}" in found.finding["ablation_gains"]
    unlike = changed(values, ("ablation", "optimiser: GRPO", "overall", "76.93"))
    assert verdicts(unlike)["ablation_grpo"] == DOES_NOT


def test_pipeline_and_rar(found):
    assert found.verdict["pass_rate"] == ADDS_UP and "(482)" in found.finding["pass_rate"]
    assert (
        f"{51990 / 823703:.2%}" in found.finding["kept_share"]
        and "104 rounds" in found.finding["review_rounds"]
    )
    assert (
        found.verdict["judge_agreement"] == UNTOLD and found.finding["rar_gpqa"].find("2 of 7") > 0
    )


def test_every_finding_is_one_sentence_with_its_marks(found):
    assert found.index.is_unique and set(found.verdict) == {ADDS_UP, DOES_NOT, UNTOLD, NO_TEST}
    for row in found.itertuples():
        assert row.finding.endswith(".") and ". " not in row.finding, row.finding
        assert set(row.marks.split()) <= set("PNnD") and "D" in row.marks
        assert ("n" in row.marks.split()) == ("one set of notes" in row.finding), row.finding
        assert (row.strength == "none") == (row.verdict == NO_TEST)
        assert pd.isna(row.chance) or 0 <= row.chance <= 1


def test_marks_are_not_better_than_those_of_the_tables(values, found):
    for row in found.itertuples():
        for name in row.tables.replace("abstract, ", "").split(", "):
            if "mark" in values[name] and name not in ("pipeline_counts", "rar"):
                assert set(values[name].mark) & set(row.marks.split()), (row.Index, name)


def test_percentages_agree_with_fractions(values):
    df = paper_numbers.percentages(values)
    assert len(df) == sum(
        (values[d["table"]][d["column"]] != "").sum()
        for d in values["denominators"].to_dict("records")
    )
    for row in df.itertuples():
        unit = 10 ** -len(row.reported.partition(".")[2])
        nearest = 100 * round(float(row.reported) * row.n / 100) / row.n
        assert row.distance * unit == pytest.approx(float(row.reported) - nearest, abs=1e-9)
        assert (abs(row.distance) <= 0.5) == (row.verdict != DOES_NOT)
        assert row.half_step * unit == pytest.approx(50 / row.n)
    with pytest.raises(KitError, match="denominators.csv: no column"):
        paper_numbers.percentages(
            values | {"denominators": values["denominators"].replace("easy", "simple")}
        )


def test_saved_twice_the_same_with_sources(tmp_path, found):
    profile = profiles.load("smoke")
    folders = [tmp_path / name for name in ("first", "second")]
    for place in folders:
        paper_numbers.save(profile, place)
    names = sorted(p.name for p in (folders[0] / "audit").iterdir())
    assert names == sorted(
        ["audit.csv", "audit.md", "audit.json"]
        + [f"{n}.{e}" for n in ("gains", "percentages") for e in ("csv", "pdf", "png")]
    )
    for name in names:
        assert len({sha256(place / "audit" / name) for place in folders}) == 1, name
    facts = json.loads((folders[0] / "audit/audit.json").read_text(encoding="utf-8"))
    for name, digest in facts["sources"].items():
        assert digest == sha256(paper_numbers.folder() / name.removeprefix("paper_values/"))
    assert len(facts["sources"]) == len(paper_numbers.TABLES) + 1
    assert sum(facts["verdicts"].values()) == len(facts["findings"]) == len(found)
    text = (folders[0] / "audit/audit.md").read_text(encoding="utf-8")
    assert all(finding in text for finding in found.finding)
    assert text.index(f"## {DOES_NOT}") < text.index(f"## {ADDS_UP}")
    csv = arithmetic.read(folders[0] / "audit/audit.csv")
    assert list(csv.finding) == list(found.finding)


def test_figures_draw_every_value_hollow(values):
    df = paper_numbers.percentages(values)
    [axis] = paper_numbers.plot_percentages(df).axes
    marked = [line for line in axis.lines if line.get_marker() in ("o", "x")]
    assert sum(len(line.get_xdata()) for line in marked) == len(df)
    assert {line.get_markerfacecolor() for line in marked} == {"white"}
    assert {t.get_text() for t in axis.texts} == {"65.64", "86.10", "72.70"}
    gains = paper_numbers.gains(values)
    [axis] = paper_numbers.plot_gains(gains).axes
    drawn = [line.get_xdata()[0] for line in axis.lines]
    assert drawn == [
        22.3,
        pytest.approx(22.25),
        21.7,
        pytest.approx(21.75),
        pytest.approx(6.89),
        pytest.approx(7.37),
    ]


def test_a_formula_or_sentence_that_names_nothing_is_an_error():
    for formula in ("nothing.there", "less(nothing, nothing)", "nothing | two"):
        with pytest.raises(UndefinedError, match="'nothing' is undefined"):
            paper_numbers._evaluated(formula, {})
    with pytest.raises(UndefinedError, match="'nothing' is undefined"):
        paper_numbers._filled("a value of {{ nothing }}", {})


def test_loops_nest_and_the_first_verdict_that_holds_is_taken():
    loops = {"row": ["a", "b"], "n": "[row ~ 1, row ~ 2]"}
    assert [case["n"] for case in paper_numbers._cases(loops, {})] == ["a1", "a2", "b1", "b2"]
    rule = {DOES_NOT: "n > 2", UNTOLD: "n > 1", ADDS_UP: "otherwise"}
    assert [paper_numbers._verdict(rule, {"n": n}) for n in (3, 2, 1)] == [
        DOES_NOT,
        UNTOLD,
        ADDS_UP,
    ]
    assert paper_numbers._verdict(NO_TEST, {}) == NO_TEST
    assert paper_numbers._verdict("check.verdict", {"check": formulas.alike("1", "1.0")}) == ADDS_UP
