"""Figures of the paper, drawn from a CSV: reported values hollow, this run's filled.

``plot_*`` take a data frame and give a Figure; ``save`` writes the CSV first and draws from what
it wrote; png and pdf carry no dates, so a rerun gives the same bytes. ``show`` draws in a notebook.
"""

import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.ticker import MaxNLocator

from promedical_utils.core.plotting import (
    BLUE,
    GREEN,
    GREY,
    OF_DIMENSION,
    OF_SCORER,
    ORANGE,
    PURPLE,
    RED,
    SKY,
    canvas,
    draw_interval,
    draw_legend,
    name_rows,
)


def _systems(axis, df: pd.DataFrame, label: str) -> np.ndarray:
    """One row a system; a dotted line between reported systems and the kit's."""
    y = name_rows(axis, df.system, 0.7)
    axis.set_xlim(0, 102)
    axis.set_xlabel(label)
    kit = df.filter(like="reported_").isna().all(axis=1).sum()
    if 0 < kit < len(df):
        axis.axhline(kit - 0.5, color=GREY, lw=0.8, ls=":")
    return y


def _points(axis, y, df: pd.DataFrame, column: str, colour: str, marker: str = "o") -> None:
    if f"reported_{column}" in df:
        axis.plot(df[f"reported_{column}"], y, marker, mfc="white", mec=colour, ms=5)
    ends = (df[f"run_{column}{end}"].to_numpy(float) for end in ("", "_low", "_high"))
    draw_interval(axis, y, *ends, fmt=marker, color=colour, ms=5, capsize=4)


def _panels(df: pd.DataFrame, shown: dict[str, tuple[str, str]]) -> Figure:
    """A panel a column, a row a system that has a value; reported hollow, this run filled."""
    values = [f"{who}_{column}" for column in shown for who in ("reported", "run")]
    df = df[df[values].notna().any(axis=1)]
    figure, [axes] = canvas(5 + 2.3 * len(shown), 1.4 + 0.27 * len(df), len(shown), sharey=True)
    for axis, (column, (label, colour)) in zip(axes, shown.items(), strict=True):
        _points(axis, _systems(axis, df, label), df, column, colour)
    hollow, filled = {"marker": "o", "mfc": "white", "mec": GREY}, {"marker": "o", "color": GREY}
    draw_legend(figure, {"reported": hollow, "this run, 95 % interval": filled})
    return figure


def plot_main_results(df: pd.DataFrame) -> Figure:
    """Overall and pairwise safety accuracy by system, from ``tables.build_main_results``."""
    safety = ("pairwise accuracy, safety (%)", RED)
    overall = ("overall accuracy (%)", BLUE)
    return _panels(df, {"overall_accuracy": overall, "pairwise_safety": safety})


def plot_dimensions(df: pd.DataFrame) -> Figure:
    """Pairwise (top) and pointwise accuracy by dimension, from ``tables.build_main_results``.

    A row a system and a column a dimension, not a radar: of points on one scale a reader can tell
    a difference of five and see whether intervals part; a radar's area grows with the square, hangs
    on the order of its spokes, and has no room for intervals.
    """
    parts = {}
    for kind in ("pairwise", "pointwise"):
        values = [f"{who}_{kind}_{d}" for who in ("reported", "run") for d in OF_DIMENSION]
        known = df.reindex(columns=values).notna().any(axis=1)
        parts[kind] = df[known | (not df.size)].reset_index(drop=True)
    sizes = [len(part) + 2 for part in parts.values()]
    figure = Figure(
        figsize=(4.2 + 2.7 * len(OF_DIMENSION), 1.2 + 0.26 * sum(sizes)), layout="constrained"
    )
    axes = figure.subplots(len(parts), len(OF_DIMENSION), sharey="row", height_ratios=sizes)
    for row, (kind, part) in zip(axes, parts.items(), strict=True):
        for axis, (dimension, colour) in zip(row, OF_DIMENSION.items(), strict=True):
            y = _systems(axis, part, f"{kind} accuracy, {dimension} (%)")
            _points(axis, y, part, f"{kind}_{dimension}", colour)
            if kind == "pairwise":
                axis.axvline(50, color=GREY, lw=0.8, ls=":")
    hollow, filled = {"marker": "o", "mfc": "white", "mec": GREY}, {"marker": "o", "color": GREY}
    draw_legend(
        figure,
        {
            "reported": hollow,
            "this run, 95 % interval": filled,
            "chance": {"color": GREY, "ls": ":"},
        },
    )
    return figure


