"""What a materialisation of `events` says of the analysis before it."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from capstone_dagster.analysis import Event
from capstone_dagster.assets.shown.changes import of_comparison
from capstone_dagster.assets.steps.references import PublishedAnalysis
from capstone_dagster.services import Services
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.events import events_of
from capstone_dagster.storage.videos import record_upload
from tests.storage.samples import NOON, UPLOAD, event_row, publish

LATER = NOON + timedelta(minutes=1)


@pytest.fixture
def services(database: Database) -> Services:
    return Services(read_settings(database_url=database.engine.url.render_as_string(hide_password=False)))


def published(database: Database, analysis_id: str) -> tuple[PublishedAnalysis, list[Event]]:
    events = [Event.of(row) for row in database.transact(events_of, analysis_id)]
    return PublishedAnalysis(analysis_id, "v1", len(events), NOON, True), events


def test_compare_counts_what_changed_since_the_previous_analysis(services: Services) -> None:
    database = services.database
    database.transact(record_upload, UPLOAD)
    publish(database)
    assert of_comparison(*published(database, "a1"), services) == {}

    publish(database, [event_row("f1"), event_row("f2", 60_000)], analysis_id="a2", requested_at=LATER)
    shown = of_comparison(*published(database, "a2"), services)

    assert shown["compared_with"] == "a1"
    counts = [shown[f"{what}_events"] for what in ("matched", "moved", "appeared", "vanished")]
    assert counts == [1, 0, 1, 1]
    table = shown["changes"].value  # type: ignore[union-attr]
    assert "| appeared | 60.0 s | 61.0 s | person | 1 |" in table
    assert "| vanished | 2.0 s | 3.0 s | person | 1 |" in table
    assert "![" not in table
    assert "capstone compare v1 --from a1 --to a2 --html" in table


def test_compare_of_what_has_not_changed_says_so(services: Services) -> None:
    database = services.database
    database.transact(record_upload, UPLOAD)
    publish(database, [event_row("e1")])
    publish(database, [event_row("f1")], analysis_id="a2", requested_at=LATER)

    shown = of_comparison(*published(database, "a2"), services)

    assert [shown[f"{what}_events"] for what in ("matched", "moved", "appeared", "vanished")] == [1, 0, 0, 0]
    assert "| appeared |" not in shown["changes"].value  # type: ignore[union-attr]


def test_compare_shows_what_appeared_vanished_and_moved(services: Services) -> None:
    def seen(event_id: str, start_ms: int, picture: str) -> dict[str, object]:
        return event_row(event_id, start_ms) | {"thumbnail_key": picture}

    database = services.database
    database.transact(record_upload, UPLOAD)
    before = [
        seen("e1", 0, "d1/same.jpg"),
        seen("e2", 9000, "d1/gone.jpg"),
        seen("e3", 20_000, "d1/moved.jpg"),
    ]
    publish(database, before)
    after = [seen("f1", 0, "same.jpg"), seen("f2", 60_000, "new.jpg")]
    after.append(seen("f3", 20_000, "moved.jpg") | {"end_ms": 22_500})
    publish(database, after, analysis_id="a2", requested_at=LATER)
    shown = of_comparison(
        *published(database, "a2"), services, prefix="d2/", picture=lambda key: f"![]({key})" if key else ""
    )

    table = shown["changes"].value  # type: ignore[union-attr]
    assert "| vanished | 9.0 s | 10.0 s | person | 1 |  | ![](d1/gone.jpg) |" in table
    assert "| appeared | 60.0 s | 61.0 s | person | 1 |  | ![](d2/new.jpg) |" in table
    assert "track 1 | ![](d1/moved.jpg) ![](d2/moved.jpg) |" in table
    assert "same.jpg" not in table


def test_compare_leaves_out_what_another_upload_showed(services: Services) -> None:
    database = services.database
    newer = replace(UPLOAD, upload_id="u2", version_id="2", etag="e2", uploaded_at=NOON + timedelta(hours=1))
    database.transact(record_upload, UPLOAD)
    publish(database)
    database.transact(record_upload, newer)
    publish(database, [event_row("f1")], analysis_id="a2", upload_id="u2")

    assert of_comparison(*published(database, "a2"), services) == {}


def test_compare_that_cannot_be_made_fails_nothing(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.database.transact(record_upload, UPLOAD)
    publish(services.database)
    done = published(services.database, "a1")

    def broken(*_: object) -> list[dict[str, object]]:
        raise RuntimeError("away")

    monkeypatch.setattr(services.database, "transact", broken)
    assert of_comparison(*done, services) == {}
