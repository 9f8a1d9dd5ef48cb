"""The commands behind the Makefile: ``python -m promedical_utils reproduce cpu`` and so on."""

import argparse
import sys

from promedical_utils import runs, workspace
from promedical_utils.workspace import KitError


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="promedical_utils", description=__doc__)
    parser.add_argument(
        "command", choices=("reproduce", "notebook", "doctor", "publish", "figures", "study")
    )
    parser.add_argument(
        "name", nargs="?", default="cpu", help="profile; for notebook and study its name"
    )
    parser.add_argument("--profile", default="smoke", help="of notebook")
    parser.add_argument("--run", default="", help="folder of the run, instead of runs/<profile>")
    parser.add_argument("-p", "--parameter", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args(arguments)
    try:
        _run(given)
    except KitError as error:
        if given.command == "notebook":  # for reproduce, which shows it last
            folder = workspace.run_folder(given.profile, given.run)
            workspace.write_text(folder / "failure.txt", f"{error}\n")
        print(error, file=sys.stderr)
        return 1
    return 0


def _run(given) -> None:
    # imported late: none of them needs what the others load
    if given.command == "doctor":
        from promedical_utils import doctor

        print(doctor.report(given.name))
    elif given.command == "publish":
        from promedical_utils import publish

        print(f"published to {workspace.shown(publish.publish(given.name))}")
    elif given.command == "figures":
        from promedical_utils import profiles, stages

        print(stages.figures(profiles.load(given.name)))
    elif given.command == "notebook":
        runs.step(given.name, given.profile, given.run, runs.overrides(" ".join(given.parameter)))
    elif given.command == "study":
        runs.study(given.name)
    else:
        runs.reproduce(given.name, given.run)


if __name__ == "__main__":
    sys.exit(main())
