"""The clinic from outside: ``python -m promedical_utils.clinic serve`` plays every role over
loopback,

``pool --out FILE.jsonl`` writes the raw pool around its messages, as a source for ``data: open``.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from promedical_utils import clinic
from promedical_utils.clinic import pool, server
from promedical_utils.core import profiles
from promedical_utils.core.workspace import KitError, shown, write_text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser("promedical_utils.clinic", description=__doc__)
    add = parser.add_argument
    add("command", choices=("serve", "pool"))
    add("--profile", default="cpu", help="whose world it is; SET= overrides apply")
    add("--seed", type=int, default=-1)
    add("--port", type=int, default=8765)
    add("--faults", type=float, default=0.0, help="share of requests that fail")
    add("--slow", type=float, default=1.0, help="seconds that a time-out takes")
    add("--key", default="", metavar="NAME", help="environment variable of a key to ask for")
    add("--out", type=Path, default=Path("pool.jsonl"), help="of pool")
    given = parser.parse_args(arguments)
    try:
        profile = profiles.profile_for(given.profile, given.seed)
        world = clinic.build(profile)
        if given.command == "pool":
            rows, _ = pool.raw(world, world.ids("train"), profile.seed)
            write_text(given.out, "".join(f"{row.model_dump_json()}\n" for row in rows))
            print(f"{len(rows)} raw rows (invented) -> {shown(given.out)}")
            return 0
        key = os.environ.get(given.key, "")
        roles = server.Clinic(world, profile)
        running = server.Server(roles, given.port, given.faults, given.slow, key)
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
