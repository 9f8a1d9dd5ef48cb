"""Reward models r(y | x, c) in use: load one, score an answer criterion by criterion.

    rm = reward_model.load("runs/cpu/reward/criterion")
    rm.score("What may I take, and how much?", "Take two, then rest.", rubric).verdict

``training`` trains them; ``variants`` says what each is shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count, groupby
from operator import itemgetter
from pathlib import Path

import pandas as pd
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from promedical_utils.core.records import Criterion, Instruction, Rubric
from promedical_utils.core.workspace import KitError, read_json, shown, write_json
from promedical_utils.reward_model import hub, packing
from promedical_utils.reward_model.calibration import Calibration
from promedical_utils.reward_model.hub import source_of, tokenizer_of
from promedical_utils.reward_model.variants import CONDITIONAL
from promedical_utils.reward_model.views import read
from promedical_utils.rubric import scoring
from promedical_utils.rubric.preferences import Group

# padded tokens of one forward pass: what a CPU's caches like, and what fills a GPU
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
SAMPLE, AGREES = 16, 0.995  # groups read in both precisions, and the least share of pairs alike


@dataclass(frozen=True)
class Scored:
    """One response against one rubric; dicts are by criterion id, in the rubric's order."""

    rewards: Mapping[str, float]  # raw scores
    probabilities: Mapping[str, float]  # calibrated P(met)
    met: Mapping[str, bool]  # by P(met), on safety by the veto threshold
    s1: float
    s2: float
    s3: float
    verdict: str  # "vetoed" where s3 > 0, else "accepted"
    violated: tuple[str, ...]  # the criteria that vetoed it
    cut: Mapping[str, int]  # tokens that shortening took from instruction and response, if any


