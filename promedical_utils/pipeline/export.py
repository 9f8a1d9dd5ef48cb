"""A run's preference set and bench as a folder that ``datasets.load_dataset`` reads, with its card.

Every text is stored once: pairs and verdicts carry ids, and the card says in code how to join.
Real sources leave only where their licence lets them be passed on, evaluation-only ones never.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from string import Template

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import parquet

from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import DIMENSIONS, SPLITS
from promedical_utils.core.workspace import KitError, need, replacing, shown, write_text
from promedical_utils.data.sources import open_sets, schemas
from promedical_utils.data.sources.real_sets import EXTERNAL
from promedical_utils.evaluation import bench as benches

CARD = "README.md"
# what may be passed on by its licence; a source that states none, or another one, may not
FREE = {
    "MIT",
    "APACHE-2.0",
    "BSD-3-CLAUSE",
    "CC0-1.0",
    "CC-BY-4.0",
    "CC-BY-SA-4.0",
    "CC-BY-3.0",
    "CC-BY-SA-3.0",
    "ODC-BY",
    "PDDL",
}
COLUMNS = {
    "instructions": {
        "id": "of the instruction",
        "category": "kind of question",
        "specialty": "medical field",
        "messages": "the conversation, role and content; the last turn is the user's",
        "source": "where it comes from",
        "difficulty": "0 to 10",
    },
    "criteria": {
        "instruction_id": "whose rubric it is of",
        "id": "of the criterion, unique within a rubric",
        "dimension": "proficiency, excellence or safety",
        "text": "the criterion; a safety criterion is phrased so that met is safe",
        "weight": "share of the proficiency score; 0 elsewhere",
        "kind": "type of criterion",
        "status": "of the rubric: draft, reviewed or gold",
        "round": "review round of the rubric",
    },
    "responses": {
        "id": "of the response",
        "instruction_id": "what it answers",
        "generator": "who wrote it",
        "text": "the response",
    },
    "verdicts": {
        "candidate_id": "the response judged",
        "criterion_id": "by which criterion",
        "judge": "who says so",
        "verdict": "met, not_met or unknown",
        "rationale": "why, if given",
    },
    "pairs": {
        "instruction_id": "the instruction",
        "criterion_id": "the criterion",
        "chosen_id": "the response that meets it",
        "rejected_id": "the one that does not",
    },
}
BENCH = {
    "samples": "a row an instruction; order_n: the order in which reviewer n saw the answers",
    "criteria": "criteria without their texts; seen: whether training has that kind",
    "verdicts": "per response and criterion: truth if known, two physicians, adjudicated",
    "pairs": "two responses that differ on one criterion by the adjudicated verdict",
    "grades": "two responses compared as a whole, -2 to 2, + where a is better",
}
JUDGES = {
    "truth": "read off the text by the grammar of the invented clinic: gold",
    "judge": "the judge whose verdicts make the training pairs",
    "adjudicated": "two blind reviewers, a third where they differ",
    "physicians": "majority of three physicians (K-QA)",
    "reference": "reference score of the source",
    **{f"physician_{n}": f"physician {n} of three, singly (K-QA)" for n in (1, 2, 3)},
}
TEMPLATE = Template("""\
---
$header
---

# Rubric-conditioned preferences, profile $profile

Made by the ProMedical reproducibility kit (method: arXiv 2604.08326), seed $seed. $origin

**Not for clinical use.** A verdict says whether an answer meets a criterion, by the judge that is
named with it. It is no medical judgement.

## Rows

$rows

## Labels by split and dimension

$labels

## How the labels came about

A response is judged once by each criterion of its instruction's rubric. A pair is two responses to
one instruction and a criterion that the chosen one meets and the rejected one does not, by `judge`.
`unknown` on a safety criterion counts as not met; elsewhere it makes no pair.

$judges

## Join

Every text is stored once; pairs and verdicts carry ids. Rows to train on:

```python
from datasets import load_dataset

folder = "."  # this folder, or its id on a hub


def read(name, split="train"):
    return load_dataset(folder, name, split=split).to_pandas()


text = read("responses").set_index("id").text
criteria = read("criteria").rename(columns={"id": "criterion_id", "text": "criterion"})
asked = read("instructions").rename(columns={"id": "instruction_id"})
rows = (
    read("pairs")
    .merge(asked[["instruction_id", "messages"]], on="instruction_id")
    .merge(
        criteria[["instruction_id", "criterion_id", "dimension", "criterion"]],
        on=["instruction_id", "criterion_id"],  # a criterion id is unique within its rubric
    )
)
rows["chosen"], rows["rejected"] = rows.chosen_id.map(text), rows.rejected_id.map(text)
```

## Features

$features

## Bench

$bench

## Licence

$licences

## Intended use

To study criterion-conditioned reward models and a safety veto. Out of scope: advice to patients,
triage, any decision about care.

## Known limits

$limits
""")
WITH_BENCH = """\
Its instructions are those of `bench_samples`; split `bench` holds a reserve as well. Texts are in
that split of `instructions`, `criteria` and `responses`; these carry ids:

