"""The sensor that turns uploads into runs: one run an upload, none lost, however often S3 announces it.

A message is acknowledged in a later tick than the one that asked for its run, and only if that run is in
Dagster's storage by then. A crash at any point leaves the message in the queue, and a message that comes
again finds its run on record.
"""

import logging

import dagster as dg

from capstone_dagster.intake.lines import warn
from capstone_dagster.intake.pending import read_cursor
from capstone_dagster.intake.runs import JOB_NAME
from capstone_dagster.intake.tick import Tick
from capstone_dagster.services import Services

SENSOR_NAME = "upload_sensor"


@dg.sensor(
    name=SENSOR_NAME,
    job_name=JOB_NAME,
    minimum_interval_seconds=1,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Watches the upload queue: each upload becomes one run, however often it is announced.",
)
def upload_sensor(
    context: dg.SensorEvaluationContext, services: dg.ResourceParam[Services]
) -> dg.SensorResult:
    tick = Tick(context, services)
    try:
        tick.acknowledge_recorded(read_cursor(context.cursor))
        if tick.may_take_more():
            while messages := tick.receive():
                tick.understand(messages)
                if not tick.may_wait_on():
                    break
    except Exception as error:
        # No message is lost: SQS delivers those that were not acknowledged again.
        warn(
            context,
            f"{error} So far: {tick.counts}.",
            action="tick.failed",
            level=logging.ERROR,
            error=error,
        )
        raise
    return tick.result()
