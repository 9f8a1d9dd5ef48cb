"""Notebook 00: the small base model, trained here, or the hub's by name."""

import random
import time
from pathlib import Path

from promedical_utils import clinic
from promedical_utils.clinic import generators, lessons, vocabulary
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Message
from promedical_utils.core.workspace import write_json
from promedical_utils.data.sources import real_sets
from promedical_utils.pipeline.rubrics import open_rows


def train_base(profile: Profile, run: Path) -> dict:
    """Train the small base, or name the hub's; writes base/ and base_report.json.

    In the clinic the report has the copy rate of every leaflet fact on held-out patients.
    """
    start = time.perf_counter()
    if profile.base_model != "small":
        report = {"base": profile.base_model, "trained_here": False, "copy_rates": {}}
    else:
        train = {"clinic": _clinic_base, "real": _real_base, "open": _open_base}[profile.data]
        model, tokenizer, report = train(profile, run)
        for part in (model, tokenizer):
            part.save_pretrained(run / "base")
        report |= {
            "base": "small",
            "trained_here": True,
            "vocabulary": len(tokenizer),
            "parameters": model.num_parameters(),
        }
    rates = report["copy_rates"]
    report["cannot_copy"] = sorted(fact for fact, rate in rates.items() if rate < 0.5)
    seconds = round(time.perf_counter() - start, 1)
    write_json(run / "base_report.json", report | {"stage_seconds": seconds})
    return report


def _trained(profile: Profile, run: Path, tokenizer, lesson) -> tuple:
    """A new small base that has learned ``lesson``s, and the report of its training."""
    from promedical_utils.policy import small_base  # loads torch

    model = small_base.new_model(tokenizer, profile)
    report = small_base.train(model, tokenizer, lesson, profile, run / "base")
    return model, report


def _clinic_base(profile: Profile, run: Path) -> tuple:
    from promedical_utils.policy import small_base  # loads torch

    w = clinic.build(profile)
    ids = w.ids("train")
    texts = [m.content for i in w.instructions if i.id in set(ids) for m in i.messages]
    texts += [w.answer(i, name) for i in ids for name in generators.NAMES]
    texts += [c.text for i in ids for c in w.rubric_of[i].criteria]
    tokenizer = small_base.train_tokenizer(
        lessons.corpus(texts), profile.base_vocabulary, vocabulary.single_tokens()
    )
    conditions = sorted({(w.patients[i].organ, w.patients[i].problem) for i in ids})

    def lesson(index: int, total: int):
        return lessons.lesson(index, total, profile.seed, conditions)

    model, report = _trained(profile, run, tokenizer, lesson)
    patients = [w.patients[i] for i in w.ids("checkpoint")]
    tests = lessons.reading_tests(patients, profile.seed)
    report["copy_rates"] = small_base.copy_rates(model, tokenizer, tests)
    report["held_out_patients"] = len(patients)
    return model, tokenizer, report


def _text_base(profile: Profile, run: Path, texts: list[str], lesson) -> tuple:
    """A small base with a tokenizer of ``texts``, trained on ``lesson``s; without copy rates."""
    from promedical_utils.policy import small_base  # loads torch

    tokenizer = small_base.train_tokenizer(texts, profile.base_vocabulary)
    model, report = _trained(profile, run, tokenizer, lesson)
    return model, tokenizer, report | {"copy_rates": {}, "texts": len(texts)}


def _real_base(profile: Profile, run: Path) -> tuple:
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

    return _text_base(profile, run, real_sets.corpus(study), lesson)


def _open_base(profile: Profile, run: Path) -> tuple:
    """A small base on the open questions themselves; there are no answers before notebook 02."""
    texts = [row.text for row in open_rows(profile)[0]]

    def lesson(index: int, total: int):
        """The first half of a question, answered by its second half."""
        words = random.Random(f"open-{profile.seed}-{index}").choice(texts)[:1200].split()
        half = (len(words) + 1) // 2
        question = [Message(role="user", content=" ".join(words[:half]))]
        return question, " ".join(words[half:]) or "?", ()

    return _text_base(profile, run, texts, lesson)
