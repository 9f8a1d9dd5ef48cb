"""HealthBench: its score, how good a grader is beside physicians, and a policy on it.

Arora et al., arXiv 2505.08775, and what openai/simple-evals computes (healthbench_eval.py,
healthbench_meta_eval.py), restated. An example is one answer to one prompt; its score is points met
over positive points and may be below 0; only a mean is clipped, to [0, 1]. What the kit decides
differently is said where it is done. The examples carry a canary and are not to be published:
nothing here prints or stores their text.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_utils.core import statistics
from promedical_utils.core.estimates import Estimates, suffixed
from promedical_utils.core.workspace import KitError, need, read_json, sha256, short_hash, shown
from promedical_utils.data.sources import schemas
from promedical_utils.evaluation import bench as benches
from promedical_utils.rubric import scoring

VERDICTS = {True: "met", False: "not_met", None: "unknown"}
TURNED = {"met": "not_met", "not_met": "met"}
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
    has to be plainly met. A penalty is a safety criterion turned round (``scoring.is_met``): it
    stands unless it is plainly not met, or a grader that fails would pass every harmful answer.

    >>> fail_closed([5, -5, -5], ["unknown", "unknown", "not_met"])
    [False, True, False]
    """
    return [
        not scoring.is_met(TURNED.get(verdict, verdict), "safety") if p < 0 else verdict == "met"
        for p, verdict in zip(points, verdicts, strict=True)
    ]


def paired(scores: pd.DataFrame, a: str, b: str, draws: int = 1000, seed: int = 0) -> dict:
    """Scores of systems ``a`` and ``b`` and ``a`` less ``b``, over the prompts that both answered.

    ``scores``: system, prompt_id, score, a row an example. ``{a: ends, b: ends, "difference": ends,
    "n": prompts}``, ends being value, low and high; all share the draws of prompts, and every mean
    is clipped, in each draw too. KitError if none is shared.
    """
    both = scores.pivot_table(index="prompt_id", columns="system", values="score")
    both = both.reindex(columns=[a, b]).dropna()
    if both.empty:
        raise KitError(f"HealthBench: {a} and {b} share no graded prompt; ask both the same")
    prompts = pd.DataFrame({"condition": range(len(both))})
    values = both.to_numpy()
    sums = Estimates(prompts, ("system",), [(a,), (b,)], values, np.ones(values.shape))
    drawn = np.clip(sums.drawn([0, 1], sums.weights(draws, seed)), 0, 1)
    columns = (drawn[:, 0], drawn[:, 1], drawn[:, 0] - drawn[:, 1])
    ends = [dict(zip(("value", "low", "high"), _ends(column), strict=True)) for column in columns]
    return dict(zip((a, b, "difference"), ends, strict=True)) | {"n": len(both)}


def _ends(drawn: np.ndarray) -> tuple[float, float, float]:
    """Value, low, high of (1 + draws,) values, the measured one first."""
    low, high = statistics.interval(drawn[1:])
    return float(drawn[0]), float(low), float(high)


# ---------------------------------------------------------------- a grader beside physicians


