"""Which upload an op works on, and what is told of its progress while it does."""

import time

import dagster as dg

from capstone_dagster.analysis import Progress
from capstone_dagster.assets.references import DetectionsReference
from capstone_dagster.services import Services
from capstone_dagster.storage.errors import SourceMissing, StorageError
from capstone_dagster.storage.records import VideoUpload


def latest_upload(video_id: str, services: Services) -> VideoUpload:
    """A video's latest upload; raises `SourceMissing` where none is known."""
    upload = services.events.latest_upload(video_id)
    if upload is None:
        raise SourceMissing(
            f"No upload of {video_id!r} is known. Upload the video, or announce it by a message."
        )
    return upload


class Watch:
    """Follows the pass over the pixels: remembers when it began and ended, and tells the event store.

    What consumers see of the progress is worth a try, not a failed analysis.
    """

    def __init__(self, context: dg.OpExecutionContext, services: Services) -> None:
        self._context = context
        self._services = services
        self._silent = False
        self.upload_id = ""
        self.first_frame_at: float | None = None
        self.last_frame_at: float | None = None

    def __call__(self, progress: Progress) -> None:
        self.last_frame_at = time.time()
        self.first_frame_at = self.first_frame_at or self.last_frame_at
        self.report(progress.fraction)

    def report(self, fraction: float) -> None:
        """Tell the event store how far it is, 0–1."""
        if self._silent:
            return
        try:
            # The last hundredth is publishing.
            self._services.events.mark_running(self.upload_id, self._context.run_id, min(fraction, 0.99))
        except StorageError as error:
            self._silent = True
            self._context.log.warning(f"Progress is no longer reported: {error}")

    def warn(self, done: DetectionsReference) -> None:
        """Say what an operator should know of a finished pass."""
        if done.summary["truncated"] or done.summary["decode_errors"]:
            cut = "ends before its stated end, or in an error" if done.summary["truncated"] else "is damaged"
            self._context.log.warning(
                f"The video {cut} ({done.summary['decode_errors']} decoding errors): what decodes, "
                f"{done.summary['frames_decoded']} frames, was analysed."
            )
        if done.summary["cpu_fallback"]:
            why = done.summary["cpu_fallback"]
            self._context.log.warning(f"Analysed on the CPU: {why}. CAPSTONE_REQUIRE_GPU=true refuses this.")

    def times(self) -> dict[str, dg.MetadataValue]:
        """When the first and the last frame were analysed; nothing if none was."""
        if self.first_frame_at is None or self.last_frame_at is None:
            return {}
        return {
            "first_frame_at": dg.MetadataValue.timestamp(self.first_frame_at),
            "last_frame_at": dg.MetadataValue.timestamp(self.last_frame_at),
        }
