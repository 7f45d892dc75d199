import pytest
from person_seconds import person_seconds

from capstone_dagster.testing import Analyzed, MakeClip, Pipeline, SquareDetector


def shown(pipeline: Pipeline, video: Analyzed) -> float:
    result = pipeline.materialize(person_seconds, video)
    [materialization] = result.asset_materializations_for_node("person_seconds")
    return materialization.metadata["person_seconds"].value


def test_seconds_of_one_who_crosses(analyzed: Analyzed, pipeline: Pipeline) -> None:
    assert [event["label"] for event in analyzed.events] == ["person"]
    assert shown(pipeline, analyzed) == pytest.approx(3.0, abs=0.4)  # two intervals at 5 frames a second


def test_nobody_is_no_time(
    pipeline: Pipeline, make_clip: MakeClip, stand_in_detector: SquareDetector
) -> None:
    empty = make_clip("empty.mp4", range(0, 2000, 40))

    assert shown(pipeline, pipeline.analyze(empty)) == 0.0
