"""Training of policies on TRL: GRPO, RLOO or DPO against one reward, with the truth beside it.

At every evaluation, held-out prompts are answered and read by the reward model (proxy), by the
judge and, in the clinic, by the truth (gold). The policy that is kept is the best by the *judge*:
not by the proxy, which training pushes up by construction, and not by gold, which real data do not
have. PPO, the paper's other optimiser, left TRL with 1.16; RLOO stands in its place.

``train`` is these steps, which a notebook can take one by one:

    held_out = training.HeldOut(checkpoint_instructions, judged, gold)
    job = training.job(out, p, rubrics, instructions, held_out)
    model, tokenizer = policy.load_base(base, p)
    rm = lambda: training.reward_model_of("runs/cpu/reward/criterion", trainer)
    reward = veto_reward.build(p, rm, None, rubrics, eos_ids(model, tokenizer))
    rows, settings = training.prompts(instructions), training.settings(p, job.folder)
    trainer = training.trainer(model, tokenizer, rows, settings, p, reward)
    measure = training.Measure(held_out, reward, tokenizer, training.reference(trainer, base, p), p)
    curve = training.Curve(out, reward, measure, p.grpo_patience)
    trainer.add_callback(curve)
    trainer.train()
    training.finish(trainer, tokenizer, curve, job)
"""

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from peft import PeftModel
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, RLOOConfig

from promedical_utils.core import fingerprint as content
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
from promedical_utils.policy import reward_hacking, shared_base, trl_fast_path, veto_reward
from promedical_utils.policy.generation import complete, eos_ids, messages_of, prompts_of, seed_of
from promedical_utils.policy.model import NOTEBOOK, Judge
from promedical_utils.reward_model import grouped, hub
from promedical_utils.reward_model import model as reward_model
from promedical_utils.rubric import scoring

# column of curve.csv -> that of the answers whose mean it is
MEANS = {
    "proxy": "proxy",
    "gold": "gold",
    "judged": "judged",
    "violation_rate": "violation",
    "judged_violation_rate": "judged_violation",
    "proficiency": "s1",
    "excellence": "s2",
    "veto_rate": "vetoed",
    "kl": "kl",
    "entropy": "entropy",
    "length": "tokens",
    "unparsed": "unparsed",
    "finished": "finished",
}
CURVE = ["step", "split", *MEANS]
WRITTEN = ("report.json", "curve.csv", "training.csv", "checkpoints.parquet", "hacking.json")
GOLD_LAMBDA = 2.0  # gold and judged are on one scale, whatever reward a run is trained on
WHOLE = "whole.txt"  # written last into a checkpoint


@dataclass(frozen=True)
class HeldOut:
    """Prompts that a policy is evaluated on, and who judges its answers to them.

    ``gold``: the truth, None where there is none; ``conditions``: of instructions, by id.
    """

    instructions: Sequence[Instruction]
    judged: Judge
    gold: Judge | None = None
    conditions: Mapping[str, str] | None = None


def train(
    base: Path | str,
    rm,
    rubrics: Sequence[Rubric],
    instructions: Sequence[Instruction],
    held_out: HeldOut,
    out: Path,
    profile: Profile,
    *,
    seed: int | None = None,
    fingerprint: str = "",
) -> dict:
    """Align ``base`` with ``reward_rule`` by ``policy_optimizer``; its report, written last.

    ``rm``: a reward model, or the folder of one; the folder of an adapter is hung on the policy's
    own base where the policy is an adapter, too (``shared_base``). Writes model/ (the checkpoint
    best by *judged* reward), training.csv (the trainer's log), curve.csv (a row an evaluation: one
    sampled answer per held-out instruction, always from ``seed``), checkpoints.parquet (a row an
    answer of them) and hacking.json (``reward_hacking.check``). A complete run is returned as
    stored, an interrupted one resumes, one of other settings or of another ``fingerprint`` (of the
    reward model, say) starts again. Under ``accelerate launch`` the main process alone evaluates
    and writes. Raises KitError if the reward model scores nothing, a rubric is missing or a prompt
    leaves no room.
    """
    p = profile
    own = job(out, p, rubrics, instructions, held_out, seed, fingerprint)
    if (stored := own.stored()) is not None:
        return stored
    own.begin()
    model, tokenizer = policy.load_base(base, p)
    prompts_of(model, tokenizer, held_out.instructions, p.grpo_max_tokens)
    ends, arguments = eos_ids(model, tokenizer), settings(p, own.folder, own.seed)
    made = None  # the reward model may share the base of a policy that the trainer makes
    reward = veto_reward.build(p, lambda: reward_model_of(rm, made), None, rubrics, ends)
    rows = dataset(model, tokenizer, reward, instructions, own)
    made = trainer(model, tokenizer, rows, arguments, p, reward)
    measure = Measure(held_out, reward, tokenizer, reference(made, base, p), p, own.seed)
    curve = Curve(own.out, reward, measure, p.grpo_patience)
    made.add_callback(curve)
    run_to_end(made, curve, own)
    if _world().is_main_process:
        finish(made, tokenizer, curve, own)
    _world().wait_for_everyone()
    return read_json(own.out / "report.json", NOTEBOOK)


