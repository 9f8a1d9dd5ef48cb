"""A study of policies from answers alone, as its run makes it: results, table, files."""

import pandas as pd

from promedical_studies import counting, policies
from promedical_utils.studies.catalog import kind_of

KIND = kind_of("policies")


def count(rows, draws=60, seed=0):
    """Result rows of an evaluation."""
    return counting.count(policies.counted(rows), KIND["less"], KIND["over"], draws, seed)


def table(rows, variants, draws=60, seed=0):
    """``policies.table`` of an evaluation; ``variants``: name -> label, remark, group, veto."""
    blank = {"remark": "", "group": "", "veto": True}
    facts = pd.DataFrame([blank | given for given in variants.values()], index=list(variants))
    return policies.table(count(rows, draws, seed), facts[["label", *blank]])


def write(folder, rows, draws=60, seed=0):
    """An evaluation and its results, in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = {name: float for name in rows if name.endswith("violation")}
    rows.astype(numbers).to_parquet(folder / "evaluation.parquet")
    counting.write(folder, count(rows, draws, seed))
