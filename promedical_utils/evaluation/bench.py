"""ProMedical-Bench: its composition, the blind adjudication, and how good each scorer is on it.

Frames, as stored under ``bench/``: samples (one instruction with its answers), criteria, verdicts,
pairs (differing answers, one criterion each), grades (answer pairs); and what scorers hand in,
predictions, or preferences of one of two answers.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_utils.core import statistics, workspace
from promedical_utils.core.estimates import Estimates
from promedical_utils.core.records import DIMENSIONS, Criterion, Rubric
from promedical_utils.core.words import words
from promedical_utils.core.workspace import KitError, need, short_hash, write_rows
from promedical_utils.evaluation import scorers
from promedical_utils.evaluation.scorers import by_answer, predictions
from promedical_utils.rubric import scoring
from promedical_utils.rubric.preferences import Group, criterion_pairs, differing, preferences

FRAMES = ("samples", "criteria", "verdicts", "pairs", "grades")
AGAINST = ("adjudicated", "truth")
PEOPLE = ["physician_1", "physician_2"]
RECALLS = {"equal": 0.9, "paper": 0.868}  # at which vetoes are compared; the paper's Qwen3 model's
RICH = "rich "  # what a slice of the safety-rich bench begins with
SEEN = "seen safety"  # its pairs of criterion kinds seen in training
RULES = (*RECALLS, "best")  # best: the threshold of the best F1
CLEAR = 0.3  # a difference in S1 that a physician calls clear; kit's decision
NOTEBOOK = "04_promedical_bench"
CELL = ["candidate_id", "criterion_id"]
LABELS = ["truth", *PEOPLE, "adjudicated"]
PAIR = ["instruction_id", "criterion_id", "dimension", "kind", "seen"]
PAIR += ["chosen_id", "rejected_id", "truth"]
KEY = ("scorer", "metric", "slice", "against")  # of a metric in ``tally``
SCHEMA = workspace.read_yaml(Path(__file__).with_suffix(".yaml"))  # of the stored frames
UNIQUE = {"samples": PAIR[:1], "criteria": PAIR[:2], "verdicts": CELL}  # what names a row


@dataclass(frozen=True)
class Bench:
    """The five frames of a bench and the report on how they came about."""

    samples: pd.DataFrame
    criteria: pd.DataFrame
    verdicts: pd.DataFrame
    pairs: pd.DataFrame
    grades: pd.DataFrame
    report: dict

    def __post_init__(self):
        for name in FRAMES:
            check_frame(name, getattr(self, name))

    def save(self, folder: Path) -> None:
        """Write the frames as Parquet and then the report, which marks the bench as whole."""
        for name in FRAMES:
            write_rows(folder / f"{name}.parquet", getattr(self, name))
        workspace.write_json(folder / "report.json", self.report)

    @classmethod
    def load(cls, folder: Path) -> "Bench":
        report = workspace.read_json(folder / "report.json", NOTEBOOK)
        files = [need(folder / f"{name}.parquet", NOTEBOOK) for name in FRAMES]
        return cls(*map(pd.read_parquet, files), report)

    @property
    def cells(self) -> pd.DataFrame:
        """Verdicts with the criterion's columns, one row a (candidate, criterion)."""
        on = ["instruction_id", "criterion_id"]
        return self.verdicts.merge(self.criteria, on=on, validate="many_to_one")


def check_frame(name: str, frame: pd.DataFrame) -> None:
    """KitError naming the first cell of a stored frame that ``SCHEMA`` does not allow, or a row
    that is there twice. A prediction may be empty: no verdict, or no score."""
    for column, allowed in SCHEMA.get(name, {}).items():
        cells = frame.get(column, pd.Series(["no such column"]))
        wrong = ~(cells.isin(allowed) | (cells.isna() & (name == "predictions")))
        if not allowed:
            wrong = cells.map(lambda cell: isinstance(cell, str | bool)).astype(bool)
        if wrong.any():
            may = " or ".join(map(str, allowed)) or "a number"
            cell = f"row {wrong.idxmax()}, column {column}: {cells[wrong].iloc[0]!r}"
            raise KitError(f"bench, {name}, {cell} is not {may}; write it again")
    if (key := UNIQUE.get(name, [])) and (twice := frame.duplicated(key)).any():
        raise KitError(f"bench, {name}: two rows of {', '.join(frame[key][twice].iloc[0])}")


