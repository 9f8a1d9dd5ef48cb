"""The paper's tables, reported values beside this run's, never in one column.

``build_*`` make the frame that is printed. Values are percent with two decimals, unless a name says
otherwise; names of rows and columns stand in ``names.yaml``.
"""

from collections.abc import Iterable, Mapping
from itertools import product
from pathlib import Path

import pandas as pd

from promedical_utils.core import profiles, statistics, workspace
from promedical_utils.core.estimates import ENDS, suffixed
from promedical_utils.core.records import DIMENSIONS
from promedical_utils.data.sources.judged import SUBSETS
from promedical_utils.evaluation import bench as benches
from promedical_utils.evaluation import external as external_sets
from promedical_utils.evaluation import policy_metrics
from promedical_utils.evaluation.scorers import HIERARCHIES
from promedical_utils.reward_model import calibration
from promedical_utils.rubric import scoring

READS = ("papers_figures/paper_values",)  # what a rerun of a notebook hangs on, besides code

RUN, NOT_RUN, INPUT, STUDY_RAN = "this run", "not run", "input", "study"
_NAMES = workspace.read_yaml(Path(__file__).with_name("names.yaml"))
MAIN, MORE, SEEN, RICH, VETO, OF_REWARD = _NAMES["columns"].values()
OF_BENCH = MAIN | MORE | SEEN | RICH | VETO  # column -> metric and slice of ``bench.tally``
GRADES = _NAMES["graders"]
POLICY = {column: policy_metrics.STUDY[column] for column in _NAMES["policy"]}
OF_POLICY = {column: (POLICY[column], "all") for column in _NAMES["ablation_policy"]}
ABLATION = {name: tuple(map(tuple, own)) for name, own in _NAMES["ablation"].items()}
*_, REST = ABLATION  # variants that are not in the paper
SETS, NAMES_OUTSIDE = _NAMES["sets"], _NAMES["names_outside"]
OUTSIDE = {(system, retrieval): method for system, retrieval, method in _NAMES["outside"]}
TEXTS = {"q": "Q", "q_criteria": "Q + criteria", "q_sub": "Q + sub-criteria"}
OWN = _NAMES["own"]
CONTROLS = {name: _NAMES["systems"][name] for name in ("length", "always_met", "always_veto")}
BLIND = "ceiling of criterion-blind scorers (kit)"
# scorers that do not say of each criterion whether it is met; nor do the scalar ones
NO_VERDICTS = {"length", "rar_implicit", "pair_rm", *scoring.RULES, *HIERARCHIES}
POLICY_NAMES = _NAMES["policies"]
MIXED = "one set of notes, which mixes metrics of the reward model and of the policy"


def reported(name: str) -> pd.DataFrame:
    """One CSV of reported values, with the mark of how each row is known."""
    return pd.read_csv(workspace.project_root() / f"papers_figures/paper_values/{name}.csv")


def systems(profile) -> dict[str, str]:
    """Every scorer of the bench and its name in tables: the kit's own, then those of others, "run
    by the kit", whose rows are not those of their reported values."""
    base = "small base" if profile.base_model == "small" else Path(profile.base_model).name
    trained = f"kit, {base}, {'QLoRA' if profile.quantization == 'nf4' else 'LoRA'}"
    own = {k: v.format(base=base, trained=trained) for k, v in _NAMES["systems"].items()}
    ids = {name: getattr(profile, name) for name in ("scalar_rm", "pair_rm", "verifier")}
    others = {name: Path(source).name for name, source in ids.items() if source}
    others |= {name: f"{name}, judge" for name in profile.judges}
    return own | {scorer: f"{name} (run by the kit)" for scorer, name in others.items()}


def note(profile) -> str:
    """What a reader must know of this run's values, under every table and figure."""
    clinic = profile.data == "clinic"
    where = " Run values: an invented clinic, no medical result." if clinic else ""
    smoke = " Smoke numbers are no results." if profile.name == "smoke" else ""
    return f"Profile {profile.name}, seed {profile.seed}.{where}{smoke}"


# ---------------------------------------------------------------- rows of a printed frame


def _printed(column: str, cell: Mapping, factor: float = 100) -> dict:
    """Value, low and high of a cell, as they are printed in a column."""
    return suffixed(f"run_{column}", [cell[end] for end in ENDS], factor, 2)


