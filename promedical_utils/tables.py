"""The paper's tables, reported values beside this run's, never in one column.

``build_*`` are pure; ``save`` writes csv, md, tex and a provenance json, byte-equal on a rerun.
Values are percent with two decimals, unless a name says otherwise.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_utils import statistics
from promedical_utils.workspace import (
    project_root,
    replacing,
    sha256,
    shown,
    write_json,
    write_text,
)

RUN, NOT_RUN, INPUT = "this run", "not run", "input"
MAIN = {  # column -> (metric, slice)
    "pointwise_proficiency": ("pointwise", "proficiency"),
    "pointwise_safety": ("pointwise", "safety"),
    "pairwise_safety": ("pairwise", "safety"),
    "overall_accuracy": ("overall", "all"),
}
MORE = {f"pairwise_{s}": ("pairwise", s) for s in ("proficiency", "excellence", "all", "shorter")}
SEEN = {f"pairwise_{s}": ("pairwise", s) for s in ("seen", "unseen")}
VETO = {name: (f"veto_{name}", "safety") for name in ("precision", "recall", "f1")}
POLICY = {"violations": ("violation", 100), "proficiency": ("s1", 100), "excellence_met": ("s2", 1)}
POLICY_REPORTED = ("healthbench", "promedical_bench")


def reported(name: str) -> pd.DataFrame:
    """One CSV of reported values, with the mark of how each row is known."""
    return pd.read_csv(project_root() / "papers_figures" / "paper_values" / f"{name}.csv")


def systems(profile) -> dict[str, str]:
    """The kit's scorers and their names in tables: its own, no product's."""
    base = "small base" if profile.base_model == "small" else Path(profile.base_model).name
    trained = f"kit, {base}, {'QLoRA' if profile.quantization == 'nf4' else 'LoRA'}"
    return {
        "criterion": f"criterion RM ({trained})",
        "criterion_clean": f"criterion RM, clean labels (kit, {base}, full)",
        "scalar_overall": f"scalar RM, overall preference ({trained})",
        "scalar_blind": f"scalar RM, criterion hidden ({trained})",
        "words": "word cues (kit, logistic regression)",
        "length": "longer is better (kit)",
    }


def note(profile, seed: int) -> str:
    """What a reader must know of this run's values, under every table and figure."""
    clinic = profile.data == "clinic"
    where = " Run values: an invented clinic, no medical result." if clinic else ""
    smoke = " Smoke numbers are no results." if profile.name == "smoke" else ""
    return f"Profile {profile.name}, seed {seed}.{where}{smoke}"


def _with_interval(column: str, value, low, high, factor: float = 100) -> dict:
    ends = zip(("", "_low", "_high"), (value, low, high), strict=True)
    return {f"run_{column}{end}": round(float(v) * factor, 2) + 0.0 for end, v in ends}  # no -0.0


def _beside(reported, columns_reported, run_rows: list[dict], columns) -> pd.DataFrame:
    """Reported rows, then the kit's; every column there, in one order, even if nothing ran."""
    rows = [
        {"system": next(iter(r.values())), "status": NOT_RUN, "mark": r["mark"]}
        | {f"reported_{c}": r[c] for c in columns_reported}
        for r in ([] if reported is None else reported.to_dict("records"))
    ]
    wide = [f"run_{c}{end}" for c in columns for end in ("", "_low", "_high")]
    known = [f"reported_{c}" for c in columns_reported]
    order = ["system", "status", "mark", *known, "labels", *wide]
    return pd.DataFrame([*rows, *run_rows]).reindex(columns=order)


def _scorers(metrics: pd.DataFrame | None, names: Mapping, columns, against: str) -> list[dict]:
    at = [] if metrics is None else metrics[metrics.against == against].itertuples()
    found = {(r.scorer, r.metric, r.slice): r for r in at}
    rows = []
    for scorer, name in names.items():
        row = {"system": name, "status": NOT_RUN}
        for column, asked in columns.items():
            if r := found.get((scorer, *asked)):
                row |= {"status": RUN, "labels": against}
                row |= _with_interval(column, r.value, r.low, r.high)
        rows.append(row)
    return rows


