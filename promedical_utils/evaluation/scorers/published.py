"""Models of others by hub id (or folder), loaded and read as published: no weight of them is new.

Heads work in fp32 whatever the body does: bf16 logits tie. No text is cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence

from promedical_utils.core.workspace import KitError
from promedical_utils.evaluation import scorers
from promedical_utils.reward_model import hub, packing
from promedical_utils.reward_model.model import BATCH_TOKENS
from promedical_utils.rubric.preferences import Group

VERIFIED = (  # response, reference
    "<Model Response>\n{}\n</Model Response>\n\n<Reference Answer>\n{}\n</Reference Answer>\n\n"
    "Your task is to evaluate the model response by comparing it to the reference answer. If the "
    'model response is correct and aligns with the reference answer, output "True" . If it is '
    "incorrect or fails to select the correct option (if options are provided), output "
    '"False" . '
)


def scalar_ids(tokenizer, messages: Sequence[Mapping[str, str]], answer: str) -> list[int]:
    """Token ids of a conversation with its answer; the template writes the one beginning token."""
    turns = [*messages, {"role": "assistant", "content": answer}]
    return packing.templated(tokenizer, turns, return_dict=False)


def verifier_ids(tokenizer, response: str, reference: str) -> list[int]:
    """Token ids of one response and its reference; the tokenizer adds what it begins texts with."""
    return tokenizer(VERIFIED.format(response, reference) + tokenizer.eos_token)["input_ids"]


def pair_ids(tokenizer, messages: Sequence[Mapping[str, str]], a: str, b: str) -> list[int]:
    """Token ids up to where PairRM says A or B; ``messages`` end with the user's question. As the
    card's plain template renders them; a system turn counts as the user's."""
    turns = ""
    for message in messages:
        role = "assistant" if message["role"] == "assistant" else "user"
        turns += f"\n<turn> {role}\n {message['content']}"
    content = f"[CONTEXT] \n{turns}\n [RESPONSE A] {a} [RESPONSE B] {b} \n"
    turn = {"role": "user", "content": content}
    # when the card was written Llama 3's template opened the assistant's turn unasked
    text = packing.templated(tokenizer, [turn], tokenize=False, add_generation_prompt=True)
    if tokenizer.bos_token:
        text = text.replace(tokenizer.bos_token, "")
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def letters(tokenizer) -> list[int]:
    """Token ids of A and of B; KitError where either is no single token."""
    ids = [tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in "AB"]
    if any(len(row) != 1 for row in ids):
        raise KitError("pair RM: A and B must be one token each in the model's tokenizer")
    return [token for [token] in ids]


@dataclass
class Published:
    """``outputs``: labels of the head, 0 of a causal model; ``chat``: read by its template."""

    model: torch.nn.Module
    tokenizer: object
    name, outputs, chat = "", 0, True

    @classmethod
    def load(cls, source: Path | str, *, nf4: bool = False, dtype=torch.float32):
        """KitError where the model cannot be had, has another head, or lacks its template."""
        tokenizer = hub.plain_tokenizer(source)
        if cls.chat and not tokenizer.chat_template:
            raise KitError(
                f"{source}: its tokenizer has no chat template, so nobody knows what it was shown"
            )
        kind = hub.CLASSIFIER if cls.outputs else hub.CAUSAL
        model = hub.load(kind, source, dtype, nf4, published=True).eval()
        if cls.outputs and (labels := model.config.num_labels) != cls.outputs:
            raise KitError(f"{hub.named(source)} has {labels} labels, not {cls.outputs}")
        return cls(packing.read_many(model) if cls.outputs else model, tokenizer)

    def logits(self, texts: Mapping[str, list[int]]) -> np.ndarray:
        """(N, outputs) after each text, given as {what to call it: token ids}."""
        limit = self.model.config.get_text_config().max_position_embeddings
        for what, ids in texts.items():
            if len(ids) > limit:
                raise KitError(
                    f"{self.name}: {what} takes {len(ids)} tokens with its prompt; the limit is "
                    f"{limit}; shorten the answer, or leave its sample out"
                )
        return self._read(list(texts.values()), BATCH_TOKENS.get(self.model.device.type, 8192))

    def _read(self, sequences: Sequence[list[int]], budget: int) -> np.ndarray:
        heads, pad = tuple(range(self.outputs)), self.model.config.pad_token_id or 0
        packed = [packing.Packed(ids, [len(ids)], heads) for ids in sequences]
        values = packing.scores(self.model, packed, pad, budget)
        return np.array(values, float).reshape(-1, self.outputs)


class ScalarRM(Published):
    """Overall alone: UltraMedRM-8B's one score for (question, answer), trained on preferences
    (UltraMedical, arXiv 2406.03949). It has no zero and gives no verdict."""

    name, outputs = "scalar_rm", 1

    def overall(self, groups: Sequence[Group]) -> pd.DataFrame:
        texts = {
            f"candidate {a.id}": scalar_ids(self.tokenizer, group.messages, a.text)
            for group in groups
            for a in group.candidates
        }
        return scorers.scores(groups, self.logits(texts)[:, 0])


class Verifier(Published):
    """Pointwise alone: medical_o1_verifier_3B's P(true) of a response, met above a half, read as in
    its authors' public script (HuatuoGPT-o1, arXiv 2412.18925): no question, and the second of two
    labels is *true*. The reference is the criterion's text (kit's decision), since the bench has no
    reference answers, and the best of the judged ones would hand it the labels that it is scored
    by. So it is used outside its training: a low value says that, too."""

    name, outputs, chat = "verifier", 2, False

    def pointwise(self, groups: Sequence[Group]) -> pd.DataFrame:
        texts = {
            f"candidate {a.id} on {c.id}": verifier_ids(self.tokenizer, a.text, c.text)
            for _, a, c in scorers.cells(groups)
        }
        false, true = self.logits(texts).T
        score = true - false
        return scorers.points(groups, score, 1 / (1 + np.exp(-score)), score > 0)


class PairRM(Published):
    """Pairwise alone: RLHFlow's pair-preference-model-LLaMA3-8B is asked of two answers, A or B
    (RLHF Workflow, arXiv 2405.07863), and read as its card says: by the logits of these two tokens,
    in both orders. It sees no criterion, so its one preference stands for all of a rubric."""

    name = "pair_rm"

    def pairwise(self, groups: Sequence[Group]) -> pd.DataFrame:
        keys, texts = [], {}
        for group in groups:
            for a, b in combinations(group.candidates, 2):
                keys.append((group.instruction.id, "", a.id, b.id))
                for x, y in ((a, b), (b, a)):
                    ids = pair_ids(self.tokenizer, group.messages, x.text, y.text)
                    texts[f"candidates {x.id} and {y.id}"] = ids
        a, b = self.logits(texts).T
        likely = 1 / (1 + np.exp(b - a))  # softmax over the two letters
        return scorers.both_orders(keys, likely[0::2], likely[1::2])

    @torch.no_grad()
    def _read(self, sequences: Sequence[list[int]], budget: int) -> np.ndarray:
        """(N, 2) logits of A and B as the next token."""
        model, values = self.model, np.empty((len(sequences), 2))
        rows = model.get_output_embeddings().weight[letters(self.tokenizer)].float()
        for batch in packing.batches([len(s) for s in sequences], budget):
            # padded on the right, which no token of a causal model sees
            ids = pad_sequence([torch.tensor(sequences[i]) for i in batch], batch_first=True)
            ends = torch.tensor([len(sequences[i]) - 1 for i in batch])
            mask = (torch.arange(ids.shape[1]) <= ends[:, None]).long()
            ids, mask, ends = (part.to(model.device) for part in (ids, mask, ends))
            states = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
            hidden = states.last_hidden_state[torch.arange(len(batch)), ends]  # (B, width)
            values[batch] = (hidden.float() @ rows.T).tolist()
        return values


KINDS = {kind.name: kind for kind in (ScalarRM, PairRM, Verifier)}
