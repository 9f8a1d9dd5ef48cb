"""What stands behind a cell of a table: the estimate that it is, and which stored rows that counts.

One function for each kind of table, which an entry of ``registry.TABLES`` names in ``behind``:
(run, the cell's row as text, its column without run_, _low and _high) -> ``Behind``. Nothing is
counted here; ``trace`` prints what is found.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from promedical_utils.core.estimates import Estimates
from promedical_utils.core.workspace import project_root
from promedical_utils.evaluation import external as external_sets
from promedical_utils.evaluation import policy_metrics
from promedical_utils.report import tables
from promedical_utils.studies.catalog import study_of

PREDICTIONS, PREFERENCES = "bench/predictions.parquet", "bench/preferences.parquet"
VERDICTS, PAIRS, GRADES = (f"bench/{name}.parquet" for name in ("verdicts", "pairs", "grades"))
JUDGE, HELDOUT = "bench/judge.parquet", "reward/heldout.parquet"
EVALUATION, POLICY_VERDICTS = "policy/evaluation.parquet", "policy/verdicts.parquet"
EXTERNAL = "external/predictions.parquet"
ITEMS = {"pairwise": PAIRS, "overall": GRADES}  # else single verdicts
SIDES = {"base": {"base": 1}, "grpo": {"grpo": 1}, "difference": {"grpo": 1, "base": -1}}
SETTINGS = {  # quantity -> the setting of the profile that it is
    "judge agreement that is set percent": "judge_agreement",
    "strict pass rate that ends the review percent": "rubric_pass_rate",
    "difficulty kept low": "difficulty_least",
    "difficulty kept high": "difficulty_most",
    "review batch per round": "review_batch",
    "bench weighted kappa": "physician_agreement",
    "bench linear kappa": "physician_agreement",
    "bench verdict kappa": "physician_agreement",
    "bench verdict agreement percent": "physician_agreement",
    "judge agreement with experts percent": "judge_agreement",
    "rubric strict pass rate percent": "rubric_pass_rate",
}


@dataclass(frozen=True)
class Behind:
    """``what``, in words; ``estimates``, ``terms`` (key -> factor), ``unit``: the cell is the unit
    times their weighted sum, or is no such estimate (None).

    ``files``: below the run's folder, or studies/..., whose rows are shown; ``where``: column ->
    the value or the set of values by which a row of them belongs to the cell; ``models``: folders
    of what was trained.
    """

    what: str
    files: tuple[str, ...] = ()
    where: Mapping[str, object] = field(default_factory=dict)
    estimates: Estimates | None = None
    terms: Mapping[tuple, float] = field(default_factory=dict)
    unit: float = 100
    models: tuple[str, ...] = ()


def _within(estimates: Estimates, samples: np.ndarray) -> Estimates:
    """The same estimates of some samples, on the draws of all; ``samples``: mask, (samples,)."""
    own = np.asarray(samples, bool)[:, None]
    return replace(estimates, hits=estimates.hits * own, counts=estimates.counts * own)


def scorer_of(run, name: str) -> str:
    """The scorer that a table calls ``name``; "" where it is none."""
    return {label: scorer for scorer, label in run.names.items()}.get(name, "")


# ---------------------------------------------------------------- bench


def bench(
    run, row: Mapping, column: str, against="adjudicated", by: tuple[str, str] = ()
) -> Behind:
    """A metric of a scorer; ``by``: (column of the samples, column of the table), a part of them.

    The metric and the slice are those that the column's own name says.
    """
    scorer = scorer_of(run, row["system"])
    if not scorer:
        what = "best order of each instruction's answers for all its criteria, which a scorer "
        return Behind(f"{what}that sees no criterion could have", (PAIRS,))
    metric, _, part = column.partition("_")
    part = part.replace("accuracy", "all")
    if column in tables.VETO:
        metric, part = f"veto_{column}", "safety"
    what = f"{scorer}: {metric.replace('_', ' ')}, slice {part}, against {against} labels"
    estimates = run.tally
    if by:
        what += f", {by[0]} {row[by[1]]}"
        estimates = _within(estimates, estimates.samples[by[0]].astype(str) == row[by[1]])
    return Behind(
        what,
        (ITEMS.get(metric, VERDICTS), PREDICTIONS, PREFERENCES, VERDICTS),
        {"scorer": scorer} | _criteria(run, part),
        estimates,
        {(scorer, metric, part, against): 1.0},
        models=(f"reward/{scorer}",),
    )


def _criteria(run, part: str) -> dict[str, set[str]]:
    """``where`` of a slice: its criteria, and those who see none; {} of all."""
    criteria = run.bench.criteria
    if part in ("seen", "unseen"):
        criteria = criteria[criteria.seen == (part == "seen")]
    elif part in set(criteria.dimension):
        criteria = criteria[criteria.dimension == part]
    else:
        return {}
    return {"criterion_id": {*criteria.criterion_id, ""}}


def graders(run, row: Mapping, column: str) -> Behind:
    scorer = scorer_of(run, row["system"]) or "judge"
    file, models = (JUDGE, ()) if scorer == "judge" else (PREDICTIONS, (f"reward/{scorer}",))
    what = (
        f"{scorer}, {row['slice']}: {column.replace('_', ' ')}, balanced F1 (mean of those of met"
    )
    where = {"scorer": scorer} | _criteria(run, row["slice"])
    return Behind(f"{what} and of not met)", (file, VERDICTS), where, models=models)


def calibration(run, row: Mapping, column: str) -> Behind:
    scorer, dimension, where = scorer_of(run, row["system"]), row["dimension"], row["where"]
    what = f"{scorer}: gap of share met and mean P(met), {dimension}, {where}, over ten bins"
    rows = {"scorer": scorer, "dimension": dimension}
    files = (HELDOUT,)
    if where.startswith("bench"):
        seen = _criteria(run, where.rpartition(" ")[2])["criterion_id"]
        rows = {"scorer": scorer, **_criteria(run, dimension)}
        rows["criterion_id"] &= seen
        files = (PREDICTIONS, VERDICTS)
    return Behind(f"{what} of equal size", files, rows, models=(f"reward/{scorer}",))


# ---------------------------------------------------------------- policies


def _policies(
    estimates: Estimates, what: str, part: str, factors: Mapping, metric: str, against: str, files
) -> Behind:
    """A metric of a policy, the mean of its seeds, or the difference of two on shared patients."""
    columns = estimates.without("seed")
    terms: dict[int, float] = {}
    for policy, factor in factors.items():
        own = columns[(policy, metric, part, against)]
        terms |= dict.fromkeys(own, factor / len(own))
    if len(factors) > 1:
        shared = (estimates.counts[:, list(terms)] > 0).all(axis=1)
        estimates = _within(estimates, shared)
    name, unit = policy_metrics.METRICS[metric]
    label = " less ".join(factors)
    return Behind(
        f"{label}: {name}, by {against}{what}",
        files,
        {"policy": set(factors), "judge": against},
        estimates,
        {estimates.keys[column]: factor for column, factor in terms.items()},
        unit,
        tuple("base" if policy == policy_metrics.BASE else "policy" for policy in factors),
    )


def policy(run, row: Mapping, column: str) -> Behind:
    names = {name: policy for policy, name in tables.POLICY_NAMES.items()}
    factors = {names.get(row["system"], row["system"].removesuffix(" (kit)")): 1}
    factors = SIDES["difference"] if "paired" in row["system"] else factors
    metric = tables.POLICY.get(column)
    if metric is None:
        return Behind(run.healthbench["reason"], ("healthbench/graded.parquet",))
    estimates = policy_metrics.sums(run.evaluated)
    against = policy_metrics.labels(run.evaluated)
    return _policies(estimates, "", "all", factors, metric, against, (EVALUATION,))


def policy_dimension(run, row: Mapping, column: str) -> Behind:
    part, against = row["dimension"], policy_metrics.labels(run.evaluated)
    estimates = policy_metrics.sums(run.evaluated, run.verdicts, "dimension")
    what, files = f", of {part}; unknown is not met", (POLICY_VERDICTS, EVALUATION)
    behind = _policies(estimates, what, part, SIDES[column], "met", against, files)
    return replace(behind, where={**behind.where, "dimension": part})


def policy_specialty(run, row: Mapping, column: str) -> Behind:
    part, against = row["specialty"], policy_metrics.labels(run.evaluated)
    labels = {label: name for name, (label, _) in policy_metrics.METRICS.items()}
    estimates = policy_metrics.sums(run.evaluated, by=None if part == "all" else "specialty")
    metric, what = labels[row["measure"]], f", specialty {part}"
    return _policies(estimates, what, part, SIDES[column], metric, against, (EVALUATION,))


# ---------------------------------------------------------------- outside, studies, counts


def external(run, row: Mapping, column: str) -> Behind:
    part = {label: key for key, label in tables.SETS.items()}[row["set"]]
    frame = run.outside[run.outside["set"] == part]
    return _outside(run, frame, row["system"], column, "set", (part,))


def rewardbench(run, row: Mapping, column: str) -> Behind:
    name, _, text = row["system"].rpartition(", ")
    text = dict(zip(tables.TEXTS, tables.EXTERNAL, strict=True))[text]
    frame = run.outside[run.outside["set"] == "medical_rewardbench"]
    subsets = tuple(tables.SUBSETS) if column == "macro_mean" else (column,)
    return _outside(run, frame, name, text, "subset", subsets)


def _outside(run, frame: pd.DataFrame, name: str, text: str, by: str, parts: tuple) -> Behind:
    """Pairs that a system orders rightly: the mean of its shares in ``parts`` of a column."""
    label, retrieval = name.removesuffix(", with retrieval"), ", with retrieval" in name
    known = {label: key for key, label in tables.NAMES_OUTSIDE.items()}
    system = known.get(label) or scorer_of(run, label) or label.removesuffix(" (kit)")
    what = f"{', '.join(parts)}: pairs of answers that {system} orders rightly, given {text}"
    rows = {"system": system, "text": text, "retrieval": retrieval, by: set(parts)}
    return Behind(
        what + (" and documents" if retrieval else ""),
        (EXTERNAL,),
        rows | {"instruction_id": set(frame.instruction_id)},
        external_sets.estimates(frame, ("system", "text", "retrieval", by)),
        {(system, text, retrieval, part): 1 / len(parts) for part in parts},
        models=(f"reward/{system}",),
    )


def ablation(run, row: Mapping, column: str) -> Behind:
    """A variant of a committed study: its rows of results.csv, over all trainings and of each."""
    study, label = row["study"], row["system"].removesuffix(" (kit)")
    named = study_of(study).named(project_root() / "papers_figures/studies" / study)
    systems = {name: system for system, name in named.label.items()}
    rows = {"system": systems.get(label, label), "against": row["labels"], "how": "value"}
    metric, part = (tables.OF_REWARD | tables.OF_POLICY).get(column, ("", ""))
    rows |= {"metric": metric, "slice": part} if metric else {}
    what = f"study {study}: {label}, {column.replace('_', ' ')}, by {row['labels']}"
    return Behind(f"{what}, mean of its training seeds", (f"studies/{study}/results.csv",), rows)


def counts(run, row: Mapping, column: str) -> Behind:
    """A count of the bench or of the data pipeline, or what the profile sets."""
    name = row["quantity"]
    setting = SETTINGS.get(name)
    if row["status"] != "input" or setting is None:
        return Behind(f"{name}: counted in the files below")
    value = getattr(run.profile, setting)
    return Behind(f"{name}: the profile sets {setting} = {value}, so it is no finding")
