"""The rewards: by hand, closed where something fails, group by group."""

import math
from types import SimpleNamespace

import pytest
import torch
from helpers.policies import CALIBRATION, INSTRUCTIONS, RUBRICS, Scorer, logistic, small
from hypothesis import given, settings
from hypothesis import strategies as st

from promedical_utils.core.workspace import KitError
from promedical_utils.policy import veto_reward
from promedical_utils.rubric import scoring

LAM = 2.0


def veto(table, **given):
    given = {"all_vetoed": "counted"} | given
    return veto_reward.VetoReward(Scorer(table), CALIBRATION, RUBRICS, **given)


def rewards(reward, texts, ids=None, **rest):
    prompts = [[{"role": "user", "content": "?"}]] * len(texts)
    ids = ids or ["i0"] * len(texts)
    return reward(prompts=prompts, completions=texts, instruction_id=ids, **rest)


def test_reward_by_hand():
    table = {"best": [1, 1, 1, 1, 1], "half": [1, -1, -1, 1, 1], "unsafe": [1, 1, 1, 1, -1]}
    reward = veto(lambda text, _: table[text])
    assert rewards(reward, list(table)) == pytest.approx([1.1, 0.75, 1.1 - 2.0])
    conversation = [[{"role": "assistant", "content": text}] for text in table]
    assert rewards(reward, conversation) == pytest.approx([1.1, 0.75, -0.9])
    assert reward.__name__ == "veto_reward"


@pytest.mark.parametrize(
    "bad",
    [[1, 1, 1, math.nan, 1], [1, 1, 1, None, 1], [1, 1, 1, math.inf, 1]],
    ids=["NaN", "missing score", "infinite"],
)
def test_fails_closed_on_one_criterion(bad):
    assert rewards(veto(lambda *_: bad), ["x"]) == pytest.approx([1.1 - 2.0])
    [one] = veto(lambda *_: bad).read([("i0", [], "x", True)])
    assert (
        one.reasons == ("unscored",) and one.verdicts["i0-3"] == "unknown" and one.unscored == 0.2
    )
    # what is not known counts as a whole violation, beside what the calibration says of the other
    assert one.expected == pytest.approx(1 + 1 - logistic(1, "safety"))


@pytest.mark.parametrize(
    "bad",
    [RuntimeError("boom"), [1, 1, 1, 1], [], None],
    ids=["exception", "too few", "none", "no list"],
)
def test_fails_closed_on_the_whole_answer_and_spares_the_others(bad):
    reward = veto(lambda text, _: bad if text == "bad" else [1] * 5)
    assert rewards(reward, ["good", "bad", "good"]) == pytest.approx([1.1, -4.0, 1.1])


def test_fails_closed_when_results_or_calibration_fail():
    reward = veto(lambda *_: [1] * 5)
    reward.rm.score_texts = lambda items: [[1] * 5] * (len(items) - 1)
    assert rewards(reward, ["a", "b"]) == [-4.0, -4.0]
    reward = veto(lambda *_: [1] * 5)
    reward.calibration = SimpleNamespace(met=lambda *_: 1 / 0, probability=logistic)
    assert rewards(reward, ["a"]) == [-4.0] and "ZeroDivisionError" in reward.error
    reward = veto(lambda *_: [-1] * 5)
    reward.calibration = SimpleNamespace(met=lambda *_: False, probability=lambda *_: math.nan)
    assert reward.read([("i0", [], "x", True)])[0].expected == 2
    reward.calibration = SimpleNamespace(met=lambda *_: False, probability=lambda *_: 1 / 0)
    assert reward.read([("i0", [], "x", True)])[0].expected == 2


def test_truncated_answer_violates_every_safety_criterion():
    reward = veto(lambda *_: [1] * 5, eos_ids={9})
    ids = [[4, 9], [4, 4], []]
    found = rewards(reward, ["a", "b", "c"], completion_ids=ids)
    assert found == pytest.approx([1.1, 1.1 - 4, 1.1 - 4])
    assert rewards(reward, ["a"]) == pytest.approx([1.1 - 4])  # ids asked for and not given
    [one] = reward.read([("i0", [], "x", False)])
    assert one.reasons == ("cut_off",) and one.expected == 2 and one.scores.s3 == 2
    # without a safety criterion there is nothing to violate, and no reason to give
    rubric = RUBRICS[0].model_copy(update={"criteria": RUBRICS[0].criteria[:3]})
    reward = veto_reward.VetoReward(Scorer(lambda *_: [1] * 3), CALIBRATION, [rubric], eos_ids={9})
    [one] = reward.read([("i0", [], "x", False)])
    assert one.reasons == () and one.scores.s3 == 0


raw = st.lists(st.sampled_from([-2.0, -0.1, 0.1, 2.0, math.nan, None]), min_size=5, max_size=5)


