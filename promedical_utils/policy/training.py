"""Training of policies on TRL: GRPO, RLOO or DPO against one reward, with the truth beside it.

The policy that is kept is the best by the *judge*: the proxy is pushed up by construction, and real
data have no gold. Notebook 05 takes the steps of ``train`` one by one.
"""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
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
from promedical_utils.core.workspace import KitError, read_json, short_hash, write_frame, write_json
from promedical_utils.policy import model as policy
from promedical_utils.policy import reward_hacking, shared_base, trl_fast_path, veto_reward
from promedical_utils.policy.generation import (
    complete,
    eos_ids,
    generate,
    messages_of,
    prompts_of,
    seed_of,
)
from promedical_utils.policy.model import NOTEBOOK, HeldOut
from promedical_utils.reward_model import grouped, hub
from promedical_utils.reward_model import model as reward_model
from promedical_utils.rubric import scoring

# column of curve.csv, after step and split -> that of the answers whose mean it is
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
WRITTEN = ("report.json", "curve.csv", "training.csv", "checkpoints.parquet", "hacking.json")


@dataclass
class Job:
    """One training; ``reward``: what the outcome owes to the reward model, as a fingerprint.
    KitError for too few instructions, or one without a rubric."""

    out: Path
    profile: Profile
    rubrics: Sequence[Rubric]
    instructions: Sequence[Instruction]
    held_out: HeldOut
    reward: str = ""

    def __post_init__(self):
        p, everything = self.profile, [*self.instructions, *self.held_out.instructions]
        if len(self.instructions) < p.grpo_prompts:
            raise KitError(
                f"{len(self.instructions)} training instructions are fewer than grpo_prompts = "
                f"{p.grpo_prompts}: lower it or raise train_instructions"
            )
        if lost := {i.id for i in everything} - {rubric.instruction_id for rubric in self.rubrics}:
            raise KitError(f"no rubric for instruction {min(lost)}: run 01_rubrics again")
        names = ("grpo", "reward", "policy_optimizer", "dpo", "seed", "precision", "quantization")
        self.settings = {k: v for k, v in p.model_dump().items() if k.startswith(names)}
        if p.grpo_fast_path:  # both ways are one method, with other draws
            del self.settings["grpo_fast_path"]
        texts = [record.model_dump_json() for record in (*everything, *self.rubrics)]
        code = content.of_code({__name__}, data=False)
        self.fingerprint = short_hash(self.reward, sorted(self.settings.items()), texts, code)
        self.folder = self.out / "trainer" / self.fingerprint  # of the trainer's checkpoints
        self.started = time.time()

    def stored(self) -> dict | None:
        """The report of a complete run of this very fingerprint."""
        path = self.out / "report.json"
        report = read_json(path, NOTEBOOK) if path.exists() else {}
        return report if report.get("fingerprint") == self.fingerprint else None

    def begin(self) -> None:
        """Make room: what other settings left is removed."""
        if _world().is_main_process and not self.folder.exists():
            self.clear()
            shutil.rmtree(self.out / "model", ignore_errors=True)
            for name in WRITTEN:
                (self.out / name).unlink(missing_ok=True)
            self.folder.mkdir(parents=True)
        _world().wait_for_everyone()

    def clear(self) -> None:
        for folder in (self.out / "trainer", *self.out.glob("best*")):
            shutil.rmtree(folder, ignore_errors=True)


def train(job: Job, base: Path | str, rm) -> dict:
    """Align ``base`` with ``reward_rule`` by ``policy_optimizer``; its report, written last.

    ``rm``: a reward model, or the folder of one. Writes model/ (the best checkpoint), training.csv
    (the trainer's log), curve.csv (a row an evaluation), checkpoints.parquet (a row an answer) and
    hacking.json (``reward_hacking.check``). A complete run is returned as stored, an interrupted
    one resumes, one of other settings or of another reward model starts again. KitError if the
    reward model scores nothing or a prompt leaves no room.
    """
    if (stored := job.stored()) is not None:
        return stored
    job.begin()
    p, made = job.profile, None
    model, tokenizer = policy.load_base(base, p)
    ends = eos_ids(model, tokenizer)
    # made only when it is asked: it may share the base of a policy that the trainer makes
    reward = veto_reward.build(p, lambda: reward_model_of(rm, made), None, job.rubrics, ends)
    rows = dataset(model, tokenizer, reward, job)
    made = trainer(model, tokenizer, rows, settings(p, job.folder), p, reward)
    curve = Curve(job, reward, tokenizer, reference(made, base, p))
    made.add_callback(curve)
    run_to_end(made, curve)
    if _world().is_main_process:
        finish(made, curve)
    _world().wait_for_everyone()
    return read_json(job.out / "report.json", NOTEBOOK)


