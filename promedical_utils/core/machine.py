"""What this machine is to the last digit: its kind of processor, and what ``auto`` computes in."""

import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
# Instructions that choose another kernel, and so other last digits
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
BF16 = ("avx512_bf16", "amx_bf16")  # with one of these a CPU multiplies in bf16


def processor() -> str:
    """Vendor, family, model and ``INSTRUCTIONS``: within one kind a rerun is equal byte for byte.

    No serial number and no clock: ``AuthenticAMD 26 2 avx2 avx512f avx512_bf16``.
    """
    text = CPUINFO.read_text(encoding="utf-8") if CPUINFO.exists() else ""
    first = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text.partition("\n\n")[0], re.MULTILINE))
    names = [first[key] for key in ("vendor_id", "cpu family", "model") if key in first]
    has = first.get("flags", "").split()
    names += [name for name in INSTRUCTIONS if name in has]
    return " ".join(names) or platform.processor() or platform.machine()


def precision(wanted: str) -> str:
    """fp32 or bf16 as ``wanted``; for ``auto`` bf16 where this machine has it, else fp16 on a GPU
    and fp32 on a CPU."""
    if wanted != "auto":
        return wanted

    import torch  # slow to load, and of the extra train

    if torch.cuda.is_available():  # emulated bf16 is slow
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    has = torch.cpu.get_capabilities()
    return "bf16" if any(has.get(name) for name in BF16) else "fp32"
