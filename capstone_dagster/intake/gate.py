"""Whether a tick may take messages: the circuit breaker between Dagster's records and the queue."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace

import dagster as dg

from capstone_dagster.dagster_private import PARENT_RUN_ID_TAG, RUN_KEY_TAG
from capstone_dagster.failures.breaker_state import BREAKER, OFFERS, BreakerState, Probe, describe
from capstone_dagster.failures.classes import FailureClass
from capstone_dagster.failures.duplicates import doubled_work
from capstone_dagster.failures.recent import RECENT_RUNS, EndedRun
from capstone_dagster.intake.breaker import ProbeFate, Seen, advance, probe_is_due, release
from capstone_dagster.intake.orders import ORDER
from capstone_dagster.intake.runs import JOB_NAME
from capstone_dagster.services import Services
from capstone_dagster.storage.errors import StorageError, StorageUnavailable

_log = logging.getLogger("capstone.reactions")


class Gate:
    """The breaker in one tick: looks at the last runs when it is made, and keeps what it concludes.

    Attributes:
        paused: no message may be taken, unless `wants_probe`.
        wants_probe: one upload may be let through, to see whether the cause is gone.
    """

    def __init__(self, instance: dg.DagsterInstance, services: Services) -> None:
        self._instance = instance
        now = time.time()
        before = BREAKER.read(instance)
        ended, duplicates = _last_runs(instance)
        seen = Seen(
            ended,
            duplicates,
            _fate_of(instance, before.probe, ended) if before.probe is not None else None,
            _reachable(before, services),
        )
        state = advance(
            before,
            seen,
            now=now,
            pause_after=services.settings.pause_after_failures,
            order=ORDER.read(instance),
        )
        self.wants_probe = probe_is_due(state, seen, now)
        if self.wants_probe and (failed := _offered(instance, state)) is not None:
            # What failed is tried again from the step that failed: mostly it takes no GPU.
            state = release(state, Probe(now, reexecutes=failed))
            self.wants_probe = False
        self.paused = state.paused
        self._state = before
        self._keep(state)

    def let_through(self, run_key: str) -> None:
        """Remember the upload that is the probe; before Dagster is asked for its run."""
        self._keep(release(self._state, Probe(time.time(), run_key=run_key)))

    def __str__(self) -> str:
        return describe(self._state)

    def _keep(self, state: BreakerState) -> None:
        before, self._state = self._state, state
        if state == before:
            return
        BREAKER.write(self._instance, state)
        message = describe(state)
        if replace(state, duplicates=()) == replace(before, duplicates=()):
            return
        action = "intake.resumed" if before.paused else "intake.ordered"
        if state.paused:
            action = "intake.probed" if state.probe not in (None, before.probe) else "intake.paused"
        level = logging.WARNING if state.paused and not before.paused else logging.INFO
        extra = {"action": action, "cause": state.cause, "probes": state.probes, "paused": state.paused}
        _log.log(level, message, extra=extra)


def _offered(instance: dg.DagsterInstance, state: BreakerState) -> str | None:
    """A run that failed for the cause and waits to be re-executed."""
    return next((run for run, failure in OFFERS.read(instance).items() if failure == state.cause), None)


def _reachable(state: BreakerState, services: Services) -> bool | None:
    """Whether the cause of a pause answers, where that can be asked without a run."""
    if state.paused and state.cause == FailureClass.DATABASE_UNAVAILABLE:
        try:
            services.database.ping()
        except StorageError:
            return False  # one that answers and refuses is of no more use
        return True
    if state.paused and state.cause == FailureClass.STORAGE_UNAVAILABLE:
        try:
            services.objects.exists("ping")
        except StorageUnavailable:
            return False
        except StorageError:
            pass  # it answers, with or without such an object
        return True
    return None


def _last_runs(instance: dg.DagsterInstance) -> tuple[list[EndedRun], list[str]]:
    """The last uploads' runs that ended, newest first, and the ids of runs that doubled GPU work, running
    ones included.
    """
    ended = RECENT_RUNS.read(instance)
    running = instance.get_runs(dg.RunsFilter(job_name=JOB_NAME, statuses=[dg.DagsterRunStatus.STARTED]))
    duplicates = [run.run_id for run in running if doubled_work(run)]
    return ended, [*duplicates, *(run.run_id for run in ended if run.doubled)]


def _fate_of(instance: dg.DagsterInstance, probe: Probe, ended: Sequence[EndedRun]) -> ProbeFate:
    """What became of a probe."""
    tag, value = (PARENT_RUN_ID_TAG, probe.reexecutes) if probe.reexecutes else (RUN_KEY_TAG, probe.run_key)
    assert value is not None
    runs = instance.get_runs(dg.RunsFilter(tags={tag: value}))
    # A retry keeps the run key: the newest run is the one to watch.
    run = next((run for run in runs if run.status != dg.DagsterRunStatus.NOT_STARTED), None)
    if run is None:
        return "missing"
    if run.status == dg.DagsterRunStatus.CANCELED:
        return "canceled"
    return next((each for each in ended if each.run_id == run.run_id), "under way")