def system_rows(
    names: Mapping, values: pd.DataFrame, columns: Mapping, labels: str, by: str = "scorer"
) -> list[dict]:
    """A row a system of ``names``; ``values``: system (in ``by``), metric, slice, against, value,
    low, high; ``columns``: column -> (metric, slice)."""
    own = values[values.against == labels].to_dict("records")
    cells, rows = {(cell[by], cell["metric"], cell["slice"]): cell for cell in own}, []
    for key, system in names.items():
        printed = {}
        for column, (metric, part) in columns.items():
            if cell := cells.get((key, metric, part)):
                _, factor = policy_metrics.METRICS.get(metric, ("", 100))
                printed |= _printed(column, cell, factor)
        status = {"status": RUN, "labels": labels} if printed else {"status": NOT_RUN}
        rows.append({"system": system} | status | printed)
    return rows


def beside(reported, rows: list[dict], columns, said=(), first=()) -> pd.DataFrame:
    """Reported rows, then the kit's; every column there, in one order, even if nothing ran.

    ``said`` are further columns of either, before the values, ``first`` those before the system.
    """
    names, known = {}, []
    if reported is not None:
        names = {c: f"reported_{c}" for c in reported.select_dtypes("number")}
        renamed = reported.rename(columns={reported.columns[0]: "system"} | names)
        known = renamed.assign(status=NOT_RUN).to_dict("records")
    wide = [name for column in columns for name in suffixed(f"run_{column}")]
    order = [*first, "system", "status", "mark", *names.values(), "labels", *said, *wide]
    return pd.DataFrame([*known, *rows]).reindex(columns=order)


def _quantities(
    known: Mapping, measured: Mapping, given: Iterable[str], order: Iterable[str]
) -> pd.DataFrame:
    """``known``: quantity -> (reported, mark); ``measured`` -> value, or value, low and high; those
    of ``given`` are *input*."""
    rows = []
    for name in dict.fromkeys([*order, *measured]):
        values = measured.get(name, "")
        ends = values if isinstance(values, tuple) else (values, "", "")
        status = NOT_RUN if name not in measured else INPUT if name in given else RUN
        rows.append((name, *known.get(name, ("", "")), *map(plain, ends), status))
    columns = ["quantity", "reported", "mark", "run", "run_low", "run_high", "status"]
    return pd.DataFrame(rows, columns=columns)


# ---------------------------------------------------------------- the bench


def build_main_results(reported, metrics, names, ceiling=None, against="adjudicated"):
    """Of ``bench.tally``, with columns of the safety-rich bench, where there is one; ``ceiling`` is
    that of criterion-blind scorers, on all pairs."""
    rich = metrics["slice"].str.startswith(benches.RICH).any()
    columns = MAIN | MORE | (RICH if rich else {})
    rows = system_rows(names, metrics, columns, against)
    if ceiling is not None:
        row = {"system": BLIND, "status": RUN, "labels": "adjudicated"}
        rows.append(row | {"run_pairwise_all": round(ceiling * 100, 2)})
    return beside(reported, rows, columns)


def build_safety_veto(
    reported, metrics, names, against="adjudicated", columns=VETO
) -> pd.DataFrame:
    """Vetoes, a violation being the positive class, and the share of clean answers vetoed: every
    scorer at the paper's recall, or its best F1 (``bench.RULES``)."""
    rich = metrics["slice"].str.startswith(benches.RICH).any()
    columns = {c: at for c, at in columns.items() if rich or not at[1].startswith(benches.RICH)}
    return beside(reported, system_rows(names, metrics, columns, against), columns)


def build_seen_unseen(metrics, names, columns=SEEN) -> pd.DataFrame:
    """Pairwise accuracy on criterion kinds seen and unseen in training, or other ``columns``."""
    return beside(None, system_rows(names, metrics, columns, "adjudicated"), columns)


def build_graders(found: pd.DataFrame, names: Mapping, profile) -> pd.DataFrame:
    """Graders beside the bench's two physicians: balanced F1, of ``healthbench.judge_table``.

    ``f1`` is against both physicians, ``baseline`` one physician against the other, and the
    difference is over the same labels. In the clinic how often the judge errs is set: *input*.
    """
    judge = RUN if profiles.asks_endpoints(profile) else INPUT
    measured, rows = found.set_index(["grader", "slice", "against"]), []
    for grader, system in {"judge": "judge of the run (kit)", **names}.items():
        if grader not in set(found.grader):  # no verdicts, or it did not run
            if grader.startswith("scalar") or grader in NO_VERDICTS:
                continue
            rows.append({"system": system, "slice": "all", "status": NOT_RUN})
            continue
        for part in ("all", *DIMENSIONS):
            row = {"system": system, "slice": part, "labels": "physicians"}
            row["status"] = judge if grader == "judge" else RUN
            row["n"] = measured.n[(grader, part, "physicians")]
            for column, (labels, *ends) in GRADES.items():
                row |= suffixed(f"run_{column}", measured.loc[(grader, part, labels), ends], 100, 2)
            rows.append(row)
    frame = beside(None, rows, GRADES, ("slice", "n"))
    return frame.drop(columns="mark").astype({"n": "Int64"})


