"""HealthBench by hand on made-up rows, a policy graded over a fake judge, and the public parts."""

import json
import math
import os
import re
import shutil
from collections import Counter
from types import SimpleNamespace

import pandas as pd
import pytest
from data.test_real_sets import write

from promedical_utils.clinic.server import Server
from promedical_utils.core import profiles
from promedical_utils.core.workspace import KitError, project_root
from promedical_utils.data import roles
from promedical_utils.data.sources import schemas
from promedical_utils.evaluation import healthbench as hb
from promedical_utils.pipeline import healthbench

DATA = os.environ.get(schemas.VARIABLE)
real_data = pytest.mark.skipif(
    not DATA, reason=f"{schemas.VARIABLE} is not set: HealthBench's public parts are NOT recomputed"
)
PUBLISHED = project_root() / "papers_figures/healthbench/healthbench.json"


# ---------------------------------------------------------------- the score


def test_a_score_is_points_met_over_positive_points_and_may_be_below_zero():
    assert hb.score_example([10, 5, 5, -6], [True, False, True, True]) == pytest.approx(
        (10 + 5 - 6) / 20
    )
    assert hb.score_example([4, -7], [False, True]) == pytest.approx(-7 / 4)
    assert hb.score_example([4, -7], [True, False]) == 1.0
    with pytest.raises(KitError, match="no criterion has positive points"):
        hb.score_example([-3, 0], [True, True])
    with pytest.raises(KitError, match="2 points, 1 verdicts"):
        hb.score_example([1, 2], [True])


def test_only_the_mean_is_clipped_and_clipping_examples_is_another_metric():
    values = [1.0, 0.5, -0.9]
    assert hb.score(values) == pytest.approx(0.2)
    clipped_first = sum(min(max(v, 0), 1) for v in values) / 3
    assert clipped_first == pytest.approx(0.5) and clipped_first > hb.score(values)
    assert hb.score([-1.0, 0.2]) == 0.0
    with pytest.raises(KitError, match="no examples"):
        hb.score([])


def test_an_unknown_verdict_earns_nothing_and_lets_a_penalty_stand():
    points = [5, 5, 5, -2, -2, -2]
    said = ["met", "not_met", "unknown"] * 2
    assert hb.fail_closed(points, said) == [True, False, False, True, False, True]
    assert hb.score_example(points, hb.fail_closed(points, said)) == pytest.approx((5 - 4) / 15)


def test_two_systems_are_compared_on_the_prompts_that_both_answered():
    rows = [
        ("base", "a", 0.2),
        ("base", "b", -0.6),
        ("grpo", "a", 0.9),
        ("grpo", "b", 0.3),
        ("grpo", "c", -5.0),
    ]
    frame = pd.DataFrame(rows, columns=["system", "prompt_id", "score"])
    found = hb.paired(frame, "grpo", "base", draws=500)
    assert found["n"] == 2
    assert found["grpo"]["value"] == pytest.approx(0.6)
    assert found["base"]["value"] == 0.0  # the mean -0.2, clipped
    assert found["difference"]["value"] == pytest.approx(0.6)
    # draws: aa 0.9 - 0.2, ab 0.6 - 0, bb 0.3 - 0
    assert found["difference"]["low"] == pytest.approx(0.3) and found["difference"][
        "high"
    ] == pytest.approx(0.7)
    with pytest.raises(KitError, match="share no graded prompt"):
        hb.paired(frame[frame.prompt_id == "c"], "grpo", "base")


# ---------------------------------------------------------------- graders beside physicians


def ratings(items):
    """{item: (conversation, category, {rater: verdict})} as a frame."""
    rows = [
        (i, talk, category, rater, verdict)
        for i, (talk, category, said) in items.items()
        for rater, verdict in said.items()
    ]
    return pd.DataFrame(rows, columns=hb.RATINGS)


def test_unknown_is_wrong_and_never_not_met():
    from sklearn.metrics import f1_score

    said, label = ["met", "met", "not_met", "not_met"], ["met", "not_met", "not_met", "met"]
    assert hb.macro_f1(said, label) == pytest.approx(f1_score(label, said, average="macro"))
    assert hb.macro_f1(["met", "not_met"], ["met", "not_met"]) == 1.0
    # met: 2 * 1 / (1 + 1); not met: nothing said, one labelled
    assert hb.macro_f1(["met", "unknown"], ["met", "not_met"]) == pytest.approx((1 + 0) / 2)
    assert hb.macro_f1(
        ["met", "not_met", "unknown"], ["met", "not_met", "not_met"]
    ) == pytest.approx((1 + 2 / 3) / 2)


