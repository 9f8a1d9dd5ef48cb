"""The studies of real text: their counts by hand, and from end to end on invented rows."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from data import test_real_sets as invented
from pipeline.test_reward_models import real_rows

from promedical_studies import counting, real_policy, real_text, reward_models
from promedical_studies.learning_curve import LearningCurve
from promedical_studies.real_policy import RealPolicy
from promedical_studies.real_text import RealText
from promedical_utils.core import profiles
from promedical_utils.core.estimates import Estimates
from promedical_utils.core.records import Verdict
from promedical_utils.core.run_data import RunData
from promedical_utils.core.workspace import KitError
from promedical_utils.data.sources import real_sets, schemas
from promedical_utils.evaluation import external as outside
from promedical_utils.pipeline import base, preference_pairs, rubrics
from promedical_utils.policy import sft
from promedical_utils.reward_model import hub, packing, variants
from promedical_utils.rubric.preferences import groups_of
from promedical_utils.studies import results

PLAN = {"criterion": [1, 2], "scalar_blind": [1, 2], "criterion_swapped": [1]}


def test_agreement_with_physicians_by_hand():
    said = {  # statement -> three physicians, the scorer
        "c1": ("met", "met", "not_met", True),
        "c2": ("not_met", "not_met", "not_met", True),
        "c3": ("met", "met", "met", True),
        "c4": ("met", "met", "unknown", True),  # not labelled by all three: left out
    }
    verdicts = [
        Verdict(candidate_id="a", criterion_id=c, judge=f"physician_{n}", verdict=v, rationale="")
        for c, (*labels, _) in said.items()
        for n, v in enumerate(labels, 1)
    ]
    cells = {"candidate_id": "a", "criterion_id": list(said)}
    made = SimpleNamespace(
        samples=pd.DataFrame({"instruction_id": ["i"], "condition": ["x"]}),
        verdicts=pd.DataFrame({"instruction_id": "i"} | cells),
    )
    predicted = pd.DataFrame({"scorer": "criterion-1"} | cells | {"met": [True] * 4})
    items = real_text._beside_physicians(made, RunData(verdicts=verdicts), predicted)
    sums = Estimates.of_items(made.samples, results.KEY, items)
    found = {key[:2]: (hits, n) for key, hits, n in zip(sums.keys, sums.hits[0], sums.counts[0])}
    # pairs of physicians agree on 1 + 3 + 3 of 9; the scorer with 2 + 0 + 3 of 9 labels
    assert found == {("physicians", ""): (7, 9), ("criterion", "1"): (5, 9)}


def test_pairs_outside_by_hand():
    rows = [  # system, retrieval, pair, label, prefers
        ("length", False, "p", 1, 1),
        ("length", False, "q", 1, -1),
        ("criterion-1", False, "p", 1, 1),
        ("criterion-1", False, "q", 1, 1),
        ("criterion-1", True, "p", 1, 0),
        ("criterion-1", True, "q", 1, 1),
    ]
    frame = pd.DataFrame(
        rows, columns=["system", "retrieval", "instruction_id", "label", "prefers"]
    )
    frame = frame.assign(set="mediqa", text="q", condition="x", a_id="a", b_id="b")
    sums = real_text._outside(frame)
    found = sums.groupby(["system", "seed", "slice"])[["hits", "counts"]].sum()
    wanted = {  # longer-is-better is wrong on q alone
        ("criterion", "1", "mediqa: all"): (2, 2),
        ("criterion", "1", "mediqa: shorter"): (1, 1),
        ("criterion", "1", "mediqa, retrieved: all"): (1.5, 2),
        ("criterion", "1", "mediqa, retrieved: shorter"): (1, 1),
        ("length", "", "mediqa: all"): (1, 2),
        ("length", "", "mediqa: shorter"): (0, 1),
    }
    assert {key: tuple(row) for key, row in found.iterrows()} == wanted
    assert set(sums.against) == {"reference"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of notebooks 00 to 02 on invented rows, and the study's profile."""
    folder = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        made = SimpleNamespace(Statement=invented.Statement, contrast=invented.halved)
        patch.setattr(real_sets, "contrast_sets", made)
        for key, rows in real_rows().items():
            invented.write(folder / "data", key, rows)
        patch.setenv(schemas.VARIABLE, str(folder / "data"))
        small = {"base_model": "small", "base_layers": 2, "base_width": 64}
        small |= {"base_vocabulary": 400, "precision": "fp32"}
        small |= {"rm_lora_rank": 4, "rm_max_tokens": 256, "rm_epochs": 0.2, "bootstrap": 40}
        profile = profiles.load("real", bench_samples=8, external_instructions=6, **small)
        base.make_base(profile, folder)
        rubrics.make_rubrics(profile, folder)
        preference_pairs.make_preference_pairs(profile, folder)
        yield profile, folder


