"""Figures of the paper, drawn from a CSV: reported values hollow, this run's filled.

``plot_*`` take a data frame and give a Figure; ``save`` writes the CSV first and draws from what
it wrote; png and pdf carry no dates, so a rerun gives the same bytes. ``show`` draws in a notebook.
"""

import io
from base64 import b64encode
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from promedical_utils.workspace import replacing

# Okabe and Ito's palette, told apart with any colour vision
BLUE, ORANGE, GREEN, RED, SKY, PURPLE, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9", "#CC79A7", "#666666",
)  # fmt: skip
OF_DIMENSION = {"proficiency": BLUE, "excellence": GREEN, "safety": RED}
OF_SCORER = {"criterion": BLUE, "criterion_clean": GREEN, "scalar_overall": ORANGE,
             "scalar_blind": RED, "words": PURPLE, "length": GREY}  # fmt: skip
OF_VERDICT = {"met": BLUE, "not_met": ORANGE, "unknown": GREY}
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


# ---------------------------------------------------------------- in the notebooks


def show(plot, *args, **kwargs) -> None:
    """Display ``plot(...)`` in a notebook, in the kit's style."""
    from IPython.display import display

    stream = io.BytesIO()
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
        plot(*args, **kwargs).savefig(stream, format="png", dpi=100, metadata={"Software": None})
    picture = b64encode(stream.getvalue()).decode()
    display({"image/png": picture, "text/plain": "<Figure>"}, raw=True)


def plot_packed_mask(segments: np.ndarray, allowed: np.ndarray) -> Figure:
    """Attention mask of one packed sequence: ``segments`` (T,), ``allowed`` (T, T) bool."""
    kind = np.where(allowed, np.where(segments[None, :] == 0, 1, 2), 0)  # 0: not read
    figure, [[axis]] = _figure(6.4, 6)
    axis.imshow(kind, cmap=ListedColormap(["white", SKY, RED]), vmin=0, vmax=2)
    axis.grid(False)
    ends = np.flatnonzero(np.diff(segments, append=segments[-1] + 1)) + 1
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        text = f"c{number}" if number else "prompt and response"
        axis.text(len(segments) + 2, (start + end) / 2, text, va="center", fontsize=8)
        axis.axhline(end - 0.5, color=GREY, lw=0.4)
        axis.axvline(end - 0.5, color=GREY, lw=0.4)
    axis.set_xlabel("token that is read")
    axis.set_ylabel("token that reads")
    marks = {"shared": {"color": SKY}, "own criterion": {"color": RED}, "not read":
             {"mfc": "white", "mec": GREY}}  # fmt: skip
    _legend(figure, {name: {"marker": "s", **style} for name, style in marks.items()})
    return figure


def plot_training(df: pd.DataFrame) -> Figure:
    """Loss and pair accuracy by optimiser step; columns scorer, step, loss, accuracy."""
    figure, [axes] = _figure(9, 3.2, 2)
    for axis, (column, label) in zip(
        axes, {"loss": "loss (nats)", "accuracy": "training pairs ordered rightly (%)"}.items(),
        strict=True,
    ):  # fmt: skip
        for scorer, part in df.groupby("scorer", sort=False):
            y = part[column] * (100 if column == "accuracy" else 1)
            axis.plot(part.step, y, color=OF_SCORER[scorer], label=scorer, marker="o", ms=3)
        axis.set_ylabel(label)
        axis.set_xlabel("optimiser step")
    axes[1].axhline(50, color=GREY, lw=0.8, ls="--")
    axes[0].legend(fontsize=7)
    return figure


def plot_reliability(df: pd.DataFrame, bins: int = 8) -> Figure:
    """Share met beside P(met), in bins of equal size; columns dimension, probability, label."""
    from sklearn.calibration import calibration_curve

    figure, [[axis]] = _figure(4.6, 4.6)
    axis.plot([0, 1], [0, 1], color=GREY, lw=0.8, ls="--", label="as often as said")
    for dimension, part in df.groupby("dimension"):
        met, said = calibration_curve(part.label, part.probability, n_bins=bins, strategy="quantile")
        text = f"{dimension}, n = {len(part)}"
        axis.plot(said, met, "o-", ms=4, color=OF_DIMENSION[dimension], label=text)
    axis.set_xlabel("P(met) that the model gives")
    axis.set_ylabel("share that is met")
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylim(-0.02, 1.02)
    axis.legend(fontsize=8)
    return figure


def plot_scored_response(df: pd.DataFrame) -> Figure:
    """P(met) by criterion; columns label, dimension, probability, cutoff, verdict (colour)."""
    figure, [[axis]] = _figure(8.5, 1.2 + 0.3 * len(df))
    y = np.arange(len(df))[::-1]
    axis.barh(y, df.probability, color=[OF_VERDICT[v] for v in df.verdict], height=0.7)
    axis.plot(df.cutoff, y, "k|", ms=16)
    axis.set_yticks(y, df.dimension + ": " + df.label)
    for tick, dimension in zip(axis.get_yticklabels(), df.dimension, strict=True):
        tick.set_color(OF_DIMENSION[dimension])
    axis.set_xlim(0, 1.02)
    axis.grid(False, axis="y")
    axis.set_xlabel("P(met); the black tick is where met begins")
    marks = {f"judge: {v}": {"marker": "s", "color": hue} for v, hue in OF_VERDICT.items()}
    _legend(figure, marks)
    return figure


