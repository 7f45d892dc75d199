"""Which upload an op works on, and how its progress is reported while it does."""

import logging
import time

import dagster as dg

from capstone_dagster.analysis import DetectionSummary, Progress
from capstone_dagster.assets.steps.analysis_log import AnalysisLog
from capstone_dagster.failures.classes import classify
from capstone_dagster.services import Services
from capstone_dagster.storage.errors import SourceMissing, StorageError
from capstone_dagster.storage.uploads import VideoUpload
from capstone_dagster.storage.video_status import UploadCancelled, mark_running
from capstone_dagster.storage.videos import latest_upload


def known_upload(video_id: str, services: Services) -> VideoUpload:
    """A video's latest upload; raises `SourceMissing` where none is known."""
    upload = services.database.transact(latest_upload, video_id)
    if upload is None:
        raise SourceMissing(
            f"No upload of {video_id!r} is known. Upload the video, or announce it by a message."
        )
    return upload


# Each line of progress is a row in Dagster's storage, too: a pass of an hour leaves 120.
_LINE_EVERY_S = 30.0


class Watch:
    """Follows the pass over the pixels: notes when it began and ended, and reports to the event store.

    What consumers see of the progress is worth a try, not a failed analysis.
    """

    def __init__(self, context: dg.OpExecutionContext, services: Services) -> None:
        self._context = context
        self._services = services
        self._silent = False
        self._logged_at = time.monotonic()
        self.log: AnalysisLog | None = None
        self.first_frame_at: float | None = None
        self.last_frame_at: float | None = None

    def __call__(self, progress: Progress) -> None:
        self.last_frame_at = time.time()
        self.first_frame_at = self.first_frame_at or self.last_frame_at
        self.report(progress.fraction)
        if self.log is not None and time.monotonic() - self._logged_at >= _LINE_EVERY_S:
            self._logged_at = time.monotonic()
            self.log.write(
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
        if self._silent or self.log is None:
            return
        try:
            # The last hundredth is publishing.
            self._services.database.transact(
                mark_running, self.log.upload_id, self._context.run_id, min(fraction, 0.99)
            )
        except UploadCancelled:
            raise
        except StorageError as error:
            self._silent = True
            self.log.write(
                f"Progress is no longer reported: {error}",
                action="progress.lost",
                level=logging.WARNING,
                failure_class=classify(error).value,
            )

    def times(self) -> dict[str, dg.MetadataValue]:
        """When the first and the last frame were analysed; nothing if none was."""
        if self.first_frame_at is None or self.last_frame_at is None:
            return {}
        return {
            "first_frame_at": dg.MetadataValue.timestamp(self.first_frame_at),
            "last_frame_at": dg.MetadataValue.timestamp(self.last_frame_at),
        }


def warn(summary: DetectionSummary, log: AnalysisLog) -> None:
    """Say what an operator should know of a finished pass."""
    damaged = summary.decode_errors or summary.corrupt_frames
    if summary.truncated or damaged:
        what = "ends before its stated end, or in an error" if summary.truncated else "is damaged"
        log.write(
            f"The video {what} ({summary.decode_errors} decoding errors, "
            f"{summary.corrupt_frames} damaged frames): what decodes, "
            f"{summary.frames_decoded} frames, was analysed.",
            action="video.damaged",
            level=logging.WARNING,
            truncated=summary.truncated,
            decode_errors=summary.decode_errors,
            corrupt_frames=summary.corrupt_frames,
            frame_count=summary.frames_decoded,
        )
    if summary.size_changes:
        log.write(
            f"The size of its pictures changes {summary.size_changes} times: those of another shape than "
            "the first were fitted into its size, on black.",
            action="video.resized",
            level=logging.WARNING,
            size_changes=summary.size_changes,
        )
    if summary.track:
        log.write(f"The video has several tracks: {summary.track}.", action="video.track")
    if summary.cpu_fallback:
        log.write(
            f"Analysed on the CPU: {summary.cpu_fallback}. CAPSTONE_REQUIRE_GPU=true refuses this.",
            action="gpu.missing",
            level=logging.WARNING,
        )
    if summary.out_of_memory_backoffs:
        log.write(
            f"The GPU had no room for a batch {summary.out_of_memory_backoffs} times: batches were made "
            f"smaller, {summary.batch_size} pictures at the end.",
            action="gpu.out-of-memory",
            level=logging.WARNING,
            batch_size=summary.batch_size,
            backoffs=summary.out_of_memory_backoffs,
        )