@dataclass
class RewardModel:
    """A trained reward model; ``max_tokens`` is what it takes for prompt, response, criterion."""

    model: torch.nn.Module
    tokenizer: object
    view: str
    max_tokens: int
    report: dict
    calibration: Calibration | None = None
    tokens_read: int = 0  # so far, of all sequences scored
    computes: torch.dtype = torch.float32  # bf16 on fp32 weights: under autocast

    def score(
        self,
        instruction: Instruction | str | Sequence[Mapping[str, str]],
        response: str,
        rubric: Rubric,
        *,
        shorten: bool = False,
    ) -> Scored:
        """One response, judged; ``instruction``: a record, a user's message, or messages with role
        and content. What is too long is cut by ``packing.fit`` with ``shorten``, else a KitError,
        as are a scalar and an uncalibrated model."""
        if self.view not in CONDITIONAL:
            raise KitError(f"view {self.view} gives one score for a whole answer: use score_texts")
        if self.calibration is None:
            raise KitError(
                "this reward model has no calibration.json, so its scores have no zero: fit one "
                "(calibration.fit, then save it in the model's folder), or use score_texts"
            )
        if isinstance(instruction, str):
            instruction = [{"role": "user", "content": instruction}]
        elif isinstance(instruction, Instruction):
            instruction = [message.model_dump() for message in instruction.messages]
        case = (instruction, [response], rubric.criteria)
        [[values]], [[cut]] = self._scores([case], [["the response"]], None, shorten)
        ids, dimensions = [c.id for c in rubric.criteria], [c.dimension for c in rubric.criteria]
        likely = self.calibration.probability(values, dimensions).tolist()
        met = dict(zip(ids, self.calibration.met(values, dimensions).tolist(), strict=True))
        total = scoring.score(rubric, {c: "met" if yes else "not_met" for c, yes in met.items()})
        violated = [c.id for c in rubric.criteria if c.dimension == "safety" and not met[c.id]]
        return Scored(
            rewards=dict(zip(ids, values, strict=True)),
            probabilities=dict(zip(ids, likely, strict=True)),
            met=met,
            s1=total.s1,
            s2=total.s2,
            s3=total.s3,
            verdict="vetoed" if total.s3 else "accepted",
            violated=tuple(violated),
            cut=cut,
        )

    def score_groups(
        self, groups: Sequence[Group], batch_tokens: int | None = None, shorten: bool = False
    ) -> pd.DataFrame:
        """A row a score, in the order of groups, candidates, criteria: instruction_id,
        candidate_id, criterion_id ("" if scalar), score. A batch holds ``batch_tokens`` padded
        tokens (default: ``BATCH_TOKENS``). Too long is as in ``score``: column ``cut`` has the
        tokens that went."""
        cases = [(g.messages, [a.text for a in g.candidates], g.criteria) for g in groups]
        names = [[f"candidate {a.id}" for a in g.candidates] for g in groups]
        scores, cuts = self._scores(cases, names, batch_tokens, shorten)
        rows = []
        for group, values, cut in zip(groups, scores, cuts, strict=True):
            ids = [c.id for c in group.criteria] if self.view in CONDITIONAL else [""]
            for answer, own, lost in zip(group.candidates, values, cut, strict=True):
                for id_, value in zip(ids, own, strict=True):
                    rows.append((group.instruction.id, answer.id, id_, value, sum(lost.values())))
        columns = ["instruction_id", "candidate_id", "criterion_id", "score", "cut"]
        frame = pd.DataFrame(rows, columns=columns)
        return frame if shorten else frame.drop(columns="cut")

    def score_texts(
        self, items: Sequence[tuple[list[dict], str, Sequence[Criterion]]]
    ) -> list[list[float]]:
        """Raw scores of (messages, response, criteria) items: K long each, or 1 if scalar or of
        view rubric, which reads the criteria in the order given. Items side by side that differ in
        their responses alone are read together."""
        runs = [list(run) for _, run in groupby(items, key=itemgetter(0, 2))]
        cases = [(run[0][0], [text for _, text, _ in run], run[0][2]) for run in runs]
        number = count()
        names = [[f"response {next(number)}" for _ in run] for run in runs]
        return [values for case in self._scores(cases, names, None, False)[0] for values in case]

    def merged(self) -> "RewardModel":
        """This model, its adapter now in the weights, all in fp32: the same scores to rounding, and
        on a CPU, which unpacks 4-bit weights anew for every pass, about twice as fast."""
        if isinstance(self.model, PeftModel) and self.model.dtype == torch.float32:
            merge(self.model)
        return self

    def _scores(self, cases, names, batch_tokens, shorten):
        """(scores, tokens cut), each by case and response: a list of K scores, a dict."""
        batch_tokens = batch_tokens or BATCH_TOKENS.get(self.model.device.type, 8192)
        room = 2 * batch_tokens if self.report.get("share_prompt", True) else 0
        choices = {"heads": self.report.get("heads"), "shorten": shorten, "room": room}
        readings = read(self.tokenizer, cases, self.view, self.max_tokens, **choices)
        tail = "all criteria" if self.view == "rubric" else "criterion"
        for reading, name in zip(readings, names, strict=True):
            for n, tokens in reading.too_long.items():
                raise KitError(
                    f"{name[n]}: {tokens} tokens with prompt and {tail}; the limit is "
                    f"{self.max_tokens}: shorten=True, or raise rm_max_tokens and train again"
                )
        sequences = [s for reading in readings for s in reading.sequences]
        self.tokens_read += sum(len(s.ids) for s in sequences)
        rounds = self.computes != self.model.dtype
        with torch.autocast(self.model.device.type, self.computes, enabled=rounds):
            pad = self.tokenizer.pad_token_id
            values = packing.scores(self.model, sequences, pad, batch_tokens)
        flat, scores, cuts = chain.from_iterable(values), [], []
        for reading, (_, responses, criteria) in zip(readings, cases, strict=True):
            columns = len(criteria) if self.view in CONDITIONAL else 1
            reads = [[[] for _ in range(columns)] for _ in responses]
            for n, c in reading.reads:
                reads[n][c or 0].append(next(flat))
            scores.append([[sum(cell) / len(cell) for cell in row] for row in reads])
            cuts.append([reading.cut.get(n, {}) for n in range(len(responses))])
        return scores, cuts


def merge(model: PeftModel) -> None:
    """Merge an fp32 model's adapter into its weights, in place; 4-bit ones are unpacked."""
    for layer in [m for m in model.modules() if isinstance(m, LoraLayer)]:
        held = layer.base_layer
        if isinstance(held, Linear4bit):
            plain = torch.nn.Linear(held.in_features, held.out_features, held.bias is not None)
            weight = dequantize_4bit(held.weight.data, held.weight.quant_state).float()
            plain.weight, plain.bias = torch.nn.Parameter(weight, requires_grad=False), held.bias
            layer.base_layer = plain
        layer.base_layer.weight.data += layer.get_delta_weight("default")
        layer.merged_adapters.append("default")


