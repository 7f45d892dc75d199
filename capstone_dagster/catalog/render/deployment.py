"""Names and numbers that only a deployment knows: what CloudFormation imports them as, what they are locally.

In texts of the list's entries they are left open as `${key}`, which is CloudFormation's spelling too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Known:
    """A value that a deployment knows.

    Attributes:
        export: what another stack exports it as.
        parameter: the parameter of `infra/observability.yaml` that it is.
        pseudo: CloudFormation's own name for it.
        local: what stands for it on the local stack, which has no such thing of its own.
    """

    local: str
    export: str | None = None
    parameter: str | None = None
    pseudo: str | None = None


DEPLOYMENT: Mapping[str, Known] = {
    "region": Known("ap-northeast-2", pseudo="AWS::Region"),
    "environment": Known("local", export="capstone-environment"),
    "alert_topic": Known("arn:aws:sns:ap-northeast-2:000000000000:capstone-alerts", "capstone-alert-topic"),
    "runbook_url": Known("docs/runbook.md", parameter="RunbookUrl"),
    "cluster": Known("capstone", export="capstone-cluster"),
    "webserver_service": Known("capstone-webserver", export="capstone-webserver-service"),
    "daemon_service": Known("capstone-daemon", export="capstone-daemon-service"),
    # No export: it is made later than the rest, and an export that is in use cannot change.
    "load_balancer": Known("none", parameter="LoadBalancer"),
    "database": Known("capstone", export="capstone-database"),
    "database_storage_gib": Known("50", parameter="DatabaseStorageGiB"),
    "upload_queue": Known("capstone-uploads", export="capstone-upload-queue"),
    "dead_letter_queue": Known("capstone-uploads-dlq", export="capstone-dead-letter-queue"),
}

_OPEN = re.compile(r"\$\{(\w+)\}")


def open_names(value: Any) -> tuple[str, ...]:
    """The keys of :data:`DEPLOYMENT` that a text, or the texts in a value, leave open, in order.

    Raises:
        KeyError: a text leaves something open that no deployment knows.
    """
    if isinstance(value, str):
        found = dict.fromkeys(_OPEN.findall(value))
        if unknown := [name for name in found if name not in DEPLOYMENT]:
            raise KeyError(f"{', '.join(unknown)} in {value[:80]!r}: expected one of {', '.join(DEPLOYMENT)}")
        return tuple(found)
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return tuple(dict.fromkeys(name for part in parts for name in open_names(part)))


def filled(value: Any, names: Mapping[str, str]) -> Any:
    """A value in whose texts every open name is replaced by the deployment's."""
    if isinstance(value, str):
        open_names(value)
        return _OPEN.sub(lambda found: names[found[1]], value)
    if isinstance(value, Mapping):
        return {key: filled(each, names) for key, each in value.items()}
    return [filled(each, names) for each in value] if isinstance(value, list) else value


def local_names(**known: str) -> dict[str, str]:
    """What the local stack fills in, some of it as it turned out there."""
    return {**{key: each.local for key, each in DEPLOYMENT.items()}, **known}
