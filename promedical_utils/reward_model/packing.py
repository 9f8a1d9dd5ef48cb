"""Criterion packing: all criteria of a response read in one sequence, one score each.

    [prompt][response][c1][c2]...[cK]

c_j sees prompt, response and itself only, and its positions restart right after the response, so
each score equals (to rounding) that of the plain sequence [prompt][response][c_j]. A scalar view
is the case K = 0: the score is read at the response's last token. Nothing here knows what the parts
mean: with a criterion as the shared part and responses as the tails, the criterion comes first.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import linear
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from promedical_utils.core.records import Criterion

ATTENTION = "sdpa_by_rows"
BLOCK = 256  # rows; shorter blocks cost more in calls than they save


@dataclass(frozen=True)
class Packed:
    """One sequence: ``ids`` (T,); ``starts`` (K + 1,): where each criterion starts, and the end.

    ``starts[0]`` is the length of what all criteria share. ``heads`` (K,) are the outputs of the
    score head that are read; the first, when empty. With K = 0 all are read at the end.
    """

    ids: list[int]
    starts: list[int]
    heads: tuple[int, ...] = ()

    @property
    def reads(self) -> list[tuple[int, int]]:
        """(column, head) of each score."""
        if len(self.starts) == 1:
            return [(self.starts[0] - 1, head) for head in self.heads or (0,)]
        heads = self.heads or (0,) * (len(self.starts) - 1)
        return [(end - 1, head) for end, head in zip(self.starts[1:], heads, strict=True)]


def prompt_ids(tokenizer, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a conversation up to where the answer starts, for every part of the kit."""
    # Qwen3's template alone looks at enable_thinking: answers are judged as written
    return tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, return_dict=False, enable_thinking=False
    )


