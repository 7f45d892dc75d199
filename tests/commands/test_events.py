"""`capstone events`: who was where, and when; `submit --wait`, which ends with the same events."""

import json
import re
from dataclasses import replace
from datetime import datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from capstone_dagster.intake.identity import upload_id, video_id
from capstone_dagster.storage.analyses import publish_analysis
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.sources import head_source
from capstone_dagster.storage.video_status import mark_failed
from capstone_dagster.storage.videos import record_upload
from tests.conftest import Aws
from tests.storage.samples import ANALYSIS, FACTS, UPLOAD, event_row
from tests.support.command_line import Capstone

SEOUL = ZoneInfo("Asia/Seoul")
YESTERDAY = datetime.now(SEOUL).date() - timedelta(days=1)
LONG = "a-long-name-of-a-camera-that-fills-a-terminal-20260122_142315-and-goes-on-to-1a2b3c4d"


@pytest.fixture
def database(database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    """At the gate yesterday at noon and at one, a face in the yard now; one video whose time is unknown."""
    monkeypatch.setenv("CAPSTONE_DATABASE_URL", database.engine.url.render_as_string(hide_password=False))
    noon = datetime.combine(YESTERDAY, time(12), SEOUL)
    for number, camera, recorded_at, rows in (
        (1, "gate", noon, [event_row("noon"), event_row("one", 3_600_000)]),
        (2, "yard", datetime.now(SEOUL), [event_row("now") | {"camera": "yard", "label": "face"}]),
        (3, "gate", None, [event_row("undated")]),
    ):
        video = LONG if number == 3 else f"v{number}"
        upload = replace(
            UPLOAD, upload_id=f"u{number}", video_id=video, camera=camera, key=f"{camera}/{video}"
        )
        stated = [] if recorded_at is None else ["recorded_at"]
        source = None if recorded_at is None else "message"
        upload = replace(upload, recorded_at=recorded_at, recorded_at_source=source)
        database.transact(record_upload, upload, stated=stated)
        analysis = replace(ANALYSIS, analysis_id=f"a{number}", video_id=video, upload_id=f"u{number}")
        database.transact(publish_analysis, analysis, rows, FACTS)
    return database


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("", ["undated", "noon", "one", "now"]),
        ("v1 v2", ["noon", "one", "now"]),
        ("--camera gate --since yesterday --until today", ["noon", "one"]),
        (f"--since {YESTERDAY}T12:30 --label person", ["one"]),
        ("--label face --label person --limit 2", ["one", "now"]),
        ("--camera gate --limit 1", ["one"]),
        ("--since 1m --camera gate", []),
    ],
)
def test_events_are_chosen_by_place_time_and_label(
    capstone: Capstone, database: Database, words: str, found: list[str]
) -> None:
    outcome = capstone("events", *words.split(), "--json")

    assert [row["event_id"] for row in json.loads(outcome.out)] == found


def test_a_wall_clock_time_is_shown_with_its_source(capstone: Capstone, database: Database) -> None:
    for command in ("events", "status"):
        [line] = {line for line in capstone(command, "v1").out.splitlines() if f"{YESTERDAY} 12:00" in line}
        assert line.rstrip().endswith("the request")
    [row] = json.loads(capstone("status", "v1", "--json").out)
    assert row["recorded_at_source"] == "message"
    assert datetime.fromisoformat(row["recorded_at"]) == datetime.combine(YESTERDAY, time(12), SEOUL)


def test_no_id_is_wrapped_or_cut(capstone: Capstone, database: Database) -> None:
    for command in ("events", "status"):
        [line] = [line for line in capstone(command).out.splitlines() if line.startswith("a-long")]
        assert line.split()[0] == LONG


def test_several_videos_have_their_status_and_an_unknown_one_is_refused(
    capstone: Capstone, database: Database
) -> None:
    rows = json.loads(capstone("status", "v2", "v1", "--json").out)
    assert {row["video_id"] for row in rows} == {"v1", "v2"}
    refused = capstone("status", "v1", "v9", "--json")
    assert (refused.code, refused.out) == (2, "")
    assert "no video 'v9' is known" in refused.err


def test_status_is_shown_again_until_ctrl_c(
    capstone: Capstone, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            raise KeyboardInterrupt
        database.transact(mark_failed, "u4", "r4", failure_class="internal", message="It broke.")

    database.transact(record_upload, replace(UPLOAD, upload_id="u4", video_id="v4"))
    monkeypatch.setattr("capstone_dagster.terminal.sleep", pause)
    outcome = capstone("status", "v4", "--watch")

    assert outcome.code == 0
    assert re.search(r"received.*failed.*v4 failed \(internal\): It broke", outcome.out, re.DOTALL)


@pytest.mark.parametrize("fails", [False, True])
def test_submit_waits_for_the_events_or_the_reason(
    capstone: Capstone,
    aws: Aws,
    database: Database,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fails: bool,
) -> None:
    monkeypatch.setenv("CAPSTONE_RAW_BUCKET", "capstone-raw")
    monkeypatch.setenv("CAPSTONE_UI_URL", "http://dagster.example/")
    (tmp_path / "clip.mp4").write_bytes(b"video")
    video = video_id("capstone-raw", "gate/clip.mp4")
    looks = []

    def analyse(_: float) -> None:
        """What the pipeline does meanwhile: intake at the first look, the end at the second."""
        source = head_source(aws.client("s3"), "capstone-raw", "gate/clip.mp4")
        upload = replace(UPLOAD, upload_id=upload_id(source), video_id=video, key="gate/clip.mp4")
        looks.append(upload)
        if len(looks) == 1:
            upload = replace(upload, recorded_at=datetime.fromisoformat(noon), recorded_at_source="metadata")
            database.transact(record_upload, upload)
        elif fails:
            database.transact(
                mark_failed,
                upload.upload_id,
                "r9",
                failure_class="undecodable-video",
                message="It is no video.",
            )
        else:
            analysis = replace(ANALYSIS, analysis_id="a9", video_id=video, upload_id=upload.upload_id)
            database.transact(publish_analysis, analysis, [event_row("e9")], FACTS)

    monkeypatch.setattr("capstone_dagster.commands.following.time.sleep", analyse)
    noon = f"{YESTERDAY}T12:00+09:00"
    outcome = capstone("submit", tmp_path / "clip.mp4", "--camera", "gate", "--recorded-at", noon, "--wait")

    assert f"http://dagster.example/assets/raw_videos?view=partitions&partition={video}" in outcome.out
    assert outcome.code == int(fails)
    if fails:
        assert f"{video} failed (undecodable-video): It is no video." in outcome.err
    else:
        [line] = [line for line in outcome.out.splitlines() if "person" in line]
        assert re.search(rf"{YESTERDAY} 12:00\S* +the object's metadata", line)
