"""Deleting a video: every trace that can be removed, in an order that a repetition finishes.

First the erasure is put on record (nothing new of the video is recorded or published), then its runs end, its
objects go, then Dagster's records, and last its own rows, by which all the rest is found. The erasure ends
with them: a message that comes late finds no object, and an upload made afterwards is a new video.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import dagster as dg

from capstone_dagster.removal.dagster_records import DagsterRecords, RunTraces
from capstone_dagster.removal.names import Names
from capstone_dagster.services import Services
from capstone_dagster.storage.erasures import (
    VideoRows,
    add_removed,
    begin_erasure,
    find_rows,
    finish_erasure,
    shared_detections,
)
from capstone_dagster.storage.errors import ObjectNotFound
from capstone_dagster.storage.object_versions import delete_versions, versions_of
from capstone_dagster.storage.objects import ObjectStore

# A process here ends within seconds of being asked to; a Batch job within half a minute of TerminateJob.
_RUNS_END_WITHIN_S = 60.0
_POLL_S = 0.5
# No sensor that remembers videos takes longer than this.
_TICKS_END_WITHIN = 10

Report = Callable[[str], None]


class ErasureRefused(Exception):
    """The video cannot be deleted now; the message says what to do first."""

    failure_class = "configuration"


@dataclass(frozen=True, slots=True)
class Plan:
    """What was found of a video, and what deleting it does.

    Attributes:
        rows: None if the event store has nothing of it (any more).
        detections, analyses: ids found anywhere, those of work that was never published included.
        shared: the detections that another video's analysis uses.
        assets: names of Dagster's assets.
    """

    video_id: str
    rows: VideoRows | None
    runs: Sequence[RunTraces]
    detections: frozenset[str]
    analyses: frozenset[str]
    shared: frozenset[str]
    assets: Sequence[str]
    running_backfills: Sequence[str] = ()

    @property
    def names(self) -> Names:
        """The texts by which records name it."""
        return _names(self.video_id, self.rows)

    @property
    def source(self) -> tuple[str, str] | None:
        """Bucket and key of the raw object."""
        return None if self.rows is None else (self.rows.bucket, self.rows.key)

    @property
    def prefixes(self) -> list[tuple[str, str]]:
        """(what, prefix) of derived objects."""
        video_id, own_runs = self.video_id, [run.run_id for run in self.runs if run.own]
        return sorted(
            [
                *(("detection files", f"detections/{each}/") for each in self.detections - self.shared),
                *(("analysis files", f"analyses/{each}/") for each in self.analyses),
                *(("references", f"references/runs/{run_id}/") for run_id in own_runs),
                *(("references", f"references/assets/{asset}/{video_id}.json") for asset in self.assets),
            ]
        )

    @property
    def kept(self) -> frozenset[str]:
        """Detections that stay, because another video uses them."""
        return self.detections & self.shared

    @property
    def cancel(self) -> list[str]:
        """Runs that are ended first."""
        return [run.run_id for run in self.runs if run.own and not run.finished]

    @property
    def obstacle(self) -> str | None:
        """Why it cannot be done now; None if it can."""
        if busy := [run.run_id for run in self.runs if not run.own and not run.finished]:
            return (
                f"Run {busy[0]} analyses several videos, {self.video_id} among them, and is not over. Wait "
                "for it, or end it (`Terminate` on its page), and repeat."
            )
        if self.running_backfills:
            return (
                f"Backfill {self.running_backfills[0]} is to run {self.video_id} and is not over. Wait for "
                "it, or cancel it (`Overview > Backfills`), and repeat."
            )
        return None


def _names(video_id: str, rows: VideoRows | None) -> Names:
    if rows is None:
        return Names(video_id)
    return Names(video_id, (*rows.uploads, f"s3://{rows.bucket}/{rows.key}"), rows.external_id)


class VideoErasure:
    """Finds a video's traces, counts them, removes them."""

    def __init__(self, services: Services, instance: dg.DagsterInstance) -> None:
        self._services = services
        self._instance = instance
        self._records = DagsterRecords(instance)
        self._database = services.database

    def plan(self, video_id: str) -> Plan:
        """What deleting it would do, as things are."""
        rows = self._database.transact(find_rows, video_id)
        names = _names(video_id, rows)
        runs = self._records.runs(names, () if rows is None else rows.run_ids)
        detections, analyses = self._records.work(names)
        detections |= {each for run in runs for each in run.detection_ids}
        assets = self._records.asset_names()
        if rows is not None:
            analyses |= rows.analyses.keys()
            detections |= set(rows.analyses.values())
        keys = [f"references/assets/{asset}/{video_id}.json" for asset in assets]
        for run in runs:
            if run.own:
                keys += self._services.objects.keys(f"references/runs/{run.run_id}/")
        for key in keys:
            of_detections, of_analyses = _ids_in(self._services.objects, key)
            detections |= of_detections
            analyses |= of_analyses
        users = self._records.users(detections)
        return Plan(
            video_id=video_id,
            rows=rows,
            runs=runs,
            detections=frozenset(detections),
            analyses=frozenset(analyses),
            shared=self._database.transact(shared_detections, video_id, detections, users),
            assets=assets,
            running_backfills=self._records.running_backfills(names),
        )

    def count(self, plan: Plan) -> dict[str, int]:
        """How much of what would go; nothing is changed."""
        counts: Counter[str] = Counter()
        if plan.source is not None:
            counts["raw object versions"] = len(versions_of(self._services.s3, *plan.source))
        for what, prefix in plan.prefixes:
            counts[what] += len(self._services.objects.keys(prefix))
        counts += self._records.remove(plan.names, plan.runs, dry_run=True)
        rows = {} if plan.rows is None else plan.rows.counts
        counts += Counter({f"rows of {table}": number for table, number in rows.items()})
        return dict(+counts)

    def erase(self, plan: Plan, *, by: str, report: Report = lambda step: None) -> Mapping[str, int]:
        """Delete a video as planned; what was removed, by this call and by those broken off before it.

        It looks once more after the erasure is on record: only then nothing new of the video begins.

        Args:
            by: who requests it, for the audit line.
            report: called with each step's name.

        Raises:
            ErasureRefused: a run is at work on it that does not end; nothing was deleted yet.
            StorageError: repeat it when the cause is gone.
        """
        video_id = plan.video_id
        if plan.obstacle:
            raise ErasureRefused(plan.obstacle)
        line = self._database.transact(begin_erasure, video_id, by)
        if plan.cancel:
            report("Ending its runs")
            self._end(plan.cancel, video_id)
        # What those runs left meanwhile, and what began before the erasure was on record.
        plan = self.plan(video_id)
        if plan.obstacle or plan.cancel:
            raise ErasureRefused(
                plan.obstacle or f"Run {plan.cancel[0]} of {video_id} has begun just now: repeat."
            )
        if plan.source is not None:
            report("Deleting the raw video, every version of it")
            found = versions_of(self._services.s3, *plan.source)
            deleted = delete_versions(self._services.s3, plan.source[0], found)
            self._database.transact(add_removed, line, {"raw object versions": deleted})
        report("Deleting what was derived of it")
        removed: Counter[str] = Counter()
        for what, prefix in plan.prefixes:
            removed[what] += self._services.objects.delete(prefix)
        self._database.transact(add_removed, line, removed)
        report("Deleting Dagster's records of it")
        self._database.transact(add_removed, line, self._records.remove(plan.names, plan.runs, dry_run=False))
        for _ in range(_TICKS_END_WITHIN):
            # A tick that was under way has brought the old cursor back.
            late = self._records.forget_in_sensors(plan.names, dry_run=False)
            if not late["cursors of sensors"]:
                break
            self._database.transact(add_removed, line, late)
            time.sleep(_POLL_S)
        report("Deleting its rows")
        return self._database.transact(finish_erasure, line, video_id)

    def what_remembers(self, names: Names) -> list[str]:
        """Names of the sensors whose cursor names the video still, until they write the next one."""
        return self._records.sensors_that_remember(names)

    def _end(self, run_ids: Sequence[str], video_id: str) -> None:
        for run_id in run_ids:
            run = self._instance.get_run_by_id(run_id)
            if run is None:
                continue
            try:
                if run.status == dg.DagsterRunStatus.NOT_STARTED:
                    self._instance.report_run_canceled(run)
                else:
                    self._instance.run_coordinator.cancel_run(run_id)
            except Exception as error:
                raise ErasureRefused(
                    f"Run {run_id} works on {video_id} and could not be ended ({error}). End it (`Terminate` "
                    "on its page), and repeat: nothing was deleted, and nothing of the video is published "
                    "meanwhile."
                ) from error
        give_up = time.monotonic() + _RUNS_END_WITHIN_S
        left = list(run_ids)
        while left:
            left = [
                run.run_id
                for run in self._instance.get_runs(dg.RunsFilter(run_ids=left))
                if not run.is_finished
            ]
            if left and time.monotonic() > give_up:
                raise ErasureRefused(
                    f"Run {left[0]} of {video_id} is being ended and has not ended yet. Repeat in a minute: "
                    "nothing was deleted, and nothing of the video is published meanwhile."
                )
            if left:
                time.sleep(_POLL_S)


def _ids_in(objects: ObjectStore, key: str) -> tuple[set[str], set[str]]:
    """Ids of detections and analyses that a stored reference names."""
    try:
        parts = [json.loads(objects.get_bytes(key))]
    except ObjectNotFound:
        return set(), set()
    found: dict[str, set[str]] = {"detection_id": set(), "analysis_id": set()}
    for part in parts:
        for name, ids in found.items():
            if isinstance(part.get(name), str):
                ids.add(part[name])
        parts += [each for each in part.values() if isinstance(each, dict)]
    return found["detection_id"], found["analysis_id"]
