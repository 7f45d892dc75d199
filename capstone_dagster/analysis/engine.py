"""The one streaming pass over a video, in bounded memory.

A process of its own decodes, `Detector.workers` threads detect, and the caller's thread tracks and writes;
what is between them is bounded, in order, and torn down as soon as any of them fails.
"""

from __future__ import annotations

import re
import resource
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import cv2

from .detection.detector import Detector
from .detections import Detections
from .events import Coverage
from .footage.reader import VideoReader
from .footage.video import Frame, VideoInfo
from .results import Results
from .settings import AnalysisSettings

DETECT_THREAD = "video-detect"

# Batches that wait for a detecting thread: one is enough to keep it fed, the second rides out the decoder's
# hesitations at key frames and the tracker's in crowds.
_BATCHES_WAITING = 2

# What all pictures between decoder and tracker may take. Those of 8K are 100 MB each: batches get smaller
# for them, and fewer threads work. Five there are at least, however large.
_BYTES_UNDER_WAY = 1 << 30

# However sparse the sampling, frames are handed over and progress is reported after this many: some 20 s.
_FRAMES_PER_BATCH = 512

_PROGRESS_INTERVAL_S = 0.5

# The driver's own sample of how busy the GPU is covers up to a second.
_GPU_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a pass.

    `fps` is decoded frames per second of work so far; `fraction` (0-1) is 0 while the duration is unknown.
    """

    frames_decoded: int
    frames_analyzed: int
    pts_ms: int
    duration_ms: int | None
    fraction: float
    detections: int
    fps: float


@dataclass(frozen=True, slots=True)
class DetectionSummary:
    """Results and cost of a finished pass; `dataclasses.asdict` makes it ready for JSON.

    Attributes:
        duration_ms: from the container's start to the end of the last frame, as decoded, not as stated.
        fps: mean of the decoded frames; None for a single one.
        creation_time: when the recording began, by the container's tags, ISO 8601.
        creation_time_rule: which tag said so, and how it was read.
        first_pts_ms, last_pts_ms: the first and the last analysed frame.
        sample_interval_ms: the median spacing of analysed frames, with the motion gate of those while
            something moved; 0 for a single one.
        longest_interval_ms: how far apart they are at most by intention: the gate's heartbeat, if it is on.
        seconds: wall-clock time of the pass; decoding, inference and the rest overlap.
        decode_seconds, inference_seconds: how much of it the decoder, the model were at work.
        decoder: `software` or `nvdec`.
        cpu_fallback: why it ran on the CPU although a GPU was expected; None otherwise.
        batch_size: pictures in a batch, at the end of the pass.
        out_of_memory_backoffs: how often a batch was reduced because the GPU ran out of memory.
        gpu_memory_used_mb: peak of the GPU's memory in use by all processes, in MiB;
            gpu_memory_total_mb: its size. None without a GPU.
        gpu_utilization_percent: how busy the GPU was on average, as its driver says; None
            without a GPU, or where it does not say.
        peak_rss_mb: the most memory of this process and the decoder's, in MiB.
        isolation: what confines the decoder's process, as `footage.sandbox` names it.
        truncated: the file ended before what it promised, or in an error.
        decode_errors: how often its container or its codec could not be read on.
        corrupt_frames: frames whose pictures the decoder guessed in part.
        size_changes: how often frames began to have another size or shape.
        track: of several video tracks, which one was analysed and why; None where there was one.
    """

    frames_decoded: int
    frames_analyzed: int
    detections: int
    tracks: int
    duration_ms: int
    width: int
    height: int
    fps: float | None
    codec: str
    creation_time: str | None
    first_pts_ms: int
    last_pts_ms: int
    sample_interval_ms: float
    longest_interval_ms: float
    seconds: float
    decode_seconds: float
    inference_seconds: float
    model_load_seconds: float
    device: str
    backend: str
    cpu_fallback: str | None
    batch_size: int
    out_of_memory_backoffs: int
    gpu_memory_used_mb: float | None
    gpu_memory_total_mb: float | None
    gpu_utilization_percent: float | None
    decoder: str
    model: str
    model_sha256: str
    peak_rss_mb: float
    truncated: bool
    decode_errors: int
    # Added later: summaries that were stored before can still be read.
    creation_time_rule: str | None = None
    isolation: str | None = None
    corrupt_frames: int = 0
    size_changes: int = 0
    track: str | None = None

    @property
    def coverage(self) -> Coverage:
        """The frames that the pass has analysed."""
        return Coverage.of(asdict(self))


def analyze_video(
    path: Path,
    out: Path,
    *,
    detector: Detector,
    settings: AnalysisSettings,
    name: str | None = None,
    hardware_decoding: bool = False,
    opened: Callable[[VideoInfo], None] = lambda info: None,
    progress: Callable[[Progress], None] | None = None,
) -> DetectionSummary:
    """Analyse a video into `out`: `frames.parquet`, `detections.parquet`, `contact_sheet.jpg`, `thumbnails/`.

    The package's docstring has an example.

    Args:
        name: what messages call the video, by default its file name.
        hardware_decoding: use the GPU's decoder if it supports the format, else software.
        opened: called once, when the file has proved to be a video.
        progress: called in this thread at the first analysed frame, then at most twice a second, and at the
            end. An exception from either ends the pass, like any failure and like Ctrl-C: decoding stops,
            incomplete files of this pass are removed, and the first error is raised.
    """
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        video = stack.enter_context(VideoReader(path, name=name, hardware=hardware_decoding))
        opened(video.info)
        results = stack.enter_context(Results(out, settings, detector.labels))
        run = _Pass(video, detector, results, settings, progress, started)
        run.run()
        results.finish()
    return run.summary()


class _Pass:
    """One pass under way: what happens to each frame, and the counts it ends with."""

    def __init__(
        self,
        video: VideoReader,
        detector: Detector,
        results: Results,
        settings: AnalysisSettings,
        progress: Callable[[Progress], None] | None,
        started: float,
    ) -> None:
        self._video = video
        self._detector = detector
        self._results = results
        self._settings = settings
        self._progress = progress
        self._started = started
        self._reported: float | None = None
        self._inference = _BusyTime()
        self._batch_size = detector.batch_size
        self._backoffs_before = detector.backoffs
        self._gpu = _GpuWatch(detector)

    def run(self) -> None:
        pictures = _BYTES_UNDER_WAY // (3 * self._video.info.width * self._video.info.height)
        # Besides those being worked on, some wait for it and as many are decoded ahead.
        workers = max(1, min(self._detector.workers, pictures - 2 * _BATCHES_WAITING))
        size = max(1, min(self._detector.batch_size, pictures // (workers + 2 * _BATCHES_WAITING)))
        frames = self._video.frames(
            sample_fps=self._settings.sample_fps,
            motion_gate=self._settings.motion_gate,
            # A batch decoded ahead, one being collected, those waiting, those being detected.
            pictures=size * (2 + _BATCHES_WAITING + workers),
        )
        with (
            _one_thread_each() if workers > 1 else nullcontext(),
            _Detecting(self._detect, workers) as detecting,
        ):
            for batch, found in detecting.in_order(_batches(frames, size), ahead=workers + _BATCHES_WAITING):
                detections = iter(found)
                for frame in batch:
                    self._results.add(frame, next(detections) if frame.image is not None else None)
                self._gpu.look()
                self._report()
        self._batch_size = min(size, self._detector.batch_size)
        self._report(finished=True)

    def _detect(self, batch: list[Frame]) -> list[Detections]:
        """Runs in the detecting threads."""
        images = [frame.image for frame in batch if frame.image is not None]
        if not images:
            return []
        with self._inference:
            return self._detector.detect(images)

    def summary(self) -> DetectionSummary:
        results, info, damage = self._results, self._video.info, self._video.damage
        return DetectionSummary(
            frames_decoded=results.frames_decoded,
            frames_analyzed=results.frames_analyzed,
            detections=results.detections,
            tracks=results.tracks,
            duration_ms=self._video.end_ms,
            width=info.width,
            height=info.height,
            fps=results.fps,
            codec=info.codec,
            creation_time=info.creation_time.isoformat() if info.creation_time else None,
            creation_time_rule=info.creation_time_rule,
            first_pts_ms=results.first_analyzed_ms,
            last_pts_ms=results.last_analyzed_ms,
            sample_interval_ms=results.sample_interval_ms,
            longest_interval_ms=results.longest_interval_ms,
            seconds=time.perf_counter() - self._started,
            decode_seconds=self._video.busy_s,
            inference_seconds=self._inference.seconds,
            model_load_seconds=self._detector.load_seconds,
            device=self._detector.device,
            backend=self._detector.backend,
            cpu_fallback=self._detector.cpu_fallback,
            batch_size=self._batch_size,
            out_of_memory_backoffs=self._detector.backoffs - self._backoffs_before,
            gpu_memory_used_mb=self._gpu.memory_used_mb,
            gpu_memory_total_mb=self._gpu.memory_total_mb,
            gpu_utilization_percent=self._gpu.utilization_percent,
            decoder=self._video.decoder,
            model=self._detector.name,
            model_sha256=self._detector.sha256,
            peak_rss_mb=peak_rss_mb() + self._video.peak_rss_mb,
            isolation=self._video.isolation,
            truncated=damage.truncated,
            decode_errors=damage.decode_errors,
            corrupt_frames=damage.corrupt_frames,
            size_changes=damage.size_changes,
            track=info.track,
        )

    def _report(self, *, finished: bool = False) -> None:
        now = time.perf_counter()
        due = self._reported is None or now - self._reported >= _PROGRESS_INTERVAL_S
        if self._progress is None or not (due or finished):
            return
        self._reported = now
        results, duration_ms = self._results, self._video.info.duration_ms
        at_ms = results.last_decoded_ms
        self._progress(
            Progress(
                frames_decoded=results.frames_decoded,
                frames_analyzed=results.frames_analyzed,
                pts_ms=at_ms,
                duration_ms=duration_ms,
                fraction=1.0 if finished else min(1.0, at_ms / duration_ms) if duration_ms else 0.0,
                detections=results.detections,
                fps=results.frames_decoded / (now - self._started),
            )
        )


class _Detecting:
    """Threads that detect in batches; what they find comes back in the order the batches went in."""

    def __init__(self, detect: Callable[[list[Frame]], list[Detections]], workers: int) -> None:
        self._detect = detect
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix=DETECT_THREAD)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._threads.shutdown(wait=True, cancel_futures=True)

    def in_order(
        self, batches: Iterable[list[Frame]], *, ahead: int
    ) -> Iterator[tuple[list[Frame], list[Detections]]]:
        """Each batch with what was found in it, as soon as it is known; at most `ahead` are under way."""
        under_way: deque[tuple[list[Frame], Future[list[Detections]]]] = deque()
        for batch in batches:
            under_way.append((batch, self._threads.submit(self._detect, batch)))
            while under_way and (len(under_way) >= ahead or under_way[0][1].done()):
                first, found = under_way.popleft()
                yield first, found.result()
        for first, found in under_way:
            yield first, found.result()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """OpenCV's own threads would wait for processors that the detecting ones keep busy."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