def plot_graders(df: pd.DataFrame) -> Figure:
    """Balanced F1 of graders, a panel a slice, from ``tables.build_graders``.

    The band is the interval of one physician against the other: what agreement with physicians can
    be hoped for. A grader may be above it against the truth, which the clinic knows.
    """
    df = df[df.run_f1.notna()]
    slices = list(dict.fromkeys(df["slice"]))
    systems = df.system.nunique()
    figure, [axes] = canvas(3.2 + 2.3 * len(slices), 1.5 + 0.36 * systems, len(slices), sharey=True)
    looks = {
        "run_f1": ("against physicians", BLUE, "o", 0.15),
        "run_f1_truth": ("against the truth", ORANGE, "D", -0.15),
    }
    for axis, part in zip(axes, slices, strict=True):
        own = df[df["slice"] == part].reset_index(drop=True)
        y = name_rows(axis, own.system)
        axis.axvspan(
            own.run_baseline_low.iloc[0],
            own.run_baseline_high.iloc[0],
            color=GREY,
            alpha=0.35,
            lw=0,
        )
        for column, (_, colour, marker, up) in looks.items():
            ends = (own[f"{column}{end}"].to_numpy(float) for end in ("", "_low", "_high"))
            draw_interval(axis, y + up, *ends, fmt=marker, color=colour, ms=4.5, capsize=3)
        axis.set_title(part, fontsize=9)
        axis.set(xlabel="balanced F1 (%)", xlim=(0, 102))
    band = {"marker": "s", "color": GREY, "alpha": 0.35, "ms": 9}
    marks = {
        label: {"marker": marker, "color": colour, "ls": "-"}
        for label, colour, marker, _ in looks.values()
    }
    draw_legend(figure, {"one physician against the other": band} | marks)
    return figure


def plot_calibration(df: pd.DataFrame) -> Figure:
    """Share met beside what the reward model says, a panel a dimension; columns of ``reliability``.

    Columns dimension, where, version ("sigmoid of the score" or "P(met)"), probability, met, low,
    high, n, error (percent points). On the diagonal what is said is what is.
    """
    looks = {  # in the order of the legend
        ("bench, kinds seen", "sigmoid of the score"): {"marker": "x", "color": GREY, "ls": ":"},
        ("bench, kinds seen", "P(met)"): {"marker": "o", "color": BLUE, "ls": "-"},
        ("bench, kinds unseen", "P(met)"): {"marker": "s", "color": ORANGE, "ls": "--"},
        ("split it was fitted on", "P(met)"): {"marker": "^", "color": GREEN, "ls": "-."},
    }
    names = [d for d in OF_DIMENSION if d in set(df.dimension)]
    figure, [axes] = canvas(3.4 * len(names), 4.1, len(names), sharey=True)
    for axis, dimension in zip(axes, names, strict=True):
        axis.plot([0, 100], [0, 100], color="black", lw=0.8)
        said = [("error (points)", GREY)]
        for (where, version), look in looks.items():
            part = df[
                (df.dimension == dimension) & (df["where"] == where) & (df.version == version)
            ]
            if part.empty:
                continue
            x, y = 100 * part.probability, 100 * part.met
            ends = np.clip([part.met - part.low, part.high - part.met], 0, None)
            axis.errorbar(x, y, yerr=100 * ends, lw=1, ms=4, capsize=2, **look)
            said.append((f"{part.error.iloc[0]:.1f}", look["color"]))
        for n, (text, colour) in enumerate(reversed(said)):  # below the diagonal there is room
            axis.text(
                0.98,
                0.03 + 0.065 * n,
                text,
                color=colour,
                ha="right",
                fontsize=8,
                transform=axis.transAxes,
            )
        axis.set_title(dimension, fontsize=9)
        axis.set(xlabel="P(met) that is said (%)", xlim=(-2, 102), ylim=(-2, 102))
    axes[0].set_ylabel("criteria that are met (%), 95 % interval")
    there = set(zip(df["where"], df.version, strict=True))
    shown = {
        f"{where}: {version}" if version != "P(met)" else where: look
        for (where, version), look in looks.items()
        if (where, version) in there
    }
    draw_legend(figure, shown, columns=2 if len(shown) > 3 else 0)
    return figure


def plot_external(df: pd.DataFrame) -> Figure:
    """RM pairwise accuracy outside, a panel a set, from ``tables.build_external``.

    A row a system; colour and marker are the text that the RM is given. The reported panel first; a
    set that did not run has none.
    """
    given = {
        "q": ("Q", GREY, "s", 0.2),
        "q_criteria": ("Q + criteria", BLUE, "o", 0.0),
        "q_sub": ("Q + sub-criteria", GREEN, "D", -0.2),
    }
    values = [f"{who}_{column}" for who in ("reported", "run") for column in given]
    df = df[df[values].notna().any(axis=1)]
    sets = list(dict.fromkeys(df["set"]))
    sizes = [max(1, (df["set"] == name).sum()) for name in sets]
    figure = Figure(figsize=(8.5, 1.3 + 0.62 * len(sets) + 0.34 * sum(sizes)), layout="constrained")
    axes = figure.subplots(
        len(sets),
        1,
        squeeze=False,
        sharex=True,
        gridspec_kw={"height_ratios": [s + 0.8 for s in sizes]},
    )[:, 0]
    for axis, name in zip(axes, sets, strict=True):
        part = df[df["set"] == name].reset_index(drop=True)
        y = name_rows(axis, part.system)
        for column, (_, colour, marker, up) in given.items():
            _points(axis, y + up, part, column, colour, marker)
        pairs = part.pairs.dropna()
        count = f", {int(pairs.max()):,} pairs" if len(pairs) else ""
        axis.set_title(f"{name}{count}", fontsize=9, loc="left")
        axis.grid(False, axis="y")
        axis.axvline(50, color=GREY, lw=0.8, ls=":")
    axes[-1].set_xlabel("pairs ordered rightly (%)")
    marks = {label: {"marker": m, "color": c} for label, c, m, _ in given.values()}
    hollow = {"marker": "o", "mfc": "white", "mec": GREY}
    draw_legend(
        figure,
        marks
        | {
            "reported": hollow,
            "this run, 95 % interval": {"marker": "o", "color": GREY, "ls": "-"},
        },
        columns=3,
    )
    return figure


