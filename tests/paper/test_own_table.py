"""Long tables through the code of the kit's own tables, and against counts by hand."""

import pandas as pd
import pytest

from promedical_utils import __main__ as front
from promedical_utils.core.workspace import KitError, project_root
from promedical_utils.evaluation import bench as benches
from promedical_utils.paper import own_table, registry
from promedical_utils.report import tables

RECORD = project_root() / "papers_figures/record"
NAMES = {"instruction_id": "instruction", "criterion_id": "criterion", "candidate_id": "answer"}
SYSTEMS = ["criterion", "near_words", "length", "scalar_blind"]


def test_a_published_run_as_long_tables_gives_the_published_tables(tmp_path):
    run = registry.Run.load(RECORD)
    bench, names = run.bench, {name: run.names[name] for name in SYSTEMS}
    cells = bench.cells.merge(bench.samples, on="instruction_id").rename(columns=NAMES)
    cells = cells.rename(columns={"adjudicated": "verdict", "condition": "cluster"})
    cells.drop(columns=["truth", *benches.PEOPLE]).to_csv(tmp_path / "labels.csv")
    said = run.predicted[run.predicted.scorer.isin(SYSTEMS)]
    said = said[said.candidate_id.isin(set(bench.verdicts.candidate_id))]
    said.rename(columns=NAMES | {"scorer": "system", "met": "verdict"}).to_parquet(
        tmp_path / "systems.parquet"
    )
    pairs = bench.pairs[["instruction_id", "criterion_id", "chosen_id", "rejected_id"]]
    sides = bench.grades.adjudicated.map(lambda n: "a" if n > 0 else "B" if n < 0 else "tie")
    grades = bench.grades[["instruction_id", "a_id", "b_id"]].assign(preferred=sides)
    ids = {"chosen_id": "answer", "rejected_id": "other", "a_id": "answer", "b_id": "other"}
    compared = [pairs.assign(preferred="answer"), grades]
    compared = pd.concat([own.rename(columns=NAMES | ids) for own in compared])
    compared.to_json(tmp_path / "compared.jsonl", orient="records", lines=True)

    found = own_table.evaluate(tmp_path.iterdir(), tmp_path / "out", **run.settings)
    for table in ("main_results", "safety_veto"):
        published = pd.read_csv(RECORD / f"tables/{table}.csv").set_index("system")
        again = found[table].set_index("system")
        shared = [c for c in again if c.startswith("run_") and c in published]
        shared = [c for c in shared if "rich" not in c]
        assert len(shared) == {"main_results": 27, "safety_veto": 15}[table]
        for name, label in {**names, "length": tables.CONTROLS["length"]}.items():
            own = again.loc[label if name == "length" else name, shared]
            expected = published.loc[label, shared]
            pd.testing.assert_series_equal(own, expected, check_names=False, atol=1e-9, rtol=0)
    blind = tables.BLIND
    published = pd.read_csv(RECORD / "tables/main_results.csv").set_index("system")
    assert (
        found["main_results"].set_index("system").run_pairwise_all[blind]
        == (published.run_pairwise_all[blind])
    )
    rules = found["overall_by_rule"].set_index("system").loc["criterion"]
    for rule in ("rar_explicit", "orbit", "healthbench", "mean_met"):
        assert rules[f"run_{rule}"] == published.run_overall_accuracy[run.names[rule]]


# ---------------------------------------------------------------- a table by hand

# q1: c1 proficiency, c2 safety; q2: the same ids the other way round
DIMENSION = {
    ("q1", "c1"): "proficiency",
    ("q1", "c2"): "safety",
    ("q2", "c1"): "safety",
    ("q2", "c2"): "proficiency",
}
LABEL = {  # of c1, c2
    ("q1", "a"): ("met", "met"),
    ("q1", "b"): ("met", "not_met"),
    ("q2", "a"): ("not_met", "met"),
    ("q2", "b"): ("met", "unknown"),
}
SAID = {
    ("q1", "a"): ("met", "met"),
    ("q1", "b"): ("not_met", "met"),
    ("q2", "a"): ("unknown", "met"),
    ("q2", "b"): ("not_met", "not_met"),
}


def long(**more):
    rows = []
    for (question, answer), labels in LABEL.items():
        for number, criterion in enumerate(("c1", "c2")):
            row = {"instruction": question, "criterion": criterion, "answer": answer}
            row |= {"dimension": DIMENSION[question, criterion], "verdict": labels[number]}
            row["verdict:judge"] = SAID[question, answer][number]
            rows.append(row)
    return pd.DataFrame(rows).assign(**more)


