"""Policies over strategies: what they read, which one is the likeliest, what DPO does to it."""

import random

import pytest
import torch

from promedical_studies import seekers, strategy_policies
from promedical_studies.seekers import STRATEGIES, Simulated
from promedical_studies.strategy_search import Pair
from promedical_utils.policy import sft
from promedical_utils.reward_model import hub, packing

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def history():
    rng = random.Random(0)
    return seekers.dialogue(Simulated(("spleen", "ache"), rng), seekers.habitual(rng))


def logp(model, tokenizer, history, text: str) -> float:
    """log p of a text as the beginning of the next turn, read whole and without a cache."""
    prompt = packing.prompt_ids(tokenizer, strategy_policies.messages(history))
    tail = tokenizer(text, add_special_tokens=False).input_ids
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tail])).logits[0].float().log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + n, t]) for n, t in enumerate(tail))


def test_a_policy_reads_text_alone(history):
    said = strategy_policies.messages(history[:3])
    assert [m["role"] for m in said] == ["system", "user", "assistant", "user"]
    assert said[2]["content"] == f"({history[1].strategy}) {history[1].text}"
    assert all(name in said[0]["content"] for name in STRATEGIES) and "openness" not in str(said)
    taught = strategy_policies.written(history)
    assert [answer for _, answer in taught] == [
        strategy_policies.answer(turn) for turn in history if turn.strategy
    ]


def test_the_likeliest_strategy_is_that_of_whole_readings(tiny_base, history):
    model, tokenizer = hub.load(hub.CAUSAL, tiny_base, attention=None), hub.tokenizer_of(tiny_base)
    for turns in range(1, len(history), 2):
        own = history[:turns]
        by_hand = max(STRATEGIES, key=lambda s, own=own: logp(model, tokenizer, own, f"({s})"))
        assert strategy_policies.likeliest(model, tokenizer, own) == by_hand


def test_dpo_moves_the_policy_to_what_is_preferred(tiny_base, tiny_profile, tmp_path, history):
    p = tiny_profile.model_copy(update={"dpo_learning_rate": 1e-3})
    chosen, rejected = (
        seekers.Turn(name, seekers.TEXTS["turns"][name][1])
        for name in ("Emotional Validation", "Collaborative Planning")
    )
    pairs = [Pair(history[:n], chosen, rejected) for n in range(1, len(history), 2)]
    out = strategy_policies.align(tiny_base, pairs, p, 6, tmp_path / "cso")

    def margin(folder):
        model, tokenizer = hub.load(hub.CAUSAL, folder, attention=None), hub.tokenizer_of(folder)
        texts = [strategy_policies.answer(turn) for turn in (chosen, rejected)]
        high, low = (logp(model, tokenizer, history[:1], text) for text in texts)
        return high - low

    assert margin(out) > margin(tiny_base) + 1
    assert not (out / "trainer").exists()
    report = sft.train(out, strategy_policies.written(history), p, tmp_path / "preferred")
    assert report["pairs"] + report["left_out"] == sum(bool(turn.strategy) for turn in history)
