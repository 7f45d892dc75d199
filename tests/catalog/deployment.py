"""A made-up deployment: a value for each name that the catalog leaves open, and texts with it."""

from collections.abc import Mapping
from typing import Any

from capstone_dagster.catalog.model import Dashboard
from capstone_dagster.catalog.render.dashboards import widgets
from capstone_dagster.catalog.render.deployment import DEPLOYMENT, OPEN_NAME, open_names
from capstone_dagster.local import aws

NAMES: Mapping[str, str] = {
    **{key: key.replace("_", "-") for key in DEPLOYMENT},
    "region": aws.REGION,
    "environment": "local",
    "alert_topic": f"arn:aws:sns:{aws.REGION}:000000000000:alerts",
    "runbook_url": "docs/runbook.md",
    "database_storage_gib": "50",
    "job_log_group": "/aws/batch/job",
}


def filled(value: Any, names: Mapping[str, str] = NAMES) -> Any:
    """A value in whose texts the deployment's values stand for the open names."""
    if isinstance(value, str):
        open_names(value)
        return OPEN_NAME.sub(lambda found: names[found[1]], value)
    if isinstance(value, Mapping):
        return {key: filled(each, names) for key, each in value.items()}
    return [filled(each, names) for each in value] if isinstance(value, list) else value


def body(dashboard: Dashboard, conditions: frozenset[str] = frozenset()) -> dict[str, Any]:
    """The dashboard where `conditions` hold, the deployment's names left open."""
    return {"widgets": [each for condition, each in widgets(dashboard) if condition in (None, *conditions)]}
