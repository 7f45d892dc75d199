"""What an operator does to a video's runs: end them, put them first, start them again where they failed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from batch_gpu.jobs import CANCELLED_TAG
from batch_gpu.local import kill
from capstone_dagster.dagster_private import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    PARENT_RUN_ID_TAG,
    PARTITION_NAME_TAG,
    PRIORITY_TAG,
    DagsterRunAlreadyExists,
)
from capstone_dagster.failures.run_steps import PASS_STEP
from capstone_dagster.run_tags import UPLOAD_TAG
from capstone_dagster.runs.lineage import Resumption, create_reexecution, reexecution_id
from capstone_dagster.runs.queueing import Place, QueuedRun, places
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.video_status import cancel_upload, is_done_by, requeue

_UNFINISHED = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
_POLL_S = 0.5
_ASK_AGAIN_S = 5.0


class Refused(Exception):
    """What an operator asked for cannot be done; the message says why, and what can."""

    failure_class = "configuration"


@dataclass(frozen=True, slots=True)
class Restart:
    """A failed run that can be started again from where it failed.

    Attributes:
        gpu: what is left to do takes the GPU.
    """

    video_id: str
    upload_id: str
    run: dg.DagsterRun
    resumption: Resumption
    gpu: bool


def cancel(
    instance: dg.DagsterInstance,
    database: Database,
    row: Mapping[str, Any],
    *,
    by: str,
    force: bool = False,
    deadline_s: float = 60.0,
) -> int:
    """End every run of a video, and what has failed and would be retried.

    The intention is recorded first, in the event store and in the runs' tags: whatever starts, retries or
    publishes an analysis asks for it. A run whose end is not seen is asked again, and after the deadline its
    process is killed if it is one of this machine.

    Args:
        row: of `current_status`.
        force: count runs as cancelled whose worker does not answer.

    Returns:
        How many runs were ended.

    Raises:
        Refused: there is nothing to end, a run analyses other videos too, one has published its events
            meanwhile, or one does not end.
    """
    video_id = row["video_id"]
    _refuse_shared(instance, row)
    runs = _unfinished(instance, video_id)
    if row["state"] == "received" and not runs:
        raise Refused(_nothing_to_cancel(row))
    intention = _Intention(instance, database, row, f"Cancelled by {by}.")
    for run in runs:
        intention.holds_for(run)
    if row["run_id"]:
        intention.record(row["upload_id"], row["run_id"])
    asked: dict[str, float] = {}
    give_up = time.monotonic() + deadline_s
    while runs := [run for run in _unfinished(instance, video_id) if intention.holds_for(run)]:
        now = time.monotonic()
        for run in runs:
            if run.status != dg.DagsterRunStatus.NOT_STARTED and now >= asked.get(run.run_id, 0.0):
                _end(instance, run.run_id)
                # A signal can be lost, in a library that swallows the exception of its handler.
                asked[run.run_id] = now + _ASK_AGAIN_S
        if now > give_up:
            alive = [run for run in runs if not (kill(run) or run.status == dg.DagsterRunStatus.NOT_STARTED)]
            if alive and not force:
                message = ", ".join(run.run_id for run in alive)
                raise Refused(
                    f"Run {message} of {video_id} does not end: its worker does not answer. It publishes "
                    "nothing any more. `--force` counts it as cancelled."
                )
            for run in runs:
                _report_ended(instance, run.run_id, f"Counted as cancelled by {by}.")
                asked[run.run_id] = now
            break
        time.sleep(_POLL_S)
    if intention.published:
        others = f" {len(asked)} other runs were ended." if asked else ""
        raise Refused(
            f"{video_id} was published before its run could be ended.{others} `capstone delete {video_id}` "
            "deletes the video with its events."
        )
    if not asked and not intention.changed:
        raise Refused(_nothing_to_cancel(row))
    return len(asked)


class _Intention:
    """That a video's runs are to end, on record before any of them is ended.

    Attributes:
        changed: an upload's status says so now, and did not before.
        published: a run was too quick: its analysis is published.
    """

    def __init__(
        self, instance: dg.DagsterInstance, database: Database, row: Mapping[str, Any], message: str
    ) -> None:
        self.changed = self.published = False
        self._instance = instance
        self._database = database
        self._row = row
        self._message = message
        self._recorded: dict[str, bool] = {}

    def holds_for(self, run: dg.DagsterRun) -> bool:
        """Record it for a run; False for one that has published, which is left to end by itself."""
        return self.record(run.tags.get(UPLOAD_TAG, self._row["upload_id"]), run.run_id)

    def record(self, upload_id: str, run_id: str) -> bool:
        """Record it for an upload and a run of it; False if that run has published the upload's analysis."""
        if run_id in self._recorded:
            return self._recorded[run_id]
        with self._database.transaction() as connection:
            # The status of a finished upload stays, whatever later run of it ends.
            self.changed |= cancel_upload(connection, upload_id, self._message, run_id)
            published = is_done_by(connection, upload_id, run_id)
        if not published and self._instance.has_run(run_id):
            self._instance.add_run_tags(run_id, {CANCELLED_TAG: run_id})
        was_done = self._row["state"] == "done" and self._row["run_id"] == run_id
        self.published |= published and not was_done
        self._recorded[run_id] = not published
        return not published


