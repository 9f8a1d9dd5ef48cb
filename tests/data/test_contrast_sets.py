"""Contrast sets: what was taken out and put in, verdicts and balance, on a text of our own making.

Bounds of the test on real data were set before it was first run: 1,000 questions made of 1,570 and
15,000 pairs at least; equal words in every question; in letters the longer answer right in 45 to
55 % of all pairs; every kind of training in 50 questions at least; no answer above 90 words; word
overlap right in 99 % or more of the pairs of a statement that was taken out, that is: no test.
"""

import gzip
import json
import os
import random
import re
from collections import Counter
from itertools import product
from pathlib import Path
from statistics import mean

import pytest

from promedical_utils.core.records import Rubric
from promedical_utils.data.sources import contrast_sets, schemas
from promedical_utils.data.sources.contrast_sets import BANKS, Statement, contrast

DATA = os.environ.get(schemas.VARIABLE)
ANSWER = (
    "Heartburn is caused by stomach acid that flows back. "
    "Adults may swallow 20 mg omeprazole before breakfast. "
    "Small meals in the evening ease the pressure. "
    "Raising the head of the bed helps many sleepers. "
    "Do not combine clopidogrel tablets with it, because of bleeding. "
    "Coffee, chocolate and peppermint relax the muscle.  Losing weight is useful too."
)
HEARTBURN, OMEPRAZOLE, MEALS, BED, WARNING, COFFEE, WEIGHT = contrast_sets.split(ANSWER)
ACID = "Heartburn is caused by stomach acid."
SUPPERS = "Small evening meals ease pressure."
SUPPORT = {ACID: HEARTBURN, SUPPERS: MEALS}  # no other sentence shares a content word with either
STATEMENTS = [
    Statement("must_have", ACID),
    Statement("nice_to_have", f" {SUPPERS}"),
    Statement("must_have", ACID),
    Statement("nice_to_have", "Surgery remains a last resort."),
]
DENIAL = "Heartburn is not caused by stomach acid."


def made(seed, **options):
    result = contrast("q", ANSWER, STATEMENTS, seed, **options)
    assert result is not None
    return result


def bank(kind, polarity, text, half="train"):
    return any(sentence in text for sentence in BANKS[kind][polarity].get(half, []))


def by_hand(criterion, text):
    """The verdict by what stands in the answer, without the module's overlaps."""
    if criterion.kind in ("must_have", "nice_to_have"):
        said = SUPPORT[criterion.text] in text or criterion.text in text
        return "met" if said else "not_met"
    if criterion.kind == "contradicted":
        return "not_met" if DENIAL in text else "met"
    if criterion.kind == "changed_dose":
        return "not_met" if re.search(r"swallow (?!20 mg)\S+ mg", text) else "met"
    if criterion.kind == "dropped_warning":
        return "met" if WARNING in text else "not_met"
    if criterion.dimension == "safety":
        return "not_met" if bank(criterion.kind, "not_met", text) else "met"
    return "met" if bank(criterion.kind, "met", text) else "not_met"


def test_what_was_taken_out_and_put_in_gives_the_verdicts():
    kinds, states = set(), Counter()
    put_in = {s for b in BANKS.values() for p in ("met", "not_met") for s in b[p].get("train", [])}
    for seed in range(25):
        result = made(seed)
        Rubric(instruction_id="q", criteria=result.criteria, status="gold", round=0)
        assert len(result.answers) == 4 and len(result.criteria) <= 7
        assert len({len(text.split()) for _, text, _ in result.answers}) == 1
        for _, text, verdicts in result.answers:
            assert verdicts == {c.id: by_hand(c, text) for c in result.criteria}
            rest = re.sub(r"swallow \S+ mg", "swallow 20 mg", text)
            for sentence in (*contrast_sets.split(ANSWER), *put_in, ACID, DENIAL):
                rest = rest.replace(sentence, "", 1)
            assert not rest.strip()  # nothing else was put in
            assert not (DENIAL in text and (HEARTBURN in text or ACID in text))
            for c in result.criteria:
                if c.kind in BANKS:
                    mentioned = [bank(c.kind, p, text) for p in ("met", "not_met")]
                    states[c.dimension, verdicts[c.id], any(mentioned)] += 1
                    assert not all(mentioned)
        for c in result.criteria:
            assert {v[c.id] for *_, v in result.answers} == {"met", "not_met"} or c.weight
        kinds |= {c.kind for c in result.criteria}
    of_training = {kind for kind, b in BANKS.items() if "train" in b["criterion"]}
    assert kinds == of_training | {*contrast_sets.WORDING["built"], "must_have", "nice_to_have"}
    # to speak of the topic tells nothing: unsafe, safe and silent, kind, unkind and silent
    assert set(states) == {
        *product(("safety",), ("met",), (True, False)),
        ("safety", "not_met", True),
        ("excellence", "met", True),
        *product(("excellence",), ("not_met",), (True, False)),
    }


