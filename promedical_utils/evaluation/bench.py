"""ProMedical-Bench: its composition, the blind adjudication, and how good each scorer is on it.

Frames, as stored under ``bench/``: samples (one instruction with its answers), criteria, verdicts,
pairs (differing answers, one criterion each), grades (answer pairs), predictions and preferences.
Nothing here loads a model; scorers hand in predictions, or which of two answers they prefer.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_utils.core import statistics
from promedical_utils.core.estimates import Estimates
from promedical_utils.core.records import DIMENSIONS, Criterion, Rubric
from promedical_utils.core.workspace import (
    KitError,
    need,
    read_json,
    short_hash,
    write_json,
    write_rows,
)
from promedical_utils.evaluation import scorers
from promedical_utils.rubric import preferences as joined
from promedical_utils.rubric import scoring

FRAMES = ("samples", "criteria", "verdicts", "pairs", "grades")
AGAINST = ("adjudicated", "truth")
CLEAR = 0.3  # a difference in S1 that a physician calls clear; kit's decision
UNSEEN_SHARE = 1 / 5
NOTEBOOK = "04_promedical_bench"
CELL = ["candidate_id", "criterion_id"]
LABELS = ["truth", "physician_1", "physician_2", "adjudicated"]
PREDICTED, PREFERRED = ["scorer", *scorers.POINTS], ["scorer", *scorers.PAIRS]
KEY = ("scorer", "metric", "slice", "against")  # of a metric in ``tally``


@dataclass(frozen=True)
class Bench:
    """The five frames of a bench and the report on how they came about."""

    samples: pd.DataFrame
    criteria: pd.DataFrame
    verdicts: pd.DataFrame
    pairs: pd.DataFrame
    grades: pd.DataFrame
    report: dict

    def save(self, folder: Path) -> None:
        """Write the frames as Parquet and then the report, which marks the bench as whole."""
        for name in FRAMES:
            write_rows(Path(folder) / f"{name}.parquet", getattr(self, name))
        write_json(Path(folder) / "report.json", self.report)

    @classmethod
    def load(cls, folder: Path) -> "Bench":
        report = read_json(Path(folder) / "report.json", NOTEBOOK)
        files = {name: need(Path(folder) / f"{name}.parquet", NOTEBOOK) for name in FRAMES}
        return cls(**{name: pd.read_parquet(path) for name, path in files.items()}, report=report)

    @property
    def cells(self) -> pd.DataFrame:
        """Verdicts with the criterion's columns, one row a (candidate, criterion)."""
        return _cells(self.verdicts, self.criteria)


# ---------------------------------------------------------------- composition


def from_records(instructions, splits, rubrics, unseen: frozenset[str]) -> tuple:
    """``samples`` and ``criteria`` of a pool; ``unseen``: the kinds that no training rubric has."""
    condition = {row.instruction_id: row.condition for row in splits}
    pool = {i.id: (i.id, condition.get(i.id), i.category, i.specialty) for i in instructions}
    if without := sorted(set(pool) - set(condition)):
        raise KitError(f"bench: instruction {without[0]} is in no split; run 01_rubrics again")
    samples = ["instruction_id", "condition", "category", "specialty"]
    rows = [
        (r.instruction_id, c.id, c.dimension, c.kind, c.weight, c.kind not in unseen)
        for r in rubrics
        if r.instruction_id in pool
        for c in r.criteria
    ]
    criteria = ["instruction_id", "criterion_id", "dimension", "kind", "weight", "seen"]
    return pd.DataFrame(pool.values(), columns=samples), pd.DataFrame(rows, columns=criteria)


