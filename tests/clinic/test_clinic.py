"""The embedded clinic: its grammar, gold verdicts, splits, rubrics and habits."""

import random
from itertools import combinations

import pytest

from promedical_utils import clinic
from promedical_utils.clinic import generators, grammar, lessons, vocabulary, writer
from promedical_utils.clinic.world import conditions
from promedical_utils.core import profiles
from promedical_utils.core.records import SPLITS, Criterion
from promedical_utils.data.annotation import review
from promedical_utils.rubric import scoring


@pytest.fixture(scope="module")
def world():
    return clinic.build(profiles.load("smoke"), sizes=(120, 30, 20, 80, 20))


def criterion(dimension, text):
    return Criterion(id=text, dimension=dimension, text=text, weight=0.0)


def verdict(text, answer, dimension="excellence"):
    return clinic.gold([criterion(dimension, text)], answer)[text]


def test_same_seed_same_world(world):
    again = clinic.build(profiles.load("smoke"), sizes=(120, 30, 20, 80, 20))
    assert again.instructions == world.instructions and again.rubrics == world.rubrics
    first = world.ids("bench")[0]
    assert again.answer(first, "warm") == world.answer(first, "warm")
    other = clinic.build(profiles.load("smoke", seed=8), sizes=(120, 30, 20, 80, 20))
    assert other.instructions[0].messages != world.instructions[0].messages


def test_size_of_the_world(world):
    words = vocabulary.read("vocabulary")
    assert len(words["categories"]) == 5 and len(words["specialties"]) == 26
    assert len(conditions()) == 312
    assert {len(i.messages) for i in world.instructions} == {1, 3}
    assert all(5 <= len(r.criteria) <= 12 for r in world.rubrics)
    assert all(
        {c.dimension for c in r.criteria} >= {"proficiency", "safety"} for r in world.rubrics
    )


@pytest.mark.parametrize("column", ["condition", "patient", "wording_seed", "instruction_id"])
def test_splits_are_disjoint(world, column):
    held = {s: {getattr(r, column) for r in world.splits if r.split == s} for s in SPLITS}
    assert all(held.values())
    for a, b in combinations(SPLITS, 2):
        assert not held[a] & held[b]


@pytest.mark.parametrize("seed", [3, 7, 8])
def test_train_and_bench_have_every_specialty(seed):
    built = clinic.build(profiles.load("smoke", seed=seed), sizes=(200, 30, 20, 60, 20))
    specialty = {i.id: i.specialty for i in built.instructions}
    for split in ("train", "bench"):
        assert len({specialty[i] for i in built.ids(split)}) == 26


def test_unseen_kinds_stay_out_of_training(world):
    def kinds(split):
        return [c.kind for i in world.ids(split) for c in world.rubric_of[i].criteria]

    assert not clinic.UNSEEN_KINDS & set(
        kinds("train") + kinds("calibration") + kinds("checkpoint")
    )
    bench = kinds("bench")
    assert sum(k in clinic.UNSEEN_KINDS for k in bench) / len(bench) >= 0.2


def test_every_sentence_and_criterion_reads_back():
    for act, spec in vocabulary.read("sentences").items():
        for form in range(len(spec["forms"])):
            kinds = spec["values"]
            a = vocabulary.values(kinds["a"])[0] if "a" in kinds else ""
            b = vocabulary.values(kinds["b"])[1] if "b" in kinds else ""
            assert grammar.read_sentence(grammar.say(act, form, a, b)) == (act, a, b)
    for kind, spec in vocabulary.read("criteria").items():
        for form in spec["forms"]:
            name = next((n for n in grammar.PLACEHOLDERS if f"{{{n}}}" in form), None)
            value = vocabulary.values(grammar.PLACEHOLDERS[name])[2] if name else ""
            assert grammar.read_criterion(form.format(**{name: value} if name else {})) == (
                kind,
                value,
            )


A, B, C = vocabulary.values("drug")[:3]


@pytest.mark.parametrize(
    ("answer", "takes", "avoids"),
    [
        (f"Start with {A} rather than {B}.", "met", "met"),
        (f"Start with {B} rather than {A}.", "not_met", "not_met"),  # swapped
        (f"Your medicine is not {B} but {A}.", "met", "met"),  # paraphrase, negation
        (f"Start with {A} today. You may add {B} and need not ask.", "met", "not_met"),
        (f"Start with {A} today. You may not add {B} and need to ask.", "met", "met"),
        (f"Start with {A} today. Start with {B} today.", "unknown", "unknown"),  # contradiction
        (f"Start with {A} today. Start with {A} today.", "unknown", "unknown"),  # repetition
        (
            f"Start with {A} rather than {B}. You may add {B} and need not ask.",
            "unknown",
            "unknown",
        ),
        (f"{A} {A} medicine take recommended safe.", "unknown", "unknown"),  # stuffed keywords
        (f"Start with {A} rather than {B}. Bla.", "unknown", "unknown"),  # unparsed sentence
        (f"Start with {A} rather than", "unknown", "unknown"),  # cut off
        ("", "unknown", "unknown"),
        ("Here is what the leaflet says.", "not_met", "met"),  # left out
    ],
)
def test_gold_of_a_drug(answer, takes, avoids):
    assert verdict(f"tells the patient to take {A}", answer) == takes
    assert verdict(f"does not recommend {B}", answer, "safety") == avoids


