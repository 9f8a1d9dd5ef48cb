"""A run's folder as its notebooks see it: how it is opened, what it is, and the records in it."""

import platform
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

from promedical_utils.core import machine, profiles, provenance, records
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Candidate, Instruction, Rubric, SplitRow, Verdict
from promedical_utils.core.workspace import need, run_folder, write_json

# whose versions a manifest names
PACKAGES = "torch transformers trl peft bitsandbytes datasets scikit-learn bm25s".split()
KINDS: dict[str, tuple[type[records.Record], str]] = {  # of a run's files: records, notebook
    "instructions": (Instruction, "01_rubrics"),
    "rubrics": (Rubric, "01_rubrics"),
    "splits": (SplitRow, "01_rubrics"),
    "candidates": (Candidate, "02_preference_pairs"),
    "verdicts": (Verdict, "02_preference_pairs"),
    "preferences": (records.CriterionPair, "02_preference_pairs"),
}
OPTIONAL = "preferences"  # that people stated, and that do not follow from verdicts


def open_run(profile: str, run_dir: str = "", seed: int = -1) -> tuple[Profile, Path]:
    """The validated profile and the run's folder: the first call of every notebook."""
    return profiles.profile_for(profile, seed), run_folder(profile, run_dir)


def banner(profile: Profile) -> str:
    """What must be said wherever this run's numbers are shown."""
    lines = [f"profile {profile.name}, seed {profile.seed}: {profile.description}"]
    if profile.data == "clinic":
        lines.append("The clinic is invented: no drug, dose or rule in it is medical knowledge.")
    if profile.name == "smoke":
        lines.append("SMOKE RUN: its numbers are no results; they only show that every part runs.")
    return "\n".join(lines)


def base_path(profile: Profile, run: Path) -> Path | str:
    """Folder of the base that notebook 00 made or taught, or the profile's hub id (or folder)."""
    made = profile.base_model in profiles.LAYERED or profile.sft_answers
    return need(run / "base", "00_start_here") if made else profile.base_model


def untaught_path(profile: Profile, run: Path) -> Path | str:
    """The base as it was before ``sft_answers``, from which reward models start: on a development
    seed one that had been taught the clinic's answers ordered fewer pairs."""
    if not profile.sft_answers:
        return base_path(profile, run)
    made = profile.base_model in profiles.LAYERED
    return need(run / "pretrained", "00_start_here") if made else profile.base_model


def manifest(profile: Profile, run: Path) -> dict:
    """Write and return what this run is, and on what kind of machine: no paths, no dates."""
    content = {
        "kit": provenance.kit(),
        "profile": profile.model_dump(),
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
        "processor": machine.processor(),
        "precision": machine.precision(profile.precision),
    }
    write_json(run / "manifest.json", content)
    return content


@dataclass(frozen=True)
class RunData:
    """The records of a run, as notebooks 01 and 02 wrote them."""

    instructions: list[Instruction] = field(default_factory=list)
    rubrics: list[Rubric] = field(default_factory=list)
    splits: list[SplitRow] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    preferences: list[records.CriterionPair] = field(default_factory=list)

    @classmethod
    def load(cls, run: Path, *names: str) -> "RunData":
        """``run``/data, all of it or ``names`` alone; KitError: which notebook writes a file."""
        loaded: dict[str, list] = {}
        for name in names or KINDS:
            path = run / f"data/{name}.parquet"
            if name != OPTIONAL or path.exists():
                loaded[name] = records.load(path, *KINDS[name])
        return cls(**loaded)

    @cached_property
    def instruction_of(self) -> dict[str, Instruction]:
        return {i.id: i for i in self.instructions}

    @cached_property
    def rubric_of(self) -> dict[str, Rubric]:
        return {r.instruction_id: r for r in self.rubrics}

    @cached_property
    def condition_of(self) -> dict[str, str]:
        return {row.instruction_id: row.condition for row in self.splits}

    @cached_property
    def criterion_kinds(self) -> dict[str, str]:
        return {c.id: c.kind for r in self.rubrics for c in r.criteria}

    def ids(self, *splits: str) -> list[str]:
        """Ids of the instructions in these splits, in the order of the rows."""
        return [row.instruction_id for row in self.splits if row.split in splits]

    def instructions_in(self, *splits: str) -> list[Instruction]:
        return [self.instruction_of[i] for i in self.ids(*splits)]

    def verdicts_of(self, judge: str) -> dict[tuple[str, str], str]:
        """(candidate id, criterion id) -> what ``judge`` said."""
        of_judge = (v for v in self.verdicts if v.judge == judge)
        return {(v.candidate_id, v.criterion_id): v.verdict for v in of_judge}
