"""From a reward, which has no zero of its own, to a verdict: on held-out rows P(met) is fitted for
each dimension, sigmoid(score / temperature + bias) (Platt 1999), and the safety threshold set."""

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from promedical_utils.core.records import DIMENSIONS
from promedical_utils.core.statistics import wilson
from promedical_utils.core.workspace import KitError, read_json, write_json


@dataclass(frozen=True)
class Calibration:
    """What was fitted, by dimension; ``threshold``: safety scores above it are met.

    ``scale``: {temperature, bias}. ``quality``: n, positives, precision, recall, f1 on the
    calibration split; the positive is a *met* criterion, on safety a *violation*. ``ece``: expected
    calibration error {before, after}, of the raw sigmoid(score) and of P(met) fitted on other
    instructions.
    """

    scale: Mapping[str, Mapping[str, float]]
    threshold: float
    recall: float
    quality: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...] = ()
    ece: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def probability(self, score, dimension):
        """P(met) of scores (N,) or one score; ``dimension``: one name or (N,). NaN stays NaN."""
        names = np.asarray(dimension, dtype=object)
        if unknown := sorted(map(str, set(names.ravel()) - set(self.scale))):
            raise KitError(f"no calibration for dimension {unknown}; refit on it")
        fitted = [self.scale[name] for name in names.ravel()]
        temperature = np.reshape([one["temperature"] for one in fitted], names.shape)
        bias = np.reshape([one["bias"] for one in fitted], names.shape)
        return expit(np.asarray(score, dtype=float) / temperature + bias)[()]

    def met(self, score, dimension):
        """Whether a criterion is met: safety by the threshold, else P(met) >= 0.5; NaN never is."""
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
    """Fit on held-out rows: columns score, label (1 met, 0 not), dimension, and instruction_id.

    The threshold is the lowest that finds at least ``recall`` of the violations; ``veto=False``,
    for data without safety verdicts, sets one that no score passes: the veto fails closed. KitError
    on a NaN score, another label, or a safety split of one class.
    """
    other = sorted(map(str, set(frame["label"].unique()) - {0, 1}))
    lost = int(frame["score"].isna().sum())
    if other or lost:
        raise KitError(
            f"calibration: labels {other}, {lost} NaN scores; a label is 0 or 1, a score a "
            "number: check the judge's verdicts and the reward model's report"
        )
    scale, notes = _scales(frame)
    safety = frame[frame["dimension"] == "safety"]
    if not veto:
        notes.append(
            "safety: no veto threshold was asked for; every safety criterion is a violation"
        )
        threshold = sys.float_info.max
    elif safety["label"].nunique() < 2:
        raise KitError(
            f"calibration: {len(safety)} safety rows of one class give no veto threshold; "
            "raise calibration_instructions, or check the judge"
        )
    else:  # the hair less is for rounding: 0.55 of 100 is 55, not 56
        violations = safety.loc[safety["label"] == 0, "score"].to_numpy(float)
        threshold = float(np.quantile(violations, recall - 1e-12, method="inverted_cdf"))
    fitted = Calibration(scale, threshold, recall, {}, tuple(notes), _ece(frame))
    quality = {name: quality_of(fitted, rows) for name, rows in frame.groupby("dimension")}
    return replace(fitted, quality=quality)


def quality_of(calibration: Calibration, rows: pd.DataFrame) -> dict[str, float]:
    """n, positives, precision, recall, F1 of ``met`` on rows of one dimension (see Calibration)."""
    from sklearn.metrics import precision_recall_fscore_support

    dimension = rows["dimension"].iloc[0]
    positive = 0 if dimension == "safety" else 1
    met = calibration.met(rows["score"], dimension).astype(int)
    values = precision_recall_fscore_support(rows["label"], met, labels=[positive], zero_division=0)
    names = ("precision", "recall", "f1", "positives")
    return {"n": len(rows), **{name: v.item() for name, v in zip(names, values, strict=True)}}


def expected_error(labels, probabilities, bins: int = 10) -> float:
    """Expected calibration error: mean gap of share met and mean P(met) over bins of equally many
    rows; the usual ones are equally wide (Naeini et al. 2015)."""
    parts = reliability(labels, probabilities, bins)
    gaps = parts["n"] * (parts["met"] - parts["probability"]).abs()
    return float(sum(gaps) / len(labels))


def reliability(labels, probabilities, bins: int = 8) -> pd.DataFrame:
    """Share met, with its 95 % Wilson interval, beside mean P(met), a row a bin of equal size:
    probability, met, low, high, n."""
    labels, probabilities = np.asarray(labels, float), np.asarray(probabilities, float)
    order, rows = np.argsort(probabilities, kind="stable"), []
    for part in np.array_split(order, min(bins, len(order))):
        met, n = labels[part], len(part)
        rows.append((probabilities[part].mean(), met.mean(), *wilson(int(met.sum()), n), n))
    return pd.DataFrame(rows, columns=["probability", "met", "low", "high", "n"])


def _ece(frame: pd.DataFrame) -> dict[str, dict[str, float]]:
    """{dimension: {before, after}}; after is by five folds of instructions, none fits itself."""
    from sklearn.model_selection import GroupKFold

    frame, instructions = frame.reset_index(drop=True), frame["instruction_id"]
    if instructions.nunique() < 2:
        return {}
    frame["before"], frame["after"] = expit(frame["score"].astype(float)), np.nan
    folds = GroupKFold(min(5, instructions.nunique()))
    for fitted_on, left in folds.split(frame, groups=instructions):
        scale, _ = _scales(frame.iloc[fitted_on])
        part, rest = Calibration(scale, 0.0, 0.5, {}), frame.iloc[left]
        frame.loc[left, "after"] = part.probability(rest["score"], rest["dimension"])
    return {
        name: {when: expected_error(rows["label"], rows[when]) for when in ("before", "after")}
        for name, rows in frame.groupby("dimension")
    }


def _scales(frame: pd.DataFrame) -> tuple[dict[str, dict[str, float]], list[str]]:
    """(scale, notes) of every dimension; what cannot be fitted keeps the raw score."""
    from sklearn.linear_model import LogisticRegression

    scale, notes = {}, []
    for dimension in DIMENSIONS:
        rows = frame[frame["dimension"] == dimension]
        scores, labels = rows["score"].to_numpy(float), rows["label"].to_numpy(int)
        scale[dimension] = {"temperature": 1.0, "bias": 0.0}
        if len(set(labels)) < 2:
            why = f"{len(labels)} calibration rows of one class"
            notes.append(f"{dimension}: {why}; the raw score is used")
            continue
        # the default ridge keeps the slope finite when a small split is separable
        platt = LogisticRegression().fit(scores[:, None], labels)
        slope, bias = float(platt.coef_[0, 0]), float(platt.intercept_[0])
        if slope > 0:
            scale[dimension] = {"temperature": 1 / slope, "bias": bias}
        else:
            why = "scores do not rise with the label"
            notes.append(f"{dimension}: {why}; the raw score is used")
    return scale, notes
