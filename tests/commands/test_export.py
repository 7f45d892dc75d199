"""`capstone export`: events and detections as files that other tools read."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from capstone_dagster.storage import events
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.event_files import _parquet_schema, no_formula
from capstone_dagster.storage.events import current_events
from capstone_dagster.storage.videos import record_upload
from tests.analysis.test_formats import WALK, assert_coco, write
from tests.assets.samples import SUMMARY
from tests.storage.samples import NOON, UPLOAD, event_row, publish
from tests.support.command_line import Capstone


@pytest.fixture
def database(database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Database:
    """Two videos of two cameras; the clock is known of the first."""
    url = database.engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("CAPSTONE_DATABASE_URL", url)
    database.transact(
        record_upload,
        replace(UPLOAD, external_id="84", recorded_at=NOON, recorded_at_source="message"),
        stated=["external_id", "recorded_at"],
    )
    publish(database, [event_row("e1"), event_row("e2", 60_000)])
    database.transact(
        record_upload, replace(UPLOAD, upload_id="u2", video_id="v2", key="yard/b.mp4", camera="yard")
    )
    publish(
        database,
        [event_row("f1") | {"camera": "yard", "face_score": 0.7, "face_box": (0.1, 0.1, 0.2, 0.2)}],
        analysis_id="a2",
        video_id="v2",
        upload_id="u2",
    )
    folder = tmp_path / "derived" / "detections" / "d1"
    folder.mkdir(parents=True)
    write(folder, WALK)
    (folder / "manifest.json").write_text(json.dumps(asdict(replace(SUMMARY, width=160, height=120))))
    monkeypatch.setenv("CAPSTONE_DERIVED_URL", (tmp_path / "derived").as_uri())
    return database


def read(path: Path, form: str) -> list[dict[str, Any]]:
    if form == "json":
        return json.loads(path.read_text())  # type: ignore[no-any-return]
    if form == "csv":
        return list(csv.DictReader(path.open(newline="")))
    return pq.read_table(path).to_pylist()


def test_one_portion_at_a_time_is_in_memory(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_ROWS_AT_ONCE", 2)
    with database.transaction() as connection:
        _, portions = events.stream_events(connection, events.EventFilter())
        assert [len(portion) for portion in portions] == [2, 1]


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
@pytest.mark.parametrize("portion", [1, 2, 2000])
def test_every_event_is_exported_in_order(
    capstone: Capstone,
    database: Database,
    tmp_path: Path,
    form: str,
    portion: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(events, "_ROWS_AT_ONCE", portion)
    out = tmp_path / "new" / f"events.{form}"

    outcome = capstone("export", "events", "--format", form, "--out", out)

    assert outcome.code == 0
    assert "Wrote 3 events" in outcome.err
    rows = read(out, form)
    assert [row["event_id"] for row in rows] == ["e1", "e2", "f1"]
    assert list(rows[0]) == list(database.transact(current_events)[0])
    assert [file.name for file in out.parent.iterdir()] == [out.name]


def test_exported_values_are_those_of_the_view(
    capstone: Capstone, database: Database, tmp_path: Path
) -> None:
    for form in ("json", "parquet"):
        capstone("export", "events", "--format", form, "--out", tmp_path / form)
    expected = {row["event_id"]: row for row in database.transact(current_events)}

    assert {row["event_id"]: row for row in read(tmp_path / "parquet", "parquet")} == expected
    (first, _, last) = read(tmp_path / "json", "json")
    assert first["started_at"] == NOON.astimezone(UTC).isoformat()
    assert (last["started_at"], last["face_box"]) == (None, [0.1, 0.1, 0.2, 0.2])


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (["84"], ["e1", "e2"]),
        (["--camera", "yard"], ["f1"]),
        (["--camera", "nowhere"], []),
        (["--since", (NOON + timedelta(seconds=1)).isoformat()], ["e2"]),
        (["--since", NOON.isoformat(), "--until", (NOON + timedelta(minutes=1)).isoformat()], ["e1"]),
        # Noon in London is nine in the evening in Seoul, which is CAPSTONE_TIMEZONE's default.
        (["--since", "2026-01-02T21:00:30"], ["e2"]),
    ],
)
def test_events_are_chosen(
    capstone: Capstone, database: Database, tmp_path: Path, chosen: list[str], expected: list[str]
) -> None:
    for form in ("csv", "json", "parquet"):
        out = tmp_path / form
        assert capstone("export", "events", *chosen, "--format", form, "--out", out).code == 0
        assert [row["event_id"] for row in read(out, form)] == expected


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("gate", "gate"),
        ("2026-01-02T12:00:00+00:00", "2026-01-02T12:00:00+00:00"),
        ("[0.1, 0.2]", "[0.1, 0.2]"),
        ('=HYPERLINK("https://attacker.example")', '\'=HYPERLINK("https://attacker.example")'),
        ("+1", "'+1"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        (" =1", "' =1"),
        ("\t=1", "'\t=1"),
        ("\uff1d1", "'\uff1d1"),
    ],
)
def test_a_spreadsheet_shows_texts_and_computes_none(text: str, cell: str) -> None:
    assert no_formula(text) == cell


def test_no_text_in_a_spreadsheet_is_a_formula(
    capstone: Capstone, database: Database, tmp_path: Path
) -> None:
    camera = "=cmd|'/c calc'!A0"
    database.transact(
        record_upload, replace(UPLOAD, upload_id="u3", video_id="v3", key="x/c.mp4", camera=camera)
    )
    publish(database, [event_row("g1")], analysis_id="a3", video_id="v3", upload_id="u3")
    cells = {}
    for form in ("csv", "spreadsheet"):
        assert capstone("export", "events", "v3", "--format", form, "--out", tmp_path / form).code == 0
        cells[form] = read(tmp_path / form, "csv")[0]
    assert cells["csv"]["camera"] == camera
    assert cells["spreadsheet"] == cells["csv"] | {"camera": f"'{camera}"}


def test_parquet_has_a_type_for_every_column(database: Database) -> None:
    with database.transaction() as connection:
        columns, _ = events.stream_events(connection, events.EventFilter())
        schema = _parquet_schema(columns)
    strings = {"event_id", "analysis_id", "video_id", "external_id", "camera", "label", "thumbnail_key"}
    assert {name for name in schema.names if str(schema.field(name).type) == "string"} == strings


def test_what_cannot_be_exported_leaves_no_file(
    capstone: Capstone, database: Database, tmp_path: Path
) -> None:
    wrong_time = capstone("export", "events", "--since", "tomorrow", "--out", tmp_path / "x" / "a")
    unknown = capstone("export", "events", "v9", "--out", tmp_path / "x" / "b")
    gone = capstone("export", "detections", "v1", "--analysis", "a9", "--out", tmp_path / "x" / "c")
    (tmp_path / "derived" / "detections" / "d1" / "frames.parquet").unlink()
    missing = capstone("export", "detections", "v1", "--out", tmp_path / "x" / "d")

    assert (wrong_time.code, unknown.code, gone.code, missing.code) == (2, 2, 2, 1)
    assert "There is no object" in missing.err
    assert not list(tmp_path.glob("x/*"))


def test_detections_as_coco_and_mot(capstone: Capstone, database: Database, tmp_path: Path) -> None:
    coco, mot, faces = tmp_path / "coco.json", tmp_path / "mot.txt", tmp_path / "faces.json"
    assert "Wrote 6 detections" in capstone("export", "detections", "84", "--out", coco).err
    outcome = capstone("export", "detections", "v1", "--analysis", "a", "--format", "mot", "--out", mot)
    assert "Wrote 4 detections" in outcome.err
    capstone("export", "detections", "v1", "--label", "face", "--out", faces)

    data = json.loads(coco.read_text())
    assert_coco(data, 160, 120)
    assert data["images"][0]["file_name"] == "v1/00000000.jpg"
    assert len(mot.read_text().splitlines()) == 4
    assert len(json.loads(faces.read_text())["annotations"]) == 1
