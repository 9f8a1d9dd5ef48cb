"""What a reward model reads of an answer: the token sequences of each view (see ``variants``).

[reading] = views.read(tokenizer, [(messages, [answer], criteria)], "criterion", 512)
reading.sequences, reading.reads  # one sequence; (answer 0, criterion 0), (0, 1), ...
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from promedical_utils.core.records import Criterion
from promedical_utils.core.workspace import KitError
from promedical_utils.reward_model import packing
from promedical_utils.reward_model.packing import Packed

# messages, responses, criteria; and the same with the criteria as the texts that are read
Case = tuple[Sequence[Mapping[str, str]], Sequence[str], Sequence[Criterion]]
Text = tuple[Sequence[Mapping[str, str]], Sequence[str], Sequence[str]]


@dataclass
class Reading:
    """What a model reads of one case: ``sequences``, whose scores in order are of ``reads``.

    ``reads``: (response number, criterion number, or None for one score a response); a read that
    stands several times is their mean. ``kept``: numbers of the responses that fit the limit;
    ``too_long``: {number: tokens}; ``cut``: {number: tokens taken from instruction and response}.
    """

    sequences: list[Packed] = field(default_factory=list)
    reads: list[tuple[int, int | None]] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
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
) -> list[Reading]:
    """Token sequences of every case in a view; all texts are tokenised once.

    A response whose instruction, text and longest criterion exceed ``limit`` is ``too_long``, in
    every view alike, so that budgets stay equal; view rubric alone reads all criteria as one text,
    and what is too long with that as well. ``shorten``: ``packing.fit`` makes room.
    ``heads``: of view heads, type of criterion -> output. KitError for view rubric without
    criteria.
    """
    texts = [_texts(case, view) for case in cases]
    known: dict[str, list[int]] = {}
    texts, readings = _fitted(tokenizer, texts, limit, shorten, known)
    parts = [_parts(text, reading.kept, view) for text, reading in zip(texts, readings)]
    encoded = iter(packing.encode(tokenizer, [part for own in parts for part in own], known))
    for reading, own, (_, _, criteria) in zip(readings, parts, cases, strict=True):
        for number, (shared, tails) in enumerate(islice(encoded, len(own))):
            if view == "heads":
                outputs = [
                    (c, h) for c, k in enumerate(criteria) for h in outputs_of(k, heads or {})
                ]
                reading.reads += [(reading.kept[number], c) for c, _ in outputs]
                ends = tuple(head for _, head in outputs)
                reading.sequences.append(Packed(shared, [len(shared)], ends))
                continue
            if view == "before":
                reading.reads += [(n, number) for n in reading.kept]
            elif view == "criterion":
                reading.reads += [(reading.kept[number], c) for c in range(len(criteria))]
            else:
                reading.reads.append((reading.kept[number], None))
            reading.sequences += packing.pack(shared, tails, limit)
    return readings


def _texts(case: Case, view: str) -> Text:
    messages, responses, criteria = case
    tails = [packing.criterion_text(c) for c in criteria]
    if view == "rubric":
        if not tails:
            raise KitError("view rubric scores an answer by its whole rubric: give its criteria")
        tails = ["".join(tails)]
    return messages, responses, tails


def _fitted(tokenizer, texts: Sequence[Text], limit: int, shorten: bool, known: dict):
    """(texts, cut where ``shorten`` makes room; a reading each, that says what fits the limit)."""
    whole = [(messages, r, tails) for messages, responses, tails in texts for r in responses]
    sizes = iter([packing.longest(*ids) for ids in packing.encode(tokenizer, whole, known)])
    fitted, readings = [], []
    for messages, responses, tails in texts:
        reading = Reading()
        own = enumerate(islice(sizes, len(responses)))
        reading.too_long = {n: size for n, size in own if size > limit}
        if reading.too_long and shorten:
            try:
                messages, responses, cut = packing.fit(tokenizer, messages, responses, tails, limit)
            except ValueError:  # a criterion leaves no room, and is never cut
                pass
            else:
                reading.too_long = {}
                reading.cut = {
                    n: {"instruction": cut["instruction"], "response": tokens}
                    for n, tokens in enumerate(cut["responses"])
                    if tokens or cut["instruction"]
                }
        reading.kept = [n for n in range(len(responses)) if n not in reading.too_long]
        fitted.append((messages, responses, tails))
        readings.append(reading)
    return fitted, readings


def _parts(text: Text, kept: Sequence[int], view: str) -> list[tuple]:
    """(messages, shared text, texts that follow it) of each sequence that a case is read in."""
    messages, responses, tails = text
    responses = [responses[n] for n in kept]
    if view == "before":
        return [(messages, tail, responses) for tail in tails] if responses else []
    tails = tails if view in ("criterion", "rubric") else []
    return [(messages, response, tails) for response in responses]


def type_of(criterion: Criterion) -> str:
    """Name of a fixed head; ``dimension/`` keeps the dimension for types that come later."""
    return f"{criterion.dimension}/{criterion.kind}"


def outputs_of(criterion: Criterion, heads: Mapping[str, int]) -> list[int]:
    """Outputs that score a criterion: its type's; of an unseen type all of its dimension's.

    Those of all dimensions where training had none of it: a fixed head has nothing better to say.
    """
    own = heads.get(type_of(criterion))
    if own is not None:
        return [own]
    same = [n for name, n in heads.items() if name.split("/")[0] == criterion.dimension]
    return same or list(heads.values())
