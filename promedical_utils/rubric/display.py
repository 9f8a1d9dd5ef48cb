"""Cards, coloured grids and small figures for the notebooks, each with a plain-text twin.

No colour stands alone: whatever a colour says, a mark or a word says too.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import wraps
from html import escape

import matplotlib

from promedical_utils.core.plotting import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    STYLE,
    as_png,
    canvas,
)
from promedical_utils.core.records import DIMENSIONS, Instruction, Rubric
from promedical_utils.rubric import preferences, scoring

COLOURS = {"proficiency": BLUE, "excellence": GREEN, "safety": RED}
MARKS = {
    "met": ("✓ met", "background:#cfe6f5"),
    "not_met": ("✗ not met", "background:#f8d3bd"),
    "unknown": ("? unknown", "background:#e4e4e4;font-style:italic"),
}
BOLD = "font-weight:bold;white-space:nowrap"
WARN, LEAFLET = "background:#fbe6b8", "background:#eef5fa"
CELL = "padding:3px 9px;text-align:left;vertical-align:top;border-bottom:1px solid #dddddd;"
FRAME = "background:white;color:black;display:inline-block;border:1px solid #bbb;padding:8px 12px"


@dataclass(frozen=True)
class Card:
    """What a notebook shows: ``html`` or ``png`` in a browser, ``text`` anywhere else."""

    text: str
    html: str | None = None
    png: bytes | None = None

    def _repr_html_(self) -> str | None:
        return self.html

    def _repr_png_(self) -> bytes | None:
        return self.png

    def __repr__(self) -> str:
        return self.text


def table(title: str, rows: Iterable, bold: Iterable[str] = ()) -> Card:
    """Rows of texts or (text, css), all of one length, as a card; ``bold`` words stand out."""
    rows = [[cell if isinstance(cell, tuple) else (cell, "") for cell in row] for row in rows]
    words = re.compile(rf"\b({'|'.join(map(re.escape, bold)) or '(?!)'})\b")
    body = ""
    for row in rows:
        shown = [(words.sub(r"<b>\1</b>", escape(text)), css) for text, css in row]
        cells = "".join(f'<td style="{CELL}{css}">{text}</td>' for text, css in shown)
        body += f'<tr style="background:white;color:black">{cells}</tr>'
    body = f'<table style="border-collapse:collapse">{body}</table>'
    html = f'<div style="{FRAME}"><b>{escape(title)}</b>{body}</div>'
    widths = [max(len(text) for text, _ in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(t.ljust(w) for (t, _), w in zip(row, widths)).rstrip() for row in rows]
    return Card("\n".join((title, *lines)), html)


def _dimension(name: str) -> tuple[str, str]:
    return name, f"border-left:8px solid {COLOURS[name]};{BOLD}"


def _ordered(criteria: Iterable) -> list:
    return sorted(criteria, key=lambda c: DIMENSIONS.index(c.dimension))


def _weight(criterion) -> str:
    """0.25 ▇▇, or nothing where there is no weight."""
    return (
        f"{criterion.weight:.2f} {'▇' * round(10 * criterion.weight)}" if criterion.weight else ""
    )


def _scores(group: preferences.Group) -> list[scoring.Scores]:
    """Scores of each answer, from the group's verdicts."""
    verdicts = [
        {c.id: group.verdicts[a.id, c.id] for c in group.criteria} for a in group.candidates
    ]
    return [scoring.score(group.rubric, of_answer) for of_answer in verdicts]


def _names(group: preferences.Group) -> dict[str, tuple[str, str]]:
    """Candidate id -> "A (warm)" in bold."""
    return {c.id: (f"{chr(65 + n)} ({c.generator})", BOLD) for n, c in enumerate(group.candidates)}


def message(instruction: Instruction, bold: Iterable[str] = ()) -> Card:
    """A conversation, a row a turn; a leaflet in it a row a fact."""
    who, rows = {"user": "patient", "assistant": "clinic", "system": "system"}, []
    for turn in instruction.messages:
        said, _, leaflet = turn.content.partition("Leaflet: ")
        facts = re.findall(r"[^.]+\.\s*", leaflet)
        said = f"{said.strip()} {leaflet[len(''.join(facts)) :]}".strip() or "(sends the leaflet)"
        rows += [[(who[turn.role], BOLD), said]]
        rows += [["leaflet", (fact.strip(), LEAFLET)] for fact in facts]
    return table(f"{instruction.id}: {instruction.category}, {instruction.specialty}", rows, bold)