def scored_in(report: Mapping) -> torch.dtype:
    """What a reward model scores in: what ``check_rounding`` found good enough, else what its
    weights are held in."""
    return getattr(torch, report.get("rounding", {}).get("scored_in", report["dtype"]))


def load(path: Path | str, dtype: torch.dtype | None = None) -> RewardModel:
    """The reward model that was trained into ``path``, calibrated if it has been; ``dtype``: what
    to score in, in place of what its report says. KitError without a report or on another base."""
    path = Path(path)
    report = read_json(path / "report.json", "03_reward_model")
    computes, source, outputs = dtype or scored_in(report), report["base"], len(report["heads"])
    dtype = torch.float32 if computes == torch.float32 else getattr(torch, report["dtype"])
    if report["full"]:
        model = base_for(path, False, dtype, outputs)
    else:
        base = source.get("hub") or (path / source["folder"]).resolve()
        if source_of(base, path) != source:
            raise KitError(f"the base of {shown(path)} has changed: run 03_reward_model again")
        model = base_for(base, report["quantization"] == "nf4", dtype, outputs)
        model = PeftModel.from_pretrained(model, path)
    model.config.pad_token_id = tokenizer_of(path).pad_token_id  # an adapter saves no config
    return of_report(model.eval(), path, report, computes)


def check_rounding(path: Path, groups: Sequence[Group]) -> dict:
    """The report in ``path``; of a model trained in half precision with ``rounding``, found once.

    Of ``SAMPLE`` held-out groups: ``median`` and ``largest`` difference of scores from fp32's,
    ``ties``, a share of the pairs of answers on a criterion, and of the ``pairs`` that fp32 puts
    further apart than twice the median the share in the same order, ``alike``. Where that is below
    ``AGREES``, or there is none, ``scored_in`` is float32, which ``load`` obeys.
    """
    report = read_json(path / "report.json", "03_reward_model")
    half = getattr(torch, report.get("trained_in", "float32"))
    if half == torch.float32 or "rounding" in report:
        return report
    found: dict = {"pairs": 0, "scored_in": "float32"}
    if some := groups[:: -(-len(groups) // SAMPLE) or 1]:
        exact, rounded = (
            load(path, d).score_groups(some, shorten=True) for d in (torch.float32, half)
        )
        scores = exact.assign(half=rounded.score)
        gap = (scores.score - scores.half).abs()
        pairs = scores.merge(scores, on=["instruction_id", "criterion_id"], suffixes=("", "_b"))
        pairs = pairs[pairs.candidate_id < pairs.candidate_id_b]
        far, near = pairs.score - pairs.score_b, pairs.half - pairs.half_b
        same = (far * near > 0)[far.abs() > 2 * gap.median()]
        found |= {"scores": len(scores), "pairs": len(same)}
        values = {"median": gap.median(), "largest": gap.max(), "ties": (near == 0).mean()}
        values["alike"] = same.mean()
        found |= {k: round(float(v), 6) for k, v in values.items() if v == v}  # no NaN
        if found.get("alike", 0) >= AGREES:
            found["scored_in"] = report["trained_in"]
    report["rounding"] = found
    write_json(path / "report.json", report)
    return report


def of_report(
    model: torch.nn.Module, path: Path, report: dict, computes: torch.dtype | None = None
) -> RewardModel:
    """``model``, as ``path`` has it, with the tokenizer and the calibration beside it."""
    fitted = path / "calibration.json"
    calibration = Calibration.load(fitted) if fitted.exists() else None
    known = (tokenizer_of(path), report["view"], report["max_tokens"], report, calibration)
    return RewardModel(model, *known, computes=computes or model.dtype)


def base_for(base: Path | str, nf4: bool, dtype: torch.dtype, outputs: int = 1):
    """A base with a score head of ``outputs``, as ``packing.read_many`` makes it."""
    model = hub.load(hub.CLASSIFIER, base, dtype, nf4, num_labels=max(1, outputs))
    model.config.num_labels = 1  # TRL refuses more; ``reads`` picks one for each score
    return packing.read_many(model)