@pytest.mark.parametrize("form", ["strict", "ranked"])
@given(table=st.lists(raw, min_size=2, max_size=8))
@settings(max_examples=40, deadline=None)
def test_no_quality_lifts_an_answer_over_one_with_fewer_violations(form, table):
    reward = veto(lambda text, _: table[int(text)], form=form)
    values = torch.tensor(rewards(reward, [str(k) for k in range(len(table))]))
    advantages = (values - values.mean()) / (values.std() + 1e-4)  # as GRPOTrainer forms them
    violations = [sum(not (s is not None and s > 0) for s in row[3:]) for row in table]
    for a, fewer in zip(advantages, violations, strict=True):
        for b, more in zip(advantages, violations, strict=True):
            assert not fewer < more or a > b


def test_ranked_keeps_the_order_that_the_scalar_trades():
    """S1 .75 with no bonus against S1 1.0 is kept; three bonus against a little S1 is not, by
    alpha."""
    criteria = [
        c.model_copy(update={"id": f"x-{n}", "dimension": "excellence", "weight": 0.0})
        for n, c in enumerate([RUBRICS[0].criteria[2]] * 4)
    ]
    rubric = RUBRICS[0].model_copy(update={"criteria": [*RUBRICS[0].criteria, *criteria]})
    table = {"more S1": [1, 1, -1, 1, 1, -1, -1, -1, -1], "more S2": [1, -1, 1, 1, 1, 1, 1, 1, 1]}

    def reward(form):
        return veto_reward.VetoReward(
            Scorer(lambda t, _: table[t]), CALIBRATION, [rubric], form=form
        )

    strict, ranked = (rewards(reward(form), list(table)) for form in ("strict", "ranked"))
    assert strict == pytest.approx([1.0, 1.25])  # .75 + .5: bonus outweighs a main criterion
    assert ranked == [1.0, -1.0]


def test_clipped_allows_the_papers_bound_and_strict_does_not():
    with pytest.raises(KitError, match="strict"):
        veto(None, lam=1.3)
    with pytest.warns(UserWarning, match="use the gated reward"):
        reward = veto(
            lambda text, _: [1, 1, 1, 1, -1 if text == "unsafe" else 1], lam=1.3, form="clipped"
        )
        assert rewards(reward, ["unsafe", "safe"]) == pytest.approx([1.1 - 1.3, 1.1])
    with pytest.raises(KitError, match="below 1 \\+ beta"):
        veto(None, lam=1.2, form="clipped")
    for wrong in ({"form": "loose"}, {"all_vetoed": "ignored"}):
        with pytest.raises(KitError, match="choose one of"):
            veto(None, **wrong)


def test_a_group_that_is_all_vetoed_is_told_apart_by_the_stated_rule():
    # one violation each, and the better written one is the less safe one
    table = {"better": [1, 1, 1, 1, -3], "safer": [-1, -1, -1, 1, -0.5], "worst": [1, 1, 1, -3, -3]}
    mixed = table | {"safe": [-1, -1, -1, 1, 1]}
    expected = {t: sum(1 - logistic(v, "") for v in row[3:]) for t, row in table.items()}

    def reward(rule, form="strict"):
        return veto(lambda text, _: mixed[text], all_vetoed=rule, form=form)

    assert rewards(reward("counted"), list(table)) == pytest.approx([-0.9, -2.0, -2.9])
    assert rewards(reward("skipped"), list(table)) == [-2.0] * 3
    found = rewards(reward("expected"), list(table))
    assert found == pytest.approx([-LAM * e for e in expected.values()])
    assert found[1] > found[0] > found[2]  # safety alone
    assert rewards(reward("expected", "ranked"), list(table)) == [0.0, 1.0, -1.0]
    assert rewards(reward("counted", "ranked"), list(table)) == [1.0, 0.0, -1.0]
    # one safe answer, and the group is no longer all vetoed: every rule gives the same
    for form in ("strict", "ranked"):
        found = {tuple(rewards(reward(rule, form), list(mixed))) for rule in veto_reward.ALL_VETOED}
        assert len(found) == 1
    # the rule looks at each group of the batch
    ids = ["i0"] * 3 + ["i1"] * 2
    both = rewards(reward("skipped"), [*table, "safe", "better"], ids)
    assert both == pytest.approx([-2.0] * 3 + [0.0, -0.9])


def test_a_group_that_is_not_whole_is_refused_and_repeats_are_kept_apart():
    reward = veto(lambda text, _: [1, 1, 1, 1, float(text)], form="ranked", group=2)
    with pytest.raises(KitError, match="instruction i1: 1 answers side by side, not 2"):
        rewards(reward, ["1", "1", "1"], ["i0", "i0", "i1"])
    with pytest.raises(KitError, match="instruction i0: 3 answers side by side, not 2"):
        rewards(reward, ["1"] * 3)
    # the same prompt twice in a row is two groups
    assert rewards(reward, ["1", "-1", "1", "1"], ["i0"] * 4) == [1.0, -1.0, 0.0, 0.0]


def test_missing_rubric_is_refused():
    with pytest.raises(KitError, match="no rubric for instruction zz"):
        rewards(veto(lambda *_: [1] * 5), ["a"], ["zz"])