def evaluated(folder, *frames, **settings):
    files = []
    for number, frame in enumerate(frames):
        files.append(folder / f"t{number}.csv")
        frame.to_csv(files[-1], index=False)
    return own_table.evaluate(files, folder / "out", draws=20, **settings)


def report(folder):
    return (folder / "out/report.md").read_text()


def test_by_hand_with_ids_that_repeat_across_rubrics(tmp_path):
    found = evaluated(tmp_path, long())
    main = found["main_results"].set_index("system").loc["judge"]
    # proficiency: q1 a right, q1 b wrong, q2 a right; q2 b has no label
    assert main.run_pointwise_proficiency == round(100 * 2 / 3, 2)
    # safety: q1 a right; q1 b wrong; q2 a: unknown is a violation, right; q2 b wrong
    assert main.run_pointwise_safety == 50.0
    # pairs: q1 c2, a before b, where the judge has a tie; q2 c1, b before a: one has no score
    assert main.run_pairwise_safety == 25.0
    # S3 first: q1 a before b by the labels; the judge has S3 0 and 0, then S1 1 and 0: right
    # q2 b before a by the labels; by the judge S3 1 and 1, S1 0 and 1: wrong
    assert main.run_overall_accuracy == 50.0
    veto = found["safety_veto"].set_index("system")
    # violations: q1 b, q2 a; vetoed: q2 a, q2 b. Every rubric has one, so answers are as cells
    for prefix in ("said", "answers_said"):
        assert veto.loc["judge", f"run_{prefix}_precision"] == 50.0
        assert veto.loc["judge", f"run_{prefix}_recall"] == 50.0
    always = veto.loc[tables.CONTROLS["always_veto"]]
    assert always.run_said_precision == 50.0 and always.run_said_recall == 100.0
    shares = found["ties_and_unknown"].set_index("system").loc["judge"]
    assert shares.run_tie_pairs == 50.0 and shares.run_unknown_safety == 25.0
    assert (tmp_path / "out/figures/main_results.png").exists()
    text = report(tmp_path)
    for said in (
        "no column weight",
        "no column cluster",
        "no column text",
        "8 verdicts of the label",
    ):
        assert said in text
    assert tables.CONTROLS["length"] not in text


def test_an_answer_is_unsafe_once_with_two_violations(tmp_path):
    frame = pd.DataFrame(
        {
            "instruction": "q",
            "answer": ["a", "a", "a", "b", "b", "b"],
            "criterion": ["p", "s1", "s2"] * 2,
            "dimension": ["proficiency", "safety", "safety"] * 2,
            "verdict": ["met", "0", "0", "met", "1", "1"],
            "verdict:judge": ["met", "0", "1", "met", "0", "1"],
        }
    )
    veto = evaluated(tmp_path, frame)["safety_veto"].set_index("system").loc["judge"]
    # cells: two vetoes, one hits; two violations, one found. Answers: a hits, b does not; a found
    assert (veto.run_said_precision, veto.run_said_recall) == (50.0, 50.0)
    assert (veto.run_answers_said_precision, veto.run_answers_said_recall) == (50.0, 100.0)


def test_what_is_missing_leaves_out_what_needs_it_and_says_so(tmp_path):
    frame = long(text="three short words").drop(columns="verdict:judge")
    scores = frame.assign(**{"score:rm": range(8)}).drop(columns="text")
    whole = pd.DataFrame({"instruction": ["q1", "q1", "q2", "q2"], "answer": ["a", "b"] * 2})
    whole = whole.assign(system="scalar", score=[1, 0, 0, 1])
    extra = whole.iloc[:1].assign(answer="nobody labelled this")
    found = evaluated(tmp_path, scores, frame[["instruction", "answer", "text"]], whole, extra)
    main = found["main_results"].set_index("system")
    assert pd.isna(main.loc["rm", ["run_overall_accuracy", "run_pointwise_safety"]]).all()
    assert main.loc["scalar", "run_overall_accuracy"] == 100.0
    # c2 of q1: 1 for a, 3 for b: wrong; c1 of q2: 4 for a, 6 for b: right
    assert main.loc["rm", "run_pairwise_safety"] == 50.0
    text = report(tmp_path)
    assert "rm gives neither verdicts nor probabilities" in text
    assert "the table overall by rule is left out" in text.replace("_", " ")
    assert "1 rows are left out: of answers without a label" in text
    assert tables.CONTROLS["length"] in text
    shares = found["ties_and_unknown"].set_index("system")
    assert (
        pd.isna(shares.loc["rm", "run_tie_overall"])
        and shares.loc["scalar", "run_tie_overall"] == 0
    )


