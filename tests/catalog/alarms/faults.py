"""What can be wrong, each as a change of a clean day's metrics, and what must be told of it.

Every alarm has a fault here by which it rings. Faults of which several alarms are effects are drawn as the
system shows them: intake pauses itself, runs end, gauges fall silent with the daemon.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from capstone_dagster.catalog import alarms
from capstone_dagster.catalog import aws_metrics as aws
from capstone_dagster.catalog import metrics as own
from capstone_dagster.catalog.alarms import DAEMON, WEBSERVER
from capstone_dagster.catalog.composites import notifier
from capstone_dagster.catalog.model import Alarm, AwsMetric, Metric
from tests.catalog.alarms.traffic import GIB, World

SILENT = np.nan
# What the daemon's sensors publish, and what ends with them.
FROM_DAEMON = (
    own.RUNS_SUCCEEDED,
    own.RUNS_FAILED,
    own.REEXECUTIONS_REFUSED,
    own.SECONDS_WITHOUT_SUCCESS,
    own.LONGEST_RUN_OVER_LIMIT,
    own.INTAKE_PAUSED,
    own.DEAD_LETTERS,
    own.NOTICES_FAILED,
    own.OUTBOX_REFUSED,
    own.OUTBOX_AGE,
    own.SENSOR_TICK_ERRORS,
)


@dataclass(frozen=True)
class Fault:
    """Something that is wrong for a while.

    Attributes:
        apply: changes the metrics of the minutes in which it is wrong.
        rings: alarms that must ring within two periods, and be silent again afterwards.
        told_by: the only alarm or composite that tells somebody.
        minutes: how long it is wrong.
        sets_in_after: minutes until the first of `rings` could know: an hour in the queue is no fault yet.
    """

    name: str
    apply: Callable[[World, slice], None]
    rings: tuple[Alarm, ...]
    told_by: str
    minutes: int = 40
    sets_in_after: int = 0


def value(metric: Metric | AwsMetric, values: float, **dimensions: str) -> Callable[[World, slice], None]:
    """The metric has this value each minute."""
    return lambda world, during: world.change(metric, during, values, **dimensions)


def only(alarm: Alarm, apply: Callable[[World, slice], None]) -> Fault:
    """A fault that nothing but this alarm sees."""
    return Fault(alarm.name, apply, (alarm,), notifier(alarm))


def runs_fail(world: World, during: slice, failure_class: str, share: float = 1.0) -> None:
    """So many of the runs that would have ended well fail."""
    ending = np.nan_to_num(world[own.RUNS_SUCCEEDED, {}][during])
    failing = np.ceil(share * ending)
    world.change(own.RUNS_SUCCEEDED, during, ending - failing)
    world.change(own.RUNS_FAILED, during, failing, FailureClass=failure_class)


def intake_pauses(world: World, during: slice, failure_class: str, of_runs: bool = True) -> int:
    """Runs fail until five have, then intake is paused; trials at growing intervals fail too.

    Returns:
        The minute from which on it is paused.
    """
    paused_from = during.start
    if of_runs:
        runs_fail(world, during, failure_class)
        failing = world[own.RUNS_FAILED, {"FailureClass": failure_class}]
        paused_from += int(np.argmax(np.cumsum(failing[during]) >= 5)) + 1
    paused = slice(paused_from, during.stop)
    trials = np.zeros(paused.stop - paused.start)
    trials[[at for at in (2, 6, 14, 30, 60, 90, 120, 150) if at < len(trials)]] = 1
    world.change(own.RUNS_SUCCEEDED, paused, 0)
    world.change(own.RUNS_FAILED, paused, trials, FailureClass=failure_class)
    world.change(own.INTAKE_PAUSED, paused, 1, FailureClass=failure_class)
    uploads_wait(world, paused)
    return paused_from


def uploads_wait(world: World, during: slice) -> None:
    """Uploads come, none is taken from the queue, none succeeds; afterwards half an hour of backlog."""
    seconds = 60 * np.arange(during.stop - during.start)
    world.change(aws.QUEUE_OLDEST, during, seconds)
    world.change(own.SECONDS_WITHOUT_SUCCESS, during, seconds)
    draining = slice(during.stop, min(during.stop + 30, world.minutes))
    left = np.linspace(seconds[-1], 0, 30)[: draining.stop - draining.start]
    world.change(aws.QUEUE_OLDEST, draining, left)


def database_refuses(world: World, during: slice) -> None:
    """The event store alone cannot be reached, by a security group say; Dagster's own storage can."""
    world.change(own.DATABASE_CONNECTION_FAILURES, during, 4)
    paused_from = intake_pauses(world, during, "database-unavailable")
    # No runs, no connections: but for the trials nobody tries any more.
    world.change(own.DATABASE_CONNECTION_FAILURES, slice(paused_from + 5, during.stop), SILENT)
    outbox_unread(world, during)


