"""What is known of a recording: who said it counts, and its events say the same at every moment."""

import json
from collections.abc import Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from capstone_dagster.settings import ConfigurationError
from capstone_dagster.storage.analyses import analyses_of, publish_analysis
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.uploads import VideoUpload
from capstone_dagster.storage.video_status import current_status, mark_running
from capstone_dagster.storage.videos import latest_upload, record_upload
from tests.storage.samples import ANALYSIS, FACTS, NOON, ROWS, UPLOAD, event_row, publish

MORNING = datetime(2026, 1, 1, 8, tzinfo=UTC)
EVENING = datetime(2026, 1, 1, 20, tzinfo=UTC)


def video(database: Database) -> dict[str, Any]:
    with database.engine.connect() as connection:
        return dict(connection.execute(sa.text("SELECT * FROM capstone.videos")).mappings().one())


def clocks(database: Database) -> list[tuple[Any, ...]]:
    """Of every event, published last or not: camera, begin, end."""
    query = "SELECT camera, started_at, ended_at FROM capstone.events ORDER BY event_id"
    with database.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(sa.text(query))]


def by_message(**said: Any) -> tuple[VideoUpload, Collection[str]]:
    if "recorded_at" in said:
        said["recorded_at_source"] = "message"
    return replace(UPLOAD, **said), [name for name in said if name != "recorded_at_source"]


def derived(**said: Any) -> tuple[VideoUpload, Collection[str]]:
    return replace(UPLOAD, **said), ()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param(
            [by_message(camera="door"), derived(camera="gate")], {"camera": "door"}, id="stated stays"
        ),
        pytest.param(
            [derived(camera="gate"), by_message(camera="door")], {"camera": "door"}, id="stated comes"
        ),
        pytest.param(
            [derived(camera="gate"), derived(camera="unknown")],
            {"camera": "gate"},
            id="unknown takes nothing",
        ),
        pytest.param(
            [derived(camera="unknown"), derived(camera="gate")], {"camera": "gate"}, id="unknown is filled"
        ),
        pytest.param(
            [by_message(camera="door"), by_message(camera="yard")], {"camera": "yard"}, id="stated anew"
        ),
        pytest.param(
            [by_message(external_id="84"), derived(external_id="9"), derived()],
            {"external_id": "84"},
            id="stated id stays",
        ),
        pytest.param(
            [derived(external_id="9"), by_message(external_id="84")],
            {"external_id": "84"},
            id="stated id comes",
        ),
        pytest.param([derived(), derived(external_id="9")], {"external_id": "9"}, id="id is filled"),
        pytest.param(
            [
                by_message(recorded_at=MORNING),
                derived(recorded_at=EVENING, recorded_at_source="metadata"),
                derived(),
            ],
            {"recorded_at": MORNING, "recorded_at_source": "message"},
            id="stated time stays",
        ),
        pytest.param(
            [
                derived(recorded_at=MORNING, recorded_at_source="name"),
                derived(recorded_at=EVENING, recorded_at_source="metadata"),
            ],
            {"recorded_at": EVENING, "recorded_at_source": "metadata"},
            id="metadata before name",
        ),
        pytest.param(
            [
                derived(recorded_at=MORNING, recorded_at_source="name"),
                derived(recorded_at=EVENING, recorded_at_source="container"),
            ],
            {"recorded_at": MORNING, "recorded_at_source": "name"},
            id="name before container",
        ),
        pytest.param(
            [by_message(camera="door"), by_message(external_id="84"), by_message(recorded_at=MORNING)],
            {"camera": "door", "external_id": "84", "recorded_at": MORNING},
            id="a word a message",
        ),
    ],
)
def test_of_one_upload_who_said_it_counts(
    database: Database, words: list[tuple[VideoUpload, Collection[str]]], expected: dict[str, Any]
) -> None:
    for upload, stated in words:
        database.transact(record_upload, upload, stated)

    found = video(database)
    assert {name: found[name] for name in expected} == expected


NEWER = replace(
    UPLOAD,
    upload_id="u2",
    version_id="2",
    etag="e2",
    size_bytes=6,
    camera="yard",
    uploaded_at=NOON + timedelta(hours=1),
)


def test_a_newer_upload_replaces_all_but_the_external_id(database: Database) -> None:
    stated = by_message(camera="door", external_id="84", recorded_at=MORNING)
    database.transact(record_upload, *stated)
    database.transact(record_upload, NEWER)
    database.transact(record_upload, *stated)  # a duplicate of the older one

    assert database.transact(latest_upload, "v1") == replace(NEWER, external_id="84")


