"""One style for all figures; files are alike at every drawing: no dates, one font and one salt."""

import io
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image
from seaborn import objects as so

from promedical_utils.core.workspace import replacing, write_frame, write_json

# Okabe and Ito's palette, told apart with any colour vision
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
SKY, PURPLE, GREY = "#56B4E9", "#CC79A7", "#666666"
OF_DIMENSION = {"proficiency": BLUE, "excellence": GREEN, "safety": RED}
OF_SCORER = {
    "criterion": BLUE,
    "criterion_clean": GREEN,
    "criterion_swapped": SKY,
    "scalar_overall": ORANGE,
    "scalar_blind": RED,
    "near_words": PURPLE,
    "length": GREY,
}
HATCHES = ("", "///", "...", "xxx")
THEME = {
    **sns.axes_style("whitegrid"),
    **sns.plotting_context("paper"),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "grid.color": "#dddddd",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so it is the same everywhere
    "figure.constrained_layout.w_pad": 0.08,
    "legend.frameon": False,
    "svg.hashsalt": "promedical",
    "pdf.fonttype": 42,
}
STYLE = {**matplotlib.rcParamsDefault, "backend": "agg", **THEME}
HOLLOW = {"marker": "o", "mfc": "none", "mec": GREY}
FILLED = {"marker": "o", "color": GREY, "ls": "-", "lw": 1}
CHANCE = {"color": GREY, "ls": ":", "lw": 1}


