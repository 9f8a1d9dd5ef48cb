"""The clinic's words, sentence forms, criteria, messages and habits, read from its data files."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from promedical_utils.core.workspace import read_yaml

# Whose forms a text has, and no form stands in two: those of training, to which calibration and
# checkpoint belong, those of the bench and those of the external clinic
WORDINGS = ("train", "bench", "external")


@cache
def read(name: str) -> dict:
    return read_yaml(Path(__file__).parent / f"data/{name}.yaml")


# slots of an answer that set a fact of the leaflet against its opposite: names of both, their type
PAIRED: dict[str, list[str]] = read("vocabulary")["pairs"]
EXTRAS = tuple(slot for slot in PAIRED if slot != "danger")  # of which not every leaflet speaks


def values(kind: str) -> tuple[str, ...]:
    """All values of a type, as text: ``drug``, ``units``, ``days``, ``sign``, ``problem``, ..."""
    return tuple(map(str, read("vocabulary")["types"][kind]))


def of_kind(spec: Mapping, wording: str) -> list[str]:
    """Forms of a criterion in one wording, stated and unstated ones."""
    return [form for own in spec[wording].values() for form in own]
