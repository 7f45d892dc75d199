"""Every condition that a person must learn of, and how one fault leads to one notice.

Missing data. Errors are counted when they happen: no data is no error (`notBreaching`, the default). Gauges
come from the daemon, whose own loss has an alarm: no data changes nothing (`ignore`). Heartbeats must
arrive: no data is the fault (`breaching`).

`FILL(…, 0)` in windows longer than a minute. CloudWatch retrieves more data points than it needs, and
evaluates older windows again before it treats any as missing. Without FILL, a count that has ended would
ring again minutes later, each time an older window is cut differently, and a lost heartbeat would be
noticed after three windows instead of one. Windows of a minute do not overlap and need no FILL.

One fault, one notice (`composites`):

- Alarms that are signs of the same `incident` notify once, by a composite that rings while any of them
  does. It does not matter which sign comes or goes first. A pause of intake for the same reason is such a
  sign: the pause ends the other signs (no runs, no refused requests) although the cause is still there.
- An alarm with `causes` notifies by a composite that waits `wait_s` for a cause to ring, and stays quiet
  while one rings and `extension_s` longer. A rule "this AND NOT its causes" would notify of each effect
  that is seen before its cause, and again when the cause ends before its effect.
- A cause must make its effect certain, and only pages explain pages: a disk that fills up may ring for
  hours and must not hide an outage.
- Only alarms whose ALARM is never suppressed notify of their end: CloudWatch would also send the OK of an
  alarm that nobody heard of.

Periods slide: CloudWatch evaluates each alarm every minute over the last `period_s` seconds.
"""

from __future__ import annotations

from . import aws_metrics as aws
from . import metrics as own
from .model import Alarm, AnomalyAlarm, AwsMetric, Metric, MissingData, Series

# Who handles it: the team of the pipeline's code, or the team of the AWS account.
PIPELINE = "video pipeline"
PLATFORM = "platform"

# Values of the metrics' dimension `Service`.
WEBSERVER = "webserver"
DAEMON = "daemon"

_MINUTE = 60
_FIVE_MINUTES = 300
_HOUR = 3600
_GIB = 1024**3

_DAEMON_SILENT = MissingData(
    "ignore", "The daemon publishes it, and has an alarm of its own: while it is silent nothing is known."
)


def _sum(name: str, metric: Metric | AwsMetric, **dimensions: str) -> Series:
    return Series(name, metric, "Sum", dimensions)


def _most(name: str, metric: Metric | AwsMetric, **dimensions: str) -> Series:
    return Series(name, metric, "Maximum", dimensions)


# --- what stops everything, each of it one incident ---

_DATABASE_LOOK_AT = (
    "RDS: state and recent events of the instance `capstone`",
    "security group of the database: port 5432 from the services and the jobs",
    "secrets of the two database users: a password that was changed",
    "RDS: connections against max_connections",
)
DATABASE_CONNECTION_FAILURE = Alarm(
    "DatabaseConnectionFailure",
    "PostgreSQL did not answer more than 3 times in 5 minutes: results cannot be persisted.",
    (_sum("failures", own.DATABASE_CONNECTION_FAILURES),),
    expression="FILL(failures, 0)",
    threshold=3,
    severity="page",
    owner=PLATFORM,
    runbook="database-unavailable",
    look_at=_DATABASE_LOOK_AT,
    incident="DatabaseUnavailable",
)
DATABASE_SILENT = Alarm(
    "DatabaseSilent",
    "RDS reports nothing about the database for 5 minutes: it is stopped, or has failed.",
    (Series("samples", aws.DATABASE_CPU, "SampleCount"),),
    expression="FILL(samples, 0)",
    threshold=1,
    comparison="LessThanThreshold",
    missing=MissingData(
        "breaching", "RDS measures a database that runs every minute, whatever goes on in it."
    ),
    severity="page",
    owner=PLATFORM,
    runbook="database-unavailable",
    look_at=_DATABASE_LOOK_AT,
    incident="DatabaseUnavailable",
)


