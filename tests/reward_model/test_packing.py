import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model

from promedical_utils.core.records import Criterion
from promedical_utils.core.workspace import KitError
from promedical_utils.reward_model import grouped, packing, training
from promedical_utils.reward_model.model import BATCH_TOKENS
from promedical_utils.reward_model.packing import Packed, pack

CRITERIA = [
    Criterion(id="a", dimension="safety", text="no danger", weight=0),
    Criterion(id="b", dimension="proficiency", text="names the dose and says why", weight=1),
    Criterion(id="c", dimension="excellence", text="kind", weight=0),
]
TAILS = [packing.criterion_text(c) for c in CRITERIA]
ITEMS = [
    ([{"role": "user", "content": "how much?"}], "take two, then rest", TAILS),
    ([{"role": "user", "content": "and now, after all that?"}], "wait", TAILS[1:]),
    ([{"role": "user", "content": "how much?"}], "the dose " * 9, TAILS[:1]),
]
# any mix of lengths: up to three prompts with up to three responses, up to five criteria for each
TOKENS = st.lists(st.integers(3, 300), min_size=1, max_size=9)
RESPONSE = st.tuples(
    st.lists(st.integers(3, 300), min_size=1, max_size=20), st.lists(TOKENS, max_size=5)
)
MIX = st.lists(
    st.tuples(TOKENS, st.lists(RESPONSE, min_size=1, max_size=3)), min_size=1, max_size=3
)
READ = st.sampled_from(["apart", "shared", "shared, cut"])


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


def tiny(architecture: str, attention: str = "sdpa"):
    """A random two-layer model with grouped queries, of which every token moves a score."""
    import transformers

    torch.manual_seed(3)
    config = getattr(transformers, f"{architecture}Config")(
        vocab_size=301,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=12,
        initializer_range=0.2,
        max_position_embeddings=8192,
        pad_token_id=0,
        num_labels=3,
    )
    config._attn_implementation = attention
    model = getattr(transformers, f"{architecture}ForSequenceClassification")(config)
    model.config.num_labels = 1
    return packing.read_many(model).eval()


@pytest.fixture(scope="module", params=["Qwen3", "Llama", "Qwen3 by rows", "Llama by rows"])
def any_model(request):
    """Tiny models of both kinds, with plain SDPA and in blocks of rows, here of four."""
    architecture, *rows = request.param.split()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(packing, "BLOCK", 4)
        patched.setattr(packing, "LEAVES", 4)
        yield tiny(architecture, packing.ATTENTION if rows else "sdpa")


@pytest.fixture(scope="module")
def adapted():
    """A LoRA on a model with grouped queries, whose weights are no longer those it starts with."""
    torch.manual_seed(5)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(packing, "BLOCK", 4)
        patched.setattr(packing, "LEAVES", 4)
        model = get_peft_model(tiny("Qwen3", packing.ATTENTION), grouped.lora(4))
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.3)
        yield model.eval()


def apart(model, shared, tails):
    """(K, heads): the plain forward of [shared][tail], each tail in a batch of its own."""
    rows = [model.model(input_ids=torch.tensor([shared + tail])) for tail in tails or [[]]]
    return torch.stack([model.score(row.last_hidden_state[0, -1]) for row in rows])


def sequences_of(prompt, responses, how):
    """Each response with its own prompt, a long rubric in several sequences, or all in trees."""
    if how == "apart":
        return [part for text, tails in responses for part in pack(prompt + text, tails, 45)]
    return packing.tree(prompt, responses, 50 if how == "shared, cut" else math.inf)


def scores_apart(model, mix):
    every = [(prompt + text, tails) for prompt, responses in mix for text, tails in responses]
    return torch.cat([apart(model, *item)[:, 0] for item in every])


@settings(max_examples=60, deadline=None)
@given(mix=MIX, how=READ)
@torch.no_grad()
def test_any_mix_scores_as_one_by_one(any_model, mix, how):
    packed = [part for item in mix for part in sequences_of(*item, how)]
    batch = packing.collate(packed, 0)
    assert ("blocks" in batch) == (how != "apart")
    if how != "apart":  # trees are not padded
        assert batch["input_ids"].tolist() == [[i for part in packed for i in part.ids]]
    expected = scores_apart(any_model, mix)
    torch.testing.assert_close(any_model(**batch).logits, expected, atol=1e-5, rtol=0)
    rows = packing.scores(any_model, packed, 0, budget=100)
    assert [len(row) for row in rows] == [len(part.reads) for part in packed]
    found = torch.tensor([score for row in rows for score in row])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_every_head_is_read_where_it_was_asked_for(any_model):
    (shared, tails), other = ([5, 9, 11, 7], [[3, 4], [8]]), [6, 12]
    batch = packing.collate(
        [Packed(other, [2], (2, 0)), Packed(shared + tails[0] + tails[1], [4, 6, 7], (1, 2))], 0
    )
    assert batch["reads"].tolist() == [
        [0, 1, 2],
        [0, 1, 0],
        [1, 5, 1],
        [1, 5, 2],
        [1, 6, 1],
        [1, 6, 2],
    ]
    whole, criteria = apart(any_model, other, []), apart(any_model, shared, tails)
    expected = [whole[0, 2], whole[0, 0], *criteria[0, 1:], *criteria[1, 1:]]
    scores = any_model(**batch).logits
    torch.testing.assert_close(scores, torch.stack(expected), atol=1e-5, rtol=0)


