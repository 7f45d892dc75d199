"""A failed partition's own page: the class of its failure, the cause, and what to do.

Dagster says there which run failed, no more. An observation of the asset says the rest: it stands among the
asset's events, and beside the metadata of an earlier materialisation until the partition is made again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import dagster as dg

from capstone_dagster.dagster_private import AssetObservationData
from capstone_dagster.failures.classes import POLICIES, FailureClass, sentence

log = logging.getLogger("capstone.analysis")


def report_failed_partitions(
    instance: dg.DagsterInstance,
    run: dg.DagsterRun,
    partitions: Iterable[str],
    failure: FailureClass,
    cause: str,
) -> None:
    """Put a failure on the pages of those assets that a run was to materialise and has not; never raises.

    Args:
        cause: one sentence.
    """
    run_id, job_name = run.run_id, run.job_name
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
                observed = dg.AssetObservation(
                    asset,
                    partition=video_id,
                    description=f"{failure.value}: {cause} What to do: {remedy}",
                    metadata={"failure_class": failure.value, "cause": cause, "remedy": remedy},
                )
                # An event of the run: the partition's page lists no others among its historical events.
                instance.report_dagster_event(
                    dg.DagsterEvent(
                        dg.DagsterEventType.ASSET_OBSERVATION.value,
                        job_name=job_name,
                        message=observed.description,
                        event_specific_data=AssetObservationData(observed),
                    ),
                    run_id=run_id,
                    log_level=logging.ERROR,
                )
    except Exception as error:  # law: what only observes fails no run
        log.warning(
            f"The failure is not on its partition's page: {sentence(error)}",
            extra={"action": "observation.lost", "failure_class": failure.value},
        )