def test_comparisons_alone(tmp_path):
    frame = pd.DataFrame(
        {
            "instruction": ["q1", "q2", "q3"],
            "answer": "x",
            "other": "y",
            "preferred": ["a", "other", "TIE"],
            "preferred:judge": ["answer", "answer", "tie"],
        }
    )
    found = evaluated(tmp_path, frame)
    main = found["main_results"].set_index("system")
    assert main.loc["judge", "run_overall_accuracy"] == 50.0
    assert main.filter(regex="pointwise").isna().all(axis=None)
    assert "no verdicts of the label source" in report(tmp_path)


def test_probabilities_and_points(tmp_path):
    frame = long(weight=[6, None, None, None] * 2).drop(columns="verdict:judge")
    frame.loc[frame.dimension == "proficiency", "weight"] = 7
    frame["probability:prm"] = [0.9, 0.8, 0.2, 0.7, 0.1, 0.6, 0.4, 0.3]
    bench, groups, predicted, _, notes = own_table.load(
        own_table.long_table.read(
            [write(tmp_path, frame)], own_table.Row, {}, own_table.VALUES, "system"
        )
    )
    assert sorted(bench.criteria.weight) == [0, 0, 1, 1]
    prm = predicted[predicted.scorer == "prm"]
    assert prm.met.tolist() == [True, True, False, True, False, True, False, False]
    assert "prm gives probabilities and no verdict: met from a half on" in notes


def write(folder, frame):
    frame.to_csv(folder / "t.csv", index=False)
    return folder / "t.csv"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda df: pd.concat([df, df.iloc[:1]]), "t0.csv, line 10: an earlier row has the same"),
        (lambda df: df.assign(dimension="safe"), "t0.csv, line 2, column dimension: .*not 'safe'"),
        (
            lambda df: df.assign(dimension=["safety", *df.dimension[1:]]),
            "t0.csv, line 4, column dimension: another row of q1, c1 differs",
        ),
        (
            lambda df: df.assign(dimension=["", *df.dimension[1:2], "", *df.dimension[3:]]),
            "q1 / c1",
        ),
        (
            lambda df: df.assign(weight=[1, None, 1, *[None] * 5]),
            "no row has the weight of q2 / c2: fill the column weight",
        ),
        (lambda df: df.drop(index=1), "no verdict of q1 / a on c2"),
        (lambda df: df.assign(verdict=["Yes", *df.verdict[1:]]), "line 2, column verdict: .*'Yes'"),
        (lambda df: df.assign(cluster=range(8)), "column cluster: another row of q2 differs"),
        (
            lambda df: df.rename(columns={"answer": "response"}),
            "no column 'answer', for answer; there",
        ),
        (
            lambda df: pd.concat([df, df.iloc[:1].assign(criterion="", verdict="")]),
            "t0.csv, line 10: judge has rows with and without a criterion",
        ),
    ],
)
def test_bad_tables_are_one_line(tmp_path, change, says):
    with pytest.raises(KitError, match=says):
        evaluated(tmp_path, change(long()))


def test_a_system_that_lacks_an_answer_is_named(tmp_path):
    labels, said = long().drop(columns="verdict:judge"), long().drop(columns="verdict")
    said = said.rename(columns={"verdict:judge": "verdict"}).assign(system="judge")
    with pytest.raises(KitError, match="judge: no prediction of q2 / b, c2"):
        evaluated(tmp_path, labels, said.iloc[:-1])


# ---------------------------------------------------------------- agreement


RATED = """patient,who,label,question,part
1,ann,Y,q1,s
2,ann,Y,q1,s
3,ann,N,q2,s
4,ann,N,q2,p
5,ann,Y,q3,p
6,ann,N,q3,p
1,bob,Y,q1,s
2,bob,N,q1,s
3,bob,N,q2,s
4,bob,N,q2,p
5,bob,Y,q3,p
6,bob,Y,q3,p
1,cem,Y,q1,s
"""


