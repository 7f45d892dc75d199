"""The `capstone` command as a person meets it: help, data on stdout, one sentence for what goes wrong."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from capstone_dagster import cli
from capstone_dagster.intake.queue import UploadQueue
from capstone_dagster.storage.event_store import EventStore
from tests.conftest import Aws
from tests.storage.test_event_store import ANALYSIS, FACTS, ROWS, UPLOAD
from tests.support.waiting import wait_for


@dataclass(frozen=True)
class Outcome:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str


Capstone = Callable[..., Outcome]


@pytest.fixture
def capstone(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Capstone:
    """Runs a command line, away from any stack of the person who runs the tests."""
    monkeypatch.setattr(cli, "DEFAULT_STATE", tmp_path / "no-stack")

    def run(*arguments: str | Path) -> Outcome:
        words = [str(argument) for argument in arguments]
        if words[0] in ("submit", "status", "events", "doctor", "migrate", "dlq"):
            words += ["--state", str(tmp_path / "no-stack")]
        monkeypatch.setattr("sys.argv", ["capstone", *words])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        code = ended.value.code
        return Outcome(code if isinstance(code, int) else int(code is not None), captured.out, captured.err)

    return run


@pytest.fixture
def store(event_store: EventStore, monkeypatch: pytest.MonkeyPatch) -> EventStore:
    url = event_store.engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("CAPSTONE_DATABASE_URL", url)
    return event_store


@pytest.mark.parametrize(
    "command", ["demo", "dev", "submit", "status", "events", "analyze", "doctor", "migrate"]
)
def test_every_command_teaches(capstone: Capstone, command: str) -> None:
    assert command in capstone("--help").out
    told = capstone(command, "--help") if command in ("demo", "dev", "analyze") else None
    if told is not None:
        assert told.code == 0
        assert "Usage: capstone" in told.out


def test_events_as_scripts_read_them(capstone: Capstone, store: EventStore) -> None:
    store.record_upload(UPLOAD)
    store.publish(ANALYSIS, ROWS, FACTS)

    events = json.loads(capstone("events", "--format", "json").out)
    rows = list(csv.DictReader(io.StringIO(capstone("events", "--format", "csv", "--video", "v1").out)))
    table = capstone("events").out

    assert [event["event_id"] for event in events] == ["e1", "e2"]
    assert events[0]["best_box"] == [0.1, 0.2, 0.3, 0.4]
    assert {"video_id", "external_id", "camera", "start_ms", "end_ms", "label", "thumbnail_key"} <= set(
        events[0]
    )
    assert [row["start_ms"] for row in rows] == ["0", "2000"]
    assert "0:02.0" in table
    assert "person" in table


def test_no_events_is_an_empty_list(capstone: Capstone, store: EventStore) -> None:
    assert json.loads(capstone("events", "--format", "json").out) == []
    told = capstone("events")
    assert (told.code, told.out) == (0, "")
    assert "no events yet" in told.err


def test_status_tells_why(capstone: Capstone, store: EventStore) -> None:
    store.record_upload(UPLOAD)
    store.mark_failed("u1", "r1", failure_class="undecodable-video", message="It is no video.")

    assert "v1 failed (undecodable-video): It is no video." in capstone("status").out
    [row] = json.loads(capstone("status", "v1", "--format", "json").out)
    assert (row["state"], row["message"]) == ("failed", "It is no video.")
    unknown = capstone("status", "nobody")
    assert unknown.code != 0
    assert "'nobody' is known" in unknown.err


def test_submit_uploads_with_what_is_known(
    capstone: Capstone, aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPSTONE_RAW_BUCKET", "capstone-raw")
    video = tmp_path / "정문 1.mp4"
    video.write_bytes(b"video")

    told = capstone(
        "submit",
        video,
        "--external-id",
        "84",
        "--camera",
        "gate",
        "--recorded-at",
        "2026-01-22T14:23:15+09:00",
    )

    assert told.code == 0
    assert "s3://capstone-raw/gate/정문 1.mp4" in told.out
    head = aws.client("s3").head_object(Bucket="capstone-raw", Key="gate/정문 1.mp4")
    assert head["Metadata"] == {
        "video-id": "84",
        "camera": "gate",
        "recorded-at": "2026-01-22T14:23:15+09:00",
    }


@pytest.mark.parametrize(
    ("name", "body", "options", "told"),
    [
        ("missing.mp4", None, [], "not there"),
        ("empty.mp4", b"", [], "empty"),
        ("notes.txt", b"x", [], "CAPSTONE_KEY_SUFFIXES"),
        ("a.mp4", b"x", ["--camera", "정문"], "ASCII"),
        ("a.mp4", b"x", ["--recorded-at", "yesterday"], "'yesterday' is no time"),
    ],
)
def test_submit_refuses_in_one_sentence(
    capstone: Capstone,
    aws: Aws,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    body: bytes | None,
    options: list[str],
    told: str,
) -> None:
    monkeypatch.setenv("CAPSTONE_RAW_BUCKET", "capstone-raw")
    path = tmp_path / name
    if body is not None:
        path.write_bytes(body)

    outcome = capstone("submit", path, *options)

    assert outcome.code != 0
    assert told in " ".join(outcome.err.replace("│", " ").split())
    assert "Traceback" not in outcome.err
    assert aws.client("s3").list_objects_v2(Bucket="capstone-raw")["KeyCount"] == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["events"], "CAPSTONE_DATABASE_URL"),
        (["migrate"], "CAPSTONE_DATABASE_URL"),
        (["analyze", "nothing.mp4", "--out", "out"], "nothing.mp4"),
        (["analyze", "pyproject.toml", "--out", "out"], "pyproject.toml"),
        (["analyze", "pyproject.toml", "--out", "out", "--model", "no/model.pt"], "no/model.pt"),
        (["demo", "nothing.mp4"], "nothing.mp4"),
    ],
)
def test_what_is_missing_is_named(
    capstone: Capstone, tmp_path: Path, arguments: list[str], told: str
) -> None:
    outcome = capstone(*[str(tmp_path / word) if word == "out" else word for word in arguments])

    assert outcome.code == 1
    assert told in outcome.err
    assert "Error:" in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(tmp_path.glob("out/*.parquet"))


def test_a_wrong_setting_is_told_by_any_command(capstone: Capstone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPSTONE_SAMPLE_FPS", "often")

    outcome = capstone("events")

    assert outcome.code == 1
    assert "CAPSTONE_SAMPLE_FPS is 'often'" in outcome.err


def test_dead_letters_can_be_looked_at_and_sent_again(
    capstone: Capstone, aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPSTONE_QUEUE_URL", aws.resources.queue_url)
    sqs = aws.client("sqs")
    queue = UploadQueue(sqs, aws.resources.queue_url)
    queue.reject("not json", "not JSON: at all", "m-1")
    sqs.send_message(QueueUrl=aws.resources.dead_letter_queue_url, MessageBody="too often")

    # Looking takes nothing away, however often.
    for _ in range(2):
        letters = json.loads(capstone("dlq", "list", "--format", "json").out)
        assert [(letter["body"], letter["reason"]) for letter in letters] == [
            ("not json", "not JSON: at all"),
            ("too often", None),
        ]
    assert "delivered too often" in capstone("dlq", "list").out
    assert capstone("dlq", "show", letters[0]["message_id"][:8]).out == "not json\n"
    assert capstone("dlq", "redrive").code == 2
    assert capstone("dlq", "redrive", "nothing").code == 2

    assert capstone("dlq", "redrive", letters[1]["message_id"]).code == 0
    assert "too often" in wait_for(
        "the message", lambda: [m.body for m in queue.receive(wait_s=1) if "Event" not in m.body]
    )
    assert [letter.body for letter in queue.dead_letters()] == ["not json"]
    queue.put_back(queue.dead_letters())


def test_analyze_ends_with_one_json_object(capstone: Capstone, clip: Path, tmp_path: Path) -> None:
    outcome = capstone("analyze", clip, "--out", tmp_path / "out", "--sample-fps", "1")

    assert outcome.code == 0
    summary = json.loads(outcome.out.splitlines()[-1])
    assert set(summary) == {
        "frames_decoded",
        "frames_analyzed",
        "detections",
        "tracks",
        "events",
        "duration_s",
        "seconds",
        "fps",
        "device",
        "backend",
        "peak_rss_mb",
    }
    assert summary["events"] > 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        "frames.parquet",
        "detections.parquet",
        "events.parquet",
        "contact_sheet.jpg",
        "thumbnails",
    }


def test_doctor_is_content_when_all_is_there(
    capstone: Capstone, store: EventStore, aws: Aws, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    resources = aws.resources
    (tmp_path / "dagster.yaml").touch()
    for name, value in {
        "CAPSTONE_QUEUE_URL": resources.queue_url,
        "CAPSTONE_RAW_BUCKET": resources.raw_bucket,
        "CAPSTONE_DERIVED_URL": resources.derived_url,
        "CAPSTONE_ALERT_TOPIC_ARN": resources.alert_topic_arn,
        "DAGSTER_POSTGRES_URL": store.engine.url.render_as_string(hide_password=False),
        "DAGSTER_HOME": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)

    content = capstone("doctor")

    assert "FAIL" not in content.out
    assert content.code == 0
    assert content.out.count("pass") >= 9

    # One thing missing is named, with what to do, and the rest is still looked at.
    monkeypatch.setenv("CAPSTONE_QUEUE_URL", resources.queue_url + "-gone")
    monkeypatch.setenv("CAPSTONE_ALERT_TOPIC_ARN", "arn:aws:sns:us-east-1:000000000000:elsewhere")
    ill = capstone("doctor")
    lines = {line.split()[1]: line.split()[0] for line in ill.out.splitlines() if line and line[0] != " "}
    assert ill.code == 1
    assert (lines["sqs"], lines["sns"], lines["database"], lines["cloudwatch"]) == (
        "FAIL",
        "warn",
        "pass",
        "pass",
    )
    assert "us-east-1" in ill.out


def test_doctor_on_a_bare_machine_says_how_to_begin(capstone: Capstone) -> None:
    outcome = capstone("doctor")

    assert outcome.code == 1
    assert "make dev" in outcome.out
    assert "Traceback" not in outcome.out + outcome.err
