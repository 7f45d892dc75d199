"""An ended run ends: Dagster's interruption is no failure that would be tried again."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster_postgres.utils import DagsterPostgresException

from batch_gpu.jobs import CANCELLED_TAG
from capstone_dagster.assets import failing
from capstone_dagster.assets.declared import videos
from capstone_dagster.assets.steps import detection, one_video
from capstone_dagster.storage.analyses import analyses_of
from capstone_dagster.storage.errors import StorageUnavailable
from capstone_dagster.storage.video_status import cancel_upload, current_status
from capstone_dagster.testing import MakeClip, SquareDetector
from tests.assets.conftest import Pipeline
from tests.assets.test_recovery import execute
from tests.support.dagster_home import dagster_home


@pytest.fixture
def instance(pipeline: Pipeline, tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.local_temp(dagster_home(tmp_path)) as instance:
        pipeline.instance = instance
        yield instance


@pytest.mark.parametrize(
    ("room", "what", "step"),
    [
        (detection, "analyze_video", "video_analysis.analyze_video"),
        (videos, "derive", "events.derive_events"),
        (one_video, "publish", "events.persist_events"),
    ],
)
def test_an_operators_end_of_a_run_is_not_tried_again(
    pipeline: Pipeline,
    instance: dg.DagsterInstance,
    make_clip: MakeClip,
    stand_in_detector: SquareDetector,
    monkeypatch: pytest.MonkeyPatch,
    room: Any,
    what: str,
    step: str,
) -> None:
    upload = pipeline.upload("gate/a.mp4", make_clip("a.mp4", range(0, 1000, 40), lambda _: ()).read_bytes())
    asked: list[str] = []

    def end(*_: object, **__: object) -> None:
        """What a worker meets that gets a stop signal, at any point."""
        [run] = instance.get_runs()
        asked.append(run.run_id)
        assert len(asked) == 1, "it goes on"
        instance.report_run_canceling(run)
        raise DagsterExecutionInterruptedError

    monkeypatch.setattr(room, what, end)

    result = execute(pipeline, upload, pipeline.services, run_config=pipeline.configured(upload))

    [run] = instance.get_runs()
    assert run.status == dg.DagsterRunStatus.CANCELED
    kinds = {event.event_type_value for event in result.all_events if event.step_key == step}
    assert "STEP_UP_FOR_RETRY" not in kinds
    assert pipeline.services.database.transact(analyses_of, upload.video_id) == []


@pytest.mark.parametrize("recorded", ["in the run's tags", "in the event store"])
@pytest.mark.parametrize("step", ["analyze_video", "persist_events"])
def test_a_run_whose_stop_signal_is_lost_ends_as_cancelled(
    pipeline: Pipeline,
    instance: dg.DagsterInstance,
    make_clip: MakeClip,
    stand_in_detector: SquareDetector,
    monkeypatch: pytest.MonkeyPatch,
    recorded: str,
    step: str,
) -> None:
    upload = pipeline.upload("gate/a.mp4", make_clip("a.mp4", range(0, 1000, 40), lambda _: ()).read_bytes())
    database = pipeline.services.database
    real = failing.run_tags

    def cancel_before_step(context: dg.OpExecutionContext) -> Any:
        if context.op.name == step:
            if recorded == "in the event store":
                database.transact(cancel_upload, upload.upload_id, "Cancelled by kim.", context.run_id)
            else:
                instance.add_run_tags(context.run_id, {CANCELLED_TAG: context.run_id})
        return real(context)

    monkeypatch.setattr(failing, "run_tags", cancel_before_step)

    execute(pipeline, upload, pipeline.services, run_config=pipeline.configured(upload))

    [run] = instance.get_runs()
    assert run.status == dg.DagsterRunStatus.CANCELED
    assert database.transact(analyses_of, upload.video_id) == []


def test_a_transient_failure_is_tried_twice_more(
    pipeline: Pipeline,
    instance: dg.DagsterInstance,
    make_clip: MakeClip,
    stand_in_detector: SquareDetector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upload = pipeline.upload("gate/a.mp4", make_clip("a.mp4", range(0, 1000, 40), lambda _: ()).read_bytes())
    tried: list[str] = []

    def fail(*_: object, **__: object) -> None:
        tried.append("again")
        raise StorageUnavailable("S3 does not answer.")

    monkeypatch.setattr(videos, "derive", fail)
    monkeypatch.setattr(dg.RetryPolicy, "calculate_delay", lambda *_: 0)

    result = execute(pipeline, upload, pipeline.services, run_config=pipeline.configured(upload))

    assert len(tried) == 3
    [failed] = [event for event in result.all_events if event.is_step_failure]
    data = failed.step_failure_data.user_failure_data
    assert data is not None
    assert data.metadata["failure_class"].value == "storage-unavailable"
    # Between the tries a person sees the cause, not only that there is another one.
    first = next(event for event in result.all_events if event.event_type_value == "STEP_UP_FOR_RETRY")
    assert "S3 does not answer." in str(first.event_specific_data)


def test_a_failure_keeps_its_class_although_dagsters_storage_takes_no_word_of_it(
    pipeline: Pipeline,
    instance: dg.DagsterInstance,
    make_clip: MakeClip,
    stand_in_detector: SquareDetector,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    upload = pipeline.upload("gate/a.mp4", make_clip("a.mp4", range(0, 1000, 40), lambda _: ()).read_bytes())
    add_run_tags = dg.DagsterInstance.add_run_tags

    def fail(*_: object, **__: object) -> None:
        monkeypatch.setattr(dg.DagsterInstance, "add_run_tags", away)
        raise StorageUnavailable("S3 does not answer.")

    def away(*_: object, **__: object) -> None:
        raise DagsterPostgresException("too many retries for DB connection")

    monkeypatch.setattr(videos, "derive", fail)
    monkeypatch.setattr(dg.RetryPolicy, "calculate_delay", lambda *_: 0)

    result = execute(pipeline, upload, pipeline.services, run_config=pipeline.configured(upload))

    monkeypatch.setattr(dg.DagsterInstance, "add_run_tags", add_run_tags)
    [failed] = [event for event in result.all_events if event.is_step_failure]
    data = failed.step_failure_data.user_failure_data
    assert data is not None
    assert data.metadata["failure_class"].value == "storage-unavailable"
    [row] = pipeline.services.database.transact(current_status, upload.video_id)
    assert (row["state"], row["failure_class"]) == ("failed", "storage-unavailable")
