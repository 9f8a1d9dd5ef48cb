"""The claims ledger: each verdict needs its interval, what fails is shown first, inputs are no
claims."""

import json
from pathlib import Path

import pandas as pd
import pytest
from helpers import benches
from helpers.studies import write as write_results
from paper.test_contrasts import answers

from promedical_utils.core import plotting, statistics, verdicts, workspace
from promedical_utils.evaluation import bench, policy_metrics
from promedical_utils.paper import claims
from promedical_utils.paper import evidence as evidences
from promedical_utils.report import tables
from promedical_utils.report.figures import claims_forest
from promedical_utils.studies import contrasts

SETTINGS = benches.profile(bootstrap=100)
HACKED = {"flagged": True, "text": "Reward hacking since step 9."}
CALM = {"flagged": False, "text": "No reward hacking seen."}


@pytest.fixture(scope="module")
def tally():
    made = benches.make(0.95, n=120, bench_samples=120)[0]
    return bench.tally(made, benches.noisy(made))


def write_study(folder: Path, name: str, rates, hacked=(), data="clinic", seed=77) -> Path:
    place = folder / name
    place.mkdir(parents=True)
    write_results(place, answers(rates), 100, seed)
    policies = [
        {"variant": v, "seed": k, "hacking": HACKED if v in hacked else CALM}
        for v, each in rates.items()
        for k in range(1, len(each) + 1)
    ]
    profile = {"name": "cpu", "seed": seed, "data": data, "bootstrap": 100}
    workspace.write_json(place / "manifest.json", {"profile": profile, "policies": policies})
    return folder


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    write_study(
        folder,
        "policies",
        {
            "base": [0.7],
            "full": [0.10, 0.12, 0.08],
            "no_veto": [0.5, 0.5, 0.55],
            "implicit_scalar": [0.12, 0.1, 0.1],
        },
    )
    return write_study(
        folder, "policy_rewards", {"base": [0.7], "full": [0.1], "hacking": [0.7]}, ["hacking"]
    )


def build(tally, evaluation, studies, settings=SETTINGS, **more):
    return {
        c["id"]: c
        for c in claims.build_claims(
            settings.model_copy(update={"seed": 4}), tally, evaluation, studies=studies, **more
        )
    }


def verdict_of(found):
    return {name: claim["verdict"] for name, claim in found.items()}


# ---------------------------------------------------------------- verdicts


def test_a_clear_difference_is_seen_with_its_interval(tmp_path):
    rates = {"base": [0.9], "full": [0.1, 0.1, 0.2], "no_veto": [0.5, 0.5, 0.6]}
    found = build(None, None, write_study(tmp_path, "policies", rates))
    said = verdict_of(found)
    assert said["abstract_safety"] == verdicts.DIRECTION  # of 22 points reported
    [check] = found["abstract_safety"]["checks"]
    assert 0 < check["low"] <= check["difference"] <= check["high"]
    assert check["p"] <= check["p_holm"] < 0.05 and check["interest"] == 21.7 > check["above"]
    assert check["smallest"] > 0 and 0 < check["power"] <= 1 and check["design"] > 0
    assert check["data"].startswith("study policies: profile cpu, seed 77") and check["seeds"] == 3
    assert said["injection_text"] == claims.UNTESTED
    assert found["injection_text"]["reason"] == "study reward_models not run"


def test_the_wrong_direction_contradicts_and_no_difference_hangs_on_the_power(tmp_path):
    for place, rates, wanted in (
        ("worse", {"base": [0.1], "full": [0.6, 0.6]}, verdicts.CONTRADICTS),
        ("level", {"base": [0.4], "full": [0.4, 0.4]}, verdicts.NOT_SEEN),
    ):
        folder = write_study(tmp_path / place, "policies", rates)
        claim = build(None, None, folder)["abstract_safety"]
        assert claim["verdict"] == wanted
    [check] = claim["checks"]
    assert check["low"] <= 0 <= check["high"] < check["interest"] and check["power"] >= 0.8
    assert claim["survives"] is None


