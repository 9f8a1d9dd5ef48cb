"""Answers of a policy: prompts read once however many answers they get, sampling seeded by prompt:
not by what else is in the batch, by the number of processes, or by where a run was interrupted."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, TopPLogitsWarper
from transformers.cache_utils import Cache, DynamicLayer

from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Instruction
from promedical_utils.core.workspace import KitError, short_hash
from promedical_utils.reward_model import packing

BATCH = 64  # answers written side by side


class Answer(NamedTuple):
    """A generated answer: its text, whether it ended by itself, its token ids, the prompt's."""

    text: str
    finished: bool
    ids: list[int]
    prompt: list[int]


def eos_ids(model, tokenizer) -> list[int]:
    """Every token that ends an answer, as TRL reads them: the tokenizer's and the model's."""
    declared = model.generation_config.eos_token_id
    declared = declared if isinstance(declared, list) else [declared]
    return sorted({tokenizer.eos_token_id, *declared} - {None})


class _RoomyLayer(DynamicLayer):
    """Cache layer (B, heads, tokens, width) with room for the answer, written in place: the stock
    layer copies itself for each token, 59 % of the time of generating on a CPU."""

    def __init__(self, prompt: DynamicLayer, rows: torch.Tensor, room: int):
        super().__init__()
        self.lazy_initialization(prompt.keys, prompt.values)
        self.used, parts = prompt.keys.shape[-2], (prompt.keys, prompt.values)
        self.store = [torch.nn.functional.pad(part[rows], (0, 0, 0, room)) for part in parts]
        self.keys, self.values = (part[:, :, : self.used] for part in self.store)

    def update(self, *states, **_):
        start, self.used = self.used, self.used + states[0].shape[-2]
        for part, state in zip(self.store, states[:2], strict=True):
            part[:, :, start : self.used] = state
        self.keys, self.values = (part[:, :, : self.used] for part in self.store)
        return self.keys, self.values


class SeededSampling(LogitsProcessor):
    """Sampling as a greedy choice: temperature, nucleus, and Gumbel noise from each prompt's seed
    (Gumbel-max). ``rows`` (B,): number of each row's prompt; ``seeds``: one a prompt."""

    def __init__(self, rows: torch.Tensor, seeds: Sequence[int], temperature: float, top_p: float):
        self.temperature = temperature
        self.nucleus = TopPLogitsWarper(top_p) if top_p < 1 else None
        numbers = range(int(rows.max()) + 1)
        self.places = [torch.nonzero(rows == number)[:, 0] for number in numbers]
        self.sources = [torch.Generator(rows.device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.float() / self.temperature
        if self.nucleus:
            scores = self.nucleus(input_ids, scores)
        draws = torch.empty_like(scores)
        for places, source in zip(self.places, self.sources, strict=True):
            draws[places] = torch.empty_like(scores[places]).exponential_(generator=source)
        return scores - draws.clamp_min(torch.finfo(torch.float32).tiny).log()


def seed_of(*parts) -> int:
    """A seed that depends on the parts alone."""
    return int(short_hash(*parts), 16) % 2**31


@torch.no_grad()
def complete(
    model,
    tokenizer,
    prompts: list[list[int]],
    max_tokens: int,
    temperature: float,
    top_p: float = 1.0,
    seeds: Sequence[int] = (),
) -> list[list[int]]:
    """Completion ids of prompt ids, up to the first end token; temperature 0 is greedy.

    A prompt that occurs several times (a GRPO group) is read once: on two cores reading is
    otherwise as dear as writing. ``seeds``: unless greedy one for each different prompt, in the
    order of their first occurrence.
    """
    number_of = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    rows = torch.tensor([number_of[tuple(prompt)] for prompt in prompts], device=model.device)
    different, ends = {"input_ids": [*map(list, number_of)]}, eos_ids(model, tokenizer)
    padded = tokenizer.pad(different, padding_side="left", return_tensors="pt").to(model.device)
    ids, mask = padded["input_ids"], padded["attention_mask"]
    # position ids as ``generate`` makes them, or rotary distances would be off by the padding
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = model(
        input_ids=ids[:, :-1],
        attention_mask=mask[:, :-1],
        use_cache=True,
        position_ids=positions[:, :-1],
        logits_to_keep=1,
    ).past_key_values
    if all(type(layer) is DynamicLayer for layer in cache.layers):
        cache = Cache(layers=[_RoomyLayer(layer, rows, max_tokens + 1) for layer in cache.layers])
    else:  # sliding windows and the like keep their own layers
        cache.batch_select_indices(rows)
    config = GenerationConfig(
        max_new_tokens=max_tokens,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_token_id,
        disable_compile=True,
        do_sample=False,
    )
    sampling = [SeededSampling(rows, seeds, temperature, top_p)] if temperature > 0 else []
    output = model.generate(
        input_ids=ids[rows],
        attention_mask=mask[rows],
        past_key_values=cache,
        generation_config=config,
        logits_processor=LogitsProcessorList(sampling),
    )
    answers = output[:, ids.shape[1] :].tolist()
    lengths = [next((k for k, t in enumerate(row, 1) if t in ends), len(row)) for row in answers]
    return [row[:length] for row, length in zip(answers, lengths, strict=True)]


def messages_of(instruction: Instruction) -> list[dict]:
    return [message.model_dump() for message in instruction.messages]


def prompts_of(model, tokenizer, instructions, max_tokens: int) -> list[list[int]]:
    """Prompt ids as the reward model reads them; KitError for one that leaves no room to answer."""
    rows = [packing.prompt_ids(tokenizer, messages_of(i)) for i in instructions]
    limit = model.config.get_text_config().max_position_embeddings
    for instruction, row in zip(instructions, rows, strict=True):
        if len(row) + max_tokens > limit:
            raise KitError(
                f"instruction {instruction.id}: {len(row)} prompt tokens + {max_tokens} to answer "
                f"exceed the model's {limit}; shorten it, leave it out or lower grpo_max_tokens"
            )
    return rows


def generate(
    model, tokenizer, instructions: Sequence[Instruction], p: Profile, seed: int
) -> list[Answer]:
    """One answer per instruction, in their order, sampled as in training (``grpo_temperature``,
    ``grpo_top_p``). The caller's random state is left alone. KitError for a prompt too long."""
    prompts = prompts_of(model, tokenizer, instructions, p.grpo_max_tokens)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers, ends, training = {}, eos_ids(model, tokenizer), model.training
    sampling = p.grpo_max_tokens, p.grpo_temperature, p.grpo_top_p
    model.eval()
    for start in range(0, len(order), BATCH):
        chosen = order[start : start + BATCH]
        first: dict[tuple, int] = {}  # of each prompt the first to ask it, whose seed is taken
        for i in chosen:
            first.setdefault(tuple(prompts[i]), i)
        seeds = [seed_of(seed, instructions[i].id) for i in first.values()]
        rows = complete(model, tokenizer, [prompts[i] for i in chosen], *sampling, seeds)
        for i, row in zip(chosen, rows, strict=True):
            text = tokenizer.decode(row, skip_special_tokens=True)  # as TRL gives it to rewards
            answers[i] = Answer(text, row[-1] in ends, row, prompts[i])
    model.train(training)
    return [answers[i] for i in range(len(prompts))]
