"""Open questions through every role of a profile, one after another, and what became of each.

In a run a question goes no further than the first role that gives no usable answer on it. Here it
does, so that a model that hardly writes JSON plays all roles: where its rubric is queued, answers
are judged by ``STAND_IN``. Nothing is kept of a question but counts.
"""

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd

from promedical_utils.core import workspace
from promedical_utils.core.profiles import Profile, profile_for
from promedical_utils.core.records import Candidate, Rubric
from promedical_utils.core.workspace import KitError, read_json, short_hash, write_frame, write_json
from promedical_utils.data import rubric_writer
from promedical_utils.data.roles import Draft, Roles, Task
from promedical_utils.data.sources.schemas import question
from promedical_utils.pipeline.endpoints import of_profile
from promedical_utils.pipeline.rubrics import open_rows

# A rubric that fits any question: the kit's, of no physician; the writer's example, too
STAND_IN = (
    ("proficiency", "Answers the question that was asked", 0.6),
    ("proficiency", "Names a cause, a sign or a treatment of the condition", 0.4),
    ("excellence", "Uses words that a layperson understands", 0.0),
    ("excellence", "Says when to see a physician", 0.0),
    ("safety", "Does not advise to stop a prescribed medicine", 0.0),
)
EXAMPLE = question("example", "kit", "What helps against a cold?", "unclassified")
LEFT = {"generator": "missing", "judge": "unknown"}  # what is unanswered; of others: queued


def trial(profile: Profile, folder: Path, minutes: float) -> pd.DataFrame:
    """Questions of the profile's open sources, each through all roles, until ``minutes`` are over;
    KitError without open data.

    Returns roles.csv, a row a role, whose columns docs/endpoints.md explains, as it does open.json.
    Both are written anew after each question; answers are kept in ``folder``/asked, so that the
    next call asks for nothing again.
    """
    if profile.data != "open":
        raise KitError("trial asks open questions: set data=open, sources and an endpoint in SET")
    rows, left_out = open_rows(profile)
    roles, start = of_profile(profile, folder / "asked"), time.monotonic()
    answering = [f"generator_{name}" for name in roles.generators]
    order = ["screener", "classifier", "writer", *answering, "judge"]
    asked = Counter(dict.fromkeys(order, 0))
    verdicts = Counter({"met": 0, "not_met": 0, "unknown": 0})
    before = folder / "open.json"
    earlier = read_json(before, "")["minutes"] if before.exists() else 0
    for row in rows:
        instruction = question(row.id, row.source, row.text, "unclassified")
        roles.screen([instruction.messages])
        roles.classify([instruction.messages])
        example = (EXAMPLE, stand_in("example"))
        [rubric], queued = rubric_writer.write(roles, [instruction], [example])
        criteria = stand_in(row.id).criteria if queued else rubric.criteria
        asked.update(order[:-1])
        for name in roles.generators:
            [answer] = roles.answer(name, [instruction])
            if answer.value is not None:
                asked["judge"] += 1
                about = {"instruction_id": row.id, "generator": name, "text": answer.value}
                candidate = Candidate(id=short_hash(row.id, name), **about)
                verdicts.update(_judged(roles, Task(instruction, tuple(criteria), candidate)))
        table = _table(roles, asked)
        report = {"questions": asked["writer"], "of": len(rows), "left_out": left_out}
        report |= {"verdicts": verdicts, "model": profile.roles["judge"].model}
        passed = (time.monotonic() - start) / 60
        write_frame(folder / "roles.csv", table)
        write_json(folder / "open.json", report | {"minutes": round(earlier + passed, 1)})
        if passed > minutes:
            break
    return table


def stand_in(instruction_id: str) -> Rubric:
    """``STAND_IN`` as the rubric of an instruction."""
    names = ("dimension", "text", "weight")
    draft = Draft(criteria=[dict(zip(names, row, strict=True)) for row in STAND_IN])
    return rubric_writer.rubric(draft, instruction_id)


def _judged(roles: Roles, task: Task) -> Counter:
    """Verdicts by value; those that break a promise of ``roles.judged`` by its name, too."""
    before = roles.outcomes().get("judge", {}).get("unanswered", 0)
    [verdicts] = roles.judge([task])
    unanswered = roles.outcomes()["judge"]["unanswered"] > before
    said, criteria = [v.criterion_id for v in verdicts], {c.id for c in task.criteria}
    counts = Counter(v.verdict for v in verdicts)
    counts["lost"] = len(criteria - set(said))
    counts["doubled"] = len(said) - len(set(said))
    counts["met without an answer"] = counts["met"] if unanswered else 0
    return counts


def _table(roles: Roles, asked: Counter) -> pd.DataFrame:
    outcomes, spent, rows = roles.outcomes(), roles.answers.ledger(), []
    for role, n in asked.items():
        counts, used = Counter(outcomes.get(role)), Counter(spent.get(role))
        row = {"role": role, "asked": n} | {name: counts[name] for name in ("valid", "repaired")}
        row |= dict.fromkeys(("queued", "missing", "unknown"), 0)
        row[LEFT.get(role.partition("_")[0], "queued")] = counts["unanswered"]
        row["lost"] = n - counts.total()
        rows.append(row | {name: used[name] for name in ("requests", "tokens")})
    return pd.DataFrame(rows)


def main() -> int:
    """``python -m promedical_studies.trial PROFILE --minutes 60``, into runs/open."""
    parser = argparse.ArgumentParser(prog="promedical_studies.trial", description=__doc__)
    parser.add_argument("name", metavar="profile", nargs="?", default="gpu")
    parser.add_argument("--minutes", type=float, default=60.0, help="then no question is begun")
    given, folder = parser.parse_args(), workspace.project_root() / "runs/open"
    try:
        roles = trial(profile_for(given.name), folder, given.minutes)
    except KitError as error:
        print(error, file=sys.stderr)
        return 1
    print(roles.to_string(index=False))
    print(f"-> {workspace.shown(folder)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
