"""Real-data sources: adapters by hand on invented rows, and the figures that must come out."""

import gzip
import json
import os
import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from promedical_utils.core import profiles
from promedical_utils.core.records import Message, SplitRow
from promedical_utils.core.workspace import KitError, short_hash
from promedical_utils.data.sources import real_sets, schemas
from promedical_utils.pipeline import real_text
from promedical_utils.rubric.preferences import criterion_pairs, groups

DATA = os.environ.get(schemas.VARIABLE)
real_data = pytest.mark.skipif(
    not DATA, reason=f"{schemas.VARIABLE} is not set: the figures of the real files are NOT checked"
)
E, N, C = "Entailment", "Neutral", "Contradiction"


def label(criterion, labels, category="Must_have", question="why, Grandma?"):
    return {
        "question": question,
        "model": "bot",
        "answer": "because.",
        "criterion": criterion,
        "category": category,
        "labels": labels,
        "majority": "unused",
    }


def graded(source, met, response, prompt="p1"):
    points = [("says a", 5.0), ("invents a dose", -8.0), ("is wordy", -8.0), ("odd", -6.0)]
    return {
        "source": source,
        "prompt_id": prompt,
        "prompt": [{"role": "user", "content": "zebra?"}],
        "response": response,
        "criteria": [
            {"criterion": text, "points": p, "tags": [], "met": m, "explanation": ""}
            for (text, p), m in zip(points, met, strict=True)
        ],
    }


def rows():
    def answer(aid, score):
        return {"aid": aid, "score": score, "text": f"passage {aid}", "url": "x"}

    return {
        "kqa_questions": [
            {
                "Question": "Why, grandma?",
                "Free_form_answer": "An owl's answer.",
                "Must_have": ["A.", " B"],
                "Nice_to_have": ["C", ""],
                "ICD_10_diag": None,
            },
            {
                "Question": "And what else?",
                "Free_form_answer": "Nothing.",
                "Must_have": ["D"],
                "Nice_to_have": [],
                "ICD_10_diag": "tinea",
            },
        ],
        "kqa_labels": [
            label("A.", [E, C, E]),
            label("B", [C, N, E]),
            label("A.B", [E, E, E]),
            label("C", [N, N, N], "Nice_to_have"),
        ],
        "mediqa": [
            {
                "split": "test",
                "qid": "1",
                "question": "What is it?",
                "answers": [answer("a", 4), answer("b", 3), answer("c", 1), answer("d", 1)],
            },
            {
                "split": "train_alexa",
                "qid": "1",
                "question": "what is IT",
                "answers": [answer("a", 2)],
            },
            {"split": "val", "qid": "7", "question": "and why", "answers": [answer("a", 2)]},
        ],
        "healthbench_rubrics": [{"prompt_id": "p1", "rubrics": [{"criterion": "x", "points": 3}]}],
        "healthbench_graded": [
            graded("m1", [True, True, False, False], "short"),
            graded("m2", [True, False, True, True], "much longer"),
        ],
    }


def write(folder: Path, key: str, lines) -> None:
    path = folder / schemas.CARDS[key].file
    path.parent.mkdir(parents=True, exist_ok=True)
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_bytes(gzip.compress("\n".join(text).encode()))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for key, lines in rows().items():
        write(tmp_path, key, lines)
    monkeypatch.setenv(schemas.VARIABLE, str(tmp_path))
    listed = {
        short_hash("p1", "invents a dose"): True,
        short_hash("p1", "is wordy"): False,
        short_hash("p1", "odd"): True,
    }
    monkeypatch.setattr(real_sets, "harm", lambda: listed)
    return tmp_path


def by_text(study, instruction):
    rubric = next(r for r in study.rubrics if r.instruction_id == instruction)
    return {c.text: c for c in rubric.criteria}


def said(study, candidate, judge):
    found = [v for v in study.verdicts if (v.candidate_id, v.judge) == (candidate, judge)]
    assert len({v.criterion_id for v in found}) == len(found)
    return {v.criterion_id: v.verdict for v in found}


def test_kqa_by_hand(folder):
    study = real_sets.load_real(1)
    asked = next(i for i in study.instructions if i.messages[0].content == "Why, grandma?")
    of = by_text(study, asked.id)
    assert {t: (c.dimension, c.weight, c.kind) for t, c in of.items()} == {
        "A.": ("proficiency", 0.5, "must_have"),
        "B": ("proficiency", 0.5, "must_have"),
        "C": ("excellence", 0, "nice_to_have"),
    }
    a, b, c = of["A."].id, of["B"].id, of["C"].id
    bot, physician = f"{asked.id}-bot", f"{asked.id}-physician"
    assert said(study, bot, "physicians") == {a: "met", b: "not_met", c: "not_met"}
    assert said(study, bot, "judge") == said(study, bot, "physicians")
    assert said(study, bot, "physician_3") == {a: "met", b: "met", c: "not_met"}
    assert set(said(study, physician, "judge").values()) == {"met"}
    pairs = [p for p in study.pairs if p.instruction_id == asked.id]
    assert {(p.criterion_id, p.chosen_id, p.rejected_id) for p in pairs} == {
        (b, physician, bot),
        (c, physician, bot),
    }
    other = next(i for i in study.instructions if i.messages[0].content == "And what else?")
    assert other.specialty == "tinea" and not said(study, f"{other.id}-physician", "judge")
    assert any("1 labelled rows" in note and "1 blank" in note for note in study.notes)


