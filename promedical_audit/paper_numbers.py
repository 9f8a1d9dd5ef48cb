"""Do the paper's own numbers add up? Every table of ``paper_values``, checked with ``arithmetic``.

The checks and their sentences are data, in ``paper_numbers.yaml``, with ``formulas`` for functions.
*does not add up* is kept for what reported facts contradict. Nothing of a run is in here.
"""

import json
from collections.abc import Iterator
from fractions import Fraction
from functools import cache, partial
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from promedical_audit import arithmetic, formulas
from promedical_audit.arithmetic import ADDS_UP, DOES_NOT, NO_TEST, UNTOLD, number
from promedical_utils import __version__
from promedical_utils.core import plotting, workspace
from promedical_utils.core.plotting import BLUE, GREY, ORANGE, RED, SKY, canvas
from promedical_utils.core.workspace import KitError

READS = ("papers_figures/paper_values", "promedical_audit")  # what a rerun hangs on, besides code
CHECKS = workspace.read_yaml(Path(__file__).with_suffix(".yaml"))
TABLES = tuple(CHECKS["tables"])
FIELDS = ("id", "tables", "check", "verdict", "finding", "computed", "chance", "strength", "marks")
VERDICTS = (DOES_NOT, UNTOLD, ADDS_UP, NO_TEST)  # in the order of audit.md
Values = dict[str, pd.DataFrame]


def folder() -> Path:
    """Where the reported values are."""
    return workspace.project_root() / "papers_figures" / "paper_values"


def read() -> Values:
    """Every table of reported values as texts, its first column the index, and *denominators*."""
    values = {name: arithmetic.read(folder() / f"{name}.csv") for name in TABLES}
    values = {name: table.set_index(table.columns[0]) for name, table in values.items()}
    return values | {"denominators": arithmetic.read(folder() / "denominators.csv")}


# Jinja with ``formulas`` as its functions and filters; an unknown name is an error
LANGUAGE = Environment(undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True)
LANGUAGE.globals = {"otherwise": True} | vars(formulas)
LANGUAGE.filters |= vars(formulas)
_compiled = cache(partial(LANGUAGE.compile_expression, undefined_to_none=False))


def _evaluated(formula, facts: dict):
    """A formula's value; what is no text, such as a list of cases, stands for itself."""
    return _compiled(formula)(**facts) if isinstance(formula, str) else formula


def _filled(sentence: str, facts: dict) -> str:
    return LANGUAGE.from_string(sentence).render(facts)


def _worked_out(let: dict[str, str], facts: dict) -> dict:
    """The facts and, one after the other, what the formulas of ``let`` make of them."""
    for name, formula in let.items():
        facts = facts | {name: _evaluated(formula, facts)}
    return facts


def _facts(values: Values) -> dict:
    """What every formula starts from: tables as {column: {row: text}}, denominators, sizes."""
    facts: dict = {"denominators": values["denominators"].to_dict("records")}
    for name in TABLES:
        facts[name] = {c: cells[cells != ""].to_dict() for c, cells in values[name].items()}
    return _worked_out(CHECKS["let"], facts)


def _cases(loops: dict, facts: dict) -> Iterator[dict]:
    """The facts once for every case of the nested ``loops``, {name: list or formula}."""
    if not loops:
        yield facts
        return
    (name, cases), *inner = loops.items()
    for case in _evaluated(cases, facts):
        yield from _cases(dict(inner), facts | {name: case})


def findings(values: Values) -> pd.DataFrame:
    """All findings, a row each: FIELDS, in the order of the tables."""
    facts, checks = _facts(values), CHECKS["findings"]
    rows = [_finding(c, case) for c in checks for case in _cases(c.get("each", {}), facts)]
    return pd.DataFrame(rows, columns=list(FIELDS))


def _finding(check: dict, case: dict) -> dict:
    facts = _worked_out(check.get("let", {}), case)
    sentences = {k: _filled(check.get(k, ""), facts) for k in ("id", "finding", "computed")}
    verdict, chance = _verdict(check["verdict"], facts), _evaluated(check.get("chance"), facts)
    strength = "none" if verdict == NO_TEST else ""
    if chance is not None:
        strength = strength or ("strong" if chance <= 0.05 else "fair" if chance <= 0.5 else "weak")
        chance = float(f"{chance:.3g}")
    return check | sentences | {"verdict": verdict, "chance": chance, "strength": strength}


def _verdict(rule: str | dict, facts: dict) -> str:
    """A verdict as it is given, by its formula, or the first of which the condition holds."""
    if isinstance(rule, dict):
        return next(verdict for verdict, when in rule.items() if _evaluated(when, facts))
    return rule if rule in VERDICTS else _evaluated(rule, facts)


def counts(findings: pd.DataFrame) -> dict[str, int]:
    """Verdict -> how many findings."""
    return {verdict: int(findings.verdict.eq(verdict).sum()) for verdict in VERDICTS}


def markdown(findings: pd.DataFrame) -> str:
    """The findings for people, what does not add up first."""
    parts = {verdict: findings[findings.verdict == verdict] for verdict in VERDICTS}
    rows = {verdict: part.to_dict("records") for verdict, part in parts.items() if len(part)}
    return _filled(CHECKS["page"], {"about": CHECKS["about"], "parts": rows})


