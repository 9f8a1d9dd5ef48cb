"""Profiles: one flat YAML file per published run, validated whole before anything runs."""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from promedical_utils.core.records import first_error
from promedical_utils.core.workspace import KitError, project_root, read_yaml

FOLDER = Path(__file__).parents[1] / "profiles"
# Keys that no result hangs on
UNREAD = {"description", "minutes", "memory_gib", "notebooks", "tokens_per_second"}


class Role(BaseModel):
    """One role that a language model plays: which endpoint, which model, and what it may cost over
    the life of a run: ``requests``, whatever their retries; ``tokens``, of prompt and answer."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: str
    endpoint: str = Field("", description="base URL; empty: the profile's endpoint")
    key: str = Field("", description="NAME of the environment variable that holds the key")
    requests: int = Field(100_000, ge=1)
    tokens: int = Field(200_000_000, ge=1)
    concurrency: int = Field(8, ge=1)
    timeout: float = Field(120.0, gt=0, description="seconds for one request")
    retries: int = Field(6, ge=0, description="after 429, 5xx, time-out, lost connection")
    temperature: float = Field(0.0, ge=0)
    max_tokens: int = Field(2048, ge=1)
    # prompt: for servers that take no response_format
    structured: Literal["json_schema", "prompt"] = "json_schema"

    @model_validator(mode="after")
    def _no_key(self):
        if self.key and not re.fullmatch(r"[A-Z][A-Z0-9_]*", self.key):
            raise ValueError("key is the name of an environment variable, never the key itself")
        return self


ROLES = ("writer", "screener", "classifier", "judge")  # and one generator_<name> for each generator
CLINIC = (*ROLES, "generator_warm", "generator_terse", "generator_between")

LAYERED = ("small", "smollm2")  # bases that notebook 00 makes, of as many layers as one wants


class Profile(BaseModel):
    """Every setting of a run. Unknown keys, wrong types and impossible values are errors. Sizes
    count instructions; ``*_max_tokens`` are tokens of the base model's tokenizer."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    # what runs
    name: Literal["smoke", "cpu", "record", "real", "gpu", "paper"]
    description: str
    notebooks: list[str]
    data: Literal["clinic", "real", "open", "own"]
    own_data: str = Field("", description="of data own: a long table or a folder, docs/own_data.md")
    seed: int = Field(ge=0)
    minutes: float = Field(gt=0, description="expected on the machine named in the description")
    memory_gib: float = Field(gt=0)

    # base model: "small" is drawn at random, "smollm2" made from its package or the hub; anything
    # else is a hub id or a folder
    base_model: str
    base_layers: int | None = Field(None, ge=2, description="by default 4 of small, all of smollm2")
    base_width: int = Field(128, ge=64, multiple_of=32, description="an attention head has 32")
    base_vocabulary: int = Field(2048, ge=300)
    sft_answers: int = Field(0, ge=0, description="of the training split, taught first; 0: none")

    # clinic: sizes of the splits, and what the configuration *sets* (inputs, never findings)
    train_instructions: int = Field(ge=1)
    calibration_instructions: int = Field(ge=1)
    checkpoint_instructions: int = Field(ge=1)
    bench_samples: int = Field(ge=1)
    external_instructions: int = Field(0, ge=0)
    bench_pairs_proficiency: int = Field(0, ge=0)
    bench_pairs_excellence: int = Field(0, ge=0)
    bench_pairs_safety: int = Field(0, ge=0)
    bench_rich_seen: int = Field(0, ge=0, description="pairs on safety beside those, seen kinds")
    bench_rich_unseen: int = Field(0, ge=0, description="likewise, of each unseen kind")
    careless: float = Field(0.3, ge=0, le=1, description="share of train with a careless answer")
    judge_agreement: float = Field(0.932, gt=0.5, le=1)
    rubric_error_rate: float = Field(0.25, ge=0, lt=1)
    rubric_pass_rate: float = Field(0.964, gt=0, le=1)
    review_batch: int = Field(500, ge=1, description="drafts reviewed in a round")
    review_blind: int = Field(200, ge=1, description="drafts that measure a round's pass rate")
    review_controls: int = Field(50, ge=0, description="drafts of the first writer among those")
    reviewers: list[str] = Field([], description="of data: open; none: drafts go unreviewed")
    physician_agreement: float = Field(0.90, gt=0.5, le=1)

    # instructions of data: open, and what curation lets through
    sources: list[str] = Field([], description="open sets by key, files, folders")
    source_limit: int = Field(0, ge=0, description="rows read of each source; 0 is all")
    licences: list[str] = ["CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "MIT", "Apache-2.0"]  # SPDX
    languages: list[str] = ["en"]
    words_least: int = Field(4, ge=1)
    words_most: int = Field(1000, ge=1)
    difficulty_least: int = Field(5, ge=0, le=10)
    difficulty_most: int = Field(9, ge=0, le=10)

    # who writes, screens, classifies, answers and judges; without an endpoint the embedded clinic
    # does, in this process
    endpoint: str = Field("", description="base URL of an OpenAI-compatible server, for every role")
    roles: dict[str, Role] = {name: Role(model="clinic") for name in CLINIC}
    tokens_per_second: float = Field(2000.0, gt=0, description="of the endpoint, for estimates")

    # reward model
    quantization: Literal["nf4", "none"] = "nf4"
    precision: Literal["fp32", "bf16", "auto"] = "fp32"
    rm_lora_rank: int = Field(64, ge=1)
    # all-linear, or names: q_proj, v_proj, o_proj train half as fast again
    rm_lora_targets: Literal["all-linear"] | list[str] = "all-linear"
    rm_learning_rate: float = Field(gt=0)
    rm_full_learning_rate: float = Field(5e-4, gt=0, description="where all weights are trained")
    rm_epochs: float = Field(gt=0)
    rm_batch: int = Field(ge=1, description="instructions per optimiser step")
    rm_pass_tokens: int = Field(8192, ge=64, description="padded tokens of one pass, in training")
    rm_pointwise_weight: float = Field(1.0, ge=0)
    rm_max_tokens: int = Field(ge=64)
    rm_shorten: bool = Field(False, description="cut what is too long (packing.fit), not leave out")
    rm_share_prompt: bool = Field(True, description="read a prompt once for a group's answers")
    # reward models that notebook 03 trains, of variants.RECIPES
    rm_arms: list[str] = ["criterion", "scalar_overall", "scalar_blind", "criterion_swapped"]
    veto_recall: float = Field(0.9, gt=0, lt=1)

    # systems of others that the bench is scored with too, by hub id or folder; empty: not run
    scalar_rm: str = Field("", description="sequence classifier with one output, as UltraMedRM-8B")
    pair_rm: str = Field("", description="generative pairwise, as RLHFlow's pair-preference model")
    verifier: str = Field("", description="two labels by a reference, as medical_o1_verifier_3B")
    judges: dict[str, Role] = Field({}, description="prompted, by the name of their row")
    rar_judge: Role | None = Field(None, description="rates whole answers by rubric: RaR implicit")

    # external generalization
    documents: str = ""  # file or folder of texts to retrieve from on real sets, or medquad
    retrieved: int = Field(5, ge=1, description="documents retrieved for an instruction")

    # policy
    policy_optimizer: Literal["grpo", "rloo", "dpo"] = "grpo"  # PPO left TRL with 1.16
    policy_prompts: int = Field(0, ge=0, description="bench prompts that policies answer; 0: all")
    grpo_steps: int = Field(0, ge=0)
    grpo_group: int = Field(8, ge=2)
    grpo_prompts: int = Field(8, ge=1, description="prompts per optimiser step")
    grpo_learning_rate: float = Field(2e-4, gt=0)
    grpo_beta_kl: float = Field(0.04, ge=0)
    grpo_temperature: float = Field(1.0, gt=0)
    grpo_top_p: float = Field(1.0, gt=0, le=1)
    grpo_lora_rank: int = Field(32, ge=0, description="0: full fine-tuning")
    grpo_eval_every: int = Field(25, ge=1)
    grpo_patience: int = Field(3, ge=0, description="evaluations without a better one; 0: no end")
    grpo_max_tokens: int = Field(128, ge=8)
    grpo_checkpointing: bool = Field(False, description="of gradients: less memory, more time")
    grpo_fast_path: bool = Field(True, description="prompts once a group; false: TRL's own way")
    grpo_vllm: str = Field("", description="base URL of trl vllm-serve on GPUs of its own")
    dpo_learning_rate: float = Field(1e-4, gt=0)
    dpo_beta: float = Field(0.1, gt=0)
    reward_model: str = Field("criterion", description="recipe of the reward model, by name")
    reward_rule: Literal[
        "veto", "no_veto", "no_bonus", "scalar", "rar_explicit", "rar_implicit", "orbit"
    ] = "veto"  # see veto_reward.build
    reward_form: Literal["strict", "clipped", "ranked"] = "strict"
    reward_all_vetoed: Literal["expected", "counted", "skipped"] = "expected"
    reward_alpha: float = Field(0.1, ge=0, lt=1)
    reward_beta: float = Field(0.3, gt=0)
    reward_lambda: float = Field(2.0, gt=0)

    # statistics
    bootstrap: int = Field(1000, ge=20)

    @model_validator(mode="before")
    @classmethod
    def _depth(cls, values):
        if values.get("base_model") == "small" and values.get("base_layers") is None:
            return {**values, "base_layers": 4}
        return values

    @model_validator(mode="after")
    def _possible(self):
        if self.reward_lambda < 1 + self.reward_beta:
            raise ValueError("reward_lambda must be at least 1 + reward_beta, or the veto fails")
        if self.grpo_vllm and self.quantization == "nf4" and self.grpo_lora_rank:
            raise ValueError(
                "grpo_vllm with a 4-bit base: vLLM would serve weights rounded once more; set "
                "quantization=none (bf16 LoRA), or leave vLLM out"
            )
        if self.grpo_vllm and not re.match(r"https?://", self.grpo_vllm):
            raise ValueError("grpo_vllm is the base URL of a server, http://host:port")
        if self.base_layers and self.base_model not in LAYERED:
            raise ValueError(f"base_layers is of {' and '.join(LAYERED)}: leave it out")
        if not self.rm_lora_targets:
            raise ValueError("rm_lora_targets is all-linear or names at least one layer")
        if self.data == "open" and not (self.sources and asks_endpoints(self)):
            raise ValueError("data: open needs sources, and an endpoint that plays the roles")
        if (self.data == "own") != bool(self.own_data):
            raise ValueError("data: own and own_data, its table or folder, go together")
        others = [name for name in self.roles if not re.fullmatch(r"generator_[a-z0-9]+", name)]
        if set(others) != set(ROLES) or len(self.roles) < len(ROLES) + 2:
            wanted = f"{', '.join(ROLES)} and two generator_<name> or more"
            raise ValueError(f"roles needs {wanted}, and has {', '.join(self.roles) or 'none'}")
        for name in self.judges:
            if re.fullmatch("[a-z_]+", name):
                raise ValueError(f"lower case names the kit's own scorers: rename judge {name}")
        return self


def known(settings: Mapping) -> dict:
    """The settings of a manifest that this kit still has: an older one may name more."""
    kept = {key: value for key, value in settings.items() if key in Profile.model_fields}
    roles = kept.get("roles", {}).items()
    roles = {n: {k: v for k, v in r.items() if k in Role.model_fields} for n, r in roles}
    return kept | ({"roles": roles} if roles else {})


def of_manifest(manifest: dict) -> Profile:
    """The profile that a manifest names, with its seed and draws: all that a drawing hangs on. Its
    other settings are today's, of which an older manifest may know none."""
    settings = manifest["profile"]
    return load(settings["name"], seed=settings["seed"], bootstrap=settings["bootstrap"])


def asks_endpoints(profile: Profile) -> bool:
    """Whether the roles are played over HTTP; else by the embedded clinic, in this process."""
    return bool(profile.endpoint or any(role.endpoint for role in profile.roles.values()))


def names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load(name: str, **overrides) -> Profile:
    """Profile ``name`` with ``overrides`` applied, checked as a whole; KitError in one line."""
    path = FOLDER / f"{name}.yaml"
    if not path.exists():
        raise KitError(f"unknown profile {name!r}: choose one of {', '.join(names())}")
    try:
        values = read_yaml(path)
    except yaml.YAMLError as error:
        raise KitError(f"profiles/{name}.yaml is not YAML: {str(error).splitlines()[0]}") from None
    if overrides.get("base_model", values.get("base_model")) != values.get("base_model"):
        values.pop("base_layers", None)  # another base has another depth
    try:
        return Profile.model_validate({**values, **overrides, "name": name})
    except ValidationError as error:
        raise KitError(
            f"profile {name}: {first_error(error)} (and {error.error_count() - 1} more); "
            f"mend promedical_utils/profiles/{name}.yaml or the override"
        ) from None


# "key=value @file.yaml key=value" over the profile, for every notebook of a run
OVERRIDES = "PROMEDICAL_SET"


def overrides(text: str | None = None) -> dict:
    """``"seed=11 @file.yaml 'reviewers=[ann, bob]'"`` as a dict of YAML values (default: the
    environment's); quotes as in a shell."""
    values: dict = {}
    text = os.environ.get(OVERRIDES, "") if text is None else text
    try:
        for part in shlex.split(text):
            if part.startswith("@"):
                values |= _of_file(part[1:])
                continue
            key, equals, value = part.partition("=")
            if not equals or key == "name":
                raise KitError(f'override {part!r}: write SET="key=value ...", keys of the profile')
            values[key] = yaml.safe_load(value) if value else ""  # "pair_rm=" leaves it out
            if isinstance(values[key], str) and re.fullmatch(r"[\d.]+e[-+]?\d+", values[key]):
                values[key] = float(values[key])  # 1e-3, which YAML 1.1 takes for a word
    except (ValueError, yaml.YAMLError):
        quoted = "what holds a blank stands in quotes, as in SET=\"'reviewers=[ann, bob]'\""
        raise KitError(f"overrides {text!r} cannot be read: {quoted}") from None
    return values


def _of_file(name: str) -> dict:
    try:
        values = read_yaml(project_root() / name)
    except (OSError, ValueError, yaml.YAMLError):
        values = None
    if not isinstance(values, dict) or "name" in values:
        raise KitError(f"override @{name}: no YAML file of the profile's keys; mend it or its path")
    return values


def profile_for(name: str, seed: int = -1) -> Profile:
    """Profile ``name`` with the run's overrides; a ``seed`` >= 0 goes over those."""
    return load(name, **(overrides() | ({"seed": seed} if seed >= 0 else {})))
