"""What `capstone doctor` finds out about the ways that logs, metrics, alerts and traces take."""

from __future__ import annotations

import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from capstone_dagster.catalog.log_groups import LOG_GROUPS
from capstone_dagster.clients import aws_client
from capstone_dagster.services import Services
from capstone_dagster.settings import Settings

# A shipper that lives says so every 10 s.
_SILENT_S = 60.0
_TIMEOUT_S = 5.0


class Wrong(Exception):
    """A check's own finding that something is missing or broken; `remedy` says what to do."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.remedy = remedy


def cloudwatch() -> str:
    """Whether CloudWatch's metrics can be asked for."""
    client = aws_client("cloudwatch")
    client.list_metrics(Namespace="Capstone")
    return f"answers in {client.meta.region_name}"


def log_groups() -> str:
    """Whether the groups of the list exist, and are kept for as long as it says."""
    client = aws_client("logs")
    found = {
        group["logGroupName"]: group.get("retentionInDays")
        for prefix in ("/capstone/", "/aws/batch/job", "/ecs/capstone-")
        for group in client.describe_log_groups(logGroupNamePrefix=prefix)["logGroups"]
    }
    remedy = "Deploy the stack of log groups (docs/deploy.md); locally, `make dev` makes them."
    if missing := [group.name for group in LOG_GROUPS if group.name not in found]:
        raise Wrong(f"there is no log group {', '.join(missing)}", remedy)
    for group in LOG_GROUPS:
        if found[group.name] != group.retention_days:
            kept = f"{found[group.name]} days" if found[group.name] else "for ever"
            raise Wrong(f"{group.name} is kept {kept}, the list says {group.retention_days} days", remedy)
    return f"{len(LOG_GROUPS)} groups, kept for 7 to 30 days"


def shipping(settings: Settings) -> str:
    """Whether lines and metrics get away, as the shipper itself said last."""
    from capstone_dagster.logs.shipping.shipper_status import read_status

    if settings.log_spool is None:
        raise Wrong(
            "CAPSTONE_LOG_SPOOL is not set: log lines stay on standard output", "Set it to a directory."
        )
    status = read_status(Path(settings.log_spool))
    if status is None or time.time() - status.updated > _SILENT_S:
        since = f"for {time.time() - status.updated:,.0f} s" if status else "yet"
        raise Wrong(
            f"no shipper has reported {since} in {settings.log_spool}: lines wait there",
            "`capstone dev` starts one; in a container the supervisor does: is it the container's entry?",
        )
    for name, channel in sorted(status.channels.items()):
        if channel.last_error is not None:
            raise Wrong(f"{name}: {channel.last_error}", channel.remedy or "")
    dropped = status.lost + sum(channel.dropped for channel in status.channels.values())
    sent = sum(channel.sent for channel in status.channels.values())
    told = f"{sent:,} sent, {status.waiting_bytes:,} bytes wait in {settings.log_spool}"
    return told + (f"; {dropped:,} were given up since it began" if dropped else "")


def notices() -> str:
    """Whether notices reach people, as the sensor `ended_runs` left it."""
    import dagster as dg

    from capstone_dagster.alerts.standing import read_standing

    if "DAGSTER_HOME" not in os.environ:
        raise Wrong("DAGSTER_HOME is not set: what was told cannot be looked up", "Set it.")
    with dg.DagsterInstance.get() as instance:
        standing = read_standing(instance)
    if standing is None or standing.ticked is None:
        raise Wrong("the sensor `ended_runs` has not run yet", "It runs with Dagster's daemon.")
    if not standing.running:
        raise Wrong("the sensor `ended_runs` is switched off: no notice is sent", "Switch it on.")
    if standing.refusal:
        since_s = time.time() - standing.refused_since
        kept = f"{standing.kept} notices have been kept for {since_s:,.0f} s"
        raise Wrong(f"{kept}: {standing.refusal}", "The runbook has a page for it: notices-failed.")
    if time.time() - standing.ticked > _SILENT_S:
        ago_s = time.time() - standing.ticked
        raise Wrong(f"the sensor `ended_runs` last ran {ago_s:,.0f} s ago", "Is Dagster's daemon running?")
    return f"all sent; {standing.open} incidents are not over"


def outbox(services: Services) -> str:
    """Whether notices to other systems leave the outbox."""
    from capstone_dagster.storage.outbox import outbox_backlog

    arn = services.settings.notice_topic_arn
    backlog = services.database.transact(outbox_backlog)
    if arn is None:
        told = f"CAPSTONE_NOTICE_TOPIC_ARN is not set: {backlog.waiting:,} notices to other systems are kept"
        raise Wrong(told, "Set it to an SNS topic's ARN where other systems want them (docs/consume.md).")
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
    """Whether the collector takes spans; an empty batch is what it is asked with.

    Args:
        variables: which name its address, the one for traces alone first.
    """
    own, common = (os.environ.get(name) for name in variables)
    if not own and not common:
        return "no collector is named: traces are off"
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
