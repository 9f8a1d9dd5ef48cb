"""Scorers by hub id: a tiny random model of each one's own architecture and template, by hand."""

import math
import re
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from helpers import scorers_tiny as tiny
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from promedical_utils.core import profiles
from promedical_utils.core.records import Message
from promedical_utils.core.workspace import KitError
from promedical_utils.evaluation import scorers
from promedical_utils.evaluation.scorers import published, roster
from promedical_utils.evaluation.scorers.published import PairRM, ScalarRM, Verifier


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("hub")
    return {
        "pair": tiny.save(root / "pair", template=tiny.OLD),
        "verifier": tiny.save(root / "verifier", labels=2, seed=1),
        "scalar": tiny.save(root / "scalar", labels=1, seed=2),
        "short": tiny.save(root / "short", labels=2, positions=100),
    }


@pytest.fixture(scope="module")
def pair(folders):
    return PairRM.load(folders["pair"])


@pytest.fixture(scope="module")
def judged(folders):
    return Verifier.load(folders["verifier"])


@pytest.fixture(scope="module")
def groups():
    return tiny.groups()


def text_of(tokenizer, ids):
    return tokenizer.decode(ids)


def plain_logits(folder, kind, ids):
    """The last position of the plain model's own forward, one unpadded sequence."""
    model = kind.from_pretrained(folder).eval()
    with torch.no_grad():
        found = model(input_ids=torch.tensor([ids]))
    return found.logits[0] if kind is LlamaForSequenceClassification else found.logits[0, -1]


# ---------------------------------------------------------------- pair RM


def test_the_context_is_the_cards():
    words = tiny.tokenizer()

    def shown(turns):
        return text_of(words, published.pair_ids(words, turns, "one", "two"))

    asked = [{"role": "user", "content": "How can I trick someone?"}]
    # the card's example
    assert "[CONTEXT] \n\n<turn> user\n How can I trick someone?\n [RESPONSE A]" in shown(asked)
    template = (  # the card's own, rendered by the library
        "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n "
        "{{ message['content'] }}{% else %}\n\n<turn> assistant\n {{ message['content'] }}{% endif "
        "%}"
        "{% endfor %}\n\n\n"
    )
    turns = [
        *asked,
        {"role": "assistant", "content": "No."},
        {"role": "user", "content": "Why not?"},
    ]
    rendered = words.apply_chat_template(turns, chat_template=template, tokenize=False)
    assert f"[CONTEXT] {rendered} [RESPONSE A]" in shown(turns)


@pytest.mark.parametrize("template", [tiny.OLD, tiny.NEW])
def test_the_pair_prompt_opens_the_assistants_turn_without_bos(template):
    words = tiny.tokenizer(template)
    ids = published.pair_ids(words, [{"role": "user", "content": "Q"}], "one", "two")
    assert text_of(words, ids) == (
        "<|start_header_id|>user<|end_header_id|>\n\n"
        "[CONTEXT] \n\n<turn> user\n Q\n [RESPONSE A] one [RESPONSE B] two<|eot_id|>" + tiny.OPENED
    )
    assert words.bos_token_id not in ids
    assert ids.count(words.convert_tokens_to_ids("<|start_header_id|>")) == 2


def test_pair_probabilities_are_the_softmax_of_two_letters(pair, folders, groups):
    frame = pair.pairwise(groups)
    a, b = published.letters(pair.tokenizer)
    assert [pair.tokenizer.decode([i]) for i in (a, b)] == ["A", "B"]

    def first(group, x, y):
        ids = published.pair_ids(pair.tokenizer, group.messages, x.text, y.text)
        logits = plain_logits(folders["pair"], LlamaForCausalLM, ids)
        up, down = math.exp(logits[a]), math.exp(logits[b])
        return up / (up + down)

    n = 0
    for group in groups:
        for x, y in combinations(group.candidates, 2):
            row, n = frame.iloc[n], n + 1
            assert (row.instruction_id, row.criterion_id) == (group.instruction.id, "")
            assert (row.a_id, row.b_id) == (x.id, y.id)
            one, two = first(group, x, y), first(group, y, x)
            assert row.probability == pytest.approx((one + 1 - two) / 2, abs=1e-5)
            assert row.consistent == ((one > 0.5) == (two < 0.5))
    assert n == len(frame) == 4
    assert frame.probability.std() > 1e-3  # or the model would say nothing


