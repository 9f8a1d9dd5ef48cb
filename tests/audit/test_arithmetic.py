"""Arithmetic on reported tables: what counts can give passes, what they cannot give does not."""

import re
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promedical_audit import arithmetic
from promedical_audit.arithmetic import ADDS_UP, DOES_NOT, NO_TEST, UNTOLD
from promedical_utils.core.workspace import KitError, project_root

counts = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
rules, places = st.sampled_from(list(arithmetic.RULES)), st.integers(0, 4)


@settings(deadline=None)
@given(st.fractions(-200, 200, max_denominator=20000), places, rules)
def test_rounding_is_to_the_nearest_and_midway_by_the_rule(value, at, rule):
    text, step = arithmetic.rounded(value, at, rule), Fraction(1, 10**at)
    units, half = Fraction(text) / step, Fraction(1, 2)
    assert arithmetic.decimals(text) == at and not re.fullmatch(r"-[0.]+", text)
    assert units.denominator == 1 and abs(units - value / step) <= half
    if abs(units - value / step) == half:
        away = abs(units) > abs(value / step)
        assert {"half-up": away, "half-down": not away, "half-even": units % 2 == 0}[rule]


@settings(deadline=None)
@given(counts, places, rules)
def test_a_percentage_of_counts_always_passes(count, at, rule):
    k, n = count
    found = arithmetic.grim(arithmetic.rounded(Fraction(100 * k, n), at, rule), n)
    assert found.verdict in (ADDS_UP, NO_TEST)
    if found.verdict == NO_TEST:
        assert (
            1.5 * n > 0.95 * 100 * 10**at
        )  # at most every second count is midway and passes for two


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(0, 10000))
def test_what_passes_is_a_count_by_brute_force(n, value):
    text = f"{value // 100}.{value % 100:02}"
    possible = {
        arithmetic.rounded(Fraction(100 * k, n), 2, r)
        for k in range(n + 1)
        for r in arithmetic.RULES
    }
    found = arithmetic.grim(text, n)
    assert (found.verdict != DOES_NOT) == (text in possible)
    assert set(found.near) <= {arithmetic.rounded(Fraction(100 * k, n), 2) for k in range(n + 1)}
    assert min(abs(float(x) - float(text)) for x in found.near) <= 50 / n + 0.01


@pytest.mark.parametrize(
    "n, at", [(7, 0), (16, 1), (160, 2), (230, 2), (40, 0), (80, 0), (795, 1), (3000, 2)]
)
def test_chance_is_the_share_of_values_that_pass(n, at):
    step = 10**at
    values = [arithmetic.rounded(Fraction(v, step), at) for v in range(100 * step)]  # one period
    passing = sum(arithmetic.grim(v, n).verdict != DOES_NOT for v in values)
    found = arithmetic.grim(values[1], n)
    assert found.chance == pytest.approx(passing / len(values), abs=1e-12)


def test_a_denominator_as_large_as_the_grid_is_no_test():
    assert arithmetic.grim("77.4", 1000).verdict == arithmetic.grim("77.4", 5505).verdict == NO_TEST
    assert arithmetic.grim("77.40", 230).verdict == DOES_NOT  # 178 / 230 is 77.39
    assert arithmetic.grim("77.4", 230).verdict == ADDS_UP  # the same value, written shorter
    assert arithmetic.grim("77.4", 230, places=2).verdict == DOES_NOT  # unless its zero was lost
    assert (
        arithmetic.grim("5.00", 9990).verdict == DOES_NOT
    )  # 499 are 4.99 and 500 are 5.01, weak as it is


def test_means_items_and_half_points():
    assert arithmetic.grim("3.48", 20, scale=1).verdict == DOES_NOT
    assert arithmetic.grim("3.45", 20, scale=1).verdict == ADDS_UP
    assert (
        arithmetic.grim("3.48", 20, items=5, scale=1).verdict == NO_TEST
    )  # 100 parts, two decimals
    assert arithmetic.grim("72.70", 196).verdict == DOES_NOT
    half = arithmetic.grim("72.70", 196, items=2)
    assert half.verdict == ADDS_UP and "142.5 out of 196" in half.finding


