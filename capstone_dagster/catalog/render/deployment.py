"""Names and numbers that only a deployment has, and how an entry of the catalog refers to them.

The text of an entry contains `${key}` where the value belongs; `key` is one of :data:`DEPLOYMENT`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from capstone_dagster.catalog.log_groups import BATCH_JOB


@dataclass(frozen=True, slots=True)
class Known:
    """Where a template finds a deployment's value: exactly one of the three.

    Attributes:
        export: the name under which another stack exports it.
        parameter: a parameter of `infra/observability.yaml`.
        pseudo: a pseudo parameter of CloudFormation.
    """

    export: str | None = None
    parameter: str | None = None
    pseudo: str | None = None


DEPLOYMENT: Mapping[str, Known] = {
    "region": Known(pseudo="AWS::Region"),
    "environment": Known("capstone-environment"),
    "alert_topic": Known("capstone-alert-topic"),
    "runbook_url": Known(parameter="RunbookUrl"),
    "cluster": Known("capstone-cluster"),
    "webserver_service": Known("capstone-webserver-service"),
    "daemon_service": Known("capstone-daemon-service"),
    # No export: the load balancer is made later than the rest, and an export in use cannot change.
    "load_balancer": Known(parameter="LoadBalancer"),
    "database": Known("capstone-database"),
    "database_storage_gib": Known(parameter="DatabaseStorageGiB"),
    "upload_queue": Known("capstone-upload-queue"),
    "dead_letter_queue": Known("capstone-dead-letter-queue"),
    "job_log_group": Known("capstone-job-log-group"),
}

OPEN_NAME = re.compile(r"\$\{(\w+)\}")


def log_group_name(name: str) -> str:
    """A log group as templates refer to it: accounts that have used Batch own `/aws/batch/job` already."""
    return "${job_log_group}" if name == BATCH_JOB.name else name


def open_names(value: Any) -> tuple[str, ...]:
    """The keys of :data:`DEPLOYMENT` in a text, or in the texts of a value, in order.

    Raises:
        KeyError: a text names a key that is not in the table.
    """
    if isinstance(value, str):
        found = dict.fromkeys(OPEN_NAME.findall(value))
        if unknown := [name for name in found if name not in DEPLOYMENT]:
            raise KeyError(f"{', '.join(unknown)} in {value[:80]!r}: expected one of {', '.join(DEPLOYMENT)}")
        return tuple(found)
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return tuple(dict.fromkeys(name for part in parts for name in open_names(part)))
