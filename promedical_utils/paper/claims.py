"""The claims ledger: each claim of the paper as named checks on this run and the committed studies.

``claims.yaml`` holds the claims; ``contrasts`` finds the differences; ``core.verdicts`` decides by
the interval. What the configuration sets (agreement, kappa, pass rate) is an input and no claim.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd

from promedical_utils.core import statistics, verdicts, workspace
from promedical_utils.core.verdicts import UNTESTED, VERDICTS
from promedical_utils.core.workspace import KitError
from promedical_utils.paper import evidence as evidences
from promedical_utils.paper.evidence import Evidence
from promedical_utils.report import tables
from promedical_utils.studies import contrasts
from promedical_utils.studies.contrasts import NUMBERS, Lacking, rounded

SCHEMA = 3
KEPT = -2.0  # points of proficiency that a safer policy may lose, as veto_keeps_proficiency has it
LISTS = ("a", "b", "slice")  # each value of a list is a check of its own
SINGLE = ("metric", "metric_b", "flagged", "reported", "equivalent_within")
DEFAULTS = dict.fromkeys((*SINGLE, *LISTS)) | {"slice": "all", "above": 0.0, "interest": 5.0}
TESTED = ("p", "p_holm", "interest", "power", "smallest", "design")
NAMES = ("claim", "says", "check", "where", "verdict", "claim_verdict", "weakest")
FACTS = ("unit", "above", "within", "reported", "mark", "labels", "data", "files", "test", "reason")
COLUMNS = [*NAMES, *NUMBERS, *TESTED, "each", "seeds", "n", *FACTS]
LEDGER = workspace.read_yaml(Path(__file__).with_suffix(".yaml"))


def expanded(spec: Mapping, sets=("all",)) -> list[dict]:
    """The checks of a claim, one for each value of its lists, with all keys; external ones on each
    of ``sets``. KitError for a key that no check has."""
    checks = []
    for given in spec.get("checks", ()):
        if strange := given.keys() - {*DEFAULTS, "from"}:
            raise KitError(f"claims.yaml: {spec['id']} has a check with {', '.join(strange)}")
        whole = DEFAULTS | {"reported": spec.get("reported")} | given
        if given["from"] == "external":
            whole["slice"] = list(sets)
        lists = [whole[key] if isinstance(whole[key], list) else [whole[key]] for key in LISTS]
        for values in product(*lists):
            check = whole | dict(zip(LISTS, values))
            check |= {"metric_b": check["metric_b"] or check["metric"], "slice_b": check["slice"]}
            checks.append(check)
    return checks


def _what(given: Mapping) -> str:
    if given["flagged"] is not None:
        return f"{given['a']} " + ("flagged" if given["flagged"] else "not flagged")
    metric, other = (given[key].replace("_", " ") for key in ("metric", "metric_b"))
    part = given["slice"].replace("_", " ")
    where = f" on {part}" if part != "all" else ""
    if other != metric:
        return f"{metric} of {given['a']} - {other} of {given['b']}{where}"
    systems = given["a"] + (f" - {given['b']}" if given["b"] else "")
    return f"{systems}, {metric}{where}"


def _reported(cell: Mapping | None, given: Mapping) -> dict:
    """``reported``: value or difference that the paper has, and its ``mark``; None without."""
    value, rows = np.nan, []
    if cell is not None:
        frame = tables.reported(cell["table"])
        frame = frame.set_index(frame.columns[0])
        if "row" in cell:
            rows = [cell["row"]]
            value = frame[cell["column"]][cell["row"]]
        else:
            named = LEDGER["rows"][cell["table"]]
            rows = [named.get(given[side]) for side in ("a", "b")]
            columns = cell["column"], cell.get("column_b", cell["column"])
            a, b = (frame[column].get(row, np.nan) for column, row in zip(columns, rows))
            value = rounded(a - b)
    if np.isnan(value):
        return {"reported": None, "mark": ""}
    return {"reported": float(value), "mark": "".join(dict.fromkeys(frame.mark[rows]))}


def build_claims(
    profile, tally=None, evaluation=None, external=None, healthbench=None, studies=None
) -> list[dict]:
    """Every claim of ``claims.yaml`` as a dict; no NaN inside, the order of the file.

    ``tally``: ``bench.tally`` of the run; ``evaluation``: policy/evaluation.parquet; ``external``:
    external/predictions.parquet; ``healthbench``: its ``policy_column``; each None where it did not
    run. ``studies``: folder of the committed studies (default: those of the checkout); for those of
    reward models and policies that say nothing of this data the run's own stand in.
    """
    folder = studies or workspace.project_root() / "papers_figures" / "studies"
    sets = ["all"] if external is None or external.empty else list(dict.fromkeys(external["set"]))
    of_run = evidences.of_run(profile, tally, evaluation, external, healthbench)

    @cache
    def evidence(name: str) -> Evidence:
        found = own = of_run.get(name)
        if own is None or name in evidences.STANDS_IN:
            found = evidences.of_study(folder, name, profile)
            found = own if found.reason and own and not own.reason else found
        smoke = profile.name == "smoke"
        return replace(found, reason="smoke numbers are no results") if smoke else found

    return decided(LEDGER["claims"], evidence, sets)


def decided(specs, evidence: Callable[[str], Evidence], sets=("all",)) -> list[dict]:
    """``build_claims`` of claims in the form of ``claims.yaml``, on ``evidence`` by its name."""
    claims = []
    for spec in specs:
        checks = [_check(check, evidence(check["from"])) for check in expanded(spec, sets)]
        claims.append(_claim(spec, checks))
    _adjust(claims)
    return claims


def _adjust(claims: list[dict]) -> None:
    """``p_holm`` of every tested check, within its family, and ``survives`` of a claim that was
    seen: whether all of them stay below 5 %; None where no check has a p."""
    families: dict[str, list[dict]] = {}
    for claim in claims:
        tested = [check for check in claim["checks"] if check["p"] is not None]
        families.setdefault(claim["family"], []).extend(tested)
    for tested in families.values():
        for check, p in zip(tested, statistics.holm([c["p"] for c in tested]), strict=True):
            check["p_holm"] = round(float(p), 4)
    for claim in claims:
        p_values = [c["p_holm"] for c in claim["checks"] if c["p_holm"] is not None]
        seen = claim["verdict"] in verdicts.SEEN and bool(p_values)
        claim["survives"] = max(p_values) < 0.05 if seen else None


def _claim(spec: Mapping, checks: list[dict]) -> dict:
    reasons = [spec["why"]] if "why" in spec else list(dict.fromkeys(c["reason"] for c in checks))
    claim = {key: spec.get(key, "") for key in ("id", "where", "claim", "note")}
    claim |= {"family": spec["where"], "checks": checks}
    claim["verdict"] = verdicts.of_claim(check["verdict"] for check in checks)
    claim["reason"] = "; ".join(filter(None, reasons))
    return claim if checks else claim | _reported(spec.get("reported"), spec)


def _check(given: Mapping, evidence: Evidence) -> dict:
    """One check, made where it can be; numbers are rounded, and the rounded ones decide."""
    check = dict.fromkeys((*NUMBERS, *TESTED, "seeds", "n", "unit"))
    check |= dict.fromkeys(("test", "said", "reason", "labels"), "")
    check |= {"each": [], "above": given["above"], "within": given["equivalent_within"]}
    check |= {"data": evidence.data, "files": list(evidence.files), "what": _what(given)}
    check |= _reported(given["reported"], given)
    try:
        if evidence.reason:
            raise Lacking(evidence.reason)
        if given["flagged"] is not None:
            check |= _hacking(given, evidence.policies)
        else:
            check["labels"] = evidence.source.labels_of(given["slice"])[0]
            own = given | {"labels": check["labels"]}
            check |= contrasts.measured(own, evidence.source, check["reported"])
    except Lacking as lacking:
        check |= {"verdict": UNTESTED, "reason": str(lacking)}
    labels = f", {check['labels']} labels" if check["labels"] else ""
    return check | {"check": f"{given['from']}: {check['what']}{labels}"}


def _hacking(given: Mapping, policies) -> dict:
    """Whether every training of a policy is flagged, or is not, as claimed."""
    rows = [row["hacking"] for row in policies if row["variant"] == given["a"]]
    if not rows:
        raise Lacking(f"the study has no policy {given['a']}")
    as_claimed = all(row["flagged"] is given["flagged"] for row in rows)
    return {
        "seeds": len(rows),
        "test": "the rule of promedical_utils.policy.reward_hacking",
        "said": " ".join(row["text"] for row in rows),
        "verdict": verdicts.SAME if as_claimed else verdicts.CONTRADICTS,
    }


def weakest(claim: Mapping) -> dict | None:
    """The check that its verdict hangs on, or comes nearest to: what the summary shows.

    Of the worst verdict; among those by the distance of the difference from its bound (of an
    equivalence, from its margin), in half widths of its interval.
    """
    measured = [check for check in claim["checks"] if check["difference"] is not None]

    def rank(check):
        reach = max(check["difference"] - check["low"], 1e-9)  # one value throughout has no width
        away = check["difference"] - check["above"]
        if check["within"] is not None:
            away = check["within"] - abs(away)
        return VERDICTS.index(check["verdict"]), away / reach

    return min(measured, key=rank, default=None)


def frame(claims: list[dict]) -> pd.DataFrame:
    """One row a check (one for a claim without any), ``COLUMNS``; (claim, check) names a row."""
    rows = []
    for claim in claims:
        own = {"claim": claim["id"], "says": claim["claim"], "where": claim["where"]}
        own["claim_verdict"] = claim["verdict"]
        nothing = {"check": "", "verdict": UNTESTED, "reason": claim["reason"]}
        nothing |= {"reported": claim.get("reported"), "mark": claim.get("mark", "")}
        nearest = weakest(claim)
        for check in claim["checks"] or [nothing]:
            joined = {name: "|".join(map(str, check.get(name, ()))) for name in ("each", "files")}
            rows.append(check | own | joined | {"weakest": check is nearest})
    return pd.DataFrame(rows).reindex(columns=COLUMNS).astype({"seeds": "Int64", "n": "Int64"})


def _said(verdict: str, check: Mapping | None) -> str:
    smallest, unit = (check["smallest"], check["unit"]) if check else (None, "points")
    return verdicts.said(verdict, smallest, "" if unit == "points" else f" {unit}")


def save(claims: list[dict], folder: Path, data: str = "clinic") -> Path:
    """Write claims.csv, claims.md and claims.json to ``folder``; the path of the JSON. ``data``:
    the profile's kind of data, which says what its labels are."""
    counts, inputs = Counter(c["verdict"] for c in claims), LEDGER["inputs"][data].strip()
    counted = {name: counts[name] for name in VERDICTS}
    workspace.write_frame(folder / "claims.csv", frame(claims))
    source = Path(__file__).with_name("claims.md.jinja").read_text(encoding="utf-8")
    options = {"trim_blocks": True, "keep_trailing_newline": True}
    template = jinja2.Template(source, undefined=jinja2.StrictUndefined, **options)
    tested = [claim for claim in claims if claim["verdict"] != UNTESTED]
    page = template.render(
        inputs=inputs,
        weakest=weakest,
        said=_said,
        claims=sorted(claims, key=lambda claim: VERDICTS.index(claim["verdict"])),
        counts=", ".join(f"{count} {name}" for name, count in counted.items() if count),
        invented=data == "clinic",
        tested=len(tested),
        checks=sum(c["verdict"] != UNTESTED for claim in tested for c in claim["checks"]),
    )
    workspace.write_text(folder / "claims.md", page)
    whole = {"schema_version": SCHEMA, "inputs": inputs, "claims": claims, "verdicts": counted}
    return workspace.write_json(folder / "claims.json", whole)
