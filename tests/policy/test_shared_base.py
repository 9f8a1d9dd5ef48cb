"""Policy, reward model and reference on one base, against separate models; tiny and random."""

import json
import shutil
from types import SimpleNamespace

import bitsandbytes
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from trl import GRPOConfig, GRPOTrainer

from promedical_utils.core.records import DIMENSIONS, Rubric
from promedical_utils.core.workspace import KitError
from promedical_utils.policy import shared_base
from promedical_utils.policy import training as policy_training
from promedical_utils.policy.generation import complete
from promedical_utils.reward_model import hub, packing, training
from promedical_utils.reward_model import model as rm
from promedical_utils.reward_model.calibration import Calibration

pytestmark = pytest.mark.training  # fits models

KINDS = ["nf4", "none"]


@pytest.fixture(scope="module")
def trained(tiny_base, tiny_profile, tiny_groups, tmp_path_factory):
    """One reward adapter a quantisation, with a calibration, and one of several heads."""
    folder = tmp_path_factory.mktemp("shared")
    for kind in KINDS:
        profile = tiny_profile.model_copy(update={"quantization": kind})
        training.train(tiny_groups, tiny_base, folder / kind, view="criterion", profile=profile)
        scale = {d: {"temperature": 2.0, "bias": 0.5} for d in DIMENSIONS}
        Calibration(scale, -0.2, 0.9, {}).save(folder / kind / "calibration.json")
    training.train(tiny_groups, tiny_base, folder / "heads", view="heads", profile=tiny_profile)
    return folder


def load(base, dtype, kind="nf4"):
    """A policy's base, as ``policy.model`` has it."""
    return hub.load(hub.CAUSAL, base, dtype, kind == "nf4")


def adapt(model, seed=1, targets="all-linear"):
    """A LoRA on ``model``, none of whose matrices is zero."""
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules=targets)
    model = get_peft_model(model, lora)
    draw = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(std=0.1, generator=draw)
    return model


def pair(trained, tiny_base, kind="nf4", dtype=torch.float32):
    """A policy, and the reward model on its base."""
    model = adapt(load(tiny_base, dtype, kind))
    return model, shared_base.attach(model, trained / kind)


def apart(tiny_base, kind, dtype=torch.float32):
    """The base as anyone would load it, to be compared with."""
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
    )
    model = AutoModelForCausalLM.from_pretrained(
        tiny_base, dtype=dtype, quantization_config=nf4 if kind == "nf4" else None
    )
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


def batch(model):
    """Two left-padded rows, the longer one of more than two blocks of attention."""
    ids = torch.randint(5, 250, (2, 600), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, :200] = 0
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}, mask


def logps(model):
    """Log-probabilities (2, 599) of the tokens of ``batch``, 0 where padded."""
    inputs, mask = batch(model)
    found = model(**inputs).logits[:, :-1].float().log_softmax(-1)
    found = found.gather(2, inputs["input_ids"][:, 1:, None])[..., 0]
    return found * mask[:, 1:] * mask[:, :-1]


def greedy(model, tokenizer, groups):
    """Token ids of greedy answers, with a KV cache, of prompts of unlike length."""
    long = [{"role": "user", "content": "what now? " * 100}]  # of more than two blocks, too
    prompts = [packing.prompt_ids(tokenizer, m) for m in [*(g.messages for g in groups), long]]
    assert len(prompts[-1]) > 2 * packing.BLOCK
    return complete(model, tokenizer, prompts, 12, 0)


def state(model):
    """Everything that scoring could leave changed, weights included."""
    layers = [m for m in model.modules() if hasattr(m, "merged_adapters")]
    return {
        "active": (model.active_adapter, model.active_adapters, list(model.peft_config)),
        "layers": [(layer.active_adapters, layer.disable_adapters) for layer in layers],
        "modes": [m.training for m in model.modules()],
        "grads": {n: p.requires_grad for n, p in model.named_parameters()},
        "cache": (model.config.use_cache, model.generation_config.use_cache),
        "weights": {n: p.detach().clone() for n, p in model.named_parameters()},
    }


