"""How strategies are chosen: accuracy, F1 and the preference bias of Kang et al. (ACL 2024), claims
about them, the picture of a tree, and the public files that they can be read from."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from promedical_studies.seekers import STRATEGIES, TEXTS, Turn, best
from promedical_studies.strategy_search import Node, Pair, nodes
from promedical_utils.core import plotting, statistics, verdicts
from promedical_utils.core.workspace import KitError, read_json

SWEEPS, ADDED = 20, 0.5  # of the authors' iteration; the kit's, to every cell off the diagonal
INTEREST = {"B": 0.2, "distress": 0.25}  # smallest effect of interest; of shares 0.05


def bias(counts: np.ndarray, added: float = 0.0) -> np.ndarray:
    """B, (draws,): the standard deviation of the preferences that a Bradley-Terry model finds in
    ``counts`` (draws, predicted, gold). NaN where the authors' formula divides by zero, for a
    strategy that is never missed; with ``added`` off the diagonal it is always defined."""
    size = counts.shape[-1]
    wins, p = (counts + added) * (1 - np.eye(size)), np.ones(counts.shape[:-1])
    with np.errstate(divide="ignore", invalid="ignore"):
        for _ in range(SWEEPS):
            for i in range(size):
                both, mine, lost = p[:, [i]] + p, wins[:, i], wins[:, :, i]
                above = np.where(mine > 0, mine * p / both, 0).sum(1)
                p[:, i] = above / np.where(lost > 0, lost / both, 0).sum(1)
            logs = np.where(p > 0, np.log(p), 0).sum(1) / (p > 0).sum(1)
            p = p / np.exp(logs)[:, None]
            p[~np.isfinite(p).all(1)] = np.nan
    return (p * size / p.sum(1, keepdims=True)).std(1)


def measures(
    predicted: Sequence[str], gold: Sequence[str], weights=None, labels: Sequence[str] = STRATEGIES
) -> dict[str, np.ndarray]:
    """accuracy, Q (macro F1), QW (weighted F1), B (with 0.5 added) and B0 (the authors'), each
    (draws,); ``weights``: how often each turn counts, (draws, turns). KitError for other labels."""
    if strange := {*predicted, *gold} - {*labels}:
        raise KitError(f"{min(strange)!r} is no strategy; know {', '.join(labels)}")
    place, size = {label: n for n, label in enumerate(labels)}, len(labels)
    cells = [place[p] * size + place[g] for p, g in zip(predicted, gold, strict=True)]
    weights = np.ones((1, len(cells))) if weights is None else weights
    counts = (weights @ np.eye(size * size)[cells]).reshape(-1, size, size)
    hits, true = np.diagonal(counts, axis1=1, axis2=2), counts.sum(1)
    f1, n = 2 * hits / np.maximum(counts.sum(2) + true, 1e-12), true.sum(1)
    shares = {"accuracy": hits.sum(1) / n, "Q": f1.mean(1), "QW": (f1 * true).sum(1) / n}
    return shares | {"B": bias(counts, ADDED), "B0": bias(counts)}


def claim(name: str, metric: str, drawn: np.ndarray, clusters: int) -> dict:
    """The row of a claim that a difference is above 0, from its draws (``cluster_weights``)."""
    reach = np.inf if metric in INTEREST else 1  # of a difference of shares
    low, high = (float(np.clip(e, -reach, reach)) for e in statistics.interval(drawn, clusters))
    error, interest = float(statistics.standard_error(drawn, clusters)), INTEREST.get(metric, 0.05)
    power = statistics.power(interest, error, clusters - 1)
    verdict = verdicts.of_check(low, high, 0.0, interest, power, None)
    ends = {"difference": float(drawn[0]), "low": low, "high": high}
    return {"claim": name, **ends, "verdict": verdict}


# ---------------------------------------------------------------- a picture of a tree


def drawn_tree(root: Node, depth: int = 3) -> pd.DataFrame:
    """A row a node with text down to a depth: x, y, those of its parent, strategy, visits, value,
    and whether it is a best choice by Q*."""
    shown = [n for n in nodes(root) if len(n.history) - len(root.history) <= 2 * depth]
    x, rows = {}, []
    leaves = iter(range(len(shown)))
    for node in reversed(shown):  # children before their parents
        own = [x[child] for child in node.children if child in x]
        x[node] = float(np.mean(own)) if own else next(leaves)
    for node in shown[1:]:
        right = node.strategy in best(node.parent.history[-1].state)
        y, above = len(node.history) // 2, x[node.parent]
        rows.append((x[node], y, above, node.strategy, node.visits, node.value, right))
    return pd.DataFrame(rows, columns="x y above strategy visits value best".split())


def plot_tree(df: pd.DataFrame) -> Figure:
    """Of ``drawn_tree``: size is visits, colour the mean reward, a ring the best choice by Q*."""
    figure, [[axis]] = plotting.canvas(9, 4.5)
    for row in df.itertuples():
        axis.plot([row.above, row.x], [row.y - 1, row.y], color=plotting.GREY, lw=0.6, zorder=1)
    sizes, ring = 12 + 6 * df.visits, np.where(df.best, "black", "none")
    style = {"cmap": "cividis", "vmin": -1, "vmax": 1, "edgecolors": ring, "linewidths": 1.6}
    dots = axis.scatter(df.x, df.y, s=sizes, c=df.value, zorder=2, **style)
    for n, row in enumerate(df[df.y == 1].sort_values("x").itertuples()):
        short, place = "".join(re.findall("[A-Z]", row.strategy)), (0, 14 + 12 * (n % 2))
        axis.annotate(short, (row.x, row.y), place, textcoords="offset points", ha="center")
    figure.colorbar(dots, label="mean reward Q")
    axis.set(ylabel="depth", yticks=sorted({0, *df.y}), xticks=[])
    axis.invert_yaxis()
    return figure


# ---------------------------------------------------------------- public files


def reported() -> pd.DataFrame:
    """What the paper reports, as far as it was found: quantity, value, unit, mark, source."""
    return pd.read_csv(Path(__file__).parent / "support/reported.csv")


def label(text: str) -> str:
    """ESConv's name of a strategy, however it is written; KitError for one that is unknown."""
    if (name := TEXTS["esconv"].get(text.strip().casefold())) is None:
        raise KitError(f"{text!r} is no strategy of ESConv: add it to promedical_studies/support")
    return name


def predictions(path: Path) -> tuple[list[str], list[str]]:
    """(predicted, gold) of a file in the form of Kang et al.: strg_pred and strg_gold a turn."""
    rows = read_json(path, "of a user")
    return tuple([label(row[name]) for row in rows] for name in ("strg_pred", "strg_gold"))


def esconv_turns(path: Path) -> list[str]:
    """The supporter's strategies in a TSV of ESConv, one a row: that of the last turn of each."""
    rows = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    return [label(re.search(r" 1 \d+ \[(.+?)\]", row.rsplit(" EOS ")[-1])[1]) for row in rows]


def esc_pro(dialogues: Iterable[dict]) -> tuple[list[Pair], dict[str, int | float]]:
    """(pairs, counts) of ESC-Pro's dialogues: messages of role, content, and of the supporter's
    strategy and the ``negative`` ones. Doubles are left out, and counted. KitError names a turn of
    another shape."""
    pairs, lengths = [], []
    turns = {"seeker's turns": 0, "preferred turns": 0, "not preferred turns": 0}
    for number, dialogue in enumerate(dialogues):
        history: tuple[Turn, ...] = ()
        for n, message in enumerate(dialogue["messages"]):
            strategy, role = message.get("strategy", ""), ("user", "assistant")[n % 2]
            if message["role"] != role or (role == "user") == bool(strategy):
                raise KitError(f"ESC-Pro, dialogue {number}, message {n}: not a turn of the {role}")
            turn = Turn(strategy, message["content"])
            worse = [Turn(m["strategy"], m["content"]) for m in message.get("negative", [])]
            pairs += [Pair(history, turn, other) for other in worse]
            turns["seeker's turns" if role == "user" else "preferred turns"] += 1
            turns["not preferred turns"] += len(worse)
            history += (turn,)
        lengths.append(len(history))
    counts = {"dialogues": len(lengths), "utterances": sum(turns.values())} | turns
    if not (unique := list(dict.fromkeys(pairs))):
        raise KitError("ESC-Pro: no pair, as no turn has negative ones: use the authors' file")
    counts |= {"mean dialogue length": round(float(np.mean(lengths)), 2)}
    return unique, counts | {"pairs": len(unique), "doubles": len(pairs) - len(unique)}