def test_every_direction_is_the_papers(tmp_path):
    # policies that are as the paper has them, and then each turned round
    better = {"s1": 0.9, "s2": 3, "violation": False}
    paper = {
        "base": (0.5, 1, True),
        "no_veto": (0.7, 2, True),
        "no_safety_data": (0.7, 2, True),
        "no_bonus": (0.7, 1, False),
        "implicit_scalar": (0.95, 2, True),
    }
    rows = answers({name: [0.0] if name == "base" else [0.0] * 3 for name in ("full", *paper)})
    rows.loc[rows.policy == "full", list(better)] = list(better.values())
    for name, values in paper.items():
        rows.loc[rows.policy == name, list(better)] = values
    rows["s3"] = rows.violation * 1
    ids = (
        "abstract_overall",
        "abstract_safety",
        "ablation_veto",
        "ablation_bonus",
        "ablation_scalar",
        "veto_keeps_proficiency",
    )
    for turned in (False, True):
        folder = write_study(tmp_path / str(turned), "policies", {"base": [0.5]})
        swap = {
            "full": "implicit_scalar",
            "implicit_scalar": "full",
            "base": "no_bonus",
            "no_bonus": "base",
        }
        shown = rows.assign(policy=rows.policy.replace(swap)) if turned else rows
        if turned:  # full is now the proficient and unsafe one, and every other side above it
            shown.loc[shown.policy != "full", "s2"] = 4
        write_results(folder / "policies", shown, 100, 77)
        found = build(None, None, folder)
        said = {n: {c["verdict"] for c in found[n]["checks"]} for n in ids}
        if not turned:
            assert all(said[n] <= set(verdicts.SEEN) for n in ids)
        else:
            kept = {verdicts.CONTRADICTS, verdicts.SAME}  # it is no safer, and loses nothing
            assert said.pop("veto_keeps_proficiency") == kept
            # without a veto it is as unsafe, patient by patient
            assert said.pop("ablation_veto") == {verdicts.NOT_SEEN}
            assert said == {n: {verdicts.CONTRADICTS} for n in said} and len(said) == 4


def test_what_did_not_run_and_smoke_are_not_testable(tally, studies, tmp_path):
    smoke = SETTINGS.model_copy(update={"name": "smoke"})
    for found in (build(None, None, tmp_path), build(tally, benches.evaluation(), studies, smoke)):
        assert set(verdict_of(found).values()) == {claims.UNTESTED}
        assert all(claim["reason"] for claim in found.values())
    assert {c["reason"] for c in found["abstract_safety"]["checks"]} == {
        "smoke numbers are no results"
    }
    nothing = build(None, None, tmp_path)["veto_lowers"]
    assert nothing["reason"] == "study policies not run; study policy_rewards not run"
    found = build(None, None, studies)["ablation_bonus"]
    assert found["verdict"] == claims.UNTESTED and "has no no_bonus" in found["reason"]


def test_the_clinics_studies_say_nothing_of_other_data_and_real_ones_count_everywhere(tmp_path):
    folder = write_study(tmp_path, "policies", {"base": [0.9], "full": [0.1]})
    real = SETTINGS.model_copy(update={"data": "real"})
    found = build(None, None, folder, real)["abstract_safety"]
    assert found["reason"] == "study policies is of other data (clinic)"
    folder = write_study(tmp_path / "real", "policies", {"base": [0.9], "full": [0.1]}, data="real")
    assert build(None, None, folder)["abstract_safety"]["verdict"] in verdicts.SEEN


def test_a_failure_is_not_hidden_by_what_is_missing():
    of = verdicts.of_claim
    assert of([verdicts.HOLDS] * 2) == verdicts.HOLDS  # a claim holds only if all its checks do
    assert of([verdicts.HOLDS, verdicts.DIRECTION]) == verdicts.DIRECTION
    everything = [*reversed(verdicts.VERDICTS)]
    for n, worst in enumerate(everything, 1):
        assert of(everything[:n]) == worst  # contradicts is hidden by nothing
    assert everything[-3:] == [verdicts.CANNOT, verdicts.NOT_SEEN, verdicts.CONTRADICTS]
    assert of([]) == verdicts.UNTESTED


