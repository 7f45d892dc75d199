"""What stands between a program and its services and can be told to get in the way: a line to a database that
is cut, and a gate before S3 that refuses.
"""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

LOOPBACK = "127.0.0.1"


class CutLine:
    """A TCP line to a port of this machine; while it is cut, connections are refused and open ones end."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]

    def cut(self) -> None:
        """From now on nothing comes through."""
        # Closing alone would leave the thread in its accept, and one more connection would come through.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for end in self._open:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            self._open.clear()

    def mend(self) -> None:
        """As before, on the same port."""
        self._listener = self._listen(self.port)

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server((LOOPBACK, port))
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection((LOOPBACK, self._target_port), timeout=5)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            with self._lock:
                self._open |= {near, far}
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._carry, args=(source, sink), daemon=True).start()

    def _carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._open -= {source, sink}
        source.close()


@dataclass(frozen=True)
class Refusal:
    """How the gate answers requests of a method whose path holds a text, in place of S3."""

    method: str
    fragment: str
    status: int
    code: str


class S3Gate:
    """Passes requests to S3 on, but for those that `refusals` name.

    Attributes:
        cut_short: of bodies that are read from a path that holds this text, only the first half comes.
        delay_s: how long each answer is held back.
        first_refusal: when the first one was refused since this was set to None, seconds since 1970.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.refusals: list[Refusal] = []
        self.cut_short: str | None = None
        self.delay_s = 0.0
        self.first_refusal: float | None = None


@contextmanager
def s3_gate(target_port: int) -> Iterator[S3Gate]:
    """A gate before an S3 that listens on a port of this machine."""
    server = ThreadingHTTPServer((LOOPBACK, 0), BaseHTTPRequestHandler)
    gate = S3Gate(f"http://{LOOPBACK}:{server.server_address[1]}")
    server.RequestHandlerClass = _handler(gate, target_port)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield gate
    finally:
        server.shutdown()
        server.server_close()


def _handler(gate: S3Gate, target_port: int) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_request(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            for refusal in gate.refusals:
                if refusal.method == self.command and refusal.fragment in self.path:
                    gate.first_refusal = gate.first_refusal or time.time()
                    error = f"<Error><Code>{refusal.code}</Code><Message>{refusal.code}</Message></Error>"
                    self._send(refusal.status, {"Content-Type": "application/xml"}, error.encode())
                    return
            time.sleep(gate.delay_s)
            onward = http.client.HTTPConnection(LOOPBACK, target_port, timeout=60)
            headers = {name: value for name, value in self.headers.items() if name.lower() != "expect"}
            try:
                onward.request(self.command, self.path, body, headers)
            except ConnectionRefusedError:
                self.close_connection = True
                return
            answer = onward.getresponse()
            body = answer.read()
            kept = {
                name: value
                for name, value in answer.getheaders()
                if name.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server")
            }
            length = answer.getheader("Content-Length") if self.command == "HEAD" else None
            if self.command == "GET" and gate.cut_short is not None and gate.cut_short in self.path:
                length, body = str(len(body)), body[: len(body) // 2]
                self.close_connection = True
            self._send(answer.status, kept, body, length)
            onward.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_request

        def _send(self, status: int, headers: dict[str, str], body: bytes, length: str | None = None) -> None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", length or str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
