"""The study of systems: small trained versions of the compared ones on one bench.

What is equal and what not, ``small_systems`` and ``systems.yaml`` say.
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from promedical_utils.core import run_data
from promedical_utils.core.workspace import short_hash, write_frame
from promedical_utils.data.sources.real_sets import refuse_external
from promedical_utils.evaluation import scorers
from promedical_utils.reward_model import variants
from promedical_utils.rubric import preferences
from promedical_utils.rubric.preferences import digest
from promedical_utils.studies import results
from promedical_utils.studies.reward_models import RewardModels
from promedical_utils.studies.study import Study

CONSISTENT = 0.9  # share of pairs on which both orders of the answers must say the same
REPORTED = ("labels", "steps", "groups", "examples", "tokens", "seconds", "trained_parameters")


class Systems(RewardModels):
    kind, title = "systems", "Systems"
    known = Study.known

    def one(self, profile, folder, data, made, held, name, seed):
        if name in variants.RECIPES:
            return super().one(profile, folder, data, made, held, name, seed)
        from promedical_utils.studies import small_systems  # late: loads torch

        place, base = folder / "reward" / f"{name}-{seed}", run_data.untaught_path(profile, folder)
        train = preferences.groups_of(data, "judge", "train")
        refuse_external(group.instruction for group in train)
        report = small_systems.train(name, train, base, place, profile=profile, seed=seed)
        stored = place / f"said-{short_hash(report['settings'], digest(held))}.parquet"
        if not stored.exists():
            predicted, preferred = scorers.predict(small_systems.load(name, place), held)
            write_frame(stored, preferred if predicted is None else predicted)
        said = pd.read_parquet(stored)
        row = {key: report[key] for key in REPORTED} | {"left_out": len(report["left_out"])}
        if "consistent" in said:
            row["consistent"] = round(float(said.consistent.astype(float).mean()), 4)
        return said.assign(scorer=f"{name}-{seed}"), row

    def rows(self, cells, against, manifest) -> pd.DataFrame:
        """Also of each system whether it learned, or why it did not (``gates``)."""
        frame, failed = super().rows(cells, against, manifest), gates(manifest["models"], cells)
        frame.insert(1, "learned", [failed.get(name, "yes") for name in self.ordered(cells)])
        return frame


def gates(models: Sequence[Mapping], cells: results.Cells) -> dict[str, str]:
    """System -> why it did not learn, so that no claim may use it: it contradicts itself when two
    answers change places, or orders the pairs no better than chance or than longer-is-better."""
    failed, longer = {}, cells.ends(("length", "pairwise", "all", "truth"))[0]
    for name in dict.fromkeys(row["model"] for row in models):
        value, low, _ = cells.ends((name, "pairwise", "all", "truth"))
        agreed = min(row.get("consistent", 1) for row in models if row["model"] == name)
        if agreed < CONSISTENT:
            failed[name] = f"no: both orders agree on {agreed:.0%} of pairs"
        elif not low > 0.5:
            failed[name] = "no: its pairs are not above chance"
        elif not value > longer:
            failed[name] = "no: longer is better orders as many pairs"
    return failed
