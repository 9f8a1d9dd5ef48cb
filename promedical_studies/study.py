"""A study: systems trained on the same data in the same steps, on several seeds, and compared.

A plan (``studies.catalog``) says which; a kind (``kinds/*.yaml``) says what is counted, what it is
held against, and what its tables and figures show. Resumable: what is trained and has predicted is
not touched again, and a training that was stopped goes on from its checkpoint. A folder of a study
holds results.csv (``studies.results``), what that is counted from, tables, figures and, written
last, manifest.json.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pandas as pd

from promedical_studies import counting
from promedical_utils.core import machine, plotting, profiles, provenance, run_data, workspace
from promedical_utils.core.estimates import Estimates
from promedical_utils.core.profiles import Profile
from promedical_utils.report import tables
from promedical_utils.studies import results
from promedical_utils.studies.catalog import kind_of


@dataclass(frozen=True)
class Study:
    """``plan``: system -> training seeds; ``frozen_on``: what its settings were chosen on.

    A kind has ``train(profile, folder, data, out)``, which writes what is counted to ``out`` and
    returns facts for the manifest; and ``show(rows, manifest, out)``, which makes tables and
    figures of the rows of results.csv.
    """

    plan: Mapping[str, list[int]]
    frozen_on: str = ""
    kind: ClassVar[str]
    title: ClassVar[str]
    data: ClassVar[str] = "clinic"

    @property
    def shows(self) -> dict:
        return kind_of(self.kind)

    def run(self, profile: Profile, folder: Path, out: Path) -> pd.DataFrame:
        """Train, count and draw; the rows of results.csv. ``folder`` holds the data and the base of
        notebooks 00 to 02. KitError for data of another kind, or an unknown system."""
        if profile.data != self.data:
            raise workspace.KitError(
                f"study of {self.title.lower()}: its data are {self.data}, those of profile "
                f"{profile.name} are {profile.data}"
            )
        for name in set(self.plan) - set(self.known()):
            choice = ", ".join(self.known())
            raise workspace.KitError(f"unknown system {name!r} of a study: choose one of {choice}")
        facts = self.train(profile, folder, run_data.RunData.load(folder), out)
        facts |= {"plan": dict(self.plan), "frozen_on": self.frozen_on}
        manifest = run_data.manifest(profile, folder) | facts
        rows = self.draw(manifest, out)
        workspace.write_json(out / "manifest.json", manifest)
        print(f"-> {workspace.shown(out)}")
        return rows

    def redraw(self, folder: Path) -> None:
        """Results, tables and figures of a published study again; nothing is trained."""
        self.draw(workspace.read_json(folder / "manifest.json", "of a study (make study)"), folder)

    def draw(self, manifest: Mapping, out: Path) -> pd.DataFrame:
        """Results, counted from what the study kept, and their show."""
        drawn = profiles.of_manifest(manifest)
        compared = self.shows["less"], self.shows.get("over", ())
        counting.write(out, counting.count(self.sums(out), *compared, drawn.bootstrap, drawn.seed))
        rows = results.read(out)  # as written, so that a redrawing is the same
        self.show(rows, manifest, out)
        return rows

    def known(self) -> Sequence[str]:
        """What a plan of this kind can name."""
        return tuple(self.shows["labels"])

    def sums(self, folder: Path) -> Estimates:
        """What the results are counted from."""
        return results.read_sums(folder)

    def named(self, folder: Path) -> pd.DataFrame:
        """Label and remark by system."""
        frame = pd.DataFrame({"label": self.shows["labels"]})
        return frame.assign(remark=pd.Series(self.shows.get("remarks", {}), dtype=str)).fillna("")

    def note(self, manifest: Mapping) -> str:
        """What a reader must know of its values, under every table and figure."""
        drawn = tables.note(profiles.of_manifest(manifest))
        return " ".join(filter(None, (drawn, self.shows.get("note"))))

    def save_table(self, frame, out: Path, name: str, title: str, manifest: Mapping) -> None:
        profile, facts = profiles.of_manifest(manifest), {"run": provenance.of_manifest(manifest)}
        sources = {f"{out.name}/results.csv": out / "results.csv"}
        tables.save(frame, out, name, title, sources, profile, self.note(manifest), facts)

    def save_figure(self, plot, frame, out: Path, name: str, manifest: Mapping, *more) -> None:
        """``more``: files of ``out`` that it is drawn from, beside results.csv."""
        sources = {f"{out.name}/{file}": out / file for file in ("results.csv", *more)}
        facts = {"run": provenance.of_manifest(manifest), "sources": tables.digests(sources)}
        plotting.save(plot, frame, out, name, self.note(manifest), facts)


def as_computed(profile: Profile) -> str:
    """All that a training hangs on but its data: settings, and what this machine computes in."""
    precision = machine.precision(profile.precision)
    return workspace.short_hash(profile.model_dump_json(exclude=profiles.UNREAD), precision)


def kept_part(out: Path, name: str, key: str, make: Callable) -> tuple[pd.DataFrame, dict]:
    """Rows of a part of a study and facts of its training, by ``make``; or as they are kept in
    ``out`` or were published under the same ``key``, so that a long study goes on over machines.
    Writes part-<name>.parquet and .json, the latter last."""
    stem = f"part-{name}"
    for place in (out, workspace.project_root() / "papers_figures/studies" / out.name):
        about = place / f"{stem}.json"
        if about.exists() and (facts := workspace.read_json(about, "of a study"))["of"] == key:
            rows = pd.read_parquet(place / f"{stem}.parquet")
            break
    else:
        code = {"kit": provenance.kit(), "processor": machine.processor()}
        rows, made = make()
        facts = {"of": key, **code, "training": made}
    workspace.write_rows(out / f"{stem}.parquet", rows)
    workspace.write_json(out / f"{stem}.json", facts)
    return rows, facts["training"]
