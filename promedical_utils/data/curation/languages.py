"""The language of a text, offline, with how sure that is (py3langid, 139 languages)."""

import re
from functools import cache, lru_cache

EXCLUDED = 0.001  # probability under which a language is ruled out
UNKNOWN = "und"
LONGEST = 600  # characters that are read; what follows says little more


@lru_cache(1 << 12)
def ranked(text: str) -> list[tuple[str, float]]:
    """(ISO 639 code, confidence 0-1), the likeliest first; ("und", 0.0) where nothing can be read.

    Confidence grows with length: of a few words it is low on purpose.
    """
    if not re.search(r"[^\W\d_]", text):
        return [(UNKNOWN, 0.0)]
    return [(code, float(p)) for code, p in _identifier().rank(text[:LONGEST])]


@cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def foreign(text: str, languages: tuple[str, ...]) -> str:
    """The likeliest language of ``text`` if each of ``languages`` is ruled out, else "".

    So that a language may be told from English where it cannot be told from its neighbours.
    """
    likeliest = ranked(text)[0][0]
    possible = sum(p for code, p in ranked(text) if code in languages)
    return "" if likeliest == UNKNOWN or possible >= EXCLUDED else likeliest
