"""medical_o1_verifier_3B: is a response right, held against a reference answer? Two labels.

``FreedomIntelligence/medical_o1_verifier_3B`` (HuatuoGPT-o1, arXiv 2412.18925): a sequence
classifier on Llama 3.2 3B; response and reference stand in tags, the question is not shown, and the
softmax's second label is *true*, above a half a pass; template and rule as its authors' public
script has them (its model card was not read).

What the reference is, is the kit's decision: the criterion's text. The bench has criteria for every
sample and no reference answers, the paper reports pointwise values of this verifier, which only a
reference a criterion gives, and the best of the judged answers would hand it the labels that it is
scored by, and an answer itself as its reference. So it is used outside what it was trained on:
a low value says that, too.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from promedical_utils.evaluation import scorers
from promedical_utils.evaluation.scorers import hub
from promedical_utils.rubric.preferences import Group

HUB = "FreedomIntelligence/medical_o1_verifier_3B"
ASKED = (
    "Your task is to evaluate the model response by comparing it to the reference answer. If the "
    'model response is correct and aligns with the reference answer, output "True" . If it is '
    "incorrect or fails to select the correct option (if options are provided), output "
    '"False" . '
)


def input_ids(tokenizer, response: str, reference: str) -> list[int]:
    """Token ids of one response and its reference; the tokenizer adds what it begins texts with."""
    tagged = (
        f"<Model Response>\n{response}\n</Model Response>\n\n<Reference "
        f"Answer>\n{reference}\n</Reference Answer>"
    )
    return tokenizer(f"{tagged}\n\n{ASKED}{tokenizer.eos_token}")["input_ids"]


@dataclass
class Verifier:
    """Pointwise alone: P(true), score the difference of the two logits, met above a half."""

    model: torch.nn.Module
    tokenizer: object
    name: str = "verifier"
    max_tokens: int | None = None
    batch_tokens: int | None = None

    @classmethod
    def load(
        cls, source: Path | str, *, nf4: bool = False, dtype=torch.float32, **settings
    ) -> "Verifier":
        return cls(*hub.classifier(source, 2, nf4, dtype), **settings)

    def scores(self, sequences: Sequence[list[int]]) -> np.ndarray:
        """(N,) logit of *true* less that of *false*, of ``input_ids`` sequences."""
        logits = hub.logits(self.model, sequences, 2, self.batch_tokens)
        false, true = np.array(logits, float).reshape(-1, 2).T
        return true - false

    def pointwise(self, groups: Sequence[Group]) -> pd.DataFrame:
        """``scorers.POINTS``; KitError naming an answer and criterion that are too long."""
        cells = [(g.instruction.id, a, c) for g in groups for a in g.candidates for c in g.criteria]
        texts = {
            f"candidate {a.id} on {c.id}": input_ids(self.tokenizer, a.text, c.text)
            for _, a, c in cells
        }
        limit = hub.limit_of(self.model, self.max_tokens)
        score = self.scores(scorers.named(texts, limit, self.name))
        frame = pd.DataFrame([(i, a.id, c.id) for i, a, c in cells], columns=scorers.SCORES[:3])
        return frame.assign(score=score, probability=1 / (1 + np.exp(-score)), met=score > 0)
