"""Training on groups of answers: their order, and how a step is cut into passes of a token budget.

A row is a group, as ``training.Taught`` says.
"""

import math
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import RewardConfig, RewardTrainer

from promedical_utils.core.workspace import KitError, shown
from promedical_utils.reward_model import hub, packing


class Schedule(NamedTuple):
    """``order``: row numbers of the whole training; ``batch`` rows a process, ``steps`` in all."""

    order: list[int]
    batch: int
    steps: int


def schedule(rows: Sequence[dict], batch: int, epochs: float, seed: int) -> Schedule:
    """Rows shuffled by ``seed``, alike lengths together, ``batch`` in a step of all processes: one
    list, and no sampler, so that a resumed run sees what the whole one would have seen."""
    draw, lengths = np.random.default_rng(seed), [max(map(len, row["ids"])) for row in rows]
    flat = np.concatenate([draw.permutation(len(rows)) for _ in range(math.ceil(epochs))])
    flat = flat[: max(1, round(epochs * len(rows)))].tolist()
    order: list[int] = []
    for start in range(0, len(flat), 16 * batch):
        part = sorted(flat[start : start + 16 * batch], key=lambda i: -lengths[i])
        whole = len(part) // batch  # a short batch, if any, stays last
        order += [i for k in draw.permutation(whole) for i in part[k * batch : (k + 1) * batch]]
        order += part[whole * batch :]
    processes = int(os.environ.get("WORLD_SIZE", 1))
    own = max(1, batch // processes)
    return Schedule(order, own, math.ceil(len(order) / (own * processes)))


def dataset(rows: Sequence[dict], order: Sequence[int]) -> Dataset:
    """The rows in their order, of all epochs, as a trainer takes them."""
    # TRL leaves rows alone that have these two columns: they are tokenised already
    tokenised = [row | {"chosen_ids": [], "rejected_ids": []} for row in rows]
    return Dataset.from_list(tokenised).select(order)


def flat(rows: Sequence[dict]) -> bool:
    """Whether the rows hold trees, which ``packing.collate`` does not pad."""
    return all(all(row["parents"]) for row in rows)


def passes_of(rows: Sequence[dict], budget: int) -> Iterator[list[dict]]:
    """The rows of each pass: at most ``budget`` padded tokens, or one row that is larger."""
    sizes = [list(map(len, row["ids"])) for row in rows]
    longest, counts = list(map(max, sizes)), list(map(len, sizes))
    if flat(rows):
        longest, counts = [1] * len(rows), list(map(sum, sizes))
    for part in packing.batches(longest, budget, counts):
        yield [rows[i] for i in part]


def padding(rows: Sequence[dict], batch: int, budget: int) -> float:
    """Share of padding in the passes over ``rows``, taken ``batch`` at a time, as in training."""
    if flat(rows):
        return 0.0
    used, whole = sum(len(ids) for row in rows for ids in row["ids"]), 0
    for start in range(0, len(rows), batch):
        for part in passes_of(rows[start : start + batch], budget):
            sizes = [len(ids) for row in part for ids in row["ids"]]
            whole += max(sizes) * len(sizes)
    return round(1 - used / whole, 4)


def arguments(
    checkpoints: Path, steps: int, batch: int, rate: float, dtype: torch.dtype, seed: int
) -> RewardConfig:
    """The settings of a training on groups, whose dataset holds all epochs; ``dtype``: what mixed
    precision computes in. What is trained is fp32, and so are head and loss."""
    # a checkpoint falls on a logged step: what was summed since the last log is not in it
    logged_every = max(1, steps // 40)
    return RewardConfig(
        **hub.trainer_settings(dtype, seed),
        output_dir=str(checkpoints),
        per_device_train_batch_size=batch,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        learning_rate=rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(0.06 * steps)),
        max_length=None,  # TRL would drop what is longer without a word; see ``left_out``
        logging_steps=logged_every,
        save_steps=logged_every * math.ceil(max(20, math.ceil(steps / 4)) / logged_every),
        save_total_limit=2,
        activation_checkpointing=torch.cuda.is_available(),
        remove_unused_columns=False,
    )


def lora(
    rank: int, head: str | None = "score", targets: str | Sequence[str] = "all-linear"
) -> LoraConfig:
    """Adapters of ``rank`` on all linear layers, or on those of the names ``targets``; ``head`` is
    trained whole, None: as it is."""
    # with neither task_type nor modules_to_save the head stays frozen at random, without a word
    return LoraConfig(
        task_type="SEQ_CLS" if head else "CAUSAL_LM",
        r=rank,
        lora_alpha=2 * rank,
        target_modules=targets if isinstance(targets, str) else list(targets),  # but the head
        modules_to_save=[head] if head else None,
    )


def course(trainer: RewardTrainer) -> float:
    """Train, on from the last whole checkpoint; seconds. KitError when the loss is not finite."""
    started, folder = time.monotonic(), Path(trainer.args.output_dir)
    # a checkpoint is whole where there is its trainer_state.json, which is written last
    whole = [state.parent for state in folder.glob("checkpoint-*/trainer_state.json")]
    last = max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)
    trainer.train(resume_from_checkpoint=last and str(last))
    if not all(math.isfinite(row["loss"]) for row in curve(trainer)):
        rate = trainer.args.learning_rate
        raise KitError(f"the loss of {shown(folder.parent)} is not finite: lower its rate, {rate}")
    return round(time.monotonic() - started, 1)


def curve(trainer: RewardTrainer) -> list[dict]:
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return [{key: entry[key] for key in ("step", "loss", "accuracy")} for entry in logged]
