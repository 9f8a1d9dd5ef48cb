"""What a machine is to the last digit."""

import pytest
import torch

from promedical_utils.core import machine, profiles, run_data
from promedical_utils.core.workspace import read_json

CPUINFO = """processor\t: {n}
vendor_id\t: GenuineIntel
cpu family\t: 6
model\t\t: 143
model name\t: some marketing @ 2.1GHz
cpu MHz\t\t: {mhz}
flags\t\t: fpu avx2 avx512f {flags} amx_tile

"""


def kind(path, monkeypatch, n=0, mhz=2100.0, flags="avx512_bf16 amx_bf16"):
    path.write_text(CPUINFO.format(n=n, mhz=mhz, flags=flags) * 2)
    monkeypatch.setattr(machine, "CPUINFO", path)
    return machine.processor()


def test_a_kind_of_processor_has_no_clock_and_no_number(tmp_path, monkeypatch):
    path = tmp_path / "cpuinfo"
    first = kind(path, monkeypatch)
    assert first == "GenuineIntel 6 143 avx2 avx512f avx512_bf16 amx_bf16"
    assert kind(path, monkeypatch, n=7, mhz=3900.5) == first
    assert kind(path, monkeypatch, flags="avx512_bf16") == first.removesuffix(" amx_bf16")
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "none")  # as on macOS
    assert machine.processor()


@pytest.mark.parametrize(
    "wanted, has, meant",
    [
        ("auto", {}, "fp32"),
        ("auto", {"avx512_bf16": True}, "bf16"),
        ("auto", {"amx_bf16": True, "avx512_bf16": False}, "bf16"),
        ("fp32", {"avx512_bf16": True}, "fp32"),
        ("bf16", {}, "bf16"),
    ],
)
def test_precision_of_a_processor(tmp_path, monkeypatch, wanted, has, meant):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert machine.precision(wanted) == meant
    (tmp_path / "Snakefile").touch()
    monkeypatch.chdir(tmp_path)
    run_data.manifest(profiles.load("smoke", precision=wanted), tmp_path)
    said = read_json(tmp_path / "manifest.json", "")
    assert (said["precision"], said["processor"]) == (meant, machine.processor())