def text_ids(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of continuations, each closed by the end token whose state is scored."""
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    return [[*row, tokenizer.eos_token_id] for row in ids]


def criterion_text(criterion: Criterion) -> str:
    return f"\n{criterion.dimension}: {criterion.text}"


def encode(tokenizer, items, known: dict | None = None) -> list[tuple[list[int], list[list[int]]]]:
    """(messages, text, texts of tails) items as (shared ids, ids of each tail).

    Each text is tokenised once, all in one call; ``known`` carries the ids over to later calls.
    """
    known = {} if known is None else known
    for messages, _, _ in items:
        if repr(messages) not in known:
            known[repr(messages)] = prompt_ids(tokenizer, messages)
    texts = dict.fromkeys((t,) for _, text, tails in items for t in (text, *tails))
    new = [key for key in texts if key not in known]  # tuples: no text is taken for a prompt
    known.update(zip(new, text_ids(tokenizer, [text for (text,) in new]), strict=True))
    return [
        (known[repr(messages)] + known[text,], [known[tail,] for tail in tails])
        for messages, text, tails in items
    ]


def head(tokenizer, text: str, most: int) -> str:
    """The beginning of ``text`` in at most ``most`` tokens: its end is what goes."""
    spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    if len(spans) <= most:
        return text
    # a head can take more tokens alone than it did inside the whole
    for n in range(most, 0, -1):
        kept = text[: spans[n - 1][1]].rstrip()
        if len(tokenizer(kept, add_special_tokens=False)["input_ids"]) <= most:
            return kept
    return ""


def fit(tokenizer, messages, responses, tails, limit: int):
    """(messages, responses, tokens cut) such that each sequence has at most ``limit`` tokens.

    Criteria (``tails``) are never cut; ValueError where the longest leaves no room. Of the rest the
    instruction may fill what the longest response does not need, and half in any case: its oldest
    words go. A response fills what remains: its last words go. Cut are {"instruction": n,
    "responses": [n, ...]}.
    """
    sizes = [len(ids) for ids in text_ids(tokenizer, responses)]
    room = limit - max(map(len, text_ids(tokenizer, tails)), default=0)
    whole = len(prompt_ids(tokenizer, messages))
    most = max(room // 2, room - max(sizes, default=0))
    messages = [dict(message) for message in messages]
    size, turn = whole, 0
    while size > most and turn < len(messages):
        content = messages[turn]["content"]
        spans = tokenizer(content, add_special_tokens=False, return_offsets_mapping=True)
        spans = spans["offset_mapping"][size - most :]
        messages[turn]["content"] = content[spans[0][0] :] if spans else ""
        turn += not spans  # an empty turn is kept, and the next one loses its beginning
        size = len(prompt_ids(tokenizer, messages))
    left = room - size
    if size > most or left < 2:
        raise ValueError(f"{limit} tokens, of which the longest criterion takes {limit - room}")
    cut = [max(0, n - left) for n in sizes]
    kept = [head(tokenizer, r, left - 1) if n else r for r, n in zip(responses, cut, strict=True)]
    return messages, kept, {"instruction": whole - size, "responses": cut}


def longest(shared: Sequence[int], tails: Sequence[Sequence[int]]) -> int:
    """Tokens that the model reads for one score at most: prompt, response, longest criterion."""
    return len(shared) + max(map(len, tails), default=0)


def pack(shared: list[int], tails: Sequence[list[int]], limit: int) -> list[Packed]:
    """Sequences of at most ``limit`` tokens that hold all ``tails`` (K lists), in order, uncut.

    Nearly always one; a long rubric opens another with the same ``shared`` tokens. ValueError when
    ``shared`` and one criterion exceed ``limit``: callers check first.
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
    """A batch of B sequences, padded on the right, with N scores in all.

    ``input_ids``, ``position_ids``, ``segment_ids``: (B, T); ``reads``: (N, 3), row, column and
    head of each score. Segment 0 is shared, j the j-th criterion, and padding one more, so that no
    row of the attention mask is empty and nothing becomes NaN.
    """
    length = max(len(s.ids) for s in sequences)
    opens = torch.zeros(len(sequences), length + 1, dtype=torch.long)
    rows = torch.tensor([row for row, s in enumerate(sequences) for _ in s.starts])
    opens[rows, torch.tensor([start for s in sequences for start in s.starts])] = 1
    opens = opens[:, :length]
    segments = opens.cumsum(1)
    columns = torch.arange(length).expand_as(segments)
    begun = (columns * opens).cummax(1).values  # where the token's own segment starts, 0 if shared
    shared = torch.tensor([[s.starts[0]] for s in sequences])
    ids = [s.ids + [pad_id] * (length - len(s.ids)) for s in sequences]
    reads = [(row, *read) for row, s in enumerate(sequences) for read in s.reads]
    return {
        "input_ids": torch.tensor(ids),
        "position_ids": torch.where(segments > 0, shared + columns - begun, columns),
        "segment_ids": segments,
        "reads": torch.tensor(reads),
    }


def batches(
    lengths: Sequence[int], budget: int, counts: Sequence[int] | None = None
) -> Iterator[list[int]]:
    """Indices in batches of similar length, at most ``budget`` padded tokens (or one item); an item
    is ``counts[i]`` sequences (one, if not given), the longest of ``lengths[i]`` tokens."""
    counts = counts or [1] * len(lengths)
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        held = sum(counts[i] for i in batch) + counts[index]
        if batch and held * lengths[batch[0]] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def allowed(segment_ids: torch.Tensor) -> torch.Tensor:
    """(B, T) segments -> (B, T, T) bool: token i attends to j, which is not later, and is shared
    or of i's own segment."""
    _, length = segment_ids.shape
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    seen, own = segment_ids[:, None, :], segment_ids[:, :, None]
    return causal & ((seen == 0) | (seen == own))


def attention_mask(segment_ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B, T) segments -> (B, 1, T, T) additive mask; transformers uses a 4-D mask as it is."""
    mask = torch.zeros((), dtype=dtype, device=segment_ids.device)
    return torch.where(allowed(segment_ids), mask, torch.finfo(dtype).min)[:, None]


def by_rows(module, query, key, value, attention_mask, **kwargs):
    """SDPA of a causal 4-D mask in blocks of rows, each over the keys up to its own end: under a
    mask SDPA computes what no row may see, too, half of the work of a long sequence."""
    length = query.shape[2]
    if attention_mask is None or length != key.shape[2] or length <= 2 * BLOCK:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    size, parts = max(BLOCK, -(-length // 4)), []
    for start in range(0, length, size):
        end = min(length, start + size)
        block = query[:, :, start:end], key[:, :, :end], value[:, :, :end]
        mask = attention_mask[:, :, start:end, :end]
        parts.append(sdpa_attention_forward(module, *block, mask, **kwargs)[0])
    return torch.cat(parts, dim=1), None  # (B, T, heads, size of a head)


AttentionInterface.register(ATTENTION, by_rows)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def read_many(model):
    """Let a sequence classification model score many positions; returns the same model.

    Its own ``forward``, which PEFT, autocast and distributed wrappers call, then takes what
    ``collate`` gives and returns logits (N,) of the heads asked for, or (N, outputs) of all where
    ``reads`` has no heads. The outputs of a causal LM are next tokens.
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
            at = hidden[reads[:, 0], reads[:, 1]].float()
            if hasattr(model, "score"):
                scores = model.score(at)
            else:
                scores = linear(at, model.get_output_embeddings().weight.float())
        if reads.shape[1] == 3:
            scores = scores.gather(1, reads[:, 2:])[:, 0]
        return SequenceClassifierOutputWithPast(logits=scores)

    model.forward = forward
    return model


@torch.no_grad()
def scores(model, sequences: Sequence[Packed], pad_id: int, budget: int) -> list[list[float]]:
    """Scores of each sequence, in order, by a ``read_many`` model in ``batches`` of ``budget``."""
    values: list[list[float]] = [[] for _ in sequences]
    for rows in batches([len(s.ids) for s in sequences], budget):
        batch = collate([sequences[i] for i in rows], pad_id)
        batch = {key: value.to(model.device) for key, value in batch.items()}
        flat = model(**batch).logits.tolist()
        for row, score in zip(batch["reads"][:, 0].tolist(), flat, strict=True):
            values[rows[row]].append(score)
    return values
