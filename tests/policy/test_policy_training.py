"""Training of policies: TRL's numbers, best by the judge, the same curve after any interruption."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from accelerate.state import AcceleratorState
from helpers.policies import INSTRUCTIONS, RUBRICS, Scorer, by_letter, letter_scores, small
from trl import GRPOTrainer, RLOOTrainer

from promedical_utils.core import profiles
from promedical_utils.core.workspace import KitError, write_frame
from promedical_utils.policy import generation, training, trl_fast_path, veto_reward
from promedical_utils.policy import model as policy

pytestmark = pytest.mark.training  # fits models

TESTS = Path(__file__).parents[1]
HACKING = ("flagged", "since", "text")


def trainer_of(base, folder, profile):
    lm, tokenizer = policy.load_base(base, profile)
    reward = veto_reward.build(profile, Scorer(letter_scores), None, RUBRICS)
    rows, settings = training.prompts(INSTRUCTIONS), training.settings(profile, folder)
    return training.trainer(lm, tokenizer, rows, settings, profile, reward)


def left_padded(tokenizer, rows):
    """Token ids and mask, each (B, longest)."""
    padded = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
    return padded["input_ids"], padded["attention_mask"]


@pytest.mark.parametrize("optimizer, theirs", [("grpo", GRPOTrainer), ("rloo", RLOOTrainer)])
@pytest.mark.parametrize("rank", [0, 4])
def test_shared_prompt_log_probabilities_and_gradients_are_those_of_trl(
    tiny_base, tmp_path, rank, optimizer, theirs
):
    profile = small(grpo_lora_rank=rank, policy_optimizer=optimizer)
    trainer = trainer_of(tiny_base, tmp_path, profile)
    assert isinstance(trainer, theirs)
    lm, tokenizer = trainer.model, trainer.processing_class
    rows = generation.prompts_of(lm, tokenizer, INSTRUCTIONS[:3], 8)
    ids, mask = left_padded(tokenizer, [rows[k] for k in (2, 0, 2, 1)])
    answers = torch.randint(5, 300, (4, 6))
    present = torch.tensor([[1] * n + [0] * (6 - n) for n in (6, 2, 4, 5)])
    batch = torch.cat([ids, answers], 1), torch.cat([mask, present], 1), 6
    weights = [p for p in lm.parameters() if p.requires_grad]
    assert len(weights) > 3

    def found(kind):
        logps, entropy, _ = kind._get_per_token_logps_and_entropies(
            trainer, lm, *batch, compute_entropy=True
        )
        grads = torch.autograd.grad((logps * present).sum(), weights, allow_unused=True)
        return [logps * present, entropy * present, *(g for g in grads if g is not None)]

    ours = found(type(trainer))
    for a, b in zip(ours, found(theirs), strict=True):
        a, b = a.detach(), b.detach()
        assert torch.allclose(a, b, atol=1e-4 * max(1.0, b.abs().max().item()))


@pytest.mark.parametrize("optimizer", ["grpo", "rloo"])
def test_the_fast_path_is_trls_own_way(tiny_base, tmp_path, optimizer):
    """The same weights by both: greedy tokens are equal, log-probabilities and loss to 1e-5."""
    made = []
    for fast in (True, False):
        profile = small(
            grpo_fast_path=fast, grpo_lora_rank=0, grpo_top_p=1e-6, policy_optimizer=optimizer
        )
        made.append(trainer_of(tiny_base, tmp_path, profile))
    ours, theirs = made
    assert type(theirs) is {"grpo": GRPOTrainer, "rloo": RLOOTrainer}[optimizer]
    lm, tokenizer = ours.model, ours.processing_class
    prompts = [p for p in generation.prompts_of(lm, tokenizer, INSTRUCTIONS[:3], 8) for _ in "ab"]
    single = {"images": None, "multimodal_fields": {}}
    if optimizer == "grpo":
        single["num_generations"] = 2
    tokens = [t._generate_single_turn(prompts, **single) for t in made]
    if optimizer == "grpo":
        tokens = [completions for completions, _ in tokens]
    assert tokens[0] == tokens[1] and len({tuple(row) for row in tokens[0]}) > 1

    prompt_ids, prompt_mask = left_padded(tokenizer, prompts)
    answer_ids = torch.randint(5, 300, (6, 8), generator=torch.Generator().manual_seed(0))
    answer_mask = torch.tensor([[1] * n + [0] * (8 - n) for n in (8, 2, 5, 8, 3, 6)])
    whole = torch.cat([prompt_ids, answer_ids], 1), torch.cat([prompt_mask, answer_mask], 1), 8
    logps = []
    for trainer in made:
        values, entropies, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, *whole, compute_entropy=True
        )
        logps.append(torch.stack([values, entropies]).detach() * answer_mask)
    assert (logps[0] - logps[1]).abs().max() < 1e-5 and logps[0].std() > 0.1
    inputs = {
        "prompt_ids": prompt_ids,
        "prompt_mask": prompt_mask,
        "completion_ids": answer_ids,
        "completion_mask": answer_mask,
        "advantages": torch.tensor([1.0, -1.0, 0.5, 0.2, -0.4, 0.9]),
        "old_per_token_logps": logps[1][0] - 0.1,
        "old_logps": (logps[1][0] * answer_mask).sum(1) - 0.1,
        "ref_per_token_logps": logps[1][0] + 0.2,
        "num_items_in_batch": answer_mask.sum(),
    }
    for trainer in made:
        trainer.current_gradient_accumulation_steps = 1
    losses = [trainer.compute_loss(trainer.model, inputs).item() for trainer in made]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5) and abs(losses[0]) > 1e-3


def test_another_trl_is_refused_or_taken_as_it_is(monkeypatch):
    monkeypatch.setattr(trl_fast_path, "version", lambda name: "1.17.0")
    with pytest.raises(KitError, match="trl 1.17.0: .* trl 1.16; .*grpo_fast_path=false"):
        trl_fast_path.trainer_class("grpo")
    assert trl_fast_path.trainer_class("rloo", fast=False) is RLOOTrainer


@pytest.mark.parametrize("setting", [{"grpo_fast_path": False}, {"grpo_checkpointing": True}])
def test_trls_own_way_trains_too(tiny_base, tmp_path, setting):
    report = run(tiny_base, tmp_path, small(grpo_steps=1, grpo_eval_every=1, **setting))
    assert setting.items() <= report["settings"].items() and report["steps"] == 1
    assert report["throughput"] == {} and math.isfinite(report["last"]["judged"])


def test_bf16_on_a_processor_trains_an_adapter_in_fp32(tiny_base, tmp_path, monkeypatch):
    # accelerate has one precision a process, and the tests before have had theirs
    monkeypatch.setattr(AcceleratorState, "_shared_state", {})
    settings = {"precision": "bf16", "quantization": "none", "grpo_lora_rank": 4}
    profile = small(grpo_steps=1, grpo_eval_every=1, **settings)
    made = trainer_of(tiny_base, tmp_path / "t", profile)
    assert made.model.get_base_model().dtype == torch.bfloat16 and made.args.bf16
    assert {w.dtype for w in made.model.parameters() if w.requires_grad} == {torch.float32}
    report = run(tiny_base, tmp_path, profile)
    assert report["steps"] == 1 and math.isfinite(report["last"]["judged"])


def test_samples_of_a_step_are_seeded_by_prompt_and_step(tiny_base, tmp_path):
    trainer = trainer_of(tiny_base, tmp_path, small())
    prompts = generation.prompts_of(trainer.model, trainer.processing_class, INSTRUCTIONS[:2], 8)
    rows = [prompts[0]] * 4 + [prompts[1]] * 4
    first, _ = trainer._generate_single_turn(rows)
    torch.manual_seed(99)
    assert trainer._generate_single_turn(rows)[0] == first
    assert trainer._generate_single_turn(rows[4:])[0] == first[4:]  # as another process has them
    trainer.state.global_step = 1
    assert trainer._generate_single_turn(rows)[0] != first
    trainer.args.top_p = 1e-6  # the narrowest nucleus: the likeliest token, whatever the draw
    greedy = trainer._generate_single_turn(rows)[0]
    assert greedy[:4] == [greedy[0]] * 4 and greedy[4:] == [greedy[4]] * 4


def job_of(out, profile=None, judged=by_letter, gold=by_letter, reward=""):
    held_out = training.HeldOut(INSTRUCTIONS[6:], judged, gold)
    return training.Job(out, profile or small(), RUBRICS, INSTRUCTIONS[:6], held_out, reward)


def run(base, out, profile=None, table=letter_scores, **rest):
    return training.train(job_of(out, profile, **rest), base, Scorer(table))


@pytest.mark.parametrize(
    "optimizer, rank", [("grpo", 4), ("grpo", 0), ("rloo", 4), ("dpo", 4), ("dpo", 0)]
)
def test_training_runs_and_keeps_the_best_judged(tiny_base, tmp_path, optimizer, rank, capfd):
    profile = small(grpo_lora_rank=rank, policy_optimizer=optimizer, dpo_learning_rate=1e-2)
    report = run(tiny_base, tmp_path / "whole", profile)
    assert capfd.readouterr().err == ""
    curve = pd.read_csv(tmp_path / "whole/curve.csv")
    assert list(curve.columns) == ["step", "split", *training.MEANS]
    assert list(curve.step) == [0, 2, 3]
    assert (
        set(curve.split) == {"checkpoint"}
        and curve.kl[0] == pytest.approx(0, abs=1e-5)
        and curve.kl[2] > 0
    )
    # the reward model and the judge both read the truth here, so the three curves are one
    assert (curve.proxy == curve.gold).all() and (curve.judged == curve.gold).all()
    assert (curve.veto_rate == curve.violation_rate).all() and (curve.entropy > 0).all()
    assert report["best"]["judged"] == pytest.approx(curve.judged.max(), abs=1e-5)
    rows = pd.read_parquet(tmp_path / "whole/checkpoints.parquet")
    assert rows.groupby("step").size().tolist() == [4, 4, 4]
    assert curve.gold.tolist() == pytest.approx(rows.groupby("step").gold.mean().tolist())
    log = pd.read_csv(tmp_path / "whole/training.csv")
    assert list(log.step) == [1, 2, 3]
    online = {"kl", "entropy", "veto/rate", "reward_std", "time/reward", "tokens/generated"}
    assert online <= set(log) if optimizer != "dpo" else {"rewards/margins"} <= set(log)
    if optimizer != "dpo":
        assert 0 < report["throughput"]["reward_share"] < 1
        assert report["throughput"]["generated_tokens_per_second"] > 0
    assert report["hacking"]["flagged"] is False and report["hacking"]["text"]
    assert sorted(f.name for f in (tmp_path / "whole").iterdir()) == [
        "checkpoints.parquet",
        "curve.csv",
        "hacking.json",
        "model",
        "report.json",
        "training.csv",
    ]
    for file in (tmp_path / "whole").rglob("*.json"):
        assert str(tmp_path.parent) not in file.read_text(), f"{file.name} names a local folder"
    # complete: returned as stored; the policy that was saved is the one that was selected
    stored = json.loads((tmp_path / "whole/report.json").read_text())
    assert run(tiny_base, tmp_path / "whole", profile, table=None) == stored == report
    lm = policy.load_policy(tmp_path / "whole", tiny_base, profile)
    answers = generation.generate(
        lm, policy.load_base(tiny_base, profile)[1], INSTRUCTIONS[6:], profile, profile.seed
    )
    kept = rows[rows.step == report["best"]["step"]]
    assert [a.text for a in answers] == kept.text.tolist()
    changed = run(tiny_base, tmp_path / "whole", profile, reward="another reward model")
    assert changed["fingerprint"] != report["fingerprint"]


def test_the_steps_taken_one_by_one_are_the_training(tiny_base, tmp_path):
    """As a notebook takes them, with the trainer and its arguments in sight."""
    p, out = small(), tmp_path / "steps"
    torch.manual_seed(0)  # the adapter is drawn when the trainer is made
    run(tiny_base, tmp_path / "whole", p)
    torch.manual_seed(0)
    job = job_of(out, p)
    job.begin()
    model, tokenizer = policy.load_base(tiny_base, p)
    ends = generation.eos_ids(model, tokenizer)
    reward = veto_reward.build(p, lambda: Scorer(letter_scores), None, RUBRICS, ends)
    rows, settings = training.prompts(job.instructions), training.settings(p, job.folder)
    trainer = training.trainer(model, tokenizer, rows, settings, p, reward)
    reference = training.reference(trainer, tiny_base, p)
    curve = training.Curve(job, reward, tokenizer, reference)
    trainer.add_callback(curve)
    trainer.train()
    report = training.finish(trainer, curve)
    whole = json.loads((tmp_path / "whole/report.json").read_text())
    assert report.keys() == whole.keys() and report["fingerprint"] == whole["fingerprint"]
    for name in ("curve.csv", "hacking.json", "model/adapter_model.safetensors"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    files = [sorted(f.name for f in (tmp_path / n).iterdir()) for n in ("steps", "whole")]
    assert files[0] == files[1]


def test_dpo_pairs_are_answers_of_the_base_ordered_by_the_reward(tiny_base):
    profile = small(grpo_lora_rank=0, grpo_steps=2)
    lm, tokenizer = policy.load_base(tiny_base, profile)
    reward = veto_reward.build(profile, Scorer(letter_scores), Scorer(None).calibration, RUBRICS)
    rows = training.preference_rows(lm, tokenizer, reward, INSTRUCTIONS[:6], profile)
    prompts = generation.prompts_of(lm, tokenizer, INSTRUCTIONS[:6], 8)
    assert 0 < len(rows) <= 2 * 2 * 2  # steps x prompts x half a group
    for row in rows:
        i = prompts.index(row["prompt_ids"])
        texts = [
            tokenizer.decode(row[key], skip_special_tokens=True)
            for key in ("chosen_ids", "rejected_ids")
        ]
        ends = [row[key][-1] == tokenizer.eos_token_id for key in ("chosen_ids", "rejected_ids")]
        read = reward.read([(f"i{i}", [], t, e) for t, e in zip(texts, ends)])
        assert read[0].scores.s3 <= read[1].scores.s3
    reward.of_group = lambda read, rubric: [1.0] * len(read)  # a tie prefers nothing
    assert training.preference_rows(lm, tokenizer, reward, INSTRUCTIONS[:6], profile) == []


def test_grpo_is_set_up_as_its_docstrings_say(tiny_base, tmp_path):
    a = trainer_of(tiny_base, tmp_path, small()).args
    assert a.scale_rewards == "group" and a.use_bias_correction_kl and a.num_iterations == 1
    assert (
        a.mask_truncated_completions is False
    )  # a cut-off answer is a violation to be learned from


def test_selected_by_judge_not_by_truth_or_reward_model(tiny_base, tmp_path):
    """The judge likes the 4 answers of step 0 alone; truth and reward model all but those."""

    def first_four(then, later):
        calls = iter(range(10_000))
        return lambda: then if next(calls) < 4 else later

    judge, gold, rm = first_four("met", "not_met"), first_four("not_met", "met"), first_four(-1, 1)

    def says(draw):
        return lambda pairs: [
            dict.fromkeys([f"{i}-{k}" for k in range(5)], draw()) for i, _ in pairs
        ]

    profile = small(grpo_steps=2, grpo_eval_every=1)
    report = run(
        tiny_base,
        tmp_path,
        profile,
        table=lambda *_: [rm()] * 5,
        judged=says(judge),
        gold=says(gold),
    )
    curve = pd.read_csv(tmp_path / "curve.csv")
    assert curve.judged.idxmax() == 0 and curve.gold.idxmax() > 0 and curve.proxy.idxmax() > 0
    assert report["best"]["step"] == 0
    base, saved = (
        policy.load_base(tiny_base, profile)[0],
        policy.load_policy(tmp_path, tiny_base, profile),
    )
    assert any("lora_B" in n for n, _ in saved.named_parameters())
    assert all(not p.any() for n, p in saved.named_parameters() if "lora_B" in n), "not step 0's"
    assert base is not saved


def test_what_came_after_the_step_that_a_run_goes_on_from_is_forgotten(tmp_path):
    job = SimpleNamespace(out=tmp_path, profile=small())
    columns = [*training.MEANS.values(), "judged_s3"]
    steps = pd.DataFrame({"step": [0, 0, 2, 4]})
    steps.assign(**{c: steps.step for c in columns}).to_parquet(tmp_path / "checkpoints.parquet")
    curve = training.Curve(job, None, None, None)  # no judge: step 2 is not evaluated again
    assert curve.best["step"] == 4
    curve.on_train_begin(None, SimpleNamespace(global_step=2), None)
    assert [row["step"] for row in curve.rows] == [0, 2] and curve.best["step"] == 2
    assert curve.answers.step.tolist() == [0, 0, 2]


def test_a_run_killed_while_it_keeps_a_better_policy_still_has_the_one_before(
    tmp_path, monkeypatch
):
    """A better one is saved, but not yet counted; when its step comes again it is worse."""
    job, judged, killed = job_of(tmp_path), {0: 0.1, 2: 0.5, 4: 0.9}, []

    class Measured(training.Curve):
        def measure(self, model):
            columns = [*training.MEANS.values(), "judged_s3"]
            return pd.DataFrame({c: [judged[model.step]] for c in columns})

    def save(model, folder, base):
        folder.mkdir()
        (folder / "weights").write_text(f"step {model.step}")

    def stop(path, frame):
        if killed and path.name == "checkpoints.parquet":
            raise KeyboardInterrupt
        return write_frame(path, frame)

    def evaluate(curve, step):
        curve._evaluate(step, SimpleNamespace(step=step, name_or_path="hub/base"))

    monkeypatch.setattr(training.hub, "save", save)
    monkeypatch.setattr(training, "write_frame", stop)
    monkeypatch.setattr(training.reward_hacking, "check", lambda _: dict.fromkeys(HACKING))
    parts = job, SimpleNamespace(error=""), SimpleNamespace(save_pretrained=lambda _: None), None
    curve = Measured(*parts)
    evaluate(curve, 0)
    evaluate(curve, 2)
    assert [folder.name for folder in tmp_path.glob("best*")] == ["best-2"]
    killed.append(True)
    with pytest.raises(KeyboardInterrupt):
        evaluate(curve, 4)
    killed.clear()
    judged[4] = 0.3
    again = Measured(*parts)
    assert again.best["step"] == 2  # step 4 is not counted
    evaluate(again, 4)
    state = SimpleNamespace(log_history=[], global_step=4)
    report = training.finish(SimpleNamespace(state=state), again)
    assert report["best"]["step"] == 2
    assert (tmp_path / "model/weights").read_text() == "step 2"
    assert not list(tmp_path.glob("best*"))


def test_patience_ends_a_run_and_a_rerun_does_not_go_on(tiny_base, tmp_path, monkeypatch):
    worse = iter(range(100))

    def judged(pairs):  # every evaluation is worse than the one before
        bad = next(worse)
        return [
            {f"{i}-{k}": "not_met" if k < min(bad, 5) else "met" for k in range(5)}
            for i, _ in pairs
        ]

    profile = small(grpo_steps=9, grpo_eval_every=1, grpo_patience=2)
    with monkeypatch.context() as patch:
        patch.setattr(training, "write_json", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tiny_base, tmp_path, profile, judged=judged)
    report = run(tiny_base, tmp_path, profile, judged=lambda pairs: 1 / 0)  # asks nobody again
    assert report["steps"] == 2 and report["stopped_early"]
    assert pd.read_csv(tmp_path / "curve.csv").step.tolist() == [0, 1, 2]
    assert report["best"]["step"] == 0


def test_without_truth_the_judge_alone_is_heard(tiny_base, tmp_path):
    report = run(tiny_base, tmp_path, small(grpo_steps=2), gold=None)
    curve = pd.read_csv(tmp_path / "curve.csv")
    assert curve.gold.isna().all() and curve.violation_rate.isna().all()
    assert curve.judged.notna().all() and curve.judged_violation_rate.notna().all()
    assert "gold" not in report["best"] and math.isfinite(report["best"]["judged"])


def test_a_reward_model_that_never_scores_is_an_error(tiny_base, tmp_path):
    def broken(text, criteria):
        raise RuntimeError("no such adapter")

    with pytest.raises(KitError, match="no such adapter"):
        run(tiny_base, tmp_path, table=broken)
    assert not (tmp_path / "report.json").exists()


def test_bad_input(tiny_base, tmp_path, monkeypatch):
    with pytest.raises(KitError, match="fewer than grpo_prompts"):
        run(tiny_base, tmp_path, small(grpo_prompts=7))
    with pytest.raises(KitError, match="prompt tokens"):
        run(tiny_base, tmp_path, small(grpo_max_tokens=1020))
    training.PartialState()
    monkeypatch.setitem(training.PartialState._shared_state, "num_processes", 4)
    with pytest.raises(KitError, match="cannot be shared by 4 processes"):
        run(tiny_base, tmp_path, small(grpo_prompts=2))


def test_vllm_is_configured_for_a_server_and_refused_on_four_bits(tmp_path):
    settings = {"grpo_vllm": "http://127.0.0.1:8000", "quantization": "none"}
    a = training.settings(small(**settings), tmp_path)
    assert a.use_vllm and a.vllm_mode == "server"
    assert a.vllm_server_base_url == "http://127.0.0.1:8000"
    assert not training.settings(small(), tmp_path).use_vllm
    with pytest.raises(KitError, match="rounded once more"):
        profiles.load("gpu", grpo_vllm="http://127.0.0.1:8000")
    with pytest.raises(KitError, match="base URL"):
        small(grpo_vllm="127.0.0.1:8000")


# ---------------------------------------------------------------- interrupted, and shared out


def command(base, out, *rest):
    return [str(TESTS / "helpers/align_tiny.py"), str(base), str(out), *map(str, rest)]


def environment():
    paths = [str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}


# in a step, between a checkpoint and its evaluation, in that and after it, and at the last step the
# same again
MOMENTS = (
    "step 1",
    "saved 2",
    "evaluating 2",
    "evaluated 2",
    "step 3",
    "saved 4",
    "evaluating 4",
    "evaluated 4",
    "finishing 4",
)


@pytest.mark.parametrize("rank", [0, 4])
def test_killed_at_any_moment_the_curve_is_the_same(tiny_base, tmp_path, rank):
    said = subprocess.run(
        [sys.executable, *command(tiny_base, tmp_path, rank, *MOMENTS)],
        env=environment(),
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    ended = [json.loads(line) for line in said.stdout.splitlines()]
    assert ended == [["", 0], *([moment, -signal.SIGKILL] for moment in MOMENTS), ["", 0]]
    out, whole = tmp_path / "killed", tmp_path / "whole"
    for name in ("curve.csv", "hacking.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    pd.testing.assert_frame_equal(
        *(pd.read_parquet(f / "checkpoints.parquet") for f in (out, whole))
    )
    logs = [pd.read_csv(folder / "training.csv") for folder in (out, whole)]
    kept = [c for c in logs[1] if not c.startswith(("time", "step_time"))]
    assert "kl" in kept and "veto/rate" in kept
    pd.testing.assert_frame_equal(logs[0][kept], logs[1][kept], check_exact=True)
    for file in whole.glob("model/*.safetensors"):
        assert file.read_bytes() == (out / "model" / file.name).read_bytes()


def test_two_processes_give_the_rewards_of_one(tiny_base, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
        "--dynamo_backend",
        "no",
    ]
    for start, out in (([sys.executable], one), (launch, two)):
        subprocess.run(
            [*start, *command(tiny_base, out, 0)], env=environment(), check=True, timeout=300
        )
    assert sorted(p.name for p in two.glob("rewards-*")) == ["rewards-0.jsonl", "rewards-1.jsonl"]
    rewards = [
        sorted(
            json.loads(line)
            for path in folder.glob("rewards-*.jsonl")
            for line in path.read_text().splitlines()
        )
        for folder in (one, two)
    ]
    assert len(rewards[0]) == 4 * 2 * 4  # steps x prompts x answers
    assert rewards[0] == rewards[1]  # step, prompt, answer, reward
    a, b = (pd.read_csv(folder / "curve.csv") for folder in (one, two))
    pd.testing.assert_frame_equal(a, b, atol=1e-4)
    a, b = (pd.read_csv(folder / "training.csv") for folder in (one, two))
    assert a["reward"].tolist() == pytest.approx(b["reward"].tolist(), abs=1e-6)
    assert a["grad_norm"].tolist() == pytest.approx(b["grad_norm"].tolist(), rel=1e-3)
