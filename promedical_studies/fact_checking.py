"""Fact checking as MedFact does it (arXiv 2509.12440): is a text wrong, and where?

A checker gives every sentence a suspicion; a text is called wrong where the largest reaches a
threshold, at that sentence. EL F1 <= VC F1 is arithmetic, for a located error is a caught one.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from sklearn.metrics import balanced_accuracy_score

from promedical_studies.statements import PLAN, Text, leaflet, slot_of
from promedical_utils.clinic.vocabulary import read
from promedical_utils.clinic.world import Patient
from promedical_utils.core.estimates import Estimates
from promedical_utils.core.records import Candidate, Criterion, Instruction, Message
from promedical_utils.core.workspace import KitError
from promedical_utils.data.endpoints import Endpoint, Request
from promedical_utils.data.roles import Reply
from promedical_utils.evaluation.retrieval import Index
from promedical_utils.evaluation.scorers import controls
from promedical_utils.paper import claims
from promedical_utils.paper.evidence import Evidence
from promedical_utils.report import tables
from promedical_utils.rubric.preferences import Group
from promedical_utils.studies.contrasts import Counted

READS = ("promedical_studies/medfact",)
KEY = ("checker", "seed", "metric", "slice", "against")  # as ``contrasts.Counted`` wants it
METRICS = "vc_precision vc_recall vc_f1 el_precision el_recall el_f1 located over_criticism".split()
Scores = list[np.ndarray]  # of each text, the suspicion of every sentence
Shown = Sequence[Sequence[str]]  # of each text, the lines of evidence beside it


def threshold(scores: Scores, texts: Sequence[Text], by: Callable = balanced_accuracy_score):
    """From which suspicion on texts are best called wrong: by balanced accuracy (kit's decision);
    of equally good ones the largest. KitError unless there are correct and wrong texts."""
    wrong, top = [text.wrong is not None for text in texts], np.array([s.max() for s in scores])
    if len({*wrong}) < 2:
        raise KitError("threshold: it is chosen on correct and wrong texts, here is one kind alone")
    return max([np.inf, *sorted(top, reverse=True)], key=lambda least: by(wrong, top >= least))


def called(scores: Scores, least: float) -> pd.DataFrame:
    """A row a text: flagged (1 or 0), place (the first sentence with the largest suspicion)."""
    rows = [(float(own.max() >= least), int(own.argmax())) for own in scores]
    return pd.DataFrame(rows, columns=["flagged", "place"])


def always(texts: Sequence[Text]) -> pd.DataFrame:
    """Every text is wrong, in its last sentence: what a checker must be better than."""
    return pd.DataFrame({"flagged": 1.0, "place": [len(t.sentences) - 1 for t in texts]})


def voted(calls: Sequence[pd.DataFrame], least: int) -> pd.DataFrame:
    """Looks or checkers together: wrong is what ``least`` of them call wrong, at the place that
    most of those name, of several the first; unanswered is what none of them answered."""
    flagged, place = (np.stack([own[c] for own in calls], 1) for c in ("flagged", "place"))
    named = [list(own[yes == 1]) for own, yes in zip(place, flagged, strict=True)]
    made = np.where(np.isnan(flagged).all(1), np.nan, (flagged == 1).sum(1) >= least)
    places = [max(own, key=own.count, default=-1) for own in named]
    return pd.DataFrame({"flagged": made, "place": places})


def counted(texts: Sequence[Text], calls: Mapping[str, pd.DataFrame], strict=False) -> Estimates:
    """Sums of ``METRICS`` and of unanswered texts by checker, of all texts and by kind of error.

    ``located``: share of the caught errors; ``over_criticism``: of the correct texts that are
    called wrong. An unanswered text is not flagged. A wrong place is a miss of localisation (D2),
    with ``strict`` a false alarm, too (D1): the notes on MedFact do not say which.
    """
    samples = pd.DataFrame({"condition": [text.condition for text in texts]})
    gold = np.array([-1 if text.wrong is None else text.wrong for text in texts])
    wrong, kinds = (gold >= 0).astype(float), np.array([text.kind for text in texts])
    parts = {"all": np.ones(len(texts))} | {k: (kinds == k) * 1.0 for k in {*kinds} - {""}}
    columns: dict[tuple, tuple] = {}
    for name, own in calls.items():
        if len(own) != len(texts):
            raise KitError(f"{name}: {len(own)} calls on {len(texts)} texts; one is needed of each")
        flagged = own.flagged.fillna(0).to_numpy(float)
        caught, false = flagged * wrong, flagged * (1 - wrong)
        located = caught * (own.place.to_numpy() == gold)
        placed = flagged if strict else located + false
        ratios = [(caught, flagged), (caught, wrong), (2 * caught, flagged + wrong)]
        ratios += [(located, placed), (located, wrong), (2 * located, placed + wrong)]
        ratios += [(located, caught), (false, 1 - wrong), (own.flagged.isna(), parts["all"])]
        for metric, sums in zip((*METRICS, "unanswered"), ratios, strict=True):
            for part, mask in sorted(parts.items()):
                columns[name, "", metric, part, "truth"] = tuple(mask * side for side in sums)
    hits, counts = (np.stack(side, axis=1) for side in zip(*columns.values(), strict=True))
    return Estimates(samples, KEY, list(columns), hits, counts)


def evidence(texts: Sequence[Text], book: Mapping[str, Patient], setting: str, look: int = 0):
    """Lines of the handbook beside each text, at every ``look`` in another order: "none", its
    "leaflet", the best k by its words ("top_3"), or "off_topic": as many lines as the leaflet has
    of other conditions, of the same organ where there are some."""
    lines = {condition: leaflet(patient) for condition, patient in book.items()}
    shown = [lines[text.condition] if setting == "leaflet" else [] for text in texts]
    if setting.startswith("top_"):
        documents = {f"{n:06}": line for n, line in enumerate(chain(*lines.values()))}
        queries = [" ".join((text.condition, *text.sentences)) for text in texts]
        found = Index(documents).search(queries, int(setting.removeprefix("top_")))
        shown = [[documents[id_] for id_ in ids] for ids in found]
    elif setting == "off_topic":
        for n, (own, organ) in enumerate((t.condition, book[t.condition].organ) for t in texts):
            others = [condition for condition in book if condition != own]
            others.sort(key=lambda condition: book[condition].organ != organ)
            shown[n] = [*chain(*(lines[condition] for condition in others))][: len(lines[own])]
    elif setting not in ("none", "leaflet"):
        raise KitError(f"evidence {setting!r}: choose none, leaflet, top_<k> or off_topic")
    pairs = zip(texts, shown, strict=True)
    return [random.Random(f"{text.id} {look}").sample(own, len(own)) for text, own in pairs]


def asked_of(text: Text, lines: Sequence[str]) -> list[dict]:
    """The conversation to which a text is the answer: its condition, and the evidence."""
    question = "\n".join([f"What should be known of {text.condition}?", *lines])
    return [{"role": "user", "content": question}]


def claim_groups(texts: Sequence[Text], shown: Shown, left_out: Sequence[str] = ()) -> list[Group]:
    """A group a text: its sentences are the answers, each a claim, true or not by the evidence;
    without those on the slots ``left_out``. Checkers learn of them as reward models do."""
    about = {"category": "claims", "specialty": "clinic", "source": "clinic", "difficulty": 0}
    groups = []
    for text, lines in zip(texts, shown, strict=True):
        messages = [Message(**turn) for turn in asked_of(text, lines)]
        asked = Instruction(id=text.id, messages=messages, **about)
        criterion = Criterion(id="true", dimension="excellence", weight=0.0, text=PLAN["claim"])
        answers, verdicts = [], {}
        for n, sentence in enumerate(text.sentences):
            if slot_of(sentence) not in left_out:
                own = {"id": f"{text.id}-{n}", "instruction_id": text.id, "text": sentence}
                answers.append(Candidate(generator="statements", **own))
                verdicts[own["id"], "true"] = "not_met" if n == text.wrong else "met"
        groups.append(Group(asked, (criterion,), tuple(answers), verdicts))
    return groups


def by_text(values: Sequence[float], texts: Sequence[Text]) -> Scores:
    """Values of all sentences of the texts, in their order, as ``Scores``."""
    return np.split(np.asarray(values, float), np.cumsum([len(t.sentences) for t in texts])[:-1])


def words(train: Sequence[Group], calibration: Sequence[Group], groups: Sequence[Group], seed: int):
    """P(not true) of every sentence of the ``groups`` by a logistic regression on their words, each
    with whether the evidence has it; learned as the controls of the bench are."""
    parts = [*train, *calibration, *groups]
    known = {g.instruction.id: {*g.messages[-1]["content"].lower().split()} for g in parts}

    def found(answer: Candidate, _: Criterion) -> dict[str, float]:
        said = answer.text.lower().split()
        return {f"{w} {w in known[answer.instruction_id]}": 1.0 for w in said}

    learned = controls.learned("words", found, train, calibration, groups, seed)
    return 1 - learned.probability.to_numpy(float)


def surprisal(model, tokenizer, texts: Sequence[Text], shown: Shown) -> Scores:
    """A language model's largest gap, log p(likeliest) - log p(said), over a sentence's tokens;
    KitError where a text is longer than what the model reads."""
    import torch  # slow to load, and tables do without

    from promedical_utils.reward_model import packing

    scores, most = [], model.config.max_position_embeddings
    for text, lines in zip(texts, shown, strict=True):
        prompt = packing.prompt_ids(tokenizer, asked_of(text, lines))
        said = tokenizer([f"{s} " for s in text.sentences], add_special_tokens=False)["input_ids"]
        ids, ends = [*chain(*said)], np.cumsum([0, *map(len, said)])
        if len(prompt) + len(ids) > most:
            raise KitError(
                f"text {text.id}: over {most} tokens, what the base reads, with evidence"
            )
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids], device=model.device)).logits[0]
        logits = logits[len(prompt) - 1 : -1].float().cpu()
        gaps = logits.max(-1).values - logits.gather(1, torch.tensor(ids)[:, None])[:, 0]
        scores.append(np.array([float(gaps[a:b].max()) for a, b in pairwise(ends)]))
    return scores


def by_rubric(rm, texts: Sequence[Text], messages: Sequence, rubrics: Sequence) -> Scores:
    """1 - P(met) of a calibrated reward model, of each sentence by the criteria of the text's
    ``rubrics`` on what it speaks of; 0 where none asks for that."""
    said = [" ".join(text.sentences) for text in texts]
    values = rm.score_texts(list(zip(messages, said, rubrics, strict=True)))
    scores = []
    for text, criteria, own in zip(texts, rubrics, values, strict=True):
        met = rm.calibration.probability(own, [c.dimension for c in criteria])
        slots = [read("criteria")[c.kind]["slots"] for c in criteria]
        of = [[m for m, some in zip(met, slots) if slot_of(s) in some] for s in text.sentences]
        scores.append(np.array([1 - min(likely, default=1.0) for likely in of]))
    return scores


class Checked(Reply):
    reason: str
    verdict: Literal["correct", "wrong"]
    sentence: int


def asked(endpoint: Endpoint, prompt: str, texts: Sequence[Text], shown: Shown) -> pd.DataFrame:
    """Calls of a model behind an endpoint, by a prompt of plan.yaml. Who names a sentence of a
    correct text, or none of a wrong one, is asked again; unanswered in the end is NaN."""

    def read_reply(n: int, reply: Checked) -> tuple[float, int]:
        allowed = range(1, len(texts[n].sentences) + 1) if reply.verdict == "wrong" else [0]
        if reply.sentence not in allowed:
            raise ValueError(f"sentence {reply.sentence} in a text that is {reply.verdict}")
        return float(reply.verdict == "wrong"), reply.sentence - 1

    requests = []
    for text, lines in zip(texts, shown, strict=True):
        numbered = [f"{n}. {sentence}" for n, sentence in enumerate(text.sentences, 1)]
        content = "\n".join(["Evidence:", *(lines or ["none"]), "", "Text:", *numbered])
        turns = {"system": PLAN["prompts"][prompt], "user": content}.items()
        requests.append(Request(tuple({"role": r, "content": c} for r, c in turns), Checked))
    answers = endpoint.ask(requests, read_reply)
    return pd.DataFrame([a.value or (np.nan, -1) for a in answers], columns=["flagged", "place"])


def build_table(table: pd.DataFrame, labels: Mapping[str, str]) -> pd.DataFrame:
    """Reported rows in percent, then those of ``labels`` (checker -> name) by ``Estimates.table``.
    Over-criticism of a reported row is what its P and R say, half of its texts being wrong."""
    reported = pd.read_csv(Path(__file__).parent / "medfact/reported.csv")
    p, r = reported.vc_precision / 100, reported.vc_recall / 100
    reported["over_criticism"] = (100 * r * (1 - p) / p).round(2)
    columns = {name: (name, "all") for name in (*METRICS, "unanswered")}
    return tables.beside(
        reported, tables.system_rows(labels, table, columns, "truth", "checker"), columns
    )


def save_claims(profile, sums: Estimates, folder: Path) -> list[dict]:
    """The claims of plan.yaml on the sums of ``counted``, as claims.md, .csv and .json."""
    source = Counted(sums, profile.bootstrap, profile.seed, "truth")
    reason = "smoke numbers are no results" if profile.name == "smoke" else ""
    data = f"this run: profile {profile.name}, seed {profile.seed}, clinic"
    own = Evidence(data, ("facts/calls.parquet",), source, reason=reason)
    ledger = claims.decided(PLAN["claims"], lambda _: own)
    claims.save(ledger, folder)
    return ledger
