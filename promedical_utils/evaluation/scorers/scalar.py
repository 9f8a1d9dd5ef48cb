"""Scalar reward models as UltraMedRM-8B is one: one score for (question, answer), no criterion.

UltraMedical (arXiv 2406.03949) trains Llama-3-8B-Instruct with one output on preferences. Read in
the model's own chat template with the answer as the assistant's turn, at the last token. The score
has no zero and gives no verdict: only two answers to one question can be compared by it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from promedical_utils.core.workspace import KitError
from promedical_utils.evaluation import scorers
from promedical_utils.evaluation.scorers import hub
from promedical_utils.rubric.preferences import Group


def input_ids(tokenizer, messages: Sequence[Mapping[str, str]], answer: str) -> list[int]:
    """Token ids of a conversation with its answer; the template writes the one beginning token."""
    turns = [*messages, {"role": "assistant", "content": answer}]
    return tokenizer.apply_chat_template(turns, return_dict=False, enable_thinking=False)


@dataclass
class ScalarRM:
    """Overall alone: one score an answer."""

    model: torch.nn.Module
    tokenizer: object
    name: str = "scalar_hub"
    max_tokens: int | None = None
    batch_tokens: int | None = None

    @classmethod
    def load(
        cls, source: Path | str, *, nf4: bool = False, dtype=torch.float32, **settings
    ) -> "ScalarRM":
        model, tokenizer = hub.classifier(source, 1, nf4, dtype)
        if not tokenizer.chat_template:
            raise KitError(
                f"{source}: its tokenizer has no chat template, so nobody knows what it was shown"
            )
        return cls(model, tokenizer, **settings)

    def overall(self, groups: Sequence[Group]) -> pd.DataFrame:
        """``scorers.SCORES``; KitError naming an answer that is too long."""
        answers = [(g, a) for g in groups for a in g.candidates]
        texts = {
            f"candidate {a.id}": input_ids(self.tokenizer, g.messages, a.text) for g, a in answers
        }
        sequences = scorers.named(texts, hub.limit_of(self.model, self.max_tokens), self.name)
        logits = hub.logits(self.model, sequences, 1, self.batch_tokens)
        return scorers.scores(
            (g.instruction.id, a.id, score) for (g, a), [score] in zip(answers, logits, strict=True)
        )
