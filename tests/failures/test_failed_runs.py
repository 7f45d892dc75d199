"""What is told of a run's failure, from its own events."""

import sys

import dagster as dg
import pytest
from dagster._core.events import EngineEventData
from dagster._utils.error import serializable_error_info_from_exc_info

from capstone_dagster.failures.classes import FailureClass
from capstone_dagster.failures.failed_runs import failure_of


@dg.job
def nothing() -> None: ...


def went_wrong(message: str) -> EngineEventData:
    try:
        raise ImportError(message)
    except ImportError:
        return EngineEventData.engine_error(serializable_error_info_from_exc_info(sys.exc_info()))


@pytest.mark.parametrize(
    ("wrong", "said", "told"),
    [
        (True, None, "The run was not launched: ImportError: no name 'x'"),
        (True, "The worker has crashed.", "The worker has crashed."),
        (False, None, "This run has been marked as failed from outside the execution context."),
    ],
)
def test_a_run_that_was_never_launched_says_why(wrong: bool, said: str | None, told: str) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run = instance.create_run_for_job(nothing)
        if wrong:
            instance.report_engine_event("The run was not launched", run, went_wrong("no name 'x'"))
        instance.report_run_failed(run, said)
        assert failure_of(instance, run) == (FailureClass.WORKER_LOST, told)
