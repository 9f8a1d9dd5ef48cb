"""What packing saves in time, beside TRL's RewardTrainer on expanded pairs; run by ``make bench``.

A reading is (shared ids, ids of each criterion). One by one, each of its K criteria is a sequence
[shared][c] of its own; packed, all share one. Counted in tokens that is the bound
K (L + C) / (L + K C); what is measured stays under it by padding and the mask, or above it where
fewer and longer sequences run better.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import (
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)
from trl import RewardConfig, RewardTrainer

from promedical_utils import clinic
from promedical_utils.clinic import lessons, vocabulary
from promedical_utils.core import plotting, profiles, run_data
from promedical_utils.core.workspace import write_json
from promedical_utils.pipeline import preference_pairs, rubrics
from promedical_utils.policy import small_base
from promedical_utils.report import figures
from promedical_utils.reward_model import grouped, packing, training
from promedical_utils.rubric import preferences

SHARED, CRITERIA, TAIL = 480, 7, 32  # tokens, criteria, tokens: the published case
LAYERS, WIDTH, VOCABULARY = 8, 512, 2048
BUDGET = 2048  # padded tokens of one pass: on two cores near the best of either side
LONGEST = 8192  # tokens of one sequence
KS, LS = (1, 2, 4, 7, 12, 16), (64, 128, 256, 480, 1024, 2048, 4096)
SIDES = ("one_by_one", "packed")
Reading = tuple[list[int], list[list[int]]]


def model(side: str):
    """A random Qwen3-architecture reward model in fp32, 8 layers of width 512, the same for both.

    One by one it has transformers' own attention, which skips what a causal mask hides.
    """
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=WIDTH // 64,
        num_key_value_heads=WIDTH // 64,
        head_dim=64,
        max_position_embeddings=8192,
        pad_token_id=0,
        num_labels=1,
    )
    config._attn_implementation = packing.ATTENTION if side == "packed" else "sdpa"
    return packing.read_many(Qwen3ForSequenceClassification(config).eval())


def readings(shared: int, criteria: int, tail: int, responses: int) -> list[Reading]:
    """``responses`` random readings of one shape."""
    draw = torch.Generator().manual_seed(shared + criteria)
    ids = torch.randint(3, VOCABULARY, (responses, shared + criteria * tail), generator=draw)
    return [
        (row[:shared], [row[at : at + tail] for at in range(shared, len(row), tail)])
        for row in ids.tolist()
    ]


def pair_rows(found: Sequence[Reading]) -> list[dict]:
    """Training rows: every two readings are a chosen and a rejected answer, all criteria differ."""
    rows = []
    for chosen, rejected in zip(found[::2], found[1::2], strict=True):
        packed = [packing.pack(*reading, LONGEST)[0] for reading in (chosen, rejected)]
        k = len(chosen[1])
        rows.append(
            {
                "ids": [p.ids for p in packed],
                "starts": [p.starts for p in packed],
                "heads": [[], []],
                "pairs": [[i, i + k] for i in range(k)],
                "targets": [training.MASKED] * 2 * k,
            }
        )
    return rows


def clinic_rows(instructions: int) -> list[dict]:
    """Training rows of the bench split of a small clinic: three answers, about nine criteria.

    As many criteria tell two answers apart as on the bench: by the true verdicts. Longest first.
    """

    profile = profiles.load("smoke", bench_samples=max(24, instructions))
    with TemporaryDirectory() as folder:
        rubrics.make_rubrics(profile, Path(folder))
        preference_pairs.make_preference_pairs(profile, Path(folder))
        data = run_data.RunData.load(Path(folder))
        groups = preferences.groups_of(data, "truth", "bench")[:instructions]
    world = clinic.build(profile)
    texts = [m.content for i in world.instructions for m in i.messages]
    texts += [c.text for g in groups for c in (*g.candidates, *g.criteria)]
    words = vocabulary.single_tokens()
    tokenizer = small_base.train_tokenizer(lessons.corpus(texts), VOCABULARY, words)
    rows = training.training_rows(groups, tokenizer, "criterion", LONGEST)[0]
    return sorted(rows, key=lambda row: -max(map(len, row["ids"])))


def of_rows(rows: Sequence[dict]) -> list[Reading]:
    """The readings in training rows."""
    return [
        (ids[: starts[0]], [ids[a:b] for a, b in zip(starts, starts[1:])])
        for row in rows
        for ids, starts in zip(row["ids"], row["starts"], strict=True)
    ]


def expanded(rows: Sequence[dict]) -> list[dict]:
    """TRL's rows: each pair's chosen and rejected sequence, whole, longest first."""
    result = []
    for row in rows:
        whole = [shared + tail for shared, tails in of_rows([row]) for tail in tails]
        result += [{"chosen_ids": whole[a], "rejected_ids": whole[b]} for a, b in row["pairs"]]
    return sorted(result, key=lambda r: -max(map(len, r.values())))


def tokens(found: Sequence[Reading]) -> dict[str, int]:
    """Tokens that are read for scoring, by side."""
    return {
        "one_by_one": sum(len(s) + len(t) for s, tails in found for t in tails),
        "packed": sum(len(s) + sum(map(len, tails)) for s, tails in found),
    }


def training_tokens(rows: Sequence[dict]) -> dict[str, int]:
    return {
        "one_by_one": sum(len(ids) for row in expanded(rows) for ids in row.values()),
        "packed": tokens(of_rows(rows))["packed"],
    }


@torch.no_grad()
def score(side: str, reward_model, found: Sequence[Reading]) -> list[float]:
    """Scores of all criteria of all readings; length-sorted batches within the token budget."""
    if side == "packed":
        sequences = [part for reading in found for part in packing.pack(*reading, LONGEST)]
        values = packing.scores(reward_model, sequences, 0, BUDGET)
        return [value for row in values for value in row]
    whole = [shared + tail for shared, tails in found for tail in tails]
    scores = [0.0] * len(whole)
    for rows in packing.batches([len(ids) for ids in whole], BUDGET):
        length = len(whole[rows[0]])
        ids = torch.tensor([whole[i] + [0] * (length - len(whole[i])) for i in rows])
        mask = None if (ids != 0).all() else (ids != 0).long()
        for i, (value,) in zip(
            rows, reward_model(input_ids=ids, attention_mask=mask).logits.tolist()
        ):
            scores[i] = value
    return scores


def trainer(side: str, reward_model, rows: Sequence[dict], steps: int, folder: str):
    """A trainer whose ``train()`` goes over ``rows`` once: TRL's on pairs, or the kit's, packed.

    Full fine-tuning in fp32 with AdamW in ``steps`` steps, no gradient checkpointing, sorted by
    length. TRL's batches hold as many pairs as the budget, and are accumulated to a step.
    """
    pairs = expanded(rows)
    longest = max(len(ids) for pair in pairs for ids in pair.values())
    held = min(math.ceil(len(pairs) / steps), max(1, BUDGET // (2 * longest)))
    batch = {
        "packed": (math.ceil(len(rows) / steps), 1),
        "one_by_one": (held, math.ceil(len(pairs) / steps / held)),
    }[side]
    words = Tokenizer(models.WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<end>"))
    arguments = dict(
        model=reward_model,
        processing_class=PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="<end>"
        ),
        args=RewardConfig(
            output_dir=folder,
            per_device_train_batch_size=batch[0],
            gradient_accumulation_steps=batch[1],
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            max_length=None,
            bf16=False,
            use_cpu=True,
            activation_checkpointing=False,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            remove_unused_columns=False,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            learning_rate=1e-5,
        ),
    )
    if side == "packed":
        return training.PackedRewardTrainer(
            train_dataset=grouped.dataset(rows, range(len(rows))),
            pointwise_weight=0.0,
            data_collator=training.RewardPasses(0, BUDGET),
            **arguments,
        )
    plain = RewardTrainer(train_dataset=Dataset.from_list(pairs), **arguments)
    plain.remove_callback(PrinterCallback)
    return plain


def summary(measured: Mapping) -> pd.DataFrame:
    """pytest-benchmark's json as a table: a row a case, seconds by side, ratio, bound, share of it.

    Seconds are medians over the rounds, ``ratio`` the median of the rounds' ratios, ``low`` and
    ``high`` its range. ``share`` is ratio over bound: 1 where time goes as tokens.
    """
    rows = []
    for info in (entry["extra_info"] for entry in measured["benchmarks"]):
        apart, packed = np.array(info["one_by_one_s"]), np.array(info["packed_s"])
        ratios = apart / packed
        rows.append(
            {
                **{k: info[k] for k in ("task", "case", "L", "K", "C", "bound", "padding")},
                "one_by_one_s": np.median(apart),
                "packed_s": np.median(packed),
                "rounds": len(packed),
                "ratio": np.median(ratios),
                "low": ratios.min(),
                "high": ratios.max(),
            }
        )
    frame = pd.DataFrame(rows)
    return frame.assign(share=frame.ratio / frame.bound)


def save(measured: Mapping, folder: Path) -> pd.DataFrame:
    """Write speed.csv, .json, .png, .pdf to ``folder``; nothing in them names the machine."""
    frame = summary(measured)
    cpu, versions = measured["machine_info"].get("cpu", {}), {"torch": torch.__version__}
    machine = {
        "processor": cpu.get("brand_raw", ""),
        "cores": torch.get_num_threads(),
        "busy_before_percent": measured["benchmarks"][0]["extra_info"]["busy"],
    }
    write_json(
        folder / "speed.json",
        {
            "cases": frame.round(4).to_dict("records"),
            "machine": machine,
            "versions": versions,
            "model": {"layers": LAYERS, "width": WIDTH, "precision": "fp32"},
            "budget_tokens": BUDGET,
            "statistic": "median over rounds in which the sides take turns",
        },
    )
    plotting.save(figures.plot_speed, frame, folder, "speed")
    return frame
