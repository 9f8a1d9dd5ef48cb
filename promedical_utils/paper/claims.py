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
from functools import cache, partial
from itertools import product
from pathlib import Path

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
INVENTED = "Values of this run and of the studies: an invented clinic, no medical result."
VERDICTS = (NOT_SEEN, SAME, UNTESTED)  # what failed comes first
SCHEMA = 2
KEPT = -2.0  # points of proficiency that a safer policy may lose; kit's decision
RUN_FILES = {
    "run": (
        "bench/predictions.parquet",
        "bench/pairs.parquet",
        "bench/verdicts.parquet",
        "bench/grades.parquet",
    ),
    "policy": ("policy/evaluation.parquet",),
    "external": ("external/predictions.parquet",),
    "healthbench": ("healthbench/graded.parquet",),
}
DEFAULTS = {
    "a": None,
    "b": None,
    "metric": None,
    "metric_b": None,
    "slice": "all",
    "slice_b": None,
    "beyond": None,
    "labels": None,
    "above": 0.0,
    "flagged": None,
    "reported": None,
}
LISTS = ("a", "b", "slice", "beyond", "labels")  # each value of a list is a check of its own
NUMBERS = ("difference", "low", "high", "patients_low", "patients_high")
COLUMNS = [
    "claim",
    "check",
    "where",
    "verdict",
    "claim_verdict",
    "opposite",
    "weakest",
    *NUMBERS,
    "each",
    "seeds",
    "n",
    "unit",
    "above",
    "reported",
    "mark",
    "labels",
    "data",
    "files",
    "test",
    "reason",
]


# ---------------------------------------------------------------- the ledger


