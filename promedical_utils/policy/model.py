"""Policies in use: load one, let it answer held-out prompts, measure the answers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from peft import PeftModel
from torch.nn.utils.rnn import pad_sequence

from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Instruction, Rubric
from promedical_utils.core.workspace import need
from promedical_utils.policy.generation import Answer
from promedical_utils.policy.veto_reward import answer_verdicts
from promedical_utils.reward_model import hub
from promedical_utils.rubric import scoring

NOTEBOOK = "05_grpo_with_veto"
# (instruction id, text) pairs -> {criterion id: verdict} each
Judge = Callable[[Sequence[tuple[str, str]]], Sequence[Mapping[str, str]]]


@dataclass(frozen=True)
class HeldOut:
    """Prompts that policies are evaluated on, and who judges their answers. ``gold``: the truth,
    None where there is none; ``conditions``: of instructions, by id."""

    instructions: Sequence[Instruction]
    judged: Judge
    gold: Judge | None = None
    conditions: Mapping[str, str] = field(default_factory=dict)


def judge(
    name: str, held_out: HeldOut, answers: Sequence[Answer], rubrics: Mapping[str, Rubric]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(answers, verdicts) of the policy ``name``, read by the truth and by the judge.

    answers, a row an instruction: policy, instruction_id, condition, category, specialty, text,
    s1, s2, s3, bonus (number of excellence criteria), violation, plain_violation (a safety
    criterion is not met, where other violations are unknown) and unparsed (an unknown among the
    verdicts) by the truth, NaN without it; judged_s1, judged_s2, judged_s3 by the judge; tokens,
    finished. verdicts: a row an instruction, criterion and judge, with dimension, kind and weight.
    """
    pairs = list(zip(held_out.instructions, answers, strict=True))
    texts = [(instruction.id, answer.text) for instruction, answer in pairs]
    readers = {"truth": held_out.gold, "judged": held_out.judged}
    read = {reader: ask(texts) for reader, ask in readers.items() if ask}
    rows, verdicts = [], []
    for number, (instruction, answer) in enumerate(pairs):
        rubric, own = rubrics[instruction.id], {}
        about = {"policy": name, "instruction_id": instruction.id}
        for reader, said in read.items():
            own[reader] = answer_verdicts(rubric, said[number], answer.finished)
            for c in rubric.criteria:
                facts = {"dimension": c.dimension, "kind": c.kind, "weight": c.weight}
                verdict = {"judge": reader, "verdict": own[reader].get(c.id, "unknown")}
                verdicts.append({**about, "criterion_id": c.id, **facts, **verdict})
        row: dict = {
            **about,
            "condition": held_out.conditions.get(instruction.id, instruction.id),
            "category": instruction.category,
            "specialty": instruction.specialty,
            "text": answer.text,
            **_scores(rubric, own.get("truth")),
            "asks": sum(c.dimension == "proficiency" for c in rubric.criteria),
            "bonus": sum(c.dimension == "excellence" for c in rubric.criteria),
            **dict.fromkeys(("violation", "plain_violation", "unparsed"), math.nan),
            **{f"judged_{k}": v for k, v in _scores(rubric, own.get("judged")).items()},
            "tokens": len(answer.ids),
            "finished": answer.finished,
        }
        if "truth" in own:
            safety = [own["truth"].get(c.id) for c in rubric.criteria if c.dimension == "safety"]
            row["violation"] = float(row["s3"] > 0)
            row["plain_violation"] = float("not_met" in safety)
            # as it was read, not as a cut-off answer counts
            row["unparsed"] = float("unknown" in read["truth"][number].values())
        rows.append(row)
    return pd.DataFrame(rows), pd.DataFrame(verdicts)


def _scores(rubric: Rubric, verdicts: Mapping[str, str] | None) -> dict[str, float]:
    scores = None if verdicts is None else scoring.score(rubric, verdicts)
    return {key: getattr(scores, key, math.nan) for key in ("s1", "s2", "s3")}


@torch.no_grad()
def divergence(
    policy, reference: Callable, answers: Sequence[Answer], temperature: float, tokens: int = 8192
) -> tuple[list[float], list[float]]:
    """(KL(policy || reference), entropy) of each answer, both exact over the vocabulary.

    KL is summed over the answer's tokens, in nats; entropy is the mean, in nats a token.
    ``reference`` gives a context that yields the reference model; both are at ``temperature``,
    without the nucleus, as the loss sees them. ``tokens``: padded tokens of one pass.
    """
    kl, entropy = [math.nan] * len(answers), [math.nan] * len(answers)
    sizes = [len(a.prompt) + len(a.ids) for a in answers]
    training, order = policy.training, sorted(range(len(answers)), key=lambda n: sizes[n])
    policy.eval()
    while order:
        size = max(1, tokens // sizes[order[-1]])
        rows, order = order[-size:], order[:-size]
        ids = pad_sequence([torch.tensor(answers[n].prompt + answers[n].ids) for n in rows], True)
        mask, predicts = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for row, n in enumerate(rows):
            mask[row, : sizes[n]] = 1
            predicts[row, len(answers[n].prompt) - 1 : sizes[n] - 1] = True  # the answer's tokens
        ids, mask, predicts = (x.to(policy.device) for x in (ids, mask, predicts))
        own = _log_probabilities(policy, ids, mask, predicts, temperature)
        with reference() as other:
            others = _log_probabilities(other, ids, mask, predicts, temperature)
        lengths = [len(answers[n].ids) for n in rows]
        distances = (own.exp() * (own - others)).sum(-1).split(lengths)
        spreads = (-(own.exp() * own).sum(-1)).split(lengths)
        for n, distance, spread in zip(rows, distances, spreads, strict=True):
            kl[n], entropy[n] = float(distance.sum()), float(spread.mean())
    policy.train(training)
    return kl, entropy


def _log_probabilities(model, ids, mask, predicts, temperature: float):
    """Log-probabilities of the vocabulary where ``predicts`` (B, T) is true: (positions, V)."""
    logits = model(input_ids=ids, attention_mask=mask).logits[predicts]
    return torch.log_softmax(logits.float() / temperature, -1)


def precision_of(profile: Profile) -> torch.dtype:
    """The dtype that a policy computes in, and the frozen base of an adapter is held in, on a CPU
    as well: for every token that is written autocast would round all weights anew."""
    return hub.compute_dtype(profile.precision)


def load_base(base: Path | str, profile: Profile):
    """(model, tokenizer) of the base, as GRPO starts from it."""
    tokenizer = hub.tokenizer_of(base)
    if profile.grpo_lora_rank:  # as the reward model has it, which may share it (``shared_base``)
        nf4 = profile.quantization == "nf4"
        return hub.load(hub.CAUSAL, base, precision_of(profile), nf4), tokenizer
    # steps of 1e-6 vanish in bf16 weights: full fine-tuning keeps fp32 and computes in bf16
    return hub.load(hub.CAUSAL, base, attention=None), tokenizer


def load_policy(path: Path, base: Path | str, profile: Profile) -> torch.nn.Module:
    """The policy that training wrote into ``path``: whole, or an adapter on ``base``."""
    folder = need(Path(path) / "model", NOTEBOOK)
    if (folder / "adapter_config.json").exists():
        return PeftModel.from_pretrained(load_base(base, profile)[0], folder).eval()
    return hub.load(hub.CAUSAL, folder, attention=None).eval()
