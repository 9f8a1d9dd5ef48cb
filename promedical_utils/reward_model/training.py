"""Training of reward models on TRL's RewardTrainer, in any view (see ``variants``).

All views learn from the same groups in the same number of steps. A step's groups are read in
passes of a token budget, each one backward; the step's loss is that of all its groups together.
``train`` is these steps, which a notebook can take one by one:

    plan = training.plan(groups, base, out, view="criterion", profile=p)
    tokenizer, model = hub.tokenizer_of(base), training.model_of(plan, base)
    taught = training.training_rows(groups, tokenizer, "criterion", plan.limit(model))
    schedule = grouped.schedule(taught.rows, p.rm_batch, p.rm_epochs, p.seed)
    trainer = training.trainer(model, tokenizer, taught.rows, schedule, plan)
    trainer.train()
    report = training.report(trainer, groups, taught, schedule, plan)
    training.save(trainer, tokenizer, plan, report)
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid
from transformers import set_seed

from promedical_utils.core import fingerprint
from promedical_utils.core.profiles import Profile
from promedical_utils.core.workspace import KitError, read_json, short_hash, write_json
from promedical_utils.reward_model import grouped, hub, model_card, packing
from promedical_utils.reward_model.grouped import GroupTrainer, Passes, Schedule
from promedical_utils.reward_model.hub import tokenizer_of
from promedical_utils.reward_model.model import base_for
from promedical_utils.reward_model.variants import CONDITIONAL, PREFERENCE, VIEWS
from promedical_utils.reward_model.views import Reading, read, type_of
from promedical_utils.rubric.preferences import Group, criterion_pairs, digest, met, preferences

MASKED = -1.0  # a target that the pointwise term leaves out


def train(groups: Sequence[Group], base: Path | str, out: Path, **choices) -> dict:
    """Train one reward model into ``out``; its report, returned, is the file written last.

    ``base``: folder or hub id of a causal LM with a chat template; ``choices``: those of ``plan``.
    A finished ``out`` of the same settings, data and base is returned as it is; an interrupted one
    goes on from its last checkpoint.

    Raises KitError when no pair differs, the base has no chat template, or the loss is not finite.
    """
    own = plan(groups, base, out, **choices)
    if (stored := finished(own.out, own.settings)) is not None:
        return stored
    tokenizer, p = tokenizer_of(base), own.profile
    model = model_of(own, base)
    limit = own.limit(model)
    taught = training_rows(
        groups, tokenizer, own.view, limit, heads=own.heads, shorten=p.rm_shorten
    )
    if not any(row["pairs"] for row in taught.rows):
        raise KitError(
            f"no two answers differ in view {own.view!r}: nothing to learn; check verdicts"
        )
    schedule = grouped.schedule(taught.rows, p.rm_batch, p.rm_epochs, own.seed)
    made = trainer(model, tokenizer, taught.rows, schedule, own)
    seconds = grouped.course(made)
    return save(made, tokenizer, own, report(made, groups, taught, schedule, own, seconds))


@dataclass(frozen=True)
class Plan:
    """What decides the outcome of one training, and where it is written.

    ``source``: the base, as ``hub.source_of`` names it; ``heads``: type of criterion -> output, of
    view heads; ``settings``: hash of all of it and of the groups.
    """

    out: Path
    view: str
    profile: Profile
    labels: str
    full: bool
    seed: int
    source: dict
    heads: dict[str, int]
    settings: str

    @property
    def nf4(self) -> bool:
        return not self.full and self.profile.quantization == "nf4"

    @property
    def mixed(self) -> torch.dtype:
        """What a pass computes in."""
        return hub.compute_dtype(self.profile.precision)

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are held in."""
        return torch.float32 if self.full else self.mixed

    @property
    def rate(self) -> float:
        return self.profile.rm_full_learning_rate if self.full else self.profile.rm_learning_rate

    @property
    def checkpoints(self) -> Path:
        return self.out / f"checkpoints-{self.settings}"

    def limit(self, model) -> int:
        """Tokens of prompt, response and one criterion."""
        return min(self.profile.rm_max_tokens, model.config.max_position_embeddings)


def plan(
    groups: Sequence[Group],
    base: Path | str,
    out: Path,
    *,
    view: str,
    profile,
    labels: str = "judge",
    full: bool = False,
    seed: int | None = None,
) -> Plan:
    """What ``train`` is to do. ``labels`` names the judge of the groups' verdicts.

    ``full``: all weights, in fp32, at ``rm_full_learning_rate``; else LoRA on a base in the
    profile's ``quantization``. KitError for an unknown view, or a base that is not there.
    """
    if view not in VIEWS:
        raise KitError(f"unknown view {view!r} of a reward model: choose one of {', '.join(VIEWS)}")
    out, seed = Path(out), profile.seed if seed is None else seed
    source, heads = hub.source_of(base, out), heads_of(groups) if view == "heads" else {}
    settings = settings_of(groups, source, view, profile, labels, full, seed)
    return Plan(out, view, profile, labels, full, seed, source, heads, settings)


