"""Small versions of two compared systems, trained on the kit's own base and read as the hub's are.

pair_rm   PairRM's way: a causal LM is shown two answers, says A or B; the loss is on that one
          token. It learns every two answers in both orders, by the very lexicographic preferences
          that scalar_overall learns.
verifier  the medical verifier's way: two labels for a response against a reference, here a
          criterion's text; it learns from the judge's verdicts.

Data, steps, optimiser and adapter are those of the reward models of ``variants``. A trained folder
is read by ``scorers.published``, as the hub's are. The small tokenizer spells the fixed words of a
prompt letter by letter, twice as many tokens as answer and criterion; so each fixed part is one new
token (kit's decision), which starts as the mean of those it stands for and stays so.
"""

import os
import shutil
import warnings
from collections.abc import Sequence
from functools import partial
from itertools import product
from pathlib import Path

import torch
from peft import PeftModel
from tokenizers import AddedToken
from torch.nn.functional import cross_entropy
from transformers import set_seed

from promedical_utils.core import fingerprint
from promedical_utils.core.workspace import KitError, read_json, short_hash, write_json
from promedical_utils.evaluation.scorers import published
from promedical_utils.reward_model import grouped, hub, packing, training
from promedical_utils.reward_model import model as reward_model
from promedical_utils.reward_model.grouped import GroupTrainer, Passes
from promedical_utils.rubric.preferences import Group, met, preferences

FIXED = {  # parts of a prompt that never vary
    "pair_rm": ("[CONTEXT]", "[RESPONSE", "<turn>"),
    "verifier": (
        "<Model Response>",
        "</Model Response>",
        "<Reference Answer>",
        "</Reference Answer>",
        published.ASKED.strip(),
    ),
}
NAMES = tuple(FIXED)
OUTPUTS = {"pair_rm": None, "verifier": 2}  # of a score head; a pair RM answers with a token

# of a checkpoint: it holds the new tokens' embeddings, as it must
warnings.filterwarnings("ignore", message="Setting `save_embedding_layers`")


def train(name: str, groups: Sequence[Group], base, out: Path, *, profile, seed: int) -> dict:
    """Train system ``name`` into ``out``, a whole fp32 model; its report is the file written last.

    As ``training.train``, also in what it does with a finished or an interrupted ``out``. KitError
    for an unknown name, or when the groups hold nothing to learn.
    """
    if name not in NAMES:
        raise KitError(f"unknown system {name!r}: choose one of {', '.join(NAMES)}")
    source, view = hub.source_of(base, out), (name, *FIXED[name])
    settings = training.settings_of(groups, source, view, profile, "judge", False, seed)
    settings = short_hash(settings, fingerprint.of_code({__name__}, data=False))
    if (report := training.finished(out, settings)) is not None:
        return report

    tokenizer = hub.tokenizer_of(base)
    set_seed(seed)  # the two-label head is drawn when the model is loaded
    nf4, dtype = profile.quantization == "nf4", hub.compute_dtype(profile.precision)
    head = "score" if OUTPUTS[name] else None
    model = reward_model.base_for(base, nf4, hub.held_dtype(profile.precision), OUTPUTS[name])
    add_fixed_parts(model, tokenizer, FIXED[name])
    limit = min(profile.rm_max_tokens, model.config.max_position_embeddings)
    rows, left_out = training_rows(name, groups, tokenizer, limit)
    if not rows:
        raise KitError(f"{name}: no verdict or preference to learn from; check the verdicts")

    # as many steps as a reward model takes: for a group that teaches nothing another comes twice
    epochs = profile.rm_epochs * len(groups) / len(rows)
    schedule = grouped.schedule(rows, profile.rm_batch, epochs, seed)
    how = schedule.steps, schedule.batch, profile.rm_learning_rate, dtype, seed
    trainer = LabelTrainer(
        model=model,
        args=grouped.arguments(out / f"checkpoints-{settings}", *how),
        data_collator=LabelPasses(tokenizer.pad_token_id, profile.rm_pass_tokens),
        train_dataset=grouped.dataset(rows, schedule.order),
        processing_class=tokenizer,
        peft_config=grouped.lora(profile.rm_lora_rank, head, profile.rm_lora_targets),
    )
    report = {"system": name, "labels": "judge", "seed": seed, "settings": settings}
    report |= {"base": source, "quantization": profile.quantization, "steps": schedule.steps}
    report |= {"groups": len(rows), "left_out": left_out}
    report |= {"seconds": grouped.course(trainer), "curve": grouped.curve(trainer)}
    report["examples"] = sum(len(row["targets"]) for row in rows)
    report["tokens"] = sum(len(ids) for i in schedule.order for ids in rows[i]["ids"])
    report["trained_parameters"] = trainer.model.num_parameters(only_trainable=True)
    if trainer.is_world_process_zero():
        save(trainer.model, tokenizer, out, report, OUTPUTS[name])
    return report


