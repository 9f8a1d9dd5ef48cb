"""Notebook 02: a run's answers and verdicts, by the clinic or over endpoints, and their pairs."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from promedical_utils import clinic
from promedical_utils.clinic import people
from promedical_utils.core import profiles, provenance, records
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Candidate, Verdict
from promedical_utils.core.run_data import RunData
from promedical_utils.core.statistics import wilson
from promedical_utils.core.workspace import KitError, short_hash, write_frame
from promedical_utils.pipeline.endpoints import of_profile, task_of
from promedical_utils.pipeline.real_text import candidates_of_real
from promedical_utils.rubric import expansion, preferences


def make_preference_pairs(profile: Profile, run: Path) -> dict:
    """Writes data/{candidates,verdicts,pairs}.parquet, the pairs a join over the judge's verdicts,
    hashes.json, expansion.csv (what became of every two answers) and, in the clinic,
    judge_errors.csv."""
    make = {"clinic": of_clinic, "open": by_endpoints}
    make |= dict.fromkeys(("real", "own"), candidates_of_real)
    provenance.claim_data(run, "candidates", "verdicts", "preferences")
    (run / "data/preferences.parquet").unlink(missing_ok=True)  # of data that had some
    candidates, verdicts, report = make[profile.data](profile, run)
    if not candidates:  # rubrics of one's own that came without answers
        if not profiles.asks_endpoints(profile):
            raise KitError(f"{profile.own_data} has no answers: add some, or set endpoint=URL")
        candidates, verdicts, report = by_endpoints(profile, run)
    records.save(candidates, run / "data/candidates.parquet")
    records.save(verdicts, run / "data/verdicts.parquet")
    data = RunData.load(run)
    train = preferences.groups_of(data, "judge", "train")
    pairs = [pair for group in train for pair in preferences.criterion_pairs(group)]
    records.save(pairs, run / "data/pairs.parquet")
    outcomes = expansion.outcomes(train)
    write_frame(run / "data/expansion.csv", expansion.by_kind(outcomes))
    provenance.hash_data(run)
    if profile.data == "clinic":
        write_frame(run / "data/judge_errors.csv", judge_errors(data))
    whole = outcomes.sum(numeric_only=True)
    return {
        "candidates": len(candidates),
        "verdicts": len(verdicts),
        "training_pairs": len(pairs),
        "response_pairs": sum(len(preferences.preferences(group)) for group in train),
        "ties": int(whole.both_met + whole.both_not_met),
        "lost_to_unknown": int(whole.lost_to_unknown),
        "never_discriminate": int(whole.never_discriminate),
        **report,
    }


def expert(profile: Profile) -> str:
    """Whose verdicts are the best ones known: the clinic's ``truth``, elsewhere the ``judge``."""
    return "truth" if profile.data == "clinic" else "judge"


def of_clinic(profile: Profile, run: Path) -> tuple[list[Candidate], list[Verdict], dict]:
    """The clinic's own generators and judge, who errs as configured, or those behind endpoints; its
    truth beside them; and its physicians, who settle the calibration split."""
    data = RunData.load(run, "instructions", "rubrics", "splits")
    if profiles.asks_endpoints(profile):
        candidates, judged, report = by_endpoints(profile, run)
        truth = _truth(data, candidates)
    else:
        w = clinic.build(profile)
        written = [(i, name) for i in data.rubric_of for name in w.authors(i)]
        candidates = [_candidate(profile, i, name, w.answer(i, name)) for i, name in written]
        truth = _truth(data, candidates)
        judge = judge_of(profile, truth, data.criterion_kinds)
        judged = _read_by(judge, "judge", data, truth)
        report = {"input_lenient_kinds": sorted(judge.lenient)}
    by_judge = {(v.candidate_id, v.criterion_id): v.verdict for v in judged}
    agreed = [by_judge[v.candidate_id, v.criterion_id] == v.verdict for v in truth]
    report = {"input_judge_agreement": round(sum(agreed) / len(agreed), 4)} | report
    held_out = set(data.ids("calibration"))
    ids = {c.id for c in candidates if c.instruction_id in held_out}
    panel = people.Panel(profile.physician_agreement, profile.seed)
    settled = _read_by(panel, "adjudicated", data, [v for v in truth if v.candidate_id in ids])
    return candidates, truth + judged + settled, report


