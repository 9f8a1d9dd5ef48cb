"""Profiles: one flat YAML file per published run, validated whole before anything runs."""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from promedical_utils.workspace import KitError

FOLDER = Path(__file__).parent / "profiles"


class Profile(BaseModel):
    """Every setting of a run. Unknown keys, wrong types and impossible values are errors.

    Sizes count instructions; learning rates and epochs are the optimiser's; ``*_max_tokens`` are
    tokens of the base model's tokenizer.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    # what runs
    name: Literal["smoke", "cpu", "real", "gpu", "paper"]
    description: str
    notebooks: list[str]
    data: Literal["clinic", "real"]
    seed: int = Field(ge=0)
    minutes: float = Field(gt=0, description="expected on the machine named in the description")
    memory_gib: float = Field(gt=0)

    # base model: "small" is trained by notebook 00, anything else is a hub id or a folder
    base_model: str
    base_layers: int = Field(4, ge=2, description="two make an induction circuit")
    base_width: int = Field(128, ge=64)
    base_vocabulary: int = Field(2048, ge=300)
    base_steps: int = Field(1, ge=1)
    base_batch: int = Field(16, ge=1)
    base_learning_rate: float = Field(5e-3, gt=0, description="of Muon")

    # clinic: sizes of the splits, and what the configuration *sets* (inputs, never findings)
    train_instructions: int = Field(ge=1)
    calibration_instructions: int = Field(ge=1)
    checkpoint_instructions: int = Field(ge=1)
    bench_samples: int = Field(ge=1)
    external_instructions: int = Field(0, ge=0)
    bench_pairs_proficiency: int = Field(0, ge=0)
    bench_pairs_excellence: int = Field(0, ge=0)
    bench_pairs_safety: int = Field(0, ge=0)
    judge_agreement: float = Field(0.932, gt=0.5, le=1)
    rubric_error_rate: float = Field(0.25, ge=0, lt=1)
    rubric_pass_rate: float = Field(0.964, gt=0, le=1)
    review_batch: int = Field(500, ge=1)
    physician_agreement: float = Field(0.90, gt=0.5, le=1)

    # reward model
    quantization: Literal["nf4", "none"] = "nf4"
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    rm_lora_rank: int = Field(64, ge=1)
    rm_learning_rate: float = Field(gt=0)
    rm_full_learning_rate: float = Field(5e-4, gt=0, description="of the full fine-tuned twin")
    rm_optimizer: Literal["adamw", "muon"] = Field("adamw", description="muon: see optimizer.py")
    rm_epochs: float = Field(gt=0)
    rm_batch: int = Field(ge=1, description="instructions per optimiser step")
    rm_pass_tokens: int = Field(8192, ge=64, description="padded tokens of one pass, in training")
    rm_pointwise_weight: float = Field(1.0, ge=0)
    rm_max_tokens: int = Field(ge=64)
    rm_shorten: bool = Field(False, description="cut what is too long (packing.fit), not leave out")
    rm_twin: bool = Field(True, description="train the clean-label full fine-tuned twin")
    calibration_method: Literal["platt", "isotonic"] = "platt"
    veto_recall: float = Field(0.9, gt=0, lt=1)

    # policy
    grpo_steps: int = Field(0, ge=0)
    grpo_group: int = Field(8, ge=2)
    grpo_prompts: int = Field(8, ge=1, description="prompts per optimiser step")
    grpo_learning_rate: float = Field(2e-4, gt=0)
    grpo_beta_kl: float = Field(0.04, ge=0)
    grpo_temperature: float = Field(1.0, gt=0)
    grpo_top_p: float = Field(1.0, gt=0, le=1)
    grpo_lora_rank: int = Field(32, ge=0, description="0: full fine-tuning")
    grpo_eval_every: int = Field(25, ge=1)
    grpo_max_tokens: int = Field(128, ge=8)
    reward_alpha: float = Field(0.1, ge=0, lt=1)
    reward_beta: float = Field(0.3, gt=0)
    reward_lambda: float = Field(2.0, gt=0)

    # statistics
    bootstrap: int = Field(1000, ge=20)

    @model_validator(mode="after")
    def _possible(self):
        if self.reward_lambda < 1 + self.reward_beta:
            raise ValueError("reward_lambda must be at least 1 + reward_beta, or the veto fails")
        if self.base_width % 32:
            raise ValueError("base_width must be a multiple of 32, the width of an attention head")
        if self.name not in ("gpu", "paper") and self.precision == "bf16":
            raise ValueError("bf16 logits tie; CPU profiles score in fp32")
        return self


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str, **overrides) -> Profile:
    """Profile ``name`` with ``overrides`` applied, checked as a whole; KitError in one line."""
    path = FOLDER / f"{name}.yaml"
    if not path.exists():
        raise KitError(f"unknown profile {name!r}: choose one of {', '.join(names())}")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise KitError(f"profiles/{name}.yaml is not YAML: {str(error).splitlines()[0]}") from None
    try:
        return Profile.model_validate({**values, **overrides, "name": name})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "profile"
        raise KitError(
            f"profile {name}: {key}: {first['msg']} (and {error.error_count() - 1} more); "
            f"mend promedical_utils/profiles/{name}.yaml or the override"
        ) from None
