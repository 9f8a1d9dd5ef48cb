"""The bench: exact counts, blind grading, and every metric against a slow count by hand."""

from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pandas as pd
import pytest
from helpers import benches

from promedical_utils.clinic import people
from promedical_utils.core.records import Candidate, Criterion
from promedical_utils.core.workspace import KitError
from promedical_utils.evaluation import bench, scorers
from promedical_utils.report import tables
from promedical_utils.rubric import scoring
from promedical_utils.rubric.preferences import Group


@pytest.fixture(scope="module")
def made():
    return benches.make()[0]


@pytest.fixture(scope="module")
def predicted(made):
    return benches.noisy(made)


def value_of(made, predicted, scorer, metric, part="all", against="adjudicated"):
    frame = bench.tally(made, predicted).table(20, 0)
    row = frame[(frame.scorer == scorer) & (frame.metric == metric)]
    return row[(row.slice == part) & (row.against == against)].iloc[0]


def by_hand(verdicts, made):
    """Scores of every candidate with scoring.score, from {(candidate, criterion): verdict}."""
    _, _, rubrics, candidates, _ = benches.world()
    rubric_of, scores = {r.instruction_id: r for r in rubrics}, {}
    for candidate in candidates:
        if candidate.instruction_id in set(made.samples.instruction_id):
            rubric = rubric_of[candidate.instruction_id]
            mine = {c.id: verdicts[candidate.id, c.id] for c in rubric.criteria}
            scores[candidate.id] = scoring.score(rubric, mine)
    return scores


def column(made, name):
    return dict(
        zip(
            zip(made.verdicts.candidate_id, made.verdicts.criterion_id, strict=True),
            made.verdicts[name],
            strict=True,
        )
    )


# ---------------------------------------------------------------- composition


def test_counts_are_exact_and_pairs_are_real(made):
    assert len(made.samples) == 24 and len(made.grades) == 72
    assert made.pairs.dimension.value_counts().to_dict() == {
        "proficiency": 30,
        "excellence": 11,
        "safety": 9,
    }
    label, truth = column(made, "adjudicated"), column(made, "truth")
    value = {"met": 1, "not_met": 0, "unknown": None}
    for p in made.pairs.itertuples():
        of = value | ({"unknown": 0} if p.dimension == "safety" else {})
        assert of[label[p.chosen_id, p.criterion_id]] == 1
        assert of[label[p.rejected_id, p.criterion_id]] == 0
        a, b = of[truth[p.chosen_id, p.criterion_id]], of[truth[p.rejected_id, p.criterion_id]]
        same = {(1, 0): "same", (0, 1): "reversed"}.get((a, b), "none")
        assert p.truth == same
    columns = ["criterion_id", "chosen_id", "rejected_id"]
    assert not made.pairs.duplicated(columns).any()


def test_reserve_counts_every_differing_pair(made):
    label, found = column(made, "adjudicated"), {d: 0 for d in benches.KINDS.values()}
    criteria = made.criteria.set_index("criterion_id").dimension
    by_criterion = {}
    for (_, criterion), verdict in label.items():
        by_criterion.setdefault(criterion, []).append(verdict)
    for criterion, said in by_criterion.items():
        if criteria[criterion] == "safety":
            said = ["met" if v == "met" else "not_met" for v in said]
        found[criteria[criterion]] += sum(
            {a, b} == {"met", "not_met"} for a, b in combinations(said, 2)
        )
    for dimension, counts in made.report["pairs"].items():
        assert counts["drawn"] + counts["reserve"] == found[dimension]


def test_the_same_seed_gives_the_same_bench_and_another_does_not(made, tmp_path):
    again, other = benches.make()[0], benches.make(seed=0, **{"judge_agreement": 0.9})[0]
    for name in bench.FRAMES:
        pd.testing.assert_frame_equal(getattr(made, name), getattr(again, name))
        pd.testing.assert_frame_equal(getattr(made, name), getattr(other, name))
    fresh = benches.compose(benches.profile().model_copy(update={"seed": 1}))
    assert set(fresh.samples.instruction_id) != set(made.samples.instruction_id)
    made.save(tmp_path)
    back = bench.Bench.load(tmp_path)
    assert back.report == made.report
    pd.testing.assert_frame_equal(back.pairs, made.pairs)
    (tmp_path / "grades.parquet").unlink()
    with pytest.raises(KitError, match="grades.parquet: run notebook 04_promedical_bench"):
        bench.Bench.load(tmp_path)


