"""What the stages hand on: who judged what, in which split."""

import pytest

from promedical_utils import profiles, stages


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    profile, run = profiles.load("smoke"), tmp_path_factory.mktemp("run")
    stages.rubrics(profile, run)
    stages.preference_pairs(profile, run)
    return stages.data(run)


def test_physicians_read_the_calibration_split_and_the_judge_all(found):
    split = {row.instruction_id: row.split for row in found["splits"]}
    of = {c.id: split[c.instruction_id] for c in found["candidates"]}
    by = {}
    for v in found["verdicts"]:
        by.setdefault(v.judge, set()).add(of[v.candidate_id])
    assert by["adjudicated"] == {"calibration"}
    assert by["truth"] == by["judge"] == {"train", "calibration", "checkpoint", "bench", "external"}


def test_adjudicated_labels_are_nearer_to_the_truth_than_the_judge(found):
    wrong = {}
    for judge in ("judge", "adjudicated"):
        groups = [stages.groups(found, name, "calibration") for name in ("truth", judge)]
        pairs = [(a.verdicts[key], b.verdicts[key]) for a, b in zip(*groups, strict=True) for key in a.verdicts]
        wrong[judge] = sum(a != b for a, b in pairs) / len(pairs)
    assert 0 < wrong["adjudicated"] < wrong["judge"] / 2
