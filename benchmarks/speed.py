"""What packing saves in time, beside TRL's RewardTrainer on expanded pairs; run by ``make bench``.

A group is (prompt, its answers, each with the ids of its criteria). One by one, each criterion of
each answer is a sequence [prompt][answer][criterion]; packed, all of a group are one tree. ``work``
is the ratio of the two sides' operations, for tokens and for attention. It is no bound: what is
measured stays under it by what the sides do beside, or lies above it where one tree runs better
than many sequences.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from matplotlib.figure import Figure
from tokenizers import Tokenizer, models
from transformers import (
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen3Config,
    Qwen3ForSequenceClassification,
)
from trl import RewardConfig, RewardTrainer

from promedical_utils import clinic
from promedical_utils.core import plotting, profiles, run_data
from promedical_utils.core.plotting import BLUE, GREY, ORANGE, canvas
from promedical_utils.core.workspace import write_json
from promedical_utils.pipeline import preference_pairs, rubrics
from promedical_utils.policy import small_base
from promedical_utils.reward_model import grouped, packing, training
from promedical_utils.rubric import preferences

SHARED, CRITERIA, TAIL = 480, 7, 32  # tokens, criteria, tokens: the published case
LAYERS, WIDTH, VOCABULARY = 8, 512, 2048
BUDGET = 2048  # padded tokens of one pass: on two cores near the best of either side
LONGEST = 8192  # tokens of one sequence
KS, LS = (1, 2, 4, 7, 12, 16), (64, 128, 256, 480, 1024, 2048, 4096)
SIDES = ("one_by_one", "packed")
Group = tuple[list[int], list[tuple[list[int], list[list[int]]]]]


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


def groups(shared: int, criteria: int, tail: int, answers: int = 1, count: int = 1) -> list[Group]:
    """``count`` random groups; half of the ``shared`` tokens are the prompt's, half an answer's."""
    draw = torch.Generator().manual_seed(shared + criteria)
    sizes = [shared // 2] + ([shared - shared // 2] + [tail] * criteria) * answers
    found: list[Group] = []
    for ids in torch.randint(3, VOCABULARY, (count, sum(sizes)), generator=draw):
        prompt, *parts = [part.tolist() for part in ids.split(sizes)]
        each = [parts[i : i + 1 + criteria] for i in range(0, len(parts), 1 + criteria)]
        found.append((prompt, [(answer, tails) for answer, *tails in each]))
    return found


def trees(found: Sequence[Group]) -> list[packing.Packed]:
    return [tree for group in found for tree in packing.tree(*group, LONGEST)]


def paths(found: Sequence[Group]) -> list[list[int]]:
    """[prompt][answer][criterion] of each score, in order."""
    return [p + a + c for p, branches in found for a, tails in branches for c in tails]


def pair_rows(found: Sequence[Group]) -> list[dict]:
    """Training rows of groups of one shape: two answers are chosen and rejected on all criteria,
    those of two groups where a group has one."""
    answers, criteria = len(found[0][1]), len(found[0][1][0][1])
    held, rows = max(1, 2 // answers), []
    for start in range(0, len(found), held):
        packed = trees(found[start : start + held])
        scores = held * answers * criteria
        chosen = [k for k in range(scores) if k // criteria % 2 == 0]
        rows.append(
            {
                "ids": [p.ids for p in packed],
                "starts": [p.starts for p in packed],
                "heads": [[] for _ in packed],
                "parents": [p.parents for p in packed],
                "pairs": [[k, k + criteria] for k in chosen],
                "targets": [training.MASKED] * scores,
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
    tokenizer = small_base.train_tokenizer(texts, VOCABULARY)
    rows = training.training_rows(groups, tokenizer, "criterion", LONGEST, room=math.inf)[0]
    return sorted(rows, key=lambda row: -max(map(len, row["ids"])))


def of_rows(rows: Sequence[dict]) -> list[Group]:
    """The groups in training rows."""
    found: list[Group] = []
    for row in rows:
        for ids, starts, parents in zip(row["ids"], row["starts"], row["parents"], strict=True):
            found.append((ids[: starts[0]], []))
            for a, b, parent in zip(starts, starts[1:], parents, strict=False):
                if parent:
                    found[-1][1][-1][1].append(ids[a:b])
                else:
                    found[-1][1].append((ids[a:b], []))
    return found


def expanded(rows: Sequence[dict]) -> list[dict]:
    """TRL's rows: each pair's chosen and rejected sequence, whole, longest first."""
    result = []
    for row in rows:
        whole = paths(of_rows([row]))
        result += [{"chosen_ids": whole[a], "rejected_ids": whole[b]} for a, b in row["pairs"]]
    return sorted(result, key=lambda r: -max(map(len, r.values())))


def counted(apart: Sequence[list[int]], packed: Sequence[packing.Packed]) -> dict[str, float]:
    """How many times fewer ``tokens`` the packed side reads, and operations it does (``work``).

    A token takes 26 width operations in a layer's matrices (13 weights, a product and a sum each),
    and 4 for each token that it sees: as many as its position says.
    """
    sizes = [len(ids) for ids in apart], [len(p.ids) for p in packed]
    seen = (
        sum(n * (n + 1) / 2 for n in sizes[0]),
        sum(float((p.layout()[0] + 1).sum()) for p in packed),
    )
    work = [26 * WIDTH * sum(n) + 4 * pairs for n, pairs in zip(sizes, seen, strict=True)]
    return {"tokens": sum(sizes[0]) / sum(sizes[1]), "work": work[0] / work[1]}


def counted_in_scoring(found: Sequence[Group]) -> dict[str, float]:
    return counted(paths(found), trees(found))


def counted_in_training(rows: Sequence[dict]) -> dict[str, float]:
    return counted([ids for row in expanded(rows) for ids in row.values()], trees(of_rows(rows)))


@torch.no_grad()
def score(side: str, reward_model, found: Sequence[Group]) -> list[float]:
    """Scores of all criteria of all answers; length-sorted batches within the token budget."""
    if side == "packed":
        values = packing.scores(reward_model, trees(found), 0, BUDGET)
        return [value for row in values for value in row]
    whole = paths(found)
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
    """A trainer each ``train()`` of which goes over ``rows``: TRL's on pairs, or the kit's, packed.

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
    """pytest-benchmark's json as a table: a row a case, seconds by side, ratio, work, share of it.

    Seconds are medians over the rounds, ``ratio`` the median of the rounds' ratios, ``low`` and
    ``high`` its range. ``share`` is ratio over work: 1 where time goes as operations.
    """
    rows = []
    for info in (entry["extra_info"] for entry in measured["benchmarks"]):
        apart, packed = np.array(info["one_by_one_s"]), np.array(info["packed_s"])
        ratios = apart / packed
        rows.append(
            {
                **{
                    k: info[k] for k in ("task", "case", "L", "K", "C", "answers", "tokens", "work")
                },
                "one_by_one_s": np.median(apart),
                "packed_s": np.median(packed),
                "rounds": len(packed),
                "ratio": np.median(ratios),
                "low": ratios.min(),
                "high": ratios.max(),
            }
        )
    frame = pd.DataFrame(rows)
    return frame.assign(share=frame.ratio / frame.work)