def save(model: PeftModel, tokenizer, out: Path, report: dict, labels: int | None) -> None:
    """A trained adapter in its base's weights, unquantised, as a hub model; checkpoints go."""
    reward_model.merge(model)
    merged = model.unload()
    config = type(merged.config).from_dict(merged.config.to_dict())
    if hasattr(config, "quantization_config"):
        del config.quantization_config  # the weights are what the codes stood for
    if labels:
        config.num_labels = labels
    whole = type(merged)(config)
    whole.load_state_dict(merged.state_dict())
    whole.save_pretrained(out)
    tokenizer.save_pretrained(out)
    for stale in out.glob("checkpoints-*"):
        shutil.rmtree(stale)
    write_json(out / "report.json", report)


def load(name: str, path: Path):
    """The scorer of ``scorers`` on the model that was trained into ``path``."""
    read_json(path / "report.json", "of a study")  # written last: without it training is not done
    return published.KINDS[name].load(path)


def add_fixed_parts(model, tokenizer, parts: Sequence[str]) -> None:
    """Make each of ``parts`` one token, in place, embedded as the mean of the tokens it
    replaces."""
    pieces = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts]
    old = len(tokenizer)
    tokenizer.add_tokens([AddedToken(part, normalized=False) for part in parts])
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        for row, ids in enumerate(pieces, old):
            weight[row] = weight[ids].mean(dim=0)


def examples(name: str, group: Group, tokenizer) -> dict[str, list[tuple[list[int], int]]]:
    """What a system learns from a group, by what to call it when it is too long: token ids up to
    where the model answers, and the output that is right, a token or a label."""
    learned: dict[str, list[tuple[list[int], int]]] = {}
    if name == "verifier":
        for a, c in product(group.judged, group.criteria):
            if (said := met(group, a.id, c)) is not None:
                ids = published.verifier_ids(tokenizer, a.text, c.text)
                learned.setdefault(f"candidate {a.id}", []).append((ids, int(said)))
        return learned
    text, (first, second) = {a.id: a.text for a in group.candidates}, published.letters(tokenizer)
    ids = partial(published.pair_ids, tokenizer, group.messages)
    for best, worst in preferences(group):  # in both orders
        pair = [(ids(text[best], text[worst]), first), (ids(text[worst], text[best]), second)]
        learned[f"candidates {best} and {worst}"] = pair
    return learned


def training_rows(name: str, groups: Sequence[Group], tokenizer, limit: int):
    """(rows, left out): a row a group that teaches something; what is longer than ``limit``, named.

    A row holds packed sequences (``ids``, ``starts``) and ``targets`` (N,), the right output of
    each read in order. Examples of a pair or an answer are packed after the start that they share.
    """
    rows, left_out = [], []
    for group in groups:
        parts = examples(name, group, tokenizer)
        for what, found in list(parts.items()):
            if (longest := max(len(ids) for ids, _ in found)) > limit:
                left_out.append({"what": what, "tokens": longest, "limit": limit})
                del parts[what]
        if name == "pair_rm" and parts:  # all pairs of a group share its conversation
            parts = {"": [example for found in parts.values() for example in found]}
        packed, targets = [], []
        for found in parts.values():
            # read at their last tokens, which are never shared; twice the limit of one example: a
            # long shared part is read less often, attention stays cheap
            shared = os.path.commonprefix([ids[:-1] for ids, _ in found])
            packed += packing.pack(shared, [ids[len(shared) :] for ids, _ in found], 2 * limit)
            targets += [target for _, target in found]
        if packed:
            row = {"ids": [p.ids for p in packed], "starts": [p.starts for p in packed]}
            rows.append(row | {"targets": targets})
    return rows, left_out


class LabelPasses(Passes):
    """Collator of rows whose targets are outputs, without pairs; totals are of the targets."""

    def batch(self, rows: Sequence[dict]) -> dict[str, torch.Tensor]:
        """``packing.collate`` with ``reads`` (N, 2) and ``targets`` (N,), the right outputs."""
        batch = super().batch(rows)
        batch["reads"] = batch["reads"][:, :2]  # all outputs of each
        targets = [target for row in rows for target in row["targets"]]
        return batch | {"targets": torch.tensor(targets)}


class LabelTrainer(GroupTrainer):
    """Cross-entropy over outputs: those of two labels, or the next token."""

    def loss_of(self, scores, *, targets, totals):
        right = (scores.argmax(dim=-1) == targets).float().mean()
        return cross_entropy(scores, targets, reduction="sum") / totals[0], right.item()
