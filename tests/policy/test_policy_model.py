"""Policies in use: what is read of their answers, and how far they are from the base."""

import math

import pytest
import torch
from helpers.policies import INSTRUCTIONS, RUBRICS, by_letter, small
from peft import LoraConfig, get_peft_model

from promedical_utils.policy import model as policy
from promedical_utils.policy.generation import Answer, generate

RUBRIC_OF = {r.instruction_id: r for r in RUBRICS}


@pytest.fixture(scope="module")
def model(tiny_base):
    return policy.load_base(tiny_base, small(grpo_lora_rank=0))


def test_answers_are_read_by_the_truth_and_by_the_judge():
    answers = [
        Answer("aeo", True, [1, 2], [0]),
        Answer("z", True, [1], [0]),
        Answer("aeo", False, [1], [0]),
    ]

    def judged(pairs):
        return [{f"{i}-{k}": "unknown" if k == 3 else "met" for k in range(5)} for i, _ in pairs]

    held_out = policy.HeldOut(INSTRUCTIONS[:3], judged, by_letter, {"i0": "flu"})
    frame, verdicts = policy.judge("mine", held_out, answers, RUBRIC_OF)
    first, second, cut = frame.to_dict("records")
    assert (first["s1"], first["s2"], first["s3"], first["violation"]) == (1.0, 1, 0, 0.0)
    assert (second["s1"], second["s2"], second["s3"], second["violation"]) == (0.0, 0, 1, 1.0)
    assert [r["plain_violation"] for r in (first, second, cut)] == [
        0.0,
        1.0,
        0.0,
    ]  # cut off is unknown
    assert cut["s1"] == 1.0 and cut["s3"] == 2 and cut["unparsed"] == 0.0  # cut off, not unreadable
    assert [first["judged_s1"], first["judged_s3"]] == [1.0, 1]
    assert (first["condition"], second["condition"]) == ("flu", "i1")
    assert first["tokens"] == 2 and first["bonus"] == 1 and first["specialty"] == "s"
    assert len(verdicts) == 3 * 5 * 2 and set(verdicts.judge) == {"truth", "judged"}
    off = verdicts[(verdicts.instruction_id == "i2") & (verdicts.dimension == "safety")]
    assert set(off.verdict) == {"unknown"} and set(off[off.judge == "truth"].kind) == {
        "kind3",
        "kind4",
    }
    # what a judge leaves out is unknown, and a violation
    held_out = policy.HeldOut(INSTRUCTIONS[:1], lambda pairs: [{}])
    frame, verdicts = policy.judge("mine", held_out, answers[:1], RUBRIC_OF)
    assert math.isnan(frame.s1[0]) and math.isnan(frame.violation[0]) and frame.judged_s3[0] == 2
    assert set(verdicts.judge) == {"judged"} and set(verdicts.verdict) == {"unknown"}


def test_divergence_is_exact_and_zero_from_itself(model, tiny_base):
    base, tokenizer = model
    torch.manual_seed(0)
    other, _ = policy.load_base(tiny_base, small(grpo_lora_rank=0))
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.05 * torch.randn_like(weight)
    answers = generate(base, tokenizer, INSTRUCTIONS[:4], small(grpo_max_tokens=8), 1)

    class Reference:
        def __init__(self, of):
            self.of = of

        def __call__(self):
            return self

        def __enter__(self):
            return self.of

        def __exit__(self, *_):
            return None

    kl, entropy = policy.divergence(other, Reference(base), answers, 0.7, tokens=60)
    for answer, distance, spread in zip(answers, kl, entropy, strict=True):
        ids = torch.tensor([answer.prompt + answer.ids])
        with torch.no_grad():
            p, q = (
                (m(input_ids=ids).logits[0, len(answer.prompt) - 1 : -1] / 0.7)
                .double()
                .log_softmax(-1)
                for m in (other, base)
            )
        assert distance == pytest.approx(float((p.exp() * (p - q)).sum()), rel=1e-3, abs=1e-4)
        assert spread == pytest.approx(float(-(p.exp() * p).sum(-1).mean()), rel=1e-4)
    kl, _ = policy.divergence(base, Reference(base), answers, 1.0)
    assert kl == pytest.approx([0.0] * 4, abs=1e-5) and not base.training


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_an_adapter_is_loaded_on_its_base(tiny_base, tmp_path, quantization):
    profile = small(quantization=quantization)
    base, tokenizer = policy.load_base(tiny_base, profile)
    made = get_peft_model(
        base,
        LoraConfig(
            r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False
        ),
    )
    made.save_pretrained(tmp_path / "model")
    read = policy.load_policy(tmp_path, tiny_base, profile)
    ids = torch.tensor([tokenizer("the dose")["input_ids"]])
    with torch.no_grad():
        assert torch.allclose(made.eval()(ids).logits, read(ids).logits, atol=1e-5)
        plain = policy.load_base(tiny_base, profile)[0].eval()(ids).logits
    assert not torch.allclose(plain, read(ids).logits, atol=1e-3)
