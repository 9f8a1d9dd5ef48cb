"""What the public sets have in common as records: a question that nobody rated, and its wording."""

import re
from collections.abc import Sequence

from promedical_utils.core.records import Instruction, Message

NEGATION = "Does NOT do the following: "  # turns a fault round, so that *met* is good


def question(
    id: str,
    source: str,
    asked: str | Sequence[Message],
    category: str = "unspecified",
    specialty: str = "unspecified",
) -> Instruction:
    """A public set's question, or conversation that ends in one; its difficulty is not known: 5."""
    return Instruction(
        id=id,
        category=category,
        specialty=specialty,
        messages=[Message(role="user", content=asked)] if isinstance(asked, str) else list(asked),
        source=source,
        difficulty=5,
    )


def wording(text: str) -> str:
    """The words of a text without case and punctuation: what tells one question from another."""
    return re.sub(r"\W+", " ", text.lower()).strip() or text
