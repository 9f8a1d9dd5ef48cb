"""What this machine is to the last digit: its kind of processor, and what ``auto`` computes in."""

import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
BF16 = ("avx512_bf16", "amx_bf16")  # with one of these a processor multiplies in bf16
KERNELS = ("avx2", "avx512f", *BF16)  # what chooses another kernel, and so other last digits


def processor() -> str:
    """Vendor, family, model, ``KERNELS``: "AuthenticAMD 26 2 avx2"; no serial number, no clock."""
    text = CPUINFO.read_text(encoding="utf-8").partition("\n\n")[0] if CPUINFO.exists() else ""
    first = dict(re.findall(r"^([\w ]+?)\s*: (.*)$", text, re.MULTILINE))
    names = [first[key] for key in ("vendor_id", "cpu family", "model") if key in first]
    names += [name for name in KERNELS if name in first.get("flags", "").split()]
    return " ".join(names) or platform.processor() or platform.machine()


def precision(wanted: str) -> str:
    """``wanted``; for ``auto`` bf16 where the machine has it, else fp16 on a GPU, fp32 on a CPU."""
    if wanted != "auto":
        return wanted

    import torch  # slow to load, and of the extra train

    if torch.cuda.is_available():  # emulated bf16 is slow
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if any(torch.cpu.get_capabilities().get(name) for name in BF16) else "fp32"
