"""How strategies are chosen: accuracy, F1 and the preference bias of Kang et al. (ACL 2024), the
verdict of a claim about them, and the public files they can be read from."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_studies.seekers import STRATEGIES, TEXTS
from promedical_utils.core import statistics, verdicts
from promedical_utils.core.workspace import KitError

SWEEPS, ADDED = 20, 0.5  # of the authors' iteration; the kit's, to every cell off the diagonal
INTEREST = {"B": 0.2, "distress": 0.25}  # smallest effect of interest; of shares 0.05


def bias(counts: np.ndarray, added: float = 0.0) -> np.ndarray:
    """B, (draws,): the standard deviation of the preferences that a Bradley-Terry model finds in
    ``counts`` (draws, predicted, gold). NaN where the authors' formula divides by zero, for a
    strategy that is never missed; ``added`` to every cell off the diagonal it is always defined."""
    size = counts.shape[-1]
    wins, p = (counts + added) * (1 - np.eye(size)), np.ones(counts.shape[:-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(SWEEPS):
            for i in range(size):
                both, mine, lost = p[:, [i]] + p, wins[:, i], wins[:, :, i]
                above = np.where(mine > 0, mine * p / both, 0).sum(1)
                p[:, i] = above / np.where(lost > 0, lost / both, 0).sum(1)
            logs = np.where(p > 0, np.log(p), 0).sum(1) / (p > 0).sum(1)
            p = p / np.exp(logs)[:, None]
            p[~np.isfinite(p).all(1)] = np.nan
    return (p * size / p.sum(1, keepdims=True)).std(1)


def measures(
    predicted: Sequence[str], gold: Sequence[str], weights=None, labels: Sequence[str] = STRATEGIES
) -> dict[str, np.ndarray]:
    """accuracy, Q (macro F1), QW (weighted F1), B (with 0.5 added) and B0 (the authors'), each
    (draws,); ``weights``: how often each turn counts, (draws, turns). KitError for other labels."""
    if strange := {*predicted, *gold} - {*labels}:
        raise KitError(f"{min(strange)!r} is no strategy; know {', '.join(labels)}")
    place, size = {label: n for n, label in enumerate(labels)}, len(labels)
    cells = [place[p] * size + place[g] for p, g in zip(predicted, gold, strict=True)]
    weights = np.ones((1, len(cells))) if weights is None else weights
    counts = (weights @ np.eye(size * size)[cells]).reshape(-1, size, size)
    hits, true = np.diagonal(counts, axis1=1, axis2=2), counts.sum(1)
    f1 = 2 * hits / np.maximum(counts.sum(2) + true, 1e-12)
    n = true.sum(1)
    shares = {"accuracy": hits.sum(1) / n, "Q": f1.mean(1), "QW": (f1 * true).sum(1) / n}
    return shares | {"B": bias(counts, ADDED), "B0": bias(counts)}


def claim(name: str, metric: str, drawn: np.ndarray, clusters: int) -> dict:
    """The row of a claim that a difference is above 0, from its draws (``cluster_weights``)."""
    low, high = map(float, statistics.interval(drawn, clusters))
    error, interest = float(statistics.standard_error(drawn, clusters)), INTEREST.get(metric, 0.05)
    strength = statistics.power(interest, error, clusters - 1)
    verdict = verdicts.of_check(low, high, 0.0, interest, strength, None)
    ends = {"difference": float(drawn[0]), "low": low, "high": high}
    return {"claim": name, "metric": metric, **ends, "verdict": verdict}


def reported() -> pd.DataFrame:
    """What the paper reports, as far as it was found: quantity, value, unit, mark, source."""
    return pd.read_csv(Path(__file__).parent / "support/reported.csv")


def label(text: str) -> str:
    """ESConv's name of a strategy, however it is written; KitError for one that is unknown."""
    if (name := TEXTS["esconv"].get(text.strip().casefold())) is None:
        raise KitError(f"{text!r} is no strategy of ESConv: add it to promedical_studies/support")
    return name


def predictions(path: Path) -> tuple[list[str], list[str]]:
    """(predicted, gold) of a file in the form of Kang et al.: strg_pred and strg_gold a turn."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    return tuple([label(row[name]) for row in rows] for name in ("strg_pred", "strg_gold"))
