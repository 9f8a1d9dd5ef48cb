"""PairRM-LLaMA3-8B: a language model that is asked which of two answers is better, and says A or B.

``RLHFlow/pair-preference-model-LLaMA3-8B`` (Dong et al., RLHF Workflow, arXiv 2405.07863), read as
its model card on the hub says: one user turn with [CONTEXT], [RESPONSE A] and [RESPONSE B] in the
model's own chat template without the beginning-of-sequence token, the probability from the logits
of the tokens A and B alone, and the mean over both orders against the habit of position. It sees no
criterion, so its one preference stands for all of a rubric; ``by="criterion"`` is the kit's own:
the criterion stands at the end of the context, for versions trained so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch

from promedical_utils.core.workspace import KitError
from promedical_utils.evaluation import scorers
from promedical_utils.evaluation.scorers import hub
from promedical_utils.reward_model import packing
from promedical_utils.rubric.preferences import Group

HUB = "RLHFlow/pair-preference-model-LLaMA3-8B"


def context(messages: Sequence[Mapping[str, str]]) -> str:
    """A conversation as the card's plain template renders it; a system turn counts as the
    user's."""
    turns = ""
    for message in messages:
        role = "assistant" if message["role"] == "assistant" else "user"
        turns += f"\n<turn> {role}\n {message['content']}"
    return f"\n{turns}\n"


def prompt_ids(tokenizer, messages: Sequence[Mapping[str, str]], a: str, b: str) -> list[int]:
    """Token ids up to where the model says A or B; ``messages`` end with the user's question."""
    content = f"[CONTEXT] {context(messages)} [RESPONSE A] {a} [RESPONSE B] {b} \n"
    # when the card was written Llama 3's template opened the assistant's turn unasked
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=False,
    )
    if tokenizer.bos_token:
        text = text.replace(tokenizer.bos_token, "")
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def letters(tokenizer) -> tuple[int, int]:
    """Token ids of A and of B; KitError where either is no single token."""
    ids = [tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in "AB"]
    if any(len(row) != 1 for row in ids):
        raise KitError("pair RM: A and B must be one token each in the model's tokenizer")
    return ids[0][0], ids[1][0]


@dataclass
class PairRM:
    """Pairwise alone. ``by``: what its preference is about, the answer or each criterion.

    >>> PairRM.load(HUB, nf4=True).pairwise(groups)  # doctest: +SKIP
    """

    model: torch.nn.Module
    tokenizer: object
    name: str = "pair_rm"
    by: Literal["answer", "criterion"] = "answer"
    max_tokens: int | None = None
    batch_tokens: int | None = None

    @classmethod
    def load(
        cls, source: Path | str, *, nf4: bool = False, dtype=torch.float32, **settings
    ) -> "PairRM":
        return cls(*hub.generator(source, nf4, dtype), **settings)

    def probabilities(self, sequences: Sequence[list[int]]) -> np.ndarray:
        """(N,) P(the answer shown as A is better) of ``prompt_ids`` sequences."""
        logits = hub.next_logits(self.model, sequences, letters(self.tokenizer), self.batch_tokens)
        a, b = np.array(logits, float).reshape(-1, 2).T
        return 1 / (1 + np.exp(b - a))  # softmax over the two letters

    def pairwise(self, groups: Sequence[Group]) -> pd.DataFrame:
        """``scorers.PAIRS``; KitError naming two answers that are too long together."""
        keys, texts = [], {}
        for group in groups:
            for criterion in group.criteria if self.by == "criterion" else (None,):
                *before, last = group.messages
                tail = packing.criterion_text(criterion) if criterion else ""
                messages = [*before, {**last, "content": last["content"] + tail}]
                name = criterion.id if criterion else ""
                about = f" on {name}" if name else ""
                for a, b in scorers.answer_pairs(group):
                    keys.append((group.instruction.id, name, a.id, b.id))
                    for x, y in ((a, b), (b, a)):
                        ids = prompt_ids(self.tokenizer, messages, x.text, y.text)
                        texts[f"candidates {x.id} and {y.id}{about}"] = ids
        sequences = scorers.named(texts, hub.limit_of(self.model, self.max_tokens), self.name)
        likely = self.probabilities(sequences)
        return scorers.both_orders(keys, likely[0::2], likely[1::2])
