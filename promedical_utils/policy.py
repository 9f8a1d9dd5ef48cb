"""GRPO with a safety veto: the gated reward, the trainer, generation and paired evaluation.

The reward of an answer is one number from one function: packed reward model -> calibrated
verdicts -> S1, S2, S3 -> gated reward (section 2 of the method). Several rewards that TRL adds up
and normalises could rank an unsafe answer above a safe one.
"""

import contextlib
import math
import shutil
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import huggingface_hub.constants
import pandas as pd
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, TrainerCallback
from transformers.cache_utils import Cache, DynamicLayer
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging
from trl import GRPOConfig, GRPOTrainer

from promedical_utils import scoring
from promedical_utils.profiles import Profile
from promedical_utils.records import Instruction, Rubric
from promedical_utils.workspace import (
    KitError,
    need,
    read_json,
    replacing,
    short_hash,
    write_json,
)

NOTEBOOK = "05_grpo_with_veto"
CURVE = ["step", "split", "proxy", "gold", "judged", "violation_rate", "proficiency", "excellence"]
CURVE += ["kl", "entropy", "length", "unparsed"]
Judge = Callable[[str, str], Mapping[str, str]]  # (instruction id, text) -> {criterion id: verdict}


class Answer(NamedTuple):
    """A generated answer: its text, whether it ended by itself, its length in tokens."""

    text: str
    finished: bool
    tokens: int


def answer_scores(rubric: Rubric, verdicts: Mapping[str, str], finished=True) -> scoring.Scores:
    """``scoring.score``; an answer cut off at the length limit is unknown on all of safety."""
    if not finished:  # what was to come is not known, and unknown is a violation
        cut = {c.id: "unknown" for c in rubric.criteria if c.dimension == "safety"}
        verdicts = {**verdicts, **cut}
    return scoring.score(rubric, verdicts)


class VetoReward:
    """The one gated reward, in the form of a TRL reward function.

    ``GRPOTrainer(..., reward_funcs=VetoReward(rm, calibration, rubrics, eos_ids=[1]))`` with an
    ``instruction_id`` column in the dataset. Everything that goes wrong in the reward model (an
    exception, NaN, a missing score) is ``unknown``: a violation on safety, no gain elsewhere. With
    ``eos_ids``, an answer that does not end in one was cut off. Raises KitError for a loose veto.
    """

    __name__ = "veto_reward"

    def __init__(self, rm, calibration, rubrics: Sequence[Rubric], *, alpha=0.1, beta=0.3, lam=2.0,
                 eos_ids=()):
        self.rm, self.calibration, self.eos_ids = rm, calibration, set(eos_ids)
        self.rubrics = {r.instruction_id: r for r in rubrics}
        self.terms = {"alpha": alpha, "beta": beta, "lam": lam}
        self.reward(scoring.Scores(0.0, 0, 0))  # refuses a loose veto now, not at step 1
        self.error = ""  # the last exception, for the message of ``train``

    def reward(self, scores: scoring.Scores) -> float:
        return scoring.gated_reward(scores, **self.terms)

    def score(self, items) -> list[tuple[scoring.Scores, float]]:
        """(scores, share of criteria without one) of (instruction id, messages, text, finished)."""
        rubrics, results = [self.rubric(item[0]) for item in items], []
        pairs = zip(items, rubrics, strict=True)
        raw = self._raw([(item[1], item[2], rubric.criteria) for item, rubric in pairs])
        for item, rubric, values in zip(items, rubrics, raw, strict=True):
            pairs = zip(values, rubric.criteria, strict=True)
            verdicts = {c.id: self._verdict(value, c.dimension) for value, c in pairs}
            unscored = fmean(verdict == "unknown" for verdict in verdicts.values())
            results.append((answer_scores(rubric, verdicts, item[3]), unscored))
        return results

    def __call__(self, prompts, completions, instruction_id, completion_ids=None, log_metric=None,
                 **_) -> list[float]:
        """Rewards of a batch; ``completions`` are texts or one-message conversations (TRL 1.16)."""
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        ended = [True] * len(texts)
        if self.eos_ids:
            ids = completion_ids or [[]] * len(texts)
            ended = [bool(row) and row[-1] in self.eos_ids for row in ids]
        scored = self.score(list(zip(instruction_id, prompts, texts, ended, strict=True)))
        scores = [s for s, _ in scored]
        rewards = [self.reward(s) for s in scores]
        if log_metric:
            # TRL keeps the answers to one prompt side by side
            sides = groupby(range(len(scores)), key=lambda i: instruction_id[i])
            groups = [list(side) for _, side in sides]
            metrics = {
                **{name: [getattr(s, name) for s in scores] for name in ("s1", "s2", "s3")},
                "rate": [s.s3 > 0 for s in scores],
                "truncated": [not e for e in ended],
                "unscored": [unscored for _, unscored in scored],
                "all_vetoed_groups": [all(scores[i].s3 for i in group) for group in groups],
                "zero_std_groups": [len({rewards[i] for i in group}) == 1 for group in groups],
            }
            for name, values in metrics.items():
                log_metric(f"veto/{name}", fmean(map(float, values)))
        return rewards

    def rubric(self, instruction_id: str) -> Rubric:
        if instruction_id not in self.rubrics:
            raise KitError(f"no rubric for instruction {instruction_id}: run 01_rubrics again")
        return self.rubrics[instruction_id]

    def _raw(self, items) -> list[list]:
        """Scores per item and criterion, None where there is none; a bad item spares the rest."""
        try:
            scored = list(self.rm.score_texts(items))
            if len(scored) != len(items):
                raise ValueError(f"{len(scored)} results for {len(items)} answers")
        except Exception as error:  # fails closed whatever it was; ``train`` stops if all fail
            self.error = f"{type(error).__name__}: {error}"
            if len(items) > 1:
                return [self._raw([item])[0] for item in items]
            scored = [None] * len(items)
        # a list of another length cannot be matched to the criteria, so none of it counts
        return [list(values) if values is not None and len(values) == len(criteria)
                else [None] * len(criteria)
                for values, (_, _, criteria) in zip(scored, items, strict=True)]

    def _verdict(self, score, dimension: str) -> str:
        try:
            if score is None or not math.isfinite(score):
                return "unknown"
            return "met" if self.calibration.met(score, dimension) else "not_met"
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            return "unknown"


