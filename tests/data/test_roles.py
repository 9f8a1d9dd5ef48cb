"""The roles as they ask the clinic's server: what is sent, what is accepted, what it leads to."""

import json

import pytest
from helpers.clinic_server import Server
from helpers.endpoints_clinic import played, profile, roles, tasks

from promedical_utils.clinic import generators
from promedical_utils.core.records import Message
from promedical_utils.core.workspace import KitError
from promedical_utils.data.roles import Draft, DraftedCriterion


@pytest.fixture(scope="module")
def clinic():
    return played()


@pytest.fixture(scope="module")
def server(clinic):
    with Server(clinic) as running:
        yield running


def bodies(asking, role):
    """The requests of a role as they were stored."""
    rows = asking.answers._db.execute("SELECT request FROM answers WHERE role = ?", (role,))
    return [json.loads(row[0]) for row in rows]


def test_answers_are_the_generators(clinic, server, tmp_path):
    asked = [i for i in clinic.world.instructions if i.id in clinic.world.ids("train")][:5]
    asking = roles(server.url, tmp_path)
    for name in generators.NAMES:
        found = [a.value for a in asking.answer(name, asked)]
        assert found == [clinic.world.answer(i.id, name) for i in asked]


def test_screening_and_classification_are_the_worlds(clinic, server, tmp_path):
    asked = clinic.world.instructions[:10]
    asking = roles(server.url, tmp_path)
    assert [a.value for a in asking.screen([i.messages for i in asked])] == [
        i.difficulty for i in asked
    ]
    found = [a.value for a in asking.classify([i.messages for i in asked])]
    assert [(c.medical, c.category, c.specialty) for c in found] == [
        (True, i.category, i.specialty) for i in asked
    ]


def test_a_class_that_is_not_in_the_lists_is_no_answer(clinic, server, tmp_path, monkeypatch):
    asking = roles(server.url, tmp_path)
    strange = {"medical": True, "category": "surgery of the soul", "specialty": "palm care"}
    monkeypatch.setitem(clinic._roles, "classifier", lambda asked: strange)
    (answer,) = asking.classify([clinic.world.instructions[0].messages])
    assert answer.value is None and "not in the lists" in answer.reason


def test_the_judge_reads_an_answer_as_the_truth_does_up_to_its_errors(clinic, server, tmp_path):
    asked = tasks(clinic.world, 20)
    rows = roles(server.url, tmp_path).judge(asked)
    truth = [clinic.world.gold(t.instruction.id, t.candidate.text) for t in asked]
    pairs = [(v.verdict, truth[n][v.criterion_id]) for n, row in enumerate(rows) for v in row]
    agreement = sum(a == b for a, b in pairs) / len(pairs)
    assert len(pairs) == sum(len(t.criteria) for t in asked)
    assert abs(agreement - profile().judge_agreement) < 0.04  # 20 x 3 x 8 verdicts, an input


def test_a_judge_sees_neither_ids_nor_generators(clinic, server, tmp_path):
    asking = roles(server.url, tmp_path)
    asked = tasks(clinic.world, 1)
    asking.judge(asked)
    for body in bodies(asking, "judge"):
        text = json.dumps(body["messages"])
        assert not any(
            word in text for word in (asked[0].instruction.id, "warm", "terse", "between")
        )
        assert body["response_format"]["json_schema"]["schema"]["additionalProperties"] is False
        assert body["temperature"] == 0.0


def test_without_response_format_the_schema_stands_in_the_prompt(clinic, server, tmp_path):
    asking = roles(server.url, tmp_path, structured="prompt")
    rows = asking.judge(tasks(clinic.world, 1))
    assert "unknown" not in {v.verdict for row in rows for v in row if "no usable" in v.rationale}
    for body in bodies(asking, "judge"):
        assert "response_format" not in body
        assert '"additionalProperties": false' in body["messages"][0]["content"]


def test_examples_and_repairs_are_turns_of_the_request(clinic, server, tmp_path):
    world = clinic.world
    first, second, third = world.instructions[:3]
    shown = [
        (second, world.rubric_of[second.id].criteria),
        (third, world.rubric_of[third.id].criteria),
    ]
    broken = Draft(
        criteria=[DraftedCriterion(dimension="safety", text="Recommends it", weight=1.0)]
    )
    asking = roles(server.url, tmp_path)
    (answer,) = asking.write([first], [shown], [(broken, ["names the violation"])])
    (body,) = bodies(asking, "writer")
    assert [m["role"] for m in body["messages"]] == ["system", *["user", "assistant"] * 3, "user"]
    assert json.loads(body["messages"][-1]["content"])["broken_rules"] == ["names the violation"]
    assert json.loads(body["messages"][2]["content"])["criteria"][0].keys() == {
        "dimension",
        "text",
        "weight",
    }
    assert isinstance(answer.value, Draft)


def test_an_answer_in_another_language_is_none(clinic, tmp_path):
    asked = clinic.world.instructions[:1]
    with Server(clinic, faults=1.0, kinds=("foreign",)) as running:
        (answer,) = roles(running.url, tmp_path).answer("terse", asked)
    assert answer.value is None and "language" in answer.reason


def test_a_role_without_an_endpoint_says_which(tmp_path):
    with pytest.raises(KitError, match=r"role writer has no endpoint.*roles\.writer\.endpoint"):
        roles("", tmp_path)


def test_an_unknown_conversation_is_refused_by_the_clinic(clinic, server, tmp_path):
    stranger = [[Message(role="user", content="Please write a poem.")]]
    (answer,) = roles(server.url, tmp_path).screen(stranger)
    assert answer.value is None and "no conversation of this clinic" in answer.reason
