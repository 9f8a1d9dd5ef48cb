"""The paper's tables, reported values beside this run's, never in one column.

``build_*`` are pure; ``save`` writes csv, md, tex and a provenance json, byte-equal on a rerun.
Values are percent with two decimals, unless a name says otherwise.
"""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from promedical_utils import policy_bench
from promedical_utils.records import DIMENSIONS
from promedical_utils.workspace import project_root, replacing, sha256, write_json, write_text

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
NO_VERDICTS = {"length", "rar_explicit", "rar_implicit", "orbit", "healthbench", "pair_rm"}
POLICY = {  # column -> metric
    "violations": "violation_rate", "proficiency": "s1", "excellence_met": "s2",
    "bench_score": "bench_score", "compliance": "compliance",
}  # fmt: skip
POLICY_NAMES = {"base": "base policy (kit)", "grpo": "GRPO with gated veto (kit)"}
POLICY_REPORTED = ("healthbench", "promedical_bench")
STUDY_REPORTED = ("proficiency", "excellence", "safety", "pairwise", "overall")
STUDY = (*policy_bench.STUDY, "violations_less_base", "violations_less_full", "violations_over_base",
         "proficiency_less_base", "proficiency_less_full")  # fmt: skip
MIXED = "one set of notes, which mixes metrics of the reward model and of the policy"


def reported(name: str) -> pd.DataFrame:
    """One CSV of reported values, with the mark of how each row is known."""
    return pd.read_csv(project_root() / "papers_figures" / "paper_values" / f"{name}.csv")


def systems(profile) -> dict[str, str]:
    """Every scorer of the bench and its name in tables: the kit's own, then those of others.

    One of others is "run by the kit", a row of its own: that of its reported values is another one.
    """
    base = "small base" if profile.base_model == "small" else Path(profile.base_model).name
    trained = f"kit, {base}, {'QLoRA' if profile.quantization == 'nf4' else 'LoRA'}"
    own = {
        "criterion": f"criterion RM ({trained})",
        "criterion_clean": f"criterion RM, clean labels (kit, {base}, full)",
        "scalar_overall": f"scalar RM, overall preference ({trained})",
        "scalar_blind": f"scalar RM, criterion hidden ({trained})",
        "rar_explicit": "RaR explicit, over the criterion RM (kit)",
        "rar_implicit": "RaR implicit, prompted judge (kit)",
        "orbit": "ORBIT signed weights, over the criterion RM (kit)",
        "healthbench": "HealthBench's rule, over the criterion RM (kit)",
        "words": "word cues (kit, logistic regression)",
        "length": "longer is better (kit)",
        "random": "random (kit)",
    }
    ids = {name: getattr(profile, name) for name in ("scalar_rm", "pair_rm", "verifier")}
    others = {name: Path(source).name for name, source in ids.items() if source}
    others |= {name: f"{name}, judge" for name in profile.judges}
    return own | {scorer: f"{name} (run by the kit)" for scorer, name in others.items()}


def note(profile, seed: int) -> str:
    """What a reader must know of this run's values, under every table and figure."""
    clinic = profile.data == "clinic"
    where = " Run values: an invented clinic, no medical result." if clinic else ""
    smoke = " Smoke numbers are no results." if profile.name == "smoke" else ""
    return f"Profile {profile.name}, seed {seed}.{where}{smoke}"


def _with_interval(column: str, ends, factor: float = 100) -> dict:
    names = (f"run_{column}", f"run_{column}_low", f"run_{column}_high")
    values = (round(float(v) * factor, 2) + 0.0 for v in ends)  # no -0.0
    return dict(zip(names, values, strict=True))


def _beside(reported, columns_reported, run_rows: list[dict], columns, said=()) -> pd.DataFrame:
    """Reported rows, then the kit's; every column there, in one order, even if nothing ran.

    ``said`` are further columns of either, before the values.
    """
    names = {c: f"reported_{c}" for c in columns_reported}
    wide = [f"run_{c}{end}" for c in columns for end in ("", "_low", "_high")]
    order = ["system", "status", "mark", *names.values(), "labels", *said, *wide]
    rows = []
    if reported is not None:
        names[reported.columns[0]] = "system"
        rows = reported.rename(columns=names).assign(status=NOT_RUN).to_dict("records")
    return pd.DataFrame([*rows, *run_rows]).reindex(columns=order)


