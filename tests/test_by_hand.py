"""What notebooks 03 and 05 compute by hand: that it can fail, and that it leaves training alone."""

import json

import pandas as pd
import pytest
import torch
from helpers.policies import small

from promedical_utils.core import records, run_data
from promedical_utils.core.records import Rubric, SplitRow, Verdict
from promedical_utils.core.workspace import project_root
from promedical_utils.policy import model as policy
from promedical_utils.policy import training as policy_training
from promedical_utils.policy import veto_reward
from promedical_utils.reward_model import calibration, grouped, hub, training

pytestmark = pytest.mark.training  # fits models

ROOT = project_root()


def cells_of(notebook: str) -> list[dict]:
    return json.loads((ROOT / f"notebooks/{notebook}.ipynb").read_text())["cells"]


def by_hand(notebook: str, **changes: str) -> list[str]:
    """The cells that are tagged by-hand, with pieces of their text exchanged: {old: new}."""
    sources = [
        "".join(cell["source"])
        for cell in cells_of(notebook)
        if "by-hand" in cell["metadata"].get("tags", [])
    ]
    assert len(sources) >= 3
    for old, new in changes.items():
        assert sum(source.count(old) for source in sources) == 1, old
        sources = [source.replace(old, new) for source in sources]
    return sources


def execute(cells: list[str], names: dict) -> dict:
    for cell in cells:
        exec(compile(cell, "by hand", "exec"), names)
    return names


# ---------------------------------------------------------------- 03, one step


@pytest.fixture
def built(tiny_base, tiny_groups, tiny_profile, tmp_path):
    """What the notebook has built when its hand step comes."""

    def build(folder: str) -> dict:
        tokenizer = hub.tokenizer_of(tiny_base)
        plan = training.Plan(
            tiny_groups, tiny_base, tmp_path / folder, view="criterion", profile=tiny_profile
        )
        model = plan.model()
        taught = training.training_rows(tiny_groups, tokenizer, plan.view, plan.limit(model))
        schedule = grouped.schedule(taught.rows, plan.profile.rm_batch, 1.0, plan.seed)
        names = {
            "p": plan.profile,
            "pd": pd,
            "plan": plan,
            "model": model,
            "tokenizer": tokenizer,
            "taught": taught,
            "schedule": schedule,
            "grouped": grouped,
            "training": training,
        }
        sources = ["".join(cell["source"]) for cell in cells_of("03_reward_model")]
        return execute([s for s in sources if s.startswith("trainer = ")], names)

    return build


def test_the_step_by_hand_does_not_change_the_training(built):
    weights = []
    for folder, cells in (("with", by_hand("03_reward_model")), ("without", [])):
        names = execute(cells, built(folder))
        names["trainer"].train()
        weights.append(
            [w.detach().clone() for w in names["trainer"].model.parameters() if w.requires_grad]
        )
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize(
    "old, new",
    [
        ("margin = scores[pairs[:, 0]] - scores", "margin = scores[pairs[:, 0]] + scores"),
        ("torch.where(targets[known] == 1, met, 1 - met)", "met"),
        ("p.rm_pointwise_weight * of_verdicts", "0 * of_verdicts"),
    ],
)
def test_a_wrong_step_by_hand_is_found(built, old, new):
    with pytest.raises(AssertionError):
        execute(by_hand("03_reward_model", **{old: new}), built("wrong"))


# ---------------------------------------------------------------- 05, one group


@pytest.fixture(scope="module")
def aligned(tiny_base, tiny_groups, tiny_profile, tmp_path_factory):
    """A run with a base, records and a calibrated reward model, as notebook 05 finds it."""
    run = tmp_path_factory.mktemp("run")
    (run / "base").symlink_to(tiny_base)
    instructions = [g.instruction for g in tiny_groups]
    rubrics = [
        Rubric(instruction_id=g.instruction.id, criteria=list(g.criteria), status="gold", round=0)
        for g in tiny_groups
    ]
    verdicts = [
        Verdict(candidate_id=candidate, criterion_id=criterion, judge="judge", verdict=verdict)
        for g in tiny_groups
        for (candidate, criterion), verdict in g.verdicts.items()
    ]
    splits = [
        SplitRow(
            instruction_id=i.id,
            split="train" if n < 8 else "checkpoint",
            condition=i.id,
            patient=i.id,
            wording_seed=n,
        )
        for n, i in enumerate(instructions)
    ]
    candidates = [c for g in tiny_groups for c in g.candidates]
    for name, rows in (
        ("instructions", instructions),
        ("rubrics", rubrics),
        ("splits", splits),
        ("candidates", candidates),
        ("verdicts", verdicts),
    ):
        records.save(rows, run / f"data/{name}.parquet")
    training.train(
        tiny_groups, tiny_base, run / "reward/criterion", view="criterion", profile=tiny_profile
    )
    scale = {dimension: {"temperature": 1.0, "bias": 0.0} for dimension in records.DIMENSIONS}
    flat = calibration.Calibration(scale=scale, threshold=0.0, recall=0.9, quality={})
    flat.save(run / "reward/criterion/calibration.json")
    return run


def names_of(run, rank: int = 4) -> dict:
    profile = small(reward_model="criterion", grpo_lora_rank=rank)
    return {"p": profile, "pd": pd, "run": run, "run_data": run_data}


def test_the_group_by_hand_holds_for_all_weights_too(aligned):
    execute(by_hand("05_grpo_with_veto"), names_of(aligned, rank=0))


def test_the_group_by_hand_does_not_change_the_training(aligned, tmp_path):
    weights = []
    for folder, cells in (("with", by_hand("05_grpo_with_veto")), ("without", [])):
        execute(cells, names_of(aligned))
        p = names_of(aligned)["p"]
        data = run_data.RunData.load(aligned)
        model, tokenizer = policy.load_base(aligned / "base", p)
        reward = veto_reward.build(
            p,
            policy_training.reward_model_of(aligned / "reward/criterion"),
            None,
            data.rubrics,
        )
        rows = policy_training.prompts(data.instructions_in("train"))
        settings = policy_training.settings(p, tmp_path / folder)
        trainer = policy_training.trainer(model, tokenizer, rows, settings, p, reward)
        trainer.train()
        weights.append([w.detach().clone() for w in trainer.model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


@pytest.mark.parametrize(
    "old, new",
    [
        ("(beta * kl - gain) * mask", "(beta * kl + gain) * mask"),
        ("gain = torch.min(ratio * advantage[:, None], clipped", "gain = (ratio"),
        ("(r - r.mean()) / (r.std() + 1e-4)", "(r.mean() - r) / (r.std() + 1e-4)"),
        ("(torch.exp(d) - d - 1) * ratio", "(torch.exp(d) - d - 1)"),
        ("logits[:, -width - 1:-1]", "logits[:, -width:]"),
    ],
    ids=["wrong sign", "no clip", "advantage turned", "KL without the ratio", "one token off"],
)
def test_a_wrong_group_by_hand_is_found(aligned, old, new):
    with pytest.raises(AssertionError):
        execute(by_hand("05_grpo_with_veto", **{old: new}), names_of(aligned))
