"""Training of policies on TRL: GRPO, RLOO or DPO against one reward, with the truth beside it.

At every evaluation, held-out prompts are answered and read by the reward model (proxy), by the
judge and, in the clinic, by the truth (gold). The policy that is kept is the best by the *judge*:
not by the proxy, which training pushes up by construction, and not by gold, which real data do not
have.
PPO, the paper's other optimiser, left TRL with 1.16; RLOO stands in its place.
"""

import json
import math
import shutil
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Instruction, Rubric
from promedical_utils.core.workspace import (
    KitError,
    read_json,
    replacing,
    short_hash,
    write_json,
    write_text,
)
from promedical_utils.policy import model as policy
from promedical_utils.policy import reward_hacking, shared_base, veto_reward
from promedical_utils.policy.generation import complete, eos_ids, messages_of, prompts_of, seed_of
from promedical_utils.policy.model import NOTEBOOK, Judge, quiet
from promedical_utils.reward_model import model as reward_model
from promedical_utils.rubric import scoring

CURVE = [
    "step",
    "split",
    "proxy",
    "gold",
    "judged",
    "violation_rate",
    "judged_violation_rate",
    "proficiency",
    "excellence",
    "veto_rate",
    "kl",
    "entropy",
    "length",
    "unparsed",
    "finished",
]
GOLD_LAMBDA = 2.0  # gold and judged are on one scale, whatever reward a run is trained on
WHOLE = "whole.txt"  # written last into a checkpoint


class SharedPrompts:
    """For TRL's online trainers: reads the prompt of a group once, where TRL reads it once an
    answer.

    The same log-probabilities to rounding. With 8 answers of 70 tokens to a prompt of 155 it is
    2.5 times fewer tokens; on a CPU TRL also projects every prompt position through the LM head.
    Sampling is seeded by prompt and step (``generation``). Text only. Gradient checkpointing drops
    the cache, and vLLM generates by itself: there TRL's own ways are taken.
    """

    def _generate_single_turn(self, prompt_ids, *others, **named):
        started = time.perf_counter()
        if self.use_vllm:
            found = super()._generate_single_turn(prompt_ids, *others, **named)
        else:
            a, step = self.args, self.state.global_step
            seeds = [seed_of(a.seed, step, *p) for p in dict.fromkeys(map(tuple, prompt_ids))]
            ids = complete(
                self.accelerator.unwrap_model(self.model_wrapped),
                self._tokenizer,
                prompt_ids,
                a.max_completion_length,
                a.temperature,
                a.top_p,
                seeds,
            )
            found = (ids, None) if isinstance(self, GRPOTrainer) else ids
        self._log_metric("time/generate", time.perf_counter() - started)
        return found

    def _get_per_token_logps_and_entropies(
        self,
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        batch_size=None,
        compute_entropy=False,
        **named,
    ):
        if self.args.gradient_checkpointing:
            return super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                compute_entropy,
                **named,
            )
        logps, entropies, size = [], [], batch_size or len(input_ids)
        for start in range(0, len(input_ids), size):
            ids, mask = (x[start : start + size] for x in (input_ids, attention_mask))
            split = ids.shape[1] - logits_to_keep - 1  # the last prompt token predicts the first
            shared = torch.stack([ids[:, :split], mask[:, :split]], 1)
            shared, rows = torch.unique(shared, dim=0, return_inverse=True)
            with self.accelerator.autocast():
                cache = model(
                    input_ids=shared[:, 0],
                    attention_mask=shared[:, 1],
                    use_cache=True,
                    logits_to_keep=1,
                ).past_key_values
                for layer in cache.layers:
                    # not batch_select_indices: the gradient of an index by a tensor is summed in
                    # whatever order the threads come, and no two runs are alike
                    layer.keys = layer.keys.index_select(0, rows)
                    layer.values = layer.values.index_select(0, rows)
                labels = ids[:, split:].masked_fill(mask[:, split:] == 0, -100)
                output = model(
                    input_ids=ids[:, split:],
                    attention_mask=mask,
                    labels=labels,
                    past_key_values=cache,
                    fused_lm_head=True,
                )
            logps.append(output.log_probs)
            entropies.append(output.entropy)
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None


