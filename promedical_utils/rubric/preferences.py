"""Groups: one instruction with its rubric, its answers and what one judge said of them.

What reward-model training, scoring and the bench share: a join over records, from which pairs are
derived.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

from promedical_utils.core.records import Candidate, Criterion, CriterionPair, Instruction, Rubric
from promedical_utils.core.run_data import RunData
from promedical_utils.core.workspace import KitError
from promedical_utils.rubric import scoring


@dataclass(frozen=True)
class Group:
    """One instruction, its criteria, its answers; ``verdicts``: (candidate id, criterion id) -> met
    | not_met | unknown. A candidate has a verdict on every criterion or on none. ``stated``:
    preferences by criterion that somebody gave, which need no verdicts."""

    instruction: Instruction
    criteria: tuple[Criterion, ...]
    candidates: tuple[Candidate, ...]
    verdicts: Mapping[tuple[str, str], str]
    stated: tuple[CriterionPair, ...] = ()

    @property
    def messages(self) -> list[dict]:
        """The conversation as plain dicts, as chat templates take it."""
        return [message.model_dump() for message in self.instruction.messages]

    @property
    def rubric(self) -> Rubric:
        """The criteria as a rubric; checked where they were made, so not once more."""
        fields: dict = {"instruction_id": self.instruction.id, "criteria": list(self.criteria)}
        return Rubric.model_construct(**fields, status="gold", round=0)

    @property
    def judged(self) -> list[Candidate]:
        first = self.criteria[0].id
        return [c for c in self.candidates if (c.id, first) in self.verdicts]

    @property
    def scores(self) -> dict[str, scoring.Scores]:
        """S1, S2, S3 of each judged answer, by its id."""
        rubric, scores = self.rubric, {}
        for answer in self.judged:
            verdicts = {c.id: self.verdicts[answer.id, c.id] for c in self.criteria}
            scores[answer.id] = scoring.score(rubric, verdicts)
        return scores


def groups(data: RunData, judge: str = "judge", ids: Iterable[str] | None = None) -> list[Group]:
    """Records joined into groups with the verdicts of one judge: those of ``ids``, in their order,
    each of which must have a candidate; else those of all instructions that have one.

    Raises KitError on a repeated id, a record that points nowhere, or a candidate with verdicts
    on only part of its rubric.
    """
    asked = _by_id("instruction", "id", data.instructions)
    rubric_of = _by_id("rubric", "instruction_id", data.rubrics)
    answer = _by_id("candidate", "id", data.candidates)
    answers: dict[str, list[Candidate]] = {}
    for candidate in data.candidates:
        _find(asked, candidate.instruction_id, f"candidate {candidate.id}: no instruction")
        answers.setdefault(candidate.instruction_id, []).append(candidate)
    said: dict[str, dict[tuple[str, str], str]] = {name: {} for name in asked}
    for verdict in (v for v in data.verdicts if v.judge == judge):
        candidate = _find(answer, verdict.candidate_id, f"a verdict of {judge}: no candidate")
        key = (candidate.id, verdict.criterion_id)
        if key in said[candidate.instruction_id]:
            raise KitError(f"{judge} judged {key} twice: keep one verdict for each")
        said[candidate.instruction_id][key] = verdict.verdict
    stated: dict[str, list[CriterionPair]] = {}
    for pair in data.preferences:
        _find(asked, pair.instruction_id, "a preference: no instruction")
        stated.setdefault(pair.instruction_id, []).append(pair)

    joined = []
    for name in ids if ids is not None else [i for i in asked if i in answers]:
        instruction = _find(asked, name, "ids asked for: no instruction")
        criteria = tuple(_find(rubric_of, name, "instruction without a rubric:").criteria)
        found = _find(answers, name, "instruction without a candidate:")
        for candidate in found:
            seen = {criterion for who, criterion in said[name] if who == candidate.id}
            wrong = seen ^ {c.id for c in criteria}
            if seen and wrong:
                raise KitError(
                    f"{judge} on candidate {candidate.id}: verdicts missing, or on no criterion of "
                    f"its rubric: {sorted(wrong)}; judge it again (notebook 02)"
                )
        own, known = tuple(stated.get(name, ())), {record.id: 1 for record in (*criteria, *found)}
        for part in ("criterion_id", "chosen_id", "rejected_id"):
            for pair in own:
                _find(known, getattr(pair, part), f"a preference on {name}: no {part}")
        joined.append(Group(instruction, criteria, tuple(found), said[name], own))
    return joined


def _by_id(what: str, key: str, records) -> dict:
    found = {}
    for record in records:
        name = getattr(record, key)
        if name in found:
            raise KitError(f"two records for {what} {name}: ids must be unique; remove one")
        found[name] = record
    return found


def _find(records: dict, name: str, complaint: str):
    if name not in records:
        raise KitError(f"{complaint} {name!r} in the data; run the notebooks from 01 on again")
    return records[name]


def groups_of(data: RunData, judge: str, *splits: str) -> list[Group]:
    """Groups of some splits with one judge's verdicts, or stated preferences; instructions without
    either are left out."""
    judged = {v.candidate_id for v in data.verdicts if v.judge == judge}
    answered = {c.instruction_id for c in data.candidates if c.id in judged}
    answered |= {pair.instruction_id for pair in data.preferences}
    asked = data.ids(*splits)
    ids = [i for i in asked if i in answered]
    if not ids:
        n = len({c.instruction_id for c in data.candidates}.intersection(asked))
        lacks = f"{n} have answers, none a verdict of {judge}: " + ("label" if n else "enlarge it")
        raise KitError(f"split {', '.join(splits)}: of {len(asked)} instructions {lacks}")
    return groups(data, judge, ids)


def digest(groups: Iterable[Group]) -> str:
    """SHA-256 of everything in the groups: texts, criteria and verdicts."""
    content = hashlib.sha256()
    for group in groups:
        for record in (group.instruction, *group.criteria, *group.candidates):
            content.update(record.model_dump_json().encode())
        content.update(repr(sorted(group.verdicts.items())).encode())
        content.update("".join(pair.model_dump_json() for pair in group.stated).encode())
    return content.hexdigest()


def met(group: Group, candidate_id: str, criterion: Criterion) -> bool | None:
    """Whether the judge found ``criterion`` met; None where that is not known."""
    verdict = group.verdicts.get((candidate_id, criterion.id))
    return None if verdict is None else scoring.is_met(verdict, criterion.dimension)


def criterion_pairs(group: Group) -> list[CriterionPair]:
    """The criterion-conditioned preferences of a group: those stated, then met beats not_met,
    criterion by criterion; ``unknown`` on a safety criterion counts as not met, elsewhere it makes
    no pair. On two answers whose order was stated verdicts have no say."""
    known = {c.id for c in group.criteria} | {answer.id for answer in group.candidates}
    pairs = [p for p in group.stated if {p.criterion_id, p.chosen_id, p.rejected_id} <= known]
    stated = {(p.criterion_id, frozenset((p.chosen_id, p.rejected_id))) for p in pairs}
    for criterion in group.criteria:
        labels = [(answer.id, met(group, answer.id, criterion)) for answer in group.judged]
        about = {"instruction_id": group.instruction.id, "criterion_id": criterion.id}
        for chosen, rejected in differing(labels):
            if (criterion.id, frozenset((chosen, rejected))) not in stated:
                pairs.append(CriterionPair(**about, chosen_id=chosen, rejected_id=rejected))
    return pairs


def differing(labels: Iterable[tuple[str, bool | None]]) -> list[tuple[str, str]]:
    """(id met, id not met) of every two answers that differ on a criterion; ``labels``: (id, met),
    None where that is not known, which makes no pair."""
    pairs = []
    for (a, met_a), (b, met_b) in combinations(labels, 2):
        if None not in (met_a, met_b) and met_a != met_b:
            pairs.append((a, b) if met_a else (b, a))
    return pairs


def compared(scores: Mapping[str, scoring.Scores]) -> list[tuple[str, str, int]]:
    """(a, b, 1 where a is better or -1) of every two answers by lexicographic score; no ties."""
    sides = [(a, b, scoring.compare(scores[a], scores[b])) for a, b in combinations(scores, 2)]
    return [side for side in sides if side[2]]


def preferences(group: Group) -> list[tuple[str, str]]:
    """(chosen id, rejected id) of every two judged answers by lexicographic score; no ties."""
    return [(a, b) if side > 0 else (b, a) for a, b, side in compared(group.scores)]
