"""What ``make bench`` measured of a part, written to runs/<part>/<part>.json and shown.

python benchmarks/summary.py speed
"""

import json
import sys

from promedical_utils.core.workspace import KitError, project_root, shown, write_json
from promedical_utils.run.publish import MEASURED


def summary(part: str) -> str:
    """Lines to print; KitError where nothing was measured."""
    folder = project_root() / "runs" / part
    if part not in MEASURED or not (folder / "measured.json").exists():
        raise KitError(f"missing runs/{part}/measured.json, which make bench BENCH={part} writes")
    measured = json.loads((folder / "measured.json").read_text(encoding="utf-8"))
    if part != "speed":  # rows as the benchmarks state them, without the machine's description
        rows = [b["extra_info"] for b in measured["benchmarks"]]
        write_json(folder / f"{part}.json", {"cases": rows})
        return "\n".join(json.dumps(row) for row in rows) + f"\n-> {shown(folder)}"

    import speed  # late: loads torch

    table = speed.save(measured, folder)
    columns = ["task", "case", "L", "K", "answers", "ratio", "low", "high", "work", "share"]
    return f"{table[columns].round(3).to_string(index=False)}\n-> {shown(folder)}"


if __name__ == "__main__":
    try:
        print(summary(sys.argv[1]))
    except KitError as error:
        sys.exit(str(error))