class Checkpointed:
    """A checkpoint counts once every process has written its part of it."""

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            step = self.state.global_step
            write_text(Path(self.args.output_dir) / f"checkpoint-{step}" / WHOLE, f"{step}\n")
        self.accelerator.wait_for_everyone()


class SharedPromptGRPO(SharedPrompts, Checkpointed, GRPOTrainer):
    """GRPO (Shao et al. 2024, arXiv 2402.03300)."""


class SharedPromptRLOO(SharedPrompts, Checkpointed, RLOOTrainer):
    """RLOO (Ahmadian et al. 2024, arXiv 2402.14740)."""


class SampledPairs(Checkpointed, DPOTrainer):
    """DPO (Rafailov et al. 2023, arXiv 2305.18290) on rows that are token ids already."""

    def _prepare_dataset(self, dataset, *_, **__):
        return dataset


class Curve(TrainerCallback):
    """Evaluates at step 0 and after each checkpoint; keeps the policy best by *judged* reward.

    Evaluating after the save makes a resumed run whole: a row that a crash lost is made again from
    the checkpoint it belongs to. ``patience`` evaluations without a better one end the run.
    """

    def __init__(self, out: Path, reward, measure, patience: int = 0):
        self.out, self.reward, self.measure, self.patience = out, reward, measure, patience
        self.rows, self.answers = _read_csv(out / "curve.csv"), pd.DataFrame()
        if self.rows and (out / "checkpoints.parquet").exists():
            self.answers = pd.read_parquet(out / "checkpoints.parquet")

    @property
    def best(self) -> dict:
        return max(self.rows, key=lambda row: row["judged"])

    @property
    def over(self) -> bool:
        """Whether the last ``patience`` evaluations have brought nothing better."""
        since = len(self.rows) - 1 - self.rows.index(self.best) if self.rows else 0
        return bool(self.patience) and since >= self.patience

    def catch_up(self, state, model) -> None:
        """Forget what came after the step that a run goes on from, and evaluate that, if need
        be."""
        self.rows = [row for row in self.rows if row["step"] <= state.global_step]
        if len(self.answers):
            self.answers = self.answers[self.answers.step <= state.global_step]
        if _world().is_main_process and (
            not self.rows or self.rows[-1]["step"] < state.global_step
        ):
            self._evaluate(state.global_step, model)

    def on_train_begin(self, args, state, control, model=None, **_):
        self.catch_up(state, model)
        _from_main(None)  # the others wait

    def on_log(self, args, state, control, logs=None, **_):
        if logs.get("veto/unscored") == 1.0:
            raise KitError(
                f"the reward model scored no answer of step {state.global_step} "
                f"({self.reward.error}): nothing can be learned so; check 03_reward_model"
            )

    def on_save(self, args, state, control, model=None, **_):
        if _world().is_main_process:
            self._evaluate(state.global_step, model)
        # the others wait, and learn whether it is over
        control.should_training_stop |= _from_main(self.over)

    def _evaluate(self, step: int, model) -> None:
        answers = self.measure(model).assign(step=step)
        row = curve_row(step, answers)
        if not self.rows or row["judged"] > self.best["judged"]:
            part, best = self.out / ".best-part", self.out / "best"
            _save_model(model, part)
            shutil.rmtree(best, ignore_errors=True)
            part.rename(best)
        self.rows.append(row)
        self.answers = pd.concat([self.answers, answers], ignore_index=True)
        with replacing(self.out / "checkpoints.parquet") as temporary:
            self.answers.to_parquet(temporary, index=False)
        _write_csv(self.rows, self.out / "curve.csv", CURVE)


