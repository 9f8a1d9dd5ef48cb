"""``python -m promedical_utils.paper.trace <table> <row> <column>``: from a cell down to what it is
made of.

The chain: cell, number, items and their rows with predictions and verdicts, texts, model, data,
profile, seed, packages, commit. The number is made again from the items that its estimate counts
(``behind``), or else by the table's own function from the run's files, and compared with the cell.
"""

import argparse
import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from promedical_utils.core import profiles, provenance
from promedical_utils.core.workspace import KitError, need, project_root, read_json, sha256, shown
from promedical_utils.paper import registry, rerun
from promedical_utils.paper.behind import Behind
from promedical_utils.report import tables

CLAIMS = "claims"
SHORT, WIDTH = 160, 110  # characters of an answer, of a line
MOST = 6  # rows of one file that are printed of an item
ENDS = {"": "difference", "_low": "low", "_high": "high"}
ANSWERS = ("candidate_id", "chosen_id", "rejected_id", "a_id", "b_id")
# Of samples: what was shown to the physicians in which order
QUIET = ("order_1", "order_2", "hits", "counts", "part", "category", "kind", "seen")


@dataclass(frozen=True)
class Source:
    """A run's folder, or its published copy, and what is below it."""

    folder: Path

    @property
    def paper(self) -> Path:
        own = self.folder / "paper"
        return own if own.exists() else self.folder

    @cached_property
    def manifest(self) -> dict:
        return read_json(self.folder / "manifest.json", "00_start_here")

    @cached_property
    def run(self) -> registry.Run:
        """With the run's profile; settings that this kit no longer knows are passed over."""
        settings = dict(self.manifest["profile"])
        name, known = settings.pop("name"), profiles.Profile.model_fields
        settings = {key: value for key, value in settings.items() if key in known}
        return registry.Run(profiles.load(name, **settings), self.folder)

    def path(self, file: str) -> Path:
        """Of a file of the run, of a study or of paper_values."""
        outside = file.startswith(("studies/", "paper_values/"))
        return (project_root() / "papers_figures" if outside else self.folder) / file

    def table(self, file: str) -> pd.DataFrame | None:
        """The rows of a file; None where it is not there."""
        return registry.read_table(self.path(file))


# ---------------------------------------------------------------- finding the cell


def find(source: Source, table: str, row: str, column: str) -> tuple[dict, str]:
    """(the row as text, the column's full name) of a cell; KitError that lists what there is."""
    path = source.paper / f"tables/{table}.csv"
    if not path.exists():
        known = sorted(path.stem for path in source.paper.glob("tables/*.csv"))
        names = ", ".join([*known, CLAIMS])
        raise KitError(f"no table {table!r} in {shown(source.paper)}; there are: {names}")
    frame = rerun.read(path)
    entry = registry.TABLES.get(table)
    key = [c for c in entry.key if c in frame] if entry else rerun.key_of(frame)
    names = rerun.named(frame, key)
    number = place_of(row, list(names), f"row of {table}")
    columns = [c for c in frame if c not in key]
    column = columns[place_of(column, columns, f"column of {table}")]
    return frame.iloc[number].to_dict() | {"": names.iloc[number]}, column


def place_of(name: str, names: list[str], what: str) -> int:
    """Place of ``name``, else of the only one of ``names`` that has all its parts (" / ")."""
    if name in names:
        return names.index(name)
    parts = {part.strip().lower() for part in name.split(" / ")}
    having = [n for n, full in enumerate(names) if all(part in full.lower() for part in parts)]
    exact = [n for n in having if parts <= {part.lower() for part in names[n].split(" / ")}]
    own = [n for n in having if names[n].removeprefix("run_") == name]
    for fewer in (exact, own):
        having = fewer if len(fewer) == 1 else having
    if len(having) == 1:
        return having[0]
    listed = [names[n] for n in having] or names
    more = f"; and {len(listed) - 40} more" if len(listed) > 40 else ""
    several = "several" if having else "no"
    raise KitError(f"{several} {what} {name!r}: there are {'; '.join(listed[:40])}{more}")


# ---------------------------------------------------------------- the chain


def trace(folder: Path, table: str, row: str, column: str, examples: int = 3) -> str:
    """The chain of a cell as text; ``folder``: a run, or its published copy.

    KitError for a table, row or column that is not there.
    """
    source = Source(Path(folder))
    if table == CLAIMS:
        return "\n".join([*_claim(source, row, column), *_run(source)])
    values, column = find(source, table, row, column)
    facts = _json(source.paper / f"tables/{table}.json")
    lines = [f"{table} | {values['']} | {column} = {values[column] or '(empty)'}"]
    lines.append(_line("table", f"{facts.get('title', table)}. {facts.get('note', '')}"))
    if not values[column]:
        status = f" (status: {values['status']})" if values.get("status") else ""
        lines.append(_line("number", f"none: this row has no such value{status}"))
    elif table not in registry.TABLES:
        lines.append(_line("number", "of a table that this kit does not make"))
    else:
        lines += [_line("made by", facts[name]) for name in ("function",) if name in facts]
        chain = _reported if column.startswith("reported") else _measured
        lines += chain(source, table, values, column, facts, examples)
    return "\n".join([*lines, *_run(source)])


