"""How a run's rubrics come about: curation of the pool, drafting, rounds of review.

What notebook 01 does for the clinic and for open questions; ``rubrics.make_rubrics`` calls it.
"""

import os
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from promedical_utils import clinic
from promedical_utils.clinic import pool
from promedical_utils.clinic import writer as people
from promedical_utils.core import profiles, provenance, records
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Instruction, Message, Rubric, SplitRow
from promedical_utils.core.workspace import KitError, replacing, short_hash, write_json
from promedical_utils.data import rubric_writer
from promedical_utils.data.annotation import review
from promedical_utils.data.annotation.store import Store
from promedical_utils.data.curation import filters as curation
from promedical_utils.data.sources import open_sets, real_sets
from promedical_utils.data.sources.schemas import VARIABLE
from promedical_utils.pipeline.endpoints import of_profile
from promedical_utils.pipeline.real_text import rubrics_of_real


def open_rows(profile: Profile) -> tuple[list, dict[str, Rubric], dict]:
    """Raw rows of the profile's open sources, the rubrics that they bring, and what was left
    out."""
    rows, brought, left_out = [], {}, {}
    for source in profile.sources:
        reading = open_sets.read(source, profile.source_limit or None)
        rows += reading.instructions
        brought |= {r.instruction_id: r for r in reading.rubrics}
        name = Path(source).name
        left_out[name] = dict(reading.skipped) | {"rubrics to be written anew": len(reading.queued)}
    return rows, brought, left_out


def outside_benches(profile: Profile) -> dict[str, str]:
    """Questions of the real sets by id, as far as they are at hand: open sets may hold them,
    too."""
    if not os.environ.get(VARIABLE):
        return {}
    return {i.id: pool.text_of(i.messages) for i in real_sets.load_real(profile.seed).instructions}


def composition(run: Path):
    """Mean number of criteria of each dimension in a rubric, a row a category, as a data frame."""
    category = {
        i.id: i.category
        for i in records.load(run / "data/instructions.parquet", Instruction, "01_rubrics")
    }
    rubrics_ = records.load(run / "data/rubrics.parquet", Rubric, "01_rubrics")
    counts = pd.DataFrame(
        [[sum(c.dimension == d for c in r.criteria) for d in records.DIMENSIONS] for r in rubrics_],
        columns=records.DIMENSIONS,
        index=pd.Index([category[r.instruction_id] for r in rubrics_], name="category"),
    )
    return counts.groupby("category").mean().reset_index()


def of_open_sets(profile: Profile, run: Path) -> dict:
    """Open sets curated and split, with rubrics of their own or of the writer's.

    With ``reviewers`` in the profile there are rounds of review (review.sqlite): the stage stops
    with a KitError until they have finished a round on the review page, and goes on where it was. A
    draft that stays against the rules waits there with its reasons, and its instruction is left out
    till then.
    """
    rows, brought, left_out = open_rows(profile)
    played, store = of_profile(profile, run), Store(run / "review.sqlite")
    bench = outside_benches(profile)
    asked, curated = _curated(profile, run, rows, bench, *_asking(played))
    splits = _open_splits(profile, asked)
    asked = [i for i in asked if i.id in splits]
    by_id = {i.id: i for i in asked}
    mended = {r.instruction_id: r for r in store.gold() if r.instruction_id in by_id}
    written = {i: r for i, r in brought.items() if i in by_id}
    writer = _Writer(profile, asked, played)
    ids = [i for i in by_id if i not in written]
    if profile.reviewers:  # who repeat themselves: what they finished is asked for again
        records.save(asked, run / "data/to_review.parquet")  # the page shows them beside the drafts
        reviewing = partial(store.reviewed, reviewers=profile.reviewers)
        made = _reviewed(profile, writer, ids, reviewing)
    else:
        made = _reviewed(
            profile, writer, [i for i in ids if i not in mended], None, list(mended.values())
        )
    for draft in made.queued:
        if draft.instruction_id not in mended:
            store.queue(draft, "; ".join(writer.queued[draft.instruction_id]))
    store.close()
    written |= made.drafts | made.gold | mended
    asked = [i for i in asked if i.id in written]
    status = [r.status for r in written.values()]
    report = {
        "sources": {"left_out": left_out, "instructions": len(rows)},
        "curation": curated,
        "rounds": made.rounds,
        "writing": writer.report(),
        "rubrics": {name: status.count(name) for name in ("draft", "reviewed", "gold")},
        "notes": [
            "drafts are a language model's until physicians have reviewed them",
            f"decontaminated against {len(bench)} questions of the sets of profile real"
            if bench
            else f"not decontaminated against outside benches: {VARIABLE} is not set",
        ],
    }
    records.save(asked, run / "data/instructions.parquet")
    records.save([splits[i.id] for i in asked], run / "data/splits.parquet")
    _save_review(run, writer, made, report)
    records.save([written[i.id] for i in asked], run / "data/rubrics.parquet")
    return report