def plot_grades(df: pd.DataFrame) -> Figure:
    """Two physicians' grades of the same pairs, counts; columns physician_1, physician_2."""
    levels = range(-2, 3)
    counts = pd.crosstab(df.physician_1, df.physician_2).reindex(
        index=levels, columns=levels, fill_value=0
    )
    figure, [[axis]] = _figure(4.2, 3.8)
    axis.imshow(counts, cmap="Blues", vmax=max(1, counts.to_numpy().max()) * 1.3)
    axis.grid(False)
    axis.set_xticks(range(5), [f"{v:+d}" if v else "0" for v in levels])
    axis.set_yticks(range(5), [f"{v:+d}" if v else "0" for v in levels])
    for (row, column), value in np.ndenumerate(counts.to_numpy()):
        colour = "white" if value > 0.7 * counts.to_numpy().max() else "black"
        axis.text(column, row, value or "", ha="center", va="center", color=colour)
    axis.set_xlabel("physician 2 (+: the first answer is better)")
    axis.set_ylabel("physician 1")
    return figure


def plot_accuracy(df: pd.DataFrame, panels: dict, ceiling: float | None = None) -> Figure:
    """One panel a metric, one row a scorer, 95 % intervals; circles: adjudicated, diamonds: truth.

    ``df`` is ``bench.metrics``; ``panels``: label -> (metric, slice); ``ceiling`` is that of
    criterion-blind scorers, on pairwise accuracy over all.
    """
    wanted = pd.MultiIndex.from_tuples(panels.values())
    df = df[df.n.gt(0) & pd.MultiIndex.from_frame(df[["metric", "slice"]]).isin(wanted)]
    scorers = [s for s in OF_SCORER if s in set(df.scorer)]
    figure, [axes] = _figure(1.8 + 2.7 * len(panels), 1.5 + 0.42 * len(scorers), len(panels),
                             sharey=True)  # fmt: skip
    looks = {"adjudicated": ("o", 0.13), "truth": ("D", -0.13)}
    for axis, (label, (metric, slice)) in zip(axes, panels.items(), strict=True):
        part = df[(df.metric == metric) & (df.slice == slice)]
        for r in part.itertuples():
            (mark, up), y = looks[r.against], len(scorers) - 1 - scorers.index(r.scorer)
            ends = np.nan_to_num(np.clip([[r.value - r.low], [r.high - r.value]], 0, None)) * 100
            axis.errorbar(r.value * 100, y + up, xerr=ends, fmt=mark, ms=4.5, lw=1, capsize=3,
                          color=OF_SCORER[r.scorer])  # fmt: skip
        axis.set_yticks(range(len(scorers)), scorers[::-1])
        axis.set_ylim(-0.6, len(scorers) - 0.4)
        axis.set_xlim(-3, 103)
        axis.set_xlabel(f"{label} (%)")
        if metric == "pairwise":
            axis.axvline(50, color=GREY, lw=0.8, ls=":")
        if ceiling is not None and (metric, slice) == ("pairwise", "all"):
            axis.axvline(ceiling * 100, color="black", lw=0.9, ls="--")
    marks = {f"against {a}": {"marker": m, "color": GREY}
             for a, (m, _) in looks.items() if a in set(df.against)}  # fmt: skip
    if ceiling is not None:
        marks["ceiling without criteria"] = {"marker": "|", "color": "black", "ms": 12}
    _legend(figure, marks)
    return figure


def plot_reward_order(df: pd.DataFrame, rewards: dict[str, str]) -> Figure:
    """Reward of every (s1, s2, s3); ``rewards``: column -> title, a panel each, a row an S3."""
    figure, [axes] = _figure(9, 2.6, len(rewards), sharey=True)
    for axis, (column, title) in zip(axes, rewards.items(), strict=True):
        points = axis.scatter(df[column], df.s3, c=df.s1, cmap="cividis", marker="|", s=320)
        for s3, part in df.groupby("s3"):
            axis.axvline(part[column].max(), color=GREY, lw=0.6, ls=":" if s3 else "-")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("reward")
        axis.set_yticks(sorted(df.s3.unique()))
        axis.set_ylim(df.s3.max() + 0.6, -0.6)
    axes[0].set_ylabel("violations, S3")
    figure.colorbar(points, label="S1")
    return figure


def plot_paired(df: pd.DataFrame) -> Figure:
    """Paired differences in points; columns what, difference, low, high, above (the bound)."""
    figure, [[axis]] = _figure(7, 1 + 0.45 * len(df))
    y = np.arange(len(df))[::-1]
    ends = np.nan_to_num(np.clip([df.difference - df.low, df.high - df.difference], 0, None))
    axis.errorbar(df.difference, y, xerr=ends, fmt="o", color=BLUE, ms=5, capsize=4, lw=1)
    axis.plot(df.above, y, "|", color=RED, ms=18)
    axis.set_yticks(y, df.what)
    axis.set_ylim(-0.6, len(df) - 0.4)
    axis.axvline(0, color=GREY, lw=0.8, ls="--")
    axis.set_xlabel("points, 95 % interval; the red tick is what it has to stay above")
    return figure
