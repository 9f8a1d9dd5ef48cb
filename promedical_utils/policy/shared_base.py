"""One base, two adapters: policy, reward model and reference on the same, once loaded weights.

The reward adapter hangs on the policy's layers for a forward pass alone. In between, the policy is
an ordinary PEFT model of one adapter, to optimiser, checkpoints and whoever else looks at it.
"""

import contextlib
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.utils.save_and_load import load_peft_weights

from promedical_utils.core.workspace import KitError, read_json, shown
from promedical_utils.reward_model import hub, packing
from promedical_utils.reward_model.model import RewardModel, of_report

NAME = "reward"  # the adapter's name, while it hangs on the policy
HEAD = "base_model.model.score.weight"  # the score head's name in the adapter's file


def attach(policy_model: PeftModel, path: Path | str) -> RewardModel:
    """The reward model in ``path`` on the base of ``policy_model``.

    It scores as ``model.load(path)`` does, whatever the policy is at (training, generating,
    adapters off, autocast), and leaves it as it was. KitError where it was trained whole, on
    another base or precision, or its weights do not fit, and where the policy changes the base: by
    weights of its own, or a LoRA that is merged.
    """
    path, base = Path(path), policy_model.get_base_model()
    report = read_json(path / "report.json", "03_reward_model")
    refused = f"the reward model {shown(path)} cannot share the policy's base:"
    if report["full"]:
        raise KitError(f"{refused} all its weights were trained (full); take an adapter")
    if hub.identity(hub.source_of(base.name_or_path, path)) != hub.identity(report["base"]):
        raise KitError(f"{refused} it was trained on another: run 03_reward_model on the policy's")
    nf4 = getattr(base.config, "quantization_config", None) is not None
    own = f"{'nf4' if nf4 else 'none'}, {str(base.dtype).removeprefix('torch.')}"
    trained = f"{report['quantization']}, {report['dtype']}"
    if own != trained:
        raise KitError(
            f"{refused} it was trained on a base in {trained}, and the policy's is in {own}: give "
            "both the same quantization and precision"
        )
    for name, weight in policy_model.named_parameters():
        if weight.requires_grad and "lora_" not in name:
            raise KitError(f"{refused} the policy trains {name} of it; train LoRA weights alone")
    layers, config = _layers(policy_model), LoraConfig.from_pretrained(path)
    if merged := [name for name, layer in layers.items() if layer.merged]:
        raise KitError(f"{refused} the policy's LoRA is merged into {merged[0]}; unmerge it")
    taught = tuple(f".{name}" for name in config.target_modules)  # all of the policy's, or a part
    layers = {name: layer for name, layer in layers.items() if name.endswith(taught)}
    weights = load_peft_weights(str(path), device="cpu")
    names = {f"{name}.lora_{half}.weight" for name in layers for half in "AB"}
    if weights.keys() != {HEAD, *names}:
        raise KitError(f"the adapter in {shown(path)} does not fit its base: train it again")
    parts = []
    for name, layer in layers.items():
        halves = (_linear(weights[f"{name}.lora_{half}.weight"], base.device) for half in "AB")
        parts.append((layer, *halves, config.lora_alpha / config.r))
    score = _linear(weights[HEAD], base.device)
    model = _Reader(policy_model, parts, score).requires_grad_(False).eval()
    return of_report(packing.read_many(model), path, report)


@contextlib.contextmanager
def reference(policy_model: PeftModel):
    """Context in which the policy, which it yields, is its reference: the base, all adapters off.
    Unlike PEFT's ``disable_adapter`` it leaves ``requires_grad`` alone."""
    with _reading(policy_model, ()):
        yield policy_model


class _Reader(torch.nn.Module):
    """A score head and the policy's body, as ``packing.read_many`` takes a model; ``parts``: (layer
    of the policy, A, B, scaling) of the reward adapter, which this module owns."""

    def __init__(self, policy_model: PeftModel, parts, score: torch.nn.Linear):
        super().__init__()
        base = policy_model.get_base_model()
        self.score, self.dtype, self.config = score, base.dtype, base.config
        self.adapter = torch.nn.ModuleList(module for _, *ab, _ in parts for module in ab)
        self.borrowed = (policy_model, parts)  # no submodule: train() and to() leave the policy be

    @property
    def device(self) -> torch.device:
        return self.borrowed[0].device

    def base_model(self, **inputs):
        policy_model, parts = self.borrowed
        body = policy_model.get_base_model().base_model
        modes = [(module, module.training) for module in body.modules()]
        plain = torch.autocast(self.device.type, enabled=False)  # a loaded model is under none
        try:
            with torch.no_grad(), plain, _reading(policy_model, parts):
                return body.eval()(**inputs)
        finally:
            for module, mode in modes:
                module.training = mode


@contextlib.contextmanager
def _reading(policy_model: PeftModel, parts):
    """Inside, the layers read the adapter made of ``parts`` alone, or without any the base alone;
    afterwards they read, and train, what they did before."""
    layers = _layers(policy_model).values()
    before = [(layer, layer.active_adapters, layer.disable_adapters) for layer in layers]
    trained = {weight: weight.requires_grad for weight in policy_model.parameters()}
    try:
        for layer, a, b, scaling in parts:
            layer.lora_A[NAME], layer.lora_B[NAME], layer.scaling[NAME] = a, b, scaling
            layer.lora_dropout[NAME] = torch.nn.Identity()
        for layer in layers:
            layer.enable_adapters(bool(parts))
            layer.set_adapter(NAME, inference_mode=True)
        yield
    finally:
        for layer, active, off in before:
            layer.enable_adapters(not off)
            layer.set_adapter(active)
        for layer, *_ in parts:
            for held in (layer.lora_A, layer.lora_B, layer.scaling, layer.lora_dropout):
                held.pop(NAME)
        for weight, flag in trained.items():
            weight.requires_grad_(flag)


def _layers(policy_model: PeftModel) -> dict[str, LoraLayer]:
    return {name: m for name, m in policy_model.named_modules() if isinstance(m, LoraLayer)}


def _linear(weight: torch.Tensor, device) -> torch.nn.Linear:
    """A layer of this weight, in fp32; made on the meta device, so that no weight is drawn."""
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.load_state_dict({"weight": weight.float().to(device)}, assign=True)
    return layer