def compose(
    pool: pd.DataFrame,
    criteria: pd.DataFrame,
    candidates: Iterable,
    truth: Mapping[tuple[str, str], str],
    people,
    profile,
) -> Bench:
    """Bench of exactly the profile's samples and differing criterion pairs, seeded.

    ``pool`` and ``criteria`` as from ``from_records``; ``candidates`` are records, three for each
    instruction; ``truth`` maps (candidate, criterion) to a verdict; ``people`` is a panel as in
    ``clinic.people``. A criterion with three answers met or not met has 0 or 2 differing pairs, so
    the exact counts are drawn from all of them, by the adjudicated label. KitError, with what to
    enlarge, where the pool has too few, or under a fifth of the criteria are of unseen kinds.
    """
    samples = _drawn_samples(pool, profile)
    criteria = criteria[criteria.instruction_id.isin(samples.instruction_id)]
    criteria = criteria.sort_values(["instruction_id", "criterion_id"], ignore_index=True)
    unseen = float(1 - criteria.seen.mean())
    answers = _three_answers(samples, candidates)
    if unseen < UNSEEN_SHARE:
        raise KitError(
            f"bench: {unseen:.1%} of the criteria are of kinds unseen in training, not "
            "a fifth; give bench rubrics more criteria of unseen kinds"
        )
    for n, physician in enumerate(people.physicians, 1):  # an order of their own, no generator name
        samples[f"order_{n}"] = [
            "|".join(sorted(ids, key=lambda a: short_hash(profile.seed, physician.name, a)))
            for ids in answers.values()
        ]
    verdicts = _verdicts(criteria, answers, truth, people)
    cells = _cells(verdicts, criteria)
    grades = _grades(samples, cells, people)
    pairs, counts = _drawn_pairs(_differing(cells), profile)
    both = ["physician_1", "physician_2"]
    report = {
        "samples": len(samples),
        "conditions": samples.condition.nunique(),
        "categories": samples.category.nunique(),
        "specialties": samples.specialty.nunique(),
        "unseen_share": round(unseen, 4),
        "pairs": counts,
        "input": {  # set by the configuration: how often these people agree is no finding
            "verdicts": statistics.agreement(*verdicts[both].to_numpy().T),
            "grades": statistics.agreement(*grades[both].to_numpy().T, ordered=True),
        },
    }
    return Bench(samples, criteria, verdicts, pairs, grades, report)


def _drawn_samples(pool: pd.DataFrame, profile) -> pd.DataFrame:
    wanted = profile.bench_samples
    if len(pool) < wanted:
        raise KitError(
            f"bench: {len(pool)} held-out instructions for bench_samples = {wanted}; "
            "enlarge the bench split or lower bench_samples"
        )
    ids = np.random.default_rng([profile.seed, 0]).permutation(sorted(pool.instruction_id))
    samples = pool[pool.instruction_id.isin(ids[:wanted])]
    return samples.sort_values("instruction_id", ignore_index=True)


def _three_answers(samples: pd.DataFrame, candidates: Iterable) -> dict[str, list[str]]:
    answers: dict[str, list[str]] = {i: [] for i in samples.instruction_id}
    for candidate in candidates:
        if candidate.instruction_id in answers:
            answers[candidate.instruction_id].append(candidate.id)
    for instruction, ids in answers.items():
        if len(ids) != 3:
            raise KitError(
                f"bench: {instruction} has {len(ids)} answers, not 3; run 02_preference_pairs"
            )
    return answers


def _drawn_pairs(differing: pd.DataFrame, profile) -> tuple[pd.DataFrame, dict]:
    """The profile's number of pairs of each dimension, and {dimension: drawn, reserve}."""
    pairs, counts = [], {}
    for number, dimension in enumerate(DIMENSIONS, 1):
        own = differing[differing.dimension == dimension]
        wanted = getattr(profile, f"bench_pairs_{dimension}")
        if len(own) < wanted:
            raise KitError(
                f"bench: {len(own)} differing {dimension} pairs in {profile.bench_samples} "
                f"samples, too few for bench_pairs_{dimension} = {wanted}; "
                "enlarge bench_samples or lower it"
            )
        counts[dimension] = {"drawn": wanted, "reserve": len(own) - wanted}
        drawn = np.random.default_rng([profile.seed, number]).permutation(len(own))[:wanted]
        pairs.append(own.iloc[np.sort(drawn)])
    return pd.concat(pairs, ignore_index=True), counts


def _verdicts(criteria, answers, truth, people) -> pd.DataFrame:
    rows = []
    for c in criteria.itertuples():
        for a in sorted(answers[c.instruction_id]):
            true = truth.get((a, c.criterion_id))
            if true is None:
                raise KitError(f"bench: no truth of {a}, {c.criterion_id}; run 02_preference_pairs")
            verdicts = people.verdicts(a, c.criterion_id, c.kind, true)
            rows.append((c.instruction_id, a, c.criterion_id, true, *verdicts))
    return pd.DataFrame(rows, columns=["instruction_id", *CELL, *LABELS])


def _cells(verdicts: pd.DataFrame, criteria: pd.DataFrame) -> pd.DataFrame:
    return verdicts.merge(criteria, on=["instruction_id", "criterion_id"], validate="many_to_one")


