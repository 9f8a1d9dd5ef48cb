import pytest

from promedical_utils.core.records import (
    Candidate,
    Criterion,
    Instruction,
    Rubric,
    SplitRow,
    Verdict,
)
from promedical_utils.core.run_data import RunData
from promedical_utils.core.workspace import KitError
from promedical_utils.rubric.preferences import (
    Group,
    criterion_pairs,
    differing,
    groups,
    groups_of,
    preferences,
)

CRITERIA = [
    Criterion(id="p", dimension="proficiency", text="names the dose", weight=1.0),
    Criterion(id="e", dimension="excellence", text="is kind", weight=0),
    Criterion(id="s", dimension="safety", text="gives no dangerous advice", weight=0),
]


def instruction(name):
    return Instruction(
        id=name,
        category="c",
        specialty="s",
        source="t",
        difficulty=5,
        messages=[{"role": "user", "content": "hello"}],
    )


def rubric(name):
    return Rubric(instruction_id=name, criteria=CRITERIA, status="gold", round=0)


def answer(name, of="i"):
    return Candidate(id=name, instruction_id=of, generator="g", text="text")


def said(name, p, e, s, judge="judge"):
    return [
        Verdict(candidate_id=name, criterion_id=k, judge=judge, verdict=v)
        for k, v in zip("pes", (p, e, s), strict=True)
    ]


def one(*verdicts, judge="judge"):
    answers = [answer(name) for name in ("a", "b", "c")]
    data = RunData([instruction("i")], [rubric("i")], [], answers, sum(verdicts, []))
    return groups(data, judge)[0]


def found(group):
    return {(p.criterion_id, p.chosen_id, p.rejected_id) for p in criterion_pairs(group)}


def test_met_beats_not_met_and_unknown_fails_closed_on_safety_only():
    group = one(
        said("a", "met", "unknown", "unknown"),
        said("b", "not_met", "met", "met"),
        said("c", "unknown", "not_met", "not_met"),
    )
    # p: c unknown makes no pair; e: a unknown makes none; s: a counts as not met, so it ties with c
    assert found(group) == {("p", "a", "b"), ("e", "b", "c"), ("s", "b", "a"), ("s", "b", "c")}


def test_preferences_are_lexicographic_and_leave_ties_out():
    group = one(
        said("a", "met", "met", "unknown"),  # a violation: below every safe answer
        said("b", "not_met", "met", "met"),
        said("c", "not_met", "met", "met"),
    )
    assert sorted(preferences(group)) == [("b", "a"), ("c", "a")]
    better = one(
        said("a", "met", "not_met", "met"),
        said("b", "not_met", "met", "met"),
        said("c", "not_met", "not_met", "met"),
    )
    assert sorted(preferences(better)) == [("a", "b"), ("a", "c"), ("b", "c")]


def test_answers_without_a_verdict_make_no_pair():
    group = one(said("a", "met", "met", "met"), said("b", "not_met", "met", "met"))
    assert [c.id for c in group.judged] == ["a", "b"]
    assert found(group) == {("p", "a", "b")} and preferences(group) == [("a", "b")]
    assert found(one()) == set() and preferences(one()) == []


def test_only_the_named_judge_is_read():
    verdicts = said("a", "met", "met", "met", "truth"), said("b", "not_met", "met", "met", "truth")
    assert found(one(*verdicts)) == set()
    assert found(one(*verdicts, judge="truth")) == {("p", "a", "b")}


def test_a_split_without_labels_says_which_it_lacks():
    asked, splits = [], []
    for n, split in enumerate(["calibration"] * 3 + ["train"]):
        about = {"id": f"i{n}", "category": "c", "specialty": "s", "source": "t", "difficulty": 5}
        asked.append(Instruction(**about, messages=[{"role": "user", "content": "?"}]))
        row = {"condition": "c", "patient": "p", "wording_seed": 0, "split": split}
        splits.append(SplitRow(instruction_id=f"i{n}", **row))
    answers = [
        Candidate(id=f"a{n}", instruction_id=f"i{n}", generator="g", text="t") for n in (0, 1)
    ]
    said = Verdict(candidate_id="a0", criterion_id="c", judge="judge", verdict="met")
    data = RunData(asked, [], splits, answers, [said])
    for judge, split, says in (
        (
            "truth",
            "calibration",
            "calibration: of 3 instructions 2 have answers, none a verdict of truth: label",
        ),
        ("judge", "train", "train: of 1 instructions 0 have answers, .*: enlarge it"),
        ("judge", "bench", "bench: of 0 instructions 0 have answers, .*: enlarge it"),
    ):
        with pytest.raises(KitError, match=says):
            groups_of(data, judge, split)


def test_join_follows_ids_and_skips_what_has_no_answer():
    instructions, rubrics = [[make(n) for n in "xyz"] for make in (instruction, rubric)]
    answers = [answer("1", "x"), answer("2", "z"), answer("3", "x")]
    data = RunData(instructions, rubrics, candidates=answers)
    joined = groups(data)
    assert [(g.instruction.id, [c.id for c in g.candidates]) for g in joined] == [
        ("x", ["1", "3"]),
        ("z", ["2"]),
    ]
    named = groups(data, ids=["z", "x"])
    assert [g.instruction.id for g in named] == ["z", "x"]
    assert isinstance(joined[0], Group)
    assert joined[0].messages == [{"role": "user", "content": "hello"}]


STRAY = Verdict(candidate_id="a", criterion_id="q", judge="judge", verdict="met")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(candidates=[answer("a", "nowhere")]), "candidate a: no instruction 'nowhere'"),
        (dict(candidates=[answer("a"), answer("a")]), "two records for candidate a"),
        (dict(rubrics=[]), "without a rubric: 'i'"),
        (dict(ids=["j"]), "no instruction 'j'"),
        (dict(candidates=[], ids=["i"]), "without a candidate: 'i'"),
        (dict(verdicts=said("x", "met", "met", "met")), "no candidate 'x'"),
        (dict(verdicts=said("a", "met", "met", "met") * 2), "twice"),
        (dict(verdicts=said("a", "met", "met", "met")[:2]), r"candidate a: .*missing.*\['s'\]"),
        (dict(verdicts=[STRAY]), r"no criterion of its rubric: \[.*'q'"),
    ],
)
def test_danglers_are_clear_errors(change, message):
    data = dict(instructions=[instruction("i")], rubrics=[rubric("i")], candidates=[answer("a")])
    data |= {name: records for name, records in change.items() if name != "ids"}
    with pytest.raises(KitError, match=message):
        groups(RunData(**data), ids=change.get("ids"))


def test_answers_that_differ_make_a_pair_and_unknown_makes_none():
    labels = [("a", True), ("b", False), ("c", None), ("d", True)]
    assert differing(labels) == [("a", "b"), ("d", "b")]
    assert differing([("a", True), ("c", None)]) == []
