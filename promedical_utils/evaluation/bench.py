"""ProMedical-Bench: its composition, the blind adjudication, and how good each scorer is on it.

Frames, as stored under ``bench/``: samples (one instruction with its answers), criteria, verdicts,
pairs (differing answers, one criterion each), grades (answer pairs), predictions and preferences.
Nothing here loads a model; scorers hand in predictions, or which of two answers they prefer.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_utils.core import statistics
from promedical_utils.core.records import DIMENSIONS
from promedical_utils.core.workspace import (
    KitError,
    need,
    read_json,
    short_hash,
    write_json,
    write_rows,
)
from promedical_utils.rubric import preferences as joined
from promedical_utils.rubric import scoring

FRAMES = ("samples", "criteria", "verdicts", "pairs", "grades")
AGAINST = ("adjudicated", "truth")
CLEAR = 0.3  # a difference in S1 that a physician calls clear; kit's decision
UNSEEN_SHARE = 1 / 5
NOTEBOOK = "04_promedical_bench"
CELL = ["candidate_id", "criterion_id"]
SAID = ["truth", "physician_1", "physician_2", "adjudicated"]
PREDICTED = ["scorer", "instruction_id", *CELL, "score", "probability", "met"]
PREFERRED = [
    "scorer",
    "instruction_id",
    "criterion_id",
    "a_id",
    "b_id",
    "probability",
    "consistent",
]
EVEN = 1e-9  # a preference closer to a half than this is a tie


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


def from_records(instructions, splits, rubrics, unseen: frozenset[str]) -> tuple:
    """``samples`` and ``criteria`` of a pool; ``unseen``: the kinds that no training rubric has."""
    condition = {row.instruction_id: row.condition for row in splits}
    asked = {i.id: (i.id, condition.get(i.id), i.category, i.specialty) for i in instructions}
    without = sorted(set(asked) - set(condition))
    if without:
        raise KitError(f"bench: instruction {without[0]} is in no split; run 01_rubrics again")
    samples = ["instruction_id", "condition", "category", "specialty"]
    rows = [
        (r.instruction_id, c.id, c.dimension, c.kind, c.weight, c.kind not in unseen)
        for r in rubrics
        if r.instruction_id in asked
        for c in r.criteria
    ]
    criteria = ["instruction_id", "criterion_id", "dimension", "kind", "weight", "seen"]
    return pd.DataFrame(asked.values(), columns=samples), pd.DataFrame(rows, columns=criteria)


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
    asked = profile.bench_samples
    if len(pool) < asked:
        raise KitError(
            f"bench: {len(pool)} held-out instructions for bench_samples = {asked}; "
            "enlarge the bench split or lower bench_samples"
        )
    ids = np.random.default_rng([profile.seed, 0]).permutation(sorted(pool.instruction_id))[:asked]
    samples = pool[pool.instruction_id.isin(ids)].sort_values("instruction_id", ignore_index=True)
    criteria = criteria[criteria.instruction_id.isin(ids)]
    criteria = criteria.sort_values(["instruction_id", "criterion_id"], ignore_index=True)
    answers = {i: [] for i in samples.instruction_id}
    for candidate in candidates:
        if candidate.instruction_id in answers:
            answers[candidate.instruction_id].append(candidate.id)
    for i, ids in answers.items():
        if len(ids) != 3:
            raise KitError(f"bench: {i} has {len(ids)} answers, not 3; run 02_preference_pairs")
    unseen = float(1 - criteria.seen.mean())
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
    differing, pairs, counts = _differing(cells), [], {}
    for number, dimension in enumerate(DIMENSIONS, 1):
        found = differing[differing.dimension == dimension]
        wanted = getattr(profile, f"bench_pairs_{dimension}")
        if len(found) < wanted:
            raise KitError(
                f"bench: {len(found)} differing {dimension} pairs in {asked} samples, "
                f"too few for bench_pairs_{dimension} = {wanted}; "
                "enlarge bench_samples or lower it"
            )
        counts[dimension] = {"drawn": wanted, "reserve": len(found) - wanted}
        drawn = np.random.default_rng([profile.seed, number]).permutation(len(found))[:wanted]
        pairs.append(found.iloc[np.sort(drawn)])
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
    return Bench(samples, criteria, verdicts, pd.concat(pairs, ignore_index=True), grades, report)


def _verdicts(criteria, answers, truth, people) -> pd.DataFrame:
    rows = []
    for c in criteria.itertuples():
        for a in sorted(answers[c.instruction_id]):
            true = truth.get((a, c.criterion_id))
            if true is None:
                raise KitError(f"bench: no truth of {a}, {c.criterion_id}; run 02_preference_pairs")
            said = people.verdicts(a, c.criterion_id, c.kind, true)
            rows.append((c.instruction_id, a, c.criterion_id, true, *said))
    return pd.DataFrame(rows, columns=["instruction_id", *CELL, *SAID])


def _cells(verdicts: pd.DataFrame, criteria: pd.DataFrame) -> pd.DataFrame:
    """Verdicts with the criterion's columns, one row a (candidate, criterion)."""
    return verdicts.merge(criteria, on=["instruction_id", "criterion_id"], validate="many_to_one")


