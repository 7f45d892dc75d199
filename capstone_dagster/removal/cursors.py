"""Whether a sensor's cursor names a video, and the cursor with those names redacted.

A cursor is text that its sensor reads again. Those of automation conditions are Dagster's, compressed.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib

from capstone_dagster.removal.names import Names

# One digit, the version, stands before the base64 of an automation's compressed cursor.
_VERSIONS = ("0", "1")


def remembers(cursor: str, names: Names) -> bool:
    """Whether it names the video."""
    text, _ = _opened(cursor)
    return any(form in text for form in names.forms)


def is_compressed(cursor: str) -> bool:
    """Whether it is one of Dagster's own, of automation conditions."""
    return _opened(cursor)[1] is not None


def without(cursor: str, names: Names) -> str:
    """The cursor with another name, which no record has, in place of the video's."""
    text, version = _opened(cursor)
    text = names.redacted(text)
    if names.external_id is not None:
        # Whole values only: it may be a short number that is part of many.
        named = json.dumps(names.external_id)
        for colon in (":", ": "):
            text = text.replace(f'"external_id"{colon}{named}', f'"external_id"{colon}null')
    if version is None:
        return text
    return version + base64.b64encode(zlib.compress(text.encode())).decode()


def _opened(cursor: str) -> tuple[str, str | None]:
    """Its text, and the version of a compressed one; None of one that is text as it stands."""
    if cursor[:1] in _VERSIONS:
        try:
            packed = base64.b64decode(cursor[1:], validate=True)
            return zlib.decompress(packed).decode(), cursor[0]
        except (binascii.Error, zlib.error, UnicodeDecodeError):
            pass
    return cursor, None
