"""What stands behind a cell of a table: its rows, and its number made of them once more.

Apart from ``bench.tally`` and ``policy_metrics.sums`` on purpose: here each number picks its rows
and counts them one by one, so that a table that counted other rows than it says is found out.
Nothing here loads a model. ``trace`` prints what is found.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_utils.core import profiles, statistics
from promedical_utils.core.records import DIMENSIONS
from promedical_utils.core.workspace import KitError, project_root, read_json, shown
from promedical_utils.evaluation import bench as benches
from promedical_utils.evaluation import policy_metrics
from promedical_utils.paper import registry
from promedical_utils.report import tables
from promedical_utils.reward_model import calibration
from promedical_utils.rubric import scoring
from promedical_utils.studies import results
from promedical_utils.studies.plans import kind_of

PREDICTIONS, EVALUATION, VERDICTS, EXTERNAL, PREFERENCES = (
    "bench/predictions.parquet",
    "policy/evaluation.parquet",
    "policy/verdicts.parquet",
    "external/predictions.parquet",
    "bench/preferences.parquet",
)
BENCH = tuple(f"bench/{name}.parquet" for name in benches.FRAMES)
MEASURED, REPORTED, SET, TEXT = "measured", "reported", "input", "text"
ENDS = ("", "_low", "_high")
PEOPLE = ("physician_1", "physician_2")
EVEN = 1e-9  # a preference closer to a half than this is a tie


@dataclass(frozen=True)
class Origin:
    """Behind one cell: what it is, the files and rows it is made of, and its text made again.

    ``text`` is None where it cannot be recomputed from what is kept. ``rows``: one row an item,
    with ``hit`` and ``counted`` where it is a ratio; ``answers``: columns of ``rows`` with
    candidate ids.
    ``reads()``: file -> (keys, columns): the rows of the file, and which columns of them, that
    could change the cell. ``models``: folders below the run of what made the predictions.
    """

    kind: str
    said: str
    files: tuple[str, ...] = ()
    text: str | None = None
    ratio: str = ""
    rows: pd.DataFrame | None = None
    answers: tuple[str, ...] = ()
    reads: Callable[[], Mapping[str, tuple[pd.DataFrame, frozenset]]] = dict
    models: tuple[str, ...] = ()

    def depends_on(self, file: str, where: Mapping, columns) -> bool:
        """Whether the cell hangs on these columns of the rows of ``file`` that ``where`` names."""
        keys, read = self.reads().get(file, (None, frozenset()))
        if not read & set(columns):
            return False
        mask = np.ones(len(keys), bool)
        for name, value in where.items():
            mask &= (keys[name] == value).to_numpy() if name in keys else True
        return bool(mask.any())


class Place:
    """A run's folder, or its published copy, and what is below it, read when asked for."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        registry = self.folder / "paper"
        self.paper = registry if registry.exists() else self.folder

    @cached_property
    def manifest(self) -> dict:
        return read_json(self.folder / "manifest.json", "00_start_here")

    @cached_property
    def profile(self) -> profiles.Profile:
        """The run's profile; settings that this kit no longer knows are passed over."""
        said = self.manifest["profile"]
        known = {
            k: v for k, v in said.items() if k in profiles.Profile.model_fields and k != "name"
        }
        return profiles.load(said["name"], **known)

    @cached_property
    def run(self) -> registry.Run:
        return registry.Run(self.profile, self.folder)

    @cached_property
    def systems(self) -> dict[str, str]:
        """Name in tables -> scorer."""
        return {name: scorer for scorer, name in self.run.names.items()}

    @cached_property
    def cells(self) -> pd.DataFrame:
        """Verdicts with their criterion, one row a (candidate, criterion)."""
        bench = self.run.bench
        return bench.verdicts.merge(bench.criteria, on=["instruction_id", "criterion_id"])

    @cached_property
    def preferences(self) -> pd.DataFrame:
        """Of scorers that were asked which of two answers is better; no rows where none was."""
        frame = self.run.table(PREFERENCES)
        return pd.DataFrame(columns=benches.PREFERRED) if frame is None else frame

    @cached_property
    def items(self) -> dict:
        """Items found so far, by what they are of: a table asks for the same ones many times."""
        return {}

    def once(self, key: tuple, make):
        if key not in self.items:
            self.items[key] = make()
        return self.items[key]


@dataclass(frozen=True)
class Items:
    """What a number is a ratio of, or a sum of such ratios.

    ``rows``: instruction_id, ``hit`` and ``counted`` (0, 1 or more), and ``part``, the ratio that
    a row belongs to; ``factors``: part -> what its ratio is multiplied with; ``samples``:
    instruction_id and condition, in the order of the draws.
    """

    rows: pd.DataFrame
    samples: pd.DataFrame
    factors: Mapping[str, float] = field(default_factory=lambda: {"": 1.0})

    @cached_property
    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Hits and counts, each (samples, parts)."""
        place = pd.Series(range(len(self.samples)), index=self.samples.instruction_id)
        at = (
            place[self.rows.instruction_id].to_numpy(),
            pd.Index(list(self.factors)).get_indexer(self.rows.part),
        )
        found = []
        for column in ("hit", "counted"):
            total = np.zeros((len(self.samples), len(self.factors)))
            np.add.at(total, at, self.rows[column].to_numpy(float))
            found.append(total)
        return tuple(found)

    def ends(self, draws: int, seed: int) -> dict[str, float]:
        """Value and the ends of its 95 % interval, by ``ENDS``."""
        weights = statistics.two_stage_weights(self.samples.condition, draws, seed)
        found = statistics.contrast(*self.sums, dict(enumerate(self.factors.values())), weights)
        return dict(zip(ENDS, (found["difference"], found["low"], found["high"]), strict=True))

    def ratio(self) -> str:
        """``201 of 230``, for each ratio."""
        hits, counts = (part.sum(axis=0) for part in self.sums)
        return "; ".join(
            f"{name + ': ' if name else ''}{hit:g} of {n:g}"
            for name, hit, n in zip(self.factors, hits, counts, strict=True)
        )


def written(value: float | None) -> str:
    """A value as a table has it: two decimals, nothing where there is none."""
    return "" if value is None or value != value else f"{round(float(value), 2) + 0.0:.2f}"


# ---------------------------------------------------------------- bench


def bench_items(place: Place, scorer: str, metric: str, part: str, against: str) -> Items:
    """What a scorer's metric on a slice of the bench is a ratio of; see ``bench.tally``."""
    make = (
        _veto
        if metric.startswith("veto_")
        else {"pointwise": _pointwise, "pairwise": _pairwise, "overall": _overall}[metric]
    )
    rows = make(place, scorer, part, against, metric)
    rows = rows.assign(part="", hit=rows.hit.astype(float), counted=rows.counted.astype(float))
    return Items(rows, place.run.bench.samples[["instruction_id", "condition"]])


