"""Controls that are shown the criterion, by hand on texts of our own."""

import numpy as np
import pandas as pd
import pytest

from promedical_utils.core.records import Candidate, Criterion, Instruction
from promedical_utils.core.workspace import KitError
from promedical_utils.evaluation import scorers
from promedical_utils.evaluation.scorers import controls
from promedical_utils.rubric.preferences import Group


def group(name, texts, criteria, verdicts=None):
    asked = Instruction.model_validate(
        {
            "id": name,
            "source": "own",
            "category": "c",
            "specialty": "s",
            "difficulty": 5,
            "messages": [{"role": "user", "content": "what now?"}],
        }
    )
    made = [
        Criterion(id=f"{name}-{n}", dimension="proficiency", text=t, weight=1, kind="k")
        for n, t in enumerate(criteria)
    ]
    answers = [
        Candidate(id=f"{name}-a{n}", instruction_id=name, generator="g", text=t)
        for n, t in enumerate(texts)
    ]
    said = {
        (a.id, c.id): (verdicts or {}).get((i, n), "met")
        for i, a in enumerate(answers)
        for n, c in enumerate(made)
    }
    return Group(asked, tuple(made), tuple(answers), said)


def test_overlap_is_the_share_of_the_criterions_words():
    case = group("g", ["Rest, and drink tea.", "Run!"], ["drink the warm tea", "of the and"])
    frame = controls.overlap([case]).set_index(["candidate_id", "criterion_id"])
    # drink, warm, tea: two of three; of a criterion of stop words there is none to find
    assert frame.score.round(4).tolist() == [0.6667, 0.0, 0.0, 0.0]
    assert frame.met.tolist() == [True, False, False, False]
    assert list(controls.overlap([case])) == scorers.PREDICTED


def test_overlap_counts_chinese_by_its_letters():
    [case] = [group("g", ["每天三次，饭后。"], ["每天三次", "停用aspirin"])]
    assert controls.overlap([case]).score.tolist() == [1.0, 0.0]


def test_always_met_says_met_and_prefers_none():
    frame = controls.always("always_met", True, [group("g", ["a", "b"], ["x", "y"])])
    assert frame.met.all() and frame.score.nunique() == 1 and len(frame) == 4


def test_always_veto_says_not_met_and_prefers_none():
    frame = controls.always("always_veto", False, [group("g", ["a", "b"], ["x", "y"])])
    assert not frame.met.any() and frame.score.nunique() == 1 and len(frame) == 4


def test_embeddings_learn_from_answer_and_criterion_together():
    """Met where both vectors point the same way: neither of them tells alone."""
    rng = np.random.default_rng(0)
    vectors = {f"{kind}{n}": rng.choice([-1.0, 1.0], 4) / 2 for kind in "ac" for n in range(160)}

    def drawn(name, numbers):
        made = []
        for n in numbers:
            alike = vectors[f"a{n}"][0] * vectors[f"c{n}"][0] > 0
            said = {(0, 0): "met" if alike else "not_met"}
            made.append(group(f"{name}{n}", [f"a{n}"], [f"c{n}"], said))
        return made

    sides = drawn("t", range(80)), drawn("h", range(80, 120)), drawn("b", range(120, 160))
    frame = controls.learned("embeddings", controls.embeddings(vectors), *sides)
    truth = [next(iter(g.verdicts.values())) == "met" for g in sides[2]]
    assert 0 < sum(truth) < 40 and (frame.met == truth).mean() > 0.95
    assert set(frame.scorer) == {"embeddings"}


def near_words(*sides):
    return controls.learned("near_words", controls.near_words, *sides)


WAYS = (("never", "always"), ("always", "never"))


def trial(name, right):
    """Twenty groups in which the word beside the term tells, and which words there are does not."""
    groups = []
    for n in range(20):
        texts = [f"{a} tea{n} if you are well, {b} milk" for a, b in WAYS]
        verdicts = {(0, 0): "not_met" if right else "met", (1, 0): "met" if right else "not_met"}
        groups.append(group(f"{name}{n}", texts, [f"tea{n}"], verdicts))
    return groups


def test_words_round_terms_tell_where_the_words_alone_do_not():
    frame = near_words(trial("t", True), trial("c", True), trial("b", True))
    score = frame.set_index("candidate_id").score
    wins = [score[f"b{n}-a1"] > score[f"b{n}-a0"] for n in range(20)]
    assert np.mean(wins) == 1
    assert controls.overlap(trial("b", True)).score.eq(1).all()  # both have every term
    turned = near_words(trial("t", False), trial("c", False), trial("b", True))
    score = turned.set_index("candidate_id").score
    assert not any(score[f"b{n}-a1"] > score[f"b{n}-a0"] for n in range(20))  # it was learned
    alike = [group("x", ["a", "b"], ["tea"])]
    with pytest.raises(KitError, match="all alike"):
        near_words(alike, alike, alike)


def test_similarity_is_the_cosine_of_means_of_the_bases_states(tiny_base):
    case = group("g", ["Take it.", "Do not."], ["Take it.", "Wait."])
    frame = controls.similarity([case], controls.embedded(tiny_base, [case]))
    frame = frame.set_index(["candidate_id", "criterion_id"]).score
    assert frame["g-a0", "g-0"] == pytest.approx(1, abs=1e-5)  # the same text
    assert frame["g-a1", "g-0"] < 1 - 1e-4
    assert isinstance(frame, pd.Series) and frame.between(-1, 1.00001).all()


def test_the_criterion_alone_tells_how_often_such_a_one_is_met():
    def often(name):
        verdicts = {(0, 0): "met", (1, 0): "met", (0, 1): "not_met", (1, 1): "not_met"}
        return [
            group(f"{name}{n}", ["a b", "c"], ["rests well", "runs far"], verdicts)
            for n in range(9)
        ]

    frame = controls.learned(
        "criterion_only", controls.criterion_only, often("t"), often("c"), often("b")
    )
    likely = frame.groupby(frame.criterion_id.str[-1]).probability.mean()
    assert likely["0"] > 0.6 > 0.4 > likely["1"]
    assert frame.groupby("criterion_id").score.nunique().eq(1).all()  # whatever the answer says
