"""The claims ledger as a forest plot, from ``claims.frame``: a row a claim that was tested."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from promedical_utils.core import plotting
from promedical_utils.core.plotting import BLUE, GREY, RED
from promedical_utils.paper.claims import NOT_SEEN, SAME, UNTESTED

LOOKS = {SAME: (BLUE, "o"), NOT_SEEN: (RED, "s")}
SCALES = {"points": 1, "criteria": 100}  # what is counted by answer, in hundredths
REPORTED = {"marker": "D", "mfc": "white", "mec": "black"}
OTHERS = {"marker": "o", "color": GREY, "ms": 3}


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
    figure, [[axis]] = plotting.canvas(9.5, 1.6 + 0.34 * len(shown))
    units = shown.unit.map({"points": "", "criteria": " (1/100 criteria)"})
    heights = dict(
        zip(shown.claim, plotting.name_rows(axis, [*(shown.claim + units)]), strict=True)
    )
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
    small = {"fontsize": 8, "color": GREY}
    for label, row in zip(axis.get_yticklabels(), shown.itertuples(), strict=True):
        label.set_color(LOOKS[row.claim_verdict][0])
        label.set_fontweight("bold" if row.claim_verdict == NOT_SEEN else "normal")
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
    verdicts = {name: {"marker": mark, "color": colour} for name, (colour, mark) in LOOKS.items()}
    others = {"other checks of the claim": OTHERS, "reported": REPORTED}
    plotting.draw_legend(figure, verdicts | others)
    return figure
