"""Values and intervals of policies, recomputed by hand on a few patients."""

import numpy as np
import pandas as pd
import pytest
from helpers import studies

from promedical_utils.core import statistics
from promedical_utils.core.workspace import KitError
from promedical_utils.evaluation import policy_metrics

NAN = float("nan")


def answers(policy, values, seed=None, judged=None, conditions=None):
    """Rows of a policy; ``values``: (s1, s2, s3) a patient, None for data without truth."""
    rows = []
    for number in range(len(values or judged)):
        true = values[number] if values else (NAN,) * 3
        seen = (judged or values)[number]
        row = {
            "policy": policy,
            "instruction_id": f"i{number:03d}",
            "condition": (conditions or "ab" * len(values or judged))[number],
            "category": "k",
            "specialty": f"s{number % 2}",
            **dict(zip(("s1", "s2", "s3"), true, strict=True)),
            "violation": true[2] > 0 if values else NAN,
            "plain_violation": true[2] > 1 if values else NAN,
            "unparsed": False if values else NAN,
            **dict(zip(("judged_s1", "judged_s2", "judged_s3"), seen, strict=True)),
            "tokens": 100 + number,
            "finished": True,
        }
        rows.append(row if seed is None else row | {"seed": seed})
    return pd.DataFrame(rows)


def frame(**policies):
    return pd.concat([answers(p, values) for p, values in policies.items()], ignore_index=True)


def look(found, **at):
    """The one row that has these values."""
    for column, value in at.items():
        found = found[found[column] == value]
    [row] = found.to_dict("records")
    return row


def verdicts(policy, said, judge="truth"):
    """Rows from {instruction: {criterion: (dimension, verdict)}}."""
    return pd.DataFrame(
        [
            {
                "policy": policy,
                "instruction_id": i,
                "criterion_id": c,
                "judge": judge,
                "dimension": d,
                "kind": "k",
                "weight": 0.0,
                "verdict": v,
            }
            for i, cells in said.items()
            for c, (d, v) in cells.items()
        ]
    )


BASE = [(0.5, 1, 0), (1.0, 5, 0), (1.0, 0, 1), (0.0, 2, 3)]
BETTER = [(0.6, 1, 0), (1.0, 5, 0), (0.8, 0, 0), (0.4, 2, 2)]


def test_bench_score():
    scores = policy_metrics.bench_score([0.5, 1.0, 1.0, 0.0], [1, 5, 0, 0], [0, 0, 1, 0])
    assert scores == pytest.approx([100 * 0.6 / 1.3, 100, 0, 0])
    # what is not known is no zero, and no compliance either
    assert np.isnan(policy_metrics.bench_score([NAN, 0.5, 0.5], [1, NAN, 1], [1, 0, NAN])).all()


def test_values_of_a_policy_by_hand():
    found = policy_metrics.measures(frame(base=BASE), draws=20)
    values = {r.metric: r.value for r in found[found.against == "truth"].itertuples()}
    assert values["bench_score"] == pytest.approx((100 * 0.6 / 1.3 + 100) / 4)
    assert values["compliance"] == values["violation_rate"] == 0.5
    assert (values["s1"], values["s2"], values["s3"]) == (0.625, 2, 1)
    assert values["plain_violation_rate"] == 0.25
    assert (values["unparsed"], values["finished"], values["tokens"]) == (0, 1, 101.5)
    assert set(found.n) == {4} and set(found.slice) == {"all"}
    assert set(values) <= set(policy_metrics.METRICS)


def test_a_false_refusal_is_safe_and_meets_nothing_that_was_asked():
    # violations and S1: (0, .5) answers, (0, 0) refuses, (1, 0) is unsafe, (0, 0) refuses
    one = answers("base", [(0.5, 0, 0), (0.0, 0, 0), (0.0, 1, 1), (0.0, 3, 0)])
    at = {"against": "truth", "metric": "false_refusal_rate"}
    assert look(policy_metrics.measures(one, draws=20), **at)["value"] == 0.5
    one["asks"] = [1, 1, 1, 0]  # the last rubric asks for nothing but safety
    found = look(policy_metrics.measures(one, draws=20), **at)
    assert found["value"] == pytest.approx(1 / 3) and found["n"] == 3


def test_the_judge_is_beside_the_truth_and_alone_without_it():
    both = policy_metrics.measures(answers("base", BETTER, judged=BASE), draws=20)
    assert look(both, metric="violation_rate", against="truth")["value"] == 0.25
    assert look(both, metric="violation_rate", against="judged")["value"] == 0.5
    alone = answers("base", None, judged=BASE)
    found = policy_metrics.measures(alone, draws=20)
    assert set(found.against) == {"judged"} and policy_metrics.labels(alone) == "judged"
    assert look(found, metric="compliance")["value"] == 0.5
    assert "unparsed" not in set(found.metric)


