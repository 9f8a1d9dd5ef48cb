"""Cards, coloured grids and small figures for the notebooks, each with a plain-text twin; whatever
a colour says, a mark or a word says too.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from html import escape

import matplotlib

from promedical_utils.core import plotting
from promedical_utils.core.plotting import BLUE, GREY, ORANGE
from promedical_utils.core.plotting import OF_DIMENSION as COLOURS
from promedical_utils.core.plotting import RED as RED
from promedical_utils.core.records import DIMENSIONS, Instruction, Rubric
from promedical_utils.rubric import preferences, scoring

MARKS = {
    "met": ("✓ met", "background:#cfe6f5"),
    "not_met": ("✗ not met", "background:#f8d3bd"),
    "unknown": ("? unknown", "background:#e4e4e4;font-style:italic"),
}
BOLD = "font-weight:bold;white-space:nowrap"
WARN, LEAFLET = "background:#fbe6b8", "background:#eef5fa"
NO_TEXT = "(sends the leaflet)"
SCORES = (  # what is said below verdicts of an answer's ``scoring.Scores``: words, field, format
    ("S1, weight of proficiency met", "s1", ".2f"),
    ("S2, excellence met", "s2", "d"),
    ("S3, violations", "s3", "d"),
)
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
    return sorted(criteria, key=lambda criterion: DIMENSIONS.index(criterion.dimension))


def _weight(criterion) -> tuple[str, str]:
    """0.25 ▇▇, or nothing where there is no weight."""
    weight = criterion.weight
    text = f"{weight:.2f} {'▇' * round(10 * weight)}" if weight else ""
    return text, f"color:{BLUE};white-space:nowrap"


def _names(group: preferences.Group) -> dict[str, str]:
    """Candidate id -> "A (warm)"."""
    return {c.id: f"{chr(65 + n)} ({c.generator})" for n, c in enumerate(group.candidates)}


def _by_criterion(title: str, group, header, cells: Callable, scores=(), text=True) -> Card:
    """A row a criterion: its dimension and text (or number), then ``cells(criterion)``; the texts
    of ``header`` over them, rows of ``scores`` below."""
    rows: list[list] = [["", *((word, BOLD) if word else "" for word in header)]]
    for n, criterion in enumerate(_ordered(group.criteria), 1):
        name = criterion.text if text else f"c{n}"
        rows.append([_dimension(criterion.dimension), name, *cells(criterion)])
    rows += [["", *((word, BOLD) for word in row)] for row in scores]
    return table(title, rows)


def message(instruction: Instruction, bold: Iterable[str] = ()) -> Card:
    """A conversation, a row a turn; a leaflet in it a row a fact."""
    roles, rows = {"user": "patient", "assistant": "clinic", "system": "system"}, []
    for turn in instruction.messages:
        text, _, leaflet = turn.content.partition("Leaflet: ")
        facts = re.findall(r"[^.]+\.\s*", leaflet)
        rest = leaflet[len("".join(facts)) :]
        rows.append([(roles[turn.role], BOLD), f"{text.strip()} {rest}".strip() or NO_TEXT])
        rows += [["leaflet", (fact.strip(), LEAFLET)] for fact in facts]
    return table(f"{instruction.id}: {instruction.category}, {instruction.specialty}", rows, bold)


def answers(group: preferences.Group, bold: Iterable[str] = ()) -> Card:
    """The answers of a group, named by a letter and their generator."""
    names = _names(group)
    rows = [[(names[answer.id], BOLD), answer.text] for answer in group.candidates]
    return table(f"answers to {group.instruction.id}", rows, bold)


def rubric(written: Rubric, gold: Rubric | None = None) -> Card:
    """A rubric by dimension, with its weights; beside ``gold``, what is wrong with it."""
    right, rows = {c.id: c for c in (gold or written).criteria}, []
    for criterion in _ordered(written.criteria):
        wanted = right.pop(criterion.id, None)
        wrong = ""
        if not wanted:
            wrong = "⚠ not asked for"
        elif criterion.dimension != wanted.dimension:
            wrong = f"⚠ wrong dimension: this is {wanted.dimension}"
        elif criterion.text != wanted.text:
            wrong = f"⚠ wrong fact: {wanted.text}"
        css = WARN if wrong else ""
        texts = (criterion.text, css), _weight(criterion), (wrong, css)
        rows.append([_dimension(criterion.dimension), *texts])
    for criterion in right.values():
        missing = f"⚠ missing: {criterion.text}"
        rows.append([_dimension(criterion.dimension), ("-", WARN), ("", ""), (missing, WARN)])
    return table(f"{written.status} rubric of {written.instruction_id}", rows)


def grid(group: preferences.Group, other: Mapping | None = None) -> Card:
    """Verdicts, criteria by answers, over S1, S2, S3; both where the judge's, ``other``, differ."""

    def cells(criterion) -> Iterable:
        for key in ((answer.id, criterion.id) for answer in group.candidates):
            text, css = MARKS[group.verdicts[key]]
            if other and other[key] != group.verdicts[key]:
                text += f" (judge: {MARKS[other[key]][0][0]})"
                css += f";outline:2px solid {ORANGE}"
            yield text, css

    scores = group.scores.values()
    below = [(name, *(format(getattr(s, key), form) for s in scores)) for name, key, form in SCORES]
    places = (str(1 + sum(other.key > s.key for other in scores)) for s in scores)
    below.append(("place, safety first", *places))
    title = f"verdicts on the answers to {group.instruction.id}"
    return _by_criterion(title, group, ["", *_names(group).values()], cells, below)


