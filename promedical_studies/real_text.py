"""The study of real text: what the criterion's text is worth where people wrote and people judged.

Every value is of one source: a slice is ``source: part``, ``against`` whose labels these are.
``real_text.yaml`` fixes arms, tests, bounds and the smallest effects of interest.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from promedical_studies import counting
from promedical_studies.reward_models import RewardModels
from promedical_utils.core import profiles, statistics, verdicts
from promedical_utils.core.estimates import ENDS, Estimates, suffixed
from promedical_utils.core.profiles import Profile
from promedical_utils.core.run_data import RunData
from promedical_utils.core.workspace import short_hash, write_frame
from promedical_utils.data.sources import real_sets
from promedical_utils.evaluation import bench as benches
from promedical_utils.evaluation import external as outside
from promedical_utils.evaluation.bench import CELL, Bench
from promedical_utils.pipeline import bench, external
from promedical_utils.report import figures
from promedical_utils.studies import contrasts, results
from promedical_utils.studies.catalog import kind_of

CHECK = dict.fromkeys(("b", "metric_b", "slice_b", "equivalent_within")) | {"above": 0.0}
PHYSICIANS = [f"physician_{n}" for n in (1, 2, 3)]
OUTSIDE, RETRIEVED = "mediqa", "mediqa, retrieved"


class RealText(RewardModels):
    kind, title, data = "real_text", "Real text", "real"

    def train(self, profile, folder, data, out) -> dict:
        """Also into ``out``: sums.parquet, and part-<arm>-<seed> of each training, which a later
        run takes over. Samples are numbers in them: no text and no id leaves."""
        made, held = bench.labelled_bench(profile, data)
        made.save(folder / "bench")
        mediqa, retrieved = dict(outside.sets(profile, folder))[OUTSIDE], {}
        report: dict = {"sets": {OUTSIDE: {"answers_cut": {}}}, "retrieval": {}}
        longer, lengths = external.by_length(OUTSIDE, mediqa.questions), benches.length_scorer(held)
        numbers = {
            column: {name: str(n) for n, name in enumerate(sorted({*own, *longer[column]}))}
            for column, own in made.samples[["instruction_id", "condition"]].items()
        }

        def counted(frames: list[pd.DataFrame], name="", seed=0) -> tuple[pd.DataFrame, dict]:
            frames = [lengths, *frames] if name else frames  # of the controls it is one
            beyond, tests = [longer], self.shows["tests"]
            parts = {t["slice"].partition(":")[0] for t in tests if name in (t["a"], t.get("b"))}
            # it reads a million tokens, so only where it is asked, and by one training of an arm
            if parts & {OUTSIDE, RETRIEVED} and seed == self.plan[name][0]:
                own = mediqa if RETRIEVED in parts else replace(mediqa, documents={})
                place = folder / "reward" / f"{name}-{seed}"
                beyond += [_abroad(place, profile, {OUTSIDE: own}, retrieved, report)]
            inside = self.by_source(made, data, pd.concat(frames, ignore_index=True))
            rows = pd.concat([inside, _outside(pd.concat(beyond))], ignore_index=True)
            rows = rows.assign(**{c: rows[c].map(of) for c, of in numbers.items()})
            return (rows[rows.system != "length"], {"outside": report}) if name else (rows, {})

        asked = [repr((q.instruction.id, q.pairs)) for q in mediqa.questions]
        models = self.trainings(profile, folder, data, out, made, held, counted, asked)
        return {"models": models, "bench": made.report}

    def by_source(self, made: Bench, data: RunData, predicted: pd.DataFrame) -> pd.DataFrame:
        """``counting.rows_of`` each source alone, by its own labels."""
        tally = self.by_training(benches.tally(made, predicted, ["adjudicated"], by="category"))
        beside = _beside_physicians(made, data, predicted)
        beside = Estimates.of_items(made.samples, results.KEY, beside)
        rows = pd.concat([counting.rows_of(tally), counting.rows_of(beside)], ignore_index=True)
        source = rows.instruction_id.map(made.samples.set_index("instruction_id").category)
        rows["slice"] = source + ": " + rows["slice"]
        return rows.assign(against=source.map(real_sets.LABELS))

    def show(self, rows, manifest, out) -> None:
        cells, sums = results.Cells(rows), results.read_sums(out)
        self.save_table(self.by_system(cells), out, "by_source", self.title, manifest)
        frame = self.tested(sums, profiles.of_manifest(manifest))
        self.save_table(frame, out, "tests", f"{self.title}: the tests", manifest)
        self.save_figure(plot_real_text, frame, out, "tests", manifest)

    def by_system(self, cells: results.Cells) -> pd.DataFrame:
        """A row a source and system, in percent, with the items behind each value."""
        rows = []
        sources = {(key[3], key[2].partition(": ")[0]) for key in cells.means if len(key) == 4}
        for labels, source in sorted(sources):
            for system, name in self.shows["labels"].items():
                row = {"source": source, "labels": labels, "system": name}
                for column, (metric, part) in self.shows["columns"].items():
                    at = system, metric, f"{source}: {part}", labels
                    row |= suffixed(column, cells.ends(at), 100, 2)
                    row[f"n_{column}"] = cells.n(at)
                rows.append(row)
        frame = pd.DataFrame(rows)
        return frame[frame.filter(regex="^n_").sum(axis=1) > 0]

    def tested(self, sums: Estimates, profile: Profile) -> pd.DataFrame:
        """A row a test of the plan, in points: what was compared, its interval, Holm's p within its
        family, the smallest effect that would have been seen, the verdict, and of what was seen
        whether it survives Holm."""
        source = contrasts.Counted(sums, profile.bootstrap, profile.seed)
        labels, rows = {key[3]: key[4] for key in sums.keys}, []
        for test in self.shows["tests"]:
            check = CHECK | test | {"labels": labels.get(test["slice"], "")}
            check |= {key: check[key] or check[key[:-2]] for key in ("metric_b", "slice_b")}
            row = {"above": check["above"]} | test | {"labels": check["labels"]}
            try:
                found = contrasts.measured(check, source)
                found |= {"reason": "" if found["seeds"] > 1 else "one training"}
            except contrasts.Lacking as lacking:
                found = {"verdict": verdicts.UNTESTED, "reason": str(lacking)}
            rows.append(row | found)
        frame = pd.DataFrame(rows).reindex(columns=self.shows["tested"])
        adjusted = frame.groupby("family", sort=False).p.transform(statistics.holm)
        survives = frame.verdict.isin(verdicts.SEEN) & (adjusted < 0.05)
        return frame.assign(p_holm=adjusted.round(4), survives=survives)


def plot_real_text(df: pd.DataFrame) -> Figure:
    """How far each test of ``RealText.tested`` lies above its bound, coloured by its verdict."""
    look, tested = kind_of("real_text")["figure"], df[df.difference.notna()]
    less = tested.b.map(" - {}".format, na_action="ignore").fillna("")
    less = less.mask(tested.a == tested.b, " with what was retrieved - without")
    names = tested.id + "  " + tested.a + less + ", " + tested["slice"]
    ends = tested[["difference", "low", "high"]].sub(tested.above, axis=0)
    cells = ends.set_axis([*ENDS], axis=1).assign(row=names, group=tested.family)
    series = tested.verdict.map(figures.names_of(look))
    return figures.intervals(look, cells.assign(series=series))


def _abroad(place: Path, profile: Profile, sets, retrieved, report) -> pd.DataFrame:
    """Predictions of the model in ``place`` on the outside set, kept beside it."""
    from promedical_utils.reward_model import model as reward_model  # late: loads torch

    rm = reward_model.load(place)
    stored = place / f"outside-{short_hash(rm.report['settings'], profile.retrieved)}.parquet"
    if not stored.exists():
        parts = external.scored_by(place.name, rm, profile, sets, retrieved, report)
        write_frame(stored, pd.concat(parts, ignore_index=True))
    return pd.read_parquet(stored)


def _outside(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of the pairs of the outside set, all and those whose shorter answer is right."""
    longer = frame[frame.system == "length"].set_index(outside.PAIR).prefers
    shorter = frame.set_index(outside.PAIR).index.map(longer).to_numpy() * frame.label < 0
    scorer, against = frame.system.str.partition("-"), frame["set"].map(real_sets.LABELS)
    own = frame.assign(system=scorer[0], seed=scorer[2], metric="pairwise", against=against)
    part = frame["set"] + np.where(frame.retrieval, ", retrieved: ", ": ")
    both = [own.assign(slice=part + "all"), own.assign(slice=part + "shorter")[shorter]]
    return pd.concat([counting.rows_of(outside.estimates(f, results.KEY)) for f in both])


def _beside_physicians(made: Bench, data: RunData, predicted: pd.DataFrame) -> Iterator[tuple]:
    """Items of how often a scorer, and a physician, says of a statement what a physician says."""
    said = pd.DataFrame({name: data.verdicts_of(name) for name in PHYSICIANS}).dropna()
    said = said[(said != "unknown").all(axis=1)].eq("met").rename_axis(CELL)
    row = pd.Series(range(len(made.samples)), index=made.samples.instruction_id)
    cells = made.verdicts.set_index(CELL).instruction_id.map(row).reindex(said.index).dropna()
    said = said.loc[cells.index]
    places, key = np.tile(cells.astype(int), 3), ("beside_physicians", "all", "physicians")
    pairs = [said[a].eq(said[b]) for a, b in combinations(PHYSICIANS, 2)]
    yield ("physicians", "", *key), places, np.concatenate(pairs)
    for scorer, frame in predicted[predicted.criterion_id != ""].groupby("scorer", sort=False):
        met = frame.set_index(CELL).met.reindex(said.index).fillna(False).astype(bool)
        system, _, seed = scorer.partition("-")
        agreed = np.concatenate([said[name].eq(met) for name in PHYSICIANS])
        yield (system, seed, *key), places, agreed