def _open_splits(profile: Profile, asked: list[Instruction]) -> dict[str, SplitRow]:
    """Splits of the profile's sizes by the hash of the id, held-out ones first; train gets what is
    left."""
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


def of_clinic(profile: Profile, run: Path) -> dict:
    """Curation of the raw pool, rounds of drafting and review, and what is left drafted."""
    w = clinic.build(profile)
    curated, found = _curated_clinic(profile, run, w)
    asked = w.ids("train")
    train = [i for i in asked if i in curated]
    played = of_profile(profile, run) if profiles.asks_endpoints(profile) else None
    writer = _Writer(profile, w.instructions, played, w.rubric_of)

    def reviewed(drafts: list[Rubric], blind: bool) -> list:
        return [people.corrections(d, w.rubric_of[d.instruction_id], "physician_1") for d in drafts]

    made = _reviewed(profile, writer, train, reviewed)
    # what the writer could not make valid waits for physicians, who write it
    gold = made.gold | {
        draft.instruction_id: review.apply(draft, decided)
        for draft, decided in zip(made.queued, reviewed(made.queued, False), strict=True)
    }
    drafts = list(made.drafts.values())
    flawed = sum(
        not review.passed(d, m) for d, m in zip(drafts, reviewed(drafts, False), strict=True)
    )
    written = {r.instruction_id: r for r in w.rubrics} | made.drafts | gold
    lost = set(asked) - curated
    instructions = [i for i in w.instructions if i.id not in lost]
    report = {
        "rounds": made.rounds,
        "unreviewed": {"drafted": len(drafts), "flawed": flawed},
        "writing": writer.report(),
        "curation": found,
        "input": {
            "first_error_rate": profile.rubric_error_rate,
            "strict_pass_rate_aimed_at": profile.rubric_pass_rate,
        },
        "note": "how often the writer errs is set in the profile: an input, not a finding",
    }
    records.save(instructions, run / "data/instructions.parquet")
    records.save(
        [row for row in w.splits if row.instruction_id not in lost], run / "data/splits.parquet"
    )
    _save_review(run, writer, made, report)
    records.save([_with_kinds(written[i.id]) for i in instructions], run / "data/rubrics.parquet")
    return report


def _save_review(run: Path, writer, made, report: dict) -> None:
    if writer.valid:
        records.save(writer.valid, run / "data/drafts.parquet")
    if made.rounds:
        with replacing(run / "data/rounds.csv") as temporary:
            pd.DataFrame(made.rounds).to_csv(temporary, index=False)
    write_json(run / "data/review.json", report)


