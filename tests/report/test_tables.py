"""Tables and figures: reported and run values apart, inputs marked, the same bytes twice."""

import hashlib
import json

import pandas as pd
import pytest
from helpers import benches, studies
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex

from promedical_studies import counting
from promedical_studies import policies as policy_study
from promedical_studies.policies import Policies
from promedical_utils.core import plotting
from promedical_utils.core.workspace import sha256
from promedical_utils.evaluation import bench
from promedical_utils.report import figures, tables
from promedical_utils.studies import results
from promedical_utils.studies.catalog import study_of

SETTINGS = benches.profile()
NAMES = tables.systems(SETTINGS)
OVERALL = {"metric": "overall", "slice": "all", "against": "adjudicated"}


@pytest.fixture(scope="module")
def run():
    made = benches.make()[0]
    return made, bench.tally(made, benches.noisy(made))


@pytest.fixture(scope="module")
def metrics(run):
    return run[1].table(30, 0)


def test_main_results_keep_reported_and_run_apart(metrics):
    reported = tables.reported("main_results")
    df = tables.build_main_results(reported, metrics, NAMES, ceiling=0.75).set_index("system")
    known, kit = df.loc[reported.model], df.drop(reported.model)
    assert (known.status == "not run").all() and known.filter(like="run_").isna().all(axis=None)
    assert kit.filter(like="reported_").isna().all(axis=None)
    assert (known.reported_overall_accuracy.to_numpy() == reported.overall_accuracy).all()
    row = kit.loc[NAMES["criterion"]]
    at = metrics[(metrics.scorer == "criterion") & (metrics.against == "adjudicated")]
    at = at.set_index(["metric", "slice"]).loc[("overall", "all")]
    ends = [row[f"run_overall_accuracy{end}"] for end in ("", "_low", "_high")]
    assert ends == [round(at[c] * 100, 2) for c in ("value", "low", "high")]
    assert kit.loc[NAMES["near_words"]].status == "not run"  # no predictions of it here
    scalar = kit.loc[NAMES["scalar_overall"]]
    assert scalar.status == "this run" and pd.isna(scalar.run_pointwise_safety)
    assert kit.iloc[-1].run_pairwise_all == 75 and pd.isna(kit.iloc[-1].run_overall_accuracy)


@pytest.mark.parametrize("base", ["small", "Qwen/Qwen3-0.6B"])
def test_no_kit_row_has_a_reported_systems_name(base):
    names = tables.systems(SETTINGS.model_copy(update={"base_model": base})).values()
    for table, column in (("main_results", "model"), ("policy", "policy")):
        assert not set(tables.reported(table)[column]) & set(names)
    assert all("kit" in name for name in names)


def test_nothing_ran_is_said_and_has_the_same_columns(metrics):
    built = {
        "main_results": tables.build_main_results,
        "safety_veto": tables.build_safety_veto,
    }
    for name, build in built.items():
        empty = build(tables.reported(name), metrics[:0], NAMES)
        assert (empty.status == "not run").all()
        assert list(empty) == list(build(tables.reported(name), metrics, NAMES))
    policy = tables.build_policy(tables.reported("policy"), None, 20, 0)
    assert (policy.status == "not run").all() and len(policy) == 5
    assert list(policy) == list(
        tables.build_policy(tables.reported("policy"), benches.evaluation(), 20, 0)
    )
    rows, cells = evaluated()
    alone = tables.build_policy_by(rows[rows.policy == "base"], cells, "specialty", 20, 0)
    by = tables.build_policy_by(rows, cells, "specialty", 20, 0)
    assert alone.empty and list(alone) == list(by)


def test_policy_rows_by_hand():
    rows = benches.evaluation()
    df = tables.build_policy(tables.reported("policy"), rows, 50, 0).set_index("system")
    base = df.loc["base policy (kit)"]
    assert base.run_violations == round(rows[rows.policy == "base"].violation.mean() * 100, 2)
    assert base.run_proficiency == 60 and base.run_excellence_met == 1
    assert base.run_violations_low < base.run_violations < base.run_violations_high
    assert df.loc["Qwen3-8B"].reported_healthbench == 46.27


def test_policy_without_a_readable_criterion_of_proficiency_has_violations_alone():
    rows = benches.evaluation()
    whole = tables.build_policy(tables.reported("policy"), rows, 50, 0).set_index("system")
    rows.loc[rows.policy == "base", "s1"] = float("nan")
    found = tables.build_policy(tables.reported("policy"), rows, 50, 0).set_index("system")
    base = "base policy (kit)"
    assert pd.isna(found.run_proficiency[base]) and not pd.isna(whole.run_proficiency[base])
    assert found.run_violations[base] == whole.run_violations[base]  # of all patients, none dropped


