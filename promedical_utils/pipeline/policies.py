"""Notebook 05: the policy aligned by the gated reward, and answers of base and policy judged."""

from pathlib import Path

from promedical_utils import clinic
from promedical_utils.core import profiles
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Candidate
from promedical_utils.core.run_data import RunData, base_path
from promedical_utils.core.workspace import KitError, read_json, replacing, short_hash
from promedical_utils.data.roles import Task
from promedical_utils.evaluation import policy_answers
from promedical_utils.pipeline.endpoints import of_profile
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


def align(
    profile: Profile, run: Path, data: RunData, out: Path, reward: Path | None = None, seed=None
) -> dict:
    """Train one policy on the run's data into ``out`` (``training.train``); its report.

    ``reward``: folder of the reward model, by default that of ``reward_model`` in the run.
    """
    from promedical_utils.policy import training  # loads torch

    reward = reward or run / "reward" / profile.reward_model
    job = training.Job(
        out,
        profile if seed is None else profile.model_copy(update={"seed": seed}),
        data.rubrics,
        data.instructions_in("train"),
        held_out(profile, run, data),
        reward_fingerprint(reward),
    )
    return training.train(job, base_path(profile, run), reward)


def held_out(profile: Profile, run: Path, data: RunData):
    """The checkpoint split with its judges, as ``model.HeldOut``."""
    from promedical_utils.policy.model import HeldOut  # loads torch

    gold, judged = policy_judges(profile, run, data)
    return HeldOut(data.instructions_in("checkpoint"), judged, gold, data.condition_of)


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
    rubric_of = data.rubric_of
    if profile.data != "clinic":
        return None, _endpoint_judge(profile, run, data, rubric_of)
    kinds = data.criterion_kinds
    judge = judge_of(profile, data.verdicts, kinds)

    def gold(pairs) -> list[dict[str, str]]:
        return [clinic.gold(rubric_of[i].criteria, text) for i, text in pairs]

    def judged(pairs) -> list[dict[str, str]]:
        names = [short_hash(*pair) for pair in pairs]
        return [
            {c: judge.verdict(name, c, kinds[c], v) for c, v in true.items()}
            for name, true in zip(names, gold(pairs), strict=True)
        ]

    return gold, judged


def _endpoint_judge(profile: Profile, run: Path, data: RunData, rubric_of: dict):
    if not profiles.asks_endpoints(profile):
        raise KitError(
            f"data is {profile.data}: nobody here can judge a policy's new answers; name an "
            "endpoint that plays the judge (docs/endpoints.md)"
        )
    played, by_id = of_profile(profile, run), data.instruction_of

    def judged(pairs) -> list[dict[str, str]]:
        tasks = [
            Task(
                by_id[i],
                tuple(rubric_of[i].criteria),
                Candidate(
                    id=short_hash(i, text), instruction_id=i, generator="policy", text=text or " "
                ),
            )
            for i, text in pairs
        ]
        return [{v.criterion_id: v.verdict for v in verdicts} for verdicts in played.judge(tasks)]

    return judged


def write_evaluation(profile: Profile, run: Path, data: RunData) -> None:
    """Write policy/evaluation.parquet, a row a policy and prompt, and verdicts.parquet, on them."""
    frames = evaluate_policies(profile, run, data, {"grpo": run / "policy"})
    for name, frame in zip(("evaluation", "verdicts"), frames, strict=True):
        with replacing(run / f"policy/{name}.parquet") as temporary:
            frame.to_parquet(temporary, index=False)


def evaluate_policies(
    profile: Profile, run: Path, data: RunData, folders: dict[str, Path], base: bool = True
):
    """(answers, verdicts) of the base and of every policy in ``folders`` on the bench prompts.

    One answer each, from the profile's seed, so that rows pair by prompt; see ``model.judge``.
    """
    import pandas as pd

    from promedical_utils.policy import model as policies  # loads torch

    prompts = data.instructions_in("bench")[: profile.policy_prompts or profile.bench_samples]
    gold, judged = policy_judges(profile, run, data)
    held = policies.HeldOut(prompts, judged, gold, data.condition_of)
    origin, frames = base_path(profile, run), []
    _, tokenizer = policies.load_base(origin, profile)
    for name, folder in [*([("base", None)] if base else []), *folders.items()]:
        if folder is None:
            model = policies.load_base(origin, profile)[0]
        else:
            model = policies.load_policy(folder, origin, profile)
        answers = policies.answers_of(model, tokenizer, prompts, profile, profile.seed)
        frames.append(policies.judge(name, held, answers, data.rubric_of))
        del model
    frame, verdicts = (pd.concat(parts, ignore_index=True) for parts in zip(*frames, strict=True))
    if profile.data == "clinic":
        cannot = read_json(run / "base_report.json", "00_start_here")["cannot_copy"]
        frame = policy_answers.with_readable(frame, data.rubrics, cannot)
    return frame, verdicts
