"""Retries failed runs from the step that failed, as the verdicts on them decided.

Waiting runs are kept in the cursor of the reader of ended runs. A run is retried at most once, even if the
process dies in between: the new run's id is made from the failed one's.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, field, replace

import dagster as dg

from batch_gpu.jobs import FAILURE_TAG as JOB_FAILURE_TAG
from batch_gpu.jobs import is_cancelled
from capstone_dagster.catalog.metrics import REEXECUTIONS, REEXECUTIONS_REFUSED
from capstone_dagster.dagster_private import (
    BACKFILL_ID_TAG,
    PARENT_BACKFILL_ID_TAG,
    PARENT_RUN_ID_TAG,
    BulkActionStatus,
)
from capstone_dagster.failures.breaker_state import OFFERS, BreakerState
from capstone_dagster.failures.classes import FailureClass
from capstone_dagster.failures.requests import UPLOAD_JOB, attempts
from capstone_dagster.failures.retry_policy import (
    Budget,
    Decision,
    FailedRun,
    Leave,
    Start,
    Wait,
    failed_for_good,
    judge,
)
from capstone_dagster.failures.run_steps import PASS_STEP
from capstone_dagster.failures.verdicts import Verdict, failed_run
from capstone_dagster.run_tags import PROBE_TAG, SETTLED_TAG, UPLOAD_TAG, VIDEO_TAG
from capstone_dagster.runs.lineage import Resumption, create_reexecution, reexecution_id
from capstone_dagster.services import Services
from capstone_dagster.settings import Settings
from capstone_dagster.storage.errors import StorageError
from capstone_dagster.storage.video_status import (
    add_outlook,
    give_up,
    requeue,
    status_of_upload,
    upload_states,
    uploads_failed_in,
)

# Of the 60 s that a tick may take; what it does not reach, the next one does.
_BUDGET_S = 15.0
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
class WaitingRun:
    """A failed run that may be started again.

    Attributes:
        announced: its upload's status says what follows, or need not.
        refused: that a budget held it up was counted.
        errors: how often starting it again went wrong.
    """

    run: FailedRun
    announced: bool = False
    refused: bool = False
    errors: int = 0


@dataclass(slots=True)
class WaitingRuns:
    """What one tick leaves to the next; times are seconds since 1970.

    Attributes:
        waiting: by run id.
        started: when runs that take the GPU were started in the last hour.
    """

    waiting: dict[str, WaitingRun] = field(default_factory=dict)
    started: list[float] = field(default_factory=list)

    def enter(self, instance: dg.DagsterInstance, verdicts: Iterable[Verdict]) -> None:
        """Put runs that failed on the list of those that may be started again."""
        for verdict in verdicts:
            if verdict.cause is None or verdict.run_id in self.waiting:
                continue
            run = instance.get_run_by_id(verdict.run_id)
            if run is None or run.tags.get(SETTLED_TAG) == run.run_id:
                continue
            failed = failed_run(run, verdict.cause.failure, verdict.ended_at)
            if failed.kept_going or not isinstance(verdict.decision, Leave):
                self.waiting[run.run_id] = WaitingRun(failed)


def budget_of(settings: Settings, started: Sequence[float]) -> Budget:
    """How much the settings let the system start again."""
    return Budget(settings.reexecutions_per_video, settings.reexecutions_per_hour, tuple(started))


@dataclass(slots=True)
class RetryTick:
    """One look at what may be started again.

    Attributes:
        store_answers: the event store is worth asking.
    """

    instance: dg.DagsterInstance
    repository: dg.RepositoryDefinition
    services: Services
    runs: WaitingRuns
    breaker: BreakerState
    store_answers: bool = True
    _now: float = field(default_factory=lambda: time.time())
    _over: float = field(default_factory=lambda: time.monotonic() + _BUDGET_S)
    _started: int = 0

    def decide(self) -> str:
        """Start what is due, offer what may be a probe, say of the rest what it waits for.

        Returns:
            The account in a sentence.
        """
        offers: dict[str, str] = {}
        for waiting in sorted(self.runs.waiting.values(), key=lambda each: each.run.ended_at):
            if time.monotonic() > self._over:
                break
            decision = self._judge(waiting.run)
            if isinstance(decision, Start):
                decision = self._try_to_start(waiting, decision)
            if isinstance(decision, Leave):
                self._leave(waiting, decision)
            elif isinstance(decision, Wait):
                self._wait(waiting, decision)
                if decision.offered and len(offers) < _OFFERED_AT_ONCE:
                    offers[waiting.run.run_id] = waiting.run.failure.value
        if offers != OFFERS.read(self.instance):
            OFFERS.write(self.instance, offers)
        waiting_runs = len(self.runs.waiting)
        return f"{self._started} failed runs were started again, {waiting_runs} wait for their time."

    def _judge(self, failed: FailedRun) -> Decision:
        budget = budget_of(self.services.settings, self.runs.started)
        return judge(failed, self.breaker, budget, self._now)

    def _try_to_start(self, waiting: WaitingRun, start: Start) -> Decision:
        """As :meth:`_start`; one run that cannot be started must not hold up the others."""
        try:
            return self._start(waiting, start)
        except Exception as error:  # whatever Dagster's storage and definitions raise
            waiting.errors += 1
            run_id = waiting.run.run_id
            message = f"Run {run_id} could not be started again: {type(error).__name__}: {error}"
            _log.exception(message, extra={"action": "reexecution.failed", "run_id": run_id})
            return Wait() if waiting.errors < _ERRORS else Leave()

    def _start(self, waiting: WaitingRun, start: Start) -> Decision:
        """Start a run again, unless a look at the records says otherwise: then what follows instead."""
        failed = waiting.run
        run = self.instance.get_run_by_id(failed.run_id)
        if run is None or run.status != dg.DagsterRunStatus.FAILURE or is_cancelled(run.run_id, run.tags):
            return Leave()
        children = self.instance.get_runs(dg.RunsFilter(tags={PARENT_RUN_ID_TAG: run.run_id}))
        again = next((child for child in children if child.run_id == reexecution_id(run.run_id)), None)
        if children and (again is None or again.status != dg.DagsterRunStatus.NOT_STARTED):
            return Leave()  # an operator was quicker, or an earlier tick died after it had done this
        if self._backfill_is_ended(run):
            return Leave()
        if (instead := self._overtaken(run)) is not None:
            return instead
        if again is None:
            resumption = Resumption.of(self.instance, run)
            if not resumption.steps:
                return Leave()
            gpu = PASS_STEP in resumption.steps
            waiting.run = failed = replace(failed, gpu=gpu, progress=self._progress(run) if gpu else None)
            if not isinstance(decision := self._judge(failed), Start):
                return decision
            again = create_reexecution(self.instance, self.repository, run, resumption, probe=start.probe)
        self._submit(run, again, failed)
        return Leave()

    def _backfill_is_ended(self, run: dg.DagsterRun) -> bool:
        """Whether an operator has ended or deleted the run's backfill, or had the rest of it done anew."""
        backfill_id = run.tags.get(BACKFILL_ID_TAG)
        if backfill_id is None:
            return False
        backfill = self.instance.get_backfill(backfill_id)
        # One whose runs are all over is completed, with or without failures.
        if backfill is None or backfill.status not in _GOES_ON:
            return True
        anew = dg.RunsFilter(tags={PARENT_BACKFILL_ID_TAG: backfill_id})
        return bool(self.instance.get_runs(anew, limit=1))

    def _overtaken(self, run: dg.DagsterRun) -> Decision | None:
        """What follows instead where the upload needs no other try, or not yet; None if it does."""
        upload_id = run.tags.get(UPLOAD_TAG)
        if upload_id is None:
            return None
        # A backfill includes finished videos on purpose.
        ended = {None, "cancelled"}
        if run.job_name != UPLOAD_JOB:
            return self._unless_in(ended, upload_id)
        records = self.instance.get_run_records(dg.RunsFilter(tags={UPLOAD_TAG: upload_id}))
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

    def _progress(self, run: dg.DagsterRun) -> float | None:
        """How far a run was, 0–1, that the launcher ended at its time limit; None for others."""
        upload_id = run.tags.get(UPLOAD_TAG)
        if upload_id is None or run.tags.get(JOB_FAILURE_TAG) != FailureClass.TIMEOUT:
            return None
        try:
            row = self.services.database.transact(status_of_upload, upload_id)
        except StorageError:
            return None
        return row["progress"] if row is not None and row["run_id"] == run.run_id else None

    def _unless_in(self, states: Set[str | None], upload_id: str) -> Decision | None:
        """None, unless the upload is in one of these states, or its state cannot be read."""
        if not self.store_answers:
            return Wait()
        try:
            state = self.services.database.transact(upload_states, [upload_id]).get(upload_id)
        except StorageError as error:
            self.store_answers = False
            _log.warning(
                f"Failed runs wait until the event store answers: {error}",
                extra={"action": "reexecution.held"},
            )
            return Wait()
        return Leave() if state in states else None

    def _submit(self, run: dg.DagsterRun, again: dg.DagsterRun, failed: FailedRun) -> None:
        message = f"It is tried again after {failed.failure} (attempt {attempts(again.tags)})."
        # Where the event store does not answer, the run reports its own status when it begins.
        self._change_status(failed, requeue, again.run_id, message)
        # An operator may have cancelled the upload since the look at it.
        if (before := self.instance.get_run_by_id(run.run_id)) and is_cancelled(run.run_id, before.tags):
            self.instance.report_run_canceled(again, f"Run {run.run_id}, which it continues, was cancelled.")
            return
        # The queue takes a run by its record; it needs no workspace for that.
        self.instance.submit_run(again.run_id, workspace=None)  # type: ignore[arg-type]
        self.instance.report_engine_event(f"Started again as run {again.run_id}.", run)
        self._started += 1
        if failed.gpu and PROBE_TAG not in again.tags:
            started = budget_of(self.services.settings, self.runs.started).lately(self._now)
            self.runs.started = [*started, self._now]
        self.services.metrics.add(REEXECUTIONS, failure_class=failed.failure.value)
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
        rows = self.services.database.transact(uploads_failed_in, [failed.run_id])
        return [row["upload_id"] for row in rows if not failed_for_good(row["failure_class"])]

    def _leave(self, waiting: WaitingRun, decision: Leave) -> None:
        failed = waiting.run
        self._count_refusal(waiting, decision)
        if decision.outlook and not self._announce(waiting, decision.outlook):
            return  # until its status can say so
        if not self._has_given_up(failed):
            return  # until the event store answers
        if self.instance.has_run(failed.run_id):
            self.instance.add_run_tags(failed.run_id, {SETTLED_TAG: failed.run_id})
        del self.runs.waiting[failed.run_id]

    def _has_given_up(self, failed: FailedRun) -> bool:
        """Where a notice has promised another try and none follows, another one says so.

        Returns:
            Whether it does, or need not.
        """
        if self.instance.get_runs(dg.RunsFilter(tags={PARENT_RUN_ID_TAG: failed.run_id}), limit=1):
            return True
        return self._change_status(failed, give_up) is not None

    def _wait(self, waiting: WaitingRun, decision: Wait) -> None:
        self._count_refusal(waiting, decision)
        if decision.outlook and not waiting.announced:
            waiting.announced = self._announce(waiting, decision.outlook)

    def _count_refusal(self, waiting: WaitingRun, decision: Wait | Leave) -> None:
        if not decision.refused or waiting.refused:
            return
        waiting.refused = True
        failed = waiting.run
        self.services.metrics.add(REEXECUTIONS_REFUSED)
        extra = {"action": "reexecution.refused", "run_id": failed.run_id, "upload_id": failed.upload_id}
        extra["failure_class"] = failed.failure.value
        _log.warning(f"Run {failed.run_id} failed for {failed.failure}. {decision.outlook}", extra=extra)

    def _announce(self, waiting: WaitingRun, message: str) -> bool:
        """Add to the upload's status what follows; whether it says so, or never will."""
        said = self._change_status(waiting.run, add_outlook, message)
        if said is None:
            return False
        return (bool(said) and all(said)) or self._now - waiting.run.ended_at > _TELL_FOR_S

    def _change_status(
        self, failed: FailedRun, change: Callable[..., bool], *arguments: str
    ) -> list[bool] | None:
        """Change the status of a failed run's uploads; None if the event store does not answer."""
        if not self.store_answers:
            return None
        transact = self.services.database.transact
        try:
            return [
                transact(change, upload_id, failed.run_id, *arguments) for upload_id in self._uploads(failed)
            ]
        except StorageError:
            self.store_answers = False
            return None