@dataclass(frozen=True)
class Job:
    """One training: where it is written, and what decides its outcome."""

    out: Path
    profile: Profile
    seed: int
    settings: dict
    fingerprint: str
    started: float = field(default_factory=time.time)

    @property
    def folder(self) -> Path:
        """Where the trainer keeps its checkpoints."""
        return self.out / "trainer" / self.fingerprint

    def stored(self) -> dict | None:
        """The report of a complete run of this very fingerprint."""
        if not (self.out / "report.json").exists():
            return None
        report = read_json(self.out / "report.json", NOTEBOOK)
        return report if report["fingerprint"] == self.fingerprint else None

    def begin(self) -> None:
        """Make room: what other settings left is removed, and checkpoints that are not whole."""
        if _world().is_main_process:
            if not self.folder.exists():
                for name in ("trainer", "best", "model"):
                    shutil.rmtree(self.out / name, ignore_errors=True)
                for name in WRITTEN:
                    (self.out / name).unlink(missing_ok=True)
                self.folder.mkdir(parents=True)
            for checkpoint in self.folder.glob("checkpoint-*"):
                if not (checkpoint / WHOLE).exists():
                    shutil.rmtree(checkpoint)
        _world().wait_for_everyone()

    def clear(self) -> None:
        """Remove what only an unfinished training needs."""
        for name in ("trainer", "best"):
            shutil.rmtree(self.out / name, ignore_errors=True)

    @property
    def checkpoint(self) -> Path | None:
        """The last whole one."""
        whole = [path.parent for path in self.folder.glob(f"checkpoint-*/{WHOLE}")]
        return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def job(
    out: Path,
    profile: Profile,
    rubrics: Sequence[Rubric],
    instructions: Sequence[Instruction],
    held_out: HeldOut,
    seed: int | None = None,
    fingerprint: str = "",
) -> Job:
    """The job of ``train``. KitError for too few instructions, or one without a rubric."""
    p, everything = profile, [*instructions, *held_out.instructions]
    if len(instructions) < p.grpo_prompts:
        raise KitError(
            f"{len(instructions)} training instructions are fewer than grpo_prompts = "
            f"{p.grpo_prompts}: lower it or raise train_instructions"
        )
    known = {rubric.instruction_id for rubric in rubrics}
    for instruction in everything:
        if instruction.id not in known:
            raise KitError(f"no rubric for instruction {instruction.id}: run 01_rubrics again")
    prefixes, seed = ("grpo", "reward", "policy_optimizer", "dpo"), p.seed if seed is None else seed
    values = {k: v for k, v in p.model_dump().items() if k.startswith(prefixes)}
    if values.pop("grpo_fast_path") is False:  # both ways are one method, with other draws
        values["grpo_fast_path"] = False
    values |= {"seed": seed, "precision": p.precision, "quantization": p.quantization}
    texts = [record.model_dump_json() for record in (*everything, *rubrics)]
    code = content.of_code({__name__}, data=False)
    whole = short_hash(fingerprint, sorted(values.items()), texts, code)
    return Job(Path(out), p, seed, values, whole)


# ---------------------------------------------------------------- what TRL is given


def prompts(instructions: Sequence[Instruction]) -> Dataset:
    """A row an instruction: prompt, its messages, and instruction_id, which the reward asks for."""
    return Dataset.from_list(
        [{"prompt": messages_of(i), "instruction_id": i.id} for i in instructions]
    )