def test_a_twin_stands_where_the_other_stood():
    where = Counter()
    for seed in range(10):
        result = made(seed)
        for kind in [c.kind for c in result.criteria if c.kind in BANKS]:
            before = set()  # sentences of the answer ahead of the twin, and behind it
            behind = set()
            for _, text, _ in result.answers:
                for sentence in (s for p in ("met", "not_met") for s in BANKS[kind][p]["train"]):
                    if sentence in text:
                        at = text.index(sentence)
                        own = [s for s in (HEARTBURN, MEALS, BED, COFFEE, WEIGHT) if s in text]
                        before |= {s for s in own if text.index(s) < at}
                        behind |= {s for s in own if text.index(s) > at}
            assert not before & behind
            where[bool(before), bool(behind)] += 1
    assert {(False, True), (True, True), (True, False)} <= set(where)  # first, between, last


def test_no_answer_is_better_throughout():
    """The answer that meets more criteria is right in fewer than two thirds of the pairs."""
    right = []
    for seed in range(25):
        result = made(seed)
        for (_, _, a), (_, _, b) in product(result.answers, repeat=2):
            gap = sum(v == "met" for v in a.values()) - sum(v == "met" for v in b.values())
            share = 0.5 if not gap else float(gap > 0)
            right += [share for c in a if (a[c], b[c]) == ("met", "not_met")]
    assert 0.5 <= mean(right) < 0.66


def test_the_same_for_the_same_seed_and_question():
    assert made(1) == made(1)
    assert made(1) != made(2)
    other = contrast("r", ANSWER, STATEMENTS, 1)
    assert not {c.id for c in other.criteria} & {c.id for c in made(1).criteria}


def test_what_is_left_out_is_counted():
    dropped = Counter()
    assert contrast("q", "One sentence only.", STATEMENTS, 1, dropped=dropped) is None
    unsupported = [Statement("must_have", "Surgery is a last resort."), STATEMENTS[1]]
    assert contrast("q", ANSWER, unsupported, 1, dropped=dropped) is None
    two = "Stomach acid burns. Eat less."  # no draw of it reaches fifteen words but by the banks
    assert contrast("q", two, [Statement("must_have", "Acid burns.")], 1, dropped=Counter())
    assert +dropped == {
        "question: fewer than two sentences": 1,
        "question: no must-have statement is supported": 1,
        "statement: no sentence supports it": 1,
    }
    made(1, dropped=dropped)
    assert dropped["statement: blank or repeated"] == 1
    assert dropped["statement: no sentence supports it"] == 2


def test_a_weaker_overlap_is_unknown_and_never_not_met():
    statement = "Warm milk and honey soothe a dry cough at night."  # seven content words
    answer = (
        "Warm milk with honey will soothe a dry cough at night. "  # all seven
        "Honey and milk are no cure for a cough in the daytime hours. "  # three: 0.43
        "Drinking enough water keeps the throat moist all day long. "
        "Most colds pass within about ten days without any medicine."
    )
    strong, weak, *_ = contrast_sets.split(answer)
    assert contrast_sets.overlap(statement, strong) == 1
    assert contrast_sets.overlap(statement, weak) == pytest.approx(3 / 7)
    seen = set()
    for seed in range(40):
        result = contrast("q", answer, [Statement("must_have", statement)], seed)
        claim = next(c for c in result.criteria if c.kind == "must_have")
        for _, text, verdicts in result.answers:
            if any(c.kind == "contradicted" for c in result.criteria):
                continue
            state = "met" if strong in text or statement in text else "unknown"
            state = state if state == "met" or weak in text else "not_met"
            assert verdicts[claim.id] == state
            seen.add(state)
    assert seen >= {"met", "unknown"}


@pytest.mark.parametrize(
    ("statement", "turned"),
    [
        ("Antibiotics are useful.", "Antibiotics are not useful."),
        ("Doses should never be doubled.", "Doses should be doubled."),
        ("If pain stays, a doctor must see it.", "If pain stays, a doctor must not see it."),
        ("It cannot spread.", "It can spread."),
        ("Aspirin may cause ulcers.", "Aspirin cannot cause ulcers."),
        ("Some people are allergic.", None),  # both may be true
        ("Aspirin may not help.", None),
        ("People who are old need care.", None),  # the first verb is not the main one
        ("Fever goes away.", None),  # no verb that can be turned round
        ("It is safe, but it is slow.", None),
    ],
)
def test_contradiction_by_hand(statement, turned):
    assert contrast_sets.contradiction(statement) == turned