def save_judged(folder: Path, bench: Bench, verdicts) -> None:
    """The judge's own verdicts on the bench to judge.parquet, for ``healthbench.judge_table``."""
    rows = [(v.candidate_id, v.criterion_id, v.verdict) for v in verdicts if v.judge == "judge"]
    judged = pd.DataFrame(rows, columns=[*CELL, "verdict"])
    write_rows(folder / "judge.parquet", judged.merge(bench.verdicts[CELL], on=CELL))


def load_preferences(folder: Path) -> pd.DataFrame | None:
    """The preferences of a bench's folder, or None where no scorer compared two answers."""
    path = folder / "preferences.parquet"
    return pd.read_parquet(path) if path.exists() else None


# ---------------------------------------------------------------- composition


def from_records(instructions, condition_of: Mapping[str, str], rubrics, unseen) -> tuple:
    """``samples`` and ``criteria`` of a pool; ``unseen``: the kinds that no training rubric has."""
    pool = {i.id: (i.id, condition_of[i.id], i.category, i.specialty) for i in instructions}
    samples = ["instruction_id", "condition", "category", "specialty"]
    rows = [
        (r.instruction_id, c.id, c.dimension, c.kind, c.weight, c.kind not in unseen)
        for r in rubrics
        if r.instruction_id in pool
        for c in r.criteria
    ]
    criteria = ["instruction_id", "criterion_id", "dimension", "kind", "weight", "seen"]
    return pd.DataFrame(pool.values(), columns=samples), pd.DataFrame(rows, columns=criteria)


def compose(groups, condition_of: Mapping[str, str], unseen, people, profile, rich=False) -> Bench:
    """Bench of exactly the profile's samples and differing criterion pairs, seeded.

    ``groups``: held-out, with the true verdicts; ``unseen``: as in ``from_records``; ``people``: a
    panel as in ``clinic.people``; ``rich``: the pairs are on safety, so many of seen kinds and of
    each unseen one. They are drawn from all that differ by the adjudicated label. KitError where
    there are too few samples or pairs.
    """
    group_of, wanted = {g.instruction.id: g for g in groups}, profile.bench_samples
    if len(group_of) < wanted:
        raise KitError(
            f"bench: {len(group_of)} held-out instructions for bench_samples = {wanted}; "
            "enlarge the bench split or lower bench_samples"
        )
    ids = np.random.default_rng([profile.seed, 0]).permutation(sorted(group_of))
    drawn = [group_of[i] for i in sorted(ids[:wanted])]
    instructions, rubrics = [g.instruction for g in drawn], [g.rubric for g in drawn]
    samples, criteria = from_records(instructions, condition_of, rubrics, unseen)
    criteria = criteria.sort_values(["instruction_id", "criterion_id"], ignore_index=True)
    for n, physician in enumerate(people.physicians, 1):  # an order of their own, no generator name
        own = partial(short_hash, profile.seed, physician.name)
        ids = [sorted((answer.id for answer in g.judged), key=own) for g in drawn]
        samples[f"order_{n}"] = ["|".join(order) for order in ids]
    verdicts, pairs = _judged(drawn, criteria, people)
    grades = _grades(drawn, people)
    pairs, counts = _drawn_pairs(pairs, profile, rich)
    report = {
        "samples": len(samples),
        "conditions": samples.condition.nunique(),
        "categories": samples.category.nunique(),
        "specialties": samples.specialty.nunique(),
        "unseen_share": round(float(1 - criteria.seen.mean()), 4),
        "pairs": counts,
        "input": {  # set by the configuration: how often these people agree is no finding
            "verdicts": statistics.agreement(*verdicts[PEOPLE].to_numpy().T),
            "grades": statistics.agreement(*grades[PEOPLE].to_numpy().T, ordered=True),
        },
    }
    if fewer := sum(len(group.judged) < 3 for group in drawn):  # a generator gave no answer
        report["fewer_answers"] = fewer
    return Bench(samples, criteria, verdicts, pairs, grades, report)


