"""A run's preference set and bench as a folder that ``datasets.load_dataset`` reads, with its card.

Every text is stored once: pairs and verdicts carry ids, and the card says in code how to join.
Real sources leave only where their licence lets them be passed on, evaluation-only ones never.
The card's words are in dataset_card.md.jinja and dataset_card.yaml.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from huggingface_hub import DatasetCard, DatasetCardData
from pyarrow import parquet

from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import SPLITS
from promedical_utils.core.run_data import RunData
from promedical_utils.core.workspace import (
    KitError,
    need,
    read_yaml,
    replacing,
    shown,
    write_text,
)
from promedical_utils.data.sources import open_sets, schemas
from promedical_utils.data.sources.real_sets import EXTERNAL
from promedical_utils.evaluation import bench as benches

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("dataset_card.md.jinja")
WORDS = read_yaml(Path(__file__).with_name("dataset_card.yaml"))
COLUMNS = WORDS["columns"]
TAGS = ["preference", "reward-model", "rubrics", "medical", "research-only"]


def export(run: Path, folder: Path, profile: Profile, sources: Iterable[str] | None = None) -> dict:
    """Write the data of ``run`` to ``folder``; returns rows by config and split.

    ``sources``: export these only (default: all). Configs: instructions, criteria, responses,
    verdicts, pairs, and where the run has a bench, bench_samples ... bench_grades. The card is
    written last; Parquet files of an earlier export that are no longer part of it are removed.

    Raises KitError where a source may not be passed on, or a file of the run is missing.
    """
    run, folder = Path(run), Path(folder)
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
    counts: dict[str, dict[str, int]] = {}  # config -> split -> rows
    written = set()
    for split in SPLITS:
        ids = pa.array([i for i in data.ids(split) if i in kept], pa.string())
        for name, table in _of(tables, ids).items():
            if len(table):
                counts.setdefault(name, {})[split] = len(table)
                path = folder / f"data/{name}/{split}-00000-of-00001.parquet"
                written.add(path)
                with replacing(path) as temporary:
                    parquet.write_table(table, temporary)
    if (run / "bench/report.json").exists():
        bench = benches.Bench.load(run / "bench")
        frames = {name: getattr(bench, name) for name in benches.FRAMES}
        frames = {name: rows[rows.instruction_id.isin(kept)] for name, rows in frames.items()}
        report = bench.report | {"exported_sources": wanted}
        replace(bench, **frames, report=report).save(folder / "bench")
        counts |= {f"bench_{name}": {"bench": len(rows)} for name, rows in frames.items()}
        written |= {folder / f"bench/{name}.parquet" for name in frames}
    for old in {*folder.glob("data/*/*.parquet"), *folder.glob("bench/*.parquet")} - written:
        old.unlink()
    judges = sorted(set(tables["verdicts"]["judge"].to_pylist()))
    write_text(folder / CARD, _card(profile, licences, counts, judges))
    return counts


def licence(source: str, profile: Profile) -> str:
    """Licence under which texts of ``source`` may be passed on; KitError where they may not."""
    cards = {**schemas.CARDS, **open_sets.CARDS}
    stated = [c.licence for key, c in cards.items() if f"{key}_".startswith(f"{source}_")]
    if source in EXTERNAL:
        raise KitError(
            f"export: {source} is for evaluation only and carries a canary; its texts "
            "are never exported: name the other sources"
        )
    if profile.data == "clinic" and not stated:
        return "MIT"  # invented by the kit, and under its licence
    for words in stated or ["none known, since it has no card"]:
        name = re.sub(r"[ _]", "-", words.split(" (")[0].strip()).upper()
        if name not in WORDS["free_licences"]:
            raise KitError(
                f"export: the licence of {source} does not let its texts be passed on "
                f"(stated: {words}); name the other sources"
            )
    return " and ".join(dict.fromkeys(stated))


def _tables(run: Path, data: RunData) -> dict[str, pa.Table]:
    """The tables of a run by config, columns as in ``COLUMNS``; of rubrics a row a criterion."""
    files = {"instructions": "instructions", "responses": "candidates"}
    files |= {"verdicts": "verdicts", "pairs": "pairs"}
    tables = {}
    for name, file in files.items():
        path = need(run / f"data/{file}.parquet", "02_preference_pairs")
        try:
            tables[name] = parquet.read_table(path)
        except pa.ArrowInvalid:
            raise KitError(f"{shown(path)} is no readable Parquet: delete it, run again") from None
    criteria = [
        rubric.model_dump(exclude={"criteria"}) | criterion.model_dump()
        for rubric in data.rubrics
        for criterion in rubric.criteria
    ]
    tables["criteria"] = pa.Table.from_pylist(criteria)
    return {name: tables[name].select(list(COLUMNS[name])) for name in COLUMNS}


def _of(tables: Mapping[str, pa.Table], ids: pa.Array) -> dict[str, pa.Table]:
    """What belongs to the instructions ``ids``."""
    part: dict[str, pa.Table] = {}
    for name, table in tables.items():
        key, values = {"instructions": "id"}.get(name, "instruction_id"), ids
        if name == "verdicts":
            key, values = "candidate_id", part["responses"]["id"]
        part[name] = table.filter(pc.is_in(table[key], values)).replace_schema_metadata()
    return part


def _card(profile: Profile, licences: Mapping, counts: Mapping, judges: Iterable[str]) -> str:
    """The card's text; ``counts``: config -> split -> rows."""
    clinic = profile.data == "clinic"
    rows = pd.DataFrame(counts).T.reindex(columns=SPLITS).dropna(axis=1, how="all")
    columns = [
        (config, column, meaning)
        for config in COLUMNS
        for column, meaning in (COLUMNS[config] if config in counts else {}).items()
    ]
    header = DatasetCardData(
        license="mit" if set(licences.values()) == {"MIT"} else "other",
        language="en",
        pretty_name=f"ProMedical reproducibility kit, profile {profile.name}",
        tags=TAGS + ["synthetic"] * clinic,
        configs=[_config(name, of_split) for name, of_split in counts.items()],
    )
    card = DatasetCard.from_template(
        header,
        TEMPLATE,
        profile=profile,
        clinic=clinic,
        rows=rows.astype("Int64"),
        judges={j: WORDS["judges"].get(j, "see the rationale of its verdicts") for j in judges},
        columns=pd.DataFrame(columns, columns=["config", "column", "meaning"]),
        bench=WORDS["bench"] if "bench_pairs" in counts else {},
        licences=licences,
    )
    return f"{card}\n"


def _config(name: str, of_split: Iterable[str]) -> dict:
    """One config of the card's header; ``pairs`` is the default."""
    paths = {split: f"data/{name}/{split}-*.parquet" for split in of_split}
    if name.startswith("bench_"):
        paths = {"bench": f"bench/{name.removeprefix('bench_')}.parquet"}
    return {
        "config_name": name,
        **({"default": True} if name == "pairs" else {}),
        "data_files": [{"split": split, "path": path} for split, path in paths.items()],
    }
