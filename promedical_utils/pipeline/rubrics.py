"""Notebook 01: how a run's rubrics come about: curation of the pool, drafting, rounds of review."""

import os
import random
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from promedical_utils import clinic
from promedical_utils.clinic import pool
from promedical_utils.clinic import writer as people
from promedical_utils.core import profiles, provenance, records
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Instruction, Message, RawInstruction, Rubric, SplitRow
from promedical_utils.core.run_data import RunData
from promedical_utils.core.workspace import KitError, replacing, short_hash, write_json
from promedical_utils.data import rubric_writer
from promedical_utils.data.annotation import review
from promedical_utils.data.annotation.store import Store
from promedical_utils.data.curation import filters as curation
from promedical_utils.data.roles import Roles
from promedical_utils.data.sources import open_sets, real_sets
from promedical_utils.data.sources.schemas import VARIABLE
from promedical_utils.pipeline.endpoints import of_profile
from promedical_utils.pipeline.real_text import rubrics_of_real

Pool = Sequence[Rubric]  # gold rubrics, shown to the writer as examples


def make_rubrics(profile: Profile, run: Path) -> dict:
    """Instructions, splits and rubrics; writes data/{instructions,splits,rubrics}.parquet.

    Also review.json (the report that is returned), hashes.json, composition.csv; funnel.csv and
    left_out.parquet where something was curated, drafts.parquet (every draft as it came) where
    something was drafted, and rounds.csv where drafts were reviewed.
    """
    make = {"clinic": of_clinic, "real": rubrics_of_real, "open": of_open_sets}[profile.data]
    report = make(profile, run)
    _write_csv(composition(run), run / "data/composition.csv")
    provenance.hash_data(run)
    return report


def composition(run: Path) -> pd.DataFrame:
    """Mean number of criteria of each dimension in a rubric, a row a category."""
    data = RunData.load(run, "instructions", "rubrics")
    rows = []
    for rubric in data.rubrics:
        dimensions = [criterion.dimension for criterion in rubric.criteria]
        row = {name: dimensions.count(name) for name in records.DIMENSIONS}
        rows.append({"category": data.instruction_of[rubric.instruction_id].category} | row)
    return pd.DataFrame(rows).groupby("category").mean().reset_index()


def splits_table(profile: Profile, run: Path) -> pd.DataFrame:
    """Instructions, conditions, patients and wording seeds by split."""
    splits = RunData.load(run, "splits").splits
    table = (
        pd.DataFrame([row.model_dump() for row in splits])
        .groupby("split")
        .agg(
            instructions=("instruction_id", "size"),
            conditions=("condition", "nunique"),
            patients=("patient", "nunique"),
            wording_seeds=("wording_seed", "nunique"),
        )
    )
    return table.reindex([name for name in records.SPLITS if name in table.index])


# ---------------------------------------------------------------- the clinic


def of_clinic(profile: Profile, run: Path) -> dict:
    """Curation of the raw pool, rounds of drafting and review, and what is left drafted."""
    w = clinic.build(profile)
    roles = of_profile(profile, run) if profiles.asks_endpoints(profile) else None
    train = w.ids("train")
    curated, curation_report = _curated_clinic(profile, run, w, roles)
    drafting = _Drafting(profile, w.instructions, roles, w.rubric_of)

    def physician(drafts: list[Rubric], blind: bool) -> list:
        return [people.corrections(d, w.rubric_of[d.instruction_id], "physician_1") for d in drafts]

    drafting.run([i for i in train if i in curated], physician)
    # what the writer could not make valid waits for physicians, who write it
    unfit = zip(drafting.unfit, physician(drafting.unfit, False), strict=True)
    written_anew = {draft.instruction_id: review.apply(draft, fixes) for draft, fixes in unfit}
    drafts = list(drafting.drafts.values())
    fixes_of = physician(drafts, False)
    flawed = sum(not review.passed(d, fixes) for d, fixes in zip(drafts, fixes_of, strict=True))
    report = {
        "rounds": drafting.rounds,
        "unreviewed": {"drafted": len(drafts), "flawed": flawed},
        "writing": drafting.report(),
        "curation": curation_report,
        "input": {
            "first_error_rate": profile.rubric_error_rate,
            "strict_pass_rate_aimed_at": profile.rubric_pass_rate,
        },
        "note": "how often the writer errs is set in the profile: an input, not a finding",
    }
    rubrics = w.rubric_of | drafting.drafts | drafting.gold | written_anew
    lost = set(train) - curated
    instructions = [i for i in w.instructions if i.id not in lost]
    splits = [row for row in w.splits if row.instruction_id not in lost]
    _save(run, instructions, splits, [_with_kinds(rubrics[i.id]) for i in instructions])
    _save_review(run, drafting, report)
    return report


