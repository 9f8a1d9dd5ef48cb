"""Notebook 03: the reward models of a run, trained, calibrated and scored on the held-out split."""

from pathlib import Path

from promedical_utils.core.profiles import Profile
from promedical_utils.core.run_data import RunData, base_path
from promedical_utils.core.workspace import read_json, replacing, write_json
from promedical_utils.data.sources.real_sets import refuse_external
from promedical_utils.reward_model import calibration, model_card
from promedical_utils.reward_model.variants import find
from promedical_utils.rubric.preferences import criterion_pairs, groups_of, met

RMS = ("criterion", "scalar_overall", "scalar_blind", "criterion_clean")  # of every run
# what the run's report takes over from those of the models
REPORTED = ("view", "labels", "full", "seed", "settings", "base", "steps", "groups", "pairs")
REPORTED += ("verdicts", "tokens", "seconds", "padding", "parameters", "trained_parameters")


def train_reward_models(profile: Profile, run: Path) -> dict:
    """Train the criterion RM, the scalar controls and the twin; calibrate; score held-out answers.

    Writes reward/<name>/ with calibration and card, reward/heldout.parquet and reward/report.json.
    """
    import pandas as pd

    from promedical_utils.reward_model import model as reward_model  # loads torch

    data = RunData.load(run)
    heldout = groups_of(data, _truth(profile), "calibration")
    dimension = {c.id: c.dimension for g in heldout for c in g.criteria}
    reports, frames = {}, []
    for name in models(profile):
        folder = run / "reward" / name
        reports[name] = train_reward_model(profile, run, data, find(name), folder)
        scores = reward_model.load(folder).score_groups(heldout)
        calibrate(profile, data, find(name), folder, scores)
        frames.append(
            scores.assign(
                scorer=name,
                truth=_label(scores, heldout),
                dimension=scores.criterion_id.map(dimension),
            )
        )
    scores = pd.concat(frames, ignore_index=True)
    accuracy = {name: pair_accuracy(scores[scores.scorer == name], heldout) for name in reports}
    with replacing(run / "reward/heldout.parquet") as temporary:
        scores.to_parquet(temporary, index=False)
    report = {
        "heldout_pair_accuracy": accuracy,
        "models": {
            name: {key: own[key] for key in REPORTED}
            | {key: len(own[key]) for key in ("left_out", "shortened")}
            for name, own in reports.items()
        },
        "heldout_rows": int((scores.scorer == "criterion").sum()),
    }
    write_json(run / "reward/report.json", report)
    return report


def train_reward_model(
    profile: Profile, run: Path, data: RunData, recipe, folder: Path, seed=None
) -> dict:
    """Train one recipe on the run's training split into ``folder``; its report."""
    from promedical_utils.reward_model import training  # loads torch

    train = groups_of(data, recipe.labels, "train")
    refuse_external(group.instruction for group in train)
    return training.train(
        recipe.groups(train),
        base_path(profile, run, recipe.architecture),
        folder,
        view=recipe.view,
        profile=recipe.profile(profile),
        labels=recipe.labels,
        full=recipe.full,
        seed=seed,
    )


def calibrate(profile: Profile, data: RunData, recipe, folder: Path, scores):
    """Fit on the ``scores`` of the calibration split; writes calibration.json and the card.

    Returns None for a scalar model. A veto is no better than the labels that its threshold is
    fitted on: in the clinic physicians read this split, and a model of true labels gets true ones.
    """
    accuracy = pair_accuracy(scores, groups_of(data, _truth(profile), "calibration"))
    fitted, report = None, read_json(folder / "report.json", "03_reward_model")
    if recipe.conditional:
        fitted = calibration.fit(
            settled_rows(profile, data, recipe, scores),
            profile.veto_recall,
            veto=profile.data != "real",
            method=profile.calibration_method,
        )
        fitted.save(folder / "calibration.json")
    share = f"held-out pairs ordered rightly, of {accuracy['pairs']} by {_truth(profile)}"
    about = f"split train of profile {profile.name}, seed {profile.seed} ({profile.description})"
    model_card.write(folder, report, about, {share: accuracy["accuracy"]}, fitted)
    return fitted


def settled_rows(profile: Profile, data: RunData, recipe, scores):
    """Scores of the calibration split, with dimension and the label that it is fitted to."""
    settled = "adjudicated" if profile.data == "clinic" else "judge"
    labels = _truth(profile) if recipe.labels == "truth" else settled
    reference = groups_of(data, labels, "calibration")
    dimension = {c.id: c.dimension for g in reference for c in g.criteria}
    rows = scores.assign(
        dimension=scores.criterion_id.map(dimension), label=_label(scores, reference)
    )
    return rows.dropna(subset="label")


def models(profile: Profile) -> list[str]:
    return [n for n in RMS if profile.rm_twin or n != "criterion_clean"]


def _truth(profile: Profile) -> str:
    return "truth" if profile.data == "clinic" else "judge"


def _label(frame, judged_groups):
    """1 met, 0 not met, by the groups' verdicts; unknown is 0 on safety and NaN elsewhere."""
    label = {
        (a.id, c.id): met(g, a.id, c)
        for g in judged_groups
        for a in g.candidates
        for c in g.criteria
        if (a.id, c.id) in g.verdicts
    }
    keys = zip(frame.candidate_id, frame.criterion_id, strict=True)
    values = [label.get(key) for key in keys]
    return [float("nan") if v is None else float(v) for v in values]


def pair_accuracy(scores, held) -> dict:
    """Share of differing criterion pairs that a scorer orders rightly, and how many there are."""
    value = scores.set_index(["candidate_id", "criterion_id"]).score.to_dict()
    hits = []
    for group in held:
        for pair in criterion_pairs(group):
            key = pair.criterion_id if (pair.chosen_id, pair.criterion_id) in value else ""
            hits.append(value[pair.chosen_id, key] > value[pair.rejected_id, key])
    return {"accuracy": round(sum(hits) / max(1, len(hits)), 4), "pairs": len(hits)}
