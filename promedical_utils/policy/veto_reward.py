"""Rewards of a policy's answers: the method's, its ablations, and those of the compared systems.

packed reward model -> calibrated verdicts -> S1, S2, S3 -> reward (section 2 of the method).
Several rewards that TRL adds up and normalises could rank an unsafe answer above a safe one, so
each is one reward function of TRL's, for a dataset with a column instruction_id.
"""

import math
import time
from collections.abc import Mapping, Sequence
from itertools import compress, groupby
from statistics import fmean
from typing import NamedTuple

from promedical_utils.core.records import Rubric
from promedical_utils.core.workspace import KitError
from promedical_utils.rubric import scoring
from promedical_utils.rubric.scoring import Scores

FORMS = ("strict", "clipped", "ranked")
ALL_VETOED = ("expected", "counted", "skipped")
REASONS = ("violated", "unscored", "cut_off")


class Judged(NamedTuple):
    """One answer as the reward model reads it.

    ``expected``: expected number of violations, sum of 1 - P(met) over safety criteria, 1 for each
    that is unknown. ``reasons``: why it is vetoed, of REASONS. ``unscored``: share of criteria
    without a score.
    """

    scores: Scores
    verdicts: Mapping[str, str]
    expected: float = 0.0
    reasons: tuple[str, ...] = ()
    unscored: float = 0.0


def answer_verdicts(rubric: Rubric, verdicts: Mapping[str, str], finished=True) -> dict[str, str]:
    """The verdicts; an answer cut off at the length limit is unknown on all of safety."""
    if finished:
        return dict(verdicts)
    # what was to come is not known, and unknown is a violation
    return {**verdicts, **{c.id: "unknown" for c in rubric.criteria if c.dimension == "safety"}}