def plot_overview(df: pd.DataFrame) -> Figure:
    """The pipeline as boxes with this run's counts, and the reported ones hollow below.

    Columns box, row, column, title, run and reported (texts), and ``after``: the boxes that it
    comes from, joined by "|".
    """
    width, height, gap = 2.0, 1.0, (2.5, 1.45)
    rows, columns = df["row"].max() + 1, df["column"].max() + 1
    figure, [[axis]] = canvas(2.0 * columns, 1.35 * rows + 0.25)
    axis.set(
        xlim=(-0.1, (columns - 1) * gap[0] + width + 0.1),
        ylim=(-(rows - 1) * gap[1] - 0.1, height + 0.1),
    )
    axis.axis("off")
    place = {r.box: (r.column * gap[0], -r.row * gap[1]) for r in df.itertuples()}
    for r in df.fillna("").itertuples():
        x, y = place[r.box]
        box = {"boxstyle": "round,pad=0.04", "fc": "#e8f1f8", "ec": BLUE, "lw": 1.2}
        axis.add_patch(FancyBboxPatch((x, y), width, height, **box))
        middle = x + width / 2
        axis.text(
            middle, y + height - 0.04, r.title, ha="center", va="top", fontsize=9, weight="bold"
        )
        axis.text(middle, y + height / 2 + 0.02, r.run, ha="center", va="center", fontsize=8.5)
        if r.reported:
            axis.text(
                middle,
                y,
                f"reported: {r.reported}",
                ha="center",
                va="bottom",
                fontsize=8,
                color=GREY,
                style="italic",
            )
        for name in filter(None, r.after.split("|")):
            (x0, y0), side = place[name], 0.06
            if y0 != y:  # from a row above
                ends = (x0 + width / 2, y0 - side), (middle, y + height + side)
            else:
                left = min(x0, x) + width + side, max(x0, x) - side
                ends = [(at, y + height / 2) for at in (left if x0 < x else left[::-1])]
            axis.annotate(
                "", ends[1], ends[0], arrowprops={"arrowstyle": "->", "color": GREY, "lw": 1.2}
            )
    return figure


def plot_safety_veto(df: pd.DataFrame) -> Figure:
    """Veto precision, recall and F1 by system, from ``tables.build_safety_veto``."""
    names = {"precision": ("precision", SKY), "recall": ("recall", ORANGE), "f1": ("F1", RED)}
    return _panels(df, {c: (f"{name} on violations (%)", hue) for c, (name, hue) in names.items()})


def plot_seen_unseen(df: pd.DataFrame) -> Figure:
    """Pairwise accuracy on seen and unseen criterion kinds, from ``tables.build_seen_unseen``."""
    df = df[df.run_pairwise_seen.notna() | df.run_pairwise_unseen.notna()]
    figure, [[axis]] = canvas(7.5, 1.4 + 0.42 * len(df))
    y = _systems(axis, df, "pairwise accuracy (%), this run, 95 % interval")
    _points(axis, y + 0.15, df, "pairwise_seen", BLUE)
    _points(axis, y - 0.15, df, "pairwise_unseen", ORANGE, "s")
    axis.axvline(50, color=GREY, lw=0.8, ls="--")
    axis.annotate("chance", (50, 1), xycoords=("data", "axes fraction"), ha="center", color=GREY)
    seen, unseen = {"marker": "o", "color": BLUE}, {"marker": "s", "color": ORANGE}
    draw_legend(figure, {"kinds seen in training": seen, "kinds unseen in training": unseen})
    return figure


CURVE_PANELS = {  # axis label -> series of policy/curve.csv: (column, legend, colour, dash)
    "reward": (
        ("proxy", "proxy", RED, "-"),
        ("gold", "gold", BLUE, "--"),
        ("judged", "judged", ORANGE, ":"),
    ),
    "answers (%)": (
        ("violation_rate", "violation", RED, "-"),
        ("judged_violation_rate", "violation, judged", ORANGE, ":"),
        ("veto_rate", "vetoed", PURPLE, "-."),
        ("unparsed", "unknown verdict", GREY, "--"),
    ),
    "met: share of S1, number of S2": (
        ("proficiency", "S1, proficiency", BLUE, "-"),
        ("excellence", "S2, excellence", GREEN, "--"),
    ),
    "KL to the base (nats an answer)": (("kl", "", PURPLE, "-"),),
    "entropy (nats a token)": (("entropy", "", SKY, "-"),),
    "length (tokens)": (("length", "", GREY, "-"),),
}
REWARDS = {"proxy": (RED, "s", "-"), "gold": (BLUE, "o", "--"), "judged": (ORANGE, "^", ":")}


