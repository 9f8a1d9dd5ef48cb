"""Open sets: invented rows in the sets' fields and layout, through the code that reads the hub."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from promedical_utils.core import records
from promedical_utils.core.records import RawInstruction
from promedical_utils.core.workspace import KitError, short_hash
from promedical_utils.data.sources import open_sets, schemas

# As at the top of the set's own README: its features, its splits and their files
README = """---
dataset_info:
  features:
    - name: question
      dtype: string
    - name: reference_answer
      dtype: string
    - name: question_source
      dtype: string
    - name: rubric
      list:
        - name: description
          dtype: string
        - name: title
          dtype: string
        - name: weight
          dtype: int64
    - name: rubric_list
      sequence: string
    - name: rubric_count
      dtype: int64
configs:
  - config_name: default
    data_files:
      - split: train
        path: data/train-*
      - split: test
        path: data/test-*
---
"""
ASKED = "Which drug helps against Norvex fever, and how much of it may I take in a day?"
ROWS = [
    (5, "Essential Criteria: Names Morlodor as the drug against Norvex fever."),
    (3, "Important Criteria: States that 45 units a day are the limit."),
    (4, "Important Criteria: Says after how many days a physician should look again."),
    (1, "Optional Criteria: Explains the words that a layperson may not know."),
    (-2, "Pitfall Criteria: Recommends Glumifen to a patient whose leaflet rules it out."),
    (-1, "Pitfall Criteria: Avoids suggesting a second dose on the same day."),
]


def rar(question, rows=ROWS, answer="Morlodor."):
    rubric = [{"title": "t", "description": text, "weight": weight} for weight, text in rows]
    return {
        "question": question,
        "reference_answer": answer,
        "question_source": "invented",
        "rubric": rubric,
        "rubric_list": [text for _, text in rows],
        "rubric_count": len(rows),
    }


def talk(name, *turns):
    said = [{"from": who, "value": text} for who, text in turns]
    return {"id": name, "type": "Exam", "conversations": said, "answer": "A", "score": "a 7"}


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv(schemas.VARIABLE, str(tmp_path))
    return tmp_path


def put(data: Path, key: str, rows: list[dict], part: str = "train-00000-of-00001") -> Path:
    path = data / open_sets.CARDS[key].folder / "data" / f"{part}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_questions_of_the_train_split_are_read_and_rubrics_are_left_there(data):
    put(data, "rar_medicine", [rar(ASKED)])
    put(data, "rar_medicine", [rar("What is in the test split?")], "test-00000-of-00001")
    (data / "rar_medicine" / "README.md").write_text(README)
    reading = open_sets.read("rar_medicine")
    name = f"rar_medicine-{short_hash(ASKED)}"
    assert reading.instructions == [
        RawInstruction(id=name, text=ASKED, source="rar_medicine", licence="none stated")
    ]
    assert not reading.skipped


def test_every_row_is_an_instruction_or_counted(data):
    put(data, "rar_medicine", [rar(ASKED), rar(" "), rar(f"{ASKED} "), rar(None), rar("Why?")])
    reading = open_sets.read("rar_medicine")
    assert [row.text for row in reading.instructions] == [ASKED, "Why?"]
    assert reading.skipped == {"no question": 2, "repeated id": 1}


def test_ultramedical(data):
    asked = ("human", "Is Norvex fever catching?")
    put(
        data,
        "ultramedical",
        [
            talk("MedQA,1", asked, ("gpt", "No.")),
            talk("MedQA,2", ("gpt", "No question here.")),
            talk("WikiInstruct,3", asked, ("gpt", "No."), ("human", "And now?"), ("gpt", "No.")),
            talk("MedQA,1", asked, ("gpt", "No.")),
            talk(None, asked, ("gpt", "No.")),
        ],
    )
    reading = open_sets.read("ultramedical")
    assert reading.instructions == [
        RawInstruction(
            id="ultramedical-MedQA,1", text=asked[1], source="ultramedical", licence="MIT"
        )
    ]
    assert reading.skipped == {"no question": 2, "repeated id": 1, "no id": 1}


def test_what_lies_behind_the_limit_is_not_read(data):
    put(data, "rar_medicine", [rar(f"question {n}?") for n in range(5)], "train-00000-of-00002")
    put(data, "rar_medicine", [rar("last?")], "train-00001-of-00002").write_bytes(b"no Parquet")
    assert len(open_sets.read("rar_medicine", limit=3).instructions) == 3
    with pytest.raises(
        KitError, match="cannot read .* copy is broken: fetch it again with `hf download"
    ):
        open_sets.read("rar_medicine")


@pytest.mark.parametrize("key", open_sets.CARDS)
def test_a_source_out_of_reach_says_what_to_download(key, monkeypatch, tmp_path):
    card = open_sets.CARDS[key]
    monkeypatch.delenv(
        schemas.VARIABLE, raising=False
    )  # tests are offline: this asks the hub's own client
    with pytest.raises(KitError) as raised:
        open_sets.read(key, limit=1)
    message = str(raised.value)
    for part in (card.name, card.hub, card.command, schemas.VARIABLE, "mend the network"):
        assert part in message
    assert "\n" not in message
    monkeypatch.setenv(schemas.VARIABLE, str(tmp_path))
    with pytest.raises(
        KitError,
        match=f"missing folder {card.folder} in {schemas.VARIABLE}: run there `hf download",
    ):
        open_sets.read(key)


def test_the_hub_is_asked_for_the_card_s_revision_as_a_stream(monkeypatch):
    import datasets

    asked = []
    card = open_sets.CARDS["ultramedical"]
    monkeypatch.delenv(schemas.VARIABLE, raising=False)

    def load_dataset(hub, **options):
        asked.append((hub, options))
        return iter([talk("MedQA,1", ("human", "Why?"))])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(open_sets.read("ultramedical").instructions) == 1
    assert asked == [
        (card.hub, {"revision": card.revision, "split": "train", "streaming": True}),
    ]


def test_a_set_that_lost_a_field_is_no_empty_set(data):
    put(data, "rar_medicine", [{"prompt": ASKED, "rubric": []}])
    with pytest.raises(KitError, match="RaR-Medicine .* has no field question at revision"):
        open_sets.read("rar_medicine")


def raw(name, **changes):
    return {
        "id": name,
        "text": f"question {name}?",
        "source": "mine",
        "licence": "CC0-1.0",
    } | changes


def test_a_local_pool(tmp_path):
    good, broken = raw("a"), raw("b", licence=None)
    lines = [good, broken, raw("c", text=" "), raw("d", colour="red"), good, ["no", "row"]]
    text = "\n".join([*map(json.dumps, lines), "", '{"id": "e", "te'])
    (tmp_path / "first.jsonl").write_text(text)
    (tmp_path / "second.jsonl.gz").write_bytes(gzip.compress(json.dumps(raw("f")).encode()))
    records.save([RawInstruction(**raw("g"))], tmp_path / "sub" / "third.parquet")
    (tmp_path / "README.md").write_text("not a row")
    reading = open_sets.read(tmp_path)
    assert [row.id for row in reading.instructions] == ["a", "f", "g"]
    assert reading.instructions[0] == RawInstruction(**good)
    assert reading.skipped == Counter(
        {
            "field licence: Input should be a valid string": 1,
            "no question": 1,
            "repeated id": 1,
            "not JSON": 1,
            "field colour: Extra inputs are not permitted": 1,
            "field record: Input should be an object": 1,
        }
    )
    assert [row.id for row in open_sets.read(tmp_path, limit=2).instructions] == ["a", "f"]


def test_a_pool_saved_on_windows(tmp_path):
    text = "\r\n".join(json.dumps(raw(name)) for name in "ab")
    (tmp_path / "pool.jsonl").write_bytes(f"\ufeff{text}\r\n".encode())
    reading = open_sets.read(tmp_path / "pool.jsonl")
    assert [row.id for row in reading.instructions] == ["a", "b"] and not reading.skipped
    (tmp_path / "pool.jsonl").write_text(text, encoding="utf-16")
    with pytest.raises(KitError, match="pool.jsonl .UnicodeDecodeError.: save it as UTF-8"):
        open_sets.read(tmp_path / "pool.jsonl")


def test_a_local_pool_that_cannot_be_used(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(raw("a", licence="")))
    with pytest.raises(KitError, match=r"a.jsonl: no row can be used: field licence: .*\(1\)"):
        open_sets.read(tmp_path / "a.jsonl")
    (tmp_path / "b.parquet").write_bytes(b"no Parquet")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(b"{}\n" * 999)[:-9])
    (tmp_path / "d.csv").write_text("id,text\n")
    for name in ("b.parquet", "c.jsonl.gz"):
        with pytest.raises(KitError, match=f"cannot read {name} "):
            open_sets.read(tmp_path / name)
    with pytest.raises(KitError, match="d.csv: no file of .jsonl"):
        open_sets.read(tmp_path / "d.csv")
    with pytest.raises(
        KitError, match="no source nowhere: give a file, a folder, or one of rar_medicine"
    ):
        open_sets.read("nowhere")
