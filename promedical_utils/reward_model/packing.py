"""Packing: what a group's answers and criteria share is read once, with one score for each of them.

    [prompt][a1][c11]...[c1K][a2][c21]...[c2K]...

Segments form a tree: a_i continues the prompt, c_ij continues a_i. A token sees its own segment and
those that it continues, and its position goes on from there, so each score equals (to rounding)
that of the plain sequence [prompt][a_i][c_ij]. Scores are read at the ends of leaves. Nothing here
knows what the parts mean: with criteria in the middle and answers as leaves, those come first.

Cutting a tree saves no token and no (query, key) pair, so training never cuts. In scoring a pass
far over its budget costs a fifth more a token on two cores, by their caches: there a tree is cut at
two budgets, but not below REREAD prompts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from accelerate.utils import send_to_device
from jinja2 import TemplateError
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_outputs import SequenceClassifierOutputWithPast

from promedical_utils.core.records import Criterion
from promedical_utils.core.workspace import KitError

ATTENTION = "sdpa_by_rows"
ATTENTIONS = {"full_attention", "sliding_attention", "chunked_attention"}  # see ``window_of``
BLOCK = 256  # rows; shorter blocks cost more in calls than they save
LEAVES = 128  # rows of leaves side by side, which do not see each other
REREAD = 4  # a tree is not cut below as many prompts: reading them again costs a third at most


@dataclass(frozen=True)
class Packed:
    """One sequence: ``ids`` (T,); ``starts`` (S,): where each segment but the first starts, and the
    end of the last; ``heads``: outputs of the score head read at each leaf, the first when empty.
    ``parents`` (S - 1,): the segment that each of them continues. Without, all continue the first,
    and sequences are padded to one length."""

    ids: list[int]
    starts: list[int]
    heads: tuple[int, ...] = ()
    parents: list[int] = field(default_factory=list)

    def grow(self, ids: Sequence[int], parent: int = 0) -> int:
        """Add a segment behind all others; its number."""
        self.ids.extend(ids)
        self.starts.append(len(self.ids))
        self.parents.append(parent)
        return len(self.parents)

    @property
    def reads(self) -> list[tuple[int, int]]:
        """(column, head) of each score."""
        inner = set(self.parents or [0] * (len(self.starts) - 1))
        leaves = [end for number, end in enumerate(self.starts) if number not in inner]
        return [(end - 1, head) for end in leaves for head in self.heads or (0,)]

    def layout(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(T,) position of each token, and (T,) the column from which on none sees it."""
        begins, ends, shifts = [0, *self.starts[:-1]], list(self.starts), [0]
        above = list(enumerate(self.parents or [0] * (len(begins) - 1), 1))
        for number, parent in above:
            shifts.append(shifts[parent] + self.starts[parent] - begins[number])
        for number, parent in reversed(above):
            ends[parent] = max(ends[parent], ends[number])
        each = torch.tensor(self.starts).diff(prepend=torch.tensor([0]))
        positions = torch.arange(len(self.ids)) + torch.tensor(shifts).repeat_interleave(each)
        return positions, torch.tensor(ends).repeat_interleave(each)


