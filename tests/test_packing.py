import pytest
import torch

from promedical_utils import packing
from promedical_utils.packing import Packed, pack
from promedical_utils.records import Criterion

CRITERIA = [
    Criterion(id="a", dimension="safety", text="no danger", weight=0),
    Criterion(id="b", dimension="proficiency", text="names the dose and says why", weight=1),
    Criterion(id="c", dimension="excellence", text="kind", weight=0),
]
ITEMS = [
    ([{"role": "user", "content": "how much?"}], "take two, then rest", CRITERIA),
    ([{"role": "user", "content": "and now, after all that?"}], "wait", CRITERIA[1:]),
    ([{"role": "user", "content": "how much?"}], "the dose " * 9, CRITERIA[:1]),
]


@pytest.fixture(scope="module")
def tokenizer(tiny_base):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_base)


@pytest.fixture(scope="module")
def model(tiny_base):
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(
        tiny_base, num_labels=1, attn_implementation="sdpa", dtype=torch.float32
    )
    torch.nn.init.normal_(model.score.weight)
    return packing.read_many(model).eval()


def one_by_one(model, shared, tails):
    """Scores by the model's plain forward on [prompt][response][c]: no packing anywhere."""
    whole = [torch.tensor([shared + tail]) for tail in tails or [[]]]
    return torch.cat([model(input_ids=ids).logits[0] for ids in whole])


def packed_scores(model, items, limit=512):
    sequences = [s for shared, tails in items for s in pack(shared, tails, limit)]
    return model(**packing.collate(sequences, pad_id=0)).logits


def test_positions_segments_and_reads_by_hand():
    batch = packing.collate([Packed([5, 6, 7, 8, 9], [2, 4, 5]), Packed([5, 6, 7], [3])], pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [5, 6, 7, 0, 0]]
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 3, 2]
    assert batch["position_ids"][1, :3].tolist() == [0, 1, 2]
    assert batch["segment_ids"].tolist() == [[0, 0, 1, 1, 2], [0, 0, 0, 1, 1]]
    assert batch["reads"].tolist() == [[0, 3], [0, 4], [1, 2]]


def test_the_mask_by_hand():
    seen = packing.allowed(torch.tensor([[0, 0, 1, 1, 2]]))[0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    mask = packing.attention_mask(torch.tensor([[0, 1, 2]]), torch.float32)
    assert mask.shape == (1, 1, 3, 3) and mask[0, 0, 2, 1] < -1e30 and mask[0, 0, 2, 0] == 0


@torch.no_grad()
def test_packed_scores_equal_one_by_one(model, tokenizer):
    items = packing.encode(tokenizer, ITEMS)
    expected = torch.cat([one_by_one(model, *item) for item in items])
    found = packed_scores(model, items)
    assert found.std() > 0.1  # else equality would say little
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_scalar_scores_are_read_at_the_end_of_the_response(model, tokenizer):
    items = [(shared, []) for shared, _ in packing.encode(tokenizer, ITEMS)]
    expected = torch.cat([one_by_one(model, *item) for item in items])
    torch.testing.assert_close(packed_scores(model, items), expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_batch_composition_and_order_of_criteria_do_not_matter(model, tokenizer):
    (shared, tails), other, long = packing.encode(tokenizer, ITEMS)
    alone = packed_scores(model, [(shared, tails)])
    with_others = packed_scores(model, [long, other, (shared, tails)])[-3:]
    turned = packed_scores(model, [(shared, tails[::-1])]).flip(0)
    torch.testing.assert_close(with_others, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(turned, alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_leaking_mask_or_running_positions_would_be_seen(model, tokenizer, monkeypatch):
    items = packing.encode(tokenizer, ITEMS)
    right = packed_scores(model, items)
    batch = packing.collate([s for item in items for s in pack(*item, 512)], 0)
    columns = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
    assert (model(**batch | {"position_ids": columns}).logits - right).abs().max() > 1e-2
    monkeypatch.setattr(
        packing, "allowed", lambda s: torch.ones(*s.shape, s.shape[1]).tril().bool()
    )
    leaking = packed_scores(model, items)
    assert leaking[0] == pytest.approx(right[0].item(), abs=1e-5)  # has nobody before it to see
    assert (leaking - right)[1:3].abs().min() > 1e-2


def test_gradients_equal_one_by_one(model, tokenizer):
    items = packing.encode(tokenizer, ITEMS)
    found = {}
    for name, scores in (
        ("packed", packed_scores(model, items)),
        ("apart", torch.cat([one_by_one(model, *item) for item in items])),
    ):
        model.zero_grad()
        torch.nn.functional.softplus(scores).sum().backward()
        found[name] = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    scale = found["apart"].abs().max()
    torch.testing.assert_close(found["packed"] / scale, found["apart"] / scale, atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_rubric_over_the_limit_opens_another_sequence_and_cuts_nothing(model, tokenizer):
    item = packing.encode(tokenizer, ITEMS)[0]
    limit = packing.longest(*item)
    assert len(pack(*item, limit)) > 1 == len(pack(*item, 512))
    assert all(len(s.ids) <= limit for s in pack(*item, limit))
    torch.testing.assert_close(
        packed_scores(model, [item], limit), packed_scores(model, [item]), atol=1e-5, rtol=0
    )
    with pytest.raises(ValueError, match="limit"):
        pack(*item, limit - 1)


@torch.no_grad()
def test_padding_makes_no_nan_even_in_half_precision(model, tokenizer):
    items = packing.encode(tokenizer, ITEMS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = packed_scores(model, items)
    assert scores.dtype == torch.float32 and scores.isfinite().all()


def test_batches_hold_every_sequence_once_within_the_budget():
    lengths = [7, 50, 3, 50, 12, 9, 120]
    batches = list(packing.batches(lengths, budget=100))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    assert all(len(b) == 1 or len(b) * max(lengths[i] for i in b) <= 100 for b in batches)


def test_template_and_end_token(tokenizer):
    shared, tails = packing.encode(tokenizer, ITEMS)[0]
    text = tokenizer.decode(shared)
    assert text == (
        "<|im_start|>user\nhow much?<|im_end|>\n"
        "<|im_start|>assistant\ntake two, then rest<|im_end|>"
    )
    assert tokenizer.decode(tails[0]) == "\nsafety: no danger<|im_end|>"
