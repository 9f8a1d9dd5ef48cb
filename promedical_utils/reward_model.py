"""Reward models r(y | x, c): training on TRL's RewardTrainer, loading and scoring.

Three views of the same groups under the same budget:
criterion  every answer is scored once per criterion, criteria packed (see ``packing``);
overall    one score per answer, one lexicographic preference per pair of answers, as is usual;
blind      one score per answer, the criterion labels without the criterion.
"""

import hashlib
import math
import os
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig
from transformers import PrinterCallback, set_seed
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import suppress_seqcls_warning

from promedical_utils import packing
from promedical_utils.groups import Group, criterion_pairs, met, preferences
from promedical_utils.optimizer import MuonAdamW
from promedical_utils.records import Criterion
from promedical_utils.workspace import KitError, need, read_json, short_hash, shown, write_json

VIEWS = ("criterion", "overall", "blind")
MASKED = -1.0  # a target that the pointwise term leaves out
# PEFT reads an attribute that transformers has renamed; the warning shows where this machine has it
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)


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
    source = _source(base, out)
    settings = _settings(groups, source, view, profile, labels, full, seed)
    if (out / "report.json").exists():
        report = read_json(out / "report.json", "03_reward_model")
        if report["settings"] == settings:
            return report
        (out / "report.json").unlink()  # from here on the folder is not whole

    tokenizer = _tokenizer(base)
    set_seed(seed)  # the score head is drawn when the model is loaded
    nf4, mixed = not full and profile.quantization == "nf4", compute_dtype(profile.precision)
    dtype = torch.float32 if full else mixed
    model = _base_model(base, nf4, dtype)
    limit = min(profile.rm_max_tokens, model.config.max_position_embeddings)
    rows, left_out = training_rows(groups, tokenizer, view, limit)
    if not any(row["pairs"] for row in rows):
        raise KitError(f"no two answers differ in view {view!r}: nothing to learn; check verdicts")

    lengths = [max(map(len, row["ids"])) for row in rows]
    order = schedule(lengths, profile.rm_batch, profile.rm_epochs, seed)
    parts = profile.rm_accumulation * int(os.environ.get("WORLD_SIZE", 1))
    micro = max(1, profile.rm_batch // parts)
    steps = math.ceil(len(order) / (micro * parts))
    rate = profile.rm_full_learning_rate if full else profile.rm_learning_rate
    gpu, checkpoints = torch.cuda.is_available(), out / f"checkpoints-{settings}"
    trainer = PackedRewardTrainer(
        model=model,
        args=RewardConfig(
            output_dir=str(checkpoints),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=profile.rm_accumulation,
            num_train_epochs=1,  # ``order`` already holds all epochs
            train_sampling_strategy="sequential",
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, round(0.06 * steps)),
            max_length=None,  # TRL would drop what is longer without a word; see ``left_out``
            logging_steps=max(1, steps // 40),
            save_steps=max(20, math.ceil(steps / 4)),
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
        ),
        data_collator=lambda batch: training_batch(batch, tokenizer.pad_token_id),
        train_dataset=Dataset.from_list(rows).select(order),
        processing_class=tokenizer,
        peft_config=None if full else _lora(profile.rm_lora_rank),
        pointwise_weight=profile.rm_pointwise_weight,
        muon=profile.rm_optimizer == "muon",
    )
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=_last_checkpoint(checkpoints))
    seconds = round(time.monotonic() - started, 1)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    if not all(math.isfinite(entry["loss"]) for entry in logged):
        raise KitError(f"the loss of {shown(out)} is not finite: lower its learning rate, {rate}")

    tokens = [sum(map(len, row["ids"])) for row in rows]
    report = {
        **{"view": view, "labels": labels, "full": full, "seed": seed, "settings": settings},
        **{"base": source, "quantization": "nf4" if nf4 else "none"},
        **{"dtype": str(dtype).removeprefix("torch."), "max_tokens": limit},
        "groups": len(rows),
        "answers": sum(len(g.candidates) for g in groups) - len(left_out),
        "pairs": sum(len(row["pairs"]) for row in rows),
        "verdicts": sum(target != MASKED for row in rows for target in row["targets"]),
        "left_out": left_out,
        **{"epochs": profile.rm_epochs, "batch": profile.rm_batch, "steps": steps},
        **{"learning_rate": rate, "lora_rank": None if full else profile.rm_lora_rank},
        **{"tokens": sum(tokens[i] for i in order), "seconds": seconds},
        "parameters": trainer.model.num_parameters(),
        "trained_parameters": trainer.model.num_parameters(only_trainable=True),
        "curve": [{key: entry[key] for key in ("step", "loss", "accuracy")} for entry in logged],
    }
    if trainer.is_world_process_zero():
        _save(trainer.model, tokenizer, source, out)
        for stale in out.glob("checkpoints-*"):
            shutil.rmtree(stale)
        write_json(out / "report.json", report)
    return report