def percentages(values: Values) -> pd.DataFrame:
    """Every percentage whose denominator is known or argued, a row each (and reading of it);
    ``distance``: reported less the nearest possible value, in units of the last decimal, of which
    half a one is rounding; ``half_step``: the largest such distance that there is."""
    rows = []
    for d in values["denominators"].to_dict("records"):
        name, column, table = d["table"], d["column"], values.get(d["table"], pd.DataFrame())
        if column not in table:
            raise KitError(f"denominators.csv: no column {column} in {name}.csv")
        n, items, places = (int(d[c]) for c in ("n", "items", "decimals"))
        step = Fraction(100 * 10**places, n * items)  # between two counts, in the last decimal
        for row, text, mark in zip(table.index, table[column], table["mark"]):
            if not text:
                continue
            check, at = arithmetic.grim(text, n, places, items), number(text) * 10**places / step
            cell = {"table": name, "column": column, "row": row, "n": n}
            cell |= {"reported": arithmetic.rounded(number(text), places), "verdict": check.verdict}
            cell |= {"distance": float((at - round(at)) * step), "half_step": float(step / 2)}
            cell |= {"chance": check.chance, "reading": d["reading"]}
            rows.append(cell | {"marks": f"{mark} {d['mark']}", "finding": check.finding})
    return pd.DataFrame(rows)


def plot_percentages(df: pd.DataFrame) -> Figure:
    """How far each of ``percentages`` is from the nearest count. The blue band is what rounding
    allows; what fails is named where most of a column fits a strong check."""
    groups = list(df.groupby(["table", "column", "n"], sort=False))
    figure, [[axis]] = canvas(9.5, 1.6 + 0.36 * len(groups))
    names = [f"{t.replace('_', ' ')}: {c.replace('_', ' ')}, of {n:,}" for (t, c, n), _ in groups]
    for y, (_, part) in zip(plotting.name_rows(axis, names), groups, strict=True):
        half, fails = part.half_step.iloc[0], part.verdict.eq(DOES_NOT)
        axis.plot([-half, half], [y, y], color="#dddddd", lw=9, solid_capstyle="butt", zorder=1)
        style = {"ls": "", "mfc": "white", "ms": 6, "zorder": 3}
        for marker, colour, rows in (("o", BLUE, part[~fails]), ("x", RED, part[fails])):
            axis.plot(rows.distance, [y] * len(rows), marker=marker, mec=colour, **style)
        if 2 * fails.sum() < len(part) and part.chance.iloc[0] < 0.5:
            above = {"xytext": (0, 6), "textcoords": "offset points", "ha": "center"}
            for row in part[fails].itertuples():
                text, at = f"{float(row.reported):.2f}", (row.distance, y)
                axis.annotate(text, at, **above, fontsize=7, color=RED)
    axis.axvspan(-0.5, 0.5, color=SKY, alpha=0.25, lw=0, zorder=0)
    axis.set_xscale("symlog", linthresh=1, linscale=1)
    ticks = (-20, -5, -1, -0.5, 0, 0.5, 1, 5, 20)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
    axis.minorticks_off()
    axis.set_xlabel("reported value less the nearest count (units of its last decimal)")
    axis.set_xlim(-40, 40)
    marks = {
        "a count, to rounding": {"marker": "o", "mfc": "white", "mec": BLUE},
        "no count": {"marker": "x", "mec": RED},
        "where random values lie": {"marker": "s", "color": "#dddddd", "ms": 9},
    }
    plotting.draw_legend(figure, marks)
    return figure


def gains(values: Values) -> pd.DataFrame:
    """The abstract's gains and the differences of rows that could be meant, in points."""
    frame, facts = pd.DataFrame(CHECKS["gains"])[["what", "gain", "kind", "mark"]], _facts(values)
    return frame.assign(gain=[float(_evaluated(formula, facts)) for formula in frame.gain])


def plot_gains(df: pd.DataFrame) -> Figure:
    """The abstract's gains beside what the tables subtract to, from ``gains``; all reported."""
    figure, [[axis]] = canvas(8, 1.3 + 0.34 * len(df))
    names = [f"{what} ({mark})" for what, mark in zip(df.what, df.mark, strict=True)]
    looks = {"abstract": ("D", GREY), "judges": ("o", BLUE), "policy": ("s", ORANGE)}
    beside = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
    for y, row in zip(plotting.name_rows(axis, names), df.itertuples(), strict=True):
        marker, colour = looks[row.kind]
        axis.plot(row.gain, y, marker, mfc="white", mec=colour, ms=7)
        axis.annotate(f"{row.gain:.4g}", (row.gain, y), **beside)
    axis.set(xlabel="gain (points), as reported", xlim=(0, 26))
    return figure


def save(profile, run: Path) -> pd.DataFrame:
    """Write audit/ of a run: audit.csv, .md and .json, percentages and gains with figures; the same
    in every profile. Returns the findings."""
    values, out = read(), Path(run) / "audit"
    table = findings(values)
    workspace.write_frame(out / "audit.csv", table, float_format="%.3g")
    note = "Reported values of the paper (P, N, n: how each is known); nothing of a run."
    plotting.save(plot_percentages, percentages(values), out, "percentages", note)
    plotting.save(plot_gains, gains(values), out, "gains", note)
    workspace.write_text(out / "audit.md", markdown(table))
    facts = {"about": CHECKS["about"], "kit": __version__, "verdicts": counts(table)}
    facts |= {"profile": profile.name, "seed": profile.seed}
    facts["findings"] = json.loads(table.to_json(orient="records"))
    paths = folder().glob("*.csv")
    facts["sources"] = {f"paper_values/{path.name}": workspace.sha256(path) for path in paths}
    workspace.write_json(out / "audit.json", facts)
    return table
