"""Each check says what is wrong, and says it only then: facts in, verdicts out."""

from collections.abc import Callable, Mapping
from dataclasses import replace
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
    Event,
    Visibility,
    analyze_video,
    look_at_sheet,
    read_frames,
)
from capstone_dagster.analysis.detections import Detections
from capstone_dagster.analysis.pictures import ContactSheet
from capstone_dagster.assets.steps import check_rules
from capstone_dagster.assets.steps.check_facts import DetectionFacts, FrameFacts
from capstone_dagster.assets.steps.check_rules import HISTORY_FLOOR, Finding, Severity
from capstone_dagster.storage.analysis_statistics import AnalysisFigures
from capstone_dagster.testing.scenes import SquareDetector, square_clip
from tests.assets.samples import SUMMARY

WIDTH, HEIGHT = SUMMARY.width, SUMMARY.height


def frames(**columns: Any) -> pa.Table:
    usual = {
        "frame_index": range(25),
        "pts_ms": range(0, 1000, 40),
        "motion": [0.0] + [0.01] * 24,
        "analyzed": [index % 5 == 0 for index in range(25)],
        "detections": [int(index % 5 == 0) for index in range(25)],
    }
    return pa.table({name: list(values) for name, values in {**usual, **columns}.items()}, FRAMES_SCHEMA)


def detections(**columns: Any) -> pa.Table:
    usual = {
        "frame_index": [0, 5, 10, 15, 20],
        "pts_ms": [0, 200, 400, 600, 800],
        "track_id": [1] * 5,
        "label": ["person"] * 5,
        "score": [0.25, 0.5, 0.9, 1.0, 0.7],
        "x1": [0.0] * 5,
        "y1": [10.0] * 5,
        "x2": [640.0] * 5,
        "y2": [360.0] * 5,
    }
    return pa.table({**usual, **columns}, DETECTIONS_SCHEMA)


def passes(finding: Finding) -> bool:
    assert finding.reason.endswith("."), finding.reason
    return finding.passed


@pytest.mark.parametrize(
    ("table", "summary", "severity", "reason"),
    [
        pytest.param(
            {}, {"frames_decoded": 26}, "ERROR", "26 frames were decoded and 25 are", id="lost-rows"
        ),
        pytest.param({}, {"frames_analyzed": 6}, "ERROR", "6 were analysed and 5 are marked", id="analysed"),
        pytest.param({}, {"detections": 4}, "ERROR", "count 5 detections and there are 4", id="detections"),
        pytest.param({"frame_index": [0, *range(2, 26)]}, {}, "ERROR", "numbered one by one", id="numbers"),
        pytest.param({"pts_ms": [40, 0, *range(80, 1000, 40)]}, {}, "ERROR", "run backwards", id="backwards"),
        pytest.param(
            {}, {"duration_ms": 900}, "ERROR", "at 960 ms of a video of 900 ms", id="beyond-the-end"
        ),
        pytest.param({}, {"truncated": True}, "WARN", "ends before its stated end", id="truncated"),
        pytest.param({}, {"decode_errors": 3}, "WARN", "3 parts of it could not be decoded", id="damaged"),
        pytest.param(
            {"pts_ms": [*range(0, 480, 40), *range(600, 1120, 40)]},
            {"duration_ms": 2000},
            "WARN",
            "room for 28 frames: 3 are missing (11%)",
            id="a-gap",
        ),
    ],
)
def test_check_of_frames_says_what_is_missing(
    table: Mapping[str, Any], summary: Mapping[str, Any], severity: str, reason: str
) -> None:
    assert passes(check_rules.frames_complete(FrameFacts.of(frames()), SUMMARY))

    finding = check_rules.frames_complete(FrameFacts.of(frames(**table)), replace(SUMMARY, **summary))

    assert not passes(finding)
    assert finding.severity == severity
    assert reason in finding.reason


def test_check_of_frames_lets_jitter_and_single_frames_pass() -> None:
    jitter = [0, *(40 * index + (5 if index % 2 else -5) for index in range(1, 25))]
    assert passes(check_rules.frames_complete(FrameFacts.of(frames(pts_ms=jitter)), SUMMARY))
    single = frames(frame_index=[0], pts_ms=[0], motion=[0.0], analyzed=[True], detections=[0])
    one = replace(SUMMARY, frames_decoded=1, frames_analyzed=1, detections=0, duration_ms=40)
    assert passes(check_rules.frames_complete(FrameFacts.of(single), one))