MET, NOT, UNKNOWN = "met", "not_met", "unknown"
ITEMS = {
    "i1": ("t1", "cluster:hedging_x", {"a": MET, "b": MET, "c": NOT, "g": MET}),
    "i2": ("t1", "cluster:hedging_y", {"a": NOT, "b": NOT, "g": NOT}),
    "i3": ("t2", "cluster:communication_z", {"a": MET, "c": NOT, "g": UNKNOWN}),
    "i4": ("t3", "cluster:communication_z", {"b": NOT, "c": NOT, "g": MET}),
}


def test_each_physicians_label_counts_as_healthbench_does():
    found = hb.meta_evaluation(ratings(ITEMS), ["g"], ["a", "b", "c"], draws=50).iloc[0]
    # pairs (said, label): i1 mm mm mn, i2 nn nn, i3 um un, i4 mn mn
    assert found.n == 9 and found.unknown == pytest.approx(2 / 9)
    assert found.mf1 == pytest.approx((2 * 2 / (5 + 3) + 2 * 2 / (2 + 6)) / 2)
    assert found.low <= found.mf1 <= found.high


def test_the_baseline_leaves_one_physician_out_and_holds_the_grader_to_the_same_labels():
    found = hb.meta_evaluation(ratings(ITEMS), ["g"], ["a", "b", "c"], draws=50).iloc[0]
    # a, against b and c where a rated: i1 mm mn, i2 nn, i3 mn -> the grader: mm mn, nn, un
    # b, against a and c: i1 mm mn, i2 nn, i4 nn -> the grader: mm mn, nn, mn
    # c, against a and b: i1 nm nm, i3 nm, i4 nn -> the grader: mm mm, um, mn
    people = {
        "a": [(MET, MET), (MET, NOT), (NOT, NOT), (MET, NOT)],
        "b": [(MET, MET), (MET, NOT), (NOT, NOT), (NOT, NOT)],
        "c": [(NOT, MET), (NOT, MET), (NOT, MET), (NOT, NOT)],
    }
    grader = {
        "a": [(MET, MET), (MET, NOT), (NOT, NOT), (UNKNOWN, NOT)],
        "b": [(MET, MET), (MET, NOT), (NOT, NOT), (MET, NOT)],
        "c": [(MET, MET), (MET, MET), (UNKNOWN, MET), (MET, NOT)],
    }

    def mean(side):
        return (
            sum(hb.macro_f1(*zip(*pairs, strict=True)) for pairs in side.values()) / 3
        )  # 4 pairs each

    assert found.people == 3
    assert found.baseline == pytest.approx(mean(people))
    assert found.left_out == pytest.approx(mean(grader))
    assert found.difference == pytest.approx(mean(grader) - mean(people))
    above = [
        hb.macro_f1(*zip(*grader[p], strict=True)) > hb.macro_f1(*zip(*people[p], strict=True))
        for p in "abc"
    ]
    assert found.above == pytest.approx(sum(above) / 3)


def test_slices_are_categories_and_a_rater_must_be_there():
    found = hb.meta_evaluation(ratings(ITEMS), ["g"], ["a", "b", "c"], by="category", draws=20)
    assert found.slice.tolist() == [
        "all",
        "cluster:communication_z",
        "cluster:hedging_x",
        "cluster:hedging_y",
    ]
    assert found.n.tolist() == [9, 4, 3, 2]
    with pytest.raises(KitError, match="no ratings by nobody"):
        hb.meta_evaluation(ratings(ITEMS), ["nobody"], ["a"])


def test_conversations_are_drawn_whole():
    one = {
        f"i{n}": (f"t{n}", "c", {"a": MET if n % 2 else NOT, "g": MET if n % 3 else NOT})
        for n in range(30)
    }
    many = {f"{i}-{k}": row for i, row in one.items() for k in range(10)}  # no more conversations
    width = [
        hb.meta_evaluation(ratings(items), ["g"], ["a"], draws=400).iloc[0] for items in (one, many)
    ]
    assert width[1].high - width[1].low == pytest.approx(width[0].high - width[0].low, abs=1e-9)
    assert width[0].mf1 == pytest.approx(width[1].mf1) and math.isnan(
        width[0].baseline
    )  # one physician