def curve_row(step: int, answers: pd.DataFrame) -> dict:
    """Means over held-out answers, as ``Curve`` measures them; NaN where nothing is known."""
    means = {
        "proxy": "proxy",
        "gold": "gold",
        "judged": "judged",
        "violation_rate": "violation",
        "proficiency": "s1",
        "excellence": "s2",
        "veto_rate": "vetoed",
        "kl": "kl",
        "entropy": "entropy",
        "length": "tokens",
        "unparsed": "unparsed",
        "finished": "finished",
    }
    row = {name: float(answers[column].astype(float).mean()) for name, column in means.items()}
    row["judged_violation_rate"] = float((answers.judged_s3 > 0).mean())
    return {"step": step, "split": "checkpoint", **row}


def train(
    base: Path | str,
    rm,
    rubrics: Sequence[Rubric],
    train_instructions: Sequence[Instruction],
    checkpoint_instructions: Sequence[Instruction],
    judged: Judge,
    gold: Judge | None,
    out: Path,
    profile: Profile,
    *,
    conditions=None,
    seed: int | None = None,
    fingerprint: str = "",
) -> dict:
    """Align ``base`` with ``reward_rule`` by ``policy_optimizer``; returns out/report.json, written
    last.

    ``rm``: a reward model, or the folder of one; the folder of an adapter is hung on the policy's
    own base where the policy is an adapter, too (``shared_base``). Writes model/ (the checkpoint
    best by *judged* reward), training.csv (the trainer's log), curve.csv (a row an evaluation: one
    sampled answer per checkpoint instruction, always from ``seed``), checkpoints.parquet (a row an
    answer of them) and hacking.json (``reward_hacking.check``). A complete run is returned as
    stored, an interrupted one resumes, one of other settings or of another ``fingerprint`` (of the
    reward model, say) starts again. Under ``accelerate launch`` the main process alone evaluates
    and writes. Raises KitError if the reward model scores nothing, a rubric is missing or a prompt
    leaves no room.
    """
    p, out, started = profile, Path(out), time.time()
    seed = p.seed if seed is None else seed
    everything = [*train_instructions, *checkpoint_instructions]
    if len(train_instructions) < p.grpo_prompts:
        raise KitError(
            f"{len(train_instructions)} training instructions are fewer than grpo_prompts = "
            f"{p.grpo_prompts}: lower it or raise train_instructions"
        )
    rubric_of = {r.instruction_id: r for r in rubrics}
    for instruction in everything:
        if instruction.id not in rubric_of:
            raise KitError(f"no rubric for instruction {instruction.id}: run 01_rubrics again")
    prefixes = ("grpo", "reward", "policy_optimizer", "dpo")
    settings = {k: v for k, v in p.model_dump().items() if k.startswith(prefixes)}
    settings |= {"seed": seed, "precision": p.precision, "quantization": p.quantization}
    fingerprint = short_hash(fingerprint, sorted(settings.items()), [i.id for i in everything])
    if (out / "report.json").exists():
        report = read_json(out / "report.json", NOTEBOOK)
        if report["fingerprint"] == fingerprint:
            return report
    world = _world()
    if world.is_main_process:
        _workplace(out, fingerprint)
    world.wait_for_everyone()
    folder = out / "trainer" / fingerprint
    with quiet():
        model, tokenizer = policy.load_base(base, p)
        prompts_of(model, tokenizer, everything, p.grpo_max_tokens)
        reward = veto_reward.build(p, None, None, rubrics, eos_ids(model, tokenizer))
        curve = Curve(out, reward, None, p.grpo_patience)
        if p.policy_optimizer == "dpo":  # needs the reward before the trainer: its pairs
            reward.rm, reward.calibration = _reward_model(rm)
            trainer = _dpo(model, tokenizer, reward, train_instructions, curve, folder, p, seed)
        else:
            trainer = _online(model, tokenizer, reward, train_instructions, curve, folder, p, seed)
            reward.rm, reward.calibration = _reward_model(rm, trainer.model)
        curve.measure = _measure(
            trainer,
            tokenizer,
            reward,
            checkpoint_instructions,
            rubric_of,
            judged,
            gold,
            p,
            seed,
            base,
            conditions,
        )
        checkpoint = _last_checkpoint(folder)
        if not (checkpoint and _at_its_end(trainer, curve, checkpoint, p.grpo_steps)):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if world.is_main_process:
        _finish(trainer, tokenizer, reward, curve, out, p, seed, settings, fingerprint, started)
    world.wait_for_everyone()
    return read_json(out / "report.json", NOTEBOOK)


