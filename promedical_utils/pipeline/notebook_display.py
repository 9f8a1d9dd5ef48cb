"""What a notebook shows where it hangs on the kind of data, so that its cells need no branches.

The clinic's texts are invented, and are shown. Of real and open data no text is shown, and what
needs a truth beside the judge is not testable there: a card says so in its place.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from promedical_utils import clinic
from promedical_utils.clinic import lessons
from promedical_utils.core import plotting, records, statistics
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Instruction, Rubric
from promedical_utils.core.run_data import RunData
from promedical_utils.core.workspace import read_json
from promedical_utils.data.annotation import adjudication
from promedical_utils.evaluation import bench as benches
from promedical_utils.pipeline import export
from promedical_utils.rubric import display
from promedical_utils.rubric.display import Card

NO_TEXT = "not shown: of real data the notebooks show no text"
NO_TRUTH = "no truth beside the judge: not testable in this profile"
NO_BASE = "not shown: only the kit's own base of the clinic answers here"


# ---------------------------------------------------------------- one kind of data


def in_clinic(profile: Profile, show: Callable, *args, why: str = NO_TEXT, **kwargs):
    """``show(*args, **kwargs)`` in the clinic; elsewhere a card that says ``why`` not."""
    return show(*args, **kwargs) if profile.data == "clinic" else Card(why)


def with_own_base(profile: Profile, show: Callable, *args, **kwargs):
    """``show(*args, **kwargs)`` where the kit's own base was taught in the clinic, else a card."""
    own = profile.data == "clinic" and profile.base_model == "small"
    return show(*args, **kwargs) if own else Card(NO_BASE)


def expert(profile: Profile) -> str:
    """Whose verdicts are the best ones known: the clinic's ``truth``, elsewhere the ``judge``."""
    return "truth" if profile.data == "clinic" else "judge"


def labels(profile: Profile) -> tuple[str, ...]:
    """What the bench's scorers are held to; beside the clinic's there is no truth."""
    return benches.AGAINST if profile.data == "clinic" else ("adjudicated",)


def facts(profile: Profile, instruction_id: str) -> dict[str, str]:
    """What the leaflet of a patient of the clinic says, by the fact's name; elsewhere nothing."""
    if profile.data != "clinic":
        return {}
    return dict(clinic.build(profile).patients[instruction_id].facts)


def gold_rubrics(profile: Profile, data: RunData) -> Mapping[str, Rubric]:
    """Instruction id -> its right rubric: the clinic's truth, elsewhere the run's."""
    return clinic.build(profile).rubric_of if profile.data == "clinic" else data.rubric_of


# ---------------------------------------------------------------- files that a run may not have


def rows(path: Path, why: str) -> pd.DataFrame | Card:
    """A CSV of the run to three decimals, or where the run has none a card that says ``why``."""
    return pd.read_csv(path).round(3) if path.exists() else Card(why)


def picture(path: Path, plot: Callable, *args) -> None:
    """Draw ``plot(frame, *args)`` of a CSV of the run; nothing where the run has none."""
    if path.exists():
        plotting.show(plot, pd.read_csv(path), *args)


def drafts(profile: Profile, run: Path) -> list[Rubric]:
    """Drafts as the clinic's writer gave them; none elsewhere, where no truth corrects them."""
    if profile.data != "clinic":
        return []
    return records.load(run / "data/drafts.parquet", Rubric, "01_rubrics")


# ---------------------------------------------------------------- 00 the base


def loss_curve(profile: Profile, report: Mapping) -> Card:
    """The base's loss over its steps, in nats, and where the clinic's lessons begin.

    ``report`` as from ``base.train_base``; a base of the hub has no such curve, and a card says so.
    """
    if not report["trained_here"]:
        return Card("a hub model: nothing was trained here")
    steps, marks = report["steps"], {}
    if profile.data == "clinic":
        marks = {
            "drills": 0,
            "leaflets, right answers": lessons.READ_FROM * steps,
            "mixed answers": lessons.MIX_FROM * steps,
        }
    losses = pd.DataFrame(report["curve"], columns=["step", "loss"]).set_index("step")
    label = "loss on answer tokens (nats)"
    return display.curve(losses, label, marks, title="what the base was taught")


def copy_rates(rates: pd.Series) -> Card:
    """Bars of copy rates by fact, those below one half in another colour; a card without any."""
    if rates.empty:
        return Card("copy rates: not applicable, only the kit's clinic base is tested")
    parts = {"copied": rates.where(rates >= 0.5), "cannot be copied": rates.where(rates < 0.5)}
    label, colours = "share of held-out patients", (display.BLUE, display.ORANGE)
    return display.bars(pd.DataFrame(parts), label, colours, 0.5, title="facts copied by the base")


def base_answer(profile: Profile, run: Path, instruction: Instruction) -> str:
    """What the kit's own base of the clinic answers, greedily; "" where there is no such base."""

    def generated() -> str:
        from promedical_utils.reward_model import hub  # loads torch

        hub.silence()
        model = hub.load(hub.CAUSAL, run / "base", attention=None)
        tokenizer = hub.plain_tokenizer(run / "base")
        turns = [message.model_dump() for message in instruction.messages]
        prompt = tokenizer.apply_chat_template(
            turns, return_dict=True, return_tensors="pt", add_generation_prompt=True
        )
        tokens = model.generate(**prompt, max_new_tokens=96, do_sample=False)[0]
        return tokenizer.decode(tokens[prompt["input_ids"].shape[1] :], skip_special_tokens=True)

    answer = with_own_base(profile, generated)
    return answer if isinstance(answer, str) else ""


