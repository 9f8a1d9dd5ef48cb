"""What this machine has and what a profile will need of it; a report, nothing is changed."""

import os
import platform
import shutil
from importlib import metadata

import psutil

from promedical_utils.core import profiles
from promedical_utils.core.workspace import project_root, shown
from promedical_utils.data import requests_plan
from promedical_utils.data.sources import schemas
from promedical_utils.run import notebooks

KEYS = ("HF_TOKEN",)  # and those that the profile's roles name
DISK_GIB = 8  # the environment and a run of the small base; a hub model comes on top
STATES = {
    True: "found, as on its card",
    False: "found, other bytes than its card's",
    None: "not found",
}


def report(name: str) -> str:
    """The report for one profile, as text; secrets are named, never shown. Raises KitError."""
    profile = profiles.profile_for(name)
    blocks = {
        "machine": machine(profile),
        "packages": packages(),
        "data": data(),
        "keys": keys(profile),
        f"profile {name}": needs(profile) + asked(profile),
    }
    return "\n".join("\n  ".join((title, *lines)) for title, lines in blocks.items())


def machine(profile) -> list[str]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory().total / 2**30
    disk = shutil.disk_usage(project_root()).free / 2**30
    return [
        f"Python {platform.python_version()}, {cores} cores",
        f"memory: {memory:.1f} GiB, {_judged(memory, profile.memory_gib)}",
        f"free disk: {disk:.0f} GiB, {_judged(disk, DISK_GIB)}",
        f"GPU: {gpu()}",
    ]


def gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        return f"none seen by torch {torch.__version__} (PROFILE=cpu and BASE=small need none)"
    seen = torch.cuda.get_device_properties(0)
    native = torch.cuda.is_bf16_supported(including_emulation=False)
    precision = "bf16" if native else "fp16, no bf16"
    return f"{seen.name}, {seen.total_memory / 2**30:.0f} GiB, {precision}"


def packages() -> list[str]:
    """Installed versions against the lock; a local tag such as ``+cpu`` is no difference."""
    lock = (project_root() / "requirements.lock").read_text(encoding="utf-8").split()
    wrong = []
    for package, _, wanted in (line.partition("==") for line in lock):
        try:
            here = metadata.version(package)
        except metadata.PackageNotFoundError:
            here = "missing"
        if here.partition("+")[0] != wanted:
            wrong.append(f"{package}: {here}, the lock says {wanted}")
    if wrong:
        return [*wrong, "to mend: make clean, then the command again"]
    return [f"all {len(lock)} as in requirements.lock"]


def data() -> list[str]:
    """The public sets of profile real; the other profiles use the clinic in the package."""
    folder = os.environ.get(schemas.VARIABLE)
    if not folder:
        return [f"{schemas.VARIABLE}: not set; PROFILE=real downloads what it reads"]
    lines = [f"{schemas.VARIABLE}: {folder}"]
    for key, card in schemas.CARDS.items():
        lines.append(f"{card.name} ({card.file}): {STATES[schemas.as_first_read(key)]}")
    return lines


def keys(profile) -> list[str]:
    named = {role.key for role in profile.roles.values() if role.key}
    return [
        f"{key}: {'set' if os.environ.get(key) else 'not set'}" for key in (*KEYS, *sorted(named))
    ]


def asked(profile) -> list[str]:
    """Requests, tokens and hours of each role and judge that an endpoint plays."""
    judges = requests_plan.bench_judges(profile)
    clinic = (
        []
        if profiles.asks_endpoints(profile)
        else ["roles: played by the embedded clinic, no request is sent"]
    )
    if clinic and not judges:
        return clinic
    instructions = (
        profile.train_instructions
        + profile.calibration_instructions
        + profile.checkpoint_instructions
        + profile.bench_samples
    )
    pool = profile.source_limit * len(profile.sources) or 2 * instructions
    plan = requests_plan.estimate(profile, instructions, pool, profile.tokens_per_second)
    title = (
        f"roles: {instructions} instructions out of {pool} rows at most, at "
        f"{profile.tokens_per_second:g} "
        "tokens a second (an assumption: measure your server's)"
    )
    return [
        *clinic,
        title,
        *(
            f"{r.role} {r.model}: {r.requests:,} requests, "
            f"{(r.prompt_tokens + r.completion_tokens) / 1e6:.1f} M tokens, "
            f"{r.hours:.1f} h{'' if r.suffices else ', MORE THAN ITS BUDGET'}"
            for r in plan.itertuples()
            if not clinic or r.role in judges
        ),
    ]


def needs(profile) -> list[str]:
    """Time and memory of each notebook: of the last run here, else of the published one."""
    reference = project_root() / "papers_figures" / profile.name
    here = notebooks.timings(project_root() / "runs" / profile.name)
    known = {name: (row, shown(reference)) for name, row in notebooks.timings(reference).items()}
    known |= {name: (row, "last run here") for name, row in here.items()}
    length = notebooks.span(60 * profile.minutes)
    lines = [f"{profile.description}: about {length}, {profile.memory_gib:g} GiB (estimate)"]
    for name in notebooks.notebooks(profile):
        text = "not measured yet, part of the estimate above"
        if name in known:
            row, where = known[name]
            text = f"{notebooks.span(row['seconds'])}, {row['peak_gib']} GiB ({where})"
        lines.append(f"{name}: {text}")
    return lines


def _judged(here: float, needed: float) -> str:
    return f"{needed:g} needed: {'enough' if here >= needed else 'TOO LITTLE'}"
