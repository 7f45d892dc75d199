"""Equal work has an equal id wherever it lies; whatever changes a result changes its id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from capstone_dagster.analysis import (
    AnalysisSettings,
    EventRules,
    ModelUnavailable,
    analysis_id,
    detection_id,
    event_id,
    model_sha256,
)

WORK: dict[str, Any] = {
    "etag": "9b2cf535f27731c974343645a3985328",
    "size_bytes": 1234,
    "model_sha256": "ab" * 32,
    "settings": AnalysisSettings(),
}


def test_ids_are_what_they_were() -> None:
    """Other ids would analyse every video again: raise the version if results change, else keep these."""
    detections = detection_id(**WORK)
    analysis = analysis_id(video_id="clip-1a2b3c4d", detection_id=detections, rules=EventRules())
    event = event_id(analysis_id=analysis, label="person", track_id=1, start_ms=200)
    assert (detections, analysis, event) == (
        "04dc1ed02bb1d6bd35e2693db7f7c148",
        "379fe7b466ebd53eaa3beaa8d73cb9ff",
        "dbfbfe59c757328222f791b1239bbb3b",
    )


@pytest.mark.parametrize(
    "same",
    [
        {"etag": '"9b2cf535f27731c974343645a3985328"'},
        {"model_sha256": "AB" * 32},
        {"settings": AnalysisSettings(labels=("face", "person"))},
        {"settings": AnalysisSettings(sample_fps=5)},
        {"nonce": None},
    ],
)
def test_the_same_work_has_the_same_id(same: dict[str, Any]) -> None:
    assert detection_id(**{**WORK, **same}) == detection_id(**WORK)


@pytest.mark.parametrize(
    "other",
    [
        {"etag": "another"},
        {"size_bytes": 1235},
        {"model_sha256": "cd" * 32},
        {"nonce": "once more"},
        {"settings": AnalysisSettings(labels=("person",))},
        {"settings": AnalysisSettings(sample_fps=0)},
        {"settings": AnalysisSettings(motion_gate=True)},
        {"settings": AnalysisSettings(min_score=0.3)},
        {"settings": AnalysisSettings(iou=0.6)},
        {"settings": AnalysisSettings(image_size=320)},
        {"settings": AnalysisSettings(tracker="botsort")},
        {"settings": AnalysisSettings(track_buffer_s=3)},
    ],
)
def test_other_work_has_another_id(other: dict[str, Any]) -> None:
    assert detection_id(**{**WORK, **other}) != detection_id(**WORK)


def test_raising_a_version_changes_the_ids_made_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = detection_id(**WORK), analysis_id(video_id="v", detection_id="d", rules=EventRules())
    monkeypatch.setattr("capstone_dagster.analysis.identity.DETECTION_VERSION", 1000)
    assert detection_id(**WORK) != before[0]
    assert analysis_id(video_id="v", detection_id="d", rules=EventRules()) == before[1]
    monkeypatch.setattr("capstone_dagster.analysis.identity.EVENTS_VERSION", 1000)
    assert analysis_id(video_id="v", detection_id="d", rules=EventRules()) != before[1]


def test_rules_video_and_detections_make_an_analysis() -> None:
    ids = {
        analysis_id(video_id=video, detection_id=detections, rules=rules)
        for video in "ab"
        for detections in "cd"
        for rules in (EventRules(), EventRules(max_gap_s=3))
    }
    assert len(ids) == 8


def test_settings_and_rules_are_json() -> None:
    json.dumps([AnalysisSettings().detection_fields(), EventRules().as_fields()])


def test_a_model_directory_is_its_names_and_contents(tmp_path: Path) -> None:
    def model(name: str, files: dict[str, bytes]) -> str:
        for file, content in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return model_sha256(tmp_path / name)

    first = model("first", {"a.xml": b"1", "deep/b.bin": b"2"})
    assert first == model("copy", {"deep/b.bin": b"2", "a.xml": b"1"})
    assert first != model("content", {"a.xml": b"1", "deep/b.bin": b"3"})
    assert first != model("name", {"a.xml": b"1", "deep/c.bin": b"2"})
    assert first != model("more", {"a.xml": b"1", "deep/b.bin": b"2", "c": b""})
    assert first != model("swapped", {"a.xml": b"2", "deep/b.bin": b"1"})


def test_a_model_file_is_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"abc")
    assert (
        model_sha256(tmp_path / "model.pt")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )


@pytest.mark.parametrize("name", ["nothing.pt", "empty_openvino_model"])
def test_a_missing_model_is_said_to_be_missing(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty_openvino_model").mkdir()
    with pytest.raises(ModelUnavailable, match=name):
        model_sha256(tmp_path / name)
