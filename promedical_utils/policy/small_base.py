"""The kit's own small base: a tokenizer and a Qwen3 or Llama causal LM, saved as a hub model is.

It stands in where no weights can be downloaded, and is loaded by the same calls as a hub model.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.init import orthogonal_

from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Message
from promedical_utils.core.workspace import KitError
from promedical_utils.reward_model import hub, packing
from promedical_utils.reward_model.optimizer import MuonAdamW

# ChatML, as Qwen3 uses it, without its thinking block
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"

# messages, an answer, and (question, reply) turns about that answer
Lesson = tuple[Sequence[Message], str, Sequence[tuple[str, str]]]


def train_tokenizer(texts: Sequence[str], vocabulary: int, whole: Sequence[str] = ()):
    """Byte-level BPE with a chat template; every word of ``whole`` is one token after a space.

    Raises KitError when a word of ``whole`` is not: enlarge the vocabulary.
    """
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # words that must be whole are made frequent enough to be merged
    inner.train_from_iterator([*texts, *[" " + " ".join(whole)] * 20], trainer)
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=8192,
        padding_side="right",
    )
    split = [w for w in whole if len(tokenizer(" " + w).input_ids) != 1]
    if split:
        raise KitError(f"{len(split)} words are not one token ({split[:5]}): raise base_vocabulary")
    return tokenizer


def new_model(tokenizer, p: Profile):
    """A causal LM of the profile's ``base_`` settings, embeddings tied, that starts as copying.

    Value and output projections start as each other's transpose ("mimetic" initialisation,
    Trockman and Kolter 2023, arXiv 2305.09828), so that a head passes on what it looks at, and a
    few heads start as an induction circuit: reading a fact needs both, and from a random start they
    take thousands of steps to form. Llama starts with the same weights and circuit, but does not
    normalise queries and keys.
    """
    transformers.set_seed(p.seed)
    width, heads = p.base_width, p.base_width // 32
    sizes = dict(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=p.base_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=32,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        initializer_range=0.06,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**sizes))
    with torch.no_grad():
        for number, layer in enumerate(model.model.layers):
            attention = layer.self_attn
            orthogonal_(attention.v_proj.weight)
            attention.o_proj.weight.copy_(0.5 * attention.v_proj.weight.T)
            # sharper attention from the start: queries and keys are normalised in Qwen3
            for norm in (attention.q_norm, attention.k_norm):
                norm.weight.fill_(2.0 if number < 2 else 1.5)
        _induction(model)
        if p.base_architecture == "llama":
            alike = transformers.LlamaConfig(**sizes, rope_parameters=model.config.rope_parameters)
            model = _without_normalisation(model, transformers.LlamaForCausalLM(alike))
    return model


def _without_normalisation(model, plain):
    """``plain``, a model without normalised queries and keys, with the weights of ``model``.

    Its query and key rows are scaled, head by head, such that over random tokens their size is what
    the normalisation gives: so attention starts as sharp, and the circuit as good.
    """
    size = model.config.head_dim
    ids = torch.randint(
        model.config.vocab_size, (8, 64), generator=torch.Generator().manual_seed(0)
    )
    states = model.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states
    weights = {k: v.clone() for k, v in model.state_dict().items() if "_norm.weight" not in k}
    for n, (layer, state) in enumerate(zip(model.model.layers, states)):
        read = layer.input_layernorm(state)
        for name in ("q", "k"):
            projection = getattr(layer.self_attn, f"{name}_proj")
            states_of = projection(read).unflatten(-1, (-1, size))
            spread = states_of.square().mean(dim=(0, 1, 3)).sqrt()
            gain = getattr(layer.self_attn, f"{name}_norm").weight.mean() / spread
            key = f"model.layers.{n}.self_attn.{name}_proj.weight"
            weights[key] *= gain.repeat_interleave(size)[:, None]
    plain.load_state_dict(weights)
    return plain


def _induction(model) -> None:
    """Start a few heads as an induction circuit (Olsson et al. 2022, arXiv 2209.11895).

    In layer 0 half of the heads look one token back and one more looks two back: query and key read
    a constant that all embeddings share, and the key is turned by as many positions of the rotary
    embedding, so that the match is best just there. In layer 1 half of the heads look for a place
    whose token before is the present token. One more, and one of every later layer, looks for the
    present token itself, in the slow rotations, which distance hardly turns.
    """
    size, half = 32, model.config.num_attention_heads // 2
    layers = [layer.self_attn for layer in model.model.layers]
    first, width = layers[0], model.config.hidden_size
    model.model.embed_tokens.weight[:, 0] = 0.5
    angle = model.model.rotary_emb.inv_freq[: size // 2]
    # the fast rotations tell neighbours apart, the slow ones tell near from far
    part = torch.where(torch.arange(size // 2) < 6, 1.0, 0.2)
    query = torch.cat([part, torch.zeros(size // 2)])
    first.v_proj.weight[: (half + 1) * size, 0] = 0  # the constant is not passed on
    out = orthogonal_(torch.empty(width, (half + 1) * size))
    for head, back in enumerate([1] * half + [2]):
        rows = slice(head * size, (head + 1) * size)
        turned = back * angle
        key = torch.cat([part * torch.cos(turned), part * torch.sin(turned)])
        for projection, direction in ((first.q_proj, query), (first.k_proj, key)):
            projection.weight[rows] = 0
            projection.weight[rows, 0] = direction
        # written elsewhere than the token's own identity
        first.o_proj.weight[:, rows] = out[:, rows]
    slow = torch.arange(size)[torch.arange(size) % (size // 2) >= size // 4]

    def match(attention, head: int, sought, known) -> None:
        """The head compares ``sought`` here with ``known`` there, both (n, width)."""
        mix = orthogonal_(torch.empty(len(slow), len(sought)))
        for projection, reads in ((attention.q_proj, sought), (attention.k_proj, known)):
            projection.weight[head * size : (head + 1) * size] = 0
            projection.weight[head * size + slow] = mix @ reads

    for head in range(half):
        match(layers[1], head, first.v_proj.weight[: half * size], out[:, : half * size].T)
    same = torch.eye(width)[1:]  # not the constant
    match(layers[1], half, same, same)
    for attention in layers[2:]:
        match(attention, 0, same, same)


def encode(tokenizer, lesson: Lesson) -> tuple[packing.Packed, list[int]]:
    """One lesson as a packed sequence and its labels, -100 where there is no loss.

    The loss is on the answer; in a lesson with look-ups, each packed after the answer just as
    criteria are, it is on the replies alone.
    """
    messages, answer, lookups = lesson
    prompt = packing.prompt_ids(tokenizer, [m.model_dump() for m in messages])
    [text] = packing.text_ids(tokenizer, [answer])
    questions = packing.text_ids(tokenizer, [question for question, _ in lookups])
    replies = [tokenizer(reply, add_special_tokens=False).input_ids for _, reply in lookups]
    ids, starts = prompt + text, [len(prompt) + len(text)]
    labels = [-100] * len(ids) if lookups else [-100] * len(prompt) + text
    for question, reply in zip(questions, replies, strict=True):
        ids, labels = ids + question + reply, labels + [-100] * len(question) + reply
        starts.append(len(ids))
    return packing.Packed(ids, starts), labels


def collate(rows: Sequence[tuple[packing.Packed, list[int]]], pad_id: int) -> dict:
    """``packing.collate`` of the lessons, with ``labels`` (B, T)."""
    batch = packing.collate([packed for packed, _ in rows], pad_id)
    labels = torch.full_like(batch["input_ids"], -100)
    for row, (_, values) in enumerate(rows):
        labels[row, : len(values)] = torch.tensor(values)
    return batch | {"labels": labels}


class Course(torch.utils.data.IterableDataset):
    """``lesson(0, n) .. lesson(n - 1, n)``, encoded, the ``batch`` of each step by length."""

    def __init__(self, tokenizer, lesson: Callable[[int, int], Lesson], steps: int, batch: int):
        self.tokenizer, self.lesson, self.steps, self.batch = tokenizer, lesson, steps, batch

    def __iter__(self):
        size = self.steps * self.batch
        for first in range(0, size, self.batch):
            lessons = [self.lesson(n, size) for n in range(first, first + self.batch)]
            rows = [encode(self.tokenizer, lesson) for lesson in lessons]
            yield from sorted(rows, key=lambda row: len(row[1]))  # less padding


class CourseTrainer(transformers.Trainer):
    """transformers' Trainer with the loss on answers alone, every lesson weighing the same."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        # logits at answer positions only: half of the time went into the others
        hidden = model.model(
            input_ids=inputs["input_ids"],
            position_ids=inputs["position_ids"],
            attention_mask=packing.attention_mask(inputs["ends"], model.dtype),
            use_cache=False,
        ).last_hidden_state[:, :-1]
        labels = inputs["labels"][:, 1:]
        kept = labels != -100
        # every lesson weighs the same, be its answer long or a look-up of one word
        share = (kept / kept.sum(1, keepdim=True))[kept]
        losses = torch.nn.functional.cross_entropy(
            model.lm_head(hidden[kept]), labels[kept], reduction="none"
        )
        lessons = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps
        loss = (losses * share).sum() / lessons
        return (loss, {}) if return_outputs else loss