def _curated_clinic(profile: Profile, run: Path, w) -> tuple[set[str], dict]:
    """Which training instructions come through curation of the raw pool, and its report by the
    truth."""
    train, by_id = w.ids("train"), {i.id: i for i in w.instructions}
    rows, truth = pool.raw(w, train, profile.seed)
    bench = {i: pool.text_of(by_id[i].messages) for i in w.ids("bench")}
    of = {row.text: truth[row.id] for row in rows}

    def screen(texts):
        return [of[text].difficulty for text in texts]

    def classify(texts):
        found = [of[text] for text in texts]
        return [
            (t.category, t.specialty) if t.kind != "not_medical" else curation.NOT_MEDICAL
            for t in found
        ]

    asking = (
        _asking(of_profile(profile, run))
        if profiles.asks_endpoints(profile)
        else (screen, classify)
    )
    kept, report = _curated(profile, run, rows, bench, *asking)
    left = {i.id for i in kept}
    steps = pd.read_parquet(run / "data/left_out.parquet").set_index("id").step.to_dict()
    # one row of a cluster is kept, whichever: its instruction is then the one that came through
    through = {truth[i].of for i in left if truth[i].kind in ("kept", "duplicate")}

    def count(kind: str, right) -> str:
        ids = [i for i, planted in truth.items() if planted.kind == kind]
        return f"{sum(map(right, ids))} of {len(ids)}"

    surplus = sum(truth[i].kind in ("kept", "duplicate") for i in left) - len(through)
    report["against_truth"] = {
        "instructions that came through": f"{len(through & set(train))} of {len(train)}",
        "near-misses kept": count("near_miss", lambda i: i in left),
        "leaks of the bench found": count("leak", lambda i: steps.get(i) == "bench"),
        "rows too many (second of a cluster)": f"{surplus}",
        **{
            f"{kind}, dropped": count(kind, lambda i: i not in left)
            for kind in ("licence", "language", "length", "not_medical", "too_easy", "too_hard")
        },
    }
    return through & set(train), report


def _asking(played) -> tuple:
    """The screener and the classifier as ``filters`` asks them: texts in, answers or None out."""

    def turns(texts):
        return [[Message(role="user", content=text)] for text in texts]

    def screen(texts):
        return [answer.value for answer in played.screen(turns(texts))]

    def classify(texts):
        found = [answer.value for answer in played.classify(turns(texts))]
        return [
            c and ((c.category, c.specialty) if c.medical else curation.NOT_MEDICAL) for c in found
        ]

    return screen, classify


def _curated(
    profile: Profile, run: Path, rows: list, bench: dict[str, str], screen, classify
) -> tuple:
    """Instructions that curation leaves of ``rows``, and its report; writes funnel.csv,
    left_out.parquet."""
    made = curation.curate(
        rows,
        bench,
        screen,
        classify,
        curation.Settings(
            licences=profile.licences,
            languages=profile.languages,
            min_words=profile.words_least,
            max_words=profile.words_most,
            embedder=profile.embedder,
            difficulty_low=profile.difficulty_least,
            difficulty_high=profile.difficulty_most,
        ),
    )
    with replacing(run / "data/funnel.csv") as temporary:
        made.funnel.to_csv(temporary, index=False)
    left_out = pd.concat([made.dropped.assign(queued=False), made.queued.assign(queued=True)])
    with replacing(run / "data/left_out.parquet") as temporary:
        left_out.to_parquet(temporary, index=False)
    report = {
        "rows": len(rows),
        "kept": len(made.instructions),
        "queued": len(made.queued),
        "dropped": {r.step: int(r.dropped) for r in made.funnel.itertuples()},
    }
    return made.instructions, report


def _with_kinds(rubric: Rubric) -> Rubric:
    """The rubric with each criterion's type as the clinic's grammar reads it; endpoints give
    none."""
    named = [c.model_copy(update={"kind": people.kind(c.text)}) for c in rubric.criteria]
    return rubric.model_copy(update={"criteria": named})


@dataclass
class _Reviewed:
    """Gold and drafts by instruction id, what is queued, and the rows of the rounds."""

    rounds: list[dict]
    gold: dict[str, Rubric]
    drafts: dict[str, Rubric]
    queued: list[Rubric]