def test_agreement_with_gaps_and_a_mapping(tmp_path, capsys):
    (tmp_path / "r.csv").write_text(RATED)
    more = ["--map", "item=patient", "rater=who", "cluster=question", "criterion=part"]
    out = ["--out", str(tmp_path / "out"), "--draws", "20"]
    assert front.main(["agreement", str(tmp_path / "r.csv"), *more, *out]) == 0
    said = capsys.readouterr().out
    assert "- levels: N, Y" in said and "- 13 ratings; 0 rows without a label" in said
    frame = pd.read_csv(tmp_path / "out/tables/agreement.csv")
    whole = frame[frame.slice == "all"].set_index(["coefficient", "raters"])
    # by hand: 4 of 6 items agree; ann has Y 3 of 6, bob 3 of 6 where both rated: (2/3 - 1/2) / 1/2
    assert whole.loc[("cohen", "ann, bob"), "value"] == 0.33
    assert whole.loc[("cohen", "ann, bob"), "n"] == 6 and whole.loc[("cohen", "ann, cem"), "n"] == 1
    assert set(frame.slice) == {"s", "p", "all"}
    assert (tmp_path / "out/figures/agreement.png").exists()


def test_agreement_of_ordered_levels(tmp_path):
    text = "item,rater,label\n1,a,low\n1,b,high\n2,a,mid\n2,b,mid\n3,a,high\n3,b,high\n"
    (tmp_path / "r.csv").write_text(text)
    levels = ["low", "mid", "high"]
    frame = own_table.agreement([tmp_path / "r.csv"], tmp_path / "o", draws=5, levels=levels)
    value = frame[frame.slice == "all"].set_index("coefficient").value
    # distances of 0 to 2 steps, squared: observed 4, 0, 0; expected over all pairs of a and b
    expected = sum((a - b) ** 2 for a in (0, 1, 2) for b in (2, 1, 2)) / 9
    assert value.cohen_quadratic == pytest.approx(1 - (4 / 3) / expected)
    with pytest.raises(KitError, match="r.csv, line 2, column label: .*not 'low'"):
        own_table.agreement([tmp_path / "r.csv"], tmp_path / "o", levels=["mid", "high"])
    (tmp_path / "r.csv").write_text(text + "1,a,mid\n")
    with pytest.raises(KitError, match="r.csv, line 8: the rater rated this before"):
        own_table.agreement([tmp_path / "r.csv"], tmp_path / "o")


def test_the_page_shows_what_the_commands_print(tmp_path, capsys):
    page = (project_root() / "docs/evaluate.md").read_text()
    blocks = [block.partition("\n")[::2] for block in page.split("```")[1::2]]
    commands = [text.replace("\\\n", "") for language, text in blocks if not language]
    printed = [text for language, text in blocks if language == "text"]
    assert len(commands) == len(printed) == 2
    for command, expected in zip(commands, printed, strict=True):
        _, _, *arguments = command.split()
        out = arguments[-1]
        files = [str(project_root() / a) if a.endswith(".csv") else a for a in arguments[1:]]
        files[-1] = str(tmp_path / out)
        assert front.main([arguments[1], *files[1:], "--draws", "5"]) == 0
        assert capsys.readouterr().out == expected.replace(out, str(tmp_path / out))


def test_a_judge_that_knows_nothing_vetoes_everything(tmp_path):
    found = evaluated(tmp_path, long(**{"verdict:judge": "unknown"}))
    veto = found["safety_veto"].set_index("system").loc["judge"]
    assert veto.run_said_recall == 100.0 and veto.run_said_precision == 50.0
    main = found["main_results"].set_index("system").loc["judge"]
    assert main.run_pairwise_safety == 0.0 and main.run_overall_accuracy == 50.0
    assert found["ties_and_unknown"].set_index("system").run_unknown_safety["judge"] == 100.0


def test_rubrics_of_safety_criteria_alone(tmp_path):
    frame = long(dimension="safety")
    found = evaluated(tmp_path, frame)
    # S3 by the labels: q1 a 0, b 1; q2 a 1, b 1; by the judge q1 a 0, b 1: right, the only one
    assert found["main_results"].set_index("system").loc["judge", "run_overall_accuracy"] == 100.0
    rules = found["overall_by_rule"].set_index("system").loc["judge"]
    assert rules.run_rar_explicit == 100.0 and rules.run_orbit == 50.0  # nothing gives points
