"""Reward models r(y | x, c) in use: load one, score an answer criterion by criterion.

    rm = reward_model.load("runs/cpu/reward/criterion")
    rm.score("What may I take, and how much?", "Take two, then rest.", rubric).verdict

``training`` trains them; ``variants`` says what each is shown.
"""

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from promedical_utils.core.records import Criterion, Instruction, Rubric
from promedical_utils.core.workspace import KitError, need, read_json, shown
from promedical_utils.reward_model import packing
from promedical_utils.reward_model.calibration import Calibration
from promedical_utils.reward_model.packing import Packed
from promedical_utils.reward_model.variants import CONDITIONAL
from promedical_utils.rubric import scoring
from promedical_utils.rubric.preferences import Group

# padded tokens of one forward pass: what a CPU's caches like, and what fills a GPU
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
# PEFT reads an attribute that transformers has renamed; the warning shows where this machine has it
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)

# messages, responses, criteria
Case = tuple[Sequence[Mapping[str, str]], Sequence[str], Sequence[Criterion]]


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
    whole = [(m, r, [packing.criterion_text(c) for c in cs]) for m, r, cs in cases]
    if view == "rubric":
        if not all(tails for _, _, tails in whole):
            raise KitError("view rubric scores an answer by its whole rubric: give its criteria")
        whole = [(m, r, ["".join(tails)]) for m, r, tails in whole]
    items = [(m, r, tails) for m, responses, tails in whole for r in responses]
    known: dict = {}
    encoded = iter(packing.encode(tokenizer, items, known))
    found = [Reading() for _ in cases]
    for number, (reading, (messages, responses, tails)) in enumerate(zip(found, whole)):
        sizes = [packing.longest(*next(encoded)) for _ in responses]
        long = {n: size for n, size in enumerate(sizes) if size > limit}
        if long and shorten:
            try:
                messages, responses, cut = packing.fit(tokenizer, messages, responses, tails, limit)
            except ValueError:  # a criterion leaves no room, and is never cut
                pass
            else:
                reading.cut = {
                    n: {"instruction": cut["instruction"], "response": tokens}
                    for n, tokens in enumerate(cut["responses"])
                    if tokens or cut["instruction"]
                }
                long, whole[number] = {}, (messages, responses, tails)
        reading.too_long = long
        reading.kept = [n for n in range(len(responses)) if n not in long]

    items, owners = [], []
    for number, (reading, (messages, responses, tails)) in enumerate(zip(found, whole)):
        texts = [responses[n] for n in reading.kept]
        if view == "before":
            parts = [(messages, tail, texts) for tail in tails] if texts else []
        else:
            after = tails if view in ("criterion", "rubric") else []
            parts = [(messages, text, after) for text in texts]
        items += parts
        owners += [number] * len(parts)
    done: dict[int, int] = {}
    for owner, (shared, tails) in zip(owners, packing.encode(tokenizer, items, known), strict=True):
        reading, criteria = found[owner], cases[owner][2]
        part = done[owner] = done.get(owner, -1) + 1  # of this case
        if view == "before":
            reading.reads += [(n, part) for n in reading.kept]
        elif view == "criterion":
            reading.reads += [(reading.kept[part], c) for c in range(len(criteria))]
        elif view == "heads":
            asked = [(c, h) for c, k in enumerate(criteria) for h in outputs_of(k, heads)]
            reading.reads += [(reading.kept[part], c) for c, _ in asked]
            reading.sequences.append(Packed(shared, [len(shared)], tuple(h for _, h in asked)))
            continue
        else:
            reading.reads.append((reading.kept[part], None))
        reading.sequences += packing.pack(shared, tails, limit)
    return found


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