def test_mediqa_pairs_by_hand_and_one_split_per_question(folder):
    study = real_sets.load_real(1)
    pairs = {(p.chosen_id[-1], p.rejected_id[-1]) for p in study.pairs if "mediqa" in p.chosen_id}
    assert pairs == {("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d")}
    verdict = {k: list(said(study, f"mediqa-test-1-{k}", "reference").values()) for k in "abcd"}
    assert verdict == {"a": ["met"], "b": ["met"], "c": ["not_met"], "d": ["not_met"]}
    split = {row.instruction_id: row.split for row in study.splits}
    assert split["mediqa-test-1"] == split["mediqa-train_alexa-1"] == "bench"
    assert split["mediqa-val-7"] == "calibration"
    assert any("1 questions moved" in note for note in study.notes)


def test_healthbench_penalties_are_turned_so_that_met_is_good(folder):
    study = real_sets.load_real(1)
    of = by_text(study, "healthbench-p1")
    dose, wordy, odd = (of[schemas.NEGATION + t] for t in ("invents a dose", "is wordy", "odd"))
    assert (dose.dimension, dose.weight, dose.kind) == ("safety", 0, "penalty_harm")
    assert (wordy.dimension, wordy.weight) == ("proficiency", 8 / 19)  # -8, not marked as harm
    assert (odd.dimension, odd.weight) == ("proficiency", 6 / 19)  # marked, but only -6
    assert (of["says a"].dimension, of["says a"].weight) == ("proficiency", 5 / 19)
    assert said(study, "healthbench-p1-m1", "llm_judge") == {
        of["says a"].id: "met",
        dose.id: "not_met",
        wordy.id: "met",
        odd.id: "met",
    }
    pairs = {(p.criterion_id, p.chosen_id[-2:]) for p in study.pairs if "health" in p.chosen_id}
    assert pairs == {(dose.id, "m2"), (wordy.id, "m1"), (odd.id, "m1")}


def test_healthbench_figures_by_hand(folder):
    found = real_sets.healthbench_figures(real_sets.load_real(1))
    assert found == {
        "pairs": 3,
        "prompts": 1,
        "on_penalties": 3,
        "longer_is_met": 2 / 3,
        "longer_is_preferred": 1 / 3,
    }


def test_healthbench_cannot_be_trained_on(folder):
    study = real_sets.load_real(1)
    split = {row.instruction_id: row.split for row in study.splits}
    for asked in study.instructions:
        assert (asked.source == "healthbench") == (split[asked.id] == "external")
    trainable = [i for i in study.instructions if split[i.id] != "external"]
    real_sets.refuse_external(trainable)
    with pytest.raises(KitError, match="canary"):
        real_sets.refuse_external(study.instructions)
    asked = next(i for i in study.instructions if i.source == "healthbench")
    row = SplitRow(
        instruction_id=asked.id, split="train", condition="c", patient="c", wording_seed=0
    )
    with pytest.raises(KitError, match="external"):
        real_sets.RealStudy(instructions=[asked], splits=[row])
    texts = real_sets.corpus(study)
    assert texts and not any("zebra" in t or "longer" in t or "dose" in t for t in texts)
    assert not any("passage c" in t for t in texts)  # a bench answer


@pytest.mark.parametrize(
    ("key", "broken", "field"),
    [
        ("kqa_questions", {"Question": "secret", "Must_have": ["x"], "Nice_to_have": []}, "Free_"),
        ("kqa_labels", label("A.", [E, E, "secret"]), "labels.2"),
        (
            "mediqa",
            {**rows()["mediqa"][2], "answers": [{"aid": "a", "score": 9, "text": "t"}]},
            "answers.0.score",
        ),
        ("healthbench_graded", {**graded("m", [True] * 4, "secret"), "prompt": []}, "prompt"),
        ("mediqa", "{secret", "record"),
    ],
)
def test_one_broken_row_is_one_line(folder, key, broken, field):
    write(folder, key, [rows()[key][0], broken])
    with pytest.raises(KitError) as raised:
        real_sets.read(key)
    message = str(raised.value)
    assert schemas.CARDS[key].file in message and "row 2" in message and field in message
    assert "\n" not in message and "secret" not in message