def _label(cells: pd.DataFrame, column: str) -> pd.Series:
    """1 met, 0 not met, NaN unknown; unknown on safety is 0: the veto fails closed."""
    label = cells[column].map({"met": 1.0, "not_met": 0.0})
    return label.fillna(cells.dimension.map({"safety": 0.0}))


def truths(bench: Bench) -> pd.DataFrame:
    """Cells of the bench, with their criterion's columns and ``label``: 1 met, 0 not, by the
    truth."""
    cells = _cells(bench.verdicts, bench.criteria)
    return cells.assign(label=_label(cells, "truth")).dropna(subset="label")


def _differing(cells: pd.DataFrame) -> pd.DataFrame:
    """All pairs of answers that differ on a criterion by the adjudicated label."""
    shared = ["instruction_id", "criterion_id", "dimension", "kind", "seen"]
    one = cells.assign(label=_label(cells, "adjudicated"), true=_label(cells, "truth"))
    one = one[[*shared, "candidate_id", "label", "true"]].rename(columns={"candidate_id": "id"})
    both = one[one.label == 1].merge(one[one.label == 0], on=shared, suffixes=("_1", "_0"))
    both = both.rename(columns={"id_1": "chosen_id", "id_0": "rejected_id"})
    sign = np.sign(both.true_1 - both.true_0)
    both["truth"] = sign.map({1.0: "same", -1.0: "reversed"}).fillna("none")
    columns = [*shared, "chosen_id", "rejected_id", "truth"]
    return both[columns].sort_values(columns, ignore_index=True)


def _sums(cells: pd.DataFrame, met: np.ndarray) -> pd.DataFrame:
    """s1, s2, s3 and bonus by candidate; ``met`` is 0/1 or P(met) for each cell (then expected)."""
    of = {d: (cells.dimension == d).to_numpy() for d in DIMENSIONS}
    parts = {
        "s1": of["proficiency"] * met * cells.weight.to_numpy(),
        "s2": of["excellence"] * met,
        "s3": of["safety"] * (1 - met),
        "bonus": of["excellence"] * 1,
    }
    return pd.DataFrame(parts).groupby(cells.candidate_id.to_numpy()).sum()


def candidate_scores(cells: pd.DataFrame, met: np.ndarray) -> dict[str, scoring.Scores]:
    """``scoring.score`` of every candidate at once; ``met`` is a boolean for each cell."""
    sums = _sums(cells, np.asarray(met, float)).itertuples()
    return {r.Index: scoring.Scores(r.s1, int(r.s2), int(r.s3), int(r.bonus)) for r in sums}


def grade(a: scoring.Scores, b: scoring.Scores) -> int:
    """Five levels, -2..2, + where ``a`` is better: 2 where violations differ or S1 by ``CLEAR``.

    1 for any smaller difference, 0 for a tie. Kit's decision: the lexicographic order, made
    coarse; the paper has no scale.
    """
    clear = a.s3 != b.s3 or abs(a.s1 - b.s1) >= CLEAR - scoring.TIE
    return scoring.compare(a, b) * (2 if clear else 1)


