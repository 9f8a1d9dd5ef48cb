"""Evidence: intervals over patients and trainings recomputed by hand, and what each source can
find."""

import numpy as np
import pandas as pd
import pytest
from helpers import benches
from helpers.studies import write as write_results
from scipy import stats

from promedical_utils.core import statistics, workspace
from promedical_utils.evaluation import bench, policy_metrics
from promedical_utils.paper import evidence
from promedical_utils.studies import contrasts

PROFILE = benches.profile()
CHECK = {
    "a": "full",
    "b": "base",
    "metric": "violation_rate",
    "metric_b": "violation_rate",
    "slice": "all",
    "slice_b": "all",
    "labels": "truth",
}
T2 = 4.302652729911275  # Student's t, 2 degrees of freedom, 97.5 %


def check(**changes):
    given = CHECK | changes
    return given | {"metric_b": changes.get("metric_b", given["metric"]), "slice_b": given["slice"]}


def answers(rates, n=80):
    """An evaluation of policies (name -> a rate of violation a seed; base has one), shared
    patients."""
    rows = []
    for policy, each in rates.items():
        for seed, rate in enumerate(each, 1):
            rng = np.random.default_rng([len(policy), seed])
            rows += [
                (
                    policy,
                    0 if policy == "base" else seed,
                    f"i{k:02d}",
                    f"c{k % 9}",
                    0.5,
                    1,
                    0,
                    bool(rng.random() < rate),
                )
                for k in range(n)
            ]
    columns = ["policy", "seed", "instruction_id", "condition", "s1", "s2", "s3", "violation"]
    return pd.DataFrame(rows, columns=columns)


def of_policies(rows, draws, seed):
    return contrasts.Counted(policy_metrics.sums(rows), draws, seed, policy_metrics.labels(rows))


def test_three_trainings_by_hand():
    a, b = {"1": 0.30, "2": 0.36, "3": 0.27}, {"1": 0.10, "2": 0.12, "3": 0.17}
    error, freedom, each = contrasts.trainings(a, b)
    assert each == pytest.approx([0.20, 0.24, 0.10]) and freedom == pytest.approx(2)
    assert error == pytest.approx(np.std([0.20, 0.24, 0.10], ddof=1) / 3**0.5)
    error, _, each = contrasts.trainings(a, {"0": 0.1})  # the base, or a single training
    assert error == pytest.approx(np.std([0.30, 0.36, 0.27], ddof=1) / 3**0.5)
    assert each == pytest.approx([0.20, 0.26, 0.17])
    assert contrasts.trainings({"0": 0.1}, a)[0] == pytest.approx(error)
    assert contrasts.trainings({"1": 0.4}, {"2": 0.1})[::2] == (0.0, pytest.approx([0.3]))
    assert contrasts.trainings({"1": 0.4, "2": 0.4}, {"1": 0.1, "2": 0.1})[0] == 0.0


def test_other_seeds_are_welch_s():
    a, b = {"1": 0.30, "2": 0.36, "3": 0.27}, {"4": 0.10, "5": 0.12}
    error, freedom, each = contrasts.trainings(a, b)
    half = stats.t.ppf(0.975, freedom) * error
    wanted = stats.ttest_ind([*a.values()], [*b.values()], equal_var=False).confidence_interval(
        0.95
    )
    assert half == pytest.approx((wanted.high - wanted.low) / 2) and each == []


def test_two_errors_add_up_as_squares():
    patients = {"difference": 0.10, "low": 0.07, "high": 0.22, "error": 0.01, "df": 8, "n": 50}
    error = 0.04 / stats.t.ppf(0.975, 1)  # of two trainings, so that its interval is 4 points
    sides = [{"1": 0.10 + error, "2": 0.10 - error}, {"": 0.0}]
    found = contrasts.contrast(check(metric="pairwise"), patients, sides, "", 0.95)
    assert (found["difference"], found["low"]) == (pytest.approx(10), pytest.approx(10 - 5))
    assert found["high"] == pytest.approx(10 + 160**0.5)


