"""Every text, verdict and id that the clinic makes at the smoke profile, held to the byte by hash.

A committed run is drawn from these: whoever changes one on purpose draws the committed runs anew.
"""

import hashlib
import random

import pytest
from helpers import clinic_server

from promedical_utils import clinic
from promedical_utils.clinic import external, pool, writer
from promedical_utils.core import profiles
from promedical_utils.data import roles
from promedical_utils.data.roles import conversation, request


@pytest.fixture(scope="module")
def profile():
    return profiles.load("smoke")


@pytest.fixture(scope="module")
def world(profile):
    return clinic.build(profile)


def fingerprint(*parts) -> str:
    """First 16 hex digits of the SHA-256 of how the parts are printed."""
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()[:16]


def test_the_world_and_its_rubrics(world):
    assert fingerprint(world.instructions, world.splits) == "625d2a5c6e71c28d"
    assert fingerprint(world.rubrics, list(world.patients.items())) == "20316ac8817e6976"


def test_the_answers_and_their_verdicts(world):
    answers = [
        (i.id, name, world.answer(i.id, name))
        for i in world.instructions
        for name in world.authors(i.id)
    ]
    verdicts = [world.gold(i, text) for i, _, text in answers]
    assert fingerprint(answers, verdicts) == "3ec83e3daf290ea0"


def test_the_raw_pool_and_its_truth(world, profile):
    rows, truth = pool.raw(world, world.ids("train"), profile.seed)
    assert fingerprint(rows, list(truth.items())) == "e45585a1127af1ef"


def test_the_external_clinic(world, profile):
    taken = [row.wording_seed for row in world.splits]
    made, documents = external.build(profile.seed, 24, taken)
    verdicts = [asked.verdicts(c) for asked in made for c in asked.candidates]
    assert fingerprint(made, documents, verdicts) == "f7f2163f22b4f767"


def test_the_drafts_flaws_and_corrections(world):
    made = []
    for number, rubric in enumerate(world.rubrics[:48]):
        for kind in writer.FLAWS:
            flawed = writer.flaw(rubric, kind, random.Random(number))
            made.append((flawed, writer.corrections(flawed, rubric, "physician_1")))
    assert fingerprint(made) == "f7cc40a5f7c80ea6"


def test_what_the_roles_are_answered(world, profile):
    played, replies = clinic_server.Clinic(world, profile), []
    for i in world.instructions[:24]:
        about = {"instruction": conversation(i.messages)}
        criteria = [
            {"id": f"c{n}", "text": c.text} for n, c in enumerate(world.rubric_of[i.id].criteria)
        ]
        task = about | {"answer": world.answer(i.id, "warm"), "criteria": criteria}
        for name, content in (("writer", about), ("screener", about), ("judge", task)):
            schema = {"writer": roles.Draft, "screener": roles.Screened, "judge": roles.Judged}
            replies.append(played.reply(list(request(name, content, schema[name]).messages)))
    assert fingerprint(replies) == "9c746ac0c5104f15"
