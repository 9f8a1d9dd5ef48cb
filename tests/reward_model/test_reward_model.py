import json
import math
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import bitsandbytes
import pytest
import torch
import yaml

from promedical_utils.core.records import DIMENSIONS, Rubric
from promedical_utils.core.workspace import KitError
from promedical_utils.policy import veto_reward
from promedical_utils.reward_model import (
    grouped,
    hub,
    model_card,
    packing,
    training,
    variants,
    views,
)
from promedical_utils.reward_model import model as rm
from promedical_utils.reward_model.calibration import Calibration

pytestmark = pytest.mark.training  # fits models


@pytest.fixture(scope="module")
def trained(tiny_base, tiny_profile, tiny_groups, tmp_path_factory):
    """One adapter on NF4 per view, under the same budget."""
    folder = tmp_path_factory.mktemp("reward")
    (folder / "base").symlink_to(tiny_base)
    for view in variants.VIEWS:
        training.train(tiny_groups, folder / "base", folder / view, view=view, profile=tiny_profile)
    return folder


def report(folder):
    return json.loads((folder / "report.json").read_text())


def test_loss_by_hand():
    scores = torch.tensor([2.0, -1.0, 0.5], requires_grad=True)
    pairs, targets = torch.tensor([[0, 1], [2, 0]]), torch.tensor([1.0, 0.0, training.MASKED])
    preference = (math.log(1 + math.exp(-3)) + math.log(1 + math.exp(1.5))) / 2
    verdict = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1))) / 2
    found = training.reward_loss(scores, pairs, targets, 0.7).item()
    assert found == pytest.approx(preference + 0.7 * verdict)
    nothing = training.reward_loss(scores, pairs[:0], torch.full((3,), training.MASKED), 0.7)
    nothing.backward()
    assert nothing.item() == 0 and scores.grad.abs().sum() == 0


def test_rows_hold_every_pair_and_verdict(tiny_base, tiny_groups):
    tokenizer = rm.tokenizer_of(tiny_base)
    row = training.training_rows(tiny_groups[:1], tokenizer, "criterion", 256)[0][0]
    # answers say (dose, danger), (kind), (dose, kind + unknown on safety); scores in that order
    assert sorted(row["pairs"]) == sorted([[0, 3], [6, 3], [4, 1], [7, 1], [2, 5], [2, 8]])
    assert row["targets"] == [1, 0, 1, 0, 1, 0, 1, 1, 0]
    overall = training.training_rows(tiny_groups[:1], tokenizer, "overall", 256)[0][0]
    assert sorted(overall["pairs"]) == [[0, 1], [0, 2], [2, 1]]  # safe first, then the dose
    rubric = training.training_rows(tiny_groups[:1], tokenizer, "rubric", 256)[0][0]
    assert rubric["pairs"] == overall["pairs"] and rubric["targets"] == [training.MASKED] * 3
    blind = training.training_rows(tiny_groups[:1], tokenizer, "blind", 256)[0][0]
    assert sorted(blind["pairs"]) == sorted([[0, 1], [2, 1], [1, 0], [2, 0], [0, 1], [0, 2]])
    assert blind["targets"] == [training.MASKED] * 3
    two = training.RewardPasses(0, 256).batch([overall, overall])
    assert two["pairs"][3:].tolist() == [[a + 3, b + 3] for a, b in overall["pairs"]]


def test_answers_that_are_too_long_are_named_in_every_view_alike(
    tiny_base, tiny_groups, tiny_profile, tmp_path
):
    tokenizer = rm.tokenizer_of(tiny_base)
    heads = training.Plan(
        tiny_groups, tiny_base, tmp_path, view="heads", profile=tiny_profile
    ).heads
    lost = [
        training.training_rows(tiny_groups, tokenizer, view, 70, heads=heads)[1]
        for view in variants.VIEWS
        if view != "rubric"  # below
    ]
    assert all(names == lost[0] for names in lost) and 0 < len(lost[0]) < 36
    assert all(entry["tokens"] > 70 and entry["candidate"].startswith("i") for entry in lost[0])


def test_a_whole_rubric_takes_more_room_and_what_lacks_it_is_named(tiny_base, tiny_groups):
    tokenizer = rm.tokenizer_of(tiny_base)
    rows, lost, _ = training.training_rows(tiny_groups, tokenizer, "rubric", 75)
    expected = []
    for group in tiny_groups:
        prompt = len(packing.prompt_ids(tokenizer, group.messages))
        tails = [packing.criterion_text(c) for c in group.criteria]
        joint = len(packing.text_ids(tokenizer, ["".join(tails)])[0])
        for answer, ids in zip(
            group.candidates, packing.text_ids(tokenizer, [a.text for a in group.candidates])
        ):
            tokens = prompt + len(ids) + joint
            assert tokens > prompt + len(ids) + max(map(len, packing.text_ids(tokenizer, tails)))
            if tokens > 75:
                expected.append({"candidate": answer.id, "tokens": tokens, "limit": 75})
    assert lost == expected and 0 < len(lost) < 36
    others = training.training_rows(tiny_groups, tokenizer, "criterion", 75)[1]
    assert 0 < len(others) < len(lost)  # nor does the one view take from the budget of the others
    # shortened, every answer is read and every rubric whole
    rows, left_out, cut = training.training_rows(tiny_groups, tokenizer, "rubric", 75, shorten=True)
    assert left_out == [] and {e["candidate"] for e in lost} <= {e["candidate"] for e in cut}
    ends = packing.text_ids(tokenizer, ["".join(tails)])[0]
    assert all(ids[-len(ends) :] == ends and len(ids) <= 75 for row in rows for ids in row["ids"])