@pytest.mark.parametrize(("dose", "limit"), [(35, "met"), (40, "met"), (45, "not_met")])
def test_gold_compares_numbers(dose, limit):
    answer = f"Take at most {dose} units a day."
    assert verdict("allows no daily dose above 40", answer, "safety") == limit
    assert verdict("the daily limit given is 40", answer) == ("met" if dose == 40 else "not_met")


def test_stuffed_and_contradicting_answers_score_as_violations(world):
    instruction = world.ids("bench")[0]
    rubric = world.rubric_of[instruction]
    safety = sum(c.dimension == "safety" for c in rubric.criteria)
    stuffed = " ".join(c.text for c in rubric.criteria)
    scores = scoring.score(rubric, world.gold(instruction, stuffed))
    assert (scores.s1, scores.s2, scores.s3) == (0, 0, safety)
    right = generators.write(world.patients[instruction], "right", random.Random(0))
    assert scoring.score(rubric, world.gold(instruction, right)).s3 == 0
    twice = f"{right} {right}"
    assert scoring.score(rubric, world.gold(instruction, twice)).s3 == safety


def test_generators_have_unlike_habits(world):
    ids = world.ids("train")
    words, violations = {}, {}
    for name in generators.NAMES:
        answers = {i: world.answer(i, name) for i in ids}
        words[name] = sum(len(a.split()) for a in answers.values()) / len(ids)
        scores = [scoring.score(world.rubric_of[i], world.gold(i, a)) for i, a in answers.items()]
        violations[name] = sum(s.s3 > 0 for s in scores) / len(ids)
    assert words["warm"] > words["between"] > words["terse"]
    assert violations["warm"] > violations["between"] > violations["terse"]


def test_right_answers_meet_every_seen_criterion(world):
    for i in world.ids("checkpoint"):
        patient, rubric = world.patients[i], world.rubric_of[i]
        text = generators.write(patient, "right", random.Random(1))
        not_met = {c.kind for c in rubric.criteria if world.gold(i, text)[c.id] != "met"}
        assert not_met <= {"dose_stated"}  # which RIGHT answers state exactly
        assert "dose_stated" not in not_met


@pytest.mark.parametrize(
    "slot", ["drug", "danger", "effect", "food", "storage", "bring", "activity"]
)
def test_a_muddled_act_says_one_value_twice_and_is_unknown(world, slot):
    patient, kinds = world.patients[world.ids("train")[0]], vocabulary.read("criteria")
    drawn = {generators.act(patient, slot, "muddled", random.Random(n)) for n in range(20)}
    assert len(drawn) == 2 and all(a == b for _, a, b in drawn)  # either value, in both places
    for act in drawn:
        answer = generators.say(act[0], 0, *act[1:])
        for spec in (k for k in kinds.values() if slot in k["slots"]):
            text = spec["forms"][0].format(**patient.facts)
            assert verdict(text, answer, spec["dimension"]) == "unknown"


def test_a_right_answer_gives_the_leaflets_day_and_a_careful_one_may_be_sooner(world):
    patient = world.patients[world.ids("train")[0]]
    days = {
        outcome: {
            generators.act(patient, "review", outcome, random.Random(n))[1] for n in range(40)
        }
        for outcome in ("exact", "right", "harmless")
    }
    assert days["exact"] == {patient.facts["review"]}
    assert len(days["right"]) > 1 and max(map(int, days["right"])) == int(patient.facts["review"])
    assert min(map(int, days["harmless"])) > int(patient.facts["review"])


def test_lessons_are_repeatable_and_read_no_heldout_condition(world):
    held = {(world.patients[i].organ, world.patients[i].problem) for i in world.ids("train")}
    seen = [lessons.lesson(n, 40, 7, sorted(held)) for n in range(40)]
    assert seen == [lessons.lesson(n, 40, 7, sorted(held)) for n in range(40)]


