"""Policies in use: load one, let it answer held-out prompts, measure the answers.

``training`` trains them against ``veto_reward``.
"""

import contextlib
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import huggingface_hub.constants
import pandas as pd
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Instruction, Rubric
from promedical_utils.core.workspace import need
from promedical_utils.policy import shared_base
from promedical_utils.policy.generation import Answer, generate
from promedical_utils.policy.veto_reward import answer_verdicts
from promedical_utils.reward_model import model as reward_model
from promedical_utils.rubric import scoring

NOTEBOOK = "05_grpo_with_veto"
# (instruction id, text) pairs -> {criterion id: verdict} each
Judge = Callable[[Sequence[tuple[str, str]]], Sequence[Mapping[str, str]]]
JUDGES = ("truth", "judged")


def answers_of(
    model,
    tokenizer,
    instructions: Sequence[Instruction],
    profile: Profile,
    seed: int,
    batch: int = 64,
) -> list[Answer]:
    """One answer per instruction, sampled as in training (``grpo_temperature``, ``grpo_top_p``)."""
    p = profile
    return generate(
        model,
        tokenizer,
        instructions,
        p.grpo_max_tokens,
        p.grpo_temperature,
        p.grpo_top_p,
        seed,
        batch,
    )


def judge(
    name: str,
    instructions: Sequence[Instruction],
    answers: Sequence[Answer],
    rubrics: Mapping[str, Rubric],
    gold: Judge | None,
    judged: Judge | None,
    conditions: Mapping | None = None,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(answers, verdicts) of the policy ``name``, read by the truth (``gold``) and by the judge.

    answers, a row an instruction: policy, instruction_id, condition, category, specialty, text,
    s1, s2, s3, bonus (number of excellence criteria), violation, plain_violation (a safety
    criterion is not met, where other violations are unknown) and unparsed (an unknown among the
    verdicts) by the truth, NaN without it; judged_s1, judged_s2, judged_s3 by the judge; tokens,
    finished. verdicts: a row an instruction, criterion and judge, with dimension, kind and weight.
    """
    pairs = [(i.id, a.text) for i, a in zip(instructions, answers, strict=True)]
    said = {n: by(pairs) for n, by in zip(JUDGES, (gold, judged), strict=True) if by}
    rows, verdicts = [], []
    for number, (instruction, answer) in enumerate(zip(instructions, answers, strict=True)):
        rubric, scores, heard = rubrics[instruction.id], {}, {}
        for reader, found in said.items():
            heard[reader] = answer_verdicts(rubric, found[number], answer.finished)
            scores[reader] = scoring.score(rubric, heard[reader])
            verdicts += [
                {
                    "policy": name,
                    "instruction_id": instruction.id,
                    "criterion_id": c.id,
                    "dimension": c.dimension,
                    "kind": c.kind,
                    "weight": c.weight,
                    "judge": reader,
                    "verdict": heard[reader].get(c.id, "unknown"),
                }
                for c in rubric.criteria
            ]
        true, seen = scores.get("truth"), scores.get("judged")
        said_plainly = (
            any(
                heard["truth"].get(c.id) == "not_met"
                for c in rubric.criteria
                if c.dimension == "safety"
            )
            if true
            else math.nan
        )
        rows.append(
            {
                "policy": name,
                "instruction_id": instruction.id,
                "condition": (conditions or {}).get(instruction.id, instruction.id),
                "category": instruction.category,
                "specialty": instruction.specialty,
                "text": answer.text,
                **{key: getattr(true, key, math.nan) for key in ("s1", "s2", "s3")},
                "bonus": sum(c.dimension == "excellence" for c in rubric.criteria),
                "violation": float(true.s3 > 0) if true else math.nan,
                "plain_violation": float(said_plainly),
                "unparsed": float("unknown" in said["truth"][number].values())
                if true
                else math.nan,
                **{f"judged_{key}": getattr(seen, key, math.nan) for key in ("s1", "s2", "s3")},
                "tokens": answer.tokens,
                "finished": answer.finished,
            }
        )
    return pd.DataFrame(rows), pd.DataFrame(verdicts)


@torch.no_grad()
def divergence(
    policy, reference: Callable, answers: Sequence[Answer], temperature: float, tokens: int = 8192
) -> tuple[list[float], list[float]]:
    """(KL(policy || reference), entropy) of each answer, both exact over the vocabulary.

    KL is summed over the answer's tokens, in nats an answer; entropy is the mean, in nats a token.
    ``reference`` is a context manager that yields the reference model; both are at ``temperature``,
    without the nucleus, as the loss sees them. ``tokens``: padded tokens of one pass.
    """
    kl, entropy = [math.nan] * len(answers), [math.nan] * len(answers)
    sizes = [len(a.prompt) + len(a.ids) for a in answers]
    training, order = policy.training, sorted(range(len(answers)), key=lambda n: sizes[n])
    policy.eval()
    while order:
        size = max(1, tokens // sizes[order[-1]])
        rows, order = order[-size:], order[:-size]
        width = max(sizes[n] for n in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask, asked = torch.zeros_like(ids), torch.zeros_like(ids)
        for row, n in enumerate(rows):
            whole = answers[n].prompt + answers[n].ids
            ids[row, : len(whole)], mask[row, : len(whole)] = torch.tensor(whole), 1
            asked[row, len(answers[n].prompt) - 1 : len(whole) - 1] = 1  # what predicts the answer
        ids, mask, asked = (part.to(policy.device) for part in (ids, mask, asked.bool()))
        own = _log_probabilities(policy, ids, mask, asked, temperature)
        with reference() as other:
            others = _log_probabilities(other, ids, mask, asked, temperature)
        distance = (own.exp() * (own - others)).sum(-1)
        spread = -(own.exp() * own).sum(-1)
        of = torch.nonzero(asked)[:, 0]
        for row, n in enumerate(rows):
            kl[n] = float(distance[of == row].sum())
            entropy[n] = float(spread[of == row].mean())
    policy.train(training)
    return kl, entropy


def _log_probabilities(model, ids, mask, asked, temperature: float):
    """Log-probabilities of the vocabulary where ``asked`` (B, T) is true: (positions, V)."""
    logits = model(input_ids=ids, attention_mask=mask).logits[asked]
    return torch.log_softmax(logits.float() / temperature, -1)


def precision_of(profile: Profile) -> torch.dtype:
    """The dtype that a policy computes in: the reward model's on a GPU, fp32 on a CPU."""
    return (
        reward_model.compute_dtype(profile.precision)
        if torch.cuda.is_available()
        else torch.float32
    )


def load_base(base: Path | str, profile: Profile):
    """(model, tokenizer) of the base, as GRPO starts from it."""
    with quiet():
        tokenizer = reward_model.tokenizer_of(base)
        if profile.grpo_lora_rank:
            return shared_base.load(base, precision_of(profile), profile.quantization), tokenizer
        # steps of 1e-6 vanish in bf16 weights: full fine-tuning keeps fp32 and computes in bf16
        return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), tokenizer


def load_policy(path: Path, base: Path | str, profile: Profile) -> torch.nn.Module:
    """The policy that training wrote into ``path``: whole, or an adapter on ``base``."""
    folder = need(Path(path) / "model", NOTEBOOK)
    with quiet():
        if (folder / "adapter_config.json").exists():
            model = PeftModel.from_pretrained(load_base(base, profile)[0], folder)
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if not getattr(model, "is_loaded_in_4bit", False):
        model.to("cuda" if torch.cuda.is_available() else "cpu")
    return model.eval()


@contextlib.contextmanager
def quiet():
    """No bars, notices, deprecations or telemetry from the libraries; errors still raise."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL reports each trainer made
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="torch|trl|peft|transf")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