def _at_its_end(trainer, curve: Curve, checkpoint: Path, steps: int) -> bool:
    """Whether the run had come to its end at ``checkpoint``, and only its report is missing.

    The evaluation that belongs to the checkpoint may be missing, too, and may be what ends the run.
    The trainer itself would take one step more before it looks.
    """
    trainer.state = trainer.state.load_from_json(str(checkpoint / "trainer_state.json"))
    trainer._load_from_checkpoint(str(checkpoint))
    curve.catch_up(trainer.state, trainer.model)
    return trainer.state.global_step >= steps or _from_main(curve.over)


def _finish(
    trainer, tokenizer, reward, curve, out, p, seed, settings, fingerprint, started
) -> None:
    """The best checkpoint as model/, the logs, the check for reward hacking, and last the
    report."""
    if (out / "best").exists():
        shutil.rmtree(out / "model", ignore_errors=True)
        (out / "best").rename(out / "model")
    tokenizer.save_pretrained(out / "model")
    log = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    _write_csv(log, out / "training.csv")
    found = reward_hacking.check(curve.answers)
    write_json(out / "hacking.json", found)
    rows = {"first": curve.rows[0], "best": curve.best, "last": curve.rows[-1]}
    report = {
        "fingerprint": fingerprint,
        "settings": settings,
        "steps": trainer.state.global_step,
        "stopped_early": trainer.state.global_step < p.grpo_steps,
        "seconds": round(time.time() - started, 1),
        "tokens": int(log[-1].get("num_tokens", 0)) if log else 0,
        "trainable_parameters": sum(
            w.numel() for w in trainer.model.parameters() if w.requires_grad
        ),
        "selected_by": "judged reward on the checkpoint split",
        **{name: {k: v for k, v in row.items() if v == v} for name, row in rows.items()},
        "hacking": {key: found[key] for key in ("flagged", "since", "text")},
        "throughput": throughput(log),
        "unscored": max((entry.get("veto/unscored", 0.0) for entry in log), default=0.0),
        "last_rm_error": reward.error,
    }
    write_json(out / "report.json", report)
    for name in ("trainer", "best"):
        shutil.rmtree(out / name, ignore_errors=True)


def throughput(log: Sequence[dict]) -> dict:
    """Seconds of a step, shares of them in generation and reward, tokens a second; medians of
    steps."""
    timed = [e for e in log if "time/reward" in e and "time/generate" in e and "step_time" in e]
    if not timed:
        return {}
    frame = pd.DataFrame(timed)
    median = frame[["step_time", "time/generate", "time/reward"]].median()
    return {
        "step_seconds": round(float(median["step_time"]), 3),
        "generate_share": round(float(frame["time/generate"].sum() / frame["step_time"].sum()), 4),
        "reward_share": round(float(frame["time/reward"].sum() / frame["step_time"].sum()), 4),
        "generated_tokens_per_second": round(
            float((frame["tokens/generated"] / frame["time/generate"]).median()), 1
        ),
        "scored_tokens_per_second": round(
            float((frame["tokens/scored"] / frame["time/reward"]).median()), 1
        ),
    }


