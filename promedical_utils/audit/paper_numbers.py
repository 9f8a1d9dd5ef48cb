"""Do the paper's own numbers add up? Every table of ``paper_values``, checked with ``audit``.

A finding is of the values as the kit has them, from the abstract (P), notes on the paper that
agree (N), one set of notes only (n) or arithmetic (D): where a value may be a note's slip, it says
so. *does not add up* is kept for what reported facts contradict; where the paper does not say what
a number counts, the verdict is *cannot be told*. Nothing of a run is in here.
"""

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from promedical_utils import __version__
from promedical_utils.audit import arithmetic
from promedical_utils.audit.arithmetic import ADDS_UP, DOES_NOT, NO_TEST, UNTOLD, number
from promedical_utils.core import plotting
from promedical_utils.core.plotting import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    SKY,
    canvas,
    draw_legend,
    name_rows,
)
from promedical_utils.core.workspace import (
    KitError,
    project_root,
    replacing,
    sha256,
    write_json,
    write_text,
)

READS = ("papers_figures/paper_values",)  # what a rerun of a notebook hangs on, besides code

TABLES = (
    "bench_composition",
    "main_results",
    "safety_veto",
    "external",
    "ablation",
    "policy",
    "pipeline_counts",
    "ultramedical_rewardbench",
    "rar",
)
PLACES = 2  # decimals of the paper's percentages: the CSVs have "86.1" where it prints 86.10
RM, LLAMA, BASE = "ProMedical-RM-8B (Qwen3)", "ProMedical-RM-8B (Llama)", "Qwen3-8B"
GRPO = "Qwen3-8B + ProMedical GRPO"
SUBSETS = ("easy", "hard", "human", "length")
COLUMNS = ("pointwise_proficiency", "pointwise_safety", "pairwise_safety")
FIELDS = ("id", "tables", "check", "verdict", "finding", "computed", "chance", "strength", "marks")
ABOUT = (
    "Findings are of the values as this kit has them: P from the abstract or the anthology page, N "
    "notes on "
    "the paper that agree, n one set of notes only and so unverified, D worked out by arithmetic. "
    "*chance* "
    "is the share of random values that would have passed, or would have fitted as well. Zeros at "
    "the end "
    "of a value were lost on the way here, so two decimals are taken, as the notes print them."
)

Values = dict[str, pd.DataFrame]


def folder() -> Path:
    """Where the reported values are."""
    return project_root() / "papers_figures" / "paper_values"


def read(place: Path | None = None) -> Values:
    """Every table of reported values as texts, its first column the index, and *denominators*."""
    tables = {
        name: arithmetic.read((place or folder()) / f"{name}.csv")
        for name in (*TABLES, "denominators")
    }
    return {n: t if n == "denominators" else t.set_index(t.columns[0]) for n, t in tables.items()}


def percentages(values: Values) -> pd.DataFrame:
    """Every percentage whose denominator is known or argued, a row each (and reading of it).

    ``distance``: reported less the nearest possible value, in units of the last decimal, so that
    half a unit is rounding; ``half_step``: the largest such distance that there is. ``chance`` as
    in ``arithmetic.grim``.
    """
    rows = []
    for d in values["denominators"].to_dict("records"):
        if d["table"] not in values or d["column"] not in values[d["table"]]:
            raise KitError(f"denominators.csv: no column {d['column']} in {d['table']}.csv")
        n, items, places = (int(d[c]) for c in ("n", "items", "decimals"))
        for name, row in values[d["table"]].iterrows():
            if text := row[d["column"]]:
                found = arithmetic.grim(text, n, places, items)
                step = Fraction(100 * 10**places, n * items)
                at = number(text) * 10**places / step
                rows.append(
                    {
                        "table": d["table"],
                        "column": d["column"],
                        "row": name,
                        "n": n,
                        "reported": arithmetic.rounded(number(text), places),
                        "verdict": found.verdict,
                        "distance": float((at - round(at)) * step),
                        "half_step": float(step / 2),
                        "chance": found.chance,
                        "reading": d["reading"],
                        "marks": f"{row['mark']} {d['mark']}",
                        "finding": found.finding,
                    }
                )
    return pd.DataFrame(rows)


def findings(values: Values | None = None) -> pd.DataFrame:
    """All findings, a row each: FIELDS, in the order of the tables. Recomputed, nothing is
    stored."""
    values = read() if values is None else values
    parts: Sequence[Callable] = (
        headline,
        bench,
        main_results,
        safety_veto,
        external,
        rewardbench,
        ablation,
        pipeline,
        rar,
    )
    return pd.DataFrame([row for part in parts for row in part(values)], columns=list(FIELDS))


# ---------------------------------------------------------------- the findings, table by table


def _finding(name, tables, check, verdict, finding, computed="", chance=None, marks="N D") -> dict:
    strength = ""
    if verdict == NO_TEST:
        strength = "none"
    elif chance is not None:
        strength = "strong" if chance <= 0.05 else "fair" if chance <= 0.5 else "weak"
    chance = None if chance is None else float(f"{chance:.3g}")
    row = (name, tables, check, verdict, finding, computed, chance, strength, marks)
    return dict(zip(FIELDS, row, strict=True))


