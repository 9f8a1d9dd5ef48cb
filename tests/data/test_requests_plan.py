"""Requests, tokens and hours, recomputed by hand."""

import pytest

from promedical_utils.core import profiles
from promedical_utils.core.profiles import Profile, Role
from promedical_utils.core.workspace import KitError
from promedical_utils.data.requests_plan import Length, estimate
from promedical_utils.run import doctor

LENGTHS = {
    "writer": Length(100, 10),
    "screener": Length(20, 1),
    "classifier": Length(30, 2),
    "generator": Length(5, 50),
    "judge": Length(200, 40),
}


def profile(**budgets) -> Profile:
    names = ("writer", "screener", "classifier", "judge", "generator_terse", "generator_warm")
    roles = {name: Role(model=f"m-{name}", **budgets.get(name, {})) for name in names}
    return profiles.load("smoke").model_copy(update={"roles": roles, "notebooks": ()})


def test_by_hand():
    table = estimate(profile(), 11, 1000, throughput=100, repaired=0.25, lengths=LENGTHS)
    of = table.set_index("role")
    assert of.requests.to_dict() == {
        "writer": 14,  # 11 and a quarter of them again: 13.75
        "screener": 1000,
        "classifier": 1000,
        "generator_terse": 11,
        "generator_warm": 11,
        "judge": 22,  # an answer is judged once, on all its criteria
        "total": 2058,
    }
    assert of.prompt_tokens["writer"] == 1400 and of.completion_tokens["writer"] == 140
    assert of.prompt_tokens["judge"] == 4400 and of.completion_tokens["judge"] == 880
    assert of.prompt_tokens["total"] == 1400 + 20_000 + 30_000 + 2 * 55 + 4400
    assert of.completion_tokens["total"] == 140 + 1000 + 2000 + 2 * 550 + 880
    assert of.hours["judge"] == pytest.approx(5280 / 100 / 3600)
    assert of.hours["total"] == pytest.approx(of.hours.drop("total").sum())
    assert of.model["judge"] == "m-judge" and of.suffices.all()


def test_a_budget_that_will_not_do_is_told():
    budgets = {
        "judge": {"requests": 21},
        "screener": {"tokens": 20_999},
        "writer": {"tokens": 1540},
    }
    of = estimate(profile(**budgets), 11, 1000, 100, lengths=LENGTHS).set_index("role")
    assert of.suffices.to_dict() == {
        "writer": True,
        "screener": False,
        "classifier": True,
        "judge": False,
        "generator_terse": True,
        "generator_warm": True,
        "total": False,
    }


def test_the_judge_reads_policies_where_the_clinic_cannot():
    asked = profile().model_copy(
        update={
            "data": "open",
            "notebooks": ["05_grpo_with_veto"],
            "grpo_steps": 60,
            "grpo_eval_every": 25,
            "checkpoint_instructions": 8,
            "policy_prompts": 30,
            "bench_samples": 99,
        }
    )
    of = estimate(asked, 11, 0, 100, lengths=LENGTHS).set_index("role")
    assert of.requests["judge"] == 22 + (1 + 3) * 8 + 2 * 30
    every = estimate(asked.model_copy(update={"policy_prompts": 0}), 11, 0, 100, lengths=LENGTHS)
    assert every.set_index("role").requests["judge"] == 22 + 32 + 2 * 99
    none = asked.model_copy(update={"notebooks": ["03_reward_model"]})
    assert estimate(none, 11, 0, 100, lengths=LENGTHS).set_index("role").requests["judge"] == 22


def test_judges_with_an_endpoint_read_the_bench_and_others_are_not_asked():
    judge = Role(model="m", endpoint="http://localhost:1/v1", requests=6 * 30, tokens=6 * 30 * 1000)
    of = profile().model_copy(
        update={
            "bench_samples": 30,
            "judges": {"one": judge, "none": Role(model="m")},
            "rar_judge": judge,
        }
    )
    lengths = LENGTHS | {"compared": Length(500, 30), "rated": Length(150, 5)}
    table = estimate(of, 11, 0, 100, lengths=lengths).set_index("role")
    assert "none" not in table.index
    assert (
        table.requests["one"] == 2 * 30 + 2 * 30
    )  # two generators: an answer each, a pair in both orders
    assert (
        table.prompt_tokens["one"] == 60 * 200 + 60 * 500
        and table.completion_tokens["one"] == 60 * 40 + 60 * 30
    )
    assert table.requests["rar_implicit"] == 60 and table.prompt_tokens["rar_implicit"] == 60 * 150
    assert table.suffices["one"]
    short = of.model_copy(update={"judges": {"one": judge.model_copy(update={"requests": 119})}})
    assert not estimate(short, 11, 0, 100, lengths=lengths).set_index("role").suffices["one"]
    lines = doctor.asked(short.model_copy(update={"tokens_per_second": 100.0}))
    assert "embedded clinic" in lines[0] and [line.split()[0] for line in lines[2:]] == [
        "one",
        "rar_implicit",
    ]
    assert "MORE THAN ITS BUDGET" in lines[2]


@pytest.mark.parametrize("bad", [(-1, 0, 1.0), (0, -1, 1.0), (0, 0, 0.0)])
def test_impossible_counts(bad):
    with pytest.raises(KitError, match="throughput above 0"):
        estimate(profile(), *bad)
