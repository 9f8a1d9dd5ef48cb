"""The hash of code: what is imported counts, wording does not."""

import pytest

from promedical_utils.core import fingerprint

A = '"""Doc."""\nfrom promedical_studies import d\nfrom promedical_utils import b, near\n'


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "promedical_utils"
    folder.mkdir()
    (tmp_path / "Snakefile").touch()
    (tmp_path / "requirements.lock").write_text("torch==1\n")
    (folder / "__init__.py").write_text("")
    (folder / "a.py").write_text(A)
    (folder / "b.py").write_text("RATE = 1\n")
    (folder / "c.py").write_text("OTHER = 1\n")
    studies = tmp_path / "promedical_studies"
    studies.mkdir()
    (studies / "__init__.py").touch()
    (studies / "d.py").write_text("DOSE = 1\n")
    for room in ("near", "far"):
        (folder / room).mkdir()
        (folder / room / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fingerprint, "PACKAGE", folder)
    return folder


def of_a() -> str:
    fingerprint._module.cache_clear()
    fingerprint._contents.cache_clear()
    return fingerprint.of_code({"promedical_utils.a"})


@pytest.mark.parametrize(
    "path, text, counts",
    [
        ("b.py", "RATE = 2\n", True),
        ("b.py", '"""Words."""\nRATE = 1  # why\n', False),
        ("c.py", "OTHER = 2\n", False),
        ("a.py", A.replace("Doc.", "Other words."), False),
        ("../requirements.lock", "torch==2\n", True),
        ("near/words.yaml", "a: 1\n", True),
        ("far/words.yaml", "a: 1\n", False),
        ("../promedical_studies/d.py", "DOSE = 2\n", True),
        ("../promedical_studies/plan.yaml", "a: 1\n", False),  # of another study
    ],
)
def test_what_a_result_hangs_on(package, path, text, counts):
    before = of_a()
    (package / path).write_text(text)
    assert (of_a() != before) == counts