def training_rows(groups: Sequence[Group], tokenizer, view: str, limit: int):
    """(rows, left out): one row per group, and by name the answers of over ``limit`` tokens.

    A row holds the sequences (``ids``, ``starts``) of its answers; ``pairs`` (P, 2), chosen and
    rejected, and ``targets`` (N,), 1 met, 0 not met, else MASKED, count the row's scores in
    order. Which answers are left out does not depend on the view, so budgets stay equal.
    """
    items = [(g.messages, c.text, g.criteria) for g in groups for c in g.candidates]
    encoded = iter(packing.encode(tokenizer, items))
    rows, left_out = [], []
    for group in groups:
        fitting, sequences = [], []
        for candidate in group.candidates:
            shared, tails = next(encoded)
            tokens = packing.longest(shared, tails)
            if tokens > limit:
                left_out.append({"candidate": candidate.id, "tokens": tokens, "limit": limit})
            else:
                fitting.append(candidate.id)
                sequences += packing.pack(shared, tails if view == "criterion" else [], limit)
        if view == "overall":
            wanted = [(a, b, "") for a, b in preferences(group)]
        else:
            wanted = [(p.chosen_id, p.rejected_id, p.criterion_id) for p in criterion_pairs(group)]
        if view == "criterion":
            reads = list(product(fitting, [c.id for c in group.criteria]))
            verdicts = [met(group, a, c) for a, c in product(fitting, group.criteria)]
        else:
            reads, verdicts = [(a, "") for a in fitting], [None] * len(fitting)
            wanted = [(a, b, "") for a, b, _ in wanted]
        number = {read: i for i, read in enumerate(reads)}
        row = {
            "ids": [s.ids for s in sequences],
            "starts": [s.starts for s in sequences],
            "pairs": [
                [number[a, c], number[b, c]] for a, b, c in wanted if {a, b} <= set(fitting)
            ],
            "targets": [MASKED if verdict is None else float(verdict) for verdict in verdicts],
        }
        rows += [row] if fitting else []
    return rows, left_out


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


def training_batch(rows: Sequence[dict], pad_id: int) -> dict[str, torch.Tensor]:
    """``packing.collate`` of the rows' answers, with ``pairs`` (P, 2) and ``targets`` (N,)."""
    sequences, pairs, targets = [], [], []
    for row in rows:
        pairs += [[a + len(targets), b + len(targets)] for a, b in row["pairs"]]
        targets += row["targets"]
        sequences += map(packing.Packed, row["ids"], row["starts"])
    return packing.collate(sequences, pad_id) | {
        "pairs": torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
        "targets": torch.tensor(targets),
    }