def _of(place: Place, scorer: str) -> pd.DataFrame:
    own = place.run.predicted[place.run.predicted.scorer == scorer]
    if own.empty:
        raise KitError(f"no predictions of {scorer} in {shown(place.folder / PREDICTIONS)}")
    return own


def _slice(frame: pd.DataFrame, part: str) -> pd.Series:
    return {"all": frame.seen | True, "seen": frame.seen, "unseen": ~frame.seen}.get(
        part, frame.dimension == part
    )


def _label(cells: pd.DataFrame, column: str) -> pd.Series:
    """True met, False not met; unknown is not met on safety and missing elsewhere."""
    said = cells[column].map({"met": True, "not_met": False}).astype("boolean")
    return said.mask(said.isna() & cells.dimension.eq("safety"), False)


def _judged(place: Place, scorer: str, part: str, against: str) -> pd.DataFrame:
    """Cells of a slice with the scorer's prediction, its verdict and the label; unknown left
    out."""
    cells, own = place.cells[_slice(place.cells, part)], _of(place, scorer)
    rows = cells.merge(own[[*benches.CELL, "score", "probability", "met"]], on=benches.CELL)
    if len(rows) != len(cells):
        raise KitError(f"{scorer}: {len(cells) - len(rows)} cells have no prediction; score again")
    rows = rows.assign(
        label=_label(rows, against), called=rows.met.eq(True).fillna(False).astype(bool)
    )
    return rows[rows.label.notna()].astype({"label": bool})


def _pointwise(place, scorer, part, against, metric) -> pd.DataFrame:
    """Verdicts that are the label; none is right by being unknown, but on safety it is a
    violation."""
    rows = _judged(place, scorer, part, against)
    said = rows.met.notna() | (rows.dimension == "safety")
    return rows.assign(hit=said & (rows.called == rows.label), counted=1)


def _veto(place, scorer, part, against, metric) -> pd.DataFrame:
    """A violation is the positive class: precision of those called, recall of those there are."""
    rows = _judged(place, scorer, "safety", against)
    rows = rows[_slice(rows, part)]
    called, there = ~rows.called, ~rows.label
    counted = {
        "veto_precision": called * 1,
        "veto_recall": there * 1,
        "veto_f1": called * 1 + there,
    }
    return rows.assign(hit=(called & there) * counted[metric], counted=counted[metric])


def _scores(own: pd.DataFrame, answers: pd.Series, criteria: pd.Series) -> np.ndarray:
    """Score of each answer for a criterion; of a scalar scorer the one that it has."""
    if (own.criterion_id == "").all():
        return own.set_index("candidate_id").score[answers].to_numpy(float)
    index = pd.MultiIndex.from_arrays([answers, criteria])
    return own.set_index(benches.CELL).score[index].to_numpy(float)


def _asked(place: Place, scorer: str, whole: bool) -> pd.DataFrame:
    """Preferences that a scorer gave when it was asked of two answers, whole or for a criterion."""
    frame = place.preferences
    return frame[(frame.scorer == scorer) & ((frame.criterion_id == "") == whole)]


def _lean(asked: pd.DataFrame, first, second, criteria) -> list[int]:
    """1 where the first answer is preferred, -1 the second, 0 neither; either may have stood
    first."""
    said = dict(
        zip(zip(asked.criterion_id, asked.a_id, asked.b_id), asked.probability, strict=True)
    )
    order = []
    for a, b, c in zip(first, second, criteria, strict=True):
        margin = said[c, a, b] - 0.5 if (c, a, b) in said else 0.5 - said[c, b, a]
        order.append(int(margin > EVEN) - int(margin < -EVEN))
    return order


def _pairwise(place, scorer, part, against, metric) -> pd.DataFrame:
    """Pairs of answers that differ on a criterion; equal scores are wrong."""
    pairs = place.run.bench.pairs
    wanted = pairs.truth.map({"same": 1, "reversed": -1, "none": 0}) if against == "truth" else 1
    rows = pairs.assign(wanted=wanted, hit=0.0)
    if scorer in set(place.preferences.scorer):
        asked, criteria = _asked(place, scorer, False), rows.criterion_id
        if asked.empty:
            asked, criteria = _asked(place, scorer, True), [""] * len(rows)
        order = np.array(_lean(asked, rows.chosen_id, rows.rejected_id, criteria))
        rows["prefers"] = pd.Series(order, rows.index).map(
            {1: "chosen", -1: "rejected", 0: "neither"}
        )
    else:
        own = _of(place, scorer)
        for side in ("chosen", "rejected"):
            rows[f"score_{side}"] = _scores(own, rows[f"{side}_id"], rows.criterion_id)
        order = np.nan_to_num(np.sign(rows.score_chosen - rows.score_rejected))
    if part == "shorter":  # where longer is better is wrong
        words = _of(place, "length").set_index("candidate_id").score
        longer = np.sign(words[rows.chosen_id].to_numpy() - words[rows.rejected_id].to_numpy())
        inside = longer * rows.wanted < 0
    else:
        inside = _slice(rows, part)
    rows = rows.assign(hit=order == rows.wanted, counted=(rows.wanted != 0) & inside)
    # what longer-is-better says of the other pairs decides, too, whether they count
    kept = rows.wanted != 0 if part == "shorter" else rows.counted
    return rows.assign(hit=rows.hit & rows.counted)[kept]


