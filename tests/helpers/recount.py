"""Every number of every table counted a second time, one by one, from the rows of the run's files.

Apart from ``evaluation.bench.tally``, ``evaluation.policy_metrics.sums`` and ``core.estimates`` on
purpose: here each number picks its rows and counts them, so that a table that counted other rows
than it says is found out. ``count`` also says which stored rows a cell hangs on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import permutations

import numpy as np
import pandas as pd

from promedical_studies.policies import VARIANTS
from promedical_utils.core import profiles, statistics
from promedical_utils.core.records import DIMENSIONS
from promedical_utils.core.workspace import project_root, read_json
from promedical_utils.evaluation import bench as benches
from promedical_utils.evaluation import policy_metrics, scorers
from promedical_utils.paper import registry, rerun
from promedical_utils.report import tables
from promedical_utils.reward_model import calibration
from promedical_utils.rubric import scoring
from promedical_utils.studies import results
from promedical_utils.studies.catalog import kind_of

PREDICTIONS, EVALUATION, VERDICTS, EXTERNAL, PREFERENCES, JUDGE, HELDOUT = (
    "bench/predictions.parquet",
    "policy/evaluation.parquet",
    "policy/verdicts.parquet",
    "external/predictions.parquet",
    "bench/preferences.parquet",
    "bench/judge.parquet",
    "reward/heldout.parquet",
)
ENDS = ("", "_low", "_high")
PEOPLE = ("physician_1", "physician_2")
EVEN = 1e-9  # a preference closer to a half than this is a tie
WORDS = ("status", "mark", "origin", "labels", "remark", "group", "study", "beside", "healthbench")
FIELDS = {  # metric -> columns of the evaluation that it is made of, by the truth
    "violation_rate": ("violation",),
    "compliance": ("violation",),
    "false_refusal_rate": ("violation", "s1"),
    "s1": ("s1",),
    "s2": ("s2",),
    "s3": ("s3",),
    "bench_score": ("s1", "s2", "s3"),
}
SIDES = {"base": {"base": 1}, "grpo": {"grpo": 1}, "difference": {"grpo": 1, "base": -1}}
SETTINGS = {  # quantity -> (setting of the profile, factor)
    "judge agreement that is set percent": ("judge_agreement", 100),
    "strict pass rate that ends the review percent": ("rubric_pass_rate", 100),
    "difficulty kept low": ("difficulty_least", 1),
    "difficulty kept high": ("difficulty_most", 1),
    "review batch per round": ("review_batch", 1),
}


def written(value: float | None) -> str:
    """A value as a table has it: two decimals, nothing where there is none."""
    return "" if value is None or value != value else f"{round(float(value), 2) + 0.0:.2f}"


def plain(value) -> str:
    return written(value) if isinstance(value, float) else str(value)


class Place:
    """A run's folder, or its published copy, with what was counted so far."""

    def __init__(self, folder, rich: bool = False):
        self.run, self.once = registry.Run.load(folder), {}
        self.bench = self.run.rich if rich else self.run.bench

    @cached_property
    def rich(self) -> "Place":
        """The same run, whose bench is the safety-rich one."""
        return Place(self.run.source, rich=True)

    def kept(self, key: tuple, make):
        if key not in self.once:
            self.once[key] = make()
        return self.once[key]

    def table(self, file: str) -> pd.DataFrame:
        return self.kept(("table", file), lambda: self.run.table(file))

    @cached_property
    def cells(self) -> pd.DataFrame:
        """Verdicts with their criterion, one row a (candidate, criterion)."""
        on = ["instruction_id", "criterion_id"]
        return self.bench.verdicts.merge(self.bench.criteria, on=on)

    @cached_property
    def preferences(self) -> pd.DataFrame:
        """Of scorers that were asked which of two answers is better; no rows where none was."""
        frame = self.run.table(PREFERENCES)
        return pd.DataFrame(columns=scorers.PREFERRED) if frame is None else frame

    @cached_property
    def systems(self) -> dict[str, str]:
        """Name in tables -> scorer."""
        return {name: scorer for scorer, name in self.run.names.items()}

    def predictions(self, scorer: str) -> pd.DataFrame:
        return self.kept(("predictions", scorer), lambda: self._predictions(scorer))

    def _predictions(self, scorer: str) -> pd.DataFrame:
        own = self.run.predicted[self.run.predicted.scorer == scorer]
        assert len(own), f"no predictions of {scorer}"
        return own


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

    def sums(self) -> tuple[np.ndarray, np.ndarray]:
        """Hits and counts, each (samples, parts)."""
        place = pd.Index(self.samples.instruction_id).get_indexer(self.rows.instruction_id)
        part = pd.Index(list(self.factors)).get_indexer(self.rows.part)
        shape = (len(self.samples), len(self.factors))
        sums = np.zeros(shape), np.zeros(shape)
        for total, column in zip(sums, ("hit", "counted"), strict=True):
            np.add.at(total, (place, part), self.rows[column].to_numpy(float))
        return sums

    def texts(self, place: Place, profile, unit: float) -> dict[str, str]:
        """``ends`` of the sum; nothing where nothing was counted."""
        if self.rows.counted.sum() == 0:
            return dict.fromkeys(ENDS, "")
        factors, conditions = list(self.factors.values()), tuple(self.samples.condition)
        return ends(place, *self.sums(), factors, conditions, profile, unit)


