"""Training of reward models on TRL's RewardTrainer, in any view (see ``variants``): all learn from
the same groups in the same number of steps. Notebook 03 takes the steps of ``train`` one by one."""

import math
import shutil
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from transformers import PrinterCallback, set_seed
from trl import RewardTrainer

from promedical_utils.core import fingerprint
from promedical_utils.core.profiles import Profile
from promedical_utils.core.workspace import KitError, read_json, short_hash, write_json
from promedical_utils.reward_model import grouped, hub, model_card, packing
from promedical_utils.reward_model.grouped import Schedule
from promedical_utils.reward_model.model import base_for
from promedical_utils.reward_model.variants import CONDITIONAL, PREFERENCE, VIEWS
from promedical_utils.reward_model.views import Reading, read, type_of
from promedical_utils.rubric.preferences import Group, criterion_pairs, digest, met, preferences

MASKED = -1.0  # a target that the pointwise term leaves out
SEQUENCE = ("ids", "starts", "heads", "parents")  # the fields of ``packing.Packed``


def train(groups: Sequence[Group], base: Path | str, out: Path, **choices) -> dict:
    """Train one reward model into ``out``, as ``Plan`` says; its report is the file written last. A
    finished ``out`` of the same settings, data and base is returned as it is, an interrupted one
    goes on from its last checkpoint. KitError when no pair differs or the loss is not finite."""
    plan = Plan(groups, base, out, **choices)
    if (stored := finished(plan.out, plan.settings)) is not None:
        return stored
    trainer, tokenizer, taught, schedule = prepare(plan)
    made = report(trainer, taught, schedule, plan, grouped.course(trainer))
    return save(trainer, tokenizer, plan, made)


def prepare(plan: "Plan") -> tuple:
    """(trainer, tokenizer, ``Taught``, ``Schedule``); KitError when no pair differs."""
    tokenizer, model, p = hub.tokenizer_of(plan.base), plan.model(), plan.profile
    taught = training_rows(plan.groups, tokenizer, plan.view, plan.limit(model), **plan.reading)
    if not any(row["pairs"] for row in taught.rows):
        raise KitError(f"no two answers differ in view {plan.view!r}; check the verdicts")
    schedule = grouped.schedule(taught.rows, p.rm_batch, p.rm_epochs, plan.seed)
    trainer = PackedRewardTrainer(
        model=model,
        args=grouped.arguments(
            plan.checkpoints, schedule.steps, schedule.batch, plan.rate, plan.mixed, plan.seed
        ),
        data_collator=RewardPasses(tokenizer.pad_token_id, p.rm_pass_tokens),
        train_dataset=grouped.dataset(taught.rows, schedule.order),
        processing_class=tokenizer,
        peft_config=None if plan.full else grouped.lora(p.rm_lora_rank, targets=p.rm_lora_targets),
        pointwise_weight=p.rm_pointwise_weight,
    )
    return trainer, tokenizer, taught, schedule


class Plan:
    """What decides the outcome of one training, and where it is written.

    ``base``: folder or hub id of a causal LM with a chat template; ``labels`` names the judge of
    the groups' verdicts; ``full``: all weights, in fp32, at ``rm_full_learning_rate``, else LoRA on
    a base in the profile's ``quantization``. KitError for an unknown view or a missing base.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        base: Path | str,
        out: Path,
        *,
        view: str,
        profile: Profile,
        labels: str = "judge",
        full: bool = False,
        seed: int | None = None,
    ):
        if view not in VIEWS:
            raise KitError(f"unknown view {view!r}: choose one of {', '.join(VIEWS)}")
        self.groups, self.base, self.out = groups, base, Path(out)
        self.view, self.profile, self.labels, self.full = view, profile, labels, full
        self.seed = profile.seed if seed is None else seed
        self.source = hub.source_of(base, self.out)
        types = sorted({type_of(c) for g in groups for c in g.criteria})
        self.heads = {t: output for output, t in enumerate(types)} if view == "heads" else {}
        room = math.inf if profile.rm_share_prompt else 0  # a pass holds whole groups
        self.reading = {"heads": self.heads, "shorten": profile.rm_shorten, "room": room}
        self.nf4 = not full and profile.quantization == "nf4"
        self.mixed = hub.compute_dtype(profile.precision)  # of a pass; ``dtype``: of the weights
        self.dtype = torch.float32 if full else hub.held_dtype(profile.precision)
        self.rate = profile.rm_full_learning_rate if full else profile.rm_learning_rate
        self.settings = self._hash()
        self.checkpoints = self.out / f"checkpoints-{self.settings}"

    def _hash(self) -> str:
        """Of base, data, settings, code and versions; the base's place is not in it."""
        values = {k: v for k, v in self.profile.model_dump().items() if k.startswith("rm_")}
        values |= {"quantization": self.profile.quantization, "precision": str(self.mixed)}
        values.pop("rm_arms")
        chosen = self.view, values, self.labels, self.full, self.seed
        data, code = digest(self.groups), fingerprint.of_code({__name__}, data=False)
        return short_hash(hub.identity(self.source), *chosen, data, code)

    def model(self):
        """The base with a score head, which is drawn here by the plan's seed; KitError where it
        lacks a layer of ``rm_lora_targets``."""
        set_seed(self.seed)
        model = base_for(self.base, self.nf4, self.dtype, len(self.heads))
        targets = self.profile.rm_lora_targets
        has = {name.rpartition(".")[2] for name, _ in model.named_modules()}
        if not self.full and (wrong := set(targets) - has) and targets != "all-linear":
            raise KitError(f"rm_lora_targets: {hub.named(self.base)} has no layer {min(wrong)}")
        return model

    def limit(self, model) -> int:
        return min(self.profile.rm_max_tokens, model.config.max_position_embeddings)


