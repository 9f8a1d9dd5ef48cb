"""The embedded clinic: a small invented world with ground truth. It is no medical knowledge."""

from promedical_utils.clinic.grammar import UNSEEN_KINDS, gold
from promedical_utils.clinic.world import World, build

__all__ = ["UNSEEN_KINDS", "World", "build", "gold"]
