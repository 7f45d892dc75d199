"""The real model on real footage: people who are there are found, and followed."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

from capstone_dagster.analysis import (
    AnalysisSettings,
    DetectionSummary,
    EventRules,
    analyze_video,
    build_events,
    load_detector,
    read_detections,
    read_frames,
)

Analysed = tuple[DetectionSummary, Path]


@pytest.fixture(scope="module")
def analysed(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Analysed:
    settings = AnalysisSettings(sample_fps=2)
    detector = load_detector(test_data / "models/yolo11n_int8_openvino_model", settings)
    assert detector.backend.startswith("openvino-")
    out = tmp_path_factory.mktemp("analysed")
    summary = analyze_video(test_data / "data/eval/vtest.mp4", out, detector=detector, settings=settings)
    return summary, out


def test_people_are_found_in_nearly_every_frame(analysed: Analysed) -> None:
    summary, out = analysed
    assert (summary.frames_decoded, summary.frames_analyzed) == (795, 159)
    assert (summary.width, summary.height, summary.duration_ms) == (480, 360, 79_500)
    frames = read_frames(out / "frames.parquet").to_pylist()
    found = [frame["detections"] > 0 for frame in frames if frame["analyzed"]]
    assert sum(found) / len(found) >= 0.95


def test_people_are_followed_and_shown(analysed: Analysed) -> None:
    summary, out = analysed
    events = build_events(
        read_detections(out / "detections.parquet"),
        summary.coverage,
        analysis_id="analysis",
        rules=EventRules(),
    )
    # 19 people walk through; at two frames a second the tracker loses and finds again four of them.
    assert 19 <= len(events) <= 27
    assert max(event.end_ms - event.start_ms for event in events) > 10_000
    for event in events:
        assert cv2.imread(str(out / event.thumbnail_key)) is not None
