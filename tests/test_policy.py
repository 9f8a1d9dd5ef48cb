"""The veto reward, shared-prompt GRPO, generation and evaluation, on a tiny random model."""

import json
import math
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from promedical_utils import policy, profiles
from promedical_utils.records import Criterion, Instruction, Rubric
from promedical_utils.workspace import KitError

DIMENSIONS = ("proficiency", "proficiency", "excellence", "safety", "safety")


def rubric(name):
    weights = (0.75, 0.25, 0, 0, 0)
    criteria = [Criterion(id=f"{name}-{k}", dimension=d, text=f"criterion {k}", weight=w)
                for k, (d, w) in enumerate(zip(DIMENSIONS, weights, strict=True))]
    return Rubric(instruction_id=name, criteria=criteria, status="gold", round=0)


INSTRUCTIONS = [
    Instruction(id=f"i{n}", category="c", specialty="s", source="test", difficulty=5,
                messages=[{"role": "user", "content": "what now " * (1 + n % 3) + str(n)}])
    for n in range(10)
]
RUBRICS = [rubric(i.id) for i in INSTRUCTIONS]
CALIBRATION = SimpleNamespace(met=lambda score, dimension: score > 0)


class Scorer:
    """A reward model that looks scores up by text; an exception is raised, not returned."""

    def __init__(self, table):
        self.table = table

    def score_texts(self, items):
        found = [self.table(text, criteria) for _, text, criteria in items]
        for value in found:
            if isinstance(value, Exception):
                raise value
        return found


def veto(table, **settings):
    return policy.VetoReward(Scorer(table), CALIBRATION, RUBRICS, **settings)


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
    reward.calibration = SimpleNamespace(met=lambda *_: 1 / 0)
    assert rewards(reward, ["a"]) == [-4.0] and "ZeroDivisionError" in reward.error


def test_truncated_answer_violates_every_safety_criterion():
    reward = veto(lambda *_: [1] * 5, eos_ids={9})
    ids = [[4, 9], [4, 4], []]
    found = rewards(reward, ["a", "b", "c"], completion_ids=ids)
    assert found == pytest.approx([1.1, 1.1 - 4, 1.1 - 4])
    assert rewards(reward, ["a"]) == pytest.approx([1.1 - 4])  # ids asked for and not given


raw = st.lists(st.sampled_from([-2.0, -0.1, 0.1, 2.0, math.nan, None]), min_size=5, max_size=5)


@given(st.lists(raw, min_size=2, max_size=8))
@settings(max_examples=60, deadline=None)
def test_no_quality_lifts_an_answer_over_one_with_fewer_violations(table):
    reward = veto(lambda text, _: table[int(text)])
    values = torch.tensor(rewards(reward, [str(k) for k in range(len(table))]))
    advantages = (values - values.mean()) / (values.std() + 1e-4)  # as GRPOTrainer forms them
    violations = [sum(not (s is not None and s > 0) for s in row[3:]) for row in table]
    for a, fewer in zip(advantages, violations, strict=True):
        for b, more in zip(advantages, violations, strict=True):
            assert not fewer < more or a > b


def test_loose_veto_and_missing_rubric_are_refused():
    with pytest.raises(KitError, match="strict"):
        veto(None, lam=1.3)
    with pytest.raises(KitError, match="no rubric for instruction zz"):
        rewards(veto(lambda *_: [1] * 5), ["a"], ["zz"])


def test_logged_metrics():
    table = {"safe": [1, 1, 1, 1, 1], "bad": [1, -1, 1, -1, -1]}
    logged = {}
    reward = veto(lambda text, _: table[text])
    ids = ["i0", "i0", "i1", "i1"]
    rewards(reward, ["safe", "bad", "bad", "bad"], ids, log_metric=logged.__setitem__)
    assert logged == pytest.approx({
        "veto/rate": 0.75, "veto/s1": (1 + 3 * 0.75) / 4, "veto/s2": 1, "veto/s3": 1.5,
        "veto/truncated": 0, "veto/unscored": 0, "veto/all_vetoed_groups": 0.5,
        "veto/zero_std_groups": 0.5,
    })


@pytest.fixture(scope="module")
def model(tiny_base):
    return policy.load_base(tiny_base, profiles.load("smoke"))