def settings_of(groups, source, view, profile, labels, full, seed) -> str:
    """Hash of base, data, settings, code and versions; the base's place is not in it."""
    values = {k: v for k, v in profile.model_dump().items() if k.startswith("rm_")}
    values |= {"quantization": profile.quantization, "precision": profile.precision}
    values.pop("rm_twin")
    data, code = digest(groups), fingerprint.of_code({__name__}, data=False)
    return short_hash(hub.identity(source), view, values, labels, full, seed, data, code)


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


def model_of(plan: Plan, base: Path | str):
    """The base with a score head, which is drawn here by the plan's seed."""
    set_seed(plan.seed)
    return base_for(base, plan.nf4, plan.dtype, len(plan.heads))


def heads_of(groups: Sequence[Group]) -> dict[str, int]:
    """Types of criterion in training, in a fixed order, as outputs of the score head."""
    types = sorted({type_of(c) for g in groups for c in g.criteria})
    return {name: output for output, name in enumerate(types)}


class Taught(NamedTuple):
    """``rows``, one a group; ``left_out`` and ``shortened``: candidates by id, with their tokens.

    A row holds the sequences (``ids``, ``starts``, ``heads``) of its answers; ``pairs`` (P, 2),
    chosen and rejected, and ``targets`` (N,), 1 met, 0 not met, else MASKED, count the row's scores
    in order.
    """

    rows: list[dict]
    left_out: list[dict]
    shortened: list[dict]


def training_rows(
    groups: Sequence[Group], tokenizer, view: str, limit: int, *, heads=None, shorten: bool = False
) -> Taught:
    """What a view learns from the groups; answers of over ``limit`` tokens are named.

    Which answers are left out does not depend on the view, so budgets stay equal, but for
    view rubric, which needs room for all criteria at once and so may leave out more; with
    ``shorten`` they lose tokens by ``packing.fit``'s rule in place of being left out.
    """
    cases = [(g.messages, [a.text for a in g.candidates], g.criteria) for g in groups]
    taught = Taught([], [], [])
    readings = read(tokenizer, cases, view, limit, heads=heads, shorten=shorten)
    for group, reading in zip(groups, readings, strict=True):
        ids = [answer.id for answer in group.candidates]
        for n, tokens in reading.too_long.items():
            taught.left_out.append({"candidate": ids[n], "tokens": tokens, "limit": limit})
        for n, cut in reading.cut.items():
            taught.shortened.append({"candidate": ids[n], **cut})
        if reading.kept:
            taught.rows.append(_row(group, reading, view))
    return taught


def _row(group: Group, reading: Reading, view: str) -> dict:
    """A group's row; a pair counts where both of its answers are read."""
    ids, criteria = [answer.id for answer in group.candidates], group.criteria
    score_of = {(ids[n], c): number for number, (n, c) in enumerate(reading.reads)}
    pairs = [
        [score_of[chosen, c], score_of[rejected, c]]
        for chosen, rejected, c in _preferred(group, view)
        if (chosen, c) in score_of and (rejected, c) in score_of
    ]
    verdicts = [None if c is None else met(group, ids[n], criteria[c]) for n, c in reading.reads]
    return {
        "ids": [s.ids for s in reading.sequences],
        "starts": [s.starts for s in reading.sequences],
        "heads": [list(s.heads) for s in reading.sequences],
        "pairs": pairs,
        "targets": [MASKED if verdict is None else float(verdict) for verdict in verdicts],
    }


def _preferred(group: Group, view: str) -> list[tuple[str, str, int | None]]:
    """(chosen, rejected, number of the criterion, None in a view that has one score an answer)."""
    if view in PREFERENCE:
        return [(chosen, rejected, None) for chosen, rejected in preferences(group)]
    number = {c.id: n if view in CONDITIONAL else None for n, c in enumerate(group.criteria)}
    return [(p.chosen_id, p.rejected_id, number[p.criterion_id]) for p in criterion_pairs(group)]


