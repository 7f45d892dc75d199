"""A rollback on the pages of `events`: which analysis is current, since when, by whose order.

It is a materialisation that no run made. What consumers read as `events` has changed: the partition's page
must not go on showing the newer analysis, what is made of events (`daily_activity`) is out of date until it
is made again, and the checks that passed judged another analysis. An observation would leave all three as
they were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from capstone_dagster.assets.shown import metadata
from capstone_dagster.services import Services
from capstone_dagster.storage.analyses import Rollback

EVENTS = dg.AssetKey("events")


def report_rollback(
    instance: dg.DagsterInstance,
    services: Services,
    analysis: Mapping[str, Any],
    done: Rollback,
    *,
    by: str,
) -> None:
    """Put a rollback on record.

    Args:
        analysis: the row of `analyses` that is current now.
        by: whose order it was.
    """
    instance.report_runless_asset_event(
        dg.AssetMaterialization(
            EVENTS,
            partition=analysis["video_id"],
            description=f"Made current again by {by}: {analysis['analysis_id']}"
            + (f" in place of {done.replaced}." if done.replaced else "."),
            metadata=metadata.of_rollback(analysis, services, replaced=done.replaced, by=by),
        )
    )