def finished(out: Path, settings: str) -> dict | None:
    """The report in ``out`` if it is of these ``settings``; one of others makes way."""
    if not (out / "report.json").exists():
        return None
    stored = read_json(out / "report.json", "03_reward_model")
    if stored["settings"] == settings:
        return stored
    for stale in ("report.json", "calibration.json", model_card.NAME):
        (out / stale).unlink(missing_ok=True)  # from here on the folder is not whole
    return None


class Taught(NamedTuple):
    """``rows``, one a group; ``left_out`` and ``shortened``: candidates by id, with their tokens.

    A row holds the sequences of its answers (``SEQUENCE``) and, of their scores in order, ``pairs``
    (P, 2), chosen and rejected, and ``targets`` (N,), 1 met, 0 not, or MASKED.
    """

    rows: list[dict]
    left_out: list[dict]
    shortened: list[dict]


def training_rows(groups: Sequence[Group], tokenizer, view: str, limit: int, **choices) -> Taught:
    """What a view learns from the groups; answers of over ``limit`` tokens are left out, or with
    ``shorten`` cut. ``choices``: of ``views.read``, as in ``Plan.reading``."""
    cases = [(g.messages, [a.text for a in g.candidates], g.criteria) for g in groups]
    taught = Taught([], [], [])
    for group, reading in zip(groups, read(tokenizer, cases, view, limit, **choices), strict=True):
        ids = [answer.id for answer in group.candidates]
        for n, tokens in reading.too_long.items():
            taught.left_out.append({"candidate": ids[n], "tokens": tokens, "limit": limit})
        for n, cut in reading.cut.items():
            taught.shortened.append({"candidate": ids[n], **cut})
        if reading.sequences:
            taught.rows.append(_row(group, reading, view))
    return taught


def _row(group: Group, reading: Reading, view: str) -> dict:
    """A group's row; a pair counts where both of its answers are read."""
    ids, criteria = [answer.id for answer in group.candidates], group.criteria
    score_of = {(ids[n], c): number for number, (n, c) in enumerate(reading.reads)}
    preferred: list[tuple[str, str, int | None]]  # None: an answer has one score for all criteria
    if view in PREFERENCE:
        preferred = [(chosen, rejected, None) for chosen, rejected in preferences(group)]
    else:
        number = {c.id: n if view in CONDITIONAL else None for n, c in enumerate(criteria)}
        found = criterion_pairs(group)
        preferred = [(p.chosen_id, p.rejected_id, number[p.criterion_id]) for p in found]
    pairs = [
        [score_of[chosen, c], score_of[rejected, c]]
        for chosen, rejected, c in preferred
        if (chosen, c) in score_of and (rejected, c) in score_of
    ]
    verdicts = [None if c is None else met(group, ids[n], criteria[c]) for n, c in reading.reads]
    return {
        **{part: [list(getattr(s, part)) for s in reading.sequences] for part in SEQUENCE},
        "pairs": pairs,
        "targets": [MASKED if verdict is None else float(verdict) for verdict in verdicts],
    }


