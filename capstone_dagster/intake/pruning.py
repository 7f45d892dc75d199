"""Old partitions leave Dagster's lists, which are made for some 100,000 of them; rows and files stay."""

from datetime import UTC, datetime, timedelta

import dagster as dg

from capstone_dagster.intake.runs import PARTITIONS_NAME
from capstone_dagster.services import Services


class PruneConfig(dg.Config):
    """How to prune.

    Attributes:
        dry_run: only say what would go.
    """

    dry_run: bool = False


@dg.op(tags={"batch_gpu/compute": "cpu"})
def prune_old_partitions(
    context: dg.OpExecutionContext, config: PruneConfig, services: dg.ResourceParam[Services]
) -> int:
    """Remove the partitions of finished videos that were last uploaded before the retention time.

    Nothing is run again by it: a late duplicate still finds its run on record, and behind that the finished
    detections and the published analysis. A new upload of the object makes the partition anew.
    """
    days = services.settings.partition_retention_days
    cutoff = datetime.now(UTC) - timedelta(days=days)
    old = set(services.events.finished_before(cutoff))
    listed = context.instance.get_dynamic_partitions(PARTITIONS_NAME)
    chosen = [video for video in listed if video in old]
    if not config.dry_run:
        for video in chosen:
            context.instance.delete_dynamic_partition(PARTITIONS_NAME, video)
    verb = "would be" if config.dry_run else "were"
    context.log.info(
        f"{len(chosen)} of {len(listed)} partitions {verb} removed: finished, and last uploaded more than "
        f"{days} days ago (CAPSTONE_PARTITION_RETENTION_DAYS)."
    )
    return len(chosen)


@dg.job(
    description="Removes the partitions of videos that were finished long ago; their rows and files stay.",
    executor_def=dg.in_process_executor,
)
def prune_partitions() -> None:
    prune_old_partitions()


# At night, when few upload; which minute does not matter.
prune_schedule = dg.ScheduleDefinition(
    job=prune_partitions,
    cron_schedule="17 3 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