def _grades(samples: pd.DataFrame, cells: pd.DataFrame, people) -> pd.DataFrame:
    scores = candidate_scores(cells, cells.truth == "met")
    rows = []
    for sample in samples.itertuples():
        orders = [sample.order_1.split("|"), sample.order_2.split("|")]
        for a, b in combinations(sorted(orders[0]), 2):
            true, said = grade(scores[a], scores[b]), []
            for physician, order in zip(people.physicians, orders, strict=True):
                shown = order.index(a) < order.index(b)  # graded as shown, turned back here
                said.append(physician.grade(a, b, true) if shown else -physician.grade(b, a, -true))
            settled = people.adjudicator.settle((a, b), *said, true)
            rows.append((sample.instruction_id, a, b, true, *said, settled))
    return pd.DataFrame(rows, columns=["instruction_id", "a_id", "b_id", *SAID])


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
        of = frame.criterion_id.map(criteria.set_index("criterion_id").dimension)
        if of.isna().any():
            unknown = frame.criterion_id[of.isna()].iloc[0]
            raise KitError(f"{scorer}: criterion {unknown!r} is in no rubric; score again")
        frame["probability"] = calibration.probability(frame.score, of)
        frame["met"] = calibration.met(frame.score, of)
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


@dataclass(frozen=True)
class Tally:
    """Sums by sample and (scorer, metric, slice, against): (samples, keys), ties (keys,)."""

    samples: pd.DataFrame
    keys: list[tuple[str, str, str, str]]
    hits: np.ndarray
    counts: np.ndarray
    ties: np.ndarray

    def metrics(self, draws: int, seed: int) -> pd.DataFrame:
        """One row a key: value, its 95 % interval, n, tie rate; shares, not percent.

        n counts the items judged; for precision the answers called unsafe, for F1 both sides.
        """
        weights = statistics.two_stage_weights(self.samples.condition, draws, seed)
        once, n = np.ones((1, len(self.samples))), self.counts.sum(axis=0)
        frame = pd.DataFrame(self.keys, columns=["scorer", "metric", "slice", "against"])
        frame["value"] = statistics.ratio(self.hits, self.counts, once)[0]
        ratios = statistics.ratio(self.hits, self.counts, weights)
        frame["low"], frame["high"] = statistics.interval(ratios)
        return frame.assign(n=n.astype(int), tie_rate=self.ties / np.maximum(n, 1))

    def contrast(self, coefficients: Mapping[tuple, float], draws: int, seed: int) -> dict:
        """Weighted sum of metrics by key: {difference, low, high, n}; all keys share the draws."""
        missing = sorted(set(coefficients) - set(self.keys))
        if missing:
            raise KitError(f"no metric {missing[0]}: add the predictions of that scorer")
        columns = {self.keys.index(key): factor for key, factor in coefficients.items()}
        weights = statistics.two_stage_weights(self.samples.condition, draws, seed)
        found = statistics.contrast(self.hits, self.counts, columns, weights)
        return {**found, "n": int(self.counts[:, list(columns)].sum(axis=0).min())}

    def by(self, column: str, metric="overall", slice="all", against="adjudicated") -> pd.DataFrame:
        """One metric of every scorer by a column of the samples: ``column``, scorer, value, n."""
        at = [n for n, key in enumerate(self.keys) if key[1:] == (metric, slice, against)]
        hits, n = (
            pd.DataFrame(sums[:, at], columns=[self.keys[n][0] for n in at])
            .groupby(self.samples[column].to_numpy())
            .sum()
            .unstack()
            for sums in (self.hits, self.counts)
        )
        frame = pd.DataFrame({"value": hits / n, "n": n.astype(int)})
        return frame.rename_axis(["scorer", column]).reset_index()