def _paused_for(name: str, failure_class: str, sign_of: Alarm) -> Alarm:
    """Intake paused itself for this reason: a sign of the same incident as another alarm."""
    return Alarm(
        name,
        f"Intake is paused because of {failure_class}.",
        (_most("paused", own.INTAKE_PAUSED, FailureClass=failure_class),),
        expression="FILL(paused, 0)",
        threshold=0,
        period_s=_FIVE_MINUTES,  # bridges a restart of the daemon, which publishes it
        missing=MissingData("notBreaching", "Published with this class only while intake is paused for it."),
        severity="page",
        owner=sign_of.owner,
        runbook=sign_of.runbook,
        look_at=sign_of.look_at,
        incident=sign_of.incident,
    )


INTAKE_PAUSED_FOR_DATABASE = _paused_for(
    "IntakePausedForDatabase", "database-unavailable", DATABASE_CONNECTION_FAILURE
)

_ACCESS_LOOK_AT = (
    "IAM: policies of the roles of worker and daemon (infra/application.yaml)",
    "S3: bucket policies of the raw and the derived bucket, a Deny above all",
    "KMS: the key that encrypts the objects, kms:Decrypt",
    "organisation: service control policies",
)
S3_ACCESS_DENIED = Alarm(
    "S3AccessDenied",
    "S3 refused more than 5 requests in a minute: videos cannot be read, or results not be written.",
    (_sum("denied", own.S3_ACCESS_DENIED),),
    threshold=5,
    period_s=_MINUTE,
    # One minute is enough; refusals come in heaps, and between them it is the same incident.
    periods=10,
    severity="page",
    owner=PLATFORM,
    runbook="permission-denied",
    look_at=_ACCESS_LOOK_AT,
    incident="AccessDenied",
)
INTAKE_PAUSED_FOR_PERMISSION = _paused_for("IntakePausedForPermission", "permission-denied", S3_ACCESS_DENIED)

_DUPLICATE_LOOK_AT = (
    "Dagster: the two runs that the notice names, and who started them",
    "ECS: more than one daemon",
    "Dagster: a sensor or code location that was renamed, which opens all run keys again",
)
DUPLICATE_JOB_DETECTED = Alarm(
    "DuplicateJobDetected",
    "The same GPU work really started twice: a fence has failed. Prevented duplicates do not count.",
    (_sum("duplicates", own.DUPLICATE_JOBS),),
    expression="FILL(duplicates, 0)",
    threshold=0,
    # Once is enough; as long as intake may take to pause itself, which is the next sign.
    severity="page",
    owner=PIPELINE,
    runbook="duplicate-job",
    look_at=_DUPLICATE_LOOK_AT,
    incident="DuplicateJobs",
)
INTAKE_PAUSED_FOR_DUPLICATES = _paused_for(
    "IntakePausedForDuplicates", "duplicate-job", DUPLICATE_JOB_DETECTED
)

_STOPS_EVERYTHING = (DATABASE_CONNECTION_FAILURE.name, S3_ACCESS_DENIED.name)

# --- the services, from outside ---


def _heartbeat_lost(name: str, service: str, meaning: str, runbook: str, look_at: tuple[str, ...]) -> Alarm:
    return Alarm(
        name,
        meaning,
        (_sum("beats", own.HEARTBEAT, Service=service),),
        expression="FILL(beats, 0)",
        threshold=1,
        comparison="LessThanThreshold",
        # Five beats: some may be late, and a deployment ends the old daemon before it starts the new one.
        missing=MissingData("breaching", "A sign of life that does not come is what this is about."),
        severity="page",
        owner=PLATFORM,
        runbook=runbook,
        look_at=look_at,
        causes=(DATABASE_CONNECTION_FAILURE.name,),
        # The database's silence is seen after 5 minutes too, and RDS's numbers come some minutes late.
        wait_s=180,
    )


