"""The study of reward models: every baseline and ablation, same data, same steps, on one bench."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_utils.core.estimates import Estimates
from promedical_utils.core.records import DIMENSIONS
from promedical_utils.core.workspace import short_hash, write_frame, write_json
from promedical_utils.evaluation import bench as benches
from promedical_utils.pipeline import bench, reward_models
from promedical_utils.pipeline.preference_pairs import expert
from promedical_utils.report import figures as drawing
from promedical_utils.reward_model import variants
from promedical_utils.rubric import preferences
from promedical_utils.rubric.preferences import Group, digest
from promedical_utils.studies import results
from promedical_utils.studies.study import Study

PARTS = {f"only_{name}": name for name in DIMENSIONS}
REPORTED = (  # of a training, into the manifest
    *("view", "labels", "full", "steps", "groups", "pairs", "verdicts", "tokens", "seconds"),
    *("trained_parameters", "pointwise_weight"),
)


class RewardModels(Study):
    kind, title = "reward_models", "Reward models"

    def known(self) -> Sequence[str]:
        return tuple(variants.RECIPES)

    def train(self, profile, folder, data, out) -> dict:
        """Also into ``out``: sums.parquet."""
        made, held = bench.compose_bench(profile, data)
        made.save(folder / "bench")
        frames, models = [], []
        todo = [(name, seed) for name, seeds in self.plan.items() for seed in seeds]
        for number, (name, seed) in enumerate(todo, 1):
            print(f"[{number}/{len(todo)}] {name}, seed {seed} ...", flush=True)
            frame, row = self.one(profile, folder, data, made, held, name, seed)
            frames.append(frame)
            models.append({"model": name, "seed": seed} | row)
        frames += self.controls(profile, data, frames, made, held)
        results.write_sums(out, results.rows_of(self.counted(made, frames)))
        return {"models": models, "bench": made.report}

    def one(self, profile, folder, data, made, held, name, seed) -> tuple[pd.DataFrame, dict]:
        """Predictions of one model on the bench, and a row on its training."""
        recipe, place = variants.find(name), folder / "reward" / f"{name}-{seed}"
        report = reward_models.train_reward_model(profile, folder, data, recipe, place, seed)
        heldout = preferences.groups_of(data, expert(profile), "calibration")
        rows = scores(place, report, reward_models.as_read(recipe, data, heldout))
        fitted = reward_models.calibrate(profile, data, recipe, place, rows)
        scored = scores(place, report, reward_models.as_read(recipe, data, held))
        predicted = benches.predictions(f"{name}-{seed}", scored, made.criteria, fitted)
        row = {key: report[key] for key in REPORTED}
        row |= {key: len(report[key]) for key in ("left_out", "shortened")}
        row["heldout_pairs"] = reward_models.pair_accuracy(rows, heldout)["accuracy"]
        return predicted, row

    def controls(self, profile, data, predicted, made, held) -> list[pd.DataFrame]:
        """Predictions of what is not trained: joined models, and rules of a line."""
        judged = preferences.groups_of(data, "judge", "train")
        words = benches.cue_control(judged, held, profile.seed)
        return [*derived(predicted, made.criteria), words, benches.length_scorer(held)]

    def counted(self, made, frames: Sequence[pd.DataFrame]) -> Estimates:
        """Sums of the kind's metrics by sample, system and seed; scorers are <system>-<seed>."""
        predicted = pd.concat([f for f in frames if "a_id" not in f], ignore_index=True)
        stated = [f for f in frames if "a_id" in f]  # preferences alone
        stated = pd.concat(stated, ignore_index=True) if stated else None
        return self.by_training(benches.tally(made, predicted, preferences=stated))

    def by_training(self, tally: Estimates) -> Estimates:
        """The kind's metrics of a tally, its scorers as system and seed ("" of the untrained)."""
        cells = {(metric, part) for metric, at in self.shows["slices"].items() for part in at}
        keys = {}
        for column, (scorer, *cell) in enumerate(tally.keys):
            system, _, seed = scorer.rpartition("-")
            if tuple(cell[:2]) in cells and system not in self.shows.get("hidden", ()):
                keys[column] = (system or scorer, seed if system else "", *cell)
        return results.kept(tally, keys)

    def rows(self, cells: results.Cells, against: str, manifest: Mapping) -> pd.DataFrame:
        """A row a system, in percent: the means over its training seeds."""
        rows = []
        for name in self.ordered(cells):
            trained = cells.trained.get((name, "overall", "all", against), (0,))
            row = {"model": self.shows["labels"][name], "labels": against}
            row |= cells.wide(name, self.shows["columns"], against, "run_", 2)
            rows.append(row | {"seeds": len(trained)})
        return pd.DataFrame(rows)

    def ordered(self, cells: results.Cells) -> list[str]:
        return [name for name in self.shows["labels"] if name in cells.systems]

    def show(self, rows, manifest, out) -> None:
        cells = results.Cells(rows)
        for against in benches.AGAINST:
            title, table = f"{self.title}, against {against}", self.rows(cells, against, manifest)
            self.save_table(table, out, f"table_{against}", title, manifest)
        if "goals" in self.shows:
            shown = self.rows(cells, "truth", manifest)
            self.save_figure(drawing.plot_reward_study, shown, out, self.kind, manifest)
            write_json(out / "goals.json", goals(cells, self.shows["goals"]))


