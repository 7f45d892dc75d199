"""Reports how far the pass over the pixels is: to the event store, and to the log now and then."""

import logging
import threading
import time

import dagster as dg

from capstone_dagster.analysis import Progress
from capstone_dagster.assets.steps.analysis_log import AnalysisLog
from capstone_dagster.assets.steps.measurements import measure_leg
from capstone_dagster.catalog.metrics import FIRST_FRAME
from capstone_dagster.failures.classes import classify, sentence
from capstone_dagster.services import Services
from capstone_dagster.storage.video_status import UploadCancelled, mark_running

# Each line of progress is a row in Dagster's storage, too: a pass of an hour leaves 120.
_LINE_EVERY_S = 30.0
_REPORT_WITHIN_S = 5
# The last hundredth of the progress is publishing.
_PUBLISHING = 0.99


class Watch:
    """Follows the pass: notes when it began and ended, and reports to the event store.

    What consumers see of the progress is written beside the pass, within seconds or not at all.
    """

    def __init__(self, run_id: str, services: Services, log: AnalysisLog) -> None:
        self._run_id = run_id
        self._services = services
        self._log = log
        self._began_at = time.time()
        self._quiet_until = 0.0
        self._logged_at = time.monotonic()
        self._report: threading.Thread | None = None
        self._cancelled: UploadCancelled | None = None
        self._first_frame_at: float | None = None
        self._last_frame_at: float | None = None

    def __call__(self, progress: Progress) -> None:
        """Take a report of the pass.

        Raises:
            UploadCancelled: an operator has cancelled the analysis, and the stop signal was lost or is late.
        """
        self._last_frame_at = time.time()
        if self._first_frame_at is None:
            self._first_frame_at = self._last_frame_at
            measure_leg(FIRST_FRAME, self._began_at, self._first_frame_at, self._services)
        if self._cancelled is not None:
            raise self._cancelled
        # The last report may still wait for the event store: then this one is dropped.
        if self._report is None or not self._report.is_alive():
            fraction = min(progress.fraction, _PUBLISHING)
            self._report = threading.Thread(target=self._write, args=(fraction,), daemon=True)
            self._report.start()
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

    def begin(self) -> None:
        """Take the upload over, before its pass.

        Raises:
            UploadCancelled: an operator has cancelled it.
        """
        self._write(0.0)
        if self._cancelled is not None:
            raise self._cancelled

    def _write(self, fraction: float) -> None:
        if time.monotonic() < self._quiet_until:
            return
        try:
            with self._services.database.transaction(limit_s=_REPORT_WITHIN_S) as connection:
                mark_running(connection, self._log.upload_id, self._run_id, fraction)
        except UploadCancelled as cancelled:
            self._cancelled = cancelled
        except Exception as error:  # law: what only observes fails no run
            self._quiet_until = time.monotonic() + _LINE_EVERY_S
            self._log.warn(
                f"Progress is not reported for {_LINE_EVERY_S:.0f} s: {sentence(error)}",
                action="progress.lost",
                failure_class=classify(error).value,
            )

    def times(self) -> dict[str, dg.MetadataValue]:
        """When the first and the last frame were analysed; nothing if none was."""
        times = {"first_frame_at": self._first_frame_at, "last_frame_at": self._last_frame_at}
        return {name: dg.MetadataValue.timestamp(at) for name, at in times.items() if at is not None}