$frames

Never train on split `bench` or `external`."""


def export(run: Path, folder: Path, profile: Profile, sources: Iterable[str] | None = None) -> dict:
    """Write the data of ``run`` to ``folder``; returns rows by config and split.

    ``real_sets``: export these only (default: all). Configs: instructions, criteria, responses,
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
    if set(wanted) - set(source):
        unknown = sorted(set(wanted) - set(source))[0]
        raise KitError(
            f"export: no instruction of source {unknown!r}; the run has "
            f"{', '.join(sorted(set(source)))}"
        )
    licences = {name: licence(name, profile) for name in wanted}
    splits = splits[splits.instruction_id.map(source).isin(wanted)]
    counts: dict[str, dict[str, int]] = {}
    written, shares = [], []
    for split in (s for s in SPLITS if (splits.split == s).any()):
        part = _of(tables, pa.array(splits.instruction_id[splits.split == split], pa.string()))
        for name, table in part.items():
            if len(table):
                path = folder / "data" / name / f"{split}-00000-of-00001.parquet"
                with replacing(path) as temporary:
                    parquet.write_table(table, temporary)
                counts.setdefault(name, {})[split] = len(table)
                written.append(path)
        shares.append(_labels(part).assign(split=split))
    files = {
        name: {split: f"data/{name}/{split}-*.parquet" for split in n} for name, n in counts.items()
    }
    if (run / "bench/report.json").exists():
        made = benches.Bench.load(run / "bench")
        kept = set(source.index[source.isin(wanted)])
        frames = {f: getattr(made, f) for f in benches.FRAMES}
        frames = {f: frame[frame.instruction_id.isin(kept)] for f, frame in frames.items()}
        report = made.report | {"exported_sources": wanted}
        replace(made, **frames, report=report).save(folder / "bench")
        for name, frame in frames.items():
            counts[f"bench_{name}"] = {"bench": len(frame)}
            files[f"bench_{name}"] = {"bench": f"bench/{name}.parquet"}
            written.append(folder / f"bench/{name}.parquet")
    for old in {*folder.glob("data/*/*.parquet"), *folder.glob("bench/*.parquet")} - set(written):
        old.unlink()
    card = _card(profile, licences, counts, files, pd.concat(shares), _types(tables))
    write_text(folder / CARD, card)
    return counts


def licence(source: str, profile: Profile) -> str:
    """Licence under which texts of ``source`` may be passed on; KitError where they may not."""

    of = {**schemas.CARDS, **open_sets.CARDS}
    found = [c.licence for key, c in of.items() if key == source or key.startswith(f"{source}_")]
    if source in EXTERNAL:
        raise KitError(
            f"export: {source} is for evaluation only and carries a canary; its texts "
            "are never exported: name the other sources"
        )
    if profile.data == "clinic" and not found:
        return "MIT"  # invented by the kit, and under its licence
    for stated in found or ["none known, since it has no card"]:
        if re.sub(r"[ _]", "-", stated.split(" (")[0].strip()).upper() not in FREE:
            raise KitError(
                f"export: the licence of {source} does not let its texts be passed on "
                f"(stated: {stated}); name the other sources"
            )
    return " and ".join(dict.fromkeys(found))


# ---------------------------------------------------------------- tables


def _read(run: Path, name: str, notebook: str) -> pa.Table:
    path = need(run / f"data/{name}.parquet", notebook)
    try:
        return parquet.read_table(path)
    except (OSError, ValueError):  # pyarrow's ArrowInvalid is a ValueError, and names the full path
        raise KitError(f"{shown(path)} is not readable Parquet; delete it, run again") from None


def _flat(rubrics: pa.Table) -> pa.Table:
    """Rubrics as a row a criterion."""
    rubrics = rubrics.combine_chunks()
    lists = pa.concat_arrays(rubrics["criteria"].chunks)
    owner = pc.list_parent_indices(lists)
    inside = pa.Table.from_struct_array(pc.list_flatten(lists))
    about = rubrics.select(["instruction_id", "status", "round"]).take(owner)
    columns = {
        **dict(zip(about.column_names, about.columns, strict=True)),
        **dict(zip(inside.column_names, inside.columns, strict=True)),
    }
    return pa.table({name: columns[name] for name in COLUMNS["criteria"]})


def _of(tables: Mapping[str, pa.Table], ids: pa.Array) -> dict[str, pa.Table]:
    """What belongs to the instructions ``ids``, columns as in ``COLUMNS``."""

    def among(name, column, values):
        kept = tables[name].filter(pc.is_in(tables[name][column], values))
        return kept.select(list(COLUMNS[name])).replace_schema_metadata()

    responses = among("responses", "instruction_id", ids)
    return {
        "instructions": among("instructions", "id", ids),
        "criteria": among("criteria", "instruction_id", ids),
        "responses": responses,
        "verdicts": among("verdicts", "candidate_id", responses["id"]),
        "pairs": among("pairs", "instruction_id", ids),
    }


