"""Notebook 06: every external set scored by every reward model of the run."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from promedical_utils.core.profiles import Profile
from promedical_utils.core.workspace import KitError, write_frame, write_json, write_rows
from promedical_utils.evaluation import external as external_sets
from promedical_utils.evaluation.bench import length_scorer
from promedical_utils.evaluation.external import MODELS, Question, Set, predictions


def predict_external(profile: Profile, run: Path) -> dict:
    """Score every set with every reward model of the run, in every column; the report.

    Writes external/predictions.parquet (COLUMNS), texts.parquet (the clinic's answers) and last
    report.json: of each set its counts, or why it is not run.
    """
    from promedical_utils.reward_model import model as reward_model  # loads torch

    trained = [name for name in MODELS if (run / "reward" / name / "report.json").exists()]
    if external_sets.RULED not in trained:
        raise KitError("no reward model in the run to test: run notebook 03_reward_model first")
    missing = [name for name in MODELS if name not in trained]
    report = {
        "sets": {},
        "retrieval": {},
        "neutral_criterion": external_sets.NEUTRAL.text,
        "systems_not_run": dict.fromkeys(missing, "not trained in this run"),
    }
    sets, frames, retrieved = {}, [], {}
    for name, external in external_sets.sets(profile, run):
        if isinstance(external, str):
            report["sets"][name] = {"status": "not run", "reason": external}
            continue
        sets[name], questions = external, external.questions
        report["sets"][name] = {
            "status": "run",
            "reason": "",
            "answers_cut": {},
            "questions": len(questions),
            "conditions": len({question.condition for question in questions}),
            "answers": sum(len(question.candidates) for question in questions),
            "pairs": sum(len(question.pairs) for question in questions),
            **external.about,
        }
        frames.append(by_length(name, questions))
    for system in trained:
        rm = reward_model.load(run / "reward" / system).merged()
        frames += scored_by(system, rm, profile, sets, retrieved, report)
        del rm  # before the next one is loaded
    frames = frames or [pd.DataFrame(columns=external_sets.COLUMNS)]
    write_rows(run / "external/predictions.parquet", pd.concat(frames, ignore_index=True))
    # the clinic's texts are the kit's own
    own = sets["clinic"].questions if "clinic" in sets else ()
    texts = [(a.instruction_id, a.id, a.text) for q in own for a in q.candidates]
    columns = ["instruction_id", "candidate_id", "text"]
    write_frame(run / "external/texts.parquet", pd.DataFrame(texts, columns=columns))
    write_json(run / "external/report.json", report)
    return report


def by_length(name: str, questions: Sequence[Question]) -> pd.DataFrame:
    """Predictions of longer-is-better on the set ``name``."""
    words = length_scorer(questions).set_index("candidate_id").score.to_dict()
    return predictions((name, "length", "q", False), questions, words)


def scored_by(
    system: str, rm, profile: Profile, sets: dict[str, Set], retrieved: dict, report: dict
) -> list[pd.DataFrame]:
    """Predictions of one reward model on every set, in every column.

    Retrieval counts tokens, so the first model that meets a set fills ``retrieved``, name of a set
    -> questions, for all of them. ``report`` gets, under retrieval and sets, what was found and
    what was cut.
    """
    frames = []
    for name, external in sets.items():
        if external.documents and name not in retrieved:
            retrieved[name], report["retrieval"][name] = external_sets.with_retrieved(
                external, rm, profile.retrieved
            )
        versions = ((False, external.questions), (True, retrieved.get(name, [])))
        for with_documents, questions in versions:
            for text in external_sets.texts_of(questions):
                scores, cut = external_sets.read_by(system, rm, questions, text)
                for way, values in scores.items():
                    key = (name, way, text, with_documents)
                    frames.append(predictions(key, questions, values))
                if cut:
                    label = f"{system}, {text}{', retrieved' if with_documents else ''}"
                    report["sets"][name]["answers_cut"][label] = cut
    return frames
