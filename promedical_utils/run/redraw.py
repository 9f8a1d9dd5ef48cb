"""Tables, figures, claims and audit of a committed run, and its studies, from their rows."""

from promedical_utils.audit import paper_numbers
from promedical_utils.core import profiles
from promedical_utils.core.profiles import Profile
from promedical_utils.core.workspace import need, project_root, read_json, shown
from promedical_utils.paper.registry import build
from promedical_utils.studies.catalog import study_of


def redraw(profile: Profile) -> str:
    """Redraw the committed reference of a profile, and the studies of it, from their rows; lines to
    print."""
    root = project_root() / "papers_figures"
    place = root / profile.name
    need(place / "bench/predictions.parquet", "of a published run; make publish")
    lines = []
    # the studies first: the ablation reads their files
    for path in sorted(root.glob("studies/*/manifest.json")):
        manifest = read_json(path, "of a study (make study)")
        if profiles.of_manifest(manifest).name == profile.name:
            study_of(path.parent.name).redraw(path.parent)
            lines.append(f"redrawn: {shown(path.parent)}")
    report = build(profile, place, place)
    paper_numbers.save(profile, place)
    counts = f"{len(report['tables'])} tables, {len(report['figures'])} figures"
    lines.append(f"redrawn: {shown(place)}, {counts}")
    return "\n".join(
        lines + [f"not built: {name} {why}" for name, why in report["not_built"].items()]
    )