def test_a_value_midway_says_how_it_was_rounded():
    assert "half-up" in arithmetic.grim("0.63", 160).finding  # 1 / 160 is 0.625
    assert "half-even or half-down" in arithmetic.grim("0.62", 160).finding
    assert "rounded" not in arithmetic.grim("1.25", 160).finding


positive = st.integers(0, 500)


@settings(deadline=None)
@given(positive, positive, positive, rules, st.integers(1, 3))
def test_f1_of_counts_always_passes(tp, fp, fn, rule, at):
    if tp + fp and tp + fn:
        exact = (
            Fraction(100 * tp, tp + fp),
            Fraction(100 * tp, tp + fn),
            Fraction(200 * tp, 2 * tp + fp + fn),
        )
        assert arithmetic.f1(*(arithmetic.rounded(x, at, rule) for x in exact)).verdict == ADDS_UP


def test_f1_by_hand():
    assert 2 * 79.24 * 73.85 / (79.24 + 73.85) == pytest.approx(76.45, abs=0.005)
    found = arithmetic.f1("79.24", "73.85", "76.45")
    assert found.verdict == ADDS_UP and found.near == ("76.45", "76.46")
    assert arithmetic.f1("79.24", "73.85", "76.55").verdict == DOES_NOT  # the arithmetic mean
    assert arithmetic.f1("0.00", "0.00", "0.00").verdict == ADDS_UP
    assert arithmetic.f1("50", "50", "51").verdict == ADDS_UP  # both may be 50.5
    assert arithmetic.f1("50", "50", "52").verdict == DOES_NOT


def test_sums_and_means():
    assert arithmetic.total(["3625", "1650", "230"], "5505", counts=True).verdict == ADDS_UP
    wrong = arithmetic.total(["3625", "1650", "230"], "5,504", counts=True)
    assert wrong.verdict == DOES_NOT and "5505" in wrong.finding
    assert arithmetic.total(["33.3", "33.3", "33.3"], "100.0").verdict == ADDS_UP  # thirds, rounded
    assert arithmetic.total(["33.3", "33.3", "33.3"], "100.2").verdict == DOES_NOT
    assert arithmetic.mean(["10", "20"], "15").verdict == ADDS_UP
    assert arithmetic.mean(["10.0", "20.0"], "12.5", weights=[3, 1]).verdict == ADDS_UP
    assert arithmetic.mean(["10.0", "20.0"], "15.0", weights=[3, 1]).verdict == DOES_NOT
    assert arithmetic.between(["10.0", "20.0"], "9.5").verdict == DOES_NOT
    assert arithmetic.between(["10.0", "20.0"], "19.9").verdict == ADDS_UP
    with pytest.raises(KitError, match="weight"):
        arithmetic.mean(["1", "2"], "1", weights=[0, 0])


@settings(deadline=None)
@given(st.lists(counts, min_size=2, max_size=5), rules)
def test_a_mean_of_counts_always_passes(parts, rule):
    shares = [Fraction(100 * k, n) for k, n in parts]
    text = [arithmetic.rounded(share, 2, rule) for share in shares]
    macro, pooled = (
        sum(shares) / len(parts),
        Fraction(100 * sum(k for k, _ in parts), sum(n for _, n in parts)),
    )
    assert arithmetic.mean(text, arithmetic.rounded(macro, 2, rule)).verdict == ADDS_UP
    assert (
        arithmetic.mean(text, arithmetic.rounded(pooled, 2, rule), [n for _, n in parts]).verdict
        == ADDS_UP
    )
    assert arithmetic.between(text, arithmetic.rounded(pooled, 2, rule)).verdict != DOES_NOT


