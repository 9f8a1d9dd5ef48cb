"""What this machine has and what a profile will need of it; a report, nothing is changed."""

import json
import math
import os
import platform
import shutil
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import psutil

from promedical_utils.core import machine as kind
from promedical_utils.core import profiles
from promedical_utils.core.profiles import Profile
from promedical_utils.core.workspace import KitError, project_root
from promedical_utils.data.sources import schemas
from promedical_utils.run import notebooks, throughput

DISK_GIB = 8  # the environment and a run of the small base; a hub model comes on top
BY_MODEL = [name for name in notebooks.NOTEBOOKS if name[:2] in ("00", "03", "04", "05", "06")]


def report(name: str) -> str:
    """The report for one profile, as text; secrets are named, never shown. Raises KitError."""
    profile = profiles.profile_for(name)
    busy = loaded()  # before this process loads the machine itself
    measured, rate = trained_here(profile)
    blocks = {
        "machine": machine(profile),
        "speed": [*busy, measured],
        "packages": packages(),
        "data": [_key("HF_TOKEN"), *data()],
        "endpoints": endpoints(profile),
        f"profile {name}": needs(profile, rate),
    }
    return "\n".join("\n  ".join((title, *lines)) for title, lines in blocks.items())


def cores() -> int:
    here = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if here else os.cpu_count() or 1


def loaded() -> list[str]:
    """A line where other processes take more than half of the cores: speed is measured too low."""
    load, count = psutil.getloadavg()[0], cores()
    if load <= count / 2:
        return []
    taken = f"{load:.1f} of {count} cores over the last minute"
    return [f"other processes load this machine ({taken}): measured below is what they leave"]


def machine(profile: Profile) -> list[str]:
    memory = psutil.virtual_memory().total / 2**30
    disk = shutil.disk_usage(project_root()).free / 2**30
    return [
        f"Python {platform.python_version()}, {cores()} cores",
        f"memory: {memory:.1f} GiB, {_judged(memory, profile.memory_gib)}",
        f"free disk: {disk:.0f} GiB, {_judged(disk, DISK_GIB)}",
        f"GPU: {gpu()}",
    ]


def _judged(here: float, needed: float) -> str:
    return f"{needed:g} needed: {'enough' if here >= needed else 'TOO LITTLE'}"


def gpu() -> str:
    if not find_spec("torch"):
        return "not known without torch, which is part of the extra train"

    import torch  # slow to load

    if not torch.cuda.is_available():
        return f"none seen by torch {torch.__version__} (PROFILE=cpu and BASE=small need none)"
    device = torch.cuda.get_device_properties(0)
    return f"{device.name}, {device.total_memory / 2**30:.0f} GiB, {kind.precision('auto')}"


def packages() -> list[str]:
    """Installed versions against the lock; a local tag such as ``+cpu`` is no difference."""
    lock = (project_root() / "requirements.lock").read_text(encoding="utf-8").split()
    wrong = []
    for package, _, wanted in (line.partition("==") for line in lock):
        try:
            installed = metadata.version(package)
        except metadata.PackageNotFoundError:
            installed = "missing"
        if installed.partition("+")[0] != wanted:
            wrong.append(f"{package}: {installed}, the lock says {wanted}")
    if wrong:
        return [*wrong, "to mend: make clean, then the command again"]
    return [f"all {len(lock)} as in requirements.lock"]


def data() -> list[str]:
    """The public sets of profile real; the other profiles use the clinic in the package."""
    folder = os.environ.get(schemas.VARIABLE)
    if not folder:
        return [f"{schemas.VARIABLE}: not set; PROFILE=real downloads what it reads"]
    states = {None: "not found", True: "found", False: "found, other bytes than its card's"}
    found = {key: states[schemas.as_first_read(key)] for key in schemas.CARDS}
    sets = [f"{card.name} ({card.file}): {found[key]}" for key, card in schemas.CARDS.items()]
    return [f"{schemas.VARIABLE}: {folder}", *sets]


def trained_here(profile: Profile) -> tuple[str, float]:
    """What a reward model learns from a second here, in words and as a number, or NaN."""
    if not find_spec("torch"):
        return "not known without torch, which is part of the extra train", math.nan
    try:
        rate = throughput.measure(profile)
    except KitError as error:
        return f"not measured: {error}", math.nan
    base = f"{profile.base_model}, {profile.base_layers or 'all'} layers, {profile.quantization}"
    precision = kind.precision(profile.precision)
    return f"{base}, {precision}: trains on {rate:,.0f} tokens a second", rate


def needs(profile: Profile, rate: float = math.nan) -> list[str]:
    """Minutes and memory of each notebook, of the published run or of one here, times how much
    slower a model learns here, from ``rate`` tokens a second."""
    lines, here = dict.fromkeys(notebooks.notebooks(profile), "not measured yet"), {}
    by_model = BY_MODEL[not profile.sft_answers :]  # 00 trains where it teaches answers
    for place in ("papers_figures", "runs"):
        folder = project_root() / place / profile.name
        slower = _slower(profile, folder, rate)
        for name, row in notebooks.timings(folder).items():
            seconds = row["seconds"] * (slower if name in by_model else 1)
            if name in lines and seconds > 0:  # not where it is not known
                here[name] = seconds
                then = f"{notebooks.span(row['seconds'])} in {place}/{profile.name}"
                lines[name] = f"{notebooks.span(seconds)} ({then}), {row['peak_gib']} GiB"
    need = f"{notebooks.span(60 * profile.minutes)} on the machine that it was written for"
    if len(here) == len(lines):
        need = f"{notebooks.span(sum(here.values()))} on this machine"
    need = f"{profile.description}: about {need}, {profile.memory_gib:g} GiB (estimate)"
    return [need, *(f"{name}: {text}" for name, text in lines.items())]


def _slower(profile: Profile, run: Path, rate: float) -> float:
    """How many times as long its criterion model takes here as in ``run``; 1 for the same base on
    the same kind of processor, NaN where it is not known."""
    try:
        files = [run / name for name in ("manifest.json", "reward/report.json")]
        manifest, report = (json.loads(path.read_text(encoding="utf-8")) for path in files)
        then, settings = report["models"]["criterion"], manifest["profile"]
        keys = ("base_model", "base_layers", "quantization", "precision", "rm_lora_targets")
        alike = all(settings.get(key) == getattr(profile, key) for key in keys)
        if alike and manifest.get("processor") == kind.processor():
            return 1.0
        return then["tokens"] / then["seconds"] / rate
    except (OSError, ValueError, KeyError, ZeroDivisionError):  # no run, or an unfinished one
        return math.nan


def endpoints(profile: Profile) -> list[str]:
    """Each role and judge of the bench that an endpoint plays: what it may cost over a run, by its
    caps and the profile's ``tokens_per_second``, and whether its key is there."""
    judges = profile.judges | ({"rar_implicit": profile.rar_judge} if profile.rar_judge else {})
    asked = {name: role for name, role in judges.items() if role.endpoint}
    asked |= profile.roles if profiles.asks_endpoints(profile) else {}
    lines = []
    for name, role in asked.items():
        hours = role.tokens / profile.tokens_per_second / 3600
        most = f"{role.requests:,} requests, {role.tokens / 1e6:g} M tokens, {hours:.1f} h"
        key = f"; {_key(role.key)}" if role.key else ""
        lines.append(f"{name} {role.model}: at most {most}{key}")
    return lines or ["none is asked: the embedded clinic plays every role"]


def _key(name: str) -> str:
    return f"{name}: {'set' if os.environ.get(name) else f'not set (export {name}=...)'}"