def outbox_unread(world: World, during: slice) -> None:
    """The outbox cannot be read; afterwards, what was written before the fault leaves within one tick."""
    world.silence(own.OUTBOX_REFUSED, own.OUTBOX_AGE, during=during)
    back = slice(during.stop, during.stop + 1)
    world.change(own.OUTBOX_AGE, back, 60 * (during.stop - during.start))


def database_gone(world: World, during: slice) -> None:
    """RDS is stopped: the daemon's probe does not answer, and all that it publishes ends; pages show errors.

    RDS still reports for two minutes while it stops, and jobs that are under way try for longer.
    """
    trying = slice(during.start, during.start + 5)
    world.change(own.DATABASE_CONNECTION_FAILURES, trying, 3)
    world.change(own.DATABASE_CONNECTION_FAILURES, slice(trying.stop, during.stop), SILENT)
    silent = slice(during.start + 2, during.stop)
    world.silence(aws.DATABASE_CPU, aws.DATABASE_CONNECTIONS, aws.DATABASE_FREE_STORAGE, during=silent)
    daemon_lost(world, during)
    world.change(aws.TARGET_5XX, during, 6)


def database_gone_unnoticed(world: World, during: slice) -> None:
    """The same while nobody tries to connect, and with a web server that does not answer without it."""
    database_gone(world, during)
    world.change(own.DATABASE_CONNECTION_FAILURES, during, SILENT)
    webserver_lost(world, during)


def access_denied(world: World, during: slice) -> None:
    """A bucket policy: runs fail until intake pauses, and then few requests are left to be refused."""
    world.change(own.S3_ACCESS_DENIED, slice(during.start, during.start + 2), 9)
    paused_from = intake_pauses(world, during, "permission-denied")
    world.change(own.S3_ACCESS_DENIED, slice(paused_from, during.stop), SILENT)


def access_denied_slowly(world: World, during: slice) -> None:
    """The same with too little traffic for six refusals in a minute: the pause alone tells."""
    world.change(own.S3_ACCESS_DENIED, during, 1)
    intake_pauses(world, during, "permission-denied")


def access_denied_in_heaps(world: World, during: slice) -> None:
    """Every few minutes a run begins that may not read its video; each video's own matter, so no pause."""
    world.change(own.S3_ACCESS_DENIED, slice(during.start, during.stop, 6), 9)


def access_denied_to_intake(world: World, during: slice) -> None:
    """The daemon's role may not look at uploads: ticks fail, no run comes that could pause anything."""
    world.change(own.S3_ACCESS_DENIED, during, 12)
    world.change(own.SENSOR_TICK_ERRORS, during, 2, Sensor="upload_sensor")
    uploads_wait(world, during)


def duplicate_job(world: World, during: slice) -> None:
    """Seen once; intake stays paused until somebody looked."""
    world.change(own.DUPLICATE_JOBS, slice(during.start, during.start + 1), 1)
    intake_pauses(world, slice(during.start + 1, during.stop), "duplicate-job", of_runs=False)


