"""Notebook 06: every external set scored by every reward model of the run."""

from pathlib import Path

import pandas as pd

from promedical_utils.core.profiles import Profile
from promedical_utils.core.workspace import KitError, replacing, write_json, write_rows
from promedical_utils.evaluation.external import (
    COLUMNS,
    MODELS,
    NEUTRAL,
    RULED,
    Set,
    lengths,
    predictions,
    read_by,
    sets,
    texts_of,
    with_retrieved,
)

# ---------------------------------------------------------------- 06 external generalization


def predict_external(profile: Profile, run: Path) -> dict:
    """Score every set with every reward model of the run, in every column; the report.

    Writes external/predictions.parquet (COLUMNS), texts.parquet (the clinic's answers) and last
    report.json: of each set its counts, or why it is not run.
    """
    from promedical_utils.reward_model import model as reward_model  # loads torch

    found = dict(sets(profile, run))
    there = [name for name in MODELS if (run / "reward" / name / "report.json").exists()]
    if RULED not in there:
        raise KitError("no reward model in the run to test: run notebook 03_reward_model first")
    runs = {name: one for name, one in found.items() if isinstance(one, Set)}
    frames, asked, report = [], {}, {"sets": {}, "retrieval": {}, "neutral_criterion": NEUTRAL.text}
    for name, one in runs.items():
        frames.append(
            predictions(name, "length", "q", False, one.questions, lengths(one.questions))
        )
        asked[name, False] = one.questions
        report["sets"][name] = {"status": "run", "reason": "", "answers_cut": {}} | _counts(one)
    for system in there:
        rm = reward_model.load(run / "reward" / system).merged()
        for name, one in runs.items():
            if one.documents and (name, True) not in asked:
                asked[name, True], report["retrieval"][name] = with_retrieved(
                    one, rm, profile.retrieved
                )
            for with_documents in (False, True):
                questions = asked.get((name, with_documents), [])
                for text in texts_of(questions):
                    scores, cut = read_by(system, rm, questions, text)
                    frames += [
                        predictions(name, way, text, with_documents, questions, values)
                        for way, values in scores.items()
                    ]
                    if cut:
                        label = f"{system}, {text}" + ", retrieved" * with_documents
                        report["sets"][name]["answers_cut"][label] = cut
        del rm
    for name, why in found.items():
        report["sets"].setdefault(name, {"status": "not run", "reason": why})
    report["systems_not_run"] = {
        name: "not trained in this run" for name in MODELS if name not in there
    }
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)
    write_rows(run / "external/predictions.parquet", frame)
    texts = [
        (c.instruction_id, c.id, c.text)
        for q in runs.get("clinic", Set(())).questions
        for c in q.candidates
    ]
    with replacing(run / "external/texts.parquet") as temporary:
        pd.DataFrame(texts, columns=["instruction_id", "candidate_id", "text"]).to_parquet(
            temporary, index=False
        )
    write_json(run / "external/report.json", report)
    return report


def _counts(one: Set) -> dict:
    return {
        "questions": len(one.questions),
        "conditions": len({q.condition for q in one.questions}),
        "answers": sum(len(q.candidates) for q in one.questions),
        "pairs": sum(len(q.pairs) for q in one.questions),
        **one.about,
    }
