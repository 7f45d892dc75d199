"""The summary of all videos: what it counts, that it shows, and when it is made again."""

from __future__ import annotations

import base64
import csv
import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import dagster as dg
import pytest

from capstone_dagster.assets.declared.daily_activity import ACTIVITY_FILE, ZONES_FILE, daily_activity
from capstone_dagster.services import Services
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.analyses import publish_analysis
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.events import hourly_activity
from capstone_dagster.storage.videos import record_upload
from tests.storage.samples import ANALYSIS, FACTS, UPLOAD, event_row

# 23:30 in Seoul, on the day before that of UTC's afternoon.
RECORDED = datetime(2026, 1, 2, 14, 30, tzinfo=UTC)
HOUR_MS = 3_600_000


@pytest.fixture
def services(database: Database, tmp_path: Path) -> Services:
    return Services(
        read_settings(
            database_url=database.engine.url.render_as_string(hide_password=False),
            derived_url=tmp_path.as_uri(),
        )
    )


def publish(database: Database, number: int, rows: list[dict[str, Any]], **upload: Any) -> None:
    name = {"upload_id": f"u{number}", "video_id": f"v{number}", "key": f"{number}.mp4"}
    database.transact(record_upload, replace(UPLOAD, **name, **upload))
    ids = {"analysis_id": f"a{number}", "video_id": f"v{number}", "upload_id": f"u{number}"}
    named = [row | {"event_id": f"{number}-{place}"} for place, row in enumerate(rows)]
    database.transact(publish_analysis, replace(ANALYSIS, **ids), named, FACTS)


def make(services: Services) -> dict[str, Any]:
    result = dg.materialize(
        [daily_activity],
        resources={"services": services},
        selection=dg.AssetSelection.assets("daily_activity"),
    )
    (made,) = result.asset_materializations_for_node("daily_activity")
    return {name: value.value for name, value in made.metadata.items()}


def test_events_are_counted_by_camera_and_hour_where_the_camera_stands(services: Services) -> None:
    recorded: dict[str, Any] = {"recorded_at": RECORDED, "recorded_at_source": "message"}
    rows = [event_row("", 0), event_row("", 60_000) | {"face_score": 0.5}, event_row("", HOUR_MS)]
    publish(services.database, 1, rows, **recorded)
    publish(services.database, 2, [event_row("", 0) | {"label": "face"}], camera="yard", **recorded)
    publish(services.database, 3, [event_row("", 0), event_row("", 5000)])  # nobody knows when
    long_ago = {**recorded, "recorded_at": RECORDED - timedelta(days=31)}
    publish(services.database, 4, [event_row("", 0)], **long_ago)
    ahead = {**recorded, "recorded_at": datetime.now(UTC) + timedelta(days=365)}
    publish(services.database, 5, [event_row("", 0)], camera="wrong clock", **ahead)

    shown = make(services)

    assert [shown[name] for name in ("events", "persons", "cameras", "events_without_time")] == [4, 3, 2, 2]
    assert (shown["events_on_the_last_day"], shown["timezone"]) == (1, "Asia/Seoul")
    read = csv.DictReader(io.StringIO(services.objects.get_bytes(ACTIVITY_FILE).decode()))
    assert [tuple(row.values()) for row in read] == [
        ("gate", "2026-01-02T23:00:00+09:00", "2", "2", "1"),
        ("yard", "2026-01-02T23:00:00+09:00", "1", "0", "1"),
        ("gate", "2026-01-03T00:00:00+09:00", "1", "1", "0"),
    ]
    assert "| gate | 2 | 1 |" in shown["table"]
    assert "| yard | 1 | 0 |" in shown["table"]


def test_visits_of_zones_and_crossings_of_lines_are_counted_by_the_hour(services: Services) -> None:
    visit, later = ({"zone": "door", "entered_ms": ms, "dwell_ms": 1500} for ms in (0, HOUR_MS))
    crossing = {"line": "gate", "at_ms": HOUR_MS, "direction": "out"}
    rows = [
        event_row("", 0) | {"zones": json.dumps([visit])},
        event_row("", 0) | {"zones": json.dumps([visit]), "end_ms": 2 * HOUR_MS},
        event_row("", 0) | {"zones": json.dumps([later]), "crossings": json.dumps([crossing, crossing])},
    ]
    publish(services.database, 1, rows, recorded_at=RECORDED, recorded_at_source="message")

    shown = make(services)

    assert (shown["zone_visits"], shown["line_crossings"]) == (3, 2)
    read = csv.DictReader(io.StringIO(services.objects.get_bytes(ZONES_FILE).decode()))
    assert [tuple(row.values()) for row in read] == [
        ("gate", "2026-01-02T23:00:00+09:00", "door", "2", "3.0", "0", "0"),
        ("gate", "2026-01-03T00:00:00+09:00", "door", "1", "1.5", "0", "0"),
        ("gate", "2026-01-03T00:00:00+09:00", "gate", "0", "0.0", "0", "2"),
    ]


