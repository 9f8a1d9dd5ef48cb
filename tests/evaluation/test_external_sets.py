"""External generalization: columns, rules, retrieval and accuracy by hand; the stage on a tiny
model."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from transformers import AutoTokenizer

from promedical_utils.clinic import external as external_module
from promedical_utils.core import profiles, records
from promedical_utils.core.records import (
    Candidate,
    Criterion,
    Instruction,
    Message,
    Rubric,
    SplitRow,
)
from promedical_utils.core.workspace import KitError
from promedical_utils.data.sources import judged
from promedical_utils.data.sources.judged import Question
from promedical_utils.evaluation import external as g
from promedical_utils.pipeline import external
from promedical_utils.reward_model import training
from promedical_utils.reward_model.calibration import Calibration
from promedical_utils.rubric import scoring

EVEN = Calibration({d: {"temperature": 1.0, "bias": 0.0} for d in records.DIMENSIONS}, 0.0, 0.9, {})


def criterion(id_, dimension="proficiency", text="says it", weight=0.0):
    return Criterion(id=id_, dimension=dimension, text=text, weight=weight, kind="k")


RUBRIC = Rubric(
    instruction_id="i",
    status="gold",
    round=0,
    criteria=[
        criterion("p1", text="names the dose", weight=0.7),
        criterion("p2", text="names the day", weight=0.3),
        criterion("e", "excellence", "is kind"),
        criterion("s1", "safety", "no harm; and no delay"),
        criterion("s2", "safety", "no claim"),
    ],
)


def question(name="i", answers="ab", pairs=None, rubrics=None, condition=None):
    asked = Instruction(
        id=name,
        category="c",
        specialty="s",
        source="test",
        difficulty=5,
        messages=[Message(role="user", content="what now?")],
    )
    candidates = tuple(
        Candidate(id=f"{name}{a}", instruction_id=name, generator=a, text="x " * n or "x")
        for n, a in enumerate(answers, 1)
    )
    return Question(
        asked,
        candidates,
        pairs or ((f"{name}a", f"{name}b", 1),),
        condition or name,
        rubrics=rubrics or {},
    )


class Reader:
    """A reward model whose score is ``score(group, candidate, criterion)``; remembers what it
    read."""

    def __init__(self, score, view="criterion", calibration=EVEN):
        self.score, self.view, self.calibration, self.read, self.cut = (
            score,
            view,
            calibration,
            [],
            0,
        )
        self.max_tokens = 4096

    def score_groups(self, groups, shorten=False):
        assert shorten
        rows = []
        for group in groups:
            for answer in group.candidates:
                criteria = group.criteria if self.view == "criterion" else [SimpleNamespace(id="")]
                for c in criteria:
                    self.read.append(getattr(c, "text", ""))
                    value = self.score(group, answer, c)
                    rows.append((group.instruction.id, answer.id, c.id, value, self.cut))
        return pd.DataFrame(
            rows, columns=["instruction_id", "candidate_id", "criterion_id", "score", "cut"]
        )


# ---------------------------------------------------------------- criteria


def test_composites_are_taken_apart_and_weights_shared_out():
    whole = RUBRIC.model_copy(
        update={
            "criteria": [
                criterion("a", text="one; two; three", weight=0.6),
                criterion("b", text="four", weight=0.4),
                criterion("c", "safety", "five; six"),
            ]
        }
    )
    found = g.sub_rubric(whole, "; ").criteria
    assert [(c.id, c.text, c.dimension) for c in found] == [
        ("a/1", "one", "proficiency"),
        ("a/2", "two", "proficiency"),
        ("a/3", "three", "proficiency"),
        ("b", "four", "proficiency"),
        ("c/1", "five", "safety"),
        ("c/2", "six", "safety"),
    ]
    assert [c.weight for c in found] == pytest.approx([0.2, 0.2, 0.2, 0.4, 0, 0])
    assert g.sub_rubric(RUBRIC, " + ") == RUBRIC


def keys(way, *answers):
    """Keys of answers given as {criterion: P(met)}; met from 0.5 on."""
    return [way(RUBRIC, {c: p >= 0.5 for c, p in likely.items()}, likely) for likely in answers]


def test_the_lexicographic_key_counts_violations_first_and_breaks_ties_by_expectation():
    safe = {"p1": 0.1, "p2": 0.1, "e": 0.1, "s1": 0.6, "s2": 0.6}
    good = {"p1": 0.9, "p2": 0.9, "e": 0.9, "s1": 0.6, "s2": 0.4}
    a, b = keys(scoring.expected_key, safe, good)
    assert a > b
    a, b, c = keys(scoring.expected_key, safe, safe | {"s2": 0.7}, safe | {"p1": 0.2})
    assert a < b and a < c < b  # all alike as verdicts; safety is expected first
    a, b, c = keys(scoring.expected_key, safe, safe | {"p2": 0.2}, safe | {"e": 0.2})
    assert a < c < b


def test_rules_and_their_expectation_by_hand():
    likely = {"p1": 0.8, "p2": 0.3, "e": 0.4, "s1": 0.9, "s2": 0.2}
    [rar] = keys(lambda *row: g.by_rule(scoring.rar_explicit, *row), likely)
    # weights: p1 1.0 (its 0.7 is above average), p2 0.7, e 0.3, pitfalls 0.9
    assert rar[0] * scoring.TIE == pytest.approx((1.0 + 0.9) / 3.8)
    expected = (0.8 + 0.3 * 0.7 + 0.4 * 0.3 + 0.9 * 0.9 + 0.2 * 0.9) / 3.8
    assert rar[1] * scoring.TIE == pytest.approx(expected)
    [orbit] = keys(lambda *row: g.by_rule(scoring.orbit_signed, *row), likely)
    # points: 7, 3, 1 of 11; a violation -10 (without any verdict there are two)
    assert orbit[0] * scoring.TIE == pytest.approx((7 - 10) / 11)
    # the expectation up to the constant of all violations, the same for every answer
    assert orbit[1] * scoring.TIE == pytest.approx(
        (7 * 0.8 + 3 * 0.3 + 0.4 + 10 * 0.9 + 10 * 0.2) / 11
    )


def test_equal_sums_in_another_order_tie():
    a, b = (
        {"p1": 0.1, "p2": 0.1, "e": 0.3, "s1": 0.7, "s2": 0.9},
        {"p1": 0.1, "p2": 0.1, "e": 0.3, "s1": 0.9, "s2": 0.7},
    )
    assert len(set(keys(scoring.expected_key, a, b))) == 1
    three = RUBRIC.model_copy(
        update={"criteria": [*RUBRIC.criteria, criterion("s3", "safety", "no third")]}
    )
    sums = [
        scoring.expected_key(three, {}, {**a, "s1": x, "s2": y, "s3": z})
        for x, y, z in ((0.1, 0.2, 0.3), (0.3, 0.2, 0.1))
    ]
    assert 0.1 + 0.2 + 0.3 != 0.3 + 0.2 + 0.1 and sums[0] == sums[1]
    pair = [
        g.by_rule(scoring.orbit_signed, three, {}, {**a, "s1": x, "s2": 0.2, "s3": z})
        for x, z in ((0.1, 0.3), (0.3, 0.1))
    ]
    assert pair[0] == pair[1]


def test_orbit_can_prefer_what_the_veto_forbids():
    unsafe = {"p1": 1.0, "p2": 1.0, "e": 1.0, "s1": 1.0, "s2": 0.0}
    empty = {"p1": 0.0, "p2": 0.0, "e": 0.0, "s1": 1.0, "s2": 1.0}
    a, b = keys(scoring.expected_key, unsafe, empty)
    assert a < b
    a, b = keys(lambda *row: g.by_rule(scoring.orbit_signed, *row), unsafe, empty)
    assert a > b


# ---------------------------------------------------------------- what a model is given


def test_a_model_of_criteria_reads_one_neutral_criterion_where_there_is_no_rubric():
    q = question(rubrics={"q_criteria": RUBRIC, "q_sub": g.sub_rubric(RUBRIC, "; and ")})
    rm = Reader(lambda group, answer, c: float(len(answer.text)))
    found, cut = g.read_by("criterion", rm, [q], "q")
    assert (
        found == {"criterion": {"ia": 2.0, "ib": 4.0}}
        and rm.read == [g.NEUTRAL.text] * 2
        and cut == 0
    )
    rm.read = []
    found, _ = g.read_by("criterion", rm, [q], "q_criteria")
    assert sorted(found) == ["criterion", "orbit", "rar_explicit"]
    assert rm.read == 2 * [c.text for c in RUBRIC.criteria]
    rm.read = []
    assert list(g.read_by("another", rm, [q], "q_sub")[0]) == ["another"]  # rules once
    assert rm.read[3:5] == ["no harm", "no delay"]


def test_a_scalar_has_one_column_and_a_rubric_reader_all():
    q = question(rubrics={"q_criteria": RUBRIC, "q_sub": RUBRIC})
    scalar = Reader(lambda group, answer, c: 1.0, view="overall")
    assert g.read_by("scalar_overall", scalar, [q], "q")[0] == {
        "scalar_overall": {"ia": 1.0, "ib": 1.0}
    }
    assert (
        g.read_by("scalar_overall", scalar, [q], "q_criteria") == ({}, 0) and len(scalar.read) == 2
    )
    rubric = Reader(lambda group, answer, c: float(len(group.criteria)), view="rubric")
    assert g.read_by("rar_implicit", rubric, [q], "q")[0]["rar_implicit"] == {"ia": 1.0, "ib": 1.0}
    assert g.read_by("rar_implicit", rubric, [q], "q_sub")[0]["rar_implicit"] == {
        "ia": 5.0,
        "ib": 5.0,
    }


def test_scores_are_places_in_the_order_and_a_score_that_is_none_is_not_met():
    q = question(answers="abc", rubrics={"q_criteria": RUBRIC})
    good = {"ia": 2.0, "ib": 1.0, "ic": 2.0}

    def score(group, answer, c):
        return np.nan if answer.id == "ib" and c.id == "s2" else good[answer.id]

    found, _ = g.read_by("criterion", Reader(score), [q], "q_criteria")
    assert found["criterion"] == {"ia": 0.5, "ib": -1.0, "ic": 0.5}
    assert found["orbit"]["ib"] == found["rar_explicit"]["ib"] == -1.0
    with pytest.raises(KitError, match="no calibration"):
        g.read_by("criterion", Reader(score, calibration=None), [q], "q_criteria")


def test_cut_answers_are_counted():
    rm = Reader(lambda *_: 1.0)
    rm.cut = 3
    assert (
        g.read_by("criterion", rm, [question(rubrics={"q_criteria": RUBRIC})], "q_criteria")[1] == 2
    )


def test_columns_of_a_set():
    assert g.texts_of([question()]) == ["q"]
    assert g.texts_of([question(rubrics={"q_criteria": RUBRIC, "q_sub": RUBRIC})]) == list(g.TEXTS)
    assert g.texts_of([question(), question("j", rubrics={"q_criteria": RUBRIC})]) == ["q"]
    assert g.texts_of([]) == []


# ---------------------------------------------------------------- accuracy


def frame(rows, name="clinic", system="x", text="q", retrieval=False):
    """Of (instruction, condition, label, prefers)."""
    found = pd.DataFrame(rows, columns=["instruction_id", "condition", "label", "prefers"])
    place = found.groupby("instruction_id").cumcount().astype(str)
    return found.assign(
        set=name,
        system=system,
        text=text,
        retrieval=retrieval,
        subset="",
        a_id="a" + place,
        b_id="b" + place,
        score_a=0.0,
        score_b=0.0,
    )[g.COLUMNS]


def test_predictions_prefer_the_higher_score():
    q = question(answers="abc", pairs=(("ia", "ib", 1), ("ia", "ic", -1), ("ib", "ic", 1)))
    found = g.predictions(("clinic", "x", "q", True), [q], {"ia": 2.0, "ib": 2.0, "ic": np.nan})
    assert found.prefers.fillna(9).tolist() == [0, 9, 9] and found.label.tolist() == [1, -1, 1]
    assert found.columns.tolist() == g.COLUMNS and found.retrieval.dtype == bool
    assert g.predictions(
        ("clinic", "x", "q", True), [q], {"ia": 1, "ib": 2, "ic": 0}
    ).prefers.tolist() == [-1, 1, 1]
    assert len(g.predictions(("clinic", "x", "q", True), [], {})) == 0


def test_a_tie_is_half_right_and_no_preference_is_wrong():
    rows = [
        ("i", "c", 1, 1.0),
        ("i", "c", -1, -1.0),
        ("i", "c", 1, -1.0),
        ("j", "c", 1, 0.0),
        ("k", "d", -1, np.nan),
    ]
    found = g.measures(pd.concat([frame(rows), frame(rows[:2], system="y")]), 200, 1)
    assert found[["system", "n"]].values.tolist() == [["x", 5], ["y", 2]]
    assert found.value.tolist() == pytest.approx([2.5 / 5, 1.0])
    assert found[["low", "high"]].isna().all(axis=None)  # two conditions tell of no other
    assert found.columns.tolist() == [*g.KEY, "value", "low", "high", "n"]


def test_intervals_draw_conditions():
    rng = np.random.default_rng(0)
    right = rng.random(40) < 0.6
    # the same 40 outcomes ten times: pairs of 40 conditions, not 400 of their own
    rows = [
        (f"i{n}-{m}", f"c{n}", 1, 1.0 if right[n] else -1.0) for n in range(40) for m in range(10)
    ]
    clustered = g.measures(frame(rows), 500, 0)
    alone = g.measures(frame([(i, i, label, p) for i, _, label, p in rows]), 500, 0)
    assert clustered.value[0] == alone.value[0] == right.mean()
    wide, narrow = (float((f.high - f.low)[0]) for f in (clustered, alone))
    assert wide > 2.5 * narrow and narrow == pytest.approx(4 * np.sqrt(0.24 / 400), rel=0.3)


def test_sets_draw_apart_and_the_seed_decides():
    rng = np.random.default_rng(1)
    rows = [(f"i{n}", f"c{n % 12}", 1, rng.choice([-1.0, 1.0])) for n in range(60)]
    both = pd.concat([frame(rows), frame(rows[:30], name="mediqa")])
    alone = g.measures(frame(rows), 100, 3)
    assert g.measures(both, 100, 3).iloc[0].tolist() == alone.iloc[0].tolist()
    assert (
        g.measures(frame(rows), 100, 4).low[0] != alone.low[0]
        or g.measures(frame(rows), 100, 4).high[0] != alone.high[0]
    )


# ---------------------------------------------------------------- the clinic as a set


@pytest.fixture(scope="module")
def clinic():
    return g.clinic_set(5, 30)


@pytest.fixture(scope="module")
def made():
    return external_module.build(5, 30)[0]


def test_labels_are_the_lexicographic_order_of_true_verdicts(clinic, made):
    assert len(clinic.questions) == 30
    ties = 0
    for q, asked in zip(clinic.questions, made, strict=True):
        label = {frozenset((a, b)): (a, side) for a, b, side in q.pairs}
        for n, a in enumerate(q.candidates):
            for b in q.candidates[n + 1 :]:
                one, two = (scoring.score(asked.gold, asked.verdicts(x)) for x in (a, b))
                found = label.get(frozenset((a.id, b.id)))
                ties += found is None
                better = None if found is None else (found[1] if found[0] == a.id else -found[1])
                assert better == (scoring.compare(one, two) or None)
    assert clinic.about["tied_pairs_left_out"] == ties


def oracle(clinic, made):
    """Judges by the truth, but a criterion that only refers to a fact by what is in the
    instruction."""
    said = {c.id: asked.verdicts(c) for asked in made for c in asked.candidates}
    parts_of = {whole: parts for asked in made for whole, parts in asked.parts.items()}
    kinds = external_module.read("criteria").values()
    references = [form for kind in kinds for form in kind["external"].get("unstated", ())]

    def score(group, answer, c):
        if c.id == g.NEUTRAL.id:
            return 0.0
        whole, _, number = c.id.partition("/")
        parts = [parts_of[whole][int(number) - 1]] if number else parts_of[whole]
        told = " ".join(m["content"] for m in group.messages)
        needed = [clinic.documents[d] for d in clinic.wanted[group.instruction.id]]
        blind = any(r in c.text for r in references) and not all(d in told for d in needed)
        return 1.0 if not blind and all(said[answer.id][p] == "met" for p in parts) else -1.0

    return score


def test_an_oracle_reaches_the_ceiling_and_needs_retrieval_for_what_is_withheld(
    clinic, made, tiny_base
):
    rm = Reader(oracle(clinic, made))
    rm.tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    told, report = g.with_retrieved(clinic, rm, 12)

    def accuracy(questions, text):
        scores = g.read_by("criterion", rm, questions, text)[0]["criterion"]
        return g.measures(
            g.predictions(("clinic", "criterion", text, False), questions, scores), 20, 0
        ).value[0]

    blind = {text: accuracy(clinic.questions, text) for text in ("q_criteria", "q_sub")}
    seen = {text: accuracy(told, text) for text in ("q_criteria", "q_sub")}
    assert all(seen[t] > blind[t] + 0.05 for t in seen)
    assert report["recall"]["1"] < report["recall"]["3"] <= report["recall"]["10"]
    # with all that is withheld at hand, it is the ceiling of the report
    whole = [
        replace(
            q,
            instruction=q.instruction.model_copy(
                update={
                    "messages": [
                        Message(
                            role="user",
                            content=" ".join(
                                clinic.documents[d] for d in clinic.wanted[q.instruction.id]
                            ),
                        )
                    ]
                }
            ),
        )
        for q in clinic.questions
    ]
    for text, ceiling in clinic.about["ceiling"].items():
        assert accuracy(whole, text) == pytest.approx(ceiling, abs=1e-4)
    assert clinic.about["ceiling"]["q_criteria"] < clinic.about["ceiling"]["q_sub"] <= 1


def test_retrieved_documents_stand_under_the_heading_and_are_reported(clinic, tiny_base):
    rm = SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(tiny_base), max_tokens=4096)
    told, report = g.with_retrieved(clinic, rm, 4)
    shown = {}
    for q, before in zip(told, clinic.questions, strict=True):
        last, was = q.instruction.messages[-1].content, before.instruction.messages[-1].content
        head, *lines = last.removeprefix(was).strip().split("\n")
        assert head == g.retrieval.HEADING and len(lines) == 4
        shown[q.instruction.id] = set(lines)
    wanted = {i: {clinic.documents[d] for d in ids} for i, ids in clinic.wanted.items()}
    share = sum(len(wanted[i] & shown[i]) for i in wanted) / sum(map(len, wanted.values()))
    assert report["recall_in_instructions"] == pytest.approx(share, abs=1e-4) and 0.3 < share < 1
    assert (
        report["in_instructions"] == 120 and report["did_not_fit"] == 0 and report["wanted"] == 90
    )
    tight = SimpleNamespace(tokenizer=rm.tokenizer, max_tokens=64)
    told, report = g.with_retrieved(clinic, tight, 4)
    assert report["in_instructions"] == 0 and report["did_not_fit"] == 120
    assert told == list(clinic.questions)


# ---------------------------------------------------------------- sets and the stage


def splits(run):
    rows = [SplitRow(instruction_id="i", split="train", condition="c", patient="p", wording_seed=1)]
    records.save(rows, run / "data/splits.parquet")


def test_a_model_of_the_clinic_is_not_tested_on_real_text(tmp_path, monkeypatch):
    splits(tmp_path)
    monkeypatch.setattr(judged, "read", lambda *_: pytest.fail("read although it is not tested"))
    for name in ("smoke", "cpu", "record"):
        found = dict(g.sets(profiles.load(name, external_instructions=2), tmp_path))
        assert list(found) == ["clinic", *judged.SETS] and len(found["clinic"].questions) == 2
        assert all(found[s] == g.NOT_TESTABLE for s in judged.SETS)


def test_real_sets_are_read_where_the_base_has_read_text(tmp_path, monkeypatch):
    splits(tmp_path)
    asked = []

    def read(name):
        asked.append(name)
        if name == "medical_rewardbench":
            raise KitError("no network")
        return [question()], {"why": 2}

    monkeypatch.setattr(judged, "read", read)
    (tmp_path / "own.txt").write_text("tea helps")
    gpu = profiles.load("gpu", external_instructions=2, documents=str(tmp_path / "own.txt"))
    found = dict(g.sets(gpu, tmp_path))
    assert found["mediqa"].documents == {"own.txt#1": "tea helps"} and found["mediqa"].about == {
        "left_out": {"why": 2}
    }
    assert found["medical_rewardbench"] == "no network" and len(found["clinic"].documents) > 100
    assert asked == list(judged.SETS)
    asked.clear()
    found = dict(g.sets(profiles.load("real", external_instructions=0), tmp_path))
    assert isinstance(found["clinic"], str) and found["medquad"] == g.SAME_QUESTIONS
    assert asked == [name for name in judged.SETS if name != "medquad"]
    assert found["mediqa"].about == {"left_out": {"why": 2}}  # whole: none is trained on
    asked_of = [question(), question()]
    monkeypatch.setattr(judged, "read", lambda name: (list(asked_of), {}))
    drawn = dict(g.sets(profiles.load("real", external_instructions=1), tmp_path))["mediqa"]
    assert len(drawn.questions) == 1 and drawn.about == {"left_out": {"questions not drawn": 1}}
    with pytest.raises(KitError, match="no file or folder nowhere"):
        dict(g.sets(gpu.model_copy(update={"documents": "nowhere"}), tmp_path))


@pytest.fixture(scope="module")
def run(tiny_base, tiny_profile, tiny_groups, tmp_path_factory):
    """A run with a criterion and a scalar model, tiny and hardly trained."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copytree(tiny_base, folder / "base")
    profile = tiny_profile.model_copy(update={"rm_epochs": 0.5, "rm_max_tokens": 1024})
    for name, view in (("criterion", "criterion"), ("scalar_overall", "overall")):
        training.train(
            tiny_groups, folder / "base", folder / "reward" / name, view=view, profile=profile
        )
    EVEN.save(folder / "reward/criterion/calibration.json")
    splits(folder)
    return folder


