"""A run's preference set as a folder that ``datasets.load_dataset`` reads, with its card.

Every text is stored once: pairs and verdicts carry ids, and the card says in code how to join.
Real sources leave only where their licence lets them be passed on, evaluation-only ones never.
"""

import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from huggingface_hub import DatasetCard, DatasetCardData
from pyarrow import parquet

from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import SPLITS
from promedical_utils.core.run_data import RunData
from promedical_utils.core.workspace import KitError, need, replacing, shown, write_text
from promedical_utils.data.sources import open_sets, schemas
from promedical_utils.data.sources.real_sets import EXTERNAL

CARD = "README.md"
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
    data = RunData.load(run, "instructions", "rubrics", "splits")
    known = sorted({i.source for i in data.instructions})
    wanted = known if sources is None else sorted(set(sources))
    if unknown := sorted(set(wanted) - set(known)):
        raise KitError(
            f"export: no instruction of source {unknown[0]!r}; the run has {', '.join(known)}"
        )
    licences = {name: licence(name, profile) for name in wanted}
    kept = {i.id for i in data.instructions if i.source in wanted}
    tables = _tables(run, data)
    shutil.rmtree(folder / "data", ignore_errors=True)
    counts: dict[str, dict[str, int]] = {}  # config -> split -> rows
    for split in SPLITS:
        ids, part = pa.array([i for i in data.ids(split) if i in kept], pa.string()), {}
        for name, table in tables.items():
            key, of = {"instructions": "id"}.get(name, "instruction_id"), ids
            if name == "verdicts":
                key, of = "candidate_id", part["responses"]["id"]
            part[name] = table.filter(pc.is_in(table[key], of)).replace_schema_metadata()
            if len(part[name]):
                counts.setdefault(name, {})[split] = len(part[name])
                with replacing(folder / f"data/{name}/{split}.parquet") as temporary:
                    parquet.write_table(part[name], temporary)
    write_text(folder / CARD, _card(profile, licences, counts))
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


def _tables(run: Path, data: RunData) -> dict[str, pa.Table]:
    """The tables of a run by config; of rubrics a row a criterion."""
    criteria = [
        rubric.model_dump(exclude={"criteria"}) | criterion.model_dump()
        for rubric in data.rubrics
        for criterion in rubric.criteria
    ]
    tables = {"criteria": pa.Table.from_pylist(criteria)}
    for name in ("instructions", "candidates", "verdicts", "pairs"):
        path = need(run / f"data/{name}.parquet", "02_preference_pairs")
        try:
            tables[name] = parquet.read_table(path)
        except pa.ArrowInvalid:
            raise KitError(f"{shown(path)} is no readable Parquet: delete it, run again") from None
    tables["responses"] = tables.pop("candidates")
    names = ("instructions", "criteria", "responses", "verdicts", "pairs")
    return {name: tables[name] for name in names}


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
