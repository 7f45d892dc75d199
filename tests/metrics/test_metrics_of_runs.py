"""Metrics that the pipeline really publishes: each says what happened."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dagster as dg
import pytest
from botocore.awsrequest import AWSResponse

from capstone_dagster.analysis import DetectionSummary
from capstone_dagster.assets.steps import detection
from capstone_dagster.assets.steps.analysis_log import AnalysisLog
from capstone_dagster.assets.steps.duplicate_passes import Passes
from capstone_dagster.assets.steps.measurements import failed_pass_measured, measure_pass
from capstone_dagster.catalog import metrics as declared
from capstone_dagster.failures.duplicates import doubled_work
from capstone_dagster.intake.sensor import upload_sensor
from capstone_dagster.run_tags import DETECTION_TAG, DUPLICATE_OF_TAG, VIDEO_SECONDS_TAG
from capstone_dagster.settings import read_settings
from capstone_dagster.storage.analyses import analyses_of
from capstone_dagster.storage.database import Database
from capstone_dagster.storage.errors import DatabaseUnavailable, SourceForbidden
from capstone_dagster.storage.sources import head_source
from capstone_dagster.storage.video_status import current_status
from tests.assets.conftest import Pipeline
from tests.conftest import Aws
from tests.support.published import Published

OF_A_PASS = {
    declared.MODEL_LOAD_TIME,
    declared.FRAMES_DECODED_PER_SECOND,
    declared.FRAMES_ANALYZED_PER_SECOND,
    declared.DETECTIONS_PER_VIDEO,
    declared.BATCH_SIZE,
    declared.OUT_OF_MEMORY_BACKOFFS,
    declared.CPU_FALLBACKS,
    declared.GPU_SECONDS,
    declared.ESTIMATED_COST,
    declared.DUPLICATE_JOBS,
}
OF_A_PUBLICATION = {
    declared.ROWS_PERSISTED,
    declared.PERSIST_TIME,
    declared.PERSIST_ERRORS,
}
OF_A_NEW_ANALYSIS = {declared.EVENTS_PER_VIDEO, declared.UPLOAD_TO_PERSISTED, declared.LEG_DURATION}
OF_A_GPU = {declared.GPU_MEMORY_USED, declared.GPU_UTILIZATION}
OF_A_TICK = {
    declared.UPLOADS_RECEIVED,
    declared.DUPLICATES_PREVENTED,
    declared.UPLOADS_IGNORED,
    declared.UPLOADS_VANISHED,
    declared.MESSAGES_MALFORMED,
    declared.QUEUE_AGE,
}


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return Published(tmp_path / "standard-output")


@pytest.fixture
def pipeline(
    aws: Aws, database: Database, published: Published, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pipeline]:
    monkeypatch.setattr(detection, "_loaded", None)
    settings = read_settings(
        database_url=database.engine.url.render_as_string(hide_password=False),
        derived_url=aws.resources.derived_url,
        queue_url=aws.resources.queue_url,
        poll_wait_s=1,
        request_patience_s=0,
        sample_fps=1.0,
        gpu_usd_per_hour=2.5,
    )
    with dg.DagsterInstance.ephemeral() as instance:
        yield Pipeline(aws, published.services(settings), instance)


def names(*sets: set[Any]) -> set[str]:
    return {metric.name for each in sets for metric in each}


def test_metrics_of_a_run_are_those_of_its_steps(
    pipeline: Pipeline, published: Published, clip: Path
) -> None:
    upload = pipeline.upload("gate/a.mp4", clip.read_bytes())
    assert pipeline.run(upload).success
    assert published.names() == names(OF_A_PASS, OF_A_PUBLICATION, OF_A_NEW_ANALYSIS)

    [analysis] = pipeline.services.database.transact(analyses_of, upload.video_id)
    assert published.values(declared.DETECTIONS_PER_VIDEO) == [analysis["detections"]]
    assert published.values(declared.EVENTS_PER_VIDEO) == [analysis["events"]]
    assert published.values(declared.ROWS_PERSISTED) == [analysis["events"]] != [0]
    assert published.values(declared.GPU_SECONDS) == published.values(declared.ESTIMATED_COST) == [0]
    assert published.values(declared.PERSIST_ERRORS) == published.values(declared.DUPLICATE_JOBS) == [0]
    [latency] = published.values(declared.UPLOAD_TO_PERSISTED)
    waited = (analysis["published_at"] - upload.uploaded_at).total_seconds()
    assert latency == pytest.approx(waited, abs=0.01)
    [to_frame] = published.values(declared.LEG_DURATION, Leg=declared.FIRST_FRAME)
    [to_events] = published.values(declared.LEG_DURATION, Leg=declared.PUBLISHED)
    assert 0 < to_frame < to_events
    decoded, analyzed = (
        published.values(metric)[0]
        for metric in (declared.FRAMES_DECODED_PER_SECOND, declared.FRAMES_ANALYZED_PER_SECOND)
    )
    assert decoded / analyzed == pytest.approx(analysis["frames_decoded"] / analysis["frames_analyzed"])
    manifest = json.loads(
        pipeline.services.objects.get_bytes(f"detections/{analysis['detection_id']}/{detection.MANIFEST}")
    )
    [run] = pipeline.instance.get_runs()
    assert float(run.tags[VIDEO_SECONDS_TAG]) == pytest.approx(manifest["duration_ms"] / 1000, abs=0.5)

    # Once more: nothing is analysed and nothing written, so nothing is measured of either.
    before = len(published.lines())
    assert pipeline.run(upload).success
    again = published.lines()[before:]
    assert {name for line in again for name in line} >= names(OF_A_PUBLICATION)
    assert not {name for line in again for name in line} & names(OF_A_PASS, OF_A_NEW_ANALYSIS)
    assert published.values(declared.ROWS_PERSISTED)[-1] == 0


def test_metrics_of_a_gpu_are_those_of_its_pass(published: Published, tmp_path: Path) -> None:
    values: dict[str, Any] = dict.fromkeys(DetectionSummary.__dataclass_fields__)
    done = DetectionSummary(
        **{
            **values,
            "device": "cuda:0",
            "seconds": 36.0,
            "frames_decoded": 3600,
            "frames_analyzed": 720,
            "detections": 12,
            "batch_size": 8,
            "out_of_memory_backoffs": 1,
            "gpu_memory_used_mb": 20_000.0,
            "gpu_memory_total_mb": 80_000.0,
            "gpu_utilization_percent": 71.0,
        }
    )
    services = published.services(gpu_usd_per_hour=2.5)
    measure_pass(done, services)
    assert published.names() == names(OF_A_PASS, OF_A_GPU) - names(
        {declared.MODEL_LOAD_TIME, declared.DUPLICATE_JOBS}
    )
    [line] = published.lines()
    assert {name: line[name] for name in names(OF_A_GPU)} == {"GpuMemoryUsed": 25, "GpuUtilization": 71}
    assert (line["GpuSeconds"], line["EstimatedCost"]) == (36, 0.025)
    assert (line["FramesDecodedPerSecond"], line["FramesAnalyzedPerSecond"]) == (100, 20)
    assert (line["OutOfMemoryBackoffs"], line["BatchSize"], line["CpuFallbacks"]) == (1, 8, 0)
    measure_pass(replace(done, device="cpu", cpu_fallback="no driver", gpu_memory_used_mb=None), services)
    assert published.values(declared.CPU_FALLBACKS) == [0, 1]
    assert published.values(declared.GPU_SECONDS) == [36, 0]


def test_metrics_of_a_gpu_count_what_came_to_nothing(published: Published) -> None:
    services = published.services(gpu_usd_per_hour=3600.0)
    with pytest.raises(RuntimeError), failed_pass_measured("cuda:0", services):
        raise RuntimeError("the GPU failed")
    with failed_pass_measured("cuda:0", services):
        pass  # measure_pass speaks of it
    [seconds] = published.values(declared.GPU_SECONDS)
    assert 0 < seconds < 60
    assert published.values(declared.ESTIMATED_COST) == [seconds]


def test_metrics_of_a_database_that_is_away(pipeline: Pipeline, published: Published, clip: Path) -> None:
    upload = pipeline.upload("gate/a.mp4", clip.read_bytes())
    nowhere = {"database_url": None, "postgres_host": "127.0.0.1", "postgres_port": 1}
    cut_off = published.services(pipeline.services.settings.model_copy(update=nowhere))
    assert not pipeline.run(upload, services=cut_off).success
    # Progress once, then publishing: the first try and three more.
    assert published.values(declared.DATABASE_RETRIES) == [1, 1, 1]
    assert sum(published.values(declared.DATABASE_CONNECTION_FAILURES)) >= 4
    assert published.values(declared.PERSIST_ERRORS) == [1]
    assert published.values(declared.ROWS_PERSISTED) == []


def test_metrics_count_each_time_that_the_database_does_not_answer(published: Published) -> None:
    services = published.services(postgres_host="127.0.0.1", postgres_port=1)
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            services.database.ping()
    with pytest.raises(DatabaseUnavailable):
        services.database.transact(current_status)
    assert published.values(declared.DATABASE_CONNECTION_FAILURES) == [1, 1, 1]


def test_metrics_count_what_s3_forbids(aws: Aws, published: Published) -> None:
    services = published.services()
    aws.client("s3").put_object(Bucket="capstone-raw", Key="a.mp4", Body=b"x")

    def forbid(request: Any, **more: Any) -> AWSResponse | None:
        class Body:
            def stream(self, **how: Any) -> Iterator[bytes]:
                yield b"<Error><Code>AccessDenied</Code></Error>"

        return AWSResponse(request.url, 403, {}, Body()) if "secret" in request.url else None

    services.s3.meta.events.register("before-send.s3", forbid)
    head_source(services.s3, "capstone-raw", "a.mp4")
    assert published.lines() == []
    with pytest.raises(SourceForbidden):
        head_source(services.s3, "capstone-raw", "secret.mp4")
    assert published.values(declared.S3_ACCESS_DENIED) == [1]


def test_metrics_of_intake_have_zeros(pipeline: Pipeline, published: Published, clip: Path) -> None:
    def tick() -> None:
        context = dg.build_sensor_context(
            instance=pipeline.instance, resources={"services": pipeline.services}
        )
        upload_sensor(context)

    s3, sqs = pipeline.aws.client("s3"), pipeline.aws.client("sqs")
    tick()  # S3's test event
    before = len(published.lines())
    tick()
    [line] = published.lines()[before:]
    assert {name: line[name] for name in names(OF_A_TICK)} == dict.fromkeys(names(OF_A_TICK), 0)

    s3.put_object(Bucket="capstone-raw", Key="gate/a.mp4", Body=clip.read_bytes())
    s3.put_object(Bucket="capstone-raw", Key="gate/a.txt", Body=b"x")
    queue = pipeline.aws.resources.queue_url
    sqs.send_message(QueueUrl=queue, MessageBody='{"bucket": "capstone-raw", "key": "gate/a.mp4"}')
    sqs.send_message(QueueUrl=queue, MessageBody='{"bucket": "capstone-raw", "key": "gate/gone.mp4"}')
    sqs.send_message(QueueUrl=queue, MessageBody="what?")
    before = len(published.lines())
    for _ in range(3):
        tick()
    legs = published.values(declared.LEG_DURATION, Leg=declared.RECEIVED)
    assert legs
    assert all(0 <= leg < 3600 for leg in legs)
    found = [line for line in published.lines()[before:] if declared.LEG_DURATION.name not in line]
    totals = {name: sum(line[name] for line in found) for name in names(OF_A_TICK)}
    assert totals["UploadsIgnored"] == 1
    assert totals["UploadsVanished"] == 1
    assert totals["MessagesMalformed"] == 1
    # Ticks without a cursor see nothing again within the visibility time-out; the second message of the same
    # upload is the duplicate.
    assert (totals["UploadsReceived"], totals["DuplicatesPrevented"]) == (2, 1)
    assert max(line["QueueAge"] for line in found) > 0


# --- a second pass over the same pixels ---


@pytest.fixture
def analyses(pipeline: Pipeline, clip: Path) -> Callable[..., dg.DagsterRun]:
    """`analyses(key, forget=…)`: the run that analyses the clip, uploaded under this key."""

    def run(key: str) -> dg.DagsterRun:
        upload = pipeline.upload(key, clip.read_bytes())
        result = pipeline.run(upload)
        assert result.success
        found = pipeline.instance.get_run_by_id(result.run_id)
        assert found is not None
        return found

    return run


def lose_detections(pipeline: Pipeline) -> None:
    """As if the fence were broken that lets nothing be analysed twice."""
    bucket, _, prefix = pipeline.aws.resources.derived_url.removeprefix("s3://").partition("/")
    s3 = pipeline.aws.client("s3")
    for found in s3.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/detections/".lstrip("/"))["Contents"]:
        s3.delete_object(Bucket=bucket, Key=found["Key"])
    vars(pipeline.services).pop("objects")  # a new one: this process remembers what it wrote


def test_metrics_count_a_pass_that_another_run_had_finished(
    pipeline: Pipeline, published: Published, analyses: Callable[..., dg.DagsterRun]
) -> None:
    first = analyses("gate/a.mp4")
    assert not doubled_work(analyses("gate/b.mp4"))  # its detections are reused: there is no pass
    lose_detections(pipeline)
    third = analyses("gate/c.mp4")
    assert doubled_work(third)
    assert third.tags[DUPLICATE_OF_TAG] == first.run_id
    assert published.values(declared.DUPLICATE_JOBS) == [0, 1]


def begin_beside(
    pipeline: Pipeline, video: Path, status: dg.DagsterRunStatus, *, same_root: bool
) -> tuple[dg.DagsterRun, dg.DagsterRun]:
    """Begin a pass while there is another run that is at it, or was; returns that one and the own run."""
    job = dg.JobDefinition(name="analyze_upload", graph_def=dg.GraphDefinition(name="empty"))
    other = pipeline.instance.create_run_for_job(job, status=status, tags={DETECTION_TAG: "d1"})
    of_other = {"root_run_id": other.run_id, "parent_run_id": other.run_id} if same_root else {}
    own = pipeline.instance.create_run_for_job(job, status=dg.DagsterRunStatus.STARTED, **of_other)
    upload = pipeline.upload("gate/a.mp4", b"")
    story = AnalysisLog(logging.getLogger("capstone.analysis"), own.run_id, upload)
    about: Any = SimpleNamespace(duration_ms=1000)
    Passes(pipeline.instance, own.run_id, pipeline.services).begin("d1", about, story)
    after = pipeline.instance.get_run_by_id(own.run_id)
    assert after is not None
    return other, after


def test_metrics_count_a_pass_that_another_run_is_at(
    pipeline: Pipeline, published: Published, clip: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other, own = begin_beside(pipeline, clip, dg.DagsterRunStatus.STARTED, same_root=False)
    assert doubled_work(own)
    assert own.tags[DUPLICATE_OF_TAG] == other.run_id
    assert published.values(declared.DUPLICATE_JOBS) == [1]
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert other.run_id in record.getMessage()


@pytest.mark.parametrize(
    ("status", "same_root"),
    [
        (dg.DagsterRunStatus.STARTED, True),  # a lost worker, whose run is not given up yet
        (dg.DagsterRunStatus.FAILURE, False),  # it failed within its pass
        (dg.DagsterRunStatus.STARTING, False),  # it inherited the tag, and has not begun
    ],
)
def test_metrics_count_no_duplicate_where_a_pass_is_tried_again(
    pipeline: Pipeline, published: Published, clip: Path, status: dg.DagsterRunStatus, same_root: bool
) -> None:
    _, own = begin_beside(pipeline, clip, status, same_root=same_root)
    assert not doubled_work(own)
    assert published.values(declared.DUPLICATE_JOBS) == [0]


def test_metrics_count_a_pass_whose_results_were_there_before_its_own(
    pipeline: Pipeline,
    published: Published,
    analyses: Callable[..., dg.DagsterRun],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a worker that was given up and went on: its run is of the same root, or has no tags at all."""
    real = detection.analyze_video

    def overtaken(*arguments: Any, **named: Any) -> Any:
        done = real(*arguments, **named)
        [run] = pipeline.instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        key = f"detections/{run.tags[DETECTION_TAG]}/{detection.MANIFEST}"
        pipeline.services.objects.put_bytes(key, json.dumps(asdict(done)).encode())
        for file in named.get("out", arguments[1]).glob("*.parquet"):
            pipeline.services.objects.put_file(f"{key.rpartition('/')[0]}/{file.name}", file)
        return done

    monkeypatch.setattr(detection, "analyze_video", overtaken)
    run = analyses("gate/a.mp4")
    assert doubled_work(run)
    assert sum(published.values(declared.DUPLICATE_JOBS)) == 1
