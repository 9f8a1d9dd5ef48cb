"""The one command line, also behind the Makefile: ``python -m promedical_utils COMMAND``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

try:
    import fcntl  # noqa: F401  of POSIX alone, as ``resource`` is; what is imported below needs both
except ModuleNotFoundError:
    sys.exit("The kit's commands run on Linux and macOS; on Windows use WSL.")

from promedical_audit import arithmetic
from promedical_utils.core import profiles, workspace
from promedical_utils.data.sources import rubric_files
from promedical_utils.paper import own_table, trace
from promedical_utils.pipeline import policies
from promedical_utils.run import doctor, graph, notebooks, publish

LONG_TABLES = {
    "evaluate": "the paper's tables for verdicts and scores of your own (docs/evaluate.md)",
    "agreement": "how well raters agree (docs/evaluate.md)",
}
OWN_ARGUMENTS = {  # commands that read their arguments themselves
    "trace": "from a cell of a table down to what it is made of",
    "audit": "can the numbers of a table be what they say",
    "lint": "what may be wrong with a file of rubrics",
}


def parser() -> argparse.ArgumentParser:
    """A subcommand a command; those of ``OWN_ARGUMENTS`` read their own arguments."""
    result = argparse.ArgumentParser(prog="promedical_utils", description=__doc__)
    commands = result.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, argument: str = "profile", **options):
        added = commands.add_parser(name, help=summary, description=summary)
        added.add_argument("name", metavar=argument, **options)
        return added

    profile = {"nargs": "?", "default": "cpu", "help": "smoke, cpu, record, real, gpu or paper"}
    run = {"default": "", "metavar": "FOLDER", "help": "of the run, instead of runs/<profile>"}
    command("reproduce", "bring a run up to date", **profile).add_argument("--run", **run)
    notebook = command("notebook", "run one notebook, as the Snakefile does", "notebook")
    notebook.add_argument("--profile", default="smoke")
    notebook.add_argument("--run", **run)
    policy = command("policy", "train the policy alone, for accelerate launch", **profile)
    policy.add_argument("--run", **run)
    command("doctor", "what this machine has, and what a profile needs", **profile)
    command("figures", "redraw all from the committed rows, without training", **profile)
    command("publish", "copy a run to papers_figures", "profile, study or bench", **profile)
    command("study", "run a longer study, resumable", "study")
    for name, summary in LONG_TABLES.items():
        own = command(name, summary, "FILE", nargs="+")
        own.add_argument("--map", nargs="+", default=[], metavar="OURS=THEIRS", action="extend")
        own.add_argument("--out", type=Path, default=Path(name), help=f"folder, default {name}")
        own.add_argument("--draws", type=int, default=1000, help="for the intervals")
        own.add_argument("--seed", type=int, default=0, help="of these draws")
    own.add_argument("--levels", default="", help="all labels, lowest first: 1,2,3,4,5")
    for name, summary in OWN_ARGUMENTS.items():
        commands.add_parser(name, help=summary, add_help=False)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 1 after a mistake of the input, which is one line on stderr."""
    given, rest = parser().parse_known_args(arguments)
    if rest and given.command not in OWN_ARGUMENTS:
        parser().error(f"{given.command} does not take {' '.join(rest)}")
    try:
        return _run(given, rest)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("promedical_utils"):
            raise
        print(f'{error}: pip install -e ".[train,data,notebooks]" has it', file=sys.stderr)
    except workspace.KitError as error:
        if given.command == "notebook":  # for reproduce, which shows it last
            folder = workspace.run_folder(given.profile, given.run)
            workspace.write_text(folder / "failure.txt", f"{error}\n")
        print(error, file=sys.stderr)
    return 1


def _run(given: argparse.Namespace, rest: list[str]) -> int:
    match given.command:
        case "trace":
            return trace.main(rest)
        case "audit":
            return arithmetic.main(rest)
        case "lint":
            return rubric_files.main(rest)
        case "reproduce":
            graph.reproduce(given.name, given.run)
        case "notebook":
            notebooks.execute(given.name, given.profile, given.run)
        case "policy":  # what notebook 05 calls
            folder = workspace.run_folder(given.name, given.run)
            report = policies.train_policy(profiles.profile_for(given.name), folder)
            kept = f"step {report['best']['step']} of {report['steps']} kept"
            print(f"{kept} -> {workspace.shown(folder)}")
        case "doctor":
            print(doctor.report(given.name))
        case "publish":
            print(f"published to {workspace.shown(publish.publish(given.name))}")
        case "figures":
            print(publish.redraw(profiles.load(given.name)))
        case "study":
            graph.run_study(given.name)
        case "evaluate" | "agreement":
            mapping = dict(pair.partition("=")[::2] for pair in given.map)
            levels = [level.strip() for level in getattr(given, "levels", "").split(",")]
            more = {"levels": levels} if any(levels) else {}
            command = getattr(own_table, given.command)
            command(given.name, given.out, mapping, given.draws, given.seed, **more)
    return 0


if __name__ == "__main__":
    sys.exit(main())
