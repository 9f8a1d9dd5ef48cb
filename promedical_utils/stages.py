"""One function a notebook: each reads what the notebooks before it wrote and writes its own files.

A notebook calls its stage and then shows what came out; ``python -m promedical_utils notebook``
and a study call the very same functions.
"""

import platform
import random
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from promedical_utils import profiles, provenance, records
from promedical_utils.profiles import Profile
from promedical_utils.records import (
    Candidate,
    Instruction,
    Message,
    Rubric,
    SplitRow,
    Verdict,
)
from promedical_utils.workspace import (
    KitError,
    need,
    read_json,
    replacing,
    run_folder,
    short_hash,
    shown,
    write_json,
    write_rows,
)

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "datasets",
    "scikit-learn",
    "bm25s",
)
RMS = ("criterion", "scalar_overall", "scalar_blind", "criterion_clean")  # of every run


def open_run(profile: str, run_dir: str = "", seed: int = -1) -> tuple[Profile, Path]:
    """The validated profile and the run's folder: the first call of every notebook."""
    from promedical_utils import runs

    return runs.profile_for(profile, seed), run_folder(profile, run_dir)


def banner(profile: Profile) -> str:
    """What must be said wherever this run's numbers are shown."""
    lines = [f"profile {profile.name}, seed {profile.seed}: {profile.description}"]
    if profile.data == "clinic":
        lines.append("The clinic is invented: no drug, dose or rule in it is medical knowledge.")
    if profile.name == "smoke":
        lines.append("SMOKE RUN: its numbers are no results; they only show that every part runs.")
    return "\n".join(lines)


def world(profile: Profile):
    from promedical_utils import clinic

    return clinic.build(profile)


# ---------------------------------------------------------------- 00 base model


def base_path(profile: Profile, run: Path, architecture: str = ""):
    """Folder of the kit's own base, or the profile's hub id (or folder) as it stands.

    One of another ``architecture`` than the profile's stands in a folder of that name, which the
    study of systems writes; KitError where the base is not the kit's own.
    """
    if architecture in ("", profile.base_architecture):
        return (
            need(run / "base", "00_start_here")
            if profile.base_model == "small"
            else profile.base_model
        )
    if profile.base_model != "small":
        raise KitError(
            f"no {architecture} base beside {profile.base_model}: base_model=small trains one"
        )
    if not (base := run / architecture / "base").exists():
        raise KitError(f"missing {shown(base)}: make study STUDY=systems trains it")
    return base


def manifest(profile: Profile, run: Path) -> dict:
    """What this run is: the kit's code, settings, packages, machine kind. No paths, no dates."""
    content = {
        "kit": provenance.kit(),
        "profile": profile.model_dump(),
        "packages": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "machine": platform.machine(),
        "system": platform.system(),
    }
    write_json(run / "manifest.json", content)
    return content


def base(profile: Profile, run: Path) -> dict:
    """Train the small base, or name the hub's; writes base/ and base_report.json.

    In the clinic the report has the copy rate of every leaflet fact on held-out patients.
    """
    from promedical_utils import base_model

    start = time.perf_counter()
    if profile.base_model != "small":
        report = {"base": profile.base_model, "trained_here": False, "copy_rates": {}}
    else:
        train = {"clinic": _clinic_base, "real": _real_base, "open": _open_base}[profile.data]
        model, tokenizer, report = train(profile, run)
        base_model.save(model, tokenizer, run / "base")
        report |= {
            "base": "small",
            "trained_here": True,
            "vocabulary": len(tokenizer),
            "parameters": model.num_parameters(),
        }
    rates = report["copy_rates"]
    report["cannot_copy"] = sorted(fact for fact, rate in rates.items() if rate < 0.5)
    write_json(
        run / "base_report.json", report | {"stage_seconds": round(time.perf_counter() - start, 1)}
    )
    return report


def _new_base(profile: Profile, tokenizer):
    from promedical_utils import base_model

    return base_model.new_model(
        tokenizer, profile.base_layers, profile.base_width, profile.seed, profile.base_architecture
    )


