"""The paper's tables for verdicts and scores of anybody's, and agreement of raters, from long
tables: ``docs/evaluate.md``. The rows become a bench and predictions, the rest is the kit's own."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pandas as pd
from pydantic import Field, create_model

from promedical_utils.core import long_table, plotting, statistics, workspace
from promedical_utils.core.records import Candidate, Criterion, Dimension, Instruction
from promedical_utils.core.workspace import KitError
from promedical_utils.evaluation import bench as benches
from promedical_utils.evaluation import scorers
from promedical_utils.evaluation.scorers import controls
from promedical_utils.paper import all_tables, registry
from promedical_utils.report import figures, tables
from promedical_utils.rubric import scoring
from promedical_utils.rubric.preferences import Group

VALUES = ["verdict", "score", "probability", "preferred"]
OWN, CRITERION = tables.OWN, ["instruction_id", "criterion_id"]


class Row(long_table.Row):
    """Without a system it is the label source's; without a criterion, of a whole answer."""

    instruction: str
    answer: str
    criterion: str = ""
    dimension: Dimension | None = None
    weight: float | None = Field(None, ge=0, allow_inf_nan=False)
    kind: str | None = None
    cluster: str | None = None
    text: str | None = None
    system: str = ""
    verdict: long_table.Verdict | None = None
    score: float | None = Field(None, allow_inf_nan=False)
    probability: float | None = Field(None, ge=0, le=1)
    other: str = ""  # the answer that this one is compared with
    preferred: long_table.Side | None = None


class Rating(long_table.Row):
    item: str
    rater: str
    instruction: str = ""
    criterion: str = ""
    cluster: str | None = None


def evaluate(
    files: Iterable, out: Path, mapping=None, draws=1000, seed=0, labels="own labels"
) -> dict[str, pd.DataFrame]:
    """Tables by name, written to ``out`` with figures and report.md, which also says what was
    assumed and left out.

    ``files``: long tables of ``Row``; ``mapping``: our name of a column -> its name there;
    ``labels``: what to call the label source. Intervals are over ``draws`` of clusters. KitError
    for what cannot be read, is there twice, contradicts another row, or is missing.
    """
    rows = long_table.read(files, Row, mapping, VALUES, "system")
    bench, groups, predicted, preferences, notes = load(rows)
    scored, by_criterion = [predicted], set(predicted.scorer[predicted.criterion_id != ""])
    told = by_criterion & set(rows.system[rows[["verdict", "probability"]].notna().any(axis=1)])
    for name, rule in product(sorted(told), scoring.RULES):
        own = benches.by_cell(name, predicted[predicted.scorer == name], bench.cells)
        made = scorers.scored_by_rule(rule, own, groups)  # no score if nothing gives points: a tie
        scored.append(made.assign(scorer=f"{name}\n{rule}").fillna({"score": 0.0}))
    scored = pd.concat(scored, ignore_index=True)
    sums = benches.tally(bench, scored, ["adjudicated"], preferences, shares=True)
    metrics = sums.table(draws, seed)
    silent = metrics.scorer.isin(by_criterion - told - {*tables.CONTROLS})
    of_verdicts = metrics.metric.isin(OWN["of_verdicts"]) | metrics.slice.eq("answers")
    lacks = silent & of_verdicts & ~metrics.metric.str.endswith(benches.RULES)
    if bench.verdicts.truth.eq("unknown").all():
        lacks |= metrics.metric.str.startswith(tuple(OWN["of_labels"]))
    metrics = metrics[~lacks & (metrics.n > 0)]
    names = {n: tables.CONTROLS.get(n, n) for n in metrics.scorer.unique() if "\n" not in n}
    parts = metrics[metrics.metric == "overall"].scorer.str.partition("\n")
    by_rule = metrics.assign(scorer=parts[0], slice=parts[2].replace("", "hierarchy"))
    veto, rules, shares = OWN["columns"].values()
    ceiling = bench.report.get("blind_ceiling")
    built = {
        "main_results": tables.build_main_results(None, metrics, names, ceiling),
        "safety_veto": tables.build_safety_veto(None, metrics, names, columns=veto),
        "overall_by_rule": tables.build_seen_unseen(
            by_rule, {n: n for n in names if n in told}, rules
        ),
        "ties_and_unknown": tables.build_seen_unseen(metrics, names, shares),
        "differences": differences(sums, metrics, names, draws, seed),
    }
    built = {name: own.replace({"labels": "adjudicated"}, labels) for name, own in built.items()}
    said = f"Labels: {labels}. 95 % intervals over {sums.clusters} clusters, {draws} draws."
    return _write(out, said, seed, notes, built, partial(registry.counted, metrics=metrics))