def canvas(width: float, height: float, columns: int = 1, rows: int = 1, **kwargs):
    """(Figure, axes (rows, columns)) of a size in inches; ``kwargs`` as of ``Figure.subplots``."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def interval_plot(
    df: pd.DataFrame,
    looks: Mapping[str, Mapping],
    hollow: str = "reported",
    line: tuple[str, Mapping] | None = None,
    more: Mapping[str, Mapping] | None = None,
    limits: Sequence[float] | None = (0, 102),
    panel_width: float = 2.5,
    panels: Iterable[str] = (),
) -> Figure:
    """Values with their intervals: a row a system, a panel a measure; the axes are row by row.

    ``df`` is tidy: row, value, low, high (NaN: no interval), and where needed series; hollow (bool:
    not of this run); panel, the label of the value's axis; block (its panels share their rows);
    group (a dotted line parts them, else the reported from the others); line, a value that those of
    its panel are held against; note, written behind the interval. ``looks``: series -> color and
    marker. The legend names the series, ``hollow``, ``line`` (label and style) and ``more``, label
    -> style. ``limits`` of the values' axes, None for what they take; ``panels`` come first.
    """
    defaults = dict(series=next(iter(looks)), hollow=False, panel="", block="", line=np.nan)
    df = df.assign(**{name: value for name, value in defaults.items() if name not in df})
    if df.empty:
        return canvas(6, 2)[0]
    if "group" not in df:
        df = df.assign(group=(df.hollow & df.value.notna()).groupby(df.row).transform("any"))
    panels = [panel for panel in dict.fromkeys([*panels, *df.panel]) if panel in set(df.panel)]
    rows = {name: part.drop_duplicates("row") for name, part in df.groupby("block", sort=False)}
    sizes = [len(part) + 0.8 for part in rows.values()]
    shared = df.groupby("panel").series.nunique().max()  # series of one panel
    width = 0.4 + 0.062 * df.row.map(len).max() + panel_width * len(panels)
    height = 0.9 + (0.2 + 0.08 * shared) * sum(sizes)
    figure = Figure(figsize=(width, height), layout="constrained")
    plot = _intervals(df, looks).share(x="col" if limits is None else True, y="row")
    plot = plot.facet(col="panel", row="block", order={"col": panels, "row": list(rows)})
    plot.theme(THEME).on(figure).plot()
    grid = figure.axes[0].get_gridspec()
    assert grid is not None, "facets stand in a grid"
    grid.set_height_ratios(sizes)
    if limits is not None:
        figure.axes[0].set_xlim(*limits)
    label, style = line or ("", {})
    for axis, (block, panel) in zip(figure.axes, product(rows, panels), strict=True):
        names, group = rows[block].row, rows[block].group.to_numpy()
        axis.set(xlabel=panel, ylabel="", title="", ylim=(len(names) - 0.5, -0.5))
        axis.set_title(block if panel == panels[0] else "", loc="left")
        axis.set_yticks(range(len(names)), names)
        for above in np.flatnonzero(group[1:] != group[:-1]):
            axis.axhline(above + 0.5, color=GREY, lw=0.8, ls=":")
        for value in df.line[(df.block == block) & (df.panel == panel)].dropna().unique():
            axis.axvline(value, **style)
    legend = {name: looks[name] for name in looks if shared > 1 and name in set(df.series)}
    legend |= {hollow: HOLLOW} if df.value[df.hollow].notna().any() else {}
    legend |= {"this run, 95 % interval": FILLED}
    legend |= {label: style} if label and df.line.notna().any() else {}
    draw_legend(figure, legend | dict(more or {}))
    return figure


def _intervals(df: pd.DataFrame, looks: Mapping[str, Mapping]) -> so.Plot:
    """The marks of an interval plot: lines, points and notes behind them; series of one row are
    spread about its height ``y``."""
    row = df.groupby("block").row.transform(lambda names: pd.factorize(names)[0]).astype(float)
    known = df.assign(y=row, place=df.series.map(list(looks).index)).dropna(subset="value")
    cell = known.groupby(["block", "panel", "row"]).place
    rank, count = cell.rank(method="dense"), cell.transform("nunique")
    known = known.assign(y=known.y + 0.7 * ((rank - 0.5) / count - 0.5)).reset_index(drop=True)
    layer = {"orient": "y", "legend": False}
    plot = so.Plot(known, x="value", y="y", color="series", marker="series")
    plot = plot.add(so.Range(linewidth=1.1), xmin="low", xmax="high", **layer)
    plot = plot.add(so.Dot(pointsize=5, edgewidth=1.1), fill="hollow", **layer)
    if "note" in df:
        behind = so.Text(halign="left", offset=6, fontsize=8, color=GREY)
        plot = plot.add(behind, x="high", text="note", **layer)
    colors, markers = ({name: looks[name][part] for name in looks} for part in ("color", "marker"))
    return plot.scale(color=colors, marker=markers, fill={False: True, True: False})


def stacked_bars(
    wide: pd.DataFrame, label: str, colours: Iterable[str] = (), ends: Iterable[str] | None = None
) -> Figure:
    """Horizontal bars: a bar a row of ``wide``, a part a column, told apart by hatch too; ``ends``
    are written behind them, else the sums. By default the columns are dimensions."""
    figure, [[axis]] = canvas(7, 1.1 + 0.28 * len(wide))
    colours = list(colours) or [OF_DIMENSION[column] for column in wide.columns]
    style = {"color": colours, "width": 0.75, "ec": "white", "lw": 0.5}
    wide.rename(index=str).plot.barh(stacked=True, ax=axis, legend=False, **style)
    for parts, hatch in zip(axis.containers, HATCHES, strict=False):
        for part in parts:
            part.set_hatch(hatch)
    sums = [f"{round(float(end), 2):g}" for end in wide.fillna(0).sum(axis=1)]
    axis.bar_label(axis.containers[-1], sums if ends is None else list(ends), padding=3)
    axis.invert_yaxis()
    axis.grid(False, axis="y")
    axis.margins(x=0.08)
    axis.set(xlabel=label, ylabel="", xlim=(0, None))
    if len(colours) > 1:
        figure.legend(handles=axis.containers, loc="outside lower center", ncols=3)
    return figure


def name_rows(axis, names) -> np.ndarray:
    """A row a name, the first on top; their heights, (N,)."""
    y = np.arange(len(names))[::-1]
    axis.set_yticks(y, names)
    axis.set_ylim(-0.6, len(names) - 1 + 0.6)
    return y


def draw_interval(axis, y, value, low, high, **style) -> None:
    """Points with their intervals; an end that is NaN is not drawn."""
    ends = np.nan_to_num(np.clip([value - low, high - value], 0, None))
    axis.errorbar(value, y, xerr=ends, lw=1, **style)


def draw_legend(figure, marks: Mapping[str, Mapping]) -> None:
    """A legend of ``marks``, label -> style, below all panels, in one line where there is room."""
    handles = [Line2D([], [], **{"ls": "", **style}, label=label) for label, style in marks.items()]
    widths = [0.65 + 0.065 * len(label) for label in marks]  # inches, about
    room = figure.get_figwidth()
    columns = len(marks) if sum(widths) < room else max(1, int(room / max(widths)))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns)


def save(plot, df: pd.DataFrame, folder: Path, name: str, note: str = "", facts=None) -> Path:
    """Write ``name``.csv, draw ``name``.png and .pdf from it, and write ``facts`` on what it was
    drawn from, if given, to ``name``.json; returns the CSV's path."""
    csv = Path(folder) / f"{name}.csv"
    write_frame(csv, df, float_format="%.6g")
    draw(plot, csv, note)
    if facts is not None:
        facts = {"figure": name, "note": note, "rows": len(df), **facts}
        write_json(csv.with_suffix(".json"), facts)
    return csv


def draw(plot, csv: Path, note: str) -> None:
    """Draw a CSV as png (150 dpi) and pdf beside it, ``note`` (``tables.note``) on top."""
    with matplotlib.rc_context(STYLE):
        figure = plot(pd.read_csv(csv))
        if note:
            figure.suptitle(note, fontsize=8, color=GREY)
        with replacing(csv.with_suffix(".png")) as temporary:
            temporary.write_bytes(as_png(figure, 150))
        undated = {"CreationDate": None, "Producer": None}
        with replacing(csv.with_suffix(".pdf")) as temporary:
            figure.savefig(temporary, format="pdf", dpi=150, metadata=undated)


def as_png(figure: Figure, dpi: int) -> bytes:
    """In a palette of 256 colours: looks the same, and half of the bytes are kept for ever."""
    drawn, kept = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    picture = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(kept, "PNG", optimize=True)
    return kept.getvalue()


def show(plot, *args, **kwargs) -> None:
    """Display ``plot(...)`` in a notebook, in the kit's style."""
    from IPython.display import display

    with matplotlib.rc_context(STYLE):
        picture = b64encode(as_png(plot(*args, **kwargs), 100)).decode()
    display({"image/png": picture, "text/plain": "<Figure>"}, raw=True)
