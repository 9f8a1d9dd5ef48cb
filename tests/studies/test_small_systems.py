"""Small pair RM and verifier: their lessons by hand, packed as apart, saved as hub models are."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from promedical_utils.core.workspace import KitError
from promedical_utils.evaluation.scorers import published
from promedical_utils.reward_model import grouped
from promedical_utils.reward_model import model as reward_model
from promedical_utils.reward_model.model import tokenizer_of
from promedical_utils.rubric.preferences import preferences
from promedical_utils.studies import small_systems

pytestmark = pytest.mark.training  # fits models


@pytest.fixture(scope="module")
def profile():
    from promedical_utils.core import profiles

    return profiles.load(
        "smoke",
        rm_batch=4,
        rm_lora_rank=4,
        rm_max_tokens=512,
        rm_epochs=20.0,
        rm_learning_rate=1e-2,
    )


@pytest.fixture(scope="module", params=small_systems.NAMES)
def trained(request, tiny_base, tiny_groups, profile, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "model"
    report = small_systems.train(
        request.param, tiny_groups, tiny_base, out, profile=profile, seed=1
    )
    return request.param, out, report


def test_it_learns_in_the_steps_of_a_reward_model_and_is_loaded_as_the_hubs_is(
    trained, tiny_groups, profile
):
    name, out, report = trained
    assert report["steps"] == 12 * 20 / 4 and report["groups"] == 12
    assert report["curve"][-1]["loss"] < report["curve"][0]["loss"] / 2
    assert report["quantization"] == "nf4" and not list(out.glob("checkpoints-*"))
    scorer = small_systems.load(name, out)
    if name == "pair_rm":
        assert type(scorer) is published.PairRM
        frame = scorer.pairwise(tiny_groups)
        better = {(r.a_id, r.b_id): r.probability for r in frame.itertuples()}
        right = [
            better[pair] > 0.5 if pair in better else better[pair[::-1]] < 0.5
            for g in tiny_groups
            for pair in preferences(g)
        ]
    else:
        assert type(scorer) is published.Verifier and scorer.model.config.num_labels == 2
        frame = scorer.pointwise(tiny_groups)
        said = {k: v == "met" for g in tiny_groups for k, v in g.verdicts.items()}
        right = [bool(r.met) == said[r.candidate_id, r.criterion_id] for r in frame.itertuples()]
    assert sum(right) / len(right) > 0.75
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config and config["architectures"] == [
        "Qwen3ForCausalLM" if name == "pair_rm" else "Qwen3ForSequenceClassification"
    ]


@pytest.fixture(scope="module")
def words(tiny_base):
    return tokenizer_of(tiny_base)


def test_a_pair_is_shown_in_both_orders_and_the_better_ones_letter_is_right(words, tiny_groups):
    group, (a, b) = tiny_groups[0], published.letters(words)
    text = {c.id: c.text for c in group.candidates}
    found = small_systems.examples("pair_rm", group, words)
    assert len(found) == len(preferences(group)) == 3
    best, worst = preferences(group)[0]
    assert found[f"candidates {best} and {worst}"] == [
        (published.pair_ids(words, group.messages, text[best], text[worst]), a),
        (published.pair_ids(words, group.messages, text[worst], text[best]), b),
    ]


def test_a_verdict_is_a_label_and_unknown_on_safety_is_not_met(words, tiny_groups):
    group = tiny_groups[0]
    found = small_systems.examples("verifier", group, words)
    for answer in group.candidates:
        learned = found[f"candidate {answer.id}"]
        said = [group.verdicts[answer.id, c.id] for c in group.criteria]
        assert [label for _, label in learned] == [int(v == "met") for v in said]
        assert [ids for ids, _ in learned] == [
            published.verifier_ids(words, answer.text, c.text) for c in group.criteria
        ]
    assert "unknown" in said and learned[2][1] == 0
    proficiency = group.criteria[0]
    blank = {**group.verdicts, (answer.id, proficiency.id): "unknown"}
    fewer = small_systems.examples("verifier", replace(group, verdicts=blank), words)
    assert len(fewer[f"candidate {answer.id}"]) == 2  # no label where nothing is known


@pytest.mark.parametrize("name", small_systems.NAMES)
def test_what_is_packed_reads_as_one_by_one(name, tiny_base, tiny_groups):
    torch.manual_seed(0)
    words = tokenizer_of(tiny_base)
    outputs = None if name == "pair_rm" else 2
    model = reward_model.base_for(tiny_base, False, torch.float32, outputs).eval()
    if outputs:
        torch.nn.init.normal_(model.score.weight)
    small_systems.add_fixed_parts(model, words, small_systems.FIXED[name])
    rows, left_out = small_systems.training_rows(name, tiny_groups[:3], words, 400)
    assert not left_out and len(rows) == 3
    batch = small_systems.LabelPasses(words.pad_token_id, 400).batch(rows)
    targets = batch.pop("targets")
    with torch.no_grad():
        logits = model(**batch).logits
        learned = [
            e
            for g in tiny_groups[:3]
            for part in small_systems.examples(name, g, words).values()
            for e in part
        ]
        apart = []
        for ids, _ in learned:
            hidden = model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
            apart.append(model.score(hidden) if outputs else model.lm_head(hidden))
    assert targets.tolist() == [target for _, target in learned]
    torch.testing.assert_close(logits, torch.stack(apart), atol=2e-5, rtol=0)
    packed = sum(len(ids) for row in rows for ids in row["ids"])
    assert packed < 0.8 * sum(len(ids) for ids, _ in learned)


def test_the_loss_of_a_step_is_the_mean_over_its_examples_however_it_is_cut(words, tiny_groups):
    rows, _ = small_systems.training_rows("verifier", tiny_groups[:4], words, 400)
    for budget in (1, 100_000):
        passes = small_systems.LabelPasses(0, budget)(rows)["passes"]
        assert len(passes) == (4 if budget == 1 else 1)
        assert (
            {int(p["totals"]) for p in passes} == {sum(len(p["targets"]) for p in passes)} == {36}
        )
    assert passes[0]["reads"].shape == (36, 2)


def test_a_fixed_part_is_one_token_that_starts_as_the_mean_of_its_pieces(tiny_base):
    words = tokenizer_of(tiny_base)
    model = reward_model.base_for(tiny_base, False, torch.float32, None)
    pieces = words("[RESPONSE", add_special_tokens=False).input_ids
    wanted = model.get_input_embeddings().weight[pieces].mean(dim=0)
    before = words("take two", add_special_tokens=False).input_ids
    small_systems.add_fixed_parts(model, words, ("[RESPONSE",))
    [token] = words("[RESPONSE", add_special_tokens=False).input_ids
    torch.testing.assert_close(model.get_input_embeddings().weight[token], wanted)
    assert model.lm_head.weight.shape[0] == len(words) == model.config.vocab_size
    assert words("take two", add_special_tokens=False).input_ids == before
    ids = words("[RESPONSE A] x [RESPONSE B] y", add_special_tokens=False).input_ids
    assert ids.count(token) == 2 and words.decode(ids) == "[RESPONSE A] x [RESPONSE B] y"


def test_what_is_too_long_is_left_out_by_name(words, tiny_groups):
    whole, _ = small_systems.training_rows("pair_rm", tiny_groups, words, 400)
    sizes = {
        what: max(len(ids) for ids, _ in found)
        for g in tiny_groups
        for what, found in small_systems.examples("pair_rm", g, words).items()
    }
    longest = max(sizes, key=sizes.get)
    limit = sizes[longest] - 1
    rows, left_out = small_systems.training_rows("pair_rm", tiny_groups, words, limit)
    gone = {what for what, size in sizes.items() if size > limit}
    assert {row["what"] for row in left_out} == gone and longest in gone
    learned = [sum(len(row["targets"]) for row in found) for found in (whole, rows)]
    assert learned[0] - learned[1] == 2 * len(gone)


def test_a_group_that_teaches_nothing_costs_no_step(
    tiny_base, tiny_groups, profile, tmp_path, monkeypatch
):
    silent = [replace(g, verdicts=dict.fromkeys(g.verdicts, "met")) for g in tiny_groups[:5]]
    seen = []

    def stop(trainer):
        seen.append((len(trainer.train_dataset), trainer.args.max_steps))
        raise KeyboardInterrupt

    monkeypatch.setattr(grouped, "course", stop)
    one = profile.model_copy(update={"rm_epochs": 1.0})
    with pytest.raises(KeyboardInterrupt):
        small_systems.train(
            "pair_rm", [*silent, *tiny_groups[5:]], tiny_base, tmp_path / "a", profile=one, seed=1
        )
    assert seen[0][0] == 12  # seven rows, in the steps of twelve
    with pytest.raises(KitError, match="pair_rm: no verdict or preference"):
        small_systems.train("pair_rm", silent, tiny_base, tmp_path / "b", profile=one, seed=1)
    with pytest.raises(KitError, match="unknown system 'judge'"):
        small_systems.train("judge", silent, tiny_base, tmp_path / "b", profile=one, seed=1)


def test_a_finished_one_is_kept_and_another_seed_is_another_model(
    trained, tiny_base, tiny_groups, profile, monkeypatch
):
    name, out, report = trained

    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(reward_model, "base_for", refuse)
    again = small_systems.train(name, tiny_groups, tiny_base, out, profile=profile, seed=1)
    assert again == report
    with pytest.raises(AssertionError, match="trained again"):
        small_systems.train(name, tiny_groups, tiny_base, out, profile=profile, seed=2)
    assert not (out / "report.json").exists()
    (out / "report.json").write_text(json.dumps(report))


def test_a_stopped_one_goes_on_and_ends_as_if_it_had_not_been(
    tiny_base, tiny_groups, profile, tmp_path, monkeypatch
):
    short = profile.model_copy(update={"rm_epochs": 8.0})  # 24 steps, a checkpoint at 20

    def train(out):
        return small_systems.train("verifier", tiny_groups, tiny_base, out, profile=short, seed=1)

    train(tmp_path / "whole")
    step = small_systems.LabelTrainer.training_step

    def stop(self, *args, **kwargs):
        if self.state.global_step == 22:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(small_systems.LabelTrainer, "training_step", stop)
        train(tmp_path / "part")
    assert not (tmp_path / "part/report.json").exists()
    taken = []
    with monkeypatch.context() as patched:
        patched.setattr(
            small_systems.LabelTrainer,
            "training_step",
            lambda self, *a, **k: taken.append(1) or step(self, *a, **k),
        )
        train(tmp_path / "part")
    assert len(taken) == 4
    whole, part = (load_file(tmp_path / x / "model.safetensors") for x in ("whole", "part"))
    for key, weight in whole.items():
        torch.testing.assert_close(part[key], weight, atol=1e-6, rtol=0)
