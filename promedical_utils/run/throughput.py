"""Tokens a second of a profile's reward model on this machine, in a few seconds.

Of its base's shape with random weights: time does not hang on what they are. Layers cost the same,
so four are timed, and the score head reads no vocabulary.
"""

import tempfile
import time
from collections.abc import Callable

from promedical_utils.core.profiles import Profile
from promedical_utils.core.workspace import KitError

LAYERS, SECONDS = 4, 1.0
SHARED, CRITERION, CRITERIA = 250, 22, 7  # tokens of a packed answer: as in the real sets


def measure(profile: Profile) -> tuple[float, float]:
    """(tokens trained on, tokens scored) a second, packed, at the profile's quantization,
    precision and adapter; KitError where the base's shape cannot be had."""
    import torch  # this and what follows load torch, which only the extra train has
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    from promedical_utils.reward_model import grouped, hub, packing
    from promedical_utils.reward_model.model import base_for

    hub.silence()
    p, shape = profile, _shape(profile)
    layers = shape.num_hidden_layers
    shape.update({"num_hidden_layers": min(LAYERS, layers), "vocab_size": 1024, "pad_token_id": 0})
    shape.layer_types = (getattr(shape, "layer_types", None) or [])[:LAYERS] or None
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(shape).save_pretrained(folder)
        model = base_for(folder, p.quantization == "nf4", hub.held_dtype(p.precision))
    model = get_peft_model(model, grouped.lora(p.rm_lora_rank, targets=p.rm_lora_targets))
    hub.in_full(model)
    starts = [SHARED + n * CRITERION for n in range(CRITERIA + 1)]
    answers = max(1, min(2048, p.rm_pass_tokens) // starts[-1])
    parts = [packing.Packed([5 + n % 900 for n in range(starts[-1])], starts)] * answers
    batch = {k: v.to(model.device) for k, v in packing.collate(parts, 0).items()}
    dtype, kind = hub.compute_dtype(p.precision), model.device.type
    rounded = torch.autocast(kind, dtype, enabled=dtype != torch.float32)

    def train():
        with rounded:
            loss = model(**batch).logits.square().mean()
        loss.backward()
        torch.cuda.synchronize() if kind == "cuda" else None

    @torch.no_grad()
    def score():
        with rounded:
            model(**batch).logits.tolist()

    tokens = answers * starts[-1] * min(LAYERS, layers) / layers
    return tokens / _seconds(train), tokens / _seconds(score)


def _seconds(work: Callable) -> float:
    """Of one call, after a first one, as a mean over ``SECONDS`` at least."""
    work()
    start, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - start < SECONDS:
        work()
        calls += 1
    return (time.perf_counter() - start) / calls


def _shape(profile: Profile):
    from transformers import AutoConfig, LlamaConfig, Qwen3Config

    from promedical_utils.reward_model import smollm2

    p = profile
    if p.base_model == "smollm2":
        return smollm2.shape(p.base_layers)
    if p.base_model == "small":
        of = Qwen3Config if p.base_architecture == "qwen3" else LlamaConfig
        heads = p.base_width // 32
        return of(
            hidden_size=p.base_width,
            intermediate_size=3 * p.base_width,
            num_hidden_layers=p.base_layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            head_dim=32,
        )
    try:
        return AutoConfig.from_pretrained(p.base_model)
    except (OSError, ValueError):
        raise KitError(f"the shape of {p.base_model} cannot be had from the hub") from None