@settings(max_examples=15, deadline=None)
@given(
    mix=MIX,
    how=READ,
    weight=st.sampled_from([0.0, 0.7]),
    budget=st.sampled_from([1, 60, 10_000]),
    full=st.booleans(),
    data=st.data(),
)
def test_the_loss_and_its_gradients_are_those_of_one_by_one(
    any_model, adapted, mix, how, weight, budget, full, data
):
    """However the step is cut into passes: rows are groups, a pair is two reads of one row."""
    trained = any_model if full else adapted
    rows, every, known = [], [], []
    for prompt, responses in mix:
        n = sum(max(1, len(tails)) for _, tails in responses)
        reads = st.integers(0, n - 1)
        pairs = data.draw(st.lists(st.tuples(reads, reads), max_size=4))
        targets = data.draw(st.lists(st.sampled_from([0.0, 1.0, -1.0]), min_size=n, max_size=n))
        sequences = sequences_of(prompt, responses, how)
        rows.append(
            {
                "ids": [s.ids for s in sequences],
                "starts": [s.starts for s in sequences],
                "heads": [s.heads for s in sequences],
                "parents": [s.parents for s in sequences],
                "pairs": [list(p) for p in pairs],
                "targets": targets,
            }
        )
        every += [[a + len(known), b + len(known)] for a, b in pairs]
        known += targets

    def grads():
        found = torch.cat([p.grad.flatten() for p in trained.parameters() if p.grad is not None])
        trained.zero_grad()
        return found

    trained.zero_grad()
    scores = scores_apart(any_model if full else adapted.base_model.model, mix)
    pairs, targets = torch.tensor(every).reshape(-1, 2).long(), torch.tensor(known)
    expected = training.reward_loss(scores, pairs, targets, weight)
    expected.backward()
    expected_grads = grads()
    total = 0.0
    for part in training.RewardPasses(0, budget)(rows)["passes"]:
        reads = {k: v for k, v in part.items() if k not in ("pairs", "targets", "totals")}
        loss = training.reward_loss(
            trained(**reads).logits, part["pairs"], part["targets"], weight, part["totals"]
        )
        loss.backward()
        total += loss.item()
    assert total == pytest.approx(expected.item(), abs=1e-5)
    torch.testing.assert_close(grads(), expected_grads, atol=1e-5, rtol=1e-4)


def test_blocks_of_rows_read_no_key_beyond_their_own_end(monkeypatch):
    """Half of the scores of a long sequence are never computed, and none that is seen is lost."""
    calls, plain = [], packing.sdpa_attention_forward

    def watched(module, query, key, value, mask, **kwargs):
        calls.append(
            (query.shape[2], key.shape[2], None if mask is None else tuple(mask.shape[2:]))
        )
        return plain(module, query, key, value, mask, **kwargs)

    monkeypatch.setattr(packing, "sdpa_attention_forward", watched)
    monkeypatch.setattr(packing, "BLOCK", 256)
    model = tiny("Qwen3", packing.ATTENTION)
    ids = list(range(3, 293)) * 4
    with torch.no_grad():
        model(**packing.collate(pack(ids[:1000], [ids[1000:1100]], 8192), 0))
        assert calls == [(275, 275 * n, (275, 275 * n)) for n in (1, 2, 3, 4)] * 2  # two layers
        calls.clear()
        model(**packing.collate(pack(ids[:400], [ids[400:500]], 8192), 0))  # short: in one call
        assert calls == [(500, 500, (500, 500))] * 2
        calls.clear()
        model(input_ids=torch.tensor([ids]))  # the plain forward is left to SDPA's own skipping
        assert calls == [(1160, 1160, None)] * 2


@torch.no_grad()
def test_eight_thousand_tokens(any_model):
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 300, (8192,), generator=draw).tolist()
    shared, tails = ids[:8000], [ids[8000:8060], ids[8060:8192]]
    packed = pack(shared, tails, 8192)
    assert len(packed) == 1 and len(packed[0].ids) == 8192
    scores = any_model(**packing.collate(packed, 0)).logits
    torch.testing.assert_close(scores, apart(any_model, shared, tails)[:, 0], atol=1e-5, rtol=0)


