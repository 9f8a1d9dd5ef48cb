"""What stands behind a cell of a table: the estimate that it is, and which stored rows that counts.

A function a kind of table, which registry.yaml names in ``behind``: (run, the cell's row as text,
its column without run_, _low and _high, options) -> ``Behind``, None where it is no such estimate.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from promedical_utils.core.estimates import Estimates
from promedical_utils.evaluation import bench as benches
from promedical_utils.evaluation import external as external_sets
from promedical_utils.evaluation import policy_metrics
from promedical_utils.report import tables

ANSWERS, VERDICTS = "policy/evaluation.parquet", "policy/verdicts.parquet"
PREDICTIONS = "external/predictions.parquet"
ITEMS = {"pairwise": "pairs", "overall": "grades"}  # else single verdicts
COLUMNS = tables.OF_BENCH | {"within_answers": ("within", "all")}  # of by_source
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


def _called(names: Mapping, label: str) -> str | None:
    """The key that ``names`` calls ``label``; None where there is none."""
    return next((key for key, name in names.items() if name == label), None)


def bench(run, row: Mapping, column: str, against="adjudicated", by=None) -> Behind | None:
    """A metric of a scorer, both as the column's name says; ``by``: column of the samples ->
    column of the table, which names a part of them."""
    scorer = _called(run.names, row["system"])
    if scorer is None:  # the ceiling of those that see no criterion
        return None
    estimates, criteria, (metric, part) = run.tally, run.bench.criteria, COLUMNS[column]
    kind = part.removeprefix(benches.RICH)
    folder = "bench" if kind == part else "bench/rich"
    if kind in ("seen", "unseen"):
        criteria = criteria[criteria.seen == (kind == "seen")]
    elif kind in set(criteria.dimension):
        criteria = criteria[criteria.dimension == kind]
    for of_samples, of_table in (by or {}).items():
        estimates = _within(estimates, estimates.samples[of_samples].astype(str) == row[of_table])
    items = ITEMS.get(metric, "verdicts")
    names = (f"{folder}/{items}", "bench/predictions", "bench/preferences", f"{folder}/verdicts")
    return Behind(
        estimates,
        {(scorer, metric, part, against): 1.0},
        tuple(f"{name}.parquet" for name in dict.fromkeys(names)),
        {"scorer": [scorer], "criterion_id": {*criteria.criterion_id, ""}},  # "": sees none
        f"reward/{scorer}",
    )


def policy(run, row: Mapping, column: str, by: str = "") -> Behind | None:
    """A metric of a policy, or the difference of two on the patients whom both answered; ``by``:
    "dimension", for a part of the rubric each."""
    if by:
        side, metric, part = column, "met", row[by]
    elif column in tables.POLICY:
        side = _called(tables.POLICY_NAMES, row["system"])
        metric, part = tables.POLICY[column], "all"
    else:  # HealthBench, whose prompts are not kept
        return None
    answers, factors = run.table(ANSWERS), SIDES[side]
    verdicts = run.table(VERDICTS) if by else None
    estimates = policy_metrics.sums(answers, verdicts, by or None)
    against = policy_metrics.labels(answers)
    terms = {(name, "", metric, part, against): factor for name, factor in factors.items()}
    if len(terms) > 1:
        both = [estimates.columns(key)[0] for key in terms]
        estimates = _within(estimates, (estimates.counts[:, both] > 0).all(axis=1))
    files = (VERDICTS, ANSWERS) if by else (ANSWERS,)
    where = {"policy": list(factors), "judge": [against]} | ({by: [part]} if by else {})
    unit = policy_metrics.METRICS[metric][1]
    return Behind(estimates, terms, files, where, "policy", unit)


def external(run, row: Mapping, column: str) -> Behind:
    """Pairs of answers of a set that a system orders rightly; ``column``: the text it is given."""
    part, label = _called(tables.SETS, row["set"]), row["system"].removesuffix(", with retrieval")
    named = _called(tables.NAMES_OUTSIDE, label) or _called(run.names, label)
    system = named or label.removesuffix(" (kit)")
    key = {"set": part, "system": system, "text": column, "retrieval": label != row["system"]}
    frame = run.table(PREDICTIONS)
    return Behind(
        external_sets.estimates(frame[frame["set"] == part], [*key]),
        {tuple(key.values()): 1.0},
        (PREDICTIONS,),
        {name: [value] for name, value in key.items()},
        f"reward/{system}",
    )