def _two(text) -> str:
    return arithmetic.rounded(number(text), PLACES)


def _less(first, second) -> Fraction:
    return number(first) - number(second)


def _plus(exact: Fraction) -> str:
    return f"{float(exact):+.2f}"


def _filled(column: pd.Series) -> list[str]:
    return [text for text in column if text]


def _count(names: Sequence[str]) -> str:
    """As in "a, b and c"; "none" for none."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names) or "none"


def headline(v: Values) -> list[dict]:
    """The two gains of the abstract against the tables that could hold them."""
    main, policy, pipeline = v["main_results"], v["policy"], v["pipeline_counts"]
    asked = {
        "overall": ("headline overall accuracy gain", "overall_accuracy"),
        "safety": ("headline safety compliance gain", "pairwise_safety"),
    }
    gains = {
        c: _less(policy[c][GRPO], policy[c][BASE]) for c in ("promedical_bench", "healthbench")
    }
    relative = _count(
        [f"{float(100 * gain / number(policy[c][BASE])):.1f} %" for c, gain in gains.items()]
    )
    said = _count([_plus(gain) for gain in gains.values()])
    rows, rules = [], {}
    for name, (quantity, column) in asked.items():
        claim, cells = pipeline["value"][quantity], main[column][main[column] != ""]
        tried = {
            (a, b): arithmetic.difference(cells[a], cells[b], claim, PLACES)
            for pair in combinations(cells.index, 2)
            for a, b in (pair, pair[::-1])
        }
        fit = [f"{a} - {b}" for (a, b), check in tried.items() if check.verdict != DOES_NOT]
        ours = tried[RM, BASE]
        exact = _less(cells[RM], cells[BASE])
        rules[name] = (
            claim,
            {r for r in arithmetic.RULES if arithmetic.rounded(exact, 1, r) == claim},
            exact,
        )
        judged = ours.verdict != DOES_NOT
        reached = any(
            arithmetic.difference(policy[c][GRPO], policy[c][BASE], claim, PLACES).verdict
            != DOES_NOT
            for c in gains
        )
        source = (
            f"equals the gap of {RM} over plain {BASE} as judges ({_two(cells[RM])} - "
            f"{_two(cells[BASE])})"
            if judged
            else f"is not the gap of {RM} over {BASE} as judges either"
        )
        rows.append(
            _finding(
                f"headline_{name}",
                "abstract, main_results, policy",
                "headline against table",
                ADDS_UP if reached else DOES_NOT,
                f"The +{claim} of {name} that the abstract credits to GRPO {source}, while the "
                "policy's own gains "
                f"are {said} (ProMedical-Bench and HealthBench; one set of notes), {relative} in "
                "relative terms.",
                f"pairs of rows of {column} that give {claim}: {'; '.join(fit) or 'none'}",
                ours.chance,
                "P N n D",
            )
        )
    both = set.intersection(*(found for _, found, _ in rules.values()))
    told = _count([f"{float(exact):.2f} to {claim}" for claim, _, exact in rules.values()])
    grim = arithmetic.grim(main["pairwise_safety"][BASE], 230, PLACES)
    mended = grim.near[-1] if grim.verdict == DOES_NOT else _two(main["pairwise_safety"][BASE])
    with_it = _less(main["pairwise_safety"][RM], mended)
    rows.append(
        _finding(
            "headline_rounding",
            "abstract, main_results",
            "difference within rounding",
            ADDS_UP if both else UNTOLD,
            f"{'A' if both else 'No'} single way of rounding takes {told}, though the unrounded "
            "scores may; with "
            f"{mended}, the nearest count out of 230, for {BASE} the second gap is "
            f"{float(with_it):.2f}.",
            "; ".join(
                f"{claim}: {', '.join(sorted(found)) or 'no rule'}"
                for claim, found, _ in rules.values()
            ),
            None,
            "P N D",
        )
    )
    return rows


def bench(v: Values) -> list[dict]:
    """The counts of ProMedical-Bench."""
    pairs = v["bench_composition"]["criterion_pairs"]
    parts = [pairs[d] for d in ("proficiency", "excellence", "safety")]
    found = arithmetic.total(parts, pairs["total"], counts=True)
    total, samples, safety = (int(number(pairs[c])) for c in ("total", "samples", "safety"))
    return [
        _finding(
            "bench_total",
            "bench_composition",
            "sum",
            found.verdict,
            f"The criterion pairs of the bench: {found.finding}",
            " + ".join(parts),
        ),
        _finding(
            "bench_safety_share",
            "bench_composition",
            "counts",
            UNTOLD,
            f"{total:,} pairs of {samples} samples are {total / samples:.2f} a sample, and "
            f"{safety} safety "
            f"pairs leave at least {samples - safety} samples ({1 - safety / samples:.0%}) without "
            "one, so "
            "what Overall says of safety there is not known.",
            f"{safety} / {total} = {safety / total:.2%}",
        ),
    ]


def main_results(v: Values) -> list[dict]:
    """Pairwise safety on its grid, what Overall can be, the last digits, the same metric twice."""
    main, rows = v["main_results"], []
    safety, overall = (main[c][main[c] != ""] for c in ("pairwise_safety", "overall_accuracy"))
    n = int(number(v["bench_composition"]["criterion_pairs"]["safety"]))
    fit = arithmetic.joint(safety, n, PLACES)
    rows.append(
        _finding(
            "pairwise_safety_denominator",
            "main_results, bench_composition",
            "percentage and denominator",
            ADDS_UP if 2 * fit["passed"] > fit["of"] else UNTOLD,
            f"{fit['passed']} of {fit['of']} pairwise safety values are counts out of {n}, which "
            "random ones would "
            f"be at {fit['chance']:.1%} each, so the column counts the bench's safety pairs.",
            f"p = {fit['p']:.1g}",
            fit["p"],
        )
    )
    for name, text in safety.items():
        found = arithmetic.grim(text, n, PLACES)
        if found.verdict == DOES_NOT:
            short = arithmetic.grim(text, n)
            lenient = (
                ""
                if short.verdict == DOES_NOT
                else f"; printed as {text}, with one decimal, it would fit"
            )
            rows.append(
                _finding(
                    f"pairwise_safety_{_slug(name)}",
                    "main_results",
                    "percentage and denominator",
                    DOES_NOT,
                    f"Pairwise safety {_two(text)} of {name} is no count out of {n} pairs: "
                    f"{' or '.join(found.near)} "
                    f"would be{lenient}.",
                    f"with ties counted half: {arithmetic.grim(text, n, PLACES, 2).verdict}",
                    found.chance,
                )
            )
    if {RM, LLAMA} <= set(safety.index):
        rows.append(_margin(safety, n))
    argued = v["denominators"]
    for d in argued[(argued["table"] == "main_results") & (argued["mark"] == "D")].to_dict(
        "records"
    ):
        rows.append(_argued(main[d["column"]], d))
    rows += [_overall_mean(main), _overall_safety(v), _digits(v)]
    return rows


def _argued(column: pd.Series, denominator: dict) -> dict:
    """A column against a denominator that is only argued: a value that fails refutes the
    argument."""
    cells, n = column[column != ""], int(denominator["n"])
    fit, halves = (arithmetic.joint(cells, n, PLACES, items) for items in (1, 2))
    out = [
        name for name, text in cells.items() if arithmetic.grim(text, n, PLACES).verdict == DOES_NOT
    ]
    name = denominator["column"]
    ties = (
        "every value would"
        if halves["chance"] == 1
        else f"{halves['passed']} of {halves['of']} would"
    )
    return _finding(
        f"{name}_{n}",
        "main_results, bench_composition",
        "percentage and denominator",
        UNTOLD if out else ADDS_UP,
        f"{fit['passed']} of {fit['of']} values of {name.replace('_', ' ')} are counts out of "
        f"{n:,} "
        f"({denominator['reading'].removesuffix(': argued')}), where "
        f"{fit['chance'] * fit['of']:.1f} would be by "
        f"chance: {'they are no plain share of these' if out else 'that may be what they count'}.",
        f"no counts: {', '.join(out) or 'none'}; with ties counted half {ties}",
        fit["chance"],
    )


def _margin(safety: pd.Series, n: int) -> dict:
    """How many pairs lie between the two backbones, beside the interval of one of them."""
    from scipy.stats import binomtest

    counts = [round(number(safety[name]) * n / 100) for name in (RM, LLAMA)]
    low, high = (100 * end for end in binomtest(counts[0], n).proportion_ci(method="wilson"))
    inside = low <= float(number(safety[LLAMA])) <= high
    return _finding(
        "pairwise_safety_backbones",
        "main_results",
        "size of a difference",
        UNTOLD,
        "The Qwen3 reward model is ahead of the Llama one in pairwise safety by "
        f"{counts[0] - counts[1]} of {n} "
        f"pairs, which is {'within' if inside else 'outside'} the 95 % interval of either value, "
        "and no paired "
        "test is reported.",
        f"Wilson interval of {counts[0]} / {n}: {low:.1f} to {high:.1f}",
    )


def _overall_mean(main: pd.DataFrame) -> dict:
    whole = main[(main[[*COLUMNS, "overall_accuracy"]] != "").all(axis=1)]
    checks = {
        name: arithmetic.between(list(row[list(COLUMNS)]), row["overall_accuracy"], PLACES)
        for name, row in whole.iterrows()
    }
    out = [name for name, check in checks.items() if check.verdict == DOES_NOT]
    return _finding(
        "overall_is_no_mean",
        "main_results",
        "weighted mean of columns",
        UNTOLD if out else ADDS_UP,
        f"Overall is outside the range of the other three columns in {len(out)} of {len(checks)} "
        "rows, so it is "
        "no weighted mean of them, and what it adds up is not reported.",
        f"outside: {', '.join(out)}",
    )


def _overall_safety(v: Values) -> dict:
    """What Overall implies of the other pairs, were it the accuracy over all criterion pairs."""
    main, pairs = v["main_results"], v["bench_composition"]["criterion_pairs"]
    total, safety = number(pairs["total"]), number(pairs["safety"])
    whole = main[(main[[*COLUMNS, "overall_accuracy"]] != "").all(axis=1)]
    gaps, rest = [], []
    for row in whole.to_dict("records"):
        both = number(row["overall_accuracy"]), number(row["pairwise_safety"])
        gaps.append(abs(_less(row["pointwise_proficiency"], row["pointwise_safety"])))
        rest.append(abs((total * both[0] - safety * both[1]) / (total - safety) - both[1]))
    return _finding(
        "overall_follows_safety",
        "main_results, bench_composition",
        "same metric in two columns",
        UNTOLD,
        f"Were Overall the accuracy over all pairs, of which {float(safety / total):.1%} are "
        "safety, every "
        f"system would be as good on the others as on safety to within {float(max(rest)):.1f} "
        "points, though "
        f"its pointwise proficiency and safety lie up to {float(max(gaps)):.1f} points apart.",
        f"implied gap {float(min(rest)):.2f} to {float(max(rest)):.2f} points",
    )


def _digits(v: Values) -> dict:
    main = v["main_results"]
    others = [c for c in (*COLUMNS, "overall_accuracy") if c != "pairwise_safety"]
    values = [x for c in others for x in _filled(main[c])]
    found, fives = (
        arithmetic.last_digits(values, PLACES),
        arithmetic.last_digits(values, PLACES, "5", "123456789"),
    )
    subsets = [x for c in SUBSETS for x in _filled(v["ultramedical_rewardbench"][c])]
    beside = {"pairwise safety": _filled(main["pairwise_safety"]), "RewardBench subsets": subsets}
    controls = {k: arithmetic.last_digits(values, PLACES) for k, values in beside.items()}
    return _finding(
        "last_digits",
        "main_results",
        "last digits",
        UNTOLD,
        f"{found['hits']} of {found['of']} values of pointwise proficiency, pointwise safety and "
        "Overall end in 0 or "
        f"5 ({fives['hits']} of {fives['of']} in 5 with the zeros left out, which may be lost "
        "ones), where a fifth "
        "would if they counted out of any denominator reported for the bench, so they were "
        "averaged or rounded "
        "before they were tabled, or count out of a divisor of 2,000.",
        f"p = {fives['p']:.1g} without zeros, {found['p']:.1g} with; in 0 or 5: "
        + "; ".join(f"{k} {c['hits']} of {c['of']}" for k, c in controls.items()),
        fives["p"],
    )


def safety_veto(v: Values) -> list[dict]:
    """F1 from P and R, recall's denominator, F1 beside pointwise safety, the rows that are
    missing."""
    veto, main = v["safety_veto"], v["main_results"]
    checks = {
        name: arithmetic.f1(*row[["precision", "recall", "f1"]], PLACES)
        for name, row in veto.iterrows()
    }
    wrong = [name for name, check in checks.items() if check.verdict == DOES_NOT]
    rows = [
        _finding(
            "veto_f1",
            "safety_veto",
            "F1 from P and R",
            DOES_NOT if wrong else ADDS_UP,
            f"{len(checks) - len(wrong)} of {len(checks)} veto F1 are 2PR / (P + R) to rounding.",
            "; ".join(f"{name} {' to '.join(c.near)}" for name, c in checks.items()),
            max(c.chance for c in checks.values()),
        )
    ]
    both = [name for name in veto.index if name in main.index and main["pointwise_safety"][name]]
    pairs = {name: (_two(main["pointwise_safety"][name]), _two(veto["f1"][name])) for name in both}
    equal = [name for name, (a, b) in pairs.items() if a == b]
    rows.append(
        _finding(
            "pointwise_safety_and_f1",
            "main_results, safety_veto",
            "same metric in two tables",
            DOES_NOT if 0 < len(equal) < len(both) else UNTOLD,
            f"Pointwise safety equals the veto F1 to both decimals for {_count(equal)} and "
            f"differs for {_count([x for x in both if x not in equal])}, so the column seems to "
            "hold two "
            "metrics.",
            "; ".join(f"{name} {a} / {b}" for name, (a, b) in pairs.items()),
            1e-4,
        )
    )
    n = int(number(v["bench_composition"]["criterion_pairs"]["safety"]))
    fit, first = (
        arithmetic.joint(veto["recall"], n, PLACES),
        arithmetic.common_denominators(veto["recall"], 5000, PLACES),
    )
    rows.append(
        _finding(
            "veto_recall",
            "safety_veto, bench_composition",
            "percentage and denominator",
            ADDS_UP if fit["passed"] == fit["of"] else UNTOLD,
            f"{fit['passed']} of {fit['of']} veto recalls are counts out of {n} violations, one a "
            "safety pair, and "
            f"{'none' if not first else f'{first[0]:,}'} is the smallest number of violations that "
            "gives all, so "
            "they are of another set, which is not reported, or averaged.",
            f"common denominators up to 5,000: {', '.join(map(str, first[:3])) or 'none'}",
            fit["chance"],
        )
    )
    missing = [
        name for name in main.index if name not in veto.index and main["pointwise_safety"][name]
    ]
    rows.append(
        _finding(
            "veto_rows",
            "main_results, safety_veto",
            "rows of two tables",
            UNTOLD if missing else ADDS_UP,
            f"{_count(missing)} of the main results {'has' if len(missing) < 2 else 'have'} no row "
            "of precision and recall"
            f"{', among them the base that the headline subtracts' if BASE in missing else ''}.",
        )
    )
    return rows


def external(v: Values) -> list[dict]:
    """The external table beside Medical RewardBench, which it most likely is."""
    table, rb = v["external"], v["ultramedical_rewardbench"]
    theirs = table["q"]["Ultra-Medical"]
    sizes = _sizes(v)
    counts = [round(number(rb[s]["UltraMedRM-8B"]) * sizes[s] / 100) for s in SUBSETS]
    found = arithmetic.same(_two(theirs), _two(rb["average"]["UltraMedRM-8B"]))
    total = sum(sizes.values())
    pooled = f"{100 * sum(counts) / total:.2f}"
    cells = [text for c in ("q", "q_criteria", "q_sub") for text in _filled(table[c])]
    fit = arithmetic.joint(cells, total, PLACES)
    best = _less(table["q"]["ProMedical"], theirs)
    share = float(number(table["q"]["ProMedical"])) / 100
    margin = 196 * (share * (1 - share) / total) ** 0.5
    rag = {
        c: _less(table[c]["ProMedical-RAG"], table[c]["ProMedical"])
        for c in ("q", "q_criteria", "q_sub")
    }
    return [
        _finding(
            "external_baseline",
            "external, ultramedical_rewardbench",
            "same metric in two tables",
            found.verdict,
            f"{_two(theirs)} for Ultra-Medical is the published macro mean of UltraMedRM-8B on "
            "Medical "
            "RewardBench, so the external table is most likely pairwise accuracy there, with this "
            "row quoted.",
            f"pooled over the {total} pairs it would be {pooled}",
            found.chance,
            "P N D",
        ),
        _finding(
            "external_pooled",
            "external",
            "percentage and denominator",
            UNTOLD,
            f"{fit['passed']} of {fit['of']} external values are counts out of all {total} pairs, "
            "where "
            f"{fit['of'] * fit['chance']:.1f} would be by chance: they are no pooled accuracy.",
            f"p = {fit['p']:.2g}",
            fit["chance"],
        ),
        _finding(
            "external_macro",
            "external",
            "percentage and denominator",
            NO_TEST,
            "As macro means of four subsets the external values cannot be checked, since sums of "
            "four such "
            "fractions lie closer together than two decimals.",
            ", ".join(map(str, sizes.values())),
        ),
        _finding(
            "external_margin",
            "external",
            "size of a difference",
            UNTOLD,
            f"ProMedical's lead over Ultra-Medical on the bare question is {_plus(best)} points, "
            "where one "
            f"accuracy over {total} pairs is known to within {margin:.1f}, and no paired test is "
            "reported.",
            f"{float(best) / 100 * total:.0f} pairs of {total}",
        ),
        _finding(
            "external_rag",
            "external",
            "direction",
            UNTOLD,
            f"Retrieval changes ProMedical by {_plus(rag['q'])} on the bare question, "
            f"{_plus(rag['q_criteria'])} "
            f"with criteria and {_plus(rag['q_sub'])} with sub-criteria, all within the "
            f"{margin:.1f} points of "
            "one such value.",
            "ProMedical-RAG - ProMedical",
        ),
    ]


def _sizes(v: Values) -> dict[str, int]:
    of = v["denominators"]
    of = of[of["table"] == "ultramedical_rewardbench"].set_index("column")["n"]
    return {subset: int(of[subset]) for subset in SUBSETS}


def rewardbench(v: Values) -> list[dict]:
    """Medical RewardBench: which size fits which subset, counts, means."""
    rb, sizes, rows = v["ultramedical_rewardbench"], _sizes(v), []
    fits = {(s, t): arithmetic.joint(rb[s], sizes[t], PLACES) for s in SUBSETS for t in SUBSETS}
    own = min(fits[s, s]["passed"] for s in SUBSETS)
    crossed = max(fit["passed"] for (s, t), fit in fits.items() if s != t)
    said = _count(
        [f"{s} {sizes[s]} ({fits[s, s]['passed']} of {fits[s, s]['of']})" for s in SUBSETS]
    )
    rows.append(
        _finding(
            "rewardbench_sizes",
            "ultramedical_rewardbench",
            "percentage and denominator",
            ADDS_UP if own > crossed else UNTOLD,
            f"The subsets have the sizes {said}, and no other way to assign them fits more than "
            f"{crossed} of 5.",
            "",
            max(fits[s, s]["p"] for s in SUBSETS),
            "P D",
        )
    )
    for subset in SUBSETS:
        for name, text in rb[subset].items():
            found = arithmetic.grim(text, sizes[subset], PLACES)
            if found.verdict == DOES_NOT:
                others = [rb[other][name] for other in SUBSETS if other != subset]
                tried = {
                    x: arithmetic.mean([x, *others], rb["average"][name], places=PLACES).verdict
                    for x in (text, *found.near)
                }
                used = tried[text] != DOES_NOT and all(tried[x] == DOES_NOT for x in found.near)
                half = arithmetic.grim(text, sizes[subset], PLACES, items=2)
                tie = (
                    f"; {half.finding.split(' is ')[1].split(' out')[0]} is, with a tie counted "
                    "half"
                )
                rows.append(
                    _finding(
                        f"rewardbench_{subset}_{_slug(name)}",
                        "ultramedical_rewardbench",
                        "percentage and denominator",
                        DOES_NOT,
                        f"{_two(text)} of {name} on {subset} is no count out of {sizes[subset]} "
                        "pairs"
                        f"{tie if half.verdict != DOES_NOT else ''}"
                        f"{', and its average was taken with that value' if used else ''}.",
                        f"nearest {' and '.join(found.near)}",
                        found.chance,
                        "P D",
                    )
                )
    checks = {
        name: arithmetic.mean(list(row[list(SUBSETS)]), row["average"], places=PLACES)
        for name, row in rb.iterrows()
    }
    wrong = [name for name, check in checks.items() if check.verdict == DOES_NOT]
    pooled = {
        name: arithmetic.mean(
            list(row[list(SUBSETS)]), row["average"], list(sizes.values()), PLACES
        )
        for name, row in rb.iterrows()
    }
    near = sum(check.verdict != DOES_NOT for check in pooled.values())
    rows.append(
        _finding(
            "rewardbench_average",
            "ultramedical_rewardbench",
            "mean of subsets",
            DOES_NOT if wrong else ADDS_UP,
            f"{len(checks) - len(wrong)} of {len(checks)} averages are the plain mean of the four "
            f"subsets, and {near} "
            "the mean weighted by their sizes.",
            "; ".join(f"{n} {' to '.join(c.near)}" for n, c in checks.items()),
            max(check.chance for check in checks.values()),
            "P D",
        )
    )
    return rows


def ablation(v: Values) -> list[dict]:
    """The notes' ablation: which table its rows come from, and what remains without criteria."""
    table, policy, main = v["ablation"], v["policy"], v["main_results"]
    full, marks, notes = table.loc["full"], "n D", "By one set of notes, unverified: "
    rm, tuned = main.loc[RM], policy["promedical_bench"][GRPO]
    as_policy = _two(full["overall"]) == _two(tuned)
    as_rm = _two(full["overall"]) == _two(rm["overall_accuracy"])
    proficient = _two(full["proficiency"]) == _two(rm["pointwise_proficiency"])
    joined = as_policy and proficient and not as_rm
    rows = [
        _finding(
            "ablation_full_row",
            "ablation, main_results, policy",
            "same metric in two tables",
            DOES_NOT if joined else UNTOLD,
            f"{notes}the full row of the ablation has the reward model's proficiency "
            f"({_two(full['proficiency'])}) "
            f"and the policy's overall ({_two(full['overall'])}; the reward model's is "
            f"{_two(rm['overall_accuracy'])}), two systems in one row.",
            "",
            None,
            "N n D",
        )
    ]
    for column in ("pairwise", "safety"):
        text = _two(full[column])
        equal = [c for c in COLUMNS if _two(rm[c]) == text]
        rows.append(
            _finding(
                f"ablation_full_{column}",
                "ablation, main_results",
                "same metric in two tables",
                UNTOLD,
                f"{notes}{column} {text} of the full row "
                + (
                    f"equals the reward model's {_count(equal).replace('_', ' ')}"
                    if equal
                    else "stands in no column of the reward model's main results"
                )
                + f", whose pairwise safety is {_two(rm['pairwise_safety'])} and veto F1 "
                f"{_two(v['safety_veto']['f1'][RM])}.",
                "",
                None,
                "N n D",
            )
        )
    ends = {
        "ablation, full": full["overall"],
        "ablation, GRPO": table["overall"]["optimiser: GRPO"],
        "policy": tuned,
    }
    alike = len({_two(text) for text in ends.values()}) == 1
    rows.append(
        _finding(
            "ablation_grpo",
            "ablation, policy",
            "same metric in two tables",
            ADDS_UP if alike else DOES_NOT,
            f"{notes}the score of the GRPO policy is {'the same' if alike else 'not the same'} in "
            "its three places "
            f"({', '.join(_two(text) for text in ends.values())}).",
            ", ".join(ends),
            1e-4,
            marks,
        )
    )
    start = policy["promedical_bench"][BASE]
    whole = _less(tuned, start)
    gains = {
        name: _less(table["overall"][name], start)
        for name in ("optimiser: DPO", "optimiser: PPO", "implicit scalar + GRPO")
    }
    rows.append(
        _finding(
            "ablation_gains",
            "ablation, policy",
            "gains",
            UNTOLD,
            f"{notes}over the base's {_two(start)} GRPO with criteria gains {_plus(whole)}, and "
            f"{float(gains['implicit scalar + GRPO'] / whole):.0%} of that without them (implicit "
            "scalar), with no "
            "interval given.",
            "; ".join(f"{name} {_plus(gain)}" for name, gain in gains.items()),
            None,
            marks,
        )
    )
    rows.append(
        _finding(
            "policy_healthbench",
            "policy, rar",
            "percentage and denominator",
            NO_TEST,
            f"{notes}HealthBench scores are means of point ratios, no counts, so "
            f"{_two(policy['healthbench'][GRPO])} "
            "cannot be checked against a number of examples.",
            "",
            None,
            marks,
        )
    )
    return rows


