"""`python -m batch_gpu.testing`: the fake as a server of its own, until it is interrupted.

    python -m batch_gpu.testing --port 4570 --queue gpu:1 --queue cpu:0 --define worker

Containers inherit its environment, with this Python's programs first on the PATH as in an image, and run in
its working directory. `server` in this package lists the variables that make boto3 use it.
"""

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from batch_gpu.testing.server import fake_batch_server
from batch_gpu.testing.state import Machines, Queue


def main() -> None:
    """Serve until SIGINT or SIGTERM, and end every container with it."""
    parser = argparse.ArgumentParser(prog="python -m batch_gpu.testing", description="A fake AWS Batch.")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--queue", action="append", required=True, metavar="NAME:GPUS", type=_queue)
    parser.add_argument("--define", action="append", default=[], metavar="NAME", help="a job definition")
    options = parser.parse_args()
    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    programs = str(Path(sys.executable).parent)
    inside = {**os.environ, "PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)])}
    with fake_batch_server(options.queue, port=options.port, environment=inside) as server:
        for name in options.define:
            server.batch.define_job(name)
        print(server.endpoint_url, flush=True)
        over.wait()


def _queue(text: str) -> Queue:
    name, _, gpus = text.partition(":")
    return Queue(name, Machines(gpus=int(gpus or 0)))


if __name__ == "__main__":
    main()
