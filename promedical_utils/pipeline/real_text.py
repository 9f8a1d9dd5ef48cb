"""Real text, of public sets or one's own, as a run's records, shortened to what the model reads."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

from promedical_utils.core import records
from promedical_utils.core.profiles import Profile
from promedical_utils.core.run_data import base_path
from promedical_utils.core.workspace import KitError, project_root
from promedical_utils.data.sources import own, real_sets
from promedical_utils.data.sources.real_sets import EXTERNAL, RealStudy

LEAST = 16  # tokens of an answer that are worth keeping


def shorten(study: RealStudy, tokenizer, limit: int) -> tuple[RealStudy, dict]:
    """Keep the head of each answer, so that prompt, answer and longest criterion fit ``limit``.

    ``tokenizer``: a fast one with a chat template; ``limit``: in its tokens. Questions and criteria
    are never cut: where they leave an answer fewer than ``LEAST``, an external instruction is left
    out and counted (an English tokenizer spells other scripts in bytes), any other is a KitError.
    Returns the study and, per source, the answers cut and the instructions left out.
    """
    from promedical_utils.reward_model import packing  # loads torch

    room, left_out, cut = {}, Counter(), Counter()
    source = {i.id: i.source for i in study.instructions}
    for instruction, rubric in zip(study.instructions, study.rubrics, strict=True):
        prompt = packing.prompt_ids(tokenizer, [m.model_dump() for m in instruction.messages])
        tails = packing.text_ids(tokenizer, [packing.criterion_text(c) for c in rubric.criteria])
        left = limit - packing.longest(prompt, tails) - 1  # 1: the answer's end token
        if left >= LEAST:
            room[instruction.id] = left
        elif instruction.source in EXTERNAL:
            left_out[instruction.source] += 1
        else:
            raise KitError(
                f"question and longest criterion of {instruction.id} leave no room for an answer "
                f"in {limit} tokens: raise rm_max_tokens to {limit + LEAST - left} or more"
            )

    candidates = [c for c in study.candidates if c.instruction_id in room]
    encoded = tokenizer([c.text for c in candidates], add_special_tokens=False)["input_ids"]
    for n, (candidate, tokens) in enumerate(zip(candidates, encoded, strict=True)):
        most = room[candidate.instruction_id]
        if len(tokens) > most:
            cut[source[candidate.instruction_id]] += 1
            text = packing.head(tokenizer, candidate.text, most)
            candidates[n] = candidate.model_copy(update={"text": text})
    shorter = replace(study, candidates=candidates).only({c.id for c in candidates})
    counts = {"answers_cut": dict(cut), "instructions_left_out": dict(left_out)}
    return shorter, {"limit_tokens": limit} | counts


def study_of(profile: Profile) -> RealStudy:
    """The public sets, or one's own data, whose counts are its notes."""
    if profile.data == "real":
        return real_sets.load_real(profile.seed)
    data, counts = own.read(project_root() / profile.own_data, profile.seed)
    return RealStudy(**vars(data), notes=[f"{name}: {count}" for name, count in counts.items()])


def _read(profile: Profile, run: Path) -> tuple[RealStudy, RealStudy, dict]:
    """The study whole, and shortened to what the run's base can read, with what was cut."""
    from transformers import AutoTokenizer  # slow to load

    from promedical_utils.reward_model import hub  # loads torch

    hub.silence()  # long texts are measured here before they are cut
    tokenizer = AutoTokenizer.from_pretrained(base_path(profile, run))
    whole = study_of(profile)
    if not whole.candidates:  # rubrics that came without answers
        return whole, whole, {}
    return whole, *shorten(whole, tokenizer, profile.rm_max_tokens)


def rubrics_of_real(profile: Profile, run: Path) -> tuple:
    """Instructions, splits, rubrics, and the report on the sources."""
    whole, study, shortened = _read(profile, run)
    sources = real_sets.aggregate_report(whole) if profile.data == "real" else {}
    report = {"sources": sources, "notes": whole.notes, "shortened": shortened}
    return study.instructions, study.splits, study.rubrics, report


def candidates_of_real(profile: Profile, run: Path) -> tuple:
    """Answers, verdicts, and how many pairs they make; writes the preferences that were stated."""
    _, study, _ = _read(profile, run)
    if study.preferences:
        records.save(study.preferences, run / "data/preferences.parquet")
    return study.candidates, study.verdicts, {"criterion_pairs": len(study.pairs)}
