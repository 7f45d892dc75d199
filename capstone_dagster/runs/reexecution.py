"""The sensor that starts failed runs again from the step that failed, where that can help.

What waits stands in its cursor. A run is started again at most once, whatever dies in between: the new run's
id is made from the failed one's.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence, Set
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import dagster as dg
from dagster._core.execution.backfill import BulkActionStatus
from dagster._core.storage.tags import BACKFILL_ID_TAG, PARENT_BACKFILL_ID_TAG, PARENT_RUN_ID_TAG

from capstone_dagster.catalog.metrics import REEXECUTIONS, REEXECUTIONS_REFUSED
from capstone_dagster.failures.breaker_state import read_breaker, read_offers, write_offers
from capstone_dagster.failures.classes import FailureClass
from capstone_dagster.failures.cursors import known_fields
from capstone_dagster.failures.failed_runs import class_of, starts_again
from capstone_dagster.failures.run_steps import PASS_STEP
from capstone_dagster.run_tags import PROBE_TAG, SETTLED_TAG, UPLOAD_TAG, VIDEO_TAG
from capstone_dagster.runs.lineage import (
    JOBS,
    UPLOAD_JOB,
    Resumption,
    attempts,
    create_reexecution,
    is_kept_going,
    reexecution_id,
)
from capstone_dagster.runs.retry_policy import (
    Budget,
    FailedRun,
    Leave,
    Start,
    Verdict,
    Wait,
    failed_for_good,
    judge,
)
from capstone_dagster.services import Services
from capstone_dagster.storage.errors import StorageError
from capstone_dagster.storage.video_status import (
    add_outlook,
    give_up,
    requeue,
    upload_states,
    uploads_failed_in,
)

SENSOR_NAME = "reexecution"

# A tick may take 60 s; what it does not reach, the next one does.
_BUDGET_S = 20.0
# Runs whose records are written at one time may become visible a little out of order.
_OVERLAP_S = 30.0
# A first tick looks at what failed while nobody could start it again, and not at all that ever failed.
_FIRST_LOOK_S = 3600.0
# The upload's row says that it failed within seconds; if it never does, another run has it.
_TELL_FOR_S = 120.0
_OFFERED_AT_ONCE = 20
_ERRORS = 3

_GOES_ON = {
    BulkActionStatus.REQUESTED,
    BulkActionStatus.COMPLETED,
    BulkActionStatus.COMPLETED_SUCCESS,
    BulkActionStatus.COMPLETED_FAILED,
}
_OVER = {dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED}
_log = logging.getLogger("capstone.reactions")


@dataclass(slots=True)
class _Waiting:
    """A failed run that may be started again.

    Attributes:
        told: its upload's status says what follows, or need not.
        refused: that a budget held it up was counted.
        errors: how often starting it again went wrong.
    """

    run: FailedRun
    told: bool = False
    refused: bool = False
    errors: int = 0


@dataclass(slots=True)
class _Cursor:
    """What one tick leaves to the next; times are seconds since 1970.

    Attributes:
        seen: runs that were written to before this time have been looked at.
        waiting: by run id.
        started: when runs that take the GPU were started in the last hour.
    """

    seen: float
    waiting: dict[str, _Waiting] = field(default_factory=dict)
    started: list[float] = field(default_factory=list)


@dg.sensor(
    name=SENSOR_NAME,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Starts failed runs again from the step that failed: after causes that pass by themselves, "
    "within a budget for each video and hour, and once what had failed them all is over.",
)
def reexecution_sensor(
    context: dg.SensorEvaluationContext, services: dg.ResourceParam[Services]
) -> dg.SkipReason:
    """See the module."""
    tick = _Tick(context, services)
    tick.look_for_failures()
    tick.decide()
    context.update_cursor(_dump(tick.cursor))
    return dg.SkipReason(tick.account())


class _Tick:
    """One look at what failed."""

    def __init__(self, context: dg.SensorEvaluationContext, services: Services) -> None:
        assert context.repository_def is not None
        self._context = context
        self._repository = context.repository_def
        self._instance = context.instance
        self._services = services
        self._now = time.time()
        self._over = time.monotonic() + _BUDGET_S
        self._breaker = read_breaker(self._instance)
        self._store_answers = True
        self._started = 0
        self.cursor = _load(context.cursor, self._now)

    def look_for_failures(self) -> None:
        """Put runs that failed since the last look on the list of those that may be started again."""
        after = datetime.fromtimestamp(self.cursor.seen - _OVERLAP_S, UTC)
        failed = [dg.DagsterRunStatus.FAILURE]
        records = [
            record
            for job in JOBS
            for record in self._instance.get_run_records(
                dg.RunsFilter(job_name=job, statuses=failed, updated_after=after)
            )
        ]
        for record in records:
            run = record.dagster_run
            self.cursor.seen = max(self.cursor.seen, record.update_timestamp.timestamp())
            if run.run_id in self.cursor.waiting or run.tags.get(SETTLED_TAG) == run.run_id:
                continue
            if not is_kept_going(run) or starts_again(run):
                continue  # somebody's own run, or Dagster's to start again
            self.cursor.waiting[run.run_id] = _Waiting(self._failed(record))

    def decide(self) -> None:
        """Start what is due, offer what may be a probe, say of the rest what it waits for."""
        offers: dict[str, str] = {}
        for waiting in sorted(self.cursor.waiting.values(), key=lambda each: each.run.ended_at):
            if time.monotonic() > self._over:
                break
            verdict = self._verdict(waiting.run)
            if isinstance(verdict, Start):
                verdict = self._try_to_start(waiting, verdict)
            if isinstance(verdict, Leave):
                self._leave(waiting, verdict)
            elif isinstance(verdict, Wait):
                self._wait(waiting, verdict)
                if verdict.offered and len(offers) < _OFFERED_AT_ONCE:
                    offers[waiting.run.run_id] = waiting.run.failure.value
        if offers != read_offers(self._instance):
            write_offers(self._instance, offers)

    def account(self) -> str:
        """The tick in a sentence."""
        waiting = len(self.cursor.waiting)
        return f"{self._started} failed runs were started again, {waiting} wait for their time."

    def _failed(self, record: dg.RunRecord) -> FailedRun:
        run = record.dagster_run
        ended_at = record.end_time or record.update_timestamp.timestamp()
        failure = class_of(self._instance, run)
        return FailedRun(run.run_id, run.tags.get(UPLOAD_TAG), failure, ended_at, attempts(run.tags))

    def _verdict(self, failed: FailedRun) -> Verdict:
        settings = self._services.settings
        budget = Budget(
            settings.reexecutions_per_video, settings.reexecutions_per_hour, tuple(self.cursor.started)
        )
        return judge(failed, self._breaker, budget, self._now)

    def _try_to_start(self, waiting: _Waiting, start: Start) -> Verdict:
        """As :meth:`_start`; one run that cannot be started must not hold up the others."""
        try:
            return self._start(waiting, start)
        except Exception as error:  # whatever Dagster's storage and definitions raise
            waiting.errors += 1
            run_id = waiting.run.run_id
            told = f"Run {run_id} could not be started again: {type(error).__name__}: {error}"
            self._context.log.exception(told)
            _log.exception(told, extra={"action": "reexecution.failed", "run_id": run_id})
            return Wait() if waiting.errors < _ERRORS else Leave()

    def _start(self, waiting: _Waiting, start: Start) -> Verdict:
        """Start a run again, unless a look at the records says otherwise: then what follows instead."""
        failed = waiting.run
        run = self._instance.get_run_by_id(failed.run_id)
        if run is None or run.status != dg.DagsterRunStatus.FAILURE or starts_again(run):
            return Leave()
        children = self._instance.get_runs(dg.RunsFilter(tags={PARENT_RUN_ID_TAG: run.run_id}))
        again = next((child for child in children if child.run_id == reexecution_id(run.run_id)), None)
        if children and (again is None or again.status != dg.DagsterRunStatus.NOT_STARTED):
            return Leave()  # somebody was quicker, or an earlier tick died after it had done this
        if self._backfill_is_ended(run):
            return Leave()
        if (instead := self._overtaken(run)) is not None:
            return instead
        if again is None:
            resumption = Resumption.of(self._instance, run)
            if not resumption.steps:
                return Leave()
            # Why a worker was told to stop may have become known since.
            failure = class_of(self._instance, run)
            waiting.run = failed = replace(failed, failure=failure, gpu=PASS_STEP in resumption.steps)
            if not isinstance(verdict := self._verdict(failed), Start):
                return verdict
            again = create_reexecution(self._instance, self._repository, run, resumption, probe=start.probe)
        self._submit(run, again, failed)
        return Leave()

    def _backfill_is_ended(self, run: dg.DagsterRun) -> bool:
        """Whether somebody has ended or deleted the run's backfill, or has what is left of it done anew."""
        backfill_id = run.tags.get(BACKFILL_ID_TAG)
        if backfill_id is None:
            return False
        backfill = self._instance.get_backfill(backfill_id)
        # One whose runs are all over is completed, with or without failures.
        if backfill is None or backfill.status not in _GOES_ON:
            return True
        anew = dg.RunsFilter(tags={PARENT_BACKFILL_ID_TAG: backfill_id})
        return bool(self._instance.get_runs(anew, limit=1))

    def _overtaken(self, run: dg.DagsterRun) -> Verdict | None:
        """What follows instead where the upload needs no other try, or not yet; None if it does."""
        upload_id = run.tags.get(UPLOAD_TAG)
        if upload_id is None:
            return None
        # Whoever orders a backfill has seen what is done, and wants it again.
        ended = {None, "cancelled"}
        if run.job_name != UPLOAD_JOB:
            return self._unless_in(ended, upload_id)
        records = self._instance.get_run_records(dg.RunsFilter(tags={UPLOAD_TAG: upload_id}))
        created = {record.dagster_run.run_id: record.create_timestamp for record in records}
        later = [
            record.dagster_run
            for record in records
            if record.create_timestamp > created[run.run_id]
            and record.dagster_run.run_id != reexecution_id(run.run_id)
        ]
        if any(each.status == dg.DagsterRunStatus.SUCCESS for each in later):
            return Leave()
        if any(each.status not in _OVER for each in later):
            return Wait()
        return self._unless_in(ended | {"done", "superseded"}, upload_id)

    def _unless_in(self, states: Set[str | None], upload_id: str) -> Verdict | None:
        """None, unless the upload is in one of these states, or nobody can tell."""
        if not self._store_answers:
            return Wait()
        try:
            state = self._services.database.transact(upload_states, [upload_id]).get(upload_id)
        except StorageError as error:
            self._store_answers = False
            _log.warning(
                f"Failed runs wait until the event store answers: {error}",
                extra={"action": "reexecution.held"},
            )
            return Wait()
        return Leave() if state in states else None

    def _submit(self, run: dg.DagsterRun, again: dg.DagsterRun, failed: FailedRun) -> None:
        told = f"It is tried again after {failed.failure} (attempt {attempts(again.tags)})."
        try:
            for upload_id in self._uploads(failed):
                self._services.database.transact(requeue, upload_id, run.run_id, again.run_id, told)
        except StorageError:
            self._store_answers = False  # the run tells its own status when it begins
        # The queue takes a run by its record; it needs no workspace for that.
        self._instance.submit_run(again.run_id, workspace=None)  # type: ignore[arg-type]
        self._instance.report_engine_event(f"Started again as run {again.run_id}.", run)
        self._started += 1
        if failed.gpu and PROBE_TAG not in again.tags:
            self.cursor.started.append(self._now)
        self._services.metrics.add(REEXECUTIONS, failure_class=failed.failure.value)
        _log.info(
            f"Run {run.run_id} failed for {failed.failure} and goes on as run {again.run_id}.",
            extra={
                "action": "run.reexecuted",
                "run_id": again.run_id,
                "parent_run_id": run.run_id,
                "upload_id": failed.upload_id,
                "video_id": run.tags.get(VIDEO_TAG),
                "failure_class": failed.failure.value,
                "attempt": attempts(again.tags),
                "steps": list(again.step_keys_to_execute or ()),
            },
        )

    def _uploads(self, failed: FailedRun) -> list[str]:
        """Those whose status waits for what becomes of a failed run: the others of a backfill's are finished,
        were never begun, or have failed for good.

        Raises:
            StorageError: the event store does not answer.
        """
        if failed.upload_id is not None:
            return [failed.upload_id]
        rows = self._services.database.transact(uploads_failed_in, [failed.run_id])
        return [row["upload_id"] for row in rows if not failed_for_good(row["failure_class"])]

    def _leave(self, waiting: _Waiting, verdict: Leave) -> None:
        failed = waiting.run
        self._count_refusal(waiting, verdict)
        if verdict.told and not self._has_told(waiting, verdict.told):
            return  # until its status can say so
        if not self._has_given_up(failed):
            return  # until the event store answers
        if self._instance.has_run(failed.run_id):
            self._instance.add_run_tags(failed.run_id, {SETTLED_TAG: failed.run_id})
        del self.cursor.waiting[failed.run_id]

    def _has_given_up(self, failed: FailedRun) -> bool:
        """Where a notice has promised another try and none follows, another one says so.

        Returns:
            Whether it does, or need not.
        """
        if self._instance.get_runs(dg.RunsFilter(tags={PARENT_RUN_ID_TAG: failed.run_id}), limit=1):
            return True
        if not self._store_answers:
            return False
        try:
            for upload_id in self._uploads(failed):
                self._services.database.transact(give_up, upload_id, failed.run_id)
        except StorageError:
            self._store_answers = False
            return False
        return True

    def _wait(self, waiting: _Waiting, verdict: Wait) -> None:
        self._count_refusal(waiting, verdict)
        if verdict.told and not waiting.told:
            waiting.told = self._has_told(waiting, verdict.told)

    def _count_refusal(self, waiting: _Waiting, verdict: Wait | Leave) -> None:
        if not verdict.refused or waiting.refused:
            return
        waiting.refused = True
        failed = waiting.run
        self._services.metrics.add(REEXECUTIONS_REFUSED)
        extra = {"action": "reexecution.refused", "run_id": failed.run_id, "upload_id": failed.upload_id}
        extra["failure_class"] = failed.failure.value
        _log.warning(f"Run {failed.run_id} failed for {failed.failure}. {verdict.told}", extra=extra)

    def _has_told(self, waiting: _Waiting, told: str) -> bool:
        """Add to the upload's status what follows; whether it says so, or never will."""
        failed = waiting.run
        if not self._store_answers:
            return False
        try:
            database, uploads = self._services.database, self._uploads(failed)
            said = [database.transact(add_outlook, upload_id, failed.run_id, told) for upload_id in uploads]
        except StorageError:
            self._store_answers = False
            return False
        return (bool(said) and all(said)) or self._now - failed.ended_at > _TELL_FOR_S


def _load(cursor: str | None, now: float) -> _Cursor:
    if not cursor:
        return _Cursor(seen=now - _FIRST_LOOK_S)
    kept: dict[str, Any] = json.loads(cursor)
    waiting = [
        _Waiting(
            FailedRun(
                **known_fields(FailedRun, each["run"]) | {"failure": FailureClass(each["run"]["failure"])}
            ),
            **{name: each[name] for name in ("told", "refused", "errors")},
        )
        for each in kept["waiting"]
    ]
    return _Cursor(kept["seen"], {each.run.run_id: each for each in waiting}, kept["started"])


def _dump(cursor: _Cursor) -> str:
    lately: Sequence[float] = Budget(0, 0, cursor.started).lately(time.time())
    waiting = [asdict(each) for each in cursor.waiting.values()]
    return json.dumps({"seen": cursor.seen, "waiting": waiting, "started": lately})
