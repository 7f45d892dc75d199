"""The fake behind HTTP, on loopback: Batch's REST-JSON protocol, and CloudWatch Logs' JSON one."""

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from batch_gpu.testing.fake_batch import FakeBatch
from batch_gpu.testing.state import REGION, ConnectionCut, Queue, RequestError

# How often jobs are moved on: often enough not to be felt in a test, seldom enough to cost nothing.
STEP_S = 0.02
# The last part of each path; all are POST.
OPERATIONS = {
    name.lower(): name
    for name in (
        "SubmitJob",
        "DescribeJobs",
        "ListJobs",
        "TerminateJob",
        "CancelJob",
        "RegisterJobDefinition",
        "DescribeJobDefinitions",
        "DescribeJobQueues",
        "DescribeComputeEnvironments",
    )
}


@dataclass(frozen=True)
class FakeBatchServer:
    """A running fake. `batch` is its state, with everything that a test can ask for."""

    batch: FakeBatch
    endpoint_url: str

    @property
    def environment(self) -> dict[str, str]:
        """What makes boto3 talk to the fake."""
        return {
            "AWS_ENDPOINT_URL_BATCH": self.endpoint_url,
            "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS": self.endpoint_url,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "fake",
            "AWS_SECRET_ACCESS_KEY": "fake",
        }


@contextmanager
def fake_batch_server(queues: Iterable[Queue], *, port: int = 0, **options: Any) -> Iterator[FakeBatchServer]:
    """Serve a fake with these queues for the length of the block; its processes end with it.

    Args:
        port: 0 takes a free one.
        options: the other arguments of `FakeBatch`.
    """
    batch = FakeBatch(queues, **options)
    server = ThreadingHTTPServer(("127.0.0.1", port), _handler(batch))
    server.daemon_threads = True
    over = threading.Event()

    def move_on() -> None:
        while not over.wait(STEP_S):
            batch.step()

    threads = [
        threading.Thread(target=server.serve_forever, args=(STEP_S,), name="fake-batch-http", daemon=True),
        threading.Thread(target=move_on, name="fake-batch-steps", daemon=True),
    ]
    for thread in threads:
        thread.start()
    try:
        yield FakeBatchServer(batch, f"http://127.0.0.1:{server.server_address[1]}")
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        for thread in threads:
            thread.join(timeout=10)
        batch.kill_all()


def _handler(batch: FakeBatch) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            target = self.headers.get("X-Amz-Target", "")
            if target.startswith("Logs_20140328."):
                operation, kind = target.partition(".")[2], "application/x-amz-json-1.1"
            else:
                operation, kind = self.path.rpartition("/")[2], "application/json"
                operation = OPERATIONS.get(operation, operation)
            try:
                status, answer, extra = 200, batch.handle(operation, json.loads(body or b"{}")), {}
            except ConnectionCut:
                self.close_connection = True
                return
            except RequestError as error:
                status, extra = error.status, {"x-amzn-ErrorType": error.code}
                answer = {"__type": error.code, "message": str(error)}
            self._send(status, answer, {"Content-Type": kind, **extra})

        def _send(self, status: int, answer: Mapping[str, Any], headers: Mapping[str, str]) -> None:
            body = json.dumps(answer).encode()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass  # one line a request would bury what a test says

    return Handler