def _clinic_base(profile: Profile, run: Path):
    from promedical_utils import base_model
    from promedical_utils.clinic import generators, lessons, vocabulary

    w = world(profile)
    ids = w.ids("train")
    texts = [m.content for i in w.instructions if i.id in set(ids) for m in i.messages]
    texts += [w.answer(i, name) for i in ids for name in generators.NAMES]
    texts += [c.text for i in ids for c in w.rubric_of[i].criteria]
    tokenizer = base_model.train_tokenizer(
        lessons.corpus(texts), profile.base_vocabulary, vocabulary.single_tokens()
    )
    model = _new_base(profile, tokenizer)
    conditions = sorted({(w.patients[i].organ, w.patients[i].problem) for i in ids})
    report = base_model.train(
        model,
        tokenizer,
        lambda i, n: lessons.lesson(i, n, profile.seed, conditions),
        profile.base_steps,
        profile.base_batch,
        profile.base_learning_rate,
        profile.seed,
        run / "base",
    )
    patients = [w.patients[i] for i in w.ids("checkpoint")]
    tests = lessons.reading_tests(patients, profile.seed)
    report["copy_rates"] = base_model.copy_rates(model, tokenizer, tests)
    report["held_out_patients"] = len(patients)
    return model, tokenizer, report


def _text_base(profile: Profile, run: Path, texts: list[str], lesson):
    """A small base with a tokenizer of ``texts``, trained on ``lesson``s; without copy rates."""
    from promedical_utils import base_model

    tokenizer = base_model.train_tokenizer(texts, profile.base_vocabulary)
    model = _new_base(profile, tokenizer)
    report = base_model.train(
        model,
        tokenizer,
        lesson,
        profile.base_steps,
        profile.base_batch,
        profile.base_learning_rate,
        profile.seed,
        run / "base",
    )
    return model, tokenizer, report | {"copy_rates": {}, "texts": len(texts)}


def _real_base(profile: Profile, run: Path):
    from promedical_utils import base_model, sources

    study = sources.load_real(profile.seed)
    texts = sources.corpus(study)
    usable = {row.instruction_id for row in study.splits if row.split == "train"}
    messages = {i.id: i.messages for i in study.instructions if i.id in usable}
    answers = [
        (messages[c.instruction_id], c.text) for c in study.candidates if c.instruction_id in usable
    ]

    def lesson(index: int, total: int) -> base_model.Lesson:
        """A question with the head of one of its answers, in characters about 200 tokens."""
        rng = random.Random(f"real-{profile.seed}-{index}")
        asked, text = rng.choice(answers)
        return [Message(role=m.role, content=m.content[:600]) for m in asked], text[:900], ()

    return _text_base(profile, run, texts, lesson)


def _open_base(profile: Profile, run: Path):
    """A small base on the open questions themselves; there are no answers before notebook 02."""
    from promedical_utils import base_model
    from promedical_utils.rubrics import open_rows

    texts = [row.text for row in open_rows(profile)[0]]

    def lesson(index: int, total: int) -> base_model.Lesson:
        """The first half of a question, answered by its second half."""
        words = random.Random(f"open-{profile.seed}-{index}").choice(texts)[:1200].split()
        half = (len(words) + 1) // 2
        return (
            [Message(role="user", content=" ".join(words[:half]))],
            " ".join(words[half:]) or "?",
            (),
        )

    return _text_base(profile, run, texts, lesson)


# ---------------------------------------------------------------- 01 rubrics


def rubrics(profile: Profile, run: Path) -> dict:
    """Instructions, splits and rubrics; writes data/{instructions,rubrics,splits}.parquet,
    review.json.

    Also hashes.json, composition.csv, funnel.csv where something was curated, drafts.parquet (every
    draft as it came) where something was drafted, and rounds.csv where drafts were reviewed.
    """
    from promedical_utils import rubrics as making

    make = {"clinic": making.of_clinic, "real": _real_rubrics, "open": making.of_open_sets}[
        profile.data
    ]
    report = make(profile, run)
    with replacing(run / "data/composition.csv") as temporary:
        making.composition(run).to_csv(temporary, index=False)
    provenance.hash_data(run)
    return report


