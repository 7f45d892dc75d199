"""The one streaming pass over a video, in bounded memory: decode in a thread, detect, track, write files."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .detections import Detections
from .detector import Detector
from .handoff import Handoff
from .pictures import ContactSheet, Thumbnails
from .settings import AnalysisSettings
from .tables import DETECTIONS_SCHEMA, FRAMES_SCHEMA, TableWriter
from .tracking import UNTRACKED, VideoTracker
from .video import Frame, Image, VideoInfo, VideoReader

DECODE_THREAD = "video-decode"

# How many batches the decoder may be ahead: one being prepared while one is waiting keeps the model fed.
_BATCHES_AHEAD = 2

# Frames that are not sampled travel without pictures; so many of them fit into one hand-over.
_FRAMES_PER_CHUNK = 64

# However sparse the sampling, frames go on and progress is told after so many: about 20 s of ordinary video.
_FRAMES_PER_BATCH = 512

_PROGRESS_INTERVAL_S = 0.5


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a pass has come.

    `fps` is decoded frames per second of work so far; `fraction` (0-1) stays 0 while the end is unknown.
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
    """What a finished pass found and what it cost; JSON-able by `dataclasses.asdict`.

    Attributes:
        duration_ms: from the first frame to the end of the last one, as decoded, not as stated.
        fps: mean of the decoded frames; None for a single one.
        creation_time: the container's tag, ISO 8601 in UTC.
        first_pts_ms, last_pts_ms: the first and the last analysed frame.
        sample_interval_ms: the median spacing of analysed frames; 0 for a single one.
        seconds: wall-clock time of the pass; decoding overlaps the rest.
        truncated: the file ended before what it promised, or in a decoding error.
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
    seconds: float
    decode_seconds: float
    inference_seconds: float
    model_load_seconds: float
    device: str
    backend: str
    model: str
    model_sha256: str
    peak_rss_mb: float
    truncated: bool
    decode_errors: int


def analyze_video(
    path: Path,
    out: Path,
    *,
    detector: Detector,
    settings: AnalysisSettings,
    progress: Callable[[Progress], None] | None = None,
) -> DetectionSummary:
    """Analyses a video into `out`: `frames.parquet`, `detections.parquet`, `contact_sheet.jpg`,
    `thumbnails/`.

    `progress` is called in this thread at the first analysed frame, then at most twice a second, and at the
    end; what it raises ends the pass, like any failure and like Ctrl-C: decoding stops, the files of this
    pass that are not complete are removed, and the first error is raised.
    """
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        video = stack.enter_context(VideoReader(path))
        results = stack.enter_context(_Results(out, settings, detector.labels, video.info))
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
        results: _Results,
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
        self._decode_seconds = 0.0
        self._inference_seconds = 0.0

    def run(self) -> None:
        with Handoff(
            self._decode, capacity=_BATCHES_AHEAD * self._settings.batch_size, name=DECODE_THREAD
        ) as decoded:
            for batch in _batches(chain.from_iterable(decoded), self._settings.batch_size):
                images = [frame.image for frame in batch if frame.image is not None]
                before = time.perf_counter()
                found = iter(self._detector.detect(images) if images else [])
                self._inference_seconds += time.perf_counter() - before
                for frame in batch:
                    self._results.add(frame, next(found) if frame.image is not None else None)
                self._report()
        self._report(finished=True)

    def summary(self) -> DetectionSummary:
        results, info = self._results, self._video.info
        return DetectionSummary(
            frames_decoded=results.frames_decoded,
            frames_analyzed=results.frames_analyzed,
            detections=results.detections,
            tracks=results.tracks,
            duration_ms=self._video.last_frame_end_ms,
            width=info.width,
            height=info.height,
            fps=(results.frames_decoded - 1) * 1000 / results.last_decoded_ms
            if results.last_decoded_ms
            else None,
            codec=info.codec,
            creation_time=info.creation_time.isoformat() if info.creation_time else None,
            first_pts_ms=results.first_analyzed_ms,
            last_pts_ms=results.last_analyzed_ms,
            sample_interval_ms=results.sample_interval_ms,
            seconds=time.perf_counter() - self._started,
            decode_seconds=self._decode_seconds,
            inference_seconds=self._inference_seconds,
            model_load_seconds=self._detector.load_seconds,
            device=self._detector.device,
            backend=self._detector.backend,
            model=self._detector.name,
            model_sha256=self._detector.sha256,
            peak_rss_mb=_peak_rss_mb(),
            truncated=self._video.truncated,
            decode_errors=self._video.decode_errors,
        )

    def _decode(self) -> Iterator[list[Frame]]:
        """Runs in the decoding thread: frames in chunks that hold one picture at most."""
        chunk: list[Frame] = []
        frames = self._video.frames(sample_fps=self._settings.sample_fps)
        while True:
            before = time.perf_counter()
            frame = next(frames, None)
            self._decode_seconds += time.perf_counter() - before
            if frame is None:
                break
            chunk.append(frame)
            if frame.image is not None or len(chunk) == _FRAMES_PER_CHUNK:
                yield chunk
                chunk = []
        if chunk:
            yield chunk

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