def test_missing_and_unreadable_files_are_named(folder):
    path = folder / schemas.CARDS["mediqa"].file
    path.write_bytes(b"not gzip")
    with pytest.raises(
        KitError, match="cannot read .*ranked_answers.jsonl.gz .BadGzipFile.: fetch it again"
    ):
        real_sets.read("mediqa")
    path.unlink()
    with pytest.raises(KitError, match="missing mediqa2019_qa/ranked_answers.jsonl.gz"):
        real_sets.load_real(1)


def test_without_folder_and_network(monkeypatch):
    import datasets

    def refuse(*args, **kwargs):
        raise ConnectionError("secret address")

    monkeypatch.delenv(schemas.VARIABLE, raising=False)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(KitError, match="bigbio/mediqa_qa.*download it and set PROMEDICAL_DATA_DIR"):
        real_sets.read("mediqa")
    with pytest.raises(KitError, match="kqa/questions_w_answers.jsonl.gz"):
        real_sets.load_real(1)
    with pytest.raises(KitError, match="on no hub; set PROMEDICAL_DATA_DIR"):
        real_sets.read("healthbench_graded")


def test_the_hub_gives_the_same_rows(folder, monkeypatch, tmp_path_factory):
    import datasets
    import huggingface_hub

    want = {key: real_sets.read(key) for key in rows()}
    mine = rows()
    split = {"test": "test", "train_alexa": "train_alexa", "val": "validation"}
    mediqa = {
        split[r["split"]]: [
            {
                "QUESTION": {
                    "QID": r["qid"],
                    "QuestionText": r["question"],
                    "AnswerList": [
                        {
                            "Answer": {
                                "AID": a["aid"],
                                "ReferenceScore": a["score"],
                                "AnswerText": a["text"],
                            }
                        }
                        for a in r["answers"]
                    ],
                }
            }
        ]
        for r in mine["mediqa"]
    }
    sheet = [
        {
            "Question": r["question"],
            "llm_x": r["model"],
            "answer": r["answer"],
            "claim": r["criterion"],
            "category_x": r["category"],
            **{f"label_{n}": r["labels"][n] for n in range(3)},
        }
        for r in mine["kqa_labels"]
    ]

    def load_dataset(name, config=None, **options):
        if name == "bigbio/mediqa_qa":
            return mediqa
        return {"csv": sheet, "json": mine["kqa_questions"]}[name]

    path = tmp_path_factory.mktemp("hub") / "eval.jsonl"
    path.write_text("\n".join(map(json.dumps, mine["healthbench_rubrics"])))
    monkeypatch.delenv(schemas.VARIABLE)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, **k: str(path))
    for key in ("kqa_questions", "kqa_labels", "mediqa", "healthbench_rubrics"):
        assert real_sets.read(key) == want[key]
    study = real_sets.load_real(1)
    assert not any(i.source == "healthbench" for i in study.instructions)
    assert any("HealthBench answers" in note and "not run" in note for note in study.notes)