def goals(cells: results.Cells, asked: Sequence[Mapping]) -> list[dict]:
    """The kind's questions, against the truth: ``value`` and ``reached``, None where the plan has
    no such model."""
    rows = []
    for goal in asked:
        key, (sign, wanted) = (*goal["of"], "truth"), goal["wanted"]
        value = cells.ends(key)[0]
        if "less" in goal:
            value = cells.ends((*key, results.LESS, goal["less"]))[1]
        if "but" in goal:
            value -= cells.ends((goal["but"], *key[1:]))[0]
        row = {"id": goal["id"], "question": goal["question"], "wanted": f"{sign} {wanted:g}"}
        reached = value >= wanted if sign == ">=" else value <= wanted
        known = {"value": round(value, 4), "reached": reached}
        rows.append(row | (dict.fromkeys(known) if np.isnan(value) else known))
    return rows


def scores(place: Path, report: Mapping, held: list[Group]) -> pd.DataFrame:
    """Scores of ``held`` by the model in ``place``, kept under what they depend on."""
    stored = place / f"scores-{short_hash(report['settings'], digest(held))}.parquet"
    if not stored.exists():
        # late: loads torch, and drawing does without
        from promedical_utils.reward_model import model as reward_model

        write_frame(stored, reward_model.load(place).score_groups(held, shorten=True))
    return pd.read_parquet(stored)


def derived(predicted: list[pd.DataFrame], criteria: pd.DataFrame) -> list[pd.DataFrame]:
    """Scorers made of others: one RM per dimension joined, the mean over an answer's criteria."""
    frames = {frame.scorer.iloc[0]: frame for frame in predicted}
    dimension_of = criteria.set_index("criterion_id").dimension
    result = []
    for seed in sorted({name.rpartition("-")[2] for name in frames}):
        parts = {d: frames.get(f"{name}-{seed}") for name, d in PARTS.items()}
        if all(part is not None for part in parts.values()):
            own = [part[part.criterion_id.map(dimension_of) == d] for d, part in parts.items()]
            result.append(pd.concat(own).assign(scorer=f"only_one_dimension-{seed}"))
        if (whole := frames.get(f"criterion-{seed}")) is not None:
            mean = whole.groupby(["instruction_id", "candidate_id"], sort=False).probability.mean()
            mean = mean.rename("score").reset_index().assign(criterion_id="")
            result.append(benches.predictions(f"mean_of_criteria-{seed}", mean))
    return result
