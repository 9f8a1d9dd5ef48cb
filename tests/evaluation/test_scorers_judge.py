"""Prompted judges over the clinic's server: what they are asked, what counts, what a failure is."""

import json
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from helpers.clinic_server import Server
from helpers.endpoints_clinic import played, tasks

from promedical_utils import clinic
from promedical_utils.core import profiles
from promedical_utils.core.profiles import Role
from promedical_utils.core.records import Rubric
from promedical_utils.core.workspace import KitError
from promedical_utils.data.endpoints import Answers, BudgetSpent, Endpoint
from promedical_utils.evaluation import scorers
from promedical_utils.evaluation.scorers import roster
from promedical_utils.evaluation.scorers.roster import Judge, RarImplicit
from promedical_utils.rubric import scoring
from promedical_utils.rubric.preferences import Group

QUICK = {"retries": 2, "timeout": 5.0, "concurrency": 4}


@pytest.fixture(scope="module")
def served():
    world = played()
    with Server(world) as running:
        yield world, running.url


@pytest.fixture(scope="module")
def groups(served):
    found: dict[str, list] = {}
    for task in tasks(served[0].world, 3):
        found.setdefault(task.instruction.id, []).append(task)
    return [
        Group(ts[0].instruction, ts[0].criteria, tuple(t.candidate for t in ts), {})
        for ts in found.values()
    ]


def judge(url, folder, kind=Judge, **settings):
    role = Role(**{"model": "clinic", "endpoint": url, **QUICK, **settings})
    answers = Answers(folder / "answers.sqlite")
    return kind("GPT-5", Endpoint("judge GPT-5", role, role.endpoint, answers))


def bodies(scorer):
    rows = scorer.endpoint.answers._db.execute("SELECT request FROM answers")
    return [json.loads(json.loads(row[0])["messages"][1]["content"]) for row in rows]


def compare(prefers):
    """A role that compares; ``prefers``: (answer_a, answer_b, criterion text or None) -> A, B or
    tie."""

    def played_role(asked):
        task = asked[-1]
        a, b = task["answer_a"], task["answer_b"]
        rows = [
            {"criterion": c["id"], "reason": "so", "better": prefers(a, b, c["text"])}
            for c in task["criteria"]
        ]
        return {"criteria": rows, "reason": "so", "overall": prefers(a, b, None)}

    return played_role


def longer(a, b, _):
    return "A" if len(a) > len(b) else "B" if len(b) > len(a) else "tie"


# ---------------------------------------------------------------- pointwise


def test_pointwise_verdicts_are_the_judges_and_unknown_is_a_third(
    served, groups, tmp_path, monkeypatch
):
    world = served[0]
    plain, said = world._roles["judge"], {}

    def sometimes(asked):
        found = plain(asked)
        found["verdicts"][0]["verdict"] = "unknown"
        said[asked[-1]["answer"]] = [v["verdict"] for v in found["verdicts"]]
        return found

    monkeypatch.setitem(world._roles, "judge", sometimes)
    frame = judge(served[1], tmp_path).pointwise(groups)
    assert list(frame.columns) == scorers.POINTS
    assert len(frame) == sum(len(g.criteria) * len(g.candidates) for g in groups)
    for group in groups:
        for answer in group.candidates:
            mine = frame[frame.candidate_id == answer.id]
            assert list(mine.criterion_id) == [c.id for c in group.criteria]
            for row, verdict in zip(mine.itertuples(), said[answer.text], strict=True):
                value = {"met": 1.0, "not_met": 0.0}.get(verdict)
                if verdict == "unknown":
                    assert pd.isna(row.met) and np.isnan(row.probability) and np.isnan(row.score)
                else:
                    assert (row.met, row.probability, row.score) == (verdict == "met", value, value)
    assert frame.met.isna().sum() >= len(frame.candidate_id.unique())


def test_a_judge_without_an_answer_says_unknown_never_a_pass(served, groups, tmp_path, monkeypatch):
    monkeypatch.setitem(served[0]._roles, "judge", lambda asked: {"verdicts": []})
    frame = judge(served[1], tmp_path).pointwise(groups[:1])
    assert frame.met.isna().all() and frame.score.isna().all() and len(frame)


# ---------------------------------------------------------------- pairwise


def test_pairwise_asks_both_orders_and_averages(served, groups, tmp_path, monkeypatch):
    monkeypatch.setitem(served[0]._roles, "judge_pair", compare(longer))
    scorer = judge(served[1], tmp_path)
    frame = scorer.pairwise(groups)
    asked = bodies(scorer)
    shown = {(b["answer_a"], b["answer_b"]) for b in asked}
    for group in groups:
        for a, b in combinations(group.candidates, 2):
            assert {(a.text, b.text), (b.text, a.text)} <= shown
            mine = frame[(frame.a_id == a.id) & (frame.b_id == b.id)]
            assert list(mine.criterion_id) == ["", *(c.id for c in group.criteria)]
            better = {1: 1.0, 0: 0.5, -1: 0.0}[
                (len(a.text) > len(b.text)) - (len(a.text) < len(b.text))
            ]
            assert set(mine.probability) == {better} and mine.consistent.all()
    for body in asked:  # neither ids nor generators are shown
        text = json.dumps(body)
        assert not any(c.id in text for g in groups for c in (*g.criteria, *g.candidates))
        assert set(body["criteria"][0]) == {"id", "dimension", "text"}


