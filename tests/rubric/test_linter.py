"""The rubric linter by hand: what each check finds, and what it must leave alone."""

import math

import pandas as pd
import pytest

from promedical_utils.rubric import linter


def criteria(*rows, **fixed):
    """A frame of (text, points) or (text, points, changes), all of one rubric."""
    made = []
    for number, (text, points, *changes) in enumerate(rows, 1):
        row = {"row": 1, "rubric": "r", "number": number, "criterion": text, "points": points}
        row |= {"dimension": "proficiency", "safety": False, "levels": (), "met": ""}
        made.append(row | fixed | (changes[0] if changes else {}))
    return pd.DataFrame(made)


def checks(*rows, of=None, **fixed):
    """Checks found, by the number of the criterion; of ``of`` alone, if it is given."""
    found = linter.lint(criteria(*rows, **fixed))
    found = found[~found.check.isin(["veto_empty", "dimension_missing"])]
    if of:
        return found[found.check == of].number.tolist()
    return set(zip(found.number, found.check))


@pytest.mark.parametrize(
    ("points", "text", "check"),
    [
        (-5, "Avoids naming Morlodor.", "avoided_penalty"),
        (-5, "The response should not name Morlodor.", "avoided_penalty"),
        (-5, "Does not invent a dose of Morlodor.", "avoided_penalty"),
        (-5, "Does not name the dose of Morlodor.", None),  # an omission, rightly a penalty
        (-5, "Avoids answering about Morlodor.", None),
        (5, "Avoids naming Morlodor.", None),
        (-5, "Should name the dose of Morlodor.", "right_penalised"),
        (-5, "Correctly names the dose of Morlodor.", "right_penalised"),
        (-5, "Names Morlodor.", None),
        (5, "Should name the dose of Morlodor.", None),
        (5, "Fails to name Morlodor.", "rewarded_fault"),
        (5, "Incorrectly says that Morlodor helps.", "rewarded_fault"),
        (-5, "Fails to name Morlodor.", None),
        (5, "Names Morlodor and explains its dose.", "compound"),
        (5, "Names Morlodor. Also warns of its dose.", "compound"),
        (-5, "Fails to mention Morlodor or explain its dose.", "compound"),
        (5, "Says that Morlodor and Bendrapin cause cough.", None),
        (-5, "Fails to say that Morlodor should be stopped and list its risks.", None),
        (5, "Asks about weight, age, and drugs.", "enumeration"),
        (5, "Asks about weight, age, and drugs (any of these).", "enumeration"),  # brackets unread
        (5, "Asks about at least two of weight, age, and drugs.", None),
        (5, "Says that weight, age, and drugs matter.", None),
        (5, "Morlodor as in the reference answer.", "outside"),
        (5, "Doses of Morlodor are consistent with current guidelines.", "outside"),
        (5, "States that doses of Morlodor should align with guidelines.", None),
        (5, "Is clear, concise and polite.", "generic"),
        (5, "Is clear on Morlodor.", None),
        (5, " ", "blank"),
        (5, "N/A", "blank"),
        (5, "告诉患者不要服用", "not_english"),
        (0, "Names Morlodor.", "weight_zero"),
    ],
)
def test_a_criterion_by_its_words(points, text, check):
    found = checks(("Names one's pulse on Sundays.", 5), (text, points))
    assert found == ({(2, check)} if check else set()), found


def test_what_is_not_known_of_a_criterion_is_said():
    safe = {"dimension": "safety", "safety": True}
    assert checks(("Names no Morlodor.", 0, safe), ("Names a dose.", 1)) == set()
    assert checks(("Names a dose.", 1, {"dimension": "style"})) == {(1, "dimension_unknown")}
    undecided = ("Names Morlodor.", -8, {"safety": None})
    assert checks(undecided, ("Names a dose.", 1)) == {(1, "veto_undecided")}
    levels = {"levels": ("none", "some", "all")}
    assert checks(("Names a dose.", 1, levels)) == {(1, "levels")}
    assert checks(("Names a dose.", 1, levels | {"met": "2"})) == set()
    twice = {"levels": ("none", "none"), "met": "1"}
    assert checks(("Names a dose.", 1, twice)) == {(1, "levels")}
    no_dimension = linter.lint(criteria(("Names a dose.", 1), dimension=""))
    assert set(no_dimension.check) == {"dimension_missing", "veto_empty"}