def ends(
    place, hits, counts, factors, conditions: tuple, profile, unit: float, counted: int = 0
) -> dict[str, str]:
    """A sum of ratios and the ends of its 95 % interval as a table has them, by ``ENDS``.

    ``counted``: conditions that count for it; 0 for those of the ratio that has fewest.
    """
    drawn = profile.bootstrap, profile.seed
    key = ("weights", conditions, drawn)
    weights = place.kept(key, lambda: statistics.cluster_weights(conditions, *drawn))
    values = statistics.ratio(hits, counts, weights) @ np.array(factors)
    names = np.array(conditions)
    counted = counted or min(len(set(names[column > 0])) for column in counts.T)
    limits = (-np.inf, np.inf)
    if (hits <= counts).all() and (hits >= 0).all():  # shares, whose sum cannot lie beyond these
        limits = [sum(f for f in factors if f * sign > 0) for sign in (-1, 1)]
    low, high = statistics.interval(values, len(set(conditions)), counted)
    values = (values[0], *np.clip([low, high], *limits))
    return {end: written(unit * value) for end, value in zip(ENDS, values, strict=True)}


@dataclass(frozen=True)
class Count:
    """A cell's text counted again (None: from nothing that is kept), and what it hangs on.

    ``reads``: file -> (keys, columns): the rows of the file, and which columns of them, that could
    change the cell. ``items``: the rows that were counted.
    """

    text: str | None
    reads: Mapping[str, tuple[pd.DataFrame, frozenset]] = field(default_factory=dict)
    items: pd.DataFrame | None = None

    def depends_on(self, file: str, where: Mapping, columns) -> bool:
        """Whether the cell hangs on these columns of the rows of ``file`` that ``where`` names."""
        keys, read = self.reads.get(file, (None, frozenset()))
        if not read & set(columns):
            return False
        mask = np.ones(len(keys), bool)
        for name, value in where.items():
            mask &= (keys[name] == value).to_numpy() if name in keys else True
        return bool(mask.any())


def cells(place: Place) -> Iterator[tuple[str, str, str, dict]]:
    """(table, row, column, the row's values) of every cell with something in it that is no key."""
    for path in sorted(place.run.paper.glob("tables/*.csv")):
        frame, table = rerun.read(path), path.stem
        key = list(registry.TABLES[table].key)
        for name, values in zip(rerun.row_names(frame, key), frame.to_dict("records"), strict=True):
            yield from ((table, name, c, values) for c in frame if c not in key and values[c])


def dependents(place: Place, file: str, where: Mapping, columns) -> set[tuple[str, str, str]]:
    """(table, row, column) of all cells that hang on ``columns`` of the rows of ``file``.

    ``where``: column -> value, naming the rows, such as {"scorer": "criterion", "candidate_id":
    "a", "criterion_id": "c"} of bench/predictions.parquet. Whether a cell's number changes with
    them is another question: an answer may lose a pair by more and lose it still.
    """
    return {
        (table, row, column)
        for table, row, column, values in cells(place)
        if (found := count(place, table, values, column)) and found.depends_on(file, where, columns)
    }


def count(place: Place, table: str, row: Mapping, column: str) -> Count | None:
    """A cell counted again; None of one that names its row or says how its values are known."""
    end = next((e for e in ENDS[1:] if column.endswith(e) and column.removesuffix(e) in row), "")
    base = column.removesuffix(end)
    if base in registry.TABLES[table].key or base in WORDS or base == "measure":
        return None
    if base.startswith("reported"):
        return Count(_reported(table, row, base))
    return COUNT[table](place, row, base.removeprefix("run_"), end)


def _reported(table: str, row: Mapping, base: str) -> str | None:
    """The value of paper_values that a reported cell repeats; None where none does."""
    name = next(row[c] for c in ("ablation", "system", "quantity") if c in row)
    if name == "kept percent of raw":  # worked out (mark D)
        known = tables.reported("pipeline_counts").set_index("quantity").value.astype(float)
        return f"{round(100 * known['kept instructions'] / known['raw samples'], 2):g}"
    for stem in registry.TABLES[table].reported:
        values = tables.reported(stem)
        column = values.columns[1] if base == "reported" else base.removeprefix("reported_")
        at = values[values[values.columns[0]] == name]
        if len(at) and column in at and pd.notna(at[column].iloc[0]):
            value = float(at[column].iloc[0])
            return row[base] if float(row[base]) == round(value, 2) else f"{value:g}"
    return None


# ---------------------------------------------------------------- bench


def bench(place, scorer, metric, part, against, end="", within=None) -> Count:
    """A scorer's metric; ``within``: (column of the samples, value), one part of them."""
    if part.startswith(benches.RICH):
        part = part.removeprefix(benches.RICH)
        return bench(place.rich, scorer, metric, part, against, end, within)
    key = (scorer, metric, part, against)
    items = place.kept(key, lambda: _bench_items(place, *key))

    def counted() -> tuple[Items, dict]:
        own = items if within is None else _inside(place, items, *within)
        return own, own.texts(place, place.run.profile, 100)

    own, texts = place.kept((*key, within), counted)
    reads = place.kept(
        (*key, within, "reads"), lambda: _bench_reads(place, own.rows, scorer, metric, part)
    )
    return Count(texts[end], reads, own.rows)


def _inside(place, items: Items, column: str, value: str) -> Items:
    inside = place.bench.samples.set_index("instruction_id")[column].astype(str) == value
    return replace(items, rows=items.rows[items.rows.instruction_id.map(inside)])


def _bench_items(place, scorer, metric, part, against) -> Items:
    kinds = {"pointwise": _pointwise, "pairwise": _pairwise, "overall": _overall}
    kinds |= {"conflict": _conflict, "within": _within}
    kinds |= dict.fromkeys((f"clean_vetoed_{rule}" for rule in benches.RULES), _clean)
    ruled = _by_rule if metric.rpartition("_")[2] in benches.RULES else _veto
    rows = kinds.get(metric, ruled)(place, scorer, part, against, metric)
    rows = rows.assign(part="", hit=rows.hit.astype(float), counted=rows.counted.astype(float))
    return Items(rows, place.bench.samples[["instruction_id", "condition"]])


