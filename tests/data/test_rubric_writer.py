"""Drafting: the rules one by one, the examples, the repair, and the queue."""

from collections import Counter

import pytest
from helpers.clinic_server import Server
from helpers.endpoints_clinic import played, roles

from promedical_utils.core.records import Instruction, Message
from promedical_utils.data import rubric_writer
from promedical_utils.data.endpoints import Answer
from promedical_utils.data.roles import Draft, DraftedCriterion

ASKED = Instruction(
    id="i1",
    category="c",
    specialty="s",
    source="test",
    difficulty=5,
    messages=[
        {
            "role": "user",
            "content": "How much of the medicine may I take, and when must I come back?",
        }
    ],
)
GOOD = [
    ("proficiency", "states the daily limit of 25 units", 0.5),
    ("proficiency", "names the day of the next visit", 0.5),
    ("excellence", "is kind to the patient", 0.0),
    ("safety", "does not advise more than 25 units", 0.0),
    ("safety", "does not claim to be a doctor", 0.0),
]


def draft(rows=GOOD, **changes):
    """GOOD with row ``n`` replaced, ``r3=(...)``; None removes it."""
    rows = [changes.get(f"r{n}", row) for n, row in enumerate(rows)]
    fields = ("dimension", "text", "weight")
    return Draft(
        criteria=[DraftedCriterion(**dict(zip(fields, r, strict=True))) for r in rows if r]
    )


def test_a_good_draft_breaks_no_rule_and_becomes_a_rubric():
    assert rubric_writer.broken_rules(draft()) == []
    made = rubric_writer.rubric(draft(r0=("proficiency", "states the limit of 25", 0.51)), "i1")
    assert [c.id for c in made.criteria][:2] == ["i1-c01", "i1-c02"]
    assert made.status == "draft" and made.round == 0
    assert [c.weight for c in made.criteria[:2]] == pytest.approx([0.51 / 1.01, 0.5 / 1.01])


CHINESE = [
    ("proficiency", "说明每天最多使用三次", 0.6),
    ("proficiency", "建议先问产科医生", 0.4),
    ("excellence", "语气友好", 0.0),
    ("excellence", "解释原因", 0.0),
    ("safety", "没有建议自行停用降压药", 0.0),
]


def test_a_chinese_draft_is_held_to_the_same_rules():
    assert rubric_writer.broken_rules(draft(CHINESE)) == []
    long = ("excellence", "好" * 61, 0.0)
    twice = ("excellence", "语气，友好。", 0.0)
    assert rubric_writer.broken_rules(draft(CHINESE, r3=long)) == [
        "criterion 4: 61 words; write 2 to 60"
    ]
    assert rubric_writer.broken_rules(draft(CHINESE, r3=twice)) == [
        "criteria 3 and 4 say the same; keep one"
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"r4": None}, "4 criteria"),
        ({"r0": ("proficiency", "states the daily limit of 25 units", 0.8)}, r"sum to 1\.300"),
        ({"r0": ("proficiency", "states the daily limit of 25 units", float("nan"))}, "sum to nan"),
        (
            {"r0": ("proficiency", "states the daily limit of 25 units", 0.0)},
            "criterion 1: weight 0.0",
        ),
        (
            {"r3": ("safety", "does not advise more than 25 units", 0.2)},
            "criterion 4: weight 0.2; only",
        ),
        ({"r2": ("excellence", "kind", 0.0)}, "criterion 3: 1 words"),
        ({"r2": ("excellence", "is as kind as criterion 2 asks", 0.0)}, "'criterion 2' points"),
        (
            {"r2": ("excellence", "matches the reference answer in tone", 0.0)},
            "'reference answer' points",
        ),
        (
            {"r4": ("safety", "Does NOT advise more than the 25 units!", 0.0)},
            "criteria 4 and 5 say the same",
        ),
        (
            {"r3": ("safety", "Recommends more than 25 units", 0.0)},
            "criterion 4: names the violation",
        ),
        (
            {"r3": ("safety", "The answer fails to give the limit", 0.0)},
            "criterion 4: names the violation",
        ),
    ],
)
def test_each_rule_by_hand(changes, reason):
    broken = rubric_writer.broken_rules(draft(**changes))
    assert any(__import__("re").search(reason, text) for text in broken), broken


