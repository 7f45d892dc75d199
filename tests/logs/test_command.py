"""`capstone logs`: one video's story, whole, once, in order; and what it says where it cannot be read."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import dagster as dg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from capstone_dagster.catalog.log_groups import BATCH_JOB, INTAKE, VIDEO_ANALYSIS
from capstone_dagster.logs import video_log as reading
from capstone_dagster.logs.json_lines import json_line, utc
from capstone_dagster.logs.video_log import (
    GROUPS,
    Subject,
    filter_patterns,
    parse_line,
)
from capstone_dagster.redaction import Redaction
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.videos import record_upload
from tests.conftest import Aws
from tests.storage.samples import UPLOAD
from tests.support.cloudwatch import FORBIDDEN, INVALID, THROTTLED, Answer, scripted_cloudwatch
from tests.support.command_line import Capstone
from tests.support.dagster_home import dagster_home

NOW = time.time()
VIDEO, OTHER, RUN = "gate-a1b2c3d4", "yard-99999999", "3b1c0000-0000-4000-8000-000000000001"


def line(second: float, message: str, *, level: str = "INFO", **fields: Any) -> tuple[float, str]:
    """A line as the program writes it, `second` seconds after the beginning."""
    at = NOW - 600 + second
    shown = {
        "timestamp": utc(at),
        "level": level,
        "component": "analysis",
        "action": "log",
        "message": message,
    }
    return at, json_line({**shown, **fields}, Redaction())


STORY = {
    INTAKE.name: [
        line(0, "Received.", component="intake", video_id=VIDEO, external_id="84"),
        line(1, "Another one's.", component="intake", video_id=OTHER, external_id="85"),
    ],
    VIDEO_ANALYSIS.name: [
        line(2, "[1/5] Model loading", video_id=VIDEO, run_id=RUN, step="model-loading", elapsed_s=1.5),
        line(3, "Looking closer.", level="DEBUG", video_id=VIDEO, run_id=RUN),
        line(5, "A retry.", level="WARNING", video_id=VIDEO, run_id=RUN),
        line(6, "The same.", video_id=VIDEO, run_id=RUN),
        line(6, "The same.", video_id=VIDEO, run_id=RUN),
        line(7, "Of another run.", video_id=OTHER, run_id="another"),
        line(7, "Of another video in the same run.", video_id=OTHER, run_id=RUN),
    ],
    BATCH_JOB.name: [
        # A line may name its run only.
        line(8, "Job failed.", level="ERROR", component="batch", run_id=RUN, exception="a\nb"),
        (NOW - 590, "not our JSON"),
        (NOW - 590, json.dumps({"_aws": {}, "video_id": VIDEO, "RunsStarted": 1})),
    ],
}
TOLD = ["Received.", "[1/5] Model loading", "A retry.", "The same.", "The same.", "Job failed."]


def put(aws: Aws, story: Mapping[str, Sequence[tuple[float, str]]]) -> None:
    """Into the emulator, as awslogs would."""
    logs = aws.client("logs")
    for group, lines in story.items():
        for number, half in enumerate(
            (lines[::2], lines[1::2])
        ):  # two streams: nothing is in order by itself
            if not half:
                continue
            logs.create_log_stream(logGroupName=group, logStreamName=str(number))
            events = [{"timestamp": round(at * 1000), "message": text} for at, text in half]
            logs.put_log_events(logGroupName=group, logStreamName=str(number), logEvents=events)


def messages(out: str) -> list[str]:
    """Of a JSON list; of what follows without an end, of one object a line."""
    lines = json.loads(out) if out.startswith("[") else [json.loads(text) for text in out.splitlines()]
    return [line["message"] for line in lines]


@pytest.mark.parametrize("name", [VIDEO, "84"], ids=["video-id", "external-id"])
def test_logs_tell_one_videos_whole_story_once_and_in_order(aws: Aws, capstone: Capstone, name: str) -> None:
    put(aws, STORY)

    outcome = capstone("logs", name, "--json")

    assert (outcome.code, outcome.err) == (0, "")
    assert messages(outcome.out) == TOLD
    # As they were written: what a script reads is what stands in CloudWatch.
    written = [json.loads(text) for lines in STORY.values() for _, text in lines if text.startswith("{")]
    assert all(line in written for line in json.loads(outcome.out))


def test_logs_for_people_have_one_form_and_tracebacks_for_developers(aws: Aws, capstone: Capstone) -> None:
    trace = line(9, "It failed.\nStack Trace:\n  c", level="ERROR", component="dagster", run_id=RUN)
    put(aws, STORY | {BATCH_JOB.name: [*STORY[BATCH_JOB.name], trace]})

    shown = capstone("logs", VIDEO).out.splitlines()
    everything = capstone("logs", VIDEO, "--level", "DEBUG").out.splitlines()

    at = datetime.fromtimestamp(NOW - 600, ZoneInfo("Asia/Seoul")).isoformat(" ", "seconds")
    assert shown[0] == everything[0] == f"[{at}] INFO intake - Received."
    assert [text.partition("] ")[2] for text in shown[-4::2]] == [
        "ERROR batch - Job failed.",
        "ERROR dagster - It failed.",
    ]
    assert all("2 more lines" in text for text in shown[-3::2])
    assert everything[-5:-3] == ["    a", "    b"]
    assert everything[-2:] == ["    Stack Trace:", "      c"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--level", "debug"), [*TOLD[:2], "Looking closer.", *TOLD[2:]]),
        (("--level", "WARNING"), ["A retry.", "Job failed."]),
        (("--tail", "2"), TOLD[-2:]),
        (("--tail", "1", "--level", "WARNING"), TOLD[-1:]),
        (("--tail", "99"), TOLD),
    ],
)
def test_logs_of_a_level_and_only_the_last(
    aws: Aws, capstone: Capstone, options: tuple[str, ...], expected: list[str]
) -> None:
    put(aws, STORY)

    outcome = capstone("logs", VIDEO, "--json", *options)

    assert messages(outcome.out) == expected


def test_logs_of_a_video_known_to_the_event_store_are_found_by_either_of_its_names(
    aws: Aws, capstone: Capstone, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAPSTONE_DATABASE_URL", database.engine.url.render_as_string(hide_password=False))
    database.transact(record_upload, UPLOAD)
    put(aws, {INTAKE.name: [line(0, "Before the back end's id was known.", video_id="v1")]})
    database.transact(record_upload, replace(UPLOAD, external_id="e-84"), stated={"external_id"})

    assert messages(capstone("logs", "e-84", "--json").out) == ["Before the back end's id was known."]


def test_more_logs_than_a_page_are_read_to_their_end(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
    many = [line(i / 100, f"{i}", video_id=VIDEO) for i in range(1200)]
    put(aws, {VIDEO_ANALYSIS.name: many})
    monkeypatch.setattr(reading, "_PAGE", 400)
    client = aws.client("logs")
    paginator = client.get_paginator("filter_log_events")

    class SmallPages:
        """moto hands out a token for the next page; ministack ends after the first."""

        def paginate(self, **asked: Any) -> Any:
            return paginator.paginate(**asked, PaginationConfig={"PageSize": 400})

    client.get_paginator = lambda operation: SmallPages()

    found = reading.read_story(Subject(frozenset({VIDEO})), client=lambda: client)

    assert [int(each.fields["message"]) for each in found.lines] == list(range(1200))


@pytest.fixture
def dagsters_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run of the video in Dagster's own storage; its id."""

    @dg.op
    def look(context: dg.OpExecutionContext) -> None:
        context.log.info("Looked.")

    @dg.job
    def look_at() -> None:
        look()

    monkeypatch.setenv("DAGSTER_HOME", dagster_home(tmp_path / "home"))
    with dg.DagsterInstance.get() as instance:
        ran = look_at.execute_in_process(instance=instance, tags={".dagster/capstone.video_id": VIDEO})
    return ran.run_id


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (FORBIDDEN, "Grant this user logs:FilterLogEvents on /capstone/intake"),
        (THROTTLED, "try again in a minute"),
        (INVALID, "capstone doctor"),
        (Answer("ExpiredTokenException", 400), "Log in again"),
        (Answer(drop=True), "Check the network"),
    ],
    ids=["forbidden", "throttled", "invalid", "expired", "cut-off"],
)
def test_logs_where_cloudwatch_fails_say_so_and_show_what_else_there_is(
    capstone: Capstone,
    dagsters_records: str,
    monkeypatch: pytest.MonkeyPatch,
    answer: Answer,
    message: str,
) -> None:
    with scripted_cloudwatch() as cloudwatch:
        cloudwatch.script = lambda call: answer
        for name, value in _account(cloudwatch.endpoint_url).items():
            monkeypatch.setenv(name, value)
        outcome = capstone("logs", VIDEO, "--json", "--level", "DEBUG")

    assert outcome.code == 0
    assert "CloudWatch cannot be read" in outcome.err
    assert message in outcome.err
    assert messages(outcome.out).count("Looked.") == 1
    actions = [line["action"] for line in json.loads(outcome.out)]
    assert "run.started" in actions
    assert actions[-1] == "run.succeeded"


