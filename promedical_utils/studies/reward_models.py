"""The study of reward models: every baseline and ablation, same data, same steps, on one bench."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_utils.core import plotting, provenance
from promedical_utils.core.estimates import Estimates
from promedical_utils.core.records import DIMENSIONS
from promedical_utils.core.workspace import replacing, short_hash, write_json
from promedical_utils.evaluation import bench as benches
from promedical_utils.pipeline import bench, reward_models
from promedical_utils.report import figures as drawing
from promedical_utils.report import tables
from promedical_utils.reward_model import calibration, variants
from promedical_utils.rubric import preferences
from promedical_utils.rubric.preferences import Group, digest
from promedical_utils.studies import results
from promedical_utils.studies.study import Study

PARTS = {f"only_{name}": name for name in DIMENSIONS}
REPORTED = (  # of a training, into the manifest
    *("view", "labels", "full", "steps", "groups", "pairs", "verdicts", "tokens", "seconds"),
    *("trained_parameters", "pointwise_weight"),
)
NOT_MEASURED = {"value": None, "reached": None}


class RewardModels(Study):
    kind, title = "reward_models", "Reward models"

    def known(self) -> Sequence[str]:
        return tuple(variants.RECIPES)

    def train(self, profile, folder, data, out) -> dict:
        """Also into ``out``: sums.parquet, and calibration.csv of the conditional models."""
        made, held = bench.compose_bench(profile, data)
        made.save(folder / "bench")
        frames, models, errors = [], [], []
        todo = [(name, seed) for name, seeds in self.plan.items() for seed in seeds]
        for number, (name, seed) in enumerate(todo, 1):
            print(f"[{number}/{len(todo)}] {name}, seed {seed} ...", end=" ", flush=True)
            started = time.perf_counter()
            frame, row, error = self.one(profile, folder, data, made, held, name, seed)
            print(f"{time.perf_counter() - started:.0f} s", flush=True)
            frames.append(frame)
            models.append(row)
            errors += error
        frames += self.controls(profile, data, frames, made, held)
        results.write_sums(out, self.counted(made, frames))
        if errors:
            with replacing(out / "calibration.csv") as temporary:
                frame = pd.DataFrame(errors)
                frame.to_csv(temporary, index=False, float_format="%.6g")
        return {"models": models, "bench": made.report}

    def one(self, profile, folder, data, made, held, name, seed):
        """(predictions on the bench, a row on the training, calibration errors) of one model."""
        recipe, place = variants.find(name), folder / "reward" / f"{name}-{seed}"
        report = reward_models.train_reward_model(profile, folder, data, recipe, place, seed)
        heldout = preferences.groups_of(data, "truth", "calibration")
        rows = scores(place, report, heldout)
        fitted = reward_models.calibrate(profile, data, recipe, place, rows)
        predicted = benches.predictions(
            f"{name}-{seed}", scores(place, report, held), made.criteria, fitted
        )
        row = {"model": name, "seed": seed} | {key: report[key] for key in REPORTED}
        row |= {"left_out": len(report["left_out"]), "shortened": len(report["shortened"])}
        row["heldout_pairs"] = reward_models.pair_accuracy(rows, heldout)["accuracy"]
        errors = []
        if self.kind == RewardModels.kind and recipe.conditional and name not in PARTS:
            settled = reward_models.settled_rows(profile, data, recipe, rows)
            errors = compared(settled, predicted, made, profile.veto_recall)
        return predicted, row, [{"model": name, "seed": seed} | error for error in errors]

    def controls(self, profile, data, predicted, made, held) -> list[pd.DataFrame]:
        """Predictions of what is not trained: joined models, and rules of a line."""
        judged = preferences.groups_of(data, "judge", "train")
        words = benches.cue_control(judged, held, profile.seed)
        return [*derived(predicted, made.criteria), words, benches.length_scorer(held)]

    def counted(self, made, frames: Sequence[pd.DataFrame]) -> Estimates:
        """Sums of the kind's metrics by sample, system and seed; scorers are <system>-<seed>."""
        return self.by_training(benches.tally(made, pd.concat(frames, ignore_index=True)))

    def by_training(self, tally) -> Estimates:
        """The kind's metrics of a tally, its scorers as system and seed ("" of the untrained)."""
        cells = {(metric, part) for metric, at in self.shows["slices"].items() for part in at}
        keys, columns = [], []
        for column, (scorer, *cell) in enumerate(tally.keys):
            system, _, seed = scorer.rpartition("-")
            if tuple(cell[:2]) in cells and system not in self.shows.get("hidden", ()):
                keys.append((system or scorer, seed if system else "", *cell))
                columns.append(column)
        sums = tally.hits[:, columns], tally.counts[:, columns]
        return Estimates(tally.samples, results.KEY, keys, *sums)

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

    def write_tables(self, found, profile, manifest, out) -> None:
        for against in benches.AGAINST:
            title = f"{self.title}, against {against}"
            rows = self.rows(results.Cells(found), against, manifest)
            self.save_table(rows, out, f"table_{against}", title, profile, manifest)

    def show(self, found, profile, manifest, out) -> None:
        self.write_tables(found, profile, manifest, out)
        cells, note = results.Cells(found), tables.note(profile, profile.seed)
        shown = self.rows(cells, "truth", manifest)
        facts = {"run": provenance.of_manifest(manifest)}
        facts |= {"sources": tables.digests([out / "results.csv"])}
        plotting.save(drawing.plot_reward_study, shown, out, "reward_models", note, facts)
        write_json(out / "goals.json", goals(cells, self.shows["goals"]))