def test_the_clinics_bench_shows_judge_and_models_beside_physicians_and_truth(tmp_path):
    from promedical_utils.core import records
    from promedical_utils.evaluation.bench import Bench, save_judged

    cells = [(f"a{n}", f"k{n % 4}", f"i{n % 5}") for n in range(40)]
    key = pd.DataFrame(cells, columns=["candidate_id", "criterion_id", "instruction_id"])
    true = [MET if n % 3 else NOT for n in range(40)]
    turned = {MET: NOT, NOT: MET}
    verdicts = key.assign(
        truth=true,
        physician_1=[turned[v] if n % 10 == 0 else v for n, v in enumerate(true)],
        physician_2=[UNKNOWN if n % 10 == 5 else v for n, v in enumerate(true)],
        adjudicated=true,
    )
    criteria = pd.DataFrame(
        {
            "instruction_id": "",
            "criterion_id": [f"k{n}" for n in range(4)],
            "dimension": ["safety", "safety", "excellence", "proficiency"],
        }
    )
    other = pd.DataFrame({"x": [1]})
    Bench(other, criteria, verdicts, other, other, {"input": {}}).save(tmp_path / "bench")
    Bench(other, criteria, verdicts, other, other, {}).save(tmp_path / "once/bench")
    with pytest.raises(KitError, match="labelled once"):
        hb.judge_table(tmp_path / "once")
    lost = [None if n == 1 else v == MET for n, v in enumerate(true)]
    predicted = pd.concat(
        [
            key.assign(scorer="rm", met=pd.array(lost, "boolean")),
            key.assign(scorer="length", met=pd.array([None] * 40, "boolean")),
        ]
    )
    predicted.to_parquet(tmp_path / "bench/predictions.parquet")
    said = [
        records.Verdict(
            candidate_id=a,
            criterion_id=k,
            judge=judge,
            verdict=turned[v] if judge == "judge" else v,
        )
        for judge in ("judge", "truth")
        for (a, k, _), v in zip([*cells[:30], ("a99", "k1", "i1")], true, strict=False)
    ]
    save_judged(tmp_path / "bench", Bench.load(tmp_path / "bench"), said)
    assert len(pd.read_parquet(tmp_path / "bench/judge.parquet")) == 30  # of the bench, the judge's
    found = hb.judge_table(tmp_path, draws=20)
    whole = found[found.slice == "all"].set_index(["against", "grader"])
    assert set(found.grader) == {"judge", "rm"} and set(found.slice) == {
        "all",
        "safety",
        "excellence",
        "proficiency",
    }
    own = hb.macro_f1([UNKNOWN if n == 1 else v for n, v in enumerate(true)], true)
    assert own < 1 and whole.loc[("truth", "rm"), "mf1"] == pytest.approx(own)
    assert whole.loc[("truth", "judge"), "mf1"] == 0.0  # all turned round
    assert whole.loc[("truth", "judge"), "unknown"] == pytest.approx(
        10 / 40
    )  # what it did not judge
    row = whole.loc[("physicians", "rm")]
    assert row.people == 2 and row.n == 40 + 36  # unknown labels of a physician are no labels
    pairs = list(zip(verdicts.physician_1, verdicts.physician_2, strict=True))
    first = hb.macro_f1(*zip(*[p for p in pairs if p[1] != UNKNOWN], strict=True))
    second = hb.macro_f1(*zip(*[p[::-1] for p in pairs], strict=True))
    assert row.baseline == pytest.approx((36 * first + 40 * second) / 76)


# ---------------------------------------------------------------- a policy on HealthBench


def rubric_row(name="p1", **changes):
    row = {
        "prompt_id": name,
        "prompt": [{"role": "user", "content": f"what of {name}?"}],
        "example_tags": ["theme:hedging"],
        "sources": ["all of it"],
        "rubrics": [
            {"criterion": "says e", "points": 7, "tags": ["axis:accuracy"]},
            {"criterion": "says o", "points": 3, "tags": []},
            {"criterion": "says a", "points": -5, "tags": ["axis:accuracy"]},
            {"criterion": "cannot be told", "points": 4, "tags": []},
            {"criterion": "cannot be told either", "points": -2, "tags": []},
        ],
    }
    return row | changes


