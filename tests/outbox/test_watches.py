"""People hear of what they watch: which events match, one message for each upload, with its pictures."""

import base64
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from capstone_dagster.outbox.sensor import outbox_sensor
from capstone_dagster.services import Services
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.objects import FileObjects
from capstone_dagster.storage.outbox import Notice, outbox_backlog, send_notices
from capstone_dagster.storage.videos import record_upload
from capstone_dagster.storage.watches import KIND, all_watches, remove_watch, set_watch
from tests.storage.samples import ANALYSIS, UPLOAD, event_row, publish
from tests.support.command_line import Capstone

# Half past ten in the evening in Seoul.
EVENING = datetime(2026, 1, 2, 13, 30, tzinfo=UTC)
WATCH = dict.fromkeys(("camera", "zone", "label", "from_time", "to_time")) | {"timezone": "Asia/Seoul"}
PICTURE = b"\xff\xd8\xff\xe0 a picture \xff\xd9"


def watch(database: Database, name: str = "w", **changed: Any) -> None:
    database.transact(set_watch, WATCH | {"name": name} | changed)


def arrive(database: Database, number: int, *rows: dict[str, Any], at: datetime | None = EVENING) -> None:
    """An upload with its first analysis."""
    names = {"upload_id": f"u{number}", "video_id": f"v{number}"}
    known = {"recorded_at": at, "recorded_at_source": "message"} if at else {}
    database.transact(record_upload, replace(UPLOAD, **names, **known))
    named = [row | {"event_id": f"{number}-{place}"} for place, row in enumerate(rows)]
    publish(database, named, analysis_id=f"a{number}", **names)


def waiting(database: Database) -> list[Notice]:
    """The notices of watches; taken, and left as they were."""
    found: list[Notice] = []

    def look(notices: Any) -> dict[int, str]:
        found.extend(notices)
        raise LookupError

    with pytest.raises(LookupError):
        database.transact(send_notices, look, most=10, kind=KIND)
    return found


VISIT = {"zones": json.dumps([{"zone": "door", "entered_ms": 0, "dwell_ms": 200}])}
CROSSING = {"crossings": json.dumps([{"line": "door", "at_ms": 0, "direction": "in"}])}


def test_what_is_watched_decides_which_events_are_told_of(database: Database) -> None:
    rows = [
        event_row("", 0),  # 22:30
        event_row("", 2 * 3_600_000) | VISIT,  # 00:30
        event_row("", 12 * 3_600_000) | CROSSING | {"label": "face"},  # 10:30
    ]
    expected = {
        "all": ({}, [0, 1, 2]),
        "camera": ({"camera": "gate"}, [0, 1, 2]),
        "another camera": ({"camera": "yard"}, []),
        "zone or line": ({"zone": "door"}, [1, 2]),
        "another zone": ({"zone": "doo"}, []),
        "label": ({"label": "face"}, [2]),
        "night": ({"from_time": "22:00", "to_time": "06:00"}, [0, 1]),
        "from exactly": ({"from_time": "22:30", "to_time": "22:31"}, [0]),
        "to exactly": ({"from_time": "22:00", "to_time": "22:30"}, []),
        "day": ({"from_time": "06:00", "to_time": "22:00"}, [2]),
        "all day": ({"from_time": "00:00", "to_time": "00:00"}, [0, 1, 2]),
        "together": ({"zone": "door", "from_time": "22:00", "to_time": "06:00"}, [1]),
        "in New York": ({"timezone": "America/New_York", "from_time": "08:00", "to_time": "09:00"}, [0]),
    }
    for name, (changed, _) in expected.items():
        watch(database, name, **changed)
    arrive(database, 1, *rows)

    found = {}
    while len(found) < 20:  # one a time: they are one video's
        seen: list[Notice] = []
        database.transact(
            send_notices, lambda notices, seen=seen: seen.extend(notices) or {}, most=10, kind=KIND
        )
        if not seen:
            break
        found |= {each.payload["watch"]: [m["event_id"] for m in each.payload["matches"]] for each in seen}
    assert found == {name: [f"1-{place}" for place in each] for name, (_, each) in expected.items() if each}


