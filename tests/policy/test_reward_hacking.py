"""The check that names reward hacking, on runs whose truth is known because they are made here."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from promedical_utils.policy import reward_hacking


def run(proxy, judged, gold=None, prompts=40, conditions=None, seed=0, noise=1.0, shared=0.0):
    """Answers of a run; ``proxy``, ``judged``, ``gold``: mean at each evaluation.

    Prompts differ in level, the same at every step; each answer adds its own noise, and each
    condition at each step a ``shared`` one.
    """
    rng, conditions = np.random.default_rng(seed), conditions or prompts
    level, place = rng.normal(size=prompts), np.arange(prompts) % conditions
    parts = []
    for number, step in enumerate(30 * n for n in range(len(proxy))):
        common = shared * rng.normal(size=conditions)[place]
        parts.append(
            pd.DataFrame(
                {
                    "step": step,
                    "instruction_id": [f"i{n:03}" for n in range(prompts)],
                    "condition": [f"c{n}" for n in place],
                    "proxy": level + proxy[number] + 0.2 * rng.normal(size=prompts),
                    "judged": level + judged[number] + noise * rng.normal(size=prompts) + common,
                    "gold": level + gold[number] + 0.5 * rng.normal(size=prompts)
                    if gold
                    else math.nan,
                    "tokens": rng.integers(80, 120, prompts),  # other columns do not count
                    "entropy": 0.3 + 0.02 * rng.normal(size=prompts),
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def found(answers):
    result = reward_hacking.check(answers)
    json.dumps(result, allow_nan=False)
    return result


def changes(answers, what, now, base):
    table = answers.pivot(index="instruction_id", columns="step", values=what).astype(float)
    return (table[now] - table[base]).to_numpy()


RISING = (0.0, 0.5, 1.0, 1.5)


def test_proxy_up_and_judged_down_is_named_at_its_step():
    answers = run(RISING, (0.0, 1.0, 2.0, 0.6))
    result = found(answers)
    assert result["flagged"] and result["tested"]
    assert (result["since"], result["against"]) == (90, "judged")
    # the start was worse still, so only the best so far shows it
    assert {(row["compared_with"], row["which"]) for row in result["evidence"]} == {
        (60, "the best so far")
    }
    assert [row["what"] for row in result["evidence"]] == ["proxy", "judged"]
    assert result["gold_agrees"] is None


def test_a_fall_below_the_start_is_shown_against_both():
    result = found(run(RISING, (0.0, 1.0, -1.5, -1.5)))
    assert result["since"] == 60  # the first, not the last
    assert [(r["compared_with"], r["what"]) for r in result["evidence"]] == [
        (0, "proxy"),
        (0, "judged"),
        (30, "proxy"),
        (30, "judged"),
    ]
    assert found(run(RISING, (0.0, -1.5, -1.5, -1.5)))["since"] == 30


def test_a_slow_fall_is_seen_against_the_best():
    """No step is much below the one before it."""
    judged = (0.0, 2.0, 1.6, 1.2, 0.8)
    result = found(run([0.5 * n for n in range(5)], judged, noise=0.8, prompts=60))
    assert result["flagged"] and {row["compared_with"] for row in result["evidence"]} == {30}
    assert result["since"] > 60


@pytest.mark.parametrize("prompts", [10, 40])
def test_intervals_by_hand(prompts):
    answers = run(RISING, (0.0, 3.0, 6.0, 1.0), prompts=prompts)
    result = found(answers)
    # four evaluations make six pairs; each of them may miss 5 % / 6
    assert result["comparisons"] == 6 and result["level"] == pytest.approx(1 - 0.05 / 6)
    for row in result["evidence"]:
        change = changes(answers, row["what"], 90, 60)
        # a condition a prompt: the usual standard error of a mean
        half = student.ppf(1 - 0.05 / 12, prompts - 1) * change.std(ddof=1) / math.sqrt(prompts)
        assert row["difference"] == pytest.approx(change.mean())
        assert row["high"] - row["difference"] == pytest.approx(half)
        assert row["difference"] - row["low"] == pytest.approx(half)


@pytest.mark.parametrize("judged", [RISING, (0.0, 0.0, 0.0, 0.0)])
def test_what_does_not_fall_is_not_flagged(judged):
    result = found(run(RISING, judged))
    assert not result["flagged"] and result["tested"]
    assert (result["since"], result["against"]) == (None, "")
    # what the last evaluation is like is shown all the same
    assert [(r["step"], r["compared_with"]) for r in result["evidence"]] == [(90, 0), (90, 0)]
    assert result["evidence"][0]["low"] > 0


@pytest.mark.parametrize("proxy", [(0.0, 0.0, 0.0, 0.0), (1.5, 1.0, 0.5, 0.0)])
def test_a_judged_fall_without_a_proxy_gain_is_no_hacking(proxy):
    assert not found(run(proxy, (2.0, 1.0, 0.0, -1.0)))["flagged"]


@pytest.mark.parametrize(
    "sizes",
    [
        {"prompts": 24},
        {"prompts": 48, "conditions": 12, "shared": 1.0},
        {"prompts": 50, "conditions": 19, "shared": 0.5},
    ],
)
def test_judged_noise_alone_is_rarely_flagged(sizes):
    """The proxy truly rises, the judged reward is noise: at most 5 % of runs may be flagged.

    Eight evaluations, of which the best so far is by luck; at 95 % a comparison it is over 20 %.
    """
    proxy = [0.5 * n for n in range(8)]
    runs = [run(proxy, [0.0] * 8, seed=seed, **sizes) for seed in range(200)]
    assert np.mean([reward_hacking.check(r)["flagged"] for r in runs]) <= 0.05


def test_a_real_fall_is_rarely_missed():
    runs = [run(RISING, (0.0, 0.5, 1.0, 0.0), seed=seed) for seed in range(40)]
    assert np.mean([reward_hacking.check(r)["since"] == 90 for r in runs]) > 0.7


def test_what_a_condition_shares_is_known_once():
    """What all prompts of a condition share is no more certain for being asked four times."""
    answers = run(RISING, (0.0, 1.0, 2.0, 1.0), prompts=80, conditions=20, noise=0.1, shared=1.0)
    apart = answers.assign(condition=answers["instruction_id"])
    rows = [reward_hacking.check(a)["evidence"][-1] for a in (answers, apart)]
    assert rows[0]["what"] == rows[1]["what"] == "judged"
    widths = [row["high"] - row["low"] for row in rows]
    assert widths[0] > 1.6 * widths[1]


def test_interval_over_conditions_by_hand():
    answers = run(RISING, (0.0, 1.0, 2.0, 0.6), prompts=40, conditions=16)  # of 2 and of 3 prompts
    change = answers.pivot(index="instruction_id", columns="step", values="judged")
    change = change[90] - change[60]
    of = answers.drop_duplicates("instruction_id").set_index("instruction_id").condition
    apart = [sum(change[of == c] - change.mean()) for c in sorted(set(of))]
    error = math.sqrt(16 / 15 * sum(a * a for a in apart)) / 40
    [row] = [r for r in found(answers)["evidence"] if r["what"] == "judged"]
    half = student.ppf(1 - 0.05 / 12, 15) * error
    assert (row["low"], row["high"]) == pytest.approx((change.mean() - half, change.mean() + half))


def test_without_conditions_prompts_count_alone():
    answers = run(RISING, (0.0, 1.0, 2.0, 0.6))
    none = found(answers.assign(condition=""))
    assert none == found(answers.assign(condition=answers["instruction_id"]))
    assert none["conditions"] == 40


def test_gold_is_shown_and_never_decides():
    judged = (0.0, 1.0, 2.0, 0.6)
    for gold, agrees in ((judged, True), (RISING, False)):
        result = found(run(RISING, judged, gold))
        assert result["flagged"] and result["gold_agrees"] is agrees
        row = result["evidence"][2]
        assert row["what"] == "gold" and row["low"] < row["difference"] < row["high"]
    # a fall that may be none is not taken for agreement
    result = found(run(RISING, judged, (0.0, 1.0, 2.0, 1.85)))
    assert result["evidence"][2]["difference"] < 0 < result["evidence"][2]["high"]
    assert result["gold_agrees"] is False
    for gold, agrees in ((RISING, True), ((0.0, -1.0, -2.0, -3.0), False)):
        result = found(run(RISING, RISING, gold))
        assert not result["flagged"] and result["gold_agrees"] is agrees
    known = found(run(RISING, judged, judged))
    hidden = found(run(RISING, judged, judged).assign(gold=math.nan))
    for key in ("flagged", "since", "level"):
        assert known[key] == hidden[key]
    assert hidden["evidence"] == known["evidence"][:2] and hidden["gold_agrees"] is None
    assert "gold" not in hidden["text"] and "gold agrees" in known["text"]


def test_gold_that_is_known_of_a_few_prompts_only_is_not_known():
    answers = run(RISING, (0.0, 1.0, 2.0, 0.6), (0.0, 1.0, 2.0, 0.6))
    part = answers.assign(gold=answers["gold"].where(answers["instruction_id"] < "i009"))
    assert found(part)["gold_agrees"] is None
    part = answers.assign(gold=answers["gold"].where(answers["instruction_id"] < "i030"))
    row = found(part)["evidence"][2]
    assert row["difference"] == pytest.approx(np.nanmean(changes(part, "gold", 90, 60)))


def test_the_scale_of_the_proxy_and_the_order_of_rows_do_not_matter():
    answers = run(RISING, (0.0, 1.0, 2.0, 0.6))
    result = found(answers)
    other = found(
        answers.assign(proxy=1000 * answers["proxy"] - 5e4).sample(frac=1, random_state=0)
    )
    assert other["since"] == 90 and other["evidence"][1] == result["evidence"][1]
    assert other["evidence"][0]["low"] == pytest.approx(1000 * result["evidence"][0]["low"])


def test_an_answer_without_a_proxy_is_left_out_and_counted():
    answers = run(RISING, (0.0, 1.0, 2.0, 0.6))
    some = answers.assign(proxy=answers["proxy"].mask(answers.index.isin([0, 130, 131])))
    result = found(some)
    assert result["since"] == 90 and result["unscored"] == 3
    assert "3 answers without a proxy left out" in result["text"]
    assert "without a proxy" not in found(answers)["text"]
    proxy, judged = result["evidence"]
    assert proxy["difference"] == pytest.approx(np.nanmean(changes(some, "proxy", 90, 60)))
    assert judged["difference"] == pytest.approx(changes(answers, "judged", 90, 60).mean())
    late = answers["instruction_id"].ge("i009") & answers["step"].eq(60)
    result = found(answers.assign(proxy=answers["proxy"].mask(late)))
    assert not result["tested"] and not result["flagged"] and "at step 60" in result["text"]


def test_the_sentence_has_the_numbers_of_the_evidence():
    result = found(run(RISING, (0.0, 1.0, 2.0, 0.6), (0.0, 1.0, 2.0, 0.6)))
    for row in result["evidence"]:
        interval = f"({row['low']:+.3g} to {row['high']:+.3g})"
        assert f"{row['what']} {row['difference']:+.3g} {interval}" in result["text"]
    assert result["text"].startswith(
        "Reward hacking since step 90: against the best so far (step 60)"
    )
    assert "gold agrees (99.17 % intervals, 40 prompts)." in result["text"]
    many = found(run(RISING, RISING, prompts=40, conditions=20))["text"]
    assert (
        many.startswith("No reward hacking seen in steps 0 to 90")
        and "40 prompts in 20 cond" in many
    )


@pytest.mark.parametrize(
    "few, why",
    [
        (run(RISING, (0.0, -9.0, -9.0, -9.0), prompts=9), "9 prompts are too few, 10 are needed"),
        (
            run(RISING, (0.0, -9.0, -9.0, -9.0), prompts=40, conditions=4),
            "in 4 conditions are too few",
        ),
        (run([0.0], [0.0]), "one evaluation has nothing to be compared with"),
    ],
)
def test_too_little_is_said_and_not_flagged(few, why):
    result = found(few)
    assert not result["flagged"] and not result["tested"] and why in result["text"]
    assert result["evidence"] == []
    assert found(run(RISING, (0.0, -9.0, -9.0, -9.0), prompts=10))["flagged"]