def _real_rubrics(profile: Profile, run: Path) -> dict:
    from transformers import AutoTokenizer

    from promedical_utils import base_model, sources

    base_model.quiet()  # long texts are measured here before they are cut
    study = sources.load_real(profile.seed)
    review = {"sources": sources.aggregate_report(study), "notes": list(study.notes)}
    tokenizer = AutoTokenizer.from_pretrained(base_path(profile, run))
    study, cut = sources.shorten(study, tokenizer, profile.rm_max_tokens)
    review["shortened"] = cut
    records.save(study.instructions, run / "data/instructions.parquet")
    records.save(study.splits, run / "data/splits.parquet")
    write_json(run / "data/review.json", review)
    records.save(study.rubrics, run / "data/rubrics.parquet")
    return review


def splits_table(profile: Profile, run: Path):
    """Instructions, conditions, patients and wording seeds by split, as a data frame."""
    import pandas as pd

    rows = records.load(run / "data/splits.parquet", SplitRow, "01_rubrics")
    frame = pd.DataFrame([r.model_dump() for r in rows])
    table = frame.groupby("split").agg(
        instructions=("instruction_id", "size"),
        conditions=("condition", "nunique"),
        patients=("patient", "nunique"),
        wording_seeds=("wording_seed", "nunique"),
    )
    return table.reindex([s for s in records.SPLITS if s in table.index])


# ---------------------------------------------------------------- 02 pairs


def data(run: Path) -> dict[str, list]:
    """All records that 01 and 02 wrote: instructions, rubrics, splits, candidates, verdicts."""
    kinds = {
        "instructions": Instruction,
        "rubrics": Rubric,
        "splits": SplitRow,
        "candidates": Candidate,
        "verdicts": Verdict,
    }
    return {
        name: records.load(
            run / f"data/{name}.parquet",
            kind,
            "02_preference_pairs" if name in ("candidates", "verdicts") else "01_rubrics",
        )
        for name, kind in kinds.items()
    }


def split_ids(found: dict[str, list], *names: str) -> list[str]:
    return [row.instruction_id for row in found["splits"] if row.split in names]


def preference_pairs(profile: Profile, run: Path) -> dict:
    """Candidates, verdicts, and the training pairs as a join over the judge's verdicts.

    Writes data/{candidates,verdicts,pairs}.parquet, hashes.json, expansion.csv (what became of
    every two answers) and, in the clinic, judge_errors.csv.
    """
    from promedical_utils import expansion
    from promedical_utils import groups as joined
    from promedical_utils import preference_pairs as making

    if profile.data == "real":
        candidates, verdicts, extra = _real_candidates(profile, run)
    elif profiles.asks_endpoints(profile):
        candidates, verdicts, extra = making.by_endpoints(profile, run)
    else:
        candidates, verdicts, extra = making.of_clinic(profile, run)
    records.save(candidates, run / "data/candidates.parquet")
    records.save(verdicts, run / "data/verdicts.parquet")
    found = data(run)
    train = groups(found, "judge", "train")
    files = {
        name: run / f"data/{name}.parquet"
        for name in ("candidates", "rubrics", "verdicts", "pairs")
    }
    made = expansion.expand(**files, judge="judge", ids=[g.instruction.id for g in train])
    with replacing(run / "data/expansion.csv") as temporary:
        made.kinds.to_csv(temporary, index=False)
    provenance.hash_data(run)
    if profile.data == "clinic":
        with replacing(run / "data/judge_errors.csv") as temporary:
            making.judge_errors(found).to_csv(temporary, index=False)
    return {
        "candidates": len(candidates),
        "verdicts": len(verdicts),
        "training_pairs": made.pairs,
        "response_pairs": sum(len(joined.preferences(group)) for group in train),
        "ties": int(made.dimensions[["both_met", "both_not_met"]].loc["all"].sum()),
        "lost_to_unknown": int(made.dimensions.lost_to_unknown["all"]),
        "never_discriminate": len(made.silent),
        **extra,
    }