def plot_speed(df: pd.DataFrame) -> Figure:
    """Times as fast packed as one by one, over K, over L, and of mixes: medians with the range of
    the rounds. The line is the ratio of the two sides' operations, which is no bound."""
    tasks = {
        "scoring": {"color": BLUE, "marker": "o"},
        "training": {"color": ORANGE, "marker": "s"},
    }
    labels = {"K": "criteria K, at 480 shared tokens", "L": "shared tokens L, at 7 criteria"}
    figure, [[over_k, over_l, mix]] = canvas(10.5, 3.4, 3)
    for axis, (column, label) in zip((over_k, over_l), labels.items(), strict=True):
        cases = df[df.case == f"over {column}"].sort_values(column)
        for task, style in tasks.items():
            part = cases[cases.task == task]
            ends = [part.ratio - part.low, part.high - part.ratio]
            axis.errorbar(part[column], part.ratio, ends, label=task, ls="", capsize=2, **style)
            if task == "scoring":
                axis.plot(part[column], part.work, color=GREY, lw=1, label="by operations")
        ticks = sorted(set(cases[column]))
        axis.set(xlabel=label, ylabel="times as fast packed", ylim=(0, None), xticks=ticks)
    over_l.set_xscale("log")
    over_l.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=45)
    over_l.minorticks_off()
    over_k.legend(fontsize=8, title="")
    part = df[~df.case.str.startswith("over")].sort_values(["case", "task"])
    for at, row in enumerate(part.itertuples()):
        ends = [[row.ratio - row.low], [row.high - row.ratio]]
        mix.errorbar(row.ratio, at, xerr=ends, capsize=2, **tasks[row.task])
        mix.text(0.2, at, f"{row.share:.0%}", va="center", fontsize=8)
    mix.plot(part.work, range(len(part)), "|", color="black", ms=20)
    mix.set_yticks(range(len(part)), part.case + ",\n" + part.task)
    mix.set(xlabel="times as fast packed (tick: by operations)", ylabel="", xlim=(0, None))
    mix.invert_yaxis()
    return figure


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
    plotting.save(plot_speed, frame, folder, "speed")
    return frame
