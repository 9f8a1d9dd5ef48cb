"""The commands behind the Makefile: ``python -m promedical_utils reproduce cpu`` and so on."""

import argparse
import sys

from promedical_utils.core import profiles, workspace
from promedical_utils.pipeline import policies
from promedical_utils.run import doctor, graph, notebooks, publish, redraw, study

COMMANDS = ("reproduce", "notebook", "policy", "doctor", "publish", "figures", "study")


def main() -> int:
    parser = argparse.ArgumentParser(prog="promedical_utils", description=__doc__)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("name", nargs="?", default="cpu", help="profile; notebook, study: its name")
    parser.add_argument("--profile", default="smoke", help="of notebook")
    parser.add_argument("--run", default="", help="folder of the run, instead of runs/<profile>")
    parser.add_argument("-p", "--parameter", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    try:
        match given.command:
            case "reproduce":
                graph.reproduce(given.name, given.run)
            case "notebook":
                parameters = profiles.overrides(" ".join(given.parameter))
                notebooks.execute(given.name, given.profile, given.run, parameters)
            case "policy":  # what notebook 05 calls, for accelerate launch
                profile = profiles.profile_for(given.name)
                folder = workspace.run_folder(given.name, given.run)
                report = policies.train_policy(profile, folder)
                print(
                    f"step {report['best']['step']} of {report['steps']} kept -> "
                    f"{workspace.shown(folder)}"
                )
            case "doctor":
                print(doctor.report(given.name))
            case "publish":
                print(f"published to {workspace.shown(publish.publish(given.name))}")
            case "figures":
                print(redraw.redraw(profiles.load(given.name)))
            case "study":
                study.run_study(given.name)
    except workspace.KitError as error:
        if given.command == "notebook":  # for reproduce, which shows it last
            folder = workspace.run_folder(given.profile, given.run)
            workspace.write_text(folder / "failure.txt", f"{error}\n")
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
