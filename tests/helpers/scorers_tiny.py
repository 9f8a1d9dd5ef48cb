"""Tiny random Llama models with Llama 3's special tokens and template, saved as a hub model is."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from promedical_utils.core.records import Candidate, Criterion, Instruction
from promedical_utils.rubric.preferences import Group

BOS, EOT, END = "<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>"
# as the Llama 3 checkpoints of spring 2024 carry it: the assistant's turn is opened unasked
OLD = (
    "{% for m in messages %}{% set text = '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' "
    "+ m['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set text = bos_token + "
    "text %}"
    "{% endif %}{{ text }}{% endfor %}"
)
OPENED = "<|start_header_id|>assistant<|end_header_id|>\n\n"
NEW = OLD + "{% if add_generation_prompt %}{{ '" + OPENED.replace("\n", "\\n") + "' }}{% endif %}"
OLD += "{{ '" + OPENED.replace("\n", "\\n") + "' }}"


def tokenizer(template: str = NEW) -> PreTrainedTokenizerFast:
    """Byte-level BPE that begins a plain text with one BOS, as Llama 3's does."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|pad|>", BOS, EOT, END, "<|start_header_id|>", "<|end_header_id|>"]
    raw.train_from_iterator(
        ["user assistant the answer names the dose [CONTEXT] [RESPONSE A] [RESPONSE B] <turn>"],
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    raw.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, raw.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<|pad|>",
        bos_token=BOS,
        eos_token=EOT,
        chat_template=template,
    )


def save(folder, labels: int = 0, template: str = NEW, positions: int = 1024, seed: int = 0):
    """A Llama of 2 layers with grouped queries: causal, or a classifier of ``labels``; its
    folder."""
    words = tokenizer(template)
    settings = LlamaConfig(
        vocab_size=len(words),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=positions,
        initializer_range=0.2,
        pad_token_id=words.pad_token_id,
        num_labels=labels or 2,
    )
    torch.manual_seed(seed)
    kind = LlamaForSequenceClassification if labels else LlamaForCausalLM
    kind(settings).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def groups() -> list[Group]:
    """Two conversations, of one turn and of three, with three and two answers of unlike length."""
    made = []
    for i, (turns, answers) in enumerate(
        [
            ([("user", "How much?")], ["Two a day.", "Ask again " * 9, "None"]),
            (
                [("user", "I feel ill."), ("assistant", "Since when?"), ("user", "Monday")],
                ["Rest.", "See a doctor now."],
            ),
        ]
    ):
        name = f"i{i}"
        asked = Instruction(
            id=name,
            category="c",
            specialty="s",
            source="test",
            difficulty=5,
            messages=[{"role": r, "content": t} for r, t in turns],
        )
        criteria = (
            Criterion(
                id=f"{name}-dose", dimension="proficiency", text="names the dose", weight=1.0
            ),
            Criterion(
                id=f"{name}-safe", dimension="safety", text="does not play it down", weight=0.0
            ),
        )
        given = tuple(
            Candidate(id=f"{name}{letter}", instruction_id=name, generator=letter, text=text)
            for letter, text in zip("abc", answers)
        )
        made.append(Group(asked, criteria, given, {}))
    return made
