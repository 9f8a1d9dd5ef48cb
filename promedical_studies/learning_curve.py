"""The learning curve on real text: held-out accuracy over the tokens that a reward model has read.

By depth of the base: is it the budget or the depth that holds a small base back? Held out are the
splits checkpoint and calibration, never the bench. No claim rests on it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from promedical_studies import counting
from promedical_studies.study import Study, as_computed, kept_part
from promedical_utils.core import plotting
from promedical_utils.core.estimates import ENDS, Estimates
from promedical_utils.core.plotting import BLUE, CHANCE, GREEN, ORANGE
from promedical_utils.core.profiles import Profile
from promedical_utils.core.run_data import RunData, base_path
from promedical_utils.core.workspace import short_hash, write_frame
from promedical_utils.data.sources.real_sets import LABELS, refuse_external
from promedical_utils.pipeline import base
from promedical_utils.reward_model.variants import find
from promedical_utils.rubric.preferences import Group, criterion_pairs, digest, groups_of
from promedical_utils.studies import results
from promedical_utils.studies.catalog import kind_of


class LearningCurve(Study):
    """``plan``: name of an arm -> its recipe, layers, epochs, and after how much it is looked at.

    The seed of a result row is what the arm had read by then, in thousands of tokens.
    """

    kind, title, data = "learning_curve", "Learning curve", "real"

    def known(self) -> Sequence[str]:
        return tuple(self.plan)

    def train(self, profile, folder, data, out) -> dict:
        """Also into ``out``: sums.parquet, and part-<arm> of each arm, which a later run takes
        over."""
        held = sample(groups_of(data, "judge", "checkpoint", "calibration"), self.shows["words"])
        parts, arms = [], []
        for name, arm in self.plan.items():
            print(f"{name} ...", flush=True)
            settings = {"base_layers": arm["layers"], "rm_epochs": float(arm["epochs"])}
            own = profile.model_copy(update=settings)
            train = groups_of(data, find(arm["recipe"]).labels, "train")
            key = short_hash(as_computed(own), digest(held), digest(train), repr(arm))
            make = partial(_followed, name, arm, own, folder / "curve" / key, data, held)
            rows, facts = kept_part(out, name.replace(" ", "_"), key, make)
            parts.append(rows)
            arms.append({"arm": name, **arm, **facts})
        counting.write_sums(out, parts)
        return {"arms": arms, "held_out_groups": len(held)}

    def show(self, rows, manifest, out) -> None:
        frame = rows[rows.how.eq(results.VALUE) & rows.seed.ne(results.MEAN)]
        frame = frame.assign(tokens=1000 * frame.seed.astype(float))
        frame = frame.rename(columns={"system": "arm", "slice": "part", "against": "labels"})
        frame = frame[["arm", "part", "labels", "tokens", "value", "low", "high", "n"]]
        self.save_table(frame, out, "table", self.title, manifest)
        self.save_figure(plot_learning_curve, frame, out, "learning_curve", manifest)


def plot_learning_curve(df: pd.DataFrame) -> Figure:
    """Held-out accuracy over the tokens read, a panel a source, of ``LearningCurve.show``."""
    df = df.assign(**df.part.str.extract("(?P<source>.*): (?P<pairs>.*)"), tokens=df.tokens / 1000)
    sources, of_pairs = df.groupby("source", sort=False), kind_of("learning_curve")["pairs"]
    figure, axes = plotting.canvas(3.2 * len(sources), 3, len(sources))
    colours = dict(zip(dict.fromkeys(df.arm), (BLUE, ORANGE, GREEN), strict=False))
    for axis, (source, part) in zip(axes.flat, sources, strict=True):
        for (arm, pairs), own in part.groupby(["arm", "pairs"]):
            value, low, high = 100 * own[[*ENDS]].to_numpy().T
            style = {"color": colours[arm], "ls": of_pairs[pairs][1], "marker": "o"}
            spread = np.nan_to_num([value - low, high - value])
            axis.errorbar(own.tokens, value, spread, ms=3, elinewidth=0.6, **style)
        axis.axhline(50, **CHANCE)
        title = f"{source}\n({part.labels.iloc[0].replace('_', ' ')})"
        axis.set(xscale="log", xlabel="thousand tokens read", title=title)
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
    axes.flat[0].set_ylabel("pairs ordered rightly (%)")
    marks = {arm: {"color": colour, "marker": "o"} for arm, colour in colours.items()}
    marks |= {name: {"color": "black", "ls": line} for name, line in of_pairs.values()}
    plotting.draw_legend(figure, marks)
    return figure


def sample(groups: Sequence[Group], most: int) -> list[Group]:
    """Of each source as many groups, by their ids' hash, as have ``most`` words; of each criterion
    some 20 are counted."""
    kept, read = [], Counter()
    for group in sorted(groups, key=lambda g: short_hash("curve", g.instruction.id)):
        source = group.instruction.source
        words = sum(len(a.text.split()) + 20 * len(group.criteria) for a in group.candidates)
        if read[source] + words <= most:
            kept.append(group)
            read[source] += words
    return kept


def _followed(name: str, arm: Mapping, profile: Profile, place: Path, data: RunData, held):
    """Train one arm on a base of its own, and count the held-out pairs whenever it has read as much
    as ``arm`` says; the rows, and how many thousand tokens it read."""
    from transformers import TrainerCallback  # late: loads torch, and drawing does without

    from promedical_utils.reward_model import grouped, training
    from promedical_utils.reward_model.model import RewardModel

    base.make_base(profile, place)
    recipe, source = find(arm["recipe"]), base_path(profile, place)
    train = recipe.groups(groups_of(data, recipe.labels, "train"))
    refuse_external(group.instruction for group in train)
    plan = training.Plan(train, source, place / "model", profile=profile, view=recipe.view)
    trainer, tokenizer, taught, schedule = training.prepare(plan)
    tokens = [sum(map(len, taught.rows[i]["ids"])) for i in schedule.order]
    steps = np.arange(0, len(tokens), schedule.batch)
    total = np.add.reduceat(tokens, steps).cumsum()  # by the end of each step
    wanted = np.searchsorted(total, 1000 * np.array(arm["looks"])) + 1
    looks = {len(total), *np.minimum(wanted, len(total))}

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **_):
            if state.global_step not in looks:
                return
            rm = (model.eval(), tokenizer, plan.view, profile.rm_max_tokens)
            scores = RewardModel(*rm, {"heads": plan.heads}).score_groups(held)
            read = round(total[state.global_step - 1] / 1000)
            # a file, so that a training that goes on from a checkpoint has its earlier looks
            write_frame(place / f"look-{read}.parquet", scores.assign(read=read))
            print(f"  {read} thousand tokens", flush=True)
            model.train()

    trainer.add_callback(Look())
    grouped.course(trainer)
    frames = map(pd.read_parquet, sorted(place.glob("look-*.parquet")))
    scores = pd.concat(frames, ignore_index=True)
    return counting.rows_of(counted(name, scores, held, data)), {"read": int(scores.read.max())}


def counted(arm: str, scores: pd.DataFrame, held: Sequence[Group], data: RunData) -> Estimates:
    """Pairs ordered rightly at each look, by source: all, those whose shorter answer (characters)
    is right, and of what was constructed those on statements."""
    kinds, pairs = data.criterion_kinds, []
    for row, group in enumerate(held):
        length = {a.id: len(a.text) for a in group.candidates}
        for q in criterion_pairs(group):
            shorter = length[q.chosen_id] < length[q.rejected_id]
            statement = kinds[q.criterion_id] in ("must_have", "nice_to_have")
            ids = (q.chosen_id, q.rejected_id, q.criterion_id)
            pairs.append((row, *ids, group.instruction.source, shorter, statement))
    columns = ["row", "a", "b", "criterion_id", "source", "shorter", "statements"]
    pairs, items = pd.DataFrame(pairs, columns=columns).assign(all=True), []
    cells = [pd.MultiIndex.from_frame(pairs[[side, "criterion_id"]]) for side in "ab"]
    for read, own in scores.groupby("read"):
        value = own.set_index(["candidate_id", "criterion_id"]).score
        a, b = (value.reindex(cell).to_numpy() for cell in cells)
        for source, part in pairs.groupby("source"):
            for name in ("all", "shorter", "statements"):
                at = part.index[part[name]]
                key = (arm, str(read), "pairwise", f"{source}: {name}", LABELS[source])
                items.append((key, pairs.row[at].to_numpy(), a[at] > b[at]))
    samples = counting.numbered([data.condition_of[g.instruction.id] for g in held])
    return Estimates.of_items(samples, results.KEY, items)
