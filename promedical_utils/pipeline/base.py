"""Notebook 00: the base model, made from a package, drawn at random, or the hub's by name, and what
it is taught before any reward: to answer as the training split does."""

import os
import random
import shutil
import time
from pathlib import Path

from promedical_utils import clinic
from promedical_utils.core.profiles import Profile
from promedical_utils.core.workspace import shown, write_json
from promedical_utils.data.sources import real_sets
from promedical_utils.pipeline.real_text import study_of
from promedical_utils.pipeline.rubrics import open_rows
from promedical_utils.rubric.preferences import groups_of


def make_base(profile: Profile, run: Path) -> dict:
    """Make or name the base, and fine-tune it on ``sft_answers`` answers; writes base/, pretrained/
    where that is another, and base_report.json."""
    from promedical_utils.policy import sft  # loads torch

    start, p = time.perf_counter(), profile
    untaught = run / ("pretrained" if p.sft_answers else "base")
    for folder in (run / "base", untaught):
        if folder.is_symlink():  # else what it leads to, which all runs share, is written over
            folder.unlink()
    if p.base_model == "small":
        report = _small(p, untaught)
    elif p.base_model == "smollm2":
        report = _smollm2(p, untaught)
    else:
        report, untaught = {"base": p.base_model}, p.base_model
    taught = sft.train(untaught, _written(p), p, run / "base") if p.sft_answers else None
    report |= {"taught": taught, "stage_seconds": round(time.perf_counter() - start, 1)}
    write_json(run / "base_report.json", report)
    return report


def _smollm2(profile: Profile, folder: Path) -> dict:
    """``folder`` as a link to the one copy that all runs share."""
    from promedical_utils.reward_model import hub, smollm2  # loads torch

    hub.silence()
    made = smollm2.prepare(profile.base_layers)
    shutil.rmtree(folder, ignore_errors=True)  # one that was trained here
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.symlink_to(os.path.relpath(made, folder.parent.resolve()), target_is_directory=True)
    origin = {"base": "smollm2", "folder": shown(made), "made_from": smollm2.find()[2]}
    size = hub.load(hub.CAUSAL, made).num_parameters()
    return origin | {"parameters": size, "vocabulary": len(hub.tokenizer_of(made))}


def _small(profile: Profile, folder: Path) -> dict:
    from promedical_utils.policy import small_base  # loads torch

    tokenizer = small_base.train_tokenizer(_texts(profile), profile.base_vocabulary)
    model = small_base.new_model(tokenizer, profile)
    for part in (model, tokenizer):
        part.save_pretrained(folder)
    return {"base": "small", "parameters": model.num_parameters(), "vocabulary": len(tokenizer)}


def _texts(profile: Profile) -> list[str]:
    """What a tokenizer is made from: texts of the training split; of open data the questions
    themselves, since there are no answers before notebook 02."""
    if profile.data in ("real", "own"):
        return real_sets.corpus(study_of(profile))
    if profile.data == "open":
        return [row.text for row in open_rows(profile)[0]]
    world = clinic.build(profile)
    ids = world.ids("train")
    texts = [m.content for i in world.instructions_in("train") for m in i.messages]
    texts += [world.answer(i, name) for i in ids for name in world.authors(i)]
    return texts + [c.text for i in ids for c in world.rubric_of[i].criteria]


def _written(profile: Profile) -> list[tuple[list[dict], str]]:
    """Conversations of the training split with an answer each, drawn by the seed: the clinic's by
    its generators; of real sets one of those that were written."""
    if profile.data == "clinic":
        world = clinic.build(profile)
        written = [
            ([m.model_dump() for m in asked.messages], world.answer(asked.id, name))
            for asked in world.instructions_in("train")
            for name in world.authors(asked.id)
        ]
    elif profile.data == "own":
        train = groups_of(study_of(profile), "judge", "train")
        written = [(group.messages, answer.text) for group in train for answer in group.candidates]
    else:
        pairs = real_sets.written_answers(profile.seed)
        written = [([{"role": "user", "content": asked}], answer) for asked, answer in pairs]
    rng = random.Random(f"sft-{profile.seed}")
    return rng.sample(written, min(profile.sft_answers, len(written)))