def test_exchanging_two_answers_turns_the_preference_round(pair, groups):
    turned = [tiny.Group(g.instruction, g.criteria, g.candidates[::-1], {}) for g in groups]
    one, two = pair.pairwise(groups), pair.pairwise(turned)
    there = {(r.a_id, r.b_id): r.probability for r in one.itertuples()}
    back = {(r.b_id, r.a_id): r.probability for r in two.itertuples()}
    assert there.keys() == back.keys()
    for key, value in there.items():
        assert value == pytest.approx(1 - back[key], abs=1e-6)


def test_batching_and_padding_change_no_preference(pair, groups, monkeypatch):
    monkeypatch.setitem(published.BATCH_TOKENS, "cpu", 1)
    alone = pair.pairwise(groups)
    monkeypatch.setitem(published.BATCH_TOKENS, "cpu", 100_000)
    together = pair.pairwise(groups)
    np.testing.assert_allclose(alone.probability, together.probability, atol=1e-6)


def test_letters_of_two_tokens_are_refused():
    class Split:
        def __call__(self, text, **_):
            return {"input_ids": [1, 2]}

    with pytest.raises(KitError, match="one token each"):
        published.letters(Split())


# ---------------------------------------------------------------- verifier


def test_verifier_reads_the_cards_template(judged):
    ids = published.verifier_ids(judged.tokenizer, "Two a day.", "names the dose")
    text = text_of(judged.tokenizer, ids)
    assert text.startswith(
        tiny.BOS + "<Model Response>\nTwo a day.\n</Model Response>\n\n"
        "<Reference Answer>\nnames the dose\n</Reference Answer>\n\nYour task is to evaluate"
    )
    assert text.endswith('output "False" . ' + tiny.EOT)
    assert ids.count(judged.tokenizer.bos_token_id) == 1


def test_verifier_probabilities_are_the_softmax_of_its_labels(judged, folders, groups, monkeypatch):
    frame = judged.pointwise(groups)
    cells = [(g, a, c) for g in groups for a in g.candidates for c in g.criteria]
    assert list(zip(frame.candidate_id, frame.criterion_id, strict=True)) == [
        (a.id, c.id) for _, a, c in cells
    ]
    for row, (_, a, c) in zip(frame.itertuples(), cells, strict=True):
        ids = published.verifier_ids(judged.tokenizer, a.text, c.text)
        no, yes = plain_logits(folders["verifier"], LlamaForSequenceClassification, ids).tolist()
        true = math.exp(yes) / (math.exp(yes) + math.exp(no))
        assert row.probability == pytest.approx(true, abs=1e-5)
        assert row.score == pytest.approx(yes - no, abs=1e-4) and row.met == (true > 0.5)
    assert frame.probability.std() > 1e-3
    monkeypatch.setitem(published.BATCH_TOKENS, "cpu", 1)
    alone = judged.pointwise(groups)
    np.testing.assert_allclose(alone.score, frame.score, atol=1e-5)


def test_the_answer_read_last_changes_nothing_for_the_others(judged, groups):
    frame = judged.pointwise(groups)
    back = judged.pointwise(groups[::-1])
    merged = frame.merge(back, on=["candidate_id", "criterion_id"])
    assert len(merged) == len(frame)
    np.testing.assert_allclose(merged.score_x, merged.score_y, atol=1e-5)


# ---------------------------------------------------------------- scalar


def test_scalar_reads_the_answer_as_the_assistants_turn(folders, groups, monkeypatch):
    rm = ScalarRM.load(folders["scalar"])
    frame = rm.overall(groups)
    answers = [(g, a) for g in groups for a in g.candidates]
    assert list(frame.candidate_id) == [a.id for _, a in answers] and set(frame.criterion_id) == {
        ""
    }
    for row, (g, a) in zip(frame.itertuples(), answers, strict=True):
        ids = published.scalar_ids(rm.tokenizer, g.messages, a.text)
        assert ids.count(rm.tokenizer.bos_token_id) == 1
        assert text_of(rm.tokenizer, ids).endswith(f"{tiny.OPENED}{a.text.strip()}{tiny.EOT}")
        [score] = plain_logits(folders["scalar"], LlamaForSequenceClassification, ids).tolist()
        assert row.score == pytest.approx(score, abs=1e-4)
    monkeypatch.setitem(published.BATCH_TOKENS, "cpu", 1)
    alone = rm.overall(groups)
    np.testing.assert_allclose(alone.score, frame.score, atol=1e-5)


# ---------------------------------------------------------------- what all share