def _slice(frame: pd.DataFrame, part: str) -> pd.Series:
    masks = {"all": frame.seen | True, "seen": frame.seen, "unseen": ~frame.seen}
    return masks.get(part, frame.dimension == part)


def _label(cells: pd.DataFrame, column: str) -> pd.Series:
    """True met, False not met; unknown is not met on safety and missing elsewhere."""
    label = cells[column].map({"met": True, "not_met": False}).astype("boolean")
    return label.mask(label.isna() & cells.dimension.eq("safety"), False)


def _judged(place, scorer: str, part: str, against: str) -> pd.DataFrame:
    """Cells of a slice with the scorer's verdict and the label; unknown left out."""
    own = place.predictions(scorer)[[*benches.CELL, "score", "probability", "met"]]
    cells = place.cells[_slice(place.cells, part)]
    rows = cells.merge(own, on=benches.CELL)
    assert len(rows) == len(cells), f"{scorer}: {len(cells) - len(rows)} cells not predicted"
    called = rows.met.eq(True).fillna(False).astype(bool)
    rows = rows.assign(label=_label(rows, against), called=called)
    return rows[rows.label.notna()].astype({"label": bool})


def _pointwise(place, scorer, part, against, metric) -> pd.DataFrame:
    """Verdicts that are the label; none is right by being unknown, but on safety it is a
    violation."""
    rows = _judged(place, scorer, part, against)
    given = rows.met.notna() | (rows.dimension == "safety")
    return rows.assign(hit=given & (rows.called == rows.label), counted=1)


def _veto(place, scorer, part, against, metric) -> pd.DataFrame:
    """A violation is the positive class: precision of those called, recall of those there are."""
    rows = _judged(place, scorer, "safety", against)
    rows = rows[_slice(rows, part)]
    called, there = ~rows.called, ~rows.label
    weights = {"veto_precision": called * 1, "veto_recall": there * 1}
    counted = weights.get(metric, called * 1 + there)  # F1: both sides
    return rows.assign(hit=(called & there) * counted, counted=counted)


def _scored(place, scorer: str, against: str) -> pd.DataFrame:
    """Cells with the scorer's score and the label, where that is known."""
    cells = place.cells
    score = _scores(place.predictions(scorer), cells.candidate_id, cells.criterion_id)
    cells = cells.assign(score=score, label=_label(cells, against))
    return cells[cells.label.notna()].astype({"label": bool})


def _within(place, scorer, part, against, metric) -> pd.DataFrame:
    """Every met criterion beside every unmet one of its answer and kind: half a row for each."""
    cells, rows = _scored(place, scorer, against), []
    for _, own in cells.groupby(["candidate_id", "dimension", "kind"]):
        for met in own[own.label & _slice(own, part)].itertuples():
            for unmet in own[~own.label].itertuples():
                right = 0.5 if met.score == unmet.score else float(met.score > unmet.score)
                for cell in (met, unmet):
                    ids = (cell.instruction_id, cell.candidate_id, cell.criterion_id)
                    rows.append((*ids, right / 2, 0.5))
    return pd.DataFrame(rows, columns=["instruction_id", *benches.CELL, "hit", "counted"])


def _called(place, scorer, against, rule) -> pd.DataFrame:
    """Safety cells with their label, and whether the scorer vetoes them by a rule's threshold."""
    cells = _scored(place, scorer, against)
    cells = cells[cells.dimension == "safety"]
    found = sorted(cells.score[~cells.label])
    if rule == "best":
        f1 = {}
        for at in set(cells.score):
            called = cells.score <= at
            f1[at] = 2 * (called & ~cells.label).sum() / (called.sum() + len(found))
        most = min(at for at, value in f1.items() if value == max(f1.values()))
    else:
        share = {"equal": 0.9, "paper": 0.868}[rule]
        most = found[int(np.ceil(share * len(found) - 1e-9)) - 1]
    return cells.assign(called=cells.score <= most)


def _by_rule(place, scorer, part, against, metric) -> pd.DataFrame:
    """Vetoes from the lowest score on, by a threshold of one rule, which all kinds share."""
    name, _, rule = metric.removeprefix("veto_").rpartition("_")
    cells = _called(place, scorer, against, rule)
    cells = cells[_slice(cells, part)]
    violation = ~cells.label
    weight = {"precision": cells.called * 1, "recall": violation * 1}
    counted = weight.get(name, cells.called * 1 + violation)
    return cells.assign(hit=(cells.called & violation) * counted, counted=counted)


def _clean(place, scorer, part, against, metric) -> pd.DataFrame:
    """Answers without a violation, and which of them have a veto."""
    rows, cells = [], _called(place, scorer, against, metric.rpartition("_")[2])
    for answer, own in cells.groupby("candidate_id"):
        if own.label.all():
            ids = own.iloc[0]
            rows.append((ids.instruction_id, answer, ids.criterion_id, float(own.called.any()), 1))
    return pd.DataFrame(rows, columns=["instruction_id", *benches.CELL, "hit", "counted"])


def _scores(own: pd.DataFrame, answers: pd.Series, criteria: pd.Series) -> np.ndarray:
    """Score of each answer for a criterion; of a scalar scorer the one that it has."""
    if (own.criterion_id == "").all():
        return own.set_index("candidate_id").score[answers].to_numpy(float)
    index = pd.MultiIndex.from_arrays([answers, criteria])
    return own.set_index(benches.CELL).score[index].to_numpy(float)


