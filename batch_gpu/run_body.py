"""Execute a run so that its end is on record, even if Dagster's storage was away when it ended.

Dagster's own body of a run swallows the error of an end that it cannot write. Such a run looks as if its
worker were gone, which is not what happened.
"""

import logging
import sys
import time

from dagster import DagsterInstance, DagsterRunStatus

from batch_gpu.dagster_private import (
    JobFailureData,
    RunFailureReason,
    execute_run_command_body,
    serializable_error_info_from_exc_info,
)
from batch_gpu.errors import RunEndNotRecorded

# Longer than a restart or a failover of a database takes.
_STORAGE_RETURNS_WITHIN_S = 300.0
_ASK_AGAIN_S = 2.0


def execute_run(instance: DagsterInstance, run_id: str, *, set_exit_code_on_failure: bool) -> int:
    """The exit status of `dagster api execute_run`; 1 if the run's end had to be recorded afterwards."""
    before = instance.get_run_by_id(run_id)
    # Another worker executes it: its end is that worker's to record.
    others = before is not None and before.status == DagsterRunStatus.STARTED
    try:
        status = execute_run_command_body(
            run_id, instance, lambda event: None, set_exit_code_on_failure=set_exit_code_on_failure
        )
        error = None
    except Exception as raised:  # whatever it is, it is recorded as the run's end
        status, error = 1, raised
    return 1 if not others and _record_end(instance, run_id, error) else status


def _record_end(instance: DagsterInstance, run_id: str, error: Exception | None) -> bool:
    """Record the end of a run whose body is over; False if it is on record."""
    try:
        raise error or RunEndNotRecorded("Dagster's storage did not take the run's end.")
    except Exception as why:
        sentence, recorded = str(why), serializable_error_info_from_exc_info(sys.exc_info())
    give_up = time.monotonic() + _STORAGE_RETURNS_WITHIN_S
    warned = False
    while True:
        try:
            run = instance.get_run_by_id(run_id)
            if run is None or run.is_finished:
                return False
            if run.status == DagsterRunStatus.CANCELING:
                instance.report_run_canceled(run, "The run was canceled.")
            else:
                what = JobFailureData(recorded, failure_reason=RunFailureReason.RUN_EXCEPTION)
                instance.report_run_failed(run, sentence, what)
        except Exception as away:  # by whatever class the storage's driver has for it
            if time.monotonic() > give_up:
                raise
            if not warned:  # once an outage
                logging.warning(f"The end of run {run_id} cannot be recorded yet: {away}")
            warned = True
            time.sleep(_ASK_AGAIN_S)
        else:
            return True
