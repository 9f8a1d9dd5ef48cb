"""The base of random weights: its tokenizer, its sizes, and that it loads as a hub model does."""

import pytest
import torch

from promedical_utils.core import profiles
from promedical_utils.policy import small_base
from promedical_utils.reward_model import hub

TEXTS = ["Take no more than 40 drops a day.", "Bring the diary and leave the purse at home."] * 20


@pytest.fixture(scope="module")
def profile():
    return profiles.load("smoke", base_layers=3, base_width=64, base_vocabulary=300)


@pytest.fixture(scope="module")
def tokenizer(profile):
    return small_base.train_tokenizer(TEXTS, profile.base_vocabulary)


def test_the_tokenizer_loses_nothing_and_keeps_to_its_size(tokenizer):
    assert len(tokenizer) == 300
    for text in (*TEXTS[:2], "Ärztin 日本 \n\t ok"):
        assert tokenizer.decode(tokenizer(text).input_ids) == text
    asked = [{"role": "user", "content": "Hi"}]
    said = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert said == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id


def test_the_model_has_the_profiles_sizes_and_comes_back_as_a_hub_model(
    tokenizer, profile, tmp_path
):
    model = small_base.new_model(tokenizer, profile)
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (3, 64)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    again = hub.load(hub.CAUSAL, tmp_path, attention=None)
    ids = torch.tensor([tokenizer(TEXTS[0]).input_ids])
    torch.testing.assert_close(again(ids).logits, model(ids).logits, atol=1e-5, rtol=0)
    assert hub.plain_tokenizer(tmp_path)(TEXTS[1]).input_ids == tokenizer(TEXTS[1]).input_ids
    same, other = (
        small_base.new_model(tokenizer, profile.model_copy(update={"seed": seed}))
        for seed in (profile.seed, profile.seed + 1)
    )
    weights = [m.get_input_embeddings().weight for m in (model, same, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