def groups(found: dict[str, list], judge: str, *splits: str) -> list:
    """Groups of some splits with one judge's verdicts; instructions without any are left out."""
    from promedical_utils import groups as joined

    said = {v.candidate_id for v in found["verdicts"] if v.judge == judge}
    answered = {c.instruction_id for c in found["candidates"] if c.id in said}
    ids = [i for i in split_ids(found, *splits) if i in answered]
    if not ids:
        raise KitError(f"no answered instruction in split {splits}: enlarge it in the profile")
    return joined.groups(
        found["instructions"], found["rubrics"], found["candidates"], found["verdicts"], judge, ids
    )


def criterion_kinds(found: dict[str, list]) -> dict[str, str]:
    return {c.id: c.kind for r in found["rubrics"] for c in r.criteria}


def _real_candidates(profile: Profile, run: Path):
    from transformers import AutoTokenizer

    from promedical_utils import base_model, sources

    base_model.quiet()  # long texts are measured here before they are cut
    study = sources.load_real(profile.seed)
    tokenizer = AutoTokenizer.from_pretrained(base_path(profile, run))
    study, _ = sources.shorten(study, tokenizer, profile.rm_max_tokens)
    return study.candidates, study.verdicts, {"graded_pairs": len(study.pairs)}


# ---------------------------------------------------------------- 03 reward models


def reward_models(profile: Profile, run: Path) -> dict:
    """Train the criterion RM, the scalar controls and the twin; calibrate; score the held-out
    split.

    Writes reward/<name>/ with calibration and card, reward/heldout.parquet and reward/report.json.
    """
    import pandas as pd

    from promedical_utils import reward_model
    from promedical_utils.recipes import find

    found = data(run)
    heldout = groups(found, _truth(profile), "calibration")
    dimension = {c.id: c.dimension for g in heldout for c in g.criteria}
    reports, frames = {}, []
    for name in models(profile):
        folder = run / "reward" / name
        reports[name] = train_reward_model(profile, run, found, find(name), folder)
        scores = reward_model.load(folder).score_groups(heldout)
        calibrate(profile, found, find(name), folder, scores)
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
            name: {
                k: r[k]
                for k in (
                    "view",
                    "labels",
                    "full",
                    "steps",
                    "groups",
                    "pairs",
                    "verdicts",
                    "tokens",
                    "seconds",
                    "parameters",
                    "trained_parameters",
                    "seed",
                    "settings",
                    "base",
                )
            }
            | {
                "left_out": len(r["left_out"]),
                "shortened": len(r["shortened"]),
                "padding": r["padding"],
            }
            for name, r in reports.items()
        },
        "heldout_rows": int((scores.scorer == "criterion").sum()),
    }
    write_json(run / "reward/report.json", report)
    return report


def train_reward_model(
    profile: Profile, run: Path, found: dict, recipe, folder: Path, seed=None
) -> dict:
    """Train one recipe on the run's training split into ``folder``; its report."""
    from promedical_utils import reward_training
    from promedical_utils.sources import refuse_external

    train = groups(found, recipe.labels, "train")
    refuse_external(group.instruction for group in train)
    return reward_training.train(
        recipe.groups(train),
        base_path(profile, run, recipe.architecture),
        folder,
        view=recipe.view,
        profile=recipe.profile(profile),
        labels=recipe.labels,
        full=recipe.full,
        seed=seed,
    )


def calibrate(profile: Profile, found: dict, recipe, folder: Path, scores):
    """Fit on the ``scores`` of the calibration split; writes calibration.json and the card.

    Returns None for a scalar model. A veto is no better than the labels that its threshold is
    fitted on: in the clinic physicians read this split, and a model of true labels gets true ones.
    """
    from promedical_utils import calibration, model_card

    accuracy = pair_accuracy(scores, groups(found, _truth(profile), "calibration"))
    fitted, report = None, read_json(folder / "report.json", "03_reward_model")
    if recipe.conditional:
        fitted = calibration.fit(
            settled_rows(profile, found, recipe, scores),
            profile.veto_recall,
            veto=profile.data != "real",
            method=profile.calibration_method,
        )
        fitted.save(folder / "calibration.json")
    share = f"held-out pairs ordered rightly, of {accuracy['pairs']} by {_truth(profile)}"
    about = f"split train of profile {profile.name}, seed {profile.seed} ({profile.description})"
    model_card.write(folder, report, about, {share: accuracy["accuracy"]}, fitted)
    return fitted


