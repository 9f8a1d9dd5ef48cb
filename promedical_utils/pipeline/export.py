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
import yaml
from huggingface_hub import DatasetCard, DatasetCardData
from pyarrow import parquet

from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import DIMENSIONS, SPLITS
from promedical_utils.core.workspace import KitError, need, replacing, shown, write_text
from promedical_utils.data.sources import open_sets, schemas
from promedical_utils.data.sources.real_sets import EXTERNAL
from promedical_utils.evaluation import bench as benches

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("dataset_card.md.jinja")
WORDS = yaml.safe_load(Path(__file__).with_name("dataset_card.yaml").read_text(encoding="utf-8"))
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
    tables = {
        "instructions": _read(run, "instructions", "01_rubrics"),
        "criteria": _flat(_read(run, "rubrics", "01_rubrics")),
        "responses": _read(run, "candidates", "02_preference_pairs"),
        "verdicts": _read(run, "verdicts", "02_preference_pairs"),
        "pairs": _read(run, "pairs", "02_preference_pairs"),
    }
    splits = _read(run, "splits", "01_rubrics").to_pandas()
    source = tables["instructions"].select(["id", "source"]).to_pandas().set_index("id").source
    wanted = sorted(set(source) if sources is None else set(sources))
    unknown = sorted(set(wanted) - set(source))
    if unknown:
        raise KitError(
            f"export: no instruction of source {unknown[0]!r}; the run has "
            f"{', '.join(sorted(set(source)))}"
        )
    licences = {name: licence(name, profile) for name in wanted}
    kept = set(source.index[source.isin(wanted)])
    splits = splits[splits.instruction_id.isin(kept)]
    files: dict[str, dict[str, tuple[str, int]]] = {}  # config -> split -> (file, rows)
    labels = []
    for split in (s for s in SPLITS if (splits.split == s).any()):
        part = _of(tables, pa.array(splits.instruction_id[splits.split == split], pa.string()))
        for name, table in part.items():
            if len(table):
                file = f"data/{name}/{split}-00000-of-00001.parquet"
                with replacing(folder / file) as temporary:
                    parquet.write_table(table, temporary)
                files.setdefault(name, {})[split] = file, len(table)
        labels.append(_labels(part).assign(split=split))
    if (run / "bench/report.json").exists():
        for name, rows in _save_bench(run, folder, kept, wanted).items():
            files[f"bench_{name}"] = {"bench": (f"bench/{name}.parquet", len(rows))}
    written = {folder / file for of_split in files.values() for file, _ in of_split.values()}
    for old in {*folder.glob("data/*/*.parquet"), *folder.glob("bench/*.parquet")} - written:
        old.unlink()
    card = _card(profile, licences, files, pd.concat(labels), tables)
    write_text(folder / CARD, card)
    return {name: {s: n for s, (_, n) in of_split.items()} for name, of_split in files.items()}


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


def _read(run: Path, name: str, notebook: str) -> pa.Table:
    path = need(run / f"data/{name}.parquet", notebook)
    try:
        return parquet.read_table(path)
    except (OSError, ValueError):  # pyarrow's ArrowInvalid is a ValueError, and names the full path
        raise KitError(f"{shown(path)} is not readable Parquet; delete it, run again") from None


def _flat(rubrics: pa.Table) -> pa.Table:
    """Rubrics as a row a criterion."""
    lists = pa.concat_arrays(rubrics["criteria"].chunks)
    table = pa.Table.from_struct_array(pc.list_flatten(lists))
    of_criterion = rubrics.drop_columns("criteria").take(pc.list_parent_indices(lists))
    for name in of_criterion.column_names:
        table = table.append_column(name, of_criterion[name].combine_chunks())
    return table.select(list(COLUMNS["criteria"]))


def _of(tables: Mapping[str, pa.Table], ids: pa.Array) -> dict[str, pa.Table]:
    """What belongs to the instructions ``ids``, columns as in ``COLUMNS``."""

    def among(name, column, values):
        rows = tables[name].filter(pc.is_in(tables[name][column], values))
        return rows.select(list(COLUMNS[name])).replace_schema_metadata()

    responses = among("responses", "instruction_id", ids)
    return {
        "instructions": among("instructions", "id", ids),
        "criteria": among("criteria", "instruction_id", ids),
        "responses": responses,
        "verdicts": among("verdicts", "candidate_id", responses["id"]),
        "pairs": among("pairs", "instruction_id", ids),
    }


def _save_bench(run: Path, folder: Path, kept: set[str], sources: list[str]) -> dict:
    """Write the bench as far as its instructions are ``kept``; its frames by name."""
    bench = benches.Bench.load(run / "bench")
    frames = {name: getattr(bench, name) for name in benches.FRAMES}
    frames = {name: rows[rows.instruction_id.isin(kept)] for name, rows in frames.items()}
    report = bench.report | {"exported_sources": sources}
    replace(bench, **frames, report=report).save(folder / "bench")
    return frames


def _labels(part: Mapping[str, pa.Table]) -> pd.DataFrame:
    """Criteria, verdicts by judge, and pairs of a split: what, dimension, n."""
    keys = ["instruction_id", "criterion_id"]
    frames = {name: table.to_pandas() for name, table in part.items() if name != "instructions"}
    criteria = frames["criteria"].rename(columns={"id": "criterion_id"})[[*keys, "dimension"]]
    owner = frames["responses"].set_index("id").instruction_id
    verdicts = frames["verdicts"].assign(instruction_id=lambda f: f.candidate_id.map(owner))
    rows = pd.concat(
        [
            criteria.assign(what="criteria"),
            verdicts.merge(criteria, on=keys).assign(what=lambda f: "verdicts of " + f.judge),
            frames["pairs"].merge(criteria, on=keys).assign(what="pairs"),
        ]
    )
    return rows[["what", "dimension"]].value_counts().rename("n").reset_index()


def _card(profile: Profile, licences: Mapping, files: Mapping, labels, tables: Mapping) -> str:
    """The card's text; ``labels``: what, dimension, n and split, ``tables``: for their types."""
    clinic = profile.data == "clinic"
    splits = [s for s in SPLITS if any(s in of_split for of_split in files.values())]
    rows = [
        [name, *(of_split[s][1] if s in of_split else "" for s in splits)]
        for name, of_split in files.items()
    ]
    counts = labels.pivot_table("n", ["split", "what"], "dimension", "sum", 0, observed=True)
    counts = counts.reindex(columns=DIMENSIONS, fill_value=0).reindex(splits, level=0)
    features = [
        [config, column, _type(tables[config].schema.field(column).type), meaning]
        for config in COLUMNS
        if config in files
        for column, meaning in COLUMNS[config].items()
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


def _config(name: str, of_split: Mapping[str, tuple[str, int]]) -> dict:
    """One config of the card's header; ``pairs`` is the default."""
    globs = {s: file.replace("-00000-of-00001", "-*") for s, (file, _) in of_split.items()}
    return {
        "config_name": name,
        **({"default": True} if name == "pairs" else {}),
        "data_files": [{"split": split, "path": path} for split, path in globs.items()],
    }


def _type(kind: pa.DataType) -> str:
    if pa.types.is_list(kind):
        return f"list of ({', '.join(field.name for field in kind.value_type)})"
    return str(kind)
