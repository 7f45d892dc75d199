"""How long a run may take, by the video that it has to do with."""

from __future__ import annotations

import dagster as dg

from capstone_dagster.run_tags import VIDEO_SECONDS_TAG
from capstone_dagster.settings import Settings


def age_over_limit(record: dg.RunRecord, settings: Settings, now: float) -> float:
    """The ratio of a running run's age to the limit of its own video; above 1 it is overdue.

    Args:
        now: seconds since 1970.
    """
    if record.start_time is None:
        return 0.0
    try:
        video_s = float(record.dagster_run.tags.get(VIDEO_SECONDS_TAG, 0))
    except ValueError:
        video_s = 0.0
    limit_s = max(60 * settings.run_limit_minutes, settings.run_limit_per_video * video_s)
    return max(0.0, now - record.start_time) / limit_s
