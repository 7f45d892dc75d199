"""The commands that report, over the records of real runs: one that went well, and one that failed."""

import json

import pytest

from capstone_dagster.testing import MakeClip, Pipeline, SquareDetector
from tests.support.command_line import Capstone


@pytest.fixture
def two_videos(pipeline: Pipeline, make_clip: MakeClip, stand_in_detector: SquareDetector) -> Pipeline:
    clip = make_clip("84.mp4", range(0, 3000, 40), lambda _: [("person", 20, 20, 60, 120)])
    pipeline.analyze(clip, "yard/84.mp4", external_id="84")
    pipeline.run(pipeline.upload("yard/85.mp4", b"no video", external_id="85"))
    return pipeline


@pytest.mark.parametrize("aws_endpoint", ["ministack"], indirect=True)
def test_commands_report_what_is_on_record(two_videos: Pipeline, capstone: Capstone) -> None:
    spans = json.loads(capstone("trace", "84", "--json").out)["spans"]
    assert {"upload", "analyze_video", "decode, detect, track", "persist_events"} <= {
        s["name"] for s in spans
    }
    assert "failed: undecodable-video" in capstone("trace", "85").out
    assert "no video 'x' is known" in capstone("trace", "x").err