def settled_rows(profile: Profile, found: dict, recipe, scores):
    """Scores of the calibration split with dimension and the label that a calibration is fitted
    on."""
    settled = "adjudicated" if profile.data == "clinic" else "judge"
    labels = _truth(profile) if recipe.labels == "truth" else settled
    reference = groups(found, labels, "calibration")
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
    from promedical_utils.groups import met

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
    from promedical_utils.groups import criterion_pairs

    value = dict(
        zip(zip(scores.candidate_id, scores.criterion_id, strict=True), scores.score, strict=True)
    )
    hits = []
    for group in held:
        for pair in criterion_pairs(group):
            key = pair.criterion_id if (pair.chosen_id, pair.criterion_id) in value else ""
            hits.append(value[pair.chosen_id, key] > value[pair.rejected_id, key])
    return {"accuracy": round(sum(hits) / max(1, len(hits)), 4), "pairs": len(hits)}


# ---------------------------------------------------------------- 04 bench


def bench(profile: Profile, run: Path) -> dict:
    """Compose the bench, adjudicate it double-blind, let every scorer predict; writes bench/."""
    from promedical_utils import bench as benches

    if profile.data != "clinic":
        return _labelled_bench(profile, run)
    found = data(run)
    made, held = compose_bench(profile, found)
    made.report["not_run"] = _predict(profile, run, found, held, made.criteria)
    benches.save_judged(run / "bench", made, found["verdicts"])
    made.save(run / "bench")
    return made.report


def compose_bench(profile: Profile, found: dict[str, list]) -> tuple:
    """The clinic's bench, adjudicated double-blind, and its groups with the true verdicts."""
    from promedical_utils import bench as benches
    from promedical_utils import clinic
    from promedical_utils.clinic.people import panel

    ids = set(split_ids(found, "bench"))
    pool, criteria = benches.from_records(
        [i for i in found["instructions"] if i.id in ids],
        found["splits"],
        found["rubrics"],
        clinic.UNSEEN_KINDS,
    )
    truth = {
        (v.candidate_id, v.criterion_id): v.verdict for v in found["verdicts"] if v.judge == "truth"
    }
    made = benches.compose(
        pool,
        criteria,
        found["candidates"],
        truth,
        panel(profile.physician_agreement, profile.seed),
        profile,
    )
    chosen = set(made.samples.instruction_id)
    held = [g for g in groups(found, "truth", "bench") if g.instruction.id in chosen]
    made.report["blind_ceiling"] = round(benches.blind_ceiling(made.pairs), 4)
    return made, held


def _predict(
    profile: Profile, run: Path, found: dict[str, list], held: list, criteria
) -> dict[str, str]:
    """Let every scorer predict on the ``held`` groups; returns those that could not, {name: why}.

    Writes bench/predictions.parquet, and bench/preferences.parquet where some compare two answers.
    """
    import pandas as pd

    from promedical_utils import bench as benches
    from promedical_utils import reward_model, scorers
    from promedical_utils.scorers import roster, rules

    frames = [
        benches.cue_control(groups(found, "judge", "train"), held, profile.seed),
        benches.length_scorer(held),
        scorers.predict(rules.Chance(profile.seed), held)[0],
    ]
    for name in models(profile):
        rm = reward_model.load(run / "reward" / name)
        frames.append(benches.predictions(name, rm.score_groups(held), criteria, rm.calibration))
        if name == "criterion":
            frames += [
                scorers.predict(rules.Rule.over(r, frames[-1]), held)[0] for r in rules.RULES
            ]
    scored, preferred, left_out = roster.predict(roster.others(profile, run), held)
    for name, rows in (("predictions", frames + scored), ("preferences", preferred)):
        path = run / "bench" / f"{name}.parquet"
        if not rows:
            path.unlink(missing_ok=True)  # of an earlier run, with other scorers
            continue
        write_rows(path, pd.concat(rows, ignore_index=True))
    for name, why in left_out.items():
        print(f"not run: {name}: {why}")
    return left_out