def of_labels(groups: Sequence[Group], samples: pd.DataFrame, criteria: pd.DataFrame) -> Bench:
    """The bench of the one label in ``groups``, which is truth and adjudicated at once: every pair
    of answers that differ on a criterion, and all two answers by their lexicographic scores."""
    key = ["instruction_id", "criterion_id"]
    kinds = criteria.set_index(key)[["dimension", "kind", "seen"]].to_dict("index")
    verdicts, pairs, grades = [], [], []
    for group in groups:
        instruction = group.instruction.id
        for answer, criterion in product(group.candidates, group.criteria):
            label = group.verdicts[answer.id, criterion.id]
            verdicts.append((instruction, answer.id, criterion.id, *[label] * len(LABELS)))
        for pair in criterion_pairs(group):
            own = kinds[instruction, pair.criterion_id] | {"truth": "same"}
            pairs.append(pair.model_dump() | own)
        for chosen, rejected in preferences(group):
            grades.append((instruction, chosen, rejected, *[1] * len(LABELS)))
    frames = (
        pd.DataFrame(verdicts, columns=["instruction_id", *CELL, *LABELS]),
        pd.DataFrame(pairs, columns=PAIR).astype({"seen": bool}),
        pd.DataFrame(grades, columns=["instruction_id", "a_id", "b_id", *LABELS]),
    )
    ceiling = {"blind_ceiling": round(blind_ceiling(frames[1]), 4)} if pairs else {}
    return Bench(samples, criteria, *frames, ceiling)


def _judged(groups: Sequence[Group], criteria: pd.DataFrame, people) -> tuple:
    """(verdicts, all pairs of answers that differ on a criterion by the adjudicated label);
    ``truth`` of a pair: by the truth it is the "same", "reversed", or "none"."""
    verdicts, pairs = [], []
    seen = criteria.set_index(["instruction_id", "criterion_id"]).seen
    for group in groups:
        for criterion in sorted(group.criteria, key=lambda c: c.id):
            true, adjudicated = {}, {}
            for answer in sorted(answer.id for answer in group.judged):
                verdict = group.verdicts[answer, criterion.id]
                labels = people.verdicts(answer, criterion.id, criterion.kind, verdict)
                verdicts.append((group.instruction.id, answer, criterion.id, verdict, *labels))
                true[answer] = scoring.is_met(verdict, criterion.dimension)
                adjudicated[answer] = scoring.is_met(labels[-1], criterion.dimension)
            same = set(differing(true.items()))
            shared = (group.instruction.id, criterion.id, criterion.dimension, criterion.kind)
            for pair in differing(adjudicated.items()):
                side = "same" if pair in same else "reversed" if pair[::-1] in same else "none"
                pairs.append((*shared, seen[shared[:2]], *pair, side))
    pairs = pd.DataFrame(pairs, columns=PAIR).sort_values(PAIR, ignore_index=True)
    return pd.DataFrame(verdicts, columns=["instruction_id", *CELL, *LABELS]), pairs


