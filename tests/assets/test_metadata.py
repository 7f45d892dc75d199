"""What materialisations show: numbers that plot, pictures within their bounds, links that fit the place."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import dagster as dg
import numpy as np
import pytest

from capstone_dagster.analysis import Event, shrunk
from capstone_dagster.assets.shown import metadata
from capstone_dagster.assets.steps.references import DetectionsReference, EventsReference, PublishedAnalysis
from capstone_dagster.services import Services
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.uploads import VideoUpload
from tests.assets import samples

UPLOADED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
UPLOAD = VideoUpload(
    upload_id="u",
    video_id="a-12345678",
    external_id=None,
    bucket="raw",
    key="gate/a b.mp4",
    version_id=None,
    etag="e",
    size_bytes=1,
    camera="gate",
    recorded_at=None,
    recorded_at_source=None,
    uploaded_at=UPLOADED,
)
SUMMARY = replace(
    samples.SUMMARY,
    frames_decoded=250,
    frames_analyzed=50,
    detections=90,
    tracks=3,
    duration_ms=10_000,
    seconds=2.0,
)
DONE = DetectionsReference("d", UPLOAD, "detections/d/", SUMMARY, {}, 1, reused=False)
TAGS = {"batch_gpu/job_id": "job-7", "batch_gpu/log_stream": "gpu/default/7"}


def event(track: int, **changed: Any) -> Event:
    usual: dict[str, Any] = {
        "event_id": f"e{track}",
        "analysis_id": "a",
        "track_id": track,
        "label": "person",
        "start_ms": 100 * track,
        "end_ms": 100 * track + 50,
        "first_frame": 0,
        "last_frame": 1,
        "sample_interval_ms": 200.0,
        "detections": 2,
        "best_score": 0.9,
        "mean_score": 0.7,
        "best_ms": 100 * track,
        "best_box": (0.0, 0.0, 1.0, 1.0),
        "face_score": None,
        "face_box": None,
        "truncated_start": False,
        "truncated_end": False,
        "thumbnail_key": f"thumbnails/{track}.jpg",
    }
    return Event(**{**usual, **changed})


def noise(width: int, height: int) -> bytes:
    """A JPEG that cannot be made small without losing something."""
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


@pytest.fixture
def services(tmp_path: Path) -> Services:
    return Services(read_settings(derived_url=tmp_path.as_uri(), gpu_usd_per_hour=3.6))


def published(events: int, rows: int | None = None, first: bool = True) -> PublishedAnalysis:
    at = datetime(2026, 1, 2, 3, 4, 35, tzinfo=UTC)
    rows = events if rows is None else rows
    return PublishedAnalysis("a", UPLOAD.video_id, events, at, True, rows, first)


def of_publication(events: list[Event], services: Services, **options: Any) -> metadata.Metadata:
    derived = EventsReference("a", "analyses/a/", len(events), None, None, DONE)
    return metadata.of_publication(published(len(events), **options), events, derived, services, {})


def test_numbers_plot_and_say_what_a_gpu_cost(services: Services) -> None:
    shown = metadata.of_detections(DONE, services, {})

    assert shown["gpu_seconds"] == 2.0
    assert shown["cost_usd"] == pytest.approx(0.002)
    assert shown["frames_per_second"] == 125
    assert shown["detections_per_minute"] == 540
    for name in ("detections", "tracks", "seconds", "model_load_seconds", "gpu_seconds", "cost_usd"):
        assert isinstance(shown[name], int | float), name
    # What was there before cost this run nothing; a CPU is no GPU; without a price nothing is guessed.
    again = metadata.of_detections(replace(DONE, reused=True), services, {})
    assert (again["gpu_seconds"], again["cost_usd"]) == (0.0, 0.0)
    on_cpu = replace(DONE, summary=replace(SUMMARY, device="cpu"))
    assert metadata.of_detections(on_cpu, services, {})["gpu_seconds"] == 0.0
    unpriced = Services(services.settings.model_copy(update={"gpu_usd_per_hour": None}))
    assert "cost_usd" not in metadata.of_detections(DONE, unpriced, {})


def test_latency_is_shown_of_an_uploads_first_analysis_alone(services: Services) -> None:
    assert of_publication([event(1)], services)["upload_to_persisted_s"] == 30
    assert "upload_to_persisted_s" not in of_publication([event(1)], services, first=False)


def test_pictures_stay_within_their_bounds(services: Services) -> None:
    services.objects.put_bytes("detections/d/contact_sheet.jpg", noise(1950, 930))
    events = [event(track) for track in range(60)]
    for each in events:
        services.objects.put_bytes(f"detections/d/{each.thumbnail_key}", noise(320, 200))

    sheet = metadata.of_detections(DONE, services, {})["contact_sheet"].value
    table = of_publication(events, services)["table"].value

    assert sheet.startswith("![contact sheet](data:image/jpeg;base64,")
    for text in (sheet, table):
        pictures = re.findall(r"!\[[^]]*\]\([^)]*\)", text)
        assert pictures
        assert sum(map(len, pictures)) <= metadata.MOST_PICTURE_BYTES
    assert table.count("\n| ") == 50
    assert "10 more are in `capstone.current_events`" in table


def test_one_picture_in_many_rows_counts_in_each(services: Services) -> None:
    """As of somebody who comes and goes: a track has one picture, however many events."""
    events = [event(1, event_id=f"e{number}", start_ms=100 * number) for number in range(50)]
    services.objects.put_bytes(f"detections/d/{events[0].thumbnail_key}", noise(320, 200))

    pictures = re.findall(r"!\[[^]]*\]\([^)]*\)", of_publication(events, services)["table"].value)

    assert pictures
    assert sum(map(len, pictures)) <= metadata.MOST_PICTURE_BYTES


def test_what_has_no_picture_is_shown_without(services: Services) -> None:
    assert metadata.of_detections(DONE, services, {})["contact_sheet"].value == "no picture"
    services.objects.put_bytes("detections/d/thumbnails/1.jpg", b"no picture")
    table = of_publication([event(1, truncated_start=True, face_score=0.5)], services)["table"].value
    assert "|  |  | …0.1 s | 0.1 s | person | 1 | 2× | 0.90 | 0.70 | 0.50 |" in table
    assert of_publication([], services)["table"].value == "No events."


def test_events_have_wall_clock_times_and_a_date_from_a_tag_is_marked(services: Services) -> None:
    at = datetime(2026, 1, 1, 15, 0, tzinfo=UTC)
    derived = EventsReference("a", "analyses/a/", 1, at, "container:creation_time", DONE)

    shown = metadata.of_publication(published(1), [event(1, start_ms=61_000)], derived, services, {})

    assert "| 2026-01-02 00:01:01+09:00 | 61.0 s |" in shown["table"].value
    assert shown["recorded_at"] == "2026-01-02 00:00:00+09:00"
    assert shown["recorded_at_known_from"] == "a tag of the file (creation_time), not verified"


def test_links_lead_to_aws_only_in_aws(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    here = metadata.of_frames(DONE, services, {}, TAGS)
    assert here["video"] == dg.MetadataValue.path("s3://raw/gate/a b.mp4")
    assert "batch_job" not in here
    assert "browse" not in here

    monkeypatch.setenv("AWS_REGION", "ap-northeast-2")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-northeast-2")
    cloud = Services(
        read_settings(
            environment="prod",
            derived_url="s3://derived/x",
            gpu_usd_per_hour=3.6,
            compute="batch",
            browse_url="https://look.example",
        )
    )
    cloud.__dict__["objects"] = _Named()
    there = metadata.of_frames(DONE, cloud, {}, TAGS)
    assert there["browse"] == dg.MetadataValue.url(f"https://look.example/videos/{DONE.upload.video_id}")
    console = "https://ap-northeast-2.console.aws.amazon.com"
    assert there["video"].value == (f"{console}/s3/object/raw?region=ap-northeast-2&prefix=gate/a%20b.mp4")
    assert there["frames"].value.endswith("prefix=x/detections/d/frames.parquet")
    assert there["batch_job"].value == f"{console}/batch/home?region=ap-northeast-2#jobs/detail/job-7"
    assert "gpu$252Fdefault$252F7" in there["log"].value


class _Named:
    """An object store of which only the addresses are asked."""

    def url(self, key: str) -> str:
        return f"s3://derived/x/{key}"


@pytest.mark.parametrize("most_bytes", [1500, 4000, 50_000])
def test_a_picture_is_made_as_small_as_asked(most_bytes: int) -> None:
    small = shrunk(noise(640, 360), side=320, most_bytes=most_bytes)
    assert len(small) <= most_bytes
    height, width = cv2.imdecode(np.frombuffer(small, np.uint8), cv2.IMREAD_COLOR).shape[:2]
    assert width <= 320
    assert width / height == pytest.approx(16 / 9, rel=0.05)
    with pytest.raises(ValueError, match="a JPEG was expected"):
        shrunk(b"", side=320, most_bytes=4000)


def test_a_video_is_described_as_operators_look_for_it(services: Services) -> None:
    services.objects.put_bytes("detections/d/contact_sheet.jpg", noise(1950, 930))
    at = "2026-01-01T15:00:00+00:00"
    summary = replace(SUMMARY, creation_time=at, creation_time_rule="creation_time")
    done = replace(DONE, upload=replace(UPLOAD, external_id="84"), summary=summary)

    seen = metadata.of_video(done, services)

    assert (seen.asset_key, seen.partition) == (dg.AssetKey("raw_videos"), UPLOAD.video_id)
    assert seen.description is not None
    assert seen.description.startswith("84: gate/a b.mp4, 10.0 s, ")
    shown = {name: entry.value for name, entry in seen.metadata.items()}
    assert (shown["external_id"], shown["camera"], shown["duration_s"]) == ("84", "gate", 10.0)
    assert shown["resolution"] == f"{SUMMARY.width} × {SUMMARY.height}"
    assert shown["recorded_at"] == "2026-01-02 00:00:00+09:00"
    assert "not verified" in shown["recorded_at_known_from"]
    assert shown["picture"].startswith("![gate/a b.mp4](data:image/jpeg;base64,")
    assert len(shown["picture"]) < 35_000


def test_tables_show_their_columns_and_how_many_rows_lie_where(services: Services) -> None:
    from capstone_dagster.assets.declared.daily_activity import daily_activity
    from capstone_dagster.assets.declared.videos import events, video_analysis

    specs = [*video_analysis.specs, *events.specs, *daily_activity.specs]
    found = {
        spec.key.to_user_string(): {
            column.name: (column.type, column.constraints.nullable, bool(column.description))
            for column in spec.metadata["dagster/column_schema"].columns
        }
        for spec in specs
    }
    assert found["extracted_frames"]["pts_ms"] == ("int64", False, True)
    assert found["detections"]["track_id"] == ("int32", True, True)
    assert found["events"]["started_at"] == ("timestamp with time zone", True, True)
    assert found["events"]["best_box"] == ("double precision[]", False, True)
    assert list(found["daily_activity"]) == ["camera", "hour", "events", "persons", "faces"]
    [of_events] = events.specs
    assert of_events.metadata["dagster/table_name"] == "capstone.events"

    for shown, rows, file in (
        (metadata.of_frames(DONE, services, {}, {}), 250, "detections/d/frames.parquet"),
        (metadata.of_detections(DONE, services, {}), 90, "detections/d/detections.parquet"),
        (of_publication([event(1)], services), 1, "analyses/a/events.parquet"),
    ):
        assert (shown["dagster/row_count"], shown["dagster/uri"]) == (rows, services.objects.url(file))


def test_assets_say_whose_they_are_and_where_their_code_stands() -> None:
    from capstone_dagster.assets.declared.daily_activity import daily_activity
    from capstone_dagster.assets.declared.videos import events, raw_videos, video_analysis

    for definition in (raw_videos, *video_analysis.specs, *events.specs, *daily_activity.specs):
        assert definition.owners == ["team:video-pipeline"]
        assert definition.kinds
        assert len(str(definition.description)) > 100
        [*references] = definition.metadata["dagster/code_references"].code_references
        for reference in references:
            assert Path(reference.file_path).is_file()
            assert reference.line_number
            # Dagster's page says "Open … in editor", and cuts what is longer.
            assert len(reference.label) <= 16
