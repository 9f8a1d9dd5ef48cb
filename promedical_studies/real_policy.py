"""The study of a policy on real text: aligned by one reader of half of the labels, read by another.

Nobody can judge a policy's new answers here. So the labels are cut in two by question: the *first
reader* is the reward, the *second reader* was trained on the other half and stands in for gold,
which it is not: the two share their base and what a base of that size cannot read. Whether the
second one reads at all is tested first, on pairs whose shorter answer is right (the *gate*).
``kinds/real_policy.yaml`` fixes sizes, settings and the gate.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from promedical_studies import counting, learning_curve
from promedical_studies.reward_models import prepare
from promedical_studies.study import Study, as_computed, kept_part
from promedical_utils.core.estimates import Estimates, suffixed
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Instruction
from promedical_utils.core.run_data import RunData, base_path
from promedical_utils.core.workspace import short_hash, write_frame, write_rows
from promedical_utils.data.sources import real_sets, schemas
from promedical_utils.pipeline import policies
from promedical_utils.policy.veto_reward import RubricReward
from promedical_utils.report import figures
from promedical_utils.reward_model.variants import find
from promedical_utils.rubric.preferences import digest, groups_of
from promedical_utils.studies import results

READERS = ("first", "second")
RUBRICS = ("kqa_contrast", "medlfqa_contrast")  # whose statements are criteria of a new answer, too
MEDQUAD = "questions of MedQuAD (Ben Abacha and Demner-Fushman 2019, CC BY 4.0)"
REPORTED = ("steps", "seconds", "hacking", "throughput", "unscored")


class RealPolicy(Study):
    kind, title, data = "real_policy", "A policy on real text", "real"

    def train(self, profile, folder, data, out) -> dict:
        """Also into ``out``: sums.parquet, curves.parquet, answers.csv, which has questions of
        MedQuAD and answers of policies and no other text, and part-<system>-<seed> of each, which a
        later run takes over."""
        p = Profile.model_validate(profile.model_dump(mode="json") | self.shows["settings"])
        trainings = _Trainings(p, folder, data, self.shows)
        splits = ("train", "calibration", "checkpoint", "bench")
        read = [digest(groups_of(data, "judge", split)) for split in splits]
        key = short_hash(as_computed(p), repr(self.shows), *read)
        print("gate ...", flush=True)
        parts, curves = [kept_part(out, "gate-0", key, trainings.gate)[0]], []
        reports, answers = {}, {}
        seeds = (("veto", seed) for seed in self.plan["veto"])
        for system, seed in (("base", 0), ("sft", 0), *seeds):
            print(f"{system}, seed {seed} ..." if seed else f"{system} ...", flush=True)
            answered = partial(trainings.answered, system, seed)
            rows, facts = kept_part(out, f"{system}-{seed}", key, answered)
            parts.append(rows)
            answers.setdefault(system, facts.pop("answers"))
            curves += [row | {"seed": seed} for row in facts.pop("curve", ())]
            reports[f"{system}-{seed}"] = facts
        write_rows(out / "curves.parquet", pd.DataFrame(curves).sort_index(axis=1))
        shown = trainings.harmless[: self.shows["beside"]]
        texts = {"question": [asked.messages[0].content for asked in shown]}
        write_frame(out / "answers.csv", pd.DataFrame(texts | answers))
        counting.write_sums(out, parts)
        halves = {name: len(half(data, name).ids("train")) for name in READERS}
        return {"trainings": reports, "train_questions": halves}

    def show(self, rows, manifest, out) -> None:
        cells = results.Cells(rows)
        gate = self.gate(cells)
        self.save_table(gate, out, "gate", "Does the second reader read?", manifest)
        self.save_table(self.by_measure(cells), out, "table", self.title, manifest)
        curves, more = pd.read_parquet(out / "curves.parquet"), "curves.parquet"
        measured = "" if gate.passed[gate.counts].all() else ": no measurement"
        curves = curves.assign(run="seed " + curves.seed.astype(str) + measured)
        self.save_figure(plot_second_reader, curves, out, "curve", manifest, more)
        beside = pd.read_csv(out / "answers.csv", keep_default_na=False)
        title = f"Answers side by side to {len(beside)} {MEDQUAD}"
        self.save_table(beside, out, "beside", title, manifest)

    def gate(self, cells: results.Cells) -> pd.DataFrame:
        """A row a source: pairs whose shorter answer is right, the share ordered rightly (%),
        whether its whole interval lies above a half, and whether the gate counts it."""
        rows = []
        for source in self.shows["gate_sources"]:
            labels = real_sets.LABELS[source]
            key = ("second reader", "pairwise", f"{source}: shorter", labels)
            row = {"source": source, "labels": labels, "pairs": cells.n(key)}
            row |= suffixed("ordered", cells.ends(key), 100, 1)
            counts = source in self.shows["gate"]
            rows.append(row | {"counts": counts, "passed": row["ordered_low"] > 50})
        return pd.DataFrame(rows)

    def by_measure(self, cells: results.Cells) -> pd.DataFrame:
        """A row a measure: of each system the mean over its seeds, and of GRPO less what it
        started from; in percent, or tokens."""
        rows = []
        for measure, (metric, against) in self.shows["columns"].items():
            cell, answers = (metric, "all"), cells.n(("base", metric, "all", against))
            row = {"measure": measure, "by": against, "answers": answers}
            for system in self.shows["labels"]:
                row |= cells.wide(system, {system: cell}, against, digits=1)
            less = {"veto_less_sft": (*cell, results.LESS, "sft")}
            rows.append(row | cells.wide("veto", less, against, digits=1))
        return pd.DataFrame(rows)


class _Trainings:
    """What the study trains, each when it is first asked for, and what is counted of it."""

    def __init__(self, p: Profile, folder: Path, data: RunData, shows: Mapping):
        self.p, self.folder, self.data, self.shows = p, folder, data, shows
        self.place, self.base = folder / "policy_study", base_path(p, folder)
        self.reader = cache(self._reader)  # in memory, once

    def _reader(self, name: str):
        from promedical_utils.policy import training  # late: loads torch

        print(f"  {name} reader", flush=True)
        place = self.place / name
        prepare(self.p, self.folder, half(self.data, name), find("criterion"), place)
        return training.reward_model_of(place)

    def reads(self, name: str):
        """(instruction id, messages, text, finished) items -> ``veto_reward.Judged``."""
        return RubricReward(self.reader(name), None, self.data.rubrics).read

    @cached_property
    def taught(self) -> dict:
        """The report of supervised fine-tuning, in ``place``/sft."""
        from promedical_utils.policy import sft  # late: loads torch

        pairs = real_sets.written_answers(self.p.seed)[: self.shows["written"]]
        written = [([{"role": "user", "content": asked}], answer) for asked, answer in pairs]
        return sft.train(self.base, written, self.p, self.place / "sft")

    def policy(self, system: str, seed: int) -> tuple[dict, Path | str, Path | None]:
        """What is said of a policy's training, its base, and the folder of its adapter, if any."""
        if system == "base":
            return {}, self.base, None
        if system == "sft":
            return self.taught, self.place / "sft", None
        from promedical_utils.policy import training  # late: loads torch

        p, out = self.p.model_copy(update={"seed": seed}), self.place / f"veto-{seed}"
        asked = _with_rubric(half(self.data, "first"), "train")
        taught, first, held = self.taught, self.reader("first"), self.held_out()
        read = [policies.reward_fingerprint(self.place / name) for name in READERS]
        read = short_hash(*read, taught["of"])
        job = training.Job(out, p, self.data.rubrics, asked, held, read)
        report = training.train(job, self.place / "sft", first)
        rows = pd.read_csv(out / "curve.csv").to_dict("records")
        curve = [{name: value for name, value in row.items() if value == value} for row in rows]
        facts = {name: report[name] for name in REPORTED}
        return facts | {"curve": curve}, self.place / "sft", out

    def held_out(self):
        """What every evaluation on the way asks, and the second reader as its judge."""
        from promedical_utils.policy.generation import messages_of  # these load torch
        from promedical_utils.policy.model import HeldOut

        drawn = _drawn(_with_rubric(self.data, "checkpoint"), "asked", self.shows["held_out"])
        asked = {i.id: i for i in drawn}
        reads = self.reads("second")

        def judged(pairs):
            items = [(i, messages_of(asked[i]), text, True) for i, text in pairs]
            return [read.verdicts for read in reads(items)]

        return HeldOut([*asked.values()], judged, None, self.data.condition_of)

    def gate(self) -> tuple[pd.DataFrame, dict]:
        """Pairs of the bench that the second reader orders rightly, by source and part."""
        groups = groups_of(self.data, "judge", "bench")
        groups = [g for g in groups if g.instruction.source in self.shows["gate_sources"]]
        groups = learning_curve.sample(groups, self.shows["words"])
        scores = self.reader("second").score_groups(groups, shorten=True).assign(read="")
        counted = learning_curve.counted("second reader", scores, groups, self.data)
        return counting.rows_of(counted), {}

    @cached_property
    def harmless(self) -> list[Instruction]:
        """Questions of MedQuAD that are not learned from."""
        texts = [row for row, split in real_sets.medquad_texts(self.p.seed) if split == "bench"]
        return [
            schemas.question(f"medquad-{row.id}", "medquad", row.question, "patient_question")
            for row in _drawn(texts, "harmless", self.shows["harmless"])
        ]

    def answered(self, system: str, seed: int) -> tuple[pd.DataFrame, dict]:
        """Rows of what a policy answers to questions with a rubric and to harmless ones; and facts
        of its training, with the first of the latter answers."""
        from promedical_utils.policy.generation import messages_of  # loads torch

        facts, base, adapter = self.policy(system, seed)
        with_rubric = _drawn(_with_rubric(self.data, "bench"), "asked", self.shows["asked"])
        everything = [*with_rubric, *self.harmless]
        answers = policies.answers_by(adapter, base, self.p, everything)
        own, free = answers[: len(with_rubric)], answers[len(with_rubric) :]
        pairs = zip(with_rubric, own, strict=True)
        texts = [(i.id, messages_of(i), a.text, a.finished) for i, a in pairs]
        measures = {}
        for name in READERS:
            read, by = self.reads(name)(texts), f"{name} reader"
            measures["violation_rate", by] = [j.scores.s3 > 0 for j in read]
            measures["s1", by] = [j.scores.s1 for j in read]
            measures["s2", by] = [j.scores.s2 for j in read]
            measures["plain_violation_rate", by] = ["violated" in j.reasons for j in read]
        refuses = refusals(self.shows["refusal"])
        measures["refused", "counted"] = [bool(refuses.match(a.text.strip())) for a in free]
        measures["finished", "counted"] = [a.finished for a in free]
        measures["tokens", "counted"] = [len(a.ids) for a in free]
        rows, items = np.arange(len(everything)), []
        for (metric, against), values in measures.items():
            at = rows[len(own) :] if against == "counted" else rows[: len(own)]
            items.append(((system, str(seed or ""), metric, "all", against), at, values))
        samples = counting.numbered([self.data.condition_of.get(i.id, i.id) for i in everything])
        counted = counting.rows_of(Estimates.of_items(samples, results.KEY, items))
        shown = [" ".join(a.text.split()) for a in free[: self.shows["beside"]]]
        return counted, facts | {"answers": shown}


def plot_second_reader(df: pd.DataFrame) -> Figure:
    """``figures.plot_gold_over_kl`` where a second reward model stands in for gold."""
    names = {"proxy": "first reader, the reward", "judged": "second reader, a stand-in for gold"}
    return figures.plot_gold_over_kl(df, names)


def half(data: RunData, name: str) -> RunData:
    """The data with one half of the questions of train and calibration, all of the other splits."""

    def belongs(row) -> bool:
        first = int(short_hash("half", row.condition), 16) % 2 == 0
        return row.split not in ("train", "calibration") or first == (name == "first")

    return replace(data, splits=[row for row in data.splits if belongs(row)])


def refusals(beginnings: Sequence[str]) -> re.Pattern:
    return re.compile("|".join(beginnings), re.IGNORECASE)


def _with_rubric(data: RunData, split: str) -> list[Instruction]:
    """Questions of a split whose statements are criteria of any answer."""
    return [i for i in data.instructions_in(split) if i.source in RUBRICS]


def _drawn(rows: Sequence, name: str, most: int) -> list:
    """The first rows in the order of a hash of their ids."""
    return sorted(rows, key=lambda row: short_hash(name, row.id))[:most]