def _scorers(metrics: pd.DataFrame | None, names: Mapping, columns, against: str) -> list[dict]:
    at = [] if metrics is None else metrics[metrics.against == against].itertuples()
    found = {(r.scorer, r.metric, r.slice): (r.value, r.low, r.high) for r in at}
    rows = []
    for scorer, name in names.items():
        row = {"system": name, "status": NOT_RUN}
        for column, asked in columns.items():
            if ends := found.get((scorer, *asked)):
                row |= {"status": RUN, "labels": against, **_with_interval(column, ends)}
        rows.append(row)
    return rows


def build_main_results(reported, metrics, names, ceiling=None, against="adjudicated"):
    """Main results; ``ceiling`` is ``bench.blind_ceiling``, on the pairwise column only."""
    rows = _scorers(metrics, names, MAIN | MORE, against)
    if ceiling is not None:
        row = {"system": "ceiling of criterion-blind scorers (kit)", "status": RUN}
        rows.append(row | {"labels": "adjudicated", "run_pairwise_all": round(ceiling * 100, 2)})
    return _beside(reported, MAIN, rows, MAIN | MORE)


def build_safety_veto(reported, metrics, names, against="adjudicated") -> pd.DataFrame:
    """Precision, recall and F1 on safety verdicts; a violation is the positive class."""
    names = {s: n for s, n in names.items() if not s.startswith("scalar") and s not in NO_VERDICTS}
    return _beside(reported, VETO, _scorers(metrics, names, VETO, against), VETO)


def build_seen_unseen(metrics, names) -> pd.DataFrame:
    """Pairwise accuracy on criterion kinds seen and unseen in training; none is reported."""
    return _beside(None, (), _scorers(metrics, names, SEEN, "adjudicated"), SEEN)


def build_specialty(by_specialty: pd.DataFrame, names) -> pd.DataFrame:
    """Overall accuracy by specialty, from ``Tally.by("specialty")``."""
    frame = by_specialty[by_specialty.scorer.isin(names)].reset_index(drop=True)
    frame["system"] = frame.scorer.map(names)
    frame["run_overall_accuracy"] = (frame.value * 100).round(2)
    return frame[["specialty", "system", "n", "run_overall_accuracy"]]


def build_by_source(parts: pd.DataFrame, names) -> pd.DataFrame:
    """Pairwise accuracy by source, over all pairs and where the shorter answer is right."""
    frame = parts.assign(system=parts.scorer.map(names), run_pairwise=(parts.value * 100).round(2))
    frame = frame.dropna(subset="system").rename(columns={"category": "source"})
    wide = frame.pivot(index=["source", "system"], columns="slice", values=["run_pairwise", "n"])
    wide.columns = ["_".join(column) for column in wide]
    return wide.reset_index().astype({c: int for c in wide if c.startswith("n_")})


def build_policy(reported, evaluation, draws: int, seed: int) -> pd.DataFrame:
    """Policies: reported scores beside this run's violations, S1, S2, bench score and compliance.

    ``evaluation`` is ``claims.readable``, one row a (policy, seed, instruction), or None; the last
    row is the difference paired by patient, in points. By the truth where the rows have it.
    """
    names, found = dict(POLICY_NAMES), {}
    if evaluation is not None:
        against = policy_bench.labels(evaluation)
        names |= {p: f"{p} (kit)" for p in dict.fromkeys(evaluation.policy) if p not in names}
        values = policy_bench.measures(evaluation, draws=draws, seed=seed)
        if set(POLICY_NAMES) <= set(evaluation.policy):
            less = policy_bench.paired(evaluation, "grpo", "base", draws=draws, seed=seed)
            less = less.assign(policy="difference", value=less.difference)
            values = pd.concat([values, less])
        for row in values[values.against == against].itertuples():
            found.setdefault(row.policy, {})[row.metric] = (row.value, row.low, row.high)
    rows = []
    for policy, name in (names | {"difference": "GRPO less base, paired (kit)"}).items():
        rows.append({"system": name, "status": NOT_RUN})
        if policy in found:
            rows[-1] |= {"status": RUN, "labels": against}
        for column, metric in POLICY.items():
            # where every rubric asks for unreadable facts alone there is no S1
            if ends := found.get(policy, {}).get(metric):
                rows[-1] |= _with_interval(column, ends, policy_bench.METRICS[metric][1])
    return _beside(reported, POLICY_REPORTED, rows, POLICY)


