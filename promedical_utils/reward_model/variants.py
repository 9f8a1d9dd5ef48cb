"""Reward models that the kit trains: the method, its controls, its ablations, each by a name.

All learn from the same instructions in the same number of steps. What differs is whose labels a
model learns from, which weights are trained, of which criteria, and what it is shown, its *view*:
criterion  answer, then the criterion; all criteria of an answer packed (see ``packing``);
before     the criterion, then the answer: what packing's order is compared with;
heads      the answer alone, one output of the score head for each type of criterion;
overall    the answer alone, one score, learned from one lexicographic preference a pair of answers;
rubric     the answer, then all its criteria as one text, one score, learned as overall is;
blind      the answer alone, one score, learned from the criterion labels without the criterion.

``scalar_overall`` is UltraMedical's reward (arXiv 2406.03949). ``rar_implicit`` is RaR's implicit
one (arXiv 2507.17746), a score in [0, 1] with the whole rubric in context: there of a prompted
judge, here of a reward model trained on the very preferences of scalar_overall (kit's decision: so
that what differs is the rubric, not who judges).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import nsmallest

from promedical_utils.core.records import DIMENSIONS, Criterion
from promedical_utils.core.workspace import KitError, short_hash
from promedical_utils.rubric.preferences import Group

VIEWS = ("criterion", "before", "heads", "overall", "rubric", "blind")
CONDITIONAL = ("criterion", "before", "heads")  # one score for each criterion
NEAREST = 20  # texts that a placebo's is drawn from: as many tokens are read
PREFERENCE = ("overall", "rubric")  # one score, learned from the lexicographic preference


@dataclass(frozen=True)
class Recipe:
    view: str
    labels: str = "judge"  # whose
    full: bool = False  # all weights, not an adapter
    dimensions: tuple[str, ...] = DIMENSIONS  # of the criteria that it learns from
    anchor: bool = True  # with the pointwise term in the loss
    swapped: bool = False  # a placebo: another criterion's text stands in place of each

    @property
    def conditional(self) -> bool:
        return self.view in CONDITIONAL

    def groups(self, groups: Sequence[Group]) -> list[Group]:
        """The groups with the criteria that it learns from; one without any is left out."""
        kept = [
            replace(g, criteria=tuple(c for c in g.criteria if c.dimension in self.dimensions))
            for g in groups
        ]
        return [g for g in kept if g.criteria]

    def as_read(self, groups: Sequence[Group], texts: Mapping[str, Sequence[str]]) -> list[Group]:
        """The groups as it is shown them, in training and in use; ``texts``: ``criterion_texts`` of
        the training groups. A placebo reads one of the same dimension, drawn by the criterion's id
        from the ``NEAREST`` in length. KitError where training has no other text."""
        if not self.swapped:
            return list(groups)
        known = [text for own in texts.values() for text in own]

        def other(criterion: Criterion) -> Criterion:
            size = len(criterion.text)
            same = [text for text in texts.get(criterion.dimension, ()) if text != criterion.text]
            if not (pool := same or [text for text in known if text != criterion.text]):
                raise KitError("criterion_swapped: training has one criterion; there is no other")
            near = nsmallest(NEAREST, pool, lambda text: (abs(len(text) - size), text))
            drawn = near[int(short_hash("swapped", criterion.id), 16) % len(near)]
            return criterion.model_copy(update={"text": drawn})

        return [replace(g, criteria=tuple(map(other, g.criteria))) for g in groups]

    def profile(self, profile):
        return profile.model_copy(update={} if self.anchor else {"rm_pointwise_weight": 0.0})


RECIPES = {
    "criterion": Recipe("criterion"),
    "criterion_swapped": Recipe("criterion", swapped=True),
    "scalar_overall": Recipe("overall"),
    "scalar_blind": Recipe("blind"),
    "rar_implicit": Recipe("rubric"),
    "criterion_clean": Recipe("criterion", "truth"),
    # ablations, trained by the study
    "criterion_full": Recipe("criterion", full=True),
    "criterion_first": Recipe("before"),
    "fixed_heads": Recipe("heads"),
    "no_safety_data": Recipe("criterion", dimensions=("proficiency", "excellence")),
    "no_anchor": Recipe("criterion", anchor=False),
}


def criterion_texts(groups: Sequence[Group]) -> dict[str, list[str]]:
    """Dimension -> the different texts of its criteria, sorted."""
    every = [c for g in groups for c in g.criteria]
    return {d: sorted({c.text for c in every if c.dimension == d}) for d in DIMENSIONS}


def find(name: str) -> Recipe:
    if name not in RECIPES:
        raise KitError(f"unknown reward model {name!r}: choose one of {', '.join(RECIPES)}")
    return RECIPES[name]
