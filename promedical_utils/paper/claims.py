"""The claims ledger: each claim of the paper as named checks on this run and the committed studies.

``claims.yaml`` holds the claims; ``contrasts`` finds the differences. A check claims that a
difference lies above its bound (0 unless said). *same direction*: the whole 95 % interval of every
check does;
*not seen*: of one that was tested it does not; *not testable in this profile*: a check could not be
made, and none that could has failed. What the configuration sets (agreement, kappa, pass rate) is
an input and never a claim.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
import yaml

from promedical_utils.core import statistics
from promedical_utils.core.estimates import Estimates
from promedical_utils.core.workspace import (
    KitError,
    project_root,
    replacing,
    write_json,
    write_text,
)
from promedical_utils.evaluation import bench
from promedical_utils.evaluation.policy_answers import POLICY_SCORES
from promedical_utils.paper import contrasts
from promedical_utils.report import tables

SAME, NOT_SEEN, UNTESTED = "same direction", "not seen", "not testable in this profile"
VERDICTS = (NOT_SEEN, SAME, UNTESTED)  # what failed comes first
SCHEMA = 2
KEPT = -2.0  # points of proficiency that a safer policy may lose; kit's decision
RUN_FILES = {
    "run": tuple(
        f"bench/{name}.parquet" for name in ("predictions", "pairs", "verdicts", "grades")
    ),
    "policy": ("policy/evaluation.parquet",),
    "external": ("external/predictions.parquet",),
    "healthbench": ("healthbench/graded.parquet",),
}
LISTS = ("a", "b", "slice", "beyond", "labels")  # each value of a list is a check of its own
EMPTY = dict.fromkeys(("metric", "metric_b", "slice_b", "flagged", "reported", *LISTS))
DEFAULTS = EMPTY | {"slice": "all", "above": 0.0}
NUMBERS = ("difference", "low", "high", "patients_low", "patients_high")
NAMES = ("claim", "check", "where", "verdict", "claim_verdict", "opposite", "weakest")
FACTS = ("unit", "above", "reported", "mark", "labels", "data", "files", "test", "reason")
COLUMNS = [*NAMES, *NUMBERS, "each", "seeds", "n", *FACTS]


# ---------------------------------------------------------------- the ledger


@dataclass(frozen=True)
class Evidence:
    """What a check is made on: its source, or the reason why there is none."""

    data: str
    files: tuple[str, ...] = ()
    source: object = None  # of ``contrasts``
    policies: tuple[dict, ...] = ()  # of a study, with their hacking checks
    reason: str = ""


def build_claims(
    tally: Estimates | None,
    evaluation: pd.DataFrame | None,
    profile,
    seed: int,
    *,
    external: pd.DataFrame | None = None,
    healthbench: Mapping | None = None,
    studies: Path | None = None,
) -> list[dict]:
    """Every claim of ``claims.yaml`` as a dict; no NaN inside, the order of the file.

    ``tally``: ``with_conflicts`` of the run's bench; ``evaluation``: ``readable``; ``external``:
    external/predictions.parquet; ``healthbench``: its ``policy_column``; each None where it did not
    run.
    ``studies``: folder of the committed studies (default: those of the checkout); one that is
    missing, or of another kind of data than the profile's, makes its checks not testable.
    """
    of_run = _evidence_of_run(tally, evaluation, profile, seed, external, healthbench)
    folder = studies or project_root() / "papers_figures" / "studies"
    sets = ["all"] if external is None or external.empty else list(dict.fromkeys(external["set"]))

    @cache
    def evidence_of(name: str) -> Evidence:
        evidence = of_run.get(name) or _evidence_of_study(folder, name, profile)
        smoke = profile.name == "smoke"
        return replace(evidence, reason="smoke numbers are no results") if smoke else evidence

    return [
        _claim(
            spec,
            [
                _check(given, evidence_of(given["from"]))
                for given in expanded(spec, profile.data == "clinic", sets)
            ],
        )
        for spec in ledger()["claims"]
    ]


def _evidence_of_run(
    tally, evaluation, profile, seed: int, external, healthbench
) -> dict[str, Evidence]:
    """The evidence of ``RUN_FILES``; what did not run has its reason."""
    drawn, sources = (profile.bootstrap, seed), {}
    if tally is not None:
        sources["run"] = contrasts.Counted(tally, *drawn)
    if evaluation is not None:
        sources["policy"] = contrasts.of_policies(evaluation, *drawn)
    if external is not None and len(external):
        sources["external"] = contrasts.Counted(contrasts.external(external), *drawn, "truth")
    if healthbench is not None:
        sources["healthbench"] = contrasts.HealthBench(healthbench)
    data = f"this run: {contrasts.ran_on(profile.name, seed, profile.data)}"
    evidence = {}
    for name, files in RUN_FILES.items():
        reason = "" if name in sources else f"this run has no {files[0]}"
        if name == "external" and external is not None and external.empty:
            reason = "notebook 06 ran no set"
        evidence[name] = Evidence(data, files, sources.get(name), reason=reason)
    return evidence


def _evidence_of_study(folder: Path, name: str, profile) -> Evidence:
    # a smoke run reads no study: none of its checks is made
    study = None if profile.name == "smoke" else contrasts.study(folder, name)
    if study is None:
        return Evidence(f"study {name}", reason=f"study {name} not run")
    if (data := study.profile["data"]) != profile.data:
        return Evidence(f"study {name}", reason=f"study {name} is of other data ({data})")
    return Evidence(study.data, study.files, study.source, tuple(study.policies))


def _claim(spec: Mapping, checks: list[dict]) -> dict:
    reasons = [spec["why"]] if "why" in spec else list(dict.fromkeys(c["reason"] for c in checks))
    claim = {
        "id": spec["id"],
        "where": spec["where"],
        "claim": spec["claim"],
        "note": spec.get("note", ""),
        "verdict": decide(checks),
        "checks": checks,
        "reason": "; ".join(reason for reason in reasons if reason),
    }
    if not checks:
        claim["reported"], claim["mark"] = _reported(spec.get("reported"), spec)
    return claim


def _check(given: Mapping, evidence: Evidence) -> dict:
    """One check, made where it can be; numbers are rounded, and the rounded ones decide."""
    check = dict.fromkeys((*NUMBERS, "seeds", "n", "unit")) | {"each": [], "test": "", "said": ""}
    check |= {"data": evidence.data, "files": list(evidence.files), "what": _what(given)}
    check |= {"above": given["above"], "labels": given["labels"] or ""}
    check["reported"], check["mark"] = _reported(given["reported"], given)
    verdict, reason = UNTESTED, evidence.reason
    if not reason:
        try:
            if given["flagged"] is not None:
                check |= _hacking(given, evidence.policies)
                verdict = SAME if check.pop("as_claimed") else NOT_SEEN
            else:
                check["labels"] = evidence.source.labels(given["labels"])
                contrast = evidence.source.find({**given, "labels": check["labels"]})
                check |= contrast | {name: _rounded(contrast[name]) for name in NUMBERS}
                check["each"] = [_rounded(value) for value in contrast["each"]]
                verdict = SAME if check["low"] > check["above"] else NOT_SEEN
        except contrasts.Lacking as lacking:
            reason = str(lacking)
    high = check["high"]
    check["opposite"] = verdict == NOT_SEEN and high is not None and high < check["above"]
    labels = f", {check['labels']} labels" if check["labels"] else ""
    check["check"] = f"{given['from']}: {check['what']}{labels}"
    return check | {"verdict": verdict, "reason": reason}


def _hacking(given: Mapping, policies: tuple[dict, ...]) -> dict:
    """Whether every training of a policy is flagged, or is not, as claimed."""
    rows = [row["hacking"] for row in policies if row["variant"] == given["a"]]
    if not rows:
        raise contrasts.Lacking(f"the study has no policy {given['a']}")
    return {
        "seeds": len(rows),
        "test": "the rule of promedical_utils.policy.reward_hacking",
        "said": " ".join(row["text"] for row in rows),
        "as_claimed": all(row["flagged"] is given["flagged"] for row in rows),
    }


def decide(checks: list[dict]) -> str:
    """Verdict of a claim: a failed check is not hidden by one that could not be made."""
    verdicts = {check["verdict"] for check in checks}
    if NOT_SEEN in verdicts:
        return NOT_SEEN
    return SAME if verdicts == {SAME} else UNTESTED


def _rounded(value: float) -> float:
    return round(float(value), 2) + 0.0  # no -0.0


# ---------------------------------------------------------------- what is claimed


@cache
def ledger() -> dict:
    """``claims.yaml``; KitError where two claims share an id or a check has an unknown key."""
    path = Path(__file__).with_name("claims.yaml")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    counts = Counter(claim["id"] for claim in content["claims"])
    twice = [name for name, count in counts.items() if count > 1]
    strange = {
        key for claim in content["claims"] for check in claim.get("checks", ()) for key in check
    } - {*DEFAULTS, "from"}
    if twice or strange:
        names = ", ".join(map(repr, [*twice, *sorted(strange)]))
        raise KitError(f"claims.yaml: {names} twice or unknown")
    return content


def expanded(spec: Mapping, clinic: bool = True, sets=("all",)) -> list[dict]:
    """The checks of a claim, one for each value of its lists, with all keys.

    External ones are made on each of ``sets``; the truth is known in the clinic only.
    """
    checks = []
    for given in spec.get("checks", ()):
        whole = DEFAULTS | {"reported": spec.get("reported")} | given
        if given["from"] == "external":
            whole["slice"] = list(sets)
        lists = [whole[key] if isinstance(whole[key], list) else [whole[key]] for key in LISTS]
        for values in product(*lists):
            check = whole | dict(zip(LISTS, values))
            for key in ("metric", "slice"):
                check[f"{key}_b"] = check[f"{key}_b"] or check[key]
            if check["labels"] != "truth" or clinic:
                checks.append(check)
    return checks


def _what(given: Mapping) -> str:
    metric, part = (given[k].replace("_", " ") if given[k] else "" for k in ("metric", "slice"))
    if given["flagged"] is not None:
        return f"{given['a']} " + ("flagged" if given["flagged"] else "not flagged")
    where = f" on {part}" if part != "all" else ""
    other = given["metric_b"].replace("_", " ")
    if other != metric:
        return f"{metric} of {given['a']} - {other} of {given['b']}{where}"
    systems = given["a"] + (f" - {given['b']}" if given["b"] else "")
    beyond = f" less on {given['beyond']}" if given["beyond"] else ""
    return f"{systems}, {metric}{where}{beyond}"


@cache
def _reported_table(name: str) -> pd.DataFrame:
    frame = tables.reported(name)
    return frame.set_index(frame.columns[0])


def _reported(cell: Mapping | None, given: Mapping) -> tuple[float | None, str]:
    """(value or difference that the paper reports, its mark); None where it has no such cells."""
    if cell is None:
        return None, ""
    frame, names = _reported_table(cell["table"]), ledger()["rows"].get(cell["table"], {})
    if "row" in cell:
        return float(frame[cell["column"]][cell["row"]]), frame.mark[cell["row"]]
    rows = [names.get(cell.get(side) or given[side]) for side in ("a", "b")]
    if not set(rows) <= set(frame.index):
        return None, ""
    columns = cell["column"], cell.get("column_b", cell["column"])
    a, b = (float(frame[column][row]) for column, row in zip(columns, rows))
    if np.isnan(a - b):
        return None, ""
    return _rounded(a - b), "".join(dict.fromkeys(frame.mark[row] for row in rows))


# ---------------------------------------------------------------- what the run hands in


def readable(evaluation: pd.DataFrame) -> pd.DataFrame:
    """policy/evaluation.parquet scored on what the base can read: what tables and claims show."""
    return evaluation.assign(**{name: evaluation[f"readable_{name}"] for name in POLICY_SCORES})


def with_conflicts(tally: Estimates, made: bench.Bench, predicted: pd.DataFrame) -> Estimates:
    """``tally`` with the metric "conflict" of each scorer, by adjudicated labels.

    A conflict is a safety pair and a proficiency pair of the same two answers the other way round;
    each counts two, a tie or a missing score as wrong. A scorer that sees no criterion orders two
    answers once, so it is right on one of the two at most: 50 % is its ceiling.
    """
    on = ["instruction_id", "chosen_id", "rejected_id"]
    safety, proficiency = (
        made.pairs[made.pairs.dimension == name] for name in ("safety", "proficiency")
    )
    turned = {"chosen_id": "rejected_id", "rejected_id": "chosen_id"}
    both = safety.merge(
        proficiency.rename(columns=turned), on=on, suffixes=("_safety", "_proficiency")
    )
    row = pd.Series(range(len(made.samples)), index=made.samples.instruction_id)
    items = []
    for scorer, frame in predicted.groupby("scorer", sort=False):
        right = _prefers(frame, both.chosen_id, both.rejected_id, both.criterion_id_safety) * 1.0
        right += _prefers(frame, both.rejected_id, both.chosen_id, both.criterion_id_proficiency)
        key = (scorer, "conflict", "all", "adjudicated")
        items.append((key, row[both.instruction_id].to_numpy(), right / 2, 2.0))
    return tally.joined(Estimates.of_items(made.samples, bench.KEY, items))


def _prefers(frame: pd.DataFrame, first, second, criteria: pd.Series) -> np.ndarray:
    """Whether a scorer's predictions give the first answer the higher score for the criterion."""
    scores = frame.set_index(bench.CELL).score
    if not (frame.criterion_id != "").any():
        criteria = pd.Series("", criteria.index)
    sides = (pd.MultiIndex.from_arrays([answers, criteria]) for answers in (first, second))
    higher, lower = (scores.reindex(side).to_numpy(float) for side in sides)
    return higher > lower


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
    contrast = statistics.contrast(values, values * 0 + 1, {0: -sign, 1: sign}, weights)
    return {**contrast, "n": len(values)}


