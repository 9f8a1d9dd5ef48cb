"""``make bench``: memory of policy, reward model and reference on one base against one base each.

The base has Qwen3-0.6B's published shape and random weights, in NF4 (``MEMORY_BASE=small`` for a
quick look at a smaller one). Each side runs in a process of its own: it loads all three models,
scores packed answers, generates a few tokens, reads the reference and does one backward pass of the
policy. Memory is resident memory on a CPU, allocated memory on a GPU, in GiB: what the models take
once loaded, the peak of loading them, and the peak of the work.
"""

import gc
import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from time import perf_counter

import psutil
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from promedical_utils.core.records import Criterion
from promedical_utils.core.workspace import write_json
from promedical_utils.policy import shared_base, small_base
from promedical_utils.reward_model import hub, packing
from promedical_utils.reward_model import model as reward_model

SIDES = ("shared", "separate")
PUBLISHED = {  # https://huggingface.co/Qwen/Qwen3-0.6B/blob/main/config.json
    "vocab_size": 151936,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
}
SMALL = {"vocab_size": 8192, "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}
SHAPE = PUBLISHED | (SMALL if os.environ.get("MEMORY_BASE") == "small" else {})
POLICY_RANK, REWARD_RANK = 32, 64
ANSWERS, CRITERIA, GENERATED = 4, 7, 8
DIMENSIONS = ("proficiency",) * 4 + ("excellence",) * 2 + ("safety",)
WORDS = "take the drug that the leaflet names first and come back when it says so".split()
GPU = torch.cuda.is_available()
BUSY = psutil.cpu_percent(interval=1.0)  # of all cores, before anything of this runs
MEASURED = {}


def sentence(number: int, words: int) -> str:
    return " ".join(WORDS[(number + k * (1 + number % 5)) % len(WORDS)] for k in range(words))


def lora(rank: int, task: str, **rest) -> LoraConfig:
    return LoraConfig(
        task_type=task, r=rank, lora_alpha=2 * rank, target_modules="all-linear", **rest
    )


def make(folder: Path) -> None:
    """Write a base of random weights and a random reward adapter on it, as training leaves one."""
    tokenizer = small_base.train_tokenizer([sentence(n, 40) for n in range(40)], 320)
    torch.manual_seed(0)
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = Qwen3ForCausalLM(Qwen3Config(**SHAPE, **ends)).bfloat16()
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    del model
    dtype = hub.compute_dtype("auto")
    model = reward_model.base_for(folder / "base", True, dtype)
    model = get_peft_model(model, lora(REWARD_RANK, "SEQ_CLS", modules_to_save=["score"]))
    for name, weight in model.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            weight.data.normal_(std=0.02)
    model.save_pretrained(folder / "reward", save_embedding_layers=False)
    tokenizer.save_pretrained(folder / "reward")
    report = {
        "view": "criterion",
        "full": False,
        "heads": {},
        "max_tokens": 4096,
        "quantization": "nf4",
        "dtype": str(dtype).removeprefix("torch."),
        "base": hub.source_of(folder / "base", folder / "reward"),
    }
    write_json(folder / "reward" / "report.json", report)


def load(side: str, folder: Path):
    """(policy, reward model, reference as a context and a model) on one base, or on a base each."""
    base, dtype = folder / "base", hub.compute_dtype("auto")
    torch.manual_seed(1)
    own = hub.load(hub.CAUSAL, base, dtype, nf4=True)
    policy = get_peft_model(own, lora(POLICY_RANK, "CAUSAL_LM"))
    if side == "shared":
        scorer = shared_base.attach(policy, folder / "reward")
        return policy, scorer, lambda: shared_base.reference(policy), policy
    other = hub.load(hub.CAUSAL, base, dtype, nf4=True).eval()
    return policy, reward_model.load(folder / "reward"), nullcontext, other


def memory(peak: bool = False) -> float:
    """GiB in use, or the most since ``forget_peak``."""
    if GPU:
        return (
            torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
        ) / 2**30
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"{'VmHWM' if peak else 'VmRSS'}:\s*(\d+) kB", status)[1]) / 2**20


def forget_peak() -> None:
    if GPU:
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the kernel's high-water mark


