"""Ids of work and of results: equal inputs give equal ids, and what changes a result changes its id."""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path

from .errors import ModelUnavailable
from .settings import AnalysisSettings, EventRules

DETECTION_VERSION = 4
"""Raise it when the same bytes, model and settings give other detections or tracks than before."""

EVENTS_VERSION = 1
"""Raise it when the same detections and rules give other events than before."""

_ID_DIGITS = 32  # 128 bits: no collisions at any realistic number of videos
_READ_BYTES = 1 << 20


def detection_id(
    *, etag: str, size_bytes: int, model_sha256: str, settings: AnalysisSettings, nonce: str | None = None
) -> str:
    """The id of the GPU's work on these bytes, whatever their bucket and key.

    S3 returns an ETag in some places with quotation marks and in others without; both mean the same bytes.

    >>> work = {"size_bytes": 5, "model_sha256": "ab" * 32, "settings": AnalysisSettings()}
    >>> detection_id(etag='"9b2c"', **work) == detection_id(etag="9b2c", **work)
    True
    >>> detection_id(etag="9b2c", **work) == detection_id(etag="9b2c", nonce="again", **work)
    False
    """
    return _digest(
        "detections",
        DETECTION_VERSION,
        {
            "etag": etag.strip('"'),
            "size_bytes": size_bytes,
            "model_sha256": model_sha256.lower(),
            "settings": settings.detection_fields(),
            "nonce": nonce,
        },
    )


def analysis_id(*, video_id: str, detection_id: str, rules: EventRules) -> str:
    """The id of one video's published events, by these rules, from these detections.

    >>> len(analysis_id(video_id="gate-1a2b3c4d", detection_id="5f" * 16, rules=EventRules()))
    32
    """
    return _digest(
        "analysis",
        EVENTS_VERSION,
        {"video_id": video_id, "detection_id": detection_id, "rules": rules.as_fields()},
    )


def event_id(*, analysis_id: str, label: str, track_id: int, start_ms: int) -> str:
    """The id of one event within one analysis.

    >>> first = event_id(analysis_id="a", label="person", track_id=1, start_ms=0)
    >>> first == event_id(analysis_id="a", label="person", track_id=2, start_ms=0)
    False
    """
    return _digest(
        "event",
        EVENTS_VERSION,
        {"analysis_id": analysis_id, "label": label, "track_id": track_id, "start_ms": start_ms},
    )


def model_sha256(path: Path) -> str:
    """The SHA-256 of a model file, or of a model directory's sorted relative names and contents.

    >>> len(model_sha256(Path("person_face.pt")))
    64
    """
    try:
        if path.is_dir():
            files = sorted(
                (file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file()
            )
            listing = "".join(f"{_sha256_of_file(file)}  {name}\n" for name, file in files)
            if not files:
                raise ModelUnavailable(
                    f"A model was expected in {path}, but the directory is empty; export it again."
                )
            return hashlib.sha256(listing.encode()).hexdigest()
        return _sha256_of_file(path)
    except FileNotFoundError:
        raise ModelUnavailable(
            f"A model was expected at {path}, but nothing is there; correct the path or fetch the model."
        ) from None
    except OSError as error:
        raise ModelUnavailable(
            f"The model at {path} cannot be read ({error}); correct its permissions."
        ) from error


def _sha256_of_file(path: Path) -> str:
    now = os.stat(path)
    return _sha256_of_content(path, (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns))


@lru_cache(maxsize=256)
def _sha256_of_content(path: Path, _state: tuple[int, ...]) -> str:
    """A file is read once a process for as long as its inode, size and time of change stay."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _digest(kind: str, version: int, fields: dict[str, object]) -> str:
    text = json.dumps([kind, version, fields], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_ID_DIGITS]
