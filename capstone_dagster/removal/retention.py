"""Deletes old data, each kind after its own number of days, a limited number a night; a dry run only counts.

Videos, detections and events are kept for ever unless a setting limits them; bookkeeping has limits.
Dagster deletes its ticks itself, as `retention` in dagster.yaml says.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice

import dagster as dg

from capstone_dagster.dagster_private import PARTITION_NAME_TAG
from capstone_dagster.intake.runs import PARTITIONS_NAME
from capstone_dagster.removal.dagster_records import DagsterRecords
from capstone_dagster.removal.run_history import delete_log_entries, ended_before
from capstone_dagster.services import Services
from capstone_dagster.settings import variable_name
from capstone_dagster.storage import scratch
from capstone_dagster.storage.object_versions import delete_versions, versions_of
from capstone_dagster.storage.retention import (
    OldAnalysis,
    analyses_with_files,
    mark_raw_removed,
    old_analyses,
    remove_analysis,
    remove_files,
    videos_finished_before,
    videos_with_raw,
)

# One night's work stays within minutes; what is left goes in the nights after.
MOST_A_NIGHT = 2000


# What goes and the field of `Settings` with its days, in this order: what names others goes after them.
KINDS = {
    "raw videos": "raw_retention_days",
    "files of analyses": "detections_retention_days",
    "earlier analyses": "earlier_analyses_retention_days",
    "analyses with events": "events_retention_days",
    "partitions": "partition_retention_days",
    "runs": "run_retention_days",
    "log entries of runs": "event_log_retention_days",
}


@dataclass(frozen=True, slots=True)
class Removed:
    """What of one kind went, or would.

    Attributes:
        variable: the environment variable with its days; 0 days keep it for ever.
        more: there may be more than `number`.
    """

    kind: str
    variable: str
    days: int
    number: int
    more: bool

    def __str__(self) -> str:
        if not self.days:
            return "kept for ever"
        return f"{self.number:,}{' or more' if self.more else ''}, older than {self.days} days"


class Retention:
    """Removes old data, kind by kind; repeating any of them does no harm.

    Args:
        most: of each kind, in one call.
    """

    def __init__(self, services: Services, instance: dg.DagsterInstance, most: int = MOST_A_NIGHT) -> None:
        self._services = services
        self._instance = instance
        self._database = services.database
        self._most = most

    def apply(self, *, dry_run: bool, now: datetime | None = None) -> list[Removed]:
        """What went, or would.

        Raises:
            StorageError, ConfigurationError: what went before stays gone, and the rest is for the next time.
        """
        now = now or datetime.now(UTC)
        work: Sequence[Callable[[datetime, bool], int]] = (
            self._raw,
            self._files,
            self._earlier,
            self._analyses,
            self._partitions,
            self._runs,
            self._log_entries,
        )
        done = []
        for (kind, setting), remove in zip(KINDS.items(), work, strict=True):
            days = int(getattr(self._services.settings, setting))
            number = remove(now - timedelta(days=days), dry_run) if days else 0
            done.append(Removed(kind, variable_name(setting), days, number, number >= self._most))
        return done

    def _raw(self, before: datetime, dry_run: bool) -> int:
        found = self._database.transact(videos_with_raw, before, self._most)
        for video_id, bucket, key, uploaded_at in found if not dry_run else ():
            # A newer upload may still wait for intake: it is not analysed yet.
            old = versions_of(self._services.s3, bucket, key, until=uploaded_at)
            delete_versions(self._services.s3, bucket, old)
            self._database.transact(mark_raw_removed, video_id, uploaded_at)
        return len(found)

    def _files(self, before: datetime, dry_run: bool) -> int:
        found = self._database.transact(analyses_with_files, before, self._most)
        if dry_run:
            return len(found)
        transact, delete = self._database.transact, self._delete_files
        return sum(transact(remove_files, each, before, delete) for each in found)

    def _earlier(self, before: datetime, dry_run: bool) -> int:
        return self._delete_analyses(before, dry_run, earlier_only=True)

    def _analyses(self, before: datetime, dry_run: bool) -> int:
        return self._delete_analyses(before, dry_run, earlier_only=False)

    def _delete_analyses(self, before: datetime, dry_run: bool, *, earlier_only: bool) -> int:
        found = self._database.transact(old_analyses, before, self._most, earlier_only=earlier_only)
        if dry_run:
            return len(found)
        remove = partial(remove_analysis, delete=self._delete_files, earlier_only=earlier_only)
        return sum(self._database.transact(remove, each, before) for each in found)

    def _delete_files(self, analysis: OldAnalysis) -> None:
        self._services.objects.delete(f"analyses/{analysis.analysis_id}/")
        if analysis.alone:
            self._services.objects.delete(f"detections/{analysis.detection_id}/")

    def _partitions(self, before: datetime, dry_run: bool) -> int:
        """No video is analysed again because of it: a late duplicate finds its run or published analysis.

        A new upload of the object makes the partition anew.
        """
        old = set(self._database.transact(videos_finished_before, before))
        listed = self._instance.get_dynamic_partitions(PARTITIONS_NAME)
        chosen = [video_id for video_id in listed if video_id in old][: self._most]
        for video_id in chosen if not dry_run else ():
            self._instance.delete_dynamic_partition(PARTITIONS_NAME, video_id)
        return len(chosen)

    def _runs(self, before: datetime, dry_run: bool) -> int:
        """Their materialisations go with them, so those of partitions that are still listed stay."""
        listed = set(self._instance.get_dynamic_partitions(PARTITIONS_NAME))
        records = DagsterRecords(self._instance)
        ended = ended_before(self._instance, before, PARTITION_NAME_TAG)
        due = (run_id for run_id, partition in ended if partition not in listed)
        # All of them first: a page of runs begins after one that must be there still.
        chosen = list(islice(due, self._most))
        for run_id in chosen if not dry_run else ():
            self._services.objects.delete(f"references/runs/{run_id}/")
            records.delete_run(run_id)
        return len(chosen)

    def _log_entries(self, before: datetime, dry_run: bool) -> int:
        # Some hundred of them are a run.
        return delete_log_entries(
            DagsterRecords(self._instance), before, most=self._most * 100, dry_run=dry_run
        )


class RetentionConfig(dg.Config):
    """How to remove what is old.

    Attributes:
        dry_run: only say what would go.
        most: of each kind, this time.
    """

    dry_run: bool = False
    most: int = MOST_A_NIGHT


@dg.op(tags={"batch_gpu/compute": "cpu"})
def remove_what_is_old(
    context: dg.OpExecutionContext, config: RetentionConfig, services: dg.ResourceParam[Services]
) -> None:
    """Remove what is older than its CAPSTONE_..._RETENTION_DAYS; the counts are the output's metadata.

    Files that killed processes have left on this machine go as well.
    """
    if not config.dry_run:
        scratch.sweep()
    done = Retention(services, context.instance, config.most).apply(dry_run=config.dry_run)
    verb = "would go" if config.dry_run else "went"
    for each in done:
        context.log.info(f"{each.kind} {verb}: {each} ({each.variable}).")
    counts = {each.kind: each.number for each in done}
    context.add_output_metadata({**counts, "dry_run": config.dry_run})


@dg.job(
    description="Removes what is older than its CAPSTONE_..._RETENTION_DAYS: raw videos, files, analyses, "
    "partitions, runs and their logs. `dry_run: true` says what would go. docs/privacy.md.",
    executor_def=dg.in_process_executor,
)
def retention() -> None:
    remove_what_is_old()


# At night, when few upload; which minute does not matter.
retention_schedule = dg.ScheduleDefinition(
    job=retention,
    cron_schedule="17 3 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
)