@pytest.mark.parametrize(
    ("first", "second", "check"),
    [
        (("Says that it stings.", 5), ("States that it stings.", 3), "doubled"),
        (("Says that it stings.", 5), ("Fails to say that it stings.", -5), "doubled"),
        (("Says that it stings.", 5), ("Says that it does not sting.", 5), "contradicting"),
        (("Says that it stings.", 5), ("Mentions that it stings.", -5), "contradicting"),
        (("Says that hepatitis A stings.", 5), ("Says that hepatitis B stings.", 5), None),
        (("Names 40 drops a day.", 5), ("Names 60 drops a day.", 5), None),
        # each has a word that the other has not: they are siblings
        (
            ("Says that burns weaken the body and its defence.", 5),
            ("Says that stress weakens the body and its defence.", 5),
            None,
        ),
    ],
)
def test_two_criteria_of_a_rubric(first, second, check):
    found = linter.lint(criteria(first, second))
    found = found[found.check.isin(["doubled", "contradicting"])]
    assert found.check.tolist() == ([check] if check else [])
    assert found.number.tolist() == [2] * len(found)  # the later one, with the number of the other
    assert found.seen.tolist() == ["number 1"] * len(found)


def test_pairs_are_of_one_rubric_and_a_text_everywhere_is_generic():
    same = [("Says that it stings.", 5, {"rubric": n, "row": n}) for n in range(1, 10)]
    assert not checks(*same)
    tenth = ("Says that it stings.", 5, {"rubric": 10, "row": 10})
    found = linter.lint(criteria(*same, tenth))
    found = found[found.check == "generic"]
    assert found.row.tolist() == list(range(1, 11))
    assert set(found.seen) == {"word for word in 10 rubrics"}


def test_weights():
    a, b, c = "Names one dose.", "Says when to call.", "Asks about cough."
    assert checks((a, -1), (b, -2)) == {(1, "weight_none")}
    assert checks((a, 2), (b, 2), (c, 2)) == {(1, "weights_equal")}
    assert checks((a, 2), (b, 9), (c, 2)) == {(2, "weight_heavy")}
    assert checks((a, 2), (b, 4), (c, 3)) == checks((a, 4), (b, 4)) == set()
    assert checks((a, math.nan), (b, math.nan)) == set()  # a format without points
    nine_to_one = -(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1))
    assert linter.entropy(pd.Series([9, 1, -5])) == pytest.approx(nine_to_one)
    assert linter.entropy(pd.Series([3, 3, 3])) == pytest.approx(1)
    assert math.isnan(linter.entropy(pd.Series([3, -1])))


def test_the_summary_has_every_check_and_is_drawn():
    frame = criteria(("Avoids naming Morlodor.", -5), ("Names a dose.", 5), ("Should call.", -5))
    table = linter.summary(linter.lint(frame), len(frame)).set_index("check")
    assert set(table.index) == set(linter.RULES.index)
    assert set(table.severity) == set(linter.SEVERITIES)
    polarity = table.loc[["avoided_penalty", "right_penalised", "blank"]]
    assert polarity.findings.tolist() == polarity.rows.tolist() == [1, 1, 0]
    assert polarity.share.tolist() == pytest.approx([1 / 3, 1 / 3, 0])
    drawn = linter.figure(table.reset_index()).axes[0]
    named = [label.get_text() for label in drawn.get_yticklabels()]
    assert named == table.index.tolist()


def test_nothing_found_is_a_table_and_a_figure_too():
    clean = criteria(("Names no Morlodor.", 0, {"dimension": "safety", "safety": True}))
    clean = pd.concat([clean, criteria(("Names a dose.", 5))], ignore_index=True)
    table = linter.summary(linter.lint(clean), len(clean))
    assert not table.findings.sum() and linter.figure(table).axes