def test_what_is_too_long_may_be_shortened_and_is_named(tiny_base, tiny_groups):
    tokenizer = rm.tokenizer_of(tiny_base)
    whole = training.training_rows(tiny_groups, tokenizer, "criterion", 70)
    rows, left_out, shortened = training.training_rows(
        tiny_groups, tokenizer, "criterion", 70, shorten=True
    )
    assert left_out == [] == whole[2] and len(rows) == len(tiny_groups)
    assert {e["candidate"] for e in whole[1]} <= {e["candidate"] for e in shortened}
    assert all(e["instruction"] + e["response"] > 0 for e in shortened)
    ends = [s for row in rows for s in row["starts"]]
    assert max(s[0] + b - a for s in ends for a, b in zip(s, s[1:])) <= 70
    # no criterion lost a token
    tails = {
        tuple(ids[a:b])
        for row in rows
        for ids, s in zip(row["ids"], row["starts"])
        for a, b in zip(s, s[1:])
    }
    texts = [packing.criterion_text(c) for c in tiny_groups[0].criteria]
    assert tails == set(map(tuple, packing.text_ids(tokenizer, texts)))
    # a criterion that leaves no room is no reason to cut it
    assert (
        len(training.training_rows(tiny_groups, tokenizer, "criterion", 24, shorten=True)[1]) == 36
    )


def test_a_step_reads_the_same_however_it_is_cut_into_passes(tiny_base, tiny_groups):
    tokenizer = rm.tokenizer_of(tiny_base)
    rows = training.training_rows(tiny_groups, tokenizer, "criterion", 256)[0][:4]
    for budget, passes in ((1, 4), (10_000, 1)):
        parts = training.RewardPasses(0, budget)(rows)["passes"]
        assert len(parts) == passes and sum(len(p["targets"]) for p in parts) == 36
        assert {tuple(p["totals"].tolist()) for p in parts} == {(24, 36)}
    two = training.RewardPasses(0, 500)(rows)["passes"]
    assert len(two) > 1 and all(p["input_ids"].numel() <= 500 for p in two)
    used = sum(len(ids) for row in rows for ids in row["ids"])
    whole = sum(p["input_ids"].numel() for p in two)
    assert grouped.padding(rows, 4, 500) == round(1 - used / whole, 4) > 0


def test_the_order_of_reads_in_every_view(tiny_base, tiny_groups):
    """Each view's sequences, spelled out for one instruction with two answers and two criteria."""
    tokenizer, group = rm.tokenizer_of(tiny_base), tiny_groups[0]
    case = (group.messages, [a.text for a in group.candidates[:2]], group.criteria[:2])
    prompt = packing.prompt_ids(tokenizer, group.messages)
    one, two, c1, c2 = packing.text_ids(
        tokenizer, [*case[1], *map(packing.criterion_text, case[2])]
    )
    heads = {"proficiency/dose": 1, "safety/danger": 0}  # excellence/kind is unseen: all are asked

    def found(view):
        [reading] = views.read(tokenizer, [case], view, 256, heads=heads)
        return [s.ids[len(prompt) :] for s in reading.sequences], reading.reads

    assert found("criterion") == ([one + c1 + c2, two + c1 + c2], [(0, 0), (0, 1), (1, 0), (1, 1)])
    assert found("before") == ([c1 + one + two, c2 + one + two], [(0, 0), (1, 0), (0, 1), (1, 1)])
    assert found("overall") == found("blind") == ([one, two], [(0, None), (1, None)])
    joint = packing.text_ids(tokenizer, ["".join(map(packing.criterion_text, case[2]))])[0]
    assert found("rubric") == ([one + joint, two + joint], [(0, None), (1, None)])
    ids, reads = found("heads")
    assert ids == [one, two] and reads[:3] == [(0, 0), (0, 1), (0, 1)]
    [reading] = views.read(tokenizer, [case], "heads", 256, heads=heads)
    assert reading.sequences[0].reads == [(len(prompt + one) - 1, h) for h in (1, 1, 0)]


def test_every_view_scores_each_criterion_by_its_name(trained, tiny_groups):
    """Packed over answers or criteria, in a group or alone: the score of (answer, criterion)."""
    for view in variants.CONDITIONAL:
        model = rm.load(trained / view)
        frame = model.score_groups(tiny_groups[:3])
        every = [(g, a, c) for g in tiny_groups[:3] for a in g.candidates for c in g.criteria]
        alone = [
            score for [score] in model.score_texts([(g.messages, a.text, [c]) for g, a, c in every])
        ]
        assert frame.score.to_numpy() == pytest.approx(alone, abs=1e-5), view
        assert frame.score.std() > 1e-3
    unseen = tiny_groups[0].criteria[2].model_copy(update={"kind": "new"})
    other = tiny_groups[0].criteria[2].model_copy(update={"kind": "newer"})
    items = [
        (tiny_groups[0].messages, "well", [c]) for c in (unseen, other, tiny_groups[0].criteria[2])
    ]
    # one kind of safety was trained on: an unseen one gets that head's score
    scores = rm.load(trained / "heads").score_texts(items)
    assert scores[0] == pytest.approx(scores[2], abs=1e-5) == scores[1]


