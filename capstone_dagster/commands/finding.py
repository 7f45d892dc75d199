"""Finds the video or analysis that an argument names by its id, the back end's id, or a beginning of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from capstone_dagster.storage.database import Database

Row = Mapping[str, Any]


def find_video(database: Database, video: str) -> str:
    """The id of the video with this id or external id.

    Raises:
        BadParameter: there is none, or several.
    """
    from capstone_dagster.storage.video_status import current_status

    found = [row["video_id"] for row in database.transact(current_status, video)]
    if video in found:
        return video
    if not found:
        raise typer.BadParameter(f"no video {video!r} is known; `capstone status` lists those that are")
    if len(found) > 1:
        raise typer.BadParameter(
            f"{video!r} is the external id of {', '.join(sorted(found))}: name one of them"
        )
    return str(found[0])


def find_analyses(database: Database, video_id: str) -> list[dict[str, Any]]:
    """Rows of `analyses` of a video, oldest first.

    Raises:
        BadParameter: it has none.
    """
    from capstone_dagster.storage.analyses import analyses_of

    found = database.transact(analyses_of, video_id)
    if not found:
        raise typer.BadParameter(
            f"{video_id} has no analysis yet; `capstone status {video_id}` shows its progress"
        )
    return found


def find_analysis(analyses: Sequence[Row], beginning: str) -> Row:
    """The analysis with this id, or whose id begins with it.

    Raises:
        BadParameter: there is none, or several.
    """
    found = [row for row in analyses if row["analysis_id"].startswith(beginning)]
    exact = [row for row in found if row["analysis_id"] == beginning]
    if len(exact or found) == 1:
        return (exact or found)[0]
    ids = ", ".join(row["analysis_id"] for row in found or analyses)
    if found:
        raise typer.BadParameter(f"{beginning!r} begins the ids of several analyses: {ids}")
    raise typer.BadParameter(f"{beginning!r} begins the id of no analysis of this video; there are {ids}")


def current_of(analyses: Sequence[Row]) -> Row | None:
    """The current one; None if none is."""
    return next((row for row in analyses if row["is_current"]), None)


def asked_before(analyses: Sequence[Row], row: Row) -> Row | None:
    """Of the others, the one asked for last: of the same upload if there is one; None without others.

    After a rollback this is what was rolled back.
    """
    others = [other for other in analyses if other["analysis_id"] != row["analysis_id"]]
    return max(
        others,
        key=lambda other: (other["upload_id"] == row["upload_id"], other["requested_at"]),
        default=None,
    )


def published_before(analyses: Sequence[Row], row: Row) -> Row | None:
    """The latest one of the same upload that was first published before this one; None if there is none."""
    earlier = [
        other
        for other in analyses
        if other["upload_id"] == row["upload_id"] and other["published_at"] < row["published_at"]
    ]
    return max(earlier, key=lambda other: other["published_at"], default=None)