def by_endpoints(profile: Profile, run: Path) -> tuple[list[Candidate], list[Verdict], dict]:
    """Answers and verdicts by the roles' endpoints; an answer that no generator gave is counted."""
    data, roles = RunData.load(run, "instructions", "rubrics"), of_profile(profile, run)
    said = {name: roles.answer(name, data.instructions) for name in roles.generators}
    candidates, unanswered = [], {}
    for n, instruction in enumerate(data.instructions):
        for name, answers in said.items():
            if answers[n].value is None:
                unanswered[f"{name}, {instruction.id}"] = answers[n].reason
            else:
                candidates.append(_candidate(profile, instruction.id, name, answers[n].value))
    tasks = [task_of(data, candidate) for candidate in candidates]
    judged = [verdict for verdicts in roles.judge(tasks) for verdict in verdicts]
    report = {
        "unanswered": unanswered,
        "unknown_verdicts": sum(v.verdict == "unknown" for v in judged),
        "roles": roles.outcomes(),
        "requests": roles.answers.ledger(),
    }
    return candidates, judged, report


def _candidate(profile: Profile, instruction_id: str, generator: str, text: str) -> Candidate:
    """Its id does not tell who wrote the answer: judges and physicians see ids."""
    name = f"{instruction_id}-{short_hash(profile.seed, instruction_id, generator)[:6]}"
    return Candidate(id=name, instruction_id=instruction_id, generator=generator, text=text)


def _truth(data: RunData, candidates: list[Candidate]) -> list[Verdict]:
    """What the clinic's grammar reads in every answer."""
    rows = []
    for answer in candidates:
        i, about = answer.instruction_id, {"candidate_id": answer.id, "judge": "truth"}
        known = clinic.facts(data.instruction_of[i].messages)
        read = clinic.gold(data.rubric_of[i].criteria, known, answer.text)
        rows += [Verdict(**about, criterion_id=c, verdict=verdict) for c, verdict in read.items()]
    return rows


def judge_of(profile: Profile, verdicts: Iterable[Verdict], kinds: dict[str, str]) -> people.Judge:
    """The simulated judge, fitted to its configured agreement on true verdicts (an input)."""
    true = [(kinds[v.criterion_id], v.verdict) for v in verdicts if v.judge == "truth"]
    return people.Judge.fit(profile.judge_agreement, true, clinic.RISKS, profile.seed)


def _read_by(reader, name: str, data: RunData, truth: Iterable[Verdict]) -> list[Verdict]:
    """What a judge or a panel of ``people`` says where the truth is ``truth``."""
    rows = []
    for v in truth:
        kind = data.criterion_kinds[v.criterion_id]
        verdict = reader.verdict(v.candidate_id, v.criterion_id, kind, v.verdict)
        rows.append(v.model_copy(update={"judge": name, "verdict": verdict}))
    return rows


def judge_errors(data: RunData) -> pd.DataFrame:
    """Where the judge errs, by dimension, for ``figures.plot_judge_errors``.

    ``lenient``: of the verdicts that in truth are not met, the share that the judge lets pass;
    ``strict`` the other way round. Wilson intervals, 95 %. Unknown verdicts of either are left out.
    """
    dimension_of = {(r.instruction_id, c.id): c.dimension for r in data.rubrics for c in r.criteria}
    question_of = {answer.id: answer.instruction_id for answer in data.candidates}
    judged, counts = data.verdicts_of("judge"), Counter()
    for key, true in data.verdicts_of("truth").items():
        counts[dimension_of[question_of[key[0]], key[1]], true, judged.get(key)] += 1
    rows = []
    for dimension in records.DIMENSIONS:
        for error, right, wrong in (("lenient", "not_met", "met"), ("strict", "met", "not_met")):
            errors = counts[dimension, right, wrong]
            n = errors + counts[dimension, right, right]
            rate = errors / n if n else float("nan")
            rows.append((dimension, error, n, rate, *wilson(errors, n)))
    return pd.DataFrame(rows, columns=["dimension", "error", "n", "rate", "low", "high"])