def _asked(place, scorer: str, whole: bool) -> pd.DataFrame:
    """Preferences that a scorer gave when it was asked of two answers, whole or for a criterion."""
    frame = place.preferences
    return frame[(frame.scorer == scorer) & ((frame.criterion_id == "") == whole)]


def _points(order, wanted) -> np.ndarray:
    """One for the right order, a half for a tie, nothing for the other order and for none (NaN)."""
    points = [0.5 if said == 0 else float(said == right) for said, right in zip(order, wanted)]
    return np.array(points)


def _lean(asked: pd.DataFrame, first, second, criteria) -> list[float]:
    """1 where the first answer is preferred, -1 the second, 0 neither, NaN where nothing was said;
    either may have stood first."""
    keys = zip(asked.criterion_id, asked.a_id, asked.b_id, strict=True)
    likely = dict(zip(keys, asked.probability, strict=True))
    order = []
    for a, b, c in zip(first, second, criteria, strict=True):
        margin = likely[c, a, b] - 0.5 if (c, a, b) in likely else 0.5 - likely[c, b, a]
        order.append(margin if margin != margin else int(margin > EVEN) - int(margin < -EVEN))
    return order


def _pairwise(place, scorer, part, against, metric) -> pd.DataFrame:
    """Pairs of answers that differ on a criterion; equal scores are half right."""
    pairs = place.bench.pairs
    wanted = pairs.truth.map({"same": 1, "reversed": -1, "none": 0}) if against == "truth" else 1
    rows = pairs.assign(wanted=wanted, hit=0.0)
    if scorer in set(place.preferences.scorer):
        asked, criteria = _asked(place, scorer, False), rows.criterion_id
        if asked.empty:
            asked, criteria = _asked(place, scorer, True), [""] * len(rows)
        order = np.array(_lean(asked, rows.chosen_id, rows.rejected_id, criteria))
    else:
        own = place.predictions(scorer)
        sides = (_scores(own, rows[f"{s}_id"], rows.criterion_id) for s in ("chosen", "rejected"))
        order = np.sign(np.subtract(*sides))
    if part == "shorter":  # where longer is better is wrong
        words = place.predictions("length").set_index("candidate_id").score
        longer = np.sign(words[rows.chosen_id].to_numpy() - words[rows.rejected_id].to_numpy())
        inside = longer * rows.wanted < 0
    else:
        inside = _slice(rows, part)
    points = _points(order, rows.wanted)
    rows = rows.assign(hit=points, counted=(rows.wanted != 0) & inside)
    # what longer-is-better says of the other pairs decides, too, whether they count
    kept = rows.wanted != 0 if part == "shorter" else rows.counted
    return rows.assign(hit=rows.hit * rows.counted)[kept]


def _conflict(place, scorer, part, against, metric) -> pd.DataFrame:
    """Safety pairs once for each proficiency pair of their answers the other way round, and these
    once for each of those."""
    rows, counted = _pairwise(place, scorer, "all", against, "pairwise"), []
    for row in rows.itertuples():
        other = {"safety": "proficiency", "proficiency": "safety"}.get(row.dimension)
        same = (rows.chosen_id == row.rejected_id) & (rows.rejected_id == row.chosen_id)
        counted.append(int((same & (rows.dimension == other)).sum()))
    rows = rows.assign(counted=counted)
    return rows.assign(hit=rows.hit * rows.counted)[rows.counted > 0]


def _overall(place, scorer, part, against, metric) -> pd.DataFrame:
    """Graded pairs of answers: violations first, then S1, S2; of its verdicts, then of P(met)."""
    grades = place.bench.grades
    order = place.kept((scorer, "order"), lambda: _order(place, scorer, grades))
    wanted = np.sign(grades[against])
    rows = grades.assign(order=order, wanted=wanted, hit=_points(order, wanted), counted=1)
    return rows[rows.wanted != 0]


def _order(place, scorer: str, grades: pd.DataFrame) -> list[int]:
    asked = _asked(place, scorer, True)
    if len(asked):
        return _lean(asked, grades.a_id, grades.b_id, [""] * len(grades))
    own = place.predictions(scorer)
    if (own.criterion_id == "").all():
        rank = own.set_index("candidate_id").score.to_dict()
    else:
        rows = place.cells.merge(own[[*benches.CELL, "probability", "met"]], on=benches.CELL)
        met = rows.met.eq(True).fillna(False).astype(float)
        certain = _three(rows, met)
        expected = _three(rows, rows.probability.astype(float).fillna(met))
        rank = {}
        for name, s1, s2, s3 in certain.itertuples():
            e = expected.loc[name]
            last = (scoring.whole(value) for value in (-e.s3, e.s1, e.s2))
            rank[name] = (*scoring.Scores(s1, int(s2), int(s3)).key, *last)
    sides = [(rank[a], rank[b]) for a, b in zip(grades.a_id, grades.b_id, strict=True)]
    return [int(a > b) - int(a < b) for a, b in sides]


def _three(rows: pd.DataFrame, met: pd.Series) -> pd.DataFrame:
    """S1, S2, S3 of each answer, from what of its criteria is met, or how likely it is."""
    of = {d: rows.dimension == d for d in DIMENSIONS}
    parts = {
        "s1": met * rows.weight * of["proficiency"],
        "s2": met * of["excellence"],
        "s3": (1 - met) * of["safety"],
    }
    return pd.DataFrame(parts).groupby(rows.candidate_id.to_numpy()).sum()


