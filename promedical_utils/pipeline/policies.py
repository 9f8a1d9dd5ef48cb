"""Notebook 05: the policy aligned by the gated reward, and answers of base and policy judged."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pandas as pd

from promedical_utils import clinic
from promedical_utils.core import profiles
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Candidate
from promedical_utils.core.run_data import RunData, base_path
from promedical_utils.core.workspace import KitError, read_json, short_hash, write_frame
from promedical_utils.data.roles import Roles
from promedical_utils.data.sources.real_sets import refuse_external
from promedical_utils.pipeline.endpoints import of_profile, task_of
from promedical_utils.pipeline.preference_pairs import judge_of


def train_policy(profile: Profile, run: Path) -> dict:
    """Align the base by the profile's rule, then answer and judge the bench prompts.

    Writes policy/, see ``align`` and ``write_evaluation``. Under ``accelerate launch`` every
    process trains and the main one alone evaluates.
    """
    from accelerate import PartialState

    data = RunData.load(run)
    report = align(profile, run, data, run / "policy")
    if PartialState().is_main_process:
        write_evaluation(profile, run, data)
    return report


def align(profile: Profile, run: Path, data: RunData, out: Path, seed=None) -> dict:
    """Train one policy on the run's data into ``out`` (``training.train``); its report."""
    asked = data.instructions_in("train")
    refuse_external(asked)
    from promedical_utils.policy import training  # loads torch

    reward, held = run / "reward" / profile.reward_model, held_out(profile, run, data)
    own = profile if seed is None else profile.model_copy(update={"seed": seed})
    read = reward_fingerprint(reward)
    job = training.Job(out, own, data.rubrics, asked, held, read)
    return training.train(job, base_path(profile, run), reward)


def held_out(profile: Profile, run: Path, data: RunData, asked=None):
    """``asked``, or the checkpoint split, with its judges, as ``model.HeldOut``."""
    from promedical_utils.policy.model import HeldOut  # loads torch

    asked = data.instructions_in("checkpoint") if asked is None else asked
    gold, judged = policy_judges(profile, run, data)
    return HeldOut(asked, judged, gold, data.condition_of)


def reward_fingerprint(reward: Path) -> str:
    """What a policy's outcome owes to the reward model in ``reward``: settings, calibration."""
    read = [read_json(reward / "report.json", "03_reward_model")["settings"]]
    if (reward / "calibration.json").exists():
        read.append(read_json(reward / "calibration.json", "03_reward_model"))
    return short_hash(*read)


def policy_judges(profile: Profile, run: Path, data: RunData) -> tuple:
    """(gold, judged) for ``model.judge``: the clinic's truth and judge, or (None, an endpoint).

    What the judge says of a text depends on the text alone. An endpoint's failure is unknown.
    """
    if profile.data != "clinic":
        if not profiles.asks_endpoints(profile):
            raise KitError(
                f"data is {profile.data}: nobody here can judge a policy's new answers; name an "
                "endpoint that plays the judge (docs/endpoints.md)"
            )
        return None, partial(_asked_judge, of_profile(profile, run), data)
    kinds = data.criterion_kinds
    judge = judge_of(profile, data.verdicts, kinds)
    known = {i.id: clinic.facts(i.messages) for i in data.instructions}

    def gold(pairs) -> list[dict[str, str]]:
        return [clinic.gold(data.rubric_of[i].criteria, known[i], text) for i, text in pairs]

    def judged(pairs) -> list[dict[str, str]]:
        return [
            {c: judge.verdict(short_hash(*pair), c, kinds[c], v) for c, v in true.items()}
            for pair, true in zip(pairs, gold(pairs), strict=True)
        ]

    return gold, judged


def _asked_judge(roles: Roles, data: RunData, pairs) -> list[dict[str, str]]:
    tasks = []
    for i, text in pairs:
        about = {"id": short_hash(i, text), "instruction_id": i, "generator": "policy"}
        tasks.append(task_of(data, Candidate(**about, text=text or " ")))
    return [{v.criterion_id: v.verdict for v in verdicts} for verdicts in roles.judge(tasks)]


def write_evaluation(profile: Profile, run: Path, data: RunData) -> None:
    """Write policy/evaluation.parquet, a row a policy and prompt, and verdicts.parquet, on them."""
    folders = {"base": None, "grpo": run / "policy"}
    frames = evaluate_policies(profile, run, data, folders)
    for name, frame in zip(("evaluation", "verdicts"), frames, strict=True):
        write_frame(run / f"policy/{name}.parquet", frame)


def evaluate_policies(profile: Profile, run: Path, data: RunData, folders: Mapping):
    """(answers, verdicts) on the bench prompts of the policy in each folder; None is the base.

    One answer each, from the profile's seed, so that rows pair by prompt; see ``model.judge``.
    """
    from promedical_utils.policy import model as policies  # loads torch

    prompts = data.instructions_in("bench")[: profile.policy_prompts or profile.bench_samples]
    held, base, frames = held_out(profile, run, data, prompts), base_path(profile, run), []
    for name, folder in folders.items():
        answers = answers_by(folder, base, profile, prompts)
        frames.append(policies.judge(name, held, answers, data.rubric_of))
    return tuple(pd.concat(parts, ignore_index=True) for parts in zip(*frames, strict=True))


def answers_by(folder: Path | None, base: Path | str, profile: Profile, asked) -> list:
    """Answers of the policy in ``folder``, or of its base alone; the model is then let go."""
    from promedical_utils.policy import generation  # these load torch
    from promedical_utils.policy import model as policies
    from promedical_utils.reward_model import hub

    if folder is None:
        model = policies.load_base(base, profile)[0]
    else:
        model = policies.load_policy(folder, base, profile)
    return generation.generate(model, hub.tokenizer_of(base), asked, profile, profile.seed)
