"""HealthBench by hand on made-up rows, a policy graded over a fake judge, and the public parts."""

import json
import math
import os
import re
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from data.test_real_sets import write
from helpers.clinic_server import Server
from scipy import stats

from promedical_utils.core import profiles
from promedical_utils.core.workspace import KitError, project_root
from promedical_utils.data import roles
from promedical_utils.data.sources import real_sets, schemas
from promedical_utils.evaluation import healthbench as hb
from promedical_utils.pipeline import healthbench
from promedical_utils.pipeline import policies as policies_stage
from promedical_utils.rubric import scoring

DATA = os.environ.get(schemas.VARIABLE)
real_data = pytest.mark.skipif(
    not DATA, reason=f"{schemas.VARIABLE} is not set: HealthBench's public parts are NOT recomputed"
)
PUBLISHED = project_root() / "papers_figures/healthbench/healthbench.json"


# ---------------------------------------------------------------- the score


def test_an_unknown_verdict_earns_nothing_and_lets_a_penalty_stand():
    points = [5, 5, 5, -2, -2, -2]
    said = ["met", "not_met", "unknown"] * 2
    assert hb.fail_closed(points, said) == [True, False, False, True, False, True]
    assert scoring.points_share(points, hb.fail_closed(points, said)) == pytest.approx((5 - 4) / 15)


def test_two_systems_are_compared_on_the_prompts_that_both_answered():
    rows = [
        ("base", "a", 0.2),
        ("base", "b", -0.6),
        ("grpo", "a", 0.9),
        ("grpo", "b", 0.3),
        ("grpo", "c", -5.0),
    ]
    frame = pd.DataFrame(rows, columns=["system", "prompt_id", "score"])
    found = hb.paired(frame, 500, 0)
    assert found["n"] == 2
    assert found["grpo"]["value"] == pytest.approx(0.6)
    assert found["base"]["value"] == 0.0  # the mean -0.2, clipped
    assert found["difference"]["value"] == pytest.approx(0.6)
    assert np.isnan([found["difference"][name] for name in ("low", "high", "error")]).all()
    more = [(s, f"{p}{n}", score) for n in range(3) for s, p, score in rows[:4]]
    found = hb.paired(pd.DataFrame(more, columns=frame.columns), 500, 0)
    # six prompts; without an a: 1.5 / 5 + 0.3 * 3 / 5 less the base's, which is clipped
    left = [(0.9 * 2 + 0.3 * 3) / 5, (0.9 * 3 + 0.3 * 2) / 5]
    error = np.sqrt(5 / 6 * 3 * ((left[0] - 0.6) ** 2 + (left[1] - 0.6) ** 2))
    assert found["n"] == 6 and found["difference"]["error"] == pytest.approx(error)
    reach = stats.t.ppf(0.975, 5) * error
    assert found["difference"]["low"] == pytest.approx(0.6 - reach)
    assert found["difference"]["high"] == pytest.approx(min(1, 0.6 + reach))


@pytest.mark.parametrize(
    ("score", "characters", "wanted"),
    [(1.0, 2000, 1.0), (1.0, 2500, 0.9853), (1.0, 1500, 1.0147), (-0.5, 2500, -0.5147)],
)
def test_length_is_adjusted_about_2000_characters_and_not_clipped(score, characters, wanted):
    assert hb.length_adjusted(score, characters) == pytest.approx(wanted)


def test_professional_has_the_adjusted_mean_beside_the_plain_one():
    rows = [  # base: 5/8 at 1,000 characters, then (5 - 8)/8 at 4,000, an unknown penalty standing
        ("base", "a", 5, "met", 1000),
        ("base", "a", 3, "not_met", 1000),
        ("base", "a", -8, "not_met", 1000),
        ("base", "b", 5, "met", 4000),
        ("base", "b", 3, "unknown", 4000),
        ("base", "b", -8, "unknown", 4000),
        ("grpo", "a", 8, "met", 500),
    ]
    columns = ["system", "prompt_id", "points", "verdict", "characters"]
    graded = pd.DataFrame(rows, columns=columns)
    base, grpo = hb.professional(graded, 100, 0).to_dict("records")
    plain = (5 / 8 - 3 / 8) / 2
    adjusted = (5 / 8 + 0.0147 * 2 - 3 / 8 - 0.0147 * 4) / 2
    assert (base["cases"], base["characters"]) == (2, 2500)
    assert base["plain"] == pytest.approx(plain)
    assert base["adjusted"] == pytest.approx(adjusted)
    assert (grpo["plain"], grpo["adjusted"]) == (1, 1)  # 1.0441, the mean alone is clipped
    many = pd.concat([graded.assign(prompt_id=graded.prompt_id + str(n)) for n in range(9)])
    base = hb.professional(many, 500, 0).iloc[0]
    assert base.plain_low < plain < base.plain_high and base.cases == 18
    with pytest.raises(KitError, match="no characters; it has system, prompt_id, points, verdict"):
        hb.professional(graded.drop(columns="characters"))


