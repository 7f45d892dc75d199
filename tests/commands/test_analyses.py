"""`capstone analyses`, `compare` and `rollback`: which results there are, how they differ, the way back."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from capstone_dagster.storage.analyses import analyses_of, publish_analysis
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.videos import record_upload
from tests.storage.samples import ANALYSIS, FACTS, NOON, UPLOAD, event_row, notices, publish
from tests.support.command_line import Capstone
from tests.support.dagster_home import dagster_home

FIRST, SECOND = "a1" + "0" * 30, "a2" + "0" * 30
# A pixel is a picture too.
JPEG = b"\xff\xd8\xff\xe0 not looked into \xff\xd9"


@pytest.fixture
def database(database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Database:
    """A video with two analyses: of three events one stays, one moves, one vanishes; one appears."""
    url = database.engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("CAPSTONE_DATABASE_URL", url)
    derived = tmp_path / "derived"
    (derived / "detections" / "d1").mkdir(parents=True)
    (derived / "detections" / "d1" / "1.jpg").write_bytes(JPEG)
    monkeypatch.setenv("CAPSTONE_DERIVED_URL", derived.as_uri())
    database.transact(record_upload, replace(UPLOAD, external_id="84"), stated=["external_id"])
    first = [
        event_row("e1", 0),
        event_row("e2", 10_000) | {"end_ms": 15_000},
        event_row("e3", 30_000) | {"thumbnail_key": "detections/d1/1.jpg"},
    ]
    second = [
        event_row("f1", 0),
        event_row("f2", 10_000) | {"end_ms": 18_000},
        event_row("f4", 50_000) | {"label": "<b>", "thumbnail_key": "detections/d2/gone.jpg"},
    ]
    publish(database, first, analysis_id=FIRST, events=3)
    publish(
        database,
        second,
        analysis_id=SECOND,
        events=3,
        model="better.pt",
        requested_at=NOON + timedelta(minutes=1),
    )
    return database


def current(database: Database) -> list[str]:
    return [row["analysis_id"] for row in database.transact(analyses_of, "v1") if row["is_current"]]


def test_analyses_are_listed_with_what_made_them(capstone: Capstone, database: Database) -> None:
    rows = json.loads(capstone("analyses", "84", "--json").out)
    header, *lines = csv.reader(io.StringIO(capstone("analyses", "v1", "--csv").out))
    table = capstone("analyses", "v1").out

    assert [(row["analysis_id"], row["is_current"], row["model"]) for row in rows] == [
        (FIRST, False, "m"),
        (SECOND, True, "better.pt"),
    ]
    assert rows[0]["settings"] == {"sample_fps": 5}
    assert header[0] == "analysis_id"
    assert [line[0] for line in lines] == [FIRST, SECOND]
    assert re.search(r"current +a20000000000 +better.pt +5 frames/s +3 ", table)


def test_compare_says_which_events_appeared_vanished_and_moved(
    capstone: Capstone, database: Database
) -> None:
    comparison = json.loads(capstone("compare", "84", "--json").out)
    table = capstone("compare", "v1").out

    assert (comparison["from"]["analysis_id"], comparison["to"]["analysis_id"]) == (FIRST, SECOND)
    assert comparison["counts"] == {"matched": 2, "moved": 1, "appeared": 1, "vanished": 1}
    assert [event["event_id"] for event in comparison["appeared"]] == ["f4"]
    assert [event["event_id"] for event in comparison["vanished"]] == ["e3"]
    (moved,) = comparison["moved"]
    assert (moved["before"]["event_id"], moved["after"]["event_id"]) == ("e2", "f2")
    assert (moved["start_shift_ms"], moved["end_shift_ms"]) == (0, 3000)
    assert "2 events match, 1 of them moved; 1 appeared, 1 vanished." in table
    assert re.search(r"moved\s+0:10.0\s+0:15.0\s+person\s+1\s+0.90\s+ends \+3.0 s at 0:18.0", table)
    assert re.search(r"vanished\s+0:30.0", table)


def test_compare_takes_beginnings_of_ids_either_way_round(capstone: Capstone, database: Database) -> None:
    comparison = json.loads(capstone("compare", "v1", "--from", "a2", "--to", "a1", "--json").out)
    assert [event["event_id"] for event in comparison["appeared"]] == ["e3"]
    same = capstone("compare", "v1", "--from", "a2", "--to", SECOND)
    assert "3 events match, 0 of them moved; 0 appeared, 0 vanished." in same.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("v9",), "no video 'v9'"),
        (("v1", "--from", "a"), "begins the ids of several analyses"),
        (("v1", "--to", "b"), "begins the id of no analysis"),
    ],
)
def test_compare_refuses_what_it_cannot_find(
    capstone: Capstone, database: Database, arguments: tuple[str, ...], message: str
) -> None:
    outcome = capstone("compare", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in " ".join(outcome.err.replace("│", " ").split())


def test_compare_needs_two(capstone: Capstone, database: Database) -> None:
    database.transact(record_upload, replace(UPLOAD, upload_id="u7", video_id="v7", key="gate/b.mp4"))
    assert "has no analysis yet" in " ".join(capstone("compare", "v7").err.replace("│", " ").split())
    alone = replace(ANALYSIS, analysis_id="c1", video_id="v7", upload_id="u7")
    database.transact(publish_analysis, alone, [event_row("g1")], FACTS)
    assert "only one analysis" in " ".join(capstone("compare", "v7").err.replace("│", " ").split())


def test_compare_writes_a_page_that_needs_nothing_else(
    capstone: Capstone, database: Database, tmp_path: Path
) -> None:
    page = tmp_path / "new" / "page.html"
    assert capstone("compare", "v1", "--html", page).code == 0

    text = page.read_text(encoding="utf-8")
    assert base64.b64encode(JPEG).decode() in text
    assert text.count("<img ") == 1
    assert "no picture" in text  # one that is gone
    assert "&lt;b&gt;" in text
    assert "<b>" not in text
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|<script""", text)
    for kind, count in (("vanished", 1), ("appeared", 1), ("moved", 1)):
        assert f'<h2 id="{kind}">{count} {kind}' in text