def _with_kinds(rubric: Rubric) -> Rubric:
    """With each criterion's type as the clinic's grammar reads it; endpoints give none."""
    named = [c.model_copy(update={"kind": people.kind(c.text)}) for c in rubric.criteria]
    return rubric.model_copy(update={"criteria": named})


def _curated_clinic(
    profile: Profile, run: Path, w: clinic.World, roles: Roles | None
) -> tuple[set[str], dict]:
    """Which training instructions come through curation of the raw pool; the report, by truth."""
    train = w.ids("train")
    rows, truth = pool.raw(w, train, profile.seed)
    texts = {i.id: pool.text_of(i.messages) for i in w.instructions}
    bench = {i: texts[i] for i in w.ids("bench")}
    made = _curated(profile, run, rows, bench, _asking(roles) if roles else _known(rows, truth))
    left = {i.id for i in made.instructions}
    step_of = dict(zip(made.left_out.id, made.left_out.step))
    # one row of a cluster is kept, whichever: its instruction is then the one that came through
    asking = [truth[i].of for i in left if truth[i].kind in ("kept", "duplicate")]
    through = set(asking)

    def count(kind: str, right) -> str:
        ids = [i for i, planted in truth.items() if planted.kind == kind]
        return f"{sum(right(i) for i in ids)} of {len(ids)}"

    against_truth = {
        "instructions that came through": f"{len(through & set(train))} of {len(train)}",
        "near-misses kept": count("near_miss", lambda i: i in left),
        "leaks of the bench found": count("leak", lambda i: step_of.get(i) == "bench"),
        "rows too many (second of a cluster)": f"{len(asking) - len(through)}",
    }
    for kind in ("licence", "language", "length", "not_medical", "too_easy", "too_hard"):
        against_truth[f"{kind}, dropped"] = count(kind, lambda i: i not in left)
    return through & set(train), _curation_report(rows, made) | {"against_truth": against_truth}


def _known(rows: list[RawInstruction], truth: Mapping[str, pool.Planted]) -> tuple:
    """A screener and a classifier who know what the clinic planted."""
    planted = {row.text: truth[row.id] for row in rows}

    def screen(texts):
        return [planted[text].difficulty for text in texts]

    def classify(texts):
        return [
            curation.NOT_MEDICAL
            if planted[text].kind == "not_medical"
            else (planted[text].category, planted[text].specialty)
            for text in texts
        ]

    return screen, classify


# ---------------------------------------------------------------- open sets


def of_open_sets(profile: Profile, run: Path) -> dict:
    """Open sets curated and split, with rubrics of their own or of the writer's.

    With ``reviewers`` in the profile there are rounds of review (review.sqlite): the stage stops
    with a KitError until they have finished a round on the review page, and goes on where it was. A
    draft that stays against the rules waits there with its reasons, and its instruction is left out
    till then.
    """
    rows, brought, left_out = open_rows(profile)
    roles, store = of_profile(profile, run), Store(run / "review.sqlite")
    bench = outside_benches(profile)
    curated = _curated(profile, run, rows, bench, _asking(roles))
    splits = _open_splits(profile, curated.instructions)
    asked = [i for i in curated.instructions if i.id in splits]
    ids = {i.id for i in asked}
    mended = {r.instruction_id: r for r in store.gold() if r.instruction_id in ids}
    rubrics = {i: r for i, r in brought.items() if i in ids}
    to_write = [i.id for i in asked if i.id not in rubrics]
    drafting = _Drafting(profile, asked, roles)
    if profile.reviewers:  # who repeat themselves: what they finished is asked for again
        records.save(asked, run / "data/to_review.parquet")  # the page shows them beside the drafts
        drafting.run(to_write, partial(store.reviewed, reviewers=profile.reviewers))
    else:
        unwritten = [i for i in to_write if i not in mended]
        drafting.run(unwritten, examples=list(mended.values()))
    for draft in drafting.unfit:
        if draft.instruction_id not in mended:
            store.queue(draft, "; ".join(drafting.queued[draft.instruction_id]))
    store.close()
    rubrics |= drafting.drafts | drafting.gold | mended
    asked = [i for i in asked if i.id in rubrics]
    status = [r.status for r in rubrics.values()]
    report = {
        "sources": {"left_out": left_out, "instructions": len(rows)},
        "curation": _curation_report(rows, curated),
        "rounds": drafting.rounds,
        "writing": drafting.report(),
        "rubrics": {name: status.count(name) for name in ("draft", "reviewed", "gold")},
        "notes": [
            "drafts are a language model's until physicians have reviewed them",
            f"decontaminated against {len(bench)} questions of the sets of profile real"
            if bench
            else f"not decontaminated against outside benches: {VARIABLE} is not set",
        ],
    }
    _save(run, asked, [splits[i.id] for i in asked], [rubrics[i.id] for i in asked])
    _save_review(run, drafting, report)
    return report