def prioritize(instance: dg.DagsterInstance, row: Mapping[str, Any], priority: int) -> dict[str, Place]:
    """Give a video's queued runs a priority in Dagster's queue.

    Returns:
        Their new places, by run id.

    Raises:
        Refused: none of its runs waits in the queue.
    """
    video_id = row["video_id"]
    runs = _unfinished(instance, video_id)
    queued = [run for run in runs if run.status == dg.DagsterRunStatus.QUEUED]
    if not queued:
        raise Refused(_nothing_queued(row, runs))
    for run in queued:
        instance.add_run_tags(run.run_id, {PRIORITY_TAG: str(priority)})
    found = _places(instance)
    return {run.run_id: found[run.run_id] for run in queued if run.run_id in found}


def _places(instance: dg.DagsterInstance) -> dict[str, Place]:
    waiting = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.QUEUED]), ascending=True)
    under_way = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
    queued = [
        QueuedRun(run.run_id, run.tags.get(PRIORITY_TAG, "0"), run.tags.get(UPLOAD_TAG)) for run in waiting
    ]
    return places(queued, instance.get_runs_count(dg.RunsFilter(statuses=under_way)))


def restart_of(instance: dg.DagsterInstance, row: Mapping[str, Any]) -> Restart:
    """How a failed video's run would be started again.

    Args:
        row: of `current_status`.

    Raises:
        Refused: it has not failed, is being tried again already, or nothing is known of its run any more.
    """
    video_id, run_id = row["video_id"], row["run_id"]
    if row["state"] != "failed":
        raise Refused(f"{video_id} has not failed: it is {row['state']}.")
    run = instance.get_run_by_id(run_id) if run_id else None
    if run is None:
        raise Refused(f"The run of {video_id} is no longer on record: upload or request the video again.")
    if run.status != dg.DagsterRunStatus.FAILURE:
        raise Refused(f"Run {run_id} of {video_id} is {run.status.value}, not over yet: try again shortly.")
    if run.tags.get(PARTITION_NAME_TAG) != video_id:
        raise Refused(
            f"Run {run_id} analysed other videos besides {video_id}: re-execute it in Dagster's pages, or "
            "materialize this partition there."
        )
    children = instance.get_runs(dg.RunsFilter(tags={PARENT_RUN_ID_TAG: run.run_id}))
    for child in children:
        if child.run_id != reexecution_id(run.run_id) or child.status != dg.DagsterRunStatus.NOT_STARTED:
            raise Refused(f"Run {run_id} of {video_id} was started again already, as run {child.run_id}.")
    resumption = Resumption.of(instance, run)
    if not resumption.steps:
        raise Refused(f"Run {run_id} of {video_id} has nothing left to do.")
    return Restart(video_id, row["upload_id"], run, resumption, PASS_STEP in resumption.steps)