def _line(name: str, text: str) -> str:
    return f"{name:<9} {text}"


def _json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _again(text: str, cell: str) -> str:
    return "equal to the cell" if text == cell else f"NOT EQUAL to the cell, which has {cell}"


def _reported(source, table, values, column, facts, examples) -> Iterator[str]:
    """The rows of paper_values that a reported cell repeats, with their mark."""
    names = {values.get(name) for name in registry.TABLES[table].key}
    stems = registry.TABLES[table].reported
    for stem in stems:
        frame = tables.reported(stem)
        for row in frame[frame[frame.columns[0]].isin(names)].to_dict("records"):
            what = "P paper, N notes that agree, n one set of notes"
            yield _line("number", f"reported in the paper, mark {row['mark']} ({what}): {stem}.csv")
            yield from _wrapped(f"{k} {_short(v)}" for k, v in row.items() if not _nothing(v))
    yield from _made_again(source, table, values, column)
    yield from _files(source, [f"paper_values/{stem}.csv" for stem in stems], facts)


def _measured(source, table, values, column, facts, examples) -> Iterator[str]:
    """A cell's estimate, its items and their rows; without an estimate the files it is made of."""
    entry = registry.TABLES[table]
    end = next((e for e in ("_low", "_high") if rerun.is_end(values, column)), "")
    end = column[column.rindex("_") :] if end else ""
    base = column.removeprefix("run_").removesuffix(end)
    behind = Behind("made from the sources below")
    if entry.behind and column.startswith("run"):
        behind = entry.behind(source.run, values, base)
    yield _line("number", behind.what)
    if behind.estimates is None:
        yield from _made_again(source, table, values, column)
    else:
        estimate = behind.estimates.difference(behind.terms, **source.run.settings)
        text = tables.plain(round(behind.unit * estimate[ENDS[end]], 2) + 0.0)
        ratio = "" if end else f"{_ratio(behind)} -> "
        yield _line("", f"made again from its items: {ratio}{text}: {_again(text, values[column])}")
    made_of = [*facts.get("sources", {}), *(f"studies/{f}" for f in facts.get("studies", {}))]
    yield from _files(source, made_of, facts)
    yield from _items(source, behind, examples)
    yield from _models(source, behind.models)


def _made_again(source: Source, table: str, values: Mapping, column: str) -> Iterator[str]:
    """The cell by the table's own function, from the run's files as they are now."""
    entry = registry.TABLES[table]
    frame = entry.build(source.run).map(tables.plain)
    same = (frame[list(entry.key)] == [values[name] for name in entry.key]).all(axis=1)
    text = frame[column][same].iloc[0] if same.any() and column in frame else "no such row"
    name = entry.function.__name__
    yield _line("", f"made again by {name}: {text}: {_again(text, values[column])}")


def _files(source: Source, files: Iterable[str], facts: Mapping) -> Iterator[str]:
    """The files of a cell, and whether they are the ones that the table was built from."""
    recorded = {}
    for part in ("sources", "reported", "studies"):
        recorded |= facts.get(part, {})
    for file in files:
        path = source.path(file)
        if not path.exists():
            yield _line("file", f"{file}: not here")
            continue
        digest = sha256(path)
        before = recorded.get(file, recorded.get(file.split("/", 1)[-1]))
        other = before not in (None, digest)
        note = " - NOT the file that the table was built from" if other else ""
        yield _line("file", f"{file}, sha256 {digest[:16]}{note}")


# ---------------------------------------------------------------- items and their rows


def _ratio(behind: Behind) -> str:
    """``201 of 230`` of each term of the estimate, with its name where there are several."""
    parts = []
    for key in behind.terms:
        items = behind.estimates.items(key)
        name = f"{_named(behind, key)}: " if len(behind.terms) > 1 else ""
        parts.append(f"{name}{items.hits.sum():g} of {items.counts.sum():g}")
    return "; ".join(parts)


def _named(behind: Behind, key: tuple) -> str:
    """What of a key tells it from the estimate's other terms."""
    varying = [len(set(parts)) > 1 for parts in zip(*behind.terms, strict=True)]
    return ", ".join(str(part) for part, varies in zip(key, varying, strict=True) if varies)


