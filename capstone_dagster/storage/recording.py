"""What is known of a video's recording, who said it, and the snapshot of it that its events carry.

A row of `videos` speaks of the latest upload. Its camera and recording time stand in the events too, because
consumers look those up by them: :func:`change` writes both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from capstone_dagster.storage.records import VideoFacts, VideoUpload
from capstone_dagster.storage.schema import analyses, events, videos

# Who is believed before whom; between equals the latest word counts. `derived` is what intake found in the
# object's metadata or by a pattern, for the fields of which nobody needs to know which of the two.
_RANKS: Mapping[str | None, int] = {
    None: 0,
    "container": 1,
    "name": 2,
    "derived": 2,
    "metadata": 3,
    "message": 4,
}
_UNKNOWN_CAMERA = "unknown"
_WHEREABOUTS = ("version_id", "etag", "size_bytes", "uploaded_at")


@dataclass(frozen=True, slots=True)
class _Word:
    """A value and who said it; None if nobody did."""

    value: Any
    source: str | None

    @property
    def rank(self) -> int:
        return _RANKS.get(self.source, 1)


def first_row(upload: VideoUpload, told: Collection[str]) -> dict[str, Any]:
    """The row of a video's first upload."""
    whereabouts = {name: getattr(upload, name) for name in ("video_id", "bucket", "key", *_WHEREABOUTS)}
    return {**whereabouts, **_columns(_said(upload, told))}


def learnt(
    row: Mapping[str, Any], upload: VideoUpload, told: Collection[str], *, newest: bool
) -> dict[str, Any]:
    """What an upload's message changes in the row of its video, which exists.

    Args:
        told: the fields that the message itself gave.
        newest: this is the first word of an upload that is the latest one now.
    """
    known, said = _known(row), _said(upload, told)
    accepted: dict[str, _Word] = {}
    changed: dict[str, Any] = {}
    if newest:
        changed = {name: getattr(upload, name) for name in _WHEREABOUTS} | {"raw_removed_at": None}
    if upload.uploaded_at > row["uploaded_at"]:
        accepted = {name: word for name, word in said.items() if name != "external_id" or word.source}
    elif upload.uploaded_at == row["uploaded_at"]:
        accepted = {
            name: word for name, word in said.items() if word.source and word.rank >= known[name].rank
        }
    elif known["external_id"].source is None:
        # An older upload's camera and time are not this one's; the back end's id is the same video's.
        accepted = {"external_id": said["external_id"]}
    changed |= _columns(accepted)
    return {name: value for name, value in changed.items() if value != row[name]}


def found(row: Mapping[str, Any], facts: VideoFacts) -> dict[str, Any]:
    """What the analysis of the latest upload changes in the row of its video.

    What is known by now goes before what the run was told when it began, so a recording time counts only
    from a better source.
    """
    changed: dict[str, Any] = {
        name: getattr(facts, name) for name in ("duration_ms", "width", "height", "fps", "codec")
    }
    recorded_at = _Word(facts.recorded_at, _source_of_time(facts.recorded_at, facts.recorded_at_source))
    if recorded_at.rank > _known(row)["recorded_at"].rank:
        changed |= _columns({"recorded_at": recorded_at})
    return {name: value for name, value in changed.items() if value != row[name]}


def change(
    connection: sa.Connection,
    video_id: str,
    upload_id: str,
    changed: Mapping[str, Any],
    *,
    new_events: bool = False,
) -> None:
    """Change a video's row, and with it the events of its latest upload.

    Args:
        upload_id: the latest upload.
        new_events: there may be events of it that nobody has compared with the row yet.
    """
    if changed:
        connection.execute(sa.update(videos).where(videos.c.video_id == video_id).values(changed))
    if new_events or not changed.keys().isdisjoint(("camera", "recorded_at")):
        _refresh_events(connection, video_id, upload_id)


def _refresh_events(connection: sa.Connection, video_id: str, upload_id: str) -> None:
    """Write camera and times into the events of the upload's analyses, from the row of its video.

    Only for the latest upload: the row speaks of no other. Events that say the same already stay untouched.
    """
    millisecond = sa.text("interval '1 millisecond'")
    snapshot = {
        "camera": videos.c.camera,
        "started_at": videos.c.recorded_at
        + events.c.start_ms.op("*", return_type=sa.Interval())(millisecond),
        "ended_at": videos.c.recorded_at + events.c.end_ms.op("*", return_type=sa.Interval())(millisecond),
    }
    connection.execute(
        sa.update(events)
        .where(
            events.c.analysis_id == analyses.c.analysis_id,
            analyses.c.video_id == video_id,
            analyses.c.upload_id == upload_id,
            videos.c.video_id == video_id,
            sa.or_(*(events.c[name].is_distinct_from(value) for name, value in snapshot.items())),
        )
        .values(snapshot)
    )


def _said(upload: VideoUpload, told: Collection[str]) -> dict[str, _Word]:
    def word(name: str, value: Any, otherwise: str | None) -> _Word:
        return _Word(value, "message" if name in told and value is not None else otherwise)

    external_id, camera, recorded_at = upload.external_id, upload.camera, upload.recorded_at
    return {
        "external_id": word("external_id", external_id, None if external_id is None else "derived"),
        "camera": word("camera", camera, None if camera == _UNKNOWN_CAMERA else "derived"),
        "recorded_at": word(
            "recorded_at", recorded_at, _source_of_time(recorded_at, upload.recorded_at_source)
        ),
    }


def _source_of_time(value: Any, source: str | None) -> str | None:
    """A time whose source nobody named is believed least."""
    return None if value is None else source or "container"


def _known(row: Mapping[str, Any]) -> dict[str, _Word]:
    names = ("external_id", "camera", "recorded_at")
    return {name: _Word(row[name], row[f"{name}_source"]) for name in names}


def _columns(words: Mapping[str, _Word]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, word in words.items():
        columns |= {name: word.value, f"{name}_source": word.source}
    return columns