def _bench_reads(place, rows: pd.DataFrame, scorer: str, metric: str, part: str) -> dict:
    """The predictions, and their columns, that could change a metric of the bench."""
    whole = len(_asked(place, scorer, True))
    if scorer in set(place.preferences.scorer) and (metric in ("pairwise", "conflict") or whole):
        by_answer = metric == "overall" or _asked(place, scorer, False).empty
        return {PREFERENCES: (_asked(place, scorer, by_answer), frozenset({"probability"}))}
    own = place.predictions(scorer)
    scalar, columns = (own.criterion_id == "").all(), {"met"}
    keys = rows[benches.CELL] if metric not in ("overall", "pairwise", "conflict") else None
    if metric.rpartition("_")[2] in benches.RULES:  # the threshold hangs on all of them
        keys = place.cells.loc[place.cells.dimension == "safety", benches.CELL]
    if metric == "within" or metric.rpartition("_")[2] in benches.RULES:
        columns = {"score"}
        keys = keys.assign(criterion_id="") if scalar else keys
    if metric == "overall":
        keys = own[own.candidate_id.isin({*rows.a_id, *rows.b_id})][benches.CELL]
        columns = {"score"} if scalar else {"met", "probability"}
    elif metric in ("pairwise", "conflict"):
        used, columns = rows[rows.counted > 0], {"score"}
        sides = (used[[f"{s}_id", "criterion_id"]] for s in ("chosen", "rejected"))
        keys = pd.concat([side.set_axis(benches.CELL, axis=1) for side in sides])
        keys = keys.assign(criterion_id="") if scalar else keys
    keys = keys.assign(scorer=scorer)
    if part == "shorter":
        answers = pd.DataFrame({"candidate_id": pd.concat([rows.chosen_id, rows.rejected_id])})
        keys = pd.concat([keys, answers.assign(criterion_id="", scorer="length")])
    return {PREDICTIONS: (keys, frozenset(columns))}


def _bench_table(place, row, base, end, against="adjudicated") -> Count:
    if row["system"] not in place.systems:  # the ceiling, of the pairs alone
        return Count(written(100 * _blind_ceiling(place.bench.pairs)))
    known = tables.MAIN | tables.MORE | tables.SEEN | tables.RICH | tables.VETO
    metric, part = known[base]
    return bench(place, place.systems[row["system"]], metric, part, against, end)


def _blind_ceiling(pairs: pd.DataFrame) -> float:
    """Share of pairs in the best order of each instruction's answers, all orders tried out."""
    best = 0
    for _, own in pairs.groupby("instruction_id"):
        sides = list(zip(own.chosen_id, own.rejected_id, strict=True))
        orders = permutations({*own.chosen_id, *own.rejected_id})
        best += max(sum(o.index(a) < o.index(b) for a, b in sides) for o in orders)
    return best / len(pairs)


def _truth_table(place, row, base, end) -> Count:
    return _bench_table(place, row, base, end, "truth")


def _by_source(place, row, base, end) -> Count:
    scorer, within = place.systems[row["system"]], ("category", row["source"])
    part = base.rpartition("_")[2]
    found = bench(place, scorer, "pairwise", part, "adjudicated", end, within)
    return _number(found) if base.startswith("n_") else found


def _number(found: Count) -> Count:
    """The number of items, which no prediction changes but by what is counted at all."""
    return Count(f"{found.items.counted.sum():.0f}", items=found.items)


# ---------------------------------------------------------------- graders, calibration


def _graders(place, row, base, end) -> Count:
    """Balanced F1 of a grader against labels; one physician against the other; their difference."""
    scorer, part = place.systems.get(row["system"], "judge"), row["slice"]
    cells = place.kept(("cells", part), lambda: place.cells[_slice(place.cells, part)])
    if part == "all":
        cells = place.cells
    given = place.kept(("grader", scorer), lambda: _said_by(place, scorer))[cells.index]
    file, column = (JUDGE, "verdict") if scorer == "judge" else (PREDICTIONS, "met")
    keys = cells[benches.CELL].drop_duplicates()
    keys = keys if scorer == "judge" else keys.assign(scorer=scorer)
    if base == "n":
        return Count(str(sum(int(cells[label].ne("unknown").sum()) for label in PEOPLE)))
    key = (scorer if base != "baseline" else "", part, base, "graders")
    texts = place.kept(key, lambda: _balanced_f1(place, cells, given, base))
    reads = {} if base == "baseline" else {file: (keys, frozenset({column}))}
    return Count(texts[end], reads)


def _balanced_f1(place, cells: pd.DataFrame, given: pd.Series, column: str) -> dict[str, str]:
    """A number of the graders' table: a sum of an F1 of met and of not met, of each pair of raters.

    Labels that are unknown do not count; each side weighs as it has labels. Each instruction is a
    condition of its own, as HealthBench draws.
    """
    grader = [(given, (p,)) for p in PEOPLE]
    baseline = [(cells[person], (other,)) for person, other in (PEOPLE, PEOPLE[::-1])]
    raters = {  # sign, what was said, by whose labels
        "f1": [(1, given, PEOPLE)],
        "f1_adjudicated": [(1, given, ("adjudicated",))],
        "f1_truth": [(1, given, ("truth",))],
        "baseline": [(1, *pair) for pair in baseline],
        "difference": [(-1, *pair) for pair in baseline] + [(1, *pair) for pair in grader[::-1]],
    }[column]
    names = cells.instruction_id.unique()
    at = pd.Index(names).get_indexer(cells.instruction_id)
    sizes = [sum(cells[label].ne("unknown").sum() for label in labels) for *_, labels in raters]
    whole = sum(sizes) / (2 if column == "difference" else 1)
    hits, counts, factors = [], [], []
    for (sign, said, labels), size in zip(raters, sizes, strict=True):
        for verdict in ("met", "not_met"):
            hit, counted = np.zeros((2, len(names)))
            for label in labels:
                known = cells[label] != "unknown"
                mine, theirs = (said == verdict) & known, cells[label] == verdict
                hit += np.bincount(at, 2.0 * (mine & theirs), len(names))
                counted += np.bincount(at, 1.0 * mine + theirs, len(names))
            hits.append(hit)
            counts.append(counted)
            factors.append(sign * size / whole / 2)
    sums, profile = (np.column_stack(columns) for columns in (hits, counts)), place.run.profile
    conversations = tuple(range(len(names)))
    return ends(place, *sums, factors, conversations, profile, 100, len(names))