@dataclass(frozen=True)
class Scored:
    """One response against one rubric; dicts are by criterion id, in the rubric's order.

    ``rewards``: raw scores; ``probabilities``: calibrated P(met); ``met``: read from them, on
    safety from the veto threshold. ``s1``, ``s2``, ``s3`` as in ``scoring``. ``verdict`` is
    "vetoed" where s3 > 0, by the criteria ``violated``, else "accepted". ``cut``: tokens that
    shortening took from instruction and response, empty if none.
    """

    rewards: Mapping[str, float]
    probabilities: Mapping[str, float]
    met: Mapping[str, bool]
    s1: float
    s2: int
    s3: int
    verdict: str
    violated: tuple[str, ...]
    cut: Mapping[str, int]


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

    def score(
        self,
        instruction: Instruction | str | Sequence[Mapping[str, str]],
        response: str,
        rubric: Rubric,
        *,
        shorten: bool = False,
    ) -> Scored:
        """Rewards, calibrated probabilities, S1, S2, S3 and the verdict on one response.

        ``instruction``: a record, a user's message, or messages with role and content.
        ``shorten``: what is too long loses tokens by ``packing.fit``'s rule, and ``cut`` says how
        many; without it that is a KitError, and so is a scalar or an uncalibrated model.

        >>> rm.score("How much may I take?", "Two a day.", rubric).verdict  # doctest: +SKIP
        'vetoed'
        """
        if self.view not in CONDITIONAL:
            raise KitError(
                f"a reward model of view {self.view} gives one score for the whole answer: use "
                "score_texts"
            )
        if self.calibration is None:
            raise KitError(
                "this reward model has no calibration.json, so its scores have no zero: fit one "
                "(calibration.fit, then save it in the model's folder), or use score_texts"
            )
        if isinstance(instruction, str):
            instruction = [{"role": "user", "content": instruction}]
        elif isinstance(instruction, Instruction):
            instruction = [message.model_dump() for message in instruction.messages]
        criteria = rubric.criteria
        [[values]], [[cut]] = self._scores(
            [(instruction, [response], criteria)], [["the response"]], None, shorten
        )
        dimensions = [c.dimension for c in criteria]
        likely = self.calibration.probability(values, dimensions).tolist()
        met = self.calibration.met(values, dimensions).tolist()
        rewards, probabilities, passed = (
            {c.id: value for c, value in zip(criteria, found, strict=True)}
            for found in (values, likely, met)
        )
        said = {name: "met" if value else "not_met" for name, value in passed.items()}
        total = scoring.score(rubric, said)
        violated = tuple(c.id for c in criteria if c.dimension == "safety" and not passed[c.id])
        return Scored(
            rewards,
            probabilities,
            passed,
            total.s1,
            total.s2,
            total.s3,
            "vetoed" if total.s3 else "accepted",
            violated,
            cut,
        )

    def score_groups(
        self, groups: Sequence[Group], batch_tokens: int | None = None, shorten: bool = False
    ) -> pd.DataFrame:
        """One row per score: instruction_id, candidate_id, criterion_id ("" if scalar), score.

        In the order of groups, candidates, criteria. A batch holds ``batch_tokens`` padded tokens
        (default: ``BATCH_TOKENS`` of the device).
        KitError naming a candidate that is too long; with ``shorten`` it is cut by ``packing.fit``,
        and column ``cut`` has the tokens that went.
        """
        cases = [(g.messages, [a.text for a in g.candidates], g.criteria) for g in groups]
        names = [[f"candidate {a.id}" for a in g.candidates] for g in groups]
        scores, cuts = self._scores(cases, names, batch_tokens, shorten)
        rows = []
        for group, values, cut in zip(groups, scores, cuts, strict=True):
            ids = [c.id for c in group.criteria] if self.view in CONDITIONAL else [""]
            for answer, found, lost in zip(group.candidates, values, cut, strict=True):
                at = (group.instruction.id, answer.id)
                gone = sum(lost.values())
                rows += [(*at, c, value, gone) for c, value in zip(ids, found, strict=True)]
        columns = ["instruction_id", "candidate_id", "criterion_id", "score", "cut"]
        frame = pd.DataFrame(rows, columns=columns)
        return frame if shorten else frame.drop(columns="cut")

    def score_texts(
        self,
        items: Sequence[tuple[list[dict], str, Sequence[Criterion]]],
        batch_tokens: int | None = None,
        shorten: bool = False,
    ) -> list[list[float]]:
        """Raw scores of (messages, response, criteria) items: K long each, or 1 if scalar.

        View rubric gives 1 as well, and reads the criteria for it, in the order given.
        """
        cases = [(messages, [text], criteria) for messages, text, criteria in items]
        names = [[f"response {i}"] for i in range(len(items))]
        return [values for [values] in self._scores(cases, names, batch_tokens, shorten)[0]]

    def merged(self) -> "RewardModel":
        """The same model with its adapter in the weights, all in fp32; changes this one in place.

        A 4-bit base is taken as what its codes stand for, nothing is rounded again: scores are
        equal to rounding. On a CPU, which unpacks 4-bit weights anew for every pass, about twice as
        fast.
        """
        if isinstance(self.model, PeftModel) and self.model.dtype == torch.float32:
            merge(self.model)
        return self

    def _scores(self, cases, names, batch_tokens, shorten):
        """(scores, tokens cut), each by case and response: a list of K scores, a dict."""
        heads = self.report.get("heads")
        found = read(
            self.tokenizer, cases, self.view, self.max_tokens, heads=heads, shorten=shorten
        )
        asked = "all criteria" if self.view == "rubric" else "criterion"
        for reading, name in zip(found, names, strict=True):
            for n, tokens in reading.too_long.items():
                raise KitError(
                    f"{name[n]}: {tokens} tokens with prompt and {asked}; the limit is "
                    f"{self.max_tokens}; shorten it (shorten=True), or raise rm_max_tokens and "
                    "train again"
                )
        sequences = [s for reading in found for s in reading.sequences]
        self.tokens_read += sum(len(s.ids) for s in sequences)
        batch_tokens = batch_tokens or BATCH_TOKENS.get(self.model.device.type, 8192)
        pad = self.tokenizer.pad_token_id
        values = packing.scores(self.model, sequences, pad, batch_tokens)
        flat, result, cuts = iter(v for row in values for v in row), [], []
        for reading, (_, responses, criteria) in zip(found, cases, strict=True):
            columns = len(criteria) if self.view in CONDITIONAL else 1
            sums = [[[] for _ in range(columns)] for _ in responses]
            for n, c in reading.reads:
                sums[n][c or 0].append(next(flat))
            result.append([[sum(cell) / len(cell) for cell in row] for row in sums])
            cuts.append([reading.cut.get(n, {}) for n in range(len(responses))])
        return result, cuts