def test_logged_metrics():
    table = {"safe": [1, 1, 1, 1, 1], "bad": [1, -1, 1, -1, -1], "slip": [1, -1, 1, 1, -1]}
    logged = {}

    def read(text, _):
        reward.rm.tokens_read += 5
        return table[text]

    reward = veto(read)
    reward.rm.tokens_read = 100
    texts, ids = (
        ["safe", "bad", "bad", "slip", "safe", "safe"],
        ["i0", "i0", "i1", "i1", "i2", "i2"],
    )
    rewards(reward, texts, ids, log_metric=logged.__setitem__, completion_ids=[[1]] * 6)
    assert logged.pop("time/reward") > 0
    assert logged == pytest.approx(
        {
            "veto/rate": 1 / 2,
            "veto/s1": (1 + 0.75) / 2,
            "veto/s2": 1,
            "veto/s3": 5 / 6,
            "veto/truncated": 0,
            "veto/unscored": 0,
            "veto/all_vetoed_groups": 1 / 3,
            "veto/zero_std_groups": 1 / 3,
            "veto/reason/violated": 1 / 2,
            "veto/reason/unscored": 0,
            "veto/reason/cut_off": 0,
            "tokens/generated": 6,
            "tokens/scored": 30,
        }
    )


# ---------------------------------------------------------------- ablations and compared systems


def built(rule, table, **settings):
    return veto_reward.build(
        small(reward_rule=rule, **settings), Scorer(table), CALIBRATION, RUBRICS
    )


TABLE = {"good": [1, 1, 1, 1, 1], "plain": [1, -1, -1, 1, 1], "unsafe": [1, 1, 1, -1, -1]}


def of(rule, **settings):
    return rewards(built(rule, lambda text, _: TABLE[text], grpo_group=3, **settings), list(TABLE))


def test_ablations_by_hand():
    assert of("veto") == pytest.approx([1.1, 0.75, 1.1 - 4])
    assert of("no_veto") == pytest.approx([1.1, 0.75, 1.1])
    # whatever the bonus is worth, no more than 1 + beta
    assert of("no_veto", reward_alpha=0.9) == pytest.approx([1.3, 0.75, 1.3])
    assert of("no_bonus") == pytest.approx([1.0, 0.75, 1.0 - 4])
    assert of("veto", reward_form="ranked") == [1.0, 0.0, -1.0]


def test_a_profile_names_the_rule_of_all_vetoed_groups_and_the_group():
    bad = built("veto", lambda *_: [1, 1, 1, 1, -1], reward_all_vetoed="skipped", grpo_group=2)
    assert rewards(bad, ["x", "y"]) == [-LAM] * 2
    with pytest.raises(KitError, match="1 answers side by side, not 2"):
        rewards(bad, ["x"])


def test_rewards_of_compared_systems_by_hand():
    # RaR: pitfalls .9 each, the main criterion of .75 essential, that of .25 important, bonus
    # optional
    total = 1.0 + 0.7 + 0.3 + 0.9 + 0.9
    assert of("rar_explicit") == pytest.approx([1.0, (1.0 + 1.8) / total, 2.0 / total])
    assert of("orbit") == [
        scoring.orbit_signed(
            RUBRICS[0],
            {
                c.id: "met" if v > 0 else "not_met"
                for c, v in zip(RUBRICS[0].criteria, row, strict=True)
            },
        )
        for row in TABLE.values()
    ]
    assert of("orbit")[0] == 1.0 and of("orbit")[2] < of("orbit")[1]


def test_scalar_rewards_and_their_failures():
    scores = {
        "a": [2.0],
        "b": [-1.0],
        "none": None,
        "nan": [math.nan],
        "inf": [math.inf],
        "many": [1.0, 2.0],
    }
    texts = list(scores)
    given = {"grpo_group": 6}
    found = rewards(built("scalar", lambda t, _: scores[t], **given), texts)
    assert found == [2.0, -1.0, -2.0, -2.0, -2.0, -2.0]  # less than the worst that was scored
    found = rewards(built("rar_implicit", lambda t, _: scores[t], **given), texts)
    assert found[:2] == pytest.approx([logistic(2.0, ""), logistic(-1.0, "")])
    assert found[2:] == pytest.approx([logistic(-1.0, "") - 1] * 4)
    assert rewards(built("scalar", lambda *_: ValueError(), grpo_group=2), ["a", "b"]) == [
        -1.0,
        -1.0,
    ]
    logged = {}
    reward = built("scalar", lambda t, _: scores[t], **given)
    rewards(reward, texts, log_metric=logged.__setitem__)
    assert logged["veto/unscored"] == pytest.approx(4 / 6) and "veto/rate" not in logged
    # it reads the whole answer, and is handed the criteria for those that read a rubric
    seen = []
    reward.rm.score_texts = lambda items: seen.extend(items) or [[0.0]] * len(items)
    rewards(reward, ["a"] * 6)
    assert seen[0][2] == RUBRICS[0].criteria and len(INSTRUCTIONS) == 10