def _labelled_bench(profile: Profile, run: Path) -> dict:
    """Held-out K-QA and MEDIQA-2019, and HealthBench, with the labels that the sources give.

    Of open sets the held-out split with the judge's labels, which physicians have not seen.

    There is one label, so truth and adjudicated are the same; ``category`` is the source. A sample
    is a question with two answers or more; answer pairs are ordered by their lexicographic scores.
    """
    import pandas as pd

    from promedical_utils import bench as benches
    from promedical_utils.groups import criterion_pairs, preferences

    found = data(run)
    splits = {row.split for row in found["splits"]}
    held = [
        g
        for split in ("bench", "external")
        if split in splits
        for g in groups(found, "judge", split)
    ]
    held = [replace(g, candidates=tuple(g.judged)) for g in held if len(g.judged) > 1]
    source = {g.instruction.id: g.instruction.source for g in held}
    asked = [g.instruction.model_copy(update={"category": source[g.instruction.id]}) for g in held]
    samples, criteria = benches.from_records(asked, found["splits"], found["rubrics"], frozenset())
    of = criteria.set_index("criterion_id")[["dimension", "kind", "seen"]].to_dict("index")
    said = ["truth", "physician_1", "physician_2", "adjudicated"]
    verdicts = [
        {"candidate_id": a.id, "criterion_id": c.id, "instruction_id": g.instruction.id}
        | dict.fromkeys(said, g.verdicts[a.id, c.id])
        for g in held
        for a in g.candidates
        for c in g.criteria
    ]
    pairs = [
        pair.model_dump() | of[pair.criterion_id] | {"truth": "same"}
        for g in held
        for pair in criterion_pairs(g)
    ]
    grades = [
        {"instruction_id": g.instruction.id, "a_id": chosen, "b_id": rejected}
        | dict.fromkeys(said, 1)
        for g in held
        for chosen, rejected in preferences(g)
    ]
    pairs = pd.DataFrame(pairs)
    by_source = pairs.instruction_id.map(source).value_counts().sort_index()
    report = {
        "samples": len(samples),
        "conditions": int(samples.condition.nunique()),
        "pairs_by_source": {k: int(v) for k, v in by_source.items()},
        "pairs_by_dimension": {d: int((pairs.dimension == d).sum()) for d in records.DIMENSIONS},
        "answer_pairs": len(grades),
        "blind_ceiling": round(benches.blind_ceiling(pairs), 4),
        "note": "K-QA and MEDIQA have no safety verdicts: veto not testable in this profile. In "
        "K-QA "
        "the physician's answer is the chosen one of every pair, so style alone can tell."
        if profile.data == "real"
        else "The labels are the judge's own, so this bench says how well its verdicts are "
        "learned, and "
        "nothing of how right they are.",
    }
    made = benches.Bench(
        samples, criteria, pd.DataFrame(verdicts), pairs, pd.DataFrame(grades), report
    )
    report["not_run"] = _predict(profile, run, found, held, made.criteria)
    made.save(run / "bench")
    return report


# ---------------------------------------------------------------- 05 policy


def policy(profile: Profile, run: Path) -> dict:
    """Align the base by the profile's rule, then base and policy on the bench prompts; writes
    policy/.

    Beside what ``policy_training.train`` writes: policy/evaluation.parquet, a row a policy and
    prompt, and policy/verdicts.parquet, a row a verdict on them. Under ``accelerate launch`` every
    process trains and the main one alone evaluates.
    """
    from accelerate import PartialState

    found = data(run)
    report = align(profile, run, found, run / "policy")
    if PartialState().is_main_process:
        frames = evaluate_policies(profile, run, found, {"grpo": run / "policy"})
        for name, frame in zip(("evaluation", "verdicts"), frames, strict=True):
            with replacing(run / f"policy/{name}.parquet") as temporary:
                frame.to_parquet(temporary, index=False)
    return report


