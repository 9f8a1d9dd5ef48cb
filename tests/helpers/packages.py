"""The packages of the repository, whichever there are."""

from promedical_utils.core.workspace import project_root

PACKAGES = sorted(path.parent.name for path in project_root().glob("promedical_*/__init__.py"))