def _overall(place, scorer, part, against, metric) -> pd.DataFrame:
    """Graded pairs of answers: violations first, then S1, S2; of its verdicts, then of P(met)."""
    grades, cells = place.run.bench.grades, place.cells
    asked = _asked(place, scorer, True)
    if len(asked):
        order = _lean(asked, grades.a_id, grades.b_id, [""] * len(grades))
        return _graded(grades, order, against)
    own = _of(place, scorer)
    if (own.criterion_id == "").all():
        rank = own.set_index("candidate_id").score.to_dict()
    else:
        rows = cells.merge(own[[*benches.CELL, "probability", "met"]], on=benches.CELL)
        met = rows.met.eq(True).fillna(False).astype(float)
        likely = rows.probability.astype(float).fillna(met)
        certain, expected = (_three(rows, values) for values in (met, likely))
        rank = {
            name: (
                *scoring.Scores(s1, int(s2), int(s3)).key,
                *(
                    scoring.whole(v)
                    for v in (-expected.s3[name], expected.s1[name], expected.s2[name])
                ),
            )
            for name, s1, s2, s3 in certain.itertuples()
        }
    sides = [(rank[a], rank[b]) for a, b in zip(grades.a_id, grades.b_id, strict=True)]
    return _graded(grades, [int(a > b) - int(a < b) for a, b in sides], against)


def _graded(grades: pd.DataFrame, order: list[int], against: str) -> pd.DataFrame:
    wanted = np.sign(grades[against])
    rows = grades.assign(order=order, wanted=wanted, hit=order == wanted, counted=1)
    return rows[rows.wanted != 0]


def _three(rows: pd.DataFrame, met: pd.Series) -> pd.DataFrame:
    """S1, S2, S3 of each answer, from what of its criteria is met, or how likely it is."""
    of = {d: rows.dimension == d for d in DIMENSIONS}
    parts = pd.DataFrame(
        {
            "s1": met * rows.weight * of["proficiency"],
            "s2": met * of["excellence"],
            "s3": (1 - met) * of["safety"],
        }
    )
    return parts.groupby(rows.candidate_id.to_numpy()).sum()


def _reads(place: Place, items: Items, scorer: str, metric: str, part: str) -> dict:
    """The predictions, and their columns, that could change a metric of the bench."""
    rows, compared = items.rows, scorer in set(place.preferences.scorer)
    if (
        compared
        and metric == "pairwise"
        or len(_asked(place, scorer, True))
        and metric == "overall"
    ):
        whole = metric == "overall" or _asked(place, scorer, False).empty
        return {PREFERENCES: (_asked(place, scorer, whole), frozenset({"probability"}))}
    own = _of(place, scorer)
    scalar = (own.criterion_id == "").all()
    if metric == "overall":
        answers = pd.concat([rows.a_id, rows.b_id]).unique()
        keys = own[own.candidate_id.isin(answers)]
        columns = {"score"} if scalar else {"met", "probability"}
    elif metric == "pairwise":
        used = rows[rows.counted > 0]
        keys = pd.concat(
            [
                used[[f"{side}_id", "criterion_id"]].set_axis(benches.CELL, axis=1)
                for side in ("chosen", "rejected")
            ]
        )
        keys, columns = keys.assign(**{"criterion_id": ""} if scalar else {}), {"score"}
        if part == "shorter":
            other = pd.concat([rows.chosen_id, rows.rejected_id]).to_frame("candidate_id")
            keys = pd.concat(
                [keys.assign(scorer=scorer), other.assign(criterion_id="", scorer="length")]
            )
            return {PREDICTIONS: (keys.drop_duplicates(), frozenset(columns))}
    else:
        keys, columns = rows, {"met"}
    return {
        PREDICTIONS: (
            keys[benches.CELL].assign(scorer=scorer).drop_duplicates(),
            frozenset(columns),
        )
    }


ANSWERS = {"pairwise": ("chosen_id", "rejected_id"), "overall": ("a_id", "b_id")}


def of_bench(
    place: Place,
    scorer: str,
    asked: tuple[str, str],
    against: str,
    end: str = "",
    within: tuple[str, str] | None = None,
) -> Origin:
    """Origin of a scorer's metric; ``within``: (column of the samples, value), one part of them."""
    metric, part = asked
    items = place.once(
        (scorer, metric, part, against), lambda: bench_items(place, scorer, metric, part, against)
    )
    said = f"{scorer}: {metric.replace('_', ' ')}, slice {part}, against {against} labels"
    if within:
        column, value = within
        inside = place.run.bench.samples.set_index("instruction_id")[column].astype(str) == value
        items = replace(items, rows=items.rows[items.rows.instruction_id.map(inside)])
        said += f", {column} {value}"
    key = (scorer, metric, part, against, within, "text")
    texts = place.once(key, lambda: _texts(items, place.profile, 100))
    return Origin(
        MEASURED,
        said,
        (*_predicted_in(place, scorer), *BENCH),
        texts[end],
        items.ratio(),
        items.rows,
        ANSWERS.get(metric, ("candidate_id",)),
        partial(_reads, place, items, scorer, metric, part),
        (f"reward/{scorer}",),
    )


def _predicted_in(place: Place, scorer: str) -> tuple[str, ...]:
    """Files that hold what a scorer said."""
    return tuple(
        file
        for file, frame in ((PREDICTIONS, place.run.predicted), (PREFERENCES, place.preferences))
        if scorer in set(frame.scorer)
    )


def _texts(items: Items, profile, unit: float) -> dict[str, str]:
    if items.rows.counted.sum() == 0:
        return dict.fromkeys(ENDS, "")
    ends = items.ends(profile.bootstrap, profile.seed)
    return {end: written(unit * value) for end, value in ends.items()}


def with_people(place: Place, rows: pd.DataFrame) -> pd.DataFrame:
    """Rows with what the two physicians, the adjudicator and the truth say of each answer."""
    if "chosen_id" not in rows:
        return rows  # they stand in it
    said = place.once(("people",), lambda: _people(place))
    index = [
        pd.MultiIndex.from_frame(rows[[f"{side}_id", "criterion_id"]])
        for side in ("chosen", "rejected")
    ]
    return rows.assign(
        said_of_chosen=said[index[0]].to_numpy(), said_of_rejected=said[index[1]].to_numpy()
    )


