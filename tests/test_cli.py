"""The `capstone` command as a person meets it: help, data on stdout, one sentence for what goes wrong."""

import csv
import io
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from email.header import decode_header, make_header
from pathlib import Path
from typing import Any

import pytest
import typer
from botocore.exceptions import ClientError

from capstone_dagster import cli
from capstone_dagster.commands import examination, joining
from capstone_dagster.intake.queue import UploadQueue
from capstone_dagster.local.analyze_file import output_folders
from capstone_dagster.local.state import own_state, write_environment
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.video_status import mark_failed
from capstone_dagster.storage.videos import record_upload
from tests.conftest import Aws
from tests.storage.samples import UPLOAD, publish
from tests.support.command_line import Capstone
from tests.support.waiting import scaled, wait_for


@pytest.fixture
def database(database: Database, monkeypatch: pytest.MonkeyPatch) -> Database:
    url = database.engine.url.render_as_string(hide_password=False)
    monkeypatch.setenv("CAPSTONE_DATABASE_URL", url)
    return database


COMMANDS = sorted(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches(capstone: Capstone, command: str) -> None:
    outcome = capstone(command, "--help")

    assert outcome.code == 0
    assert f"Usage: capstone {command}" in outcome.out


def test_events_as_scripts_read_them(capstone: Capstone, database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    publish(database)

    events = json.loads(capstone("events", "--json").out)
    rows = list(csv.DictReader(io.StringIO(capstone("events", "v1", "--csv").out)))
    table = capstone("events").out

    assert [event["event_id"] for event in events] == ["e1", "e2"]
    assert events[0]["best_box"] == [0.1, 0.2, 0.3, 0.4]
    assert {"video_id", "external_id", "camera", "start_ms", "end_ms", "label", "thumbnail_key"} <= set(
        events[0]
    )
    assert [row["start_ms"] for row in rows] == ["0", "2000"]
    assert "0:02.0" in table
    assert "person" in table


def test_no_events_is_an_empty_list(capstone: Capstone, database: Database) -> None:
    assert json.loads(capstone("events", "--json").out) == []
    outcome = capstone("events")
    assert (outcome.code, outcome.out) == (0, "")
    assert "no events yet" in outcome.err


@pytest.mark.parametrize("command", ["events", "status"])
def test_no_rows_as_csv_are_a_header(capstone: Capstone, database: Database, command: str) -> None:
    [header] = csv.reader(io.StringIO(capstone(command, "--csv").out))
    database.transact(record_upload, UPLOAD)
    publish(database)

    assert {"video_id", "external_id", "camera"} <= set(header)
    assert next(csv.reader(io.StringIO(capstone(command, "--csv").out))) == header


def test_status_tells_why(capstone: Capstone, database: Database) -> None:
    database.transact(record_upload, UPLOAD)
    database.transact(mark_failed, "u1", "r1", failure_class="undecodable-video", message="It is no video.")

    assert "v1 failed (undecodable-video): It is no video." in capstone("status").out
    [row] = json.loads(capstone("status", "v1", "--json").out)
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

    outcome = capstone(
        "submit",
        video,
        "--external-id",
        "84",
        "--camera",
        "현관",
        "--recorded-at",
        "2026-01-22T14:23:15+09:00",
    )

    assert outcome.code == 0
    assert "s3://capstone-raw/현관/정문 1.mp4" in outcome.out
    head = aws.client("s3").head_object(Bucket="capstone-raw", Key="현관/정문 1.mp4")
    camera = head["Metadata"].pop("camera")
    assert (camera.isascii(), str(make_header(decode_header(camera)))) == (True, "현관")  # in base64 or not
    assert head["Metadata"] == {"video-id": "84", "recorded-at": "2026-01-22T14:23:15+09:00"}


@pytest.mark.parametrize(
    ("name", "body", "options", "message"),
    [
        ("missing.mp4", None, [], "not there"),
        ("empty.mp4", b"", [], "empty"),
        ("notes.txt", b"x", [], "CAPSTONE_KEY_SUFFIXES"),
        ("a.mp4", b"x", ["--camera", "a\nb"], "line breaks"),
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
    message: str,
) -> None:
    monkeypatch.setenv("CAPSTONE_RAW_BUCKET", "capstone-raw")
    path = tmp_path / name
    if body is not None:
        path.write_bytes(body)

    outcome = capstone("submit", path, *options)

    assert outcome.code != 0
    assert message in " ".join(outcome.err.replace("│", " ").split())
    assert "Traceback" not in outcome.err
    assert aws.client("s3").list_objects_v2(Bucket="capstone-raw")["KeyCount"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
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
    capstone: Capstone, tmp_path: Path, arguments: list[str], message: str
) -> None:
    outcome = capstone(*[str(tmp_path / word) if word == "out" else word for word in arguments])

    assert outcome.code == 1
    assert message in outcome.err
    assert "Error:" in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(tmp_path.glob("out/*.parquet"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("gibberish", "No such command 'gibberish'; `capstone --help` describes its arguments."),
        (
            "status --nonsense",
            "No such option: --nonsense; `capstone status --help` describes its arguments.",
        ),
        ("analyses v1 v2", "Got unexpected extra argument(s) (v2); `capstone analyses --help` describes"),
        ("compare", "Missing argument 'VIDEO'; `capstone compare --help` describes its arguments."),
        (
            "export events",
            "Missing option '--out'; `capstone export events --help` describes its arguments.",
        ),
        ("prioritize v1 --priority abc", "--priority: expected a whole number, got 'abc'; `capstone"),
        ("prioritize v1 --priority 5000", "--priority: expected at most 1000, got '5000'; `capstone"),
        ("status --limit 0", "--limit: expected at least 1, got '0'; `capstone status --help`"),
        ("logs v1 --level loud", "--level: 'loud' is not one of 'debug', 'info', 'warning', 'error', 'crit"),
        ("status --json --csv", "--json and --csv exclude each other: give one of them."),
        ("retry --class bad-luck", "'bad-luck' is no failure class; there are undecodable-video, "),
        (
            "retry --since 999999d",
            "Invalid value for '--since': expected a date (2026-01-31), a time (14:30), both",
        ),
        ("events --until soon", "Invalid value for '--until': expected a date (2026-01-31), a time (14:30)"),
        ("export events --out x.csv --since soon", "Invalid value for '--since': expected a date"),
        ("events --camera roof", "no video of camera 'roof' is known; there are "),
        ("export events --out .", "a file was expected, and . is a folder: name a file in it."),
        ("preview v1 --out .", "a file was expected, and . is a folder: name a file in it."),
        ("compare v1 --html .", "a file was expected, and . is a folder: name a file in it."),
        ("compare v1", "v1 has only one analysis, a1: analyse it again, with another model say, and comp"),
        ("compare v1 --from b1", "'b1' begins the id of no analysis of this video; there are a1."),
        ("rollback v1", "no analysis of v1 was published before the current one, a1; `capstone analyses` "),
        ("rollback v1 --to b1", "'b1' begins the id of no analysis of this video; there are a1."),
        *(
            (f"{words} nobody", "no video 'nobody' is known; `capstone status` lists those that are.")
            for words in (
                *("status", "events", "analyses", "compare", "rollback", "preview", "cancel"),
                *("prioritize", "retry", "delete", "reanalyze", "export detections --out x.json"),
            )
        ),
    ],
)
def test_what_is_typed_wrongly_is_told_in_one_sentence(
    capstone: Capstone,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    line: str,
    message: str,
) -> None:
    """What was expected, what came, what to do; nothing for a traceback, nothing cut into a box."""
    database.transact(record_upload, UPLOAD)
    publish(database)
    monkeypatch.setenv("CAPSTONE_DERIVED_URL", f"file://{tmp_path}")

    outcome = capstone(*shlex.split(line))

    [error] = [each for each in outcome.err.splitlines() if not each.startswith("…")]
    assert error.startswith(f"Error: {message}")
    assert error.endswith(".")
    assert (outcome.code, outcome.out) == (2, "")


@pytest.mark.parametrize("command", [["submit", "a.mp4"], ["status"], ["events"], ["dlq", "list"]])
def test_without_a_stack_the_way_to_one_is_told(
    capstone: Capstone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.mp4").write_bytes(b"video")

    outcome = capstone(*command)

    assert outcome.code == 1
    assert "is not set" in outcome.err or "No event store is configured" in outcome.err
    assert "make dev" in outcome.err


def test_a_wrong_option_is_named(capstone: Capstone, clip: Path, tmp_path: Path) -> None:
    outcome = capstone("analyze", clip, "--out", tmp_path / "out", "--sample-fps", "5000")

    assert outcome.code == 1
    assert "--sample-fps" in outcome.err
    assert "--model" in capstone("analyze", clip, "--out", tmp_path / "out", "--model", "no/model.pt").err


@pytest.mark.parametrize(
    ("variables", "command", "message"),
    [
        ({"AWS_PROFILE": "nobody"}, ["submit", "a.mp4"], "nobody"),
        ({"CAPSTONE_QUEUE_URL": "https://sqs.example.com/1/q"}, ["dlq", "list"], "region"),
        ({}, ["analyze", "a.mp4", "--out", "a.mp4"], "a.mp4"),
        ({}, ["analyze", "a.mp4", "--out", "a.mp4/below"], "a.mp4/below"),
    ],
)
def test_what_the_surroundings_refuse_is_one_sentence(
    capstone: Capstone,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    command: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("CAPSTONE_RAW_BUCKET", "capstone-raw")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    Path("a.mp4").write_bytes(b"video")

    outcome = capstone(*command)

    assert outcome.code == 1
    assert "Error:" in outcome.err
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def test_a_missing_bucket_is_named_with_its_setting(
    capstone: Capstone, aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPSTONE_RAW_BUCKET", "capstone-nowhere")
    video = tmp_path / "a.mp4"
    video.write_bytes(b"video")

    outcome = capstone("submit", video)

    assert outcome.code == 1
    assert "CAPSTONE_RAW_BUCKET is 'capstone-nowhere'" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ClientError({"Error": {"Code": "AccessDenied"}}, "SendMessage"), "AccessDenied"),
        (PermissionError(13, "Permission denied", "/out"), "/out: Permission denied. Give this user access"),
        (OSError(28, "No space left on device"), "disk space"),
    ],
)
def test_errors_of_aws_and_the_system_come_with_a_remedy(
    capstone: Capstone, monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    monkeypatch.setattr(joining, "read_settings", _raising(error))

    outcome = capstone("events")

    assert outcome.code == 1
    assert message in outcome.err
    assert "Traceback" not in outcome.err


def test_a_defect_shows_where_it_is_and_says_that_it_is_one(
    capstone: Capstone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joining, "read_settings", _raising(KeyError("[/lost]")))

    outcome = capstone("events")

    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("Error: KeyError: '[/lost]'. This is a defect")


def _raising(error: Exception) -> Callable[..., None]:
    def fail(**_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_signals_unwind_what_runs(number: signal.Signals, code: int, tmp_path: Path) -> None:
    program = """
import sys, time
from capstone_dagster import cli
from capstone_dagster.commands import joining
def endless(**_):
    try:
        print("running", flush=True)
        while True:
            time.sleep(0.1)
    finally:
        print("cleaned up", flush=True)
joining.read_settings = endless
sys.argv = ["capstone", "events"]
cli.main()
"""
    environment = {**os.environ, "CAPSTONE_DATABASE_URL": "postgresql+psycopg://nowhere/x"}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(number)
        assert process.stdout.read() == "cleaned up\n"
        assert process.wait(60) == code


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
        letters = json.loads(capstone("dlq", "list", "--json").out)
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("owner", "becomes"), [(10001, 10001), (0, 0)])
def test_a_command_that_ecs_starts_as_root_becomes_the_services_user(
    tmp_path: Path, owner: int, becomes: int
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, owner, owner)
    code = "import os, capstone_dagster.cli as cli; cli._leave_root(); print(os.getuid(), os.getgid())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
        timeout=scaled(60),
    )
    assert done.stdout.split() == [str(becomes)] * 2


class FalseEmpties:
    """SQS as it may answer: empty although messages wait, each second time; more often to a short poll."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._asked = 0

    def receive_message(self, **request: Any) -> Any:
        self._asked += 1
        if self._asked % 2 or not request["WaitTimeSeconds"]:
            return {}
        return self._client.receive_message(**{**request, "MaxNumberOfMessages": 2, "WaitTimeSeconds": 0})

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


def test_all_dead_letters_are_found_although_sqs_answers_empty_in_between(aws: Aws) -> None:
    queue = UploadQueue(FalseEmpties(aws.client("sqs")), aws.resources.queue_url)  # type: ignore[arg-type]
    for number in range(7):
        queue.reject(f"body {number}", "not JSON", f"m-{number}")

    letters = queue.dead_letters()

    assert sorted(letter.body for letter in letters) == [f"body {number}" for number in range(7)]
    assert queue.dead_letter_count() == 7
    queue.put_back(letters)


def test_dead_letters_that_another_reader_hides_are_said_to_be_missing(
    capstone: Capstone, aws: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPSTONE_QUEUE_URL", aws.resources.queue_url)
    queue = UploadQueue(aws.client("sqs"), aws.resources.queue_url)
    queue.reject("not json", "not JSON: at all", "m-1")
    hidden = queue.dead_letters()

    listed = capstone("dlq", "list")

    assert "SQS counts 1 dead letters and delivered 0." in " ".join(listed.err.split())
    queue.put_back(hidden)


def test_analyze_ends_with_one_json_object(capstone: Capstone, clip: Path, tmp_path: Path) -> None:
    outcome = capstone("analyze", clip, "--out", tmp_path / "out", "--sample-fps", "1")

    assert outcome.code == 0
    summary = json.loads(outcome.out.splitlines()[-1])
    assert set(summary) == {
        "video",
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
        "truncated",
        "decode_errors",
        "corrupt_frames",
        "size_changes",
        "track",
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


def test_analyze_loads_the_model_once_for_several_files_and_survives_a_bad_one(
    capstone: Capstone, clip: Path, tmp_path: Path
) -> None:
    bad, again = tmp_path / "bad.mp4", tmp_path / "again" / clip.name
    bad.write_bytes(b"no video")
    again.parent.mkdir()
    again.symlink_to(clip)

    outcome = capstone("analyze", clip, bad, again, "--out", tmp_path / "out", "--sample-fps", "0.5")

    assert outcome.code == 1
    summaries = [json.loads(line) for line in outcome.out.splitlines()]
    assert [summary.pop("video") for summary in summaries] == [str(clip), str(again)]
    assert summaries[0]["detections"] == summaries[1]["detections"] > 0
    assert outcome.err.count("Loading the model") == 1
    assert "bad.mp4: A video was expected" in " ".join(outcome.err.split())
    assert "1 of 3 files could not be analysed." in outcome.err
    folders = {path.name for path in (tmp_path / "out").iterdir() if (path / "events.parquet").exists()}
    assert folders == {clip.stem, f"{clip.stem}-2"}


def test_results_of_several_files_never_share_a_folder(tmp_path: Path) -> None:
    names = ["a.mp4", "a.mov", "a-2.mp4", "A.MP4", "b.mp4"]
    folders = output_folders([Path(name) for name in names], tmp_path)
    assert [folder.name for folder in folders] == ["a", "a-2", "a-2-2", "A-3", "b"]
    assert output_folders([Path("a.mp4")], tmp_path) == [tmp_path]


def test_analyze_needs_neither_dagster_nor_a_database(clip: Path, tmp_path: Path) -> None:
    program = """
import sys
from capstone_dagster import cli
sys.argv = ["capstone", "analyze", sys.argv[1], "--out", sys.argv[2], "--sample-fps", "0.5"]
try:
    cli.main()
except SystemExit as ended:
    assert not ended.code, ended.code
print(sorted({"dagster", "sqlalchemy", "psycopg", "alembic", "torch"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, clip, tmp_path / "out"], capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines()[-1] == "[]"


@pytest.fixture
def joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, aws: Aws) -> Iterator[Callable[..., None]]:
    """Makes it look as if a stack with these variables ran where the commands look for one."""
    before = dict(os.environ)
    state = tmp_path / "no-stack"

    def describe(**variables: str) -> None:
        own = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        write_environment(state, {**own, "CAPSTONE_RAW_BUCKET": aws.resources.raw_bucket, **variables})

    with own_state(state):
        yield describe
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(("model", "warned"), [(None, True), ("embedded", True), ("yolo11n.pt", False)])
def test_submit_warns_of_the_demos_own_model(
    capstone: Capstone, joined: Callable[..., None], tmp_path: Path, model: str | None, warned: bool
) -> None:
    joined(**({"CAPSTONE_MODEL": model} if model else {}))
    video = tmp_path / "mine.mp4"
    video.write_bytes(b"video")

    outcome = capstone("submit", video)

    assert outcome.code == 0
    assert ("expect poor results" in outcome.err) == warned


def test_submit_shows_names_as_they_are(
    capstone: Capstone, aws: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPSTONE_RAW_BUCKET", "capstone-raw")
    video = tmp_path / "clip[final].mp4"
    video.write_bytes(b"video")

    outcome = capstone("submit", video, "--camera", "[x]gate")

    assert outcome.code == 0
    assert "clip[final].mp4 → s3://capstone-raw/[x]gate/clip[final].mp4" in outcome.out
    assert "Uploading clip[final].mp4" in outcome.err


def test_doctor_is_content_when_all_is_there(
    capstone: Capstone, database: Database, aws: Aws, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    resources = aws.resources
    (tmp_path / "dagster.yaml").touch()
    for name, value in {
        "CAPSTONE_QUEUE_URL": resources.queue_url,
        "CAPSTONE_RAW_BUCKET": resources.raw_bucket,
        "CAPSTONE_DERIVED_URL": resources.derived_url,
        "CAPSTONE_ALERT_TOPIC_ARN": resources.alert_topic_arn,
        "DAGSTER_POSTGRES_URL": database.engine.url.render_as_string(hide_password=False),
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


def test_doctor_tells_mistyped_variables(capstone: Capstone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAPSTONE_SAMPLE_FSP", "1")

    shown = capstone("doctor").out

    assert "warn  settings     CAPSTONE_SAMPLE_FSP" in shown
    assert "Is CAPSTONE_SAMPLE_FPS meant?" in shown


def test_doctor_goes_on_when_a_look_at_the_gpu_fails(
    capstone: Capstone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examination, "_gpu", lambda _: 1 / 0)

    shown = capstone("doctor").out

    assert "gpu          division by zero" in shown
    assert "database" in shown


def test_doctor_on_a_bare_machine_says_how_to_begin(capstone: Capstone) -> None:
    outcome = capstone("doctor")

    assert outcome.code == 1
    assert "make dev" in outcome.out
    assert "Traceback" not in outcome.out + outcome.err
