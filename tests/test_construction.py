"""Rubrics and pairs made over endpoints, as notebooks 01 and 02 do it, against the clinic's server."""

from endpoints_clinic import QUICK

from promedical_utils import clinic, profiles, records, stages
from promedical_utils.clinic.server import Clinic, Server
from promedical_utils.profiles import CLINIC

SMALL = {"train_instructions": 40, "calibration_instructions": 6, "checkpoint_instructions": 4,
         "bench_samples": 6, "external_instructions": 4, "review_batch": 12, "review_blind": 8}  # fmt: skip


def settings(url, **changes):
    roles = {name: {"model": "clinic", **QUICK, "timeout": 0.5} for name in CLINIC}
    return profiles.load("smoke", endpoint=url, roles=roles, **SMALL, **changes)


def test_the_path_over_endpoints_ends_in_pairs_and_a_second_run_asks_nothing(tmp_path):
    """Notebooks 01 and 02 over HTTP, three requests of ten failing; then both again."""
    plain = settings("")
    w = clinic.build(plain)
    with Server(Clinic(w, plain), faults=0.3, slow=0.6) as server:
        profile = settings(server.url)
        made = stages.rubrics(profile, tmp_path), stages.preference_pairs(profile, tmp_path)
        before = server.requests
        again = stages.rubrics(profile, tmp_path), stages.preference_pairs(profile, tmp_path)
        assert server.requests == before and again[1]["training_pairs"] == made[1]["training_pairs"]
    assert made[0]["writing"]["valid_share"] >= 0.95
    assert made[1]["unanswered"] == {} and made[1]["training_pairs"] > 100
    assert abs(made[1]["input_judge_agreement"] - profile.judge_agreement) < 0.03
    found = stages.data(tmp_path)
    # nothing lost and nothing doubled: a verdict of the judge and of the truth for every criterion
    cells = [(c.id, x.id) for c in found["candidates"] for r in found["rubrics"]
             if r.instruction_id == c.instruction_id for x in r.criteria]  # fmt: skip
    for judge in ("judge", "truth"):
        said = [(v.candidate_id, v.criterion_id) for v in found["verdicts"] if v.judge == judge]
        assert sorted(said) == sorted(cells)
    assert {c.text for c in found["candidates"]} == {
        w.answer(i.id, g) for i in found["instructions"] for g in ("warm", "terse", "between")
    }
    # every criterion's kind is known again, and reviewed rubrics are the world's gold
    assert "unspecified" not in {c.kind for r in found["rubrics"] for c in r.criteria}
    for r in (r for r in found["rubrics"] if r.status == "gold"):
        gold = {(c.dimension, c.text) for c in w.rubric_of[r.instruction_id].criteria}
        assert {(c.dimension, c.text) for c in r.criteria} == gold


def test_in_process_drafts_are_corrected_in_rounds_and_the_rest_is_drafted(tmp_path):
    profile = profiles.load("smoke", **SMALL | {"review_blind": 4, "review_controls": 2, "rubric_error_rate": 0.5})
    report = stages.rubrics(profile, tmp_path)
    written = records.load(tmp_path / "data/rubrics.parquet", records.Rubric, "01_rubrics")
    drafts = records.load(tmp_path / "data/drafts.parquet", records.Rubric, "01_rubrics")
    train = set(clinic.build(profile).ids("train"))
    assert {d.instruction_id for d in drafts} == train  # every draft as it came
    status = {r.instruction_id: r.status for r in written if r.instruction_id in train}
    reviewed = sum(row["reviewed"] + row["blind_n"] + row["control_n"] for row in report["rounds"])
    assert list(status.values()).count("gold") == reviewed
    assert list(status.values()).count("draft") == report["unreviewed"]["drafted"] == 40 - reviewed


def test_judge_errors_by_hand():
    def verdict(judge, n, value):
        return records.Verdict(candidate_id=f"a{n}", criterion_id="c", judge=judge, verdict=value)

    criteria = [records.Criterion(id="c", dimension="proficiency", text="t", weight=1.0)]
    rubric = records.Rubric(instruction_id="i", criteria=criteria, status="gold", round=0)
    truth, said = "not_met not_met not_met met met unknown".split(), "met not_met unknown met not_met met".split()
    rows = [verdict("truth", n, v) for n, v in enumerate(truth)] + [verdict("judge", n, v) for n, v in enumerate(said)]
    frame = stages.judge_errors({"rubrics": [rubric], "verdicts": rows})
    found = frame[frame.dimension == "proficiency"].set_index("error")
    assert (found.n["lenient"], found.rate["lenient"]) == (2, 0.5)
    assert (found.n["strict"], found.rate["strict"]) == (2, 0.5)
    assert frame[frame.dimension == "safety"].rate.isna().all()
