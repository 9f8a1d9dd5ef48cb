"""Requests, tokens and hours that the doctor announces, recomputed by hand."""

import pytest

from promedical_utils.core import profiles
from promedical_utils.core.profiles import Profile, Role
from promedical_utils.run import doctor

TOKENS = {"writer": 110, "screener": 21, "classifier": 32, "generator": 55, "judge": 240}
NAMES = ("writer", "screener", "classifier", "judge", "generator_terse", "generator_warm")


@pytest.fixture(autouse=True)
def tokens(monkeypatch):
    monkeypatch.setattr(doctor, "REQUEST_TOKENS", TOKENS | {"compared": 530, "rated": 155})


def profile(budgets=None, **settings) -> Profile:
    """11 instructions, none of them of the bench, out of 1,000 rows."""
    roles = {name: Role(model=f"m-{name}", **(budgets or {}).get(name, {})) for name in NAMES}
    sizes = {
        "train_instructions": 11,
        "calibration_instructions": 0,
        "checkpoint_instructions": 0,
        "bench_samples": 0,
        "sources": ["one"],
        "source_limit": 1000,
    }
    changed = {"roles": roles, "notebooks": (), **sizes, **settings}
    return profiles.load("smoke").model_copy(update=changed)


def plan(**settings):
    return doctor.requests_plan(profile(**settings)).set_index("role")


def test_by_hand():
    of = plan()
    assert of.requests.to_dict() == {
        "writer": 14,  # 11 and a quarter of them again: 13.75
        "screener": 1000,
        "classifier": 1000,
        "generator_terse": 11,
        "generator_warm": 11,
        "judge": 22,  # an answer is judged once, on all its criteria
        "total": 2058,
    }
    assert of.tokens["writer"] == 1540 and of.tokens["judge"] == 5280
    assert of.tokens["total"] == 1540 + 21_000 + 32_000 + 2 * 605 + 5280
    assert of.model["judge"] == "m-judge" and of.suffices.all()


def test_a_pool_without_a_limit_is_twice_the_instructions():
    assert plan(source_limit=0).requests["screener"] == 22


def test_the_report_says_hours_at_the_profiles_speed():
    lines = doctor.requests(profile(endpoint="http://localhost:1/v1", tokens_per_second=100.0))
    assert lines[0].startswith("roles: 11 instructions out of 1000 rows at most, at 100 tokens")
    assert (
        lines[2] == f"screener m-screener: 1,000 requests, 0.0 M tokens, {21_000 / 360_000:.1f} h"
    )
    assert lines[-1].startswith("total : 2,058 requests, 0.1 M tokens, 0.2 h")


def test_a_budget_that_will_not_do_is_told():
    budgets = {
        "judge": {"requests": 21},
        "screener": {"tokens": 20_999},
        "writer": {"tokens": 1540},
    }
    assert plan(budgets=budgets).suffices.to_dict() == {
        "writer": True,
        "screener": False,
        "classifier": True,
        "judge": False,
        "generator_terse": True,
        "generator_warm": True,
        "total": False,
    }


def test_the_judge_reads_policies_where_the_clinic_cannot():
    asked = {
        "data": "open",
        "notebooks": ["05_grpo_with_veto"],
        "grpo_steps": 60,
        "grpo_eval_every": 25,
        "train_instructions": 3,
        "checkpoint_instructions": 8,
        "policy_prompts": 30,
    }
    assert plan(**asked).requests["judge"] == 22 + (1 + 3) * 8 + 2 * 30
    every = plan(**asked | {"policy_prompts": 0, "bench_samples": 99})
    assert every.requests["judge"] == 2 * (11 + 99) + 32 + 2 * 99
    assert plan(**asked | {"notebooks": ["03_reward_model"]}).requests["judge"] == 22


def test_judges_with_an_endpoint_read_the_bench_and_others_are_not_asked():
    judge = Role(model="m", endpoint="http://localhost:1/v1", requests=6 * 30, tokens=6 * 30 * 1000)
    judges = {"one": judge, "none": Role(model="m")}
    table = plan(bench_samples=30, judges=judges, rar_judge=judge)
    assert "none" not in table.index
    # two generators: an answer each, a pair in both orders
    assert table.requests["one"] == 2 * 30 + 2 * 30
    assert table.tokens["one"] == 60 * 240 + 60 * 530
    assert table.requests["rar_implicit"] == 60 and table.tokens["rar_implicit"] == 60 * 155
    assert table.suffices["one"]
    judges = {"one": judge.model_copy(update={"requests": 119})}
    lines = doctor.requests(profile(bench_samples=30, judges=judges, rar_judge=judge))
    assert "embedded clinic" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["one", "rar_implicit"]
    assert "MORE THAN ITS BUDGET" in lines[2]
