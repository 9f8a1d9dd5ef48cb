"""A checkout with a whole small run in it, for the tests of the trace and of the recount."""

import shutil

import pytest
from helpers import benches
from helpers.runs import write_run, write_study

from promedical_utils.core import provenance, records, run_data
from promedical_utils.core.workspace import project_root, write_json
from promedical_utils.evaluation import bench
from promedical_utils.paper import registry

PROFILE, ROOT = benches.profile(), project_root()
ENDS = {"value": 31.5, "low": 30.0, "high": 33.0}
SCORED = {
    "status": "this run",
    "reason": "of 20 prompts",
    "rows": {"base": ENDS, "grpo": ENDS},
    **ENDS,
}


def build(run):
    """Tables and claims of a run; figures, which take most of the time, are left out."""
    return registry.build(PROFILE, run, run / "paper")


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """A checkout with a whole run in runs/cpu, and a study; HealthBench is told, not measured."""
    root = tmp_path_factory.mktemp("checkout")
    (root / "Snakefile").touch()
    shutil.copytree(ROOT / "papers_figures/paper_values", root / "papers_figures/paper_values")
    write_study(root / "papers_figures/studies/policies")
    run = root / "runs/cpu"
    write_run(run)
    made = bench.Bench.load(run / "bench")
    made.report["blind_ceiling"] = round(bench.blind_ceiling(made.pairs), 4)
    made.save(run / "bench")
    answers = sorted(set(made.verdicts.candidate_id))
    records.save(
        [
            records.Candidate(id=a, instruction_id=a[:-1], generator="g", text=f"says {a} plainly")
            for a in answers
        ],
        run / "data/candidates.parquet",
    )
    provenance.hash_data(run)
    model = {
        "settings": "f1ngerpr1nt",
        "seed": 2040,
        "base": {"folder": "../../base", "sha256": "ba5e" * 16},
    }
    write_json(
        run / "reward/report.json", {"models": {"criterion": model}, "heldout_pair_accuracy": {}}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        run_data.manifest(PROFILE, run)
        patch.setattr(registry, "FIGURES", {})
        patch.setattr(registry.Run, "healthbench", SCORED)
        build(run)
    return root


@pytest.fixture
def run(whole_run, tmp_path, monkeypatch):
    """The run in a copy of the checkout, as the working directory."""
    shutil.copytree(whole_run, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.setattr(registry, "FIGURES", {})
    monkeypatch.setattr(registry.Run, "healthbench", SCORED)
    return tmp_path / "copy/runs/cpu"


@pytest.fixture
def rebuild(run):
    """Builds the run's tables and claims again."""
    return lambda: build(run)
