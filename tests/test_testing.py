"""The kit for tests of others: it says what failed, agrees with the engine, stays out of the product."""

import ast
from pathlib import Path

import pytest

from capstone_dagster.analysis import DETECTIONS_SCHEMA, EventRules, load_detector
from capstone_dagster.assets.steps import detection
from capstone_dagster.testing import Analyzed, Pipeline, SquareDetector, Visit, detections_of, events_of

PACKAGE = Path(__file__).resolve().parent.parent / "capstone_dagster"
on_one_emulator = pytest.mark.parametrize("aws_endpoint", ["ministack"], indirect=True)


@on_one_emulator
def test_what_is_analysed_is_what_visits_say(analyzed: Analyzed) -> None:
    [expected] = events_of(Visit(1.0, 4.0), duration_s=6.0)
    [event] = analyzed.events

    assert (event["camera"], event["label"]) == ("gate", expected.label)
    # The pass looks every 200 ms, beginning with the first frame.
    assert event["start_ms"] == pytest.approx(expected.start_ms, abs=200)
    assert event["end_ms"] == pytest.approx(expected.end_ms, abs=200)
    assert event["started_at"] is not None
    assert analyzed.analysis["model"] == SquareDetector.name
    assert analyzed.detections.schema.names == DETECTIONS_SCHEMA.names
    assert analyzed.detections.num_rows == event["detections"]


@on_one_emulator
def test_a_failed_run_fails_the_test_with_its_reason(
    pipeline: Pipeline, stand_in_detector: SquareDetector
) -> None:
    with pytest.raises(AssertionError, match="undecodable-video"):
        pipeline.analyze(b"this is no video")
    assert not pipeline.results[-1].success


class TestTheStandIn:
    """In this order: the second would meet it if it stayed."""

    def test_is_used_where_it_is_asked_for(self, stand_in_detector: SquareDetector) -> None:
        assert detection.load_detector is not load_detector

    def test_is_gone_afterwards(self) -> None:
        assert detection.load_detector is load_detector


@pytest.mark.parametrize(
    ("visits", "rules", "spans"),
    [
        pytest.param([Visit(1, 4)], {}, [(1000, 4000)], id="one"),
        pytest.param([Visit(1, 4), Visit(9, 12)], {}, [(1000, 12000)], id="one-track"),
        pytest.param([Visit(1, 4), Visit(9, 12)], {"max_gap_s": 2}, [(1000, 4000), (9000, 12000)], id="gap"),
        pytest.param([Visit(1, 4), Visit(2, 3, track=2)], {}, [(1000, 4000), (2000, 3000)], id="two"),
        pytest.param([Visit(1, 1)], {}, [], id="seen-once"),
        pytest.param([Visit(1, 4, score=0.9), Visit(1, 4, 2, "face", (0.45, 0.22, 0.55, 0.35))], {},
                     [(1000, 4000)], id="a-face-belongs-to-its-person"),
        pytest.param([], {}, [], id="nobody"),
    ],
)  # fmt: skip
def test_visits_become_events(
    visits: list[Visit], rules: dict[str, float], spans: list[tuple[int, int]]
) -> None:
    events = events_of(*visits, rules=EventRules(**rules))
    assert [(event.start_ms, event.end_ms) for event in events] == spans


def test_detections_are_a_pass_worth() -> None:
    table, coverage = detections_of([Visit(0, 60)], duration_s=2.0, sample_fps=10, size=(100, 50))
    assert table.schema == DETECTIONS_SCHEMA
    assert table.num_rows == 20
    assert (coverage.width, coverage.height, coverage.last_pts_ms) == (100, 50, 1900)
    assert table["x2"].to_pylist()[0] == pytest.approx(60)


def test_the_product_needs_no_pytest() -> None:
    for path in PACKAGE.rglob("*.py"):
        if path.is_relative_to(PACKAGE / "testing"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] != "pytest", path
                assert not name.startswith("capstone_dagster.testing"), path
