"""Saved queries of CloudWatch Logs Insights: what one asks the logs when something is wrong.

A test parses each, and evaluates it over the lines of a real run: a field that no line has is an error.
"""

from __future__ import annotations

from .log_groups import BATCH_JOB, DAEMON, INTAKE, VIDEO_ANALYSIS, WEBSERVER
from .model import SavedQuery

# Operators replace this by a video's id or external id.
VIDEO_PLACEHOLDER = "VIDEO"

_STORY = (INTAKE.name, VIDEO_ANALYSIS.name, BATCH_JOB.name)
_EVERYTHING = (*_STORY, WEBSERVER.name, DAEMON.name)
# A run that ends without its worker, because that was killed, ends in the code location's lines.
_RUNS = (INTAKE.name, VIDEO_ANALYSIS.name)
# Dagster's web server and daemon write their own JSON: `error` for ERROR, and the message as `event`.
_IS_ERROR = 'level in ["ERROR", "CRITICAL", "error", "critical"]'
ONE_VIDEO = SavedQuery(
    "one-video",
    f"One video's whole story, from its upload on. Put its id or external id for {VIDEO_PLACEHOLDER}.",
    _STORY,
    f"""\
filter video_id = "{VIDEO_PLACEHOLDER}" or external_id = "{VIDEO_PLACEHOLDER}"
| sort timestamp asc
| display timestamp, level, component, action, step, message, elapsed_s, failure_class, run_id
| limit 10000""",
)
RECENT_ERRORS = SavedQuery(
    "recent-errors",
    "The latest errors of all components.",
    _EVERYTHING,
    f"""\
filter {_IS_ERROR}
| sort timestamp desc
| display timestamp, level, component, action, failure_class, message, event, video_id, run_id
| limit 50""",
)
ERRORS_BY_COMPONENT = SavedQuery(
    "errors-by-component",
    "Errors of each component in each quarter of an hour.",
    _EVERYTHING,
    f"""\
filter {_IS_ERROR}
| stats count(*) as errors by component, bin(15m) as since
| sort since desc""",
)
ERROR_RATE = SavedQuery(
    "error-rate",
    "The share of failed runs in each quarter of an hour.",
    _RUNS,
    """\
filter action in ["run.succeeded", "run.failed"]
| stats count(*) as runs, sum(strcontains(action, "failed")) as failed,
    100 * sum(strcontains(action, "failed")) / count(*) as failed_percent by bin(15m) as since
| sort since desc""",
)
FAILURES_BY_CLASS = SavedQuery(
    "failures-by-class",
    "Failed runs of each class in an hour; docs/runbook.md has a page for each.",
    _RUNS,
    """\
filter action = "run.failed"
| stats count(*) as failed by failure_class, bin(1h) as since
| sort since desc""",
)
RUN_DURATIONS = SavedQuery(
    "run-durations",
    "How long successful runs took, hour by hour.",
    _RUNS,
    """\
filter action = "run.succeeded"
| stats count(*) as runs, avg(elapsed_s) as average_s, max(elapsed_s) as longest_s,
    pct(elapsed_s, 95) as p95_s by bin(1h) as since
| sort since desc""",
)
SLOWEST_STEPS = SavedQuery(
    "slowest-steps",
    "Duration of each step: average, maximum and 95th percentile.",
    _RUNS,
    """\
filter action = "step.completed" and not ispresent(reused)
| stats count(*) as times, avg(elapsed_s) as average_s, max(elapsed_s) as longest_s,
    pct(elapsed_s, 95) as p95_s by step
| sort average_s desc""",
)
SLOWEST_STATEMENTS = SavedQuery(
    "slowest-statements",
    "The slowest statements of the event store; their values are not in the log.",
    _RUNS,
    """\
filter action = "database.statement"
| stats count(*) as times, avg(elapsed_s) as average_s, max(elapsed_s) as longest_s,
    pct(elapsed_s, 95) as p95_s by statement
| sort longest_s desc
| limit 20""",
)
DATABASE_FAILURES = SavedQuery(
    "database-failures",
    "When the event store did not answer, and for which video.",
    _EVERYTHING,
    """\
filter failure_class = "database-unavailable"
| sort timestamp desc
| display timestamp, level, component, action, message, video_id, run_id
| limit 100""",
)
S3_ACCESS_DENIED = SavedQuery(
    "s3-access-denied",
    "Objects that S3 denied, by component.",
    _EVERYTHING,
    """\
filter failure_class in ["source-forbidden", "permission-denied"]
| stats count(*) as times, latest(message) as last_message by component, bucket, key
| sort times desc
| limit 100""",
)
GPU_MEMORY = SavedQuery(
    "gpu-memory",
    "Used and total memory of the GPUs in each five minutes.",
    _RUNS,
    """\
filter action = "gpu.memory"
| stats max(used_gb) as used, max(total_gb) as total, 100 * max(used_gb) / max(total_gb) as used_percent
    by bin(5m) as since
| sort since desc""",
)
REQUESTS_BY_COMPONENT = SavedQuery(
    "requests-by-component",
    "How many uploads each component had to do with in an hour, and how many lines it wrote of them.",
    _EVERYTHING,
    """\
filter ispresent(upload_id)
| stats count_distinct(upload_id) as uploads, count(*) as lines by component, bin(1h) as since
| sort since desc""",
)

QUERIES: tuple[SavedQuery, ...] = tuple(
    value for value in globals().values() if isinstance(value, SavedQuery)
)
