"""The daemon's queue: one pass of it in this process, or as a process that is killed at a named point.

python -m tests.batch_gpu.daemon POINT
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import dagster as dg
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon

from batch_gpu.aws import BatchApi
from batch_gpu.jobs import IDLE_TAG, JOB_ID_TAG, JOB_NAME_TAG


def queue_pass(instance: dg.DagsterInstance) -> None:
    """Launch what is queued, as the daemon does every second."""
    with WorkspaceProcessContext(instance, None) as context:
        list(QueuedRunCoordinatorDaemon(interval_seconds=1).run_iteration(context))


def _die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _tags(tag: str, *, written: bool, value: str = "") -> Any:
    """Die when this tag is about to be written to a run, or has just been.

    Args:
        value: to be written; by default any but `none`.
    """
    add = dg.DagsterInstance.add_run_tags

    def add_or_die(instance: dg.DagsterInstance, run_id: str, tags: dict[str, str]) -> None:
        meant = tags.get(tag) == value if value else tags.get(tag, "none") != "none"
        if meant and not written:
            _die()
        add(instance, run_id, tags)
        if meant:
            _die()

    return patch.object(dg.DagsterInstance, "add_run_tags", add_or_die)


def _submit_then_die(api: BatchApi, request: Any) -> None:
    api.call("batch", "submit_job", **request)
    _die()


# Every point between two effects of launching a run.
POINTS: dict[str, Callable[[], Any]] = {
    "before the run is taken from the queue": lambda: patch.object(
        dg.DagsterInstance, "report_dagster_event", _die
    ),
    "before the launcher is asked": lambda: patch("batch_gpu.launcher.BatchGpuRunLauncher.launch_run", _die),
    "before the mark": lambda: _tags(JOB_NAME_TAG, written=False),
    "after the mark": lambda: patch.object(BatchApi, "submit", _die),
    "after the request": lambda: patch.object(BatchApi, "submit", _submit_then_die),
    "after the job's id is written": lambda: _tags(JOB_ID_TAG, written=True),
    "before it is told": lambda: patch("batch_gpu.launcher.BatchGpuRunLauncher._report", _die),
}


# The same where a worker that waits for a run is given one.
JOINING: dict[str, Callable[[], Any]] = {
    "before the worker is taken": lambda: _tags(IDLE_TAG, written=False, value="none"),
    "after it is taken": lambda: _tags(IDLE_TAG, written=True, value="none"),
    "after it is joined": lambda: _tags(JOB_ID_TAG, written=True),
}


if __name__ == "__main__":
    with dg.DagsterInstance.get() as instance, (POINTS | JOINING)[sys.argv[1]]():
        queue_pass(instance)