def evaluated(grpo="grpo", seeds=(None,)):
    """Base and policy on 12 patients, half of them safe before and all but one after."""
    rows, cells = [], []
    for policy, unsafe in (("base", 6), *((grpo, 1) for _ in seeds)):
        seed = None if policy == "base" else seeds[sum(r["policy"] == grpo for r in rows) // 12]
        for n in range(12):
            i, bad = f"i{n:02d}", n < unsafe
            rows.append(
                {
                    "policy": policy,
                    "seed": seed,
                    "instruction_id": i,
                    "condition": f"c{n % 6}",
                    "category": "k",
                    "specialty": f"a{n % 3}",
                    "s1": 0.5 + 0.25 * (policy != "base"),
                    "s2": 2,
                    "s3": int(bad),
                    "violation": bad,
                    "plain_violation": bad and n % 2,
                    "unparsed": False,
                    "tokens": 90,
                    "finished": True,
                }
            )
            said = {
                "proficiency": "met",
                "excellence": "unknown",
                "safety": "not_met" if bad else "met",
            }
            cells += [
                {
                    "policy": policy,
                    "seed": seed,
                    "instruction_id": i,
                    "criterion_id": d,
                    "judge": "truth",
                    "dimension": d,
                    "kind": d,
                    "weight": 1.0,
                    "verdict": v,
                }
                for d, v in said.items()
            ]
    return pd.DataFrame(rows), pd.DataFrame(cells)


VARIANTS = {
    "base": {"label": "base"},
    "full": {"label": "full", "group": "paper"},
    "no_veto": {"label": "no veto", "remark": "lambda = 0", "group": "paper", "veto": False},
    "rule": {"label": "length rule", "group": "rule", "veto": False},
}


def studied():
    rows = evaluated("full", (1, 2))[0]
    more = rows[rows.policy == "base"].assign(policy="no_veto", seed=1.0)
    rows = pd.concat([rows, more], ignore_index=True)
    return rows, studies.table(rows, VARIANTS, draws=30)


def test_policy_has_bench_score_compliance_and_the_paired_difference():
    rows = evaluated()[0]
    df = tables.build_policy(tables.reported("policy"), rows, 50, 0).set_index("system")
    base, grpo, less = (
        df.loc[name]
        for name in (
            "base policy (kit)",
            "GRPO with gated veto (kit)",
            "GRPO less base, paired (kit)",
        )
    )
    assert (base.run_compliance, grpo.run_compliance, less.run_compliance) == (50, 91.67, 41.67)
    assert base.run_bench_score == round(100 * 0.7 / 1.3 / 2, 2)
    assert grpo.run_bench_score == round(100 * 0.95 / 1.3 * 11 / 12, 2)
    assert (less.run_proficiency, less.run_proficiency_low, less.run_proficiency_high) == (
        25,
        25,
        25,
    )
    known = df.loc[tables.reported("policy").policy]
    assert known.filter(like="run_").isna().all(axis=None)
    assert known.reported_promedical_bench.tolist() == [69.5, 76.39]
    assert df.drop(known.index).filter(like="reported_").isna().all(axis=None)
    alone = tables.build_policy(tables.reported("policy"), rows[rows.policy == "base"], 50, 0)
    assert alone.status.tolist()[-3:] == ["this run", "not run", "not run"]


def test_policy_without_truth_is_by_the_judge_and_says_so():
    rows = evaluated()[0]
    none = dict.fromkeys(("s1", "s2", "s3", "violation", "unparsed"), float("nan"))
    seen = rows.assign(**{f"judged_{c}": rows[c] for c in ("s1", "s2", "s3")}, **none)
    df = tables.build_policy(tables.reported("policy"), seen, 50, 0).set_index("system")
    assert (
        df.labels.dropna().tolist() == ["judged"] * 3
        and df.run_compliance["base policy (kit)"] == 50
    )


def test_policy_by_dimension_and_specialty():
    rows, cells = evaluated()
    df = tables.build_policy_by(rows, cells, "dimension", 50, 0).set_index("dimension")
    assert df.index.tolist() == ["proficiency", "excellence", "safety"] and set(df.labels) == {
        "truth"
    }
    assert df.run_base.tolist() == [100, 0, 50] and df.run_grpo.tolist() == [100, 0, 91.67]
    assert df.run_difference.tolist() == [0, 0, 41.67] and df.n.tolist() == [12] * 3
    assert df.run_difference_low.safety < 41.67 < df.run_difference_high.safety
    df = tables.build_policy_by(rows, cells, "specialty", 50, 0)
    assert df.specialty.tolist() == ["a0", "a1", "a2"] * 2
    part = df[df.measure == "answers with a violation (%)"].set_index("specialty")
    assert part.run_base.tolist() == [50] * 3 and part.run_grpo.tolist() == [25, 0, 0]
    assert part.n.tolist() == [4] * 3 and part.run_difference.tolist() == [-25, -50, -50]
    assert not list(df.filter(like="reported_"))


def test_policy_study_keeps_the_papers_ablation_apart():
    reported = tables.reported("ablation")
    df = policy_study.printed(reported, studied()[1]).set_index("system")
    known, kit = df.iloc[: len(reported)], df.iloc[len(reported) :]
    assert known.filter(like="run_").isna().all(axis=None) and (known.status == "not run").all()
    assert known.reported_overall.tolist()[0] == 76.39 and set(known.remark) == {tables.MIXED}
    assert kit.filter(like="reported_").isna().all(axis=None) and not set(known.index) & set(
        kit.index
    )
    full = kit.loc["full (kit)"]
    assert (full.run_violations, full.seeds, full.run_violations_less_base) == (8.33, 2, -41.67)
    assert full.run_violations_over_base == 0.17 and pd.isna(full.run_violations_less_full)
    assert kit.run_violations_less_full["no veto (kit)"] == 41.67
    assert kit.loc["length rule (kit)", ["status", "seeds"]].tolist() == ["not run", 0]


def test_what_the_configuration_sets_is_an_input(run):
    df = tables.build_bench_composition(
        tables.reported("bench_composition"),
        tables.reported("pipeline_counts"),
        run[0].report,
        SETTINGS,
    ).set_index("quantity")
    assert df.loc["safety", ["reported", "run", "status"]].tolist() == [230, "9", "this run"]
    assert df.loc["total", "run"] == "50"
    assert df.loc["bench weighted kappa", ["reported", "mark", "status"]].tolist() == [
        "0.88",
        "N",
        "input",
    ]
    assert not {"judge agreement with experts percent", "rubric strict pass rate percent"} & set(
        df.index
    )
    for name in df.index:
        if "kappa" in name or "agreement" in name or "pass rate" in name:
            assert df.loc[name, "status"] == "input"


PIPELINE = tables.reported("pipeline_counts")


def curated():
    """funnel, rounds, expansion and judge errors of a run, small enough to count by hand."""
    funnel = pd.DataFrame(
        {
            "step": ["licence", "medical"],
            "before": [200, 150],
            "dropped": [50, 20],
            "queued": [0, 10],
            "after": [150, 120],
        }
    )
    rounds = pd.DataFrame({"round": [1, 2], "blind_n": [40, 50], "blind_passed": [30, 48]})
    expansion = pd.DataFrame(
        {
            "dimension": ["safety", "proficiency", "safety"],
            "verdicts": [9, 6, 3],
            "comparisons": [9, 6, 3],
            "pairs": [4, 2, 1],
        }
    )
    errors = pd.DataFrame({"n": [60, 140], "rate": [0.1, 0.05]})
    return funnel, rounds, expansion, errors


def test_data_pipeline_by_hand():
    df = tables.build_data_pipeline(PIPELINE, *curated(), SETTINGS).set_index("quantity")
    cells = {name: row.tolist() for name, row in df.iterrows()}
    assert cells["raw samples"] == ["823703", "N", "200", "", "", "input"]
    assert cells["kept instructions"] == ["51990", "n", "120", "", "", "this run"]
    assert cells["kept percent of raw"][:3] == [f"{5199000 / 823703:.2f}", "D", "60.00"]
    assert (
        cells["dropped or queued: medical"][2] == "30"
        and cells["review batch per round"][5] == "input"
    )
    assert cells["rubric strict pass rate percent"][:3] == [
        "96.4",
        "N",
        "96.00",
    ]  # the last round's
    low, high = map(float, cells["rubric strict pass rate percent"][3:5])
    assert 80 < low < 96 < high < 100 and cells["rubric strict pass rate percent"][5] == "input"
    assert cells["judge agreement with experts percent"][2] == f"{100 * (200 - 13) / 200:.2f}"
    assert cells["criterion pairs"][2] == "7" and cells["criterion pairs, safety"][2] == "5"
    assert cells["physicians"][:3] == ["10", "n", "3"]
    assert not {"headline overall accuracy gain", "categories"} & set(
        df.index
    )  # a claim's, the bench's
    nothing = tables.build_data_pipeline(PIPELINE, *[None] * 4, SETTINGS).set_index("quantity")
    assert nothing.status["raw samples"] == "not run" and nothing.run["raw samples"] == ""
    real = tables.build_data_pipeline(
        PIPELINE, *curated(), SETTINGS.model_copy(update={"data": "open"})
    )
    real = real.set_index("quantity").status  # nobody set how real raters err
    assert (
        real["raw samples"] == "this run" and real["rubric strict pass rate percent"] == "this run"
    )
    assert real["physicians"] == "not run"


def test_ablation_stands_each_reported_row_before_the_kits_own(tmp_path, monkeypatch):
    rows, table = studied()
    studies.write(tmp_path / "policies", rows, draws=30)
    monkeypatch.setattr(policy_study, "VARIANTS", VARIANTS)
    folder = tmp_path / "policies"
    policies = results.of_ablation(folder, Policies({}).named(folder))
    cells = [
        (model, seed, metric, part, against, "value", "", value, value - 0.01, value + 0.01, 50)
        for model in ("criterion", "scalar_blind")
        for against, value in (("adjudicated", 0.75), ("truth", 0.99))
        for metric, part in tables.OF_REWARD.values()
        if not (model == "scalar_blind" and metric == "veto_f1_paper")
        for seed in ("1", "2", "3", "mean")
    ]
    folder = tmp_path / "reward_models"
    folder.mkdir()
    counting.write(folder, pd.DataFrame(cells, columns=counting.COLUMNS))
    named = pd.DataFrame({"label": "criterion RM", "remark": ""}, index=["criterion"])
    rewards = results.of_ablation(folder, named)
    assert set(rewards.seeds) == {3}
    reported = tables.reported("ablation")
    df = tables.build_ablation(reported, pd.concat([rewards, policies]))
    assert df.ablation.drop_duplicates().tolist() == [*reported.variant, tables.REST]
    assert not df.duplicated(["ablation", "system", "study"]).any()
    full = df[df.ablation == "full"].reset_index(drop=True)
    assert full.system.tolist() == ["full", "criterion RM (kit)", "full (kit)"]
    assert full.status.tolist() == ["not run", "study", "study"]
    assert (
        full.study.tolist() == ["", "reward_models", "policies"] and full.remark[0] == tables.MIXED
    )
    assert full.reported_overall.tolist()[0] == 76.39 and full.reported_overall[1:].isna().all()
    assert full.run_pairwise.tolist()[1:2] == [75] and pd.isna(full.run_pairwise[2])
    assert (full.run_violations[2], full.seeds[2], full.labels[2]) == (8.33, 2, "truth")
    blind = df.set_index("system").loc["scalar_blind (kit)"]  # no label is known: its name
    assert (
        pd.isna(blind.run_veto_f1)
        and blind.run_pairwise_low == 74
        and blind.labels == "adjudicated"
    )
    missing = df[df.system == "no_bonus (kit)"].iloc[0]
    assert (
        missing.status == "not run"
        and pd.isna(missing.run_violations)
        and missing.study == "policies"
    )
    own = df.filter(like="run_").notna().any(axis=1)
    assert not (own & df.filter(like="reported_").notna().any(axis=1)).any()
    nothing = tables.build_ablation(reported, pd.DataFrame())
    assert (
        (nothing.status == "not run").all()
        and list(nothing) == list(df)
        and len(nothing) == len(df)
    )


def test_ablation_names_variants_that_studies_have():
    from promedical_utils.reward_model import variants

    for own in tables.ABLATION.values():
        for study, variant in own:
            known = study_of(study).shows["labels"]
            assert variant in known, variant
    assert set(variants.RECIPES) > {v for s, v in tables.ABLATION["full"] if s == "reward_models"}


def test_medical_rewardbench_recomputes_the_mean_in_a_column_of_its_own():
    reported = tables.reported("ultramedical_rewardbench")
    df = tables.build_medical_rewardbench(reported, None, NAMES, 30, 0).set_index("system")
    row = df.loc["UltraMedRM-8B"]
    assert (
        row.recomputed_macro_mean
        == round((94.12 + 73.47 + 77.3 + 77.22) / 4, 2)
        == row.reported_average
    )
    by_pairs = (94.12 * 238 + 73.47 * 196 + 77.22 * 180 + 77.3 * 163) / 777
    assert row.recomputed_mean_by_pairs == round(by_pairs, 2)
    kit = df.drop(reported.reward_model)
    assert (kit.status == "not run").all() and kit.filter(
        regex="run_|reported|recomputed"
    ).isna().all(axis=None)
    assert len(kit) == 5 and {NAMES["criterion"], NAMES["orbit"]} < set(kit.index)
    df = tables.build_medical_rewardbench(reported, outside(), NAMES, 30, 0).set_index("system")
    row = df.loc[f"{NAMES['criterion']}, Q"]
    assert [row[f"run_{s}"] for s in tables.SUBSETS] == [
        100,
        50,
        50,
        0,
    ] and row.run_macro_mean == 50
    assert pd.isna(row.run_macro_mean_low) and row.status == "this run"  # two of each subset
    half = df.loc[f"{NAMES['scalar_overall']}, Q"]  # one subset alone: no mean
    assert half.run_easy == 100 and pd.isna(half.run_hard) and pd.isna(half.run_macro_mean)
    assert df.loc[reported.reward_model].filter(like="run_").isna().all(axis=None)


def outside():
    """external/predictions.parquet: a pair an instruction, of two sets, right or not by hand."""
    rows = []
    rights = {"easy": (1, 1), "hard": (1, 0), "length": (0, 1), "human": (0, 0)}
    for subset, said in rights.items():
        rows += [
            (
                "medical_rewardbench",
                "criterion",
                "q",
                False,
                subset,
                f"{subset}{n}",
                f"{subset}{n}",
                r,
            )
            for n, r in enumerate(said)
        ]
    rows += [
        ("medical_rewardbench", "scalar_overall", "q", False, "easy", f"easy{n}", f"easy{n}", 1)
        for n in range(2)
    ]
    for text, right in (("q", (1, 0, 0, 0)), ("q_criteria", (1, 1, 1, 0))):
        rows += [
            ("clinic", "criterion", text, r, "", f"x{n}", f"c{n % 2}", hit)
            for r in (False, True)
            for n, hit in enumerate(right)
        ]
    frame = pd.DataFrame(
        rows,
        columns=[
            "set",
            "system",
            "text",
            "retrieval",
            "subset",
            "instruction_id",
            "condition",
            "right",
        ],
    )
    frame = frame.assign(
        a_id="a", b_id="b", label=1, prefers=frame.right * 2.0 - 1, score_a=0.0, score_b=0.0
    )
    return frame.drop(columns="right")


OUTSIDE_REPORT = {
    "sets": {
        "clinic": {"status": "run", "reason": ""},
        "mediqa": {"status": "not run", "reason": "no words of it"},
        "medquad": {"status": "not run", "reason": "no words of it"},
        "medical_rewardbench": {"status": "run", "reason": ""},
    },
    "systems_not_run": {"rar_implicit": "not trained"},
}


def test_external_has_a_row_a_set_and_system_and_says_what_did_not_run():
    found = pd.DataFrame(
        [
            ("clinic", "criterion", t, r, v, v - 0.1, v + 0.1, 40, 0)
            for r in (False, True)
            for t, v in (("q", 0.5), ("q_sub", 0.75))
        ],
        columns=["set", "system", "text", "retrieval", "value", "low", "high", "n", "ties"],
    )
    found = pd.concat([found, found.iloc[:1].assign(set="mediqa", value=0.9, n=7)])
    report = {
        **OUTSIDE_REPORT,
        "sets": OUTSIDE_REPORT["sets"]
        | {
            "mediqa": {"status": "run", "reason": ""},
            "medical_rewardbench": {"status": "not run", "reason": "not reached"},
        },
    }
    reported = tables.reported("external")
    df = tables.build_external(reported, found, report, NAMES)
    assert not df.duplicated(["set", "system"]).any()
    head, own = df.iloc[: len(reported)], df.iloc[len(reported) :].set_index(["set", "system"])
    assert head.reported_q_sub.tolist()[-1] == 84.28 and set(head["set"]) == {"as reported"}
    assert head.filter(like="run_").isna().all(axis=None) and own.filter(
        like="reported_"
    ).isna().all(axis=None)
    clinic = own.loc["external clinic (invented)"]
    row = clinic.loc[f"{NAMES['criterion']}, with retrieval"]
    assert (row.run_q, row.run_q_sub, row.run_q_sub_low, row.beside) == (
        50,
        75,
        65,
        "ProMedical-RAG",
    )
    assert pd.isna(row.run_q_criteria) and row.pairs == 40
    implicit = clinic.loc["RaR implicit, a reward model (kit)"]
    assert (implicit.status, implicit.remark) == ("not run", "not trained")
    mediqa = own.loc["MEDIQA-2019"].loc[NAMES["criterion"]]
    assert (mediqa.run_q, mediqa.pairs) == (90, 7) and pd.isna(
        mediqa.run_q_sub
    )  # no criteria there
    rest = own[own.index.get_level_values("system") == "every system (kit)"]
    assert rest.index.get_level_values("set").tolist() == ["MedQuAD, judged", "Medical RewardBench"]
    assert (rest.status == "not run").all() and rest.remark.iloc[-1] == "not reached"
    nothing = tables.build_external(reported, None, None, NAMES)
    assert (nothing.status == "not run").all() and list(nothing) == list(df)
    axes = figures.plot_external(df).axes
    assert [axis.get_title(loc="left") for axis in axes] == [
        "as reported",
        "external clinic (invented), 40 pairs",
        "MEDIQA-2019, 7 pairs",
    ]
    assert "%" in axes[-1].get_xlabel() and figures.plot_external(nothing).axes


def test_rar_did_not_run():
    df = tables.build_rar(tables.reported("rar"))
    assert (
        (df.status == "not run").all()
        and len(df) == 9
        and df.filter(like="run_").isna().all(axis=None)
    )
    assert set(df.system[df.reported_healthbench.isna()]) == {
        "RaR, explicit (kit)",
        "RaR, implicit (kit)",
    }


def test_policy_says_why_there_is_no_healthbench():
    rows = evaluated()[0]
    untested = {"status": "not testable", "rows": {}}
    df = tables.build_policy(tables.reported("policy"), rows, 20, 0, untested).set_index("system")
    assert df.healthbench.dropna().tolist() == ["not testable in this profile"] * 3
    assert df.run_healthbench.isna().all() and df.reported_healthbench.notna().tolist()[:2] == [
        True,
        True,
    ]
    ends = {"value": 12.5, "low": 10.0, "high": 15.0}
    ran = {"status": "this run", "rows": {"base": ends}}
    df = tables.build_policy(tables.reported("policy"), rows, 20, 0, ran).set_index("system")
    assert (
        df.run_healthbench["base policy (kit)"] == 12.5
        and df.run_healthbench_high["base policy (kit)"] == 15
    )
    assert df.healthbench["base policy (kit)"] == "this run"
    assert df.healthbench["GRPO with gated veto (kit)"] == "not run"


def test_by_source_has_intervals_in_order():
    parts = pd.DataFrame(
        [
            {
                "scorer": "criterion",
                "category": "kqa",
                "labels": "physicians",
                "ceiling": 0.75,
                "slice": s,
                "value": v,
                "low": v - 0.1,
                "high": v + 0.1,
                "n": 7,
            }
            for s, v in (("all", 0.5), ("shorter", 0.25), ("within", 0.6))
        ]
    )
    df = tables.build_by_source(parts, NAMES)
    assert list(df)[:6] == [
        "source",
        "labels",
        "system",
        "run_pairwise_all",
        "run_pairwise_all_low",
        "run_pairwise_all_high",
    ]
    blind, row = df.iloc[0], df.iloc[1]
    assert (row.run_pairwise_all, row.run_pairwise_shorter_low, row.n_shorter) == (50, 15, 7)
    assert row.run_within_answers == 60 and row.labels == blind.labels == "physicians"
    assert (blind.system, blind.run_pairwise_all) == (tables.BLIND, 75)


def test_calibration_error_by_hand():
    rows = pd.DataFrame(
        {
            "scorer": "criterion",
            "dimension": "safety",
            "where": "bench, kinds seen",
            "raw": 0.5,
            "probability": [0.2] * 5 + [0.8] * 5,
            "label": [0, 0, 0, 0, 1] + [1] * 5,
        }
    )
    df = tables.build_calibration(rows, NAMES)
    assert df.system.tolist() == [NAMES["criterion"]] and df.n.tolist() == [10]
    # ten bins of one row each: four of 0.2 off, one of 0.8 off, five of 0.2 off
    assert df.run_error_after.tolist() == [round(100 * (9 * 0.2 + 0.8) / 10, 2)]
    assert df.run_error_before.tolist() == [50]


def test_saved_tables_are_the_same_bytes_and_lead_back(metrics, tmp_path):
    source = tmp_path / "metrics.parquet"
    metrics.to_parquet(source)
    df = tables.build_safety_veto(tables.reported("safety_veto"), metrics, NAMES)
    digests = []
    for folder in ("one", "two"):
        path = tables.save(df, tmp_path / folder, "veto", "Veto", {"metrics": source}, SETTINGS)
        files = sorted(path.parent.iterdir())
        assert [p.suffix for p in files] == [".csv", ".json", ".md", ".tex"]
        digests.append([hashlib.sha256(p.read_bytes()).hexdigest() for p in files])
    assert digests[0] == digests[1]
    facts = json.loads((tmp_path / "one" / "veto.json").read_text())
    assert facts["sources"] == {"metrics": sha256(source)} and facts["seed"] == SETTINGS.seed
    everything = "".join(
        (tmp_path / "one" / f"veto.{e}").read_text() for e in ("csv", "md", "tex", "json")
    )
    assert str(tmp_path) not in everything and "invented clinic" in everything
    back = pd.read_csv(path)
    assert back.run_f1.dropna().tolist() == df.run_f1.dropna().tolist()
    row = next(
        line for line in (tmp_path / "one" / "veto.md").read_text().splitlines() if "LoRA" in line
    )
    assert " to " in row and "nan" not in everything.lower()


def test_smoke_numbers_say_that_they_are_none():
    smoke = SETTINGS.model_copy(update={"name": "smoke"})
    assert "no results" in tables.note(smoke) and "no results" not in tables.note(SETTINGS)


def curve(truth=True):
    names = [
        "proxy",
        "gold",
        "judged",
        "violation_rate",
        "judged_violation_rate",
        "proficiency",
        "excellence",
        "veto_rate",
        "kl",
        "entropy",
        "length",
        "unparsed",
    ]
    rows = [(s, "checkpoint", *[0.001 * s] * len(names)) for s in (0, 5, 10)]
    frame = pd.DataFrame(rows, columns=["step", "split", *names])
    true = ("gold", "violation_rate", "proficiency", "excellence", "unparsed")
    return frame if truth else frame.assign(**dict.fromkeys(true, float("nan")))


def lines(axis):
    """Label in the legend -> (x, y) of the line of that colour."""
    drawn = {line.get_color(): line.get_data() for line in axis.lines if len(line.get_xdata()) > 2}
    handles = axis.get_legend().legend_handles
    return {handle.get_label(): drawn[handle.get_color()] for handle in handles}


def dots(axis):
    """The points of an interval plot: x, y (the row, from 0), colour, hollow, sides of the marker,
    and low and high of the interval at that height and of that colour."""
    ends = {}
    for ranges in (c for c in axis.collections if isinstance(c, LineCollection)):
        for path, colour in zip(ranges.get_segments(), ranges.get_colors(), strict=True):
            ends[round(path[0][1], 6), to_hex(colour)] = tuple(path[:, 0])
    rows = []
    for points in (c for c in axis.collections if isinstance(c, PathCollection)):
        looks = zip(points.get_edgecolors(), points.get_facecolors(), points.get_paths())
        for (x, y), (edge, face, path) in zip(points.get_offsets(), looks, strict=True):
            low, high = ends.get((round(y, 6), to_hex(edge)), (float("nan"),) * 2)
            rows.append((x, y, to_hex(edge).upper(), face[3] == 0, len(path.vertices), low, high))
    return pd.DataFrame(rows, columns=["x", "y", "colour", "hollow", "marker", "low", "high"])


def test_policy_curve_skips_what_has_no_value_and_marks_what_is_kept():
    whole = curve().assign(judged=[0.0, 2.0, 1.0])
    axes = figures.plot_policy_curve(whole).axes
    assert len(axes) == 6
    assert list(lines(axes[0])) == ["proxy", "gold", "judged"]
    answers = lines(axes[1])
    assert list(answers) == ["violation", "violation, judged", "vetoed", "unknown verdict"]
    assert list(answers["vetoed"][1]) == pytest.approx([0, 0.5, 1])  # percent
    for axis in axes:
        assert list(axis.lines[-1].get_xdata()) == [5, 5]
        if legend := axis.get_legend():  # above the axes, so that it covers no line
            assert legend.get_bbox_to_anchor().y0 >= axis.bbox.y1
    without = figures.plot_policy_curve(curve(truth=False)).axes
    assert len(without) == 5 and list(lines(without[0])) == ["proxy", "judged"]
    assert list(lines(without[1])) == ["violation, judged", "vetoed"]
    old = curve().drop(columns=["veto_rate", "judged_violation_rate"])
    assert len(figures.plot_policy_curve(old).axes) == 6


def test_gold_over_kl():
    hacked = curve().assign(run="hacked", judged=[3, 1, 2], kl=[0, 4, 16])
    df = pd.concat([curve().assign(run="full"), hacked])
    first, second = figures.plot_gold_over_kl(df).axes
    assert (first.get_title(), second.get_title()) == ("full", "hacked")
    assert first.get_ylim() == second.get_ylim() and "nats an answer" in first.get_xlabel()
    assert [t.get_text() for t in second.texts] == ["0", "5", "10"]  # the steps
    proxy, gold, judged = (line.get_data() for line in second.lines[:3])
    assert list(gold[0]) == [0, 4, 16] and list(gold[1]) == pytest.approx([0, 0.005, 0.01])
    place = second.transScale.transform([(0, 0), (4, 0), (16, 0)])[:, 0]
    assert list(place) == pytest.approx([0, 2, 4])  # square roots
    assert [float(line.get_xdata()[0]) for line in second.lines[3:]] == [
        0,
        0,
        0,
    ]  # the kept, step 0
    single = figures.plot_gold_over_kl(curve(truth=False)).axes
    assert len(single) == 1 and len(single[0].lines) == 2 * 2  # proxy, judged, and a ring on each
    assert figures.plot_gold_over_kl(curve().assign(kl=0.0)).axes  # of a run that has not moved


def test_policy_by_and_study_are_drawn_from_their_csv(tmp_path):
    rows, cells = evaluated()
    for by in ("dimension", "specialty"):
        df = tables.build_policy_by(rows, cells, by, 30, 0)
        csv = plotting.save(figures.plot_policy_by, df, tmp_path, by, "a note")
        assert csv.with_suffix(".png").stat().st_size > 5000
        axes = figures.plot_policy_by(pd.read_csv(csv)).axes
        assert len(axes) == 2 * df.measure.nunique()
        values, less = axes[:2]
        part = df[df.measure == df.measure[0]]
        assert [t.get_text() for t in values.get_yticklabels()] == part[by].tolist()
        shown = dots(values)
        for column, colour in (("base", plotting.ORANGE), ("grpo", plotting.BLUE)):
            own = shown[shown.colour == colour]
            assert own.x.tolist() == pytest.approx(part[f"run_{column}"].tolist())
            assert own.y.round().tolist() == list(range(len(part)))
        assert "points" in less.get_xlabel() and "%" in values.get_xlabel()
        drawn = dots(less)
        for column, end in (("x", ""), ("low", "_low"), ("high", "_high")):
            values = part[f"run_difference{end}"].tolist()  # of two conditions no interval
            assert drawn[column].tolist() == pytest.approx(values, nan_ok=True)


def test_study_figure_has_seeds_as_points_and_no_veto_as_another_marker(tmp_path):
    table = studied()[1]
    csv = plotting.save(policy_study.plot_policy_study, table, tmp_path, "study", "a note")
    first = csv.with_suffix(".png").read_bytes()
    plotting.draw(policy_study.plot_policy_study, csv, "a note")
    assert first == csv.with_suffix(".png").read_bytes() and len(first) > 5000
    axis = policy_study.plot_policy_study(pd.read_csv(csv)).axes[0]
    names = [t.get_text() for t in axis.get_yticklabels()]
    assert names == ["full", "no veto", "length rule (not run)"]
    shown = dots(axis)
    plain, filled = shown[shown.hollow], shown[~shown.hollow]
    assert plain.x.tolist() == [0, 25]
    assert filled.x.tolist() == pytest.approx([table.violations[1], 50])
    assert filled.y.tolist() == [0, 1]  # a row each, none for what did not run
    assert filled.colour.tolist() == [plotting.BLUE, plotting.RED]
    assert filled.marker.iloc[0] != filled.marker.iloc[1]
    [seeds] = [line for line in axis.lines if line.get_marker() == "."]
    assert list(seeds.get_xdata()) == pytest.approx([8.33333] * 2)  # of the variant with two
    assert 0 < seeds.get_ydata()[0] < 0.5 and seeds.get_color() == plotting.BLUE  # below its row
    assert [list(n.get_xdata()) for n in axis.lines if n.get_linestyle() == "--"] == [
        [50, 50]
    ]  # the base


def test_figures_are_drawn_from_the_csv_and_byte_equal(run, metrics, tmp_path):
    main = tables.build_main_results(tables.reported("main_results"), metrics, NAMES, 0.7)
    plots = {
        figures.plot_main_results: main,
        figures.plot_safety_veto: tables.build_safety_veto(
            tables.reported("safety_veto"), metrics, NAMES
        ),
        figures.plot_seen_unseen: tables.build_seen_unseen(metrics, NAMES),
        figures.plot_policy_curve: curve(),
        figures.plot_gold_over_kl: curve(),
    }
    for plot, df in plots.items():
        if plot in (figures.plot_seen_unseen, figures.plot_policy_curve, figures.plot_gold_over_kl):
            csv = plotting.save(plot, df, tmp_path, "drawn", "a note")
            first = [csv.with_suffix(e).read_bytes() for e in (".png", ".pdf")]
            assert len(first[0]) > 5000 and b"CreationDate" not in first[1]
            plotting.draw(plot, csv, "a note")
            assert first == [csv.with_suffix(e).read_bytes() for e in (".png", ".pdf")]
        for axis in plot(df).axes:
            assert axis.get_xlabel() or axis.get_ylabel() or axis.get_subplotspec().is_first_row()
            if "run_overall_accuracy" not in df and "step" not in df:
                assert "%" in axis.get_xlabel()


def test_dimensions_leave_out_what_has_no_value(metrics):
    df = tables.build_main_results(tables.reported("main_results"), metrics, NAMES)
    axes = figures.plot_dimensions(df).axes
    assert len(axes) == 6
    names = [[t.get_text() for t in axis.get_yticklabels()] for axis in (axes[0], axes[3])]
    assert (
        NAMES["scalar_blind"] in names[0] and NAMES["scalar_blind"] not in names[1]
    )  # no verdicts of it
    assert "Meditron-70B" not in names[0] + names[1] and NAMES["near_words"] not in names[0]
    row = df.set_index("system").loc[NAMES["criterion"]]
    for axis, column in zip(
        axes, ("pairwise_proficiency", "pairwise_excellence", "pairwise_safety"), strict=False
    ):
        shown = dots(axis)
        at = shown[shown.x == row[f"run_{column}"]].iloc[0]
        assert not at.hollow and names[0][int(at.y)] == NAMES["criterion"]
        assert [at.low, at.high] == [row[f"run_{column}_low"], row[f"run_{column}_high"]]
        assert "%" in axis.get_xlabel()


def test_overview_has_arrows_between_boxes_and_never_through_one():
    df = pd.DataFrame(
        [
            ("a", 0, 0, "A", "1 row", "9", ""),
            ("b", 0, 1, "B", "2", "", "a"),
            ("c", 1, 1, "C", "3", "", "b"),
            ("d", 1, 0, "D", "4", "", "c"),
        ],
        columns=["box", "row", "column", "title", "run", "reported", "after"],
    )
    axis = figures.plot_overview(df).axes[0]
    texts = [t.get_text() for t in axis.texts]
    assert (
        "reported: 9" in texts
        and "1 row" in texts
        and sum(t.startswith("reported") for t in texts) == 1
    )
    boxes = [patch.get_bbox() for patch in axis.patches if hasattr(patch, "get_boxstyle")]
    arrows = [t for t in axis.texts if t.get_text() == "" and hasattr(t, "arrow_patch")]
    assert len(boxes) == 4 and len(arrows) == 3
    for arrow in arrows:
        (x0, y0), (x1, y1) = arrow.xyann, arrow.xy
        middle = (x0 + x1) / 2, (y0 + y1) / 2
        assert not any(b.x0 < middle[0] < b.x1 and b.y0 < middle[1] < b.y1 for b in boxes)
    (x0, _), (x1, _) = arrows[2].xyann, arrows[2].xy
    assert x1 < x0  # from right to left in the second row


def test_calibration_figure_shows_each_curve_with_its_error():
    rows = [
        (d, w, v, p, p + 0.1, p, p + 0.2, 9, 12.5)
        for d in ("proficiency", "safety")
        for w, v in (("bench, kinds seen", "P(met)"), ("bench, kinds unseen", "P(met)"))
        for p in (0.2, 0.6)
    ]
    df = pd.DataFrame(
        rows,
        columns=[
            "dimension",
            "where",
            "version",
            "probability",
            "met",
            "low",
            "high",
            "n",
            "error",
        ],
    )
    axes = figures.plot_calibration(df).axes
    assert [axis.get_title() for axis in axes] == ["proficiency", "safety"]
    for axis in axes:
        assert [t.get_text() for t in axis.texts].count("12.5") == 2
        points = [line for line in axis.lines if line.get_marker() in ("o", "s")]
        assert [list(line.get_ydata()) for line in points] == [pytest.approx([30, 70])] * 2
        assert "%" in axis.get_xlabel()


def test_reported_markers_are_hollow_and_run_markers_filled(metrics):
    df = tables.build_main_results(tables.reported("main_results"), metrics, NAMES)
    shown = dots(figures.plot_main_results(df).axes[0])
    counts = shown.hollow.sum(), (~shown.hollow).sum()
    assert counts == (9, 5)  # of nine reported systems, and of the five scorers that ran
    assert shown.low.isna().tolist() == shown.hollow.tolist()  # reported without intervals


def test_figures_of_a_run_without_results_are_still_drawn(metrics):
    main = tables.build_main_results(tables.reported("main_results"), metrics[:0], NAMES)
    assert figures.plot_main_results(main).axes