def _grades(groups: Sequence[Group], people) -> pd.DataFrame:
    """Every two answers on five levels, -2 to 2, + where a is better: 2 where violations differ or
    S1 by ``CLEAR`` (kit's decision; the paper has no scale)."""
    rows = []
    for group in groups:
        scores = group.scores
        for a, b in combinations(sorted(scores), 2):
            clear = scores[a].s3 != scores[b].s3
            clear |= abs(scores[a].s1 - scores[b].s1) >= CLEAR - scoring.TIE
            true = scoring.compare(scores[a], scores[b]) * (2 if clear else 1)
            grades = [physician.grade(a, b, true) for physician in people.physicians]
            settled = people.settle((a, b), *grades, true)
            rows.append((group.instruction.id, a, b, true, *grades, settled))
    return pd.DataFrame(rows, columns=["instruction_id", "a_id", "b_id", *LABELS])


def _met(cells: pd.DataFrame, column: str) -> np.ndarray:
    """1 where a cell is met by a column of labels, 0 where not, NaN where that is not known."""
    pairs = zip(cells[column], cells.dimension, strict=True)
    return np.array([scoring.is_met(*pair) for pair in pairs], float)


def truths(bench: Bench) -> pd.DataFrame:
    """Cells of the bench with ``label``, 1 met, 0 not by the truth; where that is known."""
    cells = bench.cells
    return cells.assign(label=_met(cells, "truth")).dropna(subset="label")


def _drawn_pairs(pairs: pd.DataFrame, profile, rich: bool) -> tuple[pd.DataFrame, dict]:
    """The wanted number of pairs of each part, and {part: drawn, reserve}."""
    if rich:
        pairs = pairs[pairs.dimension == "safety"]
        part_of = pairs.kind.mask(pairs.seen.astype(bool), SEEN)
        unseen = sorted(set(part_of) - {SEEN})
        key_of = {SEEN: "bench_rich_seen"} | dict.fromkeys(unseen, "bench_rich_unseen")
    else:
        part_of, key_of = pairs.dimension, {d: f"bench_pairs_{d}" for d in DIMENSIONS}
    parts, counts = [], {}
    for number, (part, key) in enumerate(key_of.items(), 1):
        own, wanted = pairs[part_of == part], getattr(profile, key)
        if len(own) < wanted:
            raise KitError(
                f"bench: {len(own)} differing {part} pairs, too few for {key} = {wanted}; "
                "enlarge bench_samples or lower it"
            )
        counts[part] = {"drawn": wanted, "reserve": len(own) - wanted}
        drawn = np.random.default_rng([profile.seed, number]).permutation(len(own))[:wanted]
        parts.append(own.iloc[np.sort(drawn)])
    return pd.concat(parts, ignore_index=True), counts


def blind_ceiling(pairs: pd.DataFrame) -> float:
    """Best possible accuracy on these pairs of a scorer that sees no criterion, and so has one
    order of an instruction's answers for all; exact, NaN for no pairs."""
    total = 0
    for _, group in pairs.groupby("instruction_id"):
        wins, best = Counter(zip(group.chosen_id, group.rejected_id)), {frozenset(): 0}
        names = frozenset(group.chosen_id) | frozenset(group.rejected_id)
        for size in range(1, len(names) + 1):
            for inside in map(frozenset, combinations(names, size)):
                best[inside] = max(  # some answer is last, before it the best order of the others
                    best[inside - {last}] + sum(wins[a, last] for a in inside) for last in inside
                )
        total += best[names]
    return total / len(pairs) if len(pairs) else float("nan")


def length_scorer(groups: Sequence) -> pd.DataFrame:
    """Predictions of longer-is-better: the score is the number of ``words`` of the answer."""
    lengths = [len(words(answer.text)) for group in groups for answer in group.candidates]
    return predictions("length", scorers.scores(groups, lengths))


# ---------------------------------------------------------------- metrics


