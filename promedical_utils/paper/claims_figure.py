"""The claims ledger as a forest plot, from ``claims.frame``: a row a claim that was tested."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from promedical_utils.core.plotting import (
    BLUE,
    GREY,
    RED,
    canvas,
    draw_interval,
    draw_legend,
    name_rows,
)
from promedical_utils.paper.claims import NOT_SEEN, SAME, UNTESTED

LOOKS = {SAME: (BLUE, "o"), NOT_SEEN: (RED, "s")}
SCALES = {"points": 1, "criteria": 100}  # what is counted by answer, in hundredths


def claims_forest(df: pd.DataFrame) -> Figure:
    """How far each claim's checks lie above their bounds, in the claimed direction.

    The weakest check of a claim is bold, its others are thin; all of one claim share its verdict's
    colour, and a failed one is a square. What the paper reports is hollow, drawn where it is of the
    same unit. Beside it the training seeds of the weakest check; untested claims are counted below.
    """
    untested = df[df.claim_verdict == UNTESTED].claim.nunique()
    df = df[df.difference.notna() & (df.claim_verdict != UNTESTED)]
    ends = df[["difference", "low", "high"]].sub(df.above, axis=0).mul(df.unit.map(SCALES), axis=0)
    df = df.assign(weakest=df.weakest.astype(bool), **ends)
    shown = df[df.weakest]
    figure, [[axis]] = canvas(9.5, 1.6 + 0.34 * len(shown))
    names = [
        name + " (1/100 criteria)" * (unit != "points")
        for name, unit in zip(shown.claim, shown.unit)
    ]
    heights = dict(zip(shown.claim, name_rows(axis, names), strict=True))
    # the others of a claim are spread below it
    number = (~df.weakest).groupby(df.claim).cumsum()
    step = 0.36 / number.groupby(df.claim).transform("max").clip(lower=3)
    y = df.claim.map(heights).astype(float)  # none at all in smoke
    df = df.assign(y=y + np.where(df.weakest, 0.1, -0.02 - number * step))
    for (verdict, bold), part in df.groupby(["verdict", "weakest"]):
        colour, mark = LOOKS[verdict]
        size = {"ms": 5, "capsize": 3} if bold else {"ms": 2, "alpha": 0.5}
        values = (part[name].to_numpy() for name in ("difference", "low", "high"))
        draw_interval(axis, part.y.to_numpy(), *values, fmt=mark, color=colour, **size)
    for label, row in zip(axis.get_yticklabels(), shown.itertuples(), strict=True):
        label.set_color(LOOKS[row.claim_verdict][0])
        label.set_fontweight("bold" if row.claim_verdict == NOT_SEEN else "normal")
        axis.annotate(
            f"{row.seeds:.0f}",
            (1.02, heights[row.claim]),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color=GREY,
        )
    reported = shown[(shown.unit == "points") & shown.reported.notna()]
    axis.plot(
        reported.reported,
        reported.claim.map(heights).astype(float) + 0.1,
        "D",
        mfc="white",
        mec="black",
        ms=5,
    )
    axis.annotate("seeds", (1.0, 1.0), xycoords="axes fraction", fontsize=8, color=GREY)
    axis.axvline(0, color="black", lw=0.9)
    for name in shown.drop_duplicates("where").claim[1:]:  # a line between the tables
        axis.axhline(heights[name] + 0.5, color=GREY, lw=0.6, ls=":")
    axis.set_xlabel(
        f"points above the claim's bound, 95 % interval; not testable here: {untested} more claims"
    )
    draw_legend(
        figure,
        {
            SAME: {"marker": "o", "color": BLUE},
            NOT_SEEN: {"marker": "s", "color": RED},
            "other checks of the claim": {"marker": "o", "color": GREY, "ms": 3},
            "reported": {"marker": "D", "mfc": "white", "mec": "black"},
        },
    )
    return figure