def build_claims(
    tally,
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
    smoke, none_ran = profile.name == "smoke", external is not None and external.empty
    external = None if none_ran else external
    run = f"this run: {contrasts.ran_on(profile.name, seed, profile.data)}"
    drawn = profile.bootstrap, seed
    makers = {
        "run": (tally, lambda: contrasts.Tallied(tally, *drawn)),
        "policy": (evaluation, lambda: contrasts.Policies(evaluation, *drawn)),
        "external": (
            external,
            lambda: contrasts.Tallied(contrasts.external(external), *drawn, "truth"),
        ),
        "healthbench": (healthbench, lambda: contrasts.HealthBench(healthbench)),
    }
    sources = {name: make() for name, (given, make) in makers.items() if given is not None}
    folder = studies or project_root() / "papers_figures" / "studies"
    committed, found = cache(partial(contrasts.study, folder)), []
    sets = ["all"] if external is None else list(dict.fromkeys(external["set"]))
    for spec in ledger()["claims"]:
        checks = []
        for given in expanded(spec, profile.data == "clinic", sets):
            name = given["from"]
            check = {"data": run, "files": list(RUN_FILES.get(name, ()))}
            source, study, reason = sources.get(name), None, "smoke numbers are no results" * smoke
            if name not in RUN_FILES:
                study = None if smoke else committed(name)
                check |= {"data": f"study {name}", "files": []}
                if study is not None and study.profile["data"] == profile.data:
                    source, check = study.source, {"data": study.data, "files": list(study.files)}
                elif study is not None:
                    reason = f"study {name} is of other data ({study.profile['data']})"
            if source is None:
                lost = (
                    f"this run has no {check['files'][0]}"
                    if name in RUN_FILES
                    else f"study {name} not run"
                )
                reason = reason or (
                    "notebook 06 ran no set" if name == "external" and none_ran else lost
                )
            checks.append(_check(given, source, study, check, reason))
        found.append(_claim(spec, checks))
    return found


def _claim(spec: Mapping, checks: list[dict]) -> dict:
    reasons = [spec["why"]] if "why" in spec else list(dict.fromkeys(c["reason"] for c in checks))
    shown = {} if checks else dict(zip(("reported", "mark"), _reported(spec.get("reported"), spec)))
    return {
        "id": spec["id"],
        "where": spec["where"],
        "claim": spec["claim"],
        "note": spec.get("note", ""),
        "verdict": decide(checks),
        "checks": checks,
        "reason": "; ".join(r for r in reasons if r),
        **shown,
    }


def _check(given: Mapping, source, study, check: dict, reason: str) -> dict:
    """One check, made where it can be; numbers are rounded, and the rounded ones decide."""
    check |= {"what": _what(given), "above": given["above"], "labels": given["labels"] or ""}
    check |= dict.fromkeys((*NUMBERS, "seeds", "n", "unit"), None) | {
        "each": [],
        "test": "",
        "said": "",
    }
    check["reported"], check["mark"] = _reported(given["reported"], given)
    verdict = UNTESTED
    if not reason:
        try:
            if given["flagged"] is not None:
                verdict = _flagged(given, study, check)
            else:
                check["labels"] = source.labels(given["labels"])
                made = source.find({**given, "labels": check["labels"]})
                check |= {**made, **{name: _rounded(made[name]) for name in NUMBERS}}
                check["each"] = [_rounded(value) for value in made["each"]]
                verdict = SAME if check["low"] > check["above"] else NOT_SEEN
        except contrasts.Lacking as lacking:
            reason = str(lacking)
    check["opposite"] = (
        verdict == NOT_SEEN and check["high"] is not None and check["high"] < check["above"]
    )
    check["check"] = f"{given['from']}: {check['what']}" + f", {check['labels']} labels" * bool(
        check["labels"]
    )
    return check | {"verdict": verdict, "reason": reason}


def _flagged(given: Mapping, study, check: dict) -> str:
    rows = [row["hacking"] for row in study.policies if row["variant"] == given["a"]]
    if not rows:
        raise contrasts.Lacking(f"the study has no policy {given['a']}")
    check |= {
        "seeds": len(rows),
        "test": "the rule of promedical_utils.policy.reward_hacking",
        "said": " ".join(row["text"] for row in rows),
    }
    return SAME if all(row["flagged"] is given["flagged"] for row in rows) else NOT_SEEN


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
    found = yaml.safe_load((Path(__file__).parent / "claims.yaml").read_text(encoding="utf-8"))
    twice = [name for name, n in Counter(c["id"] for c in found["claims"]).items() if n > 1]
    strange = {key for c in found["claims"] for check in c.get("checks", ()) for key in check}
    strange -= {*DEFAULTS, "from"}
    if twice or strange:
        raise KitError(
            f"claims.yaml: {', '.join(map(repr, [*twice, *sorted(strange)]))} twice or unknown"
        )
    return found


def expanded(spec: Mapping, clinic: bool = True, sets=("all",)) -> list[dict]:
    """The checks of a claim, one for each value of its lists, with all keys.

    External ones are made on each of ``sets``; the truth is known in the clinic only.
    """
    found = []
    for check in spec.get("checks", ()):
        whole = DEFAULTS | {"reported": spec.get("reported")} | check
        whole |= {"slice": list(sets)} if check["from"] == "external" else {}
        lists = [v if isinstance(v := whole[key], list) else [v] for key in LISTS]
        for values in product(*lists):
            one = whole | dict(zip(LISTS, values))
            one |= {f"{key}_b": one[f"{key}_b"] or one[key] for key in ("metric", "slice")}
            if one["labels"] != "truth" or clinic:
                found.append(one)
    return found


def _what(given: Mapping) -> str:
    metric, part = (given[k].replace("_", " ") if given[k] else "" for k in ("metric", "slice"))
    if given["flagged"] is not None:
        return f"{given['a']} " + ("flagged" if given["flagged"] else "not flagged")
    where = f" on {part}" if part != "all" else ""
    other = given["metric_b"].replace("_", " ")
    if other != metric:
        return f"{metric} of {given['a']} - {other} of {given['b']}{where}"
    who = given["a"] + (f" - {given['b']}" if given["b"] else "")
    return f"{who}, {metric}{where}" + (f" less on {given['beyond']}" if given["beyond"] else "")


@cache
def _table(name: str) -> pd.DataFrame:
    found = tables.reported(name)
    return found.set_index(found.columns[0])


def _reported(asked: Mapping | None, given: Mapping) -> tuple[float | None, str]:
    """(value or difference that the paper reports, its mark); None where it has no such cells."""
    if asked is None:
        return None, ""
    frame, names = _table(asked["table"]), ledger()["rows"].get(asked["table"], {})
    if "row" in asked:
        return float(frame[asked["column"]][asked["row"]]), frame.mark[asked["row"]]
    rows = [names.get(asked.get(side) or given[side]) for side in ("a", "b")]
    if not set(rows) <= set(frame.index):
        return None, ""
    columns = asked["column"], asked.get("column_b", asked["column"])
    one, other = (float(frame[c][row]) for c, row in zip(columns, rows))
    if np.isnan(one - other):
        return None, ""
    return _rounded(one - other), "".join(dict.fromkeys(frame.mark[row] for row in rows))


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
    of = {name: made.pairs[made.pairs.dimension == name] for name in ("safety", "proficiency")}
    turned = of["proficiency"].rename(
        columns={"chosen_id": "rejected_id", "rejected_id": "chosen_id"}
    )
    both = of["safety"].merge(turned, on=on, suffixes=("_safety", "_proficiency"))
    row = pd.Series(range(len(made.samples)), index=made.samples.instruction_id)
    at, keys, sums = row[both.instruction_id].to_numpy(), [], []
    for scorer, frame in predicted.groupby("scorer", sort=False):
        scores = frame.set_index(bench.CELL).score
        blind = not (frame.criterion_id != "").any()

        def score(side, name, scores=scores, blind=blind):
            criterion = pd.Series("", both.index) if blind else both[f"criterion_id_{name}"]
            return scores.reindex(pd.MultiIndex.from_arrays([both[side], criterion])).to_numpy(
                float
            )

        right = (score("chosen_id", "safety") > score("rejected_id", "safety")) * 1.0
        right += score("rejected_id", "proficiency") > score("chosen_id", "proficiency")
        keys.append((scorer, "conflict", "all", "adjudicated"))
        sums.append((np.bincount(at, right, len(row)), 2.0 * np.bincount(at, minlength=len(row))))
    if not keys:
        return tally
    hits, counts = (np.column_stack(parts) for parts in zip(*sums))
    return tally.joined(Estimates(tally.samples, tally.names, keys, hits, counts))


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


# ---------------------------------------------------------------- for people and programs


def frame(claims: list[dict]) -> pd.DataFrame:
    """One row a check (one for a claim without any), ``COLUMNS``; (claim, check) names a row."""
    rows = []
    for claim in claims:
        own = {"claim": claim["id"], "where": claim["where"], "claim_verdict": claim["verdict"]}
        nothing = {
            "check": "",
            "verdict": UNTESTED,
            "opposite": False,
            "reason": claim["reason"],
            "reported": claim.get("reported"),
            "mark": claim.get("mark", ""),
        }
        first = weakest(claim)
        for check in claim["checks"] or [nothing]:
            joined = {k: "|".join(map(str, check.get(k, ()))) for k in ("each", "files")}
            rows.append(check | own | joined | {"weakest": check is first})
    made = pd.DataFrame(rows).reindex(columns=COLUMNS)
    return made.astype({name: "Int64" for name in ("seeds", "n")})


def weakest(claim: Mapping) -> dict | None:
    """The tested check that comes nearest to failing, or fails most: what the summary shows.

    By the distance of the difference from its bound, in half widths of its interval.
    """
    tested = [
        c for c in claim["checks"] if c["verdict"] != UNTESTED and c["difference"] is not None
    ]

    def margin(check):
        reach = max(check["difference"] - check["low"], 1e-9)  # one value throughout has no width
        return (check["difference"] - check["above"]) / reach

    return min(tested, key=margin, default=None)


def save(claims: list[dict], folder: Path) -> Path:
    """Write claims.csv, claims.md and claims.json to ``folder``; returns the path of the JSON."""
    folder = Path(folder)
    with replacing(folder / "claims.csv") as temporary:
        frame(claims).to_csv(temporary, index=False, lineterminator="\n")
    write_text(folder / "claims.md", _page(claims))
    whole = {
        "schema_version": SCHEMA,
        "inputs": ledger()["inputs"].strip(),
        "claims": claims,
        "verdicts": {name: len(_of(claims, name)) for name in VERDICTS},
    }
    return write_json(folder / "claims.json", whole)


def _of(claims: list[dict], verdict: str) -> list[dict]:
    return [claim for claim in claims if claim["verdict"] == verdict]


def _page(claims: list[dict]) -> str:
    """claims.md: what was not seen first, as a summary and then a section a claim."""
    tested = [claim for claim in claims if claim["verdict"] != UNTESTED]
    checks = [c for claim in tested for c in claim["checks"] if c["verdict"] != UNTESTED]
    counts = ", ".join(f"{len(_of(claims, name))} {name}" for name in VERDICTS)
    lines = [
        "# Claims",
        "",
        ledger()["inputs"].strip(),
        "",
        f"{len(claims)} claims: {counts}. A claim is *same direction* where the whole 95 % "
        "interval of each "
        "of its checks lies above its bound, *not seen* where one does not; *the other way* marks "
        "a whole "
        "interval below it. The interval takes in patients and, where there are several, training "
        "seeds; "
        "with one training it says nothing of another.",
        "",
        *(
            [INVENTED, ""]
            if any("clinic" in c["data"] for claim in claims for c in claim["checks"])
            else ()
        ),
        f"{len(tested)} claims were tested by {len(checks)} checks, no level was adjusted: were no "
        f"difference there, about 1 check in 40 would still be seen in the claimed direction.",
        "",
        "| verdict | claim | of | weakest check | difference, points (95 % interval) | reported | "
        "seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    ordered = [claim for name in VERDICTS for claim in _of(claims, name)]
    for claim in ordered:
        c, said = weakest(claim), f"**{claim['verdict']}**"
        if any(check["opposite"] for check in claim["checks"]):
            said += " (the other way)"
        cells = (
            [c["what"], _interval(c), _cell(c["reported"], c["mark"]), _cell(c["seeds"])]
            if c
            else [
                claim["reason"] or "a rule, no interval",
                "",
                _cell(claim.get("reported"), claim.get("mark")),
                "",
            ]
        )
        lines.append(_row(said, f"[{claim['claim']}](#{claim['id']})", claim["where"], *cells))
    for claim in ordered:
        lines += [
            "",
            f"## {claim['id']}",
            "",
            f"{claim['claim']} ({claim['where']}): **{claim['verdict']}**.",
        ]
        if claim["note"]:
            lines += ["", claim["note"]]
        if claim["reason"]:
            lines += ["", f"Not testable: {claim['reason']}."]
        if claim["checks"]:
            lines += [
                "",
                "| check | verdict | difference, points (95 % interval) | patients alone | seed by "
                "seed | above "
                "| reported | n | data |",
                "|---|---|---|---|---|---|---|---|---|",
            ]
        for c in claim["checks"]:
            widened = (c["low"], c["high"]) != (c["patients_low"], c["patients_high"])
            alone = f"{c['patients_low']:.2f} to {c['patients_high']:.2f}" if widened else ""
            each = ", ".join(f"{value:.2f}" for value in c["each"])
            what = c["what"] + f", {c['labels']} labels" * bool(c["labels"])
            said = c["verdict"] + " (the other way)" * c["opposite"]
            once = f"{c['seeds']} training" + "s" * (c["seeds"] > 1) if c["seeds"] else ""
            lines.append(
                _row(
                    what,
                    said,
                    _interval(c),
                    alone,
                    each or once,
                    f"{c['above']:g}",
                    _cell(c["reported"], c["mark"]),
                    _cell(c["n"]),
                    c["data"],
                )
            )
        tests = dict.fromkeys(
            f"- {c['test']}; from {', '.join(c['files'])}" for c in claim["checks"] if c["test"]
        )
        lines += ["", "Tests:", *tests] if tests else []
        lines += [
            line
            for c in claim["checks"]
            if c["said"]
            for line in ("", f"{c['check']}: {c['said']}")
        ]
    return "\n".join(lines) + "\n"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _cell(value, mark: str = "") -> str:
    return "" if value is None else f"{value:g} ({mark})" if mark else str(value)


def _interval(check: Mapping) -> str:
    if check["difference"] is None:
        return ""
    ends = f"{check['difference']:.2f} ({check['low']:.2f} to {check['high']:.2f})"
    return ends + f" {check['unit']}" * (check["unit"] != "points")
