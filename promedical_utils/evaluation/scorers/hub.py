"""Models of others by hub id (or folder), loaded as published: none of their weights is new.

Heads work in fp32 whatever the body does: bf16 logits tie, and a tie counts as wrong.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from promedical_utils.core.workspace import KitError
from promedical_utils.reward_model import hub, packing
from promedical_utils.reward_model.model import BATCH_TOKENS


def classifier(source: Path | str, outputs: int, nf4: bool = False, dtype=torch.float32):
    """(model, tokenizer) of a sequence classifier that has ``outputs`` labels."""
    tokenizer = hub.plain_tokenizer(source)
    model = hub.load(hub.CLASSIFIER, source, dtype, nf4, published=True).eval()
    if model.config.num_labels != outputs:
        raise KitError(f"{hub.named(source)} has {model.config.num_labels} labels, not {outputs}")
    return packing.read_many(model), tokenizer


def generator(source: Path | str, nf4: bool = False, dtype=torch.float32):
    """(model, tokenizer) of a causal language model; its head may be tied to its embeddings."""
    tokenizer = hub.plain_tokenizer(source)
    return hub.load(hub.CAUSAL, source, dtype, nf4, published=True).eval(), tokenizer


def limit_of(model, max_tokens: int | None) -> int:
    """``max_tokens``, or what the model has positions for; never more than these."""
    positions = model.config.max_position_embeddings
    return min(max_tokens or positions, positions)


def logits(model, sequences: Sequence[list[int]], outputs: int, batch_tokens: int | None = None):
    """Logits of a ``classifier`` at each sequence's last token: ``outputs`` floats each."""
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
        for i, logits_of in zip(batch, (hidden.float() @ rows.T).tolist(), strict=True):
            values[i] = logits_of
    return values