def prompt_ids(tokenizer, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a conversation up to where the answer starts."""
    return templated(tokenizer, messages, add_generation_prompt=True, return_dict=False)


def templated(tokenizer, messages: Sequence[Mapping[str, str]], **settings):
    """What the tokenizer's chat template makes of a conversation; KitError where it refuses one."""
    try:
        # Qwen3's template alone looks at enable_thinking: answers are judged as written
        return tokenizer.apply_chat_template(list(messages), enable_thinking=False, **settings)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        says = f"the model's chat template refuses a conversation of {roles}: {error}"
        raise KitError(f"{says}; leave such conversations out, or name another model") from None


def text_ids(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of continuations, each closed by the end token whose state is scored."""
    ids = tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
    return [[*row, tokenizer.eos_token_id] for row in ids]


def criterion_text(criterion: Criterion) -> str:
    return f"\n{criterion.dimension}: {criterion.text}"


def encode(tokenizer, items) -> list[tuple[list[int], list[list[int]]]]:
    """(messages, text, texts of tails) items as (shared ids, ids of each tail)."""
    encoded = []
    for messages, text, tails in items:
        own, *rest = text_ids(tokenizer, [text, *tails])
        encoded.append((prompt_ids(tokenizer, messages) + own, rest))
    return encoded


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

    Criteria (``tails``) are never cut; ValueError where the longest leaves no room. The instruction
    may fill what the longest response does not need, and half in any case: its oldest words go. A
    response fills what remains: its last words go. Cut are {"instruction": n, "responses": [...]}.
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
    """Most tokens that are read for one score: prompt, response, longest criterion."""
    return len(shared) + max(map(len, tails), default=0)


def pack(shared: list[int], tails: Sequence[list[int]], limit: int) -> list[Packed]:
    """Sequences of at most ``limit`` tokens that hold all ``tails``, in order, uncut, each with the
    same ``shared`` tokens. ValueError when ``shared`` and one criterion exceed ``limit``."""
    if longest(shared, tails) > limit:
        raise ValueError(f"{longest(shared, tails)} tokens, limit {limit}")
    parts = tree(shared, [(tail, ()) for tail in tails], limit)
    return [Packed(p.ids, p.starts) for p in parts] or [Packed(list(shared), [len(shared)])]


def tree(
    prompt: Sequence[int],
    branches: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]],
    room: float,
) -> list[Packed]:
    """[prompt][a1][c11]...: ``branches``, (a_i, its leaves c_ij), in order behind their prompt.
    What does not fit the ``room`` of a sequence, in tokens, opens another with the same prompt, and
    if need be the same a_i."""
    parts: list[Packed] = []
    for stem, leaves in branches:
        size = len(stem) + sum(map(len, leaves))
        if not parts or len(parts[-1].ids) + size > room:
            parts.append(Packed(list(prompt), [len(prompt)]))
        number = parts[-1].grow(stem)
        for leaf in leaves:
            if len(parts[-1].parents) > number and len(parts[-1].ids) + len(leaf) > room:
                parts.append(Packed(list(prompt), [len(prompt)]))
                number = parts[-1].grow(stem)
            parts[-1].grow(leaf, number)
    return parts


def collate(sequences: Sequence[Packed], pad_id: int) -> dict:
    """A batch of B sequences, padded on the right, with N scores in all; trees lie in one row.

    ``input_ids``, ``position_ids``, ``ends`` (of ``Packed.layout``): (B, T); ``reads``: (N, 3),
    row, column and head of each score; of trees ``blocks_of`` as well. Padding sees padding, so
    that no row of the attention mask is empty and nothing becomes NaN.
    """
    flat = all(s.parents for s in sequences)
    rows = [list(sequences)] if flat else [[s] for s in sequences]
    length = max(sum(len(s.ids) for s in row) for row in rows)
    ids, ends = (torch.full((len(rows), length), value) for value in (pad_id, length))
    positions, reads = torch.zeros_like(ids), []
    for number, row in enumerate(rows):
        start = 0
        for s in row:
            own, last = s.layout()
            part = number, slice(start, start + len(own))
            ids[part], positions[part], ends[part] = torch.tensor(s.ids), own, start + last
            reads += [(number, start + column, head) for column, head in s.reads]
            start += len(own)
    batch = {"input_ids": ids, "position_ids": positions, "ends": ends}
    batch["reads"] = torch.tensor(reads)
    return batch | ({"blocks": blocks_of(ends[0])} if flat else {})


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


def allowed(ends: torch.Tensor) -> torch.Tensor:
    """(B, T) ``ends`` -> (B, T, T) bool: token i attends to j, no later one, before j's end."""
    columns = torch.arange(ends.shape[1], device=ends.device)
    return (columns <= columns[:, None]) & (columns[:, None] < ends[:, None])


def attention_mask(ends: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(B, T) ``ends`` -> (B, 1, T, T) additive mask; transformers uses a 4-D mask as it is."""
    return torch.where(allowed(ends), 0.0, torch.finfo(dtype).min).to(dtype)[:, None]


def blocks_of(ends: torch.Tensor) -> list[tuple[int, list[int], torch.Tensor | None]]:
    """(T,) ``ends`` -> (rows, numbers of the blocks they see, mask over those) of each block. What
    others continue opens a block; leaves join one of at most LEAVES rows. The mask (rows, keys) is
    bool; None: a plain causal one over the block itself."""
    last, sizes = (values.tolist() for values in ends.unique_consecutive(return_counts=True))
    starts: list[int] = []
    stop, found = 0, []
    for end, size in zip(last, sizes, strict=True):
        start, stop = stop, stop + size
        if not starts or end > stop or stop - starts[-1] > LEAVES:
            starts.append(start)
    spans = [torch.arange(*span) for span in pairwise([*starts, stop])]
    seen_until = [int(ends[span].max()) for span in spans]
    for number, rows in enumerate(spans):
        keys = [n for n in range(number + 1) if seen_until[n] > starts[number]]
        columns, plain = torch.cat([spans[n] for n in keys]), bool((ends[rows] > rows[-1]).all())
        mask = None
        if not plain or keys != [number]:
            mask = (columns <= rows[:, None]) & (rows[:, None] < ends[columns])
        found.append((len(rows), keys, mask))
    return found


def by_rows(module, query, key, value, attention_mask, blocks=None, scaling=None, **kwargs):
    """SDPA of ``blocks_of`` trees, or of a causal 4-D mask in blocks of rows, each over the keys up
    to its own end: under a mask SDPA computes what no row may see, too, most of a long sequence."""
    length, parts = query.shape[2], []
    if kwargs.get("softcap") or kwargs.get("s_aux") is not None:
        raise KitError("SDPA has no capped scores (softcap) and no sinks: use a model without them")
    if blocks is None:
        kwargs |= {"scaling": scaling}
        if attention_mask is None or length != key.shape[2] or length <= 2 * BLOCK:
            return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
        size = max(BLOCK, -(-length // 4))
        for start in range(0, length, size):
            end = min(length, start + size)
            block = query[:, :, start:end], key[:, :, :end], value[:, :, :end]
            mask = attention_mask[:, :, start:end, :end]
            parts.append(sdpa_attention_forward(module, *block, mask, **kwargs)[0])
        return torch.cat(parts, dim=1), None  # (B, T, heads, size of a head)
    key, value = (repeat_kv(part, query.shape[1] // key.shape[1]) for part in (key, value))
    # split and cat have a backward in one piece; that of a slice fills a whole tensor with zeros
    sizes = [rows for rows, _, _ in blocks]
    query, key, value = (part.split(sizes, dim=2) for part in (query, key, value))
    for rows, (_, keys, mask) in zip(query, blocks, strict=True):
        seen = [torch.cat([part[n] for n in keys], dim=2) for part in (key, value)]
        causal = {"attn_mask": mask, "is_causal": mask is None, "scale": scaling}
        parts.append(scaled_dot_product_attention(rows, *seen, **causal))
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, by_rows)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def window_of(config) -> int | None:
    """How many tokens a token sees at least, itself among them; None: all before it. KitError for
    layers that carry a state from one segment to the next, as no attention does."""
    config = config.get_text_config()
    if others := {*(getattr(config, "layer_types", None) or ())} - ATTENTIONS:
        raise KitError(f"{config.model_type} has {min(others)} layers: name one without them")
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return min(filter(None, windows), default=None)


def read_many(model):
    """Let a model score many positions, in place: its own ``forward``, which PEFT, autocast and
    distributed wrappers call, then takes what ``collate`` gives and returns logits (N,)."""
    plain, window = model.forward, window_of(model.config)

    def forward(input_ids=None, position_ids=None, ends=None, reads=None, blocks=None, **kwargs):
        if reads is None:
            return plain(input_ids=input_ids, position_ids=position_ids, **kwargs)
        if window and int(position_ids.max()) >= window:
            longer = f"{int(position_ids.max()) + 1} tokens pass the sliding_window of {window}"
            raise KitError(f"{longer}: set rm_max_tokens={window}, or name a model without windows")
        if blocks and model.config._attn_implementation == ATTENTION:
            # an integer mask is an error to any other attention, should it get there
            seen = {"attention_mask": ends[:, None, None], "blocks": blocks}
        else:
            seen = {"attention_mask": attention_mask(ends, model.dtype)}
        hidden = model.base_model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, **seen
        ).last_hidden_state
        # bf16 scores tie, and a tie counts as wrong: the head works in fp32 whatever the body does
        with torch.autocast(hidden.device.type, enabled=False):
            scores = model.score(hidden[reads[:, 0], reads[:, 1]].float())
        return SequenceClassifierOutputWithPast(logits=scores.gather(1, reads[:, 2:])[:, 0])

    model.forward = forward
    return model


@torch.no_grad()
def scores(model, sequences: Sequence[Packed], pad_id: int, budget: int) -> list[list[float]]:
    """Scores of each sequence, in order, by a ``read_many`` model in ``batches`` of ``budget``."""
    values: list[list[float]] = [[] for _ in sequences]
    lengths = [len(s.ids) for s in sequences]
    flat = all(s.parents for s in sequences)  # without padding: an item is as many rows of one
    parts = batches([1] * len(lengths), budget, lengths) if flat else batches(lengths, budget)
    for rows in parts:
        batch = collate([sequences[i] for i in rows], pad_id)
        logits = model(**send_to_device(batch, model.device)).logits.cpu()
        for i, own in zip(rows, logits.split([len(sequences[i].reads) for i in rows]), strict=True):
            values[i] = own.tolist()
    return values