def dataset(model, tokenizer, reward, instructions: Sequence[Instruction], job: Job) -> Dataset:
    """What the optimiser of ``job`` learns from: ``prompts``, or for DPO pairs of answers.

    The pairs are sampled from ``model`` and ordered by the reward (``preference_rows``).
    """
    prompts_of(model, tokenizer, instructions, job.profile.grpo_max_tokens)  # refuses a long one
    if job.profile.policy_optimizer == "dpo":
        return preference_dataset(model, tokenizer, reward, instructions, job)
    return prompts(instructions)


def settings(profile: Profile, folder: Path, seed: int | None = None):
    """GRPOConfig, RLOOConfig or DPOConfig of ``policy_optimizer``; checkpoints go to ``folder``.

    One step is one generation of grpo_prompts x grpo_group answers, so exactly on-policy. KitError
    where processes cannot share the groups.
    """
    p, cuda, dtype = profile, torch.cuda.is_available(), policy.precision_of(profile)
    processes, dpo = _world().num_processes, p.policy_optimizer == "dpo"
    if p.grpo_prompts % processes and not dpo:
        raise KitError(
            f"grpo_prompts = {p.grpo_prompts} cannot be shared by {processes} processes: a process "
            "holds whole groups; make it a multiple"
        )
    own = p.grpo_prompts * (p.grpo_group // 2 if dpo else p.grpo_group) // processes
    micro = min(own, p.grpo_group) if cuda else own  # a GPU holds one group at once
    shared = dict(
        output_dir=str(folder),
        max_steps=p.grpo_steps,
        learning_rate=p.dpo_learning_rate if dpo else p.grpo_learning_rate,
        lr_scheduler_type="constant",  # a shorter run is the start of a longer one
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=own // micro,
        # TRL switches bf16 and checkpointing on unless told, on a CPU too
        bf16=dtype is torch.bfloat16,
        fp16=dtype is torch.float16,
        gradient_checkpointing=p.grpo_checkpointing,
        use_cpu=not cuda,
        accelerator_config={"use_configured_state": True},  # that of ``_world``
        dataloader_pin_memory=cuda,
        ddp_find_unused_parameters=False,
        seed=p.seed if seed is None else seed,
        logging_steps=1,
        save_strategy="steps",
        save_steps=p.grpo_eval_every,
        save_total_limit=2,  # the new one is not whole until the old one may go
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    if dpo:
        return DPOConfig(
            **shared, beta=p.dpo_beta, max_length=None, train_sampling_strategy="sequential"
        )
    shared |= dict(
        num_generations=p.grpo_group,
        num_iterations=1,
        max_completion_length=p.grpo_max_tokens,
        temperature=p.grpo_temperature,
        top_p=p.grpo_top_p,
        beta=p.grpo_beta_kl,
        chat_template_kwargs={"enable_thinking": False},  # the prompt that the reward model reads
        **_vllm(p),
    )
    if p.policy_optimizer == "rloo":
        return RLOOConfig(**shared)
    return GRPOConfig(
        **shared,
        # the KL term times the (differentiable) ratio has the gradient of KL(policy || base), which
        # is named and logged; without it the gradient on-policy is that of KL(base || policy)
        use_bias_correction_kl=True,
        loss_type="dapo",  # mean over the batch's tokens; "grpo" goes easy on long bad answers
        scale_rewards="group",  # GRPO's: advantage = (r - mean) / std among answers to one prompt
        mask_truncated_completions=False,  # a cut-off answer is a violation to be learned from
    )


def _vllm(p: Profile) -> dict:
    """vLLM as a server on GPUs of its own: ``trl vllm-serve --model`` (docs/several_gpus.md)."""
    if not p.grpo_vllm:
        return {}
    return {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": p.grpo_vllm}


def trainer(model, tokenizer, rows: Dataset, arguments, profile: Profile, reward=None):
    """TRL's trainer of ``policy_optimizer`` with the reward, on ``prompts`` (DPO: on pairs)."""
    rank = profile.grpo_lora_rank  # with an adapter the reference is the base without, else a copy
    lora = grouped.lora(rank, head=None) if rank else None
    common = dict(model=model, args=arguments, processing_class=tokenizer, peft_config=lora)
    if profile.policy_optimizer == "dpo":
        # TRL tokenises text, and has no way round it; the pairs are the very tokens of the answers
        text = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
        made = DPOTrainer(train_dataset=Dataset.from_list(text), **common)
        made.train_dataset = rows
    else:
        kind = trl_fast_path.trainer_class(profile.policy_optimizer, profile.grpo_fast_path)
        made = kind(reward_funcs=reward, train_dataset=rows, **common)
    return prepared(made)


def prepared(trainer):
    """The trainer with its adapter in fp32, and neither a print a step nor a card a checkpoint."""
    if isinstance(trainer.model, PeftModel):
        hub.in_full(trainer.model)
    trainer.remove_callback(PrinterCallback)
    trainer.create_model_card = lambda **_: None
    return trainer


def reward_model_of(rm, trainer=None):
    """The reward model ``rm``; of a folder, loaded.

    On the base of the trainer's policy where that is an adapter, and the reward model one, too;
    DPO asks for it before there is a trainer, and so has it apart, on from a checkpoint as well.
    """
    if not isinstance(rm, str | Path):
        return rm
    report = read_json(Path(rm) / "report.json", "03_reward_model")
    model = None if isinstance(trainer, DPOTrainer) else getattr(trainer, "model", None)
    if isinstance(model, PeftModel) and not report["full"]:
        return shared_base.attach(model, Path(rm))
    rm = reward_model.load(rm)
    return rm.merged() if rm.model.device.type == "cpu" else rm


# ---------------------------------------------------------------- pairs for DPO


def preference_dataset(model, tokenizer, reward, instructions, job: Job) -> Dataset:
    """``preference_rows``, which an interrupted run finds where it left them."""
    path = job.folder / "pairs.json"
    if _world().is_main_process and not path.exists():
        rows = preference_rows(model, tokenizer, reward, instructions, job.profile, job.seed)
        write_json(path, {"rows": rows})
    _world().wait_for_everyone()
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    if not rows:
        raise KitError("no two answers of the base differ in reward: DPO has nothing to learn from")
    return Dataset.from_list(rows)


@torch.no_grad()
def preference_rows(model, tokenizer, reward, instructions, p: Profile, seed: int) -> list[dict]:
    """Rows of prompt_ids, chosen_ids, rejected_ids, answers of the base: as many as GRPO draws.

    ``grpo_steps`` times ``grpo_prompts`` prompts of ``grpo_group`` answers each; of a group, the
    best goes with the worst, the second with the last but one, and so on, where the rewards differ.
    """
    draw = torch.Generator().manual_seed(seed)
    wanted = p.grpo_steps * p.grpo_prompts
    order: list[int] = []
    while len(order) < wanted:
        order += torch.randperm(len(instructions), generator=draw).tolist()
    rows, ends, size = [], set(eos_ids(model, tokenizer)), p.grpo_group
    for start in range(0, wanted, p.grpo_prompts):
        some = [instructions[n] for n in dict.fromkeys(order[start : start + p.grpo_prompts])]
        prompt_ids = prompts_of(model, tokenizer, some, p.grpo_max_tokens)
        repeated = [prompt for prompt in prompt_ids for _ in range(size)]
        seeds = [seed_of(seed, start, i.id) for i in some]
        limits = (p.grpo_max_tokens, p.grpo_temperature, p.grpo_top_p)
        ids = complete(model, tokenizer, repeated, *limits, seeds)
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        each = zip([i for i in some for _ in range(size)], texts, ids, strict=True)
        read = reward.read([(i.id, messages_of(i), text, row[-1] in ends) for i, text, row in each])
        for number, (instruction, prompt) in enumerate(zip(some, prompt_ids, strict=True)):
            own = slice(number * size, (number + 1) * size)
            values = reward.of_group(read[own], reward.rubric(instruction.id))
            ranked = sorted(zip(values, ids[own]), key=lambda pair: -pair[0])
            for (high, chosen), (low, rejected) in zip(ranked[: size // 2], reversed(ranked)):
                if high > low:
                    rows.append(
                        {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
                    )
    return rows


# ---------------------------------------------------------------- evaluations on the way


def reference(trainer, base: Path | str, profile: Profile) -> Callable:
    """A function whose context yields the model that KL is measured against: the base."""
    if isinstance(trainer.model, PeftModel):
        return lambda: shared_base.reference(trainer.model)
    other = getattr(trainer, "ref_model", None)
    if other is None:
        other = policy.load_base(base, profile)[0].to(trainer.model.device).eval()
    return lambda: nullcontext(other)


@dataclass
class Measure:
    """A function of the policy: its answers to the held-out prompts, a row each.

    Columns: those of ``policy.model.judge``, proxy (the reward as it is trained on), gold and
    judged (the gated reward by truth and judge, on one scale), vetoed, kl, entropy.
    """

    held_out: HeldOut
    reward: veto_reward.RubricReward
    tokenizer: object
    reference: Callable
    profile: Profile
    seed: int | None = None

    def __call__(self, model) -> pd.DataFrame:
        p, held, rubrics = self.profile, self.held_out, self.reward.rubrics
        seed = p.seed if self.seed is None else self.seed
        answers = policy.answers_of(model, self.tokenizer, held.instructions, p, seed)
        frame, _ = policy.judge(
            "policy", held.instructions, answers, rubrics, held.gold, held.judged, held.conditions
        )
        pairs = list(zip(held.instructions, answers, strict=True))
        read = self.reward.read([(i.id, messages_of(i), a.text, a.finished) for i, a in pairs])
        kl, entropy = policy.divergence(model, self.reference, answers, p.grpo_temperature)
        values = [self.reward.value(j, rubrics[i.id]) for (i, _), j in zip(pairs, read)]
        return frame.assign(
            proxy=values,
            gold=self._gated(frame[["s1", "s2", "s3"]]),
            judged=self._gated(frame[["judged_s1", "judged_s2", "judged_s3"]]),
            vetoed=[float(j.scores.s3 > 0) if j.verdicts else math.nan for j in read],
            kl=kl,
            entropy=entropy,
        )

    def _gated(self, scores: pd.DataFrame) -> list[float]:
        """The gated reward of each row of S1, S2, S3; NaN where they are not known."""
        alpha, beta = self.profile.reward_alpha, self.profile.reward_beta
        lam = max(GOLD_LAMBDA, 1.5 * (1 + beta))  # strict for a wide margin, too
        return [
            math.nan
            if math.isnan(row[0])
            else scoring.gated_reward(scoring.Scores(*row), alpha, beta, lam)
            for row in scores.to_numpy()
        ]


def curve_row(step: int, answers: pd.DataFrame) -> dict:
    """Means over held-out answers, as ``Measure`` gives them; NaN where nothing is known."""
    answers = answers.assign(judged_violation=answers.judged_s3 > 0)
    means = {name: float(answers[column].astype(float).mean()) for name, column in MEANS.items()}
    return {"step": step, "split": "checkpoint", **means}


class Curve(TrainerCallback):
    """Evaluates at step 0 and after each checkpoint; keeps the policy best by *judged* reward.

    A checkpoint counts once every process has written its part of it. Evaluating after that makes a
    resumed run whole: a row that a crash lost is made again from the checkpoint it belongs to.
    ``patience`` evaluations without a better one end the run.
    """

    def __init__(self, out: Path, reward, measure: Callable, patience: int = 0):
        self.out, self.reward, self.measure, self.patience = Path(out), reward, measure, patience
        self.rows, self.answers = [], pd.DataFrame()
        if (self.out / "curve.csv").exists():
            self.rows = pd.read_csv(self.out / "curve.csv").to_dict("records")
        if self.rows and (self.out / "checkpoints.parquet").exists():
            self.answers = pd.read_parquet(self.out / "checkpoints.parquet")

    @property
    def best(self) -> dict:
        return max(self.rows, key=lambda row: row["judged"])

    @property
    def over(self) -> bool:
        """Whether the last ``patience`` evaluations have brought nothing better."""
        since = len(self.rows) - 1 - self.rows.index(self.best) if self.rows else 0
        return bool(self.patience) and since >= self.patience

    def catch_up(self, state, model) -> None:
        """Forget what came after the step that a run goes on from; evaluate that, if need be."""
        self.rows = [row for row in self.rows if row["step"] <= state.global_step]
        if len(self.answers):
            self.answers = self.answers[self.answers.step <= state.global_step]
        evaluated = self.rows and self.rows[-1]["step"] >= state.global_step
        if _world().is_main_process and not evaluated:
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
        step = state.global_step
        _world().wait_for_everyone()
        if _world().is_main_process:
            write_text(Path(args.output_dir) / f"checkpoint-{step}" / WHOLE, f"{step}\n")
            self._evaluate(step, model)
        # the others wait, and learn whether it is over
        control.should_training_stop |= _from_main(self.over)

    def _evaluate(self, step: int, model) -> None:
        answers = self.measure(model).assign(step=step)
        row = curve_row(step, answers)
        if not self.rows or row["judged"] > self.best["judged"]:
            part, best = self.out / ".best-part", self.out / "best"
            hub.save(model, part, _portable(model))
            shutil.rmtree(best, ignore_errors=True)
            part.rename(best)
        self.rows.append(row)
        self.answers = pd.concat([self.answers, answers], ignore_index=True)
        with replacing(self.out / "checkpoints.parquet") as temporary:
            self.answers.to_parquet(temporary, index=False)
        _write_csv(self.rows, self.out / "curve.csv", CURVE)


def run_to_end(trainer, curve: Curve, job: Job) -> None:
    """``trainer.train()``, on from the last whole checkpoint; nothing where that was the end.

    Then only the report is missing, and perhaps the evaluation that belongs to the checkpoint,
    which may be what ends the run. The trainer itself would take one step more before it looks.
    """
    if (checkpoint := job.checkpoint) is None:
        trainer.train()
        return
    trainer.state = trainer.state.load_from_json(str(checkpoint / "trainer_state.json"))
    trainer._load_from_checkpoint(str(checkpoint))
    curve.catch_up(trainer.state, trainer.model)
    if trainer.state.global_step < job.profile.grpo_steps and not _from_main(curve.over):
        trainer.train(resume_from_checkpoint=str(checkpoint))


# ---------------------------------------------------------------- the end


def finish(trainer, tokenizer, curve: Curve, job: Job) -> dict:
    """The best checkpoint as model/, the logs, the check for reward hacking; last the report."""
    out = job.out
    if (out / "best").exists():
        shutil.rmtree(out / "model", ignore_errors=True)
        (out / "best").rename(out / "model")
    tokenizer.save_pretrained(out / "model")
    log = [entry for entry in trainer.state.log_history if "grad_norm" in entry]
    _write_csv(log, out / "training.csv")
    hacking = reward_hacking.check(curve.answers)
    write_json(out / "hacking.json", hacking)
    rows = {"first": curve.rows[0], "best": curve.best, "last": curve.rows[-1]}
    trained = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    report = {
        "fingerprint": job.fingerprint,
        "settings": job.settings,
        "steps": trainer.state.global_step,
        "stopped_early": trainer.state.global_step < job.profile.grpo_steps,
        "seconds": round(time.time() - job.started, 1),
        "tokens": int(log[-1].get("num_tokens", 0)) if log else 0,
        "trainable_parameters": sum(weight.numel() for weight in trained),
        "selected_by": "judged reward on the checkpoint split",
        **{name: {k: v for k, v in row.items() if v == v} for name, row in rows.items()},
        "hacking": {key: hacking[key] for key in ("flagged", "since", "text")},
        "throughput": throughput(log),
        "unscored": max((entry.get("veto/unscored", 0.0) for entry in log), default=0.0),
        "last_rm_error": curve.reward.error,
    }
    write_json(out / "report.json", report)
    job.clear()
    return report


def throughput(log: Sequence[dict]) -> dict:
    """Medians of steps: seconds, and tokens a second; shares of the time of all steps.

    Empty where the trainer did not log them.
    """
    timed = [e for e in log if "time/reward" in e and "time/generate" in e and "step_time" in e]
    if not timed:
        return {}
    frame = pd.DataFrame(timed)
    generate, reward, whole = (frame[c] for c in ("time/generate", "time/reward", "step_time"))
    generated, scored = frame["tokens/generated"] / generate, frame["tokens/scored"] / reward
    return {
        "step_seconds": round(float(whole.median()), 3),
        "generate_share": round(float(generate.sum() / whole.sum()), 4),
        "reward_share": round(float(reward.sum() / whole.sum()), 4),
        "generated_tokens_per_second": round(float(generated.median()), 1),
        "scored_tokens_per_second": round(float(scored.median()), 1),
    }


def _portable(model) -> str:
    """The base's hub id; no path of this machine, since ``model.load_policy`` is given the base."""
    name = model.name_or_path
    return "base" if name and Path(name).is_dir() else name


def _world() -> PartialState:
    """The processes that share a run; on CPUs they talk through gloo."""
    return PartialState(cpu=not torch.cuda.is_available())


def _from_main(value):
    """What the main process says, on all of them; a barrier, too."""
    values = [value]
    if _world().num_processes > 1:
        broadcast_object_list(values)
    return values[0]


def _write_csv(rows: list[dict], path: Path, columns=None) -> None:
    with replacing(path) as temporary:
        pd.DataFrame(rows, columns=columns).to_csv(temporary, index=False)