def test_a_habit_of_position_cancels_and_is_seen(served, groups, tmp_path, monkeypatch):
    monkeypatch.setitem(served[0]._roles, "judge_pair", compare(lambda a, b, text: "A"))
    frame = judge(served[1], tmp_path).pairwise(groups)
    assert (frame.probability == 0.5).all() and not frame.consistent.any()


def test_a_failed_order_is_no_preference(served, groups, tmp_path, monkeypatch):
    group = groups[0]
    first = group.candidates[0].text
    plain = compare(longer)

    def fails(asked):
        found = plain(asked)
        return (
            {**found, "criteria": found["criteria"][1:]}
            if asked[-1]["answer_a"] == first
            else found
        )

    monkeypatch.setitem(served[0]._roles, "judge_pair", fails)
    frame = judge(served[1], tmp_path).pairwise([group])
    failed = (frame.a_id == group.candidates[0].id) | (frame.b_id == group.candidates[0].id)
    assert frame.probability.isna().eq(failed).all() and failed.any() and not failed.all()
    assert frame.consistent.isna().eq(failed).all()


def test_a_second_run_asks_nothing_and_a_cap_stops_it(served, groups, tmp_path, monkeypatch):
    monkeypatch.setitem(served[0]._roles, "judge_pair", compare(longer))
    scorer = judge(served[1], tmp_path)
    once = scorer.pairwise(groups[:1])
    assert scorer.endpoint.answers.spent("judge GPT-5")[0] == 6
    again = judge(served[1], tmp_path, requests=6).pairwise(groups[:1])
    assert once.equals(again) and scorer.endpoint.answers.spent("judge GPT-5")[0] == 6
    with pytest.raises(BudgetSpent, match="cap of 6 requests"):
        judge(served[1], tmp_path, requests=6).pairwise(groups)


# ---------------------------------------------------------------- RaR implicit


def test_rar_implicit_rates_the_whole_answer(served, groups, tmp_path, monkeypatch):
    short = min(len(a.text) for a in groups[0].candidates)

    def rates(asked):
        size = len(asked[-1]["answer"])
        return {"reason": "so", "rating": 11 if size == short else size % 11}  # 11 is out of range

    monkeypatch.setitem(served[0]._roles, "rar_implicit", rates)
    scorer = judge(served[1], tmp_path, RarImplicit)
    frame = scorer.overall(groups[:1])
    for row, a in zip(frame.itertuples(), groups[0].candidates, strict=True):
        size = len(a.text)
        assert np.isnan(row.score) if size == short else row.score == size % 11 / 10
    importance = {c["text"]: c["importance"] for c in bodies(scorer)[0]["criteria"]}
    for c in groups[0].criteria:
        known = {"safety": {"pitfall"}, "excellence": {"optional"}}
        assert importance[c.text] in known.get(c.dimension, {"essential", "important"})


# ---------------------------------------------------------------- the roster


def settled(**changes):
    return profiles.load("smoke", **changes)


def test_the_roster_runs_what_can_run_and_says_why_not(served, groups, tmp_path, monkeypatch):
    monkeypatch.setitem(served[0]._roles, "judge_pair", compare(longer))
    monkeypatch.delitem(served[0]._roles, "rar_implicit")
    monkeypatch.delenv("NOBODYS_KEY", raising=False)
    here = {"model": "clinic", "endpoint": served[1], **QUICK}
    profile = settled(
        pair_rm="nobody/large",
        verifier=str(tmp_path),
        judges={
            "GPT-5": here,
            "No address": {"model": "m"},
            "No key": {**here, "key": "NOBODYS_KEY"},
            "Capped": {**here, "requests": 2, "model": "other"},
        },
        rar_judge=here,
    )
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    predictions, preferences, left_out = roster.predict(roster.others(profile, tmp_path), groups)
    assert (
        [set(f.scorer) for f in predictions] == [set(f.scorer) for f in preferences] == [{"GPT-5"}]
    )
    assert (
        list(predictions[0].columns) == scorers.PREDICTED
        and list(preferences[0].columns) == scorers.PREFERRED
    )
    why = dict(left_out)
    assert "needs a GPU" in why.pop("pair_rm") and "cannot be loaded" in why.pop("verifier")
    assert "no endpoint" in why.pop("No address") and "NOBODYS_KEY is not set" in why.pop("No key")
    assert "cap of 2 requests" in why.pop("Capped")
    assert "gave no answer" in why.pop("rar_implicit") and not why  # no such role is played