@pytest.mark.training
def test_the_study_runs_keeps_its_trainings_and_names_nobody(run, monkeypatch):
    profile, folder = run
    out = folder / "real_text"
    out.mkdir()
    rows = RealText(PLAN).run(profile, folder, out)
    tested = pd.read_csv(out / "tests.csv").set_index("id")
    assert list(tested.index) == [test["id"] for test in RealText(PLAN).shows["tests"]]
    assert tested.verdict.notna().all() and tested.loc["R2c", "verdict"] == "not testable"
    assert (
        tested.loc["R1a", "labels"] == "annotators" and tested.loc["R1c", "labels"] == "physicians"
    )
    assert not rows["slice"].str.contains("contrast").any()  # constructed labels test nothing
    ids = set(pd.read_parquet(folder / "data/instructions.parquet").id)
    for path in out.glob("*.parquet"):
        frame = pd.read_parquet(path)
        assert frame.instruction_id.str.isdigit().all() and frame.condition.str.isdigit().all()
        assert not ids & set(frame.instruction_id)
    # a difference is that of the sums, on the same questions
    cell = ("pairwise", "patientqa: all", "annotators")
    sums = results.read_sums(out)
    # the set outside is read by the first training of an arm alone
    outside_seeds = {k[1] for k in sums.keys if k[0] == "criterion" and k[3].startswith("mediqa")}
    assert outside_seeds == {"1"}
    means = [
        np.mean(
            [
                float(sums.each([n])[0])
                for n, k in enumerate(sums.keys)
                if (k[0], *k[2:]) == (s, *cell)
            ]
        )
        for s in ("criterion", "scalar_blind")
    ]
    assert tested.loc["R1a", "difference"] == pytest.approx(100 * (means[0] - means[1]), abs=0.006)

    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(reward_models, "prepare", refuse)
    kept = (out / "results.csv").read_bytes()
    RealText(PLAN).run(profile, folder, out)
    assert (out / "results.csv").read_bytes() == kept
    with pytest.raises(
        AssertionError, match="trained again"
    ):  # other settings are another training
        RealText(PLAN).run(profile.model_copy(update={"rm_epochs": 0.3}), folder, out)


@pytest.mark.training
def test_a_learning_curve_is_looked_at_on_the_held_out_splits(run):
    profile, folder = run
    out = folder / "learning_curve"
    out.mkdir()
    arm = {"recipe": "criterion", "layers": 2, "epochs": 0.3, "looks": [0.2]}
    rows = LearningCurve({"2 layers": arm}).run(profile, folder, out)
    assert rows.seed.nunique() > 1 and set(rows.system) == {"2 layers"}
    table = pd.read_csv(out / "table.csv")
    data = RunData.load(folder)
    sources = {g.instruction.source for g in groups_of(data, "judge", "checkpoint", "calibration")}
    assert {part.partition(":")[0] for part in table.part} <= sources
    assert table.value.between(0, 1).all() and (out / "learning_curve.png").exists()


@pytest.mark.training
def test_a_policy_is_read_by_a_second_reader_that_learned_other_labels(run, monkeypatch):
    profile, folder = run
    small = {"grpo_steps": 2, "grpo_prompts": 2, "grpo_group": 2, "grpo_max_tokens": 12}
    small |= {"grpo_eval_every": 1, "grpo_lora_rank": 4, "rm_epochs": 0.3}
    sizes = {"written": 6, "held_out": 3, "asked": 3, "harmless": 4, "beside": 2}
    shows = RealPolicy({}).shows
    shows = shows | {"settings": shows["settings"] | small} | sizes
    shows |= {"gate": ["kqa", "medlfqa_contrast"]}
    monkeypatch.setattr(RealPolicy, "shows", property(lambda self: shows))
    out = folder / "real_policy"
    out.mkdir()
    rows = RealPolicy({"veto": [1, 2]}).run(profile, folder, out)
    data = RunData.load(folder)
    first, second = (set(real_policy.half(data, name).ids("train")) for name in ("first", "second"))
    assert first and second and not first & second
    assert first | second == set(data.ids("train"))
    # the stand-in for gold judges: what it says on the way is what the kept policy is chosen by
    curves = pd.read_parquet(out / "curves.parquet")
    assert sorted(set(curves.seed)) == [1, 2] and set(curves.step) == {0, 1, 2}
    assert curves.judged.notna().all() and "gold" not in curves
    table = pd.read_csv(out / "table.csv").set_index("measure")
    tokens = table.loc["length (tokens, 96 at most)"]
    assert all(1 <= tokens[system] <= 12 for system in shows["labels"]) and tokens.answers == 4
    assert tokens.veto_less_sft == pytest.approx(tokens.veto - tokens.sft, abs=0.11)
    assert table.loc["harmless questions refused (%)", "veto"] == 0
    gate = pd.read_csv(out / "gate.csv").set_index("source")
    assert gate.loc["kqa", "labels"] == "physicians"
    assert (gate.passed == (gate.ordered_low > 50)).all()
    # of kept parts nothing is trained again, and all comes out the same
    kept = {path.name: path.read_bytes() for path in out.glob("*.csv")}
    monkeypatch.setattr(real_policy, "prepare", None)
    RealPolicy({"veto": [1, 2]}).run(profile, folder, out)
    assert {path.name: path.read_bytes() for path in out.glob("*.csv")} == kept
    # the one text that leaves is MedQuAD's, and answers to it
    beside = pd.read_csv(out / "answers.csv")
    assert len(beside) == 2 and beside.question.str.fullmatch(r"What is ill\d+\?").all()
    assert set(rows.against) >= {"first reader", "second reader", "counted"}
    published = "".join(p.read_text() for p in out.glob("*.*") if p.suffix in (".csv", ".md"))
    assert "case 1" not in published and "tea1" not in published