def test_policies_of_three_seeds_recomputed_by_hand():
    rows = answers({"base": [0.6], "full": [0.1, 0.2, 0.3], "no_veto": [0.4, 0.5, 0.4]})
    source = of_policies(rows, 200, 5)
    for other in ("base", "no_veto"):
        found = source.find(check(a=other, b="full"))
        wide = (
            rows.pivot(index="instruction_id", columns=["policy", "seed"], values="violation") * 1.0
        )
        each = [
            wide[other].iloc[:, k if other != "base" else 0].mean() - wide["full"][k + 1].mean()
            for k in range(3)
        ]
        weights = statistics.cluster_weights([f"c{int(i[1:]) % 9}" for i in wide.index], 200, 5)
        weights = weights / weights.sum(axis=1, keepdims=True)
        patients = (wide[other].mean(axis=1) - wide["full"].mean(axis=1)).to_numpy()
        ends = [float(end) for end in statistics.interval(weights @ patients, 9)]
        half, value = T2 * np.std(each, ddof=1) / 3**0.5, np.mean(each)
        assert found["each"] == pytest.approx(100 * np.array(each))
        assert found["difference"] == pytest.approx(100 * value) and value > 0.1
        assert [found["patients_low"], found["patients_high"]] == pytest.approx(
            [100 * e for e in ends]
        )
        assert found["low"] == pytest.approx(100 * (value - np.hypot(value - ends[0], half)))
        assert found["high"] == pytest.approx(100 * (value + np.hypot(ends[1] - value, half)))
        assert found["low"] < found["patients_low"] and found["high"] > found["patients_high"]
        assert (found["seeds"], found["n"], found["unit"]) == (3, 80, "points")
        assert "base 1" not in found["test"] and "full 3" in found["test"]
        own, between = statistics.standard_error(weights @ patients, 9), half / T2
        assert found["error"] == pytest.approx(100 * np.hypot(own, between))
        welch = (own**2 + between**2) ** 2 / (own**4 / 8 + between**4 / 2)  # Satterthwaite
        assert found["df"] == pytest.approx(welch)


def test_sides_turned_round_turn_the_sign():
    source = of_policies(answers({"base": [0.6], "full": [0.1, 0.2, 0.3]}), 100, 0)
    one, other = source.find(check(a="base", b="full")), source.find(check(a="full", b="base"))
    assert (
        one["difference"] == pytest.approx(-other["difference"]) and one["low"] > 0 > other["high"]
    )
    assert one["low"] == pytest.approx(-other["high"])
    up = source.find(check(a="full", b="base", metric="compliance"))
    assert up["difference"] == pytest.approx(one["difference"])


def test_one_training_says_so():
    source = of_policies(answers({"base": [0.6], "full": [0.2]}), 100, 0)
    found = source.find(check(a="base", b="full"))
    assert (found["seeds"], found["each"]) == (1, []) and "widened" not in found["test"]
    assert (found["low"], found["high"]) == pytest.approx(
        (found["patients_low"], found["patients_high"])
    )
    with pytest.raises(contrasts.Lacking, match="this run has no dpo"):
        source.find(check(a="dpo"))


def test_excellence_is_counted_in_criteria():
    rows = answers({"base": [0.5], "full": [0.5]})
    rows["s2"] = (rows.policy == "full") * 2
    found = of_policies(rows, 50, 0).find(check(metric="s2"))
    assert (found["difference"], found["unit"]) == (2.0, "criteria")


@pytest.fixture(scope="module")
def tally():
    made = benches.make(0.95, n=120, bench_samples=120)[0]
    return bench.tally(made, benches.noisy(made))


def test_a_tally_gives_the_bench_s_own_contrast(tally):
    source = contrasts.Counted(tally, 100, 3)
    given = check(a="criterion", b="scalar_overall", metric="pairwise", labels="adjudicated")
    wanted = tally.difference(
        {
            ("criterion", "pairwise", "all", "adjudicated"): 1,
            ("scalar_overall", "pairwise", "all", "adjudicated"): -1,
        },
        100,
        3,
    )
    found = source.find(given)
    for name in ("difference", "low", "high"):
        assert found[name] == pytest.approx(100 * wanted[name])
    assert (found["n"], found["seeds"]) == (wanted["n"], 1)
    alone = source.find(given | {"b": None})
    assert alone["difference"] > found["difference"] > 0  # a value, not a difference
    with pytest.raises(contrasts.Lacking, match="no veto f1 of scalar_overall on safety"):
        source.find(
            check(
                a="scalar_overall", b="criterion", metric="veto_f1", slice="safety", labels="truth"
            )
        )