class RewardPasses(Passes):
    """Collator of the rows of ``training_rows``; totals are of pairs and of verdicts."""

    def batch(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        """``packing.collate`` of the rows' answers, with ``pairs`` (P, 2) and ``targets`` (N,)."""
        pairs: list[list[int]] = []
        targets: list[float] = []
        for row in rows:
            pairs += [[a + len(targets), b + len(targets)] for a, b in row["pairs"]]
            targets += row["targets"]
        return packing.collate(grouped.sequences(rows), self.pad_id) | {
            "pairs": torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
            "targets": torch.tensor(targets),
        }

    def counts(self, batch: dict[str, torch.Tensor]) -> list[int]:
        return [len(batch["pairs"]), int((batch["targets"] != MASKED).sum())]


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
        misfit = binary_cross_entropy_with_logits(scores[known], targets[known], reduction="sum")
        loss = loss + weight * misfit / max(1, of_verdicts)
    return loss


class PackedRewardTrainer(GroupTrainer):
    """``GroupTrainer`` with ``reward_loss``, on passes of ``RewardPasses``."""

    LEARNED = ("pairs", "targets", "totals")

    def __init__(self, *args, pointwise_weight: float, **kwargs):
        super().__init__(*args, **kwargs)
        self.pointwise_weight = pointwise_weight

    def loss_of(self, scores, *, pairs, targets, totals):
        right = int((scores.detach()[pairs[:, 0]] > scores.detach()[pairs[:, 1]]).sum())
        loss = reward_loss(scores, pairs, targets, self.pointwise_weight, totals)
        return loss, right / max(1, len(pairs))


def trainer(
    model, tokenizer, rows: Sequence[dict], schedule: Schedule, plan: Plan
) -> PackedRewardTrainer:
    """The trainer of a plan, whose ``train()`` goes through the schedule once."""
    p = plan.profile
    return PackedRewardTrainer(
        model=model,
        args=grouped.arguments(
            plan.checkpoints, schedule.steps, schedule.batch, plan.rate, plan.mixed, plan.seed
        ),
        data_collator=RewardPasses(tokenizer.pad_token_id, p.rm_pass_tokens),
        train_dataset=grouped.dataset(rows, schedule.order),
        processing_class=tokenizer,
        peft_config=None if plan.full else grouped.lora(p.rm_lora_rank),
        pointwise_weight=p.rm_pointwise_weight,
        muon=p.rm_optimizer == "muon",
    )


def report(
    trainer: PackedRewardTrainer,
    groups: Sequence[Group],
    taught: Taught,
    schedule: Schedule,
    plan: Plan,
    seconds: float = 0.0,
) -> dict:
    """What was trained, on how much, and the curve of loss and accuracy."""
    p, rows = plan.profile, taught.rows
    tokens = [sum(map(len, row["ids"])) for row in rows]
    return {
        **{key: getattr(plan, key) for key in ("view", "labels", "full", "seed", "settings")},
        "base": plan.source,
        "quantization": "nf4" if plan.nf4 else "none",
        "dtype": str(plan.dtype).removeprefix("torch."),
        "max_tokens": plan.limit(trainer.model),
        "heads": plan.heads,
        "groups": len(rows),
        "answers": sum(len(g.candidates) for g in groups) - len(taught.left_out),
        "pairs": sum(len(row["pairs"]) for row in rows),
        "verdicts": sum(target != MASKED for row in rows for target in row["targets"]),
        "left_out": taught.left_out,
        "shortened": taught.shortened,
        "epochs": p.rm_epochs,
        "batch": p.rm_batch,
        "steps": schedule.steps,
        "learning_rate": plan.rate,
        "lora_rank": None if plan.full else p.rm_lora_rank,
        "pointwise_weight": p.rm_pointwise_weight if plan.view in CONDITIONAL else 0.0,
        "tokens": sum(tokens[i] for i in schedule.order),
        "seconds": seconds,
        "padding": grouped.padding(
            [rows[i] for i in schedule.order], schedule.batch, p.rm_pass_tokens
        ),
        "parameters": trainer.model.num_parameters(),
        "trained_parameters": trainer.model.num_parameters(only_trainable=True),
        "curve": grouped.curve(trainer),
    }


def save(trainer: PackedRewardTrainer, tokenizer, plan: Plan, report: dict) -> dict:
    """Write the model, its card, and last its report, which is returned; checkpoints go.

    An adapter names its base by hub id or relative folder.
    """
    if not trainer.is_world_process_zero():
        return report
    out = plan.out
    hub.save(trainer.model, out, plan.source.get("hub") or plan.source["folder"])
    tokenizer.save_pretrained(out)
    for stale in out.glob("checkpoints-*"):
        shutil.rmtree(stale)
    model_card.write(out, report)
    write_json(out / "report.json", report)
    return report
