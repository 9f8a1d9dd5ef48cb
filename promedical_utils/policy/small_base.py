"""A base of random weights, for where a pretrained one is too large: a tokenizer and a small Qwen3,
saved as a hub model is. It has read nothing, so no claim is made of what it does."""

from collections.abc import Sequence

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from promedical_utils.core.profiles import Profile

# ChatML, as Qwen3 uses it, without its thinking block
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"


def train_tokenizer(texts: Sequence[str], vocabulary: int):
    """Byte-level BPE of at most ``vocabulary`` tokens, with a chat template."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=8192,
        padding_side="right",
    )


def new_model(tokenizer, p: Profile):
    """A causal LM of the profile's ``base_`` sizes, embeddings tied, at random."""
    transformers.set_seed(p.seed)
    heads = p.base_width // 32
    config = transformers.Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=p.base_width,
        intermediate_size=3 * p.base_width,
        num_hidden_layers=p.base_layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=32,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    return transformers.Qwen3ForCausalLM(config)
