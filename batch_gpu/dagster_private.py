"""Everything that this package uses of Dagster's private modules, read in dagster 1.13.27.

A run launcher cannot be written without them: its base class is one. Dagster may change them without notice:
check each of them when you raise its version. A launcher's process imports this at once; the fork server does
when it has begun to listen.
"""

from dagster._cli.api import _execute_run_command_body as execute_run_command_body
from dagster._core.events import EngineEventData, JobFailureData, RunFailureReason
from dagster._core.launcher import (
    CheckRunHealthResult,
    LaunchRunContext,
    ResumeRunContext,
    RunLauncher,
    WorkerStatus,
)
from dagster._core.storage.dagster_run import IN_PROGRESS_RUN_STATUSES
from dagster._core.storage.tags import RUN_FAILURE_REASON_TAG, RUN_WORKER_ID_TAG, WILL_RETRY_TAG
from dagster._grpc.types import ExecuteRunArgs, ResumeRunArgs
from dagster._serdes import ConfigurableClass, ConfigurableClassData, deserialize_value, serialize_value
from dagster._time import get_current_timestamp
from dagster._utils.error import serializable_error_info_from_exc_info
from dagster._utils.interrupts import (
    capture_interrupts,
    check_captured_interrupt,
    setup_interrupt_handlers,
)

__all__ = [
    "IN_PROGRESS_RUN_STATUSES",
    "RUN_FAILURE_REASON_TAG",
    "RUN_WORKER_ID_TAG",
    "WILL_RETRY_TAG",
    "CheckRunHealthResult",
    "ConfigurableClass",
    "ConfigurableClassData",
    "EngineEventData",
    "ExecuteRunArgs",
    "JobFailureData",
    "LaunchRunContext",
    "ResumeRunArgs",
    "ResumeRunContext",
    "RunFailureReason",
    "RunLauncher",
    "WorkerStatus",
    "capture_interrupts",
    "check_captured_interrupt",
    "deserialize_value",
    "execute_run_command_body",
    "get_current_timestamp",
    "serializable_error_info_from_exc_info",
    "serialize_value",
    "setup_interrupt_handlers",
]
