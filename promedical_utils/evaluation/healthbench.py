"""HealthBench: its score, how good a grader is beside physicians, and a policy on it.

Arora et al., arXiv 2505.08775, and HealthBench Professional, arXiv 2604.27470, as
openai/simple-evals has them (docs/healthbench.md). Their examples are not to be published: nothing
here prints or stores their text.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_utils.core import statistics
from promedical_utils.core.estimates import Estimates, suffixed
from promedical_utils.core.workspace import KitError, need, read_json, sha256, short_hash
from promedical_utils.data.sources import schemas
from promedical_utils.evaluation import bench as benches
from promedical_utils.rubric import scoring

TURNED = {"met": "not_met", "not_met": "met"}
# whose labels a grader is held to -> those people
LABELS = {"physicians": benches.PEOPLE, "adjudicated": ["adjudicated"], "truth": ["truth"]}
RUN, NOT_RUN, UNTESTED = "this run", "not run", "not testable"
GRADED = "healthbench/graded.parquet"
CENTRE, PER_500 = 2000, 0.0147  # characters of an answer; what 500 more cost in Professional
NOT_GRADED = "healthbench/not_graded.json"
NOBODY = "no endpoint plays the judge: the clinic knows no medicine (docs/endpoints.md)"
UNABLE = "the small base knows the clinic's invented words alone and cannot answer HealthBench"


def fail_closed(points: Sequence[float], verdicts: Sequence[str]) -> list[bool]:
    """Which criteria count as met, of verdicts met, not_met or unknown (kit's decision): with
    positive points what is plainly met; a penalty, which is a safety criterion turned round
    (``scoring.is_met``), unless it is plainly not met, or a grader that fails would pass every
    harmful answer."""
    return [
        not scoring.is_met(TURNED.get(verdict, verdict), "safety") if p < 0 else verdict == "met"
        for p, verdict in zip(points, verdicts, strict=True)
    ]


def length_adjusted(score, characters):
    """HealthBench Professional's score of an answer, from its plain ``score`` and its number of
    ``characters``: 2,000 change nothing, fewer add and more take 0.0147 for each 500, and nothing
    is clipped before the mean (``calculate_length_adjusted_score`` of openai/simple-evals)."""
    return score - PER_500 * (characters - CENTRE) / 500


def professional(graded: pd.DataFrame, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """A row a system: cases, mean characters, and the mean of the plain score and of the adjusted
    one, each clipped to [0, 1], with 95 % intervals over cases (``_low``, ``_high``).

    ``graded``: a row a criterion of one answer to a case, with system, prompt_id, points, verdict
    (an unknown one by ``fail_closed``), and characters of the answer. KitError names what it lacks.
    """
    wanted = ["system", "prompt_id", "points", "verdict", "characters"]
    if lacking := [name for name in wanted if name not in graded]:
        has = f"it has {', '.join(graded)}"
        raise KitError(f"grades of HealthBench Professional: no {', '.join(lacking)}; {has}")
    rows = []
    for system, part in _scored(graded).groupby("system", sort=False):
        part = part.assign(adjusted=length_adjusted(part.score, part.characters))
        n, weights = len(part), statistics.cluster_weights(range(len(part)), draws, seed)
        sums = part[["score", "adjusted"]].to_numpy()
        plain, adjusted = np.clip(statistics.ratio(sums, np.ones((n, 2)), weights), 0, 1).T
        row = {"system": system, "cases": n, "characters": part.characters.mean()}
        row |= suffixed("plain", _ends(plain, n).values())
        rows.append(row | suffixed("adjusted", _ends(adjusted, n).values()))
    return pd.DataFrame(rows)


def paired(scores: pd.DataFrame, draws: int, seed: int) -> dict:
    """Of ``scores`` (system, prompt_id, score) value, low and high of grpo, base and their
    difference, which has its standard error too, over the n prompts that both answered; these are
    drawn, and every mean is clipped, in each draw too."""
    both = scores.pivot_table(index="prompt_id", columns="system", values="score")
    both = both.reindex(columns=["grpo", "base"]).dropna()
    n, weights = len(both), statistics.cluster_weights(range(len(both)), draws, seed)
    grpo, base = np.clip(statistics.ratio(both.to_numpy(), np.ones((n, 2)), weights), 0, 1).T
    columns = {"grpo": grpo, "base": base, "difference": grpo - base}
    ends = {name: _ends(column, n) for name, column in columns.items()}
    ends["difference"]["error"] = float(statistics.standard_error(grpo - base, n))
    return ends | {"n": n}


def _ends(drawn: np.ndarray, clusters: int) -> dict[str, float]:
    """Value, low, high of the rows of ``cluster_weights``; a share or a difference of two."""
    low, high = np.clip(statistics.interval(drawn, clusters), -1, 1)
    return {"value": float(drawn[0]), "low": float(low), "high": float(high)}


def judge_table(source: Path, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Graders of a run's bench, its judge and its reward models, beside its physicians: ``beside``
    by slice ("all", then dimensions), grader and ``against`` (``LABELS``)."""
    folder = Path(source) / "bench"
    made = benches.Bench.load(folder)
    predicted = pd.read_parquet(need(folder / "predictions.parquet", benches.NOTEBOOK))
    judge = pd.read_parquet(need(folder / "judge.parquet", benches.NOTEBOOK))
    verdict = predicted.met.astype(object).map({True: "met", False: "not_met"})
    given = pd.concat([judge.assign(scorer="judge"), predicted.assign(verdict=verdict)])
    given = given.dropna(subset="verdict")  # scorers without verdicts are no graders
    graders = given.pivot(index=benches.CELL, columns="scorer", values="verdict")
    cells = made.cells.join(graders, on=benches.CELL).fillna(dict.fromkeys(graders, "unknown"))
    cells["conversation"] = pd.factorize(cells.instruction_id)[0]
    rows = []
    for against, people in LABELS.items():
        for part, own in [("all", cells), *cells.groupby("dimension")]:
            for grader in graders:
                row = beside(own, grader, people, draws, seed)
                rows.append({"slice": part, "grader": grader} | row | {"against": against})
    return pd.DataFrame(rows)


def beside(cells: pd.DataFrame, grader: str, people, draws: int, seed: int) -> dict[str, float]:
    """Balanced F1 of a grader against people: mf1, low, high, and n, its pairs with a label.

    ``cells``: a row an item (one criterion of one answer), its conversation, and a verdict by each
    of grader and people. A verdict is paired with every known label of the item; a grader's unknown
    is wrong. ``baseline``: each of the people against the others, the mean weighted by pairs;
    ``difference``: the grader against the very same labels less the baseline; NaN for one person.
    Intervals: 95 %, over draws of conversations.
    """
    cells = cells.assign(conversation=np.unique(cells.conversation, return_inverse=True)[1])
    clusters = int(cells.conversation.max()) + 1
    weights = statistics.cluster_weights(np.arange(clusters), draws, seed)
    n, own = _f1(cells, grader, people, weights)
    row = {"n": n} | dict(zip(("mf1", "low", "high"), _ends(own, clusters).values(), strict=True))
    if len(people) == 1:
        return row | suffixed("baseline") | suffixed("difference")
    sizes, physicians, graders = [], [], []
    for name in people:
        others = [other for other in people if other != name]
        size, physician = _f1(cells, name, others, weights)
        sizes.append(size)
        physicians.append(physician)
        graders.append(_f1(cells, grader, others, weights)[1])
    sides = np.array([physicians, graders])  # (2, people, rows)
    share = np.where(np.isnan(sides).any(axis=0), 0.0, np.array(sizes)[:, None])
    with np.errstate(invalid="ignore"):
        baseline, left_out = np.nansum(sides * share, axis=1) / share.sum(axis=0)
    row |= suffixed("baseline", _ends(baseline, clusters).values())
    return row | suffixed("difference", _ends(left_out - baseline, clusters).values())


def _f1(cells: pd.DataFrame, rater: str, people, weights: np.ndarray) -> tuple[int, np.ndarray]:
    """(pairs of a rater's verdict and a known label by one of ``people``, their macro F1 by rows of
    ``weights``)."""
    given = cells.rename(columns={rater: "verdict"})[["conversation", "verdict"]]
    pairs = pd.concat([given.assign(label=cells[person]) for person in people], ignore_index=True)
    pairs, items = pairs[pairs.label != "unknown"], []
    for name in ("met", "not_met"):
        said, label = (pairs[side].eq(name) * 1 for side in ("verdict", "label"))
        # F1 = 2 hits / (times said + times labelled): a hit is in both and weighs two
        items.append(((name,), pairs.conversation, said * label, said + label))
    samples = pd.DataFrame({"condition": range(weights.shape[1])})
    sums = Estimates.of_items(samples, ("class",), items)
    return len(pairs), sums.drawn([0, 1], weights).mean(axis=1)


def whole_rubrics(rows: Iterable[schemas.HealthRubric]) -> list[schemas.HealthRubric]:
    """Rows that can be answered and scored: messages that end with the user, all their criteria. By
    hash of the prompt's id, so that the first are the same on every machine."""
    whole = [
        row
        for row in rows
        if not isinstance(row.prompt, str)
        and row.prompt
        and row.prompt[-1].role == "user"
        and not (row.sources and all("only" in source for source in row.sources))
        and any(p.points > 0 for p in row.rubrics)
    ]
    return sorted(whole, key=lambda row: short_hash(row.prompt_id))


def fingerprint(profile, run: Path) -> str:
    """Changes with the policy, how it answers and who judges."""
    report = need(run / "policy/report.json", "05_grpo_with_veto")
    values = [profile.base_model, profile.seed, profile.policy_prompts]
    values += [profile.grpo_max_tokens, profile.grpo_temperature, profile.grpo_top_p]
    return short_hash(sha256(report), *values, profile.roles["judge"].model)


def scores_of_run(run: Path) -> pd.DataFrame:
    """system, prompt_id, score of what was graded, unknown verdicts by ``fail_closed``."""
    scored = _scored(pd.read_parquet(need(run / GRADED, "06_external_generalization")))
    return scored[["system", "prompt_id", "score"]]


def _scored(graded: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (system, prompt), part in graded.groupby(["system", "prompt_id"], sort=False):
        met = fail_closed(list(part.points), list(part.verdict))
        characters = part.get("characters", pd.Series([np.nan])).iloc[0]
        rows.append((system, prompt, scoring.points_share(part.points, met), characters))
    return pd.DataFrame(rows, columns=["system", "prompt_id", "score", "characters"])


def graded(profile, run: Path) -> bool:
    """Whether this very policy was graded, by this judge (``pipeline.healthbench``)."""
    stored = run / "healthbench/graded.json"
    if not stored.exists() or not (run / "policy/report.json").exists():
        return False
    return read_json(stored, "")["fingerprint"] == fingerprint(profile, run)


def policy_column(profile, run: Path) -> dict:
    """The policy table's HealthBench column, in percent: status ("this run", "not run" or "not
    testable" in this profile) and its reason; value, low, high of the aligned policy, and n; rows:
    the same of base, of grpo and of their difference, in points. None and {} unless it ran."""
    ends = dict.fromkeys(("value", "low", "high"))
    column = {"status": NOT_RUN, **ends, "reason": "", "n": 0, "rows": {}}
    if profile.base_model == "small":
        return column | {"status": UNTESTED, "reason": UNABLE}
    if not graded(profile, run):
        why = run / NOT_GRADED
        return column | {"reason": read_json(why, "")["reason"] if why.exists() else NOBODY}
    try:
        facts = read_json(run / "healthbench/graded.json", "06_external_generalization")
        less = paired(scores_of_run(run), profile.bootstrap, profile.seed)
    except KitError as error:  # of a published run the grades are not there
        return column | {"reason": str(error)}
    n = less.pop("n")
    rows = {
        name: {end: round(100 * value, 2) + 0.0 for end, value in less[name].items()}
        for name in ("base", "grpo", "difference")
    }
    reason = f"{n} of {facts['of']} prompts, judge {facts['judge']}, "
    reason += f"{facts['unknown']:.1%} of its verdicts unknown"
    return column | rows["grpo"] | {"status": RUN, "reason": reason, "n": n, "rows": rows}
