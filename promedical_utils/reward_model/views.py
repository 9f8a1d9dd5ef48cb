"""What a reward model reads of an answer: the token sequences of each view (see ``variants``).

[reading] = views.read(tokenizer, [(messages, [answer], criteria)], "criterion", 512)
reading.sequences, reading.reads  # one sequence; (answer 0, criterion 0), (0, 1), ...
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from promedical_utils.core.records import Criterion
from promedical_utils.core.workspace import KitError
from promedical_utils.reward_model import packing

Case = tuple[Sequence[Mapping[str, str]], Sequence[str], Sequence[Criterion]]


@dataclass
class Reading:
    """What a model reads of one case: ``sequences``, whose scores in order are of ``reads``.

    ``reads``: (response number, criterion number, or None for one score a response); a read that
    stands several times is their mean. ``too_long``: {number of a response that is not read: its
    tokens}; ``cut``: {number: tokens taken from instruction and response}.
    """

    sequences: list[packing.Packed] = field(default_factory=list)
    reads: list[tuple[int, int | None]] = field(default_factory=list)
    too_long: dict[int, int] = field(default_factory=dict)
    cut: dict[int, dict[str, int]] = field(default_factory=dict)


def read(
    tokenizer,
    cases: Sequence[Case],
    view: str,
    limit: int,
    *,
    heads: Mapping[str, int] | None = None,
    shorten: bool = False,
    room: float = 0,
) -> list[Reading]:
    """Token sequences of every case (messages, responses, criteria) in a view.

    A response whose instruction, text and longest criterion exceed ``limit`` is ``too_long``, in
    every view alike, so that budgets stay equal; view rubric alone reads all criteria as one text,
    and what is too long with that as well. ``shorten``: ``packing.fit`` makes room.
    ``heads``: of view heads, type of criterion -> output. ``room``: the answers of a case share
    their prompt, in trees of as many tokens, or REREAD prompts; 0: each is read with its own.
    KitError for view rubric without criteria.
    """
    readings = []
    for messages, responses, criteria in cases:
        readings.append(reading := Reading())
        texts = [packing.criterion_text(c) for c in criteria]
        if view == "rubric":
            if not texts:
                raise KitError("view rubric scores by the whole rubric: give its criteria")
            texts = ["".join(texts)]
        tails = packing.text_ids(tokenizer, texts)
        prompt = packing.prompt_ids(tokenizer, messages)
        answers = packing.text_ids(tokenizer, responses)
        sizes = [packing.longest(prompt + answer, tails) for answer in answers]
        reading.too_long = {n: size for n, size in enumerate(sizes) if size > limit}
        if reading.too_long and shorten:
            with suppress(ValueError):  # a criterion leaves no room, and is never cut
                messages, responses, cut = packing.fit(tokenizer, messages, responses, texts, limit)
                lost, reading.too_long = cut["instruction"], {}
                for n, tokens in enumerate(cut["responses"]):
                    if lost or tokens:
                        reading.cut[n] = {"instruction": lost, "response": tokens}
                prompt = packing.prompt_ids(tokenizer, messages)
                answers = packing.text_ids(tokenizer, responses)
        kept = {n: ids for n, ids in enumerate(answers) if n not in reading.too_long}

        numbers: list = [None]  # the criterion of each score of a sequence
        outputs: tuple[int, ...] = ()  # and what of the score head gives it, the first if empty
        if view == "criterion":
            numbers = list(range(len(criteria)))
        elif view == "heads":
            each = [outputs_of(c, heads or {}) for c in criteria]
            numbers = [n for n, own in enumerate(each) for _ in own]
            outputs = tuple(head for own in each for head in own)
        if not (numbers and kept):
            continue  # nothing to score
        if view == "before":
            branches = [(tail, list(kept.values())) for tail in tails]
            reading.reads = [(n, i) for i in range(len(tails)) for n in kept]
        else:
            leaves = tails if view in ("criterion", "rubric") else []
            branches = [(answer, leaves) for answer in kept.values()]
            reading.reads = [(n, number) for n in kept for number in numbers]
        if room:
            packed = packing.tree(prompt, branches, max(room, packing.REREAD * len(prompt)))
        else:
            apart = [packing.pack(prompt + stem, leaves, limit) for stem, leaves in branches]
            packed = [part for parts in apart for part in parts]
        reading.sequences = [replace(part, heads=outputs) for part in packed]
    return readings


def type_of(criterion: Criterion) -> str:
    """Name of a fixed head, by which a type that comes later finds its dimension."""
    return f"{criterion.dimension}/{criterion.kind}"


def outputs_of(criterion: Criterion, heads: Mapping[str, int]) -> list[int]:
    """Outputs that score a criterion: its type's, of an unseen type all of its dimension's, and
    where training had none of it all there are: a fixed head has nothing better to say."""
    if (own := heads.get(type_of(criterion))) is not None:
        return [own]
    same = [n for name, n in heads.items() if name.split("/")[0] == criterion.dimension]
    return same or list(heads.values())
