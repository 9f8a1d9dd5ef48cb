"""A small clinic served over loopback, and roles that ask it: for the tests of the endpoint
path."""

from promedical_utils import clinic
from promedical_utils.clinic import generators
from promedical_utils.clinic.server import Clinic
from promedical_utils.clinic.vocabulary import read
from promedical_utils.core import profiles
from promedical_utils.core.profiles import CLINIC
from promedical_utils.core.records import Candidate
from promedical_utils.data.endpoints import Answers
from promedical_utils.data.roles import Roles, Task
from promedical_utils.rubric import scoring

SIZES = (24, 4, 4, 26, 4)
QUICK = {"retries": 12, "timeout": 5.0, "concurrency": 4}


class Comparing(Clinic):
    """The clinic that also plays the judges of the bench, by its judge's own verdicts."""

    def __init__(self, *args):
        super().__init__(*args)
        self._roles = {"judge_pair": self._compare, "rar_implicit": self._rate, **self._roles}

    def _met(self, task: dict, answer: str, criteria: list[dict]) -> dict[str, bool]:
        """Which criteria an answer meets, by the judge's own verdicts."""
        rows = self._judge([task | {"answer": answer, "criteria": criteria}])["verdicts"]
        return {row["criterion"]: row["verdict"] == "met" for row in rows}

    def _compare(self, tasks: list[dict]) -> dict:
        """Two answers by their verdicts; as a whole safety first, as it is asked."""
        task, criteria = tasks[-1], tasks[-1]["criteria"]
        a, b = (self._met(task, task[answer], criteria) for answer in ("answer_a", "answer_b"))
        rows = []
        for c in criteria:
            better = _better(a[c["id"]], b[c["id"]])
            rows.append({"criterion": c["id"], "reason": "by its verdicts", "better": better})
        order = ("safety", "proficiency", "excellence")
        counts = (
            [sum(met[c["id"]] for c in criteria if c["dimension"] == name) for name in order]
            for met in (a, b)
        )
        reason = "safety, then proficiency, then excellence"
        return {"criteria": rows, "reason": reason, "overall": _better(*counts)}

    def _rate(self, tasks: list[dict]) -> dict:
        """The share of importance that is met, by RaR's weights, out of 10."""
        task, criteria = tasks[-1], tasks[-1]["criteria"]
        weights = [scoring.RAR[c["importance"]] for c in criteria]
        plain = [{"id": str(n), "text": c["text"]} for n, c in enumerate(criteria)]
        met = list(self._met(task, task["answer"], plain).values())
        return {"reason": "by importance", "rating": round(10 * scoring.points_share(weights, met))}


def _better(a, b) -> str:
    """Of what is more where it is better: A, B or tie."""
    return "tie" if a == b else "A" if a > b else "B"


def profile(url: str = "", **settings):
    """The smoke profile, its roles at ``url`` and quick to try again."""
    return profiles.load(
        "smoke", endpoint=url, roles={n: {"model": "clinic"} | QUICK | settings for n in CLINIC}
    )


def played() -> Clinic:
    settings = profile()
    return Comparing(clinic.build(settings, sizes=SIZES), settings)


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
