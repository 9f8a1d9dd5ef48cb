"""A run's preference set as a folder that ``datasets.load_dataset`` reads, with its card.

Every text is stored once: pairs and verdicts carry ids, and the card says in code how to join.
Real sources leave only where their licence lets them be passed on, evaluation-only ones never.
"""

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
from huggingface_hub import DatasetCard, DatasetCardData

from promedical_utils.core import records
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import SPLITS, CriterionPair
from promedical_utils.core.run_data import RunData
from promedical_utils.core.workspace import KitError, write_frame, write_text
from promedical_utils.data.sources import open_sets, schemas
from promedical_utils.data.sources.real_sets import EXTERNAL

TEMPLATE = Path(__file__).with_name("dataset_card.md.jinja")
TAGS = ["preference", "reward-model", "rubrics", "medical", "research-only"]
# under which texts may be passed on; a source that states none, or another licence, may not
FREE = {"MIT", "APACHE-2.0", "BSD-3-CLAUSE", "CC0-1.0", "ODC-BY", "PDDL"}
FREE |= {"CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-3.0", "CC-BY-SA-3.0"}


def export(run: Path, folder: Path, profile: Profile, sources: Iterable[str] | None = None) -> dict:
    """Write the data of ``run``, of these ``sources`` (default: all), to ``folder``; rows by config
    (instructions, criteria, responses, verdicts, pairs) and split.

    An earlier export is replaced; the card is written last. KitError where a source may not be
    passed on, or a file of the run is missing.
    """
    data = RunData.load(run)
    source_of = {i.id: i.source for i in data.instructions}
    known = sorted(set(source_of.values()))
    wanted = known if sources is None else sorted(set(sources))
    if unknown := sorted(set(wanted) - set(known)):
        raise KitError(
            f"export: no instruction of source {unknown[0]!r}; the run has {', '.join(known)}"
        )
    licences = {name: licence(name, profile) for name in wanted}
    kept = [row for row in data.splits if source_of[row.instruction_id] in wanted]
    split_of = {row.instruction_id: row.split for row in kept}
    split_of |= {c.id: split_of.get(c.instruction_id) for c in data.candidates}
    criteria = [
        rubric.model_dump(exclude={"criteria"}) | criterion.model_dump()
        for rubric in data.rubrics
        for criterion in rubric.criteria
    ]
    pairs = records.load(run / "data/pairs.parquet", CriterionPair, "02_preference_pairs")
    tables = {
        "instructions": [row.model_dump() for row in data.instructions],
        "criteria": criteria,
        "responses": [row.model_dump() for row in data.candidates],
        "verdicts": [row.model_dump() for row in data.verdicts],
        "pairs": [row.model_dump() for row in pairs],
    }
    shutil.rmtree(folder / "data", ignore_errors=True)
    counts: dict[str, dict[str, int]] = {}  # config -> split -> rows
    for name, table in tables.items():
        frame = pd.DataFrame(table)
        key = {"instructions": "id", "verdicts": "candidate_id"}.get(name, "instruction_id")
        splits = pd.Categorical(frame[key].map(split_of), SPLITS)
        for split, rows in frame.groupby(splits, observed=True):
            write_frame(folder / f"data/{name}/{split}.parquet", rows)
            counts.setdefault(name, {})[split] = len(rows)
    write_text(folder / "README.md", _card(profile, licences, counts))
    return counts


def licence(source: str, profile: Profile) -> str:
    """Licence under which texts of ``source`` may be passed on; KitError where they may not."""
    cards = {**schemas.CARDS, **open_sets.CARDS}
    name = source.removesuffix("_contrast")
    stated = [c.licence for key, c in cards.items() if f"{key}_".startswith(f"{name}_")]
    if source in EXTERNAL:
        raise KitError(
            f"export: {source} is for evaluation only (HealthBench carries a canary); its texts "
            "are never exported: name the other sources"
        )
    if profile.data == "clinic" and not stated:
        return "MIT"  # invented by the kit, and under its licence
    for words in stated or ["none known, since it has no card"]:
        if re.sub(r"[ _]", "-", words.split(" (")[0].strip()).upper() not in FREE:
            raise KitError(
                f"export: the licence of {source} does not let its texts be passed on "
                f"(stated: {words}); name the other sources"
            )
    return " and ".join(dict.fromkeys(stated))


def _card(profile: Profile, licences: Mapping, counts: Mapping) -> str:
    """The card's text; ``counts``: config -> split -> rows; ``pairs`` is the default config."""
    clinic = profile.data == "clinic"
    rows = pd.DataFrame(counts).T.reindex(columns=SPLITS).dropna(axis=1, how="all")
    configs = [
        {
            "config_name": name,
            "default": name == "pairs",
            "data_files": [{"split": s, "path": f"data/{name}/{s}.parquet"} for s in of_split],
        }
        for name, of_split in counts.items()
    ]
    header = DatasetCardData(
        license="mit" if set(licences.values()) == {"MIT"} else "other",
        language="en",
        pretty_name=f"ProMedical reproducibility kit, profile {profile.name}",
        tags=TAGS + ["synthetic"] * clinic,
        configs=configs,
    )
    facts = {"profile": profile, "clinic": clinic, "licences": licences}
    return f"{DatasetCard.from_template(header, TEMPLATE, rows=rows.astype('Int64'), **facts)}\n"
