"""Policies that choose a strategy: what they read, how they learn from pairs, which they choose."""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from datasets import Dataset

from promedical_studies.seekers import STRATEGIES, TEXTS, History, Turn
from promedical_studies.strategy_search import Pair
from promedical_utils.core.profiles import Profile
from promedical_utils.policy import model as policy
from promedical_utils.policy import training
from promedical_utils.reward_model import packing


def answer(turn: Turn) -> str:
    return f"({turn.strategy}) {turn.text}"


def messages(history: History) -> list[dict]:
    """What a policy reads: the strategies, then the dialogue as text and nothing that is hidden."""
    system = f"{TEXTS['prompts']['policy']} {', '.join(STRATEGIES)}."
    turns = [("assistant", answer(t)) if t.strategy else ("user", t.text) for t in history]
    return [{"role": role, "content": said} for role, said in [("system", system), *turns]]


def written(history: History) -> list[tuple[list[dict], str]]:
    """(messages, answer) of every turn of the supporter, as ``policy.sft`` takes them."""
    return [(messages(history[:n]), answer(t)) for n, t in enumerate(history) if t.strategy]


def align(base: Path, pairs: Sequence[Pair], profile: Profile, steps: int, out: Path) -> Path:
    """DPO from ``base`` by the kit's trainer, ``steps`` of grpo_prompts pairs, drawn by the seed;
    ``out``, a folder as a hub model's."""
    own = {"policy_optimizer": "dpo", "grpo_steps": steps, "grpo_eval_every": steps}
    p = profile.model_copy(update=own | {"grpo_group": 2})
    model, tokenizer = policy.load_base(base, p)
    rows, needed = [], steps * p.grpo_prompts
    for history, *turns in random.Random(p.seed).sample(pairs, min(len(pairs), needed)):
        ids = packing.prompt_ids(tokenizer, messages(history))
        ids = ids, *packing.text_ids(tokenizer, [answer(turn) for turn in turns])
        rows.append(dict(zip(("prompt_ids", "chosen_ids", "rejected_ids"), ids)))
    settings = training.settings(p, out / "trainer")
    trainer = training.trainer(model, tokenizer, Dataset.from_list(rows), settings, p)
    trainer.train()
    aligned = trainer.model.merge_and_unload() if p.grpo_lora_rank else trainer.model
    aligned.save_pretrained(out)
    tokenizer.save_pretrained(out)
    shutil.rmtree(out / "trainer", ignore_errors=True)
    return out


@torch.no_grad()
def likeliest(model, tokenizer, history: History) -> str:
    """The strategy whose name in brackets is the likeliest beginning of the next turn."""
    tails = [f"({name})" for name in STRATEGIES]
    tails = tokenizer(
        tails, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt"
    )
    ids, mask = tails.input_ids.to(model.device), tails.attention_mask.to(model.device)
    prompt = torch.tensor([packing.prompt_ids(tokenizer, messages(history))], device=model.device)
    read = model(prompt, use_cache=True, logits_to_keep=1)
    read.past_key_values.batch_repeat_interleave(len(ids))
    rest = model(ids, past_key_values=read.past_key_values).logits[:, :-1]
    logits = torch.cat([read.logits.expand(len(ids), -1, -1), rest], 1).float()
    logs = logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    return STRATEGIES[int((logs * mask).sum(1).argmax())]
