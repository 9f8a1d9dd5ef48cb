"""Notebook 01: how a run's rubrics come about: curation of the pool, drafting, rounds of review."""

import os
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import pandas as pd

from promedical_utils import clinic
from promedical_utils.clinic import pool
from promedical_utils.clinic import writer as people
from promedical_utils.core import profiles, provenance, records
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Instruction, Message, RawInstruction, Rubric, SplitRow
from promedical_utils.core.workspace import KitError, short_hash, write_frame, write_json
from promedical_utils.data import rubric_writer
from promedical_utils.data.annotation import review
from promedical_utils.data.annotation.store import Store
from promedical_utils.data.curation import filters
from promedical_utils.data.roles import Roles
from promedical_utils.data.sources import contrast_sets, open_sets, real_sets
from promedical_utils.data.sources.schemas import VARIABLE
from promedical_utils.pipeline import real_text
from promedical_utils.pipeline.endpoints import of_profile


def unseen_kinds(profile: Profile) -> frozenset[str]:
    """Kinds of criteria that are kept out of training: the clinic's; of real data those of
    constructed pairs that have no wording for training; of open data none."""
    if profile.data == "clinic":
        return clinic.UNSEEN_KINDS
    banks = contrast_sets.BANKS if profile.data == "real" else {}
    return frozenset(kind for kind, bank in banks.items() if "train" not in bank["criterion"])


def make_rubrics(profile: Profile, run: Path) -> dict:
    """Writes data/{instructions,splits,rubrics}.parquet, review.json (the report, returned),
    hashes.json, and composition.csv (criteria of each dimension in a rubric, the mean of a
    category); funnel.csv and left_out.parquet where something was curated, drafts.parquet (every
    draft as it came) where something was drafted, rounds.csv where drafts were reviewed.
    """
    make = {"clinic": of_clinic, "open": of_open_sets}
    make |= dict.fromkeys(("real", "own"), real_text.rubrics_of_real)
    provenance.claim_data(run, "instructions", "splits", "rubrics")
    # in one order: instructions, where each belongs, its rubric; and the report on them
    instructions, splits, rubrics, report = make[profile.data](profile, run)
    records.save(instructions, run / "data/instructions.parquet")
    records.save(splits, run / "data/splits.parquet")
    records.save(rubrics, run / "data/rubrics.parquet")
    write_json(run / "data/review.json", report)
    counts = [Counter(criterion.dimension for criterion in rubric.criteria) for rubric in rubrics]
    composition = pd.DataFrame(counts, columns=list(records.DIMENSIONS)).astype(float).fillna(0)
    composition["category"] = [instruction.category for instruction in instructions]
    means = composition.groupby("category").mean().reset_index()
    write_frame(run / "data/composition.csv", means)
    provenance.hash_data(run)
    return report


def of_clinic(profile: Profile, run: Path) -> tuple:
    """Curation of the raw pool, rounds of drafting and review, and what is left drafted."""
    w = clinic.build(profile)
    roles = of_profile(profile, run) if profiles.asks_endpoints(profile) else None
    curated, curation = _curated_clinic(profile, run, w, roles)
    lost = set(w.ids("train")) - curated
    instructions = [i for i in w.instructions if i.id not in lost]

    def physician(drafts: list[Rubric]) -> list:
        return [people.corrections(d, w.rubric_of[d.instruction_id], "physician_1") for d in drafts]

    writer = partial(rubric_writer.write, roles) if roles else partial(_by_clinic, profile, w)
    drafting = Drafting(profile, {i.id: i for i in instructions}, writer)
    drafting.run([i for i in w.ids("train") if i in curated], physician)
    rubric_of, passed = w.rubric_of | drafting.gold, []
    for draft, fixes in zip(drafting.left, physician(drafting.left), strict=True):
        if draft.instruction_id in drafting.queued:  # not valid: physicians write it
            draft = review.apply(draft, fixes)
        else:
            passed.append(review.passed(draft, fixes))
        rubric_of[draft.instruction_id] = draft
    report = {
        "rounds": drafting.rounds,
        "unreviewed": {"drafted": len(passed), "flawed": passed.count(False)},
        "writing": drafting.save(run, roles),
        "curation": curation,
        "input": {
            "first_error_rate": profile.rubric_error_rate,
            "strict_pass_rate_aimed_at": profile.rubric_pass_rate,
        },
        "note": "how often the writer errs is set in the profile: an input, not a finding",
    }
    splits, rubrics = [row for row in w.splits if row.instruction_id not in lost], []
    for rubric in (rubric_of[i.id] for i in instructions):
        # each criterion's type, which endpoints do not give, as the clinic's grammar reads it
        named = [c.model_copy(update={"kind": people.kind(c.text)}) for c in rubric.criteria]
        rubrics.append(rubric.model_copy(update={"criteria": named}))
    return instructions, splits, rubrics, report