def _measure(
    trainer, tokenizer, reward, instructions, rubric_of, judged, gold, p, seed, base, conditions
):
    """A function of the policy: its answers to held-out prompts, a row each (see ``train``)."""
    terms = {"alpha": p.reward_alpha, "beta": p.reward_beta}
    terms["lam"] = max(GOLD_LAMBDA, 1.5 * (1 + p.reward_beta))  # strict for a wide margin, too
    reference = _reference(trainer, base, p)

    def measure(model) -> pd.DataFrame:
        answers = policy.answers_of(model, tokenizer, instructions, p, seed)
        frame, _ = policy.judge(
            "policy", instructions, answers, rubric_of, gold, judged, conditions
        )
        items = [(i.id, messages_of(i), a.text, a.finished) for i, a in zip(instructions, answers)]
        read = reward.read(items)
        kl, entropy = policy.divergence(model, reference, answers, p.grpo_temperature)

        def on_scale(prefix: str) -> list[float]:
            columns = frame[[f"{prefix}s1", f"{prefix}s2", f"{prefix}s3"]].to_numpy()
            return [
                math.nan
                if row[0] != row[0]
                else scoring.gated_reward(scoring.Scores(*row), **terms)
                for row in columns
            ]

        return frame.assign(
            proxy=[reward.value(one, rubric_of[i.id]) for i, one in zip(instructions, read)],
            gold=on_scale(""),
            judged=on_scale("judged_"),
            vetoed=[float(one.scores.s3 > 0) if one.verdicts else math.nan for one in read],
            kl=kl,
            entropy=entropy,
        )

    return measure


def _reference(trainer, base, p: Profile):
    """A context manager that yields the model that KL is measured against: the base."""
    if isinstance(trainer.model, PeftModel):
        model = trainer.model

        @contextmanager
        def without_adapter():
            with shared_base.reference(model):
                yield model

        return without_adapter
    other = getattr(trainer, "ref_model", None)
    if other is None:
        other = policy.load_base(base, p)[0].to(trainer.model.device).eval()

    @contextmanager
    def whole():
        yield other

    return whole


def _reward_model(rm, model=None) -> tuple:
    """(reward model, calibration); of a folder, on the policy's own base where that is an
    adapter's."""
    if isinstance(rm, str | Path):
        report = read_json(Path(rm) / "report.json", "03_reward_model")
        hung = isinstance(model, PeftModel) and not report["full"]
        rm = shared_base.attach(model, Path(rm)) if hung else reward_model.load(rm)
        if not hung and rm.model.device.type == "cpu":
            rm = rm.merged()
    return rm, rm.calibration


def _workplace(out: Path, fingerprint: str) -> None:
    """Folder of the trainer's checkpoints, whole ones only; what other settings left is removed."""
    folder = out / "trainer" / fingerprint
    if not folder.exists():
        for name in ("trainer", "best", "model"):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in (
            "report.json",
            "curve.csv",
            "training.csv",
            "checkpoints.parquet",
            "hacking.json",
        ):
            (out / name).unlink(missing_ok=True)
        folder.mkdir(parents=True)
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / WHOLE).exists():
            shutil.rmtree(checkpoint)