@pytest.fixture
def tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = "why grandma and what else is it zebra passage a b c d because short".split()
    known = {word: n for n, word in enumerate(["[UNK]", "</s>", *words])}
    core = Tokenizer(models.WordLevel(known, "[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="</s>")
    made.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}</s>"
    return made


def test_shorten_keeps_the_head_and_counts(folder, tokenizer):
    from promedical_utils.reward_model import packing

    study = real_sets.load_real(1)
    long = " ".join(["passage"] * 300)
    target = "mediqa-test-1-a"
    study.candidates[:] = [
        c.model_copy(update={"text": long}) if c.id == target else c for c in study.candidates
    ]
    shorter, report = real_text.shorten(study, tokenizer, 60)
    assert report == {"limit_tokens": 60, "answers_cut": {"mediqa": 1}, "instructions_left_out": {}}
    for group in groups(shorter.instructions, shorter.rubrics, shorter.candidates):
        tails = [packing.criterion_text(c) for c in group.criteria]
        items = [(group.messages, c.text, tails) for c in group.candidates]
        for candidate, (shared, tails) in zip(
            group.candidates, packing.encode(tokenizer, items), strict=True
        ):
            size = packing.longest(shared, tails)
            assert size <= 60 and (candidate.id != target or size == 60)
    assert long.startswith(next(c.text for c in shorter.candidates if c.id == target))
    with pytest.raises(KitError, match="raise rm_max_tokens to"):
        real_text.shorten(study, tokenizer, 30)
    study.instructions[-1] = study.instructions[-1].model_copy(
        update={"messages": [Message(role="user", content="zebra " * 90)]}
    )
    shorter, report = real_text.shorten(study, tokenizer, 60)
    assert report["instructions_left_out"] == {"healthbench": 1}
    assert not any("healthbench" in v.candidate_id for v in shorter.verdicts)


def test_committed_harm_list_holds_ids_and_says_how_it_was_made():
    path = Path(real_sets.__file__).parent / "healthbench_harm.csv"
    lines = path.read_text(encoding="utf-8").splitlines()
    head = " ".join(line for line in lines if line.startswith("#"))
    assert "without clinical qualification" in head and "physician should review" in head
    body = [line for line in lines if not line.startswith("#")]
    assert body[0] == "id,harm" and all(re.fullmatch("[0-9a-f]{12},[01]", x) for x in body[1:])
    assert real_sets.harm() == {x[:12]: x[-1] == "1" for x in body[1:]}


def test_real_profile_is_whole():
    profile = profiles.load("real")
    assert profile.data == "real" and not profile.rm_twin
    assert profile.notebooks == [
        "00_start_here",
        "01_rubrics",
        "02_preference_pairs",
        "03_reward_model",
        "04_promedical_bench",
        "06_external_generalization",
        "07_paper_tables",
        "08_paper_audit",
    ]


# --- on the real files


@pytest.fixture(scope="module")
def real():
    return real_sets.load_real(2026)


@pytest.fixture(scope="module")
def report(real):
    return real_sets.aggregate_report(real)


@real_data
def test_kqa_agreement_comes_out(report):
    found = report["kqa_agreement"]
    assert found["rows"] == 399
    assert round(found["fleiss_kappa"], 3) == 0.719
    assert [round(x, 3) for x in found["cohen_kappa"]] == [0.670, 0.761, 0.732]
    assert round(found["observed"], 3) == 0.855


@real_data
def test_healthbench_figures_come_out(report):
    found = report["healthbench"]
    assert (found["pairs"], found["prompts"], found["on_penalties"]) == (716, 176, 204)
    assert round(found["longer_is_met"], 3) == 0.744
    assert round(found["longer_is_preferred"], 3) == 0.775


@real_data
def test_pairs_and_groups_of_the_real_files(real):
    source = {i.id: i.source for i in real.instructions}
    pairs = Counter(source[p.instruction_id] for p in real.pairs)
    assert pairs["mediqa"] == 6536 and pairs["healthbench"] == 716
    joined = groups(real.instructions, real.rubrics, real.candidates, real.verdicts)
    counted = Counter()
    for group in joined:
        counted[group.instruction.source] += len(criterion_pairs(group))
    assert counted["kqa"] == pairs["kqa"] == 240 and counted["healthbench"] == 716
    for judge in ("physicians", "physician_1", "reference", "llm_judge"):
        groups(real.instructions, real.rubrics, real.candidates, real.verdicts, judge=judge)


@real_data
def test_splits_of_the_real_files_are_disjoint_by_question(real):
    splits = defaultdict(set)
    for row in real.splits:
        splits[row.condition].add(row.split)
    assert all(len(found) == 1 for found in splits.values())
    assert {s for found in splits.values() for s in found} == {
        "train",
        "calibration",
        "checkpoint",
        "bench",
        "external",
    }
    sizes = Counter(row.split for row in real.splits)
    profile = profiles.load("real")
    assert sizes == {
        "train": profile.train_instructions,
        "calibration": profile.calibration_instructions,
        "checkpoint": profile.checkpoint_instructions,
        "bench": profile.bench_samples,
        "external": profile.external_instructions,
    }


@real_data
def test_every_hard_penalty_was_read_and_the_files_are_those(report):
    points = [
        (row.prompt_id, p)
        for key in ("healthbench_rubrics", "healthbench_graded")
        for row in real_sets.read(key)
        for p in (row.rubrics if key == "healthbench_rubrics" else row.criteria)
    ]
    hard = {short_hash(i, p.criterion) for i, p in points if p.points <= real_sets.HARMFUL_FROM}
    assert hard == set(real_sets.harm()) and 0 < sum(real_sets.harm().values()) < len(hard)
    assert all(report["files_as_first_read"].values())


@real_data
def test_nothing_of_the_texts_leaves_with_the_aggregates(real, report):
    shown = json.dumps(report)
    texts = {m.content for i in real.instructions for m in i.messages}
    texts |= {c.text for c in real.candidates}
    texts |= {c.text for r in real.rubrics for c in r.criteria}
    assert not [t for t in texts if len(t) > 12 and t in shown]
    assert not re.search("healthbench:[0-9a-f]{8}", shown)
    ours = [p for p in Path(real_sets.__file__).parent.iterdir() if p.is_file()]
    committed = "\n".join(p.read_text(encoding="utf-8") for p in ours)
    hard = [p.criterion for row in real_sets.read("healthbench_rubrics") for p in row.rubrics]
    assert not [text for text in hard if len(text) > 30 and text in committed]