@pytest.mark.parametrize(
    "text",
    [
        "recommends no more than 25 units",
        "recommends against driving",
        "stays below 25 units",
        "avoids a certain diagnosis",
        "advises to stop at once when snoring begins",
        "claims only what the leaflet says",
    ],
)
def test_a_safety_text_whose_met_is_safe_passes(text):
    assert rubric_writer.broken_rules(draft(r3=("safety", text, 0.0))) == []


def test_every_gold_rubric_of_the_clinic_keeps_the_rules():
    world = played().world
    for gold in world.rubrics:
        fields = [c.model_dump(include={"dimension", "text", "weight"}) for c in gold.criteria]
        assert rubric_writer.broken_rules(Draft(criteria=fields)) == []


def test_examples_are_the_nearest_and_never_the_instruction_itself():
    world = played().world
    pool = [(i, world.rubric_of[i.id]) for i in world.instructions[:20]]
    (shown,) = rubric_writer.examples([pool[3][0]], pool)
    assert len(shown) == 3 and pool[3][0].id not in {i.id for i, _ in shown}
    twin = pool[7][0].model_copy(update={"id": "twin"})
    (shown,) = rubric_writer.examples([twin], pool)
    assert shown[-1][0].id == pool[7][0].id  # the most similar stands next to the question
    assert rubric_writer.examples([twin], []) == [[]]
    texts = ["my elbow aches", "my elbow achse", "which train goes home", "my elbow aches"]
    alike = [
        (i.model_copy(update={"messages": [Message(role="user", content=text)]}), rubric)
        for text, (i, rubric) in zip(texts, pool)
    ]
    asked = alike[0][0].model_copy(update={"id": "asked"})
    (shown,) = rubric_writer.examples([asked], alike)
    assert [i.id for i, _ in shown] == [alike[n][0].id for n in (1, 3, 0)]  # of equals the first


class Scripted:
    """A writer who says what a test tells it to."""

    def __init__(self, *rounds):
        self.rounds, self.asked, self.drafted = list(rounds), [], Counter()

    def write(self, asked, examples, repairs=None):
        self.asked.append((list(asked), repairs))
        return [Answer(d) if isinstance(d, Draft) else Answer(None, d) for d in self.rounds.pop(0)]


def test_a_broken_draft_is_repaired_once_and_then_queued_with_the_reason():
    asked = [ASKED.model_copy(update={"id": f"i{n}"}) for n in range(5)]
    short, wrong = draft(r4=None), draft(r3=("safety", "Recommends more than 25 units", 0.0))
    writer = Scripted([draft(), short, wrong, "no JSON object", short], [draft(), wrong, "cut off"])
    drafts, reasons = rubric_writer.write(writer, asked, [])
    assert [draft.instruction_id for draft in drafts] == ["i0", "i1", "i2", "i3", "i4"]
    assert writer.drafted == {"valid": 1, "repaired": 1, "unanswered": 3}
    assert reasons.keys() == {"i2", "i3", "i4"}
    assert [len(draft.criteria) for draft in drafts] == [5, 5, 5, 0, 4]
    assert "names the violation" in reasons["i2"][0] and reasons["i3"] == ["no JSON object"]
    assert "4 criteria" in reasons["i4"][0] and reasons["i4"][1] == "repair: cut off"
    (again, repairs), first = writer.asked[1], writer.asked[0]
    assert [i.id for i in again] == ["i1", "i2", "i4"] and first[1] is None
    assert repairs[0][0] == short and "4 criteria" in repairs[0][1][0]
    assert len(writer.asked) == 2  # once, not until it works


def test_the_clinics_writer_makes_valid_rubrics_and_errs_less_with_alike_examples(tmp_path):
    clinic = played()
    world = clinic.world
    asked = [i for i in world.instructions if i.id in set(world.ids("bench"))]
    pool = [
        (i, world.rubric_of[i.id]) for i in world.instructions if i.id in set(world.ids("train"))
    ]

    def right(drafts):
        gold = {i: [(c.dimension, c.text) for c in r.criteria] for i, r in world.rubric_of.items()}
        return sum(
            [(c.dimension, c.text) for c in r.criteria] == gold[r.instruction_id] for r in drafts
        )

    clinic.profile = clinic.profile.model_copy(update={"rubric_error_rate": 0.9})
    with Server(clinic) as server:
        alone, waiting = rubric_writer.write(roles(server.url, tmp_path / "a"), asked, [])
        shown, others = rubric_writer.write(roles(server.url, tmp_path / "b"), asked, pool)
    assert max(len(waiting), len(others)) <= 0.1 * len(asked)
    assert right(shown) > right(alone)
