"""Executes the local stack's runs as jobs of a fake AWS Batch."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from batch_gpu.gpus import gpu_count
from batch_gpu.pool import MAX_JOBS_VARIABLE
from batch_gpu.testing import FakeBatchServer, Machines, Queue, fake_batch_server
from capstone_dagster.local.stack import join_environment

if TYPE_CHECKING:
    from capstone_dagster.local.stack import LocalStack

# The names that dagster.yaml's launcher asks for where nothing else is set.
GPU_QUEUE, CPU_QUEUE = "capstone-gpu", "capstone-cpu"


@contextmanager
def fake_batch(stack: LocalStack) -> Iterator[FakeBatchServer]:
    """Serve a fake AWS Batch for a stack whose Dagster does not run yet, and send its runs there.

    Its containers are processes of this machine with the stack's environment. It has as many GPUs as the
    machine, and a nominal one if there is none.
    """
    stack.environment["CAPSTONE_COMPUTE"] = "batch"
    # As in the image: this Python's programs are on the PATH.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    inside = {**join_environment(stack.environment), "PATH": path}
    gpus = max(1, gpu_count())
    # What waits beyond the machines waits in Dagster's queue, where a worker that is through takes it.
    stack.environment[MAX_JOBS_VARIABLE] = str(gpus)
    queues = [Queue(GPU_QUEUE, Machines(gpus=gpus)), Queue(CPU_QUEUE)]
    with fake_batch_server(queues, environment=inside, cwd=Path(inside["DAGSTER_HOME"])) as server:
        for name in (GPU_QUEUE, CPU_QUEUE):
            server.batch.define_job(name)
        # Batch and its log only: the other services are the stack's.
        stack.environment |= {
            name: value for name, value in server.environment.items() if name.startswith("AWS_ENDPOINT_URL_")
        }
        yield server