def test_a_check_has_one_of_six_verdicts():
    of = verdicts.of_check
    assert of(1, 9, 0, 5, 0.1, 5.0) == verdicts.HOLDS
    assert of(1, 9, 0, 5, 0.9, 9.5) == of(1, 9, 0, 5, 0.9, 0.5) == verdicts.DIRECTION
    assert of(1, 9, 0, 5, 0.9, None) == verdicts.SAME
    assert of(-9, -1, 0, 5, 0.9, -5.0) == verdicts.CONTRADICTS
    assert of(-1, 4, 0, 5, 0.8, 5.0) == of(-3, 2, -2, 5, 0.8, None) == verdicts.NOT_SEEN
    assert of(-1, 4, 0, 5, 0.79, 5.0) == of(0, 4, 0, 5, 0.1, 5.0) == verdicts.CANNOT
    assert of(-1, 5, 0, 5, 0.9, 5.0) == of(-3, 3, -2, 5, 0.9, None) == verdicts.CANNOT  # within
    assert of(-1, 9, -2, 5, 0.1, None) == verdicts.SAME  # its bound is not 0
    assert (
        verdicts.said(verdicts.CANNOT, 4.06, " points")
        == "cannot be told (smallest effect 4.1 points)"
    )
    assert verdicts.said(verdicts.HOLDS, 4.06) == verdicts.HOLDS


def test_an_equivalence_holds_within_its_margin_alone():
    of = verdicts.of_equivalence
    assert of((-3.2, 1), (-2.9, 0.8), 3) == verdicts.HOLDS  # the 90 % interval decides
    assert of((-3.2, 1), (-3.0, 0.8), 3) == verdicts.CANNOT
    assert of((3.1, 9), (3.5, 8), 3) == of((-9, -3.1), (-8, -3.5), 3) == verdicts.CONTRADICTS
    assert of((2.9, 9), (3.5, 8), 3) == verdicts.CANNOT


def test_equivalence_is_checked_on_the_evidence(tmp_path):
    rates = {"base": [0.5], "full": [0.1, 0.1], "no_veto": [0.1, 0.1], "no_bonus": [0.9, 0.9]}
    rows = answers(rates, n=900)
    same = rows[rows.policy == "full"].assign(policy="no_veto")
    rows = pd.concat([rows[rows.policy != "no_veto"], same], ignore_index=True)
    source = contrasts.Counted(policy_metrics.sums(rows), 200, 1, "truth")
    evidence = evidences.Evidence("this run", source=source)
    asked = claims.DEFAULTS | {"from": "policy", "a": "full", "metric": "compliance"}
    asked |= {"metric_b": "compliance", "slice_b": "all", "equivalent_within": 3}
    held = claims._check(asked | {"b": "no_veto"}, evidence)
    assert held["verdict"] == verdicts.HOLDS and held["p"] < 0.05 and held["within"] == 3
    far = claims._check(asked | {"b": "no_bonus"}, evidence)
    assert far["verdict"] == verdicts.CONTRADICTS and far["p"] > 0.99 and far["low"] > 3


def test_holm_is_within_a_family(tally, studies):
    found = build(tally, benches.evaluation(), studies)
    families = {}
    for claim in found.values():
        assert claim["family"] == claim["where"]
        families.setdefault(claim["family"], []).extend(claim["checks"])
    for checks in families.values():
        tested = [check for check in checks if check["p"] is not None]
        wanted = statistics.holm([check["p"] for check in tested])
        assert [check["p_holm"] for check in tested] == pytest.approx(
            [*wanted], abs=2e-4 * len(tested)
        )
    seen = [claim for claim in found.values() if claim["survives"] is not None]
    for claim in seen:
        kept = [c["p_holm"] < 0.05 for c in claim["checks"] if c["p_holm"] is not None]
        assert claim["survives"] == all(kept) and claim["verdict"] in verdicts.SEEN


def test_hacking_is_claimed_of_the_hacker_alone(studies, tmp_path):
    found = build(None, None, studies)["hacking_detected"]
    assert found["verdict"] == verdicts.SAME and [c["seeds"] for c in found["checks"]] == [1, 3]
    assert found["checks"][0]["said"] == HACKED["text"]
    write_study(tmp_path, "policies", {"base": [0.7], "full": [0.1, 0.1]}, ["full"])
    write_study(tmp_path, "policy_rewards", {"full": [0.1], "hacking": [0.7]})
    found = build(None, None, tmp_path)["hacking_detected"]
    assert [c["verdict"] for c in found["checks"]] == [verdicts.CONTRADICTS] * 2