def _write(out: Path, said: str, seed: int, notes: list, built: dict, shown=pd.DataFrame) -> dict:
    """Save tables with their figures and report.md, and print the notes."""
    page, about = [], SimpleNamespace(name="own", seed=seed)
    for name, frame in built.items():
        if frame.filter(regex="^(run_|difference$|value$)").isna().all(axis=None):
            notes.append(f"the table {name} is left out: nothing here fills it")
            continue
        title = name.replace("_", " ")
        tables.save(frame, out / "tables", name, title, {}, about, said)
        page += [f"## {title}", all_tables.page(out, name)]
        if name in PLOTS:
            plotting.save(PLOTS[name], shown(frame), out / "figures", name, said)
            page.append(f"![{title}](figures/{name}.png)")
    listed = "\n".join(f"- {note}" for note in notes)
    text = "\n\n".join(["# Report", said, listed, *page, ""])
    print(listed, workspace.write_text(out / "report.md", text), sep="\n")
    return built


# ---------------------------------------------------------------- from rows to a bench


def load(rows: pd.DataFrame) -> tuple:
    """(bench, its groups, predictions, preferences or None, notes) of rows as of ``Row``."""
    answer, other = (rows.instruction + " / " + rows[column] for column in ("answer", "other"))
    rows = rows.assign(instruction_id=rows.instruction, criterion_id=rows.criterion)
    rows = rows.assign(candidate_id=answer, a_id=answer, b_id=other, scorer=rows.system)
    valued = rows[rows[VALUES].notna().any(axis=1)]
    if (twice := valued.duplicated(["scorer", *CRITERION, "a_id", "b_id"])).any():
        same = "an earlier row has the same instruction, criterion, answer and system"
        raise KitError(f"{valued.place[twice].iloc[0]}: {same}; drop one")
    said, criteria = valued[valued.scorer.eq("") & valued.verdict.notna()], _criteria(rows)
    groups = _groups(rows, said, criteria)
    clusters = _one(rows, ["instruction_id"], ["cluster"]).cluster
    samples = pd.DataFrame({"instruction_id": [group.instruction.id for group in groups]})
    own = samples.instruction_id.map(clusters).fillna(samples.instruction_id)
    bench = benches.of_labels(groups, samples.assign(condition=own), criteria)
    known = {answer.id for group in groups for answer in group.candidates}
    inside = valued.a_id.isin(known) & (valued.b_id.isin(known) | valued.other.eq(""))
    systems = valued.scorer.ne("").sum()
    notes = [f"{len(said)} verdicts of the label source, {systems} rows of systems"]
    notes += [f"{n} rows are left out: of answers without a label" for n in [(~inside).sum()] if n]
    notes += [why for column, why in OWN["absent"].items() if rows[column].isna().all()]
    notes += [] if len(said) else [OWN["no_labels"]]
    alone, compared = valued[inside & (valued.other == "")], valued[inside & (valued.other != "")]
    bench = _compared(bench, compared[compared.scorer == ""], notes)
    likely = compared.probability.fillna((compared.preferred.astype(float) + 1) / 2)
    stated = compared.assign(probability=likely, consistent=pd.NA)[scorers.PREFERRED]
    systems = alone[alone.scorer != ""].groupby("scorer", sort=False)
    predicted = {name: _predictions(name, own, notes) for name, own in systems}
    more = [] if rows.text.isna().all() else [benches.length_scorer(groups)]
    more += [controls.always(f"always_{n}", n == "met", groups) for n in ("met", "veto")]
    predicted |= {own.scorer.iloc[0]: own for own in more if own.scorer.iloc[0] not in predicted}
    frame = pd.concat(predicted.values(), ignore_index=True)
    stated = stated[stated.scorer != ""]
    return bench, groups, frame, stated if len(stated) else None, notes


def _one(rows: pd.DataFrame, key: list[str], columns: list[str]) -> pd.DataFrame:
    """The one value that all rows of a key have in each column; KitError where two differ."""
    groups = rows.groupby(key, sort=False)
    for column in columns:
        if (several := groups[column].transform("nunique") > 1).any():
            place, *names = rows[several].iloc[-1][["place", *key]]
            raise KitError(f"{place}, column {column}: another row of {', '.join(names)} differs")
    return groups[columns].first()