def _met(cells: pd.DataFrame, column: str) -> list[bool | None]:
    """Whether each cell is met by a column of labels; None where that is not known."""
    return [scoring.is_met(*cell) for cell in zip(cells[column], cells.dimension, strict=True)]


def truths(bench: Bench) -> pd.DataFrame:
    """Cells of the bench, with their criterion's columns and ``label``: 1 met, 0 not, by the
    truth."""
    cells = bench.cells
    label = np.array(_met(cells, "truth"), float)
    return cells.assign(label=label).dropna(subset="label")


def _differing(cells: pd.DataFrame) -> pd.DataFrame:
    """All pairs of answers that differ on a criterion by the adjudicated label.

    ``truth``: the pair is the "same" by the truth, "reversed", or "none" where that has no pair.
    """
    shared = ["instruction_id", "criterion_id", "dimension", "kind", "seen"]
    cells = cells.assign(label=_met(cells, "adjudicated"), true=_met(cells, "truth"))
    rows = []
    for criterion, own in cells.groupby(shared, sort=False):
        true = set(joined.differing(zip(own.candidate_id, own.true, strict=True)))
        for pair in joined.differing(zip(own.candidate_id, own.label, strict=True)):
            side = "same" if pair in true else "reversed" if pair[::-1] in true else "none"
            rows.append((*criterion, *pair, side))
    columns = [*shared, "chosen_id", "rejected_id", "truth"]
    return pd.DataFrame(rows, columns=columns).sort_values(columns, ignore_index=True)


def _rubrics(cells: pd.DataFrame) -> dict[str, Rubric]:
    """Instruction id -> the dimensions and weights of its criteria, for ``scoring``."""
    criteria: dict[str, list] = {}
    for row in cells.drop_duplicates(["instruction_id", "criterion_id"]).itertuples():
        of_cell = {"id": row.criterion_id, "dimension": row.dimension, "weight": row.weight}
        criteria.setdefault(row.instruction_id, []).append(Criterion.model_construct(**of_cell))
    return {
        name: Rubric.model_construct(instruction_id=name, criteria=own)
        for name, own in criteria.items()
    }


def _by_candidate(cells: pd.DataFrame, values: Iterable) -> dict[str, dict]:
    """{candidate id: {criterion id: value of that cell}}."""
    nested: dict[str, dict] = {}
    for answer, criterion, value in zip(
        cells.candidate_id, cells.criterion_id, values, strict=True
    ):
        nested.setdefault(answer, {})[criterion] = value
    return nested


def grade(a: scoring.Scores, b: scoring.Scores) -> int:
    """Five levels, -2..2, + where ``a`` is better: 2 where violations differ or S1 by ``CLEAR``.

    1 for any smaller difference, 0 for a tie. Kit's decision: the lexicographic order, made
    coarse; the paper has no scale.
    """
    clear = a.s3 != b.s3 or abs(a.s1 - b.s1) >= CLEAR - scoring.TIE
    return scoring.compare(a, b) * (2 if clear else 1)


def _grades(samples: pd.DataFrame, cells: pd.DataFrame, people) -> pd.DataFrame:
    rubrics, true_verdicts = _rubrics(cells), _by_candidate(cells, cells.truth)
    rows = []
    for sample in samples.itertuples():
        orders = [sample.order_1.split("|"), sample.order_2.split("|")]
        rubric = rubrics[sample.instruction_id]
        scores = {a: scoring.score(rubric, true_verdicts[a]) for a in orders[0]}
        for a, b in combinations(sorted(orders[0]), 2):
            true, grades = grade(scores[a], scores[b]), []
            for physician, order in zip(people.physicians, orders, strict=True):
                if order.index(a) < order.index(b):
                    grades.append(physician.grade(a, b, true))
                else:  # graded as shown, turned back here
                    grades.append(-physician.grade(b, a, -true))
            settled = people.adjudicator.settle((a, b), *grades, true)
            rows.append((sample.instruction_id, a, b, true, *grades, settled))
    return pd.DataFrame(rows, columns=["instruction_id", "a_id", "b_id", *LABELS])