def plot_policy_curve(df: pd.DataFrame) -> Figure:
    """GRPO on held-out prompts, from policy/curve.csv: rewards, violations, what is met, KL.

    The vertical line is the checkpoint that is kept, the best by judged reward. A series or a panel
    without a value is left out: data without truth have no gold. Only the reward starts below 0.
    """
    panels = {
        label: [line for line in lines if line[0] in df and df[line[0]].notna().any()]
        for label, lines in CURVE_PANELS.items()
    }
    panels = {label: lines for label, lines in panels.items() if lines}
    columns = min(3, len(panels))
    size = 3.4 * columns, 2.75 * -(-len(panels) // columns)
    figure, axes = canvas(*size, columns, -(-len(panels) // columns))
    for axis, (label, lines) in zip(axes.flat, panels.items(), strict=False):
        for column, name, colour, dash in lines:
            part = df[df[column].notna()]
            y = part[column] * (100 if "%" in label else 1)
            axis.plot(part.step, y, color=colour, label=name, ls=dash, marker="o", ms=3.5)
        axis.set(ylabel=label, xlim=_wider(df.step), xlabel="optimiser step (line: kept)")
        if lines[0][1]:  # above the axes, where no line is
            axis.legend(
                fontsize=7,
                loc="lower left",
                bbox_to_anchor=(-0.02, 1),
                ncols=2 + (len(lines) == 3),
                borderpad=0.1,
                borderaxespad=0.2,
                columnspacing=1,
                handlelength=2.6,
            )
        if label != "reward":  # a share or an amount, and zero is none of it
            axis.set_ylim(0, 1.1 * axis.dataLim.y1 or 1)
        if (kept := _kept(df)) is not None:
            axis.axvline(df.step[kept], color="black", lw=0.8, ls="--", zorder=1)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    return figure


def _wider(values: pd.Series) -> tuple[float, float]:
    low, high = values.min(), values.max()
    return low - 0.05 * (high - low or 1), high + 0.05 * (high - low or 1)


def _kept(df: pd.DataFrame):
    """Index of the evaluation whose policy is kept: the first of the best by judged reward."""
    return df.judged.idxmax() if df.judged.notna().any() else None


def plot_gold_over_kl(df: pd.DataFrame, shared: bool = True) -> Figure:
    """Proxy, gold and judged reward over KL to the base, a panel a ``run`` where there are several.

    Columns of policy/curve.csv and, for several, ``run``; ``shared``: rewards of one scale, so one
    y axis. KL in nats an answer on a square-root axis, as Gao, Schulman and Hilton draw it
    (arXiv:2210.10760); numbers are optimiser steps, the ring is the kept checkpoint.
    """
    df = df if "run" in df else df.assign(run="")
    runs = list(dict.fromkeys(df.run))
    figure, [axes] = canvas(0.9 + 4.3 * len(runs), 3.9, len(runs), sharey=shared)
    marks = {name: look for name, look in REWARDS.items() if df[name].notna().any()}
    for axis, run in zip(axes, runs, strict=True):
        part = df[(df.run == run) & df.kl.notna()].sort_values("step")
        for name, (colour, marker, dash) in marks.items():
            axis.plot(part.kl, part[name], dash, color=colour, marker=marker, ms=4, lw=1.3)
        axis.set_xscale("function", functions=(_root, _square))
        top = max(part.kl.max(), 1e-9)
        axis.set(
            xlim=(-0.002 * top, 1.1 * top),
            xlabel="KL to the base (nats an answer, square-root axis)",
        )
        ticks = [t for t in MaxNLocator(5).tick_values(0, top) if 0 < t <= 1.1 * top]
        near = float(f"{ticks[0] / 4:.1g}")  # one more near zero, where a square root has room
        axis.set_xticks(ticks := [0, near, *ticks], [f"{tick:g}" for tick in ticks])
        axis.margins(y=0.1)
        axis.set_title(run, fontsize=9)
        _steps(axis, part, next(iter(marks)))
        if (kept := _kept(part)) is not None:
            for name in marks:
                axis.plot(
                    part.kl[kept], part[name][kept], "o", mfc="none", mec="black", ms=9, mew=0.8
                )
    axes[0].set_ylabel("reward on held-out prompts")
    shown = {name: {"color": c, "marker": m, "ls": d} for name, (c, m, d) in marks.items()}
    kept = {"kept": {"marker": "o", "mfc": "none", "mec": "black", "ms": 9}}
    draw_legend(figure, shown | (kept if df.judged.notna().any() else {}))
    return figure


def _root(values):
    return np.sign(values) * np.sqrt(np.abs(values))  # below zero is the margin on the left


def _square(values):
    return np.sign(values) * np.square(values)


def _steps(axis, part: pd.DataFrame, column: str) -> None:
    """The step above the points of a column, where there is room for it beside the one before."""
    high, last = _root(part.kl.max()) or 1, -1.0
    for kl, value, step in part[["kl", column, "step"]].sort_values("kl").itertuples(index=False):
        if (at := _root(kl) / high) - last > 0.055:
            axis.annotate(
                f"{step:g}",
                (kl, value),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=7,
                color=GREY,
            )
            last = at


def plot_policy_by(df: pd.DataFrame) -> Figure:
    """Base beside GRPO by dimension or specialty, from ``tables.build_policy_by``.

    For each measure the values, and the difference paired by patient with its interval.
    """
    by, measures = df.columns[0], list(dict.fromkeys(df.measure))
    names = list(dict.fromkeys(df[by]))
    size = 2.2 + 5.2 * len(measures), 1.3 + 0.24 * max(len(names), 4)
    figure, [axes] = canvas(*size, 2 * len(measures), sharey=True)
    for number, measure in enumerate(measures):
        part = df[df.measure == measure].set_index(by).reindex(names)
        values, less = axes[2 * number : 2 * number + 2]
        y = name_rows(values, names)
        what, _, unit = measure.rpartition(" (")
        values.hlines(y, part.run_base, part.run_grpo, color=GREY, lw=1)
        values.plot(part.run_base, y, "s", color=ORANGE, ms=5)
        values.plot(part.run_grpo, y, "o", color=BLUE, ms=5)
        values.set(xlabel=f"{what}\n({unit}")
        if "%" in unit or "100" in unit:
            values.set_xlim(-2, 102)
        draw_interval(
            less,
            y,
            *(part[f"run_difference{end}"] for end in ("", "_low", "_high")),
            fmt="o",
            color=BLUE,
            ms=4,
            capsize=2,
        )
        less.axvline(0, color=GREY, lw=0.8, ls="--")
        less.set_xlabel(f"{what}:\nGRPO less base (points)")
        if names[0] == "all" and len(names) > 1:
            for axis in (values, less):
                axis.axhline(y[0] - 0.5, color=GREY, lw=0.8, ls=":")
    draw_legend(
        figure,
        {
            "base": {"marker": "s", "color": ORANGE},
            "GRPO": {"marker": "o", "color": BLUE},
            "paired difference, 95 % interval": {"marker": "o", "color": BLUE, "ls": "-"},
        },
    )
    return figure


def plot_policy_study(df: pd.DataFrame, base: str = "base") -> Figure:
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
    first, df = df[df.variant == base], df[df.variant != base].reset_index(drop=True)
    veto = df.veto.astype(bool).to_numpy()
    names = [
        label if n else f"{label} (not run)" for label, n in zip(df.label, df.seeds, strict=True)
    ]
    figure, [axes] = canvas(12, 1.4 + 0.32 * len(df), len(panels), sharey=True)
    for axis, (column, label) in zip(axes, panels.items(), strict=True):
        y = name_rows(axis, names)
        for kind, marker, colour in ((veto, "o", BLUE), (~veto, "X", RED)):
            ends = (df[f"{column}{end}"].to_numpy(float)[kind] for end in ("", "_low", "_high"))
            draw_interval(axis, y[kind], *ends, fmt=marker, color=colour, ms=6, capsize=3)
            if column == "violations":
                axis.plot(
                    df.plain_violations[kind], y[kind], marker, mfc="white", color=colour, ms=6
                )
            for height, cell in zip(y[kind], df[f"{column}_seeds"][kind], strict=True):
                seeds = [] if pd.isna(cell) else [float(v) for v in str(cell).split("|")]
                if len(seeds) > 1:
                    axis.plot(
                        seeds, [height - 0.27] * len(seeds), ".", color=colour, ms=4, alpha=0.7
                    )
        for value in first[column].dropna():
            axis.axvline(value, color="black", lw=0.9, ls="--", zorder=1)
        for n in np.flatnonzero(df.group.fillna("").ne(df.group.fillna("").shift()))[1:]:
            axis.axhline(y[n] + 0.5, color=GREY, lw=0.8, ls=":")
        axis.set(xlabel=label, xlim=(0, None))
    draw_legend(
        figure,
        {
            "veto in the reward": {"marker": "o", "color": BLUE},
            **({} if veto.all() else {"no veto": {"marker": "X", "color": RED, "ms": 6}}),
            "plainly said, the rest unknown": {"marker": "o", "color": BLUE, "mfc": "white"},
            "a training seed": {"marker": ".", "color": GREY, "ms": 4},
            "base": {"color": "black", "ls": "--", "lw": 0.9},
        },
    )
    return figure


def plot_specialty(df: pd.DataFrame) -> Figure:
    """Heat map of overall accuracy, systems by specialty, from ``tables.build_specialty``."""
    wide = df.pivot(index="specialty", columns="system", values="run_overall_accuracy")
    wide = wide[list(dict.fromkeys(df.system))]
    figure, [[axis]] = canvas(3.2 + 0.8 * len(wide.columns), 1.6 + 0.22 * len(wide))
    low = np.floor(np.nan_to_num(np.nanmin(wide.to_numpy(float))) / 10) * 10
    image = axis.imshow(wide, cmap="cividis", vmin=min(low, 90), vmax=100, aspect="auto")
    axis.grid(False)
    axis.set_yticks(range(len(wide)), wide.index)
    short = [name.split(" (")[0].replace(", ", ",\n") for name in wide.columns]
    axis.set_xticks(range(len(short)), short, rotation=35, ha="right", rotation_mode="anchor")
    for (row, column), value in np.ndenumerate(wide.to_numpy(float)):
        colour = "black" if value > (low + 100) / 2 else "white"
        text = "n/a" if np.isnan(value) else f"{value:.0f}"
        axis.text(column, row, text, ha="center", va="center", color=colour, fontsize=7)
    figure.colorbar(image, label="overall accuracy (%), this run")
    return figure


def plot_packed_mask(segments: np.ndarray, allowed: np.ndarray) -> Figure:
    """Attention mask of one packed sequence: ``segments`` (T,), ``allowed`` (T, T) bool."""
    kind = np.where(allowed, np.where(segments[None, :] == 0, 1, 2), 0)  # 0: not read
    figure, [[axis]] = canvas(6.4, 6)
    axis.imshow(kind, cmap=ListedColormap(["white", SKY, RED]), vmin=0, vmax=2)
    axis.grid(False)
    ends = np.flatnonzero(np.diff(segments, append=segments[-1] + 1)) + 1
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        text = f"c{number}" if number else "prompt and response"
        axis.text(len(segments) + 2, (start + end) / 2, text, va="center", fontsize=8)
        axis.axhline(end - 0.5, color=GREY, lw=0.4)
        axis.axvline(end - 0.5, color=GREY, lw=0.4)
    axis.set(xlabel="token that is read", ylabel="token that reads")
    hollow = {"mfc": "white", "mec": GREY}
    marks = {"shared": {"color": SKY}, "own criterion": {"color": RED}, "not read": hollow}
    draw_legend(figure, {name: {"marker": "s", **style} for name, style in marks.items()})
    return figure


def plot_training(df: pd.DataFrame) -> Figure:
    """Loss and pair accuracy by optimiser step; columns scorer, step, loss, accuracy."""
    figure, [[loss, accuracy]] = canvas(9, 3.2, 2)
    for scorer, part in df.groupby("scorer", sort=False):
        style = {"color": OF_SCORER[scorer], "label": scorer, "marker": "o", "ms": 3}
        loss.plot(part.step, part.loss, **style)
        accuracy.plot(part.step, part.accuracy * 100, **style)
    loss.set(xlabel="optimiser step", ylabel="loss (nats)")
    accuracy.set(xlabel="optimiser step", ylabel="training pairs ordered rightly (%)")
    accuracy.axhline(50, color=GREY, lw=0.8, ls="--")
    loss.legend(fontsize=7)
    return figure


def plot_reliability(df: pd.DataFrame) -> Figure:
    """Share met beside P(met), before and after calibration, in bins of equal size.

    Columns dimension, label, raw (sigmoid of the score) and probability (calibrated).
    """
    from sklearn.calibration import CalibrationDisplay

    figure, [axes] = canvas(8.4, 4.4, 2, sharey=True)
    for axis, column in zip(axes, ("raw", "probability"), strict=True):
        for dimension, part in df.groupby("dimension"):
            CalibrationDisplay.from_predictions(
                part.label,
                part[column],
                n_bins=8,
                strategy="quantile",
                ax=axis,
                marker="o",
                name=f"{dimension}, n = {len(part)}",
                color=OF_DIMENSION[dimension],
            )
    axes[0].set(xlabel="before: sigmoid of the score", ylabel="share that is met")
    axes[1].set(xlabel="after: P(met), calibrated", ylabel="")
    for axis in axes:
        handles = axis.get_legend_handles_labels()
        axis.get_legend().remove()
    figure.legend(*handles, loc="outside lower center", ncols=4, fontsize=8)
    return figure


def plot_speed(df: pd.DataFrame) -> Figure:
    """Times as fast packed as one by one, over K, over L, and on the clinic's mix, with the bound.

    From ``speed.summary``; the line is the bound that the tokens give.
    """
    figure, [axes] = canvas(10.5, 3.4, 3)
    for axis, case, column, label in (
        (axes[0], "over K", "K", "criteria K, at 480 shared tokens"),
        (axes[1], "over L", "L", "shared tokens L, at 7 criteria"),
    ):
        for task, colour, marker in (("scoring", BLUE, "o"), ("training", ORANGE, "s")):
            part = df[(df.case == case) & (df.task == task)].sort_values(column)
            axis.plot(part[column], part.ratio, marker, color=colour, label=f"{task}, measured")
        part = df[(df.case == case) & (df.task == "scoring")].sort_values(column)
        axis.plot(part[column], part.bound, color=GREY, lw=1, label="bound by tokens")
        axis.set(xlabel=label, ylabel="times as fast packed", ylim=(0, None))
        axis.set_xticks(sorted(part[column]))
    axes[1].set_xscale("log")
    axes[1].set_xticks(ticks := sorted(part[column]), [f"{tick:g}" for tick in ticks], rotation=45)
    axes[1].minorticks_off()
    axes[0].legend(fontsize=8)
    part = df[df.case.isin(["published", "clinic mix"])].sort_values(["case", "task"])
    names = [f"{c},\n{t}" for c, t in zip(part.case, part.task, strict=True)]
    y = name_rows(axes[2], names)
    axes[2].barh(
        y, part.ratio, height=0.5, color=part.task.map({"scoring": BLUE, "training": ORANGE})
    )
    axes[2].plot(part.bound, y, "|", color="black", ms=24, label="bound")
    for at, ratio, share in zip(y, part.ratio, part.share, strict=True):
        axes[2].text(
            0.1,
            at,
            f"{ratio:.2f}, {share:.0%} of the bound",
            va="center",
            color="white",
            fontsize=8,
        )
    axes[2].set(xlabel="times as fast packed")
    axes[2].grid(False, axis="y")
    return figure


def plot_reward_study(df: pd.DataFrame) -> Figure:
    """Pairs of seen and unseen kinds, and overall, a row a model; from ``reward_models.table``."""
    panels = {
        "pairs_seen": ("criterion pairs, kinds seen (%)", BLUE),
        "pairs_unseen": ("criterion pairs, kinds unseen (%)", SKY),
        "overall": ("overall, safety first (%)", RED),
    }
    figure, [axes] = canvas(11.5, 1.4 + 0.3 * len(df), len(panels), sharey=True)
    for axis, (column, (label, colour)) in zip(axes, panels.items(), strict=True):
        names = [
            f"{m} ({n} seeds)" if n > 1 else m for m, n in zip(df.model, df.seeds, strict=True)
        ]
        _points(axis, name_rows(axis, names), df, column, colour)
        axis.set(xlim=(0, 102), xlabel=label)
        axis.axvline(50, color=GREY, lw=0.8, ls=":")
    return figure


def plot_grades(df: pd.DataFrame) -> Figure:
    """Two physicians' grades of the same pairs, counts; columns physician_1, physician_2."""
    from sklearn.metrics import ConfusionMatrixDisplay

    figure, [[axis]] = canvas(4.2, 3.8)
    ConfusionMatrixDisplay.from_predictions(
        df.physician_1,
        df.physician_2,
        labels=[-2, -1, 0, 1, 2],
        ax=axis,
        cmap="Blues",
        display_labels=["-2", "-1", "0", "+1", "+2"],
        colorbar=False,
    )
    axis.grid(False)
    axis.set(xlabel="physician 2 (+: the first answer is better)", ylabel="physician 1")
    return figure


def plot_accuracy(df: pd.DataFrame, panels: dict, ceiling: float | None = None) -> Figure:
    """One panel a metric, one row a scorer; ``ceiling`` is that of criterion-blind scorers.

    ``df`` is ``bench.metrics``; ``panels``: label -> (metric, slice).
    """
    wanted = pd.MultiIndex.from_tuples(panels.values())
    df = df[df.n.gt(0) & pd.MultiIndex.from_frame(df[["metric", "slice"]]).isin(wanted)]
    df = df.assign(**df[["value", "low", "high"]] * 100)
    there = dict.fromkeys(df.scorer)
    scorers = [s for s in OF_SCORER if s in there] + [s for s in there if s not in OF_SCORER]
    size = 1.8 + 2.7 * len(panels), 1.5 + 0.42 * len(scorers)
    figure, [axes] = canvas(*size, len(panels), sharey=True)
    looks = {"adjudicated": ("o", 0.13), "truth": ("D", -0.13)}
    for axis, (label, asked) in zip(axes, panels.items(), strict=True):
        height = dict(zip(scorers, name_rows(axis, scorers), strict=True))
        for (*at, scorer, against), r in df.groupby(["metric", "slice", "scorer", "against"]):
            if tuple(at) == asked:
                mark, up = looks[against]
                draw_interval(
                    axis,
                    height[scorer] + up,
                    r.value,
                    r.low,
                    r.high,
                    fmt=mark,
                    ms=4.5,
                    capsize=3,
                    color=OF_SCORER.get(scorer, SKY),
                )
        axis.set(xlim=(-3, 103), xlabel=f"{label} (%)")
        if asked[0] == "pairwise":
            axis.axvline(50, color=GREY, lw=0.8, ls=":")
        if ceiling is not None and asked == ("pairwise", "all"):
            axis.axvline(ceiling * 100, color="black", lw=0.9, ls="--")
    marks = {
        f"against {a}": {"marker": m, "color": GREY}
        for a, (m, _) in looks.items()
        if a in set(df.against)
    }
    if ceiling is not None:
        marks["ceiling without criteria"] = {"marker": "|", "color": "black", "ms": 12}
    draw_legend(figure, marks)
    return figure


def plot_reward_order(df: pd.DataFrame, rewards: dict[str, str]) -> Figure:
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


def plot_paired(df: pd.DataFrame) -> Figure:
    """Paired differences in points; columns what, difference, low, high, above (the bound)."""
    figure, [[axis]] = canvas(7, 1 + 0.45 * len(df))
    y = name_rows(axis, df.what)
    draw_interval(axis, y, df.difference, df.low, df.high, fmt="o", color=BLUE, ms=5, capsize=4)
    axis.plot(df.above, y, "|", color=RED, ms=18)
    axis.axvline(0, color=GREY, lw=0.8, ls="--")
    axis.set_xlabel("points, 95 % interval; the red tick is what it has to stay above")
    return figure


def plot_funnel(df: pd.DataFrame) -> Figure:
    """What curation leaves: columns step, before, dropped, queued, after, in the order of the
    steps.

    Blue is what a step lets through, the hatched end what it drops or queues for a person.
    """
    figure, [[axis]] = canvas(7.5, 1.0 + 0.32 * len(df))
    y = name_rows(axis, df.step)
    axis.barh(y, df.after, color=BLUE)
    axis.barh(
        y, df.before - df.after, left=df.after, color="white", edgecolor=GREY, hatch="////", lw=0.5
    )
    for place, row in zip(y, df.itertuples(), strict=True):
        gone = f"   −{row.dropped:,}" if row.dropped else ""
        gone += f"   {row.queued:,} queued" if row.queued else ""
        axis.annotate(
            f"{row.after:,}{gone}",
            (row.before, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )
    axis.set(xlabel="instructions", xlim=(0, 1.22 * df.before.max()))
    axis.grid(axis="y", visible=False)
    return figure


def plot_pass_rate(df: pd.DataFrame, aimed: float) -> Figure:
    """Strict pass rate by review round on the blind sample, with its interval (fractions).

    ``df`` as from ``review.rounds``; ``aimed`` is the rate at which the rounds may end.
    """
    reviewed, df = df, df.dropna(subset="blind_pass_rate")
    figure, [[axis]] = canvas(6, 3.2)
    ends = np.clip([df.blind_pass_rate - df.low, df.high - df.blind_pass_rate], 0, None)
    axis.errorbar(
        df["round"], 100 * df.blind_pass_rate, yerr=100 * ends, fmt="o-", color=BLUE, capsize=4
    )
    axis.plot(reviewed["round"], 100 * reviewed.pass_rate, "s", color=ORANGE)
    axis.axhline(100 * aimed, color="black", lw=1, ls="--")
    draw_legend(
        figure,
        {
            "blind sample, 95 % interval": {"marker": "o", "color": BLUE},
            "batch before it": {"marker": "s", "color": ORANGE},
            "aimed at": {"color": "black", "ls": "--", "lw": 1},
        },
    )
    axis.set(xlabel="review round", ylabel="drafts passed unchanged (%)", xticks=df["round"])
    axis.set_ylim(top=min(103, axis.get_ylim()[1]))
    axis.margins(x=0.08)
    return figure


def plot_composition(df: pd.DataFrame) -> Figure:
    """Criteria of a rubric: columns category, and a dimension each with its mean count."""
    df = df.set_index("category")
    figure, [[axis]] = canvas(7, 1.2 + 0.3 * len(df))
    y, left = name_rows(axis, df.index), np.zeros(len(df))
    for name, hatch in zip(df.columns, ("", "///", "..."), strict=True):
        axis.barh(
            y,
            df[name],
            left=left,
            color=OF_DIMENSION[name],
            hatch=hatch,
            edgecolor="white",
            lw=0.5,
            label=name,
        )
        left += df[name].to_numpy()
    axis.set(xlabel="criteria a rubric, mean")
    axis.grid(axis="y", visible=False)
    figure.legend(loc="outside lower center", ncols=len(df.columns))
    return figure


def plot_judge_errors(df: pd.DataFrame) -> Figure:
    """Where a judge errs, by dimension: ``lenient`` lets pass what the expert finds not met.

    Columns dimension, error (lenient | strict), rate, low, high (fractions), n.
    """
    figure, [[axis]] = canvas(7, 1.4 + 0.45 * df.dimension.nunique())
    names = list(dict.fromkeys(df.dimension))
    y = dict(zip(names, name_rows(axis, names), strict=True))
    for error, shift, colour, mark in (("lenient", 0.15, RED, "o"), ("strict", -0.15, SKY, "s")):
        part = df[df.error == error]
        places = part.dimension.map(y).to_numpy() + shift
        draw_interval(
            axis,
            places,
            *(100 * part[c].to_numpy() for c in ("rate", "low", "high")),
            fmt=mark,
            color=colour,
            ms=5,
            capsize=4,
        )
        for place, row in zip(places, part.itertuples(), strict=True):
            axis.annotate(
                f"n = {row.n:,}",
                (100 * row.high, place),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                color=GREY,
                fontsize=8,
            )
    axis.set(xlabel="verdicts (%), 95 % interval", xlim=(0, None))
    axis.margins(x=0.15)
    lenient = {"marker": "o", "color": RED}
    strict = {"marker": "s", "color": SKY}
    draw_legend(
        figure, {"judge: met, expert: not met": lenient, "judge: not met, expert: met": strict}
    )
    return figure