def build_by_source(parts: pd.DataFrame, names) -> pd.DataFrame:
    """Accuracy by source and whose labels these are, of ``registry.Run.by_source``."""
    parts = parts.rename(columns={"category": "source"})
    key, values, counts = ["source", "labels", "system"], [], []
    named = parts.assign(system=parts.scorer.map(names)).dropna(subset="system")
    for part, own in named.groupby("slice", sort=False):
        own = own.set_index(key).sort_index()
        column = "run_within_answers" if part == "within" else f"run_pairwise_{part}"
        values.append(own[[*ENDS]].mul(100).round(2).set_axis([*suffixed(column)], axis=1))
        counts.append(own.n.astype("Int64").rename(f"n_{part}"))
    blind = parts.drop_duplicates("source").assign(system=BLIND)
    blind["run_pairwise_all"] = blind.ceiling.mul(100).round(2)
    rows = pd.concat([*values, *counts], axis=1).reset_index()
    rows = pd.concat([rows, blind[[*key, "run_pairwise_all"]]])
    return rows.sort_values(["source", "system"], ignore_index=True)


def build_calibration(rows: pd.DataFrame, names: Mapping) -> pd.DataFrame:
    """Calibration error by scorer, dimension and where, before and after, in percent points: the
    mean gap of share met and mean P(met), over ten bins of equal size; from ``calibration_rows``.
    """
    errors = []
    for (scorer, *part), own in rows.groupby(["scorer", "dimension", "where"], sort=False):
        row = [names.get(scorer, f"{scorer} (kit)"), *part, len(own)]
        for column in ("raw", "probability"):
            row.append(round(100 * calibration.expected_error(own.label, own[column]), 2))
        errors.append(row)
    columns = ["system", "dimension", "where", "n", "run_error_before", "run_error_after"]
    return pd.DataFrame(errors, columns=columns)


def build_bench_composition(reported, pipeline, report: Mapping, profile) -> pd.DataFrame:
    """Counts of the bench; what the configuration sets is *input*."""
    known = {r.dimension: (r.criterion_pairs, r.mark) for r in reported.itertuples()}
    known |= {r.quantity: (f"{r.value:g}", r.mark) for r in pipeline.itertuples()}
    run = {dimension: counts["drawn"] for dimension, counts in report["pairs"].items()}
    run["total"] = sum(run.values())
    run |= {k: report[k] for k in ("samples", "categories", "specialties", "conditions")}
    run |= {f"{d} pairs in reserve": n["reserve"] for d, n in report["pairs"].items()}
    run["criteria of unseen kinds percent"] = report["unseen_share"] * 100
    if "fewer_answers" in report:
        run["samples with fewer than three answers"] = report["fewer_answers"]
    inputs, of_people = report["input"], _NAMES["bench_inputs"].items()
    given = {name: factor * inputs[part][key] for name, (part, key, factor) in of_people}
    order = [*reported.dimension, "categories", "specialties", "bench weighted kappa"]
    return _quantities(known, run | given, given, order).drop(columns=["run_low", "run_high"])


# ---------------------------------------------------------------- policies and studies


def _measured(evaluation, **settings) -> pd.DataFrame:
    """Measures of every policy and, of "difference", GRPO less base, paired by patient."""
    values = policy_metrics.measures(evaluation, **settings)
    if not {"base", "grpo"} <= set(evaluation.policy):
        return values
    less = policy_metrics.paired(evaluation, "grpo", "base", **settings)
    return pd.concat([values, less.assign(policy="difference", value=less.difference)])


