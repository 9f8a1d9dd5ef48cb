"""Figures of the paper, drawn from a CSV: reported values hollow, this run's filled.

``plot_*`` take a data frame and give a Figure. ``plotting.save`` writes the CSV first and draws
from what it wrote; ``plotting.show`` draws in a notebook.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise, product

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator
from seaborn import objects as so

from promedical_utils.core.plotting import (
    BLUE,
    CHANCE,
    FILLED,
    GREEN,
    GREY,
    HOLLOW,
    OF_DIMENSION,
    OF_SCORER,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    THEME,
    canvas,
    draw_legend,
    interval_plot,
    stacked_bars,
)
from promedical_utils.reward_model.calibration import reliability

# ---------------------------------------------------------------- values with their intervals


def tidy(df: pd.DataFrame, columns: Mapping[str, str], rows: str = "system") -> pd.DataFrame:
    """A printed table as tidy rows, a row a cell: row, series (its name in ``columns``) and panel
    (the same), hollow (reported), value, low, high, and what else the table says of the row.

    Rows without any value are left out.
    """
    cells = []
    for row in df.to_dict("records"):
        own = []
        for column, series in columns.items():
            for source in ("reported", "run"):
                ends = (row.get(f"{source}_{column}{end}", np.nan) for end in ("", "_low", "_high"))
                cell = dict(zip(("value", "low", "high"), ends, strict=True))
                own.append({"series": series, "panel": series, "hollow": source == "reported"})
                own[-1] |= cell
        if any(pd.notna(cell["value"]) for cell in own):
            cells += [row | {"row": row[rows]} | cell for cell in own]
    return pd.DataFrame(cells)


def _panels(df: pd.DataFrame, shown: Mapping[str, tuple[str, str]], more=None) -> Figure:
    """A panel a column of a table; ``shown``: column -> (label with its unit, colour)."""
    cells = tidy(df, {column: label for column, (label, _) in shown.items()})
    looks = {label: (colour, "o") for label, colour in shown.values()}
    return interval_plot(cells, looks, more=more)


AT_CHANCE = {"chance": CHANCE}  # of a legend


def _with_chance(figure: Figure, panels: int | None = None) -> Figure:
    """A line at 50 percent in all panels, or in the first ones."""
    for axis in figure.axes[:panels]:
        axis.axvline(50, **CHANCE)
    return figure


def plot_main_results(df: pd.DataFrame) -> Figure:
    """Overall and pairwise safety accuracy by system, from ``tables.build_main_results``."""
    overall, safety = "overall accuracy (%)", "pairwise accuracy, safety (%)"
    return _panels(df, {"overall_accuracy": (overall, BLUE), "pairwise_safety": (safety, RED)})


def plot_safety_veto(df: pd.DataFrame) -> Figure:
    """Veto precision, recall and F1 by system, from ``tables.build_safety_veto``."""
    names = {"precision": ("precision", SKY), "recall": ("recall", ORANGE), "f1": ("F1", RED)}
    return _panels(df, {c: (f"{name} on violations (%)", hue) for c, (name, hue) in names.items()})


def plot_dimensions(df: pd.DataFrame) -> Figure:
    """Pairwise (top) and pointwise accuracy by dimension, from ``tables.build_main_results``.

    A row a system and a column a dimension, not a radar: of points on one scale a reader can tell
    a difference of five and see whether intervals part; a radar's area grows with the square, hangs
    on the order of its spokes, and has no room for intervals.
    """
    blocks = []
    for kind in ("pairwise", "pointwise"):
        cells = tidy(df, {f"{kind}_{name}": f"{name} (%)" for name in OF_DIMENSION})
        blocks.append(cells.assign(block=f"{kind} accuracy"))
    looks = {f"{name} (%)": (colour, "o") for name, colour in OF_DIMENSION.items()}
    figure = interval_plot(pd.concat(blocks), looks, more=AT_CHANCE)
    return _with_chance(figure, len(OF_DIMENSION))


def plot_graders(df: pd.DataFrame) -> Figure:
    """Balanced F1 of graders, a panel a slice, from ``tables.build_graders``.

    The band is the interval of one physician against the other: what agreement with physicians can
    be hoped for. A grader may be above it against the truth, which the clinic knows.
    """
    looks = {"against physicians": (BLUE, "o"), "against the truth": (ORANGE, "D")}
    cells = tidy(df, dict(zip(("f1", "f1_truth"), looks, strict=True)))
    cells = cells.assign(panel="balanced F1, " + cells["slice"] + " (%)")
    band = {"marker": "s", "color": GREY, "alpha": 0.35, "ms": 9}
    figure = interval_plot(cells, looks, more={"one physician against the other": band})
    baselines = cells.drop_duplicates("panel")[["run_baseline_low", "run_baseline_high"]]
    for axis, ends in zip(figure.axes, baselines.to_numpy(float), strict=True):
        axis.axvspan(*ends, color=GREY, alpha=0.35, lw=0)
    return figure


def plot_external(df: pd.DataFrame) -> Figure:
    """RM pairwise accuracy outside, a panel a set, from ``tables.build_external``.

    A row a system; colour and marker are the text that the RM is given. The reported panel first; a
    set that did not run has none.
    """
    looks = {"Q": (GREY, "s"), "Q + criteria": (BLUE, "o"), "Q + sub-criteria": (GREEN, "D")}
    cells = tidy(df, dict(zip(("q", "q_criteria", "q_sub"), looks, strict=True)))
    pairs = cells.groupby("set").pairs.transform("max")
    counts = pairs.map(lambda n: f", {int(n):,} pairs" if pd.notna(n) else "")
    cells = cells.assign(block=cells["set"] + counts, panel="pairs ordered rightly (%)", group="")
    return _with_chance(interval_plot(cells, looks, more=AT_CHANCE, limits=None, panel_width=5))


def plot_seen_unseen(df: pd.DataFrame) -> Figure:
    """Pairwise accuracy on seen and unseen criterion kinds, from ``tables.build_seen_unseen``."""
    looks = {"kinds seen in training": (BLUE, "o"), "kinds unseen in training": (ORANGE, "s")}
    cells = tidy(df, dict(zip(("pairwise_seen", "pairwise_unseen"), looks, strict=True)))
    cells = cells.assign(panel="pairwise accuracy (%)")
    return _with_chance(interval_plot(cells, looks, more=AT_CHANCE, panel_width=5))


def plot_policy_by(df: pd.DataFrame) -> Figure:
    """Base beside GRPO by dimension or specialty, from ``tables.build_policy_by``.

    For each measure the values, and the difference paired by patient, all with their intervals.
    """
    looks = {"base": (ORANGE, "s"), "GRPO": (BLUE, "o"), "paired difference": (GREEN, "D")}
    columns = dict(zip(("base", "grpo", "difference"), looks, strict=True))
    cells = tidy(df, columns, rows=df.columns[0])
    paired = cells.measure.str.rpartition(" (")[0] + ":\nGRPO less base (points)"
    values = cells.measure.str.replace(" (", "\n(", regex=False)
    panel = paired.where(cells.series == "paired difference", values)
    cells = cells.assign(panel=panel, group=cells.row == "all")
    figure = interval_plot(cells, looks, limits=None, panel_width=2.8)
    for axis in figure.axes[1::2]:
        axis.axvline(0, color=GREY, lw=0.8, ls="--")
    return figure


def plot_policy_study(df: pd.DataFrame) -> Figure:
    """Violations, S1 and bench score, a row a variant; from ``studies.policies.table``.

    Small points are training seeds, the line is the interval over patients, the dashed line the
    base; a cross is a reward without a veto. Hollow: violations that are plainly said, a safety
    criterion not met, where the others are unknown. A dotted line parts groups.
    """
    panels = {
        "violations": "answers with a violation (%)",
        "proficiency": "proficiency S1 (%)",
        "bench_score": "ProMedical-Bench score (0 to 100)",
    }
    looks = {"veto in the reward": (BLUE, "o"), "no veto": (RED, "X")}
    of_base, df = df[df.variant == "base"], df[df.variant != "base"].reset_index(drop=True)
    names = df.label.where(df.seeds > 0, df.label + " (not run)")
    series = df.veto.astype(bool).map(dict(zip((True, False), looks, strict=True)))
    parts = []
    for column, label in panels.items():
        ends = {"value": df[column], "low": df[f"{column}_low"], "high": df[f"{column}_high"]}
        part = pd.DataFrame({"row": names, "series": series, "group": df.group.fillna(""), **ends})
        parts.append(part.assign(panel=label, hollow=False))
    plain = {"value": df.plain_violations, "low": np.nan, "high": np.nan, "hollow": True}
    cells = pd.concat([*parts, parts[0].assign(**plain)], ignore_index=True)
    more = {"base": {"color": "black", "ls": "--", "lw": 0.9}}
    if (df.seeds > 1).any():
        more["a training seed"] = {"marker": ".", "color": GREY, "ms": 4}
    hollow = "plainly said, the rest unknown"
    figure = interval_plot(cells, looks, hollow, more, limits=None, panel_width=3.2)
    for axis, column in zip(figure.axes, panels, strict=True):
        for at, seeds in enumerate(df[f"{column}_seeds"].fillna("").astype(str).str.split("|")):
            if len(seeds) > 1:
                heights, colour = [at + 0.3] * len(seeds), looks[series[at]][0]
                axis.plot([float(seed) for seed in seeds], heights, ".", color=colour, ms=4)
        for value in of_base[column].dropna():
            axis.axvline(value, **more["base"], zorder=1)
        axis.set_xlim(left=0)
    return figure


def plot_reward_study(df: pd.DataFrame) -> Figure:
    """Pairs of seen and unseen kinds, and overall, a row a model; of ``RewardModels.rows``."""
    panels = {
        "pairs_seen": ("criterion pairs, kinds seen (%)", BLUE),
        "pairs_unseen": ("criterion pairs, kinds unseen (%)", SKY),
        "overall": ("overall, safety first (%)", RED),
    }
    seeds = df.seeds.map(lambda n: f" ({n} seeds)" if n > 1 else "")
    return _with_chance(_panels(df.assign(system=df.model + seeds), panels, AT_CHANCE))


def plot_accuracy(
    df: pd.DataFrame, panels: Mapping[str, tuple[str, str]], ceiling: float | None = None
) -> Figure:
    """One panel a metric, one row a scorer; ``ceiling`` is that of criterion-blind scorers.

    ``df`` is a table of ``bench.tally`` (shares); ``panels``: label -> (metric, slice).
    """
    labels = [f"{label} (%)" for label in panels]
    wanted = pd.DataFrame(panels.values(), columns=["metric", "slice"]).assign(panel=labels)
    cells = wanted.merge(df[df.n > 0], on=["metric", "slice"])
    order = list(dict.fromkeys([*OF_SCORER, *cells.scorer]))
    cells = cells.sort_values("scorer", key=lambda s: s.map(order.index), kind="stable")
    cells = cells.assign(**cells[["value", "low", "high"]] * 100, row=cells.scorer)
    cells = cells.assign(series="against " + cells.against)
    looks = {"against adjudicated": (BLUE, "o"), "against truth": (ORANGE, "D")}
    blind = {"ceiling without criteria": {"color": "black", "lw": 0.9, "ls": "--"}}
    more = AT_CHANCE if "pairwise" in set(cells.metric) else {}
    more = more | (blind if ceiling is not None else {})
    figure = interval_plot(cells, looks, more=more, limits=(-3, 103), panels=labels)
    for axis in figure.axes:
        metric, part = panels.get(axis.get_xlabel().removesuffix(" (%)"), ("", ""))
        if metric == "pairwise":
            axis.axvline(50, **CHANCE)
        if ceiling is not None and (metric, part) == ("pairwise", "all"):
            axis.axvline(ceiling * 100, **blind["ceiling without criteria"])
    return figure


def plot_paired(df: pd.DataFrame) -> Figure:
    """Paired differences in points; columns what, difference, low, high, above (the bound)."""
    cells = df.assign(row=df.what, value=df.difference, panel="difference (points)")
    bound = {"marker": "|", "color": RED}
    more = {"what it has to stay above": bound | {"ms": 14}}
    figure = interval_plot(cells, {"": (BLUE, "o")}, more=more, limits=None, panel_width=5)
    figure.axes[0].plot(df.above, range(len(df)), ls="", ms=18, **bound)
    figure.axes[0].axvline(0, color=GREY, lw=0.8, ls="--")
    return figure


def plot_judge_errors(df: pd.DataFrame) -> Figure:
    """Where a judge errs, by dimension: ``lenient`` lets pass what the expert finds not met.

    Columns dimension, error (lenient | strict), rate, low, high (fractions), n.
    """
    looks = {"judge: met, expert: not met": (RED, "o"), "judge: not met, expert: met": (SKY, "s")}
    series = df.error.map(dict(zip(("lenient", "strict"), looks, strict=True)))
    ends = {"value": 100 * df.rate, "low": 100 * df.low, "high": 100 * df.high}
    cells = df.assign(row=df.dimension, series=series, panel="verdicts (%)", **ends)
    cells = cells.assign(note=df.n.map(lambda n: f"n = {n:,}"))
    figure = interval_plot(cells, looks, limits=None, panel_width=5)
    figure.axes[0].set_xlim(0, 1.2 * cells.high.max())  # room for the notes
    return figure


# ---------------------------------------------------------------- curves


def _calibration(bins: pd.DataFrame, looks: Mapping[str, dict], x_label: str) -> Figure:
    """Share met over the probability (fractions) by ``panel``; ``curve``: a name in ``looks``."""
    panels = list(dict.fromkeys(bins.panel))
    figure = Figure(figsize=(3.3 * len(panels), 4.1), layout="constrained")
    bins = bins.assign(**bins[["probability", "met", "low", "high"]] * 100)
    plot = so.Plot(bins, "probability", "met", color="curve", marker="curve", linestyle="curve")
    plot = plot.facet("panel", order=panels).share(x=True, y=True)
    plot = plot.add(so.Range(linestyle="-", linewidth=1), ymin="low", ymax="high", legend=False)
    plot = plot.add(so.Line(pointsize=4, linewidth=1.2), legend=False)
    for prop, key in (("color", "color"), ("marker", "marker"), ("linestyle", "ls")):
        plot = plot.scale(**{prop: {name: look[key] for name, look in looks.items()}})
    plot = plot.label(x=x_label, y="criteria that are met (%), 95 % interval", title=str)
    plot.theme(THEME).on(figure).plot()
    for axis in figure.axes:
        axis.plot([0, 100], [0, 100], color="black", lw=0.8)
        axis.set(xlim=(-2, 102), ylim=(-2, 102))
    draw_legend(figure, {name: look for name, look in looks.items() if name in set(bins.curve)})
    return figure


def plot_calibration(df: pd.DataFrame) -> Figure:
    """Share met beside what the reward model says, a panel a dimension; columns of ``reliability``.

    Columns dimension, where, version ("sigmoid of the score" or "P(met)"), probability, met, low,
    high, n, error (percent points). On the diagonal what is said is what is.
    """
    looks = {  # in the order of the legend
        "bench, kinds seen: sigmoid of the score": {"marker": "X", "color": GREY, "ls": ":"},
        "bench, kinds seen": {"marker": "o", "color": BLUE, "ls": "-"},
        "bench, kinds unseen": {"marker": "s", "color": ORANGE, "ls": "--"},
        "split it was fitted on": {"marker": "^", "color": GREEN, "ls": "-."},
    }
    curve = df["where"].where(df.version == "P(met)", df["where"] + ": " + df.version)
    bins = df.assign(curve=curve, panel=df.dimension)[curve.isin(list(looks))]
    bins = bins.sort_values("panel", key=lambda s: s.map(list(OF_DIMENSION).index), kind="stable")
    figure = _calibration(bins, looks, "P(met) that is said (%)")
    paper = {"fc": "white", "ec": "none", "alpha": 0.8, "pad": 1}
    for axis, dimension in zip(figure.axes, dict.fromkeys(bins.panel), strict=True):
        errors = bins[bins.panel == dimension].drop_duplicates("curve").set_index("curve").error
        texts = [(f"{errors[name]:.1f}", looks[name]["color"]) for name in looks if name in errors]
        for n, (text, colour) in enumerate([*reversed(texts), ("error (points)", GREY)]):
            at = {"x": 0.98, "y": 0.03 + 0.065 * n, "transform": axis.transAxes, "ha": "right"}
            # below the diagonal there is room
            axis.text(s=text, color=colour, fontsize=8, bbox=paper, **at)
    return figure


def plot_reliability(df: pd.DataFrame) -> Figure:
    """Share met beside P(met), before and after calibration, in bins of equal size.

    Columns dimension, label, raw (sigmoid of the score) and probability (calibrated).
    """
    panels = {"raw": "before: sigmoid of the score", "probability": "after: P(met), calibrated"}
    parts, looks, markers = [], {}, dict(zip(sorted(set(df.dimension)), "os^", strict=False))
    for (column, panel), dimension in product(panels.items(), markers):
        part = df[df.dimension == dimension]
        curve = f"{dimension}, n = {len(part)}"
        bins = reliability(part.label, part[column], bins=8)
        parts.append(bins.assign(panel=panel, curve=curve))
        looks[curve] = {"color": OF_DIMENSION[dimension], "marker": markers[dimension], "ls": "-"}
    return _calibration(pd.concat(parts, ignore_index=True), looks, "probability (%)")


CURVE_PANELS = {  # axis label -> series of policy/curve.csv: (column, legend, colour, dashes)
    "reward": (
        ("proxy", "proxy", RED, ""),
        ("gold", "gold", BLUE, (4, 1.5)),
        ("judged", "judged", ORANGE, (1, 1)),
    ),
    "answers (%)": (
        ("violation_rate", "violation", RED, ""),
        ("judged_violation_rate", "violation, judged", ORANGE, (1, 1)),
        ("veto_rate", "vetoed", PURPLE, (3, 1, 1, 1)),
        ("unparsed", "unknown verdict", GREY, (4, 1.5)),
    ),
    "met: share of S1, number of S2": (
        ("proficiency", "S1, proficiency", BLUE, ""),
        ("excellence", "S2, excellence", GREEN, (4, 1.5)),
    ),
    "KL to the base (nats an answer)": (("kl", "KL", PURPLE, ""),),
    "entropy (nats a token)": (("entropy", "entropy", SKY, ""),),
    "length (tokens)": (("length", "length", GREY, ""),),
}


def _draw_series(axis, df: pd.DataFrame, x: str, series: Sequence, legend=False) -> list[str]:
    """Lines of the columns that have a value: ``series`` as of ``CURVE_PANELS``; their names."""
    shown = [line for line in series if line[0] in df and df[line[0]].notna().any()]
    columns, names, colours, dashes = zip(*shown, strict=True) if shown else ((),) * 4
    wide = df.set_index(x)[list(columns)].set_axis(list(names), axis=1)
    style = {"markers": ["o", "s", "^", "D"][: len(names)], "dashes": list(dashes), "mew": 0}
    style |= {"palette": list(colours), "markersize": 5}
    if shown:  # in the order of the rows, nothing is averaged
        sns.lineplot(wide, ax=axis, legend=legend, estimator=None, sort=False, **style)
    return list(names)


def plot_policy_curve(df: pd.DataFrame) -> Figure:
    """GRPO on held-out prompts, from policy/curve.csv: rewards, violations, what is met, KL.

    The vertical line is the checkpoint that is kept, the best by judged reward. A series or a panel
    without a value is left out: data without truth have no gold. Only the reward starts below 0.
    """
    percent = [column for column, *_ in CURVE_PANELS["answers (%)"] if column in df]
    df = df.assign(**100 * df[percent])
    there = set(df.columns[df.notna().any()])
    panels = {label: s for label, s in CURVE_PANELS.items() if there & {line[0] for line in s}}
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = canvas(3.4 * columns, 2.75 * rows, columns, rows)
    for axis, (label, series) in zip(axes.flat, panels.items(), strict=False):
        names = _draw_series(axis, df, "step", series, legend="full")
        axis.set(ylabel=label, xlabel="optimiser step (line: kept)")
        if label != "reward":  # a share or an amount, and zero is none of it
            axis.set_ylim(0, 1.1 * axis.dataLim.y1 or 1)
        if len(names) > 1:  # above the axes, where no line is
            spot = {"loc": "lower left", "bbox_to_anchor": (-0.02, 1), "borderaxespad": 0.2}
            axis.legend(ncols=2 + (len(names) == 3), fontsize=7, columnspacing=1, **spot)
        else:
            axis.get_legend().remove()
        if (kept := _kept(df)) is not None:
            axis.axvline(df.step[kept], color="black", lw=0.8, ls="--", zorder=1)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    return figure


def _kept(df: pd.DataFrame):
    """Index of the evaluation whose policy is kept: the first of the best by judged reward."""
    return df.judged.idxmax() if df.judged.notna().any() else None


def plot_gold_over_kl(df: pd.DataFrame) -> Figure:
    """Proxy, gold and judged reward over KL to the base, a panel a ``run`` where there are several.

    Columns of policy/curve.csv and, for several, ``run``. KL in nats an answer on a square-root
    axis, as Gao, Schulman and Hilton draw it (arXiv:2210.10760); numbers are optimiser steps, the
    ring is the kept checkpoint.
    """
    df = df if "run" in df else df.assign(run="")
    runs = list(dict.fromkeys(df.run))
    figure, [axes] = canvas(0.9 + 4.3 * len(runs), 3.9, len(runs), sharey=True)
    series = [line for line in CURVE_PANELS["reward"] if df[line[0]].notna().any()]
    ring = {"marker": "o", "mfc": "none", "mec": "black", "ms": 9, "mew": 0.8}
    for axis, run in zip(axes, runs, strict=True):
        part = df[(df.run == run) & df.kl.notna()].sort_values("step")
        _draw_series(axis, part, "kl", series)
        _set_root_scale(axis, part.kl.max())
        axis.set_title(run, fontsize=9)
        _write_steps(axis, part, series[0][0])
        if (kept := _kept(part)) is not None:
            for column, *_ in series:
                axis.plot(part.kl[kept], part[column][kept], ls="", **ring)
    axes[0].set_ylabel("reward on held-out prompts")
    marks = {
        name: {"color": colour, "marker": marker, "ls": "-"}
        for (_, name, colour, _), marker in zip(series, "os^", strict=False)
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
    style = {"hue": "scorer", "style": "scorer", "palette": OF_SCORER, "markers": True}
    for axis, (column, label) in zip(axes, panels.items(), strict=True):
        sns.lineplot(
            df, x="step", y=column, ax=axis, errorbar=None, legend=axis is axes[0], **style
        )
        axis.set(xlabel="optimiser step", ylabel=label)
    axes[0].legend(title="", fontsize=7)
    axes[1].axhline(50, **CHANCE)
    return figure


def plot_pass_rate(df: pd.DataFrame, aimed: float) -> Figure:
    """Strict pass rate by review round on the blind sample, with its interval (fractions).

    ``df`` as from ``review.rounds``; ``aimed`` is the rate at which the rounds may end.
    """
    blind = df.dropna(subset="blind_pass_rate")
    figure, [[axis]] = canvas(6, 3.2)
    rates = 100 * blind.blind_pass_rate
    axis.plot(blind["round"], rates, "o-", color=BLUE, zorder=3)
    axis.vlines(blind["round"], 100 * blind.low, 100 * blind.high, color=BLUE)
    axis.plot(df["round"], 100 * df.pass_rate, "s", color=ORANGE)
    aim = {"color": "black", "ls": "--", "lw": 1}
    axis.axhline(100 * aimed, **aim)
    marks = {"blind sample, 95 % interval": FILLED | {"color": BLUE}}
    marks |= {"batch before it": {"marker": "s", "color": ORANGE}, "aimed at": aim}
    draw_legend(figure, marks)
    axis.set(xlabel="review round", ylabel="drafts passed unchanged (%)", xticks=df["round"])
    axis.set_ylim(top=min(103, axis.get_ylim()[1]))
    axis.margins(x=0.08)
    return figure


def plot_speed(df: pd.DataFrame) -> Figure:
    """Times as fast packed as one by one, over K, over L, and on the clinic's mix, with the bound.

    From ``speed.summary``; the line is the bound that the tokens give.
    """
    tasks = {"scoring": BLUE, "training": ORANGE}
    figure, [[over_k, over_l, mix]] = canvas(10.5, 3.4, 3)
    for axis, column, label in (
        (over_k, "K", "criteria K, at 480 shared tokens"),
        (over_l, "L", "shared tokens L, at 7 criteria"),
    ):
        part = df[df.case == f"over {column}"].sort_values(column)
        style = {"hue": "task", "style": "task", "palette": tasks, "s": 40}
        sns.scatterplot(part, x=column, y="ratio", ax=axis, **style)
        scoring = part[part.task == "scoring"]
        axis.plot(scoring[column], scoring.bound, color=GREY, lw=1, label="bound by tokens")
        ticks = sorted(set(part[column]))
        axis.set(xlabel=label, ylabel="times as fast packed", ylim=(0, None), xticks=ticks)
    over_l.set_xscale("log")
    over_l.set_xticks(ticks, [f"{tick:g}" for tick in ticks], rotation=45)
    over_l.minorticks_off()
    over_k.legend(fontsize=8, title="")
    over_l.get_legend().remove()
    part = df[df.case.isin(["published", "clinic mix"])].sort_values(["case", "task"])
    names = part.case + ",\n" + part.task
    style = {"hue": part.task, "palette": tasks, "width": 0.5, "legend": False}
    sns.barplot(x=part.ratio, y=names, ax=mix, saturation=1, **style)
    mix.plot(part.bound, range(len(part)), "|", color="black", ms=24)
    for at, row in enumerate(part.itertuples()):
        text = f"{row.ratio:.2f}, {row.share:.0%} of the bound"
        mix.text(0.1, at, text, va="center", color="white", fontsize=8)
    mix.set(xlabel="times as fast packed (tick: bound by tokens)", ylabel="")
    return figure


# ---------------------------------------------------------------- bars, maps and boxes


def plot_funnel(df: pd.DataFrame) -> Figure:
    """What curation leaves: columns step, before, dropped, queued, after, in the order of the
    steps.

    Blue is what a step lets through, the hatched end what it drops or queues for a person.
    """
    ends = []
    for row in df.itertuples():
        dropped = f"   −{row.dropped:,}" if row.dropped else ""
        queued = f"   {row.queued:,} queued" if row.queued else ""
        ends.append(f"{row.after:,}{dropped}{queued}")
    parts = {"let through": df.after, "dropped or queued": df.before - df.after}
    wide = pd.DataFrame(parts).set_axis(df.step)
    figure = stacked_bars(wide, "instructions", (BLUE, "#bbbbbb"), ends=ends)
    figure.axes[0].set_xlim(0, 1.25 * df.before.max())
    return figure


def plot_composition(df: pd.DataFrame) -> Figure:
    """Criteria of a rubric: columns category, and a dimension each with its mean count."""
    return stacked_bars(df.set_index("category"), "criteria a rubric, mean")


def plot_specialty(df: pd.DataFrame) -> Figure:
    """Heat map of overall accuracy, systems by specialty, from ``tables.build_specialty``.

    A cell without a value is left empty.
    """
    wide = df.pivot(index="specialty", columns="system", values="run_overall_accuracy")
    wide = wide[list(dict.fromkeys(df.system))].astype(float)
    wide.columns = [name.split(" (")[0].replace(", ", ",\n") for name in wide.columns]
    figure, [[axis]] = canvas(3.2 + 0.8 * len(wide.columns), 1.6 + 0.22 * len(wide))
    low = np.floor(np.nan_to_num(np.nanmin(wide.to_numpy())) / 10) * 10
    style = {"cmap": "cividis", "vmin": min(low, 90), "vmax": 100, "annot_kws": {"size": 7}}
    style["cbar_kws"] = {"label": "overall accuracy (%), this run"}
    sns.heatmap(wide, annot=True, fmt=".0f", ax=axis, **style)
    axis.set(xlabel="", ylabel="")
    axis.tick_params(axis="x", rotation=35)
    for label in axis.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    return figure


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


def plot_packed_mask(segments: np.ndarray, allowed: np.ndarray) -> Figure:
    """Attention mask of one packed sequence: ``segments`` (T,), ``allowed`` (T, T) bool."""
    kind = np.where(allowed, np.where(segments[None, :] == 0, 1, 2), 0)  # 0: not read
    figure, [[axis]] = canvas(6.4, 6)
    axis.imshow(kind, cmap=ListedColormap(["white", SKY, RED]), vmin=0, vmax=2)
    axis.grid(False)
    starts = np.flatnonzero(np.diff(segments, prepend=-1))
    for number, (start, end) in enumerate(pairwise([*starts, len(segments)])):
        text = f"c{number}" if number else "prompt and response"
        axis.text(len(segments) + 2, (start + end) / 2, text, va="center", fontsize=8)
        axis.axhline(end - 0.5, color=GREY, lw=0.4)
        axis.axvline(end - 0.5, color=GREY, lw=0.4)
    axis.set(xlabel="token that is read", ylabel="token that reads")
    marks = {"shared": {"color": SKY}, "own criterion": {"color": RED}, "not read": HOLLOW}
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
    """The pipeline as boxes with this run's counts, and the reported ones in italics below.

    Columns box, row, column, title, run and reported (texts), and ``after``: the boxes that it
    comes from, joined by "|".
    """
    width, height, gap = 2.0, 1.0, (2.5, 1.45)
    rows, columns = df["row"].max() + 1, df["column"].max() + 1
    figure, [[axis]] = canvas(2.0 * columns, 1.35 * rows + 0.25)
    right, bottom = (columns - 1) * gap[0] + width, -(rows - 1) * gap[1]
    axis.set(xlim=(-0.1, right + 0.1), ylim=(bottom - 0.1, height + 0.1))
    axis.axis("off")
    corners = {r.box: (r.column * gap[0], -r.row * gap[1]) for r in df.itertuples()}
    look = {"boxstyle": "round,pad=0.04", "fc": "#e8f1f8", "ec": BLUE, "lw": 1.2}
    for r in df.fillna("").itertuples():
        x, y = corners[r.box]
        axis.add_patch(FancyBboxPatch((x, y), width, height, **look))
        middle, title = x + width / 2, {"va": "top", "fontsize": 9, "weight": "bold"}
        axis.text(middle, y + height - 0.04, r.title, ha="center", **title)
        axis.text(middle, y + height / 2 + 0.02, r.run, ha="center", va="center", fontsize=8.5)
        if r.reported:
            small = {"va": "bottom", "fontsize": 8, "color": GREY, "style": "italic"}
            axis.text(middle, y, f"reported: {r.reported}", ha="center", **small)
        for name in filter(None, r.after.split("|")):
            tail, head = _arrow(corners[name], (x, y), width, height)
            arrow = {"arrowstyle": "->", "color": GREY, "lw": 1.2}
            axis.annotate("", head, tail, arrowprops=arrow)
    return figure


def _arrow(start, end, width: float, height: float, side: float = 0.06) -> tuple:
    """Ends of an arrow between the boxes at two lower left corners, ``side`` away from both."""
    (x0, y0), (x, y) = start, end
    if y0 != y:  # from a row above
        return (x0 + width / 2, y0 - side), (x + width / 2, y + height + side)
    left, right = min(x0, x) + width + side, max(x0, x) - side
    tail, head = (left, right) if x0 < x else (right, left)
    return (tail, y + height / 2), (head, y + height / 2)
