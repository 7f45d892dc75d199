"""Queries of consumers find their events by an index: none reads the whole table."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
import sqlalchemy as sa

from bench.gallery import FILL
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.events import EventFilter, find_events
from capstone_dagster.web import reading
from tests.test_docs import ROOT, blocks

# As few as PostgreSQL decides alike for as with a million: `bench/gallery.py` and the same queries show that.
EVENTS = 30_000
DAY = (datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 3, tzinfo=UTC))
Ask = Callable[[sa.Connection], object]
ASKED: dict[str, Ask] = {
    "gallery": lambda connection: reading.gallery(connection, reading.Choice()),
    "gallery of a camera": lambda connection: reading.gallery(connection, reading.Choice(camera="camera 7")),
    "gallery of a day": lambda connection: reading.gallery(
        connection, reading.Choice(since=DAY[0], until=DAY[1])
    ),
    "events of a video": lambda connection: find_events(connection, EventFilter(videos=("v7",))),
    "events of a camera and day": lambda connection: find_events(
        connection, EventFilter(camera="camera 7", since=DAY[0], until=DAY[1])
    ),
    "page of a video": lambda connection: reading.events_of_video(connection, "v7"),
    "page of an event": lambda connection: reading.event(connection, "e7"),
}


@pytest.fixture
def filled(database: Database) -> Database:
    with database.transaction() as connection:
        for statement in FILL.split(";\n"):
            if statement.strip():
                connection.execute(sa.text(statement), {"videos": EVENTS // 1000, "events": EVENTS})
    return database


def plans(connection: sa.Connection, ask: Ask) -> list[str]:
    """The plans of every statement that a function executes."""
    seen: list[tuple[str, Any]] = []

    def note(_: object, __: object, statement: str, parameters: object, *___: object) -> None:
        seen.append((statement, parameters))

    sa.event.listen(connection, "before_cursor_execute", note)
    ask(connection)
    sa.event.remove(connection, "before_cursor_execute", note)
    return [
        "\n".join(connection.exec_driver_sql(f"EXPLAIN {statement}", parameters).scalars())
        for statement, parameters in seen
    ]


def test_no_query_of_consumers_reads_all_events(filled: Database) -> None:
    shown = blocks("sql", [ROOT / "docs" / "consume.md"])
    asked = ASKED | {block: lambda connection, sql=block: connection.execute(sa.text(sql)) for block in shown}  # type: ignore[misc]
    with filled.transaction() as connection:
        for name, ask in asked.items():
            for plan in plans(connection, ask):
                assert "Seq Scan on events" not in plan, f"{name}\n{plan}"

        [whole] = plans(connection, lambda each: find_events(each, EventFilter(labels=("person",))))
        assert "Seq Scan on events" in whole  # what has no index is recognised as such