def build_policy(reported, evaluation, draws: int, seed: int, healthbench=None) -> pd.DataFrame:
    """Policies; the last row is the difference paired by patient, in points.

    ``evaluation``: policy/evaluation.parquet, or None; by the truth where the rows have it.
    ``healthbench``: ``healthbench.policy_column``, whose status stands in a column of its own.
    """
    if evaluation is None:
        rows = [{"system": name, "status": NOT_RUN} for name in POLICY_NAMES.values()]
    else:
        values = _measured(evaluation, draws=draws, seed=seed)
        columns = {column: (metric, "all") for column, metric in POLICY.items()}
        labels = policy_metrics.labels(evaluation)
        rows = system_rows(POLICY_NAMES, values, columns, labels, "policy")
    scores = healthbench or {"status": NOT_RUN, "rows": {}}
    status = scores["status"].replace("not testable", "not testable in this profile")
    for policy, row in zip(POLICY_NAMES, rows, strict=True):
        if own := scores["rows"].get(policy):
            row |= _printed("healthbench", own, 1)
        row["healthbench"] = status if own or status != RUN else NOT_RUN
    return beside(reported, rows, [*POLICY, "healthbench"], ("healthbench",))


def build_policy_by(evaluation, verdicts, by: str, draws: int, seed: int) -> pd.DataFrame:
    """Base and GRPO with the paired difference in points: a row a measure and slice.

    By "dimension" the criteria met, of ``verdicts``, ``n`` of them; by a column of the patients
    violations and bench score, ``n`` patients.
    """
    labels, by_dimension = policy_metrics.labels(evaluation), by == "dimension"
    values = _measured(evaluation, verdicts=verdicts, by=by, draws=draws, seed=seed)
    values = values[values.against == labels].set_index(["metric", "slice", "policy"])
    metrics = ["met"] if by_dimension else ["violation_rate", "bench_score"]
    slices = DIMENSIONS if by_dimension else sorted(values.index.unique("slice"))
    rows = []
    for metric, part in product(metrics, slices):
        if (metric, part, "difference") in values.index:
            what, factor = policy_metrics.METRICS[metric]
            row = {by: part, "measure": what, "labels": labels}
            for policy in POLICY_NAMES:
                cell = values.loc[(metric, part, policy)]
                row |= {"n": cell.n} | _printed(policy, cell, factor)
            rows.append(row)
    columns = [name for policy in POLICY_NAMES for name in suffixed(f"run_{policy}")]
    return pd.DataFrame(rows, columns=[by, "measure", "labels", "n", *columns])


def of_study(row: Mapping, columns: Iterable[str], ran: str) -> dict:
    """A row of a study, whose columns are in percent there, as it is printed; ``ran``: its status
    where it was trained."""
    names = [name for column in columns for name in suffixed(column)]
    printed = {f"run_{name}": round(row[name], 2) + 0.0 for name in names}  # no -0.0
    status = {"status": ran} if row["seeds"] else {"status": NOT_RUN, "labels": None}
    return {**row, "system": f"{row['label']} (kit)"} | status | printed


def build_ablation(reported, studied: pd.DataFrame) -> pd.DataFrame:
    """The paper's ablation, each row followed by the kit's own of that name, and by which study.

    ``studied`` is of ``Study.ablation``: a row a (study, variant); a variant of ``ABLATION`` that
    it has not is *not run*. The notes of the paper mix metrics of reward model and policy, so no
    column is shared.
    """
    ran = {(row["study"], row["variant"]): row for row in studied.to_dict("records")}
    rows, columns = [], (*OF_REWARD, *OF_POLICY)
    for ablation, own in ABLATION.items():
        for study, variant in own:
            row = {"study": study, "system": f"{variant} (kit)", "status": NOT_RUN}
            if result := ran.get((study, variant)):
                row = of_study(result, columns, STUDY_RAN)
            rows.append(row | {"ablation": ablation})
    reported = reported.assign(ablation=reported.variant, remark=MIXED, study="")
    frame = beside(reported, rows, columns, ("study", "seeds", "remark"), ["ablation"])
    order = frame.ablation.map([*ABLATION].index).argsort(kind="stable")
    frame = frame.iloc[order].reset_index(drop=True)
    return frame.astype({"seeds": "Int64"}).fillna({"remark": "", "study": ""})


# ---------------------------------------------------------------- outside