def _criteria(rows: pd.DataFrame) -> pd.DataFrame:
    """Criteria of the bench, the weights of proficiency divided by their sum; an instruction that
    names none has one that stands for the whole answer."""
    bare = rows[~rows.instruction.isin(rows.instruction[rows.criterion != ""])]
    bare = bare.assign(criterion_id="(whole answer)", dimension="proficiency", weight=1.0)
    named = pd.concat([rows[rows.criterion != ""], bare])
    frame = _one(named, CRITERION, ["dimension", "weight", "kind"]).reset_index()
    weight = frame.weight.fillna(1.0) if rows.weight.isna().all() else frame.weight
    weight = weight.where(frame.dimension == "proficiency", 0.0).astype(float)
    for column, lacks in (("dimension", frame.dimension.isna()), ("weight", weight.isna())):
        if lacks.any():
            names = " / ".join(frame[lacks][CRITERION].iloc[0])
            raise KitError(f"no row has the {column} of {names}: fill the column {column}")
    total = weight.groupby(frame.instruction_id).transform("sum")
    off = (total > 0) & ((total - 1).abs() > scoring.ROUNDING)
    frame = frame.assign(weight=weight.where(~off, weight / total), seen=True)
    return frame.fillna({"kind": "unspecified"})


def _groups(rows: pd.DataFrame, said: pd.DataFrame, criteria: pd.DataFrame) -> list[Group]:
    """Each instruction with its labelled answers; where nothing is labelled, with all."""
    verdicts, groups = said.set_index(benches.CELL).verdict.to_dict(), []
    texts = _one(rows, ["candidate_id"], ["text"]).text.dropna()
    rubrics = criteria.rename(columns={"criterion_id": "id"}).assign(text="")
    rubrics = {i: own.to_dict("records") for i, own in rubrics.groupby("instruction_id")}
    rows = rows[rows.candidate_id.isin(said.candidate_id)] if verdicts else rows
    for instruction, own in rows.groupby("instruction_id", sort=False):
        parts = tuple(Criterion.model_construct(**part) for part in rubrics[instruction])
        answers = dict.fromkeys([*own.a_id, *([] if verdicts else own.b_id[own.other != ""])])
        cells = {(a, c.id): verdicts.get((a, c.id)) for a, c in product(answers, parts)}
        for place in (" on ".join(cell) for cell, verdict in cells.items() if verdict is None):
            if verdicts:
                raise KitError(f"no verdict of {place}: add the row, unknown if nobody can say")
        cells = {cell: verdict or "unknown" for cell, verdict in cells.items()}
        texted = (Candidate.model_construct(id=a, text=texts.get(a, "")) for a in answers)
        groups.append(
            Group(Instruction.model_construct(id=instruction), parts, tuple(texted), cells)
        )
    return groups


def _compared(bench: benches.Bench, rows: pd.DataFrame, notes: list[str]) -> benches.Bench:
    """The bench with what the label source compared, in place of what its verdicts say."""
    of_answers, first = rows.criterion == "", rows.preferred > 0
    ids = {"chosen_id": rows.a_id.where(first, rows.b_id), "truth": "same"}
    rows = rows.assign(rejected_id=rows.b_id.where(first, rows.a_id), **ids)
    pairs, grades = rows[~of_answers & (rows.preferred != 0)], rows[of_answers]
    if len(pairs):
        notes.append(f"pairs are {len(pairs)} comparisons of the label source")
        pairs = pairs.drop(columns=["dimension", "kind", "weight"])
        pairs = pairs.merge(bench.criteria, on=CRITERION)[benches.PAIR]
        report = {"blind_ceiling": round(benches.blind_ceiling(pairs), 4)}
        bench = replace(bench, pairs=pairs, report=report)
    if len(grades):
        notes.append(f"overall is over {len(grades)} comparisons of the label source")
        grades = grades.assign(**dict.fromkeys(benches.LABELS, grades.preferred.astype(int)))
        bench = replace(bench, grades=grades[["instruction_id", "a_id", "b_id", *benches.LABELS]])
    return bench


