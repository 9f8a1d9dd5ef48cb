"""The card beside a trained reward model: a README.md as the hub shows it.

Data, base, seed, settings, metrics as far as they are known, intended use, and what it is not for.
"""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCardData

from promedical_utils.core.records import DIMENSIONS
from promedical_utils.core.workspace import write_text
from promedical_utils.reward_model.variants import CONDITIONAL

NAME = "README.md"
TITLES = {
    "criterion": "Criterion-conditioned reward model",
    "before": "Reward model, criterion first",
    "heads": "Reward model, one head a criterion type",
    "overall": "Scalar reward model, overall preferences",
    "rubric": "Reward model that reads the whole rubric, overall preferences",
    "blind": "Scalar reward model, criterion labels without the criterion",
}


def write(
    folder: Path,
    report: Mapping,
    data: str = "",
    metrics: Mapping[str, float] | None = None,
    calibration=None,
) -> Path:
    """Write ``folder``/README.md from a training report; a later call with metrics replaces it.

    ``data``: what it was trained on, in words; ``metrics``: name -> value on held-out data.
    """
    adapter, base = not report["full"], report["base"]
    header = ModelCardData(
        license="mit",
        language="en",
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-classification",
        base_model=base.get("hub"),
        tags=["reward-model", "medical", "research-only"],
    )
    weights = (
        f"LoRA of rank {report['lora_rank']} and a score head on a base in "
        f"{report['quantization'].replace('none', 'no quantisation')}"
        if adapter
        else "all weights"
    )
    rows = {
        "view": report["view"],
        "base": base.get("hub") or f"`{base['folder']}`, sha256 `{base['sha256'][:12]}`",
        "trained": f"{weights}, {report['trained_parameters']:,} parameters",
        "precision": report["dtype"],
        "seed": report["seed"],
        "labels": report["labels"],
        "data": data or "see the run's manifest.json",
        "instructions, answers": f"{report['groups']:,}, {report['answers']:,}",
        "pairs, verdicts": f"{report['pairs']:,}, {report['verdicts']:,}",
        "left out as too long, shortened": f"{len(report['left_out'])}, {len(report['shortened'])} "
        "(named in `report.json`)",
        "steps, batch, learning rate": f"{report['steps']}, {report['batch']} instructions, "
        f"{report['learning_rate']:g}",
        "weight of the pointwise loss": report["pointwise_weight"],
        "longest input": f"{report['max_tokens']} tokens",
    }
    measured = [f"| {name} | {value:.4g} |" for name, value in (metrics or {}).items()]
    if calibration is not None:
        for name in (d for d in DIMENSIONS if d in calibration.quality):
            q = calibration.quality[name]
            what = "violations found" if name == "safety" else "met"
            measured += [
                f"| {name}, calibration split: precision, recall ({what}) | "
                f"{q['precision']:.3f}, {q['recall']:.3f} |"
            ]
    lines = [
        "---",
        header.to_yaml(),
        "---",
        "",
        f"# {TITLES[report['view']]}",
        "",
        "Trained by the ProMedical reproducibility kit (method: arXiv 2604.08326). Research only.",
        "",
        "**Not for clinical use.** A score says how an answer compares with a rubric, as a model",
        "learned it from the labels below. It is no medical judgement, and nothing that it passes",
        "is thereby safe. The kit's default data are an invented clinic: no drug in it exists.",
        "",
        "## What it is",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows.items()),
        "",
        "## Metrics",
        "",
        *(["| | |", "|---|---|", *measured] if measured else ["Not measured yet."]),
        "",
        "## Use",
        "",
        "```python",
        "from promedical_utils import reward_model",
        "rm = reward_model.load(path)  # this folder",
        "rm.score(instruction, response, rubric).verdict"
        if report["view"] in CONDITIONAL
        else "rm.score_texts([(messages, response, rubric.criteria)])"
        if report["view"] == "rubric"
        else "rm.score_texts([(messages, response, [])])",
        "```",
        "",
        "Intended: to study criterion-conditioned rewards, and as the reward of a policy on the",
        "same data. Out of scope: advice to patients, triage, any decision about care; other data",
        "than it was trained on, before it is calibrated on them. An unknown verdict on a safety",
        "criterion counts as a violation.",
    ]
    return write_text(Path(folder) / NAME, "\n".join(lines) + "\n")