def open_rows(profile: Profile) -> tuple[list[RawInstruction], dict[str, Rubric], dict]:
    """Raw rows of the profile's open sources, the rubrics that they bring, what was left out."""
    rows, brought, left_out = [], {}, {}
    for source in profile.sources:
        reading = open_sets.read(source, profile.source_limit or None)
        rows += reading.instructions
        brought |= {r.instruction_id: r for r in reading.rubrics}
        anew = {"rubrics to be written anew": reading.unfit.total()}
        left_out[Path(source).name] = dict(reading.skipped) | anew
    return rows, brought, left_out


def outside_benches(profile: Profile) -> dict[str, str]:
    """Questions of the real sets by id, as far as they are at hand: open sets may hold them."""
    if not os.environ.get(VARIABLE):
        return {}
    return {i.id: pool.text_of(i.messages) for i in real_sets.load_real(profile.seed).instructions}


def _open_splits(profile: Profile, asked: list[Instruction]) -> dict[str, SplitRow]:
    """Splits of the profile's sizes by the hash of the id, held-out ones first; train gets the
    rest."""
    sizes = {
        "bench": profile.bench_samples,
        "calibration": profile.calibration_instructions,
        "checkpoint": profile.checkpoint_instructions,
        "train": profile.train_instructions,
    }
    order = sorted(asked, key=lambda i: short_hash(profile.seed, i.id))
    names = [name for name, size in sizes.items() for _ in range(size)]
    if "train" not in names[: len(order)]:
        raise KitError(
            f"{len(order)} instructions are left after curation, too few for the held-out splits "
            f"({sum(sizes.values()) - sizes['train']}): read more of the sources (source_limit) or "
            "lower their sizes"
        )
    return {
        i.id: SplitRow(
            instruction_id=i.id,
            split=name,
            condition=i.id,
            patient=i.id,
            wording_seed=int(short_hash(i.id), 16) % 2**31,
        )
        for i, name in zip(order, names, strict=False)
    }


# ---------------------------------------------------------------- curation


def _asking(roles: Roles) -> tuple:
    """The screener and the classifier as ``filters`` asks them: texts in, answers or None out."""

    def turns(texts):
        return [[Message(role="user", content=text)] for text in texts]

    def screen(texts):
        return [answer.value for answer in roles.screen(turns(texts))]

    def classify(texts):
        replies = [answer.value for answer in roles.classify(turns(texts))]
        return [
            c and ((c.category, c.specialty) if c.medical else curation.NOT_MEDICAL)
            for c in replies
        ]

    return screen, classify


def _curated(
    profile: Profile,
    run: Path,
    rows: list[RawInstruction],
    bench: dict[str, str],
    asking: tuple,
) -> curation.Curated:
    """What curation makes of ``rows``; writes funnel.csv and left_out.parquet."""
    made = curation.curate(rows, bench, *asking, profile)
    _write_csv(made.funnel, run / "data/funnel.csv")
    with replacing(run / "data/left_out.parquet") as temporary:
        made.left_out.to_parquet(temporary, index=False)
    return made


def _curation_report(rows: list[RawInstruction], made: curation.Curated) -> dict:
    return {
        "rows": len(rows),
        "kept": len(made.instructions),
        "queued": int(made.left_out.queued.sum()),
        "dropped": {r.step: int(r.dropped) for r in made.funnel.itertuples()},
    }


# ---------------------------------------------------------------- drafting


