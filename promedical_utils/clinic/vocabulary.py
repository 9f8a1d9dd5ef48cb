"""The clinic's words, sentence forms, criteria, messages and habits, read from its data files."""

from functools import cache
from pathlib import Path

from promedical_utils.core.workspace import read_yaml

FOLDER = Path(__file__).parent / "data"

# slots of an answer that set a fact of the leaflet against its opposite: names of both, their type
PAIRED = {
    "danger": ("danger", "mild", "sign"),
    "effect": ("target", "target_not", "target"),
    "food": ("food", "food_not", "food"),
    "storage": ("place", "place_not", "place"),
    "bring": ("item", "item_not", "item"),
    "activity": ("allowed", "forbidden", "activity"),
}
EXTRAS = tuple(slot for slot in PAIRED if slot != "danger")  # of which not every leaflet speaks


@cache
def read(name: str) -> dict:
    return read_yaml(FOLDER / f"{name}.yaml")


def values(kind: str) -> tuple[str, ...]:
    """All values of a type, as text: ``drug``, ``units``, ``days``, ``sign``, ``problem``, ..."""
    words = read("vocabulary")
    return tuple(map(str, words["problems"] if kind == "problem" else words["types"][kind]))


def single_tokens() -> list[str]:
    """Every value that a model must copy, and so must be one token."""
    words = read("vocabulary")
    listed = [str(v) for kind in words["types"].values() for v in kind]
    return list(dict.fromkeys([*listed, *words["problems"], *words["specialties"]]))
