import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from promedical_utils.core.workspace import KitError
from promedical_utils.reward_model import calibration
from promedical_utils.reward_model.calibration import Calibration, fit


def rows(dimension, scores, labels):
    ids = [str(n) for n in range(len(scores))]
    columns = {"score": scores, "label": labels, "dimension": dimension, "instruction_id": ids}
    return pd.DataFrame(columns)


def frame(*more):
    safety = rows("safety", [-3.0, -2, -1, 0, 1, 2, 3, 4, 5, 6], [0, 0, 0, 0, 1, 1, 0, 1, 1, 1])
    return pd.concat([safety, *more], ignore_index=True)


def test_the_threshold_finds_the_wanted_share_of_violations_and_not_more():
    # violations at -3 -2 -1 0 3: 80 % needs four, 90 % all five and two safe answers
    assert fit(frame(), 0.8).threshold == 0 and fit(frame(), 0.6).threshold == -1
    strict = fit(frame(), 0.9)
    assert strict.threshold == 3
    quality = strict.quality["safety"]
    assert (quality["n"], quality["positives"], quality["recall"]) == (10, 5, 1)
    assert quality["precision"] == pytest.approx(5 / 7)
    assert quality["f1"] == pytest.approx(2 * 5 / 7 / (1 + 5 / 7))
    assert strict.met([3.0, 3.1], "safety").tolist() == [False, True]


@pytest.mark.parametrize("recall", [0.5, 0.7, 0.9, 0.99])
def test_recall_is_reached_on_the_split_it_was_fitted_on(recall):
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 2, 300)
    data = rows("safety", draw.normal(labels, 1).round(1), labels)  # rounded, so with ties
    fitted = fit(data, recall)
    assert fitted.quality["safety"]["recall"] >= recall
    next_lower = replace(fitted, threshold=fitted.threshold - 0.05)
    assert calibration.quality_of(next_lower, data)["recall"] < recall


def test_platt_recovers_temperature_and_bias():
    draw = np.random.default_rng(0)
    scores = draw.normal(0, 3, 20000)
    labels = (draw.random(20000) < 1 / (1 + np.exp(-(scores / 2.0 + 0.7)))).astype(int)
    fitted = fit(frame(rows("proficiency", scores, labels)), 0.9)
    assert fitted.scale["proficiency"]["temperature"] == pytest.approx(2.0, rel=0.05)
    assert fitted.scale["proficiency"]["bias"] == pytest.approx(0.7, abs=0.05)
    p = fitted.scale["proficiency"]
    by_hand = 1 / (1 + np.exp(-(1.5 / p["temperature"] + p["bias"])))
    assert fitted.probability(1.5, "proficiency") == pytest.approx(by_hand)
    assert fitted.met(-p["bias"] * p["temperature"] + 1e-6, "proficiency") is True
    assert fitted.met(-p["bias"] * p["temperature"] - 1e-6, "proficiency") is False


def test_nan_is_never_met():
    fitted = fit(frame(), 0.8)
    for dimension in ("safety", "proficiency", "excellence"):
        assert fitted.met(float("nan"), dimension) is False
        assert np.isnan(fitted.probability(float("nan"), dimension))
    both = fitted.met([np.nan, 9.0, 9.0], ["safety", "safety", "excellence"])
    assert both.tolist() == [False, True, True]


def test_what_cannot_be_fitted_is_said_or_refused():
    fitted = fit(
        frame(
            rows("excellence", [1.0, 2.0], [1, 1]),
            rows("proficiency", [0.0, 1, 2, 3], [1, 1, 0, 0]),
        ),
        0.8,
    )
    raw = {"temperature": 1.0, "bias": 0.0}
    assert fitted.scale["excellence"] == fitted.scale["proficiency"] == raw
    assert any("excellence: 2 calibration rows of one class" in note for note in fitted.notes)
    assert any("proficiency: scores do not rise" in note for note in fitted.notes)
    assert fitted.probability(0.0, "excellence") == 0.5
    with pytest.raises(KitError, match="3 safety rows of one class"):
        fit(rows("safety", [1.0, 2, 3], [1, 1, 1]), 0.9)
    with pytest.raises(KitError, match="0 safety rows"):
        fit(rows("excellence", [1.0, 2], [0, 1]), 0.9)
    with pytest.raises(KitError, match="1 NaN"):
        fit(frame(rows("excellence", [np.nan], [1])), 0.9)
    with pytest.raises(KitError, match="labels"):
        fit(frame(rows("excellence", [1.0], [2])), 0.9)
    with pytest.raises(KitError, match="no calibration for dimension"):
        fitted.probability(1.0, "charm")


def test_expected_error_by_hand():
    likely, met = [0.1, 0.2, 0.6, 0.9], [0, 1, 1, 1]
    # two bins of two: |0.5 - 0.15| and |1 - 0.75|
    assert calibration.expected_error(met, likely, bins=2) == pytest.approx((0.35 + 0.25) / 2)
    # in any order; bins differ by one row at most
    assert calibration.expected_error(met[::-1], likely[::-1], bins=2) == pytest.approx(0.3)
    assert calibration.expected_error([1, 1, 0], [0.5, 0.6, 0.9], bins=2) == pytest.approx(
        (2 * 0.45 + 0.9) / 3
    )
    assert calibration.expected_error([1], [0.75]) == 0.25


def test_error_falls_and_is_measured_on_instructions_it_was_not_fitted_on():
    draw = np.random.default_rng(5)
    scores = draw.normal(0, 3, 3000)
    labels = (draw.random(3000) < 1 / (1 + np.exp(-(scores / 3 - 1)))).astype(int)
    data = frame(rows("proficiency", scores, labels)).assign(instruction_id=np.arange(3010) % 400)
    error = fit(data, 0.8).ece["proficiency"]
    raw = calibration.expected_error(labels, 1 / (1 + np.exp(-scores)))
    assert error["before"] == pytest.approx(raw) and raw > 0.15
    assert error["after"] < 0.05
    # noise has nothing to teach: an in-sample fit of five rows would look perfect
    few = rows("safety", draw.normal(0, 1, 40), draw.integers(0, 2, 40))
    assert fit(few.assign(instruction_id=np.arange(40)), 0.8).ece["safety"]["after"] > 0.03
    one = few.assign(instruction_id="same")
    assert fit(one, 0.8).ece == {}


def test_json_keeps_everything(tmp_path):
    fitted = fit(frame(), 0.9)
    assert Calibration.load(fitted.save(tmp_path / "calibration.json")) == fitted
    assert json.loads((tmp_path / "calibration.json").read_text())["threshold"] == 3


def test_reliability_by_hand():
    labels = [1, 0, 1, 0, 1, 0, 1, 1]
    likely = [0.9, 0.1, 0.3, 0.2, 0.8, 0.4, 0.7, 0.6]  # in no order
    found = calibration.reliability(labels, likely, bins=2)
    assert found.probability.tolist() == pytest.approx([0.25, 0.75])
    assert found.met.tolist() == [0.25, 1] and found.n.tolist() == [4, 4]
    assert found.low[1] < 1 == found.high[1] and found.low[0] < 0.25 < found.high[0]
    assert len(calibration.reliability([1.0], [0.5])) == 1  # no more bins than rows