# ---------------------------------------------------------------- what TRL is given


def prompts(instructions: Sequence[Instruction]) -> Dataset:
    """A row an instruction: prompt, its messages, and instruction_id, which the reward asks for."""
    rows = [{"prompt": messages_of(i), "instruction_id": i.id} for i in instructions]
    return Dataset.from_list(rows)


def dataset(model, tokenizer, reward, job: Job) -> Dataset:
    """What the optimiser learns from: ``prompts``, or for DPO ``preference_rows``. KitError for a
    prompt that leaves no room to answer, and where DPO has nothing to learn from."""
    p, rows = job.profile, []
    prompts_of(model, tokenizer, job.instructions, p.grpo_max_tokens)
    if p.policy_optimizer != "dpo":
        return prompts(job.instructions)
    if _world().is_main_process:
        rows = preference_rows(model, tokenizer, reward, job.instructions, p)
    [rows] = broadcast_object_list([rows])
    if not rows:
        raise KitError("no two answers of the base differ in reward: DPO has nothing to learn from")
    return Dataset.from_list(rows)


@torch.no_grad()
def preference_rows(model, tokenizer, reward, instructions, p: Profile) -> list[dict]:
    """Rows of prompt_ids, chosen_ids, rejected_ids, of as many answers of the base as GRPO draws:
    the best of a group goes with the worst, the second with the last but one, and so on, where
    their rewards differ."""
    draw = torch.Generator().manual_seed(p.seed)
    wanted = p.grpo_steps * p.grpo_prompts
    order: list[int] = []
    while len(order) < wanted:
        order += torch.randperm(len(instructions), generator=draw).tolist()
    rows, ends, size = [], set(eos_ids(model, tokenizer)), p.grpo_group
    for start in range(0, wanted, p.grpo_prompts):
        some = [instructions[n] for n in dict.fromkeys(order[start : start + p.grpo_prompts])]
        prompt_ids = prompts_of(model, tokenizer, some, p.grpo_max_tokens)
        repeated = [prompt for prompt in prompt_ids for _ in range(size)]
        seeds = [seed_of(p.seed, start, i.id) for i in some]
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
                pair = {"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected}
                if high > low:
                    rows.append(pair)
    return rows


def settings(profile: Profile, folder: Path):
    """GRPOConfig, RLOOConfig or DPOConfig of ``policy_optimizer``; checkpoints go to ``folder``.
    One step is one generation of grpo_prompts x grpo_group answers, so exactly on-policy. KitError
    where processes cannot share the groups."""
    p = profile
    processes, dpo = _world().num_processes, p.policy_optimizer == "dpo"
    if p.grpo_prompts % processes and not dpo:
        raise KitError(
            f"grpo_prompts = {p.grpo_prompts} cannot be shared by {processes} processes: a process "
            "holds whole groups; make it a multiple"
        )
    own = p.grpo_prompts * (p.grpo_group // 2 if dpo else p.grpo_group) // processes
    # a GPU holds one group at once
    micro = min(own, p.grpo_group) if torch.cuda.is_available() else own
    shared = hub.trainer_settings(policy.precision_of(p), p.seed) | dict(
        output_dir=str(folder),
        max_steps=p.grpo_steps,
        learning_rate=p.dpo_learning_rate if dpo else p.grpo_learning_rate,
        lr_scheduler_type="constant",  # a shorter run is the start of a longer one
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=own // micro,
        gradient_checkpointing=p.grpo_checkpointing,
        accelerator_config={"use_configured_state": True},  # that of ``_world``
        ddp_find_unused_parameters=False,
        logging_steps=1,
        save_steps=p.grpo_eval_every,
        save_total_limit=2,  # the new one is not whole until the old one may go
        log_level="error",
    )
    if dpo:
        return DPOConfig(
            **shared, beta=p.dpo_beta, max_length=None, train_sampling_strategy="sequential"
        )
    shared |= dict(
        num_generations=p.grpo_group,
        max_completion_length=p.grpo_max_tokens,
        temperature=p.grpo_temperature,
        top_p=p.grpo_top_p,
        beta=p.grpo_beta_kl,
        chat_template_kwargs={"enable_thinking": False},  # the prompt that the reward model reads
        # a server on GPUs of its own: ``trl vllm-serve --model`` (docs/several_gpus.md)
        use_vllm=bool(p.grpo_vllm),
        vllm_mode="server",
        vllm_server_base_url=p.grpo_vllm or None,
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
        # checkpointing drops the cache by which prompts are read once
        fast = profile.grpo_fast_path and not profile.grpo_checkpointing
        kind = trl_fast_path.trainer_class(profile.policy_optimizer, fast)
        made = kind(reward_funcs=reward, train_dataset=rows, **common)
    hub.in_full(made.model)
    made.model.train()  # TRL keeps the numbers of training and of evaluation apart
    made.remove_callback(PrinterCallback)
    made.create_model_card = lambda **_: None
    return made


def reward_model_of(rm, trainer=None):
    """The reward model ``rm``; of a folder, loaded: on the base of the trainer's policy where both
    are adapters of it in one precision. DPO asks before there is a trainer, and so has it apart."""
    if not isinstance(rm, str | Path):
        return rm
    report = read_json(Path(rm) / "report.json", "03_reward_model")
    if trainer and isinstance(trainer.model, PeftModel) and not report["full"]:
        base = trainer.model.get_base_model()
        same = hub.identity(hub.source_of(base.name_or_path, rm)) == hub.identity(report["base"])
        if same and reward_model.scored_in(report) == base.dtype:
            return shared_base.attach(trainer.model, rm)
    rm = reward_model.load(rm)
    return rm.merged() if rm.model.device.type == "cpu" else rm


# ---------------------------------------------------------------- evaluations on the way


def reference(trainer, base: Path | str, profile: Profile) -> Callable:
    """A function whose context yields the model that KL is measured against."""
    if isinstance(trainer.model, PeftModel):
        return lambda: shared_base.reference(trainer.model)
    other = getattr(trainer, "ref_model", None)
    if other is None:
        other = policy.load_base(base, profile)[0].to(trainer.model.device).eval()
    return lambda: nullcontext(other)


class Curve(TrainerCallback):
    """Evaluates at step 0 and after each checkpoint; keeps the policy best by *judged* reward. A
    checkpoint counts once every process has written its part and it is evaluated, so a resumed run
    has the curve of a whole one. Under ``accelerate launch`` the main process alone evaluates."""

    def __init__(self, job: Job, reward, tokenizer, reference: Callable):
        self.job, self.reward, self.tokenizer, self.reference = job, reward, tokenizer, reference
        self.evaluated: dict[int, pd.DataFrame] = {}  # what ``measure`` found, by step
        self.stored = job.out / "checkpoints.parquet"
        if self.stored.exists():
            self.evaluated = dict(list(pd.read_parquet(self.stored).groupby("step")))

    def measure(self, model) -> pd.DataFrame:
        """The policy's answers to the held-out prompts, a row each. Columns: those of
        ``policy.model.judge``, proxy (the reward as it is trained on), gold and judged (the gated
        reward by truth and judge), vetoed, kl, entropy."""
        p, held, rubrics = self.job.profile, self.job.held_out, self.reward.rubrics
        answers = generate(model, self.tokenizer, held.instructions, p, p.seed)
        frame, _ = policy.judge("policy", held, answers, rubrics)
        pairs = list(zip(held.instructions, answers, strict=True))
        read = self.reward.read([(i.id, messages_of(i), a.text, a.finished) for i, a in pairs])
        kl, entropy = policy.divergence(model, self.reference, answers, p.grpo_temperature)
        # on one scale, whatever reward a run is trained on, and strict for a wide margin, too
        lam = max(2.0, 1.5 * (1 + p.reward_beta))
        gated = partial(scoring.gated_reward, alpha=p.reward_alpha, beta=p.reward_beta, lam=lam)
        gold, judged = (
            [gated(scoring.Scores(*row)) for row in frame[columns].to_numpy()]
            for columns in (["s1", "s2", "s3"], ["judged_s1", "judged_s2", "judged_s3"])
        )
        return frame.assign(
            proxy=[self.reward.value(j, rubrics[i.id]) for (i, _), j in zip(pairs, read)],
            gold=gold,
            judged=judged,
            vetoed=[float(j.scores.s3 > 0) if j.verdicts else math.nan for j in read],
            kl=kl,
            entropy=entropy,
        )

    @property
    def answers(self) -> pd.DataFrame:
        return pd.concat(self.evaluated.values(), ignore_index=True)

    @property
    def rows(self) -> list[dict]:
        """Those of curve.csv; NaN where nothing is known."""
        rows = []
        for step, answers in self.evaluated.items():
            answers = answers.assign(judged_violation=answers.judged_s3 > 0)
            means = {name: float(answers[c].astype(float).mean()) for name, c in MEANS.items()}
            rows.append({"step": step, "split": "checkpoint", **means})
        return rows

    @property
    def best(self) -> dict:
        return max(self.rows, key=lambda row: row["judged"])

    @property
    def over(self) -> bool:
        """Whether the last ``grpo_patience`` evaluations have brought nothing better."""
        judged, last = [row["judged"] for row in self.rows], self.job.profile.grpo_patience
        return 0 < last < len(judged) and max(judged[:-last]) >= max(judged[-last:])

    def on_train_begin(self, args, state, control, model=None, **_):
        # what came after the step that a run goes on from comes again
        self.evaluated = {s: a for s, a in self.evaluated.items() if s <= state.global_step}
        if _world().is_main_process and not self.evaluated:
            self._evaluate(0, model)
        _world().wait_for_everyone()

    def on_log(self, args, state, control, logs=None, **_):
        if logs.get("veto/unscored") == 1.0:
            raise KitError(
                f"the reward model scored no answer of step {state.global_step} "
                f"({self.reward.error}): nothing can be learned so; check 03_reward_model"
            )

    def on_save(self, args, state, control, model=None, **_):
        _world().wait_for_everyone()
        if _world().is_main_process:
            self._evaluate(state.global_step, model)
        [over] = broadcast_object_list([self.over])  # the others wait, and learn it
        control.should_training_stop |= over

    def _evaluate(self, step: int, model) -> None:
        self.evaluated[step] = self.measure(model).assign(step=step)
        best = self.best["step"]
        kept = self.job.out / f"best-{best}"
        if best == step:
            part = self.job.out / "best-part"
            # no path of this machine: ``model.load_policy`` is given the base
            local = Path(model.name_or_path).is_dir()
            hub.save(model, part, "base" if local else model.name_or_path)
            shutil.rmtree(kept, ignore_errors=True)
            part.rename(kept)
        write_frame(self.job.out / "curve.csv", pd.DataFrame(self.rows))
        write_frame(self.stored, self.answers)
        for other in self.job.out.glob("best-*"):  # a run killed before this goes on with it
            if other != kept:
                shutil.rmtree(other)


def run_to_end(trainer, curve: Curve) -> None:
    """``trainer.train()``, on from the last checkpoint that counts; nothing where that was the end:
    the trainer itself would take one step more before it looks."""
    folders = {step: curve.job.folder / f"checkpoint-{step}" for step in curve.evaluated}
    last = max((step for step, folder in folders.items() if folder.exists()), default=None)
    if last is None:
        trainer.train()
        return
    trainer.state = trainer.state.load_from_json(str(folders[last] / "trainer_state.json"))
    if last < curve.job.profile.grpo_steps and not curve.over:
        trainer.train(resume_from_checkpoint=str(folders[last]))


# ---------------------------------------------------------------- the end


def finish(trainer, curve: Curve) -> dict:
    """The best checkpoint as model/, the logs, the check for reward hacking; last the report."""
    job, out, rows = curve.job, curve.job.out, curve.rows
    if (kept := out / f"best-{curve.best['step']}").exists():
        shutil.rmtree(out / "model", ignore_errors=True)
        kept.rename(out / "model")
    curve.tokenizer.save_pretrained(out / "model")
    log = pd.DataFrame([e for e in trainer.state.log_history if "grad_norm" in e])
    write_frame(out / "training.csv", log)
    hacking = reward_hacking.check(curve.answers)
    write_json(out / "hacking.json", hacking)
    shown = {"first": rows[0], "best": curve.best, "last": rows[-1]}
    report = {
        "fingerprint": job.fingerprint,
        "settings": job.settings,
        "steps": trainer.state.global_step,
        "stopped_early": trainer.state.global_step < job.profile.grpo_steps,
        "seconds": round(time.time() - job.started, 1),
        "selected_by": "judged reward on the checkpoint split",
        **{name: {k: v for k, v in row.items() if v == v} for name, row in shown.items()},
        "hacking": {key: hacking[key] for key in ("flagged", "since", "text")},
        "throughput": throughput(log),
        "unscored": float(log["veto/unscored"].max()) if "veto/unscored" in log else 0.0,
        "last_rm_error": curve.reward.error,
    }
    write_json(out / "report.json", report)
    job.clear()
    return report


def throughput(log: pd.DataFrame) -> dict:
    """Medians of steps: seconds, and tokens a second; shares of the time of all steps; empty where
    the trainer did not log them, as DPO's and TRL's own do not."""
    if "time/generate" not in log:
        return {}
    generate, reward, whole = (log[c] for c in ("time/generate", "time/reward", "step_time"))
    generated, scored = log["tokens/generated"] / generate, log["tokens/scored"] / reward
    return {
        "step_seconds": round(float(whole.median()), 3),
        "generate_share": round(float(generate.sum() / whole.sum()), 4),
        "reward_share": round(float(reward.sum() / whole.sum()), 4),
        "generated_tokens_per_second": round(float(generated.median()), 1),
        "scored_tokens_per_second": round(float(scored.median()), 1),
    }


def _world() -> PartialState:
    """The processes that share a run; on CPUs they talk through gloo."""
    return PartialState(cpu=not torch.cuda.is_available())
