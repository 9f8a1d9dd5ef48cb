"""The roles of a run's endpoints, with the categories that its instructions are sorted into."""

from pathlib import Path

import yaml

from promedical_utils.clinic.vocabulary import read
from promedical_utils.core.profiles import Profile
from promedical_utils.data.endpoints import Answers
from promedical_utils.data.roles import PROMPTS, Roles


def of_profile(profile: Profile, run: Path) -> Roles:
    """The roles of a profile's endpoints; what they answered lies in the run's answers.sqlite."""
    return Roles(profile, Answers(run / "answers.sqlite"), *taxonomy(profile))


def taxonomy(profile: Profile) -> tuple[list[str], list[str]]:
    """Categories and specialties that instructions are sorted into."""
    if profile.data == "clinic":
        words = read("vocabulary")
        return words["categories"], list(words["specialties"].values())
    lists = yaml.safe_load((PROMPTS / "taxonomy.yaml").read_text(encoding="utf-8"))
    return lists["categories"], lists["specialties"]