@pytest.mark.parametrize(
    ("source", "counted"), [("container:creation_time", []), ("name", ["2015-01-01T09:00:00+09:00"])]
)
def test_an_old_date_that_only_a_tag_gives_does_not_move_the_window(
    services: Services, source: str, counted: list[str]
) -> None:
    odd = datetime(2015, 1, 1, tzinfo=UTC)
    publish(services.database, 1, [event_row("", 0)], recorded_at=odd, recorded_at_source=source)
    rows, _ = services.database.transact(hourly_activity, zone="Asia/Seoul", days=30)
    assert [row["hour"].isoformat() for row in rows] == counted


def test_an_hour_that_a_clock_change_repeats_counts_twice(services: Services) -> None:
    began = datetime(2025, 10, 26, 0, 30, tzinfo=UTC)  # 02:30 in Berlin; an hour later it is 02:30 once more
    rows = [event_row("", 0), event_row("", HOUR_MS), event_row("", HOUR_MS + 1)]
    publish(services.database, 1, rows, recorded_at=began, recorded_at_source="message")
    rows, _ = services.database.transact(hourly_activity, zone="Europe/Berlin", days=1)
    assert [(row["hour"].isoformat(), row["events"]) for row in rows] == [
        ("2025-10-26T02:00:00+02:00", 1),
        ("2025-10-26T02:00:00+01:00", 2),
    ]


def test_the_plot_is_a_small_picture_that_names_cameras_in_any_script(services: Services) -> None:
    recorded: dict[str, Any] = {"recorded_at": RECORDED, "recorded_at_source": "message"}
    for number, camera in enumerate(["회의실", "a <b> & c", *map(str, range(13))]):
        # The busiest twelve are shown.
        rows = [event_row("", 0), event_row("", 5000)] if number < 2 else [event_row("", 0)]
        publish(services.database, number, rows, camera=camera, **recorded)

    plot = make(services)["plot"]

    assert plot.startswith("![Events by camera and hour](data:image/svg+xml;base64,")
    data = base64.b64decode(plot.rpartition("base64,")[2].rstrip(")"))
    words = [each.text for each in ElementTree.fromstring(data).iter("{http://www.w3.org/2000/svg}text")]
    assert {"회의실", "a <b> & c"} <= set(words)
    assert "Events by day, until 2026-01-02" in words
    assert len(data) < 60_000


def test_without_events_there_is_a_summary_too(services: Services) -> None:
    shown = make(services)
    assert (shown["events"], shown["cameras"], shown["events_on_the_last_day"]) == (0, 0, 0)
    assert "No event" in shown["plot"]


def test_it_is_made_again_after_events_were_published_and_not_twice_at_once() -> None:
    """By Dagster's own evaluation, over dynamic partitions: the conditions that look simpler never fire."""
    videos = dg.DynamicPartitionsDefinition(name="videos")

    @dg.asset(partitions_def=videos)
    def events() -> None: ...

    definitions = dg.Definitions(
        assets=[events, daily_activity], resources={"services": dg.ResourceDefinition.none_resource()}
    )
    with dg.DagsterInstance.ephemeral() as instance:
        cursor = None

        def requested() -> int:
            nonlocal cursor
            result = dg.evaluate_automation_conditions(definitions, instance, cursor=cursor)
            cursor = result.cursor
            return result.total_requested

        def published(video: str) -> None:
            instance.add_dynamic_partitions("videos", [video])
            instance.report_runless_asset_event(dg.AssetMaterialization("events", partition=video))

        assert requested() == 0
        published("a")
        assert requested() == 1
        assert requested() == 0
        published("b")
        published("c")
        assert requested() == 1
        assert requested() == 0
        # What was published between a request and the next look came too late for that request.
        published("d")
        assert requested() == 1
        published("e")
        assert requested() == 1
        assert requested() == 0