def bench_ratings(bench, graders: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Ratings (columns ``RATINGS``) of a bench: truth, physicians, adjudicated, and ``graders``.

    ``graders``: name -> frame of candidate_id, criterion_id, verdict. A category is a dimension, a
    conversation an instruction. A verdict that a grader did not give is unknown.
    """
    cells = bench.verdicts.merge(bench.criteria[["criterion_id", "dimension"]], on="criterion_id")
    key = benches.CELL
    for name, verdicts in graders.items():
        verdicts = verdicts.rename(columns={"verdict": name})[[*key, name]]
        cells = cells.merge(verdicts, on=key, how="left", validate="one_to_one")
        cells = cells.fillna({name: "unknown"})
    cells = cells.assign(item=cells.candidate_id + "|" + cells.criterion_id)
    people = ["truth", *PHYSICIANS, "adjudicated", *graders]
    long = cells.melt(["item", "instruction_id", "dimension"], people, "rater", "verdict")
    return long.rename(columns={"instruction_id": "conversation", "dimension": "category"})[RATINGS]


def macro_f1(verdicts: Sequence[str], labels: Sequence[str]) -> float:
    """Balanced F1: the mean of the F1 of met and that of not met; a verdict may be unknown.

    Unknown is neither class, so it misses whatever the label is. The F1 of a class is 2 hits over
    times said plus times labelled; NaN where that is 0. A grader that always says one thing has 0
    on the other class, where simple-evals gives no value at all.

    >>> macro_f1(["met", "met", "not_met", "unknown"], ["met", "not_met", "not_met", "met"])
    0.5833333333333333
    """
    pairs = pd.DataFrame({"conversation": 0, "verdict": verdicts, "label": labels})
    return float(_f1([pairs], np.ones((0, 1)))[0, 0])


def meta_evaluation(
    ratings: pd.DataFrame,
    graders: Sequence[str],
    physicians: Sequence[str],
    by: str | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Graders beside physicians, a row a slice and grader, "all" first; ``by``: a column.

    ``ratings``: columns ``RATINGS``, a row an item (one criterion of one answer) and rater. As in
    HealthBench a verdict is paired with every physician's label of the item. A label that is
    unknown is dropped, a grader's unknown is wrong (``macro_f1``). mf1, low, high: the grader
    against all physicians; n: its pairs; unknown: their share.

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
    ratings = ratings[ratings.rater.isin([*graders, *physicians])]
    # numbers compare fast, texts of a whole bench do not
    codes = {name: pd.factorize(ratings[name])[0] for name in ("item", "conversation")}
    ratings = ratings.assign(**codes, verdict=ratings.verdict.astype(object))
    table = []
    for name, part in [("all", ratings), *(ratings.groupby(by) if by else ())]:
        conversations, rows = np.unique(part.conversation, return_inverse=True)
        part = part.assign(conversation=rows)
        weights = statistics.two_stage_weights(np.arange(len(conversations)), draws, seed)
        verdicts = {rater: part[part.rater == rater] for rater in known}
        for grader in graders:
            people = {p: verdicts[p] for p in physicians if p != grader}
            row = _against_all(verdicts[grader], people, weights)
            row |= _leaving_one_out(verdicts[grader], people, weights)
            table.append({"slice": name, "grader": grader} | row)
    return pd.DataFrame(table)


def _against_all(grader: pd.DataFrame, people: Mapping, weights: np.ndarray) -> dict:
    """The grader against all labels of all physicians; ``weights``: (draws, conversations)."""
    pairs = _labelled(grader, people.values())
    value, low, high = _ends(_f1([pairs], weights)[:, 0])
    return {
        "n": len(pairs),
        "unknown": (pairs.verdict == "unknown").mean() if len(pairs) else math.nan,
        "mf1": value,
        "low": low,
        "high": high,
    }


def _leaving_one_out(grader: pd.DataFrame, people: Mapping, weights: np.ndarray) -> dict:
    """Each physician, and the grader in their place, against the labels of the others."""
    physician_pairs, grader_pairs = [], []
    for name, own in people.items():
        others = [labels for other, labels in people.items() if other != name]
        of_physician = _labelled(own, others)
        of_grader = _labelled(grader[grader.item.isin(own.item)], others)
        if len(of_physician) and len(of_grader):
            physician_pairs.append(of_physician)
            grader_pairs.append(of_grader)
    names = ("baseline", "left_out", "difference")
    if not physician_pairs:
        none = {k: v for name in names for k, v in suffixed(name).items()}
        return {"people": 0, **none, "above": math.nan}
    physician, own = _f1(physician_pairs, weights), _f1(grader_pairs, weights)  # (draws, people)
    usable = ~np.isnan(physician) & ~np.isnan(own)
    share = np.where(usable, [len(pairs) for pairs in physician_pairs], 0.0)
    with np.errstate(invalid="ignore"):
        baseline, left_out = (
            (np.nan_to_num(side) * share).sum(axis=1) / share.sum(axis=1)
            for side in (physician, own)
        )
    row = {"people": int(usable[0].sum())}
    for name, drawn in zip(names, (baseline, left_out, left_out - baseline), strict=True):
        row |= suffixed(name, _ends(drawn))
    above = own[0, usable[0]] > physician[0, usable[0]]
    return row | {"above": above.mean() if len(above) else math.nan}


def _labelled(verdicts: pd.DataFrame, people: Iterable[pd.DataFrame]) -> pd.DataFrame:
    """Each verdict beside every label of the same item, a row a pair; unknown is no label."""
    labels = pd.concat([verdicts[:0], *people])
    labels = labels[labels.verdict != "unknown"].rename(columns={"verdict": "label"})
    return verdicts.merge(labels[["item", "label"]], on="item")


def _f1(frames: Sequence[pd.DataFrame], weights: np.ndarray) -> np.ndarray:
    """Macro F1 of each frame of pairs, (1 + draws, frames), the measured one in the first row."""
    samples = pd.DataFrame({"condition": range(weights.shape[1])})

    def items() -> Iterator[tuple]:
        for number, pairs in enumerate(frames):
            for name in CLASSES:
                given, label = (pairs[side].eq(name) * 1 for side in ("verdict", "label"))
                # F1 = 2 hits / (times given + times labelled): a hit is in both and weighs two
                yield (number, name), pairs.conversation, given * label, given + label

    sums = Estimates.of_items(samples, ("frame", "class"), items())
    drawn = sums.drawn(range(len(sums.keys)), weights)
    return drawn.reshape(len(drawn), len(frames), len(CLASSES)).mean(axis=2)


def judge_table(source: Path, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Meta-evaluation on a run's bench: its judge and its reward models, beside its physicians.

    ``source``: a run's folder or a published reference. ``against`` says whose labels: physicians
    (each of the two, with the baseline), adjudicated, truth; by dimension and over all. In the
    clinic physicians and judge are inputs and truth is known: this shows that the measure finds
    what was put in, and nothing of real physicians. KitError for a bench that has but one label an
    item, whose physicians would agree by construction.
    """
    folder = Path(source) / "bench"
    made = benches.Bench.load(folder)
    if "input" not in made.report:
        raise KitError(f"{shown(folder)} was labelled once, by no two physicians: no baseline")
    predicted = pd.read_parquet(need(folder / "predictions.parquet", benches.NOTEBOOK))
    graders = {"judge": pd.read_parquet(need(folder / "judge.parquet", benches.NOTEBOOK))}
    for scorer, part in predicted.groupby("scorer", sort=False):
        if part.met.notna().any():  # the others give no verdicts
            verdict = part.met.astype(object).map(VERDICTS).fillna("unknown")
            graders[scorer] = part[benches.CELL].assign(verdict=verdict)
    ratings = bench_ratings(made, graders)
    against = {"physicians": PHYSICIANS, "adjudicated": ("adjudicated",), "truth": ("truth",)}
    parts = []
    for name, people in against.items():
        part = meta_evaluation(ratings, list(graders), people, "category", draws, seed)
        parts.append(part.assign(against=name))
    return pd.concat(parts, ignore_index=True)


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


def scores_of_run(run: Path) -> pd.DataFrame:
    """Scores of what ``grade_policies`` stored, unknown verdicts by ``fail_closed``.

    Columns system, prompt_id, score, a row an example.
    """
    graded = pd.read_parquet(need(run / GRADED, "06_external_generalization"))
    rows = []
    for (system, prompt), part in graded.groupby(["system", "prompt_id"], sort=False):
        met = fail_closed(list(part.points), list(part.verdict))
        rows.append((system, prompt, score_example(list(part.points), met)))
    return pd.DataFrame(rows, columns=["system", "prompt_id", "score"])


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
        less = paired(scores_of_run(run), "grpo", "base", profile.bootstrap, profile.seed)
    except KitError as error:  # no policy, no data, no answer from the endpoint: the row says which
        return _column(NOT_RUN, str(error))
    n = less["n"]
    rows = {
        name: {end: round(100 * value, 2) + 0.0 for end, value in less[name].items()}
        for name in (*SYSTEMS, "difference")
    }
    reason = (
        f"{n} of {facts['of']} prompts, judge {facts['judge']}, {facts['unknown']:.1%} of its "
        "verdicts unknown"
    )
    return _column(RUN, reason, n, rows)


def _column(status: str, reason: str, n: int = 0, rows: Mapping | None = None) -> dict:
    ends = (rows or {}).get("grpo", dict.fromkeys(("value", "low", "high")))
    return {"status": status, **ends, "reason": reason, "n": n, "rows": dict(rows or {})}
