"""One streaming pass: exact counts and times, bounded memory, and one end to everything."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest

from capstone_dagster.analysis import (
    DETECTIONS_SCHEMA,
    FRAMES_SCHEMA,
    AnalysisSettings,
    Detections,
    DetectionSummary,
    EventRules,
    Frame,
    Progress,
    analyze_video,
    build_events,
    engine,
    frames,
    read_detections,
    read_frames,
)
from capstone_dagster.analysis.detection.device import GpuState
from capstone_dagster.analysis.engine import _batches
from capstone_dagster.analysis.footage.reader import VideoReader
from capstone_dagster.analysis.footage.video import Image

from .conftest import COLOURS, MakeClip, Square, SquareDetector, decoders

EVERY_FRAME = AnalysisSettings(sample_fps=0)
AT_25_FPS = [index * 40 for index in range(100)]


def visitor(first: int, last: int, *, offset: int = 0) -> object:
    """A person who walks through from frame `first` to frame `last`, at the left edge in frame `offset`."""

    def scene(index: int) -> Sequence[Square]:
        left = 10 + index - offset
        return [("person", left, 40, left + 24, 100)] if first <= index <= last else ()

    return scene


def test_a_visit_becomes_tables_pictures_and_one_event(
    make_clip: MakeClip, tmp_path: Path, detector: SquareDetector
) -> None:
    clip, out = make_clip("a.mp4", AT_25_FPS, visitor(20, 69)), tmp_path / "out"
    summary = analyze_video(clip, out, detector=detector, settings=EVERY_FRAME)

    assert (summary.frames_decoded, summary.frames_analyzed) == (100, 100)
    assert (summary.detections, summary.tracks) == (50, 1)
    assert (summary.width, summary.height, summary.codec) == (192, 128, "h264")
    assert (summary.duration_ms, summary.first_pts_ms, summary.last_pts_ms) == (4000, 0, 3960)
    assert summary.sample_interval_ms == 40
    assert summary.fps == pytest.approx(25)
    assert not summary.truncated
    assert json.loads(json.dumps(asdict(summary)))["model"] == "squares"

    table = read_frames(out / "frames.parquet")
    assert table.schema == FRAMES_SCHEMA
    assert table["frame_index"].to_pylist() == list(range(100))
    assert table["pts_ms"].to_pylist() == AT_25_FPS
    assert table["analyzed"].to_pylist() == [True] * 100
    assert table["detections"].to_pylist() == [int(20 <= index <= 69) for index in range(100)]

    detections = read_detections(out / "detections.parquet")
    assert detections.schema == DETECTIONS_SCHEMA
    assert detections["frame_index"].to_pylist() == list(range(20, 70))
    # The first sighting too, although a track is believed only at the second.
    assert detections["track_id"].to_pylist() == [1] * 50
    assert set(detections["label"].to_pylist()) == {"person"}
    for column, at_frame_20 in (("x1", 30), ("y1", 40), ("x2", 54), ("y2", 100)):
        assert detections[column][0].as_py() == pytest.approx(at_frame_20, abs=2)

    (event,) = events_of(summary, detections)
    assert (event.start_ms, event.end_ms) == (800, 2760)
    assert (event.first_frame, event.last_frame, event.detections) == (20, 69, 50)
    assert not event.truncated_start
    assert not event.truncated_end

    thumbnail = cv2.imread(str(out / event.thumbnail_key))
    assert thumbnail is not None
    middle = thumbnail[thumbnail.shape[0] // 2, thumbnail.shape[1] // 2].astype(int)
    assert np.abs(middle - COLOURS["person"]).max() < 60
    assert cv2.imread(str(out / "contact_sheet.jpg")) is not None
    assert sorted(path.name for path in out.iterdir()) == [
        "contact_sheet.jpg", "detections.parquet", "frames.parquet", "thumbnails"
    ]  # fmt: skip


def events_of(summary: DetectionSummary, detections: pa.Table) -> list[object]:
    return build_events(
        detections,
        summary.coverage,
        analysis_id="analysis",
        rules=EventRules(),
    )


def test_sampling_by_time_analyses_a_part_and_records_every_frame(
    make_clip: MakeClip, tmp_path: Path, detector: SquareDetector
) -> None:
    shown_ms = [0, 40, 80, 500, 540, 1700, 1740, 1780, 3000, 3333, 3400]
    clip = make_clip("a.mp4", shown_ms, lambda index: [("person", 60, 40, 84, 100)])
    summary = analyze_video(
        clip, tmp_path / "out", detector=detector, settings=AnalysisSettings(sample_fps=1)
    )
    assert (summary.frames_decoded, summary.frames_analyzed, summary.detections) == (11, 3, 3)
    assert sum(detector.batches) == 3
    assert summary.sample_interval_ms == 1500  # the median of 1700 and 1300
    assert read_detections(tmp_path / "out/detections.parquet")["pts_ms"].to_pylist() == [0, 1700, 3000]
    table = read_frames(tmp_path / "out/frames.parquet")
    assert table["pts_ms"].to_pylist() == shown_ms
    assert [shown_ms[i] for i, analyzed in enumerate(table["analyzed"].to_pylist()) if analyzed] == [
        0,
        1700,
        3000,
    ]


def test_nothing_found_still_gives_every_file(
    make_clip: MakeClip, tmp_path: Path, detector: SquareDetector
) -> None:
    summary = analyze_video(
        make_clip("a.mp4", AT_25_FPS), tmp_path, detector=detector, settings=AnalysisSettings()
    )
    assert (summary.detections, summary.tracks) == (0, 0)
    assert read_detections(tmp_path / "detections.parquet").num_rows == 0
    assert cv2.imread(str(tmp_path / "contact_sheet.jpg")) is not None
    assert list((tmp_path / "thumbnails").iterdir()) == []


@pytest.mark.parametrize("frame_count", [1, 2, 9])
def test_very_short_videos(
    make_clip: MakeClip, tmp_path: Path, detector: SquareDetector, frame_count: int
) -> None:
    clip = make_clip("a.mp4", AT_25_FPS[:frame_count], visitor(0, 99))
    summary = analyze_video(clip, tmp_path / "out", detector=detector, settings=EVERY_FRAME)
    assert summary.frames_analyzed == summary.detections == frame_count
    assert summary.sample_interval_ms == (40 if frame_count > 1 else 0)


class Hesitating(SquareDetector):
    """Sure of every second picture only."""

    def _find(self, image: Image) -> Detections:
        self.score = 0.9 if self.score < 0.5 else 0.15
        return super()._find(image)


def test_weak_detections_hold_a_track_together_and_are_not_kept(make_clip: MakeClip, tmp_path: Path) -> None:
    clip = make_clip("a.mp4", AT_25_FPS, visitor(0, 99))
    detector = Hesitating(score=0.15)
    summary = analyze_video(clip, tmp_path, detector=detector, settings=EVERY_FRAME)
    detections = read_detections(tmp_path / "detections.parquet")
    assert detections["frame_index"].to_pylist() == list(range(0, 100, 2))
    assert detections["track_id"].to_pylist() == [1] * 50
    assert (summary.detections, summary.tracks) == (50, 1)
    assert sum(read_frames(tmp_path / "frames.parquet")["detections"].to_pylist()) == 50


def test_results_depend_neither_on_the_batch_size_nor_on_the_number_of_threads(
    make_clip: MakeClip, tmp_path: Path, detector: SquareDetector
) -> None:
    clip = make_clip("a.mp4", AT_25_FPS, visitor(10, 80))
    tables = []
    for batch_size, workers in ((1, 1), (7, 1), (200, 1), (1, 4), (3, 2)):
        detector.batches.clear()
        detector.batch_size, detector.workers = batch_size, workers
        out = tmp_path / f"{batch_size}-{workers}"
        analyze_video(clip, out, detector=detector, settings=EVERY_FRAME)
        tables.append(read_detections(out / "detections.parquet"))
        assert sum(detector.batches) == 100
        assert max(detector.batches) == min(batch_size, 99)  # the first one is alone, to show progress
    assert all(table.equals(tables[0]) for table in tables)


@pytest.mark.parametrize(("motion_gate", "longest_ms"), [(False, 200), (True, 2000)])
def test_calm_does_not_count_as_coarse_sampling(
    make_clip: MakeClip, tmp_path: Path, detector: SquareDetector, motion_gate: bool, longest_ms: int
) -> None:
    # 36 seconds of nothing, with a visitor of four seconds in the middle.
    clip = make_clip("a.mp4", [40 * index for index in range(900)], visitor(400, 500, offset=400))
    settings = AnalysisSettings(sample_fps=5, motion_gate=motion_gate)
    summary = analyze_video(clip, tmp_path, detector=detector, settings=settings)
    assert (summary.frames_analyzed < 60) == motion_gate
    assert (summary.sample_interval_ms, summary.longest_interval_ms) == (200, longest_ms)
    assert summary.tracks == 1


@pytest.mark.parametrize("sampling", [{"sample_fps": 5, "motion_gate": True}, {"sample_fps": 0.5}])
def test_somebody_who_stands_still_from_the_first_frame_on_is_one_event(
    make_clip: MakeClip, tmp_path: Path, detector: SquareDetector, sampling: dict[str, Any]
) -> None:
    clip = make_clip(
        "a.mp4", [200 * index for index in range(150)], lambda index: [("person", 80, 40, 104, 100)]
    )
    settings = AnalysisSettings(**sampling)
    summary = analyze_video(clip, tmp_path, detector=detector, settings=settings)
    assert summary.frames_analyzed < 30
    (event,) = events_of(summary, read_detections(tmp_path / "detections.parquet"))
    assert (event.start_ms, event.detections) == (0, summary.frames_analyzed)  # type: ignore[attr-defined]


class GivesUp(SquareDetector):
    """Finds a visitor, who leaves, and fails later."""

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        if sum(self.batches) > 120:
            raise RuntimeError("the model gave up")
        return super().detect(images)


def test_a_failed_pass_leaves_nothing_of_its_own_and_nothing_of_an_earlier_one(
    make_clip: MakeClip, tmp_path: Path, detector: SquareDetector
) -> None:
    clip, out = make_clip("a.mp4", [100 * index for index in range(200)], visitor(0, 20)), tmp_path / "out"
    analyze_video(clip, out, detector=detector, settings=EVERY_FRAME)
    (out / "events.parquet").touch()
    assert list((out / "thumbnails").iterdir())
    (out / "thumbnails" / "holiday.jpg").touch()
    with pytest.raises(RuntimeError, match="gave up"):
        analyze_video(clip, out, detector=GivesUp(batch_size=1), settings=EVERY_FRAME)
    left = {path.relative_to(out).as_posix() for path in out.rglob("*")}
    assert left == {"thumbnails", "thumbnails/holiday.jpg"}  # somebody's own picture is not ours to remove


class OnAGpu(SquareDetector):
    """Says at each look what a GPU might, and has no room for one batch."""

    STATES = (
        GpuState(3000.0, 80000.0, 90.0),
        GpuState(3200.0, 80000.0, None),
        GpuState(3100.0, 80000.0, 70.0),
    )
    looks = 0

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        if len(self.batches) == 1:
            self.batch_size, self.backoffs = 4, self.backoffs + 1
        return super().detect(images)

    def gpu_state(self) -> GpuState | None:
        self.looks += 1
        return self.STATES[min(self.looks, len(self.STATES)) - 1]


def test_a_pass_says_what_it_took_of_its_gpu(
    make_clip: MakeClip, tmp_path: Path, detector: SquareDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_GPU_INTERVAL_S", 0.0)
    clip = make_clip("a.mp4", [index * 40 for index in range(30)], visitor(0, 20))
    on_gpu = OnAGpu(device="cuda:0", backoffs=5)
    done = analyze_video(clip, tmp_path / "gpu", detector=on_gpu, settings=EVERY_FRAME)
    assert done.out_of_memory_backoffs == 1  # those of earlier passes are not its own
    assert done.batch_size == 4
    assert (done.gpu_memory_used_mb, done.gpu_memory_total_mb) == (3200.0, 80000.0)
    assert 70.0 <= (done.gpu_utilization_percent or 0.0) <= 90.0
    done = analyze_video(clip, tmp_path / "cpu", detector=detector, settings=EVERY_FRAME)
    assert (done.out_of_memory_backoffs, done.batch_size) == (0, 8)
    assert done.gpu_memory_used_mb is None
    assert done.gpu_utilization_percent is None


def test_sparse_sampling_does_not_pile_up_frames(
    make_clip: MakeClip, tmp_path: Path, detector: SquareDetector
) -> None:
    clip = make_clip("a.mp4", [index * 10 for index in range(1200)], size=(32, 32))
    shown: list[int] = []
    analyze_video(
        clip,
        tmp_path,
        detector=detector,
        settings=AnalysisSettings(sample_fps=0.1),
        progress=lambda progress: shown.append(progress.frames_decoded),
    )
    assert detector.batches == [1, 1]
    sizes = [len(batch) for batch in _batches(frames(clip, sample_fps=0.1), 8)]
    assert sizes == [1, 512, 512, 175]
    assert shown[0] == 1
    assert shown[-1] == 1200


def test_a_second_pass_replaces_the_first(
    make_clip: MakeClip, tmp_path: Path, detector: SquareDetector
) -> None:
    clip = make_clip("a.mp4", AT_25_FPS, visitor(10, 80))
    out = tmp_path / "out"
    (out / "thumbnails").mkdir(parents=True)
    (out / "thumbnails" / "77.jpg").write_bytes(b"of an earlier pass")
    analyze_video(clip, out, detector=detector, settings=EVERY_FRAME)
    assert [path.name for path in (out / "thumbnails").iterdir()] == ["1.jpg"]


def test_progress_begins_with_the_first_frame_and_ends_at_the_end(
    make_clip: MakeClip, tmp_path: Path, detector: SquareDetector
) -> None:
    seen: list[Progress] = []
    clip = make_clip("a.mp4", AT_25_FPS, visitor(0, 99))
    analyze_video(clip, tmp_path, detector=detector, settings=EVERY_FRAME, progress=seen.append)
    first, last = seen[0], seen[-1]
    assert (first.frames_decoded, first.frames_analyzed, first.pts_ms, first.fraction) == (1, 1, 0, 0)
    assert (last.frames_decoded, last.frames_analyzed, last.fraction, last.detections) == (100, 100, 1, 100)
    assert last.duration_ms == 4000
    assert [step.fraction for step in seen] == sorted(step.fraction for step in seen)


def test_progress_of_a_video_that_does_not_tell_its_length(
    make_clip: MakeClip, tmp_path: Path, detector: SquareDetector
) -> None:
    seen: list[Progress] = []
    clip = make_clip("a.h264", AT_25_FPS, format="h264")
    analyze_video(clip, tmp_path, detector=detector, settings=EVERY_FRAME, progress=seen.append)
    assert {step.duration_ms for step in seen} == {None}
    assert [step.fraction for step in seen][-1] == 1
    assert {step.fraction for step in seen[:-1]} == {0}


class Failing(SquareDetector):
    """Fails on its third batch."""

    failure: BaseException = RuntimeError("the model gave up")

    def detect(self, images: Sequence[Image]) -> list[Detections]:
        if len(self.batches) == 2:
            raise self.failure
        return super().detect(images)


@pytest.mark.parametrize("failure", [RuntimeError("the model gave up"), KeyboardInterrupt()])
def test_a_failing_detector_stops_everything_and_is_reported_once(
    make_clip: MakeClip, tmp_path: Path, failure: BaseException
) -> None:
    clip, out = make_clip("a.mp4", AT_25_FPS, visitor(0, 99)), tmp_path / "out"
    detector = Failing()
    detector.failure = failure
    with pytest.raises(type(failure)) as raised:
        analyze_video(clip, out, detector=detector, settings=EVERY_FRAME)
    assert raised.value is failure
    assert decoders(os.getpid()) == []
    assert [path for path in out.rglob("*") if path.is_file()] == []
    assert detector.batches == [1, 8]


def test_an_error_while_reading_reaches_the_caller(
    make_clip: MakeClip, tmp_path: Path, detector: SquareDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = VideoReader.frames

    def breaking(self: VideoReader, **sampling: Any) -> Iterator[Frame]:
        for frame in real(self, **sampling):
            if frame.index == 30:
                raise OSError("the disk is gone")
            yield frame

    monkeypatch.setattr(VideoReader, "frames", breaking)
    with pytest.raises(OSError, match="the disk is gone"):
        analyze_video(
            make_clip("a.mp4", AT_25_FPS), tmp_path / "out", detector=detector, settings=EVERY_FRAME
        )
    assert decoders(os.getpid()) == []


def test_a_caller_can_stop_the_pass_from_its_progress_callback(
    make_clip: MakeClip, tmp_path: Path, detector: SquareDetector
) -> None:
    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        analyze_video(
            make_clip("a.mp4", AT_25_FPS),
            tmp_path / "out",
            detector=detector,
            settings=EVERY_FRAME,
            progress=stop,
        )
    assert decoders(os.getpid()) == []


@pytest.mark.parametrize(
    ("bytes_under_way", "batch_size"),
    [
        (1 << 30, 4),
        (2 * 5 * 192 * 128 * 3, 2),  # room for batches of two, with five of them between the threads
        (1, 1),  # however large the pictures are: one at a time
    ],
)
def test_pictures_under_way_are_bounded(
    make_clip: MakeClip,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bytes_under_way: int,
    batch_size: int,
) -> None:
    monkeypatch.setattr(engine, "_BYTES_UNDER_WAY", bytes_under_way)
    asked: list[int] = []
    real = VideoReader.frames

    def noting(self: VideoReader, *, pictures: int, **sampling: Any) -> Iterator[Frame]:
        asked.append(pictures)
        return real(self, pictures=pictures, **sampling)

    monkeypatch.setattr(VideoReader, "frames", noting)
    detector = SquareDetector(batch_size=4)
    analyze_video(make_clip("a.mp4", AT_25_FPS), tmp_path / "out", detector=detector, settings=EVERY_FRAME)
    assert max(detector.batches) == batch_size
    # A batch decoded ahead, one being collected, two waiting, one being detected.
    assert asked == [5 * batch_size]
