"""Figures of the paper, drawn from a CSV: reported values hollow, this run's filled.

``plot_*`` take a data frame and give a Figure; columns, colours and markers of what they show stand
in ``figures.yaml``.
"""

import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator
from seaborn import objects as so

from promedical_utils.core import plotting
from promedical_utils.core.estimates import ENDS, suffixed
from promedical_utils.core.plotting import BLUE, CHANCE, GREY, ORANGE, RED, canvas, draw_legend
from promedical_utils.core.verdicts import CONTRADICTS, UNTESTED
from promedical_utils.core.workspace import read_yaml
from promedical_utils.evaluation.bench import RECALLS
from promedical_utils.reward_model.calibration import reliability

INTERVALS, CURVES, STYLES = read_yaml(Path(__file__).with_suffix(".yaml")).values()
About = str | Mapping  # an interval plot: its name in figures.yaml, or what else stands there
LINES = {  # label in the legend, "" for none, and style
    "chance": ("chance", CHANCE),
    "zero": ("", {"color": GREY, "lw": 0.8, "ls": "--"}),
    "base": ("base", {"color": "black", "lw": 0.9, "ls": "--", "zorder": 1}),
}


def styles_of(figure: str) -> dict[str, dict]:
    """What is drawn -> its style, in the order of the legend."""
    styles = STYLES[figure].items()
    return {name: style | {"color": getattr(plotting, style["color"])} for name, style in styles}


# ---------------------------------------------------------------- values with their intervals


def _about(figure: About) -> Mapping:
    return INTERVALS[figure] if isinstance(figure, str) else figure


def names_of(figure: About) -> dict:
    """Column of a table, or value in it -> what an interval plot calls it."""
    return {key: name for key, (name, *_) in _about(figure)["shows"].items()}


def looks_of(figure: About) -> dict[str, dict[str, str]]:
    """What an interval plot calls something -> its colour and marker."""
    return {
        name: {"color": getattr(plotting, colour), "marker": marker}
        for name, colour, marker in _about(figure)["shows"].values()
    }


def intervals(figure: About, cells: pd.DataFrame, **more) -> Figure:
    """An interval plot, with ``more`` options than it has by itself."""
    about = _about(figure)
    options, cells = about.get("options", {}) | more, cells.assign(**about.get("cells", {}))
    line = LINES.get(options.pop("line", ""))
    return plotting.interval_plot(cells, looks_of(figure), line=line, **options)


def tidy(df: pd.DataFrame, figure: About, rows: str = "system", kind: str = "") -> pd.DataFrame:
    """A printed table as the cells of an interval plot, row by row: row, series and panel (what the
    plot calls the column, and how many items it counts where a column n_... says so), hollow
    (reported), value, low, high, and what else the row says.

    ``kind`` stands before the names of the columns. Rows without any value are left out.
    """
    df, parts = df.reset_index(drop=True), []
    for (column, name), source in product(names_of(figure).items(), ("reported", "run")):
        ends = df.reindex(columns=[*suffixed(f"{source}_{kind}{column}")]).astype(float)
        n = df.get(f"n_{kind}{column}")
        panel = name if n is None else f"{name}\nn = {n.iloc[0]:,}"
        cell = {"series": name, "panel": panel, "hollow": source == "reported"}
        parts.append(df.assign(row=df[rows], **cell, **ends.set_axis([*ENDS], axis=1)))
    cells = pd.concat(parts).sort_index(kind="stable")
    known = cells.value.notna().groupby(level=0).transform("any")
    return cells[known].reset_index(drop=True)


def plot_table(df: pd.DataFrame, figure: About) -> Figure:
    """An interval plot from the printed table of the same name."""
    return intervals(figure, tidy(df, figure))


plot_main_results = partial(plot_table, figure="main_results")
plot_safety_veto = partial(plot_table, figure="safety_veto")
plot_seen_unseen = partial(plot_table, figure="seen_unseen")