def build_external(
    reported, found: pd.DataFrame | None, report: Mapping | None, names: Mapping
) -> pd.DataFrame:
    """RM pairwise accuracy outside: a row a set and system, a column a text that the RM is given.

    ``found``: ``external.measures``, ``report``: external/report.json; None where 06 did not
    run. ``beside`` is the reported method whose way a row is; the reported rows name no set.
    """
    rows, sets = [], (report or {}).get("sets", {})
    for part, label in SETS.items():
        state = sets.get(part, {"status": NOT_RUN, "reason": "notebook 06 did not run"})
        if state["status"] == NOT_RUN:
            row = {"set": label, "system": "every system (kit)", "status": NOT_RUN}
            rows.append(row | {"remark": state["reason"]})
            continue
        own = found[found["set"] == part]
        order = list(dict.fromkeys([*names, *NAMES_OUTSIDE, *sorted(own.system)]))
        own = own.assign(order=own.system.map(order.index)).sort_values(["order", "retrieval"])
        for key, cells in own.groupby(["system", "retrieval"], sort=False):
            row = {"set": label, "system": _outside(*key, names), "status": RUN}
            row |= {"beside": OUTSIDE.get(key, ""), "pairs": int(cells.n.max())}
            for cell in cells.to_dict("records"):
                row |= _printed(cell["text"], cell)
            rows.append(row)
        for system, why in report["systems_not_run"].items():
            row = {"set": label, "system": _outside(system, False, names), "status": NOT_RUN}
            rows.append(row | {"beside": OUTSIDE.get((system, False), ""), "remark": why})
    reported, said = reported.assign(set="as reported"), ("beside", "pairs", "remark")
    frame = beside(reported, rows, TEXTS, said, ["set"])
    return frame.astype({"pairs": "Int64"}).fillna({"beside": "", "remark": ""})


def _outside(system: str, retrieval: bool, names: Mapping) -> str:
    name = NAMES_OUTSIDE.get(system) or names.get(system, f"{system} (kit)")
    return f"{name}, with retrieval" if retrieval else name


def build_medical_rewardbench(
    reported, predictions: pd.DataFrame | None, names: Mapping, draws: int, seed: int
) -> pd.DataFrame:
    """Medical RewardBench by subset; the macro mean of the reported subsets stands beside theirs.
    ``predictions``: external/predictions.parquet; *not run* where it is None or lacks the set."""
    rows = [] if predictions is None else _by_subset(predictions, names, draws, seed)
    if not rows:
        known = dict.fromkeys(system for system, _ in OUTSIDE)
        rows = [{"system": _outside(system, False, names), "status": NOT_RUN} for system in known]
    reported = reported[[reported.columns[0], *SUBSETS, "average", "mark"]]
    frame = beside(reported, rows, [*SUBSETS, "macro_mean"])
    parts = frame[[f"reported_{name}" for name in SUBSETS]]
    by_pairs = (parts * list(SUBSETS.values())).sum(axis=1, skipna=False) / sum(SUBSETS.values())
    place = frame.columns.get_loc("reported_average") + 1
    frame.insert(place, "recomputed_macro_mean", parts.mean(axis=1, skipna=False).round(2))
    frame.insert(place + 1, "recomputed_mean_by_pairs", by_pairs.round(2))
    return frame


def _by_subset(predictions: pd.DataFrame, names: Mapping, draws: int, seed: int) -> list[dict]:
    """A row a system and text; the macro mean unless a subset is missing."""
    own = predictions[predictions["set"] == "medical_rewardbench"]
    if own.empty:
        return []
    sums = external_sets.estimates(own, ("system", "text", "retrieval", "subset"))
    weights, rows = sums.weights(draws, seed), []
    for (system, text, retrieval), columns in sums.without("subset").items():
        row = {"system": f"{_outside(system, retrieval, names)}, {TEXTS[text]}", "status": RUN}
        for column in columns:
            row |= _printed(sums.keys[column][-1], sums.value([column], weights))
        if len(columns) == len(SUBSETS):
            row |= _printed("macro_mean", sums.value(columns, weights))
        rows.append(row)
    return rows


def build_rar(reported) -> pd.DataFrame:
    """RaR's reported table; the kit trains both of its rewards, on other measures than these."""
    remark = "its reward is trained in the study policy_rewards, and measured on the bench"
    row = {"status": NOT_RUN, "remark": remark}
    rows = [row | {"system": f"RaR, {way} (kit)"} for way in ("explicit", "implicit")]
    columns = ("healthbench", "gpqa_diamond")
    return beside(reported, rows, columns, ("remark",)).fillna({"remark": ""})


def build_testbed(found: pd.DataFrame) -> pd.DataFrame:
    """How a reward goes wrong, of ``testbed.measured``; each test with where it was described."""
    values = found[[*ENDS]].round(2).set_axis([*suffixed("run_value")], axis=1)
    return found[["test", "dose", "measure", "origin", "n"]].join(values)


# ---------------------------------------------------------------- the data pipeline


