"""Generation: that of transformers, whatever the batch, and draws that follow the distribution."""

from types import SimpleNamespace

import pytest
import torch
from helpers.policies import INSTRUCTIONS, small

from promedical_utils.core.workspace import KitError
from promedical_utils.policy import generation
from promedical_utils.policy import model as policy
from promedical_utils.reward_model import packing


@pytest.fixture(scope="module")
def model(tiny_base):
    return policy.load_base(tiny_base, small(grpo_lora_rank=0))


def generate(lm, tokenizer, instructions, max_tokens, temperature=1.0, top_p=1.0, seed=0):
    names = {"grpo_temperature": temperature, "grpo_top_p": top_p}
    profile = SimpleNamespace(grpo_max_tokens=max_tokens, **names)
    return generation.generate(lm, tokenizer, instructions, profile, seed)


def test_generate_is_that_of_transformers_and_repeatable(model, monkeypatch):
    lm, tokenizer = model
    monkeypatch.setattr(generation, "BATCH", 4)
    answers = generate(lm, tokenizer, INSTRUCTIONS, max_tokens=9, temperature=0)
    for instruction, answer in zip(INSTRUCTIONS, answers, strict=True):
        messages = generation.messages_of(instruction)
        ids = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        alone = lm.generate(**ids, max_new_tokens=9, do_sample=False)[
            0, ids["input_ids"].shape[1] :
        ]
        assert answer.text == tokenizer.decode(alone, skip_special_tokens=True)
        assert answer.finished == (tokenizer.eos_token_id in alone)
        assert len(answer.ids) == len(alone)
        assert (
            answer.prompt == packing.prompt_ids(tokenizer, messages) == ids["input_ids"][0].tolist()
        )
    state = torch.get_rng_state()
    one = generate(lm, tokenizer, INSTRUCTIONS, max_tokens=9, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert one != generate(lm, tokenizer, INSTRUCTIONS, max_tokens=9, seed=4)
    for training in (True, False):  # an evaluation in between leaves a policy in training
        lm.train(training)
        generate(lm, tokenizer, INSTRUCTIONS[:1], max_tokens=2)
        assert lm.training is training
    with pytest.raises(KitError, match="instruction i2: .* prompt tokens"):
        generate(lm, tokenizer, [INSTRUCTIONS[2]], max_tokens=1010)


def test_every_declared_end_token_ends_an_answer():
    def ends(tokenizer, model):
        return generation.eos_ids(
            SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=model)),
            SimpleNamespace(eos_token_id=tokenizer),
        )

    assert ends(7, 5) == [5, 7] and ends(7, [9, 5]) == [5, 7, 9] and ends(7, None) == [7]


def test_an_answer_depends_on_its_own_seed_and_not_on_the_batch(model, monkeypatch):
    lm, tokenizer = model
    whole = generate(lm, tokenizer, INSTRUCTIONS, max_tokens=9, seed=3)
    for batch in (1, 3):
        monkeypatch.setattr(generation, "BATCH", batch)
        assert generate(lm, tokenizer, INSTRUCTIONS, max_tokens=9, seed=3) == whole
    monkeypatch.undo()
    some = [INSTRUCTIONS[k] for k in (7, 2)]
    assert generate(lm, tokenizer, some, max_tokens=9, seed=3) == [whole[7], whole[2]]
    # twice the same prompt in one batch: two draws
    twice = generate(lm, tokenizer, [INSTRUCTIONS[0]] * 2, max_tokens=9, seed=3)
    assert twice[0] != twice[1]


def test_shared_prompts_change_nothing(model):
    lm, tokenizer = model
    prompts = generation.prompts_of(lm, tokenizer, INSTRUCTIONS[:3], 8)  # of three lengths
    alone = [generation.complete(lm, tokenizer, [p], 8, 0)[0] for p in prompts]
    rows = [prompts[k] for k in (2, 0, 2, 1, 0)]
    assert generation.complete(lm, tokenizer, rows, 8, 0) == [alone[k] for k in (2, 0, 2, 1, 0)]
    # sampled: the streams go by prompt, in the order of first occurrence, wherever its rows stand
    mixed = generation.complete(lm, tokenizer, rows, 8, 1.0, 1.0, [12, 10, 11])
    for place, seed in ((0, 10), (1, 11), (2, 12)):
        own = [row for row, k in zip(mixed, (2, 0, 2, 1, 0), strict=True) if k == place]
        assert own == generation.complete(
            lm, tokenizer, [prompts[place]] * len(own), 8, 1.0, 1.0, [seed]
        )


def test_seeded_sampling_draws_from_the_tempered_nucleus():
    scores = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    rows = torch.zeros(20_000, dtype=torch.long)
    for temperature, top_p, wanted in (
        (1.0, 1.0, [0.5, 0.3, 0.15, 0.05]),
        (0.5, 1.0, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
        (1.0, 0.75, [0.5 / 0.8, 0.3 / 0.8, 0.0, 0.0]),
    ):
        draw = generation.SeededSampling(rows, [1], temperature, top_p)
        many = draw(None, scores.expand(len(rows), 4).clone()).argmax(-1)
        shares = torch.bincount(many, minlength=4) / len(rows)
        assert torch.allclose(shares, torch.tensor(wanted), atol=0.012)
        assert not (shares[torch.tensor(wanted) == 0] > 0).any()


def test_a_narrow_nucleus_is_greedy(model):
    lm, tokenizer = model
    greedy = generate(lm, tokenizer, INSTRUCTIONS, max_tokens=8, temperature=0)
    free = generate(lm, tokenizer, INSTRUCTIONS, max_tokens=8, seed=1)
    narrow = generate(lm, tokenizer, INSTRUCTIONS, max_tokens=8, top_p=1e-6, seed=1)
    assert narrow == greedy != free