def claims_forest(df: pd.DataFrame) -> Figure:
    """How far each claim's checks lie above their bounds, of ``paper.claims.frame``.

    The weakest check of a claim is bold, its others are thin; the margin of an equivalence is a
    grey band. What the paper reports is hollow, where it is of the same unit. Beside it the
    training seeds of the weakest check; untested claims are counted below.
    """
    untested = df[df.claim_verdict == UNTESTED].claim.nunique()
    df = df[df.difference.notna() & (df.claim_verdict != UNTESTED)]
    factors = df.unit.map({"points": 1, "criteria": 100})  # counted by answer, in hundredths
    ends = df[["difference", "low", "high"]].sub(df.above, axis=0).mul(factors, axis=0)
    df = df.assign(weakest=df.weakest.astype(bool), **ends.set_axis([*ENDS], axis=1))
    shown, looks = df[df.weakest], styles_of("claims_forest")
    figure, [[axis]] = canvas(11, 1.6 + 0.42 * len(shown))
    units = shown.unit.map({"points": "", "criteria": " (1/100 criteria)"})
    units = units.astype(str)  # none in smoke
    rows = [textwrap.fill(text, width=66) for text in shown.says + units]
    shown = shown.assign(y=plotting.name_rows(axis, rows).astype(float))
    # the others of a claim are spread below it
    number = (~df.weakest).groupby(df.claim).cumsum()
    step = 0.36 / number.groupby(df.claim).transform("max").clip(lower=3)
    away = np.where(df.weakest, 0.1, -0.02 - number * step)
    y = df.claim.map(shown.set_index("claim").y).astype(float)  # none at all in smoke
    df = df.assign(y=y + away)
    for (verdict, bold), part in df.groupby(["verdict", "weakest"]):
        look = {"fmt": looks[verdict]["marker"], "color": looks[verdict]["color"]}
        look |= {"ms": 5, "capsize": 3} if bold else {"ms": 2, "alpha": 0.5}
        plotting.draw_interval(axis, *part[["y", *ENDS]].to_numpy().T, **look)
    small = {"fontsize": 8, "color": GREY}
    for label, row in zip(axis.get_yticklabels(), shown.itertuples(), strict=True):
        label.set_color(looks[row.claim_verdict]["color"])
        label.set_fontweight("bold" if row.claim_verdict == CONTRADICTS else "normal")
        beside = ("axes fraction", "data")
        axis.annotate(f"{row.seeds:.0f}", (1.02, row.y), xycoords=beside, va="center", **small)
        if pd.notna(row.within):
            band = {"color": GREY, "lw": 7, "alpha": 0.3, "solid_capstyle": "butt"}
            axis.plot([-row.within, row.within], [row.y + 0.1] * 2, **band)
    axis.annotate("seeds", (1.0, 1.0), xycoords="axes fraction", **small)
    hollow = {"marker": "D", "mfc": "white", "mec": "black"}
    reported = shown[shown.unit == "points"]
    axis.plot(reported.reported, reported.y + 0.1, ls="", ms=5, **hollow)
    axis.axvline(0, color="black", lw=0.9)
    for y in shown.drop_duplicates("where").y[1:]:  # a line between the tables
        axis.axhline(y + 0.5, color=GREY, lw=0.6, ls=":")
    below = f"not testable here: {untested} more claims"
    axis.set_xlabel(f"points above the claim's bound, 95 % interval; {below}")
    marks = {name: look for name, look in looks.items() if name in set(df.verdict)}
    marks |= {"other checks of the claim": {"marker": "o", "color": GREY, "ms": 3}}
    draw_legend(figure, marks | {"reported": hollow})
    return figure


