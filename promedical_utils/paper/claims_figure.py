"""The claims ledger as a forest plot, from ``claims.frame``: a row a claim that was tested."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from promedical_utils.core import plotting
from promedical_utils.core.plotting import BLUE, GREEN, GREY, ORANGE, RED, SKY
from promedical_utils.core.verdicts import (
    CANNOT,
    CONTRADICTS,
    DIRECTION,
    HOLDS,
    NOT_SEEN,
    SAME,
    UNTESTED,
)

LOOKS = {
    HOLDS: (BLUE, "o"),
    DIRECTION: (SKY, "^"),
    SAME: (GREEN, "P"),
    CANNOT: (GREY, "v"),
    NOT_SEEN: (ORANGE, "s"),
    CONTRADICTS: (RED, "X"),
}
SCALES = {"points": 1, "criteria": 100}  # what is counted by answer, in hundredths
REPORTED = {"marker": "D", "mfc": "white", "mec": "black"}
OTHERS = {"marker": "o", "color": GREY, "ms": 3}
WIDTH = 66  # characters of a claim's line


def claims_forest(df: pd.DataFrame) -> Figure:
    """How far each claim's checks lie above their bounds, in the claimed direction.

    The weakest check of a claim is bold, its others are thin; colour and mark are its verdict. The
    margin of an equivalence is a grey band. What the paper reports is hollow, drawn where it is of
    the same unit. Beside it the training seeds of the weakest check; untested claims are counted
    below.
    """
    untested = df[df.claim_verdict == UNTESTED].claim.nunique()
    df = df[df.difference.notna() & (df.claim_verdict != UNTESTED)]
    ends = df[["difference", "low", "high"]].sub(df.above, axis=0).mul(df.unit.map(SCALES), axis=0)
    df = df.assign(weakest=df.weakest.astype(bool), **ends)
    shown = df[df.weakest]
    figure, [[axis]] = plotting.canvas(11, 1.6 + 0.42 * len(shown))
    units = shown.unit.map({"points": "", "criteria": " (1/100 criteria)"})
    rows = [textwrap.fill(text, WIDTH) for text in shown.says + units]
    heights = dict(zip(shown.claim, plotting.name_rows(axis, rows), strict=True))
    # the others of a claim are spread below it
    number = (~df.weakest).groupby(df.claim).cumsum()
    step = 0.36 / number.groupby(df.claim).transform("max").clip(lower=3)
    y = df.claim.map(heights).astype(float)  # none at all in smoke
    df = df.assign(y=y + np.where(df.weakest, 0.1, -0.02 - number * step))
    for (verdict, bold), part in df.groupby(["verdict", "weakest"]):
        colour, mark = LOOKS[verdict]
        size = {"ms": 5, "capsize": 3} if bold else {"ms": 2, "alpha": 0.5}
        values = (part[name].to_numpy() for name in ("difference", "low", "high"))
        plotting.draw_interval(axis, part.y.to_numpy(), *values, fmt=mark, color=colour, **size)
    for row in shown[shown.within.notna()].itertuples():
        reach, y = np.array([-row.within, row.within]), heights[row.claim] + 0.1
        axis.plot(reach, [y, y], color=GREY, lw=7, alpha=0.3, solid_capstyle="butt")
    small = {"fontsize": 8, "color": GREY}
    for label, row in zip(axis.get_yticklabels(), shown.itertuples(), strict=True):
        label.set_color(LOOKS[row.claim_verdict][0])
        label.set_fontweight("bold" if row.claim_verdict == CONTRADICTS else "normal")
        place, beside = (1.02, heights[row.claim]), ("axes fraction", "data")
        axis.annotate(f"{row.seeds:.0f}", place, xycoords=beside, va="center", **small)
    axis.annotate("seeds", (1.0, 1.0), xycoords="axes fraction", **small)
    reported = shown[(shown.unit == "points") & shown.reported.notna()]
    y = reported.claim.map(heights).astype(float) + 0.1
    axis.plot(reported.reported, y, ls="", ms=5, **REPORTED)
    axis.axvline(0, color="black", lw=0.9)
    for name in shown.drop_duplicates("where").claim[1:]:  # a line between the tables
        axis.axhline(heights[name] + 0.5, color=GREY, lw=0.6, ls=":")
    below = f"not testable here: {untested} more claims"
    axis.set_xlabel(f"points above the claim's bound, 95 % interval; {below}")
    looks = {name: {"marker": mark, "color": colour} for name, (colour, mark) in LOOKS.items()}
    looks = {name: look for name, look in looks.items() if name in set(df.verdict)}
    others = {"other checks of the claim": OTHERS, "reported": REPORTED}
    plotting.draw_legend(figure, looks | others)
    return figure
