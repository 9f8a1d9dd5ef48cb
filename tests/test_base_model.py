"""The small base: its tokenizer, its start, its course and its copy rates."""

import pytest
import torch

from promedical_utils import base_model, clinic, profiles
from promedical_utils.clinic import lessons, vocabulary
from promedical_utils.records import Message
from promedical_utils.workspace import KitError


@pytest.fixture(scope="module")
def tokenizer():
    world = clinic.build(profiles.load("smoke"), sizes=(60, 2, 2, 2, 2))
    texts = [m.content for i in world.instructions for m in i.messages]
    return base_model.train_tokenizer(lessons.corpus(texts), 2048, vocabulary.single_tokens())


def test_every_value_is_one_token(tokenizer):
    for word in vocabulary.single_tokens():
        ids = tokenizer(f" {word}", add_special_tokens=False).input_ids
        assert len(ids) == 1 and tokenizer.decode(ids) == f" {word}"
    with pytest.raises(KitError, match="base_vocabulary"):
        base_model.train_tokenizer(["a b"], 260, ["Habpidorax", "Zolquavane"])


def test_loss_is_on_the_answer_only(tokenizer):
    row = base_model.encode(tokenizer, ([Message(role="user", content="Danger tremor.")], "Come in."))
    answer = tokenizer("Come in." + base_model.END, add_special_tokens=False).input_ids
    assert row["labels"][-len(answer) :] == answer == row["input_ids"][-len(answer) :]
    assert set(row["labels"][: -len(answer)]) == {-100}


def test_attention_leans_towards_an_induction_circuit(tokenizer):
    model = base_model.new_model(tokenizer, layers=3, width=128, seed=0)
    model.set_attn_implementation("eager")
    before, after, plain = [], [], []
    for seed in range(8):
        order = torch.randperm(len(tokenizer) - 10, generator=torch.Generator().manual_seed(seed))
        ids = order[:20] + 5
        found = model(input_ids=torch.cat([ids, ids])[None], output_attentions=True).attentions
        before.append(found[0][0, :2].diagonal(-1, dim1=1, dim2=2).mean().item())
        # at the second copy of a token, to what followed the first one: 19 places back
        back = found[1][0].diagonal(-19, dim1=1, dim2=2)[:, 2:].mean(dim=1)
        after.append(back[:2].mean().item())
        plain.append(back[2:].mean().item())
    assert min(before) > 0.6  # heads of layer 0 look at the token before
    assert sum(after) > 2 * sum(plain)


def test_course_learns_and_loads_as_a_hub_model(tokenizer, tmp_path):
    model = base_model.new_model(tokenizer, layers=2, width=64, seed=1)

    def lesson(index, total):
        value = ("tremor", "yawning")[index % 2]
        return [Message(role="user", content=f"Danger {value}.")], f"Alarm {value}."

    report = base_model.train(model, tokenizer, lesson, 40, 4, 4e-3, 1, tmp_path / "work")
    assert report["curve"][-1]["loss"] < report["curve"][0]["loss"] / 5
    base_model.save(model, tokenizer, tmp_path / "base")
    again, words = base_model.load(tmp_path / "base")
    tests = [(*lesson(n, 2), {("tremor", "yawning")[n]: "danger"}) for n in (0, 1)]
    assert base_model.copy_rates(again, words, tests) == {"danger": 1.0}
    assert words.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False).endswith(
        f"a{base_model.END}\n"
    )


def test_copy_rates_count_what_is_put_first(tokenizer):
    class Always:  # puts " tremor" first everywhere
        def eval(self):
            pass

        def __call__(self, input_ids):
            logits = torch.zeros(1, input_ids.shape[1], len(tokenizer))
            logits[..., tokenizer(" tremor").input_ids[0]] = 1
            return type("Out", (), {"logits": logits})

    said = [Message(role="user", content="x")]
    tests = [
        (said, "Danger tremor. Harmless yawning.", {"tremor": "danger", "yawning": "mild"}),
        (said, "Danger yawning.", {"yawning": "danger"}),
    ]
    assert base_model.copy_rates(Always(), tokenizer, tests) == {"danger": 0.5, "mild": 0.0}


def test_base_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(KitError, match="BASE=small"):
        base_model.load(tmp_path / "nothing")
