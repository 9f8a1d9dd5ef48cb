"""The exported folder as a stranger reads it: ``load_dataset``, the card, what may not leave."""

import re

import datasets
import pandas as pd
import pyarrow.parquet as parquet
import pytest
import yaml
from helpers import benches

from promedical_utils.core import profiles, records
from promedical_utils.core.records import Verdict
from promedical_utils.core.run_data import RunData
from promedical_utils.core.workspace import KitError
from promedical_utils.pipeline import export
from promedical_utils.rubric.preferences import criterion_pairs, groups

BAD_LICENCE = "the licence of mediqa does not let its texts be passed on .stated: none stated"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with a bench of 24 instructions and six to train on."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    made, truth = benches.make()
    instructions, splits, rubrics, candidates, _ = benches.world()
    held = set(made.samples.instruction_id)
    splits = [
        s if s.instruction_id in held else s.model_copy(update={"split": "train"}) for s in splits
    ]
    verdicts = [
        Verdict(candidate_id=a, criterion_id=c, judge=judge, verdict=v)
        for judge in ("truth", "judge")
        for (a, c), v in truth.items()
    ]
    train = [s.instruction_id for s in splits if s.split == "train"]
    pairs = [
        pair
        for group in groups(RunData(instructions, rubrics, splits, candidates, verdicts), ids=train)
        for pair in criterion_pairs(group)
    ]
    made_of = {
        "instructions": instructions,
        "splits": splits,
        "rubrics": rubrics,
        "candidates": candidates,
        "verdicts": verdicts,
        "pairs": pairs,
    }
    for name, rows in made_of.items():
        records.save(rows, folder / f"data/{name}.parquet")
    made.save(folder / "bench")
    return folder


@pytest.fixture
def clinic():
    return profiles.load("cpu")


