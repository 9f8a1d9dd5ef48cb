"""Muon and AdamW as one optimiser: who gets what, and a checkpoint that goes on."""

import copy

import torch
from transformers import LlamaConfig, LlamaForSequenceClassification

from promedical_utils.reward_model.optimizer import MuonAdamW


def small(seed: int = 0):
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(
        LlamaConfig(
            vocab_size=20,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_labels=1,
            pad_token_id=0,
        )
    )


def step(model, optimizer, seed: int) -> None:
    ids = torch.randint(1, 20, (2, 5), generator=torch.Generator().manual_seed(seed))
    model(input_ids=ids).logits.square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def test_matrices_take_muon_and_all_else_adamw():
    model = small()
    named = {id(p): n for n, p in model.named_parameters()}
    model.model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    groups = MuonAdamW(model, 1e-3, 1e-2).param_groups
    names = {g["part"]: [named[id(p)] for p in g["params"]] for g in groups}
    assert {g["part"]: g["lr"] for g in groups} == {"muon": 1e-3, "adamw": 1e-2}
    assert len(names["muon"]) == 6 and all("proj" in n for n in names["muon"])
    assert set(names["adamw"]) == {n for n in named.values() if "proj" not in n}


def test_an_adapter_alone_is_all_muons():
    model = small()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("q_proj" in name)
    before = model.model.layers[0].self_attn.q_proj.weight.clone()
    optimizer = MuonAdamW(model, 1e-3, 1e-2)
    assert [g["part"] for g in optimizer.param_groups] == ["muon"]
    step(model, optimizer, 0)
    assert not torch.equal(model.model.layers[0].self_attn.q_proj.weight, before)


def test_first_steps_have_the_size_that_the_rate_says():
    model = small()
    before = copy.deepcopy(model.state_dict())
    optimizer = MuonAdamW(model, 1e-3, 1e-2)
    step(model, optimizer, 1)
    moved = {n: p.detach() - before[n] for n, p in model.named_parameters()}
    # Muon: every direction of the gradient moves alike, by 0.2 x rate x sqrt(16) at Moonshot's
    # scale
    sizes = torch.linalg.svdvals(moved["model.layers.0.mlp.up_proj.weight"]) / (0.2 * 1e-3 * 4)
    assert 0.6 < sizes[0] < 1.3 and sizes[2] > 0.3
    # AdamW: the first step is the rate itself, whatever the gradient
    assert abs(moved["score.weight"].abs().max().item() - 1e-2) < 1e-3


def test_a_checkpoint_goes_on_as_if_nothing_had_happened():
    whole = small()
    optimizer = MuonAdamW(whole, 1e-3, 1e-2)
    for seed in range(3):
        step(whole, optimizer, seed)
    resumed, state = copy.deepcopy(whole), copy.deepcopy(optimizer.state_dict())
    again = MuonAdamW(resumed, 1e-3, 1e-2)
    again.load_state_dict(state)
    for group in [*optimizer.param_groups, *again.param_groups]:
        group["lr"] *= 0.5  # as a schedule does, on the groups that the Trainer sees
    for seed in (3, 4):
        step(whole, optimizer, seed)
        step(resumed, again, seed)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)
