"""Convert the committed studies to the one format of ``promedical_utils.studies.results``, once.

python scripts/convert_studies.py, in the checkout. Three formats were there: reward models as a row
a model with the lowest and highest of its seeds, systems as predictions with results and contrasts
counted from them, policies as answers with a wide table. Values are checked against the old files
before these go; tables and claims are then made from results.csv alone (make figures).

Of the reward models, predictions were never kept: their seeds are the lowest, the highest and,
from the mean, the middle one, and which training had which is not known ("?1" to "?3").
"""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_utils.core.workspace import project_root
from promedical_utils.evaluation import bench as benches
from promedical_utils.studies import plans, results
from promedical_utils.studies.policies import Policies
from promedical_utils.studies.study import Study
from promedical_utils.studies.systems import Systems

CELL = list(results.CELL)
DIGITS = 5.01e-6  # of the old files, relative: half of the last of six


def reward_models(folder: Path) -> None:
    old = pd.read_csv(folder / "results.csv", float_precision="round_trip")
    rows = []
    for row in old.itertuples():
        low, high, k = row.seed_low, row.seed_high, row.seeds
        middle = round(3 * row.value - low - high, 9)
        values = {1: [row.value], 3: [low, middle, high]}[k]
        trained = {"1": values[0]} if k == 1 else {f"?{n}": v for n, v in enumerate(values, 1)}
        if row.model in ("words", "length"):  # nothing is trained
            trained = {}
        cell = (row.metric, row.slice, row.against)
        for seed, value in trained.items():
            rows.append((row.model, seed, *cell, "value", "", value, None, None, row.n))
        ends = (row.value, row.low, row.high, row.n)
        rows.append((row.model, "mean", *cell, "value", "", *ends))
        if not math.isnan(row.less_scalar):
            ends = (row.less_scalar, row.less_low, row.less_high, row.n)
            rows.append((row.model, "mean", *cell, "less", "scalar_overall", *ends))
    results.write(folder, pd.DataFrame(rows, columns=results.COLUMNS))
    again = results.Cells(results.read(folder))
    for row in old.itertuples():
        key = (row.model, row.metric, row.slice, row.against)
        assert again.ends(key) == (row.value, row.low, row.high), key
    remove(folder, "models.csv")


def systems(folder: Path, study: Study, profile: dict) -> None:
    old, contrasts = (pd.read_csv(folder / f"{name}.csv") for name in ("results", "contrasts"))
    predictions, preferences = (
        pd.read_parquet(folder / f"{name}.parquet") for name in ("predictions", "preferences")
    )
    made = benches.Bench.load(folder)
    results.write_sums(
        folder, study.by_training(benches.tally(made, predictions, preferences=preferences))
    )
    count(folder, study, profile)
    new = results.read(folder)
    same(old.rename(columns={"scorer": "system"}), new[new.how == "value"], ["system", "seed"])
    less = new[new.how == "less"]
    contrasts["seed"] = np.where(contrasts.seeds.str.contains(" "), "mean", contrasts.seeds)
    whole = contrasts.groupby(["a", "b", *CELL]).cumcount(ascending=False) == 0
    contrasts["seed"] = np.where(whole, "mean", contrasts.seed)
    turned = contrasts.rename(columns={"a": "other", "b": "system"}).assign(
        value=-contrasts.difference, low=-contrasts.high, high=-contrasts.low
    )
    same(turned, less, ["system", "other", "seed"])
    bench = [f"{name}.parquet" for name in (*benches.FRAMES, "predictions", "preferences")]
    remove(folder, "models.csv", "contrasts.csv", "report.json", *bench)


def policies(folder: Path, study: Study, profile: dict) -> None:
    count(folder, study, profile)
    remove(folder, "study.csv")  # policies.csv is the same


def count(folder: Path, study: Study, profile: dict) -> None:
    shows, sums = study.shows, study.sums(folder)
    drawn = profile["bootstrap"], profile["seed"]
    results.write(folder, results.count(sums, shows["less"], shows.get("over", ()), *drawn))


def same(old: pd.DataFrame, new: pd.DataFrame, key: list[str]) -> None:
    """Every old row is there, equal in the digits that were written."""
    both = old.merge(new, on=[*key, *CELL], suffixes=("", "_new"), how="left")
    for name in ("value", "low", "high", "n"):
        np.testing.assert_allclose(both[f"{name}_new"], both[name], rtol=DIGITS, atol=1e-9)
    print(f"{len(old)} rows are the same")


def remove(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def main() -> None:
    for folder in sorted((project_root() / "papers_figures/studies").iterdir()):
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        plan, profile = plans.plan_of(folder.name), manifest["profile"]
        if "policies" in plan:
            policies(folder, Policies(plan["policies"]), profile)
        elif "systems" in plan:
            systems(folder, Systems(plan["systems"]), profile)
        else:
            reward_models(folder)
        print(folder.name)


if __name__ == "__main__":
    main()