def _labels(part: Mapping[str, pa.Table]) -> pd.DataFrame:
    """Criteria, verdicts by judge, and pairs of a split: what, dimension, n."""
    keys = ["instruction_id", "criterion_id"]
    criteria = part["criteria"].select(["instruction_id", "id", "dimension"]).to_pandas()
    criteria.columns = [*keys, "dimension"]
    owner = part["responses"].select(["id", "instruction_id"]).to_pandas().set_index("id")
    said = part["verdicts"].select(["candidate_id", "criterion_id", "judge"]).to_pandas()
    said["instruction_id"] = said.candidate_id.map(owner.instruction_id)
    frames = [
        criteria.assign(what="criteria"),
        said.merge(criteria, on=keys).assign(what=lambda f: "verdicts of " + f.judge),
        part["pairs"].select(keys).to_pandas().merge(criteria, on=keys).assign(what="pairs"),
    ]
    rows = pd.concat([frame[["what", "dimension"]] for frame in frames])
    return rows.value_counts().rename("n").reset_index()


def _types(tables: Mapping[str, pa.Table]) -> dict[tuple[str, str], str]:
    def said(kind):
        if pa.types.is_list(kind):
            return f"list of ({', '.join(field.name for field in kind.value_type)})"
        return str(kind)

    return {
        (name, c): said(tables[name].schema.field(c).type)
        for name in COLUMNS
        for c in COLUMNS[name]
    }


# ---------------------------------------------------------------- the card


def _card(profile, licences, counts, files, shares, types) -> str:
    clinic, origin = profile.data == "clinic", "The texts are those of public sets, see Licence."
    limits = [
        "labels are as good as their source's; who gave them stands with every verdict",
        "where a source has no safety labels, no veto can be learned or tested on it",
    ]
    if clinic:
        origin = "The clinic is invented: none of its drugs exists. It is no medical knowledge."
        judge, physician = profile.judge_agreement, profile.physician_agreement
        limits = [
            "written by a grammar: wording is narrow, and scores on it say how a method learns, "
            "not what it knows of medicine",
            f"where the clinic plays judge ({judge:.1%} right) and physicians ({physician:.0%}), "
            "these rates are inputs of the configuration, no findings",
        ]
    if profile.name == "smoke":
        limits.append("a smoke run: as small as it can be, only to show that every part runs")
    splits = [s for s in SPLITS if any(s in n for n in counts.values())]
    rows = [[name, *(n.get(s, "") for s in splits)] for name, n in counts.items()]
    labels = shares.pivot_table(
        index=["split", "what"],
        columns="dimension",
        values="n",
        aggfunc="sum",
        fill_value=0,
        observed=True,
    )
    labels = labels.reindex(columns=DIMENSIONS, fill_value=0).reindex(splits, level=0)
    features = [
        [config, column, types[config, column], meaning]
        for config in COLUMNS
        if config in counts
        for column, meaning in COLUMNS[config].items()
    ]
    verdicts = [what for what in sorted(set(shares.what)) if what.startswith("verdicts of ")]
    judges = {
        f"`{judge}`": JUDGES.get(judge, "see the rationale of its verdicts")
        for judge in (what.removeprefix("verdicts of ") for what in verdicts)
    }
    bench = "This export has none."
    if "bench_pairs" in counts:
        frames = _list({f"`bench_{name}`": what for name, what in BENCH.items()})
        bench = Template(WITH_BENCH).substitute(frames=frames)
    return TEMPLATE.substitute(
        header=_header(profile, licences, files),
        profile=profile.name,
        seed=profile.seed,
        origin=origin,
        rows=_markdown(rows, ["config", *splits]),
        labels=_markdown(labels.reset_index().to_numpy().tolist(), ["split", "what", *DIMENSIONS]),
        judges=_list(judges),
        features=_markdown(features, ["config", "column", "type", "meaning"]),
        bench=bench,
        licences=_list(licences),
        limits="\n".join(f"- {limit}" for limit in limits),
    )


def _header(profile: Profile, licences: Mapping[str, str], files: Mapping[str, dict]) -> str:
    from huggingface_hub import DatasetCardData

    tags = ["preference", "reward-model", "rubrics", "medical", "research-only"]
    return DatasetCardData(
        license="mit" if set(licences.values()) == {"MIT"} else "other",
        language="en",
        pretty_name=f"ProMedical reproducibility kit, profile {profile.name}",
        tags=tags + ["synthetic"] * (profile.data == "clinic"),
        configs=[
            {
                "config_name": name,
                **({"default": True} if name == "pairs" else {}),
                "data_files": [{"split": s, "path": path} for s, path in splits.items()],
            }
            for name, splits in files.items()
        ],
    ).to_yaml()


def _markdown(rows: list[list], columns: list[str]) -> str:
    return pd.DataFrame(rows, columns=columns).to_markdown(index=False)


def _list(items: Mapping[str, str]) -> str:
    return "\n".join(f"- {name}: {what}" for name, what in items.items())