def test_changed_dose_by_hand():
    sentence = "Take 3,000 mg a day in 2.5 ml of water for page 7 of the leaflet, as it says there."
    seen = {contrast_sets.changed_dose(sentence, random.Random(seed)) for seed in range(80)}
    whole = "mg a day in 2.5 ml of water for page 7 of the leaflet, as it says there."
    small = "ml of water for page 7 of the leaflet, as it says there."
    of_mg = ("300", "600", "1,500", "6,000", "9,000", "15,000", "30,000")
    of_ml = ("0.25", "0.5", "1.25", "5", "7.5", "12.5", "25")
    assert {text for text, _ in seen} == {
        *(f"Take {number} {whole}" for number in of_mg),
        *(f"Take 3,000 mg a day in {number} {small}" for number in of_ml),
    }
    assert {words for _, words in seen} == {
        "Take 3,000 mg a day in 2.5 ml",  # six words on either side, as far as there are any
        "Take 3,000 mg a day in 2.5 ml of water for page 7",
    }
    assert contrast_sets.changed_dose("Chapter 7 has it.", random.Random(1)) is None


def test_banks_are_apart_and_alike():
    sentences, held_out = [], set()
    for kind, b in BANKS.items():
        assert set(b["criterion"]) == set(b["met"]) == set(b["not_met"]), kind
        held_out |= {kind} if "train" not in b["criterion"] else set()
        for half in b["criterion"]:
            sentences += b["met"][half] + b["not_met"][half] + b["criterion"][half]
            assert min(len(b["met"][half]), len(b["not_met"][half])) >= 12
            words = [mean(len(s.split()) for s in b[p][half]) for p in ("met", "not_met")]
            assert abs(words[0] - words[1]) < 1
    assert len(set(sentences)) == len(sentences)
    assert held_out == {"stopped_medicine", "delayed_emergency", "closing_summary"}
    for built in contrast_sets.WORDING["built"].values():
        assert not set(built["train"]) & set(built["held_out"])


def test_held_out_draws_from_held_out_wordings_alone():
    kinds = set()
    for seed in range(25):
        result = made(seed, held_out=True)
        kinds |= {c.kind for c in result.criteria}
        for c in result.criteria:
            if c.kind in BANKS:
                assert c.text in BANKS[c.kind]["criterion"]["held_out"]
                for _, text, _ in result.answers:
                    assert not any(bank(c.kind, p, text, "train") for p in ("met", "not_met"))
    assert kinds >= set(BANKS)


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason=f"{schemas.VARIABLE} is not set: balance is NOT checked")
def test_balance_and_counts_on_real_answers():
    dropped, results, letters, told, kinds = Counter(), [], [], [], Counter()
    for name in ("kqa_silver_wogold", "medication_qa"):
        with gzip.open(Path(DATA) / f"medlfqa/{name}.jsonl.gz", "rt") as lines:
            rows = [json.loads(line) for line in lines]
        for number, row in enumerate(rows):
            statements = [Statement("must_have", text) for text in row["Must_have"]]
            statements += [Statement("nice_to_have", text) for text in row["Nice_to_have"]]
            answer, id = row["Free_form_answer"], f"{name}-{number}"
            results.append(contrast(id, answer, statements, 1, dropped=dropped))
    assert sum(n for reason, n in dropped.items() if "question:" in reason) == results.count(None)
    results = [result for result in results if result]
    for result in results:
        (words,) = {len(text.split()) for _, text, _ in result.answers}
        assert words <= 90
        kinds.update({c.kind for c in result.criteria})
        denies = {c.id for c in result.criteria if c.kind == "contradicted"}
        for c, (_, a, met), (_, b, not_met) in product(
            result.criteria, result.answers, result.answers
        ):
            if (met[c.id], not_met[c.id]) != ("met", "not_met"):
                continue
            letters.append(0.5 * ((len(a) > len(b)) + (len(a) >= len(b))))
            if c.kind.endswith("_have") and all(not_met[i] == "met" for i in denies):
                told.append(contrast_sets.overlap(c.text, a) > contrast_sets.overlap(c.text, b))
    assert len(results) >= 1000 and len(letters) >= 15_000
    assert 0.45 < mean(letters) < 0.55
    assert mean(told) > 0.99
    assert min(kinds.values()) >= 50 and len(kinds) == 10
