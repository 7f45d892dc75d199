"""The gallery of events, and the page of one event. Their addresses are their state: a view can be shared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from capstone_dagster.web import reading
from capstone_dagster.web.media import EXPIRES_S
from capstone_dagster.web.reading import Choice, Place, Row
from capstone_dagster.web.site import address, site_of

# Half of what the addresses behind it live: a browser may keep the answer as long.
_PICTURE_CACHE = f"private, max-age={EXPIRES_S // 2}"
# What plays before and after an event: a viewer sees the person arrive and leave.
_MARGIN_MS = 2000
_FILTERS = ("camera", "label", "zone", "from", "to", "score", "faces")


def gallery_page(request: Request) -> Response:
    """`/`: events as pictures, newest first, with filters and the hours of a day."""
    site = site_of(request)
    filters = {name: request.query_params.get(name, "") for name in _FILTERS}
    choice, after = _choice(request.query_params, site.zone), _place(request.query_params.get("after"))
    with site.database.transaction() as connection:
        rows, following = reading.gallery(connection, choice, after)
        cameras = reading.cameras(connection)
        zones = reading.zones(connection)
        day = None if after else _day(choice, rows, site.zone)
        counts = reading.hourly_counts(connection, replace(choice, since=day[0], until=day[1])) if day else []
    return site.page(
        request,
        "gallery.html.j2",
        rows=rows,
        cameras=cameras,
        zones=sorted({row["name"] for row in zones if choice.camera in (None, row["camera"])}),
        labels=site.settings.labels,
        filters=filters,
        following=address("/", **filters, after=following),
        more=following is not None,
        hours=_hours(filters, day, counts) if day else None,
        zone=site.settings.timezone,
    )


def event_page(request: Request) -> Response:
    """`/events/…`: the moment played, with its neighbours in time."""
    site = site_of(request)
    with site.database.transaction() as connection:
        row = _event(connection, request)
        before, after = reading.neighbours(connection, row)
    return site.page(
        request,
        "event.html.j2",
        event=row,
        before=before,
        after=after,
        player={
            "video": row,
            "start_ms": max(0, row["start_ms"] - _MARGIN_MS),
            "end_ms": row["end_ms"] + _MARGIN_MS,
            "track": row["track_id"],
        },
    )


def picture(request: Request) -> Response:
    """`/events/…/picture`: a redirect to the thumbnail, or its bytes where objects are files here."""
    site = site_of(request)
    with site.database.transaction() as connection:
        row = _event(connection, request)
    if row["thumbnail_key"] is None:
        raise HTTPException(404, "This event has no picture.")
    headers = {"Cache-Control": _PICTURE_CACHE}
    found = site.media.derived_address(row["thumbnail_key"])
    if found is not None:
        return RedirectResponse(found, headers=headers)
    return Response(site.media.derived_bytes(row["thumbnail_key"]), media_type="image/jpeg", headers=headers)


def _event(connection: Any, request: Request) -> Row:
    row = reading.event(connection, request.path_params["event_id"])
    if row is None:
        raise HTTPException(404, "There is no such event: its video was deleted or analysed again.")
    return row


def _choice(query: Mapping[str, str], zone: ZoneInfo) -> Choice:
    try:
        score = float(query["score"]) if query.get("score") else None
    except ValueError:
        raise HTTPException(400, "A score is a number from 0 to 1.") from None
    return Choice(
        camera=query.get("camera") or None,
        label=query.get("label") or None,
        since=_moment(query.get("from"), zone),
        until=_moment(query.get("to"), zone),
        faces=bool(query.get("faces")),
        score=score,
        zone=query.get("zone") or None,
    )


def _moment(text: str | None, zone: ZoneInfo) -> datetime | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
        # Beyond these years, conversion to UTC fails.
        if not 1900 <= moment.year <= 2200:
            raise ValueError
    except ValueError:
        raise HTTPException(400, "A time looks like 2026-01-22T14:00.") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=zone)


def _place(text: str | None) -> Place | None:
    try:
        return Place.of(text) if text else None
    except ValueError:
        raise HTTPException(400, "This page of the gallery does not exist.") from None


def _day(choice: Choice, rows: list[Row], zone: ZoneInfo) -> tuple[datetime, datetime] | None:
    """Start and end of the day that the timeline shows: of the filter's start, else of the newest event."""
    moment = choice.since or (rows[0]["started_at"] if rows else None)
    if moment is None:
        return None
    # By the calendar: a day of a clock change has 23 or 25 hours.
    start = moment.astimezone(zone).replace(hour=0, minute=0, second=0, microsecond=0)
    return start, start + timedelta(days=1)


def _hours(filters: Mapping[str, str], day: tuple[datetime, datetime], counts: list[int]) -> dict[str, Any]:
    """The bars of a day, each with the address that shows its hour, and the days beside it."""
    start, end = day

    def between(since: datetime, until: datetime) -> str:
        times = {"from": since.strftime("%Y-%m-%dT%H:%M"), "to": until.strftime("%Y-%m-%dT%H:%M")}
        return address("/", **{**filters, **times})

    # Hours are counted in elapsed time, as the database does.
    utc = [start.astimezone(ZoneInfo("UTC")) + timedelta(hours=hour) for hour in range(len(counts) + 1)]
    marks = [moment.astimezone(start.tzinfo) for moment in utc]
    most = max(counts, default=0)
    bars = [
        {
            "label": f"{mark:%H:%M}",
            "events": count,
            "height": round(100 * count / most) if most else 0,
            "address": between(mark, following),
        }
        for mark, following, count in zip(marks, marks[1:], counts, strict=False)
    ]
    return {
        "day": f"{start:%Y-%m-%d}",
        "bars": bars,
        "all": between(start, end),
        "before": between(start - timedelta(days=1), start),
        "after": between(end, end + timedelta(days=1)),
    }
