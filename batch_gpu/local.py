"""`compute: local`: the same configuration on one machine, with Dagster's own launcher underneath.

Dagster's launcher starts a process in the code server and answers no question about its health. The code
server notices a worker that dies; nobody notices when the code server itself went first. Here the run's
process is asked for.
"""

import os

from dagster import DagsterInstance, DagsterRun
from dagster._core.events import DagsterEventType
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus
from dagster._core.storage.tags import GRPC_INFO_TAG


class LocalLauncher(DefaultRunLauncher):
    """Dagster's launcher with an answer about its workers."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        """Whether the run's process lives: by its code server's word, else by its pid."""
        if self._code_server_has(run.run_id):
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        pid = worker_pid(self._instance, run.run_id)
        if pid is not None and alive(pid):
            return CheckRunHealthResult(WorkerStatus.RUNNING, run_worker_id=str(pid))
        process = "The run's process" if pid is None else f"The run's process (pid {pid})"
        message = f"{process} is gone, and its code server does not know the run."
        return CheckRunHealthResult(WorkerStatus.FAILED, message, run_worker_id=str(pid or ""))

    def _code_server_has(self, run_id: str) -> bool:
        from dagster._core.errors import DagsterUserCodeUnreachableError
        from dagster._grpc.types import GetCurrentRunsResult
        from dagster._serdes import deserialize_value

        client = self._get_grpc_client_for_termination(run_id)  # type: ignore[no-untyped-call]
        if client is None:
            return False
        try:
            answer = deserialize_value(client.get_current_runs(), GetCurrentRunsResult)
        except DagsterUserCodeUnreachableError:
            return False
        return run_id in answer.current_runs


def launched_locally(run: DagsterRun) -> bool:
    """Whether a process of this machine was started for the run."""
    return GRPC_INFO_TAG in run.tags


def worker_pid(instance: DagsterInstance, run_id: str) -> int | None:
    """The run's process, from the event by which it announced itself."""
    events = instance.all_logs(run_id, of_type=DagsterEventType.ENGINE_EVENT)
    for entry in events:
        event = entry.dagster_event
        if event is not None and (event.message or "").startswith("Started process for run"):
            pid = event.engine_event_data.metadata.get("pid")
            if pid is not None:
                return int(str(pid.value))
    return None


def alive(pid: int) -> bool:
    """Whether a process of this number runs on this machine; one that only waits to be reaped does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # somebody else's, but there
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            # The name in brackets may hold anything; the state is the first word after it.
            return file.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return not os.path.isdir("/proc/self")  # no /proc here: the signal's answer stands