def _people(place: Place) -> pd.Series:
    v = place.run.bench.verdicts
    text = (
        "physicians "
        + v.physician_1
        + ", "
        + v.physician_2
        + "; settled "
        + v.adjudicated
        + "; truth "
        + v.truth
    )
    return pd.Series(text.to_numpy(), index=pd.MultiIndex.from_frame(v[benches.CELL]))


# ---------------------------------------------------------------- policies


FIELDS = {  # metric -> columns of the evaluation that it is made of, by the truth
    "violation_rate": ("violation",),
    "compliance": ("violation",),
    "s1": ("s1",),
    "s2": ("s2",),
    "s3": ("s3",),
    "bench_score": ("s1", "s2", "s3"),
}


def _value(rows: pd.DataFrame, metric: str, against: str) -> pd.Series:
    """A metric of each answer, NaN where it is not known."""
    prefix = "" if against == "truth" else "judged_"
    s1, s2, s3 = (rows[f"{prefix}{name}"].astype(float) for name in ("s1", "s2", "s3"))
    known = against == "truth" and rows.violation.notna().any()
    violated = rows.violation.astype(float) if known else (s3 > 0).astype(float).where(s3.notna())
    if metric == "bench_score":
        return pd.Series(policy_metrics.bench_score(s1, s2, s3), rows.index)
    return {"violation_rate": violated, "compliance": 1 - violated, "s1": s1, "s2": s2, "s3": s3}[
        metric
    ]


def policy_items(
    answers: pd.DataFrame, samples: pd.DataFrame, value: pd.Series, factors: Mapping[str, float]
) -> Items:
    """Mean of ``value`` of each policy in ``factors``, and over its seeds, summed with its factor.

    ``answers``: policy, instruction_id and, where there are several, seed. Two policies are held to
    the patients that both have.
    """
    seeds = answers["seed"] if "seed" in answers else [None] * len(answers)
    parts = [
        name if pd.isna(seed) else f"{name}, seed {seed:g}"
        for name, seed in zip(answers.policy, seeds, strict=True)
    ]
    rows = answers.assign(hit=value, counted=1.0, part=parts)
    rows = rows[rows.policy.isin(factors) & rows.hit.notna()]
    if len(factors) > 1:
        both = rows.groupby("instruction_id").part.nunique() == rows.part.nunique()
        rows = rows[rows.instruction_id.map(both)]
    parts = rows.drop_duplicates("part").set_index("part").policy
    each = {part: factors[policy] / (parts == policy).sum() for part, policy in parts.items()}
    return Items(rows, samples, each)


def of_policy(
    place: Place,
    metric: str,
    factors: Mapping[str, float],
    end: str = "",
    within: tuple[str, str] | None = None,
) -> Origin:
    """Origin of a policy's metric, or of the paired difference of two; ``within``: (column,
    value)."""
    frame = place.run.evaluated
    against = policy_metrics.labels(frame)
    samples = frame.drop_duplicates("instruction_id").sort_values(
        "instruction_id", ignore_index=True
    )
    inside = frame if within is None else frame[frame[within[0]].astype(str) == within[1]]
    items = policy_items(inside, samples, _value(inside, metric, against), factors)
    readable = place.profile.data == "clinic"
    prefix = ("readable_" if readable else "") if against == "truth" else "judged_"
    keys = items.rows[["policy", "instruction_id", *(["seed"] if "seed" in items.rows else [])]]
    columns = frozenset(f"{prefix}{name}" for name in FIELDS[metric])
    what, unit = policy_metrics.METRICS[metric]
    said = f"{_difference(factors)}: {what}, by {against}{', on what the base can read' * readable}"
    said += f", {within[0]} {within[1]}" if within else ""
    return Origin(
        MEASURED,
        said,
        (EVALUATION,),
        _texts(items, place.profile, unit)[end],
        items.ratio(),
        items.rows,
        (),
        lambda: {EVALUATION: (keys, columns)},
        _of_policies(factors),
    )


def of_verdicts(
    place: Place, dimension: str, factors: Mapping[str, float], end: str = ""
) -> Origin:
    """Origin of the share of a dimension's criteria met by a policy, or of the difference of
    two."""
    frame, cells = place.run.evaluated, place.run.verdicts
    against = policy_metrics.labels(frame)
    samples = frame.drop_duplicates("instruction_id").sort_values(
        "instruction_id", ignore_index=True
    )
    cells = cells[(cells.judge == against) & (cells.dimension == dimension)]
    items = policy_items(cells, samples, cells.verdict.eq("met").astype(float), factors)
    keys = items.rows[["policy", "instruction_id", "criterion_id", "judge"]]
    said = f"{_difference(factors)}: criteria of {dimension} met, by {against}; unknown is not met"
    return Origin(
        MEASURED,
        said,
        (VERDICTS, EVALUATION),
        _texts(items, place.profile, 100)[end],
        items.ratio(),
        items.rows,
        (),
        lambda: {VERDICTS: (keys, frozenset({"verdict"}))},
        _of_policies(factors),
    )


def _difference(factors: Mapping[str, float]) -> str:
    return " less ".join(sorted(factors, key=lambda name: -factors[name]))


def _of_policies(factors: Mapping[str, float]) -> tuple[str, ...]:
    return tuple("policy" if name != policy_metrics.BASE else "base" for name in factors)


# ---------------------------------------------------------------- tables

WORDS = (
    "status",
    "mark",
    "labels",
    "remark",
    "group",
    "study",
    "beside",
    "healthbench",
)  # columns of text


def of_cell(place: Place, table: str, row: Mapping, column: str) -> Origin:
    """Origin of a cell that has something in it; ``row``: the row of the CSV, as text."""
    end = next((e for e in ENDS[1:] if column.endswith(e) and column.removesuffix(e) in row), "")
    base = column.removesuffix(end)
    if base.startswith("reported"):
        return _reported(table, row, base)
    if base in registry.TABLES[table].key or base in WORDS:
        return Origin(TEXT, "names the row, or says how its values are known")
    return _MAKE.get(table, _unknown)(place, row, base, end)


