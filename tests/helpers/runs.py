"""The files of a small run and of a small study, for the tests of tables, figures and the trace."""

import pandas as pd
from helpers import benches, studies
from report.test_tables import OUTSIDE_REPORT, curated, curve, evaluated, outside

from promedical_utils.core.workspace import write_json
from promedical_utils.evaluation import bench
from promedical_utils.reward_model import calibration


def write_run(folder):
    """All files of a run that tables and figures read, small, with a clean and a broken policy."""
    made = benches.make()[0]
    made.report["blind_ceiling"] = 0.75
    made.save(folder / "bench")
    made.save(folder / "bench/rich")
    predicted = benches.noisy(made)
    predicted.to_parquet(folder / "bench/predictions.parquet", index=False)
    judged = made.verdicts[[*bench.CELL, "physician_1"]].rename(columns={"physician_1": "verdict"})
    judged[::7].assign(verdict="unknown").combine_first(judged)[1:].to_parquet(
        folder / "bench/judge.parquet", index=False
    )
    rows, cells = evaluated()
    rows["plain_violation"] = rows.plain_violation.astype(float)
    (folder / "policy").mkdir(parents=True)
    rows.to_parquet(folder / "policy/evaluation.parquet", index=False)
    cells.to_parquet(folder / "policy/verdicts.parquet", index=False)
    curve().to_csv(folder / "policy/curve.csv", index=False)
    failures = [("length", "1 for 100 words", "words of the chosen", 70.126, 68.0, 72.5, 9, "own")]
    columns = ["test", "dose", "measure", "value", "low", "high", "n", "origin"]
    pd.DataFrame(failures, columns=columns).to_csv(folder / "policy/testbed.csv", index=False)
    (folder / "data").mkdir()
    funnel, rounds, expansion, _ = curated()
    rounds = rounds.assign(
        blind_pass_rate=[0.75, 0.96], low=[0.6, 0.87], high=[0.86, 0.99], pass_rate=[0.7, 0.9]
    )
    errors = pd.DataFrame(
        [
            (d, e, 100, 0.1, 0.05, 0.2)
            for d in ("proficiency", "safety")
            for e in ("lenient", "strict")
        ],
        columns=["dimension", "error", "n", "rate", "low", "high"],
    )
    composition = pd.DataFrame(
        {"category": ["k"], "proficiency": [2.0], "excellence": [1.0], "safety": [3.0]}
    )
    for name, frame in {
        "funnel": funnel,
        "rounds": rounds,
        "expansion": expansion,
        "judge_errors": errors,
        "composition": composition,
    }.items():
        frame.to_csv(folder / f"data/{name}.csv", index=False)
    scored = (
        predicted[predicted.scorer == "criterion"]
        .merge(made.criteria[["criterion_id", "dimension"]])
        .merge(made.verdicts[[*bench.CELL, "truth"]])
    )
    held = scored.assign(truth=(scored.truth == "met").astype(float))
    held[["instruction_id", *bench.CELL, "score", "scorer", "truth", "dimension"]].to_parquet(
        paper_file(folder, "reward/heldout.parquet"), index=False
    )
    fitted = calibration.fit(held.rename(columns={"truth": "label"}), 0.9)
    fitted.save(paper_file(folder, "reward/criterion/calibration.json"))
    outside().to_parquet(paper_file(folder, "external/predictions.parquet"), index=False)
    write_json(folder / "external/report.json", OUTSIDE_REPORT)
    write_json(
        folder / "reward/report.json",
        {
            "models": {"criterion": {}},
            "heldout_pair_accuracy": {"criterion": {"accuracy": 0.9, "pairs": 8}},
        },
    )


def paper_file(folder, name):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_study(folder, profile="cpu"):
    rows = evaluated("full", (1, 2))[0]
    rows["plain_violation"] = rows.plain_violation.astype(float)
    rows.to_parquet(paper_file(folder, "evaluation.parquet"), index=False)
    studies.write(folder, rows, draws=20, seed=5)
    curve().assign(variant="full", seed=1).to_parquet(folder / "curves.parquet", index=False)
    settings = {"name": profile, "seed": 5, "bootstrap": 20, "data": "clinic"}
    write_json(folder / "manifest.json", {"profile": settings, "plan": {"full": [1, 2]}})
