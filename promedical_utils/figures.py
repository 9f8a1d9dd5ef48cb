"""Figures of the paper, drawn from a CSV: reported values hollow, this run's filled.

``plot_*`` take a data frame and give a Figure; ``save`` writes the CSV first and draws from what
it wrote; png and pdf carry no dates, so a rerun gives the same bytes.
"""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from promedical_utils.workspace import replacing

# Okabe and Ito's palette, told apart with any colour vision
BLUE, ORANGE, GREEN, RED, SKY, PURPLE, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#666666",
)  # fmt: skip
STYLE = {
    "backend": "agg",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.hashsalt": "promedical",
    "pdf.fonttype": 42,
}


def _figure(width: float, height: float, columns: int = 1, rows: int = 1, **kwargs):
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def _systems(axis, df: pd.DataFrame, label: str) -> np.ndarray:
    """One row a system, first on top; a dotted line between reported systems and the kit's."""
    y = np.arange(len(df))[::-1]
    axis.set_yticks(y, df.system)
    axis.set_ylim(-0.7, len(df) - 0.3)
    axis.set_xlim(0, 102)
    axis.set_xlabel(label)
    kit = df.filter(like="reported_").isna().all(axis=1).sum()
    if 0 < kit < len(df):
        axis.axhline(kit - 0.5, color=GREY, lw=0.8, ls=":")
    return y


def _points(axis, y, df: pd.DataFrame, column: str, colour: str, marker: str = "o") -> None:
    if f"reported_{column}" in df:
        axis.plot(df[f"reported_{column}"], y, marker, mfc="white", mec=colour, ms=5)
    value, low, high = (df[f"run_{column}{end}"].to_numpy(float) for end in ("", "_low", "_high"))
    error = np.nan_to_num(np.clip([value - low, high - value], 0, None))
    axis.errorbar(value, y, xerr=error, fmt=marker, color=colour, ms=5, capsize=4, lw=1)


def _legend(figure, marks) -> None:
    handles = [Line2D([], [], ls="", label=label, **style) for label, style in marks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))


def _panels(df: pd.DataFrame, shown: dict[str, tuple[str, str]]) -> Figure:
    """A panel a column, a row a system that has a value; reported hollow, this run filled."""
    values = [f"{who}_{column}" for column in shown for who in ("reported", "run")]
    df = df[df[values].notna().any(axis=1)]
    figure, [axes] = _figure(5 + 2.3 * len(shown), 1.4 + 0.27 * len(df), len(shown), sharey=True)
    for axis, (column, (label, colour)) in zip(axes, shown.items(), strict=True):
        _points(axis, _systems(axis, df, label), df, column, colour)
    hollow, filled = {"marker": "o", "mfc": "white", "mec": GREY}, {"marker": "o", "color": GREY}
    _legend(figure, {"reported": hollow, "this run, 95 % interval": filled})
    return figure


def plot_main_results(df: pd.DataFrame) -> Figure:
    """Overall and pairwise safety accuracy by system, from ``tables.build_main_results``."""
    safety = ("pairwise accuracy, safety (%)", RED)
    overall = ("overall accuracy (%)", BLUE)
    return _panels(df, {"overall_accuracy": overall, "pairwise_safety": safety})


def plot_safety_veto(df: pd.DataFrame) -> Figure:
    """Veto precision, recall and F1 by system, from ``tables.build_safety_veto``."""
    names = {"precision": ("precision", SKY), "recall": ("recall", ORANGE), "f1": ("F1", RED)}
    return _panels(df, {c: (f"{name} on violations (%)", hue) for c, (name, hue) in names.items()})


def plot_seen_unseen(df: pd.DataFrame) -> Figure:
    """Pairwise accuracy on seen and unseen criterion kinds, from ``tables.build_seen_unseen``."""
    df = df[df.run_pairwise_seen.notna() | df.run_pairwise_unseen.notna()]
    figure, [[axis]] = _figure(7.5, 1.4 + 0.42 * len(df))
    y = _systems(axis, df, "pairwise accuracy (%), this run, 95 % interval")
    _points(axis, y + 0.15, df, "pairwise_seen", BLUE)
    _points(axis, y - 0.15, df, "pairwise_unseen", ORANGE, "s")
    axis.axvline(50, color=GREY, lw=0.8, ls="--")
    axis.annotate("chance", (50, 1), xycoords=("data", "axes fraction"), ha="center", color=GREY)
    seen, unseen = {"marker": "o", "color": BLUE}, {"marker": "s", "color": ORANGE}
    _legend(figure, {"kinds seen in training": seen, "kinds unseen in training": unseen})
    return figure


def plot_policy_curve(df: pd.DataFrame) -> Figure:
    """GRPO on held-out prompts: gold beside proxy, violations, what is met, trainer's signals.

    Columns of policy/curve.csv; a split other than checkpoint is drawn thin.
    """
    panels = {
        "reward": {"proxy": RED, "gold": BLUE, "judged": ORANGE},
        "answers (%)": {"violation_rate": RED, "unparsed": GREY},
        "met: share of S1, number of S2": {"proficiency": BLUE, "excellence": GREEN},
        "KL to the base (nats)": {"kl": PURPLE},
        "entropy (nats)": {"entropy": SKY},
        "length (tokens)": {"length": GREY},
    }
    names = {"violation_rate": "with a violation", "unparsed": "with an unknown verdict"}
    dashes = ("-", "--", ":")
    figure, axes = _figure(10, 5, 3, 2, sharex=True)
    for axis, (label, lines) in zip(axes.flat, panels.items(), strict=True):
        for (column, colour), dash in zip(lines.items(), dashes, strict=False):
            for split, part in df[df[column].notna()].groupby("split"):
                held_out, text = split == "checkpoint", names.get(column, column)
                style = {"marker": "o", "ms": 3.5} if held_out else {"lw": 0.8, "alpha": 0.6}
                text = text if held_out else f"{text}, {split}"
                y = part[column] * (100 if "%" in label else 1)
                axis.plot(part.step, y, color=colour, label=text, ls=dash, **style)
        axis.set_ylabel(label)
        if len(axis.lines) > 1:
            axis.legend(fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel("optimiser step")
    return figure


def plot_specialty(df: pd.DataFrame) -> Figure:
    """Heat map of overall accuracy, systems by specialty, from ``tables.build_specialty``."""
    wide = df.pivot(index="specialty", columns="system", values="run_overall_accuracy")
    wide = wide[list(dict.fromkeys(df.system))]
    figure, [[axis]] = _figure(3.2 + 0.8 * len(wide.columns), 1.6 + 0.22 * len(wide))
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


def save(plot, df: pd.DataFrame, folder: Path, name: str, note: str = "") -> Path:
    """Write ``name``.csv, then draw ``name``.png and .pdf from it; returns the CSV's path."""
    csv = Path(folder) / f"{name}.csv"
    with replacing(csv) as temporary:
        df.to_csv(temporary, index=False, lineterminator="\n", float_format="%.6g")
    draw(plot, csv, note)
    return csv


def draw(plot, csv: Path, note: str = "") -> None:
    """Draw a CSV as png (150 dpi) and pdf beside it, ``note`` (``tables.note``) on top."""
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
        figure = plot(pd.read_csv(csv))
        if note:
            figure.suptitle(note, fontsize=8, color=GREY)
        metadata = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None}}
        for ending, facts in metadata.items():
            with replacing(csv.with_suffix(f".{ending}")) as temporary:
                figure.savefig(temporary, format=ending, dpi=150, metadata=facts)