def duplicate_job_once(world: World, during: slice) -> None:
    """Seen once, and intake has no reason to pause any more."""
    world.change(own.DUPLICATE_JOBS, during, SILENT)
    world.change(own.DUPLICATE_JOBS, slice(during.start, during.start + 1), 1)


def daemon_lost(world: World, during: slice) -> None:
    world.change(own.HEARTBEAT, during, SILENT, Service=DAEMON)
    uploads_wait(world, during)
    world.silence(*FROM_DAEMON, during=during)
    outbox_unread(world, during)


def webserver_lost(world: World, during: slice) -> None:
    """The load balancer answers in its place, to people who try again."""
    world.change(own.HEARTBEAT, during, SILENT, Service=WEBSERVER)
    world.change(aws.LOAD_BALANCER_5XX, during, 6)


def model_missing(world: World, during: slice) -> None:
    intake_pauses(world, during, "model-unavailable")


def runs_fail_for_many_reasons(world: World, during: slice) -> None:
    """Nothing systemic, so that intake goes on; the budget of re-executions is soon used up."""
    runs_fail(world, during, "internal", share=0.6)
    world.change(own.REEXECUTIONS_REFUSED, slice(during.start + 20, during.stop), 1)


def sensors_fail(world: World, during: slice) -> None:
    world.change(own.SENSOR_TICK_ERRORS, during, 2, Sensor="upload_sensor")
    uploads_wait(world, during)


def nothing_succeeds(world: World, during: slice) -> None:
    """No machine can be had: runs wait, then no more are taken from the queue."""
    uploads_wait(world, during)
    world.change(own.RUNS_SUCCEEDED, during, 0)
    for failure_class in ("undecodable-video", "worker-lost", "timeout"):
        world.change(own.RUNS_FAILED, during, 0, FailureClass=failure_class)
    queue = np.clip(60 * np.arange(-90.0, during.stop - during.start - 90), 0, None)
    world.change(aws.QUEUE_OLDEST, during, queue)


def intake_switched_off(world: World, during: slice) -> None:
    """A sensor that somebody stopped: uploads stay in the queue, nothing runs that could fail."""
    uploads_wait(world, during)
    world.change(own.SECONDS_WITHOUT_SUCCESS, during, 0)
    # Afterwards nobody uploads for an hour: of an empty queue SQS says nothing.
    world.change(aws.QUEUE_OLDEST, slice(during.stop + 2, during.stop + 60), SILENT)


def intake_paused_by_hand(world: World, during: slice) -> None:
    """Somebody paused it and went home: he knew, nobody else does."""
    uploads_wait(world, during)
    world.change(own.INTAKE_PAUSED, during, 1, FailureClass="operator")


def cpu_fallback(world: World, during: slice) -> None:
    world.change(own.CPU_FALLBACKS, slice(during.start, during.stop, 5), 1)


def notices_refused(world: World, during: slice) -> None:
    """SNS cannot be used: each tick says so, and what waits grows older."""
    world.change(own.OUTBOX_REFUSED, during, 12)
    world.change(own.OUTBOX_AGE, during, 60 * np.arange(during.stop - during.start))


def one_notice_refused(world: World, during: slice) -> None:
    """SNS takes all others: this one is tried at growing intervals, up to ten minutes."""
    tries = np.zeros(during.stop - during.start)
    tries[:3], tries[[5, 10]], tries[20::10] = (3, 1, 1), 1, 1
    world.change(own.OUTBOX_REFUSED, during, tries)
    world.change(own.OUTBOX_AGE, during, 60 * np.arange(during.stop - during.start))


def load_balancer_errors(world: World, during: slice) -> None:
    """Some requests fail, in the web server and before it; neither count is enough alone."""
    world.change(aws.LOAD_BALANCER_5XX, during, 2)
    world.change(aws.TARGET_5XX, during, 2)