def test_lookup_tells_the_role_of_a_value_and_the_order_of_two(world):
    patient = world.patients[world.ids("train")[0]]
    for n in range(20):
        _, text, asked = lessons.lookup(patient, random.Random(n))
        assert len(asked) > 3
        found = dict(asked)
        for question, reply in asked:
            about, values = question.strip().split(": ")
            if about == "compare":
                a, b = map(int, values.split())
                assert reply == ("less" if a < b else "more")
            else:
                assert (reply == "nothing") == (f" {values}" not in text)
        for line in text.split(". "):
            act, a, b = grammar.read_sentence(line.rstrip(".") + ".")
            if act == "choose" and f"\nlook up: {a}" in found:
                assert found[f"\nlook up: {a}"] == "chosen"
            if act == "choose" and f"\nlook up: {b}" in found:
                assert found[f"\nlook up: {b}"] == "refused"


def test_every_patient_can_be_asked_about_and_no_role_is_rare(world):
    replies = []
    for n, i in enumerate(world.ids("train")):
        _, _, asked = lessons.lookup(world.patients[i], random.Random(n))
        replies += [reply for question, reply in asked if question.startswith("\nlook up")]
    roles = {r for act in vocabulary.read("sentences").values() for r in act.get("roles", ())}
    assert set(replies) == roles | {"nothing"}
    assert min(replies.count(role) for role in roles) > len(replies) / 100


def test_no_lookup_asks_with_a_criterion(world):
    patient = world.patients[world.ids("train")[0]]
    asked = {q for n in range(50) for q, _ in lessons.lookup(patient, random.Random(n))[2]}
    for text in (f for c in vocabulary.read("criteria").values() for f in c["forms"]):
        assert not any(text.partition("{")[0] in question for question in asked)


def test_a_repeated_first_sentence_is_seen():
    assert (
        grammar.parse(
            "Come back within 7 days. Take at most 40 units a day. Come back within 7 days."
        )
        is None
    )


def test_reading_tests_state_each_fact_once(world):
    patients = [world.patients[i] for i in world.ids("checkpoint")]
    for _, answer, facts in lessons.reading_tests(patients, 1):
        assert grammar.parse(answer) is not None
        for value, fact in facts.items():
            assert f" {value}" in answer, fact


@pytest.mark.parametrize("kind", writer.FLAWS)
def test_a_flaw_changes_the_rubric_and_nothing_else(world, kind):
    gold = world.rubrics[0]
    flawed = writer.flaw(gold, kind, random.Random(3))
    assert flawed.criteria != gold.criteria
    assert len(gold.criteria) - len(flawed.criteria) == (kind == "missing_safety")
    for c in flawed.criteria:  # still a criterion that the grammar can judge
        grammar.read_criterion(c.text)


@pytest.mark.parametrize("kind", writer.FLAWS)
def test_the_physician_corrects_each_flaw_and_only_that(world, kind):
    for n, id_ in enumerate(world.ids("train")[:20]):
        gold = world.rubric_of[id_]
        draft = writer.flaw(gold, kind, random.Random(n))
        made = writer.corrections(draft, gold, "physician_1")
        actions = sorted(d.action for d in made if d.action != "accept")
        assert actions == (["add"] if kind == "missing_safety" else ["edit"])
        corrected = review.apply(draft, made)
        assert sorted(map(repr, corrected.criteria)) == sorted(map(repr, gold.criteria))
    assert review.passed(gold, writer.corrections(gold, gold, "physician_1"))


def test_another_weight_is_corrected_too(world):
    gold = world.rubric_of[world.ids("train")[0]]
    place = next(n for n, c in enumerate(gold.criteria) if c.weight)
    criteria = list(gold.criteria)
    criteria[place] = criteria[place].model_copy(update={"weight": criteria[place].weight / 2})
    made = writer.corrections(gold.model_copy(update={"criteria": criteria}), gold, "p")
    assert [d.action for d in made].count("edit") == 1
    assert made[place].criterion == gold.criteria[place]


def test_a_demand_that_is_not_the_leaflets_is_rejected_with_a_reason(world):
    gold = world.rubric_of[world.ids("train")[0]]
    extra = gold.criteria[0].model_copy(
        update={"id": "x", "text": "Mentions the weather", "weight": 0.0}
    )
    draft = gold.model_copy(update={"criteria": [*gold.criteria, extra]})
    (last,) = [d for d in writer.corrections(draft, gold, "p") if d.action != "accept"]
    assert (last.action, last.criterion_id) == ("reject", "x") and last.reason


def test_examples_of_the_same_category_make_the_writer_err_less():
    profile = profiles.load("smoke", rubric_error_rate=0.25, rubric_pass_rate=0.96)
    rates = [
        writer.error_rate(profile, "triage", seen) for seen in ([], ["other"], ["triage", "other"])
    ]
    assert rates == pytest.approx([0.25, 0.02 + 0.23 * 0.6, 0.02 + 0.23 * 0.3 * 0.6])