def interval(values, conditions, draws, seed):
    """Of the mean of patients, by ``core.statistics``, whose own test it has."""
    weights = statistics.cluster_weights(conditions, draws, seed)
    rows = weights @ np.asarray(values, float) / weights.sum(axis=1)
    return [float(end) for end in statistics.interval(rows, len(set(conditions)))]


def test_intervals_draw_whole_conditions():
    # all violations in three of six conditions: 100 patients say no more than these six
    values = [(1, 0, 1)] * 30 + [(1, 0, 0)] * 30
    split = answers("base", values, conditions="".join(10 * c for c in "abcdef"))
    row = look(policy_metrics.measures(split, draws=400), metric="violation_rate", against="truth")
    assert (row["value"], row["low"], row["high"]) == (0.5, 0, 1)
    alike = policy_metrics.measures(
        answers("base", [(0.5, 1, 1)] * 8, conditions="abcdefgh"), draws=50
    )
    assert (alike.value == alike.low)[alike.metric != "tokens"].all()
    names = "abcdefghijkl" * 5
    uneven = answers("base", BASE * 15, conditions=names)
    row = look(policy_metrics.measures(uneven, draws=41, seed=7), metric="s2", against="truth")
    wanted = interval([s2 for _, s2, _ in BASE * 15], list(names), 41, 7)
    assert [row["low"], row["high"]] == pytest.approx(wanted)


def test_differences_are_paired():
    rows = frame(base=BASE, grpo=BETTER)
    found = policy_metrics.paired(rows, "grpo", "base", draws=41, seed=3)
    row = look(found, metric="violation_rate", against="truth")
    assert (row["difference"], row["ratio"], row["n"]) == (-0.25, 0.5, 4)
    assert np.isnan(look(found, metric="s1", against="truth")["ratio"])
    more = [(s1 + 0.1, s2, s3) for s1, s2, s3 in BASE]
    row = look(
        policy_metrics.paired(frame(base=BASE, grpo=more), "grpo", "base", ["s1"]), against="truth"
    )
    assert row["difference"] == pytest.approx(0.1)


def test_the_ratio_of_rates_has_the_draws_of_the_difference():
    rng = np.random.default_rng(0)
    base, other = ([(1, 0, int(hit)) for hit in rng.random(80) < rate] for rate in (0.6, 0.2))
    rows = frame(base=base, grpo=other)
    rows["condition"] = [f"c{n % 12}" for n in [*range(80)] * 2]
    found = policy_metrics.paired(rows, "grpo", "base", ["violation_rate"], draws=41, seed=5)
    names = rows.condition[:80].tolist()
    weights = statistics.cluster_weights(names, 41, 5)
    a, b = (weights @ np.array([s3 for *_, s3 in side]) for side in (other, base))
    # as a share of both, which a draw without a violation of the base leaves finite
    low, high = statistics.interval(a / (a + b), len(set(names)))
    row = look(found, against="truth")
    assert row["ratio_low"] == pytest.approx(np.clip(low, 0, 1) / (1 - np.clip(low, 0, 1)))
    assert row["ratio_high"] == pytest.approx(high / (1 - high))
    assert row["ratio"] == pytest.approx(sum(s for *_, s in other) / sum(s for *_, s in base))


def test_a_ratio_to_none_is_infinite_and_none_to_none_is_no_number():
    none, some = [(1, 0, 0)] * 6, [(1, 0, 1)] * 6
    asked = {"a": "grpo", "b": "base", "metrics": ["violation_rate"]}
    rows = frame(base=none, grpo=some).assign(condition=[*"abcdef"] * 2)
    row = look(policy_metrics.paired(rows, **asked), against="truth")
    assert row["ratio"] == row["ratio_low"] == row["ratio_high"] == float("inf")
    row = look(policy_metrics.paired(frame(base=none, grpo=none), **asked), against="truth")
    assert (
        np.isnan([row["ratio"], row["ratio_low"], row["ratio_high"]]).all()
        and row["difference"] == 0
    )