# ---------------------------------------------------------------- graders beside physicians


MET, NOT, UNKNOWN = "met", "not_met", "unknown"


def macro_f1(said, labels):
    """The mean of the F1 of met and that of not met, by hand; an unknown verdict misses."""
    pairs, total = list(zip(said, labels, strict=True)), 0.0
    for name in (MET, NOT):
        hits = sum(a == b == name for a, b in pairs)
        total += 2 * hits / (sum(a == name for a, _ in pairs) + sum(b == name for _, b in pairs))
    return total / 2


def rated(items):
    """Cells of (conversation, {rater: verdict}) items; what is not given is unknown."""
    frame = pd.DataFrame([{"conversation": talk} | said for talk, said in items])
    return frame.fillna(UNKNOWN)


def test_unknown_is_wrong_and_never_not_met():
    from sklearn.metrics import f1_score

    def found(said, labels):
        items = [(n, {"g": a, "a": b}) for n, (a, b) in enumerate(zip(said, labels, strict=True))]
        return hb.beside(rated(items), "g", ["a"], 20, 0)["mf1"]

    said, label = [MET, MET, NOT, NOT], [MET, NOT, NOT, MET]
    assert found(said, label) == pytest.approx(f1_score(label, said, average="macro"))
    assert found([MET, NOT], [MET, NOT]) == 1.0
    # met: 2 * 1 / (1 + 1); not met: nothing said, one labelled
    assert found([MET, UNKNOWN], [MET, NOT]) == pytest.approx((1 + 0) / 2)
    assert found([MET, NOT, UNKNOWN], [MET, NOT, NOT]) == pytest.approx((1 + 2 / 3) / 2)


ITEMS = [
    ("t1", {"a": MET, "b": MET, "c": NOT, "g": MET}),
    ("t1", {"a": NOT, "b": NOT, "c": UNKNOWN, "g": NOT}),
    ("t2", {"a": MET, "b": UNKNOWN, "c": NOT, "g": UNKNOWN}),
    ("t3", {"a": UNKNOWN, "b": NOT, "c": NOT, "g": MET}),
]


def test_each_physicians_label_counts_as_healthbench_does():
    found = hb.beside(rated(ITEMS), "g", ["a", "b", "c"], 50, 0)
    # pairs (said, label): mm mm mn, nn nn, um un, mn mn
    assert found["n"] == 9
    assert found["mf1"] == pytest.approx((2 * 2 / (5 + 3) + 2 * 2 / (2 + 6)) / 2)
    assert np.isnan([found["low"], found["high"]]).all()  # three conversations tell of no other


def test_the_baseline_leaves_one_physician_out_and_holds_the_grader_to_the_same_labels():
    found = hb.beside(rated(ITEMS), "g", ["a", "b", "c"], 50, 0)

    def pairs(rater, others):
        rows = [(said[rater], said[other]) for _, said in ITEMS for other in others]
        return [pair for pair in rows if pair[1] != UNKNOWN]

    sizes, physician, grader = [], [], []
    for name, others in (("a", "bc"), ("b", "ac"), ("c", "ab")):
        sizes.append(len(pairs(name, others)))
        physician.append(macro_f1(*zip(*pairs(name, others), strict=True)))
        grader.append(macro_f1(*zip(*pairs("g", others), strict=True)))
    baseline, left_out = np.average(physician, weights=sizes), np.average(grader, weights=sizes)
    assert sizes == [6, 6, 6] and found["baseline"] == pytest.approx(baseline)
    assert found["difference"] == pytest.approx(left_out - baseline)


def test_conversations_are_drawn_whole():
    one = [(n, {"a": MET if n % 2 else NOT, "g": MET if n % 3 else NOT}) for n in range(30)]
    many = [item for item in one for _ in range(10)]  # no more conversations
    alone, whole = (hb.beside(rated(items), "g", ["a"], 400, 0) for items in (one, many))
    assert whole["high"] - whole["low"] == pytest.approx(alone["high"] - alone["low"], abs=1e-9)
    assert alone["mf1"] == pytest.approx(whole["mf1"])
    assert math.isnan(alone["baseline"])  # one physician