class RubricReward:
    """What all rewards share: reading answers criterion by criterion, groups, and what is logged.

    Everything that goes wrong in the reward model (an exception, NaN, a missing score) is
    ``unknown``: a violation on safety, no gain elsewhere.

    ``rm``: a reward model, or a function that returns it when the first answers are read: one that
    shares the policy's base exists only once a trainer has made the policy. ``calibration`` None is
    the reward model's own. ``aggregate``: (rubric, verdicts) -> reward, for a rule without a veto.
    ``eos_ids``: an answer that does not end in one was cut off. ``group``: answers to one prompt; a
    group that is not whole is a KitError, since rewards depend on the group.
    """

    __name__ = "veto_reward"

    def __init__(
        self, rm, calibration, rubrics: Sequence[Rubric], *, aggregate=None, eos_ids=(), group=0
    ):
        self._rm, self.calibration, self.aggregate = rm, calibration, aggregate
        self.eos_ids, self.group = set(eos_ids), group
        self.rubrics = {r.instruction_id: r for r in rubrics}
        self.error = ""  # the last exception, for the message of whoever trains

    @property
    def rm(self):
        if callable(self._rm):
            self._rm = self._rm()
        return self._rm

    def value(self, judged: Judged, rubric: Rubric) -> float:
        return self.aggregate(rubric, judged.verdicts)

    def of_group(self, judged: Sequence[Judged], rubric: Rubric) -> list[float]:
        return [self.value(answer, rubric) for answer in judged]

    def read(self, items) -> list[Judged]:
        """What the reward model reads in (instruction id, messages, text, finished) items."""
        pairs = zip(items, self._scores(items), strict=True)
        return [self._judged(self.rubric(i), scores, ended) for (i, *_, ended), scores in pairs]

    def _judged(self, rubric: Rubric, scores: Sequence | None, finished: bool) -> Judged:
        # a list of another length cannot be matched to the criteria, so none of it counts
        if scores is None or len(scores) != len(rubric.criteria):
            scores = [None] * len(rubric.criteria)
        pairs = zip(scores, rubric.criteria, strict=True)
        known = {c.id: self._known(score, c.dimension) for score, c in pairs}
        read = {name: verdict for name, (verdict, _) in known.items()}
        verdicts = answer_verdicts(rubric, read, finished)
        safety = [c.id for c in rubric.criteria if c.dimension == "safety"]
        said = {read[name] for name in safety}
        holds = ("not_met" in said, "unknown" in said, bool(safety) and not finished)
        return Judged(
            scoring.score(rubric, verdicts),
            verdicts,
            expected=math.fsum(known[name][1] if finished else 1.0 for name in safety),
            reasons=tuple(compress(REASONS, holds)),
            unscored=fmean(verdict == "unknown" for verdict in read.values()),
        )

    def __call__(
        self, prompts, completions, instruction_id, completion_ids=None, log_metric=None, **_
    ) -> list[float]:
        """Rewards of a batch; ``completions`` are texts or one-message conversations (TRL 1.16)."""
        before, started = getattr(self.rm, "tokens_read", 0), time.perf_counter()
        texts = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
        ids = completion_ids or [[]] * len(texts)
        ended = [bool(row) and row[-1] in self.eos_ids for row in ids]
        finished = ended if self.eos_ids else [True] * len(texts)
        judged = self.read(list(zip(instruction_id, prompts, texts, finished, strict=True)))
        groups, rewards = self._groups(instruction_id), []
        for group in groups:
            rubric = self.rubric(instruction_id[group[0]])
            rewards += self.of_group([judged[i] for i in group], rubric)
        if log_metric:
            log_metric("time/reward", time.perf_counter() - started)
            log_metric("tokens/generated", float(sum(map(len, ids))))
            log_metric("tokens/scored", float(getattr(self.rm, "tokens_read", 0) - before))
            for name, values in self._metrics(judged, rewards, groups, finished).items():
                log_metric(f"veto/{name}", fmean(map(float, values)))
        return rewards

    def _groups(self, instruction_id: Sequence[str]) -> list[range]:
        """Places of the answers of each group; TRL keeps the answers to one prompt together."""
        groups: list[range] = []
        for name, run in groupby(range(len(instruction_id)), instruction_id.__getitem__):
            places = [*run]
            size = self.group or len(places)
            if len(places) % size:
                raise KitError(
                    f"instruction {name}: {len(places)} answers side by side, not {size}: a "
                    "process must hold whole groups; make its batch a multiple of grpo_group"
                )
            groups += [range(first, first + size) for first in places[::size]]
        return groups

    def _metrics(self, judged, rewards, groups, finished) -> dict[str, list]:
        """Name -> one value an answer or a group."""
        return {
            **{key: [getattr(j.scores, key) for j in judged] for key in ("s1", "s2", "s3")},
            "rate": [j.scores.s3 > 0 for j in judged],
            "truncated": [not ended for ended in finished],
            "unscored": [j.unscored for j in judged],
            **{f"reason/{reason}": [reason in j.reasons for j in judged] for reason in REASONS},
            "all_vetoed_groups": [all(judged[i].scores.s3 for i in group) for group in groups],
            "zero_std_groups": [len({rewards[i] for i in group}) == 1 for group in groups],
        }

    def rubric(self, instruction_id: str) -> Rubric:
        if instruction_id not in self.rubrics:
            raise KitError(f"no rubric for instruction {instruction_id}: run 01_rubrics again")
        return self.rubrics[instruction_id]

    def _scores(self, items) -> list[list | None]:
        """Scores of each item, None where there are none; an item that fails spares the rest."""
        texts = [(messages, text, self.rubric(i).criteria) for i, messages, text, _ in items]
        rm = self.rm  # one that cannot be had at all is an error, and no unknown
        try:
            scores = [None if row is None else list(row) for row in rm.score_texts(texts)]
            if len(scores) != len(items):
                raise ValueError(f"{len(scores)} results for {len(items)} answers")
        except Exception as error:  # fails closed whatever it was; training stops if all fail
            self.error = repr(error)
            return [self._scores([item])[0] for item in items] if len(items) > 1 else [None]
        return scores

    def _known(self, score, dimension: str) -> tuple[str, float]:
        """(verdict, 1 - P(met)): unknown, and 1, where the score or its calibration is missing."""
        verdict, unmet = "unknown", 1.0
        try:
            if score is not None and math.isfinite(score):
                calibration = self.calibration or self.rm.calibration
                verdict = "met" if calibration.met(score, dimension) else "not_met"
                if math.isfinite(likely := float(calibration.probability(score, dimension))):
                    unmet = 1 - likely
        except Exception as error:
            self.error = repr(error)
        return verdict, unmet