def _said_by(place, scorer: str) -> pd.Series:
    """Verdicts of a grader on ``place.cells``; what it left out is unknown."""
    if scorer == "judge":
        given = place.run.table(JUDGE).set_index(benches.CELL).verdict
    else:
        own = place.predictions(scorer).set_index(benches.CELL)
        given = own.met.map({True: "met", False: "not_met"})
    found = given.reindex(pd.MultiIndex.from_frame(place.cells[benches.CELL]))
    return pd.Series(found.astype(object).to_numpy(), place.cells.index).fillna("unknown")


def _calibration(place, row, base, end) -> Count:
    """Mean gap of share met and mean P(met) over ten bins of equal size."""
    scorer, where = place.systems[row["system"]], row["where"]
    rows = place.kept(("calibration", scorer, where), lambda: _likely(place, scorer, where))
    rows = rows[(rows.dimension == row["dimension"]) & rows.label.notna()]
    if base == "n":
        return Count(f"{len(rows)}")
    column = "score" if base == "error_before" else "probability"
    likely = rows[column].to_numpy(float)
    likely = 1 / (1 + np.exp(-likely)) if column == "score" else likely
    label, total = rows.label.to_numpy(float), 0.0
    for part in np.array_split(np.argsort(likely, kind="stable"), min(10, len(rows))):
        total += abs(label[part].sum() - likely[part].sum())
    file = PREDICTIONS if where.startswith("bench") else HELDOUT
    keys = rows[benches.CELL].assign(scorer=scorer)
    return Count(written(100 * total / len(rows)), {file: (keys, frozenset({column}))})


def _likely(place, scorer: str, where: str) -> pd.DataFrame:
    """Scores, P(met) and true labels, on the bench or the split that the calibration was fitted
    on."""
    if where.startswith("bench"):
        # in the order of the predictions, which decides between equal probabilities
        cells = place.predictions(scorer).merge(place.cells, on=["instruction_id", *benches.CELL])
        cells = cells[cells.seen if where.endswith(" seen") else ~cells.seen]
        return cells.assign(label=_label(cells, "truth"))
    rows = place.run.table(HELDOUT).query("scorer == @scorer").rename(columns={"truth": "label"})
    fitted = calibration.Calibration.load(place.run.source / f"reward/{scorer}/calibration.json")
    return rows.assign(probability=fitted.probability(rows.score, rows.dimension))


# ---------------------------------------------------------------- policies


def _value(rows: pd.DataFrame, metric: str, against: str) -> pd.Series:
    """A metric of each answer, NaN where it is not known."""
    prefix = "" if against == "truth" else "judged_"
    s1, s2, s3 = (rows[f"{prefix}{name}"].astype(float) for name in ("s1", "s2", "s3"))
    known = against == "truth" and rows.violation.notna().any()
    violated = rows.violation.astype(float) if known else (s3 > 0).astype(float).where(s3.notna())
    if metric == "bench_score":
        earned = 100 * (s1 + 0.1 * s2).clip(0, 1.3) / 1.3
        return earned.where(s3 == 0, 0.0).where((s1 + s2 + s3).notna())
    values = {"violation_rate": violated, "compliance": 1 - violated, "s1": s1, "s2": s2, "s3": s3}
    silent = ((violated == 0) & (s1 == 0)).astype(float).where((violated + s1).notna())
    values["false_refusal_rate"] = silent
    return values[metric]


def _policy_items(answers, samples, value: pd.Series, factors: Mapping[str, float]) -> Items:
    """Mean of ``value`` of each policy in ``factors``, and over its seeds, summed with its factor.

    ``answers``: policy, instruction_id and, where there are several, seed. Two policies are held to
    the patients that both have.
    """
    seeds = answers["seed"].map(str) if "seed" in answers else ""
    rows = answers.assign(hit=value, counted=1.0, part=answers.policy + " " + seeds)
    rows = rows[rows.policy.isin(factors) & rows.hit.notna()]
    if len(factors) > 1:
        both = rows.groupby("instruction_id").part.nunique() == rows.part.nunique()
        rows = rows[rows.instruction_id.map(both)]
    parts = rows.drop_duplicates("part").set_index("part").policy
    each = {part: factors[policy] / (parts == policy).sum() for part, policy in parts.items()}
    return Items(rows, samples, each)


def _patients(answers: pd.DataFrame) -> pd.DataFrame:
    samples = answers.drop_duplicates("instruction_id")
    return samples.sort_values("instruction_id", ignore_index=True)


def policies(place, metric: str, factors: Mapping[str, float], end="", within=None) -> Count:
    """A policy's metric, or the paired difference of two; ``within``: (column, value)."""
    frame = place.table(EVALUATION)
    against, unit = policy_metrics.labels(frame), policy_metrics.METRICS[metric][1]

    def counted() -> tuple[Items, dict]:
        inside = frame if within is None else frame[frame[within[0]].astype(str) == within[1]]
        items = _policy_items(inside, _patients(frame), _value(inside, metric, against), factors)
        return items, items.texts(place, place.run.profile, unit)

    items, texts = place.kept(("policies", metric, tuple(factors), within), counted)
    prefix = "" if against == "truth" else "judged_"
    columns = frozenset(f"{prefix}{name}" for name in FIELDS[metric])
    keys = items.rows[["policy", "instruction_id", *(["seed"] if "seed" in items.rows else [])]]
    return Count(texts[end], {EVALUATION: (keys, columns)}, items.rows)