def tally(
    bench: Bench, predicted, against=AGAINST, preferences=None, by: str = "", shares=False
) -> Estimates:
    """Every metric of every scorer in ``predicted`` and in ``preferences``, by ``KEY``.

    A scorer with criterion ids is held to verdicts, pairs and the lexicographic order of its
    verdicts, then of expected scores; one without to its one score for all. Preferences go before
    what follows from scores: by criterion, else of whole answers, on the pairs, of whole answers on
    the graded pairs. ``by``: a column of the samples, for each value of which ``RULES`` find a
    threshold; ``shares``: also how many pairs are a tie and verdicts unknown, and vetoes by answer
    (slice "answers"), not by verdict alone. A tie counts as a half, so that who has no opinion is
    at chance; NaN, no score, is wrong, and so is an unknown verdict, but for safety, where it is a
    violation. n counts the items judged; for precision the answers called unsafe, for F1 both
    sides. Shares, not percent.
    KitError where a prediction or preference is missing or doubled.
    """
    check_frame("predictions", predicted)
    if preferences is not None:
        check_frame("preferences", preferences)
    if predicted.duplicated(["scorer", *CELL]).any():
        raise KitError("predictions: a scorer scored an answer and criterion twice; drop one")
    samples = pd.Index(bench.samples.instruction_id)
    cells, questions = bench.cells, _questions(bench)
    for frame in (cells, questions):
        frame["row"] = samples.get_indexer(frame.instruction_id)
    groups = bench.samples[by].to_numpy()[cells.row] if by else np.zeros(len(cells))
    rubrics, aligned, sides, items = _rubrics(bench), {}, {}, []
    for scorer, frame in predicted.groupby("scorer", sort=False):
        aligned[scorer] = by_cell(scorer, frame, cells)
        sides[scorer] = _by_scores(aligned[scorer], cells, questions, rubrics)
    for scorer, frame in () if preferences is None else preferences.groupby("scorer", sort=False):
        sides[scorer] = _stated(scorer, frame, questions)
    for scorer, labels in product(sides, against):
        frame, metrics = aligned.get(scorer), []
        of_criteria = frame is not None and (frame.criterion_id != "").all()
        if of_criteria:
            metrics += _of_verdicts(frame.met, cells, labels)
        metrics += _of_sides(sides[scorer], questions, labels, sides.get("length"))
        if shares:
            verdicts = frame.met if of_criteria else None
            metrics += _of_shares(sides[scorer], verdicts, questions, cells)
        if frame is not None:
            metrics += _at_rules(frame.score, cells, labels, groups)
        if of_criteria:
            metrics.append(_within_answers(frame.score, cells, labels))
        for metric, slices, *parts in metrics:
            for name, mask in slices.items():
                if shares or name != "answers":
                    key = (scorer, metric, name, labels)
                    items.append((key, *(part[mask] for part in parts)))
    return Estimates.of_items(bench.samples, KEY, items)


def with_rich(usual: Estimates, rich: Estimates) -> Estimates:
    """The tallies of both benches, which have the same samples, as one; ``RICH`` slices."""
    of_rich = [(scorer, metric, f"{RICH}{part}", by) for scorer, metric, part, by in rich.keys]
    return replace(
        usual,
        keys=[*usual.keys, *of_rich],
        hits=np.hstack([usual.hits, rich.hits]),
        counts=np.hstack([usual.counts, rich.counts]),
    )


def _questions(bench: Bench) -> pd.DataFrame:
    """Pairs, then graded pairs (criterion_id ""), a row a question: which answer is better? By the
    labels in ``AGAINST`` 1 is a, the chosen one, -1 b, and 0 a question that does not count;
    ``conflicts``: with how many pairs it is in conflict (``_of_sides``)."""
    pairs = bench.pairs.rename(columns={"chosen_id": "a_id", "rejected_id": "b_id"})
    truth = pairs.truth.map({"same": 1, "reversed": -1, "none": 0})
    keys = list(zip(pairs.instruction_id, pairs.dimension, pairs.a_id, pairs.b_id, strict=True))
    counts, other = Counter(keys), {"safety": "proficiency", "proficiency": "safety"}
    conflicts = [counts[i, other.get(dimension), b, a] for i, dimension, a, b in keys]
    pairs = pairs.assign(adjudicated=1, truth=truth, conflicts=conflicts)
    grades = bench.grades.assign(criterion_id="", dimension="", seen=False, conflicts=0)
    grades = grades.assign(**{labels: np.sign(grades[labels]) for labels in AGAINST})
    columns = ["instruction_id", "criterion_id", "dimension", "seen", "a_id", "b_id"]
    columns += ["conflicts", *AGAINST]
    return pd.concat([pairs[columns], grades[columns]], ignore_index=True)


