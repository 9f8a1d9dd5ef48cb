"""Rubrics and pairs made over endpoints, as notebooks 01 and 02 do it, against the clinic's
server."""

from functools import partial

import pandas as pd
import pytest
from helpers.clinic_server import Clinic, Server
from helpers.endpoints_clinic import QUICK

from promedical_utils import clinic
from promedical_utils.clinic import pool
from promedical_utils.core import profiles, records, run_data
from promedical_utils.core.profiles import CLINIC
from promedical_utils.core.workspace import KitError
from promedical_utils.data.annotation.store import Store
from promedical_utils.data.sources import real_sets
from promedical_utils.pipeline import policies, preference_pairs, rubrics
from promedical_utils.report import figures

SMALL = {
    "train_instructions": 40,
    "calibration_instructions": 6,
    "checkpoint_instructions": 4,
    "bench_samples": 6,
    "external_instructions": 4,
    "review_batch": 12,
    "review_blind": 8,
}


def settings(url, **changes):
    roles = {name: {"model": "clinic", **QUICK, "timeout": 0.5} for name in CLINIC}
    return profiles.load("smoke", endpoint=url, roles=roles, **SMALL, **changes)


def test_the_path_over_endpoints_ends_in_pairs_and_a_second_run_asks_nothing(tmp_path):
    """Notebooks 01 and 02 over HTTP, three requests of ten failing; then both again."""
    plain = settings("")
    w = clinic.build(plain)
    with Server(Clinic(w, plain), faults=0.3, slow=0.6) as server:
        profile = settings(server.url)
        made = (
            rubrics.make_rubrics(profile, tmp_path),
            preference_pairs.make_preference_pairs(profile, tmp_path),
        )
        before = server.requests
        again = (
            rubrics.make_rubrics(profile, tmp_path),
            preference_pairs.make_preference_pairs(profile, tmp_path),
        )
        assert server.requests == before and again[1]["training_pairs"] == made[1]["training_pairs"]
    assert made[0]["writing"]["valid_share"] >= 0.95
    assert len(made[1]["unanswered"]) <= 2 and made[1]["training_pairs"] > 100
    assert abs(made[1]["input_judge_agreement"] - profile.judge_agreement) < 0.03
    found = run_data.RunData.load(tmp_path)
    # nothing lost and nothing doubled: a verdict of the judge and of the truth for every criterion
    cells = [
        (c.id, x.id)
        for c in found.candidates
        for r in found.rubrics
        if r.instruction_id == c.instruction_id
        for x in r.criteria
    ]
    for judge in ("judge", "truth"):
        said = [(v.candidate_id, v.criterion_id) for v in found.verdicts if v.judge == judge]
        assert sorted(said) == sorted(cells)
    texts = {w.answer(i.id, g) for i in found.instructions for g in ("warm", "terse", "between")}
    assert {c.text for c in found.candidates} <= texts  # none in another language, none cut off
    assert len(found.candidates) + len(made[1]["unanswered"]) == 3 * len(found.instructions)
    # and so of every role: what went in came out, right at once or later, or is counted as left
    writing, funnel = made[0]["writing"], pd.read_csv(tmp_path / "data/funnel.csv")
    counts = {
        name: sum(row.values()) for name, row in (writing["roles"] | made[1]["roles"]).items()
    }
    funnel = funnel.set_index("step")
    assert counts == {
        "screener": funnel.before["difficulty"],
        "classifier": funnel.before["medical"],
        "writer": writing["drafted"],
        **{f"generator_{name}": len(found.instructions) for name in ("warm", "terse", "between")},
        "judge": len(found.candidates),
    }
    assert (funnel.before == funnel.dropped + funnel.queued + funnel.after).all()
    left = {name: row["unanswered"] for name, row in (writing["roles"] | made[1]["roles"]).items()}
    assert left["screener"] == funnel.queued["difficulty"]
    assert left["classifier"] == funnel.queued["medical"]
    assert left["writer"] == len(writing["queued"])
    assert sum(n for name, n in left.items() if "_" in name) == len(made[1]["unanswered"])
    assert sum(row["repaired"] for row in made[1]["roles"].values()) > 0
    # every criterion's kind is known again, and reviewed rubrics are the world's gold
    assert "unspecified" not in {c.kind for r in found.rubrics for c in r.criteria}
    for r in (r for r in found.rubrics if r.status == "gold"):
        gold = {(c.dimension, c.text) for c in w.rubric_of[r.instruction_id].criteria}
        assert {(c.dimension, c.text) for c in r.criteria} == gold