# ---------------------------------------------------------------- 01 rubrics


def reviewed(profile: Profile, report: Mapping) -> pd.DataFrame | Card:
    """Who reviewed the rubrics; prints what is known, returns the rest (``report``: review.json).

    The clinic: its rounds. Real data: agreement of K-QA's three physicians, and the instructions by
    source and split. Open data: the drafts by status, and how many wait for a physician.
    """
    if profile.data == "clinic":
        print("input:", report["input"])
        columns = ["round", "reviewed", "pass_rate", "blind_n", "blind_pass_rate", "low", "high"]
        return pd.DataFrame(report["rounds"])[[*columns, "control_pass_rate", "stop"]]
    if profile.data == "open":
        writing = dict(report["writing"])
        print("queued for physicians:", len(writing.pop("queued")))
        print("drafted:", writing)
        return pd.Series(report["rubrics"]).to_frame("rubrics")
    kappa = report["sources"]["kqa_agreement"]
    print("K-QA labels by three physicians:", kappa["rows"])
    print(f"Fleiss kappa    {kappa['fleiss_kappa']:.3f}")
    print("pairwise Cohen ", *(f"{k:.3f}" for k in kappa["cohen_kappa"]))
    print(f"observed        {kappa['observed']:.3f}")
    counts = pd.Series(report["sources"]["instructions"]).to_frame("n")
    return display.bars(counts, "instructions", [display.BLUE], title="source / split")


# ---------------------------------------------------------------- 02 preference pairs


def written_by_hand(profile: Profile, instruction_id: str) -> dict[str, str]:
    """Answers that try to please, to a patient of the clinic, by what they try; none elsewhere."""
    leaflet = facts(profile, instruction_id)
    if not leaflet:
        return {}
    start = f"Please take {leaflet['first']}, not {leaflet['avoid']}."
    right = (
        f"{start} Take at most {leaflet['limit']} units a day. You can wait with "
        f"{leaflet['mild']}, but never with {leaflet['danger']}. "
        f"Come back within {leaflet['review']} days."
    )
    return {
        "right": right,
        "stuffed": f"{right} {start}",
        "contradicts itself": f"{right} You may add {leaflet['avoid']} and need not ask.",
        "keywords": " ".join(leaflet[name] for name in ("first", "limit", "danger")),
    }


def exported(profile: Profile, run: Path) -> dict[str, int] | Card:
    """Write ``run``/export, and count its rows of the split ``train`` by config.

    Real and open data are not exported from a notebook; a card says why.
    """
    why = "not exported here: the sets' own licences decide"
    counts = in_clinic(profile, export.export, run, run / "export", profile, why=why)
    if isinstance(counts, Card):
        return counts
    return {name: of_split["train"] for name, of_split in counts.items() if "train" in of_split}


# ---------------------------------------------------------------- 04 bench


def reading_orders(bench: benches.Bench) -> dict[str, list[list[str]]]:
    """The ids of the answers to each sample, in the order of each physician of the clinic.

    Empty where the labels are those of a data set.
    """
    columns = bench.samples.filter(regex=r"^order_\d$")
    return {
        column.replace("order_", "physician "): [ids.split("|") for ids in columns[column]]
        for column in columns
    }


def agreement(profile: Profile, run: Path, bench: benches.Bench) -> pd.DataFrame | Card:
    """Coefficients of agreement between the people who labelled; in the clinic they are an input.

    Real data: the three physicians of K-QA. Open data: only the judge has labelled.
    """
    if profile.data == "clinic":
        return pd.DataFrame(bench.report["input"]).T.round(4)
    if profile.data == "open":
        return Card("nobody but the judge has read these")
    kappa = read_json(run / "data/review.json", "01_rubrics")["sources"]["kqa_agreement"]
    kappa = {name: value for name, value in kappa.items() if name != "reliability"}
    return pd.DataFrame({"K-QA": kappa}).T


def reliability(profile: Profile, run: Path, bench: benches.Bench) -> pd.DataFrame:
    """Agreement by dimension with its 95 % interval, as from ``statistics.reliability``.

    In the clinic of its two physicians, on real data of K-QA's three; on open data no rows.
    """
    if profile.data == "open":
        return pd.DataFrame(columns=["slice", "coefficient", "n", "value", "low", "high"])
    if profile.data == "real":
        review = read_json(run / "data/review.json", "01_rubrics")
        return pd.DataFrame(review["sources"]["kqa_agreement"]["reliability"])
    cells = bench.verdicts.merge(bench.criteria[["criterion_id", "dimension"]])
    condition = bench.samples.set_index("instruction_id").condition
    return statistics.reliability(
        cells[["physician_1", "physician_2"]],
        adjudication.LEVELS,
        by=cells.dimension,
        conditions=cells.instruction_id.map(condition),
        draws=min(profile.bootstrap, 200),
        seed=profile.seed,
    )