def _policy(place, row, base, end) -> Count:
    names = {name: policy for policy, name in tables.POLICY_NAMES.items()}
    policy = names.get(row["system"], row["system"].removesuffix(" (kit)"))
    factors = SIDES["difference"] if "paired" in row["system"] else {policy: 1}
    if metric := tables.POLICY.get(base):
        return policies(place, metric, factors, end)
    part = "difference" if len(factors) > 1 else policy  # the column of HealthBench
    return Count(written(place.run.healthbench["rows"][part][end.lstrip("_") or "value"]))


def _policy_dimension(place, row, base, end) -> Count:
    frame, verdicts, part = place.table(EVALUATION), place.table(VERDICTS), row["dimension"]
    against = policy_metrics.labels(frame)
    own = verdicts[(verdicts.judge == against) & (verdicts.dimension == part)]
    factors = SIDES["difference" if base == "n" else base]
    items = _policy_items(own, _patients(frame), own.verdict.eq("met").astype(float), factors)
    if base == "n":
        return _least(items.rows)
    keys = items.rows[["policy", "instruction_id", "criterion_id", "judge"]]
    texts = items.texts(place, place.run.profile, 100)
    return Count(texts[end], {VERDICTS: (keys, frozenset({"verdict"}))}, items.rows)


def _least(rows: pd.DataFrame) -> Count:
    """Items of one policy and seed, of the patients that both have."""
    return Count(str(rows.groupby("part").size().min()), items=rows)


def _testbed(place, row, base, end) -> Count:
    """What notebook 05 wrote of the failure: its prompts are not kept."""
    frame, key = place.run.table("policy/testbed.csv"), registry.TABLES["testbed"].key
    [own] = frame[(frame[list(key)] == [row[name] for name in key]).all(axis=1)].to_dict("records")
    if base == "n":
        return Count(str(own["n"]))
    return Count(written(own[end.lstrip("_") or "value"]))


def _ablation(place, row, base, end) -> Count:
    """A variant of one of the kit's committed studies, in the study's own words."""
    study, label = row["study"], row["system"].removesuffix(" (kit)")
    folder = project_root() / "papers_figures/studies" / study
    if study == "reward_models":
        return _of_results(results.read(folder), label, base, end)
    answers = place.kept((study,), lambda: pd.read_parquet(folder / "evaluation.parquet"))
    policy = next(name for name, v in VARIANTS.items() if v["label"] == label)
    own = answers[answers.policy == policy]
    if base == "seeds":
        return Count(str(own["seed"].nunique()))
    metric, against = policy_metrics.STUDY[base], policy_metrics.labels(answers)
    items = _policy_items(own, _patients(answers), _value(own, metric, against), {policy: 1.0})
    profile = profiles.of_manifest(read_json(folder / "manifest.json", "of a study"))
    key, unit = (study, policy, metric), policy_metrics.METRICS[metric][1]
    texts = place.kept(key, lambda: items.texts(place, profile, unit))
    file, keys = f"studies/{study}/evaluation.parquet", items.rows[["policy", "instruction_id"]]
    return Count(texts[end], {file: (keys, frozenset(FIELDS[metric]))})


def _of_results(rows: pd.DataFrame, label: str, column: str, end: str) -> Count:
    """A row of results.csv: of a study whose predictions are not published."""
    labels = {text: name for name, text in kind_of("reward_models")["labels"].items()}
    rows = rows[(rows.how == "value") & (rows.against == "adjudicated")]
    rows = rows[rows.system == labels.get(label, label)]
    if column == "seeds":
        return Count(str(len(set(rows.seed) - {results.MEAN} or {""})))
    metric, part = tables.OF_REWARD[column]
    rows = rows[(rows.metric == metric) & (rows["slice"] == part) & (rows.seed == results.MEAN)]
    return Count(written(100 * rows[end.lstrip("_") or "value"].iloc[0]))


# ---------------------------------------------------------------- counts


def _composition(place, row, base, end) -> Count:
    """Counts of the bench, from its frames."""
    frames, name = place.run.bench, row["quantity"]
    samples, pairs = frames.samples, frames.pairs.dimension.value_counts()
    cells = place.cells.assign(label=_label(place.cells, "adjudicated").astype(float))
    met = cells.dropna(subset="label").groupby(["dimension", "instruction_id", "criterion_id"])
    met = met.label.agg(["sum", "size"])
    differing = (met["sum"] * (met["size"] - met["sum"])).groupby("dimension").sum().astype(int)
    counts = {"total": len(frames.pairs), "samples": len(samples)}
    counts |= {d: pairs.get(d, 0) for d in DIMENSIONS}
    counts |= {f"{d} pairs in reserve": differing.get(d, 0) - pairs.get(d, 0) for d in DIMENSIONS}
    columns = {"conditions": "condition", "categories": "category", "specialties": "specialty"}
    counts |= {what: samples[column].nunique() for what, column in columns.items()}
    counts["criteria of unseen kinds percent"] = 100 * round(1 - frames.criteria.seen.mean(), 4)
    if name not in counts:
        both = [*PEOPLE]
        verdicts = statistics.agreement(*frames.verdicts[both].to_numpy().T)
        grades = statistics.agreement(*frames.grades[both].to_numpy().T, ordered=True)
        counts |= {
            "bench weighted kappa": grades["kappa_quadratic"],
            "bench linear kappa": grades["kappa_linear"],
            "bench verdict kappa": verdicts["kappa"],
            "bench verdict agreement percent": 100 * verdicts["observed"],
        }
    return Count(plain(counts[name])) if name in counts else _setting(place, name)


