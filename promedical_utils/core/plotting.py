"""One style for all figures: palette, canvas, intervals, legends; files alike at every drawing."""

import io
from base64 import b64encode
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from promedical_utils.core.workspace import replacing, write_json

# Okabe and Ito's palette, told apart with any colour vision
BLUE, ORANGE, GREEN, RED, SKY, PURPLE, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#56B4E9",
    "#CC79A7",
    "#666666",
)
OF_DIMENSION = {"proficiency": BLUE, "excellence": GREEN, "safety": RED}
OF_SCORER = {
    "criterion": BLUE,
    "criterion_clean": GREEN,
    "scalar_overall": ORANGE,
    "scalar_blind": RED,
    "words": PURPLE,
    "length": GREY,
}
STYLE = {
    **matplotlib.rcParamsDefault,
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


def canvas(width: float, height: float, columns: int = 1, rows: int = 1, **kwargs):
    """(Figure, axes (rows, columns)) of a size in inches; ``kwargs`` as of ``Figure.subplots``."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **kwargs)


def name_rows(axis, names, margin: float = 0.6) -> np.ndarray:
    """One row a name, the first on top; their heights (N,)."""
    y = np.arange(len(names))[::-1]
    axis.set_yticks(y, names)
    axis.set_ylim(-margin, len(names) - 1 + margin)
    return y


def draw_interval(axis, y, value, low, high, **style) -> None:
    """Points with their intervals; an end that is NaN is not drawn."""
    ends = np.nan_to_num(np.clip([value - low, high - value], 0, None))
    axis.errorbar(value, y, xerr=ends, lw=1, **style)


def draw_legend(figure, marks, columns: int = 0) -> None:
    """A legend below all panels: ``marks`` is label -> style of its marker; ``columns``: 0 for one
    line."""
    handles = [Line2D([], [], **{"ls": "", **style}, label=label) for label, style in marks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=columns or len(handles))


def save(plot, df: pd.DataFrame, folder: Path, name: str, note: str = "", facts=None) -> Path:
    """Write ``name``.csv, then draw ``name``.png and .pdf from it; returns the CSV's path.

    ``facts``: a dict that ``name``.json is to hold, such as what it was drawn from.
    """
    csv = Path(folder) / f"{name}.csv"
    with replacing(csv) as temporary:
        df.to_csv(temporary, index=False, lineterminator="\n", float_format="%.6g")
    draw(plot, csv, note)
    if facts is not None:
        write_json(
            csv.with_suffix(".json"), {"figure": name, "note": note, "rows": len(df), **facts}
        )
    return csv


def draw(plot, csv: Path, note: str = "") -> None:
    """Draw a CSV as png (150 dpi) and pdf beside it, ``note`` (``tables.note``) on top."""
    with matplotlib.rc_context(STYLE):
        figure = plot(pd.read_csv(csv))
        if note:
            figure.suptitle(note, fontsize=8, color=GREY)
        with replacing(csv.with_suffix(".png")) as temporary:
            temporary.write_bytes(as_png(figure, 150))
        with replacing(csv.with_suffix(".pdf")) as temporary:
            figure.savefig(
                temporary, format="pdf", dpi=150, metadata={"CreationDate": None, "Producer": None}
            )


def as_png(figure: Figure, dpi: int) -> bytes:
    """In a palette of 256 colours: looks the same, and half of the bytes are kept for ever."""
    drawn, kept = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=dpi)
    picture = Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(kept, "PNG", optimize=True)
    return kept.getvalue()


# ---------------------------------------------------------------- in the notebooks


def show(plot, *args, **kwargs) -> None:
    """Display ``plot(...)`` in a notebook, in the kit's style."""
    from IPython.display import display

    with matplotlib.rc_context(STYLE):
        picture = b64encode(as_png(plot(*args, **kwargs), 100)).decode()
    display({"image/png": picture, "text/plain": "<Figure>"}, raw=True)
