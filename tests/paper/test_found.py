"""What was found: the README's sentences are those of the published claims."""

import pytest

from promedical_utils.core.workspace import KitError, project_root, read_json
from promedical_utils.paper import found

CHECK = {
    "verdict": "same direction",
    "difference": 12.34,
    "low": 1.0,
    "high": 20.0,
    "above": 0.0,
    "within": None,
    "reported": None,
}


def claims(**changed):
    ids = [said["claim"] for said in found.SAID["sentences"]]
    whole = {"claim": "It helps", "verdict": "same direction", "reason": "", "checks": [CHECK]}
    return {name: whole | changed for name in ids}


def test_a_sentence_a_claim_with_its_numbers_and_verdict():
    lines = found.sentences(claims())
    assert len(lines) == 5 and all("*same direction*" in line for line in lines)
    assert "by +12.3 points" in lines[0] and "+1.0 to +20.0" in lines[0]
    lines = found.sentences(
        claims(checks=[], reason="the study did not run", verdict="not testable")
    )
    assert lines[0] == "**It helps**: *not testable* (the study did not run)."


def test_only_what_stands_between_the_marks_changes():
    readme = f"# A\n{found.BEGIN}\nold\n{found.END}\nrest"
    text = found.filled(readme, claims())
    assert text.startswith(f"# A\n{found.BEGIN}\n- **Does") and text.endswith(f"{found.END}\nrest")
    assert "old" not in text and found.filled(text, claims()) == text
    with pytest.raises(KitError, match="has no <!-- found -->"):
        found.filled("# A", claims())


def test_the_readme_says_what_the_published_claims_say():
    root = project_root()
    path = root / f"papers_figures/{found.SAID['profile']}/claims.json"
    if not path.exists():
        pytest.skip(f"profile {found.SAID['profile']} is not published yet")
    published = {claim["id"]: claim for claim in read_json(path, "07")["claims"]}
    readme = (root / "README.md").read_text(encoding="utf-8")
    assert found.filled(readme, published) == readme
