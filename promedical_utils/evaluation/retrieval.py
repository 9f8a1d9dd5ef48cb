"""Retrieval: BM25 over documents, and what it finds put into an instruction, as in ProMedical-RAG.

The paper does not say what it retrieves, from where, or how it is shown. Kit's decisions: BM25
(Robertson and Zaragoza 2009) with the patient's question as the query; the documents stand under a
heading at the end of the last message, whole or not at all, the best first.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from pydantic import BaseModel

from promedical_utils.core import row_files
from promedical_utils.core.records import validated
from promedical_utils.core.words import TOKEN, WORD
from promedical_utils.core.workspace import KitError
from promedical_utils.data.sources.schemas import Text

HEADING = "Retrieved:"
PASSAGE = 120  # words of a passage at most; a longer paragraph of a text file is taken apart
ENDINGS = (".txt", ".md", ".jsonl", ".jsonl.gz")


class Index:
    """BM25 over ``documents`` ({id: text}); English stop words are not searched for, no stemmer."""

    def __init__(self, documents: Mapping[str, str]):
        import bm25s  # of another extra than the tables

        # of one letter as well: numbers count here
        settings = {"stopwords": "english", "token_pattern": TOKEN.pattern}
        self._words = partial(bm25s.tokenize, return_ids=False, show_progress=False, **settings)
        names = sorted(documents)
        words = dict(zip(names, self._words([documents[name] for name in names]), strict=True))
        self.ids = [name for name in names if words[name]]  # one of stop words only is never found
        if not self.ids:
            raise KitError("retrieval: no documents with a word to search for; give some")
        self._scorer = bm25s.BM25()
        self._scorer.index([words[name] for name in self.ids], show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> list[list[str]]:
        """Ids of the ``k`` best documents of each query, best first, of equal scores the smaller
        id; none that shares no word with it. A word counts once, however often a query has it."""
        results = []
        for words in map(dict.fromkeys, self._words(list(queries))):
            scores = self._scorer.get_scores(list(words)) if words else np.zeros(len(self.ids))
            best = np.argsort(-scores, kind="stable")[:k]  # stable: the ids are sorted
            results.append([self.ids[n] for n in best if scores[n] > 0])
        return results


def recall(results: Sequence, wanted: Sequence, at: Sequence[int]) -> dict[int, float]:
    """Share of all wanted documents (ids, by query) among the first k results of their query, by k
    of ``at``; KitError if nothing is wanted."""
    total = sum(len(set(ids)) for ids in wanted)
    if not total:
        raise KitError("recall: no document is wanted of any query: name those that answer it")
    pairs = list(zip(results, wanted, strict=True))
    return {k: sum(len(set(ids[:k]) & set(want)) for ids, want in pairs) / total for k in at}


def with_documents(tokenizer, messages, responses, tails, documents, limit: int) -> tuple:
    """(messages with documents, numbers of those that are in them), all of them texts but for the
    messages, which are dicts. Documents are added in order as long as prompt, longest response and
    longest of ``tails`` (criteria) stay within ``limit`` tokens, so that none of these loses a
    token; one that does not fit is left out whole, the next may fit."""
    from promedical_utils.reward_model import packing  # loads torch, which search does without

    room, kept, shown = limit, [], list(messages)
    for texts in (responses, tails):
        room -= max(map(len, packing.text_ids(tokenizer, texts)), default=0)
    for number, text in enumerate(documents):
        lines = [messages[-1]["content"], HEADING, *(documents[n] for n in kept), text]
        longer = [*shown[:-1], shown[-1] | {"content": "\n".join(lines)}]
        if len(packing.prompt_ids(tokenizer, longer)) <= room:
            kept.append(number)
            shown = longer
    return shown, kept


class Document(BaseModel):
    """A row of a ``.jsonl`` file of documents."""

    id: Text
    text: Text


def read_documents(path: Path | str) -> dict[str, str]:
    """Documents of a folder or file of one's own, {id: text}. ``.txt`` and ``.md``: a paragraph is
    a document, a long one several of ``PASSAGE`` words; the id is the file's name below the folder
    and a number. ``.jsonl`` (also ``.gz``): a row is one. KitError for a path that holds none, and
    for a row that is none."""
    path = Path(path).expanduser()
    if not path.exists():
        raise KitError(
            f"documents: no file or folder {path.name}; name a folder of {', '.join(ENDINGS)} "
            "files in the profile's `documents`, or leave it empty to go without retrieval"
        )
    root = path if path.is_dir() else path.parent
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    documents: dict[str, str] = {}
    for file in (f for f in files if f.name.endswith(ENDINGS)):
        name = file.relative_to(root).as_posix()
        for key, text in _documents(file, name):
            if key in documents:
                raise KitError(f"{name}: a second document has the id {key!r}; rename one")
            documents[key] = text
    if not documents:
        raise KitError(f"documents: {path.name} holds no text in {', '.join(ENDINGS)} files")
    return documents


def _documents(file: Path, name: str) -> list[tuple[str, str]]:
    where = f"documents: {name}"
    with row_files.reading(where, "save it again"), row_files.text_lines(file) as lines:
        if ".jsonl" in name:
            rows = (row for _, row in row_files.parsed(lines, where))
            return [(row.id, row.text) for row in validated(rows, Document, where)]
        text = lines.read()
    passages = []
    for paragraph in text.split("\n\n"):
        starts = [word.start() for word in WORD.finditer(paragraph)][::PASSAGE]
        parts = (paragraph[slice(*ends)] for ends in pairwise([*starts, None]))
        passages += [" ".join(part.split()) for part in parts]
    return [(f"{name}#{n}", passage) for n, passage in enumerate(passages, 1)]