class RewardPasses:
    """Collator: ``training_rows`` of a step as {"passes": [...]}, see ``grouped.passes_of``.

    ``totals`` of a pass are the pairs and the verdicts of the whole step, at least 1 each: losses
    are shares of them, and their sum is the loss of the step, however it is cut.
    """

    def __init__(self, pad_id: int, budget: int):
        self.pad_id, self.budget = pad_id, budget

    def batch(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        """``packing.collate`` of the rows' sequences, with ``pairs`` and ``targets``."""
        sequences: list[packing.Packed] = []
        pairs: list[list[int]] = []
        targets: list[float] = []
        for row in rows:
            sequences += map(packing.Packed, *(row[part] for part in SEQUENCE))
            pairs += [[a + len(targets), b + len(targets)] for a, b in row["pairs"]]
            targets += row["targets"]
        return packing.collate(sequences, self.pad_id) | {
            "pairs": torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
            "targets": torch.tensor(targets),
        }

    def __call__(self, rows: Sequence[dict]) -> dict:
        passes = [self.batch(part) for part in grouped.passes_of(rows, self.budget)]
        pairs = sum(len(part["pairs"]) for part in passes)
        verdicts = sum(int((part["targets"] != MASKED).sum()) for part in passes)
        totals = torch.tensor([max(1, pairs), max(1, verdicts)])
        return {"passes": [part | {"totals": totals} for part in passes]}


def reward_loss(scores, pairs, targets, weight: float, totals=None) -> torch.Tensor:
    """Mean Bradley-Terry loss over pairs + ``weight`` times the mean pointwise loss on verdicts.

    ``scores`` (N,), ``pairs`` (P, 2), ``targets`` (N,); ``totals``: pairs and verdicts of the whole
    step. Bradley-Terry alone leaves an offset per instruction and criterion free; the pointwise
    term pins it, so that one threshold can serve.
    """
    margins = scores[pairs[:, 0]] - scores[pairs[:, 1]]
    known = targets != MASKED
    of_pairs, of_verdicts = (len(margins), int(known.sum())) if totals is None else totals.tolist()
    loss = -logsigmoid(margins).sum() / max(1, of_pairs)
    if weight and known.any():
        misfit = binary_cross_entropy_with_logits(scores[known], targets[known], reduction="sum")
        loss = loss + weight * misfit / max(1, of_verdicts)
    return loss


class PackedRewardTrainer(RewardTrainer):
    """TRL's RewardTrainer, its loop, optimiser and logs, on the passes of ``RewardPasses``."""

    LEARNED = ("pairs", "targets", "totals")

    def __init__(self, *args, pointwise_weight: float, **kwargs):
        super().__init__(*args, **kwargs)
        self.pointwise_weight = pointwise_weight
        self.remove_callback(PrinterCallback)
        hub.in_full(self.model)

    def training_step(self, model, inputs, num_items_in_batch=None):
        passes, loss = inputs["passes"], 0.0
        for number, part in enumerate(passes, 1):
            # processes may have unlike numbers of passes, and meet at the last one
            apart = self.accelerator.no_sync(model) if number < len(passes) else nullcontext()
            with apart:
                loss = loss + super().training_step(model, part, num_items_in_batch)
        return loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        pairs, targets, totals = (inputs.pop(name) for name in self.LEARNED)
        outputs = model(**inputs)
        scores = outputs.logits
        loss = reward_loss(scores, pairs, targets, self.pointwise_weight, totals)
        right = int((scores.detach()[pairs[:, 0]] > scores.detach()[pairs[:, 1]]).sum())
        self._metrics["train"]["accuracy"].append(right / max(1, len(pairs)))
        return (loss, outputs) if return_outputs else loss


def report(trainer, taught: Taught, schedule: Schedule, plan: Plan, seconds: float = 0.0) -> dict:
    p, seen = plan.profile, [taught.rows[i] for i in schedule.order]
    return {
        **{key: getattr(plan, key) for key in ("view", "labels", "full", "seed", "settings")},
        "base": plan.source,
        "quantization": "nf4" if plan.nf4 else "none",
        "dtype": str(plan.dtype).removeprefix("torch."),
        "trained_in": str(plan.mixed).removeprefix("torch."),
        "max_tokens": plan.limit(trainer.model),
        "share_prompt": p.rm_share_prompt,
        "heads": plan.heads,
        "groups": len(taught.rows),
        "answers": sum(len(g.candidates) for g in plan.groups) - len(taught.left_out),
        "pairs": sum(len(row["pairs"]) for row in taught.rows),
        "verdicts": sum(target != MASKED for row in taught.rows for target in row["targets"]),
        "left_out": taught.left_out,
        "shortened": taught.shortened,
        "epochs": p.rm_epochs,
        "batch": p.rm_batch,
        "steps": schedule.steps,
        "learning_rate": plan.rate,
        "lora_rank": None if plan.full else p.rm_lora_rank,
        "pointwise_weight": p.rm_pointwise_weight if plan.view in CONDITIONAL else 0.0,
        "tokens": sum(len(ids) for row in seen for ids in row["ids"]),
        "seconds": seconds,
        "padding": grouped.padding(seen, schedule.batch, p.rm_pass_tokens),
        "parameters": trainer.model.num_parameters(),
        "trained_parameters": trainer.model.num_parameters(only_trainable=True),
        "curve": grouped.curve(trainer),
    }


def save(trainer: PackedRewardTrainer, tokenizer, plan: Plan, report: dict) -> dict:
    """Write the model, its card, and last its report, which is returned; checkpoints go."""
    if trainer.is_world_process_zero():
        hub.save(trainer.model, plan.out, plan.source.get("hub") or plan.source["folder"])
        tokenizer.save_pretrained(plan.out)
        for stale in plan.out.glob("checkpoints-*"):
            shutil.rmtree(stale)
        model_card.write(plan.out, report)
        write_json(plan.out / "report.json", report)
    return report