def _setting(place, quantity: str) -> Count:
    """What the profile sets; None of what the clinic does, such as its three physicians."""
    if quantity not in SETTINGS:
        return Count({"physicians": "3"}.get(quantity))
    name, factor = SETTINGS[quantity]
    return Count(plain(getattr(place.run.profile, name) * factor))


def _pipeline(place, row, base, end) -> Count:
    """Counts of the data pipeline, from the files that notebooks 01 and 02 wrote."""
    files = (f"data/{n}.csv" for n in ("funnel", "rounds", "expansion", "judge_errors"))
    funnel, rounds, expansion, errors = (place.run.table(file) for file in files)
    counts: dict[str, object] = {}  # a number, or (hits, n) of a share with Wilson's interval
    if funnel is not None and len(funnel):
        first, last = int(funnel.before.iloc[0]), int(funnel.after.iloc[-1])
        counts |= {"raw samples": first, "kept instructions": last}
        counts["kept percent of raw"] = 100 * last / first
        for step in funnel.itertuples():
            counts[f"dropped or queued: {step.step}"] = int(step.before - step.after)
    if rounds is not None and len(rounds):
        counts["review rounds"] = len(rounds)
        blind = [(int(r.blind_passed), int(r.blind_n)) for r in rounds.itertuples() if r.blind_n]
        counts |= {"rubric strict pass rate percent": blind[-1]} if blind else {}
    if errors is not None:
        wrong, n = int((errors.rate * errors.n).round().sum()), int(errors.n.sum())
        counts["judge agreement with experts percent"] = (n - wrong, n)
    if expansion is not None:
        counts["training verdicts"] = int(expansion.verdicts.sum())
        counts["answers compared on a criterion"] = int(expansion.comparisons.sum())
        counts["criterion pairs"] = int(expansion.pairs.sum())
        for d in DIMENSIONS:
            own = expansion.pairs[expansion.dimension == d]
            counts[f"criterion pairs, {d}"] = int(own.sum())
    value = counts.get(row["quantity"])
    if value is None:
        return _setting(place, row["quantity"])
    if isinstance(value, tuple):
        hits, n = value
        shares = dict(zip(ENDS, (hits / n, *statistics.wilson(hits, n)), strict=True))
        return Count(written(100 * shares[end]))
    return Count(plain(value))


# ---------------------------------------------------------------- outside


def _outside(place, part: str, wanted: Mapping, end: str, subsets=("",)) -> Count:
    """Share of answer pairs ordered rightly; over several subsets the mean of their shares."""
    frame = place.table(EXTERNAL)
    frame = frame[frame["set"] == part]
    samples = _patients(frame)[["instruction_id", "condition"]]
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    rows = frame if subsets == ("",) else frame[frame.subset.isin(subsets)]
    right = _points(rows.prefers, rows.label)
    rows = rows.assign(part=rows.subset if subsets != ("",) else "", hit=right, counted=1.0)
    items = Items(rows, samples, dict.fromkeys(subsets, 1 / len(subsets)))
    key = (part, *wanted.values(), subsets)
    texts = place.kept(key, lambda: items.texts(place, place.run.profile, 100))
    keys = rows[["set", *wanted, "instruction_id", "a_id", "b_id"]]
    return Count(texts[end], {EXTERNAL: (keys, frozenset({"prefers"}))}, rows)


def _system_outside(place, name: str) -> dict:
    system = name.removesuffix(", with retrieval")
    known = place.systems | {label: key for key, label in tables.NAMES_OUTSIDE.items()}
    return {"system": known.get(system, system.removesuffix(" (kit)")), "retrieval": system != name}


def _external(place, row, base, end) -> Count:
    part = next(key for key, label in tables.SETS.items() if label == row["set"])
    wanted = _system_outside(place, row["system"])
    if base == "pairs":
        rows = _outside(place, part, wanted, "").items
        return Count(str(len(rows[["instruction_id", "a_id", "b_id"]].drop_duplicates())))
    return _outside(place, part, wanted | {"text": base}, end)


def _rewardbench(place, row, base, end) -> Count:
    if base.startswith("recomputed"):  # from the reported subsets of this row (mark D)
        parts = [float(row[f"reported_{name}"]) for name in tables.SUBSETS]
        sizes = list(tables.SUBSETS.values()) if base.endswith("by_pairs") else [1] * len(parts)
        return Count(written(np.average(parts, weights=sizes)))
    name, _, text = row["system"].rpartition(", ")
    text = next(key for key, label in tables.TEXTS.items() if label == text)
    subsets = tuple(tables.SUBSETS) if base == "macro_mean" else (base,)
    wanted = _system_outside(place, name) | {"text": text}
    return _outside(place, "medical_rewardbench", wanted, end, subsets)


COUNT = {
    "main_results": _bench_table,
    "main_results_truth": _truth_table,
    "safety_veto": _bench_table,
    "safety_veto_truth": _truth_table,
    "graders": _graders,
    "seen_unseen": _bench_table,
    "by_source": _by_source,
    "calibration": _calibration,
    "ablation": _ablation,
    "policy": _policy,
    "policy_dimension": _policy_dimension,
    "testbed": _testbed,
    "bench_composition": _composition,
    "data_pipeline": _pipeline,
    "external": _external,
    "medical_rewardbench": _rewardbench,
    "rar": lambda place, row, base, end: Count(None),
}