def _predictions(name: str, own: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """``scorers.PREDICTED`` of one system."""
    whole = own.criterion == ""
    if whole.any() and not whole.all():
        place = own.place[whole].iloc[0]
        raise KitError(f"{place}: {name} has rows with and without a criterion; name these two")
    met, likely = own.verdict.map({"met": True, "not_met": False}), own.probability.astype(float)
    if own.verdict.isna().all() and likely.notna().any():
        notes.append(f"{name} gives probabilities and no verdict: met from a half on")
        met = likely.ge(0.5).where(likely.notna())
    likely = likely.fillna(met.astype(float))
    score = own.score.astype(float) if own.score.notna().any() else likely
    if not whole.any() and own.verdict.isna().all() and likely.isna().all():
        notes.append(f"{name} gives neither verdicts nor probabilities: {OWN['silent']}")
    frame = own.assign(score=score, probability=likely.where(~whole), met=met.where(~whole))
    return frame[scorers.PREDICTED].astype({"met": "boolean"})


# ---------------------------------------------------------------- differences, agreement


def differences(sums, metrics, names: Mapping, draws: int, seed: int) -> pd.DataFrame:
    """Every two systems, and each system's order by the hierarchy less that by a rule: measure, a,
    b, difference with its interval in points, n, p, and Holm's p over all."""
    keys = set(metrics[[*benches.KEY]].itertuples(index=False, name=None))
    column = {key: n for n, key in enumerate(sums.keys) if key in keys}
    systems, weights = [n for n in names if not n.startswith("always_")], sums.weights(draws, seed)
    pairs = [(what, *pair) for what in OWN["compared"] for pair in combinations(systems, 2)]
    pairs += [("overall", s.partition("\n")[0], s) for s in metrics.scorer.unique() if "\n" in s]
    rows = []
    for what, a, b in pairs:
        first, second = ((name, *OWN["compared"][what], "adjudicated") for name in (a, b))
        if first in column and second in column:
            by = " by the hierarchy" if "\n" in b else ""
            sides = names[a] + by, names.get(b, b.replace("\n", " by "))
            less = sums.combined({column[first]: 1.0, column[second]: -1.0}, weights)
            ends = [round(100 * less[end], 2) + 0.0 for end in ("difference", "low", "high")]
            p = statistics.p_value(less["difference"], 0, less["error"], less["df"])
            rows.append((what, *sides, *ends, less["n"], p))
    columns = ["measure", "a", "b", "difference", "low", "high", "n", "p"]
    frame = pd.DataFrame(rows, columns=columns)
    p = {"p": frame.p, "p_holm": statistics.holm(frame.p)}
    return frame.assign(**{name: pd.Series(own).map("{:.3g}".format) for name, own in p.items()})


def agreement(
    files: Iterable, out: Path, mapping=None, draws=1000, seed=0, levels: Sequence[str] = ()
) -> pd.DataFrame:
    """``statistics.reliability`` of long tables of ``Rating``, over all and by criterion, with
    every coefficient; written to ``out`` with a figure and report.md.

    ``levels``: all that a rater can choose, lowest first; without them those that occur, and where
    these are numbers they are ordered. Clusters are else instructions, and else items.
    """
    label = (Literal["", *levels] if levels else str, "")
    rows = long_table.read(files, create_model("Rating", __base__=Rating, label=label), mapping)
    key = ["instruction", "item", "criterion"]
    if (twice := rows.duplicated([*key, "rater"])).any():
        raise KitError(f"{rows.place[twice].iloc[0]}: the rater rated this before; drop one")
    given = rows[rows.label != ""]
    numbers = pd.to_numeric(given.label, errors="coerce")
    ordered = bool(levels) or bool(numbers.notna().all())
    if ordered and not levels:
        given = given.assign(label=numbers)
    order = [*levels] or sorted(given.label.unique())
    wide = given.pivot(index=key, columns="rater", values="label")
    items = wide.index.to_frame().join(_one(given, key, ["cluster"]))
    own = items.cluster.fillna(items.instruction.where(items.instruction != "", items["item"]))
    by = items.criterion if items.criterion.any() else None
    settings = {"draws": draws, "seed": seed, "every": True, "ordered": ordered}
    found = statistics.reliability(wide, order, by, own, **settings)
    said = f"{len(wide)} items, {len(wide.columns)} raters. "
    said += f"95 % intervals over {own.nunique()} clusters, {draws} draws."
    notes = [f"levels{', in this order' * ordered}: {', '.join(map('{}'.format, order))}"]
    notes.append(f"{len(given)} ratings; {len(rows) - len(given)} rows without a label")
    return _write(out, said, seed, notes, {"agreement": found})["agreement"]


def plot_differences(df: pd.DataFrame):
    """Of ``differences``."""
    row = df.measure + ": " + df.a + " less " + df.b
    return figures.intervals("paired", df.assign(row=row, value=df.difference))


def plot_agreement(df: pd.DataFrame):
    """A panel a coefficient of all raters, and Cohen's kappa of two, a row a criterion."""
    shown = df[(df.raters == "all") | (df.raters.nunique() == 2)]
    return figures.intervals("agreement", shown.assign(row=shown["slice"], panel=shown.coefficient))


PLOTS = {name: getattr(figures, f"plot_{name}") for name in ("main_results", "safety_veto")}
PLOTS |= {"differences": plot_differences, "agreement": plot_agreement}
