"""A job that Dagster can build again by name, as re-execution demands, over whatever services a test sets."""

from typing import Any

import dagster as dg

from capstone_dagster.assets.declared.checks import detections_checks, events_checks
from capstone_dagster.assets.declared.videos import analyze_upload, events, raw_videos, video_analysis
from capstone_dagster.assets.steps.references import ReferenceIOManager
from capstone_dagster.services import Services

services: list[Services] = []


class _Current:
    """The services that were set last: Dagster keeps a job that it built by name for the process's life."""

    def __getattr__(self, name: str) -> Any:
        return getattr(services[-1], name)


class _CurrentObjects:
    def __getattr__(self, name: str) -> Any:
        return getattr(services[-1].objects, name)


def recoverable_job() -> dg.JobDefinition:
    """`analyze_upload` over the services that were set last."""
    definitions = dg.Definitions(
        assets=[raw_videos, video_analysis, events],
        asset_checks=[detections_checks, events_checks],
        jobs=[analyze_upload],
        resources={"services": _Current(), "io_manager": ReferenceIOManager(_CurrentObjects())},  # type: ignore[arg-type]
        executor=dg.in_process_executor,
    )
    return definitions.resolve_job_def("analyze_upload")
