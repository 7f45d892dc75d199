"""Ends runs that a stopped stack left unfinished: the owner of its state knows that none of them is alive.

Dagster cannot detect this, so such a run would stay "started" and keep its place on the GPU.
"""

from dagster import DagsterInstance, DagsterRunStatus, RunsFilter

_UNFINISHED = [DagsterRunStatus.STARTING, DagsterRunStatus.STARTED, DagsterRunStatus.CANCELING]


def end_lost_runs() -> int:
    """Report each unfinished run of the instance as failed, so that it is started again."""
    with DagsterInstance.get() as instance:
        lost = instance.get_runs(RunsFilter(statuses=_UNFINISHED))
        for run in lost:
            instance.report_run_failed(run, "The local stack was stopped while this run was under way.")
    return len(lost)


if __name__ == "__main__":
    end_lost_runs()
