"""Supervised fine-tuning of a base on answers that were written, before a reward aligns it.

TRL's SFTTrainer on tokens of the kit's own making: a prompt as policy and reward model read it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from datasets import Dataset
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from promedical_utils.core.profiles import Profile
from promedical_utils.core.workspace import KitError, read_json, short_hash, write_json
from promedical_utils.data.sources.contrast_sets import split
from promedical_utils.policy import model as policy
from promedical_utils.reward_model import grouped, hub, packing

# learning rate, and answers a step. An adapter's by development seed 3 of the clinic, where 2e-4
# and 8 left its language unlearned: loss 2.24 after 400 answers, 0.37 with these
ADAPTER, WHOLE = (1.5e-3, 4), (2e-3, 8)
Written = Sequence[tuple[Sequence[Mapping[str, str]], str]]  # conversation, answer


def rows(tokenizer, written: Written, most: int) -> list[dict]:
    """input_ids and completion_mask of (conversation, answer) pairs. Of an answer as many whole
    sentences as fit ``most`` tokens, the end token with them, so that the policy learns to end in
    time; a pair whose first sentence does not fit is left out."""
    made = []
    for messages, answer in written:
        prompt = packing.prompt_ids(tokenizer, messages)
        sentences, kept = split(answer), []
        for n in range(1, len(sentences) + 1):
            ids = tokenizer(" ".join(sentences[:n]), add_special_tokens=False).input_ids
            if len(ids) >= most:
                break
            kept = ids
        if kept:
            ids = prompt + kept + [tokenizer.eos_token_id]
            mask = [0] * len(prompt) + [1] * (len(kept) + 1)
            made.append({"input_ids": ids, "completion_mask": mask})
    return made


def train(base: Path, written: Written, profile: Profile, out: Path) -> dict:
    """One pass over the pairs by LoRA (rank 0: of all weights), merged into ``out``, a folder as a
    hub model's; its report, written last, and returned as stored where the same is already trained.
    KitError where no answer fits."""
    p, tokenizer = profile, hub.tokenizer_of(base)
    adapter = grouped.lora(p.grpo_lora_rank, head=None) if p.grpo_lora_rank else None
    rate, batch = ADAPTER if adapter else WHOLE
    names = ("grpo_lora_rank", "grpo_max_tokens", "precision", "seed")
    settings = {"rate": rate, "batch": batch} | {name: getattr(p, name) for name in names}
    key = short_hash(sorted(settings.items()), *written, hub.identity(hub.source_of(base, out)))
    if (path := out / "report.json").exists():
        if (report := read_json(path, "of a study"))["of"] == key:
            return report
        path.unlink()
    if not (taught := rows(tokenizer, written, p.grpo_max_tokens)):
        raise KitError(f"no first sentence of {len(written)} answers fits: raise grpo_max_tokens")
    trainer = SFTTrainer(
        model=hub.load(hub.CAUSAL, base, attention=None),
        args=SFTConfig(
            **hub.trainer_settings(policy.precision_of(p), p.seed),
            output_dir=str(out / "trainer"),
            num_train_epochs=1,
            per_device_train_batch_size=batch,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=5,
            max_length=None,
            completion_only_loss=True,
            gradient_checkpointing=False,
            logging_steps=max(1, len(taught) // batch // 20),
            save_strategy="no",
        ),
        train_dataset=Dataset.from_list(taught),
        processing_class=tokenizer,
        peft_config=adapter,
    )
    trainer.remove_callback(PrinterCallback)
    hub.in_full(trainer.model)
    trainer.train()
    model = trainer.model.merge_and_unload() if adapter else trainer.model
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    report = {"of": key, **settings, "pairs": len(taught), "left_out": len(written) - len(taught)}
    tokens = sum(len(row["input_ids"]) for row in taught)
    report |= {"steps": trainer.state.global_step, "tokens": tokens}
    report |= {"first_loss": losses[0], "last_loss": losses[-1]}
    write_json(path, report)
    return report
