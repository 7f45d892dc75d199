"""Ids are a contract: what meets in one id, what does not, and where names and times come from."""

from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from capstone_dagster.intake.identity import identify, run_key, upload_id, video_id
from capstone_dagster.intake.messages import AnalysisRequest
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.sources import SourceObject

SOURCE = SourceObject(
    bucket="raw",
    key="gate/20250526_193726.mp4",
    version_id="v1",
    etag="abc",
    size_bytes=10,
    last_modified=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
)
REQUEST = AnalysisRequest("raw", SOURCE.key)


def test_upload_id_speaks_of_one_upload_only() -> None:
    changed = [
        replace(SOURCE, key="other.mp4"),
        replace(SOURCE, version_id="v2"),
        replace(SOURCE, version_id=None),
        replace(SOURCE, etag="abd"),
        replace(SOURCE, last_modified=datetime(2026, 1, 2, 3, 4, 6, tzinfo=UTC)),
    ]
    same = replace(SOURCE, last_modified=SOURCE.last_modified.astimezone(ZoneInfo("Asia/Seoul")))

    assert len({upload_id(source) for source in [SOURCE, *changed]}) == 6
    assert upload_id(same) == upload_id(SOURCE)


def test_ids_stay_as_they_are() -> None:
    # Others hold these ids; a change here is a change of the contract.
    assert upload_id(SOURCE) == "f4136e8667f1b95c639833cdad9cec80b70d1d7094c09e2f13bc71bb3f41762c"
    assert video_id("raw", "gate/20250526_193726.mp4") == "20250526_193726-346abf9d"


@pytest.mark.parametrize(
    ("key", "slug"),
    [
        ("cam/Front Door (1).MP4", "front-door-1-"),
        ("휴게실.mp4", "휴게실-"),
        (".mp4", "mp4-"),
        ("a/---.mp4", "video-"),
        ("x" * 200 + ".mp4", "x" * 60 + "-"),
    ],
)
def test_video_id_is_readable(key: str, slug: str) -> None:
    assert video_id("raw", key).rpartition("-")[0] + "-" == slug
    assert video_id("raw", key) != video_id("other", key)


def test_run_keys_of_plain_requests_meet_and_others_do_not() -> None:
    upload = upload_id(SOURCE)
    plain = run_key(upload, REQUEST, "m1")
    special = [
        run_key(upload, replace(REQUEST, model="x.pt"), "m1"),
        run_key(upload, replace(REQUEST, sample_fps=2.0), "m1"),
        run_key(upload, replace(REQUEST, sample_fps=0.0), "m1"),
        run_key(upload, replace(REQUEST, force=True), "m1"),
        run_key(upload, replace(REQUEST, force=True), "m2"),
    ]

    assert plain == upload[:32] == run_key(upload, replace(REQUEST, external_id="84", priority=5), "m2")
    assert len({plain, *special}) == 6
    assert run_key(upload, replace(REQUEST, model="x.pt"), "m2") == special[0]


@pytest.mark.parametrize(
    ("request_fields", "metadata", "pattern", "expected"),
    [
        ({"external_id": "84"}, {"video-id": "85"}, r"(\d+)_", "84"),
        ({}, {"video-id": "85"}, r"(\d+)_", "85"),
        ({}, {}, r"(\d+)_", "20250526"),
        ({}, {}, r"_(?P<nothing>x)?(?P<external_id>\d+)", "193726"),
        ({}, {}, None, None),
    ],
)
def test_external_id_by_precedence(
    request_fields: dict[str, str], metadata: dict[str, str], pattern: str | None, expected: str | None
) -> None:
    settings = read_settings(external_id_pattern=pattern)

    upload = identify(replace(REQUEST, **request_fields), replace(SOURCE, metadata=metadata), settings)

    assert upload.external_id == expected


@pytest.mark.parametrize(
    ("key", "metadata", "camera"),
    [
        ("gate/a.mp4", {}, "gate"),
        ("a.mp4", {}, "unknown"),
        ("gate/a.mp4", {"camera": "yard"}, "yard"),
    ],
)
def test_camera(key: str, metadata: dict[str, str], camera: str) -> None:
    assert identify(REQUEST, replace(SOURCE, key=key, metadata=metadata), read_settings()).camera == camera


SEOUL = ZoneInfo("Asia/Seoul")


@pytest.mark.parametrize(
    ("stated", "metadata", "key", "time", "source"),
    [
        (
            datetime(2026, 1, 1, tzinfo=UTC),
            {},
            "20250526_193726.mp4",
            datetime(2026, 1, 1, tzinfo=UTC),
            "message",
        ),
        (datetime(2026, 1, 1), {}, "a.mp4", datetime(2026, 1, 1, tzinfo=SEOUL), "message"),
        (
            None,
            {"recorded-at": "2026-01-01T00:00:00+02:00"},
            "a.mp4",
            datetime(2025, 12, 31, 22, tzinfo=UTC),
            "metadata",
        ),
        (None, {"recorded-at": "soon"}, "a.mp4", None, None),
        (None, {}, "20250526_193726.mp4", datetime(2025, 5, 26, 19, 37, 26, tzinfo=SEOUL), "name"),
        (None, {}, "cam-20250526193726-x.mp4", datetime(2025, 5, 26, 19, 37, 26, tzinfo=SEOUL), "name"),
        (None, {}, "PXL_20250526_103726123.mp4", datetime(2025, 5, 26, 10, 37, 26, tzinfo=UTC), "name:utc"),
        (
            None,
            {},
            "84_pxl_20250526_103726123~2.mp4",
            datetime(2025, 5, 26, 10, 37, 26, tzinfo=UTC),
            "name:utc",
        ),
        *(
            (None, {}, name, datetime(2025, 5, 26, 19, 37, 26, tzinfo=SEOUL), "name")
            for name in (
                *("VID_20250526_193726123.mp4", "ch1_20250526193726_20250526194726.dav"),
                *("2025-05-26 19-37-26.mkv", "2025.05.26_19.37.26.mkv", "signal-2025-05-26-193726.mp4"),
                "Screen Recording 2025-05-26 at 19.37.26.mov",
            )
        ),
        (None, {}, "20250526_1937261.mp4", None, None),
        (None, {}, "2025-05-26 to 2025-05-27.mp4", None, None),
        (None, {}, "order-1201912312359590.mp4", None, None),
        (None, {}, "2019123123595900.mp4", None, None),
        (None, {}, "20251326_193726.mp4", None, None),
        (None, {}, "a.mp4", None, None),
    ],
)
def test_recorded_at(
    stated: datetime | None, metadata: dict[str, str], key: str, time: datetime | None, source: str | None
) -> None:
    upload = identify(
        replace(REQUEST, recorded_at=stated), replace(SOURCE, key=key, metadata=metadata), read_settings()
    )

    assert (upload.recorded_at, upload.recorded_at_source) == (time, source)
