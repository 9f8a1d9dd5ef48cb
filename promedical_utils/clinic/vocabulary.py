"""The clinic's words, sentence forms, criteria, messages and habits, read from its data files."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

from promedical_utils.core.workspace import read_yaml

# No form stands in two: what is trained, calibrated and chosen on; the bench; the external clinic
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


def wording_of(split: str) -> str:
    """Whose forms the texts of a split have: of ``WORDINGS``."""
    return split if split in WORDINGS else "train"


def of_kind(spec: Mapping, wording: str, kind: str = "") -> list[str]:
    """Forms of a criterion in one wording: ``stated``, ``unstated``, or all of them."""
    forms = spec[wording]
    return forms.get(kind, []) if kind else [form for own in forms.values() for form in own]