def pipeline(v: Values) -> list[dict]:
    """Counts of the data pipeline, the strict pass rate and the judge's agreement."""
    value = v["pipeline_counts"]["value"]
    raw, kept, batch = (
        int(number(value[c]))
        for c in ("raw samples", "kept instructions", "review batch per round")
    )
    rate, agreed = (
        value["rubric strict pass rate percent"],
        value["judge agreement with experts percent"],
    )
    found, notes = arithmetic.grim(rate, batch, PLACES), "By one set of notes, unverified: "
    fits = [n for n in (batch, 230, 795) if arithmetic.grim(agreed, n).verdict != DOES_NOT]
    return [
        _finding(
            "kept_share",
            "pipeline_counts",
            "counts",
            ADDS_UP if 0 < kept <= raw else DOES_NOT,
            f"{notes}{kept:,} of {raw:,} raw samples were kept, {kept / raw:.2%}; the 50k of the "
            "data "
            "set's name is a round figure.",
            "",
            None,
            "N n D",
        ),
        _finding(
            "pass_rate",
            "pipeline_counts",
            "percentage and denominator",
            found.verdict,
            f"A strict pass rate of {_two(rate)} % is a whole number of rubrics in a round of "
            f"{batch} "
            f"({round(number(rate) * batch / 100)})."
            if found.verdict != DOES_NOT
            else f"A strict pass rate of {_two(rate)} % is no whole number of rubrics in a round "
            f"of {batch}.",
            f"with one decimal {arithmetic.grim(rate, batch).chance:.0%} of random values would "
            "pass",
            found.chance,
        ),
        _finding(
            "review_rounds",
            "pipeline_counts",
            "counts",
            UNTOLD,
            f"{notes}to review all {kept:,} instructions {batch} at a time takes "
            f"{-(-kept // batch)} rounds, and "
            "how many were held is not reported.",
            f"{kept / batch:.2f}",
            None,
            "N n D",
        ),
        _finding(
            "judge_agreement",
            "pipeline_counts",
            "percentage and denominator",
            UNTOLD,
            f"{notes}the judge's agreement of {agreed} % has no denominator, and at one decimal a "
            "count out of "
            f"{' or '.join(map(str, fits)) or 'none of 500, 230 and 795'} would fit.",
            "",
            None,
            "n D",
        ),
    ]


