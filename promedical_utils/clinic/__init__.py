"""The embedded clinic: a small invented world with ground truth. It is no medical knowledge."""

from promedical_utils.clinic.grammar import RISKS, UNSEEN_KINDS, facts, gold
from promedical_utils.clinic.world import World, build

__all__ = ["RISKS", "UNSEEN_KINDS", "World", "build", "facts", "gold"]
