"""The operational dashboard: the way of an upload from top to bottom, then what it runs on, then the errors.

The lines in a graph are the target, the value at which an operator looks (warning) and the one at which an
operator acts (critical).
"""

from __future__ import annotations

from capstone_dagster.failures.classes import FailureClass

from . import aws_metrics as aws
from . import metrics as own
from .model import AwsMetric, Dashboard, Graph, Line, LogTable, Metric, Series, Statistic, Words
from .queries import RECENT_ERRORS

# The condition of the deployment's template under which there is a load balancer.
HAS_LOAD_BALANCER = "HasAddress"
# Number of the deployment: GiB that the database's disk was made with. It grows by itself when it is nearly
# full, which no metric reports: afterwards the share shown is too high until the deployment is updated.
DATABASE_STORAGE = "database_storage_gib"
SENSORS = ("upload_sensor", "ended_runs", "batch_gpu_runs", "vital_signs", "outbox", "summaries")


def _lines(target: float, warning: float, critical: float) -> tuple[Line, ...]:
    return (Line("target", target), Line("warning", warning), Line("critical", critical))


CPU_LINES = _lines(60, 70, 85)  # percent
MEMORY_LINES = _lines(70, 80, 90)  # percent
RESPONSE_LINES = _lines(200, 500, 1000)  # milliseconds
ERROR_RATE_LINES = _lines(0.1, 1, 5)  # percent
CONNECTION_LINES = _lines(50, 80, 100)
FREE_STORAGE_LINES = _lines(30, 20, 10)  # percent: here less is worse


def _each(statistic: Statistic, **metrics: Metric | AwsMetric) -> tuple[Series, ...]:
    """The same statistic of several metrics, by their ids."""
    return tuple(Series(name, metric, statistic) for name, metric in metrics.items())


def _of(name: str, metric: Metric | AwsMetric, *statistics: Statistic) -> tuple[Series, ...]:
    """Several statistics of one metric."""
    return tuple(Series(f"{name}_{statistic.lower()}", metric, statistic) for statistic in statistics)


_PIPELINE = (
    Graph(
        "Pipeline: from upload to events",
        _each(
            "Sum",
            uploads=own.UPLOADS_RECEIVED,
            prevented=own.DUPLICATES_PREVENTED,
            started=own.RUNS_STARTED,
            succeeded=own.RUNS_SUCCEEDED,
            failed=own.RUNS_FAILED,
        ),
        period_s=300,
        width=12,
    ),
    Graph(
        "Failures by class",
        tuple(
            Series(each.name.lower(), own.RUNS_FAILED, "Sum", {"FailureClass": each.value})
            for each in FailureClass
        ),
        stacked=True,
        period_s=300,
        width=12,
    ),
    Graph(
        "Error rate of runs",
        _each("Sum", failed=own.RUNS_FAILED, succeeded=own.RUNS_SUCCEEDED),
        expressions=(
            (
                "error_rate",
                "IF(FILL(failed,0)+FILL(succeeded,0)>0,"
                "100*FILL(failed,0)/(FILL(failed,0)+FILL(succeeded,0)),0)",
                "failed runs of those that ended",
            ),
        ),
        lines=ERROR_RATE_LINES,
        period_s=900,
        width=6,
        unit="%",
    ),
    Graph(
        "Upload to events in PostgreSQL",
        _of("latency", own.UPLOAD_TO_PERSISTED, "p50", "p90", "p99"),
        period_s=300,
        width=6,
        unit="s",
    ),
    Graph(
        "Legs of an upload's way",
        tuple(Series(f"leg_{n}", own.LEG_DURATION, "p50", {"Leg": leg}) for n, leg in enumerate(own.LEGS)),
        period_s=300,
        width=6,
        unit="s",
    ),
    Graph(
        "Run duration",
        _of("duration", own.RUN_DURATION, "p50", "p95", "Maximum"),
        period_s=300,
        width=6,
        unit="s",
    ),
    Graph(
        "What uploads turned out to be",
        _each(
            "Sum",
            ignored=own.UPLOADS_IGNORED,
            vanished=own.UPLOADS_VANISHED,
            malformed=own.MESSAGES_MALFORMED,
            duplicate_jobs=own.DUPLICATE_JOBS,
        ),
        period_s=300,
    ),
    Graph(
        "Waiting",
        _each(
            "Maximum",
            messages=aws.QUEUE_LENGTH,
            queued=own.RUNS_QUEUED,
            dead=aws.DEAD_LETTER_QUEUE_LENGTH,
            paused=own.INTAKE_PAUSED,
        ),
    ),
    Graph(
        "How long",
        _each(
            "Maximum",
            oldest=aws.QUEUE_OLDEST,
            age=own.QUEUE_AGE,
            no_success=own.SECONDS_WITHOUT_SUCCESS,
            outbox=own.OUTBOX_AGE,
        ),
        unit="s",
    ),
)