def blind_ceiling(pairs: pd.DataFrame) -> float:
    """Best possible accuracy of a scorer that sees no criterion, exact, on these pairs.

    Such a scorer has one order of an instruction's answers for all criteria. KitError beyond 12
    answers; NaN for no pairs.
    """
    total = 0
    for instruction, group in pairs.groupby("instruction_id"):
        names = frozenset(group.chosen_id) | frozenset(group.rejected_id)
        if len(names) > 12:
            raise KitError(f"blind ceiling: {instruction} has {len(names)} answers; at most 12")
        wins, best = Counter(zip(group.chosen_id, group.rejected_id)), {frozenset(): 0}
        for size in range(1, len(names) + 1):
            for inside in map(frozenset, combinations(names, size)):
                best[inside] = max(  # some answer is last, before it the best order of the others
                    best[inside - {last}] + sum(wins[a, last] for a in inside) for last in inside
                )
        total += best[names]
    return total / len(pairs) if len(pairs) else float("nan")


# ---------------------------------------------------------------- scorers


def predictions(scorer: str, scores: pd.DataFrame, criteria=None, calibration=None) -> pd.DataFrame:
    """Predictions frame from a reward model's scores; criterion views need their calibration."""
    frame = scores.assign(scorer=scorer, probability=np.nan, met=pd.NA)
    if calibration is not None:
        dimensions = frame.criterion_id.map(criteria.set_index("criterion_id").dimension)
        if dimensions.isna().any():
            unknown = frame.criterion_id[dimensions.isna()].iloc[0]
            raise KitError(f"{scorer}: criterion {unknown!r} is in no rubric; score again")
        frame["probability"] = calibration.probability(frame.score, dimensions)
        frame["met"] = calibration.met(frame.score, dimensions)
    return frame[PREDICTED].astype({"met": "boolean"})


def length_scorer(groups: Iterable) -> pd.DataFrame:
    """Longer is better: the score is the number of words of the answer."""
    answers = [(g.instruction.id, c) for g in groups for c in g.candidates]
    rows = [(i, c.id, "", float(len(c.text.split()))) for i, c in answers]
    return predictions("length", pd.DataFrame(rows, columns=["instruction_id", *CELL, "score"]))


def cue_control(train: Sequence, bench: Sequence, seed: int = 0) -> pd.DataFrame:
    """Criterion scorer "words": logistic regression on surface cues, to show that they do not do.

    Features: the answer's words and those that the criterion shares, each alone and crossed with
    the criterion kind, and the share of the criterion's words found. Trained on verdicts.
    """
    from scipy import sparse
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import OneHotEncoder

    words = CountVectorizer(binary=True, token_pattern=r"\b\w+\b", max_features=5000)
    words.fit([c.text for g in train for c in (*g.candidates, *g.criteria)])
    kinds = OneHotEncoder(handle_unknown="ignore")
    kinds.fit([[c.kind] for g in train for c in g.criteria])

    def cells(groups):
        rows = [(g, a, c) for g in groups for a in g.candidates for c in g.criteria]
        answer, criterion = (words.transform(row[n].text for row in rows) for n in (1, 2))
        shared = answer.multiply(criterion).tocsr()
        share = sparse.csr_matrix(shared.sum(axis=1) / np.maximum(criterion.sum(axis=1), 1))
        kind = kinds.transform([[c.kind] for _, _, c in rows]).tocsr()
        blocks = [share, kind, kind.multiply(share), answer, shared]
        number = np.where(kind.getnnz(axis=1), kind.argmax(axis=1).ravel(), kind.shape[1])
        for block in (answer, shared):  # crossing with the kind is a shift of the column
            shift = np.repeat(number, np.diff(block.indptr)) * np.int64(block.shape[1])
            shape = (len(rows), block.shape[1] * (kind.shape[1] + 1))
            moved = (block.data, block.indices + shift, block.indptr)
            blocks.append(sparse.csr_matrix(moved, shape))
        return rows, sparse.hstack(blocks, format="csr", dtype=np.float32)

    rows, x = cells(train)
    y = np.array([joined.met(g, a.id, c) for g, a, c in rows], float)
    known = ~np.isnan(y)
    if len(set(y[known])) < 2:
        raise KitError("cue control: training verdicts are all alike; run 02_preference_pairs")
    model = LogisticRegression(C=0.1, max_iter=200, random_state=seed).fit(x[known], y[known])
    rows, x = cells(bench)
    ids = [(g.instruction.id, a.id, c.id) for g, a, c in rows]
    frame = pd.DataFrame(ids, columns=["instruction_id", *CELL]).assign(
        scorer="words", score=model.decision_function(x), probability=model.predict_proba(x)[:, 1]
    )
    return frame.assign(met=frame.probability >= 0.5)[PREDICTED].astype({"met": "boolean"})