def before_after(group: preferences.Group, why: str = "") -> Card:
    """Two policies' answers to one patient and, beside each criterion, the verdicts on both and
    what changed; ``group`` as from ``policy_answers.beside``, ``why`` it is this patient."""
    names = _names(group)
    ends = before, after = group.candidates[0].id, group.candidates[-1].id

    def cells(criterion) -> tuple:
        first, last = (group.verdicts[answer, criterion.id] for answer in ends)
        change = "▲ now met" if last == "met" else "▼ no longer met"
        same = (first == "met") == (last == "met")
        return _weight(criterion), MARKS[first], MARKS[last], ("" if same else change, BOLD)

    scores, below = [*group.scores.values()], []
    for name, key, form in SCORES:
        first, last = getattr(scores[0], key), getattr(scores[-1], key)
        change = f"{last - first:+{form}}" if abs(last - first) > scoring.TIE else ""
        below.append((name, "", f"{first:{form}}", f"{last:{form}}", change))
    title = f"{group.instruction.id}, before and after{f': {why}' if why else ''}"
    header = ["criterion", "weight", names[before], names[after], "change"]
    verdicts, texts = _by_criterion(title, group, header, cells, below), answers(group)
    return Card(f"{verdicts.text}\n\n{texts.text}", f"{verdicts.html}<br>{texts.html}")


def scored(group: preferences.Group, answer: str, result, calibration, text: bool = True) -> Card:
    """One answer (id) scored criterion by criterion; ``result`` is ``model.Scored``. A bar is
    P(met), the mark where met begins: on safety the veto threshold. ``text=False`` numbers the
    criteria in place of their words, for data whose text is not to be shown."""
    veto = float(calibration.probability(calibration.threshold, "safety"))

    def cells(criterion) -> tuple:
        name, dimension = criterion.id, criterion.dimension
        probability = result.probabilities[name]
        full = round(20 * probability)
        mark = min(19, round(20 * (veto if dimension == "safety" else 0.5)))
        bar = "".join("│" if i == mark else "█" if i < full else "·" for i in range(20))
        colour = f"color:{COLOURS[dimension]};font-family:monospace;white-space:nowrap"
        verdicts = "met" if result.met[name] else "not_met", group.verdicts[answer, name]
        numbers = f"{result.rewards[name]:+.2f}", f"{probability:.2f}", (bar, colour)
        return *numbers, *(MARKS[verdict] for verdict in verdicts)

    by = f", by {len(result.violated)} criteria" if result.violated else ""
    total = f"S1 = {result.s1:.2f}, S2 = {result.s2}, S3 = {result.s3}: {result.verdict}{by}"
    header = ("criterion", "reward", "P(met)", "", "model", "judge")
    return _by_criterion(f"{answer}: {total}", group, header, cells, text=text)


def instances(group: preferences.Group, a: str, b: str) -> Card:
    """A pair of answers (ids) as its training instances: who is chosen, given each criterion."""
    names, instances = _names(group), {}
    for pair in preferences.criterion_pairs(group):
        if {pair.chosen_id, pair.rejected_id} == {a, b}:
            chosen, rejected = names[pair.chosen_id][0], names[pair.rejected_id][0]
            instances[pair.criterion_id] = (f"{chosen} ≻ {rejected}, given c", BOLD)
    none = ("none: c does not tell them apart", f"color:{GREY}")

    def cells(criterion) -> tuple:
        verdicts = (MARKS[group.verdicts[answer, criterion.id]] for answer in (a, b))
        return *verdicts, instances.get(criterion.id, none)

    title = f"one pair of answers, K = {len(instances)} training instances"
    return _by_criterion(title, group, ["criterion c", names[a], names[b], "instance"], cells)


def bars(wide, label: str, colours: Iterable[str] = (), *, title: str) -> Card:
    """``plotting.stacked_bars`` in the kit's style; the same data give the same bytes."""
    with matplotlib.rc_context(plotting.STYLE):
        figure = plotting.stacked_bars(wide, label, colours)
        figure.suptitle(title, fontsize=9)
        return Card(f"<Figure: {title}>", png=plotting.as_png(figure, 100))
