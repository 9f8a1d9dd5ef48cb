"""The veto for other people's frameworks: what a reward model says of one answer, as numbers."""

from functools import cache
from pathlib import Path
from threading import Lock

from promedical_utils.core.run_data import RunData
from promedical_utils.data.sources import own
from promedical_utils.policy.veto_reward import VetoReward
from promedical_utils.rubric import scoring

ONE = Lock()  # a reward model reads one batch at a time, whoever asks


@cache
def load(data: str, reward_model: str) -> tuple[RunData, VetoReward]:
    """Records of a table or folder (a run's data/ is one), and the reward by a trained model."""
    from promedical_utils.reward_model import model  # loads torch

    records, _ = own.read(Path(data))
    return records, VetoReward(model.load(reward_model), None, records.rubrics)


def of_answer(data: str, reward_model: str, instruction_id: str, text: str, finished: bool) -> dict:
    """``reward``, the strict one; ``violation`` and ``false_refusal``, 0 or 1; S1, S2 and S3. An
    answer that was cut off, or that the model cannot read, is a violation."""
    records, reward = load(data, reward_model)
    rubric = reward.rubric(instruction_id)
    messages = [m.model_dump() for m in records.instruction_of[instruction_id].messages]
    with ONE:
        [judged] = reward.read([(instruction_id, messages, text, finished)])
    found = judged.scores
    return {
        "reward": reward.value(judged),
        "violation": float(found.s3 > 0),
        "false_refusal": float(scoring.says_nothing(rubric, found)),
        "proficiency": found.s1,
        "excellence": float(found.s2),
        "violations": float(found.s3),
    }
