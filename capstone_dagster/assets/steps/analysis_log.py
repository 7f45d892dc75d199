"""The log of one video's analysis: five steps with their counts and times, whether done now or found done."""

from __future__ import annotations

import contextlib
import logging
from typing import Any

from capstone_dagster.analysis import DetectionSummary, Detector
from capstone_dagster.assets.steps.measurements import numbers
from capstone_dagster.assets.steps.temporary_files import Removed
from capstone_dagster.storage.uploads import VideoUpload

_STEPS = {
    "model-loading": "[1/5] Model loading",
    "frame-extraction": "[2/5] Frame extraction",
    "person-detection": "[3/5] Person detection",
    "database-saving": "[4/5] Database saving",
    "cleanup": "[5/5] Cleanup",
}
_MIB_PER_GB = 1024

# The run and upload whose first three steps this process logged last: a run that is re-executed from a later
# step has them from an earlier run, and logs that.
_first_steps_of: tuple[str, str] | None = None


class AnalysisLog:
    """Writes the lines of one video's analysis to the log of its run, with the fields that find the video.

    Args:
        log: of the op.
        run_id: of the run.
        upload: of the video; a run from the UI has no tags that name it.
    """

    def __init__(self, log: logging.Logger, run_id: str, upload: VideoUpload) -> None:
        self.upload_id = upload.upload_id
        self._log = log
        self._key = (run_id, upload.upload_id)
        self._fields = upload.log_fields

    def write(self, message: str, *, action: str, level: int = logging.INFO, **fields: Any) -> None:
        """One line, with fields; what keeps it from being written fails no run."""
        with contextlib.suppress(Exception):
            self._log.log(level, message, extra={"action": action, **self._fields, **fields})

    def warn(self, message: str, *, action: str, **fields: Any) -> None:
        """One line that an operator should see."""
        self.write(message, action=action, level=logging.WARNING, **fields)

    def model_loaded(self, detector: Detector, elapsed_s: float) -> None:
        """Step 1, at its end."""
        self._step(
            "model-loading",
            f"{detector.name} on {detector.device} ({detector.backend})",
            elapsed_s,
            model=detector.name,
            device=detector.device,
            backend=detector.backend,
        )
        state = detector.gpu_state()
        if state is not None:
            self._gpu_memory(state.memory_used_mb, state.memory_total_mb)
        if detector.missing_labels:
            missing = ", ".join(detector.missing_labels)
            self.warn(
                f"The model {detector.name} has no label {missing}: not looked for.",
                action="model.incomplete",
                labels=list(detector.missing_labels),
            )

    def analyzed(self, summary: DetectionSummary) -> None:
        """Steps 2 and 3, which overlap: each with the time that it was at work, which is not that it took."""
        pass_s = _seconds(summary.seconds)
        self._frames(
            summary,
            "decoded",
            "to be analysed",
            summary.decode_seconds,
            decoder=summary.decoder,
            pass_s=pass_s,
        )
        self._detections(
            summary,
            f"in {summary.frames_analyzed} frames",
            summary.inference_seconds,
            batch_size=summary.batch_size,
            pass_s=pass_s,
        )
        if summary.gpu_memory_used_mb is not None and summary.gpu_memory_total_mb is not None:
            self._gpu_memory(summary.gpu_memory_used_mb, summary.gpu_memory_total_mb)

    def warn_of(self, summary: DetectionSummary) -> None:
        """What operators should know of a finished pass."""
        if (damaged := damage(summary)) is not None:
            self.warn(
                damaged,
                action="video.damaged",
                frame_count=summary.frames_decoded,
                **numbers(summary, "truncated", "decode_errors", "corrupt_frames"),
            )
        if summary.size_changes:
            self.warn(
                f"The size of its pictures changes {summary.size_changes} times: those of another shape than "
                "the first were fitted into its size, on black.",
                action="video.resized",
                size_changes=summary.size_changes,
            )
        if summary.track:
            self.write(f"The video has several tracks: {summary.track}.", action="video.track")
        if summary.cpu_fallback:
            self.warn(
                f"Analysed on the CPU: {summary.cpu_fallback}. CAPSTONE_REQUIRE_GPU=true refuses this.",
                action="gpu.missing",
            )
        if summary.out_of_memory_backoffs:
            self.warn(
                f"The GPU had no room for a batch {summary.out_of_memory_backoffs} times: batches were made "
                f"smaller, {summary.batch_size} pictures at the end.",
                action="gpu.out-of-memory",
                batch_size=summary.batch_size,
                backoffs=summary.out_of_memory_backoffs,
            )

    def on_record(self, summary: DetectionSummary, why: str) -> None:
        """Steps 1 to 3 where they were done before; once for each run and video."""
        if _first_steps_of == self._key:
            return
        self._step("model-loading", f"not needed, {why}", 0.0, model=summary.model, reused=True)
        self._frames(summary, "on record", "of them analysed", 0.0, reused=True)
        self._detections(summary, "on record", 0.0, reused=True)

    def derived(self, events: int, detections: int) -> None:
        """Between steps 3 and 4: the events that the rules made of the detections."""
        text = f"{events} events derived from {detections} detections."
        self.write(text, action="events.derived", events=events, detections=detections)

    def saved(self, events: int, rows: int, elapsed_s: float) -> None:
        """Step 4; `rows` is 0 where the analysis was published before."""
        outcome = f"{events} events" if rows or not events else f"{events} events were saved before"
        self._step("database-saving", outcome, elapsed_s, events=events, rows=rows)

    def cleaned_up(self, removed: Removed) -> None:
        """Step 5."""
        self._step(
            "cleanup",
            f"{removed.files} temporary files ({removed.bytes / 1e6:.1f} MB) removed",
            removed.elapsed_s,
            files=removed.files,
            bytes=removed.bytes,
        )

    def completed(self, summary: DetectionSummary, events: int, rows: int, elapsed_s: float) -> None:
        """The end, with all counts."""
        self.write(
            f"Video analysis completed successfully in {elapsed_s:.1f} seconds",
            action="analysis.completed",
            elapsed_s=_seconds(elapsed_s),
            frame_count=summary.frames_decoded,
            **numbers(summary, "frames_analyzed", "detections", "tracks", "device"),
            events=events,
            rows=rows,
            video_s=_seconds(summary.duration_ms / 1000),
            gpu_memory_used_gb=_gigabytes(summary.gpu_memory_used_mb),
            gpu_memory_total_gb=_gigabytes(summary.gpu_memory_total_mb),
        )

    def _frames(
        self, summary: DetectionSummary, decoded: str, analyzed: str, elapsed_s: float, **fields: Any
    ) -> None:
        global _first_steps_of
        _first_steps_of = self._key
        self._step(
            "frame-extraction",
            f"{summary.frames_decoded} frames {decoded}, {summary.frames_analyzed} {analyzed}",
            elapsed_s,
            frame_count=summary.frames_decoded,
            frames_analyzed=summary.frames_analyzed,
            **fields,
        )

    def _detections(self, summary: DetectionSummary, where: str, elapsed_s: float, **fields: Any) -> None:
        self._step(
            "person-detection",
            f"{summary.detections} detections {where}, {summary.tracks} tracks",
            elapsed_s,
            frame_count=summary.frames_analyzed,
            detections=summary.detections,
            tracks=summary.tracks,
            **fields,
        )

    def _step(self, step: str, outcome: str, elapsed_s: float, **fields: Any) -> None:
        self.write(
            f"{_STEPS[step]}: {outcome}, {elapsed_s:.1f} s",
            action="step.completed",
            step=step,
            elapsed_s=_seconds(elapsed_s),
            **fields,
        )

    def _gpu_memory(self, used_mb: float, total_mb: float) -> None:
        used, total = used_mb / _MIB_PER_GB, total_mb / _MIB_PER_GB
        self.write(
            f"CUDA memory: {used:.1f}GB / {total:.1f}GB",
            action="gpu.memory",
            used_gb=_gigabytes(used_mb),
            total_gb=_gigabytes(total_mb),
        )


def _seconds(value: float) -> float:
    return round(value, 3)


def _gigabytes(mebibytes: float | None) -> float | None:
    return None if mebibytes is None else round(mebibytes / _MIB_PER_GB, 2)


def damage(summary: DetectionSummary) -> str | None:
    """What is wrong with a file of which only a part was analysed, and what to do; None for a whole one."""
    if not (summary.truncated or summary.decode_errors or summary.corrupt_frames):
        return None
    what = "ends before its stated end, or in an error" if summary.truncated else "is damaged"
    counts = f"{summary.decode_errors} decoding errors, {summary.corrupt_frames} damaged frames"
    return (
        f"The video {what} ({counts}): what decodes, {summary.frames_decoded} frames, was analysed. Check "
        "the recorder and the transfer, and upload a whole file."
    )