@pytest.fixture
def real():
    return profiles.load("real")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    """No network, and a cache that goes with the test."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def read(run, name):
    return parquet.read_table(run / f"data/{name}.parquet").to_pandas()


def test_load_dataset_gives_back_every_row(run, clinic, tmp_path):
    folder = tmp_path / "set"
    counts = export.export(run, folder, clinic)
    assert set(counts) == {"instructions", "criteria", "responses", "verdicts", "pairs"}
    for name, splits in counts.items():
        loaded = datasets.load_dataset(str(folder), name)
        assert {s: len(loaded[s]) for s in loaded} == splits
    pairs = datasets.load_dataset(str(folder), "pairs", split="train").to_pandas()
    pd.testing.assert_frame_equal(pairs, read(run, "pairs"), check_dtype=False)
    assert datasets.load_dataset(str(folder))["train"].num_rows == len(pairs)  # the default config
    asked = datasets.load_dataset(str(folder), "instructions")
    assert asked["train"][0]["messages"] == [{"role": "user", "content": "?"}]
    assert (asked["train"].num_rows, asked["bench"].num_rows) == (6, 24)
    sizes = {"criteria": 4, "responses": 3, "verdicts": 3 * 4 * 2}
    for name, each in sizes.items():
        assert counts[name] == {"train": 6 * each, "bench": 24 * each}


def test_the_card_joins_pairs_to_rows_that_can_be_trained_on(run, clinic, tmp_path):
    export.export(run, tmp_path / "set", clinic)
    card = (tmp_path / "set/README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    assert 'folder = "."' in code
    place = {}
    exec(code.replace('folder = "."', f"folder = {str(tmp_path / 'set')!r}"), place)
    rows = place["rows"]
    pairs, text = read(run, "pairs"), read(run, "candidates").set_index("id").text
    criteria = {c["id"]: c for r in read(run, "rubrics").criteria for c in r}
    assert len(rows) == len(pairs)
    for row in rows.itertuples():
        assert (row.chosen, row.rejected) == (text[row.chosen_id], text[row.rejected_id])
        criterion = criteria[row.criterion_id]
        assert (row.criterion, row.dimension) == (criterion["text"], criterion["dimension"])
        assert row.messages[0]["role"] == "user" and row.chosen_id != row.rejected_id


def test_the_card_says_what_it_is(run, clinic, tmp_path):
    export.export(run, tmp_path / "set", clinic)
    card = (tmp_path / "set/README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "mit" and "synthetic" in header["tags"]
    assert [c["config_name"] for c in header["configs"] if c.get("default")] == ["pairs"]
    for words in (
        "Not for clinical use",
        "invented",
        "no medical knowledge",
        "Intended use",
        "Known limits",
        "How the labels came about",
        "`judge`",
        "93.2%",
    ):
        assert words in card
    row = next(line for line in card.splitlines() if line.startswith("| pairs "))
    assert re.findall(r"\d+", row) == [str(len(read(run, "pairs")))]
    assert "/tmp" not in card and str(tmp_path) not in card


def test_no_text_is_stored_twice(run, clinic, tmp_path):
    export.export(run, tmp_path / "set", clinic)
    for name in ("pairs", "verdicts"):
        table = parquet.read_table(tmp_path / f"set/data/{name}/train.parquet")
        assert not {"text", "messages", "chosen", "rejected"} & set(table.column_names)
    texts = [
        text
        for path in (tmp_path / "set/data/responses").glob("*.parquet")
        for text in parquet.read_table(path)["id"].to_pylist()
    ]
    assert len(texts) == len(set(texts)) == 90


def with_sources(run, folder, names):
    """A copy of ``run`` whose instructions are of the sources ``names``, in turn."""
    rows = read(run, "instructions").to_dict("records")
    for n, row in enumerate(rows):
        row |= {"source": names[n % len(names)], "messages": list(row["messages"])}
    for path in run.glob("*/*"):
        target = folder / path.relative_to(run)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    records.save(
        records.validated(rows, records.Instruction, "test"), folder / "data/instructions.parquet"
    )
    return folder


def test_texts_that_may_not_be_passed_on_stay(run, real, clinic, tmp_path):
    mixed = with_sources(run, tmp_path / "mixed", ["kqa", "mediqa", "healthbench", "web"])
    refused = {
        "healthbench": "healthbench is for evaluation only",
        "mediqa": BAD_LICENCE,
        "web": "stated: none known, since it has no card",
        "rar_medicine": "no instruction of source 'rar_medicine'",
    }
    for name, message in refused.items():
        for sources in ([name], ["kqa", name]):
            with pytest.raises(KitError, match=message):
                export.export(mixed, tmp_path / "out", real, sources)
    with pytest.raises(KitError, match="healthbench is for evaluation only"):
        export.export(mixed, tmp_path / "out", real)
    with pytest.raises(KitError, match="healthbench is for evaluation only"):
        export.export(mixed, tmp_path / "out", clinic)  # whatever the profile says
    with pytest.raises(KitError, match=BAD_LICENCE):
        export.export(mixed, tmp_path / "out", clinic, ["kqa", "mediqa"])
    assert not (tmp_path / "out").exists()
    counts = export.export(mixed, tmp_path / "out", real, ["kqa"])
    own = {i for i, s in read(mixed, "instructions")[["id", "source"]].to_numpy() if s == "kqa"}
    assert sum(counts["instructions"].values()) == len(own) == 8
    for path in (tmp_path / "out").glob("*/**/*.parquet"):
        frame = parquet.read_table(path).to_pandas()
        if "instruction_id" in frame:
            assert set(frame.instruction_id) <= own
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "- kqa: MIT" in card and "mediqa" not in card and "invented: drugs" not in card


def test_what_an_earlier_export_left_is_removed_and_missing_files_are_named(run, clinic, tmp_path):
    folder = tmp_path / "set"
    stale = folder / "data/pairs/external.parquet"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"old")
    export.export(run, folder, clinic)
    assert not stale.exists()
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    export.export(run, folder, clinic)
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(KitError, match="missing .*instructions.parquet: run notebook 01_rubrics"):
        export.export(tmp_path / "nothing", folder, clinic)
