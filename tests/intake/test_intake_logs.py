"""What the logs of intake say of each message: what became of it, whose it was, by which delivery it came."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from capstone_dagster.logs.json_lines import JsonFormatter
from capstone_dagster.storage.errors import DatabaseUnavailable
from tests.intake.conftest import Intake


class Kept(logging.Handler):
    """Keeps lines as they are written."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.setFormatter(JsonFormatter())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


@pytest.fixture
def lines() -> Iterator[Any]:
    """The lines so far that tell of an action."""
    logger, kept = logging.getLogger("capstone.intake"), Kept()
    before = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(kept)
    yield lambda action: [line for line in kept.lines if line["action"] == action]
    logger.removeHandler(kept)
    logger.setLevel(before)


def test_the_logs_follow_an_upload_from_its_message_to_its_run(intake: Intake, lines: Any) -> None:
    intake.upload("gate/a.mp4", **{"video-id": "84"})
    intake.ticks_until("the message to go", lambda: intake.requests and intake.messages() == 0)

    [asked] = lines("run.requested")
    [request] = intake.requests
    assert (asked["level"], asked["component"]) == ("INFO", "intake")
    assert asked["video_id"] == request.partition_key
    assert asked["external_id"] == "84"
    assert (asked["bucket"], asked["key"]) == ("capstone-raw", "gate/a.mp4")
    assert asked["upload_id"] == request.tags[".dagster/capstone.upload_id"]
    assert asked["trace_id"] == asked["upload_id"][:32]
    assert asked["run_key"] == request.run_key
    assert asked["receive_count"] >= 1
    assert 0 <= asked["waited_s"] < 120
    for line in (asked, *lines("message.acknowledged")):
        assert line["message_id"]
        assert line["request_id"]
    [gone] = [line for line in lines("message.acknowledged") if line["upload_id"] == asked["upload_id"]]
    [run] = intake.instance.get_runs()
    assert gone["run_id"] == run.run_id
    assert gone["message_id"] == asked["message_id"]


def test_duplicates_prevented_are_warnings_in_the_logs(intake: Intake, lines: Any) -> None:
    intake.upload("gate/a.mp4")
    intake.ticks_until("the message to go", lambda: intake.requests and intake.messages() == 0)
    assert lines("duplicate.prevented") == []

    for _ in range(2):
        intake.send({"bucket": "capstone-raw", "key": "gate/a.mp4", "video_id": 84})
    intake.ticks_until("both to be prevented", lambda: len(lines("duplicate.prevented")) >= 2)

    [run] = intake.instance.get_runs()
    prevented = lines("duplicate.prevented")
    assert {line["level"] for line in prevented} == {"WARNING"}
    assert len({line["message_id"] for line in prevented}) == 2
    assert {line["external_id"] for line in prevented} == {"84"}
    # One of them met the run; the other may have met its twin in the same tick.
    assert run.run_id in {line.get("run_id") for line in prevented}


def test_the_logs_say_why_a_message_asked_for_nothing(intake: Intake, lines: Any) -> None:
    intake.send("not json")
    intake.send({"bucket": "capstone-raw", "key": "gate/readme.txt"})
    gone = {"bucket": {"name": "capstone-raw"}, "object": {"key": "gate/gone.mp4"}}
    intake.send({"Records": [{"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": gone}]})
    intake.ticks_until("all messages to go", lambda: intake.messages() == 0)

    [malformed] = lines("message.malformed")
    assert (malformed["level"], malformed["reason"][:8]) == ("WARNING", "not JSON")
    assert malformed["message_id"]
    assert malformed["request_id"]
    ignored = [line["message"] for line in lines("message.ignored")]
    assert any("gate/readme.txt" in message for message in ignored)
    [vanished] = lines("upload.vanished")
    assert (vanished["level"], vanished["failure_class"]) == ("WARNING", "source-missing")
    assert vanished["key"] == "gate/gone.mp4"
    counted = lines("tick.completed")
    assert sum(line["malformed"] for line in counted) == 1
    assert sum(line["vanished"] for line in counted) == 1


def test_a_tick_that_fails_says_so_in_the_logs(
    intake: Intake, lines: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        raise DatabaseUnavailable("The event store does not answer.")

    monkeypatch.setattr(intake.services.database, "ping", away)
    with pytest.raises(DatabaseUnavailable):
        intake.tick()

    [failed] = lines("tick.failed")
    assert (failed["level"], failed["failure_class"]) == ("ERROR", "database-unavailable")