def test_a_newer_upload_may_bring_an_external_id_and_an_older_one_fill_it(database: Database) -> None:
    database.transact(record_upload, replace(NEWER, external_id=None))
    database.transact(record_upload, *by_message(external_id="84", camera="door", recorded_at=MORNING))
    assert database.transact(latest_upload, "v1") == replace(NEWER, external_id="84")

    database.transact(record_upload, replace(UPLOAD, external_id="85"))
    assert video(database)["external_id"] == "84"

    newest = replace(NEWER, upload_id="u3", external_id="86", uploaded_at=NOON + timedelta(hours=2))
    database.transact(record_upload, newest)
    assert database.transact(latest_upload, "v1") == newest


def test_uploads_within_one_second_are_not_mixed(database: Database) -> None:
    second = replace(NEWER, uploaded_at=NOON, camera=UPLOAD.camera)
    database.transact(record_upload, UPLOAD)
    database.transact(record_upload, second)
    assert database.transact(latest_upload, "v1") == second

    database.transact(record_upload, UPLOAD)  # a duplicate
    database.transact(mark_running, "u1", "r1")  # touches the older one's row last

    assert database.transact(latest_upload, "v1") == second
    assert database.transact(current_status, "v1")[0]["upload_id"] == "u2"
    found = video(database)
    assert (found["version_id"], found["etag"], found["size_bytes"]) == ("2", "e2", 6)


def test_of_uploads_within_one_second_the_later_one_is_current(database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    database.transact(record_upload, replace(NEWER, uploaded_at=NOON))

    assert publish(database, [event_row("e9")], analysis_id="a2", upload_id="u2").current
    late = replace(ANALYSIS, requested_at=NOON + timedelta(days=1))
    assert not database.transact(publish_analysis, late, ROWS, FACTS).current


def test_published_events_follow_what_is_learnt_later(database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    publish(database)
    assert clocks(database) == [("gate", None, None)] * 2

    database.transact(record_upload, *by_message(camera="door", recorded_at=MORNING))

    second = timedelta(seconds=1)
    assert clocks(database) == [
        ("door", MORNING, MORNING + second),
        ("door", MORNING + 2 * second, MORNING + 3 * second),
    ]
    database.transact(record_upload, UPLOAD)
    assert clocks(database)[0] == ("door", MORNING, MORNING + second)


def test_a_newer_uploads_camera_is_not_the_older_ones_events(database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    publish(database)

    database.transact(record_upload, replace(NEWER, recorded_at=MORNING, recorded_at_source="name"))

    assert clocks(database) == [("gate", None, None)] * 2


def test_publishing_uses_what_is_known_by_then(database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    database.transact(record_upload, *by_message(camera="door", recorded_at=MORNING))
    stale = replace(FACTS, recorded_at=EVENING, recorded_at_source="container")
    rows = [{**event_row("e1"), "started_at": EVENING, "ended_at": EVENING + timedelta(seconds=1)}]

    publish(database, rows, stale, events=1)

    assert clocks(database) == [("door", MORNING, MORNING + timedelta(seconds=1))]
    assert video(database)["recorded_at_source"] == "message"


def test_publishing_adds_the_containers_time_where_none_is_known(database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    tagged = replace(FACTS, recorded_at=EVENING, recorded_at_source="container")

    publish(database, [event_row("e1")], tagged)

    assert clocks(database) == [("gate", EVENING, EVENING + timedelta(seconds=1))]
    assert video(database)["recorded_at"] == EVENING


def test_an_older_uploads_analysis_keeps_its_own_snapshot(database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    database.transact(record_upload, replace(NEWER, recorded_at=MORNING, recorded_at_source="name"))
    tagged = replace(FACTS, width=1, recorded_at=EVENING, recorded_at_source="message")

    publish(database, ROWS, tagged)

    assert clocks(database) == [("gate", None, None)] * 2
    found = video(database)
    assert (found["recorded_at"], found["width"]) == (MORNING, None)


def test_the_same_bytes_uploaded_again_take_their_events_along(database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    publish(database)
    database.transact(record_upload, NEWER)

    again = publish(database, upload_id="u2", run_id="r2")

    assert (again.inserted, again.current) == (False, True)
    assert [row["upload_id"] for row in database.transact(analyses_of, "v1")] == ["u2"]
    assert {camera for camera, *_ in clocks(database)} == {"yard"}
    database.transact(record_upload, replace(NEWER, camera="roof"), ["camera"])
    assert {camera for camera, *_ in clocks(database)} == {"roof"}


def test_a_runs_configuration_holds_an_upload_or_the_error_names_its_fields() -> None:
    upload = replace(UPLOAD, external_id="84", recorded_at=MORNING, recorded_at_source="name")
    stored = json.loads(json.dumps(upload.to_json()))
    assert VideoUpload.from_json(stored) == upload

    with pytest.raises(ConfigurationError) as caught:
        VideoUpload.from_json({**stored, "size_bytes": "many"} | {"key": None})
    assert "key: Input should be a valid string; size_bytes: Input should be" in str(caught.value)