def _reviewed(profile: Profile, writer, ids: list[str], reviewing, pool=()) -> _Reviewed:
    """Rounds of review if there are reviewers; then what is left is drafted with the gold so
    far."""
    rounds, gold = [], {}
    if reviewing and ids:
        for row, corrected in review.rounds(
            ids,
            writer,
            reviewing,
            target=profile.rubric_pass_rate,
            size=profile.review_batch,
            blind=profile.review_blind,
            controls=profile.review_controls,
            seed=profile.seed,
            pool=pool,
        ):
            rounds.append(row)
            gold |= {r.instruction_id: r for r in corrected}
    left = [i for i in ids if i not in gold]
    drafts = {d.instruction_id: d for d in writer(left, [*pool, *gold.values()])}
    queued = [drafts.pop(i) for i in left if i in writer.queued]
    return _Reviewed(rounds, gold, drafts, queued)


class _Writer:
    """The rubric writer as ``review.rounds`` asks it: shown the gold of the most similar
    instructions.

    Without ``roles`` the clinic writes, from its ``gold``. ``valid``: every draft that kept the
    rules, as it came; ``queued``: for which instructions there was none, and why.
    """

    def __init__(self, profile: Profile, asked: list[Instruction], roles=None, gold=None):
        self.profile, self.roles, self.gold = profile, roles, gold
        self.asked = {i.id: i for i in asked}
        self.valid, self.queued, self.repaired = [], {}, 0

    def __call__(self, ids: list[str], pool: list[Rubric]) -> list[Rubric]:
        asked = [self.asked[i] for i in ids]
        shown = [(self.asked[r.instruction_id], r) for r in pool]
        if self.roles is None:
            drafts = self._in_process(asked, shown)
            self.valid += drafts
            return drafts
        made = rubric_writer.write(self.roles, asked, shown, 0, self.profile.embedder)
        self.valid += made.rubrics
        self.repaired += made.repaired
        of = {r.instruction_id: r for r in made.rubrics}
        for q in made.queued:
            self.queued[q.instruction_id] = list(q.reasons)
            rows = q.draft.model_dump()["criteria"] if q.draft else []
            of[q.instruction_id] = review.unchecked(q.instruction_id, rows)
        return [of[i] for i in ids]

    def _in_process(self, asked, shown) -> list[Rubric]:
        drafts = []
        for instruction, near in zip(
            asked, rubric_writer.examples(asked, shown, self.profile.embedder), strict=True
        ):
            alike = [i.category for i, _ in near]
            rate = people.error_rate(self.profile, instruction.category, alike)
            rng = random.Random(short_hash("draft", self.profile.seed, instruction.id, *alike))
            drafts.append(people.draft(self.gold[instruction.id], rate, 0, rng))
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


# ---------------------------------------------------------------- 01 rubrics


def make_rubrics(profile: Profile, run: Path) -> dict:
    """Instructions, splits and rubrics; writes data/{instructions,rubrics,splits}.parquet,
    review.json.

    Also hashes.json, composition.csv, funnel.csv where something was curated, drafts.parquet (every
    draft as it came) where something was drafted, and rounds.csv where drafts were reviewed.
    """
    pass

    make = {"clinic": of_clinic, "real": rubrics_of_real, "open": of_open_sets}[profile.data]
    report = make(profile, run)
    with replacing(run / "data/composition.csv") as temporary:
        composition(run).to_csv(temporary, index=False)
    provenance.hash_data(run)
    return report


def splits_table(profile: Profile, run: Path):
    """Instructions, conditions, patients and wording seeds by split, as a data frame."""
    import pandas as pd

    rows = records.load(run / "data/splits.parquet", SplitRow, "01_rubrics")
    frame = pd.DataFrame([r.model_dump() for r in rows])
    table = frame.groupby("split").agg(
        instructions=("instruction_id", "size"),
        conditions=("condition", "nunique"),
        patients=("patient", "nunique"),
        wording_seeds=("wording_seed", "nunique"),
    )
    return table.reindex([s for s in records.SPLITS if s in table.index])