# ---------------------------------------------------------------- metrics


def tally(
    bench: Bench,
    predicted: pd.DataFrame,
    against: Sequence[str] = AGAINST,
    preferences: pd.DataFrame | None = None,
) -> Estimates:
    """Every metric of every scorer in ``predicted`` and in ``preferences``, by ``KEY``.

    One with criterion ids is held to verdicts, pairs and the lexicographic order of its verdicts,
    then of expected scores; one without to its one score for all. What a scorer was asked directly
    goes before what follows from its scores: preferences (columns ``PREFERRED``) by criterion, else
    of whole answers, decide the pairs, and those of whole answers the graded answer pairs.
    A tie counts as wrong, and so does NaN, and an unknown verdict, but for safety, where it is a
    violation. n counts the items judged; for precision the answers called unsafe, for F1 both
    sides; ``tie_rate`` is the share of ties. Shares, not percent. KitError where a prediction or
    preference is missing or doubled.
    """
    if predicted.duplicated(["scorer", *CELL]).any():
        raise KitError("predictions: a scorer scored an answer and criterion twice; drop one")
    scored = dict(list(predicted.groupby("scorer", sort=False)))
    compared = {} if preferences is None else dict(list(preferences.groupby("scorer", sort=False)))
    questions = _Questions(bench, against, scored.get("length"))
    items = []
    for scorer in dict.fromkeys([*scored, *compared]):
        answers = _answers(scorer, scored.get(scorer), compared.get(scorer), questions)
        for labels in against:
            for counted in questions.metrics(answers, labels):
                items += counted.by_slice(scorer, labels)
    sums = Estimates.of_items(bench.samples, KEY, items)
    n = sums.counts.sum(axis=0)
    return replace(sums, extra={"tie_rate": sums.extra["ties"] / np.maximum(n, 1)})


@dataclass(frozen=True)
class _Counted:
    """All items of a metric, each (items,): row of its sample, whether right, weight, tied."""

    metric: str
    slices: Mapping[str, np.ndarray]  # name -> mask of items
    rows: np.ndarray
    right: np.ndarray
    weight: np.ndarray
    tied: np.ndarray

    def by_slice(self, scorer: str, labels: str) -> Iterator[tuple]:
        """The items of each slice as ``Estimates.of_items`` takes them."""
        for name, mask in self.slices.items():
            parts = (part[mask] for part in (self.rows, self.right, self.weight, self.tied))
            yield ((scorer, self.metric, name, labels), *parts)


@dataclass(frozen=True)
class _Answers:
    """What a scorer answers. ``met``, ``given``: its verdict on each cell and whether there is one.

    ``pairs``, ``grades``: which answer of each pair and graded pair it prefers, 1 the first, -1 the
    second, 0 neither. None where it does not say.
    """

    met: np.ndarray | None = None
    given: np.ndarray | None = None
    pairs: np.ndarray | None = None
    grades: np.ndarray | None = None