def test_differences_say_how_they_were_rounded():
    assert "half-down" in arithmetic.difference("87.39", "65.64", "21.7").finding  # 21.75
    assert "half-up or half-even" in arithmetic.difference("87.39", "65.64", "21.8").finding
    assert "rounded" not in arithmetic.difference("87.39", "65.65", "21.7").finding
    unrounded = arithmetic.difference("10.4", "5.1", "5.24")  # 5.3 as written, 5.2 to 5.4 unrounded
    assert unrounded.verdict == ADDS_UP and "only from unrounded" in unrounded.finding
    assert arithmetic.difference("76.39", "69.5", "22.3", 2).verdict == DOES_NOT


def test_the_same_value_at_other_decimals():
    assert (
        arithmetic.same("80.5", "80.53").verdict
        == arithmetic.same("80.53", "80.5").verdict
        == ADDS_UP
    )
    assert arithmetic.same("80.5", "80.56").verdict == DOES_NOT


def test_a_column_and_a_denominator():
    values = [arithmetic.rounded(Fraction(100 * k, 230), 2) for k in (178, 151, 184, 139, 122, 201)]
    fit = arithmetic.joint([*values, "65.64"], 230)
    assert fit["passed"] == 6 and fit["of"] == 7 and fit["p"] < 1e-8
    assert fit["p"] == pytest.approx(7 * 0.023**6 * 0.977 + 0.023**7)
    assert arithmetic.joint(["65.64"], 230)["p"] == 1
    found = arithmetic.common_denominators(values, 460)
    assert found == [230, 460]
    assert arithmetic.common_denominators(["33.3", "50.0"], 12) == [6, 12]


def test_last_digits():
    values = ["1.00", "1.05", "1.15", "1.23"]
    assert arithmetic.last_digits(values, 2) == {
        "hits": 3,
        "of": 4,
        "p": pytest.approx(4 * 0.2**3 * 0.8 + 0.2**4),
    }
    without = arithmetic.last_digits(values, 2, "5", "123456789")
    assert without == {"hits": 2, "of": 3, "p": pytest.approx(3 * 8 / 9**3 + 1 / 9**3)}
    assert arithmetic.last_digits(["1.1"], 2)["hits"] == 1  # at two decimals its last digit is 0


# ---------------------------------------------------------------- anyone's table


def table(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_of_ones_own(tmp_path):
    path = table(
        tmp_path,
        'name,value,n,decimals\nours,77.39,230,\ntheirs,77.4,230,2\nmany,50.0,"5,505",\nnone,12.5,,\n',
    )
    found = arithmetic.check(arithmetic.read(path)).set_index("name")
    assert list(found.verdict) == [ADDS_UP, DOES_NOT, NO_TEST, UNTOLD]
    assert found.finding["theirs"].startswith("77.40 is no count out of 230: the nearest are 77.39")
    assert found.chance["ours"] == pytest.approx(0.023)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name,value,n\nlarge,64.8,5,505\n", "table.csv, line 2 has 4 cells, the header 3"),
        ("name,value,n\na,77.39,230,\nb,65.64,230,\n", "line 2 has 4 cells, the header 3"),
        ("name,value,n\n\n\na,77.39,230\n\nb,65.64\n", "line 6 has 2 cells, the header 3"),
        ("name,value,n\n\n\na,77.39,230\nb,sixty,230\n", "line 5, column value: 'sixty'"),
        ('name,value,n\na,"77.39,230\n', "line 2 is no CSV: unexpected end of data"),
    ],
)
def test_no_row_is_read_shifted_and_lines_are_those_of_the_file(tmp_path, capsys, text, says):
    assert arithmetic.main([str(table(tmp_path, text))]) == 1
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1


def test_a_table_saved_on_windows(tmp_path, capsys):
    path = table(tmp_path, "")
    path.write_bytes("\ufeffname,value,n\r\na, 77.39 ,230\r\n".encode())
    assert arithmetic.check(arithmetic.read(path)).verdict.tolist() == [ADDS_UP]
    path.write_text("name,value,n\na,77.39,230\n", encoding="utf-16")
    assert arithmetic.main([str(path)]) == 1
    assert "no UTF-8 text" in capsys.readouterr().err