def _items(source: Source, behind: Behind, examples: int) -> Iterator[str]:
    """The first items of an estimate with their rows; without an estimate the first rows alone."""
    frames = {file: source.table(file) for file in dict.fromkeys(behind.files)}
    files = {f: _chosen(frame, behind.where) for f, frame in frames.items() if frame is not None}
    if not files:
        return
    answers = any(name in frame for frame in files.values() for name in ANSWERS)
    texts, where = _texts(source) if answers else ({}, "")
    if behind.estimates is None:
        yield _line("rows", "the first of each file:")
        for file, frame in files.items():
            yield from _rows(file, frame, behind, texts, examples)
    else:
        keys = list(behind.terms)
        items = [behind.estimates.items(key).assign(part=_named(behind, key)) for key in keys]
        samples = pd.concat(items).sort_index(kind="stable").groupby("instruction_id", sort=False)
        counted = f"{sum(part.counts.sum() for part in items):,g} in {len(samples):,} instructions"
        yield _line("items", f"{counted}; the first {min(examples, len(samples))} of these:")
        for number, (name, parts) in enumerate(samples, 1):
            if number > examples:
                break
            ratios = [f"{p.part} {p.hits:g} of {p.counts:g}".strip() for p in parts.itertuples()]
            facts = parts.iloc[0].drop([*QUIET], errors="ignore")
            facts = [f"{k} {_short(v)}" for k, v in facts.items() if not _nothing(v)]
            yield from _wrapped(["; ".join(ratios), *facts], f"  {number}. ")
            yield from _item_rows(name, files, behind, texts)
    if where:
        yield _line("texts", where)


def _item_rows(instruction: str, files: Mapping, behind: Behind, texts) -> Iterator[str]:
    """Of the first file the rows of an instruction, of the others those of the same criteria and
    answers."""
    named: dict[str, set] = {}
    for file, frame in files.items():
        if "instruction_id" in frame:
            own = _chosen(frame[frame.instruction_id == instruction], named)
            yield from _rows(file, own, behind, texts, MOST)
            if not named and "criterion_id" in own:
                named["criterion_id"] = {*own.criterion_id, ""}
                answers = [set(own[name]) for name in ANSWERS if name in own]
                named |= {"candidate_id": set().union(*answers)} if answers else {}


def _chosen(frame: pd.DataFrame, where: Mapping) -> pd.DataFrame:
    """The rows that ``where`` names, by those of its columns that the frame has."""
    for name, value in where.items():
        if name in frame:
            frame = frame[frame[name].isin(value if isinstance(value, set) else {value})]
    return frame


def _rows(file: str, frame: pd.DataFrame, behind: Behind, texts, most: int) -> Iterator[str]:
    """Rows of a file as lines, with the text of each answer where it is first named."""
    known = {name for name, value in behind.where.items() if not isinstance(value, set)}
    hidden = {"instruction_id", "condition", "specialty", *known, *QUIET}
    for row in frame.head(most).to_dict("records"):
        facts = [f"{k} {_short(v)}" for k, v in row.items() if k not in hidden and not _nothing(v)]
        yield from _wrapped(facts, f"     {file}: ")
        for name in ANSWERS:
            if text := texts.pop(row.get(name), ""):
                yield f"       text of {row[name]}: {_cut(text)}"
    if len(frame) > most:
        yield f"     {file}: and {len(frame) - most:,} more rows"


def _wrapped(facts: Iterable[str], first: str = "  ") -> list[str]:
    indent = " " * (len(first) - len(first.lstrip()) + 2)
    text = ", ".join(facts)
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=indent)


def _nothing(value) -> bool:
    return value is None or (not isinstance(value, str) and pd.isna(value)) or value == ""


