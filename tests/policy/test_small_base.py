"""The small base: its tokenizer, its start, its course and its copy rates."""

import pytest
import torch

from promedical_utils import clinic
from promedical_utils.clinic import lessons, vocabulary
from promedical_utils.core import profiles
from promedical_utils.core.records import Message
from promedical_utils.core.workspace import KitError
from promedical_utils.policy import small_base
from promedical_utils.reward_model import hub

pytestmark = pytest.mark.training  # fits models

ARCHITECTURES = ("qwen3", "llama")


def sized(layers, width, seed=0, **base):
    named = {f"base_{name}": value for name, value in base.items()}
    return profiles.load("smoke", seed=seed, base_layers=layers, base_width=width, **named)


@pytest.fixture(scope="module")
def tokenizer():
    world = clinic.build(profiles.load("smoke"), sizes=(60, 2, 2, 2, 2))
    texts = [m.content for i in world.instructions for m in i.messages]
    return small_base.train_tokenizer(lessons.corpus(texts), 2048, vocabulary.single_tokens())


def test_every_value_is_one_token(tokenizer):
    for word in vocabulary.single_tokens():
        ids = tokenizer(f" {word}", add_special_tokens=False).input_ids
        assert len(ids) == 1 and tokenizer.decode(ids) == f" {word}"
    with pytest.raises(KitError, match="base_vocabulary"):
        small_base.train_tokenizer(["a b"], 260, ["Habpidorax", "Zolquavane"])


def test_loss_is_on_the_answer_or_on_the_replies_alone(tokenizer):
    ids = lambda text: tokenizer(text, add_special_tokens=False).input_ids  # noqa: E731
    said, end = [Message(role="user", content="Danger tremor.")], tokenizer.eos_token_id
    packed, labels = small_base.encode(tokenizer, (said, "Come in.", ()))
    answer = [*ids("Come in."), end]
    assert labels[-len(answer) :] == answer == packed.ids[-len(answer) :]
    assert set(labels[: -len(answer)]) == {-100} and packed.starts == [len(packed.ids)]

    lookups = [("\nlook up: tremor", "urgent"), ("\nlook up: thirst", "nothing")]
    asked, learned = small_base.encode(tokenizer, (said, "Come in.", lookups))
    assert asked.ids[: len(packed.ids)] == packed.ids  # the answer is given, then come the turns
    assert set(learned[: len(packed.ids)]) == {-100}
    for (question, reply), start, stop in zip(
        lookups, asked.starts, asked.starts[1:], strict=False
    ):
        turn = [*ids(question), end]  # ends in the token whose state a reward model scores
        assert asked.ids[start:stop] == turn + ids(reply)
        assert learned[start:stop] == [-100] * len(turn) + ids(reply)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_attention_starts_as_an_induction_circuit(tokenizer, architecture):
    model = small_base.new_model(tokenizer, sized(3, 128, architecture=architecture))
    assert model.config.model_type == architecture
    model.set_attn_implementation("eager")
    before, two_before, after = [], [], []
    for seed in range(8):
        order = torch.randperm(len(tokenizer) - 10, generator=torch.Generator().manual_seed(seed))
        ids = order[:20] + 5
        found = model(input_ids=torch.cat([ids, ids])[None], output_attentions=True).attentions
        before.append(found[0][0, :2].diagonal(-1, dim1=1, dim2=2).mean().item())
        two_before.append(found[0][0, 2].diagonal(-2).mean().item())
        # at the second copy of a token, to what followed the first one: 19 places back
        back = found[1][0].diagonal(-19, dim1=1, dim2=2)[:, 2:].mean(dim=1)
        after.append(back[:2].mean().item())
        same = found[2][0, 0].diagonal(-20).mean().item()
        assert same > 3 * found[2][0, 3].diagonal(-20).mean().item()
    assert min(before) > 0.6 and min(two_before) > 0.6
    uniform = sum(1 / (place + 1) for place in range(21, 40)) / 19
    assert sum(after) / 8 > 2 * uniform


def test_llama_starts_as_qwen3_but_for_the_size_of_queries_and_keys(tokenizer):
    sizes = [sized(2, 64, seed=5, architecture=a) for a in ARCHITECTURES]
    qwen, llama = (small_base.new_model(tokenizer, p) for p in sizes)
    weights = qwen.state_dict()
    assert weights.keys() - llama.state_dict().keys() == {
        f"model.layers.{n}.self_attn.{x}_norm.weight" for n in (0, 1) for x in "qk"
    }
    for key, weight in llama.state_dict().items():
        same = torch.equal(weight, weights[key])
        assert same != (".q_proj" in key or ".k_proj" in key), key
    # of a head the rows are scaled alike, and such that queries are as long as normalised ones
    name = "model.layers.0.self_attn.q_proj.weight"
    moved = weights[name].abs() > 1e-3
    ratio = (llama.state_dict()[name] / weights[name]).unflatten(0, (2, 32))
    for head, kept in zip(ratio, moved.unflatten(0, (2, 32))):
        torch.testing.assert_close(head[kept], head[kept][:1].expand_as(head[kept]))
    ids = torch.arange(200, 264)[None]
    read = llama.model.layers[0].input_layernorm(llama.model.embed_tokens(ids))
    queries = llama.model.layers[0].self_attn.q_proj(read).unflatten(-1, (-1, 32))
    size = queries.square().mean(dim=(0, 1, 3)).sqrt()
    torch.testing.assert_close(size, torch.full_like(size, 2.0), rtol=0.1, atol=0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_course_learns_and_loads_as_a_hub_model(tokenizer, tmp_path, architecture):
    p = sized(2, 64, seed=1, architecture=architecture, steps=120, batch=4, learning_rate=2e-3)
    model = small_base.new_model(tokenizer, p)

    def lesson(index, total):
        value = ("tremor", "yawning")[index % 2]
        return [Message(role="user", content=f"Danger {value}.")], f"Alarm {value}.", ()

    report = small_base.train(model, tokenizer, lesson, p, tmp_path / "work")
    assert report["curve"][-1]["loss"] < report["curve"][0]["loss"] / 5
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "base")
    again = hub.load(hub.CAUSAL, tmp_path / "base", attention=None)
    words = hub.plain_tokenizer(tmp_path / "base")
    tests = [(*lesson(n, 2)[:2], {("tremor", "yawning")[n]: "danger"}) for n in (0, 1)]
    assert small_base.copy_rates(again, words, tests) == {"danger": 1.0}
    assert words.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False).endswith(
        f"a{small_base.END}\n"
    )


def test_copy_rates_count_what_is_put_first(tokenizer):
    class Always:  # puts " tremor" first everywhere
        device = torch.device("meta")  # wherever it is, there go its inputs

        def eval(self):
            pass

        def __call__(self, input_ids):
            assert input_ids.device == self.device
            logits = torch.zeros(1, input_ids.shape[1], len(tokenizer))
            logits[..., tokenizer(" tremor").input_ids[0]] = 1
            return type("Out", (), {"logits": logits})

    said = [Message(role="user", content="x")]
    tests = [
        (said, "Danger tremor. Harmless yawning.", {"tremor": "danger", "yawning": "mild"}),
        (said, "Danger yawning.", {"yawning": "danger"}),
    ]
    assert small_base.copy_rates(Always(), tokenizer, tests) == {"danger": 0.5, "mild": 0.0}


def test_base_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(KitError, match="BASE=small"):
        hub.load(hub.CAUSAL, tmp_path / "nothing")