def test_healthbench_and_external_are_evidence_where_they_ran(tmp_path):
    column = {
        "rows": {"difference": {"value": 3.0, "low": 1.0, "high": 5.0, "error": 1.0}},
        "reason": "",
        "n": 9,
    }
    rows = [
        (name, system, text, False, f"i{k}", f"c{k % 5}", 1, said)
        for name in ("clinic", "other")
        for system, text, said in (
            ("criterion", "q", -1.0),
            ("criterion", "q_criteria", 1.0),
            ("criterion", "q_sub", 1.0),
            ("scalar_overall", "q", -1.0),
        )
        for k in range(20)
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
    frame = pd.DataFrame(rows, columns=columns)
    frame = frame.assign(instruction_id=frame["set"] + frame.instruction_id)
    found = build(None, None, tmp_path, external=frame, healthbench=column)
    assert found["policy_healthbench"]["verdict"] == verdicts.DIRECTION  # 7.4 are reported
    chance = found["external_chance"]["checks"]
    assert chance[0]["verdict"] == verdicts.SAME and len(chance) == 4  # on both sets
    assert "has no length" in chance[2]["reason"]
    order = found["external_criteria"]["checks"]
    assert [c["difference"] for c in order] == [100, 100, 0, 0]
    assert order[2]["verdict"] == verdicts.NOT_SEEN  # equal throughout: any effect would be seen
    assert "no criterion_rag" in found["external_retrieval"]["reason"]
    found = build(None, None, tmp_path, external=frame[:0])["external_criteria"]  # as on open data
    assert found["verdict"] == claims.UNTESTED and found["reason"] == "notebook 06 ran no set"


# ---------------------------------------------------------------- what is claimed


def test_reported_differences_are_the_papers(tmp_path):
    found = build(None, None, tmp_path)
    assert len(found) <= 30
    assert found["abstract_overall"]["checks"][0]["reported"] == 22.3
    assert found["main_pair_rm"]["reported"] == pytest.approx(86.55 - 58.95)
    assert found["veto_f1"]["reported"] == pytest.approx(89.09 - 52.95)
    assert found["external_retrieval"]["checks"][0]["reported"] == pytest.approx(81.94 - 81.6)
    assert found["policy_healthbench"]["checks"][0]["reported"] == pytest.approx(53.64 - 46.27)
    marks = {
        c["mark"] for claim in found.values() for c in claim["checks"] if c["reported"] is not None
    }
    assert marks == {"P", "N", "n"}


def test_what_the_paper_reports_agrees_with_what_is_claimed(tmp_path):
    """A claim whose own reported difference is not above its bound would be the kit's mistake."""
    for name, claim in build(None, None, tmp_path).items():
        for check in claim["checks"]:
            if check["reported"] is not None:
                above, within = check["reported"] > check["above"], check["within"] or 0
                assert abs(check["reported"]) < within if within else above, (name, check["what"])


def test_every_cell_that_the_tables_compare_is_claimed(tmp_path):
    found = build(None, None, tmp_path).values()
    parts = {
        row for row in tables.reported("ablation").variant if row not in ("full", "optimiser: GRPO")
    }
    names = claims.LEDGER["rows"]["ablation"]
    asked = {
        names.get(side)
        for spec in claims.LEDGER["claims"]
        if spec["where"] == "ablation"
        for check in claims.expanded(spec)
        for side in (check["a"], check["b"])
    }
    assert parts <= asked
    assert {c["where"] for c in found} == {
        "abstract",
        "main results",
        "safety veto",
        "external",
        "ablation",
        "policy",
        "kit",
    }
    for table, rows in claims.LEDGER["rows"].items():  # the veto table has some of the systems only
        of = tables.reported("main_results" if table == "safety_veto" else table)
        assert set(rows.values()) <= set(of.iloc[:, 0])


def test_lists_stand_for_a_check_each_and_keys_are_unique(tmp_path):
    spec = {
        "checks": [
            {
                "from": "run",
                "a": ["x", "y"],
                "b": "z",
                "metric": "m",
                "slice": ["seen", "unseen"],
            }
        ]
    }
    assert [(c["a"], c["slice"], c["slice_b"]) for c in claims.expanded(spec)] == [
        ("x", "seen", "seen"),
        ("x", "unseen", "unseen"),
        ("y", "seen", "seen"),
        ("y", "unseen", "unseen"),
    ]
    frame = claims.frame([*build(None, None, tmp_path).values()])
    assert not frame.duplicated(["claim", "check"]).any() and len(frame) > 45


# ---------------------------------------------------------------- what is written


def test_the_weakest_check_is_shown():
    checks = [
        {"verdict": verdicts.SAME, "difference": d, "low": low, "above": 0.0, "within": None}
        for d, low in ((30, 10), (5, 4))
    ]
    assert claims.weakest({"checks": checks}) is checks[0]  # nearer to its bound in half widths
    failed = checks[0] | {"verdict": verdicts.NOT_SEEN, "difference": -1.0, "low": -2.0}
    assert claims.weakest({"checks": [*checks, failed]}) is failed
    worse = checks[1] | {"verdict": verdicts.CONTRADICTS}  # the verdict comes first
    assert claims.weakest({"checks": [*checks, failed, worse]}) is worse
    near, far = (failed | {"difference": d, "low": d - 1, "within": 3} for d in (2.0, -2.5))
    assert claims.weakest({"checks": [near, far]}) is far
    untested = {"verdict": claims.UNTESTED, "difference": None}
    assert claims.weakest({"checks": [untested]}) is None


@pytest.fixture
def mixed(tmp_path_factory):
    """Claims of a study in which one thing is against the paper and one for it."""
    rates = {"base": [0.1], "full": [0.6, 0.6], "no_veto": [0.9, 0.9]}
    folder = write_study(tmp_path_factory.mktemp("mixed"), "policies", rates)
    return [*build(None, None, folder).values()]


def test_saved_claims_show_failures_first_and_repeat_byte_by_byte(mixed, tmp_path):
    path = claims.save(mixed, tmp_path)
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert set(first) == {"claims.json", "claims.md", "claims.csv"}
    claims.save(mixed, tmp_path)
    assert first == {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    stored = json.loads(path.read_bytes(), parse_constant=lambda name: pytest.fail(name))
    assert stored["schema_version"] == claims.SCHEMA and "inputs of this run" in stored["inputs"]
    assert sum(stored["verdicts"].values()) == len(stored["claims"]) == len(mixed)
    text = json.dumps(stored["claims"]).lower()
    assert not any(word in text for word in ("kappa", "agreement", "pass rate"))
    page = first["claims.md"].decode()
    assert len(page.splitlines()) < 75  # one screen and its notes
    summary = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| **")]
    order = [next(n for n, v in enumerate(claims.VERDICTS) if v in line) for line in summary]
    assert order == sorted(order) and {0, 3} <= set(order) and len(order) == len(mixed)
    assert "of an invented clinic: no medical result" in page
    assert f"{len(mixed)} claims: {order.count(0)} contradicts" in page
    table = pd.read_csv(tmp_path / "claims.csv")
    assert list(table) == claims.COLUMNS and not table.duplicated(["claim", "check"]).any()
    at = ("abstract_safety", "policies: full - base, compliance, truth labels")
    row = table.set_index(["claim", "check"]).loc[at]
    check = next(c for c in mixed if c["id"] == "abstract_safety")["checks"][0]
    assert row.difference == check["difference"] and row.each == "|".join(map(str, check["each"]))
    assert "studies/policies/evaluation.parquet" in row.files
    assert row.claim_verdict == verdicts.CONTRADICTS and row.p_holm == check["p_holm"]


def test_the_forest_shows_failed_claims_in_their_colour_and_in_words(mixed, tmp_path):
    frame = claims.frame(mixed)
    figure = claims_forest(frame)
    labels = {
        " ".join(t.get_text().split()): t.get_color() for t in figure.axes[0].get_yticklabels()
    }
    tested = [c for c in mixed if c["verdict"] != claims.UNTESTED and claims.weakest(c)]
    assert set(labels) == {c["claim"] for c in tested}
    of = {c["id"]: labels[c["claim"]] for c in tested}
    assert of["abstract_safety"] == plotting.RED and of["ablation_veto"] == plotting.SKY
    plotting.save(claims_forest, frame, tmp_path, "claims_forest")
    first = (tmp_path / "claims_forest.png").read_bytes()
    plotting.save(claims_forest, frame, tmp_path, "claims_forest")
    assert first == (tmp_path / "claims_forest.png").read_bytes()


def test_the_committed_studies_are_read(tally):
    folder = workspace.project_root() / "papers_figures/studies"
    found = build(tally, benches.evaluation(), folder, benches.profile(bootstrap=100))
    tested = {
        c["data"].split(":")[0] for claim in found.values() for c in claim["checks"] if c["n"]
    }
    ran = {f"study {p.parent.name}" for p in folder.glob("*/manifest.json")}
    assert tested >= {"study policies", "study reward_models", "study policy_optimizers"} & ran
    for claim in found.values():
        for check in claim["checks"]:
            assert all(
                p.startswith("studies/") == check["data"].startswith("study")
                for p in check["files"]
            )
    assert evidences.of_study(folder, "none", SETTINGS).reason == "study none not run"