def goals(cells: results.Cells, asked: Sequence[Mapping]) -> list[dict]:
    """The kind's questions, against the truth: what was measured.

    ``value`` and ``reached`` are None where the plan has no such model.
    """
    rows = []
    for goal in asked:
        key = (*goal["of"], "truth")
        if "less" in goal:
            value = cells.ends((*key, results.LESS, goal["less"]))[1]
        else:
            value = cells.ends(key)[0]
        if "but" in goal:
            value -= cells.ends((goal["but"], *key[1:]))[0]
        sign, wanted = goal["wanted"]
        reached = value >= wanted if sign == ">=" else value <= wanted
        row = {"id": goal["id"], "question": goal["question"], "wanted": f"{sign} {wanted:g}"}
        known = not np.isnan(value)
        row |= {"value": round(value, 4), "reached": reached} if known else NOT_MEASURED
        rows.append(row)
    return rows


def scores(place: Path, report: Mapping, held: list[Group]) -> pd.DataFrame:
    """Scores of ``held`` by the model in ``place``, kept under what they depend on."""
    stored = place / f"scores-{short_hash(report['settings'], digest(held))}.parquet"
    if not stored.exists():
        from promedical_utils.reward_model import (
            model as reward_model,  # late: loads torch, and drawing does without
        )

        with replacing(stored) as temporary:
            reward_model.load(place).score_groups(held).to_parquet(temporary, index=False)
    return pd.read_parquet(stored)


def compared(settled: pd.DataFrame, predicted: pd.DataFrame, made, recall: float) -> list[dict]:
    """Calibration error and quality on the bench, against the truth, by method and dimension.

    ``settled``: labelled scores of the calibration split. Kinds seen in training only: a
    calibration says nothing of others.
    """
    cells = benches.truths(made)
    cells = cells[cells.seen].merge(predicted, on=["instruction_id", *benches.CELL])
    raw = {name: {"temperature": 1.0, "bias": 0.0} for name in DIMENSIONS}
    methods = {"none": calibration.Calibration(raw, 0.0, recall, {})}
    methods |= {m: calibration.fit(settled, recall, method=m) for m in calibration.METHODS}
    result = []
    for method, fitted in methods.items():
        for name, part in cells.groupby("dimension"):
            quality = calibration.quality_of(fitted, part)
            likely = fitted.probability(part.score, name)
            error = calibration.expected_error(part.label, likely)
            result.append({"method": method, "dimension": name, "ece": error, **quality})
    return result


def derived(predicted: list[pd.DataFrame], criteria: pd.DataFrame) -> list[pd.DataFrame]:
    """Scorers made of others: one RM per dimension joined, the mean over an answer's criteria."""
    frames, of = (
        {f.scorer.iloc[0]: f for f in predicted},
        criteria.set_index("criterion_id").dimension,
    )
    result = []
    for seed in sorted({name.rpartition("-")[2] for name in frames}):
        parts = {d: frames.get(f"{name}-{seed}") for name, d in PARTS.items()}
        if all(part is not None for part in parts.values()):
            joined = pd.concat(part[part.criterion_id.map(of) == d] for d, part in parts.items())
            result.append(joined.assign(scorer=f"only_one_dimension-{seed}"))
        if (whole := frames.get(f"criterion-{seed}")) is not None:
            mean = whole.groupby(["instruction_id", "candidate_id"], sort=False).probability.mean()
            mean = mean.rename("score").reset_index().assign(criterion_id="")
            result.append(benches.predictions(f"mean_of_criteria-{seed}", mean))
    return result
