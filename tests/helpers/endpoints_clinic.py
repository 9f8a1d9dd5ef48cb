"""A small clinic served over loopback, and roles that ask it: for the tests of the endpoint
path."""

from helpers.clinic_server import Clinic

from promedical_utils import clinic
from promedical_utils.clinic import generators
from promedical_utils.clinic.vocabulary import read
from promedical_utils.core import profiles
from promedical_utils.core.profiles import CLINIC
from promedical_utils.core.records import Candidate
from promedical_utils.data.endpoints import Answers
from promedical_utils.data.roles import Roles, Task

SIZES = (24, 4, 4, 26, 4)
QUICK = {"retries": 12, "timeout": 5.0, "concurrency": 4}


def profile(url: str = "", **settings):
    """The smoke profile, its roles at ``url`` and quick to try again."""
    return profiles.load(
        "smoke", endpoint=url, roles={n: {"model": "clinic"} | QUICK | settings for n in CLINIC}
    )


def played() -> Clinic:
    settings = profile()
    return Clinic(clinic.build(settings, sizes=SIZES), settings)


def roles(url: str, folder, **settings) -> Roles:
    words = read("vocabulary")
    answers = Answers(folder / "answers.sqlite")
    return Roles(
        profile(url, **settings), answers, words["categories"], list(words["specialties"].values())
    )


def tasks(world, count: int) -> list[Task]:
    """The three generators' answers to the first training instructions, to be judged."""
    by_id = {i.id: i for i in world.instructions}
    return [
        Task(
            by_id[i],
            tuple(world.rubric_of[i].criteria),
            Candidate(id=f"{i}-{g}", instruction_id=i, generator=g, text=world.answer(i, g)),
        )
        for i in world.ids("train")[:count]
        for g in generators.NAMES
    ]