def test_a_gate_counts_only_what_lies_above_a_half_as_a_whole():
    ends = {"kqa": (0.7, 0.51, 0.8), "medlfqa_contrast": (0.9, 0.5, 0.99)}
    rows = [
        ("second reader", "mean", "pairwise", f"{source}: shorter", real_sets.LABELS[source])
        + ("value", "", *three, 40)
        for source, three in ends.items()
    ]
    cells = results.Cells(pd.DataFrame(rows, columns=counting.COLUMNS))
    gate = RealPolicy({}).gate(cells).set_index("source")
    assert gate.passed.to_dict() == {
        "kqa": True,
        "medlfqa_contrast": False,
        "kqa_contrast": False,
        "patientqa": False,
    }
    assert gate.pairs["kqa"] == 40 and gate.counts.tolist() == [True, True, False, False]


def test_fine_tuning_reads_whole_sentences_that_fit(run):
    tokenizer = hub.tokenizer_of(run[1] / "base")
    asked = [[{"role": "user", "content": text}] for text in ("Why?", "How?")]
    answers = "It burns. It ends in three days. Rest.", "x" * 200 + " then."
    written = list(zip(asked, answers, strict=True))
    most = len(tokenizer("It burns. It ends in three days.", add_special_tokens=False).input_ids)
    [row] = sft.rows(tokenizer, written, most + 1)  # the end token takes one
    prompt = packing.prompt_ids(tokenizer, asked[0])
    learned = [i for i, mask in zip(row["input_ids"], row["completion_mask"], strict=True) if mask]
    assert row["input_ids"][: len(prompt)] == prompt and not any(
        row["completion_mask"][: len(prompt)]
    )
    assert tokenizer.decode(learned[:-1]) == "It burns. It ends in three days."
    assert learned[-1] == tokenizer.eos_token_id and len(learned) == most + 1
    assert sft.rows(tokenizer, written, 3) == []
    short = run[0].model_copy(update={"grpo_max_tokens": 3})
    with pytest.raises(KitError, match="no first sentence of 2 answers fits"):
        sft.train(run[1] / "base", written, short, run[1] / "taught")


def test_refusals_are_told_by_how_an_answer_begins():
    refuses = real_policy.refusals(RealPolicy({}).shows["refusal"])
    for text in ("I'm sorry, but no.", "I cannot help with that.", "As an AI, I ...", "I can't."):
        assert refuses.match(text)
    for text in ("Diabetes is an illness.", "I can explain: rest.", "You may be sorry, ask again."):
        assert not refuses.match(text)


def test_a_placebo_reads_another_text_of_its_dimension(tiny_groups):
    texts = variants.criterion_texts(tiny_groups)
    recipe = variants.find("criterion_swapped")
    for group, read in zip(tiny_groups, recipe.as_read(tiny_groups, texts), strict=True):
        for own, other in zip(group.criteria, read.criteria, strict=True):
            assert (other.id, other.dimension, other.weight) == (own.id, own.dimension, own.weight)
            assert other.text != own.text
            same = set(texts[own.dimension]) - {own.text}
            assert other.text in same or not same
    again = recipe.as_read(tiny_groups, texts)
    assert [g.criteria for g in again] == [g.criteria for g in recipe.as_read(tiny_groups, texts)]
    assert variants.find("criterion").as_read(tiny_groups, texts) == list(tiny_groups)
    assert outside.RULED == "criterion"
