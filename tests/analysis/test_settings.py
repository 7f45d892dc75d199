"""Settings check themselves and quote what is wrong; importing the library costs next to nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

from capstone_dagster.analysis import AnalysisSettings, InvalidAnalysisSettings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("labels", ()),
        ("labels", "person"),
        ("labels", 3),
        ("labels", ("person", "")),
        ("labels", ("person", " face")),
        ("labels", ("person", "person")),
        ("sample_fps", -1),
        ("sample_fps", float("inf")),
        ("sample_fps", "5"),
        ("sample_fps", True),
        ("motion_gate", 1),
        ("min_score", 0),
        ("min_score", 1.5),
        ("iou", 0),
        ("image_size", 640.0),
        ("image_size", 8),
        ("tracker", "deepsort"),
        ("track_buffer_s", 0),
        ("precision", "half"),
    ],
)
def test_an_impossible_setting_is_refused_with_its_value(field: str, value: object) -> None:
    with pytest.raises(InvalidAnalysisSettings, match=field) as refusal:
        AnalysisSettings(**{field: value})  # type: ignore[arg-type]
    assert repr(value).strip("()") in str(refusal.value)
    assert refusal.value.failure_class == "configuration"


def test_the_detector_is_asked_for_weaker_detections_than_are_kept() -> None:
    assert AnalysisSettings(min_score=0.25).weak_score == 0.1
    assert AnalysisSettings(min_score=0.05).weak_score == 0.05


def test_importing_the_library_loads_nothing_heavy_and_no_other_room() -> None:
    script = """
import sys
import capstone_dagster.analysis
heavy = {"torch", "ultralytics", "openvino", "dagster", "boto3", "sqlalchemy", "pydantic"} & set(sys.modules)
rooms = {name for name in sys.modules if name.startswith("capstone_dagster.") and
         name.split(".")[1] != "analysis"}
print(sorted(heavy | rooms))
"""
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
