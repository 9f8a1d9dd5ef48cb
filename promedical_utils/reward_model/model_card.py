"""The card beside a trained reward model: a README.md for the hub, from model_card.md.jinja."""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from promedical_utils.core.records import DIMENSIONS
from promedical_utils.core.workspace import write_text
from promedical_utils.reward_model.variants import CONDITIONAL

NAME = "README.md"
TEMPLATE = Path(__file__).with_suffix(".md.jinja")


def write(
    folder: Path,
    report: Mapping,
    data: str = "",
    metrics: Mapping[str, float] | None = None,
    calibration=None,
) -> Path:
    """Write ``folder``/README.md from a training report; a later call with metrics replaces it.
    ``data``: what it was trained on, in words; ``metrics``: name -> value on held-out data."""
    header = ModelCardData(
        license="mit",
        language="en",
        library_name="transformers" if report["full"] else "peft",
        pipeline_tag="text-classification",
        base_model=report["base"].get("hub"),
        tags=["reward-model", "medical", "research-only"],
    )
    quality = calibration.quality if calibration is not None else {}
    card = ModelCard.from_template(
        header,
        str(TEMPLATE),
        report=report,
        data=data,
        metrics=metrics or {},
        quality={name: quality[name] for name in DIMENSIONS if name in quality},
        conditional=report["view"] in CONDITIONAL,
    )
    return write_text(Path(folder) / NAME, f"{card}\n")