def align(
    profile: Profile, run: Path, found: dict, out: Path, reward: Path | None = None, seed=None
) -> dict:
    """Train one policy on the run's data into ``out``; its report.

    ``reward``: folder of the reward model, by default that of ``reward_model`` in the run.
    """
    from promedical_utils import policy_training

    reward = reward or run / "reward" / profile.reward_model
    by_id = {i.id: i for i in found["instructions"]}
    gold, judged = policy_judges(profile, run, found)
    read = [read_json(reward / "report.json", "03_reward_model")["settings"]]
    if (reward / "calibration.json").exists():
        read.append(read_json(reward / "calibration.json", "03_reward_model"))
    return policy_training.train(
        base_path(profile, run),
        reward,
        found["rubrics"],
        [by_id[i] for i in split_ids(found, "train")],
        [by_id[i] for i in split_ids(found, "checkpoint")],
        judged,
        gold,
        out,
        profile,
        conditions={r.instruction_id: r.condition for r in found["splits"]},
        seed=seed,
        fingerprint=short_hash(*read),
    )


def policy_judges(profile: Profile, run: Path, found: dict) -> tuple:
    """(gold, judged) for ``policy.judge``: the clinic's truth and its judge, or (None, the
    endpoint's).

    What the judge says of a text depends on the text alone. An endpoint's failure is unknown.
    """
    rubric_of = {r.instruction_id: r for r in found["rubrics"]}
    if profile.data != "clinic":
        return None, _endpoint_judge(profile, run, found, rubric_of)
    from promedical_utils import clinic
    from promedical_utils.preference_pairs import judge_of

    kinds = criterion_kinds(found)
    judge = judge_of(profile, found["verdicts"], kinds)

    def gold(pairs) -> list[dict[str, str]]:
        return [clinic.gold(rubric_of[i].criteria, text) for i, text in pairs]

    def judged(pairs) -> list[dict[str, str]]:
        names = [short_hash(*pair) for pair in pairs]
        return [
            {c: judge.verdict(name, c, kinds[c], v) for c, v in true.items()}
            for name, true in zip(names, gold(pairs), strict=True)
        ]

    return gold, judged


def _endpoint_judge(profile: Profile, run: Path, found: dict, rubric_of: dict):
    from promedical_utils.roles import Task, of_profile

    if not profiles.asks_endpoints(profile):
        raise KitError(
            f"data is {profile.data}: nobody here can judge a policy's new answers; name an "
            "endpoint that "
            "plays the judge (docs/endpoints.md)"
        )
    played, by_id = of_profile(profile, run), {i.id: i for i in found["instructions"]}

    def judged(pairs) -> list[dict[str, str]]:
        tasks = [
            Task(
                by_id[i],
                tuple(rubric_of[i].criteria),
                Candidate(
                    id=short_hash(i, text), instruction_id=i, generator="policy", text=text or " "
                ),
            )
            for i, text in pairs
        ]
        return [{v.criterion_id: v.verdict for v in said} for said in played.judge(tasks)]

    return judged


def evaluate_policies(
    profile: Profile, run: Path, found: dict, folders: dict[str, Path], base: bool = True
):
    """(answers, verdicts) of the base and of every policy in ``folders`` on the bench prompts.

    One answer each, from the profile's seed, so that rows pair by prompt; see ``policy.judge``.
    """
    import pandas as pd

    from promedical_utils import policy as policies
    from promedical_utils import scorecard

    by_id = {i.id: i for i in found["instructions"]}
    ids = split_ids(found, "bench")[: profile.policy_prompts or profile.bench_samples]
    held, rubric_of = [by_id[i] for i in ids], {r.instruction_id: r for r in found["rubrics"]}
    gold, judged = policy_judges(profile, run, found)
    conditions = {r.instruction_id: r.condition for r in found["splits"]}
    origin, frames = base_path(profile, run), []
    _, tokenizer = policies.load_base(origin, profile)
    for name, folder in [*([("base", None)] if base else []), *folders.items()]:
        if folder is None:
            model = policies.load_base(origin, profile)[0]
        else:
            model = policies.load_policy(folder, origin, profile)
        answers = policies.answers_of(model, tokenizer, held, profile, profile.seed)
        frames.append(policies.judge(name, held, answers, rubric_of, gold, judged, conditions))
        del model
    frame, verdicts = (pd.concat(parts, ignore_index=True) for parts in zip(*frames, strict=True))
    if profile.data == "clinic":
        cannot = read_json(run / "base_report.json", "00_start_here")["cannot_copy"]
        frame = scorecard.with_readable(frame, found["rubrics"], cannot)
    return frame, verdicts
