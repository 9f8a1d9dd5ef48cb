"""The roles of a run's endpoints, with the categories that its instructions are sorted into."""

from pathlib import Path

from promedical_utils.clinic.vocabulary import read
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Candidate
from promedical_utils.core.run_data import RunData
from promedical_utils.core.workspace import read_yaml
from promedical_utils.data.endpoints import Answers
from promedical_utils.data.roles import PROMPTS, Roles, Task


def of_profile(profile: Profile, run: Path) -> Roles:
    """The roles of a profile's endpoints; what they answered lies in the run's answers.sqlite."""
    if profile.data == "clinic":
        words = read("vocabulary")
        categories, specialties = words["categories"], list(words["specialties"].values())
    else:
        lists = read_yaml(PROMPTS / "taxonomy.yaml")
        categories, specialties = lists["categories"], lists["specialties"]
    return Roles(profile, Answers(run / "answers.sqlite"), categories, specialties)


def task_of(data: RunData, answer: Candidate) -> Task:
    """One answer to be judged by the rubric of its instruction."""
    i = answer.instruction_id
    return Task(data.instruction_of[i], tuple(data.rubric_of[i].criteria), answer)