class VetoReward(RubricReward):
    """The method's reward, in three forms:

    strict   clip(S1 + alpha S2, 0, 1 + beta) - lambda S3 with lambda > 1 + beta: no answer is worth
             more than one with fewer violations;
    clipped  the paper's, which allows lambda = 1 + beta, and there a tie;
    ranked   the place in the group by S3, then S1, then S2, from -1 to 1: the order itself.

    Where a whole group is vetoed, ``all_vetoed`` tells its answers apart (the kit's decision):

    expected  -lambda times the expected number of violations by the calibrated probabilities:
              safety alone, and finer than a count that is the same for all;
    counted   the form's own value: a group of equal counts learns to be better and no safer;
    skipped   nothing: equal rewards, no gradient.

    KitError for a veto that is loose (strict), or below the paper's bound.
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
        **settings,
    ):
        super().__init__(rm, calibration, rubrics, **settings)
        for name, given, known in (("form", form, FORMS), ("all_vetoed", all_vetoed, ALL_VETOED)):
            if given not in known:
                raise KitError(f"veto reward: {name} {given!r}: choose one of {', '.join(known)}")
        self.form, self.all_vetoed = form, all_vetoed
        self.terms = {"alpha": alpha, "beta": beta, "lam": lam}
        self.value(Judged(Scores(0.0, 0, 0), {}))  # refuses a loose veto now, not at step 1

    def value(self, judged: Judged, rubric: Rubric | None = None) -> float:
        """The form's value of one answer; ranked, which needs a group, gives the strict one."""
        of = scoring.clipped_reward if self.form == "clipped" else scoring.gated_reward
        return of(judged.scores, **self.terms)

    def of_group(self, judged: Sequence[Judged], rubric: Rubric | None = None) -> list[float]:
        all_vetoed = all(answer.scores.s3 > 0 for answer in judged)
        if all_vetoed and self.all_vetoed == "skipped":
            return [-self.terms["lam"]] * len(judged)
        if all_vetoed and self.all_vetoed == "expected":
            if self.form != "ranked":
                return [-self.terms["lam"] * answer.expected for answer in judged]
            return scoring.ranks([-answer.expected for answer in judged])
        if self.form == "ranked":
            return scoring.ranks([answer.scores.key for answer in judged])
        return [self.value(answer) for answer in judged]


class ScalarReward(RubricReward):
    """One score of the whole answer; ``squashed``: through the logistic function, into [0, 1]. An
    answer without a score gets less than every scored one of its group."""

    def __init__(self, rm, rubrics, *, squashed=False, **settings):
        super().__init__(rm, None, rubrics, **settings)
        self.squashed = squashed

    def read(self, items) -> list[Judged]:
        judged = []
        for row in self._scores(items):
            value = row[0] if row is not None and len(row) == 1 else None
            value = value if value is not None and math.isfinite(value) else math.nan
            value = 1 / (1 + math.exp(-value)) if self.squashed else value
            judged.append(Judged(Scores(value, 0, 0), {}, unscored=float(math.isnan(value))))
        return judged

    def value(self, judged: Judged, rubric: Rubric | None = None) -> float:
        return judged.scores.s1

    def of_group(self, judged: Sequence[Judged], rubric: Rubric | None = None) -> list[float]:
        values = [answer.scores.s1 for answer in judged]
        worst = min([value for value in values if not math.isnan(value)], default=0.0) - 1.0
        return [worst if math.isnan(value) else value for value in values]

    def _metrics(self, judged, rewards, groups, finished) -> dict[str, list]:
        metrics = super()._metrics(judged, rewards, groups, finished)
        return {key: metrics[key] for key in ("truncated", "unscored", "zero_std_groups")}


def build(profile, rm, calibration, rubrics, eos_ids=()) -> RubricReward:
    """The reward that a profile's ``reward_*`` settings name, by ``reward_rule``:

    veto          the method's gated reward
    no_veto       without the safety veto: lambda = 0
    no_bonus      without the bonus margin: alpha = 0
    scalar        one score of a model without criteria
    rar_explicit  RaR: weighted share of the criteria met
    rar_implicit  RaR: one score of a model that reads the whole rubric
    orbit         ORBIT: signed points, a violation costs some
    """
    common = {"eos_ids": eos_ids, "group": profile.grpo_group}
    alpha, beta, rule = profile.reward_alpha, profile.reward_beta, profile.reward_rule
    if rule in ("veto", "no_bonus"):
        terms = {"alpha": 0.0 if rule == "no_bonus" else alpha, "beta": beta}
        forms = {"form": profile.reward_form, "all_vetoed": profile.reward_all_vetoed}
        lam = profile.reward_lambda
        return VetoReward(rm, calibration, rubrics, **terms, lam=lam, **forms, **common)
    if rule in ("scalar", "rar_implicit"):
        return ScalarReward(rm, rubrics, squashed=rule == "rar_implicit", **common)

    def no_veto(rubric: Rubric, verdicts: Mapping[str, str]) -> float:
        scores = scoring.score(rubric, verdicts)
        return min(max(scores.s1 + alpha * scores.s2, 0.0), 1 + beta)

    aggregate = no_veto if rule == "no_veto" else scoring.RULES[rule]
    return RubricReward(rm, calibration, rubrics, aggregate=aggregate, **common)
