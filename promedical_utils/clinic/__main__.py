"""The clinic from outside: ``python -m promedical_utils.clinic serve`` plays every role over
loopback,

``pool --out FILE.jsonl`` writes the raw pool around its messages, as a source for ``data: open``.
"""

import argparse
import os
import sys
from pathlib import Path

from promedical_utils import clinic
from promedical_utils.clinic import pool, server
from promedical_utils.core import profiles
from promedical_utils.core.workspace import KitError, shown, write_text


def main() -> int:
    parser = argparse.ArgumentParser(prog="promedical_utils.clinic", description=__doc__)
    parser.add_argument("command", choices=("serve", "pool"))
    parser.add_argument("--profile", default="cpu", help="whose world it is; SET= overrides apply")
    parser.add_argument("--seed", type=int, default=-1)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests that fail")
    parser.add_argument("--slow", type=float, default=1.0, help="seconds that a time-out takes")
    parser.add_argument(
        "--key", default="", metavar="NAME", help="environment variable of a key to ask for"
    )
    parser.add_argument("--out", default="pool.jsonl", help="of pool")
    given = parser.parse_args()
    try:
        profile = profiles.profile_for(given.profile, given.seed)
        world = clinic.build(profile)
        if given.command == "pool":
            rows, _ = pool.raw(world, world.ids("train"), profile.seed)
            write_text(Path(given.out), "".join(f"{row.model_dump_json()}\n" for row in rows))
            print(f"{len(rows)} raw rows (invented) -> {shown(Path(given.out))}")
            return 0
        played = server.Clinic(world, profile)
        key = os.environ.get(given.key, "") if given.key else ""
        running = server.Server(played, given.port, given.faults, given.slow, key)
        print(
            f"the clinic (invented) of profile {profile.name}, seed {profile.seed}: {running.url}",
            flush=True,
        )
        running.serve_forever()
    except KeyboardInterrupt:
        return 0
    except (KitError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
