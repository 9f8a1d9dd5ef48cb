"""Cards of public sets, and their rows as read from PROMEDICAL_DATA_DIR, else from the network.

Rows are validated before anything is made of them, so one broken row is one line that names file,
row and field and never quotes the row. What all sets have in common as records stands at the end.
"""

import io
import os
import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.request import urlopen

from pydantic import AliasChoices, AliasPath, BaseModel, Field, create_model

from promedical_utils.core import row_files
from promedical_utils.core.records import Instruction, Message, validated
from promedical_utils.core.workspace import KitError, read_yaml, sha256

VARIABLE = "PROMEDICAL_DATA_DIR"
Text = Annotated[str, Field(pattern=r"\S")]
Label = Literal["Entailment", "Neutral", "Contradiction"]
Score = Annotated[int, Field(ge=1, le=4)]
Some = Annotated[list[TypeVar("Part")], Field(min_length=1)]
Answer = Text | Some[Message]  # or a conversation that ends in it


@dataclass(frozen=True)
class Card:
    """Where a set comes from; schemas.yaml and open_sets.yaml say what the fields mean."""

    name: str
    revision: str
    licence: str
    rows: int
    note: str
    file: str = ""
    sha256: str = ""
    hub: str = ""
    config: str = ""
    hub_file: str = ""
    address: str = ""
    folder: str = ""
    caveat: str = ""
    labels: str = ""

    @property
    def command(self) -> str:
        """What downloads an open set, as far as it is read."""
        return (
            f"hf download {self.hub} --repo-type dataset --revision {self.revision} "
            f"--include 'data/train*' --local-dir {self.folder}"
        )


def cards(name: str) -> dict[str, Card]:
    """The cards of a file beside this one, by key."""
    values = read_yaml(Path(__file__).with_name(name))
    return {key: Card(**card) for key, card in values.items()}


CARDS = cards("schemas.yaml")


class Point(BaseModel):
    """``safety``, which HealthBench lacks, is its user's word on whether the veto reads it."""

    criterion: Text = Field(validation_alias=AliasChoices("criterion", "criterion_text"))
    points: float = Field(ge=-10, le=10)
    tags: list[str] = []
    safety: bool | None = None


class GradedPoint(Point):
    met: bool


class HealthRubric(BaseModel):
    """``prompt`` is one string in rows of the public part that are parts of a rubric."""

    prompt_id: Text
    prompt: list[Message] | str = ""
    example_tags: list[str] | None = None
    rubrics: list[Point] = Field(min_length=1)
    sources: list[str] = []


class ProfessionalCase(HealthRubric):
    """A case of HealthBench Professional: a rubric of HealthBench under other names of fields."""

    prompt_id: Text = Field(alias="id")
    prompt: Some[Message] = Field(validation_alias=AliasPath("conversation", "messages"))
    rubrics: Some[Point] = Field(alias="rubric_items")
    canary_string: Text


class MedecText(BaseModel):
    """A row of the upstream sheet; a blank one has no text, and NA stands for nothing."""

    id: str = Field(alias="Text ID")
    text: str = Field(alias="Text")
    numbered: str = Field(alias="Sentences")
    flag: Literal["0", "1", ""] = Field(alias="Error Flag")
    number: str = Field(alias="Error Sentence ID")
    sentence: str = Field(alias="Error Sentence")
    corrected: str = Field(alias="Corrected Text")


def _row(texts: str = "", **fields) -> type[BaseModel]:
    """A row that has these fields, with a type or a type and a default; ``texts`` are not blank."""
    return create_model("Row", **fields, **dict.fromkeys(texts.split(), Text))


LOSTBENCH_GRADE = _row(message=Annotated[int, Field(ge=1)], maintained=bool)
MEDLFQA_ROW = _row("Question", Free_form_answer=str, Must_have=list[str], Nice_to_have=list[str])
MAY_LACK = (  # of patientqa, None where the rater left a level out; label_sets.yaml knows them
    "question_id question question_variant scientific_consensus missing_content empathy "
    "grammaticality extent_of_harm likelihood_of_harm inappropriate_content bias"
)
ROWS = {
    "kqa_questions": _row(
        "Question Free_form_answer",
        Must_have=Some[str],
        Nice_to_have=list[str],
        ICD_10_diag=(str | None, None),
    ),
    "kqa_labels": _row(
        "question model answer criterion",
        category=Literal["Must_have", "Nice_to_have"],
        labels=tuple[Label, Label, Label],
    ),
    "mediqa": _row(
        "qid question",
        split=Literal["train_liveqa", "train_alexa", "val", "test"],
        answers=Some[_row("aid text", score=Score)],
    ),
    "healthbench_rubrics": HealthRubric,
    "healthbench_professional": ProfessionalCase,
    "healthbench_graded": _row(
        "source prompt_id response",
        prompt=Some[Message],
        criteria=Some[GradedPoint],
        healthbench_score=(float | None, None),
    ),
    "medquad_judged": _row("qid question aid answer", score=Score),
    "medical_rewardbench": _row(
        "prompt",
        label_type=Annotated[str, Field(pattern=r"^(?i:easy|hard|length|human)$")],
        chosen=Answer,
        rejected=Answer,
    ),
    "liveqa_questions": _row("qid message summary", paraphrase=str | None),
    "patientqa": _row("id part model answer", **dict.fromkeys(MAY_LACK.split(), str | None)),
    "medhallu": _row("question ground_truth hallucinated_answer", id=int, knowledge=list[str]),
    "medec": MedecText,
    "lostbench": _row("id condition model", messages=list[Message], grades=list[LOSTBENCH_GRADE]),
    **dict.fromkeys(("medlfqa_kqa_silver", "medlfqa_medication", "medlfqa_liveqa"), MEDLFQA_ROW),
    "medquad": _row("id question answer"),
}


