"""Base and policy graded on HealthBench by the judge behind an endpoint."""

from importlib.metadata import version
from pathlib import Path

import pandas as pd

from promedical_utils.core import profiles, run_data
from promedical_utils.core.profiles import Profile
from promedical_utils.core.records import Candidate, Criterion
from promedical_utils.core.workspace import KitError, need, write_frame, write_json
from promedical_utils.data.roles import Task
from promedical_utils.data.sources import schemas
from promedical_utils.evaluation import healthbench
from promedical_utils.pipeline import endpoints, policies

RUBRICS = "healthbench_rubrics"


def ensure_graded(profile: Profile, run: Path) -> dict:
    """Grade base and policy unless it is done; the policy table's column (``policy_column``).

    What this very policy was graded on before is not asked again. Where grading is not possible
    the reason is stored, and the column says it.
    """
    graded, not_graded = healthbench.graded(profile, run), run / healthbench.NOT_GRADED
    if not graded and profile.base_model != "small" and profiles.asks_endpoints(profile):
        try:
            need(run / "policy/model", "05_grpo_with_veto")
            grade_policies(profile, run)
            not_graded.unlink(missing_ok=True)
        except KitError as error:  # no policy, no data, no answer from the endpoint
            write_json(not_graded, {"reason": str(error)})
    return healthbench.policy_column(profile, run)


def grade_policies(profile: Profile, run: Path, key: str = RUBRICS) -> None:
    """Let base and aligned policy answer ``policy_prompts`` prompts of HealthBench, and the judge
    grade every criterion; KitError where nothing can be asked or the judge says nothing at all.

    One answer each, sampled from the profile's seed. The judge reads the criteria as they stand, a
    penalty too, all of an answer in one request (kit's decision; HealthBench asks one by one).
    Writes healthbench/graded.parquet, a row a criterion without any text, then graded.json; for
    ``key`` "healthbench_professional" into a folder of that name (``healthbench.professional``).
    """
    usable = healthbench.whole_rubrics(schemas.read(key))
    rows = usable[: profile.policy_prompts or None]
    if not rows:
        raise KitError(
            "HealthBench: no row has a conversation and all its criteria; read the whole set"
        )
    source, kind = key.removesuffix("_rubrics"), "health_conversation"
    asked = [schemas.question(f"{source}-{r.prompt_id}", source, r.prompt, kind) for r in rows]
    roles, graded, finished = endpoints.of_profile(profile, run), [], {}
    for system, folder in {"base": None, "grpo": run / "policy"}.items():
        answers = policies.answers_by(folder, run_data.base_path(profile, run), profile, asked)
        tasks = []
        for instruction, row, answer in zip(asked, rows, answers, strict=True):
            criteria = tuple(  # named by their numbers in the row
                Criterion(id=f"{number}", dimension="proficiency", text=point.criterion, weight=0)
                for number, point in enumerate(row.rubrics)
            )
            about = {"id": f"{system}-{instruction.id}", "instruction_id": instruction.id}
            candidate = Candidate(**about, generator=system, text=answer.text or " ")
            tasks.append(Task(instruction, criteria, candidate))
        lengths = (len(answer.text) for answer in answers)
        for row, verdicts in zip(rows, roles.judge(tasks), strict=True):
            verdict_of = {v.criterion_id: v.verdict for v in verdicts}
            about = {"system": system, "prompt_id": row.prompt_id, "characters": next(lengths)}
            tags = "|".join(row.example_tags or ())
            for number, point in enumerate(row.rubrics):
                judged = {"points": point.points, "verdict": verdict_of[f"{number}"]}
                named = {"tags": "|".join(point.tags), "example_tags": tags}
                graded.append(about | judged | named)
        finished[system] = sum(answer.finished for answer in answers) / len(answers)
    unknown = sum(row["verdict"] == "unknown" for row in graded) / len(graded)
    if unknown == 1:  # no endpoint, or one that is no judge: that is no score of 0
        raise KitError("HealthBench: the judge left every criterion unknown; see to its endpoint")
    write_frame(run / source / "graded.parquet", pd.DataFrame(graded))
    facts = {"prompts": len(rows), "of": len(usable), "unknown": unknown, "finished": finished}
    card, as_read = schemas.CARDS[key], schemas.as_first_read(key)
    facts |= {
        "fingerprint": healthbench.fingerprint(profile, run),
        "judge": profile.roles["judge"].model,
        "packages": {name: version(name) for name in run_data.PACKAGES},
        "source": {"file": card.file, "revision": card.revision, "as_first_read": as_read},
    }
    write_json(run / source / "graded.json", facts)
