"""The reports over the records of real runs, one that went well and one that failed: commands and assets."""

import json
import time

import dagster as dg
import pytest

from capstone_dagster.assets.declared.reports import delivery_report_asset, service_report_asset
from capstone_dagster.failures.past_incidents import PAST_INCIDENTS, PastIncident
from capstone_dagster.failures.prevented_duplicates import count_prevented
from capstone_dagster.reports.deployments import DEPLOYMENTS, Deployment
from capstone_dagster.testing import MakeClip, Pipeline, SquareDetector
from tests.support.command_line import Capstone


@pytest.fixture
def two_videos(pipeline: Pipeline, make_clip: MakeClip, stand_in_detector: SquareDetector) -> Pipeline:
    begun = time.time() - 60
    clip = make_clip("84.mp4", range(0, 3000, 40), lambda _: [("person", 20, 20, 60, 120)])
    pipeline.analyze(clip, "yard/84.mp4", external_id="84")
    pipeline.run(pipeline.upload("yard/85.mp4", b"no video", external_id="85"))
    DEPLOYMENTS.write(pipeline.instance, [Deployment("1a2b3c", begun - 7200, begun)])
    PAST_INCIDENTS.write(pipeline.instance, [PastIncident("i", "internal", begun, begun + 20, begun + 50, 1)])
    count_prevented(pipeline.instance, 3, time.time())
    return pipeline


def test_reports_show_what_is_on_record(two_videos: Pipeline, capstone: Capstone) -> None:
    def figures(*words: str) -> dict[str, object]:
        return dict(json.loads(capstone(*words, "--json").out))

    spans = json.loads(capstone("trace", "84", "--json").out)["spans"]
    named = {span["name"] for span in spans}
    assert {"upload", "analyze_video", "decode, detect, track", "persist_events"} <= named
    assert "failed: undecodable-video" in capstone("trace", "85").out
    assert "no video 'x' is known" in capstone("trace", "x").err

    found = figures("slo")
    assert (found["uploads"], found["success"], found["success_of_all"]) == (2, 1.0, 0.5)
    assert (found["prevented_duplicates"], found["incidents"], found["detect_p50_s"]) == (3, 1, 20.0)
    assert found["wasted_gpu_s"] > 0  # type: ignore[operator]
    assert "The period is empty" in capstone("slo", "--since", "2100-01-01").out

    found = figures("dora")
    assert (found["deployments"], found["change_failure_rate"]) == (1, 0.0)
    [release] = found["releases"]  # type: ignore[misc]
    assert release["runs"] == {"succeeded": 1, "failed": {"undecodable-video": 1}, "canceled": 0}

    [cause] = figures("incidents")["causes"]  # type: ignore[misc]
    assert (cause["failure"], cause["count"]) == ("undecodable-video", 1)
    assert cause["example"].startswith("A video was expected in yard/85.mp4")

    with two_videos.services.database.transaction() as connection:  # as PostgreSQL's extension would
        connection.exec_driver_sql(
            "CREATE TABLE public.pg_stat_statements AS SELECT 'SELECT slow' AS query, 7 AS calls, "
            "1500.0::float AS mean_exec_time, 10500.0::float AS total_exec_time"
        )
    assert "10.5 s  SELECT slow" in capstone("perf-report").out
    assert figures("perf-report")["uploads"] == figures("perf-report", "84")["uploads"] == 1
    assert "# Performance" in capstone("perf-report", "--markdown").out
    assert "No upload was analysed" in capstone("perf-report", "85").out

    made = dg.materialize(
        [service_report_asset, delivery_report_asset],
        instance=two_videos.instance,
        resources={"services": two_videos.services},
    )
    shown = {
        event.asset_key.to_user_string(): event.step_materialization_data.materialization.metadata
        for event in made.get_asset_materialization_events()
        if event.asset_key is not None
    }
    assert shown["service_report"]["success"].value == 1.0
    assert "svg" in str(shown["delivery_report"]["plot"].value)
    stored = two_videos.services.objects.get_bytes("summaries/delivery_report.json")
    assert json.loads(stored)["deployments"] == 1
