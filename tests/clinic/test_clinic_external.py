"""The external clinic: disjoint from training in what it should be, its truth, what it
withholds."""

import random
import re
from collections import Counter

import pytest

from promedical_utils import clinic
from promedical_utils.clinic import external, generators, grammar
from promedical_utils.clinic.vocabulary import read, values
from promedical_utils.core import profiles
from promedical_utils.evaluation import external as external_sets


@pytest.fixture(scope="module")
def made():
    return external.build(7, 60)


@pytest.fixture(scope="module")
def world():
    return clinic.build(profiles.load("smoke"), sizes=(60, 10, 10, 30, 10))


def words(text):
    return set(re.findall(r"\w+", text))


def test_equal_arguments_give_an_equal_clinic(made):
    assert external.build(7, 60) == made
    assert external.build(8, 60).instructions[0].messages != made.instructions[0].messages
    assert len(made.instructions) == 60 and len(made.candidates) == 240
    assert set(Counter(c.instruction_id for c in made.candidates).values()) == {4}


def test_nothing_of_it_stands_in_the_clinic_of_training(made, world):
    inside, outside = read("vocabulary"), read("external")
    assert not set(outside["specialties"]) & set(inside["specialties"])
    assert not set(outside["specialties"].values()) & set(inside["specialties"].values())
    assert not set(made.conditions.values()) & {row.condition for row in world.splits}
    assert not {p.id for p in made.patients.values()} & {row.patient for row in world.splits}
    assert not {i.id for i in made.instructions} & {i.id for i in world.instructions}
    assert not set(outside["habits"]) & set(generators.NAMES)
    assert all(h not in read("generators").values() for h in outside["habits"].values())
    told = read("messages")
    for mine, theirs in (
        (outside["openings"], [o for forms in told["openings"].values() for o in forms]),
        (
            [q for qs in outside["questions"].values() for q in qs],
            [q for qs in told["questions"].values() for q in qs],
        ),
        (outside["asks"], told["asks"]),
        (
            [f for fs in outside["leaflet"].values() for f in fs],
            [f for fs in told["leaflet"].values() for f in fs],
        ),
        (
            [f for fs in outside["sentences"].values() for f in fs],
            [f for spec in read("sentences").values() for f in spec["forms"]],
        ),
    ):
        assert not set(mine) & set(theirs)


def test_a_wording_seed_that_is_taken_is_not_used(made):
    seeds = [p.wording_seed for p in made.patients.values()]
    assert len(set(seeds)) == 60
    other = external.build(7, 60, taken=seeds[:5])
    assert not {p.wording_seed for p in other.patients.values()} & set(seeds[:5])


def test_more_patients_than_the_knowledge_base_has_share_its_facts():
    entries = (
        len(read("external")["specialties"])
        * len(values("problem"))
        * len(read("external")["patients"])
    )
    many = external.build(3, entries + 2)
    first, again = many.instructions[0].id, many.instructions[entries].id
    assert many.conditions[first] == many.conditions[again]
    assert many.patients[first].facts == many.patients[again].facts
    assert many.patients[first].wording_seed != many.patients[again].wording_seed


def test_every_act_has_words_of_its_own_that_only_it_reads():
    forms, acts = read("external")["sentences"], read("sentences")
    assert set(forms) == set(acts)
    assert len(forms["filler"]) == len(acts["filler"]["forms"])
    for act, own in forms.items():
        for n, form in enumerate(own):
            places = set(re.findall(r"\{(\w)\}", form))
            assert places == set(acts[act]["values"]), (act, form)
            filled = {k: values(acts[act]["values"][k])[i] for i, k in enumerate(sorted(places))}
            sentence = form.format(**filled)
            patterns = grammar.sentence_patterns(external=True)
            read_as = [(a, m) for a, m, p in patterns if p.fullmatch(sentence)]
            assert read_as == [(act, n)] and grammar.read_sentence(sentence) is None
            back = grammar.read_sentence(external.translated(sentence))
            assert back == (act, filled.get("a", ""), filled.get("b", ""))