def plot_veto_curve(df: pd.DataFrame) -> Figure:
    """Precision of vetoes over the share of violations that they find, a panel each for kinds seen
    in training and unseen; dotted: everything vetoed, and the recall of the paper's model."""
    figure, axes = canvas(8, 5.4, 2, sharey=True)
    styles, top = styles_of("veto_curve"), 100 * df.precision.max()
    for axis, (kinds, own) in zip(axes.flat, df.groupby("kinds"), strict=False):
        for scorer, style in styles.items():
            curve = own[own.scorer == scorer]
            axis.plot(100 * curve.recall, 100 * curve.precision, lw=1.6, **style)
        axis.axhline(100 * own.base.iloc[0], **CHANCE)
        axis.axvline(100 * RECALLS["paper"], **CHANCE)
        axis.set(xlabel="violations found (%)", xlim=(0, 102), ylim=(0, min(102, 1.1 * top)))
        axis.set_title(f"safety criteria of kinds {kinds} in training", fontsize=10)
    axes.flat[0].set_ylabel("vetoes that hit a violation (%)")
    names = dict(zip(df.scorer, df.system, strict=True))
    marks = {names[scorer]: style for scorer, style in styles.items() if scorer in names}
    marks["everything vetoed; the paper's recall"] = CHANCE
    draw_legend(figure, marks)
    return figure


