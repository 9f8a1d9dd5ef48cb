"""What a text says, word by word, and whether two texts say the same: the guard of deduplication.

Texts are no duplicates where a number, a unit, a negation or a name differs, or where two values
have changed places, however alike they are otherwise.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from itertools import product
from pathlib import Path

from rapidfuzz.distance import OSA

from promedical_utils.core.words import UNSPACED
from promedical_utils.core.workspace import read_yaml

Sentences = list[list[str]]  # words by sentence

_CJK = f"{UNSPACED}\uac00-\ud7af"  # Korean endings, too, are compared letter by letter
_TOKEN = re.compile(rf"\d+(?:[.,]\d+)*|[{_CJK}]|[^\W\d_{_CJK}]+|%")
_SENTENCE = re.compile(r"[.!?;:]+(?=\s|$)|\n")
_CONTRACTED = re.compile(
    r"\b(?:(can|won|shan)'?t|(\w+)n't|(do|does|did|is|are|was|has|have|had|should|could|would)nt)\b"
)
_ENDING = re.compile(r"'(?:s|m|re|ve|ll|d)\b")
_LISTS = read_yaml(Path(__file__).with_suffix(".yaml"))
_COURTESY = re.compile(rf"\b(?:{'|'.join(_LISTS['courtesies'])})\b")
_NEGATIONS = frozenset(_LISTS["negations"].split())
_FUNCTION = frozenset(_LISTS["function_words"].split())
_NUMBERS = {word: str(value) for value, word in enumerate(_LISTS["number_words"].split())}


@lru_cache(1 << 16)
def _normal(word: str) -> str:
    """A word as it is compared: numbers in one notation, one negation."""
    if word[0].isdigit():
        word = re.sub(r",(?=\d{3}\b)", "", word).replace(",", ".")
        return re.sub(r"\.0+$|(\.\d*?[1-9])0+$", r"\1", word)
    return "not" if word in _NEGATIONS else _NUMBERS.get(word, word)


@lru_cache(1 << 12)  # of a large pool not all would fit in memory
def read(text: str) -> Sentences:
    """The words of a text by sentences, without case, punctuation, greetings and thanks."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("’", "'")
    plain = plain.replace("cannot", "can not")
    plain = _CONTRACTED.sub(lambda m: f"{m[1] or m[2] or m[3]} not", plain)
    sentences = _SENTENCE.split(_COURTESY.sub(" . ", _ENDING.sub("", plain)))
    words = [[_normal(w) for w in _TOKEN.findall(sentence)] for sentence in sentences]
    told = [sentence for sentence in words if sentence]
    return told or [_TOKEN.findall(plain) or [plain.strip()]]


def content(sentences: Sentences) -> Sentences:
    """The sentences without function words; whole, where nothing else stands in them."""
    words = [[w for w in sentence if w not in _FUNCTION] for sentence in sentences]
    return [sentence for sentence in words if sentence] or sentences


def same(a: Sentences, b: Sentences, rows: Mapping) -> bool:
    """Whether two texts, as ``read`` gives them, have the same content words but for typing errors.

    These are rare beside the word that is meant: ``rows`` says in how many texts a word stands.
    """
    count_a, count_b = (Counter(w for s in sentences for w in s) for sentences in (a, b))
    only_a, only_b = count_a - count_b, count_b - count_a
    typed = {}
    for word in sorted(only_b):
        for meant in sorted(only_a):
            if only_a[meant] == only_b[word] and _one_word(meant, word, rows):
                typed[word] = meant
                del only_a[meant], only_b[word]
                break
    if (only_a.keys() | only_b.keys()) - _FUNCTION:
        return False
    meant_b = [[typed.get(word, word) for word in sentence] for sentence in b]
    return not _exchanged(_followers(a), _followers(meant_b))


def _one_word(a: str, b: str, rows: Mapping[str, int]) -> bool:
    """Singular and plural, or a typing error: one letter off, and rare beside the other word."""
    if f"{a}s" == b or f"{b}s" == a:
        return True
    if min(len(a), len(b)) < 4 or not (a + b).isalpha() or OSA.distance(a, b, score_cutoff=1) > 1:
        return False
    rare, common = sorted((rows.get(a, 0), rows.get(b, 0)))
    return rare <= max(2, common / 200)


def _followers(sentences: Sentences) -> set[tuple[str, str]]:
    """(content word, the next one) within sentences; ^ stands before the first."""
    return {pair for s in content(sentences) for pair in zip(["^", *s], s)}


def _exchanged(a: set[tuple[str, str]], b: set[tuple[str, str]]) -> bool:
    """Whether two words have changed places: each now follows what the other one followed."""
    was, now = a - b, b - a
    if any(pair[::-1] in now for pair in was):
        return True
    return any(
        word != other and (left, other) in now and (place, word) in now
        for (left, word), (place, other) in product(was, repeat=2)
    )
