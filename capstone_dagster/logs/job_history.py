"""Writes the history of AWS Batch jobs (start, end, reason, resources) into a log group of its own.

Directly, because no container writes these lines: a job that never starts has no output.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from capstone_dagster.logs.json_lines import json_line, utc
from capstone_dagster.logs.run_fields import Fields, run_fields
from capstone_dagster.redaction import Redaction

if TYPE_CHECKING:
    import dagster as dg
    from mypy_boto3_logs import CloudWatchLogsClient

    from batch_gpu.history import JobChange


def write_job_history(
    client: Callable[[], CloudWatchLogsClient],
    group: str,
    instance: dg.DagsterInstance,
    changes: Sequence[JobChange],
) -> None:
    """One line for each change, in the day's stream.

    Raises:
        BotoCoreError, ClientError: CloudWatch Logs does not take them.
    """
    import dagster as dg

    run_ids = [change.run_id for change in changes if change.run_id is not None]
    runs = {run.run_id: run.tags for run in instance.get_runs(dg.RunsFilter(run_ids=run_ids))}
    lines = [_line(change, runs.get(change.run_id or "", {})) for change in changes]
    stream = time.strftime("jobs/%Y/%m/%d", time.gmtime())
    logs = client()
    with contextlib.suppress(logs.exceptions.ResourceAlreadyExistsException):
        logs.create_log_stream(logGroupName=group, logStreamName=stream)
    logs.put_log_events(
        logGroupName=group,
        logStreamName=stream,
        logEvents=[
            {"timestamp": at_ms, "message": json_line(fields, Redaction())}
            for at_ms, fields in sorted(lines, key=lambda line: line[0])
        ],
    )


def _line(change: JobChange, tags: Mapping[str, str]) -> tuple[int, Fields]:
    """When it happened, in milliseconds since 1970, and the line's fields."""
    job = change.job
    container: Mapping[str, Any] = job.get("container") or {}
    needs = {each["type"]: float(each["value"]) for each in container.get("resourceRequirements") or ()}
    started_ms = job.get("startedAt")
    at_ms = int((started_ms if change.what == "started" else job.get("stoppedAt")) or time.time() * 1000)
    reason = container.get("reason") or job.get("statusReason")
    fields: Fields = {
        "timestamp": utc(at_ms / 1000),
        "level": "ERROR" if change.what == "failed" else "INFO",
        "component": "batch",
        "action": f"job.{change.what}",
        **run_fields(change.run_id, tags),
        "job_id": job["jobId"],
        "job_queue": str(job["jobQueue"]).rpartition("/")[2],
        "log_stream": container.get("logStreamName"),
        "attempts": len(job.get("attempts") or ()),
        "gpus": needs.get("GPU"),
        "vcpus": needs.get("VCPU", container.get("vcpus")),
        "memory_mib": needs.get("MEMORY", container.get("memory")),
    }
    if change.what == "started":
        fields["message"] = f"Job {job['jobId']} started in queue {fields['job_queue']}."
        return at_ms, fields
    fields |= {"exit_code": container.get("exitCode"), "reason": reason}
    if started_ms:
        fields["elapsed_s"] = round((at_ms - int(started_ms)) / 1000, 3)
    outcome = f"exit code {fields['exit_code']}" if fields["exit_code"] is not None else "no exit code"
    fields["message"] = f"Job {job['jobId']} {change.what}: {outcome}, {reason or 'no reason given'}."
    return at_ms, fields