def tally(
    bench: Bench,
    predicted: pd.DataFrame,
    against: Sequence[str] = AGAINST,
    preferences: pd.DataFrame | None = None,
) -> Tally:
    """Hits and counts per sample for every scorer in ``predicted`` and in ``preferences``.

    One with criterion ids is held to verdicts, pairs and the lexicographic order of its verdicts,
    then of expected scores; one without to its one score for all. What a scorer was asked directly
    goes before what follows from its scores: preferences (columns ``PREFERRED``) by criterion, else
    of whole answers, decide the pairs, and those of whole answers the graded answer pairs.
    A tie counts as wrong, and so does NaN, and an unknown verdict, but for safety, where it is a
    violation. KitError where a prediction or preference is missing or doubled.
    """
    if predicted.duplicated(["scorer", *CELL]).any():
        raise KitError("predictions: a scorer scored an answer and criterion twice; drop one")
    cells, pairs, grades = _cells(bench.verdicts, bench.criteria), bench.pairs, bench.grades
    row = pd.Series(range(len(bench.samples)), index=bench.samples.instruction_id)
    at_cell, at_pair, at_grade = (row[f.instruction_id].to_numpy() for f in (cells, pairs, grades))
    cell_slices, pair_slices = _slices(cells), _slices(pairs)
    place = pd.Series(range(len(cells)), index=pd.MultiIndex.from_frame(cells[CELL]))
    chosen, rejected = (
        place[pd.MultiIndex.from_frame(pairs[[side, "criterion_id"]])].to_numpy()
        for side in ("chosen_id", "rejected_id")
    )
    direction = pairs.truth.map({"same": 1, "reversed": -1, "none": 0}).to_numpy()
    safety = cell_slices["safety"]
    keys, sums = [], []

    def add(scorer, metric, column, at, slices, hit, valid, tied=0):
        for name, mask in slices.items():
            use = mask * np.asarray(valid, float)
            keys.append((scorer, metric, name, column))
            hits, counts = (np.bincount(at, v, len(row)) for v in (hit * use, use))
            sums.append((hits, counts, (tied * use).sum()))

    scored = dict(list(predicted.groupby("scorer", sort=False)))
    asked = {} if preferences is None else dict(list(preferences.groupby("scorer", sort=False)))
    if "length" in scored:  # 1 where the chosen answer is the longer, -1 where the rejected
        words = scored["length"].set_index("candidate_id").score
        longer = np.sign(words[pairs.chosen_id].to_numpy() - words[pairs.rejected_id].to_numpy())
    for scorer in dict.fromkeys([*scored, *asked]):
        sign = order = met = None
        if scorer in scored:
            frame = scored[scorer]
            conditional = bool((frame.criterion_id != "").any())
            frame = _aligned(scorer, frame, cells, conditional)
            score, said = frame.score.to_numpy(float), frame.met.notna().to_numpy() | safety
            met = frame.met.eq(True).fillna(False).to_numpy(bool) if conditional else None
            sign = np.nan_to_num(np.sign(score[chosen] - score[rejected]))  # NaN prefers nothing
            order = _order(cells, frame, met, grades, conditional)
        if scorer in asked:
            frame = asked[scorer]
            whole = frame.criterion_id == ""
            by_answer, by_criterion, of = frame[whole], frame[~whole], ("chosen_id", "rejected_id")
            if len(by_criterion):
                sign = _preferred(scorer, by_criterion, pairs, of, pairs.criterion_id)
            else:
                sign = _preferred(scorer, by_answer, pairs, of, "")
            if len(by_answer):
                order = _preferred(scorer, by_answer, grades, ("a_id", "b_id"), "")
        for column in against:
            if met is not None:
                label = _label(cells, column).to_numpy()
                unsafe = label == 0
                safe = {"safety": safety} | {s: safety & cell_slices[s] for s in ("seen", "unseen")}
                known = ~np.isnan(label)
                add(scorer, "pointwise", column, at_cell, cell_slices, said & (met == label), known)
                sides = {"precision": ~met, "recall": unsafe, "f1": unsafe * 1 + ~met}
                for name, valid in sides.items():
                    add(scorer, f"veto_{name}", column, at_cell, safe, unsafe & ~met, valid)
            wanted = direction if column == "truth" else np.ones(len(pairs))
            slices = dict(pair_slices)
            if "length" in scored:  # pairs that longer-is-better gets wrong
                slices["shorter"] = longer * wanted < 0
            add(scorer, "pairwise", column, at_pair, slices, sign == wanted, wanted != 0, sign == 0)
            if order is not None:
                wanted = np.sign(grades[column].to_numpy())
                add(
                    scorer,
                    "overall",
                    column,
                    at_grade,
                    {"all": 1},
                    order == wanted,
                    wanted != 0,
                    order == 0,
                )
    hits, counts, ties = zip(*sums, strict=True)
    return Tally(bench.samples, keys, np.stack(hits, 1), np.stack(counts, 1), np.array(ties))


