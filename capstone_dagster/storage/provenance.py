"""What is known of a video's recording, from which source, and the copy of it in the video's events.

A row of `videos` describes the latest upload. Camera and recording time are columns of `events` too, because
consumers look events up by them: :func:`change` writes both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from capstone_dagster.storage.schema import analyses, events, videos
from capstone_dagster.storage.uploads import VideoFacts, VideoUpload

# Sources by precedence; between equals the latest value counts. `derived` is what intake found in the
# object's metadata or by a pattern, where it makes no difference which.
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
class _Sourced:
    """A value and its source; None if there is none."""

    value: Any
    source: str | None

    @property
    def rank(self) -> int:
        # Behind a colon stands the rule that the time was found by.
        return _RANKS.get(self.source and self.source.partition(":")[0], 1)


def first_row(upload: VideoUpload, stated: Collection[str]) -> dict[str, Any]:
    """The row of a video's first upload."""
    whereabouts = {name: getattr(upload, name) for name in ("video_id", "bucket", "key", *_WHEREABOUTS)}
    return {**whereabouts, **_columns(_given(upload, stated))}


def learnt(
    row: Mapping[str, Any], upload: VideoUpload, stated: Collection[str], *, newest: bool
) -> dict[str, Any]:
    """What an upload's message changes in the row of its video, which exists.

    Args:
        stated: the fields that the message itself gave.
        newest: the upload is new, and the latest one now.
    """
    known, given = _known(row), _given(upload, stated)
    accepted: dict[str, _Sourced] = {}
    changed: dict[str, Any] = {}
    if newest:
        changed = {name: getattr(upload, name) for name in _WHEREABOUTS} | {"raw_removed_at": None}
    if upload.uploaded_at > row["uploaded_at"]:
        accepted = {name: each for name, each in given.items() if name != "external_id" or each.source}
    elif upload.uploaded_at == row["uploaded_at"]:
        accepted = {
            name: each for name, each in given.items() if each.source and each.rank >= known[name].rank
        }
    elif known["external_id"].source is None:
        # An older upload's camera and time are not this one's; the back end's id is the same video's.
        accepted = {"external_id": given["external_id"]}
    changed |= _columns(accepted)
    return {name: value for name, value in changed.items() if value != row[name]}


def found(row: Mapping[Any, Any], facts: VideoFacts) -> dict[str, Any]:
    """What the analysis of the latest upload changes in the row of its video.

    What is known by now takes precedence over what the run knew when it began, so a recording time counts
    only from a better source.
    """
    changed: dict[str, Any] = {
        name: getattr(facts, name) for name in ("duration_ms", "width", "height", "fps", "codec")
    }
    recorded_at = _Sourced(facts.recorded_at, _source_of_time(facts.recorded_at, facts.recorded_at_source))
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
        new_events: there may be events of it that were not compared with the row yet.
    """
    if changed:
        connection.execute(sa.update(videos).where(videos.c.video_id == video_id).values(changed))
    if new_events or not changed.keys().isdisjoint(("camera", "recorded_at")):
        _refresh_events(connection, video_id, upload_id)


def _refresh_events(connection: sa.Connection, video_id: str, upload_id: str) -> None:
    """Write camera and times into the events of the upload's analyses, from the row of its video.

    Only for the latest upload, which the row describes. Events that agree with it stay untouched.
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


def _given(upload: VideoUpload, stated: Collection[str]) -> dict[str, _Sourced]:
    def sourced(name: str, value: Any, otherwise: str | None) -> _Sourced:
        return _Sourced(value, "message" if name in stated and value is not None else otherwise)

    external_id, camera, recorded_at = upload.external_id, upload.camera, upload.recorded_at
    return {
        "external_id": sourced("external_id", external_id, None if external_id is None else "derived"),
        "camera": sourced("camera", camera, None if camera == _UNKNOWN_CAMERA else "derived"),
        "recorded_at": sourced(
            "recorded_at", recorded_at, _source_of_time(recorded_at, upload.recorded_at_source)
        ),
    }


def _source_of_time(value: Any, source: str | None) -> str | None:
    """A time without a named source has the lowest precedence."""
    return None if value is None else source or "container"


def _known(row: Mapping[Any, Any]) -> dict[str, _Sourced]:
    names = ("external_id", "camera", "recorded_at")
    return {name: _Sourced(row[name], row[f"{name}_source"]) for name in names}


def _columns(sources: Mapping[str, _Sourced]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for name, each in sources.items():
        columns |= {name: each.value, f"{name}_source": each.source}
    return columns