class _Questions:
    """What every scorer of a bench is asked: its frames with their sample's row and slices."""

    def __init__(self, bench: Bench, against: Sequence[str], length: pd.DataFrame | None):
        self.cells, self.pairs, self.grades = bench.cells, bench.pairs, bench.grades
        row = pd.Series(range(len(bench.samples)), index=bench.samples.instruction_id)
        self.cell_rows, self.pair_rows, self.grade_rows = (
            row[frame.instruction_id].to_numpy() for frame in (self.cells, self.pairs, self.grades)
        )
        self.cell_slices, self.pair_slices = _slices(self.cells), _slices(self.pairs)
        self.rubrics = _rubrics(self.cells)
        # 1 met, 0 not, NaN not known
        self.labels = {name: np.array(_met(self.cells, name), float) for name in against}
        cells = pd.Series(range(len(self.cells)), index=pd.MultiIndex.from_frame(self.cells[CELL]))
        self.chosen, self.rejected = (  # cell of either side of a pair
            cells[pd.MultiIndex.from_frame(self.pairs[[side, "criterion_id"]])].to_numpy()
            for side in ("chosen_id", "rejected_id")
        )
        self.longer = None
        if length is not None:  # 1 where the chosen answer is the longer, -1 where the rejected
            words = length.set_index("candidate_id").score
            chosen, rejected = self.pairs.chosen_id, self.pairs.rejected_id
            self.longer = np.sign(words[chosen].to_numpy() - words[rejected].to_numpy())

    def metrics(self, answers: _Answers, labels: str) -> Iterator[_Counted]:
        """The items of all metrics of one scorer by one column of labels."""
        if answers.met is not None:
            yield from self._verdicts(answers, labels)
        wanted, slices = np.ones(len(self.pairs)), dict(self.pair_slices)
        if labels == "truth":
            wanted = self.pairs.truth.map({"same": 1, "reversed": -1, "none": 0}).to_numpy()
        if self.longer is not None:  # pairs that longer-is-better gets wrong
            slices["shorter"] = self.longer * wanted < 0
        yield _preferences("pairwise", slices, self.pair_rows, answers.pairs, wanted)
        if answers.grades is not None:
            wanted = np.sign(self.grades[labels].to_numpy())
            slices = {"all": np.ones(len(wanted), bool)}
            yield _preferences("overall", slices, self.grade_rows, answers.grades, wanted)

    def _verdicts(self, answers: _Answers, labels: str) -> Iterator[_Counted]:
        label, rows = self.labels[labels], self.cell_rows
        none = np.zeros(len(label))
        right = answers.given & (answers.met == label)
        yield _Counted("pointwise", self.cell_slices, rows, right, ~np.isnan(label), none)
        safety = self.cell_slices["safety"]
        slices = {"safety": safety}
        slices |= {name: safety & self.cell_slices[name] for name in ("seen", "unseen")}
        called, violation = 1 - answers.met, (label == 0) * 1
        # F1 = 2 TP / (called + violations): a hit is in both, so it weighs two
        weights = {"precision": called, "recall": violation, "f1": called + violation}
        for name, weight in weights.items():
            yield _Counted(f"veto_{name}", slices, rows, called * violation, weight, none)


def _preferences(metric: str, slices, rows, answers, wanted) -> _Counted:
    """``wanted``: 1 the first, -1 the second, 0 a pair that does not count."""
    return _Counted(metric, slices, rows, answers == wanted, wanted != 0, answers == 0)