DAEMON_HEARTBEAT_LOST = _heartbeat_lost(
    "DaemonHeartbeatLost",
    DAEMON,
    "Dagster's daemon gave no sign of life for 5 minutes: no upload becomes a run, and no notice is sent.",
    runbook="daemon-silent",
    look_at=(
        "ECS: events and stopped tasks of the service capstone-daemon",
        "log group /ecs/capstone-daemon",
        "RDS: Dagster's own storage is there",
    ),
)
WEBSERVER_HEARTBEAT_LOST = _heartbeat_lost(
    "WebserverHeartbeatLost",
    WEBSERVER,
    "No web server gave a sign of life for 5 minutes: Dagster's pages cannot be opened.",
    runbook="webserver-silent",
    look_at=(
        "ECS: events and stopped tasks of the service capstone-webserver",
        "log group /ecs/capstone-webserver",
        "RDS: Dagster's own storage is there",
    ),
)
SENSOR_TICKS_FAILING = Alarm(
    "SensorTicksFailing",
    "Sensors' ticks failed 3 times or more in 5 minutes, twice running: intake, status or notices stand.",
    (_sum("errors", own.SENSOR_TICK_ERRORS),),
    expression="FILL(errors, 0)",
    # The slowest sensors tick once a minute. One hiccup fails one tick of each, in one of two periods.
    threshold=3,
    comparison="GreaterThanOrEqualToThreshold",
    periods=2,
    datapoints=2,
    severity="page",
    owner=PIPELINE,
    runbook="sensor-failing",
    look_at=(
        "Dagster: Automation, the sensor's ticks and their stack trace",
        "IAM: policy of the daemon's role, SQS above all",
    ),
    causes=_STOPS_EVERYTHING,
)
LOAD_BALANCER_5XX = Alarm(
    "LoadBalancer5xx",
    "More than 10 requests in 5 minutes were answered with 5xx: Dagster's pages do not work for people.",
    (_sum("instead", aws.LOAD_BALANCER_5XX), _sum("answered", aws.TARGET_5XX)),
    expression="FILL(instead, 0) + FILL(answered, 0)",
    threshold=10,
    severity="ticket",
    owner=PLATFORM,
    runbook="load-balancer-errors",
    look_at=(
        "load balancer: health of the targets, and which of the two counts it is",
        "security group of the services: port 3000 from the load balancer",
        "log group /ecs/capstone-webserver",
    ),
    causes=(WEBSERVER_HEARTBEAT_LOST.name,),
    wait_s=_FIVE_MINUTES,  # what the missing heartbeat takes
    condition="HasAddress",
)


def _busy(
    name: str, metric: AwsMetric, threshold: float, meaning: str, runbook: str, look_at: tuple[str, ...]
) -> Alarm:
    return Alarm(
        name,
        meaning,
        (Series("load", metric, "Average"),),
        threshold=threshold,
        periods=2,
        datapoints=2,
        missing=MissingData(
            "notBreaching",
            "A service that reports nothing carries no load; its heartbeat shows that it is gone.",
        ),
        severity="ticket",
        owner=PLATFORM,
        runbook=runbook,
        look_at=look_at,
    )


_TASK_CPU = ("ECS: Cpu of the task definition", "Dagster: sensors' tick durations, the backlog of runs")
_TASK_MEMORY = ("ECS: Memory of the task definition", "ECS: tasks that stopped with OutOfMemoryError")
DAEMON_CPU_HIGH = _busy(
    "DaemonCpuHigh",
    aws.DAEMON_CPU,
    80,
    "The daemon's CPU is above 80 % for 10 minutes.",
    runbook="ecs-cpu",
    look_at=_TASK_CPU,
)
DAEMON_MEMORY_HIGH = _busy(
    "DaemonMemoryHigh",
    aws.DAEMON_MEMORY,
    85,
    "The daemon's memory is above 85 % for 10 minutes: soon ECS ends it.",
    runbook="ecs-memory",
    look_at=_TASK_MEMORY,
)
WEBSERVER_CPU_HIGH = _busy(
    "WebserverCpuHigh",
    aws.WEBSERVER_CPU,
    80,
    "The web servers' CPU is above 80 % for 10 minutes, although their number grows with it.",
    runbook="ecs-cpu",
    look_at=("ECS: WebserverMaxTasks is reached", *_TASK_CPU[:1]),
)
WEBSERVER_MEMORY_HIGH = _busy(
    "WebserverMemoryHigh",
    aws.WEBSERVER_MEMORY,
    85,
    "The web servers' memory is above 85 % for 10 minutes: soon ECS ends one.",
    runbook="ecs-memory",
    look_at=_TASK_MEMORY,
)

