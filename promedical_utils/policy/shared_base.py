"""One base, two adapters: policy, reward model and reference on the same, once loaded weights.

A reward model that was trained as an adapter is its base, a LoRA and a score head; a policy is the
same base and another LoRA; its reference is the base alone. So all three fit where one base does:

    trainer = GRPOTrainer(model=shared_base.load(base, dtype), peft_config=LoraConfig(...), ...)
    hub.in_full(trainer.model)
    rm = shared_base.attach(trainer.model, "runs/gpu/reward/criterion")  # scores as any other

The reward adapter hangs on the policy's layers for a forward pass alone. In between, the policy is
an ordinary PEFT model of one adapter, to optimiser, checkpoints and whoever else looks at it.
"""

import contextlib
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import AuxiliaryTrainingWrapper
from peft.utils.save_and_load import load_peft_weights

from promedical_utils.core.workspace import KitError, read_json, shown
from promedical_utils.reward_model import hub, packing
from promedical_utils.reward_model.model import RewardModel, of_report

NAME = "reward"  # the adapter's name, while it hangs on the policy
HEAD = "base_model.model.score.weight"  # the score head's name in the adapter's file
MASKED_4D = (packing.ATTENTION, "sdpa", "eager")  # attention that takes a mask as it is given


def load(base: Path | str, dtype: torch.dtype, quantization: str = "nf4"):
    """The base as a causal LM for a policy, its weights those of ``model.base_for``.

    ``dtype``: of ``hub.compute_dtype``; ``quantization``: "nf4" or "none".
    """
    return hub.load(hub.CAUSAL, base, dtype, quantization == "nf4", exact=True)


def check(path: Path | str, base: Path | str, dtype: torch.dtype, quantization: str) -> dict:
    """The report of the reward model in ``path``, if a policy on this base can share it.

    Else a KitError that says why not: it was trained whole, on another base or precision.
    """
    path = Path(path)
    report = read_json(path / "report.json", "03_reward_model")
    wanted = f"{quantization}, {str(dtype).removeprefix('torch.')}"
    trained = f"{report['quantization']}, {report['dtype']}"
    if report["full"]:
        reason = "all its weights were trained (full), so no base is left; take an adapter"
    elif hub.identity(hub.source_of(base, path)) != hub.identity(report["base"]):
        reason = "it was trained on another base: run 03_reward_model on the policy's"
    elif trained != wanted:
        reason = (
            f"it was trained on a base in {trained}, and the policy's is in {wanted}: give both "
            "the same quantization and precision"
        )
    else:
        return report
    raise KitError(f"the reward model {shown(path)} cannot share the policy's base: {reason}")


def attach(policy_model: PeftModel, path: Path | str) -> RewardModel:
    """The reward model in ``path`` on the base of ``policy_model``, which has a LoRA of its own.

    It scores as ``model.load(path)`` does: in eval mode, without gradients, and whatever the
    policy is at (training, generating, adapters off, autocast). After each forward pass, also one
    that raises, the policy is as it was before.

    Raises KitError where the base cannot be shared (see ``check``), or the policy changes it.
    """
    path = Path(path)
    _refuse_changed_base(policy_model)
    base = policy_model.get_base_model()
    report = check(path, base.name_or_path, base.dtype, _quantization(base))
    repacks = any(getattr(m, "support_avx512bf16_for_cpu", False) for m in base.modules())
    if base.config._attn_implementation not in MASKED_4D or repacks and base.device.type == "cpu":
        raise KitError(
            "the policy's base cannot be read as the reward model's: use shared_base.load"
        )
    weights = load_peft_weights(str(path), device="cpu")
    head = weights.pop(HEAD, None)
    if head is None:
        raise KitError(f"the adapter in {shown(path)} has no score head: train it again")
    # on the meta device, so that no weight is drawn
    score = torch.nn.Linear(head.shape[1], head.shape[0], bias=False, device="meta")
    score.load_state_dict({"weight": head.float().to(base.device)}, assign=True)
    model = _Reader(policy_model, _parts(policy_model, path, weights), score)
    return of_report(packing.read_many(model.requires_grad_(False).eval()), path, report)


@contextlib.contextmanager
def reference(policy_model: PeftModel):
    """Context in which the policy, which it yields, is its reference: the base, all adapters off.

    Unlike PEFT's ``disable_adapter`` it leaves ``requires_grad`` alone, so that a frozen policy
    stays one.
    """
    with _reading(policy_model, ()):
        yield policy_model


