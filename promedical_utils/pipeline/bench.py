"""Notebook 04: the bench, adjudicated double-blind, and every scorer's predictions on it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from promedical_utils import clinic
from promedical_utils.clinic import generators, people
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import DIMENSIONS
from promedical_utils.core.run_data import RunData, untaught_path
from promedical_utils.core.workspace import KitError, short_hash, write_rows
from promedical_utils.data.sources import real_sets
from promedical_utils.evaluation import bench as benches
from promedical_utils.evaluation import scorers
from promedical_utils.evaluation.bench import Bench
from promedical_utils.evaluation.scorers import controls as plain
from promedical_utils.evaluation.scorers import roster
from promedical_utils.pipeline.reward_models import as_read
from promedical_utils.reward_model.variants import find
from promedical_utils.rubric import scoring
from promedical_utils.rubric.preferences import Group, groups_of

ANSWERS = 4  # of a question, at most: LostBench has sixteen of each
# What a bench of labels that a source gives cannot say
NOTES = {
    "real": "The labels are each source's own: physicians, annotators, a language model, or made "
    "by construction. In K-QA the physician's answer is the chosen one of every pair.",
    "own": "The labels are those of the data that were brought.",
    "open": "The labels are the judge's own, so this bench says how well its verdicts are "
    "learned, and nothing of how right they are.",
}


def make_bench(profile: Profile, run: Path) -> dict:
    """Compose the bench and let every scorer predict on it; writes bench/."""
    from promedical_utils.reward_model import model as reward_model  # loads torch

    data = RunData.load(run)
    if profile.data == "clinic":
        bench, rich, groups = compose_benches(profile, data)
        rich.save(run / "bench/rich")
        benches.save_judged(run / "bench", bench, data.verdicts)
    else:
        bench, groups = labelled_bench(profile, data)
    predicted = controls(profile, run, data, groups)
    for name in profile.rm_arms:
        rm, recipe = reward_model.load(run / "reward" / name), find(name)
        # of swapped criteria the text may be longer than what answers were cut for
        scores = rm.score_groups(as_read(recipe, data, groups), shorten=recipe.swapped)
        predicted.append(benches.predictions(name, scores, bench.criteria, rm.calibration))
        if name == "criterion":
            predicted += ruled(predicted[-1], groups)
    scored, preferred, left_out = roster.predict(roster.others(profile, run), groups)
    write_rows(run / "bench/predictions.parquet", pd.concat(predicted + scored, ignore_index=True))
    compared = run / "bench/preferences.parquet"
    compared.unlink(missing_ok=True)  # of an earlier run, with other scorers
    if preferred:
        write_rows(compared, pd.concat(preferred, ignore_index=True))
    for name, why in left_out.items():
        print(f"not run: {name}: {why}")
    bench.report["not_run"] = left_out
    bench.save(run / "bench")
    return bench.report


def compose_benches(profile: Profile, data: RunData) -> tuple[Bench, Bench, list[Group]]:
    """The clinic's bench, adjudicated double-blind; the safety-rich one of the same samples, with
    the careless generator's answers beside the others'; their groups with the true verdicts."""
    groups = groups_of(data, "truth", "bench")
    panel = people.Panel(profile.physician_agreement, profile.seed)
    about = (data.condition_of, clinic.UNSEEN_KINDS, panel, profile)
    usual = []
    for group in groups:
        others = (a for a in group.candidates if a.generator != generators.CARELESS)
        usual.append(replace(group, candidates=tuple(others)))
    bench = benches.compose(usual, *about)
    chosen = set(bench.samples.instruction_id)
    groups = [g for g in groups if g.instruction.id in chosen]
    rich = benches.compose(groups, *about, rich=True)
    bench.report["blind_ceiling"] = round(benches.blind_ceiling(bench.pairs), 4)
    return bench, rich, groups


def labelled_bench(profile: Profile, data: RunData) -> tuple[Bench, list[Group]]:
    """Held-out questions of the real sources, and external ones, with the labels these give; of
    open sets the held-out split with the judge's labels, which physicians have not seen.

    There is one label, so truth and adjudicated are the same; ``category`` is the source. A sample
    is a question with two judged answers or more, ``bench_samples`` a source at most and
    ``ANSWERS`` of each, drawn by their ids. Labels that were constructed test nothing, and are not
    among them. Answer pairs are ordered by their lexicographic scores.
    """
    judged = groups_of(data, "judge", "bench", "external")
    groups, drawn, left_out = [], Counter(), 0
    for group in sorted(judged, key=lambda g: short_hash("bench", g.instruction.id)):
        source = group.instruction.source
        if real_sets.LABELS.get(source) == "constructed":
            continue
        answers = sorted(group.judged, key=lambda a: short_hash("bench", a.id))
        kept = answers[:ANSWERS] if drawn[source] < profile.bench_samples else []
        left_out += len(answers) - len(kept)
        if len(kept) > 1:
            drawn[source] += 1
            groups.append(replace(group, candidates=tuple(kept)))
    asked = [g.instruction for g in groups]
    samples, criteria = benches.from_records(asked, data.condition_of, data.rubrics, frozenset())
    samples["category"] = [instruction.source for instruction in asked]
    bench = benches.of_labels(groups, samples, criteria)
    if (made := bench.pairs).empty:
        raise KitError("bench: no two answers differ on a criterion; judge more of them")
    source_of = samples.set_index("instruction_id").category
    by_source = made.instruction_id.map(source_of).value_counts().sort_index()
    report = {
        "samples": len(samples),
        "conditions": int(samples.condition.nunique()),
        "pairs_by_source": by_source.to_dict(),
        "pairs_by_dimension": {d: int((made.dimension == d).sum()) for d in DIMENSIONS},
        "answer_pairs": len(bench.grades),
        "answers_left_out": left_out,
        "note": NOTES[profile.data],
    }
    return replace(bench, report=bench.report | report), groups


def controls(profile: Profile, run: Path, data: RunData, groups: Sequence[Group]) -> list:
    """Predictions of scorers that have learned nothing or next to nothing, first those that are
    shown the criterion."""
    train, held = (groups_of(data, "judge", split) for split in ("train", "calibration"))
    vectors = plain.embedded(untaught_path(profile, run), train, held, groups)
    of_name = {"near_words": plain.near_words, "embeddings": plain.embeddings(vectors)}
    of_name["criterion_only"] = plain.criterion_only
    return [
        *(plain.learned(n, of, train, held, groups, profile.seed) for n, of in of_name.items()),
        plain.overlap(groups),
        plain.similarity(groups, vectors),
        benches.length_scorer(groups),
        plain.always("always_met", True, groups),
        plain.always("always_veto", False, groups),
        plain.chance(groups, profile.seed),
    ]


def ruled(predicted: pd.DataFrame, groups: Sequence[Group]) -> list[pd.DataFrame]:
    """Predictions of every additive rule over those of a pointwise scorer, and of the hierarchy
    with another safety threshold or none."""
    names = (*scoring.RULES, *scorers.HIERARCHIES)
    return [scorers.scored_by_rule(name, predicted, groups) for name in names]
