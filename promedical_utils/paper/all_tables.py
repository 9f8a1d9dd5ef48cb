"""Every table and figure of a run on one page, beside the folders that hold them.

all_tables.yaml has its sections: what to look for, which tables, each with the columns to read
(none: all), which figures.
"""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

import pandas as pd

from promedical_utils.core.workspace import read_yaml, write_text
from promedical_utils.report import tables

HEAD, SECTIONS = read_yaml(Path(__file__).with_suffix(".yaml")).values()
NOT_BUILT = "`{}`: not built in this profile"


def page(folder: Path, name: str, columns: Sequence[str] = ()) -> str:
    """A table of ``folder`` in Markdown: its columns (``columns``: those alone, as the csv names
    them, ``*`` for any ending) that are not empty, a value with its interval in one cell. Where
    there is no such table, a line that says so."""
    path = Path(folder) / "tables" / f"{name}.csv"
    if not path.exists():
        return NOT_BUILT.format(name)
    text = pd.read_csv(path, dtype=str, keep_default_na=False)
    if columns:
        stems = {column: column.removesuffix("_low").removesuffix("_high") for column in text}
        text = text[[c for c, stem in stems.items() if any(fnmatch(stem, x) for x in columns)]]
        text = text[text.iloc[:, 1:].ne("").any(axis=1)]
    return tables.markdown(tables.folded(text.loc[:, text.ne("").any()]))


def save(folder: Path) -> Path:
    """Write ``folder``/all_tables.md from the tables and figures that ``folder`` has."""
    parts = [HEAD]
    for section in SECTIONS:
        notes = "\n".join(f"- {note}" for note in section["notes"])
        parts.append(f"## {section['title']}\n\n{notes}\n")
        for name, columns in section.get("tables", {}).items():
            built = (Path(folder) / f"tables/{name}.csv").exists()
            link = f"[`{name}`](tables/{name}.csv)\n\n" if built else ""
            parts.append(f"{link}{page(folder, name, columns)}\n")
        for name in section.get("figures", ()):
            drawn = (Path(folder) / f"figures/{name}.csv").exists()
            picture = f"![{name}](figures/{name}.png)" if drawn else NOT_BUILT.format(name)
            parts.append(f"{picture}\n")
    return write_text(Path(folder) / "all_tables.md", "\n".join(parts))