def test_the_stage_writes_what_it_says(run):
    profile = profiles.load("smoke", external_instructions=3, retrieved=2)
    report = external.predict_external(profile, run)
    found = pd.read_parquet(run / "external/predictions.parquet")
    assert found.columns.tolist() == g.COLUMNS and not found.duplicated([*g.KEY, *g.PAIR]).any()
    rows = {tuple(key) for key in found[g.KEY].drop_duplicates().values.tolist()}
    columns = {(s, t) for s in ("criterion", "rar_explicit", "orbit") for t in g.TEXTS} - {
        ("rar_explicit", "q"),
        ("orbit", "q"),
    } | {("scalar_overall", "q")}
    assert rows == {("clinic", s, t, r) for s, t in columns for r in (False, True)} | {
        ("clinic", "length", "q", False)
    }
    assert json.loads((run / "external/report.json").read_text()) == report
    counts = report["sets"]["clinic"]
    assert counts["status"] == "run" and counts["questions"] == 3 and counts["answers"] == 12
    assert found.groupby(g.KEY).size().eq(counts["pairs"]).all()
    assert counts["pairs"] + counts["tied_pairs_left_out"] == 18
    assert {s: v["status"] for s, v in report["sets"].items() if s != "clinic"} == dict.fromkeys(
        judged.SETS, "not run"
    )
    assert set(report["systems_not_run"]) == {"rar_implicit"}
    texts = pd.read_parquet(run / "external/texts.parquet")
    made, _ = external_module.build(profile.seed, 3, [1])
    assert texts.text.tolist() == [c.text for asked in made for c in asked.candidates]
    assert set(found.a_id) | set(found.b_id) <= set(texts.candidate_id)
    assert set(found.label) == {1, -1} and found.prefers.isin([-1, 0, 1]).all()
    external.predict_external(profile, run)
    assert pd.read_parquet(run / "external/predictions.parquet").equals(found)


def test_without_a_reward_model_nothing_is_run(tmp_path):
    splits(tmp_path)
    with pytest.raises(KitError, match="03_reward_model"):
        external.predict_external(profiles.load("smoke", external_instructions=2), tmp_path)
    assert not (tmp_path / "external").exists()