@pytest.mark.parametrize(
    ("kind", "load", "asks", "value", "who"),
    [
        ("pair", PairRM.load, "pairwise", "probability", "candidates i0a and i0b"),
        ("verifier", Verifier.load, "pointwise", "score", "candidate i0b on i0-dose"),
        ("scalar", ScalarRM.load, "overall", "score", "candidate i0b"),
    ],
)
def test_what_is_too_long_is_named_and_never_cut(
    folders, groups, monkeypatch, kind, load, asks, value, who
):
    sizes, scorer = {}, load(folders[kind])
    read = type(scorer).logits
    monkeypatch.setattr(
        type(scorer), "logits", lambda self, texts: sizes.update(texts) or read(self, texts)
    )
    whole = getattr(scorer, asks)(groups[1:])
    limit = max(map(len, sizes.values()))
    scorer.model.config.max_position_embeddings = limit
    same = getattr(scorer, asks)(groups[1:])
    np.testing.assert_allclose(same[value], whole[value], atol=1e-5)
    with pytest.raises(KitError, match=rf"{who} takes \d+ tokens"):
        getattr(scorer, asks)(groups)
    longest = next(n for n in sizes if len(sizes[n]) == limit)
    scorer.model.config.max_position_embeddings = limit - 1
    with pytest.raises(
        KitError, match=rf"{longest} takes {limit} tokens.*the limit is {limit - 1}"
    ):
        getattr(scorer, asks)(groups[1:])


def test_a_model_has_no_more_tokens_than_positions(folders, groups):
    with pytest.raises(KitError, match="the limit is 100"):
        Verifier.load(folders["short"]).pointwise(groups)


def test_other_heads_missing_heads_and_missing_models_are_refused(folders, tmp_path):
    with pytest.raises(KitError, match="has 1 labels, not 2"):
        Verifier.load(folders["scalar"])
    headless = tiny.save(tmp_path / "headless")  # a causal model has no score head
    with pytest.raises(KitError, match="lacks weights of its architecture: score.weight"):
        Verifier.load(headless)
    with pytest.raises(KitError, match="nobody/nothing cannot be loaded"):
        ScalarRM.load("nobody/nothing")
    bare = tiny.save(tmp_path / "bare", labels=1)
    (bare / "chat_template.jinja").unlink()
    with pytest.raises(KitError, match="no chat template"):
        ScalarRM.load(bare)


def test_a_model_that_cannot_run_is_left_out_with_a_line_that_says_why(tmp_path, folders):
    """An encoder has its head elsewhere; a template may take no system turn."""
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    encoder = BertConfig(vocab_size=400, num_labels=1, intermediate_size=32, **size)
    BertForSequenceClassification(encoder).save_pretrained(tmp_path / "encoder")
    tiny.tokenizer().save_pretrained(tmp_path / "encoder")
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}"
    strict = tiny.save(tmp_path / "strict", 1, refuses + "{% endif %}" + tiny.NEW)
    [asked, *_] = tiny.groups()
    turns = [Message(role="system", content="In one line."), *asked.instruction.messages]
    told = replace(asked, instruction=asked.instruction.model_copy(update={"messages": turns}))
    for folder, groups, says in (
        (tmp_path / "encoder", [asked], r"encoder \(bert\) has no score head"),
        (strict, [told], "template refuses a conversation of system, user, assistant: No system"),
    ):
        profile = profiles.load("smoke", scalar_rm=str(folder), quantization="none")
        _, _, left_out = roster.predict(roster.others(profile, tmp_path), groups)
        assert re.search(says, left_out["scalar_rm"]) and str(tmp_path) not in left_out["scalar_rm"]
    assert len(ScalarRM.load(strict).overall([asked])) == 3  # without that turn it scores


def test_heads_are_float32_whatever_the_body_is(folders):
    """Logits of half precision tie, and a tie counts as wrong."""
    for name, kind in (("verifier", Verifier), ("scalar", ScalarRM)):
        model = kind.load(folders[name], dtype=torch.bfloat16).model
        assert model.score.weight.dtype == torch.float32
        assert model.get_input_embeddings().weight.dtype == torch.bfloat16


def test_what_a_scorer_can_do_is_what_it_has(pair, judged, groups):
    none, preferences = scorers.predict(pair, groups)
    assert none is None and list(preferences.columns) == scorers.PREFERRED
    assert set(preferences.scorer) == {"pair_rm"}
    predictions, none = scorers.predict(judged, groups)
    assert none is None and list(predictions.columns) == scorers.PREDICTED
    assert predictions.met.dtype == "boolean"