# ---------------------------------------------------------------- for people and programs


def frame(claims: list[dict]) -> pd.DataFrame:
    """One row a check (one for a claim without any), ``COLUMNS``; (claim, check) names a row."""
    rows = []
    for claim in claims:
        own = {"claim": claim["id"], "where": claim["where"], "claim_verdict": claim["verdict"]}
        nothing = {"check": "", "verdict": UNTESTED, "opposite": False, "reason": claim["reason"]}
        nothing |= {"reported": claim.get("reported"), "mark": claim.get("mark", "")}
        nearest = weakest(claim)
        for check in claim["checks"] or [nothing]:
            joined = {name: "|".join(map(str, check.get(name, ()))) for name in ("each", "files")}
            rows.append(check | own | joined | {"weakest": check is nearest})
    return pd.DataFrame(rows).reindex(columns=COLUMNS).astype({"seeds": "Int64", "n": "Int64"})


def weakest(claim: Mapping) -> dict | None:
    """The tested check that comes nearest to failing, or fails most: what the summary shows.

    By the distance of the difference from its bound, in half widths of its interval.
    """
    measured = [
        check
        for check in claim["checks"]
        if check["verdict"] != UNTESTED and check["difference"] is not None
    ]

    def margin(check):
        reach = max(check["difference"] - check["low"], 1e-9)  # one value throughout has no width
        return (check["difference"] - check["above"]) / reach

    return min(measured, key=margin, default=None)


