"""An endpoint that speaks CloudWatch's protocols as a test says: it takes, throttles, refuses or hangs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from botocore.parsers import RpcV2CBORParser


@dataclass(frozen=True)
class Call:
    """One request: its operation, its input, and how large its body was."""

    operation: str
    input: Mapping[str, Any]
    size: int


@dataclass(frozen=True)
class Answer:
    """What a call is answered with.

    Attributes:
        error: the error's code, with `status`; None is success with `body`.
        hang_s: seconds of silence first.
        drop: close the connection without an answer.
    """

    error: str | None = None
    status: int = 400
    body: Mapping[str, Any] = field(default_factory=dict)
    hang_s: float = 0.0
    drop: bool = False


THROTTLED = Answer("ThrottlingException", 400)
BROKEN = Answer("InternalFailure", 500)
FORBIDDEN = Answer("AccessDeniedException", 400)
INVALID = Answer("InvalidParameterException", 400)
Script = Callable[[Call], Answer]


class ScriptedCloudWatch:
    """The endpoint's side of it.

    Attributes:
        script: what each call is answered; by default all are taken.
        calls: every call that was made, in order.
        events: of each log group and stream, the events that were taken.
        data: the metric data that were taken.
    """

    def __init__(self) -> None:
        self.script: Script = lambda call: Answer()
        self.calls: list[Call] = []
        self.events: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.data: list[dict[str, Any]] = []
        self.endpoint_url = ""
        self._lock = threading.Lock()

    def messages(self, group: str) -> list[str]:
        """Everything that a group holds, stream by stream."""
        with self._lock:
            return [
                event["message"]
                for (name, _), events in sorted(self.events.items())
                if name == group
                for event in events
            ]

    def total(self, metric: str) -> float:
        """The sum of a metric's values, over the data that have the dimension Environment alone."""
        with self._lock:
            return sum(
                value * count
                for datum in self.data
                if datum["MetricName"] == metric and len(datum["Dimensions"]) == 1
                for value, count in zip(datum["Values"], datum["Counts"], strict=True)
            )

    def take(self, call: Call) -> Answer:
        with self._lock:
            self.calls.append(call)
        answer = self.script(call)
        time.sleep(answer.hang_s)
        if answer.error is None and not answer.drop:
            with self._lock:
                if call.operation == "PutLogEvents":
                    place = (call.input["logGroupName"], call.input["logStreamName"])
                    self.events.setdefault(place, []).extend(call.input["logEvents"])
                elif call.operation == "PutMetricData":
                    self.data.extend(call.input["MetricData"])
        return answer


@contextmanager
def scripted_cloudwatch() -> Iterator[ScriptedCloudWatch]:
    """Run the endpoint on a free loopback port."""
    cloudwatch = ScriptedCloudWatch()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            target = self.headers.get("X-Amz-Target")
            operation = (target or self.path).replace("/", ".").rpartition(".")[2]
            taken = json.loads(body) if target else _from_cbor(body)
            answer = cloudwatch.take(Call(operation, taken, len(body)))
            if answer.drop:
                self.close_connection = True
                return
            fields = answer.body if answer.error is None else {"__type": answer.error, "message": "as set"}
            body = json.dumps(fields).encode() if target else _to_cbor(fields)
            self.send_response(200 if answer.error is None else answer.status)
            if not target:
                self.send_header("smithy-protocol", "rpc-v2-cbor")
            self.send_header("Content-Type", "application/x-amz-json-1.1" if target else "application/cbor")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: Any, client_address: Any) -> None:
            """A caller that has gone is none of our business."""

    server = Server(("127.0.0.1", 0), Handler)
    cloudwatch.endpoint_url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield cloudwatch
    finally:
        server.shutdown()
        server.server_close()


def _from_cbor(body: bytes) -> Any:
    parser = RpcV2CBORParser()
    return parser.parse_data_item(parser.get_peekable_stream_from_bytes(body))


def _to_cbor(fields: Mapping[str, Any]) -> bytes:
    """A map of few short texts, which is all that is answered here."""

    def text(word: str) -> bytes:
        data = word.encode()
        return bytes([0x78, len(data)]) + data

    return bytes([0xA0 + len(fields)]) + b"".join(
        text(name) + text(str(each)) for name, each in fields.items()
    )
