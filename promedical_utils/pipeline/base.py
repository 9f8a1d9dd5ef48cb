"""Notebook 00: the base model, trained here, made from a package, or the hub's by name."""

import os
import random
import shutil
import time
from functools import partial
from pathlib import Path

from promedical_utils import clinic
from promedical_utils.clinic import generators, lessons, vocabulary
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Message
from promedical_utils.core.workspace import shown, write_json
from promedical_utils.data.sources import real_sets
from promedical_utils.pipeline.rubrics import open_rows


def train_base(profile: Profile, run: Path) -> dict:
    """Train the small base, link smollm2, or name the hub's; writes base/ and base_report.json.

    In the clinic the report has the copy rate of every leaflet fact on held-out patients.
    """
    start = time.perf_counter()
    if profile.base_model == "small":
        report = _small_base(profile, run)
    elif profile.base_model == "smollm2":
        report = _smollm2(profile, run)
    else:
        report = {"base": profile.base_model, "trained_here": False, "copy_rates": {}}
    rates = report["copy_rates"]
    report["cannot_copy"] = sorted(fact for fact, rate in rates.items() if rate < 0.5)
    seconds = round(time.perf_counter() - start, 1)
    write_json(run / "base_report.json", report | {"stage_seconds": seconds})
    return report


def _smollm2(profile: Profile, run: Path) -> dict:
    """``run``/base as a link to the one copy that all runs share."""
    from promedical_utils.reward_model import hub, smollm2  # loads torch

    hub.silence()
    folder, base = smollm2.prepare(profile.base_layers), run / "base"
    if base.is_dir() and not base.is_symlink():
        shutil.rmtree(base)  # one that was trained here
    base.unlink(missing_ok=True)
    run.mkdir(parents=True, exist_ok=True)
    base.symlink_to(os.path.relpath(folder, run.resolve()), target_is_directory=True)
    sizes = {"parameters": hub.load(hub.CAUSAL, folder).num_parameters()}
    sizes |= {"vocabulary": len(hub.tokenizer_of(folder)), "layers": profile.base_layers}
    origin = {"base": "smollm2", "folder": shown(folder), "made_from": smollm2.find()[2]}
    return origin | sizes | {"trained_here": False, "copy_rates": {}}


def _small_base(profile: Profile, run: Path) -> dict:
    from promedical_utils.policy import small_base  # loads torch

    p = profile
    if (run / "base").is_symlink():
        (run / "base").unlink()  # else the copy that all runs share would be written over
    teach = {"clinic": _of_clinic, "real": _of_real_sets, "open": _of_open_sets}[p.data]
    texts, lesson, reading = teach(p)
    names = vocabulary.single_tokens() if p.data == "clinic" else ()
    tokenizer = small_base.train_tokenizer(texts, p.base_vocabulary, names)
    model = small_base.new_model(tokenizer, p)
    report = small_base.train(model, tokenizer, lesson, p, run / "base")
    report["copy_rates"] = small_base.copy_rates(model, tokenizer, reading)
    report |= {"held_out_patients": len(reading)} if reading else {"texts": len(texts)}
    for part in (model, tokenizer):
        part.save_pretrained(run / "base")
    report |= {"vocabulary": len(tokenizer), "parameters": model.num_parameters()}
    return report | {"base": "small", "trained_here": True}


# Of each kind of data: texts of the tokenizer, the lesson of a number, tests of copying.


def _of_clinic(profile: Profile) -> tuple:
    w = clinic.build(profile)
    ids = w.ids("train")
    texts = [m.content for i in w.instructions if i.id in set(ids) for m in i.messages]
    texts += [w.answer(i, name) for i in ids for name in generators.NAMES]
    texts += [c.text for i in ids for c in w.rubric_of[i].criteria]
    conditions = sorted({(w.patients[i].organ, w.patients[i].problem) for i in ids})
    lesson = partial(lessons.lesson, seed=profile.seed, conditions=conditions)
    patients = [w.patients[i] for i in w.ids("checkpoint")]
    return lessons.corpus(texts), lesson, lessons.reading_tests(patients, profile.seed)


def _of_real_sets(profile: Profile) -> tuple:
    study = real_sets.load_real(profile.seed)
    train = {row.instruction_id for row in study.splits if row.split == "train"}
    messages = {i.id: i.messages for i in study.instructions if i.id in train}
    answers = [
        (messages[c.instruction_id], c.text) for c in study.candidates if c.instruction_id in train
    ]

    def lesson(index: int, total: int):
        """A question with the head of one of its answers, in characters about 200 tokens."""
        rng = random.Random(f"real-{profile.seed}-{index}")
        asked, text = rng.choice(answers)
        return [Message(role=m.role, content=m.content[:600]) for m in asked], text[:900], ()

    return real_sets.corpus(study), lesson, ()


def _of_open_sets(profile: Profile) -> tuple:
    """The open questions themselves; there are no answers before notebook 02."""
    texts = [row.text for row in open_rows(profile)[0]]

    def lesson(index: int, total: int):
        """The first half of a question, answered by its second half."""
        words = random.Random(f"open-{profile.seed}-{index}").choice(texts)[:1200].split()
        half = (len(words) + 1) // 2
        question = [Message(role="user", content=" ".join(words[:half]))]
        return question, " ".join(words[half:]) or "?", ()

    return texts, lesson, ()
