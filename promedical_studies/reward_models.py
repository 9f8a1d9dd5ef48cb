"""The study of reward models: controls and ablations, same data, same steps, on both benches."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from promedical_studies import counting
from promedical_studies.study import Study, as_computed, kept_part
from promedical_utils.core.estimates import Estimates
from promedical_utils.core.run_data import RunData
from promedical_utils.core.workspace import short_hash, write_frame
from promedical_utils.evaluation import bench as benches
from promedical_utils.pipeline import bench, reward_models
from promedical_utils.pipeline.preference_pairs import expert
from promedical_utils.report import figures
from promedical_utils.reward_model import variants
from promedical_utils.rubric import preferences
from promedical_utils.rubric.preferences import Group, digest
from promedical_utils.studies import results
from promedical_utils.studies.catalog import kind_of

# of a training, into the manifest
REPORTED = ("view", "labels", "full", "steps", "groups", "pairs", "verdicts", "tokens", "seconds")
REPORTED += ("trained_parameters", "pointwise_weight")
Counted = tuple[pd.DataFrame, dict]  # rows of sums.parquet, and facts of a training


class RewardModels(Study):
    kind, title = "reward_models", "Reward models"

    def known(self) -> Sequence[str]:
        return tuple(variants.RECIPES)

    def train(self, profile, folder, data, out) -> dict:
        """Also into ``out``: what ``trainings`` writes."""
        made, rich, held = bench.compose_benches(profile, data)

        def counted(frames: Sequence[pd.DataFrame], *_) -> Counted:
            predicted = pd.concat(frames, ignore_index=True)
            both = [benches.tally(each, predicted) for each in (made, rich)]
            return counting.rows_of(self.by_training(benches.with_rich(*both))), {}

        models = self.trainings(profile, folder, data, out, made, held, counted)
        return {"models": models, "bench": made.report, "rich": rich.report}

    def trainings(self, profile, folder, data, out, made, held, counted, asked=()) -> list[dict]:
        """The controls, and every training of the plan, each a ``kept_part``, joined into
        sums.parquet of ``out``; a row on each training. ``counted`` (predictions, and of a training
        its name and seed) makes the rows of a part, which hang on ``asked``, too."""

        def trained(name: str, seed: int) -> Counted:
            recipe, place = variants.find(name), folder / "reward" / f"{name}-{seed}"
            report, fitted, accuracy = prepare(profile, folder, data, recipe, place, seed)
            scored = scores(place, report, reward_models.as_read(recipe, data, held))
            predicted = benches.predictions(place.name, scored, made.criteria, fitted)
            ruled = bench.ruled(predicted, held) if name == "criterion" else []
            ruled = [frame.assign(scorer=f"{frame.scorer.iloc[0]}-{seed}") for frame in ruled]
            rows, facts = counted([predicted, *ruled], name, seed)
            about = {key: report[key] for key in REPORTED} | {"heldout_pairs": accuracy}
            about |= {key: len(report[key]) for key in ("left_out", "shortened")}
            return rows, about | facts

        splits = [preferences.groups_of(data, "judge", s) for s in ("train", "calibration")]
        read = short_hash(as_computed(profile), *map(digest, [*splits, held]), *asked)

        def untrained() -> Counted:
            return counted(bench.controls(profile, folder, data, held))

        parts, models = [kept_part(out, "controls", read, untrained)[0]], []
        todo = [(name, seed) for name, seeds in self.plan.items() for seed in seeds]
        for number, (name, seed) in enumerate(todo, 1):
            print(f"[{number}/{len(todo)}] {name}, seed {seed} ...", flush=True)
            key = short_hash(read, repr(variants.find(name)), name, seed)
            rows, facts = kept_part(out, f"{name}-{seed}", key, partial(trained, name, seed))
            parts.append(rows)
            models.append({"model": name, "seed": seed} | facts)
        counting.write_sums(out, parts)
        return models

    def by_training(self, tally: Estimates) -> Estimates:
        """The kind's metrics of a tally, its scorers as system and seed ("" of the untrained)."""
        cells = {(metric, part) for metric, at in self.shows["slices"].items() for part in at}
        keys = {}
        for column, (scorer, *cell) in enumerate(tally.keys):
            if tuple(cell[:2]) in cells:
                system, _, seed = scorer.partition("-")
                keys[column] = (system, seed, *cell)
        return counting.kept(tally, keys)

    def rows(self, cells: results.Cells, against: str, manifest: Mapping) -> pd.DataFrame:
        """A row a system, in percent: the means over its training seeds; a cell that it has no
        answer to is empty."""
        rows = []
        for name in (name for name in self.shows["labels"] if name in cells.systems):
            steps = [model["steps"] for model in manifest["models"] if model["model"] == name]
            row = {"system": self.shows["labels"][name], "labels": against}
            row |= {"seeds": len(steps), "steps": max(steps, default=0)}
            rows.append(row | cells.wide(name, self.shows["columns"], against, "run_", 2))
        return pd.DataFrame(rows)

    def show(self, rows, manifest, out) -> None:
        cells = results.Cells(rows)
        for against in benches.AGAINST:
            title, table = f"{self.title}, against {against}", self.rows(cells, against, manifest)
            self.save_table(table, out, f"table_{against}", title, manifest)
        shown = self.rows(cells, "truth", manifest)
        self.save_figure(plot_reward_study, shown, out, self.kind, manifest)


def plot_reward_study(df: pd.DataFrame) -> Figure:
    """Pairs of seen and unseen kinds, and overall, a row a model; of ``RewardModels.rows``."""
    seeds = df.seeds.map(lambda n: f" ({n} seeds)" if n > 1 else "")
    return figures.plot_table(
        df.assign(system=df.system + seeds), kind_of("reward_models")["figure"]
    )


def prepare(profile, folder: Path, data: RunData, recipe, place: Path, seed=None) -> tuple:
    """Train a recipe into ``place`` and calibrate it, as far as that is not done: its report, its
    calibration, if any, and the share of the held-out pairs that it orders rightly."""
    report = reward_models.train_reward_model(profile, folder, data, recipe, place, seed)
    heldout = preferences.groups_of(data, expert(profile), "calibration")
    rows = scores(place, report, reward_models.as_read(recipe, data, heldout))
    fitted = reward_models.calibrate(profile, data, recipe, place, rows)
    return report, fitted, reward_models.pair_accuracy(rows, heldout)["accuracy"]


def scores(place: Path, report: Mapping, held: list[Group]) -> pd.DataFrame:
    """Scores of ``held`` by the model in ``place``, kept under what they depend on."""
    stored = place / f"scores-{short_hash(report['settings'], digest(held))}.parquet"
    if not stored.exists():
        from promedical_utils.reward_model import model as reward_model  # late: loads torch

        write_frame(stored, reward_model.load(place).score_groups(held, shorten=True))
    return pd.read_parquet(stored)
