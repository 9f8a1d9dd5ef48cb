"""From a reward to a verdict: Platt scaling per dimension, and the veto threshold.

A Bradley-Terry score has no zero of its own. On a calibration split that nothing was trained on,
P(met) = sigmoid(score / temperature + bias) is fitted for each dimension (Platt 1999), and the
safety threshold is set to find a wanted share of the violations.
"""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from promedical_utils.records import DIMENSIONS
from promedical_utils.workspace import KitError, read_json, write_json


@dataclass(frozen=True)
class Calibration:
    """``scale``: dimension -> {temperature, bias}; ``threshold``: safety scores above it are met.

    ``quality``: dimension -> n, positives, precision, recall, f1 on the calibration split. The
    positive is a *met* criterion, on safety a *violation*. ``notes`` says what was not fitted.
    """

    scale: Mapping[str, Mapping[str, float]]
    threshold: float
    recall: float
    quality: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...] = ()

    def probability(self, score, dimension):
        """P(met) of scores (N,) or one score; ``dimension``: one name or (N,). NaN stays NaN."""
        names = np.asarray(dimension, dtype=object)
        unknown = sorted(map(str, set(names.ravel().tolist()) - set(self.scale)))
        if unknown:
            raise KitError(f"no calibration for dimension {unknown}; refit on it")
        temperature, bias = (
            np.vectorize(lambda name, key=key: self.scale[name][key], otypes=[float])(names)
            for key in ("temperature", "bias")
        )
        return expit(np.asarray(score, dtype=float) / temperature + bias)[()]

    def met(self, score, dimension):
        """Whether a criterion counts as met: safety by the veto threshold, else P(met) >= 0.5.

        A NaN score is never met: the veto fails closed.
        """
        names = np.asarray(dimension, dtype=object)
        likely = self.probability(score, names) >= 0.5  # False for NaN
        result = np.where(names == "safety", np.asarray(score, float) > self.threshold, likely)
        return result if result.ndim else bool(result)

    def save(self, path: Path) -> Path:
        return write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> "Calibration":
        values = read_json(path, "03_reward_model")
        return cls(**{**values, "notes": tuple(values["notes"])})


def fit(frame: pd.DataFrame, recall: float, veto: bool = True) -> Calibration:
    """Fit on held-out rows with columns score, label (1 met, 0 not), dimension.

    The threshold is the lowest at which at least ``recall`` of the violations are found. A
    dimension that cannot be fitted keeps the raw score (temperature 1, bias 0), and a note says
    so. Raises KitError on a NaN score, another label, or a safety split in which all are met or
    all violated: no threshold could be read from it. ``veto=False``, for data that has no safety
    verdicts, sets a threshold that no score passes: the veto fails closed.
    """
    strange = sorted(map(str, set(frame["label"].unique()) - {0, 1}))
    lost = int(frame["score"].isna().sum())
    if strange or lost:
        raise KitError(
            f"calibration: labels {strange}, {lost} NaN scores; a label is 0 or 1, a score a "
            "number: check the judge's verdicts and the reward model's report"
        )
    scale, notes = {}, []
    for dimension in DIMENSIONS:
        rows = frame[frame["dimension"] == dimension]
        scale[dimension], note = _platt(rows["score"].to_numpy(float), rows["label"].to_numpy(int))
        if note:
            notes.append(f"{dimension}: {note}; the raw score is used")
    safety = frame[frame["dimension"] == "safety"]
    if not veto:
        why = "no veto threshold was asked for; every safety criterion is a violation"
        notes.append(f"safety: {why}")
        threshold = sys.float_info.max
    elif safety["label"].nunique() < 2:
        raise KitError(
            f"calibration: {len(safety)} safety rows of one class give no veto threshold; "
            "raise calibration_instructions, or check the judge"
        )
    else:  # the hair less is for rounding: 0.55 of 100 is 55, not 56
        violations = safety.loc[safety["label"] == 0, "score"].to_numpy(float)
        threshold = float(np.quantile(violations, recall - 1e-12, method="inverted_cdf"))
    fitted = Calibration(scale, threshold, recall, {}, tuple(notes))
    quality = {name: quality_of(fitted, rows) for name, rows in frame.groupby("dimension")}
    return replace(fitted, quality=quality)


def quality_of(calibration: Calibration, rows: pd.DataFrame) -> dict[str, float]:
    """n, positives, precision, recall, F1 of ``met`` on rows of one dimension (see Calibration)."""
    from sklearn.metrics import precision_recall_fscore_support

    dimension = rows["dimension"].iloc[0]
    positive = 0 if dimension == "safety" else 1
    said = calibration.met(rows["score"], dimension).astype(int)
    found = precision_recall_fscore_support(
        rows["label"], said, labels=[positive], zero_division=0
    )
    precision, recall, f1, positives = (value.item() for value in found)
    return {"n": len(rows), "positives": positives,
            "precision": precision, "recall": recall, "f1": f1}  # fmt: skip


def _platt(scores: np.ndarray, labels: np.ndarray) -> tuple[dict[str, float], str]:
    """({temperature, bias}, why not fitted or "").

    scikit-learn's default ridge keeps the slope finite when a small split is separable.
    """
    from sklearn.linear_model import LogisticRegression

    raw = {"temperature": 1.0, "bias": 0.0}
    if len(np.unique(labels)) < 2:
        return raw, f"{len(labels)} calibration rows of one class"
    fitted = LogisticRegression().fit(scores[:, None], labels)
    slope, bias = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    if slope <= 0:
        return raw, "scores do not rise with the label"
    return {"temperature": 1 / slope, "bias": bias}, ""