def measure(side: str, folder: Path) -> dict:
    """Memory, seconds and results of one side in this process."""
    hub.silence()
    libraries, times, clock = memory(), {}, perf_counter()

    def lap(name):
        nonlocal clock
        if GPU:
            torch.cuda.synchronize()
        now = perf_counter()
        times[f"{name}_s"], clock = now - clock, now

    policy, scorer, reference, other = load(side, folder)
    gc.collect()
    lap("loading")
    loaded, loading_peak = memory(), memory(peak=True)
    forget_peak()

    criteria = [
        Criterion(id=f"c{k}", dimension=d, text=sentence(k, 24), weight=0.25 * (d == "proficiency"))
        for k, d in enumerate(DIMENSIONS)
    ]
    messages = [{"role": "user", "content": sentence(3, 80)}]
    items = [(messages, sentence(n, 60), criteria) for n in range(ANSWERS)]
    clock = perf_counter()
    rewards = scorer.score_texts(items)
    lap("scoring")

    tokenizer = scorer.tokenizer
    prompt = torch.tensor([packing.prompt_ids(tokenizer, messages)] * ANSWERS, device=policy.device)
    policy.eval()
    ids = policy.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=GENERATED,
        min_new_tokens=GENERATED,
        do_sample=False,
    )
    lap("generating")

    def logps(model):
        logits = model(input_ids=ids, logits_to_keep=GENERATED + 1).logits[:, :-1].float()
        return logits.log_softmax(-1).gather(2, ids[:, -GENERATED:, None])[..., 0]

    with torch.no_grad(), reference():
        kept = logps(other)
    lap("reference")
    own = logps(policy.train())
    (-own.mean()).backward()
    lap("backward")
    norm = sum(float(p.grad.norm() ** 2) for p in policy.parameters() if p.grad is not None) ** 0.5
    return {
        "libraries_gib": libraries,
        "models_gib": loaded - libraries,
        "loading_peak_gib": loading_peak,
        "peak_gib": memory(peak=True),
        **times,
        "rewards": rewards,
        "generated": ids.tolist(),
        "reference": kept.tolist(),
        "logps": own.tolist(),
        "gradient_norm": norm,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    command("make", folder)
    yield folder
    shutil.rmtree(folder)  # pytest would keep the weights


def command(*words) -> str:
    # else glibc keeps of what was freed as much as threads happened to leave, up to 0.8 GiB
    plain = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, *map(str, words)],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | plain,
    )
    return done.stdout


@pytest.mark.parametrize("side", SIDES)
def test_memory(benchmark, folder, side):
    found = []
    benchmark.pedantic(lambda: found.append(json.loads(command(side, folder))), rounds=1)
    [measured] = found
    MEASURED[side] = measured
    benchmark.group = "policy, reward model and reference"
    kept = ("rewards", "generated", "reference", "logps")
    benchmark.extra_info |= {
        "task": "policy memory",
        "side": side,
        "device": "cuda" if GPU else "cpu",
        "busy": BUSY,
        "dtype": str(hub.compute_dtype("auto")),
        "layers": SHAPE["num_hidden_layers"],
        "width": SHAPE["hidden_size"],
        "vocabulary": SHAPE["vocab_size"],
        **{name: value for name, value in measured.items() if name not in kept},
    }
    if side == SIDES[0]:
        return
    one, other = (MEASURED[side] for side in SIDES)
    for name in ("rewards", "reference", "logps"):
        found = (torch.tensor(one[name]) - torch.tensor(other[name])).abs().max().item()
        benchmark.extra_info[f"{name}_difference"] = found
        assert found < (1e-5 if not GPU else 1e-2)
    assert torch.tensor(one["rewards"]).std() > 1e-3 and one["generated"] == other["generated"]
    if GPU or SHAPE == PUBLISHED:  # a small base is little beside the libraries
        ratios = {k: one[f"{k}_gib"] / other[f"{k}_gib"] for k in ("models", "peak")}
        benchmark.extra_info |= {f"{name}_ratio": ratio for name, ratio in ratios.items()}
        assert ratios["models"] < 0.6 and ratios["peak"] < 0.9


if __name__ == "__main__":
    task, place = sys.argv[1], Path(sys.argv[2])
    if task == "make":
        hub.silence()
        make(place)
    else:
        print(json.dumps(measure(task, place)))