def test_logs_without_credentials_or_region_say_which(
    capstone: Capstone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)  # it keeps the credentials of other tests
    monkeypatch.setenv("CAPSTONE_DATABASE_URL", "postgresql+psycopg://capstone@127.0.0.1:1/capstone")

    nowhere = capstone("logs", VIDEO)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "ap-northeast-2")
    nobody = capstone("logs", VIDEO)

    assert nowhere.code == nobody.code == 1
    assert "Set AWS_DEFAULT_REGION" in nowhere.err
    assert "AWS_PROFILE" in nobody.err
    assert "There is no line about" in nobody.err


def test_logs_where_nothing_is_configured_say_how_to_begin(capstone: Capstone, tmp_path: Path) -> None:
    outcome = capstone("logs", VIDEO)

    assert outcome.code == 1
    assert "make dev" in outcome.err


def test_logs_that_follow_show_each_new_line_once(
    aws: Aws, capstone: Capstone, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(aws, STORY)
    client = aws.client("logs")
    # After each pause one more line is there; the last one is interrupted.
    whose = [{"video_id": VIDEO}, {"run_id": RUN}, {"video_id": VIDEO}]  # a crash names its run only
    coming = [line(590 + i, f"New {i}.", **each) for i, each in enumerate(whose)]

    def pause(seconds: float) -> None:
        assert seconds < 10
        if not coming:
            raise KeyboardInterrupt
        at, text = coming.pop(0)
        events: Any = [{"timestamp": round(at * 1000), "message": text}]
        client.put_log_events(logGroupName=VIDEO_ANALYSIS.name, logStreamName="0", logEvents=events)

    monkeypatch.setattr("capstone_dagster.commands.logs.time.sleep", pause)

    outcome = capstone("logs", VIDEO, "--json", "--follow", "--tail", "1")

    assert outcome.code == 0
    assert messages(outcome.out) == [TOLD[-1], "New 0.", "New 1.", "New 2."]


names = st.text(min_size=1, max_size=60)


@given(st.sets(names, max_size=5), st.sets(st.uuids().map(str), max_size=60))
def test_filter_patterns_are_short_enough_and_name_everything(names: set[str], runs: set[str]) -> None:
    patterns = filter_patterns(Subject(frozenset(names), frozenset(runs)))

    assert all(len(pattern) <= 1024 for pattern in patterns)
    joined = " ".join(patterns)
    assert joined.count("$.run_id = ") == len(runs)
    assert joined.count("$.video_id = ") == joined.count("$.external_id = ") == len(names)


@given(st.text())
def test_whatever_stands_in_a_log_is_read_or_left_out(text: str) -> None:
    found = parse_line(text, GROUPS[0], 7)

    assert found is None or isinstance(found.fields, Mapping)


def _account(endpoint_url: str) -> dict[str, str]:
    return {
        "AWS_ENDPOINT_URL": endpoint_url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "ap-northeast-2",
        "NO_PROXY": "127.0.0.1,localhost",
    }