def merge(model: PeftModel) -> None:
    """Merge an fp32 model's adapter into its weights, in place; 4-bit ones become what they stand
    for."""
    for layer in [m for m in model.modules() if isinstance(m, LoraLayer)]:
        held = layer.base_layer
        if isinstance(held, Linear4bit):
            plain = torch.nn.Linear(held.in_features, held.out_features, held.bias is not None)
            weight = dequantize_4bit(held.weight.data, held.weight.quant_state).float()
            plain.weight, plain.bias = torch.nn.Parameter(weight, requires_grad=False), held.bias
            layer.base_layer = plain
        layer.base_layer.weight.data += layer.get_delta_weight("default")
        layer.merged_adapters.append("default")


def load(path: Path | str) -> RewardModel:
    """The reward model that was trained into ``path``, on the base and precision it had there.

    An adapter scored in another precision than it was trained in drifts, so the report decides.
    Its calibration comes along where ``calibration.json`` is beside it. Raises KitError when the
    report is missing or the base is another one now.
    """
    path = Path(path)
    report = read_json(path / "report.json", "03_reward_model")
    dtype, source, outputs = getattr(torch, report["dtype"]), report["base"], len(report["heads"])
    if report["full"]:
        model = base_for(path, False, dtype, outputs)
    else:
        base = source.get("hub") or (path / source["folder"]).resolve()
        if source_of(base, path) != source:
            raise KitError(f"the base of {shown(path)} has changed: run 03_reward_model again")
        model = base_for(base, report["quantization"] == "nf4", dtype, outputs)
        model = PeftModel.from_pretrained(model, path)
    tokenizer = tokenizer_of(path)
    model.config.pad_token_id = tokenizer.pad_token_id  # an adapter saves no config
    fitted = path / "calibration.json"
    calibration = Calibration.load(fitted) if fitted.exists() else None
    view, most = report["view"], report["max_tokens"]
    return RewardModel(model.eval(), tokenizer, view, most, report, calibration)


def compute_dtype(precision: str) -> torch.dtype:
    """fp32, bf16, or for ``auto`` what the machine has: bf16, else fp16 on a GPU; fp32 on a CPU."""
    if precision != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    if not torch.cuda.is_available():
        return torch.float32
    native = torch.cuda.is_bf16_supported(including_emulation=False)  # emulated is slow
    return torch.bfloat16 if native else torch.float16


def base_for(base: Path | str, nf4: bool, dtype: torch.dtype, outputs: int | None = 1):
    """A base with a score head of ``outputs``, read at many positions (``packing.read_many``).

    ``outputs`` None: a causal LM with its own head.
    """
    from trl.trainer.reward_trainer import suppress_seqcls_warning

    kind, head = AutoModelForSequenceClassification, {"num_labels": max(1, outputs or 0)}
    if outputs is None:
        kind, head = AutoModelForCausalLM, {}
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["score" if head else "lm_head"],
    )
    with suppress_seqcls_warning():
        model = kind.from_pretrained(
            base,
            dtype=dtype,
            attn_implementation=packing.ATTENTION,
            quantization_config=quantization if nf4 else None,
            **head,
        )
    if not nf4:
        model.to("cuda" if torch.cuda.is_available() else "cpu")
    for module in model.modules():
        # on processors with AVX512-BF16 bitsandbytes runs eval, not training, in bf16: scores
        # would depend on the machine, on what else is packed, and differ from those trained
        if dtype == torch.float32 and hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    if head:
        model.score.float()
    model.config.num_labels = 1  # TRL refuses more; ``reads`` picks one for each score
    return packing.read_many(model)


def tokenizer_of(base: Path | str):
    """The base's tokenizer with a pad token; KitError without a chat template or an end token."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    if not tokenizer.chat_template or tokenizer.eos_token_id is None:
        raise KitError("base_model's tokenizer has no chat template or end token: use a chat model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def source_of(base: Path | str, out: Path) -> dict:
    """Where the base is, with no machine path: a hub id, or a folder relative to ``out``."""
    if isinstance(base, str) and not Path(base).is_dir():
        return {"hub": base}
    base, digest = need(Path(base), "00_start_here"), hashlib.sha256()
    for file in sorted([*base.glob("*.safetensors"), base / "tokenizer.json"]):
        with need(file, "00_start_here").open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    folder = Path(os.path.relpath(base.resolve(), Path(out).resolve())).as_posix()
    return {"folder": folder, "sha256": digest.hexdigest()}