def _short(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _cut(str(value))


def _cut(text: str) -> str:
    return textwrap.shorten(" ".join(text.split()), SHORT, placeholder=" ...")


def _texts(source: Source) -> tuple[dict[str, str], str]:
    """Texts of the answers, and where they are: in the run itself, or in the run that was
    published.

    A published copy has no texts of the bench; the run of that profile is taken if it is here and
    has the very rows.
    """
    file, name = "data/candidates.parquet", source.manifest["profile"]["name"]
    digest = provenance.of_run(source.folder)["data"].get("candidates.parquet")
    path = source.folder / file
    if not path.exists():
        path = project_root() / f"runs/{name}" / file
        if not (digest and path.exists() and provenance.content(path) == digest):
            known = f"content sha256 {digest}" if digest else "whose hash this run did not record"
            command = f"make reproduce PROFILE={name} writes it"
            return {}, f"not in this copy: {shown(path)} has them, {known} ({command})"
    frame = pd.read_parquet(path, columns=["id", "text"])
    texts = dict(zip(frame.id, frame.text, strict=True))
    return texts, f"{shown(path)}, content sha256 {digest or 'not recorded'}"


# ---------------------------------------------------------------- models and the run


def _models(source: Source, models: Sequence[str]) -> Iterator[str]:
    known = provenance.of_run(source.folder)["models"]
    for model in models:
        if model == "base":
            report = _json(source.folder / "base_report.json")
            yield _line("model", f"base: {report.get('base', 'not recorded')}")
        elif model not in known:
            yield _line("model", f"{model.removeprefix('reward/')}: no trained model")
        else:
            report, card = known[model], source.folder / model / "README.md"
            facts = [f"fingerprint {report.get('settings', 'not recorded')}"]
            facts.append(f"seed {report.get('seed', 'see the card')}")
            if base := report.get("base"):
                facts.append(f"base {base.get('hub') or base.get('sha256', '')[:16]}")
            of_card = f"; card {shown(card)}" if card.exists() else ""
            yield _line("model", f"{model}: {', '.join(facts)}{of_card}")


def _run(source: Source) -> Iterator[str]:
    """Data, profile, seed, packages and commit of the run."""
    manifest, facts = source.manifest, provenance.of_run(source.folder)
    profile, kit = manifest["profile"], manifest.get("kit", {})
    data = ", ".join(f"{name} {digest[:16]}" for name, digest in facts["data"].items())
    yield _line("data", data or "hashes of data/*.parquet: not recorded by this run")
    settings = f"profile {profile['name']}, seed {profile['seed']}, data {profile['data']}"
    draws = f"{profile['bootstrap']} draws; manifest sha256 {facts['manifest'][:16]}"
    yield _line("run", f"{shown(source.folder)}: {settings}, {draws}")
    packages = [f"{name} {version}" for name, version in manifest["packages"].items()]
    yield _line("packages", ", ".join([f"python {manifest['python']}", *packages]))
    if not kit:
        yield _line("commit", "not recorded by this run")
        return
    yield _line("commit", f"{kit['commit']}, package sha256 {kit['content'][:16]}")
    for name, row in _json(source.folder / "timings.json").items():
        if row.get("content", kit["content"]) != kit["content"]:
            yield _line("", f"{name} ran with other code, package sha256 {row['content'][:16]}")


def _claim(source: Source, row: str, column: str) -> Iterator[str]:
    """A claim, or one of its checks: how it was decided, and of which files."""
    path = need(source.paper / "claims.json", "07_paper_tables")
    checks = {}
    for claim in json.loads(path.read_text(encoding="utf-8"))["claims"]:
        checks[claim["id"]] = {name: value for name, value in claim.items() if name != "checks"}
        for check in claim["checks"]:
            name = f"{claim['id']} / {check.get('check', check['what'])}"
            checks[name] = {"claim": claim["claim"], **check}
    names = list(checks)
    name = names[place_of(row, names, "claim or check")]
    check = checks[name]
    wanted = list(check)[place_of(column, list(check), f"column of {name}")]
    yield f"{CLAIMS} | {name} | {wanted} = {check[wanted]}"
    for fact, value in check.items():
        if fact not in (wanted, "files") and value not in (None, "", []):
            yield _line(fact, str(value))
    if check.get("low") is not None:
        rule = f"the low end, {check['low']}, is above {check['above']}"
        yield _line("rule", f"same direction where {rule}")
    root = project_root()
    for file in check.get("files", ()):
        places = (source.folder / file, root / "papers_figures" / file, root / file)
        here = next((path for path in places if path.exists()), None)
        yield _line("file", f"{file}, sha256 {sha256(here)[:16]}" if here else f"{file}: not here")


def main(arguments=None) -> int:
    parser = argparse.ArgumentParser(
        prog="promedical_utils.paper.trace", description=__doc__.splitlines()[0]
    )
    parser.add_argument("table", help="a table, or claims")
    parser.add_argument(
        "row", help="its name, or a part of it that no other row has; parts by ' / '"
    )
    parser.add_argument("column", help="its name, with or without run_")
    parser.add_argument("--profile", default="cpu", help="the committed reference of this profile")
    parser.add_argument(
        "--run", default="", help="folder of a run, instead of papers_figures/<profile>"
    )
    parser.add_argument("--rows", type=int, default=3, help="items to print")
    given = parser.parse_args(arguments)
    folder = project_root() / (given.run or f"papers_figures/{given.profile}")
    try:
        need(folder / "manifest.json", "00_start_here")
        print(trace(folder, given.table, given.row, given.column, given.rows))
    except KitError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