def plot_testbed(df: pd.DataFrame) -> Figure:
    """A panel a test of the testbed, dose by dose, with intervals: its first measure."""
    tests = df.groupby("test", sort=False)
    rows = -(-len(tests) // 2)
    figure, axes = canvas(9.5, 1.9 * rows, 2, rows)
    for axis, (test, own) in zip(axes.flat, tests, strict=False):
        own = own[own.measure == own.measure.iloc[0]]
        places, style = np.arange(len(own))[::-1], {"fmt": "o", "color": BLUE, "ms": 4}
        plotting.draw_interval(axis, places, own.value, own.low, own.high, **style)
        axis.set(yticks=places, yticklabels=own.dose, xlim=(0, 100))
        axis.set_title(test, fontsize=10)
        label = textwrap.fill(f"{own.measure.iloc[0]}, n\u00a0=\u00a0{own.n.max()}", 45)
        axis.set_xlabel(label, fontsize=9)
    for axis in axes.flat[len(tests) :]:
        axis.axis("off")
    return figure


def plot_dimensions(df: pd.DataFrame) -> Figure:
    """Pairwise (top) and pointwise accuracy, of ``tables.build_main_results``: no radar, since of
    points on one scale a reader can see whether intervals part."""
    blocks = [
        tidy(df, "dimensions", kind=f"{kind}_").assign(block=f"{kind} accuracy", line=chance)
        for kind, chance in (("pairwise", 50), ("pointwise", np.nan))
    ]
    return intervals("dimensions", pd.concat(blocks))


def plot_graders(df: pd.DataFrame) -> Figure:
    """Balanced F1, a panel a slice, of ``tables.build_graders``. The band is the interval of one
    physician against the other: what agreement with physicians can be hoped for."""
    cells = tidy(df, "graders")
    cells = cells.assign(panel="balanced F1, " + cells["slice"] + " (%)")
    band = {"color": GREY, "alpha": 0.35}
    more = {"one physician against the other": {"marker": "s", "ms": 9, **band}}
    figure = intervals("graders", cells, more=more)
    baselines = cells.drop_duplicates("panel")[["run_baseline_low", "run_baseline_high"]]
    for axis, ends in zip(figure.axes, baselines.to_numpy(float), strict=True):
        axis.axvspan(*ends, lw=0, **band)
    return figure


def plot_external(df: pd.DataFrame) -> Figure:
    """RM pairwise accuracy outside, a panel a set that ran, of ``tables.build_external``; colour
    and marker are the text that the RM is given."""
    cells = tidy(df, "external")
    pairs = cells.groupby("set").pairs.transform("max")
    counts = pairs.map(lambda n: f", {int(n):,} pairs" if pd.notna(n) else "")
    return intervals("external", cells.assign(block=cells["set"] + counts))


def plot_policy_by(df: pd.DataFrame) -> Figure:
    """Base beside GRPO, and the difference paired by patient, of ``tables.build_policy_by``."""
    cells = tidy(df, "policy_by", rows=df.columns[0])
    paired = cells.series == "paired difference"
    values = cells.measure.str.replace(" (", "\n(", regex=False)
    less = cells.measure.str.rpartition(" (")[0] + ":\nGRPO less base (points)"
    cells = cells.assign(panel=values.where(~paired, less), line=np.where(paired, 0, np.nan))
    return intervals("policy_by", cells)


def plot_accuracy(
    df: pd.DataFrame, panels: Mapping[str, tuple[str, str]], ceiling: float | None = None
) -> Figure:
    """A panel a metric, a row a scorer, from a table of ``bench.tally`` (shares); ``panels``: label
    -> (metric, slice); ``ceiling`` is that of criterion-blind scorers."""
    labels = [f"{label} (%)" for label in panels]
    wanted = pd.DataFrame(panels.values(), columns=["metric", "slice"]).assign(panel=labels)
    cells = wanted.merge(df[df.n > 0], on=["metric", "slice"])
    order = list(dict.fromkeys([*plotting.OF_SCORER, *cells.scorer]))
    cells = cells.sort_values("scorer", key=lambda s: s.map(order.index), kind="stable")
    shown = {"row": cells.scorer, "series": cells.against.map(names_of("accuracy"))}
    shown["line"] = np.where(cells.metric == "pairwise", 50, np.nan)
    cells = cells.assign(**cells[[*ENDS]] * 100, **shown)
    blind = {"color": "black", "lw": 0.9, "ls": "--"}
    more = {} if ceiling is None else {"ceiling without criteria": blind}
    figure = intervals("accuracy", cells, more=more, panels=labels)
    for axis in figure.axes if more else ():
        if panels.get(axis.get_xlabel().removesuffix(" (%)")) == ("pairwise", "all"):
            axis.axvline(ceiling * 100, **blind)
    return figure


def plot_paired(df: pd.DataFrame) -> Figure:
    """Paired differences in points; columns what, difference, low, high, above (the bound)."""
    bound = {"marker": "|", "color": RED}
    more = {"what it has to stay above": bound | {"ms": 14}}
    figure = intervals("paired", df.assign(row=df.what, value=df.difference), more=more)
    figure.axes[0].plot(df.above, range(len(df)), ls="", ms=18, zorder=1.9, **bound)
    return figure


def plot_judge_errors(df: pd.DataFrame) -> Figure:
    """Where a judge errs: columns dimension, error (lenient | strict), rate, low, high (fractions)
    and n; ``lenient`` lets pass what the expert finds not met."""
    ends = (100 * df[["rate", "low", "high"]]).set_axis([*ENDS], axis=1)
    cells = df.assign(row=df.dimension, series=df.error.map(names_of("judge_errors")), **ends)
    figure = intervals("judge_errors", cells.assign(note=df.n.map("n = {:,}".format)))
    figure.axes[0].set_xlim(0, 1.2 * cells.high.max())  # room for the notes
    return figure


# ---------------------------------------------------------------- curves


def _calibration(bins: pd.DataFrame, styles: Mapping[str, dict], x_label: str) -> Figure:
    """Share met over the probability (fractions) by ``panel``; ``curve``: a name in ``styles``."""
    panels = list(dict.fromkeys(bins.panel))
    figure = Figure(figsize=(3.3 * len(panels), 4.1), layout="constrained")
    bins = bins.assign(**bins[["probability", "met", "low", "high"]] * 100)
    plot = so.Plot(bins, "probability", "met", color="curve", marker="curve", linestyle="curve")
    plot = plot.facet("panel", order=panels).share(x=True, y=True)
    plot = plot.add(so.Range(linestyle="-", linewidth=1), ymin="low", ymax="high", legend=False)
    plot = plot.add(so.Line(pointsize=4, linewidth=1.2), legend=False)
    for prop, key in (("color", "color"), ("marker", "marker"), ("linestyle", "ls")):
        plot = plot.scale(**{prop: {name: style[key] for name, style in styles.items()}})
    plot = plot.label(x=x_label, y="criteria that are met (%), 95 % interval", title=str)
    plot.theme(plotting.THEME).on(figure).plot()
    for axis in figure.axes:
        axis.plot([0, 100], [0, 100], color="black", lw=0.8)
        axis.set(xlim=(-2, 102), ylim=(-2, 102))
    draw_legend(figure, {name: style for name, style in styles.items() if name in set(bins.curve)})
    return figure


def plot_calibration(df: pd.DataFrame) -> Figure:
    """Share met beside what the reward model says, of ``registry.reliability``, a panel a
    dimension, with each curve's error; on the diagonal what is said is what is."""
    styles = styles_of("calibration")
    curve = df["where"].where(df.version == "P(met)", df["where"] + ": " + df.version)
    bins = df.assign(curve=curve, panel=df.dimension)[curve.isin(list(styles))]
    figure = _calibration(bins, styles, "P(met) that is said (%)")
    small = {"fontsize": 8, "ha": "right"}
    small["bbox"] = {"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1}
    for axis, (_, own) in zip(figure.axes, bins.groupby("panel", sort=False), strict=True):
        errors = own.groupby("curve").error.first()
        shown = [name for name in styles if name in errors]
        texts = [(f"{errors[name]:.1f}", styles[name]["color"]) for name in shown]
        for n, (text, colour) in enumerate([*reversed(texts), ("error (points)", GREY)]):
            height = 0.03 + 0.065 * n  # below the diagonal there is room
            axis.text(0.98, height, text, color=colour, transform=axis.transAxes, **small)
    return figure


def plot_reliability(df: pd.DataFrame) -> Figure:
    """Share met beside P(met) in bins of equal size, before and after calibration; columns
    dimension, label, raw (sigmoid of the score) and probability (calibrated)."""
    panels = {"raw": "before: sigmoid of the score", "probability": "after: P(met), calibrated"}
    parts, styles, markers = [], {}, dict(zip(sorted(set(df.dimension)), "os^", strict=False))
    for (column, panel), dimension in product(panels.items(), markers):
        part = df[df.dimension == dimension]
        curve = f"{dimension}, n = {len(part)}"
        parts.append(reliability(part.label, part[column]).assign(panel=panel, curve=curve))
        colour = plotting.OF_DIMENSION[dimension]
        styles[curve] = {"color": colour, "marker": markers[dimension], "ls": "-"}
    return _calibration(pd.concat(parts, ignore_index=True), styles, "probability (%)")


def _known(df: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The curves of an axis that have a value: column -> label, colour, marker, dashes."""
    names = ["label", "colour", "marker", "dashes"]
    shown = pd.DataFrame.from_dict(CURVES[axis], orient="index", columns=names)
    shown["colour"] = [getattr(plotting, colour) for colour in shown.colour]
    return shown[[column in df and df[column].notna().any() for column in shown.index]]


def _draw_curves(axis, df: pd.DataFrame, x: str, shown: pd.DataFrame, legend=False) -> None:
    """Lines of ``shown``, in the order of the rows; nothing is averaged."""
    wide = df.set_index(x)[[*shown.index]].set_axis([*shown.label], axis=1)
    style = {"palette": [*shown.colour], "markers": [*shown.marker], "dashes": [*shown.dashes]}
    style |= {"estimator": None, "sort": False, "markersize": 5, "mew": 0}
    sns.lineplot(wide, ax=axis, legend=legend, **style)


def plot_policy_curve(df: pd.DataFrame) -> Figure:
    """GRPO on held-out prompts, from policy/curve.csv; the vertical line is the checkpoint that is
    kept. A series or a panel without a value is left out: data without truth have no gold."""
    percent = [column for column in CURVES["answers (%)"] if column in df]
    df = df.assign(**100 * df[percent])
    panels = {label: shown for label in CURVES if len(shown := _known(df, label))}
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = canvas(3.4 * columns, 2.75 * rows, columns, rows)
    for axis, (label, shown) in zip(axes.flat, panels.items(), strict=False):
        several = len(shown) > 1
        _draw_curves(axis, df, "step", shown, "full" if several else False)
        axis.set(ylabel=label, xlabel="optimiser step (line: kept)")
        if label != "reward":  # a share or an amount, and zero is none of it
            axis.set_ylim(0, 1.1 * axis.dataLim.y1 or 1)
        if several:  # above the axes, where no line is
            spot = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1), "borderaxespad": 0.2}
            axis.legend(ncols=2 + (len(shown) == 3), fontsize=7, columnspacing=1, **spot)
        if (kept := _kept(df)) is not None:
            axis.axvline(df.step[kept], color="black", lw=0.8, ls="--", zorder=1)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    return figure


def _kept(df: pd.DataFrame):
    """Index of the evaluation whose policy is kept: the first of the best by judged reward."""
    return df.judged.idxmax() if df.judged.notna().any() else None


def plot_gold_over_kl(df: pd.DataFrame, names: Mapping | None = None) -> Figure:
    """Proxy, gold and judged reward over KL to the base, a panel a ``run`` where there are several.

    Columns of policy/curve.csv and, for several, ``run``; ``names``: column -> what it is called.
    On a square-root axis, as Gao, Schulman and Hilton draw it (arXiv:2210.10760); numbers are
    optimiser steps, the ring is the kept checkpoint.
    """
    df = df if "run" in df else df.assign(run="")
    runs, shown = df[df.kl.notna()].groupby("run", sort=False), _known(df, "reward")
    shown["label"] = shown.index.to_series().map(names or {}).fillna(shown.label)
    figure, [axes] = canvas(0.9 + 4.3 * len(runs), 3.9, len(runs), sharey=True)
    ring = {"marker": "o", "mfc": "none", "mec": "black", "ms": 9, "mew": 0.8}
    for axis, (run, part) in zip(axes, runs, strict=True):
        part = part.sort_values("step")
        _draw_curves(axis, part, "kl", shown)
        _set_root_scale(axis, part.kl.max())
        axis.set_title(run, fontsize=9)
        _write_steps(axis, part, shown.index[0])
        if (kept := _kept(part)) is not None:
            for column in shown.index:
                axis.plot(part.kl[kept], part[column][kept], ls="", **ring)
    axes[0].set_ylabel("reward on held-out prompts")
    marks = {
        curve.label: {"color": curve.colour, "marker": curve.marker, "ls": "-"}
        for curve in shown.itertuples()
    }
    draw_legend(figure, marks | ({"kept": ring} if df.judged.notna().any() else {}))
    return figure


def _root(values):
    return np.sign(values) * np.sqrt(np.abs(values))  # below zero is the margin on the left


def _set_root_scale(axis, top: float) -> None:
    """A square-root axis from 0 to ``top``, with one more tick near zero, where it has room."""
    top = max(top, 1e-9)
    axis.set_xscale("function", functions=(_root, lambda values: np.sign(values) * values**2))
    axis.set_xlim(-0.002 * top, 1.1 * top)
    axis.set_xlabel("KL to the base (nats an answer, square-root axis)")
    ticks = [tick for tick in MaxNLocator(5).tick_values(0, top) if 0 < tick <= 1.1 * top]
    ticks = [0, float(f"{ticks[0] / 4:.1g}"), *ticks]
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axis.margins(y=0.1)


def _write_steps(axis, part: pd.DataFrame, column: str) -> None:
    """The step above the points of a column, where there is room for it beside the one before."""
    high, last = _root(part.kl.max()) or 1, -1.0
    above = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center", "fontsize": 7}
    for kl, value, step in part[["kl", column, "step"]].sort_values("kl").itertuples(index=False):
        if _root(kl) / high - last > 0.055:
            axis.annotate(f"{step:g}", (kl, value), color=GREY, **above)
            last = _root(kl) / high


def plot_training(df: pd.DataFrame) -> Figure:
    """Loss and pair accuracy by optimiser step; columns scorer, step, loss, accuracy."""
    figure, [axes] = canvas(9, 3.2, 2)
    panels = {"loss": "loss (nats)", "accuracy": "training pairs ordered rightly (%)"}
    df = df.assign(accuracy=100 * df.accuracy)
    style = {"hue": "scorer", "style": "scorer", "palette": plotting.OF_SCORER}
    style |= {"markers": True, "x": "step", "errorbar": None}
    for axis, (column, label) in zip(axes, panels.items(), strict=True):
        sns.lineplot(df, y=column, ax=axis, legend=axis is axes[0], **style)
        axis.set(xlabel="optimiser step", ylabel=label)
    axes[0].legend(title="", fontsize=7)
    axes[1].axhline(50, **CHANCE)
    return figure


def plot_pass_rate(df: pd.DataFrame, aimed: float) -> Figure:
    """Strict pass rate (fractions) by round, on the blind sample with its interval, of
    ``review.rounds``; ``aimed`` is the rate at which the rounds may end."""
    blind = df.dropna(subset="blind_pass_rate")
    figure, [[axis]] = canvas(6, 3.2)
    rates = 100 * blind.blind_pass_rate
    axis.plot(blind["round"], rates, "o-", color=BLUE, zorder=3)
    axis.vlines(blind["round"], 100 * blind.low, 100 * blind.high, color=BLUE)
    axis.plot(df["round"], 100 * df.pass_rate, "s", color=ORANGE)
    aim = {"color": "black", "ls": "--", "lw": 1}
    axis.axhline(100 * aimed, **aim)
    marks = {"blind sample, 95 % interval": plotting.FILLED | {"color": BLUE}}
    marks |= {"batch before it": {"marker": "s", "color": ORANGE}, "aimed at": aim}
    draw_legend(figure, marks)
    axis.set(xlabel="review round", ylabel="drafts passed unchanged (%)", xticks=df["round"])
    axis.set_ylim(top=min(103, axis.get_ylim()[1]))
    axis.margins(x=0.08)
    return figure


# ---------------------------------------------------------------- bars, maps and boxes


def plot_funnel(df: pd.DataFrame) -> Figure:
    """What curation leaves: columns step, before, dropped, queued and after, a row a step."""
    dropped = df.dropped.map(lambda count: f"   −{count:,}" if count else "")
    queued = df.queued.map(lambda count: f"   {count:,} queued" if count else "")
    ends = df.after.map("{:,}".format) + dropped + queued
    parts = {"let through": df.after, "dropped or queued": df.before - df.after}
    wide = pd.DataFrame(parts).set_axis(df.step)
    figure = plotting.stacked_bars(wide, "instructions", (BLUE, "#bbbbbb"), ends=ends)
    figure.axes[0].set_xlim(0, 1.25 * df.before.max())
    return figure


def plot_composition(df: pd.DataFrame) -> Figure:
    """Criteria of a rubric: columns category, and a dimension each with its mean count."""
    return plotting.stacked_bars(df.set_index("category"), "criteria a rubric, mean")


def plot_grades(df: pd.DataFrame) -> Figure:
    """Two physicians' grades of the same pairs, counts; columns physician_1, physician_2."""
    grades = {-2: "-2", -1: "-1", 0: "0", 1: "+1", 2: "+2"}
    counts = pd.crosstab(df.physician_1, df.physician_2)
    counts = counts.reindex(index=list(grades), columns=list(grades), fill_value=0)
    counts = counts.rename(index=grades, columns=grades)
    figure, [[axis]] = canvas(4.2, 3.8)
    sns.heatmap(counts, annot=True, fmt="d", square=True, cmap="Blues", cbar=False, ax=axis)
    axis.set(xlabel="physician 2 (+: the first answer is better)", ylabel="physician 1")
    return figure


def plot_packed_mask(starts: Sequence[int], allowed: np.ndarray) -> Figure:
    """Attention mask of one packed sequence: ``starts`` of its criteria, and the end; ``allowed``
    (T, T) bool."""
    kind = np.where(allowed, np.where(np.arange(len(allowed)) < starts[0], 1, 2), 0)  # 0: not read
    figure, [[axis]] = canvas(6.4, 6)
    axis.imshow(kind, cmap=ListedColormap(["white", plotting.SKY, RED]), vmin=0, vmax=2)
    axis.grid(False)
    for number, (start, end) in enumerate(pairwise([0, *starts])):
        text = f"c{number}" if number else "prompt and response"
        axis.text(len(allowed) + 2, (start + end) / 2, text, va="center", fontsize=8)
        axis.axhline(end - 0.5, color=GREY, lw=0.4)
        axis.axvline(end - 0.5, color=GREY, lw=0.4)
    axis.set(xlabel="token that is read", ylabel="token that reads")
    marks = {"shared": {"color": plotting.SKY}, "own criterion": {"color": RED}}
    marks["not read"] = plotting.HOLLOW
    draw_legend(figure, {name: {**style, "marker": "s"} for name, style in marks.items()})
    return figure


def plot_reward_order(df: pd.DataFrame, rewards: Mapping[str, str]) -> Figure:
    """Reward of every (s1, s2, s3); ``rewards``: column -> title, a panel each, a row an S3."""
    figure, [axes] = canvas(9, 2.6, len(rewards), sharey=True)
    for axis, (column, title) in zip(axes, rewards.items(), strict=True):
        points = axis.scatter(df[column], df.s3, c=df.s1, cmap="cividis", marker="|", s=320)
        for s3, part in df.groupby("s3"):
            axis.axvline(part[column].max(), color=GREY, lw=0.6, ls=":" if s3 else "-")
        axis.set_title(title, fontsize=9)
        axis.set(xlabel="reward", yticks=sorted(df.s3.unique()), ylim=(df.s3.max() + 0.6, -0.6))
    axes[0].set_ylabel("violations, S3")
    figure.colorbar(points, label="S1")
    return figure


def plot_overview(df: pd.DataFrame) -> Figure:
    """The pipeline as boxes: columns box, row, column, title, run and reported (texts), and
    ``after``, the boxes beside it or above that it comes from, joined by "|"."""
    size, gap = np.array([2.0, 1.0]), np.array([2.5, 1.45])  # width and height
    last = np.array([df["column"].max(), df["row"].max()])
    figure, [[axis]] = canvas(*(last + 1) * (2.0, 1.35) + (0, 0.25))
    right, bottom = last * gap * (1, -1) + (size[0], 0)
    axis.set(xlim=(-0.1, right + 0.1), ylim=(bottom - 0.1, size[1] + 0.1))
    axis.axis("off")
    centres = {r.box: gap * (r.column, -r.row) + size / 2 for r in df.itertuples()}
    look = {"boxstyle": "round,pad=0.04", "fc": "#e8f1f8", "ec": BLUE, "lw": 1.2}
    for r in df.fillna("").itertuples():
        middle, height = centre = centres[r.box]
        axis.add_patch(FancyBboxPatch(centre - size / 2, *size, **look))
        title = {"va": "top", "fontsize": 9, "weight": "bold"}
        axis.text(middle, height + size[1] / 2 - 0.04, r.title, ha="center", **title)
        axis.text(middle, height + 0.02, r.run, ha="center", va="center", fontsize=8.5)
        if r.reported:
            small = {"va": "bottom", "fontsize": 8, "color": GREY, "style": "italic"}
            axis.text(middle, height - size[1] / 2, f"reported: {r.reported}", ha="center", **small)
        for name in filter(None, r.after.split("|")):
            # from edge to edge, and a little away from both
            reach = np.sign(centre - centres[name]) * (size / 2 + 0.06)
            arrow = {"arrowstyle": "->", "color": GREY, "lw": 1.2}
            axis.annotate("", centre - reach, centres[name] + reach, arrowprops=arrow)
    return figure