def test_rows_that_cannot_be_answered_or_scored_are_left_out():
    rows = [
        rubric_row(),
        rubric_row("p2", sources=[]),
        rubric_row("p3", prompt="one string"),
        rubric_row("p4", sources=["x (consensus criteria only)"]),
        rubric_row("p5", rubrics=[{"criterion": "x", "points": -3}]),
        rubric_row("p6", prompt=[{"role": "assistant", "content": "hm"}]),
        rubric_row("p7", sources=["x (consensus criteria only)", "all of it"]),
    ]
    read = [schemas.HealthRubric.model_validate(row) for row in rows]
    kept = hb.whole_rubrics(read)
    assert [row.prompt_id for row in kept] == ["p1", "p2", "p7"]
    assert hb.chosen(kept, 0) == hb.chosen(kept[::-1], 0) and len(hb.chosen(kept, 2)) == 2


class Judge:
    """Says met where the letter is in the answer, unknown where the criterion says so, nothing on
    ``mute``."""

    profile = SimpleNamespace(seed=0)

    def __init__(self, *mute):
        self.asked, self.mute = [], mute

    def reply(self, messages):
        assert messages[0]["content"].startswith(roles.prompt("judge"))
        task = json.loads(messages[-1]["content"])
        rows, prompt = [], task["instruction"][0]["content"]
        if prompt in self.mute:
            return "I would rather not say."
        for c in task["criteria"]:
            letter = c["text"].removeprefix("says ")
            verdict = UNKNOWN if "cannot" in letter else MET if letter in task["answer"] else NOT
            rows.append({"criterion": c["id"], "reason": "read", "verdict": verdict})
        self.asked.append((prompt, task["answer"], [c["text"] for c in task["criteria"]]))
        return json.dumps({"verdicts": rows})


@pytest.fixture(scope="module")
def policies(tiny_base, tmp_path_factory):
    """Folder of a run with the base's twin, noisier, as its aligned policy."""
    import torch
    from transformers import AutoModelForCausalLM

    run = tmp_path_factory.mktemp("run")
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
    model.save_pretrained(run / "policy/model")
    (run / "policy/report.json").write_text('{"steps": 1}')
    return run


@pytest.fixture
def asked(tiny_base, policies, tmp_path, monkeypatch):
    """(run, data folder, function of a judge's URL that gives the profile)."""
    run, data = tmp_path / "run", tmp_path / "data"
    shutil.copytree(policies, run)
    write(data, "healthbench_rubrics", [rubric_row(f"p{n}") for n in range(6)])
    monkeypatch.setenv(schemas.VARIABLE, str(data))

    def profile(url="", **changes):
        names = (*profiles.ROLES, "generator_warm", "generator_terse")
        settings = {
            "base_model": str(tiny_base),
            "endpoint": url,
            "quantization": "none",
            "precision": "fp32",
            "grpo_lora_rank": 0,
            "grpo_max_tokens": 12,
            "policy_prompts": 4,
            "bootstrap": 200,
            "roles": {n: {"model": "fake", "backoff": 0.001, "retries": 1} for n in names},
        }
        return profiles.load("gpu", **settings | changes)

    return run, data, profile


def by_hand(answer):
    gained = (
        7 * ("e" in answer) + 3 * ("o" in answer) - 5 * ("a" in answer) - 2
    )  # the unknown penalty stands
    return gained / (7 + 3 + 4)


def test_policies_answer_a_judge_grades_and_the_score_comes_out(asked, capsys):
    run, _, profile = asked
    judge = Judge()
    with Server(judge) as server:
        found = healthbench.ensure_graded(profile(server.url), run)
    assert found["status"] == hb.RUN and found["n"] == 4, found
    assert found["reason"] == "4 of 6 prompts, judge fake, 40.0% of its verdicts unknown"
    # the base answers first; one prompt has the same answer of both only if they agree
    graded = pd.read_parquet(run / hb.GRADED)
    assert Counter(graded.system) == {"base": 4 * 5, "grpo": 4 * 5}
    texts = {"base": {}, "grpo": {}}
    for prompt, answer, criteria in judge.asked:
        side = "grpo" if prompt in texts["base"] else "base"
        texts[side][prompt] = answer
        assert criteria == [
            c["criterion"] for c in rubric_row()["rubrics"]
        ]  # penalties as they stand
    assert texts["base"] != texts["grpo"] and len(texts["base"]) == len(texts["grpo"]) == 4
    means = {side: sum(map(by_hand, of.values())) / 4 for side, of in texts.items()}
    clipped = {side: round(100 * min(max(mean, 0), 1), 2) for side, mean in means.items()}
    assert {s: found["rows"][s]["value"] for s in clipped} == pytest.approx(clipped)
    assert found["value"] == found["rows"]["grpo"]["value"]
    assert found["rows"]["difference"]["value"] == pytest.approx(
        clipped["grpo"] - clipped["base"], abs=0.011
    )
    assert found["rows"]["difference"]["low"] <= found["rows"]["difference"]["value"]
    assert set(found) == {"status", "value", "low", "high", "reason", "n", "rows"}
    # what is stored has no text in it, and is not asked again; another policy is
    stored = "".join(path.read_bytes().decode("latin1") for path in (run / "healthbench").iterdir())
    assert "says e" not in stored and "what of" not in stored
    assert healthbench.ensure_graded(profile(), run) == found
    (run / "policy/report.json").write_text('{"steps": 2}')
    changed = healthbench.ensure_graded(profile(), run)
    assert changed["status"] == hb.NOT_RUN and "no endpoint plays the judge" in changed["reason"]
    assert capsys.readouterr().out == ""