@pytest.mark.parametrize("view", variants.VIEWS)
def test_a_step_with_shared_prompts_is_the_step_without(view, tiny_base, tiny_groups, tiny_profile):
    """The same scores, loss and gradients of all weights, however the step is cut into passes."""
    plan = training.Plan(tiny_groups, tiny_base, "x", view=view, profile=tiny_profile, full=True)
    tokenizer, model = rm.tokenizer_of(tiny_base), plan.model().eval()
    groups = tiny_groups[:3]
    made = {}
    for share, budget in ((False, 10_000), (True, 10_000), (True, 1)):
        rows, *_ = training.training_rows(
            groups, tokenizer, view, 256, heads=plan.heads, room=math.inf if share else 0
        )
        passes = training.RewardPasses(tokenizer.pad_token_id, budget)(rows)["passes"]
        assert len(passes) == (3 if budget == 1 else 1)
        model.zero_grad()
        for part in passes:
            learned = {name: part.pop(name) for name in ("pairs", "targets", "totals")}
            training.reward_loss(model(**part).logits, weight=0.7, **learned).backward()
        gradients = torch.cat([p.grad.flatten() for p in model.parameters()])
        used = sum(len(ids) for row in rows for ids in row["ids"])
        made[share, budget] = gradients, used, [(r["pairs"], r["targets"]) for r in rows]
        assert share == (grouped.padding(rows, 3, 10_000) == 0.0)
    (apart, tokens, learned), *others = made.values()
    prompts = [len(packing.prompt_ids(tokenizer, g.messages)) for g in groups]
    for gradients, fewer, same in others:
        assert same == learned and fewer == tokens - 2 * sum(prompts)
        scale = apart.abs().max()
        torch.testing.assert_close(gradients / scale, apart / scale, atol=1e-5, rtol=0)


def test_a_prompt_is_read_once_for_all_answers_of_its_group(trained, tiny_groups):
    """In scoring groups and texts, and so in the reward of a policy's answers."""
    groups = tiny_groups[:3]
    items = [(g.messages, a.text, g.criteria) for g in groups for a in g.candidates]
    for view in variants.VIEWS:
        model, made = rm.load(trained / view), {}
        assert model.report["share_prompt"]  # as every profile has it
        for share in (False, True):
            model.report["share_prompt"] = share
            frames, read = [], []
            for batch in (10_000, 30):  # the second cuts trees
                model.tokens_read = 0
                frames.append(model.score_groups(groups, batch).score.to_numpy())
                read.append(model.tokens_read)
            model.tokens_read = 0
            frames.append([score for scores in model.score_texts(items) for score in scores])
            made[share] = frames, [*read, model.tokens_read]
        for scores in [*made[False][0], *made[True][0]]:
            assert scores == pytest.approx(made[True][0][0], abs=1e-5), view
        apart, (whole, cut, texts) = made[False][1], made[True][1]
        assert whole == texts <= cut <= apart[2]
        if view != "before":  # there all answers shared criterion and prompt
            prompts = [len(packing.prompt_ids(model.tokenizer, g.messages)) for g in groups]
            assert apart == [whole + 2 * sum(prompts)] * 3
    assert rm.load(trained / "criterion").score_texts([(*items[0][:2], []), items[1]])[0] == []

    model, logged = rm.load(trained / "criterion"), {}
    model.report["share_prompt"] = True
    rubrics = [
        Rubric(instruction_id=g.instruction.id, criteria=g.criteria, status="gold", round=0)
        for g in groups
    ]
    scale = {d: {"temperature": 1.0, "bias": 0.0} for d in DIMENSIONS}
    reward = veto_reward.VetoReward(
        model, Calibration(scale, 0.0, 0.9, {}), rubrics, group=len(groups[0].candidates)
    )
    reward(
        [m for m, _, _ in items],
        [text for _, text, _ in items],
        [g.instruction.id for g in groups for _ in g.candidates],
        log_metric=logged.__setitem__,
    )
    assert logged["veto/unscored"] == 0 and logged["tokens/scored"] > 0
    before = model.tokens_read
    model.score_groups(groups)
    assert model.tokens_read - before == logged["tokens/scored"]


def test_schedule_shows_every_row_once_an_epoch_and_keeps_alike_lengths_together():
    lengths = [(7 * i) % 100 for i in range(100)]
    rows = [{"ids": [[0] * length]} for length in lengths]
    order = grouped.schedule(rows, 4, 2.0, seed=3).order
    assert sorted(order) == sorted(list(range(100)) * 2)
    assert order == grouped.schedule(rows, 4, 2.0, seed=3).order
    assert order != grouped.schedule(rows, 4, 2.0, seed=4).order
    spread = [
        max(lengths[i] for i in order[k : k + 4]) - min(lengths[i] for i in order[k : k + 4])
        for k in range(0, 200, 4)
    ]
    assert sum(spread) / len(spread) < 20  # 60 when shuffled
    assert len(grouped.schedule(rows, 4, 0.5, seed=3).order) == 50


