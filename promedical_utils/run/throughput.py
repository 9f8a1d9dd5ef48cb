"""Tokens a second of a profile's reward model on this machine, in a few seconds."""

import tempfile
import time
import timeit

from promedical_utils.core.profiles import Profile
from promedical_utils.core.workspace import KitError

LAYERS, CALLS = 4, 4  # layers cost the same, so these few are timed; of the calls the quickest
STARTS = list(range(250, 250 + 7 * 22 + 1, 22))  # of seven criteria, as in the real sets


def measure(profile: Profile) -> float:
    """Tokens that it trains on in a second: packed, of the base's shape with random weights, at the
    profile's quantization, precision and adapter. KitError where the shape cannot be had."""
    import torch  # this and what follows are slow to load, and of the extra train
    from peft import get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, Qwen3Config

    from promedical_utils.reward_model import grouped, hub, packing, smollm2
    from promedical_utils.reward_model.model import base_for

    hub.silence()
    p, width = profile, profile.base_width
    if p.base_model == "small":
        heads = {"num_attention_heads": width // 32, "num_key_value_heads": width // 32}
        shape = Qwen3Config(hidden_size=width, intermediate_size=3 * width, head_dim=32, **heads)
    else:
        source, gguf = smollm2.find()[:2] if p.base_model == "smollm2" else (p.base_model, None)
        try:
            shape = AutoConfig.from_pretrained(source, gguf_file=gguf)
        except (OSError, ValueError):
            raise KitError(f"the shape of {p.base_model} cannot be had from the hub") from None
    layers = p.base_layers or shape.num_hidden_layers
    timed = min(LAYERS, layers)  # the score head reads no vocabulary
    few = {"num_hidden_layers": timed, "vocab_size": 1024, "pad_token_id": 0, "layer_types": None}
    shape = type(shape).from_dict(shape.to_dict() | few)
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
        model = base_for(folder, p.quantization == "nf4", hub.held_dtype(p.precision))
    model = get_peft_model(model, grouped.lora(p.rm_lora_rank, targets=p.rm_lora_targets))
    hub.in_full(model)
    answers = max(1, min(2048, p.rm_pass_tokens) // STARTS[-1])
    batch = packing.collate([packing.Packed([5] * STARTS[-1], STARTS)] * answers, 0)
    batch = {name: part.to(model.device) for name, part in batch.items()}
    dtype = hub.compute_dtype(p.precision)

    def step():
        with torch.autocast(model.device.type, dtype, enabled=dtype != torch.float32):
            loss = model(**batch).logits.square().mean()
        loss.backward()
        model.base_model.model.score.weight.sum().item()  # a GPU is waited for

    seconds = min(timeit.repeat(step, timer=time.perf_counter, repeat=CALLS, number=1))
    return answers * STARTS[-1] * timed / layers / seconds