def answers(group: preferences.Group, bold: Iterable[str] = ()) -> Card:
    """The answers of a group, named by a letter and their generator."""
    names = _names(group)
    rows = [[names[c.id], c.text] for c in group.candidates]
    return table(f"answers to {group.instruction.id}", rows, bold)


def rubric(written: Rubric, gold: Rubric | None = None) -> Card:
    """A rubric by dimension, with its weights; beside ``gold``, what is wrong with it."""
    right = {c.id: c for c in (gold or written).criteria}
    rows = []
    for c in _ordered(written.criteria):
        bar = _weight(c)
        asked, wrong = right.get(c.id), ""
        if not asked:
            wrong = "⚠ not asked for"
        elif c.dimension != asked.dimension:
            wrong = f"⚠ wrong dimension: this is {asked.dimension}"
        elif c.text != asked.text:
            wrong = f"⚠ wrong fact: {asked.text}"
        css = WARN if wrong else ""
        rows.append([_dimension(c.dimension), (c.text, css), (bar, f"color:{BLUE}"), (wrong, css)])
    for c in (c for c in right.values() if c.id not in {kept.id for kept in written.criteria}):
        rows.append([_dimension(c.dimension), ("-", WARN), "", (f"⚠ missing: {c.text}", WARN)])
    return table(f"{written.status} rubric of {written.instruction_id}", rows)


def grid(group: preferences.Group, other: Mapping | None = None) -> Card:
    """Verdicts, criteria by answers, over S1, S2, S3; both where the judge's, ``other``, differ."""
    rows = [["", "", *_names(group).values()]]
    for c in _ordered(group.criteria):
        row = [_dimension(c.dimension), c.text]
        for key in ((candidate.id, c.id) for candidate in group.candidates):
            text, css = MARKS[group.verdicts[key]]
            if other and other[key] != group.verdicts[key]:
                text += f" (judge: {MARKS[other[key]][0][0]})"
                css += f";outline:2px solid {ORANGE}"
            row.append((text, css))
        rows.append(row)
    found = _scores(group)
    for name, values in {
        "S1, weight of proficiency met": [f"{s.s1:.2f}" for s in found],
        "S2, excellence met": [str(s.s2) for s in found],
        "S3, violations": [str(s.s3) for s in found],
        "place, safety first": [str(1 + sum(o.key > s.key for o in found)) for s in found],
    }.items():
        rows.append(["", (name, BOLD), *((value, BOLD) for value in values)])
    return table(f"verdicts on the answers to {group.instruction.id}", rows)


def before_after(group: preferences.Group, why: str = "") -> Card:
    """Two policies' answers to one patient and, beside each criterion, the verdicts on both.

    ``group`` as from ``policy_answers.beside``, the first answer before and the last after; ``why``
    it is this patient stands in the title. The last column says what changed.
    """
    names = _names(group)
    before, after = group.candidates[0].id, group.candidates[-1].id
    rows = [
        ["", ("criterion", BOLD), ("weight", BOLD), names[before], names[after], ("change", BOLD)]
    ]
    for c in _ordered(group.criteria):
        said = [group.verdicts[answer, c.id] for answer in (before, after)]
        met = [verdict == "met" for verdict in said]
        change = "" if met[0] == met[1] else "▲ now met" if met[1] else "▼ no longer met"
        bar = (_weight(c), f"color:{BLUE};white-space:nowrap")
        rows.append(
            [_dimension(c.dimension), c.text, bar, *(MARKS[v] for v in said), (change, BOLD)]
        )
    scores = _scores(group)
    for name, key, form in (
        ("S1, weight of proficiency met", "s1", ".2f"),
        ("S2, excellence met", "s2", "d"),
        ("S3, violations", "s3", "d"),
    ):
        one, two = getattr(scores[0], key), getattr(scores[-1], key)
        less = f"{two - one:+{form}}" if abs(two - one) > scoring.TIE else ""
        cells = (f"{one:{form}}", f"{two:{form}}", less)
        rows.append(["", (name, BOLD), "", *((cell, BOLD) for cell in cells)])
    title = f"{group.instruction.id}, before and after{f': {why}' if why else ''}"
    said, asked = table(title, rows), answers(group)
    return Card(f"{said.text}\n\n{asked.text}", f"{said.html}<br>{asked.html}")