@dataclass(slots=True, eq=False)
class _Analyzed:
    """An analysed frame on its way to the files."""

    pts_ms: int
    index: int
    image: Image
    detections: Detections
    track_ids: npt.NDArray[np.int32]


class _Results:
    """Everything a pass writes and counts, fed frame by frame.

    Detections are written one analysed frame late: only then is it known whether a first sighting is a track.
    """

    def __init__(
        self, out: Path, settings: AnalysisSettings, labels: tuple[str, ...], info: VideoInfo
    ) -> None:
        self.frames_decoded = self.frames_analyzed = self.detections = 0
        self.last_decoded_ms = self.first_analyzed_ms = self.last_analyzed_ms = 0
        self._out = out
        self._settings = settings
        self._tracker = VideoTracker(settings, labels)
        self._sheet = ContactSheet()
        # A track may come back within the tracker's buffer; after it, its best view is final.
        self._thumbnails = Thumbnails(out / "thumbnails", keep_ms=settings.track_buffer_s * 1000)
        self._waiting: _Analyzed | None = None
        self._tracks_kept: set[int] = set()
        self._spacings: Counter[int] = Counter()
        self._files = ExitStack()

    def __enter__(self) -> _Results:
        (self._out / "contact_sheet.jpg").unlink(missing_ok=True)
        self._frames_table = self._files.enter_context(
            TableWriter(self._out / "frames.parquet", FRAMES_SCHEMA)
        )
        self._detections_table = self._files.enter_context(
            TableWriter(self._out / "detections.parquet", DETECTIONS_SCHEMA)
        )
        return self

    def __exit__(self, *error: Any) -> None:
        self._files.__exit__(*error)

    @property
    def tracks(self) -> int:
        return len(self._tracks_kept)

    @property
    def sample_interval_ms(self) -> float:
        """The median spacing of analysed frames.

        From a count of each spacing that occurred: few values, however long the video.
        """
        total = self._spacings.total()
        if total == 0:
            return 0.0
        ordered = sorted(self._spacings.items())
        cumulated = np.cumsum([count for _, count in ordered])
        middle = [
            ordered[int(np.searchsorted(cumulated, place, side="right"))][0]
            for place in ((total - 1) // 2, total // 2)
        ]
        return sum(middle) / 2

    def add(self, frame: Frame, found: Detections | None) -> None:
        """The next decoded frame, with its detections if it was analysed."""
        kept = 0
        if frame.image is not None and found is not None:
            height, width = frame.image.shape[:2]
            found = found.clipped(width, height)
            kept = int((found.scores >= self._settings.min_score).sum())
            self._analyzed(frame, frame.image, found)
        self._frames_table.append(
            {
                "frame_index": [frame.index],
                "pts_ms": [frame.pts_ms],
                "motion": [frame.motion],
                "analyzed": [frame.image is not None],
                "detections": [kept],
            }
        )
        self.frames_decoded += 1
        self.last_decoded_ms = frame.pts_ms
        self.detections += kept

    def finish(self) -> None:
        """Writes what waits; to be called once after the last frame."""
        self._write_waiting()
        self._thumbnails.close()
        self._sheet.write(self._out / "contact_sheet.jpg")

    def _analyzed(self, frame: Frame, image: Image, found: Detections) -> None:
        if self.frames_analyzed == 0:
            self.first_analyzed_ms = frame.pts_ms
        else:
            self._spacings[frame.pts_ms - self.last_analyzed_ms] += 1
        self.frames_analyzed += 1
        self.last_analyzed_ms = frame.pts_ms
        assignment = self._tracker.update(found, image, frame.pts_ms)
        if self._waiting is not None:
            for index, track_id in assignment.confirmed:
                self._waiting.track_ids[index] = track_id
        self._write_waiting()
        self._waiting = _Analyzed(frame.pts_ms, frame.index, image, found, assignment.track_ids)

    def _write_waiting(self) -> None:
        if self._waiting is None:
            return
        frame, self._waiting = self._waiting, None
        # The tracker saw weaker detections too; they helped it to hold on to tracks and are not kept.
        kept = frame.detections.scores >= self._settings.min_score
        detections, track_ids = frame.detections.select(kept), frame.track_ids[kept]
        if len(detections):
            self._detections_table.append(
                {
                    "frame_index": [frame.index] * len(detections),
                    "pts_ms": [frame.pts_ms] * len(detections),
                    "track_id": [
                        None if track_id == UNTRACKED else track_id for track_id in track_ids.tolist()
                    ],
                    "label": [detections.label(index) for index in range(len(detections))],
                    "score": detections.scores.tolist(),
                    **dict(zip(("x1", "y1", "x2", "y2"), detections.boxes.T.tolist(), strict=True)),
                }
            )
        tracked = track_ids != UNTRACKED
        self._tracks_kept.update(track_ids[tracked].tolist())
        self._thumbnails.offer(frame.image, frame.pts_ms, detections.select(tracked), track_ids[tracked])
        self._sheet.offer(frame.image, frame.pts_ms, detections, track_ids)


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


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
