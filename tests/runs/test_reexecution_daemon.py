"""A database cut on the local stack, with Dagster's daemon: nothing is analysed twice, and nobody acts."""

from pathlib import Path

import dagster as dg
import pytest

from batch_gpu.compute import compute_class
from capstone_dagster.failures.breaker_state import BREAKER
from capstone_dagster.run_tags import PROBE_TAG
from capstone_dagster.storage.events import current_events
from tests.support.live_stack import DEADLINE_S, RECOVERING, LiveStack
from tests.support.waiting import wait_for

pytestmark = pytest.mark.live
STACK = RECOVERING


@pytest.mark.timeout(600)
def test_a_cut_database_costs_no_second_gpu_pass_and_nobody_has_to_act(stack: LiveStack, clip: Path) -> None:
    with dg.DagsterInstance.get() as instance:
        video = stack.upload("gate/cut.mp4", clip)
        with stack.held_back(video):
            wait_for("the upload's run", lambda: stack.runs(video), DEADLINE_S)
            stack.take_no_writes("on")
        [failed] = wait_for(
            "its failure",
            lambda: stack.runs(video, statuses=[dg.DagsterRunStatus.FAILURE]),
            DEADLINE_S,
        )
        wait_for("the pause", lambda: BREAKER.read(instance).paused, DEADLINE_S)
        assert BREAKER.read(instance).cause == "database-unavailable"
        wait_for("the database to be missed", lambda: BREAKER.read(instance).unreachable, DEADLINE_S)

        stack.take_no_writes("off")
        row = stack.until(video, "done")

        again = instance.get_run_by_id(row["run_id"])
        assert again is not None
        assert again.parent_run_id == failed.run_id
        left = set(again.step_keys_to_execute or ())
        assert "events.persist_events" in left
        assert not {"video_analysis.analyze_video", "events.derive_events"} & left
        assert again.tags[PROBE_TAG] == "true"
        assert again.remote_job_origin == failed.remote_job_origin
        plan = instance.get_execution_plan_snapshot(str(again.execution_plan_snapshot_id))
        steps = {step.key: step.tags or {} for step in plan.steps}
        assert compute_class(steps, again.step_keys_to_execute, again.tags) == "cpu"
        assert compute_class(steps, None, failed.tags) == "gpu"
        started = [
            event.dagster_event.step_key
            for run in stack.runs(video)
            for event in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_START)
            if event.dagster_event is not None
        ]
        assert started.count("video_analysis.analyze_video") == 1
        wait_for("intake to resume", lambda: not BREAKER.read(instance).paused, DEADLINE_S)
        assert len(stack.database.transact(current_events, video)) > 0
