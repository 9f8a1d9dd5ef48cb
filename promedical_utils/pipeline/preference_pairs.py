"""How a run's answers and verdicts come about: by the clinic in this process, or over endpoints.

What notebook 02 does before it expands them into pairs; ``preference_pairs.make_preference_pairs``
calls it.
"""

from pathlib import Path

import pandas as pd

from promedical_utils import clinic
from promedical_utils.clinic import generators, people
from promedical_utils.core import profiles, provenance, records
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Candidate, Instruction, Rubric, Verdict
from promedical_utils.core.run_data import RunData
from promedical_utils.core.statistics import wilson
from promedical_utils.core.workspace import replacing, short_hash
from promedical_utils.data.roles import Task
from promedical_utils.pipeline.endpoints import of_profile
from promedical_utils.pipeline.real_text import candidates_of_real
from promedical_utils.rubric import expansion
from promedical_utils.rubric import preferences as joining
from promedical_utils.rubric.preferences import groups_of


def judge_errors(data: RunData, judge: str = "judge", expert: str = "truth"):
    """Where a judge errs, by dimension, as a data frame for ``figures.plot_judge_errors``.

    ``lenient``: of the verdicts that the expert finds not met, the share that the judge lets pass;
    ``strict`` the other way round. Wilson intervals, 95 %. Unknown verdicts of either are left out.
    """
    dimension = {c.id: c.dimension for r in data.rubrics for c in r.criteria}
    said = {(v.candidate_id, v.criterion_id): v.verdict for v in data.verdicts if v.judge == judge}
    rows = []
    for name in records.DIMENSIONS:
        pairs = [
            (said.get((v.candidate_id, v.criterion_id)), v.verdict)
            for v in data.verdicts
            if v.judge == expert and dimension[v.criterion_id] == name
        ]
        for error, right, wrong in (("lenient", "not_met", "met"), ("strict", "met", "not_met")):
            of = [heard for heard, true in pairs if true == right and heard in ("met", "not_met")]
            low, high = wilson(of.count(wrong), len(of))
            rate = of.count(wrong) / len(of) if of else float("nan")
            rows.append(
                {
                    "dimension": name,
                    "error": error,
                    "n": len(of),
                    "rate": rate,
                    "low": low,
                    "high": high,
                }
            )
    return pd.DataFrame(rows)


def judge_of(profile: Profile, verdicts, kinds: dict[str, str]):
    """The simulated judge, fitted to its configured agreement on true verdicts (an input)."""
    seen = [(kinds[v.criterion_id], v.verdict) for v in verdicts if v.judge == "truth"]
    return people.Judge.fit(profile.judge_agreement, seen, profile.seed)


def _candidate_id(profile: Profile, instruction_id: str, generator: str) -> str:
    """An id that does not tell who wrote the answer: judges and physicians see ids."""
    return f"{instruction_id}-{short_hash(profile.seed, instruction_id, generator)[:6]}"


def _truths(criteria: dict[str, list], candidates: list[Candidate]) -> list[Verdict]:
    """What the clinic's grammar reads in every answer."""
    return [
        Verdict(candidate_id=a.id, criterion_id=c, judge="truth", verdict=v)
        for a in candidates
        for c, v in clinic.gold(criteria[a.instruction_id], a.text).items()
    ]


def _read_by(name: str, reader, kinds: dict[str, str], rows: list[Verdict]) -> list[Verdict]:
    """What a judge or a panel says where the truth is ``rows``."""
    return [
        v.model_copy(
            update={
                "judge": name,
                "verdict": reader.verdict(
                    v.candidate_id, v.criterion_id, kinds[v.criterion_id], v.verdict
                ),
            }
        )
        for v in rows
    ]


def _settled(
    profile: Profile, w, kinds: dict[str, str], candidates, truth: list[Verdict]
) -> list[Verdict]:
    """What the clinic's physicians settle on the calibration split."""
    held = set(w.ids("calibration"))
    calibrated = {c.id for c in candidates if c.instruction_id in held}
    panel = people.panel(profile.physician_agreement, profile.seed)
    return _read_by("adjudicated", panel, kinds, [v for v in truth if v.candidate_id in calibrated])


def _agreement(truth: list[Verdict], said: list[Verdict]) -> float:
    heard = {(v.candidate_id, v.criterion_id): v.verdict for v in said}
    return round(
        sum(heard[v.candidate_id, v.criterion_id] == v.verdict for v in truth) / len(truth), 4
    )