def test_generate_is_that_of_transformers_and_repeatable(model):
    lm, tokenizer = model
    answers = policy.generate(lm, tokenizer, INSTRUCTIONS, max_tokens=9, temperature=0, batch=4)
    for instruction, answer in zip(INSTRUCTIONS, answers, strict=True):
        messages = policy._messages(instruction)
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True,
                                            return_tensors="pt", return_dict=True)
        alone = lm.generate(**ids, max_new_tokens=9, do_sample=False)[0, ids["input_ids"].shape[1]:]
        assert answer.text == tokenizer.decode(alone, skip_special_tokens=True)
        assert answer.finished == (tokenizer.eos_token_id in alone)
        assert answer.tokens == len(alone)
    state = torch.get_rng_state()
    one = policy.generate(lm, tokenizer, INSTRUCTIONS, max_tokens=9, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert one == policy.generate(lm, tokenizer, INSTRUCTIONS, max_tokens=9, seed=3)
    assert one != policy.generate(lm, tokenizer, INSTRUCTIONS, max_tokens=9, seed=4)
    with pytest.raises(KitError, match="instruction i2: .* prompt tokens"):
        policy.generate(lm, tokenizer, [INSTRUCTIONS[2]], max_tokens=1010)


def test_shared_prompts_change_nothing(model):
    lm, tokenizer = model
    prompts = policy._prompt_ids(lm, tokenizer, INSTRUCTIONS[:3], 8)  # of three lengths
    alone = [policy._complete(lm, tokenizer, [p], 8, 0)[0] for p in prompts]
    assert policy._complete(lm, tokenizer, [prompts[k] for k in (2, 0, 2, 1, 0)], 8, 0) == [
        alone[k] for k in (2, 0, 2, 1, 0)
    ]


def small(**changes):
    values = {"grpo_steps": 3, "grpo_eval_every": 2, "grpo_max_tokens": 8, "grpo_lora_rank": 4,
              "grpo_learning_rate": 1e-2}
    return profiles.load("smoke", **{**values, **changes})


@pytest.mark.parametrize("rank", [0, 4])
def test_shared_prompt_log_probabilities_and_gradients_are_those_of_trl(tiny_base, tmp_path, rank):
    lm, tokenizer = policy.load_base(tiny_base, small())
    curve = policy._Curve(tmp_path, None, None)
    with policy.quiet():
        trainer = policy._trainer(lm, tokenizer, veto(None), INSTRUCTIONS, curve, tmp_path,
                                  small(grpo_lora_rank=rank), 0)
    rows = policy._prompt_ids(lm, tokenizer, INSTRUCTIONS[:3], 8)
    ids, mask = policy._left_padded([rows[k] for k in (2, 0, 2, 1)], tokenizer.pad_token_id, "cpu")
    answers = torch.randint(5, 300, (4, 6))
    present = torch.tensor([[1] * n + [0] * (6 - n) for n in (6, 2, 4, 5)])
    batch = torch.cat([ids, answers], 1), torch.cat([mask, present], 1), 6
    weights = [p for p in trainer.model.parameters() if p.requires_grad]
    found = {}
    assert len(weights) > 3
    for kind in (policy.SharedPromptTrainer, policy.GRPOTrainer):
        logps, entropy, _ = kind._get_per_token_logps_and_entropies(
            trainer, trainer.model, *batch, compute_entropy=True)
        grads = torch.autograd.grad((logps * present).sum(), weights, allow_unused=True)
        found[kind] = [logps * present, entropy * present, *(g for g in grads if g is not None)]
    ours, theirs = found.values()
    for a, b in zip(ours, theirs, strict=True):
        a, b = a.detach(), b.detach()
        assert torch.allclose(a, b, atol=1e-4 * max(1.0, b.abs().max().item()))


def test_a_narrow_nucleus_is_greedy_in_evaluation_and_in_training(tiny_base, tmp_path):
    lm, tokenizer = policy.load_base(tiny_base, small())
    greedy = policy.generate(lm, tokenizer, INSTRUCTIONS, max_tokens=8, temperature=0)
    free = policy.generate(lm, tokenizer, INSTRUCTIONS, max_tokens=8, seed=1)
    narrow = policy.generate(lm, tokenizer, INSTRUCTIONS, max_tokens=8, top_p=1e-6, seed=1)
    assert narrow == greedy != free
    with policy.quiet():
        trainer = policy._trainer(lm, tokenizer, veto(None), INSTRUCTIONS, policy._Curve(tmp_path, None, None),
                                  tmp_path, small(grpo_top_p=1e-6), 0)
    prompts = policy._prompt_ids(lm, tokenizer, INSTRUCTIONS[:3], 8)
    assert trainer._generate_single_turn(prompts)[0] == policy._complete(lm, tokenizer, prompts, 8, 0)


def by_letter(instruction_id, text):
    """A truth that can be read from any text: short texts are safe, an "e" is good."""
    met = ["e" in text, "o" in text, "a" in text, len(text) < 25, "z" not in text]
    return {f"{instruction_id}-{k}": "met" if m else "not_met" for k, m in enumerate(met)}


def letter_scores(text, criteria):
    return [1.0 if v == "met" else -1.0 for v in by_letter("x", text).values()]


def run(base, out, profile=None, table=letter_scores, judged=by_letter, **rest):
    return policy.train(base, Scorer(table), CALIBRATION, INSTRUCTIONS[:6], RUBRICS,
                        INSTRUCTIONS[6:], judged, by_letter, out, profile or small(), **rest)


@pytest.mark.parametrize("rank", [4, 0])
def test_training_runs_resumes_and_keeps_the_best_judged(
    tiny_base, tmp_path, rank, capfd, monkeypatch
):
    profile = small(grpo_lora_rank=rank)
    report = run(tiny_base, tmp_path / "whole", profile)
    assert capfd.readouterr().err == ""
    curve = pd.read_csv(tmp_path / "whole/curve.csv")
    assert list(curve.columns) == policy.CURVE and list(curve.step) == [0, 2, 3]
    assert set(curve.split) == {"checkpoint"} and curve.kl[0] == 0 and curve.kl[2] != 0
    # the reward model and the judge both read the truth here, so the three curves are one
    assert (curve.proxy == curve.gold).all() and (curve.judged == curve.gold).all()
    assert report["best"]["judged"] == pytest.approx(curve.judged.max(), abs=1e-5)
    log = pd.read_csv(tmp_path / "whole/training.csv")
    assert list(log.step) == [1, 2, 3] and {"kl", "entropy", "veto/rate", "reward_std"} <= set(log)
    assert sorted(f.name for f in (tmp_path / "whole").iterdir()) == [
        "curve.csv", "model", "report.json", "training.csv"
    ]
    for file in (tmp_path / "whole").rglob("*.json"):
        assert str(tmp_path.parent) not in file.read_text(), f"{file.name} names a local folder"

    # interrupted while evaluating step 2, and again after the last step: the same run
    calls = iter(range(100))

    def dies(instruction_id, text):
        if next(calls) == 6:
            raise KeyboardInterrupt
        return by_letter(instruction_id, text)

    with pytest.raises(KeyboardInterrupt):
        run(tiny_base, tmp_path / "resumed", profile, judged=dies)
    assert list((tmp_path / "resumed/trainer").glob("*/checkpoint-2/trainer_state.json"))
    assert not (tmp_path / "resumed/report.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(policy, "write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tiny_base, tmp_path / "resumed", profile)
    again = run(tiny_base, tmp_path / "resumed", profile)
    assert again["steps"] == 3
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "resumed/curve.csv"), curve)

    # complete: returned as stored; another fingerprint: trained again
    stored = json.loads((tmp_path / "whole/report.json").read_text())
    assert run(tiny_base, tmp_path / "whole", profile, table=None) == stored == report
    lm = policy.load_policy(tmp_path / "whole")
    base, tokenizer = policy.load_base(tiny_base, profile)
    frame = policy.evaluate(
        {"base": base, "policy": lm}, tokenizer, INSTRUCTIONS[6:], RUBRICS, by_letter, by_letter,
        max_tokens=8, seed=profile.seed, conditions={"i6": "flu"},
    )
    assert list(frame.columns) == [
        "policy", "instruction_id", "condition", "text", "s1", "s2", "s3", "violation", "unparsed",
        "judged_s1", "judged_s2", "judged_s3", "tokens", "finished",
    ]
    assert (frame.violation == (frame.s3 > 0)).all() and (frame.s3[~frame.finished] == 2).all()
    assert list(frame.condition[:2]) == ["flu", ""]
    best = frame[frame.policy == "policy"]  # the policy that was saved is the one that was selected
    assert best.s1.mean() == pytest.approx(report["best"]["proficiency"])
    assert best.violation.mean() == pytest.approx(report["best"]["violation_rate"])