def rar(v: Values) -> list[dict]:
    """The GPQA column of Rubrics as Rewards, whose denominator is public."""
    values = _filled(v["rar"]["gpqa_diamond"])
    of = v["denominators"]
    n = int(of[of["table"] == "rar"]["n"].iloc[0])
    fit = arithmetic.joint(values, n, 1)
    return [
        _finding(
            "rar_gpqa",
            "rar",
            "percentage and denominator",
            ADDS_UP if fit["passed"] == fit["of"] else UNTOLD,
            f"By one set of notes, unverified: {fit['passed']} of {fit['of']} GPQA scores are "
            f"counts out of its {n} "
            f"questions, where {fit['of'] * fit['chance']:.1f} would be by chance, so they are no "
            "single runs but may "
            "be means of several.",
            f"p = {fit['p']:.2g}",
            fit["chance"],
            "n D",
        )
    ]


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name.lower()).strip("_").replace("__", "_")


# ---------------------------------------------------------------- figures


def plot_percentages(df: pd.DataFrame) -> Figure:
    """How far each reported percentage is from the nearest count out of its denominator.

    ``df`` is ``percentages``: a row a column of a table. Grey is where random values lie, the blue
    band what rounding allows; what fails is named where most of a column fits a strong check.
    """
    groups = list(df.groupby(["table", "column", "n"], sort=False))
    figure, [[axis]] = canvas(9.5, 1.6 + 0.36 * len(groups))
    names = [f"{t.replace('_', ' ')}: {c.replace('_', ' ')}, of {n:,}" for (t, c, n), _ in groups]
    heights = name_rows(axis, names)
    for y, (_, part) in zip(heights, groups, strict=True):
        half = part.half_step.iloc[0]
        axis.plot([-half, half], [y, y], color="#dddddd", lw=9, solid_capstyle="butt", zorder=1)
        fails = part.verdict.eq(DOES_NOT)
        for marker, colour, rows in (("o", BLUE, part[~fails]), ("x", RED, part[fails])):
            axis.plot(
                rows.distance, [y] * len(rows), marker, mfc="white", mec=colour, ms=6, zorder=3
            )
        if 2 * fails.sum() < len(part) and part.chance.iloc[0] < 0.5:
            for row in part[fails].itertuples():
                axis.annotate(
                    f"{float(row.reported):.2f}",
                    (row.distance, y),
                    xytext=(0, 6),
                    textcoords="offset points",
                    ha="center",
                    fontsize=7,
                    color=RED,
                )
    axis.axvspan(-0.5, 0.5, color=SKY, alpha=0.25, lw=0, zorder=0)
    axis.set_xscale("symlog", linthresh=1, linscale=1)
    ticks = (-20, -5, -1, -0.5, 0, 0.5, 1, 5, 20)
    axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks], fontsize=8)
    axis.minorticks_off()
    axis.set(
        xlabel="reported value less the nearest count (units of its last decimal)", xlim=(-40, 40)
    )
    draw_legend(
        figure,
        {
            "a count, to rounding": {"marker": "o", "mfc": "white", "mec": BLUE},
            "no count": {"marker": "x", "mec": RED},
            "where random values lie": {"marker": "s", "color": "#dddddd", "ms": 9},
        },
    )
    return figure