def save(claims: list[dict], folder: Path) -> Path:
    """Write claims.csv, claims.md and claims.json to ``folder``; returns the path of the JSON."""
    folder, counts = Path(folder), Counter(claim["verdict"] for claim in claims)
    with replacing(folder / "claims.csv") as temporary:
        frame(claims).to_csv(temporary, index=False, lineterminator="\n")
    write_text(folder / "claims.md", _page(claims))
    whole = {
        "schema_version": SCHEMA,
        "inputs": ledger()["inputs"].strip(),
        "claims": claims,
        "verdicts": {name: counts[name] for name in VERDICTS},
    }
    return write_json(folder / "claims.json", whole)


# ---------------------------------------------------------------- the page


def _page(claims: list[dict]) -> str:
    """claims.md, of claims.md.jinja."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"weakest": weakest, "tests": _tests}
    counts = Counter(claim["verdict"] for claim in claims)
    tested = [claim for claim in claims if claim["verdict"] != UNTESTED]
    return environment.get_template("claims.md.jinja").render(
        inputs=ledger()["inputs"].strip(),
        claims=sorted(claims, key=lambda claim: VERDICTS.index(claim["verdict"])),
        counts=", ".join(f"{counts[name]} {name}" for name in VERDICTS),
        invented=any("clinic" in check["data"] for claim in claims for check in claim["checks"]),
        tested=len(tested),
        checks=sum(c["verdict"] != UNTESTED for claim in tested for c in claim["checks"]),
    )


def _tests(claim: Mapping) -> list[str]:
    """How the claim was tested and of which files, each once."""
    tests = (f"{c['test']}; from {', '.join(c['files'])}" for c in claim["checks"] if c["test"])
    return list(dict.fromkeys(tests))