# --- the database, before it fails ---

DATABASE_CPU_HIGH = _busy(
    "DatabaseCpuHigh",
    aws.DATABASE_CPU,
    80,
    "The database's CPU is above 80 % for 10 minutes.",
    runbook="database-cpu",
    look_at=("saved query: slowest statements", "RDS: CPU credits of the instance class", "RDS: top SQL"),
)
DATABASE_CONNECTIONS_HIGH = Alarm(
    "DatabaseConnectionsHigh",
    "More than 80 connections to the database are open: near the end new ones are refused.",
    (Series("connections", aws.DATABASE_CONNECTIONS, "Average"),),
    threshold=80,
    missing=MissingData("notBreaching", "Another alarm covers a database that reports nothing."),
    severity="ticket",
    owner=PLATFORM,
    runbook="database-connections",
    look_at=("pg_stat_activity: who holds them", "how many jobs run at once (compute.yaml)"),
)
DATABASE_STORAGE_LOW = Alarm(
    "DatabaseStorageLow",
    "The database's disk has less than 2 GiB left: when it is full, PostgreSQL stops.",
    (Series("free", aws.DATABASE_FREE_STORAGE, "Average"),),
    threshold=2 * _GIB,
    comparison="LessThanThreshold",
    missing=MissingData("ignore", "A full disk does not become empty by not being measured."),
    severity="page",
    owner=PLATFORM,
    runbook="database-storage",
    look_at=(
        "RDS: MaxAllocatedStorage is reached",
        "replication slots and long transactions",
        "largest tables",
    ),
)

# --- the pipeline ---

