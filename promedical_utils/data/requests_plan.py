"""Requests, tokens and hours of the language-model roles, told before anything is asked.

Pure arithmetic. What it assumes is named: tokens of a request (``LENGTHS``), the share of drafts
that are repaired, and the tokens that an endpoint passes in a second.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

from promedical_utils.core.profiles import Profile, Role
from promedical_utils.core.workspace import KitError


class Length(NamedTuple):
    """Mean tokens of one request of a role."""

    prompt: int
    completion: int


# The kit's assumptions, rounded up: an instruction of 150 tokens (UltraMedical's have 102 words on
# average), an answer of 500, a rubric of 7 criteria, 35 tokens a criterion and 60 as JSON, three
# examples for the writer, the prompts of promedical_utils/prompts, and a JSON schema of up to 250
# where it stands in the prompt.
LENGTHS = {
    "writer": Length(2700, 500),
    "screener": Length(600, 50),
    "classifier": Length(800, 50),
    "generator": Length(250, 500),
    "judge": Length(1500, 350),
    "compared": Length(2100, 400),
    "rated": Length(1200, 60),
}


def estimate(
    profile: Profile,
    instructions: int,
    pool: int,
    throughput: float,
    repaired: float = 0.25,
    lengths: Mapping[str, Length] = LENGTHS,
):
    """What each role of ``profile`` will ask, one row a role and their total last, as a DataFrame.

    Columns: role, model, requests, prompt_tokens, completion_tokens, hours, and whether the role's
    request cap and token budget suffice. ``instructions`` get a rubric each, a share ``repaired``
    of them twice; every generator answers each, and every answer is judged in one request, on all
    its criteria. Judges of the bench with an endpoint of their own read every answer of it, and
    every two of one sample in both orders; RaR's rates every answer. The ``pool`` that
    deduplication left is screened, and classified at most.
    ``throughput``: prompt and completion tokens a second of the endpoint, all requests under way
    together; roles one after the other. Requests that are put again come on top. Raises KitError
    on a negative count.
    """
    import pandas as pd

    if min(instructions, pool, repaired) < 0 or throughput <= 0:
        raise KitError(
            f"instructions {instructions}, pool {pool}, repaired {repaired}, throughput "
            f"{throughput}: give counts from 0 on and a throughput above 0"
        )
    generators = sum(name.startswith("generator_") for name in profile.roles)
    asked = {
        "writer": math.ceil(instructions * (1 + repaired)),
        "screener": pool,
        "classifier": pool,
        "generator": instructions,
        "judge": instructions * generators + policy_answers(profile),
    }
    kinds = {name: name.partition("_")[0] for name in profile.roles}
    shares = {name: {kind: asked[kind]} for name, kind in kinds.items()}
    answers = profile.bench_samples * generators
    judges = bench_judges(profile)
    shares |= dict.fromkeys(judges, {"judge": answers, "compared": answers * (generators - 1)})
    shares |= {"rar_implicit": {"rated": answers}} if "rar_implicit" in judges else {}
    rows = []
    for name, role in {**profile.roles, **judges}.items():
        n = sum(shares[name].values())
        of = shares[name].items()
        prompt, completion = (
            sum(count * lengths[kind][side] for kind, count in of) for side in (0, 1)
        )
        tokens = prompt + completion
        rows.append(
            {
                "role": name,
                "model": role.model,
                "requests": n,
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "hours": tokens / throughput / 3600,
                "suffices": n <= role.requests and tokens <= role.tokens,
            }
        )
    summed = ("requests", "prompt_tokens", "completion_tokens", "hours")
    total = {"role": "total", "model": ""} | {
        column: sum(row[column] for row in rows) for column in summed
    }
    return pd.DataFrame([*rows, total | {"suffices": all(row["suffices"] for row in rows)}])


def bench_judges(profile) -> dict[str, Role]:
    """The prompted judges of notebook 04 that have an endpoint, RaR's as ``rar_implicit``."""
    named = profile.judges | ({"rar_implicit": profile.rar_judge} if profile.rar_judge else {})
    return {name: role for name, role in named.items() if role.endpoint}


def policy_answers(profile) -> int:
    """Answers of policies that the endpoint's judge reads in notebook 05; the clinic judges its
    own."""
    if profile.data == "clinic" or "05_grpo_with_veto" not in profile.notebooks:
        return 0
    evaluations = 1 + math.ceil(profile.grpo_steps / profile.grpo_eval_every)
    prompts = profile.policy_prompts or profile.bench_samples
    return evaluations * profile.checkpoint_instructions + 2 * prompts