def test_the_clinics_bench_shows_judge_and_models_beside_physicians_and_truth(tmp_path):
    from promedical_utils.core import records
    from promedical_utils.evaluation.bench import LABELS, PAIR, Bench, save_judged

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
    dimensions = ["safety", "safety", "excellence", "proficiency"]
    criteria = pd.DataFrame(
        [(f"i{n}", f"k{k}", d, 0.0, True) for n in range(5) for k, d in enumerate(dimensions)],
        columns=["instruction_id", "criterion_id", "dimension", "weight", "seen"],
    )
    samples = pd.DataFrame({"instruction_id": [f"i{n}" for n in range(5)]})
    pairs, grades = (pd.DataFrame(columns=columns) for columns in (PAIR, LABELS))
    Bench(samples, criteria, verdicts, pairs, grades, {"input": {}}).save(tmp_path / "bench")
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
    own = macro_f1([UNKNOWN if n == 1 else v for n, v in enumerate(true)], true)
    assert own < 1 and whole.loc[("truth", "rm"), "mf1"] == pytest.approx(own)
    assert whole.loc[("truth", "judge"), "mf1"] == 0.0  # all turned round
    row = whole.loc[("physicians", "rm")]
    assert row.n == 40 + 36  # unknown labels of a physician are no labels
    pairs = list(zip(verdicts.physician_1, verdicts.physician_2, strict=True))
    first = macro_f1(*zip(*[p for p in pairs if p[1] != UNKNOWN], strict=True))
    second = macro_f1(*zip(*[p[::-1] for p in pairs], strict=True))
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
    assert {row.prompt_id for row in kept} == {"p1", "p2", "p7"} and len(kept) == 3
    assert kept == hb.whole_rubrics(read[::-1])


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
            "roles": {n: {"model": "fake", "retries": 1} for n in names},
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
    assert np.isnan(found["rows"]["difference"]["low"])  # four prompts tell of no other
    assert set(found) == {"status", "value", "low", "high", "reason", "n", "rows"}
    # what is stored has no text in it, and is not asked again; another policy is
    stored = "".join(path.read_bytes().decode("latin1") for path in (run / "healthbench").iterdir())
    assert "says e" not in stored and "what of" not in stored
    assert str(healthbench.ensure_graded(profile(), run)) == str(found)  # NaN is not itself
    (run / "policy/report.json").write_text('{"steps": 2}')
    changed = healthbench.ensure_graded(profile(), run)
    assert changed["status"] == hb.NOT_RUN and "no endpoint plays the judge" in changed["reason"]
    assert capsys.readouterr().out == ""


def professional_row(name):
    row = rubric_row(name)
    items = [{"criterion_text": c["criterion"], "points": c["points"]} for c in row["rubrics"]]
    about = {"use_case": "consult", "type": "good_faith", "difficulty": "typical"}
    about |= {"specialty": "s", "physician_response": "rest", "canary_string": "x"}
    return {"id": name, "conversation": {"messages": row["prompt"]}, "rubric_items": items} | about


def save_professional(data, *rows):
    path = data / schemas.CARDS[real_sets.PROFESSIONAL].file
    path.parent.mkdir()
    path.write_text("\n".join(map(json.dumps, rows)))


def test_professional_is_graded_beside_healthbench_and_is_never_trained_on(asked):
    run, data, profile = asked
    save_professional(data, *(professional_row(f"c{n}") for n in range(3)))
    judge = Judge()
    with Server(judge) as server:
        settings = profile(server.url, policy_prompts=0)
        healthbench.grade_policies(settings, run, real_sets.PROFESSIONAL)
    assert not (run / hb.GRADED).exists()
    graded = pd.read_parquet(run / real_sets.PROFESSIONAL / "graded.parquet")
    assert len(graded) == 2 * 3 * 5
    lengths = graded.groupby(["system", "prompt_id"]).characters.agg(["nunique", "first"])
    assert lengths["nunique"].eq(1).all()
    given = [len(answer) if answer != " " else 0 for _, answer, _ in judge.asked]
    assert sorted(lengths["first"]) == sorted(given)
    table = hb.professional(graded, 50, 0)
    assert table.system.tolist() == ["base", "grpo"] and table.cases.eq(3).all()
    row = schemas.read(real_sets.PROFESSIONAL)[0]
    assert [p.points for p in row.rubrics] == [7, 3, -5, 4, -2] and row.prompt_id == "c0"
    asked_of = schemas.question("x", real_sets.PROFESSIONAL, row.prompt, "health_conversation")
    with pytest.raises(KitError, match="canary"):
        real_sets.refuse_external([asked_of])
    with pytest.raises(KitError, match="canary"):  # the training of a policy
        own = SimpleNamespace(instructions_in=lambda split: [asked_of])
        policies_stage.align(settings, run, own, run / "policy")


def test_a_case_without_its_canary_is_none_of_professional(asked):
    _, data, _ = asked
    row = professional_row("c0")
    del row["canary_string"]
    save_professional(data, row)
    with pytest.raises(KitError, match="row 1, field canary_string"):
        schemas.read(real_sets.PROFESSIONAL)


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
    found = healthbench.ensure_graded(profiles.load("smoke"), tmp_path / "nowhere")
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