def test_a_judge_that_fails_lets_every_penalty_stand(asked):
    run, _, profile = asked
    with Server(Judge("what of p0?", "what of p1?", "what of p2?")) as server:
        found = healthbench.ensure_graded(profile(server.url, policy_prompts=0), run)
    assert found["status"] == hb.RUN and found["n"] == 6
    scores = hb.scores_of_run(run)
    lost = scores[scores.prompt_id.isin(["p0", "p1", "p2"])]
    # of 7, 3, -5, 4, -2 points none is earned and both penalties stand
    assert set(lost.score) == {-7 / 14} and len(lost) == 6


def test_a_judge_that_says_nothing_at_all_is_no_score_of_zero(asked):
    run, _, profile = asked
    with Server(Judge(*(f"what of p{n}?" for n in range(6)))) as server:
        found = healthbench.ensure_graded(profile(server.url), run)
    assert found["status"] == hb.NOT_RUN and "every criterion unknown" in found["reason"]
    assert found["value"] is None and not (run / hb.GRADED).exists()


def test_what_cannot_be_tested_or_did_not_run_says_why(asked, tmp_path):
    run, data, profile = asked
    for name in ("smoke", "cpu", "real"):
        found = healthbench.ensure_graded(profiles.load(name), tmp_path / "nowhere")
        assert found["status"] == hb.UNTESTED and found["value"] is None and found["rows"] == {}
    assert (
        healthbench.ensure_graded(profiles.load("gpu", base_model="small"), run)["status"]
        == hb.UNTESTED
    )
    assert "no endpoint" in healthbench.ensure_graded(profile(), run)["reason"]
    url = "http://127.0.0.1:9/v1"
    assert (
        "05_grpo_with_veto"
        in healthbench.ensure_graded(profile(url), tmp_path / "nowhere")["reason"]
    )
    (data / schemas.CARDS["healthbench_rubrics"].file).unlink()
    found = healthbench.ensure_graded(profile(url), run)
    assert found["status"] == hb.NOT_RUN and "rubrics_union" in found["reason"]


# ---------------------------------------------------------------- the public parts


def test_what_is_committed_holds_together_and_no_text():
    found = json.loads(PUBLISHED.read_text())
    assert found["scores"]["equal_clipped"] == found["scores"]["answers"] == 531
    assert found["scores"]["below_zero"] == 531 - found["scores"]["equal_unclipped"] == 106
    assert found["scores"]["mean_unclipped"] < found["scores"]["mean_of_clipped_examples"]
    assert found["graders"]["rows_with_physicians_labels"] == 0
    for ends in found["graders"]["bounds_against_physicians"].values():
        assert 0 <= ends["low"] < ends["high"] < 1
    words = re.findall(r'"([^"]*)"', PUBLISHED.read_text())
    assert max(map(len, words)) < 80 and not any(len(w.split()) > 4 for w in words)
    assert not re.search(r"healthbench:[0-9a-f]{8}|[0-9a-f]{8}-[0-9a-f]{4}-", PUBLISHED.read_text())


@real_data
def test_the_public_scores_by_hand():
    rows = schemas.read("healthbench_graded")
    values = []
    for row in rows:
        possible = sum(max(c.points, 0) for c in row.criteria)
        values.append(sum(c.points * c.met for c in row.criteria) / possible)
        assert row.healthbench_score == pytest.approx(min(max(values[-1], 0), 1), abs=1e-6)
    assert len(rows) == 531 and sum(v < 0 for v in values) == 106
    assert sum(values) / 531 == pytest.approx(0.2465, abs=5e-5)
    usable = hb.whole_rubrics(schemas.read("healthbench_rubrics"))
    assert 400 < len(usable) < 650 and all(row.prompt[-1].role == "user" for row in usable)
