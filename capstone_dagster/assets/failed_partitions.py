"""A failed partition's own page: the class of its failure, the cause, and what to do.

Dagster says there which run failed, no more. An observation of the asset is shown in full until the partition
is materialised again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import dagster as dg

from capstone_dagster.observability.failures import POLICIES, FailureClass, sentence

log = logging.getLogger("capstone.analysis")


def report_failed_partitions(
    instance: dg.DagsterInstance,
    run_id: str,
    partitions: Iterable[str],
    failure: FailureClass,
    cause: str,
) -> None:
    """Put a failure on the pages of those assets that a run was to materialise and has not; never raises.

    Args:
        cause: one sentence.
    """
    try:
        planned = instance.get_asset_partitions_for_run(
            run_id, dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
        )
        made = instance.get_asset_partitions_for_run(run_id, dg.DagsterEventType.ASSET_MATERIALIZATION)
        remedy = POLICIES[failure].remedy
        for video_id in partitions:
            for asset in planned:
                if video_id in made.get(asset, ()):
                    continue
                instance.report_runless_asset_event(
                    dg.AssetObservation(
                        asset,
                        partition=video_id,
                        description=f"{failure.value}: {cause} What to do: {remedy}",
                        metadata={
                            "failure_class": failure.value,
                            "cause": cause,
                            "remedy": remedy,
                            "failed_run": dg.MetadataValue.dagster_run(run_id),
                        },
                    )
                )
    except Exception as error:  # law: what only observes fails no run
        log.warning(
            f"The failure is not on its partition's page: {sentence(error)}",
            extra={"action": "observation.lost", "failure_class": failure.value},
        )