@pytest.mark.parametrize(
    ("columns", "check", "reason"),
    [
        pytest.param({"x2": [640.5] + [640.0] * 4}, "boxes_inside_frame", "1 boxes", id="right-of-it"),
        pytest.param({"y1": [-1.0] * 5}, "boxes_inside_frame", "5 boxes", id="above-it"),
        pytest.param({"x1": [640.0] + [0.0] * 4}, "boxes_inside_frame", "1 boxes", id="empty"),
        pytest.param({"y2": [float("nan")] + [360.0] * 4}, "boxes_inside_frame", "1 boxes", id="no-number"),
        pytest.param({"score": [0.24] * 5}, "scores_in_range", "5 scores", id="too-weak"),
        pytest.param({"score": [1.01] + [0.5] * 4}, "scores_in_range", "1 scores", id="more-than-1"),
        pytest.param({"score": [float("nan")] + [0.5] * 4}, "scores_in_range", "1 scores", id="not-a-number"),
    ],
)
def test_check_of_boxes_and_scores_finds_what_cannot_be(
    columns: Mapping[str, Any], check: str, reason: str
) -> None:
    def judged(table: pa.Table) -> dict[str, Finding]:
        found = DetectionFacts.of(table, width=WIDTH, height=HEIGHT, min_score=0.25)
        both = (check_rules.boxes_inside_frame(found, SUMMARY), check_rules.scores_in_range(found, 0.25))
        return {finding.check: finding for finding in both}

    assert all(passes(finding) for finding in judged(detections()).values())

    broken = judged(detections(**columns))

    assert [name for name, finding in broken.items() if not passes(finding)] == [check]
    assert broken[check].severity == Severity.ERROR
    assert reason in broken[check].reason


def test_check_of_boxes_counts_detections() -> None:
    found = DetectionFacts.of(detections().slice(1), width=WIDTH, height=HEIGHT, min_score=0.25)
    finding = check_rules.boxes_inside_frame(found, SUMMARY)
    assert not passes(finding)
    assert "5 detections were made and 4 are stored" in finding.reason


@pytest.mark.parametrize(
    ("name", "sha256", "requested", "passed", "severity"),
    [
        pytest.param("yolov8x.pt", None, False, True, "WARN", id="same-name"),
        pytest.param("other-name.pt", "ab" * 32, False, True, "ERROR", id="same-bytes"),
        pytest.param("yolov8x.pt", "cd" * 32, False, False, "ERROR", id="other-bytes"),
        pytest.param("yolov8n.pt", None, False, False, "WARN", id="other-name"),
        pytest.param("yolov8n.pt", None, True, False, "WARN", id="not-the-requested-one"),
    ],
)
def test_check_of_the_model(
    name: str, sha256: str | None, requested: bool, passed: bool, severity: str
) -> None:
    finding = check_rules.configured_model(SUMMARY, name=name, sha256=sha256, requested=requested)
    assert passes(finding) is passed
    assert finding.severity == severity
    assert ("request named" in finding.reason) is requested


CLEAR = Visibility(brightness=0.8, contrast=0.2, blur=0.35)


@pytest.mark.parametrize(
    ("seen", "still", "duration_ms", "reason"),
    [
        pytest.param(CLEAR, 0.05, 60_000, None, id="clear"),
        pytest.param(CLEAR, 1.0, 2_000, None, id="too-short-to-be-frozen"),
        pytest.param(replace(CLEAR, brightness=0.02), 0.0, 60_000, "it is dark", id="black"),
        pytest.param(replace(CLEAR, contrast=0.005), 0.0, 60_000, "nearly of one colour", id="covered"),
        pytest.param(replace(CLEAR, blur=0.8), 0.0, 60_000, "it is blurred", id="blurred"),
        pytest.param(CLEAR, 0.97, 60_000, "it is frozen (97%", id="frozen"),
    ],
)
def test_check_of_the_picture(seen: Visibility, still: float, duration_ms: int, reason: str | None) -> None:
    finding = check_rules.picture_visible(seen, still, duration_ms)
    assert passes(finding) is (reason is None)
    assert finding.severity == Severity.WARN
    assert reason is None or reason in finding.reason


def sheet(picture: np.ndarray, tmp_path: Any) -> bytes:
    """The contact sheet of a video that shows this picture 15 times."""
    made, boxes = ContactSheet(), np.array([[20, 20, 200, 300]], dtype=np.float32)
    found = Detections(boxes, np.ones(1, np.float32), np.zeros(1, np.int32), ("person",))
    for index in range(15):
        made.offer(picture, index * 200, found, np.ones(1, np.int32))
    made.write(tmp_path / "sheet.jpg", np.ones(1, np.int32))
    return bytes((tmp_path / "sheet.jpg").read_bytes())


