"""Notebook 04: the bench, adjudicated double-blind, and every scorer's predictions on it."""

from dataclasses import replace
from pathlib import Path

from promedical_utils import clinic
from promedical_utils.clinic.people import panel
from promedical_utils.core import records
from promedical_utils.core.profiles import Profile
from promedical_utils.core.run_data import RunData
from promedical_utils.core.workspace import write_rows
from promedical_utils.evaluation import bench as benches
from promedical_utils.evaluation import scorers
from promedical_utils.evaluation.scorers import roster, rules
from promedical_utils.pipeline.reward_models import models
from promedical_utils.rubric.preferences import criterion_pairs, groups_of, preferences

# ---------------------------------------------------------------- 04 bench


def make_bench(profile: Profile, run: Path) -> dict:
    """Compose the bench, adjudicate it double-blind, let every scorer predict; writes bench/."""

    if profile.data != "clinic":
        return _labelled_bench(profile, run)
    data = RunData.load(run)
    made, held = compose_bench(profile, data)
    made.report["not_run"] = _predict(profile, run, data, held, made.criteria)
    benches.save_judged(run / "bench", made, data.verdicts)
    made.save(run / "bench")
    return made.report


def compose_bench(profile: Profile, data: RunData) -> tuple:
    """The clinic's bench, adjudicated double-blind, and its groups with the true verdicts."""

    ids = set(data.ids("bench"))
    pool, criteria = benches.from_records(
        [i for i in data.instructions if i.id in ids],
        data.splits,
        data.rubrics,
        clinic.UNSEEN_KINDS,
    )
    truth = {
        (v.candidate_id, v.criterion_id): v.verdict for v in data.verdicts if v.judge == "truth"
    }
    made = benches.compose(
        pool,
        criteria,
        data.candidates,
        truth,
        panel(profile.physician_agreement, profile.seed),
        profile,
    )
    chosen = set(made.samples.instruction_id)
    held = [g for g in groups_of(data, "truth", "bench") if g.instruction.id in chosen]
    made.report["blind_ceiling"] = round(benches.blind_ceiling(made.pairs), 4)
    return made, held


def _predict(profile: Profile, run: Path, data: RunData, held: list, criteria) -> dict[str, str]:
    """Let every scorer predict on the ``held`` groups; returns those that could not, {name: why}.

    Writes bench/predictions.parquet, and bench/preferences.parquet where some compare two answers.
    """
    import pandas as pd

    from promedical_utils.reward_model import model as reward_model  # loads torch

    frames = [
        benches.cue_control(groups_of(data, "judge", "train"), held, profile.seed),
        benches.length_scorer(held),
        scorers.predict(rules.Chance(profile.seed), held)[0],
    ]
    for name in models(profile):
        rm = reward_model.load(run / "reward" / name)
        frames.append(benches.predictions(name, rm.score_groups(held), criteria, rm.calibration))
        if name == "criterion":
            frames += [
                scorers.predict(rules.Rule.over(r, frames[-1]), held)[0] for r in rules.RULES
            ]
    scored, preferred, left_out = roster.predict(roster.others(profile, run), held)
    for name, rows in (("predictions", frames + scored), ("preferences", preferred)):
        path = run / "bench" / f"{name}.parquet"
        if not rows:
            path.unlink(missing_ok=True)  # of an earlier run, with other scorers
            continue
        write_rows(path, pd.concat(rows, ignore_index=True))
    for name, why in left_out.items():
        print(f"not run: {name}: {why}")
    return left_out


def _labelled_bench(profile: Profile, run: Path) -> dict:
    """Held-out K-QA and MEDIQA-2019, and HealthBench, with the labels that the sources give.

    Of open sets the held-out split with the judge's labels, which physicians have not seen.

    There is one label, so truth and adjudicated are the same; ``category`` is the source. A sample
    is a question with two answers or more; answer pairs are ordered by their lexicographic scores.
    """
    import pandas as pd

    data = RunData.load(run)
    splits = {row.split for row in data.splits}
    held = [
        g
        for split in ("bench", "external")
        if split in splits
        for g in groups_of(data, "judge", split)
    ]
    held = [replace(g, candidates=tuple(g.judged)) for g in held if len(g.judged) > 1]
    source = {g.instruction.id: g.instruction.source for g in held}
    asked = [g.instruction.model_copy(update={"category": source[g.instruction.id]}) for g in held]
    samples, criteria = benches.from_records(asked, data.splits, data.rubrics, frozenset())
    of = criteria.set_index("criterion_id")[["dimension", "kind", "seen"]].to_dict("index")
    said = ["truth", "physician_1", "physician_2", "adjudicated"]
    verdicts = [
        {"candidate_id": a.id, "criterion_id": c.id, "instruction_id": g.instruction.id}
        | dict.fromkeys(said, g.verdicts[a.id, c.id])
        for g in held
        for a in g.candidates
        for c in g.criteria
    ]
    pairs = [
        pair.model_dump() | of[pair.criterion_id] | {"truth": "same"}
        for g in held
        for pair in criterion_pairs(g)
    ]
    grades = [
        {"instruction_id": g.instruction.id, "a_id": chosen, "b_id": rejected}
        | dict.fromkeys(said, 1)
        for g in held
        for chosen, rejected in preferences(g)
    ]
    pairs = pd.DataFrame(pairs)
    by_source = pairs.instruction_id.map(source).value_counts().sort_index()
    report = {
        "samples": len(samples),
        "conditions": int(samples.condition.nunique()),
        "pairs_by_source": {k: int(v) for k, v in by_source.items()},
        "pairs_by_dimension": {d: int((pairs.dimension == d).sum()) for d in records.DIMENSIONS},
        "answer_pairs": len(grades),
        "blind_ceiling": round(benches.blind_ceiling(pairs), 4),
        "note": "K-QA and MEDIQA have no safety verdicts: veto not testable in this profile. In "
        "K-QA "
        "the physician's answer is the chosen one of every pair, so style alone can tell."
        if profile.data == "real"
        else "The labels are the judge's own, so this bench says how well its verdicts are "
        "learned, and "
        "nothing of how right they are.",
    }
    made = benches.Bench(
        samples, criteria, pd.DataFrame(verdicts), pairs, pd.DataFrame(grades), report
    )
    report["not_run"] = _predict(profile, run, data, held, made.criteria)
    made.save(run / "bench")
    return report