def _last_checkpoint(folder: Path) -> Path | None:
    found = [path for path in folder.glob("checkpoint-*") if (path / WHOLE).exists()]
    return max(found, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _arguments(profile: Profile, folder: Path, seed: int) -> dict:
    """What the trainers of all optimisers are given alike."""
    p, cuda, dtype = profile, torch.cuda.is_available(), policy.precision_of(profile)
    return {
        "output_dir": str(folder),
        "max_steps": p.grpo_steps,
        "learning_rate": p.dpo_learning_rate
        if p.policy_optimizer == "dpo"
        else p.grpo_learning_rate,
        "lr_scheduler_type": "constant",  # a shorter run is the start of a longer one
        # TRL switches bf16 and checkpointing on unless told, on a CPU too
        "bf16": dtype is torch.bfloat16,
        "fp16": dtype is torch.float16,
        "gradient_checkpointing": p.grpo_checkpointing,
        "use_cpu": not cuda,
        "accelerator_config": {"use_configured_state": True},  # that of ``_world``
        "dataloader_pin_memory": cuda,
        "ddp_find_unused_parameters": False,
        "seed": seed,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": p.grpo_eval_every,
        "save_total_limit": 2,  # the new one is not whole until the old one may go
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
    }


def _online(model, tokenizer, reward, instructions, curve, folder, p: Profile, seed: int):
    """The trainer of ``policy_optimizer`` grpo or rloo."""
    group, world = p.grpo_group, _world().num_processes
    if p.grpo_prompts % world:
        raise KitError(
            f"grpo_prompts = {p.grpo_prompts} cannot be shared by {world} processes: a process "
            "holds "
            "whole groups; make it a multiple"
        )
    own = group * p.grpo_prompts // world
    micro = group if torch.cuda.is_available() else own  # a GPU holds one group at once
    shared = {
        **_arguments(p, folder, seed),
        # one step = one generation of grpo_prompts x grpo_group answers, so exactly on-policy
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": own // micro,
        "num_generations": group,
        "num_iterations": 1,
        "max_completion_length": p.grpo_max_tokens,
        "temperature": p.grpo_temperature,
        "top_p": p.grpo_top_p,
        "beta": p.grpo_beta_kl,
        "chat_template_kwargs": {
            "enable_thinking": False
        },  # the prompt that the reward model reads
        **_vllm(p),
    }
    if p.policy_optimizer == "rloo":
        kind, arguments = SharedPromptRLOO, RLOOConfig(**shared)
    else:
        kind = SharedPromptGRPO
        arguments = GRPOConfig(
            **shared,
            # the KL term times the (differentiable) ratio has the gradient of KL(policy || base),
            # which is named and logged; without it the gradient on-policy is that of KL(base ||
            # policy)
            use_bias_correction_kl=True,
            loss_type="dapo",  # mean over the batch's tokens; "grpo" goes easy on long bad answers
            # GRPO's: advantage = (r - mean) / std among answers to one prompt
            scale_rewards="group",
            mask_truncated_completions=False,  # a cut-off answer is a violation to be learned from
        )
    rows = [{"prompt": messages_of(i), "instruction_id": i.id} for i in instructions]
    trainer = kind(
        model=model,
        reward_funcs=reward,
        args=arguments,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        callbacks=[curve],
        peft_config=_lora(p),
    )
    return _prepared(trainer)


def _vllm(p: Profile) -> dict:
    """vLLM in server mode, on GPUs of its own: ``trl vllm-serve --model ...``
    (docs/several_gpus.md)."""
    if not p.grpo_vllm:
        return {}
    return {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": p.grpo_vllm}


def _dpo(model, tokenizer, reward, instructions, curve, folder, p: Profile, seed: int):
    """DPO on as many answers of the base as GRPO draws, paired by the same reward."""
    pairs = folder / "pairs.json"
    if _world().is_main_process and not pairs.exists():
        write_json(
            pairs, {"rows": preference_rows(model, tokenizer, reward, instructions, p, seed)}
        )
    _world().wait_for_everyone()
    rows = json.loads(pairs.read_text(encoding="utf-8"))["rows"]
    if not rows:
        raise KitError("no two answers of the base differ in reward: DPO has nothing to learn from")
    batch = p.grpo_prompts * (p.grpo_group // 2) // _world().num_processes
    micro = min(batch, p.grpo_group) if torch.cuda.is_available() else batch
    arguments = DPOConfig(
        **_arguments(p, folder, seed),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=batch // micro,
        beta=p.dpo_beta,
        max_length=None,
        train_sampling_strategy="sequential",
    )
    trainer = SampledPairs(
        model=model,
        args=arguments,
        processing_class=tokenizer,
        peft_config=_lora(p),
        train_dataset=Dataset.from_list(rows),
        callbacks=[curve],
    )
    return _prepared(trainer)


@torch.no_grad()
def preference_rows(model, tokenizer, reward, instructions, p: Profile, seed: int) -> list[dict]:
    """Rows of prompt_ids, chosen_ids, rejected_ids, answers of the base: as many as GRPO draws.

    ``grpo_steps`` times ``grpo_prompts`` prompts of ``grpo_group`` answers each; of a group, the
    best goes with the worst, the second with the last but one, and so on, where the rewards differ.
    """
    draw = torch.Generator().manual_seed(seed)
    wanted, order = p.grpo_steps * p.grpo_prompts, []
    while len(order) < wanted:
        order += torch.randperm(len(instructions), generator=draw).tolist()
    rows, ends = [], set(eos_ids(model, tokenizer))
    for start in range(0, wanted, p.grpo_prompts):
        some = [instructions[n] for n in dict.fromkeys(order[start : start + p.grpo_prompts])]
        prompts = prompts_of(model, tokenizer, some, p.grpo_max_tokens)
        each = [(i, prompt) for i, prompt in zip(some, prompts) for _ in range(p.grpo_group)]
        seeds = [seed_of(seed, start, i.id) for i in some]
        ids = complete(
            model,
            tokenizer,
            [q for _, q in each],
            p.grpo_max_tokens,
            p.grpo_temperature,
            p.grpo_top_p,
            seeds,
        )
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        read = reward.read(
            [
                (i.id, messages_of(i), text, row[-1] in ends)
                for (i, _), text, row in zip(each, texts, ids)
            ]
        )
        for n in range(0, len(each), p.grpo_group):
            own = list(range(n, n + p.grpo_group))
            values = dict(
                zip(own, reward.of_group([read[k] for k in own], reward.rubric(each[n][0].id)))
            )
            own.sort(key=lambda k: -values[k])
            rows += [
                {"prompt_ids": each[a][1], "chosen_ids": ids[a], "rejected_ids": ids[b]}
                for a, b in zip(own[: len(own) // 2], reversed(own))
                if values[a] > values[b]
            ]
    return rows


def _lora(p: Profile):
    """An adapter's settings; with one, the reference is the base with adapters off, else a copy."""
    rank = p.grpo_lora_rank
    if not rank:
        return None
    return LoraConfig(
        task_type="CAUSAL_LM", r=rank, lora_alpha=2 * rank, target_modules="all-linear"
    )


def _prepared(trainer):
    if isinstance(trainer.model, PeftModel):
        shared_base.in_full(trainer.model)
    trainer.remove_callback(PrinterCallback)
    trainer.create_model_card = lambda **_: None  # nobody reads one of a passing checkpoint
    return trainer


def _save_model(model, folder: Path) -> None:
    """The whole model, or of two adapters the policy's alone."""
    if isinstance(model, PeftModel):
        config = model.peft_config["default"]
        if config.base_model_name_or_path and Path(config.base_model_name_or_path).is_dir():
            config.base_model_name_or_path = "base"  # no path of this machine; load_policy knows it
        model.save_pretrained(folder, selected_adapters=["default"], save_embedding_layers=False)
        (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty card
    else:
        model.save_pretrained(folder)


def _world() -> PartialState:
    """The processes that share a run; on CPUs they talk through gloo."""
    return PartialState(cpu=not torch.cuda.is_available())


def _from_main(value):
    """What the main process says, on all of them; a barrier, too."""
    found = [value]
    if _world().num_processes > 1:
        broadcast_object_list(found)
    return found[0]


def _read_csv(path: Path) -> list[dict]:
    return pd.read_csv(path).to_dict("records") if path.exists() else []


def _write_csv(rows: list[dict], path: Path, columns=None) -> None:
    with replacing(path) as temporary:
        pd.DataFrame(rows, columns=columns).to_csv(temporary, index=False)