def of_clinic(profile: Profile, run: Path):
    w = clinic.build(profile)
    rubrics_ = records.load(run / "data/rubrics.parquet", Rubric, "01_rubrics")
    criteria = {r.instruction_id: r.criteria for r in rubrics_}
    candidates = [
        Candidate(
            id=_candidate_id(profile, i, name),
            instruction_id=i,
            generator=name,
            text=w.answer(i, name),
        )
        for i in criteria
        for name in generators.NAMES
    ]
    truth = _truths(criteria, candidates)
    kinds = {c.id: c.kind for r in rubrics_ for c in r.criteria}
    judge = judge_of(profile, truth, kinds)
    said = _read_by("judge", judge, kinds, truth)
    settled = _settled(profile, w, kinds, candidates, truth)
    extra = {
        "input_judge_agreement": _agreement(truth, said),
        "input_lenient_kinds": sorted(judge.lenient),
    }
    return candidates, truth + said + settled, extra


def by_endpoints(profile: Profile, run: Path):
    """Answers and verdicts by the roles' endpoints; in the clinic, its truth beside them.

    An answer that no generator gave is left out and counted; every (answer, criterion) has a
    verdict.
    """
    asked = records.load(run / "data/instructions.parquet", Instruction, "01_rubrics")
    rubrics_ = records.load(run / "data/rubrics.parquet", Rubric, "01_rubrics")
    criteria = {r.instruction_id: r.criteria for r in rubrics_}
    played, candidates, unanswered = of_profile(profile, run), [], {}
    for name in played.generators:
        for instruction, answer in zip(asked, played.answer(name, asked), strict=True):
            if answer.value is None:
                unanswered[f"{name}, {instruction.id}"] = answer.reason
                continue
            id_ = _candidate_id(profile, instruction.id, name)
            candidates.append(
                Candidate(id=id_, instruction_id=instruction.id, generator=name, text=answer.value)
            )
    order = {i.id: n for n, i in enumerate(asked)}
    candidates.sort(key=lambda c: order[c.instruction_id])  # stable: generators keep their order
    by_id = {i.id: i for i in asked}
    tasks = [
        Task(by_id[c.instruction_id], tuple(criteria[c.instruction_id]), c) for c in candidates
    ]
    said = [verdict for verdicts in played.judge(tasks) for verdict in verdicts]
    extra = {
        "unanswered": unanswered,
        "unknown_verdicts": sum(v.verdict == "unknown" for v in said),
        "requests": played.answers.ledger(),
    }
    if profile.data != "clinic":
        return candidates, said, extra
    truth = _truths(criteria, candidates)
    kinds = {c.id: c.kind for r in rubrics_ for c in r.criteria}
    settled = _settled(profile, clinic.build(profile), kinds, candidates, truth)
    extra["input_judge_agreement"] = _agreement(truth, said)
    return candidates, truth + said + settled, extra


def make_preference_pairs(profile: Profile, run: Path) -> dict:
    """Candidates, verdicts, and the training pairs as a join over the judge's verdicts.

    Writes data/{candidates,verdicts,pairs}.parquet, hashes.json, expansion.csv (what became of
    every two answers) and, in the clinic, judge_errors.csv.
    """

    pass

    if profile.data == "real":
        candidates, verdicts, extra = candidates_of_real(profile, run)
    elif profiles.asks_endpoints(profile):
        candidates, verdicts, extra = by_endpoints(profile, run)
    else:
        candidates, verdicts, extra = of_clinic(profile, run)
    records.save(candidates, run / "data/candidates.parquet")
    records.save(verdicts, run / "data/verdicts.parquet")
    data = RunData.load(run)
    train = groups_of(data, "judge", "train")
    files = {
        name: run / f"data/{name}.parquet"
        for name in ("candidates", "rubrics", "verdicts", "pairs")
    }
    made = expansion.expand(**files, judge="judge", ids=[g.instruction.id for g in train])
    with replacing(run / "data/expansion.csv") as temporary:
        made.kinds.to_csv(temporary, index=False)
    provenance.hash_data(run)
    if profile.data == "clinic":
        with replacing(run / "data/judge_errors.csv") as temporary:
            judge_errors(data).to_csv(temporary, index=False)
    return {
        "candidates": len(candidates),
        "verdicts": len(verdicts),
        "training_pairs": made.pairs,
        "response_pairs": sum(len(joining.preferences(group)) for group in train),
        "ties": int(made.dimensions[["both_met", "both_not_met"]].loc["all"].sum()),
        "lost_to_unknown": int(made.dimensions.lost_to_unknown["all"]),
        "never_discriminate": len(made.silent),
        **extra,
    }
