"""Korean and English: the language that a browser asks for, and the pages' texts in it.

Texts are written in English where they are shown; the file korean.json has the other half. A text that it
lacks is shown in English; a test compares both.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

LANGUAGES = ("en", "ko")
Translate = Callable[[str], str]


def language(accepted: str) -> str:
    """The language to answer in, by a request's Accept-Language.

    >>> language("fr, ko-KR;q=0.9, en;q=0.8"), language("")
    ('ko', 'en')
    """
    wanted: list[tuple[float, str]] = []
    for part in accepted.split(","):
        name, _, weight = part.strip().partition(";q=")
        try:
            wanted.append((-float(weight or 1), name.strip().lower()[:2]))
        except ValueError:
            continue
    # Sorting is stable: of equal weights the first one stated wins.
    ordered = [name for weight, name in sorted(wanted, key=lambda each: each[0]) if weight < 0]
    return next((name for name in ordered if name in LANGUAGES), "en")


def translation(name: str) -> Translate:
    """From the English text to the text in a language."""
    return (lambda text: _korean().get(text, text)) if name == "ko" else (lambda text: text)


@cache
def _korean() -> dict[str, str]:
    texts: dict[str, str] = json.loads(Path(__file__).with_name("korean.json").read_text(encoding="utf-8"))
    return texts
