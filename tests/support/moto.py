"""moto's HTTP server: the second opinion on AWS, so that nothing leans on one emulator's quirks."""

import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def moto_server() -> Iterator[str]:
    """Run moto's server on a free loopback port and yield its URL. One at a time: its state is global."""
    from moto.server import ThreadedMotoServer

    # It logs every request, which would bury what a failing test says.
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    endpoint_url = f"http://{host}:{port}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    reset = urllib.request.Request(f"{endpoint_url}/moto-api/reset", method="POST")
    opener.open(reset, timeout=30).close()
    try:
        yield endpoint_url
    finally:
        server.stop()