def build_data_pipeline(reported, funnel, rounds, expansion, judge_errors, profile) -> pd.DataFrame:
    """From raw rows to criterion pairs; what is set is *input*, in the clinic also what is measured
    of the writer and the judge, since how often they err is set there.

    Frames are of funnel.csv, rounds.csv, expansion.csv and judge_errors.csv under data/, or None.
    """
    values = {r.quantity: (float(r.value), r.mark) for r in reported.itertuples()}
    share = 100 * values["kept instructions"][0] / values["raw samples"][0]
    values["kept percent of raw"] = (share, "D")
    known = {name: (f"{round(value, 2):.10g}", mark) for name, (value, mark) in values.items()}
    clinic = profile.data == "clinic"
    settings = _NAMES["settings"] | (_NAMES["clinic_settings"] if clinic else {})
    given = {name: factor * getattr(profile, key) for name, (key, factor) in settings.items()}
    inputs = {*given, *(_NAMES["set_in_the_clinic"] if clinic else ())}
    given |= {"physicians": 3} if clinic else {}
    measured = _of_curation(funnel) | given | _of_review(rounds, judge_errors)
    if expansion is not None:
        counts, pairs = expansion.sum(numeric_only=True), expansion.groupby("dimension").pairs.sum()
        measured |= {name: int(counts[column]) for name, column in _NAMES["expansion"].items()}
        measured |= {f"criterion pairs, {name}": int(pairs.get(name, 0)) for name in DIMENSIONS}
    dropped = [name for name in measured if name.startswith("dropped")]
    return _quantities(known, measured, inputs, ["raw samples", *dropped, *_NAMES["pipeline"]])


def _of_curation(funnel: pd.DataFrame | None) -> dict[str, float]:
    if funnel is None or not len(funnel):
        return {}
    raw, kept = int(funnel.before.iloc[0]), int(funnel.after.iloc[-1])
    lost = {f"dropped or queued: {s.step}": int(s.before - s.after) for s in funnel.itertuples()}
    counts = {"raw samples": raw, "kept instructions": kept} | lost
    return counts | {"kept percent of raw": round(100 * kept / raw, 2)}


def _of_review(rounds: pd.DataFrame | None, judge_errors: pd.DataFrame | None) -> dict:
    measured: dict = {}
    if rounds is not None and len(rounds):
        measured["review rounds"] = len(rounds)
        # a last round in which physicians saw all that was left has no blind sample of its own
        for last in rounds[rounds.blind_n > 0][-1:].itertuples():
            measured["rubric strict pass rate percent"] = _percent(last.blind_passed, last.blind_n)
    if judge_errors is not None:
        n = judge_errors.n.sum()
        hits = n - round((judge_errors.rate * judge_errors.n).sum())
        measured["judge agreement with experts percent"] = _percent(hits, n)
    return measured


def _percent(hits: int, n: int) -> tuple[float, ...]:
    """A share with Wilson's interval."""
    ends = (hits / n, *statistics.wilson(int(hits), int(n)))
    return tuple(round(100 * float(value), 2) for value in ends)


# ---------------------------------------------------------------- printed and saved


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
    df, folder: Path, name: str, title: str, sources: Mapping, profile, said="", facts=None
) -> Path:
    """Write ``name``.csv, .md, .tex and .json to ``folder``; returns the CSV's path.

    ``sources``: label -> path; ``said`` stands in place of ``note``; ``facts`` go into the json
    too. No dates and no machine's paths, so a rerun gives the same bytes.
    """
    folder, said, text = Path(folder), said or note(profile), df.map(plain)
    read = folded(text)
    path = workspace.write_frame(folder / f"{name}.csv", text)
    workspace.write_text(folder / f"{name}.md", f"## {title}\n\n{said}\n\n{markdown(read)}\n")
    tex = read.to_latex(index=False, escape=True)
    workspace.write_text(folder / f"{name}.tex", f"% {title}. {said}\n{tex}")
    made = {"table": name, "title": title, "note": said, "profile": profile.name}
    made |= {"seed": profile.seed, "rows": len(df), "columns": list(df.columns)}
    made |= {"sources": digests(sources), **(facts or {})}
    workspace.write_json(folder / f"{name}.json", made)
    return path


def markdown(text: pd.DataFrame) -> str:
    """A frame of texts as a table in Markdown."""
    rows = [list(text), ["---"] * len(text.columns), *text.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in rows)


def digests(sources: Mapping[str, Path]) -> dict[str, str]:
    """sha256 of each source, by its label: not by its whole path, so that a redrawn reference has
    the same bytes."""
    return {label: workspace.sha256(path) for label, path in sources.items()}