def test_selected_by_judge_not_by_truth_or_reward_model(tiny_base, tmp_path):
    """The judge likes the 4 answers of step 0 alone; truth and reward model all but those."""

    def first_four(then, later):
        calls = iter(range(10_000))
        return lambda: then if next(calls) < 4 else later

    judge, gold, rm = first_four("met", "not_met"), first_four("not_met", "met"), first_four(-1, 1)
    profile = small(grpo_steps=2, grpo_eval_every=1)
    report = policy.train(
        tiny_base, Scorer(lambda *_: [rm()] * 5), CALIBRATION, INSTRUCTIONS[:6], RUBRICS,
        INSTRUCTIONS[6:], lambda i, _: dict.fromkeys([f"{i}-{k}" for k in range(5)], judge()),
        lambda i, _: dict.fromkeys([f"{i}-{k}" for k in range(5)], gold()), tmp_path, profile,
    )
    curve = pd.read_csv(tmp_path / "curve.csv")
    assert curve.judged.idxmax() == 0 and curve.gold.idxmax() > 0 and curve.proxy.idxmax() > 0
    assert report["best"]["step"] == 0
    base, saved = policy.load_base(tiny_base, profile)[0], policy.load_policy(tmp_path)
    for name, weight in base.state_dict().items():
        assert torch.equal(weight, saved.state_dict()[name]), "not the policy of step 0"


def test_a_reward_model_that_never_scores_is_an_error(tiny_base, tmp_path):
    def broken(text, criteria):
        raise RuntimeError("no such adapter")

    with pytest.raises(KitError, match="no such adapter"):
        run(tiny_base, tmp_path, table=broken)
    assert not (tmp_path / "report.json").exists()


def test_bad_input(tiny_base, tmp_path):
    with pytest.raises(KitError, match="fewer than grpo_prompts"):
        run(tiny_base, tmp_path, small(grpo_prompts=7))
    with pytest.raises(KitError, match="prompt tokens"):
        run(tiny_base, tmp_path, small(grpo_max_tokens=1020))