AT = {
    "metric": "pairwise",
    "slice": "all",
    "against": "truth",
    "n": 50,
    "how": "value",
    "other": "",
}


def rows_of(system, seeds, ends=None, **more):
    """Result rows of a system: its training seeds, their mean with its interval."""
    value, low, high = ends or (np.mean(list(seeds.values())),) * 3
    whole = {"seed": "mean", "value": value, "low": low, "high": high}
    each = [{"seed": seed, "value": seeds[seed]} for seed in seeds]
    return [AT | {"system": system} | row | more for row in (*each, whole)]


def less(system, other, value, low, high, **more):
    row = {"system": system, "seed": "mean", "how": "less", "other": other}
    return AT | row | {"value": value, "low": low, "high": high} | more


def test_external_predictions_by_hand():
    rows = [
        ("clinic", s, "q", r, f"i{k}-{m}", f"c{m}", label, prefers)
        for s, r, said in (
            ("rm", False, [1, 1, 0, np.nan]),
            ("rm", True, [1, 1, -1, -1]),
            ("s", False, [-1] * 4),
        )
        for m in range(5)
        for k, (label, prefers) in enumerate(zip([1, 1, -1, 1], said))
    ]
    columns = [
        "set",
        "system",
        "text",
        "retrieval",
        "instruction_id",
        "condition",
        "label",
        "prefers",
    ]
    source = contrasts.Counted(evidence.external(pd.DataFrame(rows, columns=columns)), 50, 0)
    assert source.against == ["truth"]
    at = check(a="rm_rag", b="rm", metric="q", slice="clinic")
    # two of four are right and one is a tie, which counts as a half; no preference is wrong
    assert source.find(at)["difference"] == pytest.approx(75 - 62.5)
    assert source.find(at | {"a": "rm", "b": None})["difference"] == pytest.approx(62.5)
    assert source.find(at | {"a": "rm", "b": "s"})["difference"] == pytest.approx(62.5 - 25)
    few = pd.DataFrame(rows, columns=columns).query("condition < 'c4'")
    with pytest.raises(contrasts.Lacking, match="fewer than 5 conditions"):
        contrasts.Counted(evidence.external(few), 50, 0).find(at)
    with pytest.raises(contrasts.Lacking, match="this run has no q sub of rm_rag on clinic"):
        source.find(at | {"metric": "q_sub"})


def test_healthbench_says_why_not():
    column = {"rows": {}, "reason": "no endpoint", "n": 0}
    with pytest.raises(contrasts.Lacking, match="no endpoint"):
        evidence.HealthBench(column).find(check(a="grpo", metric="healthbench"))
    column["rows"]["difference"] = {"value": 3.0, "low": 1.0, "high": 5.5, "error": 1.1}
    found = evidence.HealthBench(column | {"n": 12}).find(check(a="grpo", metric="healthbench"))
    assert [found[k] for k in ("difference", "low", "high", "n", "seeds")] == [3.0, 1.0, 5.5, 12, 1]


def test_a_study_that_did_not_run_says_so(tmp_path):
    found = evidence.of_study(tmp_path, "policies", PROFILE)
    assert found.source is None and found.reason == "study policies not run"
    place = tmp_path / "policies"
    workspace.write_json(
        place / "manifest.json",
        {"profile": {"name": "cpu", "seed": 1, "data": "clinic", "bootstrap": 9}},
    )
    with pytest.raises(workspace.KitError, match="results.csv.*make study STUDY=policies"):
        evidence.of_study(tmp_path, "policies", PROFILE)
    write_results(place, answers({"base": [0.5], "full": [0.1]}))
    found = evidence.of_study(tmp_path, "policies", PROFILE)
    assert found.data == "study policies: profile cpu, seed 1, clinic"
    assert found.files == ("studies/policies/evaluation.parquet", "studies/policies/manifest.json")
    assert isinstance(found.source, contrasts.Counted)