def test_samples_of_fewer_answers_are_counted(made):
    """A generator behind an endpoint may give none."""
    groups, settings = benches.groups(), benches.profile()
    drawn = sorted(made.samples.instruction_id)[:2]
    few = [
        replace(g, candidates=g.candidates[:-1]) if g.instruction.id in drawn else g for g in groups
    ]
    condition_of = made.samples.set_index("instruction_id").condition.to_dict()
    panel = people.Panel(0.9, settings.seed)
    found = bench.compose(few, condition_of, benches.UNSEEN, panel, settings)
    assert found.report["fewer_answers"] == 2 and "fewer_answers" not in made.report
    assert len(found.samples) == 24 and len(found.grades) == 72 - 2 * 2
    reported = map(tables.reported, ("bench_composition", "pipeline_counts"))
    shown = tables.build_bench_composition(*reported, found.report, settings)
    [row] = shown[shown.quantity == "samples with fewer than three answers"].to_dict("records")
    assert (row["run"], row["status"]) == ("2", "this run")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"bench_samples": 31}, "30 held-out instructions.*enlarge the bench split"),
        ({"bench_pairs_safety": 500}, "differing safety pairs.*enlarge bench_samples"),
    ],
)
def test_too_few_says_what_to_enlarge(changes, says):
    with pytest.raises(KitError, match=says):
        benches.make(**changes)


def test_grading_is_blind_and_follows_the_lexicographic_order(made):
    first, second = made.samples.order_1, made.samples.order_2
    assert all(
        sorted(a.split("|")) == sorted(b.split("|")) for a, b in zip(first, second, strict=True)
    )
    assert (first != second).any() and len(set(first.map(lambda o: o.replace("i", "")[3]))) == 3
    scores = by_hand(column(made, "truth"), made)
    for g in made.grades.itertuples():
        a, b = scores[g.a_id], scores[g.b_id]
        assert np.sign(g.truth) == scoring.compare(a, b)
        assert (abs(g.truth) == 2) == (a.s3 != b.s3 or abs(a.s1 - b.s1) > 0.29)
        assert g.adjudicated == g.physician_1 or g.physician_1 != g.physician_2
    sure = benches.make(agreement=1.0)[0]
    assert (sure.grades.adjudicated == sure.grades.truth).all()
    assert (sure.verdicts.adjudicated == sure.verdicts.truth).all()
    assert (sure.pairs.truth == "same").all()
    assert sure.report["input"]["grades"]["kappa_quadratic"] == 1


# ---------------------------------------------------------------- ceiling


def test_ceiling_beats_majorities_that_no_order_keeps():
    votes = {("a", "b"): 3, ("b", "a"): 1, ("b", "c"): 2, ("c", "a"): 4}  # a > b > c > a
    rows = [("i", "x", *pair) for pair, n in votes.items() for _ in range(n)]
    pairs = pd.DataFrame(
        rows, columns=["instruction_id", "criterion_id", "chosen_id", "rejected_id"]
    )
    # by hand: c > a > b keeps 4 + 3; majorities alone would give 3 + 2 + 4 = 9 of 10
    assert bench.blind_ceiling(pairs) == 7 / 10


def test_no_scalar_scorer_beats_the_ceiling(made):
    pairs, best = made.pairs, 0
    for _, group in pairs.groupby("instruction_id"):
        names = sorted({*group.chosen_id, *group.rejected_id})
        ranks = [dict(zip(order, range(len(order)), strict=True)) for order in permutations(names)]
        best += max(
            sum(r[w] > r[v] for w, v in zip(group.chosen_id, group.rejected_id, strict=True))
            for r in ranks
        )
    assert bench.blind_ceiling(pairs) == best / len(pairs) < 1


# ---------------------------------------------------------------- metrics


@pytest.mark.parametrize("against", ["adjudicated", "truth"])
def test_overall_is_the_lexicographic_order_then_expectation(made, predicted, against):
    mine = predicted[predicted.scorer == "criterion"].set_index(["candidate_id", "criterion_id"])
    criteria = made.criteria.set_index("criterion_id")
    said = {key: "met" if row.met else "not_met" for key, row in mine.iterrows()}
    scores = by_hand(said, made)
    expected = {}
    for (candidate, criterion), row in mine.iterrows():
        e, c = expected.setdefault(candidate, [0.0, 0.0, 0.0]), criteria.loc[criterion]
        e[0] -= (1 - row.probability) * (c.dimension == "safety")
        e[1] += row.probability * c.weight
        e[2] += row.probability * (c.dimension == "excellence")
    right = counted = 0
    for g in made.grades.to_dict("records"):
        order = scoring.compare(scores[g["a_id"]], scores[g["b_id"]])
        if order == 0:
            a, b = expected[g["a_id"]], expected[g["b_id"]]
            order = (a > b) - (a < b)
        if g[against]:
            counted += 1
            right += order == np.sign(g[against])
    row = value_of(made, predicted, "criterion", "overall", against=against)
    assert row.n == counted and row.value == pytest.approx(right / counted)