def build_policy_by(
    evaluation, verdicts, by: str, draws: int, seed: int, metrics=None, against=None
) -> pd.DataFrame:
    """Base and GRPO by dimension, specialty or category, with the paired difference in points.

    A row a slice and measure, "all" first; by dimension the criteria met, of ``verdicts``, else
    ``metrics`` of ``policy_bench.METRICS``. ``n`` counts patients, by dimension criteria.
    ``evaluation`` None gives no rows. None of this is reported, so no such column is there.
    """
    metrics = metrics or (("met",) if by == "dimension" else ("violation_rate", "bench_score"))
    columns, rows = ("base", "grpo", "difference"), []
    if evaluation is not None:
        against = against or policy_bench.labels(evaluation)
        asked = {"verdicts": verdicts, "draws": draws, "seed": seed}
        for part in (by,) if by == "dimension" else (None, by):
            each = policy_bench.measures(evaluation, by=part, **asked)
            each = each.set_index(["policy", "slice", "metric", "against"])[["value", "low", "high"]]
            less = policy_bench.paired(evaluation, "grpo", "base", metrics, by=part, **asked)
            for row in less[less.against == against].itertuples():
                key = (row.slice, row.metric, against)
                ends = [each.loc[("base", *key)], each.loc[("grpo", *key)],
                        (row.difference, row.low, row.high)]  # fmt: skip
                what, factor = policy_bench.METRICS[row.metric]
                made = {by: row.slice, "measure": what, "labels": against, "n": row.n}
                for column, values in zip(columns, ends, strict=True):
                    made |= _with_interval(column, values, factor)
                first = DIMENSIONS.index(row.slice) if by == "dimension" else row.slice != "all"
                rows.append((metrics.index(row.metric), first, row.slice, made))
    wide = [f"run_{c}{end}" for c in columns for end in ("", "_low", "_high")]
    rows = [made for *_, made in sorted(rows, key=lambda row: row[:3])]
    return pd.DataFrame(rows, columns=[by, "measure", "labels", "n", *wide])


def build_policy_study(reported, study: pd.DataFrame | None) -> pd.DataFrame:
    """The study of policies: the paper's ablation rows, then a row a variant of this run.

    ``study`` is ``policy_bench.study_table`` or None. Values are means over training seeds, with
    intervals over patients; differences are paired, in points.
    """
    rows = []
    for row in () if study is None else study.to_dict("records"):
        made = {"system": f"{row['label']} (kit)", "status": RUN if row["seeds"] else NOT_RUN}
        made |= {name: row[name] for name in ("remark", "group", "seeds")}
        made |= {"labels": row["labels"]} if row["seeds"] else {}
        for column in STUDY:
            if row[column] == row[column]:
                ends = (row[column], row[f"{column}_low"], row[f"{column}_high"])
                made |= _with_interval(column, ends, 1)
        rows.append(made)
    if reported is not None:
        reported = reported.assign(remark=MIXED, group="reported")
    frame = _beside(reported, STUDY_REPORTED, rows, STUDY, ("remark", "group", "seeds"))
    return frame.astype({"seeds": "Int64"})


def build_bench_composition(reported, pipeline, report: Mapping | None, profile) -> pd.DataFrame:
    """Counts of the bench, reported beside this run; what the configuration sets is *input*."""
    known = {r.dimension: (r.criterion_pairs, r.mark) for r in reported.itertuples()}
    known |= {r.quantity: (f"{r.value:g}", r.mark) for r in pipeline.itertuples()}
    run, given = {}, {}
    if report:
        pairs = report["pairs"]
        verdicts, grades = report["input"]["verdicts"], report["input"]["grades"]
        run = {d: c["drawn"] for d, c in pairs.items()}
        run |= {"total": sum(run.values())}
        run |= {k: report[k] for k in ("samples", "categories", "specialties", "conditions")}
        run |= {f"{d} pairs in reserve": c["reserve"] for d, c in pairs.items()}
        run["criteria of unseen kinds percent"] = report["unseen_share"] * 100
        given = {
            "judge agreement with experts percent": profile.judge_agreement * 100,
            "rubric strict pass rate percent": profile.rubric_pass_rate * 100,
            "bench weighted kappa": grades["kappa_quadratic"],
            "bench linear kappa": grades["kappa_linear"],
            "bench verdict kappa": verdicts["kappa"],
            "bench verdict agreement percent": verdicts["observed"] * 100,
        }
    run |= given
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
    if pd.isna(value):
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
    # sources are named from the run's folder, so that a redrawn reference has the same bytes
    read_from = {f"{path.parent.name}/{path.name}": sha256(path) for path in map(Path, sources)}
    facts = {"table": name, "title": title, "note": said, "profile": profile.name, "seed": seed,
             "rows": len(df), "columns": list(df.columns), "sources": read_from}  # fmt: skip
    write_json(folder / f"{name}.json", facts)
    return folder / f"{name}.csv"
