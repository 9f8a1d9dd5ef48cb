"""Notebook 00: the small base model, trained here, or the hub's by name."""

import random
import time
from pathlib import Path

from promedical_utils.clinic import build, generators, lessons, vocabulary
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Message
from promedical_utils.core.workspace import write_json
from promedical_utils.data.sources import real_sets
from promedical_utils.pipeline.rubrics import open_rows


def train_base(profile: Profile, run: Path) -> dict:
    """Train the small base, or name the hub's; writes base/ and base_report.json.

    In the clinic the report has the copy rate of every leaflet fact on held-out patients.
    """
    from promedical_utils.policy import small_base  # loads torch

    start = time.perf_counter()
    if profile.base_model != "small":
        report = {"base": profile.base_model, "trained_here": False, "copy_rates": {}}
    else:
        train = {"clinic": _clinic_base, "real": _real_base, "open": _open_base}[profile.data]
        model, tokenizer, report = train(profile, run)
        small_base.save(model, tokenizer, run / "base")
        report |= {
            "base": "small",
            "trained_here": True,
            "vocabulary": len(tokenizer),
            "parameters": model.num_parameters(),
        }
    rates = report["copy_rates"]
    report["cannot_copy"] = sorted(fact for fact, rate in rates.items() if rate < 0.5)
    write_json(
        run / "base_report.json", report | {"stage_seconds": round(time.perf_counter() - start, 1)}
    )
    return report


def _new_base(profile: Profile, tokenizer):
    from promedical_utils.policy import small_base  # loads torch

    return small_base.new_model(
        tokenizer, profile.base_layers, profile.base_width, profile.seed, profile.base_architecture
    )


def _clinic_base(profile: Profile, run: Path):
    from promedical_utils.policy import small_base  # loads torch

    w = build(profile)
    ids = w.ids("train")
    texts = [m.content for i in w.instructions if i.id in set(ids) for m in i.messages]
    texts += [w.answer(i, name) for i in ids for name in generators.NAMES]
    texts += [c.text for i in ids for c in w.rubric_of[i].criteria]
    tokenizer = small_base.train_tokenizer(
        lessons.corpus(texts), profile.base_vocabulary, vocabulary.single_tokens()
    )
    model = _new_base(profile, tokenizer)
    conditions = sorted({(w.patients[i].organ, w.patients[i].problem) for i in ids})
    report = small_base.train(
        model,
        tokenizer,
        lambda i, n: lessons.lesson(i, n, profile.seed, conditions),
        profile.base_steps,
        profile.base_batch,
        profile.base_learning_rate,
        profile.seed,
        run / "base",
    )
    patients = [w.patients[i] for i in w.ids("checkpoint")]
    tests = lessons.reading_tests(patients, profile.seed)
    report["copy_rates"] = small_base.copy_rates(model, tokenizer, tests)
    report["held_out_patients"] = len(patients)
    return model, tokenizer, report


def _text_base(profile: Profile, run: Path, texts: list[str], lesson):
    """A small base with a tokenizer of ``texts``, trained on ``lesson``s; without copy rates."""
    from promedical_utils.policy import small_base  # loads torch

    tokenizer = small_base.train_tokenizer(texts, profile.base_vocabulary)
    model = _new_base(profile, tokenizer)
    report = small_base.train(
        model,
        tokenizer,
        lesson,
        profile.base_steps,
        profile.base_batch,
        profile.base_learning_rate,
        profile.seed,
        run / "base",
    )
    return model, tokenizer, report | {"copy_rates": {}, "texts": len(texts)}


def _real_base(profile: Profile, run: Path):
    from promedical_utils.policy import small_base  # loads torch

    study = real_sets.load_real(profile.seed)
    texts = real_sets.corpus(study)
    usable = {row.instruction_id for row in study.splits if row.split == "train"}
    messages = {i.id: i.messages for i in study.instructions if i.id in usable}
    answers = [
        (messages[c.instruction_id], c.text) for c in study.candidates if c.instruction_id in usable
    ]

    def lesson(index: int, total: int) -> small_base.Lesson:
        """A question with the head of one of its answers, in characters about 200 tokens."""
        rng = random.Random(f"real-{profile.seed}-{index}")
        asked, text = rng.choice(answers)
        return [Message(role=m.role, content=m.content[:600]) for m in asked], text[:900], ()

    return _text_base(profile, run, texts, lesson)


def _open_base(profile: Profile, run: Path):
    """A small base on the open questions themselves; there are no answers before notebook 02."""
    from promedical_utils.policy import small_base  # loads torch

    texts = [row.text for row in open_rows(profile)[0]]

    def lesson(index: int, total: int) -> small_base.Lesson:
        """The first half of a question, answered by its second half."""
        words = random.Random(f"open-{profile.seed}-{index}").choice(texts)[:1200].split()
        half = (len(words) + 1) // 2
        return (
            [Message(role="user", content=" ".join(words[:half]))],
            " ".join(words[half:]) or "?",
            (),
        )

    return _text_base(profile, run, texts, lesson)
