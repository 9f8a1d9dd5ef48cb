"""What stands behind a cell of a table: the estimate that it is, and which stored rows that counts.

One function for each kind of table, which an entry of registry.yaml names in ``behind``: (run, the
cell's row as text, its column without run_, _low and _high, options) -> ``Behind``, or None where
the cell is no such estimate.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from promedical_utils.core.estimates import Estimates
from promedical_utils.evaluation import bench as benches
from promedical_utils.evaluation import external as external_sets
from promedical_utils.evaluation import policy_metrics
from promedical_utils.report import tables

ITEMS = {"pairwise": "pairs", "overall": "grades"}  # else single verdicts
COLUMNS = tables.MAIN | tables.MORE | tables.SEEN | tables.RICH | tables.VETO
SIDES = {"base": {"base": 1}, "grpo": {"grpo": 1}, "difference": {"grpo": 1, "base": -1}}


@dataclass(frozen=True)
class Behind:
    """The cell is ``unit`` times the sum of ``terms`` (key -> factor) of ``estimates``.

    ``files``: below the run's folder, whose rows are shown; ``where``: column -> the values by
    which a row of them belongs to the cell; ``model``: folder of what was trained.
    """

    estimates: Estimates
    terms: Mapping[tuple, float]
    files: tuple[str, ...]
    where: Mapping[str, Iterable]
    model: str
    unit: float = 100


def _within(estimates: Estimates, samples: np.ndarray) -> Estimates:
    """The same estimates of some samples, on the draws of all; ``samples``: mask, (samples,)."""
    own = np.asarray(samples, bool)[:, None]
    return replace(estimates, hits=estimates.hits * own, counts=estimates.counts * own)


def _scorer(run, name: str) -> str | None:
    """The scorer that a table calls ``name``; None where it is none."""
    return {label: scorer for scorer, label in run.names.items()}.get(name)


def bench(run, row: Mapping, column: str, against="adjudicated", by=None) -> Behind | None:
    """A metric of a scorer, both as the column's name says; ``by``: column of the samples ->
    column of the table, which names a part of them."""
    scorer, estimates, criteria = _scorer(run, row["system"]), run.tally, run.bench.criteria
    if scorer is None:  # the ceiling of those that see no criterion
        return None
    metric, _, part = column.partition("_")
    metric, part = COLUMNS.get(column, (metric, part))
    kind, folder = part.removeprefix(benches.RICH), "bench"
    folder += "/rich" * (kind != part)
    if kind in ("seen", "unseen"):
        criteria = criteria[criteria.seen == (kind == "seen")]
    elif kind in set(criteria.dimension):
        criteria = criteria[criteria.dimension == kind]
    for of_samples, of_table in (by or {}).items():
        estimates = _within(estimates, estimates.samples[of_samples].astype(str) == row[of_table])
    items = f"{folder}/{ITEMS.get(metric, 'verdicts')}"
    names = (items, "bench/predictions", "bench/preferences", f"{folder}/verdicts")
    return Behind(
        estimates,
        {(scorer, metric, part, against): 1.0},
        tuple(f"{name}.parquet" for name in dict.fromkeys(names)),
        {"scorer": [scorer], "criterion_id": {*criteria.criterion_id, ""}},  # "": sees none
        f"reward/{scorer}",
    )


def policy(run, row: Mapping, column: str, by: str = "") -> Behind | None:
    """A metric of a policy, the mean of its seeds, or the difference of two on shared patients;
    ``by``: "dimension", for a part of the rubric each."""
    names = {name: policy for policy, name in tables.POLICY_NAMES.items()}
    labels = {label: name for name, (label, _) in policy_metrics.METRICS.items()}
    if by:
        factors, metric, part = SIDES[column], labels[row["measure"]], row[by]
    elif column in tables.POLICY:
        own = names.get(row["system"], row["system"].removesuffix(" (kit)"))
        factors = SIDES["difference"] if "paired" in row["system"] else {own: 1}
        metric, part = tables.POLICY[column], "all"
    else:  # HealthBench, whose prompts are not kept
        return None
    files: tuple[str, ...] = ("policy/evaluation.parquet",)
    verdicts, where = None, {by: [part]} if by else {}
    if by:
        files = ("policy/verdicts.parquet", *files)
        verdicts = run.table(files[0])
    estimates = policy_metrics.sums(run.evaluated, verdicts, by or None)
    against, columns = policy_metrics.labels(run.evaluated), estimates.without("seed")
    terms: dict[int, float] = {}
    for name, factor in factors.items():
        own = columns[(name, metric, part, against)]
        terms |= dict.fromkeys(own, factor / len(own))
    if len(factors) > 1:
        estimates = _within(estimates, (estimates.counts[:, list(terms)] > 0).all(axis=1))
    return Behind(
        estimates,
        {estimates.keys[place]: factor for place, factor in terms.items()},
        files,
        {"policy": list(factors), "judge": [against], **where},
        "policy",
        policy_metrics.METRICS[metric][1],
    )


def external(run, row: Mapping, column: str) -> Behind:
    """Pairs of answers of a set that a system orders rightly; ``column``: the text it is given."""
    part = {label: key for key, label in tables.SETS.items()}[row["set"]]
    label = row["system"].removesuffix(", with retrieval")
    known = {label: key for key, label in tables.NAMES_OUTSIDE.items()}
    system = known.get(label) or _scorer(run, label) or label.removesuffix(" (kit)")
    frame, retrieval = run.predicted_outside, label != row["system"]
    key = {"set": part, "system": system, "text": column, "retrieval": retrieval}
    return Behind(
        external_sets.estimates(frame[frame["set"] == part], [*key]),
        {tuple(key.values()): 1.0},
        ("external/predictions.parquet",),
        {name: [value] for name, value in key.items()},
        f"reward/{system}",
    )
