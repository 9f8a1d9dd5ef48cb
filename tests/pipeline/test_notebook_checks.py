"""Checks of one kind of data or profile: each can fail, and is silent elsewhere."""

from types import SimpleNamespace

import pandas as pd
import pytest
from helpers import benches

from promedical_utils.core import profiles
from promedical_utils.core.records import Criterion, Rubric
from promedical_utils.core.run_data import RunData
from promedical_utils.pipeline import notebook_checks as checks
from promedical_utils.rubric.scoring import Scores

SMOKE, CPU = profiles.load("smoke"), profiles.load("cpu")
REAL = SMOKE.model_copy(update={"data": "real"})


def fails(check, *args) -> bool:
    try:
        check(*args)
    except AssertionError:
        return True
    return False


def test_a_base_that_was_trained_here_learned_and_has_whole_names():
    report = {
        "trained_here": True,
        "curve": [{"loss": 7.0, "step": 3}, {"loss": 3.0, "step": 6}],
        "vocabulary": 300,
    }
    assert not fails(checks.base, SMOKE, report, [1, 1])
    assert fails(checks.base, SMOKE, report, [1, 2]) and not fails(checks.base, REAL, report, [2])
    assert fails(checks.base, SMOKE, report | {"curve": report["curve"][::-1]}, [1])
    assert fails(checks.base, SMOKE, report | {"vocabulary": SMOKE.base_vocabulary + 1}, [1])
    assert not fails(checks.base, SMOKE, {"trained_here": False}, [3])


def test_goals_are_of_the_published_profile_and_results_either_way():
    assert checks.base_goals(CPU, {"cannot_copy": []}) == {"reads every fact": True}
    assert checks.base_goals(CPU, {"cannot_copy": ["limit"]}) == {"reads every fact": False}
    value = pd.Series(
        {
            ("length", "pairwise", "all"): 0.55,
            ("words", "pairwise", "all"): 0.81,
            ("criterion", "pairwise", "all"): 0.92,
        }
    )
    assert list(checks.bench_goals(CPU, value).values()) == [True, False, True]
    accuracy = {"criterion_clean": 0.98, "criterion": 0.94}
    assert list(checks.reward_goals(CPU, accuracy).values()) == [True, False]
    assert checks.base_goals(SMOKE, {}) == checks.bench_goals(SMOKE, value) == {}
    assert checks.reward_goals(SMOKE, accuracy) == {}


def rubric(size: int) -> Rubric:
    criteria = [
        Criterion(id=f"{n}", dimension="proficiency", text=f"names {n}", weight=1 / size)
        for n in range(size)
    ]
    return Rubric(instruction_id="a", status="gold", round=0, criteria=criteria)


def test_rubrics_of_the_clinic_and_the_agreement_on_real_data(tmp_path):
    (tmp_path / "data").mkdir()
    pd.DataFrame({"before": [88, 85]}).to_csv(tmp_path / "data/funnel.csv", index=False)
    report = {"curation": {"rows": 88}}
    data = RunData(rubrics=[rubric(5)])
    assert not fails(checks.rubrics, SMOKE, tmp_path, report, data)
    assert fails(checks.rubrics, SMOKE, tmp_path, report, RunData(rubrics=[rubric(3)]))
    assert fails(checks.rubrics, SMOKE, tmp_path, {"curation": {"rows": 87}}, data)
    for kappa, wrong in ((0.7191, False), (0.72, True)):
        real = {"sources": {"kqa_agreement": {"fleiss_kappa": kappa}}}
        assert fails(checks.rubrics, REAL, tmp_path, real, data) is wrong


def test_pairs_of_the_clinic():
    group = SimpleNamespace(criteria=[SimpleNamespace(dimension="safety")] * 4)
    scores = {
        name: Scores(0.5, 0, violations, 1)
        for name, violations in {
            "right": 0,
            "stuffed": 4,
            "contradicts itself": 1,
            "keywords": 4,
        }.items()
    }
    agreed = SMOKE.judge_agreement
    assert not fails(checks.pairs, SMOKE, group, scores, agreed)
    assert fails(checks.pairs, SMOKE, group, scores, agreed - 0.05)
    assert fails(checks.pairs, SMOKE, group, scores | {"stuffed": scores["right"]}, agreed)
    assert fails(checks.pairs, SMOKE, group, scores | {"right": scores["stuffed"]}, agreed)
    assert not fails(checks.pairs, REAL, group, {}, 0.0)


def test_sizes_and_unseen_kinds_of_the_clinics_bench():
    bench = benches.make()[0]
    counts = bench.pairs.dimension.value_counts()
    sizes = {f"bench_pairs_{name}": int(counts.get(name, 0)) for name in checks.records.DIMENSIONS}
    sizes["bench_samples"] = len(bench.samples)
    profile = SMOKE.model_copy(update=sizes)
    assert checks.bench_sizes(profile, bench) == "exactly as the profile sets: True"
    for name in sizes:
        other = profile.model_copy(update={name: sizes[name] + 1})
        assert fails(checks.bench_sizes, other, bench)
    assert checks.bench_sizes(REAL, bench).startswith("as the sources have them")
    bench.report["unseen_share"] = 0.2
    assert checks.unseen_kinds(SMOKE, bench) == "at least a fifth of unseen kinds: True"
    bench.report["unseen_share"] = 0.19
    assert fails(checks.unseen_kinds, SMOKE, bench)
    assert checks.unseen_kinds(REAL, bench).startswith("every kind")


def test_the_policy_of_the_clinic_has_gold_and_violations():
    curve = pd.DataFrame({"gold": [0.1, 0.2]})
    evaluation = pd.DataFrame({"violation": [True, False], "s3": [2, 0]})
    report = {"unscored": 0}
    assert not fails(checks.policy, CPU, report, curve, evaluation)
    assert fails(checks.policy, CPU, {"unscored": 0.1}, curve, evaluation)
    assert not fails(checks.policy, SMOKE, {"unscored": 0.1}, curve, evaluation)
    assert fails(checks.policy, SMOKE, report, curve.assign(gold=float("nan")), evaluation)
    assert fails(checks.policy, SMOKE, report, curve, evaluation.assign(s3=[2, 1]))
    assert not fails(checks.policy, REAL, report, curve.drop(columns="gold"), evaluation)


@pytest.mark.parametrize("verdict", ["not testable in this profile", "same direction"])
def test_no_claim_is_tested_on_smoke_numbers(verdict):
    tested = verdict != "not testable in this profile"
    assert fails(checks.claims, SMOKE, pd.Series([verdict])) is tested
    assert not fails(checks.claims, CPU, pd.Series([verdict]))