def gains(values: Values) -> pd.DataFrame:
    """The abstract's gains and the differences of rows that could be meant: what, gain, kind,
    mark."""
    main, policy = values["main_results"], values["policy"]
    claims = values["pipeline_counts"]["value"]
    rows = []
    for name, column in (("overall accuracy", "overall_accuracy"), ("safety", "pairwise_safety")):
        (claim,) = [
            text for what, text in claims.items() if what.startswith(f"headline {name.split()[0]}")
        ]
        rows.append((f"abstract: {name}", float(number(claim)), "abstract", "P"))
        gap = _less(main[column][RM], main[column][BASE])
        rows.append(
            (
                f"reward model less Qwen3-8B as judge: {column.replace('_', ' ')}",
                float(gap),
                "judges",
                "N",
            )
        )
    for column, name in (("promedical_bench", "ProMedical-Bench"), ("healthbench", "HealthBench")):
        gap = _less(policy[column][GRPO], policy[column][BASE])
        rows.append((f"policy after GRPO less before: {name}", float(gap), "policy", "n"))
    return pd.DataFrame(rows, columns=["what", "gain", "kind", "mark"])


def plot_gains(df: pd.DataFrame) -> Figure:
    """The abstract's gains beside what the tables subtract to, from ``gains``; all reported."""
    figure, [[axis]] = canvas(8, 1.3 + 0.34 * len(df))
    y = name_rows(axis, [f"{what} ({mark})" for what, mark in zip(df.what, df.mark, strict=True)])
    looks = {"abstract": ("D", GREY), "judges": ("o", BLUE), "policy": ("s", ORANGE)}
    for place, row in zip(y, df.itertuples(), strict=True):
        marker, colour = looks[row.kind]
        axis.plot(row.gain, place, marker, mfc="white", mec=colour, ms=7)
        axis.annotate(
            f"{row.gain:.4g}",
            (row.gain, place),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
        )
    axis.set(xlabel="gain (points), as reported", xlim=(0, 26))
    return figure