class TestShortening:
    """``fit``: criteria whole, the instruction's oldest and the response's last words go."""

    def asked(self, tokenizer, old=0, words=0, limit=200):
        messages = [
            {"role": "user", "content": "old " * old + "how much?"},
            {"role": "assistant", "content": "well"},
            {"role": "user", "content": "so, how much now?"},
        ]
        responses = ["dose " * words + "end", "short"]
        return packing.fit(tokenizer, messages, responses, TAILS, limit), messages, responses

    def tokens(self, tokenizer, messages, response):
        [(shared, tails)] = packing.encode(tokenizer, [(messages, response, TAILS)])
        return packing.longest(shared, tails)

    def test_nothing_goes_where_all_fits(self, tokenizer):
        (kept, texts, cut), messages, responses = self.asked(tokenizer)
        assert (kept, texts) == (messages, responses)
        assert cut == {"instruction": 0, "responses": [0, 0]}

    def test_a_long_response_loses_its_end_alone(self, tokenizer):
        (kept, texts, cut), messages, responses = self.asked(tokenizer, words=200, limit=240)
        assert kept == messages and texts[1] == "short" and cut["responses"][1] == 0
        assert responses[0].startswith(texts[0]) and cut["responses"][0] > 0
        assert 235 <= self.tokens(tokenizer, kept, texts[0]) <= 240

    def test_a_long_instruction_loses_its_oldest_words_and_keeps_its_turns(self, tokenizer):
        (kept, texts, cut), messages, _ = self.asked(tokenizer, old=300, limit=240)
        assert texts == ["end", "short"] and [m["role"] for m in kept] == [
            "user",
            "assistant",
            "user",
        ]
        assert messages[0]["content"].endswith(kept[0]["content"]) and kept[1:] == messages[1:]
        assert cut["instruction"] > 0 == sum(cut["responses"])
        assert 235 <= self.tokens(tokenizer, kept, texts[0]) <= 240

    def test_when_both_are_long_the_instruction_keeps_half_of_the_room(self, tokenizer):
        (kept, texts, cut), _, _ = self.asked(tokenizer, old=300, words=300, limit=400)
        room = 400 - max(map(len, packing.text_ids(tokenizer, TAILS)))
        assert room // 2 - 5 <= len(packing.prompt_ids(tokenizer, kept)) <= room // 2
        assert min(cut["instruction"], cut["responses"][0]) > 0
        assert all(self.tokens(tokenizer, kept, text) <= 400 for text in texts)

    def test_a_criterion_is_never_cut(self, tokenizer):
        with pytest.raises(ValueError, match="the longest criterion takes"):
            self.asked(tokenizer, limit=max(map(len, packing.text_ids(tokenizer, TAILS))) + 20)


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
    assert batch["ends"].tolist() == [[5, 5, 4, 4, 5], [3, 3, 3, 5, 5]]
    assert batch["reads"].tolist() == [[0, 3, 0], [0, 4, 0], [1, 2, 0]]
    other = packing.collate([Packed([5, 6, 7, 8], [4]), Packed([5, 6, 7], [2, 3])], 0)
    assert other["input_ids"].tolist() == [[5, 6, 7, 8], [5, 6, 7, 0]]
    assert other["position_ids"][1, :3].tolist() == [0, 1, 2]
    assert other["ends"][1].tolist() == [3, 3, 3, 4]
    assert other["reads"].tolist() == [[0, 3, 0], [1, 2, 0]]


def test_the_mask_by_hand():
    seen = packing.allowed(torch.tensor([[5, 5, 4, 4, 5]]))[0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    mask = packing.attention_mask(torch.tensor([[3, 2, 3]]), torch.float32)
    assert mask.shape == (1, 1, 3, 3) and mask[0, 0, 2, 1] < -1e30 and mask[0, 0, 2, 0] == 0


def test_two_trees_by_hand():
    """[5 6][7 8]([9] [1 2])[3]([4]), and a prompt with one answer behind it in the same row."""
    first = packing.tree([5, 6], [([7, 8], [[9], [1, 2]]), ([3], [[4]])], math.inf)
    batch = packing.collate([*first, *packing.tree([7], [([8, 9], [])], math.inf)], 0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 1, 2, 3, 4, 7, 8, 9]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 4, 5, 2, 3, 0, 1, 2]]
    assert batch["ends"].tolist() == [[9, 9, 7, 7, 5, 7, 7, 9, 9, 12, 12, 12]]
    assert batch["reads"].tolist() == [[0, 4, 0], [0, 6, 0], [0, 8, 0], [0, 11, 0]]
    seen = packing.allowed(batch["ends"])[0]
    assert seen[6].nonzero().flatten().tolist() == [0, 1, 2, 3, 5, 6]  # not the other criterion
    assert seen[8].nonzero().flatten().tolist() == [0, 1, 7, 8]  # not the other answer
    assert seen[11].nonzero().flatten().tolist() == [9, 10, 11]  # not the other prompt