class _Reader(torch.nn.Module):
    """What ``packing.read_many`` takes for a model: a score head, and a body that is the policy's.

    ``parts``: (layer of the policy, A, B, scaling) of the reward adapter, which this module owns.
    """

    def __init__(self, policy_model: PeftModel, parts, score: torch.nn.Linear):
        super().__init__()
        self.score, self.dtype = score, policy_model.get_base_model().dtype
        self.adapter = torch.nn.ModuleList(module for _, *ab, _ in parts for module in ab)
        self.borrowed = (policy_model, parts)  # no submodule: train() and to() leave the policy be

    @property
    def device(self) -> torch.device:
        return self.borrowed[0].device

    def base_model(self, **inputs):
        """The body's output under the reward adapter."""
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
    """Inside, the layers read the adapter made of ``parts`` alone, or without any the base alone.

    Afterwards they read, and train, what they did before.
    """
    layers = _layers(policy_model)
    if any(layer.merged for layer in layers):
        raise KitError(
            "an adapter is merged into the shared base: load the policy anew, merge a copy"
        )
    with _restored(policy_model):
        for layer, a, b, scaling in parts:
            layer.lora_A[NAME], layer.lora_B[NAME], layer.scaling[NAME] = a, b, scaling
            layer.lora_dropout[NAME] = torch.nn.Identity()
        for layer in layers:
            layer.enable_adapters(bool(parts))
            layer.set_adapter(NAME, inference_mode=True)
        yield


@contextlib.contextmanager
def _restored(policy_model: PeftModel):
    """What is done to the adapters inside is undone: which are read, on, trained, and there.

    PEFT's own switches also set ``requires_grad`` of every adapter. A layer that is wrapped only
    inside reads in the end what the policy reads.
    """
    reads = policy_model.active_adapters
    before = {
        layer: (layer.active_adapters, layer.disable_adapters) for layer in _layers(policy_model)
    }
    trained = {weight: weight.requires_grad for weight in policy_model.parameters()}
    try:
        yield
    finally:
        for layer in _layers(policy_model):
            active, off = before.get(layer, (reads, False))
            layer.enable_adapters(not off)
            layer.set_adapter(active)
            for held in (*layer.adapter_layer_names, *layer.other_param_names):
                if NAME in getattr(layer, held):
                    del getattr(layer, held)[NAME]
        for weight, flag in trained.items():
            weight.requires_grad_(flag)


def _parts(policy_model: PeftModel, path: Path, weights: dict) -> list[tuple]:
    """(layer, A, B, scaling) of the adapter in ``path``: PEFT puts it up, and it is taken off."""
    config = LoraConfig.from_pretrained(path)
    config.inference_mode, config.modules_to_save = True, None  # a causal LM has no score head
    with _restored(policy_model), torch.random.fork_rng(devices=[]):
        # PEFT draws weights, which are then replaced
        policy_model.add_adapter(NAME, config)
        loaded = set_peft_model_state_dict(policy_model, weights, NAME)
        parts = [
            (layer, layer.lora_A[NAME], layer.lora_B[NAME], layer.scaling[NAME])
            for layer in _layers(policy_model)
            if NAME in layer.lora_A
        ]
        del policy_model.peft_config[NAME]
    if loaded.unexpected_keys or [key for key in loaded.missing_keys if f".{NAME}." in key]:
        raise KitError(f"the adapter in {shown(path)} does not fit its base: train it again")
    return parts


def _layers(policy_model: PeftModel) -> list[LoraLayer]:
    return [module for module in policy_model.modules() if isinstance(module, LoraLayer)]


def _refuse_changed_base(policy_model) -> None:
    """KitError for a policy whose base is not, or does not stay, the one that was loaded."""
    if not isinstance(policy_model, PeftModel):
        raise KitError("a policy without an adapter trains the base itself: set grpo_lora_rank")
    trained = [n for n, p in policy_model.named_parameters() if p.requires_grad]
    own = [n for n in trained if "lora_" not in n]
    own += [n for n, m in policy_model.named_modules() if isinstance(m, AuxiliaryTrainingWrapper)]
    if own:
        raise KitError(f"the policy trains {own[0]}, which is the base's: train LoRA weights alone")


def _quantization(model) -> str:
    """ "none", "nf4" as ``load`` makes it, or "other"."""
    config = getattr(model.config, "quantization_config", None)
    if config is None:
        return "none"
    own, loaded = hub.nf4_config(model.dtype).to_dict(), config.to_dict()
    return "nf4" if all(loaded.get(key) == own[key] for key in own) else "other"
