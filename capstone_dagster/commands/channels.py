"""Checks of `capstone doctor` for logs, metrics, alerts, notices and traces."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence

from capstone_dagster.catalog.log_groups import BATCH_JOB, INTAKE, LOG_GROUPS
from capstone_dagster.clients import aws_client
from capstone_dagster.services import Services

# A sensor or an outbox that is silent for longer is worth a look.
_SILENT_S = 60.0
# CloudWatch shows a line some seconds after it has taken it; a restart of the code location takes a minute.
_QUIET_S = 300.0
_TIMEOUT_S = 5.0


class Wrong(Exception):
    """A check found something missing or broken; `remedy` says what to do."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.remedy = remedy


def cloudwatch() -> str:
    """Check that CloudWatch's metrics can be read."""
    client = aws_client("cloudwatch")
    client.list_metrics(Namespace="Capstone")
    return f"answers in {client.meta.region_name}"


def log_groups(job_group: str) -> str:
    """Whether the groups of the list exist, and are kept for as long as it says.

    Args:
        job_group: CAPSTONE_JOB_LOG_GROUP, the one whose name a deployment may choose.
    """
    client = aws_client("logs")
    wanted = {job_group if group == BATCH_JOB else group.name: group.retention_days for group in LOG_GROUPS}
    found = {
        group["logGroupName"]: group.get("retentionInDays")
        for prefix in ("/capstone/", job_group, "/ecs/capstone-")
        for group in client.describe_log_groups(logGroupNamePrefix=prefix)["logGroups"]
    }
    remedy = "Deploy the stack of log groups (docs/deploy.md); locally, `make dev` makes them."
    if missing := [name for name in wanted if name not in found]:
        raise Wrong(f"there is no log group {', '.join(missing)}", remedy)
    for name, days in wanted.items():
        if found[name] != days:
            kept = f"{found[name]} days" if found[name] else "for ever"
            raise Wrong(f"{name} is kept {kept}, the list says {days} days", remedy)
    return f"{len(wanted)} groups, kept for 7 to 30 days"


def log_lines() -> str:
    """Whether lines reach CloudWatch: the code location alone publishes metrics several times a minute."""
    client = aws_client("logs")
    since = round((time.time() - _QUIET_S) * 1000)
    pages = client.get_paginator("filter_log_events").paginate(logGroupName=INTAKE.name, startTime=since)
    newest = max((event["timestamp"] for page in pages for event in page["events"]), default=None)
    if newest is None:
        raise Wrong(
            f"no line has reached {INTAKE.name} for {_QUIET_S:.0f} s",
            "Locally `capstone dev` carries them. On AWS: does the code location's container run, with "
            "awslogs as its log driver?",
        )
    return f"the newest in {INTAKE.name} is {max(0.0, time.time() - newest / 1000):.0f} s old"


def notices() -> str:
    """Check that alerts are sent, by the state of the sensor `ended_runs`."""
    import dagster as dg

    from capstone_dagster.alerts.standing import read_standing

    if "DAGSTER_HOME" not in os.environ:
        raise Wrong("DAGSTER_HOME is not set: the state of alerts cannot be read", "Set it.")
    with dg.DagsterInstance.get() as instance:
        standing = read_standing(instance)
    if standing is None or standing.ticked is None:
        raise Wrong("the sensor `ended_runs` has not run yet", "It runs with Dagster's daemon.")
    if not standing.running:
        raise Wrong("the sensor `ended_runs` is switched off: no alerts are sent", "Switch it on.")
    if standing.refusal:
        since_s = time.time() - standing.refused_since
        kept = f"{standing.kept} notices have been kept for {since_s:,.0f} s"
        raise Wrong(f"{kept}: {standing.refusal}", "The runbook has a page for it: notices-failed.")
    if time.time() - standing.ticked > _SILENT_S:
        ago_s = time.time() - standing.ticked
        raise Wrong(f"the sensor `ended_runs` last ran {ago_s:,.0f} s ago", "Is Dagster's daemon running?")
    return f"all sent; {standing.open} incidents are open"


def outbox(services: Services) -> str:
    """Check that notices to other systems leave the outbox."""
    from capstone_dagster.storage.outbox import outbox_backlog

    arn = services.settings.notice_topic_arn
    backlog = services.database.transact(outbox_backlog)
    if arn is None:
        message = (
            f"CAPSTONE_NOTICE_TOPIC_ARN is not set: {backlog.waiting:,} notices to other systems are kept"
        )
        raise Wrong(message, "Set it to an SNS topic's ARN if other systems need them (docs/consume.md).")
    aws_client("sns").get_topic_attributes(TopicArn=arn)
    if backlog.refused:
        raise Wrong(
            f"{backlog.refused:,} videos' notices are held back by one that was refused: {backlog.refusal}",
            "They are tried again every ten minutes; docs/consume.md says how to see them.",
        )
    age_s = time.time() - backlog.oldest.timestamp() if backlog.oldest else 0.0
    if age_s > _SILENT_S:
        raise Wrong(
            f"{backlog.waiting:,} notices wait, the oldest for {age_s:,.0f} s",
            "The sensor `outbox` in Dagster's pages says why: is it on, and does the daemon run?",
        )
    return f"{arn}, {backlog.waiting:,} wait"


def traces(variables: Sequence[str]) -> str:
    """Check that the collector accepts spans, by sending an empty batch.

    Args:
        variables: those that may hold its address; the one for traces alone comes first.
    """
    own, common = (os.environ.get(name) for name in variables)
    if not own and not common:
        return "no collector is configured: traces are off"
    url = own or f"{str(common).rstrip('/')}/v1/traces"
    try:
        request = urllib.request.Request(
            url, data=b"", headers={"Content-Type": "application/x-protobuf"}, method="POST"
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:
            return f"{url} takes spans ({answer.status})"
    except urllib.error.HTTPError as error:
        raise Wrong(
            f"{url} answers {error.code} {error.reason}", "Check its path and credentials."
        ) from error
    except (OSError, ValueError) as error:
        raise Wrong(
            f"{url} does not answer: {error}", "Check the address, and that a collector runs."
        ) from error
