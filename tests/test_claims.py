"""Claims: a verdict needs its interval, and what is set by the configuration is never claimed."""

import json

import benches
import pytest

from promedical_utils import bench, claims

SETTINGS = benches.profile(bootstrap=100)


@pytest.fixture(scope="module")
def tally():
    made = benches.make(0.95, n=120, bench_samples=120)[0]
    return bench.tally(made, benches.noisy(made))


def verdicts(rows):
    return {row["id"]: row["verdict"] for row in rows}


def test_a_clear_difference_is_seen_with_its_interval(tally):
    rows = claims.build_claims(tally, benches.evaluation(), SETTINGS, 4)
    found = verdicts(rows)
    assert found["injection_pairwise"] == found["injection_overall"] == claims.SAME
    assert found["veto_fewer_violations"] == found["veto_keeps_proficiency"] == claims.SAME
    assert found["gain_largest_on_safety"] == claims.NOT_SEEN  # every dimension gains alike here
    pairwise = next(r for r in rows if r["id"] == "injection_pairwise")
    assert len(pairwise["checks"]) == 4 and pairwise["run"] == "cpu, seed 4, clinic"
    for check in pairwise["checks"]:
        assert 0 < check["low"] <= check["difference"] <= check["high"]


def test_no_difference_and_the_wrong_direction_are_not_seen(tally):
    worse = claims.build_claims(tally, benches.evaluation(base=0.1, grpo=0.6), SETTINGS, 0)
    level = claims.build_claims(tally, benches.evaluation(base=0.4, grpo=0.4), SETTINGS, 0)
    for rows in (worse, level):
        assert verdicts(rows)["veto_fewer_violations"] == claims.NOT_SEEN
    kept = [r["checks"][0] for r in worse if r["id"] == "veto_keeps_proficiency"][0]
    assert (kept["difference"], kept["above"]) == (0.0, -2.0)


def test_proficiency_lost_is_noticed():
    rows = benches.evaluation()
    rows.loc[rows.policy == "grpo", "s1"] = 0.55
    found = claims.build_claims(None, rows, SETTINGS, 0)
    assert verdicts(found)["veto_keeps_proficiency"] == claims.NOT_SEEN


def test_the_difference_is_paired_by_instruction():
    rows = benches.evaluation()
    values = rows.pivot(index="instruction_id", columns="policy", values="violation").astype(float)
    found = claims.paired_policies(rows, "violation", -1, 50, 0)
    assert found["difference"] == pytest.approx((values.base - values.grpo).mean())
    unpaired = rows[(rows.policy == "grpo") | (rows.instruction_id < "i3")]
    assert claims.paired_policies(unpaired, "violation", -1, 50, 0)["n"] < found["n"]


def test_what_did_not_run_and_smoke_are_not_testable(tally):
    for rows in (
        claims.build_claims(None, None, SETTINGS, 0),
        claims.build_claims(tally, benches.evaluation(), SETTINGS.model_copy(update={"name": "smoke"}), 0),
    ):
        assert set(verdicts(rows).values()) == {claims.UNTESTED}
    made = benches.make()[0]
    partial = bench.tally(made, benches.noisy(made, ("criterion", "scalar_overall")))
    found = verdicts(claims.build_claims(partial, None, SETTINGS, 0))
    assert found["injection_pairwise"] == claims.UNTESTED  # one of the two scalars is missing


def test_decide():
    above, below = {"low": 0.1, "above": 0.0}, {"low": 0.0, "above": 0.0}
    assert claims.decide([above, above]) == claims.SAME
    assert claims.decide([above, below]) == claims.NOT_SEEN
    assert claims.decide([above, None]) == claims.decide([]) == claims.UNTESTED


def test_saved_claims_have_no_nan_and_no_input_among_them(tally, tmp_path):
    rows = claims.build_claims(tally, benches.evaluation(), SETTINGS, 0)
    path = claims.save(rows, tmp_path)
    first = path.read_bytes(), (tmp_path / "claims.md").read_bytes()
    claims.save(claims.build_claims(tally, benches.evaluation(), SETTINGS, 0), tmp_path)
    assert first == (path.read_bytes(), (tmp_path / "claims.md").read_bytes())
    stored = json.loads(first[0], parse_constant=lambda name: pytest.fail(name))
    text = json.dumps(stored["claims"]).lower()
    assert not any(word in text for word in ("kappa", "agreement", "pass rate"))
    assert "inputs of this run" in stored["inputs"]
    for row in rows:
        assert row["verdict"] in first[1].decode() and row["claim"] in first[1].decode()
