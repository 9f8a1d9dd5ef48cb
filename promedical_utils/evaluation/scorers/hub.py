"""Models of others by hub id (or folder), loaded as published: none of their weights is new.

Heads work in fp32 whatever the body does: bf16 logits tie, and a tie counts as wrong.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from promedical_utils.core.workspace import KitError, shown
from promedical_utils.reward_model import packing
from promedical_utils.reward_model.model import BATCH_TOKENS


def classifier(source: Path | str, outputs: int, nf4: bool = False, dtype=torch.float32):
    """(model, tokenizer) of a sequence classifier that has ``outputs`` labels."""
    model, tokenizer = _load(AutoModelForSequenceClassification, source, nf4, dtype, "score")
    if model.config.num_labels != outputs:
        raise KitError(f"{_said(source)} has {model.config.num_labels} labels, not {outputs}")
    model.score.float()
    return packing.read_many(model), tokenizer


def generator(source: Path | str, nf4: bool = False, dtype=torch.float32):
    """(model, tokenizer) of a causal language model; its head may be tied to its embeddings."""
    return _load(AutoModelForCausalLM, source, nf4, dtype, "lm_head")


def _load(kind, source: Path | str, nf4: bool, dtype, head: str):
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=[head],
    )
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model, info = kind.from_pretrained(
            source,
            dtype=dtype,
            attn_implementation=packing.ATTENTION,
            output_loading_info=True,
            quantization_config=quantization if nf4 else None,
        )
    except (OSError, ValueError) as error:  # not there, gated, no network; another architecture
        first = (str(error).splitlines() or [type(error).__name__])[0]
        said = first.replace(str(source), _said(source))  # no machine's path
        raise KitError(f"{_said(source)} cannot be loaded: {said}") from None
    if missing := sorted(info["missing_keys"]):  # transformers would draw them at random
        raise KitError(f"{_said(source)} lacks weights of its architecture: {missing[0]}")
    if not nf4:
        model.to("cuda" if torch.cuda.is_available() else "cpu")
    return model.eval(), tokenizer


def limit_of(model, max_tokens: int | None) -> int:
    """``max_tokens``, or what the model has positions for; never more than these."""
    positions = model.config.max_position_embeddings
    return min(max_tokens or positions, positions)


def logits(model, sequences: Sequence[list[int]], outputs: int, batch_tokens: int | None = None):
    """Logits of a ``classifier`` at each sequence's last token: a list of ``outputs`` floats
    each."""
    packed = [packing.Packed(ids, [len(ids)], tuple(range(outputs))) for ids in sequences]
    budget = batch_tokens or BATCH_TOKENS.get(model.device.type, 8192)
    return packing.scores(model, packed, model.config.pad_token_id or 0, budget)


@torch.no_grad()
def next_logits(
    model, sequences: Sequence[list[int]], tokens: Sequence[int], batch_tokens: int | None = None
) -> list[list[float]]:
    """Logits of ``tokens`` as the next one after each sequence, in order.

    Padded on the right, which no token of a causal model sees.
    """
    budget = batch_tokens or BATCH_TOKENS.get(model.device.type, 8192)
    rows = model.get_output_embeddings().weight[list(tokens)].float()  # (tokens, width)
    values: list[list[float]] = [[] for _ in sequences]
    for batch in packing.batches([len(s) for s in sequences], budget):
        longest = max(len(sequences[i]) for i in batch)
        ids = torch.tensor([sequences[i] + [0] * (longest - len(sequences[i])) for i in batch])
        ends = torch.tensor([len(sequences[i]) - 1 for i in batch])
        mask = torch.arange(longest) <= ends[:, None]
        hidden = model.base_model(
            input_ids=ids.to(model.device),
            attention_mask=mask.long().to(model.device),
            use_cache=False,
        ).last_hidden_state[torch.arange(len(batch)), ends.to(model.device)]  # (B, width)
        for i, found in zip(batch, (hidden.float() @ rows.T).tolist(), strict=True):
            values[i] = found
    return values


def _said(source: Path | str) -> str:
    return shown(Path(source)) if Path(source).is_dir() else str(source)