def test_only_a_first_analysis_that_counts_is_told_of(database: Database) -> None:
    watch(database)
    watch(database, "hours", from_time="00:00", to_time="00:00")
    arrive(database, 1, event_row("", 0), at=None)
    [notice] = waiting(database)  # nothing with hours: nobody knows when it was
    assert (notice.payload["watch"], notice.payload["events"], notice.camera) == ("w", 1, "gate")
    publish(
        database, [event_row("again")], analysis_id="a9", requested_at=ANALYSIS.requested_at + timedelta(1)
    )
    assert [each.notice_id for each in waiting(database)] == [notice.notice_id]
    assert database.transact(remove_watch, "w")
    assert [each["name"] for each in database.transact(all_watches)] == ["hours"]


class Chat(BaseHTTPRequestHandler):
    """A service that people read; refuses while `broken`."""

    got: list[dict[str, Any]]
    broken: bool

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(500 if self.broken else 200)
        self.end_headers()
        if not self.broken:
            self.got.append(json.loads(body))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def chat() -> Iterator[tuple[type[Chat], str]]:
    handler = type("Service", (Chat,), {"got": [], "broken": False})
    server = HTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield handler, f"json://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def tick(database: Database, folder: Path, urls: str, cursor: str | None = None) -> str:
    url = database.engine.url.render_as_string(hide_password=False)
    services = Services(
        read_settings(
            database_url=url,
            derived_url=folder.as_uri(),
            message_urls=urls,
            browse_url="https://look.example.com/",
            timezone="Asia/Seoul",
        )
    )
    with dg.build_sensor_context(cursor=cursor, resources={"services": services}) as context:
        result = outbox_sensor(context)
    services.database.close()
    assert isinstance(result, dg.SensorResult)
    assert result.skip_reason is not None
    return str(result.skip_reason.skip_message)


def test_people_get_one_message_for_each_upload_with_pictures(
    database: Database, tmp_path: Path, chat: tuple[type[Chat], str]
) -> None:
    service, url = chat
    FileObjects(tmp_path).put_bytes("detections/d1/1.jpg", PICTURE)
    watch(database, "night\u202e", zone="door", from_time="22:00", to_time="06:00")
    picture = {"thumbnail_key": "detections/d1/1.jpg"}
    arrive(database, 1, *(event_row("", 1000 * n) | VISIT | picture for n in range(12)))
    arrive(database, 2, event_row("", 0) | VISIT | {"thumbnail_key": "detections/gone.jpg"})
    service.broken = True
    assert "refused" in tick(database, tmp_path, url)
    service.broken = False
    with database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE capstone.outbox SET try_at = NULL")

    assert tick(database, tmp_path, url) == "2 notices sent."
    first, second = sorted(service.got, key=lambda each: -len(each["message"]))
    assert first["title"] == "night\\u202e: 12 at gate"
    lines = first["message"].splitlines()
    assert lines[0] == "2026-01-02 22:30:00+09:00: person, door https://look.example.com/events/1-0"
    assert (len(lines), lines[-1]) == (11, "and 2 more")
    assert [base64.b64decode(each["base64"]) for each in first["attachments"]] == [PICTURE]
    assert second["attachments"] == []
    # Other notices wait for their topic, and none is sent twice.
    assert tick(database, tmp_path, url) != "2 notices sent."
    assert len(service.got) == 2
    assert database.transact(outbox_backlog).waiting == 4


def test_a_url_that_nothing_understands_is_named_without_being_shown(
    database: Database, tmp_path: Path
) -> None:
    watch(database)
    arrive(database, 1, event_row("", 0))
    said = tick(database, tmp_path, "nonsense://secret")
    assert "number 1 is no URL" in said
    assert "secret" not in said


def test_watches_are_added_shown_and_removed(
    database: Database, capstone: Capstone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPSTONE_DATABASE_URL", database.engine.url.render_as_string(hide_password=False))
    added = capstone("watch", "add", "night", "--zone", "door", "--from", "22:00", "--to", "6:00")
    assert (added.code, added.out) == (0, "night is watched.\n")
    assert capstone("watch", "list").out == "night: zone door, 22:00 to 06:00 Asia/Seoul\n"
    [row] = json.loads(capstone("watch", "list", "--json").out)
    assert (row["from_time"], row["to_time"], row["camera"]) == ("22:00:00", "06:00:00", None)
    assert "belong together" in capstone("watch", "add", "x", "--from", "22:00").err
    assert "no time of day" in capstone("watch", "add", "x", "--from", "25:00", "--to", "1:00").err
    assert capstone("watch", "remove", "night").code == 0
    assert "no watch" in capstone("watch", "remove", "night").err
