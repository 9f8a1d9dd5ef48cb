"""Own data of three questions, and a veto reward by a stand-in for the reward model."""

from promedical_utils.core.run_data import RunData
from promedical_utils.data.sources import own
from promedical_utils.policy.veto_reward import VetoReward
from promedical_utils.reward_model.calibration import Calibration

TABLE = """instruction,criterion,dimension,answer,verdict,split
May I take two?,names the dose,proficiency,two,met,train
May I take two?,warns of driving,safety,two,met,train
Is it safe at night?,says no driving,safety,no,met,train
Other words,names the dose,proficiency,none,met,bench
"""


class ByWords:
    """A criterion scores 1 where the answer has its last word, else -1; cannot read "crash"."""

    calibration = Calibration(
        {d: {"temperature": 0.1, "bias": 0.0} for d in ("proficiency", "excellence", "safety")},
        threshold=0.0,
        recall=0.9,
        quality={},
    )

    def score_texts(self, items):
        if any("crash" in text for _, text, _ in items):
            raise RuntimeError("no score")
        return [[1.0 if c.text.split()[-1] in t else -1.0 for c in cs] for _, t, cs in items]


def veto(folder) -> tuple[RunData, VetoReward]:
    path = folder / "own.csv"
    path.write_text(TABLE)
    data, _ = own.read(path)
    return data, VetoReward(ByWords(), None, data.rubrics)
