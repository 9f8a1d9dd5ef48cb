"""The study of a policy on real text: aligned by one reader of half of the labels, read by another.

Nobody can judge a policy's new answers here. So the labels are cut in two by question: the *first
reader* is the reward, the *second reader* was trained on the other half and stands in for gold,
which it is not: the two share their base and what a base of that size cannot read. Whether the
second one reads at all is tested first, on pairs whose shorter answer is right (the *gate*).
``kinds/real_policy.yaml`` fixes sizes, settings and the gate.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from promedical_utils.core.estimates import Estimates, suffixed
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Instruction
from promedical_utils.core.run_data import RunData, base_path
from promedical_utils.core.workspace import short_hash, write_frame, write_rows
from promedical_utils.data.sources import real_sets, schemas
from promedical_utils.pipeline import policies, reward_models
from promedical_utils.policy.veto_reward import RubricReward
from promedical_utils.report import figures as drawing
from promedical_utils.reward_model.variants import find
from promedical_utils.rubric.preferences import groups_of
from promedical_utils.studies import learning_curve, results
from promedical_utils.studies.study import Study

READERS = ("first", "second")
RUBRICS = ("kqa_contrast", "medlfqa_contrast")  # whose statements are criteria of a new answer, too
MEDQUAD = "questions of MedQuAD (Ben Abacha and Demner-Fushman 2019, CC BY 4.0)"
REPORTED = ("steps", "seconds", "hacking", "throughput", "unscored")


class RealPolicy(Study):
    kind, title, data = "real_policy", "A policy on real text", "real"

    def train(self, profile, folder, data, out) -> dict:
        """Also into ``out``: sums.parquet, curves.parquet and answers.csv, which has questions of
        MedQuAD and answers of policies, and no other text."""
        from promedical_utils.policy import sft, training  # late: they load torch

        p = Profile.model_validate(profile.model_dump(mode="json") | self.shows["settings"])
        place, base, readers = folder / "policy_study", base_path(p, folder), {}
        for name in READERS:
            print(f"{name} reader ...", flush=True)
            readers[name] = _reader(p, folder, half(data, name), place / name)
        rows = [self.gate_rows(data, readers["second"])]
        print("supervised fine-tuning ...", flush=True)
        written = real_sets.written_answers(p.seed)[: self.shows["written"]]
        taught = sft.train(base, written, p, place / "sft")
        asked = [i for i in half(data, "first").instructions_in("train") if i.source in RUBRICS]
        held, trained, curves = self.held_out(data, readers["second"]), [], []
        read = [policies.reward_fingerprint(place / name) for name in READERS]
        for seed in self.plan["veto"]:
            print(f"GRPO, seed {seed} ...", flush=True)
            own, at = p.model_copy(update={"seed": seed}), place / f"veto-{seed}"
            job = training.Job(at, own, data.rubrics, asked, held, short_hash(*read, taught["of"]))
            report = training.train(job, place / "sft", readers["first"])
            trained.append({"seed": seed} | {key: report[key] for key in REPORTED})
            curves.append(pd.read_csv(at / "curve.csv").assign(seed=seed))
        write_rows(out / "curves.parquet", pd.concat(curves, ignore_index=True))
        systems = {("base", ""): (base, None), ("sft", ""): (place / "sft", None)}
        for seed in self.plan["veto"]:
            systems["veto", str(seed)] = (place / "sft", place / f"veto-{seed}")
        rows.append(self.answered(p, data, systems, readers, out))
        results.write_sums(out, pd.concat(rows, ignore_index=True))
        halves = {name: len(half(data, name).ids("train")) for name in READERS}
        return {"sft": taught, "policies": trained, "train_questions": halves}

    def gate_rows(self, data: RunData, reader) -> pd.DataFrame:
        """Pairs of the bench that the second reader orders rightly, by source and part."""
        groups = groups_of(data, "judge", "bench")
        groups = [g for g in groups if g.instruction.source in self.shows["gate_sources"]]
        groups = learning_curve.sample(groups, self.shows["words"])
        scores = reader.score_groups(groups, shorten=True).assign(read="")
        return results.rows_of(learning_curve.counted("second reader", scores, groups, data))

    def held_out(self, data: RunData, reader):
        """What every evaluation on the way asks, and the second reader as its judge."""
        from promedical_utils.policy.generation import messages_of  # these load torch
        from promedical_utils.policy.model import HeldOut

        asked = {i.id: i for i in _with_rubric(data, "checkpoint", self.shows["held_out"])}
        reads = _reading(reader, data)

        def judged(pairs):
            items = [(i, messages_of(asked[i]), text, True) for i, text in pairs]
            return [read.verdicts for read in reads(items)]

        return HeldOut([*asked.values()], judged, None, data.condition_of)

    def answered(self, p: Profile, data: RunData, systems, readers, out) -> pd.DataFrame:
        """Rows of what every system answers to questions with a rubric and to harmless ones."""
        from promedical_utils.policy import model as policy  # these load torch
        from promedical_utils.policy.generation import messages_of
        from promedical_utils.reward_model import hub

        with_rubric = _with_rubric(data, "bench", self.shows["asked"])
        harmless = _harmless(p.seed, self.shows["harmless"])
        asked, items = [*with_rubric, *harmless], []
        conditions = [data.condition_of.get(i.id, i.id) for i in asked]
        samples = pd.DataFrame({"condition": pd.factorize(np.array(conditions))[0].astype(str)})
        samples.insert(0, "instruction_id", [str(n) for n in range(len(asked))])
        beside = {"question": [i.messages[0].content for i in harmless[: self.shows["beside"]]]}
        refuses = refusals(self.shows["refusal"])
        for (system, seed), (base, adapter) in systems.items():
            tokenizer = hub.tokenizer_of(base)
            model = (
                policy.load_policy(adapter, base, p) if adapter else policy.load_base(base, p)[0]
            )
            answers = policy.answers_of(model, tokenizer, asked, p, p.seed)
            del model  # before the next one is loaded
            own, free = answers[: len(with_rubric)], answers[len(with_rubric) :]
            rows = np.arange(len(asked))
            for name, reader in readers.items():
                pairs = list(zip(with_rubric, own, strict=True))
                read = _reading(reader, data)(
                    [(i.id, messages_of(i), a.text, a.finished) for i, a in pairs]
                )
                values = {"violation_rate": [j.scores.s3 > 0 for j in read]}
                values |= {key: [getattr(j.scores, key) for j in read] for key in ("s1", "s2")}
                values["plain_violation_rate"] = ["violated" in j.reasons for j in read]
                items += [
                    ((system, seed, metric, "all", f"{name} reader"), rows[: len(own)], of)
                    for metric, of in values.items()
                ]
            counted = {"refused": [bool(refuses.match(a.text.strip())) for a in free]}
            counted |= {"finished": [a.finished for a in free]}
            counted |= {"tokens": [len(a.ids) for a in free]}
            items += [
                ((system, seed, metric, "all", "counted"), rows[len(own) :], of)
                for metric, of in counted.items()
            ]
            if seed in ("", str(self.plan["veto"][0])):
                beside[system] = [" ".join(a.text.split()) for a in free[: self.shows["beside"]]]
        write_frame(out / "answers.csv", pd.DataFrame(beside))
        return results.rows_of(Estimates.of_items(samples, results.KEY, items))

    def show(self, rows, manifest, out) -> None:
        cells, more = results.Cells(rows), ("curves.parquet", "answers.csv")
        gate = self.gate(cells)
        self.save_table(gate, out, "gate", "Does the second reader read?", manifest)
        measured = bool(gate.passed[gate.counts].all())
        self.save_table(self.by_measure(cells), out, "table", self.title, manifest)
        curves = pd.read_parquet(out / more[0])
        runs = "seed " + curves.seed.astype(str) + ("" if measured else ": no measurement")
        self.save_figure(
            drawing.plot_second_reader, curves.assign(run=runs), out, "curve", manifest, more[0]
        )
        beside = pd.read_csv(out / more[1], keep_default_na=False)
        title = f"Answers side by side to {len(beside)} {MEDQUAD}"
        self.save_table(beside, out, "beside", title, manifest)

    def gate(self, cells: results.Cells) -> pd.DataFrame:
        """A row a source: pairs whose shorter answer is right, the share ordered rightly (%),
        whether its whole interval lies above a half, and whether the gate counts it."""
        rows = []
        for source in self.shows["gate_sources"]:
            key = ("second reader", "pairwise", f"{source}: shorter", real_sets.LABELS[source])
            row = {
                "source": source,
                "labels": key[3],
                "pairs": cells.means.get(key, {}).get("n", 0),
            }
            row |= suffixed("ordered", cells.ends(key), 100, 1)
            counts = source in self.shows["gate"]
            rows.append(row | {"counts": counts, "passed": row["ordered_low"] > 50})
        return pd.DataFrame(rows)

    def by_measure(self, cells: results.Cells) -> pd.DataFrame:
        """A row a measure: of each system the mean over its seeds, and of GRPO less what it
        started from; in percent, or tokens."""
        frame = []
        for measure, (metric, against) in self.shows["columns"].items():
            cell, first = (metric, "all"), cells.means.get(("base", metric, "all", against), {})
            row = {"measure": measure, "by": against, "answers": first.get("n", 0)}
            for system in self.shows["labels"]:
                row |= cells.wide(system, {system: cell}, against, digits=1)
            less = {"veto_less_sft": (*cell, results.LESS, "sft")}
            frame.append(row | cells.wide("veto", less, against, digits=1))
        return pd.DataFrame(frame)


def half(data: RunData, name: str) -> RunData:
    """The data with one half of the questions of train and calibration, all of the other splits."""

    def belongs(row) -> bool:
        first = int(short_hash("half", row.condition), 16) % 2 == 0
        return row.split not in ("train", "calibration") or first == (name == "first")

    return replace(data, splits=[row for row in data.splits if belongs(row)])


def refusals(beginnings: Sequence[str]) -> re.Pattern:
    return re.compile("|".join(beginnings), re.IGNORECASE)


def _reader(profile: Profile, folder: Path, data: RunData, place: Path):
    """A criterion reward model of these data's labels, calibrated on them."""
    from promedical_utils.reward_model import model as reward_model  # late: loads torch

    recipe = find("criterion")
    reward_models.train_reward_model(profile, folder, data, recipe, place)
    rm = reward_model.load(place)
    if not (place / "calibration.json").exists():
        held = groups_of(data, "judge", "calibration")
        reward_models.calibrate(profile, data, recipe, place, rm.score_groups(held))
        rm = reward_model.load(place)
    return rm.merged() if rm.model.device.type == "cpu" else rm


def _reading(reader, data: RunData):
    """(instruction id, messages, text, finished) items -> ``veto_reward.Judged``, by a reader."""
    return RubricReward(reader, None, data.rubrics).read


def _with_rubric(data: RunData, split: str, most: int) -> list[Instruction]:
    """Questions of a split whose statements are criteria of any answer, in the order of a hash."""
    asked = [i for i in data.instructions_in(split) if i.source in RUBRICS]
    return sorted(asked, key=lambda i: short_hash("asked", i.id))[:most]


def _harmless(seed: int, most: int) -> list[Instruction]:
    """Questions of MedQuAD that are not learned from, in the order of a hash."""
    texts = [row for row, split in real_sets.medquad_texts(seed)[0] if split == "bench"]
    texts = sorted(texts, key=lambda row: short_hash("harmless", row.id))[:most]
    return [
        schemas.question(f"medquad-{row.id}", "medquad", row.question, "patient_question")
        for row in texts
    ]