def reward_loss(scores, pairs, targets, weight: float) -> torch.Tensor:
    """Mean Bradley-Terry loss over pairs + ``weight`` times the mean pointwise loss on verdicts.

    ``scores`` (N,), ``pairs`` (P, 2), ``targets`` (N,). Bradley-Terry alone leaves an offset per
    instruction and criterion free; the pointwise term pins it, so that one threshold can serve.
    """
    margins = scores[pairs[:, 0]] - scores[pairs[:, 1]]
    known = targets != MASKED
    loss = -logsigmoid(margins).sum() / max(1, len(margins))
    if weight and known.any():
        loss = loss + weight * binary_cross_entropy_with_logits(scores[known], targets[known])
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

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        pairs, targets = inputs.pop("pairs"), inputs.pop("targets")
        outputs = model(**inputs)
        with torch.no_grad():
            right = outputs.logits[pairs[:, 0]] > outputs.logits[pairs[:, 1]]
            self._metrics["train"]["accuracy"].append(right.sum().item() / max(1, len(right)))
        loss = reward_loss(outputs.logits, pairs, targets, self.pointwise_weight)
        return (loss, outputs) if return_outputs else loss


@dataclass
class RewardModel:
    """A trained reward model; ``max_tokens`` is what it takes for prompt, response, criterion."""

    model: torch.nn.Module
    tokenizer: object
    view: str
    max_tokens: int
    report: dict

    def score(self, groups: Sequence[Group], batch_tokens: int = 8192) -> pd.DataFrame:
        """One row per score: instruction_id, candidate_id, criterion_id ("" if scalar), score.

        In the order of groups, candidates, criteria. A batch holds ``batch_tokens`` padded tokens.
        Raises KitError naming a candidate that is too long; nothing is cut.
        """
        answers = [(group, candidate) for group in groups for candidate in group.candidates]
        items = [(group.messages, candidate.text, group.criteria) for group, candidate in answers]
        scores = self._scores(items, [f"candidate {c.id}" for _, c in answers], batch_tokens)
        rows = []
        for (group, candidate), values in zip(answers, scores, strict=True):
            ids = [c.id for c in group.criteria] if self.view == "criterion" else [""]
            pairs = zip(ids, values, strict=True)
            rows += [(group.instruction.id, candidate.id, name, value) for name, value in pairs]
        columns = ["instruction_id", "candidate_id", "criterion_id", "score"]
        return pd.DataFrame(rows, columns=columns)

    def score_texts(
        self, items: Sequence[tuple[list[dict], str, Sequence[Criterion]]], batch_tokens: int = 8192
    ) -> list[list[float]]:
        """Scores of (messages, response, criteria) items: one list each, K long, or 1 if scalar."""
        return self._scores(items, [f"response {i}" for i in range(len(items))], batch_tokens)

    @torch.no_grad()
    def _scores(self, items, names, batch_tokens) -> list[list[float]]:
        if self.view != "criterion":
            items = [(messages, text, ()) for messages, text, _ in items]
        sequences, owner = [], []
        for number, (shared, tails) in enumerate(packing.encode(self.tokenizer, items)):
            tokens = packing.longest(shared, tails)
            if tokens > self.max_tokens:
                raise KitError(
                    f"{names[number]}: {tokens} tokens with prompt and criterion; the limit "
                    f"is {self.max_tokens}; shorten it, or raise rm_max_tokens and train again"
                )
            packed = packing.pack(shared, tails, self.max_tokens)
            sequences += packed
            owner += [number] * len(packed)
        read: list[list[float]] = [[] for _ in sequences]
        for rows in packing.batches([len(s.ids) for s in sequences], batch_tokens):
            batch = packing.collate([sequences[i] for i in rows], self.tokenizer.pad_token_id)
            batch = {key: value.to(self.model.device) for key, value in batch.items()}
            scores = self.model(**batch).logits.tolist()
            for row, score in zip(batch["reads"][:, 0].tolist(), scores, strict=True):
                read[rows[row]].append(score)
        result: list[list[float]] = [[] for _ in items]
        for number, values in zip(owner, read, strict=True):
            result[number] += values
        return result