def start_again(
    instance: dg.DagsterInstance,
    repository: dg.RepositoryDefinition,
    database: Database,
    restart: Restart,
    *,
    by: str,
) -> dg.DagsterRun:
    """Queue the run that goes on where a failed one stopped, with a new budget of tries of its own.

    It is the same run that the sensor `ended_runs` would make: of the two, one alone is started.

    Raises:
        Refused: the system or another operator was quicker.
    """
    run = restart.run
    try:
        again = create_reexecution(instance, repository, run, restart.resumption, anew=True)
    except DagsterRunAlreadyExists:
        known = instance.get_run_by_id(reexecution_id(run.run_id))
        if known is None or known.status != dg.DagsterRunStatus.NOT_STARTED:
            raise Refused(f"Run {run.run_id} of {restart.video_id} is being started again already.") from None
        again = known  # its creator has died since
    database.transact(requeue, restart.upload_id, run.run_id, again.run_id, f"It is tried again by {by}.")
    # The queue takes a run by its record; it needs no workspace for that.
    instance.submit_run(again.run_id, workspace=None)  # type: ignore[arg-type]
    instance.report_engine_event(f"Started again as run {again.run_id} by {by}.", run)
    return again


def _unfinished(instance: dg.DagsterInstance, video_id: str) -> list[dg.DagsterRun]:
    """Runs of the video alone that are not over."""
    filters = [dg.RunsFilter(tags=tags, statuses=_UNFINISHED) for tags in _only(video_id)]
    return [run for each in filters for run in instance.get_runs(each)]


def _only(video_id: str) -> tuple[dict[str, str], ...]:
    """The tags of runs over this video alone: asked for by name, or a backfill's stretch of one."""
    stretch = {ASSET_PARTITION_RANGE_START_TAG: video_id, ASSET_PARTITION_RANGE_END_TAG: video_id}
    return {PARTITION_NAME_TAG: video_id}, stretch


def _refuse_shared(instance: dg.DagsterInstance, row: Mapping[str, Any]) -> None:
    """A run over several videos is not one video's to end."""
    run = instance.get_run_by_id(row["run_id"]) if row["run_id"] else None
    if run is None or run.is_finished:
        return
    if any(tags.items() <= run.tags.items() for tags in _only(row["video_id"])):
        return
    raise Refused(
        f"Run {run.run_id} analyses other videos besides {row['video_id']}: end it in Dagster's pages "
        "if all of them are to stop."
    )


def _end(instance: dg.DagsterInstance, run_id: str) -> None:
    try:
        instance.run_coordinator.cancel_run(run_id)
    except Exception as error:  # the launcher's own: a code server that is gone, AWS Batch that refuses
        run = instance.get_run_by_id(run_id)
        if run is not None and not run.is_finished:
            message = f"It could not be ended: {type(error).__name__}: {error}"
            instance.report_engine_event(message, run)


def _report_ended(instance: dg.DagsterInstance, run_id: str, message: str) -> None:
    run = instance.get_run_by_id(run_id)
    if run is not None and not run.is_finished:
        instance.report_run_canceled(run, message)


def _nothing_to_cancel(row: Mapping[str, Any]) -> str:
    if row["state"] == "received":
        return f"{row['video_id']} has no run yet: its upload was just received. Try again in some seconds."
    return f"There is nothing to cancel: {row['video_id']} is {row['state']}."


def _nothing_queued(row: Mapping[str, Any], runs: list[dg.DagsterRun]) -> str:
    video_id = row["video_id"]
    if any(run.status == dg.DagsterRunStatus.STARTING for run in runs):
        return (
            f"{video_id} has left Dagster's queue and waits for its machine: {row['message'] or 'starting'}."
        )
    if runs:
        return f"{video_id} is past the queue: it is {row['state']}."
    if row["state"] == "received":
        return f"{video_id} has no run yet: its upload was just received. Try again in some seconds."
    return f"{video_id} does not wait: it is {row['state']}."
