"""Criterion packing: all criteria of a response read in one sequence, one score each.

    [prompt][response][c1][c2]...[cK]

c_j sees prompt, response and itself only, and its positions restart right after the response, so
each score equals (to rounding) that of the plain sequence [prompt][response][c_j]. A scalar view
is the case K = 0: the score is read at the response's last token.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from promedical_utils.records import Criterion


@dataclass(frozen=True)
class Packed:
    """One sequence: ``ids`` (T,); ``starts`` (K + 1,): where each criterion starts, and the end.

    ``starts[0]`` is the length of what all criteria share.
    """

    ids: list[int]
    starts: list[int]


def prompt_ids(tokenizer, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a conversation up to where the answer starts; every part of the kit uses these.

    The template writes the beginning-of-sequence token, so nothing after it adds a second one.
    ``enable_thinking=False`` matters to Qwen3's template alone: answers are judged as written.
    """
    return tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, return_dict=False, enable_thinking=False
    )


def text_ids(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of continuations, each closed by the end token whose state is scored."""
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    return [[*row, tokenizer.eos_token_id] for row in ids]


def criterion_text(criterion: Criterion) -> str:
    return f"\n{criterion.dimension}: {criterion.text}"


def encode(tokenizer, items) -> list[tuple[list[int], list[list[int]]]]:
    """(messages, response, criteria) items as (shared ids, ids of each criterion).

    A prompt is rendered once, however many responses it has; all texts go in one call.
    """
    prompts = {repr(messages): messages for messages, _, _ in items}
    prompts = {key: prompt_ids(tokenizer, messages) for key, messages in prompts.items()}
    texts = [text for _, text, _ in items]
    texts += [criterion_text(c) for _, _, criteria in items for c in criteria]
    ids = dict(zip(texts, text_ids(tokenizer, texts), strict=True))
    return [
        (prompts[repr(messages)] + ids[text], [ids[criterion_text(c)] for c in criteria])
        for messages, text, criteria in items
    ]


def longest(shared: Sequence[int], tails: Sequence[Sequence[int]]) -> int:
    """Tokens that the model reads for one score at most: prompt, response, longest criterion."""
    return len(shared) + max(map(len, tails), default=0)


def pack(shared: list[int], tails: Sequence[list[int]], limit: int) -> list[Packed]:
    """Sequences of at most ``limit`` tokens that hold all ``tails`` (K lists), in order, uncut.

    Nearly always one; a long rubric opens another sequence with the same ``shared`` tokens.
    Raises ValueError when ``shared`` and one criterion exceed ``limit``: callers check first.
    """
    if longest(shared, tails) > limit:
        raise ValueError(f"{longest(shared, tails)} tokens, limit {limit}")
    packed = [Packed(list(shared), [len(shared)])]
    for tail in tails:
        if len(packed[-1].ids) + len(tail) > limit:
            packed.append(Packed(list(shared), [len(shared)]))
        packed[-1].ids.extend(tail)
        packed[-1].starts.append(len(packed[-1].ids))
    return packed


def collate(sequences: Sequence[Packed], pad_id: int) -> dict[str, torch.Tensor]:
    """A right-padded batch of B sequences with N scores in all.

    ``input_ids``, ``position_ids``, ``segment_ids``: (B, T); ``reads``: (N, 2), row and column of
    each score, in order. Segment 0 is shared, j the j-th criterion, and padding is one more
    segment, so that no row of the attention mask is empty and nothing becomes NaN.
    """
    length = max(len(s.ids) for s in sequences)
    input_ids = torch.tensor([s.ids + [pad_id] * (length - len(s.ids)) for s in sequences])
    opens = torch.zeros(len(sequences), length + 1, dtype=torch.long)
    rows = torch.tensor([row for row, s in enumerate(sequences) for _ in s.starts])
    opens[rows, torch.tensor([start for s in sequences for start in s.starts])] = 1
    opens = opens[:, :length]
    segments = opens.cumsum(1)
    columns = torch.arange(length).expand_as(segments)
    begun = (columns * opens).cummax(1).values  # where the token's own segment starts, 0 if shared
    shared = torch.tensor([[s.starts[0]] for s in sequences])
    positions = torch.where(segments > 0, shared + columns - begun, columns)
    ends = [(row, end - 1) for row, s in enumerate(sequences) for end in s.starts[1:] or s.starts]
    return {
        "input_ids": input_ids,
        "position_ids": positions,
        "segment_ids": segments,
        "reads": torch.tensor(ends),
    }


def batches(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, at most ``budget`` padded tokens (or one sequence)."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def allowed(segment_ids: torch.Tensor) -> torch.Tensor:
    """(B, T) segments -> (B, T, T) bool: may token i attend to j?

    It may if j is not later, and is shared or of i's own segment.
    """
    _, length = segment_ids.shape
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    seen, own = segment_ids[:, None, :], segment_ids[:, :, None]
    return causal & ((seen == 0) | (seen == own))


def attention_mask(segment_ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B, T) segments -> (B, 1, T, T) additive mask; transformers uses a 4-D mask as it is."""
    mask = torch.zeros((), dtype=dtype, device=segment_ids.device)
    return torch.where(allowed(segment_ids), mask, torch.finfo(dtype).min)[:, None]


def read_many(model):
    """Let a sequence classification model score many positions; returns the same model.

    Its ``forward`` takes what ``collate`` gives and returns logits (N,). It stays the model's own
    forward, so that PEFT, autocast and distributed wrappers, which all call that, keep working.
    Without ``reads`` it is the plain forward.
    """
    plain = model.forward

    def forward(input_ids=None, position_ids=None, segment_ids=None, reads=None, **kwargs):
        if reads is None:
            return plain(input_ids=input_ids, position_ids=position_ids, **kwargs)
        hidden = model.base_model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=attention_mask(segment_ids, model.dtype),
            use_cache=False,
        ).last_hidden_state
        # bf16 scores tie, and a tie counts as wrong: the head works in fp32 whatever the body does
        with torch.autocast(hidden.device.type, enabled=False):
            scores = model.score(hidden[reads[:, 0], reads[:, 1]].float())[:, 0]
        return SequenceClassifierOutputWithPast(logits=scores)

    model.forward = forward
    return model
