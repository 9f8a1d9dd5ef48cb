"""Open questions through every role, with faults: what is counted, against a recount by hand."""

import json
from collections import Counter

import pytest
from helpers.clinic_server import Server
from helpers.endpoints_clinic import QUICK, played

from promedical_studies import trial
from promedical_utils.clinic import generators, pool
from promedical_utils.core import profiles, records
from promedical_utils.core.profiles import CLINIC
from promedical_utils.core.workspace import KitError, read_json
from promedical_utils.data import rubric_writer
from promedical_utils.data.endpoints import Answers
from promedical_utils.data.roles import Draft, Roles

SPOILED = ("malformed", "empty", "truncated", "foreign", "not_json", "429")


@pytest.fixture
def clinic(monkeypatch):
    """A clinic that knows the writer's example."""
    clinic = played()
    monkeypatch.setattr(trial, "EXAMPLE", clinic.world.instructions[-1])
    return clinic


def settings(clinic, url, folder, count=8):
    ids = set(clinic.world.ids("train")[:count])
    rows = [
        records.RawInstruction(
            id=i.id, text=pool.text_of(i.messages), source="clinic", licence="MIT"
        )
        for i in clinic.world.instructions
        if i.id in ids
    ]
    source = folder / "questions.jsonl"
    source.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    roles = {name: {"model": "clinic"} | QUICK for name in CLINIC}
    return profiles.load("smoke", data="open", endpoint=url, sources=[str(source)], roles=roles)


def stored(folder):
    """role -> turns -> (temperature, messages, text, finish) each time it was asked, in order."""
    rows = Answers(folder / "asked/answers.sqlite")._db.execute(
        "SELECT role, request, text, finish FROM answers"
    )
    found = {}
    for role, request, text, finish in rows:
        body = json.loads(request)
        key = json.dumps(body["messages"])
        asked = found.setdefault(role, {}).setdefault(key, [])
        asked.append((body["temperature"], body["messages"], text, finish))
    return {
        role: {key: sorted(asked, key=lambda row: row[0]) for key, asked in of_role.items()}
        for role, of_role in found.items()
    }


def test_with_most_requests_spoiled_every_role_is_counted_as_by_hand(clinic, tmp_path):
    with Server(clinic, faults=0.7, kinds=SPOILED) as server:
        table = trial.trial(settings(clinic, server.url, tmp_path), tmp_path, 60)
        table = table.set_index("role")
        sent = server.requests
        report = read_json(tmp_path / "open.json", "trial")
        again = trial.trial(settings(clinic, server.url, tmp_path), tmp_path, 60)
        # unanswered or not, all is stored: the second call asks for nothing and counts the same
        assert server.requests == sent
    assert again.set_index("role").equals(table)
    assert report["questions"] == report["of"] == 8 and report["left_out"] == {
        "questions.jsonl": {}
    }
    found = stored(tmp_path)

    # what a server that spoils nothing says is the answer, and nothing else is
    def usable(row):
        _, messages, text, finish = row
        return finish == "stop" and text == clinic.reply(messages)

    for role in ("screener", "classifier", "judge", *(f"generator_{g}" for g in generators.NAMES)):
        counts = Counter()
        for asked in found[role].values():
            right = [n for n, row in enumerate(asked) if usable(row)]
            assert right in ([], [len(asked) - 1])  # not asked again once it was right
            counts["valid" if right == [0] else "repaired" if right else "left"] += 1
        row = table.loc[role]
        left = {"screener": "queued", "classifier": "queued", "judge": "unknown"}.get(
            role, "missing"
        )
        assert (row.valid, row.repaired, row[left]) == (
            counts["valid"],
            counts["repaired"],
            counts["left"],
        ), role
        assert row[["queued", "missing", "unknown"]].sum() == row[left]
        assert row.asked == counts.total() and row.lost == 0
    assert (table[["valid", "repaired"]].sum() > 0).all() and table.repaired["judge"] > 0
    given = table.filter(like="generator_", axis=0)
    assert table.asked["judge"] == (given.valid + given.repaired).sum()

    # the writer: a draft that no rule is broken by, at once or later
    counts = Counter()
    for n in range(8):
        text = json.loads((tmp_path / "questions.jsonl").read_text().splitlines()[n])["text"]
        turns = [
            rows
            for rows in found["writer"].values()
            if text in json.loads(rows[0][1][3]["content"])["instruction"][0]["content"]
        ]
        first, *repair = sorted(turns, key=lambda rows: len(rows[0][1]))
        tries = [row for rows in (first, *repair) for row in rows]
        last = good(tries[-1])
        counts["valid" if len(tries) == 1 and last else "repaired" if last else "queued"] += 1
    row = table.loc["writer"]
    assert dict(counts) == {k: v for k, v in row[["valid", "repaired", "queued"]].items() if v}
    assert row.asked == 8 and row.lost == 0

    # verdicts: one on each criterion of each answer; met where the judge's own words say so
    verdicts = Counter()
    for asked in found["judge"].values():
        task = json.loads(asked[0][1][-1]["content"])
        if usable(asked[-1]):
            verdicts.update(v["verdict"] for v in json.loads(asked[-1][2])["verdicts"])
        else:
            verdicts["unknown"] += len(task["criteria"])
    promises = dict.fromkeys(("lost", "doubled", "met without an answer"), 0)
    assert report["verdicts"] == promises | dict(verdicts)
    assert verdicts["met"] > 0 and table.unknown["judge"] > 0


