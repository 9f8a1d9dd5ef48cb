"""Every profile is whole; a broken override or value is one clear line."""

import pytest
import yaml

from promedical_utils.core import profiles
from promedical_utils.core.workspace import KitError
from promedical_utils.run import notebooks
from promedical_utils.run.notebooks import NOTEBOOKS


@pytest.mark.parametrize("name", profiles.names())
def test_profile_is_whole(name):
    profile = profiles.load(name)
    assert profile.name == name
    assert set(profile.notebooks) <= set(NOTEBOOKS)
    assert profile.notebooks == sorted(profile.notebooks), (
        "the kit's order is the order of the numbers"
    )


@pytest.mark.parametrize("name", ["gpu", "paper"])
def test_big_profiles_take_the_small_base(name):
    profile = profiles.load(name, base_model="small", seed=5)
    assert (profile.base_model, profile.seed) == ("small", 5)
    assert notebooks.environment(profile)["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in notebooks.environment(profiles.load(name))


def test_depth_belongs_to_the_base_that_it_was_written_for(tmp_path, monkeypatch):
    assert profiles.load("smoke").base_layers == 2
    assert profiles.load("gpu", base_model="small").base_layers == 4
    assert profiles.load("smoke", base_model="smollm2").base_layers is None  # whole
    assert profiles.load("smoke", base_model="smollm2", base_layers=10).base_layers == 10
    whole = yaml.safe_load((profiles.FOLDER / "smoke.yaml").read_text())
    monkeypatch.setattr(profiles, "FOLDER", tmp_path)
    shortened = whole | {"base_model": "smollm2", "base_layers": 10}
    (tmp_path / "smoke.yaml").write_text(yaml.safe_dump(shortened))
    assert profiles.load("smoke").base_layers == 10
    assert profiles.load("smoke", base_model="small").base_layers == 4


def test_paper_keeps_the_reported_settings():
    paper = profiles.load("paper")
    assert paper.base_model == "Qwen/Qwen3-8B"
    assert (paper.rm_epochs, paper.rm_batch, paper.rm_learning_rate, paper.rm_max_tokens) == (
        2,
        64,
        5e-6,
        8192,
    )
    assert (paper.grpo_group, paper.grpo_learning_rate, paper.grpo_beta_kl) == (8, 1e-6, 0.04)
    assert (paper.train_instructions, paper.bench_samples) == (51990, 795)


@pytest.mark.parametrize("name", ["gpu", "paper"])
def test_bench_has_the_papers_size(name):
    profile = profiles.load(name)
    pairs = (
        profile.bench_pairs_proficiency,
        profile.bench_pairs_excellence,
        profile.bench_pairs_safety,
    )
    assert (profile.bench_samples, *pairs, sum(pairs)) == (795, 3625, 1650, 230, 5505)


def test_gpu_is_what_a_student_can_run():
    gpu = profiles.load("gpu")
    assert (gpu.base_model, gpu.quantization, gpu.precision) == ("Qwen/Qwen3-0.6B", "nf4", "auto")
    assert gpu.train_instructions == 1000
    assert gpu.rm_learning_rate > 10 * profiles.load("paper").rm_learning_rate


@pytest.mark.parametrize(
    "text, values",
    [
        ("", {}),
        ("seed=11 base_model=Qwen/Qwen3-1.7B", {"seed": 11, "base_model": "Qwen/Qwen3-1.7B"}),
        ("rm_learning_rate=1e-3 rm_shorten=true", {"rm_learning_rate": 0.001, "rm_shorten": True}),
        ("pair_rm= verifier=", {"pair_rm": "", "verifier": ""}),
        ("rm_lora_targets=[q_proj,v_proj]", {"rm_lora_targets": ["q_proj", "v_proj"]}),
        ("notebooks=[00_start_here,01_rubrics]", {"notebooks": ["00_start_here", "01_rubrics"]}),
        ("'reviewers=[ann, bob]' seed=3", {"reviewers": ["ann", "bob"], "seed": 3}),
        ('base_model="/data/my models/q"', {"base_model": "/data/my models/q"}),
        ("licences='[MIT, none stated]'", {"licences": ["MIT", "none stated"]}),
    ],
)
def test_overrides(text, values):
    assert profiles.overrides(text) == values


def test_a_file_of_overrides_is_read_in_its_place_among_the_others():
    values = profiles.overrides("source_limit=3 @docs/smollm2.yaml data=clinic")
    assert (values["source_limit"], values["data"]) == (50, "clinic")  # the later one wins
    served = profiles.load("gpu", **profiles.overrides("@docs/smollm2.yaml"))
    assert {(role.model, role.structured) for role in served.roles.values()} == {
        ("runs/served", "prompt")
    }


def test_environment_overrides_reach_the_profile(monkeypatch):
    monkeypatch.setenv(profiles.OVERRIDES, "seed=11 rm_learning_rate=1e-3")
    profile = profiles.profile_for("smoke")
    assert (profile.seed, profile.rm_learning_rate) == (11, 0.001)
    assert profiles.profile_for("smoke", seed=3).seed == 3, "a parameter goes over the environment"


@pytest.mark.parametrize(
    "text, part",
    [
        ("sede=3", "sede"),
        ("seed=many", "seed"),
        ("seed=-1", "seed"),
        ("seed", "key=value"),
        ("name=cpu", "key=value"),
        ("@docs/none.yaml", "override @docs/none.yaml: no YAML file"),
        ("@README.md", "override @README.md: no YAML file"),
        ("reward_lambda=1.0", "reward_lambda"),
        ("grpo_group=1", "grpo_group"),
        ("base_model=Qwen/Qwen3-0.6B base_layers=3", "base_layers is of small and smollm2"),
        ("rm_lora_targets=[]", "rm_lora_targets"),
        ("rm_lora_targets=q_proj", "rm_lora_targets"),
        ("reviewers=[ann, bob]", "in quotes, as in SET=\"'reviewers=[ann, bob]'\""),
        ("base_model='my models/q", "stands in quotes"),
    ],
)
def test_broken_override_is_one_line(monkeypatch, text, part):
    monkeypatch.setenv(profiles.OVERRIDES, text)
    with pytest.raises(KitError) as error:
        profiles.profile_for("smoke")
    assert part in str(error.value) and "\n" not in str(error.value)


def test_unknown_profile_is_one_line():
    with pytest.raises(KitError, match="unknown profile 'cpuu': choose one of .*cpu.*smoke"):
        profiles.load("cpuu")


def test_broken_file_names_file_and_key(tmp_path, monkeypatch):
    values = yaml.safe_load((profiles.FOLDER / "smoke.yaml").read_text())
    monkeypatch.setattr(profiles, "FOLDER", tmp_path)
    (tmp_path / "smoke.yaml").write_text(yaml.safe_dump(values | {"rm_epochs": "two"}))
    with pytest.raises(KitError, match=r"rm_epochs.*profiles/smoke.yaml"):
        profiles.load("smoke")
    (tmp_path / "smoke.yaml").write_text("a: [")
    with pytest.raises(KitError, match="not YAML"):
        profiles.load("smoke")


def test_unknown_notebook_in_a_profile():
    with pytest.raises(KitError, match="no notebook '09_more'"):
        notebooks.notebooks(profiles.load("smoke", notebooks=["09_more"]))