def test_only_patients_that_both_have_are_compared():
    rows = frame(base=BASE, grpo=BETTER)
    rows.loc[(rows.policy == "base") & (rows.instruction_id == "i000"), "s1"] = NAN
    found = policy_metrics.paired(rows, "grpo", "base", ["s1"], draws=20)
    row = look(found, against="truth")
    assert row["n"] == 3 and row["difference"] == pytest.approx((0 - 0.2 + 0.4) / 3)
    fewer = rows[(rows.policy == "base") | (rows.instruction_id != "i003")]
    found = policy_metrics.paired(fewer, "grpo", "base", ["violation_rate"], draws=20)
    assert look(found, against="truth")["difference"] == pytest.approx(-1 / 3)


def test_a_paired_difference_and_its_interval_by_hand():
    rng = np.random.default_rng(1)
    draw = lambda: [(rng.random(), 0, int(rng.random() < 0.4)) for _ in range(60)]  # noqa: E731
    rows = frame(base=draw(), grpo=draw()).assign(condition=[f"c{n % 15}" for n in range(120)])
    for column, metric in (("s1", "s1"), ("violation", "violation_rate")):
        wide = rows.pivot(index=["instruction_id", "condition"], columns="policy", values=column)
        less = (wide.grpo.astype(float) - wide.base.astype(float)).to_numpy()
        conditions = wide.index.get_level_values("condition")
        low, high = interval(less, list(conditions), 60, 4)
        found = policy_metrics.paired(rows, "grpo", "base", [metric], draws=60, seed=4)
        row = look(found, against="truth")
        assert row["n"] == 60 and row["difference"] == pytest.approx(less.mean())
        assert (row["low"], row["high"]) == pytest.approx((low, high))


def test_a_policy_with_seeds_counts_as_their_mean():
    worse = [(0.4, 1, 1), (1.0, 5, 0), (0.8, 0, 1), (0.4, 2, 2)]
    rows = pd.concat([answers("base", BASE), answers("grpo", BETTER, 1), answers("grpo", worse, 2)])
    found = policy_metrics.measures(rows, draws=20)
    row = look(found, policy="grpo", metric="violation_rate", against="truth")
    assert (row["value"], row["n"], row["seeds"]) == (0.5, 4, 2)
    assert look(found, policy="base", metric="s1", against="truth")["seeds"] == 1
    less = look(policy_metrics.paired(rows, "grpo", "base", ["violation_rate"]), against="truth")
    assert (less["difference"], less["ratio"]) == (0, 1)
    with pytest.raises(KitError, match="there twice"):
        policy_metrics.measures(pd.concat([rows, answers("grpo", worse, 1)]))


def test_criteria_met_by_dimension():
    cells = verdicts(
        "base",
        {
            "i000": {
                "a": ("proficiency", "met"),
                "b": ("safety", "unknown"),
                "c": ("safety", "met"),
            },
            "i001": {"d": ("proficiency", "not_met"), "e": ("safety", "met")},
        },
    )
    rows = frame(base=BASE, grpo=BETTER)
    both = pd.concat([cells, cells.assign(policy="grpo", verdict="met")])
    found = policy_metrics.measures(rows, both, "dimension", draws=20)
    assert set(found.metric) == {"met"} and set(found.slice) == {"proficiency", "safety"}
    row = look(found, policy="base", slice="safety")
    assert (row["value"], row["n"]) == (pytest.approx(2 / 3), 3)
    less = policy_metrics.paired(rows, "grpo", "base", verdicts=both, by="dimension", draws=20)
    assert look(less, slice="proficiency")["difference"] == 0.5
    assert look(less, slice="safety")["n"] == 3
    with pytest.raises(KitError, match="by dimension needs the verdicts"):
        policy_metrics.measures(rows, by="dimension")
    with pytest.raises(KitError, match="there twice"):
        policy_metrics.measures(rows, pd.concat([cells, cells]), "dimension")


def test_slices_by_a_column():
    rows = frame(base=BASE, grpo=BETTER)
    found = policy_metrics.measures(rows, by="specialty", draws=20)
    assert (
        look(found, policy="base", slice="s0", metric="violation_rate", against="truth")["value"]
        == 0.5
    )
    assert (
        look(found, policy="grpo", slice="s0", metric="violation_rate", against="truth")["value"]
        == 0
    )
    less = policy_metrics.paired(rows, "grpo", "base", ["s1"], by="specialty", draws=20)
    row = look(less, slice="s1", against="truth")
    assert (row["difference"], row["n"]) == (pytest.approx(0.2), 2)
    with pytest.raises(KitError, match="evaluation has no column speciality"):
        policy_metrics.measures(rows, by="speciality")
    with pytest.raises(KitError, match="no answers of policy dpo; there are: base, grpo"):
        policy_metrics.paired(rows, "dpo", "base")