def scored(group: preferences.Group, answer: str, found, calibration, text: bool = True) -> Card:
    """One answer (id) scored criterion by criterion; ``found`` is ``model.Scored``.

    A bar is P(met), the mark where met begins: on safety the veto threshold. ``text=False`` numbers
    the criteria in place of their words, for data whose text is not to be shown.
    """
    rows = [
        [
            "",
            ("criterion", BOLD),
            ("reward", BOLD),
            ("P(met)", BOLD),
            "",
            ("model", BOLD),
            ("judge", BOLD),
        ]
    ]
    begins = float(calibration.probability(calibration.threshold, "safety"))
    for n, c in enumerate(_ordered(group.criteria), 1):
        likely, at = found.probabilities[c.id], begins if c.dimension == "safety" else 0.5
        full, mark = round(20 * likely), min(19, round(20 * at))
        bar = "".join("│" if i == mark else "█" if i < full else "·" for i in range(20))
        model, judge = ("met" if found.met[c.id] else "not_met"), group.verdicts[answer, c.id]
        words = c.text if text else f"c{n}"
        colour = f"color:{COLOURS[c.dimension]};font-family:monospace;white-space:nowrap"
        rows.append(
            [
                _dimension(c.dimension),
                words,
                f"{found.rewards[c.id]:+.2f}",
                f"{likely:.2f}",
                (bar, colour),
                MARKS[model],
                MARKS[judge],
            ]
        )
    by = f", by {len(found.violated)} criteria" if found.violated else ""
    total = f"S1 = {found.s1:.2f}, S2 = {found.s2}, S3 = {found.s3}: {found.verdict}{by}"
    return table(f"{answer}: {total}", rows)


def instances(group: preferences.Group, a: str, b: str) -> Card:
    """A pair of answers (ids) as its training instances: who is chosen, given each criterion."""
    pairs = {
        p.criterion_id: p.chosen_id
        for p in preferences.criterion_pairs(group)
        if {p.chosen_id, p.rejected_id} == {a, b}
    }
    names = _names(group)
    rows = [["", ("criterion c", BOLD), names[a], names[b], ("instance", BOLD)]]
    for c in _ordered(group.criteria):
        last = ("none: c does not tell them apart", f"color:{GREY}")
        if c.id in pairs:
            first, second = (names[i][0][0] for i in ((a, b) if pairs[c.id] == a else (b, a)))
            last = (f"{first} ≻ {second}, given c", BOLD)
        said = [MARKS[group.verdicts[i, c.id]] for i in (a, b)]
        rows.append([_dimension(c.dimension), c.text, *said, last])
    return table(f"one pair of answers, K = {len(pairs)} training instances", rows)


def _picture(plot):
    """Draw in the kit's style into a card; the same data give the same bytes."""

    @wraps(plot)
    def drawn(*args, title: str, **kwargs) -> Card:
        with matplotlib.rc_context({**matplotlib.rcParamsDefault, **STYLE}):
            figure = plot(*args, **kwargs)
            figure.suptitle(title, fontsize=9)
            return Card(f"<Figure: {title}>", png=as_png(figure, 100))

    return drawn


@_picture
def bars(frame, label: str, colours: Iterable[str] = (), line: float | None = None):
    """Stacked horizontal bars: a row a bar, a column a part; ``line`` is a value to compare to."""
    figure, [[axis]] = canvas(7, 1.1 + 0.24 * len(frame))
    colours, left = list(colours) or [COLOURS[c] for c in frame.columns], 0
    style = {"edgecolor": "white", "lw": 0.5}
    for column, colour, hatch in zip(frame.columns, colours, ("", "///", "..."), strict=False):
        part = frame[column].fillna(0).to_numpy()
        filled = {"color": colour, "hatch": hatch, "label": column}
        drawn = axis.barh(frame.index.map(str), part, left=left, **filled, **style)
        left = left + part
    axis.bar_label(drawn, [f"{round(float(end), 2):g}" for end in left], padding=3)
    axis.invert_yaxis()
    axis.margins(x=0.08)
    axis.set(xlim=(0, None), xlabel=label)
    if line is not None:
        axis.axvline(line, color="black", lw=1, ls="--")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@_picture
def curve(frame, label: str, marks: Mapping[str, float] | None = None):
    """Columns of ``frame`` over its index; ``marks`` are named places on the way."""
    figure, [[axis]] = canvas(7, 2.8)
    colours = dict(zip(frame.columns, (BLUE, ORANGE, PURPLE), strict=False))
    frame.plot(ax=axis, style=["o-", "s-", "^-"], color=colours, ms=4, ylabel=label, legend=None)
    for text, place in (marks or {}).items():
        axis.axvline(place, color=GREY, lw=0.8, ls=":")
        style = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        axis.annotate(text, (place, 1), xytext=(3, -8), color=GREY, fontsize=8, **style)
    axis.margins(y=0.15)
    axis.xaxis.get_major_locator().set_params(integer=True)
    if len(frame.columns) > 1:
        axis.legend()
    return figure
