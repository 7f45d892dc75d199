"""Reports how far the pass over the pixels is: to the event store, and to the log now and then."""

import logging
import time

import dagster as dg

from capstone_dagster.analysis import Progress
from capstone_dagster.assets.steps.analysis_log import AnalysisLog
from capstone_dagster.failures.classes import classify
from capstone_dagster.services import Services
from capstone_dagster.storage.errors import StorageError
from capstone_dagster.storage.video_status import UploadCancelled, mark_running

# Each line of progress is a row in Dagster's storage, too: a pass of an hour leaves 120.
_LINE_EVERY_S = 30.0


class Watch:
    """Follows the pass: notes when it began and ended, and reports to the event store.

    What consumers see of the progress is worth a try, not a failed analysis.
    """

    def __init__(self, run_id: str, services: Services, log: AnalysisLog) -> None:
        self._run_id = run_id
        self._services = services
        self._log = log
        self._silent = False
        self._logged_at = time.monotonic()
        self._first_frame_at: float | None = None
        self._last_frame_at: float | None = None

    def __call__(self, progress: Progress) -> None:
        self._last_frame_at = time.time()
        self._first_frame_at = self._first_frame_at or self._last_frame_at
        self.report(progress.fraction)
        if time.monotonic() - self._logged_at >= _LINE_EVERY_S:
            self._logged_at = time.monotonic()
            self._log.write(
                f"{progress.frames_decoded} frames decoded, {progress.fraction:.0%} of the video",
                action="analysis.progress",
                level=logging.DEBUG,
                frame_count=progress.frames_decoded,
                frames_analyzed=progress.frames_analyzed,
                detections=progress.detections,
                frames_per_second=round(progress.fps, 1),
            )

    def report(self, fraction: float) -> None:
        """Report to the event store how far it is, 0–1.

        Raises:
            UploadCancelled: an operator has cancelled the analysis, and the stop signal was lost or is late.
        """
        if self._silent:
            return
        try:
            # The last hundredth is publishing.
            self._services.database.transact(
                mark_running, self._log.upload_id, self._run_id, min(fraction, 0.99)
            )
        except UploadCancelled:
            raise
        except StorageError as error:
            self._silent = True
            self._log.warn(
                f"Progress is no longer reported: {error}",
                action="progress.lost",
                failure_class=classify(error).value,
            )

    def times(self) -> dict[str, dg.MetadataValue]:
        """When the first and the last frame were analysed; nothing if none was."""
        times = {"first_frame_at": self._first_frame_at, "last_frame_at": self._last_frame_at}
        return {name: dg.MetadataValue.timestamp(at) for name, at in times.items() if at is not None}
