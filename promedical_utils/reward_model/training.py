"""Training of reward models on TRL's RewardTrainer, in any view (see ``reward_model``).

All views learn from the same groups in the same number of steps. A step's groups are read in
passes of a token budget, each one backward; the step's loss is that of all its groups together.
"""

import math
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from transformers import PrinterCallback, set_seed
from trl import RewardConfig, RewardTrainer

from promedical_utils.core.workspace import KitError, read_json, short_hash, shown, write_json
from promedical_utils.reward_model import model_card, packing
from promedical_utils.reward_model.model import (
    base_for,
    compute_dtype,
    read,
    source_of,
    tokenizer_of,
    type_of,
)
from promedical_utils.reward_model.optimizer import MuonAdamW
from promedical_utils.reward_model.packing import Packed
from promedical_utils.reward_model.variants import CONDITIONAL, PREFERENCE, VIEWS
from promedical_utils.rubric.preferences import Group, criterion_pairs, digest, met, preferences

MASKED = -1.0  # a target that the pointwise term leaves out


def train(
    groups: Sequence[Group],
    base: Path | str,
    out: Path,
    *,
    view: str,
    profile,
    labels: str = "judge",
    full: bool = False,
    seed: int | None = None,
) -> dict:
    """Train one reward model into ``out``; its report, returned, is the file written last.

    ``base``: folder or hub id of a causal LM with a chat template. ``labels`` names the judge of
    the groups' verdicts. ``full``: all weights, in fp32, at ``rm_full_learning_rate``; else LoRA
    on a base in ``profile.quantization``. A finished ``out`` of the same settings, data and base
    is returned as it is; an interrupted one goes on from its last checkpoint.

    Raises KitError when no pair differs, the base has no chat template, or the loss is not finite.
    """
    if view not in VIEWS:
        raise KitError(f"unknown view {view!r} of a reward model: choose one of {', '.join(VIEWS)}")
    out, seed = Path(out), profile.seed if seed is None else seed
    source = source_of(base, out)
    settings = settings_of(groups, source, view, profile, labels, full, seed)
    if (out / "report.json").exists():
        report = read_json(out / "report.json", "03_reward_model")
        if report["settings"] == settings:
            return report
        for stale in ("report.json", "calibration.json", model_card.NAME):
            (out / stale).unlink(missing_ok=True)  # from here on the folder is not whole

    tokenizer = tokenizer_of(base)
    set_seed(seed)  # the score head is drawn when the model is loaded
    nf4, mixed = not full and profile.quantization == "nf4", compute_dtype(profile.precision)
    dtype = torch.float32 if full else mixed
    heads = heads_of(groups) if view == "heads" else {}
    model = base_for(base, nf4, dtype, len(heads))
    limit = min(profile.rm_max_tokens, model.config.max_position_embeddings)
    rows, left_out, shortened = training_rows(
        groups, tokenizer, view, limit, heads=heads, shorten=profile.rm_shorten
    )
    if not any(row["pairs"] for row in rows):
        raise KitError(f"no two answers differ in view {view!r}: nothing to learn; check verdicts")

    lengths = [max(map(len, row["ids"])) for row in rows]
    order = schedule(lengths, profile.rm_batch, profile.rm_epochs, seed)
    batch = max(1, profile.rm_batch // int(os.environ.get("WORLD_SIZE", 1)))
    steps = math.ceil(len(order) / (batch * int(os.environ.get("WORLD_SIZE", 1))))
    rate = profile.rm_full_learning_rate if full else profile.rm_learning_rate
    checkpoints = out / f"checkpoints-{settings}"
    trainer = PackedRewardTrainer(
        model=model,
        args=arguments(checkpoints, steps, batch, rate, mixed, seed),
        data_collator=Passes(tokenizer.pad_token_id, profile.rm_pass_tokens),
        train_dataset=Dataset.from_list(rows).select(order),
        processing_class=tokenizer,
        peft_config=None if full else lora(profile.rm_lora_rank),
        pointwise_weight=profile.rm_pointwise_weight,
        muon=profile.rm_optimizer == "muon",
    )
    seconds, curve = course(trainer, checkpoints)

    tokens = [sum(map(len, row["ids"])) for row in rows]
    report = {
        **{"view": view, "labels": labels, "full": full, "seed": seed, "settings": settings},
        **{"base": source, "quantization": "nf4" if nf4 else "none"},
        **{"dtype": str(dtype).removeprefix("torch."), "max_tokens": limit, "heads": heads},
        "groups": len(rows),
        "answers": sum(len(g.candidates) for g in groups) - len(left_out),
        "pairs": sum(len(row["pairs"]) for row in rows),
        "verdicts": sum(target != MASKED for row in rows for target in row["targets"]),
        **{"left_out": left_out, "shortened": shortened},
        **{"epochs": profile.rm_epochs, "batch": profile.rm_batch, "steps": steps},
        **{"learning_rate": rate, "lora_rank": None if full else profile.rm_lora_rank},
        "pointwise_weight": profile.rm_pointwise_weight if view in CONDITIONAL else 0.0,
        **{"tokens": sum(tokens[i] for i in order), "seconds": seconds},
        "padding": padding([rows[i] for i in order], batch, profile.rm_pass_tokens),
        "parameters": trainer.model.num_parameters(),
        "trained_parameters": trainer.model.num_parameters(only_trainable=True),
        "curve": curve,
    }
    if trainer.is_world_process_zero():
        _save(trainer.model, tokenizer, source, out)
        for stale in out.glob("checkpoints-*"):
            shutil.rmtree(stale)
        model_card.write(out, report)
        write_json(out / "report.json", report)
    return report


def arguments(
    checkpoints: Path, steps: int, batch: int, rate: float, mixed, seed: int
) -> RewardConfig:
    """The trainer's settings, of every model that learns from groups; a dataset holds all
    epochs."""
    # a checkpoint falls on a logged step: what was summed since the last log is not in it
    logged_every, gpu = max(1, steps // 40), torch.cuda.is_available()
    return RewardConfig(
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
        activation_checkpointing=gpu,
        bf16=gpu and mixed == torch.bfloat16,
        fp16=gpu and mixed == torch.float16,
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        seed=seed,
    )


def course(trainer, checkpoints: Path) -> tuple[float, list[dict]]:
    """Train, on from the last whole checkpoint if there is one: (seconds, curve of loss and
    accuracy).

    KitError when the loss is not finite.
    """
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=_last_checkpoint(checkpoints))
    seconds = round(time.monotonic() - started, 1)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    if not all(math.isfinite(entry["loss"]) for entry in logged):
        raise KitError(
            f"the loss of {shown(checkpoints.parent)} is not finite: lower its learning rate, "
            f"{trainer.args.learning_rate}"
        )
    return seconds, [{key: entry[key] for key in ("step", "loss", "accuracy")} for entry in logged]


def heads_of(groups: Sequence[Group]) -> dict[str, int]:
    """Types of criterion in training, in a fixed order, as outputs of the score head."""
    return {
        name: n for n, name in enumerate(sorted({type_of(c) for g in groups for c in g.criteria}))
    }


def training_rows(
    groups: Sequence[Group], tokenizer, view: str, limit: int, *, heads=None, shorten: bool = False
):
    """(rows, left out, shortened): one row per group; answers of over ``limit`` tokens by name.

    A row holds the sequences (``ids``, ``starts``, ``heads``) of its answers; ``pairs`` (P, 2),
    chosen and rejected, and ``targets`` (N,), 1 met, 0 not met, else MASKED, count the row's scores
    in order. Which answers are left out does not depend on the view, so budgets stay equal, but for
    view rubric, which needs room for all criteria at once and so may leave out more; with
    ``shorten`` they lose tokens by ``packing.fit``'s rule in place of being left out.
    """
    cases = [(g.messages, [a.text for a in g.candidates], g.criteria) for g in groups]
    rows, left_out, shortened = [], [], []
    found = read(tokenizer, cases, view, limit, heads=heads, shorten=shorten)
    for group, reading in zip(groups, found, strict=True):
        ids, criteria = [a.id for a in group.candidates], group.criteria
        left_out += [
            {"candidate": ids[n], "tokens": tokens, "limit": limit}
            for n, tokens in reading.too_long.items()
        ]
        shortened += [{"candidate": ids[n], **cut} for n, cut in reading.cut.items()]
        if not reading.kept:
            continue
        if view in PREFERENCE:
            wanted = [(a, b, None) for a, b in preferences(group)]
        else:
            names = {c.id: n if view in CONDITIONAL else None for n, c in enumerate(criteria)}
            wanted = [
                (p.chosen_id, p.rejected_id, names[p.criterion_id]) for p in criterion_pairs(group)
            ]
        number = {(ids[n], c): i for i, (n, c) in enumerate(reading.reads)}
        verdicts = [
            None if c is None else met(group, ids[n], criteria[c]) for n, c in reading.reads
        ]
        rows.append(
            {
                "ids": [s.ids for s in reading.sequences],
                "starts": [s.starts for s in reading.sequences],
                "heads": [list(s.heads) for s in reading.sequences],
                "pairs": [
                    [number[a, c], number[b, c]]
                    for a, b, c in wanted
                    if (a, c) in number and (b, c) in number
                ],
                "targets": [MASKED if verdict is None else float(verdict) for verdict in verdicts],
            }
        )
    return rows, left_out, shortened


def schedule(lengths: Sequence[int], batch: int, epochs: float, seed: int) -> list[int]:
    """Row numbers of the whole training, in order: shuffled by ``seed``, alike lengths together.

    One list instead of a sampler makes a resumed run see what the whole one would have seen.
    """
    draw, rows = np.random.default_rng(seed), len(lengths)
    flat = np.concatenate([draw.permutation(rows) for _ in range(math.ceil(epochs))])
    flat = flat[: max(1, round(epochs * rows))].tolist()
    order: list[int] = []
    for start in range(0, len(flat), 16 * batch):
        part = sorted(flat[start : start + 16 * batch], key=lambda i: -lengths[i])
        whole = len(part) // batch  # a short batch, if any, stays last
        order += [i for k in draw.permutation(whole) for i in part[k * batch : (k + 1) * batch]]
        order += part[whole * batch :]
    return order


class Passes:
    """Collator: the rows of a step as {"passes": [...]}, each of at most ``budget`` padded tokens.

    A row's answers stay together, since a pair needs both scores; a row above the budget is a pass
    of its own. ``share``: the pass's pairs and verdicts as shares of the step's, so that the sum of
    the passes' losses is the loss of the step, however it is cut.
    """

    def __init__(self, pad_id: int, budget: int):
        self.pad_id, self.budget = pad_id, budget

    def __call__(self, rows: Sequence[dict]) -> dict:
        longest, counts = [max(map(len, row["ids"])) for row in rows], [len(r["ids"]) for r in rows]
        passes = [
            training_batch([rows[i] for i in part], self.pad_id)
            for part in packing.batches(longest, self.budget, counts)
        ]
        totals = [
            max(1, sum(len(p["pairs"]) for p in passes)),
            max(1, sum(int((p["targets"] != MASKED).sum()) for p in passes)),
        ]
        return {"passes": [p | {"totals": torch.tensor(totals)} for p in passes]}


def padding(rows: Sequence[dict], batch: int, budget: int) -> float:
    """Share of padding in the passes over ``rows``, taken ``batch`` at a time, as ``Passes``
    does."""
    used, whole = sum(len(ids) for row in rows for ids in row["ids"]), 0
    for start in range(0, len(rows), batch):
        sizes = [[len(ids) for ids in row["ids"]] for row in rows[start : start + batch]]
        longest, counts = list(map(max, sizes)), list(map(len, sizes))
        for part in packing.batches(longest, budget, counts):
            whole += longest[part[0]] * sum(counts[i] for i in part)
    return round(1 - used / whole, 4)


def training_batch(rows: Sequence[dict], pad_id: int) -> dict[str, torch.Tensor]:
    """``packing.collate`` of the rows' answers, with ``pairs`` (P, 2) and ``targets`` (N,)."""
    sequences, pairs, targets = [], [], []
    for row in rows:
        pairs += [[a + len(targets), b + len(targets)] for a, b in row["pairs"]]
        targets += row["targets"]
        parts = zip(row["ids"], row["starts"], row["heads"], strict=True)
        sequences += [Packed(ids, starts, tuple(heads)) for ids, starts, heads in parts]
    return packing.collate(sequences, pad_id) | {
        "pairs": torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
        "targets": torch.tensor(targets),
    }


def reward_loss(scores, pairs, targets, weight: float, totals=None) -> torch.Tensor:
    """Mean Bradley-Terry loss over pairs + ``weight`` times the mean pointwise loss on verdicts.

    ``scores`` (N,), ``pairs`` (P, 2), ``targets`` (N,); ``totals``: pairs and verdicts that the
    means are taken over, where these are part of a step. Bradley-Terry alone leaves an offset per
    instruction and criterion free; the pointwise term pins it, so that one threshold can serve.
    """
    margins = scores[pairs[:, 0]] - scores[pairs[:, 1]]
    known = targets != MASKED
    of_pairs, of_verdicts = (len(margins), int(known.sum())) if totals is None else totals.tolist()
    loss = -logsigmoid(margins).sum() / max(1, of_pairs)
    if weight and known.any():
        said = binary_cross_entropy_with_logits(scores[known], targets[known], reduction="sum")
        loss = loss + weight * said / max(1, of_verdicts)
    return loss


class PackedRewardTrainer(RewardTrainer):
    """TRL's RewardTrainer on packed groups: its loop, optimiser and logs, the kit's loss."""

    def __init__(self, *args, pointwise_weight: float, muon: bool = False, **kwargs):
        super().__init__(*args, **kwargs)
        self.pointwise_weight, self.muon = pointwise_weight, muon
        self.remove_callback(PrinterCallback)
        # TRL casts what is trained on a quantised base to bf16. That has 8 bits of mantissa: an
        # update below 1/256 of its weight is lost. So the trained weights are kept in fp32, and
        # mixed precision, where there is any, is left to autocast.
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def create_optimizer(self, model=None):
        if self.muon and self.optimizer is None:
            rate = self.args.learning_rate
            self.optimizer = MuonAdamW(self.model, rate, rate)
        return super().create_optimizer(model)

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset  # tokenised and counted in ``training_rows``

    def _send_telemetry(self):
        pass  # a rerun tells nobody

    def training_step(self, model, inputs, num_items_in_batch=None):
        passes, loss = inputs["passes"], 0.0
        for number, part in enumerate(passes, 1):
            # processes may have unlike numbers of passes, and meet at the last one
            apart = self.accelerator.no_sync(model) if number < len(passes) else nullcontext()
            with apart:
                loss = loss + super().training_step(model, part, num_items_in_batch)
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        pairs, targets, totals = (inputs.pop(name) for name in ("pairs", "targets", "totals"))
        outputs = model(**inputs)
        with torch.no_grad():
            right = outputs.logits[pairs[:, 0]] > outputs.logits[pairs[:, 1]]
            self._metrics["train"]["accuracy"].append(right.sum().item() / max(1, len(right)))
        loss = reward_loss(outputs.logits, pairs, targets, self.pointwise_weight, totals)
        return (loss, outputs) if return_outputs else loss


def lora(rank: int, head: str | None = "score") -> LoraConfig:
    """Adapters on all layers; ``head`` is trained whole, and None leaves a causal LM's own as it
    is."""
    # with neither task_type nor modules_to_save the head stays frozen at random, without a word
    return LoraConfig(
        task_type="SEQ_CLS" if head else "CAUSAL_LM",
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",  # but the head
        modules_to_save=[head] if head else None,
    )


def settings_of(groups, source, view, profile, labels, full, seed) -> str:
    """Hash of all that decides the outcome; the base's place does not, its content does."""
    values = {k: v for k, v in profile.model_dump().items() if k.startswith("rm_")}
    values |= {"quantization": profile.quantization, "precision": profile.precision}
    values.pop("rm_twin")
    identity = source.get("sha256") or source["hub"]
    return short_hash(identity, view, values, labels, full, seed, digest(groups))


def _last_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint: the trainer writes trainer_state.json last."""
    whole = [state.parent for state in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda p: int(p.name.split("-")[1]))) if whole else None


def _save(model, tokenizer, source: dict, out: Path) -> None:
    if isinstance(model, PeftModel):
        for config in model.peft_config.values():
            config.base_model_name_or_path = source.get("hub") or source["folder"]
        model.save_pretrained(out, save_embedding_layers=False)
        (out / "README.md").unlink(missing_ok=True)  # PEFT's empty model card names this machine
    else:
        model.save_pretrained(out)
    tokenizer.save_pretrained(out)
