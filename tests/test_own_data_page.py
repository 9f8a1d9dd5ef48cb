"""The code of docs/own_data.md, verifiers.md and inspect.md, run as it stands on a tiny model."""

import re
import shutil
from contextlib import chdir
from pathlib import Path

import pytest

from promedical_utils.core import profiles
from promedical_utils.core.workspace import project_root
from promedical_utils.data.sources import own
from promedical_utils.rubric.preferences import groups_of
from promedical_veto import scores

ROOT = project_root()
pytestmark = pytest.mark.training


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / f"docs/{page}.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run(page: str) -> dict:
    names: dict = {}
    for number, code in enumerate(blocks(page, "python"), 1):
        exec(compile(code, f"docs/{page}.md, block {number}", "exec"), names)
    return names


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_base):
    """Where a reader would be: the sample data, and the hub's model by a folder of its name."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "docs").mkdir()
    shutil.copy(ROOT / "docs/own_data.csv", folder / "docs")
    shutil.copytree(tiny_base, folder / "Qwen/Qwen3-0.6B")
    return folder


@pytest.fixture(scope="module")
def names(folder):
    """What the code of the page has made."""
    with chdir(folder):
        return run("own_data")


@pytest.fixture
def there(folder, names, monkeypatch):
    monkeypatch.chdir(folder)
    scores.load.cache_clear()
    return folder


def test_own_data_trains_is_calibrated_and_becomes_a_reward_of_trl(there, names):
    assert names["counts"]["preferences"] == 3 and names["counts"]["verdicts"] == 128
    assert names["rm"].report["pairs"] > names["counts"]["preferences"]
    assert set(names["rm"].calibration.quality) == {"proficiency", "excellence", "safety"}
    assert names["found"].verdict in ("vetoed", "accepted")
    logged = names["trainer"].state.log_history
    rates = [row["veto/rate"] for row in logged if "veto/rate" in row]
    assert names["trainer"].state.global_step == 2 and rates and all(0 <= r <= 1 for r in rates)
    assert {p.name for p in (there / "docs").iterdir()} == {"own_data.csv"}  # only read


def test_the_reward_model_of_the_page_is_the_taskset_of_verifiers(there):
    pytest.importorskip("verifiers.v1", reason="extra verifiers is not installed")
    tasks = list(run("verifiers")["tasks"])
    assert len(tasks) == 8 and tasks[0].config.reward_model == "my_rm"


def test_the_reward_model_of_the_page_scores_in_inspect(there, monkeypatch):
    pytest.importorskip("inspect_ai", reason="extra inspect is not installed")
    from inspect_ai.model._providers.mockllm import MockLLM

    async def uncounted(*_):
        """Tokens are counted with a table that comes from the network."""

    monkeypatch.setattr(MockLLM, "_ensure_default_usage", uncounted)
    log = run("inspect")["log"]
    assert log.status == "success" and log.results.total_samples == 4
    assert all(s.scores["promedical_veto"].value["violation"] in (0, 1) for s in log.samples)


def test_the_table_and_the_settings_of_the_page_are_read(tmp_path):
    [table] = blocks("own_data", "csv")
    (tmp_path / "own.csv").write_text(table)
    data, _ = own.read(tmp_path / "own.csv")
    [group] = groups_of(data, "judge", "train")
    assert [c.weight for c in group.criteria] == [1, 0] and group.scores[
        data.candidates[0].id
    ].s3 == 0
    [settings] = re.findall('PROFILE=real SET="(.*?)"', (ROOT / "docs/own_data.md").read_text())
    own_data = profiles.load("real", **profiles.overrides(settings)).own_data
    assert (ROOT / own_data).is_file()
    named = {name for name in re.findall(r"`(\w+)`", "".join(columns()))}
    assert named == own.Row.model_fields.keys()


def columns() -> list[str]:
    """First cells of the page's table of columns."""
    lines = (ROOT / "docs/own_data.md").read_text().splitlines()
    start = lines.index("| column | what it holds |")
    rows = [line for line in lines[start + 2 :] if line.startswith("|") or not line]
    return [row.split("|")[1] for row in rows[: rows.index("")]]


def test_pages_are_linked_to():
    assert all(
        f"docs/{page}.md" in (ROOT / "README.md").read_text()
        for page in ("own_data", "verifiers", "inspect")
    )
    assert Path(ROOT / "docs/own_data.png").is_file()
