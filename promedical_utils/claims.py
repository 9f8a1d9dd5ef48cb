"""The paper's claims, each checked on this run with paired intervals, and the verdict.

*same direction*: the whole 95 % interval of every check is above its bound; *not seen*: it was
tested and that is not so; *not testable in this profile*: the run has not what the check needs.
What the configuration sets (agreement, kappa, pass rate) is an input and never a claim.
"""

from pathlib import Path

import pandas as pd

from promedical_utils import statistics
from promedical_utils.workspace import KitError, write_json, write_text

SAME, NOT_SEEN, UNTESTED = "same direction", "not seen", "not testable in this profile"
POLICY_SCORES = ("s1", "s2", "s3", "violation")
SCALARS = ("scalar_overall", "scalar_blind")
KEPT = -2.0  # points of proficiency that a safer policy may lose; kit's decision
INPUTS = (
    "Judge agreement, physician agreement, kappa and the rubric pass rate are set in the "
    "configuration: they are inputs of this run, and no claim is made of them."
)


def build_claims(tally, evaluation: pd.DataFrame | None, profile, seed: int) -> list[dict]:
    """The first claims, as dicts of id, claim, run, checks, verdict and note; no NaN inside.

    ``tally`` is ``bench.tally`` of the run, ``evaluation`` is ``readable``; None where
    it did not run. Differences are percentage points, the claimed direction is always up.
    """

    def bench(what: str, against: str, coefficients: dict) -> dict | None:
        keys = {(*key, against): factor for key, factor in coefficients.items()}
        try:
            found = tally and tally.contrast(keys, profile.bootstrap, seed)
        except KitError:  # a scorer that did not run
            return None
        return _check(f"{what}, {against} labels", found)

    def gain(scalar: str, metric: str, part: str, sign: int = 1) -> dict:
        return {("criterion", metric, part): sign, (scalar, metric, part): -sign}

    def gains(metric: str) -> list:
        labels = ("adjudicated", "truth") if profile.data == "clinic" else ("adjudicated",)
        asked = [(s, against) for s in SCALARS for against in labels]
        return [bench(f"criterion - {s}", against, gain(s, metric, "all")) for s, against in asked]

    safety = [
        bench(f"gain over {s}: safety - {other}", "adjudicated",
              gain(s, "pairwise", "safety") | gain(s, "pairwise", other, -1))
        for s in SCALARS for other in ("proficiency", "excellence")
    ]  # fmt: skip

    def policy(what: str, column: str, sign: int, bound: float = 0.0) -> list:
        found = paired_policies(evaluation, column, sign, profile.bootstrap, seed)
        return [_check(f"{what}, truth", found, bound)]

    rows = {
        "injection_pairwise": ("Injecting the criterion beats a scalar reward on criterion pairs",
            gains("pairwise"), "Reported: 83.15 without criteria, 88.5 with (unverified)."),
        "injection_overall": ("Injecting the criterion beats a scalar reward in overall accuracy",
            gains("overall"), "Overall is lexicographic here; the paper's aggregate is not known."),
        "gain_largest_on_safety": ("The gain from injecting the criterion is largest on safety",
            safety, "Differences of the pairwise gains."),
        "veto_fewer_violations": ("The veto reward lowers the policy's violations",
            policy("violations, base - grpo", "violation", -1),
            "GRPO against its base, on facts that the base "
            "can copy; that the veto did it needs a run without the veto."),
        "veto_keeps_proficiency": (f"The safer policy loses under {-KEPT:g} points of proficiency",
            policy("S1, grpo - base", "s1", 1, KEPT), "The kit's own check."),
    }  # fmt: skip
    run = f"{profile.name}, seed {seed}, {profile.data}"
    return [
        {"id": name, "claim": claim, "run": run, "note": note, "checks": [c for c in checks if c],
         "verdict": decide(checks, testable=profile.name != "smoke")}
        for name, (claim, checks, note) in rows.items()
    ]  # fmt: skip


def _check(what: str, found: dict | None, bound: float = 0.0) -> dict | None:
    names = ("difference", "low", "high")
    if not found or any(found[name] != found[name] for name in names):
        return None  # did not run, or nothing to resample: there is no number to show
    points = {name: round(found[name] * 100, 2) + 0.0 for name in names}
    return {"what": what, "unit": "points", **points, "n": found["n"], "above": bound}


def decide(checks: list[dict | None], testable: bool = True) -> str:
    """Verdict of a claim; a missing check, or a profile of no results, leaves it untested."""
    if not testable or not checks or not all(checks):
        return UNTESTED
    return SAME if all(check["low"] > check["above"] for check in checks) else NOT_SEEN


def readable(evaluation: pd.DataFrame) -> pd.DataFrame:
    """policy/evaluation.parquet scored on what the base can read: what tables and claims show."""
    return evaluation.assign(**{name: evaluation[f"readable_{name}"] for name in POLICY_SCORES})


def paired_policies(evaluation, column: str, sign: int, draws: int, seed: int) -> dict | None:
    """``sign`` * (grpo - base) of a column, paired by instruction; None if a policy is missing."""
    if evaluation is None or not {"base", "grpo"} <= set(evaluation.policy):
        return None
    rows = evaluation.pivot(index=["instruction_id", "condition"], columns="policy", values=column)
    values = rows[["base", "grpo"]].astype(float).dropna()
    if values.empty:
        return None
    weights = statistics.two_stage_weights(values.index.get_level_values("condition"), draws, seed)
    values = values.to_numpy()
    found = statistics.contrast(values, values * 0 + 1, {0: -sign, 1: sign}, weights)
    return {**found, "n": len(values)}


def save(claims: list[dict], folder: Path) -> Path:
    """Write claims.json and claims.md to ``folder``; returns the path of the JSON."""
    lines = ["# Claims", "", INPUTS]
    for claim in claims:
        lines += ["", f"## {claim['claim']}", ""]
        lines += [f"**{claim['verdict']}** ({claim['run']}). {claim['note']}", ""]
        if claim["checks"]:
            lines += ["| check | points | 95 % interval | above | n |", "|---|---|---|---|---|"]
        for c in claim["checks"]:
            numbers = f"{c['difference']:.2f} | {c['low']:.2f} to {c['high']:.2f} | {c['above']:g}"
            lines += [f"| {c['what']} | {numbers} | {c['n']} |"]
    write_text(Path(folder) / "claims.md", "\n".join(lines).rstrip() + "\n")
    return write_json(Path(folder) / "claims.json", {"claims": claims, "inputs": INPUTS})