class _Drafting:
    """Rubrics by rounds of review, if there are reviewers; what is left, with the gold so far.

    Without ``roles`` the clinic writes, from its ``truth``. What comes out: ``rounds`` (rows of
    numbers), ``gold`` and ``drafts`` by instruction id, ``unfit`` drafts that stay against the
    rules. Beside them ``valid``: every draft that kept the rules, as it came; ``queued``: for which
    instructions there was none, and why.
    """

    def __init__(
        self,
        profile: Profile,
        instructions: list[Instruction],
        roles: Roles | None = None,
        truth: Mapping[str, Rubric] | None = None,
    ):
        self.profile, self.roles, self.truth = profile, roles, truth
        self.instruction_of = {i.id: i for i in instructions}
        self.rounds: list[dict] = []
        self.gold: dict[str, Rubric] = {}
        self.drafts: dict[str, Rubric] = {}
        self.unfit: list[Rubric] = []
        self.valid: list[Rubric] = []
        self.queued: dict[str, list[str]] = {}
        self.repaired = 0

    def run(self, ids: list[str], reviewing=None, examples: Pool = ()) -> None:
        """``reviewing`` as ``review.rounds`` has it; ``examples``: gold from before."""
        if reviewing and ids:
            for row, corrected in review.rounds(
                ids,
                self.write,
                reviewing,
                target=self.profile.rubric_pass_rate,
                size=self.profile.review_batch,
                blind=self.profile.review_blind,
                controls=self.profile.review_controls,
                seed=self.profile.seed,
                pool=examples,
            ):
                self.rounds.append(row)
                self.gold |= {r.instruction_id: r for r in corrected}
        left = [i for i in ids if i not in self.gold]
        written = self.write(left, [*examples, *self.gold.values()])
        self.drafts = {d.instruction_id: d for d in written if d.instruction_id not in self.queued}
        self.unfit = [d for d in written if d.instruction_id in self.queued]

    def write(self, ids: list[str], examples: Pool) -> list[Rubric]:
        """A draft for each id, the writer shown the gold of the most similar instructions."""
        asked = [self.instruction_of[i] for i in ids]
        shown = [(self.instruction_of[r.instruction_id], r) for r in examples]
        if self.roles is None:
            drafts = self._by_clinic(asked, shown)
            self.valid += drafts
            return drafts
        made = rubric_writer.write(self.roles, asked, shown, self.profile.embedder)
        self.valid += made.rubrics
        self.repaired += made.repaired
        draft_of = {r.instruction_id: r for r in made.rubrics}
        for queued in made.queued:
            self.queued[queued.instruction_id] = list(queued.reasons)
            criteria = queued.draft.model_dump()["criteria"] if queued.draft else []
            draft_of[queued.instruction_id] = review.unchecked(queued.instruction_id, criteria)
        return [draft_of[i] for i in ids]

    def _by_clinic(self, asked: list[Instruction], shown: list[tuple]) -> list[Rubric]:
        drafts = []
        nearest = rubric_writer.examples(asked, shown, self.profile.embedder)
        for instruction, near in zip(asked, nearest, strict=True):
            alike = [i.category for i, _ in near]
            rate = people.error_rate(self.profile, instruction.category, alike)
            rng = random.Random(short_hash("draft", self.profile.seed, instruction.id, *alike))
            drafts.append(people.draft(self.truth[instruction.id], rate, 0, rng))
        return drafts

    def report(self) -> dict:
        total = len(self.valid) + len(self.queued)
        return {
            "drafted": total,
            "valid": len(self.valid),
            "valid_share": round(len(self.valid) / total, 4) if total else None,
            "repaired": self.repaired,
            "queued": self.queued,
            "requests": self.roles.answers.ledger() if self.roles else {},
        }


def _save(
    run: Path, instructions: list[Instruction], splits: list[SplitRow], rubrics: list[Rubric]
) -> None:
    records.save(instructions, run / "data/instructions.parquet")
    records.save(splits, run / "data/splits.parquet")
    records.save(rubrics, run / "data/rubrics.parquet")


def _save_review(run: Path, drafting: _Drafting, report: dict) -> None:
    if drafting.valid:
        records.save(drafting.valid, run / "data/drafts.parquet")
    if drafting.rounds:
        _write_csv(pd.DataFrame(drafting.rounds), run / "data/rounds.csv")
    write_json(run / "data/review.json", report)


def _write_csv(frame: pd.DataFrame, path: Path) -> None:
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False)