@pytest.mark.parametrize(
    "prompt, answer, answers, criteria, tail, packed, single",
    [
        (150, 100, 3, 8, 22, 1.3, None),
        (150, 100, 8, 8, 22, 1.4, None),
        (240, 240, 8, 7, 32, None, 7.25),
    ],
)
def test_how_many_times_fewer_tokens(prompt, answer, answers, criteria, tail, packed, single):
    """As one tree in training, and in scoring with the budget of a CPU."""
    branches = [([1] * answer, [[2] * tail] * criteria)] * answers
    for room in (math.inf, 2 * BATCH_TOKENS["cpu"]):
        [shared] = packing.tree([0] * prompt, branches, room)
        assert len(shared.ids) == prompt + answers * (answer + criteria * tail)
        if packed:
            alone = answers * (prompt + answer + criteria * tail)
            assert alone >= packed * len(shared.ids)
        if single:
            assert answers * criteria * (prompt + answer + tail) >= single * len(shared.ids)


@pytest.mark.parametrize("prompt", [30, 150, 1024])
def test_the_cost_rule(prompt):
    """A tree has fewer tokens and pairs than its answers apart, cut or not; a cut is seldom."""
    branches = [([1] * 90, [[2] * 22] * 8)] * 24

    def cost(sequences):
        parts = packing.collate(sequences, 0)["blocks"]
        pairs = sum(rows * sum(parts[n][0] for n in keys) for rows, keys, _ in parts)
        return sum(len(s.ids) for s in sequences), pairs

    apart = [packing.tree([0] * prompt, [branch], math.inf)[0] for branch in branches]
    room = max(1000, packing.REREAD * prompt)
    whole, cut = (packing.tree([0] * prompt, branches, most) for most in (math.inf, room))
    assert len(whole) == 1 < len(cut) < len(apart)
    assert all(len(s.ids) <= room for s in cut)
    for less, more in ((whole, cut), (cut, apart)):
        assert all(a < b for a, b in zip(cost(less), cost(more), strict=True))
    assert cost(cut)[0] <= 4 / 3 * cost(whole)[0]
    # a mask over the whole tree has every pair: what is computed is near what is seen
    tokens, pairs = cost(whole)
    assert pairs < 2 * packing.allowed(packing.collate(whole, 0)["ends"]).sum() < tokens**2


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
    assert max(map(len, batches)) > 2  # and it is used
    by_three = list(packing.batches(lengths, 100, [3] * 7))
    assert by_three == [[6], [1], [3], [4, 5], [0, 2]]


def test_template_and_end_token(tokenizer):
    shared, tails = packing.encode(tokenizer, ITEMS)[0]
    text = tokenizer.decode(shared)
    assert text == (
        "<|im_start|>user\nhow much?<|im_end|>\n"
        "<|im_start|>assistant\ntake two, then rest<|im_end|>"
    )
    assert tokenizer.decode(tails[0]) == "\nsafety: no danger<|im_end|>"


@pytest.mark.parametrize("kind", ["Mistral", "Gemma3Text"])
def test_past_a_sliding_window_a_score_is_refused_and_within_it_is_the_plain_one(kind):
    """A window of 16 tokens: the whole sequence of every tail has 16, then 17."""
    import transformers

    torch.manual_seed(5)
    size = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "head_dim": 16}
    size |= {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}
    size |= {"sliding_window": 16, "initializer_range": 0.3, "pad_token_id": 0, "num_labels": 1}
    config = getattr(transformers, f"{kind}Config")(**size)
    model = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    shared, tails = list(range(5, 18)), [[20, 21, 22], [30, 31, 32]]
    with torch.no_grad():
        plain = one_by_one(model, shared, tails)
        packed = packed_scores(packing.read_many(model), [(shared, tails)])
    assert torch.allclose(packed, plain, atol=1e-5) and abs(packed[0] - packed[1]) > 1e-3
    with pytest.raises(
        KitError, match="17 tokens pass the sliding_window of 16: set rm_max_tokens=16"
    ):
        packed_scores(model, [(shared + [40], tails)])


def test_what_is_no_plain_attention_is_refused():
    import transformers

    with pytest.raises(KitError, match="lfm2 has conv layers"):
        packing.window_of(transformers.Lfm2Config(layer_types=["conv", "full_attention"] * 16))
    assert packing.window_of(transformers.Qwen2Config(sliding_window=8)) is None  # not used
    shape = torch.zeros(1, 2, 4, 8)
    for unknown in ({"softcap": 50.0}, {"s_aux": torch.zeros(2)}):
        with pytest.raises(KitError, match="no capped scores"):
            packing.by_rows(torch.nn.Module(), shape, shape, shape, None, **unknown)
