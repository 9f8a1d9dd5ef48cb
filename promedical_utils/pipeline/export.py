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
from promedical_utils.core.records import DIMENSIONS, SPLITS
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
    split_of = {row.instruction_id: row.split for row in data.splits if row.instruction_id in kept}
    labels = _labels(tables, split_of)
    write_text(folder / CARD, _card(profile, licences, counts, labels, tables))
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


def _labels(tables: Mapping[str, pa.Table], split_of: Mapping[str, str]) -> pd.DataFrame:
    """Criteria, verdicts by judge, and pairs: a row each, with what, dimension and split."""
    keys = ["instruction_id", "criterion_id"]
    criteria = tables["criteria"].to_pandas().rename(columns={"id": "criterion_id"})
    criteria = criteria[[*keys, "dimension"]]
    owner = tables["responses"].select(["id", "instruction_id"]).to_pandas()
    verdicts = tables["verdicts"].to_pandas().assign(what=lambda f: "verdicts of " + f.judge)
    verdicts = verdicts.merge(owner, left_on="candidate_id", right_on="id")
    pairs = tables["pairs"].to_pandas().assign(what="pairs")
    labels = [rows.merge(criteria, on=keys) for rows in (verdicts, pairs)]
    rows = pd.concat([criteria.assign(what="criteria"), *labels])
    return rows.assign(split=rows.instruction_id.map(split_of)).dropna(subset="split")


def _card(profile: Profile, licences: Mapping, files: Mapping, labels, tables: Mapping) -> str:
    """The card's text; ``files``: config -> split -> rows, ``tables``: for the columns' types."""
    clinic = profile.data == "clinic"
    splits = [s for s in SPLITS if any(s in of_split for of_split in files.values())]
    rows = [[name, *(of_split.get(s, "") for s in splits)] for name, of_split in files.items()]
    counts = pd.crosstab([labels.split, labels.what], labels.dimension)
    counts = counts.reindex(columns=DIMENSIONS, fill_value=0).reindex(splits, level=0)
    features = [
        [config, field.name, _type(field.type), COLUMNS[config][field.name]]
        for config, table in tables.items()
        for field in (table.schema if config in files else ())
    ]
    judges = sorted(set(labels.what.str.extract("^verdicts of (.*)")[0].dropna()))
    header = DatasetCardData(
        license="mit" if set(licences.values()) == {"MIT"} else "other",
        language="en",
        pretty_name=f"ProMedical reproducibility kit, profile {profile.name}",
        tags=TAGS + ["synthetic"] * clinic,
        configs=[_config(name, of_split) for name, of_split in files.items()],
    )
    card = DatasetCard.from_template(
        header,
        TEMPLATE,
        profile=profile,
        clinic=clinic,
        rows=pd.DataFrame(rows, columns=["config", *splits]),
        labels=counts.reset_index().astype(object),
        judges={j: WORDS["judges"].get(j, "see the rationale of its verdicts") for j in judges},
        features=pd.DataFrame(features, columns=["config", "column", "type", "meaning"]),
        bench=WORDS["bench"] if "bench_pairs" in files else {},
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


def _type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of ({', '.join(field.name for field in kind.value_type)})"
    return str(kind)
