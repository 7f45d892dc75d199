"""Texts that strangers choose (keys, cameras, errors of libraries), made harmless where people read them."""

from __future__ import annotations

import re

# Control characters but tab and line feed, which a terminal obeys; and those that turn the direction of text,
# so that a name reads as another one.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]()<>#+!|~$&:-])")


def visible(text: str) -> str:
    """The text with its control characters as escapes: a terminal shows them and does not obey."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def markdown(text: str) -> str:
    """The text as Markdown that shows it, in one line: no link, picture, table cell or HTML comes of it."""
    return _MARKDOWN.sub(r"\\\1", " ".join(visible(text).split()))