def scene() -> np.ndarray:
    """A picture with edges of all sizes, as reality has them."""
    chance = np.random.default_rng(7)
    layers = [
        cv2.resize(chance.integers(0, 256, (9 * 2**k, 16 * 2**k), np.uint8), (WIDTH, HEIGHT)).astype(float)
        for k in range(5)
    ]
    grey = np.clip(128 + sum(layer - 127.5 for layer in layers) / 2, 0, 255).astype(np.uint8)
    return cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(lambda picture: picture, None, id="as-it-is"),
        pytest.param(lambda picture: picture * 0 + 3, "dark", id="black"),
        pytest.param(lambda picture: picture * 0 + 190, "one colour", id="covered"),
        pytest.param(lambda picture: cv2.GaussianBlur(picture, (0, 0), 6), "blurred", id="blurred"),
    ],
)
def test_check_of_the_picture_sees_it_on_the_contact_sheet(
    change: Callable[[Any], Any], reason: str | None, tmp_path: Any
) -> None:
    jpeg = sheet(change(scene()), tmp_path)
    seen = look_at_sheet(jpeg, width=WIDTH, height=HEIGHT, frames=15)
    finding = check_rules.picture_visible(seen, 0.0, 60_000)
    assert passes(finding) is (reason is None), (seen, finding.reason)
    assert reason is None or reason in finding.reason


@pytest.mark.parametrize(("noise", "frozen"), [(3.0, False), (0.0, True)], ids=["empty-room", "frozen"])
def test_check_of_the_picture_tells_a_frozen_one_from_an_empty_room(
    noise: float, frozen: bool, tmp_path: Path
) -> None:
    """Through a real codec, which leaves little of a camera's noise."""
    chance, walls = np.random.default_rng(3), cv2.GaussianBlur(scene(), (0, 0), 9)

    def shown(index: int) -> np.ndarray:
        return np.clip(walls + chance.normal(0, noise, walls.shape), 0, 255).astype(np.uint8)

    options = {"crf": "28", "preset": "veryfast"}
    clip = square_clip(
        tmp_path / "a.mp4", range(0, 12_000, 120), size=(WIDTH, HEIGHT), picture=shown, codec_options=options
    )
    out = tmp_path / "out"
    done = analyze_video(clip, out, detector=SquareDetector(), settings=AnalysisSettings(sample_fps=1.0))
    still = FrameFacts.of(read_frames(out / "frames.parquet")).still
    finding = check_rules.picture_visible(CLEAR, still, done.duration_ms)
    assert passes(finding) is not frozen, finding.reason


def test_check_of_the_picture_refuses_another_videos_sheet(tmp_path: Any) -> None:
    jpeg = sheet(scene(), tmp_path)
    with pytest.raises(ValueError, match="a contact sheet of"):
        look_at_sheet(jpeg, width=WIDTH, height=WIDTH, frames=15)
    with pytest.raises(ValueError, match="a JPEG was expected"):
        look_at_sheet(b"none", width=WIDTH, height=HEIGHT, frames=15)


def test_check_of_the_device() -> None:
    assert passes(check_rules.expected_device(SUMMARY))
    finding = check_rules.expected_device(replace(SUMMARY, cpu_fallback="no GPU was found", device="cpu"))
    assert not passes(finding)
    assert "no GPU was found" in finding.reason


def test_check_of_tracks_wants_them_to_last() -> None:
    def judged(short: int, lasting: int) -> Finding:
        rows = [(track, pts) for track in range(short) for pts in (0, 900)]
        rows += [(short + track, pts) for track in range(lasting) for pts in (0, 1000)]
        count = len(rows)
        table = detections(
            frame_index=[0] * count,
            pts_ms=[pts for _, pts in rows],
            track_id=[track for track, _ in rows],
            label=["person"] * count,
            score=[0.5] * count,
            **{name: [float(place)] * count for place, name in enumerate(("x1", "y1", "x2", "y2"))},
        )
        return check_rules.tracks_lasting(DetectionFacts.of(table, width=9, height=9, min_score=0.25))

    assert passes(judged(short=5, lasting=5))
    assert passes(judged(short=4, lasting=0))
    assert not passes(judged(short=6, lasting=4))