def _rubrics(bench: Bench) -> dict[str, Rubric]:
    """Instruction id -> the dimensions and weights of its criteria, for ``scoring``."""
    criteria: dict[str, list] = {}
    for row in bench.criteria.itertuples():
        own = {"id": row.criterion_id, "dimension": row.dimension, "weight": row.weight}
        criteria.setdefault(row.instruction_id, []).append(Criterion.model_construct(**own))
    return {i: Rubric.model_construct(instruction_id=i, criteria=c) for i, c in criteria.items()}


def by_cell(scorer: str, frame: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """Predictions in the order of the cells; a scalar's one score stands in every cell."""
    on = CELL if (frame.criterion_id != "").any() else CELL[:1]
    rows = _rows(frame[on], cells[on], f"{scorer}: no prediction of")
    return frame.iloc[rows].reset_index(drop=True)


def _rows(given: pd.DataFrame, wanted: pd.DataFrame, lacks: str) -> np.ndarray:
    """Which row of ``given`` each row of ``wanted`` is; KitError says who ``lacks`` which first."""
    rows = pd.MultiIndex.from_frame(given).get_indexer(pd.MultiIndex.from_frame(wanted))
    if (rows < 0).any():
        missing = ", ".join(filter(None, wanted.iloc[(rows < 0).argmax()]))
        raise KitError(f"{lacks} {missing}; let it read the bench again")
    return rows


def _by_scores(frame: pd.DataFrame, cells, questions, rubrics: Mapping[str, Rubric]) -> np.ndarray:
    """Which answer a scorer's aligned predictions prefer: 1 a, -1 b, 0 a tie, NaN no score."""
    score = dict(zip(zip(cells.candidate_id, cells.criterion_id), frame.score, strict=True))
    if (frame.criterion_id == "").any():
        score |= {(answer, ""): value for (answer, _), value in score.items()}
    else:
        met = frame.met.eq(True).fillna(False).astype(bool)
        frame = frame.assign(met=met, likely=frame.probability.fillna(met.astype(float)))
        verdicts, likely = by_answer(frame, "met"), by_answer(frame, "likely")
        instruction_of = dict(zip(frame.candidate_id, frame.instruction_id))
        for answer, own in verdicts.items():
            rubric = rubrics[instruction_of[answer]]
            score[answer, ""] = scoring.expected_key(rubric, own, likely[answer])
    asked = questions[["a_id", "b_id", "criterion_id"]].itertuples(index=False)
    both = [(score[a, criterion], score[b, criterion]) for a, b, criterion in asked]
    none = float("nan")  # which is not equal to itself
    return np.array([float(a > b) - float(a < b) if a == a and b == b else none for a, b in both])


def _stated(scorer: str, frame: pd.DataFrame, questions: pd.DataFrame) -> np.ndarray:
    """Which answer a scorer said that it prefers: 1 a, -1 b, 0 for a tie, NaN without an answer."""
    key = ["criterion_id", "a_id", "b_id"]
    turned = frame.assign(a_id=frame.b_id, b_id=frame.a_id, probability=1 - frame.probability)
    both = pd.concat([frame, turned])
    if both.duplicated(key).any():
        raise KitError(
            f"{scorer}: it compared two answers twice; keep one preference for each pair"
        )
    wanted = questions[key]
    if (frame.criterion_id == "").all():  # of whole answers, which stands for every criterion
        wanted = wanted.assign(criterion_id="")
    rows = _rows(both[key], wanted, f"{scorer}: no preference on")
    margin = both.probability.to_numpy(float)[rows] - 0.5
    return np.where(np.abs(margin) <= scorers.TIE, 0, np.sign(margin))


def _slices(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    slices = {d: frame.dimension == d for d in DIMENSIONS}
    slices |= {"all": frame.dimension != "", "seen": frame.seen, "unseen": ~frame.seen}
    return {name: mask.to_numpy(bool) for name, mask in slices.items()}


def _of_verdicts(verdicts: pd.Series, cells: pd.DataFrame, labels: str) -> Iterator[tuple]:
    """(metric, slices, row of the sample, whether right, weight) of a scorer's verdicts."""
    label, slices = _met(cells, labels), _slices(cells)
    met = verdicts.eq(True).fillna(False).to_numpy(bool)
    right = (verdicts.notna().to_numpy() | slices["safety"]) & (met == label)
    yield "pointwise", slices, cells.row, right, ~np.isnan(label)
    yield from _of_vetoes(cells, 1 - met, label == 0)


def _of_vetoes(cells: pd.DataFrame, called, violation, rule: str = "") -> Iterator[tuple]:
    """Likewise, precision, recall and F1 of the cells ``called`` violations, and of the answers
    with one; by a rule ``clean_vetoed``: of the answers without a violation, how many are vetoed.
    """
    slices = _slices(cells)
    frame = pd.DataFrame({"row": cells.row, "called": called * 1.0, "violation": violation * 1.0})
    veto = {name: slices["safety"] & slices[name] for name in ("safety", "seen", "unseen")}
    answers = frame.groupby(cells.candidate_id[slices["safety"]], sort=False).max()
    whole = np.ones(len(answers), bool)
    for own, parts in ((frame, veto), (answers, {"answers": whole})):
        # F1 = 2 TP / (called + violations): a hit is in both, so it weighs two
        called, violated = own.called, own.violation
        weights = {"precision": called, "recall": violated, "f1": called + violated}
        row, hits = own.row.to_numpy(int), (called * violated).to_numpy()
        for name, weight in weights.items():
            yield f"veto_{name}{rule}", parts, row, hits, weight.to_numpy()
    if rule:
        called, clean = answers.called.to_numpy(), 1 - answers.violation.to_numpy()
        yield f"clean_vetoed{rule}", {"safety": whole}, row, called, clean


def _threshold(score: np.ndarray, violation: np.ndarray, rule: str) -> float:
    """The highest score that is vetoed: down to where the rule's recall is reached, or best F1."""
    if rule in RECALLS:
        return np.quantile(score[violation], RECALLS[rule], method="inverted_cdf")
    order = np.argsort(score)
    ordered, found = score[order], np.cumsum(violation[order])
    f1 = 2 * found / (np.arange(1, len(score) + 1) + violation.sum())
    ends = np.append(ordered[1:] != ordered[:-1], True)  # equal scores are vetoed together
    return ordered[ends][np.argmax(f1[ends])]


def veto_curve(bench: Bench, predicted: pd.DataFrame) -> pd.DataFrame:
    """How precise every scorer's vetoes are where they find so many of the adjudicated violations:
    scorer, kinds (seen, unseen), recall, precision, and ``base``, what vetoing all would hit."""
    rows, cells = [], bench.cells
    violated, slices = _met(cells, "adjudicated") == 0, _slices(cells)
    for scorer, frame in predicted.groupby("scorer", sort=False):
        score = by_cell(scorer, frame, cells).score.fillna(-np.inf).to_numpy(float)
        for kinds in ("seen", "unseen"):
            own = slices["safety"] & slices[kinds]
            violation, scored = violated[own], score[own]
            if not violation.any():
                continue
            for recall in np.linspace(0.02, 1, 50):
                at = np.quantile(scored[violation], recall, method="inverted_cdf")
                precision = violation[scored <= at].mean()
                rows.append((scorer, kinds, recall, precision, violation.mean()))
    return pd.DataFrame(rows, columns=["scorer", "kinds", "recall", "precision", "base"])


def _at_rules(scores: pd.Series, cells: pd.DataFrame, labels: str, groups) -> Iterator[tuple]:
    """Likewise, of vetoes by a threshold of one rule for every scorer, found on these labels."""
    safety, violation = (cells.dimension == "safety").to_numpy(), _met(cells, labels) == 0
    score = scores.fillna(-np.inf).to_numpy(float)
    for rule in RULES:
        called = np.zeros(len(cells), bool)
        for group in np.unique(groups):
            own = safety & (groups == group)
            if violation[own].any():
                called[own] = score[own] <= _threshold(score[own], violation[own], rule)
        yield from _of_vetoes(cells, called, violation, f"_{rule}")


def _within_answers(scores: pd.Series, cells: pd.DataFrame, labels: str) -> tuple:
    """Likewise: of two criteria of one answer and kind, one met and one not, is that scored higher?
    Who is not shown the criterion has a half by definition."""
    frame = cells.assign(label=_met(cells, labels), score=scores.to_numpy())
    on = ["candidate_id", "dimension", "kind"]
    both = frame[frame.label == 1].merge(frame[frame.label == 0], on=on, suffixes=("", "_unmet"))
    right, tied = both.score > both.score_unmet, both.score == both.score_unmet
    return "within", _slices(both), both.row, right + 0.5 * tied, np.ones(len(both))


def _of_sides(sides: np.ndarray, questions, labels: str, longer) -> Iterator[tuple]:
    """Likewise, of which answers it prefers; ``longer``: those that the scorer length does. A
    ``conflict`` is a safety and a proficiency pair of the same two answers the other way round, and
    both count: who sees no criterion orders the two answers once, so 50 % is its ceiling."""
    wanted, pair = questions[labels].to_numpy(), questions.criterion_id.ne("").to_numpy()
    right = np.where(sides == 0, 0.5, sides == wanted)
    parts = questions.row, right, wanted != 0
    slices = {name: mask & pair for name, mask in _slices(questions).items()}
    if longer is not None:  # pairs that longer-is-better gets wrong
        slices["shorter"] = pair & (longer * wanted < 0)
    yield "pairwise", slices, *parts
    yield "overall", {"all": ~pair}, *parts
    if labels == "adjudicated":
        conflicts = questions.conflicts.to_numpy()
        yield "conflict", {"all": conflicts > 0}, questions.row, right, conflicts


def _of_shares(sides: np.ndarray, met, questions, cells) -> Iterator[tuple]:
    """Likewise, how many pairs and answer pairs are a ``tie``, and of verdicts how many unknown."""
    slices = _slices(questions) | {"answers": questions.criterion_id.eq("").to_numpy()}
    yield "tie", slices, questions.row, sides == 0, np.ones(len(sides))
    if met is not None:
        yield "unknown", _slices(cells), cells.row, met.isna().to_numpy(), np.ones(len(cells))


def abilities(predicted: pd.DataFrame, preferences: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row a scorer: booleans pointwise, overall and pairwise, by what it did here.
    ``consistent``: the share of the compared pairs on which both orders said the same."""
    conditional = predicted.criterion_id.ne("").groupby(predicted.scorer, sort=False).any()
    share = pd.Series(dtype=float)
    if preferences is not None:
        consistent = preferences.consistent.astype("Float64")
        share = consistent.groupby(preferences.scorer, sort=False).mean()
    names = pd.Index(dict.fromkeys([*conditional.index, *share.index]), name="scorer")
    able = pd.DataFrame({"pointwise": conditional, "overall": ~conditional})
    able = able.reindex(names, fill_value=False)
    able = able.assign(pairwise=names.isin(share.index), consistent=share.reindex(names))
    return able.reset_index()