HOUR = 60
FAULTS = (
    # --- one alarm each ---
    only(alarms.DATABASE_CONNECTION_FAILURE, value(own.DATABASE_CONNECTION_FAILURES, 2)),
    only(alarms.DATABASE_SILENT, value(aws.DATABASE_CPU, SILENT)),
    only(alarms.S3_ACCESS_DENIED, value(own.S3_ACCESS_DENIED, 6)),
    only(alarms.DUPLICATE_JOB_DETECTED, value(own.DUPLICATE_JOBS, 1)),
    only(alarms.DAEMON_HEARTBEAT_LOST, value(own.HEARTBEAT, SILENT, Service=DAEMON)),
    only(alarms.WEBSERVER_HEARTBEAT_LOST, value(own.HEARTBEAT, SILENT, Service=WEBSERVER)),
    only(alarms.SENSOR_TICKS_FAILING, value(own.SENSOR_TICK_ERRORS, 1, Sensor="reexecution")),
    only(alarms.LOAD_BALANCER_5XX, load_balancer_errors),
    only(alarms.DAEMON_CPU_HIGH, value(aws.DAEMON_CPU, 81)),
    only(alarms.DAEMON_MEMORY_HIGH, value(aws.DAEMON_MEMORY, 86)),
    only(alarms.WEBSERVER_CPU_HIGH, value(aws.WEBSERVER_CPU, 81)),
    only(alarms.WEBSERVER_MEMORY_HIGH, value(aws.WEBSERVER_MEMORY, 86)),
    only(alarms.DATABASE_CPU_HIGH, value(aws.DATABASE_CPU, 81)),
    only(alarms.DATABASE_CONNECTIONS_HIGH, value(aws.DATABASE_CONNECTIONS, 85)),
    only(alarms.DATABASE_STORAGE_LOW, value(aws.DATABASE_FREE_STORAGE, 1.9 * GIB)),
    only(
        alarms.HIGH_BATCH_JOB_FAILURE_RATE,
        lambda world, during: runs_fail(world, during, "internal", share=0.6),
    ),
    only(alarms.LONG_RUNNING_JOBS, value(own.LONGEST_RUN_OVER_LIMIT, 1.01)),
    only(alarms.DEAD_LETTERS_PRESENT, value(own.DEAD_LETTERS, 1)),
    only(alarms.REEXECUTIONS_USED_UP, value(own.REEXECUTIONS_REFUSED, 1)),
    only(alarms.CPU_FALLBACK, cpu_fallback),
    only(alarms.NOTICES_FAILING, value(own.NOTICES_FAILED, 2)),
    only(alarms.OUTBOX_REFUSED, value(own.OUTBOX_REFUSED, 6)),
    only(alarms.TELEMETRY_DROPPED, value(own.TELEMETRY_DROPPED, 200, Channel="logs")),
    Fault(
        "one notice to other systems is refused",
        one_notice_refused,
        (alarms.OUTBOX_LATE,),
        "OutboxStuck",
        sets_in_after=11,
    ),
    # --- one cause, many effects ---
    Fault(
        "SNS takes no notices to other systems",
        notices_refused,
        (alarms.OUTBOX_REFUSED, alarms.OUTBOX_LATE),
        "OutboxStuck",
        minutes=3 * HOUR,
        sets_in_after=11,
    ),
    Fault(
        "the database refuses connections",
        database_refuses,
        (alarms.DATABASE_CONNECTION_FAILURE, alarms.INTAKE_PAUSED_FOR_DATABASE, alarms.INTAKE_PAUSED),
        "DatabaseUnavailable",
        minutes=3 * HOUR,
    ),
    Fault(
        "the database is gone",
        database_gone,
        (alarms.DATABASE_CONNECTION_FAILURE, alarms.DATABASE_SILENT, alarms.DAEMON_HEARTBEAT_LOST),
        "DatabaseUnavailable",
        minutes=3 * HOUR,
    ),
    Fault(
        "the database is gone, and nobody asks for it",
        database_gone_unnoticed,
        (alarms.DATABASE_SILENT, alarms.DAEMON_HEARTBEAT_LOST, alarms.WEBSERVER_HEARTBEAT_LOST),
        "DatabaseUnavailable",
        minutes=3 * HOUR,
    ),
    Fault(
        "S3 refuses the worker",
        access_denied,
        (alarms.S3_ACCESS_DENIED, alarms.INTAKE_PAUSED_FOR_PERMISSION, alarms.INTAKE_PAUSED),
        "AccessDenied",
        minutes=3 * HOUR,
    ),
    Fault(
        "S3 refuses the worker now and then",
        access_denied_slowly,
        (alarms.INTAKE_PAUSED_FOR_PERMISSION, alarms.INTAKE_PAUSED),
        "AccessDenied",
        minutes=3 * HOUR,
        sets_in_after=20,
    ),
    Fault("S3 refuses in heaps", access_denied_in_heaps, (alarms.S3_ACCESS_DENIED,), "AccessDenied"),
    Fault(
        "one second pass",
        duplicate_job_once,
        (alarms.DUPLICATE_JOB_DETECTED,),
        "DuplicateJobs",
    ),
    Fault(
        "S3 refuses the daemon",
        access_denied_to_intake,
        (alarms.S3_ACCESS_DENIED, alarms.SENSOR_TICKS_FAILING),
        "AccessDenied",
        minutes=3 * HOUR,
    ),
    Fault(
        "a second pass over the same detections",
        duplicate_job,
        (alarms.DUPLICATE_JOB_DETECTED, alarms.INTAKE_PAUSED_FOR_DUPLICATES, alarms.INTAKE_PAUSED),
        "DuplicateJobs",
        minutes=3 * HOUR,
    ),
    Fault(
        "the daemon is lost",
        daemon_lost,
        (alarms.DAEMON_HEARTBEAT_LOST,),
        notifier(alarms.DAEMON_HEARTBEAT_LOST),
        minutes=3 * HOUR,
    ),
    Fault(
        "the web server is lost",
        webserver_lost,
        (alarms.WEBSERVER_HEARTBEAT_LOST, alarms.LOAD_BALANCER_5XX),
        notifier(alarms.WEBSERVER_HEARTBEAT_LOST),
    ),
    Fault(
        "the model is missing",
        model_missing,
        (alarms.INTAKE_PAUSED,),
        notifier(alarms.INTAKE_PAUSED),
        minutes=3 * HOUR,
        sets_in_after=10,
    ),
    Fault(
        "runs fail for many reasons",
        runs_fail_for_many_reasons,
        (alarms.HIGH_BATCH_JOB_FAILURE_RATE,),
        notifier(alarms.HIGH_BATCH_JOB_FAILURE_RATE),
        minutes=3 * HOUR,
    ),
    Fault(
        "the upload sensor fails",
        sensors_fail,
        (alarms.SENSOR_TICKS_FAILING,),
        notifier(alarms.SENSOR_TICKS_FAILING),
        minutes=3 * HOUR,
    ),
    Fault(
        "no machine can be had",
        nothing_succeeds,
        (alarms.NO_SUCCESS,),
        "UploadsStuck",
        minutes=4 * HOUR,
        sets_in_after=2 * HOUR,
    ),
    Fault(
        "intake is switched off",
        intake_switched_off,
        (alarms.QUEUE_AGE_HIGH,),
        "UploadsStuck",
        minutes=3 * HOUR,
        sets_in_after=HOUR,
    ),
    Fault(
        "intake is paused by hand",
        intake_paused_by_hand,
        (alarms.QUEUE_AGE_HIGH,),
        "UploadsStuck",
        minutes=3 * HOUR,
        sets_in_after=HOUR,
    ),
)
