"""The paper's tables, reported values beside this run's, never in one column.

``build_*`` are pure; ``save`` writes csv, md, tex and a provenance json, byte-equal on a rerun.
Values are percent with two decimals, unless a name says otherwise.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_utils.core import statistics
from promedical_utils.core.records import DIMENSIONS
from promedical_utils.core.workspace import project_root, replacing, sha256, write_json, write_text
from promedical_utils.data.sources.judged import SUBSETS
from promedical_utils.evaluation import policy_metrics
from promedical_utils.reward_model import calibration

READS = ("papers_figures/paper_values",)  # what a rerun of a notebook hangs on, besides code

RUN, NOT_RUN, INPUT, STUDY_RAN = "this run", "not run", "input", "study"
UNTESTED = "not testable in this profile"
MAIN = {  # column -> (metric, slice)
    "pointwise_proficiency": ("pointwise", "proficiency"),
    "pointwise_safety": ("pointwise", "safety"),
    "pairwise_safety": ("pairwise", "safety"),
    "overall_accuracy": ("overall", "all"),
}
MORE = {"pointwise_excellence": ("pointwise", "excellence")}
MORE |= {f"pairwise_{s}": ("pairwise", s) for s in ("proficiency", "excellence", "all", "shorter")}
SEEN = {f"pairwise_{s}": ("pairwise", s) for s in ("seen", "unseen")}
VETO = {name: (f"veto_{name}", "safety") for name in ("precision", "recall", "f1")}
NO_VERDICTS = {"length", "rar_explicit", "rar_implicit", "orbit", "healthbench", "pair_rm"}
POLICY = {  # column -> metric
    "violations": "violation_rate",
    "proficiency": "s1",
    "excellence_met": "s2",
    "bench_score": "bench_score",
    "compliance": "compliance",
}
POLICY_NAMES = {"base": "base policy (kit)", "grpo": "GRPO with gated veto (kit)"}
POLICY_REPORTED = ("healthbench", "promedical_bench")
STUDY_REPORTED = ("proficiency", "excellence", "safety", "pairwise", "overall")
STUDY = (
    *policy_metrics.STUDY,
    "violations_less_base",
    "violations_less_full",
    "violations_over_base",
    "proficiency_less_base",
    "proficiency_less_full",
)
MIXED = "one set of notes, which mixes metrics of the reward model and of the policy"
REST = "not in the paper"
ABLATION = {  # reported variant -> the kit's own, as (study, variant)
    "full": (("reward_models", "criterion"), ("policies", "full")),
    "without explicit criteria": (
        ("reward_models", "scalar_blind"),
        ("reward_models", "scalar_overall"),
    ),
    "without safety data": (("reward_models", "no_safety_data"), ("policies", "no_safety_data")),
    "without safety veto": (("reward_models", "mean_of_criteria"), ("policies", "no_veto")),
    "without bonus margin": (("policies", "no_bonus"),),
    "implicit scalar + GRPO": (("policies", "implicit_scalar"),),
    "optimiser: DPO": (("policy_optimizers", "dpo"),),
    "optimiser: PPO": (("policy_optimizers", "rloo"),),
    "optimiser: GRPO": (("policy_optimizers", "full"),),
    REST: tuple(
        ("reward_models", name)
        for name in (
            "criterion_first",
            "fixed_heads",
            "only_one_dimension",
            "no_anchor",
            "criterion_full",
            "criterion_clean",
            "criterion_clean_lora",
        )
    ),
}
OF_REWARD = {  # column of the ablation -> (metric, slice) of a study of reward models
    "pairwise": ("pairwise", "all"),
    "pairwise_safety": ("pairwise", "safety"),
    "veto_f1": ("veto_f1", "safety"),
    "overall": ("overall", "all"),
}
OF_POLICY = {  # likewise, of a study of policies
    column: (policy_metrics.STUDY[column], "all")
    for column in ("compliance", "violations", "proficiency", "excellence_met", "bench_score")
}
EXTERNAL, TEXTS = ("q", "q_criteria", "q_sub"), ("Q", "Q + criteria", "Q + sub-criteria")
SETS = {
    "clinic": "external clinic (invented)",
    "mediqa": "MEDIQA-2019",
    "medquad": "MedQuAD, judged",
    "medical_rewardbench": "Medical RewardBench",
}
OUTSIDE = {  # (system, with retrieval) -> reported method whose way it is
    ("scalar_overall", False): "Ultra-Medical",
    ("rar_explicit", False): "RaR",
    ("rar_implicit", False): "RaR",
    ("orbit", False): "InfiMed-ORBIT",
    ("criterion", False): "ProMedical",
    ("criterion", True): "ProMedical-RAG",
    ("criterion_llama", False): "ProMedical",
    ("criterion_llama", True): "ProMedical-RAG",
}
NAMES_OUTSIDE = {  # of models that are no scorers of the bench
    "criterion_llama": "criterion RM, Llama (kit)",
    "rar_implicit": "RaR implicit, a reward model (kit)",
}


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


def build_graders(found: pd.DataFrame, names: Mapping, judge: str = RUN) -> pd.DataFrame:
    """Graders beside the bench's two physicians: balanced F1, of ``healthbench.judge_table``.

    ``f1`` is against both physicians, ``baseline`` one physician against the other, and the
    difference is over the same labels; f1_adjudicated and f1_truth are against those. ``judge``:
    status of the judge's rows, *input* where how often it errs is set.
    """
    at, rows = found.set_index(["grader", "slice", "against"]), []
    for grader, name in {"judge": "judge of the run (kit)", **names}.items():
        if grader.startswith("scalar") or grader in NO_VERDICTS:
            continue
        if grader not in set(found.grader):
            rows.append({"system": name, "slice": "all", "status": NOT_RUN})
            continue
        for part in ("all", *DIMENSIONS):
            own = at.loc[(grader, part, "physicians")]
            row = {
                "system": name,
                "slice": part,
                "status": judge if grader == "judge" else RUN,
                "labels": "physicians",
                "n": own.n,
            }
            for column, key in (
                ("f1", "mf1"),
                ("baseline", "baseline"),
                ("difference", "difference"),
            ):
                low, high = ("low", "high") if key == "mf1" else (f"{key}_low", f"{key}_high")
                row |= _with_interval(column, own[[key, low, high]])
            for who in ("adjudicated", "truth"):
                row |= _with_interval(
                    f"f1_{who}", at.loc[(grader, part, who), ["mf1", "low", "high"]]
                )
            rows.append(row)
    columns = ("f1", "baseline", "difference", "f1_adjudicated", "f1_truth")
    return (
        _beside(None, (), rows, columns, ("slice", "n")).drop(columns="mark").astype({"n": "Int64"})
    )


def build_seen_unseen(metrics, names) -> pd.DataFrame:
    """Pairwise accuracy on criterion kinds seen and unseen in training; none is reported."""
    return _beside(None, (), _scorers(metrics, names, SEEN, "adjudicated"), SEEN)


def sliced(
    tally,
    column: str,
    metric="overall",
    slice="all",
    draws: int = 1000,
    seed: int = 0,
    against: str = "adjudicated",
) -> pd.DataFrame:
    """One metric of every scorer by a column of the samples: ``column``, scorer, value, low, high,
    n.

    Shares. ``tally``: ``bench.tally``; the draws are those of the whole bench, so a part that is
    not drawn is left out of that draw.
    """
    parts = {"metric": metric, "slice": slice, "against": against}
    return tally.by(column, parts, draws, seed)[[column, "scorer", "value", "low", "high", "n"]]


def build_specialty(by_specialty: pd.DataFrame, names) -> pd.DataFrame:
    """Overall accuracy by specialty, from ``sliced(tally, "specialty")``."""
    place = {scorer: n for n, scorer in enumerate(names)}
    frame = by_specialty[by_specialty.scorer.isin(names)]
    frame = frame.sort_values(
        "scorer", key=lambda s: s.map(place), kind="stable", ignore_index=True
    )
    frame["system"] = frame.scorer.map(names)
    for end in ("", "_low", "_high"):
        frame[f"run_overall_accuracy{end}"] = (frame[end.lstrip("_") or "value"] * 100).round(2)
    return frame[["specialty", "system", "n", *frame.filter(like="run_")]]


def build_by_source(parts: pd.DataFrame, names) -> pd.DataFrame:
    """Pairwise accuracy by source, over all pairs and where the shorter answer is right."""
    frame = parts.assign(system=parts.scorer.map(names)).dropna(subset="system")
    frame = frame.rename(columns={"category": "source"})
    ends = {"value": "", "low": "_low", "high": "_high"}
    frame = frame.assign(**{end: (frame[end] * 100).round(2) for end in ends})
    wide = frame.pivot(index=["source", "system"], columns="slice", values=[*ends, "n"])
    wide.columns = [f"n_{s}" if c == "n" else f"run_pairwise_{s}{ends[c]}" for c, s in wide]
    order = [f"run_pairwise_{s}{end}" for s in dict.fromkeys(parts.slice) for end in ends.values()]
    order += [f"n_{s}" for s in dict.fromkeys(parts.slice)]
    return wide[order].reset_index().astype({c: int for c in order if c.startswith("n_")})


def build_policy(reported, evaluation, draws: int, seed: int, healthbench=None) -> pd.DataFrame:
    """Policies: reported scores beside this run's violations, S1, S2, bench score and compliance.

    ``evaluation`` is ``claims.readable``, one row a (policy, seed, instruction), or None; the last
    row is the difference paired by patient, in points. By the truth where the rows have it.
    ``healthbench``: ``healthbench.policy_column``; what it says where there is no score stands in a
    column of its own.
    """
    scores = healthbench or {"status": NOT_RUN, "rows": {}}
    names, found = dict(POLICY_NAMES), {}
    if evaluation is not None:
        against = policy_metrics.labels(evaluation)
        names |= {p: f"{p} (kit)" for p in dict.fromkeys(evaluation.policy) if p not in names}
        values = policy_metrics.measures(evaluation, draws=draws, seed=seed)
        if set(POLICY_NAMES) <= set(evaluation.policy):
            less = policy_metrics.paired(evaluation, "grpo", "base", draws=draws, seed=seed)
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
                rows[-1] |= _with_interval(column, ends, policy_metrics.METRICS[metric][1])
        if own := scores["rows"].get(policy):
            rows[-1] |= _with_interval(
                "healthbench", (own[end] for end in ("value", "low", "high")), 1
            )
        status = {"not testable": UNTESTED}.get(scores["status"], scores["status"])
        rows[-1]["healthbench"] = status if own or status != RUN else NOT_RUN
    return _beside(reported, POLICY_REPORTED, rows, [*POLICY, "healthbench"], ("healthbench",))


def build_policy_by(
    evaluation, verdicts, by: str, draws: int, seed: int, metrics=None, against=None
) -> pd.DataFrame:
    """Base and GRPO by dimension, specialty or category, with the paired difference in points.

    A row a slice and measure, "all" first; by dimension the criteria met, of ``verdicts``, else
    ``metrics`` of ``policy_metrics.METRICS``. ``n`` counts patients, by dimension criteria.
    ``evaluation`` None gives no rows. None of this is reported, so no such column is there.
    """
    metrics = metrics or (("met",) if by == "dimension" else ("violation_rate", "bench_score"))
    columns, rows = ("base", "grpo", "difference"), []
    if evaluation is not None:
        against = against or policy_metrics.labels(evaluation)
        asked = {"verdicts": verdicts, "draws": draws, "seed": seed}
        for part in (by,) if by == "dimension" else (None, by):
            each = policy_metrics.measures(evaluation, by=part, **asked)
            each = each.set_index(["policy", "slice", "metric", "against"])[
                ["value", "low", "high"]
            ]
            less = policy_metrics.paired(evaluation, "grpo", "base", metrics, by=part, **asked)
            for row in less[less.against == against].itertuples():
                key = (row.slice, row.metric, against)
                ends = [
                    each.loc[("base", *key)],
                    each.loc[("grpo", *key)],
                    (row.difference, row.low, row.high),
                ]
                what, factor = policy_metrics.METRICS[row.metric]
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

    ``study`` is ``studies.policies.table`` or None. Values are means over training seeds, with
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


def build_ablation(reported, studied: pd.DataFrame) -> pd.DataFrame:
    """The paper's ablation, each row followed by the kit's own of that name, and by which study.

    ``studied`` is of ``Study.ablation``: a row a (study, variant); a variant of ``ABLATION`` that
    it has not is *not run*. Percent; policies by the truth, reward
    models by the adjudicated labels. The notes of the paper mix metrics of both, so no column is
    shared.
    """
    found = studied.set_index(["study", "variant"]) if len(studied) else studied
    rows, columns = [], (*OF_REWARD, *OF_POLICY)
    for ablation, own in ABLATION.items():
        for study, variant in own:
            row = {
                "system": f"{variant} (kit)",
                "status": NOT_RUN,
                "ablation": ablation,
                "study": study,
            }
            if (study, variant) in found.index:
                ran = found.loc[(study, variant)]
                row |= {"system": f"{ran.label} (kit)", "remark": ran.remark, "seeds": ran.seeds}
                if ran.seeds:
                    row |= {"status": STUDY_RAN, "labels": ran.labels}
                for column in columns:  # a study of one kind has none of the other's columns
                    ends = [ran.get(f"{column}{end}") for end in ("", "_low", "_high")]
                    row |= _with_interval(column, ends, 1) if pd.notna(ends[0]) else {}
            rows.append(row)
    reported = reported.assign(ablation=reported.variant, remark=MIXED, study="")
    frame = _beside(reported, STUDY_REPORTED, rows, columns, ("study", "seeds", "remark"))
    frame.insert(0, "ablation", [*reported.ablation, *(row["ablation"] for row in rows)])
    place = {name: n for n, name in enumerate(ABLATION)}
    frame = frame.sort_values(
        "ablation", key=lambda a: a.map(place), kind="stable", ignore_index=True
    )
    return frame.astype({"seeds": "Int64"}).fillna({"remark": "", "study": ""})


def build_external(
    reported, found: pd.DataFrame | None, report: Mapping | None, names: Mapping
) -> pd.DataFrame:
    """RM pairwise accuracy outside: a row a set and system, the text that the RM is given as
    columns.

    ``found``: ``external.measures``, ``report``: external/report.json; None where 06 did not
    run. ``beside`` is the reported method whose way a row is. The reported rows name no set: by the
    kit's arithmetic theirs is most likely Medical RewardBench.
    """
    rows, sets = [], (report or {}).get("sets", {})
    for part, label in SETS.items():
        said = sets.get(part, {"status": NOT_RUN, "reason": "notebook 06 did not run"})
        if said["status"] == NOT_RUN:
            rows.append(
                {
                    "set": label,
                    "system": "every system (kit)",
                    "status": NOT_RUN,
                    "remark": said["reason"],
                }
            )
            continue
        place = {system: n for n, system in enumerate((*names, *NAMES_OUTSIDE))}
        measured = found[found["set"] == part].groupby(["system", "retrieval"], sort=False)
        ordered = sorted(measured, key=lambda group: (place.get(group[0][0], len(place)), group[0]))
        for (system, retrieval), ran in ordered:
            row = {
                "set": label,
                "system": _outside(system, retrieval, names),
                "status": RUN,
                "beside": OUTSIDE.get((system, retrieval), ""),
                "pairs": int(ran.n.max()),
            }
            for each in ran.itertuples():
                row |= _with_interval(each.text, (each.value, each.low, each.high))
            rows.append(row)
        for system, why in report["systems_not_run"].items():
            rows.append(
                {
                    "set": label,
                    "system": _outside(system, False, names),
                    "status": NOT_RUN,
                    "beside": OUTSIDE.get((system, False), ""),
                    "remark": why,
                }
            )
    frame = _beside(reported, EXTERNAL, rows, EXTERNAL, ("beside", "pairs", "remark"))
    frame.insert(0, "set", [*["as reported"] * len(reported), *(row["set"] for row in rows)])
    return frame.astype({"pairs": "Int64"}).fillna({"beside": "", "remark": ""})


def _outside(system: str, retrieval: bool, names: Mapping) -> str:
    name = NAMES_OUTSIDE.get(system) or names.get(system, f"{system} (kit)")
    return f"{name}, with retrieval" if retrieval else name


def subsets(predictions: pd.DataFrame, draws: int, seed: int) -> pd.DataFrame:
    """Medical RewardBench of external/predictions.parquet by subset, and their macro mean, as
    shares.

    Columns system, text, retrieval, subset ("macro mean" too), value, low, high. A subset that is
    not whole there has no mean. Draws are of conditions, then of instructions, as everywhere.
    """
    rows = predictions[predictions["set"] == "medical_rewardbench"]
    asked = rows[["instruction_id", "condition"]].drop_duplicates().sort_values("instruction_id")
    weights = statistics.two_stage_weights(asked.condition, draws, seed) if len(asked) else None
    place, made = pd.Index(asked.instruction_id), []
    for key, part in rows.groupby(["system", "text", "retrieval"], sort=False):
        hits, counts = np.zeros((2, len(asked), len(SUBSETS)))
        at = place.get_indexer(part.instruction_id), pd.Index(SUBSETS).get_indexer(part.subset)
        np.add.at(hits, at, part.prefers.eq(part.label).to_numpy(float))
        np.add.at(counts, at, 1)
        asks = {name: {n: 1.0} for n, name in enumerate(SUBSETS)}
        asks["macro mean"] = {n: 1 / len(SUBSETS) for n in range(len(SUBSETS))}
        for name, parts in asks.items():
            ran = statistics.contrast(hits, counts, parts, weights)
            made.append((*key, name, ran["difference"], ran["low"], ran["high"]))
    return pd.DataFrame(
        made, columns=["system", "text", "retrieval", "subset", "value", "low", "high"]
    )


def build_medical_rewardbench(reported, found: pd.DataFrame | None, names: Mapping) -> pd.DataFrame:
    """Medical RewardBench by subset; the macro mean of the reported subsets stands beside theirs.

    ``found``: ``subsets`` of this run, None or empty where the set could not be reached: *not run*.
    """
    columns, rows, texts = [*SUBSETS, "macro_mean"], [], dict(zip(EXTERNAL, TEXTS, strict=True))
    ran = [] if found is None else found.groupby(["system", "text", "retrieval"], sort=False)
    for (system, text, retrieval), part in ran:
        row = {"system": f"{_outside(system, retrieval, names)}, {texts[text]}", "status": RUN}
        for each in part.dropna(subset="value").itertuples():
            row |= _with_interval(each.subset.replace(" ", "_"), (each.value, each.low, each.high))
        rows.append(row)
    if not rows:
        systems = dict.fromkeys(system for system, _ in OUTSIDE)
        rows = [{"system": _outside(system, False, names), "status": NOT_RUN} for system in systems]
    frame = _beside(reported, [*SUBSETS, "average"], rows, columns)
    parts = frame[[f"reported_{name}" for name in SUBSETS]]
    by_pairs = (parts * list(SUBSETS.values())).sum(axis=1, skipna=False) / sum(SUBSETS.values())
    place = frame.columns.get_loc("reported_average") + 1
    frame.insert(place, "recomputed_macro_mean", parts.mean(axis=1, skipna=False).round(2))
    frame.insert(place + 1, "recomputed_mean_by_pairs", by_pairs.round(2))
    return frame


def build_rar(reported) -> pd.DataFrame:
    """RaR's reported table; the kit trains both of its rewards, on other measures than these
    two."""
    remark = "its reward is trained in the study policy_rewards, and measured on the bench"
    rows = [
        {"system": f"RaR, {way} (kit)", "status": NOT_RUN, "remark": remark}
        for way in ("explicit", "implicit")
    ]
    frame = _beside(
        reported,
        ("healthbench", "gpqa_diamond"),
        rows,
        ("healthbench", "gpqa_diamond"),
        ("remark",),
    )
    return frame.fillna({"remark": ""})


def build_data_pipeline(reported, funnel, rounds, expansion, judge_errors, profile) -> pd.DataFrame:
    """From raw rows to criterion pairs, reported beside this run; what is set is *input*.

    Frames are of funnel.csv, rounds.csv, expansion.csv and judge_errors.csv under data/, or None.
    In the clinic how often the writer and the judge err is set, so what is measured of them is
    *input* too.
    """
    known = {r.quantity: (float(r.value), r.mark) for r in reported.itertuples()}
    share = 100 * known["kept instructions"][0] / known["raw samples"][0]
    known["kept percent of raw"] = (share, "D")
    run, given, clinic = {}, set(), profile.data == "clinic"

    def ratio(name: str, hits, n, set_too: bool) -> None:
        low, high = statistics.wilson(int(hits), int(n))
        run[name] = tuple(round(100 * v, 2) for v in (hits / n, low, high))
        given.update([name] if set_too else [])

    if funnel is not None and len(funnel):
        raw, kept = int(funnel.before.iloc[0]), int(funnel.after.iloc[-1])
        run |= {"raw samples": raw, "kept instructions": kept}
        run |= {
            f"dropped or queued: {r.step}": int(r.before - r.after) for r in funnel.itertuples()
        }
        run["kept percent of raw"] = round(100 * kept / raw, 2)
        given |= {"raw samples"} if clinic else set()
    settings = {
        "difficulty kept low": profile.difficulty_least,
        "difficulty kept high": profile.difficulty_most,
        "review batch per round": profile.review_batch,
    }
    if clinic:
        settings |= {
            "physicians": 3,
            "judge agreement that is set percent": 100 * profile.judge_agreement,
            "strict pass rate that ends the review percent": 100 * profile.rubric_pass_rate,
        }
    run |= settings
    if rounds is not None and len(rounds) and (last := rounds.iloc[-1]).blind_n:
        run["review rounds"] = len(rounds)
        ratio("rubric strict pass rate percent", last.blind_passed, last.blind_n, clinic)
    if judge_errors is not None:
        n = judge_errors.n.sum()
        hits = n - round((judge_errors.rate * judge_errors.n).sum())
        ratio("judge agreement with experts percent", hits, n, clinic)
    if expansion is not None:
        run |= {
            "training verdicts": int(expansion.verdicts.sum()),
            "answers compared on a criterion": int(expansion.comparisons.sum()),
            "criterion pairs": int(expansion.pairs.sum()),
        }
        by = expansion.groupby("dimension").pairs.sum()
        run |= {f"criterion pairs, {d}": int(by.get(d, 0)) for d in DIMENSIONS}
    given |= set(settings)
    order = [
        "raw samples",
        *(n for n in run if n.startswith("dropped")),
        "kept instructions",
        "kept percent of raw",
        "difficulty kept low",
        "difficulty kept high",
        "review batch per round",
        "review rounds",
        "rubric strict pass rate percent",
        "physicians",
        "judge agreement with experts percent",
    ]
    order += [n for n in run if n not in order]
    rows = []
    for name in order:
        ends = run.get(name, ("",))
        value, low, high = (
            ends if isinstance(ends, tuple) and len(ends) == 3 else (run.get(name, ""), "", "")
        )
        said, mark = known.get(name, ("", ""))
        said = f"{round(said, 2):.10g}" if mark else ""
        status = INPUT if name in given else RUN if name in run else NOT_RUN
        rows.append((name, said, mark, *map(plain, (value, low, high)), status))
    return pd.DataFrame(
        rows, columns=["quantity", "reported", "mark", "run", "run_low", "run_high", "status"]
    )


def build_calibration(rows: pd.DataFrame, names: Mapping) -> pd.DataFrame:
    """Calibration error by scorer, dimension and where, before and after; from
    ``calibration_rows``.

    Percent points: the mean gap of share met and mean P(met), over ten bins of equal size.
    """
    made = []
    for (scorer, dimension, where), part in rows.groupby(
        ["scorer", "dimension", "where"], sort=False
    ):
        row = {
            "system": names.get(scorer, f"{scorer} (kit)"),
            "dimension": dimension,
            "where": where,
            "n": len(part),
        }
        for column, name in (("raw", "before"), ("probability", "after")):
            error = calibration.expected_error(part.label, part[column])
            row[f"run_error_{name}"] = round(100 * error, 2)
        made.append(row)
    return pd.DataFrame(
        made, columns=["system", "dimension", "where", "n", "run_error_before", "run_error_after"]
    )


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
            "bench weighted kappa": grades["kappa_quadratic"],
            "bench linear kappa": grades["kappa_linear"],
            "bench verdict kappa": verdicts["kappa"],
            "bench verdict agreement percent": verdicts["observed"] * 100,
        }
    run |= given
    order = [*reported.dimension, "categories", "specialties", "bench weighted kappa"]
    rows = [
        (
            q,
            *known.get(q, ("", "")),
            plain(run.get(q)),
            INPUT if q in given else RUN if q in run else NOT_RUN,
        )
        for q in dict.fromkeys([*order, *run])
    ]
    return pd.DataFrame(rows, columns=["quantity", "reported", "mark", "run", "status"])


def plain(value) -> str:
    """A cell as text: two decimals for fractions, none for counts, empty for nothing."""
    if pd.isna(value):
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def folded(text: pd.DataFrame) -> pd.DataFrame:
    """For reading: a value and its interval in one cell, no underscores in the header."""
    for low in [c for c in text if c.endswith("_low")]:
        column, high = low.removesuffix("_low"), low.replace("_low", "_high")
        whole = text[column] + " (" + text[low] + " to " + text[high] + ")"
        text = text.assign(**{column: text[column].where(text[low] == "", whole)})
        text = text.drop(columns=[low, high])
    return text.rename(columns=lambda c: c.replace("_", " "))


def save(
    df,
    folder: Path,
    name: str,
    title: str,
    sources,
    profile,
    seed: int,
    said: str = "",
    facts: Mapping | None = None,
) -> Path:
    """Write ``name``.csv, .md, .tex and .json (sources with sha256, profile, seed) to ``folder``.

    ``real_sets``: label -> path, or paths; ``said`` stands in place of ``note``; ``facts`` go into
    the json too. No dates and no machine's paths, so a rerun gives the same bytes. Returns the
    CSV's path.
    """
    folder, said, text = Path(folder), said or note(profile, seed), df.map(plain)
    read = folded(text)
    with replacing(folder / f"{name}.csv") as temporary:
        text.to_csv(temporary, index=False, lineterminator="\n")
    write_text(folder / f"{name}.md", f"## {title}\n\n{said}\n\n{markdown(read)}\n")
    tex = read.to_latex(index=False, escape=True)
    write_text(folder / f"{name}.tex", f"% {title}. {said}\n{tex}")
    made = {
        "table": name,
        "title": title,
        "note": said,
        "profile": profile.name,
        "seed": seed,
        "rows": len(df),
        "columns": list(df.columns),
        "sources": digests(sources),
    }
    write_json(folder / f"{name}.json", made | dict(facts or {}))
    return folder / f"{name}.csv"


def markdown(text: pd.DataFrame) -> str:
    """A frame of texts as a table in Markdown."""
    rows = [list(text), ["---"] * len(text.columns), *text.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows)


def digests(sources) -> dict[str, str]:
    """sha256 of each source, by its label: where it is below the run's folder.

    Not by its whole path, so that a redrawn reference has the same bytes.
    """
    if not isinstance(sources, Mapping):
        sources = {f"{path.parent.name}/{path.name}": path for path in map(Path, sources)}
    return {label: sha256(path) for label, path in sources.items()}