def test_the_last_digit_of_a_sum_prefers_no_answer(made, predicted):
    flat = predicted[predicted.scorer == "criterion"].assign(met=False, probability=0.3)
    truth = flat.merge(made.verdicts, on=["candidate_id", "criterion_id"], how="left").truth
    for noise, tied in ((0.0, True), (1e-13, True), (1e-6, False)):
        told = flat.assign(probability=0.3 + noise * (truth == "met").to_numpy())
        row = value_of(made, told, "criterion", "overall", against="truth")
        assert (row.value == 0.5) == tied


@pytest.mark.parametrize("against", ["adjudicated", "truth"])
@pytest.mark.parametrize("scorer", ["criterion", "scalar_blind"])
def test_pairwise_by_hand(made, predicted, scorer, against):
    mine = predicted[predicted.scorer == scorer]
    score = {(r.candidate_id, r.criterion_id): r.score for r in mine.itertuples()}
    for part in ("proficiency", "safety", "unseen", "all"):
        hits, n = 0, 0
        for p in made.pairs.itertuples():
            inside = part in ("all", p.dimension) or (part == "unseen" and not p.seen)
            if not inside or (against == "truth" and p.truth == "none"):
                continue
            key = p.criterion_id if scorer == "criterion" else ""
            a, b = score[p.chosen_id, key], score[p.rejected_id, key]
            if against == "truth" and p.truth == "reversed":
                a, b = b, a
            hits, n = hits + (a > b) + 0.5 * (a == b), n + 1
        row = value_of(made, predicted, scorer, "pairwise", part, against)
        assert row.n == n and row.value == pytest.approx(hits / n)


