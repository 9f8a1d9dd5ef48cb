"""The external clinic: disjoint from training in what it should be, its truth, what it
withholds."""

import re
from collections import Counter

import pytest

from promedical_utils import clinic
from promedical_utils.clinic import external, generators, grammar
from promedical_utils.clinic.vocabulary import read, values
from promedical_utils.core import profiles
from promedical_utils.evaluation import external as external_sets


@pytest.fixture(scope="module")
def built():
    return external.build(7, 60)


@pytest.fixture(scope="module")
def made(built):
    return built[0]


@pytest.fixture(scope="module")
def documents(built):
    return built[1]


@pytest.fixture(scope="module")
def world():
    return clinic.build(profiles.load("smoke"), sizes=(60, 10, 10, 30, 10))


def words(text):
    return set(re.findall(r"\w+", text))


def test_equal_arguments_give_an_equal_clinic(made, documents):
    assert external.build(7, 60) == (made, documents)
    other, _ = external.build(8, 60)
    assert other[0].instruction.messages != made[0].instruction.messages
    assert len({asked.instruction.id for asked in made}) == 60
    assert {len(asked.candidates) for asked in made} == {4}
    for asked in made:
        assert {c.instruction_id for c in asked.candidates} == {asked.instruction.id}


def test_nothing_of_it_stands_in_the_clinic_of_training(made, world):
    inside, outside = read("vocabulary"), read("external")
    assert not set(outside["specialties"]) & set(inside["specialties"])
    assert not set(outside["specialties"].values()) & set(inside["specialties"].values())
    patients = [asked.patient for asked in made]
    assert not {p.condition for p in patients} & {row.condition for row in world.splits}
    assert not {p.id for p in patients} & {row.patient for row in world.splits}
    assert not {a.instruction.id for a in made} & {i.id for i in world.instructions}
    assert not set(outside["habits"]) & set(generators.NAMES)
    assert all(h not in read("generators").values() for h in outside["habits"].values())


def test_a_wording_seed_that_is_taken_is_not_used(made):
    seeds = [asked.patient.wording_seed for asked in made]
    assert len(set(seeds)) == 60
    other, _ = external.build(7, 60, taken=seeds[:5])
    assert not {asked.patient.wording_seed for asked in other} & set(seeds[:5])


def test_more_patients_than_the_knowledge_base_has_share_its_facts():
    entries = (
        len(read("external")["specialties"])
        * len(values("problem"))
        * len(read("external")["patients"])
    )
    many, _ = external.build(3, entries + 2)
    first, again = many[0].patient, many[entries].patient
    assert first.condition == again.condition
    assert first.facts == again.facts
    assert first.wording_seed != again.wording_seed


def test_its_answers_are_read_by_the_grammar_and_are_all_but_never_unclear(made):
    seen = Counter(
        v for asked in made for c in asked.candidates for v in asked.verdicts(c).values()
    )
    assert min(seen[v] for v in ("met", "not_met", "unknown")) > 10
    assert seen["unknown"] / seen.total() < 0.05


def test_what_the_leaflet_withholds_stands_in_the_knowledge_base_alone(made, documents):
    for asked in made:
        facts = asked.patient.facts
        told = words(" ".join(m.content for m in asked.instruction.messages))
        withheld = [document.rsplit("-", 1)[1] for document in asked.withheld]
        assert len(set(withheld)) == 3
        for document, fact in zip(asked.withheld, withheld):
            assert facts[fact] not in told
            assert facts[fact] in words(documents[document])
            assert asked.patient.organ in documents[document]
        stated = set(read("external")["withholdable"]) - set(withheld)
        assert all(facts[fact] in told for fact in stated)
        for c in external_sets.sub_rubric(asked.shown, external.JOIN).criteria:
            kind, value = grammar.read_criterion(c.text)  # composites come apart into whole ones
            assert not value or read("criteria")[kind]["fact"] not in withheld


def test_the_question_that_is_searched_for_has_nothing_of_the_leaflet(made):
    for asked in made:
        question = asked.question
        text = " ".join(m.content for m in asked.instruction.messages)
        assert asked.patient.organ in question and question in text.replace("  ", " ")
        assert "Leaflet:" in text and "Leaflet:" not in question and len(question) < len(text) / 2


def test_most_documents_are_about_other_people(made, documents):
    for asked in made[:10]:
        organ, problem = asked.patient.organ, asked.patient.problem
        about = [d for d, t in documents.items() if organ in t and problem in t]
        assert len(about) >= 3 + len(asked.withheld)
    assert any(not d.endswith(tuple(read("external")["withholdable"])) for d in documents)


def test_a_composite_joins_two_of_a_dimension_and_its_weights(made):
    composites = 0
    for asked in made:
        gold = {c.id: c for c in asked.gold.criteria}
        parts = [i for c in asked.shown.criteria for i in asked.parts[c.id]]
        assert sorted(parts) == sorted(gold)
        for c in asked.shown.criteria:
            own = [gold[i] for i in asked.parts[c.id]]
            assert {o.dimension for o in own} == {c.dimension}
            assert c.weight == pytest.approx(sum(o.weight for o in own))
            assert (len(own) == 2) == (external.JOIN in c.text) == (c.kind == "composite")
            composites += len(own) == 2
    assert composites >= 2 * len(made)  # proficiency and safety always have two or more