EVENT = Event(
    event_id="e1",
    analysis_id="a",
    track_id=1,
    label="person",
    start_ms=0,
    end_ms=800,
    first_frame=0,
    last_frame=20,
    sample_interval_ms=200.0,
    detections=5,
    best_score=0.9,
    mean_score=0.7,
    best_ms=400,
    best_box=(0.0, 0.0, 1.0, 1.0),
    face_score=None,
    face_box=None,
    truncated_start=True,
    truncated_end=True,
    thumbnail_key="thumbnails/1.jpg",
)


def row(event: Event, **changed: Any) -> dict[str, Any]:
    fields = ("event_id", "track_id", "label", "start_ms", "end_ms", "detections")
    return {**{name: getattr(event, name) for name in fields}, **changed}


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        pytest.param([row(EVENT)], None, id="the-same"),
        pytest.param([], "1 are missing (e1)", id="lost"),
        pytest.param([row(EVENT), row(EVENT, event_id="e2")], "1 were never derived (e2)", id="strange"),
        pytest.param([row(EVENT, end_ms=900)], "1 differ (e1)", id="changed"),
    ],
)
def test_check_of_stored_events(stored: list[dict[str, Any]], reason: str | None) -> None:
    finding = check_rules.events_stored(stored, [EVENT])
    assert passes(finding) is (reason is None)
    assert finding.severity == Severity.ERROR
    assert reason is None or reason in finding.reason


@pytest.mark.parametrize(
    ("second", "overlaps"),
    [
        pytest.param({"start_ms": 801, "end_ms": 900}, False, id="behind-it"),
        pytest.param({"start_ms": 800, "end_ms": 900}, True, id="at-its-end"),
        pytest.param({"start_ms": 100, "end_ms": 200}, True, id="within-it"),
        pytest.param({"start_ms": 100, "end_ms": 200, "track_id": 2}, False, id="another-track"),
        pytest.param({"start_ms": 100, "end_ms": 200, "label": "face"}, False, id="another-label"),
    ],
)
def test_check_of_overlapping_events(second: Mapping[str, Any], overlaps: bool) -> None:
    finding = check_rules.events_apart([row(EVENT, **second), row(EVENT)])
    assert passes(finding) is not overlaps
    assert not overlaps or "overlap 1 times (track 1 at" in finding.reason


def figures(detections: int, score: float | None = 0.7, model: str = "m") -> AnalysisFigures:
    return AnalysisFigures("a", detections, 60_000, model, score)


# Twenty videos of 90 to 109 detections a minute, 0.69 to 0.71 sure.
HISTORY = [figures(90 + number, 0.69 + number / 1000) for number in range(HISTORY_FLOOR)]


@pytest.mark.parametrize(
    ("this", "history", "unusual"),
    [
        pytest.param(figures(120), HISTORY, set(), id="as-ever"),
        pytest.param(figures(10), HISTORY, {"usual_detection_rate"}, id="few"),
        pytest.param(figures(0, None), HISTORY, {"usual_detection_rate"}, id="none"),
        pytest.param(figures(900), HISTORY, {"usual_detection_rate"}, id="many"),
        pytest.param(figures(100, 0.45), HISTORY, {"usual_confidence"}, id="unsure"),
        pytest.param(figures(100, 0.65), HISTORY, set(), id="a-little-less-sure"),
        pytest.param(figures(10, 0.4), HISTORY[1:], set(), id="too-little-history"),
        pytest.param(figures(100, 0.4, "n"), HISTORY, set(), id="another-model-is-not-compared"),
        # A camera that sees nothing at night and many by day: neither is unusual.
        pytest.param(figures(0), [figures(n % 2 * 100) for n in range(40)], set(), id="day-and-night"),
        # One that saw ten times its usual once in a while still notices when there is nothing.
        pytest.param(figures(1), [*HISTORY, figures(1000)], {"usual_detection_rate"}, id="robust"),
    ],
)
def test_check_of_what_is_usual(this: AnalysisFigures, history: Any, unusual: set[str]) -> None:
    both = (check_rules.usual_detection_rate(this, history), check_rules.usual_confidence(this, history))
    assert {finding.check for finding in both if not passes(finding)} == unusual
    assert {finding.severity for finding in both} == {Severity.WARN}


@pytest.mark.parametrize(
    ("latency_s", "first", "passed"), [(60, True, True), (1801, True, False), (90_000, False, True)]
)
def test_check_of_latency(latency_s: float, first: bool, passed: bool) -> None:
    assert passes(check_rules.expected_latency(latency_s, limit_s=1800, first=first)) is passed
