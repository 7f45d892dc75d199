"""What the pages answer without a browser: order and filters, languages, and what they refuse."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from starlette.requests import Request

import capstone_dagster.web
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.analyses import publish_analysis
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.objects import FileObjects
from capstone_dagster.storage.video_status import mark_queued
from capstone_dagster.storage.videos import record_upload
from capstone_dagster.storage.zones import set_zones
from capstone_dagster.web import reading
from capstone_dagster.web.reading import Choice
from capstone_dagster.web.site import Site
from tests.storage.samples import ANALYSIS, FACTS, UPLOAD, event_row
from tests.web.conftest import serving

MIDNIGHT = datetime(2026, 1, 22, tzinfo=UTC)
FOLDER = Path(capstone_dagster.web.__file__).parent


def at(hours: float, name: str, **changed: Any) -> dict[str, Any]:
    return event_row(name, round(hours * 3_600_000)) | changed


DATED = [
    at(1, "e1", zones='[{"zone": "door", "entered_ms": 0, "dwell_ms": 900}]'),
    at(2, "e2", face_score=0.7, face_box=(0.1, 0.1, 0.2, 0.2)),
    at(2, "e3", label="face", crossings='[{"line": "문", "at_ms": 7200500, "direction": "in"}]'),
    at(26, "e4", best_score=0.5, thumbnail_key="detections/d1/thumbnails/4.jpg"),
]
UNDATED = [event_row("u1", 1000), event_row("u2", 2000)]


@pytest.fixture
def published(database: Database, tmp_path: Path) -> Database:
    """Two videos: the recording time of `v1` is known, that of `v2` is not."""
    known = replace(UPLOAD, recorded_at=MIDNIGHT, recorded_at_source="message")
    unknown = replace(UPLOAD, upload_id="u2", video_id="v2", key="gate/b.mp4")
    for upload, events in ((known, DATED), (unknown, UNDATED)):
        database.transact(record_upload, upload)
        ids = {"upload_id": upload.upload_id, "video_id": upload.video_id, "events": len(events)}
        analysis = replace(ANALYSIS, analysis_id=f"a-{upload.video_id}", **ids)
        database.transact(publish_analysis, analysis, events, FACTS)
    FileObjects(tmp_path).put_bytes("detections/d1/thumbnails/4.jpg", b"jpeg")
    return database


@pytest.fixture
def web(published: Database, tmp_path: Path) -> Iterator[httpx.Client]:
    settings = read_settings(
        timezone="UTC",
        ui_url="http://127.0.0.1:3000",
        browse_url="https://look.example.com",
        raw_bucket="raw",
    )
    signer = SimpleNamespace(generate_presigned_url=lambda call, **given: f"http://s3.example.com/{call}")
    url = published.engine.url.render_as_string(hide_password=False)
    site = Site(settings, Database(url, reader=True), FileObjects(tmp_path), signer)  # type: ignore[arg-type]
    with serving(site) as address, httpx.Client(base_url=address, trust_env=False) as client:
        yield client


def ids(page: str) -> list[str]:
    return re.findall(r'class="card" href="/events/(\w+)"', page)


def test_pages_of_any_size_hold_each_event_once_newest_first(published: Database) -> None:
    expected = {
        Choice(): ["e4", "e3", "e2", "e1", "u2", "u1"],
        Choice(label="face"): ["e3"],
        Choice(score=0.99): [],
        Choice(since=MIDNIGHT, faces=True): ["e3", "e2"],
    }
    with published.transaction() as connection:
        for choice, size, looked_at in product(expected, [1, 2, 3, 5, 6, 7], [1, 2, 3, 100]):
            found, after = [], None
            for _ in range(len(DATED + UNDATED) + 3):
                rows, after = reading.gallery(connection, choice, after, size, looked_at)
                assert len(rows) <= size
                found += [row["event_id"] for row in rows]
                if after is None:
                    break
            assert after is None
            assert found == expected[choice]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["e4", "e3", "e2", "e1", "u2", "u1"]),
        ("camera=gate&label=face", ["e3"]),
        ("camera=elsewhere", []),
        ("zone=door", ["e1"]),
        ("camera=gate&zone=문", ["e3"]),
        ("faces=1", ["e3", "e2"]),
        ("score=0.6", ["e3", "e2", "e1", "u2", "u1"]),
        ("from=2026-01-22T02:00&to=2026-01-23T02:00", ["e3", "e2"]),
        ("camera=&label=&from=&to=&score=", ["e4", "e3", "e2", "e1", "u2", "u1"]),
    ],
)
def test_the_address_chooses_what_the_gallery_shows(
    web: httpx.Client, query: str, expected: list[str]
) -> None:
    assert ids(web.get(f"/?{query}").text) == expected


def test_the_hours_of_a_day_are_counted_and_lead_to_their_events(web: httpx.Client) -> None:
    page = web.get("/?from=2026-01-22T00:00").text
    assert re.findall(r'aria-label="(\d\d:00: [1-9])"', page) == ["01:00: 1", "02:00: 2"]
    [hour] = re.findall(r'<a href="([^"]+)" aria-label="02:00', page)
    assert ids(web.get(hour.replace("&amp;", "&")).text) == ["e3", "e2"]


@pytest.mark.parametrize("query", ["from=noon", "to=99999-01-01", "score=high", "after=nowhere"])
def test_a_wrong_filter_is_refused_with_a_sentence(web: httpx.Client, query: str) -> None:
    answer = web.get(f"/?{query}")
    assert answer.status_code == 400
    assert re.search(r"<p>[A-Z][^<]+\.</p>", answer.text)


def test_neighbours_are_those_of_the_camera_in_time(web: httpx.Client) -> None:
    assert ids(web.get("/events/e2").text) == ["e1", "e2", "e3", "e4"]
    assert ids(web.get("/events/u2").text) == ["u1", "u2"]


def test_an_event_leads_to_its_run_and_picture(web: httpx.Client) -> None:
    assert 'href="http://127.0.0.1:3000/runs/r1"' in web.get("/events/e4").text
    assert web.get("/events/e4/picture").content == b"jpeg"
    assert web.get("/videos/v1/media").headers["location"] == "http://s3.example.com/get_object"


def test_an_event_shows_its_zones_and_the_gallery_offers_them(web: httpx.Client, published: Database) -> None:
    assert "door: 0:00.9" in web.get("/events/e1").text
    assert re.search(r"문: in,", web.get("/events/e3").text)
    assert 'name="zone"' not in web.get("/").text
    row = {"name": "door", "kind": "line", "points": [[0, 0], [1, 1]], "anchor": "CENTER"}
    published.transact(set_zones, "gate", [row])
    assert "<option>door</option>" in web.get("/").text
    assert "<option>door</option>" not in web.get("/?camera=yard").text
    page = web.get("/cameras/gate/zones").text
    assert "{&#34;name&#34;: &#34;door&#34;, &#34;line&#34;: [[0, 0], [1, 1]]" in page
    assert "capstone zones set gate zones.json" in page
    assert web.get("/cameras/no/such/zones").status_code == 404


def test_nothing_of_a_deleted_video_is_served(web: httpx.Client, published: Database) -> None:
    paths = (
        "/events/e4",
        "/events/e4/picture",
        "/videos/v1",
        "/videos/v1/media",
        "/videos/v1/boxes?from=0&to=9",
    )
    assert web.get("/events/e4").status_code == 200
    with published.transaction() as connection:
        for table in ("events", "videos"):
            connection.execute(sa.text(f"DELETE FROM capstone.{table}"))
    assert [web.get(path).status_code for path in (*paths, "/videos/v1/download/spreadsheet")] == [404] * 6


def test_uploads_show_their_place_and_what_to_do_about_failures(
    web: httpx.Client, published: Database
) -> None:
    for number in (1, 2, 3):
        upload = replace(UPLOAD, upload_id=f"n{number}", video_id=f"n{number}", key=f"gate/n{number}.mp4")
        published.transact(record_upload, upload)
    published.transact(mark_queued, {"n2": "r2", "n3": "r3"})
    with published.transaction() as connection:
        connection.execute(
            sa.text(
                "UPDATE capstone.video_status SET state = 'failed', failure_class = 'undecodable-video', "
                "message = 'No video.' WHERE upload_id = 'n1'"
            )
        )
    page = web.get("/uploads?part=now").text
    assert re.findall(r"gate/(n\d)\.mp4</a></td>.*?place (\d)", page, re.DOTALL) == [("n2", "1"), ("n3", "2")]
    assert "No video." in page
    assert "ask for a new upload" in page


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "look.example.com"}, 200),
        ({"Host": "[::1]:3080"}, 200),
        ({"Host": "evil.example.com"}, 403),
        ({"Host": "127.0.0.1.evil.example.com"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
    ],
)
def test_other_names_and_other_sites_are_refused(
    web: httpx.Client, headers: dict[str, str], status: int
) -> None:
    answer = web.get("/", headers=headers)
    assert answer.status_code == status
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
    assert "unsafe" not in policy


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example.com", "http://127.0.0.1:9", "https://look.example.com"]
)
def test_only_own_pages_may_begin_an_upload(web: httpx.Client, origin: str | None) -> None:
    headers = {"Origin": origin} if origin else {}
    assert web.post("/uploads", json={"name": "a.mp4"}, headers=headers).status_code == 403


@pytest.mark.parametrize("asked", ['{"name": "../a.mp4"}', '{"name": "a.exe"}', '{"camera": "x"}', "[]", "{"])
def test_what_is_no_video_is_not_uploaded(web: httpx.Client, asked: str) -> None:
    answer = web.post("/uploads", content=asked, headers={"Origin": str(web.base_url)})
    assert answer.status_code == 400
    assert answer.json()["error"]


def test_a_long_request_is_not_read(web: httpx.Client) -> None:
    answer = web.post("/uploads", content=b" " * 20_000, headers={"Origin": str(web.base_url)})
    assert answer.status_code == 413


def test_every_text_has_its_korean(web: httpx.Client) -> None:
    korean = json.loads((FOLDER / "korean.json").read_text())
    texts = {
        text
        for path in FOLDER.glob("templates/*.j2")
        for pair in re.findall(r"""\bt\((?:"([^"]+)"|'([^']+)')\)""", path.read_text())
        for text in pair
        if text
    }
    for path in FOLDER.glob("*.py"):
        texts |= set(re.findall(r'HTTPException\(\d+, "([^"]+)"\)', path.read_text()))
    assert texts - set(korean) == set()
    page = web.get("/", headers={"Accept-Language": "fr, ko;q=0.8, en;q=0.5"}).text
    assert '<html lang="ko">' in page
    assert "이벤트" in page


def test_pages_link_to_what_observes_the_stack() -> None:
    settings = read_settings(
        observer_urls="Prometheus=http://127.0.0.1:9090,Alertmanager=http://127.0.0.1:9093"
    )
    site = Site(settings, *[SimpleNamespace()] * 3)  # type: ignore[arg-type]
    request = Request({"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""})
    page = bytes(site.page(request, "error.html.j2", status=404, sentence="Nothing here.").body).decode()
    assert '<a href="http://127.0.0.1:9090">Prometheus</a>' in page
    assert '<a href="http://127.0.0.1:9093">Alertmanager</a>' in page