def test_open_questions_without_a_key_end_in_pairs_and_physicians_can_join(tmp_path):
    """The profile of one GPU, its open weights played by the clinic's server; then two
    reviewers."""
    plain = settings("")
    w = clinic.build(plain)
    rows, _ = pool.raw(w, w.ids("train"), plain.seed)
    source = tmp_path / "pool.jsonl"
    source.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    sizes = {
        "train_instructions": 20,
        "calibration_instructions": 6,
        "checkpoint_instructions": 2,
        "bench_samples": 6,
        "review_batch": 8,
        "review_blind": 4,
        "review_controls": 2,
    }
    licences = {row.licence for row in rows if row.licence.startswith(("MIT", "CC0", "CC-BY-4"))}
    with Server(Clinic(w, plain)) as server:
        gpu = partial(
            profiles.load,
            "gpu",
            data="open",
            endpoint=server.url,
            sources=[str(source)],
            licences=sorted(licences),
            **sizes,
        )
        report = rubrics.make_rubrics(gpu(), tmp_path / "run")
        made = preference_pairs.make_preference_pairs(gpu(), tmp_path / "run")
        assert report["writing"]["valid_share"] >= 0.95 and report["rubrics"]["gold"] == 0
        assert made["training_pairs"] > 30 and made["unanswered"] == {}
        splits = [row.split for row in run_data.RunData.load(tmp_path / "run").splits]
        assert [splits.count(s) for s in ("train", "calibration", "checkpoint", "bench")] == [
            20,
            6,
            2,
            6,
        ]

        # a policy's answers are read by the endpoint's judge, criterion by criterion; there is no
        # truth
        found = run_data.RunData.load(tmp_path / "run")
        gold, judged = policies.policy_judges(gpu(), tmp_path / "run", found)
        some, stored = found.candidates[:3], {}
        for v in found.verdicts:
            stored.setdefault(v.candidate_id, {})[v.criterion_id] = v.verdict
        assert gold is None and judged([(c.instruction_id, c.text) for c in some]) == [
            stored[c.id] for c in some
        ]
        with pytest.raises(KitError, match="nobody here can judge"):
            policies.policy_judges(profiles.load("real"), tmp_path / "run", found)

        people = gpu(reviewers=["ann", "bob"])
        for _ in range(20):
            try:
                report = rubrics.make_rubrics(people, tmp_path / "run")
                break
            except KitError as waiting:
                assert "wait for review" in str(waiting)
            store = Store(tmp_path / "run/review.sqlite")
            for name in people.reviewers:
                while item := store.next_item(name):
                    for c in item.draft.criteria:
                        decision = records.Decision(
                            instruction_id=item.draft.instruction_id,
                            criterion_id=c.id,
                            reviewer=name,
                            action="accept",
                            criterion=c,
                        )
                        version = store.save(item.id, decision, item.version)
                        item = store.item(item.id)
                    store.finish(item.id, name, version)
            store.close()
    assert report["rounds"][0]["blind_pass_rate"] == 1.0  # they accepted everything
    assert report["rubrics"]["gold"] == sum(
        row["reviewed"] + row["blind_n"] + row["control_n"] for row in report["rounds"]
    )


def test_a_draft_against_the_rules_waits_for_physicians_and_is_never_used(tmp_path, monkeypatch):
    plain = settings("")
    w = clinic.build(plain)
    train = set(w.ids("train"))
    rows = [
        records.RawInstruction(
            id=i.id, text=pool.text_of(i.messages), source="clinic", licence="MIT"
        )
        for i in w.instructions
        if i.id in train
    ]
    source = tmp_path / "pool.jsonl"
    source.write_text("".join(row.model_dump_json() + "\n" for row in rows))
    played = Clinic(w, plain)
    write, refused = played._roles["writer"], w.ids("train")[:3]

    def short(asked):
        found = write(asked)
        instruction = next(turn["instruction"] for turn in reversed(asked) if "instruction" in turn)
        return (
            {"criteria": found["criteria"][:2]}
            if played._patient(instruction) in refused
            else found
        )

    monkeypatch.setitem(played._roles, "writer", short)
    sizes = {
        "train_instructions": 30,
        "calibration_instructions": 4,
        "checkpoint_instructions": 2,
        "bench_samples": 3,
    }
    # one of the questions stands in a set that others are tested on
    known = {
        w.ids("train")[5]: next(
            pool.text_of(i.messages) for i in w.instructions if i.id == w.ids("train")[5]
        )
    }
    monkeypatch.setattr(real_sets, "held_out_questions", lambda: known)
    monkeypatch.setenv("PROMEDICAL_DATA_DIR", str(tmp_path))
    with Server(played) as server:
        profile = profiles.load(
            "gpu", data="open", endpoint=server.url, sources=[str(source)], **sizes
        )
        report = rubrics.make_rubrics(profile, tmp_path / "open")
        over_http = rubrics.make_rubrics(settings(server.url), tmp_path / "clinic")
    assert set(report["writing"]["queued"]) == set(refused)
    written = records.load(tmp_path / "open/data/rubrics.parquet", records.Rubric, "01_rubrics")
    assert not {r.instruction_id for r in written} & set(refused) and len(written) == 36
    assert report["curation"]["dropped"]["bench"] == 1
    left_out = pd.read_parquet(tmp_path / "open/data/left_out.parquet").set_index("id")
    assert left_out.step[w.ids("train")[5]] == "bench"
    store = Store(tmp_path / "open/review.sqlite")
    reasons = [store.next_item(name).reason for name in ("ann", "bob", "cem")]
    store.close()
    assert all("2 criteria; write 5 to 12" in reason for reason in reasons)
    # in the clinic its physicians write it at once
    gold = {
        r.instruction_id: r
        for r in records.load(
            tmp_path / "clinic/data/rubrics.parquet", records.Rubric, "01_rubrics"
        )
    }
    assert set(over_http["writing"]["queued"]) == set(refused)
    for i in refused:
        assert gold[i].status == "gold"
        assert {c.text for c in gold[i].criteria} == {c.text for c in w.rubric_of[i].criteria}