def build_main_results(
    reported, metrics, names, ceiling=None, against="adjudicated"
) -> pd.DataFrame:
    """Main results; ``ceiling`` is ``bench.blind_ceiling``, on the pairwise column only."""
    rows = _scorers(metrics, names, MAIN | MORE, against)
    if ceiling is not None:
        row = {"system": "ceiling of criterion-blind scorers (kit)", "status": RUN}
        rows.append(row | {"labels": "adjudicated", "run_pairwise_all": round(ceiling * 100, 2)})
    return _beside(reported, MAIN, rows, MAIN | MORE)


def build_safety_veto(reported, metrics, names, against="adjudicated") -> pd.DataFrame:
    """Precision, recall and F1 on safety verdicts; a violation is the positive class."""
    scalar = {s for s in names if s.startswith("scalar") or s == "length"}  # give no verdicts
    names = {scorer: name for scorer, name in names.items() if scorer not in scalar}
    return _beside(reported, VETO, _scorers(metrics, names, VETO, against), VETO)


def build_seen_unseen(metrics, names, against="adjudicated") -> pd.DataFrame:
    """Pairwise accuracy on criterion kinds seen and unseen in training; none is reported."""
    return _beside(None, (), _scorers(metrics, names, SEEN, against), SEEN)


def build_specialty(by_specialty: pd.DataFrame, names) -> pd.DataFrame:
    """Overall accuracy by specialty, from ``Tally.by("specialty")``."""
    frame = by_specialty[by_specialty.scorer.isin(names)]
    value = (frame.value.astype(float) * 100).round(2)
    names = {"system": frame.scorer.map(names), "run_overall_accuracy": value}
    frame = frame.assign(**names, n=frame.n.astype(int)).reset_index(drop=True)
    return frame[["specialty", "system", "n", "run_overall_accuracy"]]


def build_by_source(parts: pd.DataFrame, names) -> pd.DataFrame:
    """Pairwise accuracy by source, over all pairs and where the shorter answer is right."""
    frame = parts[parts.scorer.isin(names)].assign(system=lambda d: d.scorer.map(names))
    frame = frame.assign(value=(frame.value.astype(float) * 100).round(2), n=frame.n.astype(int))
    wide = frame.pivot(index=["category", "system"], columns="slice", values=["value", "n"])
    wide.columns = [f"{'run_pairwise' if kind == 'value' else 'n'}_{part}" for kind, part in wide]
    wide = wide.reset_index().rename(columns={"category": "source"})
    counts = [c for c in wide if c.startswith("n_")]
    return wide.assign(**{c: wide[c].fillna(0).astype(int) for c in counts})


def build_policy(reported, evaluation, draws: int, seed: int) -> pd.DataFrame:
    """Policies: reported scores beside this run's true violations, proficiency and excellence.

    ``evaluation`` is ``claims.readable``, one row a (policy, instruction), or None.
    """
    names = {"base": "base policy (kit)", "grpo": "GRPO with gated veto (kit)"}
    parts = {} if evaluation is None else dict(list(evaluation.groupby("policy")))
    rows = []
    for policy in [*names, *(p for p in parts if p not in names)]:
        row = {"system": names.get(policy, f"{policy} (kit)"), "status": NOT_RUN}
        if policy in parts:
            row |= {"status": RUN, "labels": "truth"}
            for column, (source, factor) in POLICY.items():
                # a patient whose rubric asks for unreadable facts alone has no S1
                part = parts[policy].dropna(subset=[source])
                if part.empty:
                    continue
                weights = statistics.two_stage_weights(part.condition, draws, seed)
                values = part[source].to_numpy(float)[:, None]
                ends = statistics.interval(statistics.ratio(values, np.ones_like(values), weights))
                row |= _with_interval(column, values.mean(), *(end[0] for end in ends), factor)
        rows.append(row)
    return _beside(reported, POLICY_REPORTED, rows, POLICY)