class _GpuWatch:
    """What a pass's GPU was seen doing, looked at now and then by the thread that tracks."""

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._looked = -_GPU_INTERVAL_S
        self._utilizations: list[float] = []
        self.memory_used_mb: float | None = None
        self.memory_total_mb: float | None = None

    def look(self) -> None:
        now = time.perf_counter()
        if now - self._looked < _GPU_INTERVAL_S:
            return
        self._looked = now
        state = self._detector.gpu_state()
        if state is not None:
            self.memory_used_mb = max(self.memory_used_mb or 0.0, state.memory_used_mb)
            self.memory_total_mb = state.memory_total_mb
            if state.utilization_percent is not None:
                self._utilizations.append(state.utilization_percent)

    @property
    def utilization_percent(self) -> float | None:
        return statistics.mean(self._utilizations) if self._utilizations else None


class _BusyTime:
    """How long, in wall-clock seconds, at least one thread was inside the `with` block."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._lock = threading.Lock()
        self._inside = 0
        self._since = 0.0

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._since = time.perf_counter()
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                self.seconds += time.perf_counter() - self._since


def _batches(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """Frames in groups of `size` pictures, never endless; the first of one, to show progress at once."""
    batch: list[Frame] = []
    pictures, wanted = 0, 1
    for frame in frames:
        batch.append(frame)
        pictures += frame.image is not None
        if pictures == wanted or len(batch) == _FRAMES_PER_BATCH:
            yield batch
            batch, pictures, wanted = [], 0, size
    if batch:
        yield batch


def peak_rss_mb() -> float:
    """The most memory that this process ever had resident, in MiB."""
    # Linux hands getrusage's peak on through exec, so that a child begins with its parent's.
    status = Path("/proc/self/status")
    if status.exists():
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)
        if peak:
            return int(peak[1]) / 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (1024 * 1024 if sys.platform == "darwin" else 1024)
