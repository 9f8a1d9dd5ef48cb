"""Rewards of a policy's answers. The method's own: one gated number, in which safety is a veto.

packed reward model -> calibrated verdicts -> S1, S2, S3 -> reward (section 2 of the method).
Several rewards that TRL adds up and normalises could rank an unsafe answer above a safe one, so it
is one function. Beside it stand its ablations and the rewards of the compared systems, on the same
verdicts.
Nothing here loads a model.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from statistics import fmean
from typing import NamedTuple

from promedical_utils.core.records import Criterion, Rubric
from promedical_utils.core.workspace import KitError
from promedical_utils.rubric import scoring
from promedical_utils.rubric.scoring import Scores

FORMS = ("strict", "clipped", "ranked")
ALL_VETOED = ("expected", "counted", "skipped")
REASONS = ("violated", "unscored", "cut_off")


class Judged(NamedTuple):
    """One answer as the reward model reads it.

    ``expected``: expected number of violations, sum of 1 - P(met) over safety criteria, 1 for each
    that is unknown. ``reasons``: why it is vetoed, of REASONS, empty if it is not. ``violated``:
    the safety criteria by id. ``unscored``: share of criteria without a score.
    """

    scores: Scores
    verdicts: Mapping[str, str]
    expected: float = 0.0
    reasons: tuple[str, ...] = ()
    violated: tuple[str, ...] = ()
    unscored: float = 0.0


def answer_verdicts(rubric: Rubric, verdicts: Mapping[str, str], finished=True) -> dict[str, str]:
    """The verdicts; an answer cut off at the length limit is unknown on all of safety."""
    if finished:
        return dict(verdicts)
    # what was to come is not known, and unknown is a violation
    return {**verdicts, **{c.id: "unknown" for c in rubric.criteria if c.dimension == "safety"}}


def answer_scores(rubric: Rubric, verdicts: Mapping[str, str], finished=True) -> Scores:
    """``scoring.score`` of ``answer_verdicts``."""
    return scoring.score(rubric, answer_verdicts(rubric, verdicts, finished))


class RubricReward:
    """What all rewards share: reading answers criterion by criterion, groups, and what is logged.

    A TRL reward function: ``GRPOTrainer(..., reward_funcs=reward)`` with an ``instruction_id``
    column in the dataset. Everything that goes wrong in the reward model (an exception, NaN, a
    missing score) is ``unknown``: a violation on safety, no gain elsewhere. With ``eos_ids``, an
    answer that does not end in one was cut off. With ``group``, the number of answers to one
    prompt, a group that is not whole is a KitError: rewards depend on the group.
    """

    __name__ = "veto_reward"

    def __init__(self, rm, calibration, rubrics: Sequence[Rubric], *, eos_ids=(), group: int = 0):
        self.rm, self.calibration, self.eos_ids, self.group = rm, calibration, set(eos_ids), group
        self.rubrics = {r.instruction_id: r for r in rubrics}
        self.error = ""  # the last exception, for the message of whoever trains

    def value(self, judged: Judged, rubric: Rubric) -> float:
        """The reward of one answer alone, as held-out answers get it."""
        raise NotImplementedError

    def of_group(self, judged: Sequence[Judged], rubric: Rubric) -> list[float]:
        """The rewards of the answers to one prompt."""
        return [self.value(one, rubric) for one in judged]

    def read(self, items) -> list[Judged]:
        """What the reward model reads in (instruction id, messages, text, finished) items."""
        rubrics = [self.rubric(item[0]) for item in items]
        pairs = zip(items, rubrics, strict=True)
        raw = self._raw([(item[1], item[2], rubric.criteria) for item, rubric in pairs])
        triples = zip(items, rubrics, raw, strict=True)
        return [self._judged(rubric, values, item[3]) for item, rubric, values in triples]

    def _judged(self, rubric: Rubric, values: Sequence, finished: bool) -> Judged:
        pairs = list(zip(values, rubric.criteria, strict=True))
        said = {c.id: self._verdict(value, c.dimension) for value, c in pairs}
        verdicts = answer_verdicts(rubric, said, finished)
        safety = [(value, c) for value, c in pairs if c.dimension == "safety"]
        violated = tuple(c.id for _, c in safety if verdicts[c.id] != "met")
        why = {
            "violated": any(said[c.id] == "not_met" for _, c in safety),
            "unscored": any(said[c.id] == "unknown" for _, c in safety),
            "cut_off": bool(safety) and not finished,
        }
        return Judged(
            scoring.score(rubric, verdicts),
            verdicts,
            math.fsum(
                self._unmet(value, c) if verdicts[c.id] != "unknown" else 1.0 for value, c in safety
            ),
            tuple(reason for reason in REASONS if why[reason]),
            violated,
            fmean(verdict == "unknown" for verdict in said.values()),
        )

    def __call__(
        self, prompts, completions, instruction_id, completion_ids=None, log_metric=None, **_
    ) -> list[float]:
        """Rewards of a batch; ``completions`` are texts or one-message conversations (TRL 1.16)."""
        started, before = time.perf_counter(), getattr(self.rm, "tokens_read", 0)
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        ended = [True] * len(texts)
        if self.eos_ids:
            ids = completion_ids or [[]] * len(texts)
            ended = [bool(row) and row[-1] in self.eos_ids for row in ids]
        judged = self.read(list(zip(instruction_id, prompts, texts, ended, strict=True)))
        groups = self._groups(instruction_id)
        rewards = [
            reward
            for g in groups
            for reward in self.of_group([judged[i] for i in g], self.rubric(instruction_id[g[0]]))
        ]
        if log_metric:
            log_metric("time/reward", time.perf_counter() - started)
            log_metric("tokens/generated", float(sum(map(len, completion_ids or []))))
            log_metric("tokens/scored", float(getattr(self.rm, "tokens_read", 0) - before))
            for name, values in self._metrics(judged, rewards, groups, ended).items():
                log_metric(f"veto/{name}", fmean(map(float, values)))
        return rewards

    def _groups(self, instruction_id: Sequence[str]) -> list[list[int]]:
        # TRL keeps the answers to one prompt side by side
        sides = groupby(range(len(instruction_id)), key=lambda i: instruction_id[i])
        groups = [list(side) for _, side in sides]
        for found in groups if self.group else ():
            if len(found) % self.group:
                raise KitError(
                    f"instruction {instruction_id[found[0]]}: {len(found)} answers side by side, "
                    "not "
                    f"{self.group}: a process must hold whole groups; make the batch of a process "
                    "a "
                    "multiple of grpo_group"
                )
        size = self.group or len(instruction_id)
        return [g[n : n + size] for g in groups for n in range(0, len(g), size)]

    def _metrics(self, judged, rewards, groups, ended) -> dict[str, list]:
        """Name -> one value an answer or a group; ``kind/...``: violations of each kind."""
        kinds: dict[str, list[bool]] = {}
        for one in judged:
            for kind, hit in self._kinds(one):
                kinds.setdefault(f"kind/{kind}", []).append(hit)
        return {
            **{name: [getattr(one.scores, name) for one in judged] for name in ("s1", "s2", "s3")},
            "rate": [one.scores.s3 > 0 for one in judged],
            "truncated": [not e for e in ended],
            "unscored": [one.unscored for one in judged],
            **{f"reason/{name}": [name in one.reasons for one in judged] for name in REASONS},
            "all_vetoed_groups": [all(judged[i].scores.s3 for i in group) for group in groups],
            "zero_std_groups": [len({rewards[i] for i in group}) == 1 for group in groups],
            **kinds,
        }

    def _kinds(self, one: Judged):
        for id_ in one.verdicts:
            criterion = self._criterion.get(id_)
            if criterion is not None and criterion.dimension == "safety":
                yield criterion.kind or "safety", id_ in one.violated

    @property
    def _criterion(self) -> dict[str, Criterion]:
        if not hasattr(self, "_by_id"):
            self._by_id = {c.id: c for r in self.rubrics.values() for c in r.criteria}
        return self._by_id

    def rubric(self, instruction_id: str) -> Rubric:
        if instruction_id not in self.rubrics:
            raise KitError(f"no rubric for instruction {instruction_id}: run 01_rubrics again")
        return self.rubrics[instruction_id]

    def _raw(self, items) -> list[list]:
        """Scores per item and criterion, None where there is none; a bad item spares the rest."""
        scored = self._texts(items)
        # a list of another length cannot be matched to the criteria, so none of it counts
        return [
            list(values)
            if values is not None and len(values) == len(criteria)
            else [None] * len(criteria)
            for values, (_, _, criteria) in zip(scored, items, strict=True)
        ]

    def _texts(self, items) -> list:
        try:
            scored = list(self.rm.score_texts(items))
            if len(scored) != len(items):
                raise ValueError(f"{len(scored)} results for {len(items)} answers")
        except Exception as error:  # fails closed whatever it was; training stops if all fail
            self.error = f"{type(error).__name__}: {error}"
            return [self._texts([item])[0] for item in items] if len(items) > 1 else [None]
        return scored

    def _verdict(self, score, dimension: str) -> str:
        try:
            if score is None or not math.isfinite(score):
                return "unknown"
            return "met" if self.calibration.met(score, dimension) else "not_met"
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            return "unknown"

    def _unmet(self, score, criterion: Criterion) -> float:
        """1 - P(met); 1 where the calibration has no number to give."""
        try:
            likely = float(self.calibration.probability(score, criterion.dimension))
            return 1 - likely if math.isfinite(likely) else 1.0
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            return 1.0


class VetoReward(RubricReward):
    """The method's reward, in three forms:

    strict   clip(S1 + alpha S2, 0, 1 + beta) - lambda S3 with lambda > 1 + beta: no answer is worth
             more than one with fewer violations;
    clipped  the paper's, which allows lambda = 1 + beta, and there a tie;
    ranked   the place in the group by S3, then S1, then S2, from -1 to 1: the order itself, which
             the two others keep only as far as S1 and S2 do not trade.

    Where a whole group is vetoed, ``all_vetoed`` says what its answers are told apart by:

    expected  -lambda times the expected number of violations by the calibrated probabilities:
    safety
              alone, and finer than a count that is the same for all;
    counted   the form's own value: equal counts leave S1 and S2 to decide, so that a group learns
              to be better and no safer;
    skipped   nothing: equal rewards, no gradient.

    Rules and names are the kit's decision; the paper says nothing of such groups. Raises KitError
    for a veto that is loose (strict), or below the paper's bound.
    """

    def __init__(
        self,
        rm,
        calibration,
        rubrics,
        *,
        alpha=0.1,
        beta=0.3,
        lam=2.0,
        form="strict",
        all_vetoed="expected",
        eos_ids=(),
        group: int = 0,
    ):
        super().__init__(rm, calibration, rubrics, eos_ids=eos_ids, group=group)
        for name, given, known in (("form", form, FORMS), ("all_vetoed", all_vetoed, ALL_VETOED)):
            if given not in known:
                raise KitError(f"veto reward: {name} {given!r}: choose one of {', '.join(known)}")
        self.form, self.all_vetoed = form, all_vetoed
        self.terms = {"alpha": alpha, "beta": beta, "lam": lam}
        self.reward(Scores(0.0, 0, 0))  # refuses a loose veto now, not at step 1

    def reward(self, scores: Scores) -> float:
        """The form's value of one answer; that of ranked, which needs a group, is the strict
        one."""
        of = scoring.clipped_reward if self.form == "clipped" else scoring.gated_reward
        return of(scores, **self.terms)

    def value(self, judged: Judged, rubric: Rubric | None = None) -> float:
        return self.reward(judged.scores)

    def of_group(self, judged: Sequence[Judged], rubric: Rubric | None = None) -> list[float]:
        lost = all(one.scores.s3 > 0 for one in judged)
        if lost and self.all_vetoed == "skipped":
            return [-self.terms["lam"]] * len(judged)
        if lost and self.all_vetoed == "expected":
            if self.form != "ranked":
                return [-self.terms["lam"] * one.expected for one in judged]
            return scoring.ranks([-one.expected for one in judged])
        if self.form == "ranked":
            return scoring.lexicographic_ranks([one.scores for one in judged])
        return [self.reward(one.scores) for one in judged]


class AggregateReward(RubricReward):
    """The same verdicts put together by ``aggregate(rubric, verdicts)``: no veto, but what that
    has."""

    def __init__(self, *args, aggregate: Callable[[Rubric, Mapping[str, str]], float], **settings):
        super().__init__(*args, **settings)
        self.aggregate = aggregate

    def value(self, judged: Judged, rubric: Rubric) -> float:
        return self.aggregate(rubric, judged.verdicts)


class ScalarReward(RubricReward):
    """One score of the whole answer by a model that is not asked criterion by criterion.

    ``squashed``: through the logistic function, into [0, 1]. An answer without a score gets less
    than every scored one of its group.
    """

    def __init__(self, rm, rubrics, *, squashed=False, eos_ids=(), group: int = 0):
        super().__init__(rm, None, rubrics, eos_ids=eos_ids, group=group)
        self.squashed = squashed

    def read(self, items) -> list[Judged]:
        scored = self._texts([(item[1], item[2], self.rubric(item[0]).criteria) for item in items])
        values = [row[0] if row is not None and len(row) == 1 else None for row in scored]
        values = [v if v is not None and math.isfinite(v) else math.nan for v in values]
        return [
            Judged(Scores(self._shape(v), 0, 0), {}, unscored=float(math.isnan(v))) for v in values
        ]

    def _shape(self, value: float) -> float:
        return 1 / (1 + math.exp(-value)) if self.squashed else value

    def value(self, judged: Judged, rubric: Rubric | None = None) -> float:
        return judged.scores.s1

    def of_group(self, judged: Sequence[Judged], rubric: Rubric | None = None) -> list[float]:
        known = [one.scores.s1 for one in judged if not math.isnan(one.scores.s1)]
        worst = min(known, default=0.0) - 1.0
        return [worst if math.isnan(one.scores.s1) else one.scores.s1 for one in judged]

    def _metrics(self, judged, rewards, groups, ended) -> dict[str, list]:
        return {
            "truncated": [not e for e in ended],
            "unscored": [one.unscored for one in judged],
            "zero_std_groups": [len({rewards[i] for i in group}) == 1 for group in groups],
        }


def without_veto(alpha: float, beta: float) -> Callable:
    """clip(S1 + alpha S2, 0, 1 + beta) whatever S3 is: the ablation."""

    def aggregate(rubric: Rubric, verdicts: Mapping[str, str]) -> float:
        found = scoring.score(rubric, verdicts)
        return min(max(found.s1 + alpha * found.s2, 0.0), 1 + beta)

    return aggregate


# rule -> what it is; ``build`` makes them
RULES = {
    "veto": "the method's gated reward",
    "no_veto": "without the safety veto: lambda = 0",
    "no_bonus": "without the bonus margin: alpha = 0",
    "scalar": "one score of a model without criteria",
    "rar_explicit": "RaR: weighted share of the criteria met",
    "rar_implicit": "RaR: one score of a model that reads the whole rubric",
    "orbit": "ORBIT: signed points, a violation costs some",
}


def build(profile, rm, calibration, rubrics, eos_ids=()) -> RubricReward:
    """The reward that a profile's ``reward_*`` settings name."""
    common = {"eos_ids": eos_ids, "group": profile.grpo_group}
    terms = {"alpha": profile.reward_alpha, "beta": profile.reward_beta}
    rule = profile.reward_rule
    if rule in ("veto", "no_bonus"):
        terms |= {"lam": profile.reward_lambda} | ({"alpha": 0.0} if rule == "no_bonus" else {})
        return VetoReward(
            rm,
            calibration,
            rubrics,
            **terms,
            form=profile.reward_form,
            all_vetoed=profile.reward_all_vetoed,
            **common,
        )
    if rule in ("scalar", "rar_implicit"):
        return ScalarReward(rm, rubrics, squashed=rule == "rar_implicit", **common)
    aggregate = {
        "no_veto": without_veto(**terms),
        "rar_explicit": scoring.rar_explicit,
        "orbit": scoring.orbit_signed,
    }[rule]
    return AggregateReward(rm, calibration, rubrics, aggregate=aggregate, **common)