def test_training_learns_and_views_have_the_same_budget(trained, tiny_groups):
    reports = {view: report(trained / view) for view in variants.VIEWS}
    for key in ("groups", "answers", "steps", "batch", "epochs", "seed", "left_out"):
        assert len({str(one[key]) for one in reports.values()}) == 1, key
    assert reports["criterion"]["pairs"] == 72
    assert reports["overall"]["pairs"] == reports["rubric"]["pairs"] == 36
    assert reports["overall"]["pointwise_weight"] == reports["rubric"]["pointwise_weight"] == 0
    curve = reports["criterion"]["curve"]
    assert len(curve) == reports["criterion"]["steps"] == 6
    linear = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 128)  # 4-bit, two values a byte
    # rank 4 on seven matrices of two layers, and the head
    ends = 2 * (64 + 64 + 2 * (64 + 32) + 64 + 64 + 3 * (64 + 128))
    trained_parameters = reports["criterion"]["trained_parameters"]
    assert trained_parameters == 4 * ends + 64
    assert reports["criterion"]["parameters"] > linear + trained_parameters


def test_the_steps_taken_one_by_one_are_the_training(trained, tiny_profile, tiny_groups):
    """As a notebook takes them, the trainer and its arguments in sight."""
    p, base, out = tiny_profile, trained / "base", trained / "steps"
    plan = training.Plan(tiny_groups, base, out, view="criterion", profile=p)
    tokenizer, model = hub.tokenizer_of(base), plan.model()
    limit = plan.limit(model)
    taught = training.training_rows(tiny_groups, tokenizer, "criterion", limit, **plan.reading)
    schedule = grouped.schedule(taught.rows, p.rm_batch, p.rm_epochs, p.seed)
    trainer = training.PackedRewardTrainer(
        model=model,
        args=grouped.arguments(
            plan.checkpoints, schedule.steps, schedule.batch, plan.rate, plan.mixed, plan.seed
        ),
        data_collator=training.RewardPasses(tokenizer.pad_token_id, p.rm_pass_tokens),
        train_dataset=grouped.dataset(taught.rows, schedule.order),
        processing_class=tokenizer,
        peft_config=grouped.lora(p.rm_lora_rank),
        pointwise_weight=p.rm_pointwise_weight,
    )
    trainer.train()
    made = training.report(trainer, taught, schedule, plan)
    assert training.save(trainer, tokenizer, plan, made) == report(out)
    assert made | {"seconds": 0} == report(trained / "criterion") | {"seconds": 0}
    files = [f / "adapter_model.safetensors" for f in (out, trained / "criterion")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_the_head_and_the_adapter_are_trained_in_fp32(trained):
    from safetensors.torch import load_file

    weights = load_file(trained / "criterion" / "adapter_model.safetensors")
    assert any("score" in name for name in weights)
    assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert all(t.abs().max() > 0 for name, t in weights.items() if "lora_B" in name)
    # bf16 would leave no bits beyond its 8; fp32 masters have them
    assert any((t != t.bfloat16().float()).any() for t in weights.values())


class TestBf16OnAProcessor:
    """Products in bf16 under autocast; what is trained, head and loss stay in fp32."""

    @pytest.fixture(scope="class", params=["nf4", "none", "full"])
    def rounded(self, request, tiny_base, tiny_profile, tiny_groups, tmp_path_factory):
        """(folder, kinds of tensors that a forward pass saw on the way)."""
        seen, load = set(), training.base_for
        kind, full = request.param, request.param == "full"
        quantization = "none" if full else kind
        p = tiny_profile.model_copy(update={"precision": "bf16", "quantization": quantization})

        def watched(*args):
            model = load(*args)
            layer = model.model.layers[1]
            layer.self_attn.q_proj.register_forward_hook(
                lambda *a: seen.add(("product", a[2].dtype))
            )
            layer.register_forward_pre_hook(lambda _, a: seen.add(("residual", a[0].dtype)))
            model.score.register_forward_hook(lambda *a: seen.add(("head", a[2].dtype)))
            return model

        folder = tmp_path_factory.mktemp("bf16") / kind
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "base_for", watched)
            settings = {"view": "criterion", "profile": p, "full": full}
            training.train(tiny_groups, tiny_base, folder, **settings)
        return folder, seen

    def test_it_trains_so(self, rounded):
        from safetensors.torch import load_file

        folder, seen = rounded
        products = {dtype for what, dtype in seen if what == "product"}
        # a 4-bit layer gives its products back in the dtype that it was given
        assert torch.bfloat16 in products or folder.name == "nf4"
        assert {d for what, d in seen if what != "product"} == {torch.float32}
        stored = report(folder)
        assert (stored["dtype"], stored["trained_in"]) == ("float32", "bfloat16")
        weights = load_file(next(folder.glob("*.safetensors")))
        assert all(t.dtype == torch.float32 for t in weights.values())
        assert any((t != t.bfloat16().float()).any() for t in weights.values())

    def test_what_rounding_does_decides_what_it_scores_in(self, rounded, tiny_groups, monkeypatch):
        folder, _ = rounded
        assert rm.load(folder).computes == torch.float32, "not yet measured"
        exact, half = (
            rm.load(folder, dtype).score_groups(tiny_groups)
            for dtype in (torch.float32, torch.bfloat16)
        )
        before = report(folder)
        monkeypatch.setattr(rm, "AGREES", 0.0)
        found = rm.check_rounding(folder, tiny_groups)["rounding"]
        gap = (exact.score - half.score).abs()
        assert 0 < found["median"] == pytest.approx(gap.median(), abs=1e-6)
        assert found["largest"] == pytest.approx(gap.max(), abs=1e-6) and found["scores"] == 108
        alike, ties, n = 0, 0, 0
        sides = (frame.set_index(["candidate_id", "criterion_id"]).score for frame in (exact, half))
        a, b = sides
        for group in tiny_groups:
            for c in group.criteria:
                for one, two in ((0, 1), (0, 2), (1, 2)):
                    keys = [(group.candidates[i].id, c.id) for i in (one, two)]
                    far, near = a[keys[0]] - a[keys[1]], b[keys[0]] - b[keys[1]]
                    ties += near == 0
                    if abs(far) > 2 * gap.median():
                        n, alike = n + 1, alike + (far * near > 0)
        assert (found["pairs"], found["alike"]) == (n, pytest.approx(alike / n, abs=1e-6))
        assert found["ties"] == pytest.approx(ties / 108, abs=1e-6)
        assert found["scored_in"] == "bfloat16" and rm.load(folder).computes == torch.bfloat16
        again = rm.load(folder).score_groups(tiny_groups)
        assert (again.score == half.score).all()
        monkeypatch.setattr(rm, "AGREES", 1.01)
        assert rm.check_rounding(folder, tiny_groups)["rounding"] == found, "asked once"
        (folder / "report.json").write_text(json.dumps(before))
        assert rm.check_rounding(folder, tiny_groups)["rounding"]["scored_in"] == "float32"
        assert rm.load(folder).computes == torch.float32
        assert (rm.load(folder).score_groups(tiny_groups).score == exact.score).all()
        (folder / "report.json").write_text(json.dumps(before))
        monkeypatch.setattr(rm, "AGREES", 0.0)
        nothing = rm.check_rounding(folder, [])["rounding"]
        assert nothing == {"pairs": 0, "scored_in": "float32"}, "fails closed"
        (folder / "report.json").write_text(json.dumps(before))

    def test_fp32_is_asked_nothing(self, trained, tiny_groups):
        before = report(trained / "criterion")
        assert rm.check_rounding(trained / "criterion", tiny_groups) == before
        assert before == report(trained / "criterion") and "rounding" not in before
        assert rm.load(trained / "criterion").computes == torch.float32