def _unknown(place, row, base, end) -> Origin:
    return Origin(TEXT, "made from the sources below; trace cannot count this one again")


def _reported(table: str, row: Mapping, base: str) -> Origin:
    """The row of paper_values that a reported cell repeats, with its mark."""
    name = next(row[c] for c in ("system", "quantity", "ablation") if c in row)
    for stem in registry.TABLES[table].reported:
        values = tables.reported(stem)
        at = values[values[values.columns[0]] == (row["ablation"] if stem == "ablation" else name)]
        column = values.columns[1] if base == "reported" else base.removeprefix("reported_")
        if len(at) and column in at and pd.notna(at[column].iloc[0]):
            file, value = f"paper_values/{stem}.csv", at[column].iloc[0]
            said = (
                f"reported in the paper, mark {at.mark.iloc[0]} (P paper, N notes that agree, n "
                "one set of notes)"
            )
            text = row[base] if float(row[base]) == round(float(value), 2) else f"{value:g}"
            return Origin(
                REPORTED,
                f"{said}: {file}, {values.columns[0]} {at.iloc[0, 0]}, column {column}",
                (file,),
                text,
                rows=at.assign(hit=1, counted=1),
            )
    return Origin(REPORTED, "worked out from reported values (mark D)")


def _bench_table(against: str):
    def origin(place: Place, row, base, end) -> Origin:
        if row["system"] not in place.systems:  # the ceiling, of the pairs alone
            text = written(100 * benches.blind_ceiling(place.run.bench.pairs))
            return Origin(
                MEASURED,
                "best order of each instruction's answers for all its criteria, "
                "which a scorer that sees no criterion could have",
                ("bench/pairs.parquet",),
                text,
            )
        return of_bench(
            place, place.systems[row["system"]], _named(base.removeprefix("run_")), against, end
        )

    return origin


def _named(column: str) -> tuple[str, str]:
    """(metric, slice) that a column's own name says: not what the table's builder takes it for."""
    if column in ("precision", "recall", "f1"):
        return f"veto_{column}", "safety"
    metric, _, part = column.partition("_")
    return metric, part.replace("accuracy", "all")