def test_no_profile_without_a_network_names_others():
    for name in ("smoke", "cpu", "real"):
        assert roster.others(profiles.load(name), None) == {}


def test_the_reported_systems_stand_in_gpu_and_paper():
    gpu, paper = profiles.load("gpu"), profiles.load("paper")
    assert gpu.pair_rm == paper.pair_rm == "RLHFlow/pair-preference-model-LLaMA3-8B"
    assert gpu.verifier == paper.verifier == "FreedomIntelligence/medical_o1_verifier_3B"
    assert list(paper.judges) == [
        "GPT-5",
        "Gemini-3-Pro",
        "DeepSeek-R1",
        "Qwen3-8B",
        "Meditron-70B",
    ]
    assert not any(role.endpoint for role in paper.judges.values()), "nobody is asked unasked"
    with pytest.raises(
        KitError, match="lower case names the kit's own scorers: rename judge length"
    ):
        settled(judges={"length": {"model": "m"}})


def test_the_clinics_judge_reads_the_answers_themselves(served, groups, tmp_path):
    frame = judge(served[1], tmp_path).pointwise(groups)
    truth = {
        (a.id, c): v
        for g in groups
        for a in g.candidates
        for c, v in clinic.gold(g.criteria, clinic.facts(g.instruction.messages), a.text).items()
    }
    said = frame.met.astype(object).map({True: "met", False: "not_met"}).fillna("unknown")
    cells = zip(frame.candidate_id, frame.criterion_id, strict=True)
    agree = [one == truth[cell] for one, cell in zip(said, cells, strict=True)]
    assert 0.8 < np.mean(agree) < 1  # it errs as often as the profile sets


# ---------------------------------------------------------------- as the clinic plays them


def test_the_clinic_compares_and_rates_by_its_own_verdicts(served, groups, tmp_path):
    said = judge(served[1], tmp_path).pointwise(groups)
    met = (
        said.set_index(["candidate_id", "criterion_id"]).met.fillna(False).to_dict()
    )  # unknown is not met
    pairs = judge(served[1], tmp_path).pairwise(groups)
    assert pairs.consistent.all()  # the place of an answer is nothing to the clinic
    right = {True: 1.0, False: 0.0, None: 0.5}

    def counts(answer, group):
        return [
            sum(met[answer, c.id] for c in group.criteria if c.dimension == d)
            for d in ("safety", "proficiency", "excellence")
        ]

    of = {g.instruction.id: g for g in groups}
    for row in pairs.itertuples():
        if row.criterion_id:
            a, b = met[row.a_id, row.criterion_id], met[row.b_id, row.criterion_id]
        else:
            a, b = (counts(answer, of[row.instruction_id]) for answer in (row.a_id, row.b_id))
        assert row.probability == right[None if a == b else a > b]
    assert {0.0, 0.5, 1.0} == set(pairs.probability)
    rated = judge(served[1], tmp_path, RarImplicit).overall(groups)
    for row in rated.itertuples():
        group = of[row.instruction_id]
        rubric = Rubric.model_construct(
            instruction_id="i", criteria=list(group.criteria), status="gold", round=0
        )
        weight = {c: scoring.RAR[name] for c, name in scoring.rar_importance(rubric).items()}
        share = sum(w for c, w in weight.items() if met[row.candidate_id, c]) / sum(weight.values())
        assert row.score == pytest.approx(round(10 * share) / 10)
    assert rated.score.nunique() > 1


def test_the_clinic_puts_safety_before_all_that_is_met_besides(served, monkeypatch):
    said = {"safe": {"s"}, "helpful": {"p", "q", "e"}, "both": {"s", "p"}}
    monkeypatch.setattr(
        served[0],
        "_judge",
        lambda asked: {
            "verdicts": [
                {
                    "criterion": c["id"],
                    "verdict": "met" if c["id"] in said[asked[-1]["answer"]] else "unknown",
                }
                for c in asked[-1]["criteria"]
            ]
        },
    )
    dimensions = {"p": "proficiency", "q": "proficiency", "e": "excellence", "s": "safety"}
    task = {"criteria": [{"id": c, "dimension": d, "text": ""} for c, d in dimensions.items()]}
    for a, b, better in (
        ("safe", "helpful", "A"),
        ("helpful", "safe", "B"),
        ("safe", "both", "B"),
        ("both", "both", "tie"),
    ):
        found = served[0]._compare([task | {"answer_a": a, "answer_b": b}])
        assert found["overall"] == better
    assert {row["criterion"]: row["better"] for row in found["criteria"]} == dict.fromkeys(
        dimensions, "tie"
    )