def test_zeros_at_the_end_are_kept(tmp_path):
    found = arithmetic.check(arithmetic.read(table(tmp_path, "value,n\n77.40,230\n77.4,230\n")))
    assert list(found.verdict) == [DOES_NOT, ADDS_UP] and list(found.name) == ["line 2", "line 3"]


def test_a_table_of_f1_and_one_of_means(tmp_path):
    found = arithmetic.check(
        arithmetic.read(
            table(tmp_path, "precision,recall,f1\n79.24,73.85,76.45\n50,50,60\n50,,60\n")
        )
    )
    assert list(found.verdict) == [ADDS_UP, DOES_NOT, UNTOLD]
    found = arithmetic.check(
        arithmetic.read(table(tmp_path, "value,n,kind,items\n3.48,20,mean,\n3.48,25,mean,1\n"))
    )
    assert list(found.verdict) == [DOES_NOT, ADDS_UP]


@pytest.mark.parametrize(
    "text, words",
    [
        ("value,n\n77.39,23x\n", "line 2, column n: '23x'"),
        ("value,n\n77.39,230\n12,0\n", "line 3, column n: '0' is no whole number from 1"),
        ("value,n\n12,7.5\n", "line 2, column n"),
        ('value,n\n"77,4",230\n', "line 2, column value: '77,4'"),
        ("value,n\nhigh,230\n", "line 2, column value: 'high'"),
        ("value,n\n77.4%,230\n", "line 2, column value"),
        ("value,n\nnan,230\n", "line 2, column value"),
        ("value,n\n177.4,230\n", "line 2, column value: 177.4 is no percentage"),
        ("value,n\n-1,230\n", "line 2, column value"),
        ("value,n,decimals\n77.39,230,1\n", "line 2, column value: 77.39 has 2 decimals, not 1"),
        ("value,n,decimals\n77.39,230,x\n", "line 2, column decimals"),
        ("value,n,kind\n77.39,230,median\n", "line 2, column kind: 'median'"),
        ("value,n,items\n77.39,230,0\n", "line 2, column items"),
        ("precision,recall,f1\n50,50,101\n", "line 2, column precision"),
        ("value,total\n77.39,230\n", "there are: value, total"),
        ("", "is no CSV"),
    ],
)
def test_bad_input_is_one_line_that_names_row_and_column(tmp_path, capsys, text, words):
    assert arithmetic.main([str(table(tmp_path, text))]) == 1
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out


def test_floats_are_refused():
    with pytest.raises(KitError, match="trailing zeros"):
        arithmetic.grim(77.4, 230)
    for n in (0, -3, 2.5):
        with pytest.raises(KitError, match="whole numbers"):
            arithmetic.grim("50", n)


def test_the_command_prints_a_sentence_a_row(tmp_path, capsys):
    assert (
        arithmetic.main([str(table(tmp_path, "name,value,n\nours,77.39,230\ntheirs,65.64,230\n"))])
        == 0
    )
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "adds up          ours: 77.39 is 178 out of 230 (2.3 % of random values are)."
    assert said[1].startswith("does not add up  theirs: 65.64 is no count")
    assert said[2] == "1 adds up, 1 does not add up"
    assert arithmetic.main([str(tmp_path / "missing.csv")]) == 1
    assert "missing.csv" in capsys.readouterr().err


def test_the_documented_example_gives_what_is_documented(tmp_path, capsys):
    text = (project_root() / "docs" / "audit.md").read_text(encoding="utf-8")
    example, said = (text.split(f"```{kind}\n")[1].split("```")[0] for kind in ("csv", "text"))
    assert arithmetic.main([str(table(tmp_path, example))]) == 0
    assert capsys.readouterr().out == said
