"""What has failed, ended well, or is wrong now, as Dagster's records and the queues tell it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import dagster as dg
from dagster._core.execution.plan.objects import StepRetryData
from dagster._core.scheduler.instigation import InstigatorState, InstigatorStatus, InstigatorType, TickStatus
from dagster._core.storage.tags import PARTITION_NAME_TAG, ROOT_RUN_ID_TAG
from dagster_shared.error import SerializableErrorInfo

from batch_gpu.jobs import JOB_ID_TAG, LOG_STREAM_TAG, STATUS_TAG
from capstone_dagster.alerts.notices import Retry, RunFailure, RunSuccess, Trouble
from capstone_dagster.failures.breaker_state import DUPLICATE_JOB, OPERATOR, read_breaker
from capstone_dagster.failures.classes import ERRORS, POLICIES, FailureClass
from capstone_dagster.failures.failed_runs import failure_of, is_explained, starts_again
from capstone_dagster.failures.limits import age_over_limit
from capstone_dagster.failures.run_events import Position, unread
from capstone_dagster.failures.run_steps import has_pass
from capstone_dagster.metrics.left_messages import read_left
from capstone_dagster.metrics.waiting_messages import Queues
from capstone_dagster.run_tags import EXTERNAL_ID_TAG, NO_FAILURE, REEXECUTION_TAG, VIDEO_TAG
from capstone_dagster.settings import Settings

# Without a cursor, failures of the last minutes count: those of a daemon that was away are not old news.
LOOK_BACK_S = 600.0
# Successes are only looked at to see that an incident is over; seeing one twice does no harm.
_SUCCESS_OVERLAP_S = 60.0
_SUCCESSES_AT_ONCE = 500
# One failed tick may be a deployment or a moment's loss of connection; the next comes within seconds.
_FAILED_TICKS = 2
# A sensor that does not tick any more (switched off, renamed) is not failing.
_TICKS_OF_LAST_S = 300.0
# A step is tried again after some 5 and 10 s; what passes within the first of these is no news.
_RETRIES_FOR_S = 10.0
_RETRYING_AT_ONCE = 50
_STEP_ENDINGS = {dg.DagsterEventType.STEP_UP_FOR_RETRY, dg.DagsterEventType.STEP_SUCCESS}
# As assets/failing.py words the failure of a step.
_CLASS_AND_CAUSE = re.compile(rf"\b({'|'.join(FailureClass)}): (.+?)(?: What to do: |$)", re.DOTALL)
# The upload queue's visibility time-out is 180 s: what is left comes again, and is left again, within that.
_LEFT_FOR_S = 240.0
# A GPU machine starts and pulls its image in some ten minutes; whoever waits longer waits for capacity.
WAITS_LONG_S = 900.0


def new_failures(
    instance: dg.DagsterInstance,
    position: Position,
    *,
    now: float,
    budget_s: float,
    retries: int,
    clean: Callable[[str], str] = lambda text: text,
) -> Iterator[RunFailure]:
    """Failed runs that were not read yet; `position` moves on with each.

    Args:
        budget_s: seconds after which the rest is left to the next time.
        retries: how often the system starts a video's failed run again.
        clean: takes what is secret out of a sentence.
    """
    over = time.monotonic() + budget_s
    failed = unread(instance, dg.DagsterEventType.RUN_FAILURE, position, now=now, is_ready=is_explained)
    for event in failed:
        # A run that was deleted meanwhile, or that an operator started again and canceled, is nobody's.
        if event.run is not None and event.run.status == dg.DagsterRunStatus.FAILURE:
            yield _failure(instance, event.run, event.at, retries, clean)
        if time.monotonic() > over:
            return


def successes(instance: dg.DagsterInstance, since: float) -> list[RunSuccess]:
    """Runs over videos that ended well after `since`, seconds since 1970."""
    wanted = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.SUCCESS],
        updated_after=datetime.fromtimestamp(since - _SUCCESS_OVERLAP_S, UTC),
    )
    found = []
    for record in instance.get_run_records(wanted, limit=_SUCCESSES_AT_ONCE):
        run = record.dagster_run
        video = run.tags.get(VIDEO_TAG) or run.tags.get(PARTITION_NAME_TAG)
        if video is not None and record.start_time is not None:
            whole = has_pass(run)
            found.append(RunSuccess(record.start_time, video, whole, run.run_id))
    return found


def failing_sensors(
    instance: dg.DagsterInstance, *, now: float, clean: Callable[[str], str] = lambda text: text
) -> list[Trouble]:
    """Sensors whose latest ticks have all failed."""
    found = []
    for state in instance.all_instigator_state(instigator_type=InstigatorType.SENSOR):
        if state.status == InstigatorStatus.STOPPED:
            continue
        errors = _latest_errors(instance, state, now)
        if len(errors) >= _FAILED_TICKS:
            failure = _class_of(errors[0])
            page = failure.value if failure is not None else "sensor-failing"
            cause = clean(_told(errors[0]))
            found.append(Trouble(f"sensor {state.instigator_name}", cause, page, failure))
    return found


def intake_pause(instance: dg.DagsterInstance) -> list[Trouble]:
    """Intake that has paused itself; what an operator ordered he knows."""
    breaker = read_breaker(instance)
    if not breaker.paused or breaker.cause == OPERATOR:
        return []
    page = "duplicate-job" if breaker.cause == DUPLICATE_JOB else "intake-paused"
    return [Trouble("intake", breaker.told or f"Intake has paused because of {breaker.cause}.", page)]


def left_messages(
    instance: dg.DagsterInstance, *, now: float, clean: Callable[[str], str] = lambda text: text
) -> list[Trouble]:
    """Messages that intake cannot look up; those that it still cannot come again before this forgets them."""
    left = read_left(instance)
    if left is None or now - left.at > _LEFT_FOR_S:
        return []
    failure = FailureClass(left.failure)
    return [Trouble("lookup of uploads", clean(left.told), failure.value, failure, left.count)]


def waiting_runs(instance: dg.DagsterInstance, *, now: float) -> list[Trouble]:
    """Runs that were launched long ago and have no machine yet."""
    # A run's row is written when it is launched, and when what it waits for changes.
    wanted = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.STARTING],
        updated_before=datetime.fromtimestamp(now - WAITS_LONG_S, UTC),
    )
    waiting = instance.get_runs(wanted, limit=500)
    if not waiting:
        return []
    reason = waiting[-1].tags.get(STATUS_TAG)
    told = f"AWS Batch says {reason}" if reason else "there is no word of their workers"
    many = f"{len(waiting)} runs have" if len(waiting) > 1 else "1 run has"
    cause = f"{many} waited for a machine for more than {WAITS_LONG_S / 60:.0f} min: {told}."
    return [Trouble("waiting runs", cause, "waiting-for-capacity", count=len(waiting))]


def overdue_runs(instance: dg.DagsterInstance, settings: Settings, *, now: float) -> list[Trouble]:
    """Runs that take longer than their videos explain."""
    running = instance.get_run_records(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]), limit=500)
    overdue = [record for record in running if age_over_limit(record, settings, now) > 1]
    if not overdue:
        return []
    longest = min(overdue, key=lambda record: record.start_time or now)
    video = longest.dagster_run.tags.get(VIDEO_TAG) or longest.dagster_run.tags.get(PARTITION_NAME_TAG)
    age_min = (now - (longest.start_time or now)) / 60
    cause = f"The run {longest.dagster_run.run_id} of {video} has been running for {age_min:.0f} min."
    return [Trouble("overdue runs", cause, "long-running", count=len(overdue))]


def retrying_runs(
    instance: dg.DagsterInstance, *, now: float, clean: Callable[[str], str] = lambda text: text
) -> list[Trouble]:
    """Running runs that try a step again, by class, once they have been at it for a while.

    A step's own retries can take long: one that stores what it saw first sees it all again.
    """
    running = instance.get_runs(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]), limit=_RETRYING_AT_ONCE
    )
    causes: dict[FailureClass, str] = {}
    runs: dict[FailureClass, list[str]] = {}
    for run in running:
        since, data = None, None
        for record in instance.get_records_for_run(run.run_id, of_type=_STEP_ENDINGS).records:
            event = record.event_log_entry.dagster_event
            if event is None or not event.is_step_up_for_retry:
                since = None  # a step went well: so did what was tried again before
                continue
            since = since or record.event_log_entry.timestamp
            data = event.event_specific_data
        if since is None or now - since < _RETRIES_FOR_S or not isinstance(data, StepRetryData):
            continue
        # Around the step's failure is Dagster's own request to retry it.
        words = [_CLASS_AND_CAUSE.search(link.message) for link in _chain(data.error)]
        told = next((found for found in words if found is not None), None)
        if told is None:
            continue
        failure = FailureClass(told[1])
        causes.setdefault(failure, clean(told[2]))
        runs.setdefault(failure, []).append(run.run_id)
    return [
        Trouble(f"retry of a step ({failure})", causes[failure], failure.value, failure, len(ids), tuple(ids))
        for failure, ids in runs.items()
    ]


def dead_letters(queues: Queues) -> list[Trouble]:
    """Messages in the dead-letter queue of the upload queue."""
    count = queues.dead_letters()
    if count == 0:
        return []
    many = f"{count} messages were given up" if count > 1 else "1 message was given up"
    cause = f"{many} and put with the dead letters; `capstone dlq list` has the reasons."
    return [Trouble("dead letters", cause, "dead-letters", count=count)]


def _failure(
    instance: dg.DagsterInstance, run: dg.DagsterRun, at: float, retries: int, clean: Callable[[str], str]
) -> RunFailure:
    try:
        failure, told = failure_of(instance, run)
    except ValueError as error:  # a class that is none of ours: one such run must not hide all later ones
        failure, told = FailureClass.INTERNAL, f"Its failure class cannot be read: {error}."
    retry: Retry = "no"
    again = run.tags.get(REEXECUTION_TAG, "")
    if starts_again(run):
        retry = "dagster"
    elif POLICIES[failure].transient and (int(again) if again.isdecimal() else 0) < retries:
        retry = "reexecution"
    job = run.tags.get(JOB_ID_TAG, NO_FAILURE)
    stream = run.tags.get(LOG_STREAM_TAG, NO_FAILURE)
    return RunFailure(
        run.run_id,
        failure,
        clean(told),
        at,
        video_id=run.tags.get(VIDEO_TAG) or run.tags.get(PARTITION_NAME_TAG),
        external_id=run.tags.get(EXTERNAL_ID_TAG),
        attempt=_attempt(instance, run),
        retry=retry,
        job_id=None if job == NO_FAILURE else job,
        log_stream=None if stream == NO_FAILURE else stream,
    )


def _attempt(instance: dg.DagsterInstance, run: dg.DagsterRun) -> int:
    """1 for a first run; for one started again, its place among the runs of its root."""
    root = run.tags.get(ROOT_RUN_ID_TAG)
    if root is None:
        return 1
    family = instance.get_run_records(dg.RunsFilter(tags={ROOT_RUN_ID_TAG: root}), limit=100, ascending=True)
    ids = [record.dagster_run.run_id for record in family if record.dagster_run.run_id != root]
    return 2 + ids.index(run.run_id) if run.run_id in ids else 2


def _latest_errors(
    instance: dg.DagsterInstance, state: InstigatorState, now: float
) -> list[SerializableErrorInfo]:
    """The errors of a sensor's latest ticks, newest first, up to the last one that was well."""
    ticks = instance.get_ticks(
        state.instigator_origin_id, state.selector_id, after=now - _TICKS_OF_LAST_S, limit=_FAILED_TICKS + 2
    )
    errors = []
    for tick in ticks:
        if tick.status == TickStatus.STARTED:
            continue
        if tick.status != TickStatus.FAILURE or tick.error is None:
            break
        errors.append(tick.error)
    return errors


def _class_of(error: SerializableErrorInfo) -> FailureClass | None:
    for link in _chain(error):
        if link.cls_name is not None and link.cls_name in ERRORS:
            return ERRORS[link.cls_name]
    return None


def _told(error: SerializableErrorInfo) -> str:
    """The innermost error's own words: around it are Dagster's, on the sensor that everybody sees."""
    *_, innermost = _chain(error)
    for link in _chain(error):
        if link.cls_name in ERRORS:
            innermost = link
            break
    _, colon, words = innermost.message.strip().partition(": ")
    ours = innermost.cls_name in ERRORS and colon
    return words.strip() if ours else innermost.message.strip()


def _chain(error: SerializableErrorInfo) -> Iterator[SerializableErrorInfo]:
    link: SerializableErrorInfo | None = error
    while link is not None:
        yield link
        link = link.cause
