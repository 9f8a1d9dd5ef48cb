"""``python -m promedical_utils serve``: the clinic plays every role over loopback."""

import argparse
import sys
from collections.abc import Sequence

from promedical_utils import clinic
from promedical_utils.clinic import server
from promedical_utils.core import profiles
from promedical_utils.core.workspace import KitError


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("promedical_utils.clinic", description=__doc__)
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("--profile", default="cpu", help="whose world it is; SET= overrides apply")
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests that fail")
    given = parser.parse_args(arguments)
    try:
        profile = profiles.profile_for(given.profile)
        played = server.Clinic(clinic.build(profile), profile)
        running = server.Server(played, given.port, given.faults)
        whose = f"profile {profile.name}, seed {profile.seed}"
        print(f"the clinic (invented) of {whose}: {running.url}", flush=True)
        running.serve_forever()
    except KeyboardInterrupt:
        return 0
    except (KitError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
