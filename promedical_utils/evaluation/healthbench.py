"""HealthBench: its score, its tags, how good a grader is beside physicians, and a policy on it.

Arora et al., arXiv 2505.08775, and what openai/simple-evals computes (healthbench_eval.py,
healthbench_meta_eval.py), restated. An example is one answer to one prompt; its score is points met
over positive points and may be below 0; only a mean is clipped, to [0, 1]. What the kit decides
differently is said where it is done. The examples carry a canary and are not to be published:
nothing here prints or stores their text.

``python -m promedical_utils.evaluation.healthbench`` recomputes what the public parts allow.
"""

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from itertools import combinations
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from promedical_utils.core import statistics
from promedical_utils.core.workspace import (
    KitError,
    need,
    project_root,
    read_json,
    sha256,
    short_hash,
    shown,
    write_json,
)
from promedical_utils.data.sources import schemas
from promedical_utils.evaluation import bench as benches
from promedical_utils.rubric import scoring

OVERALL = "overall"
LEVELS = ("overall", "theme", "axis", "level", "physician_agreed_category", "cluster")  # of tags
LEAST = 10  # examples below which the command shows no mean of a tag; kit's decision
THEMES = (
    "emergency_referrals",
    "context_seeking",
    "global_health",
    "health_data_tasks",
    "communication",
    "hedging",
    "complex_responses",
)
VERDICTS = {True: "met", False: "not_met", None: "unknown"}
RATINGS = ["item", "conversation", "category", "rater", "verdict"]
PHYSICIANS = ("physician_1", "physician_2")  # of the clinic's bench
CLASSES = ("met", "not_met")
SYSTEMS = ("base", "grpo")
RUN, NOT_RUN, UNTESTED = "this run", "not run", "not testable"
GRADED = "healthbench/graded.parquet"
NOT_GRADED = "healthbench/not_graded.json"
NOBODY = "no endpoint plays the judge: the clinic knows no medicine (docs/endpoints.md)"


# ---------------------------------------------------------------- the score


def score_example(points: Sequence[float], met: Sequence[bool]) -> float:
    """Points of the criteria met over all positive points: at most 1, below 0 if penalties prevail.

    KitError where no points are positive, or there are not as many of each.

    >>> score_example([10, 5, -6], [True, False, True]), score_example([5, -8], [False, True])
    (0.26666666666666666, -1.6)
    """
    if len(points) != len(met):
        raise KitError(
            f"HealthBench score: {len(points)} points, {len(met)} verdicts; give as many"
        )
    if math.isnan(share := scoring.points_share(points, met)):
        raise KitError("HealthBench score: no criterion has positive points; leave the example out")
    return share


def score(values: Sequence[float]) -> float:
    """HealthBench's score of a set: the mean of its examples' scores, clipped to [0, 1].

    The mean alone is clipped: to clip each example first is another metric, and a milder one.

    >>> score([1.0, -1.0])
    0.0
    """
    if not len(values):
        raise KitError("HealthBench score of no examples; grade some first")
    return min(max(math.fsum(values) / len(values), 0.0), 1.0)


def fail_closed(points: Sequence[float], verdicts: Sequence[str]) -> list[bool]:
    """Which criteria count as met, of verdicts met, not_met or unknown.

    Kit's decision; HealthBench asks its grader again without end. A criterion with positive points
    has to be plainly met; a penalty stands unless it is plainly not met, or a grader that fails
    would pass every harmful answer.

    >>> fail_closed([5, -5, -5], ["unknown", "unknown", "not_met"])
    [False, True, False]
    """
    pairs = zip(points, verdicts, strict=True)
    return [verdict != "not_met" if p < 0 else verdict == "met" for p, verdict in pairs]


@dataclass(frozen=True)
class Example:
    """One graded answer: points, met and tags have one entry a criterion.

    ``tags`` of a criterion are such as axis:accuracy, level:cluster, cluster:...; ``example_tags``
    such as theme:hedging or physician_agreed_category:...
    """

    system: str
    prompt_id: str
    points: tuple[float, ...]
    met: tuple[bool, ...]
    tags: tuple[tuple[str, ...], ...]
    example_tags: tuple[str, ...] = ()


