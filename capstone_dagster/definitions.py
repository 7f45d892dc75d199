"""Everything Dagster loads, assembled; no logic.

A wrong setting stops the code location from loading, with the variable's name.
"""

from functools import partial

import dagster as dg

from batch_gpu.sensor import build_batch_runs_sensor
from capstone_dagster.assets.declared.checks import detections_checks, events_checks
from capstone_dagster.assets.declared.daily_activity import activity_sensor, daily_activity
from capstone_dagster.assets.declared.jobs import analyze_videos, check_videos, preview_video
from capstone_dagster.assets.declared.reports import (
    daily_reports,
    delivery_report_asset,
    reports_schedule,
    service_report_asset,
)
from capstone_dagster.assets.declared.videos import analyze_upload, events, raw_videos, video_analysis
from capstone_dagster.assets.steps.references import ReferenceIOManager
from capstone_dagster.intake.sensor import upload_sensor
from capstone_dagster.logs.job_history import write_job_history
from capstone_dagster.logs.json_lines import configure_logging
from capstone_dagster.metrics.vital_signs import vital_signs_sensor
from capstone_dagster.outbox.sensor import outbox_sensor
from capstone_dagster.reactions import ended_runs_sensor
from capstone_dagster.removal.retention import retention, retention_schedule
from capstone_dagster.services import Services
from capstone_dagster.settings import read_settings

services = Services(read_settings())
configure_logging(services.settings, "code-location")


@dg.io_manager
def reference_io_manager(_: dg.InitResourceContext) -> ReferenceIOManager:
    return ReferenceIOManager(services.objects)


defs = dg.Definitions(
    assets=[raw_videos, video_analysis, events, daily_activity, service_report_asset, delivery_report_asset],
    asset_checks=[detections_checks, events_checks],
    jobs=[analyze_upload, analyze_videos, check_videos, preview_video, retention, daily_reports],
    schedules=[retention_schedule, reports_schedule],
    sensors=[
        upload_sensor,
        activity_sensor,
        ended_runs_sensor,
        build_batch_runs_sensor(
            look_back=False,
            on_changes=partial(write_job_history, lambda: services.logs, services.settings.job_log_group),
        ),
        vital_signs_sensor,
        outbox_sensor,
    ],
    resources={
        "services": dg.ResourceDefinition.hardcoded_resource(services),
        "io_manager": reference_io_manager,
    },
    # One process a run: its ops share the loaded model, and starting each of them costs nothing.
    executor=dg.in_process_executor,
)