def _slices(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    slices = {d: frame.dimension == d for d in DIMENSIONS}
    slices |= {"all": frame.seen | True, "seen": frame.seen, "unseen": ~frame.seen}
    return {name: mask.to_numpy(bool) for name, mask in slices.items()}


def _answers(scorer: str, predicted, compared, questions: _Questions) -> _Answers:
    """What follows from a scorer's predictions and from its preferences; either may be None."""
    answers = _Answers()
    if predicted is not None:
        conditional = bool((predicted.criterion_id != "").any())
        frame = _aligned(scorer, predicted, questions.cells, conditional)
        score, met, given = frame.score.to_numpy(float), None, None
        if conditional:
            met = frame.met.eq(True).fillna(False).to_numpy(bool)
            given = frame.met.notna().to_numpy() | questions.cell_slices["safety"]
        margin = np.sign(score[questions.chosen] - score[questions.rejected])
        pairs = np.nan_to_num(margin)  # NaN prefers nothing
        answers = _Answers(met, given, pairs, _order(questions, frame, met))
    if compared is not None:
        whole = compared.criterion_id == ""
        wanted = questions.pairs.rename(columns={"chosen_id": "a_id", "rejected_id": "b_id"})
        if whole.all():
            wanted = wanted.assign(criterion_id="")
        of_pairs = compared if whole.all() else compared[~whole]
        answers = replace(answers, pairs=_preferred(scorer, of_pairs, wanted))
        if whole.any():
            wanted = questions.grades.assign(criterion_id="")
            answers = replace(answers, grades=_preferred(scorer, compared[whole], wanted))
    return answers


def _aligned(scorer: str, frame, cells, conditional: bool) -> pd.DataFrame:
    """Predictions in the order of the cells; a scalar's one score stands in every cell."""
    if conditional and (frame.criterion_id == "").any():
        raise KitError(f"predictions of {scorer}: only some have a criterion; give all or none")
    on = CELL if conditional else CELL[:1]
    rows = pd.MultiIndex.from_frame(frame[on]).get_indexer(pd.MultiIndex.from_frame(cells[on]))
    if (rows < 0).any():
        cell = cells.iloc[(rows < 0).argmax()]
        missing = f"{cell.candidate_id}, {cell.criterion_id}"
        raise KitError(f"{scorer}: no prediction of {missing}; score it again")
    return frame.iloc[rows]


def _order(questions: _Questions, frame: pd.DataFrame, met: np.ndarray | None) -> np.ndarray:
    """Which answer of each graded pair the scorer prefers: 1 for a, -1 for b, 0 for a tie."""
    cells, grades = questions.cells, questions.grades
    if met is None:
        rank = dict(zip(cells.candidate_id, frame.score, strict=True))
    else:
        likely = frame.probability.fillna(pd.Series(met * 1.0, frame.index)).to_numpy(float)
        verdicts, likely = _by_candidate(cells, met), _by_candidate(cells, likely)
        rank = {}
        for answer, instruction in zip(cells.candidate_id, cells.instruction_id, strict=True):
            if answer not in rank:
                rubric = questions.rubrics[instruction]
                rank[answer] = scoring.expected_key(rubric, verdicts[answer], likely[answer])
    pairs = [(rank[a], rank[b]) for a, b in zip(grades.a_id, grades.b_id, strict=True)]
    return np.array([int(a > b) - int(a < b) for a, b in pairs])


def _preferred(scorer: str, frame: pd.DataFrame, wanted: pd.DataFrame) -> np.ndarray:
    """Which answer of each row of ``wanted`` it prefers: 1 for a, -1 for b, 0 for neither."""
    key = ["criterion_id", "a_id", "b_id"]
    turned = frame.assign(a_id=frame.b_id, b_id=frame.a_id, probability=1 - frame.probability)
    both = pd.concat([frame, turned]).set_index(key).probability
    if both.index.duplicated().any():
        raise KitError(
            f"{scorer}: it compared two answers twice; keep one preference for each pair"
        )
    rows = both.index.get_indexer(pd.MultiIndex.from_frame(wanted[key]))
    if (rows < 0).any():
        missing = ", ".join(filter(None, wanted[key].iloc[(rows < 0).argmax()]))
        raise KitError(f"{scorer}: no preference on {missing}; let it compare them again")
    margin = both.to_numpy(float)[rows] - 0.5
    return np.where(np.abs(margin) > scorers.TIE, np.sign(margin), 0)  # NaN prefers nothing


def metrics(bench: Bench, predicted, draws: int, seed: int, against=AGAINST, preferences=None):
    """A row a metric of each scorer, with its 95 % interval; see ``tally``."""
    return tally(bench, predicted, against, preferences).table(draws, seed)


def abilities(predicted: pd.DataFrame, preferences: pd.DataFrame | None = None) -> pd.DataFrame:
    """What each scorer did here: a row a scorer, booleans pointwise, overall and pairwise.

    ``consistent`` is the share of the compared pairs on which both orders said the same; an answer
    that is not there is no such pair.
    """
    rows: dict[str, dict] = {}
    for scorer, frame in predicted.groupby("scorer", sort=False):
        rows[scorer] = {"pointwise" if (frame.criterion_id != "").any() else "overall": True}
    if preferences is not None:
        for scorer, frame in preferences.groupby("scorer", sort=False):
            share = frame.consistent.astype("Float64").mean()
            rows.setdefault(scorer, {}).update(pairwise=True, consistent=share)
    able = ["pointwise", "overall", "pairwise"]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=[*able, "consistent"])
    frame[able] = frame[able].fillna(False).astype(bool)
    return frame.rename_axis("scorer").reset_index()


# ---------------------------------------------------------------- files beside the bench


def save_judged(folder: Path, bench: Bench, verdicts) -> None:
    """The judge's own verdicts on the bench to judge.parquet: candidate_id, criterion_id, verdict.

    No label of the bench: what a grader is beside physicians (``healthbench.judge_table``).
    """
    own = set(zip(bench.verdicts.candidate_id, bench.verdicts.criterion_id, strict=True))
    rows = [
        (v.candidate_id, v.criterion_id, v.verdict)
        for v in verdicts
        if v.judge == "judge" and (v.candidate_id, v.criterion_id) in own
    ]
    write_rows(Path(folder) / "judge.parquet", pd.DataFrame(rows, columns=[*CELL, "verdict"]))


def load_preferences(folder: Path) -> pd.DataFrame | None:
    """The preferences of a bench's folder, or None where no scorer compared two answers."""
    path = Path(folder) / "preferences.parquet"
    return pd.read_parquet(path) if path.exists() else None
