import json
import math
from pathlib import Path

import bitsandbytes
import pytest
import torch

from promedical_utils import reward_model as rm
from promedical_utils.workspace import KitError


@pytest.fixture(scope="module")
def trained(tiny_base, tiny_profile, tiny_groups, tmp_path_factory):
    """One adapter on NF4 per view, under the same budget."""
    folder = tmp_path_factory.mktemp("reward")
    (folder / "base").symlink_to(tiny_base)
    for view in rm.VIEWS:
        rm.train(tiny_groups, folder / "base", folder / view, view=view, profile=tiny_profile)
    return folder


def report(folder):
    return json.loads((folder / "report.json").read_text())


def test_loss_by_hand():
    scores = torch.tensor([2.0, -1.0, 0.5], requires_grad=True)
    pairs, targets = torch.tensor([[0, 1], [2, 0]]), torch.tensor([1.0, 0.0, rm.MASKED])
    preference = (math.log(1 + math.exp(-3)) + math.log(1 + math.exp(1.5))) / 2
    verdict = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    found = rm.reward_loss(scores, pairs, targets, 0.7).item()
    assert found == pytest.approx(preference + 0.7 * verdict)
    nothing = rm.reward_loss(scores, pairs[:0], torch.full((3,), rm.MASKED), 0.7)
    nothing.backward()
    assert nothing.item() == 0 and scores.grad.abs().sum() == 0


def test_rows_hold_every_pair_and_verdict(tiny_base, tiny_groups):
    tokenizer = rm._tokenizer(tiny_base)
    row = rm.training_rows(tiny_groups[:1], tokenizer, "criterion", 256)[0][0]
    # answers say (dose, danger), (kind), (dose, kind + unknown on safety); scores in that order
    assert sorted(row["pairs"]) == sorted([[0, 3], [6, 3], [4, 1], [7, 1], [2, 5], [2, 8]])
    assert row["targets"] == [1, 0, 1, 0, 1, 0, 1, 1, 0]
    overall = rm.training_rows(tiny_groups[:1], tokenizer, "overall", 256)[0][0]
    assert sorted(overall["pairs"]) == [[0, 1], [0, 2], [2, 1]]  # safe first, then the dose
    blind = rm.training_rows(tiny_groups[:1], tokenizer, "blind", 256)[0][0]
    assert sorted(blind["pairs"]) == sorted([[0, 1], [2, 1], [1, 0], [2, 0], [0, 1], [0, 2]])
    assert blind["targets"] == [rm.MASKED] * 3
    two = rm.training_batch([overall, overall], 0)
    assert two["pairs"][3:].tolist() == [[a + 3, b + 3] for a, b in overall["pairs"]]


def test_answers_that_are_too_long_are_named_in_every_view_alike(tiny_base, tiny_groups):
    tokenizer = rm._tokenizer(tiny_base)
    lost = [rm.training_rows(tiny_groups, tokenizer, view, 70)[1] for view in rm.VIEWS]
    assert lost[0] == lost[1] == lost[2] and 0 < len(lost[0]) < 36
    assert all(entry["tokens"] > 70 and entry["candidate"].startswith("i") for entry in lost[0])


def test_schedule_shows_every_row_once_an_epoch_and_keeps_alike_lengths_together():
    lengths = [(7 * i) % 100 for i in range(100)]
    order = rm.schedule(lengths, 4, 2.0, seed=3)
    assert sorted(order) == sorted(list(range(100)) * 2)
    assert order == rm.schedule(lengths, 4, 2.0, seed=3) != rm.schedule(lengths, 4, 2.0, seed=4)
    spread = [max(lengths[i] for i in order[k : k + 4]) - min(lengths[i] for i in order[k : k + 4])
              for k in range(0, 200, 4)]
    assert sum(spread) / len(spread) < 20  # 60 when shuffled
    assert len(rm.schedule(lengths, 4, 0.5, seed=3)) == 50


def test_training_learns_and_views_have_the_same_budget(trained, tiny_groups):
    reports = {view: report(trained / view) for view in rm.VIEWS}
    for key in ("groups", "answers", "steps", "batch", "epochs", "seed", "left_out"):
        assert reports["criterion"][key] == reports["overall"][key] == reports["blind"][key], key
    assert reports["criterion"]["pairs"] == 72 and reports["overall"]["pairs"] == 36
    curve = reports["criterion"]["curve"]
    assert len(curve) == reports["criterion"]["steps"] == 6
    linear = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128)  # 4-bit, two values a byte
    # rank 4 on seven matrices of two layers, and the head
    ends = 2 * (64 + 64 + 2 * (64 + 32) + 64 + 64 + 3 * (64 + 128))
    trained_parameters = reports["criterion"]["trained_parameters"]
    assert trained_parameters == 4 * ends + 64
    assert reports["criterion"]["parameters"] > linear + trained_parameters


def test_the_head_and_the_adapter_are_trained_in_fp32(trained):
    from safetensors.torch import load_file

    weights = load_file(trained / "criterion" / "adapter_model.safetensors")
    assert any("score" in name for name in weights)
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert all(t.abs().max() > 0 for name, t in weights.items() if "lora_B" in name)
    # bf16 would leave no bits beyond its 8; fp32 masters have them
    assert any((t != t.bfloat16().float()).any() for t in weights.values())