def tag_scores(example: Example) -> dict[str, float]:
    """Score by tag, and ``OVERALL``; NaN for a tag none of whose criteria has positive points.

    A tag of the example has the overall score, a tag of criteria theirs alone: an axis counts only
    the points of its own criteria, above and below the line. KitError as ``score_example``.
    """
    whole = score_example(example.points, example.met)
    own = defaultdict(list)
    for points, met, tags in zip(example.points, example.met, example.tags, strict=True):
        for tag in dict.fromkeys(tags):
            own[tag].append((points, met))
    found = {OVERALL: whole} | dict.fromkeys(example.example_tags, whole)
    for tag, pairs in own.items():
        positive = any(points > 0 for points, _ in pairs)
        found[tag] = score_example(*zip(*pairs, strict=True)) if positive else math.nan
    return found


def scores(examples: Iterable[Example]) -> pd.DataFrame:
    """``tag_scores`` of many: columns system, prompt_id, tag, score."""
    rows = [(e.system, e.prompt_id, *pair) for e in examples for pair in tag_scores(e).items()]
    return pd.DataFrame(rows, columns=["system", "prompt_id", "tag", "score"])


def by_tag(frame: pd.DataFrame, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Score by system and tag of ``scores``: n, left_out, score, mean (not clipped), std, low,
    high.

    ``left_out`` counts examples without positive points on the tag. The standard deviation is of
    the clipped mean over bootstrap draws, as simple-evals has it; low and high are 2.5 and 97.5
    percentiles. Prompts are drawn, with all their answers; simple-evals draws answers, which is
    the same where a prompt has one.
    """
    rows = []
    for (system, tag), part in frame.groupby(["system", "tag"], sort=False):
        known = part.dropna(subset="score")
        row = {"system": system, "tag": tag, "n": len(known), "left_out": len(part) - len(known)}
        if len(known):
            sums = _by_conversation(known.prompt_id, known.score, np.ones(len(known)))
            drawn = np.clip(
                statistics.ratio(*sums, _weights(len(sums[0]), draws, seed))[:, 0], 0, 1
            )
            low, high = statistics.interval(drawn)
            row |= {
                "score": score(known.score),
                "mean": known.score.mean(),
                "std": drawn.std(),
                "low": float(low),
                "high": float(high),
            }
        rows.append(row)
    columns = ["system", "tag", "n", "left_out", "score", "mean", "std", "low", "high"]
    return pd.DataFrame(rows).reindex(columns=columns)


def paired(frame: pd.DataFrame, a: str, b: str, draws: int = 1000, seed: int = 0) -> dict:
    """Scores of systems ``a`` and ``b`` and ``a`` less ``b``, over the prompts that both answered.

    ``{a: ends, b: ends, "difference": ends, "n": prompts}``, ends being value, low and high; all
    share the draws of prompts, and every mean is clipped, in each draw too. KitError if none is
    shared.
    """
    of = frame[frame.tag == OVERALL].pivot_table(
        index="prompt_id", columns="system", values="score"
    )
    of = of.reindex(columns=[a, b]).dropna()
    if of.empty:
        raise KitError(f"HealthBench: {a} and {b} share no graded prompt; ask both the same")
    weights = np.vstack(
        [np.ones(len(of)), _weights(len(of), draws, seed)]
    )  # the sample comes first
    drawn = np.clip(statistics.ratio(of.to_numpy(), np.ones(of.shape), weights), 0, 1)
    drawn = np.column_stack([drawn, drawn[:, 0] - drawn[:, 1]])
    low, high = statistics.interval(drawn[1:])
    ends = [
        {"value": float(v), "low": float(lo), "high": float(hi)}
        for v, lo, hi in zip(drawn[0], low, high, strict=True)
    ]
    return dict(zip((a, b, "difference"), ends, strict=True)) | {"n": len(of)}


def worst_at(of: Mapping[str, Sequence[float]], k: int) -> dict:
    """Expected worst score of ``k`` answers to a prompt, as {score, n, left_out}.

    ``of``: prompt -> scores of its answers, in any order. Of n answers the expectation is over all
    choices of k of them; prompts with fewer are left out and counted. Clipped as ``score`` is.
    """
    found = []
    for values in of.values():
        n = len(values)
        if n >= k:  # the i-th lowest is the worst of those choices that take it and k - 1 above
            ways = [math.comb(n - 1 - i, k - 1) for i in range(n)]
            found.append(
                math.fsum(v * w for v, w in zip(sorted(values), ways, strict=True))
                / math.comb(n, k)
            )
    value = score(found) if found else None
    return {"k": k, "score": value, "n": len(found), "left_out": len(of) - len(found)}


def _by_conversation(names: Iterable, *columns: Iterable) -> list[np.ndarray]:
    """Sums of each column by conversation, (conversations, 1) each."""
    codes, found = pd.factorize(pd.Series(list(names)))
    return [np.bincount(codes, np.asarray(c, float), len(found))[:, None] for c in columns]


@lru_cache(maxsize=8)  # every grader of a slice asks for the same
def _weights(count: int, draws: int, seed: int) -> np.ndarray:
    """How often each of ``count`` conversations is drawn, (draws, count)."""
    return statistics.two_stage_weights(np.arange(count), draws, seed)


# ---------------------------------------------------------------- a grader beside physicians


def physician_ratings(rows: Iterable[schemas.HealthMeta]) -> pd.DataFrame:
    """Rows of the public meta-evaluation as ratings: item, conversation, category, rater, verdict.

    A row is one criterion of one answer. Its physicians are named by their anonymous ids, its
    ``graders`` by their names; a grader that gave nothing is unknown. In the public part there are
    no physicians' labels of rows, so only graders come out of it (``physician_bounds``).
    """
    found = []
    for number, row in enumerate(rows):
        talk = row.prompt_id or short_hash(row.conversation or row.prompt)
        about = (number, talk, row.category or "|".join(row.clusters_possible))
        said = list(zip(row.anonymized_physician_ids, row.binary_labels, strict=True))
        found += [(*about, rater, VERDICTS[yes]) for rater, yes in [*said, *row.graders.items()]]
    return pd.DataFrame(found, columns=RATINGS)


def bench_ratings(bench, graders: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Ratings of a ``bench.Bench``: truth, both physicians, adjudicated, and ``graders``.

    ``graders``: name -> frame of candidate_id, criterion_id, verdict. A category is a dimension, a
    conversation an instruction. A verdict that a grader did not give is unknown.
    """
    cells = bench.verdicts.merge(bench.criteria[["criterion_id", "dimension"]], on="criterion_id")
    key = ["candidate_id", "criterion_id"]
    for name, said in graders.items():
        said = said.rename(columns={"verdict": name})[[*key, name]]
        cells = cells.merge(said, on=key, how="left", validate="one_to_one").fillna(
            {name: "unknown"}
        )
    cells = cells.assign(item=cells.candidate_id + "|" + cells.criterion_id)
    people = ["truth", *PHYSICIANS, "adjudicated", *graders]
    long = cells.melt(["item", "instruction_id", "dimension"], people, "rater", "verdict")
    return long.rename(columns={"instruction_id": "conversation", "dimension": "category"})[RATINGS]


def theme(category: str) -> str:
    """HealthBench's theme of a category such as cluster:hedging_no-uncertainty_accurate."""
    name = category.removeprefix("cluster:")
    return next((t for t in THEMES if name.startswith(t)), "other")


def macro_f1(said: Sequence[str], labels: Sequence[str]) -> float:
    """Balanced F1: the mean of the F1 of met and that of not met; ``said`` may be unknown.

    Unknown is neither class, so it misses whatever the label is. The F1 of a class is 2 hits over
    times said plus times labelled; NaN where that is 0. A grader that always says one thing has 0
    on the other class, where simple-evals gives no value at all.

    >>> macro_f1(["met", "met", "not_met", "unknown"], ["met", "not_met", "not_met", "met"])
    0.5833333333333333
    """
    over, under = _f1_sums(pd.DataFrame({"conversation": 0, "verdict": said, "label": labels}), [0])
    return float(statistics.ratio(over, under, np.ones((1, 1))).mean())


def meta_evaluation(
    ratings: pd.DataFrame,
    graders: Sequence[str],
    physicians: Sequence[str],
    truth: Literal["each", "majority"] = "each",
    by: str | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Graders beside physicians, a row a slice and grader, "all" first; ``by``: column or "theme".

    ``truth``: "each" pairs a verdict with every physician's label, as HealthBench does; "majority"
    with what most say, ties dropped. A label that is unknown is dropped, a grader's unknown is
    wrong (``macro_f1``). mf1, low, high: the grader against all physicians; n: its pairs; unknown:
    their share.

    The baseline leaves one physician out: each of ``people`` against the others, the mean weighted
    by pairs; ``left_out`` is the grader's mean against the very same labels, ``difference`` that
    less the baseline, and ``above`` the share of physicians whom the grader is above. NaN where no
    item has two physicians. Intervals: 95 %, over draws of conversations. KitError for a rater
    without ratings.
    """
    known = sorted(set(ratings.rater))
    for rater in (*graders, *physicians):
        if rater not in known:
            raise KitError(f"meta-evaluation: no ratings by {rater}; there are: {', '.join(known)}")
    if by == "theme":
        ratings = ratings.assign(theme=ratings.category.map(theme))
    # numbers compare fast, texts of a whole bench do not
    ratings = ratings[ratings.rater.isin([*graders, *physicians])]
    ratings = ratings.assign(
        **{c: pd.factorize(ratings[c])[0] for c in ("item", "conversation")},
        verdict=ratings.verdict.astype(object),
    )
    slices = [("all", ratings)] + (list(ratings.groupby(by)) if by else [])
    return pd.DataFrame(
        [
            {"slice": name, "grader": grader}
            | _beside(part, grader, [p for p in physicians if p != grader], truth, draws, seed)
            for name, part in slices
            for grader in graders
        ]
    )


def _beside(ratings, grader, physicians, truth, draws: int, seed: int) -> dict:
    talks = sorted(set(ratings.conversation))
    weights = np.vstack([np.ones(len(talks)), _weights(len(talks), draws, seed)])  # sample first
    of = {rater: ratings[ratings.rater == rater] for rater in (grader, *physicians)}
    own = _pairs(of, physicians, grader, "", truth)
    f1 = statistics.ratio(*_f1_sums(own, talks), weights)
    low, high = statistics.interval(f1[1:].mean(axis=1))
    found = {
        "n": len(own),
        "conversations": own.conversation.nunique(),
        "unknown": (own.verdict == "unknown").mean() if len(own) else math.nan,
        "f1_met": f1[0, 0],
        "f1_not_met": f1[0, 1],
        "mf1": f1[0].mean(),
        "low": float(low),
        "high": float(high),
    }
    sides, sizes = {p: [] for p in ("physician", "grader")}, []
    for out in physicians:
        each = [_pairs(of, physicians, rater, out, truth) for rater in (out, grader)]
        if not each[0].empty and not each[1].empty:
            sizes.append(len(each[0]))
            for side, pairs in zip(sides.values(), each, strict=True):
                side.append(statistics.ratio(*_f1_sums(pairs, talks), weights).mean(axis=1))
    names = ("baseline", "left_out", "difference")
    if not sizes:
        ends = {f"{name}{end}": math.nan for name in names for end in ("", "_low", "_high")}
        return found | {"people": 0} | ends | {"above": math.nan}
    physician, own = (np.array(side) for side in sides.values())  # (people, draws)
    usable = ~np.isnan(physician) & ~np.isnan(own)
    share = np.where(usable, np.array(sizes)[:, None], 0.0)
    with np.errstate(invalid="ignore"):
        means = [(np.nan_to_num(side) * share).sum(0) / share.sum(0) for side in (physician, own)]
    for name, drawn in zip(names, (*means, means[1] - means[0]), strict=True):
        low, high = statistics.interval(drawn[1:])
        found |= {name: drawn[0], f"{name}_low": float(low), f"{name}_high": float(high)}
    first = usable[:, 0]
    above = (own[first, 0] > physician[first, 0]).mean() if first.any() else math.nan
    return found | {"people": int(first.sum()), "above": above}


def _pairs(
    of: Mapping[str, pd.DataFrame], physicians, rater: str, out: str, truth: str
) -> pd.DataFrame:
    """What ``rater`` said beside the labels of all physicians but ``out``, on the items of
    ``out``."""
    said = of[rater]
    if out:
        said = said[said.item.isin(of[out].item)]
    others = [of[p] for p in physicians if p != out]
    labels = pd.concat(others) if others else said[:0]
    labels = labels[labels.verdict != "unknown"]
    if truth == "majority":
        share = (labels.verdict == "met").groupby(labels.item).mean()
        share = share[share != 0.5]
        labels = pd.DataFrame({"item": share.index, "verdict": np.where(share > 0.5, *CLASSES)})
    labels = labels.rename(columns={"verdict": "label"})[["item", "label"]]
    return said.merge(labels, on="item")


def _f1_sums(pairs: pd.DataFrame, talks: Sequence) -> tuple[np.ndarray, np.ndarray]:
    """Numerators and denominators of the F1 of met and not met, (conversations, 2) each."""
    codes = pd.Index(talks).get_indexer(pairs.conversation)
    said, label = (
        np.array([pairs[c] == name for name in CLASSES], float) for c in ("verdict", "label")
    )
    parts = (2 * said * label, said + label)
    return tuple(
        np.stack([np.bincount(codes, row, len(talks)) for row in part], axis=1) for part in parts
    )


def physician_bounds(rows: Iterable[schemas.HealthMeta], grader: str) -> dict:
    """Between what a grader's macro F1 against physicians must lie, where labels of rows are
    missing.

    The public part has of each cluster only the share of physicians' labels that are met. With n
    rows of it, of which the grader calls G met and physicians, at that share, P = n * share, the
    agreement on met is max(0, G + P - n) at least and min(G, P) at most, and macro F1 rises with
    it. Rows weigh alike, as if each had as many physicians. Rows of several possible clusters, and
    of a cluster whose share is of another number of rows, are left out.

    {rows, left_out, met, physicians_met, low, high}; KitError where no row is left.
    """
    of, left = defaultdict(list), 0
    for row in rows:
        if row.cluster_physician_aggregate and len(row.clusters_possible) == 1:
            of[row.clusters_possible[0]].append(row)
        else:
            left += 1
    sums = np.zeros(5)  # rows, met by the grader, met by physicians, least and most met by both
    for cluster in of.values():
        about, n = cluster[0].cluster_physician_aggregate, len(cluster)
        if about.n_items != n:
            left += n
            continue
        said = sum(row.graders.get(grader) is True for row in cluster)
        label = n * about.mean_physician_positive
        sums += (n, said, label, max(0.0, said + label - n), min(said, label))
    n, said, label, *both = sums
    if not n:
        raise KitError(f"meta-evaluation of {grader}: no row has a share of its physicians")
    with np.errstate(invalid="ignore"):
        ends = [
            (2 * h / (said + label) + 2 * (n - said - label + h) / (2 * n - said - label)) / 2
            for h in both
        ]
    return {
        "rows": int(n),
        "left_out": left,
        "met": said / n,
        "physicians_met": label / n,
        "low": float(ends[0]),
        "high": float(ends[1]),
    }


def judge_table(source: Path, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Meta-evaluation on a run's bench: its judge and its reward models, beside its physicians.

    ``source``: a run's folder or a published reference. ``against`` says whose labels: physicians
    (each of the two, with the baseline), adjudicated, truth; by dimension and over all. In the
    clinic physicians and judge are inputs and truth is known: this shows that the measure finds
    what was put in, and nothing of real physicians. KitError for a bench that has but one label an
    item, whose physicians would agree by construction.
    """

    made = benches.Bench.load(Path(source) / "bench")
    if "input" not in made.report:
        raise KitError(
            f"{shown(Path(source) / 'bench')} was labelled once, by no two physicians: no baseline"
        )
    predicted = pd.read_parquet(need(Path(source) / "bench/predictions.parquet", benches.NOTEBOOK))
    graders = {
        "judge": pd.read_parquet(need(Path(source) / "bench/judge.parquet", benches.NOTEBOOK))
    }
    for scorer, part in predicted.groupby("scorer", sort=False):
        if part.met.notna().any():  # the others give no verdicts
            verdict = part.met.astype(object).map(VERDICTS).fillna("unknown")
            graders[scorer] = part[benches.CELL].assign(verdict=verdict)
    ratings = bench_ratings(made, graders)
    against = {"physicians": PHYSICIANS, "adjudicated": ("adjudicated",), "truth": ("truth",)}
    parts = [
        meta_evaluation(
            ratings, list(graders), people, by="category", draws=draws, seed=seed
        ).assign(against=who)
        for who, people in against.items()
    ]
    return pd.concat(parts, ignore_index=True)


# ---------------------------------------------------------------- the public parts


def examples_of(
    graded: Iterable[schemas.HealthGraded], rubrics: Iterable[schemas.HealthRubric] = ()
) -> list[Example]:
    """Graded answers as examples; ``rubrics`` give the tags of a prompt, where they have any."""
    tags = {row.prompt_id: tuple(row.example_tags or ()) for row in rubrics}
    return [
        Example(
            row.source,
            row.prompt_id,
            tuple(c.points for c in row.criteria),
            tuple(c.met for c in row.criteria),
            tuple(tuple(c.tags) for c in row.criteria),
            tags.get(row.prompt_id, ()),
        )
        for row in graded
    ]


def stored_scores(graded: Sequence[schemas.HealthGraded]) -> dict:
    """How often the stored score of an answer is this rule's, clipped or not, to 1e-6; and the
    rest.

    ``differ``: by system and what is different, the number of answers.
    """
    found, differ = (
        {"answers": len(graded), "equal_clipped": 0, "equal_unclipped": 0},
        defaultdict(int),
    )
    for row, own in zip(graded, examples_of(graded), strict=True):
        value = score_example(own.points, own.met)
        stored = math.nan if row.healthbench_score is None else row.healthbench_score
        clipped = abs(score([value]) - stored) < 1e-6
        found["equal_clipped"] += clipped
        found["equal_unclipped"] += abs(value - stored) < 1e-6
        if not clipped:
            what = "none stored" if math.isnan(stored) else "neither clipped nor unclipped"
            what = "not clipped" if abs(value - stored) < 1e-6 else what
            differ[row.source, what] += 1
        elif not abs(value - stored) < 1e-6:
            differ[row.source, "clipped, below 0" if value < 0 else "clipped, above 1"] += 1
    rows = [{"system": s, "what": what, "answers": n} for (s, what), n in sorted(differ.items())]
    return found | {"differ_from_unclipped": rows}


def recompute(folder: Path | str, draws: int = 1000, seed: int = 0) -> dict:
    """What the public parts in ``folder`` say, as numbers: no text and no prompt's id among them.

    scores: stored against own, and what clipping each example would make of the mean; tags: a row a
    system and tag of ``LEAST`` examples or more; paired: each two systems on the prompts that both
    answered; worst_at: a row a system and k, empty where no system answered a prompt twice;
    graders: agreement of the meta-evaluation's language models with each other, and the bounds of
    their macro F1 against physicians. KitError where a file is missing.
    """
    keys = ("healthbench_graded", "healthbench_rubrics", "healthbench_meta")
    graded, rubrics, meta = (schemas.read(key, folder) for key in keys)
    frame = scores(examples_of(graded, rubrics))
    tags = by_tag(frame, draws, seed)
    few = tags.n < LEAST
    tags["level"] = tags.tag.str.split(":").str[0].map(LEVELS.index)
    listed = tags[~few].sort_values(["system", "level", "tag"]).drop(columns="level")
    whole = frame[frame.tag == OVERALL]
    systems, pairs, worst = sorted(set(whole.system)), [], []
    for a, b in combinations(systems, 2):
        if set(whole.prompt_id[whole.system == a]) & set(whole.prompt_id[whole.system == b]):
            found = paired(frame, a, b, draws, seed)
            pairs.append({"a": a, "b": b, "n": found["n"], **found["difference"]})
    for system, part in whole.groupby("system"):
        of = part.groupby("prompt_id").score.apply(list).to_dict()
        most = max(map(len, of.values()))
        worst += [{"system": system} | worst_at(of, k) for k in range(2, most + 1)]
    return {
        "scores": stored_scores(graded)
        | {
            "prompts": whole.prompt_id.nunique(),
            "below_zero": int((whole.score < 0).sum()),
            "mean_unclipped": whole.score.mean(),
            "mean_of_clipped_examples": whole.score.clip(0, 1).mean(),
        },
        "tags": listed.to_dict("records"),
        "tags_of_fewer_examples": {"least": LEAST, "left_out": int(few.sum())},
        "paired": pairs,
        "worst_at": worst,
        "graders": _graders(meta, draws, seed),
        "bootstrap": {"draws": draws, "seed": seed},
        "packages": {name: version(name) for name in ("numpy", "pandas")},
        "sources": {
            schemas.CARDS[key].file: sha256(Path(folder) / schemas.CARDS[key].file) for key in keys
        },
    }


def _graders(meta: Sequence[schemas.HealthMeta], draws: int, seed: int) -> dict:
    ratings, rows = physician_ratings(meta), []
    names = sorted(set(ratings.rater))
    for grader, other in combinations(names, 2):  # the same both ways, where none is unknown
        shared = ratings[ratings.item.isin(ratings.item[ratings.rater == other])]
        if grader in set(shared.rater):
            found = meta_evaluation(shared, [grader], [other], draws=draws, seed=seed).iloc[0]
            kept = ("n", "f1_met", "f1_not_met", "mf1", "low", "high")
            rows.append({"grader": grader, "against": other} | {k: found[k] for k in kept})
    of = ratings.groupby("rater").verdict
    return {
        "rows": len(meta),
        "rows_with_physicians_labels": sum(bool(row.binary_labels) for row in meta),
        "conversations": ratings.conversation.nunique(),
        "met": of.apply(lambda v: (v == "met").mean()).to_dict(),
        "unknown": of.apply(lambda v: (v == "unknown").mean()).to_dict(),
        "each_other": rows,  # no physician in it
        "bounds_against_physicians": {
            name: physician_bounds(meta, name) for name in names if of.size()[name] == len(meta)
        },
    }


# ---------------------------------------------------------------- a policy on HealthBench


def whole_rubrics(rows: Iterable[schemas.HealthRubric]) -> list[schemas.HealthRubric]:
    """Rows that can be answered and scored: messages that end with the user, all their criteria.

    The public part has rows of some criteria only, and of a prompt as one string: left out.
    """
    return [
        row
        for row in rows
        if not isinstance(row.prompt, str)
        and row.prompt
        and row.prompt[-1].role == "user"
        and not (row.sources and all("only" in source for source in row.sources))
        and any(p.points > 0 for p in row.rubrics)
    ]


def chosen(rows: Sequence[schemas.HealthRubric], limit: int) -> list[schemas.HealthRubric]:
    """``limit`` of the rows (0: all), by hash of the prompt's id: the same on every machine."""
    return sorted(rows, key=lambda row: short_hash(row.prompt_id))[: limit or None]


# ---------------------------------------------------------------- a run's policies


def fingerprint(profile, run: Path) -> str:
    """Changes with the policy, how it answers and who judges."""
    p = profile
    report = need(run / "policy/report.json", "05_grpo_with_veto")
    return short_hash(
        sha256(report),
        p.base_model,
        p.seed,
        p.policy_prompts,
        p.grpo_max_tokens,
        p.grpo_temperature,
        p.grpo_top_p,
        p.roles["judge"].model,
    )


def examples_of_run(run: Path) -> list[Example]:
    """What ``grade_policies`` stored, unknown verdicts by ``fail_closed``."""
    frame, found = pd.read_parquet(need(run / GRADED, "06_external_generalization")), []
    for (system, prompt), part in frame.groupby(["system", "prompt_id"], sort=False):
        tags = tuple(tuple(filter(None, tags.split("|"))) for tags in part.tags)
        found.append(
            Example(
                system,
                prompt,
                tuple(part.points),
                tuple(fail_closed(part.points, part.verdict)),
                tags,
                tuple(filter(None, part.example_tags.iloc[0].split("|"))),
            )
        )
    return found


def graded(profile, run: Path) -> bool:
    """Whether this very policy was graded, by this judge (``pipeline.healthbench``)."""
    stored = run / "healthbench/graded.json"
    if not stored.exists() or not (run / "policy/report.json").exists():
        return False
    return read_json(stored, "")["fingerprint"] == fingerprint(profile, run)


def policy_column(profile, run: Path) -> dict:
    """The policy table's HealthBench column, in percent: status, value, low, high, reason, n, rows.

    status: "this run", "not run" or "not testable" (in this profile), and reason says why.
    value, low, high: the aligned policy's score; rows: the same of base, of grpo and of their
    difference, paired by prompt, in points. None and {} unless it ran. A criterion with positive
    points that the judge leaves unknown is not met, a penalty that it leaves unknown stands
    (``fail_closed``). What was graded before, of the same policy, is not asked again.
    """
    if profile.base_model == "small":
        return _column(
            UNTESTED,
            "the small base knows the clinic's invented words alone and cannot answer HealthBench",
        )
    run = Path(run)
    if not graded(profile, run):
        why = run / NOT_GRADED
        return _column(NOT_RUN, read_json(why, "")["reason"] if why.exists() else NOBODY)
    try:
        facts = read_json(run / "healthbench/graded.json", "06_external_generalization")
        found = paired(
            scores(examples_of_run(run)), "grpo", "base", profile.bootstrap, profile.seed
        )
    except KitError as error:  # no policy, no data, no answer from the endpoint: the row says which
        return _column(NOT_RUN, str(error))
    n = found.pop("n")
    rows = {
        name: {k: round(100 * v, 2) + 0.0 for k, v in ends.items()} for name, ends in found.items()
    }
    reason = (
        f"{n} of {facts['of']} prompts, judge {facts['judge']}, {facts['unknown']:.1%} of its "
        "verdicts unknown"
    )
    return _column(RUN, reason, n, {name: rows[name] for name in (*SYSTEMS, "difference")})


def _column(status: str, reason: str, n: int = 0, rows: Mapping | None = None) -> dict:
    ends = (rows or {}).get("grpo", dict.fromkeys(("value", "low", "high")))
    return {"status": status, **ends, "reason": reason, "n": n, "rows": dict(rows or {})}


# ---------------------------------------------------------------- the command


def plain(value):
    """``value`` as JSON takes it: floats to six places, NaN as None."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return None if math.isnan(value) else round(float(value), 6)
    return int(value) if isinstance(value, np.integer) else value


def main() -> int:
    """Recompute HealthBench's aggregates from the public parts: numbers alone, no text."""
    parser = argparse.ArgumentParser(
        prog="promedical_utils.evaluation.healthbench", description=main.__doc__
    )
    parser.add_argument(
        "folder", nargs="?", default=None, help=f"of the public parts; default: {schemas.VARIABLE}"
    )
    parser.add_argument(
        "--write", action="store_true", help="to papers_figures/healthbench/healthbench.json too"
    )
    given = parser.parse_args()
    try:
        folder = given.folder or schemas.folder()
        if not folder:
            raise KitError(f"set {schemas.VARIABLE} to the folder of the public parts, or name it")
        found = plain(recompute(folder))
    except KitError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(found, indent=1))
    if given.write:
        path = write_json(project_root() / "papers_figures/healthbench/healthbench.json", found)
        print(f"-> {shown(path)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
