"""What a notebook shows where it hangs on the kind of data, so that its cells need no branches.

Of real and open data no text is shown, and what needs a truth beside the judge is not testable
there: a card says so in its place.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from promedical_utils import clinic
from promedical_utils.core import plotting, statistics
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Criterion, Instruction, Rubric
from promedical_utils.core.workspace import read_json
from promedical_utils.evaluation import bench as benches
from promedical_utils.rubric.display import Card

LEVELS = ("not_met", "unknown", "met")
NO_TEXT = "not shown: of real data the notebooks show no text"
NO_TRUTH = "no truth beside the judge: not testable in this profile"


def in_clinic(profile: Profile, show: Callable, *args, why: str = NO_TEXT, **kwargs):
    """``show(*args, **kwargs)`` in the clinic; elsewhere a card that says ``why`` not."""
    return show(*args, **kwargs) if profile.data == "clinic" else Card(why)


def patient(profile: Profile) -> tuple[Instruction | None, tuple[Criterion, ...], dict]:
    """The first held-out patient of the clinic: message, true criteria, facts of the leaflet by
    name; elsewhere nothing."""
    if profile.data != "clinic":
        return None, (), {}
    world = clinic.build(profile)
    asked = world.instructions_in("checkpoint")[0]
    return asked, tuple(world.rubric_of[asked.id].criteria), facts(profile, asked.id)


def facts(profile: Profile, instruction_id: str) -> dict[str, str]:
    """What the leaflet of a patient of the clinic says, by the fact's name; elsewhere nothing."""
    if profile.data != "clinic":
        return {}
    return dict(clinic.build(profile).patients[instruction_id].facts)


def true_rubrics(profile: Profile) -> dict[str, Rubric]:
    """Instruction id -> its true rubric in the clinic; elsewhere nothing."""
    return clinic.build(profile).rubric_of if profile.data == "clinic" else {}


def rows(path: Path, why: str) -> pd.DataFrame | Card:
    """A CSV of the run to three decimals, or where the run has none a card that says ``why``."""
    return pd.read_csv(path).round(3) if path.exists() else Card(why)


def picture(path: Path, plot: Callable, *args) -> None:
    """Draw ``plot(frame, *args)`` of a CSV of the run; nothing where the run has none."""
    if path.exists():
        plotting.show(plot, pd.read_csv(path), *args)


def goals(profile: Profile, reached: Mapping[str, bool]) -> None:
    """Print the goals of the published profile. A goal is a result either way."""
    for goal, value in reached.items() if profile.name in ("cpu", "record") else ():
        print(f"goal, {goal}:", value)


def agreement(profile: Profile, run: Path, bench: benches.Bench) -> tuple:
    """Two frames, agreement of the people who labelled; the same by dimension, with 95 % intervals,
    as ``statistics.reliability``. The clinic: its two physicians, whose agreement is an input. Real
    data: K-QA's three. Open data: nobody but the judge has read these, so no rows.
    """
    if profile.data == "clinic":
        cells, condition = bench.cells, bench.samples.set_index("instruction_id").condition
        by_dimension = statistics.reliability(
            cells[benches.PEOPLE],
            LEVELS,
            by=cells.dimension,
            conditions=cells.instruction_id.map(condition),
            draws=min(profile.bootstrap, 200),
            seed=profile.seed,
        )
        return pd.DataFrame(bench.report["input"]).T.round(4), by_dimension
    review = read_json(run / "data/review.json", "01_rubrics")
    kappa = dict(review["sources"].get("kqa_agreement", {}))
    columns = ["slice", "coefficient", "n", "value", "low", "high"]
    by_dimension = pd.DataFrame(kappa.pop("reliability", []), columns=columns)
    return pd.DataFrame({"K-QA": kappa} if kappa else {}).T, by_dimension
