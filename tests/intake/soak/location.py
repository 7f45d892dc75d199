"""The code location that the harness's daemon loads: the real sensor, and a job that is never launched."""

import os

import dagster as dg

from capstone_dagster.definitions import services
from capstone_dagster.intake.runs import JOB_NAME, PARTITIONS_NAME
from tests.intake.soak.variants import VARIABLE, sensor_of_variant


@dg.op(config_schema=dg.Permissive())
def analyze_video() -> None:
    raise AssertionError("nothing is launched here")


@dg.graph
def video_analysis() -> None:
    analyze_video()


# One op instead of the real job's assets: creating its runs takes a third of the time.
@dg.job(name=JOB_NAME, partitions_def=dg.DynamicPartitionsDefinition(name=PARTITIONS_NAME))
def recorded_job() -> None:
    video_analysis()


defs = dg.Definitions(
    jobs=[recorded_job],
    sensors=[sensor_of_variant(os.environ[VARIABLE])],
    resources={"services": dg.ResourceDefinition.hardcoded_resource(services)},
)
