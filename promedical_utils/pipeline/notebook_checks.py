"""Checks at the end of the notebooks that hold for one kind of data or one profile alone.

A check raises AssertionError; a goal is a result either way, and its notebook prints it.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_utils.core import records
from promedical_utils.core.profiles import Profile
from promedical_utils.core.run_data import RunData
from promedical_utils.evaluation import bench as benches
from promedical_utils.rubric.preferences import Group
from promedical_utils.rubric.scoring import Scores

KQA_KAPPA = 0.719  # Fleiss, of the three physicians; counted when the set was first read
SEPARATE = {  # what no two splits share
    "clinic": ("condition", "patient", "wording_seed"),
    "real": ("condition",),
    "open": ("condition",),
}


def base(profile: Profile, report: Mapping, pieces: list[int]) -> None:
    """Of a base that was trained here: the loss falls, the vocabulary is no larger than asked for,
    and in the clinic every name is one token (``pieces``: tokens of each)."""
    if not report["trained_here"]:
        return
    losses = [row["loss"] for row in report["curve"]]
    assert losses[-1] < losses[0] < 20
    assert report["vocabulary"] <= profile.base_vocabulary
    assert profile.data != "clinic" or set(pieces) == {1}


def base_goals(profile: Profile, report: Mapping) -> dict[str, bool]:
    """Goals of the published profile, and whether they were reached."""
    return {"reads every fact": not report["cannot_copy"]} if profile.name == "cpu" else {}


def rubrics(profile: Profile, run: Path, report: Mapping, data: RunData) -> None:
    """The clinic: 4 to 12 criteria a rubric, and a funnel that starts with all rows. Real data: the
    agreement of K-QA's physicians is what it was when the set was first read."""
    if profile.data == "clinic":
        assert all(4 <= len(r.criteria) <= 12 for r in data.rubrics)  # a flawed one may lack one
        assert report["curation"]["rows"] == pd.read_csv(run / "data/funnel.csv").before[0]
    if profile.data == "real":
        assert abs(report["sources"]["kqa_agreement"]["fleiss_kappa"] - KQA_KAPPA) < 5e-4


def pairs(profile: Profile, group: Group, scores: Mapping[str, Scores], agreed: float) -> None:
    """The clinic: of the answers by hand the right one alone has no violation, confusing ones have
    all, and the judge agrees with the truth as often as was set (``agreed``: the share)."""
    if profile.data == "clinic":
        vetoes = sum(criterion.dimension == "safety" for criterion in group.criteria)
        assert scores["right"].s3 == 0 < scores["contradicts itself"].s3
        assert scores["stuffed"].s3 == scores["keywords"].s3 == vetoes
        assert abs(agreed - profile.judge_agreement) < 0.03  # it is an input


def bench_sizes(profile: Profile, bench: benches.Bench) -> str:
    """The clinic's bench has as many samples and pairs as its profile sets; says so."""
    if profile.data != "clinic":
        return "as the sources have them; no count is reported for these"
    counts = bench.pairs.dimension.value_counts()
    for name in records.DIMENSIONS:
        wanted = getattr(profile, f"bench_pairs_{name}")
        assert counts.get(name, 0) == wanted, (name, counts.get(name, 0))
    assert len(bench.samples) == profile.bench_samples
    return "exactly as the profile sets: True"


def unseen_kinds(profile: Profile, bench: benches.Bench) -> str:
    """A fifth of the clinic's bench criteria or more are of kinds that training had not; says
    so."""
    if profile.data != "clinic":
        return "every kind is counted as seen in these data"
    assert bench.report["unseen_share"] >= 0.2
    return "at least a fifth of unseen kinds: True"


def bench_goals(profile: Profile, value: pd.Series) -> dict[str, bool]:
    """Goals of the published profile: cues must not solve the world.

    ``value``: shares by (scorer, metric, slice).
    """
    if profile.name != "cpu":
        return {}
    length, words, criterion = (
        value[scorer, "pairwise", "all"] for scorer in ("length", "words", "criterion")
    )
    return {
        "length below 0.6": length < 0.6,
        "word cues below 0.8": words < 0.8,
        "criterion RM 10 points above them": criterion - words >= 0.1,
    }


def reward_goals(profile: Profile, accuracy: Mapping[str, float]) -> dict[str, bool]:
    """Goals of the published profile; ``accuracy``: held-out pairs ordered rightly, by model."""
    if profile.name != "cpu":
        return {}
    best = accuracy["criterion_clean"]
    return {
        "ceiling at 0.97": best >= 0.97,
        "within 3 points of it": best - accuracy["criterion"] <= 0.03,
    }


def policy(profile: Profile, report: Mapping, curve: pd.DataFrame, evaluation: pd.DataFrame):
    """The clinic: a violation is an S3 above 0, and the gold reward is known. The published
    profile: every answer has a score."""
    if profile.data == "clinic":
        assert evaluation.violation.eq(evaluation.s3 > 0).all()
        assert np.isfinite(curve.gold).all()
    assert profile.name != "cpu" or report["unscored"] == 0


def claims(profile: Profile, verdicts: pd.Series) -> None:
    """Numbers of a smoke run are no results, whatever they are: no claim is tested on them."""
    assert profile.name != "smoke" or verdicts.eq("not testable in this profile").all()
