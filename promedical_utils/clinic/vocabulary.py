"""The clinic's words, sentence forms, criteria, messages and habits, read from its data files."""

from functools import cache
from pathlib import Path

from promedical_utils.core.workspace import read_yaml


@cache
def read(name: str) -> dict:
    return read_yaml(Path(__file__).parent / f"data/{name}.yaml")


# slots of an answer that set a fact of the leaflet against its opposite: names of both, their type
PAIRED: dict[str, list[str]] = read("vocabulary")["pairs"]
EXTRAS = tuple(slot for slot in PAIRED if slot != "danger")  # of which not every leaflet speaks


def values(kind: str) -> tuple[str, ...]:
    """All values of a type, as text: ``drug``, ``units``, ``days``, ``sign``, ``problem``, ..."""
    return tuple(map(str, read("vocabulary")["types"][kind]))


def single_tokens() -> list[str]:
    """Every value that a model must copy, and so must be one token."""
    words = read("vocabulary")
    listed = [str(v) for kind in words["types"].values() for v in kind]
    return list(dict.fromkeys([*listed, *words["specialties"]]))