_ANALYSIS = (
    Graph(
        "Frames a second",
        (
            *_of("decoded", own.FRAMES_DECODED_PER_SECOND, "Average"),
            *_of("analyzed", own.FRAMES_ANALYZED_PER_SECOND, "Average"),
        ),
        period_s=300,
    ),
    Graph(
        "GPU",
        (
            Series("memory", own.GPU_MEMORY_USED, "Maximum"),
            Series("utilization", own.GPU_UTILIZATION, "Average"),
        ),
        unit="%",
    ),
    Graph(
        "GPU seconds and their cost",
        _each("Sum", gpu=own.GPU_SECONDS, cost=own.ESTIMATED_COST),
        expressions=(
            ("hours", "gpu/3600", "GPU hours"),
            ("dollars", "FILL(cost,0)", "US dollars, estimated"),
        ),
        period_s=3600,
    ),
    Graph(
        "GPU: room and fallbacks",
        (
            *_each("Sum", backoffs=own.OUT_OF_MEMORY_BACKOFFS, fallbacks=own.CPU_FALLBACKS),
            Series("batch", own.BATCH_SIZE, "Average"),
        ),
        period_s=300,
    ),
    Graph(
        "Found in a video",
        _each("Average", detections=own.DETECTIONS_PER_VIDEO, events=own.EVENTS_PER_VIDEO),
        period_s=300,
    ),
    Graph(
        "Overdue: age of the longest run to its own limit",
        _each("Maximum", overdue=own.LONGEST_RUN_OVER_LIMIT),
        lines=(Line("critical", 1),),
    ),
)

_SYSTEM = (
    Graph(
        "Sensor ticks: duration",
        tuple(Series(name, own.SENSOR_TICK_DURATION, "p95", {"Sensor": name}) for name in SENSORS),
        unit="s",
    ),
    Graph(
        "Sensor ticks: errors",
        tuple(Series(name, own.SENSOR_TICK_ERRORS, "Sum", {"Sensor": name}) for name in SENSORS),
        stacked=True,
    ),
    Graph(
        "Notices and telemetry",
        _each(
            "Sum",
            sent=own.NOTICES_SENT,
            unsent=own.NOTICES_FAILED,
            dropped=own.TELEMETRY_DROPPED,
            reexecuted=own.REEXECUTIONS,
            refused=own.REEXECUTIONS_REFUSED,
            notified=own.OUTBOX_SENT,
            not_notified=own.OUTBOX_REFUSED,
        ),
        period_s=300,
    ),
    Graph(
        "Storage's refusals",
        _each(
            "Sum",
            failures=own.DATABASE_CONNECTION_FAILURES,
            retries=own.DATABASE_RETRIES,
            persist_errors=own.PERSIST_ERRORS,
            denied=own.S3_ACCESS_DENIED,
        ),
        period_s=300,
    ),
    Graph(
        "Publishing events",
        _of("publishing", own.PERSIST_TIME, "p50", "p95", "Maximum"),
        period_s=300,
        unit="s",
    ),
    Graph("Rows published", _each("Sum", rows=own.ROWS_PERSISTED), period_s=300),
)

_MACHINES = (
    Graph("Database: CPU", _of("cpu", aws.DATABASE_CPU, "Average", "Maximum"), lines=CPU_LINES, unit="%"),
    Graph(
        "Database: connections",
        _each("Maximum", connections=aws.DATABASE_CONNECTIONS),
        lines=CONNECTION_LINES,
    ),
    Graph(
        "Database: free storage",
        _each("Minimum", free=aws.DATABASE_FREE_STORAGE),
        expressions=(
            (
                "free_percent",
                f"100*free/({{{DATABASE_STORAGE}}}*1073741824)",
                "free, of the disk as it was made",
            ),
        ),
        lines=FREE_STORAGE_LINES,
        unit="%",
    ),
    Graph(
        "Web server and daemon: CPU",
        _each("Average", webserver=aws.WEBSERVER_CPU, daemon=aws.DAEMON_CPU),
        lines=CPU_LINES,
        width=12,
        unit="%",
    ),
    Graph(
        "Web server and daemon: memory",
        _each("Maximum", webserver=aws.WEBSERVER_MEMORY, daemon=aws.DAEMON_MEMORY),
        lines=MEMORY_LINES,
        width=12,
        unit="%",
    ),
)

# Last, so that nothing stands below a gap where there is no load balancer.
_LOAD_BALANCER = (
    Graph("Web server: requests", _each("Sum", requests=aws.REQUESTS), condition=HAS_LOAD_BALANCER),
    Graph(
        "Web server: response time",
        (Series("p50", aws.RESPONSE_TIME, "p50"), Series("p95", aws.RESPONSE_TIME, "p95")),
        expressions=(("p50_ms", "1000*p50", "p50"), ("p95_ms", "1000*p95", "p95")),
        lines=RESPONSE_LINES,
        unit="ms",
        condition=HAS_LOAD_BALANCER,
    ),
    Graph(
        "Web server: 5xx",
        _each("Sum", target=aws.TARGET_5XX, load_balancer=aws.LOAD_BALANCER_5XX),
        stacked=True,
        condition=HAS_LOAD_BALANCER,
    ),
)

OPERATIONS = Dashboard(
    "capstone-operations",
    (
        Words("# Capstone\nUploads become events. What to do about a failure stands in docs/runbook.md."),
        *_PIPELINE,
        Words("## Analysis", height=1),
        *_ANALYSIS,
        Words("## The system itself", height=1),
        *_SYSTEM,
        Words("## What it runs on", height=1),
        *_MACHINES,
        LogTable("Recent errors", RECENT_ERRORS),
        *_LOAD_BALANCER,
    ),
)

DASHBOARDS = (OPERATIONS,)