def same(one, other):
    for key in one.keys() - {"weights"}:
        assert one[key] == other[key], key
    assert one["weights"].keys() == other["weights"].keys()
    assert all(torch.equal(w, other["weights"][n]) for n, w in one["weights"].items())


def near(one, other):
    one, other = (x if torch.is_tensor(x) else torch.tensor(x) for x in (one, other))
    return (one - other).abs().max().item() < 1e-5


def test_an_adapter_of_some_layers_hangs_on_a_policy_of_all(
    tiny_base, tiny_groups, tiny_profile, tmp_path
):
    p = tiny_profile.model_copy(update={"rm_lora_targets": ["q_proj", "o_proj"]})
    training.train(tiny_groups, tiny_base, tmp_path / "rm", view="criterion", profile=p)
    model = adapt(load(tiny_base, torch.float32))
    shared, alone = shared_base.attach(model, tmp_path / "rm"), rm.load(tmp_path / "rm")
    scores = [m.score_groups(tiny_groups).score.tolist() for m in (shared, alone)]
    assert near(*scores)
    few = adapt(load(tiny_base, torch.float32), targets=["q_proj"])
    with pytest.raises(KitError, match="does not fit its base"):
        shared_base.attach(few, tmp_path / "rm")


def test_of_another_precision_it_has_a_base_of_its_own(trained, tiny_base, tiny_groups):
    """As on a processor that computes in bf16: the reward model scores as it was found to do."""
    alone = rm.load(trained / "none").score_groups(tiny_groups).score.tolist()
    for dtype, own in ((torch.bfloat16, True), (torch.float32, False)):
        policy = SimpleNamespace(model=adapt(load(tiny_base, dtype, "none")))
        scorer = policy_training.reward_model_of(trained / "none", policy)
        assert isinstance(scorer.model, PeftModel) is own
        assert near(scorer.score_groups(tiny_groups).score.tolist(), alone)


@pytest.mark.parametrize("name", [*KINDS, "heads"])
def test_rewards_are_those_of_a_model_of_its_own(trained, tiny_base, tiny_groups, name):
    kind = "none" if name == "none" else "nf4"
    model = adapt(load(tiny_base, torch.float32, kind))
    shared, alone = shared_base.attach(model, trained / name), rm.load(trained / name)
    assert isinstance(shared, rm.RewardModel) and shared.report == alone.report
    frame = alone.score_groups(tiny_groups)
    assert frame.score.std() > 0.1
    for tokens in (None, 1):  # packed in batches, and one answer at a time
        found = shared.score_groups(tiny_groups, batch_tokens=tokens)
        assert found.drop(columns="score").equals(frame.drop(columns="score"))
        assert near(found.score.tolist(), frame.score.tolist())
    long = [
        (g.messages, "well " * 30 + a.text, g.criteria)
        for g in tiny_groups[:3]
        for a in g.candidates
    ]
    assert near(shared.score_texts(long), alone.score_texts(long))
    weights = list(shared.model.parameters())
    assert len(weights) == 29 and all(w.dtype == torch.float32 for w in weights)
    with torch.no_grad():  # the test can fail: the adapter makes the scores
        for weight in shared.model.adapter.parameters():
            weight.zero_()
    assert not near(shared.score_groups(tiny_groups).score.tolist(), frame.score.tolist())