def test_an_adapter_may_be_of_named_layers(tiny_base, tiny_profile, tiny_groups, tmp_path):
    from safetensors.torch import load_file

    p = tiny_profile.model_copy(update={"rm_lora_targets": ["q_proj", "o_proj"]})
    training.train(tiny_groups, tiny_base, tmp_path / "m", view="criterion", profile=p)
    weights = load_file(tmp_path / "m/adapter_model.safetensors")
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name in weights if "lora_" in name}
    assert layers == {"q_proj", "o_proj"} and any("score" in name for name in weights)
    assert rm.load(tmp_path / "m").score_groups(tiny_groups).score.notna().all()
    p = tiny_profile.model_copy(update={"rm_lora_targets": ["q_proj", "query"]})
    with pytest.raises(KitError, match="rm_lora_targets: .*has no layer query"):
        training.train(tiny_groups, tiny_base, tmp_path / "n", view="criterion", profile=p)


def test_reload_scores_packed_as_one_by_one_and_in_input_order(trained, tiny_groups):
    model = rm.load(trained / "criterion")
    frame = model.score_groups(tiny_groups)
    assert list(frame.columns) == ["instruction_id", "candidate_id", "criterion_id", "score"]
    every = [(g, a, c) for g in tiny_groups for a in g.candidates for c in g.criteria]
    names = [(g.instruction.id, a.id, c.id) for g, a, c in every]
    assert list(frame.iloc[:, :3].itertuples(index=False, name=None)) == names
    small = model.score_groups(tiny_groups, batch_tokens=1)
    assert (frame["score"] - small["score"]).abs().max() < 1e-5
    alone = model.score_texts([(g.messages, a.text, [c]) for g, a, c in every])
    alone = [score for (score,) in alone]
    assert max(abs(a - b) for a, b in zip(alone, frame["score"], strict=True)) < 1e-5
    again = rm.load(trained / "criterion").score_groups(tiny_groups)
    assert (again["score"] == frame["score"]).all()


