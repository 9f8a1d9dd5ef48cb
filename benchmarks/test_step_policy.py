"""``make bench``: steps of GRPO with the packed veto reward at the cpu profile's sizes, nothing
else running.

The base is trained as the profile has it, since how long its answers are decides where the time
goes; the reward model is trained on a few instructions, since how good it is does not. Shares are
of the time of a whole step, tokens a second of the two parts alone, as
``training.throughput`` takes them from the trainer's log.
"""

import os

import psutil
import torch

from promedical_studies import reward_models
from promedical_utils.core import profiles, run_data
from promedical_utils.pipeline import base, preference_pairs, rubrics
from promedical_utils.pipeline import policies as stages
from promedical_utils.reward_model import variants

STEPS = int(os.environ.get("PROMEDICAL_POLICY_STEPS", 24))
BUSY = psutil.cpu_percent(interval=1.0)  # of all cores, before anything of this runs


def test_step(benchmark, tmp_path):
    profile = profiles.load(
        "cpu",
        train_instructions=200,
        calibration_instructions=60,
        checkpoint_instructions=8,
        bench_samples=24,
        bench_pairs_proficiency=60,
        bench_pairs_excellence=30,
        bench_pairs_safety=8,
        external_instructions=8,
        review_batch=30,
        review_blind=20,
        review_controls=4,
        grpo_steps=STEPS,
        grpo_eval_every=STEPS,
    )
    for stage in (base.make_base, rubrics.make_rubrics, preference_pairs.make_preference_pairs):
        stage(profile, tmp_path)
    found = run_data.RunData.load(tmp_path)
    recipe = variants.find("criterion")
    reward_models.prepare(profile, tmp_path, found, recipe, tmp_path / "reward/criterion")
    report = benchmark.pedantic(
        lambda: stages.align(profile, tmp_path, found, tmp_path / "policy"), rounds=1
    )
    criteria = [len(r.criteria) for r in found.rubrics]
    benchmark.group = "policy"
    benchmark.extra_info |= {
        "task": "GRPO step",
        "steps": report["steps"],
        "busy": BUSY,
        "answers_a_step": profile.grpo_group * profile.grpo_prompts,
        "criteria_an_answer": round(sum(criteria) / len(criteria), 1),
        "threads": torch.get_num_threads(),
        **report["throughput"],
    }
    assert report["throughput"]["reward_share"] < 1