def good(row):
    _, _, text, finish = row
    try:
        draft = Draft.model_validate_json(text)
    except ValueError:
        return None
    return draft if finish == "stop" and not rubric_writer.broken_rules(draft) else None


def test_what_a_mumbling_model_says_is_queued_or_unknown_and_broken_promises_are_counted(
    clinic, tmp_path, monkeypatch
):
    for role in ("writer", "screener", "classifier", "judge"):
        monkeypatch.setitem(clinic._roles, role, lambda asked: "The question is about a cold.")
    with Server(clinic) as server:
        profile = settings(clinic, server.url, tmp_path, 2)
        table = trial.trial(profile, tmp_path, 60).set_index("role")
        assert list(table.asked) == [2, 2, 2, 2, 2, 2, 6] and not table.repaired.any()
        assert list(table.valid) == [0, 0, 0, 2, 2, 2, 0] and not table.lost.any()
        assert list(table.queued) == [2, 2, 2, 0, 0, 0, 0] and table.unknown["judge"] == 6
        verdicts = read_json(tmp_path / "open.json", "trial")["verdicts"]
        # its rubrics are queued, so that the stand-in's five criteria are judged
        assert {k: v for k, v in verdicts.items() if v} == {"unknown": 2 * 3 * 5}
        # until the time is over: the question that was begun is asked to its end
        assert trial.trial(profile, tmp_path, 0).asked.tolist() == [1, 1, 1, 1, 1, 1, 3]
        judge = Roles.judge

        def lenient(roles, tasks):
            met = [
                [v.model_copy(update={"verdict": "met"}) for v in r] for r in judge(roles, tasks)
            ]
            return [[*row[1:], row[-1]] for row in met]  # the first lost, the last doubled

        monkeypatch.setattr(Roles, "judge", lenient)
        trial.trial(profile, tmp_path, 60)
    broken = read_json(tmp_path / "open.json", "trial")["verdicts"]
    assert (broken["lost"], broken["doubled"], broken["met without an answer"]) == (6, 6, 30)
    with pytest.raises(KitError, match="open questions"):
        trial.trial(profiles.load("smoke"), tmp_path, 60)


def test_the_stand_in_keeps_the_rules_of_a_rubric():
    rubric = trial.stand_in("q1")
    fields = [c.model_dump(include={"dimension", "text", "weight"}) for c in rubric.criteria]
    assert rubric_writer.broken_rules(Draft(criteria=fields)) == []
