"""docs/consume.md: what it lists is what there is, and its client follows what is analysed, as a reader."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import botocore.session
import psycopg
import pytest
import sqlalchemy as sa

from capstone_dagster.outbox.message import attributes, body
from capstone_dagster.settings import Settings
from capstone_dagster.storage.analyses import analyses_of, publish_analysis
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.outbox import Notice
from capstone_dagster.storage.schema import STATES
from capstone_dagster.storage.video_status import mark_failed
from capstone_dagster.storage.videos import record_upload
from tests.storage.samples import ANALYSIS, FACTS, NOON, UPLOAD, event_row

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "consume.md").read_text()
CLIENT = DOCS / "examples" / "consume.py"


def tables() -> list[dict[str, str]]:
    """Each table of the page: first column's words in backticks → second column."""
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", PAGE, re.MULTILINE):
        rows = [line.strip("|").split("|") for line in table.splitlines()[2:]]
        found.append({name: row[1].strip() for row in rows for name in re.findall(r"`(\w[\w-]*)`", row[0])})
    return found


def example() -> dict[str, Any]:
    [block] = re.findall(r"^```jsonc\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    shown: dict[str, Any] = json.loads(block)
    return shown


@pytest.mark.parametrize(("view", "number"), [("current_status", 0), ("current_events", 2)])
def test_the_views_columns_are_listed_with_their_types(database: Database, view: str, number: int) -> None:
    columns = (
        "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
        f"WHERE attrelid = 'capstone.{view}'::regclass AND attnum > 0 ORDER BY attnum"
    )
    kinds = {"timestamp with time zone": "timestamptz"}
    with database.engine.connect() as connection:
        there = {name: kinds.get(kind, kind) for name, kind in connection.execute(sa.text(columns))}
    assert list(tables()[number].items()) == list(there.items())


def test_the_states_are_listed() -> None:
    assert tuple(tables()[1]) == STATES


def test_the_notices_fields_are_listed() -> None:
    assert set(tables()[3]) == set(example())


def test_the_example_is_a_notice_as_it_is_sent() -> None:
    shown = example()
    payload = {name: shown[name] for name in ("analysis_id", "events", "current", "run_id")}
    times = {name: datetime.fromisoformat(shown[name]) for name in ("at", "uploaded_at", "recorded_at")}
    same = ("notice_id", "kind", "video_id", "upload_id", "external_id", "bucket", "key", "camera")
    notice = Notice(
        **{name: shown[name] for name in same},
        payload=payload,
        created_at=times["at"],
        refusals=0,
        uploaded_at=times["uploaded_at"],
        recorded_at=times["recorded_at"],
    )
    settings = Settings(browse_url="https://events.example.com/")
    assert list(json.loads(body(notice, settings.video_page(notice.video_id))).items()) == list(shown.items())
    for name in attributes(replace(notice, payload={"failure_class": "internal"})):
        assert f"`{name}`" in PAGE.partition("are message attributes")[0].splitlines()[-1]


def test_a_notice_of_a_deleted_video_is_still_one() -> None:
    gone = dict.fromkeys(("external_id", "bucket", "key", "camera", "recorded_at", "uploaded_at"))
    notice = Notice(1, "video.failed", "v", "u", {"message": "x" * 9999}, NOON, 0, **gone)
    received = json.loads(body(notice, None))
    assert (received["video_id"], received["key"], len(received["message"])) == ("v", None, 2000)
    assert attributes(notice) == {"kind": "video.failed", "video_id": "v", "tried_again": "false"}


def test_aws_knows_the_command_and_its_filter() -> None:
    [line] = re.findall(r"^```bash\n(.*?)\n```", PAGE, re.MULTILINE | re.DOTALL)
    members = set(
        botocore.session.get_session()
        .get_service_model("sns")
        .operation_model("Subscribe")
        .input_shape.members
    )
    assert line.startswith("aws sns subscribe ")
    assert {"TopicArn", "Protocol", "Endpoint", "Attributes"} <= members
    [filtered] = re.findall(r"--attributes '(.*)'$", line)
    assert json.loads(json.loads(filtered)["FilterPolicy"]) == {
        "kind": ["video.analyzed"],
        "camera": ["gate"],
    }


@pytest.fixture
def reader(database: Database) -> Iterator[str]:
    """The address of a user who was made as the page says."""
    [made] = re.findall(r"^```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    name = f"backend_{uuid4().hex[:8]}"  # roles are the whole server's
    admin = database.engine.url.set(drivername="postgresql")
    with psycopg.connect(admin.render_as_string(hide_password=False), autocommit=True) as connection:
        for statement in made.replace("backend", name).strip().split(";")[:-1]:
            connection.execute(statement)  # type: ignore[call-overload]
        yield admin.set(username=name, password="choose-one").render_as_string(hide_password=False)
        connection.execute(f"DROP OWNED BY {name}; DROP ROLE {name}")  # type: ignore[arg-type]


def test_the_reader_reads_the_views_and_nothing_else(reader: str, database: Database) -> None:
    with psycopg.connect(reader, autocommit=True) as connection:
        connection.execute("SELECT * FROM capstone.current_events, capstone.current_status")
        for table in ("videos", "analyses", "events", "video_status", "outbox"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(f"SELECT * FROM capstone.{table}")  # type: ignore[call-overload]


def publish(database: Database, video: str, starts_ms: list[int], analysis: str) -> None:
    database.transact(record_upload, replace(UPLOAD, upload_id=f"u-{video}", video_id=video))
    count = len(database.transact(analyses_of, video))
    analysed = replace(
        ANALYSIS,
        analysis_id=analysis,
        video_id=video,
        upload_id=f"u-{video}",
        run_id=f"run-{analysis}",
        requested_at=NOON + timedelta(minutes=count),
    )
    rows = [event_row(f"{analysis}-{number:03}", start) for number, start in enumerate(starts_ms)]
    database.transact(publish_analysis, analysed, rows, FACTS)


def test_the_client_follows_what_is_analysed(reader: str, database: Database, tmp_path: Path) -> None:
    def look() -> list[tuple[str, list[str]]]:
        state = tmp_path / "cursor.json"
        done = subprocess.run(
            [sys.executable, CLIENT, reader, "--once", "--page", "2", "--state", state],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        received = [json.loads(line) for line in done.stdout.splitlines()]
        return [(video["video_id"], [event["event_id"] for event in video["events"]]) for video in received]

    assert look() == []
    publish(database, "v1", [0, 500, 500, 500, 900], "a1")  # several begin at once, across pages
    publish(database, "v2", [], "a2")
    publish(database, "v3", [7], "a3")
    assert look() == [("v1", [f"a1-{n:03}" for n in range(5)]), ("v2", []), ("v3", ["a3-000"])]
    assert look() == []

    publish(database, "v4", [1], "a4")
    publish(database, "v1", [100], "a5")  # analysed again
    database.transact(record_upload, replace(UPLOAD, upload_id="u9", video_id="v9"))
    database.transact(mark_failed, "u9", "r9", failure_class="internal", message="x")
    assert look() == [("v4", ["a4-000"]), ("v1", ["a5-000"])]
    assert look() == []

    # One whose transaction began before the last notice, and was committed after it.
    publish(database, "v5", [1], "a6")
    with database.engine.begin() as connection:
        earlier = (
            "UPDATE capstone.video_status SET updated_at = now() - interval '1 minute' WHERE video_id = 'v5'"
        )
        connection.execute(sa.text(earlier))
    assert look() == [("v5", ["a6-000"])]
