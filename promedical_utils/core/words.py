"""Words of a text in any script: the kit's one measure of length.

A word is what stands between blanks. Chinese, Japanese, Thai, Lao, Tibetan, Burmese and Khmer write
none between words, so that only a dictionary could tell those apart: each of their letters counts
as a word, and punctuation beside it belongs to it.
"""

import re

# ranges of a character class
UNSPACED = "\u0e00-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u9fff"
UNSPACED += "\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
LETTER = rf"(?=\w)[{UNSPACED}]"  # vowel signs, which are no letters, stand beside one
WORD = re.compile(rf"[^\w\s]*{LETTER}[^\w\s]*|[^\s{UNSPACED}]+")
TOKEN = re.compile(rf"{LETTER}|[^\W{UNSPACED}]+")  # without punctuation, to be compared


def words(text: str) -> list[str]:
    """Words with their punctuation: those of ``text.split()`` where the script has blanks."""
    return WORD.findall(text)