def _by_clinic(profile: Profile, w: clinic.World, asked: list[Instruction], shown) -> tuple:
    """As ``rubric_writer.write``, by the clinic's writer: breaks no rule of the form, but errs as
    the profile says, less after alike examples."""
    drafts = []
    for instruction, near in zip(asked, rubric_writer.examples(asked, shown), strict=True):
        alike = [i.category for i, _ in near]
        rate = people.error_rate(profile, instruction.category, alike)
        rng = random.Random(short_hash("draft", profile.seed, instruction.id, *alike))
        drafts.append(people.draft(w.rubric_of[instruction.id], rate, rng))
    return drafts, {}


def _curated_clinic(profile: Profile, run: Path, w: clinic.World, roles) -> tuple[set[str], dict]:
    """Which training instructions come through curation of the raw pool; the report, by truth."""
    train = w.ids("train")
    rows, truth = pool.raw(w, train, profile.seed)
    planted = {row.text: truth[row.id] for row in rows}

    def screen(texts):
        return [planted[text].difficulty for text in texts]

    def classify(texts):
        return [
            filters.NOT_MEDICAL if p.kind == "not_medical" else (p.category, p.specialty)
            for p in map(planted.get, texts)
        ]

    bench = {i.id: pool.text_of(i.messages) for i in w.instructions_in("bench")}
    asking = _asking(roles) if roles else (screen, classify)
    made, report = _curated(profile, run, rows, bench, *asking)
    left = {i.id for i in made.instructions}
    leaks = set(made.left_out.id[made.left_out.step == "bench"])
    # one row of a cluster is kept, whichever: its instruction is then the one that came through
    through = [truth[i].of for i in left if truth[i].kind in ("kept", "duplicate")]
    kept = set(train).intersection(through)

    def count(kind: str, right: set[str]) -> str:
        ids = {i for i, row in truth.items() if row.kind == kind}
        return f"{len(ids & right)} of {len(ids)}"

    report["against_truth"] = {
        "instructions that came through": f"{len(kept)} of {len(train)}",
        "near-misses kept": count("near_miss", left),
        "leaks of the bench found": count("leak", leaks),
        "rows too many (second of a cluster)": f"{len(through) - len(set(through))}",
    }
    for kind in ("licence", "language", "length", "not_medical", "too_easy", "too_hard"):
        report["against_truth"][f"{kind}, dropped"] = count(kind, truth.keys() - left)
    return kept, report


def of_open_sets(profile: Profile, run: Path) -> tuple:
    """Open sets curated and split, with rubrics of the writer's.

    With ``reviewers`` in the profile the stage stops with a KitError until they have finished a
    round on the review page (review.sqlite), and goes on where it was. A draft that stays against
    the rules waits there with its reasons, and its instruction is left out till then.
    """
    (rows, left_out), roles = open_rows(profile), of_profile(profile, run)
    # open sets may hold questions of the real ones, as far as these are at hand
    bench = real_sets.held_out_questions() if os.environ.get(VARIABLE) else {}
    curated, curation = _curated(profile, run, rows, bench, *_asking(roles))
    split_of = _open_splits(profile, curated.instructions)
    asked = {i.id: i for i in curated.instructions if i.id in split_of}
    drafting = Drafting(profile, asked, partial(rubric_writer.write, roles))
    with closing(Store(run / "review.sqlite")) as store:
        rubric_of = _drafted(run, drafting, store)
    kept = [i for i in asked if i in rubric_of]
    rubrics = [rubric_of[i] for i in kept]
    status = Counter(rubric.status for rubric in rubrics)
    report = {
        "sources": {"left_out": left_out, "instructions": len(rows)},
        "curation": curation,
        "rounds": drafting.rounds,
        "writing": drafting.save(run, roles),
        "rubrics": {name: status[name] for name in ("draft", "reviewed", "gold")},
        "notes": [
            "drafts are a language model's until physicians have reviewed them",
            f"decontaminated against {len(bench)} questions of the sets of profile real"
            if bench
            else f"not decontaminated against outside benches: {VARIABLE} is not set",
        ],
    }
    return [asked[i] for i in kept], [split_of[i] for i in kept], rubrics, report


def _drafted(run: Path, drafting: "Drafting", store: Store) -> dict[str, Rubric]:
    """Rubrics as drafted, or as physicians have mended them."""
    asked, reviewers = drafting.instruction_of, drafting.profile.reviewers
    mended = {r.instruction_id: r for r in store.gold() if r.instruction_id in asked}
    if reviewers:  # who repeat themselves: what they finished is asked for again
        records.save(asked.values(), run / "data/to_review.parquet")  # for the review page
        drafting.run(list(asked), partial(store.reviewed, reviewers=reviewers))
    else:
        drafting.run([i for i in asked if i not in mended], examples=list(mended.values()))
    drafts = {}
    for draft in drafting.left:
        i = draft.instruction_id
        if i not in drafting.queued:
            drafts[i] = draft
        elif i not in mended:
            store.queue(draft, "; ".join(drafting.queued[i]))
    return drafts | drafting.gold | mended


