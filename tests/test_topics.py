"""SNS can fail in every way, when its client is made and when it is used: alerts are kept then."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from capstone_dagster import topics
from capstone_dagster.clients import Patience
from capstone_dagster.topics import Message, NotSent, Topic

ARN = "arn:aws:sns:ap-northeast-2:123456789012:capstone-alerts"
MESSAGE = Message("1", "incident-1", "a body", {"kind": "failure"}, "a subject")
TAKEN = "<PublishBatchResponse><PublishBatchResult>{}</PublishBatchResult></PublishBatchResponse>"
ONE_REFUSED = (
    "<Failed><member><Id>1</Id><Code>InvalidParameter</Code><Message>Too long.</Message>"
    "<SenderFault>true</SenderFault></member></Failed>"
)


class ScriptedSns:
    """An endpoint that answers each request with `status` and the error `code`, late or not at all."""

    def __init__(self) -> None:
        self.status, self.code, self.hang_s, self.drop, self.failed = 200, "", 0.0, False, ""
        self.requests = 0


@pytest.fixture
def sns(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedSns]:
    scripted = ScriptedSns()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            scripted.requests += 1
            time.sleep(scripted.hang_s)
            if scripted.drop:
                self.close_connection = True
                return
            error = f"<Error><Code>{scripted.code}</Code><Message>as told</Message></Error>"
            body = (
                TAKEN.format(scripted.failed)
                if scripted.status == 200
                else f"<ErrorResponse>{error}</ErrorResponse>"
            ).encode()
            self.send_response(scripted.status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a caller that has gone
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL_SNS", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("boto3.DEFAULT_SESSION", None)
    yield scripted
    server.shutdown()
    server.server_close()


@pytest.fixture
def credentials(sns: ScriptedSns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "local")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "local")


@pytest.mark.usefixtures("credentials")
def test_alerts_need_no_region_but_the_topics_own(sns: ScriptedSns) -> None:
    Topic(ARN, "CAPSTONE_ALERT_TOPIC_ARN").publish([MESSAGE])

    assert sns.requests == 1


@pytest.mark.usefixtures("credentials")
def test_a_message_that_sns_refuses_alone_is_named(sns: ScriptedSns) -> None:
    sns.failed = ONE_REFUSED

    refused = Topic(ARN, "CAPSTONE_NOTICE_TOPIC_ARN").publish([MESSAGE, MESSAGE])

    assert refused == {1: "SNS rejected it: InvalidParameter (Too long)."}


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize(
    ("status", "code", "remedy"),
    [
        (403, "AuthorizationError", "Grant this role sns:Publish"),
        (403, "AccessDeniedException", "Grant this role sns:Publish"),
        (403, "InvalidClientTokenId", "Grant this role sns:Publish"),
        (404, "NotFound", "CAPSTONE_ALERT_TOPIC_ARN should name a topic that exists"),
        (400, "InvalidParameter", "tried again"),
        (400, "Throttling", "tried again"),
        (500, "InternalFailure", "tried again"),
        (503, "ServiceUnavailable", "tried again"),
    ],
)
def test_alerts_that_sns_refuses_are_kept_with_the_remedy(
    sns: ScriptedSns, status: int, code: str, remedy: str
) -> None:
    sns.status, sns.code = status, code
    topic = Topic(ARN, "CAPSTONE_ALERT_TOPIC_ARN")

    with pytest.raises(NotSent, match=remedy) as refused:
        topic.publish([MESSAGE])

    assert code in str(refused.value)
    assert sns.requests == 1  # the next tick tries again, not this one
    sns.status = 200
    topic.publish([MESSAGE])


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("fault", ["drops", "hangs"])
def test_alerts_wait_for_sns_no_longer_than_seconds(
    sns: ScriptedSns, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(topics, "TICK", Patience(0.3, 1))
    sns.drop, sns.hang_s = fault == "drops", 30.0 if fault == "hangs" else 0.0

    with pytest.raises(NotSent, match="SNS cannot be reached"):
        Topic(ARN, "CAPSTONE_ALERT_TOPIC_ARN").publish([MESSAGE])


def test_alerts_without_credentials_are_kept(sns: ScriptedSns) -> None:
    with pytest.raises(NotSent, match="Check the AWS_\\* variables"):
        Topic(ARN, "CAPSTONE_ALERT_TOPIC_ARN").publish([MESSAGE])

    assert sns.requests == 0