def test_rollback_makes_the_earlier_one_current_and_says_so(capstone: Capstone, database: Database) -> None:
    outcome = capstone("rollback", "84")

    assert outcome.code == 0
    assert "a10000000000 (m, 5 frames/s) is current again, with 3 events." in outcome.out
    assert "Before it was a20000000000 (better.pt" in outcome.out
    assert current(database) == [FIRST]
    assert notices(database)[-1] == "video.analyzed"

    # What it replaced is what the next comparison is about.
    compared = json.loads(capstone("compare", "v1", "--json").out)
    assert (compared["from"]["analysis_id"], compared["to"]["analysis_id"]) == (SECOND, FIRST)


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dg.DagsterInstance]:
    """Dagster's records, in which the second analysis was published by a run of old."""
    monkeypatch.setenv("DAGSTER_HOME", dagster_home(tmp_path / "dagster"))
    with dg.DagsterInstance.get() as instance:
        made = dg.AssetMaterialization("events", partition="v1", metadata={"analysis_id": SECOND})
        instance.report_runless_asset_event(made)
        yield instance


def shown(instance: dg.DagsterInstance) -> list[dg.AssetMaterialization]:
    """What the page of the partition lists, the latest first."""
    of_partition = dg.AssetRecordsFilter(dg.AssetKey("events"), asset_partitions=["v1"])
    records = instance.fetch_materializations(of_partition, limit=10).records
    return [record.asset_materialization for record in records if record.asset_materialization]


def test_rollback_and_the_way_forward_show_in_dagster_who_made_what_current(
    capstone: Capstone, database: Database, instance: dg.DagsterInstance
) -> None:
    assert capstone("rollback", "84", "--by", "kim").code == 0
    # Current already: nothing has changed, and nothing is shown.
    assert capstone("rollback", "84", "--to", "a1", "--by", "lee").code == 0
    assert capstone("rollback", "84", "--to", "a2", "--by", "lee").code == 0

    forward, back, _published = shown(instance)
    assert back.description == f"Made current again by kim: {FIRST} in place of {SECOND}."
    values = {name: value.value for name, value in back.metadata.items()}
    assert (
        values.items()
        >= {
            "analysis_id": FIRST,
            "replaced": SECOND,
            "rolled_back_by": "kim",
            "events": 3,
            "current": True,
            "model": "m",
        }.items()
    )
    assert "| 30.0 s" in str(values["table"])
    assert base64.b64encode(JPEG).decode() not in str(values["table"])  # what is no picture is left out
    assert [forward.metadata[name].value for name in ("analysis_id", "replaced", "rolled_back_by")] == [
        SECOND, FIRST, "lee",
    ]  # fmt: skip


def test_rollback_stands_where_dagster_cannot_be_told(
    capstone: Capstone, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DAGSTER_HOME", raising=False)

    outcome = capstone("rollback", "84")

    assert outcome.code == 0
    assert "Dagster's pages do not show it: DAGSTER_HOME is not set" in outcome.err
    assert current(database) == [FIRST]


def test_rollback_twice_is_not_forward(capstone: Capstone, database: Database) -> None:
    assert capstone("rollback", "v1", "--to", "a1").code == 0
    before = notices(database)

    named = capstone("rollback", "v1", "--to", "a1")
    unnamed = capstone("rollback", "v1")

    assert (named.code, unnamed.code) == (0, 2)
    assert "is current already" in named.out
    assert "no analysis of v1 was published before the current one" in " ".join(
        unnamed.err.replace("│", " ").split()
    )
    assert current(database) == [FIRST]
    assert notices(database) == before
    assert capstone("rollback", "v1", "--to", "a2").code == 0
    assert current(database) == [SECOND]


def test_rollback_refuses_another_uploads_analysis_in_one_sentence(
    capstone: Capstone, database: Database
) -> None:
    newer = replace(UPLOAD, upload_id="u2", version_id="2", etag="e2", uploaded_at=NOON + timedelta(hours=1))
    database.transact(record_upload, newer)
    publish(database, [event_row("h1")], analysis_id="b1", upload_id="u2")

    refused = capstone("rollback", "v1", "--to", "a1")

    assert refused.code == 1
    assert "Error: Analysis a1" in refused.err
    assert "overwritten since" in refused.err
    assert current(database) == ["b1"]