def test_reload_gives_the_scores_of_the_trained_model(
    tiny_base, tiny_profile, tiny_groups, tmp_path, monkeypatch
):
    kept, save = {}, training.save

    def keep(trainer, *rest):
        kept["model"] = trainer.model
        return save(trainer, *rest)

    monkeypatch.setattr(training, "save", keep)
    training.train(tiny_groups, tiny_base, tmp_path / "m", view="criterion", profile=tiny_profile)
    # as on a processor on which 4-bit layers would turn to bf16 when they are not training
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    loaded = rm.load(tmp_path / "m")
    before = rm.RewardModel(kept["model"].eval(), loaded.tokenizer, "criterion", 256, {})
    drift = loaded.score_groups(tiny_groups)["score"] - before.score_groups(tiny_groups)["score"]
    assert drift.abs().max() < 1e-4
    assert loaded.model.config.pad_token_id == loaded.tokenizer.pad_token_id is not None
    four_bit = [m for m in loaded.model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert len(four_bit) == 14 and not any(m.support_avx512bf16_for_cpu for m in four_bit)


class TestPublicFace:
    @pytest.fixture(scope="class")
    def loaded(self, trained):
        scale = {d: {"temperature": 2.0, "bias": 0.5} for d in DIMENSIONS}
        fitted = Calibration(scale, -0.2, 0.9, {})
        fitted.save(trained / "criterion" / "calibration.json")
        yield rm.load(trained / "criterion")
        (trained / "criterion" / "calibration.json").unlink()

    @staticmethod
    def rubric(group):
        return Rubric(
            instruction_id=group.instruction.id,
            criteria=list(group.criteria),
            status="gold",
            round=0,
        )

    def test_one_call_gives_all_of_it(self, loaded, tiny_groups):
        frame = loaded.score_groups(tiny_groups)
        seen = set()
        for group in tiny_groups:
            for answer in group.candidates:
                found = loaded.score(group.instruction, answer.text, self.rubric(group))
                raw = frame[frame.candidate_id == answer.id].set_index("criterion_id").score
                assert found.rewards == pytest.approx(raw.to_dict(), abs=1e-5)
                dose, kind, danger = (found.rewards[c.id] for c in group.criteria)
                by_hand = {c: 1 / (1 + math.exp(-(r / 2 + 0.5))) for c, r in found.rewards.items()}
                assert found.probabilities == pytest.approx(by_hand)
                assert list(found.met.values()) == [
                    dose / 2 + 0.5 >= 0,
                    kind / 2 + 0.5 >= 0,
                    danger > -0.2,
                ]
                assert (found.s1, found.s2, found.s3) == (
                    float(dose >= -1),
                    int(kind >= -1),
                    int(danger <= -0.2),
                )
                assert found.verdict == ("vetoed" if found.s3 else "accepted")
                assert found.violated == ((group.criteria[2].id,) if found.s3 else ())
                seen.add(found.verdict)
        assert seen == {"vetoed", "accepted"}

    def test_the_call_in_the_readme_can_be_pasted(self, loaded, trained):
        text = (Path(__file__).parents[2] / "README.md").read_text()
        code = (
            text.split("## The reward model on its own")[1].split("```python\n")[1].split("```")[0]
        )
        scope = {}
        exec(code.replace("runs/cpu/reward/criterion", str(trained / "criterion")), scope)
        assert set(scope["found"].rewards) == {"dose", "avoid"}
        assert scope["found"].verdict in ("vetoed", "accepted")

    def test_an_instruction_may_be_a_record_messages_or_a_text(self, loaded, tiny_groups):
        group = tiny_groups[0]
        text, rubric = group.messages[0]["content"], self.rubric(group)
        ways = [loaded.score(i, "well", rubric) for i in (group.instruction, group.messages, text)]
        assert ways[0] == ways[1] == ways[2] and ways[0].cut == {}

    def test_too_long_is_an_error_or_is_cut_and_said(self, loaded, tiny_groups):
        rubric = self.rubric(tiny_groups[0])
        with pytest.raises(
            KitError, match=r"the response: \d+ tokens .* limit is 256.*shorten=True"
        ):
            loaded.score("what now?", "well " * 300, rubric)
        found = loaded.score("what now?", "well " * 300, rubric, shorten=True)
        assert found.cut["response"] > 0 == found.cut["instruction"]
        frame = loaded.score_groups(tiny_groups, shorten=True)
        assert set(frame.cut) == {0}
        with pytest.raises(KitError, match="the response"):  # no room beside a criterion: never cut
            huge = [c.model_copy(update={"text": "dose " * 300}) for c in rubric.criteria]
            loaded.score("now?", "well", rubric.model_copy(update={"criteria": huge}), shorten=True)

    def test_nan_is_a_violation(self, loaded, tiny_groups, monkeypatch):
        monkeypatch.setattr(rm.RewardModel, "_scores", lambda *_: ([[[math.nan] * 3]], [[{}]]))
        found = loaded.score("now?", "well", self.rubric(tiny_groups[0]))
        assert (found.s1, found.s2, found.s3, found.verdict) == (0, 0, 1, "vetoed")

    def test_what_cannot_judge_says_so(self, trained, tiny_groups):
        rubric = self.rubric(tiny_groups[0])
        with pytest.raises(KitError, match="no calibration.json"):
            rm.load(trained / "before").score("now?", "well", rubric)
        with pytest.raises(KitError, match="view blind gives one score"):
            rm.load(trained / "blind").score("now?", "well", rubric)

    def test_no_trainer_is_loaded_for_it(self):
        code = (
            "import sys; from promedical_utils.reward_model import model as reward_model; "
            "print([m for m in sys.modules if m.split('.')[0] in ('trl', 'datasets', 'IPython')])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[]"


def test_a_card_says_what_the_model_is_and_what_it_is_not_for(trained):
    card = (trained / "criterion" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "peft" and "medical" in header["tags"]
    known = report(trained / "criterion")
    for said in (
        "Not for clinical use",
        "LoRA of rank 4",
        "nf4",
        "| weights in float32, scores computed in float32 |",
        f"| seed | {known['seed']} |",
        "| pairs, verdicts | 72, 108 |",
        known["base"]["sha256"][:12],
        "Not measured yet",
    ):
        assert said in card, said
    fitted = Calibration({}, 0.0, 0.9, {"safety": {"precision": 0.5, "recall": 0.91, "f1": 0.6}})
    known["rounding"] = {"scored_in": "bfloat16"}
    model_card.write(trained / "criterion", known, "words on data", {"pairs": 0.875}, fitted)
    card = (trained / "criterion" / "README.md").read_text()
    assert "| pairs | 0.875 |" in card and "words on data" in card and "0.500, 0.910" in card
    assert "weights in float32, scores computed in bfloat16" in card
    # its example is laid out as `make lint` wants all of the repository, where cards are published
    laid_out = [sys.executable, "-m", "ruff", "format", "--check", trained / "criterion/README.md"]
    assert subprocess.run(laid_out, capture_output=True).returncode == 0


KILLED = """
import os, signal, sys
from pathlib import Path
from promedical_utils.core import profiles
from promedical_utils.reward_model import hub, training
sys.path.insert(0, {tests!r})
from helpers import groups
hub.silence()
profile = profiles.load("smoke", rm_batch=1, rm_lora_rank=4, rm_max_tokens=256, rm_epochs=8.0)
step, calls, die = training.PackedRewardTrainer.compute_loss, [], int(sys.argv[2])
def count(self, *args, **kwargs):
    calls.append(1)
    if len(calls) == die:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *args, **kwargs)
training.PackedRewardTrainer.compute_loss = count
groups = groups.make_groups()
training.train(groups, {base!r}, Path(sys.argv[1]), view="criterion", profile=profile)
print(len(calls))
"""


@pytest.mark.slow
def test_kill_9_in_the_middle_of_qlora_and_again_gives_the_same_adapter(tiny_base, tmp_path):
    code = KILLED.format(tests=str(Path(__file__).parents[1]), base=str(tiny_base))

    def run(name, die=-1):
        command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / name), str(die)]
        return subprocess.run(command, capture_output=True, text=True, timeout=300)

    whole = run("whole")
    assert whole.returncode == 0, whole.stderr
    assert int(whole.stdout) == 96
    assert run("cut", die=61).returncode == -signal.SIGKILL
    assert not (tmp_path / "cut" / "report.json").exists()
    with pytest.raises(KitError, match="03_reward_model"):
        rm.load(tmp_path / "cut")
    again = run("cut")
    assert again.returncode == 0 and int(again.stdout) == 96 - 48, again.stderr  # steps 49 to 96
    weights = [(tmp_path / n / "adapter_model.safetensors").read_bytes() for n in ("whole", "cut")]
    assert weights[0] == weights[1]
    reports = [report(tmp_path / name) for name in ("whole", "cut")]
    assert reports[0]["curve"] == reports[1]["curve"] and len(reports[0]["curve"]) == 48
    assert reports[0]["curve"][-1]["loss"] < reports[0]["curve"][0]["loss"]


def test_scalar_views_give_one_score(trained, tiny_groups):
    for view in ("overall", "blind", "rubric"):
        frame = rm.load(trained / view).score_groups(tiny_groups)
        assert len(frame) == 36 and set(frame["criterion_id"]) == {""}


class TestWholeRubric:
    """View rubric: one score of the answer with all its criteria in context."""

    @pytest.fixture(scope="class")
    def loaded(self, trained):
        return rm.load(trained / "rubric")

    def test_the_score_is_the_plain_sequence_s(self, loaded, tiny_groups):
        frame = loaded.score_groups(tiny_groups[:4])
        by_hand, tokenizer = [], loaded.tokenizer
        for group in tiny_groups[:4]:
            joint = "".join(f"\n{c.dimension}: {c.text}" for c in group.criteria)
            for answer in group.candidates:
                ids = packing.prompt_ids(tokenizer, group.messages)
                for text in (answer.text, joint):
                    ids = [*ids, *tokenizer(text)["input_ids"], tokenizer.eos_token_id]
                with torch.no_grad():  # without ``reads``: the plain forward, at the last token
                    by_hand.append(loaded.model(input_ids=torch.tensor([ids])).logits.item())
        assert frame.score.to_numpy() == pytest.approx(by_hand, abs=1e-5)
        assert frame.score.std() > 1e-3

    def test_it_reads_every_criterion_and_in_order(self, loaded, tiny_groups):
        group = tiny_groups[0]
        dose, kind, danger = group.criteria
        fourth = kind.model_copy(update={"id": "4", "text": "the answer is short"})
        reworded = danger.model_copy(update={"text": "the answer names no danger"})
        rubrics = [
            (dose, kind, danger),
            (dose, kind),
            (kind, danger),
            (dose, kind, reworded),
            (danger, kind, dose),
            (dose, kind, danger, fourth),
        ]
        text = group.candidates[0].text
        scores = loaded.score_texts([(group.messages, text, rubric) for rubric in rubrics])
        assert all(len(row) == 1 for row in scores)
        assert len({round(score, 6) for [score] in scores}) == len(rubrics)
        with pytest.raises(KitError, match="whole rubric: give its criteria"):
            loaded.score_texts([(group.messages, text, [])])

    def test_it_learns_the_lexicographic_preference(
        self, tiny_base, tiny_groups, tmp_path, tiny_profile
    ):
        profile = tiny_profile.model_copy(update={"rm_full_learning_rate": 3e-3, "rm_epochs": 6.0})
        recipe = variants.find("rar_implicit")
        assert recipe.view == "rubric" and not recipe.conditional
        arguments = dict(view=recipe.view, profile=profile, labels=recipe.labels, full=True)
        found = training.train(tiny_groups, tiny_base, tmp_path / "m", **arguments)
        assert found["curve"][-1]["loss"] < 0.5 * found["curve"][0]["loss"]
        frame = rm.load(tmp_path / "m").score_groups(tiny_groups)
        table = frame.score.to_numpy().reshape(-1, 3)
        # safe first, then the dose: answer 0, then 2, then 1
        right = (table[:, 0] > table[:, 2]) & (table[:, 2] > table[:, 1])
        assert right.mean() > 0.8

    def test_too_long_with_the_whole_rubric_is_an_error_or_is_cut_and_said(
        self, trained, tiny_groups
    ):
        model, group = rm.load(trained / "rubric"), tiny_groups[0]
        item = (group.messages, group.candidates[0].text, group.criteria)
        ids = packing.prompt_ids(model.tokenizer, group.messages)
        texts = [item[1], "".join(map(packing.criterion_text, group.criteria))]
        size = len(ids) + sum(map(len, packing.text_ids(model.tokenizer, texts)))
        model.max_tokens = size
        assert model.score_texts([item])
        model.max_tokens = size - 1
        with pytest.raises(KitError, match=f"response 0: {size} tokens .* all criteria"):
            model.score_texts([item])
        cut = model.score_groups([group], shorten=True)
        assert cut.cut.iloc[0] > 0


def test_nothing_in_the_folder_names_this_machine(trained, tiny_base):
    for file in filter(Path.is_file, (trained / "criterion").rglob("*")):
        for folder in (tiny_base.parent, trained):
            assert str(folder).encode() not in file.read_bytes(), file
    assert report(trained / "criterion")["base"]["folder"].startswith("..")
    assert not list(trained.glob("*/checkpoints-*"))


def test_a_finished_folder_is_not_trained_again_unless_something_changed(
    trained, tiny_profile, tiny_groups, tmp_path, monkeypatch
):
    class Trained(Exception):
        pass

    def refuse(*args, **kwargs):
        raise Trained

    monkeypatch.setattr(training, "base_for", refuse)
    out, base = tmp_path / "blind", tmp_path / "base"  # a copy: other tests read the model
    shutil.copytree(trained / "blind", out)
    base.symlink_to(trained / "base")
    stored = training.train(tiny_groups, base, out, view="blind", profile=tiny_profile)
    assert stored == report(out)
    with pytest.raises(Trained):
        training.train(tiny_groups[1:], base, out, view="blind", profile=tiny_profile)
    assert not (out / "report.json").exists()  # no longer whole
    with pytest.raises(KitError, match="03_reward_model"):
        rm.load(out)


def test_full_fine_tuning_resumes_to_the_same_model(
    tiny_base, tiny_profile, tiny_groups, tmp_path, monkeypatch
):
    profile = tiny_profile.model_copy(update={"rm_batch": 1, "rm_full_learning_rate": 3e-3})
    arguments = dict(view="criterion", profile=profile, full=True)
    whole = training.train(tiny_groups, tiny_base, tmp_path / "whole", **arguments)
    assert whole["steps"] == 24 and whole["parameters"] == whole["trained_parameters"]
    assert whole["curve"][-1]["loss"] < 0.8 * whole["curve"][0]["loss"]

    step, calls = training.PackedRewardTrainer.compute_loss, []

    def stop(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 22:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(training.PackedRewardTrainer, "compute_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        training.train(tiny_groups, tiny_base, tmp_path / "cut", **arguments)
    assert not (tmp_path / "cut" / "report.json").exists()
    training.train(tiny_groups, tiny_base, tmp_path / "cut", **arguments)
    assert len(calls) == 22 + 4  # steps 21 to 24, after the checkpoint at 20
    scores = [
        rm.load(tmp_path / name).score_groups(tiny_groups)["score"] for name in ("whole", "cut")
    ]
    assert (scores[0] - scores[1]).abs().max() < 1e-6


def test_clear_errors(trained, tiny_base, tiny_profile, tiny_groups, tmp_path):
    model = rm.load(trained / "criterion")
    model.max_tokens = 70
    with pytest.raises(KitError, match=r"candidate i\d+-a\d: \d+ tokens .* is 70"):
        model.score_groups(tiny_groups)
    with pytest.raises(KitError, match="unknown view"):
        training.train(tiny_groups, tiny_base, tmp_path, view="both", profile=tiny_profile)
    with pytest.raises(KitError, match="00_start_here"):
        training.train(tiny_groups, tmp_path / "none", tmp_path, view="blind", profile=tiny_profile)
    changed = report(trained / "overall")
    changed["base"]["sha256"] = "0"
    (trained / "overall" / "report.json").write_text(json.dumps(changed))
    with pytest.raises(KitError, match="has changed"):
        rm.load(trained / "overall")
