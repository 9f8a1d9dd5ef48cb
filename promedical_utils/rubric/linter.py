"""What may be wrong with rubrics: wording, pairs, weights, dimensions, and what the veto reads.

The checks, how grave they are and what to do stand in ``linter.yaml``. They read words, not
meaning: docs/lint.md says how often each is right. Nothing here changes a rubric.
"""

import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from promedical_utils.core import plotting
from promedical_utils.core.records import DIMENSIONS
from promedical_utils.core.workspace import read_yaml

_LISTS = read_yaml(Path(__file__).with_suffix(".yaml"))
RULES = pd.DataFrame(_LISTS["checks"]).T.rename_axis("check")[["severity", "todo"]]
SEVERITIES = {"error": plotting.RED, "warning": plotting.ORANGE, "note": plotting.GREY}
ALIKE = 0.8  # share of the content words of two criteria that both have
EVERYWHERE = 10  # rubrics that have a criterion word for word, from which on it fits any question
VERBS = _LISTS["verbs"].split()
_NAMES = {
    "{subject}": r"^\W*(?:(?:the |a )?(?:response|answer|assistant|model)s? )?",
    "{verbs}": "|".join(f"{verb}s?" for verb in VERBS),
    "{acts}": "|".join(f"{verb}s" for verb in VERBS),
    "{gerunds}": "|".join(f"{verb.removesuffix('e')}ing" for verb in VERBS),
}


def _stem(word: str) -> str:
    return re.sub(r"(?<=\w{3})(?:ing|ed|es|e|s|ly)$", "", word)


NEGATIONS = set(_LISTS["negations"].split())
STOCK, FUNCTION = (set(map(_stem, _LISTS[name].split())) for name in ("stock", "function"))
EMPTY = FUNCTION | NEGATIONS | set(map(_stem, VERBS))  # words that say nothing of the content


def _pattern(alternatives: list[str]) -> re.Pattern:
    whole = "|".join(f"(?:{part})" for part in alternatives) or "(?!)"
    for name, words in _NAMES.items():
        whole = whole.replace(name, words)
    return re.compile(whole, re.IGNORECASE)


_WORDING = {
    name: (rule.get("side"), _pattern(rule["any"]), _pattern(rule.get("unless", [])))
    for name, rule in _LISTS["checks"].items()
    if "any" in rule
}


def lint(criteria: pd.DataFrame) -> pd.DataFrame:
    """Findings in the file's order: row, number, criterion, check, severity, seen (what), todo.

    ``criteria``: a row a criterion, with row (of the file), rubric (its name), number (in its
    rubric), criterion (text), points (NaN: none), dimension ("": none), safety (True, False, or
    None where nobody has decided; of None a penalty could be a safety criterion), levels (texts,
    the worst first; empty where there is only met or not) and met (the first level that is, or "").
    """
    first, rubrics = criteria.index[0], criteria.groupby("criterion").rubric.transform("nunique")
    found = [(first, "dimension_missing", "")] if criteria.dimension.eq("").all() else []
    found += [] if criteria.safety.eq(True).any() else [(first, "veto_empty", "")]
    everywhere = rubrics[rubrics >= EVERYWHERE].items()
    found += [(at, "generic", f"word for word in {n} rubrics") for at, n in everywhere]
    for at, c in zip(criteria.index, criteria.itertuples()):
        found += [(at, *finding) for finding in _of_criterion(c)]
    for _, rubric in criteria.groupby("rubric", sort=False):
        found += _of_rubric(rubric)
    table = pd.DataFrame(found, columns=["at", "check", "seen"]).drop_duplicates(["at", "check"])
    table = table.join(criteria[["row", "number", "criterion"]], on="at").join(RULES, on="check")
    order = ["row", "number", "criterion", "check", "severity", "seen", "todo"]
    return table.sort_values("at", kind="stable", ignore_index=True)[order]