def open_rows(profile: Profile) -> tuple[list[RawInstruction], dict]:
    """Raw rows of the profile's open sources, and what was left out of each."""
    rows, left_out = [], {}
    for source in profile.sources:
        reading = open_sets.read(source, profile.source_limit or None)
        rows += reading.instructions
        left_out[Path(source).name] = dict(reading.skipped)
    return rows, left_out


def _open_splits(profile: Profile, asked: list[Instruction]) -> dict[str, SplitRow]:
    """Splits of the profile's sizes by the hash of the id, held-out ones first."""
    names = ["bench"] * profile.bench_samples
    names += ["calibration"] * profile.calibration_instructions
    names += ["checkpoint"] * profile.checkpoint_instructions
    order = sorted((i.id for i in asked), key=lambda i: short_hash(profile.seed, i))
    if len(order) <= len(names):
        raise KitError(
            f"{len(order)} instructions are left after curation, too few for the held-out splits "
            f"({len(names)}): read more of the sources (source_limit) or lower their sizes"
        )
    names += ["train"] * profile.train_instructions
    return {
        i: SplitRow(instruction_id=i, split=name, condition=i, patient=i, wording_seed=0)
        for i, name in zip(order, names, strict=False)
    }


def _asking(roles: Roles) -> tuple[Callable, Callable]:
    """The screener and the classifier as ``filters`` asks them: texts in, answers or None out."""

    def ask(role: Callable, texts: Sequence[str]) -> list:
        conversations = [[Message(role="user", content=text)] for text in texts]
        return [answer.value for answer in role(conversations)]

    def classify(texts):
        return [
            c and ((c.category, c.specialty) if c.medical else filters.NOT_MEDICAL)
            for c in ask(roles.classify, texts)
        ]

    return partial(ask, roles.screen), classify


def _curated(profile: Profile, run: Path, rows, bench, *asking) -> tuple[filters.Curated, dict]:
    """What curation makes of ``rows``, and the report; writes funnel.csv and left_out.parquet."""
    made = filters.curate(rows, bench, *asking, profile)
    write_frame(run / "data/funnel.csv", made.funnel)
    write_frame(run / "data/left_out.parquet", made.left_out)
    return made, {
        "rows": len(rows),
        "kept": len(made.instructions),
        "queued": int(made.left_out.queued.sum()),
        "dropped": made.funnel.set_index("step").dropped.to_dict(),
    }


class Drafting:
    """Rubrics that ``writer`` drafts as ``rubric_writer.write`` does, by rounds of review if there
    are any: ``rounds`` (rows of numbers) and ``gold`` of the reviewed, a draft of each that is
    ``left``. Of all drafts ``valid``: those that keep the rules, as they came; ``queued``: which
    the others break, by instruction id.
    """

    def __init__(self, profile: Profile, instruction_of: Mapping[str, Instruction], writer):
        self.profile, self.instruction_of, self.writer = profile, instruction_of, writer
        self.rounds, self.left, self.valid = [], [], []
        self.gold, self.queued = {}, {}

    def run(self, ids: list[str], reviewing=None, examples: Sequence[Rubric] = ()) -> None:
        """``reviewing`` as ``review.rounds`` has it; ``examples``: gold from before."""
        p = self.profile
        if reviewing:
            sizes = {"size": p.review_batch, "blind": p.review_blind, "controls": p.review_controls}
            sizes |= {"target": p.rubric_pass_rate, "seed": p.seed}
            for row, corrected in review.rounds(ids, self.write, reviewing, **sizes):
                self.rounds.append(row)
                self.gold |= {r.instruction_id: r for r in corrected}
        left = [i for i in ids if i not in self.gold]
        self.left = self.write(left, [*examples, *self.gold.values()])

    def write(self, ids: list[str], examples: Sequence[Rubric]) -> list[Rubric]:
        """A draft for each id, the writer shown the gold of the most similar instructions."""
        pool = [(self.instruction_of[r.instruction_id], r) for r in examples]
        drafts, queued = self.writer([self.instruction_of[i] for i in ids], pool)
        self.queued |= queued
        self.valid += [draft for draft in drafts if draft.instruction_id not in queued]
        return drafts

    def save(self, run: Path, roles: Roles | None) -> dict:
        """Write what there is of drafts.parquet and rounds.csv; the numbers of the drafting."""
        if self.valid:
            records.save(self.valid, run / "data/drafts.parquet")
        if self.rounds:
            write_frame(run / "data/rounds.csv", pd.DataFrame(self.rounds))
        total = len(self.valid) + len(self.queued)
        report = {
            "drafted": total,
            "valid": len(self.valid),
            "valid_share": round(len(self.valid) / total, 4) if total else None,
            "repaired": roles.drafted["repaired"] if roles else 0,
            "queued": self.queued,
            "requests": roles.answers.ledger() if roles else {},
        }
        return report | ({"roles": roles.outcomes()} if roles else {})
