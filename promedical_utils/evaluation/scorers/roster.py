"""Which scorers of others a profile names, and how each is got here; what cannot run says why."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from promedical_utils.core.profiles import Profile, Role
from promedical_utils.core.workspace import KitError
from promedical_utils.data.endpoints import Answers
from promedical_utils.evaluation import scorers
from promedical_utils.evaluation.scorers.judge import Judge, RarImplicit, endpoint
from promedical_utils.rubric.preferences import Group


def others(profile: Profile, run: Path) -> dict[str, Callable]:
    """Name -> what loads that scorer, in the order of the tables; loading raises KitError.

    Models by hub id are run as the profile runs its own: NF4 where it says so. Judges ask their
    own endpoints alone; what they answered lies in the run's answers.sqlite.
    """
    named = {
        name: _hub(profile, name)
        for name in ("scalar_rm", "pair_rm", "verifier")
        if getattr(profile, name)
    }
    named |= {name: _judge(profile, run, name, role) for name, role in profile.judges.items()}
    if profile.rar_judge:
        named["rar_implicit"] = _judge(profile, run, "rar_implicit", profile.rar_judge)
    return named


def predict(loaders: dict[str, Callable], groups: Sequence[Group]) -> tuple:
    """(predictions, preferences, left out): lists of frames of those that ran, {name: why} of
    others.

    One after another, so that one model at a time is in memory. A scorer that cannot be loaded,
    that cannot read a text whole, whose budget is spent, or that answered nothing at all is left
    out; nothing of it is kept, so that no row rests on a part of the bench.
    """
    predictions, preferences, left_out = [], [], {}
    for name, load in loaders.items():
        try:
            scored, preferred = scorers.predict(load(), groups)
            gave = scored is not None and scored.score.notna().any()
            gave |= preferred is not None and preferred.probability.notna().any()
            if not gave:
                raise KitError(f"{name} gave no answer to any request")
        except KitError as error:
            left_out[name] = str(error)
            continue
        predictions += [scored] if scored is not None else []
        preferences += [preferred] if preferred is not None else []
    return predictions, preferences, left_out


def _hub(profile: Profile, name: str) -> Callable:
    def load():
        import torch

        from promedical_utils.evaluation.scorers.pair_rm import PairRM  # loads torch
        from promedical_utils.evaluation.scorers.scalar import ScalarRM  # loads torch
        from promedical_utils.evaluation.scorers.verifier import Verifier  # loads torch
        from promedical_utils.reward_model.hub import compute_dtype  # loads torch

        kind = {"pair_rm": PairRM, "verifier": Verifier, "scalar_rm": ScalarRM}[name]
        source = getattr(profile, name)
        if not Path(source).is_dir() and not torch.cuda.is_available():
            raise KitError(f"{source} needs a GPU; or name a folder with a small version of it")
        precision = compute_dtype(profile.precision)
        return kind.load(source, name=name, nf4=profile.quantization == "nf4", dtype=precision)

    return load


def _judge(profile: Profile, run: Path, name: str, role: Role) -> Callable:
    def load():
        if not role.endpoint:
            raise KitError(
                f"judge {name} has no endpoint: set it where the profile names {role.model}"
            )
        if role.key and not os.environ.get(role.key):
            raise KitError(f"judge {name}: the environment variable {role.key} is not set")
        own = endpoint(name, role, Answers(run / "answers.sqlite"))
        return RarImplicit(own) if name == "rar_implicit" else Judge(name, own)

    return load