def summary(findings: pd.DataFrame, criteria: int) -> pd.DataFrame:
    """A row a check, those that found nothing too: check, severity, findings, rows of the file that
    have one, and share, the findings over the number of ``criteria``."""
    counts = findings.groupby("check").row.agg(findings="size", rows="nunique")
    table = RULES[["severity"]].join(counts.reindex(RULES.index, fill_value=0)).reset_index()
    return table.assign(share=table.findings / criteria)


def figure(table: pd.DataFrame) -> Figure:
    """Findings by check of ``summary``, coloured by severity."""
    found = table.set_index("check")
    wide = pd.DataFrame({name: found.findings.where(found.severity == name) for name in SEVERITIES})
    drawn = plotting.stacked_bars(wide.fillna(0), "findings", SEVERITIES.values())
    drawn.axes[0].locator_params(axis="x", integer=True)
    return drawn


def entropy(points: pd.Series) -> float:
    """Of the shares of the positive points, over that of as many equal ones: 1 where all weigh the
    same, near 0 where one has nearly all; NaN for fewer than two."""
    positive = points[points > 0]
    return stats.entropy(positive, base=len(positive)) if len(positive) > 1 else float("nan")


def _of_criterion(c) -> Iterator[tuple[str, str]]:
    text = re.sub(r"(?s)\(Justification:.*|\([^()]*\)", "", c.criterion)
    side = "penalty" if c.points < 0 else "reward"
    for check, (of, pattern, unless) in _WORDING.items():
        if of in (None, side) and (hit := pattern.search(text)) and not unless.search(text):
            yield check, hit[0].strip()
    if not re.search(r"[^\W\d_]{2}", text):
        yield "blank", text.strip()
    elif not re.search("[a-zA-Z]{3}", text):
        yield "not_english", ""
    elif _words(text)[0] <= STOCK:
        yield "generic", "no word of its own"
    if c.points == 0 and not c.safety and c.dimension in ("", "proficiency"):
        yield "weight_zero", "0 points"
    if c.dimension not in ("", *DIMENSIONS):
        yield "dimension_unknown", c.dimension
    texts = {level.strip() for level in c.levels}
    if len(texts - {""}) < len(c.levels) or len(c.levels) > 2 and not c.met:
        yield "levels", f"{len(c.levels)} levels"
    if c.points < 0 and c.safety is None:
        yield "veto_undecided", f"{c.points:g} points"


def _words(text: str) -> tuple[set[str], set[str], bool]:
    """Content words; numbers, and letters that name, as of a vitamin; whether negations turn it."""
    given = re.findall(r"[^\W\d_]+", text.lower())
    names = set(re.findall(r"\d+(?:[.,]\d+)*|\b(?:[B-Z]|[IVX]+)\b", text))
    turned = sum(word in NEGATIONS for word in given) % 2 == 1
    return set(map(_stem, given)) - set(map(_stem, NEGATIONS)) - EMPTY, names, turned


def _of_rubric(rubric: pd.DataFrame) -> Iterator[tuple[int, str, str]]:
    points = rubric.points
    positive = points[points > 0]
    if points.notna().any() and positive.empty:
        yield rubric.index[0], "weight_none", ""
    elif len(positive) > 2 and positive.nunique() == 1:
        yield rubric.index[0], "weights_equal", f"{len(positive)} of {positive.iloc[0]:g}"
    elif len(positive) > 2 and positive.max() > positive.sum() / 2:
        yield positive.idxmax(), "weight_heavy", f"entropy {entropy(points):.2f}"
    read = {at: (*_words(text), points[at] < 0) for at, text in rubric.criterion.items()}
    for a, b in combinations(read, 2):
        (words, names, turned, penal), (others, others_names, other, penalty) = read[a], read[b]
        shared, apart = len(words & others), min(len(words - others), len(others - words))
        if not shared or names != others_names or shared < ALIKE * len(words | others) or apart:
            continue  # apart: each has a word that the other has not
        if (turned ^ penal) == (other ^ penalty):
            yield b, "doubled", f"number {rubric.number[a]}"
        elif words == others:
            yield b, "contradicting", f"number {rubric.number[a]}"
