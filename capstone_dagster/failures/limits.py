"""How long a run may take, by the video that it has to do with."""

from __future__ import annotations

import dagster as dg

from capstone_dagster.run_tags import TURN_TAG, VIDEO_SECONDS_TAG
from capstone_dagster.settings import Settings


def age_over_limit(record: dg.RunRecord, settings: Settings, now: float) -> float:
    """The ratio of a running run's age to the limit of its own video; above 1 it is overdue.

    Waiting for a device does not count.

    Args:
        now: seconds since 1970.
    """
    if record.start_time is None:
        return 0.0
    began = record.start_time
    run_id, _, turn = record.dagster_run.tags.get(TURN_TAG, "").partition(" ")
    if run_id == record.dagster_run.run_id:
        if turn == "waiting":
            return 0.0
        began = float(turn)
    try:
        video_s = float(record.dagster_run.tags.get(VIDEO_SECONDS_TAG, 0))
    except ValueError:
        video_s = 0.0
    limit_s = max(60 * settings.run_limit_minutes, settings.run_limit_per_video * video_s)
    return max(0.0, now - began) / limit_s