def test_the_truth_of_an_answer_does_not_change_with_its_words(world):
    seen = Counter()
    for i in world.ids("bench"):
        for name in generators.NAMES:
            text, rng = world.answer(i, name), random.Random(f"{i}{name}")
            other = external.reworded(text, rng)
            assert not set(external.sentences(other)) & set(external.sentences(text))
            verdicts = clinic.gold(world.rubric_of[i].criteria, text)
            assert clinic.gold(world.rubric_of[i].criteria, external.translated(other)) == verdicts
            seen.update(verdicts.values())
    assert min(seen[v] for v in ("met", "not_met", "unknown")) > 10


@pytest.mark.parametrize(
    "broken",
    [
        lambda text: text + " Nothing of this is true.",
        lambda text: text + " " + external.sentences(text)[0],
        lambda text: text[:-1],
        lambda text: text.replace(".", "..", 1),
        lambda text: "",
    ],
)
def test_what_does_not_parse_is_unknown(made, broken):
    candidate = next(c for c in made.candidates if "unknown" not in made.verdicts(c).values())
    spoilt = candidate.model_copy(update={"text": broken(candidate.text)})
    assert set(made.verdicts(spoilt).values()) == {"unknown"}


def test_what_the_leaflet_withholds_stands_in_the_knowledge_base_alone(made):
    references = read("external")["references"]
    for asked in made.instructions:
        facts = made.patients[asked.id].facts
        told = words(" ".join(m.content for m in asked.messages))
        withheld = [document.rsplit("-", 1)[1] for document in made.withheld[asked.id]]
        assert len(set(withheld)) == 3
        for document, fact in zip(made.withheld[asked.id], withheld):
            assert facts[fact] not in told
            assert facts[fact] in words(made.documents[document])
            assert made.patients[asked.id].organ in made.documents[document]
        stated = set(read("external")["withholdable"]) - set(withheld)
        assert all(facts[fact] in told for fact in stated)
        gold = {c.id: c.text for c in made.gold[asked.id].criteria}
        for c in external_sets.sub_rubric(made.shown[asked.id], external.JOIN).criteria:
            whole, _, number = c.id.partition("/")
            one = made.parts[whole][int(number or 1) - 1]
            kind = one.removeprefix(f"{asked.id}-")
            lacking = kind in references and references[kind]["fact"] in withheld
            assert (c.text != gold[one]) == lacking
            if lacking:
                assert facts[references[kind]["fact"]] not in words(c.text)


def test_the_question_that_is_searched_for_has_nothing_of_the_leaflet(made):
    for asked in made.instructions:
        question, text = made.questions[asked.id], " ".join(m.content for m in asked.messages)
        assert made.patients[asked.id].organ in question and question in text.replace("  ", " ")
        assert "Sheet:" in text and "Sheet:" not in question and len(question) < len(text) / 2


def test_most_documents_are_about_other_people(made):
    for asked in made.instructions[:10]:
        condition = made.patients[asked.id]
        about = [
            d for d, t in made.documents.items() if condition.organ in t and condition.problem in t
        ]
        assert len(about) >= 3 + len(made.withheld[asked.id])
    assert any(not d.endswith(tuple(read("external")["withholdable"])) for d in made.documents)


def test_a_composite_joins_two_of_a_dimension_and_its_weights(made):
    composites = 0
    for name, shown in made.shown.items():
        gold = {c.id: c for c in made.gold[name].criteria}
        parts = [i for c in shown.criteria for i in made.parts[c.id]]
        assert sorted(parts) == sorted(gold)
        for c in shown.criteria:
            own = [gold[i] for i in made.parts[c.id]]
            assert {o.dimension for o in own} == {c.dimension}
            assert c.weight == pytest.approx(sum(o.weight for o in own))
            assert (len(own) == 2) == (external.JOIN in c.text) == (c.kind == "composite")
            composites += len(own) == 2
    assert composites >= 2 * len(made.shown)  # proficiency and safety always have two or more
