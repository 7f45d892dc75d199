"""`capstone alerts`: what was sent, from the local inbox; elsewhere, how to receive it."""

import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from capstone_dagster.alerts.inbox import look_into
from capstone_dagster.cli import app
from capstone_dagster.commands import alerts as command
from capstone_dagster.topics import Message, Topic
from tests.conftest import Aws


@pytest.fixture
def topic(aws: Aws, monkeypatch: pytest.MonkeyPatch) -> Topic:
    monkeypatch.setenv("CAPSTONE_QUEUE_URL", aws.resources.queue_url)
    monkeypatch.setenv("CAPSTONE_ALERT_TOPIC_ARN", aws.resources.alert_topic_arn)
    return Topic(aws.resources.alert_topic_arn, "CAPSTONE_ALERT_TOPIC_ARN")


def message(number: int, kind: str = "failure") -> Message:
    attributes = {"kind": kind, "class": "internal", "severity": "ticket", "incident": f"i{number}"}
    subject, body = f"[local] FAILED number {number}", f"It broke.\nRunbook: #{number}"
    return Message(str(number), attributes["incident"], body, attributes, subject)


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["alerts", *arguments])
    return result.exit_code, result.output


def test_alerts_shows_the_last_ones_each_time(topic: Topic) -> None:
    assert run() == (0, "No notice was sent yet.\n")
    for number in range(15):
        topic.publish([message(number)])

    for _ in range(2):  # looking takes nothing away
        code, output = run("--tail", "3")
        assert code == 0
        assert [line for line in output.splitlines() if "FAILED" in line] == [
            line for line in output.splitlines() if line.endswith(("number 12", "number 13", "number 14"))
        ]
        assert output.count("    It broke.") == 3


def test_alerts_as_json(topic: Topic) -> None:
    topic.publish([message(1, "recovery")])

    code, output = run("--json")

    assert code == 0
    [notice] = json.loads(output)
    assert (notice["subject"], notice["attributes"]["kind"]) == ("[local] FAILED number 1", "recovery")


def test_alerts_shows_an_alarm_of_cloudwatch_in_words(aws: Aws, topic: Topic) -> None:
    alarm = {"AlarmName": "A", "AlarmDescription": "It is late.\nLook there.", "NewStateReason": "3 > 2"}
    aws.client("sns").publish(TopicArn=topic.arn, Subject="ALARM: A", Message=json.dumps(alarm))

    code, output = run()

    assert code == 0
    assert output.endswith("ALARM: A\n    3 > 2\n    It is late.\n    Look there.\n")


def test_alerts_follow_shows_each_new_one_once(topic: Topic, monkeypatch: pytest.MonkeyPatch) -> None:
    topic.publish([message(1)])

    def rounds() -> Iterator[None]:
        topic.publish([message(2)])
        yield
        yield
        raise KeyboardInterrupt

    waiting = rounds()
    monkeypatch.setattr(command.time, "sleep", lambda _: next(waiting))

    code, output = run("--follow", "--tail", "5")

    assert code == 0
    assert [output.count(f"number {number}\n") for number in (1, 2)] == [1, 1]


def test_where_there_is_no_inbox_alerts_tells_how_to_subscribe(aws: Aws, topic: Topic) -> None:
    aws.client("sqs").delete_queue(QueueUrl=aws.resources.alert_inbox_url)

    code, output = run()

    assert code == 1
    assert f"aws sns subscribe --topic-arn {topic.arn} --protocol email" in output


def test_the_inbox_gets_alerts_once_however_often_the_stack_starts(aws: Aws, topic: Topic) -> None:
    from capstone_dagster.local.aws import create_resources

    assert create_resources(aws.endpoint_url) == aws.resources
    topic.publish([message(1)])

    assert len(look_into(aws.client("sqs"), aws.resources.alert_inbox_url)) == 1
