"""Records which run analyses which pixels: each waits for its turn, and a second pass is reported.

It prevents no duplicate: run key, detection id and PostgreSQL do that. A second pass that did start means
that one of them has failed, and costs money until an operator intervenes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from capstone_dagster.analysis import VideoInfo
from capstone_dagster.assets.steps.analysis_log import AnalysisLog
from capstone_dagster.assets.steps.device_turns import device_turn
from capstone_dagster.catalog.metrics import DUPLICATE_JOBS
from capstone_dagster.failures.duplicates import same_work
from capstone_dagster.run_tags import (
    DETECTION_TAG,
    DUPLICATE_OF_TAG,
    DUPLICATE_TAG,
    STORED_TAG,
    TURN_TAG,
    USED_TAG,
    VIDEO_SECONDS_TAG,
)
from capstone_dagster.services import Services

_logger = logging.getLogger("capstone.analysis")

# A wait that is shorter is not worth a row in Dagster's storage.
_LONG_WAIT_S = 10.0


class Passes:
    """The passes of one run, one after the other, noted in its tags."""

    def __init__(self, instance: dg.DagsterInstance, run_id: str, services: Services) -> None:
        self._instance = instance
        self._run_id = run_id
        self._services = services
        self._video_s = 0.0
        self._counted = False

    def use(self, detection_id: str) -> None:
        """Note which detections this run goes by: deleting another video of the same bytes leaves them."""
        self._tag({USED_TAG: detection_id})

    @contextmanager
    def turn(self, log: AnalysisLog) -> Iterator[None]:
        """Wait for one of this machine's devices, and hold it for the block: loading the model, and the pass.

        A long wait is noted in the run's tags, because it does not count towards the run's time limit.
        """
        noted = False

        def waiting(elapsed_s: float) -> None:
            nonlocal noted
            if not noted and elapsed_s > _LONG_WAIT_S:
                noted = True
                log.write("Waits for the device: another run's pass holds it.", action="device.waiting")
                self._tag({TURN_TAG: f"{self._run_id} waiting"})

        with device_turn(self._instance.root_directory, waiting=waiting):
            if noted:
                self._tag({TURN_TAG: f"{self._run_id} {time.time():.0f}"})
            yield

    def begin(self, detection_id: str, video: VideoInfo, log: AnalysisLog) -> None:
        """Note that this run begins a pass, and report if another one is at it or has finished it.

        The note comes first: of two that begin at the same moment one at least sees the other.

        Args:
            video: whose length is noted as well, because how long the run may take depends on it.
        """
        self._video_s += (video.duration_ms or 0) / 1000
        self._tag({DETECTION_TAG: detection_id, VIDEO_SECONDS_TAG: f"{self._video_s:.3f}"})
        others = self._others(detection_id)
        self._counted = bool(others)
        if others:
            self._report(detection_id, others[0], log)
        else:
            self._services.metrics.add(DUPLICATE_JOBS, 0)

    def finish(self, detection_id: str) -> None:
        """Note that its results are stored."""
        self._tag({STORED_TAG: detection_id})

    def overtaken(self, detection_id: str, log: AnalysisLog) -> None:
        """Report that another run's results were there when this run's were ready."""
        # A run that began later has seen this run's note, and reported it.
        if not self._counted and not self._others(detection_id):
            self._report(detection_id, None, log)

    def _others(self, detection_id: str) -> list[dg.DagsterRun]:
        try:
            return same_work(self._instance, self._run_id, detection_id)
        except Exception as error:  # law: what only observes fails no run
            self._warn(f"Whether another run does the same is not known: {error!r}")
            return []

    def _report(self, detection_id: str, other: dg.DagsterRun | None, log: AnalysisLog) -> None:
        whose = "a worker that was given up, or no run on record" if other is None else f"run {other.run_id}"
        log.write(
            f"These detections are made twice: {whose} passes over the same pixels or did ({detection_id}). "
            "See whether its worker still runs, and whether the object store has lost what it stored.",
            action="analysis.duplicate",
            level=logging.ERROR,
            detection_id=detection_id,
            other_run_id=None if other is None else other.run_id,
        )
        self._services.metrics.add(DUPLICATE_JOBS)
        named = {} if other is None else {DUPLICATE_OF_TAG: other.run_id}
        self._tag({DUPLICATE_TAG: self._run_id, **named})

    def _tag(self, tags: dict[str, str]) -> None:
        try:
            # An op called on its own, as in a test, has no run.
            if self._instance.has_run(self._run_id):
                self._instance.add_run_tags(self._run_id, tags)
        except Exception as error:  # as above
            self._warn(f"The run's tags could not be written: {error!r}")

    def _warn(self, message: str) -> None:
        _logger.warning(message, extra={"action": "look.failed", "source": "passes", "run_id": self._run_id})