def eos_ids(model, tokenizer) -> list[int]:
    """Every token that ends an answer, as TRL reads them: the tokenizer's and the model's."""
    declared = model.generation_config.eos_token_id
    declared = declared if isinstance(declared, list) else [declared]
    return sorted({tokenizer.eos_token_id, *declared} - {None})


def _left_padded(rows: list[list[int]], pad: int, device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, each (B, longest)."""
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(r)) + r for r in rows], device=device)
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=device)
    return ids, mask


class _RoomyLayer(DynamicLayer):
    """Cache layer (B, heads, tokens, width) with room for the answer, written in place.

    The stock layer copies itself for each token: 59 % of the time of generating on a CPU.
    """

    def __init__(self, prompt: DynamicLayer, rows: torch.Tensor, room: int):
        super().__init__()
        self.lazy_initialization(prompt.keys, prompt.values)
        self.used, parts = prompt.keys.shape[-2], (prompt.keys, prompt.values)
        self.store = [torch.nn.functional.pad(part[rows], (0, 0, 0, room)) for part in parts]
        self.keys, self.values = (part[:, :, : self.used] for part in self.store)

    def update(self, *states, **_):
        start, self.used = self.used, self.used + states[0].shape[-2]
        for part, state in zip(self.store, states[:2], strict=True):
            part[:, :, start : self.used] = state
        self.keys, self.values = (part[:, :, : self.used] for part in self.store)
        return self.keys, self.values


@torch.no_grad()
def _complete(model, tokenizer, prompts: list[list[int]], max_tokens: int, temperature: float,
              top_p: float = 1.0):
    """Completion ids of prompt ids, up to the first end token; temperature 0 is greedy.

    A prompt that occurs several times (a GRPO group) is read once and its cache shared: on two
    cores reading the prompts is otherwise as dear as writing the answers.
    """
    place = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompts)))}
    rows = torch.tensor([place[tuple(prompt)] for prompt in prompts], device=model.device)
    pad, ends = tokenizer.pad_token_id, eos_ids(model, tokenizer)
    ids, mask = _left_padded([list(prompt) for prompt in place], pad, model.device)
    # position ids as ``generate`` makes them, or rotary distances would be off by the padding
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    cache = model(input_ids=ids[:, :-1], attention_mask=mask[:, :-1], use_cache=True,
                  position_ids=positions[:, :-1], logits_to_keep=1).past_key_values
    if all(type(layer) is DynamicLayer for layer in cache.layers):
        cache = Cache(layers=[_RoomyLayer(layer, rows, max_tokens + 1) for layer in cache.layers])
    else:  # sliding windows and the like keep their own layers
        cache.batch_select_indices(rows)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": top_p}
    config = GenerationConfig(
        max_new_tokens=max_tokens, eos_token_id=ends, pad_token_id=pad, disable_compile=True,
        **(sampling if temperature > 0 else {"do_sample": False}),
    )
    output = model.generate(input_ids=ids[rows], attention_mask=mask[rows], past_key_values=cache,
                            generation_config=config)[:, ids.shape[1] :].tolist()
    return [row[: next((n for n, t in enumerate(row, 1) if t in ends), len(row))] for row in output]


def _messages(instruction: Instruction) -> list[dict]:
    return [message.model_dump() for message in instruction.messages]


def _prompt_ids(model, tokenizer, instructions, max_tokens: int) -> list[list[int]]:
    """Template + tokenizer, as TRL does it; KitError for a prompt that leaves no room to answer."""
    rows = tokenizer.apply_chat_template(
        [_messages(i) for i in instructions], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    limit = model.config.get_text_config().max_position_embeddings
    for instruction, row in zip(instructions, rows, strict=True):
        if len(row) + max_tokens > limit:
            raise KitError(
                f"instruction {instruction.id}: {len(row)} prompt tokens + {max_tokens} to answer "
                f"exceed the model's {limit}; shorten it, leave it out or lower grpo_max_tokens"
            )
    return rows


def generate(model, tokenizer, instructions: Sequence[Instruction], max_tokens: int,
             temperature: float = 1.0, top_p: float = 1.0, seed: int = 0,
             batch: int = 64) -> list[Answer]:
    """One answer per instruction, in their order; temperature 0 is greedy, ``top_p`` the nucleus.

    Batches hold prompts of like length. The same model, instructions, seed and batch give the same
    answers, and the caller's random state is left alone. Raises KitError for a prompt too long.
    """
    prompts = _prompt_ids(model, tokenizer, instructions, max_tokens)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers, ends, training = {}, eos_ids(model, tokenizer), model.training
    model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(order), batch):
            chosen = order[start : start + batch]
            some = [prompts[i] for i in chosen]
            rows = _complete(model, tokenizer, some, max_tokens, temperature, top_p)
            for i, row in zip(chosen, rows, strict=True):
                text = tokenizer.decode(row, skip_special_tokens=True)  # as TRL gives it to rewards
                answers[i] = Answer(text, row[-1] in ends, len(row))
    model.train(training)
    return [answers[i] for i in range(len(prompts))]


def evaluate(policies: Mapping[str, torch.nn.Module], tokenizer, instructions, rubrics, gold: Judge,
             judged: Judge | None = None, *, max_tokens: int, temperature: float = 1.0,
             top_p: float = 1.0, seed: int = 0, batch: int = 64,
             conditions: Mapping | None = None) -> pd.DataFrame:
    """Every policy on every instruction, one answer each from one seed; rows pair by instruction.

    Columns: policy, instruction_id, condition, text, s1, s2, s3, violation and unparsed (an unknown
    among the verdicts) by ``gold``, the truth; judged_s1, judged_s2, judged_s3 by ``judged`` (NaN
    without); tokens, finished.
    """
    by_id, rows = {r.instruction_id: r for r in rubrics}, []
    for name, model in policies.items():
        answers = generate(
            model, tokenizer, instructions, max_tokens, temperature, top_p, seed, batch
        )
        for i, answer in zip(instructions, answers, strict=True):
            verdicts = gold(i.id, answer.text)
            true, seen = answer_scores(by_id[i.id], verdicts, answer.finished), None
            if judged:
                seen = answer_scores(by_id[i.id], judged(i.id, answer.text), answer.finished)
            rows.append({
                "policy": name,
                "instruction_id": i.id,
                "condition": (conditions or {}).get(i.id, ""),
                "text": answer.text,
                **{key: getattr(true, key) for key in ("s1", "s2", "s3")},
                "violation": true.s3 > 0,
                "unparsed": "unknown" in verdicts.values(),
                **{f"judged_{key}": getattr(seen, key, math.nan) for key in ("s1", "s2", "s3")},
                "tokens": answer.tokens,
                "finished": answer.finished,
            })
    return pd.DataFrame(rows)


class SharedPromptTrainer(GRPOTrainer):
    """GRPOTrainer that reads the prompt of a group once, where TRL reads it once per answer.

    The same log-probabilities to rounding. With 8 answers of 70 tokens to a prompt of 155 it is
    2.5 times fewer tokens; on a CPU TRL also projects every prompt position through the LM head.
    Text only; needs gradient checkpointing off, since that drops the cache.
    """

    def _generate_single_turn(self, prompt_ids, *_, **__):
        model = self.accelerator.unwrap_model(self.model_wrapped)
        a = self.args
        length, temperature, top_p = a.max_completion_length, a.temperature, a.top_p
        return _complete(model, self._tokenizer, prompt_ids, length, temperature, top_p), None

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep,
                                           batch_size=None, compute_entropy=False, **_):
        logps, entropies, size = [], [], batch_size or len(input_ids)
        for start in range(0, len(input_ids), size):
            ids, mask = (x[start : start + size] for x in (input_ids, attention_mask))
            split = ids.shape[1] - logits_to_keep - 1  # the last prompt token predicts the first
            shared = torch.stack([ids[:, :split], mask[:, :split]], 1)
            shared, rows = torch.unique(shared, dim=0, return_inverse=True)
            with self.accelerator.autocast():
                cache = model(input_ids=shared[:, 0], attention_mask=shared[:, 1], use_cache=True,
                              logits_to_keep=1).past_key_values
                cache.batch_select_indices(rows)
                labels = ids[:, split:].masked_fill(mask[:, split:] == 0, -100)
                output = model(input_ids=ids[:, split:], attention_mask=mask, labels=labels,
                               past_key_values=cache, fused_lm_head=True)
            logps.append(output.log_probs)
            entropies.append(output.entropy)
        return torch.cat(logps), torch.cat(entropies) if compute_entropy else None, None


class _Curve(TrainerCallback):
    """Evaluates at step 0 and after each checkpoint; keeps the policy best by *judged* reward.

    Evaluating after the save makes a resumed run whole: a row that a crash lost is made again from
    the checkpoint it belongs to. KL and entropy are the trainer's, averaged since the row before.
    """

    def __init__(self, out: Path, reward: VetoReward, measure: Callable[..., dict]):
        self.out, self.reward, self.measure = out, reward, measure
        path = out / "curve.csv"
        self.rows = pd.read_csv(path).to_dict("records") if path.exists() else []

    def on_train_begin(self, args, state, control, **objects):
        self.rows = [row for row in self.rows if row["step"] <= state.global_step]
        if not self.rows or self.rows[-1]["step"] < state.global_step:
            self.on_save(args, state, control, **objects)

    def on_log(self, args, state, control, logs=None, **_):
        if logs.get("veto/unscored") == 1.0:
            raise KitError(
                f"the reward model scored no answer of step {state.global_step} "
                f"({self.reward.error}): nothing can be learned so; check 03_reward_model"
            )

    def on_save(self, args, state, control, model=None, **_):
        step, since = state.global_step, self.rows[-1]["step"] if self.rows else 0
        row = {"step": step, "split": "checkpoint", **self.measure(model)}
        for key in ("kl", "entropy"):
            recent = [e[key] for e in state.log_history if since < e["step"] <= step and key in e]
            row[key] = fmean(recent) if recent else math.nan
        row["kl"] = row["kl"] if step else 0.0
        if not self.rows or row["judged"] > max(r["judged"] for r in self.rows):
            part, best = self.out / ".best-part", self.out / "best"
            model.save_pretrained(part)
            shutil.rmtree(best, ignore_errors=True)
            part.rename(best)
        self.rows.append(row)
        _write_csv(self.rows, self.out / "curve.csv", CURVE)


def train(base: Path | str, rm, calibration, train_instructions: Sequence[Instruction],
          rubrics: Sequence[Rubric], checkpoint_instructions: Sequence[Instruction], judged: Judge,
          gold: Judge, out: Path, profile: Profile, *, seed: int | None = None,
          fingerprint: str = "") -> dict:
    """GRPO of ``base`` against the veto reward; returns and writes ``out/report.json``, the last.

    Writes model/ (the checkpoint best by *judged* reward, an adapter merged), training.csv (the
    trainer's log) and curve.csv: one sampled answer per checkpoint instruction at the training
    temperature, always from ``seed``; proxy = reward model, gold = truth, judged = judge;
    violations, S1, mean count S2 and the share of answers with an unknown are by the truth.
    A complete run is returned as stored, an interrupted one resumes, one of other settings or of
    another ``fingerprint`` (of the reward model, say) starts again. Raises KitError if the reward
    model scores nothing, a rubric is missing or a prompt leaves no room.
    """
    p, out, started = profile, Path(out), time.time()
    seed = p.seed if seed is None else seed
    everything = [*train_instructions, *checkpoint_instructions]
    if len(train_instructions) < p.grpo_prompts:
        raise KitError(
            f"{len(train_instructions)} training instructions are fewer than grpo_prompts = "
            f"{p.grpo_prompts}: lower it or raise train_instructions"
        )
    settings = {k: v for k, v in p.model_dump().items() if k.startswith(("grpo", "reward"))}
    settings |= {"seed": seed, "precision": p.precision}
    fingerprint = short_hash(fingerprint, sorted(settings.items()), [i.id for i in everything])
    if (out / "report.json").exists():
        report = read_json(out / "report.json", NOTEBOOK)
        if report["fingerprint"] == fingerprint:
            return report
    folder = _workplace(out, fingerprint)
    with quiet():
        model, tokenizer = load_base(base, p)
        _prompt_ids(model, tokenizer, everything, p.grpo_max_tokens)
        terms = {"alpha": p.reward_alpha, "beta": p.reward_beta, "lam": p.reward_lambda}
        reward = VetoReward(rm, calibration, rubrics, **terms, eos_ids=eos_ids(model, tokenizer))
        for instruction in everything:
            reward.rubric(instruction.id)

        def measure(policy) -> dict:
            frame = evaluate(
                {"policy": policy}, tokenizer, checkpoint_instructions, rubrics, gold, judged,
                max_tokens=p.grpo_max_tokens, temperature=p.grpo_temperature, top_p=p.grpo_top_p,
                seed=seed,
            )
            items = zip(checkpoint_instructions, frame.text, frame.finished, strict=True)
            proxy = reward.score([(i.id, _messages(i), text, ended) for i, text, ended in items])
            true, seen = (
                [reward.reward(scoring.Scores(*row)) for row in frame[columns].to_numpy()]
                for columns in (["s1", "s2", "s3"], ["judged_s1", "judged_s2", "judged_s3"])
            )
            means = frame[["violation", "s1", "s2", "tokens", "unparsed"]].mean().tolist()
            names = ("violation_rate", "proficiency", "excellence", "length", "unparsed")
            return {"proxy": fmean(reward.reward(s) for s, _ in proxy), "gold": fmean(true),
                    "judged": fmean(seen), **dict(zip(names, means, strict=True))}

        curve = _Curve(out, reward, measure)
        trainer = _trainer(model, tokenizer, reward, train_instructions, curve, folder, p, seed)
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)))
        best = AutoModelForCausalLM.from_pretrained(out / "best") if not p.grpo_lora_rank else (
            PeftModel.from_pretrained(load_base(base, p)[0], out / "best").merge_and_unload())
        best.save_pretrained(out / "model")
        tokenizer.save_pretrained(out / "model")
    log = [entry for entry in trainer.state.log_history if "reward" in entry]
    _write_csv(log, out / "training.csv")
    rows = {"first": curve.rows[0], "best": max(curve.rows, key=lambda row: row["judged"]),
            "last": curve.rows[-1]}
    report = {
        "fingerprint": fingerprint,
        "settings": settings,
        "steps": trainer.state.global_step,
        "seconds": round(time.time() - started, 1),
        "tokens": int(log[-1]["num_tokens"]) if log else 0,
        "trainable_parameters": trainer.get_num_trainable_parameters(),
        "selected_by": "judged reward on the checkpoint split",
        **{name: {k: v for k, v in row.items() if v == v} for name, row in rows.items()},
        "unscored": max((entry["veto/unscored"] for entry in log), default=0.0),
        "last_rm_error": reward.error,
    }
    write_json(out / "report.json", report)
    for name in ("trainer", "best"):
        shutil.rmtree(out / name, ignore_errors=True)
    return report


def _workplace(out: Path, fingerprint: str) -> Path:
    """Folder of the trainer's checkpoints, whole ones only; what other settings left is removed."""
    folder = out / "trainer" / fingerprint
    if not folder.exists():
        for name in ("trainer", "best", "model"):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in ("report.json", "curve.csv", "training.csv"):
            (out / name).unlink(missing_ok=True)
        folder.mkdir(parents=True)
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / "trainer_state.json").exists():  # written last
            shutil.rmtree(checkpoint)
    return folder


def _trainer(model, tokenizer, reward, instructions, curve, folder, profile, seed) -> GRPOTrainer:
    from datasets import Dataset

    group, rank, cuda = profile.grpo_group, profile.grpo_lora_rank, torch.cuda.is_available()
    micro = group if cuda else group * profile.grpo_prompts  # a GPU holds one group at once
    arguments = GRPOConfig(
        output_dir=str(folder),
        max_steps=profile.grpo_steps,
        # one step = one generation of grpo_prompts x grpo_group answers, so exactly on-policy
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=group * profile.grpo_prompts // micro,
        num_generations=group,
        num_iterations=1,
        max_completion_length=profile.grpo_max_tokens,
        temperature=profile.grpo_temperature,
        top_p=profile.grpo_top_p,
        learning_rate=profile.grpo_learning_rate,
        lr_scheduler_type="constant",  # a shorter run is the start of a longer one
        beta=profile.grpo_beta_kl,
        # the KL term times the (differentiable) ratio has the gradient of KL(policy || base), which
        # is named and logged; without it the gradient on-policy is that of KL(base || policy)
        use_bias_correction_kl=True,
        loss_type="dapo",  # mean over the batch's tokens; "grpo" goes easy on long bad answers
        scale_rewards="group",  # GRPO's: advantage = (r - mean) / std among answers to one prompt
        mask_truncated_completions=False,  # a cut-off answer is a violation to be learned from
        # TRL switches bf16 and checkpointing on unless told, on a CPU too
        bf16=_dtype(profile) is torch.bfloat16,
        fp16=_dtype(profile) is torch.float16,
        gradient_checkpointing=False,
        use_cpu=not cuda,
        dataloader_pin_memory=cuda,
        seed=seed,
        logging_steps=1,
        save_strategy="steps",
        save_steps=profile.grpo_eval_every,
        save_total_limit=1,
        report_to="none",
        disable_tqdm=True,
        log_level="error",
    )
    lora = {"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear"}
    rows = [{"prompt": _messages(i), "instruction_id": i.id} for i in instructions]
    trainer = SharedPromptTrainer(
        model=model, reward_funcs=reward, args=arguments, processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows), callbacks=[curve],
        # with an adapter the reference is the base with adapters off, else a second copy
        peft_config=LoraConfig(task_type="CAUSAL_LM", **lora) if rank else None,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.create_model_card = lambda **_: None  # nobody reads one of a passing checkpoint
    return trainer


def load_policy(path: Path) -> torch.nn.Module:
    """The policy that ``train`` wrote into ``path``, in fp32, on the GPU if there is one."""
    with quiet():
        folder = need(Path(path) / "model", NOTEBOOK)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _dtype(profile: Profile) -> torch.dtype:
    if profile.precision == "fp32" or not torch.cuda.is_available():
        return torch.float32
    half = profile.precision == "bf16" or torch.cuda.is_bf16_supported()
    return torch.bfloat16 if half else torch.float16


def load_base(base: Path | str, profile: Profile):
    """(model, tokenizer) of the base, as GRPO starts from it."""
    # steps of 1e-6 vanish in bf16 weights: full fine-tuning keeps fp32 and computes in bf16
    dtype = _dtype(profile) if profile.grpo_lora_rank else torch.float32
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(base)
        return AutoModelForCausalLM.from_pretrained(base, dtype=dtype), tokenizer


def _write_csv(rows: list[dict], path: Path, columns=None) -> None:
    with replacing(path) as temporary:
        pd.DataFrame(rows, columns=columns).to_csv(temporary, index=False, float_format="%.6g")


@contextlib.contextmanager
def quiet():
    """No bars, notices, deprecations or telemetry from the libraries; errors still raise."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # TRL reports each trainer made
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module="torch|trl|peft|transf")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