INTAKE_PAUSED = Alarm(
    "IntakePaused",
    "Intake takes no uploads, because the last runs failed for one reason.",
    (_most("paused", own.INTAKE_PAUSED), _most("by_hand", own.INTAKE_PAUSED, FailureClass="operator")),
    # Who paused it by hand knows; that uploads wait for hours then is another alarm's matter.
    expression="FILL(paused, 0) - FILL(by_hand, 0)",
    threshold=0,
    missing=MissingData(
        "notBreaching",
        "A daemon that was restarted says it again within the period; one that is lost has an alarm.",
    ),
    severity="page",
    owner=PIPELINE,
    runbook="intake-paused",
    look_at=(
        "`capstone intake status`: the class for which it paused, and the page of that class",
        "model: CAPSTONE_MODEL, CAPSTONE_MODEL_SHA256 and the object they name",
    ),
    causes=(*_STOPS_EVERYTHING, DUPLICATE_JOB_DETECTED.name),
)
HIGH_BATCH_JOB_FAILURE_RATE = Alarm(
    "HighBatchJobFailureRate",
    "More than 10 % of the runs that ended in half an hour failed.",
    (_sum("failed", own.RUNS_FAILED), _sum("succeeded", own.RUNS_SUCCEEDED)),
    # The floor: 10 runs, or one failure would be a rate; and 5 failures, as many as make intake pause
    # (CAPSTONE_PAUSE_AFTER_FAILURES), or two broken videos among ten would be an outage. Of 200 simulated
    # days on which 1 % of the runs fail, 13 ring with a floor of 2, 8 with 3, 4 with 4 and 2 with 5.
    expression=(
        "IF(FILL(failed, 0) + FILL(succeeded, 0) >= 10 AND FILL(failed, 0) >= 5, "
        "100 * FILL(failed, 0) / (FILL(failed, 0) + FILL(succeeded, 0)), 0)"
    ),
    threshold=10,
    period_s=1800,  # long enough to hold 10 runs where 20 videos come in an hour
    missing=MissingData("notBreaching", "Where no run ended none failed; nights are like that."),
    severity="page",
    owner=PIPELINE,
    runbook="high-failure-rate",
    look_at=(
        "dashboard: failures by class, then the page of the class",
        "saved query: errors by component",
        "AWS Batch: status reasons of the failed jobs; GPU quota",
    ),
    causes=(INTAKE_PAUSED.name,),
    wait_s=300,  # failures of before count here, and not for a pause, which wants five in a row
)
# And what explains these in turn.
_STOPS_UPLOADS = (DAEMON_HEARTBEAT_LOST.name, SENSOR_TICKS_FAILING.name, HIGH_BATCH_JOB_FAILURE_RATE.name)
LONG_RUNNING_JOBS = Alarm(
    "LongRunningJobs",
    "A run takes longer than its video explains (30 minutes at least): it hangs, or its machine is slow.",
    (_most("ratio", own.LONGEST_RUN_OVER_LIMIT),),
    threshold=1,
    period_s=_MINUTE,
    periods=2,
    datapoints=2,
    missing=_DAEMON_SILENT,
    severity="ticket",
    owner=PIPELINE,
    runbook="long-running",
    look_at=(
        "`capstone logs VIDEO --tail 50`: the step it is in",
        "AWS Batch: the job's machine, its GPU's utilisation",
    ),
)
QUEUE_AGE_HIGH = Alarm(
    "QueueAgeHigh",
    "An upload has waited in the queue for more than an hour: intake stands, or machines are too few.",
    (_most("age", aws.QUEUE_OLDEST),),
    expression="FILL(age, 0)",
    threshold=_HOUR,
    missing=MissingData(
        "notBreaching", "SQS says nothing of a queue in which nothing happens: then no upload waits in it."
    ),
    severity="page",
    owner=PIPELINE,
    runbook="queue-age",
    look_at=(
        "Dagster: Automation, is the upload sensor on and do its ticks succeed",
        "AWS Batch: GPU quota, and GpuMaxVcpus of compute.yaml",
    ),
    incident="UploadsStuck",
    causes=_STOPS_UPLOADS,
    extension_s=_HOUR,  # a backlog needs its time after the cause is mended
)
NO_SUCCESS = Alarm(
    "NoSuccess",
    "Uploads wait or run, and none has become events for two hours.",
    (_most("since", own.SECONDS_WITHOUT_SUCCESS),),
    # A run's limit is half an hour, a first machine takes minutes: four runs in a row came to nothing.
    threshold=2 * _HOUR,
    period_s=_MINUTE,
    missing=_DAEMON_SILENT,
    severity="page",
    owner=PIPELINE,
    runbook="no-success",
    look_at=(
        "AWS Batch: jobs that stay RUNNABLE; GPU quota",
        "`capstone status`: in which state the uploads are",
        "dashboard: failures by class",
    ),
    incident="UploadsStuck",
    causes=_STOPS_UPLOADS,
    extension_s=_HOUR,  # a machine has to come first, then the first run has to end
)
DEAD_LETTERS_PRESENT = Alarm(
    "DeadLettersPresent",
    "Messages were given up: their videos are not analysed until an operator sends them back.",
    (_most("dead", own.DEAD_LETTERS),),
    threshold=0,
    period_s=_MINUTE,
    missing=_DAEMON_SILENT,
    severity="ticket",
    owner=PIPELINE,
    runbook="dead-letters",
    look_at=("`capstone dlq list`: each with its reason", "the sender of the messages"),
)
REEXECUTIONS_USED_UP = Alarm(
    "ReexecutionsUsedUp",
    "Failed runs are not started again, because the hour's budget is used up: an operator has to do it.",
    (_sum("refused", own.REEXECUTIONS_REFUSED),),
    expression="FILL(refused, 0)",
    threshold=0,
    period_s=_HOUR,  # the budget is an hour's: no notice for each
    severity="ticket",
    owner=PIPELINE,
    runbook="high-failure-rate",
    look_at=("Dagster: failed runs of the last hours", "CAPSTONE_REEXECUTIONS_PER_HOUR"),
    causes=(HIGH_BATCH_JOB_FAILURE_RATE.name,),
    wait_s=180,
)
CPU_FALLBACK = Alarm(
    "CpuFallback",
    "Videos are analysed on a CPU where a GPU should be: slowly, on a machine that is paid for its GPU.",
    (_sum("fallbacks", own.CPU_FALLBACKS),),
    expression="FILL(fallbacks, 0)",
    threshold=0,
    period_s=_HOUR,  # a machine ends a run every few minutes: no notice for each
    severity="ticket",
    owner=PLATFORM,
    runbook="gpu-error",
    look_at=(
        "AWS Batch: the job's machine, its image and NVIDIA driver",
        "GPU job definition: the GPU it asks for",
    ),
)