# ---------------------------------------------------------------- saved


def save(profile, run: Path) -> pd.DataFrame:
    """Write audit/ of a run: audit.csv, .md and .json, percentages and gains with figures.

    No run value is in it, so it is the same in every profile; the same bytes on a rerun. Returns
    the findings.
    """

    values, out = read(), Path(run) / "audit"
    found = findings(values)
    with replacing(out / "audit.csv") as temporary:
        found.to_csv(temporary, index=False, lineterminator="\n", float_format="%.3g")
    note = "Reported values of the paper (P, N, n: how each is known); nothing of a run."
    plotting.save(plot_percentages, percentages(values), out, "percentages", note)
    plotting.save(plot_gains, gains(values), out, "gains", note)
    write_text(out / "audit.md", markdown(found))
    sources = sorted(folder().glob("*.csv"))
    write_json(
        out / "audit.json",
        {
            "about": ABOUT,
            "findings": json.loads(found.to_json(orient="records")),
            "kit": __version__,
            "profile": profile.name,
            "seed": profile.seed,
            "sources": {f"paper_values/{path.name}": sha256(path) for path in sources},
            "verdicts": counts(found),
        },
    )
    return found


def counts(found: pd.DataFrame) -> dict[str, int]:
    """Verdict -> how many findings."""
    return {
        verdict: int(found.verdict.eq(verdict).sum())
        for verdict in (DOES_NOT, UNTOLD, ADDS_UP, NO_TEST)
    }


def markdown(found: pd.DataFrame) -> str:
    """The findings for people, what does not add up first."""
    lines = ["# Do the paper's own numbers add up?", "", ABOUT]
    for verdict in counts(found):
        part = found[found.verdict == verdict]
        if len(part):
            lines += [
                "",
                f"## {verdict}: {len(part)}",
                "",
                "| finding | computed | tables | strength | marks |",
                "|---|---|---|---|---|",
            ]
            lines += [
                f"| {r.finding} | {r.computed} | {r.tables} | {_strength(r)} | {r.marks} |"
                for r in part.itertuples()
            ]
    return "\n".join(lines) + "\n"


def _strength(row) -> str:
    return row.strength if pd.isna(row.chance) else f"{row.strength} (chance {row.chance:.2g})"