def test_veto_and_pointwise_by_hand(made, predicted):
    mine = (
        predicted[predicted.scorer == "criterion"].set_index(["candidate_id", "criterion_id"]).met
    )
    dimension = made.criteria.set_index("criterion_id").dimension
    tp = fp = fn = right = n = 0
    for (candidate, criterion), verdict in column(made, "truth").items():
        called = not mine[candidate, criterion]
        if dimension[criterion] == "safety":
            violation = verdict != "met"  # unknown is a violation
            tp, fp, fn = (
                tp + (called and violation),
                fp + (called and not violation),
                fn + (violation and not called),
            )
        elif dimension[criterion] == "proficiency" and verdict != "unknown":
            right, n = right + (called == (verdict == "not_met")), n + 1
    found = {
        name: value_of(made, predicted, "criterion", f"veto_{name}", "safety", "truth").value
        for name in ("precision", "recall", "f1")
    }
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    assert found["precision"] == pytest.approx(precision)
    assert found["recall"] == pytest.approx(recall)
    assert found["f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    row = value_of(made, predicted, "criterion", "pointwise", "proficiency", "truth")
    assert row.n == n and row.value == pytest.approx(right / n)


RULED = {f"veto_{m}_{r}" for m in ("precision", "recall", "f1") for r in bench.RULES}
RULED |= {f"clean_vetoed_{rule}" for rule in bench.RULES}


def test_scalars_have_no_verdicts_a_tie_is_half_right_and_nan_is_wrong(made):
    answers = made.verdicts[["instruction_id", "candidate_id"]].drop_duplicates()
    for score, points in ((1.0, 0.5), (np.nan, 0.0)):
        flat = bench.predictions("flat", answers.assign(criterion_id="", score=score))
        frame = bench.tally(made, flat).table(20, 0)
        assert set(frame.metric) == {"pairwise", "overall", "conflict", *RULED}
        rows = frame[(frame.n > 0) & ~frame.metric.isin(RULED)]
        assert (rows.value == points).all()


def test_a_verdict_that_is_not_there_counts_as_a_violation(made, predicted):
    mine = predicted[predicted.scorer == "criterion"].copy()
    mine["met"], mine["probability"] = pd.array([pd.NA] * len(mine), "boolean"), np.nan
    assert value_of(made, mine, "criterion", "veto_recall", "safety", "truth").value == 1


def test_shorter_is_where_length_is_wrong(made, predicted):
    assert value_of(made, predicted, "length", "pairwise", "shorter").value == 0  # and no ties
    words = predicted[predicted.scorer == "length"].set_index("candidate_id").score
    pairs = made.pairs
    wrong = words[pairs.chosen_id].to_numpy() < words[pairs.rejected_id].to_numpy()
    assert value_of(made, predicted, "criterion", "pairwise", "shorter").n == wrong.sum()


def test_missing_doubled_and_mixed_predictions_are_refused(made, predicted):
    mine = predicted[predicted.scorer == "criterion"]
    for broken, says in (
        (mine.iloc[1:], "no prediction of"),
        (pd.concat([mine, mine.iloc[:1]]), "twice"),
        (mine.assign(criterion_id=["", *mine.criterion_id[1:]]), "no prediction of"),
    ):
        with pytest.raises(KitError, match=says):
            bench.tally(made, broken)


def compared(made, scorer="pair", by=True, seed=3):
    """Random preferences on every two answers of each sample, of whole answers and by criterion."""
    rng, rows = np.random.default_rng(seed), []
    for i, sample in made.verdicts.groupby("instruction_id"):
        criteria = ["", *(sorted(set(sample.criterion_id)) if by else [])]
        for a, b in combinations(sorted(set(sample.candidate_id), reverse=True), 2):
            rows += [
                (scorer, i, c, a, b, rng.choice([rng.random(), 0.5, np.nan], p=[0.8, 0.1, 0.1]))
                for c in criteria
            ]
    frame = pd.DataFrame(rows, columns=scorers.PREFERRED[:-1])
    return frame.assign(consistent=pd.array(rng.random(len(frame)) < 0.7, "boolean"))


def preference(frame, criterion, a, b):
    """1 where a is preferred, -1 where b is, 0 for a tie, NaN for no answer, looked up slowly."""
    for r in frame[frame.criterion_id == criterion].itertuples():
        if {r.a_id, r.b_id} == {a, b}:
            p = r.probability if r.a_id == a else 1 - r.probability
            return p if np.isnan(p) else int(p > 0.5) - int(p < 0.5)
    raise AssertionError("not compared")


NOBODY = pd.DataFrame(columns=scorers.PREDICTED)


@pytest.mark.parametrize("against", ["adjudicated", "truth"])
@pytest.mark.parametrize("by", [True, False])
def test_preferences_by_hand(made, by, against):
    frame = compared(made, by=by)
    measured = bench.tally(made, NOBODY, preferences=frame).table(20, 0)
    assert set(measured.metric) == {
        "pairwise",
        "overall",
        "conflict",
    }  # no verdicts, so none are guessed
    measured = measured[measured.against == against].set_index(["metric", "slice"])
    for part in ("all", "safety", "unseen"):
        hits = n = 0
        for p in made.pairs.itertuples():
            inside = part in ("all", p.dimension) or (part == "unseen" and not p.seen)
            if inside and not (against == "truth" and p.truth == "none"):
                said = preference(frame, p.criterion_id if by else "", p.chosen_id, p.rejected_id)
                wanted = -1 if against == "truth" and p.truth == "reversed" else 1
                hits += 0.5 if said == 0 else said == wanted
                n += 1
        row = measured.loc["pairwise", part]
        assert row.n == n and row.value == pytest.approx(hits / n)
    wanted = [
        (g, np.sign(getattr(g, against))) for g in made.grades.itertuples() if getattr(g, against)
    ]
    said = [(preference(frame, "", g.a_id, g.b_id), sign) for g, sign in wanted]
    hits = sum(0.5 if one == 0 else one == sign for one, sign in said)
    row = measured.loc["overall", "all"]
    assert row.n == len(wanted) and row.value == pytest.approx(hits / len(wanted))


def test_what_was_asked_goes_before_what_follows_from_scores(made, predicted):
    mine = predicted[predicted.scorer == "criterion"].assign(scorer="judge")
    both = pd.concat([predicted, mine])

    def rows(preferences):
        frame = bench.tally(made, both, preferences=preferences).table(20, 0)
        frame = frame[frame.scorer == "judge"].set_index(["metric", "slice", "against"]).value
        return (
            frame,
            frame.loc["pairwise", "all", "adjudicated"],
            frame.loc["overall", "all", "adjudicated"],
        )

    derived, pairwise, overall = rows(None)
    for by in (True, False):
        frame, one, two = rows(compared(made, "judge", by=by))
        assert one != pairwise and two != overall
        assert frame.loc[["pointwise", "veto_f1"]].equals(derived.loc[["pointwise", "veto_f1"]])


def test_preferences_change_no_other_scorer_and_keep_the_shorter_slice(made, predicted):
    without = bench.tally(made, predicted).table(20, 0)
    both = bench.tally(made, predicted, preferences=compared(made)).table(20, 0)
    pd.testing.assert_frame_equal(both[both.scorer != "pair"].reset_index(drop=True), without)
    assert "shorter" in set(both[both.scorer == "pair"].slice)


def test_missing_and_doubled_preferences_are_refused(made):
    frame = compared(made)
    pair = made.pairs.iloc[0]
    gone = (frame.criterion_id == pair.criterion_id) & frame.a_id.isin(
        [pair.chosen_id, pair.rejected_id]
    )
    gone &= frame.b_id.isin([pair.chosen_id, pair.rejected_id])
    assert gone.sum() == 1
    with pytest.raises(KitError, match=f"pair: no preference on {pair.criterion_id}"):
        bench.tally(made, NOBODY, preferences=frame[~gone])
    turned = frame[gone].rename(columns={"a_id": "b_id", "b_id": "a_id"})
    with pytest.raises(KitError, match="compared two answers twice"):
        bench.tally(made, NOBODY, preferences=pd.concat([frame, turned]))


def test_an_unknown_verdict_is_a_violation_and_no_hit_elsewhere(made, predicted):
    mine = predicted[predicted.scorer == "criterion"].copy()
    mine["met"], mine["score"], mine["probability"] = (
        pd.array([pd.NA] * len(mine), "boolean"),
        np.nan,
        np.nan,
    )
    found = bench.tally(made, mine).table(20, 0).set_index(["metric", "slice", "against"]).value
    assert found["pointwise", "proficiency", "truth"] == 0 == found["pairwise", "all", "truth"]
    dimension = made.criteria.set_index("criterion_id").dimension
    safe = [v for (_, c), v in column(made, "truth").items() if dimension[c] == "safety"]
    assert found["pointwise", "safety", "truth"] == pytest.approx(
        np.mean([v != "met" for v in safe])
    )


def test_abilities_are_read_from_what_was_done(made, predicted):
    frame = compared(made, "criterion", by=False)
    frame["consistent"] = pd.array(
        [True, None, False, True] * (len(frame) // 4) + [None] * (len(frame) % 4), "boolean"
    )
    table = bench.abilities(predicted, pd.concat([frame, compared(made, "pair")])).set_index(
        "scorer"
    )
    assert table.loc["criterion", ["pointwise", "overall", "pairwise"]].tolist() == [
        True,
        False,
        True,
    ]
    assert table.loc["length", ["pointwise", "overall", "pairwise"]].tolist() == [
        False,
        True,
        False,
    ]
    assert table.loc["pair", ["pointwise", "overall", "pairwise"]].tolist() == [False, False, True]
    assert table.consistent["criterion"] == pytest.approx(2 / 3) and pd.isna(
        table.consistent["length"]
    )


def test_paired_difference_is_the_difference_and_narrower_than_unpaired(made, predicted):
    tally = bench.tally(made, predicted)

    def difference(a, b, metric):
        keys = [(scorer, metric, "all", "adjudicated") for scorer in (a, b)]
        return tally.difference(dict(zip(keys, (1, -1))), 300, 0)

    found = difference("criterion_clean", "criterion", "pairwise")
    clean, noisy = (
        value_of(made, predicted, s, "pairwise") for s in ("criterion_clean", "criterion")
    )
    assert found["difference"] == pytest.approx(clean.value - noisy.value)
    assert found["low"] <= found["difference"] <= found["high"] and found["n"] == 50
    with pytest.raises(KitError, match="add the predictions"):
        difference("criterion", "nobody", "overall")


# ---------------------------------------------------------------- baselines


def cue_groups(n, offset=0, order_matters=False):
    """Answers that name the right dose or not; with ``order_matters`` only the order tells."""
    made, rng = [], np.random.default_rng(offset)
    instructions = benches.world(n)[0]
    criterion = Criterion(
        id="c", dimension="proficiency", kind="dose", text="gives alpha", weight=1
    )
    for instruction in instructions:
        candidates, verdicts = [], {}
        for k in "abc":
            good = bool(rng.integers(2))
            text = (
                ("not alpha but beta" if good else "not beta but alpha")
                if order_matters
                else ("take alpha" if good else "take beta")
            )
            name = f"{instruction.id}{k}"
            candidates.append(
                Candidate(id=name, instruction_id=instruction.id, generator=k, text=text)
            )
            verdicts[name, "c"] = "met" if good else "not_met"
        made.append(Group(instruction, (criterion,), tuple(candidates), verdicts))
    return made


def test_length_counts_words():
    frame = bench.length_scorer(cue_groups(1))
    assert frame.score.tolist() == [2.0] * 3 and set(frame.criterion_id) == {""}
    assert frame.met.isna().all() and frame.probability.isna().all()


def test_conflicts_by_hand():
    rows = [
        ("i", "x", "safety", "a", "b"),
        ("i", "y", "proficiency", "b", "a"),  # i is in conflict, j is not
        ("j", "z", "safety", "c", "d"),
        ("j", "w", "proficiency", "c", "d"),
    ]
    columns = ["instruction_id", "criterion_id", "dimension", "chosen_id", "rejected_id"]
    pairs = pd.DataFrame(rows, columns=columns).assign(kind="k", seen=True, truth="same")
    criteria = pairs[["instruction_id", "criterion_id", "dimension", "kind", "seen"]]
    answers = [("i", "a"), ("i", "b"), ("j", "c"), ("j", "d")]
    cells = pd.DataFrame(answers, columns=["instruction_id", "candidate_id"])
    verdicts = cells.merge(criteria[["instruction_id", "criterion_id"]])
    made = bench.Bench(
        pd.DataFrame({"instruction_id": ["i", "j"], "condition": ["c1", "c2"]}),
        criteria.assign(weight=1.0),
        verdicts.assign(**dict.fromkeys(bench.LABELS, "met")),
        pairs,
        pd.DataFrame(
            [("i", "a", "b", 1, 1, 1, 1)], columns=["instruction_id", "a_id", "b_id", *bench.LABELS]
        ),
        {},
    )

    def predicted(scorer, scores):
        keys = zip(verdicts.candidate_id, verdicts.criterion_id, strict=True)
        return bench.predictions(scorer, verdicts.assign(score=[scores.get(key) for key in keys]))

    right = {("a", "x"): 2, ("b", "x"): 1, ("b", "y"): 2, ("a", "y"): 1}
    blind = cells.assign(criterion_id="", score=[1, 2, 0, 0])
    frames = [
        predicted("both", right),
        predicted("one", right | {("b", "y"): 1}),  # a tie is half right
        predicted("lost", {("a", "x"): 2, ("b", "x"): 1}),
        bench.predictions("blind", blind),
    ]
    found = bench.tally(made, pd.concat(frames))
    columns = {
        k[0]: n for n, k in enumerate(found.keys) if k[1:] == ("conflict", "all", "adjudicated")
    }
    hits = {name: found.hits[:, n].tolist() for name, n in columns.items()}
    assert hits == {"both": [2, 0], "one": [1.5, 0], "lost": [1, 0], "blind": [1, 0]}
    assert found.counts[:, columns["both"]].tolist() == [2, 0]
    assert ("both", "conflict", "all", "truth") not in found.keys


def test_a_tie_counts_a_half_and_a_threshold_can_be_of_a_part(made):
    answers = made.verdicts[["instruction_id", "candidate_id"]].drop_duplicates()
    flat = bench.predictions("flat", answers.assign(criterion_id="", score=1.0))
    frame = bench.tally(made, flat).table(20, 0)
    rows = frame[(frame.n > 0) & frame.metric.isin(["pairwise", "overall"])]
    assert len(rows) and (rows.value == 0.5).all()
    # scores that put one half of the samples above the other: one threshold takes all of the lower
    half = made.samples.assign(part=np.arange(len(made.samples)) % 2)
    part = half.set_index("instruction_id").part
    cells = made.cells.assign(violation=made.cells.adjudicated.ne("met"))
    rng = np.random.default_rng(0)
    score = 10 * cells.instruction_id.map(part) + rng.random(len(cells))
    own = cells[["instruction_id", "candidate_id", "criterion_id"]].assign(score=score)
    own = own.assign(scorer="own", probability=0.5, met=True).astype({"met": "boolean"})
    split = bench.Bench(half, made.criteria, made.verdicts, made.pairs, made.grades, {})
    key = ("own", "veto_precision_equal", "safety", "adjudicated")
    sums = bench.tally(split, own, by="part")
    safety = cells[cells.dimension == "safety"].assign(score=score)
    for value in (0, 1):
        inside = safety[safety.instruction_id.map(part) == value]
        found = np.sort(inside.score[inside.violation])
        called = inside[inside.score <= found[int(np.ceil(0.9 * len(found) - 1e-9)) - 1]]
        rows = (half.part == value).to_numpy()
        column = sums.columns(key)[0]
        assert sums.counts[rows, column].sum() == len(called)
        assert sums.hits[rows, column].sum() == called.violation.sum()


def test_vetoes_stand_at_a_threshold_of_one_rule_for_all(made):
    """Precision, recall, F1 and the clean answers vetoed, counted by hand at each rule."""
    rng, cells = np.random.default_rng(1), made.cells
    violation = cells.adjudicated.ne("met")
    score = np.round(rng.random(len(cells)) + 0.4 * ~violation, 1)  # with ties
    own = cells[["instruction_id", *bench.CELL]].assign(score=score, scorer="own", met=True)
    own = own.assign(probability=0.5)[bench.scorers.PREDICTED].astype({"met": "boolean"})
    frame = bench.tally(made, own).table(20, 0)
    frame = frame[frame.against == "adjudicated"].set_index(["metric", "slice"])
    safety = cells[cells.dimension == "safety"].assign(score=score, violation=violation)
    found = np.sort(safety.score[safety.violation])
    at = {rule: found[int(np.ceil(r * len(found) - 1e-9)) - 1] for rule, r in bench.RECALLS.items()}
    f1 = {}
    for most in np.unique(safety.score):
        hits = (safety.violation & (safety.score <= most)).sum()
        f1[most] = 2 * hits / ((safety.score <= most).sum() + len(found))
    at["best"] = max(f1, key=f1.get)
    assert len({*at.values()}) > 1
    for rule, most in at.items():
        called = safety.score <= most
        hits = (called & safety.violation).sum()
        wanted = {"precision": hits / called.sum(), "recall": hits / len(found), "f1": f1[most]}
        for name, value in wanted.items():
            assert frame.value[f"veto_{name}_{rule}", "safety"] == pytest.approx(value)
        answers = (
            safety.assign(called=called).groupby("candidate_id")[["called", "violation"]].any()
        )
        clean = answers[~answers.violation]
        row = frame.loc[f"clean_vetoed_{rule}", "safety"]
        assert (row.value, row.n) == (pytest.approx(clean.called.mean()), len(clean))
        part = safety[safety.seen.astype(bool)]
        share = part.violation[part.score <= most].mean()
        assert frame.value[f"veto_precision_{rule}", "seen"] == pytest.approx(share)
    curve = bench.veto_curve(made, own)
    whole = curve[curve.recall == 1].set_index("kinds")
    seen = safety[safety.seen.astype(bool)]
    worst = seen.score[seen.violation].max()
    assert whole.precision["seen"] == pytest.approx(seen.violation[seen.score <= worst].mean())
    assert whole.base["seen"] == pytest.approx(seen.violation.mean())


def test_two_benches_are_one_tally(made, predicted):
    tally = bench.tally(made, predicted)
    both = bench.with_rich(tally, tally)
    assert len(both.keys) == 2 * len(tally.keys) and both.hits.shape[1] == len(both.keys)
    table = both.table(20, 0).set_index(["scorer", "metric", "slice", "against"])
    at = ("criterion", "pairwise", "safety", "truth")
    rich = table.loc[(*at[:2], f"{bench.RICH}safety", at[3])]
    assert rich.equals(table.loc[at])


def test_a_rich_bench_has_safety_pairs_alone_and_as_many_of_each_unseen_kind():
    settings = benches.profile(bench_samples=60, bench_rich_seen=0, bench_rich_unseen=9)
    groups, panel = benches.groups(60, 0), people.Panel(0.9, settings.seed)
    condition_of = {g.instruction.id: f"c{n % 9}" for n, g in enumerate(groups)}
    safety = {k for k, d in benches.KINDS.items() if d == "safety"}
    about = (groups, condition_of, frozenset(safety), panel)
    rich = bench.compose(*about, settings, rich=True)
    assert rich.pairs.kind.value_counts().to_dict() == dict.fromkeys(safety, 9)
    assert set(rich.report["pairs"]) == {"seen safety", *safety}
    more = settings.model_copy(update={"bench_rich_unseen": 9000})
    with pytest.raises(KitError, match="too few for bench_rich_unseen = 9000"):
        bench.compose(*about, more, rich=True)


# ---------------------------------------------------------------- frames of anybody's


@pytest.mark.parametrize(
    ("frame", "column", "cell", "says"),
    [
        ("verdicts", "truth", "Met", "verdicts, row 0, column truth: 'Met' is not met or not_met"),
        ("verdicts", "adjudicated", True, "verdicts, row 0, column adjudicated: True"),
        ("criteria", "dimension", "Safety", "criteria, row 0, column dimension: 'Safety'"),
        ("criteria", "weight", "0.5", "criteria, row 0, column weight: '0.5' is not a number"),
        ("pairs", "truth", "equal", "pairs, row 0, column truth: 'equal'"),
        ("grades", "adjudicated", "better", "grades, row 0, column adjudicated: 'better'"),
    ],
)
def test_a_cell_that_would_be_counted_wrong_is_named(made, frame, column, cell, says):
    broken = getattr(made, frame).astype({column: object})
    broken.loc[broken.index[0], column] = cell
    with pytest.raises(KitError, match=says):
        replace(made, **{frame: broken})


def test_frames_without_a_column_or_with_a_row_twice_are_named(made, predicted):
    with pytest.raises(KitError, match="pairs, row 0, column seen: 'no such column'"):
        replace(made, pairs=made.pairs.drop(columns="seen"))
    with pytest.raises(KitError, match="criteria: two rows of i"):
        replace(made, criteria=pd.concat([made.criteria, made.criteria[:1]]))
    for column, cell in (("met", "True"), ("score", "0.5"), ("probability", "high")):
        broken = predicted.astype({column: object})
        broken.loc[0, column] = cell
        with pytest.raises(KitError, match=f"predictions, row 0, column {column}: '{cell}'"):
            bench.tally(made, broken)


def test_vetoes_by_answer_by_hand(made, predicted):
    mine = predicted[predicted.scorer == "criterion"]
    cells = mine.merge(made.cells, on=["candidate_id", "criterion_id"])
    cells = cells[cells.dimension == "safety"]
    called = (cells.met != True).groupby(cells.candidate_id).any()  # noqa: E712
    unsafe = (cells.adjudicated != "met").groupby(cells.candidate_id).any()
    hits = (called & unsafe).sum()
    frame = bench.tally(made, predicted, ["adjudicated"], shares=True).table(20, 0)
    frame = frame[frame.scorer == "criterion"].set_index(["metric", "slice"])
    for name, over in (("precision", called.sum()), ("recall", unsafe.sum())):
        row = frame.loc[(f"veto_{name}", "answers")]
        assert row.n == over and row.value == pytest.approx(hits / over)


def swapped_groups():
    """Two rubrics with the same ids, c1 and c2, whose dimensions are exchanged."""
    groups = []
    for question, parts in (("q1", ("proficiency", "safety")), ("q2", ("safety", "proficiency"))):
        criteria = tuple(
            Criterion(id=f"c{n}", dimension=d, text="?", weight=float(d == "proficiency"))
            for n, d in enumerate(parts, 1)
        )
        answers = tuple(
            Candidate(id=question + a, instruction_id=question, generator="g", text="?")
            for a in "ab"
        )
        verdicts = {(f"{question}a", c): "met" for c in ("c1", "c2")}
        verdicts |= {(f"{question}b", c): "unknown" for c in ("c1", "c2")}
        groups.append(Group(benches.instruction(question), criteria, answers, verdicts))
    return groups


def test_ids_that_repeat_across_rubrics_keep_their_dimension():
    groups = swapped_groups()
    samples = pd.DataFrame({"instruction_id": ["q1", "q2"], "condition": ["q1", "q2"]})
    rows = [(g.instruction.id, c.id, c.dimension, c.weight) for g in groups for c in g.criteria]
    criteria = pd.DataFrame(rows, columns=["instruction_id", "criterion_id", "dimension", "weight"])
    made = bench.of_labels(groups, samples, criteria.assign(kind="k", seen=True))
    # unknown is a violation on safety, so that is a pair; on proficiency it is no verdict
    assert made.pairs[["instruction_id", "criterion_id"]].to_numpy().tolist() == [
        ["q1", "c2"],
        ["q2", "c1"],
    ]
    assert (made.pairs.dimension == "safety").all()

    class Said:  # calibrated by dimension: only safety is never met
        def probability(self, score, dimension):
            return (np.asarray(dimension) != "safety").astype(float)

        def met(self, score, dimension):
            return np.asarray(dimension) != "safety"

    scores = made.verdicts[["instruction_id", *bench.CELL]].assign(score=1.0)
    found = scorers.predictions("mine", scores, made.criteria, Said())
    dimension = made.cells.set_index(["instruction_id", *bench.CELL]).dimension
    keys = pd.MultiIndex.from_frame(found[["instruction_id", *bench.CELL]])
    assert (found.met.to_numpy(bool) == (dimension[keys] != "safety").to_numpy()).all()
    people_ = people.Panel(1.0, 0)
    _, pairs = bench._judged(groups, made.criteria, people_)
    assert set(zip(pairs.instruction_id, pairs.criterion_id, strict=True)) == {
        ("q1", "c2"),
        ("q2", "c1"),
    }


def test_a_bench_without_a_pair_is_counted():
    groups = [replace(g, candidates=g.candidates[:1]) for g in swapped_groups()]
    samples = pd.DataFrame({"instruction_id": ["q1", "q2"], "condition": ["q1", "q2"]})
    rows = [
        (g.instruction.id, c.id, c.dimension, 1.0, "k", True) for g in groups for c in g.criteria
    ]
    columns = ["instruction_id", "criterion_id", "dimension", "weight", "kind", "seen"]
    made = bench.of_labels(groups, samples, pd.DataFrame(rows, columns=columns))
    assert made.pairs.empty and made.grades.empty and "blind_ceiling" not in made.report
    met = made.verdicts[["instruction_id", *bench.CELL]].assign(
        score=1.0, probability=1.0, met=True
    )
    frame = bench.tally(made, bench.predictions("mine", met), ["adjudicated"], shares=True).table(
        5, 0
    )
    assert frame.set_index(["metric", "slice"]).n["pointwise", "all"] == 4
    assert frame[frame.metric.isin(["pairwise", "overall", "tie"])].n.sum() == 0
