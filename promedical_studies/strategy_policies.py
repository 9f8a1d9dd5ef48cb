"""Policies that choose a strategy: what they read, how they learn from pairs, which they choose."""

import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from promedical_studies.seekers import STRATEGIES, TEXTS, History, Turn
from promedical_studies.strategy_search import Pair
from promedical_utils.core.profiles import Profile


def answer(turn: Turn) -> str:
    return f"({turn.strategy}) {turn.text}"


def messages(history: History) -> list[dict]:
    """What a policy reads: the strategies, then the dialogue as text and nothing that is hidden."""
    system = f"{TEXTS['prompts']['policy'].strip()} {', '.join(STRATEGIES)}."
    read = [{"role": "system", "content": system}]
    for turn in history:
        of_supporter = {"role": "assistant", "content": answer(turn)} if turn.strategy else None
        read.append(of_supporter or {"role": "user", "content": turn.text})
    return read


def written(history: History) -> list[tuple[list[dict], str]]:
    """(messages, answer) of every turn of the supporter, as ``policy.sft`` takes them."""
    return [(messages(history[:n]), answer(t)) for n, t in enumerate(history) if t.strategy]


def align(base: Path, pairs: Sequence[Pair], profile: Profile, steps: int, out: Path) -> Path:
    """DPO from ``base`` by the kit's trainer, ``steps`` of grpo_prompts pairs; a folder as a hub
    model's. Pairs are shuffled, and come again where they are fewer."""
    from datasets import Dataset

    from promedical_utils.policy import model as policy
    from promedical_utils.policy import training
    from promedical_utils.reward_model import packing

    own = {
        "policy_optimizer": "dpo",
        "grpo_steps": steps,
        "grpo_eval_every": steps,
        "grpo_group": 2,
    }
    p = profile.model_copy(update=own)
    model, tokenizer = policy.load_base(base, p)
    rows, needed = [], steps * p.grpo_prompts
    for pair in random.Random(p.seed).sample(pairs, min(len(pairs), needed)):
        texts = [answer(turn) for turn in (pair.chosen, pair.rejected)]
        chosen, rejected = packing.text_ids(tokenizer, texts)
        prompt = packing.prompt_ids(tokenizer, messages(pair.history))
        rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
    arguments = training.settings(p, out / "trainer")
    trainer = training.trainer(model, tokenizer, Dataset.from_list(rows), arguments, p)
    trainer.train()
    aligned = trainer.model.merge_and_unload() if p.grpo_lora_rank else trainer.model
    aligned.save_pretrained(out)
    tokenizer.save_pretrained(out)
    shutil.rmtree(out / "trainer", ignore_errors=True)
    return out


def likeliest(model, tokenizer, history: History) -> str:
    """The strategy whose name in brackets is the likeliest beginning of the next turn."""
    import torch

    from promedical_utils.reward_model import packing

    tails = tokenizer([f"({name})" for name in STRATEGIES], add_special_tokens=False).input_ids
    tails = torch.nn.utils.rnn.pad_sequence([torch.tensor(t) for t in tails], True, -1)
    tails, ids = tails.to(model.device), packing.prompt_ids(tokenizer, messages(history))
    with torch.no_grad():
        read = model(torch.tensor([ids], device=model.device), use_cache=True, logits_to_keep=1)
        first = read.logits.expand(len(tails), -1, -1)
        read.past_key_values.batch_repeat_interleave(len(tails))
        rest = model(tails.clamp(min=0), past_key_values=read.past_key_values).logits[:, :-1]
    logs = torch.cat([first, rest], 1).float().log_softmax(-1)
    logs = logs.gather(-1, tails.clamp(min=0)[..., None])[..., 0]
    return STRATEGIES[int((logs * (tails >= 0)).sum(1).argmax())]