def test_in_process_drafts_are_corrected_in_rounds_and_the_rest_is_drafted(tmp_path):
    profile = profiles.load(
        "smoke", **SMALL | {"review_blind": 4, "review_controls": 2, "rubric_error_rate": 0.5}
    )
    report = rubrics.make_rubrics(profile, tmp_path)
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
    truth, said = (
        "not_met not_met not_met met met unknown".split(),
        "met not_met unknown met not_met met".split(),
    )
    rows = [verdict("truth", n, v) for n, v in enumerate(truth)] + [
        verdict("judge", n, v) for n, v in enumerate(said)
    ]
    answers = [
        records.Candidate(id=f"a{n}", instruction_id="i", generator="g", text="t") for n in range(6)
    ]
    data = run_data.RunData(rubrics=[rubric], candidates=answers, verdicts=rows)
    frame = preference_pairs.judge_errors(data)
    found = frame[frame.dimension == "proficiency"].set_index("error")
    assert (found.n["lenient"], found.rate["lenient"]) == (2, 0.5)
    assert (found.n["strict"], found.rate["strict"]) == (2, 0.5)
    assert frame[frame.dimension == "safety"].rate.isna().all()


def test_figures_show_what_the_frames_hold():
    frame = pd.DataFrame(
        {
            "step": ["licence", "length"],
            "before": [100, 90],
            "dropped": [10, 5],
            "queued": [0, 3],
            "after": [90, 82],
        }
    )
    axis = figures.plot_funnel(frame).axes[0]
    assert [bar.get_width() for bar in axis.patches] == [
        90,
        82,
        10,
        8,
    ]  # kept, then dropped or queued
    assert [text.get_text() for text in axis.texts] == ["90   −10", "82   −5   3 queued"]
    rounds = pd.DataFrame(
        {
            "round": [1, 2, 3],
            "pass_rate": [0.7, 0.8, 0.9],
            "blind_pass_rate": [0.8, 0.9, None],
            "low": [0.7, 0.8, 0.0],
            "high": [0.9, 0.95, 1.0],
        }
    )
    line = figures.plot_pass_rate(rounds, 0.964).axes[0].lines[0]
    assert line.get_ydata().tolist() == [80.0, 90.0]  # a round without a blind sample has no point
    rates = pd.DataFrame(
        {
            "dimension": ["safety"] * 2,
            "error": ["lenient", "strict"],
            "rate": [0.2, 0.1],
            "low": [0.1, 0.05],
            "high": [0.3, 0.2],
            "n": [10, 20],
        }
    )
    axis = figures.plot_judge_errors(rates).axes[0]
    intervals, points = axis.collections[:2]
    assert points.get_offsets()[:, 0].round(6).tolist() == [20.0, 10.0]
    assert [path[:, 0].round(6).tolist() for path in intervals.get_segments()] == [
        [10.0, 30.0],
        [5.0, 20.0],
    ]
    assert [text.get_text() for text in axis.texts] == ["n = 10", "n = 20"]
    made = pd.DataFrame(
        {"category": ["triage"], "proficiency": [3.0], "excellence": [1.0], "safety": [2.0]}
    )
    axis = figures.plot_composition(made).axes[0]
    assert [(bar.get_x(), bar.get_width()) for bar in axis.patches] == [(0, 3), (3, 1), (4, 2)]
