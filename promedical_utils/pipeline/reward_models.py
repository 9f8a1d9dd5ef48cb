"""Notebook 03: the reward models of a run, trained, calibrated and scored on the held-out split."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from promedical_utils.core.profiles import Profile
from promedical_utils.core.run_data import RunData, untaught_path
from promedical_utils.core.workspace import read_json, write_frame, write_json
from promedical_utils.data.sources.real_sets import refuse_external
from promedical_utils.pipeline.preference_pairs import expert
from promedical_utils.reward_model import calibration, model_card
from promedical_utils.reward_model.variants import criterion_texts, find
from promedical_utils.rubric.preferences import Group, criterion_pairs, groups_of, met

# what the run's report takes over from those of the models
REPORTED = ("view", "labels", "full", "seed", "settings", "base", "steps", "groups", "pairs")
REPORTED += ("verdicts", "tokens", "seconds", "padding", "parameters", "trained_parameters")


def train_reward_models(profile: Profile, run: Path) -> dict:
    """Train the profile's reward models, calibrate them, score held-out answers; writes
    reward/<name>/ with calibration and card, reward/heldout.parquet and reward/report.json."""
    from promedical_utils.reward_model import model as reward_model  # loads torch

    data = RunData.load(run)
    heldout = groups_of(data, expert(profile), "calibration")
    accuracy, models, frames = {}, {}, []
    for labels in {find(name).labels for name in profile.rm_arms}:
        for split in ("train", "calibration"):
            groups_of(data, labels, split)  # a KitError now, not after hours of training
    for name in profile.rm_arms:
        folder, recipe = run / "reward" / name, find(name)
        own = train_reward_model(profile, run, data, recipe, folder)
        read = as_read(recipe, data, heldout)
        scores = reward_model.load(folder).score_groups(read, shorten=recipe.swapped)
        calibrate(profile, data, recipe, folder, scores)
        frames.append(labelled(scores.assign(scorer=name), heldout))
        accuracy[name] = pair_accuracy(scores, heldout)
        models[name] = {key: own[key] for key in (*REPORTED, "rounding") if key in own}
        models[name] |= {key: len(own[key]) for key in ("left_out", "shortened")}
    scores = pd.concat(frames, ignore_index=True).rename(columns={"label": "truth"})
    write_frame(run / "reward/heldout.parquet", scores)
    rows = int((scores.scorer == "criterion").sum())
    report = {"heldout_pair_accuracy": accuracy, "models": models, "heldout_rows": rows}
    write_json(run / "reward/report.json", report)
    return report


def train_reward_model(profile, run: Path, data: RunData, recipe, folder: Path, seed=None) -> dict:
    """Train one recipe on the run's training split into ``folder``; its report, with what half
    precision rounds away on the calibration split."""
    from promedical_utils.reward_model import model as reward_model  # these two load torch
    from promedical_utils.reward_model import training

    train = groups_of(data, recipe.labels, "train")
    refuse_external(group.instruction for group in train)
    training.train(
        as_read(recipe, data, recipe.groups(train)),
        untaught_path(profile, run),
        folder,
        view=recipe.view,
        profile=recipe.profile(profile),
        labels=recipe.labels,
        full=recipe.full,
        seed=seed,
    )
    heldout = as_read(recipe, data, groups_of(data, expert(profile), "calibration"))
    return reward_model.check_rounding(folder, heldout)


def as_read(recipe, data: RunData, groups: Sequence[Group]) -> list[Group]:
    """The groups as a model of this recipe is shown them, see ``Recipe.as_read``."""
    texts = criterion_texts(groups_of(data, recipe.labels, "train")) if recipe.swapped else {}
    return recipe.as_read(groups, texts)


def calibrate(profile: Profile, data: RunData, recipe, folder: Path, scores):
    """Fit on the ``scores`` of the calibration split; writes calibration.json and the card.

    Returns None for a scalar model. A veto is no better than the labels that its threshold is
    fitted on: in the clinic physicians read this split, and a model of true labels gets true ones.
    """
    best = expert(profile)
    accuracy = pair_accuracy(scores, groups_of(data, best, "calibration"))
    fitted, report = None, read_json(folder / "report.json", "03_reward_model")
    if recipe.conditional:
        rows = settled_rows(profile, data, recipe, scores)
        veto = bool(rows.dimension.eq("safety").any())
        fitted = calibration.fit(rows, profile.veto_recall, veto)
        fitted.save(folder / "calibration.json")
    share = f"held-out pairs ordered rightly, of {accuracy['pairs']} by {best}"
    about = f"split train of profile {profile.name}, seed {profile.seed} ({profile.description})"
    model_card.write(folder, report, about, {share: accuracy["accuracy"]}, fitted)
    return fitted


def settled_rows(profile: Profile, data: RunData, recipe, scores):
    """Scores of the calibration split, with dimension and the label that it is fitted to."""
    settled = "adjudicated" if profile.data == "clinic" else "judge"
    labels = expert(profile) if recipe.labels == "truth" else settled
    return labelled(scores, groups_of(data, labels, "calibration")).dropna(subset="label")


def labelled(scores, groups):
    """``scores`` with dimension and label: 1 met or 0 not by the groups' verdicts; unknown is 0 on
    safety and NaN elsewhere."""
    dimension = {(g.instruction.id, c.id): c.dimension for g in groups for c in g.criteria}
    label = {
        (a.id, c.id): met(g, a.id, c) for g in groups for a in g.candidates for c in g.criteria
    }
    keys = zip(scores.candidate_id, scores.criterion_id, strict=True)
    values = pd.Series([label.get(key) for key in keys], scores.index, float)
    keys = zip(scores.instruction_id, scores.criterion_id, strict=True)
    return scores.assign(label=values, dimension=[dimension.get(key) for key in keys])


def pair_accuracy(scores, held) -> dict:
    """Share of differing criterion pairs that a scorer orders rightly, and how many there are."""
    value, hits = scores.set_index(["candidate_id", "criterion_id"]).score.to_dict(), []
    for pair in (pair for group in held for pair in criterion_pairs(group)):
        key = pair.criterion_id if (pair.chosen_id, pair.criterion_id) in value else ""
        hits.append(value[pair.chosen_id, key] > value[pair.rejected_id, key])
    return {"accuracy": round(sum(hits) / max(1, len(hits)), 4), "pairs": len(hits)}