# --- what reports all this ---

NOTICES_FAILING = Alarm(
    "NoticesFailing",
    "More than 3 attempts to send a notice failed in 5 minutes: failures are not reported.",
    (_sum("failures", own.NOTICES_FAILED),),
    expression="FILL(failures, 0)",
    threshold=3,
    severity="page",
    owner=PLATFORM,
    runbook="notices-failed",
    look_at=(
        "SNS: the topic and its policy",
        "IAM: sns:Publish of the daemon's role",
        "CAPSTONE_ALERT_TOPIC_ARN",
    ),
)
_OUTBOX_LOOK_AT = (
    "`capstone doctor`: its lines `sns` and `outbox`",
    "SNS: the topic capstone-notices and its policy",
    "IAM: sns:Publish of the daemon's role",
    "CAPSTONE_NOTICE_TOPIC_ARN",
)
OUTBOX_REFUSED = Alarm(
    "OutboxRefused",
    "SNS takes no notices to other systems: the back end does not hear what became of its uploads.",
    (_sum("refused", own.OUTBOX_REFUSED),),
    expression="FILL(refused, 0)",
    # The sensor ticks 12 times a minute, and each tick counts: for a minute of five nothing could be sent.
    # One notice that is refused alone is tried less and less often, and is the next alarm's.
    threshold=12,
    comparison="GreaterThanOrEqualToThreshold",
    severity="page",
    owner=PLATFORM,
    runbook="outbox-stuck",
    look_at=_OUTBOX_LOOK_AT,
    incident="OutboxStuck",
)
OUTBOX_LATE = Alarm(
    "OutboxLate",
    "A notice to other systems has waited for more than ten minutes, and its video's later ones with it.",
    (_most("age", own.OUTBOX_AGE),),
    # What is refused alone is tried again at growing intervals, up to ten minutes: what passes has passed.
    threshold=600,
    period_s=_MINUTE,
    # What waited while the daemon or the database was away leaves within a tick or two.
    periods=2,
    datapoints=2,
    missing=_DAEMON_SILENT,
    severity="page",
    owner=PLATFORM,
    runbook="outbox-stuck",
    look_at=_OUTBOX_LOOK_AT,
    incident="OutboxStuck",
)
TELEMETRY_DROPPED = Alarm(
    "TelemetryDropped",
    "Log lines, metrics or spans were given up: what is seen of the system has gaps.",
    (_sum("dropped", own.TELEMETRY_DROPPED),),
    expression="FILL(dropped, 0)",
    threshold=0,
    period_s=_HOUR,  # a reader that stops comes back within minutes: no notice for each time
    severity="ticket",
    owner=PLATFORM,
    runbook="telemetry-dropped",
    look_at=(
        "`capstone doctor`: its lines `log lines` and `traces`",
        "CloudWatch Logs: throttling of PutLogEvents in this account",
    ),
)

ALARMS: tuple[Alarm, ...] = tuple(value for value in globals().values() if isinstance(value, Alarm))

# Declared and unproven: what the band is, CloudWatch's model decides, which learns for two weeks first.
DETECTIONS_UNUSUAL = AnomalyAlarm(
    "DetectionsUnusual",
    "Videos yield far more or fewer detections than usual at this hour: cameras, model or settings changed.",
    Series("detections", own.DETECTIONS_PER_VIDEO, "Average"),
    band=4,  # wide: an unusual day is no fault
    period_s=_HOUR,
    periods=3,
    datapoints=3,
    severity="ticket",
    owner=PIPELINE,
    runbook="detections-unusual",
    look_at=(
        "a video of that hour: `capstone events VIDEO`",
        "what was deployed since: model, labels, sampling",
    ),
)

ANOMALY_ALARMS = (DETECTIONS_UNUSUAL,)
