"""What is wrong now, although no run need fail because of it: from Dagster's records and the queues."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import dagster as dg

from batch_gpu.jobs import STATUS_TAG
from capstone_dagster.alerts.incidents import Trouble
from capstone_dagster.dagster_private import (
    PARTITION_NAME_TAG,
    InstigatorState,
    InstigatorStatus,
    InstigatorType,
    SerializableErrorInfo,
    TickStatus,
)
from capstone_dagster.failures.breaker_state import BREAKER, DUPLICATE_JOB, OPERATOR
from capstone_dagster.failures.classes import FailureClass, classify_recorded, recorded_sentence
from capstone_dagster.failures.left_messages import LEFT_MESSAGES
from capstone_dagster.failures.limits import age_over_limit
from capstone_dagster.failures.step_retries import retry_of
from capstone_dagster.metrics.waiting_messages import Queues
from capstone_dagster.run_tags import VIDEO_TAG
from capstone_dagster.settings import Settings

# One failed tick may be a deployment or a moment's loss of connection; the next comes within seconds.
_FAILED_TICKS = 2
# A sensor that does not tick any more (switched off, renamed) is not failing.
_TICKS_OF_LAST_S = 300.0
# A step is tried again after some 5 and 10 s; what passes within the first of these is no news.
_RETRIES_FOR_S = 10.0
_RETRYING_AT_ONCE = 50
# The upload queue's visibility time-out is 180 s: what is left comes again, and is left again, within that.
_LEFT_FOR_S = 240.0
# A GPU machine starts and pulls its image in some ten minutes; a run that waits longer waits for capacity.
WAITS_LONG_S = 900.0


@dataclass(frozen=True, slots=True)
class Condition:
    """Something wrong with the system although no run has failed with a class of its own.

    Attributes:
        title: what has happened, in a few words: the heading of its page.
        remedy: what an operator does next, in one sentence.
    """

    title: str
    remedy: str


# The key is the anchor of the condition's page in docs/runbook.md.
CONDITIONS: Mapping[str, Condition] = {
    "sensor-failing": Condition(
        "A sensor's ticks fail", "Read the tick's stack trace in Dagster's UI, Automation."
    ),
    "intake-paused": Condition(
        "Intake is paused", "Remove the cause: intake resumes when a trial upload succeeds."
    ),
    "duplicate-job": Condition(
        "The same GPU work was started twice",
        "Find out how the second run was started, then resume intake with capstone intake resume.",
    ),
    "waiting-for-capacity": Condition(
        "Runs wait long for a machine",
        "Wait ten minutes for a first machine to start, then check AWS Batch's capacity.",
    ),
    "long-running": Condition(
        "A run is overdue",
        "See in capstone status whether it progresses; if not, terminate and re-execute it.",
    ),
    "dead-letters": Condition(
        "Messages are in the dead-letter queue",
        "Remove the cause that capstone dlq list shows, then send them again with capstone dlq redrive.",
    ),
}


def failing_sensors(instance: dg.DagsterInstance, *, now: float) -> list[Trouble]:
    """Sensors whose latest ticks have all failed."""
    found = []
    for state in instance.all_instigator_state(instigator_type=InstigatorType.SENSOR):
        if state.status == InstigatorStatus.STOPPED:
            continue
        errors = _latest_errors(instance, state, now)
        if len(errors) >= _FAILED_TICKS:
            failure = classify_recorded(errors[0])
            page = failure.value if failure is not None else "sensor-failing"
            cause = recorded_sentence(errors[0])
            found.append(Trouble(f"sensor {state.instigator_name}", cause, page, failure))
    return found


def intake_pause(instance: dg.DagsterInstance) -> list[Trouble]:
    """Intake that has paused itself; a pause that an operator ordered is no trouble."""
    breaker = BREAKER.read(instance)
    if not breaker.paused or breaker.cause == OPERATOR:
        return []
    page = "duplicate-job" if breaker.cause == DUPLICATE_JOB else "intake-paused"
    return [Trouble("intake", breaker.reason or f"Intake has paused because of {breaker.cause}.", page)]


def left_messages(instance: dg.DagsterInstance, *, now: float) -> list[Trouble]:
    """Messages that intake cannot look up; those that it still cannot come again before this forgets them."""
    left = LEFT_MESSAGES.read(instance)
    if left is None or now - left.at > _LEFT_FOR_S:
        return []
    return [Trouble("lookup of uploads", left.sentence, left.failure.value, left.failure, left.count)]


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
    reason_text = f"AWS Batch says {reason}" if reason else "their workers have not reported"
    many = f"{len(waiting)} runs have" if len(waiting) > 1 else "1 run has"
    cause = f"{many} waited for a machine for more than {WAITS_LONG_S / 60:.0f} min: {reason_text}."
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


def retrying_runs(instance: dg.DagsterInstance, *, now: float) -> list[Trouble]:
    """Running runs that try a step again, by class, once they have been at it for a while.

    A step's own retries can take long: one that stores what it saw first sees it all again.
    """
    running = instance.get_runs(
        dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]), limit=_RETRYING_AT_ONCE
    )
    causes: dict[FailureClass, str] = {}
    runs: dict[FailureClass, list[str]] = {}
    for run in running:
        retry = retry_of(run.run_id, run.tags)
        if retry is None or now - retry.since < _RETRIES_FOR_S:
            continue
        causes.setdefault(retry.failure, retry.cause)
        runs.setdefault(retry.failure, []).append(run.run_id)
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
