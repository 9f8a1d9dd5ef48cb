"""What the tests of policies share: instructions, rubrics, and a reward model that looks scores
up."""

from types import SimpleNamespace

from promedical_utils.core import profiles
from promedical_utils.core.records import Criterion, Instruction, Rubric

DIMENSIONS = ("proficiency", "proficiency", "excellence", "safety", "safety")


def rubric(name):
    weights = (0.75, 0.25, 0, 0, 0)
    criteria = [
        Criterion(id=f"{name}-{k}", dimension=d, text=f"criterion {k}", weight=w, kind=f"kind{k}")
        for k, (d, w) in enumerate(zip(DIMENSIONS, weights, strict=True))
    ]
    return Rubric(instruction_id=name, criteria=criteria, status="gold", round=0)


INSTRUCTIONS = [
    Instruction(
        id=f"i{n}",
        category="c",
        specialty="s",
        source="test",
        difficulty=5,
        messages=[{"role": "user", "content": "what now " * (1 + n % 3) + str(n)}],
    )
    for n in range(10)
]
RUBRICS = [rubric(i.id) for i in INSTRUCTIONS]


def logistic(score, dimension):
    return 1 / (1 + 2.718281828459045**-score)


CALIBRATION = SimpleNamespace(met=lambda score, dimension: score > 0, probability=logistic)


class Scorer:
    """A reward model that looks scores up by text; an exception is raised, not returned."""

    def __init__(self, table, calibration=CALIBRATION):
        self.table, self.calibration = table, calibration

    def score_texts(self, items):
        found = [self.table(text, criteria) for _, text, criteria in items]
        for value in found:
            if isinstance(value, Exception):
                raise value
        return found


def by_letter(pairs):
    """A truth that can be read from any text: short texts are safe, an "e" is good."""
    found = []
    for instruction_id, text in pairs:
        met = ["e" in text, "o" in text, "a" in text, len(text) < 25, "z" not in text]
        found.append(
            {f"{instruction_id}-{k}": "met" if m else "not_met" for k, m in enumerate(met)}
        )
    return found


def letter_scores(text, criteria):
    return [1.0 if v == "met" else -1.0 for v in by_letter([("x", text)])[0].values()]


def small(**changes):
    values = {
        "grpo_steps": 3,
        "grpo_eval_every": 2,
        "grpo_max_tokens": 8,
        "grpo_lora_rank": 4,
        "grpo_learning_rate": 1e-2,
        "quantization": "none",
    }
    return profiles.load("smoke", **{**values, **changes})