def test_reload_scores_packed_as_one_by_one_and_in_input_order(trained, tiny_groups):
    model = rm.load(trained / "criterion")
    frame = model.score(tiny_groups)
    assert list(frame.columns) == ["instruction_id", "candidate_id", "criterion_id", "score"]
    every = [(g, a, c) for g in tiny_groups for a in g.candidates for c in g.criteria]
    names = [(g.instruction.id, a.id, c.id) for g, a, c in every]
    assert list(frame.iloc[:, :3].itertuples(index=False, name=None)) == names
    small = model.score(tiny_groups, batch_tokens=1)
    assert (frame["score"] - small["score"]).abs().max() < 1e-5
    alone = model.score_texts([(g.messages, a.text, [c]) for g, a, c in every])
    alone = [score for (score,) in alone]
    assert max(abs(a - b) for a, b in zip(alone, frame["score"], strict=True)) < 1e-5
    again = rm.load(trained / "criterion").score(tiny_groups)
    assert (again["score"] == frame["score"]).all()


def test_reload_gives_the_scores_of_the_trained_model(
    tiny_base, tiny_profile, tiny_groups, tmp_path, monkeypatch
):
    kept, save = {}, rm._save

    def keep(model, *rest):
        kept["model"] = model
        save(model, *rest)

    monkeypatch.setattr(rm, "_save", keep)
    rm.train(tiny_groups, tiny_base, tmp_path / "m", view="criterion", profile=tiny_profile)
    # as on a processor on which 4-bit layers would turn to bf16 when they are not training
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    loaded = rm.load(tmp_path / "m")
    before = rm.RewardModel(kept["model"].eval(), loaded.tokenizer, "criterion", 256, {})
    drift = loaded.score(tiny_groups)["score"] - before.score(tiny_groups)["score"]
    assert drift.abs().max() < 1e-4
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id is not None
    four_bit = [m for m in loaded.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(four_bit) == 14 and not any(m.support_avx512bf16_for_cpu for m in four_bit)


def test_scalar_views_give_one_score(trained, tiny_groups):
    for view in ("overall", "blind"):
        frame = rm.load(trained / view).score(tiny_groups)
        assert len(frame) == 36 and set(frame["criterion_id"]) == {""}


def test_nothing_in_the_folder_names_this_machine(trained, tiny_base):
    for file in filter(Path.is_file, (trained / "criterion").rglob("*")):
        for folder in (tiny_base.parent, trained):
            assert str(folder).encode() not in file.read_bytes(), file
    assert report(trained / "criterion")["base"]["folder"].startswith("..")
    assert not list(trained.glob("*/checkpoints-*"))


def test_a_finished_folder_is_not_trained_again_unless_something_changed(
    trained, tiny_profile, tiny_groups, monkeypatch
):
    class Trained(Exception):
        pass

    def refuse(*args, **kwargs):
        raise Trained

    monkeypatch.setattr(rm, "_base_model", refuse)
    out, base = trained / "blind", trained / "base"
    stored = rm.train(tiny_groups, base, out, view="blind", profile=tiny_profile)
    assert stored == report(out)
    with pytest.raises(Trained):
        rm.train(tiny_groups[1:], base, out, view="blind", profile=tiny_profile)
    assert not (out / "report.json").exists()  # no longer whole
    with pytest.raises(KitError, match="03_reward_model"):
        rm.load(out)


def test_full_fine_tuning_resumes_to_the_same_model(
    tiny_base, tiny_profile, tiny_groups, tmp_path, monkeypatch
):
    profile = tiny_profile.model_copy(update={"rm_batch": 1, "rm_full_learning_rate": 3e-3})
    arguments = dict(view="criterion", profile=profile, full=True)
    whole = rm.train(tiny_groups, tiny_base, tmp_path / "whole", **arguments)
    assert whole["steps"] == 24 and whole["parameters"] == whole["trained_parameters"]
    assert whole["curve"][-1]["loss"] < 0.8 * whole["curve"][0]["loss"]

    step, calls = rm.PackedRewardTrainer.compute_loss, []

    def stop(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 22:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(rm.PackedRewardTrainer, "compute_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        rm.train(tiny_groups, tiny_base, tmp_path / "cut", **arguments)
    assert not (tmp_path / "cut" / "report.json").exists()
    rm.train(tiny_groups, tiny_base, tmp_path / "cut", **arguments)
    assert len(calls) == 22 + 4  # steps 21 to 24, after the checkpoint at 20
    scores = [rm.load(tmp_path / name).score(tiny_groups)["score"] for name in ("whole", "cut")]
    assert (scores[0] - scores[1]).abs().max() < 1e-6


def test_clear_errors(trained, tiny_base, tiny_profile, tiny_groups, tmp_path):
    model = rm.load(trained / "criterion")
    model.max_tokens = 70
    with pytest.raises(KitError, match=r"candidate i\d+-a\d: \d+ tokens .* is 70"):
        model.score(tiny_groups)
    with pytest.raises(KitError, match="unknown view"):
        rm.train(tiny_groups, tiny_base, tmp_path, view="both", profile=tiny_profile)
    with pytest.raises(KitError, match="00_start_here"):
        rm.train(tiny_groups, tmp_path / "none", tmp_path, view="blind", profile=tiny_profile)
    changed = report(trained / "overall")
    changed["base"]["sha256"] = "0"
    (trained / "overall" / "report.json").write_text(json.dumps(changed))
    with pytest.raises(KitError, match="has changed"):
        rm.load(trained / "overall")