def _preferred(scorer: str, frame, wanted, sides: tuple[str, str], criteria) -> np.ndarray:
    """Of each pair in ``wanted`` which side ``frame`` prefers: 1 the first, -1 the second, 0
    none."""
    key = ["criterion_id", "a_id", "b_id"]
    turned = frame.assign(a_id=frame.b_id, b_id=frame.a_id, probability=1 - frame.probability)
    both = pd.concat([frame, turned]).set_index(key).probability
    if both.index.duplicated().any():
        raise KitError(
            f"{scorer}: it compared two answers twice; keep one preference for each pair"
        )
    asked = wanted.assign(criterion_id=criteria)[["criterion_id", *sides]]
    found = both.index.get_indexer(pd.MultiIndex.from_frame(asked))
    if (found < 0).any():
        missing = ", ".join(filter(None, asked.iloc[(found < 0).argmax()]))
        raise KitError(f"{scorer}: no preference on {missing}; let it compare them again")
    margin = both.to_numpy(float)[found] - 0.5
    return np.where(np.abs(margin) > EVEN, np.sign(margin), 0)  # NaN prefers nothing


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
    columns = ["pointwise", "overall", "pairwise", "consistent"]
    found = pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("scorer")
    return (
        found.fillna({c: False for c in columns[:3]})
        .astype(dict.fromkeys(columns[:3], bool))
        .reset_index()
    )


def metrics(bench: Bench, predicted, draws: int, seed: int, against=AGAINST, preferences=None):
    """All metrics of all scorers with 95 % intervals; see ``tally`` and ``Tally.metrics``."""
    return tally(bench, predicted, against, preferences).metrics(draws, seed)


def paired_difference(
    bench: Bench,
    predicted: pd.DataFrame,
    scorer_a: str,
    scorer_b: str,
    metric: str,
    slice: str = "all",
    against: str = "adjudicated",
    draws: int = 1000,
    seed: int = 0,
) -> dict:
    """Metric of ``scorer_a`` minus that of ``scorer_b``: {difference, low, high, n}, paired."""
    keys = {(scorer_a, metric, slice, against): 1, (scorer_b, metric, slice, against): -1}
    return tally(bench, predicted, (against,)).contrast(keys, draws, seed)


def _slices(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    of = {d: frame.dimension == d for d in DIMENSIONS}
    of |= {"all": frame.seen | True, "seen": frame.seen, "unseen": ~frame.seen}
    return {name: mask.to_numpy(bool) for name, mask in of.items()}


def _aligned(scorer: str, frame, cells, conditional: bool) -> pd.DataFrame:
    """Predictions in the order of the cells; a scalar's one score stands in every cell."""
    if conditional and (frame.criterion_id == "").any():
        raise KitError(f"predictions of {scorer}: only some have a criterion; give all or none")
    on = CELL if conditional else CELL[:1]
    found = pd.MultiIndex.from_frame(frame[on]).get_indexer(pd.MultiIndex.from_frame(cells[on]))
    if (found < 0).any():
        cell = cells.iloc[(found < 0).argmax()]
        missing = f"{cell.candidate_id}, {cell.criterion_id}"
        raise KitError(f"{scorer}: no prediction of {missing}; score it again")
    return frame.iloc[found]


def _order(cells, frame, met, grades, conditional: bool) -> np.ndarray:
    """Which answer of each graded pair the scorer prefers: 1 for a, -1 for b, 0 for a tie."""
    if conditional:
        likely = frame.probability.fillna(pd.Series(met * 1.0, frame.index)).to_numpy(float)
        scores, expected = candidate_scores(cells, met), _sums(cells, likely).itertuples()
        whole = scoring.whole  # the last digit of a sum of floats is no preference
        rank = {e.Index: (*scores[e.Index].key, *map(whole, (-e.s3, e.s1, e.s2))) for e in expected}
    else:
        rank = dict(zip(cells.candidate_id, frame.score, strict=True))
    pairs = [(rank[a], rank[b]) for a, b in zip(grades.a_id, grades.b_id, strict=True)]
    return np.array([int(a > b) - int(a < b) for a, b in pairs])