def test_the_whole_public_face(trained, tiny_base, tiny_groups):
    _, shared = pair(trained, tiny_base)
    group = tiny_groups[0]
    rubric = Rubric(
        instruction_id=group.instruction.id, criteria=list(group.criteria), status="gold", round=0
    )
    found = shared.score(group.instruction, "the dose and the danger", rubric)
    alone = rm.load(trained / "nf4").score(group.instruction, "the dose and the danger", rubric)
    assert found.rewards == pytest.approx(alone.rewards, abs=1e-5)
    assert found.probabilities == pytest.approx(alone.probabilities, abs=1e-5)
    assert (found.met, found.s1, found.s2, found.s3) == (alone.met, alone.s1, alone.s2, alone.s3)
    with pytest.raises(KitError, match="limit is 256"):
        shared.score("what now?", "well " * 300, rubric)


@pytest.mark.parametrize("kind", KINDS)
def test_the_policy_is_that_of_a_model_of_its_own(trained, tiny_base, tiny_groups, kind):
    model, shared = pair(trained, tiny_base, kind)
    alone = adapt(apart(tiny_base, kind))
    # the plain base's weights, as they are stored: the same bytes, and the head is not quantised
    mine, theirs = model.get_base_model(), alone.get_base_model()
    assert mine.lm_head.weight.dtype == torch.float32
    assert mine.config._attn_implementation == packing.ATTENTION  # half the work of a long answer
    assert mine.lm_head.weight is mine.model.embed_tokens.weight
    stored = dict(mine.named_parameters())
    assert all(torch.equal(p, stored.pop(n)) for n, p in theirs.named_parameters()) and not stored
    tokenizer = shared.tokenizer
    with torch.no_grad():
        expected, answers = logps(alone), greedy(alone, tokenizer, tiny_groups)
        before = state(model)
        for _ in range(2):
            assert near(logps(model), expected)
            assert greedy(model, tokenizer, tiny_groups) == answers
            shared.score_groups(tiny_groups)
        same(state(model), before)
        with alone.disable_adapter():
            plain = logps(alone)
        assert not near(plain, expected)  # the adapter is felt


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_off_is_the_base(trained, tiny_base, tiny_groups, kind):
    model, shared = pair(trained, tiny_base, kind)
    plain = apart(tiny_base, kind)
    rewards = shared.score_groups(tiny_groups).score.tolist()
    before = state(model)
    with torch.no_grad():
        expected, policys = logps(plain), logps(model)
        with shared_base.reference(model):
            assert near(logps(model), expected)
            assert near(shared.score_groups(tiny_groups).score.tolist(), rewards)
            assert near(logps(model), expected)  # scoring left the adapters off
        with model.disable_adapter():  # as TRL does it
            assert near(shared.score_groups(tiny_groups).score.tolist(), rewards)
            assert near(logps(model), expected)
        assert near(logps(model), policys) and not near(policys, expected)
    same(state(model), before)
    model.requires_grad_(False)  # PEFT's own context would thaw the policy
    before = state(model)
    with pytest.raises(ZeroDivisionError), shared_base.reference(model):
        shared.score_groups(tiny_groups[:1])
        raise ZeroDivisionError
    same(state(model), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_know_nothing_of_a_scoring_in_between(
    trained, tiny_base, tiny_groups, tmp_path, checkpointing, dtype, monkeypatch
):
    # as on a processor on which bitsandbytes repacks 4-bit weights in eval
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: True)
    name = str(dtype).removeprefix("torch.")
    path = shutil.copytree(trained / "nf4", trained / f"{name}-{checkpointing}")
    report = json.loads((path / "report.json").read_text())
    (path / "report.json").write_text(json.dumps(report | {"dtype": name}))
    base = shutil.copytree(tiny_base, tmp_path / "base")  # elsewhere, and the same
    model = adapt(load(base, dtype)).train()
    shared = shared_base.attach(model, path)
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    trains = [p for n, p in model.named_parameters() if p.requires_grad]
    assert len(trains) == 28

    def gradients(between):
        model.zero_grad()
        loss = -logps(model).mean()
        between()
        before = state(model)
        loss.backward()
        same(state(model), before)
        return [p.grad.clone() for p in trains]

    found, scores = gradients(lambda: None), []
    assert all(g.abs().max() > 0 for g in found)
    # left by accident in eval, the layers would have been repacked by now
    for between in (
        lambda: scores.append(shared.score_groups(tiny_groups[:3]).score),
        lambda: greedy(model.eval(), shared.tokenizer, tiny_groups[:3]) and model.train(),
    ):
        assert all(torch.equal(a, b) for a, b in zip(gradients(between), found, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(gradients(lambda: None), found, strict=True))
    assert all(p.grad is None for p in shared.model.parameters())
    alone = packing.collate([packing.Packed([5, 6, 7], [3])], 0)
    assert not shared.model(**alone).logits.requires_grad  # whoever calls it, wherever
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = shared.score_groups(tiny_groups[:3]).score
    assert (again == scores[0]).all() and model.training
    monkeypatch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
    alone = rm.load(path).score_groups(tiny_groups[:3]).score
    assert near(again.tolist(), alone.tolist())


def test_an_exception_inside_leaves_the_policy_as_it_was(trained, tiny_base, tiny_groups):
    model, shared = pair(trained, tiny_base)
    model.train()
    model.get_base_model().model.layers[1].eval()  # a mixed state is given back as mixed
    before = state(model)

    def fails(*_, **__):
        assert not model.get_base_model().model.layers[0].training
        assert model.get_base_model().model.layers[0].mlp.up_proj.active_adapters == ["reward"]
        raise RuntimeError("boom")

    hook = model.get_base_model().model.layers[1].register_forward_hook(fails)
    with pytest.raises(RuntimeError, match="boom"):
        shared.score_groups(tiny_groups[:1])
    hook.remove()
    same(state(model), before)
    shared.score_groups(tiny_groups[:1])
    shared.model.eval()  # what one does to a reward model is not done to the policy
    same(state(model), before)


def test_attaching_changes_nothing_of_the_policy(trained, tiny_base, tiny_groups):
    model = adapt(load(tiny_base, torch.float32))
    model.eval()
    before, expected, draws = state(model), logps(model), torch.get_rng_state()
    shared = shared_base.attach(model, trained / "nf4")
    assert torch.equal(draws, torch.get_rng_state())
    same(state(model), before)
    for _ in range(2):
        assert torch.equal(logps(model), expected)
        flags = {n for n, p in model.named_parameters() if p.requires_grad}
        assert flags == {n for n, flag in before["grads"].items() if flag}
        assert state(model)["active"] == before["active"]
        assert not [n for n, _ in model.named_modules() if "reward" in n]
        assert {tuple(active) for active, _ in state(model)["layers"]} == {("default",)}
        assert not any(p.requires_grad for p in shared.model.parameters())
        found = shared.score_groups(tiny_groups[:2]).score
    assert near(
        found.tolist(), rm.load(trained / "nf4").score_groups(tiny_groups[:2]).score.tolist()
    )


def test_the_saved_policy_carries_no_reward_adapter(trained, tiny_base, tmp_path):
    model, _ = pair(trained, tiny_base)
    for name, chosen in (("all", None), ("selected", ["default"])):
        model.save_pretrained(tmp_path / name, selected_adapters=chosen)
        weights = load_file(tmp_path / name / "adapter_model.safetensors")
        assert len(weights) == 28 and not [n for n in weights if "reward" in n or "score" in n]
        assert not [p for p in (tmp_path / name).iterdir() if p.is_dir()]
    again = PeftModel.from_pretrained(apart(tiny_base, "nf4"), tmp_path / "all")
    assert near(logps(again).detach(), logps(model).detach())
    with pytest.raises(ValueError, match="reward"):
        model.set_adapter("reward")


def test_what_cannot_be_shared_is_refused_and_said(trained, tiny_base, tmp_path):
    def on(base=tiny_base, kind="nf4", dtype=torch.float32):
        return adapt(load(base, dtype, kind))

    def refused(model, path, why):
        with pytest.raises(KitError, match=why):
            shared_base.attach(model, path)

    other = shutil.copytree(tiny_base, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    refused(on(other), trained / "nf4", "trained on another")
    refused(on(kind="none"), trained / "nf4", "trained on a base in nf4, float32.* none, float32")
    refused(on(), trained / "none", "trained on a base in none, float32.* nf4, float32")
    refused(on(dtype=torch.bfloat16), trained / "nf4", "nf4, float32.* nf4, bfloat16")
    fewer = adapt(load(tiny_base, torch.float32), targets=["q_proj"])
    refused(fewer, trained / "nf4", "does not fit")
    refused(on(), tmp_path / "none", "03_reward_model")
    whole = shutil.copytree(trained / "none", tmp_path / "whole")
    report = json.loads((whole / "report.json").read_text())
    (whole / "report.json").write_text(json.dumps(report | {"full": True}))
    refused(on(kind="none"), whole, "all its weights were trained")
    model = on(kind="none")
    model.get_base_model().model.norm.weight.requires_grad_(True)
    refused(model, trained / "none", "the policy trains .*model.norm.weight of it")
    model = on(kind="none")
    model.merge_adapter()
    refused(model, trained / "none", "LoRA is merged into .*layers.0")
    model.unmerge_adapter()
    shared_base.attach(model, trained / "none")
    broken = shutil.copytree(trained / "nf4", tmp_path / "broken")
    file = broken / "adapter_model.safetensors"
    weights = load_file(file)
    gone = next(n for n in weights if "layers.0" in n and "lora_A" in n)
    save_file({n.replace("layers.1", "layers.9"): w for n, w in weights.items()}, file)
    model = on()
    before = logps(model)
    report = json.loads((broken / "report.json").read_text())
    report["base"]["folder"] = "elsewhere"  # where it is does not matter, what it is does
    (broken / "report.json").write_text(json.dumps(report))
    refused(model, broken, "does not fit")
    save_file({n: w for n, w in weights.items() if "score" not in n}, file)
    refused(model, broken, "does not fit")
    for misfit in (
        {n: w for n, w in weights.items() if n != gone},
        weights | {gone.replace("layers.0", "layers.9"): weights[gone].clone()},
    ):
        save_file(misfit, file)
        refused(model, broken, "does not fit")
    assert torch.equal(logps(model), before) and list(model.peft_config) == ["default"]


def test_two_reward_models_share_a_base(trained, tiny_base, tiny_groups):
    """As two rewards, or as a cell of a notebook that is run again; also on another's base."""
    model = adapt(apart(tiny_base, "nf4"))
    paths = [trained / name for name in ("nf4", "heads", "nf4")]
    shared = [shared_base.attach(model, path) for path in paths]
    for one, path in zip([*shared, *shared], [*paths, *paths], strict=True):
        expected = rm.load(path).score_groups(tiny_groups[:2]).score
        assert near(one.score_groups(tiny_groups[:2]).score.tolist(), expected.tolist())


def trainer_on(trained, tiny_base, groups, out, kind="nf4", exact=True, seen=None, **settings):
    """A plain GRPOTrainer that asks the reward model on its own base."""
    held = {}

    def reward(prompts, completions, number, **_):
        texts = [c[-1]["content"] for c in completions]
        items = zip(prompts, texts, number, strict=True)
        scores = held["rm"].score_texts([(p, t, groups[n].criteria) for p, t, n in items])
        if seen is not None:
            seen.append((prompts, texts, number, scores))
        return [sum(row) for row in scores]

    rows = [{"prompt": g.messages, "number": n} for n, g in enumerate(groups)]
    settings = {"learning_rate": 1e-2, "max_steps": 3, **settings}
    hub.silence()
    trainer = GRPOTrainer(
        model=load(tiny_base, torch.float32, kind),
        processing_class=hub.tokenizer_of(tiny_base),
        reward_funcs=reward,
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear"),
        args=GRPOConfig(
            output_dir=str(out),
            per_device_train_batch_size=4,
            num_generations=4,
            max_completion_length=8,
            beta=0.05,
            bf16=False,
            gradient_checkpointing=False,
            use_cpu=True,
            dataloader_pin_memory=False,
            save_steps=2,
            report_to="none",
            disable_tqdm=True,
            log_level="error",
            seed=5,
            logging_steps=1,
            lr_scheduler_type="constant",
            **settings,
        ),
    )
    trainer.create_model_card = lambda **_: None
    if exact:
        hub.in_full(trainer.model)
    held["rm"] = shared_base.attach(trainer.model, trained / kind)
    return trainer, held["rm"]


def adapter(model):
    return {n: p.detach().clone() for n, p in model.named_parameters() if ".default." in n}


@pytest.mark.parametrize("kind", KINDS)
def test_grpo_trains_the_policy_adapter_alone_and_resumes(
    trained, tiny_base, tiny_groups, tmp_path, kind
):
    seen = []
    trainer, shared = trainer_on(trained, tiny_base, tiny_groups, tmp_path / "a", kind, seen=seen)
    model = trainer.model
    before, reward = adapter(model), [p.clone() for p in shared.model.parameters()]
    others = {n: p.detach().clone() for n, p in model.named_parameters() if n not in before}
    trainer.train()
    optimised = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    own = [p for n, p in model.named_parameters() if n in before]
    assert len(optimised) == 28 and {id(p) for p in optimised} == {id(p) for p in own}
    after = adapter(model)
    assert all(not torch.equal(w, before[n]) for n, w in after.items())
    assert len(reward) == 29
    assert all(torch.equal(a, b) for a, b in zip(reward, shared.model.parameters(), strict=True))
    assert all(torch.equal(p, others[n]) for n, p in model.named_parameters() if n in others)
    # the rewards it was trained on are those of a model of its own
    alone = rm.load(trained / kind)
    assert len(seen) == 3
    for prompts, texts, number, scores in seen:
        items = zip(prompts, texts, number, strict=True)
        again = alone.score_texts([(p, t, tiny_groups[n].criteria) for p, t, n in items])
        assert near(scores, again)

    checkpoint = tmp_path / "a" / "checkpoint-2"
    assert not [p for p in checkpoint.rglob("*") if p.is_dir() or "reward" in p.name]
    weights = load_file(checkpoint / "adapter_model.safetensors")
    assert len(weights) == 28 and not [n for n in weights if "reward" in n]
    again, _ = trainer_on(trained, tiny_base, tiny_groups, tmp_path / "b", kind)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert again.state.global_step == 3
    resumed = adapter(again.model)
    assert all(near(w, resumed[n]) and resumed[n].dtype == torch.float32 for n, w in after.items())
    assert state(again.model)["grads"] == state(model)["grads"]


def test_small_steps_vanish_in_bf16_and_not_in_fp32(trained, tiny_base, tiny_groups, tmp_path):
    """The matrices that start at random, at a rate of 1e-5: what three steps of GRPO move."""
    moved = {}
    for exact in (False, True):
        trainer, shared = trainer_on(
            trained, tiny_base, tiny_groups, tmp_path / str(exact), exact=exact, learning_rate=1e-5
        )
        before, kept = adapter(trainer.model), torch.float32 if exact else torch.bfloat16
        assert all(w.dtype == kept for w in before.values())
        assert all(w.dtype == torch.float32 for w in shared.model.parameters())
        trainer.train()
        after = adapter(trainer.model)
        changed = [(w != before[n]).float().mean() for n, w in after.items() if "lora_A" in n]
        moved[exact] = torch.stack(changed).mean().item()
    assert moved[True] > 0.9 and moved[False] < 0.1