def train(model, tokenizer, lesson: Callable[[int, int], Lesson], p: Profile, out: Path) -> dict:
    """Teach ``lesson(0, n) .. lesson(n - 1, n)`` in order, n = base_steps * base_batch.

    The curve of losses, seconds and steps; ``base_learning_rate`` is Muon's, of weight matrices.
    """
    hub.silence()
    parts, steps, rate = math.gcd(p.base_batch, 4), p.base_steps, p.base_learning_rate
    trainer = CourseTrainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(out),
            max_steps=steps,
            per_device_train_batch_size=p.base_batch // parts,
            gradient_accumulation_steps=parts,
            learning_rate=rate,
            lr_scheduler_type="warmup_stable_decay",
            warmup_steps=min(10, steps // 4),
            lr_scheduler_kwargs={"num_decay_steps": int(steps * 0.3), "min_lr_ratio": 0.02},
            max_grad_norm=1.0,
            logging_steps=max(1, steps // 20),
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=p.seed,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        ),
        train_dataset=Course(tokenizer, lesson, steps, p.base_batch),
        data_collator=lambda rows: collate(rows, tokenizer.pad_token_id),
        # measured: embeddings, here the output layer too, take a higher rate than matrices
        optimizers=(MuonAdamW(model, rate, 2.5 * rate), None),
    )
    trainer.remove_callback(transformers.PrinterCallback)
    start = time.perf_counter()
    trainer.train()
    losses = [entry for entry in trainer.state.log_history if "loss" in entry]
    curve = [{"step": entry["step"], "loss": round(entry["loss"], 4)} for entry in losses]
    return {"curve": curve, "seconds": round(time.perf_counter() - start, 1), "steps": steps}


def copy_rates(
    model, tokenizer, tests: Sequence[tuple[Sequence[Message], str, dict[str, str]]]
) -> dict[str, float]:
    """Share of held-out patients whose fact the model copies, by fact.

    Where a fact's value stands in a right answer, the model, given all before, must put it first.
    """
    hits: dict[str, list[bool]] = {}
    model.eval()
    for messages, answer, facts in tests:
        packed, labels = encode(tokenizer, (messages, answer, ()))
        fact_of = {tokenizer(" " + value).input_ids[0]: fact for value, fact in facts.items()}
        ids = torch.tensor([packed.ids]).to(model.device)
        with torch.no_grad():
            best = model(input_ids=ids).logits[0].argmax(-1).tolist()
        for place, token in enumerate(labels):
            if token in fact_of:
                hits.setdefault(fact_of[token], []).append(best[place - 1] == token)
    return {fact: round(sum(h) / len(h), 4) for fact, h in sorted(hits.items())}
