"""The one loader of a base or of another's model, by hub id or folder, and what is known of it."""

import hashlib
import logging
import os
import warnings
from pathlib import Path

import huggingface_hub.constants
import torch
import transformers
from peft import PeftModel

from promedical_utils.core import machine
from promedical_utils.core.workspace import KitError, need, shown
from promedical_utils.reward_model import packing

CAUSAL = transformers.AutoModelForCausalLM
CLASSIFIER = transformers.AutoModelForSequenceClassification
huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL reports each trainer that is made
# PEFT reads an attribute that transformers has renamed; the warning shows where this machine has it
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)


def load(
    kind,
    source: Path | str,
    dtype: torch.dtype = torch.float32,
    nf4: bool = False,
    *,
    attention: str | None = packing.ATTENTION,
    published: bool = False,
    **settings,
):
    """The model ``source`` of ``kind``, CAUSAL or CLASSIFIER, on the GPU if there is one.

    ``nf4``: 4-bit NormalFloat weights (Dettmers et al. 2023), computed in ``dtype``.
    ``published``: weights that the folder lacks are an error, not drawn at random. KitError where
    the model cannot be had.
    """
    silence()
    four_bit = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        # a causal LM's head stays whole unasked
        llm_int8_skip_modules=["score"] if kind is CLASSIFIER else None,
    )
    try:
        model, loading = kind.from_pretrained(
            source,
            dtype=dtype,
            attn_implementation=attention,
            quantization_config=four_bit if nf4 else None,
            output_loading_info=True,
            **settings,
        )
    except (OSError, ValueError, ImportError) as error:  # not there, gated; of another kind
        raise _unloadable(source, error) from None
    if published and (missing := sorted(loading["missing_keys"])):
        raise KitError(f"{named(source)} lacks weights of its architecture: {missing[0]}")
    if not nf4:
        model.to("cuda" if torch.cuda.is_available() else "cpu")
    # left alone, bitsandbytes repacks 4-bit layers in eval (on AVX512-BF16) for a kernel without a
    # backward pass: gradients after a generation are wrong without a word
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if kind is CLASSIFIER:
        if not hasattr(model, "score"):
            kind = f"{named(source)} ({model.config.model_type})"
            raise KitError(f"{kind} has no score head at the last token: name a decoder with one")
        model.score.float()  # bf16 scores tie, and a tie counts as wrong
    return model


def plain_tokenizer(source: Path | str):
    """The tokenizer of ``source`` as it is; KitError where it cannot be had."""
    try:
        return transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, ImportError) as error:
        raise _unloadable(source, error) from None


def tokenizer_of(base: Path | str):
    """The base's tokenizer with a pad token; KitError without a chat template or an end token."""
    tokenizer = plain_tokenizer(base)
    if not tokenizer.chat_template or tokenizer.eos_token_id is None:
        raise KitError("base_model's tokenizer has no chat template or end token: use a chat model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def named(source: Path | str) -> str:
    """A model as it may be printed: its hub id, or its folder without a machine's path."""
    local = Path(source).is_absolute() or Path(source).is_dir()
    return shown(Path(source)) if local else str(source)


def _unloadable(source: Path | str, error: Exception) -> KitError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    mend = "check the hub id and the network (for a base model, BASE=small needs neither)"
    mend = "install that package" if isinstance(error, ImportError) else mend
    reason = reason.replace(str(source), named(source))
    return KitError(f"{named(source)} cannot be loaded: {reason}; {mend}")


def source_of(base: Path | str, out: Path) -> dict:
    """Where the base is, with no machine path: a hub id, or a folder relative to ``out``."""
    if isinstance(base, str) and not Path(base).is_dir():
        return {"hub": base}
    base, digest = need(Path(base), "00_start_here"), hashlib.sha256()
    for file in sorted([*base.glob("*.safetensors"), base / "tokenizer.json"]):
        with need(file, "00_start_here").open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    folder = Path(os.path.relpath(base.resolve(), Path(out).resolve())).as_posix()
    return {"folder": folder, "sha256": digest.hexdigest()}


def identity(source: dict) -> str:
    """What a base is, wherever it lies: the hash of its files, or its hub id."""
    return source.get("sha256") or source["hub"]


def compute_dtype(precision: str) -> torch.dtype:
    """What a pass computes in, see ``machine.precision``."""
    known = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    return known[machine.precision(precision)]


def trainer_settings(dtype: torch.dtype, seed: int) -> dict:
    """What every trainer here is told: device, mixed precision in ``dtype``, no bars or reports."""
    gpu = torch.cuda.is_available()
    # unless told, TRL switches bf16 on, on a CPU too
    precision = {"bf16": dtype is torch.bfloat16, "fp16": dtype is torch.float16}
    place = {"use_cpu": not gpu, "dataloader_pin_memory": gpu}
    return precision | place | {"disable_tqdm": True, "report_to": "none", "seed": seed}


def held_dtype(precision: str) -> torch.dtype:
    """What frozen weights are held in: what a GPU computes in; fp32 on a CPU, where autocast rounds
    what a product takes, and sums, norms and residuals stay whole."""
    return compute_dtype(precision) if torch.cuda.is_available() else torch.float32


def in_full(model: torch.nn.Module) -> None:
    """Put what is trained back to fp32, in place, once the trainer is made: TRL casts the adapter
    of a quantised base to bf16, in which an update below 1/256 of its weight is lost."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def save(model: torch.nn.Module, folder: Path, base: str) -> None:
    """The weights, or of an adapter the one called default, whose base is written as ``base``."""
    if not isinstance(model, PeftModel):
        model.save_pretrained(folder)
        return
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card names this machine


def silence() -> None:
    """No more notices, bars or deprecations of the libraries; errors still come through."""
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ("trl", "peft", "accelerate", "torchao", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="torch|trl|peft|transf")