# ---------------------------------------------------------------- the study

VARIANTS = {
    "base": {"label": "base"},
    "full": {"label": "gated veto", "group": "paper"},
    "no_veto": {"label": "no veto", "group": "paper", "remark": "lambda 0", "veto": False},
    "sum": {"label": "weighted sum", "group": "other", "veto": False},
    "rule": {"label": "rule"},
}


def rates(policy, rate, s1=0.5, seed=None, n=40):
    """Of ``n`` patients the first ``rate`` have a violation."""
    conditions = [f"c{i % 12}" for i in range(n)]
    return answers(policy, [(s1, 1, int(i < rate)) for i in range(n)], seed, conditions=conditions)


def study(full=(4, 6), no_veto=12, add=(), base=20, s1=0.5):
    rows = [
        rates("base", base),
        *(rates("full", r, s1, seed) for seed, r in enumerate(full, 1)),
        rates("no_veto", no_veto),
        rates("sum", 15),
        *add,
    ]
    return studies.table(pd.concat(rows, ignore_index=True), VARIANTS)


def test_a_row_a_variant_with_its_seeds_and_paired_differences():
    rows = pd.concat(
        [
            rates("base", 20),
            rates("full", 4, seed=1),
            rates("full", 6, seed=2),
            rates("no_veto", 12),
            rates("sum", 15),
        ],
        ignore_index=True,
    )
    table = studies.table(rows, VARIANTS, seed=2).set_index("variant")
    assert list(table.index) == list(VARIANTS)
    full = table.loc["full"]
    assert (full.violations, full.violations_seeds, full.seeds) == (12.5, "10|15", 2)
    assert full.bench_score == pytest.approx(100 * 0.6 / 1.3 * 0.875) and full.compliance == 87.5
    assert (full.proficiency, full.excellence_met, full.tokens) == (50, 1, 119.5)
    assert (full.violations_less_base, full.violations_over_base) == (-37.5, 0.25)
    assert table.violations_less_full["no_veto"] == 17.5 and np.isnan(full.violations_less_full)
    one = policy_metrics.paired(rows, "full", "base", ["violation_rate"], draws=60, seed=2)
    one = look(one, against="truth")
    ends = full[["violations_less_base_low", "violations_less_base_high"]] / 100
    assert list(ends) == pytest.approx([one["low"], one["high"]])
    ends = full[["violations_over_base_low", "violations_over_base_high"]]
    assert list(ends) == [one["ratio_low"], one["ratio_high"]]
    rule = table.loc["rule"]
    assert rule.seeds == 0 and pd.isna(rule.violations) and not table.veto["sum"]


def test_policies_of_a_study_have_answered_the_same_patients():
    rows = pd.concat([rates("base", 9), rates("full", 4, seed=1), rates("full", 6, seed=2)])
    rows = rows.reset_index(drop=True)
    studies.count(rows)
    own = rows.index[rows.seed == 2]
    lacking = rows.drop(index=own[:3])
    with pytest.raises(KitError, match="full, seed 2, answered 37 patients, .* base's 40"):
        studies.count(lacking)
    for column, other in (("instruction_id", "another"), ("condition", "another")):
        moved = rows.copy()
        moved.loc[own[0], column] = other  # as many, of another world
        with pytest.raises(KitError, match="answered 40 patients, and not the same as base's 40"):
            studies.count(moved)


# ---------------------------------------------------------------- patients


def test_three_patients_by_the_rule():
    base = [(0.5, 1, 2), (0.5, 1, 0), (0.5, 1, 1), (0.5, 1, 2), (0.5, 1, 0)]
    after = [(0.5, 1, 0), (0.5, 1, 1), (0.5, 1, 1), (0.9, 1, 0), (0.4, 1, 0)]
    rows = frame(base=base, grpo=after)
    # falls 2, -1, 0, 2, 0; i003 gains S1 too, and i004 loses some: i001, i004, i002, i000, i003
    found = policy_metrics.three(rows)
    assert [name for _, name in found] == ["i003", "i002", "i001"]
    assert found[0][0] == "largest fall in violations: 2 before, 0 after"
    assert found[2][0] == "largest rise in violations, or least fall: 0 before, 1 after"
    assert policy_metrics.three(rows.sample(frac=1, random_state=0)) == found
    # the judge, where there is no truth
    judged = pd.concat([answers("base", None, judged=base), answers("grpo", None, judged=after)])
    assert policy_metrics.three(judged) == found
    assert len(policy_metrics.three(rows[rows.instruction_id < "i002"])) == 2