def load(path: Path) -> RewardModel:
    """The reward model that ``train`` wrote, on the base, quantisation and precision it had there.

    An adapter scored in another precision than it was trained in drifts, so the report decides.
    Raises KitError when the report is missing or the base is another one now.
    """
    path = Path(path)
    report = read_json(path / "report.json", "03_reward_model")
    dtype, source = getattr(torch, report["dtype"]), report["base"]
    if report["full"]:
        model = _base_model(path, False, dtype)
    else:
        base = source.get("hub") or (path / source["folder"]).resolve()
        if _source(base, path) != source:
            raise KitError(f"the base of {shown(path)} has changed: run 03_reward_model again")
        model = _base_model(base, report["quantization"] == "nf4", dtype)
        model = PeftModel.from_pretrained(model, path)
    tokenizer = _tokenizer(path)
    model.config.pad_token_id = tokenizer.pad_token_id  # an adapter saves no config
    return RewardModel(model.eval(), tokenizer, report["view"], report["max_tokens"], report)


def compute_dtype(precision: str) -> torch.dtype:
    """fp32, bf16, or for ``auto`` what the machine has: bf16, else fp16 on a GPU; fp32 on a CPU."""
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    if not torch.cuda.is_available():
        return torch.float32
    native = torch.cuda.is_bf16_supported(including_emulation=False)  # emulated is slow
    return torch.bfloat16 if native else torch.float16


def _base_model(base, nf4: bool, dtype: torch.dtype):
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["score"],
    )
    with suppress_seqcls_warning():
        model = AutoModelForSequenceClassification.from_pretrained(
            base,
            num_labels=1,
            dtype=dtype,
            attn_implementation="sdpa",
            quantization_config=quantization if nf4 else None,
        )
    if not nf4:
        model.to("cuda" if torch.cuda.is_available() else "cpu")
    for module in model.modules():
        # on processors with AVX512-BF16 bitsandbytes runs eval, not training, in bf16: scores
        # would depend on the machine, on what else is packed, and differ from those trained
        if dtype == torch.float32 and hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    model.score.float()
    return packing.read_many(model)


def _tokenizer(base):
    tokenizer = AutoTokenizer.from_pretrained(base)
    if not tokenizer.chat_template or tokenizer.eos_token_id is None:
        raise KitError("base_model's tokenizer has no chat template or end token: use a chat model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _lora(rank: int) -> LoraConfig:
    # with neither task_type nor modules_to_save the head stays frozen at random, without a word
    return LoraConfig(
        task_type="SEQ_CLS",
        r=rank,
        lora_alpha=2 * rank,
        target_modules="all-linear",  # but the head, which is trained whole
        modules_to_save=["score"],
    )


def _source(base: Path | str, out: Path) -> dict:
    """Where the base is, with no machine path: a hub id, or a folder relative to ``out``."""
    if isinstance(base, str) and not Path(base).is_dir():
        return {"hub": base}
    base, digest = need(Path(base), "00_start_here"), hashlib.sha256()
    for file in sorted([*base.glob("*.safetensors"), base / "tokenizer.json"]):
        with need(file, "00_start_here").open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    folder = Path(os.path.relpath(base.resolve(), Path(out).resolve())).as_posix()
    return {"folder": folder, "sha256": digest.hexdigest()}


def _settings(groups, source, view, profile, labels, full, seed) -> str:
    """Hash of all that decides the outcome; the base's place does not, its content does."""
    values = {k: v for k, v in profile.model_dump().items() if k.startswith("rm_")}
    values |= {"quantization": profile.quantization, "precision": profile.precision}
    values.pop("rm_twin")
    content = hashlib.sha256()
    for group in groups:
        for record in (group.instruction, *group.criteria, *group.candidates):
            content.update(record.model_dump_json().encode())
        content.update(repr(sorted(group.verdicts.items())).encode())
    identity = source.get("sha256") or source["hub"]
    return short_hash(identity, view, values, labels, full, seed, content.hexdigest())


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
