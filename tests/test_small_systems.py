"""Small pair RM and verifier: their lessons by hand, packed as apart, saved as hub models are."""

import json

import pytest
import torch

from promedical_utils import reward_model, small_systems
from promedical_utils.groups import preferences
from promedical_utils.packing import Packed
from promedical_utils.reward_training import source_of, tokenizer_of
from promedical_utils.scorers import pair_rm, verifier
from promedical_utils.workspace import KitError


@pytest.fixture(scope="module")
def profile():
    from promedical_utils import profiles

    return profiles.load("smoke", rm_batch=4, rm_lora_rank=4, rm_max_tokens=512, rm_epochs=20.0,
                         rm_learning_rate=1e-2)  # fmt: skip


@pytest.fixture(scope="module", params=small_systems.NAMES)
def trained(request, tiny_base, tiny_groups, profile, tmp_path_factory):
    out = tmp_path_factory.mktemp(request.param) / "model"
    report = small_systems.train(request.param, tiny_groups, tiny_base, out, profile=profile, seed=1)
    return request.param, out, report


def test_it_learns_in_the_steps_of_a_reward_model_and_is_loaded_as_the_hubs_is(
    trained, tiny_groups, profile
):
    name, out, report = trained
    assert report["steps"] == 12 * 20 / 4 and report["groups"] == 12
    assert report["curve"][-1]["loss"] < report["curve"][0]["loss"] / 2
    assert report["quantization"] == "nf4" and not list(out.glob("checkpoints-*"))
    scorer = small_systems.load(name, out)
    if name == "pair_rm":
        assert type(scorer) is pair_rm.PairRM
        frame = scorer.pairwise(tiny_groups)
        better = {(r.a_id, r.b_id): r.probability for r in frame.itertuples()}
        right = [better[pair] > 0.5 if pair in better else better[pair[::-1]] < 0.5
                 for g in tiny_groups for pair in preferences(g)]  # fmt: skip
    else:
        assert type(scorer) is verifier.Verifier and scorer.model.config.num_labels == 2
        frame = scorer.pointwise(tiny_groups)
        said = {k: v == "met" for g in tiny_groups for k, v in g.verdicts.items()}
        right = [bool(r.met) == said[r.candidate_id, r.criterion_id] for r in frame.itertuples()]
    assert sum(right) / len(right) > 0.75
    config = json.loads((out / "config.json").read_text())
    assert "quantization_config" not in config and config["architectures"] == [
        "Qwen3ForCausalLM" if name == "pair_rm" else "Qwen3ForSequenceClassification"
    ]
