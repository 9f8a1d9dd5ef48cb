"""The language of a text, offline, with how sure that is (py3langid, 139 languages)."""

import re
from functools import cache

EXCLUDED = 0.001  # probability under which a language is ruled out
LONGEST = 600  # characters that are read; what follows says little more


def ranked(text: str) -> list[tuple[str, float]]:
    """(ISO 639 code, confidence 0-1), the likeliest first; empty where there are no letters.

    Confidence grows with length: of a few words it is low on purpose.
    """
    if not re.search(r"[^\W\d_]", text):
        return []
    return [(code, float(p)) for code, p in _identifier().rank(text[:LONGEST])]


@cache
def _identifier():
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def foreign(text: str, languages: tuple[str, ...]) -> str:
    """The likeliest language of ``text`` if each of ``languages`` is ruled out, else "".

    So that a language may be told from English where it cannot be told from its neighbours.
    """
    found = ranked(text)
    possible = sum(confidence for code, confidence in found if code in languages)
    return found[0][0] if found and possible < EXCLUDED else ""