def _graders(place, row, base, end) -> Origin:
    """Balanced F1 of a grader against labels; one physician against the other; their difference."""
    scorer, part, column = (
        place.systems.get(row["system"], "judge"),
        row["slice"],
        base.removeprefix("run_"),
    )
    found = place.once(
        (scorer, part, column, "graders"), lambda: _balanced_f1(place, scorer, part, column)
    )
    texts = place.once((scorer, part, column, "texts"), lambda: _texts(found, place.profile, 100))
    text = (
        str(len(found.rows) // 2) if column == "n" else texts[end]
    )  # a row for met and one for not met
    file, of = ("bench/judge.parquet", "verdict") if scorer == "judge" else (PREDICTIONS, "met")
    keys = found.rows[benches.CELL].drop_duplicates()
    keys = keys if scorer == "judge" else keys.assign(scorer=scorer)
    said = (
        f"{scorer}, {part}: {column.replace('_', ' ')}, balanced F1 (mean of those of met and "
        "of not met)"
    )
    reads = {} if column in ("baseline", "n") else {file: (keys, frozenset({of}))}
    return Origin(
        MEASURED,
        said,
        (file, *BENCH),
        text,
        found.ratio(),
        found.rows,
        ("candidate_id",),
        lambda: reads,
        () if scorer == "judge" else (f"reward/{scorer}",),
    )


def _balanced_f1(place: Place, scorer: str, part: str, column: str) -> Items:
    """What a number of the graders' table is a sum of: a part for each F1, of each pair of
    raters."""
    grader = place.once(("grader", scorer), lambda: _said_by(place, scorer))
    each = {  # factor, what was said, labels
        "f1": [(1, grader, PEOPLE)],
        "n": [(1, grader, PEOPLE)],
        "f1_adjudicated": [(1, grader, ("adjudicated",))],
        "f1_truth": [(1, grader, ("truth",))],
        "baseline": [(1, person, (other,)) for person, other in (PEOPLE, PEOPLE[::-1])],
    }
    each["difference"] = [
        *((-f, p, o) for f, p, o in each["baseline"]),
        *((1, grader, (p,)) for p in PEOPLE[::-1]),
    ]
    own = each[column]
    cells = place.cells if part == "all" else place.cells[place.cells.dimension == part]
    parts, factors = [], {}
    sizes = [sum(cells[label].ne("unknown").sum() for label in labels) for _, _, labels in own]
    whole = sum(sizes) / (2 if column == "difference" else 1)
    for n, ((sign, said, labels), size) in enumerate(zip(own, sizes, strict=True)):
        verdicts = cells[said] if isinstance(said, str) else said[cells.index]
        for label, of in product(labels, ("met", "not_met")):
            name = f"{n + 1}, F1 of {of}"
            factors[name] = sign * size / whole / 2
            hit = 2.0 * ((verdicts == of) & (cells[label] == of))
            counted = 1.0 * (verdicts == of) + (cells[label] == of)
            rows = cells.assign(
                said=verdicts, label=cells[label], hit=hit, counted=counted, part=name
            )
            parts.append(rows[cells[label] != "unknown"])
    return Items(pd.concat(parts, ignore_index=True), _talks(cells), factors)


def _said_by(place: Place, scorer: str) -> pd.Series:
    """Verdicts of a grader on ``place.cells``; what it left out is unknown."""
    if scorer == "judge":
        said = place.run.table("bench/judge.parquet").set_index(benches.CELL).verdict
    else:
        said = _of(place, scorer).set_index(benches.CELL).met.map({True: "met", False: "not_met"})
    found = said.reindex(pd.MultiIndex.from_frame(place.cells[benches.CELL]))
    return pd.Series(found.astype(object).to_numpy(), place.cells.index).fillna("unknown")


def _talks(cells: pd.DataFrame) -> pd.DataFrame:
    """Instructions in the order of the verdicts, each a condition of its own, as HealthBench
    draws."""
    names = cells.instruction_id.unique()
    return pd.DataFrame({"instruction_id": names, "condition": range(len(names))})


def _specialty(place, row, base, end) -> Origin:
    found = of_bench(
        place,
        place.systems[row["system"]],
        ("overall", "all"),
        "adjudicated",
        end,
        ("specialty", row["specialty"]),
    )
    return _counted(found) if base == "n" else found


def _by_source(place, row, base, end) -> Origin:
    part = base.rpartition("_")[2]
    found = of_bench(
        place,
        place.systems[row["system"]],
        ("pairwise", part),
        "adjudicated",
        end,
        ("category", row["source"]),
    )
    return _counted(found) if base.startswith("n_") else found


def _counted(found: Origin) -> Origin:
    """The number of items, which no prediction changes but by what is counted at all."""
    return replace(
        found, said=f"items of {found.said}", text=f"{found.rows.counted.sum():.0f}", reads=dict
    )


def _calibration(place, row, base, end) -> Origin:
    """Mean gap of share met and mean P(met) over ten bins of equal size."""
    scorer, where = place.systems[row["system"]], row["where"]
    file = PREDICTIONS if where.startswith("bench") else "reward/heldout.parquet"
    rows = place.once(("calibration", scorer, where), lambda: _probabilities(place, scorer, where))
    rows = rows[(rows.dimension == row["dimension"]) & rows.label.notna()]
    rows = rows.assign(label=rows.label.astype(float), counted=1)
    column = "score" if base == "run_error_before" else "probability"
    likely = (
        1 / (1 + np.exp(-rows.score.astype(float)))
        if column == "score"
        else rows.probability.astype(float)
    )
    order, total = np.argsort(likely.to_numpy(), kind="stable"), 0.0
    for part in np.array_split(order, min(10, len(rows))):
        total += abs(rows.label.to_numpy()[part].sum() - likely.to_numpy()[part].sum())
    text = f"{len(rows)}" if base == "n" else written(100 * total / len(rows))
    reads = (
        {}
        if base == "n"
        else {file: (rows[benches.CELL].assign(scorer=scorer), frozenset({column}))}
    )
    files = (file, *BENCH[1:3], f"reward/{scorer}/calibration.json")
    return Origin(
        MEASURED,
        f"{scorer}: gap of share met and mean P(met), {row['dimension']}, {where}, over ten "
        "bins of equal size",
        files,
        text,
        f"{len(rows)} cells",
        rows,
        ("candidate_id",),
        lambda: reads,
        (f"reward/{scorer}",),
    )


def _probabilities(place: Place, scorer: str, where: str) -> pd.DataFrame:
    """Scores, P(met) and true labels, on the bench or the split that the calibration was fitted
    on."""
    if where.startswith("bench"):
        own = place.run.predicted[place.run.predicted.scorer == scorer]
        # in the order of the predictions, which decides between equal probabilities
        cells = own.merge(place.cells, on=["instruction_id", *benches.CELL])
        cells = cells[cells.seen if where.endswith(" seen") else ~cells.seen]
        return cells.assign(label=_label(cells, "truth"))
    rows = (
        place.run.table("reward/heldout.parquet")
        .query("scorer == @scorer")
        .rename(columns={"truth": "label"})
    )
    fitted = calibration.Calibration.load(place.folder / f"reward/{scorer}/calibration.json")
    return rows.assign(probability=fitted.probability(rows.score, rows.dimension))


def _policy(place, row, base, end) -> Origin:
    names = {name: policy for policy, name in tables.POLICY_NAMES.items()}
    policy = names.get(row["system"], row["system"].removesuffix(" (kit)"))
    factors = {policy: 1.0} if "paired" not in row["system"] else {"grpo": 1.0, "base": -1.0}
    metric = tables.POLICY.get(base.removeprefix("run_"))
    if metric:
        return of_policy(place, metric, factors, end)
    part = "difference" if len(factors) > 1 else policy  # the column of HealthBench
    value = place.run.healthbench["rows"][part][end.lstrip("_") or "value"]
    return Origin(
        MEASURED,
        f"{part}: {place.run.healthbench['reason']}",
        ("healthbench/graded.json",),
        written(value),
    )


SIDES = {
    "run_base": {"base": 1.0},
    "run_grpo": {"grpo": 1.0},
    "run_difference": {"grpo": 1.0, "base": -1.0},
}


def _policy_dimension(place, row, base, end) -> Origin:
    if base == "n":
        return _least(of_verdicts(place, row["dimension"], SIDES["run_difference"]))
    return (
        of_verdicts(place, row["dimension"], SIDES[base], end)
        if base in SIDES
        else _unknown(place, row, base, end)
    )


def _policy_specialty(place, row, base, end) -> Origin:
    metric = next(
        name for name, (what, _) in policy_metrics.METRICS.items() if what == row["measure"]
    )
    within = None if row["specialty"] == "all" else ("specialty", row["specialty"])
    if base == "n":
        return _least(of_policy(place, metric, SIDES["run_difference"], "", within))
    return (
        of_policy(place, metric, SIDES[base], end, within)
        if base in SIDES
        else Origin(TEXT, "what is measured")
    )


def _least(found: Origin) -> Origin:
    """Items of one policy and seed, of the patients that both have."""
    return replace(
        found,
        said=f"items of {found.said}",
        text=str(found.rows.groupby("part").size().min()),
        reads=dict,
    )


def _composition(place, row, base, end) -> Origin:
    """Counts of the bench, from its frames."""
    bench, name = place.run.bench, row["quantity"]
    pairs, people = bench.pairs.dimension.value_counts(), list(PEOPLE)
    cells = place.cells.assign(label=_label(place.cells, "adjudicated").astype(float)).dropna(
        subset="label"
    )
    met = cells.groupby(["dimension", "instruction_id", "criterion_id"]).label.agg(["sum", "size"])
    differing = (met["sum"] * (met["size"] - met["sum"])).groupby("dimension").sum().astype(int)
    counts = {"total": len(bench.pairs), "samples": len(bench.samples)} | {
        d: pairs.get(d, 0) for d in DIMENSIONS
    }
    counts |= {
        c: bench.samples[n].nunique()
        for c, n in (
            ("conditions", "condition"),
            ("categories", "category"),
            ("specialties", "specialty"),
        )
    }
    counts |= {f"{d} pairs in reserve": differing.get(d, 0) - pairs.get(d, 0) for d in DIMENSIONS}
    counts["criteria of unseen kinds percent"] = 100 * round(1 - bench.criteria.seen.mean(), 4)
    if name in counts:
        value = counts[name]
        text = written(value) if isinstance(value, float) else str(value)
        return Origin(
            MEASURED,
            f"{name}: counted in the frames of the bench",
            (*BENCH, "bench/report.json"),
            text,
        )
    verdicts, grades = (
        statistics.agreement(*frame[people].to_numpy().T, ordered=ordered)
        for frame, ordered in ((bench.verdicts, False), (bench.grades, True))
    )
    values = {
        "bench weighted kappa": grades.get("kappa_quadratic"),
        "bench linear kappa": grades.get("kappa_linear"),
        "bench verdict kappa": verdicts["kappa"],
        "bench verdict agreement percent": 100 * verdicts["observed"],
    }
    if name in values:
        said = (
            "of the simulated physicians, whose agreement the profile sets: "
            f"{_set(place, 'physician_agreement')}"
        )
        return Origin(SET, said, (BENCH[2], BENCH[4]), written(values[name]))
    if name in SETTINGS:
        return _setting(place, name)
    return Origin(MEASURED, f"{name}, of bench/report.json", ("bench/report.json",))


SETTINGS = {  # quantity -> (settings of the profile, factor, digits or text)
    "judge agreement with experts percent": ("judge_agreement", 100),
    "rubric strict pass rate percent": ("rubric_pass_rate", 100),
    "judge agreement that is set percent": ("judge_agreement", 100),
    "strict pass rate that ends the review percent": ("rubric_pass_rate", 100),
    "difficulty kept low": ("difficulty_least", 1),
    "difficulty kept high": ("difficulty_most", 1),
    "review batch per round": ("review_batch", 1),
}


def _set(place: Place, name: str) -> str:
    return f"{name} = {getattr(place.profile, name)}"


def _setting(place: Place, quantity: str) -> Origin:
    name, factor = SETTINGS[quantity]
    value = getattr(place.profile, name) * factor
    text = written(value) if isinstance(value, float) else str(value)
    return Origin(SET, f"set by the profile: {_set(place, name)}", ("manifest.json",), text)


def _pipeline(place, row, base, end) -> Origin:
    """Counts of the data pipeline, from the files that notebooks 01 and 02 wrote."""
    name, files = (
        row["quantity"],
        {
            n: place.run.table(f"data/{n}.csv")
            for n in ("funnel", "rounds", "expansion", "judge_errors")
        },
    )
    funnel, rounds, expansion, errors = files.values()
    found: dict[str, tuple] = {}  # quantity -> (file, value or (hits, n))
    if funnel is not None and len(funnel):
        first, last = int(funnel.before.iloc[0]), int(funnel.after.iloc[-1])
        found |= {
            "raw samples": ("funnel", first),
            "kept instructions": ("funnel", last),
            "kept percent of raw": ("funnel", 100 * last / first),
        }
        found |= {
            f"dropped or queued: {r.step}": ("funnel", int(r.before - r.after))
            for r in funnel.itertuples()
        }
    if rounds is not None and len(rounds):
        last = rounds.iloc[-1]
        found |= {
            "review rounds": ("rounds", len(rounds)),
            "rubric strict pass rate percent": (
                "rounds",
                (int(last.blind_passed), int(last.blind_n)),
            ),
        }
    if errors is not None:
        wrong, n = int((errors.rate * errors.n).round().sum()), int(errors.n.sum())
        found["judge agreement with experts percent"] = ("judge_errors", (n - wrong, n))
    if expansion is not None:
        found |= {
            "training verdicts": ("expansion", int(expansion.verdicts.sum())),
            "answers compared on a criterion": ("expansion", int(expansion.comparisons.sum())),
            "criterion pairs": ("expansion", int(expansion.pairs.sum())),
        }
        found |= {
            f"criterion pairs, {d}": (
                "expansion",
                int(expansion.pairs[expansion.dimension == d].sum()),
            )
            for d in DIMENSIONS
        }
    if name not in found:
        return (
            _setting(place, name) if name in SETTINGS else Origin(SET, f"{name}: set by the clinic")
        )
    file, value = found[name]
    ratio = ""
    if isinstance(value, tuple):
        hits, n = value
        ends = dict(zip(ENDS, (hits / n, *statistics.wilson(hits, n)), strict=True))
        ratio, text = f"{hits} of {n}", written(100 * ends[end])
    else:
        text = written(value) if isinstance(value, float) else str(value)
    set_too = row["status"] == "input"
    said = f"{name}, of data/{file}.csv" + (
        ": how often the clinic's people err is set, so no finding" * set_too
    )
    return Origin(SET if set_too else MEASURED, said, (f"data/{file}.csv",), text, ratio)


def external_items(place: Place, part: str, wanted: Mapping, subset: str = "") -> Items:
    """Answer pairs of a set, or of a subset of it; a tie or no preference is wrong."""
    frame = place.run.outside
    frame = frame[frame["set"] == part]
    samples = (
        frame[["instruction_id", "condition"]]
        .drop_duplicates()
        .sort_values("instruction_id", ignore_index=True)
    )
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    rows = frame[frame.subset == subset] if subset else frame
    return Items(rows.assign(part="", hit=rows.prefers.eq(rows.label) * 1.0, counted=1.0), samples)


def _system_outside(place: Place, name: str) -> dict:
    system = name.removesuffix(", with retrieval")
    known = place.systems | {said: key for key, said in tables.NAMES_OUTSIDE.items()}
    return {"system": known.get(system, system.removesuffix(" (kit)")), "retrieval": system != name}


def _external(place, row, base, end) -> Origin:
    part = next(key for key, label in tables.SETS.items() if label == row["set"])
    wanted = _system_outside(place, row["system"])
    if base == "pairs":
        found = external_items(place, part, wanted).rows
        pairs = len(found[["instruction_id", "a_id", "b_id"]].drop_duplicates())
        return Origin(MEASURED, f"answer pairs of {part}", (EXTERNAL,), str(pairs))
    return _of_external(place, part, wanted | {"text": base.removeprefix("run_")}, end)


def _of_external(place: Place, part: str, wanted: Mapping, end: str, subsets=("",)) -> Origin:
    """Share of answer pairs ordered rightly; over several subsets the mean of their shares."""
    each = {name: external_items(place, part, wanted, name) for name in subsets}
    items, first = next(iter(each.values())), subsets[0]
    if len(subsets) > 1:
        rows = pd.concat([found.rows.assign(part=name) for name, found in each.items()])
        items = Items(rows, items.samples, dict.fromkeys(subsets, 1 / len(subsets)))
    said = (
        f"{part}: pairs of answers that {wanted['system']} orders rightly, given {wanted['text']}"
    )
    said += " and documents" * bool(wanted["retrieval"]) + (
        f", subset {first}" if first and len(subsets) == 1 else ""
    )
    keys = items.rows[["set", *wanted, "instruction_id", "a_id", "b_id"]]
    return Origin(
        MEASURED,
        said,
        (EXTERNAL,),
        _texts(items, place.profile, 100)[end],
        items.ratio(),
        items.rows,
        ("a_id", "b_id") if part == "clinic" else (),
        lambda: {EXTERNAL: (keys, frozenset({"prefers"}))},
        (f"reward/{wanted['system']}",),
    )


def _rewardbench(place, row, base, end) -> Origin:
    if base.startswith("run_"):
        name, _, text = row["system"].rpartition(", ")
        text = dict(zip(tables.TEXTS, tables.EXTERNAL, strict=True))[text]
        subset = base.removeprefix("run_")
        subsets = tuple(tables.SUBSETS) if subset == "macro_mean" else (subset,)
        return _of_external(
            place,
            "medical_rewardbench",
            _system_outside(place, name) | {"text": text},
            end,
            subsets,
        )
    parts = [float(row[f"reported_{name}"]) for name in tables.SUBSETS]
    sizes = list(tables.SUBSETS.values()) if base.endswith("by_pairs") else [1] * len(parts)
    text = written(np.average(parts, weights=sizes))
    said = "worked out from the reported subsets of this row (mark D): " + ", ".join(tables.SUBSETS)
    return Origin(REPORTED, said, ("paper_values/ultramedical_rewardbench.csv",), text)


def _ablation(place, row, base, end) -> Origin:
    """A variant of one of the kit's committed studies, in the study's own words."""
    study, label, column = (
        row["study"],
        row["system"].removesuffix(" (kit)"),
        base.removeprefix("run_"),
    )
    folder = project_root() / "papers_figures/studies" / study
    if study == "reward_models":
        return _of_results(folder, label, column, end)
    answers = place.once((study,), lambda: pd.read_parquet(folder / "evaluation.parquet"))
    named = pd.read_csv(folder / "policies.csv").set_index("label").variant
    policy, files = named[label], (f"studies/{study}/evaluation.parquet",)
    own = answers[answers.policy == policy]
    if column == "seeds":
        return Origin(MEASURED, f"training seeds of {label}", files, str(own["seed"].nunique()))
    metric, against = policy_metrics.STUDY[column], policy_metrics.labels(answers)
    samples = answers.drop_duplicates("instruction_id").sort_values(
        "instruction_id", ignore_index=True
    )
    items = policy_items(own, samples, _value(own, metric, against), {policy: 1.0})
    manifest = read_json(folder / "manifest.json", "of a study (make study)")
    what, unit = policy_metrics.METRICS[metric]
    texts = _texts(items, profiles.of_manifest(manifest), unit)
    keys = items.rows[["policy", "seed", "instruction_id"]]
    return Origin(
        MEASURED,
        f"study {study}, {label}: {what}, by {against}, mean of its training seeds",
        files,
        texts[end],
        items.ratio(),
        items.rows,
        (),
        lambda: {files[0]: (keys, frozenset(FIELDS[metric]))},
    )


def _of_results(folder: Path, label: str, column: str, end: str) -> Origin:
    """A row of results.csv: of a study whose predictions are not published."""
    file = f"studies/{folder.name}/results.csv"
    labels = {said: name for name, said in kind_of("reward_models")["labels"].items()}
    rows = results.read(folder).query("how == 'value' and against == 'adjudicated'")
    rows = rows[rows.system == labels.get(label, label)]
    if column == "seeds":
        trained = set(rows.seed) - {results.MEAN} or {""}
        return Origin(MEASURED, f"training seeds of {label}", (file,), str(len(trained)))
    metric, part = tables.OF_REWARD[column]
    rows = rows[(rows.metric == metric) & (rows["slice"] == part) & (rows.seed == results.MEAN)]
    value = rows[{"": "value", "_low": "low", "_high": "high"}[end]].iloc[0]
    said = (
        f"study {folder.name}: {label}, {metric} on {part}, a row of results.csv; its predictions "
        f"stay in the study's folder, runs/studies/{folder.name}"
    )
    return Origin(MEASURED, said, (file,), written(100 * value), rows=rows)


_MAKE = {
    "main_results": _bench_table("adjudicated"),
    "main_results_truth": _bench_table("truth"),
    "safety_veto": _bench_table("adjudicated"),
    "safety_veto_truth": _bench_table("truth"),
    "graders": _graders,
    "seen_unseen": _bench_table("adjudicated"),
    "specialty": _specialty,
    "by_source": _by_source,
    "calibration": _calibration,
    "ablation": _ablation,
    "policy": _policy,
    "policy_dimension": _policy_dimension,
    "policy_specialty": _policy_specialty,
    "bench_composition": _composition,
    "data_pipeline": _pipeline,
    "external": _external,
    "medical_rewardbench": _rewardbench,
}