def build_bench_composition(reported, pipeline, report: Mapping | None, profile) -> pd.DataFrame:
    """Counts of the bench, reported beside this run; what the configuration sets is *input*."""
    known = {r.dimension: (r.criterion_pairs, r.mark) for r in reported.itertuples()}
    known |= {r.quantity: (f"{r.value:g}", r.mark) for r in pipeline.itertuples()}
    run, given = {}, {}
    if report:
        run = {d: c["drawn"] for d, c in report["pairs"].items()}
        run |= {"total": sum(run.values())}
        run |= {k: report[k] for k in ("samples", "categories", "specialties", "conditions")}
        run |= {f"{d} pairs in reserve": c["reserve"] for d, c in report["pairs"].items()}
        run["criteria of unseen kinds percent"] = round(report["unseen_share"] * 100, 2)
        verdicts, grades = report["input"]["verdicts"], report["input"]["grades"]
        given = {
            "judge agreement with experts percent": profile.judge_agreement * 100,
            "rubric strict pass rate percent": profile.rubric_pass_rate * 100,
            "bench weighted kappa": grades["kappa_quadratic"],
            "bench linear kappa": grades["kappa_linear"],
            "bench verdict kappa": verdicts["kappa"],
            "bench verdict agreement percent": verdicts["observed"] * 100,
        }
        run |= {k: v if v is None else round(v, 2) for k, v in given.items()}
    order = [*reported.dimension, "categories", "specialties", "bench weighted kappa",
             "judge agreement with experts percent", "rubric strict pass rate percent"]  # fmt: skip
    rows = [
        (q, *known.get(q, ("", "")), plain(run.get(q)),
         INPUT if q in given else RUN if q in run else NOT_RUN)
        for q in dict.fromkeys([*order, *run])
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["quantity", "reported", "mark", "run", "status"])


def plain(value) -> str:
    """A cell as text: two decimals for fractions, none for counts, empty for nothing."""
    if value is None or value is pd.NA or value != value:
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _folded(text: pd.DataFrame) -> pd.DataFrame:
    """For reading: a value and its interval in one cell, no underscores in the header."""
    for low in [c for c in text if c.endswith("_low")]:
        column, high = low.removesuffix("_low"), low.replace("_low", "_high")
        whole = text[column] + " (" + text[low] + " to " + text[high] + ")"
        text = text.assign(**{column: text[column].where(text[low] == "", whole)})
        text = text.drop(columns=[low, high])
    return text.rename(columns=lambda c: c.replace("_", " "))


def save(df, folder: Path, name: str, title: str, sources, profile, seed: int) -> Path:
    """Write ``name``.csv, .md, .tex and .json (sources with sha256, profile, seed) to ``folder``.

    No dates and no machine's paths, so a rerun gives the same bytes. Returns the CSV's path.
    """
    folder, said, text = Path(folder), note(profile, seed), df.map(plain)
    read = _folded(text)
    with replacing(folder / f"{name}.csv") as temporary:
        text.to_csv(temporary, index=False, lineterminator="\n")
    rows = [list(read), ["---"] * len(read.columns), *read.to_numpy().tolist()]
    body = "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows)
    write_text(folder / f"{name}.md", f"## {title}\n\n{said}\n\n{body}\n")
    tex = read.to_latex(index=False, escape=True)
    write_text(folder / f"{name}.tex", f"% {title}. {said}\n{tex}")
    facts = {"table": name, "title": title, "note": said, "profile": profile.name, "seed": seed}
    facts |= {"rows": len(df), "columns": list(df.columns)}
    facts["sources"] = {  # named from the run's folder, so that a redrawn reference has the same bytes
        f"{Path(path).parent.name}/{Path(path).name}": sha256(path) for path in sources
    }
    write_json(folder / f"{name}.json", facts)
    return folder / f"{name}.csv"
