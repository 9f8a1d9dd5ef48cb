"""The README's first screen: what was found, filled in from the claims of a published run."""

import re
from collections.abc import Mapping
from pathlib import Path

from promedical_utils.core.workspace import KitError, project_root, read_json, read_yaml, write_text
from promedical_utils.paper.claims import weakest

SAID = read_yaml(Path(__file__).with_suffix(".yaml"))
BEGIN, END = "<!-- found -->", "<!-- /found -->"


def sentences(claims: Mapping[str, Mapping]) -> list[str]:
    """A sentence a claim of found.yaml; ``claims``: id -> claim, as in claims.json. A claim without
    a number says why there is none."""
    lines = []
    for said in SAID["sentences"]:
        claim = claims[said["claim"]]
        if check := weakest(claim):
            lines.append(said["text"].format(**check | {"verdict": claim["verdict"]}))
        else:
            lines.append(f"**{claim['claim']}**: *{claim['verdict']}* ({claim['reason']}).")
    return lines


def filled(readme: str, claims: Mapping[str, Mapping]) -> str:
    """The README with the sentences between its marks; KitError where it has no marks."""
    block = "\n".join([BEGIN, *(f"- {line}" for line in sentences(claims)), END])
    text, found = re.subn(f"{BEGIN}.*?{END}", lambda _: block, readme, count=1, flags=re.DOTALL)
    if not found:
        raise KitError(f"README.md has no {BEGIN} and {END}: put them where the findings stand")
    return text


def fill() -> Path | None:
    """Write the README with the findings of the published profile of found.yaml; None where that
    was not published."""
    root = project_root()
    path = root / f"papers_figures/{SAID['profile']}/claims.json"
    if not path.exists():
        return None
    claims = {claim["id"]: claim for claim in read_json(path, "07_paper_tables")["claims"]}
    readme = root / "README.md"
    return write_text(readme, filled(readme.read_text(encoding="utf-8"), claims))