def read(key: str) -> list[BaseModel]:
    """All rows of source ``key``, validated; KitError names the file, or file, row and field."""
    card, folder = CARDS[key], os.environ.get(VARIABLE)
    rows = _local(card, Path(folder)) if folder else _remote(card, OF_HUB.get(key, dict))
    return validated(rows, ROWS[key], card.file)


def at_hand(key: str) -> bool:
    """Whether a set can be read: its file lies in the user's folder; without a folder, on a hub."""
    card, folder = CARDS[key], os.environ.get(VARIABLE)
    return (Path(folder) / card.file).is_file() if folder else bool(card.hub or card.address)


def as_first_read(key: str) -> bool | None:
    """Whether the local file is byte for byte that of the card, which takes any if it has no hash;
    None without a local file."""
    card = CARDS[key]
    path = Path(os.environ.get(VARIABLE, "")) / card.file
    return card.sha256 in ("", sha256(path)) if path.is_file() else None


def _local(card: Card, folder: Path) -> list[dict]:
    path, where = folder / card.file, card.hub or card.address
    if not path.is_file():
        mend = f"unset {VARIABLE} to use the network" if where else "leave this source out"
        raise KitError(
            f"missing {card.file} in {VARIABLE}: put it there ({card.name}, "
            f"{where or card.revision}), or {mend}"
        )
    return [row for _, row in row_files.read(path, card.file, "fetch it again")]


def _remote(card: Card, as_in_file: Callable[[dict], dict]) -> list[dict]:
    where = card.hub or card.address
    if not where:
        raise KitError(f"{card.name}: on no hub; set {VARIABLE} to a folder that holds {card.file}")
    import datasets
    import huggingface_hub

    mend = f"download it and set {VARIABLE} to the folder that holds {card.file}"
    with row_files.reading(f"{card.name} from {where}", f"mend the network, or {mend}"):
        if card.hub_file:
            of = {"repo_type": "dataset", "revision": card.revision}
            path = huggingface_hub.hf_hub_download(card.hub, card.hub_file, **of)
            return [row for _, row in row_files.read(Path(path), card.file)]
        if card.hub:
            splits = datasets.load_dataset(card.hub, card.config, revision=card.revision)
            return [as_in_file({**row, "split": name}) for name in splits for row in splits[name]]
        with urlopen(card.address, timeout=60) as reply:  # datasets would need aiohttp for it
            lines = io.TextIOWrapper(reply, encoding="utf-8-sig", newline="")
            return [as_in_file(row) for _, row in row_files.parsed(lines, card.address)]


def _kqa_label(row: dict) -> dict:
    ours = {"question": row["Question"], "model": row["llm_x"], "criterion": row["claim"]}
    ours |= {"category": row["category_x"], "labels": [row[f"label_{n}"] for n in range(3)]}
    return row | ours


def _mediqa(row: dict) -> dict:
    asked, renamed = row["QUESTION"], {"train_live_qa_med": "train_liveqa", "validation": "val"}
    ours = {"qid": asked["QID"], "question": asked["QuestionText"], "answers": []}
    for given in (entry["Answer"] for entry in asked["AnswerList"]):
        about = {"aid": given["AID"], "score": given["ReferenceScore"], "text": given["AnswerText"]}
        ours["answers"].append(about)
    return ours | {"split": renamed.get(row["split"], row["split"])}


OF_HUB = {"kqa_labels": _kqa_label, "mediqa": _mediqa}  # rows of the network as those of the file


def question(id, source, asked: str | list[Message], category, specialty="", difficulty=5):
    """An ``Instruction``: a question, or conversation that ends in one; 5 is difficulty unknown."""
    return Instruction(
        id=id,
        category=category,
        specialty=specialty or "unspecified",
        messages=[Message(role="user", content=asked)] if isinstance(asked, str) else asked,
        source=source,
        difficulty=difficulty,
    )


def wording(text: str) -> str:
    """The words of a text without case and punctuation: what tells one question from another."""
    return re.sub(r"\W+", " ", text.lower()).strip() or text


def grouped(rows: Iterable, key: Callable) -> dict[Hashable, list]:
    """Rows by what ``key`` says of each; groups and rows in the order in which they come."""
    found = defaultdict(list)
    for row in rows:
        found[key(row)].append(row)
    return found
