"""Log groups, alarms and the dashboard on the local stack, as CloudFormation makes them in AWS."""

from __future__ import annotations

from botocore.exceptions import BotoCoreError, ClientError

from capstone_dagster.catalog.render import boto, requests
from capstone_dagster.catalog.render.deployment import local_names
from capstone_dagster.local.aws import REGION, AwsResources, client


def create_observed(endpoint_url: str, resources: AwsResources) -> str:
    """Make all of the list; the sentence that tells the operator so, with what the emulator leaves out."""
    names = local_names(region=REGION, alert_topic=resources.alert_topic_arn)
    try:
        left_out = boto.create(requests.everything(), lambda service: client(service, endpoint_url), names)
    except (BotoCoreError, ClientError) as error:
        # Videos are analysed all the same.
        return f"Alarms and the dashboard could not be made: {error}"
    missing = boto.sentence(left_out)
    return "Log groups, alarms and the dashboard are made" + (
        f"; this emulator leaves out {missing}" if missing else ""
    )
